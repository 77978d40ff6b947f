//! Ethernet II (IEEE 802.3 clause 3).
//!
//! ```text
//!  0              6              12        14
//! +--------------+--------------+---------+---------
//! | destination  | source       | type    | payload
//! +--------------+--------------+---------+---------
//! ```

use overlane_api::types::MacAddr;

use super::{Header, ParseError, fixed, get, get_u16, put};

/// Bytes of an untagged header.
pub const HEADER_LEN: usize = 14;

/// IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Transparent Ethernet bridging: an Ethernet frame inside of a tunnel (RFC 8926 section 3.4).
pub const ETHERTYPE_TEB: u16 = 0x6558;
/// IEEE 802.1Q customer tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IEEE 802.1ad service tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

const DESTINATION: usize = 0;
const SOURCE: usize = 6;
const ETHERTYPE: usize = 12;

/// A frame from its destination address on.
#[derive(Debug, Clone, Copy)]
pub struct Ethernet<'a> {
    header: &'a [u8; HEADER_LEN],
    frame: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Views the start of `frame`.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`HEADER_LEN`] bytes.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Result<Self, ParseError> {
        Ok(Self { header: fixed(frame, Header::Ethernet)?, frame })
    }

    /// Address of the receiver.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> MacAddr {
        MacAddr(get::<DESTINATION, 6, HEADER_LEN>(self.header))
    }

    /// Address of the sender.
    #[inline]
    #[must_use]
    pub fn source(&self) -> MacAddr {
        MacAddr(get::<SOURCE, 6, HEADER_LEN>(self.header))
    }

    /// What the payload is. Values below 0x0600 are the length of an IEEE 802.3 frame instead.
    #[inline]
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        get_u16::<ETHERTYPE, HEADER_LEN>(self.header)
    }

    /// All bytes after the header, padding included.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.frame.get(HEADER_LEN..).unwrap_or_default()
    }
}

/// Writes all of a header.
#[inline]
pub fn write(buf: &mut [u8; HEADER_LEN], destination: MacAddr, source: MacAddr, ethertype: u16) {
    put::<DESTINATION, 6, HEADER_LEN>(buf, destination.0);
    put::<SOURCE, 6, HEADER_LEN>(buf, source.0);
    put::<ETHERTYPE, 2, HEADER_LEN>(buf, ethertype.to_be_bytes());
}

/// Changes both addresses of the frame and leaves the rest. Returns `false`, with nothing changed,
/// when `frame` is shorter than [`HEADER_LEN`].
#[inline]
pub fn set_addresses(frame: &mut [u8], destination: MacAddr, source: MacAddr) -> bool {
    let Some(header) = frame.first_chunk_mut::<HEADER_LEN>() else { return false };
    put::<DESTINATION, 6, HEADER_LEN>(header, destination.0);
    put::<SOURCE, 6, HEADER_LEN>(header, source.0);
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAME: [u8; 16] = [2, 0x4f, 10, 0, 1, 4, 2, 0x4f, 10, 0, 1, 5, 0x08, 0x00, 0x45, 0xaa];
    const A: MacAddr = MacAddr([2, 0x4f, 10, 0, 1, 4]);
    const B: MacAddr = MacAddr([2, 0x4f, 10, 0, 1, 5]);

    #[test]
    fn known_bytes_are_read() {
        let frame = Ethernet::parse(&FRAME).unwrap();
        assert_eq!(frame.destination(), A);
        assert_eq!(frame.source(), B);
        assert_eq!(frame.ethertype(), ETHERTYPE_IPV4);
        assert_eq!(frame.payload(), [0x45, 0xaa]);
    }

    #[test]
    fn written_bytes_do_not_depend_on_the_buffer() {
        for dirt in [0x00, 0x5a, 0xff] {
            let mut buf = [dirt; HEADER_LEN];
            write(&mut buf, A, B, ETHERTYPE_IPV4);
            assert_eq!(buf, FRAME[..HEADER_LEN]);
        }
    }

    #[test]
    fn too_short_is_an_error_at_each_length() {
        for length in 0..HEADER_LEN {
            let error = Ethernet::parse(&FRAME[..length]).unwrap_err();
            let have = u16::try_from(length).unwrap();
            assert_eq!(error, ParseError::Truncated { header: Header::Ethernet, need: 14, have });
            let mut short = FRAME;
            assert!(!set_addresses(&mut short[..length], B, A));
            assert_eq!(short, FRAME);
        }
        assert!(Ethernet::parse(&FRAME[..HEADER_LEN]).unwrap().payload().is_empty());
    }

    #[test]
    fn addresses_change_and_the_rest_stays() {
        let mut frame = FRAME;
        assert!(set_addresses(&mut frame, B, A));
        let view = Ethernet::parse(&frame).unwrap();
        assert_eq!((view.destination(), view.source()), (B, A));
        assert_eq!(frame[12..], FRAME[12..]);
    }

    proptest! {
        #[test]
        fn agrees_with_etherparse(bytes: [u8; HEADER_LEN]) {
            let ours = Ethernet::parse(&bytes).unwrap();
            let (theirs, _) = etherparse::Ethernet2Header::from_slice(&bytes).unwrap();
            prop_assert_eq!(ours.destination().0, theirs.destination);
            prop_assert_eq!(ours.source().0, theirs.source);
            prop_assert_eq!(ours.ethertype(), theirs.ether_type.0);
            let mut written = [0xff; HEADER_LEN];
            write(&mut written, ours.destination(), ours.source(), ours.ethertype());
            prop_assert_eq!(written, bytes);
        }
    }
}
