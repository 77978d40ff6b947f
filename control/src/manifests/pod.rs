//! Pod: where it runs, its addresses, and the interface through which its node reaches it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use overlane_api::object::Fnv;
use overlane_api::{MacAddr, Protocol};

use super::selector::Labels;
use super::{ManifestError, ManifestKey, annotation, field, node, one_per_family, service};

/// Annotation: the node's end of the pod's veth.
pub const INTERFACE: &str = "overlane.io/interface";
/// Annotation: the pod's own MAC.
pub const MAC: &str = "overlane.io/mac";
/// Annotation: the pod's share of new connections as a backend, 0 to 65535; 1 when absent.
pub const WEIGHT: &str = "overlane.io/weight";

/// Longest name of a Linux interface, bytes.
pub const MAX_INTERFACE: usize = 15;

/// A pod, as far as Overlane uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodManifest {
    /// `namespace/name`.
    pub name: String,
    /// Should it be attached?
    pub standing: Standing,
    /// The node it runs on; empty while it is not scheduled.
    pub node: String,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The node's end of its veth.
    pub interface: String,
    /// Its own MAC, if written.
    pub mac: Option<MacAddr>,
    /// Its labels.
    pub labels: Labels,
    /// The ports it has names for.
    pub ports: Vec<NamedPort>,
    /// Does it answer? As its condition `Ready` says; without any conditions, as manifests
    /// written by hand have none: yes.
    pub ready: bool,
    /// Is it on its way out?
    pub terminating: bool,
    /// Annotation [`WEIGHT`].
    pub weight: u16,
}

impl PodManifest {
    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.name.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The number of the port that it calls `name`.
    #[must_use]
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let mut ports = self.ports.iter();
        ports.find(|port| port.name == name && port.protocol == protocol).map(|port| port.port)
    }
}

/// A port of a container that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// Should a pod be attached?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Yes.
    Attached,
    /// Not yet: it has no node or no address.
    Pending,
    /// No: it uses its node's own network.
    HostNetwork,
    /// No: it has ended.
    Ended,
}

/// Takes from a Pod what Overlane uses.
///
/// # Errors
/// [`ManifestError`] names the field.
pub fn translate(pod: Pod) -> Result<PodManifest, ManifestError> {
    let meta = &pod.metadata;
    let name = super::namespaced(meta, "Pod")?;
    let key = ManifestKey::Pod(name.clone());
    let weight = annotation(meta, WEIGHT).map_or(Ok(1), |value| {
        field(&key, "annotation overlane.io/weight", "a number from 0 to 65535", value)
    })?;
    let interface = match annotation(meta, INTERFACE) {
        Some(written) => interface(&key, written)?,
        None => default_interface(&name),
    };
    let mac = annotation(meta, MAC)
        .map(|value| node::mac(&key, "annotation overlane.io/mac", value))
        .transpose()?;
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let addresses = addresses(&key, &status)?;
    let ports = named_ports(&key, &spec)?;
    let node = spec.node_name.unwrap_or_default();
    let standing = if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        Standing::Ended
    } else if spec.host_network == Some(true) {
        Standing::HostNetwork
    } else if addresses.is_empty() || node.is_empty() {
        Standing::Pending
    } else {
        Standing::Attached
    };
    Ok(PodManifest {
        name,
        standing,
        node,
        addresses,
        interface,
        mac,
        labels: meta.labels.clone().unwrap_or_default(),
        ports,
        ready: is_ready(&status),
        terminating: meta.deletion_timestamp.is_some(),
        weight,
    })
}

fn is_ready(status: &PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions.is_empty()
        || conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The named ports of all containers that run as long as the pod: init containers that restart
/// are among them (KEP-753).
fn named_ports(key: &ManifestKey, spec: &PodSpec) -> Result<Vec<NamedPort>, ManifestError> {
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(stays);
    let mut ports = Vec::new();
    for container in spec.containers.iter().chain(sidecars) {
        for port in container.ports.iter().flatten() {
            let Some(name) = port.name.clone().filter(|name| !name.is_empty()) else { continue };
            let protocol = port.protocol.as_deref();
            ports.push(NamedPort {
                name,
                protocol: service::protocol(key, "spec.containers.ports.protocol", protocol)?,
                port: super::number(
                    key,
                    "spec.containers.ports.containerPort",
                    port.container_port,
                )?,
            });
        }
    }
    Ok(ports)
}

/// The interface of a pod that says nothing: `ovl` and the first 11 hexadecimal digits of the
/// FNV-1a hash of `namespace/name`.
#[must_use]
pub fn default_interface(name: &str) -> String {
    let digits = format!("{:016x}", Fnv::hash(name.as_bytes()));
    format!("ovl{}", &digits[..11])
}

/// Can Linux have an interface of this name?
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    let wrong = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=MAX_INTERFACE).contains(&name.len())
        && !name.contains(wrong)
        && name != "."
        && name != ".."
}

fn interface(key: &ManifestKey, written: &str) -> Result<String, ManifestError> {
    if is_interface_name(written) {
        return Ok(written.to_owned());
    }
    Err(ManifestError::Field {
        object: key.clone(),
        field: "annotation overlane.io/interface",
        value: written.to_owned(),
        wanted: "an interface name: 1 to 15 bytes without '/', ':' and spaces",
    })
}

fn addresses(key: &ManifestKey, status: &PodStatus) -> Result<Vec<IpAddr>, ManifestError> {
    let mut written: Vec<&str> =
        status.pod_ips.iter().flatten().map(|address| address.ip.as_str()).collect();
    if written.is_empty() {
        written.extend(status.pod_ip.as_deref());
    }
    let mut addresses = Vec::with_capacity(written.len());
    for text in written.into_iter().filter(|text| !text.is_empty()) {
        addresses.push(field(key, "status.podIPs", "an IP address", text)?);
    }
    one_per_family(key, "status.podIPs", &addresses)?;
    Ok(addresses)
}
