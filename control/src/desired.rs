//! Configuration and manifests together: the objects that the dataplane should have.
//!
//! An object that contradicts the configuration or another object is refused alone: what was
//! right of it before stays in force, and the others are not held up.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use overlane_api::{Attachment, Endpoint, Node, Object, ObjectKey, Peer, SnatSettings};

use crate::manifests::pod::Standing;
use crate::manifests::{Manifest, NodeManifest, PodManifest};
use crate::sources::{Problem, View};
use crate::validate::{Validated, is_inside, join, overlaps};

/// Why one object cannot be as its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// An address or range outside the one it belongs to.
    #[error("{field} {value} is outside {outer_field} {outer}: correct one of the two")]
    Outside {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The configuration's field.
        outer_field: &'static str,
        /// Its value.
        outer: String,
    },
    /// An address or range that another object has.
    #[error(
        "{field} {value} collides with {other_value} of {other}: addresses and ranges belong to one object each"
    )]
    Taken {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The other object.
        other: String,
        /// The other's value.
        other_value: String,
    },
    /// A node that cannot be reached because it has no address.
    #[error("it has no InternalIP in status.addresses: write its address on the node network")]
    NoAddress,
    /// A node without an address of the outer header's family.
    #[error(
        "none of its addresses {addresses} is of the family of `underlay`, IPv{family}: add one, or change underlay"
    )]
    NoUnderlayAddress {
        /// What it has.
        addresses: String,
        /// 4 or 6.
        family: u8,
    },
}

/// What should be, and what of the manifests could not be used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// The objects, in the order in which they are named.
    pub objects: BTreeMap<ObjectKey, Object>,
    /// What is refused, and why.
    pub problems: Vec<Problem>,
    /// What waits for something, in plain words.
    pub pending: Vec<String>,
    /// Read, but of no use to Overlane, in plain words.
    pub notes: Vec<String>,
    /// Then nothing may be removed: something that is absent here may well exist.
    pub incomplete: bool,
}

/// Puts configuration and manifests together. `before` is what was desired until now: where two
/// objects claim the same, the one that has not changed is right.
#[must_use]
pub fn compile(config: &Validated, view: &View, before: &BTreeMap<ObjectKey, Object>) -> Desired {
    let desired = Desired {
        problems: view.problems.clone(),
        notes: view.notes.clone(),
        incomplete: view.incomplete,
        ..Desired::default()
    };
    let mut compiler =
        Compiler { config, before, desired, addresses: BTreeMap::new(), ranges: Vec::new() };
    compiler.gateways();
    compiler.nodes(view);
    compiler.pods(view);
    compiler.desired
}

/// An object on its way in.
struct Candidate<'a> {
    object: Object,
    place: &'a str,
    check: Vec<Conflict>,
}

struct Compiler<'a> {
    config: &'a Validated,
    before: &'a BTreeMap<ObjectKey, Object>,
    desired: Desired,
    /// Who has an address.
    addresses: BTreeMap<IpAddr, String>,
    /// Who has a range.
    ranges: Vec<(IpNet, String)>,
}

impl Compiler<'_> {
    fn gateways(&mut self) {
        for gateway in &self.config.gateway_addresses {
            self.addresses.insert(*gateway, "gatewayIPs".to_owned());
        }
    }

    fn nodes(&mut self, view: &View) {
        let mut candidates = Vec::new();
        let mut own_seen = false;
        for (manifest, place) in view.manifests.values() {
            let Manifest::Node(node) = manifest else { continue };
            if node.name == self.config.node_name {
                own_seen = true;
                candidates.push(self.own_node(node, place));
            } else {
                candidates.push(self.peer(node, place));
            }
        }
        if !own_seen {
            match self.node_without_manifest() {
                Some(candidate) => candidates.push(candidate),
                None => self.own_node_is_unknown(),
            }
        }
        self.admit_all(candidates);
    }

    fn own_node_is_unknown(&mut self) {
        let name = &self.config.node_name;
        let stays = match self.before.get(&ObjectKey::Node) {
            Some(node) => {
                let node = node.clone();
                self.claim(&node);
                self.desired.objects.insert(ObjectKey::Node, node);
                "what was known of it stays in force"
            }
            None => "nothing is removed until it is known",
        };
        self.desired.incomplete = true;
        self.desired.problems.push(Problem {
            place: format!("Node {name}"),
            message: format!(
                "there is no Node manifest with the configured nodeName {name}, and no nodeAddresses; {stays}"
            ),
        });
    }

    /// This node, when `nodeAddresses` says what its Node would.
    fn node_without_manifest(&self) -> Option<Candidate<'static>> {
        if self.config.node_addresses.is_empty() {
            return None;
        }
        let bare = NodeManifest {
            name: self.config.node_name.clone(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            mode: None,
            gateway_mac: None,
        };
        Some(self.own_node(&bare, "nodeAddresses"))
    }

    fn own_node<'b>(&self, manifest: &NodeManifest, place: &'b str) -> Candidate<'b> {
        let config = self.config;
        let addresses = if config.node_addresses.is_empty() {
            manifest.addresses.clone()
        } else {
            config.node_addresses.clone()
        };
        let encap = config.encap(&addresses);
        let family_is_4 = encap.underlay == overlane_api::Underlay::Ipv4;
        let mut check = self.check_node(&addresses, &manifest.pod_cidrs);
        if config.mode.is_tunnel()
            && !addresses.is_empty()
            && !addresses.iter().any(|address| address.is_ipv4() == family_is_4)
        {
            let family = if family_is_4 { 4 } else { 6 };
            check.push(Conflict::NoUnderlayAddress { addresses: join(&addresses), family });
        }
        let mac = config.gateway_mac.or(manifest.gateway_mac);
        let node = Node {
            name: config.node_name.clone(),
            uplink: config.uplink.clone(),
            mode: manifest.mode.unwrap_or(config.mode),
            gateway_mac: mac.unwrap_or_else(|| Node::default_gateway_mac(&addresses)),
            addresses,
            gateway_addresses: config.gateway_addresses.clone(),
            pod_cidrs: manifest.pod_cidrs.clone(),
            cluster_cidrs: config.pod_cidrs.clone(),
            service_cidrs: config.service_cidrs.clone(),
            underlay_mtu: config.underlay_mtu,
            pod_mtu: config.pod_mtu(encap.underlay),
            host_port: config.host_port.clone(),
            snat: SnatSettings::default(),
            flow_capacity: overlane_api::node::DEFAULT_FLOW_CAPACITY,
            encap,
        };
        Candidate { object: Object::Node(node), place, check }
    }

    fn peer<'b>(&self, manifest: &NodeManifest, place: &'b str) -> Candidate<'b> {
        let addresses = manifest.addresses.clone();
        let check = self.check_node(&addresses, &manifest.pod_cidrs);
        let mac = manifest.gateway_mac;
        let peer = Peer {
            name: manifest.name.clone(),
            pod_cidrs: manifest.pod_cidrs.clone(),
            mode: manifest.mode.unwrap_or(self.config.mode),
            gateway_mac: mac.unwrap_or_else(|| Node::default_gateway_mac(&addresses)),
            addresses,
        };
        Candidate { object: Object::Peer(peer), place, check }
    }

    fn check_node(&self, addresses: &[IpAddr], pod_cidrs: &[IpNet]) -> Vec<Conflict> {
        let config = self.config;
        let mut check = Vec::new();
        if addresses.is_empty() {
            check.push(Conflict::NoAddress);
        }
        for address in addresses {
            if !config.node_cidrs.iter().any(|range| range.contains(address)) {
                check.push(outside("address", address, "nodeCIDR", &config.node_cidrs));
            }
        }
        let (field, ranges) = config.pod_ranges();
        for range in pod_cidrs.iter().filter(|range| !is_inside(range, ranges)) {
            check.push(outside("podCIDR", range, field, ranges));
        }
        check
    }

    fn pods(&mut self, view: &View) {
        let mut candidates = Vec::new();
        for (manifest, place) in view.manifests.values() {
            let Manifest::Pod(pod) = manifest else { continue };
            match pod.standing {
                Standing::Attached => candidates.extend(self.endpoint(pod, place)),
                Standing::Pending => {
                    let missing = if pod.node.is_empty() { "a node" } else { "an address" };
                    self.desired.pending.push(format!("Pod {} waits for {missing}", pod.name));
                }
                Standing::HostNetwork | Standing::Ended => {}
            }
        }
        self.admit_all(candidates);
    }

    fn endpoint<'b>(&mut self, pod: &PodManifest, place: &'b str) -> Option<Candidate<'b>> {
        let local = pod.node == self.config.node_name;
        let peer = ObjectKey::Peer(pod.node.clone());
        if !local && !self.desired.objects.contains_key(&peer) {
            let text =
                format!("Pod {} waits for its node {}, which is not known", pod.name, pod.node);
            self.desired.pending.push(text);
            return None;
        }
        let attachment = if local {
            Attachment::Local { interface: pod.interface.clone(), mac: pod.mac, worker: None }
        } else {
            Attachment::Remote { peer: pod.node.clone() }
        };
        let (field, ranges) = self.config.pod_ranges();
        let check = pod
            .addresses
            .iter()
            .filter(|address| !ranges.iter().any(|range| range.contains(*address)))
            .map(|address| outside("podIP", address, field, ranges))
            .collect();
        let endpoint =
            Endpoint { name: pod.name.clone(), addresses: pod.addresses.clone(), attachment };
        Some(Candidate { object: Object::Endpoint(endpoint), place, check })
    }

    /// Admits first what has not changed, then the rest; of what is refused, the last good
    /// version if it still fits.
    fn admit_all(&mut self, candidates: Vec<Candidate<'_>>) {
        let (same, changed): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|candidate| {
            self.before.get(&candidate.object.key()) == Some(&candidate.object)
        });
        for candidate in same.into_iter().chain(changed) {
            self.admit(candidate);
        }
    }

    fn admit(&mut self, candidate: Candidate<'_>) {
        let Candidate { object, place, mut check } = candidate;
        let key = object.key();
        check.extend(self.collisions(&object));
        if check.is_empty() {
            self.claim(&object);
            self.desired.objects.insert(key, object);
            return;
        }
        let last_good = self.before.get(&key).filter(|old| **old != object);
        let last_good = last_good.filter(|old| self.collisions(old).is_empty()).cloned();
        let stays = match last_good {
            Some(old) => {
                self.claim(&old);
                self.desired.objects.insert(key.clone(), old);
                "its last good state stays in force"
            }
            None => "it is left out",
        };
        // A node that is left out would take all of its pods with it.
        if key == ObjectKey::Node && !self.desired.objects.contains_key(&key) {
            self.desired.incomplete = true;
        }
        let message = format!("{key}: {}; {stays}", join(&check));
        self.desired.problems.push(Problem { place: place.to_owned(), message });
    }

    /// What of `object` another one has.
    fn collisions(&self, object: &Object) -> Vec<Conflict> {
        let (field, addresses, ranges) = match object {
            Object::Node(node) => ("address", &node.addresses, node.pod_cidrs.as_slice()),
            Object::Peer(peer) => ("address", &peer.addresses, peer.pod_cidrs.as_slice()),
            Object::Endpoint(endpoint) => ("podIP", &endpoint.addresses, [].as_slice()),
            Object::Service(_) | Object::Egress(_) => return Vec::new(),
        };
        let mut found = Vec::new();
        for address in addresses {
            if let Some(other) = self.addresses.get(address) {
                found.push(taken(field, address, other, address));
            }
        }
        for range in ranges {
            for (other_range, other) in
                self.ranges.iter().filter(|(other, _)| overlaps(range, other))
            {
                found.push(taken("podCIDR", range, other, other_range));
            }
        }
        found
    }

    fn claim(&mut self, object: &Object) {
        let owner = object.key().to_string();
        let (addresses, ranges) = match object {
            Object::Node(node) => (&node.addresses, node.pod_cidrs.as_slice()),
            Object::Peer(peer) => (&peer.addresses, peer.pod_cidrs.as_slice()),
            Object::Endpoint(endpoint) => (&endpoint.addresses, [].as_slice()),
            Object::Service(_) | Object::Egress(_) => return,
        };
        self.addresses.extend(addresses.iter().map(|address| (*address, owner.clone())));
        self.ranges.extend(ranges.iter().map(|range| (*range, owner.clone())));
    }
}

fn outside(
    field: &'static str,
    value: impl ToString,
    outer_field: &'static str,
    outer: &[IpNet],
) -> Conflict {
    Conflict::Outside { field, value: value.to_string(), outer_field, outer: join(outer) }
}

fn taken(
    field: &'static str,
    value: impl ToString,
    other: &str,
    other_value: impl ToString,
) -> Conflict {
    let (value, other_value) = (value.to_string(), other_value.to_string());
    Conflict::Taken { field, value, other: other.to_owned(), other_value }
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
