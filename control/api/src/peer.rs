//! Another node of the cluster.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::node::Mode;
use crate::types::MacAddr;

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name in the cluster.
    pub name: String,
    /// Its addresses on the underlay: where tunnel packets go and come from, and allowed, like
    /// its pod ranges, as source of what it sends.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// How it is reached.
    pub mode: Mode,
    /// Destination of the inner Ethernet header of what it is sent.
    pub gateway_mac: MacAddr,
}
