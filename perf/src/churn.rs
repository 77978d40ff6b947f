//! One backend's change in a large cluster while packets to all of its services flow: how soon the worker has it, and
//! what becomes of the packets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use overlane_api::{Service, Underlay};
use overlane_dataplane::testing::Bench;
use serde::Serialize;

use crate::error::PerfError;
use crate::rig::Rig;
use crate::scenario::{Load, Scenario};
use crate::services::set;
use crate::tables::Live;
use crate::topology::Topology;

/// A change must be live in less, milliseconds: 99 of 100 of them, for a machine that others use as well.
pub const LIVE_MS: f64 = 10.0;

/// Between two changes, so that each meets a worker that has been forwarding.
const PAUSE: Duration = Duration::from_millis(2);

/// No change takes so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Churn {
    /// Services, of ten backends each.
    pub services: usize,
    /// Changes, of one backend each.
    pub changes: usize,
    /// From the object that is given until the worker forwards by it, milliseconds.
    pub live_ms: Live,
    /// Packets that arrived meanwhile, of flows to all services.
    pub packets: u64,
    /// Of these, those that did not leave.
    pub lost: u64,
    /// Flows that were there before, and after.
    pub flows: (u64, u64),
}

impl Churn {
    /// Was every change live in time, nothing lost, and no flow either?
    #[must_use]
    pub fn holds(&self) -> bool {
        self.live_ms.p99 < LIVE_MS && self.lost == 0 && self.flows.0 == self.flows.1
    }
}

/// Changes one backend of one service after the other while a worker forwards `load`'s packets to all of them.
///
/// # Errors
/// [`PerfError`]
pub fn run(scenario: Scenario, load: &Load, changes: usize) -> Result<Churn, PerfError> {
    let topology = Topology::new(load.peers, load.endpoints)?;
    let mut rig = Rig::new(scenario, load, 1)?;
    rig.settle(load);
    rig.check()?;
    let before = *rig.bench.workers[0].counters();
    let flows = rig.bench.workers[0].flows().len();
    let Bench { compiler, publisher, workers, .. } = &mut rig.bench;
    let worker = &mut workers[0];
    let stop = &AtomicBool::new(false);
    let times = std::thread::scope(|scope| {
        let polling = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                worker.poll();
            }
        });
        let mut change = |number: usize| {
            let service = changed(topology, number, load.services);
            let start = Instant::now();
            compiler
                .apply(vec![set(service)])
                .map_err(|error| PerfError::Refused(error.to_string()))?;
            publisher.publish(compiler.snapshot());
            while !publisher.is_in_force() {
                if start.elapsed() > PATIENCE {
                    let what = format!("change {number} is not live after {PATIENCE:?}");
                    return Err(PerfError::Missed(what));
                }
                std::hint::spin_loop();
            }
            let time = start.elapsed();
            std::thread::sleep(PAUSE);
            Ok(time)
        };
        let times: Result<Vec<Duration>, PerfError> = (0..changes).map(&mut change).collect();
        stop.store(true, Ordering::Relaxed);
        polling.join().map_err(|_| PerfError::Thread)?;
        times
    })?;
    let worker = &rig.bench.workers[0];
    let after = worker.counters();
    let packets = after.received - before.received;
    Ok(Churn {
        services: load.services,
        changes,
        live_ms: Live::of(times),
        packets,
        lost: packets - (after.sent - before.sent),
        flows: (flows, worker.flows().len()),
    })
}

/// The service that the change of this number is of, with another one in the place of one of its backends.
fn changed(topology: Topology, number: usize, services: usize) -> Service {
    // Far apart, and each its own as long as there are as many.
    let which = number * 7919 % services.max(1);
    let mut service = topology.service(which);
    let other = topology.endpoint_address((which * 10 + 5000) % topology.endpoints, Underlay::Ipv4);
    if let Some(backend) = service.backends.iter_mut().find(|backend| backend.address.is_ipv4()) {
        backend.address = other;
    }
    service.backends.sort_by_key(|backend| (backend.address, backend.port));
    service
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_another_service_with_one_backend_changed() {
        let topology = Topology::new(50, 10_000).unwrap();
        for number in 0..100 {
            let service = changed(topology, number, 100);
            let before = topology.service(number * 7919 % 100);
            assert_eq!(service.name, before.name);
            let new = service.backends.iter().filter(|backend| !before.backends.contains(backend));
            assert_eq!((new.count(), service.backends.len()), (1, before.backends.len()));
        }
    }

    #[test]
    fn changes_are_live_and_nothing_is_lost() {
        let scenario = Scenario::named("dnat-geneve").unwrap();
        let load =
            Load { flows: 200, peers: 25, endpoints: 5_100, services: 20, ..Load::default() };
        let churn = run(scenario, &load, 5).unwrap();
        assert_eq!((churn.changes, churn.lost), (5, 0));
        assert!(churn.packets > 0 && churn.live_ms.max > 0.0);
        assert_eq!(churn.flows, (200, 200));
    }
}
