//! A worker's counters: plain numbers that the worker adds to, published now and then to a block
//! that others may read at any time and always see closed.
//!
//! The books close: `received = sent + dropped + to_host + held`. The published block is guarded
//! by a sequence number (odd while it is written), so a reader never mixes two moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::dwell::Dwell;
use crate::packet::drop::DropReason;

/// A worker's own counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken from ports, taken over from other workers, and made here.
    pub received: u64,
    /// Of these, made here: ICMP errors and fragments.
    pub generated: u64,
    /// Frames put on a TX ring, or handed to another worker.
    pub sent: u64,
    /// Of these, handed to another worker.
    pub handed_over: u64,
    /// Frames given to the host's stack.
    pub to_host: u64,
    /// Frames inside now: waiting for a next hop, or for the first fragment of their packet.
    pub held: u64,
    /// Frames copied into another UMEM.
    pub copied: u64,
    /// Frames sent as segments of a larger packet.
    pub coalesced: u64,
    /// Vectors processed.
    pub vectors: u64,
    /// Times the worker went to sleep.
    pub sleeps: u64,
    /// Flows that the worker remembers now.
    pub flows: u64,
    /// Frames dropped, by reason.
    pub dropped: [u64; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            received: 0,
            generated: 0,
            sent: 0,
            handed_over: 0,
            to_host: 0,
            held: 0,
            copied: 0,
            coalesced: 0,
            vectors: 0,
            sleeps: 0,
            flows: 0,
            dropped: [0; DropReason::COUNT],
        }
    }
}

impl Counters {
    /// Counts one dropped packet.
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self.dropped[reason as usize] += 1;
    }

    /// Dropped frames, all reasons.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// What the books miss: 0, or there is a bug.
    #[must_use]
    pub fn residual(&self) -> i64 {
        let out = self.sent + self.dropped_total() + self.to_host + self.held;
        self.received.wrapping_sub(out).cast_signed()
    }

    fn fields(&self) -> [u64; FIELDS] {
        let mut fields = [0; FIELDS];
        fields[..SCALARS].copy_from_slice(&[
            self.received,
            self.generated,
            self.sent,
            self.handed_over,
            self.to_host,
            self.held,
            self.copied,
            self.coalesced,
            self.vectors,
            self.sleeps,
            self.flows,
        ]);
        fields[SCALARS..].copy_from_slice(&self.dropped);
        fields
    }

    fn from_fields(fields: &[u64; FIELDS]) -> Self {
        let mut dropped = [0; DropReason::COUNT];
        dropped.copy_from_slice(&fields[SCALARS..]);
        Self {
            received: fields[0],
            generated: fields[1],
            sent: fields[2],
            handed_over: fields[3],
            to_host: fields[4],
            held: fields[5],
            copied: fields[6],
            coalesced: fields[7],
            vectors: fields[8],
            sleeps: fields[9],
            flows: fields[10],
            dropped,
        }
    }
}

const SCALARS: usize = 11;
const FIELDS: usize = SCALARS + DropReason::COUNT;

/// The published block: written by one worker, read by anybody.
#[derive(Debug)]
#[repr(align(128))]
pub struct Published {
    sequence: AtomicU64,
    fields: [AtomicU64; FIELDS],
    /// How long packets were inside; counted at once, not published.
    pub dwell: Dwell,
}

impl Published {
    /// A block of zeros.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            sequence: AtomicU64::new(0),
            fields: [const { AtomicU64::new(0) }; FIELDS],
            dwell: Dwell::new(),
        })
    }

    /// Publishes. For the one worker whose block this is.
    pub fn publish(&self, counters: &Counters) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (place, value) in self.fields.iter().zip(counters.fields()) {
            place.store(value, Ordering::Relaxed);
        }
        self.sequence.store(sequence + 2, Ordering::Release);
    }

    /// What was published last, of one moment.
    #[must_use]
    pub fn read(&self) -> Counters {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let mut fields = [0; FIELDS];
            for (value, place) in fields.iter_mut().zip(&self.fields) {
                *value = place.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && before == self.sequence.load(Ordering::Relaxed) {
                return Counters::from_fields(&fields);
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_always_sees_closed_books() {
        let block = Published::new();
        let writer = block.clone();
        let thread = std::thread::spawn(move || {
            let mut counters = Counters::default();
            for n in 0..200_000_u64 {
                counters.received += 3;
                counters.sent += 1;
                counters.to_host += 1;
                counters.drop(DropReason::ALL[usize::try_from(n).unwrap() % DropReason::COUNT]);
                writer.publish(&counters);
            }
            counters
        });
        while !thread.is_finished() {
            assert_eq!(block.read().residual(), 0);
        }
        assert_eq!(block.read(), thread.join().unwrap());
    }

    #[test]
    fn a_missing_frame_shows() {
        let mut counters = Counters { received: 2, sent: 1, ..Counters::default() };
        assert_eq!(counters.residual(), 1);
        counters.held = 2;
        assert_eq!(counters.residual(), -1);
    }
}
