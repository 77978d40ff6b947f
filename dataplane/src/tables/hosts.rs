//! Single addresses -> what has them, small where a cluster is regular.
//!
//! A cluster gives its pods addresses in runs: a range for each node, used from its beginning or in
//! blocks of 64. So most of an aligned block of 64 addresses are behind the same peer, and are
//! kept as one entry: the route, and a bit for each address that has it. Half a million pods on
//! 10,000 nodes are then 10,000 entries, which the second-level cache holds, instead of half a
//! million lines of memory. What does not fit the pattern (addresses drawn at random, endpoints
//! here, each with a route of its own) stands in a table by whole address.
//!
//! ```text
//! blocks:   address / 64  ->  route, 64 bits      at least FEWEST addresses share the route
//! singles:  address       ->  route               all others
//! ```
//! An address is in one of the two, never in both.

use std::hint::select_unpredictable;

use super::hash::{Bucket, Key, Map, Table};

/// So many of a block's addresses with one route make an entry.
const ENOUGH: u32 = 8;
/// With fewer than these the entry is dissolved. Less than [`ENOUGH`], so that an address that
/// comes and goes does not do this every time.
const FEWEST: u32 = 4;

/// What 64 neighboring addresses have in common.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Block {
    /// Bit n: address n of the block has the route.
    members: u64,
    /// The route, see [`crate::packet::meta::Route`].
    route: u32,
}

impl Block {
    #[inline]
    fn has(self, low: u32) -> bool {
        self.members >> low & 1 == 1
    }

    fn count(self) -> u32 {
        self.members.count_ones()
    }
}

/// A key of which 64 neighbors can be a block.
pub trait Neighbor: Key {
    /// Blocks of a cache line.
    type Blocks: Bucket<Key = Self, Value = Block> + Lookup<Self>;

    /// The block's address `low`, from any address of the block.
    #[must_use]
    fn neighbor(self, low: u32) -> Self;
}

/// A line of blocks, asked for one address.
pub trait Lookup<K> {
    /// The route that `address` has by one of these blocks, 0 for none; and whether its block
    /// may be in another line.
    fn route(&self, address: K) -> (u32, bool);
}

macro_rules! blocks {
    ($(#[$doc:meta])* $name:ident, $key:ty, $slots:literal, $load:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default)]
        #[repr(align(64))]
        pub struct $name {
            keys: [$key; $slots],
            members: [u64; $slots],
            routes: [u32; $slots],
        }

        impl Bucket for $name {
            type Key = $key;
            type Value = Block;
            const SLOTS: usize = $slots;
            const LOAD: usize = $load;

            #[inline]
            fn hash(key: $key) -> u64 {
                key.mix_block()
            }

            #[inline]
            fn slot(&self, slot: usize) -> ($key, Block) {
                let (members, route) = (self.members[slot], self.routes[slot]);
                (self.keys[slot], Block { members, route })
            }

            #[inline]
            fn set(&mut self, slot: usize, key: $key, value: Block) {
                self.keys[slot] = key;
                (self.members[slot], self.routes[slot]) = (value.members, value.route);
            }

            #[inline]
            fn find(&self, key: $key) -> Option<Block> {
                let mut found = Block::default();
                for slot in 0..$slots {
                    if self.keys[slot] == key {
                        found.members |= self.members[slot];
                        found.route |= self.routes[slot];
                    }
                }
                (found.route != 0 || self.routes[$slots - 1] == 0).then_some(found)
            }
        }

        impl Lookup<$key> for $name {
            #[inline]
            fn route(&self, address: $key) -> (u32, bool) {
                let (start, low) = (address.neighbor(0), address.low());
                let mut route = 0;
                for slot in 0..$slots {
                    // Without branches, as in any bucket.
                    let is_it = (self.keys[slot] == start) & (self.members[slot] >> low & 1 == 1);
                    route |= select_unpredictable(is_it, self.routes[slot], 0);
                }
                (route, self.routes[$slots - 1] != 0)
            }
        }

        impl Neighbor for $key {
            type Blocks = $name;

            #[inline]
            fn neighbor(self, low: u32) -> Self {
                self & !63 | <$key>::from(low)
            }
        }
    };
}

blocks!(
    /// Four blocks of IPv4 addresses.
    Blocks4, u32, 4, 75
);
blocks!(
    /// Two blocks of IPv6 addresses.
    Blocks6, u128, 2, 50
);

/// A map from addresses to routes other than 0. Cloning it is cheap: versions share what they
/// have in common.
#[derive(Debug, Clone)]
pub struct Hosts<K: Neighbor> {
    blocks: Table<K::Blocks>,
    singles: Map<K>,
}

impl<K: Neighbor> Default for Hosts<K> {
    fn default() -> Self {
        Self { blocks: Table::default(), singles: Table::default() }
    }
}

impl<K: Neighbor> Hosts<K> {
    /// The route of `address`; 0 when there is none.
    #[inline]
    #[must_use]
    pub fn get(&self, address: K) -> u32 {
        let (route, is_full) = self.blocks.home(address).map_or((0, false), |b| b.route(address));
        if route != 0 {
            return route;
        }
        if is_full {
            return self.get_behind(address);
        }
        self.singles.get(address)
    }

    /// As [`Hosts::get`], for an address whose block may not be where it belongs.
    #[cold]
    fn get_behind(&self, address: K) -> u32 {
        let block = self.blocks.get(address.neighbor(0));
        if block.has(address.low()) { block.route } else { self.singles.get(address) }
    }

    /// Brings the lines near that [`Hosts::get`] may read.
    #[inline]
    pub fn prefetch(&self, address: K) {
        self.blocks.prefetch(address);
        // Where blocks hold nearly all, there are few singles, and they are seldom asked.
        if !self.singles.is_small() {
            self.singles.prefetch(address);
        }
    }

    /// Sets the route of `address`; 0 removes it. Returns the former one.
    pub fn set(&mut self, address: K, route: u32) -> u32 {
        let (start, bit) = (address.neighbor(0), 1 << address.low());
        let block = self.blocks.get(start);
        if block.has(address.low()) {
            if block.route != route {
                self.leave(start, Block { members: block.members & !bit, ..block });
                self.singles.set(address, route);
            }
            return block.route;
        }
        if route != 0 && block.route == route {
            self.blocks.set(start, Block { members: block.members | bit, ..block });
            return self.singles.set(address, 0);
        }
        let old = self.singles.set(address, route);
        if route != 0 && old != route && block.members == 0 {
            self.gather(address, route);
        }
        old
    }

    /// `block` has lost a member.
    fn leave(&mut self, start: K, block: Block) {
        if block.count() >= FEWEST {
            self.blocks.set(start, block);
            return;
        }
        self.blocks.set(start, Block::default());
        for low in (0..64).filter(|low| block.has(*low)) {
            self.singles.set(start.neighbor(low), block.route);
        }
    }

    /// Makes a block of what is around `address`, if enough has the same route.
    fn gather(&mut self, address: K, route: u32) {
        let quarter = address.low() & !15;
        let members = |lows: std::ops::Range<u32>| {
            lows.filter(|low| self.singles.get(address.neighbor(*low)) == route)
                .fold(0_u64, |members, low| members | 1 << low)
        };
        // Where even the nearest have nothing in common, the others need not be asked.
        if members(quarter..quarter + 16).count_ones() < ENOUGH / 4 {
            return;
        }
        let block = Block { members: members(0..64), route };
        if block.count() < ENOUGH {
            return;
        }
        self.blocks.set(address.neighbor(0), block);
        for low in (0..64).filter(|low| block.has(*low)) {
            self.singles.set(address.neighbor(low), 0);
        }
    }

    /// Bytes of memory, pages that other versions share included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.bytes() + self.singles.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!(size_of::<Blocks4>(), 64);
        assert_eq!(size_of::<Blocks6>(), 64);
    }

    fn check<K: Neighbor>(hosts: &Hosts<K>, model: &HashMap<u32, u32>, key: impl Fn(u32) -> K) {
        let mut members = 0;
        for number in 0..512 {
            let expected = model.get(&number).copied().unwrap_or(0);
            assert_eq!(hosts.get(key(number)), expected, "{number}");
            let block = hosts.blocks.get(key(number).neighbor(0));
            if block.has(key(number).low()) {
                assert_eq!(hosts.singles.get(key(number)), 0, "{number} is in both");
                members += 1;
            }
            assert!(block.count() == 0 || block.count() >= FEWEST);
        }
        assert_eq!(members + hosts.singles.len(), model.len());
    }

    fn agrees<K: Neighbor>(steps: &[(u32, u32)], key: impl Fn(u32) -> K) {
        let mut hosts = Hosts::<K>::default();
        let mut model = HashMap::new();
        let mut versions = Vec::new();
        for (step, (number, route)) in steps.iter().enumerate() {
            let old =
                if *route == 0 { model.remove(number) } else { model.insert(*number, *route) };
            assert_eq!(hosts.set(key(*number), *route), old.unwrap_or(0));
            if step % 499 == 0 {
                versions.push((hosts.clone(), model.clone()));
            }
        }
        versions.push((hosts, model));
        for (hosts, model) in versions {
            check(&hosts, &model, &key);
        }
    }

    proptest! {
        /// Runs of neighbors get the same route or lose it, so that blocks form, mix and dissolve.
        #[test]
        fn versions_agree_with_a_plain_map(
            runs in prop::collection::vec((0_u32..512, 1_u32..40, 0_u32..3), 0..80)
        ) {
            let steps: Vec<_> = runs
                .iter()
                .flat_map(|(first, len, route)| {
                    (*first..(first + len).min(512)).map(move |number| (number, *route))
                })
                .collect();
            agrees(&steps, |number| 0x0af4_0000 + number);
            agrees(&steps, |number| (0xfd00_u128 << 112) + u128::from(number));
        }
    }

    #[test]
    fn neighbors_behind_one_peer_are_one_entry() {
        let mut hosts = Hosts::<u32>::default();
        for peer in 0..100 {
            for pod in 10..60 {
                hosts.set(peer << 8 | pod, peer + 1);
            }
        }
        assert_eq!((hosts.blocks.len(), hosts.singles.len()), (100, 0));
        // An address that has moved to another peer is an exception, the others stay.
        assert_eq!(hosts.set(7 << 8 | 20, 9), 8);
        assert_eq!((hosts.blocks.len(), hosts.singles.len()), (100, 1));
        assert_eq!(hosts.get(7 << 8 | 20), 9);
        assert_eq!(hosts.set(7 << 8 | 20, 8), 9);
        assert_eq!((hosts.blocks.len(), hosts.singles.len()), (100, 0));
        for pod in 10..60 {
            assert_eq!(hosts.set(7 << 8 | pod, 0), 8);
        }
        assert_eq!((hosts.blocks.len(), hosts.singles.len()), (99, 0));
    }

    #[test]
    fn scattered_addresses_are_single_entries() {
        let mut hosts = Hosts::<u128>::default();
        for number in 0..10_000_u128 {
            hosts.set(number << 4 | 5, 1 + (number % 100) as u32);
        }
        assert_eq!((hosts.blocks.len(), hosts.singles.len()), (0, 10_000));
    }
}
