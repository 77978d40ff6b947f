//! The commands that send and receive on a kernel's interfaces: `generate`, `receive`, `reflect`.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use overlane_api::{MacAddr, Mode, Vni};
use overlane_dataplane::wire::{geneve, vxlan};
use serde::Serialize;

use crate::device;
use crate::error::PerfError;
use crate::live::LiveFrames;
use crate::namespace;
use crate::progress::{Bar, Progress};
use crate::receive::{Analysis, Received};
use crate::reflect::Reflected;
use crate::sent::Sent;
use crate::sink::{Sink, Sunk};
use crate::station::{Station, Until};
use crate::threads::pin;
use crate::traffic::{Order, Protocol, Rate, Side, Size, Traffic, Tunnel, parse_rate};
use crate::writer::FrameWriter;

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(100);
/// How often a run that ends by packets is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// Where a command works, and for how long.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// The interface.
    pub interface: String,
    /// Network namespace of the interface, as `ip netns list` names it.
    #[arg(long)]
    pub netns: Option<String>,
    /// CPU on which the work is done.
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Ends after so many seconds.
    #[arg(long, value_parser = seconds)]
    pub seconds: Option<Duration>,
    /// Ends after so many packets.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub packets: Option<u64>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is no number of seconds");
    text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).ok_or_else(wrong)
}

impl Place {
    fn until<'a>(&self, stop: &'a AtomicBool) -> Until<'a> {
        let (duration, packets) = (self.seconds, self.packets);
        Until { duration, packets, ..Until::stopped(stop) }
    }

    /// Calls `work` on a thread in the namespace and on the CPU, and shows how far it is.
    fn run<T: Send>(
        &self,
        progress: &Progress,
        work: impl FnOnce() -> Result<T, PerfError> + Send,
    ) -> Result<T, PerfError> {
        std::thread::scope(|scope| {
            let worker =
                std::thread::Builder::new().name("perf".into()).spawn_scoped(scope, || {
                    namespace::enter(self.netns.as_deref())?;
                    pin(self.cpu)?;
                    work()
                });
            let worker = worker.map_err(|_| PerfError::Thread)?;
            let bar = Bar::new(self.seconds, self.packets);
            let start = Instant::now();
            let mut shown = start;
            while !worker.is_finished() {
                std::thread::sleep(LOOK * 5);
                if shown.elapsed() >= TICK {
                    bar.show(start.elapsed(), progress);
                    shown = Instant::now();
                }
            }
            drop(bar);
            worker.join().map_err(|_| PerfError::Thread)?
        })
    }
}

/// Sends packets out of an interface.
#[derive(Debug, Clone, Args)]
pub struct GenerateArguments {
    #[command(flatten)]
    place: Place,
    /// First destination address.
    #[arg(long)]
    to: IpAddr,
    /// MAC address that packets go to: of the receiver, or of the gateway.
    #[arg(long)]
    to_mac: MacAddr,
    /// Destination addresses that follow each other.
    #[arg(long, default_value_t = 1)]
    to_addresses: u32,
    /// First destination port.
    #[arg(long, default_value_t = 9)]
    to_port: u16,
    /// Destination ports that follow each other.
    #[arg(long, default_value_t = 1)]
    to_ports: u32,
    /// First source address.
    #[arg(long)]
    from: IpAddr,
    /// MAC address that packets come from; that of the interface, when left out.
    #[arg(long)]
    from_mac: Option<MacAddr>,
    /// Source addresses that follow each other.
    #[arg(long, default_value_t = 1)]
    from_addresses: u32,
    /// First source port.
    #[arg(long, default_value_t = 1024)]
    from_port: u16,
    /// Source ports that follow each other; all there are, when left out.
    #[arg(long)]
    from_ports: Option<u32>,
    /// Flows, no two of which have the same addresses and ports.
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// In which order the flows' packets come; in-order flatters what looks flows up.
    #[arg(long, value_enum, default_value_t = Order::Random)]
    order: Order,
    /// Bytes of a frame on the wire, its check sequence included, or imix (7 of 64, 4 of 594, 1 of
    /// 1518); in a tunnel, of the inner frame.
    #[arg(long, default_value_t = Size::Bytes(64))]
    size: Size,
    /// What is sent.
    #[arg(long, value_enum, default_value_t = Protocol::Udp)]
    protocol: Protocol,
    /// 802.1Q tag of the (inner) frames.
    #[arg(long)]
    vlan: Option<u16>,
    /// Packets a second, such as 500k or 1.2M; or flat, for as many as possible.
    #[arg(long, value_parser = parse_rate, default_value = "flat")]
    rate: Rate,
    /// Packets have no sequence number and time in their payload.
    #[arg(long)]
    no_stamp: bool,
    /// Several times as many packets from the kernel's live frames, where the interface takes them.
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    tunnel: TunnelArguments,
}

/// The tunnel that generated packets are in.
#[derive(Debug, Clone, Args)]
pub struct TunnelArguments {
    /// Packets are in a tunnel: geneve or vxlan.
    #[arg(long, value_parser = mode, requires_all = ["tunnel_from", "tunnel_to", "tunnel_to_mac"])]
    tunnel: Option<Mode>,
    /// The virtual network.
    #[arg(long, default_value_t = 1, requires = "tunnel")]
    vni: u32,
    /// Outer source address.
    #[arg(long, requires = "tunnel")]
    tunnel_from: Option<IpAddr>,
    /// Outer destination address.
    #[arg(long, requires = "tunnel")]
    tunnel_to: Option<IpAddr>,
    /// Outer MAC address that packets go to.
    #[arg(long, requires = "tunnel")]
    tunnel_to_mac: Option<MacAddr>,
    /// Outer MAC address that packets come from; that of the interface, when left out.
    #[arg(long, requires = "tunnel")]
    tunnel_from_mac: Option<MacAddr>,
    /// Outer destination port; that of the tunnel's kind, when left out.
    #[arg(long, requires = "tunnel")]
    tunnel_port: Option<u16>,
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "geneve" => Ok(Mode::Geneve),
        "vxlan" => Ok(Mode::Vxlan),
        _ => Err(format!("{text} is neither geneve nor vxlan")),
    }
}

/// What was sent, and of what.
#[derive(Debug, Clone, Serialize)]
pub struct Generated {
    /// The interface.
    pub interface: String,
    /// `af-xdp` or `live-frames`.
    pub generator: &'static str,
    /// What was to be sent.
    pub traffic: Traffic,
    /// What was.
    pub sent: Sent,
}

impl GenerateArguments {
    /// Are the arguments possible? They do not depend on the interface.
    ///
    /// # Errors
    /// [`PerfError::Traffic`], [`PerfError::Range`]
    pub fn check(&self) -> Result<(), PerfError> {
        Ok(self.traffic(MacAddr([0; 6]))?.check()?)
    }

    /// The traffic, from an interface with this MAC address.
    fn traffic(&self, own: MacAddr) -> Result<Traffic, PerfError> {
        let source = Side {
            mac: self.from_mac.unwrap_or(own),
            address: self.from,
            addresses: self.from_addresses,
            port: self.from_port,
            ports: self.from_ports.unwrap_or(65_536 - u32::from(self.from_port)),
        };
        let destination = Side {
            mac: self.to_mac,
            address: self.to,
            addresses: self.to_addresses,
            port: self.to_port,
            ports: self.to_ports,
        };
        Ok(Traffic {
            source,
            destination,
            protocol: self.protocol,
            flows: self.flows,
            order: self.order,
            size: self.size,
            vlan: self.vlan,
            stamp: !self.no_stamp,
            rate: self.rate.0,
            tunnel: self.tunnel.tunnel(own)?,
        })
    }

    /// Sends until it is done, or `stop`.
    ///
    /// # Errors
    /// [`PerfError`] says what the interface or the kernel refuses.
    pub fn run(&self, stop: &AtomicBool) -> Result<Generated, PerfError> {
        let (place, progress) = (&self.place, Progress::default());
        let (traffic, sent) = place.run(&progress, || {
            let interface = device::find(&place.interface)?;
            let traffic = self.traffic(interface.mac)?;
            if traffic.stamp
                && traffic.protocol == Protocol::Udp
                && !FrameWriter::new(&traffic)?.all_stamped()
            {
                let what = "have no room for a stamp: a receiver cannot tell whether one is lost";
                eprintln!("overlane-perf: some frames of size {} {what}", traffic.size);
            }
            let sent = if self.live {
                self.send_live(&traffic, stop, &progress)?
            } else {
                let mut station = Station::sender(&place.interface)?;
                is_ready("sending at", &place.interface);
                let generator = crate::generate::Generator::new(&traffic, place.packets)?;
                station.run(Some(generator), None, &place.until(stop), &progress)?
            };
            Ok((traffic, sent))
        })?;
        let generator = if self.live { "live-frames" } else { "af-xdp" };
        Ok(Generated { interface: place.interface.clone(), generator, traffic, sent })
    }

    fn send_live(
        &self,
        traffic: &Traffic,
        stop: &AtomicBool,
        progress: &Progress,
    ) -> Result<Sent, PerfError> {
        let place = &self.place;
        let running = LiveFrames::start(traffic, &place.interface, place.cpu, place.packets)?;
        is_ready("sending at", &place.interface);
        let start = Instant::now();
        let is_over = || place.seconds.is_some_and(|duration| start.elapsed() >= duration);
        while !stop.load(Ordering::Relaxed) && !is_over() && !running.is_done() {
            std::thread::sleep(LOOK);
            progress.sent.store(running.sent()?.frames, Ordering::Relaxed);
        }
        running.stop()
    }
}

impl TunnelArguments {
    fn tunnel(&self, own: MacAddr) -> Result<Option<Tunnel>, PerfError> {
        // The others are required by the first.
        let (Some(mode), Some(from), Some(to), Some(to_mac)) =
            (self.tunnel, self.tunnel_from, self.tunnel_to, self.tunnel_to_mac)
        else {
            return Ok(None);
        };
        let vni = Vni::new(self.vni).map_err(|_| PerfError::Range {
            option: "--vni",
            value: self.vni as usize,
            least: 0,
            most: (1 << 24) - 1,
        })?;
        let usual = if mode == Mode::Vxlan { vxlan::PORT } else { geneve::PORT };
        let macs = (self.tunnel_from_mac.unwrap_or(own), to_mac);
        let port = self.tunnel_port.unwrap_or(usual);
        Ok(Some(Tunnel { mode, vni, macs, addresses: (from, to), port }))
    }
}

impl Generated {
    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        self.sent.table()
    }
}

/// Receives all packets of an interface.
#[derive(Debug, Clone, Args)]
pub struct ReceiveArguments {
    #[command(flatten)]
    place: Place,
    /// Never sleeps while it waits: takes a whole CPU, and no time to wake up.
    #[arg(long)]
    busy: bool,
    /// Checksums and payloads are not checked.
    #[arg(long)]
    no_verify: bool,
    /// Only counts, by a filter in the kernel, which takes far less time than looking at packets.
    #[arg(long, conflicts_with_all = ["busy", "no_verify"])]
    sink: bool,
}

/// What has arrived.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Arrived {
    /// Packets that were looked at.
    Received(Received),
    /// Packets that were counted.
    Sunk(Sunk),
}

impl Arrived {
    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        match self {
            Self::Received(received) => received.table(),
            Self::Sunk(sunk) => format!("{} frames, {} bytes", sunk.frames, sunk.bytes),
        }
    }
}

impl ReceiveArguments {
    /// Receives until it is done, or `stop`.
    ///
    /// # Errors
    /// [`PerfError`] says what the interface or the kernel refuses.
    pub fn run(&self, stop: &AtomicBool) -> Result<Arrived, PerfError> {
        let (place, progress) = (&self.place, Progress::default());
        place.run(&progress, || {
            if self.sink {
                return self.count(stop, &progress).map(Arrived::Sunk);
            }
            let mut station = Station::receiver(&place.interface, self.busy)?;
            let mut analysis = Analysis::new(!self.no_verify)?;
            is_ready("receiving at", &place.interface);
            station.run(None, Some(&mut analysis), &place.until(stop), &progress)?;
            Ok(Arrived::Received(analysis.report(station.kernel_drops())))
        })
    }

    fn count(&self, stop: &AtomicBool, progress: &Progress) -> Result<Sunk, PerfError> {
        let place = &self.place;
        let sink = Sink::attach(&place.interface)?;
        is_ready("counting at", &place.interface);
        let start = Instant::now();
        loop {
            let sunk = sink.counters()?;
            progress.received.store(sunk.frames, Ordering::Relaxed);
            let is_over = place.seconds.is_some_and(|duration| start.elapsed() >= duration)
                || place.packets.is_some_and(|packets| sunk.frames >= packets);
            if is_over || stop.load(Ordering::Relaxed) {
                return Ok(sunk);
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Sends every packet back to where it came from.
#[derive(Debug, Clone, Args)]
pub struct ReflectArguments {
    #[command(flatten)]
    place: Place,
    /// Never sleeps while it waits: takes a whole CPU, and no time to wake up.
    #[arg(long)]
    busy: bool,
}

impl ReflectArguments {
    /// Reflects until it is done, or `stop`.
    ///
    /// # Errors
    /// [`PerfError`] says what the interface or the kernel refuses.
    pub fn run(&self, stop: &AtomicBool) -> Result<Reflected, PerfError> {
        let (place, progress) = (&self.place, Progress::default());
        place.run(&progress, || {
            let mut station = Station::receiver(&place.interface, self.busy)?;
            is_ready("reflecting at", &place.interface);
            station.reflect(&place.until(stop), &progress)
        })
    }
}

/// From now on nothing is missed, and a signal ends the command with its result.
fn is_ready(what: &str, interface: &str) {
    eprintln!("overlane-perf: {what} {interface}");
}
