//! Announced addresses: which there are, which nodes can answer for each, and the one that does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use overlane_api::{Announcement, FrontendKind, Object, ObjectKey, Scope, Service};
use serde::{Deserialize, Serialize};

use super::backends::Candidates;
use super::objects::Objects;
use crate::election::elect;
use crate::membership::Members;
use crate::validate::{NatGateway, Validated};

/// What a service port asks of whoever answers for its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    address: IpAddr,
    /// The service port.
    port: String,
    /// The only nodes that serve it, under the policy Local; none: all do.
    nodes: Option<BTreeSet<String>>,
}

/// What `service` asks for: its addresses on the node network of the kinds that are announced.
pub(super) fn wishes(
    service: &Service,
    candidates: &Candidates<'_>,
    config: &Validated,
) -> Vec<Wish> {
    let is_announced = |kind| match kind {
        FrontendKind::LoadBalancer => config.announce.load_balancer,
        FrontendKind::ExternalIp => config.announce.external,
        FrontendKind::ClusterIp | FrontendKind::NodePort => false,
    };
    let frontends = service.frontends.iter();
    let announced = frontends
        .filter(|frontend| is_announced(frontend.kind) && is_on_link(frontend.address, config));
    let wish = |address: IpAddr| Wish {
        address,
        port: service.name.clone(),
        nodes: (service.external == Scope::Local).then(|| candidates.nodes(address.is_ipv4())),
    };
    announced.map(|frontend| wish(frontend.address)).collect()
}

fn is_on_link(address: IpAddr, config: &Validated) -> bool {
    config.node_cidrs.iter().any(|range| range.contains(&address))
}

/// An announced address.
#[derive(Debug, Default)]
struct Entry {
    /// By service port.
    wishes: BTreeMap<String, Option<BTreeSet<String>>>,
    /// Of a gateway's address.
    gateway: Option<NatGateway>,
    /// Who answers for it.
    holder: Option<String>,
    /// A node or a pod has it itself.
    is_taken: bool,
}

/// All announced addresses.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    own: String,
    entries: BTreeMap<IpAddr, Entry>,
    /// Addresses that a service asks for.
    of_service: BTreeMap<String, Vec<Wish>>,
    dirty: BTreeSet<IpAddr>,
}

/// Who answers for an announced address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncementStatus {
    /// The address.
    pub address: IpAddr,
    /// The node that answers for it; absent: none that is ready can.
    pub node: Option<String>,
    /// Does this node answer for it now? One that has just become ready waits until others have
    /// heard of it.
    pub here: bool,
    /// The service ports at the address.
    pub services: Vec<String>,
    /// The NAT gateway whose address it is.
    pub gateway: Option<String>,
}

impl Announcements {
    pub(super) fn new(config: &Validated) -> Self {
        let mut all = Self { own: config.node_name.clone(), ..Self::default() };
        if config.announce.nat_gateway {
            for gateway in &config.gateways {
                for address in &gateway.addresses {
                    if is_on_link(*address, config) {
                        all.entries.entry(*address).or_default().gateway = Some(gateway.clone());
                        all.dirty.insert(*address);
                    }
                }
            }
        }
        all
    }

    /// Replaces what a service asks for.
    pub(super) fn set_service(&mut self, name: &str, wishes: Vec<Wish>) {
        let before = self.of_service.remove(name).unwrap_or_default();
        if before == wishes {
            if !wishes.is_empty() {
                self.of_service.insert(name.to_owned(), before);
            }
            return;
        }
        for Wish { address, port, .. } in before {
            self.dirty.insert(address);
            if let Some(entry) = self.entries.get_mut(&address) {
                entry.wishes.remove(&port);
            }
        }
        for Wish { address, port, nodes } in &wishes {
            self.dirty.insert(*address);
            let entry = self.entries.entry(*address).or_default();
            entry.wishes.insert(port.clone(), nodes.clone());
        }
        if !wishes.is_empty() {
            self.of_service.insert(name.to_owned(), wishes);
        }
    }

    /// Whoever answered for any address may not any more.
    pub(super) fn mark_all(&mut self) {
        self.dirty.extend(self.entries.keys().copied());
    }

    /// Elects anew where something has changed.
    pub(super) fn compile(
        &mut self,
        config: &Validated,
        members: &Members,
        is_taken: impl Fn(IpAddr) -> bool,
        objects: &mut Objects,
    ) {
        for address in std::mem::take(&mut self.dirty) {
            let Some(entry) = self.entries.get_mut(&address) else { continue };
            if entry.wishes.is_empty() && entry.gateway.is_none() {
                self.entries.remove(&address);
                objects.remove(&ObjectKey::Announcement(address));
                continue;
            }
            entry.is_taken = is_taken(address);
            entry.holder = entry.elect(address, members, &config.node_name);
            if entry.holder.as_ref() == Some(&config.node_name) && members.may_answer() {
                objects.set(Object::Announcement(Announcement { address }));
            } else {
                objects.remove(&ObjectKey::Announcement(address));
            }
        }
    }

    pub(super) fn status(&self, members: &Members) -> Vec<AnnouncementStatus> {
        let status = |(address, entry): (&IpAddr, &Entry)| AnnouncementStatus {
            address: *address,
            node: entry.holder.clone(),
            here: entry.holder.as_ref() == Some(&self.own) && members.may_answer(),
            services: entry.wishes.keys().cloned().collect(),
            gateway: entry.gateway.as_ref().map(|gateway| gateway.name.clone()),
        };
        self.entries.iter().filter(|(_, entry)| !entry.is_taken).map(status).collect()
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        let nobody = self.entries.iter().filter(|(_, e)| e.holder.is_none() && !e.is_taken);
        nobody.map(|(address, entry)| entry.complaint(*address)).collect()
    }
}

impl Entry {
    /// Who answers for the address; none: nobody can.
    fn elect(&self, address: IpAddr, members: &Members, own: &str) -> Option<String> {
        if self.is_taken {
            return None;
        }
        if let Some(gateway) = &self.gateway {
            return gateway.nodes.iter().find(|node| members.is_ready(node)).cloned();
        }
        let Some(ready) = members.ready() else {
            // Without membership no service's address is announced.
            return Some(own.to_owned());
        };
        let limits: Vec<&BTreeSet<String>> = self.wishes.values().flatten().collect();
        let all_serve = |node: &&str| limits.iter().all(|nodes| nodes.contains(*node));
        let some_serve = |node: &&str| limits.iter().any(|nodes| nodes.contains(*node));
        let best = elect(address, ready.clone().filter(all_serve));
        let best = best.or_else(|| elect(address, ready.clone().filter(some_serve)));
        // Ports that any node serves are served at least.
        let is_free = self.wishes.values().any(Option::is_none);
        best.or_else(|| if is_free { elect(address, ready) } else { None }).map(str::to_owned)
    }

    fn complaint(&self, address: IpAddr) -> String {
        if let Some(gateway) = &self.gateway {
            let nodes = gateway.nodes.join(", ");
            return format!(
                "nobody answers for {address} of gateway {}: none of its nodes {nodes} is live; see overlane node list",
                gateway.name
            );
        }
        let ports: Vec<&str> = self.wishes.keys().map(String::as_str).collect();
        let ports = ports.join(", ");
        let nodes: BTreeSet<&str> =
            self.wishes.values().flatten().flatten().map(String::as_str).collect();
        let why = if self.wishes.values().all(Option::is_some) {
            if nodes.is_empty() {
                "it has no ready endpoint, and externalTrafficPolicy is Local".to_owned()
            } else {
                let nodes = nodes.into_iter().collect::<Vec<_>>().join(", ");
                format!(
                    "only {nodes} serve it (externalTrafficPolicy Local), and none of them is live; see overlane node list"
                )
            }
        } else {
            "no node is live; see overlane node list".to_owned()
        };
        format!("nobody answers for {address} of {ports}: {why}")
    }
}

#[cfg(test)]
#[path = "announce_tests.rs"]
mod tests;
