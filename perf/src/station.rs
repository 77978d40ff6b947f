//! An AF_XDP port of a generator, receiver or reflector, and the loop that serves it.
//!
//! A station is opened once and used for any number of runs, as its packet memory is given back
//! only when the process ends.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlane_bpf::PortSteering;
use overlane_dataplane::io::af_xdp::{AfXdpPort, BindMode, OpenPort, RingSizes, Umem, UmemOptions};
use overlane_dataplane::io::{KernelDrops, Port, VECTOR};
use overlane_dataplane::packet::frame::Frame;
use overlane_dataplane::packet::pool::{FramePool, UmemId};

use crate::device::{self, Counters, Device};
use crate::error::PerfError;
use crate::generate::Generator;
use crate::progress::Progress;
use crate::receive::Analysis;
use crate::reflect::{Reflected, turn};
use crate::sent::Sent;
use crate::threads::monotonic_ns;

/// Chunks of a station's packet memory: 16 MB.
const CHUNKS: u32 = 8192;
/// Free frames that a receiver keeps ready, so that it may sleep for a millisecond.
const READY: u32 = 4096;
/// Entries of the rings.
const RINGS: RingSizes = RingSizes { rx: 4096, tx: 512, fill: 8192, completion: 1024 };
/// Rounds without a frame after which a receiver sleeps, unless it is to be busy.
const IDLE_ROUNDS: u32 = 1000;
/// How long frames may take to be sent at the end of a run.
const LAST_FRAMES: Duration = Duration::from_secs(1);

/// When a run ends; whatever comes first.
#[derive(Debug, Clone, Copy)]
pub struct Until<'a> {
    /// When this becomes true.
    pub stop: &'a AtomicBool,
    /// After this long.
    pub duration: Option<Duration>,
    /// After so many packets sent; of a run that only receives, received.
    pub packets: Option<u64>,
    /// How long to go on receiving after the last packet was sent; of a run that only receives, how
    /// long it may take to look at what has arrived.
    pub linger: Duration,
}

impl<'a> Until<'a> {
    /// Until `stop` becomes true.
    #[must_use]
    pub fn stopped(stop: &'a AtomicBool) -> Self {
        Self { stop, duration: None, packets: None, linger: Duration::from_millis(200) }
    }

    fn is_over(&self, start: Instant) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self.duration.is_some_and(|duration| start.elapsed() >= duration)
    }
}

/// How long a receiver that is to end goes on with what is there already.
struct Overtime(Option<Instant>);

impl Overtime {
    /// Is the run over, and the time for what was there as well?
    fn is_over(&mut self, until: &Until<'_>, start: Instant) -> bool {
        until.is_over(start) && self.0.get_or_insert_with(Instant::now).elapsed() >= until.linger
    }
}

/// An interface, of which all frames come here when it receives.
#[derive(Debug)]
pub struct Station {
    port: AfXdpPort,
    pool: FramePool,
    device: Device,
    busy: bool,
    idle: u32,
    /// Drops of the kernel before the run.
    dropped: KernelDrops,
    // After the port: the program goes last.
    _steering: Option<PortSteering>,
}

impl Station {
    /// Opens queue 0 of an interface of the calling thread's network namespace, to send only: what
    /// arrives there goes to the host as before.
    ///
    /// # Errors
    /// [`PerfError`]: there is no such interface, or the kernel refuses.
    pub fn sender(interface: &str) -> Result<Self, PerfError> {
        Self::open(interface, false)
    }

    /// Opens queue 0 of an interface, to send and to receive; the interface should have one queue.
    /// With `busy` it never sleeps while it waits, which takes a whole CPU and no time to wake up.
    ///
    /// # Errors
    /// [`PerfError`]: there is no such interface, or somebody else's program is on it.
    pub fn receiver(interface: &str, busy: bool) -> Result<Self, PerfError> {
        Ok(Self { busy, ..Self::open(interface, true)? })
    }

    fn open(interface: &str, receives: bool) -> Result<Self, PerfError> {
        /// Each packet memory of a process has another number; those of a dataplane begin at 0.
        static NEXT: AtomicU8 = AtomicU8::new(128);
        device::find(interface)?;
        let device = Device::open(interface)?;
        let steering = receives.then(|| PortSteering::attach(interface, 1)).transpose()?;
        let umem = Umem::create(UmemOptions {
            id: UmemId(NEXT.fetch_add(1, Ordering::Relaxed)),
            chunks: CHUNKS,
            fill_extra: 0,
            rings: RINGS,
            mode: BindMode::Copy,
        })?;
        let fill_min = if receives { READY } else { 0 };
        let options = OpenPort { rings: RINGS, fill_min, ..OpenPort::veth(interface, 0) };
        let mut port = AfXdpPort::open(&umem, &options)?;
        let mut pool = FramePool::new(umem.depot().clone(), VECTOR);
        port.recycle(&mut pool);
        if let Some(steering) = &steering {
            steering.register_socket(0, port.fd())?;
        }
        let dropped = KernelDrops::default();
        Ok(Self { port, pool, device, busy: false, idle: 0, dropped, _steering: steering })
    }

    /// Sends what `generator` makes and, if there is an analysis, shows it what arrives; a run
    /// without a generator only receives.
    ///
    /// # Errors
    /// [`PerfError`]: the interface is gone, or the clock.
    pub fn run(
        &mut self,
        mut generator: Option<Generator>,
        mut analysis: Option<&mut Analysis>,
        until: &Until<'_>,
        progress: &Progress,
    ) -> Result<Sent, PerfError> {
        let before = self.device.counters()?;
        self.dropped = self.port.kernel_drops();
        let start = Instant::now();
        let receives_only = generator.is_none();
        let mut sending_ended = None;
        let mut overtime = Overtime(None);
        loop {
            let mut work = 0;
            if let Some(generator) = generator.as_mut().filter(|_| sending_ended.is_none()) {
                let sent = generator.send(&mut self.port, &mut self.pool)?;
                progress.sent.store(generator.frames, Ordering::Relaxed);
                work += sent;
                if generator.is_done() || until.is_over(start) {
                    sending_ended = Some(Instant::now());
                }
            }
            if let Some(analysis) = analysis.as_deref_mut() {
                work += self.receive(analysis)?;
                progress.received.store(analysis.frames(), Ordering::Relaxed);
            }
            self.port.flush();
            self.port.recycle(&mut self.pool);
            let is_over = match sending_ended {
                None if receives_only => {
                    let frames = analysis.as_deref().map_or(0, Analysis::frames);
                    // What has arrived by then is still looked at.
                    let is_drained = work == 0 || overtime.is_over(until, start);
                    until.packets.is_some_and(|packets| frames >= packets)
                        || until.is_over(start) && is_drained
                }
                None => false,
                Some(_) if analysis.is_none() => true,
                Some(ended) => ended.elapsed() >= until.linger,
            };
            if is_over {
                break;
            }
            if receives_only {
                self.rest(work > 0)?;
            }
        }
        match generator {
            Some(generator) => self.ended(generator, &before),
            None => Ok(Sent::default()),
        }
    }

    /// Sends back what arrives.
    ///
    /// # Errors
    /// [`PerfError`]: waiting failed.
    pub fn reflect(
        &mut self,
        until: &Until<'_>,
        progress: &Progress,
    ) -> Result<Reflected, PerfError> {
        self.dropped = self.port.kernel_drops();
        let start = Instant::now();
        let mut all = Reflected::default();
        while !until.is_over(start) && until.packets.is_none_or(|packets| all.sent < packets) {
            let mut frames: ArrayVec<Frame, VECTOR> = ArrayVec::new();
            let received = self.port.receive(&mut frames);
            for mut frame in frames {
                all.received += 1;
                if !turn(frame.bytes_mut()) {
                    all.other += 1;
                    self.pool.give(frame);
                } else if let Err(frame) = self.port.send(frame) {
                    all.full += 1;
                    self.pool.give(frame);
                } else {
                    all.sent += 1;
                }
            }
            self.port.flush();
            self.port.recycle(&mut self.pool);
            progress.received.store(all.received, Ordering::Relaxed);
            progress.sent.store(all.sent, Ordering::Relaxed);
            self.rest(received > 0)?;
        }
        let drops = self.kernel_drops();
        all.kernel_dropped = drops.rx_dropped + drops.rx_ring_full;
        Ok(all)
    }

    /// What the kernel dropped in front of this station since its last run began.
    #[must_use]
    pub fn kernel_drops(&self) -> KernelDrops {
        let (now, before) = (self.port.kernel_drops(), &self.dropped);
        KernelDrops {
            rx_dropped: now.rx_dropped - before.rx_dropped,
            rx_ring_full: now.rx_ring_full - before.rx_ring_full,
            rx_fill_ring_empty: now.rx_fill_ring_empty - before.rx_fill_ring_empty,
            rx_invalid: now.rx_invalid - before.rx_invalid,
            tx_invalid: now.tx_invalid - before.tx_invalid,
            tx_dropped: now.tx_dropped - before.tx_dropped,
        }
    }

    /// Gives away what has arrived and nobody asked for: left over from an earlier run.
    pub fn discard(&mut self) {
        loop {
            let mut frames: ArrayVec<Frame, VECTOR> = ArrayVec::new();
            if self.port.receive(&mut frames) == 0 {
                return;
            }
            frames.into_iter().for_each(|frame| self.pool.give(frame));
            self.port.recycle(&mut self.pool);
        }
    }

    fn receive(&mut self, analysis: &mut Analysis) -> Result<usize, PerfError> {
        let mut frames: ArrayVec<Frame, VECTOR> = ArrayVec::new();
        let received = self.port.receive(&mut frames);
        if received > 0 {
            let now = monotonic_ns()?;
            for frame in frames {
                analysis.see(frame.bytes(), now);
                self.pool.give(frame);
            }
        }
        Ok(received)
    }

    /// Sleeps until something arrives, for at most a millisecond, when nothing has for a while.
    fn rest(&mut self, worked: bool) -> Result<(), PerfError> {
        self.idle = if worked { 0 } else { self.idle.saturating_add(1) };
        if self.busy || self.idle < IDLE_ROUNDS {
            std::hint::spin_loop();
            return Ok(());
        }
        let Some(fd) = self.port.poll_fd() else { return Ok(()) };
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(1_u8)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(PerfError::Signal(errno.into())),
        }
    }

    /// Waits until what is on the TX ring has left, and counts.
    fn ended(&mut self, mut generator: Generator, before: &Counters) -> Result<Sent, PerfError> {
        generator.end(&mut self.pool);
        let give_up = Instant::now() + LAST_FRAMES;
        while self.port.sending() > 0 && Instant::now() < give_up {
            self.port.flush();
            self.port.recycle(&mut self.pool);
        }
        let refused = self.device.counters()?.since(before).tx_dropped;
        Ok(Sent {
            frames: generator.frames.saturating_sub(refused),
            refused,
            bytes: generator.bytes,
            stamped: generator.stamped(),
            seconds: generator.last_ns.saturating_sub(generator.first_ns) as f64 / 1e9,
            late_ns: generator.late_ns,
        })
    }
}
