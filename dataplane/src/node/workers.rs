//! The workers as the slow thread sees them: their threads, their commands, their counters.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use overlane_api::WorkerId;
use overlane_api::node::DEFAULT_FLOW_CAPACITY;

use super::settings::{Polling, Settings, Transmit};
use crate::flow::flows::Flows;
use crate::io::af_xdp::burst::Burst;
use crate::io::af_xdp::{AfXdpPort, Umem};
use crate::packet::meta::Origin;
use crate::packet::pool::{Depot, UmemId};
use crate::packet::region::RegionError;
use crate::packet::verdict::PortId;
use crate::stages::Notice;
use crate::stats::counters::{Counters, Published};
use crate::stats::dwell::Dwell;
use crate::tables::publish::Publisher;
use crate::worker::errands::Errand;
use crate::worker::handoff::{Bell, Lanes};
use crate::worker::{Command, Parts, PortView, Worker, run};

/// How long a worker may take to let go of a port.
const REMOVE_WAIT: Duration = Duration::from_secs(2);

/// Notices that wait for the slow thread at once.
const NOTICES: usize = 1024;

#[derive(Debug)]
struct Handle {
    commands: Sender<Command<AfXdpPort>>,
    published: Arc<Published>,
    /// Flows of each family that it has room for. Memory is taken as they come: 160 bytes for one of
    /// IPv4, 288 for one of IPv6.
    flow_capacity: u32,
    thread: Option<JoinHandle<()>>,
}

/// All workers. Dropping this stops them.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    bells: Arc<[Bell]>,
    notices: Receiver<Notice>,
    transmit: Transmit,
}

/// A burst for each worker, or none at all.
fn load_bursts(settings: &Settings) -> std::io::Result<Vec<Burst>> {
    let load = || (0..settings.workers()).map(|_| Burst::load()).collect::<Result<Vec<_>, _>>();
    match settings.transmit {
        Transmit::Program => load().map_err(std::io::Error::other),
        Transmit::Auto if Burst::pays() => Ok(load().unwrap_or_else(|error| {
            tracing::warn!(%error, "no bursts by a BPF program; each port sends by itself");
            Vec::new()
        })),
        Transmit::Auto | Transmit::AfXdp => Ok(Vec::new()),
    }
}

/// How long a worker may take to look at other flow tables.
const TABLES_WAIT: Duration = Duration::from_secs(1);

impl Workers {
    /// Starts the workers, each with the frames of `umems`: one for all, or one for each.
    ///
    /// # Errors
    /// The system has no thread or file descriptor left.
    pub fn start(
        settings: &Settings,
        publisher: &Publisher,
        umems: &[Umem],
    ) -> std::io::Result<Self> {
        let polling = match settings.polling {
            Polling::Busy => run::Polling::Busy,
            Polling::Adaptive => run::Polling::Adaptive,
        };
        let (notice_sender, notices) = bounded(NOTICES);
        let lanes = Lanes::between(settings.workers())?;
        let bells = lanes.first().map(|lanes| lanes.bells.clone()).unwrap_or_else(|| [].into());
        let mut bursts = load_bursts(settings)?;
        let transmit = if bursts.is_empty() { Transmit::AfXdp } else { Transmit::Program };
        let mut workers = Self { handles: Vec::new(), bells, notices, transmit };
        for ((number, lanes), cpu) in (0_u8..).zip(lanes).zip(&settings.worker_cpus) {
            let (commands, receiver) = unbounded();
            let published = Published::new();
            let mut worker = Worker::<AfXdpPort>::new(Parts {
                id: WorkerId(number),
                tables: publisher.subscribe(usize::from(number)),
                depots: umems.iter().map(|umem| umem.depot().clone()).collect(),
                own_umem: if umems.len() > 1 { UmemId(number) } else { UmemId(0) },
                flows: Flows::new(WorkerId(number), DEFAULT_FLOW_CAPACITY)
                    .map_err(std::io::Error::other)?,
                lanes,
                published: published.clone(),
                commands: receiver,
                notices: notice_sender.clone(),
            });
            worker.time_vectors(settings.time_every);
            if let Some(burst) = bursts.pop() {
                worker.send_in_bursts(burst);
            }
            let cpu = *cpu;
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || worker.run(polling, Some(cpu)))?;
            let flow_capacity = DEFAULT_FLOW_CAPACITY;
            let thread = Some(thread);
            workers.handles.push(Handle { commands, published, flow_capacity, thread });
        }
        Ok(workers)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// How they send to veths with one queue: never [`Transmit::Auto`].
    #[must_use]
    pub fn transmit(&self) -> Transmit {
        self.transmit
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// A worker's counters as published.
    #[must_use]
    pub fn counters(&self, worker: WorkerId) -> Counters {
        self.handles.get(worker.index()).map(|h| h.published.read()).unwrap_or_default()
    }

    /// How long packets were inside of each worker.
    pub fn dwell(&self) -> impl Iterator<Item = (WorkerId, &Dwell)> {
        self.ids().zip(&self.handles).map(|(id, handle)| (id, &handle.published.dwell))
    }

    /// What a worker wants to be looked at, if anything.
    #[must_use]
    pub fn notice(&self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }

    /// Is a worker's thread no longer running?
    #[must_use]
    pub fn has_failed(&self) -> Option<WorkerId> {
        let dead = |h: &Handle| h.thread.as_ref().is_some_and(JoinHandle::is_finished);
        let number = self.handles.iter().position(dead)?;
        u8::try_from(number).ok().map(WorkerId)
    }

    fn tell(&self, worker: WorkerId, command: Command<AfXdpPort>) {
        if let Some(handle) = self.handles.get(worker.index()) {
            // A worker that is gone has let go of everything.
            let _ = handle.commands.send(command);
        }
        if let Some(bell) = self.bells.get(worker.index()) {
            bell.ring();
        }
    }

    /// Wakes all workers: the tables changed.
    pub fn ring(&self) {
        self.bells.iter().for_each(Bell::ring);
    }

    /// Gives a port to a worker; its counters are seen through the view.
    #[must_use]
    pub fn add_port(
        &self,
        worker: WorkerId,
        id: PortId,
        origin: Origin,
        port: AfXdpPort,
    ) -> PortView {
        let view = PortView::default();
        self.tell(worker, Command::AddPort { id, origin, port, view: view.clone() });
        view
    }

    /// Takes ports from a worker, and waits until their sockets are closed.
    pub fn remove_ports(&self, worker: WorkerId, ports: impl Iterator<Item = PortId>) {
        let (done, finished) = unbounded();
        let mut waiting = 0;
        for id in ports {
            self.tell(worker, Command::RemovePort { id, done: done.clone() });
            waiting += 1;
        }
        for _ in 0..waiting {
            if finished.recv_timeout(REMOVE_WAIT).is_err() {
                tracing::warn!(%worker, "the worker does not let go of a port");
                return;
            }
        }
    }

    /// Has a worker send a frame by a port of its own.
    pub fn send_frame(&self, worker: WorkerId, port: PortId, frame: Box<[u8]>) {
        self.tell(worker, Command::SendFrame { port, frame });
    }

    /// Hands an errand to a worker.
    pub fn send_errand(&self, worker: WorkerId, errand: Box<Errand>) {
        self.tell(worker, Command::Errand(errand));
    }

    /// The services with these tags are gone.
    pub fn forget_tags(&self, tags: &[u32]) {
        for worker in self.ids() {
            tags.iter().for_each(|tag| self.tell(worker, Command::ForgetTag(*tag)));
        }
    }

    /// Gives every worker room for `capacity` flows of each family, as long as it has none. Returns
    /// those that keep their tables, with what they have room for.
    ///
    /// # Errors
    /// There is no memory for the tables.
    pub fn set_flow_capacity(
        &mut self,
        capacity: u32,
    ) -> Result<Vec<(WorkerId, u32)>, RegionError> {
        let mut keep = Vec::new();
        for worker in self.ids().collect::<Vec<_>>() {
            let Some(now) = self.handles.get(worker.index()).map(|handle| handle.flow_capacity)
            else {
                continue;
            };
            if now == capacity {
                continue;
            }
            let tables = Box::new(Flows::tables(capacity)?);
            let (done, taken) = bounded(1);
            self.tell(worker, Command::FlowTables { tables, done });
            match (taken.recv_timeout(TABLES_WAIT), self.handles.get_mut(worker.index())) {
                (Ok((true, _)), Some(handle)) => handle.flow_capacity = capacity,
                _ => keep.push((worker, now)),
            }
        }
        Ok(keep)
    }

    fn ids(&self) -> impl Iterator<Item = WorkerId> + use<> {
        (0..self.handles.len()).filter_map(|number| u8::try_from(number).ok()).map(WorkerId)
    }

    /// Tells all workers of another UMEM.
    pub fn add_umem(&self, depot: &Arc<Depot>) {
        for number in 0..self.handles.len() {
            if let Ok(number) = u8::try_from(number) {
                self.tell(WorkerId(number), Command::AddUmem(depot.clone()));
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for number in 0..self.handles.len() {
            if let Ok(number) = u8::try_from(number) {
                self.tell(WorkerId(number), Command::Stop);
            }
        }
        for handle in &mut self.handles {
            if let Some(thread) = handle.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a worker ended by a panic: please report it");
            }
        }
    }
}
