//! What tells one flow from another: addresses, ports and protocol of its packets in one direction.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::AnyBitPattern;

use crate::wire::checksum::{apply, difference16, difference32, difference128, fold, udp_apply};
use crate::wire::protocol;
pub use crate::wire::simple::Ends;

/// An address as the number that it is, in host order: `u32` for IPv4, `u128` for IPv6. The two
/// families have tables of their own, so that IPv4 does not pay for the other's size.
pub trait Address:
    AnyBitPattern + Eq + Ord + std::hash::Hash + Default + Debug + Send + Sync + 'static
{
    /// Does the IP header of the family have a checksum?
    const HEADER_CHECKSUM: bool;

    /// As a type that prints.
    fn to_ip(self) -> IpAddr;

    /// 64 bits of both addresses and `rest`. Different for other secrets.
    fn mix(source: Self, destination: Self, rest: u64, secrets: &[u64; 6]) -> u64;

    /// What a checksum over the address changes by when it becomes `new` (RFC 1624 equation 3).
    fn difference(self, new: Self) -> u64;
}

/// SCTP (RFC 9260).
const SCTP: u8 = 132;

/// Both halves of a product, together: each bit depends on most bits of both factors.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the halves of a product are meant")]
const fn folded(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    (product >> 64) as u64 ^ product as u64
}

impl Address for u32 {
    const HEADER_CHECKSUM: bool = true;

    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    #[inline]
    fn mix(source: Self, destination: Self, rest: u64, secrets: &[u64; 6]) -> u64 {
        let addresses = u64::from(source) << 32 | u64::from(destination);
        let mixed = folded(addresses ^ secrets[0], rest ^ secrets[1]);
        folded(mixed ^ secrets[4], secrets[5])
    }

    #[inline]
    fn difference(self, new: Self) -> u64 {
        difference32(self, new)
    }
}

impl Address for u128 {
    const HEADER_CHECKSUM: bool = false;

    fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the halves of an address are meant")]
    fn mix(source: Self, destination: Self, rest: u64, secrets: &[u64; 6]) -> u64 {
        let from = folded((source >> 64) as u64 ^ secrets[0], source as u64 ^ secrets[1]);
        let to = folded((destination >> 64) as u64 ^ secrets[2], destination as u64 ^ secrets[3]);
        let mixed = folded(from ^ to.rotate_left(23) ^ secrets[4], rest ^ secrets[1]);
        folded(mixed ^ secrets[2], secrets[5])
    }

    #[inline]
    fn difference(self, new: Self) -> u64 {
        difference128(self, new)
    }
}

/// Addresses, ports and protocol of one direction of a flow. Numbers in host order.
///
/// The identifier of an ICMP echo is the port of the one who asks: a request has it as
/// `source_port`, the reply as `destination_port`; the other port is 0. So a reply's key is the
/// request's [`FlowKey::reversed`], as it is with TCP and UDP, and an echo that the other end
/// begins with the same identifier is another flow. Both ports of protocols without ports are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Number in the IP header.
    pub protocol: u8,
}

/// Of IPv4.
pub type FlowKey4 = FlowKey<u32>;
/// Of IPv6.
pub type FlowKey6 = FlowKey<u128>;

/// What a protocol means to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// With connections.
    Tcp,
    /// Datagrams.
    Udp,
    /// Queries, of either family.
    Icmp,
    /// Ports, and a CRC that covers them.
    Sctp,
    /// Without ports, as far as is known.
    Other,
}

impl<A: Address> FlowKey<A> {
    /// What the protocol means.
    #[inline]
    #[must_use]
    pub const fn transport(&self) -> Transport {
        match self.protocol {
            protocol::TCP => Transport::Tcp,
            protocol::UDP => Transport::Udp,
            protocol::ICMP | protocol::ICMPV6 => Transport::Icmp,
            SCTP => Transport::Sctp,
            _ => Transport::Other,
        }
    }

    /// The key of the answers, when nothing is rewritten.
    #[inline]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }

    /// What the checksums of a packet with this key change by when it leaves with `new` instead.
    /// The protocol stays.
    #[must_use]
    pub fn difference(&self, new: &Self) -> Difference {
        let mut addresses = 0;
        if self.source != new.source {
            addresses += self.source.difference(new.source);
        }
        if self.destination != new.destination {
            addresses += self.destination.difference(new.destination);
        }
        let mut ports = 0;
        if self.source_port != new.source_port {
            ports += difference16(self.source_port, new.source_port);
        }
        if self.destination_port != new.destination_port {
            ports += difference16(self.destination_port, new.destination_port);
        }
        let l4 = match self.protocol {
            protocol::TCP | protocol::UDP | protocol::ICMPV6 => addresses + ports,
            // Without a pseudo-header (RFC 792).
            protocol::ICMP => ports,
            // SCTP's CRC covers no address (RFC 9260 section 6.8), and of others nothing is known.
            _ => 0,
        };
        Difference { ip: if A::HEADER_CHECKSUM { fold(addresses) } else { 0 }, l4: fold(l4) }
    }
}

/// What a rewrite adds to the checksums of a packet (RFC 1624 equation 3); the payload is not looked at.
/// 0 leaves a checksum as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Difference {
    /// To that of the IPv4 header; 0 for IPv6, which has none.
    pub ip: u16,
    /// To that of TCP, UDP or ICMP.
    pub l4: u16,
}

impl Difference {
    /// The checksum of the IPv4 header, after the rewrite.
    #[inline]
    #[must_use]
    pub fn of_ip(self, checksum: u16) -> u16 {
        apply(checksum, u64::from(self.ip))
    }

    /// The checksum of the upper-layer header, after the rewrite. In UDP no checksum (0) stays none,
    /// and what comes out as 0 becomes 0xffff (RFC 768).
    #[inline]
    #[must_use]
    pub fn of_l4(self, protocol: u8, checksum: u16) -> u16 {
        let update = if protocol == protocol::UDP { udp_apply } else { apply };
        update(checksum, u64::from(self.l4))
    }
}

/// Hashes keys under a secret, so that nobody outside can choose keys that fall into one bucket.
///
/// Two multiplications for IPv4, four for IPv6. That is no cryptography: it holds against who does not see the
/// hashes. They stay inside the process, but for the upper bits, which outer headers show.
#[derive(Debug, Clone, Copy)]
pub struct FlowHash {
    secrets: [u64; 6],
}

impl FlowHash {
    /// `seed` is to be random, and different for every table.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut secrets = [0; 6];
        let mut at = 0;
        while at < secrets.len() {
            // The golden ratio's bits, so that equal steps are never equal words.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let word = folded(state ^ 0x2d35_8dcc_aa6c_78a5, state.rotate_left(32) | 1);
            secrets[at] = folded(word ^ seed, 0xd6e8_feb8_6659_fd93) | 1;
            at += 1;
        }
        Self { secrets }
    }

    /// The hash of a key.
    #[inline]
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "32 bits of 64 are meant")]
    pub fn of<A: Address>(&self, key: &FlowKey<A>) -> u32 {
        let rest = u64::from(key.source_port) << 32
            | u64::from(key.destination_port) << 16
            | u64::from(key.protocol);
        (A::mix(key.source, key.destination, rest, &self.secrets) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn keys() -> impl Iterator<Item = FlowKey4> {
        // What hashes dislike: keys that differ in few, low bits.
        (0..64_u32).flat_map(|host| {
            (0..1024_u16).map(move |port| FlowKey {
                source: 0x0af4_0100 + host,
                destination: 0xcb00_710a,
                source_port: 32768 + port,
                destination_port: 443,
                protocol: 6,
            })
        })
    }

    fn widened(key: FlowKey4) -> FlowKey6 {
        FlowKey {
            source: 0xfd12_3456 << 96 | u128::from(key.source),
            destination: 0xfd98 << 112 | u128::from(key.destination),
            source_port: key.source_port,
            destination_port: key.destination_port,
            protocol: key.protocol,
        }
    }

    fn spread(hashes: &[u32]) {
        let distinct: HashSet<_> = hashes.iter().collect();
        // 65536 random numbers of 32 bits have half a collision on average.
        assert!(distinct.len() > hashes.len() - 12, "{} of {}", distinct.len(), hashes.len());
        for shift in [0, 8, 16] {
            let mut buckets = vec![0_u32; 65536];
            for hash in hashes {
                buckets[(hash >> shift & 0xffff) as usize] += 1;
            }
            // One for each bucket: e^-1 of them stay empty, and none has as many as 12.
            let empty = buckets.iter().filter(|count| **count == 0).count();
            assert!((23500..24700).contains(&empty), "{empty} empty at shift {shift}");
            assert!(buckets.iter().max().unwrap() < &12);
        }
    }

    #[test]
    fn similar_keys_spread_over_all_buckets() {
        for seed in [0, 1, 2, u64::MAX, 0x9e37_79b9_7f4a_7c15] {
            let hash = FlowHash::new(seed);
            spread(&keys().map(|key| hash.of(&key)).collect::<Vec<_>>());
            spread(&keys().map(|key| hash.of(&widened(key))).collect::<Vec<_>>());
            spread(&keys().map(|key| hash.of(&key.reversed())).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_part_of_a_key_counts() {
        let hash = FlowHash::new(7);
        let base = FlowKey4 { source: 1, destination: 2, source_port: 3, ..FlowKey::default() };
        let others = [
            base.reversed(),
            FlowKey { source: 5, ..base },
            FlowKey { destination: 5, ..base },
            FlowKey { source_port: 5, ..base },
            FlowKey { destination_port: 5, ..base },
            FlowKey { protocol: 5, ..base },
        ];
        for other in others {
            assert_ne!(hash.of(&base), hash.of(&other));
            assert_ne!(hash.of(&widened(base)), hash.of(&widened(other)));
        }
        assert_ne!(FlowHash::new(8).of(&base), hash.of(&base));
    }

    #[test]
    fn keys_that_collide_under_one_secret_do_not_under_another() {
        let collides = |seed| {
            let hash = FlowHash::new(seed);
            let mut seen = std::collections::HashMap::new();
            keys().filter_map(|key| Some((seen.insert(hash.of(&key) >> 12, key)?, key))).collect()
        };
        let pairs: Vec<(FlowKey4, FlowKey4)> = collides(1);
        assert!(pairs.len() > 1000);
        let other = FlowHash::new(2);
        let again = pairs.iter().filter(|(a, b)| other.of(a) >> 12 == other.of(b) >> 12).count();
        assert!(again < 5, "{again} of {} pairs", pairs.len());
    }

    #[test]
    fn an_echo_reply_has_the_reversed_key() {
        let request = FlowKey4 { source: 1, destination: 2, source_port: 77, ..FlowKey::default() };
        let reply = request.reversed();
        assert_eq!((reply.source_port, reply.destination_port), (0, 77));
        assert_eq!(reply.reversed(), request);
    }

    #[test]
    fn addresses_print() {
        assert_eq!(0x0af4_010a_u32.to_ip().to_string(), "10.244.1.10");
        assert_eq!((0xfd12_u128 << 112 | 10).to_ip().to_string(), "fd12::a");
    }
}
