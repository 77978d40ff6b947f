//! The short way of the uplink's packets: out of the tunnel, or to a port of this worker's flows, when they are
//! as nearly all are. All others are left to [`decap`](super::decap), which would do the same with these.

use overlane_api::Mode;

use super::parse::{self, Asked};
use crate::packet::frame::Frame;
use crate::packet::meta::{Meta, Origin};
use crate::stages::Context;
use crate::tables::node::PlainTunnel;
use crate::wire::simple::{self, Simple};
use crate::wire::simple6::{self, Simple6};
use crate::wire::{ethernet, geneve, protocol, udp};

/// Bytes that [`is_plain`] takes off: Ethernet, IPv4, UDP and a tunnel header without options.
pub(super) const PLAIN: usize = simple::L4 + udp::HEADER_LEN + geneve::HEADER_LEN;

/// The same over IPv6.
pub(super) const PLAIN6: usize = simple6::L4 + udp::HEADER_LEN + geneve::HEADER_LEN;

/// Is it a packet as nearly all are? Then it is dealt with. All else, good or bad, goes through
/// [`super::decap`]'s steps, which does the same and says what is wrong.
#[inline(always)]
pub(super) fn is_usual(frame: &mut Frame, meta: &mut Meta, cx: &Context<'_>) -> bool {
    let before = if let Some(outer) = Simple::read(frame.bytes()) {
        if is_plain(frame, &outer, meta, cx) {
            PLAIN
        } else if is_answer(&outer, meta, cx) {
            0
        } else {
            return false;
        }
    } else if is_plain6(frame, meta, cx) {
        PLAIN6
    } else {
        return false;
    };
    frame.trim_front(before);
    frame.truncate(ethernet::HEADER_LEN + usize::from(meta.ip_len));
    true
}

/// Is it to an address and a port with which flows of this worker leave, and to nothing else that there
/// may be at this node's own address?
#[inline(always)]
fn is_answer(ip: &Simple<'_>, meta: &mut Meta, cx: &Context<'_>) -> bool {
    let (tables, port) = (cx.tables, ip.ports() as u16);
    if tables.external.owner_v4(ip.destination(), port) != Some(cx.worker) {
        return false;
    }
    let is_own = ip.destination() == tables.node.v4;
    if is_own && (tables.node.is_tunnel_port(port) || tables.host_ports.contains(port)) {
        return false;
    }
    meta.is_answer = parse::parse_simple(ip, meta, Asked::Destination, cx);
    meta.is_answer
}

/// Is it a tunnel packet as nearly all are: simple outside and inside, to this node, without
/// options, checksum or congestion marks outside, and with nothing wrong? Then its metadata is that of
/// the inner packet; who sent it is left to `peer_check`.
#[inline(always)]
fn is_plain(frame: &Frame, outer: &Simple<'_>, meta: &mut Meta, cx: &Context<'_>) -> bool {
    const UDP_LEN: usize = simple::L4 - ethernet::HEADER_LEN;
    let tables = cx.tables;
    let node = &tables.node;
    let usual = outer.protocol() == protocol::UDP
        && outer.destination() == node.v4
        && outer.checksum() == Some(0)
        && outer.tos() & 3 == 0
        && usize::from(outer.total_len()) == UDP_LEN + usize::from(outer.udp_len());
    if !usual {
        return false;
    }
    let Some(headers) = frame.bytes().first_chunk::<PLAIN>() else { return false };
    let tunnels = &node.plain_tunnels;
    let Some(mode) = plain_tunnel(outer.ports(), headers, tunnels) else { return false };
    let inner = frame.bytes().get(PLAIN..ethernet::HEADER_LEN + usize::from(outer.total_len()));
    let Some(inner) = inner.and_then(Simple::read) else { return false };
    if inner.is_group() {
        return false;
    }
    if !parse::parse_simple(&inner, meta, Asked::Both, cx) {
        return false;
    }
    meta.origin = Origin::Tunnel;
    meta.outer_source = outer.source();
    meta.tunnel = mode;
    true
}

/// Makes the frame what it was before [`is_plain`]: all bytes are still in the chunk. Says whether it is.
pub(super) fn put_back(frame: &mut Frame) -> bool {
    let Ok(bytes) = frame.prepend(PLAIN) else { return false };
    let ip = bytes.get(ethernet::HEADER_LEN..).and_then(<[u8]>::first_chunk::<4>);
    let Some(&[_, _, high, low]) = ip else { return false };
    frame.set_len(ethernet::HEADER_LEN + usize::from(u16::from_be_bytes([high, low]))).is_ok()
}

/// The tunnel whose port is among `ports`, if the header at the end of `headers` is as nearly all are: without
/// options.
#[inline(always)]
fn plain_tunnel(ports: u32, headers: &[u8], tunnels: &[PlainTunnel; 2]) -> Option<Mode> {
    let [geneve, vxlan] = tunnels;
    let port = ports & 0xffff;
    let (mode, header) = if port == geneve.port {
        (Mode::Geneve, geneve.header)
    } else if port == vxlan.port {
        (Mode::Vxlan, vxlan.header)
    } else {
        return None;
    };
    (u64::from_be_bytes(*headers.last_chunk()?) == header).then_some(mode)
}

/// As [`is_plain`], over IPv6, where the outer checksum is there and right. Who sent it is asked at once.
#[inline(always)]
fn is_plain6(frame: &Frame, meta: &mut Meta, cx: &Context<'_>) -> bool {
    let Some(outer) = Simple6::read(frame.bytes()) else { return false };
    let tables = cx.tables;
    let usual = outer.protocol() == protocol::UDP
        && outer.destination() == tables.node.v6
        && tables.node.configured
        && outer.traffic_class() & 3 == 0
        && outer.payload_len() == outer.udp_len();
    if !usual || outer.checksum() == Some(0) {
        return false;
    }
    let Some(headers) = frame.bytes().first_chunk::<PLAIN6>() else { return false };
    let tunnels = &tables.node.plain_tunnels6;
    let Some(mode) = plain_tunnel(outer.ports(), headers, tunnels) else { return false };
    let peer = tables.peers_v6.get(outer.source());
    let entry = peer.checked_sub(1).and_then(|index| tables.peers.get(index));
    if !entry.is_some_and(|entry| entry.accepts == Some(mode)) || !outer.is_correct() {
        return false;
    }
    let end = simple6::L4 + usize::from(outer.payload_len());
    let Some(inner) = frame.bytes().get(PLAIN6..end) else { return false };
    let parsed = if let Some(inner) = Simple6::read(inner) {
        !inner.is_group() && parse::parse_simple6(&inner, meta, Asked::Both, cx)
    } else if let Some(inner) = Simple::read(inner) {
        !inner.is_group() && parse::parse_simple(&inner, meta, Asked::Both, cx)
    } else {
        false
    };
    if parsed {
        meta.origin = Origin::Tunnel;
        meta.peer = peer;
    }
    parsed
}
