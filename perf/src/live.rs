//! The live-frames generator: the kernel calls a small XDP program (`bpf/live.bpf.c`) for one frame
//! after the other and sends what it redirects, some six million a second on one core.
//!
//! One call of the kernel's test run lasts for the whole run, as each takes 25 to 300 ms to begin
//! and to end; a signal to its thread ends it. Frames go out in batches of up to 64. Paced, a frame
//! that is not due yet makes the program wait for up to a microsecond and give the page back, so
//! that frames leave within some microseconds of their time (`late_ns` says how far off it was). Flat
//! out, stamps of 16 frames that leave together have one time.
//! After 2^32 calls of the program, over an hour of waiting or 12 minutes flat out, the test run
//! has to begin anew: nothing is sent for up to 0.3 s, and the schedule goes on after that.

use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, ProgramInput};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;
use overlane_dataplane::io::af_xdp::interface::xdp_support;

use crate::device::{self, Counters, Device, interface_error};
use crate::error::PerfError;
use crate::sent::Sent;
use crate::skeleton::live::{LiveSkel, LiveSkelBuilder, OpenLiveSkel, types};
use crate::threads::pin;
use crate::traffic::{Order, Picks, Protocol, Side, Traffic};
use crate::writer::{Class, FrameWriter};

/// `BPF_F_TEST_XDP_LIVE_FRAMES` of `linux/bpf.h`
const LIVE_FRAMES: u32 = 1 << 1;
/// Calls of the program for which one test run is made.
const CALLS: u32 = u32::MAX;
/// Ends the test run; what it does otherwise does not matter, for its handler does nothing.
const END: Signal = Signal::SIGUSR1;
/// Key of the only value of a map.
const FIRST: [u8; 4] = [0; 4];

/// Where in `struct ovl_run` its fields are, bytes.
mod place {
    pub const FRAMES: usize = 0;
    pub const BYTES: usize = 8;
    pub const STAMPED: usize = 16;
    pub const FIRST: usize = 24;
    pub const LAST: usize = 32;
    pub const LATE: usize = 48;
    pub const RESUME: usize = 80;
    pub const BROKEN: usize = 84;
}

/// Starts the generator.
#[derive(Debug)]
pub struct LiveFrames;

/// A generator at work. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    thread: Option<JoinHandle<Result<(), PerfError>>>,
    stop: Arc<AtomicBool>,
    run: MapHandle,
    device: Device,
    before: Counters,
    limit: Option<u64>,
    interface: String,
}

impl LiveFrames {
    /// Sends `traffic` out of `interface` of the calling thread's network namespace, from a thread
    /// on `cpu`; ends by itself after `limit` frames. The interface must take redirected frames: of
    /// a veth, an XDP program or GRO must be on the peer.
    ///
    /// # Errors
    /// [`PerfError`]: says what is wrong with traffic or interface, or what the kernel refused.
    pub fn start(
        traffic: &Traffic,
        interface: &str,
        cpu: Option<usize>,
        limit: Option<u64>,
    ) -> Result<Running, PerfError> {
        let writer = FrameWriter::new(traffic)?;
        let index = check(interface, writer.largest())?;
        let device = Device::open(interface)?;
        take_signal()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = mpsc::channel();
        let settings = Settings { traffic: traffic.clone(), writer, index, limit };
        let stopped = stop.clone();
        let before = device.counters()?;
        let spawned = std::thread::Builder::new().name("generator".into()).spawn(move || {
            let mut storage = MaybeUninit::uninit();
            let loaded = pin(cpu).and_then(|()| settings.load(&mut storage));
            let skeleton = match loaded {
                Ok(skeleton) => skeleton,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return Ok(());
                }
            };
            let run = MapHandle::try_from(&skeleton.maps.bss)
                .map_err(|source| PerfError::Program { action: "share a BPF map", source })?;
            if ready.send(Ok(run)).is_err() {
                return Ok(());
            }
            generate(&skeleton, settings.longest(), &stopped)
        });
        let thread = spawned.map_err(|_| PerfError::Thread)?;
        let run = is_ready.recv().map_err(|_| PerfError::Thread)??;
        let interface = interface.to_owned();
        Ok(Running { thread: Some(thread), stop, run, device, before, limit, interface })
    }
}

impl Running {
    /// What was sent so far.
    ///
    /// # Errors
    /// [`PerfError`]: the counters cannot be read, or the interface is gone.
    pub fn sent(&self) -> Result<Sent, PerfError> {
        let value = state(&self.run)?;
        let word = |at| word(&value, at);
        let refused = self.device.counters()?.since(&self.before).tx_dropped;
        let seconds = word(place::LAST).saturating_sub(word(place::FIRST)) as f64 / 1e9;
        Ok(Sent {
            frames: word(place::FRAMES).saturating_sub(refused),
            refused,
            bytes: word(place::BYTES),
            stamped: word(place::STAMPED),
            seconds,
            late_ns: word(place::LATE),
        })
    }

    /// Has all been sent that was to be, or has the generator failed?
    #[must_use]
    pub fn is_done(&self) -> bool {
        let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let frames = || state(&self.run).map_or(0, |value| word(&value, place::FRAMES));
        ended || self.limit.is_some_and(|limit| frames() >= limit)
    }

    /// Ends the generator, waits until it has ended, and says what it has sent: exactly.
    ///
    /// # Errors
    /// [`PerfError`]: the test run failed, or the interface took no frame at all.
    pub fn stop(mut self) -> Result<Sent, PerfError> {
        self.end()?;
        let sent = self.sent()?;
        let broken = state(&self.run)?
            .get(place::BROKEN..)
            .and_then(|bytes| bytes.first_chunk().copied())
            .map_or(0, u32::from_ne_bytes);
        if broken > 0 {
            let text =
                format!("{broken} frames could not be written: this is a mistake in the generator");
            return Err(interface_error(&self.interface, text));
        }
        let grown = self.device.counters()?.since(&self.before);
        if sent.offered() > 0 && grown.tx_frames == 0 {
            return Err(interface_error(&self.interface, not_taken(&self.interface)));
        }
        Ok(sent)
    }

    fn end(&mut self) -> Result<(), PerfError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.stop.store(true, Ordering::Relaxed);
        // A signal that comes before the system call ends nothing, so once is not enough.
        while !thread.is_finished() {
            let _ = pthread_kill(thread.as_pthread_t(), END);
            std::thread::sleep(Duration::from_millis(2));
        }
        thread.join().map_err(|_| PerfError::Thread)?
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The bytes of `struct ovl_run`.
fn state(run: &MapHandle) -> Result<Vec<u8>, PerfError> {
    let read = run.lookup(&FIRST, MapFlags::ANY);
    let value =
        read.map_err(|source| PerfError::Program { action: "read the generator's state", source })?;
    value.ok_or(PerfError::Thread)
}

fn word(value: &[u8], at: usize) -> u64 {
    value.get(at..).and_then(|bytes| bytes.first_chunk().copied()).map_or(0, u64::from_ne_bytes)
}

/// A handler that does nothing, once for the process, so that the signal ends system calls only.
fn take_signal() -> Result<(), PerfError> {
    static TAKEN: OnceLock<Option<i32>> = OnceLock::new();
    let take = || signal_hook::flag::register(END as i32, Arc::new(AtomicBool::new(false)));
    let failed = TAKEN.get_or_init(|| take().err().map(|error| error.raw_os_error().unwrap_or(0)));
    match failed {
        Some(code) => Err(PerfError::Signal(std::io::Error::from_raw_os_error(*code))),
        None => Ok(()),
    }
}

/// Can frames of `largest` bytes go out of the interface? Says its number.
fn check(name: &str, largest: usize) -> Result<u32, PerfError> {
    let interface = device::find(name)?;
    // Ethernet header and tag do not count (`xdp_ok_fwd_dev`).
    if largest > interface.mtu as usize + 18 {
        let (mtu, packet) = (interface.mtu, largest - 14);
        let text = format!(
            "its MTU is {mtu}, packets of {packet} bytes are too large; ip link set {name} mtu {packet}"
        );
        return Err(interface_error(name, text));
    }
    match xdp_support(name) {
        Ok(Some(support)) if !support.redirect_target => {
            Err(interface_error(name, not_taken(name)))
        }
        _ => Ok(interface.index),
    }
}

fn not_taken(name: &str) -> String {
    format!(
        "it takes no frames from XDP programs; of a veth, the other end needs an XDP program or GRO \
         (ethtool -K PEER gro on), of {name} the driver must know XDP_REDIRECT"
    )
}

/// The test run, again and again until `stop`.
fn generate(skeleton: &LiveSkel<'_>, longest: &[u8], stop: &AtomicBool) -> Result<(), PerfError> {
    let failed = |source| PerfError::Program { action: "send live frames", source };
    while !stop.load(Ordering::Relaxed) {
        let input = ProgramInput {
            data_in: Some(longest),
            flags: LIVE_FRAMES,
            repeat: CALLS,
            ..ProgramInput::default()
        };
        match skeleton.progs.ovl_live.test_run(input) {
            Ok(_) => resume(skeleton).map_err(failed)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// Nothing was sent for a while: the schedule goes on from the next call. The program does not
/// run now, so nobody else writes its state.
fn resume(skeleton: &LiveSkel<'_>) -> libbpf_rs::Result<()> {
    let run = &skeleton.maps.bss;
    if let Some(mut value) = run.lookup(&FIRST, MapFlags::ANY)? {
        if let Some(flag) = value.get_mut(place::RESUME..place::RESUME + 4) {
            flag.copy_from_slice(&1_u32.to_ne_bytes());
        }
        run.update(&FIRST, &value, MapFlags::ANY)?;
    }
    Ok(())
}

/// What the program is told.
struct Settings {
    traffic: Traffic,
    writer: FrameWriter,
    index: u32,
    limit: Option<u64>,
}

impl Settings {
    fn longest(&self) -> &[u8] {
        let by_length = |class: &&Class| class.template.len();
        self.writer.classes.iter().max_by_key(by_length).map_or(&[], |class| &class.template)
    }

    fn load<'obj>(
        &self,
        storage: &'obj mut MaybeUninit<libbpf_rs::OpenObject>,
    ) -> Result<LiveSkel<'obj>, PerfError> {
        let failed = |source| PerfError::Program { action: "load the generator", source };
        let mut open = LiveSkelBuilder::default().open(storage).map_err(failed)?;
        self.fill(&mut open);
        let picks = Picks::new(self.traffic.flows, self.traffic.order);
        if !picks.drawn().is_empty() {
            open.maps.picks.set_max_entries(Picks::ZIPF as u32).map_err(failed)?;
        }
        let skeleton = open.load().map_err(failed)?;
        let keys: Vec<u8> = (0..picks.drawn().len() as u32).flat_map(u32::to_ne_bytes).collect();
        let values: Vec<u8> = picks.drawn().iter().flat_map(|flow| flow.to_ne_bytes()).collect();
        if !keys.is_empty() {
            let (any, count) = (MapFlags::ANY, picks.drawn().len() as u32);
            let filled = skeleton.maps.picks.update_batch(&keys, &values, count, any, any);
            filled.map_err(failed)?;
        }
        Ok(skeleton)
    }

    fn fill(&self, open: &mut OpenLiveSkel<'_>) {
        if let Some(state) = open.maps.bss_data.as_deref_mut() {
            state.run.state = if self.traffic.order == Order::Random { Picks::SEED } else { 0 };
        }
        let Some(data) = open.maps.rodata_data.as_deref_mut() else { return };
        let (live, traffic, layout) = (&mut data.live, &self.traffic, &self.writer.layout);
        live.period = traffic.rate.map_or(0, |rate| (65_536e9 / rate) as u64);
        live.limit = self.limit.unwrap_or(0);
        (live.factor, live.summand) = Picks::STEP;
        (live.source, live.destination) = (side(&traffic.source), side(&traffic.destination));
        for (to, from) in live.classes.iter_mut().zip(&self.writer.classes) {
            *to = class(from);
        }
        let pattern = traffic.size.pattern();
        live.pattern[..pattern.len()].copy_from_slice(pattern);
        live.turns = pattern.len() as u32;
        live.longest = self.longest().len() as u32;
        live.flows = traffic.flows;
        live.order = match traffic.order {
            Order::Random => 0,
            Order::Zipf => 1,
            Order::InOrder => 2,
        };
        live.interface = self.index;
        live.udp = u32::from(traffic.protocol == Protocol::Udp);
        live.outer_udp = layout.outer_udp as u32;
        live.outer_checksum = u32::from(layout.outer_checksum);
        live.ip_checksum = layout.ip_checksum as u32;
        (live.from, live.to) = (layout.addresses.0 as u32, layout.addresses.1 as u32);
        live.transport = layout.transport as u32;
        live.checksum = layout.checksum as u32;
        live.headers = layout.headers as u32;
    }
}

fn side(side: &Side) -> types::ovl_side {
    types::ovl_side {
        address: side.low_bits(),
        addresses: side.addresses,
        port: u32::from(side.port),
        ports: side.ports,
    }
}

fn class(class: &Class) -> types::ovl_class {
    let mut headers = [0; 152];
    let len = class.template.len().min(headers.len());
    headers[..len].copy_from_slice(&class.template[..len]);
    types::ovl_class {
        length: class.template.len() as u32,
        sums: class.sums.map(|sum| u32::from(overlane_dataplane::wire::checksum::fold(sum))),
        stamped: u32::from(class.stamped),
        odd: u32::from(class.odd),
        headers,
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
