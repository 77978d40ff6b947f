//! Direct server return: the backend's node answers clients from outside itself.
//!
//! ```text
//! client 203.0.113.10 --> 198.51.100.80:80 at a == Geneve, {198.51.100.80, 80} ==> b --> pod :8080
//!        ^----------------------------- from 198.51.100.80:80 ---------------------'
//! ```
//! The node under test has the address in the first half, and the backend in the second.

use std::net::IpAddr;
use std::time::Duration;

use overlane_api::{
    Change, Forwarding, Frontend, FrontendKind, Mode, Object, Protocol, Scope, Service, Underlay,
};
use overlane_dataplane::testing::{Place, objects};

use super::bed::{Bed, FORWARDED, UPLINK, pod};
use super::build::{
    Body, IN, Packet, Tunnel, between, down, family_of, flow_of, node_ip, packet, pod_ip, up,
};
use super::egress::{OUT, bed_over, outside};
use super::icmp_error::{error, names, told};
use super::services::service;

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN_ACK: u8 = 17;
pub const NODE_PORT: u16 = 30_080;
const TOO_BIG: [(u8, u8); 2] = [(3, 4), (2, 0)];
const NO_PORT: [(u8, u8); 2] = [(3, 3), (1, 4)];
const GENEVE: [(Mode, Underlay); 2] =
    [(Mode::Geneve, Underlay::Ipv4), (Mode::Geneve, Underlay::Ipv6)];

pub fn balancer(number: u8, family: usize) -> IpAddr {
    [format!("198.51.100.{}", 80 + number), format!("2001:db8:100::{}", 80 + number)][family]
        .parse()
        .unwrap()
}

/// A service of which backends answer clients themselves.
pub fn direct(number: u8, protocol: Protocol, backends: &[(u8, u8)]) -> Service {
    let mut service = service(number, protocol, backends);
    for family in 0..2 {
        let address = balancer(number, family);
        service.frontends.push(Frontend { address, port: 80, kind: FrontendKind::LoadBalancer });
        let address = node_ip(0, family);
        let port = NODE_PORT + u16::from(number);
        service.frontends.push(Frontend { address, port, kind: FrontendKind::NodePort });
    }
    service.frontends.sort();
    service.forwarding = Forwarding::Dsr;
    service
}

pub fn bed(tunnel: (Mode, Underlay), workers: u8, services: Vec<Service>) -> Bed {
    let mut bed = bed_over(tunnel, workers, workers, |node| {
        node.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd98::/108".parse().unwrap()];
    });
    for service in services {
        bed.node.set(Object::Service(service)).unwrap();
    }
    bed
}

/// The option that names a service, and the Geneve header before it.
pub fn header(vip: (IpAddr, u16)) -> Vec<u8> {
    let address = match vip.0 {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let data = [&address[..], &vip.1.to_be_bytes(), &[0, 0]].concat();
    with_option(0x14b, 0x81, &data)
}

fn with_option(class: u16, kind: u8, data: &[u8]) -> Vec<u8> {
    let words = (data.len() / 4) as u8;
    let base = [1 + words, 0x40, 0x65, 0x58, 0, 0x0c, 0xe5, 0];
    [&base[..], &class.to_be_bytes(), &[kind, words], data].concat()
}

/// A tunnel from or to peer 1 whose packets name this service.
pub fn naming(tunnel: Tunnel, vip: (IpAddr, u16)) -> Tunnel {
    Tunnel { header: header(vip), ..tunnel }
}

pub fn client(family: usize) -> (IpAddr, u16) {
    (outside(family), 50_000)
}

fn asks(family: usize, body: Body) -> Packet {
    packet(outside(family), balancer(0, family), body)
}

fn segment(flags: u8) -> Body {
    Body::Segment(50_000, 80, flags, if flags == SYN { Vec::new() } else { b"x".to_vec() })
}

fn datagram() -> Body {
    Body::Udp(50_000, 80, b"question".to_vec())
}

/// A client's packet goes on to b's pod, with the option or without.
#[track_caller]
fn goes_on(bed: &mut Bed, (mode, underlay): (Mode, Underlay), sent: &Packet, has_option: bool) {
    let family = usize::from(sent.source.is_ipv6());
    let frame = bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
    let seen = sent.between(client(family), (pod_ip(1, 0, family), 8080)).ttl(63);
    let mut tunnel = Tunnel::to_peer(1, mode, underlay, flow_of(&frame));
    if has_option {
        tunnel = naming(tunnel, (sent.destination, 80));
    }
    assert_eq!(frame, tunnel.wrap(&seen.frame(between(0, 1))));
}

#[test]
fn a_backend_elsewhere_is_told_the_service_and_sees_the_client() {
    for tunnel in GENEVE {
        for family in 0..2 {
            let services =
                vec![direct(0, Protocol::Tcp, &[(1, 0)]), direct(1, Protocol::Udp, &[(1, 0)])];
            let mut bed = bed(tunnel, 1, services);
            for (flags, has_option) in [
                (SYN, true),
                (SYN, true),
                (ACK, false),
                (ACK, false),
                (FIN_ACK, false),
                (ACK, false),
            ] {
                goes_on(&mut bed, tunnel, &asks(family, segment(flags)), has_option);
            }
            for _ in 0..3 {
                let sent = Packet { destination: balancer(1, family), ..asks(family, datagram()) };
                goes_on(&mut bed, tunnel, &sent, true);
            }
            assert_eq!(bed.node.flows(), 2);
            bed.close();
        }
    }
}

#[test]
fn a_connection_of_which_one_side_is_seen_lasts_as_one_that_is_answered() {
    let mut bed = bed(GENEVE[0], 1, vec![direct(0, Protocol::Tcp, &[(1, 0)])]);
    let minutes = |bed: &mut Bed, minutes: u64| {
        bed.node.wait(Duration::from_secs(60 * minutes));
        bed.node.run();
        bed.node.wait(Duration::from_secs(2));
        bed.node.run();
        bed.node.flows()
    };
    goes_on(&mut bed, GENEVE[0], &asks(0, segment(SYN)), true);
    assert_eq!(minutes(&mut bed, 5), 0, "never acknowledged");
    for flags in [SYN, ACK] {
        goes_on(&mut bed, GENEVE[0], &asks(0, segment(flags)), flags == SYN);
    }
    assert_eq!(minutes(&mut bed, 60), 1, "established");
    goes_on(&mut bed, GENEVE[0], &asks(0, segment(FIN_ACK)), false);
    assert_eq!(minutes(&mut bed, 5), 0, "closed");
    // In the middle, here: the backend's node knows.
    goes_on(&mut bed, GENEVE[0], &asks(0, segment(ACK)), false);
    assert_eq!(minutes(&mut bed, 60), 1);
    bed.close();
}

#[test]
fn where_the_backends_node_cannot_be_told_the_answers_come_back_here() {
    let tcp = |kind: &str| {
        let mut service = direct(0, Protocol::Tcp, &[(1, 0)]);
        if kind == "snat" {
            service.forwarding = Forwarding::Snat;
        }
        service
    };
    let ways = [
        ("vxlan", (Mode::Vxlan, Underlay::Ipv4)),
        ("native", (Mode::Native, Underlay::Ipv4)),
        ("snat", GENEVE[0]),
    ];
    for (kind, tunnel) in ways {
        for (family, to_node) in [(0, false), (0, true), (1, false), (1, true)] {
            let mut bed = bed(tunnel, 1, vec![tcp(kind)]);
            let (to, port) = match to_node {
                true => (node_ip(0, family), NODE_PORT),
                false => (balancer(0, family), 80),
            };
            let sent = packet(outside(family), to, Body::Segment(50_000, port, SYN, Vec::new()));
            let got = bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
            let inner = if kind == "native" { got } else { super::build::inner_of(&got) };
            let at = [34, 54][family];
            let own = u16::from_be_bytes([inner[at], inner[at + 1]]);
            let server = (pod_ip(1, 0, family), 8080);
            let left = sent.between((node_ip(0, family), own), server).ttl(63);
            assert_eq!(inner[14..], left.ip(), "{kind}");
            let reply = left.reply(b"").ttl(60);
            let back = match kind {
                "native" => reply.frame(IN),
                _ => Tunnel::from_peer(1, tunnel.0, tunnel.1).wrap(&reply.frame(between(1, 0))),
            };
            let seen = reply.between((to, port), client(family)).ttl(59);
            bed.step(&UPLINK, &back, &[(UPLINK, seen.frame(OUT))], FORWARDED);
            bed.close();
        }
    }
}

#[test]
fn one_client_port_to_two_services_of_one_backend_is_told_apart() {
    for family in 0..2 {
        let services =
            vec![direct(0, Protocol::Udp, &[(1, 0)]), direct(1, Protocol::Udp, &[(1, 0)])];
        let mut bed = bed(GENEVE[0], 1, services);
        goes_on(&mut bed, GENEVE[0], &asks(family, datagram()), true);
        let second = Packet { destination: balancer(1, family), ..asks(family, datagram()) };
        let got = bed.one(&UPLINK, &second.frame(IN), &UPLINK, FORWARDED);
        let inner = super::build::inner_of(&got);
        let at = [34, 54][family];
        let own = u16::from_be_bytes([inner[at], inner[at + 1]]);
        let left = second.between((node_ip(0, family), own), (pod_ip(1, 0, family), 8080)).ttl(63);
        assert_eq!(inner, left.frame(between(0, 1)));
        bed.close();
    }
}

#[test]
fn the_option_takes_its_bytes_of_the_mtu() {
    for tunnel in GENEVE {
        for family in 0..2 {
            let mut bed = bed(tunnel, 1, vec![direct(0, Protocol::Udp, &[(1, 0)])]);
            let mtu = [1450, 1430][family_of(tunnel.1)] - [12, 24][family];
            let sized =
                |len: usize| asks(family, Body::Udp(50_000, 80, vec![5; len - [28, 48][family]]));
            goes_on(&mut bed, tunnel, &sized(mtu), true);
            let big = sized(mtu + 1);
            let answer = error(node_ip(0, family), &big, TOO_BIG, mtu as u32);
            let moved = told("packet_too_big");
            bed.step(&UPLINK, &big.frame(IN), &[(UPLINK, answer.frame(OUT))], &names(&moved));
            bed.close();
        }
    }
}

#[test]
fn errors_on_the_way_to_the_client_reach_the_backend() {
    for (tunnel, workers) in GENEVE.into_iter().flat_map(|tunnel| [(tunnel, 1), (tunnel, 2)]) {
        for family in 0..2 {
            let mut bed = bed(tunnel, workers, vec![direct(0, Protocol::Udp, &[(1, 0)])]);
            let sent = asks(family, datagram());
            goes_on(&mut bed, tunnel, &sent, true);
            let router = ["198.18.0.1", "2001:db8:ffff::1"][family].parse().unwrap();
            // What the router quotes is the backend's answer, as it left b.
            let told = error(router, &sent.reply(b"answer").ttl(9), TOO_BIG, 1300);
            let server = (pod_ip(1, 0, family), 8080);
            let answer = sent.between(client(family), server).reply(b"answer").ttl(9);
            let seen = error(router, &answer, TOO_BIG, 1300).ttl(63);
            // A router's packets come by any queue: the client's came by the first.
            for queue in 0..usize::from(workers) {
                let moved: &[(&str, i64)] = match queue {
                    0 => FORWARDED,
                    _ => &[("received", 2), ("sent", 2), ("handed_over", 1)],
                };
                let frame = bed.one(&Place::Uplink(queue), &told.frame(IN), &UPLINK, moved);
                let outer = Tunnel::to_peer(1, tunnel.0, tunnel.1, flow_of(&frame));
                assert_eq!(frame, outer.wrap(&seen.frame(between(0, 1))));
            }
            bed.close();
        }
    }
}

#[test]
fn a_flow_to_a_node_that_is_told_no_more_goes_another_way() {
    let mut bed = bed(GENEVE[0], 1, vec![direct(0, Protocol::Udp, &[(1, 0)])]);
    goes_on(&mut bed, GENEVE[0], &asks(0, datagram()), true);
    bed.node.set(Object::Peer(objects::peer(1, Mode::Vxlan))).unwrap();
    let got = bed.one(&UPLINK, &asks(0, datagram()).frame(IN), &UPLINK, FORWARDED);
    let inner = super::build::inner_of(&got);
    assert_eq!(inner[26..30], [10, 0, 1, 4], "with this node's address");
    bed.node.set_resolved("b", false);
    bed.node.publish();
    bed.node.set(Object::Peer(objects::peer(1, Mode::Geneve))).unwrap();
    bed.close();
}

#[test]
fn a_backend_here_sees_the_client_as_well() {
    for family in 0..2 {
        let mut bed = bed(GENEVE[0], 1, vec![direct(0, Protocol::Tcp, &[(0, 0)])]);
        let sent = asks(family, segment(SYN));
        let arrives = sent.between(client(family), (pod_ip(0, 0, family), 8080)).ttl(63);
        bed.step(&UPLINK, &sent.frame(IN), &[(pod(0), arrives.frame(down(0)))], FORWARDED);
        let reply = arrives.reply(b"");
        let seen = reply.between((balancer(0, family), 80), client(family)).ttl(63);
        bed.step(&pod(0), &reply.frame(up(0)), &[(UPLINK, seen.frame(OUT))], FORWARDED);
        bed.close();
    }
}

/// A client's packet as b sends it on to pod `number` here.
fn sent_on(number: u8, family: usize, body: Body) -> Packet {
    let to = pod_ip(0, number, family);
    packet(outside(family), to, body).between(client(family), (to, 8080)).ttl(63)
}

fn from_b(tunnel: (Mode, Underlay), vip: Option<(IpAddr, u16)>, inner: &Packet) -> Vec<u8> {
    let outer = Tunnel::from_peer(1, tunnel.0, tunnel.1);
    let outer = vip.map_or(outer.clone(), |vip| naming(outer, vip));
    outer.wrap(&inner.frame(between(1, 0)))
}

#[test]
fn the_backends_node_answers_the_client_itself_as_the_service() {
    for tunnel in GENEVE {
        for workers in [1, 2] {
            for family in 0..2 {
                let last = workers - 1;
                let services = vec![
                    direct(0, Protocol::Tcp, &[(0, last)]),
                    direct(1, Protocol::Udp, &[(0, last)]),
                ];
                let mut bed = bed(tunnel, workers, services);
                for (number, body, has_option) in [
                    (0, segment(SYN), true),
                    (0, segment(ACK), false),
                    (1, datagram(), true),
                    (1, datagram(), true),
                    (0, segment(FIN_ACK), false),
                ] {
                    let vip = (balancer(number, family), 80);
                    let inner = sent_on(last, family, body);
                    for queue in 0..usize::from(workers) {
                        let moved: &[(&str, i64)] = match queue == usize::from(last) {
                            true => FORWARDED,
                            false => &[("received", 2), ("sent", 2), ("handed_over", 1)],
                        };
                        let frame = from_b(tunnel, has_option.then_some(vip), &inner);
                        let seen = inner.clone().ttl(62).frame(down(last));
                        bed.step(&Place::Uplink(queue), &frame, &[(pod(last), seen)], moved);
                    }
                    let reply = inner.reply(b"answer");
                    let seen = reply.between(vip, client(family)).ttl(63);
                    let out = (Place::Uplink(usize::from(last)), seen.frame(OUT));
                    bed.step(&pod(last), &reply.frame(up(last)), &[out], FORWARDED);
                }
                assert_eq!(bed.node.flows(), 2);
                bed.close();
            }
        }
    }
}

#[test]
fn errors_at_the_backends_node_go_both_ways() {
    for tunnel in GENEVE {
        for family in 0..2 {
            let mut bed = bed(tunnel, 1, vec![direct(0, Protocol::Udp, &[(0, 0)])]);
            let vip = (balancer(0, family), 80);
            let inner = sent_on(0, family, datagram());
            let seen = inner.clone().ttl(62);
            let frame = from_b(tunnel, Some(vip), &inner);
            bed.step(&UPLINK, &frame, &[(pod(0), seen.frame(down(0)))], FORWARDED);
            // The pod's own, to the client, as the service's.
            let about = error(pod_ip(0, 0, family), &seen, NO_PORT, 0);
            let asked = seen.between(client(family), vip);
            let out = error(vip.0, &asked, NO_PORT, 0).ttl(63);
            bed.step(&pod(0), &about.frame(up(0)), &[(UPLINK, out.frame(OUT))], FORWARDED);
            // A router's, which b sends on.
            let router = ["198.18.0.1", "2001:db8:ffff::1"][family].parse().unwrap();
            let about = error(router, &inner.reply(b"answer"), TOO_BIG, 1300).ttl(63);
            let seen = about.clone().ttl(62).frame(down(0));
            let frame = from_b(tunnel, None, &about);
            bed.step(&UPLINK, &frame, &[(pod(0), seen)], FORWARDED);
            bed.close();
        }
    }
}

#[test]
fn what_only_seems_to_be_for_a_service_does_not_come_in() {
    for tunnel in GENEVE {
        for family in 0..2 {
            let mut other = direct(3, Protocol::Udp, &[(0, 0)]);
            other.forwarding = Forwarding::Snat;
            let services = vec![
                direct(0, Protocol::Udp, &[(0, 0), (1, 0)]),
                direct(1, Protocol::Udp, &[(0, 1)]),
                other,
                direct(4, Protocol::Tcp, &[(0, 0)]),
            ];
            let mut bed = bed(tunnel, 1, services);
            let vip = (balancer(0, family), 80);
            let inner = sent_on(0, family, datagram());
            let unknown = "service_return_unknown";
            for (vip, reason) in [
                ((balancer(9, family), 80), unknown),
                ((balancer(0, family), 81), unknown),
                // Another pod's, one that is not forwarded so, one of another protocol, addresses that
                // are not the peer's to answer at.
                ((balancer(1, family), 80), unknown),
                ((balancer(3, family), 80), unknown),
                ((balancer(4, family), 80), unknown),
                ((node_ip(0, family), NODE_PORT), unknown),
                ((super::services::vip(0, family), 80), unknown),
                ((balancer(0, 1 - family), 80), "geneve_bad_option_length"),
            ] {
                bed.drops(&UPLINK, &from_b(tunnel, Some(vip), &inner), reason);
            }
            let own = client(family);
            for (inner, reason) in [
                (inner.between(own, (pod_ip(0, 0, family), 8081)), unknown),
                (inner.between(own, (pod_ip(0, 200, family), 8080)), unknown),
                (inner.between(own, (pod_ip(1, 0, family), 8080)), unknown),
                (inner.between(own, (node_ip(0, family), 8080)), unknown),
                (inner.between(own, (outside(family), 8080)), unknown),
                (
                    inner.between((pod_ip(1, 0, family), 1), inner_to(family)),
                    "inner_spoofed_source",
                ),
                (
                    inner.between((pod_ip(2, 0, family), 1), inner_to(family)),
                    "inner_spoofed_source",
                ),
                (inner.between((node_ip(0, family), 1), inner_to(family)), "inner_spoofed_source"),
                (inner.between((balancer(0, family), 1), inner_to(family)), "inner_spoofed_source"),
            ] {
                bed.drops(&UPLINK, &from_b(tunnel, Some(vip), &inner), reason);
            }
            // Without an option there is no flow yet; in the middle of a connection there was one.
            bed.drops(&UPLINK, &from_b(tunnel, None, &inner), "inner_spoofed_source");
            let middle = sent_on(0, family, segment(ACK));
            bed.drops(&UPLINK, &from_b(tunnel, None, &middle), "flow_unknown");
            let stray = Tunnel {
                source: node_ip(9, family_of(tunnel.1)),
                ..naming(Tunnel::from_peer(1, tunnel.0, tunnel.1), vip)
            };
            let stray = stray.wrap(&inner.frame(between(1, 0)));
            bed.drops(&UPLINK, &stray, "tunnel_unknown_peer");
            // A pod that makes such a packet itself.
            let pods = Tunnel {
                macs: up(0),
                source: pod_ip(0, 0, family_of(tunnel.1)),
                ..naming(Tunnel::from_peer(1, tunnel.0, tunnel.1), vip)
            };
            let pods = pods.wrap(&inner.frame(between(1, 0)));
            bed.drops(&pod(0), &pods, "pod_to_tunnel_port");
            assert_eq!(bed.node.flows(), 0);
            bed.close();
        }
    }
}

fn inner_to(family: usize) -> (IpAddr, u16) {
    (pod_ip(0, 0, family), 8080)
}

#[test]
fn options_that_are_not_whole_or_not_known_are_named() {
    let mut bed = bed(GENEVE[0], 1, vec![direct(0, Protocol::Udp, &[(0, 0)])]);
    let inner = sent_on(0, 0, datagram()).frame(between(1, 0));
    for (header, reason) in [
        (with_option(0x14b, 0x81, &[1; 4]), "geneve_bad_option_length"),
        (with_option(0x14b, 0x81, &[1; 20]), "geneve_bad_option_length"),
        (with_option(0x14b, 0x81, &[]), "geneve_bad_option_length"),
        (with_option(0x14b, 0x82, &[1; 8]), "geneve_unknown_critical_option"),
        (with_option(0x14c, 0x81, &[1; 8]), "geneve_unknown_critical_option"),
        (with_option(0x14b, 0x01, &[1; 8]), "inner_spoofed_source"),
    ] {
        let tunnel = Tunnel { header, ..Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4) };
        bed.drops(&UPLINK, &tunnel.wrap(&inner), reason);
    }
    bed.close();
}

#[test]
fn flows_end_with_their_service_or_backend() {
    for family in 0..2 {
        let mut bed = bed(GENEVE[0], 1, vec![direct(0, Protocol::Udp, &[(0, 0)])]);
        let vip = (balancer(0, family), 80);
        let inner = sent_on(0, family, datagram());
        let seen = inner.clone().ttl(62).frame(down(0));
        let frame = from_b(GENEVE[0], Some(vip), &inner);
        bed.step(&UPLINK, &frame, &[(pod(0), seen.clone())], FORWARDED);
        // Another service takes over the same client's port.
        bed.node.set(Object::Service(direct(1, Protocol::Udp, &[(0, 0)]))).unwrap();
        let other = (balancer(1, family), 80);
        let again = from_b(GENEVE[0], Some(other), &inner);
        bed.step(&UPLINK, &again, &[(pod(0), seen.clone())], FORWARDED);
        let reply = inner.reply(b"answer");
        let out = reply.between(other, client(family)).ttl(63).frame(OUT);
        bed.step(&pod(0), &reply.frame(up(0)), &[(UPLINK, out)], FORWARDED);
        bed.step(&UPLINK, &frame, &[(pod(0), seen)], FORWARDED);
        assert_eq!(bed.node.flows(), 1);
        bed.node
            .apply(vec![Change::Set(Object::Service(direct(0, Protocol::Udp, &[(0, 1)])))])
            .unwrap();
        bed.drops(&UPLINK, &frame, "service_return_unknown");
        assert_eq!(bed.node.flows(), 0);
        bed.close();
    }
}

#[test]
fn the_policy_local_has_no_other_node_to_tell() {
    let mut service = direct(0, Protocol::Tcp, &[(1, 0)]);
    service.external = Scope::Local;
    let mut bed = bed(GENEVE[0], 1, vec![service]);
    bed.drops(&UPLINK, &asks(0, segment(SYN)).frame(IN), "service_no_local_backend");
    bed.close();
}

#[test]
fn bytes_changed_at_random_behind_the_tunnel_header_never_go_unaccounted() {
    let mut seed = 0x0f1e_2d3c_4b5a_6978_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize
    };
    for tunnel in GENEVE {
        let services = vec![
            direct(0, Protocol::Udp, &[(0, 0), (1, 0)]),
            direct(1, Protocol::Tcp, &[(0, 1), (1, 0)]),
        ];
        let mut bed = bed(tunnel, 2, services);
        let tunnel_header = [42, 62][family_of(tunnel.1)];
        for number in 0..2000 {
            let (family, service) = (number % 2, (number / 2 % 2) as u8);
            let body = if service == 0 { datagram() } else { segment(SYN) };
            let vip = (balancer(service, family), 80);
            let mut frame = from_b(tunnel, Some(vip), &sent_on(service, family, body));
            // Options and what is inside.
            for _ in 0..random() % 4 {
                let at = tunnel_header + random() % (frame.len() - tunnel_header);
                frame[at] = random() as u8;
            }
            let before = bed.node.counters();
            assert!(bed.node.inject(&Place::Uplink(number % 2), &frame));
            bed.node.run();
            bed.node.check_books().unwrap();
            let after = bed.node.counters();
            let own =
                (after.generated - before.generated) + (after.handed_over - before.handed_over);
            assert_eq!(after.received - before.received - own, 1);
            let _ = bed.node.collect();
        }
        assert!(bed.node.flows() > 0);
        bed.close();
    }
}
