//! VXLAN (RFC 7348 section 5). The payload is always an Ethernet frame.
//!
//! ```text
//!  0         1             4             7          8
//! +---------+-------------+-------------+----------+
//! | RRRRIRRR| reserved    | VNI         | reserved |
//! +---------+-------------+-------------+----------+
//! ```

use overlane_api::types::Vni;

use super::geneve::vni_at;
use super::{Header, ParseError, fixed, put};

/// UDP destination port (IANA).
pub const PORT: u16 = 4789;
/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

const FLAGS: usize = 0;
const VNI: usize = 4;
const TRAILING: usize = 7;

const FLAG_VNI: u8 = 0x08;

/// A VXLAN header and the frame after it.
#[derive(Debug, Clone, Copy)]
pub struct Vxlan<'a> {
    header: &'a [u8; HEADER_LEN],
    datagram: &'a [u8],
}

impl<'a> Vxlan<'a> {
    /// Views the start of `datagram`, a UDP payload. Reserved bits are ignored, as RFC 7348 says;
    /// [`Vxlan::reserved_bits_set`] is there for who wants to be strict.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes; [`ParseError::MissingVniFlag`].
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Result<Self, ParseError> {
        let header: &[u8; HEADER_LEN] = fixed(datagram, Header::Vxlan)?;
        if header[FLAGS] & FLAG_VNI == 0 {
            return Err(ParseError::MissingVniFlag { flags: header[FLAGS] });
        }
        Ok(Self { header, datagram })
    }

    /// The virtual network.
    #[inline]
    #[must_use]
    pub fn vni(&self) -> Vni {
        vni_at::<VNI, HEADER_LEN>(self.header)
    }

    /// The flags byte, the I flag included.
    #[inline]
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.header[FLAGS]
    }

    /// Is any bit set but the I flag and the VNI? Linux and OVS drop such a packet; it may be one of
    /// the extensions (group policy 0x80, generic protocol 0x04), which we do not know.
    #[inline]
    #[must_use]
    pub fn reserved_bits_set(&self) -> bool {
        let [flags, a, b, c, ..] = *self.header;
        (flags & !FLAG_VNI) | a | b | c | self.header[TRAILING] != 0
    }

    /// The inner frame.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.datagram.get(HEADER_LEN..).unwrap_or_default()
    }
}

/// Writes all of a header.
#[inline]
pub fn write_header(buf: &mut [u8; HEADER_LEN], vni: Vni) {
    let [a, b, c] = vni.octets();
    put::<FLAGS, 8, HEADER_LEN>(buf, [FLAG_VNI, 0, 0, 0, a, b, c, 0]);
}
