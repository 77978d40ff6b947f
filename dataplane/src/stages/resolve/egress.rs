//! A flow that leaves the cluster: with whose address and port.

use std::net::IpAddr;

use super::family::Family;
use super::gateway;
use crate::flow::flows::{FOR_PEER, Flows, HAS_PORT, VIA_PEER, take_back};
use crate::flow::ports::{Foreseen, Remote};
use crate::flow::table::Removed;
use crate::packet::drop::DropReason;
use crate::packet::flow_key::{FlowKey, Transport};
use crate::packet::meta::Route;
use crate::stages::Context;
use crate::tables::egress::{EgressDecision, Holder};

/// How a flow leaves the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Leaving {
    /// The marks that it is to have.
    pub(super) marks: u16,
    /// Its way, if that is not its destination's: to the peer that holds its gateway.
    pub(super) way: Option<Route>,
}

/// Guesses what answers new flows out of the cluster will have, for [`super::ahead`]: those of this
/// node's own address, while their ports are easy to find.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    ports: Foreseen,
}

impl Foresight {
    /// The key of the next flow's answers.
    pub(super) fn answer<A: Family>(
        &mut self,
        key: &FlowKey<A>,
        cx: &mut Context<'_>,
    ) -> Option<FlowKey<A>> {
        let own = A::own(cx.tables);
        let port = A::parts(cx.flows).1.foresee(own, key.source_port, &mut self.ports)?;
        let (address, port_there) = (key.destination, key.destination_port);
        Some(Remote { address, port: port_there, protocol: key.protocol }.answer(own, port))
    }
}

/// Gives the flow with `key`, that would leave as `to`, the source that the egress rules say: another
/// one only when its packet `begins` something.
///
/// # Errors
/// It may not leave, or there is nothing that it could leave with.
pub(super) fn translate<A: Family>(
    key: &FlowKey<A>,
    to: &mut FlowKey<A>,
    begins: bool,
    cx: &mut Context<'_>,
) -> Result<Leaving, DropReason> {
    let pod = key.source.to_ip();
    let egress = &cx.tables.egress;
    if cx.tables.node.answers_on_uplink && egress.rule(pod, to.destination.to_ip()) == Some(0) {
        // In flat mode only rules translate: the pods' addresses are the underlay's own.
        return Ok(Leaving::default());
    }
    let address = match cx.tables.egress.decide(pod, to.destination.to_ip()) {
        EgressDecision::None => return Ok(Leaving::default()),
        EgressDecision::Deny => return Err(DropReason::EgressDenied),
        EgressDecision::NoAddress => return Err(DropReason::EgressNoAddress),
        EgressDecision::Node(address) => address,
        EgressDecision::Gateway(number) => {
            let pool = cx.tables.egress.pool(number).ok_or(DropReason::EgressNoAddress)?;
            match pool.holder {
                Holder::Here => pool.paired(pod).ok_or(DropReason::EgressNoAddress)?,
                Holder::Nobody => return Err(DropReason::EgressGatewayUnknown),
                Holder::Peer(index) => {
                    // What it cannot translate need not go there; what began before it may know.
                    check_protocol(key)?;
                    if !begins && key.transport() == Transport::Icmp {
                        return Err(DropReason::EgressProtocol);
                    }
                    let way = gateway::way(index, cx.tables)?;
                    return Ok(Leaving { marks: VIA_PEER, way: Some(way) });
                }
            }
        }
    };
    take_address(key, to, address, begins, cx)
}

/// Gives a flow of a peer's pod an address of the gateway that is here.
///
/// # Errors
/// The egress rules do not say so, or there is nothing that it could leave with.
pub(super) fn translate_for_peer<A: Family>(
    key: &FlowKey<A>,
    to: &mut FlowKey<A>,
    begins: bool,
    cx: &mut Context<'_>,
) -> Result<Leaving, DropReason> {
    let pod = key.source.to_ip();
    let EgressDecision::Gateway(number) = cx.tables.egress.decide(pod, to.destination.to_ip())
    else {
        return Err(DropReason::InnerNotHere);
    };
    let pool = cx.tables.egress.pool(number).filter(|pool| pool.holder == Holder::Here);
    let pool = pool.ok_or(DropReason::InnerNotHere)?;
    let address = pool.paired(pod).ok_or(DropReason::EgressNoAddress)?;
    let leaving = take_address(key, to, address, begins, cx)?;
    Ok(Leaving { marks: leaving.marks | FOR_PEER, ..leaving })
}

/// Gives a flow that leaves the cluster this address, and a port of it.
fn take_address<A: Family>(
    key: &FlowKey<A>,
    to: &mut FlowKey<A>,
    address: IpAddr,
    begins: bool,
    cx: &mut Context<'_>,
) -> Result<Leaving, DropReason> {
    let address = A::of(address).ok_or(DropReason::EgressNoAddress)?;
    check_protocol(key)?;
    let ports = A::parts(cx.flows).1;
    let pool = ports.pool(address).ok_or(DropReason::EgressNoAddress)?;
    if !ports.may_take(pool, key.source) {
        return Err(DropReason::SnatPodLimit);
    }
    to.source = address;
    to.source_port = allocate(key, to, begins, cx)?;
    A::parts(cx.flows).1.note_pod(key.source);
    Ok(Leaving { marks: HAS_PORT, way: None })
}

/// Can the source of such packets be translated?
fn check_protocol<A: Family>(key: &FlowKey<A>) -> Result<(), DropReason> {
    match key.transport() {
        Transport::Tcp | Transport::Udp | Transport::Icmp | Transport::Sctp => Ok(()),
        Transport::Other => Err(DropReason::EgressProtocol),
    }
}

/// Gives a flow from outside to a service this node's address as its source, so that the backend's
/// answers come back here; when its packet `begins` something.
///
/// # Errors
/// There is nothing that it could go on with.
pub(super) fn with_own_address<A: Family>(
    key: &FlowKey<A>,
    to: &mut FlowKey<A>,
    begins: bool,
    cx: &mut Context<'_>,
) -> Result<Leaving, DropReason> {
    if !matches!(key.transport(), Transport::Tcp | Transport::Udp | Transport::Sctp) {
        return Err(DropReason::EgressProtocol);
    }
    let own = A::own(cx.tables);
    if own == A::default() {
        return Err(DropReason::EgressNoAddress);
    }
    to.source = own;
    to.source_port = allocate(key, to, begins, cx)?;
    Ok(Leaving { marks: HAS_PORT, way: None })
}

/// A source port with which the answers to `to` are told from those of all other flows; `key`'s own
/// when that is possible.
fn allocate<A: Family>(
    key: &FlowKey<A>,
    to: &FlowKey<A>,
    begins: bool,
    cx: &mut Context<'_>,
) -> Result<u16, DropReason> {
    if !begins {
        return Err(match key.transport() {
            // Only pings have an identifier to be told by (RFC 5508 section 3.1).
            Transport::Icmp => DropReason::EgressProtocol,
            // The port that the connection had outside is not known, and another would be refused there.
            _ => DropReason::FlowUnknown,
        });
    }
    let now = Flows::tick(cx.now_ns);
    let host_ports = (to.source == A::own(cx.tables)).then_some(&cx.tables.host_ports);
    let (table, ports) = A::parts(cx.flows);
    let pool = ports.pool(to.source).ok_or(DropReason::EgressNoAddress)?;
    let remote =
        Remote { address: to.destination, port: to.destination_port, protocol: to.protocol };
    let mut is_free = |answer: &FlowKey<A>| {
        let is_host = host_ports.is_some_and(|host| host.contains(answer.destination_port));
        !is_host && table.find(table.hash(answer), answer).is_none()
    };
    ports
        .allocate(pool, &remote, key.source_port, now, &mut is_free)
        .map_err(|_| DropReason::SnatPortsExhausted)
}

/// A flow has gone: its port may serve another one.
pub(super) fn released<A: Family>(flow: &Removed<A>, cx: &mut Context<'_>) {
    let now = Flows::tick(cx.now_ns);
    take_back(flow, A::parts(cx.flows).1, now);
}

/// A flow of `pod` that got a port was not installed.
pub(super) fn not_installed<A: Family>(pod: A, answer: &FlowKey<A>, cx: &mut Context<'_>) {
    let now = Flows::tick(cx.now_ns);
    A::parts(cx.flows).1.not_installed(pod, answer, now);
}
