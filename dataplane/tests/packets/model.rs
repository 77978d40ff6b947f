//! The whole node against a slow, obvious model of it: random clusters, random packets.
//!
//! The model finds the owner of an address by looking at every prefix there is, and says in a few
//! lines what must become of a packet.

use std::net::IpAddr;

use ipnet::IpNet;
use overlane_api::{Change, Mode, Object, Underlay};
use overlane_dataplane::testing::{MemoryNode, Place, objects};
use proptest::prelude::*;

use super::build::{
    Body, IN, OUT, Packet, Tunnel, between, down, flow_of, from_host, gateway_ip, node_ip, packet,
    pod_ip, to_host, up,
};

/// A pod: its node and number, the families that it has, its home if it is here.
#[derive(Debug, Clone)]
struct Pod {
    node: u8,
    number: u8,
    v4: bool,
    v6: bool,
    home: u8,
}

#[derive(Debug, Clone)]
struct Cluster {
    workers: u8,
    underlay: Underlay,
    /// Modes of nodes b, c, ...
    peers: Vec<Mode>,
    pods: Vec<Pod>,
}

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Owner {
    Pod(u8),
    Peer(u8),
    Host,
    Gateway,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    Pod(u8),
    Peer(u8),
    Host,
    /// To the host with the tunnel around it.
    HostAsItCame,
    Echoed,
    Dropped(&'static str),
}

impl Cluster {
    fn changes(&self) -> Vec<Change> {
        let node = objects::node(Mode::Geneve, self.underlay);
        let mut changes = vec![Change::Set(Object::Node(node))];
        for (peer, mode) in (1..).zip(&self.peers) {
            changes.push(Change::Set(Object::Peer(objects::peer(peer, *mode))));
        }
        for pod in &self.pods {
            let mut endpoint = match pod.node {
                0 => objects::local_pod(pod.number, pod.home),
                node => objects::remote_pod(node, pod.number),
            };
            endpoint.addresses.retain(|a| if a.is_ipv4() { pod.v4 } else { pod.v6 });
            changes.push(Change::Set(Object::Endpoint(endpoint)));
        }
        changes
    }

    fn has(&self, pod: &Pod, family: usize) -> bool {
        if family == 0 { pod.v4 } else { pod.v6 }
    }

    /// The owner of the longest prefix that has `address`.
    fn owner(&self, address: IpAddr) -> Option<Owner> {
        let family = usize::from(address.is_ipv6());
        let mut prefixes: Vec<(IpNet, Owner)> = vec![
            (node_ip(0, family).into(), Owner::Host),
            (gateway_ip(family).into(), Owner::Gateway),
        ];
        for peer in (1..).take(self.peers.len()) {
            prefixes.push((node_ip(peer, family).into(), Owner::Peer(peer)));
            prefixes.push((objects::pod_cidrs(peer)[family], Owner::Peer(peer)));
        }
        for pod in self.pods.iter().filter(|pod| self.has(pod, family)) {
            let owner = if pod.node == 0 { Owner::Pod(pod.number) } else { Owner::Peer(pod.node) };
            prefixes.push((pod_ip(pod.node, pod.number, family).into(), owner));
        }
        let matching = prefixes.into_iter().filter(|(prefix, _)| prefix.contains(&address));
        matching.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, owner)| owner)
    }

    fn mode(&self, peer: u8) -> Option<Mode> {
        self.peers.get(usize::from(peer) - 1).copied()
    }

    /// Largest packet to an owner.
    fn mtu(&self, owner: Owner) -> usize {
        let overhead = if self.underlay == Underlay::Ipv4 { 50 } else { 70 };
        match owner {
            Owner::Peer(peer) if !self.mode(peer).is_some_and(Mode::is_tunnel) => 1500,
            Owner::Peer(_) | Owner::Pod(_) => 1500 - overhead,
            _ => usize::MAX,
        }
    }

    fn forward(&self, sent: &Packet, owner: Owner) -> Fate {
        if sent.ttl <= 1 {
            return Fate::Dropped("ttl_expired");
        }
        if sent.ip().len() > self.mtu(owner) {
            return Fate::Dropped("packet_too_big");
        }
        match owner {
            Owner::Pod(number) => Fate::Pod(number),
            Owner::Peer(peer) => Fate::Peer(peer),
            _ => unreachable!("not forwarded"),
        }
    }

    /// What becomes of a packet from local pod `number`, or from the host.
    fn fate_inside(&self, number: Option<u8>, sent: &Packet) -> Fate {
        let source = self.owner(sent.source);
        let spoofed = match number {
            Some(number) => source != Some(Owner::Pod(number)),
            None => matches!(source, Some(Owner::Pod(_) | Owner::Peer(_) | Owner::Gateway)),
        };
        if spoofed {
            return Fate::Dropped("spoofed_source");
        }
        match self.owner(sent.destination) {
            Some(owner @ (Owner::Pod(_) | Owner::Peer(_))) => self.forward(sent, owner),
            Some(Owner::Host) => Fate::Host,
            Some(Owner::Gateway) if matches!(sent.body, Body::Echo(false, ..)) => Fate::Echoed,
            _ => Fate::Dropped("no_route"),
        }
    }

    /// What becomes of a packet out of a tunnel of `mode` from `peer`.
    fn fate_tunnel(&self, peer: u8, mode: Mode, sent: &Packet) -> Fate {
        if !self.peers.contains(&mode) && mode != Mode::Geneve {
            // Nobody uses the port.
            return Fate::HostAsItCame;
        }
        match self.mode(peer) {
            None => return Fate::Dropped("tunnel_unknown_peer"),
            Some(right) if right != mode => return Fate::Dropped("tunnel_mode_mismatch"),
            Some(_) => {}
        }
        if self.owner(sent.source) != Some(Owner::Peer(peer)) {
            return Fate::Dropped("inner_spoofed_source");
        }
        match self.owner(sent.destination) {
            Some(owner @ Owner::Pod(_)) => self.forward(sent, owner),
            Some(Owner::Peer(_)) => Fate::Dropped("inner_not_here"),
            Some(Owner::Host) => Fate::Host,
            _ => Fate::Dropped("no_route"),
        }
    }

    /// What becomes of a packet that arrives on the uplink as it is.
    fn fate_underlay(&self, sent: &Packet) -> Fate {
        let Some(owner @ Owner::Pod(_)) = self.owner(sent.destination) else { return Fate::Host };
        match self.owner(sent.source) {
            Some(Owner::Pod(_) | Owner::Host | Owner::Gateway) => Fate::Dropped("spoofed_source"),
            Some(Owner::Peer(peer)) if self.mode(peer).is_some_and(Mode::is_tunnel) => {
                Fate::Dropped("tunnel_mode_mismatch")
            }
            _ => self.forward(sent, owner),
        }
    }
}

/// Where a packet comes in.
#[derive(Debug, Clone, Copy)]
enum Way {
    Pod(u8),
    Host,
    Tunnel(u8, Mode),
    Underlay,
}

fn clusters() -> impl Strategy<Value = Cluster> {
    let mode = prop_oneof![Just(Mode::Geneve), Just(Mode::Vxlan), Just(Mode::Native)];
    let peers = prop::collection::vec(mode, 0..4);
    let pods = prop::collection::btree_map((0_u8..4, 0_u8..3), (0_u8..3, 0_u8..3), 1..9);
    let underlay = prop_oneof![Just(Underlay::Ipv4), Just(Underlay::Ipv6)];
    (1_u8..4, underlay, peers, pods).prop_map(|(workers, underlay, peers, pods)| {
        let pods = pods
            .into_iter()
            .filter(|((node, _), _)| usize::from(*node) <= peers.len())
            .map(|((node, number), (families, home))| Pod {
                node,
                number,
                v4: families != 1,
                v6: families != 0,
                home: home % workers,
            })
            .collect();
        Cluster { workers, underlay, peers, pods }
    })
}

/// An address of the cluster, of nobody in it, or of nobody at all.
fn addresses(family: usize) -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        6 => (0_u8..5, 0_u8..4).prop_map(move |(node, pod)| pod_ip(node, pod, family)),
        2 => (0_u8..5).prop_map(move |node| node_ip(node, family)),
        1 => Just(gateway_ip(family)),
        1 => Just(["203.0.113.10", "2001:db8:113::10"][family].parse().unwrap()),
    ]
}

fn ways() -> impl Strategy<Value = Way> {
    let mode = prop_oneof![Just(Mode::Geneve), Just(Mode::Vxlan)];
    prop_oneof![
        4 => (0_u8..3).prop_map(Way::Pod),
        1 => Just(Way::Host),
        4 => (1_u8..5, mode).prop_map(|(peer, mode)| Way::Tunnel(peer, mode)),
        1 => Just(Way::Underlay),
    ]
}

/// A way in, and a packet that has the right source there more often than not.
fn packets() -> impl Strategy<Value = (Way, Packet)> {
    (ways(), 0_usize..2).prop_flat_map(|(way, family)| {
        let fitting = match way {
            Way::Pod(number) => pod_ip(0, number, family),
            Way::Host => node_ip(0, family),
            Way::Tunnel(peer, _) => pod_ip(peer, 0, family),
            Way::Underlay => ["203.0.113.9", "2001:db8:113::9"][family].parse().unwrap(),
        };
        let source = prop_oneof![4 => Just(fitting), 1 => addresses(family)];
        let ttl = prop_oneof![4 => Just(64_u8), 1 => 0_u8..4];
        let len = prop_oneof![4 => 0_usize..200, 1 => 1350_usize..1453];
        let body = (0_u8..3, any::<u16>(), len).prop_map(|(kind, port, len)| match kind {
            0 => Body::Udp(port, 53, vec![1; len]),
            1 => Body::Tcp(port, 80, vec![2; len]),
            _ => Body::Echo(false, port, 1, vec![3; len]),
        });
        (Just(way), source, addresses(family), ttl, body).prop_map(
            |(way, source, destination, ttl, body)| {
                (way, packet(source, destination, body).ttl(ttl))
            },
        )
    })
}

fn check(cluster: &Cluster, traffic: &[(Way, Packet)]) -> Result<(), TestCaseError> {
    let mut node = MemoryNode::new(cluster.workers, cluster.changes());
    for (number, (way, sent)) in traffic.iter().enumerate() {
        let queue = Place::Uplink(number % usize::from(cluster.workers));
        let (place, frame, fate) = match *way {
            Way::Pod(number) => {
                let frame = sent.frame(up(number));
                (
                    Place::Pod(objects::pod_name(0, number)),
                    frame,
                    cluster.fate_inside(Some(number), sent),
                )
            }
            Way::Host => (Place::Host, sent.frame(from_host()), cluster.fate_inside(None, sent)),
            Way::Tunnel(peer, mode) => {
                let tunnel = Tunnel::from_peer(peer, mode, cluster.underlay);
                let frame = tunnel.wrap(&sent.frame(between(peer, 0)));
                (queue, frame, cluster.fate_tunnel(peer, mode, sent))
            }
            Way::Underlay => (queue, sent.frame(IN), cluster.fate_underlay(sent)),
        };
        let before = node.counters();
        if !node.inject(&place, &frame) {
            // That pod is not here.
            continue;
        }
        node.run();
        node.check_books().map_err(TestCaseError::fail)?;
        let after = node.counters();
        let out = node.collect();
        let hopped = |sent: &Packet| sent.clone().ttl(sent.ttl.wrapping_sub(1));
        let expected = match &fate {
            Fate::Pod(number) => {
                (Place::Pod(objects::pod_name(0, *number)), hopped(sent).frame(down(*number)))
            }
            Fate::Echoed => {
                let payload = match &sent.body {
                    Body::Echo(_, _, _, payload) => payload.clone(),
                    _ => Vec::new(),
                };
                // The answer has the question's TTL.
                let answer = sent.reply(&payload).ttl(sent.ttl);
                let macs = if place == Place::Host { to_host() } else { (up(0).1, sender(&frame)) };
                (place, answer.frame(macs))
            }
            Fate::Host => (Place::Host, sent.frame(to_host())),
            Fate::HostAsItCame => {
                // But for the Ethernet header.
                let ip = &frame[14..];
                (Place::Host, super::build::ethernet(to_host(), ethertype(&frame), ip))
            }
            Fate::Peer(peer) => {
                prop_assert_eq!(out.len(), 1, "{:?} {:?}", way, node.drops());
                let mode = cluster.mode(*peer).unwrap();
                let frame = if mode.is_tunnel() {
                    let flow = flow_of(&out[0].1);
                    prop_assert!(flow.0 >= 49152);
                    Tunnel::to_peer(*peer, mode, cluster.underlay, flow)
                        .wrap(&hopped(sent).frame(between(0, *peer)))
                } else {
                    hopped(sent).frame(OUT)
                };
                (out[0].0.clone(), frame)
            }
            Fate::Dropped(reason) => {
                let reason = overlane_dataplane::packet::drop::DropReason::ALL
                    .iter()
                    .find(|known| known.name() == *reason)
                    .unwrap();
                let by = after.dropped[*reason as usize] - before.dropped[*reason as usize];
                prop_assert!(by >= 1, "{:?} {:?}: expected {:?}", way, sent, reason);
                // An answer at most, and it may have nowhere to go.
                let answers = after.generated - before.generated;
                prop_assert!(answers <= 1 && out.len() as u64 <= answers);
                continue;
            }
        };
        prop_assert_eq!(after.dropped_total(), before.dropped_total(), "{:?} {:?}", way, sent);
        prop_assert_eq!(out, vec![expected], "{:?} {:?} -> {:?}", way, sent, fate);
    }
    node.close().map_err(TestCaseError::fail)
}

fn sender(frame: &[u8]) -> overlane_api::MacAddr {
    overlane_api::MacAddr(frame[6..12].try_into().unwrap())
}

fn ethertype(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[12], frame[13]])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn the_node_does_what_the_model_says(
        cluster in clusters(),
        traffic in prop::collection::vec(packets(), 1..60),
    ) {
        check(&cluster, &traffic)?;
    }
}

#[test]
fn the_model_can_disagree() {
    let cluster = Cluster {
        workers: 1,
        underlay: Underlay::Ipv4,
        peers: vec![Mode::Geneve],
        pods: vec![Pod { node: 0, number: 0, v4: true, v6: true, home: 0 }],
    };
    let sent = packet(pod_ip(0, 0, 0), pod_ip(1, 0, 0), Body::Udp(1, 2, vec![]));
    assert!(check(&cluster, &[(Way::Pod(0), sent.clone())]).is_ok());
    // The tables say one thing and the model another.
    let mut node = MemoryNode::new(1, cluster.changes());
    assert!(node.inject(&Place::Pod(objects::pod_name(0, 0)), &sent.ttl(1).frame(up(0))));
    node.run();
    assert_eq!(
        cluster.fate_inside(
            Some(0),
            &packet(pod_ip(0, 0, 0), pod_ip(1, 0, 0), Body::Udp(1, 2, vec![]))
        ),
        Fate::Peer(1)
    );
    assert_eq!(node.drops().len(), 1);
    let _ = node.collect();
    node.close().unwrap();
}
