//! D5: packets that are larger than the way out.

use std::collections::BTreeMap;

use overlane_api::{Mode, Underlay};
use overlane_dataplane::stages::Notice;
use overlane_dataplane::testing::Place;

use super::bed::{Bed, FORWARDED, TO_HOST, TUNNELS, UPLINK, pod};
use super::build::{
    Body, IN, Packet, Tunnel, between, down, family_of, flow_of, gateway_ip, inner_of, node_ip,
    packet, pod_ip, udp, up,
};
use super::icmp_error::{error, names, told};

/// "Fragmentation needed" and "packet too big".
const TOO_BIG: [(u8, u8); 2] = [(3, 4), (2, 0)];

/// Payload of a UDP packet of `len` bytes in all.
fn sized(from: std::net::IpAddr, to: std::net::IpAddr, len: usize) -> Packet {
    let headers = if from.is_ipv4() { 28 } else { 48 };
    let payload: Vec<u8> = (0..len - headers).map(|n| n as u8).collect();
    udp(from, to, &payload)
}

#[test]
fn what_fits_passes_and_a_byte_more_is_refused_with_the_mtu() {
    for (mode, underlay) in TUNNELS {
        let mtu = [1450, 1430][family_of(underlay)];
        for family in 0..2 {
            let mut bed = Bed::new(mode, underlay);
            let (from, to) = (pod_ip(0, 0, family), pod_ip(1, 0, family));
            let fits = sized(from, to, mtu);
            let frame = bed.one(&pod(0), &fits.frame(up(0)), &UPLINK, FORWARDED);
            // Exactly the underlay's MTU is used.
            assert_eq!(frame.len(), 14 + 1500);
            for more in [1, 2, 50] {
                let sent = sized(from, to, mtu + more);
                let answer = error(gateway_ip(family), &sent, TOO_BIG, mtu as u32);
                let moved = told("packet_too_big");
                let out = [(pod(0), answer.frame(down(0)))];
                bed.step(&pod(0), &sent.frame(up(0)), &out, &names(&moved));
            }
            bed.close();
        }
    }
}

#[test]
fn a_packet_from_a_tunnel_is_measured_against_the_pods_mtu() {
    for family in 0..2 {
        let mut node = overlane_dataplane::testing::objects::node(Mode::Geneve, Underlay::Ipv4);
        node.pod_mtu = 1400;
        let mut changes =
            overlane_dataplane::testing::objects::cluster(Mode::Geneve, Underlay::Ipv4, 1);
        changes[0] = overlane_api::Change::Set(overlane_api::Object::Node(node));
        let mut bed = Bed::with(1, changes);
        let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
        let sent = sized(pod_ip(1, 0, family), pod_ip(0, 0, family), 1401);
        let moved = told("packet_too_big");
        let frame = tunnel.wrap(&sent.frame(between(1, 0)));
        let got = bed.one(&UPLINK, &frame, &UPLINK, &names(&moved));
        let answer = error(node_ip(0, family), &sent, TOO_BIG, 1400);
        assert_eq!(inner_of(&got), answer.frame(between(0, 1)));
        bed.close();
    }
}

/// Puts fragments together; fails when bytes are missing or differ.
pub fn reassemble(pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut parts = BTreeMap::new();
    let mut end = None;
    let mut first = None;
    for piece in pieces {
        let (ip, payload) = etherparse::Ipv4Header::from_slice(piece).unwrap();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(usize::from(ip.total_len), piece.len());
        assert!(!ip.dont_fragment);
        let at = usize::from(ip.fragment_offset.value()) * 8;
        assert!(parts.insert(at, payload.to_vec()).is_none(), "twice the same piece");
        if !ip.more_fragments {
            end = Some(at + payload.len());
        } else {
            assert_eq!(payload.len() % 8, 0);
        }
        if at == 0 {
            first = Some(ip);
        }
    }
    let mut whole = Vec::new();
    for (at, part) in parts {
        assert_eq!(at, whole.len(), "no gap, no overlap");
        whole.extend(part);
    }
    assert_eq!(Some(whole.len()), end);
    let mut header = first.unwrap();
    header.more_fragments = false;
    header.set_payload_len(whole.len()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], &whole].concat()
}

#[test]
fn encap_bigger_than_mtu() {
    for (mode, underlay) in TUNNELS {
        let mtu = [1450, 1430][family_of(underlay)];
        let mut bed = Bed::new(mode, underlay);
        for len in [mtu + 1, mtu + 7, mtu + 8, 1490, 1500] {
            let sent = Packet {
                dont_fragment: false,
                id: 0x1234,
                ..sized(pod_ip(0, 0, 0), pod_ip(1, 0, 0), len)
            };
            let moved = [("received", 2), ("generated", 1), ("sent", 2)];
            let got = bed.send(&pod(0), &sent.frame(up(0)), &moved);
            assert_eq!(got.len(), 2);
            let flow = flow_of(&got[0].1);
            let inner = got.iter().map(|(place, frame)| {
                assert_eq!(place, &UPLINK);
                assert!(frame.len() <= 14 + 1500);
                let inner = inner_of(frame);
                // One path for all, and each in a tunnel of its own.
                let tunnel = Tunnel::to_peer(1, mode, underlay, flow);
                assert_eq!(frame, &tunnel.wrap(&inner));
                inner[14..].to_vec()
            });
            let pieces: Vec<_> = inner.collect();
            assert_eq!(reassemble(&pieces), sent.ttl(63).ip());
        }
        bed.close();
    }
}

#[test]
fn small_paths_take_many_pieces() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for path_mtu in [626, 800, 1000] {
        bed.node.bench().compiler.set_path_mtu("b", Some(path_mtu));
        bed.node.publish();
        let limit = usize::from(path_mtu) - 50;
        let sent = Packet {
            dont_fragment: false,
            id: 99,
            ..sized(pod_ip(0, 0, 0), pod_ip(1, 0, 0), 1450)
        };
        let count = (1450_usize - 20).div_ceil((limit - 20) / 8 * 8) as i64;
        let moved = [("received", count), ("generated", count - 1), ("sent", count)];
        let got = bed.send(&pod(0), &sent.frame(up(0)), &moved);
        let pieces: Vec<_> = got.iter().map(|(_, frame)| inner_of(frame)[14..].to_vec()).collect();
        assert!(pieces.iter().all(|piece| piece.len() <= limit));
        assert_eq!(reassemble(&pieces), sent.ttl(63).ip());
    }
    bed.close();
}

#[test]
fn fragments_are_fragmented_further() {
    let mut bed = Bed::new(Mode::Vxlan, Underlay::Ipv4);
    let whole =
        Packet { dont_fragment: false, id: 3, ..sized(pod_ip(0, 0, 0), pod_ip(1, 0, 0), 2980) };
    let body = whole.ip()[20..].to_vec();
    let mut pieces = Vec::new();
    for from in [0, 1480] {
        let part = body[from..(from + 1480).min(body.len())].to_vec();
        let piece = Packet {
            more_fragments: from == 0,
            offset: (from / 8) as u16,
            body: Body::Raw(17, part),
            ..whole.clone()
        };
        let moved = [("received", 2), ("generated", 1), ("sent", 2)];
        let got = bed.send(&pod(0), &piece.frame(up(0)), &moved);
        pieces.extend(got.iter().map(|(_, frame)| inner_of(frame)[14..].to_vec()));
    }
    assert_eq!(reassemble(&pieces), whole.ttl(63).ip());
    bed.close();
}

#[test]
fn what_cannot_be_cut_is_said_to_be_so() {
    let mut bed = Bed::new(Mode::Vxlan, Underlay::Ipv4);
    let sent = Packet { dont_fragment: false, ..sized(pod_ip(0, 0, 0), pod_ip(1, 0, 0), 1480) };
    // With options.
    let ip = sent.ip();
    let (mut header, _) = etherparse::Ipv4Header::from_slice(&ip).unwrap();
    header.options = [1, 1, 1, 0].into();
    header.set_payload_len(ip.len() - 20).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let bytes = [&header.to_bytes()[..], &ip[20..]].concat();
    bed.drops(&pod(0), &super::build::ethernet(up(0), 0x0800, &bytes), "fragmentation_failed");
    // A fragment that ends beyond the longest packet: its pieces' offsets do not exist.
    let body = Body::Raw(17, vec![0; 1460]);
    let beyond = Packet { offset: 8191 - 20, body, ..sent };
    bed.drops(&pod(0), &beyond.frame(up(0)), "fragmentation_failed");
    bed.close();
}

#[test]
fn routers_on_the_way_are_believed_when_they_quote_us() {
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let family = family_of(underlay);
        let mut bed = Bed::new(Mode::Geneve, underlay);
        let sent = sized(pod_ip(0, 0, 0), pod_ip(1, 0, 0), 1300);
        let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
        let router = ["10.0.0.1", "fd00:10::1"][family].parse().unwrap();
        let (kind, code) = TOO_BIG[family];
        let mut tell = |mtu: u32, quoted: &[u8], believed: bool| {
            let quoted = quoted[..quoted.len().min(256)].to_vec();
            let message = packet(router, node_ip(0, family), Body::Error(kind, code, mtu, quoted));
            let out = [(Place::Host, message.frame(super::build::to_host()))];
            // The host gets it in any case.
            bed.step(&UPLINK, &message.frame(IN), &out, TO_HOST);
            let notices = bed.node.notices();
            let expected: Vec<_> = believed
                .then_some(Notice::PathMtu(node_ip(1, family), mtu as u16))
                .into_iter()
                .collect();
            assert_eq!(notices, expected, "MTU {mtu}");
        };
        let outer = &frame[14..];
        tell(1400, outer, true);
        tell(1280, outer, true);
        // Larger than the underlay's, or absurd.
        tell(1500, outer, false);
        tell(9000, outer, false);
        tell(68, outer, false);
        tell(0, outer, false);
        // About somebody else's packet: source, destination, port.
        let header = [20, 40][family];
        for (at, name) in
            [([15, 23][family], "source"), ([19, 39][family], "destination"), (header + 3, "port")]
        {
            let mut forged = outer.to_vec();
            forged[at] ^= 0x40;
            println!("{name}");
            tell(1400, &forged, false);
        }
        bed.close();
    }
}
