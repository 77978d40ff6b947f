//! The backends of one service port, and which of them this node uses: conditions (KEP-1669),
//! topology hints and traffic policies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use overlane_api::{Backend, BackendState};

use crate::manifests::endpoint_slice::{Conditions, SliceEndpoint};
use crate::manifests::service::{PortManifest, ServiceManifest, TargetPort, TrafficDistribution};
use crate::manifests::{PodManifest, SliceManifest};

/// Where this node is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Site {
    /// Its name.
    pub(super) node: String,
    /// Its zone; empty when not known.
    pub(super) zone: String,
}

/// A backend before it is decided who uses it.
#[derive(Debug, Clone)]
struct Candidate<'a> {
    conditions: Conditions,
    node: &'a str,
    for_nodes: &'a [String],
    for_zones: &'a [String],
    weight: u16,
}

/// The candidates of one port, each address and port once.
#[derive(Debug, Default)]
pub(super) struct Candidates<'a> {
    map: BTreeMap<(IpAddr, u16), Candidate<'a>>,
}

impl<'a> Candidates<'a> {
    /// Adds what `slice` has for `port`. `weight` knows the weights of addresses.
    pub(super) fn add_slice(
        &mut self,
        slice: &'a SliceManifest,
        port: &PortManifest,
        weight: impl Fn(IpAddr) -> u16,
    ) {
        let same = |number: &&crate::manifests::endpoint_slice::SlicePort| {
            number.name == port.name && number.protocol == port.protocol
        };
        let Some(number) = slice.ports.iter().find(same).map(|number| number.port) else { return };
        for endpoint in &slice.endpoints {
            let SliceEndpoint { address, conditions, node, for_nodes, for_zones } = endpoint;
            let (conditions, weight) = (*conditions, weight(*address));
            let candidate = Candidate { conditions, node, for_nodes, for_zones, weight };
            self.add((*address, number), candidate);
        }
    }

    /// Adds a pod that the service selects, as the endpoint slice controller would, with its
    /// hints (KEP-4444, KEP-3015). `zone` is that of the pod's node, at most one.
    pub(super) fn add_pod(
        &mut self,
        pod: &'a PodManifest,
        port: &PortManifest,
        service: &ServiceManifest,
        zone: &'a [String],
    ) {
        let node = std::slice::from_ref(&pod.node);
        let (for_nodes, for_zones): (&[String], &[String]) = match service.distribution {
            Some(TrafficDistribution::SameZone) => (&[], zone),
            Some(TrafficDistribution::SameNode) => (node, zone),
            Some(TrafficDistribution::Unknown(_)) | None => (&[], &[]),
        };
        let number = match &port.target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(name) => match pod.port(name, port.protocol) {
                Some(number) => number,
                None => return,
            },
        };
        let conditions = Conditions {
            ready: service.publish_not_ready || (pod.ready && !pod.terminating),
            serving: pod.ready,
            terminating: pod.terminating,
        };
        for address in pod.addresses.iter().filter(|address| service.serves(**address)) {
            let (node, weight) = (pod.node.as_str(), pod.weight);
            let candidate = Candidate { conditions, node, for_nodes, for_zones, weight };
            self.add((*address, number), candidate);
        }
    }

    /// The same endpoint may be in two slices while it moves: ready is preferred, then serving.
    fn add(&mut self, key: (IpAddr, u16), candidate: Candidate<'a>) {
        let rank =
            |candidate: &Candidate<'_>| (candidate.conditions.ready, candidate.conditions.serving);
        match self.map.get(&key) {
            Some(known) if rank(known) >= rank(&candidate) => {}
            _ => {
                self.map.insert(key, candidate);
            }
        }
    }

    /// Decides for each family apart, as IPv4 and IPv6 clients are served apart.
    pub(super) fn decide(&self, site: &Site) -> Vec<Backend> {
        let v4 = Choice::of(self.of_family(true), site);
        let v6 = Choice::of(self.of_family(false), site);
        let backends = self.map.iter().map(|((address, port), candidate)| {
            let choice = if address.is_ipv4() { &v4 } else { &v6 };
            let local = candidate.is_local(site);
            Backend {
                address: *address,
                port: *port,
                weight: candidate.weight,
                local,
                use_cluster: choice.cluster.takes(candidate, site),
                use_local: local && choice.local.takes(candidate, site),
                serving: candidate.conditions.serving,
                state: candidate.state(),
            }
        });
        backends.collect()
    }

    /// Names of the nodes that serve clients of a family under the policy Local: those with a ready
    /// candidate, or if there is none anywhere, with one that still answers on its way out.
    pub(super) fn nodes(&self, is_ipv4: bool) -> BTreeSet<String> {
        let names = |takes: fn(&Candidate<'_>) -> bool| -> BTreeSet<String> {
            let all = self.of_family(is_ipv4).filter(|candidate| takes(candidate));
            all.map(|candidate| candidate.node.to_owned()).filter(|name| !name.is_empty()).collect()
        };
        let ready = names(|candidate| candidate.conditions.ready);
        if ready.is_empty() { names(|candidate| candidate.is_fallback()) } else { ready }
    }

    fn of_family(&self, is_ipv4: bool) -> impl Iterator<Item = &Candidate<'a>> + Clone {
        let family = move |(key, _): &(&(IpAddr, u16), _)| key.0.is_ipv4() == is_ipv4;
        self.map.iter().filter(family).map(|(_, candidate)| candidate)
    }
}

impl Candidate<'_> {
    fn is_local(&self, site: &Site) -> bool {
        self.node == site.node
    }

    /// Is it of use when nothing is ready?
    const fn is_fallback(&self) -> bool {
        !self.conditions.ready && self.conditions.serving && self.conditions.terminating
    }

    const fn state(&self) -> BackendState {
        match self.conditions {
            Conditions { ready: true, .. } => BackendState::Ready,
            Conditions { terminating: true, .. } => BackendState::Terminating,
            _ => BackendState::NotReady,
        }
    }
}

/// Which candidates of one family take new flows.
struct Choice {
    cluster: Taken,
    local: Taken,
}

/// A set of candidates.
enum Taken {
    /// The ready ones.
    Ready,
    /// The ready ones that are meant for this node.
    ForNode,
    /// The ready ones that are meant for this zone.
    ForZone,
    /// Those that still answer on their way out.
    Fallback,
}

impl Choice {
    fn of<'a>(candidates: impl Iterator<Item = &'a Candidate<'a>> + Clone, site: &Site) -> Self {
        let ready = candidates.filter(|candidate| candidate.conditions.ready);
        let mut local = ready.clone().filter(|candidate| candidate.is_local(site));
        // Without any ready one, all conditions below hold of nothing.
        let cluster = if ready.clone().next().is_none() {
            Taken::Fallback
        } else if ready.clone().all(|candidate| !candidate.for_nodes.is_empty())
            && ready.clone().any(|candidate| candidate.for_nodes.contains(&site.node))
        {
            Taken::ForNode
        } else if ready.clone().all(|candidate| !candidate.for_zones.is_empty())
            && ready.clone().any(|candidate| candidate.for_zones.contains(&site.zone))
        {
            Taken::ForZone
        } else {
            Taken::Ready
        };
        let local = if local.next().is_none() { Taken::Fallback } else { Taken::Ready };
        Self { cluster, local }
    }
}

impl Taken {
    fn takes(&self, candidate: &Candidate<'_>, site: &Site) -> bool {
        match self {
            Self::Ready => candidate.conditions.ready,
            Self::ForNode => candidate.conditions.ready && candidate.for_nodes.contains(&site.node),
            Self::ForZone => candidate.conditions.ready && candidate.for_zones.contains(&site.zone),
            Self::Fallback => candidate.is_fallback(),
        }
    }
}
