//! How long packets are inside of a worker: histograms that the worker adds to and anybody may read at
//! any time, without a lock and without an atomic read-modify-write.
//!
//! Buckets are log-linear, as those of an HdrHistogram: 64 for each doubling, so that a bucket is at
//! most 1.6 % of its values wide; below 128 ns each value has its own.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets for each doubling: 2 to this.
const SUB_BITS: u32 = 6;

/// Longer times count as this long: 68 s, nanoseconds.
const LONGEST: u64 = (1 << 36) - 1;

/// Buckets of a histogram.
pub const BUCKETS: usize = bucket(LONGEST) + 1;

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

/// The bucket of a time.
#[allow(clippy::cast_possible_truncation, reason = "at most 68 s: a few thousand")]
const fn bucket(ns: u64) -> usize {
    let ns = if ns > LONGEST { LONGEST } else { ns };
    let shift = (u64::BITS - 1).saturating_sub(ns.leading_zeros()).saturating_sub(SUB_BITS);
    ((shift as usize) << SUB_BITS) + (ns >> shift) as usize
}

/// The longest time of a bucket, nanoseconds.
#[must_use]
pub const fn longest_of(bucket: usize) -> u64 {
    let shift = (bucket >> SUB_BITS).saturating_sub(1);
    let lead = bucket - (shift << SUB_BITS);
    ((lead as u64 + 1) << shift) - 1
}

/// Packets by the time that they were inside: counted by one worker, read by anybody.
#[derive(Debug)]
pub struct Histogram([AtomicU64; BUCKETS]);

impl Histogram {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }

    /// `packets` were inside for `ns` nanoseconds each. For the one worker whose histogram this is.
    pub fn record(&self, ns: u64, packets: u64) {
        // One writer: nothing can come between the two.
        let place = &self.0[bucket(ns)];
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
    fn every_time_is_in_one_bucket_which_is_narrow() {
        let mut next = 0;
        for number in 0..BUCKETS {
            let (shortest, longest) = (next, longest_of(number));
            assert_eq!((bucket(shortest), bucket(longest)), (number, number));
            assert!(longest - shortest <= shortest / 64, "{shortest} to {longest}");
            next = longest + 1;
        }
        assert_eq!(next, LONGEST + 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_recorded_is_read_on_its_side() {
        let dwell = Dwell::new();
        dwell.of(Side::Uplink).record(1000, 3);
        dwell.of(Side::Uplink).record(1001, 2);
        for side in Side::ALL {
            let sum: u64 = dwell.of(side).read().iter().sum();
            assert_eq!(sum, if side == Side::Uplink { 5 } else { 0 });
        }
        assert_eq!(dwell.of(Side::Uplink).read()[bucket(1000)], 5);
    }
}
