//! Node: a node of the cluster, with its underlay addresses and pod ranges.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use overlane_api::{MacAddr, Mode};

use super::{ManifestError, ManifestKey, annotation, field, one_per_family};

/// Annotation: how this node is reached, when it differs from the configured mode.
pub const MODE: &str = "overlane.io/mode";
/// Annotation: the node's gateway MAC, when it differs from the one made of its address.
pub const GATEWAY_MAC: &str = "overlane.io/gateway-mac";

/// Label: the zone that a node is in.
const ZONE: &str = "topology.kubernetes.io/zone";

/// A node, as far as Overlane uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeManifest {
    /// Its name.
    pub name: String,
    /// Its `InternalIP` addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Annotation [`MODE`].
    pub mode: Option<Mode>,
    /// Annotation [`GATEWAY_MAC`].
    pub gateway_mac: Option<MacAddr>,
    /// The zone it is in; empty when not said.
    pub zone: String,
}

/// Takes from a Node what Overlane uses.
///
/// # Errors
/// [`ManifestError`] names the field.
pub fn translate(node: Node) -> Result<NodeManifest, ManifestError> {
    let meta = &node.metadata;
    let name = meta.name.clone().filter(|name| !name.is_empty());
    let name = name.ok_or(ManifestError::NoName { kind: "Node" })?;
    let key = ManifestKey::Node(name.clone());
    let mode = annotation(meta, MODE).map(|value| mode(&key, value)).transpose()?;
    let gateway_mac = annotation(meta, GATEWAY_MAC)
        .map(|value| mac(&key, "annotation overlane.io/gateway-mac", value))
        .transpose()?;
    let zone = meta.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned();
    let mut addresses = Vec::new();
    for address in node.status.and_then(|status| status.addresses).unwrap_or_default() {
        if address.type_ == "InternalIP" {
            addresses.push(field(&key, "status.addresses", "an IP address", &address.address)?);
        }
    }
    one_per_family(&key, "status.addresses", &addresses)?;
    let spec = node.spec.unwrap_or_default();
    let ranges = match spec.pod_cidrs {
        Some(ranges) if !ranges.is_empty() => ranges,
        _ => spec.pod_cidr.into_iter().collect(),
    };
    let mut pod_cidrs = Vec::with_capacity(ranges.len());
    for range in &ranges {
        let range: IpNet = field(&key, "spec.podCIDRs", "a range such as 10.244.1.0/24", range)?;
        pod_cidrs.push(range.trunc());
    }
    let zone = zone.unwrap_or_default();
    Ok(NodeManifest { name, addresses, pod_cidrs, mode, gateway_mac, zone })
}

fn mode(key: &ManifestKey, value: &str) -> Result<Mode, ManifestError> {
    serde_yaml_ng::from_str(value).map_err(|_| ManifestError::Field {
        object: key.clone(),
        field: "annotation overlane.io/mode",
        value: value.to_owned(),
        wanted: "geneve, vxlan, native or flat",
    })
}

/// Parses a MAC that can be an interface's.
pub(super) fn mac(
    key: &ManifestKey,
    name: &'static str,
    value: &str,
) -> Result<MacAddr, ManifestError> {
    let wanted = "a unicast MAC address such as 02:4f:0a:00:01:04";
    let mac: MacAddr = field(key, name, wanted, value)?;
    if mac.is_group() || mac == MacAddr::default() {
        let value = value.to_owned();
        return Err(ManifestError::Field { object: key.clone(), field: name, value, wanted });
    }
    Ok(mac)
}
