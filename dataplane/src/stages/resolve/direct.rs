//! Direct server return: the backend's node answers a client from outside itself.
//!
//! ```text
//! client --> VIP at a --> flow: DNAT --> tunnel, with the option {VIP, port} --> b --> backend
//! client <------------------------------ as VIP, by b's own way out <---- flow <----'
//! ```
//! The option is Cilium's. A connection's first packet has it, and every datagram; what comes without
//! is of a flow that the first one left, or does not come in. A node port is named by the address of the
//! node where the client asks, and only that node can name it: the others have the port at their own. Clients
//! inside of the cluster, peers that are not reached by Geneve and node ports of addresses that the other
//! nodes do not know are served by source NAT instead. Of an SCTP association INIT has the option.
//!
//! The flow at the backend's node is known by the client's end and the backend's: who uses one port towards
//! two services, or two nodes, that choose the same backend is not told apart there; the latest is served.

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
use crate::tables::services::{FrontendRef, ServiceEntry};

/// Does every node know the service by this address?
fn is_shared(kind: FrontendKind) -> bool {
    matches!(kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp)
}

/// Does the backend's node answer the client of this frontend itself?
pub(super) fn is_direct<A: Family>(
    service: &ServiceEntry,
    kind: FrontendKind,
    key: &FlowKey<A>,
    tables: &Snapshot,
) -> bool {
    let is_known = match kind {
        FrontendKind::NodePort => key.destination == A::own(tables),
        kind => is_shared(kind),
    };
    // What another node or its pods send does not come from outside.
    service.forwarding == Forwarding::Dsr
        && is_known
        && key.source.route(tables).target().is_outside()
}

/// The way to a backend that has this route, if its node can be told of the service by the address that
/// was asked.
pub(super) fn way<A: Family>(route: Route, asked: A, tables: &Snapshot) -> Option<Route> {
    let Target::Peer(index) = route.target() else { return None };
    let peer = tables.peers.get(index).filter(|peer| peer.takes_options())?;
    // A node has node ports of the families that it has addresses of.
    let is_known = asked != A::own(tables) || A::is_family_of(peer);
    (peer.mtu != 0 && is_known).then(|| Route::new(Target::Direct(index)))
}

/// The service whose port at every node the key is to, if that is at another node's own address.
#[cold]
#[inline(never)]
pub(super) fn node_port_elsewhere<A: Family>(
    key: &FlowKey<A>,
    tables: &Snapshot,
) -> Option<FrontendRef> {
    if !key.destination.is_peer(tables) {
        return None;
    }
    // All nodes have it: this one's own says which service's it is.
    let own = A::own(tables).vip(tables)?;
    let found = tables.services.frontend(own, key.protocol, key.destination_port)?;
    (found.kind == FrontendKind::NodePort).then_some(found)
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

impl<A: Family> Frontend<A> {
    /// Whose it is, when the peer with this index plus 1 says so.
    fn of_peer(self, protocol: u8, peer: u32, tables: &Snapshot) -> Option<FrontendRef> {
        let vip = self.address.vip(tables);
        match vip.and_then(|vip| tables.services.frontend(vip, protocol, self.port)) {
            Some(found) => is_shared(found.kind).then_some(found),
            None if self.address.peer(tables) == peer => {
                let (destination, destination_port) = (self.address, self.port);
                let key = FlowKey { destination, destination_port, protocol, ..FlowKey::default() };
                node_port_elsewhere(&key, tables)
            }
            None => None,
        }
    }
}

/// Opens the flow of a client's packet that a peer has sent to a backend here.
///
/// # Errors
/// This node knows no such service, with no such backend.
pub(super) fn open<A: Family>(
    key: &FlowKey<A>,
    frontend: Frontend<A>,
    meta: &Meta,
    cx: &mut Context<'_>,
) -> Result<HalfId, DropReason> {
    const UNKNOWN: DropReason = DropReason::ServiceReturnUnknown;
    let found = frontend.of_peer(key.protocol, meta.peer, cx.tables).ok_or(UNKNOWN)?;
    let service = cx.tables.services.service(found.service).ok_or(UNKNOWN)?;
    if service.forwarding != Forwarding::Dsr {
        return Err(UNKNOWN);
    }
    let backend = A::backends(service).find(key.destination, key.destination_port);
    if !backend.is_some_and(|backend| backend.is_local()) {
        return Err(UNKNOWN);
    }
    let marks = RETURNS | connect::life_marks(service.life);
    let (route, generation) = (meta.route, connect::generation(cx));
    let forward = Way { route, generation, tag: found.service + 1, marks };
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
    let key = forward.key();
    let service = forward.tag().checked_sub(1).and_then(|index| tables.services.service(index));
    // Each datagram names the service: the next one goes as the service says today.
    let names_another = service.is_some_and(|service| service.forwarding != Forwarding::Dsr);
    if key.transport() == Transport::Udp && names_another {
        return None;
    }
    way(forward.leaving_as().destination.route(tables), key.destination, tables)
}

/// Is it a flow of which a peer sends the client's packets?
pub(super) fn is_returned<A: Family>(half: HalfId, found: &Half<A>) -> bool {
    half.direction() == Direction::Forward && found.marks() & RETURNS != 0
}
