//! Times some of the vectors: from the moment in which the worker has taken them from a port, to the
//! moment in which the kernel has been given all that they led to. What a packet waits for before that, on
//! the RX ring, is not in it.
//!
//! One vector in N is timed, so that a packet of a busy worker and one of an idle worker are as likely
//! to be counted; which one is drawn, for vectors come in patterns: with a flow and its answers in turn,
//! every sixteenth would be of the same side for good; all packets of a vector that leave count alike, with the time of the last. Those that go
//! to another worker take the time of their arrival along and are counted there.

use arrayvec::ArrayVec;
use nix::time::{ClockId, clock_gettime};

use super::Worker;
use crate::io::Port;
use crate::packet::vector::VECTOR;
use crate::stats::counters::Counters;
use crate::stats::dwell::{Dwell, Side};

/// One vector in so many is timed unless something else is said: two readings of the clock, some 60 ns,
/// for sixteen vectors.
pub const EVERY: u32 = 16;

/// The kernel's monotonic clock, nanoseconds: the same for all workers.
fn monotonic_ns() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds.wrapping_mul(1_000_000_000).wrapping_add(u64::try_from(now.tv_nsec()).unwrap_or(0))
}

/// Says what time it is, nanoseconds; all workers of a node must be told by the same clock.
pub type Clock = Box<dyn Fn() -> u64 + Send>;

/// One worker's.
pub(super) struct Stopwatch {
    clock: Clock,
    /// 0: no vector is timed.
    every: u32,
    /// Vectors until the next one that is timed.
    until: u32,
    /// Where the draws are; never 0.
    drawn: u32,
    /// When the vector under way was received, modulo 2^32 ns; 0: it is not timed.
    pub(super) received_ns: u32,
    /// Vectors whose packets are on TX rings: where they came from, when, and how many have left.
    leaving: ArrayVec<(Side, u64, u64), 2>,
    /// When the packets of the vector from other workers were received, those that are timed.
    handed: ArrayVec<u32, { 2 * VECTOR }>,
}

impl std::fmt::Debug for Stopwatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopwatch").field("every", &self.every).finish_non_exhaustive()
    }
}

/// The start of a vector that is timed.
pub(super) struct Started {
    at_ns: u64,
    /// Packets that had left before.
    left: u64,
}

/// Packets that were given to the kernel.
pub(super) fn left(counters: &Counters) -> u64 {
    counters.sent - counters.handed_over + counters.to_host
}

impl Stopwatch {
    pub(super) fn new() -> Self {
        Self {
            clock: Box::new(monotonic_ns),
            every: EVERY,
            until: EVERY,
            drawn: 0x9e37_79b9,
            received_ns: 0,
            leaving: ArrayVec::new(),
            handed: ArrayVec::new(),
        }
    }

    /// A vector was received: is it to be timed?
    #[inline]
    pub(super) fn start(&mut self, counters: &Counters) -> Option<Started> {
        self.until = self.until.wrapping_sub(1);
        if self.until == 0 { self.start_now(counters) } else { None }
    }

    #[cold]
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    fn start_now(&mut self, counters: &Counters) -> Option<Started> {
        if self.every == 0 {
            self.until = 0;
            return None;
        }
        self.until = self.draw();
        let at_ns = (self.clock)();
        self.received_ns = (at_ns as u32).max(1);
        Some(Started { at_ns, left: left(counters) })
    }

    /// From 1 to twice `every` less 1, as likely each: `every` in the mean.
    fn draw(&mut self) -> u32 {
        // Marsaglia's xorshift: never 0 but from 0.
        self.drawn ^= self.drawn << 13;
        self.drawn ^= self.drawn >> 17;
        self.drawn ^= self.drawn << 5;
        1 + self.drawn % self.every.saturating_mul(2).saturating_sub(1)
    }

    /// A vector was processed that is timed.
    #[cold]
    pub(super) fn processed(&mut self, side: Side, started: &Started, counters: &Counters) {
        self.received_ns = 0;
        let packets = left(counters) - started.left;
        if packets > 0 {
            // One of each side in a round.
            let _ = self.leaving.try_push((side, started.at_ns, packets));
        }
    }

    /// A packet came from another worker.
    #[inline]
    pub(super) fn take_over(&mut self, received_ns: u32) {
        if received_ns != 0 {
            // As many as packets of two vectors: those handed over, and those passed on.
            let _ = self.handed.try_push(received_ns);
        }
    }

    /// Timed packets that came from other workers in this round.
    #[inline]
    pub(super) fn handed(&self) -> usize {
        self.handed.len()
    }

    /// Of the packets that came from another worker since there were `before` of them, so many have left.
    #[inline]
    pub(super) fn handed_left(&mut self, before: usize, packets: u64) {
        self.handed.truncate(before + usize::try_from(packets).unwrap_or(VECTOR));
    }

    /// Is there something to be counted when the TX rings have been given to the kernel?
    #[inline]
    pub(super) fn is_running(&self) -> bool {
        !self.leaving.is_empty() || !self.handed.is_empty()
    }

    /// Counts what has left.
    #[cold]
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    fn stop(&mut self, dwell: &Dwell) {
        let now = (self.clock)();
        for (side, since, packets) in self.leaving.drain(..) {
            dwell.of(side).record(now.saturating_sub(since), packets);
        }
        for since in self.handed.drain(..) {
            // Nothing is on its way for the 4 s after which this begins anew.
            dwell.of(Side::Worker).record(u64::from((now as u32).wrapping_sub(since)), 1);
        }
    }
}

impl<P: Port> Worker<P> {
    /// From now on one vector in so many is timed, in the mean; 0: none.
    pub fn time_vectors(&mut self, every: u32) {
        self.stopwatch.every = every;
        self.stopwatch.until = every;
    }

    /// Times vectors by this clock: for whoever drives a worker by hand.
    pub fn set_clock(&mut self, clock: Clock) {
        self.stopwatch.clock = clock;
    }

    /// How long packets were inside of this worker.
    #[must_use]
    pub fn dwell(&self) -> &Dwell {
        &self.parts.published.dwell
    }

    /// Gives what was sent to the kernel, and stops the time.
    #[cold]
    pub(super) fn flush_timed(&mut self) {
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.dirty) {
            slot.port.flush();
            slot.dirty = false;
            slot.active = true;
        }
        self.stopwatch.stop(&self.parts.published.dwell);
    }
}
