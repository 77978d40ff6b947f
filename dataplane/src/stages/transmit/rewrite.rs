//! What changes in the packet itself on its way out.

use super::related;
use crate::flow::HalfId;
use crate::flow::flows::Flows;
use crate::flow::half::Rewrite;
use crate::packet::flow_key::Address;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta};
use crate::wire::sctp::{self, Sctp, SctpMut};
use crate::wire::{ethernet, icmpv4, ipv4, ipv6, protocol, simple, tcp, udp};

/// Ethernet and the part of an IP header that a hop changes: the whole of IPv4's, and of IPv6's
/// up to the addresses. Every packet that was parsed has as much.
pub(super) const HEADERS: usize = ethernet::HEADER_LEN + ipv4::MIN_HEADER_LEN;

/// Lowers the time to live by one, once: not again at the next worker, or after a wait. There is
/// a hop left: `resolve/hop` has looked.
#[inline(always)]
pub(super) fn take_hop(ip: &mut [u8; ipv4::MIN_HEADER_LEN], meta: &mut Meta) {
    if !meta.forwarded {
        return;
    }
    meta.ttl = meta.ttl.wrapping_sub(1);
    meta.forwarded = false;
    match meta.kind {
        Kind::Ipv4 => ipv4::lower_ttl(ip, meta.ttl),
        _ => ipv6::set_hop_limit(ip, meta.ttl),
    }
}

/// As [`take_hop`], in the frame.
#[inline]
pub(super) fn take_hop_in(frame: &mut Frame, meta: &mut Meta) {
    let ip = frame.bytes_mut().get_mut(ethernet::HEADER_LEN..).and_then(<[u8]>::first_chunk_mut);
    if let Some(ip) = ip {
        take_hop(ip, meta);
    }
}

/// Translates the packet as its flow says; once.
#[inline(always)]
pub fn step(frame: &mut Frame, meta: &mut Meta, flows: &mut Flows) {
    if meta.flow != 0 {
        translate(frame, meta, flows);
    }
}

/// Translates a packet with a flow: nearly all are simple.
#[inline(never)]
fn translate(frame: &mut Frame, meta: &mut Meta, flows: &mut Flows) {
    if !translate_simple(frame, meta, flows) {
        translate_any(frame, meta, flows);
    }
}

/// Translates a packet over IPv4, without options and in one piece, of UDP or TCP. Says whether it is one;
/// [`translate_any`] does the same for all.
#[inline(always)]
fn translate_simple(frame: &mut Frame, meta: &mut Meta, flows: &Flows) -> bool {
    const WITHOUT_OPTIONS: u16 = ipv4::MIN_HEADER_LEN as u16;
    let is_simple = meta.kind == Kind::Ipv4 && meta.l4 == WITHOUT_OPTIONS && !meta.is_fragment;
    let Some(half) = HalfId::from_number(meta.flow) else { return false };
    if !is_simple || meta.is_related {
        return false;
    }
    let to = flows.v4.half(half).ends();
    if !meta.dont_fragment && meta.source != to.source {
        return false;
    }
    let done = match meta.protocol {
        protocol::UDP => simple::translate_udp(frame.bytes_mut(), &to),
        protocol::TCP => simple::translate_tcp(frame.bytes_mut(), &to),
        _ => false,
    };
    if done {
        meta.flow = 0;
        meta.translated = true;
        (meta.source, meta.destination) = (to.source, to.destination);
        (meta.source_port, meta.destination_port) = ((to.ports >> 16) as u16, to.ports as u16);
    }
    done
}

#[inline(never)]
fn translate_any(frame: &mut Frame, meta: &mut Meta, flows: &mut Flows) {
    let Some(half) = HalfId::from_number(meta.flow) else { return };
    meta.flow = 0;
    meta.translated = true;
    let Some(ip) = frame.bytes_mut().get_mut(ethernet::HEADER_LEN..) else { return };
    if meta.is_related {
        related::step(ip, meta, half, flows);
        return;
    }
    match meta.kind {
        Kind::Ipv4 => {
            let rewrite = flows.v4.half(half).rewrite();
            if let Some(header) = ip.first_chunk_mut() {
                ipv4::translate(
                    header,
                    rewrite.leaving_as.source,
                    rewrite.leaving_as.destination,
                    rewrite.difference.ip,
                );
            }
            let to = &rewrite.leaving_as;
            if (meta.is_fragment || !meta.dont_fragment) && meta.source != to.source {
                identify(ip, meta, to.destination, flows);
            }
            (meta.source, meta.destination) = (to.source, to.destination);
            upper_layer(ip, meta, &rewrite);
        }
        _ => {
            let rewrite = flows.v6.half(half).rewrite();
            if let Some(header) = ip.first_chunk_mut() {
                ipv6::translate(header, rewrite.leaving_as.source, rewrite.leaving_as.destination);
            }
            upper_layer(ip, meta, &rewrite);
        }
    }
}

/// Names a packet that is or may become fragments, and that leaves with an address that is not its
/// sender's alone: others have that address and choose the same (RFC 6864 section 5.3.1).
#[cold]
#[inline(never)]
fn identify(ip: &mut [u8], meta: &Meta, destination: u32, flows: &mut Flows) {
    let Some(header) = ip.first_chunk_mut() else { return };
    let id = if meta.is_known_fragment {
        meta.new_id
    } else {
        flows.identifications.next(destination, meta.protocol)
    };
    ipv4::set_identification(header, id);
}

/// The ports, or the identifier of a ping; and the checksum, which covers them and, but for ICMP
/// over IPv4, the addresses.
#[inline(always)]
fn upper_layer<A: Address>(ip: &mut [u8], meta: &mut Meta, rewrite: &Rewrite<A>) {
    let to = &rewrite.leaving_as;
    (meta.source_port, meta.destination_port) = (to.source_port, to.destination_port);
    if meta.l4 == 0 {
        // A later fragment has addresses only.
        return;
    }
    let Some(l4) = ip.get_mut(usize::from(meta.l4)..) else { return };
    let checksum = match meta.protocol {
        protocol::TCP => tcp::CHECKSUM_OFFSET,
        protocol::UDP => udp::CHECKSUM_OFFSET,
        protocol::ICMP | protocol::ICMPV6 => icmpv4::CHECKSUM_OFFSET,
        protocol::SCTP => {
            if !meta.is_fragment {
                adjust_crc(l4, meta, (to.source_port, to.destination_port));
            }
            return set_ports(l4, (to.source_port, to.destination_port));
        }
        _ => return,
    };
    if let Some(field) = l4.get_mut(checksum..).and_then(<[u8]>::first_chunk_mut::<2>) {
        let old = u16::from_be_bytes(*field);
        *field = rewrite.difference.of_l4(meta.protocol, old).to_be_bytes();
    }
    if checksum == icmpv4::CHECKSUM_OFFSET {
        // One of the two is 0: the other is the identifier.
        let identifier = to.source_port | to.destination_port;
        if let Some(field) = l4.get_mut(4..).and_then(<[u8]>::first_chunk_mut::<2>) {
            *field = identifier.to_be_bytes();
        }
    } else if let Some(ports) = l4.first_chunk_mut::<4>() {
        let both = u32::from(to.source_port) << 16 | u32::from(to.destination_port);
        *ports = both.to_be_bytes();
    }
}

/// The CRC of a whole SCTP packet for other ports: it covers them, but no address (RFC 9260 section 6.8). It is
/// linear: what the change does to it is added, so that a packet that was broken stays broken.
#[cold]
#[inline(never)]
fn adjust_crc(packet: &mut [u8], meta: &Meta, new: (u16, u16)) {
    let Ok(header) = Sctp::parse(packet) else { return };
    let old = (header.source_port(), header.destination_port());
    let Ok(mut header) = SctpMut::new(packet) else { return };
    if old != new {
        let length = meta.ip_len.saturating_sub(meta.l4);
        header.adjust_checksum(sctp::ports_difference(old, new), length);
    }
}

#[cold]
fn set_ports(packet: &mut [u8], new: (u16, u16)) {
    let Ok(mut header) = SctpMut::new(packet) else { return };
    header.set_source_port(new.0);
    header.set_destination_port(new.1);
}

/// Makes the CRC of an SCTP packet over IPv4 right for the ports that its flow leaves with, when it is
/// about to be cut: its pieces are translated one by one, and none of them has all that is covered.
#[cold]
#[inline(never)]
pub(super) fn adjust_crc_of_whole(frame: &mut Frame, meta: &Meta, flows: &Flows) {
    let Some(half) = HalfId::from_number(meta.flow) else { return };
    if meta.protocol != protocol::SCTP || meta.is_fragment {
        return;
    }
    let to = flows.v4.half(half).leaving_as();
    if let Some(packet) = frame.bytes_mut().get_mut(ethernet::HEADER_LEN + usize::from(meta.l4)..) {
        adjust_crc(packet, meta, (to.source_port, to.destination_port));
    }
}
