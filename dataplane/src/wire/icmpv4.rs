//! ICMP for IPv4 (RFC 792): echo and errors.
//!
//! ```text
//!  0      1      2          4                          8
//! +------+------+----------+--------------------------+----------------------------
//! | type | code | checksum | rest: id and sequence, or | payload, or quoted packet
//! |      |      |          | unused and next-hop MTU   |
//! +------+------+----------+--------------------------+----------------------------
//! ```

use super::checksum;
use super::{Header, ParseError, fixed, get_u16, get_u32, put};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Place of the checksum, in bytes from the start of the header.
pub const CHECKSUM_OFFSET: usize = 2;

/// Type: answer to a ping.
pub const ECHO_REPLY: u8 = 0;
/// Type: the destination cannot be reached.
pub const DESTINATION_UNREACHABLE: u8 = 3;
/// Type: slow down (deprecated, RFC 6633).
pub const SOURCE_QUENCH: u8 = 4;
/// Type: use another gateway.
pub const REDIRECT: u8 = 5;
/// Type: ping.
pub const ECHO_REQUEST: u8 = 8;
/// Type: TTL or reassembly time ran out.
pub const TIME_EXCEEDED: u8 = 11;
/// Type: a field of the header is wrong.
pub const PARAMETER_PROBLEM: u8 = 12;

/// Code of [`DESTINATION_UNREACHABLE`]: no route to the network.
pub const CODE_NET_UNREACHABLE: u8 = 0;
/// Code of [`DESTINATION_UNREACHABLE`]: no such host.
pub const CODE_HOST_UNREACHABLE: u8 = 1;
/// Code of [`DESTINATION_UNREACHABLE`]: the host does not know the protocol.
pub const CODE_PROTOCOL_UNREACHABLE: u8 = 2;
/// Code of [`DESTINATION_UNREACHABLE`]: nobody listens on the port.
pub const CODE_PORT_UNREACHABLE: u8 = 3;
/// Code of [`DESTINATION_UNREACHABLE`]: too big, and may not be fragmented (RFC 1191).
pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
/// Code of [`DESTINATION_UNREACHABLE`]: forbidden by an administrator (RFC 1812 section 5.2.7.1).
pub const CODE_ADMIN_PROHIBITED: u8 = 13;
/// Code of [`TIME_EXCEEDED`]: the TTL ran out.
pub const CODE_TTL_EXCEEDED: u8 = 0;

const TYPE: usize = 0;
const CODE: usize = 1;
const CHECKSUM: usize = CHECKSUM_OFFSET;
const REST: usize = 4;
const IDENTIFIER: usize = 4;
const SEQUENCE: usize = 6;
const NEXT_HOP_MTU: usize = 6;

const N: usize = HEADER_LEN;

/// A message.
#[derive(Debug, Clone, Copy)]
pub struct Icmpv4<'a> {
    header: &'a [u8; N],
    message: &'a [u8],
}

impl<'a> Icmpv4<'a> {
    /// Views `message`, an IP payload without padding. The checksum is not looked at.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes.
    #[inline]
    pub fn parse(message: &'a [u8]) -> Result<Self, ParseError> {
        Ok(Self { header: fixed(message, Header::Icmpv4)?, message })
    }

    /// [`ECHO_REQUEST`] and its like.
    #[inline]
    #[must_use]
    pub fn message_type(&self) -> u8 {
        self.header[TYPE]
    }

    /// What it is precisely; depends on the type.
    #[inline]
    #[must_use]
    pub fn code(&self) -> u8 {
        self.header[CODE]
    }

    /// The checksum field.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u16 {
        get_u16::<CHECKSUM, N>(self.header)
    }

    /// The second word of the header; depends on the type.
    #[inline]
    #[must_use]
    pub fn rest(&self) -> u32 {
        get_u32::<REST, N>(self.header)
    }

    /// Identifier of an echo message.
    #[inline]
    #[must_use]
    pub fn identifier(&self) -> u16 {
        get_u16::<IDENTIFIER, N>(self.header)
    }

    /// Sequence number of an echo message.
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> u16 {
        get_u16::<SEQUENCE, N>(self.header)
    }

    /// MTU in bytes of a "fragmentation needed" error; 0 from old routers (RFC 1191 section 4).
    #[inline]
    #[must_use]
    pub fn next_hop_mtu(&self) -> u16 {
        get_u16::<NEXT_HOP_MTU, N>(self.header)
    }

    /// Is this an error, which quotes a packet and must never be answered by another error (RFC 1122
    /// section 3.2.2)?
    #[inline]
    #[must_use]
    pub fn is_error(&self) -> bool {
        is_error(self.message_type())
    }

    /// Is this an echo request or reply, the messages with an identifier?
    #[inline]
    #[must_use]
    pub fn is_echo(&self) -> bool {
        matches!(self.message_type(), ECHO_REQUEST | ECHO_REPLY)
    }

    /// The bytes after the header: an echo's data, or the packet that an error quotes.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.message.get(HEADER_LEN..).unwrap_or_default()
    }

    /// Is the checksum right?
    #[inline]
    #[must_use]
    pub fn verify_checksum(&self) -> bool {
        checksum::fold(checksum::sum(self.message, 0)) == 0xffff
    }
}

/// Is this type one of the errors?
#[inline]
#[must_use]
pub const fn is_error(message_type: u8) -> bool {
    matches!(
        message_type,
        DESTINATION_UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM
    )
}

/// The values of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmpv4Header {
    /// [`ECHO_REQUEST`] and its like.
    pub message_type: u8,
    /// What it is precisely; depends on the type.
    pub code: u8,
    /// The second word; see [`echo_rest`], and the MTU itself for "fragmentation needed".
    pub rest: u32,
}

impl Icmpv4Header {
    /// Writes all of a header with checksum 0. When the payload is in its place, too,
    /// [`fill_checksum`] completes the message.
    #[inline]
    pub fn write(&self, buf: &mut [u8; HEADER_LEN]) {
        put::<TYPE, 4, N>(buf, [self.message_type, self.code, 0, 0]);
        put::<REST, 4, N>(buf, self.rest.to_be_bytes());
    }
}

/// The second word of an echo message.
#[inline]
#[must_use]
pub const fn echo_rest(identifier: u16, sequence: u16) -> u32 {
    (identifier as u32) << 16 | sequence as u32
}

/// Computes the checksum of the whole message and writes it. Returns `false`, with nothing written,
/// when `message` is too short to have one.
#[inline]
pub fn fill_checksum(message: &mut [u8]) -> bool {
    checksum::compute(message, CHECKSUM_OFFSET, 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An echo request: identifier 0x1234, sequence number 7, payload "ping!".
    const ECHO: [u8; 13] = [8, 0, 0xe5, 0xf3, 0x12, 0x34, 0, 7, b'p', b'i', b'n', b'g', b'!'];

    #[test]
    fn known_bytes_are_read() {
        let view = Icmpv4::parse(&ECHO).unwrap();
        assert_eq!((view.message_type(), view.code(), view.checksum()), (ECHO_REQUEST, 0, 0xe5f3));
        assert_eq!((view.identifier(), view.sequence()), (0x1234, 7));
        assert_eq!((view.rest(), view.payload()), (echo_rest(0x1234, 7), &b"ping!"[..]));
        assert!(view.is_echo() && !view.is_error() && view.verify_checksum());

        let too_big = [3, 4, 0, 0, 0xff, 0xff, 0x05, 0xaa];
        let view = Icmpv4::parse(&too_big).unwrap();
        assert_eq!((view.next_hop_mtu(), view.is_error(), view.is_echo()), (1450, true, false));
    }

    #[test]
    fn written_bytes_do_not_depend_on_the_buffer() {
        for dirt in [0x00, 0xff] {
            let mut buf = ECHO;
            buf[..HEADER_LEN].fill(dirt);
            let rest = echo_rest(0x1234, 7);
            Icmpv4Header { message_type: ECHO_REQUEST, code: 0, rest }
                .write(buf.first_chunk_mut().unwrap());
            assert!(fill_checksum(&mut buf));
            assert_eq!(buf, ECHO);
        }
    }

    #[test]
    fn too_short_is_an_error_at_each_length() {
        for length in 0..HEADER_LEN {
            let have = u16::try_from(length).unwrap();
            let wanted = ParseError::Truncated { header: Header::Icmpv4, need: 8, have };
            assert_eq!(Icmpv4::parse(&ECHO[..length]).unwrap_err(), wanted);
            let mut short = ECHO;
            assert_eq!(fill_checksum(&mut short[..length]), length >= 4);
        }
    }

    #[test]
    fn errors_are_five_types() {
        let errors: Vec<u8> = (0..=u8::MAX).filter(|kind| is_error(*kind)).collect();
        assert_eq!(errors, [3, 4, 5, 11, 12]);
    }

    proptest! {
        #[test]
        fn echo_is_that_of_etherparse(
            id: u16, seq: u16, payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut message = vec![0xff; HEADER_LEN];
            Icmpv4Header { message_type: ECHO_REPLY, code: 0, rest: echo_rest(id, seq) }
                .write(message.first_chunk_mut().unwrap());
            message.extend_from_slice(&payload);
            prop_assert!(fill_checksum(&mut message));
            prop_assert!(Icmpv4::parse(&message).unwrap().verify_checksum());
            let echo = etherparse::IcmpEchoHeader { id, seq };
            let theirs = etherparse::Icmpv4Type::EchoReply(echo);
            let header = etherparse::Icmpv4Header::with_checksum(theirs, &payload);
            // Both forms of zero are right; ours is never 0.
            let checksum = if header.checksum == 0 { 0xffff } else { header.checksum };
            prop_assert_eq!(Icmpv4::parse(&message).unwrap().checksum(), checksum);
            prop_assert_eq!(&message[4..8], &header.to_bytes()[4..8]);
        }
    }
}
