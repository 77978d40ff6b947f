//! The slow thread: one loop over the socket's calls, the kernel's news and the workers' notices.
//! It alone changes objects and tables; workers see only what it publishes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlane_api::protocol::{ApiError, Op, Reply};
use overlane_api::{Change, QueueId, WorkerId};

use super::announce::Announcer;
use super::attach::EndpointAttachment;
use super::host_sockets::HostSockets;
use super::latency::Latency;
use super::links::{Link, LinkEvent, LinkWatch};
use super::listings::Trend;
use super::neighbors::NeighborTable;
use super::next_hops::NextHops;
use super::plan::{self, PortNumbers};
use super::routes::RouteMirror;
use super::settings::Settings;
use super::socket::{Call, CallReceiver, Server, mailbox};
use super::uplink::{HostAttachment, Uplink};
use super::workers::Workers;
use crate::io::Port;
use crate::io::af_xdp::plan::{BudgetTooSmall, MemoryPlan};
use crate::io::af_xdp::{AfXdpPort, BindMode, RingSizes, Umem, UmemOptions};
use crate::packet::meta::Origin;
use crate::packet::pool::UmemId;
use crate::packet::verdict::PortId;
use crate::tables::compile::{Compiler, Effect};
use crate::tables::publish::Publisher;
use crate::worker::PortView;

/// How long the slow thread waits for news: also how late a worker's notice may be seen.
const TICK_MS: u16 = 20;

/// How long after a failure what could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// How long the process waits in the end for its ports' sockets to close.
const CLOSING: Duration = Duration::from_millis(300);

/// What the process cannot do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message is its cause's")]
pub enum ProcessError {
    #[error(transparent)]
    Interface(#[from] crate::io::af_xdp::interface::InterfaceError),
    #[error(transparent)]
    Offload(#[from] crate::io::af_xdp::offload::OffloadError),
    #[error(transparent)]
    Open(#[from] crate::io::af_xdp::OpenError),
    #[error(transparent)]
    Umem(#[from] crate::io::af_xdp::UmemError),
    #[error(transparent)]
    Steering(#[from] overlane_bpf::BpfError),
    #[error(transparent)]
    HostPort(#[from] super::host_port::HostPortError),
    #[error(transparent)]
    Netlink(#[from] super::netlink::NetlinkError),
    #[error(transparent)]
    Socket(#[from] super::socket::SocketError),
    #[error(transparent)]
    Memory(#[from] BudgetTooSmall),
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    #[error(
        "the MAC of the pod behind {0} is not known: its namespace was not found; \
         annotate the pod with overlane.io/mac"
    )]
    NoMac(String),
    #[error("65535 ports are in use: lower the number of endpoints")]
    NoPortNumber,
    #[error("worker {0} has ended: please report it, with the log")]
    WorkerGone(WorkerId),
}

/// A port that a worker serves, as status shows it.
#[derive(Debug)]
pub(super) struct OpenPortRecord {
    pub(super) id: PortId,
    pub(super) interface: String,
    pub(super) queue: QueueId,
    pub(super) worker: WorkerId,
    pub(super) origin: Origin,
    pub(super) zero_copy: bool,
    pub(super) umem: u8,
    pub(super) view: PortView,
}

/// The whole process, but for its workers' threads. What it attached is detached when it is
/// dropped.
#[derive(Debug)]
pub struct Process {
    pub(super) settings: Settings,
    pub(super) compiler: Compiler,
    pub(super) publisher: Publisher,
    // The fields are dropped in this order: programs and ports before the workers that serve them.
    pub(super) uplink: Option<Uplink>,
    pub(super) host: Option<HostAttachment>,
    pub(super) endpoints: BTreeMap<String, EndpointAttachment>,
    pub(super) workers: Workers,
    pub(super) umems: Vec<Umem>,
    pub(super) plan: MemoryPlan,
    pub(super) numbers: PortNumbers,
    pub(super) next_hops: NextHops,
    pub(super) links: LinkWatch,
    pub(super) host_sockets: HostSockets,
    pub(super) announcer: Announcer,
    pub(super) trend: Trend,
    pub(super) latency: Latency,
    pub(super) warnings: BTreeMap<&'static str, String>,
    pub(super) started: Instant,
    pub(super) instance: u64,
    /// When something that could not be opened is tried again.
    retry_at: Instant,
    /// The endpoint that was tried again last: each gets its turn.
    pub(super) retried: String,
    server: Option<Server>,
    calls: CallReceiver,
}

/// Says whether a UMEM has all its frames back, once nobody uses them. Ports that are still being
/// closed are waited for a while; then it is not known.
fn tell_whether_all_came_back(umem: &Umem) {
    let (depot, chunks) = (umem.depot(), umem.depot().chunks());
    let deadline = Instant::now() + CLOSING;
    while depot.free() < chunks && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let free = depot.free();
    if free == chunks {
        tracing::info!(umem = umem.id().0, chunks, "all frames came back");
    } else {
        tracing::info!(umem = umem.id().0, chunks, free, "not waiting for all frames");
    }
}

impl Process {
    /// Makes the memory, starts the workers and listens on the socket.
    ///
    /// # Errors
    /// [`ProcessError`]; nothing is left behind then.
    pub fn start(settings: Settings) -> Result<Self, ProcessError> {
        let workers = settings.workers();
        let plan = plan::memory(settings.max_endpoints, workers, settings.memory_budget_bytes)?;
        let (sender, calls) = mailbox().map_err(std::io::Error::from)?;
        // The socket first: it says whether another dataplane runs here.
        let server = Server::start(&settings.socket, settings.group.as_deref(), sender)?;
        let umems = (0..plan.umems).map(|number| {
            Umem::create(UmemOptions {
                id: UmemId(u8::try_from(number).unwrap_or(u8::MAX)),
                chunks: plan.chunks,
                fill_extra: plan.fill_extra,
                rings: RingSizes::default(),
                mode: BindMode::Copy,
            })
        });
        let umems = umems.collect::<Result<Vec<_>, _>>()?;
        let publisher = Publisher::new(workers);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Self {
            compiler: Compiler::new(workers),
            workers: Workers::start(&settings, &publisher, &umems)?,
            publisher,
            uplink: None,
            host: None,
            endpoints: BTreeMap::new(),
            umems,
            plan,
            numbers: PortNumbers::default(),
            next_hops: NextHops::new(NeighborTable::open()?, RouteMirror::open()?),
            links: LinkWatch::open()?,
            host_sockets: HostSockets::default(),
            announcer: Announcer::default(),
            trend: Trend::default(),
            latency: Latency::default(),
            warnings: BTreeMap::new(),
            started: Instant::now(),
            instance: now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)),
            retry_at: Instant::now(),
            retried: String::new(),
            server: Some(server),
            calls,
            settings,
        })
    }

    /// Works until `stop` is set, then lets go of everything.
    ///
    /// # Errors
    /// [`ProcessError::WorkerGone`]: the process is of no more use then.
    pub fn run(mut self, stop: &Arc<AtomicBool>) -> Result<(), ProcessError> {
        let outcome = loop {
            if stop.load(Ordering::Relaxed) {
                break Ok(());
            }
            if let Some(worker) = self.workers.has_failed() {
                break Err(ProcessError::WorkerGone(worker));
            }
            self.wait();
            self.work(Instant::now());
        };
        // Whoever asks now is told that nobody is there.
        self.server = None;
        for name in self.endpoints.keys().cloned().collect::<Vec<_>>() {
            self.detach_endpoint(&name);
        }
        self.close_host_port();
        self.close_uplink();
        drop(self.workers);
        for umem in &self.umems {
            tell_whether_all_came_back(umem);
        }
        outcome
    }

    fn wait(&self) {
        let busy = self.links.is_busy() || self.next_hops.table.is_busy();
        let timeout = if busy { PollTimeout::ZERO } else { PollTimeout::from(TICK_MS) };
        let mut fds = [
            PollFd::new(self.calls.fd(), PollFlags::POLLIN),
            PollFd::new(self.links.fd(), PollFlags::POLLIN),
            PollFd::new(self.next_hops.table.fd(), PollFlags::POLLIN),
        ];
        // Interrupted by a signal or timed out: there is something to look at anyway.
        if poll(&mut fds, timeout).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn work(&mut self, now: Instant) {
        let mut changed = self.process_links();
        changed |= self.process_neighbors(now);
        changed |= self.process_routes(now);
        changed |= self.process_notices(now);
        changed |= self.process_host_sockets(now);
        changed |= self.try_again(now);
        changed |= self.process_lease(now);
        if changed {
            self.publish();
        }
        self.process_announcements(now);
        if self.trend.is_due(now) {
            self.trend.sample(self.compiler.snapshot().external.addresses(), now);
        }
        while let Some(call) = self.calls.next() {
            self.answer(call);
        }
        self.publisher.collect();
    }

    /// Tries again what could not be opened although its interface is there: a socket of a process
    /// that is just dying may have been in the way, or memory short. One thing at a time, for each
    /// may wait for the kernel. Says whether the tables may have changed.
    fn try_again(&mut self, now: Instant) -> bool {
        if now < self.retry_at {
            return false;
        }
        let node_waits = self.compiler.node().is_some_and(|node| {
            let uplink_waits = self.uplink.is_none() && self.links.by_name(&node.uplink).is_some();
            uplink_waits || (self.host.is_none() && node.host_port.is_some())
        });
        let (tried, worked) = if node_waits {
            self.configure_node();
            self.resolve_all();
            (true, false)
        } else {
            self.retry_endpoint()
        };
        self.retry_at = if worked { now } else { now + RETRY };
        tried
    }

    fn process_links(&mut self) -> bool {
        let events = match self.links.process() {
            Ok(events) => events,
            Err(error) => {
                self.warn("links", error.to_string());
                return false;
            }
        };
        for event in &events {
            match event {
                LinkEvent::Added(link) | LinkEvent::Changed(link) => self.link_came(link),
                LinkEvent::Removed { name, ifindex } => self.link_went(name, *ifindex),
            }
        }
        !events.is_empty()
    }

    fn link_came(&mut self, link: &Link) {
        let wants = |node: &overlane_api::Node| node.uplink == link.name;
        match &self.uplink {
            None if self.compiler.node().is_some_and(wants) => {
                self.configure_node();
                self.resolve_all();
            }
            Some(uplink) if uplink.ifindex == link.ifindex => {
                if let Some(mac) = link.mac {
                    self.readdress_uplink(mac);
                }
            }
            _ => {}
        }
        self.interface_came(&link.name);
    }

    fn link_went(&mut self, name: &str, ifindex: u32) {
        if self.uplink.as_ref().is_some_and(|uplink| uplink.ifindex == ifindex) {
            self.close_uplink();
            self.resolve_all();
            self.warn("uplink", format!("interface {name} is gone; waiting for it"));
        }
        // Nobody else makes it again.
        let is_host_port = |host: &HostAttachment| {
            [host.pair.host_ifindex(), host.pair.dataplane_ifindex()].contains(&ifindex)
        };
        if self.host.as_ref().is_some_and(is_host_port) {
            tracing::warn!(interface = name, "the host port was removed; making it again");
            self.close_host_port();
            self.configure_node();
        }
        self.interface_went(name);
    }

    fn answer(&mut self, call: Call) {
        let answer = match call.op {
            Op::Hello => Ok(Reply::Hello {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                instance: self.instance,
            }),
            Op::Installed => Ok(Reply::Installed { objects: self.compiler.installed() }),
            Op::Apply { changes } => self.apply(changes),
            Op::Lease { milliseconds } => {
                let forwarding = self.lease(milliseconds, Instant::now());
                Ok(Reply::Lease { forwarding })
            }
            Op::Status => Ok(Reply::Status(Box::new(self.status()))),
            Op::Endpoints => Ok(Reply::Endpoints(self.endpoint_statuses())),
            Op::Peers => Ok(Reply::Peers(self.peer_statuses())),
            Op::Latency { reset } => Ok(Reply::Latency(self.latency_report(reset))),
            Op::Drops => Ok(Reply::Drops(self.drop_report())),
            Op::Services
            | Op::Flows { .. }
            | Op::FlushFlows { .. }
            | Op::NatBindings { .. }
            | Op::NatUsage => self.listings(&call.op),
        };
        // Whoever asked may have gone.
        let _ = call.reply.send(answer);
    }

    fn apply(&mut self, changes: Vec<Change>) -> Result<Reply, ApiError> {
        let removed = self.tags_of_removed(&changes);
        let effects = self.compiler.apply(changes)?;
        self.workers.forget_tags(&removed);
        let mut warnings = Vec::new();
        let mut steer = false;
        for effect in effects {
            match effect {
                Effect::Node => {
                    self.set_flow_capacity();
                    self.configure_node();
                    self.resolve_all();
                }
                Effect::PeerSet(name) => {
                    self.follow_peer(&name);
                    steer = true;
                }
                Effect::PeerRemoved(peer) => {
                    self.forget_peer(&peer.name);
                    steer = true;
                }
                Effect::EndpointSet(name) => {
                    warnings.extend(self.attach_endpoint(&name));
                    steer = true;
                }
                Effect::EndpointRemoved(name) => {
                    self.detach_endpoint(&name);
                    steer = true;
                }
                Effect::Services | Effect::Egress => steer = true,
                // Below, when the tables are in force.
                Effect::Announcements => {}
            }
        }
        if steer {
            self.steer();
        }
        let generation = self.publish();
        self.process_announcements(Instant::now());
        warnings.extend(self.warnings.values().cloned());
        Ok(Reply::Applied { generation, warnings })
    }

    /// Makes the tables as they are now the ones in force.
    pub(super) fn publish(&mut self) -> u64 {
        let generation = self.publisher.publish(self.compiler.snapshot());
        self.workers.ring();
        generation
    }

    /// Remembers what is not as it should be, and says it once.
    pub(super) fn warn(&mut self, about: &'static str, what: String) {
        if self.warnings.get(about) != Some(&what) {
            tracing::warn!(about, "{what}");
            self.warnings.insert(about, what);
        }
    }

    pub(super) fn clear_warning(&mut self, about: &'static str) {
        self.warnings.remove(about);
    }

    /// Gives a port of its own number to a worker.
    pub(super) fn hand_to_worker(
        &mut self,
        port: AfXdpPort,
        interface: &str,
        queue: u32,
        worker: WorkerId,
        origin: Origin,
    ) -> Result<OpenPortRecord, ProcessError> {
        let id = self.numbers.take(1).ok_or(ProcessError::NoPortNumber)?;
        Ok(self.hand_over(port, id, interface, queue, worker, origin))
    }

    /// Gives a port to a worker.
    pub(super) fn hand_over(
        &mut self,
        port: AfXdpPort,
        id: PortId,
        interface: &str,
        queue: u32,
        worker: WorkerId,
        origin: Origin,
    ) -> OpenPortRecord {
        let (zero_copy, umem) = (port.is_zero_copy(), port.umem().0);
        let view = self.workers.add_port(worker, id, origin, port);
        let interface = interface.to_owned();
        let queue = QueueId(queue);
        OpenPortRecord { id, interface, queue, worker, origin, zero_copy, umem, view }
    }

    /// The UMEM for copies whose frames a worker's ports use: its own, or that of all.
    pub(super) fn umem_of(&self, worker: WorkerId) -> &Umem {
        let own = worker.index() < self.plan.umems as usize;
        &self.umems[if own { worker.index() } else { 0 }]
    }

    /// Takes a port back from its worker: its socket is closed, its number free.
    pub(super) fn take_from_worker(&mut self, record: &OpenPortRecord) {
        self.workers.remove_ports(record.worker, std::iter::once(record.id));
        self.numbers.give(record.id, 1);
    }
}
