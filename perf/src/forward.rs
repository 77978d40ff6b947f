//! The raw AF_XDP forwarder: what arrives at one interface leaves by the other one, both ways, and
//! nothing else is done.
//!
//! It is the ceiling: the same ports, rings, bursts and packet memory as the dataplane's, with one
//! busy worker and in the same order (receive from both sides, send, recycle), but without a look
//! into any frame. What a dataplane costs above it is the dataplane's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use clap::Args;
use overlane_bpf::{PortSteering, Transmitter};
use overlane_dataplane::io::af_xdp::plan::plan_chunks;
use overlane_dataplane::io::af_xdp::{
    AfXdpPort, BindMode, BusyPoll, OpenPort, RingSizes, Umem, UmemOptions,
};
use overlane_dataplane::io::{Port, VECTOR};
use overlane_dataplane::packet::frame::Frame;
use overlane_dataplane::packet::pool::{FramePool, UmemId};
use serde::Serialize;

use crate::device;
use crate::error::PerfError;
use crate::text::listing;

/// Sockets that a dataplane with its default settings plans its memory for: 250 endpoints, the
/// uplink of one worker, the host port.
const SOCKETS: u32 = 252;
/// Memory that it may take by default, bytes.
const BUDGET: u64 = 512 << 20;
/// Free frames that a worker of the dataplane keeps for itself.
const POOL_KEEP: usize = 256;
/// Name of the thread that forwards.
const THREAD: &str = "forwarder";
/// How long the kernel may take to give the rings' frames back.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// Packets that one busy poll takes at most.
const POLL_BUDGET: u32 = 64;

/// How to send, where it is not to be as the dataplane does.
#[derive(Debug, Clone, Default, Args)]
pub struct Tuning {
    /// Frames that one system call sends at most (XDP_MAX_TX_SKB_BUDGET, kernel 6.17) [default: 256].
    #[arg(long, value_name = "FRAMES", value_parser = clap::value_parser!(u32).range(32..=512))]
    tx_budget: Option<u32>,
    /// Collects so many frames before it sends, as long as there are more to receive [default: 1].
    #[arg(long, value_name = "FRAMES", value_parser = clap::value_parser!(u16).range(1..=192))]
    collect: Option<u16>,
    /// Half of the sockets' send buffers [default: room for the TX ring].
    #[arg(long, value_name = "BYTES")]
    send_buffer: Option<u32>,
    /// Each system call polls the device for so long.
    #[arg(long, value_name = "MICROSECONDS")]
    busy_poll: Option<u32>,
    /// Asks for each frame's first line when it is received, as a dataplane that reads it does.
    #[arg(long)]
    prefetch: bool,
    /// Sends by a BPF program, a burst in one run, instead of by AF_XDP.
    #[arg(long)]
    program: bool,
}

impl Tuning {
    /// The port of an interface.
    fn port<'a>(&self, interface: &'a str, fill_min: u32) -> OpenPort<'a> {
        let port = OpenPort::veth(interface, 0);
        OpenPort {
            fill_min,
            tx_budget: self.tx_budget.unwrap_or(port.tx_budget),
            send_buffer: self.send_buffer,
            busy_poll: self
                .busy_poll
                .map(|microseconds| BusyPoll { microseconds, budget: POLL_BUDGET }),
            ..port
        }
    }
}

/// What to forward between.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The interface that stands for a pod's port; in the calling thread's network namespace.
    pub inside: String,
    /// The interface that stands for the uplink.
    pub outside: String,
    /// CPU that the forwarding thread is pinned to.
    pub cpu: Option<usize>,
    /// Ends by itself after this long.
    pub duration: Option<Duration>,
    /// How to send.
    pub tuning: Tuning,
}

/// One direction, in frames since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Direction {
    /// Taken from the receiving interface.
    pub received: u64,
    /// Put on the other one's TX ring, or given to the program that sends.
    pub sent: u64,
    /// Given up because that ring was full.
    pub dropped: u64,
}

/// What the kernel did at one of the interfaces, in frames or system calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Frames that found no free chunk, or were longer than one.
    pub rx_dropped: u64,
    /// Frames that found the RX ring full.
    pub rx_ring_full: u64,
    /// System calls that sent frames.
    pub kicks: u64,
    /// Of those, answered with "call again".
    pub again: u64,
    /// Frames that the device dropped while sending.
    pub dropped_by_device: u64,
    /// Calls that the device refused.
    pub refused: u64,
}

/// What the program did that sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Bursts {
    /// Its runs, a system call each.
    pub runs: u64,
    /// Of those, refused by the kernel.
    pub failed: u64,
    /// Frames that it sent.
    pub sent: u64,
    /// Frames that their device did not take.
    pub refused: u64,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// From the inside to the outside.
    pub out: Direction,
    /// From the outside to the inside.
    pub back: Direction,
    /// Inside and outside.
    pub interfaces: [Interface; 2],
    /// What the program did, if one sends.
    pub bursts: Option<Bursts>,
    /// Frames of the packet memory.
    pub frames: usize,
    /// Of those, back when all was closed: all, or the forwarder has lost some.
    pub frames_back: usize,
}

impl Report {
    /// Is every frame back?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.frames == self.frames_back
    }

    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table =
            listing(["FROM", "TO", "RECEIVED", "SENT", "DROPPED", "RX LOST", "TX CALLS"]);
        let [inside, outside] = &self.interfaces;
        for (from, to, way) in [(inside, outside, self.out), (outside, inside, self.back)] {
            table.add_row([
                from.name.clone(),
                to.name.clone(),
                way.received.to_string(),
                way.sent.to_string(),
                way.dropped.to_string(),
                (from.rx_dropped + from.rx_ring_full).to_string(),
                to.kicks.to_string(),
            ]);
        }
        let mut text = table.to_string();
        if let Some(bursts) = self.bursts {
            text += &format!(
                "\nprogram: {} runs, {} failed; {} frames sent, {} refused",
                bursts.runs, bursts.failed, bursts.sent, bursts.refused
            );
        }
        format!("{text}\nframes: {} of {} are back", self.frames_back, self.frames)
    }
}

/// One interface and what it takes.
struct Side {
    name: String,
    index: u32,
    port: AfXdpPort,
    way: Direction,
    /// Something was received from it or is to be sent by it.
    active: bool,
    // After the port: closing detaches the program last, and nothing goes to the host meanwhile.
    _steering: PortSteering,
}

impl Side {
    fn open(umem: &Umem, options: &OpenPort<'_>) -> Result<Self, PerfError> {
        let name = options.interface;
        let steering = PortSteering::attach(name, 1)?;
        let index = device::find(name)?.index;
        let port = AfXdpPort::open(umem, options)?;
        steering.register_socket(0, port.fd())?;
        let way = Direction::default();
        Ok(Self { name: name.to_owned(), index, port, way, active: true, _steering: steering })
    }

    /// Moves up to a vector from here to `to`; says how many frames came.
    #[inline]
    fn move_to(&mut self, to: &mut Self, sending: &mut Sending<'_>) -> usize {
        let mut frames: ArrayVec<Frame, VECTOR> = ArrayVec::new();
        let received = self.port.receive(&mut frames);
        if received == 0 {
            return 0;
        }
        if sending.prefetch {
            frames.iter().for_each(Frame::prefetch);
        }
        for frame in frames {
            let sent = match &mut sending.program {
                None => to.port.send(frame),
                Some(program) => {
                    self.way.sent += u64::from(program.stage(to.index, frame.bytes()));
                    // Its bytes were copied.
                    Err(frame)
                }
            };
            match sent {
                Ok(()) => self.way.sent += 1,
                Err(frame) => sending.pool.give(frame),
            }
        }
        self.way.received += received as u64;
        self.way.dropped = self.way.received - self.way.sent;
        (self.active, to.active) = (true, true);
        received
    }

    /// Kicks what is on the TX ring, and takes back what has been sent.
    #[inline]
    fn after_work(&mut self, pool: &mut FramePool) {
        if std::mem::take(&mut self.active) {
            self.port.flush();
            self.port.recycle(pool);
        }
    }

    fn report(&self) -> Interface {
        let (drops, tx) = (self.port.kernel_drops(), self.port.tx_counters());
        Interface {
            name: self.name.clone(),
            rx_dropped: drops.rx_dropped,
            rx_ring_full: drops.rx_ring_full,
            kicks: tx.kicks,
            again: tx.again,
            dropped_by_device: tx.dropped_by_device,
            refused: tx.refused,
        }
    }
}

/// What the loop sends with.
struct Sending<'a> {
    pool: &'a mut FramePool,
    prefetch: bool,
    /// Sends instead of the ports.
    program: Option<Transmitter>,
    runs: u64,
    failed: u64,
}

impl Sending<'_> {
    /// Sends what both sides have.
    #[inline]
    fn finish(&mut self, inside: &mut Side, outside: &mut Side) {
        if let Some(program) = &mut self.program
            && program.staged() > 0
        {
            self.runs += 1;
            self.failed += u64::from(program.send().is_err());
        }
        inside.after_work(self.pool);
        outside.after_work(self.pool);
    }

    fn report(&self) -> Option<Bursts> {
        let done = self.program.as_ref()?.transmitted();
        let Self { runs, failed, .. } = *self;
        Some(Bursts { runs, failed, sent: done.sent, refused: done.refused })
    }
}

/// Forwards until `stop` says so, or for the plan's duration; `ready` is called when the first
/// frame may come.
///
/// # Errors
/// [`PerfError`] says which interface, memory, program or CPU cannot be had.
pub fn run(
    plan: &Plan,
    stop: &Arc<AtomicBool>,
    ready: impl FnOnce() + Send,
) -> Result<Report, PerfError> {
    let memory = plan_chunks(SOCKETS, 1, BUDGET, RingSizes::default())
        .map_err(|refused| PerfError::Refused(refused.to_string()))?;
    let umem = Umem::create(UmemOptions {
        id: UmemId(0),
        chunks: memory.chunks,
        fill_extra: memory.fill_extra,
        rings: RingSizes::default(),
        mode: BindMode::Copy,
    })?;
    let mut inside = Side::open(&umem, &plan.tuning.port(&plan.inside, memory.fill_min))?;
    let fill_min = memory.fill_min.max(memory.uplink_fill_min());
    let mut outside = Side::open(&umem, &plan.tuning.port(&plan.outside, fill_min))?;
    let program = plan.tuning.program.then(Transmitter::load).transpose()?;
    let mut pool = FramePool::new(umem.depot().clone(), POOL_KEEP);
    let prefetch = plan.tuning.prefetch;
    let mut sending = Sending { pool: &mut pool, prefetch, program, runs: 0, failed: 0 };
    let loop_ended = std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name(THREAD.to_owned());
        let (inside, outside, sending) = (&mut inside, &mut outside, &mut sending);
        let forward = move || forward(plan, inside, outside, sending, stop, ready);
        match worker.spawn_scoped(scope, forward) {
            Ok(thread) => thread.join().unwrap_or(Err(PerfError::Thread)),
            Err(_) => Err(PerfError::Thread),
        }
    });
    let (out, back) = (inside.way, outside.way);
    let interfaces = [inside.report(), outside.report()];
    let bursts = sending.report();
    // Closing gives the rings' frames back, to the depot.
    drop((inside, outside));
    pool.drain();
    let give_up = Instant::now() + GIVE_BACK;
    while umem.depot().free() != umem.depot().chunks() && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (frames, frames_back) = (umem.depot().chunks(), umem.depot().free());
    loop_ended.map(|()| Report { out, back, interfaces, bursts, frames, frames_back })
}

/// The loop, pinned.
fn forward(
    plan: &Plan,
    inside: &mut Side,
    outside: &mut Side,
    sending: &mut Sending<'_>,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<(), PerfError> {
    if let Some(cpu) = plan.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
    {
        return Err(PerfError::Pin(cpu));
    }
    sending.finish(inside, outside);
    ready();
    let enough = usize::from(plan.tuning.collect.unwrap_or(1));
    let mut collected = 0;
    let ends = plan.duration.map(|duration| Instant::now() + duration);
    while !stop.load(Ordering::Relaxed) {
        let moved = inside.move_to(outside, sending) + outside.move_to(inside, sending);
        collected += moved;
        if collected >= enough || (moved == 0 && collected > 0) {
            sending.finish(inside, outside);
            collected = 0;
        } else if moved == 0 {
            std::hint::spin_loop();
        }
        if ends.is_some_and(|ends| Instant::now() >= ends) {
            break;
        }
    }
    Ok(())
}
