//! Fields of a header that was parsed before, read again where a view would check it all again.
//! A packet that is too short reads as 0: the caller has had it parsed.

use super::checksum;

/// Source address of an IPv4 packet, host order.
#[inline]
#[must_use]
pub fn source_v4(ip: &[u8]) -> u32 {
    ip.first_chunk::<20>().map_or(0, |h| u32::from_be_bytes([h[12], h[13], h[14], h[15]]))
}

/// Destination address of an IPv4 packet, host order.
#[inline]
#[must_use]
pub fn destination_v4(ip: &[u8]) -> u32 {
    ip.first_chunk::<20>().map_or(0, |h| u32::from_be_bytes([h[16], h[17], h[18], h[19]]))
}

/// Source address of an IPv6 packet, host order.
#[inline]
#[must_use]
pub fn source_v6(ip: &[u8]) -> u128 {
    let address = ip.get(8..24).and_then(|a| a.first_chunk::<16>());
    address.map_or(0, |a| u128::from_be_bytes(*a))
}

/// Destination address of an IPv6 packet, host order.
#[inline]
#[must_use]
pub fn destination_v6(ip: &[u8]) -> u128 {
    let address = ip.get(24..40).and_then(|a| a.first_chunk::<16>());
    address.map_or(0, |a| u128::from_be_bytes(*a))
}

/// Sum of the pseudo-header of an IPv4 packet whose upper layer is `len` bytes long.
#[inline]
#[must_use]
pub fn pseudo_v4(ip: &[u8], protocol: u8, len: usize) -> u64 {
    checksum::pseudo_header_v4(source_v4(ip), destination_v4(ip), protocol, len as u16)
}

/// Sum of the pseudo-header of an IPv6 packet whose upper layer is `len` bytes long.
#[inline]
#[must_use]
pub fn pseudo_v6(ip: &[u8], protocol: u8, len: usize) -> u64 {
    checksum::pseudo_header_v6(source_v6(ip), destination_v6(ip), protocol, len as u32)
}
