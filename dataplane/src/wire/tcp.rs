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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: [u8; 26] = [
        0x9c, 0x40, 0x01, 0xbb, 1, 2, 3, 4, 5, 6, 7, 8, 0x60, 0x12, 0xfa, 0xf0, 0xab, 0xcd, 0, 9,
        2, 4, 5, 0xb4, 0xaa, 0xbb,
    ];

    fn values(view: &Tcp<'_>) -> TcpHeader {
        TcpHeader {
            source_port: view.source_port(),
            destination_port: view.destination_port(),
            sequence: view.sequence(),
            acknowledgment: view.acknowledgment(),
            flags: view.flags(),
            window: view.window(),
            checksum: view.checksum(),
            urgent: view.urgent(),
        }
    }

    #[test]
    fn known_bytes_are_read_and_written() {
        let view = Tcp::parse(&BYTES).unwrap();
        let header = TcpHeader {
            source_port: 40000,
            destination_port: 443,
            sequence: 0x0102_0304,
            acknowledgment: 0x0506_0708,
            flags: SYN | ACK,
            window: 64240,
            checksum: 0xabcd,
            urgent: 9,
        };
        assert_eq!(values(&view), header);
        assert_eq!((view.header_len(), view.options()), (24, &[2, 4, 5, 0xb4][..]));
        assert_eq!(view.payload(), [0xaa, 0xbb]);
        for dirt in [0x00, 0xff] {
            let mut buf = [dirt; MIN_HEADER_LEN];
            header.write(&mut buf);
            let mut wanted = BYTES;
            wanted[DATA_OFFSET] = 0x50;
            assert_eq!(buf, wanted[..MIN_HEADER_LEN]);
        }
    }

    #[test]
    fn flags_are_single_bits_in_wire_order() {
        let all = [FIN, SYN, RST, PSH, ACK, URG, ECE, CWR];
        assert!(all.iter().enumerate().all(|(bit, flag)| *flag == 1 << bit));
    }

    #[test]
    fn too_short_is_an_error_at_each_length() {
        for length in 0..24 {
            let need = if length < 20 { 20 } else { 24 };
            let have = u16::try_from(length).unwrap();
            let wanted = ParseError::Truncated { header: Header::Tcp, need, have };
            assert_eq!(Tcp::parse(&BYTES[..length]).unwrap_err(), wanted);
            assert_eq!(ports(&BYTES[..length]).ok(), (length >= 4).then_some((40000, 443)));
        }
    }

    #[test]
    fn impossible_data_offsets_are_refused() {
        for words in 0..5 {
            let mut bytes = BYTES;
            bytes[DATA_OFFSET] = words << 4 | 0x0f;
            let length = u16::from(words) * 4;
            let wanted = ParseError::BadHeaderLength { header: Header::Tcp, length, minimum: 20 };
            assert_eq!(Tcp::parse(&bytes).unwrap_err(), wanted);
        }
    }

    #[test]
    fn reserved_bits_are_ignored() {
        let mut bytes = BYTES;
        bytes[DATA_OFFSET] |= 0x0f;
        assert_eq!(Tcp::parse(&bytes).unwrap().header_len(), 24);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_by_us_and_by_etherparse(
            source_port: u16, destination_port: u16, sequence: u32, acknowledgment: u32, flags: u8,
            window: u16, checksum: u16, urgent: u16,
        ) {
            let header = TcpHeader {
                source_port, destination_port, sequence, acknowledgment, flags, window, checksum,
                urgent,
            };
            let mut buf = [0xff; MIN_HEADER_LEN];
            header.write(&mut buf);
            prop_assert_eq!(values(&Tcp::parse(&buf).unwrap()), header);
            let (theirs, _) = etherparse::TcpHeader::from_slice(&buf).unwrap();
            let bytes = theirs.to_bytes();
            prop_assert_eq!(bytes.as_slice(), buf);
            prop_assert_eq!(theirs.sequence_number, sequence);
            prop_assert_eq!(theirs.syn, flags & SYN != 0);
            prop_assert_eq!(theirs.fin, flags & FIN != 0);
            prop_assert_eq!(theirs.cwr, flags & CWR != 0);
            prop_assert_eq!(theirs.window_size, window);
        }

        #[test]
        fn rewritten_ports_keep_the_checksum_right(from: [u16; 2], to: [u16; 2], sequence: u32, pseudo: u32) {
            let mut segment = [0; MIN_HEADER_LEN];
            TcpHeader {
                source_port: from[0], destination_port: from[1], sequence, acknowledgment: 0,
                flags: ACK, window: 1, checksum: 0, urgent: 0,
            }
            .write(&mut segment);
            let pseudo = u64::from(pseudo);
            prop_assert!(checksum::compute(&mut segment, CHECKSUM_OFFSET, pseudo));
            let mut header = TcpMut::new(&mut segment).unwrap();
            header.set_source_port(to[0]);
            header.set_destination_port(to[1]);
            header.adjust_checksum(
                checksum::difference16(from[0], to[0]) + checksum::difference16(from[1], to[1]),
            );
            let view = Tcp::parse(&segment).unwrap();
            prop_assert_eq!((view.source_port(), view.destination_port()), (to[0], to[1]));
            prop_assert!(view.verify_checksum(pseudo));
        }
    }
}
