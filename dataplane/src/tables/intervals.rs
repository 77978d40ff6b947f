//! The whole address space cut at the borders of some prefixes, each piece with a number; which
//! piece an address is in is found by binary search.

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

/// A prefix: first and last address, and its place in the list that it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span<K> {
    first: K,
    last: K,
    place: u32,
}

impl<K: Address> Span<K> {
    fn new(address: K, len: u8, place: u32) -> Self {
        let mask = K::mask(len);
        Self { first: address.network(mask), last: address.last(mask), place }
    }
}

impl<K: Address> Intervals<K> {
    /// The number of the piece that `address` is in.
    #[inline]
    #[must_use]
    pub fn get(&self, address: K) -> u32 {
        let piece = self.starts.partition_point(|start| *start <= address);
        self.values.get(piece).copied().unwrap_or_default()
    }

    /// See [`Spaces::cut`].
    fn cut(mut spans: Vec<Span<K>>, within: &mut impl FnMut(u32, u32) -> u32) -> Self {
        // Prefixes are inside of each other or apart: in this order the outer ones come first. Stable,
        // and quick where the list is sorted for the most part.
        spans.sort_by(|a, b| a.first.cmp(&b.first).then(b.last.cmp(&a.last)));
        let mut pieces = Pieces { starts: Vec::new(), values: vec![0] };
        // The prefixes around the place that is looked at: where each ends, and its number.
        let mut around: Vec<(K, u32)> = Vec::new();
        let number = |around: &[(K, u32)]| around.last().map_or(0, |(_, number)| *number);
        for Span { first, last, place } in spans {
            while let Some((end, _)) = around.pop_if(|(end, _)| *end < first) {
                if let Some(behind) = end.next() {
                    pieces.begin(behind, number(&around));
                }
            }
            let inner = within(number(&around), place);
            around.push((last, inner));
            pieces.begin(first, inner);
        }
        while let Some((end, _)) = around.pop() {
            if let Some(behind) = end.next() {
                pieces.begin(behind, number(&around));
            }
        }
        Self { starts: pieces.starts.into(), values: pieces.values.into() }
    }

    fn renumber(&self, of: &mut impl FnMut(u32) -> u32) -> Self {
        let first = self.values.first().map_or(0, |value| of(*value));
        let mut pieces = Pieces { starts: Vec::new(), values: vec![first] };
        for (start, value) in self.starts.iter().zip(self.values.iter().skip(1)) {
            pieces.begin(*start, of(*value));
        }
        Self { starts: pieces.starts.into(), values: pieces.values.into() }
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

/// Pieces in the making.
#[derive(Debug)]
struct Pieces<K> {
    starts: Vec<K>,
    values: Vec<u32>,
}

impl<K: Address> Pieces<K> {
    /// From `start` on, which is not before the last start, it is `value`.
    fn begin(&mut self, start: K, value: u32) {
        if start == K::default() {
            self.values = vec![value];
            return;
        }
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.values.pop();
        }
        if self.values.last() != Some(&value) {
            self.starts.push(start);
            self.values.push(value);
        }
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
    /// Pieces by the prefixes that they are in. What is in none has the number 0; what is in a prefix
    /// the one that `within` says, given the number around the prefix and its place in `prefixes`.
    /// Of equal prefixes the first is the outermost.
    pub fn cut(prefixes: &[IpNet], mut within: impl FnMut(u32, u32) -> u32) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (place, prefix) in (0_u32..).zip(prefixes) {
            match prefix {
                IpNet::V4(net) => v4.push(Span::new(net.addr().to_bits(), net.prefix_len(), place)),
                IpNet::V6(net) => v6.push(Span::new(net.addr().to_bits(), net.prefix_len(), place)),
            }
        }
        Self { v4: Intervals::cut(v4, &mut within), v6: Intervals::cut(v6, &mut within) }
    }

    /// Each piece has the number of the first of `prefixes` that it is in, by `number` of its place;
    /// what is in none has 0.
    pub fn first(prefixes: &[IpNet], number: impl Fn(u32) -> u32) -> Self {
        let outer = |around: u32, place: u32| {
            if around == 0 { place + 1 } else { around.min(place + 1) }
        };
        let pieces = Self::cut(prefixes, outer);
        pieces.renumber(|first| first.checked_sub(1).map_or(0, &number))
    }

    /// The same pieces by other numbers; neighbours that have the same number then are one.
    #[must_use]
    pub fn renumber(&self, mut of: impl FnMut(u32) -> u32) -> Self {
        Self { v4: self.v4.renumber(&mut of), v6: self.v6.renumber(&mut of) }
    }

    /// 1 for what is in any of `prefixes`, else 0.
    #[must_use]
    pub fn union(prefixes: &[IpNet]) -> Self {
        Self::cut(prefixes, |_, _| 1)
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
            let mut lists: Vec<Vec<u32>> = vec![Vec::new()];
            let spaces = Spaces::cut(&prefixes, |around, place| {
                let mut list = lists[around as usize].clone();
                list.push(place);
                lists.push(list);
                u32::try_from(lists.len() - 1).unwrap()
            });
            let first = Spaces::first(&prefixes, |place| place / 2 + 1);
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
                let mut list = lists[spaces.get(probe) as usize].clone();
                list.sort_unstable();
                prop_assert_eq!(&list, &expected, "{}", probe);
                let number = expected.first().map_or(0, |place| place / 2 + 1);
                prop_assert_eq!(first.get(probe), number, "{}", probe);
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
