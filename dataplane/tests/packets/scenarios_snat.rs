//! Scenarios of source NAT by name: part B of the table in `dataplane/tests/README.md`.
//!
//! ```text
//! pod1, pod2 -- [ a: 10.0.1.4 ] -- router -- 203.0.113.10 and its neighbors
//! ```

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use overlane_api::flow::FlowFilter;
use overlane_api::protocol::{Op, Reply};
use overlane_api::{
    Attachment, Change, Egress, EgressAction, Endpoint, Frontend, FrontendKind, Mode, Node, Object,
    ObjectKey, PortRange, Protocol, Underlay, WorkerId,
};
use overlane_dataplane::flow::flows::Flows;
use overlane_dataplane::tables::egress::{Holder, Pool};
use overlane_dataplane::testing::objects;
use overlane_dataplane::worker::Command;

use super::bed::{FORWARDED, UPLINK, pod};
use super::build::{Body, IN, Packet, down, gateway_ip, packet, pod_ip, up};
use super::egress::{OUT, bed_with, outside};
use super::icmp_error::{error, names, told};
use super::nat_rig::{ACK, Rig, SYN, each, flagged, ping, ports, tcp, udp, with};
use super::services::{service, vip};
use super::services_outside::{NODE_PORT, exposed_as};

#[test]
fn snat_tcp_udp_v4_v6() {
    each(|rig| {
        for body in [tcp(40_000, 443, SYN), tcp(40_000, 443, ACK), udp(40_000, 443)] {
            let sent = rig.packet_of(0, 0, body);
            let left = rig.round_trip(0, &sent);
            assert_eq!(left.source, rig.own());
        }
    });
}

fn purge(rig: &mut Rig) -> u64 {
    match rig.bed.node.bench().ask(&Op::FlushFlows { filter: FlowFilter::default() }) {
        Some(Ok(Reply::Flushed { flows })) => flows,
        other => panic!("{other:?}"),
    }
}

/// The node as the rig has it, with these ranges besides that see pods' own addresses.
fn exempting(ranges: &[&str]) -> Node {
    let mut node = objects::node(Mode::Geneve, Underlay::Ipv4);
    let all = ["10.244.0.0/16", "fd12:3456::/48"].iter().chain(ranges);
    node.snat.non_masquerade = all.map(|range| range.parse().unwrap()).collect();
    node
}

/// New flows follow at once; one that there is keeps its address, for another would break it.
#[test]
fn snat_exclude_prefix_added() {
    each(|rig| {
        let old = rig.packet_of(0, 0, udp(40_000, 443));
        let mapped = rig.round_trip(0, &old);
        rig.bed
            .node
            .set(Object::Node(exempting(&["203.0.113.10/32", "2001:db8:113::10/128"])))
            .unwrap();
        let sent = rig.packet_of(0, 0, udp(40_001, 443));
        let plain = sent.clone().ttl(63).frame(OUT);
        rig.bed.step(&pod(0), &sent.frame(up(0)), &[(UPLINK, plain)], FORWARDED);
        // Others in between are translated still.
        let other = rig.packet_of(0, 1, udp(40_001, 443));
        assert_eq!(rig.round_trip(0, &other).source, rig.own());
        assert_eq!(rig.round_trip(0, &old), mapped);
    });
}

#[test]
fn snat_exclude_prefix_removed() {
    each(|rig| {
        rig.bed
            .node
            .set(Object::Node(exempting(&["203.0.113.0/24", "2001:db8:113::/64"])))
            .unwrap();
        let sent = rig.packet_of(0, 0, udp(40_000, 443));
        let plain = sent.clone().ttl(63).frame(OUT);
        rig.bed.step(&pod(0), &sent.frame(up(0)), &[(UPLINK, plain)], FORWARDED);
        rig.bed.node.set(Object::Node(exempting(&[]))).unwrap();
        purge(rig);
        assert_eq!(rig.round_trip(0, &sent).source, rig.own());
    });
}

#[test]
fn snat_icmp_echo_id_mapped() {
    each(|rig| {
        let both = [(0, 777), (1, 777)].map(|(pod, id)| (pod, rig.packet_of(pod, 0, ping(id))));
        let left = both.each_ref().map(|(pod, sent)| rig.round_trip(*pod, sent));
        assert_ne!(ports(&left[0]), ports(&left[1]), "told apart outside");
        assert!(left.iter().all(|left| left.source == rig.own()));
    });
}

#[test]
fn snat_icmp_error_return() {
    each(|rig| {
        for body in [udp(40_000, 443), tcp(40_000, 443, SYN), ping(7)] {
            let sent = rig.packet_of(0, 0, body);
            let left = rig.leaves(0, &sent);
            rig.is_told(0, &sent, &left, [(3, 3), (1, 4)]);
        }
    });
}

/// The first hop of a traceroute: the pod hears of what it sent, whether or not it has a flow.
#[test]
fn snat_ttl1_time_exceeded_local() {
    each(|rig| {
        for body in [udp(40_000, 443), tcp(40_000, 443, SYN), ping(7)] {
            let sent = rig.packet_of(0, 0, body);
            rig.refused(0, &sent.clone().ttl(1), "ttl_expired", [(11, 0), (3, 0)]);
            rig.round_trip(0, &sent);
            rig.refused(0, &sent.ttl(1), "ttl_expired", [(11, 0), (3, 0)]);
        }
    });
}

#[test]
fn snat_ttl_expired_upstream() {
    each(|rig| {
        for body in [udp(40_000, 443), tcp(40_000, 443, SYN), ping(7)] {
            for ttl in 2..5 {
                let sent = rig.packet_of(0, 0, body.clone()).ttl(ttl);
                let left = rig.leaves(0, &sent);
                // As it was when it died.
                rig.is_told(0, &sent, &left.ttl(1), [(11, 0), (3, 0)]);
            }
        }
    });
}

/// A pod is the tenant here.
#[test]
fn snat_session_limit_per_vrf() {
    with(
        |node| node.snat.max_ports_per_pod = Some(4),
        |rig| {
            let sent: Vec<Packet> = (0..4).map(|n| rig.packet_of(0, n, udp(40_000, 443))).collect();
            for sent in &sent {
                rig.round_trip(0, sent);
            }
            for n in 4..9 {
                let more = rig.packet_of(0, n, udp(40_000, 443));
                rig.refused(0, &more, "snat_pod_limit", [(3, 13), (1, 1)]);
            }
            for sent in &sent {
                rig.round_trip(0, sent);
            }
            for n in 0..4 {
                let other = rig.packet_of(1, n, udp(40_000, 443));
                rig.round_trip(1, &other);
            }
            assert_eq!(rig.bed.node.flows(), 8);
        },
    );
}

/// A worker with room for so many flows.
fn small(rig: &mut Rig, capacity: u32) {
    let (done, taken) = crossbeam::channel::bounded(1);
    let tables = Box::new(Flows::tables(capacity).unwrap());
    rig.bed.node.bench().tell(WorkerId(0), Command::FlowTables { tables, done });
    assert!(taken.recv().unwrap().0, "nothing was there");
}

/// Answered flows of pod 1, until one is refused. How many there are.
fn fill(rig: &mut Rig, body: impl Fn(u16) -> Body) -> u16 {
    for n in 0..1000 {
        let sent = rig.packet_of(0, 0, body(20_000 + n));
        let before = rig.bed.node.counters();
        assert!(rig.bed.node.inject(&pod(0), &sent.frame(up(0))));
        rig.bed.node.run();
        let got = rig.bed.node.collect();
        let Some((place, frame)) = got.first() else {
            let full = overlane_dataplane::packet::drop::DropReason::FlowTableFull as usize;
            assert_eq!(rig.bed.node.counters().dropped[full], before.dropped[full] + 1);
            return n;
        };
        assert_eq!(place, &UPLINK);
        let left = sent.between((rig.own(), 20_000 + n), (sent.destination, 443)).ttl(63);
        assert_eq!(*frame, left.frame(OUT));
        rig.reaches(0, &sent, &left.reply(b"answer"));
    }
    panic!("never full");
}

#[test]
fn snat_session_limit_global() {
    each(|rig| {
        small(rig, 64);
        let fitted = fill(rig, |port| udp(port, 443));
        // The last twentieth is for connections.
        assert!((56..64).contains(&fitted), "{fitted}");
        for n in 0..20 {
            let more = rig.packet_of(1, 1, udp(21_000 + n, 443));
            rig.bed.drops(&pod(1), &more.frame(up(1)), "flow_table_full");
        }
        // Those there are go on.
        for n in 0..fitted {
            let sent = rig.packet_of(0, 0, udp(20_000 + n, 443));
            rig.leaves(0, &sent);
        }
        assert_eq!(rig.bed.node.flows(), u32::from(fitted));
    });
}

#[test]
fn snat_limit_recovers_after_purge() {
    each(|rig| {
        small(rig, 64);
        let fitted = fill(rig, |port| udp(port, 443));
        assert_eq!(purge(rig), u64::from(fitted));
        assert_eq!(fill(rig, |port| udp(port, 443)), fitted);
    });
}

#[test]
fn snat_edge_ports() {
    each(|rig| {
        for port in [0, 1, 1023, 1024, 10_239, 30_000, 65_535] {
            for body in [udp(port, 443), tcp(port, 443, SYN), ping(port)] {
                let sent = rig.packet_of(0, 0, body);
                let left = rig.round_trip(0, &sent);
                let given = ports(&left).0;
                assert!((10_240..30_000).contains(&given), "{given} for {port}");
            }
        }
    });
}

/// Without an address of its family nothing leaves, whatever the other family has.
#[test]
fn snat_no_pool_address_counted() {
    each(|rig| {
        let mut node = exempting(&[]);
        node.addresses.remove(rig.family);
        rig.bed.node.set(Object::Node(node)).unwrap();
        let sent = rig.packet_of(0, 0, udp(40_000, 443));
        for _ in 0..5 {
            rig.bed.drops(&pod(0), &sent.frame(up(0)), "egress_no_address");
        }
        assert_eq!(rig.bed.node.flows(), 0);
        rig.bed.node.set(Object::Node(exempting(&[]))).unwrap();
        rig.round_trip(0, &sent);
    });
}

fn two_ports(node: &mut Node) {
    node.snat.ports = PortRange::new(20_000, 20_063).unwrap();
}

#[test]
fn snat_ports_exhausted_counted() {
    with(two_ports, |rig| {
        let mut given = HashSet::new();
        for n in 0..64 {
            let sent = rig.packet_of(0, 0, udp(40_000 + n, 443));
            assert!(given.insert(ports(&rig.round_trip(0, &sent)).0), "twice");
        }
        for n in 0..10 {
            let sent = rig.packet_of(1, 0, udp(50_000 + n, 443));
            rig.refused(1, &sent, "snat_ports_exhausted", [(3, 13), (1, 1)]);
        }
        // Towards others they are free.
        let other = rig.packet_of(1, 1, udp(50_000, 443));
        rig.round_trip(1, &other);
    });
}

#[test]
fn snat_exhaustion_leaks_nothing() {
    with(two_ports, |rig| {
        for n in 0..64 {
            let sent = rig.packet_of(0, 0, udp(40_000 + n, 443));
            rig.round_trip(0, &sent);
        }
        for n in 0..40 {
            let sent = rig.packet_of(1, 0, udp(50_000 + n, 443));
            // Every byte that comes out is checked: nothing leaves, least of all as it came.
            rig.refused(1, &sent, "snat_ports_exhausted", [(3, 13), (1, 1)]);
        }
        assert_eq!(rig.bed.node.flows(), 64);
        rig.wait(310);
        for _ in 0..20 {
            rig.bed.node.run();
        }
        assert_eq!(rig.bed.node.flows(), 0);
        for n in 0..64 {
            let sent = rig.packet_of(1, 0, udp(50_000 + n, 443));
            rig.round_trip(1, &sent);
        }
    });
}

/// A gateway has sixteen addresses at most. 1,600 pods over them, and each keeps its own.
#[test]
fn snat_address_spread() {
    for family in 0..2 {
        let addresses: Vec<IpAddr> = (0..16_u8)
            .map(|n| {
                [format!("198.51.100.{}", n + 1), format!("2001:db8:100::{:x}", n + 1)][family]
                    .parse()
                    .unwrap()
            })
            .collect();
        let pool = Pool::new(&addresses, Holder::Here);
        let mut spread: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for node in 0..16 {
            for number in 0..100 {
                let own = pod_ip(node, number, family);
                let address = pool.paired(own).unwrap();
                assert_eq!(pool.paired(own), Some(address));
                *spread.entry(address).or_default() += 1;
            }
        }
        assert_eq!(spread.len(), 16);
        // A hundred each, give or take three standard deviations.
        assert!(spread.values().all(|count| (70..=130).contains(count)), "{spread:?}");
    }
}

/// A full table takes back what is over, and keeps a connection that is not.
#[test]
fn snat_lru_reuse_when_full() {
    each(|rig| {
        small(rig, 64);
        let connection = rig.packet_of(1, 5, tcp(25_000, 443, SYN));
        let left = rig.connect(1, &connection);
        let fitted = fill(rig, |port| udp(port, 443));
        rig.bed.node.wait(std::time::Duration::from_secs(301));
        // Without a sweep in between: each new flow finds room by itself.
        for n in 0..fitted {
            let sent = rig.packet_of(0, 1, udp(21_000 + n, 443));
            rig.leaves(0, &sent);
        }
        assert_eq!(rig.leaves(1, &flagged(&connection, ACK)), flagged(&left, ACK));
        rig.answers(1, &connection, &left, ACK);
    });
}

/// Pods reach a service's NodePort and its load balancer's address at this node: it is translated, and
/// so are the answers and errors. Pods see each other's own addresses.
#[test]
fn hairpin_snat_and_dnat() {
    for family in 0..2 {
        let service = exposed_as(service(0, Protocol::Udp, &[(0, 1)]));
        let mut bed = bed_with(1, vec![service.clone()]);
        for frontend in &service.frontends {
            if frontend.address.is_ipv6() != (family == 1) {
                continue;
            }
            let asked = (frontend.address, frontend.port);
            let (client, server) = ((pod_ip(0, 0, family), 41_000), (pod_ip(0, 1, family), 8080));
            let sent = packet(client.0, asked.0, udp(client.1, asked.1));
            let frame = bed.one(&pod(0), &sent.frame(up(0)), &pod(1), FORWARDED);
            let at = [34, 54][family];
            let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
            // One client port to three addresses of one backend: told apart by another port.
            let arrives = sent.between((client.0, port), server).ttl(63);
            assert_eq!(frame, arrives.frame(down(1)));
            let reply = arrives.reply(b"answer");
            let seen = reply.between(asked, client).ttl(63);
            bed.step(&pod(1), &reply.frame(up(1)), &[(pod(0), seen.frame(down(0)))], FORWARDED);
            let told = error(server.0, &arrives, [(3, 3), (1, 4)], 0);
            let seen = error(asked.0, &sent.clone().ttl(63), [(3, 3), (1, 4)], 0).ttl(63);
            bed.step(&pod(1), &told.frame(up(1)), &[(pod(0), seen.frame(down(0)))], FORWARDED);
        }
        assert_eq!(bed.node.flows(), 3);
        bed.close();
    }
}

/// GRE, and whatever else has no ports: dropped by name, in both directions, and no flow is left.
#[test]
fn unknown_l4_protocol() {
    each(|rig| {
        for protocol in [47, 50, 115] {
            let body = Body::Raw(protocol, vec![0; 32]);
            let sent = rig.packet_of(0, 0, body.clone());
            rig.bed.drops(&pod(0), &sent.frame(up(0)), "egress_protocol");
            // To the node itself it is the host's.
            rig.is_the_hosts(&packet(rig.outside(0), rig.own(), body));
        }
        assert_eq!(rig.bed.node.flows(), 0);
    });
}

/// A pod goes, and another one takes its place in the tables: it gets nothing of the old one's flows.
#[test]
fn delete_interface_index_reuse() {
    each(|rig| {
        let sent = rig.packet_of(1, 0, udp(40_000, 443));
        let left = rig.round_trip(1, &sent);
        rig.bed
            .node
            .apply(vec![Change::Remove(ObjectKey::Endpoint(objects::pod_name(0, 1)))])
            .unwrap();
        let next = Endpoint {
            name: "default/next".into(),
            addresses: objects::pod_addresses(0, 7),
            attachment: Attachment::Local {
                interface: "next".into(),
                mac: Some(objects::pod_mac(0, 7)),
                worker: Some(WorkerId(0)),
            },
        };
        rig.bed.node.set(Object::Endpoint(next)).unwrap();
        // The remote end is told, and quoted what it sent.
        let late = left.reply(b"for the old one");
        let answer = error(rig.own(), &late, [(3, 0), (1, 0)], 0);
        let out = [(UPLINK, answer.frame(OUT))];
        rig.bed.step(&UPLINK, &late.frame(IN), &out, &names(&told("no_route")));
        // The old one's name comes back with the same address: it is another pod.
        rig.bed
            .node
            .apply(vec![Change::Remove(ObjectKey::Endpoint("default/next".into()))])
            .unwrap();
        rig.bed.node.set(Object::Endpoint(objects::local_pod(1, 0))).unwrap();
        let fresh = rig.packet_of(1, 1, udp(40_000, 443));
        rig.round_trip(1, &fresh);
    });
}

/// The address of a gateway becomes a load balancer's as well, at the very port of a live connection:
/// the connection goes on, and new clients reach the service.
#[test]
fn static_mapping_over_dynamic() {
    for family in 0..2 {
        let pool: IpAddr = ["198.51.100.7", "2001:db8:100::7"][family].parse().unwrap();
        let mut rig = Rig { bed: bed_with(1, Vec::new()), family };
        let rule = Egress {
            name: "out".into(),
            order: 0,
            sources: Vec::new(),
            destinations: Vec::new(),
            action: EgressAction::Gateway { addresses: vec![pool], nodes: vec!["a".into()] },
        };
        rig.bed.node.set(Object::Egress(rule)).unwrap();
        let sent = rig.packet_of(0, 0, tcp(20_000, 443, SYN));
        let left = rig.connect(0, &sent);
        assert_eq!((left.source, ports(&left).0), (pool, 20_000));
        let mut over = service(0, Protocol::Tcp, &[(0, 1)]);
        let kind = FrontendKind::LoadBalancer;
        over.frontends.push(Frontend { address: pool, port: 20_000, kind });
        over.frontends.sort();
        if let Err(refused) = rig.bed.node.set(Object::Service(over)) {
            panic!("{refused}");
        }
        rig.answers(0, &sent, &left, ACK);
        assert_eq!(rig.leaves(0, &flagged(&sent, ACK)), flagged(&left, ACK));
        rig.answers(0, &sent, &left, ACK);
        rig.bed.close();
    }
}

/// What is said to whom by which address: a pod's answer to a client outside leaves as the service's, and
/// what it asks outside leaves as the node's.
#[test]
fn a_backend_is_a_client_too() {
    for family in 0..2 {
        let mut exposed = exposed_as(service(0, Protocol::Tcp, &[(0, 1)]));
        exposed.external = overlane_api::Scope::Local;
        let mut rig = Rig { bed: bed_with(1, vec![exposed]), family };
        let (client, asked) = ((outside(family), 50_000), (rig.own(), NODE_PORT));
        let sent = packet(client.0, asked.0, tcp(client.1, asked.1, SYN));
        let arrives = sent.between(client, (rig.pod(1), 8080)).ttl(63);
        rig.bed.step(&UPLINK, &sent.frame(IN), &[(pod(1), arrives.frame(down(1)))], FORWARDED);
        let reply = arrives.reply(b"");
        let seen = reply.between(asked, client).ttl(63);
        rig.bed.step(&pod(1), &reply.frame(up(1)), &[(UPLINK, seen.frame(OUT))], FORWARDED);
        let own = rig.packet_of(1, 0, tcp(8081, 50_000, SYN));
        rig.connect(1, &own);
        let other = packet(rig.pod(1), vip(0, family), tcp(9000, 80, SYN));
        let itself = other.between((gateway_ip(family), 9000), (rig.pod(1), 8080)).ttl(63);
        rig.bed.step(&pod(1), &other.frame(up(1)), &[(pod(1), itself.frame(down(1)))], FORWARDED);
        let nobody = packet(rig.pod(1), vip(0, family), tcp(9000, 81, SYN));
        assert_eq!(names(&told("service_unknown_port")).len(), 4);
        let got =
            rig.bed.send(&pod(1), &nobody.frame(up(1)), &names(&told("service_unknown_port")));
        assert_eq!(got[0].0, pod(1));
        rig.bed.close();
    }
}
