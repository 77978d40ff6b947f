//! How pods leave the cluster: the node's source NAT settings, and rules for some pods or
//! destinations.
//!
//! A new flow from a pod to an address that is no pod, no node of the cluster's own and not in
//! [`SnatSettings::non_masquerade`] takes the action of the first rule, by
//! [`Egress::order`] and then name, that names its source and destination; without one,
//! [`SnatSettings::action`].

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::types::PortRange;

/// What is done with a flow that leaves the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressAction {
    /// It leaves with this node's address of its family.
    #[default]
    Node,
    /// It leaves with an address of a NAT gateway.
    Gateway {
        /// The gateway's addresses, [`Egress::MAX_ADDRESSES`] at most; a pod keeps one of them.
        addresses: Vec<IpAddr>,
        /// Names of the nodes that hold the addresses, in order of preference.
        nodes: Vec<String>,
    },
    /// It leaves as it is.
    None,
    /// It is dropped.
    Deny,
}

/// A rule for flows that leave the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Its name, unique on the node.
    pub name: String,
    /// Rules are asked in ascending order, those of equal order by name.
    pub order: u32,
    /// Pods' addresses or ranges, sorted; empty: all pods.
    pub sources: Vec<IpNet>,
    /// Destinations, sorted; empty: all.
    pub destinations: Vec<IpNet>,
    /// What is done.
    pub action: EgressAction,
}

impl Egress {
    /// Most addresses that a NAT gateway has (Azure NAT gateway: 16 public addresses).
    pub const MAX_ADDRESSES: usize = 16;
}

/// How long a flow is remembered without packets, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP, SYN seen and no answer (RFC 5382 REQ-5).
    pub tcp_syn: u32,
    /// TCP, SYN and SYN/ACK seen (RFC 5382 REQ-5).
    pub tcp_handshake: u32,
    /// TCP established: at least 2 hours and 4 minutes (RFC 5382 REQ-5).
    pub tcp_established: u32,
    /// TCP, FIN of one side (RFC 6146 section 3.5.2).
    pub tcp_fin: u32,
    /// TCP, FIN of both sides (RFC 5382 REQ-5).
    pub tcp_closing: u32,
    /// TCP, RST seen (RFC 7857 section 2.2).
    pub tcp_reset: u32,
    /// UDP without an answer (RFC 4787 REQ-5).
    pub udp_one_way: u32,
    /// UDP in both directions (RFC 4787 REQ-5c).
    pub udp: u32,
    /// UDP to port 53 (RFC 4787 REQ-5a).
    pub udp_dns: u32,
    /// ICMP queries (RFC 5508 REQ-2).
    pub icmp: u32,
    /// SCTP established.
    pub sctp_established: u32,
    /// SCTP otherwise.
    pub sctp: u32,
    /// Other protocols.
    pub other: u32,
    /// Fragments of one datagram.
    pub fragments: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn: 240,
            tcp_handshake: 240,
            tcp_established: 7440,
            tcp_fin: 7440,
            tcp_closing: 240,
            tcp_reset: 240,
            udp_one_way: 120,
            udp: 300,
            udp_dns: 30,
            icmp: 60,
            sctp_established: 7440,
            sctp: 240,
            other: 600,
            fragments: 30,
        }
    }
}

/// Source NAT on this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnatSettings {
    /// Ports (and ICMP identifiers) of each address that flows leave with. Disjoint from the
    /// host's own, which Overlane does not see, and from NodePorts. A tunnel port among them is
    /// never given to UDP: what arrives there is a tunnel packet.
    pub ports: PortRange,
    /// Destinations that pods reach with their own address, sorted.
    pub non_masquerade: Vec<IpNet>,
    /// What is done with a flow that no [`Egress`] rule names.
    pub action: EgressAction,
    /// How long flows are remembered.
    pub timeouts: Timeouts,
    /// A port is not used again towards the same remote for this long after both FINs, seconds,
    /// unless the new SYN's sequence number is ahead (RFC 6191).
    pub fin_cooldown: u32,
    /// The same after a RST, seconds.
    pub rst_cooldown: u32,
    /// Most flows of each family with an external port that one pod has at a time (RFC 6888 REQ-4);
    /// absent: no limit.
    pub max_ports_per_pod: Option<u32>,
}

impl Default for SnatSettings {
    fn default() -> Self {
        Self {
            ports: PortRange::SNAT_DEFAULT,
            non_masquerade: Vec::new(),
            action: EgressAction::Node,
            timeouts: Timeouts::default(),
            fin_cooldown: 65,
            rst_cooldown: 16,
            max_ports_per_pod: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_default() {
        let settings: SnatSettings =
            serde_json::from_str(r#"{"ports":"20000-29999","timeouts":{"udp_dns":5}}"#).unwrap();
        assert_eq!((settings.ports.first(), settings.ports.last()), (20000, 29999));
        assert_eq!((settings.timeouts.udp_dns, settings.timeouts.tcp_established), (5, 7440));
        assert_eq!((settings.fin_cooldown, settings.rst_cooldown), (65, 16));
        assert_eq!(settings.action, EgressAction::Node);
        assert!(serde_json::from_str::<SnatSettings>(r#"{"colour":1}"#).is_err());
    }

    #[test]
    fn actions_are_words_but_for_the_gateway() {
        let gateway = EgressAction::Gateway {
            addresses: vec!["203.0.113.1".parse().unwrap()],
            nodes: vec!["b".into()],
        };
        for (action, text) in [
            (EgressAction::Deny, r#""deny""#),
            (EgressAction::None, r#""none""#),
            (gateway, r#"{"gateway":{"addresses":["203.0.113.1"],"nodes":["b"]}}"#),
        ] {
            assert_eq!(serde_json::to_string(&action).unwrap(), text);
            assert_eq!(serde_json::from_str::<EgressAction>(text).unwrap(), action);
        }
    }
}
