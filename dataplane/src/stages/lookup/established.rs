//! Packets to the flows that they certainly are of, before anything is asked about where they go.
//!
//! Whether a packet may be of a flow depends on its route, and on what is fixed with its key. So a flow whose
//! packets were [routed before](crate::flow::half::Half::is_asked_for) by the tables of today, and found to be of it, has the
//! next one, too. That spares it the route, which its flow knows in any case. All others go the long way:
//! route, `conntrack`, `resolve/connect`.

use crate::flow::Direction;
use crate::flow::flows::Flows;
use crate::flow::table::{FlowTable, Probe};
use crate::packet::flow_key::{Address, FlowKey};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Target};
use crate::packet::vector::{VECTOR, Vector};
use crate::stages::Context;
use crate::stages::keys::{self, key_v4, key_v6, tcp_flags};
use crate::tables::Snapshot;
use crate::wire::protocol;
use crate::wire::tcp::SYN;

/// Finds the flows of the vector's undecided packets. Says how many have one.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) -> usize {
    let mut probes = [Probe::default(); VECTOR];
    for (probe, meta) in probes.iter_mut().zip(&vector.meta) {
        if may_have_flow(meta) {
            *probe = if meta.kind == Kind::Ipv4 {
                cx.flows.v4.probe(meta.hash)
            } else {
                cx.flows.v6.probe(meta.hash)
            };
        }
    }
    let now = Now { tick: Flows::tick(cx.now_ns), generation: cx.tables.generation as u32 };
    let mut found = 0;
    for (probe, (frame, meta)) in probes.iter().zip(vector.packets()) {
        let has_flow = probe.is_hit()
            && if meta.kind == Kind::Ipv4 {
                let key = key_v4(meta);
                follow(&mut cx.flows.v4, *probe, &key, frame, meta, now, cx.tables)
            } else {
                let key = key_v6(frame, meta);
                follow(&mut cx.flows.v6, *probe, &key, frame, meta, now, cx.tables)
            };
        if has_flow {
            found += 1;
        } else {
            ask_for_route(frame, meta, cx.tables);
        }
    }
    found
}

/// When it is, by flows and by tables.
#[derive(Clone, Copy)]
struct Now {
    tick: u32,
    generation: u32,
}

/// Is the packet of a kind that is looked for here?
#[inline(always)]
fn may_have_flow(meta: &Meta) -> bool {
    let is_whole = meta.l4 != 0 && !meta.is_fragment;
    let comes_from = match meta.origin {
        Origin::Endpoint | Origin::Tunnel => true,
        Origin::Uplink => meta.is_answer,
        Origin::Host | Origin::Local => false,
    };
    meta.is_pending()
        && is_whole
        && comes_from
        && matches!(meta.protocol, protocol::UDP | protocol::TCP)
        && matches!(meta.kind, Kind::Ipv4 | Kind::Ipv6)
}

/// Gives the packet to its flow. Says whether it has one, in which everything is as it was for the packet
/// before.
#[inline(always)]
fn follow<A: Address>(
    table: &mut FlowTable<A>,
    probe: Probe,
    key: &FlowKey<A>,
    frame: &Frame,
    meta: &mut Meta,
    now: Now,
    tables: &Snapshot,
) -> bool {
    let Some((half, found)) = table.likely(probe, key) else { return false };
    let flags = tcp_flags(frame, meta);
    if !found.is_asked_for(now.generation) || flags & SYN != 0 {
        return false;
    }
    // From outside come answers only: what opens a flow there is asked more.
    if meta.origin.is_underlay() && half.direction() == Direction::Forward {
        return false;
    }
    if meta.origin == Origin::Tunnel && !keys::comes_from(found.sender(), frame, meta, tables) {
        return false;
    }
    found.record(flags, meta.ip_len, now.tick);
    meta.route = found.route();
    meta.flow = half.to_number();
    if let Target::Peer(index) = meta.route.target() {
        tables.peers.prefetch(index);
    }
    true
}

/// What the parser would have asked for, had it not asked for the flow.
#[cold]
fn ask_for_route(frame: &Frame, meta: &Meta, tables: &Snapshot) {
    let is_tunnel = meta.origin == Origin::Tunnel;
    match meta.kind {
        Kind::Ipv4 => {
            tables.routes.v4.prefetch(meta.destination);
            if is_tunnel {
                tables.routes.v4.prefetch(meta.source);
            }
        }
        Kind::Ipv6 => {
            let key = key_v6(frame, meta);
            tables.routes.v6.prefetch(key.destination);
            if is_tunnel {
                tables.routes.v6.prefetch(key.source);
            }
        }
        Kind::Arp | Kind::LinkV6 => {}
    }
}
