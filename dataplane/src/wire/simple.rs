//! The packet that nearly every packet is: Ethernet, IPv4 without options and in one piece, TCP or
//! UDP. Recognised and read in a few loads, where [`Ipv4`](super::ipv4::Ipv4) takes a check for
//! every field; what is not such a packet, or is in any way wrong, is left to the views, which
//! can tell what it is.
//!
//! ```text
//!  0        6       12   14             34    36    38            42
//! +--------+--------+----+--------------+-----+-----+-------------+---------
//! | to MAC | by MAC |0800| IPv4, IHL 5  | from| to  | more of L4  | payload
//! +--------+--------+----+--------------+-----+-----+-------------+---------
//! ```

use std::hint::select_unpredictable;

use super::{checksum, ethernet, get, get_u16, get_u32, ipv4, protocol, put, tcp, udp};

/// Bytes that are read: both headers and the first eight of the upper layer's.
pub const HEAD: usize = L4 + 8;

/// Offset of the upper-layer header.
pub const L4: usize = ethernet::HEADER_LEN + ipv4::MIN_HEADER_LEN;

/// Least total length of the IP packet.
#[allow(clippy::cast_possible_truncation, reason = "28")]
const MIN_TOTAL_LEN: u16 = (HEAD - ethernet::HEADER_LEN) as u16;

const IP: usize = ethernet::HEADER_LEN;

/// A simple packet: the checks are done, the header's checksum included.
#[derive(Debug, Clone, Copy)]
pub struct Simple<'a> {
    frame: &'a [u8],
    head: &'a [u8; HEAD],
    /// Sum of the addresses, of words in this machine's byte order.
    addresses: u64,
    total_len: u16,
    /// The upper layer's checksum field, host order; none: it is not there.
    checksum: Option<u16>,
}

impl<'a> Simple<'a> {
    /// Recognises a simple packet.
    #[inline(always)]
    #[must_use]
    pub fn read(frame: &'a [u8]) -> Option<Self> {
        let head = frame.first_chunk::<HEAD>()?;
        // EtherType, version and header length; the TOS is anything.
        let kind = get_u32::<12, HEAD>(head) & 0xffff_ff00;
        // More fragments, reserved or an offset; "don't fragment" is anything.
        let pieces = get_u16::<{ IP + 6 }, HEAD>(head) & !ipv4::DONT_FRAGMENT;
        if kind != 0x0800_4500 || pieces != 0 {
            return None;
        }
        let total_len = get_u16::<{ IP + 2 }, HEAD>(head);
        if total_len < MIN_TOTAL_LEN || IP + usize::from(total_len) > frame.len() {
            return None;
        }
        let addresses = native::<{ IP + 12 }>(head) + native::<{ IP + 16 }>(head);
        let rest = native::<IP>(head) + native::<{ IP + 4 }>(head) + native::<{ IP + 8 }>(head);
        if checksum::fold(rest + addresses) != 0xffff {
            return None;
        }
        let checksum = match head[IP + 9] {
            protocol::UDP => Some(get_u16::<{ L4 + udp::CHECKSUM_OFFSET }, HEAD>(head)),
            protocol::TCP => tcp_checksum(frame),
            _ => return None,
        };
        Some(Self { frame, head, addresses, total_len, checksum })
    }

    /// Source MAC and EtherType as one number: to be
    /// compared with [`source_and_type`].
    #[inline]
    #[must_use]
    pub fn source_and_type(&self) -> u64 {
        u64::from(get_u32::<6, HEAD>(self.head)) << 32 | u64::from(get_u32::<10, HEAD>(self.head))
    }

    /// Is the frame addressed to a group of stations?
    #[inline]
    #[must_use]
    pub fn is_group(&self) -> bool {
        self.head[0] & 1 != 0
    }

    /// Bytes of the IP packet.
    #[inline]
    #[must_use]
    pub fn total_len(&self) -> u16 {
        self.total_len
    }

    /// Type of service: DSCP and ECN.
    #[inline]
    #[must_use]
    pub fn tos(&self) -> u8 {
        self.head[IP + 1]
    }

    /// May routers not fragment this packet?
    #[inline]
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.head[IP + 6] & 0x40 != 0
    }

    /// Hops that are left.
    #[inline]
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.head[IP + 8]
    }

    /// TCP or UDP.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.head[IP + 9]
    }

    /// Source address, host order.
    #[inline]
    #[must_use]
    pub fn source(&self) -> u32 {
        get_u32::<{ IP + 12 }, HEAD>(self.head)
    }

    /// Destination address, host order.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> u32 {
        get_u32::<{ IP + 16 }, HEAD>(self.head)
    }

    /// Source port in the upper half, destination port in the lower, host order.
    #[inline]
    #[must_use]
    pub fn ports(&self) -> u32 {
        get_u32::<L4, HEAD>(self.head)
    }

    /// The header and payload of the upper layer, without Ethernet padding.
    #[inline]
    #[must_use]
    pub fn segment(&self) -> &'a [u8] {
        self.frame.get(L4..IP + usize::from(self.total_len)).unwrap_or_default()
    }

    /// The length field of a UDP header, bytes.
    #[inline]
    #[must_use]
    pub fn udp_len(&self) -> u16 {
        get_u16::<{ L4 + 4 }, HEAD>(self.head)
    }

    /// The checksum field of the TCP or UDP header; none when a TCP header is cut short.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> Option<u16> {
        self.checksum
    }

    /// Does the TCP or UDP checksum look unfinished? See [`checksum::is_partial`].
    #[inline(always)]
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        // The total length was checked to be more than the header's.
        let l4_len = self.total_len - 20;
        let pseudo = self.addresses
            + u64::from(u16::from(self.protocol()).to_be())
            + u64::from(l4_len.to_be());
        // Ones' complement sums do not care for the byte order (RFC 1071 section 2 B).
        self.checksum.is_some_and(|field| checksum::is_partial(field.to_be(), pseudo))
    }
}

/// What is written into a simple packet when it is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Source address, host order.
    pub source: u32,
    /// Destination address, host order.
    pub destination: u32,
    /// Source port in the upper half, destination port in the lower, host order.
    pub ports: u32,
    /// What is added to the IP header's checksum (RFC 1624 equation 3), network order.
    pub ip_difference: u16,
    /// What is added to the upper layer's, network order.
    pub l4_difference: u16,
}

/// Bytes of a simple packet up to the end of the upper layer's checksum.
const UDP_HEAD: usize = L4 + udp::CHECKSUM_OFFSET + 2;
const TCP_HEAD: usize = L4 + tcp::CHECKSUM_OFFSET + 2;

/// Translates a frame that was a simple packet, of UDP. Says whether it was long enough.
#[inline(always)]
#[must_use]
pub fn translate_udp(frame: &mut [u8], ends: &Ends) -> bool {
    const AT: usize = L4 + udp::CHECKSUM_OFFSET;
    let Some(head) = frame.first_chunk_mut::<UDP_HEAD>() else { return false };
    write_ends(head, ends);
    let old = u16::from_ne_bytes(get::<AT, 2, UDP_HEAD>(head));
    // No checksum stays none, and one that comes out as 0 is written as its other form (RFC 768).
    let new = match changed(old, ends.l4_difference) {
        0 => 0xffff,
        new => new,
    };
    let new = select_unpredictable(old == 0, 0, new);
    put::<AT, 2, UDP_HEAD>(head, new.to_ne_bytes());
    true
}

/// Translates a frame that was a simple packet, of TCP. Says whether it was long enough.
#[inline(always)]
#[must_use]
pub fn translate_tcp(frame: &mut [u8], ends: &Ends) -> bool {
    const AT: usize = L4 + tcp::CHECKSUM_OFFSET;
    let Some(head) = frame.first_chunk_mut::<TCP_HEAD>() else { return false };
    write_ends(head, ends);
    let old = u16::from_ne_bytes(get::<AT, 2, TCP_HEAD>(head));
    put::<AT, 2, TCP_HEAD>(head, changed(old, ends.l4_difference).to_ne_bytes());
    true
}

/// Writes addresses and ports, and the IP header's checksum.
#[inline(always)]
fn write_ends<const N: usize>(head: &mut [u8; N], ends: &Ends) {
    const { assert!(N >= L4 + 4, "the ports are in it") };
    put::<{ IP + 12 }, 4, N>(head, ends.source.to_be_bytes());
    put::<{ IP + 16 }, 4, N>(head, ends.destination.to_be_bytes());
    put::<L4, 4, N>(head, ends.ports.to_be_bytes());
    let old = u16::from_ne_bytes(get::<{ IP + 10 }, 2, N>(head));
    put::<{ IP + 10 }, 2, N>(head, changed(old, ends.ip_difference).to_ne_bytes());
}

/// The checksum after a change, both in network order.
#[inline(always)]
fn changed(checksum: u16, difference: u16) -> u16 {
    checksum::finish32(u32::from(!checksum) + u32::from(difference))
}

/// What [`Simple::source_and_type`] is for an IPv4 packet from `mac`.
#[must_use]
pub fn source_and_type(mac: overlane_api::MacAddr) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([a, b, c, d, e, f, 0x08, 0x00])
}

#[inline(always)]
fn tcp_checksum(frame: &[u8]) -> Option<u16> {
    const AT: usize = L4 + tcp::CHECKSUM_OFFSET;
    frame.first_chunk::<{ AT + 2 }>().map(get_u16::<AT, { AT + 2 }>)
}

/// The four bytes at `AT` in this machine's byte order, to be summed.
#[inline(always)]
fn native<const AT: usize>(head: &[u8; HEAD]) -> u64 {
    u64::from(get_u32::<AT, HEAD>(head).to_be())
}

#[cfg(test)]
mod tests {
    use super::super::checksum::{L4Checksum, verify_l4};
    use super::super::ipv4::Ipv4;
    use super::*;
    use crate::packet::flow_key::{FlowKey, FlowKey4};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn packet(tcp: bool, key: &FlowKey4, payload: &[u8]) -> Vec<u8> {
        let addresses = (key.source.to_be_bytes(), key.destination.to_be_bytes());
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(addresses.0, addresses.1, 64);
        let mut bytes = Vec::new();
        let ports = (key.source_port, key.destination_port);
        if tcp {
            builder.tcp(ports.0, ports.1, 7, 500).write(&mut bytes, payload).unwrap();
        } else {
            builder.udp(ports.0, ports.1).write(&mut bytes, payload).unwrap();
        }
        bytes
    }

    fn translate(tcp: bool, bytes: &mut [u8], ends: &Ends) -> bool {
        if tcp { translate_tcp(bytes, ends) } else { translate_udp(bytes, ends) }
    }

    fn key(of: (u32, u32, u16, u16), tcp: bool) -> FlowKey4 {
        FlowKey {
            source: of.0,
            destination: of.1,
            source_port: of.2,
            destination_port: of.3,
            protocol: if tcp { protocol::TCP } else { protocol::UDP },
        }
    }

    fn ends(from: &FlowKey4, to: &FlowKey4) -> Ends {
        let difference = from.difference(to);
        Ends {
            source: to.source,
            destination: to.destination,
            ports: u32::from(to.source_port) << 16 | u32::from(to.destination_port),
            ip_difference: difference.ip.to_be(),
            l4_difference: difference.l4.to_be(),
        }
    }

    proptest! {
        /// As if the sender had sent it with the new addresses and ports.
        #[test]
        fn a_translated_packet_has_what_it_was_given(
            from: (u32, u32, u16, u16),
            to: (u32, u32, u16, u16),
            tcp: bool,
            payload in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (from, to) = (key(from, tcp), key(to, tcp));
            let mut bytes = packet(tcp, &from, &payload);
            prop_assert!(translate(tcp, &mut bytes, &ends(&from, &to)));
            prop_assert!(Ipv4::parse(&bytes[14..]).unwrap().verify_checksum());
            prop_assert_eq!(verify_l4(&bytes[14..]), Ok(L4Checksum::Correct));
            let mut expected = packet(tcp, &to, &payload);
            // Two forms of zero are right.
            let at = L4 + if tcp { tcp::CHECKSUM_OFFSET } else { udp::CHECKSUM_OFFSET };
            expected[at..at + 2].copy_from_slice(&bytes[at..at + 2]);
            expected[IP + 10..IP + 12].copy_from_slice(&bytes[IP + 10..IP + 12]);
            prop_assert_eq!(&bytes, &expected);
        }
    }

    #[test]
    fn no_udp_checksum_stays_none() {
        let (from, to) = (key((1, 2, 3, 4), false), key((5, 6, 7, 8), false));
        let mut bytes = packet(false, &from, b"data");
        bytes[40..42].fill(0);
        assert!(translate_udp(&mut bytes, &ends(&from, &to)));
        assert_eq!(bytes[40..42], [0, 0]);
        assert_eq!(verify_l4(&bytes[14..]), Ok(L4Checksum::Absent));
    }

    #[test]
    fn what_is_too_short_is_left_alone() {
        let ends = ends(&key((1, 2, 3, 4), false), &key((5, 6, 7, 8), false));
        for (tcp, least) in [(false, UDP_HEAD), (true, TCP_HEAD)] {
            let mut bytes = vec![9; least];
            assert!(translate(tcp, &mut bytes, &ends));
            let mut bytes = vec![9; least - 1];
            assert!(!translate(tcp, &mut bytes, &ends));
            assert_eq!(bytes, vec![9; least - 1]);
        }
    }
}
