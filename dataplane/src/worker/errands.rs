//! What the slow thread wants of a worker's flows: to see them, or to have them forgotten. A worker
//! does a piece of it between two vectors, so that no packet waits long, and allocates nothing: it
//! fills buffers that the slow thread empties and gives back.
//!
//! ```text
//!   slow thread                            worker
//!   Round::begin --- Command::Errand --->  piece, vector, piece, vector, ...
//!   Round::finish <----- full buffers ---
//!                 ------ empty ones ---->
//!                 <----- Summary --------  seen them all
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use ipnet::IpNet;
use overlane_api::WorkerId;
use overlane_api::flow::Tuple;
use overlane_api::status::Traffic;

use super::Worker;
use crate::flow::FlowId;
use crate::flow::flows::{Flows, HAS_PORT, take_back};
use crate::flow::half::Half;
use crate::flow::past::Carried;
use crate::flow::ports::{PoolStatus, PortAllocator};
use crate::flow::table::FlowTable;
use crate::flow::tcp_state::FlowState;
use crate::flow::timeouts::seconds;
use crate::io::Port;
use crate::packet::flow_key::{Address, FlowKey, Transport};

/// Entries of a flow table that one piece looks at: at most 32 KiB of halves for IPv4, 64 for IPv6.
const PIECE: u32 = 256;

/// Flows in a buffer: several pieces' worth.
const BUFFER: usize = 1024;

/// Buffers on their way between the slow thread and one worker.
const BUFFERS: usize = 4;

/// A place where a service answers: the number of its flows' tags, and what their openers send to.
pub type ServiceFrontend = (u32, IpAddr, u16, u8);

/// Which flows are meant: those that match all that is given.
#[derive(Debug, Clone, Default)]
pub struct Meant {
    /// Either end, before or after translation, is in the range.
    pub address: Option<IpNet>,
    /// Either end's port, before or after translation, host order.
    pub port: Option<u16>,
    /// Number in the IP header.
    pub protocol: Option<u8>,
    /// Either end, before or after translation, is one of these.
    pub ends: Option<Vec<IpAddr>>,
    /// They go to one of these; sorted.
    pub services: Option<Vec<ServiceFrontend>>,
    /// They go to some service.
    pub to_service: bool,
    /// They have an external port.
    pub has_port: bool,
}

impl Meant {
    /// Is the flow with this forward half meant?
    #[must_use]
    pub fn includes<A: Address>(&self, forward: &Half<A>) -> bool {
        let (key, to) = (forward.key(), forward.leaving_as());
        let ports = [key.source_port, key.destination_port, to.source_port, to.destination_port];
        let ends = || [key.source, key.destination, to.source, to.destination].map(Address::to_ip);
        self.protocol.is_none_or(|protocol| protocol == key.protocol)
            && (!self.has_port || forward.marks() & HAS_PORT != 0)
            && (!self.to_service || forward.tag() != 0)
            && self.port.is_none_or(|port| ports.contains(&port))
            && self.address.is_none_or(|range| ends().iter().any(|end| range.contains(end)))
            && self.ends.as_ref().is_none_or(|own| ends().iter().any(|end| own.contains(end)))
            && self.services.as_ref().is_none_or(|services| {
                let to = (forward.tag(), key.destination.to_ip(), key.destination_port);
                services.binary_search(&(to.0, to.1, to.2, key.protocol)).is_ok()
            })
    }
}

/// A flow, as its worker reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowRecord {
    /// Number in the IP header.
    pub protocol: u8,
    /// As the opener sent it.
    pub original: Tuple,
    /// As it leaves.
    pub translated: Tuple,
    /// How far it is.
    pub state: FlowState,
    /// Index of its service when it began. It may be another one's by now.
    pub service: Option<u32>,
    /// Is its source port after translation one of this node's external ports?
    pub has_port: bool,
    /// From the opener.
    pub forward: Traffic,
    /// To the opener.
    pub reverse: Traffic,
    /// Since its first packet, seconds.
    pub age_s: u32,
    /// Since its last packet, seconds.
    pub idle_s: u32,
    /// Until it is forgotten, seconds.
    pub expires_s: u32,
}

impl FlowRecord {
    fn new<A: Address>(
        table: &FlowTable<A>,
        (flow, forward, reverse): (FlowId, &Half<A>, &Half<A>),
        now: u32,
    ) -> Self {
        let last_seen = forward.last_seen().max(reverse.last_seen());
        let expires_at = table.expires_at(flow).unwrap_or(now);
        let traffic = |half: &Half<A>| Traffic { packets: half.packets(), bytes: half.bytes() };
        Self {
            protocol: forward.key().protocol,
            original: tuple(&forward.key()),
            translated: tuple(&forward.leaving_as()),
            state: FlowState::of(forward, reverse),
            service: forward.tag().checked_sub(1),
            has_port: forward.marks() & HAS_PORT != 0,
            forward: traffic(forward),
            reverse: traffic(reverse),
            age_s: seconds(now.saturating_sub(table.began_at(flow).unwrap_or(now))),
            idle_s: seconds(now.saturating_sub(last_seen)),
            expires_s: seconds(expires_at.saturating_sub(now)),
        }
    }
}

/// As people read it: the identifier of a ping stands in both places.
fn tuple<A: Address>(key: &FlowKey<A>) -> Tuple {
    let (mut source_port, mut destination_port) = (key.source_port, key.destination_port);
    if key.transport() == Transport::Icmp {
        source_port |= destination_port;
        destination_port = source_port;
    }
    Tuple {
        source: key.source.to_ip(),
        source_port,
        destination: key.destination.to_ip(),
        destination_port,
    }
}

/// What is done with the flows that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// They are reported, at most so many of each worker; the others are only counted.
    List(u64),
    /// They are forgotten, and their ports taken back.
    Flush,
}

/// What a worker says when it has seen all its flows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Flows that were meant.
    pub matched: u64,
    /// Flows there are.
    pub total: u64,
    /// Flows there can be, of both families.
    pub capacity: u64,
    /// How full the addresses are that were asked for and that it has ports of.
    pub pools: Vec<(IpAddr, PoolStatus)>,
    /// What the flows that have gone had carried, by the tags that were asked for.
    pub past: Vec<Carried>,
}

/// What else is to be told, besides flows.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// How full these external addresses are.
    pub addresses: Vec<IpAddr>,
    /// What the flows of these tags that have gone had carried.
    pub tags: Vec<u32>,
}

#[derive(Debug)]
enum Answer {
    Flows(WorkerId, Vec<FlowRecord>),
    Done(WorkerId, Summary),
}

/// Where an errand goes on.
#[derive(Debug, Clone, Copy)]
enum At {
    V4(FlowId),
    V6(FlowId),
    /// Place of a tag that was asked for.
    Past(usize),
    End,
}

impl At {
    /// Behind a piece of a table that ended there, or at the end of the table.
    fn after(self, next: Option<FlowId>) -> Self {
        match (self, next) {
            (Self::V4(_), Some(flow)) => Self::V4(flow),
            (Self::V4(_), None) => Self::V6(FlowId(0)),
            (_, Some(flow)) => Self::V6(flow),
            (_, None) => Self::Past(0),
        }
    }
}

/// What one worker is to do.
#[derive(Debug)]
pub struct Errand {
    worker: WorkerId,
    order: Order,
    meant: Arc<Meant>,
    extras: Arc<Extras>,
    at: At,
    listed: u64,
    summary: Summary,
    buffer: Option<Vec<FlowRecord>>,
    empty: Receiver<Vec<FlowRecord>>,
    answers: Sender<Answer>,
}

impl Errand {
    /// Does a piece. Says whether it was the last: all is done, or nobody waits for it any more.
    fn piece(&mut self, flows: &mut Flows, now: u32) -> bool {
        match (self.at, self.order) {
            (At::Past(start), _) => self.sum_past(flows, start),
            (_, Order::Flush) => self.flush(flows, now),
            (_, Order::List(most)) => {
                let buffer = self.buffer.take().map_or_else(|| self.empty.try_recv(), Ok);
                let mut buffer = match buffer {
                    Ok(buffer) => buffer,
                    Err(TryRecvError::Empty) => return false,
                    Err(TryRecvError::Disconnected) => return true,
                };
                self.list(flows, now, most, &mut buffer);
                let has_room = buffer.capacity() - buffer.len() >= PIECE as usize;
                if has_room && !matches!(self.at, At::Past(_)) {
                    self.buffer = Some(buffer);
                } else if self.answers.try_send(Answer::Flows(self.worker, buffer)).is_err() {
                    return true;
                }
            }
        }
        let is_done = matches!(self.at, At::End);
        if is_done {
            self.finish(flows);
        }
        is_done
    }

    fn list(&mut self, flows: &Flows, now: u32, most: u64, buffer: &mut Vec<FlowRecord>) {
        let next = match self.at {
            At::V4(start) => self.list_in(&flows.v4, start, now, most, buffer),
            At::V6(start) => self.list_in(&flows.v6, start, now, most, buffer),
            At::Past(_) | At::End => return,
        };
        self.at = self.at.after(next);
    }

    fn sum_past(&mut self, flows: &Flows, start: usize) {
        let end = (start + PIECE as usize).min(self.extras.tags.len());
        let tags = self.extras.tags.get(start..end).unwrap_or_default();
        self.summary.past.extend(tags.iter().map(|tag| flows.past(*tag)));
        self.at = if end < self.extras.tags.len() { At::Past(end) } else { At::End };
    }

    fn list_in<A: Address>(
        &mut self,
        table: &FlowTable<A>,
        start: FlowId,
        now: u32,
        most: u64,
        buffer: &mut Vec<FlowRecord>,
    ) -> Option<FlowId> {
        let Self { meant, summary, listed, .. } = self;
        table.look_through(start, PIECE, |flow, forward, reverse| {
            if !meant.includes(forward) {
                return;
            }
            summary.matched += 1;
            if *listed < most {
                *listed += 1;
                buffer.push(FlowRecord::new(table, (flow, forward, reverse), now));
            }
        })
    }

    fn flush(&mut self, flows: &mut Flows, now: u32) {
        let Self { meant, summary, .. } = self;
        let next = match self.at {
            At::V4(start) => {
                flush_in(&mut flows.v4, &mut flows.ports_v4, start, now, meant, summary)
            }
            At::V6(start) => {
                flush_in(&mut flows.v6, &mut flows.ports_v6, start, now, meant, summary)
            }
            At::Past(_) | At::End => return,
        };
        self.at = self.at.after(next);
    }

    fn finish(&mut self, flows: &Flows) {
        let mut summary = std::mem::take(&mut self.summary);
        summary.total = flows.len();
        summary.capacity = u64::from(flows.v4.capacity()) + u64::from(flows.v6.capacity());
        for address in &self.extras.addresses {
            let status = match address {
                IpAddr::V4(address) => status_of(&flows.ports_v4, address.to_bits()),
                IpAddr::V6(address) => status_of(&flows.ports_v6, address.to_bits()),
            };
            summary.pools.extend(status.map(|status| (*address, status)));
        }
        // Whoever asked may have given up.
        let _ = self.answers.try_send(Answer::Done(self.worker, summary));
    }
}

fn flush_in<A: Address>(
    table: &mut FlowTable<A>,
    ports: &mut PortAllocator<A>,
    start: FlowId,
    now: u32,
    meant: &Meant,
    summary: &mut Summary,
) -> Option<FlowId> {
    let is_meant = |_, forward: &Half<A>, _: &Half<A>| meant.includes(forward);
    table.flush(start, PIECE, is_meant, &mut |removed| {
        summary.matched += 1;
        take_back(removed, ports, now);
    })
}

fn status_of<A: Address>(ports: &PortAllocator<A>, address: A) -> Option<PoolStatus> {
    ports.status(ports.pool(address)?)
}

impl<P: Port> Worker<P> {
    /// A piece of the oldest errand. Says whether there was one.
    pub(super) fn run_errand(&mut self) -> bool {
        let Some(errand) = self.errands.front_mut() else { return false };
        if errand.piece(&mut self.parts.flows, Flows::tick(self.now_ns)) {
            self.errands.pop_front();
        }
        true
    }
}

/// Workers that did not answer in time, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent(pub Vec<WorkerId>);

/// The slow thread's side: one errand for each of some workers.
#[derive(Debug)]
pub struct Round {
    waiting: Vec<(WorkerId, Sender<Vec<FlowRecord>>)>,
    answers: Receiver<Answer>,
}

impl Round {
    /// Makes the errands of these workers and hands them to `send`. Also asks for
    /// `extras`.
    pub fn begin(
        workers: impl Iterator<Item = WorkerId>,
        order: Order,
        meant: Meant,
        extras: Extras,
        send: &dyn Fn(WorkerId, Box<Errand>),
    ) -> Self {
        let (meant, extras) = (Arc::new(meant), Arc::new(extras));
        let workers: Vec<WorkerId> = workers.collect();
        // There is always room for all buffers that there are, and for the last word.
        let (answers, received) = bounded(workers.len() * (BUFFERS + 1));
        let mut waiting = Vec::new();
        for worker in workers {
            let (buffers, empty) = bounded(BUFFERS);
            if matches!(order, Order::List(_)) {
                for _ in 0..BUFFERS {
                    let _ = buffers.send(Vec::with_capacity(BUFFER));
                }
            }
            let pools = Vec::with_capacity(extras.addresses.len());
            let past = Vec::with_capacity(extras.tags.len());
            let errand = Errand {
                worker,
                order,
                meant: Arc::clone(&meant),
                extras: Arc::clone(&extras),
                at: At::V4(FlowId(0)),
                listed: 0,
                summary: Summary { pools, past, ..Summary::default() },
                buffer: None,
                empty,
                answers: answers.clone(),
            };
            waiting.push((worker, buffers));
            send(worker, Box::new(errand));
        }
        Self { waiting, answers: received }
    }

    /// Waits until all workers have done their errand; `each` is shown every flow that is reported.
    ///
    /// # Errors
    /// When nothing was heard of some for as long as `patience`.
    pub fn finish(
        mut self,
        patience: Duration,
        each: &mut dyn FnMut(WorkerId, &FlowRecord),
    ) -> Result<Vec<(WorkerId, Summary)>, Silent> {
        let mut done = Vec::new();
        let mut deadline = Instant::now() + patience;
        while !self.waiting.is_empty() {
            match self.answers.recv_deadline(deadline) {
                Ok(Answer::Flows(worker, mut buffer)) => {
                    buffer.iter().for_each(|flow| each(worker, flow));
                    buffer.clear();
                    if let Some((_, empty)) = self.waiting.iter().find(|(id, _)| *id == worker) {
                        // The worker may have ended.
                        let _ = empty.try_send(buffer);
                    }
                }
                Ok(Answer::Done(worker, summary)) => {
                    self.waiting.retain(|(id, _)| *id != worker);
                    done.push((worker, summary));
                }
                Err(_) => return Err(Silent(self.waiting.iter().map(|(id, _)| *id).collect())),
            }
            deadline = Instant::now() + patience;
        }
        done.sort_by_key(|(worker, _)| *worker);
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_do_not_answer_are_named() {
        let errands = std::cell::RefCell::new(Vec::new());
        let send = |_, errand| errands.borrow_mut().push(errand);
        let workers = (0..3).map(WorkerId);
        let order = Order::List(10);
        let round = Round::begin(workers, order, Meant::default(), Extras::default(), &send);
        let mut flows = Flows::new(WorkerId(1), 64).unwrap();
        let errand = &mut errands.borrow_mut()[1];
        let pieces = (1..10).find(|_| errand.piece(&mut flows, 0));
        assert_eq!(pieces, Some(3), "IPv4, IPv6, the rest");
        let silent = round.finish(Duration::from_millis(20), &mut |_, _| {}).unwrap_err();
        assert_eq!(silent, Silent(vec![WorkerId(0), WorkerId(2)]));
    }

    #[test]
    fn an_errand_that_nobody_waits_for_ends() {
        let errands = std::cell::RefCell::new(Vec::new());
        let send = |_, errand| errands.borrow_mut().push(errand);
        let order = Order::List(10);
        let round = Round::begin(
            [WorkerId(0)].into_iter(),
            order,
            Meant::default(),
            Extras::default(),
            &send,
        );
        drop(round);
        let mut flows = Flows::new(WorkerId(0), 64).unwrap();
        let errand = &mut errands.borrow_mut()[0];
        assert!((0..10).any(|_| errand.piece(&mut flows, 0)));
    }
}
