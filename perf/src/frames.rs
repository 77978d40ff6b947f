//! The frames that arrive: built with the dataplane's own header writers.

use std::net::{IpAddr, Ipv4Addr};

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
        let mut frame = vec![0; self.header_len()];
        frame.extend_from_slice(payload);
        let udp_len = (udp::HEADER_LEN + payload.len()) as u16;
        let (ethertype, pseudo) = match self.addresses {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = ipv4::Ipv4Header {
                    tos: 0,
                    total_len: ipv4::MIN_HEADER_LEN as u16 + udp_len,
                    identification: 0,
                    fragment: ipv4::DONT_FRAGMENT,
                    ttl: 64,
                    protocol: protocol::UDP,
                    source,
                    destination,
                };
                if let Some(place) = frame[ethernet::HEADER_LEN..].first_chunk_mut() {
                    header.write(place);
                }
                let sum = checksum::pseudo_header_v4(source, destination, protocol::UDP, udp_len);
                (ethernet::ETHERTYPE_IPV4, sum)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = ipv6::Ipv6Header {
                    traffic_class: 0,
                    flow_label: 0,
                    payload_len: udp_len,
                    next_header: protocol::UDP,
                    hop_limit: 64,
                    source,
                    destination,
                };
                if let Some(place) = frame[ethernet::HEADER_LEN..].first_chunk_mut() {
                    header.write(place);
                }
                let len = u32::from(udp_len);
                let sum = checksum::pseudo_header_v6(source, destination, protocol::UDP, len);
                (ethernet::ETHERTYPE_IPV6, sum)
            }
            // The two come from one topology and one family.
            _ => (0, 0),
        };
        if let Some(place) = frame.first_chunk_mut() {
            ethernet::write(place, self.macs.1, self.macs.0, ethertype);
        }
        let segment = &mut frame[self.header_len() - udp::HEADER_LEN..];
        let (source_port, destination_port) = self.ports;
        let header = udp::UdpHeader { source_port, destination_port, length: udp_len, checksum: 0 };
        if let Some(place) = segment.first_chunk_mut() {
            header.write(place);
        }
        if self.checksum {
            checksum::compute(segment, udp::CHECKSUM_OFFSET, pseudo);
        }
        frame
    }

    /// The frame of `size` bytes on the wire (check sequence included): 4 bytes less in memory;
    /// longer when the headers alone are.
    #[must_use]
    pub fn frame_of(&self, size: usize) -> Vec<u8> {
        let len = size.saturating_sub(self.header_len() + CHECK_SEQUENCE);
        self.frame(&vec![0x5a; len])
    }
}

/// A TCP segment without data, with these addresses of the Ethernet header, addresses, ports and flags,
/// each of them source and destination; 60 bytes, as the shortest frame on the wire.
#[must_use]
pub fn tcp(
    macs: (MacAddr, MacAddr),
    (source, destination): (Ipv4Addr, Ipv4Addr),
    (source_port, destination_port): (u16, u16),
    flags: u8,
) -> Vec<u8> {
    const IP: usize = ethernet::HEADER_LEN;
    const TCP: usize = IP + ipv4::MIN_HEADER_LEN;
    const LEN: u16 = tcp::MIN_HEADER_LEN as u16;
    let mut frame = vec![0; 64 - CHECK_SEQUENCE];
    let header = ipv4::Ipv4Header {
        tos: 0,
        total_len: ipv4::MIN_HEADER_LEN as u16 + LEN,
        identification: 0,
        fragment: ipv4::DONT_FRAGMENT,
        ttl: 64,
        protocol: protocol::TCP,
        source,
        destination,
    };
    let segment = tcp::TcpHeader {
        source_port,
        destination_port,
        sequence: 1,
        acknowledgment: 1,
        flags,
        window: 1024,
        checksum: 0,
        urgent: 0,
    };
    if let Some(place) = frame.first_chunk_mut() {
        ethernet::write(place, macs.1, macs.0, ethernet::ETHERTYPE_IPV4);
    }
    if let Some(place) = frame[IP..].first_chunk_mut() {
        header.write(place);
    }
    if let Some(place) = frame[TCP..].first_chunk_mut() {
        segment.write(place);
    }
    let sum = checksum::pseudo_header_v4(source, destination, protocol::TCP, LEN);
    checksum::compute(&mut frame[TCP..TCP + tcp::MIN_HEADER_LEN], tcp::CHECKSUM_OFFSET, sum);
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
