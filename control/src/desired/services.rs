//! Services: one object for each port, with the frontends that are its own and its backends.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use overlane_api::{BackendState, Frontend, FrontendKind, Object, ObjectKey, Protocol, Service};

use super::announce;
use super::backends::{Candidates, Site};
use super::objects::{Remark, Subject};
use super::pods::{self, ByLabel};
use super::{Conflict, Context, Health, outside, service_of, taken};
use crate::manifests::pod::Standing;
use crate::manifests::selector::has_all;
use crate::manifests::service::{PortManifest, ServiceKind, ServiceManifest, TrafficDistribution};
use crate::manifests::{Manifest, ManifestKey, PodManifest, SliceManifest};
use crate::sources::{Problem, View};
use crate::validate::join;

/// What a packet's destination must be; it belongs to one service port.
type Key = (IpAddr, Protocol, u16);

/// A service port that wants a key. The first in this order has it: the older one (of unknown
/// age: after all others), then by name. So all nodes agree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    has_no_age: bool,
    created: i64,
    service: String,
    object: String,
}

/// What is known of one service.
#[derive(Debug, Default)]
struct State {
    /// Its manifest as it was last accepted.
    good: Option<ServiceManifest>,
    /// Its claims.
    claims: BTreeSet<(Key, Claim)>,
    /// Names of its objects.
    objects: BTreeSet<String>,
}

/// All services.
#[derive(Debug, Default)]
pub(super) struct Services {
    states: BTreeMap<String, State>,
    /// Names of the slices of a service.
    slices: BTreeMap<String, BTreeSet<String>>,
    /// Services by the first label of their selector.
    selectors: ByLabel,
    pods: ByLabel,
    /// Services whose clients prefer what is near.
    distributed: BTreeSet<String>,
    /// Weights of pods' addresses, where they are not 1.
    weights: BTreeMap<IpAddr, u16>,
    /// Addresses whose weight has changed.
    reweighed: HashSet<IpAddr>,
    claims: BTreeMap<Key, BTreeSet<Claim>>,
    dirty: BTreeSet<String>,
    site: Site,
    /// Where this node answers NodePorts.
    node_addresses: Vec<IpAddr>,
    health: BTreeMap<String, Health>,
}

impl Services {
    pub(super) const fn health(&self) -> &BTreeMap<String, Health> {
        &self.health
    }

    /// Notes which services a change concerns.
    pub(super) fn note(
        &mut self,
        key: &ManifestKey,
        before: Option<&Manifest>,
        now: Option<&Manifest>,
    ) {
        for (manifest, is_there) in [(before, false), (now, true)] {
            match manifest {
                Some(Manifest::Service(service)) => self.note_service(service, is_there),
                Some(Manifest::EndpointSlice(slice)) => self.note_slice(slice, is_there),
                Some(Manifest::Pod(pod)) => self.note_pod(pod, is_there),
                Some(Manifest::Node(_) | Manifest::Namespace(_)) | None => {}
            }
        }
        if let ManifestKey::Service(name) = key {
            self.dirty.insert(name.clone());
        }
        if zone(before) != zone(now) {
            let derived = self.distributed.iter().filter(|name| !self.slices.contains_key(*name));
            self.dirty.extend(derived.cloned());
        }
    }

    fn note_service(&mut self, service: &ServiceManifest, is_there: bool) {
        let Some((key, value)) = service.selector.first_key_value() else { return };
        let label = (key.clone(), value.clone());
        if is_there {
            self.selectors.insert(service.namespace(), label, &service.name);
        } else {
            self.selectors.remove(service.namespace(), &label, &service.name);
        }
    }

    fn note_slice(&mut self, slice: &SliceManifest, is_there: bool) {
        let Some(service) = &slice.service else { return };
        self.dirty.insert(service.clone());
        let slices = self.slices.entry(service.clone()).or_default();
        if is_there {
            slices.insert(slice.name.clone());
        } else {
            slices.remove(&slice.name);
        }
        if slices.is_empty() {
            self.slices.remove(service);
        }
    }

    fn note_pod(&mut self, pod: &PodManifest, is_there: bool) {
        pods::index(&mut self.pods, pod, is_there);
        let found = self.selectors.at_any(pod.namespace(), &pod.labels);
        let derived = found.filter(|service| !self.slices.contains_key(*service));
        self.dirty.extend(derived.cloned());
        if pod.standing == Standing::HostNetwork {
            return;
        }
        for address in &pod.addresses {
            if is_there && pod.weight != 1 {
                self.weights.insert(*address, pod.weight);
                self.reweighed.insert(*address);
            } else if self.weights.remove(address).is_some() {
                self.reweighed.insert(*address);
            }
        }
    }

    /// Compiles what has changed.
    pub(super) fn compile(&mut self, cx: &mut Context<'_>) {
        self.relocate(cx);
        self.find_reweighed(cx);
        let changed = std::mem::take(&mut self.dirty);
        let mut dirty = changed.clone();
        let mut refusals = BTreeMap::new();
        for name in &changed {
            let refusal = self.claim(name, &mut dirty, cx);
            refusals.insert(name.clone(), refusal);
        }
        for name in dirty {
            let refusal = refusals.remove(&name).unwrap_or_else(|| self.judge(&name, cx).1);
            self.build(&name, &refusal, cx);
        }
    }

    /// Everything depends on where this node is.
    fn relocate(&mut self, cx: &Context<'_>) {
        let own = cx.view.get(&ManifestKey::Node(cx.config.node_name.clone()));
        let zone = match own {
            Some(Manifest::Node(node)) => node.zone.clone(),
            _ => String::new(),
        };
        let site = Site { node: cx.config.node_name.clone(), zone };
        let addresses = match cx.objects.get(&ObjectKey::Node) {
            Some(Object::Node(node)) => node_port_addresses(&node.addresses, cx),
            _ => Vec::new(),
        };
        if site != self.site || addresses != self.node_addresses {
            (self.site, self.node_addresses) = (site, addresses);
            self.dirty.extend(self.states.keys().cloned());
        }
    }

    fn find_reweighed(&mut self, cx: &Context<'_>) {
        let reweighed = std::mem::take(&mut self.reweighed);
        if reweighed.is_empty() {
            return;
        }
        for (name, state) in &self.states {
            let objects = state.objects.iter().map(|name| ObjectKey::Service(name.clone()));
            let backends = objects.filter_map(|key| match cx.objects.get(&key) {
                Some(Object::Service(service)) => Some(service.backends.iter()),
                _ => None,
            });
            if backends.flatten().any(|backend| reweighed.contains(&backend.address)) {
                self.dirty.insert(name.clone());
            }
        }
    }

    /// The manifest in force for a service, and why it is not the one that is written.
    fn judge(&self, name: &str, cx: &Context<'_>) -> (Option<ServiceManifest>, Vec<Conflict>) {
        let Some(written) = service_of(cx.view, name) else { return (None, Vec::new()) };
        let refusal = self.check(written, cx);
        if refusal.is_empty() {
            return (Some(written.clone()), refusal);
        }
        let good = self.states.get(name).and_then(|state| state.good.clone());
        (good.filter(|good| self.check(good, cx).is_empty()), refusal)
    }

    /// What of a service contradicts the configuration.
    fn check(&self, service: &ServiceManifest, cx: &Context<'_>) -> Vec<Conflict> {
        let config = cx.config;
        let mut found = Vec::new();
        for address in &service.cluster_ips {
            if !config.service_cidrs.iter().any(|range| range.contains(address)) {
                found.push(outside("clusterIP", address, "serviceCIDR", &config.service_cidrs));
            }
        }
        let node_ports = service.ports.iter().filter_map(|port| port.node_port);
        let node_ports = node_ports.map(|port| ("nodePort", port));
        let health = service.health_check_port.map(|port| ("healthCheckNodePort", port));
        for (field, port) in node_ports.chain(health) {
            if !config.node_ports.contains(port) {
                found.push(Conflict::Outside {
                    field,
                    value: port.to_string(),
                    outer_field: "nodePortRange",
                    outer: config.node_ports.to_string(),
                });
            }
        }
        let external: &[IpAddr] = if config.external_ips { &service.external_ips } else { &[] };
        let balancer =
            service.load_balancer_ips.iter().map(|address| ("load balancer IP", address));
        for (field, address) in
            balancer.chain(external.iter().map(|address| ("externalIP", address)))
        {
            found.extend(self.check_external(service, field, *address, cx));
        }
        found
    }

    /// Others route these addresses here: they must be nobody else's.
    fn check_external(
        &self,
        service: &ServiceManifest,
        field: &'static str,
        address: IpAddr,
        cx: &Context<'_>,
    ) -> Vec<Conflict> {
        let config = cx.config;
        let value = address.to_string();
        let mut found = Vec::new();
        if let Some(range) = config.pod_cidrs.iter().find(|range| range.contains(&address)) {
            let outer = range.to_string();
            found.push(Conflict::Inside {
                field,
                value: value.clone(),
                outer_field: "podCIDR",
                outer,
            });
        }
        let ports = config.snat.ports;
        if self.node_addresses.contains(&address)
            && let Some(port) = service.ports.iter().find(|port| ports.contains(port.port))
        {
            found.push(Conflict::SnatPort { field, value, port: port.port, ports });
        }
        found
    }

    /// Replaces the claims of a service, and adds those that gain or lose by it to `dirty`.
    fn claim(
        &mut self,
        name: &str,
        dirty: &mut BTreeSet<String>,
        cx: &Context<'_>,
    ) -> Vec<Conflict> {
        let (good, refusal) = self.judge(name, cx);
        let mut state = self.states.remove(name).unwrap_or_default();
        let claims = good.as_ref().map(|good| self.claims_of(good, cx)).unwrap_or_default();
        for (key, claim) in state.claims.difference(&claims) {
            let Some(claimants) = self.claims.get_mut(key) else { continue };
            claimants.remove(claim);
            dirty.extend(claimants.iter().map(|other| other.service.clone()));
            if claimants.is_empty() {
                self.claims.remove(key);
            }
        }
        for (key, claim) in claims.difference(&state.claims) {
            let claimants = self.claims.entry(*key).or_default();
            dirty.extend(claimants.iter().map(|other| other.service.clone()));
            claimants.insert(claim.clone());
        }
        if good.as_ref().is_some_and(|good| good.distribution.is_some()) {
            self.distributed.insert(name.to_owned());
        } else {
            self.distributed.remove(name);
        }
        state.claims = claims;
        state.good = good;
        self.states.insert(name.to_owned(), state);
        refusal
    }

    fn claims_of(&self, service: &ServiceManifest, cx: &Context<'_>) -> BTreeSet<(Key, Claim)> {
        let claim = |port: &PortManifest| Claim {
            has_no_age: service.created.is_none(),
            created: service.created.unwrap_or_default(),
            service: service.name.clone(),
            object: service.object_name(port),
        };
        let keys = service.ports.iter().flat_map(|port| {
            let frontends = self.frontends(service, port, cx);
            frontends.into_iter().map(move |frontend| {
                ((frontend.address, port.protocol, frontend.port), claim(port))
            })
        });
        keys.collect()
    }

    /// All the frontends of a port, each address and port once.
    fn frontends(
        &self,
        service: &ServiceManifest,
        port: &PortManifest,
        cx: &Context<'_>,
    ) -> Vec<Frontend> {
        if service.kind != ServiceKind::Addressed {
            return Vec::new();
        }
        let external: &[IpAddr] = if cx.config.external_ips { &service.external_ips } else { &[] };
        let on_nodes: &[IpAddr] = if port.node_port.is_some() { &self.node_addresses } else { &[] };
        let node_port = port.node_port.unwrap_or_default();
        let all = [
            (service.cluster_ips.as_slice(), port.port, FrontendKind::ClusterIp),
            (on_nodes, node_port, FrontendKind::NodePort),
            (&service.load_balancer_ips, port.port, FrontendKind::LoadBalancer),
            (external, port.port, FrontendKind::ExternalIp),
        ];
        let mut frontends: BTreeMap<(IpAddr, u16), Frontend> = BTreeMap::new();
        for (addresses, port, kind) in all {
            for address in addresses.iter().filter(|address| service.serves(**address)) {
                let frontend = Frontend { address: *address, port, kind };
                frontends.entry((*address, port)).or_insert(frontend);
            }
        }
        frontends.into_values().collect()
    }

    /// Makes the objects of a service anew.
    fn build(&mut self, name: &str, refusal: &[Conflict], cx: &mut Context<'_>) {
        let mut remark = Remark::default();
        let subject = ManifestKey::Service(name.to_owned());
        let good = self.states.get(name).and_then(|state| state.good.as_ref());
        if !refusal.is_empty() {
            let stays = if good.is_some() {
                "its last good state stays in force"
            } else {
                "it is left out"
            };
            let message = format!("service {name}: {}; {stays}", join(refusal));
            remark.problems.push(Problem { place: cx.view.place(&subject).to_owned(), message });
        }
        let mut objects = Vec::new();
        let mut wishes = Vec::new();
        let mut health = None;
        if let Some(good) = good {
            remark.notes.extend(notes(good, cx));
            remark.pending.extend(pending(good));
            if good.kind == ServiceKind::Addressed {
                for port in &good.ports {
                    let candidates = self.candidates(good, port, cx);
                    let object = self.object(good, port, &candidates, cx, &mut remark);
                    wishes.extend(announce::wishes(&object, &candidates, cx.config));
                    objects.push(object);
                }
            }
            health = good.health_check_port.map(|port| health_of(port, &objects));
        }
        cx.remarks.set(Subject::Manifest(subject), remark);
        cx.announcements.set_service(name, wishes);
        match health {
            Some(health) => self.health.insert(name.to_owned(), health),
            None => self.health.remove(name),
        };
        self.replace(name, objects, cx);
    }

    fn replace(&mut self, name: &str, objects: Vec<Service>, cx: &mut Context<'_>) {
        let Some(state) = self.states.get_mut(name) else { return };
        let names = objects.iter().map(|object| object.name.clone()).collect();
        let before = std::mem::replace(&mut state.objects, names);
        for gone in before.difference(&state.objects) {
            cx.objects.remove(&ObjectKey::Service(gone.clone()));
        }
        for object in objects {
            cx.objects.set(Object::Service(object));
        }
        if state.good.is_none() && service_of(cx.view, name).is_none() {
            self.states.remove(name);
        }
    }

    fn object(
        &self,
        service: &ServiceManifest,
        port: &PortManifest,
        candidates: &Candidates<'_>,
        cx: &Context<'_>,
        remark: &mut Remark,
    ) -> Service {
        let name = service.object_name(port);
        let mut frontends = Vec::new();
        for frontend in self.frontends(service, port, cx) {
            let key = (frontend.address, port.protocol, frontend.port);
            match self.claims.get(&key).and_then(BTreeSet::first) {
                Some(first) if first.object != name => {
                    let place = cx.view.place(&ManifestKey::Service(service.name.clone()));
                    remark.problems.push(collision(&name, &frontend, port, &first.object, place));
                }
                _ => frontends.push(frontend),
            }
        }
        Service {
            protocol: port.protocol,
            frontends,
            backends: candidates.decide(&self.site),
            internal: service.internal,
            external: service.external,
            affinity_seconds: service.affinity_seconds,
            source_ranges: service.source_ranges.clone(),
            reject: service.reject,
            forwarding: service.forwarding,
            algorithm: service.algorithm,
            health_check_port: service.health_check_port,
            name,
        }
    }

    /// From its slices; a service without any is given what the endpoint controller would give.
    fn candidates<'a>(
        &self,
        service: &ServiceManifest,
        port: &PortManifest,
        cx: &Context<'a>,
    ) -> Candidates<'a> {
        let mut candidates = Candidates::default();
        if let Some(slices) = self.slices.get(&service.name) {
            let weight = |address| self.weights.get(&address).copied().unwrap_or(1);
            for slice in slices {
                let key = ManifestKey::EndpointSlice(slice.clone());
                if let Some(Manifest::EndpointSlice(slice)) = cx.view.get(&key) {
                    candidates.add_slice(slice, port, weight);
                }
            }
        } else if !service.selector.is_empty() {
            let names = self.pods.at_rarest(service.namespace(), &service.selector);
            let pods = names.into_iter().flatten().filter_map(|name| cx.view.pod(name));
            let chosen = pods.filter(|pod| {
                has_all(&pod.labels, &service.selector)
                    && matches!(pod.standing, Standing::Attached | Standing::HostNetwork)
            });
            chosen.for_each(|pod| {
                candidates.add_pod(pod, port, service, zone_of(cx.view, &pod.node));
            });
        }
        candidates
    }
}

/// The zone of a node; none when it is not said, or the manifest is not a Node.
fn zone(manifest: Option<&Manifest>) -> &[String] {
    match manifest {
        Some(Manifest::Node(node)) if !node.zone.is_empty() => std::slice::from_ref(&node.zone),
        _ => &[],
    }
}

fn zone_of<'a>(view: &'a View, node: &str) -> &'a [String] {
    zone(view.get(&ManifestKey::Node(node.to_owned())))
}

/// The node's own addresses, and those of its interfaces that the configuration adds.
fn node_port_addresses(own: &[IpAddr], cx: &Context<'_>) -> Vec<IpAddr> {
    let config = cx.config;
    let chosen =
        config.host.addresses.iter().filter(|address| {
            config.node_port_addresses.iter().any(|range| range.contains(*address))
        });
    let all: BTreeSet<IpAddr> = own.iter().chain(chosen).copied().collect();
    all.into_iter().collect()
}

/// What of a service is read and not used.
fn notes(service: &ServiceManifest, cx: &Context<'_>) -> Vec<String> {
    let name = &service.name;
    let mut notes = Vec::new();
    match service.kind {
        ServiceKind::Headless => notes.push(format!(
            "Service {name} is headless: DNS answers its pods' addresses, nothing is installed"
        )),
        ServiceKind::ExternalName => notes.push(format!(
            "Service {name} is an ExternalName: DNS answers another name, nothing is installed"
        )),
        ServiceKind::Addressed => {}
    }
    if let Some(TrafficDistribution::Unknown(word)) = &service.distribution {
        notes.push(format!(
            "Service {name}: trafficDistribution {word} is not known and not used; PreferSameZone, PreferClose and PreferSameNode are"
        ));
    }
    if !service.external_ips.is_empty() && !cx.config.external_ips {
        notes.push(format!(
            "Service {name}: externalIPs {} are not used unless enableExternalIPs is true",
            join(&service.external_ips)
        ));
    }
    notes
}

/// What a service waits for.
fn pending(service: &ServiceManifest) -> Vec<String> {
    let name = &service.name;
    let mut pending = Vec::new();
    if service.kind != ServiceKind::Addressed {
        return pending;
    }
    if service.cluster_ips.is_empty() {
        pending.push(format!("Service {name} waits for a clusterIP"));
    }
    if service.is_balanced && service.load_balancer_ips.is_empty() && !service.is_proxied {
        pending.push(format!("Service {name} waits for its load balancer's address"));
    }
    for port in
        service.ports.iter().filter(|port| service.wants_node_ports && port.node_port.is_none())
    {
        pending.push(format!("Service {} waits for a nodePort", service.object_name(port)));
    }
    pending
}

fn collision(
    name: &str,
    frontend: &Frontend,
    port: &PortManifest,
    owner: &str,
    place: &str,
) -> Problem {
    let value =
        format!("{}/{}", std::net::SocketAddr::new(frontend.address, frontend.port), port.protocol);
    let conflict = taken("frontend", &value, &format!("service {owner}"), &value);
    let message =
        format!("service {name}: {conflict}; the older one has it, else the first by name");
    Problem { place: place.to_owned(), message }
}

fn health_of(port: u16, objects: &[Service]) -> Health {
    let ready = objects.iter().flat_map(|object| &object.backends);
    let ready = ready.filter(|backend| backend.local && backend.state == BackendState::Ready);
    let addresses: BTreeSet<IpAddr> = ready.map(|backend| backend.address).collect();
    // A pod of both families has one address of each.
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    Health { port, local_endpoints: v4.max(addresses.len() - v4) }
}
