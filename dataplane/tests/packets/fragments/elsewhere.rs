//! With another node in between: NAT gateways that it holds, and backends there that answer clients
//! themselves.

use overlane_api::{Mode, Protocol, Underlay};
use overlane_dataplane::testing::Place;

use super::*;
use crate::bed::{UPLINK, pod};
use crate::build::{IN, Tunnel, between, down, inner_of, node_ip, pod_ip, up};
use crate::direct::{self, NODE_PORT, balancer, client, naming};
use crate::egress::{OUT, outside};
use crate::gateway::{self, pool};

const GENEVE: (Mode, Underlay) = (Mode::Geneve, Underlay::Ipv4);

fn queues(workers: u8) -> Vec<Place> {
    (0..usize::from(workers)).map(Place::Uplink).collect()
}

/// What leaves through the tunnel, without options.
#[track_caller]
fn tunnelled(out: &[(Place, Vec<u8>)]) -> Vec<Vec<u8>> {
    let inner = |(place, frame): &(Place, Vec<u8>)| {
        assert!(matches!(place, Place::Uplink(_)), "{place:?}");
        inner_of(frame)[14..].to_vec()
    };
    out.iter().map(inner).collect()
}

/// Pieces as they come from node b, in this tunnel.
fn from_b(tunnel: &Tunnel, pieces: &[Vec<u8>], order: &[usize]) -> Vec<Vec<u8>> {
    let frames = ordered(&framed(pieces, between(1, 0)), order);
    frames.iter().map(|frame| tunnel.wrap(frame)).collect()
}

#[test]
fn pieces_go_to_the_holder_of_a_gateway_as_they_are_and_the_answers_pieces_come_back() {
    for workers in [1, 2] {
        for family in 0..2 {
            let mut bed = gateway::bed(GENEVE, workers, &["b"]);
            let tunnel = Tunnel::from_peer(1, GENEVE.0, GENEVE.1);
            for order in orders(3) {
                for queue in queues(workers) {
                    let from = (pod_ip(0, 0, family), 41_000);
                    let sent = datagram(from, (outside(family), 443), 4000);
                    let pieces = framed(&cut(&sent, &[1392, 2784]), up(0));
                    let out = send(&mut bed, &[pod(0)], &ordered(&pieces, &order));
                    assert_eq!(reassemble(&tunnelled(&out)), sent.clone().ttl(63).ip());

                    let answer = sent.reply(&bytes(3500)).ttl(60);
                    let frames = from_b(&tunnel, &cut(&answer, &[1392, 2784]), &order);
                    let seen = carry(&mut bed, &[queue], &frames, &pod(0), down(0));
                    assert_eq!(reassemble(&seen), answer.ttl(59).ip());
                }
            }
            assert_eq!(bed.node.flows(), 1);
            // Without a flow: neither in nor for ever.
            let stray = datagram((outside(family), 444), (pod_ip(0, 0, family), 41_000), 3000);
            let frames = from_b(&tunnel, &cut(&stray, &[1392]), &[0, 1]);
            assert!(send(&mut bed, &[UPLINK], &frames).is_empty());
            let drops = bed.node.drops();
            let drops: Vec<_> = drops.iter().map(|(reason, n)| (reason.name(), *n)).collect();
            assert_eq!(drops, [("inner_spoofed_source", 2)]);
            bed.close();
        }
    }
}

#[test]
fn the_holder_of_a_gateway_translates_the_pieces_of_a_peers_pods() {
    for workers in [1, 2, 3] {
        for family in 0..2 {
            let mut bed = gateway::bed(GENEVE, workers, &["a"]);
            let tunnel = Tunnel::from_peer(1, GENEVE.0, GENEVE.1);
            let queues = queues(workers);
            for (number, order) in orders(3).into_iter().enumerate() {
                let from = (pod_ip(1, 0, family), 41_000);
                let sent = datagram(from, (outside(family), 443), 4000).ttl(63);
                let sent = Packet { id: number as u16, ..sent };
                let frames = from_b(&tunnel, &cut(&sent, &[1392, 2784]), &order);
                let out = send(&mut bed, &queues[number % queues.len()..][..1], &frames);
                let left: Vec<_> = out
                    .iter()
                    .map(|(place, frame)| {
                        assert!(matches!(place, Place::Uplink(_)), "{place:?}");
                        assert_eq!(frame[..12], [OUT.1.0, OUT.0.0].concat());
                        frame[14..].to_vec()
                    })
                    .collect();
                let got = reassemble(&left);
                let own = (pool(family), port_of(&got, false));
                let arrives = sent.between(own, (outside(family), 443)).ttl(62);
                assert_eq!(got, named_as(&arrives, &got).ip());

                let answer = Packet { id: number as u16, ..arrives.reply(&bytes(5000)) };
                let pieces = framed(&cut(&answer, &[1400, 2800, 4200]), IN);
                let order = orders(4).remove(number);
                let out = send(&mut bed, &queues, &ordered(&pieces, &order));
                let got = reassemble(&tunnelled(&out));
                let expected = answer.between((outside(family), 443), from).ttl(63);
                assert_eq!(got, expected.ip());
            }
            assert_eq!(bed.node.flows(), 1);
            bed.close();
        }
    }
}

/// What a client may ask, with its family: the balancer's address, or the port of that node.
fn asked(node: u8) -> impl Iterator<Item = (usize, (IpAddr, u16))> {
    let of = move |family| [(balancer(0, family), 80), (node_ip(node, family), NODE_PORT)];
    (0..2).flat_map(move |family| of(family).map(|asked| (family, asked)))
}

/// Each piece of a datagram names the service, as whole ones do.
#[test]
fn pieces_to_a_backend_that_answers_itself_name_the_service() {
    for workers in [1, 2] {
        for (family, vip) in asked(0) {
            let service = direct::direct(0, Protocol::Udp, &[(1, 0)]);
            let mut bed = direct::bed(GENEVE, workers, vec![service]);
            let option = direct::header(vip).len() - 8;
            // Whole and cut here, and in pieces that fit.
            for (len, cuts) in [(1472, &[][..]), (3900, &[1320, 2640])] {
                for (number, order) in orders(cuts.len() + 1).into_iter().enumerate() {
                    if family == 1 && cuts.is_empty() {
                        // Too big: nobody cuts an IPv6 packet on its way.
                        continue;
                    }
                    let sent = datagram(client(family), vip, len);
                    let sent = Packet { id: number as u16, ..sent };
                    let frames = ordered(&framed(&cut(&sent, cuts), IN), &order);
                    let out = send(&mut bed, &queues(workers), &frames);
                    assert!(out.iter().all(|(_, frame)| frame.len() <= 14 + 1500));
                    let expected_option = direct::header(vip)[8..].to_vec();
                    let inner: Vec<_> = out
                        .iter()
                        .map(|(_, frame)| {
                            let inner = inner_of(frame);
                            assert_eq!(inner[..option], expected_option);
                            inner[option + 14..].to_vec()
                        })
                        .collect();
                    let arrives = sent.between(client(family), (pod_ip(1, 0, family), 8080));
                    assert_eq!(reassemble(&inner), arrives.ttl(63).ip());
                }
            }
            assert_eq!(bed.node.flows(), 1);
            bed.close();
        }
    }
}

#[test]
fn a_backend_that_answers_itself_gets_pieces_and_answers_in_pieces() {
    for workers in [1, 2] {
        for (family, vip) in asked(1) {
            let service = direct::direct(0, Protocol::Udp, &[(0, 0)]);
            let mut bed = direct::bed(GENEVE, workers, vec![service]);
            let tunnel = naming(Tunnel::from_peer(1, GENEVE.0, GENEVE.1), vip);
            for (number, order) in orders(3).into_iter().enumerate() {
                for queue in queues(workers) {
                    let server = (pod_ip(0, 0, family), 8080);
                    let sent = datagram(client(family), server, 4000).ttl(63);
                    let sent = Packet { id: number as u16, ..sent };
                    let frames = from_b(&tunnel, &cut(&sent, &[1392, 2784]), &order);
                    let seen = carry(&mut bed, &[queue], &frames, &pod(0), down(0));
                    assert_eq!(reassemble(&seen), sent.clone().ttl(62).ip());

                    let answer = sent.reply(&bytes(3000));
                    let pieces = framed(&cut(&answer, &[1392, 2784]), up(0));
                    let left = carry(&mut bed, &[pod(0)], &ordered(&pieces, &order), &UPLINK, OUT);
                    let got = reassemble(&left);
                    let expected = answer.between(vip, client(family)).ttl(63);
                    assert_eq!(got, named_as(&expected, &got).ip());
                }
            }
            assert_eq!(bed.node.flows(), 1);
            bed.close();
        }
    }
}
