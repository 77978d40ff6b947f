//! Packets, described as data and built with etherparse: an independent witness of the bytes.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type,
    IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader,
    UdpHeader,
};
use overlane_api::{MacAddr, Mode, Underlay};
use overlane_dataplane::testing::{node, objects};

/// What an IP packet carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A datagram with its checksum.
    Udp(u16, u16, Vec<u8>),
    /// A datagram whose checksum says "none".
    UdpNoSum(u16, u16, Vec<u8>),
    /// A segment.
    Tcp(u16, u16, Vec<u8>),
    /// A segment with these flags: its sequence number is 1, its acknowledgment 1 with ACK, else 0.
    Segment(u16, u16, u8, Vec<u8>),
    /// An SCTP packet with one chunk: its type and value.
    Sctp(u16, u16, u8, Vec<u8>),
    /// Echo request (false) or reply: identifier, sequence number, payload.
    Echo(bool, u16, u16, Vec<u8>),
    /// An ICMP or ICMPv6 error: type, code, the word after the checksum, what it quotes.
    Error(u8, u8, u32, Vec<u8>),
    /// Anything: protocol and bytes.
    Raw(u8, Vec<u8>),
}

/// An IP packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub tos: u8,
    pub ttl: u8,
    /// IPv6 flow label.
    pub label: u32,
    /// IPv4 identification.
    pub id: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// Fragment offset, units of 8 bytes.
    pub offset: u16,
    pub body: Body,
}

/// A packet with TTL 64 that may not be fragmented.
pub fn packet(source: IpAddr, destination: IpAddr, body: Body) -> Packet {
    Packet {
        source,
        destination,
        tos: 0,
        ttl: 64,
        label: 0,
        id: 0,
        dont_fragment: true,
        more_fragments: false,
        offset: 0,
        body,
    }
}

/// A UDP packet from port 1000 to port 2000.
pub fn udp(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Packet {
    packet(source, destination, Body::Udp(1000, 2000, payload.to_vec()))
}

impl Packet {
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    pub fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    /// The same between other ends: address and port, as far as there are ports.
    pub fn between(&self, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        let (from, to) = (source.1, destination.1);
        let body = match self.body.clone() {
            Body::Udp(_, _, payload) => Body::Udp(from, to, payload),
            Body::UdpNoSum(_, _, payload) => Body::UdpNoSum(from, to, payload),
            Body::Tcp(_, _, payload) => Body::Tcp(from, to, payload),
            Body::Segment(_, _, flags, payload) => Body::Segment(from, to, flags, payload),
            Body::Sctp(_, _, chunk, value) => Body::Sctp(from, to, chunk, value),
            Body::Echo(is_reply, _, sequence, payload) => {
                Body::Echo(is_reply, if is_reply { to } else { from }, sequence, payload)
            }
            other => other,
        };
        Self { source: source.0, destination: destination.0, body, ..self.clone() }
    }

    /// The answer: addresses and ports exchanged, another payload, TTL 64.
    pub fn reply(&self, payload: &[u8]) -> Self {
        let body = match &self.body {
            Body::Udp(from, to, _) => Body::Udp(*to, *from, payload.to_vec()),
            Body::UdpNoSum(from, to, _) => Body::UdpNoSum(*to, *from, payload.to_vec()),
            Body::Tcp(from, to, _) => Body::Tcp(*to, *from, payload.to_vec()),
            Body::Segment(from, to, flags, _) => {
                // SYN is answered by SYN and ACK, the rest by ACK.
                Body::Segment(*to, *from, flags & 2 | 16, payload.to_vec())
            }
            // INIT, SHUTDOWN and COOKIE ECHO have answers of their own; the rest is acknowledged.
            Body::Sctp(from, to, chunk, _) => {
                let answer = match chunk {
                    1 => 2,
                    7 => 8,
                    10 => 11,
                    _ => 3,
                };
                Body::Sctp(*to, *from, answer, payload.to_vec())
            }
            Body::Echo(_, id, sequence, _) => Body::Echo(true, *id, *sequence, payload.to_vec()),
            other => panic!("no reply to {other:?}"),
        };
        let (source, destination) = (self.destination, self.source);
        Self { source, destination, body, ttl: 64, ..self.clone() }
    }

    /// The IP packet's bytes.
    pub fn ip(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.v4(source.octets(), destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.v6(source.octets(), destination.octets())
            }
            _ => panic!("one family"),
        }
    }

    /// In an Ethernet frame.
    pub fn frame(&self, (source, destination): (MacAddr, MacAddr)) -> Vec<u8> {
        let ethertype = if self.source.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        ethernet((source, destination), ethertype.0, &self.ip())
    }

    fn v4(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut ip = Ipv4Header::new(0, self.ttl, IpNumber::UDP, source, destination).unwrap();
        ip.dscp = IpDscp::try_new(self.tos >> 2).unwrap();
        ip.ecn = IpEcn::try_new(self.tos & 3).unwrap();
        ip.identification = self.id;
        ip.dont_fragment = self.dont_fragment;
        ip.more_fragments = self.more_fragments;
        ip.fragment_offset = IpFragOffset::try_new(self.offset).unwrap();
        let (protocol, body) = match &self.body {
            Body::Udp(from, to, payload) => {
                let udp = UdpHeader::with_ipv4_checksum(*from, *to, &ip, payload).unwrap();
                (IpNumber::UDP, [&udp.to_bytes()[..], payload].concat())
            }
            Body::Segment(from, to, flags, payload) => {
                let mut tcp = segment(*from, *to, *flags);
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
                (IpNumber::TCP, [&tcp.to_bytes()[..], payload].concat())
            }
            Body::Tcp(from, to, payload) => {
                let mut tcp = TcpHeader::new(*from, *to, 1, 1024);
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
                (IpNumber::TCP, [&tcp.to_bytes()[..], payload].concat())
            }
            Body::Echo(is_reply, id, seq, payload) => {
                let echo = IcmpEchoHeader { id: *id, seq: *seq };
                let kind = if *is_reply {
                    Icmpv4Type::EchoReply(echo)
                } else {
                    Icmpv4Type::EchoRequest(echo)
                };
                let icmp = Icmpv4Header::with_checksum(kind, payload);
                (IpNumber::ICMP, [&icmp.to_bytes()[..], payload].concat())
            }
            Body::Error(kind, code, rest, quoted) => {
                let kind = Icmpv4Type::Unknown {
                    type_u8: *kind,
                    code_u8: *code,
                    bytes5to8: rest.to_be_bytes(),
                };
                let icmp = Icmpv4Header::with_checksum(kind, quoted);
                (IpNumber::ICMP, [&icmp.to_bytes()[..], quoted].concat())
            }
            other => other.plain(),
        };
        ip.protocol = protocol;
        ip.set_payload_len(body.len()).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        [&ip.to_bytes()[..], &body].concat()
    }

    fn v6(&self, source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
        let mut ip = Ipv6Header {
            traffic_class: self.tos,
            flow_label: Ipv6FlowLabel::try_new(self.label).unwrap(),
            payload_length: 0,
            next_header: IpNumber::UDP,
            hop_limit: self.ttl,
            source,
            destination,
        };
        let (protocol, body) = match &self.body {
            Body::Udp(from, to, payload) => {
                let udp = UdpHeader::with_ipv6_checksum(*from, *to, &ip, payload).unwrap();
                (IpNumber::UDP, [&udp.to_bytes()[..], payload].concat())
            }
            Body::Segment(from, to, flags, payload) => {
                let mut tcp = segment(*from, *to, *flags);
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, payload).unwrap();
                (IpNumber::TCP, [&tcp.to_bytes()[..], payload].concat())
            }
            Body::Tcp(from, to, payload) => {
                let mut tcp = TcpHeader::new(*from, *to, 1, 1024);
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, payload).unwrap();
                (IpNumber::TCP, [&tcp.to_bytes()[..], payload].concat())
            }
            Body::Echo(is_reply, id, seq, payload) => {
                let echo = IcmpEchoHeader { id: *id, seq: *seq };
                let kind = if *is_reply {
                    Icmpv6Type::EchoReply(echo)
                } else {
                    Icmpv6Type::EchoRequest(echo)
                };
                let icmp = Icmpv6Header::with_checksum(kind, source, destination, payload).unwrap();
                (IpNumber::IPV6_ICMP, [&icmp.to_bytes()[..], payload].concat())
            }
            Body::Error(kind, code, rest, quoted) => {
                let kind = Icmpv6Type::Unknown {
                    type_u8: *kind,
                    code_u8: *code,
                    bytes5to8: rest.to_be_bytes(),
                };
                let icmp = Icmpv6Header::with_checksum(kind, source, destination, quoted).unwrap();
                (IpNumber::IPV6_ICMP, [&icmp.to_bytes()[..], quoted].concat())
            }
            other => other.plain(),
        };
        ip.next_header = protocol;
        ip.set_payload_length(body.len()).unwrap();
        [&ip.to_bytes()[..], &body].concat()
    }
}

impl Body {
    /// Bodies that are the same in both families.
    fn plain(&self) -> (IpNumber, Vec<u8>) {
        match self {
            Self::UdpNoSum(from, to, payload) => {
                let udp = UdpHeader::without_ipv4_checksum(*from, *to, payload.len()).unwrap();
                (IpNumber::UDP, [&udp.to_bytes()[..], payload].concat())
            }
            Self::Sctp(from, to, chunk, value) => {
                (IpNumber::SCTP, association(*from, *to, *chunk, value))
            }
            Self::Raw(protocol, bytes) => (IpNumber(*protocol), bytes.clone()),
            _ => unreachable!("built per family"),
        }
    }
}

/// An SCTP packet with its CRC.
fn association(from: u16, to: u16, chunk: u8, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len() as u16).to_be_bytes();
    let mut bytes = [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0xa, 0xb, 0xc, 0xd]].concat();
    bytes.extend([&[0; 4][..], &[chunk, 0], &length, value].concat());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let crc = crc32c(&bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// CRC-32C bit by bit, as RFC 9260 appendix A has the division: a witness of the one that is fast.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut remainder = u32::MAX;
    for byte in bytes {
        remainder ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = remainder & 1;
            remainder >>= 1;
            if carry == 1 {
                remainder ^= 0x82f6_3b78;
            }
        }
    }
    !remainder
}

/// A TCP header with these flags.
fn segment(from: u16, to: u16, flags: u8) -> TcpHeader {
    let mut tcp = TcpHeader::new(from, to, 1, 1024);
    let has = |flag: u8| flags & flag != 0;
    (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (has(1), has(2), has(4), has(8));
    (tcp.ack, tcp.acknowledgment_number) = (has(16), u32::from(has(16)));
    tcp
}

/// An Ethernet frame.
pub fn ethernet(
    (source, destination): (MacAddr, MacAddr),
    ethertype: u16,
    payload: &[u8],
) -> Vec<u8> {
    let header = Ethernet2Header {
        source: source.0,
        destination: destination.0,
        ether_type: EtherType(ethertype),
    };
    [&header.to_bytes()[..], payload].concat()
}

/// Address of family `family` (0: IPv4) of pod `pod` of node `node`.
pub fn pod_ip(node: u8, pod: u8, family: usize) -> IpAddr {
    objects::pod_addresses(node, pod)[family]
}

/// Address of family `family` (0: IPv4) of node `node`.
pub fn node_ip(node: u8, family: usize) -> IpAddr {
    objects::node_addresses(node)[family]
}

/// The gateway's address of that family.
pub fn gateway_ip(family: usize) -> IpAddr {
    let text = ["169.254.1.1", "fe80::1"][family];
    text.parse().unwrap()
}

/// Source and destination MAC of what local pod `pod` sends.
pub fn up(pod: u8) -> (MacAddr, MacAddr) {
    (objects::pod_mac(0, pod), objects::gateway_mac(0))
}

/// Source and destination MAC of what local pod `pod` receives.
pub fn down(pod: u8) -> (MacAddr, MacAddr) {
    (objects::gateway_mac(0), objects::pod_mac(0, pod))
}

/// Source and destination MAC of what leaves on the uplink.
pub const OUT: (MacAddr, MacAddr) = (node::UPLINK_MAC, node::NEXT_HOP_MAC);

/// Source and destination MAC of what arrives on the uplink.
pub const IN: (MacAddr, MacAddr) = (node::NEXT_HOP_MAC, node::UPLINK_MAC);

/// Source and destination MAC of what the host's stack sends.
pub fn from_host() -> (MacAddr, MacAddr) {
    (node::HOST_MAC, objects::gateway_mac(0))
}

/// Source and destination MAC of what the host's stack receives.
pub fn to_host() -> (MacAddr, MacAddr) {
    (objects::gateway_mac(0), node::HOST_MAC)
}

/// A tunnel: everything in front of the inner frame.
#[derive(Debug, Clone)]
pub struct Tunnel {
    pub macs: (MacAddr, MacAddr),
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub port: u16,
    pub tos: u8,
    pub ttl: u8,
    pub label: u32,
    /// Compute the UDP checksum?
    pub sum: bool,
    /// The Geneve or VXLAN header.
    pub header: Vec<u8>,
}

/// The header of a tunnel of `mode` with the cluster's VNI, 3301.
pub fn header(mode: Mode) -> Vec<u8> {
    match mode {
        Mode::Vxlan => vec![8, 0, 0, 0, 0, 0x0c, 0xe5, 0],
        Mode::Geneve => vec![0, 0, 0x65, 0x58, 0, 0x0c, 0xe5, 0],
        _ => panic!("no tunnel"),
    }
}

/// Family index of an underlay.
pub fn family_of(underlay: Underlay) -> usize {
    usize::from(underlay == Underlay::Ipv6)
}

impl Tunnel {
    /// What node `peer` sends to node a.
    pub fn from_peer(peer: u8, mode: Mode, underlay: Underlay) -> Self {
        let family = family_of(underlay);
        Self {
            macs: IN,
            source: node_ip(peer, family),
            destination: node_ip(0, family),
            source_port: 50_000,
            port: mode.default_port().unwrap(),
            tos: 0,
            ttl: 64,
            label: 0,
            sum: underlay == Underlay::Ipv6,
            header: header(mode),
        }
    }

    /// What node a sends to node `peer`; port and label are a flow's.
    pub fn to_peer(peer: u8, mode: Mode, underlay: Underlay, (port, label): (u16, u32)) -> Self {
        let family = family_of(underlay);
        Self {
            macs: OUT,
            source: node_ip(0, family),
            destination: node_ip(peer, family),
            source_port: port,
            label,
            ..Self::from_peer(peer, mode, underlay)
        }
    }

    /// The outer packet around `inner`, an Ethernet frame.
    pub fn outer(&self, inner: &[u8]) -> Packet {
        let payload = [&self.header[..], inner].concat();
        let body = if self.sum {
            Body::Udp(self.source_port, self.port, payload)
        } else {
            Body::UdpNoSum(self.source_port, self.port, payload)
        };
        Packet {
            tos: self.tos,
            ttl: self.ttl,
            label: self.label,
            ..packet(self.source, self.destination, body)
        }
    }

    /// The outer frame around `inner`, an Ethernet frame.
    pub fn wrap(&self, inner: &[u8]) -> Vec<u8> {
        self.outer(inner).frame(self.macs)
    }
}

/// MACs of an inner frame from node `from` to node `to`.
pub fn between(from: u8, to: u8) -> (MacAddr, MacAddr) {
    (objects::gateway_mac(from), objects::gateway_mac(to))
}

/// Outer UDP source port and IPv6 flow label (0 over IPv4) of a frame that left.
pub fn flow_of(frame: &[u8]) -> (u16, u32) {
    let parsed = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::TransportSlice::Udp(udp)) = parsed.transport else { panic!("UDP") };
    let label = match parsed.net {
        Some(etherparse::NetSlice::Ipv6(ip)) => ip.header().flow_label().value(),
        _ => 0,
    };
    (udp.source_port(), label)
}

/// The inner frame of a tunnel packet without options.
pub fn inner_of(frame: &[u8]) -> Vec<u8> {
    let parsed = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::TransportSlice::Udp(udp)) = parsed.transport else { panic!("UDP") };
    udp.payload()[8..].to_vec()
}
