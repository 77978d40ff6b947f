//! The internet checksum (RFC 1071), its incremental update (RFC 1624) and the sums that a kernel
//! leaves unfinished.
//!
//! A *sum* is a `u64` of big-endian 16-bit words added up and not yet folded. It is a number modulo
//! 65535, so that 32-bit words can be added to it as they are, and any number of sums can be added to
//! one another. [`fold`] brings a sum to 16 bits, [`finish`] makes the checksum of it.

use super::{
    ParseError, icmpv4::Icmpv4, icmpv6::Icmpv6, ipv4::Ipv4, ipv6::Ipv6, protocol, tcp::Tcp,
    udp::Udp,
};

/// Adds the bytes to the sum `initial`. An odd last byte counts as if a zero followed, so that only
/// the last of several pieces may have an odd length.
///
/// `initial` must be below 2^63; real sums are below 2^40.
#[inline]
#[must_use]
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    // One's complement addition does not care for byte order (RFC 1071 section 2 B): words are added
    // as this machine reads them, and the folded result is swapped once.
    initial + u64::from(u16::from_be(fold(native_sum(bytes))))
}

/// The bytes' sum, of words in this machine's byte order.
#[inline]
fn native_sum(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    // Eight lanes of 64 bits with a 32-bit word added at a time: nothing to carry before 2^32 blocks,
    // and a form that becomes vector instructions.
    let mut lanes = [0_u64; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let total: u64 = lanes.iter().sum();
    let (words, rest) = rest.as_chunks::<4>();
    let total = words.iter().fold(total, |sum, word| sum + u64::from(u32::from_ne_bytes(*word)));
    total
        + match *rest {
            [a] => u64::from(u16::from_ne_bytes([a, 0])),
            [a, b] => u64::from(u16::from_ne_bytes([a, b])),
            [a, b, c] => u64::from(u32::from_ne_bytes([a, b, c, 0])),
            _ => 0,
        }
}

/// The folded sum of `bytes` and `initial`, all in this machine's byte order.
#[inline]
#[must_use]
pub(super) fn native_fold(bytes: &[u8], initial: u64) -> u16 {
    fold(native_sum(bytes) + initial)
}

/// The folded sum of a 20-byte header, in this machine's byte order: 0xffff when it is right.
#[inline]
#[must_use]
pub(super) fn native_fold_20(header: &[u8; 20]) -> u16 {
    let (words, _) = header.as_chunks::<4>();
    fold(words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum())
}

/// Adds the carries back in until 16 bits are left. Only 0 gives 0; other multiples of 65535 give
/// 65535.
#[inline]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    // Adding a number to itself with its halves swapped leaves both halves' sum, the carry included,
    // in the upper half.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// The checksum of a sum: its one's complement, to be written in big-endian order.
#[inline]
#[must_use]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// As [`finish`], of a sum of few words.
#[inline]
#[must_use]
pub const fn finish32(sum: u32) -> u16 {
    !((sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16)
}

/// As [`finish`], but 0xffff for 0: in a UDP header, 0 says that there is no checksum (RFC 768).
#[inline]
#[must_use]
pub const fn udp_finish(sum: u64) -> u16 {
    match finish(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Sum of the pseudo-header of TCP and UDP over IPv4 (RFC 9293 section 3.1). `length` is that of the
/// transport header and its payload, in bytes. Takes `Ipv4Addr` as well as `u32`.
#[inline]
#[must_use]
pub fn pseudo_header_v4(
    source: impl Into<u32>,
    destination: impl Into<u32>,
    protocol: u8,
    length: u16,
) -> u64 {
    u64::from(source.into())
        + u64::from(destination.into())
        + u64::from(protocol)
        + u64::from(length)
}

/// Sum of the pseudo-header of everything over IPv6 (RFC 8200 section 8.1). `length` is that of the
/// upper-layer header and its payload, in bytes. Takes `Ipv6Addr` as well as `u128`.
#[inline]
#[must_use]
pub fn pseudo_header_v6(
    source: impl Into<u128>,
    destination: impl Into<u128>,
    protocol: u8,
    length: u32,
) -> u64 {
    sum_u128(source.into()) + sum_u128(destination.into()) + u64::from(protocol) + u64::from(length)
}

#[inline]
fn sum_u128(value: u128) -> u64 {
    let bytes = value.to_be_bytes();
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum()
}

/// What must be added to a sum when a 16-bit field changes: `~old + new` (RFC 1624 equation 3).
/// Differences can be added up and kept, for [`apply`] to use on every packet of a flow.
#[inline]
#[must_use]
pub const fn difference16(old: u16, new: u16) -> u64 {
    !old as u64 + new as u64
}

/// As [`difference16`] for 32 bits that start at an even offset.
#[inline]
#[must_use]
pub const fn difference32(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// As [`difference16`] for 128 bits that start at an even offset.
#[inline]
#[must_use]
pub fn difference128(old: u128, new: u128) -> u64 {
    sum_u128(!old) + sum_u128(new)
}

/// The checksum after a change of `difference` (RFC 1624 equation 3: `HC' = ~(~HC + ~m + m')`).
#[inline]
#[must_use]
pub const fn apply(checksum: u16, difference: u64) -> u16 {
    finish(!checksum as u64 + difference)
}

/// As [`apply`] for UDP: no checksum (0) stays none, and a computed 0 becomes 0xffff.
#[inline]
#[must_use]
pub const fn udp_apply(checksum: u16, difference: u64) -> u16 {
    if checksum == 0 { 0 } else { udp_finish(!checksum as u64 + difference) }
}

/// The checksum after a 16-bit field has changed from `old` to `new`.
#[inline]
#[must_use]
pub const fn update16(checksum: u16, old: u16, new: u16) -> u16 {
    apply(checksum, difference16(old, new))
}

/// The checksum after 32 bits at an even offset have changed from `old` to `new`.
#[inline]
#[must_use]
pub const fn update32(checksum: u16, old: u32, new: u32) -> u16 {
    apply(checksum, difference32(old, new))
}

/// The checksum after 128 bits at an even offset have changed from `old` to `new`.
#[inline]
#[must_use]
pub fn update128(checksum: u16, old: u128, new: u128) -> u16 {
    apply(checksum, difference128(old, new))
}

/// Does the checksum field of a TCP or UDP header look unfinished?
///
/// A kernel that leaves the checksum to the device (`CHECKSUM_PARTIAL`) writes the folded sum of the
/// pseudo-header, not complemented, into the field. `pseudo` is the sum from [`pseudo_header_v4`] or
/// [`pseudo_header_v6`].
///
/// A finished checksum looks like this by chance in one of 65535 packets, and there is no telling the
/// two apart by the field alone. It does no harm to call [`complete_partial`] for such a packet: the
/// field p that it finds is the pseudo-header's sum, so what it writes is the true checksum of header
/// and payload, and a packet whose finished checksum was right gets the same bytes again. What is lost
/// is the check: a packet that was damaged on its way *and* has p in its field would be given a
/// right checksum, again one damaged packet in 65535. So ask this only where packets
/// come from a kernel on the same machine, never on a wire.
#[inline]
#[must_use]
pub const fn is_partial(field: u16, pseudo: u64) -> bool {
    field == fold(pseudo)
}

/// Finishes a checksum that [`is_partial`]: sums the whole segment with the pseudo-header's sum that
/// stands in its field, and writes the complement there. `segment` is the transport header and its
/// payload and nothing more; `checksum_offset` is [`super::tcp::CHECKSUM_OFFSET`] or
/// [`super::udp::CHECKSUM_OFFSET`]. A computed 0 is written as 0xffff for UDP, and for UDP only (the
/// kernel's `skb_checksum_help` does so for every protocol; RFC 1624 section 3 says 0 for TCP).
///
/// Returns `false`, with nothing changed, when the field is outside of the segment.
#[inline]
pub fn complete_partial(segment: &mut [u8], checksum_offset: usize) -> bool {
    let checksum = finish_at(checksum_offset, sum(segment, 0));
    write_field(segment, checksum_offset, checksum)
}

/// The checksum of a header that has its field there: only UDP's is 6 bytes in, and never 0.
#[inline]
const fn finish_at(checksum_offset: usize, sum: u64) -> u16 {
    if checksum_offset == super::udp::CHECKSUM_OFFSET { udp_finish(sum) } else { finish(sum) }
}

#[inline]
fn write_field(segment: &mut [u8], checksum_offset: usize, checksum: u16) -> bool {
    let Some(field) = segment.get_mut(checksum_offset..).and_then(<[u8]>::first_chunk_mut::<2>)
    else {
        return false;
    };
    *field = checksum.to_be_bytes();
    true
}

/// Writes the checksum of `segment` from nothing: whatever is in the field is ignored. `pseudo` is the
/// pseudo-header's sum, 0 for ICMPv4. A computed 0 is written as 0xffff for UDP.
///
/// Returns `false`, with the checksum not written, when the field is outside of the segment.
#[inline]
pub fn compute(segment: &mut [u8], checksum_offset: usize, pseudo: u64) -> bool {
    if !write_field(segment, checksum_offset, 0) {
        return false;
    }
    let checksum = finish_at(checksum_offset, sum(segment, pseudo));
    write_field(segment, checksum_offset, checksum)
}

/// What [`verify_l4`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4Checksum {
    /// It is right.
    Correct,
    /// It is wrong, or was left unfinished (see [`is_partial`]).
    Wrong,
    /// A UDP header with 0 in the field. Legal over IPv4; over IPv6 only in a tunnel that is
    /// configured so (RFC 8200 section 8.1, RFC 6935).
    Absent,
    /// The packet is a fragment, or its protocol is not TCP, UDP or ICMP.
    NotChecked,
}

/// Verifies the transport checksum of an IPv4 or IPv6 packet. Bytes after the IP length are ignored,
/// and for UDP those after the UDP length.
///
/// # Errors
/// [`ParseError`] when the IP or the transport header is broken.
pub fn verify_l4(packet: &[u8]) -> Result<L4Checksum, ParseError> {
    if packet.first().is_some_and(|byte| byte >> 4 == 6) {
        let ip = Ipv6::parse(packet)?;
        let upper = ip.upper_layer()?;
        if upper.is_fragment() {
            return Ok(L4Checksum::NotChecked);
        }
        let segment = packet.get(upper.offset..ip.packet_len()).unwrap_or_default();
        verify_segment(upper.protocol, segment, |length| {
            pseudo_header_v6(ip.source_u128(), ip.destination_u128(), upper.protocol, length)
        })
    } else {
        let ip = Ipv4::parse(packet)?;
        // ICMPv6 is no protocol of IPv4, and the other way round.
        if ip.is_fragment() || ip.protocol() == protocol::ICMPV6 {
            return Ok(L4Checksum::NotChecked);
        }
        verify_segment(ip.protocol(), ip.payload(), |length| {
            u64::from(ip.source_u32())
                + u64::from(ip.destination_u32())
                + u64::from(ip.protocol())
                + u64::from(length)
        })
    }
}

fn verify_segment(
    protocol: u8,
    segment: &[u8],
    pseudo: impl Fn(u32) -> u64,
) -> Result<L4Checksum, ParseError> {
    let length = |segment: &[u8]| u32::try_from(segment.len()).unwrap_or(u32::MAX);
    let (segment, pseudo) = match protocol {
        protocol::UDP => {
            let udp = Udp::parse(segment)?;
            if udp.checksum() == 0 {
                return Ok(L4Checksum::Absent);
            }
            (udp.datagram(), pseudo(u32::from(udp.length())))
        }
        protocol::TCP => {
            Tcp::parse(segment)?;
            (segment, pseudo(length(segment)))
        }
        protocol::ICMP => {
            Icmpv4::parse(segment)?;
            (segment, 0)
        }
        protocol::ICMPV6 => {
            Icmpv6::parse(segment)?;
            (segment, pseudo(length(segment)))
        }
        _ => return Ok(L4Checksum::NotChecked),
    };
    let right = fold(sum(segment, pseudo)) == 0xffff;
    Ok(if right { L4Checksum::Correct } else { L4Checksum::Wrong })
}

#[cfg(test)]
#[path = "checksum_tests.rs"]
mod tests;
