//! E1, E4, E16, E18, E19: what leaves in a tunnel, bit for bit.
//!
//! ```text
//! pod1 -- [ a ] == underlay == [ b ] -- pod
//! ```

use std::collections::HashSet;

use overlane_api::{Change, Mode, Object, OuterDscp, OuterUdpChecksum, Underlay};
use overlane_dataplane::testing::objects;

use super::bed::{Bed, FORWARDED, TUNNELS, UPLINK, pod};
use super::build::{
    Body, Packet, Tunnel, between, down, flow_of, inner_of, packet, pod_ip, udp, up,
};

/// Sends `packet` from pod 1 and its answer back; both must be exactly right.
#[track_caller]
fn there_and_back(bed: &mut Bed, packet: &Packet, out: &Tunnel, back: &Tunnel) {
    let frame = bed.one(&pod(0), &packet.frame(up(0)), &UPLINK, FORWARDED);
    let (port, label) = flow_of(&frame);
    assert!(port >= 49152);
    if out.source.is_ipv6() {
        assert_eq!(label >> 6, u32::from(port) & 0x3fff, "port and label are of one hash");
    }
    let inner = packet.clone().ttl(packet.ttl - 1).frame(between(0, 1));
    let expected = Tunnel { source_port: port, label, ..out.clone() }.wrap(&inner);
    assert_eq!(frame, expected);
    let reply = packet.reply(b"answer");
    bed.step(
        &UPLINK,
        &back.wrap(&reply.frame(between(1, 0))),
        &[(pod(0), reply.clone().ttl(63).frame(down(0)))],
        FORWARDED,
    );
}

#[test]
fn encap_fields() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = Bed::new(mode, underlay);
            let (source, destination) = (pod_ip(0, 0, family), pod_ip(1, 0, family));
            let out = Tunnel::to_peer(1, mode, underlay, (0, 0));
            let back = Tunnel::from_peer(1, mode, underlay);
            for body in [
                Body::Udp(1000, 2000, b"hello".to_vec()),
                Body::Udp(1000, 2000, Vec::new()),
                Body::Tcp(1000, 80, vec![7; 1300]),
                Body::Echo(false, 9, 1, b"ping".to_vec()),
            ] {
                there_and_back(&mut bed, &packet(source, destination, body), &out, &back);
            }
            bed.close();
        }
    }
}

#[test]
fn each_peer_gets_its_own_addresses() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        for peer in [1, 2] {
            let sent = udp(pod_ip(0, 0, 0), pod_ip(peer, 0, 0), b"x");
            let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
            let tunnel = Tunnel::to_peer(peer, mode, underlay, flow_of(&frame));
            assert_eq!(frame, tunnel.wrap(&sent.ttl(63).frame(between(0, peer))));
        }
        bed.close();
    }
}

#[test]
fn custom_udp_port() {
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let mut node = objects::node(Mode::Vxlan, underlay);
        node.encap.vxlan_port = 8472;
        let mut bed = Bed::new(Mode::Vxlan, underlay);
        bed.node.set(Object::Node(node)).unwrap();
        let out = Tunnel { port: 8472, ..Tunnel::to_peer(1, Mode::Vxlan, underlay, (0, 0)) };
        let back = Tunnel { port: 8472, ..Tunnel::from_peer(1, Mode::Vxlan, underlay) };
        let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
        there_and_back(&mut bed, &sent, &out, &back);
        // The usual port is an ordinary one now: the host's.
        let usual = Tunnel { port: 4789, ..back };
        let got = bed.send(
            &UPLINK,
            &usual.wrap(&sent.reply(b"y").frame(between(1, 0))),
            &[("received", 1), ("to_host", 1)],
        );
        assert_eq!(got.len(), 1);
        bed.close();
    }
}

#[test]
fn the_outer_checksum_is_as_configured() {
    for (mode, underlay) in TUNNELS {
        for (setting, sum) in [
            (OuterUdpChecksum::Auto, underlay == Underlay::Ipv6),
            (OuterUdpChecksum::Compute, true),
            (OuterUdpChecksum::Zero, false),
        ] {
            for family in 0..2 {
                let mut node = objects::node(mode, underlay);
                node.encap.udp_checksum = setting;
                let mut bed = Bed::new(mode, underlay);
                bed.node.set(Object::Node(node)).unwrap();
                let out = Tunnel { sum, ..Tunnel::to_peer(1, mode, underlay, (0, 0)) };
                let back = Tunnel::from_peer(1, mode, underlay);
                // Odd and even lengths: the checksum pads.
                for len in [0, 1, 2, 3, 600, 1301] {
                    let payload = vec![0xa5; len];
                    let sent = udp(pod_ip(0, 0, family), pod_ip(1, 0, family), &payload);
                    there_and_back(&mut bed, &sent, &out, &back);
                }
                bed.close();
            }
        }
    }
}

#[test]
fn outer_ttl_and_dscp() {
    for (mode, underlay) in TUNNELS {
        for (setting, dscp) in
            [(OuterDscp::Fixed(0), 0), (OuterDscp::Fixed(46), 46), (OuterDscp::Copy, 10)]
        {
            for family in 0..2 {
                let mut node = objects::node(mode, underlay);
                node.encap.dscp = setting;
                node.encap.ttl = 17;
                let mut bed = Bed::new(mode, underlay);
                bed.node.set(Object::Node(node)).unwrap();
                for ecn in 0..4 {
                    let tos = dscp << 2 | ecn;
                    let out = Tunnel { tos, ttl: 17, ..Tunnel::to_peer(1, mode, underlay, (0, 0)) };
                    let back = Tunnel::from_peer(1, mode, underlay);
                    let sent = udp(pod_ip(0, 0, family), pod_ip(1, 0, family), b"x");
                    let sent = sent.tos(10 << 2 | ecn).ttl(9);
                    there_and_back(&mut bed, &sent, &out, &back);
                }
                bed.close();
            }
        }
    }
}

#[test]
fn encap_src_port_entropy_routed() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = Bed::new(mode, underlay);
            let (source, destination) = (pod_ip(0, 0, family), pod_ip(1, 0, family));
            let mut ports = HashSet::new();
            for flow in 0..1000 {
                let sent = packet(source, destination, Body::Udp(20_000 + flow, 53, vec![1]));
                let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
                assert!(flow_of(&frame).0 >= 49152);
                ports.insert(flow_of(&frame).0);
            }
            // 1,000 flows into 16,384 ports: about 970 are to be expected.
            assert!(ports.len() > 900, "{mode} {underlay:?}: {} ports", ports.len());
            bed.close();
        }
    }
}

#[test]
fn one_flow_keeps_its_port_and_another_protocol_has_its_own() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv6);
    let (source, destination) = (pod_ip(0, 0, 0), pod_ip(1, 0, 0));
    let mut seen = HashSet::new();
    for body in [Body::Udp(1000, 2000, vec![]), Body::Tcp(1000, 2000, vec![])] {
        let sent = packet(source, destination, body);
        let first = flow_of(&bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED));
        for (id, ttl, tos) in [(7, 64, 0), (8, 3, 4), (9, 255, 0xb8)] {
            let again = Packet { id, ttl, tos, ..sent.clone() };
            let frame = bed.one(&pod(0), &again.frame(up(0)), &UPLINK, FORWARDED);
            assert_eq!(flow_of(&frame), first);
        }
        assert!(seen.insert(first));
    }
    bed.close();
}

#[test]
fn fragments_of_a_packet_take_one_path() {
    let mut bed = Bed::new(Mode::Vxlan, Underlay::Ipv4);
    let whole = packet(pod_ip(0, 0, 0), pod_ip(1, 0, 0), Body::Udp(1000, 2000, vec![5; 1000]));
    let body = whole.ip()[20..].to_vec();
    let piece = |from: usize, to: usize| Packet {
        id: 77,
        dont_fragment: false,
        more_fragments: to < body.len(),
        offset: (from / 8) as u16,
        body: Body::Raw(17, body[from..to].to_vec()),
        ..whole.clone()
    };
    // E17: they arrive as they were sent, each in a tunnel of its own, in any order.
    let pieces = [piece(400, 800), piece(0, 400), piece(800, body.len())];
    let mut ports = HashSet::new();
    for piece in &pieces {
        let frame = bed.one(&pod(0), &piece.frame(up(0)), &UPLINK, FORWARDED);
        assert_eq!(inner_of(&frame), piece.clone().ttl(63).frame(between(0, 1)));
        ports.insert(flow_of(&frame));
    }
    assert_eq!(ports.len(), 1);
    bed.close();
}

#[test]
fn mixed_modes_each_peer_has_its_own() {
    let mut changes = objects::cluster(Mode::Geneve, Underlay::Ipv4, 1);
    changes.push(Change::Set(Object::Peer(objects::peer(2, Mode::Vxlan))));
    changes.push(Change::Set(Object::Peer(objects::peer(3, Mode::Native))));
    changes.push(Change::Set(Object::Endpoint(objects::remote_pod(3, 0))));
    let mut bed = Bed::with(1, changes);
    for family in 0..2 {
        for (peer, mode) in [(1, Mode::Geneve), (2, Mode::Vxlan)] {
            let sent = udp(pod_ip(0, 0, family), pod_ip(peer, 0, family), b"x");
            let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
            let tunnel = Tunnel::to_peer(peer, mode, Underlay::Ipv4, flow_of(&frame));
            assert_eq!(frame, tunnel.wrap(&sent.clone().ttl(63).frame(between(0, peer))));
            let reply = sent.reply(b"y");
            let back = Tunnel::from_peer(peer, mode, Underlay::Ipv4);
            let inner = reply.frame(between(peer, 0));
            let delivered = reply.clone().ttl(63).frame(down(0));
            bed.step(&UPLINK, &back.wrap(&inner), &[(pod(0), delivered)], FORWARDED);
            // The other kind of tunnel is not what this peer was said to use.
            let other = if mode == Mode::Geneve { Mode::Vxlan } else { Mode::Geneve };
            let wrong = Tunnel::from_peer(peer, other, Underlay::Ipv4).wrap(&inner);
            bed.drops(&UPLINK, &wrong, "tunnel_mode_mismatch");
        }
        let sent = udp(pod_ip(0, 0, family), pod_ip(3, 0, family), b"x");
        let out = sent.clone().ttl(63).frame(super::build::OUT);
        bed.step(&pod(0), &sent.frame(up(0)), &[(UPLINK, out)], FORWARDED);
        let reply = sent.reply(b"y");
        let delivered = reply.clone().ttl(63).frame(down(0));
        bed.step(&UPLINK, &reply.frame(super::build::IN), &[(pod(0), delivered)], FORWARDED);
        let wrong = Tunnel::from_peer(3, Mode::Geneve, Underlay::Ipv4);
        bed.drops(&UPLINK, &wrong.wrap(&reply.frame(between(3, 0))), "tunnel_mode_mismatch");
    }
    bed.close();
}
