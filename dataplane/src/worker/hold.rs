//! Packets that wait, a few, for a second at most: for a next hop, until the tables change; and
//! fragments, until the first one of their packet comes, or the last one if its length is to be known.

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

/// What a fragment is dropped for that has waited for the other end of its packet.
const FIRST_MISSING: DropReason = DropReason::FragmentFirstMissing;
const LAST_MISSING: DropReason = DropReason::FragmentLastMissing;

/// Fragments of one packet that wait at once.
const OF_ONE: usize = 16;

/// Waiting packets, with the time they came.
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

    /// Takes one more; gives it back when there is no room.
    #[allow(clippy::result_large_err, reason = "a packet that does not fit must come back")]
    fn push(&mut self, frame: Frame, mut meta: Meta, since_ns: u64) -> Result<(), Packet> {
        meta.verdict = Verdict::Pending;
        self.waiting.push(Packet { frame, meta, received_ns: 0 })?;
        // As many as packets.
        let _ = self.since_ns.try_push(since_ns);
        Ok(())
    }

    /// Has one waited too long?
    fn is_overdue(&self, now_ns: u64) -> bool {
        self.since_ns.iter().any(|since| is_overdue(*since, now_ns))
    }
}

fn is_overdue(since_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(since_ns) > PATIENCE_NS
}

impl<P: Port> Worker<P> {
    /// Lets a packet wait for its next hop.
    pub(super) fn hold(&mut self, frame: Frame, meta: Meta) {
        self.hold_since(frame, meta, self.now_ns);
    }

    fn hold_since(&mut self, frame: Frame, meta: Meta, since_ns: u64) {
        match self.held.push(frame, meta, since_ns) {
            Ok(()) => self.counters.held += 1,
            Err(packet) => self.discard(packet.frame, DropReason::HoldFull),
        }
    }

    /// The tables changed: perhaps what waits can go.
    pub(super) fn release_held(&mut self) {
        if self.held.waiting.is_empty() {
            return;
        }
        let Held { mut waiting, since_ns } = std::mem::take(&mut self.held);
        self.counters.held -= waiting.len() as u64;
        self.run_stages(&mut waiting, stages::from_here);
        for ((frame, meta), since) in
            waiting.frames.drain(..).zip(waiting.meta.drain(..)).zip(since_ns)
        {
            if meta.verdict == Verdict::Hold {
                // Still waits, and has not waited less for it.
                self.hold_since(frame, meta, since);
                continue;
            }
            let mut one = Vector::default();
            let _ = one.push(Packet { frame, meta, received_ns: 0 });
            self.dispatch(&mut one);
        }
        self.process_made();
        self.after_work();
    }

    /// Drops what has waited too long.
    pub(super) fn expire_held(&mut self) {
        let now = self.now_ns;
        if self.held.is_overdue(now) {
            let Held { waiting, since_ns } = std::mem::take(&mut self.held);
            self.counters.held -= waiting.len() as u64;
            for ((frame, meta), since) in waiting.frames.into_iter().zip(waiting.meta).zip(since_ns)
            {
                if is_overdue(since, now) {
                    self.discard(frame, DropReason::NeighborUnresolved);
                } else {
                    self.hold_since(frame, meta, since);
                }
            }
        }
        if self.fragments.is_overdue(now) {
            self.expire_fragments();
        }
    }

    /// Lets a fragment wait for the first one of its packet, or the first for the last.
    #[cold]
    pub(super) fn wait(&mut self, frame: Frame, meta: Meta) {
        let waiting = &self.fragments.waiting.meta;
        let of_one = waiting.iter().filter(|other| other.datagram == meta.datagram).count();
        if of_one < OF_ONE {
            self.wait_since(frame, meta, self.now_ns);
        } else {
            self.discard(frame, DropReason::FragmentsWaiting);
        }
    }

    fn wait_since(&mut self, frame: Frame, meta: Meta, since_ns: u64) {
        match self.fragments.push(frame, meta, since_ns) {
            Ok(()) => self.counters.held += 1,
            Err(packet) => self.discard(packet.frame, DropReason::FragmentsWaiting),
        }
    }

    /// First fragments have come, or last ones for which the first wait: the others of their packets go on, in
    /// the order in which they came.
    #[cold]
    pub(super) fn release_fragments(&mut self) {
        let firsts = std::mem::take(&mut self.first_fragments);
        if self.fragments.waiting.is_empty() {
            return;
        }
        let Held { waiting, since_ns } = std::mem::take(&mut self.fragments);
        self.counters.held -= waiting.len() as u64;
        let mut released = Held::default();
        for ((frame, meta), since) in waiting.frames.into_iter().zip(waiting.meta).zip(since_ns) {
            if firsts.contains(&meta.datagram) {
                // As many as waited: there is room.
                let _ = released.push(frame, meta, since);
            } else {
                self.wait_since(frame, meta, since);
            }
        }
        let Held { waiting: mut released, since_ns } = released;
        if released.is_empty() {
            return;
        }
        self.run_stages(&mut released, stages::from_worker);
        let mut going = Vector::default();
        for ((frame, meta), since) in released.frames.into_iter().zip(released.meta).zip(since_ns) {
            if meta.verdict == Verdict::Wait {
                // What came was another packet's, with the same number.
                self.wait_since(frame, meta, since);
            } else {
                // As many as were released: there is room.
                let _ = going.push(Packet { frame, meta, received_ns: 0 });
            }
        }
        self.dispatch(&mut going);
        self.process_made();
    }

    #[cold]
    fn expire_fragments(&mut self) {
        let Held { waiting, since_ns } = std::mem::take(&mut self.fragments);
        self.counters.held -= waiting.len() as u64;
        for ((frame, meta), since) in waiting.frames.into_iter().zip(waiting.meta).zip(since_ns) {
            if is_overdue(since, self.now_ns) {
                let is_first = meta.l4 != 0;
                self.discard(frame, if is_first { LAST_MISSING } else { FIRST_MISSING });
            } else {
                self.wait_since(frame, meta, since);
            }
        }
    }
}
