//! Before the first flow of a vector is opened: asks for the memory that all of them will read, one thing
//! after the other, so that what one waits for the others wait for, too.
//!
//! ```text
//! index, port of the VIP --> service --> its backends --> slot --> backend --> route, index of the answers
//! ```
//! Nothing is decided here, and nothing kept: a guess that turns out to be wrong has cost a little time.

use arrayvec::ArrayVec;

use super::family::Family;
use super::{egress, service};
use crate::packet::flow_key::{FlowKey, Transport};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin};
use crate::packet::vector::{VECTOR, Vector};
use crate::stages::Context;
use crate::stages::keys::{self, Wish};

/// Flows from which on it pays: one alone waits for each thing in any case.
const FEW: usize = 3;

/// A packet that may open a flow.
#[derive(Debug, Clone, Copy)]
struct Coming<A> {
    key: FlowKey<A>,
    hash: u32,
    /// Where it goes.
    to: To,
    inside: bool,
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

/// The vector's new flows of one family.
type All<A> = ArrayVec<Coming<A>, VECTOR>;

/// Asks for what the vector's new flows will read.
#[inline(never)]
pub(super) fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    if vector.len() < FEW {
        return;
    }
    let (mut v4, mut v6) = (All::<u32>::new(), All::<u128>::new());
    for (frame, meta) in vector.packets() {
        let is_plain = !meta.is_fragment && meta.l4 != 0 && !meta.is_answer;
        if !is_plain || Wish::of(meta, cx) != Wish::Open {
            continue;
        }
        if meta.kind == Kind::Ipv4 {
            gather(&mut v4, frame, meta, cx);
        } else {
            gather(&mut v6, frame, meta, cx);
        }
    }
    rounds(&mut v4, cx);
    rounds(&mut v6, cx);
}

/// The first round: the flow table's index, and what is at the VIP.
fn gather<A: Family>(all: &mut All<A>, frame: &Frame, meta: &Meta, cx: &mut Context<'_>) {
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
    let _ = all.try_push(Coming { key, hash, to, inside });
}

/// The others.
fn rounds<A: Family>(all: &mut All<A>, cx: &mut Context<'_>) {
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
    for (_, likely) in all.iter().filter_map(likely) {
        likely.prefetch_backends::<A>(services);
    }
    let chosen: ArrayVec<_, VECTOR> = all
        .iter()
        .filter_map(likely)
        .map(|(key, likely)| {
            let choice = likely.choice(&key, services);
            choice.inspect(|choice| choice.prefetch_slot())
        })
        .collect();
    for choice in chosen.iter().flatten() {
        choice.prefetch_backend();
    }
    for (one, choice) in all.iter().zip(&chosen) {
        let Some(backend) = choice.as_ref().and_then(|choice| choice.backend()) else { continue };
        backend.address.prefetch_route(cx.tables);
        let to =
            FlowKey { destination: backend.address, destination_port: backend.port, ..one.key };
        let table = A::table(cx.flows);
        table.prefetch(table.hash(&to.reversed()));
    }
}
