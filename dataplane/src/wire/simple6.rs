//! As [`simple`](super::simple), over IPv6: without extension headers, TCP or UDP.
//!
//! ```text
//!  0        6       12   14             22       38     54    56    58            62
//! +--------+--------+----+--------------+--------+------+-----+-----+-------------+---------
//! | to MAC | by MAC |86dd| IPv6         | from   | to   | from| to  | more of L4  | payload
//! +--------+--------+----+--------------+--------+------+-----+-----+-------------+---------
//! ```

use super::{checksum, ethernet, get_u16, get_u32, get_u128, ipv6, protocol, tcp, udp};

/// Bytes that are read: both headers and the first eight of the upper layer's.
pub const HEAD: usize = L4 + 8;

/// Offset of the upper-layer header.
pub const L4: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;

const IP: usize = ethernet::HEADER_LEN;

/// A simple packet: the checks are done.
#[derive(Debug, Clone, Copy)]
pub struct Simple6<'a> {
    frame: &'a [u8],
    head: &'a [u8; HEAD],
    payload_len: u16,
    /// The upper layer's checksum field, host order; none: it is not there.
    checksum: Option<u16>,
}

impl<'a> Simple6<'a> {
    /// Recognises a simple packet.
    #[inline(always)]
    #[must_use]
    pub fn read(frame: &'a [u8]) -> Option<Self> {
        let head = frame.first_chunk::<HEAD>()?;
        // EtherType and version; traffic class and flow label are anything.
        if get_u32::<12, HEAD>(head) & 0xffff_f000 != 0x86dd_6000 {
            return None;
        }
        let payload_len = get_u16::<{ IP + 4 }, HEAD>(head);
        if payload_len < 8 || L4 + usize::from(payload_len) > frame.len() {
            return None;
        }
        let checksum = match head[IP + 6] {
            protocol::UDP => Some(get_u16::<{ L4 + udp::CHECKSUM_OFFSET }, HEAD>(head)),
            protocol::TCP => tcp_checksum(frame),
            _ => return None,
        };
        Some(Self { frame, head, payload_len, checksum })
    }

    /// Source MAC and EtherType as one number: to be compared with [`source_and_type`].
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

    /// Bytes of the upper layer.
    #[inline]
    #[must_use]
    pub fn payload_len(&self) -> u16 {
        self.payload_len
    }

    /// DSCP and ECN.
    #[inline]
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "eight bits of sixteen are meant")]
    pub fn traffic_class(&self) -> u8 {
        (get_u16::<IP, HEAD>(self.head) >> 4) as u8
    }

    /// Hops that are left.
    #[inline]
    #[must_use]
    pub fn hop_limit(&self) -> u8 {
        self.head[IP + 7]
    }

    /// TCP or UDP.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.head[IP + 6]
    }

    /// Source address, host order.
    #[inline]
    #[must_use]
    pub fn source(&self) -> u128 {
        get_u128::<{ IP + 8 }, HEAD>(self.head)
    }

    /// Destination address, host order.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> u128 {
        get_u128::<{ IP + 24 }, HEAD>(self.head)
    }

    /// Source port in the upper half, destination port in the lower, host order.
    #[inline]
    #[must_use]
    pub fn ports(&self) -> u32 {
        get_u32::<L4, HEAD>(self.head)
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

    /// Is the checksum of the upper layer right?
    #[inline(always)]
    #[must_use]
    pub fn is_correct(&self) -> bool {
        let segment = self.frame.get(L4..L4 + usize::from(self.payload_len)).unwrap_or_default();
        checksum::native_fold(segment, self.pseudo()) == 0xffff
    }

    /// Does the TCP or UDP checksum look unfinished? See [`checksum::is_partial`].
    #[inline(always)]
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        // Ones' complement sums do not care for the byte order (RFC 1071 section 2 B).
        self.checksum.is_some_and(|field| checksum::is_partial(field.to_be(), self.pseudo()))
    }

    /// Sum of the pseudo-header, of words in this machine's byte order.
    #[inline(always)]
    fn pseudo(&self) -> u64 {
        native::<{ IP + 8 }>(self.head)
            + native::<{ IP + 12 }>(self.head)
            + native::<{ IP + 16 }>(self.head)
            + native::<{ IP + 20 }>(self.head)
            + native::<{ IP + 24 }>(self.head)
            + native::<{ IP + 28 }>(self.head)
            + native::<{ IP + 32 }>(self.head)
            + native::<{ IP + 36 }>(self.head)
            + u64::from(u16::from(self.protocol()).to_be())
            + u64::from(self.payload_len.to_be())
    }
}

/// What [`Simple6::source_and_type`] is for an IPv6 packet from `mac`.
#[must_use]
pub fn source_and_type(mac: overlane_api::MacAddr) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([a, b, c, d, e, f, 0x86, 0xdd])
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
    use super::super::ipv6::Ipv6;
    use super::*;
    use etherparse::PacketBuilder;

    fn packet(tcp: bool) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([0xfd; 16], [0xfe; 16], 7);
        let mut bytes = Vec::new();
        if tcp {
            builder.tcp(1000, 2000, 7, 500).write(&mut bytes, b"data").unwrap();
        } else {
            builder.udp(1000, 2000).write(&mut bytes, b"data").unwrap();
        }
        bytes[15] |= 0x50;
        bytes
    }

    #[test]
    fn fields_are_those_of_the_view() {
        for tcp in [false, true] {
            let mut bytes = packet(tcp);
            let simple = Simple6::read(&bytes).unwrap();
            let view = Ipv6::parse(&bytes[14..]).unwrap();
            assert_eq!(simple.source(), view.source_u128());
            assert_eq!(simple.destination(), view.destination_u128());
            assert_eq!(simple.traffic_class(), view.traffic_class());
            assert_eq!(simple.traffic_class(), 5);
            assert_eq!(simple.hop_limit(), view.hop_limit());
            assert_eq!(usize::from(simple.payload_len()) + 40, view.packet_len());
            assert_eq!((simple.ports(), simple.is_group()), (1000 << 16 | 2000, false));
            assert_eq!(simple.source_and_type(), source_and_type(overlane_api::MacAddr([2; 6])));
            assert!(simple.is_correct() && !simple.is_unfinished());
            if !tcp {
                assert_eq!(simple.udp_len(), simple.payload_len());
            }
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            assert!(!Simple6::read(&bytes).unwrap().is_correct());
        }
    }

    #[test]
    fn what_is_not_simple_is_not_read() {
        let good = packet(false);
        for (at, value) in [(12, 8), (14, 0x40), (18, 1), (20, 0), (20, 44), (20, 58)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert!(Simple6::read(&bytes).is_none(), "{value} at {at}");
        }
        assert!(Simple6::read(&good).is_some());
        assert!(Simple6::read(&good[..good.len() - 1]).is_none());
    }
}
