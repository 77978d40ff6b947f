//! What workers owe each other and their ports: nothing is delivered by old tables, nobody is
//! kept waiting, and what is full says so.

use overlane_api::{Change, Mode, Object, ObjectKey, Underlay};
use overlane_dataplane::testing::{MemoryNode, Place, objects};

use super::bed::{Bed, FORWARDED, TUNNELS, UPLINK, expect, pod};
use super::build::{Body, IN, Packet, Tunnel, between, down, node_ip, packet, pod_ip, udp, up};
use super::egress;

#[test]
fn a_packet_handed_over_meets_the_tables_of_its_arrival() {
    for family in 0..2 {
        let mut bed = Bed::with(2, objects::cluster(Mode::Geneve, Underlay::Ipv4, 2));
        let sent = udp(pod_ip(0, 0, family), pod_ip(0, 1, family), b"for pod 2 only");
        assert!(bed.node.inject(&pod(0), &sent.frame(up(0))));
        let before = bed.node.counters();
        assert_eq!(bed.node.bench().workers[0].poll(), 1);
        // While it is on its way its pod goes, and another takes its place in the table.
        let gone = Change::Remove(ObjectKey::Endpoint(objects::pod_name(0, 1)));
        let other = Change::Set(Object::Endpoint(objects::local_pod(7, 1)));
        bed.node.apply(vec![gone, other]).unwrap();
        bed.node.run();
        // Its sender is told, wherever that is.
        let got = bed.node.collect();
        assert!(got.iter().all(|(place, _)| *place == pod(0)), "{got:?}");
        expect(
            &bed.node,
            &before,
            &[
                ("received", 4),
                ("sent", 3),
                ("handed_over", 2),
                ("generated", 1),
                ("dropped.no_route", 1),
            ],
        );
        bed.close();
    }
}

#[test]
fn a_busy_port_does_not_keep_others_waiting() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let flood = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"flood").frame(up(0));
    let single = udp(pod_ip(0, 1, 0), pod_ip(1, 0, 0), b"single").frame(up(1));
    for _ in 0..200 {
        assert!(bed.node.inject(&pod(0), &flood));
    }
    assert!(bed.node.inject(&pod(1), &single));
    for _ in 0..2 {
        let _ = bed.node.bench().workers[0].poll();
    }
    let out = bed.node.to_any_uplink();
    let is_single = |frame: &Vec<u8>| frame.windows(6).any(|bytes| bytes == b"single");
    assert_eq!(out.iter().filter(|frame| is_single(frame)).count(), 1, "{} frames", out.len());
    bed.node.run();
    let _ = bed.node.collect();
    bed.close();
}

#[test]
fn a_busy_worker_does_not_keep_others_waiting() {
    let mut changes = objects::cluster(Mode::Geneve, Underlay::Ipv4, 1);
    changes.push(Change::Set(Object::Endpoint(objects::local_pod(2, 1))));
    changes.push(Change::Set(Object::Endpoint(objects::local_pod(3, 2))));
    let mut bed = Bed::with(3, changes);
    let flood = udp(pod_ip(0, 2, 0), pod_ip(0, 0, 0), b"flood").frame(up(2));
    let single = udp(pod_ip(0, 3, 0), pod_ip(0, 0, 0), b"single").frame(up(3));
    for _ in 0..200 {
        assert!(bed.node.inject(&pod(2), &flood));
    }
    assert!(bed.node.inject(&pod(3), &single));
    for _ in 0..4 {
        let _ = bed.node.bench().workers[1].poll();
    }
    let _ = bed.node.bench().workers[2].poll();
    for _ in 0..2 {
        let _ = bed.node.bench().workers[0].poll();
    }
    let out = bed.node.to_pod(&objects::pod_name(0, 0));
    let is_single = |frame: &Vec<u8>| frame.windows(6).any(|bytes| bytes == b"single");
    assert_eq!(out.iter().filter(|frame| is_single(frame)).count(), 1, "{} frames", out.len());
    bed.node.run();
    let _ = bed.node.collect();
    bed.close();
}

#[test]
fn a_receiver_that_takes_nothing_loses_only_its_own() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let sent = udp(pod_ip(0, 0, 0), pod_ip(0, 1, 0), b"x");
    let before = bed.node.counters();
    for _ in 0..300 {
        assert!(bed.node.inject(&pod(0), &sent.frame(up(0))));
        bed.node.run();
    }
    expect(&bed.node, &before, &[("received", 300), ("sent", 256), ("dropped.tx_ring_full", 44)]);
    let other = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
    let before = bed.node.counters();
    assert!(bed.node.inject(&pod(0), &other.frame(up(0))));
    bed.node.run();
    expect(&bed.node, &before, FORWARDED);
    assert_eq!(bed.node.collect().len(), 257);
    // It takes again, and gets again.
    bed.step(&pod(0), &sent.frame(up(0)), &[(pod(1), sent.ttl(63).frame(down(1)))], FORWARDED);
    bed.close();
}

#[test]
fn a_worker_that_does_not_work_fills_its_lane_only() {
    // Lanes of fewer workers hold more than this node has frames.
    let mut bed = Bed::with(9, objects::cluster(Mode::Geneve, Underlay::Ipv4, 9));
    let sent = udp(pod_ip(0, 0, 0), pod_ip(0, 1, 0), b"x").frame(up(0));
    for _ in 0..1100 {
        assert!(bed.node.inject(&pod(0), &sent));
        let _ = bed.node.bench().workers[0].poll();
    }
    let counters = *bed.node.bench().workers[0].counters();
    let full = overlane_dataplane::packet::drop::DropReason::HandoffFull;
    assert_eq!(counters.handed_over, 1024);
    assert_eq!(counters.dropped[full as usize], 1100 - 1024);
    let mut delivered = 0;
    for _ in 0..20 {
        for worker in &mut bed.node.bench().workers[1..] {
            let _ = worker.poll();
        }
        delivered += bed.node.to_pod(&objects::pod_name(0, 1)).len();
    }
    assert_eq!(delivered, 1024);
    bed.close();
}

#[test]
fn packets_on_their_way_to_a_worker_come_back_when_the_node_ends() {
    let mut bed = Bed::with(2, objects::cluster(Mode::Geneve, Underlay::Ipv4, 2));
    let sent = udp(pod_ip(0, 0, 0), pod_ip(0, 1, 0), b"x").frame(up(0));
    assert!(bed.node.inject(&pod(0), &sent));
    assert_eq!(bed.node.bench().workers[0].poll(), 1);
    for worker in &mut bed.node.bench().workers {
        worker.close();
        assert_eq!(worker.counters().residual(), 0);
    }
    let depot = bed.node.bench().depot.clone();
    assert_eq!(depot.free(), depot.chunks());
}

/// A datagram from b's pod to pod 2, whose home is worker 1, as it comes to worker 0.
fn to_another_home(mode: Mode, underlay: Underlay, family: usize) -> (Packet, Tunnel) {
    let tunnel = Tunnel { sum: underlay == Underlay::Ipv6, ..Tunnel::from_peer(1, mode, underlay) };
    (udp(pod_ip(1, 0, family), pod_ip(0, 1, family), b"from b"), tunnel)
}

#[test]
fn a_packet_out_of_a_tunnel_is_judged_at_its_pods_home() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = Bed::with(2, objects::cluster(mode, underlay, 2));
            let (sent, tunnel) = to_another_home(mode, underlay, family);
            let before = bed.node.counters();
            for _ in 0..3 {
                assert!(bed.node.inject(&UPLINK, &tunnel.wrap(&sent.frame(between(1, 0)))));
                bed.node.run();
                let arrived = sent.clone().ttl(sent.ttl - 1).frame(down(1));
                assert_eq!(bed.node.collect(), [(pod(1), arrived)]);
            }
            expect(&bed.node, &before, &[("received", 6), ("sent", 6), ("handed_over", 3)]);
            // Another peer's pod does not send from b, whoever is asked.
            let spoofed = Packet { source: pod_ip(2, 0, family), ..sent.clone() };
            let before = bed.node.counters();
            assert!(bed.node.inject(&UPLINK, &tunnel.wrap(&spoofed.frame(between(1, 0)))));
            bed.node.run();
            assert_eq!(bed.node.collect(), []);
            let reason = overlane_dataplane::packet::drop::DropReason::InnerSpoofedSource as usize;
            assert_eq!(bed.node.bench().workers[1].counters().dropped[reason], 1);
            let counted = [
                ("received", 2),
                ("sent", 1),
                ("handed_over", 1),
                ("dropped.inner_spoofed_source", 1),
            ];
            expect(&bed.node, &before, &counted);
            bed.close();
        }
    }
}

#[test]
fn frames_that_are_passed_on_keep_their_order_and_fill_their_lane_only() {
    let mut bed = Bed::with(9, objects::cluster(Mode::Geneve, Underlay::Ipv4, 9));
    let (_, tunnel) = to_another_home(Mode::Geneve, Underlay::Ipv4, 0);
    for number in 0..1100_u16 {
        let payload = number.to_be_bytes();
        let sent = udp(pod_ip(1, 0, 0), pod_ip(0, 1, 0), &payload).frame(between(1, 0));
        assert!(bed.node.inject(&UPLINK, &tunnel.wrap(&sent)));
        let _ = bed.node.bench().workers[0].poll();
    }
    let counters = *bed.node.bench().workers[0].counters();
    let full = overlane_dataplane::packet::drop::DropReason::HandoffFull;
    assert_eq!(counters.handed_over, 1024);
    assert_eq!(counters.dropped[full as usize], 1100 - 1024);
    let mut delivered = Vec::new();
    for _ in 0..20 {
        for worker in &mut bed.node.bench().workers[1..] {
            let _ = worker.poll();
        }
        delivered.extend(bed.node.to_pod(&objects::pod_name(0, 1)));
    }
    let numbers: Vec<u16> =
        delivered.iter().map(|frame| u16::from_be_bytes(*frame.last_chunk().unwrap())).collect();
    assert_eq!(numbers, (0..1024).collect::<Vec<_>>());
    // One more is on its way when the node ends.
    let last = udp(pod_ip(1, 0, 0), pod_ip(0, 1, 0), b"x").frame(between(1, 0));
    assert!(bed.node.inject(&UPLINK, &tunnel.wrap(&last)));
    let _ = bed.node.bench().workers[0].poll();
    for worker in &mut bed.node.bench().workers {
        worker.close();
        assert_eq!(worker.counters().residual(), 0);
    }
    let depot = bed.node.bench().depot.clone();
    assert_eq!(depot.free(), depot.chunks());
}

#[test]
fn frames_that_are_passed_on_fill_the_vectors_of_their_pods_worker_up() {
    let changes = objects::cluster(Mode::Geneve, Underlay::Ipv4, 2);
    let mut bed = Bed { node: MemoryNode::with_uplink_queues(2, 2, changes) };
    let (sent, tunnel) = to_another_home(Mode::Geneve, Underlay::Ipv4, 0);
    let frame = tunnel.wrap(&sent.frame(between(1, 0)));
    // More than one vector has room for: 40 of its own, 30 passed on.
    for number in 0..40 {
        assert!(bed.node.inject(&Place::Uplink(1), &frame));
        assert!(number >= 30 || bed.node.inject(&UPLINK, &frame));
    }
    assert_eq!(bed.node.bench().workers[0].poll(), 30);
    assert_eq!(bed.node.bench().workers[0].counters().vectors, 0, "they are none of its own");
    assert_eq!(bed.node.bench().workers[1].poll(), 70);
    assert_eq!(bed.node.bench().workers[1].counters().vectors, 2);
    assert_eq!(bed.node.collect().len(), 70);
    bed.close();
}

#[test]
fn answers_to_flows_that_left_the_cluster_are_passed_on_as_they_came() {
    for family in 0..2 {
        let mut bed = egress::bed(Mode::Geneve, 2, 2, |_| {});
        for body in [
            Body::Segment(40_000, 443, 2, Vec::new()),
            Body::Udp(41_000, 443, b"question".to_vec()),
        ] {
            // Of pod 2, at home with worker 1, with whose ports it leaves.
            let sent = packet(pod_ip(0, 1, family), egress::outside(family), body);
            let frame = bed.one(&pod(1), &sent.frame(up(1)), &Place::Uplink(1), FORWARDED);
            let port = egress::port_of(&frame, family, false);
            let node = (node_ip(0, family), port);
            let reply = sent.between(node, (sent.destination, 443)).reply(b"answer");
            let own = if matches!(sent.body, Body::Udp(..)) { 41_000 } else { 40_000 };
            let seen = reply.between((sent.destination, 443), (sent.source, own)).ttl(63);
            let out = [(pod(1), seen.frame(down(1)))];
            bed.step(&Place::Uplink(1), &reply.frame(IN), &out, FORWARDED);
            let passed = [("received", 2), ("sent", 2), ("handed_over", 1)];
            let vectors = bed.node.bench().workers[0].counters().vectors;
            bed.step(&UPLINK, &reply.frame(IN), &out, &passed);
            assert_eq!(bed.node.bench().workers[0].counters().vectors, vectors);
        }
        assert_eq!(bed.node.flows(), 2);
        bed.close();
    }
}

#[test]
fn packets_of_pods_on_the_underlay_are_passed_on_as_they_came() {
    for family in 0..2 {
        let mut bed = Bed::with(2, objects::cluster(Mode::Native, Underlay::Ipv4, 2));
        let sent = udp(pod_ip(1, 0, family), pod_ip(0, 1, family), b"from b");
        let out = [(pod(1), sent.clone().ttl(sent.ttl - 1).frame(down(1)))];
        let passed = [("received", 2), ("sent", 2), ("handed_over", 1)];
        bed.step(&UPLINK, &sent.frame(IN), &out, &passed);
        assert_eq!(bed.node.bench().workers[0].counters().vectors, 0);
        bed.close();
    }
}

#[test]
fn a_vector_of_everything_keeps_the_books() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let good = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
    let before = bed.node.counters();
    for number in 0..64 {
        let frame = match number % 4 {
            0 => good.frame(up(0)),
            1 => good.clone().ttl(1).frame(up(0)),
            2 => good.frame((objects::pod_mac(0, 1), objects::gateway_mac(0))),
            _ => udp(pod_ip(0, 0, 0), pod_ip(0, 1, 0), b"y").frame(up(0)),
        };
        assert!(bed.node.inject(&pod(0), &frame));
    }
    bed.node.run();
    expect(
        &bed.node,
        &before,
        &[
            ("received", 64 + 16),
            ("generated", 16),
            ("sent", 16 + 16 + 16),
            ("dropped.ttl_expired", 16),
            ("dropped.spoofed_mac", 16),
        ],
    );
    let got = bed.node.collect();
    let at = |place: Place| got.iter().filter(|(p, _)| *p == place).count();
    assert_eq!((at(UPLINK), at(pod(0)), at(pod(1))), (16, 16, 16));
    bed.close();
}
