//! A TCP connection that nobody will answer is refused at once: a RST in the name of the address
//! that was asked (RFC 9293 section 3.10.7.1).

use super::echo::OWN_TTL;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta};
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::tcp::{self, Tcp, TcpHeader};
use crate::wire::{checksum, ethernet, peek, protocol};

/// Writes the RST that answers `about` into `answer`; returns the length of its IP packet, bytes.
/// None: the packet is no TCP packet that is answered so.
pub(super) fn build(answer: &mut Frame, about: &Frame, meta: &Meta) -> Option<usize> {
    let ip = about.bytes().get(ethernet::HEADER_LEN..)?;
    let segment = ip.get(usize::from(meta.l4)..usize::from(meta.ip_len))?;
    let asked = Tcp::parse(segment).ok()?;
    if asked.flags() & tcp::RST != 0 {
        return None;
    }
    let ends = asked.flags() & (tcp::SYN | tcp::FIN);
    let taken = asked.payload().len() as u32 + ends.count_ones();
    let (sequence, acknowledgment, flags) = if asked.flags() & tcp::ACK != 0 {
        (asked.acknowledgment(), 0, tcp::RST)
    } else {
        (0, asked.sequence().wrapping_add(taken), tcp::RST | tcp::ACK)
    };
    let header = TcpHeader {
        source_port: asked.destination_port(),
        destination_port: asked.source_port(),
        sequence,
        acknowledgment,
        flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    match meta.kind {
        Kind::Ipv4 => {
            let (source, destination) = (peek::destination_v4(ip), peek::source_v4(ip));
            let pseudo = checksum::pseudo_header_v4(source, destination, protocol::TCP, LEN);
            let total_len = write::<{ ipv4::MIN_HEADER_LEN }>(answer, &header, pseudo)?;
            let header = Ipv4Header {
                tos: 0,
                total_len: total_len as u16,
                identification: 0,
                fragment: ipv4::DONT_FRAGMENT,
                ttl: OWN_TTL,
                protocol: protocol::TCP,
                source: source.into(),
                destination: destination.into(),
            };
            header.write(answer.bytes_mut().get_mut(ethernet::HEADER_LEN..)?.first_chunk_mut()?);
            Some(total_len)
        }
        _ => {
            let (source, destination) = (peek::destination_v6(ip), peek::source_v6(ip));
            let pseudo =
                checksum::pseudo_header_v6(source, destination, protocol::TCP, u32::from(LEN));
            let total_len = write::<{ ipv6::HEADER_LEN }>(answer, &header, pseudo)?;
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: 0,
                payload_len: LEN,
                next_header: protocol::TCP,
                hop_limit: OWN_TTL,
                source: source.into(),
                destination: destination.into(),
            };
            header.write(answer.bytes_mut().get_mut(ethernet::HEADER_LEN..)?.first_chunk_mut()?);
            Some(total_len)
        }
    }
}

/// Bytes of a TCP header without options.
const LEN: u16 = tcp::MIN_HEADER_LEN as u16;

/// Writes the TCP header behind an IP header of `IP` bytes; returns the length of both.
fn write<const IP: usize>(answer: &mut Frame, header: &TcpHeader, pseudo: u64) -> Option<usize> {
    answer.set_len(ethernet::HEADER_LEN + IP + tcp::MIN_HEADER_LEN).ok()?;
    let segment = answer.bytes_mut().get_mut(ethernet::HEADER_LEN + IP..)?;
    header.write(segment.first_chunk_mut()?);
    checksum::compute(segment, tcp::CHECKSUM_OFFSET, pseudo);
    Some(IP + tcp::MIN_HEADER_LEN)
}
