//! Before the first flow of a vector is opened: asks for the memory that all of them will read, one thing
//! after the other, so that what one waits for the others wait for, too.
//!
//! ```text
//! index, port of the VIP --> service --> slot --> backend --> route, index of the answers
//! ```
//! What was found on the way is kept for the packet that opens the flow, if nothing can change it before: by
//! then the lines that it was read from may be far again. The rest is a guess; one that turns out to be wrong
//! has cost a little time.

use arrayvec::ArrayVec;

use super::family::Family;
use super::{egress, service};
use crate::packet::flow_key::{FlowKey, Transport};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Route, Target};
use crate::packet::vector::{VECTOR, Vector};
use crate::stages::Context;
use crate::stages::keys::{self, Wish};

/// Flows from which on it pays: one alone waits for each thing in any case.
const FEW: usize = 3;

/// A packet that may open a flow.
#[derive(Debug, Clone, Copy)]
struct Coming<A> {
    /// Its place in the vector.
    at: usize,
    key: FlowKey<A>,
    hash: u32,
    /// Where it goes.
    to: To,
    inside: bool,
    found: Option<Found<A>>,
}

/// What is known of where it goes.
#[derive(Debug, Clone, Copy)]
enum To {
    /// To this VIP.
    Vip(u32),
    /// To a backend of a service, by the hash that chooses it.
    Service(service::Likely),
    /// Out of the cluster.
    Outside,
}

/// Where a new flow goes, by the tables of this vector.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<A> {
    /// The service, and the backend.
    pub(super) chosen: service::Chosen<A>,
    /// The backend's route; the peer that it leads to was asked for.
    pub(super) route: Route,
}

/// The vector's new flows of one family, in order.
#[derive(Debug)]
pub(super) struct Ahead<A> {
    all: ArrayVec<Coming<A>, VECTOR>,
    /// The first that [`Ahead::of`] was not asked for.
    next: usize,
}

impl<A: Copy> Ahead<A> {
    /// Nothing yet.
    #[inline]
    pub(super) fn new() -> Self {
        Self { all: ArrayVec::new(), next: 0 }
    }

    /// What was found for the packet at this place of the vector. To be asked in order.
    #[inline]
    pub(super) fn of(&mut self, at: usize) -> Option<Found<A>> {
        while let Some(one) = self.all.get(self.next) {
            if one.at >= at {
                return if one.at == at { one.found } else { None };
            }
            self.next += 1;
        }
        None
    }
}

/// Asks for what the vector's new flows will read, and notes what is found on the way.
#[inline(never)]
pub(super) fn phase(
    vector: &mut Vector,
    (v4, v6): (&mut Ahead<u32>, &mut Ahead<u128>),
    cx: &mut Context<'_>,
) {
    if vector.len() < FEW {
        return;
    }
    for (at, (frame, meta)) in vector.packets().enumerate() {
        let is_plain = !meta.is_fragment && meta.l4 != 0 && !meta.is_answer;
        if !is_plain || Wish::of(meta, cx) != Wish::Open {
            continue;
        }
        if meta.kind == Kind::Ipv4 {
            gather(v4, at, frame, meta, cx);
        } else {
            gather(v6, at, frame, meta, cx);
        }
    }
    rounds(v4, cx);
    rounds(v6, cx);
}

/// The first round: the flow table's index, and what is at the VIP.
fn gather<A: Family>(
    ahead: &mut Ahead<A>,
    at: usize,
    frame: &Frame,
    meta: &Meta,
    cx: &mut Context<'_>,
) {
    let key = A::key(frame, meta);
    if !matches!(key.transport(), Transport::Tcp | Transport::Udp | Transport::Sctp) {
        return;
    }
    let to = match super::connect::vip(&key, meta, cx) {
        Some(vip) => {
            cx.tables.services.prefetch(vip, key.protocol, key.destination_port);
            To::Vip(vip)
        }
        None => To::Outside,
    };
    let hash = keys::hash(meta, &key, cx);
    A::table(cx.flows).prefetch(hash);
    let inside = matches!(meta.origin, Origin::Endpoint | Origin::Host);
    // There is room for every packet of a vector.
    let _ = ahead.all.try_push(Coming { at, key, hash, to, inside, found: None });
}

/// The others.
fn rounds<A: Family>(ahead: &mut Ahead<A>, cx: &mut Context<'_>) {
    let all = &mut ahead.all;
    if all.len() < FEW {
        return;
    }
    let services = &cx.tables.services;
    let mut ports = egress::Foresight::default();
    all.retain(|one| {
        if A::table(cx.flows).probe(one.hash).is_hit() {
            return false;
        }
        match one.to {
            To::Vip(vip) => {
                let found = service::likely(&one.key, vip, one.inside, services);
                found.map(|likely| one.to = To::Service(likely)).is_some()
            }
            To::Outside => {
                if let Some(answer) = ports.answer(&one.key, cx) {
                    let table = A::table(cx.flows);
                    table.prefetch(table.hash(&answer));
                }
                false
            }
            To::Service(_) => false,
        }
    });
    let likely = |one: &Coming<A>| match one.to {
        To::Service(likely) => Some((one.key, likely)),
        _ => None,
    };
    // Rounds in which nothing is done but to ask are short on purpose: a hint waits for the translation of its
    // address, and only those that are close to one another do so at once.
    for (_, likely) in all.iter().filter_map(likely) {
        likely.prefetch(services);
    }
    let choices: ArrayVec<_, VECTOR> =
        all.iter().filter_map(likely).map(|(key, likely)| likely.choice(&key, services)).collect();
    let mut all_asked = true;
    for choice in choices.iter().flatten() {
        all_asked &= choice.prefetch_slot();
    }
    if !all_asked {
        choices.iter().flatten().for_each(service::LikelyChoice::prefetch_late_slot);
    }
    for choice in choices.iter().flatten() {
        choice.prefetch_backend();
    }
    for (one, choice) in all.iter_mut().zip(&choices) {
        let Some((chosen, is_certain)) = choice.as_ref().and_then(|choice| choice.chosen()) else {
            continue;
        };
        chosen.address.prefetch_route(cx.tables);
        let (destination, destination_port) = (chosen.address, chosen.port);
        let to = FlowKey { destination, destination_port, ..one.key };
        let table = A::table(cx.flows);
        table.prefetch(table.hash(&to.reversed()));
        one.found = is_certain.then_some(Found { chosen, route: Route::default() });
    }
    for found in all.iter_mut().filter_map(|one| one.found.as_mut()) {
        found.route = route(found.chosen.address, cx);
    }
}

/// The route to `destination`; the peer that it leads to is asked for, as it is read when all flows of
/// the vector are open.
pub(super) fn route<A: Family>(destination: A, cx: &Context<'_>) -> Route {
    let route = destination.route(cx.tables);
    if let Target::Peer(index) = route.target() {
        cx.tables.peers.prefetch(index);
    }
    route
}
