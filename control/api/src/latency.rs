//! How long packets are inside of a dataplane.

use serde::{Deserialize, Serialize};

use crate::types::WorkerId;

/// Where packets come into a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketSource {
    /// By a pod's port, or by the host's.
    Pods,
    /// By the uplink.
    Uplink,
    /// From another worker, which had received them.
    Worker,
}

/// How long packets were inside: from the moment in which a worker took them from a port's RX ring, to the
/// moment in which the kernel had been given all that left of the same vector. Packets of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LatencyReport {
    /// One vector in so many was timed; 0: none.
    pub sampled: u32,
    /// Since when, seconds: the start, or when the report was last begun anew.
    pub since_s: u64,
    /// Those that counted anything, by worker.
    pub histograms: Vec<LatencyHistogram>,
}

/// The packets that came in one way into one worker, and left by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyHistogram {
    /// The worker.
    pub worker: WorkerId,
    /// The way.
    pub from: PacketSource,
    /// Those with packets, shortest times first.
    pub buckets: Vec<LatencyBucket>,
}

/// Packets that took about equally long: within 1.6 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyBucket {
    /// At most so long, nanoseconds.
    pub up_to_ns: u64,
    /// Packets.
    pub packets: u64,
}
