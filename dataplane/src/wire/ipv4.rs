//! IPv4 (RFC 791 section 3.1).
//!
//! ```text
//!  0      1     2        4     6            8    9       10         12       16            20
//! +------+-----+--------+-----+------------+----+-------+----------+--------+-------------+---------
//! | V IHL| TOS | length | id  | flags, off | TTL| proto | checksum | source | destination | options
//! +------+-----+--------+-----+------------+----+-------+----------+--------+-------------+---------
//! ```

use std::net::Ipv4Addr;
use std::ops::Range;

use super::checksum;
use super::ecn::Ecn;
use super::{Header, ParseError, fixed, fixed_mut, get_u16, get_u32, put};

/// Bytes of a header without options.
pub const MIN_HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub const MAX_HEADER_LEN: usize = 60;

const VERSION_IHL: usize = 0;
const TOS: usize = 1;
const TOTAL_LEN: usize = 2;
const IDENTIFICATION: usize = 4;
const FRAGMENT: usize = 6;
const TTL: usize = 8;
const PROTOCOL: usize = 9;
const CHECKSUM: usize = 10;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;

const N: usize = MIN_HEADER_LEN;

/// Flag of the fragment field: do not fragment.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Flag of the fragment field: not the last fragment.
pub const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// A packet: header, options and payload, without any padding after them.
#[derive(Debug, Clone, Copy)]
pub struct Ipv4<'a> {
    header: &'a [u8; N],
    packet: &'a [u8],
    header_len: usize,
}

impl<'a> Ipv4<'a> {
    /// Views the packet at the start of `bytes`. The checksum is not looked at: see
    /// [`Ipv4::verify_checksum`].
    ///
    /// # Errors
    /// [`ParseError::Truncated`] when the header does not fit; [`ParseError::BadVersion`] unless 4;
    /// [`ParseError::BadHeaderLength`] below 5 words; [`ParseError::BadTotalLength`] when the total
    /// length is less than the header's or more than `bytes` has.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, header_len) = checked_header(bytes)?;
        let total_len = usize::from(get_u16::<TOTAL_LEN, N>(header));
        match bytes.get(..total_len) {
            Some(packet) if total_len >= header_len => Ok(Self { header, packet, header_len }),
            _ => {
                Err(ParseError::bad_total_length(Header::Ipv4, total_len, header_len, bytes.len()))
            }
        }
    }

    /// Views the start of a packet that an ICMP error quotes: as [`Ipv4::parse`], but the total length
    /// may be more than what is there. The payload is what there is of it.
    ///
    /// # Errors
    /// As [`Ipv4::parse`].
    #[inline]
    pub fn parse_quoted(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, header_len) = checked_header(bytes)?;
        let total_len = usize::from(get_u16::<TOTAL_LEN, N>(header));
        if total_len < header_len {
            let error =
                ParseError::bad_total_length(Header::Ipv4, total_len, header_len, bytes.len());
            return Err(error);
        }
        let packet = bytes.get(..total_len).unwrap_or(bytes);
        Ok(Self { header, packet, header_len })
    }

    /// Bytes of the header with its options, 20 to 60.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Has the header options?
    #[inline]
    #[must_use]
    pub fn has_options(&self) -> bool {
        self.header_len != MIN_HEADER_LEN
    }

    /// The options and their padding, 0 to 40 bytes.
    #[inline]
    #[must_use]
    pub fn options(&self) -> &'a [u8] {
        self.packet.get(MIN_HEADER_LEN..self.header_len).unwrap_or_default()
    }

    /// Bytes of header and payload, as the header says.
    #[inline]
    #[must_use]
    pub fn total_len(&self) -> u16 {
        get_u16::<TOTAL_LEN, N>(self.header)
    }

    /// Type of service: DSCP and ECN.
    #[inline]
    #[must_use]
    pub fn tos(&self) -> u8 {
        self.header[TOS]
    }

    /// Differentiated services codepoint, 0 to 63 (RFC 2474).
    #[inline]
    #[must_use]
    pub fn dscp(&self) -> u8 {
        self.header[TOS] >> 2
    }

    /// Congestion notification.
    #[inline]
    #[must_use]
    pub fn ecn(&self) -> Ecn {
        Ecn::from_tos(self.header[TOS])
    }

    /// Names the packet that fragments belong to; without meaning in a whole packet (RFC 6864).
    #[inline]
    #[must_use]
    pub fn identification(&self) -> u16 {
        get_u16::<IDENTIFICATION, N>(self.header)
    }

    /// May routers not fragment this packet?
    #[inline]
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        get_u16::<FRAGMENT, N>(self.header) & DONT_FRAGMENT != 0
    }

    /// Do more fragments follow this one?
    #[inline]
    #[must_use]
    pub fn more_fragments(&self) -> bool {
        get_u16::<FRAGMENT, N>(self.header) & MORE_FRAGMENTS != 0
    }

    /// Place of this fragment's payload, in units of 8 bytes.
    #[inline]
    #[must_use]
    pub fn fragment_offset(&self) -> u16 {
        get_u16::<FRAGMENT, N>(self.header) & OFFSET_MASK
    }

    /// Is this only a part of a packet?
    #[inline]
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        get_u16::<FRAGMENT, N>(self.header) & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Is this the part with the transport header, and not the whole packet?
    #[inline]
    #[must_use]
    pub fn is_first_fragment(&self) -> bool {
        get_u16::<FRAGMENT, N>(self.header) & (MORE_FRAGMENTS | OFFSET_MASK) == MORE_FRAGMENTS
    }

    /// Is this a part without the transport header?
    #[inline]
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment_offset() != 0
    }

    /// Hops that are left.
    #[inline]
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.header[TTL]
    }

    /// What the payload is: see [`super::protocol`].
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.header[PROTOCOL]
    }

    /// The checksum field.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u16 {
        get_u16::<CHECKSUM, N>(self.header)
    }

    /// Address of the sender.
    #[inline]
    #[must_use]
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.source_u32())
    }

    /// Address of the receiver.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.destination_u32())
    }

    /// Address of the sender as a number: 10.0.0.1 is 0x0a000001.
    #[inline]
    #[must_use]
    pub fn source_u32(&self) -> u32 {
        get_u32::<SOURCE, N>(self.header)
    }

    /// Address of the receiver as a number: 10.0.0.1 is 0x0a000001.
    #[inline]
    #[must_use]
    pub fn destination_u32(&self) -> u32 {
        get_u32::<DESTINATION, N>(self.header)
    }

    /// Where the payload is in the bytes that were parsed.
    #[inline]
    #[must_use]
    pub fn payload_range(&self) -> Range<usize> {
        self.header_len..self.packet.len()
    }

    /// The bytes after header and options, without padding.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.packet.get(self.header_len..).unwrap_or_default()
    }

    /// Header and payload, without padding.
    #[inline]
    #[must_use]
    pub fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// Is the header's checksum right?
    #[inline]
    #[must_use]
    pub fn verify_checksum(&self) -> bool {
        if self.header_len == MIN_HEADER_LEN {
            checksum::native_fold_20(self.header) == 0xffff
        } else {
            self.verify_with_options()
        }
    }

    #[cold]
    fn verify_with_options(&self) -> bool {
        let header = self.packet.get(..self.header_len).unwrap_or_default();
        checksum::fold(checksum::sum(header, 0)) == 0xffff
    }
}

/// The fixed part of the header and the length of all of it.
#[inline]
fn checked_header(bytes: &[u8]) -> Result<(&[u8; N], usize), ParseError> {
    let header: &[u8; N] = fixed(bytes, Header::Ipv4)?;
    let [first, ..] = *header;
    if first == 0x45 {
        return Ok((header, MIN_HEADER_LEN));
    }
    if first >> 4 != 4 {
        return Err(ParseError::BadVersion { header: Header::Ipv4, found: first >> 4 });
    }
    header_with_options(header, bytes)
}

/// The same for a header that has options, or is broken.
#[cold]
fn header_with_options<'a>(
    header: &'a [u8; N],
    bytes: &[u8],
) -> Result<(&'a [u8; N], usize), ParseError> {
    let header_len = usize::from(header[VERSION_IHL] & 0x0f) * 4;
    if header_len < MIN_HEADER_LEN {
        return Err(ParseError::bad_header_length(Header::Ipv4, header_len, MIN_HEADER_LEN));
    }
    if header_len > bytes.len() {
        return Err(ParseError::truncated(Header::Ipv4, header_len, bytes.len()));
    }
    Ok((header, header_len))
}

/// The fixed part of a header, to be changed in place. Setters leave the checksum alone unless they
/// say otherwise: a rewrite changes several fields and applies one precomputed difference.
#[derive(Debug)]
pub struct Ipv4Mut<'a> {
    header: &'a mut [u8; N],
}

impl<'a> Ipv4Mut<'a> {
    /// Views the start of `packet`, which must have been parsed before: only the length is checked.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`MIN_HEADER_LEN`] bytes.
    #[inline]
    pub fn new(packet: &'a mut [u8]) -> Result<Self, ParseError> {
        Ok(Self { header: fixed_mut(packet, Header::Ipv4)? })
    }

    /// Sets header and payload length, in bytes.
    #[inline]
    pub fn set_total_len(&mut self, total_len: u16) {
        put::<TOTAL_LEN, 2, N>(self.header, total_len.to_be_bytes());
    }

    /// Sets the identification.
    #[inline]
    pub fn set_identification(&mut self, identification: u16) {
        put::<IDENTIFICATION, 2, N>(self.header, identification.to_be_bytes());
    }

    /// Sets the address of the sender.
    #[inline]
    pub fn set_source(&mut self, source: impl Into<u32>) {
        put::<SOURCE, 4, N>(self.header, source.into().to_be_bytes());
    }

    /// Sets the address of the receiver.
    #[inline]
    pub fn set_destination(&mut self, destination: impl Into<u32>) {
        put::<DESTINATION, 4, N>(self.header, destination.into().to_be_bytes());
    }

    /// The checksum field.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u16 {
        get_u16::<CHECKSUM, N>(self.header)
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        put::<CHECKSUM, 2, N>(self.header, checksum.to_be_bytes());
    }

    /// Applies a difference to the checksum (see [`checksum::apply`]).
    #[inline]
    pub fn adjust_checksum(&mut self, difference: u64) {
        self.set_checksum(checksum::apply(self.checksum(), difference));
    }

    /// Sets the ECN bits and updates the checksum (RFC 1624).
    #[inline]
    pub fn set_ecn(&mut self, ecn: Ecn) {
        let old = self.header[TOS];
        let new = (old & !0b11) | ecn.bits();
        self.adjust_checksum(checksum::difference16(u16::from(old), u16::from(new)));
        self.header[TOS] = new;
    }
}

/// Writes both addresses (host order), and adds `difference` to the checksum: what it changes by,
/// see [`checksum::apply`].
#[inline]
pub fn translate(
    header: &mut [u8; MIN_HEADER_LEN],
    source: u32,
    destination: u32,
    difference: u16,
) {
    put::<SOURCE, 4, N>(header, source.to_be_bytes());
    put::<DESTINATION, 4, N>(header, destination.to_be_bytes());
    let checksum = checksum::apply(get_u16::<CHECKSUM, N>(header), u64::from(difference));
    put::<CHECKSUM, 2, N>(header, checksum.to_be_bytes());
}

/// Writes an identification, and updates the checksum.
#[inline]
pub fn set_identification(header: &mut [u8; MIN_HEADER_LEN], identification: u16) {
    let old = get_u16::<IDENTIFICATION, N>(header);
    put::<IDENTIFICATION, 2, N>(header, identification.to_be_bytes());
    let difference = checksum::difference16(old, identification);
    let checksum = checksum::apply(get_u16::<CHECKSUM, N>(header), difference);
    put::<CHECKSUM, 2, N>(header, checksum.to_be_bytes());
}

/// Writes `ttl`, which must be one less than what is there, and updates the checksum.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the carry is added before it is cut off")]
pub fn lower_ttl(header: &mut [u8; MIN_HEADER_LEN], ttl: u8) {
    header[TTL] = ttl;
    // TTL is the high byte of its word, so the word falls by 0x100 and the checksum rises by as
    // much, the carry of ones' complement included (RFC 1141). As this machine reads the words:
    // the sum does not care (RFC 1071 section 2 B).
    let sum = u32::from(get_u16::<CHECKSUM, N>(header).to_be()) + u32::from(0x0100_u16.to_be());
    let checksum = u16::from_be((sum + u32::from(sum >= 0xffff)) as u16);
    put::<CHECKSUM, 2, N>(header, checksum.to_be_bytes());
}

/// Sets the ECN bits of the packet and updates its checksum. Returns `false`, with nothing changed,
/// when `packet` is shorter than a header.
#[inline]
pub fn set_ecn(packet: &mut [u8], ecn: Ecn) -> bool {
    Ipv4Mut::new(packet).map(|mut header| header.set_ecn(ecn)).is_ok()
}

/// The values of a header without options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Header {
    /// Type of service: DSCP in the upper six bits, ECN in the lower two.
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_len: u16,
    /// Names the packet when it is fragmented.
    pub identification: u16,
    /// [`DONT_FRAGMENT`], [`MORE_FRAGMENTS`] and, below them, the offset in units of 8 bytes.
    pub fragment: u16,
    /// Hops that are left.
    pub ttl: u8,
    /// What the payload is: see [`super::protocol`].
    pub protocol: u8,
    /// Address of the sender.
    pub source: Ipv4Addr,
    /// Address of the receiver.
    pub destination: Ipv4Addr,
}

impl Ipv4Header {
    /// Writes all of a 20-byte header, its checksum included.
    #[inline]
    pub fn write(&self, buf: &mut [u8; MIN_HEADER_LEN]) {
        // Summed from the values: reading back what was just written, in other widths, would wait for
        // the stores.
        let [first, lifetime] =
            [[0x45, self.tos], [self.ttl, self.protocol]].map(u16::from_be_bytes);
        let words = [first, self.total_len, self.identification, self.fragment, lifetime];
        let sum = words.into_iter().map(u64::from).sum::<u64>()
            + u64::from(self.source.to_bits())
            + u64::from(self.destination.to_bits());
        put::<VERSION_IHL, 2, N>(buf, first.to_be_bytes());
        put::<TOTAL_LEN, 2, N>(buf, self.total_len.to_be_bytes());
        put::<IDENTIFICATION, 2, N>(buf, self.identification.to_be_bytes());
        put::<FRAGMENT, 2, N>(buf, self.fragment.to_be_bytes());
        put::<TTL, 2, N>(buf, lifetime.to_be_bytes());
        put::<CHECKSUM, 2, N>(buf, checksum::finish(sum).to_be_bytes());
        put::<SOURCE, 4, N>(buf, self.source.octets());
        put::<DESTINATION, 4, N>(buf, self.destination.octets());
    }
}

#[cfg(test)]
#[path = "ipv4_tests.rs"]
mod tests;
