//! Destination -> what has it; and the hop: time to live and size.

use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Target};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::{Context, Notice};
use crate::tables::Snapshot;
use crate::wire::{ethernet, ipv4, ipv6, peek};

/// Routes every undecided packet of the vector. Lines of the routing table were asked for when
/// the packet was parsed; those of the peers are asked for when all packets have their routes.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    for (frame, meta) in vector.packets() {
        if meta.is_pending() {
            find(frame, meta, cx.tables);
        }
    }
    for (frame, meta) in vector.packets() {
        if meta.is_pending() {
            step(frame, meta, cx);
        }
    }
}

/// Routes anew what another worker routed by tables that have changed since: the endpoint's place
/// may be another's by now.
#[inline(never)]
pub fn confirm(vector: &mut Vector, cx: &mut Context<'_>) {
    for (frame, meta) in vector.packets() {
        if meta.is_pending() && !is_current(frame, meta, cx.tables) {
            find(frame, meta, cx.tables);
            step(frame, meta, cx);
        }
    }
}

/// Does the endpoint that the packet was routed to have its destination address?
#[inline]
fn is_current(frame: &Frame, meta: &Meta, tables: &Snapshot) -> bool {
    let Target::Endpoint(index) = meta.route.target() else { return false };
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    tables.endpoints.get(index).is_some_and(|endpoint| match meta.kind {
        Kind::Ipv4 => endpoint.v4 == peek::destination_v4(ip),
        _ => endpoint.v6 == peek::destination_v6(ip),
    })
}

/// Finds what has the packet's destination.
#[inline(always)]
fn find(frame: &Frame, meta: &mut Meta, tables: &Snapshot) {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    meta.route = match meta.kind {
        Kind::Ipv4 => tables.routes.v4.get(peek::destination_v4(ip)),
        _ => tables.routes.v6.get(peek::destination_v6(ip)),
    };
    if let Target::Peer(index) = meta.route.target() {
        tables.peers.prefetch(index);
    }
}

/// Says whether the packet may go where it wants to, and takes the hop.
#[inline(always)]
fn step(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) {
    let Some(ip) = frame.bytes_mut().get_mut(ethernet::HEADER_LEN..) else {
        meta.verdict = Verdict::Drop(DropReason::FrameTruncated);
        return;
    };
    let target = meta.route.target();
    match target {
        Target::Endpoint(_) | Target::Peer(_) | Target::Underlay(_) => {
            if meta.origin == Origin::Uplink && !matches!(target, Target::Endpoint(_)) {
                // Plain traffic of the host that came our way: its stack knows what to do.
                meta.verdict = cx.tables.node.host_verdict();
            } else if meta.origin == Origin::Tunnel && !matches!(target, Target::Endpoint(_)) {
                // A peer sends us what is here; what is not would go round in circles.
                meta.verdict = Verdict::Drop(DropReason::InnerNotHere);
            } else {
                hop(ip, meta, target, cx.tables);
            }
        }
        Target::Host | Target::Gateway if meta.origin != Origin::Uplink => {}
        Target::UnderlayUnknown if meta.origin != Origin::Uplink => {
            let address = match meta.kind {
                Kind::Ipv4 => std::net::IpAddr::V4(peek::destination_v4(ip).into()),
                _ => std::net::IpAddr::V6(peek::destination_v6(ip).into()),
            };
            let _ = cx.notices.try_push(Notice::NextHopWanted(address));
            meta.verdict = Verdict::Hold;
        }
        _ if meta.origin == Origin::Uplink => meta.verdict = cx.tables.node.host_verdict(),
        _ => meta.verdict = Verdict::Drop(DropReason::NoRoute),
    }
}

/// Lowers the time to live by one, and checks the size against the way out.
#[inline(always)]
fn hop(ip: &mut [u8], meta: &mut Meta, target: Target, tables: &Snapshot) {
    if meta.forwarded {
        if meta.ttl <= 1 {
            meta.verdict = Verdict::Drop(DropReason::TtlExpired);
            return;
        }
        match meta.kind {
            Kind::Ipv4 => ipv4::decrement_ttl(ip),
            _ => ipv6::decrement_hop_limit(ip),
        };
        // Not lowered again at the next worker, or after a wait.
        meta.ttl -= 1;
        meta.forwarded = false;
    }
    let limit = tables.mtu(target);
    // A target that is not ready has no size; transmit says what it lacks.
    if meta.ip_len > limit && limit != 0 {
        meta.verdict = Verdict::Drop(DropReason::PacketTooBig);
    }
}
