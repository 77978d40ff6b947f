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

use std::net::IpAddr;
use std::sync::Arc;

use overlane_api::{Algorithm, Forwarding, FrontendKind, Reject, Scope};

pub use super::backends::{Backend, BackendAddress, Backends, Spread};
use super::hash::Map;
use super::intervals::Spaces;
use super::paged::Paged;
use crate::packet::meta::Route;
use crate::packet::region::Shared;

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

/// One port of a service. One cache line.
#[derive(Debug, Clone)]
#[repr(align(64))]
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
    pub v4: Spread<u32>,
    /// IPv6 backends.
    pub v6: Spread<u128>,
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
        let heads = Shared::<Backends<u32>>::BYTES + Shared::<Backends<u128>>::BYTES;
        sources + heads + self.v4.bytes() + self.v6.bytes()
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
    /// Were there ever services whose backends answer clients themselves?
    direct: bool,
}

impl ServiceTables {
    /// Is there a service whose backends answer clients themselves, or was there one? Its connections go on.
    #[inline]
    #[must_use]
    pub fn has_direct(&self) -> bool {
        self.direct
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
            self.direct |= is_direct(&service);
            *place = service;
        }
    }

    /// Bytes of memory, pages that versions share counted once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let services = self.services.iter().flatten().map(ServiceEntry::bytes);
        self.vips_v4.bytes()
            + self.vips_v6.bytes()
            + self.ports.bytes()
            + self.services.bytes()
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
