//! A router on the underlay says that our tunnel packets are too large for it (RFC 1191, RFC 8201):
//! checked for being about a packet that we can have sent, and told to the slow thread, which
//! lowers the peer's MTU for a while.

use std::net::IpAddr;

use crate::stages::{Context, Notice};
use crate::wire::icmpv4::{self, Icmpv4};
use crate::wire::icmpv6::{self, Icmpv6};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::protocol;
use crate::wire::udp::Udp;

/// Smallest underlay MTU that is believed over IPv4: 576 and the overhead.
const LEAST_V4: u16 = 576 + 50;

/// Smallest MTU of IPv6 (RFC 8200 section 5).
const LEAST_V6: u16 = 1280;

/// Looks at an ICMP message to the node's own address. The host gets it in any case.
pub(crate) fn from_icmpv4(message: &[u8], cx: &mut Context<'_>) {
    let Ok(icmp) = Icmpv4::parse(message) else { return };
    if icmp.message_type() != icmpv4::DESTINATION_UNREACHABLE
        || icmp.code() != icmpv4::CODE_FRAGMENTATION_NEEDED
        || !icmp.verify_checksum()
    {
        return;
    }
    let Ok(quoted) = Ipv4::parse_quoted(icmp.payload()) else { return };
    let Ok(udp) = Udp::parse_quoted(quoted.payload()) else { return };
    let ours = quoted.source_u32() == cx.tables.node.v4
        && quoted.protocol() == protocol::UDP
        && cx.tables.node.is_tunnel_port(udp.destination_port())
        && cx.tables.peers_v4.get(quoted.destination_u32()) != 0;
    let mtu = icmp.next_hop_mtu();
    if ours && mtu >= LEAST_V4 && mtu < cx.tables.node.underlay_mtu {
        let address = IpAddr::V4(quoted.destination());
        let _ = cx.notices.try_push(Notice::PathMtu(address, mtu));
    }
}

/// The same over IPv6: packet too big. `pseudo` is the sum of the message's pseudo-header.
pub(crate) fn from_icmpv6(message: &[u8], pseudo: u64, cx: &mut Context<'_>) {
    let Ok(icmp) = Icmpv6::parse(message) else { return };
    if icmp.message_type() != icmpv6::PACKET_TOO_BIG || !icmp.verify_checksum(pseudo) {
        return;
    }
    let Ok(quoted) = Ipv6::parse_quoted(icmp.payload()) else { return };
    if quoted.next_header() != protocol::UDP {
        return;
    }
    let Ok(udp) = Udp::parse_quoted(quoted.payload()) else { return };
    let ours = quoted.source_u128() == cx.tables.node.v6
        && cx.tables.node.is_tunnel_port(udp.destination_port())
        && cx.tables.peers_v6.get(quoted.destination_u128()) != 0;
    let mtu = u16::try_from(icmp.mtu()).unwrap_or(u16::MAX);
    if ours && mtu >= LEAST_V6 && mtu < cx.tables.node.underlay_mtu {
        let address = IpAddr::V6(quoted.destination());
        let _ = cx.notices.try_push(Notice::PathMtu(address, mtu));
    }
}
