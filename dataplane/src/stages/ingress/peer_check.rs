//! Does the packet from the tunnel carry a source that belongs to the peer that sent it? And does
//! a plain packet from the underlay carry one that can come that way?

use super::decap;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Route, Target};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::Context;
use crate::tables::Snapshot;
use crate::wire::{ethernet, peek};

/// Checks the undecided packets of a vector from the uplink. Says whether there are any that only a
/// flow lets in.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) -> bool {
    let mut any_needs_flow = false;
    for (frame, meta) in vector.packets() {
        if !meta.is_pending() {
            continue;
        }
        if meta.origin == Origin::Tunnel {
            if meta.outer_source != 0 {
                if is_owner(meta, cx.tables) {
                    continue;
                }
                if cx.tables.egress.uses_peer() && answers_from_gateway(meta, cx.tables) {
                    any_needs_flow = true;
                    continue;
                }
                decap::again(frame, meta, cx);
                if !meta.is_pending() {
                    continue;
                }
            }
            if belongs(frame, meta, cx.tables) {
                continue;
            }
            if cx.tables.egress.uses_peer() && is_from_outside(frame, meta, cx.tables) {
                meta.needs_flow = true;
                any_needs_flow = true;
                continue;
            }
            meta.verdict = Verdict::Drop(DropReason::InnerSpoofedSource);
        } else if let Err(reason) = plain(frame, meta, cx.tables) {
            meta.verdict = Verdict::Drop(reason);
        }
    }
    any_needs_flow
}

/// Is it a plain packet from the outside of the cluster to a pod here, by a peer in the tunnel that it
/// may use? That may be the answer to a flow that left by the peer; whether it is, the pod's worker
/// knows.
#[inline(never)]
fn answers_from_gateway(meta: &mut Meta, tables: &Snapshot) -> bool {
    let peer = tables.peers_v4.get(meta.outer_source);
    let entry = peer.checked_sub(1).and_then(|index| tables.peers.get(index));
    let is_peer = entry.is_some_and(|entry| entry.accepts == Some(meta.tunnel));
    let routes = &tables.routes.v4;
    let comes = is_peer && is_answer(routes.get(meta.source), routes.get(meta.destination));
    if comes {
        meta.peer = peer;
        meta.needs_flow = true;
    }
    comes
}

/// As [`answers_from_gateway`], of a packet whose sender was checked.
#[inline(never)]
fn is_from_outside(frame: &Frame, meta: &Meta, tables: &Snapshot) -> bool {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let routes = &tables.routes;
    match meta.kind {
        Kind::Ipv4 => is_answer(routes.v4.get(meta.source), routes.v4.get(meta.destination)),
        _ => is_answer(routes.v6.get(peek::source_v6(ip)), routes.v6.get(peek::destination_v6(ip))),
    }
}

fn is_answer(from: Route, to: Route) -> bool {
    let is_outside =
        matches!(from.target(), Target::None | Target::Underlay(_) | Target::UnderlayUnknown);
    is_outside && matches!(to.target(), Target::Endpoint(_))
}

/// Did the peer to which the packet's inner source is routed send it, in the tunnel that it may
/// use? Both questions of a plain packet, who sent it and whether it may, in one look-up.
#[inline(always)]
fn is_owner(meta: &mut Meta, tables: &Snapshot) -> bool {
    let Target::Peer(index) = tables.routes.v4.get(meta.source).target() else { return false };
    meta.peer = index + 1;
    tables
        .peers
        .get(index)
        .is_some_and(|peer| peer.v4 == meta.outer_source && peer.accepts == Some(meta.tunnel))
}

/// What has the packet's source.
#[inline(always)]
fn source(frame: &Frame, meta: &Meta, tables: &Snapshot) -> Target {
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
fn belongs(frame: &Frame, meta: &Meta, tables: &Snapshot) -> bool {
    matches!(source(frame, meta, tables), Target::Peer(index) if index + 1 == meta.peer)
}

/// To a pod of ours, nobody out there sends from an address of this node's, and what a peer sends
/// through a tunnel does not come without one. The rest is the host's to judge.
#[cold]
fn plain(frame: &Frame, meta: &Meta, tables: &Snapshot) -> Result<(), DropReason> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let destination = match meta.kind {
        Kind::Ipv4 => tables.routes.v4.get(meta.destination),
        _ => tables.routes.v6.get(peek::destination_v6(ip)),
    };
    if !matches!(destination.target(), Target::Endpoint(_)) {
        return Ok(());
    }
    match source(frame, meta, tables) {
        Target::Endpoint(_) | Target::Host | Target::Gateway => Err(DropReason::SpoofedSource),
        Target::Peer(index) if tables.peers.get(index).is_some_and(|p| p.accepts.is_some()) => {
            Err(DropReason::TunnelModeMismatch)
        }
        _ => Ok(()),
    }
}
