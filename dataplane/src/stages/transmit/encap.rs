//! To another node: its headers in front, and what differs from packet to packet written in.

use super::rewrite;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta};
use crate::packet::verdict::Verdict;
use crate::tables::peers::{Form, OUTER_IP, PeerEntry};
use crate::wire::{checksum, ethernet, geneve, ipv4, ipv6, peek, protocol, udp};

/// Lowest outer source port: the range 49152 to 65535 is right for both RFC 7348 and RFC 8926.
const FIRST_PORT: u16 = 49152;

/// Bytes of a whole template over IPv4 and over IPv6, see `tables/peers.rs`.
const TEMPLATE_V4: usize = OUTER_IP + ipv4::MIN_HEADER_LEN + udp::HEADER_LEN + 8 + 14;
const TEMPLATE_V6: usize = OUTER_IP + ipv6::HEADER_LEN + udp::HEADER_LEN + 8 + 14;

/// Offsets in a template.
mod v4 {
    use super::{OUTER_IP, ipv4};
    pub(super) const TOS: usize = OUTER_IP + 1;
    pub(super) const TOTAL_LEN: usize = OUTER_IP + 2;
    pub(super) const CHECKSUM: usize = OUTER_IP + 10;
    pub(super) const UDP: usize = OUTER_IP + ipv4::MIN_HEADER_LEN;
}

/// Offsets in a template.
mod v6 {
    use super::{OUTER_IP, ipv6};
    pub(super) const PAYLOAD_LEN: usize = OUTER_IP + 4;
    pub(super) const UDP: usize = OUTER_IP + ipv6::HEADER_LEN;
}

/// Puts the peer's headers in front of the packet, in the way its mode says.
/// `uplink` is the verdict of what leaves by it.
#[inline(always)]
pub fn step(frame: &mut Frame, meta: &mut Meta, peer: &PeerEntry, uplink: &Verdict) -> Verdict {
    if peer.is_usual && tunnel_v4(frame, meta, peer, peer.tos).is_some() {
        return *uplink;
    }
    unusual(frame, meta, peer, uplink)
}

/// In any other way.
#[inline(never)]
fn unusual(frame: &mut Frame, meta: &mut Meta, peer: &PeerEntry, uplink: &Verdict) -> Verdict {
    if !peer.resolved {
        return match peer.form {
            Form::NoAddress => Verdict::Drop(DropReason::EncapNoAddress),
            _ => Verdict::Hold,
        };
    }
    let done = match peer.form {
        Form::Tunnel4 => unusual_v4(frame, meta, peer),
        Form::Tunnel6 => tunnel_v6(frame, meta, peer),
        Form::Native => native(frame, meta, peer),
        Form::NoAddress => return Verdict::Drop(DropReason::EncapNoAddress),
    };
    match done {
        Some(()) => *uplink,
        // The headroom is larger than any template: the frame must have come without any.
        None => Verdict::Drop(DropReason::FrameTruncated),
    }
}

/// Puts the headers of a peer that is reached by Geneve, and is resolved, in front of the packet, with
/// `option` behind the Geneve header. It is critical.
#[inline(never)]
pub(super) fn with_option(
    frame: &mut Frame,
    meta: &mut Meta,
    peer: &PeerEntry,
    option: &[u8],
    uplink: &Verdict,
) -> Verdict {
    match tunnel_with_option(frame, meta, peer, option) {
        Some(()) => *uplink,
        None => Verdict::Drop(DropReason::FrameTruncated),
    }
}

fn tunnel_with_option(
    frame: &mut Frame,
    meta: &mut Meta,
    peer: &PeerEntry,
    option: &[u8],
) -> Option<()> {
    const FLAG_CRITICAL: u8 = 0x40;
    rewrite::take_hop_in(frame, meta);
    let template = peer.template.get(..usize::from(peer.template_len))?;
    let (outer, inner) = template.split_at_checked(template.len() - ethernet::HEADER_LEN)?;
    let bytes = frame.prepend(outer.len() + option.len()).ok()?;
    let (headers, rest) = bytes.split_at_mut_checked(outer.len())?;
    let (place, rest) = rest.split_at_mut_checked(option.len())?;
    place.copy_from_slice(option);
    headers.copy_from_slice(outer);
    let [words, flags, ..] = headers.last_chunk_mut::<{ geneve::HEADER_LEN }>()?;
    (*words, *flags) = ((option.len() / 4) as u8, *flags | FLAG_CRITICAL);
    let header = rest.first_chunk_mut::<{ ethernet::HEADER_LEN }>()?;
    *header = *inner.first_chunk()?;
    if meta.kind != Kind::Ipv4 {
        header[12..].copy_from_slice(&ethernet::ETHERTYPE_IPV6.to_be_bytes());
    }
    let tos = outer_dscp(meta, peer) | meta.tos & 3;
    let total = bytes.len() - OUTER_IP;
    let ip = bytes.get_mut(OUTER_IP..)?;
    let ip_len = match peer.form {
        Form::Tunnel4 => {
            let header = ip.first_chunk_mut::<{ ipv4::MIN_HEADER_LEN }>()?;
            header[1] = tos;
            header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            let sum = u32::from(peer.ip_sum) + u32::from(tos) + total as u32;
            header[10..12].copy_from_slice(&checksum::finish32(sum).to_be_bytes());
            ipv4::MIN_HEADER_LEN
        }
        Form::Tunnel6 => {
            let header = ip.first_chunk_mut::<{ ipv6::HEADER_LEN }>()?;
            let word = 6 << 28 | u32::from(tos) << 20 | label(meta.hash);
            header[..4].copy_from_slice(&word.to_be_bytes());
            let payload = (total - ipv6::HEADER_LEN) as u16;
            header[4..6].copy_from_slice(&payload.to_be_bytes());
            ipv6::HEADER_LEN
        }
        Form::Native | Form::NoAddress => return None,
    };
    let udp_len = total - ip_len;
    let header = ip.get_mut(ip_len..)?.first_chunk_mut::<{ udp::HEADER_LEN }>()?;
    header[..2].copy_from_slice(&source_port(meta.hash).to_be_bytes());
    header[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
    if peer.checksum {
        let pseudo = match peer.form {
            Form::Tunnel4 => peek::pseudo_v4(ip, protocol::UDP, udp_len),
            _ => peek::pseudo_v6(ip, protocol::UDP, udp_len),
        };
        checksum::compute(ip.get_mut(ip_len..)?, udp::CHECKSUM_OFFSET, pseudo);
    }
    Some(())
}

#[inline]
fn native(frame: &mut Frame, meta: &mut Meta, peer: &PeerEntry) -> Option<()> {
    rewrite::take_hop_in(frame, meta);
    let addresses = peer.template.first_chunk::<12>()?;
    *frame.bytes_mut().first_chunk_mut::<12>()? = *addresses;
    Some(())
}

/// The outer source port of a flow.
#[inline]
fn source_port(hash: u32) -> u16 {
    FIRST_PORT | (hash >> 18) as u16
}

/// The outer flow label of a flow: its hash is its label (RFC 6438 section 3). No more of it is shown than has
/// to be: the lower bits say where in a table the flow is.
#[inline]
fn label(hash: u32) -> u32 {
    hash >> 12
}

/// DSCP of the outer header, in its place in the TOS: the configured or the inner one.
#[inline]
fn outer_dscp(meta: &Meta, peer: &PeerEntry) -> u8 {
    if peer.copy_dscp { meta.tos & !3 } else { peer.tos }
}

/// Puts the template in front and writes what differs from packet to packet. The outer ECN is
/// the inner one (RFC 6040 section 4.1, normal mode).
#[inline(always)]
fn tunnel_v4(frame: &mut Frame, meta: &mut Meta, peer: &PeerEntry, dscp: u8) -> Option<()> {
    let bytes = frame.prepend(TEMPLATE_V4 - ethernet::HEADER_LEN).ok()?;
    let total = (bytes.len() - OUTER_IP) as u16;
    let udp_len = total - ipv4::MIN_HEADER_LEN as u16;
    let tos = dscp | meta.tos & 3;
    let headers = bytes.first_chunk_mut::<{ TEMPLATE_V4 + ipv4::MIN_HEADER_LEN }>()?;
    rewrite::take_hop(headers.last_chunk_mut()?, meta);
    let header = headers.first_chunk_mut::<TEMPLATE_V4>()?;
    *header = *peer.template.first_chunk()?;
    header[v4::TOS] = tos;
    header[v4::TOTAL_LEN..v4::TOTAL_LEN + 2].copy_from_slice(&total.to_be_bytes());
    let ip_checksum =
        checksum::finish32(u32::from(peer.ip_sum) + u32::from(total) + u32::from(tos));
    header[v4::CHECKSUM..v4::CHECKSUM + 2].copy_from_slice(&ip_checksum.to_be_bytes());
    header[v4::UDP..v4::UDP + 2].copy_from_slice(&source_port(meta.hash).to_be_bytes());
    header[v4::UDP + 4..v4::UDP + 6].copy_from_slice(&udp_len.to_be_bytes());
    // The template says IPv4.
    if meta.kind != Kind::Ipv4 {
        header[TEMPLATE_V4 - 2..].copy_from_slice(&ethernet::ETHERTYPE_IPV6.to_be_bytes());
    }
    Some(())
}

#[inline]
fn unusual_v4(frame: &mut Frame, meta: &mut Meta, peer: &PeerEntry) -> Option<()> {
    tunnel_v4(frame, meta, peer, outer_dscp(meta, peer))?;
    if peer.checksum {
        let bytes = frame.bytes_mut();
        let udp_len = bytes.len() - v4::UDP;
        let ip = bytes.get_mut(OUTER_IP..)?;
        let pseudo = peek::pseudo_v4(ip, protocol::UDP, udp_len);
        let datagram = ip.get_mut(ipv4::MIN_HEADER_LEN..)?;
        checksum::compute(datagram, udp::CHECKSUM_OFFSET, pseudo);
    }
    Some(())
}

#[inline]
fn tunnel_v6(frame: &mut Frame, meta: &mut Meta, peer: &PeerEntry) -> Option<()> {
    let bytes = frame.prepend(TEMPLATE_V6 - ethernet::HEADER_LEN).ok()?;
    let udp_len = (bytes.len() - v6::UDP) as u16;
    let headers = bytes.first_chunk_mut::<{ TEMPLATE_V6 + ipv4::MIN_HEADER_LEN }>()?;
    rewrite::take_hop(headers.last_chunk_mut()?, meta);
    let header = headers.first_chunk_mut::<TEMPLATE_V6>()?;
    *header = *peer.template.first_chunk()?;
    // Version, traffic class, flow label.
    let word = 6 << 28 | u32::from(outer_dscp(meta, peer) | meta.tos & 3) << 20 | label(meta.hash);
    header[OUTER_IP..OUTER_IP + 4].copy_from_slice(&word.to_be_bytes());
    header[v6::PAYLOAD_LEN..v6::PAYLOAD_LEN + 2].copy_from_slice(&udp_len.to_be_bytes());
    header[v6::UDP..v6::UDP + 2].copy_from_slice(&source_port(meta.hash).to_be_bytes());
    header[v6::UDP + 4..v6::UDP + 6].copy_from_slice(&udp_len.to_be_bytes());
    if meta.kind != Kind::Ipv4 {
        header[TEMPLATE_V6 - 2..].copy_from_slice(&ethernet::ETHERTYPE_IPV6.to_be_bytes());
    }
    if peer.checksum {
        let ip = bytes.get_mut(OUTER_IP..)?;
        let pseudo = peek::pseudo_v6(ip, protocol::UDP, usize::from(udp_len));
        let datagram = ip.get_mut(ipv6::HEADER_LEN..)?;
        checksum::compute(datagram, udp::CHECKSUM_OFFSET, pseudo);
    }
    Some(())
}
