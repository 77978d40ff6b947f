//! How new tables reach the workers: a whole snapshot, picked up between vectors.
//!
//! A worker compares one generation number per vector and takes the new snapshot when it moved.
//! The publisher keeps every snapshot until all workers have moved past it, so that freeing one,
//! which may walk many pages, never happens on a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::Snapshot;

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Snapshot>,
    generation: AtomicU64,
    /// The generation that each worker uses.
    seen: Vec<AtomicU64>,
}

/// The one side that publishes.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    retired: Vec<Arc<Snapshot>>,
}

/// A worker's side.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    worker: usize,
    snapshot: Arc<Snapshot>,
}

impl Publisher {
    /// Publishes empty tables to `workers` workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let shared = Shared {
            current: ArcSwap::from_pointee(Snapshot::default()),
            generation: AtomicU64::new(0),
            seen: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        };
        Self { shared: Arc::new(shared), retired: Vec::new() }
    }

    /// The side of worker number `worker`. To be called once for each.
    #[must_use]
    pub fn subscribe(&self, worker: usize) -> Subscription {
        let snapshot = self.shared.current.load_full();
        Subscription { shared: self.shared.clone(), worker, snapshot }
    }

    /// Publishes `snapshot` as the next generation; returns its number.
    pub fn publish(&mut self, mut snapshot: Snapshot) -> u64 {
        let generation = self.generation() + 1;
        snapshot.generation = generation;
        self.retired.push(self.shared.current.swap(Arc::new(snapshot)));
        self.shared.generation.store(generation, Ordering::Release);
        self.collect();
        generation
    }

    /// Frees the snapshots that no worker uses any more.
    pub fn collect(&mut self) {
        let seen = self.shared.seen.iter().map(|seen| seen.load(Ordering::Acquire));
        let oldest = seen.min().unwrap_or(u64::MAX);
        self.retired.retain(|snapshot| snapshot.generation >= oldest);
    }

    /// The newest generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Relaxed)
    }

    /// Have all workers taken the newest generation?
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        let newest = self.generation();
        self.shared.seen.iter().all(|seen| seen.load(Ordering::Acquire) == newest)
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.shared.current.load_full()
    }

    /// Snapshots kept for workers that still use them.
    #[must_use]
    pub fn retired(&self) -> usize {
        self.retired.len()
    }
}

impl Subscription {
    /// Takes the newest snapshot if it is another one; says whether it was.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        if self.shared.generation.load(Ordering::Acquire) == self.snapshot.generation {
            return false;
        }
        self.take()
    }

    #[cold]
    fn take(&mut self) -> bool {
        self.snapshot = self.shared.current.load_full();
        self.shared.seen[self.worker].store(self.snapshot.generation, Ordering::Release);
        true
    }

    /// The snapshot in use.
    #[inline]
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // A worker that has ended holds nothing back.
        self.shared.seen[self.worker].store(u64::MAX, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_lives_until_every_worker_has_moved_on() {
        let mut publisher = Publisher::new(2);
        let (mut a, mut b) = (publisher.subscribe(0), publisher.subscribe(1));
        assert!(!a.refresh());
        assert_eq!(publisher.publish(Snapshot::default()), 1);
        assert_eq!((publisher.retired(), publisher.is_in_force()), (1, false));
        assert!(a.refresh() && !a.refresh());
        publisher.collect();
        assert_eq!(publisher.retired(), 1);
        assert!(b.refresh());
        publisher.collect();
        assert_eq!((publisher.retired(), publisher.is_in_force()), (0, true));
        publisher.publish(Snapshot::default());
        drop(a);
        assert!(b.refresh());
        publisher.collect();
        assert_eq!(publisher.retired(), 0);
        assert_eq!(b.snapshot().generation, 2);
    }
}
