//! The layout of map keys and values, as `maps.h` has it, and what the counters mean.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// What the uplink program looks for besides addresses. The default steers nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UplinkSettings {
    /// UDP destination port of Geneve packets to a node address; `None` (or 0) when not used.
    pub geneve_port: Option<u16>,
    /// UDP destination port of VXLAN packets to a node address; `None` (or 0) when not used.
    pub vxlan_port: Option<u16>,
    /// Take ARP requests and neighbour solicitations whose target is in a local prefix.
    pub answer_neighbors: bool,
    /// Take all fragments of TCP, UDP, SCTP and ICMP to node addresses and, while there are SNAT
    /// ports, to egress addresses: the later ones have no ports. Among them are the host's own,
    /// which are to be given back to it. Off: the kernel gets the later ones, and neither an answer
    /// to a flow that left with such an address nor what comes to a NodePort may be fragmented (a
    /// first fragment is steered by its ports all the same).
    pub take_fragments: bool,
}

/// Bytes of `struct ovl_settings`.
pub(crate) const SETTINGS_BYTES: usize = 12;
/// Bytes of `struct ovl_node_port`.
pub(crate) const NODE_PORT_BYTES: usize = 4;
/// Bytes of `struct ovl_address`.
pub(crate) const ADDRESS_BYTES: usize = 16;
/// Bytes of `struct ovl_prefix_v4`.
#[cfg(test)]
pub(crate) const PREFIX_V4_BYTES: usize = 8;
/// Bytes of `struct ovl_prefix_v6`.
#[cfg(test)]
pub(crate) const PREFIX_V6_BYTES: usize = 20;

impl UplinkSettings {
    /// `struct ovl_settings`: tunnel ports in network byte order, SNAT ports in host byte order
    /// (0: none).
    pub(crate) fn to_bytes(self, snat: Option<(u16, u16)>) -> [u8; SETTINGS_BYTES] {
        let [g0, g1] = self.geneve_port.unwrap_or(0).to_be_bytes();
        let [v0, v1] = self.vxlan_port.unwrap_or(0).to_be_bytes();
        let (first, last) = snat.unwrap_or_default();
        let ([f0, f1], [l0, l1]) = (first.to_ne_bytes(), last.to_ne_bytes());
        let flags = [self.answer_neighbors, self.take_fragments].map(u8::from);
        [g0, g1, v0, v1, f0, f1, l0, l1, flags[0], flags[1], 0, 0]
    }
}

/// What an address is, as bits of its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// `OVL_IS_NODE`
    Node = 1,
    /// `OVL_IS_EGRESS`
    Egress = 2,
    /// `OVL_IS_SERVICE`
    Service = 4,
    /// `OVL_IS_ANNOUNCED`
    Announced = 8,
}

/// `struct ovl_node_port`.
pub(crate) fn node_port_key((protocol, port): (u8, u16)) -> [u8; NODE_PORT_BYTES] {
    let [high, low] = port.to_be_bytes();
    [protocol, 0, high, low]
}

/// `struct ovl_address`: IPv4 as `::ffff:a.b.c.d`.
pub(crate) fn address_key(address: IpAddr) -> [u8; ADDRESS_BYTES] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => Ipv6Addr::octets(&v6),
    }
}

/// `struct ovl_prefix_v4` or `ovl_prefix_v6`: the length in host byte order, then the address.
pub(crate) fn prefix_key(prefix: IpNet) -> Vec<u8> {
    let mut key = u32::from(prefix.prefix_len()).to_ne_bytes().to_vec();
    match prefix {
        IpNet::V4(v4) => key.extend(v4.network().octets()),
        IpNet::V6(v6) => key.extend(v6.network().octets()),
    }
    key
}

/// Why the uplink program sent a frame where it did. Each frame has one reason;
/// [`Reason::NoSocket`] is counted besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Reason {
    /// To the dataplane: a tunnel packet to an address of this node.
    Tunnel = 0,
    /// To the dataplane: an ICMP "too big" message about a tunnel packet of this node.
    PathMtu = 1,
    /// To the dataplane: the destination is in a local prefix.
    Prefix = 2,
    /// To the dataplane: an ARP or neighbour question about an address in a local prefix or an
    /// announced one.
    Neighbor = 3,
    /// To the dataplane: the destination is a service's address.
    Service = 4,
    /// To the dataplane: the destination is a NodePort of this node.
    NodePort = 5,
    /// To the dataplane: an answer to a flow that left with an egress address; or a fragment, when
    /// they are asked for, to that or a node address.
    Egress = 6,
    /// To the dataplane: an ICMP error about a packet from a NodePort, or of such a flow.
    FlowError = 7,
    /// To the kernel: the frame ends before its own headers do.
    Truncated = 8,
    /// To the kernel: VLAN tagged. Take the tag off before the uplink to have it steered.
    Vlan = 9,
    /// To the kernel: multicast or broadcast that asks for nothing of ours.
    Group = 10,
    /// To the kernel: neither IPv4, IPv6 nor ARP, or a malformed header.
    Protocol = 11,
    /// To the kernel: a later UDP fragment to a node address. It has no port; if it belonged to
    /// a tunnel packet, the underlay's MTU is smaller than the peers believe.
    Fragment = 12,
    /// To the kernel: a node address that lies in a local prefix. The host stays reachable.
    Node = 13,
    /// To the kernel: everything else, which belongs to the host.
    Other = 14,
    /// Steered to the dataplane, but its queue had no socket, so the kernel got it. Stays zero
    /// while a dataplane serves every queue.
    NoSocket = 15,
}

impl Reason {
    /// Number of reasons, which is the number of counters.
    pub const COUNT: usize = 16;

    /// All reasons in the order of their counters.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Tunnel,
        Self::PathMtu,
        Self::Prefix,
        Self::Neighbor,
        Self::Service,
        Self::NodePort,
        Self::Egress,
        Self::FlowError,
        Self::Truncated,
        Self::Vlan,
        Self::Group,
        Self::Protocol,
        Self::Fragment,
        Self::Node,
        Self::Other,
        Self::NoSocket,
    ];

    /// The frame was meant for the dataplane.
    #[must_use]
    pub const fn is_steered(self) -> bool {
        (self as usize) < Self::Truncated as usize
    }
}

/// What the uplink program has done since it was loaded, in frames, summed over all processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SteerCounters {
    /// Frames redirected to an AF_XDP socket. The socket may still have dropped some: its own
    /// statistics say so.
    pub to_dataplane: u64,
    /// Frames passed to the kernel because they are the host's.
    pub to_kernel: u64,
    /// Frames of the overlay that the kernel got because their queue has no socket. Stays zero
    /// while a dataplane serves every queue.
    pub fallback: u64,
    by_reason: [u64; Reason::COUNT],
}

impl SteerCounters {
    /// From the counters in the order of [`Reason::ALL`].
    pub(crate) fn from_reasons(by_reason: [u64; Reason::COUNT]) -> Self {
        let sum = |steered: bool| {
            Reason::ALL
                .iter()
                .filter(|reason| **reason != Reason::NoSocket && reason.is_steered() == steered)
                .map(|reason| by_reason[*reason as usize])
                .fold(0, u64::wrapping_add)
        };
        let fallback = by_reason[Reason::NoSocket as usize];
        // The counters are read one after another while frames arrive, hence "saturating".
        let to_dataplane = sum(true).saturating_sub(fallback);
        Self { to_dataplane, to_kernel: sum(false), fallback, by_reason }
    }

    /// Frames that left the program for this reason.
    #[must_use]
    pub fn reason(&self, reason: Reason) -> u64 {
        self.by_reason[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_put_ports_in_network_order() {
        let settings = UplinkSettings {
            geneve_port: Some(6081),
            vxlan_port: None,
            answer_neighbors: true,
            take_fragments: false,
        };
        let bytes = settings.to_bytes(Some((10_240, 29_999)));
        assert_eq!(bytes[..4], [0x17, 0xc1, 0, 0]);
        assert_eq!(bytes[4..6], 10_240_u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 29_999_u16.to_ne_bytes());
        assert_eq!(bytes[8..], [1, 0, 0, 0]);
        assert_eq!(UplinkSettings::default().to_bytes(None), [0; SETTINGS_BYTES]);
        assert_eq!(node_port_key((6, 30_080)), [6, 0, 0x75, 0x80]);
    }

    #[test]
    fn addresses_share_one_key_space() {
        let v4 = address_key("10.0.1.4".parse().unwrap());
        assert_eq!(v4, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 1, 4]);
        assert_eq!(v4, address_key("::ffff:10.0.1.4".parse().unwrap()));
    }

    #[test]
    fn prefixes_lose_their_host_bits() {
        let key = prefix_key("10.244.1.77/24".parse().unwrap());
        assert_eq!(key[..4], 24_u32.to_ne_bytes());
        assert_eq!(key[4..], [10, 244, 1, 0]);
        assert_eq!(key.len(), PREFIX_V4_BYTES);
        assert_eq!(prefix_key("fd00::1/64".parse().unwrap()).len(), PREFIX_V6_BYTES);
    }

    #[test]
    fn reasons_are_numbered_in_order() {
        for (position, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position);
        }
    }

    #[test]
    fn fallback_is_not_counted_as_delivered() {
        let mut by_reason = [0; Reason::COUNT];
        by_reason[Reason::Tunnel as usize] = 5;
        by_reason[Reason::Prefix as usize] = 2;
        by_reason[Reason::Other as usize] = 9;
        by_reason[Reason::Vlan as usize] = 1;
        by_reason[Reason::NoSocket as usize] = 3;
        let counters = SteerCounters::from_reasons(by_reason);
        assert_eq!((counters.to_dataplane, counters.to_kernel, counters.fallback), (4, 10, 3));
        assert_eq!(counters.reason(Reason::Prefix), 2);
    }
}
