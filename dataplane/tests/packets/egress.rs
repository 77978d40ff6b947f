//! Pods leave the cluster with the node's address, or a gateway's, and the answers find them.
//!
//! ```text
//! pod1 10.244.1.10 -- [ a: 10.0.1.4 ] -- 10.0.0.1 -- 203.0.113.10
//! ```

use std::net::IpAddr;

use overlane_api::{
    Change, Egress, EgressAction, MacAddr, Mode, Node, Object, PortRange, Underlay,
};
use overlane_dataplane::tables::compile::underlay::{Way, Ways};
use overlane_dataplane::tables::peers::Adjacency;
use overlane_dataplane::testing::{Place, node, objects};

use super::bed::{Bed, FORWARDED, UPLINK, pod};
use super::build::{Body, IN, Packet, down, gateway_ip, node_ip, packet, pod_ip, up};
use super::icmp_error::{error, names, told};

const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
pub const OUT: (MacAddr, MacAddr) = (node::UPLINK_MAC, ROUTER);
const SYN: u8 = 2;
const ACK: u8 = 16;

pub fn outside(family: usize) -> IpAddr {
    OUTSIDE[family].parse().unwrap()
}

/// A node with a default route, changed by `change`.
pub fn bed(mode: Mode, workers: u8, queues: u8, change: impl FnOnce(&mut Node)) -> Bed {
    bed_over((mode, Underlay::Ipv4), workers, queues, change)
}

/// The same over that underlay.
pub fn bed_over(
    (mode, underlay): (Mode, Underlay),
    workers: u8,
    queues: u8,
    change: impl FnOnce(&mut Node),
) -> Bed {
    let mut changes = objects::cluster(mode, underlay, workers);
    if let Change::Set(Object::Node(node)) = &mut changes[0] {
        node.snat.non_masquerade =
            vec!["10.244.0.0/16".parse().unwrap(), "fd12:3456::/48".parse().unwrap()];
        change(node);
    }
    let mut bed = Bed {
        node: overlane_dataplane::testing::MemoryNode::with_uplink_queues(workers, queues, changes),
    };
    let gateways: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fe80::99".parse().unwrap()];
    let ways: Ways = [("0.0.0.0/0", gateways[0]), ("::/0", gateways[1])]
        .map(|(prefix, gateway)| (prefix.parse().unwrap(), Way::Gateway(gateway)))
        .into();
    let compiler = &mut bed.node.bench().compiler;
    compiler.set_ways(ways);
    for gateway in gateways {
        let adjacency = Adjacency { source: node::UPLINK_MAC, destination: ROUTER };
        compiler.set_gateway(gateway, Some(adjacency));
    }
    bed.node.publish();
    bed
}

/// A node with a default route and these services.
pub fn bed_with(workers: u8, services: Vec<overlane_api::Service>) -> Bed {
    let mut bed = bed(Mode::Geneve, workers, workers, |node| {
        node.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd98::/108".parse().unwrap()];
    });
    for service in services {
        bed.node.set(Object::Service(service)).unwrap();
    }
    bed.node.publish();
    bed
}

/// The port or identifier with which a frame left.
pub fn port_of(frame: &[u8], family: usize, is_ping: bool) -> u16 {
    let l4 = [34, 54][family] + if is_ping { 4 } else { 0 };
    u16::from_be_bytes([frame[l4], frame[l4 + 1]])
}

/// `sent` leaves with `address`; the answer comes back to the pod. Returns the port.
#[track_caller]
fn there_and_back(bed: &mut Bed, sent: &Packet, own_port: u16, address: IpAddr) -> u16 {
    let family = usize::from(sent.source.is_ipv6());
    let is_ping = matches!(sent.body, Body::Echo(..));
    let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    let port = port_of(&frame, family, is_ping);
    let remote_port = if is_ping { 0 } else { 443 };
    let left = sent.between((address, port), (sent.destination, remote_port)).ttl(63);
    assert_eq!(frame, left.frame(OUT));
    let reply = left.reply(b"answer");
    let seen = reply.between((sent.destination, remote_port), (sent.source, own_port)).ttl(63);
    bed.step(&UPLINK, &reply.frame(IN), &[(pod(0), seen.frame(down(0)))], FORWARDED);
    port
}

#[test]
fn pods_leave_with_the_nodes_address_and_their_answers_find_them() {
    for mode in [Mode::Geneve, Mode::Vxlan, Mode::Native] {
        for family in 0..2 {
            let mut bed = bed(mode, 1, 1, |_| {});
            let (from, to) = (pod_ip(0, 0, family), outside(family));
            for (body, own) in [
                (Body::Segment(40_000, 443, SYN, Vec::new()), 40_000),
                (Body::Segment(40_000, 443, ACK, b"GET /".to_vec()), 40_000),
                (Body::Udp(41_000, 443, b"question".to_vec()), 41_000),
                (Body::Echo(false, 77, 1, b"ping".to_vec()), 77),
                (Body::Echo(false, 77, 2, b"ping".to_vec()), 77),
            ] {
                let port =
                    there_and_back(&mut bed, &packet(from, to, body), own, node_ip(0, family));
                assert!((10_240..30_000).contains(&port), "{port}");
            }
            assert_eq!(bed.node.flows(), 3);
            bed.close();
        }
    }
}

#[test]
fn a_port_of_the_range_is_kept() {
    let mut bed = bed(Mode::Geneve, 1, 1, |_| {});
    let sent = packet(pod_ip(0, 0, 0), outside(0), Body::Udp(20_000, 443, Vec::new()));
    assert_eq!(there_and_back(&mut bed, &sent, 20_000, node_ip(0, 0)), 20_000);
    bed.close();
}

#[test]
fn what_answers_no_flow_goes_nowhere_and_the_hosts_own_goes_to_it() {
    for family in 0..2 {
        let mut bed = bed(Mode::Geneve, 1, 1, |_| {});
        let sent =
            packet(pod_ip(0, 0, family), outside(family), Body::Udp(41_000, 443, Vec::new()));
        let port = there_and_back(&mut bed, &sent, 41_000, node_ip(0, family));
        // Another remote port, and another remote: filtering is address and port dependent.
        for (address, remote_port) in [(outside(family), 444), (node_ip(7, family), 443)] {
            let stray =
                packet(address, node_ip(0, family), Body::Udp(remote_port, port, Vec::new()));
            bed.drops(&UPLINK, &stray.frame(IN), "snat_unsolicited");
        }
        let ssh =
            packet(outside(family), node_ip(0, family), Body::Segment(50_000, 22, SYN, Vec::new()));
        let got = bed.send(&UPLINK, &ssh.frame(IN), super::bed::TO_HOST);
        assert_eq!(got[0].0, Place::Host);
        bed.close();
    }
}

#[test]
fn an_answer_that_another_worker_receives_is_handed_over() {
    for family in 0..2 {
        let mut bed = bed(Mode::Geneve, 2, 2, |_| {});
        let own = 41_000;
        let sent = packet(pod_ip(0, 0, family), outside(family), Body::Udp(own, 443, Vec::new()));
        let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
        let port = port_of(&frame, family, false);
        let left = sent.between((node_ip(0, family), port), (sent.destination, 443));
        let reply = left.reply(b"answer");
        let seen = reply.between((sent.destination, 443), (sent.source, own)).ttl(63);
        let moved = [("received", 2), ("sent", 2), ("handed_over", 1)];
        bed.step(&Place::Uplink(1), &reply.frame(IN), &[(pod(0), seen.frame(down(0)))], &moved);
        // And an error about it.
        let told = error(node_ip(7, family), &left, [(3, 3), (1, 4)], 0);
        let seen = error(node_ip(7, family), &sent, [(3, 3), (1, 4)], 0).ttl(63);
        bed.step(&Place::Uplink(1), &told.frame(IN), &[(pod(0), seen.frame(down(0)))], &moved);
        bed.close();
    }
}

#[test]
fn errors_from_outside_reach_the_pod_and_quote_what_it_sent() {
    for family in 0..2 {
        let mut bed = bed(Mode::Geneve, 1, 1, |_| {});
        for (body, own) in [
            (Body::Udp(41_000, 443, b"question".to_vec()), 41_000),
            (Body::Segment(42_000, 443, SYN, Vec::new()), 42_000),
            (Body::Echo(false, 9, 1, b"ping".to_vec()), 9),
        ] {
            let is_ping = own == 9;
            let sent = packet(pod_ip(0, 0, family), outside(family), body);
            let port = there_and_back(&mut bed, &sent, own, node_ip(0, family));
            let remote_port = if is_ping { 0 } else { 443 };
            let left =
                sent.between((node_ip(0, family), port), (sent.destination, remote_port)).ttl(60);
            for (from, kind, rest) in [
                (outside(family), [(3, 3), (1, 4)], 0),
                ("10.9.9.9".parse().unwrap(), [(3, 4), (2, 0)], 1400),
                ("10.9.9.9".parse().unwrap(), [(11, 0), (3, 0)], 0),
            ] {
                let from = if family == 1 && from.is_ipv4() { node_ip(9, 1) } else { from };
                let told = error(from, &left, kind, rest);
                let seen = error(from, &sent.clone().ttl(60), kind, rest).ttl(63);
                bed.step(&UPLINK, &told.frame(IN), &[(pod(0), seen.frame(down(0)))], FORWARDED);
            }
            // About a packet that was not sent.
            let mut forged = left.clone();
            forged.destination = node_ip(8, family);
            let told = error(outside(family), &forged, [(3, 3), (1, 4)], 0);
            let got = bed.send(&UPLINK, &told.frame(IN), super::bed::TO_HOST);
            assert_eq!(got[0].0, Place::Host);
        }
        bed.close();
    }
}

#[test]
fn when_every_port_is_used_the_next_flow_is_refused_and_another_remote_is_not() {
    let mut bed = bed(Mode::Geneve, 1, 1, |node| {
        node.snat.ports = PortRange::new(20_000, 20_127).unwrap();
    });
    let to = outside(0);
    let body = |port| Body::Udp(port, 443, Vec::new());
    let mut used = std::collections::HashSet::new();
    for port in 0..128 {
        let sent = packet(pod_ip(0, 0, 0), to, body(40_000 + port));
        let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
        assert!(used.insert(port_of(&frame, 0, false)));
    }
    let sent = packet(pod_ip(0, 0, 0), to, body(50_000));
    let answer = error(gateway_ip(0), &sent, [(3, 13), (1, 1)], 0);
    let moved = told("snat_ports_exhausted");
    bed.step(&pod(0), &sent.frame(up(0)), &[(pod(0), answer.frame(down(0)))], &names(&moved));
    let other = packet(pod_ip(0, 0, 0), "203.0.113.11".parse().unwrap(), body(50_000));
    bed.one(&pod(0), &other.frame(up(0)), &UPLINK, FORWARDED);
    // Two minutes after the last packet of UDP flows without answers their ports are free again.
    bed.node.wait(std::time::Duration::from_secs(130));
    bed.node.run();
    bed.node.wait(std::time::Duration::from_secs(2));
    bed.node.run();
    bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    bed.close();
}

#[test]
fn rules_say_who_leaves_how() {
    let rule = |name: &str, order, destination: &str, action| Egress {
        name: name.into(),
        order,
        sources: Vec::new(),
        destinations: vec![destination.parse().unwrap()],
        action,
    };
    let mut bed = bed(Mode::Geneve, 1, 1, |_| {});
    let pool: IpAddr = "198.51.100.7".parse().unwrap();
    let gateway =
        |node: &str| EgressAction::Gateway { addresses: vec![pool], nodes: vec![node.into()] };
    for rule in [
        rule("deny", 0, "203.0.113.0/28", EgressAction::Deny),
        rule("as-it-is", 1, "203.0.113.16/28", EgressAction::None),
        rule("gateway", 2, "203.0.113.32/28", gateway("a")),
        rule("nowhere", 3, "203.0.113.48/28", gateway("z")),
    ] {
        bed.node.set(Object::Egress(rule)).unwrap();
    }
    bed.node.publish();
    let sent = |last: u8| {
        packet(
            pod_ip(0, 0, 0),
            IpAddr::from([203, 0, 113, last]),
            Body::Udp(41_000, 443, Vec::new()),
        )
    };
    let answer = error(gateway_ip(0), &sent(1), [(3, 13), (1, 1)], 0);
    let moved = told("egress_denied");
    bed.step(&pod(0), &sent(1).frame(up(0)), &[(pod(0), answer.frame(down(0)))], &names(&moved));
    // Routed as it is: a firewall or the network's routes do the rest.
    for _ in 0..2 {
        let out = sent(17).ttl(63).frame(OUT);
        bed.step(&pod(0), &sent(17).frame(up(0)), &[(UPLINK, out)], FORWARDED);
    }
    there_and_back(&mut bed, &sent(33), 41_000, pool);
    let stray = packet(outside(0), pool, Body::Udp(444, 20_000, Vec::new()));
    let port = there_and_back(&mut bed, &sent(33), 41_000, pool);
    let stray = stray.between((outside(0), 444), (pool, port));
    bed.drops(&UPLINK, &stray.frame(IN), "snat_unsolicited");
    bed.drops(&pod(0), &sent(49).frame(up(0)), "egress_gateway_unknown");
    there_and_back(&mut bed, &sent(65), 41_000, node_ip(0, 0));
    bed.close();
}

#[test]
fn a_connection_from_before_is_not_given_another_port() {
    let mut bed = bed(Mode::Geneve, 1, 1, |_| {});
    let sent =
        packet(pod_ip(0, 0, 0), outside(0), Body::Segment(40_000, 443, ACK, b"more".to_vec()));
    bed.drops(&pod(0), &sent.frame(up(0)), "flow_unknown");
    let raw = packet(pod_ip(0, 0, 0), outside(0), Body::Raw(47, vec![0; 20]));
    bed.drops(&pod(0), &raw.frame(up(0)), "egress_protocol");
    bed.close();
}

#[test]
fn ports_on_which_the_host_listens_stay_the_hosts() {
    let kubelet = 10_250;
    let mut bed = bed(Mode::Geneve, 1, 1, |node| {
        node.snat.ports = PortRange::new(10_240, 10_259).unwrap();
    });
    let ports = [kubelet].into_iter().collect();
    assert!(bed.node.bench().compiler.set_host_ports(ports));
    bed.node.publish();
    let mut used = Vec::new();
    // The last one gets a port at random: of those that are left.
    for port in [10_251, 10_252, kubelet] {
        let sent = packet(pod_ip(0, 0, 0), outside(0), Body::Udp(port, 443, Vec::new()));
        used.push(there_and_back(&mut bed, &sent, port, node_ip(0, 0)));
    }
    assert!(used[..2] == [10_251, 10_252] && used[2] != kubelet, "{used:?}");
    for source in [outside(0), pod_ip(0, 1, 0)] {
        let asks = packet(source, node_ip(0, 0), Body::Segment(50_000, kubelet, SYN, Vec::new()));
        let (from, frame) = if source == outside(0) {
            (UPLINK, asks.frame(IN))
        } else {
            (pod(1), asks.frame(up(1)))
        };
        assert_eq!(bed.send(&from, &frame, super::bed::TO_HOST)[0].0, Place::Host);
    }
    bed.close();
}

#[test]
fn the_hosts_own_pings_are_answered_whatever_their_identifier() {
    for family in 0..2 {
        let mut bed = bed(Mode::Geneve, 1, 1, |_| {});
        let sent =
            packet(pod_ip(0, 0, family), outside(family), Body::Udp(41_000, 443, Vec::new()));
        // A number that a pod's flow leaves with.
        let id = there_and_back(&mut bed, &sent, 41_000, node_ip(0, family));
        for (source, from) in [(outside(family), UPLINK), (pod_ip(0, 1, family), pod(1))] {
            let reply =
                packet(source, node_ip(0, family), Body::Echo(true, id, 1, b"pong".to_vec()));
            let frame = if from == UPLINK { reply.frame(IN) } else { reply.frame(up(1)) };
            assert_eq!(bed.send(&from, &frame, super::bed::TO_HOST)[0].0, Place::Host);
        }
        bed.close();
    }
}
