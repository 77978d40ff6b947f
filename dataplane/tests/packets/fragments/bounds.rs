//! What is bounded, refused, or cut once more.

use std::time::Duration;

use overlane_api::{Protocol, Scope};

use super::outside::{NODE_PORT, exposed};
use super::*;
use crate::bed::{FORWARDED, UPLINK, expect, pod};
use crate::build::{IN, down, inner_of, node_ip, pod_ip, up};
use crate::egress::{bed_with, outside};
use crate::services::{service, vip};

const WAITS: &[(&str, i64)] = &[("received", 1), ("held", 1)];

#[test]
fn later_fragments_wait_a_second_and_not_too_many() {
    for (from, macs) in [(pod(0), up(0)), (UPLINK, IN)] {
        let ends = |id: u16| {
            let (source, destination) = if from == UPLINK {
                ((outside(0), 443), (node_ip(0, 0), 20_000))
            } else {
                ((pod_ip(0, 0, 0), 41_000), (outside(0), 443))
            };
            Packet { id, ..datagram(source, destination, 16_000) }
        };
        let mut bed = bed_with(1, Vec::new());
        let cuts: Vec<usize> = (1..20).map(|n| n * 800).collect();
        let pieces = |id| framed(&cut(&ends(id), &cuts), macs);
        let full = [("received", 1), ("dropped.fragments_waiting", 1)];
        for piece in &pieces(1)[1..17] {
            bed.step(&from, piece, &[], WAITS);
        }
        bed.step(&from, &pieces(1)[17], &[], &full);
        for id in 2..5 {
            for piece in &pieces(id)[1..17] {
                bed.step(&from, piece, &[], WAITS);
            }
        }
        bed.step(&from, &pieces(5)[1], &[], &full);
        bed.node.wait(Duration::from_millis(300));
        bed.node.run();
        assert_eq!(bed.node.counters().held, 64);
        let before = bed.node.counters();
        bed.node.wait(Duration::from_millis(800));
        bed.node.run();
        expect(&bed.node, &before, &[("held", -64), ("dropped.fragment_first_missing", 64)]);
        // There is room again, and who ends with waiting fragments loses none.
        bed.step(&from, &pieces(6)[3], &[], WAITS);
        bed.close();
    }
}

#[test]
fn the_ports_are_remembered_for_thirty_seconds() {
    let mut bed = bed_with(1, Vec::new());
    let sent = datagram((pod_ip(0, 0, 0), 41_000), (outside(0), 443), 4000);
    let pieces = framed(&cut(&sent, &[1392, 2784]), up(0));
    bed.one(&pod(0), &pieces[0], &UPLINK, FORWARDED);
    bed.node.wait(Duration::from_secs(29));
    bed.one(&pod(0), &pieces[1], &UPLINK, FORWARDED);
    bed.node.wait(Duration::from_secs(2));
    bed.step(&pod(0), &pieces[2], &[], WAITS);
    bed.close();
}

#[test]
fn transport_headers_in_two_pieces_are_refused() {
    for family in 0..2 {
        let mut bed = bed_with(1, Vec::new());
        let (from, to) = (pod_ip(0, 0, family), outside(family));
        for (protocol, least) in [(6, 20), (17, 8), (132, 12), ([1, 58][family], 8)] {
            for short in (0..least).step_by(8).filter(|len| *len > 0) {
                let sent = whole(from, to, Body::Raw(protocol, bytes(64)));
                let pieces = framed(&cut(&sent, &[short]), up(0));
                bed.drops(&pod(0), &pieces[0], "fragment_too_short");
            }
        }
        // What begins inside of the TCP header could write over its flags.
        let sent = whole(from, to, Body::Segment(42_000, 443, SYN, bytes(100)));
        let pieces = framed(&cut(&sent, &[24]), up(0));
        bed.one(&pod(0), &pieces[0], &UPLINK, FORWARDED);
        let overlapping = framed(&cut(&sent, &[8]), up(0));
        bed.drops(&pod(0), &overlapping[1], "fragment_too_short");
        bed.close();
    }
}

/// Packets that are cut here: whole ones, and pieces of others.
#[test]
fn translated_packets_are_cut_for_a_smaller_way() {
    // To a backend behind a path of 800 bytes.
    let services = vec![service(0, Protocol::Udp, &[(1, 0)])];
    let mut bed = bed_with(1, services);
    bed.node.bench().compiler.set_path_mtu("b", Some(800));
    bed.node.publish();
    let client = (pod_ip(0, 0, 0), 40_000);
    for (len, cuts) in [(1400, &[][..]), (4000, &[1392, 2784])] {
        for order in orders(cuts.len() + 1) {
            let sent = datagram(client, (vip(0, 0), 80), len);
            let frames = ordered(&framed(&cut(&sent, cuts), up(0)), &order);
            let out = send(&mut bed, &[pod(0)], &frames);
            let arrived: Vec<_> =
                out.iter().map(|(_, frame)| inner_of(frame)[14..].to_vec()).collect();
            assert!(arrived.iter().all(|piece| piece.len() <= 750));
            let expected = sent.between(client, (pod_ip(1, 0, 0), 8080)).ttl(63);
            assert_eq!(reassemble(&arrived), expected.ip());
        }
    }
    bed.close();
    // An answer from outside that is larger than the pod's MTU; and one to a NodePort, larger than
    // what the tunnel takes.
    let mut bed = bed_with(1, vec![exposed(Scope::Cluster, &[(1, 0)])]);
    let from = (pod_ip(0, 0, 0), 41_000);
    let sent = datagram(from, (outside(0), 443), 10);
    let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    let port = port_of(&frame[14..], false);
    let left = sent.between((node_ip(0, 0), port), (outside(0), 443));
    for (len, cuts) in [(1472, &[][..]), (4000, &[1480, 2960])] {
        let reply = left.reply(&bytes(len));
        let frames = framed(&cut(&reply, cuts), IN);
        let seen = carry(&mut bed, &[UPLINK], &frames, &pod(0), down(0));
        assert!(seen.len() > frames.len() && seen.iter().all(|piece| piece.len() <= 1450));
        assert_eq!(reassemble(&seen), reply.between((outside(0), 443), from).ttl(63).ip());

        let asks = datagram((outside(0), 50_000), (node_ip(0, 0), NODE_PORT), len);
        let out = send(&mut bed, &[UPLINK], &framed(&cut(&asks, cuts), IN));
        let arrived: Vec<_> = out.iter().map(|(_, frame)| inner_of(frame)[14..].to_vec()).collect();
        let got = reassemble(&arrived);
        let own = (node_ip(0, 0), port_of(&got, false));
        let expected = asks.between(own, (pod_ip(1, 0, 0), 8080)).ttl(63);
        assert_eq!(got, named_as(&expected, &got).ip());
    }
    bed.close();
}
