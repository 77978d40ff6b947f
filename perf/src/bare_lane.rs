//! What it costs on this machine that a frame changes hands, when nothing else is done with it: the floor under
//! every hand-over. Two threads write frames, put them into the lanes of the dataplane, take them out, read
//! and write them, and keep them: as workers do with half of their answers.

use std::collections::VecDeque;

use overlane_dataplane::io::VECTOR;
use overlane_dataplane::io::memory::MemoryUmem;
use overlane_dataplane::packet::frame::Frame;
use overlane_dataplane::packet::pool::{FramePool, UmemId};
use overlane_dataplane::packet::verdict::PortId;
use overlane_dataplane::worker::handoff::{Arrived, Lanes};
use rtrb::{Consumer, Producer};

use crate::crossing::{Driven, rate};
use crate::error::PerfError;

/// Threads of a lane in each direction.
pub const THREADS: usize = 2;

/// Frames of a thread, as many as a port of the other rigs has.
const FRAMES: usize = 256;

/// Frames that a thread writes in one turn: the half of a vector that is another worker's.
const BATCH: usize = VECTOR / 2;

/// Turns at a time.
const TURNS: usize = 8;

/// What is written, as a packet that arrives: two lines.
const PACKET: [u8; 2 * LINE] = [7; 2 * LINE];

/// Bytes of a cache line.
const LINE: usize = 64;

/// Both threads' ends.
#[derive(Debug)]
pub struct Ends {
    ends: Vec<End>,
    /// Millions of frames a second that went through both threads' hands, by round.
    pub rates: Vec<f64>,
}

/// What one thread has.
#[derive(Debug)]
struct End {
    own: VecDeque<Frame>,
    output: Producer<Arrived>,
    input: Consumer<Arrived>,
    done: u64,
}

impl Ends {
    /// Two threads' ends: of lanes to each other, if they are `crossed`; else of one to itself each.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn new(crossed: bool) -> Result<Self, PerfError> {
        let mut lanes = Lanes::between(THREADS).map_err(PerfError::Node)?;
        let mut pool = FramePool::new(MemoryUmem::new(UmemId(0), THREADS * FRAMES), 0);
        let mut ends = Vec::new();
        for number in 0..THREADS {
            let other = THREADS - 1 - number;
            let output = lanes[number].passed_out[other].take();
            let from = if crossed { number } else { other };
            let input = lanes[from].passed_in[THREADS - 1 - from].take();
            let (Some(output), Some(input)) = (output, input) else { continue };
            let mut own = VecDeque::with_capacity(THREADS * FRAMES);
            pool.take_many(FRAMES, |frame| own.push_back(frame));
            ends.push(End { own, output, input, done: 0 });
        }
        Ok(Self { ends, rates: Vec::new() })
    }

    /// One round, if the cores were free for it.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn round(&mut self) -> Result<(), PerfError> {
        self.rates.extend(rate(&mut self.ends)?);
        Ok(())
    }
}

impl Driven for End {
    fn poll(&mut self) {
        // As long as a round of a worker.
        for _ in 0..TURNS {
            self.turn();
        }
    }

    fn done(&self) -> u64 {
        self.done
    }
}

impl End {
    fn turn(&mut self) {
        let count = self.input.slots().min(VECTOR);
        let mut taken = arrayvec::ArrayVec::<Frame, VECTOR>::new();
        if let Ok(chunk) = self.input.read_chunk(count) {
            for arrived in chunk {
                arrived.frame.prefetch_headers();
                taken.push(arrived.frame);
            }
        }
        let count = self.output.slots().min(self.own.len()).min(BATCH);
        if let Ok(chunk) = self.output.write_chunk_uninit(count) {
            chunk.fill_from_iter(self.own.drain(..count).map(|mut frame| {
                // It fits: a chunk is longer.
                let _ = frame.fill(&PACKET);
                Arrived { frame, received_ns: 0, port: PortId(0) }
            }));
        }
        self.done += taken.len() as u64;
        for mut frame in taken {
            for line in frame.bytes_mut().chunks_mut(LINE) {
                line[0] = line[0].wrapping_add(1);
            }
            self.own.push_back(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_to_the_other_thread_or_come_back() {
        for crossed in [true, false] {
            let mut ends = Ends::new(crossed).unwrap();
            let first = &mut ends.ends[0];
            first.turn();
            assert_eq!((first.own.len(), first.done), (FRAMES - BATCH, 0));
            let (to, other) = if crossed { (1, 0) } else { (0, 1) };
            ends.ends[to].turn();
            assert_eq!(ends.ends[to].done, BATCH as u64);
            ends.ends[other].turn();
            assert_eq!(ends.ends[other].done, if crossed { BATCH as u64 } else { 0 });
        }
    }
}
