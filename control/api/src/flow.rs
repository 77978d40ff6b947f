//! What a dataplane says about its flows and its source NAT.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::status::Traffic;
use crate::types::{PortRange, WorkerId};

/// Which flows are meant. What is absent matches all; what is present must match all at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowFilter {
    /// Either end, before or after translation, lies in this range.
    pub address: Option<IpNet>,
    /// Either end's port, before or after translation, is this one; for ICMP the identifier.
    pub port: Option<u16>,
    /// Number in the IP header (IANA Protocol Numbers): TCP 6, UDP 17, ICMP 1, ICMPv6 58,
    /// SCTP 132.
    pub protocol: Option<u8>,
    /// Either end, before or after translation, is the pod of this name, `namespace/name`.
    pub endpoint: Option<String>,
    /// Of the service of this name: `namespace/name` for all its ports, or
    /// `namespace/name:port`.
    pub service: Option<String>,
    /// In this worker's table.
    pub worker: Option<WorkerId>,
    /// Only those with an address or port of source NAT.
    pub snat: bool,
    /// At most this many in the answer, and at most [`FlowFilter::MAX_LIMIT`]; absent:
    /// [`FlowFilter::DEFAULT_LIMIT`].
    pub limit: Option<u32>,
}

impl FlowFilter {
    /// Flows in one answer when the filter does not say.
    pub const DEFAULT_LIMIT: u32 = 10_000;

    /// Most flows in one answer.
    pub const MAX_LIMIT: u32 = 100_000;
}

/// Source and destination of a packet. Ports are in host byte order; for ICMP the identifier
/// stands in both, for protocols without ports 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
}

/// One flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// Whose table it is in.
    pub worker: WorkerId,
    /// Number in the IP header.
    pub protocol: u8,
    /// As the opener sent it.
    pub original: Tuple,
    /// As it leaves, translated.
    pub translated: Tuple,
    /// `syn`, `handshake`, `established`, `fin`, `closing`, `reset`; `one_way`, `two_way` for
    /// what has no states of its own.
    pub state: String,
    /// The service whose address was translated.
    #[serde(default)]
    pub service: Option<String>,
    /// The egress rule it left by; `node` for the node's own setting.
    #[serde(default)]
    pub egress: Option<String>,
    /// The pod whose home holds it.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// From the opener.
    pub forward: Traffic,
    /// To the opener.
    pub reverse: Traffic,
    /// Since its first packet, seconds.
    #[serde(default)]
    pub age_s: u32,
    /// Since its last packet, seconds.
    pub idle_s: u32,
    /// Until it is forgotten when nothing more comes, seconds.
    pub expires_s: u32,
}

/// Flows that a filter matched.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FlowReport {
    /// At most as many as asked for.
    pub flows: Vec<FlowStatus>,
    /// How many matched.
    pub matched: u64,
    /// How many there are.
    pub total: u64,
    /// How many there can be: the capacity of all workers.
    pub capacity: u64,
}

/// One external port that stands for a pod's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatBinding {
    /// Whose table it is in.
    pub worker: WorkerId,
    /// Number in the IP header.
    pub protocol: u8,
    /// Address it leaves with.
    pub external: IpAddr,
    /// Port (or ICMP identifier) it leaves with.
    pub external_port: u16,
    /// The pod's address.
    pub internal: IpAddr,
    /// The pod's port.
    pub internal_port: u16,
    /// The other end.
    pub remote: IpAddr,
    /// The other end's port.
    pub remote_port: u16,
    /// The pod.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// As in [`FlowStatus::state`].
    pub state: String,
    /// Until it is forgotten when nothing more comes, seconds.
    pub expires_s: u32,
}

/// Bindings that a filter matched.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NatReport {
    /// At most as many as asked for.
    pub bindings: Vec<NatBinding>,
    /// How many matched.
    pub matched: u64,
}

/// How full one external address is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatUsage {
    /// The address.
    pub external: IpAddr,
    /// Its ports that Overlane uses.
    pub ports: PortRange,
    /// Flows that have one of its ports.
    #[serde(default)]
    pub bindings: u64,
    /// Ports that are left towards the busiest remote; more towards all others.
    #[serde(default)]
    pub free: u32,
    /// What [`NatUsage::bindings`] grew by per second over the last minute; absent: not known yet.
    #[serde(default)]
    pub growth_per_s: Option<f64>,
    /// When it goes on like that, no port is left towards the busiest remote in so many seconds;
    /// absent: it does not grow, or that is not known yet.
    #[serde(default)]
    pub exhausted_in_s: Option<u64>,
    /// Per worker.
    pub workers: Vec<NatWorkerUsage>,
    /// Remotes with the most bindings, most first; each remote can have every port once.
    pub busiest: Vec<NatRemoteUsage>,
    /// Pods with the most bindings, most first.
    #[serde(default)]
    pub top_pods: Vec<NatPodUsage>,
}

/// Bindings of one pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatPodUsage {
    /// Its address.
    pub internal: IpAddr,
    /// Its name, while it is here.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Bindings.
    pub bindings: u64,
}

/// One worker's part of an external address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatWorkerUsage {
    /// The worker.
    pub worker: WorkerId,
    /// Ports it owns.
    pub owned: u32,
    /// Ports of them with at least one binding, by protocol (`tcp`, `udp`, `icmp`, ...).
    pub in_use: BTreeMap<String, u32>,
    /// Bindings; more than ports, as one port serves many remotes.
    pub bindings: u64,
    /// Flows refused because every port it tried was taken for their remote.
    pub exhausted: u64,
    /// Flows refused because their pod held its most.
    pub pod_limited: u64,
    /// How many tries a new binding took: entry `n` counts those of 2^(n-1)+1 to 2^n tries.
    pub tries: Vec<u64>,
}

/// Bindings towards one remote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatRemoteUsage {
    /// Its address.
    pub remote: IpAddr,
    /// Its port.
    pub remote_port: u16,
    /// Number in the IP header.
    pub protocol: u8,
    /// Bindings.
    pub bindings: u64,
}
