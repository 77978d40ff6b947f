//! The way out: each packet gets the bytes that leave and the port it leaves by. Replays what was
//! decided; knows nothing of why.

pub mod arp_nd;
pub mod coalesce;
pub mod deliver;
pub mod direct;
pub mod echo;
pub mod encap;
pub mod fragment;
pub mod icmp_error;
mod related;
mod reset;
pub mod rewrite;

use crate::packet::drop::DropReason;
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::Context;

/// What else the verdicts ask for: frames for the host are addressed to it, packets that are too
/// big are cut, and senders are told of what is dropped. Says whether packets are undecided again.
#[inline(never)]
pub fn unsent(vector: &mut Vector, cx: &mut Context<'_>) -> bool {
    let mut errors = false;
    for (frame, meta) in vector.packets() {
        match meta.verdict {
            Verdict::Drop(_) => errors = true,
            Verdict::ToHost(_) => deliver::address_to_host(frame, cx),
            _ => {}
        }
    }
    if !errors {
        return false;
    }
    let again = fragment::phase(vector, cx);
    icmp_error::phase(vector, cx);
    again
}

/// The uplink port of this worker, or of the worker that sends for it.
#[inline]
pub fn uplink(cx: &Context<'_>) -> Verdict {
    match cx.tables.node.uplinks.get(cx.worker.index()) {
        Some((worker, port)) if *worker == cx.worker => Verdict::Send(*port),
        Some((worker, port)) => Verdict::SendElsewhere(*worker, *port),
        None => Verdict::Drop(DropReason::PortGone),
    }
}
