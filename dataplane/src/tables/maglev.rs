//! Consistent choice of a backend: Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! A table of a prime number of slots, each with a backend. Every backend has a permutation of
//! the slots that depends on its address and port alone; the backends take turns, each claiming
//! the next slot of its permutation that is free. So every node that knows the same backends has
//! the same table, and a backend that comes or goes moves few slots of the others.
//!
//! Two sizes, 16381 slots for up to 163 backends and 65537 for more: at least 100 slots for each
//! of up to 655, so that none has over 1 % more than its share. Smaller tables would keep that
//! balance for few backends too, but not the rest: with 1021 slots and 10 backends 2.5 % of the
//! others' slots move on average when one goes (15 % at worst), and each further size is a number
//! of backends at which nearly all slots move. What few backends allow is narrower slots: 4 bits
//! for up to 16 backends, 8 for up to 256.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What the permutations start from: the same on every node, for good.
const SEED: u64 = 0x6f76_6572_6c61_6e65;

/// What a backend is known by, on every node: its address, 128 bits (IPv4-mapped for IPv4), and
/// its port.
pub type Identity = (u128, u16);

/// A backend that wants slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Where its permutation comes from.
    pub identity: Identity,
    /// Its share relative to the others'; 0: none.
    pub weight: u16,
    /// What its slots hold.
    pub index: u16,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maglev {
    size: u32,
    slots: Slots,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Slots {
    /// All of one backend.
    Same(u16),
    /// Two to a byte, the even one in the low half.
    Half(Box<[u8]>),
    Byte(Box<[u8]>),
    Word(Box<[u16]>),
}

/// A backend's way through the slots.
#[derive(Debug, Clone, Copy)]
struct Permutation {
    next: u32,
    skip: u32,
}

/// Mixes all bits into all bits (the finaliser of SplitMix64).
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Permutation {
    #[allow(clippy::cast_possible_truncation, reason = "halves and remainders are meant")]
    fn new((address, port): Identity, size: u32) -> Self {
        let high = mix(SEED ^ (address >> 64) as u64);
        let low = mix(high ^ address as u64);
        let first = mix(low ^ u64::from(port));
        let second = mix(first ^ SEED.rotate_left(32));
        let size = u64::from(size);
        Self { next: (first % size) as u32, skip: (second % (size - 1)) as u32 + 1 }
    }

    /// The next slot; every slot comes once in `size` steps, the size being prime.
    #[inline]
    fn step(&mut self, size: u32) -> usize {
        let slot = self.next;
        self.next += self.skip;
        if self.next >= size {
            self.next -= size;
        }
        slot as usize
    }
}

/// Marks a free slot while a table is filled: more than any place in the list of candidates.
const FREE: u16 = u16::MAX;

impl Maglev {
    /// Slots for few backends.
    pub const SMALL: u32 = 16_381;
    /// Slots for more than [`Maglev::FEW`].
    pub const LARGE: u32 = 65_537;
    /// Most backends of a small table.
    pub const FEW: usize = 163;
    /// Most candidates of a table.
    pub const MAX_CANDIDATES: usize = FREE as usize;

    /// The table of `candidates`, which are in ascending order of their identities; those beyond
    /// [`Maglev::MAX_CANDIDATES`] get no slot. None: no candidate has a weight.
    ///
    /// With unequal weights each gets its share of the slots, rounded (Sainte-Laguë); a backend
    /// whose share is less than half a slot may get none.
    #[must_use]
    pub fn new(candidates: &[Candidate]) -> Option<Self> {
        debug_assert!(candidates.is_sorted_by(|a, b| a.identity < b.identity));
        let mut usable: Vec<Candidate> =
            candidates.iter().copied().filter(|candidate| candidate.weight > 0).collect();
        usable.truncate(Self::MAX_CANDIDATES);
        let first = usable.first()?;
        if usable.len() == 1 {
            return Some(Self { size: Self::SMALL, slots: Slots::Same(first.index) });
        }
        let size = if usable.len() <= Self::FEW { Self::SMALL } else { Self::LARGE };
        let filled = if usable.iter().all(|candidate| candidate.weight == first.weight) {
            fill_in_turn(&usable, size)
        } else {
            fill_by_weight(&usable, size)
        };
        let index = |place: &u16| usable.get(usize::from(*place)).map_or(0, |c| c.index);
        let slots = Slots::pack(filled.iter().map(index).collect());
        Some(Self { size, slots })
    }

    /// The backend for `hash`, which is to be well mixed: its high bits say which slot.
    #[inline]
    #[must_use]
    pub fn pick(&self, hash: u32) -> u16 {
        self.slots.get(self.slot(hash))
    }

    /// Which slot `hash` is for.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the product's high half is below the size")]
    const fn slot(&self, hash: u32) -> usize {
        ((hash as u64 * self.size as u64) >> 32) as usize
    }

    /// The backends of all slots, in order.
    pub fn slots(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.size as usize).map(|slot| self.slots.get(slot))
    }

    /// Bytes of memory besides its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.slots {
            Slots::Same(_) => 0,
            Slots::Half(bytes) | Slots::Byte(bytes) => bytes.len(),
            Slots::Word(words) => words.len() * 2,
        }
    }
}

impl Slots {
    #[allow(clippy::cast_possible_truncation, reason = "the largest value was asked for")]
    fn pack(slots: Vec<u16>) -> Self {
        match slots.iter().max().copied().unwrap_or_default() {
            0..=15 => Self::Half(
                slots
                    .chunks(2)
                    .map(|pair| match pair {
                        [even, odd] => (*even | *odd << 4) as u8,
                        _ => pair.first().map_or(0, |even| *even as u8),
                    })
                    .collect(),
            ),
            16..=255 => Self::Byte(slots.iter().map(|slot| *slot as u8).collect()),
            _ => Self::Word(slots.into_boxed_slice()),
        }
    }

    #[inline]
    fn get(&self, slot: usize) -> u16 {
        match self {
            Self::Same(index) => *index,
            Self::Half(bytes) => {
                let byte = bytes.get(slot / 2).copied().unwrap_or_default();
                u16::from(byte >> (slot % 2 * 4) & 15)
            }
            Self::Byte(bytes) => bytes.get(slot).copied().map_or(0, u16::from),
            Self::Word(words) => words.get(slot).copied().unwrap_or_default(),
        }
    }
}

/// Claims the next free slot of a permutation for `place`.
#[inline]
fn claim(slots: &mut [u16], permutation: &mut Permutation, size: u32, place: u16) {
    loop {
        let slot = &mut slots[permutation.step(size)];
        if *slot == FREE {
            *slot = place;
            return;
        }
    }
}

fn permutations(candidates: &[Candidate], size: u32) -> Vec<Permutation> {
    candidates.iter().map(|candidate| Permutation::new(candidate.identity, size)).collect()
}

/// All claim a slot in turn until none is free. Slots hold places in `candidates`.
fn fill_in_turn(candidates: &[Candidate], size: u32) -> Vec<u16> {
    let mut slots = vec![FREE; size as usize];
    let mut permutations = permutations(candidates, size);
    let mut free = slots.len();
    loop {
        for (place, permutation) in (0_u16..).zip(&mut permutations) {
            claim(&mut slots, permutation, size, place);
            free -= 1;
            if free == 0 {
                return slots;
            }
        }
    }
}

/// Each claims at even intervals of its own, the shorter the more it weighs: its claim number k is
/// due at (2k + 1) / weight. With equal weights that is in turn.
fn fill_by_weight(candidates: &[Candidate], size: u32) -> Vec<u16> {
    let due = |claims: u64, weight: u16| ((2 * claims + 1) << 40) / u64::from(weight);
    let mut slots = vec![FREE; size as usize];
    let mut permutations = permutations(candidates, size);
    let mut claims = vec![0_u64; candidates.len()];
    let mut turns: BinaryHeap<Reverse<(u64, u16)>> = (0_u16..)
        .zip(candidates)
        .map(|(place, candidate)| Reverse((due(0, candidate.weight), place)))
        .collect();
    for _ in 0..size {
        let Some(mut turn) = turns.peek_mut() else { break };
        let place = turn.0.1;
        let at = usize::from(place);
        claim(&mut slots, &mut permutations[at], size, place);
        claims[at] += 1;
        turn.0.0 = due(claims[at], candidates[at].weight);
    }
    slots
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
