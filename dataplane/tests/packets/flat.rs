//! Flat mode: pods hold addresses of the underlay; every destination is its own next hop.

use std::net::IpAddr;
use std::time::Duration;

use overlane_api::{MacAddr, Mode, Underlay};
use overlane_dataplane::stages::Notice;
use overlane_dataplane::tables::peers::Adjacency;
use overlane_dataplane::testing::{node, objects};

use super::bed::{Bed, FORWARDED, UPLINK, expect, pod};
use super::build::{IN, down, pod_ip, udp, up};

const THERE: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);

fn resolve(bed: &mut Bed, address: IpAddr) {
    let adjacency = Adjacency { source: node::UPLINK_MAC, destination: THERE };
    bed.node.bench().compiler.set_next_hop(address, Some(adjacency));
    bed.node.publish();
}

#[test]
fn a_packet_waits_for_its_next_hop_and_leaves() {
    for family in 0..2 {
        let outside: IpAddr = ["203.0.113.10", "2001:db8:113::10"][family].parse().unwrap();
        for to in [pod_ip(1, 0, family), pod_ip(0, 77, family), outside] {
            let mut bed = Bed::new(Mode::Flat, Underlay::Ipv4);
            let sent = udp(pod_ip(0, 0, family), to, b"x");
            let waits = &[("received", 1), ("held", 1)];
            bed.step(&pod(0), &sent.frame(up(0)), &[], waits);
            assert_eq!(bed.node.notices(), [Notice::NextHopWanted(to)]);
            let before = bed.node.counters();
            resolve(&mut bed, to);
            bed.node.run();
            expect(&bed.node, &before, &[("held", -1), ("sent", 1)]);
            let out = sent.clone().ttl(63).frame((node::UPLINK_MAC, THERE));
            assert_eq!(bed.node.collect(), [(UPLINK, out.clone())]);
            // Known now: no wait.
            bed.step(&pod(0), &sent.frame(up(0)), &[(UPLINK, out)], FORWARDED);
            assert!(bed.node.notices().is_empty());
            let reply = sent.reply(b"y");
            let out = reply.clone().ttl(63).frame(down(0));
            bed.step(&UPLINK, &reply.frame(IN), &[(pod(0), out)], FORWARDED);
            bed.close();
        }
    }
}

#[test]
fn a_next_hop_that_is_forgotten_is_asked_for_again() {
    let mut bed = Bed::new(Mode::Flat, Underlay::Ipv4);
    let to = pod_ip(1, 0, 0);
    resolve(&mut bed, to);
    let sent = udp(pod_ip(0, 0, 0), to, b"x");
    bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    bed.node.bench().compiler.set_next_hop(to, None);
    bed.node.publish();
    bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
    assert_eq!(bed.node.notices(), [Notice::NextHopWanted(to)]);
    bed.close();
}

#[test]
fn nobody_waits_for_more_than_a_second() {
    let mut bed = Bed::new(Mode::Flat, Underlay::Ipv4);
    let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
    bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
    bed.node.wait(Duration::from_millis(600));
    bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
    let before = bed.node.counters();
    bed.node.wait(Duration::from_millis(600));
    bed.node.run();
    expect(&bed.node, &before, &[("held", -1), ("dropped.neighbor_unresolved", 1)]);
    // What came later waits on, and leaves when its time comes.
    let before = bed.node.counters();
    resolve(&mut bed, pod_ip(1, 0, 0));
    bed.node.run();
    expect(&bed.node, &before, &[("held", -1), ("sent", 1)]);
    assert_eq!(bed.node.collect().len(), 1);
    bed.close();
}

#[test]
fn waiting_again_does_not_make_young() {
    let mut bed = Bed::new(Mode::Flat, Underlay::Ipv4);
    let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
    bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
    bed.node.wait(Duration::from_millis(900));
    // The tables change, but not for this packet.
    resolve(&mut bed, pod_ip(2, 0, 0));
    let before = bed.node.counters();
    bed.node.run();
    expect(&bed.node, &before, &[]);
    bed.node.wait(Duration::from_millis(200));
    bed.node.run();
    expect(&bed.node, &before, &[("held", -1), ("dropped.neighbor_unresolved", 1)]);
    bed.close();
}

#[test]
fn only_so_many_wait() {
    let mut bed = Bed::new(Mode::Flat, Underlay::Ipv4);
    let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
    for _ in 0..64 {
        bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
    }
    bed.drops(&pod(0), &sent.frame(up(0)), "hold_full");
    let before = bed.node.counters();
    resolve(&mut bed, pod_ip(1, 0, 0));
    bed.node.run();
    expect(&bed.node, &before, &[("held", -64), ("sent", 64)]);
    assert_eq!(bed.node.collect().len(), 64);
    bed.close();
}

#[test]
fn packets_that_wait_come_back_when_the_node_ends() {
    let mut bed = Bed::new(Mode::Flat, Underlay::Ipv4);
    let sent = udp(pod_ip(0, 0, 1), pod_ip(1, 0, 1), b"x");
    bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
    bed.close();
}

#[test]
fn a_peer_whose_next_hop_is_unknown_is_waited_for() {
    for mode in [Mode::Geneve, Mode::Vxlan, Mode::Native] {
        let mut bed = Bed::new(mode, Underlay::Ipv4);
        bed.node.set_resolved("b", false);
        bed.node.publish();
        let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
        bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
        let before = bed.node.counters();
        bed.node.set_resolved("b", true);
        bed.node.publish();
        bed.node.run();
        expect(&bed.node, &before, &[("held", -1), ("sent", 1)]);
        assert_eq!(bed.node.collect().len(), 1);
        bed.close();
    }
}

#[test]
fn an_answer_about_a_packet_that_waited_is_sent_at_once() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    bed.node.set_resolved("c", false);
    bed.node.publish();
    let sent = udp(pod_ip(0, 0, 0), pod_ip(2, 0, 0), b"x");
    bed.step(&pod(0), &sent.frame(up(0)), &[], &[("received", 1), ("held", 1)]);
    let before = bed.node.counters();
    let name = objects::pod_name(2, 0);
    bed.node
        .apply(vec![
            overlane_api::Change::Remove(overlane_api::ObjectKey::Endpoint(name)),
            overlane_api::Change::Remove(overlane_api::ObjectKey::Peer("c".into())),
        ])
        .unwrap();
    bed.node.run();
    expect(
        &bed.node,
        &before,
        &[("held", -1), ("dropped.no_route", 1), ("received", 1), ("generated", 1), ("sent", 1)],
    );
    assert_eq!(bed.node.collect().len(), 1);
    bed.close();
}
