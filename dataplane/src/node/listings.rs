//! What the process says about services, flows and source NAT: the workers report their flows as
//! numbers, and here they get the names of the objects.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use overlane_api::flow::{FlowFilter, FlowReport, FlowStatus, NatBinding, NatReport};
use overlane_api::protocol::{ApiError, ErrorCode, Op, Reply};
use overlane_api::status::{BackendStatus, ServiceStatus, Traffic};
use overlane_api::{Backend, Change, ObjectKey, Service, WorkerId};

pub use super::nat_trend::Trend;
use super::nat_usage::Usage;
use super::process::Process;
use crate::flow::past::Carried;
use crate::tables::Snapshot;
use crate::tables::compile::Compiler;
use crate::tables::services::Found;
use crate::worker::errands::{
    Errand, Extras, FlowRecord, Meant, Order, Round, ServiceFrontend, Silent, Summary,
};

/// How long the slow thread waits for a word of a worker. A sleeping one is woken, a busy one looks
/// for errands every 10 ms.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who answers: the objects, and a way to the workers.
pub struct Listings<'a> {
    /// The objects, and the tables made of them.
    pub compiler: &'a Compiler,
    /// How many workers there are.
    pub workers: usize,
    /// How fast the external addresses fill.
    pub trend: &'a Trend,
    /// Hands an errand to a worker.
    pub send: &'a dyn Fn(WorkerId, Box<Errand>),
}

impl std::fmt::Debug for Listings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listings").field("workers", &self.workers).finish_non_exhaustive()
    }
}

/// Is the service port `name` meant by `asked`: itself, or the service that it is a port of?
fn is_meant(name: &str, asked: &str) -> bool {
    name == asked || name.strip_prefix(asked).is_some_and(|rest| rest.starts_with(':'))
}

impl Listings<'_> {
    /// Answers an operation that is about services, flows or source NAT; none for the others.
    #[must_use]
    pub fn answer(&self, op: &Op) -> Option<Result<Reply, ApiError>> {
        Some(match op {
            Op::Services => self.services().map(Reply::Services),
            Op::Flows { filter } => self.flows(filter).map(Reply::Flows),
            Op::FlushFlows { filter } => self.flush(filter).map(|flows| Reply::Flushed { flows }),
            Op::NatBindings { filter } => self.bindings(filter).map(Reply::NatBindings),
            Op::NatUsage => self.usage(),
            _ => return None,
        })
    }

    fn workers(&self) -> impl Iterator<Item = WorkerId> + use<> {
        (0..self.workers).filter_map(|number| u8::try_from(number).ok()).map(WorkerId)
    }

    /// The filter as workers understand it.
    fn meant(&self, filter: &FlowFilter) -> Result<Meant, ApiError> {
        let refuse = |what: String, field: &str, hint: &str| {
            let error = ApiError::new(ErrorCode::Refused, what);
            Err(error.at(format!("filter: {field}")).hint(hint))
        };
        let mut meant = Meant {
            address: filter.address,
            port: filter.port,
            protocol: filter.protocol,
            has_port: filter.snat,
            ..Meant::default()
        };
        if let Some(name) = &filter.endpoint {
            let Some((endpoint, _)) = self.compiler.endpoint(name) else {
                let hint = "give namespace/name of a pod, as `overlane endpoint list` shows it";
                return refuse(format!("there is no endpoint {name}"), "endpoint", hint);
            };
            meant.ends = Some(endpoint.addresses.clone());
        }
        if let Some(name) = &filter.service {
            let services = self.compiler.services().filter(|(s, ..)| is_meant(&s.name, name));
            let services: Vec<_> = services.map(|(service, index, _)| (service, index)).collect();
            if services.is_empty() {
                let hint = "give namespace/name, or namespace/name:port";
                return refuse(format!("there is no service {name}"), "service", hint);
            }
            let mut frontends: Vec<ServiceFrontend> =
                services.into_iter().flat_map(|(service, index)| places(service, index)).collect();
            frontends.sort_unstable();
            meant.services = Some(frontends);
        }
        if let Some(worker) = filter.worker
            && worker.index() >= self.workers
        {
            let what = format!("there is no worker {worker}");
            let hint = format!("they are numbered from 0, and there are {}", self.workers);
            return refuse(what, "worker", &hint);
        }
        Ok(meant)
    }

    /// Sends all workers, or `only` this one, through their flows.
    fn ask(
        &self,
        only: Option<WorkerId>,
        (order, meant): (Order, Meant),
        extras: Extras,
        each: &mut dyn FnMut(WorkerId, &FlowRecord),
    ) -> Result<Vec<(WorkerId, Summary)>, ApiError> {
        let workers = self.workers().filter(|worker| only.is_none_or(|only| only == *worker));
        let round = Round::begin(workers, order, meant, extras, self.send);
        round.finish(PATIENCE, each).map_err(|Silent(workers)| {
            let names: Vec<String> = workers.iter().map(ToString::to_string).collect();
            let what = format!("no answer from worker {} within 2 seconds", names.join(", "));
            ApiError::new(ErrorCode::Failed, what).hint(match order {
                Order::List(_) => "ask again; if it stays so, look at `overlane status`",
                Order::Flush => "the others have done it, and it does when it is back",
            })
        })
    }

    fn flows(&self, filter: &FlowFilter) -> Result<FlowReport, ApiError> {
        let limit = limit(filter);
        let names = Names::new(self.compiler);
        let mut found = Vec::new();
        let order = (Order::List(limit as u64), self.meant(filter)?);
        let done = self.ask(filter.worker, order, Extras::default(), &mut |worker, flow| {
            found.push((worker, *flow));
        })?;
        Ok(FlowReport {
            flows: first(found, limit).map(|(w, flow)| names.flow_status(w, &flow)).collect(),
            matched: done.iter().map(|(_, summary)| summary.matched).sum(),
            total: done.iter().map(|(_, summary)| summary.total).sum(),
            capacity: done.iter().map(|(_, summary)| summary.capacity).sum(),
        })
    }

    fn flush(&self, filter: &FlowFilter) -> Result<u64, ApiError> {
        let order = (Order::Flush, self.meant(filter)?);
        let done = self.ask(filter.worker, order, Extras::default(), &mut |_, _| {})?;
        Ok(done.iter().map(|(_, summary)| summary.matched).sum())
    }

    fn bindings(&self, filter: &FlowFilter) -> Result<NatReport, ApiError> {
        let limit = limit(filter);
        let names = Names::new(self.compiler);
        let meant = Meant { has_port: true, ..self.meant(filter)? };
        let mut found = Vec::new();
        let order = (Order::List(limit as u64), meant);
        let done = self.ask(filter.worker, order, Extras::default(), &mut |worker, flow| {
            found.push((worker, *flow));
        })?;
        Ok(NatReport {
            bindings: first(found, limit).map(|(w, flow)| names.binding(w, &flow)).collect(),
            matched: done.iter().map(|(_, summary)| summary.matched).sum(),
        })
    }

    fn usage(&self) -> Result<Reply, ApiError> {
        let names = Names::new(self.compiler);
        let external: Vec<_> = names.tables.external.addresses().collect();
        let addresses = external.iter().map(|external| external.address).collect();
        let extras = Extras { addresses, ..Extras::default() };
        let meant = Meant { has_port: true, ..Meant::default() };
        let mut usage = Usage::default();
        let order = (Order::List(u64::MAX), meant);
        let done = self.ask(None, order, extras, &mut |worker, flow| usage.add(worker, flow))?;
        let pod = |address| names.local_endpoint(address);
        let of = |external| usage.of(external, &done, self.trend, &pod);
        Ok(Reply::NatUsage(external.iter().map(of).collect()))
    }

    fn services(&self) -> Result<Vec<ServiceStatus>, ApiError> {
        let names = Names::new(self.compiler);
        let mut counts: HashMap<u32, ServiceCounts> = HashMap::new();
        let tags = self.compiler.services().map(|(_, index, _)| index + 1).collect::<Vec<_>>();
        let extras = Extras { tags: tags.clone(), ..Extras::default() };
        let order = (Order::List(u64::MAX), Meant { to_service: true, ..Meant::default() });
        let done = self.ask(None, order, extras, &mut |_, flow| {
            if let Some(index) = names.service(flow) {
                counts.entry(index).or_default().add(flow);
            }
        })?;
        for (tag, past) in done.iter().flat_map(|(_, summary)| tags.iter().zip(&summary.past)) {
            counts.entry(tag - 1).or_default().carried += *past;
        }
        let none = ServiceCounts::default();
        let statuses = self.compiler.services().map(|(service, index, entry)| {
            let generation = entry.map_or(0, |entry| u64::from(entry.generation));
            let is_direct = |backend: &Backend| self.compiler.answers_directly(service, backend);
            counts.get(&index).unwrap_or(&none).status(service, generation, is_direct)
        });
        let mut statuses: Vec<ServiceStatus> = statuses.collect();
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(statuses)
    }
}

impl Process {
    /// Answers an operation about services, flows or source NAT.
    pub(super) fn listings(&self, op: &Op) -> Result<Reply, ApiError> {
        let send = |worker, errand| self.workers.send_errand(worker, errand);
        let workers = self.workers.len();
        let listings =
            Listings { compiler: &self.compiler, workers, trend: &self.trend, send: &send };
        let other = || ApiError::new(ErrorCode::Unsupported, "this is no listing of flows");
        listings.answer(op).unwrap_or_else(|| Err(other()))
    }

    /// Tags of the services that `changes` would remove.
    pub(super) fn tags_of_removed(&self, changes: &[Change]) -> Vec<u32> {
        let removed = changes.iter().filter_map(|change| match change {
            Change::Remove(ObjectKey::Service(name)) => self.compiler.service_index(name),
            _ => None,
        });
        removed.map(|index| index + 1).collect()
    }

    /// Gives the workers room for as many flows as the node says, if it says so in time.
    pub(super) fn set_flow_capacity(&mut self) {
        let Some(capacity) = self.compiler.node().map(|node| node.flow_capacity) else { return };
        match self.workers.set_flow_capacity(capacity) {
            Ok(keep) if keep.is_empty() => self.clear_warning("flow capacity"),
            Ok(keep) => {
                let keep: Vec<String> =
                    keep.iter().map(|(worker, flows)| format!("{worker} ({flows})")).collect();
                let what = format!(
                    "room for {capacity} flows of each family is for the next start: worker {} has \
                     flows, and keeps its tables",
                    keep.join(", ")
                );
                self.warn("flow capacity", what);
            }
            Err(error) => self.warn("flow capacity", error.to_string()),
        }
    }
}

/// How many are shown.
fn limit(filter: &FlowFilter) -> usize {
    let limit = filter.limit.unwrap_or(FlowFilter::DEFAULT_LIMIT).min(FlowFilter::MAX_LIMIT);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// The first of all workers' flows, those of the first worker first.
fn first(
    mut found: Vec<(WorkerId, FlowRecord)>,
    limit: usize,
) -> impl Iterator<Item = (WorkerId, FlowRecord)> {
    found.sort_by_key(|(worker, _)| *worker);
    found.into_iter().take(limit)
}

/// Where a service answers, with the tag of its flows.
fn places(service: &Service, index: u32) -> impl Iterator<Item = ServiceFrontend> + '_ {
    let protocol = service.protocol.number();
    service.frontends.iter().map(move |at| (index + 1, at.address, at.port, protocol))
}

/// Names for what flows say in numbers.
struct Names<'a> {
    compiler: &'a Compiler,
    tables: Snapshot,
}

impl<'a> Names<'a> {
    fn new(compiler: &'a Compiler) -> Self {
        Self { compiler, tables: compiler.snapshot() }
    }

    /// The service of a flow; none when it is gone, or does not answer there any more.
    fn service(&self, flow: &FlowRecord) -> Option<u32> {
        let index = flow.service?;
        let to = &flow.original;
        let found = self.tables.services.lookup(to.destination, flow.protocol, to.destination_port);
        matches!(found, Found::Frontend(at) if at.service == index).then_some(index)
    }

    fn local_endpoint(&self, address: IpAddr) -> Option<String> {
        self.compiler.local_endpoint_at(address).map(str::to_owned)
    }

    /// The pod here that a flow is of: its opener, or who is reached.
    fn endpoint(&self, flow: &FlowRecord) -> Option<String> {
        self.local_endpoint(flow.original.source)
            .or_else(|| self.local_endpoint(flow.translated.destination))
    }

    /// The rule by which a flow left; as the rules are now.
    fn egress(&self, flow: &FlowRecord) -> Option<String> {
        let (from, to) = (flow.original.source, flow.translated.destination);
        let rule = || self.compiler.egress_rule(from, to);
        flow.has_port.then(|| rule().map_or_else(|| "node".to_owned(), |rule| rule.name.clone()))
    }

    fn flow_status(&self, worker: WorkerId, flow: &FlowRecord) -> FlowStatus {
        let service = self.service(flow).and_then(|index| self.compiler.service_name(index));
        FlowStatus {
            worker,
            protocol: flow.protocol,
            original: flow.original,
            translated: flow.translated,
            state: flow.state.name().to_owned(),
            service: service.map(str::to_owned),
            egress: self.egress(flow),
            endpoint: self.endpoint(flow),
            forward: flow.forward,
            reverse: flow.reverse,
            age_s: flow.age_s,
            idle_s: flow.idle_s,
            expires_s: flow.expires_s,
        }
    }

    fn binding(&self, worker: WorkerId, flow: &FlowRecord) -> NatBinding {
        let (inside, outside) = (&flow.original, &flow.translated);
        NatBinding {
            worker,
            protocol: flow.protocol,
            external: outside.source,
            external_port: outside.source_port,
            internal: inside.source,
            internal_port: inside.source_port,
            remote: outside.destination,
            remote_port: outside.destination_port,
            endpoint: self.local_endpoint(inside.source),
            state: flow.state.name().to_owned(),
            expires_s: flow.expires_s,
        }
    }
}

/// Flows of one service.
#[derive(Debug, Default)]
struct ServiceCounts {
    /// There are so many now, by backend.
    backends: HashMap<(IpAddr, u16), u64>,
    /// All, also those that have gone.
    carried: Carried,
}

impl ServiceCounts {
    fn add(&mut self, flow: &FlowRecord) {
        let to = &flow.translated;
        *self.backends.entry((to.destination, to.destination_port)).or_default() += 1;
        self.carried += Carried {
            flows: 1,
            forward_packets: flow.forward.packets,
            forward_bytes: flow.forward.bytes,
            reverse_packets: flow.reverse.packets,
            reverse_bytes: flow.reverse.bytes,
            ..Carried::default()
        };
    }

    fn status(
        &self,
        service: &Service,
        generation: u64,
        is_direct: impl Fn(&Backend) -> bool,
    ) -> ServiceStatus {
        let backends = service.backends.iter().map(|backend| BackendStatus {
            backend: *backend,
            flows: Some(self.backends.get(&(backend.address, backend.port)).copied().unwrap_or(0)),
            direct: is_direct(backend),
        });
        let all = &self.carried;
        ServiceStatus {
            name: service.name.clone(),
            protocol: service.protocol,
            frontends: service.frontends.clone(),
            backends: backends.collect(),
            internal: service.internal,
            external: service.external,
            algorithm: service.algorithm,
            forwarding: service.forwarding,
            affinity_seconds: service.affinity_seconds,
            generation,
            new_flows: all.flows,
            to_backends: Traffic { packets: all.forward_packets, bytes: all.forward_bytes },
            to_clients: Traffic { packets: all.reverse_packets, bytes: all.reverse_bytes },
            rejected: all.rejected,
            dropped: all
                .dropped()
                .into_iter()
                .filter(|(_, packets)| *packets > 0)
                .map(|(reason, packets)| (reason.name().to_owned(), packets))
                .collect(),
        }
    }
}
