//! The slow, obvious model of services and source NAT: lists, searched from front to back. Written
//! from the requirements; shares no code with the node.
//!
//! It does not choose where the node may choose for itself: it says what may be chosen
//! ([`Fate::Opens`]), is told what was ([`Nat::opened`]), and holds the node to it from then on.

use std::net::IpAddr;

use overlane_api::FrontendKind;

use super::flow::{ACK, At, FIN, Flow, Key, RST, SYN, State, flags_of};
use super::world::{End, HOST_PORT, Life, SERVICES, Spec, World, pool};
use crate::build::{Body, Packet, gateway_ip, node_ip};

/// The source that a flow leaves with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This address; the opener's port, unless the answers could not be told from another's.
    Keeps(IpAddr),
    /// This address; a port of the range.
    Port(IpAddr),
}

/// What a new flow may be.
#[derive(Debug, Clone)]
pub struct Opening {
    there: Key,
    service: Option<(u8, u64)>,
    /// Where it may go.
    to: Vec<At>,
    source: Source,
    adopted: bool,
}

/// What the sender of a dropped packet is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Nothing,
    /// A RST from whom it asked.
    Reset,
    /// Port unreachable, from whom it asked.
    Refused,
    /// Forbidden, from the gateway; or from the node, to the outside.
    Forbidden,
    /// Time exceeded, from the same.
    Expired,
}

/// What must become of a packet.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It leaves so.
    Leaves(Key),
    /// It opens a flow.
    Opens(Opening),
    /// It is an error; it leaves from one to the other, and quotes this.
    Tells(IpAddr, IpAddr, Key),
    /// It leaves as it came.
    Passes,
    /// It is answered in the name of whom it pings.
    Echoed,
    /// The host gets it.
    Host,
    Dropped(&'static str, Answer),
    /// No flow answers to it, if the port is one of a worker's; else the host gets it.
    Unsolicited,
}

/// A service that is there.
#[derive(Debug, Clone)]
struct Known {
    spec: Spec,
    life: u64,
}

#[derive(Debug)]
pub struct Nat {
    world: World,
    /// Milliseconds.
    pub now: u64,
    pub flows: Vec<Flow>,
    services: Vec<Option<Known>>,
    lives: u64,
    /// Answers to flows that ended just now, and until when their ports stay unused.
    cooling: Vec<(Key, u64)>,
}

impl Nat {
    pub fn new(world: World) -> Self {
        let services = vec![None; usize::from(SERVICES)];
        Self { world, now: 0, flows: Vec::new(), services, lives: 0, cooling: Vec::new() }
    }

    /// A service is there, or changed. Returns its life: one that comes back is another.
    pub fn set(&mut self, number: u8, spec: Spec) -> u64 {
        let known = &mut self.services[usize::from(number)];
        if let Some(known) = known {
            known.spec = spec;
            return known.life;
        }
        self.lives += 1;
        *known = Some(Known { spec, life: self.lives });
        self.lives
    }

    /// A service is gone. Returns the life that it had.
    pub fn remove(&mut self, number: u8) -> Option<u64> {
        self.services[usize::from(number)].take().map(|known| known.life)
    }

    /// Time passes: what was silent for too long is forgotten.
    pub fn wait(&mut self, milliseconds: u64) {
        self.now += milliseconds;
        let now = self.now;
        let is_over = |flow: &Flow| flow.last + flow.patience() * 1000 <= now;
        let (over, kept) = std::mem::take(&mut self.flows).into_iter().partition(is_over);
        self.flows = kept;
        over.into_iter().for_each(|flow| self.forget(&flow));
        self.cooling.retain(|(_, until)| *until > now);
    }

    fn forget(&mut self, flow: &Flow) {
        let seconds = match flow.state() {
            _ if flow.there.protocol != 6 || !flow.has_port => return,
            State::Closing => 65,
            State::Reset => 30,
            _ => return,
        };
        self.cooling.push((flow.out.back(), flow.last + seconds * 1000));
    }

    /// What is at an address and port: which service, and by what kind of address.
    fn frontend(&self, at: At, protocol: u8) -> Option<(u8, FrontendKind, &Known)> {
        (0..SERVICES).find_map(|number| {
            let known = self.services[usize::from(number)].as_ref()?;
            let all = known.spec.frontends(number);
            let (_, kind) = all.into_iter().find(|(address, _)| *address == at)?;
            (super::world::protocol(number) == protocol).then_some((number, kind, known))
        })
    }

    /// Does some service answer at the address, whatever the port?
    fn is_vip(&self, address: IpAddr) -> bool {
        let known = (0..SERVICES).zip(&self.services);
        known
            .filter_map(|(number, known)| Some((number, known.as_ref()?)))
            .flat_map(|(number, known)| known.spec.frontends(number))
            .any(|((vip, _), kind)| vip == address && kind != FrontendKind::NodePort)
    }

    /// May a flow to a service go on by what is known today?
    fn goes_on(&self, flow: &Flow) -> bool {
        let Some(service) = flow.service else { return true };
        match self.frontend(flow.there.to, flow.there.protocol) {
            None => flow.there.protocol != 17,
            Some((number, _, known)) if (number, known.life) != service => false,
            Some((_, _, known)) => {
                let is_it = |end: End, port| (0..2).any(|f| (end.address(f), port) == flow.out.to);
                let mut spots = known.spec.backends.iter();
                flow.there.protocol != 17
                    || spots.any(|spot| is_it(spot.end, spot.port) && spot.life != Life::Dead)
            }
        }
    }

    /// The flow that a packet is of, and whether its opener sent it. A flow that is over is forgotten.
    fn find(&mut self, key: &Key, flags: u8) -> Option<(usize, bool)> {
        let place = self.flows.iter().position(|f| f.there == *key || f.out.back() == *key)?;
        let by_opener = self.flows[place].there == *key;
        let flow = &self.flows[place];
        let ended = matches!(flow.state(), State::Closing | State::Reset);
        let begins = ended && by_opener && flags & (SYN | ACK | FIN | RST) == SYN;
        // Where it led there is a service by now.
        let is_hidden = by_opener && self.is_vip(flow.out.to.0);
        if begins || is_hidden || !self.goes_on(flow) {
            let flow = self.flows.remove(place);
            self.forget(&flow);
            return None;
        }
        if ended && !by_opener && flags & SYN != 0 && flags & (FIN | RST) == 0 {
            // The other end begins anew; who is who stays.
            let flow = &mut self.flows[place];
            (flow.history, flow.adopted) = (Vec::new(), false);
        }
        Some((place, by_opener))
    }

    /// Is the packet one of a flow that goes on?
    pub fn follows(&mut self, packet: &Packet) -> bool {
        let place = Key::of(packet).and_then(|key| self.find(&key, flags_of(packet)));
        place.is_some()
    }

    /// Is what is sent to that end, plainly to the uplink, looked at? All else is the host's.
    fn is_ours(&self, end: At, protocol: u8) -> bool {
        matches!(End::of(end.0), Some(End::Pod(_)))
            || self.is_external(end)
            || self.frontend(end, protocol).is_some()
            || self.is_vip(end.0)
            || is_cluster_ip(end.0)
    }

    /// What must become of a packet that `from` sends.
    pub fn judge(&mut self, from: End, packet: &Packet) -> Fate {
        let Some(key) = Key::of(packet) else {
            unreachable!("errors are judged by what they quote")
        };
        let host = node_ip(0, family(packet));
        if matches!(from, End::Outside(_)) && !self.is_ours(key.to, key.protocol) {
            return Fate::Host;
        }
        let flags = flags_of(packet);
        if flags & SYN != 0 && flags & (FIN | RST) != 0 && self.is_known(&key) {
            return Fate::Dropped("tcp_bad_flags", Answer::Nothing);
        }
        if let Some((place, by_opener)) = self.find(&key, flags) {
            let (now, flow) = (self.now, &mut self.flows[place]);
            flow.history.push((by_opener, flags));
            flow.last = now;
            let leaves = if by_opener { flow.out } else { flow.there.back() };
            if packet.ttl <= 1 && leaves.to.0 != host {
                return Fate::Dropped("ttl_expired", Answer::Expired);
            }
            return Fate::Leaves(leaves);
        }
        self.first(from, packet, key)
    }

    /// Do its packets come to the uplink without a tunnel?
    fn comes_plain(&self, from: End) -> bool {
        match from {
            End::Outside(_) => true,
            End::Remote(_) => !self.world.mode.is_tunnel(),
            End::Pod(_) | End::Host => false,
        }
    }

    /// Is it an address and port that flows may leave with?
    fn is_external(&self, (address, port): At) -> bool {
        let (first, last) = self.world.ports();
        let is_own = (0..2).any(|family| node_ip(0, family) == address) && port != HOST_PORT;
        let is_pool = (0..2).any(|family| pool(family) == address);
        (is_own || is_pool) && (first..=last).contains(&port)
    }

    /// A packet of no flow.
    fn first(&self, from: End, packet: &Packet, key: Key) -> Fate {
        let inside = matches!(from, End::Pod(_) | End::Host);
        let family = family(packet);
        if self.comes_plain(from) && self.is_external(key.to) {
            return Fate::Unsolicited;
        }
        let is_service = self.frontend(key.to, key.protocol).is_some();
        let is_vip = self.is_vip(key.to.0);
        if is_vip && inside && matches!(packet.body, Body::Echo(false, ..)) {
            return Fate::Echoed;
        }
        if is_service || is_vip || is_cluster_ip(key.to.0) {
            if let Some(reason) = refused_flags(key, packet) {
                return Fate::Dropped(reason, Answer::Nothing);
            }
            return self.to_service(from, packet, key);
        }
        match End::of(key.to.0) {
            Some(End::Pod(_) | End::Remote(_)) => Fate::Passes,
            Some(End::Host) => Fate::Host,
            _ if key.to.0 == gateway_ip(family) => Fate::Dropped("no_route", Answer::Nothing),
            _ if from == End::Host => Fate::Passes,
            _ => self.out_of_the_cluster(packet, key),
        }
    }

    fn to_service(&self, from: End, packet: &Packet, key: Key) -> Fate {
        let inside = matches!(from, End::Pod(_) | End::Host);
        let family = family(packet);
        let adopted = key.protocol == 6 && flags_of(packet) & SYN == 0;
        if !self.is_vip(key.to.0) && self.frontend(key.to, key.protocol).is_none() {
            return Fate::Dropped("service_unassigned", Answer::Nothing);
        }
        if !matches!(key.protocol, 6 | 17) {
            return Fate::Dropped("service_protocol", Answer::Nothing);
        }
        let Some((number, kind, Known { spec, life })) = self.frontend(key.to, key.protocol) else {
            return Fate::Dropped("service_unknown_port", refusal(key, false));
        };
        if kind == FrontendKind::ClusterIp && !inside {
            return Fate::Dropped("service_from_outside", Answer::Nothing);
        }
        let admitted = matches!(from, End::Pod(0) | End::Outside(0));
        if kind == FrontendKind::LoadBalancer && spec.ranged && !admitted {
            return Fate::Dropped("service_source_range", Answer::Nothing);
        }
        let local = match (kind, inside) {
            (FrontendKind::ClusterIp, _) => spec.internal_local,
            (_, true) => false,
            (_, false) => spec.external_local,
        };
        let ready = || spec.backends.iter().filter(|spot| spot.life == Life::Ready);
        if ready().next().is_none() {
            return Fate::Dropped("service_no_backend", refusal(key, spec.icmp_reject));
        }
        let usable = ready().filter(|spot| !local || matches!(spot.end, End::Pod(_)));
        let to: Vec<At> = usable.map(|spot| (spot.end.address(family), spot.port)).collect();
        if to.is_empty() {
            return Fate::Dropped("service_no_local_backend", Answer::Nothing);
        }
        let service = Some((number, *life));
        if adopted && spec.random && (inside || !local) {
            // Nobody knows which backend it had.
            return Fate::Dropped("flow_unknown", Answer::Nothing);
        }
        let keeps = inside || local;
        if keeps {
            let source = Source::Keeps(key.from.0);
            return self.with_port(Opening { there: key, service, to, source, adopted });
        }
        if adopted {
            return Fate::Dropped("flow_unknown", Answer::Nothing);
        }
        let source = Source::Port(node_ip(0, family));
        self.with_port(Opening { there: key, service, to, source, adopted })
    }

    fn out_of_the_cluster(&self, packet: &Packet, key: Key) -> Fate {
        let family = family(packet);
        if let Some(reason) = refused_flags(key, packet) {
            return Fate::Dropped(reason, Answer::Nothing);
        }
        let adopted = key.protocol == 6 && flags_of(packet) & SYN == 0;
        let source = match End::of(key.to.0) {
            Some(End::Outside(2 | 5)) => Source::Keeps(key.from.0),
            Some(End::Outside(3)) => return Fate::Dropped("egress_denied", Answer::Forbidden),
            Some(End::Outside(4)) => Source::Port(pool(family)),
            _ => Source::Port(node_ip(0, family)),
        };
        let opening = Opening { there: key, service: None, to: vec![key.to], source, adopted };
        match source {
            Source::Keeps(_) => Fate::Opens(opening),
            // Its port outside is not known any more.
            // An answer to nothing that this node knows of.
            Source::Port(_) if matches!(packet.body, Body::Echo(true, ..)) => {
                Fate::Dropped("egress_protocol", Answer::Nothing)
            }
            Source::Port(_) if adopted => Fate::Dropped("flow_unknown", Answer::Nothing),
            Source::Port(_) => self.with_port(opening),
        }
    }

    /// The source with which a flow goes there.
    fn source_to(&self, opening: &Opening, to: At) -> Source {
        let is_host = End::of(opening.there.from.0) == Some(End::Host);
        let is_elsewhere = matches!(End::of(to.0), Some(End::Remote(_)));
        match opening.source {
            // Its answer comes without a tunnel, and is told from the host's own by its port.
            Source::Keeps(own) if is_host && is_elsewhere && !self.world.mode.is_tunnel() => {
                Source::Port(own)
            }
            source => source,
        }
    }

    /// Is there no port for the flow to go there?
    fn is_exhausted(&self, opening: &Opening, to: At) -> bool {
        let Source::Port(address) = self.source_to(opening, to) else { return false };
        let (first, last) = self.world.ports();
        let protocol = opening.there.protocol;
        self.world.few_ports
            && !(first..=last).any(|port| self.is_free(address, port, to, protocol))
    }

    /// A flow that needs a port, unless there is none.
    fn with_port(&self, opening: Opening) -> Fate {
        if opening.to.iter().all(|to| self.is_exhausted(&opening, *to)) {
            return Fate::Dropped("snat_ports_exhausted", Answer::Forbidden);
        }
        Fate::Opens(opening)
    }

    /// Why the node may have refused a flow: which backend it goes to is its choice, and towards
    /// that one there may be no port; and no flow gets a port in its middle.
    pub fn may_refuse(&self, opening: &Opening) -> Vec<&'static str> {
        let port = |to: &&At| matches!(self.source_to(opening, **to), Source::Port(_));
        let exhausted = opening.to.iter().any(|to| self.is_exhausted(opening, *to));
        let unknown = opening.adopted && opening.to.iter().any(|to| port(&to));
        let all = [(exhausted, "snat_ports_exhausted"), (unknown, "flow_unknown")];
        all.into_iter().filter(|(may, _)| *may).map(|(_, reason)| reason).collect()
    }

    /// May a new flow to `to` take this port?
    fn is_free(&self, address: IpAddr, port: u16, to: At, protocol: u8) -> bool {
        let answer = Key { from: to, to: (address, port), protocol };
        let is_host = port == HOST_PORT && (0..2).any(|family| node_ip(0, family) == address);
        let cools = self.cooling.iter().any(|(key, until)| *key == answer && *until > self.now);
        !is_host && !cools && !self.is_known(&answer)
    }

    /// Is there a flow with packets like these?
    pub fn is_known(&self, key: &Key) -> bool {
        self.flows.iter().any(|flow| flow.there == *key || flow.out.back() == *key)
    }

    /// The node let a flow leave as `out`: may it, and from now on it must.
    ///
    /// # Errors
    /// Says what it must not.
    pub fn opened(&mut self, opening: &Opening, out: Key, flags: u8) -> Result<(), String> {
        let there = opening.there;
        let wrong = |what: String| Err(format!("{there:?} left as {out:?}: {what}"));
        if !opening.to.contains(&out.to) {
            return wrong(format!("it may go to {:?}", opening.to));
        }
        if self.is_known(&out.back()) {
            return wrong("its answers are another flow's".into());
        }
        let has_port = match self.source_to(opening, out.to) {
            Source::Keeps(own) => {
                let is_self = out.to.0 == own;
                let expected = if is_self { gateway_ip(usize::from(own.is_ipv6())) } else { own };
                if out.from.0 != expected {
                    return wrong(format!("its source is {expected}"));
                }
                let kept = Key { from: (expected, there.from.1), ..out };
                if out.from.1 != there.from.1 && !self.is_known(&kept.back()) {
                    return wrong("its port was free".into());
                }
                false
            }
            Source::Port(address) => {
                let (first, last) = self.world.ports();
                if out.from.0 != address || !(first..=last).contains(&out.from.1) {
                    return wrong(format!("its source is {address}, {first} to {last}"));
                }
                if !self.is_free(address, out.from.1, out.to, out.protocol) {
                    return wrong("the port is not free".into());
                }
                let is_in_range = (first..=last).contains(&there.from.1);
                let own_is_free = self.is_free(address, there.from.1, out.to, out.protocol);
                if self.world.workers == 1
                    && is_in_range
                    && own_is_free
                    && out.from.1 != there.from.1
                {
                    return wrong("its own port was free".into());
                }
                true
            }
        };
        self.flows.push(Flow {
            there,
            out,
            service: opening.service,
            adopted: opening.adopted,
            has_port,
            history: vec![(true, flags)],
            last: self.now,
        });
        Ok(())
    }

    /// What must become of an ICMP error that `from` sends from `source` about `about`, which it or
    /// somebody on the way received.
    pub fn judge_error(&self, from: End, source: IpAddr, about: &Packet) -> Fate {
        let Some(quoted) = Key::of(about) else { unreachable!("nobody tells of errors") };
        if self.comes_plain(from) && !self.is_ours(quoted.from, quoted.protocol) {
            return Fate::Host;
        }
        let known = self.flows.iter().find_map(|flow| {
            // As the flow's packets left, so they are quoted.
            if flow.out == quoted {
                Some((flow.out.back(), flow.there.back()))
            } else if flow.there.back() == quoted {
                Some((flow.there, flow.out))
            } else {
                None
            }
        });
        if let Some((arrives, leaves)) = known {
            // Who answered in person is known by another address where the error goes; and so is
            // everybody behind a client for whom another address stands.
            let is_client_side = self.flows.iter().any(|flow| flow.there == arrives);
            let is_hidden = is_client_side && leaves.from.0 != arrives.from.0;
            let source = if source == arrives.from.0 || is_hidden { leaves.from.0 } else { source };
            return Fate::Tells(source, leaves.to.0, leaves.back());
        }
        let to = about.source;
        match End::of(to) {
            Some(End::Pod(_) | End::Remote(_)) => Fate::Passes,
            _ if self.comes_plain(from) && self.is_external(quoted.from) => Fate::Unsolicited,
            _ if self.is_vip(to) => Fate::Dropped("service_protocol", Answer::Nothing),
            _ if is_cluster_ip(to) => Fate::Dropped("service_unassigned", Answer::Nothing),
            Some(End::Host) => Fate::Host,
            _ if (0..2).any(|family| gateway_ip(family) == to) => {
                Fate::Dropped("no_route", Answer::Nothing)
            }
            _ => match from {
                End::Pod(_) if matches!(End::of(to), Some(End::Outside(2 | 5))) => Fate::Passes,
                End::Pod(_) if End::of(to) == Some(End::Outside(3)) => {
                    Fate::Dropped("egress_denied", Answer::Nothing)
                }
                End::Pod(_) => Fate::Dropped("egress_protocol", Answer::Nothing),
                End::Host => Fate::Passes,
                End::Remote(_) | End::Outside(_) => Fate::Host,
            },
        }
    }
}

pub fn family(packet: &Packet) -> usize {
    usize::from(packet.source.is_ipv6())
}

fn is_cluster_ip(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..2] == [10, 96],
        IpAddr::V6(address) => address.segments()[0] == 0xfd98,
    }
}

fn refusal(key: Key, icmp: bool) -> Answer {
    if key.protocol == 6 && !icmp { Answer::Reset } else { Answer::Refused }
}

/// Why a TCP packet opens nothing.
fn refused_flags(key: Key, packet: &Packet) -> Option<&'static str> {
    let flags = flags_of(packet);
    if key.protocol != 6 {
        None
    } else if flags & SYN != 0 && flags & (FIN | RST) != 0 || flags & (SYN | RST | ACK) == 0 {
        Some("tcp_bad_flags")
    } else if flags & (FIN | RST) != 0 || flags & (SYN | ACK) == SYN | ACK {
        Some("flow_unknown")
    } else {
        None
    }
}
