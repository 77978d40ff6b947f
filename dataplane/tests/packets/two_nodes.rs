//! Two nodes in memory, the router between them, and the outside behind it: what one end sends is
//! carried until somebody has it, and the router refuses what its links do not carry.
//!
//! ```text
//! pod1 -\                 link mtu                /- pod1
//!        [ a 10.0.1.4 ] ------------ [ b 10.0.1.5 ]
//! pod2 -/        \_____ router _____/             \- pod2
//!                         | outside mtu
//!                    203.0.113.10 (and who else is outside)
//! ```

use std::collections::VecDeque;
use std::net::IpAddr;

use overlane_api::{
    Attachment, Backend, Change, Egress, EgressAction, Endpoint, Forwarding, Frontend,
    FrontendKind, Mode, Node, Object, Protocol, Scope, Service, Underlay, WorkerId,
};
use overlane_dataplane::stages::Notice;
use overlane_dataplane::tables::compile::underlay::{Way, Ways};
use overlane_dataplane::tables::peers::Adjacency;
use overlane_dataplane::testing::{MemoryNode, Place, node, objects};

use super::build::{IN, Packet, ethernet, node_ip, pod_ip};
use super::egress::outside;
use super::icmp_error::error;
use super::services::{service, vip};

/// Who can send and receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A pod: of which node, and which.
    Pod(u8, u8),
    /// Whoever has an address that is none of the cluster's.
    Outside,
    /// A node's own stack.
    Host(u8),
}

/// A link's end: a node, or the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Node(u8),
    Outside,
}

pub const NODE_PORT: u16 = 30_080;

/// The load balancer's address, which node a answers for.
pub fn load_balancer(family: usize) -> IpAddr {
    ["198.51.100.80", "2001:db8:100::80"][family].parse().unwrap()
}

/// The gateway's address.
pub fn pool(family: usize) -> IpAddr {
    ["198.51.100.7", "2001:db8:100::7"][family].parse().unwrap()
}

/// The router, as it calls itself in errors.
pub fn router(family: usize) -> IpAddr {
    ["10.0.0.1", "2001:db8:ffff::1"][family].parse().unwrap()
}

/// What is the same on both nodes.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub mode: Mode,
    pub underlay: Underlay,
    pub protocol: Protocol,
    /// Node and number of the service's one backend.
    pub backend: (u8, u8),
    pub external: Scope,
    /// How the backend of another node answers clients outside.
    pub forwarding: Forwarding,
    /// The node that holds the gateway, if pods leave by it.
    pub gateway: Option<u8>,
}

/// The cluster at work.
pub struct TwoNodes {
    nodes: Vec<MemoryNode>,
    is_tunnel: bool,
    /// Node that holds the gateway's address.
    holder: u8,
    /// Largest packet between nodes, bytes.
    pub link_mtu: usize,
    /// Largest packet to and from the outside, bytes.
    pub outside_mtu: usize,
    /// Errors that the router has sent.
    pub router_errors: u32,
    /// The router refuses the next packet between a node and the outside, or between nodes without a
    /// tunnel, with this type and code.
    pub refuse_next: Option<[(u8, u8); 2]>,
}

fn adjacency() -> Adjacency {
    Adjacency { source: node::UPLINK_MAC, destination: node::NEXT_HOP_MAC }
}

fn describe(number: u8, cluster: &Cluster) -> Node {
    let mut node = objects::node(cluster.mode, cluster.underlay);
    node.name = char::from(b'a' + number).to_string();
    node.addresses = objects::node_addresses(number);
    node.pod_cidrs = objects::pod_cidrs(number);
    node.gateway_mac = objects::gateway_mac(number);
    node.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd98::/108".parse().unwrap()];
    node.snat.non_masquerade =
        vec!["10.244.0.0/16".parse().unwrap(), "fd12:3456::/48".parse().unwrap()];
    node
}

fn local(number: u8, pod: u8) -> Endpoint {
    Endpoint {
        name: objects::pod_name(number, pod),
        addresses: objects::pod_addresses(number, pod),
        attachment: Attachment::Local {
            interface: format!("pod{}", pod + 1),
            mac: Some(objects::pod_mac(number, pod)),
            worker: Some(WorkerId(0)),
        },
    }
}

fn exposed(number: u8, cluster: &Cluster) -> Service {
    let mut service = service(0, cluster.protocol, &[cluster.backend]);
    service.external = cluster.external;
    service.forwarding = cluster.forwarding;
    for backend in &mut service.backends {
        let is_local = cluster.backend.0 == number;
        *backend = Backend { local: is_local, use_local: is_local, ..*backend };
    }
    for family in 0..2 {
        let at = |address, port, kind| Frontend { address, port, kind };
        service.frontends.extend([
            at(node_ip(number, family), NODE_PORT, FrontendKind::NodePort),
            at(load_balancer(family), 80, FrontendKind::LoadBalancer),
        ]);
    }
    service.frontends.sort();
    service
}

fn start(number: u8, cluster: &Cluster) -> MemoryNode {
    let other = 1 - number;
    let mut changes = vec![
        Change::Set(Object::Node(describe(number, cluster))),
        Change::Set(Object::Peer(objects::peer(other, cluster.mode))),
    ];
    for pod in 0..2 {
        changes.push(Change::Set(Object::Endpoint(local(number, pod))));
        changes.push(Change::Set(Object::Endpoint(objects::remote_pod(other, pod))));
    }
    changes.push(Change::Set(Object::Service(exposed(number, cluster))));
    if let Some(holder) = cluster.gateway {
        let nodes = vec![char::from(b'a' + holder).to_string()];
        let addresses = vec![pool(0), pool(1)];
        changes.push(Change::Set(Object::Egress(Egress {
            name: "out".into(),
            order: 0,
            sources: Vec::new(),
            destinations: Vec::new(),
            action: EgressAction::Gateway { addresses, nodes },
        })));
    }
    let mut node = MemoryNode::new(1, changes);
    let gateways: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fe80::99".parse().unwrap()];
    let ways: Ways = [("0.0.0.0/0", gateways[0]), ("::/0", gateways[1])]
        .map(|(prefix, gateway)| (prefix.parse().unwrap(), Way::Gateway(gateway)))
        .into();
    let compiler = &mut node.bench().compiler;
    compiler.set_ways(ways);
    for gateway in gateways {
        compiler.set_gateway(gateway, Some(adjacency()));
    }
    node.publish();
    node
}

fn ends(ip: &[u8]) -> (IpAddr, IpAddr) {
    if ip[0] >> 4 == 4 {
        let at = |from: usize| <[u8; 4]>::try_from(&ip[from..from + 4]).unwrap();
        (at(12).into(), at(16).into())
    } else {
        let at = |from: usize| <[u8; 16]>::try_from(&ip[from..from + 16]).unwrap();
        (at(8).into(), at(24).into())
    }
}

impl TwoNodes {
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            nodes: (0..2).map(|number| start(number, cluster)).collect(),
            is_tunnel: cluster.mode.is_tunnel(),
            holder: cluster.gateway.unwrap_or(0),
            link_mtu: 1500,
            outside_mtu: 1500,
            router_errors: 0,
            refuse_next: None,
        }
    }

    /// `packet` is sent by `from`: who has received what, the packets as they arrived.
    pub fn send(&mut self, from: End, packet: &Packet) -> Vec<(End, Vec<u8>)> {
        let mut received = Vec::new();
        let mut ways = VecDeque::new();
        match from {
            End::Outside => self.carry(Wire::Outside, packet.ip(), &mut ways, &mut received),
            End::Pod(number, pod) => {
                let macs = (objects::pod_mac(number, pod), objects::gateway_mac(number));
                let place = Place::Pod(objects::pod_name(number, pod));
                ways.push_back((number, place, packet.frame(macs)));
            }
            End::Host(_) => panic!("hosts only listen"),
        }
        while let Some((number, place, frame)) = ways.pop_front() {
            let node = &mut self.nodes[usize::from(number)];
            assert!(node.inject(&place, &frame));
            node.run();
            node.check_books().unwrap();
            self.learn(number);
            for (place, frame) in self.nodes[usize::from(number)].collect() {
                match place {
                    Place::Uplink(_) => {
                        let wire = Wire::Node(number);
                        self.carry(wire, frame[14..].to_vec(), &mut ways, &mut received);
                    }
                    Place::Host => received.push((End::Host(number), frame[14..].to_vec())),
                    Place::Pod(name) => {
                        let is_it = |pod: &u8| objects::pod_name(number, *pod) == name;
                        let pod = (0..2).find(is_it).unwrap();
                        received.push((End::Pod(number, pod), frame[14..].to_vec()));
                    }
                }
            }
        }
        received
    }

    /// As the slow thread does.
    fn learn(&mut self, number: u8) {
        let node = &mut self.nodes[usize::from(number)];
        for notice in node.notices() {
            let Notice::PathMtu(address, mtu) = notice else { continue };
            let bench = node.bench();
            let peer = bench.compiler.peer_at(address).unwrap().name.clone();
            bench.compiler.set_path_mtu(&peer, Some(mtu));
            bench.publish();
        }
    }

    /// A packet on the underlay, as a router has it.
    fn carry(
        &mut self,
        from: Wire,
        ip: Vec<u8>,
        ways: &mut VecDeque<(u8, Place, Vec<u8>)>,
        received: &mut Vec<(End, Vec<u8>)>,
    ) {
        let (source, destination) = ends(&ip);
        let family = usize::from(source.is_ipv6());
        let to = self.behind(destination);
        let is_outside = from == Wire::Outside || to == Wire::Outside;
        let is_pod = (0..2).any(|n| (0..2).any(|pod| pod_ip(n, pod, family) == source));
        assert!(!(is_pod && is_outside), "a pod's address is seen outside: {source}");
        let mtu = if is_outside { self.outside_mtu } else { self.link_mtu };
        let refused = if is_outside || !self.is_tunnel { self.refuse_next.take() } else { None };
        if let Some(kind) = refused {
            return self.refuse(&ip, kind, 0, ways, received);
        }
        if ip.len() > mtu {
            assert!(family == 1 || ip[6] & 0x40 != 0, "all packets here have DF");
            return self.refuse(&ip, [(3, 4), (2, 0)], mtu as u32, ways, received);
        }
        match to {
            Wire::Node(number) => {
                let ethertype = [0x0800, 0x86dd][family];
                ways.push_back((number, Place::Uplink(0), ethernet(IN, ethertype, &ip)));
            }
            Wire::Outside => received.push((End::Outside, ip)),
        }
    }

    /// The router tells the source about its packet.
    fn refuse(
        &mut self,
        ip: &[u8],
        kind: [(u8, u8); 2],
        rest: u32,
        ways: &mut VecDeque<(u8, Place, Vec<u8>)>,
        received: &mut Vec<(End, Vec<u8>)>,
    ) {
        self.router_errors += 1;
        let (source, destination) = ends(ip);
        let family = usize::from(source.is_ipv6());
        let stand_in =
            super::build::packet(source, destination, super::build::Body::Raw(17, Vec::new()));
        let mut told = error(router(family), &stand_in, kind, rest);
        if let super::build::Body::Error(_, _, _, quoted) = &mut told.body {
            *quoted = ip[..ip.len().min([576 - 28, 1280 - 48][family])].to_vec();
        }
        // From the router itself: on no link that it refuses.
        match self.behind(source) {
            Wire::Node(number) => {
                ways.push_back((number, Place::Uplink(0), told.frame(IN)));
            }
            Wire::Outside => received.push((End::Outside, told.ip())),
        }
    }

    /// What the underlay has behind an address.
    fn behind(&self, address: IpAddr) -> Wire {
        let family = usize::from(address.is_ipv6());
        for number in 0..2 {
            let is_pod = objects::pod_cidrs(number).iter().any(|range| range.contains(&address));
            if node_ip(number, family) == address || is_pod {
                return Wire::Node(number);
            }
        }
        if address == load_balancer(family) {
            Wire::Node(0)
        } else if address == pool(family) {
            Wire::Node(self.holder)
        } else {
            Wire::Outside
        }
    }

    /// Drops of both nodes, for who looks at a failure.
    pub fn drops(&self) -> String {
        let of = |node: &MemoryNode| format!("{:?}", node.drops());
        self.nodes.iter().map(of).collect::<Vec<_>>().join(" | ")
    }

    /// All frames of both nodes are back.
    pub fn close(self) {
        for node in self.nodes {
            node.close().unwrap();
        }
    }
}

/// Who asks whom by which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    ClusterIp,
    NodePort,
    LoadBalancer,
    /// A load balancer's address; the backend's node answers the client itself.
    Direct,
    /// The same by a node port.
    DirectNodePort,
    /// Out of the cluster with the node's address.
    Snat,
    /// Out of the cluster with a gateway's, held by this node.
    Gateway(u8),
}

impl By {
    /// Does the backend's node answer the client itself?
    pub fn is_direct(self) -> bool {
        matches!(self, Self::Direct | Self::DirectNodePort)
    }
}

/// One way through the cluster: its ends, and the address that the client asks.
#[derive(Debug, Clone)]
pub struct Route {
    pub by: By,
    pub family: usize,
    pub client: (End, IpAddr),
    pub server: (End, IpAddr, u16),
    pub asked: (IpAddr, u16),
}

impl Route {
    /// `backend`: of the service.
    pub fn new(by: By, family: usize, backend: (u8, u8)) -> Self {
        let pod = (End::Pod(0, 0), pod_ip(0, 0, family));
        let stranger = (End::Outside, outside(family));
        let (number, its_pod) = backend;
        let behind = (End::Pod(number, its_pod), pod_ip(number, its_pod, family), 8080);
        let (client, server, asked) = match by {
            By::ClusterIp => (pod, behind, (vip(0, family), 80)),
            By::NodePort | By::DirectNodePort => {
                (stranger, behind, (node_ip(0, family), NODE_PORT))
            }
            By::LoadBalancer | By::Direct => (stranger, behind, (load_balancer(family), 80)),
            By::Snat | By::Gateway(_) => {
                (pod, (End::Outside, outside(family), 443), (outside(family), 443))
            }
        };
        Self { by, family, client, server, asked }
    }
}
