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

use super::{checksum, ethernet, get_u16, get_u32, ipv4, protocol, tcp, udp};

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
