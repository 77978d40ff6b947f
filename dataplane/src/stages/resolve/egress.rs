//! A flow that leaves the cluster: with whose address and port.

use std::net::IpAddr;

use super::family::Family;
use crate::flow::flows::{Flows, HAS_PORT, take_back};
use crate::flow::ports::Remote;
use crate::flow::table::Removed;
use crate::packet::drop::DropReason;
use crate::packet::flow_key::{FlowKey, Transport};
use crate::stages::Context;
use crate::tables::egress::{EgressDecision, Holder};

/// Gives the flow with `key`, that would leave as `to`, the source that the egress rules say: another
/// one only when its packet `begins` something. Returns the marks that the flow is to have.
///
/// # Errors
/// It may not leave, or there is nothing that it could leave with.
pub(super) fn translate<A: Family>(
    key: &FlowKey<A>,
    to: &mut FlowKey<A>,
    begins: bool,
    cx: &mut Context<'_>,
) -> Result<u16, DropReason> {
    let pod = key.source.to_ip();
    let egress = &cx.tables.egress;
    if cx.tables.node.answers_on_uplink && egress.rule(pod, to.destination.to_ip()) == Some(0) {
        // In flat mode only rules translate: the pods' addresses are the underlay's own.
        return Ok(0);
    }
    let address = match cx.tables.egress.decide(pod, to.destination.to_ip()) {
        EgressDecision::None => return Ok(0),
        EgressDecision::Deny => return Err(DropReason::EgressDenied),
        EgressDecision::NoAddress => return Err(DropReason::EgressNoAddress),
        EgressDecision::Node(address) => address,
        EgressDecision::Gateway(number) => gateway(number, pod, cx)?,
    };
    let address = A::of(address).ok_or(DropReason::EgressNoAddress)?;
    if key.transport() == Transport::Other {
        return Err(DropReason::EgressProtocol);
    }
    let ports = A::parts(cx.flows).1;
    let pool = ports.pool(address).ok_or(DropReason::EgressNoAddress)?;
    if !ports.may_take(pool, key.source) {
        return Err(DropReason::SnatPodLimit);
    }
    to.source = address;
    to.source_port = allocate(key, to, begins, cx)?;
    A::parts(cx.flows).1.note_pod(key.source);
    Ok(HAS_PORT)
}

/// Gives a flow from outside to a service this node's address as its source, so that the backend's
/// answers come back here; when its packet `begins` something. Returns the marks that the flow is to
/// have.
///
/// # Errors
/// There is nothing that it could go on with.
pub(super) fn with_own_address<A: Family>(
    key: &FlowKey<A>,
    to: &mut FlowKey<A>,
    begins: bool,
    cx: &mut Context<'_>,
) -> Result<u16, DropReason> {
    if !matches!(key.transport(), Transport::Tcp | Transport::Udp | Transport::Sctp) {
        return Err(DropReason::EgressProtocol);
    }
    let own = A::own(cx.tables);
    if own == A::default() {
        return Err(DropReason::EgressNoAddress);
    }
    to.source = own;
    to.source_port = allocate(key, to, begins, cx)?;
    Ok(HAS_PORT)
}

fn gateway(number: u32, pod: IpAddr, cx: &Context<'_>) -> Result<IpAddr, DropReason> {
    let pool = cx.tables.egress.pool(number).ok_or(DropReason::EgressNoAddress)?;
    if pool.holder != Holder::Here {
        return Err(DropReason::EgressGatewayElsewhere);
    }
    pool.paired(pod).ok_or(DropReason::EgressNoAddress)
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
