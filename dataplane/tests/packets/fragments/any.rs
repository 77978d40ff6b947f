//! Any packet, in any pieces, in any order.

use overlane_api::{Mode, Protocol, Underlay};
use overlane_dataplane::testing::Place;
use proptest::prelude::*;

use super::*;
use crate::bed::pod;
use crate::build::{IN, Tunnel, between, down, inner_of, node_ip, pod_ip, up};
use crate::egress::{bed_with, outside};
use crate::services::{service, vip};

/// Where to cut `len` bytes, so that there are at most 16 pieces of at most 1,392 bytes.
fn cuts(len: usize, sizes: &[u8]) -> Vec<usize> {
    let (mut at, mut all) = (0, Vec::new());
    for left in (1..=15).rev() {
        let least = (len - at).div_ceil(left + 1).next_multiple_of(8);
        let size = sizes.get(left).map_or(least, |size| (usize::from(*size) % 175).max(1) * 8);
        at += size.max(least).max(if at == 0 { 24 } else { 8 });
        if at >= len {
            break;
        }
        all.push(at);
    }
    all
}

/// The pieces in the order that the numbers have.
fn shuffled(pieces: &[Vec<u8>], keys: &[u16]) -> Vec<Vec<u8>> {
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|place| keys.get(*place));
    ordered(pieces, &order)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// What arrives, put together, is what was sent, with the translated addresses and a right checksum:
    /// etherparse computes what is expected.
    #[test]
    fn any_packet_in_any_pieces_in_any_order(
        family in 0..2_usize, kind in 0..3_u8, leaves: bool, workers in 1..3_u8,
        lens in (0..9000_usize, 0..9000_usize),
        sizes in prop::collection::vec(any::<u8>(), 0..16),
        keys in prop::collection::vec(any::<u16>(), 16),
    ) {
        let services = vec![service(0, Protocol::Udp, &[(1, 0)])];
        let mut bed = bed_with(workers, services);
        let queues: Vec<_> = (0..usize::from(workers)).map(Place::Uplink).collect();
        let is_ping = kind == 2 && leaves;
        let (own, port) = if is_ping { (77, 0) } else { (40_000, if leaves { 443 } else { 80 }) };
        let client = (pod_ip(0, 0, family), own);
        let asked = (if leaves { outside(family) } else { vip(0, family) }, port);
        let body = |len| match kind {
            _ if is_ping => Body::Echo(false, own, 1, bytes(len)),
            1 if family == 0 => Body::UdpNoSum(own, port, bytes(len)),
            _ => Body::Udp(own, port, bytes(len)),
        };
        let sent = whole(client.0, asked.0, body(lens.0));
        let pieces = framed(&cut(&sent, &cuts(lens.0 + 8, &sizes)), up(0));
        let out = send(&mut bed, &[pod(0)], &shuffled(&pieces, &keys));
        let arrived: Vec<_> = out
            .iter()
            .map(|(_, frame)| if leaves { frame[14..].to_vec() } else { inner_of(frame)[14..].to_vec() })
            .collect();
        let got = reassemble(&arrived);
        let (seen_as, server) = if leaves {
            ((node_ip(0, family), port_of(&got, is_ping)), asked)
        } else {
            (client, (pod_ip(1, 0, family), 8080))
        };
        let arrives = sent.between(seen_as, server).ttl(63);
        prop_assert_eq!(&got, &named_as(&arrives, &got).ip());

        let reply = Packet { id: 0x4321, ..arrives.reply(&bytes(lens.1)) };
        let pieces = cut(&reply, &cuts(lens.1 + 8, &sizes));
        let frames = if leaves {
            framed(&pieces, IN)
        } else {
            let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
            framed(&pieces, between(1, 0)).iter().map(|frame| tunnel.wrap(frame)).collect()
        };
        // Out of a tunnel a packet's pieces come by one queue.
        let queues = if leaves { &queues[..] } else { &queues[..1] };
        let seen = carry(&mut bed, queues, &shuffled(&frames, &keys), &pod(0), down(0));
        let got = reassemble(&seen);
        let expected = reply.between(asked, client).ttl(63);
        prop_assert_eq!(&got, &named_as(&expected, &got).ip());
        prop_assert_eq!(bed.node.counters().held, 0);
        bed.close();
    }
}

/// RFC 6946: a whole packet may have a fragment header all the same; its flow is that of others.
#[test]
fn a_whole_packet_with_a_fragment_header_is_of_its_flow() {
    for (out, back) in [(0, 0), (1, 40), (40, 1)] {
        let mut bed = bed_with(1, vec![service(0, Protocol::Udp, &[(1, 0)])]);
        let (client, asked) = ((pod_ip(0, 0, 1), 40_000), (vip(0, 1), 80));
        let sent = whole(client.0, asked.0, Body::Udp(40_000, 80, bytes(out)));
        let pieces = framed(&cut(&sent, &[]), up(0));
        let left = send(&mut bed, &[pod(0)], &pieces);
        let left: Vec<_> = left.iter().map(|(_, frame)| inner_of(frame)[14..].to_vec()).collect();
        let arrives = sent.between(client, (pod_ip(1, 0, 1), 8080)).ttl(63);
        let got = reassemble(&left);
        assert_eq!(got, named_as(&arrives, &got).ip());
        let reply = arrives.reply(&bytes(back));
        let pieces = cut(&reply, &[]);
        // Ethernet, IPv6, the fragment header, UDP.
        assert_eq!((pieces.len(), pieces[0].len()), (1, 40 + 8 + 8 + back));
        let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
        let frames: Vec<_> =
            framed(&pieces, between(1, 0)).iter().map(|frame| tunnel.wrap(frame)).collect();
        let seen = carry(&mut bed, &[Place::Uplink(0)], &frames, &pod(0), down(0));
        let got = reassemble(&seen);
        assert_eq!(got, named_as(&reply.between(asked, client).ttl(63), &got).ip());
        bed.close();
    }
}
