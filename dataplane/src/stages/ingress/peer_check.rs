//! Does the packet from the tunnel carry a source that belongs to the peer that sent it?

use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Target};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::Context;
use crate::tables::Snapshot;
use crate::wire::{ethernet, peek};

/// Checks the undecided packets that came out of a tunnel.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    for (frame, meta) in vector.packets() {
        if meta.is_pending() && meta.origin == Origin::Tunnel && !belongs(frame, meta, cx.tables) {
            meta.verdict = Verdict::Drop(DropReason::InnerSpoofedSource);
        }
    }
}

/// A peer may send from its pod ranges, its pods' addresses and its own addresses: all that is
/// routed to it.
#[inline(always)]
fn belongs(frame: &Frame, meta: &Meta, tables: &Snapshot) -> bool {
    let Some(ip) = frame.bytes().get(ethernet::HEADER_LEN..) else { return false };
    let route = match meta.kind {
        Kind::Ipv4 => tables.routes.v4.get(peek::source_v4(ip)),
        _ => tables.routes.v6.get(peek::source_v6(ip)),
    };
    matches!(route.target(), Target::Peer(index) if index + 1 == meta.peer)
}
