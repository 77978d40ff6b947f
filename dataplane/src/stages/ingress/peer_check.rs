//! Does the packet from the tunnel carry a source that belongs to the peer that sent it? And does
//! a plain packet from the underlay carry one that can come that way?

use super::decap;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Route, Target};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::Context;
use crate::stages::keys::{belongs, is_owner, source};
use crate::tables::Snapshot;
use crate::wire::{ethernet, peek};

/// Checks the undecided packets of a vector from the uplink. Says whether there are any that only a
/// flow lets in.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) -> bool {
    let mut any_needs_flow = false;
    for (frame, meta) in vector.packets() {
        // A packet that has its flow was looked at there.
        if !meta.is_pending() || meta.flow != 0 {
            continue;
        }
        if meta.origin == Origin::Tunnel {
            if meta.outer_source != 0 {
                if is_owner(meta, cx.tables) {
                    continue;
                }
                if has_outside(cx.tables) && comes_by_peer(meta, cx.tables) {
                    any_needs_flow = true;
                    continue;
                }
                decap::again(frame, meta, cx);
                if !meta.is_pending() {
                    continue;
                }
            }
            if meta.service_option == 0 && belongs(frame, meta, cx.tables) {
                continue;
            }
            match from_outside(frame, meta, cx.tables) {
                Ok(()) => any_needs_flow = true,
                Err(reason) => meta.verdict = Verdict::Drop(reason),
            }
        } else if let Err(reason) = plain(frame, meta, cx.tables) {
            meta.verdict = Verdict::Drop(reason);
        }
    }
    any_needs_flow
}

/// Can anything come from the outside by a peer: answers of a gateway that is there, or clients of a
/// service whose backends answer them here?
#[inline]
fn has_outside(tables: &Snapshot) -> bool {
    tables.egress.uses_peer() || tables.services.has_direct()
}

/// Is it a plain packet from the outside of the cluster to a pod here, by a peer in the tunnel that it
/// may use? Whether a flow lets it in, the pod's worker knows.
#[inline(never)]
fn comes_by_peer(meta: &mut Meta, tables: &Snapshot) -> bool {
    let peer = tables.peers_v4.get(meta.outer_source);
    let entry = peer.checked_sub(1).and_then(|index| tables.peers.get(index));
    let is_peer = entry.is_some_and(|entry| entry.accepts == Some(meta.tunnel));
    let routes = &tables.routes.v4;
    let comes = is_peer
        && routes.get(meta.source).target().is_outside()
        && is_pod(routes.get(meta.destination));
    if comes {
        meta.peer = peer;
        meta.needs_flow = true;
    }
    comes
}

/// As [`comes_by_peer`], of a packet whose sender was checked; or with an option that names its service.
///
/// # Errors
/// Why it does not come in.
#[inline(never)]
fn from_outside(frame: &Frame, meta: &mut Meta, tables: &Snapshot) -> Result<(), DropReason> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let routes = &tables.routes;
    let (from, to) = match meta.kind {
        Kind::Ipv4 => (routes.v4.get(meta.source), routes.v4.get(meta.destination)),
        _ => (routes.v6.get(peek::source_v6(ip)), routes.v6.get(peek::destination_v6(ip))),
    };
    if !has_outside(tables) && meta.service_option == 0 || !from.target().is_outside() {
        return Err(DropReason::InnerSpoofedSource);
    }
    if !is_pod(to) {
        let has_option = meta.service_option != 0;
        let unknown = DropReason::ServiceReturnUnknown;
        return Err(if has_option { unknown } else { DropReason::InnerSpoofedSource });
    }
    meta.needs_flow = true;
    Ok(())
}

fn is_pod(to: Route) -> bool {
    matches!(to.target(), Target::Endpoint(_))
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
