//! ICMP errors to the flows that they are about (RFC 5508 section 4).
//!
//! An error quotes a packet as it left here. The flow's other direction is the one in which the error
//! goes: its key is the quoted packet's, reversed. The quoted packet is given back its addresses as
//! it came, and the error goes to who sent it; nothing is recorded: errors keep no flow alive and end
//! none (RFC 5508 REQ-6).

use crate::flow::flows::VIA_PEER;
use crate::flow::table::FlowTable;
use crate::flow::{Direction, HalfId};
use crate::packet::flow_key::{Address, FlowKey};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Route};
use crate::stages::Context;
use crate::stages::keys;

/// Leaves the error to the flow it is about, if there is one.
#[cold]
pub(super) fn step(frame: &Frame, meta: &mut Meta, cx: &mut Context<'_>) {
    let found = match meta.kind {
        Kind::Ipv4 => keys::related_v4(frame, meta)
            .and_then(|key| find(&cx.flows.v4, &key))
            .map(|(half, to)| (half, cx.tables.routes.v4.get(to))),
        _ => keys::related_v6(frame, meta)
            .and_then(|key| find(&cx.flows.v6, &key))
            .map(|(half, to)| (half, cx.tables.routes.v6.get(to))),
    };
    if let Some((half, route)) = found {
        take(meta, half, route);
    }
}

fn take(meta: &mut Meta, half: HalfId, route: Route) {
    meta.flow = half.to_number();
    meta.is_related = true;
    meta.route = route;
}

/// The direction in which the error goes, and to whom. A flow whose way is not that of its destination
/// is left to `resolve/connect`, which looks whether it still is its way.
fn find<A: Address>(table: &FlowTable<A>, key: &FlowKey<A>) -> Option<(HalfId, A)> {
    let half = table.find(table.hash(key), key)?;
    let found = table.half(half);
    if half.direction() == Direction::Forward && found.marks() & VIA_PEER != 0 {
        return None;
    }
    Some((half, found.leaving_as().destination))
}
