//! What a worker does now and then: commands, publication of its counters, idle ports, packets that
//! waited too long. A bounded amount of work each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Command, Slot, Worker};
use crate::io::{KernelDrops, Port};
use crate::packet::drop::DropReason;
use crate::packet::meta::Origin;
use crate::packet::pool::FramePool;
use crate::packet::verdict::PortId;

/// A port's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortCounts {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Unfinished checksums of received frames that were finished.
    pub finished_checksums: u64,
    /// What the kernel dropped.
    pub kernel: KernelDrops,
    /// Frames on the port's rings.
    pub held: u64,
}

const FIELDS: usize = 10;

/// A port's counters as published: written by its worker, read by anybody.
#[derive(Debug, Clone, Default)]
pub struct PortView(Arc<[AtomicU64; FIELDS]>);

impl PortView {
    /// What was published last.
    #[must_use]
    pub fn read(&self) -> PortCounts {
        let field = |index: usize| self.0[index].load(Ordering::Relaxed);
        PortCounts {
            rx_packets: field(0),
            tx_packets: field(1),
            finished_checksums: field(2),
            kernel: KernelDrops {
                rx_dropped: field(3),
                rx_ring_full: field(4),
                rx_fill_ring_empty: field(5),
                rx_invalid: field(6),
                tx_invalid: field(7),
                tx_dropped: field(8),
            },
            held: field(9),
        }
    }

    fn publish(&self, counts: &PortCounts) {
        let kernel = &counts.kernel;
        let values: [u64; FIELDS] = [
            counts.rx_packets,
            counts.tx_packets,
            counts.finished_checksums,
            kernel.rx_dropped,
            kernel.rx_ring_full,
            kernel.rx_fill_ring_empty,
            kernel.rx_invalid,
            kernel.tx_invalid,
            kernel.tx_dropped,
            counts.held,
        ];
        for (place, value) in self.0.iter().zip(values) {
            place.store(value, Ordering::Relaxed);
        }
    }
}

/// A port's own counters and where they are published.
#[derive(Debug)]
pub(super) struct PortBlock {
    pub(super) counts: PortCounts,
    view: PortView,
}

impl<P: Port> Worker<P> {
    /// Carries out what the slow thread told this worker.
    pub fn obey(&mut self) {
        while let Ok(command) = self.parts.commands.try_recv() {
            match command {
                Command::AddPort { id, origin, port, view } => {
                    self.add_port(id, origin, port, view);
                }
                Command::RemovePort { id, done } => {
                    self.remove_port(id);
                    // Whoever waited may have given up.
                    let _ = done.send(());
                }
                Command::AddUmem(depot) => {
                    // UMEMs are numbered in the order in which they are made.
                    debug_assert_eq!(usize::from(depot.umem().0), self.pools.len());
                    self.pools.push(FramePool::new(depot, super::POOL_KEEP));
                }
                Command::SendFrame { port, frame } => self.send_made(port, &frame),
                Command::Errand(errand) => self.errands.push_back(errand),
                Command::ForgetTag(tag) => self.parts.flows.forget_tag(tag),
                Command::FlowTables { mut tables, done } => {
                    let is_used = self.parts.flows.exchange(&mut tables);
                    // Whoever asked may have given up.
                    let _ = done.send((is_used, tables));
                }
                Command::Stop => self.stopping = true,
            }
        }
    }

    /// Sends a frame that the slow thread has made.
    fn send_made(&mut self, port: PortId, bytes: &[u8]) {
        self.counters.received += 1;
        self.counters.generated += 1;
        let own = usize::from(self.parts.own_umem.0);
        let Some(mut frame) = self.pools.get_mut(own).and_then(FramePool::take) else {
            return self.counters.drop(DropReason::FramesExhausted);
        };
        if frame.fill(bytes).is_err() {
            return self.discard(frame, DropReason::FramesExhausted);
        }
        match self.send(frame, port) {
            Ok(()) => self.counters.sent += 1,
            Err(reason) => self.counters.drop(reason),
        }
        self.after_work();
    }

    fn add_port(&mut self, id: PortId, origin: Origin, port: P, view: PortView) {
        self.remove_port(id);
        let number = id.index();
        if self.slots.len() <= number {
            self.slots.resize_with(number + 1, || None);
            self.finished_checksums.resize(number + 1, 0);
        }
        self.finished_checksums[number] = 0;
        let block = PortBlock { counts: PortCounts::default(), view };
        self.slots[number] = Some(Slot { id, port, origin, dirty: false, active: true, block });
        let list = match origin {
            Origin::Uplink => &mut self.uplink_ports,
            _ => &mut self.inside_ports,
        };
        list.push(number);
        self.port_changes += 1;
        self.recycle_all();
    }

    fn remove_port(&mut self, id: PortId) {
        let Some(slot) = self.slots.get_mut(id.index()).and_then(Option::take) else { return };
        self.port_changes += 1;
        self.inside_ports.retain(|number| *number != id.index());
        self.uplink_ports.retain(|number| *number != id.index());
        if let Some(pool) = self.pools.get_mut(usize::from(slot.port.umem().0)) {
            slot.port.close(pool);
        }
    }

    /// Lets go of everything: for the end of the worker.
    pub fn close(&mut self) {
        for number in 0..self.slots.len() {
            self.remove_port(PortId(u16::try_from(number).unwrap_or(u16::MAX)));
        }
        self.now_ns = u64::MAX;
        self.expire_held();
        for number in 0..self.parts.lanes.incoming.len() {
            while let Some(Ok(packet)) =
                self.parts.lanes.incoming[number].as_mut().map(rtrb::Consumer::pop)
            {
                self.counters.received += 1;
                self.discard(packet.frame, crate::packet::drop::DropReason::PortGone);
            }
        }
        for number in 0..self.parts.lanes.passed_in.len() {
            while let Some(Ok(arrived)) =
                self.parts.lanes.passed_in[number].as_mut().map(rtrb::Consumer::pop)
            {
                self.counters.received += 1;
                self.discard(arrived.frame, crate::packet::drop::DropReason::PortGone);
            }
        }
        for pool in &mut self.pools {
            pool.drain();
        }
        self.publish();
    }

    /// Was this worker told to end?
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Frames back, frames out, for every port.
    pub fn recycle_all(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            slot.port.flush();
            if let Some(pool) = self.pools.get_mut(usize::from(slot.port.umem().0)) {
                slot.port.recycle(pool);
            }
        }
    }

    /// Publishes this worker's counters.
    pub fn publish(&mut self) {
        self.counters.flows = self.parts.flows.len();
        self.parts.published.publish(&self.counters);
    }

    /// What is due every few milliseconds.
    pub fn maintain(&mut self) {
        self.obey();
        self.recycle_all();
        self.expire_held();
        self.after_work();
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            let counts = &mut slot.block.counts;
            counts.finished_checksums = self.finished_checksums[number];
            counts.held = slot.port.held() as u64;
            slot.block.view.publish(counts);
        }
        self.publish();
    }

    /// Asks the kernel for its drop counters: a system call for each port.
    pub fn read_kernel_drops(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            slot.block.counts.kernel = slot.port.kernel_drops();
        }
    }
}
