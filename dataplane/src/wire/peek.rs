//! Fields of a header that was parsed before, read again where a view would check it all again.
//! A packet that is too short reads as 0: the caller has had it parsed.
#![allow(
    clippy::cast_possible_truncation,
    reason = "an upper layer is no longer than its IP packet"
)]

use super::checksum;
use super::ipv4::Ipv4;
use super::ipv6::{FragmentInfo, Ipv6};

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

/// Which part of which packet an IPv4 fragment is. None: there is no header.
#[must_use]
pub fn fragment_v4(ip: &[u8]) -> Option<FragmentInfo> {
    let ip = Ipv4::parse(ip).ok()?;
    Some(FragmentInfo {
        offset: ip.fragment_offset(),
        more: ip.more_fragments(),
        identification: u32::from(ip.identification()),
    })
}

/// The same of an IPv6 fragment. None: it has no fragment header.
#[must_use]
pub fn fragment_v6(ip: &[u8]) -> Option<FragmentInfo> {
    Ipv6::parse(ip).ok()?.upper_layer().ok()?.fragment
}

/// Where the payload of an IPv4 packet begins and ends, from the start of its header: of a fragment's, the
/// offset counts from there.
#[must_use]
pub fn fragment_payload_v4(ip: &[u8]) -> Option<(usize, usize)> {
    let ip = Ipv4::parse(ip).ok()?;
    Some((ip.header_len(), usize::from(ip.total_len())))
}

/// The same of an IPv6 fragment. None: it has no fragment header.
#[must_use]
pub fn fragment_payload_v6(ip: &[u8]) -> Option<(usize, usize)> {
    let ip = Ipv6::parse(ip).ok()?;
    Some((ip.fragment_payload()?, ip.packet_len()))
}

/// Sum of the pseudo-header of an IPv4 packet whose upper layer is `len` bytes long.
#[inline]
#[must_use]
pub fn pseudo_v4(ip: &[u8], protocol: u8, len: usize) -> u64 {
    checksum::pseudo_header_v4(source_v4(ip), destination_v4(ip), protocol, 0) + len as u64
}

/// Sum of the pseudo-header of an IPv6 packet whose upper layer is `len` bytes long.
#[inline]
#[must_use]
pub fn pseudo_v6(ip: &[u8], protocol: u8, len: usize) -> u64 {
    checksum::pseudo_header_v6(source_v6(ip), destination_v6(ip), protocol, 0) + len as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ipv4::Ipv4, ipv6::Ipv6, protocol};

    #[test]
    fn fields_are_those_of_the_views() {
        let mut v4: Vec<u8> = (0..20).collect();
        v4[0] = 0x45;
        v4[2..4].copy_from_slice(&[0, 20]);
        let view = Ipv4::parse(&v4).unwrap();
        assert_eq!(source_v4(&v4), view.source_u32());
        assert_eq!(destination_v4(&v4), view.destination_u32());
        let mut v6: Vec<u8> = (0..40).collect();
        v6[0] = 0x60;
        v6[4..6].copy_from_slice(&[0, 0]);
        let view = Ipv6::parse(&v6).unwrap();
        assert_eq!(source_v6(&v6), view.source_u128());
        assert_eq!(destination_v6(&v6), view.destination_u128());
        let wanted =
            checksum::pseudo_header_v4(view_v4(&v4).0, view_v4(&v4).1, protocol::UDP, 1480);
        assert_eq!(checksum::fold(pseudo_v4(&v4, protocol::UDP, 1480)), checksum::fold(wanted));
        let (source, destination) = (view.source(), view.destination());
        let wanted = checksum::pseudo_header_v6(source, destination, protocol::TCP, 1440);
        assert_eq!(checksum::fold(pseudo_v6(&v6, protocol::TCP, 1440)), checksum::fold(wanted));
    }

    fn view_v4(packet: &[u8]) -> (u32, u32) {
        let view = Ipv4::parse(packet).unwrap();
        (view.source_u32(), view.destination_u32())
    }

    #[test]
    fn too_short_reads_as_zero() {
        let bytes = [0xff; 39];
        for length in 0..20 {
            assert_eq!((source_v4(&bytes[..length]), destination_v4(&bytes[..length])), (0, 0));
        }
        for length in 0..24 {
            assert_eq!(source_v6(&bytes[..length]), 0);
        }
        for length in 0..40 {
            assert_eq!(destination_v6(&bytes[..length]), 0);
        }
    }
}
