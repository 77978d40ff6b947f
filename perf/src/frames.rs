//! The frames that arrive: built with the dataplane's own header writers.

use std::net::IpAddr;

use overlane_api::{MacAddr, Mode, Underlay, Vni};
use overlane_dataplane::wire::{checksum, ethernet, geneve, ipv4, ipv6, protocol, tcp, udp, vxlan};

/// Bytes of an Ethernet frame's check sequence, which is never in memory.
pub const CHECK_SEQUENCE: usize = 4;

/// A UDP datagram between two hosts.
#[derive(Debug, Clone, Copy)]
pub struct Datagram {
    /// Addresses of the Ethernet header: source, destination.
    pub macs: (MacAddr, MacAddr),
    /// Addresses, of one family: source, destination.
    pub addresses: (IpAddr, IpAddr),
    /// Ports: source, destination.
    pub ports: (u16, u16),
    /// Write the UDP checksum?
    pub checksum: bool,
}

impl Datagram {
    /// Bytes in front of the payload.
    #[must_use]
    pub fn header_len(&self) -> usize {
        let ip = match self.addresses.0 {
            IpAddr::V4(_) => ipv4::MIN_HEADER_LEN,
            IpAddr::V6(_) => ipv6::HEADER_LEN,
        };
        ethernet::HEADER_LEN + ip + udp::HEADER_LEN
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let length = (udp::HEADER_LEN + payload.len()) as u16;
        let (source_port, destination_port) = self.ports;
        let header = udp::UdpHeader { source_port, destination_port, length, checksum: 0 };
        let mut segment = vec![0; udp::HEADER_LEN];
        if let Some(place) = segment.first_chunk_mut() {
            header.write(place);
        }
        segment.extend_from_slice(payload);
        if self.checksum {
            let pseudo = pseudo_header(self.addresses, protocol::UDP, length);
            checksum::compute(&mut segment, udp::CHECKSUM_OFFSET, pseudo);
        }
        packet(self.macs, self.addresses, protocol::UDP, &segment)
    }

    /// The frame of `size` bytes on the wire (check sequence included): 4 bytes less in memory;
    /// longer when the headers alone are.
    #[must_use]
    pub fn frame_of(&self, size: usize) -> Vec<u8> {
        let len = size.saturating_sub(self.header_len() + CHECK_SEQUENCE);
        self.frame(&vec![0x5a; len])
    }
}

/// An IP packet of `protocol` in an Ethernet frame; addresses are source and destination.
#[must_use]
pub fn packet(
    macs: (MacAddr, MacAddr),
    addresses: (IpAddr, IpAddr),
    protocol: u8,
    segment: &[u8],
) -> Vec<u8> {
    let mut frame = vec![0; ethernet::HEADER_LEN];
    let length = segment.len() as u16;
    let ethertype = match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut place = [0; ipv4::MIN_HEADER_LEN];
            let total_len = ipv4::MIN_HEADER_LEN as u16 + length;
            let (identification, fragment) = (0, ipv4::DONT_FRAGMENT);
            let (tos, ttl) = (0, 64);
            ipv4::Ipv4Header {
                tos,
                total_len,
                identification,
                fragment,
                ttl,
                protocol,
                source,
                destination,
            }
            .write(&mut place);
            frame.extend_from_slice(&place);
            ethernet::ETHERTYPE_IPV4
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut place = [0; ipv6::HEADER_LEN];
            ipv6::Ipv6Header {
                traffic_class: 0,
                flow_label: 0,
                payload_len: length,
                next_header: protocol,
                hop_limit: 64,
                source,
                destination,
            }
            .write(&mut place);
            frame.extend_from_slice(&place);
            ethernet::ETHERTYPE_IPV6
        }
        // The two come from one topology and one family.
        _ => 0,
    };
    if let Some(place) = frame.first_chunk_mut() {
        ethernet::write(place, macs.1, macs.0, ethertype);
    }
    frame.extend_from_slice(segment);
    frame
}

/// Sum of the pseudo-header of `length` bytes of `protocol`.
#[must_use]
pub fn pseudo_header(addresses: (IpAddr, IpAddr), protocol: u8, length: u16) -> u64 {
    match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            checksum::pseudo_header_v4(source, destination, protocol, length)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            checksum::pseudo_header_v6(source, destination, protocol, u32::from(length))
        }
        _ => 0,
    }
}

/// A TCP segment without data, with these addresses of the Ethernet header, addresses, ports and flags,
/// each of them source and destination; at least 60 bytes, as the shortest frame on the wire.
#[must_use]
pub fn tcp(
    macs: (MacAddr, MacAddr),
    addresses: (impl Into<IpAddr>, impl Into<IpAddr>),
    (source_port, destination_port): (u16, u16),
    flags: u8,
) -> Vec<u8> {
    let addresses = (addresses.0.into(), addresses.1.into());
    let header = tcp::TcpHeader {
        source_port,
        destination_port,
        sequence: 1,
        acknowledgment: if flags & tcp::ACK == 0 { 0 } else { 1 },
        flags,
        window: 1024,
        checksum: 0,
        urgent: 0,
    };
    let mut segment = [0; tcp::MIN_HEADER_LEN];
    header.write(&mut segment);
    let sum = pseudo_header(addresses, protocol::TCP, tcp::MIN_HEADER_LEN as u16);
    checksum::compute(&mut segment, tcp::CHECKSUM_OFFSET, sum);
    let mut frame = packet(macs, addresses, protocol::TCP, &segment);
    frame.resize(frame.len().max(64 - CHECK_SEQUENCE), 0);
    frame
}

/// The frame `inner` in a tunnel of `mode` from `outer`'s source to its destination, as a peer
/// sends it: with a UDP checksum over IPv6 only.
#[must_use]
pub fn tunnel(mode: Mode, family: Underlay, vni: Vni, outer: Datagram, inner: &[u8]) -> Vec<u8> {
    let mut header = [0; geneve::HEADER_LEN];
    match mode {
        Mode::Vxlan => vxlan::write_header(&mut header, vni),
        _ => {
            geneve::write_header(&mut header, vni, ethernet::ETHERTYPE_TEB, 0, false, false);
        }
    }
    let outer = Datagram { checksum: family == Underlay::Ipv6, ..outer };
    outer.frame(&[&header[..], inner].concat())
}
