//! SCTP in pieces: its CRC covers the whole packet, and has to be right for the ports that its first piece
//! leaves with. The last piece tells how long the packet is; the first one waits for it.

use std::time::Duration;

use overlane_api::{FrontendKind, Mode, Protocol, Underlay};
use overlane_dataplane::testing::Place;

use super::*;
use crate::bed::{FORWARDED, UPLINK, expect, pod};
use crate::build::{IN, Tunnel, between, down, inner_of, node_ip, pod_ip, up};
use crate::direct::{self, NODE_PORT, balancer, client, naming};
use crate::egress::{OUT, bed_with, outside};
use crate::services::{service, vip};

const DATA: u8 = 0;
const INIT: u8 = 1;
const WAITS: &[(&str, i64)] = &[("received", 1), ("held", 1)];

/// An SCTP packet that may be fragmented.
fn data(from: (IpAddr, u16), to: (IpAddr, u16), chunk: u8, len: usize) -> Packet {
    whole(from.0, to.0, Body::Sctp(from.1, to.1, chunk, bytes(len)))
}

fn queues(workers: u8) -> Vec<Place> {
    (0..usize::from(workers)).map(Place::Uplink).collect()
}

/// Opens an association out of the cluster; the port that it leaves with.
fn leaves(bed: &mut Bed, family: usize, own: u16) -> u16 {
    let init = data((pod_ip(0, 0, family), own), (outside(family), 443), INIT, 16);
    let frame = bed.one(&pod(0), &init.frame(up(0)), &UPLINK, FORWARDED);
    port_of(&frame[14..], false)
}

#[test]
fn out_of_the_cluster_with_the_port_kept_and_with_another() {
    for family in 0..2 {
        for (own, is_kept) in [(20_000, true), (40_000, false)] {
            let mut bed = bed_with(1, Vec::new());
            let port = leaves(&mut bed, family, own);
            assert_eq!(port == own, is_kept);
            let (from, remote) = ((pod_ip(0, 0, family), own), (outside(family), 443));
            for (id, order) in orders(3).into_iter().enumerate() {
                let sent = Packet { id: id as u16, ..data(from, remote, DATA, 4001) };
                let pieces = framed(&cut(&sent, &[1392, 2784]), up(0));
                let left = carry(&mut bed, &[pod(0)], &ordered(&pieces, &order), &UPLINK, OUT);
                let got = reassemble(&left);
                let arrives = sent.between((node_ip(0, family), port), remote).ttl(63);
                assert_eq!(got, named_as(&arrives, &got).ip());

                let reply = arrives.reply(&bytes(5002));
                let pieces = framed(&cut(&reply, &[1400, 2800, 4200]), IN);
                let order = orders(pieces.len()).remove(id);
                let seen = carry(&mut bed, &[UPLINK], &ordered(&pieces, &order), &pod(0), down(0));
                assert_eq!(reassemble(&seen), reply.between(remote, from).ttl(63).ip());
            }
            assert_eq!(bed.node.flows(), 1);
            bed.close();
        }
    }
}

#[test]
fn pieces_of_what_begins_an_association_open_it() {
    for family in 0..2 {
        for order in orders(3) {
            let mut bed = bed_with(1, vec![service(0, Protocol::Sctp, &[(1, 0)])]);
            let from = (pod_ip(0, 0, family), 40_000);
            let sent = data(from, (vip(0, family), 80), INIT, 3000);
            let pieces = framed(&cut(&sent, &[1392, 2784]), up(0));
            let out = send(&mut bed, &[pod(0)], &ordered(&pieces, &order));
            let got = reassemble(&packets_of(&out));
            assert_eq!(got, sent.between(from, (pod_ip(1, 0, family), 8080)).ttl(63).ip());
            bed.close();
        }
    }
}

#[test]
fn from_outside_by_any_queue_to_a_node_port_and_back() {
    for workers in [1, 2, 3] {
        for family in 0..2 {
            let mut service = service(0, Protocol::Sctp, &[(1, 0)]);
            let (address, kind) = (node_ip(0, family), FrontendKind::NodePort);
            service.frontends.push(overlane_api::Frontend { address, port: NODE_PORT, kind });
            service.frontends.sort();
            let mut bed = bed_with(workers, vec![service]);
            let (asked, server) = ((address, NODE_PORT), (pod_ip(1, 0, family), 8080));
            // Who sends on, as its backend, sees a port of this node's.
            let init = data(client(family), asked, INIT, 16);
            let frame = bed.one(&UPLINK, &init.frame(IN), &UPLINK, FORWARDED);
            let own = (address, port_of(&inner_of(&frame)[14..], false));
            for (id, order) in orders(3).into_iter().enumerate() {
                let sent = data(client(family), asked, DATA, 4003);
                let sent = Packet { id: id as u16, ..sent };
                let frames = ordered(&framed(&cut(&sent, &[1400, 2800]), IN), &order);
                let got = reassemble(&packets_of(&send(&mut bed, &queues(workers)[..1], &frames)));
                let arrives = sent.between(own, server).ttl(63);
                assert_eq!(got, named_as(&arrives, &got).ip());

                let reply = arrives.reply(&bytes(3001));
                let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
                let pieces = framed(&cut(&reply, &[1392, 2784]), between(1, 0));
                let frames: Vec<_> = pieces.iter().map(|piece| tunnel.wrap(piece)).collect();
                let queue = queues(workers)[id % usize::from(workers)].clone();
                let out = send(&mut bed, &[queue], &ordered(&frames, &order));
                let left: Vec<_> = out.iter().map(|(_, frame)| frame[14..].to_vec()).collect();
                let got = reassemble(&left);
                let expected = reply.between(asked, client(family)).ttl(63);
                assert_eq!(got, named_as(&expected, &got).ip());
            }
            bed.close();
        }
    }
}

#[test]
fn a_backend_elsewhere_that_answers_itself_gets_pieces() {
    for workers in [1, 2] {
        for family in 0..2 {
            let service = direct::direct(0, Protocol::Sctp, &[(1, 0)]);
            let mut bed = direct::bed((Mode::Geneve, Underlay::Ipv4), workers, vec![service]);
            for asked in [(balancer(0, family), 80), (node_ip(0, family), NODE_PORT)] {
                let init = data(client(family), asked, INIT, 16);
                bed.one(&UPLINK, &init.frame(IN), &UPLINK, FORWARDED);
                for (id, order) in orders(3).into_iter().enumerate() {
                    let sent = data(client(family), asked, DATA, 4000);
                    let sent = Packet { id: id as u16, ..sent };
                    let frames = ordered(&framed(&cut(&sent, &[1392, 2784]), IN), &order);
                    let out = send(&mut bed, &queues(workers), &frames);
                    let got = reassemble(&packets_of(&out));
                    let at = (port_of(&got, false), (pod_ip(1, 0, family), 8080));
                    // The second address of one client's port is told apart by source NAT.
                    let seen = match at.0 {
                        50_000 => client(family),
                        port => (node_ip(0, family), port),
                    };
                    let arrives = sent.between(seen, at.1).ttl(63);
                    assert_eq!(got, named_as(&arrives, &got).ip());
                }
            }
            bed.close();
        }
    }
}

#[test]
fn a_backend_here_that_answers_itself_answers_in_pieces() {
    for workers in [1, 2] {
        for family in 0..2 {
            let service = direct::direct(0, Protocol::Sctp, &[(0, 0)]);
            let mut bed = direct::bed((Mode::Geneve, Underlay::Ipv4), workers, vec![service]);
            let asked = (node_ip(1, family), NODE_PORT);
            let plain = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
            let server = (pod_ip(0, 0, family), 8080);
            let init = data(client(family), server, INIT, 16).ttl(63);
            let frame = naming(plain.clone(), asked).wrap(&init.frame(between(1, 0)));
            bed.one(&UPLINK, &frame, &pod(0), FORWARDED);
            for (id, order) in orders(3).into_iter().enumerate() {
                let sent = data(client(family), server, DATA, 4000).ttl(63);
                let sent = Packet { id: id as u16, ..sent };
                let pieces = framed(&cut(&sent, &[1392, 2784]), between(1, 0));
                let frames: Vec<_> = pieces.iter().map(|piece| plain.wrap(piece)).collect();
                let frames = ordered(&frames, &order);
                let seen = carry(&mut bed, &queues(workers), &frames, &pod(0), down(0));
                assert_eq!(reassemble(&seen), sent.clone().ttl(62).ip());

                let answer = sent.reply(&bytes(3000));
                let pieces = framed(&cut(&answer, &[1392, 2784]), up(0));
                let left = carry(&mut bed, &[pod(0)], &ordered(&pieces, &order), &UPLINK, OUT);
                let got = reassemble(&left);
                let expected = answer.between(asked, client(family)).ttl(63);
                assert_eq!(got, named_as(&expected, &got).ip());
            }
            bed.close();
        }
    }
}

#[test]
fn the_first_piece_waits_a_second_for_the_last_and_is_named() {
    for family in 0..2 {
        let mut bed = bed_with(1, Vec::new());
        leaves(&mut bed, family, 40_000);
        let from = (pod_ip(0, 0, family), 40_000);
        let sent = data(from, (outside(family), 443), DATA, 4000);
        let pieces = framed(&cut(&sent, &[1392, 2784]), up(0));
        bed.step(&pod(0), &pieces[0], &[], WAITS);
        bed.one(&pod(0), &pieces[1], &UPLINK, FORWARDED);
        bed.node.wait(Duration::from_millis(900));
        bed.node.run();
        assert_eq!(bed.node.counters().held, 1);
        let before = bed.node.counters();
        bed.node.wait(Duration::from_millis(300));
        bed.node.run();
        expect(&bed.node, &before, &[("held", -1), ("dropped.fragment_last_missing", 1)]);
        // Too late, and soon forgotten: of no harm to another packet with that name.
        bed.one(&pod(0), &pieces[2], &UPLINK, FORWARDED);
        bed.node.wait(Duration::from_millis(1300));
        bed.node.run();
        let other = data(from, (outside(family), 443), DATA, 2000);
        let pieces = framed(&cut(&other, &[1392]), up(0));
        bed.step(&pod(0), &pieces[0], &[], WAITS);
        let before = bed.node.counters();
        assert!(bed.node.inject(&pod(0), &pieces[1]));
        bed.node.run();
        expect(&bed.node, &before, &[("received", 1), ("sent", 2), ("held", -1)]);
        let left: Vec<_> =
            bed.node.collect().iter().map(|(_, frame)| frame[14..].to_vec()).collect();
        let got = reassemble(&left);
        let own = (node_ip(0, family), port_of(&got, false));
        let expected = other.between(own, (outside(family), 443)).ttl(63);
        assert_eq!(got, named_as(&expected, &got).ip());
        bed.close();
    }
}

/// One after the other with one name and different lengths, as of a sender that counts to 65,536 quickly.
#[test]
fn a_name_that_is_used_again_is_of_another_length() {
    for workers in [1, 2] {
        for family in 0..2 {
            let mut bed = bed_with(workers, Vec::new());
            let port = leaves(&mut bed, family, 40_000);
            let (from, remote) = ((pod_ip(0, 0, family), 40_000), (outside(family), 443));
            let left = data((node_ip(0, family), port), remote, DATA, 0);
            for len in [2700, 2500, 2699, 1500] {
                for order in orders(2) {
                    let sent = data(from, remote, DATA, len);
                    let pieces = framed(&cut(&sent, &[1392]), up(0));
                    let got = carry(&mut bed, &[pod(0)], &ordered(&pieces, &order), &UPLINK, OUT);
                    let got = reassemble(&got);
                    let expected = sent.between((node_ip(0, family), port), remote).ttl(63);
                    assert_eq!(got, named_as(&expected, &got).ip());

                    let reply = left.reply(&bytes(len));
                    let frames = ordered(&framed(&cut(&reply, &[1392]), IN), &order);
                    for queue in queues(workers) {
                        let seen = carry(&mut bed, &[queue], &frames, &pod(0), down(0));
                        let expected = reply.between(remote, from).ttl(63);
                        assert_eq!(reassemble(&seen), expected.ip());
                    }
                }
            }
            bed.close();
        }
    }
}

/// Extension headers behind the fragment header are in the first piece, and none of the CRC's.
#[test]
fn extension_headers_do_not_count() {
    let mut bed = bed_with(1, Vec::new());
    let port = leaves(&mut bed, 1, 40_000);
    let (from, remote) = ((pod_ip(0, 0, 1), 40_000), (outside(1), 443));
    let behind_options = |packet: &Packet| {
        // Next header SCTP, 16 bytes, padding (RFC 8200 section 4.6).
        let options = [&[132, 1, 1, 12][..], &[0; 12]].concat();
        let body = Body::Raw(60, [&options, &packet.ip()[40..]].concat());
        Packet { body, ..packet.clone() }
    };
    for order in orders(3) {
        let sent = data(from, remote, DATA, 4000);
        let pieces = framed(&cut(&behind_options(&sent), &[1392, 2784]), up(0));
        let got = carry(&mut bed, &[pod(0)], &ordered(&pieces, &order), &UPLINK, OUT);
        let expected = sent.between((node_ip(0, 1), port), remote).ttl(63);
        assert_eq!(reassemble(&got), behind_options(&expected).ip());
    }
    bed.close();
}

#[test]
fn what_was_broken_stays_broken() {
    for family in 0..2 {
        let mut bed = bed_with(1, Vec::new());
        let port = leaves(&mut bed, family, 40_000);
        let (from, remote) = ((pod_ip(0, 0, family), 40_000), (outside(family), 443));
        let sent = data(from, remote, DATA, 2500);
        let mut pieces = framed(&cut(&sent, &[1392]), up(0));
        *pieces[1].last_mut().unwrap() ^= 1;
        let got = reassemble(&carry(&mut bed, &[pod(0)], &pieces, &UPLINK, OUT));
        let expected = sent.between((node_ip(0, family), port), remote).ttl(63);
        let mut expected = named_as(&expected, &got).ip();
        *expected.last_mut().unwrap() ^= 1;
        assert_eq!(got, expected);
        bed.close();
    }
}

/// Pieces that are larger than what the way takes are cut once more.
#[test]
fn pieces_are_cut_once_more_for_a_smaller_way() {
    let services = vec![service(0, Protocol::Sctp, &[(1, 0)])];
    let mut bed = bed_with(1, services);
    bed.node.bench().compiler.set_path_mtu("b", Some(800));
    bed.node.publish();
    let from = (pod_ip(0, 0, 0), 40_000);
    for (len, cuts) in [(1384, &[][..]), (4000, &[1392, 2784])] {
        for order in orders(cuts.len() + 1) {
            let sent = data(from, (vip(0, 0), 80), INIT, len);
            let frames = ordered(&framed(&cut(&sent, cuts), up(0)), &order);
            let arrived = packets_of(&send(&mut bed, &[pod(0)], &frames));
            assert!(arrived.iter().all(|piece| piece.len() <= 750));
            let expected = sent.between(from, (pod_ip(1, 0, 0), 8080)).ttl(63);
            assert_eq!(reassemble(&arrived), expected.ip());
        }
    }
    bed.close();
}
