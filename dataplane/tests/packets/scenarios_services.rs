//! Scenarios of services by name: part A of the table in `dataplane/tests/README.md`.
//!
//! ```text
//! pod1 -- [ a ] == underlay == [ b ] -- pod1, pod2      10.96.0.10:80 -> pod port 8080
//! pod2 --/
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use overlane_api::flow::FlowFilter;
use overlane_api::protocol::{Op, Reply};
use overlane_api::{Change, Mode, Object, ObjectKey, Protocol, Service, Underlay};
use overlane_dataplane::testing::objects;

use super::bed::{Bed, FORWARDED, TUNNELS, UPLINK, expect, pod};
use super::build::{
    Body, IN, Packet, Tunnel, between, down, flow_of, gateway_ip, inner_of, node_ip, packet,
    pod_ip, up,
};
use super::egress::{OUT, bed_with, outside};
use super::icmp_error::{error, names, told};
use super::nat_rig::{ACK, FIN, SYN, flagged, ports, tcp, udp};
use super::services::{service, vip};

const CLIENT: u16 = 40_000;

/// Where the pod's packet to a service went: the backend, as (node, pod).
type Spot = (u8, u8);

/// A packet of pod 1 to the first service.
fn asks(family: usize, body: Body) -> Packet {
    packet(pod_ip(0, 0, family), vip(0, family), body)
}

/// `sent` leaves for a backend, every byte as it should be. Which one, and how it arrives there.
#[track_caller]
fn goes(bed: &mut Bed, tunnel: (Mode, Underlay), sent: &Packet) -> (Spot, Packet) {
    let family = usize::from(sent.source.is_ipv6());
    let mut got = bed.send(&pod(0), &sent.frame(up(0)), FORWARDED);
    let (place, frame) = got.remove(0);
    let spots = [(0, 1), (1, 0), (1, 1), (2, 0)];
    let own_port = ports(sent).0;
    for spot in spots {
        let server = (pod_ip(spot.0, spot.1, family), 8080);
        let arrives = sent.between((sent.source, own_port), server).ttl(63);
        let is_it = if spot.0 == 0 {
            place == pod(spot.1) && frame == arrives.frame(down(spot.1))
        } else if place == UPLINK {
            let (mode, underlay) = tunnel;
            let outer = Tunnel::to_peer(spot.0, mode, underlay, flow_of(&frame));
            frame == outer.wrap(&arrives.frame(between(0, spot.0)))
        } else {
            false
        };
        if is_it {
            return (spot, arrives);
        }
    }
    panic!("{place:?}: {frame:02x?}");
}

/// The backend answers `arrived`; pod 1 sees the answer come from whom it asked.
#[track_caller]
fn comes_back(
    bed: &mut Bed,
    tunnel: (Mode, Underlay),
    spot: Spot,
    sent: &Packet,
    arrived: &Packet,
) {
    let reply = arrived.reply(b"answer");
    let seen = reply
        .between((sent.destination, ports(sent).1), (sent.source, ports(sent).0))
        .ttl(63)
        .frame(down(0));
    let (from, frame) = if spot.0 == 0 {
        (pod(spot.1), reply.frame(up(spot.1)))
    } else {
        let back = Tunnel::from_peer(spot.0, tunnel.0, tunnel.1);
        (UPLINK, back.wrap(&reply.frame(between(spot.0, 0))))
    };
    bed.step(&from, &frame, &[(pod(0), seen)], FORWARDED);
}

const GENEVE: (Mode, Underlay) = (Mode::Geneve, Underlay::Ipv4);

fn both_ways(bed: &mut Bed, sent: &Packet) -> Spot {
    let (spot, arrived) = goes(bed, GENEVE, sent);
    comes_back(bed, GENEVE, spot, sent, &arrived);
    spot
}

fn dnat(family: usize) {
    for backend in [(1, 0), (0, 1)] {
        for (protocol, bodies) in [
            (Protocol::Tcp, vec![tcp(CLIENT, 80, SYN), tcp(CLIENT, 80, ACK)]),
            (Protocol::Udp, vec![udp(CLIENT, 80), udp(CLIENT, 80)]),
        ] {
            let mut bed = bed_with(1, vec![service(0, protocol, &[backend])]);
            for body in bodies {
                assert_eq!(goes(&mut bed, GENEVE, &asks(family, body)).0, backend);
            }
            bed.close();
        }
    }
}

#[test]
fn svc_dnat_v4_tcp_udp() {
    dnat(0);
}

#[test]
fn svc_dnat_v6_tcp_udp() {
    dnat(1);
}

#[test]
fn svc_return_untranslated() {
    for family in 0..2 {
        for backend in [(1, 0), (0, 1)] {
            let services = vec![service(0, Protocol::Tcp, &[backend])];
            let mut bed = bed_with(1, services);
            for flags in [SYN, ACK, ACK | FIN] {
                both_ways(&mut bed, &asks(family, tcp(CLIENT, 80, flags)));
            }
            bed.close();
        }
    }
}

/// The same port number, too.
#[test]
fn svc_same_vip_two_ports_two_protos() {
    for family in 0..2 {
        let mut web = service(0, Protocol::Tcp, &[(1, 0)]);
        web.name = "default/both:web".into();
        let mut dns = service(0, Protocol::Udp, &[(0, 1)]);
        dns.name = "default/both:dns".into();
        let mut other = service(0, Protocol::Udp, &[(2, 0)]);
        other.name = "default/both:other".into();
        for frontend in &mut other.frontends {
            frontend.port = 53;
        }
        let mut bed = bed_with(1, vec![web, dns, other]);
        for (body, backend) in
            [(tcp(CLIENT, 80, SYN), (1, 0)), (udp(CLIENT, 80), (0, 1)), (udp(CLIENT, 53), (2, 0))]
        {
            assert_eq!(both_ways(&mut bed, &asks(family, body)), backend);
        }
        assert_eq!(bed.node.flows(), 3);
        bed.close();
    }
}

/// It is refused, so that the client knows at once, and never routed.
#[test]
fn svc_port_miss_dropped() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
        let sent = asks(family, udp(CLIENT, 81));
        let answer = error(vip(0, family), &sent, [(3, 3), (1, 4)], 0);
        let out = [(pod(0), answer.frame(down(0)))];
        bed.step(&pod(0), &sent.frame(up(0)), &out, &names(&told("service_unknown_port")));
        assert_eq!(bed.node.flows(), 0);
        bed.close();
    }
}

#[test]
fn svc_unrelated_from_backend_passes() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
        both_ways(&mut bed, &asks(family, udp(CLIENT, 80)));
        // From another port, to another port, of another protocol.
        for body in [udp(8081, CLIENT), udp(8080, CLIENT + 1), tcp(8080, CLIENT, SYN)] {
            let plain = packet(pod_ip(1, 0, family), pod_ip(0, 0, family), body);
            let frame = Tunnel::from_peer(1, GENEVE.0, GENEVE.1).wrap(&plain.frame(between(1, 0)));
            let seen = plain.clone().ttl(63).frame(down(0));
            bed.step(&UPLINK, &frame, &[(pod(0), seen)], FORWARDED);
        }
        assert_eq!(bed.node.flows(), 1);
        bed.close();
    }
}

/// What a client of a service of this protocol at port 80 sends.
fn body(protocol: Protocol, port: u16, flags: u8) -> Body {
    match protocol {
        Protocol::Tcp => tcp(port, 80, flags),
        _ => udp(port, 80),
    }
}

fn many(bed: &mut Bed, family: usize, body: impl Fn(u16) -> Body, from: u16) -> Vec<(u16, Spot)> {
    let ask = |port| (port, goes(bed, GENEVE, &asks(family, body(port))).0);
    (from..from + 60).map(ask).collect()
}

fn spots(all: &[(u16, Spot)]) -> BTreeSet<Spot> {
    all.iter().map(|(_, spot)| *spot).collect()
}

#[test]
fn svc_backend_replaced_new_flows() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0), (0, 1)])]);
        let before = many(&mut bed, family, |port| udp(port, 80), 40_000);
        assert_eq!(spots(&before), [(1, 0), (0, 1)].into());
        let changed = service(0, Protocol::Udp, &[(1, 1), (2, 0)]);
        bed.node.set(Object::Service(changed)).unwrap();
        let after = many(&mut bed, family, |port| udp(port, 80), 50_000);
        assert_eq!(spots(&after), [(1, 1), (2, 0)].into());
        bed.close();
    }
}

/// Connections go on with a backend that is no longer listed, which finishes what it has. Datagrams move
/// with their next packet; those of backends that stay do not.
#[test]
fn svc_backend_replaced_old_flows_cut() {
    for family in 0..2 {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let bodies = |port, flags| body(protocol, port, flags);
            let mut bed = bed_with(1, vec![service(0, protocol, &[(1, 0), (0, 1)])]);
            let before = many(&mut bed, family, |port| bodies(port, SYN), 40_000);
            assert_eq!(spots(&before).len(), 2);
            bed.node.set(Object::Service(service(0, protocol, &[(0, 1)]))).unwrap();
            let after = many(&mut bed, family, |port| bodies(port, ACK), 40_000);
            for ((port, before), (_, after)) in before.iter().zip(&after) {
                let expected = if protocol == Protocol::Tcp { *before } else { (0, 1) };
                assert_eq!(*after, expected, "{protocol} {port}");
            }
            assert_eq!(bed.node.flows(), 60, "each flow is remembered once");
            bed.close();
        }
    }
}

/// Without a service its datagrams go nowhere at once, and their flow is gone with the next packet;
/// connections finish. Flows of other services stay as they are.
#[test]
fn svc_deleted_flows_removed() {
    for family in 0..2 {
        let services =
            vec![service(0, Protocol::Udp, &[(1, 0)]), service(1, Protocol::Udp, &[(1, 1)])];
        let mut bed = bed_with(1, services);
        let to = |number| packet(pod_ip(0, 0, family), vip(number, family), udp(CLIENT, 80));
        let kept = goes(&mut bed, GENEVE, &to(1));
        goes(&mut bed, GENEVE, &to(0));
        assert_eq!(bed.node.flows(), 2);
        let key = ObjectKey::Service(service(0, Protocol::Udp, &[]).name);
        bed.node.apply(vec![Change::Remove(key)]).unwrap();
        bed.drops(&pod(0), &to(0).frame(up(0)), "service_unassigned");
        assert_eq!(bed.node.flows(), 1, "both directions are gone");
        // What the backend still sends is what it is: from a pod to a pod.
        let late = packet(pod_ip(1, 0, family), pod_ip(0, 0, family), udp(8080, CLIENT));
        let frame = Tunnel::from_peer(1, GENEVE.0, GENEVE.1).wrap(&late.frame(between(1, 0)));
        let seen = late.clone().ttl(63).frame(down(0));
        bed.step(&UPLINK, &frame, &[(pod(0), seen)], FORWARDED);
        assert_eq!(goes(&mut bed, GENEVE, &to(1)), kept);
        assert_eq!(bed.node.flows(), 1);
        bed.close();
    }
}

#[test]
fn svc_idle_expiry_to_zero() {
    for family in 0..2 {
        let services =
            vec![service(0, Protocol::Udp, &[(1, 0)]), service(0, Protocol::Tcp, &[(1, 0)])];
        let mut bed = bed_with(1, services);
        for port in 40_000..40_100 {
            both_ways(&mut bed, &asks(family, udp(port, 80)));
            goes(&mut bed, GENEVE, &asks(family, tcp(port, 80, SYN)));
        }
        assert_eq!(bed.node.flows(), 200);
        bed.node.wait(Duration::from_secs(310));
        // Each round does as much as it may.
        for _ in 0..100 {
            bed.node.run();
        }
        assert_eq!(bed.node.flows(), 0);
        bed.close();
    }
}

#[test]
fn svc_purge_leaves_nothing() {
    let services = vec![service(0, Protocol::Udp, &[(1, 0)]), service(0, Protocol::Tcp, &[(0, 1)])];
    let mut bed = bed_with(1, services);
    let ask = |bed: &mut Bed| {
        for family in 0..2 {
            both_ways(bed, &asks(family, udp(CLIENT, 80)));
            both_ways(bed, &asks(family, tcp(CLIENT, 80, SYN)));
        }
    };
    ask(&mut bed);
    assert_eq!(bed.node.flows(), 4);
    let flushed = bed.node.bench().ask(&Op::FlushFlows { filter: FlowFilter::default() });
    assert!(matches!(flushed, Some(Ok(Reply::Flushed { flows: 4 }))), "{flushed:?}");
    assert_eq!(bed.node.flows(), 0);
    ask(&mut bed);
    assert_eq!(bed.node.flows(), 4);
    bed.close();
}

/// That is session affinity: clients are told apart by their address alone.
#[test]
fn svc_hash_fields_src_dst_only() {
    for family in 0..2 {
        let backends = [(1, 0), (1, 1), (0, 1), (2, 0)];
        let plain = service(0, Protocol::Udp, &backends);
        let sticky = Service { affinity_seconds: Some(10_800), ..plain.clone() };
        for (service, alike) in [(plain, false), (sticky, true)] {
            let mut bed = bed_with(1, vec![service]);
            let all = many(&mut bed, family, |port| udp(port, 80), 40_000);
            assert_eq!(spots(&all).len() == 1, alike, "{:?}", spots(&all));
            bed.close();
        }
    }
}

#[test]
fn svc_established_flow_sticky() {
    for family in 0..2 {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let bodies = |port, flags| body(protocol, port, flags);
            let mut bed = bed_with(1, vec![service(0, protocol, &[(1, 0), (0, 1)])]);
            let first = many(&mut bed, family, |port| bodies(port, SYN), 40_000);
            assert_eq!(many(&mut bed, family, |port| bodies(port, ACK), 40_000), first);
            // Also after backends are added, and when those there are have other weights.
            let mut more = service(0, protocol, &[(1, 0), (0, 1), (1, 1), (2, 0)]);
            for backend in &mut more.backends {
                backend.weight = if backend.local { 1 } else { 100 };
            }
            bed.node.set(Object::Service(more)).unwrap();
            assert_eq!(many(&mut bed, family, |port| bodies(port, ACK), 40_000), first);
            bed.close();
        }
    }
}

/// From the backend itself, and from a node on the way; all combinations are in `path_mtu.rs`.
#[test]
fn svc_icmp_error_return() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
        let sent = asks(family, udp(CLIENT, 80));
        let (_, arrived) = goes(&mut bed, GENEVE, &sent);
        for (from, seen_from, kind) in [
            (pod_ip(1, 0, family), vip(0, family), [(3, 3), (1, 4)]),
            (node_ip(1, family), node_ip(1, family), [(11, 0), (3, 0)]),
        ] {
            let told = error(from, &arrived, kind, 0);
            let frame = Tunnel::from_peer(1, GENEVE.0, GENEVE.1).wrap(&told.frame(between(1, 0)));
            let seen = error(seen_from, &sent.clone().ttl(63), kind, 0).ttl(63);
            bed.step(&UPLINK, &frame, &[(pod(0), seen.frame(down(0)))], FORWARDED);
        }
        bed.close();
    }
}

#[test]
fn icmp_error_without_flow_untouched() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
        goes(&mut bed, GENEVE, &asks(family, udp(CLIENT, 80)));
        // About a packet from this pod to that one, as it was.
        let plain = packet(pod_ip(0, 0, family), pod_ip(1, 0, family), udp(CLIENT, 9000)).ttl(63);
        let told = error(pod_ip(1, 0, family), &plain, [(3, 3), (1, 4)], 0);
        let frame = Tunnel::from_peer(1, GENEVE.0, GENEVE.1).wrap(&told.frame(between(1, 0)));
        let seen = told.clone().ttl(63).frame(down(0));
        bed.step(&UPLINK, &frame, &[(pod(0), seen)], FORWARDED);
        bed.close();
    }
}

#[test]
fn svc_then_vxlan_encap() {
    for tunnel in TUNNELS {
        let (mode, underlay) = tunnel;
        let mut changes = objects::cluster(mode, underlay, 1);
        if let Change::Set(Object::Node(node)) = &mut changes[0] {
            node.service_cidrs =
                vec!["10.96.0.0/16".parse().unwrap(), "fd98::/108".parse().unwrap()];
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let service = service(0, protocol, &[(1, 0)]);
            changes.push(Change::Set(Object::Service(service)));
        }
        let mut bed = Bed::with(1, changes);
        for family in 0..2 {
            for body in [tcp(CLIENT, 80, SYN), udp(CLIENT, 80)] {
                let sent = asks(family, body);
                let (spot, arrived) = goes(&mut bed, tunnel, &sent);
                comes_back(&mut bed, tunnel, spot, &sent, &arrived);
            }
        }
        bed.close();
    }
}

#[test]
fn no_svc_encap_untouched() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
        // A flow of the service stands beside it, between the same two pods.
        both_ways(&mut bed, &asks(family, udp(CLIENT, 80)));
        let sent = packet(pod_ip(0, 0, family), pod_ip(1, 0, family), udp(41_000, 8080));
        let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
        assert_eq!(inner_of(&frame), sent.clone().ttl(63).frame(between(0, 1)));
        let reply = sent.reply(b"plain");
        let back = Tunnel::from_peer(1, GENEVE.0, GENEVE.1).wrap(&reply.frame(between(1, 0)));
        bed.step(&UPLINK, &back, &[(pod(0), reply.ttl(63).frame(down(0)))], FORWARDED);
        assert_eq!(bed.node.flows(), 1);
        bed.close();
    }
}

/// A packet that waits for its next hop is translated once, and so is one that another worker receives.
#[test]
fn svc_nat_not_applied_twice() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
        bed.node.set_resolved("b", false);
        bed.node.publish();
        let sent = asks(family, udp(CLIENT, 80));
        bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
        bed.node.set_resolved("b", true);
        bed.node.publish();
        let before = bed.node.counters();
        bed.node.run();
        expect(&bed.node, &before, &[("held", -1), ("sent", 1)]);
        let arrives = sent.between((sent.source, CLIENT), (pod_ip(1, 0, family), 8080)).ttl(63);
        let got = bed.node.collect();
        assert_eq!(inner_of(&got[0].1), arrives.frame(between(0, 1)));
        comes_back(&mut bed, GENEVE, (1, 0), &sent, &arrives);
        bed.close();
        // The backend is at home at the other worker.
        let mut bed = bed_with(2, vec![service(0, Protocol::Udp, &[(0, 1)])]);
        let handed = [("received", 2), ("sent", 2), ("handed_over", 1)];
        let arrives = sent.between((sent.source, CLIENT), (pod_ip(0, 1, family), 8080)).ttl(63);
        let out = [(pod(1), arrives.frame(down(1)))];
        bed.step(&pod(0), &sent.frame(up(0)), &out, &handed);
        let reply = arrives.reply(b"answer");
        let seen = reply.between((vip(0, family), 80), (sent.source, CLIENT)).ttl(63);
        bed.step(&pod(1), &reply.frame(up(1)), &[(pod(0), seen.frame(down(0)))], &handed);
        bed.close();
    }
}

/// The address that pods leave with follows the node's.
#[test]
fn vip_or_backend_is_interface_address() {
    for family in 0..2 {
        let mut bed = super::egress::bed(Mode::Geneve, 1, 1, |_| {});
        let sent = packet(pod_ip(0, 0, family), outside(family), udp(20_000, 443));
        let leaves = |bed: &mut Bed, sent: &Packet, own: IpAddr| {
            let left = sent.between((own, ports(sent).0), (outside(family), 443)).ttl(63);
            bed.step(&pod(0), &sent.frame(up(0)), &[(UPLINK, left.frame(OUT))], FORWARDED);
            left
        };
        let old = leaves(&mut bed, &sent, node_ip(0, family));
        let mut node = objects::node(Mode::Geneve, Underlay::Ipv4);
        node.addresses = ["10.0.1.44", "fd00:10:0:1::44"].map(|own| own.parse().unwrap()).into();
        let new = node.addresses[family];
        bed.node.set(Object::Node(node.clone())).unwrap();
        bed.node.publish();
        let next = packet(pod_ip(0, 0, family), outside(family), udp(20_001, 443));
        let left = leaves(&mut bed, &next, new);
        let reply = left.reply(b"answer");
        let seen = reply.between((outside(family), 443), (sent.source, 20_001)).ttl(63);
        bed.step(&UPLINK, &reply.frame(IN), &[(pod(0), seen.frame(down(0)))], FORWARDED);
        // A flow that there was is over with the old address, and begins anew.
        leaves(&mut bed, &sent, new);
        // What answers to the old address is no longer ours: somebody else may have it.
        let got = bed.node.counters();
        assert!(bed.node.inject(&UPLINK, &old.reply(b"late").frame(IN)));
        bed.node.run();
        assert_eq!(bed.node.counters().received, got.received + 1);
        assert!(bed.node.collect().iter().all(|(place, _)| *place != pod(0)));
        // Without an address of the family nothing leaves.
        node.addresses.remove(family);
        bed.node.set(Object::Node(node)).unwrap();
        bed.node.publish();
        let last = packet(pod_ip(0, 0, family), outside(family), udp(20_002, 443));
        bed.drops(&pod(0), &last.frame(up(0)), "egress_no_address");
        bed.close();
    }
}

/// The client is told, and it is counted by name.
#[test]
fn svc_no_backend_drops() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[])]);
        let sent = asks(family, udp(CLIENT, 80));
        let answer = error(vip(0, family), &sent, [(3, 3), (1, 4)], 0);
        let out = [(pod(0), answer.frame(down(0)))];
        bed.step(&pod(0), &sent.frame(up(0)), &out, &names(&told("service_no_backend")));
        assert_eq!(bed.node.flows(), 0);
        // As soon as there is one it is asked.
        bed.node.set(Object::Service(service(0, Protocol::Udp, &[(1, 0)]))).unwrap();
        both_ways(&mut bed, &sent);
        bed.close();
    }
}

/// A reply of the pod's to itself, and another client of the same service, which is seen as itself.
#[test]
fn twice_nat_self() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Tcp, &[(0, 0)])]);
        let own = pod_ip(0, 0, family);
        for flags in [SYN, ACK] {
            let sent = asks(family, tcp(CLIENT, 80, flags));
            let arrives = sent.between((gateway_ip(family), CLIENT), (own, 8080)).ttl(63);
            let out = [(pod(0), arrives.frame(down(0)))];
            bed.step(&pod(0), &sent.frame(up(0)), &out, FORWARDED);
            let reply = arrives.reply(b"");
            let seen = reply.between((vip(0, family), 80), (own, CLIENT)).ttl(63);
            bed.step(&pod(0), &reply.frame(up(0)), &[(pod(0), seen.frame(down(0)))], FORWARDED);
        }
        let sent = packet(pod_ip(0, 1, family), vip(0, family), tcp(CLIENT, 80, SYN));
        let arrives = sent.between((sent.source, CLIENT), (own, 8080)).ttl(63);
        bed.step(&pod(1), &sent.frame(up(1)), &[(pod(0), arrives.frame(down(0)))], FORWARDED);
        let reply = flagged(&arrives.reply(b""), SYN | ACK);
        let seen = reply.between((vip(0, family), 80), (sent.source, CLIENT)).ttl(63);
        bed.step(&pod(0), &reply.frame(up(0)), &[(pod(1), seen.frame(down(1)))], FORWARDED);
        bed.close();
    }
}
