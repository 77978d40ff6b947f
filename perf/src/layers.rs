//! Where the headers of a received frame are: those in front, and those inside a tunnel.

use arrayvec::ArrayVec;
use overlane_dataplane::wire::{
    checksum, ethernet, geneve, ipv4::Ipv4, ipv6::Ipv6, protocol, tcp::Tcp, udp, udp::Udp, vxlan,
};

/// Other UDP ports than its own on which VXLAN is found: that of Linux of old.
const VXLAN_OF_OLD: u16 = 8472;
/// Bytes of an 802.1Q tag.
const TAG: usize = 4;

/// Ethernet, IP and transport, by their offsets in the frame, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layer {
    /// The Ethernet header.
    pub ethernet: usize,
    /// The IP header.
    pub ip: usize,
    /// Is it IPv6?
    pub is_v6: bool,
    /// The transport header.
    pub transport: usize,
    /// The end of the IP packet.
    pub end: usize,
    /// Protocol of the transport header.
    pub protocol: u8,
}

/// The layers of a frame, from the outside. None: it is no whole IP packet.
pub(crate) fn layers(frame: &[u8]) -> ArrayVec<Layer, 2> {
    let mut layers = ArrayVec::new();
    let Some(outer) = Layer::read(frame, 0) else { return layers };
    layers.push(outer);
    if let Some(start) = outer.inner_frame(frame)
        && let Some(inner) = Layer::read(frame, start)
    {
        layers.push(inner);
    }
    layers
}

impl Layer {
    fn read(frame: &[u8], start: usize) -> Option<Self> {
        let header = ethernet::Ethernet::parse(frame.get(start..)?).ok()?;
        let mut ip = start + ethernet::HEADER_LEN;
        let mut ethertype = header.ethertype();
        if ethertype == ethernet::ETHERTYPE_VLAN {
            ethertype = u16::from_be_bytes(*frame.get(ip + 2..)?.first_chunk()?);
            ip += TAG;
        }
        let (ethernet, packet) = (start, frame.get(ip..)?);
        match ethertype {
            ethernet::ETHERTYPE_IPV4 => {
                let header = Ipv4::parse(packet).ok()?;
                let payload = header.payload_range();
                let (transport, end) = (ip + payload.start, ip + payload.end);
                let protocol = header.protocol();
                (!header.is_fragment()).then_some(Self {
                    ethernet,
                    ip,
                    is_v6: false,
                    transport,
                    end,
                    protocol,
                })
            }
            ethernet::ETHERTYPE_IPV6 => {
                let header = Ipv6::parse(packet).ok()?;
                let upper = header.upper_layer().ok()?;
                let is_part = upper.fragment.is_some_and(|fragment| fragment.is_fragment());
                let (transport, end) = (ip + upper.offset, ip + header.packet_len());
                let protocol = upper.protocol;
                (!is_part).then_some(Self { ethernet, ip, is_v6: true, transport, end, protocol })
            }
            _ => None,
        }
    }

    /// Where the frame in the tunnel starts that this packet is, if it is one.
    pub(crate) fn inner_frame(&self, frame: &[u8]) -> Option<usize> {
        if self.protocol != protocol::UDP {
            return None;
        }
        let datagram = Udp::parse(frame.get(self.transport..self.end)?).ok()?;
        let payload = self.transport + udp::HEADER_LEN;
        match datagram.destination_port() {
            geneve::PORT => {
                let header = geneve::Geneve::parse(datagram.payload()).ok()?;
                (header.protocol() == ethernet::ETHERTYPE_TEB)
                    .then_some(payload + header.header_len())
            }
            vxlan::PORT | VXLAN_OF_OLD => {
                vxlan::Vxlan::parse(datagram.payload()).ok()?;
                Some(payload + vxlan::HEADER_LEN)
            }
            _ => None,
        }
    }

    /// Are the checksums of IP and transport right? Of protocols without one that is known here,
    /// and of UDP over IPv4 without one, nothing is wrong.
    pub(crate) fn is_sound(&self, frame: &[u8]) -> bool {
        let Some(segment) = frame.get(self.transport..self.end) else { return false };
        let (length, packet) = (segment.len(), &frame[self.ip..]);
        let pseudo = if self.is_v6 {
            Ipv6::parse(packet).ok().map(|ip| {
                let (source, destination) = (ip.source(), ip.destination());
                checksum::pseudo_header_v6(source, destination, self.protocol, length as u32)
            })
        } else {
            Ipv4::parse(packet).ok().filter(Ipv4::verify_checksum).map(|ip| {
                let (source, destination) = (ip.source(), ip.destination());
                checksum::pseudo_header_v4(source, destination, self.protocol, length as u16)
            })
        };
        match (pseudo, self.protocol) {
            (None, _) => false,
            (Some(pseudo), protocol::UDP) => {
                Udp::parse(segment).is_ok_and(|udp| self.udp_is_sound(&udp, pseudo))
            }
            (Some(pseudo), protocol::TCP) => {
                Tcp::parse(segment).is_ok_and(|tcp| tcp.verify_checksum(pseudo))
            }
            _ => true,
        }
    }

    fn udp_is_sound(&self, udp: &Udp<'_>, pseudo: u64) -> bool {
        if udp.checksum() == 0 { !self.is_v6 } else { udp.verify_checksum(pseudo) }
    }
}
