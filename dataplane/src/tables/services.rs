//! Services: where they answer, and the backends that they are spread over.
//!
//! ```text
//! address --> VIP number --\
//!   (the route of a VIP      {VIP, protocol, port} --> service, kind --> scope --> backend
//!    says it too)        --/
//! ```
//!
//! The VIPs' numbers are also in the routing table ([`Target::Service`]), so what is sent to no
//! service finds out by the route that it needs anyway. Addresses of a service range that no
//! service has are routed to [`UNASSIGNED`]. A route of a node or an endpoint comes before that of
//! a service: a service never takes a pod's or a node's packets away, but for its frontends at
//! this node's addresses, which have VIP numbers and keep their route to the host.
//!
//! [`Target::Service`]: crate::packet::meta::Target::Service

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use overlane_api::{Algorithm, Forwarding, FrontendKind, Reject, Scope};

use super::hash::Map;
use super::intervals::Spaces;
use super::maglev::{Candidate, Maglev};
use super::paged::Paged;
use super::routes::Address;
use crate::packet::meta::Route;
use crate::packet::prefetch::{prefetch, prefetch_whole};

/// The VIP number in the route of a service range: no service has the address.
pub const UNASSIGNED: u32 = Route::MAX_INDEX;

/// A frontend: which service, and what the address is for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontendRef {
    /// Index of the service, and of its counters. It is another service's some time after the
    /// service is gone: [`ServiceEntry::generation`] tells them apart.
    pub service: u32,
    /// What the address is; it decides which policy applies.
    pub kind: FrontendKind,
}

impl FrontendRef {
    const SHIFT: u32 = 30;

    /// Most services.
    pub const MAX_SERVICES: usize = 1 << 16;

    /// As a value of the map; never 0.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        let kind = match self.kind {
            FrontendKind::ClusterIp => 0,
            FrontendKind::NodePort => 1,
            FrontendKind::LoadBalancer => 2,
            FrontendKind::ExternalIp => 3,
        };
        kind << Self::SHIFT | (self.service + 1) & ((1 << Self::SHIFT) - 1)
    }

    /// Read back; none for 0.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        let kind = match bits >> Self::SHIFT {
            0 => FrontendKind::ClusterIp,
            1 => FrontendKind::NodePort,
            2 => FrontendKind::LoadBalancer,
            _ => FrontendKind::ExternalIp,
        };
        match (bits & ((1 << Self::SHIFT) - 1)).checked_sub(1) {
            Some(service) => Some(Self { service, kind }),
            None => None,
        }
    }
}

/// What an address, protocol and port are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A service.
    Frontend(FrontendRef),
    /// An address of a service, but none at this protocol and port: to be rejected, or, when it is
    /// this node's own address, the host's.
    UnknownPort,
    /// No service's address.
    NotAService,
}

/// A backend, as a packet needs it; its route is not looked up yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend<K> {
    /// Its address, host order.
    pub address: K,
    /// Its port, host byte order.
    pub port: u16,
    flags: u8,
}

impl<K> Backend<K> {
    const LOCAL: u8 = 1;
    const CLUSTER_SCOPE: u8 = 2;
    const LOCAL_SCOPE: u8 = 4;
    const SERVING: u8 = 8;
    const DRAINING: u8 = 16;

    /// Is it on this node?
    #[inline]
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }

    /// Does it still answer? If not, UDP flows to it are to be forgotten.
    #[inline]
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.flags & Self::SERVING != 0
    }

    /// Does it take new flows of `scope`?
    #[inline]
    #[must_use]
    pub fn takes(&self, scope: Scope) -> bool {
        self.flags & Self::scope_flag(scope) != 0
    }

    /// May a client whose last flow went there have its next one there, of `scope`? Not when it is
    /// drained.
    #[inline]
    #[must_use]
    pub fn keeps_clients(&self, scope: Scope) -> bool {
        self.takes(scope) && self.flags & Self::DRAINING == 0
    }

    const fn scope_flag(scope: Scope) -> u8 {
        match scope {
            Scope::Cluster => Self::CLUSTER_SCOPE,
            Scope::Local => Self::LOCAL_SCOPE,
        }
    }
}

/// How one of a scope's backends is chosen. The numbers are places in the list of all backends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// There is none.
    Nothing,
    /// Of all backends, each alike.
    All,
    /// Of these, each alike.
    Some(Box<[u16]>),
    /// Of these by weight: each with the sum of the weights up to and including its own.
    Weighted(Box<[(u32, u16)]>),
    /// Consistently.
    Maglev(Maglev),
}

/// Backends of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backends<K> {
    /// Ascending by address and port.
    list: Box<[Backend<K>]>,
    cluster: Choice,
    local: Choice,
    has_any: bool,
}

impl<K> Default for Backends<K> {
    fn default() -> Self {
        let nothing = || Choice::Nothing;
        Self { list: Box::new([]), cluster: nothing(), local: nothing(), has_any: false }
    }
}

/// An address that backends can have.
pub trait BackendAddress: Address {
    /// It in 128 bits; IPv4-mapped if it is of IPv4 (RFC 4291 section 2.5.5.2).
    fn identity(self) -> u128;
    /// The bits of an address of this family.
    fn of(address: IpAddr) -> Option<Self>;
}

impl BackendAddress for u32 {
    fn identity(self) -> u128 {
        Ipv4Addr::from_bits(self).to_ipv6_mapped().to_bits()
    }
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address.to_bits()),
            IpAddr::V6(_) => None,
        }
    }
}

impl BackendAddress for u128 {
    fn identity(self) -> u128 {
        self
    }
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V6(address) => Some(address.to_bits()),
            IpAddr::V4(_) => None,
        }
    }
}

impl<K: BackendAddress> Backends<K> {
    /// Most backends of a family.
    pub const MAX: usize = Maglev::MAX_CANDIDATES;

    /// The backends of family `K` among `all`, of which those beyond [`Backends::MAX`] are left
    /// out.
    #[must_use]
    pub fn new(all: &[overlane_api::Backend], algorithm: Algorithm) -> Self {
        let mut list: Vec<(Backend<K>, u16)> = all
            .iter()
            .filter_map(|backend| {
                let mut flags = 0;
                for (is, flag) in [
                    (backend.local, Backend::<K>::LOCAL),
                    (backend.use_cluster, Backend::<K>::CLUSTER_SCOPE),
                    (backend.use_local, Backend::<K>::LOCAL_SCOPE),
                    (backend.serving, Backend::<K>::SERVING),
                    (backend.weight == 0, Backend::<K>::DRAINING),
                ] {
                    flags |= if is { flag } else { 0 };
                }
                let (address, port) = (K::of(backend.address)?, backend.port);
                Some((Backend { address, port, flags }, backend.weight))
            })
            .collect();
        list.sort_unstable_by_key(|(backend, _)| (backend.address, backend.port));
        list.dedup_by_key(|(backend, _)| (backend.address, backend.port));
        list.truncate(Self::MAX);
        let cluster = Choice::new(&list, Scope::Cluster, algorithm);
        let local = Choice::new(&list, Scope::Local, algorithm);
        let list: Box<[_]> = list.into_iter().map(|(backend, _)| backend).collect();
        let has_any = list.iter().any(|b| b.takes(Scope::Cluster) || b.takes(Scope::Local));
        Self { list, cluster, local, has_any }
    }

    /// A backend for a new flow of `scope`; `hash` is well mixed. None: no backend takes one.
    #[inline]
    #[must_use]
    pub fn choose(&self, scope: Scope, hash: u32) -> Option<Backend<K>> {
        self.list.get(self.choice(scope).pick(self.list.len(), hash)?).copied()
    }

    /// Brings near what [`Backends::prefetch_choice`] will read: this.
    #[inline]
    pub fn prefetch(&self) {
        prefetch_whole(self);
    }

    /// Brings near what says which backend is chosen.
    #[inline]
    pub fn prefetch_choice(&self, scope: Scope, hash: u32) {
        if let Choice::Maglev(table) = self.choice(scope) {
            table.prefetch(hash);
        }
    }

    /// Brings the backend near that [`Backends::choose`] will read.
    #[inline]
    pub fn prefetch_chosen(&self, scope: Scope, hash: u32) {
        let place = self.choice(scope).pick(self.list.len(), hash);
        if let Some(backend) = place.and_then(|place| self.list.get(place)) {
            prefetch(backend);
        }
    }

    const fn choice(&self, scope: Scope) -> &Choice {
        match scope {
            Scope::Cluster => &self.cluster,
            Scope::Local => &self.local,
        }
    }

    /// The backend of that address and port, whatever it takes.
    #[must_use]
    pub fn find(&self, address: K, port: u16) -> Option<Backend<K>> {
        let key = (address, port);
        let place = self.list.binary_search_by_key(&key, |b| (b.address, b.port)).ok()?;
        self.list.get(place).copied()
    }

    /// Does any backend of this family, on any node, take new flows of any scope? Then a packet for
    /// which [`Backends::choose`] finds none is dropped, else rejected.
    #[inline]
    #[must_use]
    pub const fn has_any(&self) -> bool {
        self.has_any
    }

    /// All backends, ascending by address and port.
    #[must_use]
    pub fn list(&self) -> &[Backend<K>] {
        &self.list
    }

    /// Bytes of memory besides its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.list) + self.cluster.bytes() + self.local.bytes()
    }
}

impl Choice {
    fn new<K: BackendAddress>(
        list: &[(Backend<K>, u16)],
        scope: Scope,
        algorithm: Algorithm,
    ) -> Self {
        let usable = (0_u16..)
            .zip(list)
            .filter(|(_, (backend, weight))| backend.takes(scope) && *weight > 0)
            .map(|(index, (backend, weight))| {
                let identity = (backend.address.identity(), backend.port);
                Candidate { identity, weight: *weight, index }
            });
        let usable: Vec<Candidate> = usable.collect();
        if algorithm == Algorithm::Maglev {
            return Maglev::new(&usable).map_or(Self::Nothing, Self::Maglev);
        }
        let Some(first) = usable.first() else { return Self::Nothing };
        if usable.iter().any(|candidate| candidate.weight != first.weight) {
            let sums = usable.iter().scan(0, |sum, candidate| {
                *sum += u32::from(candidate.weight);
                Some((*sum, candidate.index))
            });
            return Self::Weighted(sums.collect());
        }
        if usable.len() == list.len() {
            return Self::All;
        }
        Self::Some(usable.iter().map(|candidate| candidate.index).collect())
    }

    /// A place in the list of all backends, of which there are `backends`.
    #[inline]
    fn pick(&self, backends: usize, hash: u32) -> Option<usize> {
        match self {
            Self::Nothing => None,
            Self::All => Some(scale(hash, backends)),
            Self::Some(some) => some.get(scale(hash, some.len())).copied().map(usize::from),
            Self::Weighted(sums) => {
                let total = sums.last()?.0;
                let at = scale(hash, total as usize);
                let place = sums.partition_point(|(sum, _)| *sum as usize <= at);
                sums.get(place).map(|(_, index)| usize::from(*index))
            }
            Self::Maglev(table) => Some(usize::from(table.pick(hash))),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Nothing | Self::All => 0,
            Self::Some(some) => std::mem::size_of_val(&**some),
            Self::Weighted(sums) => std::mem::size_of_val(&**sums),
            Self::Maglev(table) => table.bytes(),
        }
    }
}

/// `hash`, of 32 bits, scaled to less than `size`.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the product's high half is below the size")]
const fn scale(hash: u32, size: usize) -> usize {
    ((hash as u128 * size as u128) >> 32) as usize
}

/// One port of a service.
#[derive(Debug, Clone)]
pub struct ServiceEntry {
    /// Counts up with every change of any service: two states of a service, or two services that
    /// have one index after the other, never have the same.
    pub generation: u32,
    /// Counts the services that had its index, one after the other: their flows are not its own.
    pub life: u8,
    /// Its protocol, as in the IP header.
    pub protocol: u8,
    /// Scope of what is sent to its cluster addresses.
    pub internal: Scope,
    /// Scope of what comes from outside to its other addresses.
    pub external: Scope,
    /// What a client gets when no backend exists.
    pub reject: Reject,
    /// How a packet from outside reaches a backend on another node.
    pub forwarding: Forwarding,
    /// How a backend is chosen: with `Random`, the hash is to be.
    pub algorithm: Algorithm,
    /// A client's new flows keep its last one's backend so long, seconds; 0: no affinity.
    pub affinity_seconds: u32,
    /// Who may use its load balancer addresses; none: everybody.
    pub sources: Option<Arc<Spaces>>,
    /// IPv4 backends.
    pub v4: Arc<Backends<u32>>,
    /// IPv6 backends.
    pub v6: Arc<Backends<u128>>,
}

impl ServiceEntry {
    /// The scope of a packet to a frontend of `kind`. Pods and the node itself, which are inside,
    /// reach all backends by external addresses too.
    #[inline]
    #[must_use]
    pub fn scope(&self, kind: FrontendKind, inside: bool) -> Scope {
        match (kind, inside) {
            (FrontendKind::ClusterIp, _) => self.internal,
            (_, true) => Scope::Cluster,
            (_, false) => self.external,
        }
    }

    /// May `source`, the client's own address, use its frontends of `kind`? If not, its packets
    /// are dropped.
    #[inline]
    #[must_use]
    pub fn admits(&self, kind: FrontendKind, source: IpAddr) -> bool {
        match &self.sources {
            Some(sources) if kind == FrontendKind::LoadBalancer => sources.get(source) != 0,
            _ => true,
        }
    }

    /// Bytes of memory besides its own.
    fn bytes(&self) -> usize {
        let sources = self.sources.as_ref().map_or(0, |sources| sources.bytes());
        // An `Arc` has two counters, and what it points to.
        let heads = std::mem::size_of::<Backends<u32>>() + std::mem::size_of::<Backends<u128>>();
        sources + heads + 4 * size_of::<usize>() + self.v4.bytes() + self.v6.bytes()
    }
}

/// A VIP, protocol and port as a key.
#[inline]
const fn key(vip: u32, protocol: u8, port: u16) -> u64 {
    (vip as u64) << 32 | (protocol as u64) << 16 | port as u64
}

/// All services.
#[derive(Debug, Clone, Default)]
pub struct ServiceTables {
    /// IPv4 address, host order -> VIP number plus 1.
    vips_v4: Map<u32>,
    /// IPv6 address, host order -> VIP number plus 1.
    vips_v6: Map<u128>,
    /// {VIP, protocol, port} -> [`FrontendRef`].
    ports: Map<u64>,
    services: Paged<Option<ServiceEntry>>,
    /// Services whose backends answer clients themselves.
    direct: usize,
}

impl ServiceTables {
    /// Is there a service whose backends answer clients themselves?
    #[inline]
    #[must_use]
    pub fn has_direct(&self) -> bool {
        self.direct != 0
    }

    /// The number of a service's IPv4 address, host order.
    #[inline]
    #[must_use]
    pub fn vip4(&self, address: u32) -> Option<u32> {
        self.vips_v4.get(address).checked_sub(1)
    }

    /// The number of a service's IPv6 address, host order.
    #[inline]
    #[must_use]
    pub fn vip6(&self, address: u128) -> Option<u32> {
        self.vips_v6.get(address).checked_sub(1)
    }

    /// The number of a service's address.
    #[must_use]
    pub fn vip(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => self.vip4(address.to_bits()),
            IpAddr::V6(address) => self.vip6(address.to_bits()),
        }
    }

    /// Brings the line near that [`ServiceTables::frontend`] will read.
    #[inline]
    pub fn prefetch(&self, vip: u32, protocol: u8, port: u16) {
        self.ports.prefetch(key(vip, protocol, port));
    }

    /// The frontend at a VIP, by the number that its route has; `port` in host byte order.
    #[inline]
    #[must_use]
    pub fn frontend(&self, vip: u32, protocol: u8, port: u16) -> Option<FrontendRef> {
        FrontendRef::from_bits(self.ports.get(key(vip, protocol, port)))
    }

    /// What an address, protocol and port are; `port` in host byte order.
    #[must_use]
    pub fn lookup(&self, address: IpAddr, protocol: u8, port: u16) -> Found {
        let Some(vip) = self.vip(address) else { return Found::NotAService };
        self.frontend(vip, protocol, port).map_or(Found::UnknownPort, Found::Frontend)
    }

    /// A service by its index.
    #[inline]
    #[must_use]
    pub fn service(&self, index: u32) -> Option<&ServiceEntry> {
        self.services.get(index)?.as_ref()
    }

    /// Brings a service near.
    #[inline]
    pub fn prefetch_service(&self, index: u32) {
        self.services.prefetch(index);
    }

    /// Places for services, of which some may be free: one more than the largest index.
    #[must_use]
    pub fn places(&self) -> usize {
        self.services.len()
    }

    /// Frontends of all services.
    #[must_use]
    pub fn frontends(&self) -> usize {
        self.ports.len()
    }

    /// Sets the number of a service's address; none: it has none any more.
    pub fn set_vip(&mut self, address: IpAddr, vip: Option<u32>) {
        let value = vip.map_or(0, |vip| vip + 1);
        match address {
            IpAddr::V4(address) => self.vips_v4.set(address.to_bits(), value),
            IpAddr::V6(address) => self.vips_v6.set(address.to_bits(), value),
        };
    }

    /// Sets whose a VIP, protocol and port are; none: nobody's.
    pub fn set_frontend(
        &mut self,
        vip: u32,
        protocol: u8,
        port: u16,
        frontend: Option<FrontendRef>,
    ) {
        self.ports.set(key(vip, protocol, port), frontend.map_or(0, FrontendRef::to_bits));
    }

    /// Sets a service; none: its place is free.
    pub fn set_service(&mut self, index: u32, service: Option<ServiceEntry>) {
        while self.services.len() <= index as usize {
            self.services.push(None);
        }
        let is_direct = |service: &Option<ServiceEntry>| {
            service.as_ref().is_some_and(|service| service.forwarding == Forwarding::Dsr)
        };
        if let Some(place) = self.services.get_mut(index) {
            self.direct -= usize::from(is_direct(place));
            self.direct += usize::from(is_direct(&service));
            *place = service;
        }
    }

    /// Bytes of memory, pages that versions share counted once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let place = std::mem::size_of::<Option<ServiceEntry>>();
        let services = self.services.iter().flatten().map(ServiceEntry::bytes);
        self.vips_v4.bytes()
            + self.vips_v6.bytes()
            + self.ports.bytes()
            + self.services.len() * place
            + services.sum::<usize>()
    }

    /// Services.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services.iter().flatten().count()
    }

    /// Is there no service?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
