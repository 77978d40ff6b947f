//! What a packet is to flows: its key, and whether it has anything to do with them. Asked by
//! `lookup` and by `resolve`.

use crate::packet::flow_key::{Address, FlowKey};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Target};
use crate::stages::Context;
use crate::tables::Snapshot;
use crate::wire::quote::{self, Quote};
use crate::wire::sctp::{Sctp, chunk};
use crate::wire::tcp::{ACK, FIN, RST, SYN};
use crate::wire::{ethernet, geneve, icmpv4, icmpv6, peek, protocol};

/// What flows have to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Nothing,
    /// It may be of a flow; if not, it goes on by itself.
    Follow,
    /// It must be of a flow; if there is none, it opens one or goes nowhere.
    Open,
}

impl Wish {
    /// What they have to do with this one.
    #[inline(always)]
    #[must_use]
    pub fn of(meta: &Meta, cx: &Context<'_>) -> Self {
        if !meta.is_pending() || meta.translated || meta.flow != 0 {
            return Self::Nothing;
        }
        Self::of_undecided(meta, cx)
    }

    #[inline(always)]
    fn of_undecided(meta: &Meta, cx: &Context<'_>) -> Self {
        let inside = matches!(meta.origin, Origin::Endpoint | Origin::Host);
        match meta.route.target() {
            // No flow of this node's goes from here to there as it came.
            Target::Peer(_) => Self::Nothing,
            // Its home worker knows.
            target @ Target::Endpoint(_) => {
                if cx.tables.home(target) == Some(cx.worker) {
                    Self::Follow
                } else {
                    Self::Nothing
                }
            }
            Target::Service(_) if inside => Self::Open,
            Target::Underlay(_) | Target::UnderlayUnknown if meta.origin == Origin::Endpoint => {
                // Pods that are at home on the underlay need no other address there.
                let at_home = cx.tables.node.answers_on_uplink && !cx.tables.egress.has_rules();
                if at_home { Self::Nothing } else { Self::Open }
            }
            // A peer's pod leaves by a NAT gateway that is here.
            Target::Underlay(_) | Target::UnderlayUnknown if is_for_gateway(meta, cx) => Self::Open,
            Target::Gateway if inside => Self::Follow,
            // What comes to a port that flows leave with is of one of them.
            _ if meta.is_answer || meta.is_node_port => Self::Open,
            Target::Service(_) if meta.origin == Origin::Uplink => Self::Open,
            Target::Host => Self::Follow,
            // The host's connections to a service outlive the service's address.
            Target::Underlay(_) | Target::UnderlayUnknown if inside => Self::Follow,
            _ => Self::Nothing,
        }
    }
}

/// Did a peer send the packet to the outside of the cluster, where some leave by this node?
#[inline]
#[must_use]
pub fn is_for_gateway(meta: &Meta, cx: &Context<'_>) -> bool {
    meta.origin == Origin::Tunnel
        && meta.route.target().is_underlay()
        && cx.tables.egress.holds_gateway()
}

/// Bytes of the Geneve option that names its service to a packet on its way out; 0: it takes none.
/// `tcp_flags` are the flags of its TCP header.
///
/// A peer that has the backend is told by the first packet of a connection, and by every datagram.
#[must_use]
pub fn service_option(meta: &Meta, tcp_flags: u8) -> u16 {
    let is_direct = matches!(meta.route.target(), Target::Direct(_));
    let opens = meta.protocol == protocol::UDP || tcp_flags & (SYN | ACK) == SYN;
    match (is_direct && opens, meta.kind) {
        (false, _) => 0,
        (_, Kind::Ipv4) => (geneve::OPTION_HEADER_LEN + geneve::SERVICE_V4) as u16,
        _ => (geneve::OPTION_HEADER_LEN + geneve::SERVICE_V6) as u16,
    }
}

/// Largest IP packet that takes the way of this one, bytes.
#[must_use]
pub fn mtu(frame: &Frame, meta: &Meta, tables: &Snapshot) -> u16 {
    let mtu = tables.mtu(meta.route.target());
    mtu.saturating_sub(service_option(meta, tcp_flags(frame, meta)))
}

/// Is the packet an ICMP error? Only asked of packets without an echo's identifier.
#[inline(always)]
#[must_use]
pub fn is_error(frame: &Frame, meta: &Meta) -> bool {
    match meta.protocol {
        protocol::ICMP => kind(frame, meta).is_some_and(icmpv4::is_error),
        protocol::ICMPV6 => kind(frame, meta).is_some_and(icmpv6::is_error),
        _ => false,
    }
}

fn kind(frame: &Frame, meta: &Meta) -> Option<u8> {
    let at = ethernet::HEADER_LEN + usize::from(meta.l4);
    (meta.l4 != 0).then(|| frame.bytes().get(at).copied()).flatten()
}

/// The key of the direction in which an ICMP error over IPv4 goes: of the packet that it quotes,
/// reversed. None: it tells of no flow.
#[must_use]
pub fn related_v4(frame: &Frame, meta: &Meta) -> Option<FlowKey<u32>> {
    reversed(&quote_v4(frame, meta)?, meta.destination)
}

/// As [`related_v4`], over IPv6.
#[must_use]
pub fn related_v6(frame: &Frame, meta: &Meta) -> Option<FlowKey<u128>> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..)?;
    reversed(&quote_v6(frame, meta)?, peek::destination_v6(ip))
}

fn quote_v4(frame: &Frame, meta: &Meta) -> Option<Quote<u32>> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..)?;
    quote::of_v4(ip.get(usize::from(meta.l4)..usize::from(meta.ip_len))?)
}

fn quote_v6(frame: &Frame, meta: &Meta) -> Option<Quote<u128>> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..)?;
    let message = ip.get(usize::from(meta.l4)..usize::from(meta.ip_len))?;
    quote::of_v6(message, peek::pseudo_v6(ip, protocol::ICMPV6, message.len()))
}

fn reversed<A: Address>(quote: &Quote<A>, destination: A) -> Option<FlowKey<A>> {
    // It is told to who the packet seemed to come from, and nobody else (RFC 4787 REQ-12).
    (quote.source == destination).then_some(FlowKey {
        source: quote.destination,
        destination: quote.source,
        source_port: quote.destination_port,
        destination_port: quote.source_port,
        protocol: quote.protocol,
    })
}

/// The key of an IPv4 packet.
#[inline(always)]
#[must_use]
pub fn key_v4(meta: &Meta) -> FlowKey<u32> {
    FlowKey {
        source: meta.source,
        destination: meta.destination,
        source_port: meta.source_port,
        destination_port: meta.destination_port,
        protocol: meta.protocol,
    }
}

/// The hash of the packet's key, which is that. Only a fragment's is not known yet.
#[inline(always)]
#[must_use]
pub fn hash<A: Address>(meta: &Meta, key: &FlowKey<A>, cx: &Context<'_>) -> u32 {
    if meta.is_fragment { cx.flows.hash.of(key) } else { meta.hash }
}

/// The key of an IPv6 packet.
#[inline(always)]
#[must_use]
pub fn key_v6(frame: &Frame, meta: &Meta) -> FlowKey<u128> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    FlowKey {
        source: peek::source_v6(ip),
        destination: peek::destination_v6(ip),
        source_port: meta.source_port,
        destination_port: meta.destination_port,
        protocol: meta.protocol,
    }
}

/// Protocol and port at its destination that a packet is for. An ICMP error is for who sent what it
/// quotes (RFC 5508 section 4).
#[inline]
#[must_use]
pub fn own_end(frame: &Frame, meta: &Meta) -> (u8, u16) {
    let is_icmp = matches!(meta.protocol, protocol::ICMP | protocol::ICMPV6);
    let may_quote = is_icmp && meta.destination_port == 0 && meta.l4 != 0;
    let quoted = if may_quote { quoted_end(frame, meta) } else { None };
    quoted.unwrap_or((meta.protocol, meta.destination_port))
}

#[cold]
fn quoted_end(frame: &Frame, meta: &Meta) -> Option<(u8, u16)> {
    if meta.kind == Kind::Ipv4 {
        return quote_v4(frame, meta).map(|quote| (quote.protocol, quote.source_port));
    }
    quote_v6(frame, meta).map(|quote| (quote.protocol, quote.source_port))
}

/// Did the peer to which the packet's inner source is routed send it, in the tunnel that it may
/// use? Both questions of a plain packet, who sent it and whether it may, in one look-up.
#[inline(always)]
#[must_use]
pub fn is_owner(meta: &mut Meta, tables: &Snapshot) -> bool {
    let Target::Peer(index) = tables.routes.v4.get(meta.source).target() else { return false };
    is_from(index, meta, tables)
}

/// Did this peer send the plain packet, in the tunnel that it may use?
#[inline(always)]
fn is_from(index: u32, meta: &mut Meta, tables: &Snapshot) -> bool {
    meta.peer = index + 1;
    tables
        .peers
        .get(index)
        .is_some_and(|peer| peer.v4 == meta.outer_source && peer.accepts == Some(meta.tunnel))
}

/// What has the packet's source.
#[inline(always)]
#[must_use]
pub fn source(frame: &Frame, meta: &Meta, tables: &Snapshot) -> Target {
    let route = match meta.kind {
        Kind::Ipv4 => tables.routes.v4.get(meta.source),
        _ => {
            let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
            tables.routes.v6.get(peek::source_v6(ip))
        }
    };
    route.target()
}

/// A peer may send from its pod ranges, its pods' addresses and its own addresses: all that is
/// routed to it.
#[inline(always)]
#[must_use]
pub fn belongs(frame: &Frame, meta: &Meta, tables: &Snapshot) -> bool {
    matches!(source(frame, meta, tables), Target::Peer(index) if index + 1 == meta.peer)
}

/// Is a tunnel packet's source its sender's, and nothing more to be asked about it?
#[inline(always)]
#[must_use]
pub fn is_of_sender(frame: &Frame, meta: &mut Meta, tables: &Snapshot) -> bool {
    if meta.outer_source != 0 {
        is_owner(meta, tables)
    } else {
        meta.service_option == 0 && belongs(frame, meta, tables)
    }
}

/// As [`is_of_sender`], when it is known whose the source is: the peer with this index plus 1; 0: it is not
/// known.
#[inline(always)]
#[must_use]
pub fn comes_from(sender: u32, frame: &Frame, meta: &mut Meta, tables: &Snapshot) -> bool {
    let Some(index) = sender.checked_sub(1) else {
        return is_of_sender_after_all(frame, meta, tables);
    };
    if meta.outer_source != 0 {
        is_from(index, meta, tables)
    } else {
        meta.service_option == 0 && meta.peer == sender
    }
}

#[cold]
#[inline(never)]
fn is_of_sender_after_all(frame: &Frame, meta: &mut Meta, tables: &Snapshot) -> bool {
    is_of_sender(frame, meta, tables)
}

/// The peer that has the source of a packet out of a tunnel, for [`comes_from`]: its index plus 1; 0: none has.
#[inline(always)]
#[must_use]
pub fn sender(frame: &Frame, meta: &Meta, tables: &Snapshot) -> u32 {
    if meta.origin == Origin::Tunnel { peer_of_source(frame, meta, tables) } else { 0 }
}

#[inline(never)]
fn peer_of_source(frame: &Frame, meta: &Meta, tables: &Snapshot) -> u32 {
    match source(frame, meta, tables) {
        Target::Peer(index) => index + 1,
        _ => 0,
    }
}

/// The flags of a TCP packet; of an SCTP packet those that say the same; 0 for anything else.
#[inline(always)]
#[must_use]
pub fn tcp_flags(frame: &Frame, meta: &Meta) -> u8 {
    const FLAGS: usize = 13;
    if meta.protocol != protocol::TCP || meta.l4 == 0 {
        return if meta.protocol == protocol::SCTP { sctp_flags(frame, meta) } else { 0 };
    }
    let at = ethernet::HEADER_LEN + usize::from(meta.l4) + FLAGS;
    frame.bytes().get(at).copied().unwrap_or(0)
}

/// What an SCTP packet does to its association, in the flags with which TCP does it to a connection.
/// The first chunk tells: those that begin or end one are not bundled with data (RFC 9260 section 6.10).
#[cold]
#[inline(never)]
fn sctp_flags(frame: &Frame, meta: &Meta) -> u8 {
    if meta.l4 == 0 {
        return 0;
    }
    let at = ethernet::HEADER_LEN + usize::from(meta.l4);
    let segment = frame.bytes().get(at..).unwrap_or_default();
    let first = Sctp::parse(segment).ok().and_then(|packet| packet.first_chunk());
    match first.map(|chunk| chunk.kind) {
        Some(chunk::INIT) => SYN,
        Some(chunk::INIT_ACK) => SYN | ACK,
        Some(chunk::ABORT) => RST | ACK,
        Some(chunk::SHUTDOWN | chunk::SHUTDOWN_ACK | chunk::SHUTDOWN_COMPLETE) => FIN | ACK,
        _ => ACK,
    }
}
