//! Services: their addresses as routes and VIP numbers, their frontends, and their backends.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use overlane_api::protocol::{ApiError, ErrorCode};
use overlane_api::{Backend, Forwarding, Frontend, Service};

use super::names::Names;
use super::{Compiler, Effect};
use crate::packet::meta::{Route, Target};
use crate::packet::region::Shared;
use crate::tables::intervals::Spaces;
use crate::tables::peers::PeerEntry;
use crate::tables::services::{BackendAddress, Backends, FrontendRef, ServiceEntry};

/// Most frontends of a service.
const MAX_FRONTENDS: usize = 1024;

/// Most source ranges of a service.
const MAX_SOURCE_RANGES: usize = 4096;

/// Longest affinity, seconds: a day.
const MAX_AFFINITY: u32 = 86_400;

#[derive(Debug)]
struct Record {
    object: Service,
    index: u32,
}

/// An address that services answer at.
#[derive(Debug)]
struct Vip {
    number: u32,
    /// Frontends there are at it.
    frontends: usize,
}

/// The services and their places.
#[derive(Debug, Default)]
pub(super) struct Services {
    records: HashMap<String, Record>,
    names: Names,
    vips: HashMap<IpAddr, Vip>,
    vip_names: Names,
    /// By index: how many services had it.
    lives: Vec<u8>,
    generation: u32,
    /// Shared by all services that have no backend of the family.
    none_v4: Shared<Backends<u32>>,
    none_v6: Shared<Backends<u128>>,
}

impl Services {
    pub(super) fn get(&self, name: &str) -> Option<&Service> {
        self.records.get(name).map(|record| &record.object)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.records.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The address with a VIP number, for messages.
    pub(super) fn vip_name(&self, vip: u32) -> Option<&str> {
        self.vip_names.get(vip)
    }
}

/// May a packet be sent to it, and from there through a node?
fn is_usable(address: IpAddr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback())
}

/// What is wrong: what, in which field, and what to do.
type Wrong = (String, &'static str, &'static str);

fn check_frontends(frontends: &[Frontend]) -> Result<(), Wrong> {
    let wrong = |what, hint| Err((what, "frontends", hint));
    if frontends.len() > MAX_FRONTENDS {
        let what = format!("{} frontends are more than {MAX_FRONTENDS}", frontends.len());
        return wrong(what, "leave some out");
    }
    let mut keys = BTreeSet::new();
    for Frontend { address, port, .. } in frontends {
        if !is_usable(*address) {
            return wrong(format!("{address} is no service's address"), "give a unicast address");
        }
        if *port == 0 {
            return wrong(format!("port 0 of {address}"), "give a port from 1 to 65535");
        }
        if !keys.insert((*address, *port)) {
            return wrong(format!("{address} port {port} is given twice"), "give each once");
        }
    }
    Ok(())
}

fn check_backends(backends: &[Backend]) -> Result<(), Wrong> {
    let wrong = |what, hint| Err((what, "backends", hint));
    for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
        let count = backends.iter().filter(|backend| backend.address.is_ipv4() == v4).count();
        let most = Backends::<u32>::MAX;
        if count > most {
            return wrong(format!("{count} {family} backends are more than {most}"), "use fewer");
        }
    }
    let mut keys: Vec<(IpAddr, u16)> = Vec::with_capacity(backends.len());
    for Backend { address, port, local, use_local, .. } in backends {
        if !is_usable(*address) {
            return wrong(format!("{address} is no backend's address"), "give a unicast address");
        }
        if *port == 0 {
            return wrong(format!("port 0 of {address}"), "give a port from 1 to 65535");
        }
        if *use_local && !local {
            let what = format!("{address} port {port} is of scope local, but not on this node");
            return wrong(what, "set local too, or neither");
        }
        keys.push((*address, *port));
    }
    keys.sort_unstable();
    let twice = keys.windows(2).find(|pair| matches!(pair, [a, b] if a == b));
    if let Some([(address, port), _]) = twice {
        return wrong(format!("{address} port {port} is given twice"), "give each once");
    }
    Ok(())
}

fn check_settings(service: &Service) -> Result<(), Wrong> {
    if service.name.is_empty() {
        return Err(("it has no name".into(), "name", "give namespace/name:port"));
    }
    if let Some(seconds) = service.affinity_seconds
        && !(1..=MAX_AFFINITY).contains(&seconds)
    {
        let what = format!("{seconds} seconds of affinity");
        return Err((what, "affinity_seconds", "give 1 to 86400, or leave it out"));
    }
    let ranges = service.source_ranges.len();
    if ranges > MAX_SOURCE_RANGES {
        let what = format!("{ranges} source ranges are more than {MAX_SOURCE_RANGES}");
        return Err((what, "source_ranges", "give larger ranges"));
    }
    Ok(())
}

/// The backends of one family: the former ones when they are the same, and none when the service
/// has no address of that family.
fn backends_of<K: BackendAddress>(
    service: &Service,
    former: Option<(&Service, &Shared<Backends<K>>)>,
    none: &Shared<Backends<K>>,
) -> Shared<Backends<K>> {
    let is_of_family = |backend: &&Backend| K::of(backend.address).is_some();
    let own = service.backends.iter().filter(is_of_family);
    let is_asked = service.frontends.iter().any(|frontend| K::of(frontend.address).is_some());
    if !is_asked || own.clone().next().is_none() {
        return none.clone();
    }
    if let Some((old, backends)) = former
        && !backends.is_same(none)
        && old.algorithm == service.algorithm
        && own.eq(old.backends.iter().filter(is_of_family))
    {
        return backends.clone();
    }
    Shared::new(Backends::new(&service.backends, service.algorithm))
}

impl Compiler {
    pub(super) fn set_service(&mut self, service: Service) -> Vec<Effect> {
        let name = service.name.clone();
        let old = self.services.records.remove(&name);
        let index = old.as_ref().map_or_else(|| self.services.names.claim(&name), |o| o.index);
        let life = self.life_of(index, old.is_none());
        let moved = old.as_ref().is_none_or(|old| {
            old.object.protocol != service.protocol || old.object.frontends != service.frontends
        });
        let mut effects = Vec::new();
        if moved {
            // The new ones first, so that an address in both keeps its number.
            for frontend in &service.frontends {
                self.add_frontend(service.protocol.number(), *frontend, index);
            }
            if let Some(old) = &old {
                self.drop_frontends(&old.object, Some(&service));
            }
            effects.push(Effect::Services);
        }
        self.services.generation = self.services.generation.wrapping_add(1);
        let entry = ServiceEntry { life, ..self.service_entry(&service, old.as_ref()) };
        self.tables.services.set_service(index, Some(entry));
        self.services.records.insert(name, Record { object: service, index });
        effects
    }

    /// Which of the services with that index it is; another one than before if it is new.
    fn life_of(&mut self, index: u32, is_new: bool) -> u8 {
        let lives = &mut self.services.lives;
        if lives.len() <= index as usize {
            lives.resize(index as usize + 1, 0);
        }
        let Some(life) = lives.get_mut(index as usize) else { return 0 };
        *life = life.wrapping_add(u8::from(is_new));
        *life
    }

    fn service_entry(&self, service: &Service, old: Option<&Record>) -> ServiceEntry {
        let former = old.and_then(|old| {
            self.tables.services.service(old.index).map(|entry| (&old.object, entry))
        });
        let v4 = former.map(|(object, entry)| (object, &*entry.v4));
        let v6 = former.map(|(object, entry)| (object, &*entry.v6));
        let ranges = &service.source_ranges;
        let sources = (!ranges.is_empty()).then(|| {
            let same = former.filter(|(object, _)| object.source_ranges == *ranges);
            same.and_then(|(_, entry)| entry.sources.clone())
                .unwrap_or_else(|| Arc::new(Spaces::union(ranges)))
        });
        ServiceEntry {
            generation: self.services.generation,
            life: 0,
            protocol: service.protocol.number(),
            internal: service.internal,
            external: service.external,
            reject: service.reject,
            forwarding: service.forwarding,
            algorithm: service.algorithm,
            affinity_seconds: service.affinity_seconds.unwrap_or(0),
            sources,
            v4: backends_of(service, v4, &self.services.none_v4).into(),
            v6: backends_of(service, v6, &self.services.none_v6).into(),
        }
    }

    pub(super) fn check_service(&self, service: &Service) -> Result<(), ApiError> {
        let refuse = |(what, field, hint): Wrong| {
            let at = format!("service {}: {field}", service.name);
            ApiError::new(ErrorCode::Refused, what).at(at).hint(hint)
        };
        check_settings(service).map_err(refuse)?;
        check_frontends(&service.frontends).map_err(refuse)?;
        check_backends(&service.backends).map_err(refuse)?;
        let own = self.services.records.get(&service.name).map(|record| record.index);
        if own.is_none() && self.services.len() >= FrontendRef::MAX_SERVICES {
            let what = format!("there are {} service ports already", FrontendRef::MAX_SERVICES);
            return Err(refuse((what, "name", "remove some")));
        }
        let protocol = service.protocol;
        for Frontend { address, port, .. } in &service.frontends {
            let vip = self.tables.services.vip(*address);
            let taken =
                vip.and_then(|v| self.tables.services.frontend(v, protocol.number(), *port));
            if let Some(other) = taken.filter(|taken| Some(taken.service) != own) {
                let owner = self.services.names.get(other.service).unwrap_or("unknown");
                let what =
                    format!("{address} port {port}/{protocol} belongs to service {owner} already");
                let hint = "remove that one first; no two services answer at one place";
                return Err(refuse((what, "frontends", hint)));
            }
        }
        Ok(())
    }

    /// Does the node of a backend answer clients of the service from outside itself?
    #[must_use]
    pub fn answers_directly(&self, service: &Service, backend: &Backend) -> bool {
        service.forwarding == Forwarding::Dsr
            && match self.tables.routes.get(backend.address).target() {
                Target::Endpoint(_) => true,
                Target::Peer(index) => {
                    self.tables.peers.get(index).is_some_and(PeerEntry::takes_options)
                }
                _ => false,
            }
    }

    /// Adds a frontend, or changes its kind.
    fn add_frontend(&mut self, protocol: u8, frontend: Frontend, service: u32) {
        let Frontend { address, port, kind } = frontend;
        let vip = self.claim_vip(address);
        if self.tables.services.frontend(vip, protocol, port).is_none()
            && let Some(vip) = self.services.vips.get_mut(&address)
        {
            vip.frontends += 1;
        }
        let frontend = Some(FrontendRef { service, kind });
        self.tables.services.set_frontend(vip, protocol, port, frontend);
    }

    /// Takes away the frontends of `old` that `new` does not have.
    fn drop_frontends(&mut self, old: &Service, new: Option<&Service>) {
        let new = new.filter(|new| new.protocol == old.protocol);
        let kept: BTreeSet<(IpAddr, u16)> =
            new.iter().flat_map(|new| &new.frontends).map(|f| (f.address, f.port)).collect();
        for Frontend { address, port, .. } in &old.frontends {
            if kept.contains(&(*address, *port)) {
                continue;
            }
            let Some(vip) = self.services.vips.get_mut(address) else { continue };
            vip.frontends -= 1;
            let (number, is_last) = (vip.number, vip.frontends == 0);
            self.tables.services.set_frontend(number, old.protocol.number(), *port, None);
            if is_last {
                self.release_vip(*address, number);
            }
        }
    }

    /// The VIP number of an address.
    fn claim_vip(&mut self, address: IpAddr) -> u32 {
        if let Some(vip) = self.services.vips.get(&address) {
            return vip.number;
        }
        let number = self.services.vip_names.claim(&address.to_string());
        self.services.vips.insert(address, Vip { number, frontends: 0 });
        self.tables.services.set_vip(address, Some(number));
        self.forget_next_hop(address);
        self.route_vip(address);
        number
    }

    fn release_vip(&mut self, address: IpAddr, number: u32) {
        self.services.vips.remove(&address);
        self.services.vip_names.release(number);
        self.tables.services.set_vip(address, None);
        if self.tables.routes.host(address) == Route::new(Target::Service(number)) {
            self.tables.routes.set_host(address, Route(0));
        }
    }

    /// Routes `address` to the services that answer at it, if there are any and no node or
    /// endpoint has it.
    pub(super) fn route_vip(&mut self, address: IpAddr) {
        let Some(number) = self.tables.services.vip(address) else { return };
        let is_taken = self.tables.routes.host(address).is_some()
            // Flat mode: these have no route of their own.
            || self.unrouted.contains_key(&address)
            || self.peer_at(address).is_some();
        if !is_taken {
            self.tables.routes.set_host(address, Route::new(Target::Service(number)));
        }
    }

    pub(super) fn remove_service(&mut self, name: &str) -> Vec<Effect> {
        let Some(Record { object, index }) = self.services.records.remove(name) else {
            return Vec::new();
        };
        self.drop_frontends(&object, None);
        self.services.names.release(index);
        self.services.generation = self.services.generation.wrapping_add(1);
        self.tables.services.set_service(index, None);
        vec![Effect::Services]
    }

    /// The services, with their table entries.
    pub fn services(&self) -> impl Iterator<Item = (&Service, u32, Option<&ServiceEntry>)> {
        let entry = |record: &Record| self.tables.services.service(record.index).is_some();
        debug_assert!(self.services.records.values().all(entry));
        self.services.records.values().map(|record| {
            (&record.object, record.index, self.tables.services.service(record.index))
        })
    }

    /// The name of the service of that index.
    #[must_use]
    pub fn service_name(&self, index: u32) -> Option<&str> {
        self.services.names.get(index)
    }

    /// The index of a service.
    #[must_use]
    pub fn service_index(&self, name: &str) -> Option<u32> {
        self.services.records.get(name).map(|record| record.index)
    }

    /// All addresses that services answer at.
    pub fn vips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.services.vips.keys().copied()
    }

    /// Services (ports) and egress rules.
    #[must_use]
    pub fn service_counts(&self) -> (usize, usize) {
        (self.services.len(), self.egress.len())
    }
}
