//! What a pod may send: its own addresses, to single hosts, and nothing to tunnel ports.

use overlane_api::{MacAddr, Mode, Underlay};
use overlane_dataplane::testing::{Place, objects};

use super::bed::{Bed, FORWARDED, TUNNELS, UPLINK, pod};
use super::build::{
    Body, Packet, Tunnel, between, down, ethernet, gateway_ip, node_ip, packet, pod_ip, udp, up,
};

#[test]
fn a_pod_speaks_for_itself_only() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for family in 0..2 {
        let good = udp(pod_ip(0, 0, family), pod_ip(1, 0, family), b"x");
        let outside: std::net::IpAddr =
            ["203.0.113.10", "2001:db8:113::10"][family].parse().unwrap();
        let zero = ["0.0.0.0", "::"][family].parse().unwrap();
        let group = ["224.0.0.1", "ff02::1"][family].parse().unwrap();
        for source in [
            pod_ip(0, 1, family),
            pod_ip(1, 0, family),
            node_ip(0, family),
            node_ip(1, family),
            gateway_ip(family),
            outside,
            zero,
            group,
        ] {
            if family == 1 && source == gateway_ip(1) {
                // Link-local: below.
                continue;
            }
            let spoofed = Packet { source, ..good.clone() };
            bed.drops(&pod(0), &spoofed.frame(up(0)), "spoofed_source");
        }
        let wrong_mac = (objects::pod_mac(0, 1), objects::gateway_mac(0));
        bed.drops(&pod(0), &good.frame(wrong_mac), "spoofed_mac");
    }
    bed.close();
}

#[test]
fn a_link_local_source_stays_on_its_link() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let link_local = "fe80::858:ff:fe00:0".parse().unwrap();
    for destination in [pod_ip(0, 1, 1), pod_ip(1, 0, 1), node_ip(0, 1), node_ip(1, 1)] {
        let frame = udp(link_local, destination, b"x").frame(up(0));
        bed.drops(&pod(0), &frame, "spoofed_source");
    }
    // To the gateway it is right.
    let ping = packet(link_local, gateway_ip(1), Body::Echo(false, 1, 2, b"hi".to_vec()));
    let pong = ping.reply(b"hi");
    bed.step(&pod(0), &ping.frame(up(0)), &[(pod(0), pong.frame(down(0)))], FORWARDED);
    bed.close();
}

#[test]
fn a_pod_without_an_address_of_a_family_may_not_use_that_family() {
    let mut changes = objects::cluster(Mode::Geneve, Underlay::Ipv4, 1);
    for (number, family) in [(5, 0), (6, 1)] {
        let mut only = objects::local_pod(number, 0);
        only.addresses = vec![pod_ip(0, number, family)];
        changes.push(overlane_api::Change::Set(overlane_api::Object::Endpoint(only)));
    }
    let mut bed = Bed::with(1, changes);
    for (number, family) in [(5, 0), (6, 1)] {
        let other = 1 - family;
        let sent = udp(pod_ip(0, number, family), pod_ip(0, 0, family), b"x");
        let out = sent.clone().ttl(63).frame(down(0));
        bed.step(&pod(number), &sent.frame(up(number)), &[(pod(0), out)], FORWARDED);
        for source in [pod_ip(0, number, other), ["0.0.0.0", "::"][other].parse().unwrap()] {
            let frame = udp(source, pod_ip(0, 0, other), b"x").frame(up(number));
            bed.drops(&pod(number), &frame, "spoofed_source");
        }
    }
    bed.close();
}

#[test]
fn tunnel_ports_of_nodes_are_closed_to_pods() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        let port = mode.default_port().unwrap();
        for family in 0..2 {
            for node in [0, 1, 2] {
                let forged = Tunnel::from_peer(1, mode, underlay);
                let inner = udp(pod_ip(1, 0, 0), pod_ip(0, 1, 0), b"x").frame(between(1, 0));
                let payload = [&forged.header[..], &inner].concat();
                let sent = packet(
                    pod_ip(0, 0, family),
                    node_ip(node, family),
                    Body::Udp(50_000, port, payload.clone()),
                );
                bed.drops(&pod(0), &sent.frame(up(0)), "pod_to_tunnel_port");
                if family == 0 {
                    // The first fragment of a datagram says the port as well.
                    let first =
                        Packet { dont_fragment: false, more_fragments: true, ..sent.clone() };
                    bed.drops(&pod(0), &first.frame(up(0)), "pod_to_tunnel_port");
                }
                // Another port of the same node is open, and so is this one by TCP.
                for body in [Body::Udp(50_000, port + 1, payload), Body::Tcp(50_000, port, vec![])]
                {
                    let sent = Packet { body, ..sent.clone() };
                    let (to, moved) = if node == 0 {
                        (Place::Host, super::bed::TO_HOST)
                    } else {
                        (UPLINK, FORWARDED)
                    };
                    bed.one(&pod(0), &sent.frame(up(0)), &to, moved);
                }
            }
            // A pod may listen there.
            let sent = packet(
                pod_ip(0, 0, family),
                pod_ip(0, 1, family),
                Body::Udp(50_000, port, b"x".to_vec()),
            );
            let out = sent.clone().ttl(63).frame(down(1));
            bed.step(&pod(0), &sent.frame(up(0)), &[(pod(1), out)], FORWARDED);
        }
        bed.close();
    }
}

#[test]
fn only_plain_ip_and_arp_come_in() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let good = udp(pod_ip(0, 0, 0), pod_ip(0, 1, 0), b"x");
    let tagged = [&[0, 7, 8, 0][..], &good.ip()].concat();
    for ethertype in [0x8100, 0x88a8] {
        bed.drops(&pod(0), &ethernet(up(0), ethertype, &tagged), "unknown_ethertype");
    }
    for ethertype in [0x88cc, 0x8847, 0x0026, 0xffff] {
        bed.drops(&pod(0), &ethernet(up(0), ethertype, &good.ip()), "unknown_ethertype");
    }
    bed.close();
}

#[test]
fn groups_are_not_forwarded() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for text in ["224.0.0.1", "239.1.2.3", "255.255.255.255", "240.0.0.1", "127.0.0.1", "0.0.0.0"] {
        let mac = MacAddr([0x01, 0, 0x5e, 0, 0, 1]);
        for destination_mac in [mac, MacAddr([0xff; 6]), objects::gateway_mac(0)] {
            let frame = udp(pod_ip(0, 0, 0), text.parse().unwrap(), b"x")
                .frame((objects::pod_mac(0, 0), destination_mac));
            bed.drops(&pod(0), &frame, "multicast");
        }
    }
    for text in ["ff02::fb", "ff05::2", "ff0e::1"] {
        let mac = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
        let frame =
            udp(pod_ip(0, 0, 1), text.parse().unwrap(), b"x").frame((objects::pod_mac(0, 0), mac));
        bed.drops(&pod(0), &frame, "multicast");
        // Reports of group membership are the same to us.
        let report = packet(pod_ip(0, 0, 1), text.parse().unwrap(), Body::Error(143, 0, 0, vec![]));
        bed.drops(&pod(0), &report.frame((objects::pod_mac(0, 0), mac)), "multicast");
    }
    bed.close();
}

#[test]
fn a_pods_packet_cut_anywhere_is_dropped_by_name() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for family in 0..2 {
        let frame = udp(pod_ip(0, 0, family), pod_ip(1, 0, family), b"payload").frame(up(0));
        for len in 1..frame.len() {
            bed.drops(&pod(0), &frame[..len], "frame_truncated");
        }
    }
    bed.close();
}

#[test]
fn damaged_headers_of_pods() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for (family, at, mask, reason) in [
        (0, 14 + 10, 0x01, "bad_ip_checksum"),
        (0, 14 + 8, 0x01, "bad_ip_checksum"),
        (0, 14, 0x10, "bad_ip_header"),
        (0, 14, 0x01, "bad_ip_header"),
        (1, 14, 0x10, "bad_ip_header"),
    ] {
        let mut frame = udp(pod_ip(0, 0, family), pod_ip(1, 0, family), b"payload").frame(up(0));
        frame[at] ^= mask;
        bed.drops(&pod(0), &frame, reason);
    }
    let unspecified = udp(pod_ip(0, 0, 1), "::".parse().unwrap(), b"x");
    bed.drops(&pod(0), &unspecified.frame(up(0)), "bad_ip_header");
    bed.close();
}

#[test]
fn nothing_is_forwarded_before_the_node_is_described() {
    let mut bed = Bed::with(1, Vec::new());
    for place in [UPLINK, Place::Host] {
        let frame = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x").frame(up(0));
        bed.drops(&place, &frame, "not_configured");
    }
    bed.close();
}
