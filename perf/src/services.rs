//! The services' part of `overlane-perf tables`: how long many services take to load, what they take
//! of memory, what it costs to find a service and a backend, and how soon a changed one is live.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use comfy_table::Table;
use overlane_api::{
    Backend, BackendState, Change, Frontend, FrontendKind, Object, Protocol, Scope, Service,
};
use overlane_dataplane::io::VECTOR;
use overlane_dataplane::packet::meta::Target;
use overlane_dataplane::tables::Snapshot;
use overlane_dataplane::tables::routes::{Address, Routes};
use overlane_dataplane::tables::services::{BackendAddress, Backends, ServiceEntry};
use serde::Serialize;

use crate::error::PerfError;
use crate::measure::{Spread, thread_time};
use crate::rig::Rig;
use crate::scenario::{Load, Scenario};
use crate::tables::{Live, Lookup, ROUNDS, batches, resident_bytes};
use crate::topology::plain_service;

/// The few services that the many are compared with.
const FEW: usize = 10;

/// Lookups of a round, in random order.
const LOOKUPS: usize = 1 << 15;

/// Backends of the services of which one backend is changed, besides that of all.
const LARGE: [usize; 2] = [163, 655];

/// All tables must fit, bytes.
const MEMORY: usize = 150_000_000;

/// A changed backend must be live in less, milliseconds.
const LIVE_MS: f64 = 10.0;

/// Most services.
const MAX_SERVICES: usize = 50_000;

/// Most backends of a service.
const MAX_BACKENDS: usize = 1000;

/// Services, each with an address and backends of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Services.
    pub services: usize,
    /// Backends of each, of either family.
    pub backends: usize,
    /// How often a backend is changed.
    pub changes: usize,
}

/// Destinations, each with a hash of a flow.
type Flows<K> = Vec<(K, u32)>;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Services.
    pub services: usize,
    /// Backends of each, of either family.
    pub backends: usize,
    /// Time to load them, milliseconds.
    pub load_ms: f64,
    /// Bytes of their tables.
    pub table_bytes: usize,
    /// Bytes by which the process grew: tables and the objects as given.
    pub process_bytes: usize,
    /// From a destination to a backend, by family.
    pub lookups: Vec<Lookup>,
    /// How long until a changed backend is live, by the number of backends.
    pub changes: Vec<Changed>,
}

/// How long until a changed backend is live.
#[derive(Debug, Serialize)]
pub struct Changed {
    /// Backends that the service has, of either family.
    pub backends: usize,
    /// Times, milliseconds.
    pub live_ms: Live,
}

impl Plan {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`PerfError::Range`]
    pub fn new(services: usize, backends: usize, changes: usize) -> Result<Self, PerfError> {
        for (option, value, most) in
            [("--services", services, MAX_SERVICES), ("--backends", backends, MAX_BACKENDS)]
        {
            if !(1..=most).contains(&value) {
                return Err(PerfError::Range { option, value, least: 1, most });
            }
        }
        Ok(Self { services, backends, changes })
    }

    /// Loads, looks up, changes.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn run(self) -> Result<Report, PerfError> {
        let few = Self { services: FEW.min(self.services), ..self };
        let (small, mut large) = (rig()?, rig()?);
        let small = few.load(small)?.bench.publisher.current();
        let (rss, bytes) = (resident_bytes()?, large.bench.compiler.snapshot().bytes());
        let start = Instant::now();
        large = self.load(large)?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let tables = large.bench.publisher.current();
        let table_bytes = tables.bytes().saturating_sub(bytes);
        let process_bytes = resident_bytes()?.saturating_sub(rss);
        let mut v4 = Lookup::empty("from IPv4 destination to backend");
        let mut v6 = Lookup::empty("from IPv6 destination to backend");
        let (mut times, random) = ([(); 4].map(|()| Vec::new()), fastrand::Rng::with_seed(12));
        let (few4, few6) = few.destinations(random.clone());
        let (many4, many6) = self.destinations(random);
        for _ in 0..ROUNDS {
            times[0].push(lookup_ns(&small, &small.routes.v4, &few4, |entry| &entry.v4)?);
            times[1].push(lookup_ns(&tables, &tables.routes.v4, &many4, |entry| &entry.v4)?);
            times[2].push(lookup_ns(&small, &small.routes.v6, &few6, |entry| &entry.v6)?);
            times[3].push(lookup_ns(&tables, &tables.routes.v6, &many6, |entry| &entry.v6)?);
        }
        let [few4, many4, few6, many6] = times.map(Spread::of);
        (v4.few_ns, v4.many_ns, v6.few_ns, v6.many_ns) = (few4, many4, few6, many6);
        drop(tables);
        let mut changes = Vec::new();
        for backends in [self.backends].into_iter().chain(LARGE) {
            changes.push(Changed {
                backends,
                live_ms: change_one(&mut large, backends, self.changes)?,
            });
        }
        let Self { services, backends, .. } = self;
        let lookups = vec![v4, v6];
        Ok(Report { services, backends, load_ms, table_bytes, process_bytes, lookups, changes })
    }

    fn load(self, mut rig: Rig) -> Result<Rig, PerfError> {
        let services = (0..self.services).map(|n| set(service(n, self.backends)));
        for batch in batches(services) {
            rig.apply(batch)?;
        }
        rig.bench.publish();
        Ok(rig)
    }

    /// Random addresses of services, each with a hash of a flow.
    fn destinations(self, mut random: fastrand::Rng) -> (Flows<u32>, Flows<u128>) {
        let one = |_| {
            let (number, hash) = (random.usize(..self.services), random.u32(..));
            ((vip4(number).to_bits(), hash), (vip6(number).to_bits(), hash))
        };
        (0..LOOKUPS).map(one).unzip()
    }
}

/// A node with nobody else, to which services are added.
fn rig() -> Result<Rig, PerfError> {
    let load = Load { peers: 1, endpoints: 1, ..Load::default() };
    Rig::new(Scenario::ALL[0], &load, 1)
}

fn vip4(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xac18_0000 + number as u32)
}

fn vip6(number: usize) -> Ipv6Addr {
    Ipv6Addr::from_bits((0xfd98_u128 << 112) + number as u128)
}

pub(crate) fn set(service: Service) -> Change {
    Change::Set(Object::Service(service))
}

/// Backend number `number` of the cluster.
fn backend(number: usize, v4: bool) -> Backend {
    let address = if v4 {
        IpAddr::from(Ipv4Addr::from_bits(0x6440_0000 + number as u32))
    } else {
        IpAddr::from(Ipv6Addr::from_bits((0xfd30_u128 << 112) + number as u128))
    };
    Backend {
        address,
        port: 8080,
        weight: 1,
        local: false,
        use_cluster: true,
        use_local: false,
        serving: true,
        state: BackendState::Ready,
    }
}

/// Service number `number`, with `backends` of either family of its own.
fn service(number: usize, backends: usize) -> Service {
    let frontend = |address| Frontend { address, port: 80, kind: FrontendKind::ClusterIp };
    let own = |v4| (0..backends).map(move |n| backend(number * MAX_BACKENDS + n, v4));
    let frontends = vec![frontend(vip4(number).into()), frontend(vip6(number).into())];
    let backends = own(true).chain(own(false)).collect();
    plain_service(format!("load/service-{number}:http"), Protocol::Tcp, frontends, backends)
}

/// From destination to backend, as first packets of connections need it: vectors, in steps that
/// ask for the lines of the next.
fn lookup_ns<K: BackendAddress>(
    tables: &Snapshot,
    routes: &Routes<K>,
    destinations: &[(K, u32)],
    of: fn(&ServiceEntry) -> &Backends<K>,
) -> Result<f64, PerfError> {
    let start = thread_time()?;
    let found = look_up(tables, routes, destinations, of);
    let spent = thread_time()? - start;
    if found != destinations.len() {
        let missing = destinations.len() - found;
        return Err(PerfError::Missed(format!("{missing} of the services are not found")));
    }
    Ok(spent.as_nanos() as f64 / destinations.len() as f64)
}

#[inline(never)]
fn look_up<K: BackendAddress>(
    tables: &Snapshot,
    routes: &Routes<K>,
    destinations: &[(K, u32)],
    of: fn(&ServiceEntry) -> &Backends<K>,
) -> usize {
    const TCP: u8 = 6;
    let mut found = 0;
    for vector in destinations.chunks(VECTOR) {
        for (address, _) in vector {
            routes.prefetch(*address);
        }
        let mut vips = [0; VECTOR];
        for (vip, (address, _)) in vips.iter_mut().zip(vector) {
            if let Target::Service(number) = route(routes, *address) {
                *vip = number;
                tables.services.prefetch(number, TCP, 80);
            }
        }
        let mut services = [0; VECTOR];
        for (service, vip) in services.iter_mut().zip(&vips[..vector.len()]) {
            if let Some(frontend) = tables.services.frontend(*vip, TCP, 80) {
                *service = frontend.service;
                tables.services.prefetch_service(frontend.service);
            }
        }
        for (service, (_, hash)) in services.iter().zip(vector) {
            let entry = tables.services.service(*service);
            let backend = entry.and_then(|entry| of(entry).choose(Scope::Cluster, *hash));
            found += usize::from(backend.is_some_and(|backend| backend.port == 8080));
        }
    }
    found
}

fn route<K: Address>(routes: &Routes<K>, address: K) -> Target {
    routes.get(address).target()
}

/// Replaces a backend of either family of one service, again and again; each is live when the
/// worker has the tables with it.
fn change_one(rig: &mut Rig, backends: usize, changes: usize) -> Result<Live, PerfError> {
    let mut service = service(0, backends);
    rig.apply([set(service.clone())])?;
    let mut times = Vec::new();
    for change in 0..changes {
        let number = MAX_SERVICES * MAX_BACKENDS + change;
        for (place, v4) in [(0, true), (backends, false)] {
            service.backends[place] = backend(number, v4);
        }
        let changes = [set(service.clone())];
        let start = Instant::now();
        rig.apply(changes)?;
        rig.bench.publish();
        for worker in &mut rig.bench.workers {
            worker.poll();
        }
        times.push(start.elapsed());
        let tables = rig.bench.publisher.current();
        let entry = tables
            .services
            .vip4(vip4(0).to_bits())
            .and_then(|vip| tables.services.frontend(vip, 6, 80))
            .and_then(|frontend| tables.services.service(frontend.service));
        let is_live = |entry: &ServiceEntry| {
            let IpAddr::V4(address) = service.backends[0].address else { return false };
            entry.v4.find(address.to_bits(), 8080).is_some()
        };
        if !(rig.bench.publisher.is_in_force() && entry.is_some_and(is_live)) {
            return Err(PerfError::Missed(format!("change {change} is not live")));
        }
    }
    Ok(Live::of(times))
}

impl Report {
    /// Adds its rows to a table for people.
    pub fn add_to(&self, table: &mut Table) {
        let Self { services, backends, .. } = self;
        let what =
            format!("load {services} services of {backends} IPv4 and {backends} IPv6 backends");
        table.add_row([what, format!("{:.0} ms", self.load_ms)]);
        table.add_row([
            "their tables".into(),
            format!("{:.1} MB", self.table_bytes as f64 / 1e6),
            format!("at most {} MB", MEMORY / 1_000_000),
        ]);
        let grown = format!("{:.1} MB", self.process_bytes as f64 / 1e6);
        table.add_row(["process (objects included)".into(), grown]);
        for lookup in &self.lookups {
            table.add_row([
                format!("{}: {services} services against {FEW}", lookup.what),
                format!(
                    "{:.1} ns against {:.1} ns: {:.2}x",
                    lookup.many_ns.median,
                    lookup.few_ns.median,
                    lookup.ratio()
                ),
            ]);
        }
        for Changed { backends, live_ms } in &self.changes {
            table.add_row([
                format!(
                    "backend changed, of {backends} and {backends}, is live after (p50, p99, max)"
                ),
                format!("{:.3}, {:.3}, {:.3} ms", live_ms.p50, live_ms.p99, live_ms.max),
                format!("under {LIVE_MS} ms"),
            ]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_run_finds_and_changes_everything() {
        let report = Plan::new(20, 3, 5).unwrap().run().unwrap();
        assert!(report.table_bytes > 20 * 2 * 4096);
        assert_eq!(report.lookups.len(), 2);
        assert_eq!(report.changes.len(), 3);
        assert!(Plan::new(0, 1, 1).is_err() && Plan::new(1, 1001, 1).is_err());
    }
}
