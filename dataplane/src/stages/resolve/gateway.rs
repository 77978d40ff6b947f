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
use super::direct;
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
use crate::stages::keys::{self, tcp_flags};
use crate::stages::{Context, fragments};
use crate::tables::Snapshot;
use crate::tables::egress::{EgressDecision, Holder};
use crate::wire::tcp::SYN;

/// Seed of the hash that chooses a pod's worker at the holder.
const SEED: u64 = 0x6f76_6c2d_6e61_7467;

/// Lets in what peers send from the outside, at the pods' home workers: answers of gateways elsewhere, by
/// their flows; and clients of services whose backends here answer them (`direct`).
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
fn let_in<A: Family>(
    frame: &mut Frame,
    meta: &mut Meta,
    cx: &mut Context<'_>,
) -> Result<(), Verdict> {
    const SPOOFED: Verdict = Verdict::Drop(DropReason::InnerSpoofedSource);
    let home = cx.tables.home(meta.route.target()).ok_or(SPOOFED)?;
    if home != cx.worker {
        return Err(Verdict::HandOver(home));
    }
    if meta.is_fragment && !meta.is_known_fragment {
        fragments::step(frame, meta, cx)?;
    }
    let is_error = keys::is_error(frame, meta);
    let key = if is_error { A::related_key(frame, meta) } else { Some(A::key(frame, meta)) };
    let key = key.ok_or(SPOOFED)?;
    let flags = if is_error { 0 } else { tcp_flags(frame, meta) };
    let frontend = direct::frontend::<A>(frame, meta);
    let half = match (find(&key, flags, meta, cx), frontend) {
        (Some(half), None) => half,
        (Some(half), Some(frontend)) if direct::is_of(half, frontend, cx) => half,
        (found, Some(frontend)) if !is_error && meta.l4 != 0 => {
            if let Some(other) = found {
                connect::forget::<A>(other.flow(), cx);
            }
            direct::open(&key, frontend, meta, cx).map_err(Verdict::Drop)?
        }
        // In the middle of a connection whose beginning was forgotten?
        (None, None) if flags != 0 && flags & SYN == 0 && cx.tables.services.has_direct() => {
            return Err(Verdict::Drop(DropReason::FlowUnknown));
        }
        _ => return Err(SPOOFED),
    };
    if is_error {
        connect::follow_error::<A>(half, meta, cx);
        return Ok(());
    }
    connect::follow::<A>(half, (frame, meta), flags, cx)
}

/// The flow of a packet, or of what an error quotes, that a peer sends from the outside.
fn find<A: Family>(
    key: &FlowKey<A>,
    tcp_flags: u8,
    meta: &Meta,
    cx: &mut Context<'_>,
) -> Option<HalfId> {
    let table = A::table(cx.flows);
    let half = table.find(table.hash(key), key)?;
    let found = table.half(half);
    let is_answer = half.direction() == Direction::Reverse && found.marks() & VIA_PEER != 0;
    if !is_answer && !direct::is_returned(half, found) {
        return None;
    }
    if let Revised::IsOver(gone) = connect::revise::<A>(half, tcp_flags, cx) {
        connect::forget::<A>(gone, cx);
        return None;
    }
    // An answer comes by the peer by which the flow goes; a client's packets by whichever peer has the
    // service's address.
    let way = Route::new(Target::Peer(meta.peer.checked_sub(1)?));
    (!is_answer || A::table(cx.flows).half(half.other()).route() == way).then_some(half)
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
