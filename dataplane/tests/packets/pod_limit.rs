//! A pod has at most so many connections out of the cluster at a time (RFC 6888 REQ-4).

use std::time::Duration;

use overlane_api::{Mode, Node, Object, Underlay};
use overlane_dataplane::testing::objects;

use super::bed::{Bed, FORWARDED, UPLINK, pod};
use super::build::{Body, Packet, down, gateway_ip, packet, pod_ip, up};
use super::egress::{bed, outside};
use super::icmp_error::{error, names, told};

fn question(pod: u8, family: usize, port: u16) -> Packet {
    packet(pod_ip(0, pod, family), outside(family), Body::Udp(port, 443, b"question".to_vec()))
}

#[track_caller]
fn leaves(bed: &mut Bed, number: u8, family: usize, port: u16) {
    let sent = question(number, family, port);
    bed.one(&pod(number), &sent.frame(up(number)), &UPLINK, FORWARDED);
}

/// The pod is told; nothing leaves.
#[track_caller]
fn refused(bed: &mut Bed, family: usize, port: u16) {
    let sent = question(0, family, port);
    let answer = error(gateway_ip(family), &sent, [(3, 13), (1, 1)], 0);
    let moved = told("snat_pod_limit");
    bed.step(&pod(0), &sent.frame(up(0)), &[(pod(0), answer.frame(down(0)))], &names(&moved));
}

fn limited(node: &mut Node) {
    node.snat.max_ports_per_pod = Some(3);
}

#[test]
fn a_pod_at_its_limit_is_refused_and_no_other() {
    for family in 0..2 {
        let mut bed = bed(Mode::Geneve, 1, 1, limited);
        for port in 40_000..40_003 {
            leaves(&mut bed, 0, family, port);
        }
        for port in 40_003..40_010 {
            refused(&mut bed, family, port);
        }
        assert_eq!(bed.node.flows(), 3, "who is refused leaves nothing behind");
        leaves(&mut bed, 0, family, 40_001);
        for port in 40_000..40_003 {
            leaves(&mut bed, 1, family, port);
        }
        // 120 seconds without an answer, and the flows are over.
        bed.node.wait(Duration::from_secs(130));
        bed.node.run();
        for port in 41_000..41_003 {
            leaves(&mut bed, 0, family, port);
        }
        refused(&mut bed, family, 41_003);
        bed.close();
    }
}

#[test]
fn a_limit_that_comes_later_counts_what_there_is() {
    for family in 0..2 {
        let mut bed = bed(Mode::Geneve, 1, 1, |_| {});
        for port in 40_000..40_005 {
            leaves(&mut bed, 0, family, port);
        }
        let mut node = objects::node(Mode::Geneve, Underlay::Ipv4);
        limited(&mut node);
        bed.node.set(Object::Node(node.clone())).unwrap();
        bed.node.publish();
        refused(&mut bed, family, 40_005);
        for port in 40_000..40_005 {
            leaves(&mut bed, 0, family, port);
        }
        node.snat.max_ports_per_pod = None;
        bed.node.set(Object::Node(node)).unwrap();
        bed.node.publish();
        leaves(&mut bed, 0, family, 40_006);
        bed.close();
    }
}
