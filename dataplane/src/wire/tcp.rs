//! TCP (RFC 9293 section 3.1).
//!
//! ```text
//!  0      2      4          8       12       13      14       16         18       20
//! +------+------+----------+-------+--------+-------+--------+----------+--------+---------
//! | sport| dport| sequence | ack   | offset | flags | window | checksum | urgent | options
//! +------+------+----------+-------+--------+-------+--------+----------+--------+---------
//! ```

use super::checksum;
use super::{Header, ParseError, fixed, fixed_mut, get_u16, get_u32, put};

/// Bytes of a header without options.
pub const MIN_HEADER_LEN: usize = 20;
/// Place of the checksum, in bytes from the start of the header.
pub const CHECKSUM_OFFSET: usize = 16;

/// Flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag: reset the connection.
pub const RST: u8 = 0x04;
/// Flag: push.
pub const PSH: u8 = 0x08;
/// Flag: the acknowledgment field counts.
pub const ACK: u8 = 0x10;
/// Flag: the urgent pointer counts.
pub const URG: u8 = 0x20;
/// Flag: ECN echo (RFC 3168 section 6.1).
pub const ECE: u8 = 0x40;
/// Flag: congestion window reduced (RFC 3168 section 6.1).
pub const CWR: u8 = 0x80;

const SOURCE_PORT: usize = 0;
const DESTINATION_PORT: usize = 2;
const SEQUENCE: usize = 4;
const ACKNOWLEDGMENT: usize = 8;
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const WINDOW: usize = 14;
const CHECKSUM: usize = CHECKSUM_OFFSET;
const URGENT: usize = 18;

const N: usize = MIN_HEADER_LEN;

/// A segment: header, options and payload.
#[derive(Debug, Clone, Copy)]
pub struct Tcp<'a> {
    header: &'a [u8; N],
    segment: &'a [u8],
    header_len: usize,
}

impl<'a> Tcp<'a> {
    /// Views `segment`, an IP payload without padding. The checksum is not looked at.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] when header and options do not fit;
    /// [`ParseError::BadHeaderLength`] for a data offset below 5 words.
    #[inline]
    pub fn parse(segment: &'a [u8]) -> Result<Self, ParseError> {
        let header: &[u8; N] = fixed(segment, Header::Tcp)?;
        let header_len = usize::from(header[DATA_OFFSET] >> 4) * 4;
        if header_len < MIN_HEADER_LEN {
            return Err(ParseError::bad_header_length(Header::Tcp, header_len, MIN_HEADER_LEN));
        }
        if header_len > segment.len() {
            return Err(ParseError::truncated(Header::Tcp, header_len, segment.len()));
        }
        Ok(Self { header, segment, header_len })
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

    /// Sequence number of the first byte.
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> u32 {
        get_u32::<SEQUENCE, N>(self.header)
    }

    /// Next sequence number that the sender expects.
    #[inline]
    #[must_use]
    pub fn acknowledgment(&self) -> u32 {
        get_u32::<ACKNOWLEDGMENT, N>(self.header)
    }

    /// Bytes of header and options, 20 to 60: the data offset field times 4.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// All flags: see [`SYN`] and its like.
    #[inline]
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.header[FLAGS]
    }

    /// Receive window, not scaled.
    #[inline]
    #[must_use]
    pub fn window(&self) -> u16 {
        get_u16::<WINDOW, N>(self.header)
    }

    /// The checksum field.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u16 {
        get_u16::<CHECKSUM, N>(self.header)
    }

    /// The urgent pointer.
    #[inline]
    #[must_use]
    pub fn urgent(&self) -> u16 {
        get_u16::<URGENT, N>(self.header)
    }

    /// The options and their padding, 0 to 40 bytes.
    #[inline]
    #[must_use]
    pub fn options(&self) -> &'a [u8] {
        self.segment.get(MIN_HEADER_LEN..self.header_len).unwrap_or_default()
    }

    /// The bytes after header and options.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.segment.get(self.header_len..).unwrap_or_default()
    }

    /// Is the checksum right? `pseudo` is the pseudo-header's sum with the segment's length in it.
    #[inline]
    #[must_use]
    pub fn verify_checksum(&self, pseudo: u64) -> bool {
        checksum::fold(checksum::sum(self.segment, pseudo)) == 0xffff
    }
}

/// Source and destination port of a TCP or UDP segment of which maybe only the first bytes are there,
/// as in the quote of an ICMP error (8 bytes, RFC 792).
///
/// # Errors
/// [`ParseError::Truncated`] below 4 bytes.
#[inline]
pub fn ports(segment: &[u8]) -> Result<(u16, u16), ParseError> {
    let start: &[u8; 4] = fixed(segment, Header::Tcp)?;
    Ok((get_u16::<SOURCE_PORT, 4>(start), get_u16::<DESTINATION_PORT, 4>(start)))
}

/// A header, to be changed in place. Ports are set without touching the checksum: a rewrite changes
/// several fields, addresses among them, and applies one precomputed difference.
#[derive(Debug)]
pub struct TcpMut<'a> {
    header: &'a mut [u8; N],
}

impl<'a> TcpMut<'a> {
    /// Views the start of `segment`.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`MIN_HEADER_LEN`] bytes.
    #[inline]
    pub fn new(segment: &'a mut [u8]) -> Result<Self, ParseError> {
        Ok(Self { header: fixed_mut(segment, Header::Tcp)? })
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

    /// Applies a difference to the checksum (see [`checksum::apply`]).
    #[inline]
    pub fn adjust_checksum(&mut self, difference: u64) {
        self.set_checksum(checksum::apply(self.checksum(), difference));
    }
}

/// The values of a header without options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpHeader {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// Next sequence number that the sender expects.
    pub acknowledgment: u32,
    /// Flags: [`SYN`] and its like.
    pub flags: u8,
    /// Receive window.
    pub window: u16,
    /// Checksum; see [`checksum::compute`] for filling it in afterwards.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

impl TcpHeader {
    /// Writes all of a 20-byte header.
    #[inline]
    pub fn write(&self, buf: &mut [u8; MIN_HEADER_LEN]) {
        put::<SOURCE_PORT, 2, N>(buf, self.source_port.to_be_bytes());
        put::<DESTINATION_PORT, 2, N>(buf, self.destination_port.to_be_bytes());
        put::<SEQUENCE, 4, N>(buf, self.sequence.to_be_bytes());
        put::<ACKNOWLEDGMENT, 4, N>(buf, self.acknowledgment.to_be_bytes());
        put::<DATA_OFFSET, 2, N>(buf, [5 << 4, self.flags]);
        put::<WINDOW, 2, N>(buf, self.window.to_be_bytes());
        put::<CHECKSUM, 2, N>(buf, self.checksum.to_be_bytes());
        put::<URGENT, 2, N>(buf, self.urgent.to_be_bytes());
    }
}
