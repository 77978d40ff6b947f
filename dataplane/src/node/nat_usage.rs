//! How full the external addresses are: counted over the flows that have one of their ports.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;

use overlane_api::WorkerId;
use overlane_api::flow::{NatPodUsage, NatRemoteUsage, NatUsage, NatWorkerUsage};

use super::nat_trend::{Trend, forecast};
use crate::flow::ports::PoolStatus;
use crate::packet::blocks::FIRST_PORT;
use crate::tables::external::ExternalAddress;
use crate::wire::protocol;
use crate::worker::errands::{FlowRecord, Summary};

/// Remotes and pods that are named for each address.
const TOP: usize = 10;

/// A worker's ports of a protocol: which of them have a binding.
type PortsInUse = HashMap<(WorkerId, u8), HashSet<u16>>;

/// Bindings of one address.
#[derive(Debug, Default)]
struct Counts {
    ports: PortsInUse,
    remotes: HashMap<(IpAddr, u16, u8), u64>,
    pods: HashMap<IpAddr, u64>,
}

/// Bindings of all addresses.
#[derive(Debug, Default)]
pub(super) struct Usage(HashMap<IpAddr, Counts>);

impl Usage {
    /// Counts a flow that has an external port.
    pub(super) fn add(&mut self, worker: WorkerId, flow: &FlowRecord) {
        let (pod, outside) = (flow.original.source, &flow.translated);
        let counts = self.0.entry(outside.source).or_default();
        counts.ports.entry((worker, flow.protocol)).or_default().insert(outside.source_port);
        // The identifier of a ping is the pod's.
        let is_ping = matches!(flow.protocol, protocol::ICMP | protocol::ICMPV6);
        let remote_port = if is_ping { 0 } else { outside.destination_port };
        let remote = (outside.destination, remote_port, flow.protocol);
        *counts.remotes.entry(remote).or_default() += 1;
        *counts.pods.entry(pod).or_default() += 1;
    }

    /// How full one address is. `pod_name` is the name of the pod here with an address.
    pub(super) fn of(
        &self,
        external: &ExternalAddress,
        workers: &[(WorkerId, Summary)],
        trend: &Trend,
        pod_name: &dyn Fn(IpAddr) -> Option<String>,
    ) -> NatUsage {
        let none = Counts::default();
        let counts = self.0.get(&external.address).unwrap_or(&none);
        let worker = |(worker, summary): &(WorkerId, Summary)| {
            let pool = summary.pools.iter().find(|(address, _)| *address == external.address);
            let status = pool.map(|(_, status)| *status).unwrap_or_default();
            worker_usage(*worker, &status, &counts.ports)
        };
        let busiest = top(&counts.remotes).into_iter();
        let pods = top(&counts.pods).into_iter();
        let bindings = counts.remotes.values().sum();
        let most = counts.remotes.values().max().copied().unwrap_or(0);
        let free = usable(external).saturating_sub(u32::try_from(most).unwrap_or(u32::MAX));
        let growth = trend.growth(external.address);
        NatUsage {
            external: external.address,
            ports: external.ports.range(),
            bindings,
            free,
            growth_per_s: growth,
            exhausted_in_s: growth.and_then(|growth| forecast(free, most, bindings, growth)),
            workers: workers.iter().map(worker).collect(),
            busiest: busiest
                .map(|((remote, remote_port, protocol), bindings)| NatRemoteUsage {
                    remote,
                    remote_port,
                    protocol,
                    bindings,
                })
                .collect(),
            top_pods: pods
                .map(|(internal, bindings)| NatPodUsage {
                    internal,
                    endpoint: pod_name(internal),
                    bindings,
                })
                .collect(),
        }
    }
}

/// Ports of an address that can be given.
fn usable(external: &ExternalAddress) -> u32 {
    let range = external.ports.range();
    (u32::from(range.last()) + 1).saturating_sub(range.first().max(FIRST_PORT).into())
}

/// Those with the most, most first; of equal ones the lowest first.
fn top<K: Hash + Ord + Copy>(counts: &HashMap<K, u64>) -> Vec<(K, u64)> {
    let mut all: Vec<(K, u64)> = counts.iter().map(|(key, count)| (*key, *count)).collect();
    all.sort_unstable_by_key(|(key, count)| (Reverse(*count), *key));
    all.truncate(TOP);
    all
}

fn worker_usage(worker: WorkerId, status: &PoolStatus, ports: &PortsInUse) -> NatWorkerUsage {
    let own = ports.iter().filter(|((of, _), _)| *of == worker);
    let in_use: BTreeMap<String, u32> = own
        .map(|((_, number), ports)| {
            (protocol_name(*number), u32::try_from(ports.len()).unwrap_or(u32::MAX))
        })
        .collect();
    let tries = status.tries.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
    NatWorkerUsage {
        worker,
        owned: status.owned,
        in_use,
        bindings: status.bindings,
        exhausted: status.exhausted,
        pod_limited: status.pod_limited,
        tries: status.tries.iter().take(tries).copied().collect(),
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}
