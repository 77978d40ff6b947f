//! Peers: pod ranges and node addresses as routes, underlay addresses as permitted sources, and
//! the headers in front of what they are sent.

use std::net::IpAddr;

use ipnet::IpNet;
use overlane_api::protocol::{ApiError, ErrorCode};
use overlane_api::{Attachment, Mode, Peer};

use super::{Compiler, Effect, PeerRecord};
use crate::packet::meta::{Route, Target};
use crate::tables::peers::{Adjacency, PeerEntry};

impl Compiler {
    pub(super) fn set_peer(&mut self, peer: Peer) -> Vec<Effect> {
        let name = peer.name.clone();
        if let Some(record) = self.peers.get(&name) {
            let index = record.index;
            let moved = record.object.mode != peer.mode;
            self.unroute_peer(&name);
            if let Some(record) = self.peers.get_mut(&name) {
                if record.object.addresses != peer.addresses || moved {
                    record.adjacency = None;
                    record.path_mtu = None;
                }
                record.object = peer;
            }
            if moved {
                self.reroute_endpoints(&name, index);
            }
        } else {
            let index = self.peer_names.claim(&name);
            if index as usize == self.tables.peers.len() {
                self.tables.peers.push(PeerEntry::free());
            }
            let record =
                PeerRecord { object: peer, index, adjacency: None, path_mtu: None, endpoints: 0 };
            self.peers.insert(name.clone(), record);
        }
        self.route_peer(&name);
        self.rebuild_peer(&name);
        self.rebuild_node();
        self.refresh_holders();
        vec![Effect::PeerSet(name)]
    }

    pub(super) fn check_peer(&self, peer: &Peer) -> Result<(), ApiError> {
        let refuse = |what: String, field: &str, hint: &str| {
            Err(ApiError::new(ErrorCode::Refused, what)
                .at(format!("peer {}: {field}", peer.name))
                .hint(hint))
        };
        if peer.addresses.is_empty() {
            return refuse("it has no address".into(), "addresses", "give the node's InternalIP");
        }
        let own = self.peers.get(&peer.name).map(|record| &record.object.addresses);
        for address in &peer.addresses {
            let route = self.tables.routes.host(*address);
            let taken = match route.target() {
                Target::None
                | Target::Underlay(_)
                | Target::UnderlayUnknown
                | Target::Service(_) => None,
                _ if own.is_some_and(|own| own.contains(address)) => None,
                _ => Some(self.owner(route)),
            };
            let other = self.peer_at(*address).filter(|other| other.name != peer.name);
            let taken = taken.or_else(|| other.map(|other| format!("node {}", other.name)));
            if let Some(owner) = taken {
                let what = format!("address {address} belongs to {owner} already");
                return refuse(what, "addresses", "no two nodes or pods may share an address");
            }
        }
        for cidr in &peer.pod_cidrs {
            let other = self.overlapping(*cidr, &peer.name);
            if let Some((other, theirs)) = other {
                let what = format!("pod range {cidr} overlaps {theirs} of node {other}");
                return refuse(what, "podCIDRs", "give every node a range of its own");
            }
        }
        let node_mode = self.node.as_ref().map(|node| node.mode);
        if peer.mode == Mode::Flat && node_mode.is_some_and(|mode| mode != Mode::Flat) {
            let what = "its mode is flat, this node's is not".to_owned();
            return refuse(what, "mode", "use native, or make the whole cluster flat");
        }
        Ok(())
    }

    /// The node, this one or a peer other than `except`, that has a range overlapping `cidr`.
    fn overlapping(&self, cidr: IpNet, except: &str) -> Option<(String, IpNet)> {
        let overlaps = |other: &IpNet| other.contains(&cidr) || cidr.contains(other);
        if let Some(node) = &self.node
            && let Some(other) = node.pod_cidrs.iter().find(|other| overlaps(other))
        {
            return Some((node.name.clone(), *other));
        }
        self.overlapping_peer(cidr, except)
    }

    /// The peer other than `except` that has a range overlapping `cidr`.
    pub(super) fn overlapping_peer(&self, cidr: IpNet, except: &str) -> Option<(String, IpNet)> {
        self.pod_ranges.overlapping(cidr, except)
    }

    fn route_peer(&mut self, name: &str) {
        let Some(record) = self.peers.get(name) else { return };
        let (peer, index) = (&record.object, record.index);
        *self.peer_modes.entry(peer.mode).or_default() += 1;
        for cidr in &peer.pod_cidrs {
            self.pod_ranges.insert(*cidr, name);
        }
        for address in &peer.addresses {
            match address {
                IpAddr::V4(v4) => self.tables.peers_v4.set(v4.to_bits(), index + 1),
                IpAddr::V6(v6) => self.tables.peers_v6.set(v6.to_bits(), index + 1),
            };
        }
        if peer.mode == Mode::Flat {
            for address in &peer.addresses {
                // Its route is the one to everything; a service gives way to that too.
                if matches!(self.tables.routes.host(*address).target(), Target::Service(_)) {
                    self.tables.routes.set_host(*address, Route(0));
                }
            }
            return;
        }
        let route = Route::new(Target::Peer(index));
        for address in &peer.addresses {
            self.tables.routes.set_host(*address, route);
        }
        for cidr in &peer.pod_cidrs {
            self.tables.routes.set_prefix(*cidr, route);
        }
        for cidr in peer.pod_cidrs.clone() {
            self.settle_hosts(cidr);
        }
    }

    fn unroute_peer(&mut self, name: &str) {
        self.unroute_ranges(name);
        let addresses = self.peer(name).map(|peer| peer.addresses.clone()).unwrap_or_default();
        for address in addresses {
            self.route_vip(address);
        }
    }

    fn unroute_ranges(&mut self, name: &str) {
        let Some(record) = self.peers.get(name) else { return };
        if let Some(count) = self.peer_modes.get_mut(&record.object.mode) {
            *count -= 1;
        }
        for cidr in &record.object.pod_cidrs {
            self.pod_ranges.remove(*cidr);
        }
        for address in &record.object.addresses {
            match address {
                IpAddr::V4(v4) => self.tables.peers_v4.set(v4.to_bits(), 0),
                IpAddr::V6(v6) => self.tables.peers_v6.set(v6.to_bits(), 0),
            };
        }
        if record.object.mode == Mode::Flat {
            return;
        }
        for address in &record.object.addresses {
            self.tables.routes.set_host(*address, Route(0));
        }
        for cidr in &record.object.pod_cidrs {
            self.tables.routes.set_prefix(*cidr, Route(0));
        }
    }

    /// Gives the remote endpoints of a peer whose mode changed their new routes.
    fn reroute_endpoints(&mut self, name: &str, index: u32) {
        let Some(mode) = self.peers.get(name).map(|record| record.object.mode) else { return };
        let route = Self::remote_route(mode, index);
        for record in self.endpoints.values() {
            if matches!(&record.object.attachment, Attachment::Remote { peer } if peer == name) {
                for address in &record.object.addresses {
                    self.tables.routes.set_host(*address, route);
                    if route.is_some() {
                        self.unrouted.remove(address);
                    } else {
                        self.unrouted.insert(*address, record.object.name.clone());
                    }
                }
            }
        }
    }

    pub(super) fn check_peer_removal(&self, name: &str) -> Result<(), ApiError> {
        match self.peers.get(name) {
            Some(record) if record.endpoints > 0 => Err(ApiError::new(
                ErrorCode::Refused,
                format!("{} endpoints are still there", record.endpoints),
            )
            .at(format!("peer {name}"))
            .hint("remove or move them first")),
            _ => Ok(()),
        }
    }

    pub(super) fn remove_peer(&mut self, name: &str) -> Vec<Effect> {
        self.unroute_peer(name);
        let Some(record) = self.peers.remove(name) else { return Vec::new() };
        if let Some(place) = self.tables.peers.get_mut(record.index) {
            *place = PeerEntry::free();
        }
        self.peer_names.release(record.index);
        self.rebuild_node();
        self.refresh_holders();
        vec![Effect::PeerRemoved(record.object)]
    }

    fn rebuild_peer(&mut self, name: &str) {
        let (Some(node), Some(record)) = (&self.node, self.peers.get(name)) else { return };
        let path_mtu = record.path_mtu.unwrap_or(node.underlay_mtu).min(node.underlay_mtu);
        let entry = PeerEntry::new(node, &record.object, record.adjacency, path_mtu);
        if let Some(place) = self.tables.peers.get_mut(record.index) {
            *place = entry;
        }
    }

    pub(super) fn rebuild_peers(&mut self) {
        let names: Vec<String> = self.peers.keys().cloned().collect();
        for name in names {
            self.rebuild_peer(&name);
        }
    }

    /// Tells the MACs towards a peer's next hop; none: not resolved.
    pub fn set_adjacency(&mut self, name: &str, adjacency: Option<Adjacency>) {
        let Some(record) = self.peers.get_mut(name) else { return };
        if record.adjacency != adjacency {
            record.adjacency = adjacency;
            self.rebuild_peer(name);
        }
    }

    /// Tells the largest packet, bytes, on the way to a peer; none: the underlay's MTU.
    pub fn set_path_mtu(&mut self, name: &str, path_mtu: Option<u16>) {
        let Some(record) = self.peers.get_mut(name) else { return };
        if record.path_mtu != path_mtu {
            record.path_mtu = path_mtu;
            self.rebuild_peer(name);
        }
    }

    /// The peers: the object, the MACs towards its next hop and its table entry.
    pub fn peers(&self) -> impl Iterator<Item = (&Peer, Option<Adjacency>, Option<&PeerEntry>)> {
        self.peers
            .values()
            .map(|record| (&record.object, record.adjacency, self.tables.peers.get(record.index)))
    }

    /// A peer by its name.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.get(name).map(|record| &record.object)
    }

    /// The peer that has an underlay address.
    #[must_use]
    pub fn peer_at(&self, address: IpAddr) -> Option<&Peer> {
        let index = match address {
            IpAddr::V4(v4) => self.tables.peers_v4.get(v4.to_bits()),
            IpAddr::V6(v6) => self.tables.peers_v6.get(v6.to_bits()),
        };
        let name = self.peer_names.get(index.checked_sub(1)?)?;
        self.peer(name)
    }

    /// Peers installed.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }
}
