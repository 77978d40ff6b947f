//! Segments of one packet leave as one where the device takes them so. The witness is a node whose devices
//! do not: what a device cuts out of the first one's packets must be what the second one sends.

use etherparse::{Ethernet2Header, IpHeaders, IpNumber, TcpHeader, UdpHeader};
use overlane_api::{Mode, Underlay};
use overlane_dataplane::io::memory::{Sent, Whole};
use overlane_dataplane::packet::segments::Offload;
use overlane_dataplane::testing::{MemoryNode, Place, objects};
use proptest::prelude::*;

use super::bed::{TUNNELS, UPLINK, pod};
use super::build::{Body, Packet, Tunnel, between, packet, pod_ip, up};

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;

/// A TCP segment, as much of it as matters here.
#[derive(Debug, Clone)]
struct Segment {
    /// Port of the sender: names the flow.
    flow: u16,
    sequence: u32,
    acknowledgment: u32,
    flags: u8,
    window: u16,
    /// Value of the timestamp option.
    time: u32,
    payload: usize,
    ecn: u8,
    dont_fragment: bool,
    /// Is a bit of it wrong?
    corrupt: bool,
}

impl Segment {
    fn new(flow: u16, sequence: u32, payload: usize) -> Self {
        Self {
            flow,
            sequence,
            acknowledgment: 77,
            flags: ACK,
            window: 500,
            time: 9,
            payload,
            ecn: 0,
            dont_fragment: true,
            corrupt: false,
        }
    }

    fn packet(&self, source: std::net::IpAddr, destination: std::net::IpAddr) -> Packet {
        let mut tcp = TcpHeader::new(self.flow, 80, self.sequence, self.window);
        tcp.acknowledgment_number = self.acknowledgment;
        (tcp.ack, tcp.psh) = (self.flags & ACK != 0, self.flags & PSH != 0);
        tcp.fin = self.flags & FIN != 0;
        let time = etherparse::TcpOptionElement::Timestamp(self.time, 1);
        tcp.set_options(&[time]).unwrap();
        // Each byte of a stream has a value by its place in it.
        let payload: Vec<u8> =
            (0..self.payload).map(|i| (self.sequence as usize + i) as u8).collect();
        tcp.checksum = match (source, destination) {
            (std::net::IpAddr::V4(s), std::net::IpAddr::V4(d)) => {
                tcp.calc_checksum_ipv4_raw(s.octets(), d.octets(), &payload).unwrap()
            }
            (std::net::IpAddr::V6(s), std::net::IpAddr::V6(d)) => {
                tcp.calc_checksum_ipv6_raw(s.octets(), d.octets(), &payload).unwrap()
            }
            _ => unreachable!("one family"),
        };
        let mut bytes = tcp.to_bytes().to_vec();
        bytes.extend(payload);
        if self.corrupt
            && let Some(last) = bytes.last_mut()
        {
            *last ^= 4;
        }
        let packet = packet(source, destination, Body::Raw(6, bytes));
        Packet { dont_fragment: self.dont_fragment, ..packet.tos(self.ecn) }
    }
}

/// Which way the segments go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the other node to a pod here.
    In,
    /// From a pod here to the other node.
    Out,
    /// From a pod to another one of this node.
    Local,
}

impl Way {
    fn ends(self) -> (Place, Place) {
        match self {
            Self::In => (UPLINK, pod(0)),
            Self::Out => (pod(0), UPLINK),
            Self::Local => (pod(0), pod(1)),
        }
    }

    fn frame(self, segment: &Segment, family: usize, mode: Mode, underlay: Underlay) -> Vec<u8> {
        match self {
            Self::In => {
                let inner = segment.packet(pod_ip(1, 0, family), pod_ip(0, 0, family));
                Tunnel::from_peer(1, mode, underlay).wrap(&inner.frame(between(1, 0)))
            }
            Self::Out => segment.packet(pod_ip(0, 0, family), pod_ip(1, 0, family)).frame(up(0)),
            Self::Local => segment.packet(pod_ip(0, 0, family), pod_ip(0, 1, family)).frame(up(0)),
        }
    }
}

/// As a device cuts a packet: headers are etherparse's.
fn cut(whole: &Whole) -> Vec<Vec<u8>> {
    let segments = &whole.segments;
    let (ethernet, rest) = Ethernet2Header::from_slice(&segments.headers).unwrap();
    let all = [rest, &whole.payload].concat();
    let (ip, payload) = IpHeaders::from_slice(&all).unwrap();
    assert_eq!(
        payload.payload.len() + ip.header_len() + 14,
        segments.headers.len() + whole.payload.len()
    );
    check_unfinished(whole);
    let size = usize::from(segments.size);
    let count = whole.payload.len().div_ceil(size);
    let chunks = whole.payload.chunks(size).enumerate();
    let one = |(number, chunk): (usize, &[u8])| {
        let mut ip = ip.clone();
        let upper = if segments.offload == Offload::Udp {
            let (mut udp, _) = UdpHeader::from_slice(payload.payload).unwrap();
            udp.length = (8 + chunk.len()) as u16;
            udp.checksum = match &ip {
                IpHeaders::Ipv4(v4, _) => udp.calc_checksum_ipv4(v4, chunk).unwrap(),
                IpHeaders::Ipv6(v6, _) => udp.calc_checksum_ipv6(v6, chunk).unwrap(),
            };
            udp.to_bytes().to_vec()
        } else {
            let (mut tcp, _) = TcpHeader::from_slice(payload.payload).unwrap();
            tcp.sequence_number = tcp.sequence_number.wrapping_add((number * size) as u32);
            tcp.psh &= number + 1 == count;
            tcp.checksum = match &ip {
                IpHeaders::Ipv4(v4, _) => tcp.calc_checksum_ipv4(v4, chunk).unwrap(),
                IpHeaders::Ipv6(v6, _) => tcp.calc_checksum_ipv6(v6, chunk).unwrap(),
            };
            tcp.to_bytes().to_vec()
        };
        match &mut ip {
            IpHeaders::Ipv4(v4, _) => {
                v4.set_payload_len(upper.len() + chunk.len()).unwrap();
                v4.header_checksum = v4.calc_header_checksum();
            }
            IpHeaders::Ipv6(v6, _) => v6.set_payload_length(upper.len() + chunk.len()).unwrap(),
        }
        let mut frame = ethernet.to_bytes().to_vec();
        ip.write(&mut frame).unwrap();
        [&frame, &upper, chunk].concat()
    };
    chunks.map(one).collect()
}

/// What a device finishes: the sum of all from the upper layer on, with what stands in the checksum's place.
fn check_unfinished(whole: &Whole) {
    let segments = &whole.segments;
    let (l4, at) = (usize::from(segments.l4), usize::from(segments.checksum));
    let upper = [&segments.headers[l4..], &whole.payload].concat();
    let words =
        upper.chunks(2).map(|w| u64::from(w[0]) << 8 | w.get(1).map_or(0, |b| u64::from(*b)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let frame = [&segments.headers[..], &whole.payload].concat();
    let (ip, _) = IpHeaders::from_slice(&frame[14..]).unwrap();
    let mut header = upper[..segments.headers.len() - l4].to_vec();
    header[at..at + 2].fill(0);
    let right = match (&ip, segments.offload) {
        (IpHeaders::Ipv4(ip, _), Offload::Udp) => {
            let udp = UdpHeader::from_slice(&header).unwrap().0;
            udp.calc_checksum_ipv4(ip, &whole.payload).unwrap()
        }
        (IpHeaders::Ipv6(ip, _), Offload::Udp) => {
            let udp = UdpHeader::from_slice(&header).unwrap().0;
            udp.calc_checksum_ipv6(ip, &whole.payload).unwrap()
        }
        (IpHeaders::Ipv4(ip, _), _) => {
            assert_eq!(segments.offload, Offload::TcpV4);
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let tcp = TcpHeader::from_slice(&header).unwrap().0;
            tcp.calc_checksum_ipv4(ip, &whole.payload).unwrap()
        }
        (IpHeaders::Ipv6(ip, _), _) => {
            assert_eq!(segments.offload, Offload::TcpV6);
            let tcp = TcpHeader::from_slice(&header).unwrap().0;
            tcp.calc_checksum_ipv6(ip, &whole.payload).unwrap()
        }
    };
    assert_eq!(!(sum as u16), right, "the unfinished checksum");
}

/// Without the checksum of a UDP header right behind the IP header: with one a tunnel packet is as good as
/// without.
fn without_outer_sum(mut frame: Vec<u8>) -> Vec<u8> {
    let l4 = if frame[12..14] == [8, 0] { 34 } else { 54 };
    let protocol = if l4 == 34 { frame[23] } else { frame[20] };
    if protocol == IpNumber::UDP.0 {
        frame[l4 + 6..l4 + 8].fill(0);
    }
    frame
}

/// Ports of the inner TCP header: at the same place in all frames of a test.
fn flow_of(frame: &[u8], ip_end: usize) -> [u8; 2] {
    frame[ip_end..ip_end + 2].try_into().unwrap()
}

/// A node whose devices take segments, and one whose devices do not.
struct Pair {
    joins: MemoryNode,
    plain: MemoryNode,
    way: Way,
    family: usize,
    mode: Mode,
    underlay: Underlay,
}

impl Pair {
    fn new(way: Way, family: usize, (mode, underlay): (Mode, Underlay)) -> Self {
        let node = || MemoryNode::new(1, objects::cluster(mode, underlay, 1));
        let mut joins = node();
        joins.take_segments();
        Self { joins, plain: node(), way, family, mode, underlay }
    }

    /// One vector of segments. How many segments each packet had that left, in order.
    fn vector(&mut self, segments: &[Segment]) -> Vec<usize> {
        let (from, to) = self.way.ends();
        for segment in segments {
            let frame = self.way.frame(segment, self.family, self.mode, self.underlay);
            assert!(self.joins.inject(&from, &frame) && self.plain.inject(&from, &frame));
        }
        let before = self.joins.counters();
        self.joins.run();
        self.plain.run();
        let sent = self.joins.sent(&to);
        let counts: Vec<usize> = sent
            .iter()
            .map(|sent| match sent {
                Sent::Frame(_) => 1,
                Sent::Whole(whole) => whole.payload.len().div_ceil(whole.segments.size.into()),
            })
            .collect();
        let after = self.joins.counters();
        assert_eq!(after.sent - before.sent, segments.len() as u64);
        let joined: usize = counts.iter().filter(|count| **count > 1).sum();
        assert_eq!(after.coalesced - before.coalesced, joined as u64);
        let cut = sent.iter().flat_map(|sent| match sent {
            Sent::Frame(frame) => vec![frame.clone()],
            Sent::Whole(whole) => cut(whole),
        });
        let mut got: Vec<_> = cut.map(without_outer_sum).collect();
        let plain = self.plain.sent(&to).into_iter().map(|sent| match sent {
            Sent::Frame(frame) => frame,
            Sent::Whole(_) => panic!("this node's devices take no segments"),
        });
        let mut expected: Vec<_> = plain.map(without_outer_sum).collect();
        // Flows may overtake one another; within one, the order stays.
        let inner_ip = if self.family == 0 { 20 } else { 40 };
        let outer = match (self.way, self.underlay) {
            (Way::Out, Underlay::Ipv4) => 50,
            (Way::Out, Underlay::Ipv6) => 70,
            _ => 0,
        };
        got.sort_by_key(|frame| flow_of(frame, 14 + outer + inner_ip));
        expected.sort_by_key(|frame| flow_of(frame, 14 + outer + inner_ip));
        assert_eq!(got.len(), expected.len());
        for (number, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got, expected, "frame {number} of {counts:?}");
        }
        counts
    }

    fn close(self) {
        self.joins.check_books().unwrap();
        self.joins.close().unwrap();
        self.plain.close().unwrap();
    }
}

/// Segments of `size` bytes that follow on one another.
fn stream(flow: u16, count: usize, size: usize) -> Vec<Segment> {
    (0..count).map(|i| Segment::new(flow, (1000 + i * size) as u32, size)).collect()
}

#[test]
fn bulk_leaves_as_one_packet_in_each_tunnel_and_family() {
    for tunnel in TUNNELS {
        for family in 0..2 {
            for way in [Way::In, Way::Out, Way::Local] {
                let mut pair = Pair::new(way, family, tunnel);
                assert_eq!(pair.vector(&stream(1000, 40, 1300)), [40], "{way:?} {tunnel:?}");
                // The last may be shorter, and say that it is the last.
                let mut short = stream(1000, 9, 1300);
                short[8].payload = 300;
                short[8].flags |= PSH;
                assert_eq!(pair.vector(&short), [9]);
                pair.close();
            }
        }
    }
}

#[test]
fn no_packet_is_longer_than_ip_allows() {
    for family in 0..2 {
        let mut pair = Pair::new(Way::In, family, (Mode::Geneve, Underlay::Ipv4));
        let counts = pair.vector(&stream(1000, 64, 1370));
        // 47 segments have 64,390 bytes and headers; with 48 it were 65,760.
        assert_eq!(counts, [47, 17]);
        pair.close();
    }
}

#[test]
fn what_is_no_next_segment_leaves_alone() {
    type Change = fn(&mut Segment);
    let changes: [(&str, Change, &[usize]); 10] = [
        ("a gap", |s| s.sequence += 1, &[3, 1, 3]),
        ("another acknowledgment", |s| s.acknowledgment += 1, &[3, 1, 3]),
        ("another window", |s| s.window += 1, &[3, 1, 3]),
        ("another option", |s| s.time += 1, &[3, 1, 3]),
        ("a congestion mark", |s| s.ecn = 3, &[3, 1, 3]),
        ("the end of the stream", |s| s.flags |= FIN, &[3, 1, 3]),
        ("no acknowledgment", |s| s.flags = 0, &[3, 1, 3]),
        ("a wrong checksum", |s| s.corrupt = true, &[3, 1, 3]),
        ("a push ends a packet", |s| s.flags |= PSH, &[4, 3]),
        ("no payload", |s| s.payload = 0, &[3, 1, 3]),
    ];
    for (what, change, expected) in changes {
        for family in 0..2 {
            for way in [Way::In, Way::Local] {
                let mut pair = Pair::new(way, family, (Mode::Vxlan, Underlay::Ipv4));
                let mut segments = stream(1000, 7, 1000);
                change(&mut segments[3]);
                assert_eq!(pair.vector(&segments), expected, "{what}, {way:?}, family {family}");
                pair.close();
            }
        }
    }
    let mut pair = Pair::new(Way::In, 0, (Mode::Vxlan, Underlay::Ipv4));
    let mut segments = stream(1000, 7, 1000);
    segments[3].dont_fragment = false;
    assert_eq!(pair.vector(&segments), [3, 1, 3], "a packet that may be cut again");
    // The first of two is looked at as well.
    let mut segments = stream(1000, 2, 1000);
    segments[0].corrupt = true;
    assert_eq!(pair.vector(&segments), [1, 1]);
    pair.close();
}

#[test]
fn several_flows_are_put_together_at_the_same_time() {
    for way in [Way::In, Way::Out] {
        let mut pair = Pair::new(way, 0, (Mode::Geneve, Underlay::Ipv4));
        let streams: Vec<_> = (0..4).map(|flow| stream(1000 + flow, 10, 1200)).collect();
        let mixed: Vec<_> =
            (0..10).flat_map(|i| streams.iter().map(move |s| s[i].clone())).collect();
        assert_eq!(pair.vector(&mixed), [10; 4], "{way:?}");
        pair.close();
    }
}

#[test]
fn short_packets_go_alone() {
    let mut pair = Pair::new(Way::Out, 0, (Mode::Geneve, Underlay::Ipv4));
    assert_eq!(pair.vector(&stream(1000, 20, 100)), [1; 20]);
    pair.close();
}

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    let step = (0_u16..6, 0_usize..6, 0_u32..24);
    prop::collection::vec(step, 1..64).prop_map(|steps| {
        let mut next = [u32::MAX - 5000; 6];
        let one = |(flow, size, odd): (u16, usize, u32)| {
            let sequence = &mut next[usize::from(flow)];
            let payload = [0, 1, 300, 1000, 1000, 1300][size];
            let mut segment = Segment::new(1000 + flow, *sequence, payload);
            match odd {
                0 => segment.sequence = sequence.wrapping_add(1),
                1 => segment.acknowledgment += 1,
                2 => segment.flags |= PSH,
                3 => segment.flags |= FIN,
                4 => segment.corrupt = true,
                5 => segment.ecn = 1,
                6 => segment.time += 1,
                _ => {}
            }
            *sequence = sequence.wrapping_add(payload as u32);
            segment
        };
        steps.into_iter().map(one).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn a_device_that_cuts_sends_what_one_that_does_not_sends(
        vectors in prop::collection::vec(segments(), 1..4),
        way in prop::sample::select(vec![Way::In, Way::Out, Way::Local]),
        family in 0_usize..2,
        tunnel in prop::sample::select(TUNNELS.to_vec()),
    ) {
        let mut pair = Pair::new(way, family, tunnel);
        for vector in &vectors {
            pair.vector(vector);
        }
        pair.close();
    }
}
