//! How long packets are inside of a worker: histograms that the worker adds to and anybody may read at
//! any time, without a lock and without an atomic read-modify-write. Their buckets are those of
//! [`overlane_api::buckets`].

use std::sync::atomic::{AtomicU64, Ordering};

use overlane_api::buckets;

/// Where packets come into a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// By a pod's port or the host's.
    Inside,
    /// By the uplink.
    Uplink,
    /// From another worker, to which they came by a port.
    Worker,
}

impl Side {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Inside, Self::Uplink, Self::Worker];
}

/// Packets by the time that they were inside: counted by one worker, read by anybody.
#[derive(Debug)]
pub struct Histogram([AtomicU64; buckets::COUNT]);

impl Histogram {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; buckets::COUNT])
    }

    /// `packets` were inside for `ns` nanoseconds each. For the one worker whose histogram this is.
    pub fn record(&self, ns: u64, packets: u64) {
        // One writer: nothing can come between the two.
        let place = &self.0[buckets::of(ns)];
        place.store(place.load(Ordering::Relaxed).wrapping_add(packets), Ordering::Relaxed);
    }

    /// Packets by bucket, as counted since the worker began.
    #[must_use]
    pub fn read(&self) -> Box<[u64]> {
        self.0.iter().map(|place| place.load(Ordering::Relaxed)).collect()
    }
}

/// A worker's histograms.
#[derive(Debug)]
pub struct Dwell([Histogram; Side::ALL.len()]);

impl Dwell {
    /// Empty ones.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { Histogram::new() }; Side::ALL.len()])
    }

    /// Of the packets that came in there.
    #[must_use]
    pub const fn of(&self, side: Side) -> &Histogram {
        &self.0[side as usize]
    }
}

impl Default for Dwell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_on_its_side() {
        let dwell = Dwell::new();
        dwell.of(Side::Uplink).record(1000, 3);
        dwell.of(Side::Uplink).record(1001, 2);
        for side in Side::ALL {
            let sum: u64 = dwell.of(side).read().iter().sum();
            assert_eq!(sum, if side == Side::Uplink { 5 } else { 0 });
        }
        assert_eq!(dwell.of(Side::Uplink).read()[buckets::of(1000)], 5);
    }
}
