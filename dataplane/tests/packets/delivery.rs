//! Pods of the same node, workers, the host port, and packets without a tunnel.
//!
//! ```text
//!          worker 0           worker 1
//! pod1 ---- home
//! pod2 ---------------------- home
//! host ---- home
//! uplink -- queue 0 --------- queue 1
//! ```

use overlane_api::{Mode, Underlay};
use overlane_dataplane::testing::{MemoryNode, Place, objects};

use super::bed::{Bed, FORWARDED, TO_HOST, TUNNELS, UPLINK, pod};
use super::build::{
    Body, IN, OUT, Packet, Tunnel, between, down, flow_of, from_host, node_ip, packet, pod_ip,
    to_host, udp, up,
};

/// A packet came, was handed over, and left.
const HANDED: &[(&str, i64)] = &[("received", 2), ("sent", 2), ("handed_over", 1)];

/// A packet came, was handed over, and was given to the host.
const HANDED_TO_HOST: &[(&str, i64)] =
    &[("received", 2), ("sent", 1), ("handed_over", 1), ("to_host", 1)];

#[test]
fn pods_of_one_node_reach_each_other_in_one_hop() {
    for (workers, moved) in [(1, FORWARDED), (2, HANDED), (3, HANDED)] {
        for mode in [Mode::Geneve, Mode::Vxlan, Mode::Native, Mode::Flat] {
            let mut bed = Bed::with(workers, objects::cluster(mode, Underlay::Ipv4, workers));
            for family in 0..2 {
                let body = Body::Tcp(1000, 80, b"request".to_vec());
                let sent = packet(pod_ip(0, 0, family), pod_ip(0, 1, family), body);
                let out = sent.clone().ttl(63).frame(down(1));
                bed.step(&pod(0), &sent.frame(up(0)), &[(pod(1), out)], moved);
                let reply = sent.reply(b"answer");
                let out = reply.clone().ttl(63).frame(down(0));
                bed.step(&pod(1), &reply.frame(up(1)), &[(pod(0), out)], moved);
            }
            bed.close();
        }
    }
}

#[test]
fn a_pod_reaches_itself() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for family in 0..2 {
        let sent = udp(pod_ip(0, 0, family), pod_ip(0, 0, family), b"me");
        let out = sent.clone().ttl(63).frame(down(0));
        bed.step(&pod(0), &sent.frame(up(0)), &[(pod(0), out)], FORWARDED);
    }
    bed.close();
}

#[test]
fn each_worker_sends_on_its_own_queue() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::with(2, objects::cluster(mode, underlay, 2));
        for (number, queue) in [(0, 0), (1, 1)] {
            let sent = udp(pod_ip(0, number, 0), pod_ip(1, 0, 0), b"x");
            let place = Place::Uplink(queue);
            let frame = bed.one(&pod(number), &sent.frame(up(number)), &place, FORWARDED);
            let tunnel = Tunnel::to_peer(1, mode, underlay, flow_of(&frame));
            assert_eq!(frame, tunnel.wrap(&sent.clone().ttl(63).frame(between(0, 1))));
            // Whatever queue it arrives at, the answer finds the pod's home.
            let reply = sent.reply(b"y");
            let back = Tunnel::from_peer(1, mode, underlay).wrap(&reply.frame(between(1, 0)));
            let out = [(pod(number), reply.ttl(63).frame(down(number)))];
            for arrives in 0..2 {
                let moved = if arrives == queue { FORWARDED } else { HANDED };
                bed.step(&Place::Uplink(arrives), &back, &out, moved);
            }
        }
        bed.close();
    }
}

#[test]
fn a_worker_without_a_queue_sends_through_another() {
    let changes = objects::cluster(Mode::Geneve, Underlay::Ipv4, 3);
    let mut bed = Bed { node: MemoryNode::with_uplink_queues(3, 1, changes) };
    for family in 0..2 {
        let sent = udp(pod_ip(0, 1, family), pod_ip(1, 0, family), b"x");
        let frame = bed.one(&pod(1), &sent.frame(up(1)), &UPLINK, HANDED);
        let tunnel = Tunnel::to_peer(1, Mode::Geneve, Underlay::Ipv4, flow_of(&frame));
        assert_eq!(frame, tunnel.wrap(&sent.clone().ttl(63).frame(between(0, 1))));
        let reply = sent.reply(b"y");
        let back = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
        let out = [(pod(1), reply.clone().ttl(63).frame(down(1)))];
        bed.step(&UPLINK, &back.wrap(&reply.frame(between(1, 0))), &out, HANDED);
    }
    bed.close();
}

#[test]
fn without_an_uplink_there_is_no_way_out() {
    let changes = objects::cluster(Mode::Geneve, Underlay::Ipv4, 1);
    let mut bed = Bed { node: MemoryNode::with_uplink_queues(1, 0, changes) };
    let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
    bed.drops(&pod(0), &sent.frame(up(0)), "port_gone");
    bed.close();
}

#[test]
fn a_pod_and_its_node() {
    for (workers, number, there, back) in
        [(1, 0, TO_HOST, FORWARDED), (2, 1, HANDED_TO_HOST, HANDED)]
    {
        for mode in [Mode::Geneve, Mode::Native, Mode::Flat] {
            let mut bed = Bed::with(workers, objects::cluster(mode, Underlay::Ipv6, workers));
            for family in 0..2 {
                let sent = udp(pod_ip(0, number, family), node_ip(0, family), b"x");
                // Delivered to the node itself: no hop.
                let out = sent.frame(to_host());
                bed.step(&pod(number), &sent.frame(up(number)), &[(Place::Host, out)], there);
                let reply = sent.reply(b"y");
                let out = reply.clone().ttl(63).frame(down(number));
                bed.step(&Place::Host, &reply.frame(from_host()), &[(pod(number), out)], back);
            }
            bed.close();
        }
    }
}

#[test]
fn a_pod_and_another_node() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        for family in 0..2 {
            let sent = udp(pod_ip(0, 0, family), node_ip(1, family), b"x");
            let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
            let tunnel = Tunnel::to_peer(1, mode, underlay, flow_of(&frame));
            assert_eq!(frame, tunnel.wrap(&sent.clone().ttl(63).frame(between(0, 1))));
            let reply = sent.reply(b"y");
            let back = Tunnel::from_peer(1, mode, underlay).wrap(&reply.frame(between(1, 0)));
            bed.step(&UPLINK, &back, &[(pod(0), reply.ttl(63).frame(down(0)))], FORWARDED);
        }
        bed.close();
    }
}

#[test]
fn the_node_and_a_pod_of_another_node() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        for family in 0..2 {
            let sent = udp(node_ip(0, family), pod_ip(1, 0, family), b"x");
            let frame = bed.one(&Place::Host, &sent.frame(from_host()), &UPLINK, FORWARDED);
            let tunnel = Tunnel::to_peer(1, mode, underlay, flow_of(&frame));
            assert_eq!(frame, tunnel.wrap(&sent.clone().ttl(63).frame(between(0, 1))));
            let reply = sent.reply(b"y");
            let back = Tunnel::from_peer(1, mode, underlay).wrap(&reply.frame(between(1, 0)));
            bed.step(&UPLINK, &back, &[(Place::Host, reply.frame(to_host()))], TO_HOST);
        }
        bed.close();
    }
}

#[test]
fn the_host_does_not_speak_for_pods() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for family in 0..2 {
        for source in [pod_ip(0, 0, family), pod_ip(1, 0, family), node_ip(1, family)] {
            let frame = udp(source, pod_ip(0, 1, family), b"x").frame(from_host());
            bed.drops(&Place::Host, &frame, "spoofed_source");
        }
    }
    bed.close();
}

#[test]
fn what_is_not_ours_is_the_hosts() {
    let outside = ["203.0.113.10", "2001:db8:113::10"];
    for mode in [Mode::Geneve, Mode::Native, Mode::Flat] {
        for workers in [1, 2] {
            let mut bed = Bed::with(workers, objects::cluster(mode, Underlay::Ipv4, workers));
            let queue = Place::Uplink(usize::from(workers) - 1);
            let moved = if workers == 1 { TO_HOST } else { HANDED_TO_HOST };
            for family in 0..2 {
                let from = outside[family].parse().unwrap();
                let group = ["224.0.0.251", "ff02::fb"][family].parse().unwrap();
                for to in
                    [node_ip(0, family), node_ip(1, family), pod_ip(1, 0, family), from, group]
                {
                    for body in [
                        Body::Tcp(1000, 22, b"ssh".to_vec()),
                        Body::Udp(1000, 53, vec![]),
                        Body::Echo(false, 1, 1, vec![3; 32]),
                        Body::Raw(89, vec![0; 24]),
                    ] {
                        // One hop left is enough: no hop is taken.
                        let sent = packet(from, to, body).ttl(1);
                        let out = [(Place::Host, sent.frame(to_host()))];
                        bed.step(&queue, &sent.frame(IN), &out, moved);
                    }
                }
            }
            bed.close();
        }
    }
}

#[test]
fn a_group_frame_for_the_host_keeps_its_address() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let mac = overlane_api::MacAddr([0x33, 0x33, 0, 0, 0, 0xfb]);
    let sent = udp("2001:db8:113::10".parse().unwrap(), "ff02::fb".parse().unwrap(), b"x");
    let frame = sent.frame((IN.0, mac));
    bed.step(&UPLINK, &frame, &[(Place::Host, frame.clone())], TO_HOST);
    bed.close();
}

#[test]
fn other_ethertypes_on_the_uplink_are_the_hosts() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for ethertype in [0x88cc, 0x8100, 0x8847] {
        let frame = super::build::ethernet(IN, ethertype, &[5; 46]);
        let out = super::build::ethernet(to_host(), ethertype, &[5; 46]);
        bed.step(&UPLINK, &frame, &[(Place::Host, out)], TO_HOST);
    }
    bed.close();
}

#[test]
fn without_a_host_port_it_is_said() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    bed.node.bench().compiler.bind_host(None);
    bed.node.publish();
    for family in 0..2 {
        let from_pod = udp(pod_ip(0, 0, family), node_ip(0, family), b"x");
        bed.drops(&pod(0), &from_pod.frame(up(0)), "host_unavailable");
        let from_outside = udp(node_ip(9, family), node_ip(0, family), b"x");
        bed.drops(&UPLINK, &from_outside.frame(IN), "host_unavailable");
        let from_peer = udp(pod_ip(1, 0, family), node_ip(0, family), b"x");
        let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
        bed.drops(&UPLINK, &tunnel.wrap(&from_peer.frame(between(1, 0))), "host_unavailable");
    }
    bed.close();
}

#[test]
fn native_mode_changes_the_ethernet_header_and_the_ttl() {
    let mut bed = Bed::new(Mode::Native, Underlay::Ipv4);
    for family in 0..2 {
        for to in [pod_ip(1, 0, family), pod_ip(2, 0, family), node_ip(1, family)] {
            let body = Body::Tcp(1000, 80, vec![6; 1440 - family * 20]);
            let sent = Packet { tos: 0xb9, id: 9, ..packet(pod_ip(0, 0, family), to, body) };
            let out = sent.clone().ttl(63).frame(OUT);
            bed.step(&pod(0), &sent.frame(up(0)), &[(UPLINK, out)], FORWARDED);
            let reply = sent.reply(b"y");
            let out = reply.clone().ttl(63).frame(down(0));
            // Padding to the least length of a frame is taken off.
            let padded = [reply.frame(IN), vec![0; 20]].concat();
            bed.step(&UPLINK, &padded, &[(pod(0), out)], FORWARDED);
        }
    }
    // There is no tunnel port in this mode: its packets are the host's.
    let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
    let outer = tunnel.outer(&udp(pod_ip(1, 0, 0), pod_ip(0, 0, 0), b"x").frame(between(1, 0)));
    bed.step(&UPLINK, &outer.frame(IN), &[(Place::Host, outer.frame(to_host()))], TO_HOST);
    bed.close();
}
