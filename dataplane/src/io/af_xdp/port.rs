//! One device queue on AF_XDP.
//!
//! ```text
//!   pool --recycle--> fill ring --> [device] --> RX ring --receive--> worker
//!   pool <-recycle-- completion ring <-- [device] <-- TX ring <--send, flush-- worker
//! ```
//!
//! Nothing on this path allocates or locks. `receive` and `send` make no system call; `flush`
//! makes one for each burst where the device must be told, and none when there is nothing to
//! send.

use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use xsk_rs::umem::frame::FrameDesc;

use super::burst::Burst;
use super::fill_target::FillTarget;
use super::gso::{GsoSocket, Sent};
use super::outstanding::Outstanding;
use super::plan::RingSizes;
use super::socket::{self, BusyPoll, OpenError, Queues};
use super::tx_ring::TxRing;
use super::umem::{Area, BindMode, Umem};
use crate::io::{KernelDrops, Port, VECTOR};
use crate::packet::frame::{CHUNK, Frame};
use crate::packet::pool::{Depot, FramePool, UmemId};
use crate::packet::segments::{Offload, Segments};

/// System calls that one flush makes at most: 32 frames each on kernels before 6.17.
const MAX_KICKS: u32 = 64;
/// After so many calls that moved nothing the device is taken to be stuck for now.
const MAX_STALLS: u32 = 3;
/// Frames that are put on the fill ring together, so that its index is not written for each.
const FILL_BATCH: usize = 16;

/// Which queue to open, and how.
#[derive(Debug, Clone)]
pub struct OpenPort<'a> {
    /// Name of the device, in the network namespace of the calling thread.
    pub interface: &'a str,
    /// Number of the queue.
    pub queue: u32,
    /// Entries of the rings; fill and completion are the UMEM's and must not be larger there.
    pub rings: RingSizes,
    /// Free frames that are kept for receiving when the port is idle.
    pub fill_min: u32,
    /// Most frames that are sent between two [`Port::recycle`]s. A veth loses what its peer has
    /// not taken off a queue of 256; a NIC takes a whole TX ring.
    pub burst: u32,
    /// Busy polling; none on a veth.
    pub busy_poll: Option<BusyPoll>,
    /// Most frames that one system call sends in copy mode, where the kernel lets us choose (6.17).
    pub tx_budget: u32,
    /// Send buffer, bytes: what the kernel may hold of frames on their way in copy mode; none: enough
    /// for a whole TX ring.
    pub send_buffer: Option<u32>,
    /// Which packets' segments are sent as one.
    pub coalesce: Coalesce,
    /// May frames leave with those of other ports, by [`Port::stage`]? In copy mode only; with several
    /// transmit queues the kernel chooses one.
    pub in_bursts: bool,
}

/// Which packets' segments a port in copy mode sends as one (GSO).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Coalesce {
    /// None.
    #[default]
    Nothing,
    /// TCP's.
    Tcp,
    /// TCP's, and tunnel packets of one size. The device or the kernel finishes their outer checksums.
    TcpAndTunnels,
}

impl<'a> OpenPort<'a> {
    /// A queue of a veth.
    #[must_use]
    pub fn veth(interface: &'a str, queue: u32) -> Self {
        Self {
            interface,
            queue,
            rings: RingSizes::default(),
            fill_min: 32,
            burst: 256,
            busy_poll: None,
            tx_budget: 256,
            send_buffer: None,
            coalesce: Coalesce::Nothing,
            in_bursts: false,
        }
    }

    /// A queue of a NIC.
    #[must_use]
    pub fn nic(interface: &'a str, queue: u32) -> Self {
        let rings = RingSizes { rx: 2048, tx: 1024, ..RingSizes::default() };
        let burst = rings.tx;
        Self { fill_min: 512, burst, tx_budget: burst, rings, ..Self::veth(interface, queue) }
    }
}

/// How sending went since the port was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxCounters {
    /// System calls that sent frames.
    pub kicks: u64,
    /// Of those, answered with "call again": more than one call's worth, or the device was full.
    pub again: u64,
    /// Flushes that gave up for now because the device took nothing.
    pub stalls: u64,
    /// Frames that the device did not take: it or its peer is down, or full (EBUSY).
    pub dropped_by_device: u64,
    /// Calls refused because the device is down or gone, or memory is short.
    pub refused: u64,
    /// Addresses that the kernel returned although they were not given to it; must stay 0.
    pub foreign_addresses: u64,
}

/// One queue of one device.
#[derive(Debug)]
pub struct AfXdpPort {
    area: &'static Area,
    /// For frames that come back when nobody closes the port.
    depot: Arc<Depot>,
    /// Unmapped and closed before the frames are taken back, so not with the other fields.
    tx: ManuallyDrop<TxRing>,
    queues: ManuallyDrop<Queues>,
    closed: bool,
    zero_copy: bool,
    outstanding: Outstanding,
    descs: Box<[FrameDesc; VECTOR]>,
    /// Frames on the fill ring, or taken from it by the kernel and not yet received.
    on_fill: usize,
    /// Frames sent and not yet completed.
    on_tx: usize,
    fill: FillTarget,
    burst: u32,
    sent_since_recycle: u32,
    /// Did the last flush leave frames on the TX ring?
    backlog: bool,
    /// For packets in segments; none: each goes by itself.
    gso: Option<GsoSocket>,
    /// Number of the device, if frames may leave by a burst.
    burst_by: Option<u32>,
    coalesce: Coalesce,
    counters: TxCounters,
}

impl AfXdpPort {
    /// Opens a queue. It takes some milliseconds, which no worker has. Packets arrive once the steering program sends them to [`AfXdpPort::fd`]
    /// and [`Port::recycle`] has put frames on the fill ring.
    ///
    /// # Errors
    /// [`OpenError`]; a queue that was closed just now is waited for, up to a second.
    pub fn open(umem: &Umem, options: &OpenPort<'_>) -> Result<Self, OpenError> {
        let area = umem.area;
        let rings = options.rings;
        if rings.tx > area.completion_ring {
            let why = "the UMEM's completion ring must be as large";
            return Err(OpenError::Ring { ring: "transmit", size: rings.tx, why });
        }
        if options.fill_min > area.fill_ring {
            let (size, why) = (options.fill_min, "the UMEM's fill ring is smaller");
            return Err(OpenError::Ring { ring: "fill", size, why });
        }
        let queues = socket::bind(area, options.interface, options.queue, rings)?;
        socket::allow_bursts(queues.fd, rings.tx, options.tx_budget, options.send_buffer)?;
        if let Some(poll) = options.busy_poll {
            socket::busy_poll(queues.fd, poll)?;
        }
        let zero_copy = socket::is_zero_copy(queues.fd)?;
        let tx = TxRing::map(queues.fd, rings.tx)?;
        Ok(Self {
            area,
            depot: umem.depot().clone(),
            tx: ManuallyDrop::new(tx),
            queues: ManuallyDrop::new(queues),
            closed: false,
            zero_copy,
            outstanding: Outstanding::new(area.chunks()),
            descs: Box::new([FrameDesc::default(); VECTOR]),
            on_fill: 0,
            on_tx: 0,
            fill: FillTarget::new(options.fill_min, area.fill_ring),
            burst: options.burst,
            sent_since_recycle: 0,
            backlog: false,
            gso: open_gso(options, zero_copy),
            burst_by: burst_by(options, zero_copy),
            coalesce: options.coalesce,
            counters: TxCounters::default(),
        })
    }

    /// The socket, for the steering program's map. Valid while the port lives.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.queues.fd
    }

    /// Does the device use the UMEM without copies?
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// How sending went so far.
    #[must_use]
    pub fn tx_counters(&self) -> TxCounters {
        self.counters
    }

    /// Frames sent whose sending has not ended, as of the last [`Port::recycle`].
    #[must_use]
    pub fn sending(&self) -> usize {
        self.on_tx
    }

    /// Frames that the port keeps ready for receiving at present.
    #[must_use]
    pub fn fill_target(&self) -> usize {
        self.fill.get()
    }

    /// Closes the socket and gives all frames of its rings to `pool`; waits for the kernel.
    pub(super) fn release(&mut self, pool: &mut FramePool) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.fill.close(&self.area.extra);
        if self.area.mode == BindMode::ZeroCopy {
            return;
        }
        // SAFETY: `closed` was false, so neither was dropped, and nothing uses them after this.
        // The TX mapping goes first because it keeps the socket open.
        unsafe {
            ManuallyDrop::drop(&mut self.tx);
            ManuallyDrop::drop(&mut self.queues);
        }
        while let Some(chunk) = self.outstanding.pop() {
            // SAFETY: the chunk was given to the kernel by this port and did not come back, so
            // there is no token of it; the rings it was on are gone, and with the socket closed
            // the kernel writes to it no more: the last close waits for receiving to end, and
            // this was the last, because no other process inherits the descriptor.
            pool.give(unsafe { self.area.frame(chunk) });
        }
        (self.on_fill, self.on_tx) = (0, 0);
    }

    /// The token of the chunk that `addr` lies in, which the kernel returned, and the offset in
    /// it; none if this port has not given it away.
    #[inline]
    fn take_back(&mut self, addr: usize) -> Option<(Frame, usize)> {
        let chunk = addr / CHUNK;
        if !self.outstanding.remove(chunk) {
            self.counters.foreign_addresses += 1;
            return None;
        }
        // SAFETY: the set held the chunk: it is one of this UMEM that was given to the kernel
        // here, which ended its token, and the kernel has now returned it. It is out of the set,
        // so that this happens once.
        Some((unsafe { self.area.frame(chunk) }, addr % CHUNK))
    }

    fn complete(&mut self, pool: &mut FramePool) {
        while self.on_tx > 0 {
            // SAFETY: what is consumed here was sent by this port; the descriptors are only
            // used for their addresses.
            let found = unsafe { self.queues.completion.consume(&mut self.descs[..]) };
            for at in 0..found {
                // The address is where the packet began, anywhere in the chunk.
                if let Some((frame, _)) = self.take_back(self.descs[at].addr()) {
                    pool.give(frame);
                    self.on_tx -= 1;
                }
            }
            if found < VECTOR {
                return;
            }
        }
    }

    fn top_up(&mut self, pool: &mut FramePool) {
        let mut missing = self.fill.get().saturating_sub(self.on_fill);
        // A small ring is not let run empty for the sake of a batch.
        if missing < FILL_BATCH.min(self.fill.get() / 2) {
            return;
        }
        missing = missing.min(self.queues.fill.nb_free_exact() as usize);
        while missing > 0 {
            let mut descs: ArrayVec<FrameDesc, VECTOR> = ArrayVec::new();
            while descs.len() < missing.min(VECTOR) {
                let Some(frame) = pool.take() else { break };
                let Some(chunk) = self.area.chunk_of(&frame) else {
                    // Not of this UMEM: the caller gave the wrong pool.
                    pool.give(frame);
                    break;
                };
                self.outstanding.insert(chunk);
                descs.push(self.area.descs[chunk]);
            }
            if descs.is_empty() {
                break;
            }
            // SAFETY: the chunks' tokens ended just now, so nobody touches them until the
            // kernel returns them. There is room for all of them, so all are taken.
            let taken = unsafe { self.queues.fill.produce(&descs) };
            debug_assert_eq!(taken, descs.len());
            self.on_fill += taken;
            missing -= taken;
        }
        if self.zero_copy && self.queues.fill.needs_wakeup() {
            socket::wake_receiver(self.queues.fd);
        }
    }

    /// Calls the kernel until it has taken all that is on the TX ring; is something left?
    fn drive(&mut self) -> bool {
        let mut waiting = self.tx.waiting();
        let mut stalls = 0;
        for _ in 0..MAX_KICKS {
            if waiting == 0 {
                return false;
            }
            let result = socket::kick(self.queues.fd);
            self.counters.kicks += 1;
            let left = self.tx.waiting();
            match result {
                Ok(()) => {}
                Err(libc::EAGAIN) => self.counters.again += 1,
                Err(libc::EBUSY) => {
                    self.counters.dropped_by_device += 1;
                    return left > 0;
                }
                Err(_) => {
                    self.counters.refused += 1;
                    return left > 0;
                }
            }
            stalls = if left < waiting { 0 } else { stalls + 1 };
            if stalls == MAX_STALLS {
                break;
            }
            waiting = left;
        }
        self.counters.stalls += 1;
        true
    }
}

/// The device's number, if its frames may leave by a burst.
fn burst_by(options: &OpenPort<'_>, zero_copy: bool) -> Option<u32> {
    let index = || nix::net::if_::if_nametoindex(options.interface).ok();
    if options.in_bursts && !zero_copy { index() } else { None }
}

/// The socket for packets in segments, where those are wanted and devices copy anyway.
fn open_gso(options: &OpenPort<'_>, zero_copy: bool) -> Option<GsoSocket> {
    if options.coalesce == Coalesce::Nothing || zero_copy {
        return None;
    }
    let index = nix::net::if_::if_nametoindex(options.interface).map_err(std::io::Error::from);
    match index.and_then(GsoSocket::open) {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!(
                interface = options.interface,
                %error,
                "no packet socket: bulk TCP goes packet by packet"
            );
            None
        }
    }
}

impl Port for AfXdpPort {
    #[inline]
    fn receive(&mut self, out: &mut ArrayVec<Frame, VECTOR>) -> usize {
        let room = out.remaining_capacity();
        // SAFETY: what is received here was put on the fill ring by this port; the descriptors
        // are only used for their addresses and lengths.
        let found = unsafe { self.queues.rx.consume(&mut self.descs[..room]) };
        if found == 0 {
            return 0;
        }
        let before = out.len();
        for at in 0..found {
            let desc = self.descs[at];
            if let Some((mut frame, start)) = self.take_back(desc.addr()) {
                frame.set_range(start, desc.lengths().data());
                out.push(frame);
            }
        }
        let received = out.len() - before;
        self.on_fill -= received;
        self.fill.found(received, &self.area.extra);
        received
    }

    #[inline]
    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        let Some(chunk) = self.area.chunk_of(&frame) else { return Err(frame) };
        if frame.is_empty() || self.sent_since_recycle >= self.burst {
            return Err(frame);
        }
        let addr = (chunk * CHUNK + frame.start()) as u64;
        if !self.tx.push(addr, frame.len()) {
            return Err(frame);
        }
        self.outstanding.insert(chunk);
        self.on_tx += 1;
        self.sent_since_recycle += 1;
        Ok(())
    }

    #[inline]
    fn takes_segments(&self) -> bool {
        self.gso.is_some()
    }

    fn send_segments(&mut self, segments: &Segments, frames: &[Frame]) -> bool {
        let is_tunnel = segments.offload == Offload::Udp;
        if is_tunnel && self.coalesce != Coalesce::TcpAndTunnels {
            return false;
        }
        // What was sent before leaves before.
        self.flush();
        let Some(gso) = self.gso.as_mut().filter(|_| !self.backlog) else { return false };
        match gso.send(segments, frames) {
            Sent::Whole => true,
            Sent::Dropped => {
                self.counters.dropped_by_device += frames.len() as u64;
                true
            }
            Sent::NotNow => false,
            Sent::Never => {
                match self.coalesce {
                    // Older kernels know the segments of TCP only.
                    Coalesce::TcpAndTunnels if is_tunnel => self.coalesce = Coalesce::Tcp,
                    _ => self.gso = None,
                }
                false
            }
        }
    }

    #[inline]
    fn waiting(&self) -> usize {
        // What was shown to the kernel and not taken leaves before.
        if self.burst_by.is_none() || self.backlog { 0 } else { self.tx.unpublished() as usize }
    }

    fn stage(&mut self, burst: &mut Burst, pool: &mut FramePool) {
        let count = self.waiting();
        let Some(interface) = self.burst_by.filter(|_| count > 0 && burst.has_room(count)) else {
            return;
        };
        for index in 0.. {
            let Some((addr, len)) = self.tx.unpublished_at(index) else { break };
            let addr = usize::try_from(addr).unwrap_or(usize::MAX);
            // Taken back below before the kernel ever saw it.
            let Some((mut frame, start)) = self.take_back(addr) else { continue };
            self.on_tx -= 1;
            frame.set_range(start, len);
            if !burst.stage(interface, frame.bytes()) {
                self.counters.dropped_by_device += 1;
            }
            pool.give(frame);
        }
        self.tx.forget();
    }

    fn learn_refused(&mut self, burst: &mut Burst) {
        if let Some(interface) = self.burst_by {
            self.counters.dropped_by_device += burst.take_refused(interface);
        }
    }

    #[inline]
    fn flush(&mut self) {
        if !self.tx.publish() && !self.backlog {
            return;
        }
        self.backlog = self.tx.needs_wakeup() && self.drive();
    }

    #[inline]
    fn recycle(&mut self, pool: &mut FramePool) {
        self.sent_since_recycle = 0;
        self.complete(pool);
        self.top_up(pool);
        self.fill.recycled(self.on_fill, &self.area.extra);
    }

    fn umem(&self) -> UmemId {
        self.area.id
    }

    fn held(&self) -> usize {
        self.outstanding.len()
    }

    fn kernel_drops(&self) -> KernelDrops {
        let tx_dropped = self.counters.dropped_by_device;
        match self.queues.rx.fd().xdp_statistics() {
            Ok(s) => KernelDrops {
                rx_dropped: s.rx_dropped(),
                rx_ring_full: s.rx_ring_full(),
                rx_fill_ring_empty: s.rx_fill_ring_empty_descs(),
                rx_invalid: s.rx_invalid_descs(),
                tx_invalid: s.tx_invalid_descs(),
                tx_dropped,
            },
            // Only a socket that is no AF_XDP socket has none.
            Err(_) => KernelDrops { tx_dropped, ..KernelDrops::default() },
        }
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the socket is open for as long as the port is borrowed.
        Some(unsafe { BorrowedFd::borrow_raw(self.queues.fd) })
    }

    /// Closing waits for the kernel's receive path, some 20 ms that no worker has: the port goes
    /// to a thread of the UMEM's, and its frames to the UMEM's depot instead of `_pool`.
    ///
    /// In copy mode all frames come back, because what is being sent was copied. (Except on
    /// `virtio_net`, where a packet that was being sent may go out with another one's bytes.) In
    /// zero-copy mode the device goes on using its frames until the process ends, so they stay
    /// with it.
    fn close(self, _pool: &mut FramePool) {
        // The thread lives as long as the process. If it does not, dropping closes as well.
        let closer = &self.area.closer;
        let _ = closer.send(self);
    }
}

impl Drop for AfXdpPort {
    /// Like [`Port::close`], but waits for the kernel here.
    fn drop(&mut self) {
        if !self.closed {
            let mut pool = FramePool::new(self.depot.clone(), 0);
            self.release(&mut pool);
            pool.drain();
        }
    }
}
