//! EndpointSlice: some endpoints of a service, with their conditions and hints.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use overlane_api::Protocol;

use super::{ManifestError, ManifestKey, field, number, service};

/// Label: the service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A port of all endpoints of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service's port.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number, 1 to 65535.
    pub port: u16,
}

/// How an endpoint is, with the defaults of KEP-1669 for what is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// Takes new connections.
    pub ready: bool,
    /// Answers.
    pub serving: bool,
    /// Is on its way out.
    pub terminating: bool,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// How it is.
    pub conditions: Conditions,
    /// The node it is on; empty when not said.
    pub node: String,
    /// Nodes that should use it.
    pub for_nodes: Vec<String>,
    /// Zones that should use it.
    pub for_zones: Vec<String>,
}

/// A slice, as far as Overlane uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceManifest {
    /// `namespace/name`.
    pub name: String,
    /// `namespace/name` of its service; absent: it belongs to none.
    pub service: Option<String>,
    /// Its ports; those without a number are left out.
    pub ports: Vec<SlicePort>,
    /// Its endpoints; none when its addresses are names.
    pub endpoints: Vec<SliceEndpoint>,
}

/// Takes from an EndpointSlice what Overlane uses.
///
/// # Errors
/// [`ManifestError`] names the field.
pub fn translate(slice: EndpointSlice) -> Result<SliceManifest, ManifestError> {
    let meta = &slice.metadata;
    let name = super::namespaced(meta, "EndpointSlice")?;
    let key = ManifestKey::EndpointSlice(name.clone());
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let service = meta.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    let service = service.map(|service| format!("{namespace}/{service}"));
    let is_ipv4 = match slice.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        "FQDN" => {
            return Ok(SliceManifest { name, service, ports: Vec::new(), endpoints: Vec::new() });
        }
        other => return Err(super::wrong(&key, "addressType", other, "IPv4, IPv6 or FQDN")),
    };
    let mut ports = Vec::new();
    for port in slice.ports.iter().flatten() {
        let Some(written) = port.port else { continue };
        ports.push(SlicePort {
            name: port.name.clone().unwrap_or_default(),
            protocol: service::protocol(&key, "ports.protocol", port.protocol.as_deref())?,
            port: number(&key, "ports.port", written)?,
        });
    }
    let mut endpoints = Vec::with_capacity(slice.endpoints.len());
    for written in slice.endpoints {
        endpoints.extend(endpoint(&key, written, is_ipv4)?);
    }
    Ok(SliceManifest { name, service, ports, endpoints })
}

fn endpoint(
    key: &ManifestKey,
    written: Endpoint,
    is_ipv4: bool,
) -> Result<Option<SliceEndpoint>, ManifestError> {
    // Only the first address counts (EndpointSlice API).
    let Some(text) = written.addresses.first() else { return Ok(None) };
    let wanted = if is_ipv4 { "an IPv4 address" } else { "an IPv6 address" };
    let address: IpAddr = field(key, "endpoints.addresses", wanted, text)?;
    if address.is_ipv4() != is_ipv4 {
        return Err(super::wrong(key, "endpoints.addresses", text, wanted));
    }
    let conditions = written.conditions.unwrap_or_default();
    let hints = written.hints.unwrap_or_default();
    Ok(Some(SliceEndpoint {
        address,
        conditions: Conditions {
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
        },
        node: written.node_name.unwrap_or_default(),
        for_nodes: hints.for_nodes.into_iter().flatten().map(|node| node.name).collect(),
        for_zones: hints.for_zones.into_iter().flatten().map(|zone| zone.name).collect(),
    }))
}
