//! Scenarios of fragments and odd frames by name: part D of the table in `dataplane/tests/README.md`,
//! as far as flows are concerned.

use overlane_api::{Mode, Protocol, Underlay};

use super::bed::{FORWARDED, UPLINK, pod};
use super::build::{
    Body, IN, Packet, Tunnel, between, down, inner_of, node_ip, packet, pod_ip, up,
};
use super::egress::{OUT, bed_with, outside};
use super::services::{service, vip};

/// Three pieces of a datagram, its ports in the first.
fn pieces(whole: &Packet) -> Vec<Packet> {
    let body = whole.ip()[20..].to_vec();
    let cut = |from: usize, to: usize| Packet {
        id: 0x77,
        dont_fragment: false,
        more_fragments: to < body.len(),
        offset: (from / 8) as u16,
        body: Body::Raw(17, body[from..to].to_vec()),
        ..whole.clone()
    };
    vec![cut(0, 400), cut(400, 800), cut(800, body.len())]
}

/// Both orders, beside a flow of a service between the same two pods.
#[test]
fn frag_not_nated_left_alone() {
    let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
    let asks = packet(pod_ip(0, 0, 0), vip(0, 0), Body::Udp(40_000, 80, Vec::new()));
    bed.one(&pod(0), &asks.frame(up(0)), &UPLINK, FORWARDED);
    let there = packet(pod_ip(0, 0, 0), pod_ip(1, 0, 0), Body::Udp(40_000, 8080, vec![5; 1000]));
    let back = packet(pod_ip(1, 0, 0), pod_ip(0, 0, 0), Body::Udp(8081, 40_000, vec![6; 1000]));
    for is_reversed in [false, true] {
        let (mut out, mut home) = (pieces(&there), pieces(&back));
        if is_reversed {
            out.reverse();
            home.reverse();
        }
        for piece in out {
            let frame = bed.one(&pod(0), &piece.frame(up(0)), &UPLINK, FORWARDED);
            assert_eq!(inner_of(&frame), piece.ttl(63).frame(between(0, 1)));
        }
        for piece in home {
            let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
            let frame = tunnel.wrap(&piece.frame(between(1, 0)));
            bed.step(&UPLINK, &frame, &[(pod(0), piece.ttl(63).frame(down(0)))], FORWARDED);
        }
    }
    bed.close();
}

/// A datagram over IPv4 without a checksum stays one: to a service, out of the cluster, and back. The
/// tunnel's own is absent as well.
#[test]
fn l3_checksum_zero_udp() {
    let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
    let plain = |from: u16, to: u16| Body::UdpNoSum(from, to, b"none".to_vec());
    let client = pod_ip(0, 0, 0);
    let sent = packet(client, vip(0, 0), plain(40_000, 80));
    let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    assert_eq!(frame[14 + 26..14 + 28], [0, 0], "the outer one");
    let arrives = sent.between((client, 40_000), (pod_ip(1, 0, 0), 8080)).ttl(63);
    assert_eq!(inner_of(&frame), arrives.frame(between(0, 1)));
    let reply = arrives.reply(b"none either");
    let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
    let seen = reply.between((vip(0, 0), 80), (client, 40_000)).ttl(63);
    let back = tunnel.wrap(&reply.frame(between(1, 0)));
    bed.step(&UPLINK, &back, &[(pod(0), seen.frame(down(0)))], FORWARDED);

    let sent = packet(client, outside(0), plain(20_000, 443));
    let left = sent.between((node_ip(0, 0), 20_000), (outside(0), 443)).ttl(63);
    bed.step(&pod(0), &sent.frame(up(0)), &[(UPLINK, left.frame(OUT))], FORWARDED);
    let reply = left.reply(b"none");
    let seen = reply.between((outside(0), 443), (client, 20_000)).ttl(63);
    bed.step(&UPLINK, &reply.frame(IN), &[(pod(0), seen.frame(down(0)))], FORWARDED);
    bed.close();
}

/// Bytes behind the packet are no part of it, in either direction of a translated flow.
#[test]
fn ethernet_trailer_ignored_when_translated() {
    for family in 0..2 {
        let mut bed = bed_with(1, Vec::new());
        let client = pod_ip(0, 0, family);
        let sent = packet(client, outside(family), Body::Udp(20_000, 443, b"x".to_vec()));
        let left = sent.between((node_ip(0, family), 20_000), (outside(family), 443)).ttl(63);
        for trailer in [1, 6, 46] {
            let frame = [sent.frame(up(0)), vec![0xee; trailer]].concat();
            bed.step(&pod(0), &frame, &[(UPLINK, left.frame(OUT))], FORWARDED);
            let reply = left.reply(b"y");
            let seen = reply.between((outside(family), 443), (client, 20_000)).ttl(63);
            let frame = [reply.frame(IN), vec![0xee; trailer]].concat();
            bed.step(&UPLINK, &frame, &[(pod(0), seen.frame(down(0)))], FORWARDED);
        }
        bed.close();
    }
}
