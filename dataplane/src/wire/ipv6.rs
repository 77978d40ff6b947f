//! IPv6: the fixed header (RFC 8200 section 3) and a bounded walk over extension headers (section 4).
//!
//! ```text
//!  0                          4              6             7           8        24            40
//! +--------------------------+--------------+-------------+-----------+--------+-------------+
//! | version, class, flow label| payload len | next header | hop limit | source | destination |
//! +--------------------------+--------------+-------------+-----------+--------+-------------+
//! ```

use std::net::Ipv6Addr;
use std::ops::Range;

use super::ecn::Ecn;
use super::{Header, ParseError, fixed, fixed_mut, get_u16, get_u32, get_u128, protocol, put};

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Bytes of a fragment header.
pub const FRAGMENT_HEADER_LEN: usize = 8;
/// Most extension headers that [`Ipv6::upper_layer`] walks over.
pub const MAX_EXTENSIONS: u8 = 8;

const FIRST_WORD: usize = 0;
const PAYLOAD_LEN: usize = 4;
const NEXT_HEADER: usize = 6;
const HOP_LIMIT: usize = 7;
const SOURCE: usize = 8;
const DESTINATION: usize = 24;

const N: usize = HEADER_LEN;
const VERSION: u32 = 6 << 28;
const FLOW_LABEL_MASK: u32 = 0x000f_ffff;

const FRAGMENT_OFFSET: usize = 2;
const FRAGMENT_IDENTIFICATION: usize = 4;

/// A packet: fixed header and payload, without any padding after them.
#[derive(Debug, Clone, Copy)]
pub struct Ipv6<'a> {
    header: &'a [u8; N],
    packet: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// Views the packet at the start of `bytes`. Jumbograms (RFC 2675) are not known: their payload
    /// length of 0 is taken as it stands.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes; [`ParseError::BadVersion`] unless 6;
    /// [`ParseError::BadTotalLength`] when the payload is longer than the rest of `bytes`; the length
    /// in the error counts the fixed header, too.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, packet_len) = checked_header(bytes)?;
        match bytes.get(..packet_len) {
            Some(packet) => Ok(Self { header, packet }),
            None => Err(ParseError::bad_total_length(Header::Ipv6, packet_len, N, bytes.len())),
        }
    }

    /// Views the start of a packet that an ICMP error quotes: as [`Ipv6::parse`], but the payload may
    /// be longer than what is there.
    ///
    /// # Errors
    /// As [`Ipv6::parse`], without [`ParseError::BadTotalLength`].
    #[inline]
    pub fn parse_quoted(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, packet_len) = checked_header(bytes)?;
        Ok(Self { header, packet: bytes.get(..packet_len).unwrap_or(bytes) })
    }

    /// DSCP and ECN.
    #[inline]
    #[must_use]
    pub fn traffic_class(&self) -> u8 {
        let [a, b, ..] = *self.header;
        (a << 4) | (b >> 4)
    }

    /// Differentiated services codepoint, 0 to 63 (RFC 2474).
    #[inline]
    #[must_use]
    pub fn dscp(&self) -> u8 {
        self.traffic_class() >> 2
    }

    /// Congestion notification.
    #[inline]
    #[must_use]
    pub fn ecn(&self) -> Ecn {
        Ecn::from_tos(self.traffic_class())
    }

    /// Flow label, 20 bits (RFC 6437).
    #[inline]
    #[must_use]
    pub fn flow_label(&self) -> u32 {
        get_u32::<FIRST_WORD, N>(self.header) & FLOW_LABEL_MASK
    }

    /// Bytes after the fixed header, as the header says.
    #[inline]
    #[must_use]
    pub fn payload_len(&self) -> u16 {
        get_u16::<PAYLOAD_LEN, N>(self.header)
    }

    /// Bytes of fixed header and payload, or what is there of them in a quoted packet.
    #[inline]
    #[must_use]
    pub fn packet_len(&self) -> usize {
        self.packet.len()
    }

    /// Protocol number of the first header after the fixed one.
    #[inline]
    #[must_use]
    pub fn next_header(&self) -> u8 {
        self.header[NEXT_HEADER]
    }

    /// Hops that are left.
    #[inline]
    #[must_use]
    pub fn hop_limit(&self) -> u8 {
        self.header[HOP_LIMIT]
    }

    /// Address of the sender.
    #[inline]
    #[must_use]
    pub fn source(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.source_u128())
    }

    /// Address of the receiver.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.destination_u128())
    }

    /// Address of the sender as a number: ::1 is 1.
    #[inline]
    #[must_use]
    pub fn source_u128(&self) -> u128 {
        get_u128::<SOURCE, N>(self.header)
    }

    /// Address of the receiver as a number: ::1 is 1.
    #[inline]
    #[must_use]
    pub fn destination_u128(&self) -> u128 {
        get_u128::<DESTINATION, N>(self.header)
    }

    /// Where the payload is in the bytes that were parsed, extension headers included.
    #[inline]
    #[must_use]
    pub fn payload_range(&self) -> Range<usize> {
        HEADER_LEN..self.packet.len()
    }

    /// The bytes after the fixed header, extension headers included, without padding.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.packet.get(HEADER_LEN..).unwrap_or_default()
    }

    /// Fixed header and payload, without padding.
    #[inline]
    #[must_use]
    pub fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// Where the payload of a fragment begins, in bytes from the start of the fixed header: what offsets count
    /// from. Extension headers behind the fragment header are a part of it. None: there is no such header.
    #[must_use]
    pub fn fragment_payload(&self) -> Option<usize> {
        let (mut protocol, mut offset) = (self.header[NEXT_HEADER], HEADER_LEN);
        for _ in 0..MAX_EXTENSIONS {
            let [next, length] = *self.packet.get(offset..)?.first_chunk()?;
            match protocol {
                protocol::FRAGMENT => return Some(offset + FRAGMENT_HEADER_LEN),
                _ if is_extension(protocol) => offset += extension_len(protocol, length),
                _ => return None,
            }
            protocol = next;
        }
        None
    }

    /// Finds what comes after the extension headers. In a fragment that is not the first, what
    /// follows the fragment header is a piece of payload: the walk stops there, and `protocol` is
    /// what the fragment header names (RFC 8200 section 4.5).
    ///
    /// # Errors
    /// [`ParseError::Truncated`] when an extension header runs past the packet's end;
    /// [`ParseError::MisplacedExtension`]; [`ParseError::TooManyExtensions`] beyond
    /// [`MAX_EXTENSIONS`].
    #[inline]
    pub fn upper_layer(&self) -> Result<UpperLayer, ParseError> {
        let protocol = self.header[NEXT_HEADER];
        if is_extension(protocol) {
            walk(protocol, self.packet)
        } else {
            Ok(UpperLayer { protocol, offset: HEADER_LEN, fragment: None })
        }
    }
}

/// The fixed header, and the length of the packet that it gives.
#[inline]
fn checked_header(bytes: &[u8]) -> Result<(&[u8; N], usize), ParseError> {
    let header: &[u8; N] = fixed(bytes, Header::Ipv6)?;
    let [first, ..] = *header;
    if first >> 4 != 6 {
        return Err(ParseError::BadVersion { header: Header::Ipv6, found: first >> 4 });
    }
    Ok((header, HEADER_LEN + usize::from(get_u16::<PAYLOAD_LEN, N>(header))))
}

/// What comes after the extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpperLayer {
    /// Its protocol number: see [`super::protocol`].
    pub protocol: u8,
    /// Where it starts, in bytes from the start of the fixed header.
    pub offset: usize,
    /// The fragment header that was passed, if there was one.
    pub fragment: Option<FragmentInfo>,
}

impl UpperLayer {
    /// Is the packet a part of another one? See [`FragmentInfo::is_fragment`].
    #[inline]
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.is_fragment())
    }

    /// Is the upper layer's header there? It is in all packets but later fragments.
    #[inline]
    #[must_use]
    pub fn has_header(&self) -> bool {
        !self.fragment.is_some_and(|fragment| fragment.is_later_fragment())
    }
}

/// The fields of a fragment header (RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentInfo {
    /// Place of this fragment's payload, in units of 8 bytes.
    pub offset: u16,
    /// Do more fragments follow this one?
    pub more: bool,
    /// Names the packet that the fragments belong to.
    pub identification: u32,
}

impl FragmentInfo {
    /// Is this only a part of a packet? A fragment header may also come with a whole one, an atomic
    /// fragment (RFC 6946).
    #[inline]
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.more || self.offset != 0
    }

    /// Is this the part with the transport header, and not the whole packet?
    #[inline]
    #[must_use]
    pub fn is_first_fragment(&self) -> bool {
        self.more && self.offset == 0
    }

    /// Is this a part without the transport header?
    #[inline]
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.offset != 0
    }

    /// Writes all of a fragment header. `next_header` is the protocol of what follows; of the offset
    /// the low 13 bits are used.
    #[inline]
    pub fn write(&self, buf: &mut [u8; FRAGMENT_HEADER_LEN], next_header: u8) {
        let [a, b] = ((self.offset << 3) | u16::from(self.more)).to_be_bytes();
        let [c, d, e, f] = self.identification.to_be_bytes();
        *buf = [next_header, 0, a, b, c, d, e, f];
    }
}

#[inline]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
    )
}

/// Walks from the end of the fixed header, where `protocol` starts.
fn walk(mut protocol: u8, packet: &[u8]) -> Result<UpperLayer, ParseError> {
    let mut offset = HEADER_LEN;
    let mut fragment = None;
    for _ in 0..MAX_EXTENSIONS {
        let misplaced = match protocol {
            protocol::HOP_BY_HOP => offset != HEADER_LEN,
            protocol::FRAGMENT => fragment.is_some(),
            _ => false,
        };
        if misplaced {
            return Err(ParseError::MisplacedExtension { protocol });
        }
        let rest = packet.get(offset..).unwrap_or_default();
        // Every extension header is at least 8 bytes long and has these two at its start.
        let start: &[u8; 8] = fixed(rest, Header::Ipv6Extension)?;
        let [next, length, ..] = *start;
        let length = extension_len(protocol, length);
        if length > rest.len() {
            return Err(ParseError::truncated(Header::Ipv6Extension, length, rest.len()));
        }
        offset += length;
        if protocol == protocol::FRAGMENT {
            let info = read_fragment(start);
            if info.is_later_fragment() {
                return Ok(UpperLayer { protocol: next, offset, fragment: Some(info) });
            }
            fragment = Some(info);
        }
        protocol = next;
        if !is_extension(protocol) {
            return Ok(UpperLayer { protocol, offset, fragment });
        }
    }
    Err(ParseError::TooManyExtensions { limit: MAX_EXTENSIONS })
}

/// Bytes of an extension header, by its length field.
#[inline]
fn extension_len(protocol: u8, length: u8) -> usize {
    match protocol {
        protocol::FRAGMENT => FRAGMENT_HEADER_LEN,
        // In units of 4 bytes, of which two are not counted (RFC 4302 section 2.2).
        protocol::AUTHENTICATION => (usize::from(length) + 2) * 4,
        _ => (usize::from(length) + 1) * 8,
    }
}

#[inline]
fn read_fragment(header: &[u8; FRAGMENT_HEADER_LEN]) -> FragmentInfo {
    let field = get_u16::<FRAGMENT_OFFSET, FRAGMENT_HEADER_LEN>(header);
    FragmentInfo {
        offset: field >> 3,
        more: field & 1 != 0,
        identification: get_u32::<FRAGMENT_IDENTIFICATION, FRAGMENT_HEADER_LEN>(header),
    }
}

/// The fixed header, to be changed in place.
#[derive(Debug)]
pub struct Ipv6Mut<'a> {
    header: &'a mut [u8; N],
}

impl<'a> Ipv6Mut<'a> {
    /// Views the start of `packet`, which must have been parsed before: only the length is checked.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes.
    #[inline]
    pub fn new(packet: &'a mut [u8]) -> Result<Self, ParseError> {
        Ok(Self { header: fixed_mut(packet, Header::Ipv6)? })
    }

    /// Sets the bytes after the fixed header.
    #[inline]
    pub fn set_payload_len(&mut self, payload_len: u16) {
        put::<PAYLOAD_LEN, 2, N>(self.header, payload_len.to_be_bytes());
    }

    /// Sets the address of the sender.
    #[inline]
    pub fn set_source(&mut self, source: impl Into<u128>) {
        put::<SOURCE, 16, N>(self.header, source.into().to_be_bytes());
    }

    /// Sets the address of the receiver.
    #[inline]
    pub fn set_destination(&mut self, destination: impl Into<u128>) {
        put::<DESTINATION, 16, N>(self.header, destination.into().to_be_bytes());
    }

    /// Sets the ECN bits.
    #[inline]
    pub fn set_ecn(&mut self, ecn: Ecn) {
        // The low two bits of the traffic class are bits 4 and 5 of the second byte.
        self.header[1] = (self.header[1] & !0x30) | (ecn.bits() << 4);
    }
}

/// Writes both addresses (host order).
#[inline]
pub fn translate(header: &mut [u8; HEADER_LEN], source: u128, destination: u128) {
    put::<SOURCE, 16, HEADER_LEN>(header, source.to_be_bytes());
    put::<DESTINATION, 16, HEADER_LEN>(header, destination.to_be_bytes());
}

/// Writes the hop limit of a header, of which `start` is the start.
#[inline]
pub fn set_hop_limit<const LEN: usize>(start: &mut [u8; LEN], hop_limit: u8) {
    put::<HOP_LIMIT, 1, LEN>(start, [hop_limit]);
}

/// Sets the ECN bits of the packet. Returns `false`, with nothing changed, when `packet` is shorter
/// than a header.
#[inline]
pub fn set_ecn(packet: &mut [u8], ecn: Ecn) -> bool {
    Ipv6Mut::new(packet).map(|mut header| header.set_ecn(ecn)).is_ok()
}

/// The values of a fixed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Header {
    /// DSCP in the upper six bits, ECN in the lower two.
    pub traffic_class: u8,
    /// Flow label, of which the low 20 bits are used.
    pub flow_label: u32,
    /// Bytes after the fixed header.
    pub payload_len: u16,
    /// Protocol number of what follows.
    pub next_header: u8,
    /// Hops that are left.
    pub hop_limit: u8,
    /// Address of the sender.
    pub source: Ipv6Addr,
    /// Address of the receiver.
    pub destination: Ipv6Addr,
}

impl Ipv6Header {
    /// Writes all of a fixed header.
    #[inline]
    pub fn write(&self, buf: &mut [u8; HEADER_LEN]) {
        let first =
            VERSION | (u32::from(self.traffic_class) << 20) | (self.flow_label & FLOW_LABEL_MASK);
        put::<FIRST_WORD, 4, N>(buf, first.to_be_bytes());
        put::<PAYLOAD_LEN, 2, N>(buf, self.payload_len.to_be_bytes());
        put::<NEXT_HEADER, 2, N>(buf, [self.next_header, self.hop_limit]);
        put::<SOURCE, 16, N>(buf, self.source.octets());
        put::<DESTINATION, 16, N>(buf, self.destination.octets());
    }
}

#[cfg(test)]
#[path = "ipv6_tests.rs"]
mod tests;
