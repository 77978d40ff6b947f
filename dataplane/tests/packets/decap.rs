//! E2, E8, E10, E11, D6, D8: what is taken out of a tunnel, and everything that can be wrong with
//! it, each by its own name.

use overlane_api::{Mode, Object, Underlay};
use overlane_dataplane::packet::drop::DropReason;
use overlane_dataplane::testing::{Place, objects};

use super::bed::{Bed, FORWARDED, TO_HOST, TUNNELS, UPLINK, pod};
use super::build::{
    Body, Packet, Tunnel, between, down, family_of, gateway_ip, node_ip, packet, pod_ip, to_host,
    udp,
};

/// A datagram from b's pod to pod 1.
fn incoming(family: usize) -> Packet {
    udp(pod_ip(1, 0, family), pod_ip(0, 0, family), b"from b")
}

/// How `packet` reaches pod 1.
fn delivered(packet: &Packet) -> Vec<(Place, Vec<u8>)> {
    vec![(pod(0), packet.clone().ttl(packet.ttl - 1).frame(down(0)))]
}

#[test]
fn decap_exact() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = Bed::new(mode, underlay);
            let (source, destination) = (pod_ip(1, 0, family), pod_ip(0, 0, family));
            for body in [
                Body::Udp(1000, 2000, b"hello".to_vec()),
                Body::Udp(1000, 2000, Vec::new()),
                Body::UdpNoSum(1000, 2000, b"D8".to_vec()),
                Body::Tcp(1000, 80, vec![7; 1300]),
                Body::Echo(true, 9, 1, b"pong".to_vec()),
                Body::Raw(132, vec![0; 33]),
            ] {
                let packet =
                    Packet { id: 5, tos: 0xb8, ttl: 33, ..packet(source, destination, body) };
                let inner = packet.frame(between(1, 0));
                for sum in [true, false] {
                    if !sum && underlay == Underlay::Ipv6 {
                        continue;
                    }
                    // DSCP is never copied back; the outer TTL says nothing about the inner.
                    for (tos, ttl) in [(0, 64), (0xb8, 1)] {
                        let tunnel =
                            Tunnel { sum, tos, ttl, ..Tunnel::from_peer(1, mode, underlay) };
                        let out = delivered(&packet);
                        bed.step(&UPLINK, &tunnel.wrap(&inner), &out, FORWARDED);
                    }
                }
            }
            bed.close();
        }
    }
}

#[test]
fn a_tunnel_of_one_family_carries_the_other() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        // A peer may use either of its addresses, whatever we use.
        for outer in [Underlay::Ipv4, Underlay::Ipv6] {
            for family in 0..2 {
                let packet = incoming(family);
                let frame = Tunnel::from_peer(1, mode, outer).wrap(&packet.frame(between(1, 0)));
                bed.step(&UPLINK, &frame, &delivered(&packet), FORWARDED);
            }
        }
        bed.close();
    }
}

#[test]
fn ethernet_trailer_ignored() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = Bed::new(mode, underlay);
            let packet = incoming(family);
            let tunnel = Tunnel::from_peer(1, mode, underlay);
            for (outer, inner) in [(6, 0), (0, 6), (46, 18)] {
                let inner = [packet.frame(between(1, 0)), vec![0xee; inner]].concat();
                let frame = [tunnel.wrap(&inner), vec![0xee; outer]].concat();
                bed.step(&UPLINK, &frame, &delivered(&packet), FORWARDED);
            }
            bed.close();
        }
    }
}

#[test]
fn unknown_vni_dropped() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        for vni in [0_u32, 3300, 3302, 0xff_ffff, 3301 << 8] {
            let mut tunnel = Tunnel::from_peer(1, mode, underlay);
            tunnel.header[4..7].copy_from_slice(&vni.to_be_bytes()[1..]);
            let frame = tunnel.wrap(&incoming(0).frame(between(1, 0)));
            bed.drops(&UPLINK, &frame, "tunnel_unknown_vni");
        }
        bed.close();
    }
}

#[test]
fn wrong_local_addr_is_the_hosts() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        let family = family_of(underlay);
        let tunnel =
            Tunnel { destination: node_ip(7, family), ..Tunnel::from_peer(1, mode, underlay) };
        let outer = tunnel.outer(&incoming(0).frame(between(1, 0)));
        let out = outer.frame(to_host());
        bed.step(&UPLINK, &outer.frame(tunnel.macs), &[(Place::Host, out)], TO_HOST);
        bed.close();
    }
}

#[test]
fn only_known_peers_may_send() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        let family = family_of(underlay);
        for stranger in [node_ip(0, family), node_ip(9, family), pod_ip(1, 0, family)] {
            let tunnel = Tunnel { source: stranger, ..Tunnel::from_peer(1, mode, underlay) };
            let frame = tunnel.wrap(&incoming(0).frame(between(1, 0)));
            bed.drops(&UPLINK, &frame, "tunnel_unknown_peer");
        }
        bed.close();
    }
}

#[test]
fn geneve_options() {
    // One option: class 0x0104, the type, R bits and length in words, data.
    let option = |kind: u8, bits: u8, words: u8| {
        let mut bytes = vec![1, 4, kind, bits << 5 | words];
        bytes.extend(vec![0xab; usize::from(words) * 4]);
        bytes
    };
    let ok = "";
    let bad = "geneve_bad_option_length";
    let critical = "geneve_unknown_critical_option";
    let cases: &[(&str, Vec<u8>, u8, &str)] = &[
        ("one that is not critical", option(1, 0, 1), 0, ok),
        ("without data", option(1, 0, 0), 0, ok),
        ("the longest", option(1, 0, 31), 0, ok),
        ("R bits are ignored", option(1, 7, 2), 0, ok),
        ("twice the same", [option(1, 0, 1), option(1, 0, 1)].concat(), 0, ok),
        ("a C bit without a critical option", option(1, 0, 1), 0x40, ok),
        ("critical, and C says so", option(0x81, 0, 1), 0x40, critical),
        ("critical, and C does not say so", option(0x81, 0, 1), 0, critical),
        ("critical behind another", [option(1, 0, 3), option(0x80, 0, 0)].concat(), 0x40, critical),
        ("runs one word past the end", vec![1, 4, 1, 2, 0, 0, 0, 0], 0, bad),
        ("runs far past the end", vec![1, 4, 1, 31], 0, bad),
        ("critical and too long", vec![1, 4, 0x81, 31], 0x40, bad),
        ("252 bytes", [option(1, 0, 31), option(2, 0, 30)].concat(), 0, ok),
    ];
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        for family in 0..2 {
            let mut bed = Bed::new(Mode::Geneve, underlay);
            let packet = incoming(family);
            for (name, options, flags, reason) in cases {
                assert_eq!(options.len() % 4, 0);
                let mut tunnel = Tunnel::from_peer(1, Mode::Geneve, underlay);
                tunnel.header[0] = (options.len() / 4) as u8;
                tunnel.header[1] = *flags;
                tunnel.header.extend(options);
                let frame = tunnel.wrap(&packet.frame(between(1, 0)));
                println!("{name}");
                if reason.is_empty() {
                    bed.step(&UPLINK, &frame, &delivered(&packet), FORWARDED);
                } else {
                    bed.drops(&UPLINK, &frame, reason);
                }
            }
            bed.close();
        }
    }
}

#[test]
fn geneve_header_fields() {
    let cases: &[(usize, u8, &str)] = &[
        (0, 0x40, "geneve_bad_version"),
        (0, 0xc0, "geneve_bad_version"),
        (1, 0x80, "geneve_control_packet"),
        (1, 0x3f, ""),
        (7, 0xff, ""),
        (2, 0x66, "geneve_unknown_protocol"),
        (3, 0x59, "geneve_unknown_protocol"),
        // Options that run past the datagram.
        (0, 0x3f, "geneve_bad_option_length"),
    ];
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for (at, value, reason) in cases {
        let packet = incoming(0);
        let mut tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
        tunnel.header[*at] = *value;
        let frame = tunnel.wrap(&packet.frame(between(1, 0)));
        println!("byte {at} = {value:#x}");
        if reason.is_empty() {
            bed.step(&UPLINK, &frame, &delivered(&packet), FORWARDED);
        } else {
            bed.drops(&UPLINK, &frame, reason);
        }
    }
    // IP without Ethernet is another protocol, too.
    let mut tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
    tunnel.header[2..4].copy_from_slice(&[0x08, 0]);
    bed.drops(&UPLINK, &tunnel.wrap(&incoming(0).ip()), "geneve_unknown_protocol");
    bed.close();
}

#[test]
fn vxlan_header_fields() {
    for strict in [false, true] {
        let reserved = if strict { "vxlan_reserved_bits" } else { "" };
        let cases: &[(usize, u8, &str)] = &[
            (0, 0x00, "vxlan_no_vni_flag"),
            (0, 0xf7, "vxlan_no_vni_flag"),
            (0, 0x88, reserved),
            (0, 0x0c, reserved),
            (1, 0x01, reserved),
            (2, 0xff, reserved),
            (3, 0x80, reserved),
            (7, 0x01, reserved),
            (0, 0x08, ""),
        ];
        let mut node = objects::node(Mode::Vxlan, Underlay::Ipv4);
        node.encap.vxlan_strict = strict;
        let mut bed = Bed::new(Mode::Vxlan, Underlay::Ipv4);
        bed.node.set(Object::Node(node)).unwrap();
        for (at, value, reason) in cases {
            let packet = incoming(0);
            let mut tunnel = Tunnel::from_peer(1, Mode::Vxlan, Underlay::Ipv4);
            tunnel.header[*at] = *value;
            let frame = tunnel.wrap(&packet.frame(between(1, 0)));
            println!("strict {strict}: byte {at} = {value:#x}");
            if reason.is_empty() {
                bed.step(&UPLINK, &frame, &delivered(&packet), FORWARDED);
            } else {
                bed.drops(&UPLINK, &frame, reason);
            }
        }
        bed.close();
    }
}

#[test]
fn ecn_reaches_the_inner_packet() {
    const NOT: u8 = 0;
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    // RFC 6040 figure 4: inner, then what goes on for outer Not-ECT, ECT(0), ECT(1), CE.
    let table: [(u8, [Option<u8>; 4]); 4] = [
        (NOT, [Some(NOT), Some(NOT), Some(NOT), None]),
        (ECT0, [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)]),
        (ECT1, [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = Bed::new(mode, underlay);
            for (inner, row) in table {
                for (outer, expected) in [NOT, ECT0, ECT1, CE].into_iter().zip(row) {
                    for dscp in [0, 46] {
                        let sent = incoming(family).tos(dscp << 2 | inner);
                        let tunnel =
                            Tunnel { tos: 0x20 | outer, ..Tunnel::from_peer(1, mode, underlay) };
                        let frame = tunnel.wrap(&sent.frame(between(1, 0)));
                        if let Some(ecn) = expected {
                            let out = delivered(&sent.tos(dscp << 2 | ecn));
                            bed.step(&UPLINK, &frame, &out, FORWARDED);
                        } else {
                            bed.drops(&UPLINK, &frame, "tunnel_ecn_ce_on_not_ect");
                        }
                    }
                }
            }
            bed.close();
        }
    }
}

#[test]
fn damaged_outer_headers() {
    let l2 = 14;
    for (mode, _) in TUNNELS {
        let mut bed = Bed::new(mode, Underlay::Ipv4);
        let tunnel = Tunnel { sum: true, ..Tunnel::from_peer(1, mode, Underlay::Ipv4) };
        let good = tunnel.wrap(&incoming(0).frame(between(1, 0)));
        let with = |changes: &[(usize, u8)]| {
            let mut frame = good.clone();
            for (at, mask) in changes {
                frame[*at] ^= mask;
            }
            frame
        };
        bed.drops(&UPLINK, &with(&[(l2 + 8, 1)]), "outer_bad_ip_checksum");
        bed.drops(&UPLINK, &with(&[(l2 + 10, 1)]), "outer_bad_ip_checksum");
        bed.drops(&UPLINK, &with(&[(l2, 0x10)]), "bad_ip_header");
        bed.drops(&UPLINK, &with(&[(l2 + 20 + 7, 1)]), "outer_bad_udp_checksum");
        bed.drops(&UPLINK, &with(&[(good.len() - 1, 1)]), "outer_bad_udp_checksum");
        // The outer source port is checked by the sum alone.
        bed.drops(&UPLINK, &with(&[(l2 + 20, 1)]), "outer_bad_udp_checksum");
        let unsummed = Tunnel { sum: false, ..tunnel.clone() };
        let good = unsummed.wrap(&incoming(0).frame(between(1, 0)));
        for length in [0_u16, 7, 2000, (good.len() - l2 - 20 + 1) as u16] {
            let mut frame = good.clone();
            frame[l2 + 24..l2 + 26].copy_from_slice(&length.to_be_bytes());
            bed.drops(&UPLINK, &frame, "outer_bad_udp_length");
        }
        // The UDP length leaves no room for the tunnel header, or for the inner frame.
        for (length, reason) in [
            (8_u16, "outer_truncated"),
            (15, "outer_truncated"),
            (16, "inner_truncated"),
            (29, "inner_truncated"),
        ] {
            let mut frame = good.clone();
            frame[l2 + 24..l2 + 26].copy_from_slice(&length.to_be_bytes());
            bed.drops(&UPLINK, &frame, reason);
        }
        let outer = unsummed.outer(&incoming(0).frame(between(1, 0)));
        let first = Packet { dont_fragment: false, more_fragments: true, ..outer.clone() };
        bed.drops(&UPLINK, &first.frame(unsummed.macs), "outer_fragment");
        bed.close();
    }
}

#[test]
fn an_outer_ipv6_fragment_is_dropped_and_a_whole_packet_with_its_header_is_not() {
    for (mode, underlay) in TUNNELS.into_iter().filter(|(_, u)| *u == Underlay::Ipv6) {
        let mut bed = Bed::new(mode, underlay);
        let tunnel = Tunnel::from_peer(1, mode, underlay);
        let sent = incoming(0);
        let outer = tunnel.outer(&sent.frame(between(1, 0)));
        // A fragment header: next header UDP, offset 0, and whether there is more to come.
        let with_header = |more: u8| {
            let body = [&[17, 0, 0, more, 0, 0, 0, 9][..], &outer.ip()[40..]].concat();
            Packet { body: Body::Raw(44, body), ..outer.clone() }.frame(tunnel.macs)
        };
        bed.drops(&UPLINK, &with_header(1), "outer_fragment");
        // RFC 6946.
        bed.step(&UPLINK, &with_header(0), &delivered(&sent), FORWARDED);
        bed.close();
    }
}

#[test]
fn outer_ip_options_and_extension_headers_are_skipped() {
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        let packet = incoming(0);
        let tunnel = Tunnel::from_peer(1, mode, underlay);
        let outer = tunnel.outer(&packet.frame(between(1, 0)));
        let frame = if underlay == Underlay::Ipv6 {
            // Destination options: next header UDP, 8 bytes, one PadN.
            let body = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &outer.ip()[40..]].concat();
            Packet { body: Body::Raw(60, body), ..outer }.frame(tunnel.macs)
        } else {
            let ip = outer.ip();
            let (mut header, _) = etherparse::Ipv4Header::from_slice(&ip).unwrap();
            header.options = [1, 1, 1, 0].into();
            header.set_payload_len(ip.len() - 20).unwrap();
            header.header_checksum = header.calc_header_checksum();
            let bytes = [&header.to_bytes()[..], &ip[20..]].concat();
            super::build::ethernet(tunnel.macs, 0x0800, &bytes)
        };
        bed.step(&UPLINK, &frame, &delivered(&packet), FORWARDED);
        bed.close();
    }
}

#[test]
fn a_zero_checksum_over_ipv6_is_accepted_only_when_configured() {
    for mode in [Mode::Geneve, Mode::Vxlan] {
        for accepted in [false, true] {
            let mut node = objects::node(mode, Underlay::Ipv6);
            node.encap.accept_zero_udp_checksum_v6 = accepted;
            let mut bed = Bed::new(mode, Underlay::Ipv6);
            bed.node.set(Object::Node(node)).unwrap();
            let tunnel = Tunnel { sum: false, ..Tunnel::from_peer(1, mode, Underlay::Ipv6) };
            let packet = incoming(1);
            let frame = tunnel.wrap(&packet.frame(between(1, 0)));
            if accepted {
                bed.step(&UPLINK, &frame, &delivered(&packet), FORWARDED);
            } else {
                bed.drops(&UPLINK, &frame, "outer_zero_udp_checksum_v6");
            }
            bed.close();
        }
    }
}

#[test]
fn a_packet_cut_anywhere_is_dropped_by_name_or_the_hosts() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = Bed::new(mode, underlay);
            let tunnel = Tunnel::from_peer(1, mode, underlay);
            let whole = tunnel.wrap(&incoming(family).frame(between(1, 0)));
            for len in 1..whole.len() {
                // The frame is cut; no header knows of it.
                let reason = if len < 14 { "frame_truncated" } else { "outer_truncated" };
                bed.drops(&UPLINK, &whole[..len], reason);
            }
            bed.close();
        }
    }
}

#[test]
fn an_inner_packet_cut_anywhere_is_dropped_by_name() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = Bed::new(mode, underlay);
            let tunnel = Tunnel::from_peer(1, mode, underlay);
            let inner = incoming(family).frame(between(1, 0));
            for len in 0..inner.len() {
                bed.drops(&UPLINK, &tunnel.wrap(&inner[..len]), "inner_truncated");
            }
            bed.close();
        }
    }
}

#[test]
fn what_is_inside_is_checked() {
    for (mode, underlay) in TUNNELS {
        for family in 0..2 {
            let mut bed = Bed::new(mode, underlay);
            let tunnel = Tunnel::from_peer(1, mode, underlay);
            let good = incoming(family);
            let outside = ["203.0.113.10", "2001:db8:113::10"][family].parse().unwrap();
            let multicast = ["224.0.0.5", "ff02::5"][family].parse().unwrap();
            for (source, reason) in [
                (pod_ip(2, 0, family), "another peer's pod"),
                (pod_ip(0, 1, family), "our own pod"),
                (node_ip(0, family), "ourselves"),
                (node_ip(2, family), "another peer"),
                (gateway_ip(family), "the gateway"),
                (outside, "nobody's"),
                (multicast, "a group"),
            ] {
                println!("{reason}");
                let packet = Packet { source, ..good.clone() };
                let frame = tunnel.wrap(&packet.frame(between(1, 0)));
                bed.drops(&UPLINK, &frame, "inner_spoofed_source");
            }
            let to_group = Packet { destination: multicast, ..good.clone() };
            bed.drops(&UPLINK, &tunnel.wrap(&to_group.frame(between(1, 0))), "inner_multicast");
            let group_mac = overlane_api::MacAddr([0xff; 6]);
            let frame = tunnel.wrap(&good.frame((between(1, 0).0, group_mac)));
            bed.drops(&UPLINK, &frame, "inner_multicast");
            let mut frame = good.frame(between(1, 0));
            frame[14] ^= 0x20;
            bed.drops(&UPLINK, &tunnel.wrap(&frame), "inner_bad_version");
            for ethertype in [0x0806, 0x8100, 0x88cc] {
                let frame = super::build::ethernet(between(1, 0), ethertype, &good.ip());
                bed.drops(&UPLINK, &tunnel.wrap(&frame), "inner_bad_version");
            }
            // The other EtherType over this family's header.
            let ethertype = [0x86dd, 0x0800][family];
            let long = udp(good.source, good.destination, &[0; 100]);
            let frame = super::build::ethernet(between(1, 0), ethertype, &long.ip());
            bed.drops(&UPLINK, &tunnel.wrap(&frame), "inner_bad_version");
            if family == 0 {
                let mut frame = good.frame(between(1, 0));
                frame[14 + 8] ^= 1;
                bed.drops(&UPLINK, &tunnel.wrap(&frame), "inner_bad_ip_checksum");
            }
            bed.close();
        }
    }
}

#[test]
fn neighbour_discovery_is_not_carried() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for kind in [133, 134, 135, 136, 137] {
        let body = Body::Error(kind, 0, 0, vec![0; 16]);
        let message = packet(pod_ip(1, 0, 1), pod_ip(0, 0, 1), body).ttl(255);
        let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
        let frame = tunnel.wrap(&message.frame(between(1, 0)));
        bed.drops(&UPLINK, &frame, "inner_multicast");
    }
    bed.close();
}

#[test]
fn bytes_changed_at_random_never_go_unaccounted() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for (mode, underlay) in TUNNELS {
        let mut bed = Bed::new(mode, underlay);
        for number in 0..2000 {
            let inner = incoming(number % 2).frame(between(1, 0));
            let mut frame = Tunnel::from_peer(1, mode, underlay).wrap(&inner);
            for _ in 0..1 + random() % 4 {
                let at = random() as usize % frame.len();
                frame[at] = random() as u8;
            }
            let before = bed.node.counters();
            assert!(bed.node.inject(&UPLINK, &frame));
            bed.node.run();
            bed.node.check_books().unwrap();
            let after = bed.node.counters();
            assert_eq!(after.received - before.received - (after.generated - before.generated), 1);
            assert!(after.sent + after.to_host + after.dropped_total() > 0);
            let _ = bed.node.collect();
        }
        assert!(bed.node.drops().iter().all(|(r, _)| *r != DropReason::NotConfigured));
        bed.close();
    }
}
