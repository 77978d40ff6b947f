//! ARP for IPv4 over Ethernet (RFC 826). Nothing else is ARP here.
//!
//! ```text
//!  0       2       4     5     6      8           14         18          24         28
//! +-------+-------+-----+-----+------+-----------+----------+-----------+----------+
//! | hw    | proto | hln | pln | op   | sender hw | sender IP| target hw | target IP|
//! +-------+-------+-----+-----+------+-----------+----------+-----------+----------+
//! ```

use std::net::Ipv4Addr;

use overlane_api::types::MacAddr;

use super::ethernet::ETHERTYPE_IPV4;
use super::{Field, Header, ParseError, fixed, get, get_u16, get_u32, put};

/// Bytes of a message; an Ethernet frame pads it to 46.
pub const MESSAGE_LEN: usize = 28;

/// Operation: who has the target address?
pub const REQUEST: u16 = 1;
/// Operation: the sender has it.
pub const REPLY: u16 = 2;

const HARDWARE_TYPE: usize = 0;
const PROTOCOL_TYPE: usize = 2;
const ADDRESS_LENGTHS: usize = 4;
const OPERATION: usize = 6;
const SENDER_MAC: usize = 8;
const SENDER_IP: usize = 14;
const TARGET_MAC: usize = 18;
const TARGET_IP: usize = 24;

const HARDWARE_ETHERNET: u16 = 1;
const LENGTHS_MAC_IPV4: u16 = 0x0604;

/// A message of the only kind there is: Ethernet and IPv4.
#[derive(Debug, Clone, Copy)]
pub struct Arp<'a> {
    message: &'a [u8; MESSAGE_LEN],
}

impl<'a> Arp<'a> {
    /// Views the start of `payload`, the bytes after the Ethernet header. Padding is ignored.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] below [`MESSAGE_LEN`] bytes; [`ParseError::BadField`] for another
    /// hardware, protocol or address length.
    #[inline]
    pub fn parse(payload: &'a [u8]) -> Result<Self, ParseError> {
        let message = fixed(payload, Header::Arp)?;
        let expect = |field, found: u16, wanted: u16| {
            if found == wanted {
                Ok(())
            } else {
                Err(ParseError::bad_field(Header::Arp, field, found))
            }
        };
        expect(
            Field::HardwareType,
            get_u16::<HARDWARE_TYPE, MESSAGE_LEN>(message),
            HARDWARE_ETHERNET,
        )?;
        expect(
            Field::ProtocolType,
            get_u16::<PROTOCOL_TYPE, MESSAGE_LEN>(message),
            ETHERTYPE_IPV4,
        )?;
        let lengths = get_u16::<ADDRESS_LENGTHS, MESSAGE_LEN>(message);
        expect(Field::AddressLengths, lengths, LENGTHS_MAC_IPV4)?;
        Ok(Self { message })
    }

    /// [`REQUEST`], [`REPLY`] or another number.
    #[inline]
    #[must_use]
    pub fn operation(&self) -> u16 {
        get_u16::<OPERATION, MESSAGE_LEN>(self.message)
    }

    /// Ethernet address of the sender.
    #[inline]
    #[must_use]
    pub fn sender_mac(&self) -> MacAddr {
        MacAddr(get::<SENDER_MAC, 6, MESSAGE_LEN>(self.message))
    }

    /// IPv4 address of the sender; 0.0.0.0 in a probe (RFC 5227 section 2.1.1).
    #[inline]
    #[must_use]
    pub fn sender_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(get_u32::<SENDER_IP, MESSAGE_LEN>(self.message))
    }

    /// Ethernet address of the target; undefined in a request.
    #[inline]
    #[must_use]
    pub fn target_mac(&self) -> MacAddr {
        MacAddr(get::<TARGET_MAC, 6, MESSAGE_LEN>(self.message))
    }

    /// IPv4 address of the target.
    #[inline]
    #[must_use]
    pub fn target_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(get_u32::<TARGET_IP, MESSAGE_LEN>(self.message))
    }

    /// The values of all fields.
    #[inline]
    #[must_use]
    pub fn message(&self) -> ArpMessage {
        ArpMessage {
            operation: self.operation(),
            sender_mac: self.sender_mac(),
            sender_ip: self.sender_ip(),
            target_mac: self.target_mac(),
            target_ip: self.target_ip(),
        }
    }
}

/// The values of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArpMessage {
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// Ethernet address of the sender.
    pub sender_mac: MacAddr,
    /// IPv4 address of the sender.
    pub sender_ip: Ipv4Addr,
    /// Ethernet address of the target, zero in a request.
    pub target_mac: MacAddr,
    /// IPv4 address of the target.
    pub target_ip: Ipv4Addr,
}

impl ArpMessage {
    /// Writes all of a message.
    #[inline]
    pub fn write(&self, buf: &mut [u8; MESSAGE_LEN]) {
        put::<HARDWARE_TYPE, 2, MESSAGE_LEN>(buf, HARDWARE_ETHERNET.to_be_bytes());
        put::<PROTOCOL_TYPE, 2, MESSAGE_LEN>(buf, ETHERTYPE_IPV4.to_be_bytes());
        put::<ADDRESS_LENGTHS, 2, MESSAGE_LEN>(buf, LENGTHS_MAC_IPV4.to_be_bytes());
        put::<OPERATION, 2, MESSAGE_LEN>(buf, self.operation.to_be_bytes());
        put::<SENDER_MAC, 6, MESSAGE_LEN>(buf, self.sender_mac.0);
        put::<SENDER_IP, 4, MESSAGE_LEN>(buf, self.sender_ip.octets());
        put::<TARGET_MAC, 6, MESSAGE_LEN>(buf, self.target_mac.0);
        put::<TARGET_IP, 4, MESSAGE_LEN>(buf, self.target_ip.octets());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: [u8; MESSAGE_LEN] = [
        0, 1, 8, 0, 6, 4, 0, 2, 2, 0x4f, 10, 0, 1, 4, 169, 254, 1, 1, 2, 0, 0, 0, 0, 9, 10, 244, 1,
        10,
    ];
    const MESSAGE: ArpMessage = ArpMessage {
        operation: REPLY,
        sender_mac: MacAddr([2, 0x4f, 10, 0, 1, 4]),
        sender_ip: Ipv4Addr::new(169, 254, 1, 1),
        target_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        target_ip: Ipv4Addr::new(10, 244, 1, 10),
    };

    #[test]
    fn known_bytes_are_read() {
        assert_eq!(Arp::parse(&BYTES).unwrap().message(), MESSAGE);
        let mut padded = [0xee; 46];
        padded[..MESSAGE_LEN].copy_from_slice(&BYTES);
        assert_eq!(Arp::parse(&padded).unwrap().message(), MESSAGE);
    }

    #[test]
    fn written_bytes_do_not_depend_on_the_buffer() {
        for dirt in [0x00, 0xff] {
            let mut buf = [dirt; MESSAGE_LEN];
            MESSAGE.write(&mut buf);
            assert_eq!(buf, BYTES);
        }
    }

    #[test]
    fn too_short_is_an_error_at_each_length() {
        for length in 0..MESSAGE_LEN {
            let error = Arp::parse(&BYTES[..length]).unwrap_err();
            let have = u16::try_from(length).unwrap();
            assert_eq!(error, ParseError::Truncated { header: Header::Arp, need: 28, have });
        }
    }

    #[test]
    fn other_kinds_of_addresses_are_refused() {
        for (at, value, field, found) in [
            (1, 6, Field::HardwareType, 6),
            (2, 0x86, Field::ProtocolType, 0x8600),
            (4, 8, Field::AddressLengths, 0x0804),
            (5, 16, Field::AddressLengths, 0x0610),
        ] {
            let mut bytes = BYTES;
            bytes[at] = value;
            let wanted = ParseError::BadField { header: Header::Arp, field, value: found };
            assert_eq!(Arp::parse(&bytes).unwrap_err(), wanted);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            operation: u16, sender_mac: [u8; 6], sender_ip: u32, target_mac: [u8; 6], target_ip: u32,
        ) {
            let message = ArpMessage {
                operation,
                sender_mac: MacAddr(sender_mac),
                sender_ip: Ipv4Addr::from_bits(sender_ip),
                target_mac: MacAddr(target_mac),
                target_ip: Ipv4Addr::from_bits(target_ip),
            };
            let mut buf = [0xff; MESSAGE_LEN];
            message.write(&mut buf);
            prop_assert_eq!(Arp::parse(&buf).unwrap().message(), message);
        }
    }
}
