//! Nodes, peers and pods: who is where, and that no two have the same address or range.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use overlane_api::{Attachment, Endpoint, Node, Object, ObjectKey, Peer, SnatSettings};

use super::objects::{Remark, Subject};
use super::{Conflict, Context, outside, taken};
use crate::manifests::pod::Standing;
use crate::manifests::{Manifest, ManifestKey, NodeManifest, PodManifest};
use crate::membership::Members;
use crate::sources::Problem;
use crate::validate::{Validated, is_inside, join, overlaps};

type Before = BTreeMap<ObjectKey, Object>;

/// An object on its way in.
struct Candidate {
    object: Object,
    subject: ManifestKey,
    place: String,
    check: Vec<Conflict>,
}

/// Who has which address and range.
#[derive(Debug, Default)]
pub(super) struct Placement {
    addresses: HashMap<IpAddr, String>,
    ranges: Vec<(IpNet, String)>,
    /// Pods that were refused: they are tried again when another one changes.
    refused: BTreeSet<String>,
    /// This node is not known, or cannot be as it should.
    pub(super) incomplete: bool,
}

impl Placement {
    /// Does a node or a pod have `address`, or do pods use it as their gateway?
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Places all nodes and pods anew.
    pub(super) fn rebuild(&mut self, cx: &mut Context<'_>) {
        let before = cx.objects.take_all(|key| {
            matches!(key, ObjectKey::Node | ObjectKey::Peer(_) | ObjectKey::Endpoint(_))
        });
        cx.remarks.clear(|key| matches!(key, ManifestKey::Node(_) | ManifestKey::Pod(_)));
        let gateways = cx.config.gateway_addresses.iter();
        self.addresses = gateways.map(|address| (*address, "gatewayIPs".to_owned())).collect();
        self.ranges.clear();
        self.refused.clear();
        self.incomplete = false;
        self.nodes(cx, &before);
        let candidates = cx.view.pods("").filter_map(|pod| candidate_of(pod, cx)).collect();
        for pod in cx.view.pods("") {
            remark_pending(pod, cx);
        }
        self.admit_all(candidates, &before, cx);
    }

    /// Places the pods of these names, which have changed, and those that were refused.
    pub(super) fn pods(&mut self, mut names: BTreeSet<String>, cx: &mut Context<'_>) {
        names.append(&mut self.refused);
        let mut before = Before::new();
        let mut candidates = Vec::new();
        for name in names {
            let key = ObjectKey::Endpoint(name);
            if let Some(old) = cx.objects.remove(&key) {
                self.release(&old);
                before.insert(key.clone(), old);
            }
            let ObjectKey::Endpoint(name) = key else { continue };
            let subject = Subject::Manifest(ManifestKey::Pod(name.clone()));
            cx.remarks.set(subject, Remark::default());
            if let Some(pod) = cx.view.pod(&name) {
                candidates.extend(candidate_of(pod, cx));
                remark_pending(pod, cx);
            }
        }
        self.admit_all(candidates, &before, cx);
    }

    fn nodes(&mut self, cx: &mut Context<'_>, before: &Before) {
        let mut candidates = Vec::new();
        let mut own_seen = false;
        let view = cx.view;
        let nodes = view.manifests.values().map_while(|(manifest, place)| match manifest {
            Manifest::Node(node) => Some((node, place)),
            _ => None,
        });
        for (node, place) in nodes {
            if node.name == cx.config.node_name {
                own_seen = true;
                candidates.push(own_node(cx.config, cx.members, node, place));
            } else {
                candidates.push(peer(cx.config, node, place));
            }
        }
        if !own_seen {
            match node_without_manifest(cx.config, cx.members) {
                Some(candidate) => candidates.push(candidate),
                None => self.own_node_is_unknown(cx, before),
            }
        }
        self.admit_all(candidates, before, cx);
    }

    fn own_node_is_unknown(&mut self, cx: &mut Context<'_>, before: &Before) {
        let name = &cx.config.node_name;
        let stays = match before.get(&ObjectKey::Node) {
            Some(node) => {
                self.claim(node);
                cx.objects.set(node.clone());
                "what was known of it stays in force"
            }
            None => "nothing is removed until it is known",
        };
        self.incomplete = true;
        let message = format!(
            "there is no Node manifest with the configured nodeName {name}, and no nodeAddresses; {stays}"
        );
        let problem = Problem { place: format!("Node {name}"), message };
        cx.remarks.entry(ManifestKey::Node(name.clone())).problems.push(problem);
    }

    /// Admits first what has not changed, then the rest; of what is refused, the last good
    /// version if it still fits.
    fn admit_all(&mut self, candidates: Vec<Candidate>, before: &Before, cx: &mut Context<'_>) {
        let (same, changed): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|candidate| before.get(&candidate.object.key()) == Some(&candidate.object));
        for candidate in same.into_iter().chain(changed) {
            self.admit(candidate, before, cx);
        }
    }

    fn admit(&mut self, candidate: Candidate, before: &Before, cx: &mut Context<'_>) {
        let Candidate { object, subject, place, mut check } = candidate;
        let key = object.key();
        check.extend(self.collisions(&object));
        if check.is_empty() {
            self.claim(&object);
            cx.objects.set(object);
            return;
        }
        let last_good = before.get(&key).filter(|old| **old != object);
        let last_good = last_good.filter(|old| self.collisions(old).is_empty());
        let stays = match last_good {
            Some(old) => {
                self.claim(old);
                cx.objects.set(old.clone());
                "its last good state stays in force"
            }
            None => "it is left out",
        };
        // A node that is left out would take all of its pods with it.
        if key == ObjectKey::Node && last_good.is_none() {
            self.incomplete = true;
        }
        if let ManifestKey::Pod(name) = &subject {
            self.refused.insert(name.clone());
        }
        let message = format!("{key}: {}; {stays}", join(&check));
        cx.remarks.entry(subject).problems.push(Problem { place, message });
    }

    /// What of `object` another one has.
    fn collisions(&self, object: &Object) -> Vec<Conflict> {
        let Some((field, addresses, ranges)) = claims(object) else { return Vec::new() };
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
        let Some((_, addresses, ranges)) = claims(object) else { return };
        let owner = object.key().to_string();
        self.addresses.extend(addresses.iter().map(|address| (*address, owner.clone())));
        self.ranges.extend(ranges.iter().map(|range| (*range, owner.clone())));
    }

    /// Takes back the claims of a pod.
    fn release(&mut self, object: &Object) {
        let Some((_, addresses, _)) = claims(object) else { return };
        let owner = object.key().to_string();
        for address in addresses {
            if self.addresses.get(address) == Some(&owner) {
                self.addresses.remove(address);
            }
        }
    }
}

/// The addresses, by their field's name, and the ranges that belong to one object only.
fn claims(object: &Object) -> Option<(&'static str, &[IpAddr], &[IpNet])> {
    match object {
        Object::Node(node) => Some(("address", &node.addresses, &node.pod_cidrs)),
        Object::Peer(peer) => Some(("address", &peer.addresses, &peer.pod_cidrs)),
        Object::Endpoint(endpoint) => Some(("podIP", &endpoint.addresses, &[])),
        Object::Service(_) | Object::Egress(_) | Object::Announcement(_) => None,
    }
}

/// This node, when `nodeAddresses` says what its Node would.
fn node_without_manifest(config: &Validated, members: &Members) -> Option<Candidate> {
    if config.node_addresses.is_empty() {
        return None;
    }
    let bare = NodeManifest {
        name: config.node_name.clone(),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        mode: None,
        gateway_mac: None,
        zone: String::new(),
    };
    Some(own_node(config, members, &bare, "nodeAddresses"))
}

fn own_node(
    config: &Validated,
    members: &Members,
    manifest: &NodeManifest,
    place: &str,
) -> Candidate {
    let addresses = if config.node_addresses.is_empty() {
        manifest.addresses.clone()
    } else {
        config.node_addresses.clone()
    };
    let encap = config.encap(&addresses);
    let family_is_4 = encap.underlay == overlane_api::Underlay::Ipv4;
    let mut check = check_node(config, &addresses, &manifest.pod_cidrs);
    if config.mode.is_tunnel()
        && !addresses.is_empty()
        && !addresses.iter().any(|address| address.is_ipv4() == family_is_4)
    {
        let family = if family_is_4 { 4 } else { 6 };
        check.push(Conflict::NoUnderlayAddress { addresses: join(&addresses), family });
    }
    let mac = config.gateway_mac.or(manifest.gateway_mac);
    let action = members.with_holder(&config.snat.action);
    let node = Node {
        name: config.node_name.clone(),
        uplink: config.uplink.clone(),
        mode: manifest.mode.unwrap_or(config.mode),
        gateway_mac: mac.unwrap_or_else(|| Node::default_gateway_mac(&addresses)),
        addresses,
        gateway_addresses: gateways(config, manifest),
        pod_cidrs: manifest.pod_cidrs.clone(),
        cluster_cidrs: config.pod_cidrs.clone(),
        service_cidrs: config.service_cidrs.clone(),
        underlay_mtu: config.underlay_mtu,
        pod_mtu: config.pod_mtu(encap.underlay),
        host_port: config.host_port.clone(),
        snat: SnatSettings { action, ..config.snat.clone() },
        flow_capacity: config.flow_capacity,
        encap,
    };
    let subject = ManifestKey::Node(manifest.name.clone());
    Candidate { object: Object::Node(node), subject, place: place.to_owned(), check }
}

/// The gateway's addresses: those of the config, and the subnet-router anycast address of the node's
/// IPv6 pod range (RFC 4291 section 2.6.1), with which the host is answered when it is the backend
/// of its own request: it has no use for a link-local one there.
fn gateways(config: &Validated, manifest: &NodeManifest) -> Vec<IpAddr> {
    let mut gateways = config.gateway_addresses.clone();
    let is_flat = manifest.mode.unwrap_or(config.mode) == overlane_api::Mode::Flat;
    let router = manifest.pod_cidrs.iter().filter(|range| range.addr().is_ipv6() && !is_flat);
    for address in router.map(IpNet::network) {
        if !gateways.contains(&address) {
            gateways.push(address);
        }
    }
    gateways
}

fn peer(config: &Validated, manifest: &NodeManifest, place: &str) -> Candidate {
    let addresses = manifest.addresses.clone();
    let check = check_node(config, &addresses, &manifest.pod_cidrs);
    let mac = manifest.gateway_mac;
    let peer = Peer {
        name: manifest.name.clone(),
        pod_cidrs: manifest.pod_cidrs.clone(),
        mode: manifest.mode.unwrap_or(config.mode),
        gateway_mac: mac.unwrap_or_else(|| Node::default_gateway_mac(&addresses)),
        addresses,
    };
    let subject = ManifestKey::Node(manifest.name.clone());
    Candidate { object: Object::Peer(peer), subject, place: place.to_owned(), check }
}

fn check_node(config: &Validated, addresses: &[IpAddr], pod_cidrs: &[IpNet]) -> Vec<Conflict> {
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

/// What an attached pod becomes; none while its node is not known.
fn candidate_of(pod: &PodManifest, cx: &Context<'_>) -> Option<Candidate> {
    if pod.standing != Standing::Attached {
        return None;
    }
    let attachment = if pod.node == cx.config.node_name {
        Attachment::Local { interface: pod.interface.clone(), mac: pod.mac, worker: None }
    } else {
        cx.objects.get(&ObjectKey::Peer(pod.node.clone()))?;
        Attachment::Remote { peer: pod.node.clone() }
    };
    let (field, ranges) = cx.config.pod_ranges();
    let check = pod
        .addresses
        .iter()
        .filter(|address| !ranges.iter().any(|range| range.contains(*address)))
        .map(|address| outside("podIP", address, field, ranges))
        .collect();
    let endpoint =
        Endpoint { name: pod.name.clone(), addresses: pod.addresses.clone(), attachment };
    let subject = ManifestKey::Pod(pod.name.clone());
    let place = cx.view.place(&subject).to_owned();
    Some(Candidate { object: Object::Endpoint(endpoint), subject, place, check })
}

/// Says what a pod waits for, if it does.
fn remark_pending(pod: &PodManifest, cx: &mut Context<'_>) {
    let name = &pod.name;
    let text = match pod.standing {
        Standing::Pending if pod.node.is_empty() => format!("Pod {name} waits for a node"),
        Standing::Pending => format!("Pod {name} waits for an address"),
        Standing::Attached
            if pod.node != cx.config.node_name
                && cx.objects.get(&ObjectKey::Peer(pod.node.clone())).is_none() =>
        {
            format!("Pod {name} waits for its node {}, which is not known", pod.node)
        }
        Standing::Attached | Standing::HostNetwork | Standing::Ended => return,
    };
    cx.remarks.entry(ManifestKey::Pod(name.clone())).pending.push(text);
}
