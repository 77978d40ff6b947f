//! Services from inside: a virtual address becomes a backend, and the answer comes from the virtual
//! address.
//!
//! ```text
//! pod1 -- [ a ] == underlay == [ b ] -- pod        10.96.0.10:80 -> 10.244.1.11:8080 (pod2, here)
//! pod2 --/                                                          10.244.2.10:8080 (on b)
//! ```

use std::net::IpAddr;
use std::time::Duration;

use overlane_api::{
    Backend, BackendState, Change, Frontend, FrontendKind, Mode, Object, ObjectKey, Protocol,
    Reject, Service, Underlay,
};
use overlane_dataplane::testing::objects;

use super::bed::{Bed, FORWARDED, TUNNELS, UPLINK, pod};
use super::build::{
    Body, Packet, Tunnel, between, down, flow_of, gateway_ip, inner_of, node_ip, packet, pod_ip, up,
};
use super::icmp_error::{error, names, told};

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const FIN: u8 = 1;

/// The address of service number `number`.
pub fn vip(number: u8, family: usize) -> IpAddr {
    [format!("10.96.0.{}", 10 + number), format!("fd98::{:x}", 10 + number)][family]
        .parse()
        .unwrap()
}

fn backend(node: u8, pod: u8, family: usize) -> Backend {
    Backend {
        address: pod_ip(node, pod, family),
        port: 8080,
        weight: 1,
        local: node == 0,
        use_cluster: true,
        use_local: node == 0,
        serving: true,
        state: BackendState::Ready,
    }
}

/// Service number `number`, port 80, with these backends (node, pod).
pub fn service(number: u8, protocol: Protocol, backends: &[(u8, u8)]) -> Service {
    let frontends = (0..2).map(|family| Frontend {
        address: vip(number, family),
        port: 80,
        kind: FrontendKind::ClusterIp,
    });
    let backends =
        backends.iter().flat_map(|(node, pod)| (0..2).map(|family| backend(*node, *pod, family)));
    let mut service = Service {
        name: format!("default/web{number}:{protocol}"),
        protocol,
        frontends: frontends.collect(),
        backends: backends.collect(),
        internal: Default::default(),
        external: Default::default(),
        affinity_seconds: None,
        source_ranges: Vec::new(),
        reject: Reject::Rst,
        forwarding: Default::default(),
        algorithm: Default::default(),
        health_check_port: None,
    };
    service.frontends.sort();
    service.backends.sort_by_key(|backend| (backend.address, backend.port));
    service
}

fn bed(mode: Mode, underlay: Underlay, workers: u8, services: Vec<Service>) -> Bed {
    let mut changes = objects::cluster(mode, underlay, workers);
    if let Change::Set(Object::Node(node)) = &mut changes[0] {
        node.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd98::/108".parse().unwrap()];
    }
    changes.extend(services.into_iter().map(|service| Change::Set(Object::Service(service))));
    Bed::with(workers, changes)
}

fn tcp(flags: u8, payload: &[u8]) -> Body {
    Body::Segment(40_000, 80, flags, payload.to_vec())
}

fn udp() -> Body {
    Body::Udp(40_000, 80, b"question".to_vec())
}

/// `sent` goes from pod 1 to its service and on to the pod on node b; the answer comes back.
#[track_caller]
fn through(bed: &mut Bed, mode: Mode, underlay: Underlay, sent: &Packet) {
    let family = usize::from(sent.source.is_ipv6());
    let client = (sent.source, 40_000);
    let server = (pod_ip(1, 0, family), 8080);
    let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    let arrives = sent.between(client, server).ttl(63);
    assert_eq!(inner_of(&frame), arrives.frame(between(0, 1)));
    let outer = Tunnel::to_peer(1, mode, underlay, flow_of(&frame));
    assert_eq!(frame, outer.wrap(&arrives.frame(between(0, 1))));
    let reply = arrives.reply(b"answer");
    let back = Tunnel::from_peer(1, mode, underlay).wrap(&reply.frame(between(1, 0)));
    let seen = reply.between((sent.destination, 80), client).ttl(63);
    bed.step(&UPLINK, &back, &[(pod(0), seen.frame(down(0)))], FORWARDED);
}

#[test]
fn a_cluster_ip_becomes_its_backend_and_the_answer_comes_from_it() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let mut bed = bed(mode, underlay, 1, vec![service(0, protocol, &[(1, 0)])]);
                let (from, to) = (pod_ip(0, 0, family), vip(0, family));
                let bodies = match protocol {
                    Protocol::Tcp => {
                        vec![tcp(SYN, b""), tcp(ACK, b""), tcp(ACK, b"GET /"), tcp(FIN | ACK, b"")]
                    }
                    _ => vec![udp(), udp()],
                };
                for body in bodies {
                    through(&mut bed, mode, underlay, &packet(from, to, body));
                }
                if protocol == Protocol::Udp && family == 0 {
                    let body = Body::UdpNoSum(40_000, 80, b"no checksum".to_vec());
                    through(&mut bed, mode, underlay, &packet(from, to, body));
                }
                bed.close();
            }
        }
    }
}

#[test]
fn an_answer_of_a_flow_comes_from_its_backends_node_only() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = bed(mode, underlay, 1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
            let sent = packet(pod_ip(0, 0, family), vip(0, family), udp());
            for _ in 0..4 {
                through(&mut bed, mode, underlay, &sent);
            }
            let (client, server) = ((sent.source, 40_000), (pod_ip(1, 0, family), 8080));
            let reply = sent.between(client, server).reply(b"answer").frame(between(1, 0));
            let forged = Tunnel::from_peer(2, mode, underlay).wrap(&reply);
            bed.drops(&UPLINK, &forged, "inner_spoofed_source");
            through(&mut bed, mode, underlay, &sent);
            bed.close();
        }
    }
}

#[test]
fn answers_come_as_their_peer_may_send_today() {
    for family in 0..2 {
        let (mode, underlay) = (Mode::Geneve, Underlay::Ipv4);
        let mut bed = bed(mode, underlay, 1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
        let sent = packet(pod_ip(0, 0, family), vip(0, family), udp());
        for _ in 0..4 {
            through(&mut bed, mode, underlay, &sent);
        }
        let (client, server) = ((sent.source, 40_000), (pod_ip(1, 0, family), 8080));
        let arrives = sent.between(client, server).ttl(63);
        let reply = arrives.reply(b"answer");
        let seen = reply.between((sent.destination, 80), client).ttl(63);
        let back = |mode| Tunnel::from_peer(1, mode, underlay).wrap(&reply.frame(between(1, 0)));
        bed.node.set(Object::Peer(objects::peer(1, Mode::Vxlan))).unwrap();
        bed.node.publish();
        for _ in 0..3 {
            bed.drops(&UPLINK, &back(Mode::Geneve), "tunnel_mode_mismatch");
            let out = [(pod(0), seen.frame(down(0)))];
            bed.step(&UPLINK, &back(Mode::Vxlan), &out, FORWARDED);
        }
        bed.close();
    }
}

#[test]
fn flows_that_begin_together_go_where_each_would_go_alone() {
    let many: Vec<(u8, u8)> = (0..20).map(|n| (1 + n % 2, n)).collect();
    let mut stays = service(2, Protocol::Udp, &many[..10]);
    stays.affinity_seconds = Some(60);
    let services = vec![
        service(0, Protocol::Udp, &many[..10]),
        service(1, Protocol::Udp, &many),
        stays,
        service(3, Protocol::Udp, &[]),
    ];
    for family in 0..2 {
        let frames: Vec<_> = (0..60_u16)
            .map(|n| {
                let body = Body::Udp(40_000 + n, 80, b"first".to_vec());
                packet(pod_ip(0, 0, family), vip(n as u8 % 4, family), body).frame(up(0))
            })
            .collect();
        let leave = |vectors: &[&[Vec<u8>]]| {
            let mut bed = bed(Mode::Geneve, Underlay::Ipv4, 1, services.clone());
            for frames in vectors {
                for frame in *frames {
                    assert!(bed.node.inject(&pod(0), frame));
                }
                bed.node.run();
            }
            let mut out = bed.node.collect();
            // The fourth service answers with errors.
            out.retain(|(place, _)| *place == UPLINK);
            out.sort();
            out
        };
        let alone: Vec<_> = frames.chunks(1).collect();
        let together = leave(&[&frames]);
        assert_eq!(together.len(), 45);
        assert_eq!(together, leave(&alone));
    }
}

#[test]
fn a_backend_here_is_reached_from_any_worker_and_answers() {
    for workers in [1, 2] {
        for family in 0..2 {
            let services = vec![service(0, Protocol::Tcp, &[(0, 1)])];
            let mut bed = bed(Mode::Geneve, Underlay::Ipv4, workers, services);
            let hop: &[(&str, i64)] = match workers {
                1 => FORWARDED,
                _ => &[("received", 2), ("sent", 2), ("handed_over", 1)],
            };
            let (client, server) = ((pod_ip(0, 0, family), 40_000), (pod_ip(0, 1, family), 8080));
            for flags in [SYN, ACK, ACK | FIN] {
                let sent = packet(client.0, vip(0, family), tcp(flags, b""));
                let arrives = sent.between(client, server).ttl(63);
                bed.step(&pod(0), &sent.frame(up(0)), &[(pod(1), arrives.frame(down(1)))], hop);
                let reply = arrives.reply(b"");
                let seen = reply.between((vip(0, family), 80), client).ttl(63);
                bed.step(&pod(1), &reply.frame(up(1)), &[(pod(0), seen.frame(down(0)))], hop);
            }
            bed.close();
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for family in 0..2 {
        let services = vec![service(0, Protocol::Udp, &[(0, 0)])];
        let mut bed = bed(Mode::Geneve, Underlay::Ipv4, 1, services);
        let own = pod_ip(0, 0, family);
        let sent = packet(own, vip(0, family), udp());
        let arrives = sent.between((gateway_ip(family), 40_000), (own, 8080)).ttl(63);
        bed.step(&pod(0), &sent.frame(up(0)), &[(pod(0), arrives.frame(down(0)))], FORWARDED);
        let reply = arrives.reply(b"myself");
        let seen = reply.between((vip(0, family), 80), (own, 40_000)).ttl(63);
        bed.step(&pod(0), &reply.frame(up(0)), &[(pod(0), seen.frame(down(0)))], FORWARDED);
        bed.close();
    }
}

#[test]
fn one_client_port_reaches_two_services_of_one_backend() {
    let services = vec![service(0, Protocol::Udp, &[(1, 0)]), service(1, Protocol::Udp, &[(1, 0)])];
    let mut bed = bed(Mode::Geneve, Underlay::Ipv4, 1, services);
    let mut arrived = Vec::new();
    for number in 0..2 {
        let sent = packet(pod_ip(0, 0, 0), vip(number, 0), udp());
        let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
        arrived.push(inner_of(&frame));
    }
    let port = |frame: &[u8]| u16::from_be_bytes([frame[34], frame[35]]);
    assert_eq!(port(&arrived[0]), 40_000);
    assert_ne!(port(&arrived[1]), 40_000);
    for (number, frame) in (0..).zip(&arrived) {
        let (client, server) = ((pod_ip(0, 0, 0), port(frame)), (pod_ip(1, 0, 0), 8080));
        let sent = packet(client.0, server.0, udp()).between(client, server);
        assert_eq!(*frame, sent.clone().ttl(63).frame(between(0, 1)));
        let reply = sent.reply(b"answer");
        let back =
            Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4).wrap(&reply.frame(between(1, 0)));
        let seen = reply.between((vip(number, 0), 80), (client.0, 40_000)).ttl(63);
        bed.step(&UPLINK, &back, &[(pod(0), seen.frame(down(0)))], FORWARDED);
    }
    bed.close();
}

#[test]
fn what_no_backend_answers_is_refused_at_once() {
    for family in 0..2 {
        let mut icmp = service(2, Protocol::Tcp, &[]);
        icmp.reject = Reject::Icmp;
        let services = vec![service(0, Protocol::Tcp, &[]), service(1, Protocol::Udp, &[]), icmp];
        let mut bed = bed(Mode::Geneve, Underlay::Ipv4, 1, services);
        let from = pod_ip(0, 0, family);
        let unreachable = [(3, 3), (1, 4)];

        let sent = packet(from, vip(0, family), tcp(SYN, b""));
        let mut out = bed.send(&pod(0), &sent.frame(up(0)), &names(&told("service_no_backend")));
        let (place, frame) = out.pop().unwrap();
        assert_eq!(place, pod(0));
        let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::TransportSlice::Tcp(reset)) = parsed.transport else { panic!("TCP") };
        assert!(reset.rst() && reset.ack() && !reset.syn());
        assert_eq!((reset.sequence_number(), reset.acknowledgment_number()), (0, 2));
        assert_eq!((reset.source_port(), reset.destination_port()), (80, 40_000));
        let right = match parsed.net.unwrap() {
            etherparse::NetSlice::Ipv4(ip) => {
                reset.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).unwrap()
            }
            etherparse::NetSlice::Ipv6(ip) => {
                reset.calc_checksum_ipv6(ip.header().source(), ip.header().destination()).unwrap()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(reset.checksum(), right);

        for (number, body) in [(1, udp()), (2, tcp(SYN, b""))] {
            let sent = packet(from, vip(number, family), body);
            let answer = error(vip(number, family), &sent, unreachable, 0);
            let moved = told("service_no_backend");
            bed.step(
                &pod(0),
                &sent.frame(up(0)),
                &[(pod(0), answer.frame(down(0)))],
                &names(&moved),
            );
        }
        // The service has no such port.
        let sent = packet(from, vip(1, family), Body::Udp(40_000, 81, Vec::new()));
        let answer = error(vip(1, family), &sent, unreachable, 0);
        let moved = told("service_unknown_port");
        bed.step(&pod(0), &sent.frame(up(0)), &[(pod(0), answer.frame(down(0)))], &names(&moved));
        // No service has the address.
        let sent = packet(from, vip(100, family), udp());
        bed.drops(&pod(0), &sent.frame(up(0)), "service_unassigned");
        let rejected = super::listings::all_services(&mut bed).into_iter().map(|s| s.rejected);
        assert_eq!(rejected.collect::<Vec<_>>(), [1, 1, 1]);
        bed.close();
    }
}

#[test]
fn a_service_answers_ping() {
    for family in 0..2 {
        let services = vec![service(0, Protocol::Tcp, &[(1, 0)])];
        let mut bed = bed(Mode::Geneve, Underlay::Ipv4, 1, services);
        let sent =
            packet(pod_ip(0, 0, family), vip(0, family), Body::Echo(false, 7, 1, b"hi".to_vec()));
        let answer = sent.reply(b"hi");
        bed.step(&pod(0), &sent.frame(up(0)), &[(pod(0), answer.frame(down(0)))], FORWARDED);
        bed.close();
    }
}

#[test]
fn flags_that_no_connection_has_open_none() {
    let mut bed = bed(Mode::Geneve, Underlay::Ipv4, 1, vec![service(0, Protocol::Tcp, &[(1, 0)])]);
    for (flags, reason) in [
        (0, "tcp_bad_flags"),
        (SYN | FIN, "tcp_bad_flags"),
        (SYN | RST, "tcp_bad_flags"),
        (RST, "flow_unknown"),
        (FIN | ACK, "flow_unknown"),
        (SYN | ACK, "flow_unknown"),
    ] {
        let sent = packet(pod_ip(0, 0, 0), vip(0, 0), tcp(flags, b""));
        bed.drops(&pod(0), &sent.frame(up(0)), reason);
    }
    bed.close();
}

#[test]
fn when_a_backend_goes_connections_stay_and_datagrams_move() {
    let both = [(0, 1), (1, 0)];
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut bed = bed(Mode::Geneve, Underlay::Ipv4, 1, vec![service(0, protocol, &both)]);
        let bodies = |port| match protocol {
            Protocol::Tcp => {
                (Body::Segment(port, 80, SYN, Vec::new()), Body::Segment(port, 80, ACK, Vec::new()))
            }
            _ => (Body::Udp(port, 80, Vec::new()), Body::Udp(port, 80, Vec::new())),
        };
        let mut remote = Vec::new();
        for port in 40_000..40_040 {
            let sent = packet(pod_ip(0, 0, 0), vip(0, 0), bodies(port).0);
            let out = bed.send(&pod(0), &sent.frame(up(0)), FORWARDED);
            if out[0].0 == UPLINK {
                remote.push(port);
            }
        }
        // Forty coins: all alike once in 2^39.
        assert!(!remote.is_empty() && remote.len() < 40, "{remote:?}");
        bed.node.set(Object::Service(service(0, protocol, &[(0, 1)]))).unwrap();
        bed.node.publish();
        for port in remote {
            let sent = packet(pod_ip(0, 0, 0), vip(0, 0), bodies(port).1);
            let out = bed.send(&pod(0), &sent.frame(up(0)), FORWARDED);
            let stays = protocol == Protocol::Tcp;
            assert_eq!(out[0].0 == UPLINK, stays, "{protocol} port {port}");
        }
        // A port that begins anew goes to who is there.
        for port in 50_000..50_040 {
            let sent = packet(pod_ip(0, 0, 0), vip(0, 0), bodies(port).0);
            let out = bed.send(&pod(0), &sent.frame(up(0)), FORWARDED);
            assert_eq!(out[0].0, pod(1));
        }
        bed.close();
    }
}

#[test]
fn a_service_that_is_gone_keeps_its_connections_only() {
    let services = vec![service(0, Protocol::Tcp, &[(1, 0)]), service(1, Protocol::Udp, &[(1, 0)])];
    let mut bed = bed(Mode::Geneve, Underlay::Ipv4, 1, services);
    let open = [
        packet(pod_ip(0, 0, 0), vip(0, 0), tcp(SYN, b"")),
        packet(pod_ip(0, 0, 0), vip(1, 0), udp()),
    ];
    for sent in &open {
        bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    }
    for (number, protocol) in [(0, Protocol::Tcp), (1, Protocol::Udp)] {
        let key = ObjectKey::Service(service(number, protocol, &[]).name);
        bed.node.apply(vec![Change::Remove(key)]).unwrap();
    }
    bed.node.publish();
    let goes_on = packet(pod_ip(0, 0, 0), vip(0, 0), tcp(ACK, b"more"));
    bed.one(&pod(0), &goes_on.frame(up(0)), &UPLINK, FORWARDED);
    bed.drops(&pod(0), &open[1].frame(up(0)), "service_unassigned");
    bed.close();
}

#[test]
fn a_flow_is_forgotten_when_its_time_is_over() {
    let mut bed = bed(Mode::Geneve, Underlay::Ipv4, 1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
    let sent = packet(pod_ip(0, 0, 0), vip(0, 0), udp());
    bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    assert_eq!(bed.node.flows(), 1);
    bed.node.wait(Duration::from_secs(100));
    bed.node.run();
    assert_eq!(bed.node.flows(), 1, "120 seconds without an answer (RFC 4787 REQ-5)");
    bed.node.wait(Duration::from_secs(30));
    bed.node.run();
    assert_eq!(bed.node.flows(), 0);
    let reply = packet(pod_ip(1, 0, 0), pod_ip(0, 0, 0), udp())
        .between((pod_ip(1, 0, 0), 8080), (pod_ip(0, 0, 0), 40_000));
    let back = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4).wrap(&reply.frame(between(1, 0)));
    // Nobody knows it any more: it is what it is, a packet from one pod to another.
    bed.step(&UPLINK, &back, &[(pod(0), reply.clone().ttl(63).frame(down(0)))], FORWARDED);
    bed.close();
}

#[test]
fn errors_about_a_translated_packet_reach_its_sender_and_quote_what_it_sent() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let mut bed = bed(mode, underlay, 1, vec![service(0, protocol, &[(1, 0)])]);
                let body = if protocol == Protocol::Tcp { tcp(SYN, b"") } else { udp() };
                let sent = packet(pod_ip(0, 0, family), vip(0, family), body);
                let (client, server) = ((sent.source, 40_000), (pod_ip(1, 0, family), 8080));
                bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
                let arrived = sent.between(client, server).ttl(63);
                let unreachable = [(3, 3), (1, 4)];
                let too_big = [(3, 4), (2, 0)];
                for (from, seen_from, kind, rest) in [
                    // The backend itself is the service to its client; a router is a router.
                    (server.0, vip(0, family), unreachable, 0),
                    (node_ip(1, family), node_ip(1, family), unreachable, 0),
                    (node_ip(1, family), node_ip(1, family), too_big, 1400),
                ] {
                    let told = error(from, &arrived, kind, rest);
                    let back =
                        Tunnel::from_peer(1, mode, underlay).wrap(&told.frame(between(1, 0)));
                    let seen = error(seen_from, &sent.clone().ttl(63), kind, rest).ttl(63);
                    bed.step(&UPLINK, &back, &[(pod(0), seen.frame(down(0)))], FORWARDED);
                }
                // Only eight bytes of the packet are quoted: no TCP checksum is among them.
                let short = |about: &Packet, from| {
                    let mut whole = error(from, about, unreachable, 0);
                    if let Body::Error(_, _, _, quoted) = &mut whole.body {
                        quoted.truncate([28, 48][family]);
                    }
                    whole
                };
                let told = short(&arrived, node_ip(1, family));
                let back = Tunnel::from_peer(1, mode, underlay).wrap(&told.frame(between(1, 0)));
                let seen = short(&sent.clone().ttl(63), node_ip(1, family)).ttl(63);
                bed.step(&UPLINK, &back, &[(pod(0), seen.frame(down(0)))], FORWARDED);
                bed.close();
            }
        }
    }
}
