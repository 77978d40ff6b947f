//! What is measured: which way packets go, in which tunnel, over which family.

use overlane_api::{Mode, Underlay};

use crate::traffic::{Order, Size};

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From a pod here to pods of other nodes.
    Out,
    /// From pods of other nodes to a pod here.
    In,
    /// From a pod here to another pod here.
    Local,
    /// From a pod here to services, whose backends are pods of other nodes.
    Service,
    /// The answers to that.
    ServiceReply,
    /// From a pod here to hosts outside, with this node's address.
    Outside,
    /// The answers to that.
    OutsideReply,
}

impl Way {
    /// Do packets arrive on the uplink?
    #[must_use]
    pub const fn is_in(self) -> bool {
        matches!(self, Self::In | Self::ServiceReply | Self::OutsideReply)
    }

    /// Do packets arrive in a tunnel, where there is one?
    #[must_use]
    pub const fn is_tunnelled_in(self) -> bool {
        matches!(self, Self::In | Self::ServiceReply)
    }

    /// Of answers: what they answer.
    #[must_use]
    pub const fn answered(self) -> Option<Self> {
        match self {
            Self::ServiceReply => Some(Self::Service),
            Self::OutsideReply => Some(Self::Outside),
            _ => None,
        }
    }

    /// Does each packet belong to a flow that the node remembers?
    #[must_use]
    pub const fn has_flows(self) -> bool {
        matches!(self, Self::Service | Self::Outside) || self.answered().is_some()
    }
}

/// One path through the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Name on the command line.
    pub name: &'static str,
    /// How packets travel between nodes.
    pub mode: Mode,
    /// Family of the outer header, and of the inner one too.
    pub family: Underlay,
    /// Which way.
    pub way: Way,
    /// Is each packet the first of its flow?
    pub opens: bool,
}

impl Scenario {
    const fn new(name: &'static str, mode: Mode, family: Underlay, way: Way) -> Self {
        Self { name, mode, family, way, opens: false }
    }

    /// The same, with packets that all open flows.
    const fn opening(name: &'static str, family: Underlay, way: Way) -> Self {
        Self { opens: true, ..Self::new(name, Mode::Geneve, family, way) }
    }

    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::new("geneve-encap", Mode::Geneve, Underlay::Ipv4, Way::Out),
        Self::new("geneve-decap", Mode::Geneve, Underlay::Ipv4, Way::In),
        Self::new("vxlan-encap", Mode::Vxlan, Underlay::Ipv4, Way::Out),
        Self::new("vxlan-decap", Mode::Vxlan, Underlay::Ipv4, Way::In),
        Self::new("native-out", Mode::Native, Underlay::Ipv4, Way::Out),
        Self::new("native-in", Mode::Native, Underlay::Ipv4, Way::In),
        Self::new("local", Mode::Geneve, Underlay::Ipv4, Way::Local),
        Self::new("dnat-geneve", Mode::Geneve, Underlay::Ipv4, Way::Service),
        Self::new("dnat-reply", Mode::Geneve, Underlay::Ipv4, Way::ServiceReply),
        Self::new("dnat-geneve6", Mode::Geneve, Underlay::Ipv6, Way::Service),
        Self::new("dnat-reply6", Mode::Geneve, Underlay::Ipv6, Way::ServiceReply),
        Self::new("snat-out", Mode::Geneve, Underlay::Ipv4, Way::Outside),
        Self::new("snat-in", Mode::Geneve, Underlay::Ipv4, Way::OutsideReply),
        Self::new("snat-out6", Mode::Geneve, Underlay::Ipv6, Way::Outside),
        Self::new("snat-in6", Mode::Geneve, Underlay::Ipv6, Way::OutsideReply),
        Self::opening("new-dnat", Underlay::Ipv4, Way::Service),
        Self::opening("new-snat", Underlay::Ipv4, Way::Outside),
        Self::opening("new-dnat6", Underlay::Ipv6, Way::Service),
        Self::opening("new-snat6", Underlay::Ipv6, Way::Outside),
        Self::new("geneve6-encap", Mode::Geneve, Underlay::Ipv6, Way::Out),
        Self::new("geneve6-decap", Mode::Geneve, Underlay::Ipv6, Way::In),
        Self::new("vxlan6-encap", Mode::Vxlan, Underlay::Ipv6, Way::Out),
        Self::new("vxlan6-decap", Mode::Vxlan, Underlay::Ipv6, Way::In),
        Self::new("native6-out", Mode::Native, Underlay::Ipv6, Way::Out),
        Self::new("native6-in", Mode::Native, Underlay::Ipv6, Way::In),
        Self::new("local6", Mode::Geneve, Underlay::Ipv6, Way::Local),
    ];

    /// The scenario of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scenario| scenario.name == name)
    }

    /// What a packet may cost, nanoseconds, where that is laid down.
    #[must_use]
    pub fn target_ns(&self, flows: usize) -> Option<f64> {
        if self.opens {
            // Three million flows a second.
            return (self.family == Underlay::Ipv4).then_some(1e3 / 3.0);
        }
        match (self.mode.is_tunnel(), self.family, self.way) {
            (true, Underlay::Ipv4, way) if way.has_flows() => {
                Some(if flows <= 1000 { 55.0 } else { 110.0 })
            }
            (true, Underlay::Ipv4, Way::Out) => Some(26.0),
            (true, Underlay::Ipv4, Way::In) => Some(30.0),
            _ => None,
        }
    }
}

/// What of a scenario can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Flows: inner addresses and ports.
    pub flows: usize,
    /// Of the frame on the wire; for a packet in a tunnel, of the inner frame.
    pub size: Size,
    /// In which order.
    pub order: Order,
    /// Other nodes.
    pub peers: usize,
    /// Pods on other nodes.
    pub endpoints: usize,
    /// Frames that a port rotates through.
    pub frames: usize,
    /// Services.
    pub services: usize,
    /// Do half of the answers arrive at another worker than the one that has their flow?
    pub crossed: bool,
    /// Of answers: do the packets that they answer go on arriving, at the worker of their pod?
    pub both_ways: bool,
    /// Do the frames that ports rotate through lie in memory in random order? Else they do in the order of their
    /// addresses, and follow one another so for good where none changes hands.
    pub scattered: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            flows: 1000,
            size: Size::Bytes(64),
            order: Order::Random,
            peers: 64,
            endpoints: 1000,
            frames: 256,
            services: 100,
            crossed: false,
            both_ways: false,
            scattered: false,
        }
    }
}
