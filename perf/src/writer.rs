//! The frames of [`Traffic`]: a template for each size, in which addresses, ports, stamp and
//! checksums are written for each packet.
//!
//! Checksums are not computed over the frame: the template's sum is known, and what varies is
//! added to it. The BPF program of the live-frames generator does the same with the same numbers.

use overlane_dataplane::wire::{checksum, ethernet, ipv4, ipv6, protocol, tcp, udp};

use crate::frames::{CHECK_SEQUENCE, Datagram, packet, pseudo_header, tunnel};
use crate::traffic::{Numbers, Picks, Protocol, Stamp, Traffic, TrafficError};
use overlane_api::{MacAddr, Underlay};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an 802.1Q tag.
const TAG: usize = 4;
/// Where an IPv4 header has its checksum, source and destination (RFC 791 section 3.1).
const IPV4_PLACES: (usize, usize, usize) = (10, 12, 16);
/// Where an IPv6 header has the last 32 bits of source and destination (RFC 8200 section 3).
const IPV6_PLACES: (usize, usize) = (20, 36);

/// Byte number `at` of a payload, the stamp aside.
#[inline]
#[must_use]
pub const fn payload_byte(at: usize) -> u8 {
    at as u8 ^ 0x5a
}

/// Where in a frame the fields are that vary, bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The outer UDP header of a frame in a tunnel; 0: there is none.
    pub outer_udp: usize,
    /// Has that one a checksum?
    pub outer_checksum: bool,
    /// The checksum of the inner IPv4 header; 0: the packet is IPv6.
    pub ip_checksum: usize,
    /// The (inner) addresses' last 32 bits.
    pub addresses: (usize, usize),
    /// The (inner) transport header.
    pub transport: usize,
    /// Its checksum.
    pub checksum: usize,
    /// End of the headers.
    pub headers: usize,
}

/// Frames of one size.
#[derive(Debug, Clone)]
pub(crate) struct Class {
    /// The frame; zeros where it varies, and for the checksums that do.
    pub template: Vec<u8>,
    /// Sums of the template's IPv4 header, of its transport segment with the pseudo-header, and of
    /// the outer UDP datagram with its pseudo-header.
    pub sums: [u64; 3],
    /// Does it end with a stamp?
    pub stamped: bool,
    /// Does the stamp begin at an odd byte of the segment?
    pub odd: bool,
}

/// Writes the frames of [`Traffic`], one after the other.
#[derive(Debug, Clone)]
pub struct FrameWriter {
    traffic: Traffic,
    pub(crate) layout: Layout,
    pub(crate) classes: Vec<Class>,
    pattern: &'static [u8],
    picks: Picks,
    /// Where in the pattern of sizes the next frame is.
    turn: usize,
    sequence: u64,
}

impl FrameWriter {
    /// From the first frame on.
    ///
    /// # Errors
    /// [`TrafficError`]: the traffic cannot be.
    pub fn new(traffic: &Traffic) -> Result<Self, TrafficError> {
        traffic.check()?;
        let layout = Layout::of(traffic);
        let sizes = traffic.size.classes();
        Ok(Self {
            traffic: traffic.clone(),
            layout,
            classes: sizes.into_iter().map(|size| Class::new(traffic, &layout, size)).collect(),
            pattern: traffic.size.pattern(),
            picks: Picks::new(traffic.flows, traffic.order),
            turn: 0,
            sequence: 0,
        })
    }

    /// Bytes of the largest frame in memory, outer headers included.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.classes.iter().map(|class| class.template.len()).max().unwrap_or_default()
    }

    /// Have all frames a stamp? Some sizes have no room for one.
    #[must_use]
    pub fn all_stamped(&self) -> bool {
        self.classes.iter().all(|class| class.stamped)
    }

    /// Stamped frames so far, which is the sequence number of the next one.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Bytes of the next frame in memory.
    #[inline]
    #[must_use]
    pub fn next_len(&self) -> usize {
        self.classes[usize::from(self.pattern[self.turn])].template.len()
    }

    /// Writes the next frame to the start of `out` and returns its length; none when `out` is
    /// shorter. A stamp says `nanoseconds` of `CLOCK_MONOTONIC`.
    #[inline]
    pub fn next(&mut self, out: &mut [u8], nanoseconds: u64) -> Option<usize> {
        let class = usize::from(self.pattern[self.turn]);
        let length = self.classes[class].template.len();
        let out = out.get_mut(..length)?;
        let flow = self.picks.draw();
        self.write(class, flow, Stamp { sequence: self.sequence, nanoseconds }, out);
        self.turn = if self.turn + 1 == self.pattern.len() { 0 } else { self.turn + 1 };
        self.sequence += u64::from(self.classes[class].stamped);
        Some(length)
    }

    /// Writes a frame of a size and a flow over all of `out`, which has its length.
    #[inline]
    fn write(&self, class: usize, flow: u32, stamp: Stamp, out: &mut [u8]) {
        let (class, layout) = (&self.classes[class], &self.layout);
        out.copy_from_slice(&class.template);
        let Numbers { from, to, from_port, to_port } = self.traffic.numbers(flow);
        put(out, layout.addresses.0, from.to_be_bytes());
        put(out, layout.addresses.1, to.to_be_bytes());
        put(out, layout.transport, from_port.to_be_bytes());
        put(out, layout.transport + 2, to_port.to_be_bytes());
        let addresses = u64::from(from) + u64::from(to);
        let mut varying = addresses + u64::from(from_port) + u64::from(to_port);
        if class.stamped {
            let bytes = stamp.bytes();
            put(out, class.template.len() - Stamp::LEN, bytes);
            let sum = checksum::fold(checksum::sum(&bytes, 0));
            varying += u64::from(if class.odd { sum.swap_bytes() } else { sum });
        }
        let [ip, transport, outer] = class.sums;
        let segment = match self.traffic.protocol {
            Protocol::Udp => checksum::udp_finish(transport + varying),
            Protocol::TcpSyn => checksum::finish(transport + varying),
        };
        put(out, layout.checksum, segment.to_be_bytes());
        varying += u64::from(segment);
        if layout.ip_checksum != 0 {
            let header = checksum::finish(ip + addresses);
            put(out, layout.ip_checksum, header.to_be_bytes());
            varying += u64::from(header);
        }
        if layout.outer_udp != 0 {
            let port = Traffic::outer_port(flow);
            put(out, layout.outer_udp, port.to_be_bytes());
            if layout.outer_checksum {
                let sum = checksum::udp_finish(outer + varying + u64::from(port));
                put(out, layout.outer_udp + udp::CHECKSUM_OFFSET, sum.to_be_bytes());
            }
        }
    }
}

/// Writes `bytes` at `at`, where the template has room for them.
#[inline]
fn put<const N: usize>(out: &mut [u8], at: usize, bytes: [u8; N]) {
    out[at..at + N].copy_from_slice(&bytes);
}

/// The same address with zeros for its last 32 bits.
fn without_low_bits(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 32 << 32).into(),
    }
}

impl Layout {
    fn of(traffic: &Traffic) -> Self {
        let (mut start, mut outer_udp, mut outer_checksum) = (0, 0, false);
        if let Some(tunnel) = &traffic.tunnel {
            outer_udp = ethernet::HEADER_LEN + ip_header(tunnel.addresses.0);
            outer_checksum = tunnel.addresses.0.is_ipv6();
            start = outer_udp + udp::HEADER_LEN + overlane_dataplane::wire::vxlan::HEADER_LEN;
        }
        let ip = start + ethernet::HEADER_LEN + traffic.vlan.map_or(0, |_| TAG);
        let transport = ip + ip_header(traffic.source.address);
        let (ip_checksum, from, to) = match traffic.source.address {
            IpAddr::V4(_) => (ip + IPV4_PLACES.0, IPV4_PLACES.1, IPV4_PLACES.2),
            IpAddr::V6(_) => (0, IPV6_PLACES.0, IPV6_PLACES.1),
        };
        let (checksum, length) = match traffic.protocol {
            Protocol::Udp => (udp::CHECKSUM_OFFSET, udp::HEADER_LEN),
            Protocol::TcpSyn => (tcp::CHECKSUM_OFFSET, tcp::MIN_HEADER_LEN),
        };
        Self {
            outer_udp,
            outer_checksum,
            ip_checksum,
            addresses: (ip + from, ip + to),
            transport,
            checksum: transport + checksum,
            headers: transport + length,
        }
    }
}

fn ip_header(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => ipv4::MIN_HEADER_LEN,
        IpAddr::V6(_) => ipv6::HEADER_LEN,
    }
}

/// A UDP segment with the payload's pattern, or a SYN; ports and checksum are zero.
fn segment(traffic: &Traffic, payload: usize, stamped: bool) -> Vec<u8> {
    match traffic.protocol {
        Protocol::Udp => {
            let mut segment = vec![0; udp::HEADER_LEN];
            let length = (udp::HEADER_LEN + payload) as u16;
            let header =
                udp::UdpHeader { source_port: 0, destination_port: 0, length, checksum: 0 };
            if let Some(place) = segment.first_chunk_mut() {
                header.write(place);
            }
            segment.extend((0..payload).map(payload_byte));
            if stamped {
                let from = segment.len() - Stamp::LEN;
                segment[from..].fill(0);
            }
            segment
        }
        Protocol::TcpSyn => {
            let mut segment = [0; tcp::MIN_HEADER_LEN];
            tcp::TcpHeader {
                source_port: 0,
                destination_port: 0,
                sequence: 1,
                acknowledgment: 0,
                flags: tcp::SYN,
                window: 1024,
                checksum: 0,
                urgent: 0,
            }
            .write(&mut segment);
            segment.to_vec()
        }
    }
}

impl Class {
    fn new(traffic: &Traffic, layout: &Layout, size: u16) -> Self {
        let tag = traffic.vlan.map_or(0, |_| TAG);
        let headers = ethernet::HEADER_LEN
            + tag
            + ip_header(traffic.source.address)
            + (layout.headers - layout.transport);
        let length = (usize::from(size) - CHECK_SEQUENCE).max(headers);
        let payload = length - headers;
        let is_udp = traffic.protocol == Protocol::Udp;
        let stamped = is_udp && traffic.stamp && payload >= Stamp::LEN;
        let segment = segment(traffic, payload, stamped);
        let number = if is_udp { protocol::UDP } else { protocol::TCP };
        let addresses = (traffic.source.address, traffic.destination.address);
        let addresses = (without_low_bits(addresses.0), without_low_bits(addresses.1));
        let pseudo = pseudo_header(addresses, number, segment.len() as u16);
        let transport = checksum::sum(&segment, pseudo);
        let macs = (traffic.source.mac, traffic.destination.mac);
        let mut inner = packet(macs, addresses, number, &segment);
        if let Some(tag) = traffic.vlan {
            let ([a, b], [c, d]) = (ethernet::ETHERTYPE_VLAN.to_be_bytes(), tag.to_be_bytes());
            let after_addresses = 2 * size_of::<MacAddr>();
            inner.splice(after_addresses..after_addresses, [a, b, c, d]);
        }
        // A SYN is shorter than the shortest frame.
        inner.resize(length, 0);
        let start = layout.headers - headers;
        let mut ip = 0;
        if layout.ip_checksum != 0 {
            let checksum = layout.ip_checksum - start;
            put(&mut inner, checksum, [0, 0]);
            let header = checksum - IPV4_PLACES.0;
            ip = checksum::sum(&inner[header..header + ipv4::MIN_HEADER_LEN], 0);
        }
        let (template, outer) = in_tunnel(traffic, layout, inner);
        let odd = !payload.is_multiple_of(2);
        Self { template, sums: [ip, transport, outer], stamped, odd }
    }
}

/// The frame in its tunnel, if it has one, and the sum of the outer datagram.
fn in_tunnel(traffic: &Traffic, layout: &Layout, inner: Vec<u8>) -> (Vec<u8>, u64) {
    let Some(outer) = &traffic.tunnel else { return (inner, 0) };
    let family = if outer.addresses.0.is_ipv4() { Underlay::Ipv4 } else { Underlay::Ipv6 };
    let datagram = Datagram {
        macs: outer.macs,
        addresses: outer.addresses,
        ports: (0, outer.port),
        checksum: false,
    };
    let mut frame = tunnel(outer.mode, family, outer.vni, datagram, &inner);
    put(&mut frame, layout.outer_udp + udp::CHECKSUM_OFFSET, [0, 0]);
    let datagram = &frame[layout.outer_udp..];
    let pseudo = pseudo_header(outer.addresses, protocol::UDP, datagram.len() as u16);
    let sum = checksum::sum(datagram, pseudo);
    (frame, sum)
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
