//! NAT gateways whose addresses another node holds.
//!
//! ```text
//! pod's node   pod --> flow, as it is --> tunnel to the holder       answers: of such a flow, or not at all
//! the holder   tunnel --> the pod's worker here --> flow, source NAT --> uplink       answers: its port's worker
//! ```
//! Only through a tunnel: a peer that is reached natively would be sent the pod's address as it is, and
//! whatever lies between would see it, and route the packet by its destination.
//!
//! What the holder does for a peer's pod is remembered by one worker, which the pod's address
//! chooses: its packets come on whatever queue, and are handed over once.

use overlane_api::WorkerId;

use super::connect::{self, Revised};
use super::family::Family;
use crate::flow::flows::{FOR_PEER, HAS_PORT, VIA_PEER};
use crate::flow::half::Half;
use crate::flow::{Direction, HalfId};
use crate::packet::drop::DropReason;
use crate::packet::flow_key::{FlowHash, FlowKey};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Route, Target};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::Context;
use crate::stages::keys::{self, tcp_flags};
use crate::tables::Snapshot;
use crate::tables::egress::{EgressDecision, Holder};

/// Seed of the hash that chooses a pod's worker at the holder.
const SEED: u64 = 0x6f76_6c2d_6e61_7467;

/// Lets the answers of gateways elsewhere in: at their pods' home workers, by their flows.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    for (frame, meta) in vector.packets() {
        if !meta.needs_flow || !meta.is_pending() || meta.flow != 0 || meta.translated {
            continue;
        }
        let done = match meta.kind {
            Kind::Ipv4 => let_in::<u32>(frame, meta, cx),
            _ => let_in::<u128>(frame, meta, cx),
        };
        if let Err(verdict) = done {
            meta.verdict = verdict;
        }
    }
}

/// Leaves the packet to the flow that it answers, or that it is an error about.
fn let_in<A: Family>(frame: &Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<(), Verdict> {
    const SPOOFED: Verdict = Verdict::Drop(DropReason::InnerSpoofedSource);
    let Target::Endpoint(index) = meta.route.target() else { return Err(SPOOFED) };
    let home = cx.tables.endpoints.get(index).map(|endpoint| endpoint.worker).ok_or(SPOOFED)?;
    if home != cx.worker {
        return Err(Verdict::HandOver(home));
    }
    let is_error = keys::is_error(frame, meta);
    let key = if is_error { A::related_key(frame, meta) } else { Some(A::key(frame, meta)) };
    let key = key.ok_or(SPOOFED)?;
    let flags = if is_error { 0 } else { tcp_flags(frame, meta) };
    let table = A::table(cx.flows);
    let half = table.find(table.hash(&key), &key).filter(|half| {
        half.direction() == Direction::Reverse && table.half(*half).marks() & VIA_PEER != 0
    });
    let half = half.ok_or(SPOOFED)?;
    if let Revised::IsOver(gone) = connect::revise::<A>(half, flags, cx) {
        connect::forget::<A>(gone, cx);
        return Err(SPOOFED);
    }
    let peer = meta.peer.checked_sub(1).ok_or(SPOOFED)?;
    if A::table(cx.flows).half(half.other()).route() != Route::new(Target::Peer(peer)) {
        return Err(SPOOFED);
    }
    if is_error {
        connect::follow_error::<A>(half, meta, cx);
    } else {
        connect::follow::<A>(half, meta, flags, cx);
    }
    Ok(())
}

/// The way to the peer with this index, which holds a gateway.
///
/// # Errors
/// There is no tunnel to it.
pub(super) fn way(index: u32, tables: &Snapshot) -> Result<Route, DropReason> {
    let peer = tables.peers.get(index).ok_or(DropReason::EgressGatewayUnknown)?;
    if peer.accepts.is_none() {
        return Err(DropReason::EgressGatewayNative);
    }
    Ok(Route::new(Target::Peer(index)))
}

/// Is the packet, which a peer sent to the outside, at the worker that remembers what its source does?
///
/// # Errors
/// The other worker is to have it.
pub(super) fn at_home<A: Family>(source: A, cx: &Context<'_>) -> Result<(), Verdict> {
    let workers = cx.tables.node.uplinks.len().max(1);
    let hash = FlowHash::new(SEED).of(&FlowKey { source, ..FlowKey::default() });
    let home = u8::try_from(hash as usize % workers).map_or(cx.worker, WorkerId);
    if home == cx.worker { Ok(()) } else { Err(Verdict::HandOver(home)) }
}

/// Do flows from `source`, a peer's pod, to `destination` leave with an address that is here?
pub(super) fn is_here<A: Family>(source: A, destination: A, tables: &Snapshot) -> bool {
    pool_holder(source, destination, tables) == Some(Holder::Here)
}

fn pool_holder<A: Family>(source: A, destination: A, tables: &Snapshot) -> Option<Holder> {
    match tables.egress.decide(source.to_ip(), destination.to_ip()) {
        EgressDecision::Gateway(number) => tables.egress.pool(number).map(|pool| pool.holder),
        _ => None,
    }
}

/// The way of a flow that leaves by a peer, by the tables of today. None: it is over.
///
/// `forward` is its opener's direction.
pub(super) fn way_today<A: Family>(forward: &Half<A>, tables: &Snapshot) -> Option<Route> {
    let holder = pool_holder(forward.key().source, forward.leaving_as().destination, tables);
    let Some(Holder::Peer(index)) = holder else { return None };
    way(index, tables).ok().filter(|route| *route == forward.route())
}

/// May a flow with these marks go on by the tables of today? Its address outside must still be here,
/// and given to its pod if that is a peer's.
pub(super) fn goes_on<A: Family>(half: HalfId, marks: u16, cx: &mut Context<'_>) -> bool {
    let forward = A::table(cx.flows).half(HalfId::new(half.flow(), Direction::Forward));
    let (key, to) = (forward.key(), forward.leaving_as());
    let has_address = marks & HAS_PORT == 0 || cx.tables.external.has(to.source.to_ip());
    has_address && (marks & FOR_PEER == 0 || is_here(key.source, to.destination, cx.tables))
}
