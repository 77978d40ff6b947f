//! RFC 5382, NAT behavioral requirements for TCP, one test for each; and what RFC 7857 adds to it.

use std::collections::HashSet;

use super::bed::TO_HOST;
use super::build::{packet, to_host, up};
use super::icmp_error::error;
use super::nat_rig::{ACK, FIN, RST, SYN, each, flagged, ports, tcp, with};
use overlane_dataplane::testing::Place;

const UNREACHABLE: [(u8, u8); 2] = [(3, 1), (1, 3)];

/// We deviate, as for UDP (RFC 4787 REQ-1): one port serves several remotes, and each mapping is for
/// one of them.
#[test]
fn req_1_mapping_depends_on_the_remote_end() {
    each(|rig| {
        let one = rig.packet_of(0, 0, tcp(20_000, 443, SYN));
        let (elsewhere, same) = (
            rig.packet_of(1, 1, tcp(20_000, 443, SYN)),
            rig.packet_of(1, 0, tcp(20_000, 443, SYN)),
        );
        assert_eq!(ports(&rig.connect(0, &one)).0, 20_000);
        assert_eq!(ports(&rig.connect(1, &elsewhere)).0, 20_000);
        assert_ne!(ports(&rig.connect(1, &same)).0, 20_000);
    });
}

#[test]
fn req_2_every_sequence_of_packets_of_a_connection_passes() {
    each(|rig| {
        // In three steps, data both ways, closed from either side.
        let sent = rig.packet_of(0, 0, tcp(40_000, 443, SYN));
        let left = rig.connect(0, &sent);
        rig.answers(0, &sent, &left, ACK);
        rig.leaves(0, &flagged(&sent, FIN | ACK));
        rig.answers(0, &sent, &left, ACK);
        rig.answers(0, &sent, &left, FIN | ACK);
        rig.leaves(0, &flagged(&sent, ACK));
        // 2a: both open at the same time.
        let sent = rig.packet_of(0, 0, tcp(40_001, 443, SYN));
        let left = rig.leaves(0, &sent);
        rig.answers(0, &sent, &left, SYN);
        rig.leaves(0, &flagged(&sent, SYN | ACK));
        rig.answers(0, &sent, &left, SYN | ACK);
        rig.leaves(0, &flagged(&sent, ACK));
        rig.wait(3600);
        rig.answers(0, &sent, &left, ACK);
    });
}

/// Address and port dependent: stricter than recommended, as for UDP (RFC 4787 REQ-8).
#[test]
fn req_3_only_the_remote_end_itself_gets_in() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, tcp(40_000, 443, SYN));
        let left = rig.connect(0, &sent);
        let mapped = (left.source, ports(&left).0);
        for from in [(rig.outside(0), 444), (rig.outside(1), 443)] {
            for flags in [SYN, ACK, RST] {
                rig.is_unsolicited(&flagged(&left.reply(b""), flags).between(from, mapped));
            }
        }
    });
}

/// Nothing is ever said about an unsolicited SYN, neither within six seconds nor later: it may be one
/// side of a simultaneous open. To other ports it is the host's.
#[test]
fn req_4_an_unsolicited_syn_is_not_answered() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, tcp(40_000, 443, SYN));
        let left = rig.leaves(0, &sent);
        let stranger = packet(rig.outside(1), rig.own(), tcp(443, ports(&left).0, SYN));
        rig.is_unsolicited(&stranger);
        for _ in 0..8 {
            rig.wait(1);
            assert_eq!(rig.bed.node.collect(), []);
        }
        rig.is_the_hosts(&packet(rig.outside(1), rig.own(), tcp(443, 22, SYN)));
    });
}

#[test]
fn req_5_established_connections_last_two_hours_and_others_four_minutes() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, tcp(20_000, 443, SYN));
        let open = rig.connect(0, &sent);
        let half = rig.packet_of(0, 1, tcp(20_001, 443, SYN));
        let half_open = rig.leaves(0, &half);
        let closed = rig.packet_of(0, 2, tcp(20_002, 443, SYN));
        let closed_left = rig.connect(0, &closed);
        rig.leaves(0, &flagged(&closed, FIN | ACK));
        rig.answers(0, &closed, &closed_left, FIN | ACK);
        rig.wait(235);
        assert_eq!(rig.bed.node.flows(), 3, "transitory for four minutes");
        rig.wait(7);
        rig.is_unsolicited(&flagged(&half_open.reply(b""), SYN | ACK));
        rig.is_unsolicited(&flagged(&closed_left.reply(b""), ACK));
        // Two hours and four minutes.
        rig.wait(7440 - 242 - 5);
        rig.answers(0, &sent, &open, ACK);
        rig.wait(7442);
        rig.is_unsolicited(&flagged(&open.reply(b""), ACK));
    });
    // 5a: every time can be set.
    with(
        |node| node.snat.timeouts.tcp_established = 600,
        |rig| {
            let sent = rig.packet_of(0, 0, tcp(20_000, 443, SYN));
            let left = rig.connect(0, &sent);
            rig.wait(602);
            rig.is_unsolicited(&flagged(&left.reply(b""), ACK));
        },
    );
}

#[test]
fn req_6_payloads_are_left_alone() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, tcp(40_000, 21, SYN));
        let left = rig.connect(0, &sent);
        let text = format!("PORT {},156,64\r\n", rig.pod(0).to_string().replace('.', ","));
        let data = super::build::Body::Segment(40_000, 21, ACK, text.into_bytes());
        let data = super::build::Packet { body: data, ..sent };
        let expected = data.between((left.source, ports(&left).0), (left.destination, 21)).ttl(63);
        assert_eq!(rig.leaves(0, &data), expected, "no other address, and no more bytes");
    });
}

#[test]
fn req_7_no_port_is_overloaded() {
    with(
        |node| node.snat.ports = overlane_api::PortRange::new(20_000, 20_031).unwrap(),
        |rig| {
            let mut used = HashSet::new();
            for n in 0..16 {
                for pod in 0..2 {
                    let sent = rig.packet_of(pod, 0, tcp(40_000 + n, 443, SYN));
                    assert!(used.insert(ports(&rig.leaves(pod, &sent)).0));
                }
            }
            let sent = rig.packet_of(0, 0, tcp(50_000, 443, SYN));
            rig.refused(0, &sent, "snat_ports_exhausted", [(3, 13), (1, 1)]);
        },
    );
}

/// We deviate, as for UDP (RFC 4787 REQ-9): what a pod sends to a mapping is the host's.
#[test]
fn req_8_no_hairpin_to_mappings() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, tcp(40_000, 443, SYN));
        let left = rig.connect(0, &sent);
        let hairpin = packet(rig.pod(1), left.source, tcp(50_000, ports(&left).0, SYN));
        let out = [(Place::Host, hairpin.frame(to_host()))];
        rig.bed.step(&super::bed::pod(1), &hairpin.frame(up(1)), &out, TO_HOST);
    });
}

#[test]
fn req_9_errors_are_translated() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, tcp(40_000, 443, SYN));
        let left = rig.leaves(0, &sent);
        for kind in [UNREACHABLE, [(3, 4), (2, 0)], [(11, 0), (3, 0)]] {
            rig.is_told(0, &sent, &left, kind);
        }
    });
}

#[test]
fn req_10_errors_end_no_connection() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, tcp(40_000, 443, SYN));
        let left = rig.connect(0, &sent);
        rig.is_told(0, &sent, &left, UNREACHABLE);
        rig.wait(7000);
        rig.is_told(0, &sent, &left, UNREACHABLE);
        rig.answers(0, &sent, &left, ACK);
        // Nor do they keep one.
        rig.wait(7000);
        rig.is_told(0, &sent, &left, UNREACHABLE);
        rig.wait(450);
        let about_nothing = error(rig.outside(0), &left, UNREACHABLE, 0);
        assert_eq!(rig.bed.node.flows(), 0);
        rig.is_the_hosts(&about_nothing);
    });
}

/// RFC 7857 section 2.2: after a RST the mapping is transitory; data brings it back.
#[test]
fn rfc_7857_2_2_a_reset_connection_is_transitory_until_data_comes() {
    each(|rig| {
        let sent = rig.packet_of(0, 0, tcp(20_000, 443, SYN));
        let left = rig.connect(0, &sent);
        rig.answers(0, &sent, &left, RST);
        rig.wait(200);
        assert_eq!(rig.bed.node.flows(), 1);
        // It was forged, or lost: the pod goes on, and so does the mapping.
        rig.leaves(0, &flagged(&sent, ACK));
        rig.wait(1000);
        rig.answers(0, &sent, &left, ACK);
        rig.answers(0, &sent, &left, RST);
        rig.wait(242);
        rig.is_unsolicited(&flagged(&left.reply(b""), ACK));
    });
}

/// RFC 7857 section 9: ports cannot be foretold from those seen before.
#[test]
fn rfc_7857_9_ports_are_random() {
    each(|rig| {
        let given: Vec<i32> = (0..64)
            .map(|n| {
                let sent = rig.packet_of(0, 0, tcp(40_000 + n, 443, SYN));
                i32::from(ports(&rig.leaves(0, &sent)).0)
            })
            .collect();
        let steps: HashSet<i32> = given.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.len() > 50, "{given:?}");
    });
}

/// RFC 6888 REQ-8: a port that a connection has had is not given again towards the same remote at once.
#[test]
fn rfc_6888_req_8_a_port_rests_after_its_connection() {
    with(
        |node| {
            node.snat.ports = overlane_api::PortRange::new(20_000, 20_000).unwrap();
            node.snat.timeouts.tcp_closing = 10;
        },
        |rig| {
            let sent = rig.packet_of(0, 0, tcp(20_000, 443, SYN));
            let left = rig.connect(0, &sent);
            rig.leaves(0, &flagged(&sent, FIN | ACK));
            rig.answers(0, &sent, &left, FIN | ACK);
            rig.wait(12);
            assert_eq!(rig.bed.node.flows(), 0);
            let next = rig.packet_of(1, 0, tcp(50_000, 443, SYN));
            rig.refused(1, &next, "snat_ports_exhausted", [(3, 13), (1, 1)]);
            // Not towards others.
            let other = rig.packet_of(1, 1, tcp(50_000, 443, SYN));
            rig.leaves(1, &other);
            rig.wait(55);
            rig.leaves(1, &next);
        },
    );
}
