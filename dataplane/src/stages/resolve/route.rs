//! Destination -> what has it.

use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Route, Target};
use crate::packet::vector::Vector;
use crate::stages::{Context, keys};
use crate::tables::Snapshot;
use crate::wire::{ethernet, peek};

/// Routes every undecided packet of the vector that has no flow and no route (`ingress/home`) yet. Lines of the
/// routing table were asked for when the packet was parsed; those of the peers are asked for here.
///
/// Says whether any packet may be of a flow: none is whose destination is another node's.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) -> bool {
    let any_flow = !cx.flows.is_empty();
    let mut may_have_flow = false;
    for (frame, meta) in vector.packets() {
        if meta.is_pending() && meta.flow == 0 {
            if !meta.route.is_some() {
                find(frame, meta, cx.tables);
            }
            may_have_flow |= match meta.route.target() {
                Target::Peer(_) => false,
                Target::Endpoint(_) => any_flow,
                _ => true,
            };
        }
    }
    may_have_flow
}

/// Routes anew what another worker routed by tables that have changed since: the endpoint's place
/// may be another's by now. Says whether there are packets that only a flow lets in.
#[inline(never)]
pub fn confirm(vector: &mut Vector, cx: &mut Context<'_>) -> bool {
    let mut any_needs_flow = false;
    for (frame, meta) in vector.packets() {
        any_needs_flow |= meta.needs_flow;
        if meta.is_pending() && !is_current(frame, meta, cx.tables) {
            find(frame, meta, cx.tables);
        }
    }
    any_needs_flow
}

/// Routes what has waited, and what was made here. A piece of a packet goes the way of its flow, which
/// was found just now.
#[inline(never)]
pub fn again(vector: &mut Vector, cx: &mut Context<'_>) {
    for (frame, meta) in vector.packets() {
        if meta.is_pending() && meta.flow == 0 {
            let was = meta.route.target();
            find(frame, meta, cx.tables);
            let is_leaving = meta.route.target().is_underlay();
            // It was on its way out by a peer: there, in the tunnel, or nowhere.
            if let (Target::Peer(index), true) = (was, is_leaving) {
                let is_tunnel = cx.tables.peers.get(index).is_some_and(|p| p.accepts.is_some());
                meta.route = Route::new(if is_tunnel { was } else { Target::None });
            }
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
    meta.route = match meta.kind {
        Kind::Ipv4 => tables.routes.v4.get(meta.destination),
        _ => {
            let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
            tables.routes.v6.get(peek::destination_v6(ip))
        }
    };
    match meta.route.target() {
        Target::Peer(index) => tables.peers.prefetch(index),
        Target::Host if !meta.is_answer => note_node_port(frame, meta, tables),
        _ => {}
    }
}

/// Pods, here or on other nodes, reach services at this node's addresses as well.
#[cold]
fn note_node_port(frame: &Frame, meta: &mut Meta, tables: &Snapshot) {
    let services = &tables.services;
    let vip = match meta.kind {
        Kind::Ipv4 => services.vip4(meta.destination),
        _ => services.vip6(peek::destination_v6(
            frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default(),
        )),
    };
    // An ICMP error is to the service whose answer it quotes.
    let (protocol, port) = keys::own_end(frame, meta);
    let frontend = vip.and_then(|vip| services.frontend(vip, protocol, port));
    // What decap has found out about a later fragment stays so: where no ports are known there are none.
    meta.is_node_port |= meta.l4 != 0 && frontend.is_some();
}
