//! SCTP through services and out of the cluster: ports change, and the CRC32c with them.
//!
//! ```text
//! pod1 -- [ a ] == underlay == [ b ] -- pod    10.96.0.10:80 -> 10.244.2.10:8080
//! pod1 -- [ a: 10.0.1.4 ] -- 203.0.113.10:443
//! ```

use std::net::IpAddr;
use std::time::Duration;

use overlane_api::{Frontend, FrontendKind, Mode, Protocol, Underlay};

use super::bed::{Bed, FORWARDED, UPLINK, pod};
use super::build::{
    Body, IN, Packet, Tunnel, between, crc32c, down, inner_of, node_ip, packet, pod_ip, up,
};
use super::egress::{OUT, bed_with, outside};
use super::icmp_error::error;
use super::services::{service, vip};

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const COOKIE_ECHO: u8 = 10;

fn sctp(from: IpAddr, to: (IpAddr, u16), chunk: u8, value: &[u8]) -> Packet {
    packet(from, to.0, Body::Sctp(40_000, to.1, chunk, value.to_vec()))
}

/// The SCTP packet in a frame, and whether its CRC is right.
fn checked(frame: &[u8]) -> bool {
    let at = if frame[12..14] == [8, 0] { 34 } else { 54 };
    let mut packet = frame[at..].to_vec();
    let crc = u32::from_le_bytes(packet[8..12].try_into().unwrap());
    packet[8..12].fill(0);
    crc == crc32c(&packet)
}

/// Tears the CRC of a frame.
fn broken(mut frame: Vec<u8>) -> Vec<u8> {
    let at = if frame[12..14] == [8, 0] { 34 } else { 54 };
    frame[at + 9] ^= 0x10;
    frame
}

#[test]
fn the_witness_knows_the_check_value() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

/// `sent` goes to the service's backend on node b and is answered.
#[track_caller]
fn through(bed: &mut Bed, sent: &Packet) {
    let family = usize::from(sent.source.is_ipv6());
    let (client, server) = ((sent.source, 40_000), (pod_ip(1, 0, family), 8080));
    let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    let arrives = sent.between(client, server).ttl(63);
    assert_eq!(inner_of(&frame), arrives.frame(between(0, 1)));
    assert!(checked(&inner_of(&frame)));
    let reply = arrives.reply(b"answer");
    let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
    let seen = reply.between((sent.destination, 80), client).ttl(63);
    let back = tunnel.wrap(&reply.frame(between(1, 0)));
    let got = bed.one(&UPLINK, &back, &pod(0), FORWARDED);
    assert_eq!(got, seen.frame(down(0)));
    assert!(checked(&got));
}

#[test]
fn sctp_service_with_another_target_port() {
    for family in 0..2 {
        let mut bed = bed_with(1, vec![service(0, Protocol::Sctp, &[(1, 0)])]);
        let (from, to) = (pod_ip(0, 0, family), (vip(0, family), 80));
        for (chunk, value) in [
            (INIT, &[1; 16][..]),
            (COOKIE_ECHO, b"cookie"),
            (DATA, b""),
            (DATA, b"x"),
            (DATA, &[7; 1300]),
            (SHUTDOWN, b"done"),
        ] {
            through(&mut bed, &sctp(from, to, chunk, value));
        }
        assert_eq!(bed.node.flows(), 1);
        // What was broken stays broken.
        let frame = bed.one(
            &pod(0),
            &broken(sctp(from, to, DATA, b"noise").frame(up(0))),
            &UPLINK,
            FORWARDED,
        );
        assert!(!checked(&inner_of(&frame)));
        bed.close();
    }
}

#[test]
fn sctp_to_a_backend_here_and_to_the_pod_itself() {
    for family in 0..2 {
        for backend in [0, 1] {
            let mut bed = bed_with(1, vec![service(0, Protocol::Sctp, &[(0, backend)])]);
            let own = (pod_ip(0, 0, family), 40_000);
            let server = (pod_ip(0, backend, family), 8080);
            let sent = sctp(own.0, (vip(0, family), 80), INIT, &[1; 16]);
            let seen_as = if backend == 0 { super::build::gateway_ip(family) } else { own.0 };
            let arrives = sent.between((seen_as, 40_000), server).ttl(63);
            let out = [(pod(backend), arrives.frame(down(backend)))];
            bed.step(&pod(0), &sent.frame(up(0)), &out, FORWARDED);
            let reply = arrives.reply(b"answer");
            let seen = reply.between((vip(0, family), 80), own).ttl(63);
            let out = [(pod(0), seen.frame(down(0)))];
            bed.step(&pod(backend), &reply.frame(up(backend)), &out, FORWARDED);
            bed.close();
        }
    }
}

#[test]
fn sctp_leaves_with_the_port_kept_and_with_another() {
    for family in 0..2 {
        for own in [20_000, 40_000] {
            let mut bed = bed_with(1, Vec::new());
            let remote = (outside(family), 443);
            let mut port = None;
            for (chunk, value) in [(INIT, &[1; 16][..]), (COOKIE_ECHO, b"cookie"), (DATA, b"odd")] {
                let body = Body::Sctp(own, 443, chunk, value.to_vec());
                let sent = packet(pod_ip(0, 0, family), remote.0, body);
                let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
                let at = [34, 54][family];
                let used = u16::from_be_bytes([frame[at], frame[at + 1]]);
                assert_eq!(*port.get_or_insert(used), used);
                let left = sent.between((node_ip(0, family), used), remote).ttl(63);
                assert_eq!(frame, left.frame(OUT));
                assert!(checked(&frame));
                let reply = left.reply(b"answer");
                let seen = reply.between(remote, (pod_ip(0, 0, family), own)).ttl(63);
                let got = bed.one(&UPLINK, &reply.frame(IN), &pod(0), FORWARDED);
                assert_eq!(got, seen.frame(down(0)));
                assert!(checked(&got));
            }
            let port = port.unwrap();
            assert_eq!(port == own, own == 20_000);
            // An error about a packet that left, quoted whole and quoted short.
            let body = Body::Sctp(own, 443, DATA, b"lost".to_vec());
            let sent = packet(pod_ip(0, 0, family), remote.0, body).ttl(60);
            let left = sent.between((node_ip(0, family), port), remote);
            for most in [usize::MAX, [28, 48][family]] {
                let quoting = |about: &Packet| {
                    let mut told = error(node_ip(7, family), about, [(3, 1), (1, 3)], 0);
                    if let Body::Error(_, _, _, quoted) = &mut told.body {
                        quoted.truncate(most);
                    }
                    told
                };
                let out = [(pod(0), quoting(&sent).ttl(63).frame(down(0)))];
                bed.step(&UPLINK, &quoting(&left).frame(IN), &out, FORWARDED);
            }
            bed.close();
        }
    }
}

#[test]
fn from_outside_to_a_node_port_and_back() {
    for family in 0..2 {
        let mut exposed = service(0, Protocol::Sctp, &[(1, 0)]);
        let own = node_ip(0, family);
        exposed.frontends.push(Frontend {
            address: own,
            port: 30_080,
            kind: FrontendKind::NodePort,
        });
        exposed.frontends.sort();
        let mut bed = bed_with(1, vec![exposed]);
        for (chunk, value) in [(INIT, &[1; 16][..]), (COOKIE_ECHO, b"cookie"), (DATA, b"odd")] {
            let sent = sctp(outside(family), (own, 30_080), chunk, value);
            let inner = inner_of(&bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED));
            let at = [34, 54][family];
            let port = u16::from_be_bytes([inner[at], inner[at + 1]]);
            let arrives = sent.between((own, port), (pod_ip(1, 0, family), 8080)).ttl(63);
            assert_eq!(inner, arrives.frame(between(0, 1)));
            assert!(checked(&inner));
            let reply = arrives.reply(b"answer");
            let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
            let seen = reply.between((own, 30_080), (outside(family), 40_000)).ttl(63);
            let out = [(UPLINK, seen.frame(OUT))];
            bed.step(&UPLINK, &tunnel.wrap(&reply.frame(between(1, 0))), &out, FORWARDED);
        }
        bed.close();
    }
}

#[test]
fn two_pods_with_one_port_leave_with_two() {
    let mut bed = bed_with(1, Vec::new());
    let ports = [0, 1].map(|number| {
        let body = Body::Sctp(20_000, 443, INIT, vec![1; 16]);
        let sent = packet(pod_ip(0, number, 0), outside(0), body);
        let frame = bed.one(&pod(number), &sent.frame(up(number)), &UPLINK, FORWARDED);
        assert!(checked(&frame));
        u16::from_be_bytes([frame[34], frame[35]])
    });
    assert_eq!(ports[0], 20_000);
    assert_ne!(ports[1], 20_000);
    bed.close();
}

#[test]
fn an_association_lives_as_long_as_its_state_says() {
    let answers = |bed: &mut Bed, sent: &Packet| {
        through(bed, sent);
    };
    let to = (vip(0, 0), 80);
    let from = pod_ip(0, 0, 0);
    let open = [sctp(from, to, INIT, &[1; 16]), sctp(from, to, COOKIE_ECHO, b"cookie")];
    // Nothing but INIT and its answer; open; closed by both; aborted.
    for (more, lives) in [
        (vec![], 240),
        (vec![], 7440),
        (vec![sctp(from, to, SHUTDOWN, b"1234")], 240),
        (vec![sctp(from, to, ABORT, b"")], 240),
    ] {
        let mut bed = bed_with(1, vec![service(0, Protocol::Sctp, &[(1, 0)])]);
        let is_open = lives == 7440 || !more.is_empty();
        for sent in open.iter().take(if is_open { 2 } else { 1 }) {
            answers(&mut bed, sent);
        }
        for sent in &more {
            // Nobody answers an ABORT.
            if matches!(sent.body, Body::Sctp(_, _, ABORT, _)) {
                bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
            } else {
                answers(&mut bed, sent);
            }
        }
        bed.node.wait(Duration::from_secs(lives - 5));
        bed.node.run();
        assert_eq!(bed.node.flows(), 1, "{lives} s");
        bed.node.wait(Duration::from_secs(10));
        bed.node.run();
        assert_eq!(bed.node.flows(), 0, "{lives} s");
        bed.close();
    }
}

#[test]
fn what_begins_no_association_opens_none_outside() {
    let mut bed = bed_with(1, vec![service(0, Protocol::Sctp, &[(1, 0)])]);
    for (to, chunk) in [
        ((outside(0), 443), DATA),
        ((outside(0), 443), INIT_ACK),
        ((outside(0), 443), ABORT),
        ((vip(0, 0), 80), ABORT),
        ((vip(0, 0), 80), SHUTDOWN),
    ] {
        let sent = sctp(pod_ip(0, 0, 0), to, chunk, b"late");
        bed.drops(&pod(0), &sent.frame(up(0)), "flow_unknown");
    }
    // To a service a connection from before goes on: its backend is the same again.
    through(&mut bed, &sctp(pod_ip(0, 0, 0), (vip(0, 0), 80), DATA, b"on"));
    bed.close();
}
