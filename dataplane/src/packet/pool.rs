//! Free frames: one pool per worker and UMEM, and a depot through which pools balance.
//!
//! Frames wander: received by one worker, they may be sent, and so become free, at another. A
//! pool that has too many gives 64 at once to its UMEM's depot, a pool that runs short takes 64
//! from it: one atomic operation for 64 frames, none for a packet.

use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;

use super::frame::Frame;

/// Frames that change hands at once.
pub const MAGAZINE: usize = 64;

/// Number of a UMEM in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UmemId(pub u8);

/// Frames of one UMEM that no worker holds.
#[derive(Debug)]
pub struct Depot {
    umem: UmemId,
    magazines: ArrayQueue<ArrayVec<Frame, MAGAZINE>>,
    chunks: usize,
}

impl Depot {
    /// A depot that owns `frames`, all of UMEM `umem`.
    #[must_use]
    pub fn new(umem: UmemId, frames: impl IntoIterator<Item = Frame>) -> Arc<Self> {
        let mut magazines = Vec::new();
        let mut chunks = 0;
        let mut magazine = ArrayVec::new();
        for frame in frames {
            debug_assert_eq!(frame.umem(), umem);
            chunks += 1;
            magazine.push(frame);
            if magazine.is_full() {
                magazines.push(std::mem::take(&mut magazine));
            }
        }
        if !magazine.is_empty() {
            magazines.push(magazine);
        }
        // Pools can give back magazines that are not full when a worker ends, one each.
        let capacity = magazines.len() + overlane_api::WorkerId::MAX_WORKERS * 2;
        let queue = ArrayQueue::new(capacity);
        for magazine in magazines {
            // The queue was made large enough for them.
            let _ = queue.push(magazine);
        }
        Arc::new(Self { umem, magazines: queue, chunks })
    }

    /// Chunks of the UMEM.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// The UMEM.
    #[must_use]
    pub fn umem(&self) -> UmemId {
        self.umem
    }

    /// Frames in the depot, while nobody else takes or gives any: for tests and status.
    #[must_use]
    pub fn free(&self) -> usize {
        let mut free = 0;
        for _ in 0..self.magazines.len() {
            if let Some(magazine) = self.magazines.pop() {
                free += magazine.len();
                let _ = self.magazines.push(magazine);
            }
        }
        free
    }
}

/// One worker's free frames of one UMEM.
#[derive(Debug)]
pub struct FramePool {
    free: Vec<Frame>,
    depot: Arc<Depot>,
    /// More than this many and a magazine goes back.
    keep: usize,
}

impl FramePool {
    /// An empty pool that keeps at most `keep` free frames plus a magazine.
    #[must_use]
    pub fn new(depot: Arc<Depot>, keep: usize) -> Self {
        let keep = keep.max(MAGAZINE);
        // Room for every chunk: giving a frame back never allocates and never fails.
        let free = Vec::with_capacity(depot.chunks());
        Self { free, depot, keep }
    }

    /// The UMEM whose frames these are.
    #[must_use]
    pub fn umem(&self) -> UmemId {
        self.depot.umem
    }

    /// A free frame with an empty packet, if there is one here or in the depot.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            self.free.extend(self.depot.magazines.pop()?);
        }
        let mut frame = self.free.pop()?;
        frame.reset();
        Some(frame)
    }

    /// Takes up to `count` free frames at once, with empty packets; fewer when fewer are free here
    /// and in the depot.
    #[inline]
    pub fn take_many(&mut self, count: usize, mut put: impl FnMut(Frame)) {
        let mut wanted = count;
        while wanted > 0 {
            if self.free.is_empty() {
                let Some(magazine) = self.depot.magazines.pop() else { return };
                self.free.extend(magazine);
            }
            let from = self.free.len().saturating_sub(wanted);
            for mut frame in self.free.drain(from..) {
                wanted -= 1;
                frame.reset();
                put(frame);
            }
        }
    }

    /// Takes frames back at once.
    #[inline]
    pub fn give_many(&mut self, frames: impl Iterator<Item = Frame>) {
        self.free.extend(frames);
        while self.free.len() >= self.keep + MAGAZINE {
            let before = self.free.len();
            self.give_magazine();
            if self.free.len() == before {
                return;
            }
        }
    }

    /// Takes a frame back.
    #[inline]
    pub fn give(&mut self, frame: Frame) {
        debug_assert_eq!(frame.umem(), self.depot.umem);
        self.free.push(frame);
        if self.free.len() >= self.keep + MAGAZINE {
            self.give_magazine();
        }
    }

    #[cold]
    fn give_magazine(&mut self) {
        let from = self.free.len().saturating_sub(MAGAZINE);
        let magazine: ArrayVec<Frame, MAGAZINE> = self.free.drain(from..).collect();
        if let Err(magazine) = self.depot.magazines.push(magazine) {
            self.free.extend(magazine);
        }
    }

    /// Free frames here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Is nothing free here?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Gives everything back to the depot: what a worker does when it ends.
    pub fn drain(&mut self) {
        while !self.free.is_empty() {
            let before = self.free.len();
            self.give_magazine();
            if self.free.len() == before {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::frame::CHUNK;

    fn depot(frames: usize) -> Arc<Depot> {
        let memory: &'static mut [u8] = Box::leak(vec![0; CHUNK * frames].into_boxed_slice());
        let (chunks, _) = memory.as_chunks_mut::<CHUNK>();
        Depot::new(UmemId(0), chunks.iter_mut().map(|c| Frame::new(c, UmemId(0))))
    }

    #[test]
    fn frames_wander_between_pools_and_none_is_lost() {
        let depot = depot(200);
        let mut here = FramePool::new(depot.clone(), 64);
        let mut there = FramePool::new(depot.clone(), 64);
        let mut out = Vec::new();
        while let Some(frame) = here.take() {
            out.push(frame);
        }
        assert_eq!(out.len(), 200);
        assert!(there.take().is_none());
        for frame in out {
            there.give(frame);
        }
        assert!(there.len() < 128 && here.take().map(|f| here.give(f)).is_some());
        here.drain();
        there.drain();
        assert_eq!(depot.free(), 200);
    }
}
