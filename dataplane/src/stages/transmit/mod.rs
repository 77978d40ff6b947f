//! The way out: each packet gets the bytes that leave and the port it leaves by. Replays what was
//! decided; knows nothing of why.

pub mod arp_nd;
pub mod deliver;
pub mod echo;
pub mod encap;
pub mod fragment;
pub mod icmp_error;

use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Meta, Target};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::Context;

/// Gives every undecided packet its way out; then makes the ICMP errors that are due.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    let mut errors = false;
    let uplink = uplink(cx);
    for (frame, meta) in vector.packets() {
        if meta.is_pending() {
            meta.verdict = step(frame, meta, uplink, cx);
        }
        match meta.verdict {
            Verdict::Drop(_) => errors = true,
            Verdict::ToHost(_) => deliver::address_to_host(frame, cx),
            _ => {}
        }
    }
    if errors {
        fragment::phase(vector, cx);
        icmp_error::phase(vector, cx);
    }
}

/// The way out of one packet.
#[inline(always)]
fn step(frame: &mut Frame, meta: &Meta, uplink: Verdict, cx: &Context<'_>) -> Verdict {
    match meta.route.target() {
        Target::Peer(index) => encap::step(frame, meta, index, uplink, cx.tables),
        Target::Endpoint(index) => deliver::to_endpoint(frame, index, cx),
        Target::Host => deliver::to_host(cx),
        Target::Gateway => echo::step(frame, meta, cx),
        Target::Underlay(index) => deliver::to_next_hop(frame, index, uplink, cx),
        Target::None | Target::UnderlayUnknown | Target::Service(_) => {
            Verdict::Drop(DropReason::NoRoute)
        }
    }
}

/// The uplink port of this worker, or of the worker that sends for it.
#[inline]
fn uplink(cx: &Context<'_>) -> Verdict {
    match cx.tables.node.uplinks.get(cx.worker.index()) {
        Some((worker, port)) if *worker == cx.worker => Verdict::Send(*port),
        Some((worker, port)) => Verdict::SendElsewhere(*worker, *port),
        None => Verdict::Drop(DropReason::PortGone),
    }
}
