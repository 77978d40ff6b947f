//! Objects -> tables: the only code that does so.
//!
//! The compiler holds the installed objects and the tables made of them. A change touches the
//! entries that depend on it and nothing else. A list of changes is applied as a whole or not at
//! all: what was done before a refusal is undone.

mod announcement;
mod egress;
mod endpoint;
mod names;
mod peer;
mod ranges;
mod service;
pub mod underlay;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use overlane_api::protocol::{ApiError, ErrorCode};
use overlane_api::{Change, Endpoint, Mode, Node, Object, ObjectKey, Peer, WorkerId};

use self::egress::Rules;
use self::names::Names;
use self::ranges::Ranges;
use self::service::Services;
use self::underlay::Underlay;
use super::Snapshot;
use super::endpoints::{EndpointEntry, PortEntry};
use super::node::{HostBinding, NodeEntry, UplinkBinding};
use super::peers::Adjacency;
use super::services::UNASSIGNED;
use crate::packet::meta::{Origin, Route, Target};
use crate::packet::verdict::PortId;

/// What the rest of the process has to do because of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The node was described, or described anew.
    Node,
    /// A peer was added or changed: look up its next hop.
    PeerSet(String),
    /// A peer was removed.
    PeerRemoved(Peer),
    /// A local endpoint was added or changed: attach its interface.
    EndpointSet(String),
    /// A local endpoint was removed: detach its interface.
    EndpointRemoved(String),
    /// Services answer at other addresses, protocols or ports than before.
    Services,
    /// Egress rules were added, changed or removed.
    Egress,
    /// Addresses to answer for on the underlay were added or removed.
    Announcements,
}

/// What is known of a local endpoint's attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Its first port: what leaves to it leaves there.
    pub port: PortId,
    /// How many ports it has, numbered on from the first: one for each queue of its interface.
    pub queues: u16,
    /// Its home worker.
    pub worker: WorkerId,
    /// Its MAC.
    pub mac: overlane_api::MacAddr,
    /// MTU of its interface, bytes.
    pub mtu: u16,
}

#[derive(Debug)]
struct PeerRecord {
    object: Peer,
    index: u32,
    adjacency: Option<Adjacency>,
    /// Largest packet on the way there, if it was learned to be less than the underlay's.
    path_mtu: Option<u16>,
    /// Remote endpoints that are there.
    endpoints: usize,
}

#[derive(Debug)]
struct EndpointRecord {
    object: Endpoint,
    /// Index of a local endpoint.
    index: Option<u32>,
    binding: Option<Binding>,
}

/// How to undo a change: the object as it was, and what had been found out about it.
#[derive(Debug)]
struct Before {
    change: Change,
    /// Of an endpoint.
    binding: Option<Binding>,
    /// Of a peer: the MACs towards its next hop, and the path's MTU.
    peer: (Option<Adjacency>, Option<u16>),
}

/// Objects and the tables made of them.
#[derive(Debug, Default)]
pub struct Compiler {
    workers: usize,
    node: Option<Node>,
    peers: HashMap<String, PeerRecord>,
    peer_names: Names,
    /// Peers by mode.
    peer_modes: HashMap<Mode, usize>,
    pod_ranges: Ranges,
    endpoints: HashMap<String, EndpointRecord>,
    endpoint_names: Names,
    local_endpoints: usize,
    uplink: UplinkBinding,
    host: Option<HostBinding>,
    underlay: Underlay,
    /// Flat mode: addresses of remote endpoints, which have no route of their own, and whose.
    unrouted: HashMap<IpAddr, String>,
    services: Services,
    egress: Rules,
    announcements: BTreeSet<IpAddr>,
    /// Are they in force?
    is_leased: bool,
    tables: Snapshot,
}

impl Compiler {
    /// No objects, for a process of `workers` workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { workers, ..Self::default() }
    }

    /// Applies `changes` in order, all or none.
    ///
    /// # Errors
    /// Says which change is refused and why; nothing is changed then.
    pub fn apply(&mut self, changes: Vec<Change>) -> Result<Vec<Effect>, ApiError> {
        let mut effects = Vec::new();
        let mut undo = Vec::new();
        for change in changes {
            let key = match &change {
                Change::Set(object) => object.key(),
                Change::Remove(key) => key.clone(),
            };
            let before = self.remember(key);
            match self.change(change) {
                Ok(more) => {
                    effects.extend(more);
                    undo.push(before);
                }
                Err(error) => {
                    self.undo(undo);
                    return Err(error);
                }
            }
        }
        if let Err(error) = self.finish_egress() {
            self.undo(undo);
            return Err(error);
        }
        Ok(effects)
    }

    fn undo(&mut self, steps: Vec<Before>) {
        for step in steps.into_iter().rev() {
            self.restore(step);
        }
        // These rules were accepted before.
        let undone = self.finish_egress();
        debug_assert!(undone.is_ok());
    }

    /// What there is of `key` now, and what has been found out about it.
    fn remember(&self, key: ObjectKey) -> Before {
        let mut before = Before { change: Change::Remove(key), binding: None, peer: (None, None) };
        let Change::Remove(key) = &before.change else { return before };
        match key {
            ObjectKey::Endpoint(name) => {
                before.binding = self.endpoints.get(name).and_then(|record| record.binding);
            }
            ObjectKey::Peer(name) => {
                before.peer =
                    self.peers.get(name).map_or((None, None), |r| (r.adjacency, r.path_mtu));
            }
            ObjectKey::Node
            | ObjectKey::Service(_)
            | ObjectKey::Egress(_)
            | ObjectKey::Announcement(_) => {}
        }
        if let Some(object) = self.object(key) {
            before.change = Change::Set(object);
        }
        before
    }

    /// Undoes a change.
    fn restore(&mut self, before: Before) {
        let key = match &before.change {
            Change::Set(object) => object.key(),
            Change::Remove(key) => key.clone(),
        };
        // Not checked: the state is one that was accepted before, if perhaps by another way.
        self.carry_out(before.change);
        match key {
            ObjectKey::Endpoint(name) => self.bind_endpoint(&name, before.binding),
            ObjectKey::Peer(name) => {
                self.set_adjacency(&name, before.peer.0);
                self.set_path_mtu(&name, before.peer.1);
            }
            ObjectKey::Node
            | ObjectKey::Service(_)
            | ObjectKey::Egress(_)
            | ObjectKey::Announcement(_) => {}
        }
    }

    fn change(&mut self, change: Change) -> Result<Vec<Effect>, ApiError> {
        if let Change::Set(object) = &change
            && self.object(&object.key()).as_ref() == Some(object)
        {
            return Ok(Vec::new());
        }
        self.check(&change)?;
        Ok(self.carry_out(change))
    }

    fn check(&self, change: &Change) -> Result<(), ApiError> {
        match change {
            Change::Set(Object::Node(node)) => self.check_node(node),
            Change::Set(Object::Peer(peer)) => self.check_peer(peer),
            Change::Set(Object::Endpoint(endpoint)) => self.check_endpoint(endpoint),
            Change::Set(Object::Service(service)) => self.check_service(service),
            Change::Set(Object::Egress(rule)) => self.check_egress(rule),
            Change::Set(Object::Announcement(one)) => self.check_announcement(one.address),
            Change::Remove(ObjectKey::Node) => self.check_node_removal(),
            Change::Remove(ObjectKey::Peer(name)) => self.check_peer_removal(name),
            Change::Remove(
                ObjectKey::Endpoint(_)
                | ObjectKey::Service(_)
                | ObjectKey::Egress(_)
                | ObjectKey::Announcement(_),
            ) => Ok(()),
        }
    }

    fn carry_out(&mut self, change: Change) -> Vec<Effect> {
        match change {
            Change::Set(Object::Node(node)) => self.set_node(node),
            Change::Set(Object::Peer(peer)) => self.set_peer(peer),
            Change::Set(Object::Endpoint(endpoint)) => self.set_endpoint(endpoint),
            Change::Set(Object::Service(service)) => self.set_service(service),
            Change::Set(Object::Egress(rule)) => self.set_egress(rule),
            Change::Set(Object::Announcement(one)) => self.set_announcement(one.address),
            Change::Remove(ObjectKey::Node) => self.remove_node(),
            Change::Remove(ObjectKey::Peer(name)) => self.remove_peer(&name),
            Change::Remove(ObjectKey::Endpoint(name)) => self.remove_endpoint(&name),
            Change::Remove(ObjectKey::Service(name)) => self.remove_service(&name),
            Change::Remove(ObjectKey::Egress(name)) => self.remove_egress(&name),
            Change::Remove(ObjectKey::Announcement(address)) => self.remove_announcement(address),
        }
    }

    /// The installed object of that key.
    #[must_use]
    pub fn object(&self, key: &ObjectKey) -> Option<Object> {
        match key {
            ObjectKey::Node => self.node.clone().map(Object::Node),
            ObjectKey::Peer(name) => self.peers.get(name).map(|r| Object::Peer(r.object.clone())),
            ObjectKey::Endpoint(name) => {
                self.endpoints.get(name).map(|r| Object::Endpoint(r.object.clone()))
            }
            ObjectKey::Service(name) => self.services.get(name).cloned().map(Object::Service),
            ObjectKey::Egress(name) => self.egress.get(name).cloned().map(Object::Egress),
            ObjectKey::Announcement(address) => self.announcement(*address),
        }
    }

    /// Keys and digests of everything installed.
    #[must_use]
    pub fn installed(&self) -> Vec<(ObjectKey, u64)> {
        let keys = self.node.iter().map(|_| ObjectKey::Node);
        let keys = keys.chain(self.peers.keys().cloned().map(ObjectKey::Peer));
        let keys = keys.chain(self.endpoints.keys().cloned().map(ObjectKey::Endpoint));
        let keys = keys.chain(self.services.names().cloned().map(ObjectKey::Service));
        let keys = keys.chain(self.egress.names().cloned().map(ObjectKey::Egress));
        let keys = keys.chain(self.announcements.iter().copied().map(ObjectKey::Announcement));
        keys.filter_map(|key| self.object(&key).map(|object| (key, object.digest()))).collect()
    }

    /// The tables as they are now; cheap.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.tables.clone()
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn set_node(&mut self, node: Node) -> Vec<Effect> {
        if self.node.as_ref().is_some_and(|old| egress::differs_in_action_only(old, &node)) {
            self.node = Some(node);
            self.egress.mark_stale();
            return vec![Effect::Egress];
        }
        self.unroute_node();
        self.node = Some(node);
        self.route_node();
        self.route_underlay();
        self.rebuild_node();
        self.rebuild_peers();
        self.egress.mark_stale();
        let mut effects = vec![Effect::Node];
        // The next hops and the attachments may depend on the uplink, the mode and the MTU.
        effects.extend(self.peers.keys().cloned().map(Effect::PeerSet));
        effects.extend(self.local_names().map(Effect::EndpointSet));
        effects
    }

    fn check_node(&self, node: &Node) -> Result<(), ApiError> {
        egress::check_settings(node)?;
        let refuse = |what: String, field: &str, hint: &str| {
            Err(ApiError::new(ErrorCode::Refused, what)
                .at(format!("node {}: {field}", node.name))
                .hint(hint))
        };
        let own = |route: Route| matches!(route.target(), Target::Host | Target::Gateway);
        let lists =
            [(&node.addresses, "addresses"), (&node.gateway_addresses, "gateway_addresses")];
        for (addresses, field) in lists {
            for address in addresses {
                let old = self.tables.routes.host(*address);
                let gives_way = matches!(old.target(), Target::Underlay(_) | Target::Service(_));
                if old.is_some() && !own(old) && !gives_way {
                    let what = format!("address {address} belongs to {} already", self.owner(old));
                    return refuse(what, field, "no two nodes or pods may share an address");
                }
            }
        }
        for cidr in &node.pod_cidrs {
            if let Some((other, theirs)) = self.overlapping_peer(*cidr, "") {
                let what = format!("pod range {cidr} overlaps {theirs} of node {other}");
                return refuse(what, "podCIDRs", "give every node a range of its own");
            }
        }
        Ok(())
    }

    fn check_node_removal(&self) -> Result<(), ApiError> {
        if !self.peers.is_empty() || !self.endpoints.is_empty() {
            return Err(ApiError::new(
                ErrorCode::Refused,
                format!(
                    "the node still has {} peers and {} endpoints",
                    self.peers.len(),
                    self.endpoints.len()
                ),
            )
            .at("node")
            .hint("remove them first"));
        }
        Ok(())
    }

    fn remove_node(&mut self) -> Vec<Effect> {
        self.unroute_node();
        self.node = None;
        self.route_underlay();
        self.rebuild_node();
        self.egress.mark_stale();
        vec![Effect::Node]
    }

    fn unroute_node(&mut self) {
        let Some(node) = &self.node else { return };
        for cidr in &node.service_cidrs {
            self.tables.routes.set_prefix(*cidr, Route(0));
        }
        let addresses = node.addresses.iter().chain(&node.gateway_addresses);
        for address in addresses.copied().collect::<Vec<_>>() {
            self.tables.routes.set_host(address, Route(0));
            self.route_vip(address);
        }
    }

    fn route_node(&mut self) {
        let Some(node) = &self.node else { return };
        for cidr in &node.service_cidrs {
            self.tables.routes.set_prefix(*cidr, Route::new(Target::Service(UNASSIGNED)));
        }
        for address in &node.addresses {
            self.tables.routes.set_host(*address, Route::new(Target::Host));
        }
        for address in &node.gateway_addresses {
            self.tables.routes.set_host(*address, Route::new(Target::Gateway));
        }
    }

    fn rebuild_node(&mut self) {
        let mut entry = self.node.as_ref().map(NodeEntry::new).unwrap_or_default();
        entry.host = self.host;
        entry.uplink_mac = self.uplink.mac;
        entry.uplinks = NodeEntry::spread_uplinks(&self.uplink, self.workers);
        if self.node.is_some() && !self.uses(Mode::Geneve) {
            entry.geneve_port = 0;
        }
        if self.node.is_some() && !self.uses(Mode::Vxlan) {
            entry.vxlan_port = 0;
        }
        self.tables.node = Arc::new(entry);
    }

    /// Is `mode` the node's or any peer's?
    #[must_use]
    pub fn uses(&self, mode: Mode) -> bool {
        self.node.as_ref().is_some_and(|node| node.mode == mode)
            || self.peer_modes.get(&mode).is_some_and(|count| *count > 0)
    }

    /// Tells where the host port is.
    pub fn bind_host(&mut self, host: Option<HostBinding>) {
        if let Some(old) = self.host.take() {
            self.clear_port(old.port);
        }
        if let Some(new) = &host {
            self.set_port(new.port, Origin::Host, new.worker, 0);
        }
        self.host = host;
        self.rebuild_node();
    }

    /// Tells where the uplink's queues are.
    pub fn bind_uplink(&mut self, uplink: UplinkBinding) {
        for (_, port) in std::mem::take(&mut self.uplink.ports) {
            self.clear_port(port);
        }
        for (worker, port) in &uplink.ports {
            self.set_port(*port, Origin::Uplink, *worker, 0);
        }
        self.uplink = uplink;
        self.rebuild_node();
    }

    /// The uplink's queues.
    #[must_use]
    pub fn uplink(&self) -> &UplinkBinding {
        &self.uplink
    }

    fn set_port(&mut self, port: PortId, origin: Origin, worker: WorkerId, endpoint: u32) {
        let entry = PortEntry { origin, worker, endpoint };
        while self.tables.ports.len() <= port.index() {
            self.tables.ports.push(Self::NO_PORT);
        }
        if let Some(place) = self.tables.ports.get_mut(u32::from(port.0)) {
            *place = entry;
        }
    }

    fn clear_port(&mut self, port: PortId) {
        if let Some(place) = self.tables.ports.get_mut(u32::from(port.0)) {
            *place = Self::NO_PORT;
        }
    }

    /// An unused port number: an endpoint's port whose endpoint does not exist.
    const NO_PORT: PortEntry =
        PortEntry { origin: Origin::Endpoint, worker: WorkerId(0), endpoint: u32::MAX };

    /// Who has `route`, for messages.
    fn owner(&self, route: Route) -> String {
        let name = |names: &Names, index: u32, kind: &str| {
            let name = names.get(index).unwrap_or("unknown");
            format!("{kind} {name}")
        };
        match route.target() {
            Target::Endpoint(index) => name(&self.endpoint_names, index, "endpoint"),
            Target::Peer(index) => name(&self.peer_names, index, "an endpoint of node or node"),
            Target::Host => "this node".into(),
            Target::Gateway => "the pods' gateway".into(),
            Target::Service(vip) => {
                format!("services at {}", self.services.vip_name(vip).unwrap_or("no address"))
            }
            _ => "nobody".into(),
        }
    }
}

/// 0.0.0.0/0 and ::/0.
fn everything() -> [ipnet::IpNet; 2] {
    [ipnet::IpNet::V4(ipnet::Ipv4Net::default()), ipnet::IpNet::V6(ipnet::Ipv6Net::default())]
}

impl Compiler {
    /// A place in the endpoint table.
    fn claim_endpoint(&mut self, name: &str) -> u32 {
        let index = self.endpoint_names.claim(name);
        if index as usize == self.tables.endpoints.len() {
            self.tables.endpoints.push(EndpointEntry::FREE);
        }
        index
    }
}
