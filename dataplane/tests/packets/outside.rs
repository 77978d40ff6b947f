//! The outside of the cluster, by the node's own routes.
//!
//! ```text
//! 0.0.0.0/0, ::/0             by gateways 10.0.0.1, fe80::99
//! 10.0.0.0/16, fd00:10::/48   on the uplink's link
//! 192.168.0.0/16              by another interface
//! 10.244.2.128/25, 10.244.9.0/24   pods' ranges, whatever the node's routes say
//! ```

use std::net::IpAddr;

use overlane_api::{Change, MacAddr, Mode, Node, Object, Underlay};
use overlane_dataplane::packet::meta::Target;
use overlane_dataplane::stages::Notice;
use overlane_dataplane::tables::compile::Compiler;
use overlane_dataplane::tables::compile::underlay::{MAX_HOSTS, Way, Ways};
use overlane_dataplane::tables::peers::Adjacency;
use overlane_dataplane::testing::{node, objects};

use super::bed::{Bed, FORWARDED, UPLINK, expect, pod};
use super::build::{IN, Packet, between, down, node_ip, pod_ip, udp, up};

const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const GATEWAYS: [&str; 2] = ["10.0.0.1", "fe80::99"];
const NEIGHBORS: [&str; 2] = ["10.0.7.7", "fd00:10:0:7::7"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn adjacency(last: u8) -> Option<Adjacency> {
    let destination = MacAddr([2, 0, 0, 0, 1, last]);
    Some(Adjacency { source: node::UPLINK_MAC, destination })
}

fn ways() -> Ways {
    let [v4, v6] = GATEWAYS.map(|gateway| Way::Gateway(ip(gateway)));
    [
        ("0.0.0.0/0", v4),
        ("::/0", v6),
        ("10.0.0.0/16", Way::Link),
        ("fd00:10::/48", Way::Link),
        ("192.168.0.0/16", Way::Elsewhere),
        ("10.244.0.0/16", v4),
        ("10.244.2.128/25", v4),
        ("10.244.9.0/24", v4),
    ]
    .map(|(prefix, way)| (prefix.parse().unwrap(), way))
    .into()
}

/// The usual cluster, whose node has these routes; gateways are resolved.
fn bed(mode: Mode) -> Bed {
    let mut bed = Bed::new(mode, Underlay::Ipv4);
    assert!(bed.node.bench().compiler.set_ways(ways()));
    resolve_gateways(&mut bed);
    bed
}

fn resolve_gateways(bed: &mut Bed) {
    for (family, gateway) in (0..).zip(GATEWAYS) {
        bed.node.bench().compiler.set_gateway(ip(gateway), adjacency(family));
    }
    bed.node.publish();
}

fn target(compiler: &Compiler, address: &str) -> Target {
    compiler.snapshot().routes.get(ip(address)).target()
}

/// The packet is dropped without a route, and its sender told.
#[track_caller]
fn no_route(bed: &mut Bed, to: IpAddr, family: usize) {
    let sent = udp(pod_ip(0, 0, family), to, b"x");
    let told = [("received", 2), ("generated", 1), ("sent", 1), ("dropped.no_route", 1)];
    let got = bed.send(&pod(0), &sent.frame(up(0)), &told);
    assert!(matches!(&got[..], [(place, _)] if *place == pod(0)), "{to}: {got:?}");
}

#[test]
fn pods_of_the_underlay_reach_the_outside_by_the_nodes_gateway() {
    for (family, outside) in OUTSIDE.map(ip).into_iter().enumerate() {
        let mut bed = bed(Mode::Flat);
        let sent = udp(pod_ip(0, 0, family), outside, b"x");
        let there = adjacency(family as u8).unwrap().destination;
        let out = sent.clone().ttl(63).frame((node::UPLINK_MAC, there));
        bed.step(&pod(0), &sent.frame(up(0)), &[(UPLINK, out)], FORWARDED);
        assert!(bed.node.notices().is_empty(), "the gateway's next hop serves all");
        let spent = udp(pod_ip(0, 0, family), outside, b"x").ttl(1);
        let told = [("received", 2), ("generated", 1), ("sent", 1), ("dropped.ttl_expired", 1)];
        bed.send(&pod(0), &spent.frame(up(0)), &told);
        bed.close();
    }
}

#[test]
fn the_link_is_asked_address_by_address_and_other_interfaces_are_no_way() {
    for (family, neighbor) in NEIGHBORS.map(ip).into_iter().enumerate() {
        let mut bed = bed(Mode::Flat);
        let sent = udp(pod_ip(0, 0, family), neighbor, b"x");
        bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
        assert_eq!(bed.node.notices(), [Notice::NextHopWanted(neighbor)]);
        let before = bed.node.counters();
        bed.node.bench().compiler.set_next_hop(neighbor, adjacency(7));
        bed.node.publish();
        bed.node.run();
        expect(&bed.node, &before, &[("held", -1), ("sent", 1)]);
        assert_eq!(bed.node.collect().len(), 1);
        if family == 0 {
            no_route(&mut bed, ip("192.168.1.1"), family);
        }
        bed.close();
    }
}

#[test]
fn packets_wait_for_a_gateway_that_is_not_resolved() {
    let mut bed = Bed::new(Mode::Flat, Underlay::Ipv4);
    bed.node.bench().compiler.set_ways(ways());
    bed.node.publish();
    let sent = udp(pod_ip(0, 0, 1), ip(OUTSIDE[1]), b"x");
    bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
    assert!(bed.node.notices().is_empty(), "it is looked for already");
    let before = bed.node.counters();
    resolve_gateways(&mut bed);
    bed.node.run();
    expect(&bed.node, &before, &[("held", -1), ("sent", 1)]);
    assert_eq!(bed.node.collect().len(), 1);
    bed.close();
}

/// The port that the frame's packet was sent from; it is from the node's address, to `to`.
#[track_caller]
fn port_of(frame: &[u8], sent: &Packet, last: u8, family: usize) -> u16 {
    let l4 = [34, 54][family];
    let port = u16::from_be_bytes([frame[l4], frame[l4 + 1]]);
    let there = adjacency(last).unwrap().destination;
    let translated = sent.between((node_ip(0, family), port), (sent.destination, 2000)).ttl(63);
    assert_eq!(frame, translated.frame((node::UPLINK_MAC, there)));
    port
}

#[test]
fn no_pods_address_leaves_a_cluster_that_has_its_own() {
    for mode in [Mode::Geneve, Mode::Vxlan, Mode::Native] {
        let mut bed = bed(mode);
        for family in 0..2 {
            let pods = (pod_ip(0, 0, family), 1000);
            let answer = |bed: &mut Bed, sent: &Packet, port| {
                let there = (sent.destination, 2000);
                let reply = sent.reply(b"y");
                let back = reply.between(there, (node_ip(0, family), port)).frame(IN);
                let seen = reply.between(there, pods).ttl(63).frame(down(0));
                bed.step(&UPLINK, &back, &[(pod(0), seen)], FORWARDED);
            };
            let sent = udp(pods.0, ip(OUTSIDE[family]), b"x");
            let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
            let port = port_of(&frame, &sent, family as u8, family);
            answer(&mut bed, &sent, port);
            // On the link it waits, and leaves with the node's address as well.
            let neighbor = ip(NEIGHBORS[family]);
            let sent = udp(pods.0, neighbor, b"x");
            bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
            assert_eq!(bed.node.notices(), [Notice::NextHopWanted(neighbor)]);
            bed.node.bench().compiler.set_next_hop(neighbor, adjacency(7));
            bed.node.publish();
            bed.node.run();
            let left = bed.node.collect();
            let [(place, frame)] = &left[..] else { panic!("{left:?}") };
            assert_eq!(place, &UPLINK);
            let port = port_of(frame, &sent, 7, family);
            answer(&mut bed, &sent, port);
            // Pods and nodes are where they were.
            for to in [pod_ip(1, 0, family), node_ip(1, family)] {
                let sent = udp(pod_ip(0, 0, family), to, b"x");
                bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
            }
        }
        bed.close();
    }
}

#[test]
fn addresses_of_the_cluster_that_no_pod_has_never_leave_it() {
    for mode in [Mode::Geneve, Mode::Native] {
        let mut bed = bed(mode);
        for (family, addresses) in [
            (0, ["10.244.1.200", "10.244.9.9", "10.244.200.1"]),
            (1, ["fd12:3456:0:1::200", "fd12:3456:0:9::9", "fd12:3456:0:ffff::1"]),
        ] {
            for address in addresses {
                assert_eq!(target(&bed.node.bench().compiler, address), Target::None, "{address}");
                no_route(&mut bed, ip(address), family);
            }
        }
        // In b's range, where the node has a longer route.
        let compiler = &bed.node.bench().compiler;
        assert!(matches!(target(compiler, "10.244.2.200"), Target::Peer(_)));
        bed.close();
    }
}

#[test]
fn what_comes_in_does_not_go_out_again() {
    for mode in [Mode::Geneve, Mode::Native] {
        let mut bed = bed(mode);
        let from = udp(ip("10.0.9.9"), ip(OUTSIDE[0]), b"x");
        let got = bed.send(&UPLINK, &from.frame(IN), super::bed::TO_HOST);
        assert_eq!(got.len(), 1, "the host's stack knows what to do with it");
        if mode.is_tunnel() {
            let tunnel = super::build::Tunnel::from_peer(1, mode, Underlay::Ipv4);
            let inner = udp(pod_ip(1, 0, 0), ip(OUTSIDE[0]), b"x");
            bed.drops(&UPLINK, &tunnel.wrap(&inner.frame(between(1, 0))), "inner_not_here");
        }
        bed.close();
    }
}

#[test]
fn routes_that_change_are_followed_and_places_are_used_again() {
    let mut compiler = Compiler::new(1);
    assert!(compiler.set_ways(ways()));
    assert!(!compiler.set_ways(ways()), "nothing is different");
    assert_eq!(target(&compiler, OUTSIDE[0]), Target::None, "there is no node yet");
    let node = Change::Set(Object::Node(objects::node(Mode::Native, Underlay::Ipv4)));
    compiler.apply(vec![node]).unwrap();
    let places = |compiler: &Compiler| {
        OUTSIDE.map(|address| match target(compiler, address) {
            Target::Underlay(place) => place,
            other => panic!("{other:?}"),
        })
    };
    let [v4, v6] = places(&compiler);
    assert_ne!(v4, v6);
    compiler.set_gateway(ip(GATEWAYS[0]), adjacency(1));
    let hop = |compiler: &Compiler, place| *compiler.snapshot().next_hops.get(place).unwrap();
    assert_eq!((hop(&compiler, v4), hop(&compiler, v6)), (adjacency(1), None));
    // Another route by the same gateway: the next hop is known already.
    let mut more = ways();
    more.insert("198.51.100.0/24".parse().unwrap(), Way::Gateway(ip(GATEWAYS[0])));
    assert!(compiler.set_ways(more));
    assert_eq!(target(&compiler, "198.51.100.1"), Target::Underlay(v4));
    assert_eq!(hop(&compiler, v4), adjacency(1));
    // Another gateway: it is not resolved, and the old one's place is cleared.
    for turn in 2..10 {
        let gateway = IpAddr::from([10, 0, 0, turn]);
        let way = ("0.0.0.0/0".parse().unwrap(), Way::Gateway(gateway));
        assert!(compiler.set_ways([way].into()));
        let Target::Underlay(place) = target(&compiler, OUTSIDE[0]) else { panic!("no way") };
        assert_eq!(hop(&compiler, place), None);
        compiler.set_gateway(gateway, adjacency(turn));
        assert_eq!(hop(&compiler, place), adjacency(turn));
    }
    assert!(compiler.snapshot().next_hops.len() <= 4, "places are used again");
    compiler.set_gateway(ip(GATEWAYS[0]), adjacency(99));
    assert_eq!(target(&compiler, OUTSIDE[1]), Target::None);
    assert!(compiler.set_ways(Ways::new()));
    assert_eq!(target(&compiler, OUTSIDE[0]), Target::None);
}

#[test]
fn an_address_that_is_no_longer_on_the_link_is_forgotten() {
    let mut compiler = Compiler::new(1);
    let node = |edit: &dyn Fn(&mut Node)| {
        let mut node = objects::node(Mode::Native, Underlay::Ipv4);
        edit(&mut node);
        vec![Change::Set(Object::Node(node))]
    };
    compiler.apply(node(&|_| ())).unwrap();
    compiler.set_ways(ways());
    let learn = |compiler: &mut Compiler, address: &str| {
        compiler.set_next_hop(ip(address), adjacency(7));
        matches!(target(compiler, address), Target::Underlay(_))
            && compiler.snapshot().routes.host(ip(address)).is_some()
    };
    assert!(learn(&mut compiler, "10.0.7.7"));
    // Those have their routes, and nothing is learned about them.
    for address in ["10.0.1.4", "10.244.3.3", "203.0.113.10", "192.168.1.1"] {
        assert!(!learn(&mut compiler, address), "{address}");
    }
    // The node's pods get a range there.
    compiler.apply(node(&|n| n.cluster_cidrs.push("10.0.7.0/24".parse().unwrap()))).unwrap();
    assert_eq!(target(&compiler, "10.0.7.7"), Target::None);
    assert!(!learn(&mut compiler, "10.0.7.7"));
    compiler.apply(node(&|_| ())).unwrap();
    // A peer's.
    assert!(learn(&mut compiler, "10.0.7.7"));
    let mut peer = objects::peer(1, Mode::Native);
    peer.pod_cidrs = vec!["10.0.7.0/25".parse().unwrap()];
    compiler.apply(vec![Change::Set(Object::Peer(peer.clone()))]).unwrap();
    assert!(matches!(target(&compiler, "10.0.7.7"), Target::Peer(_)));
    compiler.apply(vec![Change::Remove(Object::Peer(peer).key())]).unwrap();
    assert_eq!(target(&compiler, "10.0.7.7"), Target::UnderlayUnknown);
    // Services.
    assert!(learn(&mut compiler, "10.0.7.7"));
    compiler.apply(node(&|n| n.service_cidrs.push("10.0.7.0/26".parse().unwrap()))).unwrap();
    assert!(matches!(target(&compiler, "10.0.7.7"), Target::Service(_)));
    compiler.apply(node(&|_| ())).unwrap();
    // The node's route to the link goes.
    assert!(learn(&mut compiler, "10.0.7.7"));
    compiler.set_ways(Ways::new());
    assert_eq!(target(&compiler, "10.0.7.7"), Target::None);
}

#[test]
fn only_so_many_addresses_of_the_link_are_known() {
    let mut compiler = Compiler::new(1);
    let node = objects::node(Mode::Flat, Underlay::Ipv4);
    compiler.apply(vec![Change::Set(Object::Node(node))]).unwrap();
    let host = |n: u32| IpAddr::from((0x0a08_0000 + n).to_be_bytes());
    let most = u32::try_from(MAX_HOSTS).unwrap();
    for n in 0..most {
        compiler.set_next_hop(host(n), adjacency(1));
    }
    let known = |compiler: &Compiler, n| compiler.snapshot().routes.host(host(n)).is_some();
    compiler.set_next_hop(host(most), adjacency(1));
    assert!(known(&compiler, 0) && known(&compiler, most - 1) && !known(&compiler, most));
    compiler.set_next_hop(host(0), None);
    compiler.set_next_hop(host(most), adjacency(1));
    assert!(!known(&compiler, 0) && known(&compiler, most));
    assert_eq!(compiler.snapshot().next_hops.len(), MAX_HOSTS);
}
