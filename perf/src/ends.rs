//! Both ends of the bed in one thread: the pod that asks at `pod0`, and everybody behind `wire0` who
//! answers.
//!
//! One thread, because one CPU is left beside the forwarder's: two that poll would take turns. It
//! opens flows so that a forwarder knows them in both directions ([`Ends::prime`]), and measures
//! round trips ([`Ends::round_trips`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use hdrhistogram::Histogram;
use overlane_bpf::PortSteering;
use overlane_dataplane::io::af_xdp::{AfXdpPort, BindMode, OpenPort, RingSizes, Umem, UmemOptions};
use overlane_dataplane::io::{Port, VECTOR};
use overlane_dataplane::packet::frame::Frame;
use overlane_dataplane::packet::pool::{FramePool, UmemId};

use crate::bed::{POD, WIRE};
use crate::error::PerfError;
use crate::namespace;
use crate::reflect::turn;
use crate::threads::monotonic_ns;
use crate::traffic::{Order, Stamp, Traffic};
use crate::writer::FrameWriter;

/// Chunks of the packet memory; all ends are ours, so it need not be large.
const CHUNKS: u32 = 4096;
/// Packets that are asked at once while flows are opened.
const BURST: usize = 32;
/// Most that are under way then: a forwarder's receive ring holds as many.
const UNDER_WAY: u64 = 128;
/// After so long without an answer those under way are lost.
const PATIENCE: Duration = Duration::from_millis(50);
/// A round that takes longer for each of its flows, and for itself, is given up: a forwarder that
/// loses most of them would keep it waiting for each.
const FLOW_PATIENCE: Duration = Duration::from_micros(50);
const ROUND_PATIENCE: Duration = Duration::from_secs(2);
/// Rounds of all flows before a forwarder is told that it loses too many.
const ROUNDS: usize = 6;
/// Part of the flows that must be answered in a round.
const ANSWERED: f64 = 0.999;
/// Part of the flows below which more rounds do not help.
const HOPELESS: f64 = 0.5;
/// From one question of a round trip to the next: low load.
const PACE: Duration = Duration::from_micros(100);
/// One interface.
#[derive(Debug)]
struct End {
    port: AfXdpPort,
    pool: FramePool,
    // Behind the port, so that nothing is the kernel's while it closes.
    _steering: PortSteering,
}

impl End {
    fn open(umem: &Umem, (name, interface): (&str, &str)) -> Result<Self, PerfError> {
        namespace::enter(Some(name))?;
        let steering = PortSteering::attach(interface, 1)?;
        let options = OpenPort { fill_min: 512, ..OpenPort::veth(interface, 0) };
        let mut port = AfXdpPort::open(umem, &options)?;
        steering.register_socket(0, port.fd())?;
        let mut pool = FramePool::new(umem.depot().clone(), 256);
        port.recycle(&mut pool);
        Ok(Self { port, pool, _steering: steering })
    }

    fn receive(&mut self) -> ArrayVec<Frame, VECTOR> {
        let mut frames = ArrayVec::new();
        self.port.receive(&mut frames);
        frames
    }

    fn after_work(&mut self) {
        self.port.flush();
        self.port.recycle(&mut self.pool);
    }
}

impl Drop for End {
    /// The port gives its frames back by itself, and these are for the next ends.
    fn drop(&mut self) {
        self.pool.drain();
    }
}

/// The packet memory of [`Ends`]. It is never given back, so a process makes one.
///
/// # Errors
/// [`PerfError::Umem`]
pub fn packet_memory() -> Result<Umem, PerfError> {
    Ok(Umem::create(UmemOptions {
        id: UmemId(0),
        chunks: CHUNKS,
        fill_extra: CHUNKS / 4,
        rings: RingSizes::default(),
        mode: BindMode::Copy,
    })?)
}

/// How flows were opened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Primed {
    /// Rounds of all flows that it took.
    pub rounds: usize,
    /// Part of the flows that were answered in the last one.
    pub answered: f64,
}

/// What became of questions that were asked by a schedule.
#[derive(Debug, Clone)]
pub struct Scheduled {
    /// Questions.
    pub sent: u64,
    /// Answers.
    pub answered: u64,
    /// Of those, answers behind one to a later question.
    pub reordered: u64,
    /// The most that a question was behind its schedule, nanoseconds.
    pub late_ns: u64,
    /// From when each question was due until its answer came, nanoseconds.
    pub times: Histogram<u64>,
}

/// The pod and the network. The interfaces are free again when this is dropped.
#[derive(Debug)]
pub struct Ends {
    pod: End,
    wire: End,
}

impl Ends {
    /// Opens both interfaces. The calling thread is in the network's namespace afterwards.
    ///
    /// # Errors
    /// [`PerfError`] says which cannot be had.
    pub fn open(memory: &Umem) -> Result<Self, PerfError> {
        Ok(Self { pod: End::open(memory, POD)?, wire: End::open(memory, WIRE)? })
    }

    /// Sends a packet of each flow and answers it, in several rounds, until a forwarder carries all
    /// of them in both directions.
    ///
    /// # Errors
    /// [`PerfError::Unanswered`]: it does not.
    pub fn prime(&mut self, traffic: &Traffic, stop: &AtomicBool) -> Result<Primed, PerfError> {
        let traffic = Traffic { order: Order::InOrder, ..traffic.clone() };
        let mut answered = 0.0;
        for rounds in 1..=ROUNDS {
            answered = self.ask_all(&traffic, stop)? as f64 / f64::from(traffic.flows);
            // In the first one a forwarder sees each flow from one side only.
            if rounds > 1 && answered >= ANSWERED {
                return Ok(Primed { rounds, answered });
            }
            if answered < HOPELESS {
                break;
            }
        }
        Err(PerfError::Unanswered { flows: traffic.flows, answered })
    }

    /// Sends a packet of each flow; says how many answers came.
    fn ask_all(&mut self, traffic: &Traffic, stop: &AtomicBool) -> Result<u64, PerfError> {
        let mut writer = FrameWriter::new(traffic)?;
        let (mut left, mut under_way, mut answers) = (traffic.flows as usize, 0_u64, 0);
        let mut last = Instant::now();
        let give_up = last + ROUND_PATIENCE + FLOW_PATIENCE * traffic.flows;
        while (left > 0 || under_way > 0) && last < give_up {
            if stop.load(Ordering::Relaxed) {
                return Err(PerfError::Stopped);
            }
            if left > 0 && under_way < UNDER_WAY {
                let now = monotonic_ns()?;
                let asked = self.ask(&mut writer, left.min(BURST), |_| now);
                left -= asked;
                under_way += asked as u64;
                last = Instant::now();
            }
            self.answer();
            let came = self.take_answers(|_| {}) as u64;
            if came > 0 {
                answers += came;
                under_way = under_way.saturating_sub(came);
                last = Instant::now();
            } else if last.elapsed() > PATIENCE {
                under_way = 0;
                last = Instant::now();
            }
        }
        Ok(answers.min(u64::from(traffic.flows)))
    }

    /// Sends up to `count` packets of the pod's; `due` says from its number when one is due, which is
    /// what its stamp says.
    fn ask(&mut self, writer: &mut FrameWriter, count: usize, due: impl Fn(u64) -> u64) -> usize {
        let mut asked = 0;
        while asked < count {
            let Some(mut frame) = self.pod.pool.take() else { break };
            let room = writer.largest();
            let written = frame
                .set_len(room)
                .ok()
                .and_then(|()| {
                    let due = due(writer.sequence());
                    writer.next(frame.bytes_mut(), due)
                })
                .and_then(|length| frame.set_len(length).ok());
            match written.map(|()| self.pod.port.send(frame)) {
                Some(Ok(())) => asked += 1,
                Some(Err(frame)) => {
                    self.pod.pool.give(frame);
                    break;
                }
                // Larger than a chunk, which no frame is that a traffic may have.
                None => break,
            }
        }
        self.pod.after_work();
        asked
    }

    /// Turns round what has arrived from the forwarder.
    fn answer(&mut self) {
        let frames = self.wire.receive();
        if frames.is_empty() {
            return;
        }
        for mut frame in frames {
            let sent =
                if turn(frame.bytes_mut()) { self.wire.port.send(frame) } else { Err(frame) };
            if let Err(frame) = sent {
                self.wire.pool.give(frame);
            }
        }
        self.wire.after_work();
    }

    /// Takes what has come back to the pod; says how many frames that were.
    fn take_answers(&mut self, mut see: impl FnMut(&[u8])) -> usize {
        let frames = self.pod.receive();
        if frames.is_empty() {
            return 0;
        }
        let came = frames.len();
        for frame in frames {
            see(frame.bytes());
            self.pod.pool.give(frame);
        }
        self.pod.after_work();
        came
    }

    /// Asks one packet after the other, 10,000 a second at most, for `duration`: nanoseconds from
    /// the question to the answer, and how many were never answered. A question that is late because
    /// the answer before it was is timed from when it was due, so that none hides others.
    ///
    /// # Errors
    /// [`PerfError`]: no clock, or the person has had enough.
    pub fn round_trips(
        &mut self,
        traffic: &Traffic,
        duration: Duration,
        stop: &AtomicBool,
    ) -> Result<(Histogram<u64>, u64), PerfError> {
        let mut writer = FrameWriter::new(&Traffic { stamp: true, ..traffic.clone() })?;
        let mut times = Histogram::new_with_bounds(1, 60_000_000_000, 3)
            .map_err(|error| PerfError::Missed(error.to_string()))?;
        let mut lost = 0;
        let begin = monotonic_ns()?;
        let end = begin + duration.as_nanos() as u64;
        let mut due = begin;
        while due < end {
            while monotonic_ns()? < due {
                // What a forwarder sends by itself is not kept waiting.
                self.answer();
                if stop.load(Ordering::Relaxed) {
                    return Err(PerfError::Stopped);
                }
            }
            let sequence = writer.sequence();
            let now = monotonic_ns()?;
            self.ask(&mut writer, 1, |_| now);
            match self.wait_for(sequence)? {
                Some(now) => times.saturating_record(now - due),
                None => lost += 1,
            }
            due += PACE.as_nanos() as u64;
            if monotonic_ns()? > due + PATIENCE.as_nanos() as u64 {
                // The thread was away, or a packet was lost: no pile of questions.
                due = monotonic_ns()?;
            }
        }
        Ok((times, lost))
    }

    /// Asks by the schedule of `traffic.rate` for `duration`, whether answers come or not, and takes
    /// the time of each answer from when its question was due.
    ///
    /// # Errors
    /// [`PerfError`]: no clock, or the person has had enough.
    pub fn scheduled(
        &mut self,
        traffic: &Traffic,
        duration: Duration,
        stop: &AtomicBool,
    ) -> Result<Scheduled, PerfError> {
        let mut writer = FrameWriter::new(&Traffic { stamp: true, ..traffic.clone() })?;
        let period = 1e9 / traffic.rate.unwrap_or(1e9);
        let times = Histogram::new_with_bounds(1, 60_000_000_000, 3)
            .map_err(|error| PerfError::Missed(error.to_string()))?;
        let mut all = Scheduled { sent: 0, answered: 0, reordered: 0, late_ns: 0, times };
        let (begin, mut largest) = (monotonic_ns()?, 0);
        let due = |number: u64| begin + (number as f64 * period) as u64;
        let end = begin + duration.as_nanos() as u64;
        let mut quiet_since = begin;
        loop {
            let now = monotonic_ns()?;
            let next = due(writer.sequence());
            if stop.load(Ordering::Relaxed) {
                return Err(PerfError::Stopped);
            }
            if next <= now && next < end {
                all.late_ns = all.late_ns.max(now - next);
                let waiting = ((now - next) as f64 / period) as usize + 1;
                all.sent += self.ask(&mut writer, waiting.min(BURST), due) as u64;
                quiet_since = now;
            }
            self.answer();
            let (answered, reordered, times) =
                (&mut all.answered, &mut all.reordered, &mut all.times);
            let came = self.take_answers(|frame| {
                let Some(stamp) = Stamp::read(frame) else { return };
                *answered += 1;
                *reordered += u64::from(stamp.sequence < largest);
                largest = largest.max(stamp.sequence);
                // Without a clock it would have ended above.
                let now = monotonic_ns().unwrap_or(stamp.nanoseconds);
                times.saturating_record(now.saturating_sub(stamp.nanoseconds).max(1));
            });
            if came > 0 {
                quiet_since = now;
            }
            if next >= end && now > quiet_since + PATIENCE.as_nanos() as u64 {
                return Ok(all);
            }
        }
    }

    /// When the answer to that question came; none: it did not.
    fn wait_for(&mut self, sequence: u64) -> Result<Option<u64>, PerfError> {
        let begin = monotonic_ns()?;
        loop {
            self.answer();
            let mut found = false;
            self.take_answers(|frame| {
                found |= Stamp::read(frame).is_some_and(|stamp| stamp.sequence == sequence);
            });
            let now = monotonic_ns()?;
            if found {
                return Ok(Some(now));
            }
            if now > begin + PATIENCE.as_nanos() as u64 {
                return Ok(None);
            }
        }
    }
}
