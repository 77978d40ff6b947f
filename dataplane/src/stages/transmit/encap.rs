//! To another node: its headers in front, and what differs from packet to packet written in.

use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta};
use crate::packet::verdict::Verdict;
use crate::tables::Snapshot;
use crate::tables::peers::{Form, OUTER_IP, PeerEntry};
use crate::wire::{checksum, ethernet, ipv4, ipv6, peek, protocol, udp};

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
pub(super) fn step(
    frame: &mut Frame,
    meta: &Meta,
    index: u32,
    uplink: Verdict,
    tables: &Snapshot,
) -> Verdict {
    let Some(peer) = tables.peers.get(index) else {
        return Verdict::Drop(DropReason::NoRoute);
    };
    if !peer.resolved {
        return match peer.form {
            Form::NoAddress => Verdict::Drop(DropReason::EncapNoAddress),
            _ => Verdict::Hold,
        };
    }
    let done = match peer.form {
        Form::Tunnel4 => tunnel_v4(frame, meta, peer),
        Form::Tunnel6 => tunnel_v6(frame, meta, peer),
        Form::Native => native(frame, peer),
        Form::NoAddress => return Verdict::Drop(DropReason::EncapNoAddress),
    };
    match done {
        Some(()) => uplink,
        // The headroom is larger than any template: the frame must have come without any.
        None => Verdict::Drop(DropReason::FrameTruncated),
    }
}

#[inline]
fn native(frame: &mut Frame, peer: &PeerEntry) -> Option<()> {
    let addresses = peer.template.first_chunk::<12>()?;
    *frame.bytes_mut().first_chunk_mut::<12>()? = *addresses;
    Some(())
}

/// The outer source port of a flow.
#[inline]
fn source_port(hash: u32) -> u16 {
    FIRST_PORT | (hash >> 18) as u16
}

#[inline]
fn inner_ethertype(kind: Kind) -> [u8; 2] {
    match kind {
        Kind::Ipv4 => ethernet::ETHERTYPE_IPV4.to_be_bytes(),
        _ => ethernet::ETHERTYPE_IPV6.to_be_bytes(),
    }
}

/// TOS of the outer header: the configured or the inner DSCP; the ECN is the inner one (RFC 6040
/// section 4.1, normal mode).
#[inline]
fn outer_tos(meta: &Meta, peer: &PeerEntry) -> u8 {
    let dscp = if peer.copy_dscp { meta.tos & !3 } else { peer.tos };
    dscp | meta.tos & 3
}

#[inline(always)]
fn tunnel_v4(frame: &mut Frame, meta: &Meta, peer: &PeerEntry) -> Option<()> {
    let bytes = frame.prepend(TEMPLATE_V4 - ethernet::HEADER_LEN).ok()?;
    let total = (bytes.len() - OUTER_IP) as u16;
    let udp_len = total - ipv4::MIN_HEADER_LEN as u16;
    let tos = outer_tos(meta, peer);
    let header = bytes.first_chunk_mut::<TEMPLATE_V4>()?;
    *header = *peer.template.first_chunk()?;
    header[v4::TOS] = tos;
    header[v4::TOTAL_LEN..v4::TOTAL_LEN + 2].copy_from_slice(&total.to_be_bytes());
    let sum = u64::from(peer.ip_sum) + u64::from(total) + u64::from(tos);
    let ip_checksum = checksum::finish(sum);
    header[v4::CHECKSUM..v4::CHECKSUM + 2].copy_from_slice(&ip_checksum.to_be_bytes());
    header[v4::UDP..v4::UDP + 2].copy_from_slice(&source_port(meta.hash).to_be_bytes());
    header[v4::UDP + 4..v4::UDP + 6].copy_from_slice(&udp_len.to_be_bytes());
    header[TEMPLATE_V4 - 2..].copy_from_slice(&inner_ethertype(meta.kind));
    if peer.checksum {
        let ip = bytes.get_mut(OUTER_IP..)?;
        let pseudo = peek::pseudo_v4(ip, protocol::UDP, usize::from(udp_len));
        let datagram = ip.get_mut(ipv4::MIN_HEADER_LEN..)?;
        checksum::compute(datagram, udp::CHECKSUM_OFFSET, pseudo);
    }
    Some(())
}

#[inline]
fn tunnel_v6(frame: &mut Frame, meta: &Meta, peer: &PeerEntry) -> Option<()> {
    let bytes = frame.prepend(TEMPLATE_V6 - ethernet::HEADER_LEN).ok()?;
    let udp_len = (bytes.len() - v6::UDP) as u16;
    let header = bytes.first_chunk_mut::<TEMPLATE_V6>()?;
    *header = *peer.template.first_chunk()?;
    // Version, traffic class, flow label: the flow's hash is its label (RFC 6438 section 3).
    let word = 6 << 28 | u32::from(outer_tos(meta, peer)) << 20 | meta.hash & 0x000f_ffff;
    header[OUTER_IP..OUTER_IP + 4].copy_from_slice(&word.to_be_bytes());
    header[v6::PAYLOAD_LEN..v6::PAYLOAD_LEN + 2].copy_from_slice(&udp_len.to_be_bytes());
    header[v6::UDP..v6::UDP + 2].copy_from_slice(&source_port(meta.hash).to_be_bytes());
    header[v6::UDP + 4..v6::UDP + 6].copy_from_slice(&udp_len.to_be_bytes());
    header[TEMPLATE_V6 - 2..].copy_from_slice(&inner_ethertype(meta.kind));
    if peer.checksum {
        let ip = bytes.get_mut(OUTER_IP..)?;
        let pseudo = peek::pseudo_v6(ip, protocol::UDP, usize::from(udp_len));
        let datagram = ip.get_mut(ipv6::HEADER_LEN..)?;
        checksum::compute(datagram, udp::CHECKSUM_OFFSET, pseudo);
    }
    Some(())
}
