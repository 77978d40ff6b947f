//! `overlane-perf tables`: a large cluster in the tables: how long it takes to load, what it takes
//! of memory, what a lookup costs compared with a small one, and how soon one more endpoint is
//! live. The same of [services](crate::services).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use overlane_api::{Change, Mode, Object, ObjectKey, Underlay};
use overlane_dataplane::io::VECTOR;
use overlane_dataplane::packet::meta::{Route, Target};
use overlane_dataplane::tables::routes::{Address, RouteTables, Routes};
use serde::Serialize;

use crate::error::PerfError;
use crate::measure::{Spread, forward, thread_time};
use crate::rig::Rig;
use crate::scenario::{Load, Scenario};
use crate::services;
use crate::text::listing;
use crate::topology::Topology;

/// Changes of one call, as control sends them.
const BATCH: usize = 1000;

/// The small cluster that the large one is compared with.
const FEW: usize = 10;

/// Lookups of a round, in random order.
const LOOKUPS: usize = 1 << 16;

/// Flows of whole packets.
const FLOWS: usize = 200_000;

/// Rounds of each.
pub(crate) const ROUNDS: usize = 31;

/// An added endpoint must be live in less, milliseconds.
const LIVE_MS: f64 = 10.0;

/// A lookup may cost so many times what it costs in a small cluster.
const RATIO: f64 = 1.3;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Other nodes.
    pub peers: usize,
    /// Pods on them, with an address of each family.
    pub endpoints: usize,
    /// Time to load the peers, milliseconds.
    pub load_peers_ms: f64,
    /// Time to load the endpoints, milliseconds.
    pub load_endpoints_ms: f64,
    /// Bytes of the tables for each endpoint, both addresses.
    pub table_bytes: f64,
    /// Bytes by which the process grew for each endpoint: tables and the objects as given.
    pub process_bytes: f64,
    /// What lookups cost, by family and by whole packet.
    pub lookups: Vec<Lookup>,
    /// How long until one added endpoint is live, milliseconds.
    pub live_ms: Live,
    /// The same of services, in tables of their own.
    pub services: services::Report,
}

/// The same lookup in both clusters.
#[derive(Debug, Serialize)]
pub struct Lookup {
    /// What is looked up.
    pub what: &'static str,
    /// In the small cluster, nanoseconds.
    pub few_ns: Spread,
    /// In the large one, nanoseconds.
    pub many_ns: Spread,
}

impl Lookup {
    /// Not measured yet.
    pub(crate) fn empty(what: &'static str) -> Self {
        let none = Spread::of(Vec::new());
        Self { what, few_ns: none, many_ns: none }
    }

    /// Large to small, medians.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.many_ns.median / self.few_ns.median
    }
}

/// Times until live, milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Live {
    /// Half were live sooner.
    pub p50: f64,
    /// 99 of 100 were live sooner.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl Live {
    /// Of times until live.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let ms = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
        Self {
            p50: ms(times.get(times.len() / 2)),
            p99: ms(times.get(times.len() * 99 / 100)),
            max: ms(times.last()),
        }
    }
}

/// Loads, looks up, adds.
///
/// # Errors
/// [`PerfError`]
pub fn run(
    peers: usize,
    endpoints: usize,
    adds: usize,
    plan: services::Plan,
) -> Result<Report, PerfError> {
    let topology = Topology::new(peers, endpoints)?;
    let few = Topology::new(FEW, FEW)?;
    let scenario = Scenario::ALL[0];
    let small_load = Load { peers: FEW, endpoints: FEW, ..Load::default() };
    let small = Rig::new(scenario, &small_load, 1)?;
    // The large node starts small too and grows by the measured changes.
    let mut large = Rig::new(scenario, &Load { peers: 1, endpoints: 1, ..Load::default() }, 1)?;
    let start = Instant::now();
    for batch in batches(topology.peer_changes(Mode::Geneve)) {
        large.apply(batch)?;
    }
    let load_peers_ms = start.elapsed().as_secs_f64() * 1e3;
    let rss = resident_bytes()?;
    let bytes = large.bench.compiler.snapshot().bytes();
    let start = Instant::now();
    // The one of the start may have another address now.
    let first = ObjectKey::Endpoint(topology.endpoint(0).name);
    large.apply([Change::Remove(first)])?;
    for batch in batches(topology.endpoint_changes()) {
        large.apply(batch)?;
    }
    let load_endpoints_ms = start.elapsed().as_secs_f64() * 1e3;
    large.bench.publish();
    let per = |grown: usize| grown as f64 / endpoints as f64;
    let table_bytes = per(large.bench.compiler.snapshot().bytes().saturating_sub(bytes));
    let process_bytes = per(resident_bytes()?.saturating_sub(rss));
    // Before others leave memory behind: what the process grows by would not be seen.
    let services = plan.run()?;
    let mut lookups = table_lookups(&small, few, &large, topology)?;
    lookups.push(whole_packets(scenario, few, topology)?);
    let live_ms = add_one_by_one(&mut large, topology, adds)?;
    Ok(Report {
        peers,
        endpoints,
        load_peers_ms,
        load_endpoints_ms,
        table_bytes,
        process_bytes,
        lookups,
        live_ms,
        services,
    })
}

pub(crate) fn batches(changes: impl Iterator<Item = Change>) -> impl Iterator<Item = Vec<Change>> {
    let mut changes = changes.peekable();
    std::iter::from_fn(move || {
        changes.peek()?;
        Some(changes.by_ref().take(BATCH).collect())
    })
}

/// Memory of this process, bytes.
pub(crate) fn resident_bytes() -> Result<usize, PerfError> {
    let path = std::path::PathBuf::from("/proc/self/statm");
    let text = std::fs::read_to_string(&path)
        .map_err(|source| PerfError::File { path: path.clone(), source })?;
    let pages = text.split_whitespace().nth(1).and_then(|word| word.parse::<usize>().ok());
    let pages = pages.ok_or(PerfError::Unreadable { program: "/proc/self/statm", what: text })?;
    Ok(pages * 4096)
}

/// Lookups in the tables alone, as the stages make them: all lines of a vector are asked for
/// before the first is read. Small and large in turn.
fn table_lookups(
    small: &Rig,
    few: Topology,
    large: &Rig,
    many: Topology,
) -> Result<Vec<Lookup>, PerfError> {
    let (small, large) = (small.bench.publisher.current(), large.bench.publisher.current());
    let pods = |topology: Topology, family| -> Vec<IpAddr> {
        (0..topology.endpoints).map(|pod| topology.endpoint_address(pod, family)).collect()
    };
    let (small_random, large_random) = (Scattered::new(few)?, Scattered::new(many)?);
    let (v4, v6) = (Underlay::Ipv4, Underlay::Ipv6);
    [
        ("IPv4 destination", &small.routes, pods(few, v4), &large.routes, pods(many, v4)),
        ("IPv6 destination", &small.routes, pods(few, v6), &large.routes, pods(many, v6)),
        (
            "IPv4 destination, addresses at random",
            &small_random.routes,
            small_random.v4,
            &large_random.routes,
            large_random.v4,
        ),
        (
            "IPv6 destination, addresses at random",
            &small_random.routes,
            small_random.v6,
            &large_random.routes,
            large_random.v6,
        ),
    ]
    .into_iter()
    .map(|(what, small, few, large, many)| {
        let (few, many) = (destinations(&few), destinations(&many));
        let (mut few_ns, mut many_ns) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            few_ns.push(lookup_ns(small, &few)?);
            many_ns.push(lookup_ns(large, &many)?);
        }
        Ok(Lookup { what, few_ns: Spread::of(few_ns), many_ns: Spread::of(many_ns) })
    })
    .collect()
}

/// As many endpoints, but at random addresses, IPv4 in one range of all peers and IPv6 in a range of
/// each: nothing that neighbors have in common.
struct Scattered {
    routes: RouteTables,
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

impl Scattered {
    fn new(topology: Topology) -> Result<Self, PerfError> {
        let mut random = fastrand::Rng::with_seed(5);
        let mut all = Self { routes: RouteTables::default(), v4: Vec::new(), v6: Vec::new() };
        for endpoint in 0..topology.endpoints {
            let route = Route::new(Target::Peer(endpoint as u32 % topology.peers as u32));
            let prefix = topology.endpoint_address(endpoint, Underlay::Ipv6);
            let IpAddr::V6(prefix) = prefix else {
                return Err(PerfError::Missed(format!("{prefix} is not an IPv6 address")));
            };
            let v6 = prefix.to_bits() & !u128::from(u64::MAX) | u128::from(random.u64(..));
            let v4 = Ipv4Addr::from_bits(0x0a00_0000 | random.u32(..) >> 8);
            for (address, list) in
                [(v4.into(), &mut all.v4), (Ipv6Addr::from_bits(v6).into(), &mut all.v6)]
            {
                all.routes.set_host(address, route);
                list.push(address);
            }
        }
        Ok(all)
    }
}

fn destinations(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut random = fastrand::Rng::with_seed(11);
    (0..LOOKUPS).filter_map(|_| random.choice(addresses).copied()).collect()
}

fn lookup_ns(routes: &RouteTables, destinations: &[IpAddr]) -> Result<f64, PerfError> {
    let v4: Vec<u32> = destinations
        .iter()
        .filter_map(|address| match address {
            IpAddr::V4(address) => Some(address.to_bits()),
            IpAddr::V6(_) => None,
        })
        .collect();
    let v6: Vec<u128> = destinations
        .iter()
        .filter_map(|address| match address {
            IpAddr::V6(address) => Some(address.to_bits()),
            IpAddr::V4(_) => None,
        })
        .collect();
    let start = thread_time()?;
    let found = look_up(&routes.v4, &v4) + look_up(&routes.v6, &v6);
    let spent = thread_time()? - start;
    if found != destinations.len() {
        let missing = destinations.len() - found;
        return Err(PerfError::Missed(format!("{missing} of the endpoints are not found")));
    }
    Ok(spent.as_nanos() as f64 / destinations.len() as f64)
}

#[inline(never)]
fn look_up<K: Address>(routes: &Routes<K>, destinations: &[K]) -> usize {
    let mut found = 0;
    for vector in destinations.chunks(VECTOR) {
        for address in vector {
            routes.prefetch(*address);
        }
        for address in vector {
            found += usize::from(routes.get(*address).is_some());
        }
    }
    found
}

/// Whole packets, parsed, routed and encapsulated, in a cluster of `few` and in one of `many`. Both
/// receive as many flows, so that the port costs the same in both.
fn whole_packets(scenario: Scenario, few: Topology, many: Topology) -> Result<Lookup, PerfError> {
    let rig = |topology: Topology| {
        let Topology { peers, endpoints } = topology;
        Rig::new(scenario, &Load { peers, endpoints, flows: FLOWS, ..Load::default() }, 1)
    };
    let (mut small, mut large) = (rig(few)?, rig(many)?);
    let mut few_ns = Vec::new();
    let mut many_ns = Vec::new();
    for rig in [&mut small, &mut large] {
        for worker in &mut rig.bench.workers {
            forward(worker, FLOWS / VECTOR);
        }
    }
    for _ in 0..ROUNDS {
        for (rig, times) in [(&mut small, &mut few_ns), (&mut large, &mut many_ns)] {
            for worker in &mut rig.bench.workers {
                let start = thread_time()?;
                let packets = forward(worker, LOOKUPS / VECTOR);
                times.push((thread_time()? - start).as_nanos() as f64 / packets as f64);
            }
        }
    }
    small.check()?;
    large.check()?;
    let what = "whole packet, Geneve encapsulation";
    Ok(Lookup { what, few_ns: Spread::of(few_ns), many_ns: Spread::of(many_ns) })
}

/// Adds one endpoint after the other; each is live when the worker has the tables with it.
fn add_one_by_one(rig: &mut Rig, topology: Topology, adds: usize) -> Result<Live, PerfError> {
    let grown = Topology::new(topology.peers, topology.endpoints + adds)?;
    let mut times = Vec::new();
    for number in topology.endpoints..grown.endpoints {
        let endpoint = grown.endpoint(number);
        let address = endpoint.addresses.clone();
        let change = [Change::Set(Object::Endpoint(endpoint))];
        let start = Instant::now();
        rig.apply(change)?;
        rig.bench.publish();
        for worker in &mut rig.bench.workers {
            worker.poll();
        }
        times.push(start.elapsed());
        let tables = rig.bench.publisher.current();
        let live = rig.bench.publisher.is_in_force()
            && address.iter().all(|address| tables.routes.get(*address).is_some());
        if !live {
            return Err(PerfError::Missed(format!("endpoint {number} is not live")));
        }
    }
    Ok(Live::of(times))
}

impl Report {
    /// As a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing(["WHAT", "MEASURED", "MUST BE"]);
        let (peers, endpoints) = (self.peers, self.endpoints);
        table.add_row([format!("load {peers} peers"), format!("{:.0} ms", self.load_peers_ms)]);
        let load = format!("{:.0} ms", self.load_endpoints_ms);
        table.add_row([format!("load {endpoints} endpoints"), load]);
        let bytes = format!("{:.1} bytes", self.table_bytes);
        table.add_row(["tables, for an endpoint (IPv4 and IPv6)".into(), bytes]);
        let bytes = format!("{:.0} bytes", self.process_bytes);
        table.add_row(["process, for an endpoint (objects included)".into(), bytes]);
        for lookup in &self.lookups {
            table.add_row([
                format!("{}: {endpoints} endpoints against {FEW}", lookup.what),
                format!(
                    "{:.2} ns against {:.2} ns: {:.2}x",
                    lookup.many_ns.median,
                    lookup.few_ns.median,
                    lookup.ratio()
                ),
                format!("at most {RATIO}x"),
            ]);
        }
        let live = self.live_ms;
        table.add_row([
            "one more endpoint is live after (p50, p99, max)".into(),
            format!("{:.3}, {:.3}, {:.3} ms", live.p50, live.p99, live.max),
            format!("under {LIVE_MS} ms"),
        ]);
        self.services.add_to(&mut table);
        table.to_string()
    }
}
