//! Checksums that a pod's kernel left to the device are finished; right ones are left alone.

use overlane_api::{Mode, Underlay};
use overlane_dataplane::testing::Place;

use super::bed::{Bed, FORWARDED, UPLINK, pod};
use super::build::{Body, Packet, between, down, from_host, inner_of, node_ip, packet, pod_ip, up};

/// The frame with the pseudo-header's sum in place of the checksum: `CHECKSUM_PARTIAL`.
fn unfinished(packet: &Packet, macs: (overlane_api::MacAddr, overlane_api::MacAddr)) -> Vec<u8> {
    let mut frame = packet.frame(macs);
    let ip = if packet.source.is_ipv4() { 20 } else { 40 };
    let addresses = if packet.source.is_ipv4() { 14 + 12..14 + 20 } else { 14 + 8..14 + 40 };
    let (protocol, at) = match packet.body {
        Body::Tcp(..) => (6_u32, 16),
        _ => (17, 6),
    };
    let mut sum = protocol + (frame.len() - 14 - ip) as u32;
    for word in frame[addresses].chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    frame[14 + ip + at..14 + ip + at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    frame
}

#[test]
fn unfinished_checksums_are_finished_and_counted() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for family in 0..2 {
        for len in [0, 1, 2, 3, 500, 1201] {
            let payload: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            for body in [Body::Udp(1000, 2000, payload.clone()), Body::Tcp(1000, 80, payload)] {
                for (from, source, macs) in [
                    (pod(0), pod_ip(0, 0, family), up(0)),
                    (Place::Host, node_ip(0, family), from_host()),
                ] {
                    let sent = packet(source, pod_ip(0, 1, family), body.clone());
                    let frame = unfinished(&sent, macs);
                    assert_ne!(frame, sent.frame(macs));
                    let out = sent.clone().ttl(63).frame(down(1));
                    bed.step(&from, &frame, &[(pod(1), out)], FORWARDED);
                    let sent = Packet { destination: pod_ip(1, 0, family), ..sent };
                    let got = bed.one(&from, &unfinished(&sent, macs), &UPLINK, FORWARDED);
                    assert_eq!(inner_of(&got), sent.ttl(63).frame(between(0, 1)));
                }
            }
        }
    }
    let finished = bed.node.finished_checksums();
    assert_eq!(finished, [(pod(0), 48), (pod(1), 0), (UPLINK, 0), (Place::Host, 48)]);
    bed.close();
}

#[test]
fn other_checksums_are_left_as_they_are() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for family in 0..2 {
        for body in [
            Body::Udp(1000, 2000, vec![1; 77]),
            Body::Tcp(1000, 80, vec![1; 77]),
            // None at all, and wrong ones: for the receiver to judge.
            Body::UdpNoSum(1000, 2000, vec![1; 77]),
            Body::Raw(17, vec![3, 232, 7, 208, 0, 10, 0x12, 0x34, 9, 9]),
            Body::Raw(6, vec![0x55; 20]),
            // Too short to have one.
            Body::Raw(17, vec![3, 232]),
            Body::Raw(6, vec![0x55; 17]),
        ] {
            let sent = packet(pod_ip(0, 0, family), pod_ip(0, 1, family), body);
            let out = sent.clone().ttl(63).frame(down(1));
            bed.step(&pod(0), &sent.frame(up(0)), &[(pod(1), out)], FORWARDED);
        }
    }
    // Of a fragment nobody knows the sum.
    let whole = packet(pod_ip(0, 0, 0), pod_ip(0, 1, 0), Body::Udp(1000, 2000, vec![4; 64]));
    let frame = unfinished(&whole, up(0));
    let body = Body::Raw(17, frame[34..].to_vec());
    let part = Packet { dont_fragment: false, more_fragments: true, body, ..whole };
    let out = part.clone().ttl(63).frame(down(1));
    bed.step(&pod(0), &part.frame(up(0)), &[(pod(1), out)], FORWARDED);
    assert!(bed.node.finished_checksums().iter().all(|(_, count)| *count == 0));
    bed.close();
}

#[test]
fn what_comes_from_the_uplink_is_not_touched() {
    let mut bed = Bed::new(Mode::Native, Underlay::Ipv4);
    let sent = packet(pod_ip(1, 0, 0), pod_ip(0, 0, 0), Body::Udp(1000, 2000, vec![4; 64]));
    let frame = unfinished(&sent, super::build::IN);
    let got = bed.one(&UPLINK, &frame, &pod(0), FORWARDED);
    assert_eq!(got[34..], frame[34..]);
    bed.close();
}
