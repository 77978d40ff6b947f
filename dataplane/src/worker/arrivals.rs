//! What arrives at a worker: by its ports, and from other workers. A frame of the uplink that another worker
//! begins with goes there at once; those of other workers fill this one's vectors up.

use arrayvec::ArrayVec;
use rtrb::chunks::ChunkError;

use super::handoff::Arrived;
use super::stopwatch::Started;
use super::{Slot, Worker, stopwatch};
use crate::io::Port;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Meta, Origin};
use crate::packet::prefetch::prefetch;
use crate::packet::vector::{VECTOR, Vector};
use crate::packet::verdict::{PortId, Verdict};
use crate::stages;
use crate::stages::ingress::home;
use crate::stats::dwell::Side;

impl<P: Port> Slot<P> {
    /// Appends what the port has received to `frames`, as much as has room; says how much.
    #[inline]
    fn receive(&mut self, frames: &mut ArrayVec<Frame, VECTOR>) -> usize {
        let received = self.port.receive(frames);
        self.active |= received > 0;
        self.block.counts.rx_packets += received as u64;
        received
    }
}

impl<P: Port> Worker<P> {
    /// Takes packets from pods and the host and sends them on.
    pub(super) fn receive_inside(&mut self) -> usize {
        let mut inside = self.inside.take().unwrap_or_default();
        let work = self.receive(&mut inside);
        if work > 0 {
            self.process_timed(&mut inside, stages::from_inside, Side::Inside);
        }
        self.inside = Some(inside);
        work
    }

    /// Takes packets from the uplink and sends them on, with what other workers took from it for this one.
    pub(super) fn receive_uplink(&mut self) -> usize {
        let mut uplink = self.uplink.take().unwrap_or_default();
        let (mut work, started) = self.receive_and_sort(&mut uplink);
        if started.is_none() {
            work += self.take_passed(&mut uplink, false);
        }
        if !uplink.is_empty() {
            self.process(&mut uplink, stages::from_uplink);
        }
        if let Some(started) = started {
            self.stopwatch.processed(Side::Uplink, &started, &self.counters);
        }
        self.uplink = Some(uplink);
        work
    }

    /// Fills `vector` from the ports of pods and the host.
    #[inline]
    fn receive(&mut self, vector: &mut Vector) -> usize {
        let (ports, first) = (&self.inside_ports, &mut self.first_inside);
        let (before, after) = ports.split_at((*first).min(ports.len()));
        for (turn, number) in after.iter().chain(before).enumerate() {
            let Some(Some(slot)) = self.slots.get_mut(*number) else { continue };
            let received = slot.receive(&mut vector.frames);
            if received == 0 {
                continue;
            }
            vector.meta.extend(std::iter::repeat_n(Meta::new(slot.id, slot.origin), received));
            if vector.is_full() {
                // The next round begins behind the port that filled the vector, so that a busy
                // one cannot keep the others waiting for ever.
                *first = (*first + turn + 1) % ports.len();
                break;
            }
        }
        self.counters.received += vector.len() as u64;
        vector.len()
    }

    /// Fills `vector` from the uplink's ports with what this worker begins with; the others get theirs at once, and do
    /// their part while this one does its own. Says how many frames the ports had.
    #[inline]
    fn receive_and_sort(&mut self, vector: &mut Vector) -> (usize, Option<Started>) {
        let (mut arrived, mut started) = (0, None);
        let ports = self.uplink_ports.len();
        for turn in 0..ports {
            let Some(number) = self.uplink_ports.get((self.first_uplink + turn) % ports) else {
                break;
            };
            let Some(Some(slot)) = self.slots.get_mut(*number) else { continue };
            let kept = vector.frames.len();
            let received = slot.receive(&mut vector.frames);
            if received == 0 {
                continue;
            }
            let meta = Meta::new(slot.id, slot.origin);
            if arrived == 0 {
                started = self.stopwatch.start(&self.counters);
            }
            arrived += received;
            let is_full = vector.frames.is_full();
            if self.passing.len() > 1 {
                self.sort_out(&mut vector.frames, kept, meta.port);
            }
            vector.meta.extend(std::iter::repeat_n(meta, vector.frames.len() - kept));
            if is_full || arrived >= VECTOR {
                // As above.
                self.first_uplink = (self.first_uplink + turn + 1) % ports;
                break;
            }
        }
        self.counters.received += arrived as u64;
        (arrived, started)
    }

    /// Takes the frames from `first` on that other workers begin with out of `frames`, and gives them to these; all
    /// keep their order.
    #[inline(never)]
    fn sort_out(&mut self, frames: &mut ArrayVec<Frame, VECTOR>, first: usize, port: PortId) {
        let here = self.parts.id;
        let mut homes = [here; VECTOR];
        let arrived = frames.get(first..).unwrap_or_default();
        for frame in arrived {
            frame.prefetch_headers();
        }
        if home::of(arrived, self.parts.tables.snapshot(), here, &mut homes) {
            return;
        }
        // A pass of its own, and into this worker's own place like into the others': no guess is wrong.
        for (frame, home) in frames.drain(first..).zip(homes) {
            let known = if home.index() < self.passing.len() { home } else { here };
            if let Some(passing) = self.passing.get_mut(known.index()) {
                passing.push(frame);
            }
        }
        for number in 0..self.passing.len() {
            if number == here.index() {
                frames.extend(self.passing[number].drain(..));
            } else if !self.passing[number].is_empty() {
                self.pass_on(number, port);
            }
        }
    }

    /// Puts the frames for another worker into its lane.
    fn pass_on(&mut self, number: usize, port: PortId) {
        let received_ns = self.stopwatch.received_ns;
        let Some(passing) = self.passing.get_mut(number) else { return };
        if let Some(Some(lane)) = self.parts.lanes.passed_out.get_mut(number) {
            // How much room there is is asked only when there may be too little: that line is the other worker's.
            let room = match lane.write_chunk_uninit(passing.len()) {
                Ok(chunk) => chunk.len(),
                Err(ChunkError::TooFewSlots(slots)) => slots,
            };
            if let Ok(chunk) = lane.write_chunk_uninit(room) {
                let leaving = passing.drain(..chunk.len());
                let taken =
                    chunk.fill_from_iter(leaving.map(|frame| Arrived { frame, port, received_ns }));
                self.counters.sent += taken as u64;
                self.counters.handed_over += taken as u64;
                self.rang |= 1 << number;
            }
        }
        while let Some(frame) = self.passing.get_mut(number).and_then(ArrayVec::pop) {
            self.discard(frame, DropReason::HandoffFull);
        }
    }

    /// Takes over packets that other workers handed over.
    pub(super) fn receive_handed(&mut self) -> usize {
        let mut handed = self.handed.take().unwrap_or_default();
        let timed = self.stopwatch.handed();
        let lanes = &mut self.parts.lanes.incoming;
        let first = self.first_lane.min(lanes.len());
        let (before, after) = lanes.split_at_mut(first);
        for lane in after.iter_mut().chain(before).flatten() {
            // All at once: the other worker's line is asked for once, not for each packet.
            let count = lane.slots().min(VECTOR - handed.len());
            let Ok(packets) = lane.read_chunk(count) else { continue };
            for mut packet in packets {
                packet.frame.prefetch();
                self.stopwatch.take_over(packet.received_ns);
                match packet.meta.verdict {
                    Verdict::SendElsewhere(_, port) => packet.meta.verdict = Verdict::Send(port),
                    Verdict::HandOver(_) => packet.meta.verdict = Verdict::Pending,
                    _ => {}
                }
                // There is room: just looked.
                let _ = handed.push(packet);
            }
        }
        let work = handed.len();
        if work > 0 {
            self.counters.received += work as u64;
            let left = stopwatch::left(&self.counters);
            self.process(&mut handed, stages::from_worker);
            self.stopwatch.handed_left(timed, stopwatch::left(&self.counters) - left);
        }
        self.handed = Some(handed);
        work
    }

    /// Looks at what other workers have passed on until now, and asks for the lines of the lanes that it is in: all at
    /// once, and they come while this worker does what its pods have sent.
    pub(super) fn ask_for_lanes(&mut self) {
        let lanes = &mut self.parts.lanes.passed_in;
        // Another lane first each time: a busy one must not keep the others waiting.
        self.first_lane = (self.first_lane + 1) % lanes.len().max(1);
        for (lane, waiting) in lanes.iter_mut().zip(&mut self.waiting) {
            let Some(lane) = lane else { continue };
            *waiting = lane.slots();
            let Ok(chunk) = lane.read_chunk((*waiting).min(VECTOR)) else { continue };
            let (first, second) = chunk.as_slices();
            // Two of them are shorter than a line.
            first.iter().chain(second).step_by(2).for_each(|arrived| prefetch(arrived));
        }
    }

    /// Asks for the lines of these frames: they come while this worker sorts what has come by its own ports.
    pub(super) fn ask_for_passed(&mut self) {
        for (lane, waiting) in self.parts.lanes.passed_in.iter_mut().zip(&self.waiting) {
            let count = (*waiting).min(VECTOR);
            let Some(Ok(chunk)) = lane.as_mut().map(|lane| lane.read_chunk(count)) else {
                continue;
            };
            let (first, second) = chunk.as_slices();
            for arrived in first.iter().chain(second) {
                arrived.frame.prefetch_headers();
            }
        }
    }

    /// Fills `vector` up with frames from other workers, as they came to these; says how many there were. If `timed` ones
    /// are not meant, none is taken from the first of those on: they are counted by a vector of their own.
    fn take_passed(&mut self, vector: &mut Vector, timed: bool) -> usize {
        let had = vector.len();
        let lanes = &mut self.parts.lanes.passed_in;
        for turn in 0..lanes.len() {
            let number = (self.first_lane + turn) % lanes.len();
            let waiting = self.waiting.get_mut(number).filter(|waiting| **waiting > 0);
            let (Some(Some(lane)), Some(waiting)) = (lanes.get_mut(number), waiting) else {
                continue;
            };
            let Ok(chunk) = lane.read_chunk((*waiting).min(VECTOR - vector.len())) else {
                continue;
            };
            let taken = if timed { chunk.len() } else { untimed(chunk.as_slices()) };
            *waiting -= taken;
            let mut meta = Meta::new(PortId(0), Origin::Uplink);
            for Arrived { frame, port, received_ns } in chunk.into_iter().take(taken) {
                frame.prefetch_headers();
                self.stopwatch.take_over(received_ns);
                meta.port = port;
                // There is room: just looked.
                vector.frames.push(frame);
                vector.meta.push(meta);
            }
        }
        let taken = vector.len() - had;
        self.counters.received += taken as u64;
        taken
    }

    /// Processes what other workers have passed on and no vector of this one's had room for.
    pub(super) fn receive_passed(&mut self) -> usize {
        let mut passed = self.uplink.take().unwrap_or_default();
        let (before, left) = (self.stopwatch.handed(), stopwatch::left(&self.counters));
        let work = self.take_passed(&mut passed, true);
        if work > 0 {
            self.process(&mut passed, stages::from_uplink);
            self.stopwatch.handed_left(before, stopwatch::left(&self.counters) - left);
        }
        self.uplink = Some(passed);
        work
    }
}

/// How many of the frames come before the first that is timed.
fn untimed((first, second): (&[Arrived], &[Arrived])) -> usize {
    first.iter().chain(second).take_while(|arrived| arrived.received_ns == 0).count()
}
