//! RFC 5508, NAT behavioral requirements for ICMP, one test for each.

use overlane_api::{Protocol, Scope};

use super::bed::{FORWARDED, UPLINK, pod};
use super::build::{Body, IN, Packet, down, gateway_ip, packet, up};
use super::egress::{OUT, bed_with, outside};
use super::icmp_error::error;
use super::nat_rig::{Rig, SYN, each, ping, ports, tcp, udp, with};
use super::services::{service, vip};
use super::services_outside::{NODE_PORT, exposed_as};

const UNREACHABLE: [(u8, u8); 2] = [(3, 3), (1, 4)];

#[test]
fn req_1_pings_pass_and_are_told_apart_by_identifier() {
    each(|rig| {
        let pings =
            [(0, 7), (1, 7), (0, 8)].map(|(pod, id)| (pod, rig.packet_of(pod, 0, ping(id))));
        let left: Vec<Packet> = pings.iter().map(|(pod, sent)| rig.leaves(*pod, sent)).collect();
        assert!(ports(&left[0]) != ports(&left[1]) && ports(&left[1]) != ports(&left[2]));
        for ((pod, sent), left) in pings.iter().zip(&left).rev() {
            rig.reaches(*pod, sent, &left.reply(b"pong"));
        }
    });
}

#[test]
fn req_2_a_query_is_remembered_for_a_minute() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, ping(7));
        let left = rig.leaves(0, &sent);
        rig.wait(58);
        rig.reaches(0, &sent, &left.reply(b"pong"));
        rig.wait(62);
        assert_eq!(rig.bed.node.flows(), 0);
    });
    with(
        |node| node.snat.timeouts.icmp = 120,
        |rig| {
            let sent = rig.packet_of(0, 0, ping(7));
            let left = rig.leaves(0, &sent);
            rig.wait(118);
            rig.reaches(0, &sent, &left.reply(b"it can be set"));
        },
    );
}

/// A message that is damaged reaches no pod: it is for the host to judge, which knows no such
/// connection either.
#[test]
fn req_3_damaged_errors_are_not_translated() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, udp(20_000, 443));
        let left = rig.round_trip(0, &sent);
        let good = error(rig.outside(9), &left, UNREACHABLE, 0).frame(IN);
        let icmp = [34, 54][rig.family];
        let to_host = |mut frame: Vec<u8>| {
            let (source, destination) = super::build::to_host();
            frame[..6].copy_from_slice(&destination.0);
            frame[6..12].copy_from_slice(&source.0);
            frame
        };
        let mut wrong = good.clone();
        wrong[icmp + 4] ^= 0x10;
        let host = overlane_dataplane::testing::Place::Host;
        let out = [(host.clone(), to_host(wrong.clone()))];
        rig.bed.step(&UPLINK, &wrong, &out, super::bed::TO_HOST);
        if rig.family == 0 {
            // 3a: the quoted IP header's checksum; ICMP's own is right.
            let mut wrong = good.clone();
            wrong[icmp + 8 + 10] ^= 0x01;
            let new = checksum(&wrong[icmp..]);
            wrong[icmp + 2..icmp + 4].copy_from_slice(&new.to_be_bytes());
            let out = [(host, to_host(wrong.clone()))];
            rig.bed.step(&UPLINK, &wrong, &out, super::bed::TO_HOST);
        }
        // 3c: the quoted upper layer's checksum is nobody's business: only its change is passed on.
        let mut about = left.clone();
        about.body = Body::Raw(
            17,
            [&20_000_u16.to_be_bytes()[..], &443_u16.to_be_bytes(), &[0, 16, 0xab, 0xcd], &[0; 8]]
                .concat(),
        );
        let told = error(rig.outside(9), &about, UNREACHABLE, 0);
        let got = rig.bed.one(&UPLINK, &told.frame(IN), &pod(0), FORWARDED);
        assert_eq!(got[icmp + 8 + icmp - 14..][..4], [0x4e, 0x20, 1, 187]);
    });
}

/// The ICMP checksum of a message.
fn checksum(message: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for (at, pair) in message.chunks(2).enumerate() {
        if at != 1 {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn req_4_errors_from_outside_reach_who_sent_what_they_quote() {
    each(|rig| {
        let bodies = [udp(40_000, 443), tcp(40_000, 443, SYN), ping(7)];
        for body in bodies {
            let sent = rig.packet_of(0, 0, body);
            let left = rig.leaves(0, &sent);
            for kind in [UNREACHABLE, [(11, 0), (3, 0)], [(3, 4), (2, 0)], [(12, 0), (4, 0)]] {
                rig.is_told(0, &sent, &left, kind);
            }
            // Without a mapping: no pod hears of it.
            let other =
                left.between((left.source, ports(&left).0), (rig.outside(3), ports(&left).1));
            rig.is_the_hosts(&error(rig.outside(3), &other, UNREACHABLE, 0));
        }
    });
}

/// An error from inside about a packet from outside: in the name of the service that the client asked
/// (5c), with the packet as it was sent; without a mapping it is dropped (5a).
#[test]
fn req_5_errors_from_inside_are_in_the_services_name() {
    for family in 0..2 {
        let mut service = exposed_as(service(0, Protocol::Tcp, &[(0, 1)]));
        service.external = Scope::Local;
        let mut rig = Rig { bed: bed_with(1, vec![service]), family };
        let own = rig.own();
        let sent = packet(outside(family), own, tcp(50_000, NODE_PORT, SYN));
        let arrives = sent.between((sent.source, 50_000), (rig.pod(1), 8080)).ttl(63);
        let out = [(pod(1), arrives.frame(down(1)))];
        rig.bed.step(&UPLINK, &sent.frame(IN), &out, FORWARDED);
        let told = error(rig.pod(1), &arrives, UNREACHABLE, 0);
        let seen = error(own, &sent.clone().ttl(63), UNREACHABLE, 0).ttl(63);
        rig.bed.step(&pod(1), &told.frame(up(1)), &[(UPLINK, seen.frame(OUT))], FORWARDED);
        let about_nothing = arrives.between((rig.outside(4), 50_000), (rig.pod(1), 8080));
        let told = error(rig.pod(1), &about_nothing, UNREACHABLE, 0);
        rig.bed.drops(&pod(1), &told.frame(up(1)), "egress_protocol");
        rig.bed.close();
    }
}

#[test]
fn req_6_errors_neither_keep_nor_end_a_mapping() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, udp(40_000, 443));
        let left = rig.leaves(0, &sent);
        rig.wait(100);
        rig.is_told(0, &sent, &left, UNREACHABLE);
        rig.reaches(0, &sent, &left.reply(b""));
        rig.wait(290);
        rig.is_told(0, &sent, &left, UNREACHABLE);
        rig.wait(12);
        assert_eq!(rig.bed.node.flows(), 0, "the error was no packet of the flow");
    });
}

/// A pod that reaches itself through its service tells itself what is wrong.
#[test]
fn req_7_errors_come_back_through_a_hairpin() {
    for family in 0..2 {
        let mut rig = Rig { bed: bed_with(1, vec![service(0, Protocol::Udp, &[(0, 0)])]), family };
        let own = rig.pod(0);
        let sent = packet(own, vip(0, family), udp(40_000, 80));
        let arrives = sent.between((gateway_ip(family), 40_000), (own, 8080)).ttl(63);
        let out = [(pod(0), arrives.frame(down(0)))];
        rig.bed.step(&pod(0), &sent.frame(up(0)), &out, FORWARDED);
        let told = error(own, &arrives, UNREACHABLE, 0);
        let seen = error(vip(0, family), &sent.clone().ttl(63), UNREACHABLE, 0).ttl(63);
        rig.bed.step(&pod(0), &told.frame(up(0)), &[(pod(0), seen.frame(down(0)))], FORWARDED);
        rig.bed.close();
    }
}

#[test]
fn req_8_who_gets_no_mapping_is_told() {
    with(
        |node| node.snat.ports = overlane_api::PortRange::new(20_000, 20_000).unwrap(),
        |rig| {
            for body in [udp(40_000, 443), tcp(40_000, 443, SYN), ping(7)] {
                let sent = rig.packet_of(0, 0, body.clone());
                rig.leaves(0, &sent);
                let next = Packet { source: rig.pod(1), ..sent };
                rig.refused(1, &next, "snat_ports_exhausted", [(3, 13), (1, 1)]);
            }
        },
    );
}

/// No policy forbids errors towards an interface; they are only limited in their rate.
#[test]
fn req_9_errors_are_limited_in_rate_only() {
    with(
        |node| node.snat.action = overlane_api::EgressAction::Deny,
        |rig| {
            let sent = rig.packet_of(0, 0, udp(40_000, 443));
            for _ in 0..200 {
                assert!(rig.bed.node.inject(&pod(0), &sent.frame(up(0))));
            }
            rig.bed.node.run();
            let told = rig.bed.node.collect().len();
            assert!((50..150).contains(&told), "{told} of 200");
        },
    );
}

/// 10a: unreachable, time exceeded and echo are translated; 10b: other queries may be, and are not.
#[test]
fn req_10_echo_and_errors_pass_and_other_queries_do_not() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, ping(7));
        let left = rig.round_trip(0, &sent);
        rig.is_told(0, &sent, &left, UNREACHABLE);
        rig.is_told(0, &sent, &left, [(11, 0), (3, 0)]);
        // Timestamp; node information.
        let kind = [13, 139][rig.family];
        let query = rig.packet_of(0, 0, Body::Error(kind, 0, 0x0007_0001, vec![0; 12]));
        rig.bed.drops(&pod(0), &query.frame(up(0)), "egress_protocol");
    });
}

/// What is neither query nor error may be dropped, and is: a redirect says nothing true behind a NAT.
#[test]
fn req_11_redirects_are_not_translated() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, udp(40_000, 443));
        let left = rig.round_trip(0, &sent);
        let redirect = error(rig.outside(9), &left, [(5, 1), (137, 0)], 0x0a00_0001);
        let got = rig.bed.send(&UPLINK, &redirect.frame(IN), super::bed::TO_HOST);
        assert_eq!(got[0].0, overlane_dataplane::testing::Place::Host);
    });
}
