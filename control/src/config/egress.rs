//! The part of the configuration that says how pods leave the cluster, as written.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use overlane_api::{PortRange, Timeouts};
use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::one_or_many;
use crate::manifests::selector::Selector;

/// Source NAT, as written.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Snat {
    /// Ports of each address, `10240-29999` unless written.
    pub ports: Option<Ports>,
    /// Destinations that pods reach with their own address, besides all pods.
    #[serde(rename = "nonMasqueradeCIDRs", deserialize_with = "one_or_many")]
    pub non_masquerade: Vec<IpNet>,
    /// What is done with what no rule of `egress` names.
    pub action: Action,
    /// The gateway of `gateways` when `action` is `gateway`.
    pub gateway: Option<String>,
    /// Most ports of one pod.
    pub max_ports_per_pod: Option<u64>,
    /// How long a port rests after a FIN of both sides, seconds.
    pub fin_cooldown: Option<u64>,
    /// How long a port rests after a RST, seconds.
    pub rst_cooldown: Option<u64>,
    /// How long flows are remembered.
    pub timeouts: TimeoutSettings,
}

/// A range of ports, as written: `10240-29999`. Whether it makes sense is judged later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl From<PortRange> for Ports {
    fn from(range: PortRange) -> Self {
        Self { first: range.first().into(), last: range.last().into() }
    }
}

/// What is done with what leaves the cluster, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It leaves with the node's address.
    #[default]
    Node,
    /// It leaves with an address of a gateway.
    Gateway,
    /// It leaves as it is.
    None,
    /// It is dropped.
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Gateway => "gateway",
            Self::None => "none",
            Self::Deny => "deny",
        })
    }
}

/// A NAT gateway, as written.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Its name.
    pub name: String,
    /// Its addresses, 1 to 16.
    #[serde(deserialize_with = "one_or_many")]
    pub addresses: Vec<IpAddr>,
    /// Names of the nodes that hold them, in order of preference.
    pub nodes: Vec<String>,
}

/// A rule for pods that leave the cluster, as written. The first in the list that names a flow
/// decides.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressSetting {
    /// Its name.
    pub name: String,
    /// Labels of the pods it means.
    pub pod_selector: Option<Selector>,
    /// Labels of the namespaces whose pods it means.
    pub namespace_selector: Option<Selector>,
    /// Instead of selectors: pods by address.
    #[serde(rename = "sourceCIDRs", default, deserialize_with = "one_or_many")]
    pub sources: Vec<IpNet>,
    /// Destinations it means; all when empty.
    #[serde(rename = "destinationCIDRs", default, deserialize_with = "one_or_many")]
    pub destinations: Vec<IpNet>,
    /// What is done.
    #[serde(default)]
    pub action: Action,
    /// The gateway of `gateways` when `action` is `gateway`.
    pub gateway: Option<String>,
}

/// How long flows are remembered, as written, seconds. What is not written has the default of
/// [`Timeouts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "each is the field of `Timeouts` with its name")]
pub struct TimeoutSettings {
    pub tcp_syn: Option<u64>,
    pub tcp_handshake: Option<u64>,
    pub tcp_established: Option<u64>,
    pub tcp_fin: Option<u64>,
    pub tcp_closing: Option<u64>,
    pub tcp_reset: Option<u64>,
    pub udp_one_way: Option<u64>,
    pub udp: Option<u64>,
    pub udp_dns: Option<u64>,
    pub icmp: Option<u64>,
    pub sctp_established: Option<u64>,
    pub sctp: Option<u64>,
    pub other: Option<u64>,
    pub fragments: Option<u64>,
}

impl TimeoutSettings {
    /// Each one's name, what is written, and where it goes.
    pub fn fields<'a>(
        &self,
        into: &'a mut Timeouts,
    ) -> [(&'static str, Option<u64>, &'a mut u32); 14] {
        [
            ("snat.timeouts.tcpSyn", self.tcp_syn, &mut into.tcp_syn),
            ("snat.timeouts.tcpHandshake", self.tcp_handshake, &mut into.tcp_handshake),
            ("snat.timeouts.tcpEstablished", self.tcp_established, &mut into.tcp_established),
            ("snat.timeouts.tcpFin", self.tcp_fin, &mut into.tcp_fin),
            ("snat.timeouts.tcpClosing", self.tcp_closing, &mut into.tcp_closing),
            ("snat.timeouts.tcpReset", self.tcp_reset, &mut into.tcp_reset),
            ("snat.timeouts.udpOneWay", self.udp_one_way, &mut into.udp_one_way),
            ("snat.timeouts.udp", self.udp, &mut into.udp),
            ("snat.timeouts.udpDns", self.udp_dns, &mut into.udp_dns),
            ("snat.timeouts.icmp", self.icmp, &mut into.icmp),
            ("snat.timeouts.sctpEstablished", self.sctp_established, &mut into.sctp_established),
            ("snat.timeouts.sctp", self.sctp, &mut into.sctp),
            ("snat.timeouts.other", self.other, &mut into.other),
            ("snat.timeouts.fragments", self.fragments, &mut into.fragments),
        ]
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct PortsVisitor;
        impl Visitor<'_> for PortsVisitor {
            type Value = Ports;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a range of ports such as 10240-29999")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ports, E> {
                let port = |text: &str| text.trim().parse::<u64>().ok();
                let both = text.split_once('-');
                both.and_then(|(first, last)| {
                    Some(Ports { first: port(first)?, last: port(last)? })
                })
                .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        source.deserialize_any(PortsVisitor)
    }
}
