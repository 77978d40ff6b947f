//! A hash table whose versions share what they have in common.
//!
//! Extendible hashing: a directory of pages of 64 buckets, a bucket one cache line. A reader
//! takes one directory line (in the first-level cache, being small) and one bucket line. A change
//! copies one page, and the directory's pointers; a page that is too full splits, so a change
//! costs what changed and never a rehash of everything. All pages of all tables stand side by side
//! in huge pages ([`Shared`]), so that a reader seldom misses the TLB.
//!
//! ```text
//! hash:  [ directory bits ............ | bucket: 6 bits ]
//! ```
#![allow(
    clippy::cast_possible_truncation,
    reason = "the halves of a product and the low bits of a hash are meant"
)]

use std::hint::select_unpredictable;
use std::sync::Arc;

use crate::packet::lanes;
use crate::packet::prefetch::prefetch;
use crate::packet::region::Shared;

const BUCKETS: usize = 64;

/// Directory bits of a table that caches keep: 8 pages, 32 KiB.
const SMALL: u32 = 3;

/// What can be a key: fixed-size bits that hash well.
pub trait Key: Copy + Eq + Default + std::fmt::Debug + Send + Sync + 'static {
    /// Slots of a bucket, so that keys and 4-byte values fill one cache line.
    type Bucket: Bucket<Key = Self, Value = u32>;

    /// 64 well-mixed bits of the key without its lowest 6: one hash for 64 neighbors.
    fn mix_block(self) -> u64;

    /// The lowest 6 bits.
    fn low(self) -> u32;

    /// 64 well-mixed bits. Neighbors have different buckets, and their pages are spread.
    #[inline]
    fn mix(self) -> u64 {
        self.mix_block().wrapping_add(u64::from(self.low()).wrapping_mul(MULTIPLIER))
    }
}

/// One cache line of keys and values. The default value marks an empty slot; filled slots come
/// first.
pub trait Bucket: Copy + Default + std::fmt::Debug + Send + Sync + 'static {
    /// What is looked up.
    type Key: Key;
    /// What is found.
    type Value: Copy + Default + Eq;
    /// Its slots.
    const SLOTS: usize;
    /// Percentage of a page's slots that may be filled: the fewer slots a bucket has, the sooner
    /// one is full while others are empty.
    const LOAD: usize = 75;
    /// Hash of a key.
    fn hash(key: Self::Key) -> u64;
    /// The key and value of a slot.
    fn slot(&self, slot: usize) -> (Self::Key, Self::Value);
    /// Writes a slot.
    fn set(&mut self, slot: usize, key: Self::Key, value: Self::Value);
    /// The value of `key`: the default when it is not here; none when it may be in the next
    /// bucket.
    fn find(&self, key: Self::Key) -> Option<Self::Value>;
}

macro_rules! bucket {
    ($(#[$doc:meta])* $name:ident, $key:ty, $slots:literal, $select:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default)]
        #[repr(align(64))]
        pub struct $name {
            keys: [$key; $slots],
            values: [u32; $slots],
        }

        impl Bucket for $name {
            type Key = $key;
            type Value = u32;
            const SLOTS: usize = $slots;

            #[inline]
            fn hash(key: $key) -> u64 {
                key.mix()
            }

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
                let select: fn(&[$key; $slots], $key, &[u32; $slots]) -> u32 = $select;
                let found = select(&self.keys, key, &self.values);
                (found != 0 || self.values[$slots - 1] == 0).then_some(found)
            }
        }
    };
}

/// The value of `key` among those of a bucket; 0: it is not there.
#[inline(always)]
fn select<K: Key, const SLOTS: usize>(keys: &[K; SLOTS], key: K, values: &[u32; SLOTS]) -> u32 {
    let mut found = 0;
    for slot in 0..SLOTS {
        // Without branches: which slot it is cannot be foretold.
        found |= select_unpredictable(keys[slot] == key, values[slot], 0);
    }
    found
}

bucket!(
    /// Eight IPv4 addresses.
    Bucket4, u32, 8, lanes::select
);
bucket!(
    /// Three IPv6 addresses.
    Bucket6, u128, 3, select
);
bucket!(
    /// Five keys of 64 bits.
    Bucket8, u64, 5, select
);

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

impl Key for u32 {
    type Bucket = Bucket4;

    #[inline]
    fn mix_block(self) -> u64 {
        // The upper bits choose the page, and bits that all of the key reaches the bucket.
        let product = u64::from(self >> 6).wrapping_mul(MULTIPLIER);
        product ^ product >> 32
    }

    #[inline]
    fn low(self) -> u32 {
        self & 63
    }
}

impl Key for u64 {
    type Bucket = Bucket8;

    #[inline]
    fn mix_block(self) -> u64 {
        let product = u128::from((self >> 6) ^ 0x5bd1_e995_7f4a_7c15) * u128::from(MULTIPLIER);
        let folded = (product >> 64) as u64 ^ product as u64;
        // Twice: the keys differ in few bits, and high ones among them.
        let product = u128::from(folded) * u128::from(MULTIPLIER);
        (product >> 64) as u64 ^ product as u64
    }

    #[inline]
    fn low(self) -> u32 {
        (self & 63) as u32
    }
}

impl Key for u128 {
    type Bucket = Bucket6;

    #[inline]
    fn mix_block(self) -> u64 {
        // Two multiplications, one behind the other: prefixes differ in few bits, and so do the
        // interfaces behind them.
        let (high, low) = ((self >> 64) as u64, self as u64 >> 6);
        let sum = high.wrapping_mul(0x5bd1_e995_7f4a_7c15).wrapping_add(low);
        let product = u128::from(sum) * u128::from(MULTIPLIER);
        (product >> 64) as u64 ^ product as u64
    }

    #[inline]
    fn low(self) -> u32 {
        (self & 63) as u32
    }
}

#[derive(Debug, Clone)]
#[repr(C)]
struct Page<B> {
    buckets: [B; BUCKETS],
    /// Directory bits that all keys of this page share.
    depth: u32,
    used: usize,
}

impl<B: Bucket> Page<B> {
    const LIMIT: usize = BUCKETS * B::SLOTS * B::LOAD / 100;

    fn empty(depth: u32) -> Self {
        Self { buckets: [B::default(); BUCKETS], depth, used: 0 }
    }

    #[inline]
    fn get(&self, key: B::Key, hash: u64) -> B::Value {
        match self.buckets[hash as usize % BUCKETS].find(key) {
            Some(value) => value,
            None => self.get_behind(key, hash),
        }
    }

    /// The value of a key whose own bucket is full of others.
    #[cold]
    fn get_behind(&self, key: B::Key, hash: u64) -> B::Value {
        let first = hash as usize % BUCKETS;
        for step in 1..BUCKETS {
            if let Some(value) = self.buckets[(first + step) % BUCKETS].find(key) {
                return value;
            }
        }
        B::Value::default()
    }

    /// Adds a key that is not there. The page has room: it is at most three quarters full.
    fn add(&mut self, key: B::Key, hash: u64, value: B::Value) {
        let first = hash as usize % BUCKETS;
        for step in 0..BUCKETS {
            let bucket = &mut self.buckets[(first + step) % BUCKETS];
            for slot in 0..B::SLOTS {
                if bucket.slot(slot).1 == B::Value::default() {
                    bucket.set(slot, key, value);
                    self.used += 1;
                    return;
                }
            }
        }
    }

    /// Writes another value for a key that is there; says whether it was.
    fn replace(&mut self, key: B::Key, hash: u64, value: B::Value) -> bool {
        let first = hash as usize % BUCKETS;
        for step in 0..BUCKETS {
            let bucket = &mut self.buckets[(first + step) % BUCKETS];
            for slot in 0..B::SLOTS {
                let (k, old) = bucket.slot(slot);
                if old == B::Value::default() {
                    return false;
                }
                if k == key {
                    bucket.set(slot, key, value);
                    return true;
                }
            }
        }
        false
    }

    fn entries(&self) -> impl Iterator<Item = (B::Key, B::Value)> + '_ {
        let slots = self.buckets.iter();
        slots
            .flat_map(|bucket| (0..B::SLOTS).map(|slot| bucket.slot(slot)))
            .filter(|(_, value)| *value != B::Value::default())
    }
}

/// A map from keys to values other than 0.
pub type Map<K> = Table<<K as Key>::Bucket>;

/// A table of some kind of buckets. Cloning it is cheap: versions share pages.
#[derive(Debug, Clone)]
pub struct Table<B> {
    directory: Arc<[Shared<Page<B>>]>,
    depth: u32,
    len: usize,
}

impl<B: Bucket> Default for Table<B> {
    fn default() -> Self {
        Self { directory: Arc::new([Shared::new(Page::empty(0))]), depth: 0, len: 0 }
    }
}

impl<B: Bucket> Table<B> {
    #[inline]
    fn page(&self, hash: u64) -> usize {
        // Two shifts: a shift by 64 is not defined.
        ((hash >> 1) >> (63 - self.depth)) as usize
    }

    /// The value of `key`; the default when there is none.
    #[inline]
    #[must_use]
    pub fn get(&self, key: B::Key) -> B::Value {
        let hash = B::hash(key);
        // The directory has 2^depth entries, so the page is always there.
        self.directory.get(self.page(hash)).map_or(B::Value::default(), |page| page.get(key, hash))
    }

    /// The bucket where `key` is, unless that was full already.
    #[inline]
    pub(super) fn home(&self, key: B::Key) -> Option<&B> {
        let hash = B::hash(key);
        // The directory has 2^depth entries, so the page is always there.
        self.directory.get(self.page(hash)).map(|page| &page.buckets[hash as usize % BUCKETS])
    }

    /// Brings the line near that [`Table::get`] will read.
    #[inline]
    pub fn prefetch(&self, key: B::Key) {
        if let Some(bucket) = self.home(key) {
            prefetch(bucket);
        }
    }

    /// Is the table so small that what is looked up often stays in the second-level cache?
    #[inline]
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.depth <= SMALL
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
        // Entries that share a page stand side by side.
        let pages = self.directory.chunk_by(Shared::is_same).count();
        pages * Shared::<Page<B>>::BYTES + self.directory.len() * 8
    }

    /// Sets the value of `key`; returns the former one. The default, which is also what
    /// stands for none, removes it.
    pub fn set(&mut self, key: B::Key, value: B::Value) -> B::Value {
        let hash = B::hash(key);
        let old = self.get(key);
        if value == old {
            return old;
        }
        if value == B::Value::default() {
            self.remove(key, hash);
        } else if old != B::Value::default() {
            let at = self.page(hash);
            self.edit(at, |page| {
                page.replace(key, hash, value);
            });
        } else {
            while self.directory[self.page(hash)].used >= Page::<B>::LIMIT {
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
    fn edit(&mut self, at: usize, change: impl FnOnce(&mut Page<B>)) {
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
            change(directory[range.start].make_mut());
            return;
        }
        change(page.make_mut());
        for entry in &mut directory[range] {
            *entry = page.clone();
        }
    }

    fn remove(&mut self, key: B::Key, hash: u64) {
        let at = self.page(hash);
        self.edit(at, |page| {
            // Built anew without the key, so that no gap cuts a probe short.
            let mut rest = Page::empty(page.depth);
            for (k, value) in page.entries().filter(|(k, _)| *k != key) {
                rest.add(k, B::hash(k), value);
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
            let hash = B::hash(key);
            let half = (hash >> (64 - depth)) & 1;
            halves[half as usize].add(key, hash, value);
        }
        let [low, high] = halves.map(Shared::new);
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
