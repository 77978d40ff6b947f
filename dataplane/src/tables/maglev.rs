//! Consistent choice of a backend: Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! A table of a prime number of slots, each with a backend. Every backend has a permutation of
//! the slots that depends on its address and port alone; the backends take turns, each claiming
//! the next slot of its permutation that is free. So every node that knows the same backends has
//! the same table, and a backend that comes or goes moves few slots of the others.
//!
//! Three sizes, all prime: 16381 slots for up to 163 backends and 65537 for more, so that up to 655
//! have at least 100 slots each and none over 1 % more than its share; and 8191 for up to 16.
//!
//! | slots | backends | largest share | others' slots moved when one goes, mean |
//! |---|---|---|---|
//! | 8191 | 10 / 16 | 1.001 / 1.001 | 0.8 / 1.0 % |
//! | 16381 | 17 / 50 / 163 | 1.001 / 1.002 / 1.006 | 0.7 / 1.0 / 1.7 % |
//! | 65537 | 164 / 655 | 1.003 / 1.010 | 0.7 / 0.8 % |
//!
//! Fewer slots for few backends would keep the balance but not the rest: with 1021 slots and 10
//! backends 2.5 % of the others' slots move. Also, each further size is a number of backends at which
//! nearly all slots move. 8191 is there for the memory: up to 16 backends are told apart by 4
//! bits, so that 10,000 services of 10 backends of each family take 86 MB. The price: of 200 times that
//! one of few backends goes, once more than 2 % of the others' slots move, since some two
//! permutations are alike.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::packet::prefetch::prefetch;
use crate::packet::region::Shared;

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

/// A table. Its slots are in huge pages. It is 16 bytes, so that those of two scopes fit one cache line
/// with what else is read of a service's backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maglev(Slots);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Slots {
    /// One, of this backend.
    One(u16),
    /// As many as for few backends.
    Half(Halves),
    /// In bytes of which these are the first; when `is_wide`, two to a slot, the lower one first.
    Small {
        size: u32,
        is_wide: bool,
        bytes: Shared<[u8; SMALL]>,
    },
    Medium {
        size: u32,
        is_wide: bool,
        bytes: Shared<[u8; MEDIUM]>,
    },
    Large {
        size: u32,
        is_wide: bool,
        bytes: Shared<[u8; LARGE]>,
    },
}

/// The slots for up to 16 backends, two to a byte, the even one in the low half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halves(Shared<[u8; HALVES]>);

/// Bytes of the slots for few backends.
const HALVES: usize = (Maglev::SIZES[0].0 as usize).div_ceil(2);
/// Bytes of those for more, one each.
const SMALL: usize = Maglev::SIZES[1].0 as usize;
/// Bytes of those for many.
const MEDIUM: usize = Maglev::MANY as usize;
/// Bytes of those for so many that a byte does not tell them apart.
const LARGE: usize = Maglev::MANY as usize * 2;

/// A backend's way through the slots: from the first on, so many further each time.
#[derive(Debug, Clone, Copy)]
struct Permutation {
    first: u32,
    skip: u32,
    /// The slot to be tried next.
    next: u32,
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
        let (first, skip) = ((first % size) as u32, (second % (size - 1)) as u32 + 1);
        Self { first, skip, next: first }
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

    /// What turns a slot's distance from the first into the number of steps there: the inverse of
    /// the skip, which is its power to the size less 2 (Fermat; the size is prime).
    fn steps_per_slot(&self, size: u32) -> u64 {
        let size = u64::from(size);
        let (mut power, mut square, mut rest) = (1, u64::from(self.skip), size - 2);
        while rest > 0 {
            if rest & 1 == 1 {
                power = power * square % size;
            }
            square = square * square % size;
            rest >>= 1;
        }
        power
    }
}

/// A table while it is filled.
#[derive(Debug)]
struct Filling {
    size: u32,
    /// Places in the list of candidates.
    slots: Vec<u16>,
    /// A bit for each slot that is taken: read so often that it has to be small.
    taken: Vec<u64>,
    permutations: Vec<Permutation>,
    left: usize,
    /// The last free slots, once they are few.
    last: Vec<u32>,
}

impl Filling {
    fn new(candidates: &[Candidate], size: u32) -> Self {
        let slots = vec![0; size as usize];
        let permutations =
            candidates.iter().map(|candidate| Permutation::new(candidate.identity, size)).collect();
        let taken = vec![0; slots.len().div_ceil(64)];
        Self { size, left: slots.len(), slots, taken, permutations, last: Vec::new() }
    }

    /// Claims the next free slot of its permutation for the candidate at `place`.
    #[inline]
    fn claim(&mut self, place: u16) {
        // The fewer are free, the longer the way to one: size / left steps. Then it is shorter to
        // ask each of those left how far it is.
        if self.left * self.left < self.slots.len() / 2 {
            return self.claim_last(place);
        }
        let mut permutation = self.permutations[usize::from(place)];
        let mut slot = permutation.step(self.size);
        while self.taken[slot / 64] >> (slot % 64) & 1 != 0 {
            slot = permutation.step(self.size);
        }
        self.permutations[usize::from(place)].next = permutation.next;
        self.taken[slot / 64] |= 1 << (slot % 64);
        self.slots[slot] = place;
        self.left -= 1;
    }

    fn claim_last(&mut self, place: u16) {
        if self.last.is_empty() {
            let is_free = |slot: &u32| {
                let slot = *slot as usize;
                self.taken[slot / 64] & 1 << (slot % 64) == 0
            };
            self.last = (0..self.size).filter(is_free).collect();
        }
        let permutation = self.permutations[usize::from(place)];
        let (size, per_slot) = (u64::from(self.size), permutation.steps_per_slot(self.size));
        // The permutation has passed none of them: it would have claimed it.
        let steps =
            |slot: u32| (u64::from(slot) + size - u64::from(permutation.first)) * per_slot % size;
        let nearest = (0..self.last.len()).min_by_key(|at| steps(self.last[*at]));
        if let Some(at) = nearest {
            self.slots[self.last.swap_remove(at) as usize] = place;
            self.left -= 1;
        }
    }
}

impl Maglev {
    /// Slots and the most backends for which there are so many; more have [`Maglev::MANY`].
    const SIZES: [(u32, usize); 2] = [(8191, 16), (16_381, 163)];
    /// Slots for many backends.
    const MANY: u32 = 65_537;
    /// Most candidates of a table.
    pub const MAX_CANDIDATES: usize = u16::MAX as usize;

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
            return Some(Self(Slots::One(first.index)));
        }
        let size = Self::SIZES.iter().find(|(_, most)| usable.len() <= *most);
        let size = size.map_or(Self::MANY, |(size, _)| *size);
        let filled = if usable.iter().all(|candidate| candidate.weight == first.weight) {
            fill_in_turn(&usable, size)
        } else {
            fill_by_weight(&usable, size)
        };
        let index = |place: &u16| usable.get(usize::from(*place)).map_or(0, |c| c.index);
        let slots: Vec<u16> = filled.iter().map(index).collect();
        Some(Self(Slots::pack(&slots)))
    }

    /// The backend for `hash`, which is to be well mixed: its high bits say which slot.
    #[inline]
    #[must_use]
    pub fn pick(&self, hash: u32) -> u16 {
        self.0.get(scale(hash, self.0.size()))
    }

    /// The slots, if they are those for few backends.
    #[must_use]
    pub const fn halves(&self) -> Option<&Halves> {
        match &self.0 {
            Slots::Half(halves) => Some(halves),
            _ => None,
        }
    }

    /// Brings the slot near that [`Maglev::pick`] will read.
    #[inline]
    pub fn prefetch(&self, hash: u32) {
        self.0.prefetch(scale(hash, self.0.size()));
    }

    /// The backends of all slots, in order.
    pub fn slots(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.0.size() as usize).map(|slot| self.0.get(slot))
    }

    /// Bytes of memory besides its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Slots::One(_) => 0,
            Slots::Half(_) => Shared::<[u8; HALVES]>::BYTES,
            Slots::Small { .. } => Shared::<[u8; SMALL]>::BYTES,
            Slots::Medium { .. } => Shared::<[u8; MEDIUM]>::BYTES,
            Slots::Large { .. } => Shared::<[u8; LARGE]>::BYTES,
        }
    }
}

/// `hash` scaled to less than `size`: which slot it is for.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the product's high half is below the size")]
const fn scale(hash: u32, size: u32) -> usize {
    ((hash as u64 * size as u64) >> 32) as usize
}

impl Halves {
    /// As [`Maglev::pick`]; less than 16.
    #[inline(always)]
    #[must_use]
    pub fn pick(&self, hash: u32) -> usize {
        usize::from(self.get(scale(hash, Maglev::SIZES[0].0)))
    }

    /// Brings the slot near that [`Halves::pick`] will read.
    #[inline(always)]
    pub fn ask_for(&self, hash: u32) {
        self.prefetch(scale(hash, Maglev::SIZES[0].0));
    }

    #[inline(always)]
    fn prefetch(&self, slot: usize) {
        prefetch(self.0.as_ptr().wrapping_add(slot / 2));
    }

    #[inline(always)]
    fn get(&self, slot: usize) -> u8 {
        let byte = self.0.get(slot / 2).copied().unwrap_or_default();
        byte >> (slot % 2 * 4) & 15
    }
}

impl Slots {
    #[allow(clippy::cast_possible_truncation, reason = "the largest value was asked for")]
    fn pack(slots: &[u16]) -> Self {
        let size = slots.len() as u32;
        let most = slots.iter().max().copied().unwrap_or_default();
        if most < 16 && size == Maglev::SIZES[0].0 {
            let halves = slots.chunks(2);
            return Self::Half(Halves(placed(
                halves.map(|pair| pair.iter().rev().fold(0, |byte, slot| byte << 4 | *slot as u8)),
            )));
        }
        let is_wide = most > 255;
        let bytes = slots
            .iter()
            .flat_map(|slot| slot.to_le_bytes().into_iter().take(1 + usize::from(is_wide)));
        let needed = slots.len() << u32::from(is_wide);
        if needed <= SMALL {
            Self::Small { size, is_wide, bytes: placed(bytes) }
        } else if needed <= MEDIUM {
            Self::Medium { size, is_wide, bytes: placed(bytes) }
        } else {
            Self::Large { size, is_wide, bytes: placed(bytes) }
        }
    }

    #[inline]
    fn size(&self) -> u32 {
        match self {
            Self::One(_) => 1,
            Self::Half(_) => Maglev::SIZES[0].0,
            Self::Small { size, .. } | Self::Medium { size, .. } | Self::Large { size, .. } => {
                *size
            }
        }
    }

    /// The bytes of slots that are not halves of one, and whether a slot has two.
    #[inline]
    fn bytes(&self) -> (&[u8], bool) {
        match self {
            Self::One(_) | Self::Half(_) => (&[], false),
            Self::Small { is_wide, bytes, .. } => (&bytes[..], *is_wide),
            Self::Medium { is_wide, bytes, .. } => (&bytes[..], *is_wide),
            Self::Large { is_wide, bytes, .. } => (&bytes[..], *is_wide),
        }
    }

    #[inline]
    fn prefetch(&self, slot: usize) {
        if let Self::Half(halves) = self {
            return halves.prefetch(slot);
        }
        let (bytes, is_wide) = self.bytes();
        prefetch(bytes.as_ptr().wrapping_add(slot << u32::from(is_wide)));
    }

    #[inline]
    fn get(&self, slot: usize) -> u16 {
        match self {
            Self::One(index) => *index,
            Self::Half(halves) => u16::from(halves.get(slot)),
            _ => {
                let (bytes, is_wide) = self.bytes();
                let byte = |at: usize| bytes.get(at).copied().map_or(0, u16::from);
                if is_wide { byte(slot * 2) | byte(slot * 2 + 1) << 8 } else { byte(slot) }
            }
        }
    }
}

/// Bytes in huge pages.
fn placed<const SIZE: usize>(all: impl Iterator<Item = u8>) -> Shared<[u8; SIZE]> {
    let mut bytes = Shared::new([0; SIZE]);
    bytes.make_mut().iter_mut().zip(all).for_each(|(place, byte)| *place = byte);
    bytes
}

/// All claim a slot in turn until none is free. Slots hold places in `candidates`.
fn fill_in_turn(candidates: &[Candidate], size: u32) -> Vec<u16> {
    let mut filling = Filling::new(candidates, size);
    for (place, _) in (0_u16..).zip(candidates).cycle().take(size as usize) {
        filling.claim(place);
    }
    filling.slots
}

/// Each claims at even intervals of its own, the shorter the more it weighs: its claim number k is
/// due at (2k + 1) / weight. With equal weights that is in turn.
fn fill_by_weight(candidates: &[Candidate], size: u32) -> Vec<u16> {
    let due = |claims: u64, weight: u16| ((2 * claims + 1) << 40) / u64::from(weight);
    let mut filling = Filling::new(candidates, size);
    let mut claims = vec![0_u64; candidates.len()];
    let mut turns: BinaryHeap<Reverse<(u64, u16)>> = (0_u16..)
        .zip(candidates)
        .map(|(place, candidate)| Reverse((due(0, candidate.weight), place)))
        .collect();
    for _ in 0..size {
        let Some(mut turn) = turns.peek_mut() else { break };
        let place = turn.0.1;
        filling.claim(place);
        let at = usize::from(place);
        claims[at] += 1;
        turn.0.0 = due(claims[at], candidates[at].weight);
    }
    filling.slots
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
