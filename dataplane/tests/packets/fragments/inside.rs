//! From pods: out of the cluster and through services, and what is not translated.

use overlane_api::{Mode, Protocol, Underlay};
use overlane_dataplane::testing::Place;

use super::*;
use crate::bed::{FORWARDED, UPLINK, pod};
use crate::build::{IN, Tunnel, between, down, gateway_ip, inner_of, node_ip, pod_ip, up};
use crate::egress::{OUT, bed_with, outside};
use crate::services::{service, vip};

/// What pods send in pieces: body, own port or identifier, that of the other end.
fn bodies() -> Vec<(Body, u16, u16)> {
    vec![
        (Body::Udp(41_000, 443, bytes(4000)), 41_000, 443),
        (Body::Echo(false, 77, 1, bytes(4000)), 77, 0),
        (Body::Segment(42_000, 443, SYN, bytes(3000)), 42_000, 443),
    ]
}

/// There and back in one of [`orders`].
pub fn out_of_the_cluster(order_number: usize) {
    for family in 0..2 {
        let mut bed = bed_with(1, Vec::new());
        for (body, own, remote_port) in bodies() {
            let is_ping = remote_port == 0;
            let (from, remote) = ((pod_ip(0, 0, family), own), (outside(family), remote_port));
            let sent = whole(from.0, remote.0, body);
            let pieces = framed(&cut(&sent, &[1392, 2784]), up(0));
            let order = orders(pieces.len()).remove(order_number);
            let left = carry(&mut bed, &[pod(0)], &ordered(&pieces, &order), &UPLINK, OUT);
            let got = reassemble(&left);
            let external = (node_ip(0, family), port_of(&got, is_ping));
            let arrives = sent.between(external, remote).ttl(63);
            assert_eq!(got, named_as(&arrives, &got).ip());

            let reply = arrives.reply(&bytes(5000));
            let pieces = framed(&cut(&reply, &[1400, 2800, 4200]), IN);
            let order = orders(pieces.len()).remove(order_number);
            let seen = carry(&mut bed, &[UPLINK], &ordered(&pieces, &order), &pod(0), down(0));
            assert_eq!(reassemble(&seen), reply.between(remote, from).ttl(63).ip());
        }
        bed.close();
    }
}

#[test]
fn frag_in_order_translated() {
    out_of_the_cluster(0);
}

#[test]
fn frag_out_of_order_translated() {
    out_of_the_cluster(1);
    out_of_the_cluster(2);
}

#[test]
fn frag_not_nated_left_alone() {
    for family in 0..2 {
        for to in [pod_ip(0, 1, family), pod_ip(1, 0, family)] {
            let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(0, 1)])]);
            // There are flows: every fragment to a pod here might be of one.
            let other = datagram((pod_ip(0, 0, family), 5), (vip(0, family), 80), 10);
            bed.one(&pod(0), &other.frame(up(0)), &pod(1), FORWARDED);
            let sent = datagram((pod_ip(0, 0, family), 1000), (to, 2000), 4000);
            let pieces = cut(&sent, &[1392, 2784]);
            for order in orders(3) {
                let frames = ordered(&framed(&pieces, up(0)), &order);
                let out = send(&mut bed, &[pod(0)], &frames);
                let arrived = packets_of(&out);
                assert_eq!(reassemble(&arrived), sent.clone().ttl(63).ip());
            }
            bed.close();
        }
    }
}

/// In order and not, through a service with one backend: on node b, here, and the client itself.
#[test]
fn frag_of_service_flow() {
    for workers in [1, 2] {
        for family in 0..2 {
            for (node, number) in [(1, 0), (0, 1), (0, 0)] {
                let services = vec![service(0, Protocol::Udp, &[(node, number)])];
                let mut bed = bed_with(workers, services);
                let client = (pod_ip(0, 0, family), 40_000);
                let server = (pod_ip(node, number, family), 8080);
                let is_own = (node, number) == (0, 0);
                let seen_as = (if is_own { gateway_ip(family) } else { client.0 }, 40_000);
                for order in orders(3) {
                    let sent = datagram(client, (vip(0, family), 80), 4000);
                    let frames = ordered(&framed(&cut(&sent, &[1392, 2784]), up(0)), &order);
                    let out = send(&mut bed, &[pod(0)], &frames);
                    let arrived: Vec<_> = out
                        .iter()
                        .map(|(place, frame)| {
                            let is_remote = matches!(place, Place::Uplink(_));
                            assert_eq!(is_remote, node == 1);
                            if is_remote {
                                inner_of(frame)[14..].to_vec()
                            } else {
                                frame[14..].to_vec()
                            }
                        })
                        .collect();
                    let arrives = sent.between(seen_as, server).ttl(63);
                    let got = reassemble(&arrived);
                    assert_eq!(got, named_as(&arrives, &got).ip());

                    let reply = arrives.reply(&bytes(3000));
                    let pieces = cut(&reply, &[1400, 2800]);
                    let (from, frames) = if node == 1 {
                        let inner = framed(&pieces, between(1, 0));
                        let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
                        (UPLINK, inner.iter().map(|frame| tunnel.wrap(frame)).collect())
                    } else {
                        (pod(number), framed(&pieces, up(number)))
                    };
                    let frames = ordered(&frames, &order);
                    let seen = carry(&mut bed, &[from], &frames, &pod(0), down(0));
                    let expected = reply.between((vip(0, family), 80), client).ttl(63);
                    let got = reassemble(&seen);
                    assert_eq!(got, named_as(&expected, &got).ip());
                }
                assert_eq!(bed.node.flows(), 1);
                bed.close();
            }
        }
    }
}

#[test]
fn pods_that_name_their_packets_alike_leave_with_different_names() {
    let mut bed = bed_with(1, Vec::new());
    let mut names = std::collections::HashSet::new();
    for number in 0..2 {
        let from = (pod_ip(0, number, 0), 41_000);
        // Interleaved, and a whole one that a router may cut.
        let one = datagram(from, (outside(0), 443), 2500);
        let two = Packet { id: 7, ..one.clone() };
        let frames = [cut(&one, &[1392]), cut(&two, &[1392])].concat();
        let frames = ordered(&framed(&frames, up(number)), &[0, 2, 3, 1]);
        let left = carry(&mut bed, &[pod(number)], &frames, &UPLINK, OUT);
        let id = |ip: &[u8]| u16::from_be_bytes([ip[4], ip[5]]);
        assert_eq!((id(&left[0]), id(&left[1])), (id(&left[3]), id(&left[2])));
        let small = datagram(from, (outside(0), 443), 10);
        let frame = bed.one(&pod(number), &small.frame(up(number)), &UPLINK, FORWARDED);
        for id in [id(&left[0]), id(&left[1]), id(&frame[14..])] {
            assert!(names.insert(id), "{id} twice");
        }
        // One that nobody cuts keeps its name, whatever that is (RFC 6864 section 4.1).
        let atomic = Packet { dont_fragment: true, ..small };
        let frame = bed.one(&pod(number), &atomic.frame(up(number)), &UPLINK, FORWARDED);
        assert_eq!(id(&frame[14..]), 0x1234);
    }
    bed.close();
}

#[test]
fn a_whole_packet_with_a_fragment_header_is_whole() {
    let mut bed = bed_with(1, Vec::new());
    let sent = datagram((pod_ip(0, 0, 1), 41_000), (outside(1), 443), 100);
    let atomic = framed(&cut(&sent, &[]), up(0));
    let left = carry(&mut bed, &[pod(0)], &atomic, &UPLINK, OUT);
    let got = reassemble(&left);
    let port = port_of(&got, false);
    assert_eq!(got, sent.between((node_ip(0, 1), port), (outside(1), 443)).ttl(63).ip());
    bed.close();
}

/// By the gateway, in as many fragments, with and without flows.
#[test]
fn large_pings_of_the_gateway_and_of_services_are_answered() {
    for family in 0..2 {
        for any_flow in [false, true] {
            for to in [gateway_ip(family), vip(0, family)] {
                let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(0, 1)])]);
                let from = pod_ip(0, 0, family);
                if any_flow {
                    let other = datagram((from, 5), (vip(0, family), 80), 10);
                    bed.one(&pod(0), &other.frame(up(0)), &pod(1), FORWARDED);
                }
                for (id, order) in orders(3).into_iter().enumerate() {
                    let ping = whole(from, to, Body::Echo(false, 77, 3, bytes(4000)));
                    let ping = Packet { id: id as u16, ..ping };
                    let pieces = framed(&cut(&ping, &[1392, 2784]), up(0));
                    let frames = ordered(&pieces, &order);
                    let pong = carry(&mut bed, &[pod(0)], &frames, &pod(0), down(0));
                    let expected = Packet { ttl: ping.ttl, ..ping.reply(&bytes(4000)) };
                    let got = reassemble(&pong);
                    assert_eq!(got, named_as(&expected, &got).ip());
                }
                assert_eq!(bed.node.flows(), u32::from(any_flow));
                bed.close();
            }
        }
    }
}
