//! Service: the addresses a set of pods is known by, and the policies for what is sent there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec, ServiceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use overlane_api::{Algorithm, Forwarding, Protocol, Reject, Scope};

use super::{ManifestError, ManifestKey, annotation, field, number};

/// Annotation: how packets from outside reach a backend elsewhere, `snat` or `dsr`.
pub const FORWARDING: &str = "overlane.io/forwarding";
/// Annotation: how a backend is chosen, `maglev` or `random`.
pub const ALGORITHM: &str = "overlane.io/algorithm";
/// Annotation: what a client gets when no backend exists, `rst` or `icmp`.
pub const REJECT: &str = "overlane.io/reject";
/// Annotation of older clusters that means the same as `spec.loadBalancerSourceRanges`.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Session affinity's timeout when none is written, seconds (ClientIPConfig).
const DEFAULT_AFFINITY: u32 = 10_800;
/// Longest session affinity, seconds (ClientIPConfig).
const MAX_AFFINITY: u32 = 86_400;

/// What a Service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// With addresses of its own.
    Addressed,
    /// `clusterIP: None`: DNS answers the pods' addresses; nothing is to be done here.
    Headless,
    /// `type: ExternalName`: DNS answers another name; nothing is to be done here.
    ExternalName,
}

/// Where a port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// To this port of every pod.
    Number(u16),
    /// To the port that each pod itself calls so.
    Name(String),
}

/// Which backends a client prefers (`spec.trafficDistribution`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// Those in its zone: `PreferSameZone`, of old `PreferClose`.
    SameZone,
    /// Those on its node, then those in its zone: `PreferSameNode`.
    SameNode,
    /// A word that is not known here: all the same.
    Unknown(String),
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortManifest {
    /// Its name; may be empty when it is the only one of its protocol.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where the service answers, 1 to 65535.
    pub port: u16,
    /// Where nodes answer, if they do.
    pub node_port: Option<u16>,
    /// Where it leads.
    pub target: TargetPort,
}

/// A service, as far as Overlane uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceManifest {
    /// `namespace/name`.
    pub name: String,
    /// When it was made, seconds since 1970; absent: not by an API server.
    pub created: Option<i64>,
    /// What it is.
    pub kind: ServiceKind,
    /// At most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses that somebody routes to the nodes.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of an external load balancer that arrive here untranslated.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Is there to be a load balancer before it?
    pub is_balanced: bool,
    /// Does the load balancer have an address at which nothing is to be matched here?
    pub is_proxied: bool,
    /// Is each port to have one on every node?
    pub wants_node_ports: bool,
    /// Is it served over IPv4, over IPv6?
    pub families: (bool, bool),
    /// Its ports.
    pub ports: Vec<PortManifest>,
    /// Labels of its pods; empty: it has none of its own.
    pub selector: BTreeMap<String, String>,
    /// `internalTrafficPolicy`.
    pub internal: Scope,
    /// `externalTrafficPolicy`.
    pub external: Scope,
    /// Which backends a client prefers; absent: all the same.
    pub distribution: Option<TrafficDistribution>,
    /// Session affinity by client address, seconds.
    pub affinity_seconds: Option<u32>,
    /// Who may use its load balancer addresses; empty: all.
    pub source_ranges: Vec<IpNet>,
    /// Are pods ready from the start?
    pub publish_not_ready: bool,
    /// Where this node says whether it has ready backends.
    pub health_check_port: Option<u16>,
    /// Annotation [`FORWARDING`].
    pub forwarding: Forwarding,
    /// Annotation [`ALGORITHM`].
    pub algorithm: Algorithm,
    /// Annotation [`REJECT`].
    pub reject: Reject,
}

impl ServiceManifest {
    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.name.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Is it served in the family of `address`?
    #[must_use]
    pub const fn serves(&self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.families.0 } else { self.families.1 }
    }

    /// Name of the object that `port` becomes: `namespace/name:port`.
    #[must_use]
    pub fn object_name(&self, port: &PortManifest) -> String {
        if !port.name.is_empty() {
            return format!("{}:{}", self.name, port.name);
        }
        let same = |other: &&PortManifest| other.name.is_empty() && other.port == port.port;
        if self.ports.iter().filter(same).count() > 1 {
            format!("{}:{}/{}", self.name, port.port, port.protocol)
        } else {
            format!("{}:{}", self.name, port.port)
        }
    }
}

/// Takes from a Service what Overlane uses.
///
/// # Errors
/// [`ManifestError`] names the field.
pub fn translate(service: Service) -> Result<ServiceManifest, ManifestError> {
    let Service { metadata: meta, spec, status } = service;
    let name = super::namespaced(&meta, "Service")?;
    let key = ManifestKey::Service(name.clone());
    let spec = spec.unwrap_or_default();
    let type_ = spec.type_.as_deref().unwrap_or("ClusterIP");
    let wanted = "ClusterIP, NodePort, LoadBalancer or ExternalName";
    let on_nodes = match type_ {
        "ClusterIP" | "ExternalName" => false,
        "NodePort" | "LoadBalancer" => true,
        other => return Err(super::wrong(&key, "spec.type", other, wanted)),
    };
    let (kind, cluster_ips) = cluster_ips(&key, &spec, type_)?;
    let balanced = type_ == "LoadBalancer";
    let load_balancer_ips =
        if balanced { balancer_ips(&key, &spec, status.as_ref())? } else { Vec::new() };
    let external_ips = addresses(&key, "spec.externalIPs", spec.external_ips.as_deref())?;
    let internal =
        scope(&key, "spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref())?;
    let external =
        scope(&key, "spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?;
    // The field may stay behind when type or policy change.
    let is_checked = balanced && external == Scope::Local;
    let health = spec.health_check_node_port.filter(|port| is_checked && *port != 0);
    let health_check_port =
        health.map(|port| number(&key, "spec.healthCheckNodePort", port)).transpose()?;
    let ingress =
        status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let is_proxied = ingress.is_some_and(|ingress| !ingress.is_empty());
    let allocates = spec.allocate_load_balancer_node_ports != Some(false);
    Ok(ServiceManifest {
        is_balanced: balanced,
        is_proxied,
        wants_node_ports: type_ == "NodePort" || (balanced && allocates),
        created: meta.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        kind,
        families: families(&spec, &cluster_ips),
        cluster_ips,
        external_ips,
        load_balancer_ips,
        ports: ports(&key, &spec, on_nodes)?,
        internal,
        external,
        distribution: distribution(&spec),
        affinity_seconds: affinity(&key, &spec)?,
        source_ranges: source_ranges(&key, &meta, &spec)?,
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
        health_check_port,
        forwarding: word(&key, &meta, FORWARDING, "snat or dsr")?,
        algorithm: word(&key, &meta, ALGORITHM, "maglev or random")?,
        reject: word(&key, &meta, REJECT, "rst or icmp")?,
        selector: spec.selector.unwrap_or_default(),
        name,
    })
}

fn cluster_ips(
    key: &ManifestKey,
    spec: &ServiceSpec,
    type_: &str,
) -> Result<(ServiceKind, Vec<IpAddr>), ManifestError> {
    if type_ == "ExternalName" {
        return Ok((ServiceKind::ExternalName, Vec::new()));
    }
    let mut written: Vec<&str> =
        spec.cluster_ips.iter().flatten().map(String::as_str).filter(|ip| !ip.is_empty()).collect();
    if written.is_empty() {
        written.extend(spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty()));
    }
    if written.contains(&"None") {
        return Ok((ServiceKind::Headless, Vec::new()));
    }
    let mut parsed = Vec::with_capacity(written.len());
    for text in written {
        parsed.push(field(key, "spec.clusterIPs", "an IP address or None", text)?);
    }
    super::one_per_family(key, "spec.clusterIPs", &parsed)?;
    Ok((ServiceKind::Addressed, parsed))
}

/// What the load balancer answers at. `ipMode: Proxy` arrives at nodes or pods under other
/// addresses (KEP-1860): then nothing is to be matched.
fn balancer_ips(
    key: &ManifestKey,
    spec: &ServiceSpec,
    status: Option<&ServiceStatus>,
) -> Result<Vec<IpAddr>, ManifestError> {
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let Some(ingress) = ingress.filter(|ingress| !ingress.is_empty()) else {
        let asked = spec.load_balancer_ip.as_deref().filter(|ip| !ip.is_empty());
        let asked: Vec<String> = asked.map(str::to_owned).into_iter().collect();
        return addresses(key, "spec.loadBalancerIP", Some(&asked));
    };
    let mut found = Vec::new();
    for entry in ingress {
        let name = "status.loadBalancer.ingress.ip";
        match entry.ip_mode.as_deref() {
            None | Some("VIP") => found.extend(entry.ip.clone()),
            Some("Proxy") => {}
            Some(other) => {
                let name = "status.loadBalancer.ingress.ipMode";
                return Err(super::wrong(key, name, other, "VIP or Proxy"));
            }
        }
        addresses(key, name, entry.ip.as_ref().map(std::slice::from_ref))?;
    }
    addresses(key, "status.loadBalancer.ingress.ip", Some(&found))
}

fn addresses(
    key: &ManifestKey,
    name: &'static str,
    written: Option<&[String]>,
) -> Result<Vec<IpAddr>, ManifestError> {
    let mut addresses = Vec::new();
    for text in written.unwrap_or_default() {
        let wanted = "an IP address that packets can be sent to";
        let address: IpAddr = field(key, name, wanted, text)?;
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(super::wrong(key, name, text, wanted));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn families(spec: &ServiceSpec, cluster_ips: &[IpAddr]) -> (bool, bool) {
    let written = spec.ip_families.as_deref().unwrap_or_default();
    if !written.is_empty() {
        let has = |family| written.iter().any(|written| written == family);
        return (has("IPv4"), has("IPv6"));
    }
    if cluster_ips.is_empty() {
        return (true, true);
    }
    (cluster_ips.iter().any(IpAddr::is_ipv4), cluster_ips.iter().any(IpAddr::is_ipv6))
}

fn ports(
    key: &ManifestKey,
    spec: &ServiceSpec,
    on_nodes: bool,
) -> Result<Vec<PortManifest>, ManifestError> {
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    for written in spec.ports.iter().flatten() {
        let port = port(key, written, on_nodes)?;
        // An endpoint's port is found by name and protocol.
        if !seen.insert((port.name.clone(), port.protocol)) {
            let named = if port.name.is_empty() { "without a name" } else { port.name.as_str() };
            let wanted = "unique: ports of one protocol need different names";
            return Err(super::wrong(key, "spec.ports.name", named, wanted));
        }
        ports.push(port);
    }
    Ok(ports)
}

fn port(
    key: &ManifestKey,
    written: &ServicePort,
    on_nodes: bool,
) -> Result<PortManifest, ManifestError> {
    let port = number(key, "spec.ports.port", written.port)?;
    let node_port = written.node_port.filter(|port| on_nodes && *port != 0);
    let target = match &written.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(port),
        Some(IntOrString::Int(target)) => {
            TargetPort::Number(number(key, "spec.ports.targetPort", *target)?)
        }
        Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
    };
    Ok(PortManifest {
        name: written.name.clone().unwrap_or_default(),
        protocol: protocol(key, "spec.ports.protocol", written.protocol.as_deref())?,
        port,
        node_port: node_port.map(|port| number(key, "spec.ports.nodePort", port)).transpose()?,
        target,
    })
}

/// A transport protocol; TCP when nothing is written.
pub(super) fn protocol(
    key: &ManifestKey,
    name: &'static str,
    written: Option<&str>,
) -> Result<Protocol, ManifestError> {
    match written {
        None | Some("TCP" | "") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(super::wrong(key, name, other, "TCP, UDP or SCTP")),
    }
}

fn scope(
    key: &ManifestKey,
    name: &'static str,
    written: Option<&str>,
) -> Result<Scope, ManifestError> {
    match written {
        None | Some("Cluster" | "") => Ok(Scope::Cluster),
        Some("Local") => Ok(Scope::Local),
        Some(other) => Err(super::wrong(key, name, other, "Cluster or Local")),
    }
}

fn affinity(key: &ManifestKey, spec: &ServiceSpec) -> Result<Option<u32>, ManifestError> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            return Err(super::wrong(key, "spec.sessionAffinity", other, "None or ClientIP"));
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(written) = config.and_then(|config| config.timeout_seconds) else {
        return Ok(Some(DEFAULT_AFFINITY));
    };
    let seconds = u32::try_from(written).ok().filter(|s| (1..=MAX_AFFINITY).contains(s));
    let name = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let wrong = || super::wrong(key, name, &written.to_string(), "1 to 86400 seconds");
    seconds.map(Some).ok_or_else(wrong)
}

/// What is not known is a preference all the same, and no reason to do without the service.
fn distribution(spec: &ServiceSpec) -> Option<TrafficDistribution> {
    match spec.traffic_distribution.as_deref() {
        None | Some("") => None,
        Some("PreferSameZone" | "PreferClose") => Some(TrafficDistribution::SameZone),
        Some("PreferSameNode") => Some(TrafficDistribution::SameNode),
        Some(other) => Some(TrafficDistribution::Unknown(other.to_owned())),
    }
}

fn source_ranges(
    key: &ManifestKey,
    meta: &ObjectMeta,
    spec: &ServiceSpec,
) -> Result<Vec<IpNet>, ManifestError> {
    let mut written: Vec<&str> =
        spec.load_balancer_source_ranges.iter().flatten().map(|range| range.trim()).collect();
    if written.is_empty() {
        let ranges = annotation(meta, SOURCE_RANGES).unwrap_or_default();
        written.extend(ranges.split(',').map(str::trim).filter(|range| !range.is_empty()));
    }
    let mut ranges = BTreeSet::new();
    for text in written {
        let wanted = "a range such as 203.0.113.0/24";
        let range: IpNet = field(key, "spec.loadBalancerSourceRanges", wanted, text)?;
        ranges.insert(range.trunc());
    }
    Ok(ranges.into_iter().collect())
}

/// An annotation that is one of a few words.
fn word<T: serde::de::DeserializeOwned + Default>(
    key: &ManifestKey,
    meta: &ObjectMeta,
    name: &'static str,
    wanted: &'static str,
) -> Result<T, ManifestError> {
    let Some(written) = annotation(meta, name) else { return Ok(T::default()) };
    serde_yaml_ng::from_value(written.into()).map_err(|_| super::wrong(key, name, written, wanted))
}
