//! The whole address space cut at the borders of some prefixes, each piece with a number; which
//! piece an address is in is found by binary search.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::routes::Address;

/// Pieces of the address space of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intervals<K> {
    /// The first address of each piece but the first, which begins at 0; ascending.
    starts: Box<[K]>,
    /// Their numbers, one more than `starts`.
    values: Box<[u32]>,
}

impl<K> Default for Intervals<K> {
    fn default() -> Self {
        Self { starts: Box::new([]), values: Box::new([0]) }
    }
}

/// A prefix: first and last address.
type Span<K> = (K, K);

impl<K: Address> Intervals<K> {
    /// The number of the piece that `address` is in.
    #[inline]
    #[must_use]
    pub fn get(&self, address: K) -> u32 {
        let piece = self.starts.partition_point(|start| *start <= address);
        self.values.get(piece).copied().unwrap_or_default()
    }

    /// Pieces that differ by which of `prefixes` they are in. `number` gives each its number, from
    /// the places in `prefixes` of those, ascending.
    fn cut(prefixes: &[Span<K>], mut number: impl FnMut(&BTreeSet<u32>) -> u32) -> Self {
        // Where a prefix begins, and where the first address behind it is.
        let mut borders: Vec<(K, u32, bool)> = Vec::with_capacity(prefixes.len() * 2);
        for (place, (first, last)) in (0_u32..).zip(prefixes) {
            borders.push((*first, place, true));
            borders.extend(last.next().map(|behind| (behind, place, false)));
        }
        borders.sort_unstable();
        let mut starts = Vec::new();
        let mut inside = BTreeSet::new();
        let mut values = Vec::new();
        let mut rest = borders.as_slice();
        if rest.first().is_none_or(|(start, _, _)| *start != K::default()) {
            values.push(number(&inside));
        }
        while let Some((start, _, _)) = rest.first().copied() {
            while let Some(((_, place, begins), behind)) =
                rest.split_first().filter(|((at, _, _), _)| *at == start)
            {
                if *begins {
                    inside.insert(*place);
                } else {
                    inside.remove(place);
                }
                rest = behind;
            }
            let value = number(&inside);
            if values.last() != Some(&value) {
                if start != K::default() {
                    starts.push(start);
                }
                values.push(value);
            }
        }
        Self { starts: starts.into(), values: values.into() }
    }

    /// Pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Is it all one piece, of number 0?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self.values == [0]
    }

    /// Bytes of memory besides its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.starts) + std::mem::size_of_val(&*self.values)
    }
}

/// Pieces of both families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spaces {
    /// IPv4, host order.
    pub v4: Intervals<u32>,
    /// IPv6, host order.
    pub v6: Intervals<u128>,
}

impl Spaces {
    /// Pieces that differ by which of `prefixes` they are in. `number` gives each its number, from
    /// the places in `prefixes` of those, ascending; IPv4 pieces first.
    pub fn cut(prefixes: &[IpNet], mut number: impl FnMut(&[u32]) -> u32) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let (mut places4, mut places6) = (Vec::new(), Vec::new());
        for (place, prefix) in (0_u32..).zip(prefixes) {
            match prefix {
                IpNet::V4(net) => {
                    v4.push(span(net.addr().to_bits(), net.prefix_len()));
                    places4.push(place);
                }
                IpNet::V6(net) => {
                    v6.push(span(net.addr().to_bits(), net.prefix_len()));
                    places6.push(place);
                }
            }
        }
        let mut list = Vec::new();
        let mut of = |places: &[u32], inside: &BTreeSet<u32>| {
            list.clear();
            list.extend(inside.iter().filter_map(|own| places.get(*own as usize)));
            number(&list)
        };
        Self {
            v4: Intervals::cut(&v4, |inside| of(&places4, inside)),
            v6: Intervals::cut(&v6, |inside| of(&places6, inside)),
        }
    }

    /// 1 for what is in any of `prefixes`, else 0.
    #[must_use]
    pub fn union(prefixes: &[IpNet]) -> Self {
        Self::cut(prefixes, |inside| u32::from(!inside.is_empty()))
    }

    /// The number of the piece that `address` is in.
    #[inline]
    #[must_use]
    pub fn get(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(address) => self.v4.get(address.to_bits()),
            IpAddr::V6(address) => self.v6.get(address.to_bits()),
        }
    }

    /// Bytes of memory besides its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes()
    }
}

fn span<K: Address>(address: K, len: u8) -> Span<K> {
    let mask = K::mask(len);
    (address.network(mask), address.last(mask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix() -> impl Strategy<Value = IpNet> {
        // Near each other and near both ends of the space.
        let v4 = (prop_oneof![0_u32..64, Just(u32::MAX), 0x0a00_0000_u32..0x0a00_0100], 0_u8..=32)
            .prop_map(|(bits, len)| {
                IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), len).unwrap()
            });
        let v6 = (prop_oneof![0_u128..64, Just(u128::MAX)], 0_u8..=128).prop_map(|(bits, len)| {
            IpNet::new(std::net::Ipv6Addr::from_bits(bits).into(), len).unwrap()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn agrees_with_asking_every_prefix(
            prefixes in prop::collection::vec(prefix(), 0..24),
            noise in prop::collection::vec(any::<(u32, u128)>(), 0..8),
        ) {
            let mut lists = vec![Vec::new()];
            let spaces = Spaces::cut(&prefixes, |inside| {
                lists.push(inside.to_vec());
                u32::try_from(lists.len() - 1).unwrap()
            });
            let union = Spaces::union(&prefixes);
            let mut probes: Vec<IpAddr> = Vec::new();
            for prefix in &prefixes {
                // The borders, and what is on either side of them.
                match prefix {
                    IpNet::V4(net) => {
                        for bits in [net.network().to_bits(), net.broadcast().to_bits()] {
                            let near = [bits, bits.wrapping_sub(1), bits.wrapping_add(1)];
                            probes.extend(near.map(|b| IpAddr::from(std::net::Ipv4Addr::from_bits(b))));
                        }
                    }
                    IpNet::V6(net) => {
                        for bits in [net.network().to_bits(), net.broadcast().to_bits()] {
                            let near = [bits, bits.wrapping_sub(1), bits.wrapping_add(1)];
                            probes.extend(near.map(|b| IpAddr::from(std::net::Ipv6Addr::from_bits(b))));
                        }
                    }
                }
            }
            for (v4, v6) in noise {
                probes.push(std::net::Ipv4Addr::from_bits(v4).into());
                probes.push(std::net::Ipv6Addr::from_bits(v6).into());
            }
            for probe in probes {
                let expected: Vec<u32> = (0_u32..)
                    .zip(&prefixes)
                    .filter(|(_, prefix)| prefix.contains(&probe))
                    .map(|(place, _)| place)
                    .collect();
                prop_assert_eq!(&lists[spaces.get(probe) as usize], &expected, "{}", probe);
                prop_assert_eq!(union.get(probe) == 1, !expected.is_empty(), "{}", probe);
            }
        }
    }

    #[test]
    fn nothing_is_in_no_prefix() {
        let spaces = Spaces::union(&[]);
        assert_eq!(spaces, Spaces::default());
        assert!(spaces.v4.is_empty() && spaces.v6.is_empty());
        assert_eq!(spaces.get("255.255.255.255".parse().unwrap()), 0);
        let everything = Spaces::union(&["0.0.0.0/0".parse().unwrap()]);
        assert_eq!((everything.v4.len(), everything.v6.len()), (1, 1));
        assert_eq!(everything.get("0.0.0.0".parse().unwrap()), 1);
    }
}
