//! Verdicts into deeds.

use arrayvec::Drain;
use overlane_api::WorkerId;
use rtrb::Producer;

use super::Worker;
use crate::io::Port;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::Meta;
use crate::packet::vector::{Packet, VECTOR, Vector};
use crate::packet::verdict::{PortId, Verdict};
use crate::stages::transmit::coalesce::{Run, is_candidate};

/// Puts the next `count` frames on the TX ring of `port`, until it takes one no more. Says how many it took,
/// and gives back the one that it did not. A function of its own: nothing else is on the processor's mind.
#[inline(never)]
fn send_while_taken<P: Port>(
    port: &mut P,
    frames: &mut Drain<'_, Frame, VECTOR>,
    count: usize,
) -> (usize, Option<Frame>) {
    for sent in 0..count {
        let Some(frame) = frames.next() else { return (sent, None) };
        if let Err(frame) = port.send(frame) {
            return (sent, Some(frame));
        }
    }
    (count, None)
}

/// Moves as many of `waiting` into the lane as it has room for; says how many.
fn fill<T>(lane: &mut Producer<T>, waiting: &mut Vec<T>) -> u64 {
    let slots = lane.slots().min(waiting.len());
    let Ok(chunk) = lane.write_chunk_uninit(slots) else { return 0 };
    chunk.fill_from_iter(waiting.drain(..slots)) as u64
}

impl<P: Port> Worker<P> {
    /// Does what was decided for each packet; the vector is empty afterwards.
    #[inline]
    pub(super) fn dispatch(&mut self, vector: &mut Vector) {
        let mut frames = vector.frames.drain(..);
        let mut metas = vector.meta.iter();
        while let Some(meta) = metas.next() {
            if let Verdict::Send(port) = meta.verdict {
                // Packets that follow one another mostly leave by the same port.
                let rest = metas.as_slice().iter();
                let more = rest.take_while(|meta| meta.verdict == Verdict::Send(port)).count();
                let (others, after) = metas.as_slice().split_at(more);
                if more > 0 && self.takes_segments(port) && others.iter().any(is_candidate) {
                    let leaving = frames.by_ref().take(more + 1);
                    self.send_joined(leaving.zip(std::iter::once(meta).chain(others)), port);
                } else {
                    self.send_run(&mut frames, more + 1, port);
                }
                metas = after.iter();
                continue;
            }
            // There are as many frames as there is metadata.
            let Some(frame) = frames.next() else { break };
            match meta.verdict {
                Verdict::Drop(reason) => self.discard(frame, reason),
                Verdict::SendElsewhere(worker, _) | Verdict::HandOver(worker) => {
                    self.hand_over(frame, *meta, worker);
                }
                Verdict::ToHost(port) => self.give_to_host(frame, *meta, port),
                Verdict::Hold => self.hold(frame, *meta),
                Verdict::Wait => self.wait(frame, *meta),
                // Every stage decides; a packet that none decided for has no way out.
                Verdict::Send(_) | Verdict::Pending => self.discard(frame, DropReason::NoRoute),
            }
        }
        drop(frames);
        vector.meta.clear();
        if self.rang != 0 {
            self.fill_lanes();
        }
    }

    /// Sends the next `count` frames by one port.
    #[inline]
    fn send_run(&mut self, frames: &mut Drain<'_, Frame, VECTOR>, count: usize, port: PortId) {
        let mut left = count;
        while left > 0 {
            let refused = match self.slots.get_mut(port.index()) {
                Some(Some(slot)) => {
                    slot.dirty = true;
                    let (sent, refused) = send_while_taken(&mut slot.port, frames, left);
                    slot.block.counts.tx_packets += sent as u64;
                    self.counters.sent += sent as u64;
                    left -= sent;
                    refused
                }
                _ => frames.next(),
            };
            let Some(frame) = refused else { return };
            left -= 1;
            match self.send_again(frame, port) {
                Ok(()) => self.counters.sent += 1,
                Err(reason) => self.counters.drop(reason),
            }
        }
    }

    #[inline]
    fn takes_segments(&self, port: PortId) -> bool {
        let slot = self.slots.get(port.index());
        slot.is_some_and(|slot| slot.as_ref().is_some_and(|slot| slot.port.takes_segments()))
    }

    /// Sends frames by one port, as one packet those that are one's segments.
    fn send_joined<'m>(&mut self, packets: impl Iterator<Item = (Frame, &'m Meta)>, port: PortId) {
        let mut runs = self.runs.take().unwrap_or_default();
        for (frame, meta) in packets {
            if let Some(alone) = runs.add(frame, meta, |run| self.send_segments(run, port)) {
                match self.send(alone, port) {
                    Ok(()) => self.counters.sent += 1,
                    Err(reason) => self.counters.drop(reason),
                }
            }
        }
        runs.end(|run| self.send_segments(run, port));
        self.runs = Some(runs);
    }

    /// Sends what has been put together, which may be a single frame or nothing.
    fn send_segments(&mut self, run: &mut Run, port: PortId) {
        if let Some(segments) = run.segments()
            && let Some(Some(slot)) = self.slots.get_mut(port.index())
            && slot.port.send_segments(&segments, run.frames())
        {
            let count = run.frames().len() as u64;
            slot.block.counts.tx_packets += count;
            self.counters.sent += count;
            self.counters.coalesced += count;
            for frame in run.take() {
                self.give(frame);
            }
            return;
        }
        let count = run.frames().len();
        self.send_run(&mut run.take(), count, port);
    }

    /// Puts a frame on the TX ring of `port`, copying it when it lives in another UMEM.
    #[inline]
    pub(super) fn send(&mut self, frame: Frame, port: PortId) -> Result<(), DropReason> {
        let Some(Some(slot)) = self.slots.get_mut(port.index()) else {
            self.give(frame);
            return Err(DropReason::PortGone);
        };
        slot.dirty = true;
        match slot.port.send(frame) {
            Ok(()) => {
                slot.block.counts.tx_packets += 1;
                Ok(())
            }
            Err(frame) => self.send_again(frame, port),
        }
    }

    /// The second try: after a copy, or after the TX ring was emptied.
    #[cold]
    fn send_again(&mut self, frame: Frame, port: PortId) -> Result<(), DropReason> {
        let Some(Some(slot)) = self.slots.get_mut(port.index()) else {
            self.give(frame);
            return Err(DropReason::PortGone);
        };
        let umem = slot.port.umem();
        let frame = if frame.umem() == umem {
            frame
        } else {
            let Some(pool) = self.pools.get_mut(usize::from(umem.0)) else {
                self.give(frame);
                return Err(DropReason::PortGone);
            };
            let copy = pool.take().and_then(|mut copy| match copy.fill(frame.bytes()) {
                Ok(()) => Some(copy),
                Err(_) => {
                    pool.give(copy);
                    None
                }
            });
            self.give(frame);
            self.counters.copied += 1;
            copy.ok_or(DropReason::FramesExhausted)?
        };
        let Some(Some(slot)) = self.slots.get_mut(port.index()) else {
            self.give(frame);
            return Err(DropReason::PortGone);
        };
        let Err(frame) = slot.port.send(frame) else {
            slot.block.counts.tx_packets += 1;
            return Ok(());
        };
        slot.port.flush();
        if let Some(pool) = self.pools.get_mut(usize::from(umem.0)) {
            slot.port.recycle(pool);
        }
        match slot.port.send(frame) {
            Ok(()) => {
                slot.block.counts.tx_packets += 1;
                Ok(())
            }
            Err(frame) => {
                self.give(frame);
                Err(DropReason::TxRingFull)
            }
        }
    }

    /// Gives the packet to another worker, with the others of its vector.
    fn hand_over(&mut self, frame: Frame, meta: Meta, worker: WorkerId) {
        let has_lane = matches!(self.parts.lanes.outgoing.get(worker.index()), Some(Some(_)));
        match self.handing.get_mut(worker.index()) {
            Some(handing) if has_lane => {
                handing.push(Packet { frame, meta, received_ns: self.stopwatch.received_ns });
                self.rang |= 1 << worker.index();
            }
            _ => self.discard(frame, DropReason::PortGone),
        }
    }

    /// Puts what the vector gives other workers into their lanes: each is told once, and reads on while
    /// this one writes.
    #[inline(never)]
    fn fill_lanes(&mut self) {
        let mut workers = self.rang;
        while workers != 0 {
            let number = workers.trailing_zeros() as usize;
            workers &= workers - 1;
            self.fill_lane(number);
        }
    }

    fn fill_lane(&mut self, number: usize) {
        let Some(handing) = self.handing.get_mut(number) else { return };
        if let Some(Some(lane)) = self.parts.lanes.outgoing.get_mut(number) {
            let taken = fill(lane, handing);
            self.counters.sent += taken;
            self.counters.handed_over += taken;
        }
        while let Some(packet) = self.handing.get_mut(number).and_then(Vec::pop) {
            self.discard(packet.frame, DropReason::HandoffFull);
        }
    }

    fn give_to_host(&mut self, frame: Frame, meta: Meta, port: PortId) {
        let host = self.parts.tables.snapshot().node.host;
        match host {
            Some(host) if host.worker != self.parts.id => {
                self.hand_over(frame, meta, host.worker);
            }
            _ => match self.send(frame, port) {
                Ok(()) => self.counters.to_host += 1,
                Err(reason) => self.counters.drop(reason),
            },
        }
    }

    /// Drops a packet.
    pub(super) fn discard(&mut self, frame: Frame, reason: DropReason) {
        self.counters.drop(reason);
        self.give(frame);
    }

    /// Gives a frame back to where it belongs.
    #[inline]
    pub(super) fn give(&mut self, frame: Frame) {
        // The UMEM of a frame is one of those that this worker was made with.
        if let Some(pool) = self.pools.get_mut(usize::from(frame.umem().0)) {
            pool.give(frame);
        }
    }
}
