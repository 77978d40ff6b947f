//! RFC 4787, NAT behavioral requirements for unicast UDP, one test for each.

use std::collections::HashSet;
use std::net::IpAddr;

use overlane_api::{Egress, EgressAction, Object, PortRange};

use super::bed::{FORWARDED, TO_HOST, UPLINK, pod};
use super::build::{Body, IN, Packet, down, packet, to_host, up};
use super::fragments::named_as;
use super::icmp_error::{error, names, told};
use super::nat_rig::{each, ports, udp, with};
use super::sizes::reassemble;
use overlane_dataplane::testing::Place;

const UNREACHABLE: [(u8, u8); 2] = [(3, 3), (1, 4)];

/// We deviate: a mapping is for one remote address and port. RFC 7857 section 3 allows one port to serve
/// several remotes when the mapping says which, and without it an address has as many flows as ports.
#[test]
fn req_1_mapping_depends_on_the_remote_end() {
    each(|rig| {
        let first = rig.packet_of(0, 0, udp(20_000, 443));
        let left = rig.round_trip(0, &first);
        assert_eq!(ports(&left).0, 20_000);
        // Another pod has the same port towards another remote, and not towards the same one.
        let (elsewhere, same) =
            (rig.packet_of(1, 1, udp(20_000, 443)), rig.packet_of(1, 0, udp(20_000, 443)));
        assert_eq!(ports(&rig.round_trip(1, &elsewhere)).0, 20_000);
        assert_ne!(ports(&rig.round_trip(1, &same)).0, 20_000);
        // What comes from a remote is for who has the mapping towards it.
        rig.reaches(0, &first, &left.reply(b"for pod 1"));
    });
}

#[test]
fn req_2_a_pod_keeps_one_external_address() {
    each(|rig| {
        let pool: Vec<IpAddr> = (0..8_u8)
            .map(|n| {
                [format!("198.51.100.{n}"), format!("2001:db8:100::{n:x}")][rig.family]
                    .parse()
                    .unwrap()
            })
            .filter(|address: &IpAddr| !address.to_string().ends_with("::"))
            .collect();
        let gateway = EgressAction::Gateway { addresses: pool.clone(), nodes: vec!["a".into()] };
        let rule = Egress {
            name: "out".into(),
            order: 0,
            sources: Vec::new(),
            destinations: Vec::new(),
            action: gateway,
        };
        rig.bed.node.set(Object::Egress(rule)).unwrap();
        for number in 0..2 {
            let mut used = HashSet::new();
            for to in 0..20 {
                let sent = rig.packet_of(number, to, udp(40_000 + u16::from(to), 443));
                used.insert(rig.round_trip(number, &sent).source);
            }
            assert_eq!(used.len(), 1, "paired, whatever the destination");
            assert!(used.is_subset(&pool.iter().copied().collect()));
        }
    });
}

#[test]
fn req_3_no_port_is_overloaded_and_none_below_1024_given() {
    with(
        |node| node.snat.ports = PortRange::new(1000, 1100).unwrap(),
        |rig| {
            let mut used = HashSet::new();
            for number in 0..2 {
                for port in [80, 1000, 1050, 40_000] {
                    let sent = rig.packet_of(number, 0, udp(port, 443));
                    let given = ports(&rig.round_trip(number, &sent)).0;
                    assert!((1024..=1100).contains(&given), "{given}");
                    assert!(used.insert(given), "{given} twice towards one remote");
                }
            }
        },
    );
}

/// We deviate: parity, which is only recommended, is not kept; RTP has done without since RFC 3605.
#[test]
fn req_4_parity_is_not_kept() {
    each(|rig| {
        let parities: HashSet<u16> = (0..40)
            .map(|n| {
                let sent = rig.packet_of(0, 0, udp(40_000 + 2 * n, 443));
                ports(&rig.leaves(0, &sent)).0 % 2
            })
            .collect();
        // All alike once in 2^39.
        assert_eq!(parities.len(), 2);
    });
}

#[test]
fn req_5_mappings_last_two_minutes_at_least_and_five_when_answered() {
    each(|rig| {
        let one_way = rig.packet_of(0, 0, udp(20_001, 443));
        let two_way = rig.packet_of(0, 1, udp(20_002, 443));
        let dns = rig.packet_of(0, 2, udp(20_003, 53));
        let left = [rig.leaves(0, &one_way), rig.round_trip(0, &two_way), rig.round_trip(0, &dns)];
        // 5a: to ports below 1024 it may be shorter; DNS is.
        rig.wait(28);
        rig.reaches(0, &dns, &left[2].reply(b""));
        rig.wait(32);
        rig.is_unsolicited(&left[2].reply(b""));
        rig.wait(55);
        assert_eq!(rig.bed.node.flows(), 2, "115 s without an answer are not too long");
        rig.wait(7);
        rig.is_unsolicited(&left[0].reply(b""));
        rig.wait(173);
        rig.reaches(0, &two_way, &left[1].reply(b"at 295 s"));
        rig.wait(302);
        rig.is_unsolicited(&left[1].reply(b""));
    });
    // 5b: every time can be set.
    with(
        |node| node.snat.timeouts.udp_one_way = 10,
        |rig| {
            let sent = rig.packet_of(0, 0, udp(20_001, 443));
            let left = rig.leaves(0, &sent);
            rig.wait(12);
            rig.is_unsolicited(&left.reply(b""));
        },
    );
}

#[test]
fn req_6_packets_to_the_outside_keep_a_mapping_alive() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, udp(40_000, 443));
        let left = rig.leaves(0, &sent);
        for _ in 0..4 {
            rig.wait(100);
            assert_eq!(rig.leaves(0, &sent), left, "the same mapping, 400 s long");
        }
        // From inside it may be kept alive as well: by full matches only.
        rig.reaches(0, &sent, &left.reply(b""));
        rig.wait(250);
        let stray = left.reply(b"").between((rig.outside(1), 443), (left.source, ports(&left).0));
        rig.is_unsolicited(&stray);
        rig.wait(60);
        rig.is_unsolicited(&left.reply(b"310 s after the last one that matched"));
    });
}

/// Inside and outside cannot have the same addresses here (7a): pods' ranges are never outside,
/// whatever the node's routes say, and what no pod has there goes nowhere.
#[test]
fn req_7_addresses_of_pods_are_never_those_of_the_outside() {
    each(|rig| {
        let nobody = ["10.244.9.9", "fd12:3456:0:9::9"][rig.family].parse().unwrap();
        let sent = packet(rig.pod(0), nobody, udp(40_000, 443));
        rig.refused(0, &sent, "no_route", [(3, 0), (1, 0)]);
        assert_eq!(rig.bed.node.flows(), 0);
    });
}

/// Address and port dependent: stricter than the recommended address dependent filtering, as for
/// mapping (REQ-1).
#[test]
fn req_8_only_the_remote_end_itself_gets_in() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, udp(40_000, 443));
        let left = rig.round_trip(0, &sent);
        let mapped = (left.source, ports(&left).0);
        for from in [(rig.outside(0), 444), (rig.outside(1), 443)] {
            rig.is_unsolicited(&left.reply(b"").between(from, mapped));
        }
        rig.reaches(0, &sent, &left.reply(b"it itself"));
    });
}

/// We deviate: filtering lets nobody but the remote end in, so no pod reaches another by its mapping.
/// What it sends there is the host's. Pods have addresses for each other.
#[test]
fn req_9_no_hairpin_to_mappings() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, udp(40_000, 443));
        let left = rig.round_trip(0, &sent);
        let hairpin = packet(rig.pod(1), left.source, udp(50_000, ports(&left).0));
        let out = [(Place::Host, hairpin.frame(to_host()))];
        rig.bed.step(&pod(1), &hairpin.frame(up(1)), &out, TO_HOST);
    });
}

#[test]
fn req_10_payloads_are_left_alone() {
    each(|rig| {
        let text =
            format!("INVITE sip:{} c=IN IP4 {} PORT 10,244,1,10,7,138", rig.pod(0), rig.pod(0));
        let body = Body::Udp(5060, 5060, text.clone().into_bytes());
        let sent = rig.packet_of(0, 0, body);
        let left = rig.leaves(0, &sent);
        assert!(matches!(&left.body, Body::Udp(_, _, bytes) if *bytes == text.into_bytes()));
    });
}

#[test]
fn req_11_it_does_the_same_with_many_flows() {
    each(|rig| {
        for n in 0..600 {
            let sent = rig.packet_of(0, 0, udp(10_300 + n, 443));
            assert_eq!(ports(&rig.round_trip(0, &sent)).0, 10_300 + n, "kept, as with few");
        }
        let sent = rig.packet_of(0, 0, udp(10_300, 443));
        let left = rig.leaves(0, &sent);
        let stray = left.reply(b"").between((rig.outside(1), 443), (left.source, 10_300));
        rig.is_unsolicited(&stray);
    });
}

#[test]
fn req_12_icmp_ends_no_mapping_and_comes_from_anybody() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, udp(40_000, 443));
        let left = rig.round_trip(0, &sent);
        // From the remote end, and from routers that nobody has heard of (12a).
        let by_itself = error(sent.destination, &left, UNREACHABLE, 0);
        let seen = error(sent.destination, &sent.clone().ttl(left.ttl), UNREACHABLE, 0).ttl(63);
        rig.bed.step(&UPLINK, &by_itself.frame(IN), &[(pod(0), seen.frame(down(0)))], FORWARDED);
        rig.is_told(0, &sent, &left, UNREACHABLE);
        rig.reaches(0, &sent, &left.reply(b"goes on"));
    });
}

#[test]
fn req_13_a_packet_that_is_too_big_is_told_of() {
    with(
        |node| {
            node.pod_mtu = 1500;
            node.underlay_mtu = 1400;
        },
        |rig| {
            let body = Body::Udp(40_000, 443, vec![7; 1400 - [20, 40][rig.family] - 7]);
            let sent = rig.packet_of(0, 0, body);
            let answer = error(super::build::gateway_ip(rig.family), &sent, [(3, 4), (2, 0)], 1400);
            let out = [(pod(0), answer.frame(down(0)))];
            let moved = told("packet_too_big");
            rig.bed.step(&pod(0), &sent.frame(up(0)), &out, &names(&moved));
            if rig.family == 0 {
                // 13a: one that may be fragmented is, and in order.
                let sent = Packet { dont_fragment: false, id: 0x1234, ..sent };
                let moved = [("received", 2), ("generated", 1), ("sent", 2)];
                let got = rig.bed.send(&pod(0), &sent.frame(up(0)), &moved);
                let pieces: Vec<Vec<u8>> = got.iter().map(|(_, f)| f[14..].to_vec()).collect();
                assert!(pieces.iter().all(|piece| piece.len() <= 1400));
                let offset = |piece: &[u8]| u16::from_be_bytes([piece[6], piece[7]]) & 0x1fff;
                assert!(offset(&pieces[0]) == 0 && offset(&pieces[1]) > 0, "in order");
                let port = u16::from_be_bytes([pieces[0][20], pieces[0][21]]);
                let left = sent.between((rig.own(), port), (sent.destination, 443)).ttl(63);
                let got = reassemble(&pieces);
                // The address is shared: another identification (RFC 6864 section 5.3.1).
                assert_eq!(got, named_as(&left, &got).ip());
            }
        },
    );
}

/// Both ways, of each protocol; the first fragment has the ports and opens the mapping.
#[test]
fn req_14_fragments_are_translated_in_and_out_of_order() {
    for order in 0..3 {
        super::fragments::inside::out_of_the_cluster(order);
    }
}
