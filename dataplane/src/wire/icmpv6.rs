//! ICMP for IPv6 (RFC 4443): echo, errors and neighbour discovery (RFC 4861).
//!
//! ```text
//!  0      1      2          4                          8
//! +------+------+----------+--------------------------+----------------------------
//! | type | code | checksum | rest: id and sequence,    | payload, quoted packet, or
//! |      |      |          | MTU, or flags             | target address and options
//! +------+------+----------+--------------------------+----------------------------
//! ```

use std::net::Ipv6Addr;

use overlane_api::types::MacAddr;

use super::checksum;
use super::{Field, Header, ParseError, fixed, get_u16, get_u32, get_u128, protocol, put};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Bytes of a neighbour solicitation or advertisement without options.
pub const NEIGHBOR_LEN: usize = 24;
/// Bytes of a neighbour solicitation or advertisement with one link-layer address option.
pub const NEIGHBOR_WITH_ADDRESS_LEN: usize = 32;
/// Place of the checksum, in bytes from the start of the header.
pub const CHECKSUM_OFFSET: usize = 2;
/// Hop limit that every neighbour discovery message must have (RFC 4861 section 7.1).
pub const NEIGHBOR_HOP_LIMIT: u8 = 255;

/// Type: the destination cannot be reached.
pub const DESTINATION_UNREACHABLE: u8 = 1;
/// Type: too big for the next hop.
pub const PACKET_TOO_BIG: u8 = 2;
/// Type: hop limit or reassembly time ran out.
pub const TIME_EXCEEDED: u8 = 3;
/// Type: a field of the header is wrong.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Type: ping.
pub const ECHO_REQUEST: u8 = 128;
/// Type: answer to a ping.
pub const ECHO_REPLY: u8 = 129;
/// Type: which routers are there?
pub const ROUTER_SOLICITATION: u8 = 133;
/// Type: here is a router.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// Type: who has the target address?
pub const NEIGHBOR_SOLICITATION: u8 = 135;
/// Type: the sender has it.
pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// Type: use another gateway.
pub const REDIRECT: u8 = 137;

/// Code of [`DESTINATION_UNREACHABLE`]: no route.
pub const CODE_NO_ROUTE: u8 = 0;
/// Code of [`DESTINATION_UNREACHABLE`]: forbidden by an administrator.
pub const CODE_ADMIN_PROHIBITED: u8 = 1;
/// Code of [`DESTINATION_UNREACHABLE`]: no such host.
pub const CODE_ADDRESS_UNREACHABLE: u8 = 3;
/// Code of [`DESTINATION_UNREACHABLE`]: nobody listens on the port.
pub const CODE_PORT_UNREACHABLE: u8 = 4;
/// Code of [`TIME_EXCEEDED`]: the hop limit ran out.
pub const CODE_HOP_LIMIT_EXCEEDED: u8 = 0;

/// Option: link-layer address of the sender (RFC 4861 section 4.6.1).
pub const OPTION_SOURCE_ADDRESS: u8 = 1;
/// Option: link-layer address of the target (RFC 4861 section 4.6.1).
pub const OPTION_TARGET_ADDRESS: u8 = 2;

/// Flag of an advertisement: the sender is a router.
pub const FLAG_ROUTER: u32 = 1 << 31;
/// Flag of an advertisement: it answers a solicitation.
pub const FLAG_SOLICITED: u32 = 1 << 30;
/// Flag of an advertisement: it replaces what is known.
pub const FLAG_OVERRIDE: u32 = 1 << 29;

const TYPE: usize = 0;
const CODE: usize = 1;
const CHECKSUM: usize = CHECKSUM_OFFSET;
const REST: usize = 4;
const IDENTIFIER: usize = 4;
const SEQUENCE: usize = 6;
const TARGET: usize = 8;

const N: usize = HEADER_LEN;

/// A message.
#[derive(Debug, Clone, Copy)]
pub struct Icmpv6<'a> {
    header: &'a [u8; N],
    message: &'a [u8],
}

impl<'a> Icmpv6<'a> {
    /// Views `message`, an IPv6 upper layer without padding. The checksum is not looked at.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes.
    #[inline]
    pub fn parse(message: &'a [u8]) -> Result<Self, ParseError> {
        Ok(Self { header: fixed(message, Header::Icmpv6)?, message })
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

    /// MTU in bytes of a "packet too big" error.
    #[inline]
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.rest()
    }

    /// Is this an error, which quotes a packet and must never be answered by another error (RFC 4443
    /// section 2.4 e)?
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

    /// Is this a message of neighbour discovery, which never leaves its link?
    #[inline]
    #[must_use]
    pub fn is_neighbor_discovery(&self) -> bool {
        (ROUTER_SOLICITATION..=REDIRECT).contains(&self.message_type())
    }

    /// The bytes after the header: an echo's data, or the packet that an error quotes.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.message.get(HEADER_LEN..).unwrap_or_default()
    }

    /// Is the checksum right? `pseudo` is the pseudo-header's sum with the message's length in it.
    #[inline]
    #[must_use]
    pub fn verify_checksum(&self, pseudo: u64) -> bool {
        checksum::fold(checksum::sum(self.message, pseudo)) == 0xffff
    }
}

/// Is this type one of the errors (RFC 4443 section 2.1)?
#[inline]
#[must_use]
pub const fn is_error(message_type: u8) -> bool {
    message_type < 128
}

/// A neighbour solicitation or advertisement.
#[derive(Debug, Clone, Copy)]
pub struct Neighbor<'a> {
    header: &'a [u8; NEIGHBOR_LEN],
    options: &'a [u8],
}

impl<'a> Neighbor<'a> {
    /// Views `message`, an IPv6 upper layer without padding. Hop limit and checksum are the caller's
    /// to check (RFC 4861 section 7.1).
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`NEIGHBOR_LEN`] bytes; [`ParseError::BadField`] when the type
    /// is neither of the two, or the code not 0.
    #[inline]
    pub fn parse(message: &'a [u8]) -> Result<Self, ParseError> {
        let header: &[u8; NEIGHBOR_LEN] = fixed(message, Header::Icmpv6)?;
        let (kind, code) = (header[TYPE], header[CODE]);
        if !matches!(kind, NEIGHBOR_SOLICITATION | NEIGHBOR_ADVERTISEMENT) {
            return Err(ParseError::bad_field(Header::Icmpv6, Field::Type, u16::from(kind)));
        }
        if code != 0 {
            return Err(ParseError::bad_field(Header::Icmpv6, Field::Code, u16::from(code)));
        }
        Ok(Self { header, options: message.get(NEIGHBOR_LEN..).unwrap_or_default() })
    }

    /// Is this a solicitation and not an advertisement?
    #[inline]
    #[must_use]
    pub fn is_solicitation(&self) -> bool {
        self.header[TYPE] == NEIGHBOR_SOLICITATION
    }

    /// [`FLAG_ROUTER`], [`FLAG_SOLICITED`] and [`FLAG_OVERRIDE`] of an advertisement; reserved bits are
    /// ignored.
    #[inline]
    #[must_use]
    pub fn flags(&self) -> u32 {
        get_u32::<REST, NEIGHBOR_LEN>(self.header) & (FLAG_ROUTER | FLAG_SOLICITED | FLAG_OVERRIDE)
    }

    /// The address that is looked for or advertised.
    #[inline]
    #[must_use]
    pub fn target(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(get_u128::<TARGET, NEIGHBOR_LEN>(self.header))
    }

    /// The options in their order.
    #[inline]
    #[must_use]
    pub fn options(&self) -> NeighborOptions<'a> {
        NeighborOptions { rest: self.options }
    }

    /// The first link-layer address of `kind`, [`OPTION_SOURCE_ADDRESS`] or
    /// [`OPTION_TARGET_ADDRESS`].
    ///
    /// # Errors
    /// [`ParseError`] when an option is broken anywhere in the message: all of it must then be
    /// ignored (RFC 4861 section 7.1).
    #[inline]
    pub fn link_layer_address(&self, kind: u8) -> Result<Option<MacAddr>, ParseError> {
        let mut found = None;
        for option in self.options() {
            let option = option?;
            if option.kind == kind && found.is_none() {
                found = option.data.first_chunk::<6>().map(|octets| MacAddr(*octets));
            }
        }
        Ok(found)
    }
}

/// One option of a neighbour discovery message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighborOption<'a> {
    /// [`OPTION_SOURCE_ADDRESS`] and its like.
    pub kind: u8,
    /// What follows kind and length: 6 bytes, 14, 22 and so on.
    pub data: &'a [u8],
}

/// Walks options; ends after the first error.
#[derive(Debug, Clone)]
pub struct NeighborOptions<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for NeighborOptions<'a> {
    type Item = Result<NeighborOption<'a>, ParseError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        let (&kind, after_kind) = rest.split_first()?;
        let wrong = |length| {
            Some(Err(ParseError::bad_option_length(Header::NeighborOption, length, rest.len())))
        };
        let Some(&units) = after_kind.first() else { return wrong(8) };
        let length = usize::from(units) * 8;
        // Length 0 would never end: the whole message is to be discarded (RFC 4861 section 4.6).
        match (rest.get(2..length), rest.get(length..)) {
            (Some(data), Some(next)) => {
                self.rest = next;
                Some(Ok(NeighborOption { kind, data }))
            }
            _ => wrong(length),
        }
    }
}

impl std::iter::FusedIterator for NeighborOptions<'_> {}

/// The values of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmpv6Header {
    /// [`ECHO_REQUEST`] and its like.
    pub message_type: u8,
    /// What it is precisely; depends on the type.
    pub code: u8,
    /// The second word; see [`echo_rest`], and the MTU itself for "packet too big".
    pub rest: u32,
}

impl Icmpv6Header {
    /// Writes all of a header with checksum 0. When the payload is in its place, too,
    /// [`fill_checksum`] completes the message.
    #[inline]
    pub fn write(&self, buf: &mut [u8; HEADER_LEN]) {
        put::<TYPE, 4, N>(buf, [self.message_type, self.code, 0, 0]);
        put::<REST, 4, N>(buf, self.rest.to_be_bytes());
    }
}

/// The values of a neighbour solicitation or advertisement with a link-layer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighborMessage {
    /// A solicitation, which carries the sender's address, or an advertisement, which carries the
    /// target's?
    pub is_solicitation: bool,
    /// [`FLAG_ROUTER`], [`FLAG_SOLICITED`], [`FLAG_OVERRIDE`]; 0 in a solicitation.
    pub flags: u32,
    /// The address that is looked for or advertised.
    pub target: Ipv6Addr,
    /// Link-layer address of the sender (solicitation) or the target (advertisement).
    pub link_layer_address: MacAddr,
}

impl NeighborMessage {
    /// Writes all of a message, its checksum included, which the packet's two addresses are part of.
    #[inline]
    pub fn write(
        &self,
        buf: &mut [u8; NEIGHBOR_WITH_ADDRESS_LEN],
        source: Ipv6Addr,
        destination: Ipv6Addr,
    ) {
        const LEN: usize = NEIGHBOR_WITH_ADDRESS_LEN;
        const OPTION: usize = NEIGHBOR_LEN;
        let (message_type, option) = if self.is_solicitation {
            (NEIGHBOR_SOLICITATION, OPTION_SOURCE_ADDRESS)
        } else {
            (NEIGHBOR_ADVERTISEMENT, OPTION_TARGET_ADDRESS)
        };
        put::<TYPE, 4, LEN>(buf, [message_type, 0, 0, 0]);
        put::<REST, 4, LEN>(buf, self.flags.to_be_bytes());
        put::<TARGET, 16, LEN>(buf, self.target.octets());
        let [a, b, c, d, e, f] = self.link_layer_address.0;
        put::<OPTION, 8, LEN>(buf, [option, 1, a, b, c, d, e, f]);
        fill_checksum(buf, source, destination);
    }
}

/// The second word of an echo message.
#[inline]
#[must_use]
pub const fn echo_rest(identifier: u16, sequence: u16) -> u32 {
    (identifier as u32) << 16 | sequence as u32
}

/// The multicast group that a solicitation for `target` goes to (RFC 4291 section 2.7.1).
#[inline]
#[must_use]
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(PREFIX | (target.to_bits() & 0x00ff_ffff))
}

/// Computes the checksum of the whole message and writes it. Returns `false`, with nothing written,
/// when `message` is too short to have one.
#[inline]
pub fn fill_checksum(message: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) -> bool {
    let Ok(length) = u32::try_from(message.len()) else { return false };
    let pseudo = checksum::pseudo_header_v6(source, destination, protocol::ICMPV6, length);
    checksum::compute(message, CHECKSUM_OFFSET, pseudo)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POD: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0, 1, 0, 0, 0, 0xa);
    const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const MAC: MacAddr = MacAddr([2, 0x4f, 10, 0, 1, 4]);

    /// The gateway's advertisement to the pod. Checksum by hand: the words of addresses, length,
    /// protocol and message add up to 0x4a623, folded 0xa627.
    const ADVERTISEMENT: [u8; 32] = [
        136, 0, 0x59, 0xd8, 0xe0, 0, 0, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2,
        1, 2, 0x4f, 10, 0, 1, 4,
    ];

    fn advertisement() -> NeighborMessage {
        NeighborMessage {
            is_solicitation: false,
            flags: FLAG_ROUTER | FLAG_SOLICITED | FLAG_OVERRIDE,
            target: GATEWAY,
            link_layer_address: MAC,
        }
    }

    fn pseudo(length: usize) -> u64 {
        let length = u32::try_from(length).unwrap();
        checksum::pseudo_header_v6(GATEWAY, POD, protocol::ICMPV6, length)
    }

    #[test]
    fn known_advertisement_is_read() {
        let view = Neighbor::parse(&ADVERTISEMENT).unwrap();
        assert!(!view.is_solicitation());
        assert_eq!(view.flags(), FLAG_ROUTER | FLAG_SOLICITED | FLAG_OVERRIDE);
        assert_eq!(view.target(), GATEWAY);
        assert_eq!(view.link_layer_address(OPTION_TARGET_ADDRESS), Ok(Some(MAC)));
        assert_eq!(view.link_layer_address(OPTION_SOURCE_ADDRESS), Ok(None));
        let message = Icmpv6::parse(&ADVERTISEMENT).unwrap();
        assert!(message.is_neighbor_discovery() && !message.is_error() && !message.is_echo());
        assert!(message.verify_checksum(pseudo(32)));
    }

    #[test]
    fn written_bytes_do_not_depend_on_the_buffer() {
        for dirt in [0x00, 0x5a, 0xff] {
            let mut buf = [dirt; NEIGHBOR_WITH_ADDRESS_LEN];
            advertisement().write(&mut buf, GATEWAY, POD);
            assert_eq!(buf, ADVERTISEMENT);
        }
    }

    #[test]
    fn too_short_is_an_error_at_each_length() {
        for length in 0..NEIGHBOR_LEN {
            let have = u16::try_from(length).unwrap();
            let wanted = ParseError::Truncated { header: Header::Icmpv6, need: 24, have };
            assert_eq!(Neighbor::parse(&ADVERTISEMENT[..length]).unwrap_err(), wanted);
            assert_eq!(Icmpv6::parse(&ADVERTISEMENT[..length]).is_ok(), length >= HEADER_LEN);
        }
        for length in NEIGHBOR_LEN + 1..NEIGHBOR_WITH_ADDRESS_LEN {
            let view = Neighbor::parse(&ADVERTISEMENT[..length]).unwrap();
            let have = u16::try_from(length - NEIGHBOR_LEN).unwrap();
            let wanted =
                ParseError::BadOptionLength { header: Header::NeighborOption, length: 8, have };
            assert_eq!(view.link_layer_address(OPTION_TARGET_ADDRESS), Err(wanted));
        }
    }

    #[test]
    fn option_of_length_zero_ends_the_walk() {
        let mut bytes = ADVERTISEMENT;
        bytes[25] = 0;
        let items: Vec<_> = Neighbor::parse(&bytes).unwrap().options().collect();
        let wanted =
            ParseError::BadOptionLength { header: Header::NeighborOption, length: 0, have: 8 };
        assert_eq!(items, [Err(wanted)]);
    }

    #[test]
    fn unknown_options_are_walked_over() {
        let mut bytes = ADVERTISEMENT[..NEIGHBOR_LEN].to_vec();
        bytes.extend([14, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        bytes.extend([2, 1, 2, 0x4f, 10, 0, 1, 4]);
        bytes.extend([2, 1, 9, 9, 9, 9, 9, 9]);
        let view = Neighbor::parse(&bytes).unwrap();
        assert_eq!(view.link_layer_address(OPTION_TARGET_ADDRESS), Ok(Some(MAC)), "the first one");
        assert_eq!(view.options().count(), 3);
    }

    #[test]
    fn other_messages_and_codes_are_no_neighbor_messages() {
        for (at, value, field) in
            [(0, 134, Field::Type), (0, 137, Field::Type), (1, 1, Field::Code)]
        {
            let mut bytes = ADVERTISEMENT;
            bytes[at] = value;
            let value = u16::from(value);
            let wanted = ParseError::BadField { header: Header::Icmpv6, field, value };
            assert_eq!(Neighbor::parse(&bytes).unwrap_err(), wanted);
        }
    }

    #[test]
    fn reserved_bits_of_the_flags_are_ignored() {
        let mut bytes = ADVERTISEMENT;
        bytes[4..8].copy_from_slice(&[0x5f, 0xff, 0xff, 0xff]);
        assert_eq!(Neighbor::parse(&bytes).unwrap().flags(), FLAG_SOLICITED);
    }

    #[test]
    fn solicited_node_group_has_the_low_24_bits() {
        let address: Ipv6Addr = "fd12::aabb:ccdd".parse().unwrap();
        assert_eq!(solicited_node(address), "ff02::1:ffbb:ccdd".parse::<Ipv6Addr>().unwrap());
    }

    proptest! {
        #[test]
        fn neighbor_message_is_read_back(
            is_solicitation: bool, bits in 0_u32..8, target: u128, mac: [u8; 6],
        ) {
            let message = NeighborMessage {
                is_solicitation,
                flags: bits << 29,
                target: Ipv6Addr::from_bits(target),
                link_layer_address: MacAddr(mac),
            };
            let mut buf = [0xff; NEIGHBOR_WITH_ADDRESS_LEN];
            message.write(&mut buf, GATEWAY, POD);
            prop_assert!(Icmpv6::parse(&buf).unwrap().verify_checksum(pseudo(32)));
            let view = Neighbor::parse(&buf).unwrap();
            prop_assert_eq!(view.is_solicitation(), is_solicitation);
            prop_assert_eq!((view.flags(), view.target()), (message.flags, message.target));
            let kind = if is_solicitation { OPTION_SOURCE_ADDRESS } else { OPTION_TARGET_ADDRESS };
            prop_assert_eq!(view.link_layer_address(kind), Ok(Some(MacAddr(mac))));
        }

        #[test]
        fn echo_is_that_of_etherparse(
            id: u16, seq: u16, payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut message = vec![0xff; HEADER_LEN];
            Icmpv6Header { message_type: ECHO_REQUEST, code: 0, rest: echo_rest(id, seq) }
                .write(message.first_chunk_mut().unwrap());
            message.extend_from_slice(&payload);
            prop_assert!(fill_checksum(&mut message, GATEWAY, POD));
            let view = Icmpv6::parse(&message).unwrap();
            prop_assert!(view.verify_checksum(pseudo(message.len())));
            prop_assert_eq!((view.identifier(), view.sequence()), (id, seq));
            let theirs = etherparse::Icmpv6Type::EchoRequest(etherparse::IcmpEchoHeader { id, seq });
            let checksum = theirs.calc_checksum(GATEWAY.octets(), POD.octets(), &payload).unwrap();
            prop_assert_eq!(view.checksum(), if checksum == 0 { 0xffff } else { checksum });
        }
    }
}
