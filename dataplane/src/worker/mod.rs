//! L4: a worker: the poll loop around the stages. Takes frames from its ports and from other
//! workers, has the stages decide, and does what they decided.
//!
//! Everything here belongs to one thread. What others may see of it: the published counters, the
//! lanes, the command queue.

mod arrivals;
mod dispatch;
pub mod errands;
pub mod handoff;
mod hold;
mod maintenance;
pub mod run;
pub mod stopwatch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use crossbeam::channel::{Receiver, Sender};
use overlane_api::WorkerId;

use self::errands::Errand;
use self::handoff::Lanes;
use self::hold::Held;
use self::maintenance::PortBlock;
use self::stopwatch::Stopwatch;
use crate::flow::flows::Flows;
use crate::flow::table::{FlowTable4, FlowTable6};
use crate::io::Port;
use crate::io::af_xdp::burst::Burst;
use crate::packet::frame::Frame;
use crate::packet::meta::Origin;
use crate::packet::pool::{Depot, FramePool, UmemId};
use crate::packet::vector::{Packet, VECTOR, Vector};
use crate::packet::verdict::PortId;
use crate::stages::transmit::coalesce::Runs;
use crate::stages::transmit::icmp_error::RateLimit;
use crate::stages::{self, Context, FirstFragments, Notice, Notices};
use crate::stats::counters::{Counters, Published};
use crate::stats::dwell::Side;
use crate::tables::external::External;
use crate::tables::publish::Subscription;

pub use self::maintenance::{PortCounts, PortView};

/// What the slow thread tells a worker.
#[derive(Debug)]
pub enum Command<P> {
    /// Serve this port from now on.
    AddPort {
        /// Its number.
        id: PortId,
        /// What it is for.
        origin: Origin,
        /// The port.
        port: P,
        /// Where its counters are published.
        view: PortView,
    },
    /// Let go of this port: its frames come back, its socket is closed.
    RemovePort {
        /// Its number.
        id: PortId,
        /// Told when that is done.
        done: Sender<()>,
    },
    /// Frames of another UMEM may come from now on.
    AddUmem(Arc<Depot>),
    /// Send this frame, which the slow thread has made.
    SendFrame {
        /// A port of this worker.
        port: PortId,
        /// The frame.
        frame: Box<[u8]>,
    },
    /// Look through the flows.
    Errand(Box<Errand>),
    /// A service is gone, and so are its sums ([`crate::flow::past`]): the next one with this tag
    /// begins at 0.
    ForgetTag(u32),
    /// Use these tables from now on, unless there are flows in the old ones.
    FlowTables {
        /// The new ones, empty.
        tables: Box<FlowTables>,
        /// Told whether it does; gets the tables back that are not used.
        done: Sender<(bool, Box<FlowTables>)>,
    },
    /// End.
    Stop,
}

/// Tables of both families.
pub type FlowTables = (FlowTable4, FlowTable6);

/// A port that this worker serves.
#[derive(Debug)]
struct Slot<P> {
    id: PortId,
    port: P,
    origin: Origin,
    /// Was something sent since the last flush?
    dirty: bool,
    /// Did it receive or send since the last recycling?
    active: bool,
    block: PortBlock,
}

/// What a worker is made of.
#[derive(Debug)]
pub struct Parts<P> {
    /// Its number.
    pub id: WorkerId,
    /// Its side of the tables.
    pub tables: Subscription,
    /// Frames, by UMEM number.
    pub depots: Vec<Arc<Depot>>,
    /// The UMEM where packets made here come from: that of most of its ports.
    pub own_umem: UmemId,
    /// What it remembers of its flows.
    pub flows: Flows,
    /// Its ends of the lanes.
    pub lanes: Lanes,
    /// Where its counters are published.
    pub published: Arc<Published>,
    /// From the slow thread.
    pub commands: Receiver<Command<P>>,
    /// To the slow thread.
    pub notices: Sender<Notice>,
}

/// One worker.
#[derive(Debug)]
pub struct Worker<P> {
    parts: Parts<P>,
    /// By port number.
    slots: Vec<Option<Slot<P>>>,
    /// Numbers of the ports that receive from pods and the host.
    inside_ports: Vec<usize>,
    /// Numbers of the uplink's ports.
    uplink_ports: Vec<usize>,
    /// Where in these lists the next round begins.
    first_inside: usize,
    first_uplink: usize,
    /// The lane from which the last round began.
    first_lane: usize,
    pools: Vec<FramePool>,
    counters: Counters,
    finished_checksums: Vec<u64>,
    /// Vectors in turn at work and here: boxed, so that this moves a pointer and not 5 KiB.
    inside: Option<Box<Vector>>,
    uplink: Option<Box<Vector>>,
    handed: Option<Box<Vector>>,
    /// By worker: frames that had been passed on to this one when the round began, and are still in the lane.
    waiting: Box<[usize]>,
    made: Vector,
    /// Frames that may leave as few packets; empty between vectors.
    runs: Option<Box<Runs>>,
    /// Sends for all ports; none: each sends by itself.
    burst: Option<Burst>,
    held: Held,
    /// Fragments that wait for the first one of their packet.
    fragments: Held,
    /// Of the vector under way.
    first_fragments: FirstFragments,
    /// What is to be done with the flows, a piece in each round.
    errands: VecDeque<Box<Errand>>,
    /// The addresses that [`Parts::flows`] has been told of.
    external: Option<Arc<External>>,
    notices: Notices,
    icmp_limit: RateLimit,
    link_messages: bool,
    /// Workers that were given something since their bells were rung, as bits.
    rang: u64,
    /// By worker: what the vector under way gives it, to be put into its lane together.
    handing: Vec<Vec<Packet>>,
    /// By worker: frames of the vector under way that it begins with, this one too; empty afterwards.
    passing: Box<[ArrayVec<Frame, VECTOR>]>,
    stopwatch: Stopwatch,
    started: Instant,
    /// Time that passed without passing: see [`Worker::advance`].
    skipped_ns: u64,
    now_ns: u64,
    stopping: bool,
    /// Counts up when a port comes or goes.
    port_changes: u64,
}

/// Free frames that a worker keeps for itself in each UMEM.
const POOL_KEEP: usize = 256;

impl<P: Port> Worker<P> {
    /// A worker without ports.
    #[must_use]
    pub fn new(parts: Parts<P>) -> Self {
        let pools = parts.depots.iter().map(|d| FramePool::new(d.clone(), POOL_KEEP)).collect();
        let handing = parts.lanes.outgoing.iter().map(|_| Vec::with_capacity(VECTOR)).collect();
        let passing = parts.lanes.outgoing.iter().map(|_| ArrayVec::new()).collect();
        let waiting = parts.lanes.passed_in.iter().map(|_| 0).collect();
        Self {
            parts,
            slots: Vec::new(),
            inside_ports: Vec::new(),
            uplink_ports: Vec::new(),
            first_inside: 0,
            first_uplink: 0,
            first_lane: 0,
            pools,
            counters: Counters::default(),
            finished_checksums: Vec::new(),
            inside: Some(Box::default()),
            uplink: Some(Box::default()),
            handed: Some(Box::default()),
            waiting,
            made: Vector::default(),
            runs: Some(Box::default()),
            burst: None,
            held: Held::default(),
            fragments: Held::default(),
            first_fragments: FirstFragments::new(),
            errands: VecDeque::new(),
            external: None,
            notices: Notices::new(),
            icmp_limit: RateLimit::new(),
            link_messages: false,
            rang: 0,
            handing,
            passing,
            stopwatch: Stopwatch::new(),
            started: Instant::now(),
            skipped_ns: 0,
            now_ns: 0,
            stopping: false,
            port_changes: 0,
        }
    }

    /// One round: everything that has arrived, at most a vector from each side; and a piece of an
    /// errand. Says how many packets that were, one more for an errand.
    pub fn poll(&mut self) -> usize {
        let elapsed = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.now_ns = elapsed.saturating_add(self.skipped_ns);
        if self.parts.tables.refresh() {
            self.refresh_external();
            self.release_held();
        }
        self.parts.flows.expire(Flows::tick(self.now_ns));
        self.ask_for_lanes();
        let mut work = self.receive_inside();
        self.ask_for_passed();
        work += self.receive_uplink();
        work += self.receive_passed();
        work += self.receive_handed();
        if work > 0 {
            self.after_work();
        }
        work + usize::from(self.run_errand())
    }

    /// Takes over the addresses that flows leave with, when they have changed.
    fn refresh_external(&mut self) {
        let external = &self.parts.tables.snapshot().external;
        if self.external.as_ref().is_some_and(|known| Arc::ptr_eq(known, external)) {
            return;
        }
        let new = external.clone();
        let flows = &mut self.parts.flows;
        // A lane to each worker, and the place of its own.
        flows.set_workers(u32::try_from(self.parts.lanes.outgoing.len()).unwrap_or(1));
        flows.set_timeouts(&new.timeouts, new.fin_cooldown, new.rst_cooldown);
        flows.set_pod_limit(new.max_ports_per_pod);
        for old in self.external.iter().flat_map(|known| known.addresses()) {
            if !new.addresses().any(|address| address.address == old.address) {
                flows.retire_address(old.address);
            }
        }
        for address in new.addresses() {
            flows.add_address(address.address, &address.ports);
        }
        self.external = Some(new);
    }

    /// Processes a vector that ports of `side` received, and times it when it is its turn.
    #[inline]
    fn process_timed(
        &mut self,
        vector: &mut Vector,
        stages: fn(&mut Vector, &mut Context<'_>),
        side: Side,
    ) {
        let started = self.stopwatch.start(&self.counters);
        self.process(vector, stages);
        if let Some(started) = started {
            self.stopwatch.processed(side, &started, &self.counters);
        }
    }

    /// Runs `stages` over the vector and does what they decided; then the same for what they made.
    #[inline]
    fn process(&mut self, vector: &mut Vector, stages: fn(&mut Vector, &mut Context<'_>)) {
        self.counters.vectors += 1;
        self.run_stages(vector, stages);
        self.dispatch(vector);
        self.process_made();
        if !self.first_fragments.is_empty() {
            self.release_fragments();
        }
    }

    /// Sends what the stages made: ICMP errors and fragments.
    #[inline]
    fn process_made(&mut self) {
        // An answer never provokes another one, so this ends after the second round at the latest.
        while !self.made.is_empty() {
            let mut made = std::mem::take(&mut self.made);
            self.counters.received += made.len() as u64;
            self.counters.generated += made.len() as u64;
            self.run_stages(&mut made, stages::from_here);
            self.dispatch(&mut made);
        }
    }

    #[inline]
    fn run_stages(&mut self, vector: &mut Vector, stages: fn(&mut Vector, &mut Context<'_>)) {
        // A worker without any UMEM has no port either, and so no packet.
        let own = usize::from(self.parts.own_umem.0);
        let Some(pool) = self.pools.get_mut(own) else { return };
        let mut context = Context {
            tables: self.parts.tables.snapshot(),
            worker: self.parts.id,
            now_ns: self.now_ns,
            pool,
            made: &mut self.made,
            flows: &mut self.parts.flows,
            first_fragments: &mut self.first_fragments,
            icmp_limit: &mut self.icmp_limit,
            notices: &mut self.notices,
            link_messages: &mut self.link_messages,
            finished_checksums: &mut self.finished_checksums,
        };
        stages(vector, &mut context);
    }

    /// From now on frames of several ports leave in one call, where the ports allow it.
    pub fn send_in_bursts(&mut self, burst: Burst) {
        self.burst = Some(burst);
    }

    /// Sends what all ports have in one call, where that is worth it; what is left waits for each port's own.
    #[inline(never)]
    fn flush_together(&mut self) {
        let Some(burst) = self.burst.as_mut() else { return };
        let dirty = self.slots.iter().flatten().filter(|slot| slot.dirty);
        if !burst.is_worth(dirty.map(|slot| slot.port.waiting()).sum()) {
            return;
        }
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.dirty) {
            if let Some(pool) = self.pools.get_mut(usize::from(slot.port.umem().0)) {
                slot.port.stage(burst, pool);
            }
        }
        if burst.send() > 0 {
            self.slots.iter_mut().flatten().for_each(|slot| slot.port.learn_refused(burst));
        }
    }

    /// Kicks what was sent, wakes who was given something, takes back what has been sent.
    fn after_work(&mut self) {
        if self.burst.is_some() {
            self.flush_together();
        }
        if self.stopwatch.is_running() {
            self.flush_timed();
        }
        for slot in self.slots.iter_mut().flatten() {
            if slot.dirty {
                slot.port.flush();
                slot.dirty = false;
                slot.active = true;
            }
            if slot.active {
                slot.active = false;
                if let Some(pool) = self.pools.get_mut(usize::from(slot.port.umem().0)) {
                    slot.port.recycle(pool);
                }
            }
        }
        while self.rang != 0 {
            let worker = self.rang.trailing_zeros() as usize;
            self.rang &= self.rang - 1;
            if let Some(bell) = self.parts.lanes.bells.get(worker) {
                bell.ring();
            }
        }
        for notice in self.notices.drain(..) {
            // The slow thread is behind: what is wanted will be wanted again.
            let _ = self.parts.notices.try_send(notice);
        }
    }

    /// From now on it is so much later than it is: for whoever drives a worker by hand.
    pub fn advance(&mut self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.skipped_ns = self.skipped_ns.saturating_add(time);
    }

    /// This worker's counters as they are.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What this worker remembers of its flows.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.parts.flows
    }

    /// Frames that this worker's ports and pools hold, waiting packets included.
    #[must_use]
    pub fn frames(&self) -> usize {
        let ports: usize = self.slots.iter().flatten().map(|slot| slot.port.held()).sum();
        let pools: usize = self.pools.iter().map(FramePool::len).sum();
        ports + pools + self.held.len() + self.fragments.len()
    }

    /// A port, for whoever drives an in-memory node.
    pub fn port_mut(&mut self, id: PortId) -> Option<&mut P> {
        self.slots.get_mut(id.index())?.as_mut().map(|slot| &mut slot.port)
    }
}
