//! `overlane-perf connections`: what many services, many flows and several workers do to connections.
//!
//! | part | compared |
//! |---|---|
//! | services | established and new flows to one service, and spread over 10,000 services of 10 backends |
//! | workers | flows at one worker, and at two of which each receives half of the other's answers |
//! | exhaustion | flows to one remote until the ports of the address are used up |
//! | changes | one backend of 100,000 changed after the other, while packets to all services flow |
//! | flood | flows that go on, before and after ten million SYNs of random senders |
//!
//! What is compared is measured in turn, in one run.

use std::net::{IpAddr, Ipv4Addr};

use overlane_api::{
    Backend, BackendState, Frontend, FrontendKind, Object, PortRange, Protocol, Scope, Service,
    WorkerId,
};
use overlane_dataplane::io::memory::ReplayPort;
use overlane_dataplane::packet::drop::DropReason;
use overlane_dataplane::packet::meta::Origin;
use overlane_dataplane::packet::pool::UmemId;
use overlane_dataplane::testing::{node, objects};
use overlane_dataplane::wire::tcp::{ACK, SYN};
use serde::Serialize;

use crate::churn::{self, Churn};
use crate::crossing;
use crate::error::PerfError;
use crate::frames::{Datagram, tcp};
use crate::measure::{ROUND, Spread, forward, open_all, thread_time};
use crate::rig::{Rig, silent_port, this_node};
use crate::scenario::{Load, Scenario};
use crate::services::set;
use crate::tables::resident_bytes;
use crate::text::listing;
use crate::topology::Topology;

/// Rounds of each of two that are compared.
const ROUNDS: usize = 15;

/// Services, of ten backends each, that one is compared with.
const MANY: usize = 10_000;

/// Flows to services.
const FLOWS: usize = 50_000;

/// Changes of one backend each.
const CHANGES: usize = 500;

/// SYNs of one batch of a flood.
const BATCH: usize = 1_000_000;

/// Batches.
const BATCHES: usize = 10;

/// Flows that go on while there is a flood.
const GOING_ON: usize = 1000;

/// All ports that one address can give (RFC 4787 REQ-3: none below 1024).
const ALL_PORTS: usize = 64_512;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Ratios, each with what it may be.
    pub ratios: Vec<Ratio>,
    /// What bounds two workers.
    pub lane: Lane,
    /// Flows to one remote.
    pub exhaustion: Exhaustion,
    /// Changes while packets flow.
    pub churn: Churn,
    /// The flood.
    pub flood: Flood,
}

/// One thing compared with another.
#[derive(Debug, Serialize)]
pub struct Ratio {
    /// What.
    pub what: &'static str,
    /// Unit of both.
    pub unit: &'static str,
    /// What it is compared with.
    pub base: Spread,
    /// What is compared.
    pub measured: Spread,
    /// The second to the first, medians.
    pub ratio: f64,
    /// What it may be at most, or with `at_least` at least; none: it is there to compare with.
    pub bound: Option<f64>,
    /// Is the bound the least?
    pub at_least: bool,
}

impl Ratio {
    fn holds(&self) -> bool {
        let holds = |bound| if self.at_least { self.ratio >= bound } else { self.ratio <= bound };
        self.bound.is_none_or(holds)
    }

    fn target(&self) -> String {
        let limit = if self.at_least { "at least" } else { "at most" };
        self.bound.map_or("-".into(), |bound| format!("{limit} {bound}"))
    }
}

/// What a lane between two workers costs, when nothing else is done: nanoseconds of processor time for a frame.
#[derive(Debug, Serialize)]
pub struct Lane {
    /// Written by one core, and read and written by another one: both together.
    pub crossed_ns: Spread,
    /// Both by one core.
    pub kept_ns: Spread,
}

/// How many flows to one remote there can be.
#[derive(Debug, Serialize)]
pub struct Exhaustion {
    /// Flows that were opened.
    pub opened: usize,
    /// Packets that should have opened more, and were dropped for want of a port.
    pub refused: u64,
    /// What such a packet costs, nanoseconds.
    pub open_ns: f64,
}

/// What a flood of SYNs did.
#[derive(Debug, Serialize)]
pub struct Flood {
    /// SYNs of random senders, none twice.
    pub syns: u64,
    /// Flows that they opened or tried to.
    pub per_syn_ns: f64,
    /// Flows that went on before, of as many as there were.
    pub going_on_before: usize,
    /// And after.
    pub going_on_after: usize,
    /// By how much the process grew after the first batch, bytes.
    pub grown_bytes: usize,
}

/// Measures all.
///
/// # Errors
/// [`PerfError`]
pub fn run() -> Result<Report, PerfError> {
    let part = |number: usize, what: &str| eprintln!("[{number}/6] {what}");
    part(1, "established flows to services");
    let established = established()?;
    part(2, "new flows to services");
    let opening = opening()?;
    part(3, "flows at two workers");
    let (workers, lane) = workers()?;
    part(4, "flows to one remote");
    let exhaustion = exhaustion()?;
    part(5, "changes while packets flow");
    let churn = churn::run(named("dnat-geneve")?, &load(MANY), CHANGES)?;
    part(6, "a flood of ten million SYNs");
    let flood = flood()?;
    let ratios = [established, opening].into_iter().chain(workers).collect();
    Ok(Report { ratios, lane, exhaustion, churn, flood })
}

fn load(services: usize) -> Load {
    Load { flows: FLOWS, peers: 1000, endpoints: 100_000, services, ..Load::default() }
}

fn named(name: &'static str) -> Result<Scenario, PerfError> {
    Scenario::named(name).ok_or_else(|| PerfError::Missed(format!("there is no scenario {name}")))
}

/// Nanoseconds a packet of CPU time.
fn ns(work: impl FnOnce() -> usize) -> Result<f64, PerfError> {
    let before = thread_time()?;
    let packets = work();
    let spent = thread_time()? - before;
    Ok(spent.as_nanos() as f64 / packets.max(1) as f64)
}

fn ratio(
    what: &'static str,
    (unit, bound, at_least): (&'static str, f64, bool),
    values: [Vec<f64>; 2],
) -> Ratio {
    let [base, measured] = values.map(Spread::of);
    let ratio = measured.median / base.median;
    Ratio { what, unit, base, measured, ratio, bound: Some(bound), at_least }
}

fn established() -> Result<Ratio, PerfError> {
    let scenario = named("dnat-geneve")?;
    let mut rigs = Vec::new();
    for services in [1, MANY] {
        rigs.push(Rig::new(scenario, &load(services), 1)?);
    }
    let mut values = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (rig, values) in rigs.iter_mut().zip(&mut values) {
            let worker = &mut rig.bench.workers[0];
            let spent = ns(|| forward(worker, ROUND))?;
            rig.check()?;
            // The first round opens the flows.
            if round > 0 {
                values.push(spent);
            }
        }
    }
    Ok(ratio("established flows, 10,000 services to 1", ("ns", 1.1, false), values))
}

fn opening() -> Result<Ratio, PerfError> {
    let scenario = named("new-dnat")?;
    let mut values = [Vec::new(), Vec::new()];
    let mut rigs = Vec::new();
    for services in [1, MANY] {
        rigs.push((Rig::new(scenario, &load(services), 1)?, load(services)));
    }
    for round in 0..=ROUNDS {
        for ((rig, load), values) in rigs.iter_mut().zip(&mut values) {
            rig.arrive(load)?;
            let spent = ns(|| open_all(&mut rig.bench.workers[0]))?;
            rig.check()?;
            rig.forget()?;
            if round > 0 {
                values.push(spent);
            }
        }
    }
    Ok(ratio("new flows, 10,000 services to 1", ("ns", 1.3, false), values))
}

fn workers() -> Result<([Ratio; 3], Lane), PerfError> {
    let rates = crossing::rates()?;
    let compared = |what, base: Spread, measured: Spread, bound| {
        let ratio = measured.median / base.median;
        Ratio { what, unit: "Mpps", base, measured, ratio, bound, at_least: true }
    };
    let two = "packets and answers, half of the answers at the wrong worker: 2 workers to 1";
    let at_home = "the same with none at the wrong one";
    let answers = "answers alone, half of them at the wrong worker: 2 workers to 1";
    let ratios = [
        compared(two, rates.one, rates.two, Some(1.9)),
        compared(at_home, rates.one, rates.two_at_home, None),
        compared(answers, rates.answers_one, rates.answers_two, None),
    ];
    Ok((ratios, Lane { crossed_ns: rates.bare_lane_ns, kept_ns: rates.bare_ns }))
}

fn exhaustion() -> Result<Exhaustion, PerfError> {
    let scenario = named("snat-out")?;
    let load = Load { flows: ALL_PORTS * 2, ..Load::default() };
    let mut rig = Rig::new(scenario, &load, 1)?;
    let mut this = this_node(scenario);
    this.snat.ports =
        PortRange::new(1024, u16::MAX).map_err(|error| PerfError::Refused(error.to_string()))?;
    rig.apply([overlane_api::Change::Set(Object::Node(this))])?;
    rig.bench.publish();
    let remote = Topology::outside_address(7, scenario.family);
    // Two pods with all their ports each: twice as many flows as the remote can tell apart.
    let frame = |number: usize| {
        let pod = (number / ALL_PORTS) as u8;
        let addresses = (objects::pod_addresses(0, pod)[0], remote);
        let macs = (objects::pod_mac(0, pod), objects::gateway_mac(0));
        let ports = ((1024 + number % ALL_PORTS) as u16, 443);
        Datagram { macs, addresses, ports, checksum: true }.frame_of(64)
    };
    let mut spent = 0.0;
    for pod in 0..2 {
        let frames = (pod * ALL_PORTS..(pod + 1) * ALL_PORTS).map(frame).collect();
        let port = once(frames)?;
        let id = rig.pods[0][pod];
        rig.bench.add_port(WorkerId(0), id, Origin::Endpoint, port);
        let worker = &mut rig.bench.workers[0];
        let this = ns(|| open_all(worker))?;
        if pod == 0 {
            spent = this;
        }
    }
    let worker = &rig.bench.workers[0];
    let refused = worker.counters().dropped[DropReason::SnatPortsExhausted as usize];
    Ok(Exhaustion { opened: worker.flows().len() as usize, refused, open_ns: spent })
}

/// A port on which each of these arrives once.
fn once(frames: Vec<Vec<u8>>) -> Result<ReplayPort, PerfError> {
    let (count, copied) = (frames.len(), frames.iter().map(Vec::len).max().unwrap_or(0));
    let mut port = ReplayPort::new(UmemId(0), frames, (0..count as u32).collect(), 256, copied)?;
    port.stop_after(count as u64);
    Ok(port)
}

fn flood() -> Result<Flood, PerfError> {
    let scenario = named("snat-out")?;
    let load = Load { flows: 200_000, ..Load::default() };
    let mut rig = Rig::new(scenario, &load, 1)?;
    let vip = Ipv4Addr::new(10, 96, 255, 1);
    rig.apply([set(flooded(vip))])?;
    rig.bench.publish();
    let worker = WorkerId(0);
    let uplink = rig.uplinks[0];
    // What goes on: connections of pods to the outside, each of which has been answered.
    let going = connect(&mut rig)?;
    let before = going_on(&mut rig, &going)?;
    let mut random = fastrand::Rng::with_seed(99);
    let (mut spent, mut after_second) = (0.0, 0);
    for batch in 0..BATCHES {
        let frames = (0..BATCH).map(|_| {
            // Senders of all of the address space but this node's and the multicast part.
            let source = Ipv4Addr::from_bits(random.u32(0x0b00_0000..0xdfff_ffff));
            let macs = (node::NEXT_HOP_MAC, node::UPLINK_MAC);
            tcp(macs, (source, vip), (random.u16(1024..), 80), SYN)
        });
        let port = once(frames.collect())?;
        rig.bench.add_port(worker, uplink, Origin::Uplink, port);
        spent += ns(|| open_all(&mut rig.bench.workers[0]))?;
        rig.bench.add_port(worker, uplink, Origin::Uplink, silent_port()?);
        // The first two also grow what the benchmark itself needs for a million frames.
        if batch == 1 {
            after_second = resident_bytes()?;
        }
    }
    let grown_bytes = resident_bytes()?.saturating_sub(after_second);
    let after = going_on(&mut rig, &going)?;
    Ok(Flood {
        syns: (BATCH * BATCHES) as u64,
        per_syn_ns: spent / BATCHES as f64,
        going_on_before: before,
        going_on_after: after,
        grown_bytes,
    })
}

/// Connections of a pod to the outside, of each of which both ends have been heard: the packets with
/// which the pod goes on.
fn connect(rig: &mut Rig) -> Result<Vec<Vec<u8>>, PerfError> {
    let worker = WorkerId(0);
    let from_pod = |number: usize, flags| {
        let macs = (objects::pod_mac(0, 0), objects::gateway_mac(0));
        let IpAddr::V4(pod) = objects::pod_addresses(0, 0)[0] else { return Vec::new() };
        let host = Ipv4Addr::from_bits(0xc612_0000 + number as u32);
        tcp(macs, (pod, host), (20_000 + number as u16, 443), flags)
    };
    let opening = (0..GOING_ON).map(|number| from_pod(number, SYN)).collect();
    rig.bench.add_port(worker, rig.pods[0][0], Origin::Endpoint, once(opening)?);
    open_all(&mut rig.bench.workers[0]);
    let answers = rig.bench.workers[0].flows().v4.iter().map(|(.., half)| {
        let key = half.key();
        let addresses = (Ipv4Addr::from_bits(key.source), Ipv4Addr::from_bits(key.destination));
        let macs = (node::NEXT_HOP_MAC, node::UPLINK_MAC);
        tcp(macs, addresses, (key.source_port, key.destination_port), SYN | ACK)
    });
    let answers = answers.collect();
    rig.bench.add_port(worker, rig.uplinks[0], Origin::Uplink, once(answers)?);
    open_all(&mut rig.bench.workers[0]);
    let going: Vec<_> = (0..GOING_ON).map(|number| from_pod(number, ACK)).collect();
    going_on(rig, &going)?;
    Ok(going)
}

/// How many of these packets of connections leave.
fn going_on(rig: &mut Rig, going: &[Vec<u8>]) -> Result<usize, PerfError> {
    rig.bench.add_port(WorkerId(0), rig.pods[0][0], Origin::Endpoint, once(going.to_vec())?);
    let worker = &mut rig.bench.workers[0];
    let before = worker.counters().sent;
    open_all(worker);
    Ok((worker.counters().sent - before) as usize)
}

/// A service on which the flood comes: reached from outside, with a backend here.
fn flooded(vip: Ipv4Addr) -> Service {
    let backend = Backend {
        address: objects::pod_addresses(0, 0)[0],
        port: 8080,
        weight: 1,
        local: true,
        use_cluster: true,
        use_local: true,
        serving: true,
        state: BackendState::Ready,
    };
    let frontend = Frontend { address: vip.into(), port: 80, kind: FrontendKind::LoadBalancer };
    Service {
        name: "load/flooded:web".into(),
        protocol: Protocol::Tcp,
        frontends: vec![frontend],
        backends: vec![backend],
        external: Scope::Local,
        ..Topology { peers: 1, endpoints: 1 }.service(0)
    }
}

impl Report {
    /// Does every bound hold, and did all go as it should?
    #[must_use]
    pub fn holds(&self) -> bool {
        let Exhaustion { opened, refused, .. } = self.exhaustion;
        let Flood { going_on_before, going_on_after, .. } = self.flood;
        self.ratios.iter().all(Ratio::holds)
            && self.churn.holds()
            && (opened, refused) == (ALL_PORTS, ALL_PORTS as u64)
            && (going_on_before, going_on_after) == (GOING_ON, GOING_ON)
    }

    /// As tables for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing(["WHAT", "UNIT", "FROM (RANGE)", "TO (RANGE)", "RATIO", "TARGET"]);
        let spread = |s: &Spread| format!("{:.1} ({:.1}-{:.1})", s.median, s.least, s.most);
        for ratio in &self.ratios {
            table.add_row([
                ratio.what.to_owned(),
                ratio.unit.to_owned(),
                spread(&ratio.base),
                spread(&ratio.measured),
                format!("{:.2}", ratio.ratio),
                ratio.target(),
            ]);
        }
        let lane = &self.lane;
        let Exhaustion { opened, refused, open_ns } = self.exhaustion;
        let Flood { syns, per_syn_ns, going_on_before, going_on_after, grown_bytes } = self.flood;
        let Churn { services, changes, live_ms, packets, lost, .. } = &self.churn;
        format!(
            "{table}\n\nA frame that changes hands costs two cores {:.0} ns ({:.0}-{:.0}) in all, when it is \
             only written, handed over, read and written; {:.0} ns when it does not.\nTo one remote {opened} flows were opened, {open_ns:.0} ns each, and {refused} \
             more were refused for want of a port.\nOf {services} services, while packets to all of them flowed, {changes} times one backend \
             was changed: live after {:.2} ms (half of them), {:.2} ms (99 of 100; must be below {:.0}), {:.2} ms (all); of {packets} packets {lost} were lost.\n{syns} SYNs of random senders took \
             {per_syn_ns:.0} ns each; of {GOING_ON} connections {going_on_before} went on before \
             them and {going_on_after} after; memory grew by {} KiB after the first two million.\n",
            lane.crossed_ns.median,
            lane.crossed_ns.least,
            lane.crossed_ns.most,
            lane.kept_ns.median,
            live_ms.p50,
            live_ms.p99,
            churn::LIVE_MS,
            live_ms.max,
            grown_bytes >> 10,
        )
    }
}
