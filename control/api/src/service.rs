//! A service port: the addresses it answers at and the backends it is spread over.
//!
//! Everything that Kubernetes decides by conditions, topology and traffic policies is decided
//! before: what is left is two sets of backends, marked on the backends themselves.
//!
//! | packet | scope | backends | none of them |
//! |---|---|---|---|
//! | to a [`FrontendKind::ClusterIp`] | [`Service::internal`] | of that scope | as below |
//! | from outside to another kind | [`Service::external`] | of that scope | as below |
//! | from a pod or the node to another kind | cluster | cluster | as below |
//!
//! Without a usable backend a packet is dropped when [`Service::has_any`] (the cluster has
//! backends, only not where this packet may go), else rejected as [`Service::reject`] says.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Transport protocol of a service.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RFC 9293.
    #[default]
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// Number in the IP header (IANA Protocol Numbers).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// What an address of a service is; it decides which policy applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrontendKind {
    /// Virtual address inside the cluster.
    ClusterIp,
    /// A port of this node's own address.
    NodePort,
    /// Address of an external load balancer; [`Service::source_ranges`] applies to it alone.
    LoadBalancer,
    /// Address that somebody routes to the cluster's nodes.
    ExternalIp,
}

/// An address at which a service answers. The key {address, protocol, port} belongs to one
/// service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frontend {
    /// Destination address.
    pub address: IpAddr,
    /// Destination port, host byte order.
    pub port: u16,
    /// What it is.
    pub kind: FrontendKind,
}

/// How far a service is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Over backends with [`Backend::use_cluster`].
    #[default]
    Cluster,
    /// Over backends with [`Backend::use_local`]. From outside the client's address is kept.
    Local,
}

/// How far a backend is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// Takes new flows.
    #[default]
    Ready,
    /// On its way out.
    Terminating,
    /// Not ready, or no more.
    NotReady,
}

/// Where a service's packets can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Its address. A frontend is served by backends of its own family only.
    pub address: IpAddr,
    /// Its port, host byte order.
    pub port: u16,
    /// Share of new flows relative to the others'; 0: none (draining).
    #[serde(default = "one")]
    pub weight: u16,
    /// Is it on this node?
    #[serde(default)]
    pub local: bool,
    /// Takes new flows of scope cluster.
    pub use_cluster: bool,
    /// Takes new flows of scope local; implies `local`.
    pub use_local: bool,
    /// Still answers: a UDP flow to one that does not, or that is gone from the list, is
    /// forgotten; TCP and SCTP flows are kept.
    pub serving: bool,
    /// For listings, and for the health of the node's share of the service.
    #[serde(default)]
    pub state: BackendState,
}

const fn one() -> u16 {
    1
}

/// What a client gets when no backend exists at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reject {
    /// TCP: a RST that acknowledges the SYN; other protocols: as [`Reject::Icmp`].
    #[default]
    Rst,
    /// ICMP port unreachable: 3/3 (RFC 792), for IPv6 1/4 (RFC 4443).
    Icmp,
}

/// How a packet from outside reaches a backend on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forwarding {
    /// With this node's address as source; the answer comes back through this node.
    #[default]
    Snat,
    /// Direct server return: with the client's address, and the frontend in a tunnel option;
    /// the backend's node answers the client, at a node port with the address of the node that was asked.
    Dsr,
}

/// How a backend is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Consistent hashing of the flow: every node chooses the same backend.
    #[default]
    Maglev,
    /// By weight, at random.
    Random,
}

/// One port of a service, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// `namespace/name:port`, where the port is its name or else its number, unique in the
    /// cluster; `namespace/name:port/proto` when another protocol has the same port.
    pub name: String,
    /// Of all its frontends and backends.
    pub protocol: Protocol,
    /// Where it answers, sorted. May be empty.
    pub frontends: Vec<Frontend>,
    /// Sorted by address and port, each pair once; includes those that take no new flows.
    pub backends: Vec<Backend>,
    /// Scope of what is sent to its [`FrontendKind::ClusterIp`] addresses.
    #[serde(default)]
    pub internal: Scope,
    /// Scope of what comes from outside to all other addresses.
    #[serde(default)]
    pub external: Scope,
    /// A client's new flows go to the backend of its last one for this long after that one
    /// began, seconds, 1 to 86400; absent: no affinity.
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
    /// Clients that may use its [`FrontendKind::LoadBalancer`] addresses; empty: all. Others
    /// are dropped, pods included. A range matches its own family only.
    #[serde(default)]
    pub source_ranges: Vec<IpNet>,
    /// What a client gets when no backend exists at all.
    #[serde(default)]
    pub reject: Reject,
    /// How a packet from outside reaches a backend on another node.
    #[serde(default)]
    pub forwarding: Forwarding,
    /// How a backend is chosen.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// TCP port of this node's addresses at which `overlane-control` says whether this node has
    /// ready backends; it belongs to the host.
    #[serde(default)]
    pub health_check_port: Option<u16>,
}

impl Service {
    /// Does any node have a backend of the family of `frontend` that could take a new flow? Then
    /// a packet that finds none in its scope is dropped, not rejected.
    #[must_use]
    pub fn has_any(&self, frontend: IpAddr) -> bool {
        self.backends.iter().any(|backend| {
            backend.address.is_ipv4() == frontend.is_ipv4()
                && (backend.use_cluster || backend.use_local)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_came_later_have_defaults() {
        let text = r#"{"name":"default/web:http","protocol":"tcp",
            "frontends":[{"address":"10.96.0.20","port":80,"kind":"cluster_ip"}],
            "backends":[{"address":"10.244.1.10","port":8080,"use_cluster":true,"use_local":false,"serving":true}]}"#;
        let service: Service = serde_json::from_str(text).unwrap();
        assert_eq!(service.backends[0].weight, 1);
        assert_eq!((service.internal, service.external), (Scope::Cluster, Scope::Cluster));
        assert_eq!((service.reject, service.forwarding), (Reject::Rst, Forwarding::Snat));
        assert_eq!(service.algorithm, Algorithm::Maglev);
        assert!(service.has_any("10.96.0.20".parse().unwrap()));
        assert!(!service.has_any("fd98::20".parse().unwrap()));
        let back = serde_json::to_string(&service).unwrap();
        assert_eq!(serde_json::from_str::<Service>(&back).unwrap(), service);
    }
}
