//! One direction of a flow: all that a packet of it needs, in one cache line (IPv6: two).

use bytemuck::{AnyBitPattern, Zeroable};

use super::tcp_state::Seen;
use crate::packet::flow_key::{Address, Difference, Ends, FlowKey};
use crate::packet::meta::Route;

/// What a rewrite makes of a packet's header, and of its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrite<A> {
    /// Addresses and ports that the packet leaves with.
    pub leaving_as: FlowKey<A>,
    /// What is added to its checksums (RFC 1624).
    pub difference: Difference,
}

impl<A: Address> Rewrite<A> {
    /// From packets that arrive with `key` to packets that leave with `leaving_as`. The protocol
    /// stays that of `key`.
    #[must_use]
    pub fn between(key: &FlowKey<A>, leaving_as: &FlowKey<A>) -> Self {
        let leaving_as = FlowKey { protocol: key.protocol, ..*leaving_as };
        Self { leaving_as, difference: key.difference(&leaving_as) }
    }
}

/// What is not the packet's, but its flow's: where it goes, whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    /// What has the destination that the packet leaves with.
    pub route: Route,
    /// Generation of the tables that `route` was looked up in.
    pub generation: u32,
    /// Whatever the stages want to find again: a service, an egress rule.
    pub tag: u32,
    /// As `tag`, for single bits.
    pub marks: u16,
}

/// Bits of the number of packets: ten million a second for 300 days.
const COUNT: u32 = 48;

/// One direction of a flow.
///
/// 64 bytes for IPv4, 128 for IPv6, aligned to a cache line.
#[derive(Debug, Clone, Copy, AnyBitPattern)]
#[repr(C, align(64))]
pub struct Half<A> {
    source: A,
    destination: A,
    new_source: A,
    new_destination: A,
    source_port: u16,
    destination_port: u16,
    new_source_port: u16,
    new_destination_port: u16,
    route: u32,
    generation: u32,
    last_seen: u32,
    /// In a free entry: the next free one.
    tag: u32,
    /// How many, in the lower [`COUNT`] bits; above them [`Half::sender`].
    packets: u64,
    bytes: u64,
    /// Differences as the fields are in a packet, in network order: sums do not care (RFC 1071 section 2 B).
    ip_difference: u16,
    l4_difference: u16,
    marks: u16,
    protocol: u8,
    seen: u8,
}

/// Of IPv4.
pub type Half4 = Half<u32>;
/// Of IPv6.
pub type Half6 = Half<u128>;

impl<A: Address> Half<A> {
    pub(super) fn new(key: &FlowKey<A>, rewrite: &Rewrite<A>, way: &Way, now: u32) -> Self {
        let to = &rewrite.leaving_as;
        Self {
            source: key.source,
            destination: key.destination,
            new_source: to.source,
            new_destination: to.destination,
            source_port: key.source_port,
            destination_port: key.destination_port,
            new_source_port: to.source_port,
            new_destination_port: to.destination_port,
            route: way.route.0,
            generation: way.generation,
            last_seen: now,
            tag: way.tag,
            packets: 0,
            bytes: 0,
            ip_difference: rewrite.difference.ip.to_be(),
            l4_difference: rewrite.difference.l4.to_be(),
            marks: way.marks,
            protocol: key.protocol,
            seen: 0,
        }
    }

    /// Does a packet with this key belong here?
    #[inline]
    #[must_use]
    pub fn is_for(&self, key: &FlowKey<A>) -> bool {
        // Without branches between: the line is here or all of them wait for it.
        (self.source == key.source)
            & (self.destination == key.destination)
            & (self.source_port == key.source_port)
            & (self.destination_port == key.destination_port)
            & (self.protocol == key.protocol)
    }

    /// What packets of this direction arrive with.
    #[inline]
    #[must_use]
    pub fn key(&self) -> FlowKey<A> {
        FlowKey {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
        }
    }

    /// What packets of this direction leave with.
    #[inline]
    #[must_use]
    pub fn leaving_as(&self) -> FlowKey<A> {
        FlowKey {
            source: self.new_source,
            destination: self.new_destination,
            source_port: self.new_source_port,
            destination_port: self.new_destination_port,
            protocol: self.protocol,
        }
    }

    /// What is to be done to a packet's headers.
    #[inline]
    #[must_use]
    pub fn rewrite(&self) -> Rewrite<A> {
        let [ip, l4] = [self.ip_difference, self.l4_difference].map(u16::from_be);
        Rewrite { leaving_as: self.leaving_as(), difference: Difference { ip, l4 } }
    }

    /// Do packets leave as they came?
    #[inline]
    #[must_use]
    pub fn is_rewritten(&self) -> bool {
        self.leaving_as() != self.key()
    }

    /// Where packets go, and whose they are.
    #[inline]
    #[must_use]
    pub fn way(&self) -> Way {
        Way {
            route: Route(self.route),
            generation: self.generation,
            tag: self.tag,
            marks: self.marks,
        }
    }

    /// Where packets go.
    #[inline]
    #[must_use]
    pub fn route(&self) -> Route {
        Route(self.route)
    }

    /// Generation of the tables that the route comes from.
    #[inline]
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// See [`Way::tag`].
    #[inline]
    #[must_use]
    pub fn tag(&self) -> u32 {
        self.tag
    }

    /// See [`Way::marks`].
    #[inline]
    #[must_use]
    pub fn marks(&self) -> u16 {
        self.marks
    }

    /// Tick of the last packet; of the flow's beginning when there was none.
    #[inline]
    #[must_use]
    pub fn last_seen(&self) -> u32 {
        self.last_seen
    }

    /// Packets of this direction.
    #[inline]
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets & ((1 << COUNT) - 1)
    }

    /// Bytes of their IP packets.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What this direction has shown.
    #[inline]
    #[must_use]
    pub(super) fn seen(&self) -> Seen {
        Seen(self.seen)
    }

    /// Writes another route. Nobody has [asked for its packets](Half::is_asked_for) by it yet.
    #[inline]
    pub fn set_route(&mut self, route: Route, generation: u32) {
        self.route = route.0;
        self.generation = generation;
        self.seen &= !Seen::ASKED_FOR;
    }

    /// Were packets of this direction routed, by the tables of this generation, and then found to be of a
    /// flow? Those that follow need not be routed to know that.
    #[inline(always)]
    #[must_use]
    pub fn is_asked_for(&self, generation: u32) -> bool {
        (self.generation == generation) & (self.seen & Seen::ASKED_FOR != 0)
    }

    /// A packet of this direction was routed and then found to be of its flow. `sender` is who has the source
    /// of its packets, if that is a peer: its index plus 1; else 0.
    #[inline]
    pub fn ask_for(&mut self, sender: u32) {
        let sender = u16::try_from(sender).unwrap_or(0);
        self.packets = self.packets() | u64::from(sender) << COUNT;
        self.seen |= Seen::ASKED_FOR;
    }

    /// Of packets that are [asked for](Half::is_asked_for): the peer that has their source, by index plus 1; 0: none, or
    /// not noted.
    #[inline(always)]
    #[must_use]
    pub fn sender(&self) -> u32 {
        (self.packets >> COUNT) as u32
    }

    /// Writes other marks.
    #[inline]
    pub fn set_marks(&mut self, marks: u16) {
        self.marks = marks;
    }

    /// Notes a packet of `length` bytes (of its IP packet). `tcp_flags` are the flags of its TCP
    /// header, 0 for other protocols. Not for ICMP errors, which keep no flow alive (RFC 5508
    /// REQ-6).
    #[inline]
    pub fn record(&mut self, tcp_flags: u8, length: u16, now: u32) {
        self.seen = Seen(self.seen).and(tcp_flags).0;
        self.last_seen = now;
        self.packets += 1;
        self.bytes += u64::from(length);
    }

    /// As if no packet had come. The counters go on.
    pub(super) fn forget(&mut self, now: u32) {
        self.seen = 0;
        self.last_seen = now;
    }

    pub(super) fn adopt(&mut self) {
        self.seen = Seen::ADOPTED.0;
    }

    pub(super) fn free(next: u32) -> Self {
        Self { tag: next, ..Self::zeroed() }
    }
}

impl Half4 {
    /// What is to be written into a simple packet.
    #[inline(always)]
    #[must_use]
    pub fn ends(&self) -> Ends {
        Ends {
            source: self.new_source,
            destination: self.new_destination,
            ports: u32::from(self.new_source_port) << 16 | u32::from(self.new_destination_port),
            ip_difference: self.ip_difference,
            l4_difference: self.l4_difference,
        }
    }
}

#[cfg(test)]
#[path = "half_tests.rs"]
mod tests;
