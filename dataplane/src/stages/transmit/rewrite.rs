//! What changes in the packet itself on its way out.

use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta};
use crate::wire::{ethernet, ipv4, ipv6};

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
