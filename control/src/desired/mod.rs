//! Configuration and manifests together: the objects that the dataplane should have.
//!
//! An object that contradicts the configuration or another object is refused alone: what was
//! right of it before stays in force, and the others are not held up.
//!
//! A [`Compiler`] keeps what it has made of the manifests so far. An update costs what it
//! changes: a pod its endpoint and the services and rules that choose it, a service or one of
//! its slices that service. Only a node, which is rare, is weighed against all nodes and pods.

mod announce;
mod backends;
mod objects;
mod placement;
mod pods;
mod rules;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use overlane_api::{Object, ObjectKey, PortRange, Underlay};

use crate::manifests::{Manifest, ManifestKey};
use crate::membership::Members;
use crate::membership::agent::Cluster;
use crate::sources::{Problem, Update, View};
use crate::validate::{Validated, join};
pub use announce::AnnouncementStatus;
use announce::Announcements;
use objects::{Objects, Remarks};
use placement::Placement;
use rules::Rules;
use services::Services;

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
    /// An address inside a range that belongs to something else.
    #[error(
        "{field} {value} is inside {outer_field} {outer}: choose an address that no pod can get"
    )]
    Inside {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The configuration's field.
        outer_field: &'static str,
        /// Its value.
        outer: String,
    },
    /// A frontend at this node's own address with a port of source NAT.
    #[error(
        "{field} {value} is this node's own address, and port {port} is one of snat.ports {ports}: choose another port, or other snat.ports"
    )]
    SnatPort {
        /// The field.
        field: &'static str,
        /// The address.
        value: String,
        /// The service's port.
        port: u16,
        /// The ports of source NAT.
        ports: PortRange,
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

/// What this node's share of a service is, for the load balancer that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The TCP port at which it asks.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// What should be, apart from the objects, and what of the manifests could not be used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Account {
    /// What is refused, and why.
    pub problems: Vec<Problem>,
    /// What waits for something, in plain words.
    pub pending: Vec<String>,
    /// Read, but of no use to Overlane, in plain words.
    pub notes: Vec<String>,
    /// Then nothing may be removed: something that is absent here may well exist.
    pub incomplete: bool,
}

/// Keeps the desired objects in step with configuration and manifests.
#[derive(Debug)]
pub struct Compiler {
    config: Validated,
    view: View,
    objects: Objects,
    remarks: Remarks,
    placement: Placement,
    services: Services,
    rules: Rules,
    announcements: Announcements,
    members: Members,
    account: Account,
    /// Moves when the account does.
    revision: u64,
    /// Nothing was taken yet.
    is_new: bool,
}

/// What the parts of a compiler work with.
struct Context<'a> {
    config: &'a Validated,
    view: &'a View,
    objects: &'a mut Objects,
    remarks: &'a mut Remarks,
    announcements: &'a mut Announcements,
    members: &'a Members,
}

impl Compiler {
    /// For a node with this configuration, of which no manifest is known yet.
    #[must_use]
    pub fn new(config: Validated) -> Self {
        Self {
            rules: Rules::new(&config),
            announcements: Announcements::new(&config),
            members: Members::of(&config),
            config,
            view: View::default(),
            objects: Objects::default(),
            remarks: Remarks::default(),
            placement: Placement::default(),
            services: Services::default(),
            account: Account::default(),
            revision: 0,
            is_new: true,
        }
    }

    /// Takes over what has changed. Answers with the keys of the objects that are new, another
    /// than before, or there no more. Where two objects claim the same, the one that has not
    /// changed is right; of two services, the older one.
    pub fn take(&mut self, update: Update) -> Vec<ObjectKey> {
        let sources = (update.problems.clone(), update.notes.clone(), update.incomplete);
        let same_sources = self.view.problems == sources.0
            && self.view.notes == sources.1
            && self.view.incomplete == sources.2;
        let changed = self.view.apply(update);
        let mut nodes = std::mem::take(&mut self.is_new);
        let mut pods = BTreeSet::new();
        for (key, before) in &changed {
            let now = self.view.get(key);
            match key {
                ManifestKey::Node(_) => nodes = true,
                ManifestKey::Pod(name) => {
                    pods.insert(name.clone());
                }
                ManifestKey::Service(_)
                | ManifestKey::EndpointSlice(_)
                | ManifestKey::Namespace(_) => {}
            }
            self.services.note(key, before.as_ref(), now);
            self.rules.note(key);
        }
        let mut cx = Context {
            config: &self.config,
            view: &self.view,
            objects: &mut self.objects,
            remarks: &mut self.remarks,
            announcements: &mut self.announcements,
            members: &self.members,
        };
        if nodes {
            self.placement.rebuild(&mut cx);
            cx.announcements.mark_all();
        } else if !pods.is_empty() {
            self.placement.pods(pods, &mut cx);
        }
        self.services.compile(&mut cx);
        self.rules.compile(&mut cx);
        let is_taken = |address: IpAddr| self.placement.has(address);
        self.announcements.compile(&self.config, &self.members, is_taken, &mut self.objects);
        if self.remarks.take_changed() || !same_sources || nodes {
            self.render();
        }
        self.objects.take_changed()
    }

    /// Takes over the addresses of this machine's interfaces, which may answer NodePorts. Answers
    /// as [`Self::take`].
    pub fn set_addresses(&mut self, addresses: Vec<IpAddr>) -> Vec<ObjectKey> {
        if self.config.host.addresses == addresses || self.config.node_port_addresses.is_empty() {
            return Vec::new();
        }
        self.config.host.addresses = addresses;
        let same = Update {
            changes: BTreeMap::new(),
            problems: self.view.problems.clone(),
            notes: self.view.notes.clone(),
            incomplete: self.view.incomplete,
        };
        self.take(same)
    }

    /// Takes over which nodes can be given something. Answers as [`Self::take`].
    pub fn set_members(&mut self, members: Members) -> Vec<ObjectKey> {
        if self.members == members {
            return Vec::new();
        }
        self.members = members;
        if let Some(Object::Node(node)) = self.objects.get(&ObjectKey::Node) {
            let mut node = node.clone();
            node.snat.action = self.members.with_holder(&self.config.snat.action);
            self.objects.set(Object::Node(node));
        }
        self.rules.note_members();
        self.announcements.mark_all();
        let mut cx = Context {
            config: &self.config,
            view: &self.view,
            objects: &mut self.objects,
            remarks: &mut self.remarks,
            announcements: &mut self.announcements,
            members: &self.members,
        };
        self.rules.compile(&mut cx);
        let is_taken = |address: IpAddr| self.placement.has(address);
        self.announcements.compile(&self.config, &self.members, is_taken, &mut self.objects);
        if self.remarks.take_changed() {
            self.render();
        }
        self.objects.take_changed()
    }

    /// The nodes, and the address at which each is heard: of the family of the outer header.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        let own = match self.objects.get(&ObjectKey::Node) {
            Some(Object::Node(node)) => node.addresses.clone(),
            _ => Vec::new(),
        };
        let is_v4 = self.config.encap(&own).underlay == Underlay::Ipv4;
        let heard = |addresses: &[IpAddr]| {
            addresses.iter().copied().find(|address| address.is_ipv4() == is_v4)
        };
        let others = self.objects.map().values().filter_map(|object| match object {
            Object::Peer(peer) => Some((peer.name.clone(), heard(&peer.addresses))),
            _ => None,
        });
        Cluster {
            own: self.config.node_name.clone(),
            own_address: heard(&own),
            others: others.collect(),
        }
    }

    /// The announced addresses, and who answers for each.
    #[must_use]
    pub fn announcements(&self) -> Vec<AnnouncementStatus> {
        self.announcements.status(&self.members)
    }

    /// Addresses that nobody answers for although somebody should, in plain words.
    #[must_use]
    pub fn announcement_warnings(&self) -> Vec<String> {
        self.announcements.warnings()
    }

    /// The desired objects.
    #[must_use]
    pub const fn objects(&self) -> &BTreeMap<ObjectKey, Object> {
        self.objects.map()
    }

    /// What else is to be said.
    #[must_use]
    pub const fn account(&self) -> &Account {
        &self.account
    }

    /// Moves whenever [`Self::account`] says something else.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The services whose local endpoints a load balancer asks for, by `namespace/name`.
    #[must_use]
    pub const fn health(&self) -> &BTreeMap<String, Health> {
        self.services.health()
    }

    fn render(&mut self) {
        let mut account = Account {
            problems: self.view.problems.clone(),
            pending: Vec::new(),
            notes: self.view.notes.clone(),
            incomplete: self.view.incomplete || self.placement.incomplete,
        };
        for remark in self.remarks.iter() {
            account.problems.extend(remark.problems.iter().cloned());
            account.pending.extend(remark.pending.iter().cloned());
            account.notes.extend(remark.notes.iter().cloned());
        }
        if self.account != account {
            self.account = account;
            self.revision += 1;
        }
    }
}

/// The manifest of a service, by its name.
fn service_of<'a>(view: &'a View, name: &str) -> Option<&'a crate::manifests::ServiceManifest> {
    match view.get(&ManifestKey::Service(name.to_owned())) {
        Some(Manifest::Service(service)) => Some(service),
        _ => None,
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
mod distribution_tests;
#[cfg(test)]
mod rule_tests;
#[cfg(test)]
mod sequence_tests;
#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod tests;
