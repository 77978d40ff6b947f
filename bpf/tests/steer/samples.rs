//! The frames, made by etherparse where it can and by hand where it cannot.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header};
use etherparse::{PacketBuilder, PacketBuilderStep, VlanId};
use ipnet::IpNet;
use overlane_bpf::Reason;

/// Our uplink's MAC, a neighbour's, everybody's, and a solicited-node group's.
pub const OURS: [u8; 6] = [0x02, 0, 0, 0, 0, 4];
const THEIRS: [u8; 6] = [0x02, 0, 0, 0, 0, 5];
const EVERYBODY: [u8; 6] = [0xff; 6];
const SOLICITED: [u8; 6] = [0x33, 0x33, 0xff, 0, 0, 0x0a];

/// This node, and a second address of it inside a prefix that is steered.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const NODE_INSIDE_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 1, 0, 0, 0, 4);
const NODE_INSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 2, 0, 0, 0, 4);
/// Another node.
pub const PEER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
pub const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 1, 0, 0, 0, 5);
/// A pod of this node.
pub const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
pub const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0, 1, 0, 0, 0, 0xa);
/// A pod elsewhere.
const FAR_POD_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 10);
const FAR_POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0, 2, 0, 0, 0, 0xa);

pub const TCP: u8 = 6;
pub const ICMPV6: u8 = 58;

pub fn node_addresses() -> Vec<IpAddr> {
    vec![NODE_V4.into(), NODE_V6.into(), NODE_INSIDE_V4.into(), NODE_INSIDE_V6.into()]
}

pub fn prefixes() -> Vec<IpNet> {
    ["10.244.1.0/24", "10.0.2.0/24", "fd12:3456:0:1::/64", "fd00:10:0:2::/64"]
        .map(|text| text.parse().unwrap())
        .into()
}

/// Virtual addresses of services, which no node has.
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7);
/// Addresses of a NAT gateway, which this node holds.
pub const POOL_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
pub const POOL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 7);
/// What flows leave with.
pub const SNAT_PORTS: std::ops::RangeInclusive<u16> = 10_240..=29_999;

pub fn egress_addresses() -> Vec<IpAddr> {
    vec![NODE_V4.into(), NODE_V6.into(), POOL_V4.into(), POOL_V6.into()]
}

pub fn service_addresses() -> Vec<IpAddr> {
    vec![VIP_V4.into(), VIP_V6.into()]
}

/// TCP 30080, UDP 30053, SCTP 30090.
pub fn node_ports() -> Vec<(u8, u16)> {
    vec![(TCP, 30_080), (17, 30_053), (132, 30_090)]
}

/// A frame and what must become of it.
pub struct Sample {
    pub name: &'static str,
    pub frame: Vec<u8>,
    pub reason: Reason,
    /// Bytes from the start that must be there for a frame to be steered.
    pub headers: usize,
}

pub fn steered(name: &'static str, reason: Reason, headers: usize, frame: Vec<u8>) -> Sample {
    assert!(frame.len() > headers, "{name}: nothing to cut off");
    Sample { name, frame, reason, headers }
}

pub fn passed(name: &'static str, reason: Reason, frame: Vec<u8>) -> Sample {
    Sample { name, frame, reason, headers: usize::MAX }
}

/// Everything that is the overlay's.
pub fn for_the_dataplane() -> Vec<Sample> {
    let mut all = overlay();
    all.extend(super::connections::for_the_dataplane());
    all
}

fn overlay() -> Vec<Sample> {
    use Reason::{Neighbor, PathMtu, Prefix, Tunnel};
    let options = with_options(tunnel_v4(6081), 3);
    let hop_by_hop = [(0, extension(2))];
    let four =
        [(0, extension(1)), (60, extension(1)), (43, extension(3)), (44, fragment(0, false))];
    let five = [&four[..], &[(60, extension(1))]].concat();
    let later = [(44, fragment(185, true))];
    let tunnel_v6 = || udp_v6(NODE_V6, 6081);
    vec![
        steered("Geneve", Tunnel, 42, tunnel_v4(6081)),
        steered("VXLAN", Tunnel, 42, tunnel_v4(4789)),
        steered("Geneve to a node address in a prefix", Tunnel, 42, udp_v4(NODE_INSIDE_V4, 6081)),
        steered("Geneve behind IPv4 options", Tunnel, 54, options),
        steered("first fragment", Tunnel, 42, fragmented(tunnel_v4(6081), 0, true)),
        steered("Geneve on IPv6", Tunnel, 62, tunnel_v6()),
        steered("VXLAN on IPv6", Tunnel, 62, udp_v6(NODE_V6, 4789)),
        steered("one extension", Tunnel, 78, extended(tunnel_v6(), &hop_by_hop)),
        steered("four extensions", Tunnel, 110, extended(tunnel_v6(), &four)),
        steered(
            "first IPv6 fragment",
            Tunnel,
            70,
            extended(tunnel_v6(), &[(44, fragment(0, true))]),
        ),
        steered("UDP to a pod", Prefix, 34, udp_v4(POD_V4, 80)),
        steered("TCP to a pod", Prefix, 34, tcp_v4(POD_V4, 80)),
        steered("tunnel port of a pod", Prefix, 34, udp_v4(POD_V4, 6081)),
        steered("later fragment to a pod", Prefix, 34, fragmented(udp_v4(POD_V4, 80), 185, false)),
        steered("options to a pod", Prefix, 74, with_options(udp_v4(POD_V4, 80), 10)),
        steered("ping to a pod", Prefix, 34, echo_v4(POD_V4)),
        steered("UDP to a pod on IPv6", Prefix, 54, udp_v6(POD_V6, 80)),
        steered("later IPv6 fragment to a pod", Prefix, 54, extended(udp_v6(POD_V6, 80), &later)),
        steered("five extensions to a pod", Prefix, 54, extended(udp_v6(POD_V6, 80), &five)),
        steered("ARP request for a pod", Neighbor, 42, padded(arp(1, POD_V4))),
        steered("solicitation for a pod", Neighbor, 78, padded(solicitation(POD_V6, 255, 0))),
        steered(
            "fragmentation needed",
            PathMtu,
            70,
            too_big_v4(NODE_V4, 4, quoted_v4(NODE_V4, 6081)),
        ),
        steered(
            "fragmentation needed, options quoted",
            PathMtu,
            78,
            too_big_v4(NODE_V4, 4, with_options(quoted_v4(NODE_V4, 4789), 2)),
        ),
        steered("packet too big", PathMtu, 110, too_big_v6(NODE_V6, 2, quoted_v6(NODE_V6, 6081))),
    ]
}

/// Everything that is the host's.
pub fn for_the_kernel() -> Vec<Sample> {
    let mut all = ipv4_for_the_kernel();
    all.extend(ipv6_for_the_kernel());
    all.extend(link_layer_for_the_kernel());
    all.extend(errors_for_the_kernel());
    all.extend(super::connections::for_the_kernel());
    all
}

fn ipv4_for_the_kernel() -> Vec<Sample> {
    use Reason::{Fragment, Group, Node, Other, Protocol};
    let edited = |at: usize, value: u8| edit(tunnel_v4(6081), at, value);
    vec![
        passed("ssh", Other, tcp_v4(NODE_V4, 22)),
        passed("TCP to the tunnel's port number", Other, tcp_v4(NODE_V4, 6081)),
        passed("UDP from the tunnel's port", Other, udp_v4(NODE_V4, 53)),
        passed("Geneve to another node", Other, udp_v4(PEER_V4, 6081)),
        passed("to a pod elsewhere", Other, udp_v4(FAR_POD_V4, 80)),
        passed("UDP port 0", Other, tunnel_v4(0)),
        passed("ping to the node", Other, echo_v4(NODE_V4)),
        passed("later fragment", Fragment, fragmented(tunnel_v4(6081), 185, false)),
        passed("middle fragment", Fragment, fragmented(tunnel_v4(6081), 185, true)),
        passed("later TCP fragment", Other, fragmented(tcp_v4(NODE_V4, 6081), 185, false)),
        passed("TCP to a node address in a prefix", Node, tcp_v4(NODE_INSIDE_V4, 22)),
        passed("DHCP offer to all", Group, to_mac(dhcp(Ipv4Addr::BROADCAST), EVERYBODY)),
        passed("DHCP offer to one", Other, dhcp(NODE_V4)),
        passed(
            "IPv4 multicast",
            Group,
            to_mac(udp_v4(Ipv4Addr::new(224, 0, 0, 251), 5353), [1, 0, 0x5e, 0, 0, 0xfb]),
        ),
        passed("Geneve to a broadcast MAC", Group, to_mac(tunnel_v4(6081), EVERYBODY)),
        passed("pod address under a broadcast MAC", Group, to_mac(udp_v4(POD_V4, 80), EVERYBODY)),
        passed("version 5", Protocol, edited(14, 0x55)),
        passed("IPv6 version under the IPv4 type", Protocol, edited(14, 0x65)),
        passed("header of 16 bytes", Protocol, edited(14, 0x44)),
        passed("header of no bytes", Protocol, edited(14, 0x40)),
    ]
}

fn ipv6_for_the_kernel() -> Vec<Sample> {
    use Reason::{Fragment, Group, Node, Other, Protocol};
    let tunnel_v6 = || udp_v6(NODE_V6, 6081);
    let five: Vec<_> = std::iter::repeat_n((60, extension(1)), 5).collect();
    let advertisement = edit(solicitation(POD_V6, 255, 0), 54, 136);
    vec![
        passed("ssh on IPv6", Other, tcp_v6(NODE_V6, 22)),
        passed("Geneve to another node on IPv6", Other, udp_v6(PEER_V6, 6081)),
        passed("to a pod elsewhere on IPv6", Other, udp_v6(FAR_POD_V6, 80)),
        passed(
            "later IPv6 fragment",
            Fragment,
            extended(tunnel_v6(), &[(44, fragment(185, false))]),
        ),
        passed(
            "later TCP fragment on IPv6",
            Other,
            extended(tcp_v6(NODE_V6, 80), &[(44, fragment(1, true))]),
        ),
        passed("five extensions", Other, extended(tunnel_v6(), &five)),
        passed(
            "extension longer than the frame",
            Other,
            extended(tunnel_v6(), &[(60, overlong())]),
        ),
        passed("no next header", Other, edit(tunnel_v6(), 20, 59)),
        passed("TCP to a node address in a prefix on IPv6", Node, tcp_v6(NODE_INSIDE_V6, 22)),
        passed("Geneve to a multicast MAC on IPv6", Group, to_mac(tunnel_v6(), SOLICITED)),
        passed("pod address under a multicast MAC", Group, to_mac(udp_v6(POD_V6, 80), SOLICITED)),
        passed("solicitation for another", Group, solicitation(FAR_POD_V6, 255, 0)),
        passed("solicitation for a node in a prefix", Group, solicitation(NODE_INSIDE_V6, 255, 0)),
        passed("solicitation from off the link", Group, solicitation(POD_V6, 254, 0)),
        passed("solicitation with a code", Group, solicitation(POD_V6, 255, 1)),
        passed("advertisement for a pod", Group, advertisement),
        passed("version 4 under the IPv6 type", Protocol, edit(tunnel_v6(), 14, 0x45)),
    ]
}

fn link_layer_for_the_kernel() -> Vec<Sample> {
    use Reason::{Group, Node, Other, Protocol, Vlan};
    let qinq = edit(edit(tagged(), 12, 0x88), 13, 0xa8);
    let lldp = edit(edit(tunnel_v4(6081), 12, 0x88), 13, 0xcc);
    vec![
        passed("Geneve under a VLAN tag", Vlan, tagged()),
        passed("Geneve under a service tag", Vlan, qinq),
        passed("LLDP", Group, to_mac(lldp.clone(), [1, 0x80, 0xc2, 0, 0, 0x0e])),
        passed("unknown protocol", Protocol, lldp),
        passed("ARP request for the node", Other, arp(1, NODE_V4)),
        passed("ARP request for a node in a prefix", Node, arp(1, NODE_INSIDE_V4)),
        passed("ARP request for another pod", Other, arp(1, FAR_POD_V4)),
        passed("ARP reply about a pod", Other, arp(2, POD_V4)),
        passed("ARP of another link", Other, edit(arp(1, POD_V4), 15, 6)),
        passed("ARP of another protocol", Other, edit(arp(1, POD_V4), 17, 1)),
        passed("ARP with long link addresses", Other, edit(arp(1, POD_V4), 18, 8)),
        passed("ARP with long addresses", Other, edit(arp(1, POD_V4), 19, 16)),
    ]
}

fn errors_for_the_kernel() -> Vec<Sample> {
    use Reason::Other;
    let v4 = |quote: Vec<u8>| too_big_v4(NODE_V4, 4, quote);
    let v6 = |quote: Vec<u8>| too_big_v6(NODE_V6, 2, quote);
    let own = || quoted_v4(NODE_V4, 6081);
    vec![
        passed("port unreachable", Other, too_big_v4(NODE_V4, 3, own())),
        passed("quotes TCP", Other, v4(edit(own(), 9 + 14, TCP))),
        passed("quotes another port", Other, v4(quoted_v4(NODE_V4, 53))),
        passed("quotes another's packet", Other, v4(quoted_v4(PEER_V4, 6081))),
        passed("quotes a later fragment", Other, v4(fragmented(own(), 185, false))),
        passed("quotes IPv6 in IPv4", Other, v4(edit(own(), 14, 0x60))),
        passed("about us to another", Other, too_big_v4(PEER_V4, 4, own())),
        passed("time exceeded on IPv6", Other, too_big_v6(NODE_V6, 3, quoted_v6(NODE_V6, 6081))),
        passed("quotes TCP on IPv6", Other, v6(edit(quoted_v6(NODE_V6, 6081), 20, TCP))),
        passed("quotes another port on IPv6", Other, v6(quoted_v6(NODE_V6, 53))),
        passed("quotes another's on IPv6", Other, v6(quoted_v6(PEER_V6, 6081))),
        passed(
            "about us to another on IPv6",
            Other,
            too_big_v6(PEER_V6, 2, quoted_v6(NODE_V6, 6081)),
        ),
    ]
}

// ---- plain packets, by etherparse ----

pub fn ethernet() -> PacketBuilderStep<Ethernet2Header> {
    PacketBuilder::ethernet2(THEIRS, OURS)
}

const PAYLOAD: [u8; 24] = [0xa5; 24];

/// From UDP port 6081, which decides nothing.
pub fn udp_v4(to: Ipv4Addr, port: u16) -> Vec<u8> {
    udp_between_v4(PEER_V4, to, port)
}

fn udp_between_v4(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet().ipv4(from.octets(), to.octets(), 64).udp(6081, port);
    packet.write(&mut frame, &PAYLOAD).unwrap();
    frame
}

/// To this node.
pub fn tunnel_v4(port: u16) -> Vec<u8> {
    udp_v4(NODE_V4, port)
}

pub fn tcp_v4(to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet().ipv4(PEER_V4.octets(), to.octets(), 64).tcp(40000, port, 1, 1000);
    packet.write(&mut frame, &PAYLOAD).unwrap();
    frame
}

pub fn echo_v4(to: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet().ipv4(PEER_V4.octets(), to.octets(), 64).icmpv4_echo_request(1, 1);
    packet.write(&mut frame, &PAYLOAD).unwrap();
    frame
}

fn dhcp(to: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet().ipv4(PEER_V4.octets(), to.octets(), 64).udp(67, 68);
    packet.write(&mut frame, &PAYLOAD).unwrap();
    frame
}

pub fn udp_v6(to: Ipv6Addr, port: u16) -> Vec<u8> {
    udp_between_v6(PEER_V6, to, port)
}

fn udp_between_v6(from: Ipv6Addr, to: Ipv6Addr, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet().ipv6(from.octets(), to.octets(), 64).udp(6081, port);
    packet.write(&mut frame, &PAYLOAD).unwrap();
    frame
}

pub fn tcp_v6(to: Ipv6Addr, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet().ipv6(PEER_V6.octets(), to.octets(), 64).tcp(40000, port, 1, 1000);
    packet.write(&mut frame, &PAYLOAD).unwrap();
    frame
}

fn tagged() -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet()
        .single_vlan(VlanId::try_new(7).unwrap())
        .ipv4(PEER_V4.octets(), NODE_V4.octets(), 64)
        .udp(6081, 6081);
    packet.write(&mut frame, &PAYLOAD).unwrap();
    frame
}

/// Operation 1 asks and is sent to everybody, 2 answers.
pub fn arp(operation: u16, target: Ipv4Addr) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation(operation),
        &THEIRS,
        &PEER_V4.octets(),
        &[0; 6],
        &target.octets(),
    );
    let mut frame = Vec::new();
    let to = if operation == 1 { EVERYBODY } else { OURS };
    PacketBuilder::ethernet2(THEIRS, to).arp(packet.unwrap()).write(&mut frame).unwrap();
    frame
}

// ---- messages put together from bytes ----

/// RFC 4861 section 4.3, sent to a solicited-node group.
pub fn solicitation(target: Ipv6Addr, hop_limit: u8, code: u8) -> Vec<u8> {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0xa);
    let body = [&[135, code, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    let mut frame = over_v6(group, ICMPV6, &body);
    frame[21] = hop_limit;
    to_mac(frame, SOLICITED)
}

/// A solicitation that checks a known neighbour: sent to the address itself.
pub fn probe(target: Ipv6Addr) -> Vec<u8> {
    let mut frame = to_mac(solicitation(target, 255, 0), OURS);
    frame[38..54].copy_from_slice(&target.octets());
    frame
}

/// An IPv6 packet with this body.
pub fn over_v6(to: Ipv6Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = udp_v6(to, 0);
    frame.truncate(54);
    frame.extend(body);
    frame[18..20].copy_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    frame[20] = protocol;
    frame
}

/// A frame that carried a packet of ours away, as an ICMP error quotes it.
fn quoted_v4(from: Ipv4Addr, port: u16) -> Vec<u8> {
    udp_between_v4(from, PEER_V4, port)
}

fn quoted_v6(from: Ipv6Addr, port: u16) -> Vec<u8> {
    udp_between_v6(from, PEER_V6, port)
}

/// Destination unreachable; code 4 is "fragmentation needed". `quoted` is a frame.
fn too_big_v4(to: Ipv4Addr, code: u8, quoted: Vec<u8>) -> Vec<u8> {
    let mut frame = udp_v4(to, 0);
    frame.truncate(34);
    frame.extend([3, code, 0, 0, 0, 0, 0x05, 0x78]);
    frame.extend(&quoted[14..]);
    frame[23] = 1;
    frame
}

/// An ICMPv6 error; type 2 is "packet too big". `quoted` is a frame.
fn too_big_v6(to: Ipv6Addr, kind: u8, quoted: Vec<u8>) -> Vec<u8> {
    let body = [&[kind, 0, 0, 0, 0, 0, 0x05, 0x78][..], &quoted[14..]].concat();
    over_v6(to, ICMPV6, &body)
}

/// An extension header of `units` times 8 bytes; its first byte is set by `extended`.
pub fn extension(units: u8) -> Vec<u8> {
    let mut header = vec![0; usize::from(units) * 8];
    header[1] = units - 1;
    header
}

/// 8 bytes that claim to be 2048.
pub fn overlong() -> Vec<u8> {
    vec![0, 255, 0, 0, 0, 0, 0, 0]
}

/// A fragment header; `offset` in units of 8 bytes. The reserved byte is noise on purpose.
pub fn fragment(offset: u16, more: bool) -> Vec<u8> {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    vec![0, 0xee, high, low, 0, 0, 0, 9]
}

/// Inserts extension headers, given with their own protocol numbers, behind the IPv6 header.
pub fn extended(mut frame: Vec<u8>, headers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut chain = Vec::new();
    let mut next = frame[20];
    for (protocol, header) in headers.iter().rev() {
        let mut header = header.clone();
        header[0] = next;
        next = *protocol;
        chain.splice(0..0, header);
    }
    frame[20] = next;
    frame.splice(54..54, chain);
    frame
}

/// Inserts `words` times 4 bytes of IPv4 options ("no operation").
pub fn with_options(mut frame: Vec<u8>, words: u8) -> Vec<u8> {
    frame[14] += words;
    frame.splice(34..34, vec![1; usize::from(words) * 4]);
    frame
}

/// Makes it a fragment; `offset` in units of 8 bytes.
pub fn fragmented(mut frame: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    let field = offset | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&field.to_be_bytes());
    frame
}

pub fn to_mac(mut frame: Vec<u8>, mac: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac);
    frame
}

pub fn edit(mut frame: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    frame[at] = value;
    frame
}

/// Trailing bytes, as short frames have on the wire.
pub fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.extend([0; 18]);
    frame
}
