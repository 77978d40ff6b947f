//! NAT gateways whose addresses another node holds: the pod's node sends through the tunnel, the holder
//! translates, and the answers come the same way.
//!
//! ```text
//! pod1 10.244.1.10 -- [ a ] == tunnel == [ b: 198.51.100.7 ] -- 10.0.0.1 -- 203.0.113.10
//! ```
//! The node under test is the pod's in the first half, with b as the holder; and the holder in the
//! second, with b's pods.

use std::net::IpAddr;

use overlane_api::{Egress, EgressAction, Mode, Object, Underlay};
use overlane_dataplane::stages::Notice;
use overlane_dataplane::testing::{Place, objects};

use super::bed::{Bed, FORWARDED, TUNNELS, UPLINK, expect, pod};
use super::build::{
    Body, IN, Packet, Tunnel, between, down, family_of, flow_of, gateway_ip, inner_of, node_ip,
    packet, pod_ip, up,
};
use super::egress::{OUT, bed_over, outside, port_of};
use super::icmp_error::{error, names, told};

const FIN_ACK: u8 = 17;
const SYN: u8 = 2;
const ACK: u8 = 16;
const TOO_BIG: [(u8, u8); 2] = [(3, 4), (2, 0)];
const NO_PORT: [(u8, u8); 2] = [(3, 3), (1, 4)];
const TTL_EXPIRED: [(u8, u8); 2] = [(11, 0), (3, 0)];
const HANDED: &[(&str, i64)] = &[("received", 2), ("sent", 2), ("handed_over", 1)];

pub fn pool(family: usize) -> IpAddr {
    ["198.51.100.7", "2001:db8:51::7"][family].parse().unwrap()
}

fn router(family: usize) -> IpAddr {
    ["198.18.0.1", "2001:db8:ffff::1"][family].parse().unwrap()
}

/// All pods leave by a gateway at these nodes; destinations of the second list are left out.
fn rule(nodes: &[&str]) -> Egress {
    Egress {
        name: "out".into(),
        order: 0,
        sources: Vec::new(),
        destinations: Vec::new(),
        action: EgressAction::Gateway {
            addresses: vec![pool(0), pool(1)],
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        },
    }
}

/// A node with a default route, and the gateway at `nodes`.
pub fn bed(tunnel: (Mode, Underlay), workers: u8, nodes: &[&str]) -> Bed {
    let mut bed = bed_over(tunnel, workers, workers, |_| {});
    bed.node.set(Object::Egress(rule(nodes))).unwrap();
    bed
}

/// `inner` as it leaves for node `peer`, in the frame `got`.
#[track_caller]
fn left_for(got: &[u8], peer: u8, (mode, underlay): (Mode, Underlay), inner: &Packet) {
    let tunnel = Tunnel::to_peer(peer, mode, underlay, flow_of(got));
    assert_eq!(got, tunnel.wrap(&inner.frame(between(0, peer))));
}

/// `inner` as it comes from node `peer`.
fn comes(peer: u8, (mode, underlay): (Mode, Underlay), inner: &Packet) -> Vec<u8> {
    Tunnel::from_peer(peer, mode, underlay).wrap(&inner.frame(between(peer, 0)))
}

const GENEVE: (Mode, Underlay) = (Mode::Geneve, Underlay::Ipv4);

fn udp_of(family: usize) -> Packet {
    packet(pod_ip(0, 0, family), outside(family), Body::Udp(41_000, 443, b"question".to_vec()))
}

/// The same from a pod of b's, as it comes out of the tunnel.
fn theirs(family: usize) -> Packet {
    packet(pod_ip(1, 0, family), outside(family), Body::Udp(41_000, 443, b"question".to_vec()))
        .ttl(63)
}

/// `sent` by pod `number` goes to b as it is, and the answer comes back, by uplink queue `queue`.
#[track_caller]
fn through_b(bed: &mut Bed, tunnel: (Mode, Underlay), number: u8, sent: &Packet, queue: usize) {
    let home = usize::from(number);
    let got = bed.one(&pod(number), &sent.frame(up(number)), &Place::Uplink(home), FORWARDED);
    left_for(&got, 1, tunnel, &sent.clone().ttl(63));
    let answer = sent.reply(b"answer").ttl(60);
    let moved = if queue == home { FORWARDED } else { HANDED };
    let seen = answer.clone().ttl(59).frame(down(number));
    let from = Place::Uplink(queue);
    bed.step(&from, &comes(1, tunnel, &answer), &[(pod(number), seen)], moved);
}

#[test]
fn a_pods_flow_goes_to_the_holder_as_it_is_and_its_answers_come_back() {
    for tunnel in TUNNELS {
        for workers in [1, 2] {
            for family in 0..2 {
                let mut bed = bed(tunnel, workers, &["b"]);
                let last = workers - 1;
                let (from, to) = (pod_ip(0, last, family), outside(family));
                for body in [
                    Body::Segment(40_000, 443, SYN, Vec::new()),
                    Body::Segment(40_000, 443, ACK, b"GET /".to_vec()),
                    Body::Udp(41_000, 443, b"question".to_vec()),
                    Body::Udp(41_000, 443, b"another".to_vec()),
                    Body::Echo(false, 77, 1, b"ping".to_vec()),
                ] {
                    for queue in 0..usize::from(workers) {
                        let sent = packet(from, to, body.clone());
                        through_b(&mut bed, tunnel, last, &sent, queue);
                    }
                }
                assert_eq!(bed.node.flows(), 3);
                bed.close();
            }
        }
    }
}

#[test]
fn from_outside_by_the_tunnel_comes_only_what_a_flow_by_that_peer_lets_in() {
    for (workers, tunnel) in [(1, TUNNELS[0]), (1, TUNNELS[3]), (2, TUNNELS[0]), (2, TUNNELS[1])] {
        for family in 0..2 {
            let mut bed = bed(tunnel, workers, &["b"]);
            through_b(&mut bed, tunnel, 0, &udp_of(family), 0);
            let answer = udp_of(family).reply(b"answer");
            let (remote, own) = ((outside(family), 443), (pod_ip(0, 0, family), 41_000));
            for (peer, spoofed) in [
                (2, answer.clone()),
                (1, answer.between((outside(family), 444), own)),
                (1, answer.between(remote, (pod_ip(0, 0, family), 41_001))),
                (1, answer.between((router(family), 443), own)),
                (1, answer.between(remote, (pod_ip(0, 1, family), 41_000))),
                (1, answer.between(remote, (pod_ip(0, 200, family), 41_000))),
                (1, answer.between((pod_ip(2, 0, family), 443), own)),
                (1, answer.between((node_ip(0, family), 443), own)),
                (
                    1,
                    error(
                        router(family),
                        &answer.reply(b"").ttl(9).between(own, (router(family), 1)),
                        NO_PORT,
                        0,
                    ),
                ),
                (2, error(router(family), &udp_of(family), NO_PORT, 0)),
            ] {
                // To its home worker first, if that may be.
                let is_handed =
                    i64::from(workers == 2 && spoofed.destination == pod_ip(0, 1, family));
                let moved = [
                    ("received", 1 + is_handed),
                    ("sent", is_handed),
                    ("handed_over", is_handed),
                    ("dropped.inner_spoofed_source", 1),
                ];
                bed.step(&UPLINK, &comes(peer, tunnel, &spoofed), &[], &moved);
            }
            assert_eq!(bed.node.flows(), 1);
            bed.close();
        }
    }
}

#[test]
fn without_a_gateway_elsewhere_nothing_comes_from_outside_by_the_tunnel() {
    for nodes in [&["a"][..], &["z"]] {
        for family in 0..2 {
            let mut bed = bed(GENEVE, 2, nodes);
            for number in 0..2 {
                let from = pod_ip(0, number, family);
                let answer =
                    packet(outside(family), from, Body::Udp(443, 41_000, b"answer".to_vec()));
                // It is judged at its pod's home.
                let passed = i64::from(number);
                let moved = [
                    ("received", 1 + passed),
                    ("sent", passed),
                    ("handed_over", passed),
                    ("dropped.inner_spoofed_source", 1),
                ];
                bed.step(&UPLINK, &comes(1, GENEVE, &answer), &[], &moved);
            }
            bed.close();
        }
    }
}

#[test]
fn errors_about_a_flow_by_another_node_reach_both_ends() {
    for tunnel in [TUNNELS[0], TUNNELS[3]] {
        for family in 0..2 {
            let mut bed = bed(tunnel, 1, &["b"]);
            let sent = udp_of(family);
            through_b(&mut bed, tunnel, 0, &sent, 0);
            // The second round: the tables have changed, and no packet has come since.
            for round in 0..2 {
                if round == 1 {
                    bed.node.publish();
                }
                for (from, kind, rest) in [
                    (router(family), TOO_BIG, 1300),
                    (router(family), TTL_EXPIRED, 0),
                    (outside(family), NO_PORT, 0),
                    (node_ip(1, family), TTL_EXPIRED, 0),
                ] {
                    let told = error(from, &sent.clone().ttl(60), kind, rest).ttl(61);
                    let seen = told.clone().ttl(60).frame(down(0));
                    bed.step(&UPLINK, &comes(1, tunnel, &told), &[(pod(0), seen)], FORWARDED);
                }
                bed.node.publish();
                let answer = sent.reply(b"answer").ttl(60);
                let told = error(pod_ip(0, 0, family), &answer, NO_PORT, 0);
                let got = bed.one(&pod(0), &told.frame(up(0)), &UPLINK, FORWARDED);
                left_for(&got, 1, tunnel, &told.clone().ttl(63));
                // The flow's way is up to date again now.
                through_b(&mut bed, tunnel, 0, &sent, 0);
                let got = bed.one(&pod(0), &told.frame(up(0)), &UPLINK, FORWARDED);
                left_for(&got, 1, tunnel, &told.ttl(63));
            }
            // About nothing that there was.
            let other = packet(router(family), pod_ip(0, 0, family), Body::Udp(1, 2, Vec::new()));
            let told = error(pod_ip(0, 0, family), &other, NO_PORT, 0);
            bed.drops(&pod(0), &told.frame(up(0)), "egress_protocol");
            assert_eq!(bed.node.flows(), 1);
            bed.close();
        }
    }
}

#[test]
fn the_pod_learns_the_tunnels_mtu_and_what_may_be_cut_is_cut_inside() {
    for tunnel in TUNNELS {
        let mtu = [1450, 1430][family_of(tunnel.1)];
        for family in 0..2 {
            let mut bed = bed(tunnel, 1, &["b"]);
            let headers = [28, 48][family];
            let sized = |len: usize| {
                let body = Body::Udp(41_000, 443, vec![7; len - headers]);
                packet(pod_ip(0, 0, family), outside(family), body)
            };
            let big = sized(mtu + 1);
            let answer = error(gateway_ip(family), &big, TOO_BIG, mtu as u32);
            let moved = told("packet_too_big");
            let out = [(pod(0), answer.frame(down(0)))];
            bed.step(&pod(0), &big.frame(up(0)), &out, &names(&moved));
            let fits = sized(mtu);
            let got = bed.one(&pod(0), &fits.frame(up(0)), &UPLINK, FORWARDED);
            left_for(&got, 1, tunnel, &fits.ttl(63));
            if family == 0 {
                let cut = Packet { dont_fragment: false, ..sized(1490) };
                let moved = [("received", 2), ("generated", 1), ("sent", 2)];
                let got = bed.send(&pod(0), &cut.frame(up(0)), &moved);
                assert_eq!(got.len(), 2);
                for (place, frame) in got {
                    assert_eq!(place, UPLINK);
                    let inner = inner_of(&frame);
                    let tunnel = Tunnel::to_peer(1, tunnel.0, tunnel.1, flow_of(&frame));
                    assert_eq!(frame, tunnel.wrap(&inner), "in a tunnel of its own");
                }
            }
            bed.close();
        }
    }
}

#[test]
fn another_holder_gets_new_flows_and_old_ones_are_over() {
    for family in 0..2 {
        let mut bed = bed(GENEVE, 1, &["b", "c"]);
        let segment = |flags| {
            let body = Body::Segment(40_000, 443, flags, b"x".to_vec());
            packet(pod_ip(0, 0, family), outside(family), body)
        };
        through_b(&mut bed, GENEVE, 0, &udp_of(family), 0);
        through_b(&mut bed, GENEVE, 0, &segment(SYN), 0);
        bed.node.set(Object::Egress(rule(&["c"]))).unwrap();
        // Before the pod sends again nothing of b's comes in any more.
        bed.drops(
            &UPLINK,
            &comes(1, GENEVE, &udp_of(family).reply(b"late")),
            "inner_spoofed_source",
        );
        assert_eq!(bed.node.flows(), 1);
        for sent in [udp_of(family), segment(ACK)] {
            let got = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
            left_for(&got, 2, GENEVE, &sent.clone().ttl(63));
            bed.drops(&UPLINK, &comes(1, GENEVE, &sent.reply(b"late")), "inner_spoofed_source");
            let answer = sent.reply(b"answer");
            let seen = answer.clone().ttl(63).frame(down(0));
            bed.step(&UPLINK, &comes(2, GENEVE, &answer), &[(pod(0), seen)], FORWARDED);
        }
        assert_eq!(bed.node.flows(), 2);
        // Now the addresses are here.
        bed.node.set(Object::Egress(rule(&["a"]))).unwrap();
        let got = bed.one(&pod(0), &udp_of(family).frame(up(0)), &UPLINK, FORWARDED);
        let port = port_of(&got, family, false);
        let left = udp_of(family).between((pool(family), port), (outside(family), 443)).ttl(63);
        assert_eq!(got, left.frame(OUT));
        bed.drops(&pod(0), &segment(ACK).frame(up(0)), "flow_unknown");
        bed.drops(&pod(0), &segment(FIN_ACK).frame(up(0)), "flow_unknown");
        // And gone again: the flow that has one of them ends, too.
        bed.node.set(Object::Egress(rule(&["b"]))).unwrap();
        through_b(&mut bed, GENEVE, 0, &udp_of(family), 0);
        bed.node.set(Object::Egress(rule(&["z"]))).unwrap();
        bed.drops(&pod(0), &udp_of(family).frame(up(0)), "egress_gateway_unknown");
        bed.close();
    }
}

#[test]
fn no_pods_address_goes_to_a_holder_without_a_tunnel() {
    for family in 0..2 {
        let mut native = bed((Mode::Native, Underlay::Ipv4), 1, &["b"]);
        native.drops(&pod(0), &udp_of(family).frame(up(0)), "egress_gateway_native");
        native.close();
        // One peer without a tunnel, and one that loses it: with a flow, and with a packet that waits.
        let mut bed = bed(GENEVE, 1, &["b"]);
        through_b(&mut bed, GENEVE, 0, &udp_of(family), 0);
        bed.node.set_resolved("b", false);
        bed.node.publish();
        bed.step(&pod(0), &udp_of(family).frame(up(0)), &[], &[("received", 1), ("held", 1)]);
        bed.node.set_resolved("b", true);
        bed.node.publish();
        let before = bed.node.counters();
        bed.node.run();
        expect(&bed.node, &before, &[("held", -1), ("sent", 1)]);
        let got = bed.node.collect();
        left_for(&got[0].1, 1, GENEVE, &udp_of(family).ttl(63));
        bed.node.set_resolved("b", false);
        bed.node.publish();
        bed.step(&pod(0), &udp_of(family).frame(up(0)), &[], &[("received", 1), ("held", 1)]);
        let before = bed.node.counters();
        bed.node.set(Object::Peer(objects::peer(1, Mode::Native))).unwrap();
        bed.node.run();
        let moved =
            [("held", -1), ("dropped.no_route", 1), ("received", 1), ("generated", 1), ("sent", 1)];
        expect(&bed.node, &before, &moved);
        let got = bed.node.collect();
        assert!(matches!(&got[..], [(place, _)] if *place == pod(0)), "{got:?}");
        bed.drops(&pod(0), &udp_of(family).frame(up(0)), "egress_gateway_native");
        bed.close();
    }
}

/// `sent`, a packet of b's pod, leaves with the gateway's address; the answer goes back into the tunnel.
/// Which port it left with.
#[track_caller]
fn for_b(bed: &mut Bed, tunnel: (Mode, Underlay), sent: &Packet) -> u16 {
    let family = usize::from(sent.source.is_ipv6());
    let is_ping = matches!(sent.body, Body::Echo(..));
    let frame = bed.one(&UPLINK, &comes(1, tunnel, sent), &UPLINK, FORWARDED);
    let port = port_of(&frame, family, is_ping);
    let remote = (outside(family), if is_ping { 0 } else { 443 });
    let left = sent.between((pool(family), port), remote).ttl(62);
    assert_eq!(frame, left.frame(OUT));
    let reply = left.reply(b"answer");
    let got = bed.one(&UPLINK, &reply.frame(IN), &UPLINK, FORWARDED);
    left_for(&got, 1, tunnel, &sent.reply(b"answer").ttl(63));
    port
}

#[test]
fn the_holder_translates_for_a_peers_pods() {
    for tunnel in TUNNELS {
        for family in 0..2 {
            let mut bed = bed(tunnel, 1, &["a"]);
            let with = |body| packet(pod_ip(1, 0, family), outside(family), body).ttl(63);
            for body in [
                Body::Segment(40_000, 443, SYN, Vec::new()),
                Body::Segment(40_000, 443, ACK, b"GET /".to_vec()),
                Body::Udp(20_000, 443, b"question".to_vec()),
                Body::Echo(false, 77, 1, b"ping".to_vec()),
            ] {
                let port = for_b(&mut bed, tunnel, &with(body.clone()));
                assert!((10_240..30_000).contains(&port), "{port}");
                assert!(!matches!(body, Body::Udp(..)) || port == 20_000, "kept: {port}");
            }
            assert_eq!(bed.node.flows(), 3);
            for (body, reason) in [
                (Body::Segment(40_001, 443, ACK, b"more".to_vec()), "flow_unknown"),
                (Body::Raw(47, vec![0; 20]), "egress_protocol"),
            ] {
                bed.drops(&UPLINK, &comes(1, tunnel, &with(body)), reason);
            }
            let stray = packet(router(family), pool(family), Body::Udp(443, 20_000, Vec::new()));
            bed.drops(&UPLINK, &stray.frame(IN), "snat_unsolicited");
            bed.close();
        }
    }
}

#[test]
fn a_pods_packets_use_one_mapping_whichever_worker_receives_them() {
    for tunnel in [TUNNELS[0], TUNNELS[3]] {
        for family in 0..2 {
            let mut bed = bed(tunnel, 2, &["a"]);
            let mut homes = [0; 2];
            for number in 0..8 {
                let sent = Packet { source: pod_ip(1, number, family), ..theirs(family) };
                let mut ports = Vec::new();
                let mut handed = [0, 0];
                for queue in [0, 1, 1, 0] {
                    let before = bed.node.counters().handed_over;
                    assert!(bed.node.inject(&Place::Uplink(queue), &comes(1, tunnel, &sent)));
                    bed.node.run();
                    handed[queue] += bed.node.counters().handed_over - before;
                    let got = bed.node.collect();
                    assert_eq!(got.len(), 1, "{:?}", bed.node.drops());
                    let port = port_of(&got[0].1, family, false);
                    let left = sent.between((pool(family), port), (outside(family), 443)).ttl(62);
                    assert_eq!(got[0].1, left.frame(OUT));
                    ports.push(port);
                }
                assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
                // Never by its home's own queue, always by the other's, and never twice.
                let home = usize::from(handed[0] != 0);
                assert_eq!((handed[home], handed[1 - home]), (0, 2));
                homes[home] += 1;
                let left = sent.between((pool(family), ports[0]), (outside(family), 443));
                for queue in 0..2 {
                    let moved = if queue == home { FORWARDED } else { HANDED };
                    let reply = left.reply(b"answer").frame(IN);
                    let got = bed.one(&Place::Uplink(queue), &reply, &Place::Uplink(home), moved);
                    left_for(&got, 1, tunnel, &sent.reply(b"answer").ttl(63));
                    // And an error about it.
                    let about = error(router(family), &left, TTL_EXPIRED, 0).frame(IN);
                    let got = bed.one(&Place::Uplink(queue), &about, &Place::Uplink(home), moved);
                    let seen = sent.clone().ttl(left.ttl);
                    left_for(
                        &got,
                        1,
                        tunnel,
                        &error(router(family), &seen, TTL_EXPIRED, 0).ttl(63),
                    );
                    // One of the pod's about an answer.
                    let answer = sent.reply(b"answer");
                    let about = error(sent.source, &answer, NO_PORT, 0).ttl(63);
                    let frame = comes(1, tunnel, &about);
                    let got = bed.one(&Place::Uplink(queue), &frame, &Place::Uplink(home), moved);
                    let translated = left.reply(b"answer");
                    let out = error(pool(family), &translated, NO_PORT, 0).ttl(62);
                    assert_eq!(got, out.frame(OUT));
                }
            }
            assert!(homes.iter().all(|count| *count > 0), "{homes:?}");
            assert_eq!(bed.node.flows(), 8);
            bed.close();
        }
    }
}

#[test]
fn the_holder_takes_only_what_its_rules_give_it_from_whom_it_belongs_to() {
    for tunnel in TUNNELS {
        for family in 0..2 {
            let mut bed = bed_over(tunnel, 1, 1, |_| {});
            let only = Egress {
                sources: vec![pod_ip(1, 0, family).into()],
                destinations: vec![outside(family).into()],
                ..rule(&["a"])
            };
            bed.node.set(Object::Egress(only.clone())).unwrap();
            // The node stays a holder of something.
            let other = Egress { name: "other".into(), order: 1, ..rule(&["a"]) };
            let other = Egress { sources: vec![pod_ip(2, 9, family).into()], ..other };
            bed.node.set(Object::Egress(other)).unwrap();
            for_b(&mut bed, tunnel, &theirs(family));
            let from = |source| Packet { source, ..theirs(family) };
            bed.drops(
                &UPLINK,
                &comes(1, tunnel, &from(pod_ip(2, 0, family))),
                "inner_spoofed_source",
            );
            bed.drops(&UPLINK, &comes(1, tunnel, &from(outside(family))), "inner_spoofed_source");
            bed.drops(&UPLINK, &comes(1, tunnel, &from(pod_ip(1, 1, family))), "inner_not_here");
            let elsewhere = Packet { destination: router(family), ..theirs(family) };
            bed.drops(&UPLINK, &comes(1, tunnel, &elsewhere), "inner_not_here");
            // A rule that gives it to another holder, and one that does not translate.
            for action in [rule(&["c"]).action, EgressAction::Node, EgressAction::None] {
                bed.node.set(Object::Egress(Egress { action, ..only.clone() })).unwrap();
                bed.drops(&UPLINK, &comes(1, tunnel, &theirs(family)), "inner_not_here");
                assert_eq!(bed.node.flows(), 0, "what there was is over");
                bed.node.set(Object::Egress(only.clone())).unwrap();
                for_b(&mut bed, tunnel, &theirs(family));
            }
            bed.close();
        }
    }
}

#[test]
fn answers_that_are_too_big_for_the_tunnel_are_told_or_cut() {
    for tunnel in TUNNELS {
        let mtu = [1450, 1430][family_of(tunnel.1)];
        for family in 0..2 {
            let mut bed = bed(tunnel, 1, &["a"]);
            let port = for_b(&mut bed, tunnel, &theirs(family));
            let left = theirs(family).between((pool(family), port), (outside(family), 443));
            let big = left.reply(&vec![9; 1460]);
            let answer = error(node_ip(0, family), &big, TOO_BIG, mtu);
            let moved = told("packet_too_big");
            bed.step(&UPLINK, &big.frame(IN), &[(UPLINK, answer.frame(OUT))], &names(&moved));
            if family == 0 {
                let cut = Packet { dont_fragment: false, ..big };
                let moved = [("received", 2), ("generated", 1), ("sent", 2)];
                let got = bed.send(&UPLINK, &cut.frame(IN), &moved);
                assert_eq!(got.len(), 2);
                for (_, frame) in got {
                    let inner = inner_of(&frame);
                    let ip = etherparse::Ipv4Slice::from_slice(&inner[14..]).unwrap();
                    let IpAddr::V4(pod) = pod_ip(1, 0, 0) else { panic!("IPv4") };
                    assert_eq!(ip.header().destination_addr(), pod);
                    let tunnel = Tunnel::to_peer(1, tunnel.0, tunnel.1, flow_of(&frame));
                    assert_eq!(frame, tunnel.wrap(&inner));
                }
            }
            bed.close();
        }
    }
}

#[test]
fn a_peers_pod_learns_that_its_packet_died_at_the_holder() {
    for family in 0..2 {
        let mut bed = bed(GENEVE, 1, &["a"]);
        for_b(&mut bed, GENEVE, &theirs(family));
        let spent = theirs(family).ttl(1);
        let moved = told("ttl_expired");
        let got = bed.one(&UPLINK, &comes(1, GENEVE, &spent), &UPLINK, &names(&moved));
        left_for(&got, 1, GENEVE, &error(node_ip(0, family), &spent, TTL_EXPIRED, 0));
        bed.close();
    }
}

#[test]
fn what_waits_at_the_holder_for_a_next_hop_leaves_with_the_gateways_address() {
    let neighbor: IpAddr = "10.0.7.7".parse().unwrap();
    let mut bed = bed(GENEVE, 1, &["a"]);
    let ways = [(
        "10.0.0.0/16".parse().unwrap(),
        overlane_dataplane::tables::compile::underlay::Way::Link,
    )];
    bed.node.bench().compiler.set_ways(ways.into());
    bed.node.publish();
    let sent = Packet { destination: neighbor, ..theirs(0) };
    bed.step(&UPLINK, &comes(1, GENEVE, &sent), &[], &[("received", 1), ("held", 1)]);
    assert_eq!(bed.node.notices(), [Notice::NextHopWanted(neighbor)]);
    let before = bed.node.counters();
    let adjacency =
        overlane_dataplane::tables::peers::Adjacency { source: OUT.0, destination: OUT.1 };
    bed.node.bench().compiler.set_next_hop(neighbor, Some(adjacency));
    bed.node.publish();
    bed.node.run();
    expect(&bed.node, &before, &[("held", -1), ("sent", 1)]);
    let got = bed.node.collect();
    let port = port_of(&got[0].1, 0, false);
    assert_eq!(got[0].1, sent.between((pool(0), port), (neighbor, 443)).ttl(62).frame(OUT));
    bed.close();
}
