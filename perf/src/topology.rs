//! A cluster of any size, as objects. This node is node a of the dataplane's tests.
//!
//! ```text
//! peer p      172.16.0.0 + p   fd00:20::p    pods 10.64.0.0 + p/24, fd20:p:p::/64
//! endpoint e  on peer e % peers, its pod number 10 + e / peers
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use overlane_api::{
    Algorithm, Attachment, Backend, BackendState, Change, Endpoint, Forwarding, Frontend,
    FrontendKind, MacAddr, Mode, Object, Peer, Protocol, Reject, Scope, Service, Underlay,
};

use overlane_dataplane::tables::compile::underlay::{Way, Ways};

use crate::error::PerfError;

/// A service that is as most are in all that is not said here.
#[must_use]
pub fn plain_service(
    name: String,
    protocol: Protocol,
    frontends: Vec<Frontend>,
    backends: Vec<Backend>,
) -> Service {
    Service {
        name,
        protocol,
        frontends,
        backends,
        internal: Scope::Cluster,
        external: Scope::Cluster,
        affinity_seconds: None,
        source_ranges: Vec::new(),
        reject: Reject::Rst,
        forwarding: Forwarding::Snat,
        algorithm: Algorithm::Maglev,
        health_check_port: None,
    }
}

/// Other nodes and the pods on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Other nodes.
    pub peers: usize,
    /// Pods on them.
    pub endpoints: usize,
}

impl Topology {
    /// Most peers: their pod ranges must not reach this node's.
    pub const MAX_PEERS: usize = 40_000;
    /// Most endpoints of a peer.
    pub const MAX_PER_PEER: usize = 240;

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`PerfError::Range`]
    pub fn new(peers: usize, endpoints: usize) -> Result<Self, PerfError> {
        let check = |option, value, most| {
            if (1..=most).contains(&value) {
                Ok(())
            } else {
                Err(PerfError::Range { option, value, least: 1, most })
            }
        };
        check("--peers", peers, Self::MAX_PEERS)?;
        check("--endpoints", endpoints, peers * Self::MAX_PER_PEER)?;
        Ok(Self { peers, endpoints })
    }

    /// Underlay address of a peer.
    #[must_use]
    pub fn peer_address(peer: usize, family: Underlay) -> IpAddr {
        let number = peer as u32;
        match family {
            Underlay::Ipv4 => Ipv4Addr::from_bits(0xac10_0000 + number).into(),
            Underlay::Ipv6 => {
                Ipv6Addr::from_bits((0xfd00_0020 << 96) + u128::from(number) + 1).into()
            }
        }
    }

    fn pod_network(peer: usize, family: Underlay) -> IpAddr {
        let number = peer as u32;
        match family {
            Underlay::Ipv4 => Ipv4Addr::from_bits(0x0a40_0000 + (number << 8)).into(),
            Underlay::Ipv6 => {
                Ipv6Addr::from_bits((0xfd20 << 112) | (u128::from(number) << 64)).into()
            }
        }
    }

    /// Address of an endpoint.
    #[must_use]
    pub fn endpoint_address(&self, endpoint: usize, family: Underlay) -> IpAddr {
        let pod = (endpoint / self.peers) as u32 + 10;
        match Self::pod_network(endpoint % self.peers, family) {
            IpAddr::V4(net) => Ipv4Addr::from_bits(net.to_bits() + pod).into(),
            IpAddr::V6(net) => Ipv6Addr::from_bits(net.to_bits() + u128::from(pod)).into(),
        }
    }

    /// The peer that has the pod of that address.
    #[must_use]
    pub fn peer_of(pod: IpAddr) -> usize {
        match pod {
            IpAddr::V4(address) => (address.to_bits().wrapping_sub(0x0a40_0000) >> 8) as usize,
            IpAddr::V6(address) => (address.to_bits() >> 64) as u32 as usize,
        }
    }

    /// Address of a service.
    #[must_use]
    pub fn service_address(service: usize, family: Underlay) -> IpAddr {
        let number = service as u32 + 10;
        match family {
            Underlay::Ipv4 => Ipv4Addr::from_bits(0x0a60_0000 + number).into(),
            Underlay::Ipv6 => Ipv6Addr::from_bits((0xfd98 << 112) + u128::from(number)).into(),
        }
    }

    /// Port of every service, and of its backends.
    pub const SERVICE_PORTS: (u16, u16) = (80, 8080);

    /// Flow number `flow` of a pod to `services` services: the service's number and the pod's port, no
    /// two alike as long as there are that many.
    #[must_use]
    pub fn service_flow(flow: usize, services: usize) -> (usize, u16) {
        const PORTS: usize = 64_512;
        // Coprime to the number of ports: neighbours are far apart.
        let port = flow * 40_507 % PORTS;
        ((flow / PORTS + port * 7919) % services.max(1), (1024 + port) as u16)
    }

    /// A service whose backends are ten of the endpoints, or as many as there are.
    #[must_use]
    pub fn service(&self, service: usize) -> Service {
        let families = [Underlay::Ipv4, Underlay::Ipv6];
        let frontends = families.map(|family| Frontend {
            address: Self::service_address(service, family),
            port: Self::SERVICE_PORTS.0,
            kind: FrontendKind::ClusterIp,
        });
        let of_family = |family| {
            (0..self.endpoints.min(10)).map(move |number| Backend {
                address: self.endpoint_address((service * 10 + number) % self.endpoints, family),
                port: Self::SERVICE_PORTS.1,
                weight: 1,
                local: false,
                use_cluster: true,
                use_local: false,
                serving: true,
                state: BackendState::Ready,
            })
        };
        let mut backends: Vec<Backend> = families.into_iter().flat_map(of_family).collect();
        backends.sort_by_key(|backend| (backend.address, backend.port));
        let name = format!("load/service-{service}:web");
        plain_service(name, Protocol::Udp, frontends.to_vec(), backends)
    }

    /// A host outside of the cluster: one of as many as a range for benchmarks has (RFC 2544 appendix
    /// C.2.2: 198.18.0.0/15; RFC 5180 section 8: 2001:2::/48).
    #[must_use]
    pub fn outside_address(host: usize, family: Underlay) -> IpAddr {
        let host = host as u32 & 0x1_ffff;
        match family {
            Underlay::Ipv4 => Ipv4Addr::from_bits(0xc612_0000 + host).into(),
            Underlay::Ipv6 => {
                Ipv6Addr::from_bits((0x2001_0002 << 96) + u128::from(host) + 1).into()
            }
        }
    }

    /// This node's way there.
    #[must_use]
    pub fn ways() -> Ways {
        let to = |range: IpNet, gateway: IpAddr| (range, Way::Gateway(gateway));
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);
        let v6 = Ipv6Net::new_assert(Ipv6Addr::from_bits(0x2001_0002 << 96), 48);
        [
            to(v4.into(), Ipv4Addr::new(10, 0, 0, 1).into()),
            to(v6.into(), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99).into()),
        ]
        .into()
    }

    /// Name of a peer.
    #[must_use]
    pub fn peer_name(peer: usize) -> String {
        format!("peer-{peer}")
    }

    /// A peer.
    #[must_use]
    pub fn peer(peer: usize, mode: Mode) -> Peer {
        let number = (peer as u32).to_be_bytes();
        let net = |family, len| {
            let address = Self::pod_network(peer, family);
            match address {
                IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new_assert(v4, len)),
                IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new_assert(v6, len)),
            }
        };
        Peer {
            name: Self::peer_name(peer),
            addresses: [Underlay::Ipv4, Underlay::Ipv6]
                .map(|family| Self::peer_address(peer, family))
                .to_vec(),
            pod_cidrs: vec![net(Underlay::Ipv4, 24), net(Underlay::Ipv6, 64)],
            mode,
            gateway_mac: MacAddr([2, 0x4f, number[0], number[1], number[2], number[3]]),
        }
    }

    /// An endpoint, with an address of each family.
    #[must_use]
    pub fn endpoint(&self, endpoint: usize) -> Endpoint {
        Endpoint {
            name: format!("load/pod-{endpoint}"),
            addresses: [Underlay::Ipv4, Underlay::Ipv6]
                .map(|family| self.endpoint_address(endpoint, family))
                .to_vec(),
            attachment: Attachment::Remote { peer: Self::peer_name(endpoint % self.peers) },
        }
    }

    /// Changes that add all peers.
    pub fn peer_changes(&self, mode: Mode) -> impl Iterator<Item = Change> {
        (0..self.peers).map(move |peer| Change::Set(Object::Peer(Self::peer(peer, mode))))
    }

    /// Changes that add all endpoints.
    pub fn endpoint_changes(self) -> impl Iterator<Item = Change> {
        (0..self.endpoints)
            .map(move |endpoint| Change::Set(Object::Endpoint(self.endpoint(endpoint))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_inside_of_their_peers_range_and_differ() {
        let topology = Topology::new(1000, 50_000).unwrap();
        let mut seen = std::collections::HashSet::new();
        for endpoint in 0..topology.endpoints {
            let pod = topology.endpoint(endpoint);
            let peer = Topology::peer(endpoint % topology.peers, Mode::Geneve);
            for (address, range) in pod.addresses.iter().zip(&peer.pod_cidrs) {
                assert!(range.contains(address), "{address} in {range}");
                assert!(seen.insert(*address));
            }
        }
        let flows = (0..500_000).map(|flow| Topology::service_flow(flow, 10));
        assert_eq!(flows.collect::<std::collections::HashSet<_>>().len(), 500_000);
        assert!(Topology::new(0, 1).is_err());
        assert!(Topology::new(2, 481).is_err());
    }
}
