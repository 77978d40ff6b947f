//! This node, as the packet path needs it.

use overlane_api::{MacAddr, Mode, Node, OuterDscp, OuterUdpChecksum, Underlay, WorkerId};

use crate::packet::drop::DropReason;
use crate::packet::verdict::{PortId, Verdict};
use crate::wire::ethernet::ETHERTYPE_TEB;

/// The host port: where packets for the node's own stack go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostBinding {
    /// The dataplane's end.
    pub port: PortId,
    /// The worker that serves it.
    pub worker: WorkerId,
    /// MAC of the host's end.
    pub mac: MacAddr,
}

/// The uplink: one port for each of its queues.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UplinkBinding {
    /// Its MAC: source of everything sent on it.
    pub mac: MacAddr,
    /// Its ports and the workers that serve them.
    pub ports: Vec<(WorkerId, PortId)>,
}

/// How a tunnel packet without options and flags is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainTunnel {
    /// UDP destination port, host order; more than 16 bits when this node expects none.
    pub port: u32,
    /// The tunnel header as a number.
    pub header: u64,
}

impl PlainTunnel {
    const NONE: Self = Self { port: u32::MAX, header: 0 };

    /// Geneve, VXLAN; none when the node has no address `to` which they could come.
    fn all(node: &Node, to: bool) -> [Self; 2] {
        if !to {
            return [Self::NONE; 2];
        }
        [
            // Version 0, no options, no flags, Ethernet inside (RFC 8926 section 3.4).
            Self::new(node, node.encap.geneve_port, u32::from(ETHERTYPE_TEB)),
            // The VNI is valid, nothing else (RFC 7348 section 5).
            Self::new(node, node.encap.vxlan_port, 0x0800_0000),
        ]
    }

    /// `start` is what stands before the VNI.
    fn new(node: &Node, port: u16, start: u32) -> Self {
        if port == 0 {
            return Self::NONE;
        }
        let vni = u64::from(node.encap.vni.get()) << 8;
        Self { port: u32::from(port), header: u64::from(start) << 32 | vni }
    }
}

impl Default for PlainTunnel {
    fn default() -> Self {
        Self::NONE
    }
}

/// This node.
#[derive(Debug, Clone, Default)]
pub struct NodeEntry {
    /// Own IPv4 address, host order; 0: none.
    pub v4: u32,
    /// Own IPv6 address, host order; 0: none.
    pub v6: u128,
    /// VNI of the cluster.
    pub vni: u32,
    /// UDP port of Geneve, host order; 0: nobody uses it.
    pub geneve_port: u16,
    /// UDP port of VXLAN, host order; 0: nobody uses it.
    pub vxlan_port: u16,
    /// Tunnels to this node's IPv4 address without options or flags: Geneve, VXLAN.
    pub plain_tunnels: [PlainTunnel; 2],
    /// The same to its IPv6 address.
    pub plain_tunnels6: [PlainTunnel; 2],
    /// Source of inner frames.
    pub gateway_mac: MacAddr,
    /// The gateway's IPv4 address for answers of its own, host order; 0: none.
    pub gateway_v4: u32,
    /// The same, IPv6.
    pub gateway_v6: u128,
    /// The gateway's IPv6 address for the host as its own service's client: not a link-local one,
    /// if there is another, host order; 0: none.
    pub gateway_v6_of_host: u128,
    /// Drop VXLAN packets with reserved bits set.
    pub vxlan_strict: bool,
    /// Accept a zero outer UDP checksum over IPv6.
    pub accept_zero_udp_checksum_v6: bool,
    /// Answer ARP and ND on the uplink for local endpoints (flat mode).
    pub answers_on_uplink: bool,
    /// May pods' own addresses be seen outside of the cluster (flat mode)?
    pub pods_on_underlay: bool,
    /// Largest IP packet on the underlay, bytes.
    pub underlay_mtu: u16,
    /// The host port.
    pub host: Option<HostBinding>,
    /// MAC of the uplink.
    pub uplink_mac: MacAddr,
    /// Per worker, the uplink port it sends on and that port's worker; empty: no uplink yet.
    pub uplinks: Vec<(WorkerId, PortId)>,
    /// Has the node been described at all?
    pub configured: bool,
    /// Salt of the flow hash: differs per node, so that paths do.
    pub salt: u64,
}

impl NodeEntry {
    /// What the packet path needs of `node`; ports are bound later.
    #[must_use]
    pub fn new(node: &Node) -> Self {
        let v4 = node.ipv4().map_or(0, std::net::Ipv4Addr::to_bits);
        let v6 = node.ipv6().map_or(0, std::net::Ipv6Addr::to_bits);
        let mut gateway_v4 = 0;
        let (mut gateway_v6, mut gateway_v6_of_host) = (0, 0);
        for address in node.gateway_addresses.iter().rev() {
            match address {
                std::net::IpAddr::V4(address) => gateway_v4 = address.to_bits(),
                std::net::IpAddr::V6(address) => {
                    gateway_v6 = address.to_bits();
                    if !address.is_unicast_link_local() {
                        gateway_v6_of_host = address.to_bits();
                    }
                }
            }
        }
        if gateway_v6_of_host == 0 {
            gateway_v6_of_host = gateway_v6;
        }
        Self {
            v4,
            v6,
            vni: node.encap.vni.get(),
            geneve_port: node.encap.geneve_port,
            vxlan_port: node.encap.vxlan_port,
            plain_tunnels: PlainTunnel::all(node, v4 != 0),
            plain_tunnels6: PlainTunnel::all(node, v6 != 0),
            gateway_mac: node.gateway_mac,
            gateway_v4,
            gateway_v6,
            gateway_v6_of_host,
            vxlan_strict: node.encap.vxlan_strict,
            accept_zero_udp_checksum_v6: node.encap.accept_zero_udp_checksum_v6,
            answers_on_uplink: node.mode == Mode::Flat,
            pods_on_underlay: node.mode == Mode::Flat,
            underlay_mtu: node.underlay_mtu,
            host: None,
            uplink_mac: MacAddr::default(),
            uplinks: Vec::new(),
            configured: true,
            salt: overlane_api::object::Fnv::hash(node.name.as_bytes()),
        }
    }

    /// What becomes of a packet that is the host's: to the host port, unchanged.
    #[must_use]
    pub fn host_verdict(&self) -> Verdict {
        match self.host {
            Some(host) => Verdict::ToHost(host.port),
            None => Verdict::Drop(DropReason::HostUnavailable),
        }
    }

    /// Is `port` (host order) one of the tunnel ports?
    #[inline]
    #[must_use]
    pub fn is_tunnel_port(&self, port: u16) -> bool {
        port != 0 && (port == self.geneve_port || port == self.vxlan_port)
    }

    /// Per worker, the uplink port it sends on: its own when it has one, else one of another's.
    #[must_use]
    pub fn spread_uplinks(binding: &UplinkBinding, workers: usize) -> Vec<(WorkerId, PortId)> {
        if binding.ports.is_empty() {
            return Vec::new();
        }
        let of = |index: usize| {
            let own = binding.ports.iter().find(|(worker, _)| worker.index() == index);
            *own.unwrap_or(&binding.ports[index % binding.ports.len()])
        };
        (0..workers).map(of).collect()
    }
}

/// How the outer header of a peer in a tunnel mode is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterForm {
    /// IPv4 or IPv6.
    pub underlay: Underlay,
    /// Compute the UDP checksum?
    pub checksum: bool,
    /// Copy the inner DSCP?
    pub copy_dscp: bool,
}

impl OuterForm {
    /// The form of `node`'s outer headers over `underlay`.
    #[must_use]
    pub fn new(node: &Node, underlay: Underlay) -> Self {
        let checksum = match node.encap.udp_checksum {
            OuterUdpChecksum::Auto => underlay == Underlay::Ipv6,
            OuterUdpChecksum::Compute => true,
            OuterUdpChecksum::Zero => false,
        };
        Self { underlay, checksum, copy_dscp: node.encap.dscp == OuterDscp::Copy }
    }
}
