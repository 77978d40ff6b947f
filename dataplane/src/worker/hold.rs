//! Packets that wait for a next hop: a few, for a second at most. Sent on when the tables change.

use super::Worker;
use crate::io::Port;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::Meta;
use crate::packet::vector::{Packet, Vector};
use crate::packet::verdict::Verdict;
use crate::stages;

/// Packets that wait at once, per worker.
const CAPACITY: usize = 64;

/// How long a packet waits, nanoseconds.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Waiting packets, oldest first, with the time they came.
#[derive(Debug, Default)]
pub(super) struct Held {
    waiting: Vector,
    since_ns: arrayvec::ArrayVec<u64, CAPACITY>,
}

impl Held {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl<P: Port> Worker<P> {
    /// Lets a packet wait.
    pub(super) fn hold(&mut self, frame: Frame, mut meta: Meta) {
        meta.verdict = Verdict::Pending;
        match self.held.waiting.push(Packet { frame, meta }) {
            Ok(()) => {
                self.held.since_ns.push(self.now_ns);
                self.counters.held += 1;
            }
            Err(packet) => self.discard(packet.frame, DropReason::HoldFull),
        }
    }

    /// The tables changed: perhaps what waits can go.
    pub(super) fn release_held(&mut self) {
        if self.held.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.held.waiting);
        let since = std::mem::take(&mut self.held.since_ns);
        self.counters.held = 0;
        self.run_stages(&mut waiting, stages::from_here);
        for ((frame, meta), since) in
            waiting.frames.drain(..).zip(waiting.meta.drain(..)).zip(since)
        {
            if meta.verdict == Verdict::Hold {
                // Still waits, and has not waited less for it.
                self.hold(frame, meta);
                if let Some(last) = self.held.since_ns.last_mut() {
                    *last = since;
                }
                continue;
            }
            let mut one = Vector::default();
            let _ = one.push(Packet { frame, meta });
            self.dispatch(&mut one);
        }
        self.process_made();
        self.after_work();
    }

    /// Drops what has waited too long.
    pub(super) fn expire_held(&mut self) {
        let now = self.now_ns;
        let expired = |since: &u64| now.saturating_sub(*since) > PATIENCE_NS;
        if !self.held.since_ns.first().is_some_and(expired) {
            return;
        }
        let waiting = std::mem::take(&mut self.held.waiting);
        let since = std::mem::take(&mut self.held.since_ns);
        self.counters.held = 0;
        for ((frame, meta), since) in waiting.frames.into_iter().zip(waiting.meta).zip(since) {
            if expired(&since) {
                self.discard(frame, DropReason::NeighborUnresolved);
                continue;
            }
            self.hold(frame, meta);
            if let Some(last) = self.held.since_ns.last_mut() {
                *last = since;
            }
        }
    }
}
