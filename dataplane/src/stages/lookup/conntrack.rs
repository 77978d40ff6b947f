//! Packets to their flows. Three passes over the vector, so that memory is waited for once: the
//! index's lines, the halves' lines, the comparison.

use arrayvec::ArrayVec;

use super::related;
use crate::flow::flows::Flows;
use crate::flow::table::{FlowTable, Probe};
use crate::packet::flow_key::{Address, FlowKey};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Target};
use crate::packet::vector::{VECTOR, Vector};
use crate::stages::Context;
use crate::stages::keys::{self, Wish, is_error, key_v4, key_v6, tcp_flags};
use crate::tables::Snapshot;
use crate::wire::tcp::SYN;

/// A packet that may be of a flow: its place in the vector.
#[derive(Debug, Clone, Copy)]
struct Asking {
    at: u8,
    is_v4: bool,
    wish: Wish,
    probe: Probe,
}

/// Finds the flows of the vector's undecided packets. Says how many have one, and whether some are left to
/// `resolve/connect`.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) -> (usize, bool) {
    let mut asking = ArrayVec::<Asking, VECTOR>::new();
    let any_flow = !cx.flows.is_empty();
    let mut is_left = false;
    for (at, (frame, meta)) in vector.packets().enumerate() {
        let wish = Wish::of(meta, cx);
        if wish == Wish::Nothing || !any_flow {
            is_left |= wish == Wish::Open || meta.is_fragment;
            continue;
        }
        if meta.is_fragment {
            is_left = true;
            continue;
        }
        if is_error(frame, meta) {
            related::step(frame, meta, cx);
            is_left |= wish == Wish::Open && meta.flow == 0;
            continue;
        }
        let is_v4 = meta.kind == Kind::Ipv4;
        if is_v4 {
            cx.flows.v4.prefetch(meta.hash);
        } else {
            cx.flows.v6.prefetch(meta.hash);
        }
        // There is room for every packet of a vector.
        let _ = asking.try_push(Asking { at: at as u8, is_v4, wish, probe: Probe::default() });
    }
    for one in &mut asking {
        let Some(meta) = vector.meta.get(usize::from(one.at)) else { continue };
        one.probe =
            if one.is_v4 { cx.flows.v4.probe(meta.hash) } else { cx.flows.v6.probe(meta.hash) };
    }
    let now = Flows::tick(cx.now_ns);
    let mut found = 0;
    for one in &asking {
        let at = usize::from(one.at);
        let (Some(frame), Some(meta)) = (vector.frames.get(at), vector.meta.get_mut(at)) else {
            continue;
        };
        is_left |= !if one.is_v4 {
            let key = key_v4(meta);
            follow(&mut cx.flows.v4, one, &key, (frame, meta), now, cx.tables)
        } else {
            let key = key_v6(frame, meta);
            follow(&mut cx.flows.v6, one, &key, (frame, meta), now, cx.tables)
        };
        if meta.flow != 0 {
            found += 1;
            if let Target::Peer(index) = meta.route.target() {
                cx.tables.peers.prefetch(index);
            }
        }
    }
    (found, is_left)
}

/// Gives the packet to its flow. Says whether that is all: a packet that has none may open one, a
/// flow whose tables have changed is looked at again, and a connection that has ended may begin
/// anew. All of these are rare, and `resolve/connect`'s, as are fragments.
#[inline(always)]
fn follow<A: Address>(
    table: &mut FlowTable<A>,
    one: &Asking,
    key: &FlowKey<A>,
    (frame, meta): (&Frame, &mut Meta),
    now: u32,
    tables: &Snapshot,
) -> bool {
    let Some(half) = table.confirm(one.probe, meta.hash, key) else {
        return one.wish != Wish::Open;
    };
    let found = table.half_mut(half);
    let (tcp_flags, generation) = (tcp_flags(frame, meta), tables.generation as u32);
    if found.generation() != generation || tcp_flags & SYN != 0 {
        return false;
    }
    found.record(tcp_flags, meta.ip_len, now);
    if !found.is_asked_for(generation) {
        found.ask_for(keys::sender(frame, meta, tables));
    }
    meta.route = found.route();
    meta.flow = half.to_number();
    true
}
