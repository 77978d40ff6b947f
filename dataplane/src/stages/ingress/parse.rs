//! Ethernet and IP -> metadata. The only place where a packet's headers are read for what they
//! say; later steps read the metadata.

use crate::packet::drop::DropReason;
use crate::packet::flow_key::FlowKey;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta};
use crate::stages::{Context, keys};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::simple::Simple;
use crate::wire::simple6::Simple6;
use crate::wire::{icmpv4, icmpv6, ipv4, ipv6, protocol};

/// Parses one packet; ARP and ND are left to [`crate::stages::transmit::arp_nd`].
#[inline(always)]
pub(super) fn step(
    frame: &mut Frame,
    meta: &mut Meta,
    cx: &mut Context<'_>,
) -> Result<(), DropReason> {
    if !cx.tables.node.configured {
        return Err(DropReason::NotConfigured);
    }
    let ethernet = Ethernet::parse(frame.bytes()).map_err(|_| DropReason::FrameTruncated)?;
    match ethernet.ethertype() {
        ethernet::ETHERTYPE_IPV4 => {
            parse_v4(ethernet.payload(), meta, cx)?;
        }
        ethernet::ETHERTYPE_IPV6 => {
            parse_v6(ethernet.payload(), meta, cx)?;
            *cx.link_messages |= meta.kind == Kind::LinkV6;
        }
        ethernet::ETHERTYPE_ARP => {
            meta.kind = Kind::Arp;
            *cx.link_messages = true;
            return Ok(());
        }
        _ => return Err(DropReason::UnknownEthertype),
    }
    // What lies behind the IP packet is Ethernet padding.
    frame.truncate(ethernet::HEADER_LEN + usize::from(meta.ip_len));
    Ok(())
}

/// Reads an IPv4 packet and asks for the lines of what is looked up first: its flow or its route.
#[inline(always)]
pub(super) fn parse_v4(bytes: &[u8], meta: &mut Meta, cx: &Context<'_>) -> Result<(), DropReason> {
    let ip = Ipv4::parse(bytes).map_err(|error| super::inside_reason(&error))?;
    let destination = ip.destination_u32();
    if !ip.verify_checksum() {
        return Err(DropReason::BadIpChecksum);
    }
    if !is_unicast_v4(destination) {
        return Err(DropReason::Multicast);
    }
    meta.kind = Kind::Ipv4;
    meta.source = ip.source_u32();
    meta.destination = destination;
    meta.ip_len = ip.total_len();
    meta.protocol = ip.protocol();
    meta.tos = ip.tos();
    meta.ttl = ip.ttl();
    meta.dont_fragment = ip.dont_fragment();
    meta.is_fragment = ip.is_fragment();
    meta.l4 = 0;
    if ip.fragment_offset() == 0 {
        meta.l4 = ip.header_len() as u16;
        read_ports(meta, ip.payload());
    }
    meta.hash = cx.flows.hash.of(&hashed(meta, meta.source, destination));
    ask_v4(meta, Asked::Destination, cx);
    Ok(())
}

/// Reads a simple packet as [`parse_v4`] would. Says whether that is all: a destination that is no
/// host's is left to it.
#[inline(always)]
pub(super) fn parse_simple(
    packet: &Simple<'_>,
    meta: &mut Meta,
    asked: Asked,
    cx: &Context<'_>,
) -> bool {
    let destination = packet.destination();
    if !is_unicast_v4(destination) {
        return false;
    }
    let ports = packet.ports();
    meta.kind = Kind::Ipv4;
    meta.source = packet.source();
    meta.destination = destination;
    meta.ip_len = packet.total_len();
    meta.l4 = ipv4::MIN_HEADER_LEN as u16;
    meta.source_port = (ports >> 16) as u16;
    meta.destination_port = ports as u16;
    meta.protocol = packet.protocol();
    meta.tos = packet.tos();
    meta.ttl = packet.ttl();
    meta.dont_fragment = packet.dont_fragment();
    meta.is_fragment = false;
    meta.hash = cx.flows.hash.of(&keys::key_v4(meta));
    ask_v4(meta, asked, cx);
    true
}

/// As [`parse_simple`], over IPv6: as [`parse_v6`] would.
#[inline(always)]
pub(super) fn parse_simple6(
    packet: &Simple6<'_>,
    meta: &mut Meta,
    asked: Asked,
    cx: &Context<'_>,
) -> bool {
    let destination = packet.destination();
    if destination == 0 || destination >> 120 == 0xff {
        return false;
    }
    let ports = packet.ports();
    meta.kind = Kind::Ipv6;
    meta.ip_len = packet.payload_len() + ipv6::HEADER_LEN as u16;
    meta.l4 = ipv6::HEADER_LEN as u16;
    meta.source_port = (ports >> 16) as u16;
    meta.destination_port = ports as u16;
    meta.protocol = packet.protocol();
    meta.tos = packet.traffic_class();
    meta.ttl = packet.hop_limit();
    meta.dont_fragment = true;
    meta.is_fragment = false;
    meta.hash = cx.flows.hash.of(&hashed(meta, packet.source(), destination));
    ask_v6(meta, (packet.source(), destination), asked, cx);
    true
}

/// Of a packet without a flow: what will be looked up in the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// What has its destination.
    Destination,
    /// And what has its source.
    Both,
}

/// Asks for the line that is read first: of the flows' index, or of the routes.
#[inline(always)]
fn ask_v4(meta: &Meta, asked: Asked, cx: &Context<'_>) {
    if cx.flows.come_first {
        cx.flows.v4.prefetch(meta.hash);
        return;
    }
    if asked == Asked::Both {
        cx.tables.routes.v4.prefetch(meta.source);
    }
    cx.tables.routes.v4.prefetch(meta.destination);
}

/// As [`ask_v4`], of IPv6.
#[inline(always)]
fn ask_v6(meta: &Meta, (source, destination): (u128, u128), asked: Asked, cx: &Context<'_>) {
    if cx.flows.come_first {
        cx.flows.v6.prefetch(meta.hash);
        return;
    }
    if asked == Asked::Both {
        cx.tables.routes.v6.prefetch(source);
    }
    cx.tables.routes.v6.prefetch(destination);
}

/// What is hashed of a packet: its key. All fragments of a packet have one hash; the later ones know no
/// ports.
#[inline(always)]
fn hashed<A>(meta: &Meta, source: A, destination: A) -> FlowKey<A> {
    let ports = if meta.is_fragment { (0, 0) } else { (meta.source_port, meta.destination_port) };
    let (source_port, destination_port) = ports;
    FlowKey { source, destination, source_port, destination_port, protocol: meta.protocol }
}

/// Reads an IPv6 packet and asks for the lines of what is looked up first: its flow or its route.
#[inline]
pub(super) fn parse_v6(bytes: &[u8], meta: &mut Meta, cx: &Context<'_>) -> Result<(), DropReason> {
    let ip = Ipv6::parse(bytes).map_err(|error| super::inside_reason(&error))?;
    let (source, destination) = (ip.source_u128(), ip.destination_u128());
    let upper = ip.upper_layer().map_err(|error| super::inside_reason(&error))?;
    meta.ip_len = u16::try_from(ip.packet_len()).map_err(|_| DropReason::BadIpHeader)?;
    meta.protocol = upper.protocol;
    meta.tos = ip.traffic_class();
    meta.ttl = ip.hop_limit();
    meta.dont_fragment = true;
    meta.is_fragment = upper.is_fragment();
    meta.l4 = 0;
    if upper.has_header() {
        meta.l4 = upper.offset as u16;
        read_ports(meta, ip.packet().get(upper.offset..).unwrap_or_default());
    }
    if destination == 0 {
        return Err(DropReason::BadIpHeader);
    }
    let stays = destination >> 120 == 0xff || is_discovery(meta, bytes);
    meta.kind = if stays { Kind::LinkV6 } else { Kind::Ipv6 };
    meta.hash = cx.flows.hash.of(&hashed(meta, source, destination));
    ask_v6(meta, (source, destination), Asked::Destination, cx);
    Ok(())
}

/// Is it a message of neighbour or router discovery?
#[inline]
fn is_discovery(meta: &Meta, ip: &[u8]) -> bool {
    meta.protocol == protocol::ICMPV6
        && meta.l4 != 0
        && ip
            .get(usize::from(meta.l4))
            .is_some_and(|kind| (icmpv6::ROUTER_SOLICITATION..=icmpv6::REDIRECT).contains(kind))
}

/// Writes the ports of TCP, UDP and SCTP, or the identifier of an ICMP echo in their place, to the
/// metadata.
#[inline]
fn read_ports(meta: &mut Meta, l4: &[u8]) {
    match meta.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let Some(ports) = l4.first_chunk::<4>() else { return };
            meta.source_port = u16::from_be_bytes([ports[0], ports[1]]);
            meta.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let Some(&[kind, _, _, _, high, low]) = l4.first_chunk() else { return };
            let identifier = u16::from_be_bytes([high, low]);
            match (meta.protocol, kind) {
                (protocol::ICMP, icmpv4::ECHO_REQUEST)
                | (protocol::ICMPV6, icmpv6::ECHO_REQUEST) => meta.source_port = identifier,
                (protocol::ICMP, icmpv4::ECHO_REPLY) | (protocol::ICMPV6, icmpv6::ECHO_REPLY) => {
                    meta.destination_port = identifier;
                }
                _ => {}
            }
        }
        _ => {}
    }
}

/// Is it neither multicast, broadcast, reserved, "this network" nor loopback?
#[inline]
fn is_unicast_v4(address: u32) -> bool {
    HOSTS[(address >> 24) as usize]
}

/// First bytes of addresses of hosts.
static HOSTS: [bool; 256] = {
    let mut hosts = [false; 256];
    let mut net = 1;
    while net < 224 {
        hosts[net] = net != 127;
        net += 1;
    }
    hosts
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_host_is_no_destination() {
        let of = |text: &str| is_unicast_v4(text.parse::<std::net::Ipv4Addr>().unwrap().to_bits());
        for good in ["1.0.0.1", "10.244.1.10", "169.254.1.1", "223.255.255.255"] {
            assert!(of(good), "{good}");
        }
        for bad in
            ["0.0.0.0", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"]
        {
            assert!(!of(bad), "{bad}");
        }
    }
}
