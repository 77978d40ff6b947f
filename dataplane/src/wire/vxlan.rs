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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: [u8; 10] = [0x08, 0, 0, 0, 0x00, 0x0c, 0xe5, 0, 0xaa, 0xbb];

    #[test]
    fn known_bytes_are_read() {
        let view = Vxlan::parse(&BYTES).unwrap();
        assert_eq!(view.vni().get(), 3301);
        assert_eq!(view.flags(), 0x08);
        assert!(!view.reserved_bits_set());
        assert_eq!(view.payload(), [0xaa, 0xbb]);
    }

    #[test]
    fn written_bytes_do_not_depend_on_the_buffer() {
        for dirt in [0x00, 0xff] {
            let mut buf = [dirt; HEADER_LEN];
            write_header(&mut buf, Vni::new(3301).unwrap());
            assert_eq!(buf, BYTES[..HEADER_LEN]);
        }
    }

    #[test]
    fn too_short_is_an_error_at_each_length() {
        for length in 0..HEADER_LEN {
            let error = Vxlan::parse(&BYTES[..length]).unwrap_err();
            let have = u16::try_from(length).unwrap();
            assert_eq!(error, ParseError::Truncated { header: Header::Vxlan, need: 8, have });
        }
    }

    #[test]
    fn each_reserved_bit_is_seen_and_does_not_matter() {
        for bit in 0..64 {
            let (byte, mask) = (bit / 8, 0x80_u8 >> (bit % 8));
            let mut bytes = BYTES;
            bytes[byte] ^= mask;
            let vni_bit = (4..7).contains(&byte);
            if byte == 0 && mask == 0x08 {
                assert_eq!(
                    Vxlan::parse(&bytes).unwrap_err(),
                    ParseError::MissingVniFlag { flags: 0 }
                );
                continue;
            }
            let view = Vxlan::parse(&bytes).unwrap();
            assert_eq!(view.reserved_bits_set(), !vni_bit, "bit {bit}");
            assert_eq!(view.vni().get() == 3301, !vni_bit, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(vni in 0..=Vni::MAX) {
            let mut buf = [0xff; HEADER_LEN];
            write_header(&mut buf, Vni::new(vni).unwrap());
            let view = Vxlan::parse(&buf).unwrap();
            prop_assert_eq!(view.vni().get(), vni);
            prop_assert!(!view.reserved_bits_set());
        }
    }
}
