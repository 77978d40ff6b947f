//! This node, as the dataplane needs to know it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::egress::SnatSettings;
use crate::types::{MacAddr, Vni};

/// How packets travel to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Geneve tunnel, Ethernet payload (RFC 8926).
    Geneve,
    /// VXLAN tunnel (RFC 7348).
    Vxlan,
    /// Unencapsulated; next hop from the node's own routes.
    Native,
    /// Unencapsulated; pods hold addresses of the node's own subnet, and the dataplane answers
    /// ARP and ND for them on the uplink.
    Flat,
}

impl Mode {
    /// Is there an outer header?
    #[must_use]
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::Geneve | Self::Vxlan)
    }

    /// UDP port registered for this tunnel: 6081 or 4789; none without a tunnel.
    #[must_use]
    pub const fn default_port(self) -> Option<u16> {
        match self {
            Self::Geneve => Some(6081),
            Self::Vxlan => Some(4789),
            Self::Native | Self::Flat => None,
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Geneve => "geneve",
            Self::Vxlan => "vxlan",
            Self::Native => "native",
            Self::Flat => "flat",
        })
    }
}

/// Address family of the outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Underlay {
    /// Outer IPv4.
    #[serde(rename = "4")]
    Ipv4,
    /// Outer IPv6.
    #[serde(rename = "6")]
    Ipv6,
}

/// When the outer UDP checksum is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OuterUdpChecksum {
    /// Zero over IPv4, computed over IPv6 (what Open vSwitch and Cilium send; RFC 7348 section 5
    /// asks for zero, RFC 8926 section 3.3 allows it over IPv4).
    #[default]
    Auto,
    /// Always computed.
    Compute,
    /// Never computed: over IPv6 only under RFC 6935 and 6936, when every peer accepts it.
    Zero,
}

/// DSCP of the outer header. It is never copied back at decapsulation (RFC 2983, pipe model).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OuterDscp {
    /// Copied from the inner header.
    Copy,
    /// This value, 0 to 63.
    Fixed(u8),
}

impl Default for OuterDscp {
    fn default() -> Self {
        Self::Fixed(0)
    }
}

/// Everything about the outer header that is configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncapSettings {
    /// VNI of the cluster's network. Tunnel packets with another one are dropped.
    pub vni: Vni,
    /// UDP destination port of Geneve packets, host byte order.
    pub geneve_port: u16,
    /// UDP destination port of VXLAN packets, host byte order.
    pub vxlan_port: u16,
    /// Family of the outer header towards peers that have addresses of both.
    pub underlay: Underlay,
    /// When the outer UDP checksum is computed.
    #[serde(default)]
    pub udp_checksum: OuterUdpChecksum,
    /// Accept a zero UDP checksum over IPv6 (RFC 6935). Off: such packets are dropped.
    #[serde(default)]
    pub accept_zero_udp_checksum_v6: bool,
    /// Drop VXLAN packets whose reserved bits are set, as Linux and Open vSwitch do.
    #[serde(default)]
    pub vxlan_strict: bool,
    /// DSCP of the outer header.
    #[serde(default)]
    pub dscp: OuterDscp,
    /// TTL or hop limit of the outer header.
    #[serde(default = "default_ttl")]
    pub ttl: u8,
}

const fn default_ttl() -> u8 {
    64
}

/// The veth through which the node's own stack and its pods reach each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// Interface that the host's stack uses; the dataplane's end is this name plus `x`.
    /// At most 14 bytes.
    pub interface: String,
}

impl Default for HostPort {
    fn default() -> Self {
        Self { interface: "overlane0".to_owned() }
    }
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The node's name in the cluster.
    pub name: String,
    /// Interface towards the underlay.
    pub uplink: String,
    /// The node's own addresses on the underlay, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// How other nodes are reached unless the peer says otherwise.
    pub mode: Mode,
    /// Outer header settings (used by peers in a tunnel mode).
    pub encap: EncapSettings,
    /// Source of all frames that pods and peers receive from this node. It differs per node.
    pub gateway_mac: MacAddr,
    /// Addresses that pods use as their gateway: answered by ARP, ND and ping.
    pub gateway_addresses: Vec<IpAddr>,
    /// Pod ranges of this node.
    pub pod_cidrs: Vec<IpNet>,
    /// Pod ranges of the whole cluster: what the host sends into the dataplane.
    pub cluster_cidrs: Vec<IpNet>,
    /// Service ranges of the cluster.
    #[serde(default)]
    pub service_cidrs: Vec<IpNet>,
    /// Largest IP packet that the underlay carries, bytes.
    pub underlay_mtu: u16,
    /// MTU of the pods' interfaces, bytes.
    pub pod_mtu: u16,
    /// The host port; absent: the host cannot reach its pods.
    #[serde(default)]
    pub host_port: Option<HostPort>,
    /// How pods leave the cluster.
    #[serde(default)]
    pub snat: SnatSettings,
    /// Flows that each worker can hold, of IPv4 and of IPv6 each. A table has its size from the
    /// start: another value is for the next start of the dataplane.
    #[serde(default = "default_flow_capacity")]
    pub flow_capacity: u32,
}

/// Flows that each worker holds unless told otherwise.
pub const DEFAULT_FLOW_CAPACITY: u32 = 262_144;

const fn default_flow_capacity() -> u32 {
    DEFAULT_FLOW_CAPACITY
}

impl Node {
    /// The node's own IPv4 address, if it has one.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }

    /// The node's own IPv6 address, if it has one.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        })
    }

    /// The gateway MAC that a node gets when nothing else is said: `02:4f` and the four octets of
    /// its IPv4 address, or its IPv6 address folded to four octets by exclusive or. Node
    /// addresses are unique, so these are; Linux drops Geneve frames that carry its own MAC as
    /// their source.
    #[must_use]
    pub fn default_gateway_mac(addresses: &[IpAddr]) -> MacAddr {
        let v4 = addresses.iter().find_map(|a| match a {
            IpAddr::V4(a) => Some(a.octets()),
            IpAddr::V6(_) => None,
        });
        let [a, b, c, d] = v4.unwrap_or_else(|| {
            let mut fold = [0_u8; 4];
            for address in addresses {
                if let IpAddr::V6(address) = address {
                    for (place, octet) in address.octets().into_iter().enumerate() {
                        fold[place % 4] ^= octet;
                    }
                    break;
                }
            }
            fold
        });
        MacAddr([0x02, 0x4f, a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_of_an_older_sender_is_read() {
        let text = r#"{"name":"a","uplink":"eth0","addresses":["10.0.1.4"],"mode":"geneve",
            "encap":{"vni":1,"geneve_port":6081,"vxlan_port":4789,"underlay":"4"},
            "gateway_mac":"02:4f:0a:00:01:04","gateway_addresses":["169.254.1.1"],
            "pod_cidrs":["10.244.1.0/24"],"cluster_cidrs":["10.244.0.0/16"],
            "underlay_mtu":1500,"pod_mtu":1450}"#;
        let node: Node = serde_json::from_str(text).unwrap();
        assert_eq!(node.snat, SnatSettings::default());
        assert_eq!(node.flow_capacity, 262_144);
    }
}
