//! The node in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};
use overlane_api::protocol::{ApiError, Op, Reply};
use overlane_api::{Attachment, Change, MacAddr, Object, WorkerId};

use crate::flow::flows::Flows;
use crate::io::Port;
use crate::io::memory::{MemoryPort, MemoryUmem, MemoryWire, Sent};
use crate::node::listings::{Listings, Trend};
use crate::packet::drop::DropReason;
use crate::packet::meta::Origin;
use crate::packet::pool::{Depot, UmemId};
use crate::packet::verdict::PortId;
use crate::stages::Notice;
use crate::stats::counters::{Counters, Published};
use crate::tables::compile::{Binding, Compiler, Effect};
use crate::tables::node::{HostBinding, UplinkBinding};
use crate::tables::peers::Adjacency;
use crate::tables::publish::Publisher;
use crate::worker::handoff::Lanes;
use crate::worker::{Command, Parts, PortView, Worker};

/// Flows of each family that a worker has room for, unless said otherwise.
const FLOWS: u32 = 16_384;

/// MAC of the in-memory uplink.
pub const UPLINK_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0a]);

/// MAC of the underlay's next hop, whatever the destination.
pub const NEXT_HOP_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0f]);

/// MAC of the host's end of the host port.
pub const HOST_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x01]);

/// Tables and workers, stepped by hand, over ports of any kind.
#[derive(Debug)]
pub struct Bench<P: Port> {
    /// The desired state and its tables.
    pub compiler: Compiler,
    /// Where tables are published.
    pub publisher: Publisher,
    /// The workers.
    pub workers: Vec<Worker<P>>,
    /// All frames.
    pub depot: Arc<Depot>,
    /// What the workers told the slow thread.
    pub notices: Receiver<Notice>,
    commands: Vec<Sender<Command<P>>>,
    next_port: u16,
    free_ports: Vec<PortId>,
    views: BTreeMap<PortId, PortView>,
}

impl<P: Port> Bench<P> {
    /// `workers` workers without ports that share `chunks` frames.
    ///
    /// # Errors
    /// The system has no file descriptor left.
    pub fn new(workers: usize, chunks: usize) -> std::io::Result<Self> {
        Self::with_flows(workers, chunks, FLOWS)
    }

    /// As [`Bench::new`], with room for `flow_capacity` flows of each family in each worker.
    ///
    /// # Errors
    /// The system has no file descriptor or memory left.
    pub fn with_flows(workers: usize, chunks: usize, flow_capacity: u32) -> std::io::Result<Self> {
        let depot = MemoryUmem::new(UmemId(0), chunks);
        let publisher = Publisher::new(workers);
        let (notice_sender, notices) = unbounded();
        let mut commands = Vec::new();
        let mut all = Vec::new();
        for (number, lanes) in Lanes::between(workers)?.into_iter().enumerate() {
            let (sender, receiver) = unbounded();
            commands.push(sender);
            all.push(Worker::new(Parts {
                id: WorkerId(number as u8),
                tables: publisher.subscribe(number),
                depots: vec![depot.clone()],
                own_umem: UmemId(0),
                flows: Flows::new(WorkerId(number as u8), flow_capacity)
                    .map_err(std::io::Error::other)?,
                lanes,
                published: Published::new(),
                commands: receiver,
                notices: notice_sender.clone(),
            }));
        }
        Ok(Self {
            compiler: Compiler::new(workers),
            publisher,
            workers: all,
            depot,
            notices,
            commands,
            next_port: 0,
            free_ports: Vec::new(),
            views: BTreeMap::new(),
        })
    }

    /// A port number that no port has.
    pub fn new_port_id(&mut self) -> PortId {
        if let Some(id) = self.free_ports.pop() {
            return id;
        }
        self.next_port += 1;
        PortId(self.next_port - 1)
    }

    /// Gives a port to a worker.
    pub fn add_port(&mut self, worker: WorkerId, id: PortId, origin: Origin, port: P) {
        let view = PortView::default();
        self.views.insert(id, view.clone());
        let command = Command::AddPort { id, origin, port, view };
        // The workers, and so the receivers, live as long as this.
        let _ = self.commands[worker.index()].send(command);
        self.workers[worker.index()].obey();
    }

    /// Takes a port from a worker; its frames come back.
    pub fn remove_port(&mut self, worker: WorkerId, id: PortId) {
        let (done, _) = unbounded();
        let _ = self.commands[worker.index()].send(Command::RemovePort { id, done });
        self.workers[worker.index()].obey();
        self.free_ports.push(id);
    }

    /// Tells a worker something.
    pub fn tell(&mut self, worker: WorkerId, command: Command<P>) {
        // The workers, and so the receivers, live as long as this.
        let _ = self.commands[worker.index()].send(command);
        self.workers[worker.index()].obey();
    }

    /// Answers an operation about services, flows or source NAT as the process does, while the
    /// workers go on; none for the others.
    ///
    /// # Panics
    /// When who answers does.
    #[allow(clippy::expect_used, reason = "for tests")]
    pub fn ask(&mut self, op: &Op) -> Option<Result<Reply, ApiError>>
    where
        P: Send,
    {
        let Self { compiler, workers, commands, .. } = self;
        let (compiler, commands) = (&*compiler, &*commands);
        std::thread::scope(|scope| {
            let asking = scope.spawn(move || {
                let send = |worker: WorkerId, errand| {
                    let _ = commands[worker.index()].send(Command::Errand(errand));
                };
                let (workers, trend) = (commands.len(), &Trend::default());
                Listings { compiler, workers, trend, send: &send }.answer(op)
            });
            while !asking.is_finished() {
                for worker in &mut *workers {
                    worker.obey();
                    worker.poll();
                }
            }
            asking.join().expect("an answer")
        })
    }

    /// Publishes the tables as they are.
    pub fn publish(&mut self) {
        self.publisher.publish(self.compiler.snapshot());
    }

    /// Frames in ports, pools and the depot: all of them, unless one was lost.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.depot.free() + self.workers.iter().map(Worker::frames).sum::<usize>()
    }
}

/// Where a frame goes into a [`MemoryNode`] and comes out of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A local pod, by `namespace/name`.
    Pod(String),
    /// The uplink's queue of that number.
    Uplink(usize),
    /// The node's own stack.
    Host,
}

/// A node with an uplink queue for each worker, a host port at worker 0, and a port for each local
/// endpoint. All next hops are known.
#[derive(Debug)]
pub struct MemoryNode {
    bench: Bench<MemoryPort>,
    wires: BTreeMap<PortId, MemoryWire>,
    pods: BTreeMap<String, (WorkerId, PortId)>,
    uplinks: Vec<PortId>,
    host: PortId,
}

/// Frames of a [`MemoryNode`].
const CHUNKS: usize = 4096;

/// Entries of a ring of a [`MemoryPort`].
const RING: usize = 256;

impl MemoryNode {
    /// A node of `workers` workers with `changes` applied.
    ///
    /// # Panics
    /// When the changes are refused or the system has no file descriptor left: this is for tests.
    #[must_use]
    #[allow(clippy::expect_used, reason = "for tests")]
    pub fn new(workers: u8, changes: Vec<Change>) -> Self {
        Self::with_uplink_queues(workers, workers, changes)
    }

    /// The same with `queues` queues of the uplink, at the first so many workers.
    ///
    /// # Panics
    /// As [`MemoryNode::new`].
    #[must_use]
    #[allow(clippy::expect_used, reason = "for tests")]
    pub fn with_uplink_queues(workers: u8, queues: u8, changes: Vec<Change>) -> Self {
        let bench = Bench::new(usize::from(workers), CHUNKS).expect("file descriptors");
        let mut node = Self {
            bench,
            wires: BTreeMap::new(),
            pods: BTreeMap::new(),
            uplinks: Vec::new(),
            host: PortId(0),
        };
        let mut ports = Vec::new();
        for worker in 0..queues {
            let id = node.add(WorkerId(worker), Origin::Uplink);
            ports.push((WorkerId(worker), id));
            node.uplinks.push(id);
        }
        node.bench.compiler.bind_uplink(UplinkBinding { mac: UPLINK_MAC, ports });
        node.host = node.add(WorkerId(0), Origin::Host);
        let host = HostBinding { port: node.host, worker: WorkerId(0), mac: HOST_MAC };
        node.bench.compiler.bind_host(Some(host));
        node.apply(changes).expect("changes that are accepted");
        node
    }

    fn add(&mut self, worker: WorkerId, origin: Origin) -> PortId {
        let id = self.bench.new_port_id();
        let (port, wire) = MemoryPort::new(UmemId(0), RING);
        self.wires.insert(id, wire);
        self.bench.add_port(worker, id, origin, port);
        id
    }

    /// Applies `changes`, attaches new endpoints, resolves next hops, publishes.
    ///
    /// # Errors
    /// What the compiler refuses; nothing is changed then.
    pub fn apply(&mut self, changes: Vec<Change>) -> Result<(), ApiError> {
        let effects = self.bench.compiler.apply(changes)?;
        for effect in effects {
            match effect {
                Effect::EndpointSet(name) => self.attach(&name),
                Effect::EndpointRemoved(name) => {
                    if let Some((worker, port)) = self.pods.remove(&name) {
                        self.bench.remove_port(worker, port);
                        self.wires.remove(&port);
                        // It may have been added again already; it needs another port then.
                        self.bench.compiler.bind_endpoint(&name, None);
                    }
                }
                Effect::PeerSet(name) => self.set_resolved(&name, true),
                Effect::Node
                | Effect::PeerRemoved(_)
                | Effect::Services
                | Effect::Egress
                | Effect::Announcements => {}
            }
        }
        self.bench.publish();
        Ok(())
    }

    /// Applies one object.
    ///
    /// # Errors
    /// As [`MemoryNode::apply`].
    pub fn set(&mut self, object: Object) -> Result<(), ApiError> {
        self.apply(vec![Change::Set(object)])
    }

    fn attach(&mut self, name: &str) {
        let Some((endpoint, None)) = self.bench.compiler.endpoint(name) else { return };
        let Attachment::Local { mac, worker, .. } = endpoint.attachment.clone() else { return };
        let worker = worker.unwrap_or_default();
        let port = self.add(worker, Origin::Endpoint);
        let mtu = self.bench.compiler.node().map_or(1500, |node| node.pod_mtu);
        let binding = Binding { port, queues: 1, worker, mac: mac.unwrap_or_default(), mtu };
        self.bench.compiler.bind_endpoint(name, Some(binding));
        self.pods.insert(name.to_owned(), (worker, port));
    }

    /// Makes a peer's next hop known or unknown; to be published with [`MemoryNode::publish`].
    pub fn set_resolved(&mut self, peer: &str, resolved: bool) {
        let adjacency =
            resolved.then_some(Adjacency { source: UPLINK_MAC, destination: NEXT_HOP_MAC });
        self.bench.compiler.set_adjacency(peer, adjacency);
    }

    /// Publishes the tables.
    pub fn publish(&mut self) {
        self.bench.publish();
    }

    /// What is beneath.
    pub fn bench(&mut self) -> &mut Bench<MemoryPort> {
        &mut self.bench
    }

    /// A frame from a local pod, by `namespace/name`. Says whether its port took it.
    pub fn from_pod(&mut self, name: &str, frame: &[u8]) -> bool {
        self.pods
            .get(name)
            .and_then(|(_, port)| self.wires.get(port))
            .is_some_and(|w| w.inject(frame))
    }

    /// A frame from the underlay, on uplink queue `queue`. Says whether the port took it.
    pub fn from_uplink(&mut self, queue: usize, frame: &[u8]) -> bool {
        self.uplinks
            .get(queue)
            .and_then(|port| self.wires.get(port))
            .is_some_and(|w| w.inject(frame))
    }

    /// A frame from the node's own stack. Says whether the port took it.
    pub fn from_host(&mut self, frame: &[u8]) -> bool {
        self.wires.get(&self.host).is_some_and(|wire| wire.inject(frame))
    }

    /// Frames that left to a pod since last asked.
    #[must_use]
    pub fn to_pod(&mut self, name: &str) -> Vec<Vec<u8>> {
        let wire = self.pods.get(name).and_then(|(_, port)| self.wires.get(port));
        wire.map(MemoryWire::collect_all).unwrap_or_default()
    }

    /// Frames that left through uplink queue `queue` since last asked.
    #[must_use]
    pub fn to_uplink(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let wire = self.uplinks.get(queue).and_then(|port| self.wires.get(port));
        wire.map(MemoryWire::collect_all).unwrap_or_default()
    }

    /// Frames that left through any uplink queue since last asked.
    #[must_use]
    pub fn to_any_uplink(&mut self) -> Vec<Vec<u8>> {
        (0..self.uplinks.len()).flat_map(|queue| self.to_uplink(queue)).collect()
    }

    /// From now on all ports take packets in segments: see [`MemoryNode::sent`].
    pub fn take_segments(&mut self) {
        self.wires.values().for_each(MemoryWire::take_segments);
    }

    /// All that left at `place` since last asked, in order.
    #[must_use]
    pub fn sent(&mut self, place: &Place) -> Vec<Sent> {
        let port = match place {
            Place::Pod(name) => self.pods.get(name).map(|(_, port)| port),
            Place::Uplink(queue) => self.uplinks.get(*queue),
            Place::Host => Some(&self.host),
        };
        let wire = port.and_then(|port| self.wires.get(port));
        wire.map(MemoryWire::collect_sent).unwrap_or_default()
    }

    /// Frames that were given to the node's own stack since last asked.
    #[must_use]
    pub fn to_host(&mut self) -> Vec<Vec<u8>> {
        self.wires.get(&self.host).map(MemoryWire::collect_all).unwrap_or_default()
    }

    /// A frame arrives at `place`. Says whether a port is there and took it.
    pub fn inject(&mut self, place: &Place, frame: &[u8]) -> bool {
        match place {
            Place::Pod(name) => self.from_pod(name, frame),
            Place::Uplink(queue) => self.from_uplink(*queue, frame),
            Place::Host => self.from_host(frame),
        }
    }

    /// Every frame that left since last asked, and where.
    #[must_use]
    pub fn collect(&mut self) -> Vec<(Place, Vec<u8>)> {
        let mut all = Vec::new();
        for name in self.pods.keys().cloned().collect::<Vec<_>>() {
            let frames = self.to_pod(&name);
            all.extend(frames.into_iter().map(|frame| (Place::Pod(name.clone()), frame)));
        }
        for queue in 0..self.uplinks.len() {
            let frames = self.to_uplink(queue);
            all.extend(frames.into_iter().map(|frame| (Place::Uplink(queue), frame)));
        }
        all.extend(self.to_host().into_iter().map(|frame| (Place::Host, frame)));
        all
    }

    /// Flows that all workers remember.
    #[must_use]
    pub fn flows(&self) -> u32 {
        let flows = self.bench.workers.iter().map(|worker| worker.flows());
        flows.map(|flows| flows.v4.len() + flows.v6.len()).sum()
    }

    /// As if so much time had passed for the workers.
    pub fn wait(&mut self, time: Duration) {
        for worker in &mut self.bench.workers {
            worker.advance(time);
        }
    }

    /// Unfinished checksums that were finished, by the port they came from: pods, uplink, host.
    #[must_use]
    pub fn finished_checksums(&self) -> Vec<(Place, u64)> {
        let of =
            |port: &PortId| self.bench.views.get(port).map_or(0, |v| v.read().finished_checksums);
        let pods = self.pods.iter().map(|(name, (_, port))| (Place::Pod(name.clone()), of(port)));
        let uplinks = self.uplinks.iter().enumerate().map(|(n, port)| (Place::Uplink(n), of(port)));
        pods.chain(uplinks).chain([(Place::Host, of(&self.host))]).collect()
    }

    /// What the workers told the slow thread since last asked.
    #[must_use]
    pub fn notices(&self) -> Vec<Notice> {
        self.bench.notices.try_iter().collect()
    }

    /// Lets the workers work until none has anything to do.
    pub fn run(&mut self) {
        let mut idle = 0;
        // Twice idle: what one handed over in the last round, the next takes in this one.
        while idle < 2 {
            let work: usize = self.bench.workers.iter_mut().map(Worker::poll).sum();
            idle = if work == 0 { idle + 1 } else { 0 };
        }
        for worker in &mut self.bench.workers {
            worker.maintain();
        }
    }

    /// All workers' counters, summed.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for counters in self.bench.workers.iter().map(Worker::counters) {
            sum.received += counters.received;
            sum.generated += counters.generated;
            sum.sent += counters.sent;
            sum.handed_over += counters.handed_over;
            sum.to_host += counters.to_host;
            sum.held += counters.held;
            sum.copied += counters.copied;
            sum.coalesced += counters.coalesced;
            sum.vectors += counters.vectors;
            for (total, dropped) in sum.dropped.iter_mut().zip(counters.dropped) {
                *total += dropped;
            }
        }
        sum
    }

    /// Dropped packets by reason, without the reasons that counted nothing.
    #[must_use]
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        let counters = self.counters();
        let of = |reason: &DropReason| (*reason, counters.dropped[*reason as usize]);
        DropReason::ALL.iter().map(of).filter(|(_, count)| *count > 0).collect()
    }

    /// Are the books of every worker closed and all frames accounted for?
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check_books(&self) -> Result<(), String> {
        for (number, worker) in self.bench.workers.iter().enumerate() {
            let residual = worker.counters().residual();
            if residual != 0 {
                return Err(format!("worker {number}: {residual} packets unaccounted for"));
            }
        }
        let frames = self.bench.frames();
        if frames == CHUNKS { Ok(()) } else { Err(format!("{frames} of {CHUNKS} frames")) }
    }

    /// Ends the node: every frame must be back in the depot.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn close(mut self) -> Result<(), String> {
        self.check_books()?;
        for worker in &mut self.bench.workers {
            worker.close();
        }
        let free = self.bench.depot.free();
        if free != CHUNKS {
            return Err(format!("{free} of {CHUNKS} frames came back"));
        }
        MemoryUmem::give_back(self.bench.depot);
        Ok(())
    }
}
