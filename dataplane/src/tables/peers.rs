//! Other nodes: each with the headers that are put in front of what it is sent.
//!
//! ```text
//! tunnel over IPv4, 64 bytes          tunnel over IPv6, 84 bytes
//!   0  Ethernet   14                    0  Ethernet   14
//!  14  IPv4       20                   14  IPv6       40
//!  34  UDP         8                   54  UDP         8
//!  42  Geneve/VXLAN 8                  62  Geneve/VXLAN 8
//!  50  inner Ethernet 14               70  inner Ethernet 14
//! native: 0 Ethernet 14
//! ```
//! The template replaces the frame's own Ethernet header and is prepended as a whole: one copy
//! of one or two cache lines. What differs from packet to packet (lengths, TOS, UDP source port,
//! IPv4 checksum, inner EtherType) is written over it.
//!
//! A Geneve option of ours (a 32-bit source identity, 8 bytes) would stand before the inner
//! Ethernet header: [`TEMPLATE_MAX`] has room for it over either family.
#![allow(clippy::cast_possible_truncation, reason = "a template has at most 96 bytes")]

use overlane_api::{MacAddr, Mode, Node, OuterDscp, Peer, Underlay};

use super::node::OuterForm;
use crate::wire::{checksum, ethernet, geneve, ipv4, ipv6, udp, vxlan};

/// Longest template: IPv6, Geneve and an identity option of 8 bytes.
pub const TEMPLATE_MAX: usize = 96;

/// Offset of the outer IP header in a template.
pub const OUTER_IP: usize = ethernet::HEADER_LEN;

/// How packets to a peer leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Nobody knows: the node or the peer lacks an address of the family.
    NoAddress,
    /// In a tunnel over IPv4.
    Tunnel4,
    /// In a tunnel over IPv6.
    Tunnel6,
    /// With another Ethernet header only.
    Native,
}

/// MACs towards the next hop of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Adjacency {
    /// The uplink's MAC.
    pub source: MacAddr,
    /// The next hop's MAC.
    pub destination: MacAddr,
}

/// Another node. Two cache lines; over IPv4 the packet path writes from the first.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct PeerEntry {
    /// The headers, see the module.
    pub template: [u8; TEMPLATE_MAX],
    /// Sum of the template's outer IPv4 header (ones' complement, folded): the header's
    /// checksum is this, the total length and the TOS, folded and inverted.
    pub ip_sum: u16,
    /// Valid bytes of `template`.
    pub template_len: u8,
    /// How packets leave.
    pub form: Form,
    /// Are the template's Ethernet addresses known?
    pub resolved: bool,
    /// Resolved, in a tunnel over IPv4 without checksum, DSCP fixed: as nearly all are, and so
    /// asked for first.
    pub is_usual: bool,
    /// Compute the outer UDP checksum?
    pub checksum: bool,
    /// TOS of the outer header, ECN aside.
    pub tos: u8,
    /// Copy the inner DSCP instead?
    pub copy_dscp: bool,
    /// Largest inner IP packet, bytes.
    pub mtu: u16,
    /// Its IPv4 address, host order; 0: none.
    pub v4: u32,
    /// Has it an IPv6 address?
    pub has_v6: bool,
    /// The kind of tunnel that the peer may send us; none: it may not.
    pub accepts: Option<Mode>,
}

impl PeerEntry {
    /// A free place in the table.
    #[must_use]
    pub fn free() -> Self {
        Self {
            template: [0; TEMPLATE_MAX],
            ip_sum: 0,
            template_len: 0,
            form: Form::NoAddress,
            resolved: false,
            is_usual: false,
            checksum: false,
            tos: 0,
            copy_dscp: false,
            mtu: 0,
            v4: 0,
            has_v6: false,
            accepts: None,
        }
    }

    /// Does it take Geneve options, and know ours?
    #[inline]
    #[must_use]
    pub fn takes_options(&self) -> bool {
        self.accepts == Some(Mode::Geneve)
    }

    /// The entry of `peer` as seen from `node`. `adjacency` is none while the next hop is not
    /// resolved; `path_mtu` is the largest packet on the way there, bytes.
    #[must_use]
    pub fn new(node: &Node, peer: &Peer, adjacency: Option<Adjacency>, path_mtu: u16) -> Self {
        let mut entry = Self::free();
        entry.accepts = peer.mode.is_tunnel().then_some(peer.mode);
        entry.v4 = ipv4_of(peer).map_or(0, std::net::Ipv4Addr::to_bits);
        entry.has_v6 = ipv6_of(peer).is_some();
        if peer.mode.is_tunnel() {
            entry.set_tunnel(node, peer, path_mtu);
        } else {
            entry.form = Form::Native;
            entry.template_len = ethernet::HEADER_LEN as u8;
            entry.mtu = path_mtu;
        }
        if let Some(adjacency) = adjacency {
            entry.resolved = entry.form != Form::NoAddress;
            ethernet::set_addresses(&mut entry.template, adjacency.destination, adjacency.source);
        }
        entry.is_usual =
            entry.resolved && entry.form == Form::Tunnel4 && !entry.checksum && !entry.copy_dscp;
        entry
    }

    fn set_tunnel(&mut self, node: &Node, peer: &Peer, path_mtu: u16) {
        let Some(underlay) = tunnel_family(node, peer) else { return };
        let form = OuterForm::new(node, underlay);
        self.checksum = form.checksum;
        self.copy_dscp = form.copy_dscp;
        self.tos = match node.encap.dscp {
            OuterDscp::Copy => 0,
            OuterDscp::Fixed(dscp) => dscp << 2,
        };
        let ip_len = match underlay {
            Underlay::Ipv4 => self.set_outer_v4(node, peer),
            Underlay::Ipv6 => self.set_outer_v6(node, peer),
        };
        let udp_at = OUTER_IP + ip_len;
        let tunnel_at = udp_at + udp::HEADER_LEN;
        let inner_at = tunnel_at + geneve::HEADER_LEN;
        let port = match peer.mode {
            Mode::Vxlan => node.encap.vxlan_port,
            _ => node.encap.geneve_port,
        };
        self.template[udp_at + 2..udp_at + 4].copy_from_slice(&port.to_be_bytes());
        if let Some(header) = self.template[tunnel_at..].first_chunk_mut() {
            match peer.mode {
                Mode::Vxlan => vxlan::write_header(header, node.encap.vni),
                _ => geneve::write_header(
                    header,
                    node.encap.vni,
                    ethernet::ETHERTYPE_TEB,
                    0,
                    false,
                    false,
                ),
            }
        }
        if let Some(header) = self.template[inner_at..].first_chunk_mut() {
            ethernet::write(header, peer.gateway_mac, node.gateway_mac, ethernet::ETHERTYPE_IPV4);
        }
        self.template_len = (inner_at + ethernet::HEADER_LEN) as u8;
        self.mtu = path_mtu.saturating_sub(u16::from(self.template_len) - OUTER_IP as u16);
    }

    fn set_outer_v4(&mut self, node: &Node, peer: &Peer) -> usize {
        let (Some(source), Some(destination)) = (node.ipv4(), ipv4_of(peer)) else {
            return 0;
        };
        self.form = Form::Tunnel4;
        if let Some(header) = self.template[..].first_chunk_mut() {
            ethernet::write(header, MacAddr([0; 6]), MacAddr([0; 6]), ethernet::ETHERTYPE_IPV4);
        }
        let header = ipv4::Ipv4Header {
            tos: 0,
            total_len: 0,
            identification: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl: node.encap.ttl,
            protocol: crate::wire::protocol::UDP,
            source,
            destination,
        };
        if let Some(place) = self.template[OUTER_IP..].first_chunk_mut() {
            header.write(place);
        }
        let ip = &mut self.template[OUTER_IP..OUTER_IP + ipv4::MIN_HEADER_LEN];
        // The checksum is filled in per packet.
        ip[10..12].fill(0);
        self.ip_sum = checksum::fold(checksum::sum(ip, 0));
        ipv4::MIN_HEADER_LEN
    }

    fn set_outer_v6(&mut self, node: &Node, peer: &Peer) -> usize {
        let (Some(source), Some(destination)) = (node.ipv6(), ipv6_of(peer)) else {
            return 0;
        };
        self.form = Form::Tunnel6;
        if let Some(header) = self.template[..].first_chunk_mut() {
            ethernet::write(header, MacAddr([0; 6]), MacAddr([0; 6]), ethernet::ETHERTYPE_IPV6);
        }
        let header = ipv6::Ipv6Header {
            traffic_class: 0,
            flow_label: 0,
            payload_len: 0,
            next_header: crate::wire::protocol::UDP,
            hop_limit: node.encap.ttl,
            source,
            destination,
        };
        if let Some(place) = self.template[OUTER_IP..].first_chunk_mut() {
            header.write(place);
        }
        ipv6::HEADER_LEN
    }
}

/// The family of the tunnel between `node` and `peer`: the configured one when both have it, the
/// other one when both have only that.
#[must_use]
pub fn tunnel_family(node: &Node, peer: &Peer) -> Option<Underlay> {
    let v4 = node.ipv4().is_some() && ipv4_of(peer).is_some();
    let v6 = node.ipv6().is_some() && ipv6_of(peer).is_some();
    match (node.encap.underlay, v4, v6) {
        (Underlay::Ipv4, true, _) | (Underlay::Ipv6, true, false) => Some(Underlay::Ipv4),
        (Underlay::Ipv6, _, true) | (Underlay::Ipv4, false, true) => Some(Underlay::Ipv6),
        _ => None,
    }
}

fn ipv4_of(peer: &Peer) -> Option<std::net::Ipv4Addr> {
    peer.addresses.iter().find_map(|address| match address {
        std::net::IpAddr::V4(address) => Some(*address),
        std::net::IpAddr::V6(_) => None,
    })
}

fn ipv6_of(peer: &Peer) -> Option<std::net::Ipv6Addr> {
    peer.addresses.iter().find_map(|address| match address {
        std::net::IpAddr::V6(address) => Some(*address),
        std::net::IpAddr::V4(_) => None,
    })
}
