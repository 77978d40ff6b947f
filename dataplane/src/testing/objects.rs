//! The objects of a small cluster, as control would send them: node a is this node, b and c are
//! peers.
//!
//! ```text
//! a  10.0.1.4  fd00:10:0:1::4   pods 10.244.1.0/24  fd12:3456:0:1::/64
//! b  10.0.1.5  fd00:10:0:1::5   pods 10.244.2.0/24  fd12:3456:0:2::/64
//! c  10.0.1.6  fd00:10:0:1::6   pods 10.244.3.0/24  fd12:3456:0:3::/64
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use overlane_api::{
    Attachment, Change, EncapSettings, Endpoint, HostPort, MacAddr, Mode, Node, Object, OuterDscp,
    OuterUdpChecksum, Peer, Underlay, Vni, WorkerId,
};

/// The VNI of the cluster.
pub const VNI: u32 = 3301;

/// Addresses of node number `number`: 0 is a.
#[must_use]
pub fn node_addresses(number: u8) -> Vec<IpAddr> {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0, 1, 0, 0, 0, 4 + u16::from(number));
    vec![Ipv4Addr::new(10, 0, 1, 4 + number).into(), v6.into()]
}

/// Pod ranges of node number `number`.
#[must_use]
pub fn pod_cidrs(number: u8) -> Vec<IpNet> {
    let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 1 + number, 0), 24);
    let v6 = Ipv6Addr::new(0xfd12, 0x3456, 0, 1 + u16::from(number), 0, 0, 0, 0);
    vec![v4.into(), Ipv6Net::new_assert(v6, 64).into()]
}

/// Addresses of pod number `pod` (from 0) of node number `number`.
#[must_use]
pub fn pod_addresses(number: u8, pod: u8) -> Vec<IpAddr> {
    let v6 = Ipv6Addr::new(0xfd12, 0x3456, 0, 1 + u16::from(number), 0, 0, 0, 0xa + u16::from(pod));
    vec![Ipv4Addr::new(10, 244, 1 + number, 10 + pod).into(), v6.into()]
}

/// MAC of pod number `pod` of node number `number`.
#[must_use]
pub fn pod_mac(number: u8, pod: u8) -> MacAddr {
    MacAddr([0x0a, 0x58, 0, 0, number, pod])
}

/// Name of pod number `pod` of node number `number`: `default/a-pod1` is the first.
#[must_use]
pub fn pod_name(number: u8, pod: u8) -> String {
    format!("default/{}-pod{}", char::from(b'a' + number), pod + 1)
}

/// The gateway MAC of node number `number`.
#[must_use]
pub fn gateway_mac(number: u8) -> MacAddr {
    Node::default_gateway_mac(&node_addresses(number))
}

/// Node a.
#[must_use]
pub fn node(mode: Mode, underlay: Underlay) -> Node {
    let overhead = match (mode.is_tunnel(), underlay) {
        (false, _) => 0,
        (true, Underlay::Ipv4) => 50,
        (true, Underlay::Ipv6) => 70,
    };
    Node {
        name: "a".into(),
        uplink: "eth0".into(),
        addresses: node_addresses(0),
        mode,
        encap: EncapSettings {
            vni: Vni::new(VNI).unwrap_or_else(|_| unreachable!("24 bits")),
            geneve_port: 6081,
            vxlan_port: 4789,
            underlay,
            udp_checksum: OuterUdpChecksum::Auto,
            accept_zero_udp_checksum_v6: false,
            vxlan_strict: false,
            dscp: OuterDscp::Fixed(0),
            ttl: 64,
        },
        gateway_mac: gateway_mac(0),
        gateway_addresses: vec![
            Ipv4Addr::new(169, 254, 1, 1).into(),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
        ],
        pod_cidrs: pod_cidrs(0),
        cluster_cidrs: vec![
            Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16).into(),
            Ipv6Net::new_assert(Ipv6Addr::new(0xfd12, 0x3456, 0, 0, 0, 0, 0, 0), 48).into(),
        ],
        service_cidrs: Vec::new(),
        underlay_mtu: 1500,
        pod_mtu: 1500 - overhead,
        host_port: Some(HostPort::default()),
        snat: overlane_api::SnatSettings::default(),
        flow_capacity: overlane_api::node::DEFAULT_FLOW_CAPACITY,
    }
}

/// Node number `number` as a peer.
#[must_use]
pub fn peer(number: u8, mode: Mode) -> Peer {
    Peer {
        name: char::from(b'a' + number).to_string(),
        addresses: node_addresses(number),
        pod_cidrs: pod_cidrs(number),
        mode,
        gateway_mac: gateway_mac(number),
    }
}

/// Pod number `pod` of this node, at home on `worker`.
#[must_use]
pub fn local_pod(pod: u8, worker: u8) -> Endpoint {
    Endpoint {
        name: pod_name(0, pod),
        addresses: pod_addresses(0, pod),
        attachment: Attachment::Local {
            interface: format!("pod{}", pod + 1),
            mac: Some(pod_mac(0, pod)),
            worker: Some(WorkerId(worker)),
        },
    }
}

/// Pod number `pod` of node number `number`.
#[must_use]
pub fn remote_pod(number: u8, pod: u8) -> Endpoint {
    Endpoint {
        name: pod_name(number, pod),
        addresses: pod_addresses(number, pod),
        attachment: Attachment::Remote { peer: char::from(b'a' + number).to_string() },
    }
}

/// Two pods here (the second on the last of `workers` workers), peers b and c with a pod each.
#[must_use]
pub fn cluster(mode: Mode, underlay: Underlay, workers: u8) -> Vec<Change> {
    let last = workers.saturating_sub(1);
    vec![
        Change::Set(Object::Node(node(mode, underlay))),
        Change::Set(Object::Peer(peer(1, mode))),
        Change::Set(Object::Peer(peer(2, mode))),
        Change::Set(Object::Endpoint(local_pod(0, 0))),
        Change::Set(Object::Endpoint(local_pod(1, last))),
        Change::Set(Object::Endpoint(remote_pod(1, 0))),
        Change::Set(Object::Endpoint(remote_pod(2, 0))),
    ]
}
