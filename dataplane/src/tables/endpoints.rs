//! Local endpoints and ports, as the packet path needs them.

use overlane_api::{MacAddr, WorkerId};

use crate::packet::meta::Origin;
use crate::packet::verdict::PortId;

/// A local endpoint. One cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
pub struct EndpointEntry {
    /// Its IPv6 address, host order; 0: none.
    pub v6: u128,
    /// Its IPv4 address, host order; 0: none.
    pub v4: u32,
    /// Where it is attached; none: not yet.
    pub port: Option<PortId>,
    /// Its MAC.
    pub mac: MacAddr,
    /// MTU of its interface, bytes.
    pub mtu: u16,
    /// Its home.
    pub worker: WorkerId,
}

impl EndpointEntry {
    /// A free place in the table.
    pub const FREE: Self =
        Self { v6: 0, v4: 0, port: None, mac: MacAddr([0; 6]), mtu: 0, worker: WorkerId(0) };
}

/// A port. Its number is its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortEntry {
    /// What it is for: `Endpoint`, `Host` or `Uplink`.
    pub origin: Origin,
    /// Worker that serves it.
    pub worker: WorkerId,
    /// Index of the endpoint behind it, when it is an endpoint's.
    pub endpoint: u32,
}
