//! Fragments of packets whose addresses are translated: the later ones follow the first, in any order.
//! Nothing is put together on the way; the test is who puts together what arrives.
//!
//! ```text
//! pod1 -- [ a: 10.0.1.4 ] -- 203.0.113.10:443             out of the cluster, and the answers
//! pod1 -- [ a ] == underlay == [ b ] -- 10.244.2.10:8080  through 10.96.0.10:80, and the answers
//! 203.0.113.10 -- [ a: 30080 ] == [ b ]                   from outside
//! ```

mod any;
mod bounds;
mod elsewhere;
pub mod inside;
mod outside;
mod sctp;

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlane_api::MacAddr;
use overlane_dataplane::testing::Place;

use super::bed::Bed;
use super::build::{Body, Packet, ethernet, inner_of, packet};

const SYN: u8 = 2;

const ACK: u8 = 16;

/// A packet that may be fragmented.
fn whole(from: IpAddr, to: IpAddr, body: Body) -> Packet {
    Packet { dont_fragment: false, id: 0x1234, ..packet(from, to, body) }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

fn datagram(from: (IpAddr, u16), to: (IpAddr, u16), len: usize) -> Packet {
    whole(from.0, to.0, Body::Udp(from.1, to.1, bytes(len)))
}

/// Cuts what an IP packet carries behind each of these bytes, multiples of 8. An IPv6 packet has the
/// identification of an IPv4 one.
pub fn cut(whole: &Packet, at: &[usize]) -> Vec<Vec<u8>> {
    let ip = whole.ip();
    let is_v4 = whole.source.is_ipv4();
    let (header, payload) = ip.split_at(if is_v4 { 20 } else { 40 });
    let mut pieces = Vec::new();
    let mut from = 0;
    for to in at.iter().copied().chain([payload.len()]) {
        let part = &payload[from..to];
        let more = to < payload.len();
        pieces.push(if is_v4 {
            let (mut header, _) = etherparse::Ipv4Header::from_slice(header).unwrap();
            header.fragment_offset = ((from / 8) as u16).try_into().unwrap();
            header.more_fragments = more;
            header.set_payload_len(part.len()).unwrap();
            header.header_checksum = header.calc_header_checksum();
            [&header.to_bytes()[..], part].concat()
        } else {
            let fragment = etherparse::Ipv6FragmentHeader {
                next_header: etherparse::IpNumber(header[6]),
                fragment_offset: ((from / 8) as u16).try_into().unwrap(),
                more_fragments: more,
                identification: u32::from(whole.id) << 8 | 0xdead_0000,
            };
            let mut header = header.to_vec();
            header[4..6].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
            header[6] = 44;
            [&header[..], &fragment.to_bytes(), part].concat()
        });
        from = to;
    }
    pieces
}

/// Puts pieces together, as a receiver does: one packet, no gap, no overlap. The identification of an
/// IPv4 packet is the pieces'.
#[track_caller]
pub fn reassemble(pieces: &[Vec<u8>]) -> Vec<u8> {
    assert!(!pieces.is_empty(), "nothing came");
    let mut parts = BTreeMap::new();
    let (mut end, mut ids) = (0, Vec::new());
    let mut whole = Vec::new();
    for piece in pieces {
        let (header, at, more, payload, id) = if piece[0] >> 4 == 4 {
            let (ip, payload) = etherparse::Ipv4Header::from_slice(piece).unwrap();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.total_len), piece.len());
            let id = u32::from(ip.identification);
            (&piece[..20], ip.fragment_offset.value(), ip.more_fragments, payload, id)
        } else {
            let (fragment, payload) =
                etherparse::Ipv6FragmentHeader::from_slice(&piece[40..]).unwrap();
            assert_eq!(usize::from(u16::from_be_bytes([piece[4], piece[5]])), piece.len() - 40);
            let at = fragment.fragment_offset.value();
            (&piece[..40], at, fragment.more_fragments, payload, fragment.identification)
        };
        let at = usize::from(at) * 8;
        ids.push(id);
        if at == 0 {
            whole = header.to_vec();
            if whole[0] >> 4 == 6 {
                whole[6] = piece[40];
            }
        }
        if !more {
            end = at + payload.len();
        }
        assert!(parts.insert(at, payload.to_vec()).is_none(), "twice the same piece");
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one packet: {ids:x?}");
    let header = whole.len();
    for (at, part) in parts {
        assert_eq!(at, whole.len() - header, "no gap, no overlap");
        whole.extend(part);
    }
    assert_eq!(whole.len() - header, end);
    let payload = whole.split_off(header);
    if header == 20 {
        let (mut ip, _) = etherparse::Ipv4Header::from_slice(&whole).unwrap();
        ip.more_fragments = false;
        ip.set_payload_len(payload.len()).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        whole = ip.to_bytes().to_vec();
    } else {
        whole[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    whole.extend(payload);
    whole
}

fn ethertype(ip: &[u8]) -> u16 {
    if ip[0] >> 4 == 4 { 0x0800 } else { 0x86dd }
}

/// In frames.
fn framed(pieces: &[Vec<u8>], macs: (MacAddr, MacAddr)) -> Vec<Vec<u8>> {
    pieces.iter().map(|piece| ethernet(macs, ethertype(piece), piece)).collect()
}

/// Sends frames one after the other, each when the last has been dealt with; what came out where.
#[track_caller]
fn send(bed: &mut Bed, from: &[Place], frames: &[Vec<u8>]) -> Vec<(Place, Vec<u8>)> {
    let mut out = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        assert!(bed.node.inject(&from[number % from.len()], frame));
        bed.node.run();
        bed.node.check_books().unwrap();
        out.extend(bed.node.collect());
    }
    out
}

/// The IP packets of frames that came out, without the tunnel if that is where they went.
fn packets_of(out: &[(Place, Vec<u8>)]) -> Vec<Vec<u8>> {
    let packet = |(place, frame): &(Place, Vec<u8>)| match place {
        Place::Uplink(_) => inner_of(frame)[14..].to_vec(),
        _ => frame[14..].to_vec(),
    };
    out.iter().map(packet).collect()
}

/// The same, and all comes out at `to`: the IP packets, with these MACs.
#[track_caller]
fn carry(
    bed: &mut Bed,
    from: &[Place],
    frames: &[Vec<u8>],
    to: &Place,
    macs: (MacAddr, MacAddr),
) -> Vec<Vec<u8>> {
    let out = send(bed, from, frames);
    out.into_iter()
        .map(|(place, frame)| {
            assert_eq!(&place, to);
            assert_eq!(frame[..12], [macs.1.0, macs.0.0].concat());
            frame[14..].to_vec()
        })
        .collect()
}

/// `expected` as it leaves in pieces: with the identification that they have.
pub fn named_as(expected: &Packet, got: &[u8]) -> Packet {
    let id = if got[0] >> 4 == 4 { u16::from_be_bytes([got[4], got[5]]) } else { expected.id };
    Packet { id, ..expected.clone() }
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    let forward: Vec<usize> = (0..count).collect();
    let backward: Vec<usize> = (0..count).rev().collect();
    // The first one in the middle.
    let middle = [&backward[..count / 2], &[0][..], &backward[count / 2..count - 1]].concat();
    vec![forward, backward, middle]
}

fn ordered(frames: &[Vec<u8>], order: &[usize]) -> Vec<Vec<u8>> {
    order.iter().map(|place| frames[*place].clone()).collect()
}

/// Port or identifier of a whole IP packet's sender.
fn port_of(ip: &[u8], is_ping: bool) -> u16 {
    let l4 = if ip[0] >> 4 == 4 { 20 } else { 40 } + if is_ping { 4 } else { 0 };
    u16::from_be_bytes([ip[l4], ip[l4 + 1]])
}
