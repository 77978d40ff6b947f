//! Which worker owns which external ports of an address.
//!
//! Ports are owned in blocks of 64. One byte for each block says whose it is, so that a returning packet
//! finds its worker with one read, and a busy worker can have more blocks than an idle one. All workers
//! of a node share the table of an address; nothing is written to it but when a block changes hands.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use overlane_api::{PortRange, WorkerId};

/// Ports in a block: as many as a word has bits.
pub const BLOCK_PORTS: u16 = 64;
/// Blocks of an address.
pub const BLOCKS: usize = 1 << 10;
/// Ports below are never given: remotes may take them for a privileged program (RFC 4787 REQ-3).
pub const FIRST_PORT: u16 = 1024;

const FREE: u8 = 0;
/// No port of the block is to be used.
const OUTSIDE: u8 = u8::MAX;

/// 64 ports: those whose number divided by 64 is this, below [`BLOCKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block(u16);

impl Block {
    /// The block that a port is in.
    #[inline]
    #[must_use]
    pub const fn of(port: u16) -> Self {
        Self(port / BLOCK_PORTS)
    }

    /// Its number.
    #[inline]
    #[must_use]
    pub const fn number(self) -> usize {
        self.0 as usize
    }

    /// Its first port.
    #[inline]
    #[must_use]
    pub const fn first_port(self) -> u16 {
        self.0 * BLOCK_PORTS
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..=Self::of(u16::MAX).0).map(Self)
    }

    /// Its ports in `range` that may be given, as bits, the lowest port first.
    #[must_use]
    pub fn usable(self, range: PortRange) -> u64 {
        let first = self.first_port();
        (0..BLOCK_PORTS)
            .filter(|bit| is_usable(first + bit, range))
            .fold(0, |all, bit| all | 1 << bit)
    }
}

/// May a port of `range` be given?
#[inline]
#[must_use]
pub fn is_usable(port: u16, range: PortRange) -> bool {
    port >= FIRST_PORT && range.contains(port)
}

/// Who owns the ports of one external address.
#[derive(Debug)]
pub struct BlockTable {
    range: PortRange,
    owners: Box<[AtomicU8]>,
    free: AtomicU32,
    /// Of each worker: flows that have one of its ports. Each is written by its worker only.
    bindings: Box<[AtomicU32]>,
}

impl BlockTable {
    /// A table that nobody owns anything in. Ports outside of `range`, and below [`FIRST_PORT`], are
    /// never owned.
    #[must_use]
    pub fn new(range: PortRange) -> Self {
        let mut free = 0;
        let owners = Block::all()
            .map(|block| {
                let usable = block.usable(range) != 0;
                free += u32::from(usable);
                AtomicU8::new(if usable { FREE } else { OUTSIDE })
            })
            .collect();
        let bindings = (0..=u8::MAX).map(|_| AtomicU32::new(0)).collect();
        Self { range, owners, free: AtomicU32::new(free), bindings }
    }

    /// The ports that may be owned.
    #[must_use]
    pub fn range(&self) -> PortRange {
        self.range
    }

    /// Whose port it is; nobody's, when its block is free, and when it is outside of the range itself:
    /// the range may begin and end in the middle of a block, next to ports of the host's or NodePorts.
    #[inline]
    #[must_use]
    pub fn owner(&self, port: u16) -> Option<WorkerId> {
        if !self.range.contains(port) {
            return None;
        }
        self.owner_of(Block::of(port))
    }

    #[inline]
    fn owner_of(&self, block: Block) -> Option<WorkerId> {
        // Relaxed: nothing else is published by it. The flows of a block are its owner's alone.
        match self.owners.get(block.number())?.load(Ordering::Relaxed) {
            FREE | OUTSIDE => None,
            worker => Some(WorkerId(worker - 1)),
        }
    }

    /// Blocks that nobody owns.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free.load(Ordering::Relaxed)
    }

    /// A worker says how many flows have one of its ports.
    pub fn note_bindings(&self, worker: WorkerId, bindings: u64) {
        if let Some(place) = self.bindings.get(worker.index()) {
            place.store(u32::try_from(bindings).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
    }

    /// Flows that have one of the address's ports, as all workers said last.
    #[must_use]
    pub fn bindings(&self) -> u64 {
        self.bindings.iter().map(|worker| u64::from(worker.load(Ordering::Relaxed))).sum()
    }

    /// The blocks that a worker owns.
    pub fn owned_by(&self, worker: WorkerId) -> impl Iterator<Item = Block> + '_ {
        Block::all().filter(move |block| self.owner_of(*block) == Some(worker))
    }

    /// Takes the first free block from number `start` on, round the end. None when all have owners.
    pub fn claim(&self, worker: WorkerId, start: usize) -> Option<Block> {
        let mut taken = None;
        self.claim_some(worker, start, 1, |block| taken = Some(block));
        taken
    }

    /// Takes the first `count` free blocks from number `start` on, round the end: one look at each
    /// block, however many are taken. Fewer when others have owners; `each` is told of those taken.
    pub fn claim_some(
        &self,
        worker: WorkerId,
        start: usize,
        count: u32,
        mut each: impl FnMut(Block),
    ) {
        let owner = worker.0.wrapping_add(1);
        if count == 0 || self.free() == 0 || matches!(owner, FREE | OUTSIDE) {
            return;
        }
        let mut taken = 0;
        for number in (start..start + BLOCKS).map(|number| number % BLOCKS) {
            let (Some(place), Ok(block)) = (self.owners.get(number), u16::try_from(number)) else {
                break;
            };
            let is_free = place.load(Ordering::Relaxed) == FREE;
            let swap = || place.compare_exchange(FREE, owner, Ordering::AcqRel, Ordering::Relaxed);
            if is_free && swap().is_ok() {
                each(Block(block));
                taken += 1;
                if taken == count {
                    break;
                }
            }
        }
        self.free.fetch_sub(taken, Ordering::Relaxed);
    }

    /// Gives a block back. No flow may use its ports any more. False when it is not this worker's.
    pub fn release(&self, worker: WorkerId, block: Block) -> bool {
        let Some(owner) = self.owners.get(block.number()) else { return false };
        let mine = worker.0.wrapping_add(1);
        let released = !matches!(mine, FREE | OUTSIDE)
            && owner.compare_exchange(mine, FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if released {
            self.free.fetch_add(1, Ordering::Relaxed);
        }
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    #[test]
    fn many_blocks_are_claimed_in_one_round_and_no_more_than_wanted() {
        let table = BlockTable::new(range(10240, 29999));
        let mut taken = Vec::new();
        table.claim_some(WorkerId(3), 400, 100, |block| taken.push(block.number()));
        // From block 400 to the last of the range, 468, and from its first, 160.
        assert_eq!(taken, (400..=468).chain(160..191).collect::<Vec<_>>());
        assert_eq!((table.free(), table.owned_by(WorkerId(3)).count()), (209, 100));
        let mut rest = 0;
        table.claim_some(WorkerId(4), 0, 1000, |_| rest += 1);
        assert_eq!((table.free(), rest), (0, 209));
        table.claim_some(WorkerId(3), 0, 0, |_| panic!("none was wanted"));
    }

    #[test]
    fn a_block_knows_its_usable_ports() {
        assert_eq!(Block::of(10240), Block(160));
        assert_eq!(Block(160).usable(range(10240, 29999)), u64::MAX);
        // 29999 is the 48th port of its block.
        assert_eq!(Block::of(29999).usable(range(10240, 29999)), (1 << 48) - 1);
        assert_eq!(Block::of(1023).usable(range(1, 65535)), 0);
        assert_eq!(Block::of(1024).usable(range(1, 65535)), u64::MAX);
        assert_eq!(Block::of(65535).usable(range(65535, 65535)), 1 << 63);
    }

    #[test]
    fn capacity_is_that_of_the_range() {
        for (first, last, blocks, ports) in [
            (1024, 65535, 1008, 64512),
            (32768, 65535, 512, 32768),
            (10240, 29999, 309, 19760),
            (1, 1023, 0, 0),
            (20000, 20000, 1, 1),
        ] {
            let range = range(first, last);
            let table = BlockTable::new(range);
            assert_eq!(table.free(), blocks);
            let usable: u32 = Block::all().map(|block| block.usable(range).count_ones()).sum();
            assert_eq!(usable, ports);
        }
    }

    #[test]
    fn a_block_changes_hands_only_when_it_is_given_back() {
        let table = BlockTable::new(range(10240, 10240 + 127));
        let (one, two) = (WorkerId(0), WorkerId(5));
        let first = table.claim(one, 0).unwrap();
        assert_eq!(first, Block::of(10240));
        assert_eq!(table.owner(10240), Some(one));
        assert_eq!(table.owner(10304), None);
        let second = table.claim(two, 0).unwrap();
        assert_eq!(table.owner(10367), Some(two));
        assert_eq!((table.claim(one, 0), table.claim(two, 1000), table.free()), (None, None, 0));
        assert!(!table.release(two, first) && !table.release(one, second));
        assert!(table.release(one, first) && !table.release(one, first));
        assert_eq!(table.owner(10240), None);
        assert_eq!(table.claim(two, 700), Some(first));
        assert_eq!(table.owned_by(two).collect::<Vec<_>>(), [first, second]);
        assert_eq!((table.owner(80), table.owner(65535)), (None, None));
        assert!(!table.release(WorkerId(254), Block::of(80)));
        assert!(!table.release(WorkerId(255), Block::of(80)));
    }

    #[test]
    fn ports_beside_the_range_are_nobodys() {
        let table = BlockTable::new(range(10250, 29999));
        while table.claim(WorkerId(0), 0).is_some() {}
        for (port, owner) in [(10249, None), (10250, Some(0)), (29999, Some(0)), (30000, None)] {
            assert_eq!(table.owner(port), owner.map(WorkerId), "{port}");
        }
        assert_eq!(table.owned_by(WorkerId(0)).count(), 309);
    }

    #[test]
    fn every_block_goes_to_one_worker() {
        let table = Arc::new(BlockTable::new(range(1024, 65535)));
        let workers = (0..4_u8).map(WorkerId).map(|worker| {
            let table = Arc::clone(&table);
            std::thread::spawn(move || {
                let mut mine = Vec::new();
                let mut claims = 0;
                // Takes two and gives one back, until none is left.
                while let Some(block) = table.claim(worker, usize::from(worker.0) * 77) {
                    mine.push(block);
                    claims += 1;
                    if claims % 2 == 0 {
                        let back = mine.swap_remove(mine.len() / 2);
                        assert!(table.release(worker, back));
                    }
                }
                (worker, mine)
            })
        });
        let mut owned = 0;
        for thread in workers.collect::<Vec<_>>() {
            let (worker, mine) = thread.join().unwrap();
            owned += mine.len();
            assert_eq!(table.owned_by(worker).count(), mine.len());
            for block in mine {
                assert_eq!(table.owner(block.first_port()), Some(worker));
            }
        }
        // Who sees all taken stops, though another gives one back a moment later.
        assert_eq!(owned + table.free() as usize, 1008);
    }
}
