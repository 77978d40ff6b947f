//! The node's configuration as the user wrote it: one YAML document with the names that
//! Kubernetes and Azure use. Nothing is judged here beyond spelling and syntax; that is
//! [`crate::validate`], which reports everything it refuses at once. For this reason numbers are
//! wider here than the types they become.

pub mod egress;
pub mod membership;

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use overlane_api::{MacAddr, Mode, OuterUdpChecksum, Underlay};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::manifests::{self, Manifest, ReadError};
use egress::{EgressSetting, Gateway, Ports, Snat};
use membership::{Announce, Membership};

/// Why a configuration file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or may not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The text is not a configuration.
    #[error("{path}:{line}:{column}: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1; 0 when the parser did not say.
        line: usize,
        /// Column, from 1; 0 when the parser did not say.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// No document of the file is a configuration.
    #[error("{path} holds no node configuration: every document in it is a Kubernetes manifest or empty; write one document without `kind`, with at least nodeName, uplink, mode and nodeCIDR", path = path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// More than one document is a configuration.
    #[error("{path} holds {count} node configurations: keep one (a document without `kind` is taken for a configuration)", path = path.display())]
    Several {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

/// One node's configuration, as written.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// This node's name in the cluster.
    pub node_name: String,
    /// Interface towards the underlay.
    pub uplink: String,
    /// How other nodes are reached unless their Node says otherwise.
    pub mode: Mode,
    /// Ranges of the node network (the VNet).
    #[serde(rename = "nodeCIDR", deserialize_with = "one_or_many")]
    pub node_cidr: Vec<IpNet>,
    /// Pod ranges of the whole cluster. May be left out in mode flat.
    #[serde(rename = "podCIDR", default, deserialize_with = "one_or_many")]
    pub pod_cidr: Vec<IpNet>,
    /// Service ranges of the cluster.
    #[serde(rename = "serviceCIDR", default, deserialize_with = "one_or_many")]
    pub service_cidr: Vec<IpNet>,
    /// The cluster DNS service's addresses.
    #[serde(rename = "dnsServiceIP", default, deserialize_with = "one_or_many")]
    pub dns_service_ip: Vec<IpAddr>,
    /// VNI of the cluster's network, 24 bits. Default 0.
    #[serde(default)]
    pub vni: u64,
    /// UDP port of the tunnel of `mode`. Default 6081 (Geneve) or 4789 (VXLAN).
    pub tunnel_port: Option<u64>,
    /// Family of the outer header. Default: IPv4 where the node has it.
    #[serde(default, deserialize_with = "underlay")]
    pub underlay: Option<Underlay>,
    /// Largest IP packet the underlay carries, bytes.
    #[serde(rename = "underlayMTU", default = "default_underlay_mtu")]
    pub underlay_mtu: u64,
    /// MTU of the pods' interfaces, bytes. Default: the underlay's less the overhead.
    #[serde(rename = "podMTU")]
    pub pod_mtu: Option<u64>,
    /// Addresses that pods use as their gateway.
    #[serde(rename = "gatewayIPs", default = "default_gateways", deserialize_with = "one_or_many")]
    pub gateway_ips: Vec<IpAddr>,
    /// Source of all frames that pods and peers receive from this node. Default: made from the
    /// node's address.
    #[serde(rename = "gatewayMAC")]
    pub gateway_mac: Option<MacAddr>,
    /// Settings of the outer header.
    #[serde(default)]
    pub outer: Outer,
    /// The veth between the node's own stack and its pods.
    #[serde(default)]
    pub host_port: HostPortSetting,
    /// The node's own underlay addresses. Default: those of the Node manifest with its name.
    #[serde(default, deserialize_with = "one_or_many")]
    pub node_addresses: Vec<IpAddr>,
    /// Source NAT.
    #[serde(default)]
    pub snat: Snat,
    /// NAT gateways.
    #[serde(default)]
    pub gateways: Vec<Gateway>,
    /// Rules for pods that leave the cluster; the first that names a flow decides.
    #[serde(default)]
    pub egress: Vec<EgressSetting>,
    /// Flows that each worker can hold, of each family. Default 262144.
    pub flow_capacity: Option<u64>,
    /// The cluster's NodePorts (kube-apiserver `--service-node-port-range`). Default
    /// 30000-32767.
    pub node_port_range: Option<Ports>,
    /// NodePorts are answered at this node's addresses, and at those of its interfaces that lie
    /// in these ranges.
    #[serde(default, deserialize_with = "one_or_many")]
    pub node_port_addresses: Vec<IpNet>,
    /// Are `externalIPs` of services answered? They let anyone who can write a Service take
    /// over an address (KEP-5707).
    #[serde(rename = "enableExternalIPs", default)]
    pub enable_external_ips: bool,
    /// Which addresses one live node answers for on the node network.
    #[serde(default)]
    pub announce: Announce,
    /// How nodes know which of them live.
    #[serde(default)]
    pub membership: Membership,
}

/// The outer header's settings, as written.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outer {
    /// When the outer UDP checksum is computed: `auto`, `compute` or `zero`.
    pub udp_checksum: OuterUdpChecksum,
    /// DSCP: 0 to 63, or `copy`.
    pub dscp: DscpSetting,
    /// TTL or hop limit, 1 to 255.
    pub ttl: u64,
    /// Accept a zero UDP checksum over IPv6 (RFC 6935).
    pub accept_zero_udp_checksum6: bool,
    /// Drop VXLAN packets whose reserved bits are set.
    pub vxlan_strict: bool,
}

impl Default for Outer {
    fn default() -> Self {
        Self {
            udp_checksum: OuterUdpChecksum::default(),
            dscp: DscpSetting::Fixed(0),
            ttl: 64,
            accept_zero_udp_checksum6: false,
            vxlan_strict: false,
        }
    }
}

/// DSCP of the outer header, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DscpSetting {
    /// Copied from the inner header.
    Copy,
    /// A fixed value.
    Fixed(u64),
}

/// The host port, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPortSetting {
    /// `disabled`: the host cannot reach its pods.
    Disabled,
    /// The host's end of the veth.
    Interface(String),
}

impl Default for HostPortSetting {
    fn default() -> Self {
        Self::Interface(overlane_api::HostPort::default().interface)
    }
}

/// A configuration file: the configuration and the manifests written beside it.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// The configuration.
    pub config: Config,
    /// Manifests found in the same file.
    pub manifests: Vec<Manifest>,
}

/// Reads the configuration file at `path`. Documents with a `kind` are manifests.
///
/// # Errors
/// [`ConfigError`], with the place in the file.
pub fn load(path: &Path) -> Result<ConfigFile, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Reads the configuration `text`; `path` is for messages.
///
/// # Errors
/// [`ConfigError`], with the place in the file.
pub fn parse(path: &Path, text: &str) -> Result<ConfigFile, ConfigError> {
    let syntax = |error: ReadError| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.line,
        column: error.column,
        message: error.message,
    };
    let read = manifests::read_yaml::<Config>(text).map_err(syntax)?;
    let count = read.others.len();
    let mut configs = read.others.into_iter();
    match (configs.next(), count) {
        (Some(config), 1) => Ok(ConfigFile { config, manifests: read.manifests }),
        (None, _) => Err(ConfigError::Absent { path: path.to_owned() }),
        _ => Err(ConfigError::Several { path: path.to_owned(), count }),
    }
}

const fn default_underlay_mtu() -> u64 {
    1500
}

fn default_gateways() -> Vec<IpAddr> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    vec![
        IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    ]
}

/// What a value of a list is called in messages.
trait Named: FromStr {
    const WANTED: &'static str;
}

impl Named for IpNet {
    const WANTED: &'static str = "a range such as 10.244.0.0/16";
}

impl Named for IpAddr {
    const WANTED: &'static str = "an IP address";
}

fn element<T: Named, E: de::Error>(text: &str) -> Result<T, E> {
    text.parse().map_err(|_| E::custom(format!("{text:?} is not {}", T::WANTED)))
}

/// Accepts one value where a list is allowed.
fn one_or_many<'de, T: Named, D: Deserializer<'de>>(source: D) -> Result<Vec<T>, D::Error> {
    struct OneOrMany<T>(PhantomData<T>);
    impl<'de, T: Named> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}, or a list of such", T::WANTED)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            // Azure writes dual-stack ranges as one comma separated value.
            text.split(',').map(|part| element(part.trim())).collect()
        }
        fn visit_unit<E: de::Error>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(text) = list.next_element::<String>()? {
                values.push(element(&text)?);
            }
            Ok(values)
        }
    }
    source.deserialize_any(OneOrMany(PhantomData))
}

/// Accepts `4`, `6`, `"4"` and `"6"`.
fn underlay<'de, D: Deserializer<'de>>(source: D) -> Result<Option<Underlay>, D::Error> {
    struct Family;
    impl Visitor<'_> for Family {
        type Value = Option<Underlay>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("4 or 6, the family of the outer header")
        }
        fn visit_u64<E: de::Error>(self, family: u64) -> Result<Self::Value, E> {
            match family {
                4 => Ok(Some(Underlay::Ipv4)),
                6 => Ok(Some(Underlay::Ipv6)),
                _ => Err(E::invalid_value(de::Unexpected::Unsigned(family), &self)),
            }
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            match text {
                "4" => Ok(Some(Underlay::Ipv4)),
                "6" => Ok(Some(Underlay::Ipv6)),
                _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
            }
        }
    }
    source.deserialize_any(Family)
}

impl<'de> Deserialize<'de> for DscpSetting {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Dscp;
        impl Visitor<'_> for Dscp {
            type Value = DscpSetting;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 63, or `copy`")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<DscpSetting, E> {
                Ok(DscpSetting::Fixed(value))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<DscpSetting, E> {
                if text == "copy" {
                    Ok(DscpSetting::Copy)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
        }
        source.deserialize_any(Dscp)
    }
}

impl<'de> Deserialize<'de> for HostPortSetting {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct HostPort;
        impl<'de> Visitor<'de> for HostPort {
            type Value = HostPortSetting;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`disabled`, or a mapping with `interface`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<HostPortSetting, E> {
                if text == "disabled" {
                    Ok(HostPortSetting::Disabled)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HostPortSetting, A::Error> {
                let written = overlane_api::HostPort::deserialize(
                    de::value::MapAccessDeserializer::new(map),
                )?;
                Ok(HostPortSetting::Interface(written.interface))
            }
        }
        source.deserialize_any(HostPort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "nodeName: a\nuplink: eth0\nmode: geneve\nnodeCIDR: 10.0.0.0/16\n";

    fn read(text: &str) -> Result<Config, String> {
        parse(Path::new("node.yaml"), text)
            .map(|file| file.config)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn scalars_lists_and_comma_lists_are_ranges() {
        let both: Vec<IpNet> =
            vec!["10.244.0.0/16".parse().unwrap(), "fd12:3456::/48".parse().unwrap()];
        for written in ["[10.244.0.0/16, 'fd12:3456::/48']", "10.244.0.0/16,fd12:3456::/48"] {
            assert_eq!(read(&format!("{SMALL}podCIDR: {written}\n")).unwrap().pod_cidr, both);
        }
        assert_eq!(read(&format!("{SMALL}podCIDR: 10.244.0.0/16")).unwrap().pod_cidr, both[..1]);
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = read(SMALL).unwrap();
        assert_eq!(config.underlay_mtu, 1500);
        assert_eq!(config.gateway_ips, default_gateways());
        assert_eq!(config.host_port, HostPortSetting::Interface("overlane0".into()));
        assert_eq!(config.outer, Outer::default());
        assert_eq!((config.vni, config.tunnel_port, config.underlay), (0, None, None));
    }

    #[test]
    fn settings_with_two_spellings_take_both() {
        let text = format!("{SMALL}hostPort: disabled\nunderlay: 6\nouter: {{dscp: copy}}\n");
        let config = read(&text).unwrap();
        assert_eq!(config.host_port, HostPortSetting::Disabled);
        assert_eq!(config.underlay, Some(Underlay::Ipv6));
        assert_eq!(config.outer.dscp, DscpSetting::Copy);
        let text = format!("{SMALL}hostPort: {{interface: pods0}}\nunderlay: '4'\n");
        let config = read(&text).unwrap();
        assert_eq!(config.host_port, HostPortSetting::Interface("pods0".into()));
        assert_eq!(config.underlay, Some(Underlay::Ipv4));
    }

    #[test]
    fn spelling_errors_name_the_place_and_the_word() {
        let error = read(&format!("{SMALL}podCidr: 10.244.0.0/16\n")).unwrap_err();
        assert!(error.starts_with("node.yaml:5:1: unknown field `podCidr`"), "{error}");
        let error = read(&format!("{SMALL}podCIDR: 10.244.0.0/33\n")).unwrap_err();
        assert!(error.contains("\"10.244.0.0/33\" is not a range"), "{error}");
        assert!(read("kind: Node\nmetadata: {name: a}\n").unwrap_err().contains("holds no node"));
        assert!(read(&format!("{SMALL}---\n{SMALL}")).unwrap_err().contains("2 node config"));
        assert!(read("nodeName: [").unwrap_err().starts_with("node.yaml:"));
    }
}
