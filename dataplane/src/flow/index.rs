//! From the hash of a key to the half that may have it.
//!
//! A bucket is one cache line of 8 slots, each a tag (the 32-bit hash) and the number of a half. An
//! entry lives in its first bucket, unless that was full when it came, then in its second; both follow
//! from the tag, so that entries can be moved without looking at halves. At most half of the slots are
//! in use, so that about one entry in fifty is in its second bucket. When both are full, one of their
//! entries moves to its own other bucket; with half of the slots free, one of the sixteen can.
//!
//! A bucket also knows how many entries that belong to it are elsewhere. Mostly none: then a key that
//! is not there is known not to be after one line.

use bytemuck::AnyBitPattern;

use super::HalfId;
use crate::packet::lanes;
use crate::packet::prefetch::prefetch;
use crate::packet::region::{Region, RegionError};

const SLOTS: usize = 8;
/// Entries of a bucket when the index is full.
const HALF_FULL: u32 = 4;
/// The slot is in use.
const VALID: u32 = 1 << 31;
/// As many slots have it, used or not, as entries of this bucket live in their second one. When all
/// have it, it is 8 or more, and stays so.
const AWAY: u32 = 1 << 30;
const NUMBER: u32 = AWAY - 1;

/// Most halves that an index can name.
pub const MAX_HALVES: u32 = NUMBER + 1;

/// One cache line: tags, then the halves that they stand for.
#[derive(Debug, Clone, Copy, AnyBitPattern)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u32; SLOTS],
    halves: [u32; SLOTS],
}

impl Bucket {
    /// All halves with this tag, ORed together: the half, when it is one.
    #[inline]
    fn probe(&self, tag: u32) -> u32 {
        lanes::select(&self.tags, tag, &self.halves)
    }

    /// Are entries of this bucket in their second one?
    #[inline]
    fn has_away(&self) -> bool {
        lanes::all(&self.halves) & AWAY != 0
    }

    fn entries(&self) -> impl Iterator<Item = (usize, u32, HalfId)> + '_ {
        (0..SLOTS)
            .filter(|slot| self.halves[*slot] & VALID != 0)
            .map(|slot| (slot, self.tags[slot], HalfId(self.halves[slot] & NUMBER)))
    }

    fn free_slot(&self) -> Option<usize> {
        self.halves.iter().position(|half| half & VALID == 0)
    }

    fn set(&mut self, slot: usize, tag: u32, half: HalfId) {
        self.tags[slot] = tag;
        self.halves[slot] = self.halves[slot] & AWAY | VALID | half.0;
    }

    fn clear(&mut self, slot: usize) {
        self.halves[slot] &= AWAY;
    }

    fn one_more_away(&mut self) {
        if let Some(half) = self.halves.iter_mut().find(|half| **half & AWAY == 0) {
            *half |= AWAY;
        }
    }

    fn one_less_away(&mut self) {
        let away = self.halves.iter().filter(|half| **half & AWAY != 0).count();
        if away < SLOTS
            && let Some(half) = self.halves.iter_mut().find(|half| **half & AWAY != 0)
        {
            *half &= !AWAY;
        }
    }
}

/// The index of one table.
#[derive(Debug)]
pub(super) struct Index {
    buckets: Region<Bucket>,
    mask: u32,
}

impl Index {
    /// An index for so many halves, at most [`MAX_HALVES`].
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn new(halves: u32) -> Result<Self, RegionError> {
        let buckets = halves.div_ceil(HALF_FULL).next_power_of_two().max(2);
        Ok(Self { buckets: Region::new(buckets as usize)?, mask: buckets - 1 })
    }

    pub(super) fn touch(&mut self) {
        self.buckets.touch();
    }

    pub(super) fn bytes(&self) -> usize {
        self.buckets.bytes()
    }

    pub(super) fn huge_pages_accepted(&self) -> bool {
        self.buckets.huge_pages_accepted()
    }

    /// How many buckets.
    pub(super) fn buckets(&self) -> u32 {
        self.mask + 1
    }

    #[inline]
    fn first(&self, hash: u32) -> usize {
        (hash & self.mask) as usize
    }

    /// Never the first.
    #[inline]
    fn second(&self, hash: u32) -> usize {
        // The bits that the first does not use come first.
        let other = hash.rotate_left(15).wrapping_mul(0x9e37_79b1) >> 3;
        ((hash & self.mask) ^ (other & self.mask | 1)) as usize
    }

    /// Brings the line near that [`Index::probe`] reads.
    #[inline]
    pub(super) fn prefetch(&self, hash: u32) {
        prefetch(&self.buckets[self.first(hash)]);
    }

    /// A half that may be the one: its key is still to be compared. When two have the same tag, it can
    /// be one that has nothing to do with either, or not exist; [`Index::find`] is exact.
    #[inline(always)]
    pub(super) fn probe(&self, hash: u32) -> Option<HalfId> {
        let bucket = &self.buckets[self.first(hash)];
        let mut found = bucket.probe(hash);
        if found & VALID == 0 && bucket.has_away() {
            found = self.probe_second(hash);
        }
        (found & VALID != 0).then_some(HalfId(found & NUMBER))
    }

    /// Few packets come here; those that do are not to make the others' code larger.
    #[cold]
    #[inline(never)]
    fn probe_second(&self, hash: u32) -> u32 {
        self.buckets[self.second(hash)].probe(hash)
    }

    /// The half with this hash that `is` the one.
    #[inline(always)]
    pub(super) fn find(&self, hash: u32, is: impl Fn(HalfId) -> bool) -> Option<HalfId> {
        let first = &self.buckets[self.first(hash)];
        // Mostly there is none: what opens a flow asks four times.
        if first.probe(hash) & VALID == 0 && !first.has_away() {
            return None;
        }
        self.find_one(hash, is)
    }

    #[inline(never)]
    fn find_one(&self, hash: u32, is: impl Fn(HalfId) -> bool) -> Option<HalfId> {
        let in_bucket = |bucket: &Bucket| {
            bucket.entries().find(|(_, tag, half)| *tag == hash && is(*half)).map(|found| found.2)
        };
        let first = &self.buckets[self.first(hash)];
        in_bucket(first)
            .or_else(|| first.has_away().then(|| in_bucket(&self.buckets[self.second(hash)]))?)
    }

    /// Adds a half that is not there. False when there is no room, nor can be made.
    #[must_use]
    pub(super) fn insert(&mut self, hash: u32, half: HalfId) -> bool {
        let (first, second) = (self.first(hash), self.second(hash));
        let place = [first, second]
            .into_iter()
            .find_map(|bucket| Some((bucket, self.buckets[bucket].free_slot()?)))
            .or_else(|| self.make_room(first))
            .or_else(|| self.make_room(second));
        let Some((bucket, slot)) = place else { return false };
        self.buckets[bucket].set(slot, hash, half);
        if bucket != first {
            self.buckets[first].one_more_away();
        }
        true
    }

    /// Moves an entry of a full bucket to its other one; returns the slot that it left.
    fn make_room(&mut self, bucket: usize) -> Option<(usize, usize)> {
        let (slot, tag, half, other, free) =
            self.buckets[bucket].entries().find_map(|(slot, tag, half)| {
                let (first, second) = (self.first(tag), self.second(tag));
                let other = if bucket == first { second } else { first };
                Some((slot, tag, half, other, self.buckets[other].free_slot()?))
            })?;
        self.buckets[other].set(free, tag, half);
        self.buckets[bucket].clear(slot);
        let home = self.first(tag);
        if home == bucket {
            self.buckets[home].one_more_away();
        } else {
            self.buckets[home].one_less_away();
        }
        Some((bucket, slot))
    }

    /// Takes a half out. Nothing happens when it is not there.
    pub(super) fn remove(&mut self, hash: u32, half: HalfId) {
        let (first, second) = (self.first(hash), self.second(hash));
        for bucket in [first, second] {
            let found = self.buckets[bucket].entries().find(|(_, _, found)| *found == half);
            if let Some((slot, _, _)) = found {
                self.buckets[bucket].clear(slot);
                if bucket != first {
                    self.buckets[first].one_less_away();
                }
                return;
            }
        }
    }

    /// Numbers of both buckets of `hash`, the first before the second.
    pub(super) fn places(&self, hash: u32) -> [usize; 2] {
        [self.first(hash), self.second(hash)]
    }

    /// All halves in both buckets of `hash`.
    pub(super) fn window(&self, hash: u32) -> impl Iterator<Item = HalfId> + '_ {
        self.places(hash)
            .into_iter()
            .flat_map(|bucket| self.buckets[bucket].entries().map(|(_, _, half)| half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!(size_of::<Bucket>(), 64);
        assert_eq!(align_of::<Bucket>(), 64);
    }

    #[test]
    fn at_most_half_of_the_slots_are_used() {
        for halves in [1, 7, 8, 9, 1000, 1 << 20] {
            let index = Index::new(halves).unwrap();
            assert!(index.buckets() * 8 >= 2 * halves);
            assert!(index.buckets().is_power_of_two() && index.buckets() >= 2);
        }
    }

    #[test]
    fn the_second_bucket_is_another_one_and_spreads() {
        for halves in [8, 64, 1 << 16] {
            let index = Index::new(halves).unwrap();
            let mut hits = vec![0_u32; index.buckets() as usize];
            for n in 0..100_000_u32 {
                let hash = n.wrapping_mul(0x9e37_79b9).rotate_left(7) ^ n;
                assert_ne!(index.first(hash), index.second(hash));
                hits[index.second(hash)] += 1;
            }
            let mean = 100_000 / index.buckets();
            assert!(hits.iter().all(|count| *count < 4 * mean + 20));
        }
    }

    fn agrees(halves: u32, steps: &[(u32, bool)]) {
        let mut index = Index::new(halves).unwrap();
        let mut model: HashMap<u32, Vec<HalfId>> = HashMap::new();
        let mut next = 0;
        for (hash, add) in steps {
            let there = model.entry(*hash).or_default();
            if *add {
                if index.insert(*hash, HalfId(next)) {
                    there.push(HalfId(next));
                } else {
                    // Only when both buckets are full.
                    assert_eq!(index.window(*hash).count(), 2 * SLOTS);
                }
                next += 1;
            } else if let Some(half) = there.pop() {
                index.remove(*hash, half);
            }
        }
        let mut entries = 0;
        for (hash, there) in &model {
            entries += there.len();
            for half in there {
                assert_eq!(index.find(*hash, |found| found == *half), Some(*half));
                assert!(index.window(*hash).any(|found| found == *half));
            }
            match there[..] {
                [] => assert_eq!(index.probe(*hash), None),
                [only] => assert_eq!(index.probe(*hash), Some(only)),
                _ => assert!(index.probe(*hash).is_some()),
            }
            assert_eq!(index.find(*hash, |found| found.0 >= next), None);
        }
        let used: usize = index.buckets.iter().map(|bucket| bucket.entries().count()).sum();
        assert_eq!(used, entries);
        // What lives in its second bucket is counted in its first.
        let mut away = vec![0; index.buckets.len()];
        for (number, bucket) in index.buckets.iter().enumerate() {
            for (_, tag, _) in bucket.entries() {
                away[index.first(tag)] += usize::from(index.first(tag) != number);
            }
        }
        for (bucket, away) in index.buckets.iter().zip(away) {
            let counted = bucket.halves.iter().filter(|half| **half & AWAY != 0).count();
            assert!(counted == away || counted == SLOTS, "{counted} counted, {away} away");
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_map(
            steps in prop::collection::vec((0..400_u32, prop::bool::weighted(0.6)), 0..2000)
        ) {
            let spread: Vec<_> = steps
                .iter()
                .map(|(hash, add)| (hash.wrapping_mul(0x9e37_79b9), *add))
                .collect();
            // Sizes that are never full, sometimes full, nearly always full.
            for halves in [2000, 256, 16] {
                agrees(halves, &spread);
                // Few first buckets.
                agrees(halves, &steps);
            }
        }

        #[test]
        fn one_hash_for_all_fills_two_buckets_and_no_more(
            steps in prop::collection::vec((5..7_u32, any::<bool>()), 0..200)
        ) {
            agrees(1000, &steps);
        }
    }

    #[test]
    fn a_full_index_finds_everything_mostly_at_the_first_look() {
        let halves = 1 << 17;
        let mut index = Index::new(halves).unwrap();
        let hash = |n: u32| {
            let mixed = u64::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
        };
        for n in 0..halves {
            assert!(index.insert(hash(n), HalfId(n)), "half {n} of {halves}");
        }
        let second = (0..halves)
            .filter(|n| {
                assert_eq!(index.find(hash(*n), |half| half.0 == *n), Some(HalfId(*n)));
                index.buckets[index.first(hash(*n))].probe(hash(*n)) == 0
            })
            .count();
        assert!(second < halves as usize / 30, "{second} of {halves} in their second bucket");
        for n in 0..halves {
            index.remove(hash(n), HalfId(n));
        }
        assert!(index.buckets.iter().all(|bucket| bucket.entries().count() == 0));
        let away = index.buckets.iter().filter(|bucket| bucket.has_away()).count();
        assert_eq!(away, 0, "buckets think that entries are elsewhere");
    }
}
