//! A hash table whose versions share what they have in common.
//!
//! Extendible hashing: a directory of pages of 64 buckets, a bucket one cache line. A reader
//! takes one directory line (in the first-level cache, being small) and one bucket line. A change
//! copies one page, and the directory's pointers; a page that is too full splits, so a change
//! costs what changed and never a rehash of everything.
//!
//! ```text
//! hash:  [ directory bits ............ | bucket: 6 bits ]
//! ```
#![allow(
    clippy::cast_possible_truncation,
    reason = "the halves of a product and the low bits of a hash are meant"
)]

use std::sync::Arc;

use crate::packet::prefetch::prefetch;

const BUCKETS: usize = 64;

/// What can be a key: fixed-size bits that hash well.
pub trait Key: Copy + Eq + Default + std::fmt::Debug + Send + Sync + 'static {
    /// Slots of a bucket, so that keys and 4-byte values fill one cache line.
    type Bucket: Bucket<Self>;

    /// 64 well-mixed bits.
    fn mix(self) -> u64;
}

/// One cache line of keys and values. A value of 0 is an empty slot; filled slots come first.
pub trait Bucket<K>: Copy + Default + std::fmt::Debug + Send + Sync + 'static {
    /// Its slots.
    const SLOTS: usize;
    /// The key and value of a slot.
    fn slot(&self, slot: usize) -> (K, u32);
    /// Writes a slot.
    fn set(&mut self, slot: usize, key: K, value: u32);
    /// The value of `key`: 0 when it is not here; none when it may be in the next bucket.
    fn find(&self, key: K) -> Option<u32>;
}

macro_rules! bucket {
    ($(#[$doc:meta])* $name:ident, $key:ty, $slots:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default)]
        #[repr(align(64))]
        pub struct $name {
            keys: [$key; $slots],
            values: [u32; $slots],
        }

        impl Bucket<$key> for $name {
            const SLOTS: usize = $slots;

            #[inline]
            fn slot(&self, slot: usize) -> ($key, u32) {
                (self.keys[slot], self.values[slot])
            }

            #[inline]
            fn set(&mut self, slot: usize, key: $key, value: u32) {
                (self.keys[slot], self.values[slot]) = (key, value);
            }

            #[inline]
            fn find(&self, key: $key) -> Option<u32> {
                let mut found = 0;
                for slot in 0..$slots {
                    // Without branches: the compiler compares all slots at once.
                    found |= if self.keys[slot] == key { self.values[slot] } else { 0 };
                }
                (found != 0 || self.values[$slots - 1] == 0).then_some(found)
            }
        }
    };
}

bucket!(
    /// Eight IPv4 addresses.
    Bucket4, u32, 8
);
bucket!(
    /// Three IPv6 addresses.
    Bucket6, u128, 3
);
bucket!(
    /// Five keys of 64 bits.
    Bucket8, u64, 5
);

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

impl Key for u32 {
    type Bucket = Bucket4;

    #[inline]
    fn mix(self) -> u64 {
        // The upper bits choose the page, and bits that all of the key reaches the bucket.
        let product = u64::from(self).wrapping_mul(MULTIPLIER);
        product ^ product >> 32
    }
}

impl Key for u64 {
    type Bucket = Bucket8;

    #[inline]
    fn mix(self) -> u64 {
        let product = u128::from(self ^ 0x5bd1_e995_7f4a_7c15) * u128::from(MULTIPLIER);
        let folded = (product >> 64) as u64 ^ product as u64;
        // Twice: the keys differ in few bits, and high ones among them.
        let product = u128::from(folded) * u128::from(MULTIPLIER);
        (product >> 64) as u64 ^ product as u64
    }
}

impl Key for u128 {
    type Bucket = Bucket6;

    #[inline]
    fn mix(self) -> u64 {
        let high = (self >> 64) as u64 ^ 0x5bd1_e995_7f4a_7c15;
        let low = self as u64 ^ MULTIPLIER;
        let product = u128::from(high) * u128::from(low | 1);
        let folded = (product >> 64) as u64 ^ product as u64 ^ high.rotate_left(32) ^ low;
        let product = u128::from(folded) * u128::from(MULTIPLIER);
        (product >> 64) as u64 ^ product as u64
    }
}

#[derive(Debug, Clone)]
#[repr(C)]
struct Page<K: Key> {
    buckets: [K::Bucket; BUCKETS],
    /// Directory bits that all keys of this page share.
    depth: u32,
    used: usize,
}

impl<K: Key> Page<K> {
    const LIMIT: usize = BUCKETS * <K::Bucket as Bucket<K>>::SLOTS * 3 / 4;

    fn empty(depth: u32) -> Self {
        Self { buckets: [K::Bucket::default(); BUCKETS], depth, used: 0 }
    }

    #[inline]
    fn get(&self, key: K, hash: u64) -> u32 {
        match self.buckets[hash as usize % BUCKETS].find(key) {
            Some(value) => value,
            None => self.get_behind(key, hash),
        }
    }

    /// The value of a key whose own bucket is full of others.
    #[cold]
    fn get_behind(&self, key: K, hash: u64) -> u32 {
        let first = hash as usize % BUCKETS;
        for step in 1..BUCKETS {
            if let Some(value) = self.buckets[(first + step) % BUCKETS].find(key) {
                return value;
            }
        }
        0
    }

    /// Adds a key that is not there. The page has room: it is at most three quarters full.
    fn add(&mut self, key: K, hash: u64, value: u32) {
        let first = hash as usize % BUCKETS;
        for step in 0..BUCKETS {
            let bucket = &mut self.buckets[(first + step) % BUCKETS];
            for slot in 0..K::Bucket::SLOTS {
                if bucket.slot(slot).1 == 0 {
                    bucket.set(slot, key, value);
                    self.used += 1;
                    return;
                }
            }
        }
    }

    /// Writes another value for a key that is there; says whether it was.
    fn replace(&mut self, key: K, hash: u64, value: u32) -> bool {
        let first = hash as usize % BUCKETS;
        for step in 0..BUCKETS {
            let bucket = &mut self.buckets[(first + step) % BUCKETS];
            for slot in 0..K::Bucket::SLOTS {
                match bucket.slot(slot) {
                    (_, 0) => return false,
                    (k, _) if k == key => {
                        bucket.set(slot, key, value);
                        return true;
                    }
                    _ => {}
                }
            }
        }
        false
    }

    fn entries(&self) -> impl Iterator<Item = (K, u32)> + '_ {
        let slots = self.buckets.iter();
        slots
            .flat_map(|bucket| (0..K::Bucket::SLOTS).map(|slot| bucket.slot(slot)))
            .filter(|(_, value)| *value != 0)
    }
}

/// A map from addresses to values other than 0. Cloning it is cheap: versions share pages.
#[derive(Debug, Clone)]
pub struct Map<K: Key> {
    directory: Arc<[Arc<Page<K>>]>,
    depth: u32,
    len: usize,
}

impl<K: Key> Default for Map<K> {
    fn default() -> Self {
        Self { directory: Arc::new([Arc::new(Page::empty(0))]), depth: 0, len: 0 }
    }
}

impl<K: Key> Map<K> {
    #[inline]
    fn page(&self, hash: u64) -> usize {
        // Two shifts: a shift by 64 is not defined.
        ((hash >> 1) >> (63 - self.depth)) as usize
    }

    /// The value of `key`; 0 when there is none.
    #[inline]
    #[must_use]
    pub fn get(&self, key: K) -> u32 {
        let hash = key.mix();
        // The directory has 2^depth entries, so the page is always there.
        self.directory.get(self.page(hash)).map_or(0, |page| page.get(key, hash))
    }

    /// Brings the line near that [`Map::get`] will read.
    #[inline]
    pub fn prefetch(&self, key: K) {
        let hash = key.mix();
        if let Some(page) = self.directory.get(self.page(hash)) {
            prefetch(&page.buckets[hash as usize % BUCKETS]);
        }
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Has it no entry?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory, pages that other versions share included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let mut pages = 0;
        let mut last = std::ptr::null();
        for page in self.directory.iter() {
            // Entries that share a page stand side by side.
            if !std::ptr::eq(last, Arc::as_ptr(page)) {
                pages += 1;
                last = Arc::as_ptr(page);
            }
        }
        pages * (std::mem::size_of::<Page<K>>() + 16) + self.directory.len() * 8
    }

    /// Sets the value of `key`; returns the former one, 0 for none. A `value` of 0 removes it.
    pub fn set(&mut self, key: K, value: u32) -> u32 {
        let hash = key.mix();
        let old = self.get(key);
        if value == old {
            return old;
        }
        if value == 0 {
            self.remove(key, hash);
        } else if old != 0 {
            let at = self.page(hash);
            self.edit(at, |page| {
                page.replace(key, hash, value);
            });
        } else {
            while self.directory[self.page(hash)].used >= Page::<K>::LIMIT {
                self.split(self.page(hash));
            }
            let at = self.page(hash);
            self.edit(at, |page| page.add(key, hash, value));
            self.len += 1;
        }
        old
    }

    /// The range of directory entries that share the page of entry `at`.
    fn range(&self, at: usize) -> std::ops::Range<usize> {
        let shared = 1_usize << (self.depth - self.directory[at].depth);
        let first = at & !(shared - 1);
        first..first + shared
    }

    /// Changes the page of directory entry `at`, in place when no other version has it.
    fn edit(&mut self, at: usize, change: impl FnOnce(&mut Page<K>)) {
        let range = self.range(at);
        let directory = Arc::make_mut(&mut self.directory);
        let mut page = directory[range.start].clone();
        for entry in &mut directory[range.clone()] {
            // Lets go of the shared pointers so that the page may be ours alone.
            *entry = page.clone();
        }
        if range.len() == 1 {
            // Two owners: `page` and the entry. Take the entry's away to edit in place.
            drop(page);
            change(Arc::make_mut(&mut directory[range.start]));
            return;
        }
        change(Arc::make_mut(&mut page));
        for entry in &mut directory[range] {
            *entry = page.clone();
        }
    }

    fn remove(&mut self, key: K, hash: u64) {
        let at = self.page(hash);
        self.edit(at, |page| {
            // Built anew without the key, so that no gap cuts a probe short.
            let mut rest = Page::empty(page.depth);
            for (k, value) in page.entries().filter(|(k, _)| *k != key) {
                rest.add(k, k.mix(), value);
            }
            *page = rest;
        });
        self.len -= 1;
    }

    fn split(&mut self, at: usize) {
        if self.directory[at].depth == self.depth {
            let doubled = self.directory.iter().flat_map(|page| [page.clone(), page.clone()]);
            self.directory = doubled.collect();
            self.depth += 1;
            return self.split(at * 2);
        }
        let range = self.range(at);
        let page = self.directory[at].clone();
        let depth = page.depth + 1;
        let mut halves = [Page::empty(depth), Page::empty(depth)];
        for (key, value) in page.entries() {
            let hash = key.mix();
            let half = (hash >> (64 - depth)) & 1;
            halves[half as usize].add(key, hash, value);
        }
        let [low, high] = halves.map(Arc::new);
        let middle = range.start + range.len() / 2;
        let directory = Arc::make_mut(&mut self.directory);
        for entry in range {
            directory[entry] = if entry < middle { low.clone() } else { high.clone() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!(std::mem::size_of::<Bucket4>(), 64);
        assert_eq!(std::mem::size_of::<Bucket6>(), 64);
        assert_eq!(std::mem::size_of::<Bucket8>(), 64);
    }

    fn agrees<K: Key + std::hash::Hash>(steps: &[(K, u32)]) {
        let mut map = Map::<K>::default();
        let mut model = HashMap::new();
        let mut versions = Vec::new();
        for (number, (key, value)) in steps.iter().enumerate() {
            let before = if *value == 0 { model.remove(key) } else { model.insert(*key, *value) };
            assert_eq!(map.set(*key, *value), before.unwrap_or(0));
            assert_eq!(map.len(), model.len());
            if number % 97 == 0 {
                versions.push((map.clone(), model.clone()));
            }
        }
        versions.push((map, model));
        for (map, model) in versions {
            for (key, value) in &model {
                assert_eq!(map.get(*key), *value);
            }
            for (key, _) in steps {
                assert_eq!(map.get(*key), model.get(key).copied().unwrap_or(0));
            }
        }
    }

    proptest! {
        #[test]
        fn versions_agree_with_a_plain_map(
            steps in prop::collection::vec((0_u32..3000, 0_u32..4), 0..4000)
        ) {
            agrees(&steps);
            let wide: Vec<_> = steps
                .iter()
                .map(|(key, value)| (u128::from(*key) << 64 | 0xfd00, *value))
                .collect();
            agrees(&wide);
            let ports: Vec<_> =
                steps.iter().map(|(key, value)| (u64::from(*key) << 40 | 6 << 16, *value)).collect();
            agrees(&ports);
        }
    }

    #[test]
    fn half_a_million_addresses_are_found() {
        let mut map = Map::<u32>::default();
        for n in 0..500_000_u32 {
            map.set(0x0af4_0000 + n, n + 1);
        }
        assert_eq!(map.len(), 500_000);
        for n in 0..500_000_u32 {
            assert_eq!(map.get(0x0af4_0000 + n), n + 1);
        }
        assert_eq!(map.get(0x0af4_0000 - 1), 0);
        assert!(map.bytes() < 500_000 * 24, "{} bytes", map.bytes());
    }
}
