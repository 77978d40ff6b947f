//! Direct server return: the backend's node answers a client from outside itself.
//!
//! ```text
//! client --> VIP at a --> flow: DNAT --> tunnel, with the option {VIP, port} --> b --> backend
//! client <------------------------------ as VIP, by b's own way out <---- flow <----'
//! ```
//! The option is Cilium's. A connection's first packet has it, and every datagram; what comes without
//! is of a flow that the first one left, or does not come in. Addresses that other nodes do not answer
//! at (node ports), peers that are not reached by Geneve and SCTP are served by source NAT instead.

use overlane_api::{Forwarding, FrontendKind};

use super::connect;
use super::family::Family;
use crate::flow::flows::{DIRECT, RETURNS};
use crate::flow::half::{Half, Way};
use crate::flow::table::Opening;
use crate::flow::{Direction, HalfId};
use crate::packet::drop::DropReason;
use crate::packet::flow_key::{FlowKey, Transport};
use crate::packet::frame::Frame;
use crate::packet::meta::{Meta, Route, Target};
use crate::stages::Context;
use crate::tables::Snapshot;
use crate::tables::services::ServiceEntry;

/// Does the backend's node answer clients of this frontend itself?
pub(super) fn is_direct(service: &ServiceEntry, kind: FrontendKind, transport: Transport) -> bool {
    let is_shared = matches!(kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp);
    let is_carried = matches!(transport, Transport::Tcp | Transport::Udp);
    service.forwarding == Forwarding::Dsr && is_shared && is_carried
}

/// The way to a backend that has this route, if its node can be told of the service.
pub(super) fn way(route: Route, tables: &Snapshot) -> Option<Route> {
    let Target::Peer(index) = route.target() else { return None };
    let peer = tables.peers.get(index).filter(|peer| peer.takes_options())?;
    (peer.mtu != 0).then(|| Route::new(Target::Direct(index)))
}

/// The marks of a flow that goes such a way.
pub(super) const MARKS: u16 = DIRECT;

/// A service's address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frontend<A> {
    address: A,
    port: u16,
}

/// What the packet's option says. None: it has none.
pub(super) fn frontend<A: Family>(frame: &mut Frame, meta: &Meta) -> Option<Frontend<A>> {
    if meta.service_option == 0 {
        return None;
    }
    let before = usize::from(meta.service_option);
    // The bytes are still in the chunk, where decap has left them.
    let found = read(frame.prepend(before).ok()?);
    frame.trim_front(before);
    found
}

/// From the option's data, and what follows it.
fn read<A: Family>(data: &[u8]) -> Option<Frontend<A>> {
    let (address, rest) = data.split_at_checked(size_of::<A>())?;
    let port = u16::from_be_bytes(*rest.first_chunk()?);
    Some(Frontend { address: A::from_network(address)?, port })
}

/// Is it this service's flow that the backend here has with the client?
pub(super) fn is_of<A: Family>(half: HalfId, frontend: Frontend<A>, cx: &mut Context<'_>) -> bool {
    let answers = A::table(cx.flows).half(half.other()).leaving_as();
    (answers.source, answers.source_port) == (frontend.address, frontend.port)
}

/// Opens the flow of a client's packet that a peer has sent to a backend here.
///
/// # Errors
/// This node knows no such service, with no such backend.
pub(super) fn open<A: Family>(
    key: &FlowKey<A>,
    frontend: Frontend<A>,
    route: Route,
    cx: &mut Context<'_>,
) -> Result<HalfId, DropReason> {
    const UNKNOWN: DropReason = DropReason::ServiceReturnUnknown;
    let services = &cx.tables.services;
    let vip = frontend.address.vip(cx.tables).ok_or(UNKNOWN)?;
    let found = services.frontend(vip, key.protocol, frontend.port).ok_or(UNKNOWN)?;
    let service = services.service(found.service).ok_or(UNKNOWN)?;
    if !is_direct(service, found.kind, key.transport()) {
        return Err(UNKNOWN);
    }
    let backend = A::backends(service).find(key.destination, key.destination_port);
    if !backend.is_some_and(|backend| backend.is_local()) {
        return Err(UNKNOWN);
    }
    let marks = RETURNS | connect::life_marks(service.life);
    let forward = Way { route, generation: connect::generation(cx), tag: found.service + 1, marks };
    let reverse = Way { route: key.source.route(cx.tables), ..forward };
    let opening = Opening { key: *key, leaving_as: *key, forward, reverse, adopted: false };
    let answers_as =
        FlowKey { source: frontend.address, source_port: frontend.port, ..key.reversed() };
    connect::insert_answering_as(&opening, &answers_as, cx)
}

/// The way of a flow whose backend answers the client itself, by the tables of today. None: it is over.
///
/// `forward` is its opener's direction.
pub(super) fn way_today<A: Family>(forward: &Half<A>, tables: &Snapshot) -> Option<Route> {
    way(forward.leaving_as().destination.route(tables), tables)
}

/// Is it a flow of which a peer sends the client's packets?
pub(super) fn is_returned<A: Family>(half: HalfId, found: &Half<A>) -> bool {
    half.direction() == Direction::Forward && found.marks() & RETURNS != 0
}
