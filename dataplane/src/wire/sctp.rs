//! SCTP (RFC 9260 section 3): the common header, and what the first chunk is.
//!
//! ```text
//!  0             2                  4                  8          12     13      14       16
//! +-------------+------------------+------------------+----------+------+-------+--------+-------
//! | source port | destination port | verification tag | checksum | type | flags | length | value
//! +-------------+------------------+------------------+----------+------+-------+--------+-------
//! ```
//!
//! The checksum is a CRC-32C over the packet with the field 0, lowest byte first; no address is in
//! it, so only a rewritten port changes it.

use super::crc32c;
use super::{Header, ParseError, fixed, fixed_mut, get, get_u16, get_u32, put};

/// Bytes of the common header.
pub const HEADER_LEN: usize = 12;
/// Bytes of a chunk's header.
pub const CHUNK_HEADER_LEN: usize = 4;

/// Chunk types (RFC 9260 section 3.2).
pub mod chunk {
    /// User data.
    pub const DATA: u8 = 0;
    /// Begins an association.
    pub const INIT: u8 = 1;
    /// Answers an INIT.
    pub const INIT_ACK: u8 = 2;
    /// Ends an association at once.
    pub const ABORT: u8 = 6;
    /// Begins to end an association.
    pub const SHUTDOWN: u8 = 7;
    /// Answers a SHUTDOWN.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Third step of the handshake.
    pub const COOKIE_ECHO: u8 = 10;
    /// Last step of the handshake.
    pub const COOKIE_ACK: u8 = 11;
    /// Last step of the end.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

const SOURCE_PORT: usize = 0;
const DESTINATION_PORT: usize = 2;
const TAG: usize = 4;
const CHECKSUM: usize = 8;

const N: usize = HEADER_LEN;

/// The header of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its type, see [`chunk`].
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Bytes of it, this header included, without padding.
    pub length: u16,
}

/// A packet: common header and chunks.
#[derive(Debug, Clone, Copy)]
pub struct Sctp<'a> {
    header: &'a [u8; N],
    packet: &'a [u8],
}

impl<'a> Sctp<'a> {
    /// Views `segment`, an IP payload without padding. The checksum is not looked at.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes.
    #[inline]
    pub fn parse(segment: &'a [u8]) -> Result<Self, ParseError> {
        Ok(Self { header: fixed(segment, Header::Sctp)?, packet: segment })
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

    /// The verification tag; 0 in a packet with an INIT.
    #[inline]
    #[must_use]
    pub fn verification_tag(&self) -> u32 {
        get_u32::<TAG, N>(self.header)
    }

    /// The checksum field.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u32 {
        u32::from_le_bytes(get::<CHECKSUM, 4, N>(self.header))
    }

    /// The chunks, with their padding.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.packet.get(HEADER_LEN..).unwrap_or_default()
    }

    /// The header of the first chunk; none when it is not all there, or says that it is shorter
    /// than this header or longer than the packet.
    #[inline]
    #[must_use]
    pub fn first_chunk(&self) -> Option<Chunk> {
        let payload = self.payload();
        let [kind, flags, high, low] = *payload.first_chunk::<CHUNK_HEADER_LEN>()?;
        let length = u16::from_be_bytes([high, low]);
        let fits = (CHUNK_HEADER_LEN..=payload.len()).contains(&usize::from(length));
        fits.then_some(Chunk { kind, flags, length })
    }

    /// The checksum that the packet should have.
    #[must_use]
    pub fn compute_checksum(&self) -> u32 {
        let front = self.header.first_chunk::<CHECKSUM>().map_or(&[][..], |front| front);
        crc32c::crc32c(&[front, &[0; 4], self.payload()])
    }

    /// Is the checksum right?
    #[must_use]
    pub fn verify_checksum(&self) -> bool {
        self.checksum() == self.compute_checksum()
    }
}

/// What a rewrite of ports does to the checksum of a packet, but for its length: to be computed once
/// for a flow and given to [`SctpMut::adjust_checksum`]. Differences of several rewrites add up by
/// exclusive or.
#[must_use]
pub fn ports_difference(old: (u16, u16), new: (u16, u16)) -> u32 {
    let [a, b] = (old.0 ^ new.0).to_be_bytes();
    let [c, d] = (old.1 ^ new.1).to_be_bytes();
    crc32c::difference([a, b, c, d], 0)
}

/// A common header, to be changed in place. Ports are set without touching the checksum.
#[derive(Debug)]
pub struct SctpMut<'a> {
    header: &'a mut [u8; N],
}

impl<'a> SctpMut<'a> {
    /// Views the start of `segment`.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes.
    #[inline]
    pub fn new(segment: &'a mut [u8]) -> Result<Self, ParseError> {
        Ok(Self { header: fixed_mut(segment, Header::Sctp)? })
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
    pub fn checksum(&self) -> u32 {
        u32::from_le_bytes(get::<CHECKSUM, 4, N>(self.header))
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u32) {
        put::<CHECKSUM, 4, N>(self.header, checksum.to_le_bytes());
    }

    /// Applies a [`ports_difference`] to the checksum of a packet of `length` bytes, common header
    /// and chunks with their padding. A wrong checksum stays wrong. Of a first
    /// fragment the length is that of the whole packet, too.
    #[inline]
    pub fn adjust_checksum(&mut self, difference: u32, length: u16) {
        const PORTS_LEN: u16 = 4;
        let behind = length.saturating_sub(PORTS_LEN);
        self.set_checksum(self.checksum() ^ crc32c::moved(difference, behind));
    }
}

/// The values of a common header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SctpHeader {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// Verification tag.
    pub verification_tag: u32,
    /// Checksum.
    pub checksum: u32,
}

impl SctpHeader {
    /// Writes all of a header.
    #[inline]
    pub fn write(&self, buf: &mut [u8; HEADER_LEN]) {
        put::<SOURCE_PORT, 2, N>(buf, self.source_port.to_be_bytes());
        put::<DESTINATION_PORT, 2, N>(buf, self.destination_port.to_be_bytes());
        put::<TAG, 4, N>(buf, self.verification_tag.to_be_bytes());
        put::<CHECKSUM, 4, N>(buf, self.checksum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An INIT of 20 bytes without parameters, and no checksum.
    const BYTES: [u8; 32] = [
        0x30, 0x39, 0x17, 0xc1, 0, 0, 0, 0, 0, 0, 0, 0, // common header, without checksum
        1, 0, 0, 20, 0xde, 0xad, 0xbe, 0xef, 0, 1, 0, 0, 0, 10, 0xff, 0xff, 1, 2, 3, 4,
    ];
    const HEADER: SctpHeader =
        SctpHeader { source_port: 12345, destination_port: 6081, verification_tag: 0, checksum: 0 };

    fn values(view: &Sctp<'_>) -> SctpHeader {
        SctpHeader {
            source_port: view.source_port(),
            destination_port: view.destination_port(),
            verification_tag: view.verification_tag(),
            checksum: view.checksum(),
        }
    }

    /// The checksum by division, a bit at a time: bits of each byte lowest first, the register all
    /// ones at first and inverted at last (RFC 9260 appendix A).
    fn by_division(packet: &[u8]) -> u32 {
        let mut register = !0_u32;
        for byte in packet {
            for bit in 0..8 {
                let out = register & 1 ^ u32::from(byte >> bit & 1);
                register = register >> 1 ^ if out == 1 { 0x82f6_3b78 } else { 0 };
            }
        }
        !register
    }

    #[test]
    fn known_bytes_are_read() {
        let view = Sctp::parse(&BYTES).unwrap();
        assert_eq!(values(&view), HEADER);
        assert_eq!(view.payload(), &BYTES[12..]);
        let first = Chunk { kind: chunk::INIT, flags: 0, length: 20 };
        assert_eq!(view.first_chunk(), Some(first));
        assert!(!view.verify_checksum());
        let mut bytes = BYTES;
        SctpMut::new(&mut bytes).unwrap().set_checksum(by_division(&BYTES));
        assert!(Sctp::parse(&bytes).unwrap().verify_checksum());
        // Lowest byte first.
        assert_eq!(bytes[8..12], by_division(&BYTES).to_le_bytes());
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
        for have in 0..12_u16 {
            let short = &BYTES[..usize::from(have)];
            let wanted = ParseError::Truncated { header: Header::Sctp, need: 12, have };
            assert_eq!(Sctp::parse(short).unwrap_err(), wanted);
            assert_eq!(SctpMut::new(&mut short.to_vec()).unwrap_err(), wanted);
        }
    }

    #[test]
    fn a_chunk_that_cannot_be_is_none() {
        for length in 12..16 {
            assert_eq!(Sctp::parse(&BYTES[..length]).unwrap().first_chunk(), None);
        }
        for length in (0..4).chain(21..30) {
            let mut bytes = BYTES;
            bytes[15] = length;
            assert_eq!(Sctp::parse(&bytes).unwrap().first_chunk(), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            source_port: u16, destination_port: u16, verification_tag: u32, checksum: u32
        ) {
            let header = SctpHeader { source_port, destination_port, verification_tag, checksum };
            let mut buf = [0xff; HEADER_LEN];
            header.write(&mut buf);
            prop_assert_eq!(values(&Sctp::parse(&buf).unwrap()), header);
        }

        #[test]
        fn noise_is_read_without_harm(noise in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(view) = Sctp::parse(&noise) {
                let _ = (values(&view), view.verify_checksum());
                if let Some(first) = view.first_chunk() {
                    prop_assert!(usize::from(first.length) <= view.payload().len());
                }
            }
        }

        #[test]
        fn rewritten_ports_keep_a_right_checksum_right_and_a_wrong_one_wrong(
            from: (u16, u16), to: (u16, u16), tag: u32,
            chunks in prop::collection::vec(any::<u8>(), 0..200),
            broken in 0_u32..2,
        ) {
            let mut packet = vec![0; HEADER_LEN];
            let (source_port, destination_port) = from;
            SctpHeader { source_port, destination_port, verification_tag: tag, checksum: 0 }
                .write(packet.first_chunk_mut().unwrap());
            packet.extend(chunks);
            let checksum = by_division(&packet);
            prop_assert_eq!(Sctp::parse(&packet).unwrap().compute_checksum(), checksum);
            let length = u16::try_from(packet.len()).unwrap();
            let mut header = SctpMut::new(&mut packet).unwrap();
            header.set_checksum(checksum ^ broken);
            header.set_source_port(to.0);
            header.set_destination_port(to.1);
            header.adjust_checksum(ports_difference(from, to), length);
            let view = Sctp::parse(&packet).unwrap();
            prop_assert_eq!(view.checksum() ^ broken, view.compute_checksum());
            prop_assert_eq!(view.verify_checksum(), broken == 0);
        }
    }
}
