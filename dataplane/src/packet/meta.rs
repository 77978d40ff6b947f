//! What the steps know about a packet. Written by one step, read by later ones; the bytes are
//! not looked at again.

use overlane_api::Mode;

use super::verdict::Verdict;
use crate::packet::verdict::PortId;

/// Which kind of port a packet came from, and so which road it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// A pod's port.
    #[default]
    Endpoint,
    /// The host port.
    Host,
    /// The uplink, as it came.
    Uplink,
    /// The uplink, out of a tunnel.
    Tunnel,
    /// Made here: an ICMP error, a fragment.
    Local,
}

impl Origin {
    /// Did the packet come from the underlay, in a tunnel or not?
    #[inline]
    #[must_use]
    pub const fn is_underlay(self) -> bool {
        matches!(self, Self::Uplink | Self::Tunnel)
    }
}

/// What is in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// IPv4.
    #[default]
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ARP.
    Arp,
    /// IPv6 that stays on its link: neighbour and router discovery, multicast.
    LinkV6,
}

/// A route's value: what has the destination. 0 is "nothing"; else kind in the top 3 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Route(pub u32);

/// What a [`Route`] says, spelled out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nothing has the address.
    None,
    /// A local endpoint, by index.
    Endpoint(u32),
    /// Another node, by index.
    Peer(u32),
    /// This node's own stack.
    Host,
    /// This dataplane as the pods' gateway.
    Gateway,
    /// Outside of the cluster, or in flat mode inside: unencapsulated, by index of the next hop.
    Underlay(u32),
    /// The same, but no next hop is known yet for the address.
    UnderlayUnknown,
    /// A service, by VIP number (see `tables/services`).
    Service(u32),
    /// Another node, by index, that has the backend of a service and answers the client itself. Of
    /// flows only: no address is routed there.
    Direct(u32),
}

impl Target {
    /// Is it on the underlay, by the node's own routes?
    #[inline]
    #[must_use]
    pub const fn is_underlay(self) -> bool {
        matches!(self, Self::Underlay(_) | Self::UnderlayUnknown)
    }

    /// Is it outside of the cluster?
    #[inline]
    #[must_use]
    pub const fn is_outside(self) -> bool {
        matches!(self, Self::None) || self.is_underlay()
    }
}

impl Route {
    const SHIFT: u32 = 29;
    const INDEX: u32 = (1 << Self::SHIFT) - 1;

    /// Largest index that fits.
    pub const MAX_INDEX: u32 = Self::INDEX;

    /// Nothing has the addresses of a prefix, and no shorter prefix is asked: [`Target::None`], but
    /// an entry of a table.
    pub const DEAD_END: Self = Self(1);

    /// In a value of kind 0: [`Target::Direct`].
    const DIRECT: u32 = 1 << 28;

    /// Packs a target.
    #[must_use]
    pub const fn new(target: Target) -> Self {
        let (kind, index) = match target {
            Target::None => (0, 0),
            Target::Endpoint(index) => (1, index),
            Target::Peer(index) => (2, index),
            Target::Host => (3, 0),
            Target::Gateway => (4, 0),
            Target::Underlay(index) => (5, index),
            Target::UnderlayUnknown => (6, 0),
            Target::Service(vip) => (7, vip),
            Target::Direct(index) => (0, Self::DIRECT | index),
        };
        Self(kind << Self::SHIFT | index & Self::INDEX)
    }

    /// Unpacks it.
    #[inline]
    #[must_use]
    pub const fn target(self) -> Target {
        let index = self.0 & Self::INDEX;
        match self.0 >> Self::SHIFT {
            1 => Target::Endpoint(index),
            2 => Target::Peer(index),
            3 => Target::Host,
            4 => Target::Gateway,
            5 => Target::Underlay(index),
            6 => Target::UnderlayUnknown,
            7 => Target::Service(index),
            _ if index & Self::DIRECT != 0 => Target::Direct(index & !Self::DIRECT),
            _ => Target::None,
        }
    }

    /// Is there a target, or a [`Self::DEAD_END`]?
    #[inline]
    #[must_use]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// What the steps know about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
pub struct Meta {
    /// What becomes of it. Any step.
    pub verdict: Verdict,
    /// What has the destination. `resolve/route`.
    pub route: Route,
    /// Hash of the packet's key ([`crate::packet::flow_key::FlowHash`], the same at all workers); of a
    /// fragment's without ports. `ingress/parse`.
    pub hash: u32,
    /// IPv4 source, host order; 0 for IPv6. `ingress/parse`.
    pub source: u32,
    /// IPv4 destination, host order; 0 for IPv6. `ingress/parse`.
    pub destination: u32,
    /// The port it came from. The worker.
    pub port: PortId,
    /// Length of the IP packet, bytes. `ingress/parse`.
    pub ip_len: u16,
    /// Offset of the upper-layer header from the IP header, bytes; 0 for a fragment that has
    /// none. `ingress/parse`.
    pub l4: u16,
    /// Source port of TCP, UDP and SCTP, host order; identifier of an ICMP echo request; else 0.
    /// `ingress/parse`; of a later fragment `stages/fragments`.
    pub source_port: u16,
    /// Destination port of TCP, UDP and SCTP, host order; identifier of an ICMP echo reply; else
    /// 0. `ingress/parse`; of a later fragment `stages/fragments`.
    pub destination_port: u16,
    /// Family. `ingress/parse`.
    pub kind: Kind,
    /// Where it came from. The worker; `ingress/decap`.
    pub origin: Origin,
    /// Upper-layer protocol. `ingress/parse`.
    pub protocol: u8,
    /// TOS or traffic class of the IP header. `ingress/parse`.
    pub tos: u8,
    /// TTL or hop limit. `ingress/parse`.
    pub ttl: u8,
    /// IPv4 with "don't fragment", and every IPv6. `ingress/parse`.
    pub dont_fragment: bool,
    /// A fragment, first or later. `ingress/parse`.
    pub is_fragment: bool,
    /// Is the packet of which it is a fragment known here? Then its ports, also those of a later
    /// fragment, are the first's. `stages/fragments`.
    pub is_known_fragment: bool,
    /// What a fragment of an IPv4 packet is named by when it leaves with a shared address.
    /// `stages/fragments`.
    pub new_id: u16,
    /// Number of the packet of which it is a fragment; another may have the same. `stages/fragments`.
    pub datagram: u16,
    /// May the packet's TTL still be lowered here? Not for packets made here.
    pub forwarded: bool,
    /// Its direction of a flow of this worker's, by number; 0: of none. `lookup/conntrack`,
    /// `resolve/install`.
    pub flow: u32,
    /// Is it to an address and port that flows of this worker leave with? `ingress/decap`.
    pub is_answer: bool,
    /// Is it to a service at this node's own address? `ingress/decap`, `resolve/route`.
    pub is_node_port: bool,
    /// Workers that had no flow for it; of an ICMP error about a service's answer. `resolve/connect`,
    /// `stages/fragments`.
    pub asked: u8,
    /// Is it an ICMP error about the flow's other direction? `lookup/related`, `resolve/connect`.
    pub is_related: bool,
    /// Is its source nothing that the peer has, so that only a flow by that peer lets it in?
    /// `ingress/peer_check`.
    pub needs_flow: bool,
    /// How many bytes before the packet's Ethernet header the data of the option stands that names
    /// its service; 0: there is none. `ingress/decap`.
    pub service_option: u16,
    /// Were its addresses translated here? Then nothing more is decided about them.
    /// `transmit/rewrite`.
    pub translated: bool,
    /// Index of the peer that sent it, plus 1; 0: none, or still to be found by `outer_source`.
    /// `ingress/decap`, `ingress/peer_check`.
    pub peer: u32,
    /// IPv4 source of the outer header, host order; 0: none. `ingress/decap`.
    pub outer_source: u32,
    /// Which tunnel it came in. `ingress/decap`.
    pub tunnel: Mode,
}

impl Meta {
    /// A packet that nothing is known of yet but its port.
    #[inline]
    #[must_use]
    pub const fn new(port: PortId, origin: Origin) -> Self {
        Self {
            verdict: Verdict::Pending,
            route: Route(0),
            hash: 0,
            source: 0,
            destination: 0,
            port,
            ip_len: 0,
            l4: 0,
            source_port: 0,
            destination_port: 0,
            kind: Kind::Ipv4,
            origin,
            protocol: 0,
            tos: 0,
            ttl: 0,
            dont_fragment: false,
            is_fragment: false,
            is_known_fragment: false,
            new_id: 0,
            datagram: 0,
            forwarded: true,
            flow: 0,
            is_answer: false,
            is_node_port: false,
            asked: 0,
            is_related: false,
            needs_flow: false,
            service_option: 0,
            translated: false,
            peer: 0,
            outer_source: 0,
            tunnel: Mode::Native,
        }
    }

    /// Has no step decided yet?
    #[inline]
    #[must_use]
    pub fn is_pending(&self) -> bool {
        matches!(self.verdict, Verdict::Pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_one_cache_line() {
        assert_eq!(std::mem::size_of::<Meta>(), 64);
    }

    #[test]
    fn a_route_is_read_back_as_written() {
        for target in [
            Target::None,
            Target::Endpoint(0),
            Target::Endpoint(Route::MAX_INDEX),
            Target::Peer(77),
            Target::Host,
            Target::Gateway,
            Target::Underlay(3),
            Target::UnderlayUnknown,
            Target::Direct(0),
            Target::Direct(1234),
            Target::Service(0),
            Target::Service(Route::MAX_INDEX),
        ] {
            assert_eq!(Route::new(target).target(), target);
            assert_eq!(Route::new(target).is_some(), target != Target::None);
        }
        assert_eq!(Route::DEAD_END.target(), Target::None);
        assert!(Route::DEAD_END.is_some());
    }
}
