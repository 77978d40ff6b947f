//! UDP (RFC 768).
//!
//! ```text
//!  0             2                  4        6          8
//! +-------------+------------------+--------+----------+---------
//! | source port | destination port | length | checksum | payload
//! +-------------+------------------+--------+----------+---------
//! ```

use super::checksum;
use super::{Header, ParseError, fixed, fixed_mut, get_u16, put};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Place of the checksum, in bytes from the start of the header.
pub const CHECKSUM_OFFSET: usize = 6;

const SOURCE_PORT: usize = 0;
const DESTINATION_PORT: usize = 2;
const LENGTH: usize = 4;
const CHECKSUM: usize = CHECKSUM_OFFSET;

const N: usize = HEADER_LEN;

/// A datagram: header and payload, without any padding after them.
#[derive(Debug, Clone, Copy)]
pub struct Udp<'a> {
    header: &'a [u8; N],
    datagram: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Views the start of `segment`, an IP payload. The checksum is not looked at.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes; [`ParseError::BadTotalLength`] when the
    /// length is less than the header's or more than `segment` has.
    #[inline]
    pub fn parse(segment: &'a [u8]) -> Result<Self, ParseError> {
        let header: &[u8; N] = fixed(segment, Header::Udp)?;
        let length = usize::from(get_u16::<LENGTH, N>(header));
        match segment.get(..length) {
            Some(datagram) if length >= HEADER_LEN => Ok(Self { header, datagram }),
            _ => Err(ParseError::bad_total_length(Header::Udp, length, HEADER_LEN, segment.len())),
        }
    }

    /// Views the start of a datagram that is not all there: quoted by an ICMP error, or the first of
    /// several fragments. The payload is what there is of it.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes; [`ParseError::BadTotalLength`] when the
    /// length is less than the header's.
    #[inline]
    pub fn parse_quoted(segment: &'a [u8]) -> Result<Self, ParseError> {
        let header: &[u8; N] = fixed(segment, Header::Udp)?;
        let length = usize::from(get_u16::<LENGTH, N>(header));
        if length < HEADER_LEN {
            let error =
                ParseError::bad_total_length(Header::Udp, length, HEADER_LEN, segment.len());
            return Err(error);
        }
        Ok(Self { header, datagram: segment.get(..length).unwrap_or(segment) })
    }

    /// Port of the sender.
    #[inline]
    #[must_use]
    pub fn source_port(&self) -> u16 {
        get_u16::<SOURCE_PORT, N>(self.header)
    }

    /// Port of the receiver.
    #[inline]
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        get_u16::<DESTINATION_PORT, N>(self.header)
    }

    /// Bytes of header and payload, as the header says.
    #[inline]
    #[must_use]
    pub fn length(&self) -> u16 {
        get_u16::<LENGTH, N>(self.header)
    }

    /// The checksum field; 0 when there is none.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u16 {
        get_u16::<CHECKSUM, N>(self.header)
    }

    /// The bytes after the header, without padding.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.datagram.get(HEADER_LEN..).unwrap_or_default()
    }

    /// Header and payload, without padding.
    #[inline]
    #[must_use]
    pub fn datagram(&self) -> &'a [u8] {
        self.datagram
    }

    /// Is the checksum right? `pseudo` is the pseudo-header's sum with [`Udp::length`] in it. 0, no
    /// checksum, is right here: ask [`Udp::checksum`] where it is not allowed.
    #[inline]
    #[must_use]
    pub fn verify_checksum(&self, pseudo: u64) -> bool {
        self.checksum() == 0 || checksum::fold(checksum::sum(self.datagram, pseudo)) == 0xffff
    }
}

/// A header, to be changed in place. Ports are set without touching the checksum: a rewrite changes
/// several fields, addresses among them, and applies one precomputed difference.
#[derive(Debug)]
pub struct UdpMut<'a> {
    header: &'a mut [u8; N],
}

impl<'a> UdpMut<'a> {
    /// Views the start of `segment`.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes.
    #[inline]
    pub fn new(segment: &'a mut [u8]) -> Result<Self, ParseError> {
        Ok(Self { header: fixed_mut(segment, Header::Udp)? })
    }

    /// Sets the port of the sender.
    #[inline]
    pub fn set_source_port(&mut self, port: u16) {
        put::<SOURCE_PORT, 2, N>(self.header, port.to_be_bytes());
    }

    /// Sets the port of the receiver.
    #[inline]
    pub fn set_destination_port(&mut self, port: u16) {
        put::<DESTINATION_PORT, 2, N>(self.header, port.to_be_bytes());
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

    /// Applies a difference to the checksum; none stays none (see [`checksum::udp_apply`]).
    #[inline]
    pub fn adjust_checksum(&mut self, difference: u64) {
        self.set_checksum(checksum::udp_apply(self.checksum(), difference));
    }
}

/// The values of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpHeader {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// Bytes of header and payload.
    pub length: u16,
    /// Checksum; 0 for none.
    pub checksum: u16,
}

impl UdpHeader {
    /// Writes all of a header.
    #[inline]
    pub fn write(&self, buf: &mut [u8; HEADER_LEN]) {
        put::<SOURCE_PORT, 2, N>(buf, self.source_port.to_be_bytes());
        put::<DESTINATION_PORT, 2, N>(buf, self.destination_port.to_be_bytes());
        put::<LENGTH, 2, N>(buf, self.length.to_be_bytes());
        put::<CHECKSUM, 2, N>(buf, self.checksum.to_be_bytes());
    }
}
