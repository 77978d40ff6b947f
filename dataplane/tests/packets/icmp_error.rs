//! What is said about packets that cannot go on: TTL, route, size; and what is never answered.

use std::time::Duration;

use overlane_api::{Change, Mode, Object, ObjectKey, Underlay};
use overlane_dataplane::testing::{Place, objects};

use super::bed::{Bed, FORWARDED, TUNNELS, UPLINK, pod};
use super::build::{
    Body, Packet, Tunnel, between, down, flow_of, from_host, gateway_ip, node_ip, packet, pod_ip,
    to_host, udp, up,
};

/// Type and code of an error, IPv4 and IPv6.
type Kind = [(u8, u8); 2];

const TTL_EXPIRED: Kind = [(11, 0), (3, 0)];
const NO_ROUTE: Kind = [(3, 0), (1, 0)];

/// The error that is due about `about`, from `source`. It may be fragmented itself over IPv4.
pub fn error(source: std::net::IpAddr, about: &Packet, kind: Kind, rest: u32) -> Packet {
    let family = usize::from(about.source.is_ipv6());
    let most = [576 - 28, 1280 - 48][family];
    let mut quoted = about.ip();
    quoted.truncate(most);
    let (kind, code) = kind[family];
    Packet {
        dont_fragment: false,
        ..packet(source, about.source, Body::Error(kind, code, rest, quoted))
    }
}

/// A packet was dropped and its sender told.
pub fn told(reason: &str) -> Vec<(String, i64)> {
    let moved = [("received", 2), ("generated", 1), ("sent", 1)];
    let mut moved: Vec<_> = moved.map(|(name, by)| (name.to_owned(), by)).into();
    moved.push((format!("dropped.{reason}"), 1));
    moved
}

/// As a list of counters.
pub fn names(moved: &[(String, i64)]) -> Vec<(&str, i64)> {
    moved.iter().map(|(name, by)| (name.as_str(), *by)).collect()
}

#[test]
fn a_pod_learns_that_its_ttl_ran_out() {
    for mode in [Mode::Geneve, Mode::Native] {
        let mut bed = Bed::new(mode, Underlay::Ipv4);
        for family in 0..2 {
            for to in [pod_ip(0, 1, family), pod_ip(1, 0, family), node_ip(1, family)] {
                for ttl in [0, 1] {
                    for len in [0, 1, 700, 1300] {
                        let sent = udp(pod_ip(0, 0, family), to, &vec![3; len]).ttl(ttl);
                        let answer = error(gateway_ip(family), &sent, TTL_EXPIRED, 0);
                        // The bucket is refilled: this test is not about the rate.
                        bed.node.wait(Duration::from_secs(1));
                        let out = [(pod(0), answer.frame(down(0)))];
                        let moved = told("ttl_expired");
                        bed.step(&pod(0), &sent.frame(up(0)), &out, &names(&moved));
                    }
                }
            }
            // To the node itself no hop is taken.
            let sent = udp(pod_ip(0, 0, family), node_ip(0, family), b"x").ttl(1);
            let out = [(Place::Host, sent.frame(to_host()))];
            bed.step(&pod(0), &sent.frame(up(0)), &out, super::bed::TO_HOST);
        }
        bed.close();
    }
}

#[test]
fn a_pod_learns_that_there_is_no_route() {
    let mut bed = Bed::new(Mode::Vxlan, Underlay::Ipv4);
    for family in 0..2 {
        let outside = ["203.0.113.10", "2001:db8:113::10"][family].parse().unwrap();
        let other_node = ["10.0.1.99", "fd00:10:0:1::99"][family].parse().unwrap();
        for to in [outside, other_node, pod_ip(0, 200, family), pod_ip(9, 0, family)] {
            let sent = packet(pod_ip(0, 0, family), to, Body::Tcp(1000, 80, vec![1; 10]));
            let answer = error(gateway_ip(family), &sent, NO_ROUTE, 0);
            let moved = told("no_route");
            let out = [(pod(0), answer.frame(down(0)))];
            bed.step(&pod(0), &sent.frame(up(0)), &out, &names(&moved));
        }
    }
    bed.close();
}

#[test]
fn the_host_learns_it_too() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for family in 0..2 {
        let sent = udp(node_ip(0, family), pod_ip(0, 200, family), b"x");
        let answer = error(gateway_ip(family), &sent, NO_ROUTE, 0);
        let out = [(Place::Host, answer.frame(to_host()))];
        let moved = [("received", 2), ("generated", 1), ("to_host", 1), ("dropped.no_route", 1)];
        bed.step(&Place::Host, &sent.frame(from_host()), &out, &moved);
    }
    bed.close();
}

#[test]
fn a_pod_of_another_node_learns_it_through_the_tunnel() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        for family in 0..2 {
            let back = Tunnel::from_peer(1, mode, underlay);
            for (to, ttl, kind, reason) in [
                (pod_ip(0, 0, family), 1, TTL_EXPIRED, "ttl_expired"),
                (pod_ip(0, 200, family), 64, NO_ROUTE, "no_route"),
            ] {
                let sent = udp(pod_ip(1, 0, family), to, b"x").ttl(ttl);
                let moved = told(reason);
                let frame = back.wrap(&sent.frame(between(1, 0)));
                let got = bed.one(&UPLINK, &frame, &UPLINK, &names(&moved));
                // From the node's own address: what b takes from us.
                let answer = error(node_ip(0, family), &sent, kind, 0);
                let tunnel = Tunnel::to_peer(1, mode, underlay, flow_of(&got));
                assert_eq!(got, tunnel.wrap(&answer.frame(between(0, 1))));
            }
        }
        bed.close();
    }
}

#[test]
fn the_answer_finds_the_pod_at_another_worker() {
    let mut bed = Bed::with(2, objects::cluster(Mode::Geneve, Underlay::Ipv4, 2));
    // Arrives from pod 2 (worker 1): decided and answered there.
    let sent = udp(pod_ip(0, 1, 0), pod_ip(1, 0, 0), b"x").ttl(1);
    let answer = error(gateway_ip(0), &sent, TTL_EXPIRED, 0);
    let moved = told("ttl_expired");
    bed.step(&pod(1), &sent.frame(up(1)), &[(pod(1), answer.frame(down(1)))], &names(&moved));
    bed.close();
}

#[test]
fn some_packets_are_never_answered() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for family in 0..2 {
        let sent = udp(pod_ip(0, 0, family), pod_ip(1, 0, family), b"x").ttl(1);
        // Errors: never about each other.
        let kinds: &[u8] = [&[3, 4, 5, 11, 12][..], &[1, 2, 3, 4, 100, 127]][family];
        for kind in kinds {
            let body = Body::Error(*kind, 0, 0, sent.ip());
            let about = Packet { body, ..sent.clone() };
            bed.drops(&pod(0), &about.frame(up(0)), "ttl_expired");
        }
        // An ICMP header without any byte: it might be one.
        let body = Body::Raw([1, 58][family], Vec::new());
        bed.drops(&pod(0), &Packet { body, ..sent.clone() }.frame(up(0)), "ttl_expired");
        // Other ICMP is answered like anything else.
        let body = Body::Echo(false, 1, 1, vec![]);
        let ping = Packet { body, ..sent.clone() };
        let answer = error(gateway_ip(family), &ping, TTL_EXPIRED, 0);
        let moved = told("ttl_expired");
        bed.step(&pod(0), &ping.frame(up(0)), &[(pod(0), answer.frame(down(0)))], &names(&moved));
    }
    // Fragments: the first one only.
    let first = Packet {
        dont_fragment: false,
        more_fragments: true,
        body: Body::Raw(17, vec![0; 64]),
        ..udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"").ttl(1)
    };
    let answer = error(gateway_ip(0), &first, TTL_EXPIRED, 0);
    let moved = told("ttl_expired");
    bed.step(&pod(0), &first.frame(up(0)), &[(pod(0), answer.frame(down(0)))], &names(&moved));
    let later = Packet { offset: 8, ..first };
    bed.drops(&pod(0), &later.frame(up(0)), "ttl_expired");
    // The same over IPv6: a fragment header with an offset.
    let body = Body::Raw(44, [&[17, 0, 0, 8, 0, 0, 0, 1][..], &[0; 16]].concat());
    let later = packet(pod_ip(0, 0, 1), pod_ip(1, 0, 1), body).ttl(1);
    bed.drops(&pod(0), &later.frame(up(0)), "ttl_expired");
    bed.close();
}

#[test]
fn sources_that_are_no_host_are_never_answered() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for text in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        let sent = udp(text.parse().unwrap(), pod_ip(0, 200, 0), b"x");
        bed.drops(&Place::Host, &sent.frame(from_host()), "no_route");
    }
    for text in ["::", "ff02::1"] {
        let sent = udp(text.parse().unwrap(), pod_ip(0, 200, 1), b"x");
        bed.drops(&Place::Host, &sent.frame(from_host()), "no_route");
    }
    bed.close();
}

#[test]
fn an_answer_that_cannot_be_delivered_is_the_end() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    // From the host, with a source that nobody has: the answer has no route either.
    let sent = udp("203.0.113.10".parse().unwrap(), pod_ip(0, 200, 0), b"x");
    let moved = [("received", 2), ("generated", 1), ("dropped.no_route", 2)];
    bed.step(&Place::Host, &sent.frame(from_host()), &[], &moved);
    bed.close();
}

#[test]
fn answers_come_at_a_limited_rate() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let sent = udp(pod_ip(0, 0, 0), pod_ip(0, 200, 0), b"x").frame(up(0));
    let mut answers = 0;
    let burst = |bed: &mut Bed, count: usize, answers: &mut usize| {
        for _ in 0..count {
            assert!(bed.node.inject(&pod(0), &sent));
        }
        bed.node.run();
        *answers += bed.node.collect().len();
    };
    burst(&mut bed, 60, &mut answers);
    burst(&mut bed, 60, &mut answers);
    let counters = bed.node.counters();
    // 50 at once; the time that the test takes is worth a few more.
    assert!((50..110).contains(&answers), "{answers}");
    assert_eq!(counters.generated, answers as u64);
    let no_route = overlane_dataplane::packet::drop::DropReason::NoRoute;
    assert_eq!(counters.dropped[no_route as usize], 120);
    assert_eq!(counters.dropped_total(), 120);
    // After a second there are 50 again.
    bed.node.wait(Duration::from_secs(1));
    let mut more = 0;
    burst(&mut bed, 50, &mut more);
    assert_eq!(more, 50);
    bed.close();
}

#[test]
fn a_removed_pod_is_unreachable_from_the_next_packet_on() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        for (number, name) in [(0, objects::pod_name(0, 1)), (1, objects::pod_name(1, 0))] {
            let to = if number == 0 { pod_ip(0, 1, 0) } else { pod_ip(1, 0, 0) };
            let sent = udp(pod_ip(0, 0, 0), to, b"x");
            let _ = bed.send(&pod(0), &sent.frame(up(0)), FORWARDED);
            bed.node.apply(vec![Change::Remove(ObjectKey::Endpoint(name))]).unwrap();
            if number == 1 {
                // Its range is still the peer's, which says what it thinks of it.
                let _ = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
                bed.node.apply(vec![Change::Remove(ObjectKey::Peer("b".into()))]).unwrap();
            }
            let answer = error(gateway_ip(0), &sent, NO_ROUTE, 0);
            let moved = told("no_route");
            let out = [(pod(0), answer.frame(down(0)))];
            bed.step(&pod(0), &sent.frame(up(0)), &out, &names(&moved));
        }
        // A peer that was removed may not send any more.
        let back = Tunnel::from_peer(1, mode, underlay);
        let late = udp(pod_ip(1, 0, 0), pod_ip(0, 0, 0), b"late").frame(between(1, 0));
        bed.drops(&UPLINK, &back.wrap(&late), "tunnel_unknown_peer");
        // Back again.
        bed.node
            .apply(vec![
                Change::Set(Object::Peer(objects::peer(1, mode))),
                Change::Set(Object::Endpoint(objects::local_pod(1, 0))),
            ])
            .unwrap();
        let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
        let _ = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
        let sent = udp(pod_ip(0, 0, 0), pod_ip(0, 1, 0), b"x");
        let _ = bed.one(&pod(0), &sent.frame(up(0)), &pod(1), FORWARDED);
        bed.close();
    }
}
