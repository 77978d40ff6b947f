//! L2: what all workers share: compiled from the desired state, immutable, published as one
//! snapshot.

pub mod backends;
pub mod compile;
pub mod egress;
pub mod endpoints;
pub mod external;
pub mod hash;
pub mod homes;
pub mod host_ports;
pub mod hosts;
pub mod intervals;
pub mod maglev;
pub mod node;
pub mod paged;
pub mod peers;
pub mod publish;
pub mod routes;
pub mod services;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use overlane_api::WorkerId;

use self::egress::EgressTables;
use self::endpoints::{EndpointEntry, PortEntry};
use self::external::External;
use self::hash::Map;
use self::homes::Homes;
use self::host_ports::HostPorts;
use self::node::NodeEntry;
use self::paged::Paged;
use self::peers::{Adjacency, PeerEntry};
use self::routes::RouteTables;
use self::services::ServiceTables;
use crate::packet::meta::Target;

/// All tables, of one generation.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Counts up with every publication; 0: nothing was published.
    pub generation: u64,
    /// This node.
    pub node: Arc<NodeEntry>,
    /// Destination address -> what has it.
    pub routes: RouteTables,
    /// Local endpoints.
    pub endpoints: Paged<EndpointEntry>,
    /// Where local endpoints are at home.
    pub homes: Arc<Homes>,
    /// Ports by number.
    pub ports: Paged<PortEntry>,
    /// Other nodes.
    pub peers: Paged<PeerEntry>,
    /// Outer IPv4 source address, host order -> index of the peer plus 1.
    pub peers_v4: Map<u32>,
    /// Outer IPv6 source address, host order -> index of the peer plus 1.
    pub peers_v6: Map<u128>,
    /// Next hops of what is not encapsulated: gateways, and hosts on the underlay's link.
    pub next_hops: Paged<Option<Adjacency>>,
    /// Services.
    pub services: ServiceTables,
    /// How flows leave the cluster.
    pub egress: Arc<EgressTables>,
    /// Addresses that flows leave with.
    pub external: Arc<External>,
    /// Ports of this node's own address that are the host's.
    pub host_ports: Arc<HostPorts>,
    /// Addresses that are answered for on the uplink, besides pods'.
    pub announced: Arc<BTreeSet<IpAddr>>,
}

impl Snapshot {
    /// The worker at which an endpoint is at home; none for any other target.
    #[inline]
    #[must_use]
    pub fn home(&self, target: Target) -> Option<WorkerId> {
        let Target::Endpoint(index) = target else { return None };
        self.endpoints.get(index).map(|endpoint| endpoint.worker)
    }

    /// Largest IP packet that a target takes, bytes; 0: it is not ready to take any.
    #[inline]
    #[must_use]
    pub fn mtu(&self, target: Target) -> u16 {
        match target {
            Target::Endpoint(index) => self.endpoints.get(index).map_or(0, |e| e.mtu),
            Target::Peer(index) | Target::Direct(index) => {
                self.peers.get(index).map_or(0, |peer| peer.mtu)
            }
            _ => self.node.underlay_mtu,
        }
    }

    /// Bytes of memory, pages that versions share counted once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.routes.bytes()
            + self.peers_v4.bytes()
            + self.peers_v6.bytes()
            + self.endpoints.len() * std::mem::size_of::<EndpointEntry>()
            + self.peers.len() * std::mem::size_of::<PeerEntry>()
            + self.services.bytes()
            + self.egress.bytes()
    }
}
