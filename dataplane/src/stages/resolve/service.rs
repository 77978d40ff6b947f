//! A service's address -> one of its backends.

use overlane_api::{Algorithm, FrontendKind, Scope};

use super::direct;
use super::family::Family;
use crate::flow::flows::Flows;
use crate::packet::drop::DropReason;
use crate::packet::flow_key::{FlowHash, FlowKey, Transport};
use crate::stages::Context;
use crate::tables::services::{Backend, ServiceEntry, ServiceTables, Spread, UNASSIGNED};

/// The hash that chooses backends: the same on every node and worker, so that they choose alike.
const HASH: FlowHash = FlowHash::new(0x6d61_676c_6576_0001);

/// Where a new flow to a service goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chosen<A> {
    /// Index of the service.
    pub(super) service: u32,
    /// Which of those that had the index.
    pub(super) life: u8,
    /// The backend's address.
    pub(super) address: A,
    /// The backend's port, host order.
    pub(super) port: u16,
    /// Does the backend see the client's address? Else this node's, so that the answer comes back here.
    pub(super) keeps_client: bool,
    /// Does the backend's node answer the client itself, if it can be told to?
    pub(super) is_direct: bool,
}

/// Chooses a backend for a flow to VIP number `vip`, from inside of the cluster or from outside. An
/// `adopted` connection already has one, which only who hashes finds again.
///
/// # Errors
/// Why there is none.
pub(super) fn choose<A: Family>(
    key: &FlowKey<A>,
    vip: u32,
    inside: bool,
    adopted: bool,
    cx: &mut Context<'_>,
) -> Result<Chosen<A>, DropReason> {
    if vip == UNASSIGNED {
        return Err(DropReason::ServiceUnassigned);
    }
    if !matches!(key.transport(), Transport::Tcp | Transport::Udp | Transport::Sctp) {
        return Err(DropReason::ServiceProtocol);
    }
    let services = &cx.tables.services;
    let frontend = services
        .frontend(vip, key.protocol, key.destination_port)
        .ok_or(DropReason::ServiceUnknownPort)?;
    let service = services.service(frontend.service).ok_or(DropReason::ServiceUnknownPort)?;
    let refuse = |flows: &mut Flows, reason| {
        A::table(flows).refuse(frontend.service + 1, reason);
        reason
    };
    if !inside && frontend.kind == FrontendKind::ClusterIp {
        return Err(refuse(cx.flows, DropReason::ServiceFromOutside));
    }
    if !service.admits(frontend.kind, key.source.to_ip()) {
        return Err(refuse(cx.flows, DropReason::ServiceSourceRange));
    }
    let scope = service.scope(frontend.kind, inside);
    let kept = kept(key, frontend.service, service, (scope, inside), cx.flows, cx.now_ns);
    // From outside to a backend here, the workers that receive the packets must agree on its home.
    let agrees = !inside && (scope == Scope::Local || service.affinity_seconds != 0);
    let is_random = service.algorithm == Algorithm::Random && !agrees;
    let hash = match service.algorithm {
        Algorithm::Random if is_random => cx.flows.random(),
        _ if inside => hash(key),
        _ => hash_of_client(key, service),
    };
    let backends = A::backends(service);
    let is_foretold = kept.is_some() || !is_random;
    let Some(backend) = kept.or_else(|| backends.choose(scope, hash)) else {
        let elsewhere = backends.has_any();
        let reason = if elsewhere {
            DropReason::ServiceNoLocalBackend
        } else {
            DropReason::ServiceNoBackend
        };
        return Err(refuse(cx.flows, reason));
    };
    if adopted && !is_foretold {
        return Err(refuse(cx.flows, DropReason::FlowUnknown));
    }
    if service.affinity_seconds != 0 && inside {
        let (to, now) = ((backend.address, backend.port), Flows::tick(cx.now_ns));
        A::affinity(cx.flows).note(key.source, frontend.service, to, now);
    }
    let keeps_client = inside || scope == Scope::Local;
    let is_direct = !inside && direct::is_direct(service, frontend.kind, key, cx.tables);
    let (address, port) = (backend.address, backend.port);
    let (service, life) = (frontend.service, service.life);
    Ok(Chosen { service, life, address, port, keeps_client, is_direct })
}

/// The service that a new flow goes to, for [`super::ahead`]: what [`choose`] will read of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Likely {
    service: u32,
    kind: FrontendKind,
    inside: bool,
}

/// The service at VIP number `vip` that the flow goes to.
#[inline(always)]
pub(super) fn likely<A: Family>(
    key: &FlowKey<A>,
    vip: u32,
    inside: bool,
    services: &ServiceTables,
) -> Option<Likely> {
    let frontend = services.frontend(vip, key.protocol, key.destination_port)?;
    Some(Likely { service: frontend.service, kind: frontend.kind, inside })
}

impl Likely {
    /// Asks for the service.
    #[inline(always)]
    pub(super) fn prefetch(self, services: &ServiceTables) {
        services.prefetch_service(self.service);
    }

    /// How one of them is chosen.
    #[inline(always)]
    pub(super) fn choice<'a, A: Family>(
        self,
        key: &FlowKey<A>,
        services: &'a ServiceTables,
    ) -> Option<LikelyChoice<'a, A>> {
        let service = services.service(self.service)?;
        let hash = if self.inside { hash(key) } else { hash_of_client(key, service) };
        let scope = service.scope(self.kind, self.inside);
        let is_certain = self.inside
            && service.algorithm == Algorithm::Maglev
            && service.affinity_seconds == 0
            && service.admits(self.kind, key.source.to_ip());
        let (service, life, backends) = (self.service, service.life, A::backends(service));
        Some(LikelyChoice { service, life, backends, scope, hash, is_certain })
    }
}

/// How a backend is chosen, unless it is by lot or the client has one already.
#[derive(Debug, Clone, Copy)]
pub(super) struct LikelyChoice<'a, A> {
    service: u32,
    life: u8,
    backends: &'a Spread<A>,
    scope: Scope,
    hash: u32,
    /// Will [`choose`] choose so, if it is asked with these tables?
    is_certain: bool,
}

impl<A: Family> LikelyChoice<'_, A> {
    /// Asks for what says which. Says whether that is known, or to be asked for by
    /// [`LikelyChoice::prefetch_late_slot`].
    #[inline(always)]
    pub(super) fn prefetch_slot(&self) -> bool {
        self.backends.prefetch_choice(self.scope, self.hash)
    }

    /// Asks for what says which, where that is not as usual.
    #[cold]
    pub(super) fn prefetch_late_slot(&self) {
        self.backends.prefetch_late_choice(self.scope, self.hash);
    }

    /// Asks for it.
    #[inline(always)]
    pub(super) fn prefetch_backend(&self) {
        self.backends.prefetch_chosen(self.scope, self.hash);
    }

    /// What [`choose`] says, if it does; and whether that is certain.
    #[inline(always)]
    pub(super) fn chosen(&self) -> Option<(Chosen<A>, bool)> {
        let backend = self.backends.choose(self.scope, self.hash)?;
        let (address, port) = (backend.address, backend.port);
        let (service, life) = (self.service, self.life);
        // Certain is only what is so of flows from inside.
        let chosen = Chosen { service, life, address, port, keeps_client: true, is_direct: false };
        Some((chosen, self.is_certain))
    }
}

/// Do the backends of the service that a packet from outside is to see the client's own address? If so:
/// the address of the one that would be chosen today, if there is one.
pub(super) fn local<A: Family>(key: &FlowKey<A>, vip: u32, cx: &Context<'_>) -> Option<Option<A>> {
    let services = &cx.tables.services;
    let frontend = services.frontend(vip, key.protocol, key.destination_port)?;
    let service = services.service(frontend.service)?;
    if service.scope(frontend.kind, false) == Scope::Cluster {
        return None;
    }
    let backend = A::backends(service).choose(Scope::Local, hash_of_client(key, service));
    Some(backend.map(|backend| backend.address))
}

/// The backend of a client's last flow to the service, if it is to have the next one as well: only
/// for clients of this node, `inside`.
fn kept<A: Family>(
    key: &FlowKey<A>,
    index: u32,
    service: &ServiceEntry,
    (scope, inside): (Scope, bool),
    flows: &mut Flows,
    now_ns: u64,
) -> Option<Backend<A>> {
    let seconds = service.affinity_seconds;
    if seconds == 0 || !inside {
        return None;
    }
    let last = A::affinity(flows).find(key.source, index, seconds, Flows::tick(now_ns));
    let (address, port) = last?;
    A::backends(service).find(address, port).filter(|backend| backend.keeps_clients(scope))
}

/// A client from outside that is to stay with its backend is hashed without its port.
fn hash_of_client<A: Family>(key: &FlowKey<A>, service: &ServiceEntry) -> u32 {
    if service.affinity_seconds == 0 {
        hash(key)
    } else {
        hash(&FlowKey { source_port: 0, ..*key })
    }
}

#[inline(always)]
fn hash<A: Family>(key: &FlowKey<A>) -> u32 {
    HASH.of(key)
}

/// May a flow to a backend go on by the tables of today? Its service must be the same; a TCP
/// connection is left with its backend, whatever has become of it, and a UDP flow as long as the
/// backend answers.
pub(super) fn goes_on<A: Family>(
    key: &FlowKey<A>,
    backend: (A, u16),
    (service, life): (u32, u8),
    cx: &Context<'_>,
) -> bool {
    let services = &cx.tables.services;
    let now = key
        .destination
        .vip(cx.tables)
        .and_then(|vip| services.frontend(vip, key.protocol, key.destination_port))
        .or_else(|| direct::node_port_elsewhere(key, cx.tables));
    let keeps = key.transport() != Transport::Udp;
    match now {
        // The service or its port is gone: connections end by themselves.
        None => keeps,
        Some(frontend) => {
            let today = services.service(frontend.service).filter(|today| today.life == life);
            let serves = |today: &ServiceEntry| {
                A::backends(today).find(backend.0, backend.1).is_some_and(|b| b.is_serving())
            };
            frontend.service == service && today.is_some_and(|today| keeps || serves(today))
        }
    }
}
