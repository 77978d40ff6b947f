//! Remotes that are short of ports, and which ports of theirs are known to be taken.
//!
//! Each remote can have every external port once. As long as few are taken, trying some from a random
//! one on finds a free one at once. When most are taken that takes long, so a remote for which it has
//! taken long gets a bitmap of its ports that were *found* taken. Learning costs nothing extra: a port
//! that is given is known to be taken, and so is one that was tried in vain. What was taken before and is
//! not known yet is tried again now and then, as often as a free one: if u of the ports were taken when
//! the bitmap was begun, a search takes about 1/(1-u) tries however full it becomes, and reading at most
//! 1024 words.
//!
//! A bit is a hint: the flow table has the last word before a port is given, and a port that leaves the
//! table clears its bit.

use super::{PoolId, Remote};
use crate::packet::blocks::{BLOCKS, Block};
use crate::packet::flow_key::Address;
use crate::packet::region::{Region, RegionError};

/// Remotes that can have a bitmap at a time; 8 KiB each.
pub(super) const REMOTES: usize = 32;

/// One bit for each port.
pub(super) type Bitmap = [u64; BLOCKS];

/// Place of a remote's bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(usize);

#[derive(Debug, Clone, Copy)]
struct Entry<A> {
    pool: PoolId,
    remote: Remote<A>,
    /// Bits set.
    taken: u32,
    /// When it was used last, by a count of uses.
    used: u64,
    /// Where an audit goes on.
    audited: u16,
}

#[derive(Debug)]
pub(super) struct Pressure<A> {
    entries: Vec<Entry<A>>,
    bitmaps: Region<Bitmap>,
    uses: u64,
}

impl<A: Address> Pressure<A> {
    pub(super) fn new() -> Result<Self, RegionError> {
        Ok(Self { entries: Vec::with_capacity(REMOTES), bitmaps: Region::new(REMOTES)?, uses: 0 })
    }

    /// The bitmap of a remote, if it has one.
    #[inline]
    pub(super) fn find(&self, pool: PoolId, remote: &Remote<A>) -> Option<Place> {
        self.entries
            .iter()
            .position(|entry| entry.remote == *remote && entry.pool == pool)
            .map(Place)
    }

    /// A bitmap for a remote that has none: a new one, or that of the remote that has needed it least
    /// lately. Empty.
    pub(super) fn begin(&mut self, pool: PoolId, remote: &Remote<A>) -> Place {
        self.uses += 1;
        let entry = Entry { pool, remote: *remote, taken: 0, used: self.uses, audited: 0 };
        let place = if self.entries.len() < REMOTES {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let quietest = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.used);
            let place = quietest.map_or(0, |(place, _)| place);
            self.entries[place] = entry;
            place
        };
        self.bitmaps[place].fill(0);
        Place(place)
    }

    pub(super) fn bitmap(&mut self, place: Place) -> &Bitmap {
        self.uses += 1;
        self.entries[place.0].used = self.uses;
        &self.bitmaps[place.0]
    }

    /// Is a port known to be taken?
    pub(super) fn is_taken(&self, place: Place, port: u16) -> bool {
        self.bitmaps[place.0][Block::of(port).number()] & bit(port) != 0
    }

    pub(super) fn set(&mut self, place: Place, port: u16) {
        let word = &mut self.bitmaps[place.0][Block::of(port).number()];
        self.entries[place.0].taken += u32::from(*word & bit(port) == 0);
        *word |= bit(port);
    }

    /// Notes that a port is not taken. The bitmap ends when nothing is.
    pub(super) fn clear(&mut self, place: Place, port: u16) {
        let word = &mut self.bitmaps[place.0][Block::of(port).number()];
        let entry = &mut self.entries[place.0];
        entry.taken -= u32::from(*word & bit(port) != 0);
        *word &= !bit(port);
        if entry.taken == 0 {
            // The last one takes its place.
            let last = self.entries.len() - 1;
            self.entries.swap_remove(place.0);
            if place.0 < last {
                self.bitmaps.copy_within(last..=last, place.0);
            }
        }
    }

    /// Forgets what is known of a block's ports.
    pub(super) fn forget_block(&mut self, pool: PoolId, block: Block) {
        for (entry, bitmap) in self.entries.iter_mut().zip(self.bitmaps.iter_mut()) {
            if entry.pool == pool {
                entry.taken -= bitmap[block.number()].count_ones();
                bitmap[block.number()] = 0;
            }
        }
    }

    /// Forgets all remotes of a pool.
    pub(super) fn forget_pool(&mut self, pool: PoolId) {
        let mut place = 0;
        while let Some(entry) = self.entries.get(place) {
            if entry.pool == pool {
                let last = self.entries.len() - 1;
                self.entries.swap_remove(place);
                self.bitmaps.copy_within(last..=last, place);
            } else {
                place += 1;
            }
        }
    }

    /// The next port from where the last audit stopped, to look whether it is really taken.
    pub(super) fn next_to_audit(&mut self, place: Place, owned: &Bitmap) -> Option<u16> {
        let entry = &mut self.entries[place.0];
        let port = next_port(owned, None, entry.audited)?;
        entry.audited = port.wrapping_add(1);
        Some(port)
    }

    /// Remotes under pressure, and how many ports of each are known to be taken.
    pub(super) fn remotes(&self) -> impl Iterator<Item = (PoolId, Remote<A>, u32)> + '_ {
        self.entries.iter().map(|entry| (entry.pool, entry.remote, entry.taken))
    }
}

/// A port's bit in the word of its block.
pub(super) const fn bit(port: u16) -> u64 {
    1 << (port % 64)
}

/// The first port from `start` on, round the end, that is in `owned` and not in `taken`.
pub(super) fn next_port(owned: &Bitmap, taken: Option<&Bitmap>, start: u16) -> Option<u16> {
    let first = Block::of(start).number();
    let candidates = |block: usize| match taken {
        Some(taken) => owned[block] & !taken[block],
        None => owned[block],
    };
    let from_start = !(bit(start) - 1);
    let port =
        |block: usize, bits: u64| u16::try_from(block * 64 + bits.trailing_zeros() as usize).ok();
    let bits = candidates(first) & from_start;
    if bits != 0 {
        return port(first, bits);
    }
    let others = (first + 1..BLOCKS).chain(0..first);
    for block in others {
        let bits = candidates(block);
        if bits != 0 {
            return port(block, bits);
        }
    }
    let bits = candidates(first) & !from_start;
    if bits != 0 { port(first, bits) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn remote(port: u16) -> Remote<u32> {
        Remote { address: 7, port, protocol: 6 }
    }

    #[test]
    fn a_bitmap_ends_with_its_last_port_and_others_keep_theirs() {
        let mut pressure = Pressure::new().unwrap();
        for port in 1..=3 {
            let place = pressure.begin(PoolId(0), &remote(port));
            for taken in 0..=port {
                pressure.set(place, 1000 * port + taken);
                pressure.set(place, 1000 * port + taken);
            }
        }
        let first = pressure.find(PoolId(0), &remote(1)).unwrap();
        pressure.clear(first, 1000);
        pressure.clear(first, 1000);
        assert_eq!(pressure.find(PoolId(0), &remote(1)), Some(first));
        pressure.clear(first, 1001);
        assert_eq!(pressure.find(PoolId(0), &remote(1)), None);
        assert_eq!(pressure.find(PoolId(1), &remote(2)), None);
        for port in 2..=3 {
            let place = pressure.find(PoolId(0), &remote(port)).unwrap();
            assert!((0..=port).all(|taken| pressure.is_taken(place, 1000 * port + taken)));
            assert!(!pressure.is_taken(place, 1000 * port + port + 1));
        }
        let mut known: Vec<_> = pressure.remotes().map(|(_, remote, n)| (remote.port, n)).collect();
        known.sort_unstable();
        assert_eq!(known, [(2, 3), (3, 4)]);
        pressure.forget_pool(PoolId(0));
        assert_eq!(pressure.remotes().count(), 0);
    }

    #[test]
    fn the_quietest_remote_gives_its_bitmap_up() {
        let mut pressure = Pressure::new().unwrap();
        for port in 0..u16::try_from(REMOTES).unwrap() {
            let place = pressure.begin(PoolId(0), &remote(port));
            pressure.set(place, 5000);
        }
        for port in (0..u16::try_from(REMOTES).unwrap()).filter(|port| *port != 9) {
            let place = pressure.find(PoolId(0), &remote(port)).unwrap();
            let _ = pressure.bitmap(place);
        }
        let place = pressure.begin(PoolId(0), &remote(1000));
        assert!(!pressure.is_taken(place, 5000));
        assert_eq!(pressure.find(PoolId(0), &remote(9)), None);
        assert_eq!(pressure.remotes().count(), REMOTES);
    }

    proptest! {
        #[test]
        fn the_next_port_is_the_next_one(
            owned in prop::collection::btree_set(any::<u16>(), 0..40),
            taken in prop::collection::btree_set(any::<u16>(), 0..40),
            near in prop::collection::btree_set(1000..1200_u16, 0..100),
            start in prop_oneof![any::<u16>(), 990..1210_u16],
        ) {
            let map = |ports: &mut dyn Iterator<Item = u16>| {
                let mut map: Bitmap = [0; BLOCKS];
                ports.for_each(|port| map[Block::of(port).number()] |= bit(port));
                map
            };
            let mine = map(&mut owned.iter().chain(&near).copied());
            let not = map(&mut taken.iter().copied().chain(near.iter().copied().step_by(2)));
            let free = |port: &u16| {
                let block = Block::of(*port).number();
                mine[block] & !not[block] & bit(*port) != 0
            };
            let expected = (start..=u16::MAX).chain(0..start).find(free);
            prop_assert_eq!(next_port(&mine, Some(&not), start), expected);
            let any = (start..=u16::MAX).chain(0..start).find(|port| mine[Block::of(*port).number()] & bit(*port) != 0);
            prop_assert_eq!(next_port(&mine, None, start), any);
        }
    }
}
