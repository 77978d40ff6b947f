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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: [u8; 12] = [0x30, 0x39, 0x17, 0xc1, 0, 10, 0xab, 0xcd, 0xaa, 0xbb, 0xee, 0xee];
    const HEADER: UdpHeader =
        UdpHeader { source_port: 12345, destination_port: 6081, length: 10, checksum: 0xabcd };

    fn values(view: &Udp<'_>) -> UdpHeader {
        UdpHeader {
            source_port: view.source_port(),
            destination_port: view.destination_port(),
            length: view.length(),
            checksum: view.checksum(),
        }
    }

    #[test]
    fn known_bytes_are_read() {
        let view = Udp::parse(&BYTES).unwrap();
        assert_eq!(values(&view), HEADER);
        assert_eq!((view.payload(), view.datagram()), (&[0xaa, 0xbb][..], &BYTES[..10]));
    }

    #[test]
    fn written_bytes_do_not_depend_on_the_buffer() {
        for dirt in [0x00, 0xff] {
            let mut buf = [dirt; HEADER_LEN];
            HEADER.write(&mut buf);
            assert_eq!(buf, BYTES[..HEADER_LEN]);
        }
    }

    #[test]
    fn too_short_is_an_error_at_each_length() {
        for length in 0..10 {
            let have = u16::try_from(length).unwrap();
            let wanted = if length < 8 {
                ParseError::Truncated { header: Header::Udp, need: 8, have }
            } else {
                ParseError::BadTotalLength { header: Header::Udp, length: 10, minimum: 8, have }
            };
            assert_eq!(Udp::parse(&BYTES[..length]).unwrap_err(), wanted);
            let quoted = Udp::parse_quoted(&BYTES[..length]).map(|view| view.datagram().len());
            assert_eq!(quoted.ok(), (length >= 8).then_some(length));
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in (0..8).chain(13..20) {
            let mut bytes = BYTES;
            bytes[5] = length;
            let (length, minimum, have) = (u16::from(length), 8, 12);
            let wanted = ParseError::BadTotalLength { header: Header::Udp, length, minimum, have };
            assert_eq!(Udp::parse(&bytes).unwrap_err(), wanted);
            assert_eq!(Udp::parse_quoted(&bytes).is_ok(), length >= 8);
        }
    }

    #[test]
    fn no_checksum_stays_none() {
        let mut bytes = [0; HEADER_LEN];
        let mut header = UdpMut::new(&mut bytes).unwrap();
        header.adjust_checksum(checksum::difference16(1, 2));
        assert_eq!(header.checksum(), 0);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(source_port: u16, destination_port: u16, checksum: u16) {
            let header = UdpHeader { source_port, destination_port, length: 8, checksum };
            let mut buf = [0xff; HEADER_LEN];
            header.write(&mut buf);
            prop_assert_eq!(values(&Udp::parse(&buf).unwrap()), header);
            let (theirs, _) = etherparse::UdpHeader::from_slice(&buf).unwrap();
            prop_assert_eq!(theirs.source_port, source_port);
            prop_assert_eq!(theirs.destination_port, destination_port);
            prop_assert_eq!(theirs.checksum, checksum);
        }

        #[test]
        fn rewritten_ports_keep_the_checksum_right(
            from: [u16; 2], to: [u16; 2], payload in prop::collection::vec(any::<u8>(), 0..64),
            pseudo in 1_u64..0x1_0000_0000,
        ) {
            let length = u16::try_from(HEADER_LEN + payload.len()).unwrap();
            let mut datagram = vec![0; HEADER_LEN];
            UdpHeader { source_port: from[0], destination_port: from[1], length, checksum: 0 }
                .write(datagram.first_chunk_mut().unwrap());
            datagram.extend(payload);
            prop_assert!(checksum::compute(&mut datagram, CHECKSUM_OFFSET, pseudo));
            prop_assert!(Udp::parse(&datagram).unwrap().verify_checksum(pseudo));
            let mut header = UdpMut::new(&mut datagram).unwrap();
            header.set_source_port(to[0]);
            header.set_destination_port(to[1]);
            header.adjust_checksum(
                checksum::difference16(from[0], to[0]) + checksum::difference16(from[1], to[1]),
            );
            let rewritten = datagram.clone();
            prop_assert!(Udp::parse(&rewritten).unwrap().verify_checksum(pseudo));
            prop_assert!(checksum::compute(&mut datagram, CHECKSUM_OFFSET, pseudo));
            prop_assert_eq!(rewritten, datagram);
        }
    }
}
