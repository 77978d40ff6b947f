//! The uplink's packets: out of the tunnel, or as they are. Everything that can be said against
//! a tunnel packet is said here by its own name (the order of checks: outer IP, UDP, peer, tunnel
//! header, inner packet).

use overlane_api::Mode;

use super::{fragments, parse, path_mtu, usual};
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::{Context, keys};
use crate::tables::Snapshot;
use crate::wire::ecn::{self, Decapsulated, Ecn};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::geneve::{self, Geneve};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::Vxlan;
use crate::wire::{ParseError, checksum, peek, protocol};

/// Takes the vector out of its tunnels.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    for frame in &vector.frames {
        frame.prefetch();
    }
    for (frame, meta) in vector.packets() {
        if usual::is_usual(frame, meta, cx) {
            continue;
        }
        if let Err(verdict) = step(frame, meta, cx) {
            meta.verdict = verdict;
        }
    }
}

/// Takes a packet that [`usual::is_plain`] took out of its tunnel out of it again, step by step, for what
/// is wrong with its sender to be named.
#[inline(never)]
pub(super) fn again(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) {
    *meta = Meta::new(meta.port, Origin::Uplink);
    if !usual::put_back(frame) {
        meta.verdict = Verdict::Drop(DropReason::OuterTruncated);
    } else if let Err(verdict) = step(frame, meta, cx) {
        meta.verdict = verdict;
    }
}

/// As [`phase`], the long way for all.
#[cfg(test)]
pub(super) fn step_by_step(vector: &mut Vector, cx: &mut Context<'_>) {
    for (frame, meta) in vector.packets() {
        if let Err(verdict) = step(frame, meta, cx) {
            meta.verdict = verdict;
        }
    }
}

/// Takes one packet out of its tunnel.
#[inline(never)]
fn step(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<(), Verdict> {
    outer(frame, meta, cx)?;
    match meta.origin {
        Origin::Tunnel => inner(frame, meta, cx).map_err(Verdict::Drop),
        _ => Ok(()),
    }
}

/// Looks at the outer IP header. A tunnel packet gets `Origin::Tunnel` and the offset of its UDP
/// header in `l4`; a plain packet is parsed as it is.
#[inline(always)]
fn outer(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<(), Verdict> {
    if !cx.tables.node.configured {
        return Err(Verdict::Drop(DropReason::NotConfigured));
    }
    let ethernet =
        Ethernet::parse(frame.bytes()).map_err(|_| Verdict::Drop(DropReason::FrameTruncated))?;
    match ethernet.ethertype() {
        ethernet::ETHERTYPE_IPV4 => outer_v4(frame, meta, cx),
        ethernet::ETHERTYPE_IPV6 => outer_v6(frame, meta, cx),
        ethernet::ETHERTYPE_ARP => {
            meta.kind = Kind::Arp;
            *cx.link_messages = true;
            Ok(())
        }
        _ => Err(cx.tables.node.host_verdict()),
    }
}

#[inline(always)]
fn outer_v4(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<(), Verdict> {
    let node = &cx.tables.node;
    let bytes = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let ip = Ipv4::parse(bytes).map_err(|error| Verdict::Drop(outer_reason(&error)))?;
    if ip.destination_u32() != node.v4 || node.v4 == 0 {
        return plain(frame, meta, cx);
    }
    if !ip.verify_checksum() {
        return Err(Verdict::Drop(DropReason::OuterBadIpChecksum));
    }
    let payload = ip.payload();
    if ip.protocol() == protocol::UDP && ip.fragment_offset() == 0 {
        let port = payload.first_chunk::<4>().map_or(0, |p| u16::from_be_bytes([p[2], p[3]]));
        if node.is_tunnel_port(port) && !ip.is_fragment() {
            meta.kind = Kind::Ipv4;
            return tunnel(meta, port, ip.header_len(), ip.total_len(), ip.tos());
        }
    }
    if ip.protocol() == protocol::ICMP && ip.fragment_offset() == 0 {
        path_mtu::from_icmpv4(payload, cx);
    }
    own_address(frame, meta, cx)
}

#[inline]
fn outer_v6(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<(), Verdict> {
    let node = &cx.tables.node;
    let bytes = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let ip = Ipv6::parse(bytes).map_err(|error| Verdict::Drop(outer_reason(&error)))?;
    if ip.destination_u128() != node.v6 || node.v6 == 0 {
        return plain(frame, meta, cx);
    }
    let upper = ip.upper_layer().map_err(|error| Verdict::Drop(outer_reason(&error)))?;
    let packet_len = ip.packet_len() as u16;
    let payload = ip.packet().get(upper.offset..).unwrap_or_default();
    if upper.protocol == protocol::UDP && upper.has_header() {
        let port = payload.first_chunk::<4>().map_or(0, |p| u16::from_be_bytes([p[2], p[3]]));
        if node.is_tunnel_port(port) && !upper.is_fragment() {
            meta.kind = Kind::Ipv6;
            return tunnel(meta, port, upper.offset, packet_len, ip.traffic_class());
        }
    }
    if upper.protocol == protocol::ICMPV6 && upper.has_header() {
        let pseudo = peek::pseudo_v6(bytes, protocol::ICMPV6, payload.len());
        path_mtu::from_icmpv6(payload, pseudo, cx);
    }
    own_address(frame, meta, cx)
}

/// A packet to an address of this node's, and of no tunnel: an answer to a flow that left with the
/// address, which its worker knows; or to a service there; or the host's.
fn own_address(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<(), Verdict> {
    if parse_plain(frame, meta, cx).is_err() {
        return Err(cx.tables.node.host_verdict());
    }
    if meta.is_fragment { fragments::step(frame, meta, cx) } else { own_port(frame, meta, cx) }
}

/// Whose is a fragment, whose ports are known, to an address that is the node's, or its flows' or
/// services' alone?
///
/// # Errors
/// Another worker's, or the host's.
pub(super) fn owner(
    frame: &mut Frame,
    meta: &mut Meta,
    cx: &mut Context<'_>,
) -> Result<(), Verdict> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let is_own = match meta.kind {
        Kind::Ipv4 => meta.destination == cx.tables.node.v4,
        _ => peek::destination_v6(ip) == cx.tables.node.v6,
    };
    if !is_own {
        return answer(frame, meta, cx);
    }
    if meta.protocol == protocol::UDP && cx.tables.node.is_tunnel_port(meta.destination_port) {
        return Err(Verdict::Drop(DropReason::OuterFragment));
    }
    own_port(frame, meta, cx)
}

/// Whose is a packet, whose ports are known, to this node's own address?
fn own_port(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<(), Verdict> {
    // What a program of the host's listens for is no answer.
    if !cx.tables.host_ports.contains(meta.destination_port) {
        answer(frame, meta, cx)?;
    }
    if meta.is_answer {
        return Ok(());
    }
    let services = &cx.tables.services;
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let vip = match meta.kind {
        Kind::Ipv4 => services.vip4(meta.destination),
        _ => services.vip6(peek::destination_v6(ip)),
    };
    let (protocol, port) = keys::own_end(frame, meta);
    let frontend = vip.and_then(|vip| services.frontend(vip, protocol, port));
    if frontend.is_none() {
        return Err(cx.tables.node.host_verdict());
    }
    frame.truncate(ethernet::HEADER_LEN + usize::from(meta.ip_len));
    meta.is_node_port = true;
    Ok(())
}

/// Is the packet an answer to a flow that left with its destination? Then it is its worker's.
fn answer(frame: &mut Frame, meta: &mut Meta, cx: &Context<'_>) -> Result<(), Verdict> {
    let external = &cx.tables.external;
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    let (_, port) = keys::own_end(frame, meta);
    let owner = match meta.kind {
        Kind::Ipv4 => external.owner_v4(meta.destination, port),
        Kind::Ipv6 => external.owner_v6(peek::destination_v6(ip), port),
        Kind::Arp | Kind::LinkV6 => None,
    };
    let Some(owner) = owner else { return Ok(()) };
    frame.truncate(ethernet::HEADER_LEN + usize::from(meta.ip_len));
    meta.is_answer = true;
    if owner == cx.worker { Ok(()) } else { Err(Verdict::HandOver(owner)) }
}

fn parse_plain(frame: &Frame, meta: &mut Meta, cx: &Context<'_>) -> Result<(), DropReason> {
    let ethernet = Ethernet::parse(frame.bytes()).map_err(|_| DropReason::FrameTruncated)?;
    match ethernet.ethertype() {
        ethernet::ETHERTYPE_IPV4 => parse::parse_v4(ethernet.payload(), meta, cx),
        _ => parse::parse_v6(ethernet.payload(), meta, cx),
    }
}

fn tunnel(meta: &mut Meta, port: u16, l4: usize, ip_len: u16, tos: u8) -> Result<(), Verdict> {
    meta.origin = Origin::Tunnel;
    meta.destination_port = port;
    meta.l4 = l4 as u16;
    meta.ip_len = ip_len;
    meta.tos = tos;
    Ok(())
}

/// A packet that is not in a tunnel: for a pod of ours (native and flat), or the host's.
#[cold]
fn plain(frame: &mut Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<(), Verdict> {
    match parse_plain(frame, meta, cx) {
        Ok(()) if meta.kind == Kind::LinkV6 => {
            *cx.link_messages = true;
            Ok(())
        }
        Ok(()) => {
            frame.truncate(ethernet::HEADER_LEN + usize::from(meta.ip_len));
            if meta.is_fragment && fragments::is_shared(frame, meta, cx) {
                return fragments::step(frame, meta, cx);
            }
            // To the address of a gateway that is here?
            if meta.l4 == 0 { Ok(()) } else { answer(frame, meta, cx) }
        }
        // What the host's stack would make of it is not for us to say.
        Err(DropReason::Multicast) => Err(cx.tables.node.host_verdict()),
        Err(reason) => Err(Verdict::Drop(reason)),
    }
}

fn outer_reason(error: &ParseError) -> DropReason {
    if super::is_cut_short(error) { DropReason::OuterTruncated } else { DropReason::BadIpHeader }
}

/// Checks the sender and the tunnel header, takes the outer headers off, parses what was inside.
#[inline(always)]
fn inner(frame: &mut Frame, meta: &mut Meta, cx: &Context<'_>) -> Result<(), DropReason> {
    let tables = cx.tables;
    let ip_len = usize::from(meta.ip_len);
    let end = ethernet::HEADER_LEN + ip_len;
    let ip = frame.bytes().get(ethernet::HEADER_LEN..end).ok_or(DropReason::OuterTruncated)?;
    let l4 = usize::from(meta.l4);
    let segment = ip.get(l4..).ok_or(DropReason::OuterTruncated)?;
    let udp = Udp::parse(segment).map_err(|_| DropReason::OuterBadUdpLength)?;
    let mode = check_peer(ip, meta, tables)?;
    check_udp(ip, segment, &udp, meta.kind, tables)?;
    let (header_len, option) = match mode {
        Mode::Vxlan => (vxlan_header(udp.payload(), tables)?, None),
        _ => geneve_header(udp.payload(), tables)?,
    };
    let outer_ecn = Ecn::from_tos(meta.tos);
    let inner_len = udp.payload().len() - header_len;
    if let Some(option) = option {
        meta.service_option = (header_len - option.at) as u16;
    }
    frame.trim_front(ethernet::HEADER_LEN + l4 + udp::HEADER_LEN + header_len);
    frame.truncate(inner_len);
    parse_inner(frame, meta, cx)?;
    if let Some(option) = option
        && option.len != service_option_len(meta.kind)
    {
        return Err(DropReason::GeneveBadOptionLength);
    }
    combine_ecn(frame, meta, outer_ecn)
}

/// Who sent it? Sets `peer`; says which tunnel it is.
#[inline(always)]
fn check_peer(ip: &[u8], meta: &mut Meta, tables: &Snapshot) -> Result<Mode, DropReason> {
    let peer = match meta.kind {
        Kind::Ipv4 => tables.peers_v4.get(peek::source_v4(ip)),
        _ => tables.peers_v6.get(peek::source_v6(ip)),
    };
    let index = peer.checked_sub(1).ok_or(DropReason::TunnelUnknownPeer)?;
    let entry = tables.peers.get(index).ok_or(DropReason::TunnelUnknownPeer)?;
    meta.peer = peer;
    let mode =
        if meta.destination_port == tables.node.vxlan_port { Mode::Vxlan } else { Mode::Geneve };
    if entry.accepts == Some(mode) { Ok(mode) } else { Err(DropReason::TunnelModeMismatch) }
}

/// The outer UDP checksum: validated when there is one; it may be absent over IPv4, and over
/// IPv6 only where configured (RFC 8200 section 8.1, RFC 6935).
#[inline(always)]
fn check_udp(
    ip: &[u8],
    segment: &[u8],
    udp: &Udp<'_>,
    kind: Kind,
    tables: &Snapshot,
) -> Result<(), DropReason> {
    if udp.checksum() == 0 {
        return match kind {
            Kind::Ipv6 if !tables.node.accept_zero_udp_checksum_v6 => {
                Err(DropReason::OuterZeroUdpChecksumV6)
            }
            _ => Ok(()),
        };
    }
    let len = usize::from(udp.length());
    let segment = segment.get(..len).ok_or(DropReason::OuterBadUdpLength)?;
    let pseudo = match kind {
        Kind::Ipv4 => peek::pseudo_v4(ip, protocol::UDP, len),
        _ => peek::pseudo_v6(ip, protocol::UDP, len),
    };
    if checksum::fold(checksum::sum(segment, pseudo)) == 0xffff {
        Ok(())
    } else {
        Err(DropReason::OuterBadUdpChecksum)
    }
}

/// Checks a VXLAN header; says how long it is.
fn vxlan_header(datagram: &[u8], tables: &Snapshot) -> Result<usize, DropReason> {
    let header = Vxlan::parse(datagram).map_err(|error| {
        if matches!(error, ParseError::Truncated { .. }) {
            DropReason::OuterTruncated
        } else {
            DropReason::VxlanNoVniFlag
        }
    })?;
    if tables.node.vxlan_strict && header.reserved_bits_set() {
        return Err(DropReason::VxlanReservedBits);
    }
    if header.vni().get() != tables.node.vni {
        return Err(DropReason::TunnelUnknownVni);
    }
    Ok(crate::wire::vxlan::HEADER_LEN)
}

/// Where the data of the option stands that names a packet's service.
#[derive(Debug, Clone, Copy)]
struct ServiceOption {
    /// From the start of the Geneve header, bytes.
    at: usize,
    /// Bytes.
    len: usize,
}

/// Bytes of that data for a packet of this family.
const fn service_option_len(kind: Kind) -> usize {
    match kind {
        Kind::Ipv4 => geneve::SERVICE_V4,
        _ => geneve::SERVICE_V6,
    }
}

/// Checks a Geneve header and its options; says how long they are, and where the one stands that names
/// the service.
#[inline(always)]
fn geneve_header(
    datagram: &[u8],
    tables: &Snapshot,
) -> Result<(usize, Option<ServiceOption>), DropReason> {
    let header = Geneve::parse(datagram).map_err(|error| geneve_reason(&error))?;
    if header.vni().get() != tables.node.vni {
        return Err(DropReason::TunnelUnknownVni);
    }
    if header.is_control() {
        return Err(DropReason::GeneveControlPacket);
    }
    let option = if header.opt_len() != 0 { geneve_options(&header)? } else { None };
    if header.protocol() != ethernet::ETHERTYPE_TEB {
        return Err(DropReason::GeneveUnknownProtocol);
    }
    Ok((header.header_len(), option))
}

/// One option is known: that of a packet's service. Any other critical one is one too many, whatever the
/// C bit says (RFC 8926 section 3.5); the others are skipped. Of two that are known the first counts.
#[cold]
fn geneve_options(header: &Geneve<'_>) -> Result<Option<ServiceOption>, DropReason> {
    let mut at = geneve::HEADER_LEN;
    let mut found = None;
    for option in header.options() {
        let option = option.map_err(|_| DropReason::GeneveBadOptionLength)?;
        at += geneve::OPTION_HEADER_LEN;
        let is_known =
            (option.class, option.option_type) == (geneve::SERVICE_CLASS, geneve::SERVICE_TYPE);
        if is_known {
            found = found.or(Some(ServiceOption { at, len: option.data.len() }));
        } else if option.is_critical() {
            return Err(DropReason::GeneveUnknownCriticalOption);
        }
        at += option.data.len();
    }
    Ok(found)
}

fn geneve_reason(error: &ParseError) -> DropReason {
    match error {
        ParseError::BadVersion { .. } => DropReason::GeneveBadVersion,
        // The base header is there: it is the options that run past the datagram.
        ParseError::Truncated { need, .. } if usize::from(*need) > geneve::HEADER_LEN => {
            DropReason::GeneveBadOptionLength
        }
        _ => DropReason::OuterTruncated,
    }
}

/// Parses the Ethernet frame that was inside.
#[inline(always)]
fn parse_inner(frame: &mut Frame, meta: &mut Meta, cx: &Context<'_>) -> Result<(), DropReason> {
    let tables = cx.tables;
    let ethernet = Ethernet::parse(frame.bytes()).map_err(|_| DropReason::InnerTruncated)?;
    if ethernet.destination().is_group() {
        return Err(DropReason::InnerMulticast);
    }
    (meta.source_port, meta.destination_port) = (0, 0);
    let parsed = match ethernet.ethertype() {
        ethernet::ETHERTYPE_IPV4 => {
            tables.routes.v4.prefetch(peek::source_v4(ethernet.payload()));
            parse::parse_v4(ethernet.payload(), meta, cx)
        }
        ethernet::ETHERTYPE_IPV6 => {
            tables.routes.v6.prefetch(peek::source_v6(ethernet.payload()));
            parse::parse_v6(ethernet.payload(), meta, cx)
        }
        _ => return Err(DropReason::InnerBadVersion),
    };
    parsed.map_err(|reason| match reason {
        DropReason::FrameTruncated => DropReason::InnerTruncated,
        DropReason::BadIpHeader => DropReason::InnerBadVersion,
        DropReason::BadIpChecksum => DropReason::InnerBadIpChecksum,
        DropReason::Multicast => DropReason::InnerMulticast,
        other => other,
    })?;
    if meta.kind == Kind::LinkV6 {
        return Err(DropReason::InnerMulticast);
    }
    frame.truncate(ethernet::HEADER_LEN + usize::from(meta.ip_len));
    Ok(())
}

/// What the underlay said about congestion reaches the inner packet (RFC 6040 section 4.2).
#[inline]
fn combine_ecn(frame: &mut Frame, meta: &mut Meta, outer: Ecn) -> Result<(), DropReason> {
    let inner = Ecn::from_tos(meta.tos);
    if outer == Ecn::NotEct {
        return Ok(());
    }
    match ecn::decapsulate(inner, outer) {
        Decapsulated::Drop => Err(DropReason::TunnelEcnCeOnNotEct),
        Decapsulated::Forward { ecn, .. } if ecn == inner => Ok(()),
        Decapsulated::Forward { ecn, .. } => {
            let ip = frame.bytes_mut().get_mut(ethernet::HEADER_LEN..).unwrap_or_default();
            match meta.kind {
                Kind::Ipv4 => ipv4::set_ecn(ip, ecn),
                _ => ipv6::set_ecn(ip, ecn),
            };
            meta.tos = meta.tos & !3 | ecn.bits();
            Ok(())
        }
    }
}
