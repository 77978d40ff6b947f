//! Endpoints: each address a host route; a local one also a place in the endpoint table.

use std::net::IpAddr;
use std::sync::Arc;

use overlane_api::protocol::{ApiError, ErrorCode};
use overlane_api::{Attachment, Endpoint, Mode};

use super::{Binding, Compiler, Effect, EndpointRecord};
use crate::packet::meta::{Origin, Route, Target};
use crate::packet::verdict::PortId;
use crate::tables::endpoints::EndpointEntry;

/// The ports of an attachment.
fn ports_of(binding: Binding) -> impl Iterator<Item = PortId> {
    (0..binding.queues.max(1)).map(move |queue| PortId(binding.port.0.saturating_add(queue)))
}

impl Compiler {
    pub(super) fn set_endpoint(&mut self, endpoint: Endpoint) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut kept = None;
        if let Some(old) = self.endpoints.get(&endpoint.name) {
            if old.object.attachment == endpoint.attachment {
                // Only the addresses changed: the pod keeps its port.
                kept = old.binding;
                self.take_out(&endpoint.name);
            } else {
                effects = self.remove_endpoint(&endpoint.name);
            }
        }
        let name = endpoint.name.clone();
        self.put_in(endpoint);
        if kept.is_some() {
            self.bind_endpoint(&name, kept);
        }
        if self.endpoints.get(&name).is_some_and(|record| record.index.is_some()) {
            effects.push(Effect::EndpointSet(name));
        }
        effects
    }

    pub(super) fn check_endpoint(&self, endpoint: &Endpoint) -> Result<(), ApiError> {
        let refuse = |what: String, field: &str, hint: &str| {
            Err(ApiError::new(ErrorCode::Refused, what)
                .at(format!("endpoint {}: {field}", endpoint.name))
                .hint(hint))
        };
        let families = |v4: bool| endpoint.addresses.iter().filter(|a| a.is_ipv4() == v4).count();
        if endpoint.addresses.is_empty() || families(true) > 1 || families(false) > 1 {
            let what = format!("{} addresses", endpoint.addresses.len());
            return refuse(what, "addresses", "give one of each family, at least one in all");
        }
        if let Attachment::Remote { peer } = &endpoint.attachment
            && !self.peers.contains_key(peer)
        {
            let what = format!("its node {peer} is not known");
            return refuse(what, "attachment", "add that node first");
        }
        let own = self.endpoints.get(&endpoint.name).map(|record| &record.object.addresses);
        for address in &endpoint.addresses {
            let taken = self.tables.routes.host(*address);
            let is_own = own.is_some_and(|own| own.contains(address));
            let usable = !address.is_unspecified() && !address.is_multicast();
            if !usable {
                let what = format!("{address} is no pod's address");
                return refuse(what, "addresses", "give a unicast address");
            }
            let gives_way = matches!(taken.target(), Target::Underlay(_) | Target::Service(_));
            let owner = if taken.is_some() && !gives_way {
                Some(self.owner(taken))
            } else {
                // Flat mode: these have no route of their own.
                let endpoint = self.unrouted.get(address).map(|name| format!("endpoint {name}"));
                endpoint.or_else(|| Some(format!("node {}", self.peer_at(*address)?.name)))
            };
            if let Some(owner) = owner.filter(|_| !is_own) {
                let what = format!("address {address} belongs to {owner} already");
                return refuse(what, "addresses", "no two pods or nodes may share an address");
            }
        }
        Ok(())
    }

    fn put_in(&mut self, endpoint: Endpoint) {
        let name = endpoint.name.clone();
        let mut record = EndpointRecord { object: endpoint, index: None, binding: None };
        let route = match &record.object.attachment {
            Attachment::Local { worker, .. } => {
                let index = self.claim_endpoint(&name);
                let mut entry = EndpointEntry::FREE;
                for address in &record.object.addresses {
                    match address {
                        IpAddr::V4(address) => entry.v4 = address.to_bits(),
                        IpAddr::V6(address) => entry.v6 = address.to_bits(),
                    }
                }
                entry.worker = worker.unwrap_or_default();
                if let Some(place) = self.tables.endpoints.get_mut(index) {
                    *place = entry;
                }
                self.settle(&entry);
                self.local_endpoints += 1;
                record.index = Some(index);
                Route::new(Target::Endpoint(index))
            }
            Attachment::Remote { peer } => {
                let peer = self.peers.get_mut(peer);
                peer.map_or(Route(0), |peer| {
                    peer.endpoints += 1;
                    Self::remote_route(peer.object.mode, peer.index)
                })
            }
        };
        for address in &record.object.addresses {
            self.forget_next_hop(*address);
            self.tables.routes.set_host(*address, route);
            if !route.is_some() {
                self.unrouted.insert(*address, name.clone());
            }
        }
        self.endpoints.insert(name, record);
    }

    /// The route of a remote endpoint: its node; in flat mode the endpoint is its own next hop,
    /// which the route to everything finds.
    pub(super) fn remote_route(mode: Mode, peer: u32) -> Route {
        if mode == Mode::Flat { Route(0) } else { Route::new(Target::Peer(peer)) }
    }

    /// Takes an endpoint's entries out of the tables; its record is returned.
    fn take_out(&mut self, name: &str) -> Option<EndpointRecord> {
        let record = self.endpoints.remove(name)?;
        for address in &record.object.addresses {
            self.unrouted.remove(address);
            // A remote endpoint of flat mode has no route, but perhaps a next hop.
            self.forget_next_hop(*address);
            self.tables.routes.set_host(*address, Route(0));
            self.route_vip(*address);
        }
        if let Some(index) = record.index {
            if let Some(place) = self.tables.endpoints.get_mut(index) {
                let homes = Arc::make_mut(&mut self.tables.homes);
                homes.v4.remove(place.v4);
                homes.v6.remove(place.v6);
                *place = EndpointEntry::FREE;
            }
            self.endpoint_names.release(index);
            self.local_endpoints -= 1;
            if let Some(binding) = record.binding {
                self.clear_ports(binding);
            }
        }
        if let Attachment::Remote { peer } = &record.object.attachment
            && let Some(peer) = self.peers.get_mut(peer)
        {
            peer.endpoints -= 1;
        }
        Some(record)
    }

    pub(super) fn remove_endpoint(&mut self, name: &str) -> Vec<Effect> {
        match self.take_out(name) {
            Some(record) if record.index.is_some() => {
                vec![Effect::EndpointRemoved(name.to_owned())]
            }
            _ => Vec::new(),
        }
    }

    /// Tells where a local endpoint is attached; none: nowhere any more.
    pub fn bind_endpoint(&mut self, name: &str, binding: Option<Binding>) {
        let Some(record) = self.endpoints.get_mut(name) else { return };
        let Some(index) = record.index else { return };
        let old = std::mem::replace(&mut record.binding, binding);
        if let Some(place) = self.tables.endpoints.get_mut(index) {
            place.port = binding.map(|binding| binding.port);
            if let Some(binding) = binding {
                place.mac = binding.mac;
                place.mtu = binding.mtu;
                place.worker = binding.worker;
            }
            let entry = *place;
            self.settle(&entry);
        }
        if let Some(old) = old {
            self.clear_ports(old);
        }
        if let Some(binding) = binding {
            for port in ports_of(binding) {
                self.set_port(port, Origin::Endpoint, binding.worker, index);
            }
        }
    }

    /// Says where a local endpoint is at home.
    fn settle(&mut self, entry: &EndpointEntry) {
        let homes = Arc::make_mut(&mut self.tables.homes);
        if entry.v4 != 0 {
            homes.v4.set(entry.v4, entry.worker);
        }
        if entry.v6 != 0 {
            homes.v6.set(entry.v6, entry.worker);
        }
    }

    fn clear_ports(&mut self, binding: Binding) {
        for port in ports_of(binding) {
            self.clear_port(port);
        }
    }

    /// A local or remote endpoint.
    #[must_use]
    pub fn endpoint(&self, name: &str) -> Option<(&Endpoint, Option<Binding>)> {
        self.endpoints.get(name).map(|record| (&record.object, record.binding))
    }

    /// The local endpoint that has an address.
    #[must_use]
    pub fn local_endpoint_at(&self, address: IpAddr) -> Option<&str> {
        match self.tables.routes.host(address).target() {
            Target::Endpoint(index) => self.endpoint_names.get(index),
            _ => None,
        }
    }

    /// Names of the local endpoints.
    pub fn local_names(&self) -> impl Iterator<Item = String> + '_ {
        self.endpoint_names.iter().map(str::to_owned)
    }

    /// Local and remote endpoints.
    #[must_use]
    pub fn endpoint_counts(&self) -> (usize, usize) {
        (self.local_endpoints, self.endpoints.len() - self.local_endpoints)
    }
}
