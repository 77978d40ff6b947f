//! L0: bytes to fields and fields to bytes, one header per file.
//!
//! A view (`Ipv4`, `Udp`, `Geneve`, ...) borrows the bytes of one header and what follows it. Its
//! `parse` checks every length once and keeps a reference to a fixed-size array, so that the getters
//! cost one load and no bounds check. A view with the suffix `Mut` changes fields in place. A plain
//! struct with the suffix `Header` or `Message` holds values and writes all bytes of its header,
//! whatever was in the buffer before.
//!
//! Nothing here allocates, decides or remembers anything, and nothing panics, whatever the bytes are.
//! All numbers are in host byte order unless a name or a doc line says otherwise.

pub mod arp;
pub mod checksum;
pub mod crc32c;
pub mod ecn;
pub mod ethernet;
pub mod geneve;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod peek;
pub mod quote;
pub mod sctp;
pub mod simple;
pub mod simple6;
pub mod tcp;
pub mod tunnel4;
pub mod udp;
pub mod vxlan;

use std::fmt;

/// IP protocol numbers (the IPv4 `Protocol` and the IPv6 `Next Header` field, IANA).
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200 section 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 routing header (RFC 8200 section 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200 section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// Nothing follows (RFC 8200 section 4.7).
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options (RFC 8200 section 4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// The header that a [`ParseError`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Header {
    /// Ethernet II.
    Ethernet,
    /// Address resolution.
    Arp,
    /// IPv4.
    Ipv4,
    /// IPv6, the fixed 40 bytes.
    Ipv6,
    /// Any of the IPv6 extension headers.
    Ipv6Extension,
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// SCTP.
    Sctp,
    /// ICMP for IPv4.
    Icmpv4,
    /// ICMP for IPv6.
    Icmpv6,
    /// An option of a neighbour discovery message.
    NeighborOption,
    /// Geneve.
    Geneve,
    /// VXLAN.
    Vxlan,
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "Ethernet header",
            Self::Arp => "ARP message",
            Self::Ipv4 => "IPv4 header",
            Self::Ipv6 => "IPv6 header",
            Self::Ipv6Extension => "IPv6 extension header",
            Self::Udp => "UDP header",
            Self::Tcp => "TCP header",
            Self::Sctp => "SCTP header",
            Self::Icmpv4 => "ICMPv4 message",
            Self::Icmpv6 => "ICMPv6 message",
            Self::NeighborOption => "neighbour discovery option",
            Self::Geneve => "Geneve header",
            Self::Vxlan => "VXLAN header",
        })
    }
}

/// Why some bytes are not the header they should be. Lengths are in bytes and stop at 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes are there than the header takes.
    #[error("{header}: needs {need} bytes, {have} are there")]
    Truncated {
        /// Header that does not fit.
        header: Header,
        /// Bytes the header takes.
        need: u16,
        /// Bytes that are there.
        have: u16,
    },
    /// The version field does not say what this header must say.
    #[error("{header}: version {found} is not the one this header has")]
    BadVersion {
        /// Header with the wrong version.
        header: Header,
        /// Version that was found.
        found: u8,
    },
    /// The header says of itself that it is shorter than its fixed part.
    #[error("{header}: says it is {length} bytes long, at least {minimum} are its fixed part")]
    BadHeaderLength {
        /// Header with the wrong length.
        header: Header,
        /// Length the header says it has.
        length: u16,
        /// Length of the fixed part.
        minimum: u16,
    },
    /// The header gives a length for header and payload that cannot be.
    #[error("{header}: total length {length} is not within {minimum} and {have}")]
    BadTotalLength {
        /// Header with the wrong length.
        header: Header,
        /// Length the header gives.
        length: u16,
        /// The least it can be: the header's own length.
        minimum: u16,
        /// The most it can be: the bytes that are there.
        have: u16,
    },
    /// An option runs past the end of the options, or has length 0 where that never ends.
    #[error("{header}: an option of {length} bytes, {have} are left for it")]
    BadOptionLength {
        /// Header whose options are broken.
        header: Header,
        /// Length the option says it has.
        length: u16,
        /// Bytes left in the options.
        have: u16,
    },
    /// A VXLAN header without the I flag carries no VNI (RFC 7348 section 5).
    #[error("VXLAN header: the VNI flag is missing in flags {flags:#04x}")]
    MissingVniFlag {
        /// First byte of the header.
        flags: u8,
    },
    /// An IPv6 extension header where RFC 8200 section 4.1 allows none: hop-by-hop options that
    /// are not first, or a second fragment header.
    #[error("IPv6 extension header: {protocol} cannot stand in this place")]
    MisplacedExtension {
        /// Protocol number of the extension header.
        protocol: u8,
    },
    /// More IPv6 extension headers than we are willing to walk.
    #[error("IPv6 extension header: more than {limit} of them")]
    TooManyExtensions {
        /// Most that are walked.
        limit: u8,
    },
    /// A field has a value that this header cannot have here.
    #[error("{header}: value {value:#06x} in field {field:?}")]
    BadField {
        /// Header with the wrong field.
        header: Header,
        /// Field with the wrong value.
        field: Field,
        /// Value that was found.
        value: u16,
    },
}

/// The field that a [`ParseError::BadField`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// ARP hardware type: 1, Ethernet, is the only one.
    HardwareType,
    /// ARP protocol type: 0x0800, IPv4, is the only one.
    ProtocolType,
    /// ARP address lengths, hardware in the high byte: 0x0604 is the only one.
    AddressLengths,
    /// ICMP type: not the message that was asked for.
    Type,
    /// ICMP code: not one that this message can have.
    Code,
}

impl ParseError {
    /// The header that is wrong.
    #[must_use]
    pub fn header(&self) -> Header {
        match *self {
            Self::Truncated { header, .. }
            | Self::BadVersion { header, .. }
            | Self::BadHeaderLength { header, .. }
            | Self::BadTotalLength { header, .. }
            | Self::BadOptionLength { header, .. }
            | Self::BadField { header, .. } => header,
            Self::MissingVniFlag { .. } => Header::Vxlan,
            Self::MisplacedExtension { .. } | Self::TooManyExtensions { .. } => {
                Header::Ipv6Extension
            }
        }
    }

    #[cold]
    fn truncated(header: Header, need: usize, have: usize) -> Self {
        Self::Truncated { header, need: clamp(need), have: clamp(have) }
    }

    #[cold]
    fn bad_header_length(header: Header, length: usize, minimum: usize) -> Self {
        Self::BadHeaderLength { header, length: clamp(length), minimum: clamp(minimum) }
    }

    #[cold]
    fn bad_total_length(header: Header, length: usize, minimum: usize, have: usize) -> Self {
        Self::BadTotalLength {
            header,
            length: clamp(length),
            minimum: clamp(minimum),
            have: clamp(have),
        }
    }

    #[cold]
    fn bad_option_length(header: Header, length: usize, have: usize) -> Self {
        Self::BadOptionLength { header, length: clamp(length), have: clamp(have) }
    }

    #[cold]
    fn bad_field(header: Header, field: Field, value: u16) -> Self {
        Self::BadField { header, field, value }
    }
}

fn clamp(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// The first `N` bytes as an array, or [`ParseError::Truncated`].
#[inline]
fn fixed<const N: usize>(bytes: &[u8], header: Header) -> Result<&[u8; N], ParseError> {
    match bytes.first_chunk::<N>() {
        Some(fixed) => Ok(fixed),
        None => Err(ParseError::truncated(header, N, bytes.len())),
    }
}

/// The first `N` bytes as an array to write to, or [`ParseError::Truncated`].
#[inline]
fn fixed_mut<const N: usize>(bytes: &mut [u8], header: Header) -> Result<&mut [u8; N], ParseError> {
    let have = bytes.len();
    match bytes.first_chunk_mut::<N>() {
        Some(fixed) => Ok(fixed),
        None => Err(ParseError::truncated(header, N, have)),
    }
}

/// `W` bytes from `AT` on. Both are constants: a position outside of the array does not compile.
#[inline]
fn get<const AT: usize, const W: usize, const N: usize>(bytes: &[u8; N]) -> [u8; W] {
    const { assert!(AT + W <= N, "field outside of the header") };
    let mut field = [0; W];
    field.copy_from_slice(&bytes[AT..AT + W]);
    field
}

/// Writes `W` bytes from `AT` on. A position outside of the array does not compile.
#[inline]
fn put<const AT: usize, const W: usize, const N: usize>(bytes: &mut [u8; N], field: [u8; W]) {
    const { assert!(AT + W <= N, "field outside of the header") };
    bytes[AT..AT + W].copy_from_slice(&field);
}

#[inline]
fn get_u16<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u16 {
    u16::from_be_bytes(get::<AT, 2, N>(bytes))
}

#[inline]
fn get_u32<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u32 {
    u32::from_be_bytes(get::<AT, 4, N>(bytes))
}

#[inline]
fn get_u64<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u64 {
    u64::from_be_bytes(get::<AT, 8, N>(bytes))
}

#[inline]
fn get_u128<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u128 {
    u128::from_be_bytes(get::<AT, 16, N>(bytes))
}

#[cfg(test)]
mod tests;
