//! What a dataplane says about itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::node::Mode;
use crate::service::{Algorithm, Backend, Forwarding, Frontend, Protocol, Scope};
use crate::types::{MacAddr, QueueId, Vni, WorkerId};

/// The whole state on one screen.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The dataplane's version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since start.
    pub uptime_s: u64,
    /// `busy` or `adaptive`.
    pub polling: String,
    /// How bursts are sent to veths with one queue: `af-xdp` or `program`.
    #[serde(default)]
    pub transmit: String,
    /// This node; absent until control has said.
    pub node: Option<NodeSummary>,
    /// Generation of the tables in force.
    pub generation: u64,
    /// Peers installed.
    pub peers: usize,
    /// Local endpoints installed.
    pub local_endpoints: usize,
    /// Remote endpoints installed.
    pub remote_endpoints: usize,
    /// Services (ports) installed.
    #[serde(default)]
    pub services: usize,
    /// Egress rules installed.
    #[serde(default)]
    pub egress_rules: usize,
    /// Flows in the workers' tables.
    #[serde(default)]
    pub flows: u64,
    /// Bytes of the tables.
    pub table_bytes: usize,
    /// One per worker.
    pub workers: Vec<WorkerStatus>,
    /// One per device and queue.
    pub ports: Vec<PortStatus>,
    /// One per UMEM.
    pub umems: Vec<UmemStatus>,
    /// What is not as it should be, in plain words.
    pub warnings: Vec<String>,
}

/// This node in brief.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSummary {
    /// Name in the cluster.
    pub name: String,
    /// How peers are reached by default.
    pub mode: Mode,
    /// VNI of the cluster's network.
    pub vni: Vni,
    /// Interface towards the underlay.
    pub uplink: String,
    /// Addresses on the underlay.
    pub addresses: Vec<IpAddr>,
    /// Bytes.
    pub underlay_mtu: u16,
    /// Bytes.
    pub pod_mtu: u16,
}

/// One worker's counters. They close: `received = sent + dropped + to_host + held` in every
/// consistent snapshot (`generated` packets are counted as received too).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub worker: WorkerId,
    /// The CPU it is pinned to; absent: not pinned.
    pub cpu: Option<usize>,
    /// Frames taken from ports, taken over from other workers, and made by this worker itself.
    pub received: u64,
    /// Of these, frames that this worker made itself (ARP, ND and ICMP answers).
    pub generated: u64,
    /// Frames put on a port's TX ring, or handed to another worker.
    pub sent: u64,
    /// Of these, frames handed to another worker.
    pub handed_over: u64,
    /// Frames dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Frames given to the host's stack.
    pub to_host: u64,
    /// Frames inside this worker right now.
    pub held: u64,
    /// Frames copied because they crossed from one UMEM to another.
    pub copied: u64,
    /// Frames sent as segments of a larger packet, which a device in copy mode takes at the cost of one.
    #[serde(default)]
    pub coalesced: u64,
    /// Vectors processed: `received / vectors` is the mean vector size.
    pub vectors: u64,
    /// Times it went to sleep (adaptive polling).
    pub sleeps: u64,
    /// `received - (sent + dropped + to_host + held)`; anything but 0 is a bug.
    pub residual: i64,
}

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// Towards the underlay.
    Uplink,
    /// A pod's veth.
    Endpoint,
    /// Towards the node's own stack.
    Host,
}

/// One AF_XDP socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Interface name.
    pub interface: String,
    /// What it is for.
    pub kind: PortKind,
    /// Device queue.
    pub queue: QueueId,
    /// Worker that serves it.
    pub worker: WorkerId,
    /// Does the driver have zero-copy here (else copy mode)?
    pub zero_copy: bool,
    /// UMEM its frames live in.
    pub umem: u8,
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Drops of the kernel here, by XDP_STATISTICS field of the socket; `tx_dropped`: frames that the device
    /// did not take.
    pub kernel_drops: BTreeMap<String, u64>,
}

/// One UMEM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UmemStatus {
    /// Its number.
    pub umem: u8,
    /// Chunk size, bytes.
    pub chunk_bytes: u32,
    /// Chunks.
    pub chunks: u32,
    /// Chunks that no ring and no worker uses.
    pub free: u32,
    /// Is it on huge pages?
    pub huge_pages: bool,
    /// Sockets bound to it.
    pub sockets: u32,
    /// User memory, bytes.
    pub bytes: u64,
    /// Estimated kernel memory: 128 bytes for each chunk and socket.
    pub kernel_bytes: u64,
}

/// A local endpoint as it is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// `namespace/name`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's end of its veth.
    pub interface: String,
    /// Its MAC, if known.
    pub mac: Option<MacAddr>,
    /// Its home.
    pub worker: WorkerId,
    /// `ready`, or why it is not.
    pub state: String,
    /// MTU in force, bytes.
    pub mtu: Option<u32>,
    /// Offloads that Overlane switched off itself on this pod's veth, by ethtool's name.
    pub offloads_off: Vec<String>,
    /// Frames received from the pod.
    pub rx_packets: u64,
    /// Frames sent to the pod.
    pub tx_packets: u64,
    /// Unfinished checksums that Overlane finished.
    pub checksums_finished: u64,
}

/// A peer as it is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its underlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// How it is reached.
    pub mode: Mode,
    /// Where its packets are sent: next hop address and MAC; absent while unresolved.
    pub next_hop: Option<NextHop>,
    /// Largest inner packet towards it, bytes.
    pub mtu: u16,
}

/// A resolved neighbor on the underlay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NextHop {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: MacAddr,
}

/// Drops by reason, summed over workers, and the kernel's.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DropReport {
    /// One row per reason that has counted anything.
    pub reasons: Vec<DropCount>,
    /// The kernel's own AF_XDP drop counters, summed over sockets.
    pub kernel: BTreeMap<String, u64>,
}

/// One reason's count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DropCount {
    /// The reason's name.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// What it means, one sentence.
    pub meaning: String,
    /// What to do about it.
    pub advice: String,
}

/// A service (one port of it) as it is in force. Counters are sums over workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `namespace/name:port`.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where it answers.
    pub frontends: Vec<Frontend>,
    /// Its backends, with what each takes.
    pub backends: Vec<BackendStatus>,
    /// Scope of what is sent to its cluster addresses.
    pub internal: Scope,
    /// Scope of what comes from outside.
    pub external: Scope,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// How a packet from outside reaches a backend on another node.
    pub forwarding: Forwarding,
    /// Seconds; absent: no affinity.
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
    /// Counts up with every change of any service: another number, and this one has changed.
    pub generation: u64,
    /// Flows begun.
    pub new_flows: u64,
    /// Packets and bytes from clients.
    pub to_backends: Traffic,
    /// Packets and bytes from backends.
    pub to_clients: Traffic,
    /// Packets rejected because no backend exists.
    pub rejected: u64,
    /// Packets dropped on their way in, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// A backend as it is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// As it was installed.
    pub backend: Backend,
    /// Flows it has now; absent: not counted.
    #[serde(default)]
    pub flows: Option<u64>,
    /// Does its node answer clients from outside itself, as the service's `forwarding` asks for? If
    /// not, as where no Geneve tunnel leads there, their answers come back through this node.
    #[serde(default)]
    pub direct: bool,
}

/// Packets and their bytes (IP packets, without Ethernet and tunnel headers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}
