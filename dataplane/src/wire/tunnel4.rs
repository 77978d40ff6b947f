//! Where a tunnel packet is bound for, in a few loads: before it is known whether there is anything wrong with it.
//!
//! ```text
//!  0    12     14             34       42              50     62     64
//! +----+------+--------------+--------+---------------+------+------+--------------
//! | .. | 0800 | IPv4, IHL 5  | UDP    | tunnel header | MACs | 0800 | inner IPv4
//! +----+------+--------------+--------+---------------+------+------+--------------
//! ```

use super::{ethernet, geneve, get_u16, get_u32, get_u64, ipv4, protocol, simple, udp};

/// Offset of the inner frame, behind a tunnel header of eight bytes: Geneve without options (RFC 8926 section 3.4),
/// or VXLAN (RFC 7348 section 5).
const INNER: usize = simple::L4 + udp::HEADER_LEN + geneve::HEADER_LEN;
const INNER_IP: usize = INNER + ethernet::HEADER_LEN;
/// Bytes that are read.
const HEAD: usize = INNER_IP + ipv4::MIN_HEADER_LEN;
const IP: usize = ethernet::HEADER_LEN;

/// A UDP datagram over IPv4 without options and in one piece, long enough for a tunnel header and an IPv4
/// header inside of it. Nothing else is checked.
#[derive(Debug, Clone, Copy)]
pub struct Tunnel4<'a>(&'a [u8; HEAD]);

impl<'a> Tunnel4<'a> {
    /// Recognises one.
    #[inline(always)]
    #[must_use]
    pub fn read(frame: &'a [u8]) -> Option<Self> {
        let head = frame.first_chunk::<HEAD>()?;
        let kind = get_u32::<12, HEAD>(head) & 0xffff_ff00;
        // "More fragments", reserved or an offset, and the protocol, in one load.
        let upper = get_u64::<{ IP + 2 }, HEAD>(head) & 0xbfff_00ff;
        (kind == 0x0800_4500 && upper == u64::from(protocol::UDP)).then_some(Self(head))
    }

    /// Outer destination address, host order.
    #[inline(always)]
    #[must_use]
    pub fn destination(self) -> u32 {
        get_u32::<{ IP + 16 }, HEAD>(self.0)
    }

    /// Outer destination port, host order.
    #[inline(always)]
    #[must_use]
    pub fn port(self) -> u16 {
        get_u16::<{ simple::L4 + 2 }, HEAD>(self.0)
    }

    /// Inner destination address, host order; none: what is inside is not IPv4.
    #[inline(always)]
    #[must_use]
    pub fn inner_destination(self) -> Option<u32> {
        let is_ipv4 = get_u32::<{ INNER + 12 }, HEAD>(self.0) & 0xffff_f000 == 0x0800_4000;
        is_ipv4.then(|| get_u32::<{ INNER_IP + 16 }, HEAD>(self.0))
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn inner(payload: &[u8]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 5], [10, 1, 7, 9], 64);
        let mut bytes = Vec::new();
        builder.udp(1000, 2000).write(&mut bytes, payload).unwrap();
        bytes
    }

    fn outer(inner: &[u8]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([6; 6], [8; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        let mut bytes = Vec::new();
        let payload = [&0x6558_0000_7b00_u64.to_be_bytes()[..], inner].concat();
        builder.udp(50_000, 6081).write(&mut bytes, &payload).unwrap();
        bytes
    }

    #[test]
    fn fields_are_those_that_were_written() {
        let bytes = outer(&inner(b""));
        let read = Tunnel4::read(&bytes).unwrap();
        assert_eq!(read.destination(), u32::from_be_bytes([192, 0, 2, 2]));
        assert_eq!(read.port(), 6081);
        assert_eq!(read.inner_destination(), Some(u32::from_be_bytes([10, 1, 7, 9])));
    }

    #[test]
    fn all_else_is_none() {
        let good = outer(&inner(b""));
        assert!(
            Tunnel4::read(&good[..HEAD]).is_some() && Tunnel4::read(&good[..HEAD - 1]).is_none()
        );
        // EtherType, options, more fragments, an offset, TCP.
        for (at, value) in [(13, 0xdd), (14, 0x46), (20, 0x20), (21, 1), (23, 6)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert!(Tunnel4::read(&bytes).is_none(), "byte {at}");
        }
        // Not to be fragmented: as good as any. IPv6 inside, or an EtherType that does not fit.
        let mut bytes = good.clone();
        bytes[20] = 0x40;
        assert!(Tunnel4::read(&bytes).unwrap().inner_destination().is_some());
        for (at, value) in [(INNER + 12, 0x86), (INNER_IP, 0x65)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(Tunnel4::read(&bytes).unwrap().inner_destination(), None, "byte {at}");
        }
    }
}
