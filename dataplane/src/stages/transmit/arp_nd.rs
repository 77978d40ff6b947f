//! ARP and neighbour discovery, answered on the spot and never carried.
//!
//! To a pod and to the host, everything lies behind the gateway: any address that is not the
//! asker's own gets the gateway's MAC. On the uplink the announced addresses, and in flat mode those
//! of the pods, get the uplink's MAC; all other questions are the host's. Who asks whether anybody
//! has an announced address before taking it (RFC 5227 section 2.1, RFC 4862 section 5.4) is told so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlane_api::MacAddr;

use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Target};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::Context;
use crate::tables::endpoints::EndpointEntry;
use crate::wire::arp::{self, Arp, ArpMessage};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::icmpv6::{self, Neighbor, NeighborMessage};
use crate::wire::ipv6::{self, Ipv6, Ipv6Header};
use crate::wire::protocol;

/// All nodes of the link (RFC 4291 section 2.7.1), and their MAC (RFC 2464 section 7).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// See [`ALL_NODES`].
pub const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// Decides on every ARP and link-local message of the vector.
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    for (frame, meta) in vector.packets() {
        if !meta.is_pending() {
            continue;
        }
        let done = match meta.kind {
            Kind::Arp => arp(frame, meta, cx),
            Kind::LinkV6 => neighbor_message(frame, meta, cx),
            Kind::Ipv4 | Kind::Ipv6 => continue,
        };
        if let Err(reason) = done {
            meta.verdict = Verdict::Drop(reason);
        }
    }
    *cx.link_messages = false;
}

/// Answers an ARP message, or says what else becomes of it.
fn arp(frame: &mut Frame, meta: &mut Meta, cx: &Context<'_>) -> Result<(), DropReason> {
    let ethernet = Ethernet::parse(frame.bytes()).map_err(|_| DropReason::FrameTruncated)?;
    let message = Arp::parse(ethernet.payload()).map_err(|_| DropReason::FrameTruncated)?.message();
    let sender = ethernet.source();
    check_sender(meta, cx, sender, |pod| {
        let own = Ipv4Addr::from_bits(pod.v4);
        message.sender_mac == sender
            && (message.sender_ip == own || message.sender_ip.is_unspecified())
    })?;
    let is_announced = is_announced(meta, cx, message.target_ip.into());
    let is_question = message.operation == arp::REQUEST
        && message.sender_ip != message.target_ip
        && (is_announced || !message.sender_ip.is_unspecified());
    let route = cx.tables.routes.get4(message.target_ip).target();
    let Some(mac) = answer_with(meta, cx, is_question, is_announced, route) else {
        return elsewhere(meta, cx);
    };
    let reply = ArpMessage {
        operation: arp::REPLY,
        sender_mac: mac,
        sender_ip: message.target_ip,
        target_mac: message.sender_mac,
        target_ip: message.sender_ip,
    };
    let room = frame.bytes_mut();
    let place = room.get_mut(ethernet::HEADER_LEN..).and_then(<[u8]>::first_chunk_mut);
    reply.write(place.ok_or(DropReason::FrameTruncated)?);
    ethernet::set_addresses(room, sender, mac);
    meta.verdict = Verdict::Send(meta.port);
    Ok(())
}

/// Answers a neighbour solicitation, or says what else becomes of the message.
fn neighbor_message(
    frame: &mut Frame,
    meta: &mut Meta,
    cx: &Context<'_>,
) -> Result<(), DropReason> {
    let ethernet = Ethernet::parse(frame.bytes()).map_err(|_| DropReason::FrameTruncated)?;
    let sender = ethernet.source();
    let ip = Ipv6::parse(ethernet.payload()).map_err(|_| DropReason::BadIpHeader)?;
    let (source, hop_limit) = (ip.source(), ip.hop_limit());
    check_sender(meta, cx, sender, |pod| is_pods_own(source, pod))?;
    let message = ip.packet().get(usize::from(meta.l4)..).unwrap_or_default();
    let is_solicitation = meta.l4 != 0
        && meta.protocol == protocol::ICMPV6
        && message.first() == Some(&icmpv6::NEIGHBOR_SOLICITATION)
        && hop_limit == icmpv6::NEIGHBOR_HOP_LIMIT;
    let target = match Neighbor::parse(message) {
        Ok(neighbor) if is_solicitation => neighbor.target(),
        _ if is_discovery(meta, message) => return elsewhere(meta, cx),
        _ => return elsewhere(meta, cx).map_err(|_| DropReason::Multicast),
    };
    let is_announced = is_announced(meta, cx, target.into());
    let is_question = source != target && (is_announced || !source.is_unspecified());
    let route = cx.tables.routes.get6(target).target();
    let Some(mac) = answer_with(meta, cx, is_question, is_announced, route) else {
        return elsewhere(meta, cx);
    };
    let router = if is_announced { 0 } else { icmpv6::FLAG_ROUTER };
    let flags = router | icmpv6::FLAG_OVERRIDE;
    if source.is_unspecified() {
        // RFC 4861 section 7.2.4: nobody can be answered alone.
        write_advertisement(frame, ALL_NODES_MAC, mac, target, ALL_NODES, flags)?;
    } else {
        let flags = flags | icmpv6::FLAG_SOLICITED;
        write_advertisement(frame, sender, mac, target, source, flags)?;
    }
    meta.verdict = Verdict::Send(meta.port);
    Ok(())
}

/// Is it neighbour or router discovery, and not just multicast?
fn is_discovery(meta: &Meta, message: &[u8]) -> bool {
    let kinds = icmpv6::ROUTER_SOLICITATION..=icmpv6::REDIRECT;
    meta.l4 != 0
        && meta.protocol == protocol::ICMPV6
        && message.first().is_some_and(|kind| kinds.contains(kind))
}

fn write_advertisement(
    frame: &mut Frame,
    to: MacAddr,
    mac: MacAddr,
    target: Ipv6Addr,
    asker: Ipv6Addr,
    flags: u32,
) -> Result<(), DropReason> {
    const IP: usize = ethernet::HEADER_LEN;
    const MESSAGE: usize = IP + ipv6::HEADER_LEN;
    const LEN: usize = MESSAGE + icmpv6::NEIGHBOR_WITH_ADDRESS_LEN;
    let too_short = |_| DropReason::FrameTruncated;
    frame.set_len(LEN).map_err(too_short)?;
    let bytes = frame.bytes_mut();
    let advertisement =
        NeighborMessage { is_solicitation: false, flags, target, link_layer_address: mac };
    let header = Ipv6Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: icmpv6::NEIGHBOR_WITH_ADDRESS_LEN as u16,
        next_header: protocol::ICMPV6,
        hop_limit: icmpv6::NEIGHBOR_HOP_LIMIT,
        source: target,
        destination: asker,
    };
    if let Some(place) = bytes.get_mut(MESSAGE..).and_then(<[u8]>::first_chunk_mut) {
        advertisement.write(place, target, asker);
    }
    if let Some(place) = bytes.get_mut(IP..).and_then(<[u8]>::first_chunk_mut) {
        header.write(place);
    }
    ethernet::set_addresses(bytes, to, mac);
    Ok(())
}

/// A pod speaks for itself only.
fn check_sender(
    meta: &Meta,
    cx: &Context<'_>,
    sender: MacAddr,
    is_own: impl Fn(&EndpointEntry) -> bool,
) -> Result<(), DropReason> {
    if meta.origin != Origin::Endpoint {
        return Ok(());
    }
    let port = cx.tables.ports.get(u32::from(meta.port.0)).ok_or(DropReason::PortGone)?;
    let pod = cx.tables.endpoints.get(port.endpoint).ok_or(DropReason::PortGone)?;
    if sender != pod.mac {
        return Err(DropReason::SpoofedMac);
    }
    if is_own(pod) { Ok(()) } else { Err(DropReason::SpoofedSource) }
}

fn is_pods_own(source: Ipv6Addr, pod: &EndpointEntry) -> bool {
    source.is_unspecified() || source.is_unicast_link_local() || source.to_bits() == pod.v6
}

/// The MAC to answer a question about an address with; none: it is not ours to answer.
fn answer_with(
    meta: &Meta,
    cx: &Context<'_>,
    is_question: bool,
    is_announced: bool,
    target: Target,
) -> Option<MacAddr> {
    if !is_question {
        return None;
    }
    let node = &cx.tables.node;
    if meta.origin != Origin::Uplink {
        return Some(node.gateway_mac);
    }
    let is_pod = matches!(target, Target::Endpoint(_));
    (is_announced || (node.answers_on_uplink && is_pod)).then_some(node.uplink_mac)
}

/// Is it an address that this node answers for, and the question from the underlay?
fn is_announced(meta: &Meta, cx: &Context<'_>, address: IpAddr) -> bool {
    meta.origin == Origin::Uplink && cx.tables.announced.contains(&address)
}

/// What is not answered: the host may want it when it came from the uplink.
fn elsewhere(meta: &mut Meta, cx: &Context<'_>) -> Result<(), DropReason> {
    if meta.origin == Origin::Uplink {
        meta.verdict = cx.tables.node.host_verdict();
        return Ok(());
    }
    Err(DropReason::NeighborIgnored)
}
