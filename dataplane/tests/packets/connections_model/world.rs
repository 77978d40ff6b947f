//! What the sequences are about: who there is, and the services and ways out that a node is told of.
//!
//! ```text
//! pods 0, 1, 2 -- [ a ] == underlay == [ b ], [ c ] -- a pod each
//!         host --/   \---- router ---- outside 0 to 5
//! ```

use std::net::IpAddr;

use overlane_api::{
    Algorithm, Backend, BackendState, Change, Egress, EgressAction, Frontend, FrontendKind,
    MacAddr, Mode, Object, PortRange, Protocol, Reject, Scope, Service, Underlay,
};
use overlane_dataplane::tables::compile::underlay::{Way, Ways};
use overlane_dataplane::tables::peers::Adjacency;
use overlane_dataplane::testing::{MemoryNode, node, objects};

use crate::build::{node_ip, pod_ip};

/// Services there can be.
pub const SERVICES: u8 = 3;

/// Pods here.
pub const PODS: u8 = 3;

/// MAC of the router to the outside.
pub const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);

/// A port of the range on which a program of the host listens.
pub const HOST_PORT: u16 = 20_002;

/// Who sends and receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A pod of this node.
    Pod(u8),
    /// The pod of node b (1) or c (2).
    Remote(u8),
    /// The host itself.
    Host,
    /// Somebody outside. To 2 pods keep their address by a rule, 3 is denied, to 4 they go by a
    /// gateway, 5 is in the non-masquerade ranges.
    Outside(u8),
}

impl End {
    pub fn address(self, family: usize) -> IpAddr {
        match self {
            Self::Pod(pod) => pod_ip(0, pod, family),
            Self::Remote(peer) => pod_ip(peer, 0, family),
            Self::Host => node_ip(0, family),
            Self::Outside(number) => {
                let text =
                    [format!("203.0.113.{}", 10 + number), format!("2001:db8:113::{number}")];
                text[family].parse().unwrap()
            }
        }
    }

    /// Who has an address.
    pub fn of(address: IpAddr) -> Option<Self> {
        let pods = (0..PODS).map(Self::Pod);
        let all = pods.chain([Self::Remote(1), Self::Remote(2), Self::Host]);
        let mut all = all.chain((0..6).map(Self::Outside));
        all.find(|end| (0..2).any(|family| end.address(family) == address))
    }
}

/// How far a backend is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Takes new flows.
    Ready,
    /// Takes none, but answers.
    Draining,
    /// Does not even answer.
    Dead,
}

/// A backend: a pod here or elsewhere, and its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    pub end: End,
    pub port: u16,
    pub life: Life,
}

/// A service, as a sequence describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub backends: Vec<Spot>,
    pub internal_local: bool,
    pub external_local: bool,
    pub node_port: bool,
    pub load_balancer: bool,
    /// The load balancer's address is for outside 0 and pod 0 only.
    pub ranged: bool,
    pub icmp_reject: bool,
    pub random: bool,
}

/// Service 0 is TCP; 1 is UDP at the same address, on the port of DNS; 2 is TCP at another.
pub const fn protocol(service: u8) -> u8 {
    if service == 1 { 17 } else { 6 }
}

/// Where a service answers inside of the cluster.
pub fn cluster(service: u8, family: usize) -> (IpAddr, u16) {
    let vip = crate::services::vip(service / 2, family);
    (vip, if service == 1 { 53 } else { 80 })
}

/// Where it answers at the load balancer's address.
pub fn load_balancer(service: u8, family: usize) -> (IpAddr, u16) {
    let text = [format!("198.51.100.{}", 80 + service), format!("2001:db8:100::{service}")];
    (text[family].parse().unwrap(), cluster(service, family).1)
}

/// Where it answers at the node's address.
pub fn node_port(service: u8, family: usize) -> (IpAddr, u16) {
    (node_ip(0, family), 30_080 + u16::from(service))
}

/// The address of the NAT gateway.
pub fn pool(family: usize) -> IpAddr {
    ["198.51.100.7", "2001:db8:100:7::1"][family].parse().unwrap()
}

impl Spec {
    /// The addresses at which it answers.
    pub fn frontends(&self, service: u8) -> Vec<((IpAddr, u16), FrontendKind)> {
        let mut all = Vec::new();
        for family in 0..2 {
            all.push((cluster(service, family), FrontendKind::ClusterIp));
            if self.node_port {
                all.push((node_port(service, family), FrontendKind::NodePort));
            }
            if self.load_balancer {
                all.push((load_balancer(service, family), FrontendKind::LoadBalancer));
            }
        }
        all
    }

    /// As control would say it. Generations are different services.
    pub fn object(&self, service: u8, generation: u64) -> Service {
        let frontends = self.frontends(service).into_iter();
        let mut frontends: Vec<_> =
            frontends.map(|((address, port), kind)| Frontend { address, port, kind }).collect();
        frontends.sort();
        let backends = self.backends.iter().flat_map(|spot| {
            let local = matches!(spot.end, End::Pod(_));
            (0..2).map(move |family| Backend {
                address: spot.end.address(family),
                port: spot.port,
                weight: 1,
                local,
                use_cluster: spot.life == Life::Ready,
                use_local: spot.life == Life::Ready && local,
                serving: spot.life != Life::Dead,
                state: BackendState::Ready,
            })
        });
        let mut backends: Vec<_> = backends.collect();
        backends.sort_by_key(|backend| (backend.address, backend.port));
        let scope = |local| if local { Scope::Local } else { Scope::Cluster };
        let ranges = [End::Pod(0), End::Outside(0)].into_iter();
        let ranges = ranges.flat_map(|end| [end.address(0).into(), end.address(1).into()]);
        Service {
            name: format!("default/web{service}:{generation}"),
            protocol: if protocol(service) == 17 { Protocol::Udp } else { Protocol::Tcp },
            frontends,
            backends,
            internal: scope(self.internal_local),
            external: scope(self.external_local),
            affinity_seconds: None,
            source_ranges: if self.ranged { ranges.collect() } else { Vec::new() },
            reject: if self.icmp_reject { Reject::Icmp } else { Reject::Rst },
            forwarding: Default::default(),
            algorithm: if self.random { Algorithm::Random } else { Algorithm::Maglev },
            health_check_port: None,
        }
    }
}

/// The cluster that a sequence runs in.
#[derive(Debug, Clone, Copy)]
pub struct World {
    pub workers: u8,
    pub mode: Mode,
    pub underlay: Underlay,
    /// Few ports outside: they run out. For one worker, which then owns all of them.
    pub few_ports: bool,
}

impl World {
    /// First and last port for source NAT.
    pub const fn ports(&self) -> (u16, u16) {
        if self.few_ports { (20_000, 20_004) } else { (10_240, 29_999) }
    }

    /// The worker that a pod lives on.
    fn home(&self, pod: u8) -> u8 {
        pod % self.workers
    }

    fn changes(&self) -> Vec<Change> {
        let mut node = objects::node(self.mode, self.underlay);
        node.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd98::/108".parse().unwrap()];
        let (first, last) = self.ports();
        node.snat.ports = PortRange::new(first, last).unwrap();
        // Times that no sum of a sequence's pauses comes near.
        node.snat.timeouts.udp = 350;
        node.snat.rst_cooldown = 30;
        node.snat.non_masquerade = vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd12:3456::/48".parse().unwrap(),
            End::Outside(5).address(0).into(),
            End::Outside(5).address(1).into(),
        ];
        let mut changes = vec![Change::Set(Object::Node(node))];
        for peer in 1..3 {
            changes.push(Change::Set(Object::Peer(objects::peer(peer, self.mode))));
            changes.push(Change::Set(Object::Endpoint(objects::remote_pod(peer, 0))));
        }
        for pod in 0..PODS {
            let pod = objects::local_pod(pod, self.home(pod));
            changes.push(Change::Set(Object::Endpoint(pod)));
        }
        let gateway =
            EgressAction::Gateway { addresses: vec![pool(0), pool(1)], nodes: vec!["a".into()] };
        let rules = [(2, EgressAction::None), (3, EgressAction::Deny), (4, gateway)];
        for (number, action) in rules {
            let to = |family| End::Outside(number).address(family).into();
            changes.push(Change::Set(Object::Egress(Egress {
                name: format!("rule{number}"),
                order: u32::from(number),
                sources: Vec::new(),
                destinations: vec![to(0), to(1)],
                action,
            })));
        }
        changes
    }

    /// The node in memory, with a default route.
    pub fn node(&self) -> MemoryNode {
        let mut memory = MemoryNode::new(self.workers, self.changes());
        let gateways: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fe80::99".parse().unwrap()];
        let ways: Ways = [("0.0.0.0/0", gateways[0]), ("::/0", gateways[1])]
            .map(|(prefix, gateway)| (prefix.parse().unwrap(), Way::Gateway(gateway)))
            .into();
        let compiler = &mut memory.bench().compiler;
        compiler.set_ways(ways);
        for gateway in gateways {
            let adjacency = Adjacency { source: node::UPLINK_MAC, destination: ROUTER };
            compiler.set_gateway(gateway, Some(adjacency));
        }
        compiler.set_host_ports([HOST_PORT].into_iter().collect());
        memory.publish();
        memory
    }
}
