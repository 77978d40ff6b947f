//! NICs that are only memory, for tests and benchmarks.
//!
//! - [`MemoryPort`] has the rings of an AF_XDP socket and behaves as one does, frame for frame;
//!   at the other end of its wire a test injects packets and collects what was sent.
//! - [`ReplayPort`] makes packets from templates as fast as they are asked for and swallows what
//!   is sent: what is left of a worker's time is the pipeline's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;

use super::{KernelDrops, Port, VECTOR};
use crate::packet::frame::{CHUNK, Frame, HEADROOM};
use crate::packet::pool::{Depot, FramePool, UmemId};

/// A page, so that chunks lie in memory as those of a UMEM do.
#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; 4096]);

/// Packet memory that no kernel knows. It is never freed: frames are `'static`.
#[derive(Debug)]
pub struct MemoryUmem;

impl MemoryUmem {
    /// `chunks` chunks of 2048 bytes on whole pages, all in the depot returned. The memory lasts as
    /// long as the process; what [`MemoryUmem::give_back`] got is used again, as it is.
    #[must_use]
    #[allow(clippy::new_ret_no_self)]
    pub fn new(umem: UmemId, chunks: usize) -> Arc<Depot> {
        if let Some(frames) = spare().take(umem, chunks) {
            return Depot::new(umem, frames);
        }
        let pages = vec![Page([0; 4096]); (chunks * CHUNK).div_ceil(4096)];
        let pages: &'static mut [Page] = Box::leak(pages.into_boxed_slice());
        let frames = pages
            .iter_mut()
            .flat_map(|page| page.0.as_chunks_mut::<CHUNK>().0)
            .take(chunks)
            .map(|chunk| Frame::new(chunk, umem));
        Depot::new(umem, frames)
    }

    /// Takes back the memory of a depot that has all of its frames: for tests that make thousands.
    pub fn give_back(depot: Arc<Depot>) {
        let (umem, chunks) = (depot.umem(), depot.chunks());
        let mut pool = FramePool::new(depot, chunks);
        let mut frames = Vec::with_capacity(chunks);
        while let Some(frame) = pool.take() {
            frames.push(frame);
        }
        if frames.len() == chunks {
            spare().0.push((umem, frames));
        }
    }
}

/// Memory that nobody uses at present.
struct Spare(Vec<(UmemId, Vec<Frame>)>);

impl Spare {
    fn take(&mut self, umem: UmemId, chunks: usize) -> Option<Vec<Frame>> {
        let fits = |(of, frames): &(UmemId, Vec<Frame>)| (*of, frames.len()) == (umem, chunks);
        let place = self.0.iter().position(fits)?;
        Some(self.0.swap_remove(place).1)
    }
}

fn spare() -> MutexGuard<'static, Spare> {
    static SPARE: Mutex<Spare> = Mutex::new(Spare(Vec::new()));
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What both ends of a wire share: the four rings, and the drops that a kernel would count.
#[derive(Debug)]
struct Rings {
    fill: ArrayQueue<Frame>,
    rx: ArrayQueue<Frame>,
    tx: ArrayQueue<Frame>,
    completion: ArrayQueue<Frame>,
    dropped: AtomicU64,
    rx_full: AtomicU64,
    fill_empty: AtomicU64,
}

/// A device queue in memory. Made with its [`MemoryWire`] by [`MemoryPort::new`].
#[derive(Debug)]
pub struct MemoryPort {
    rings: Arc<Rings>,
    umem: UmemId,
    /// Sent and not flushed yet.
    staged: VecDeque<Frame>,
    /// Sent and not recycled yet.
    on_tx: usize,
    held: usize,
}

/// The other end of a [`MemoryPort`]: where its packets come from and go to. It may be used on
/// another thread.
#[derive(Debug, Clone)]
pub struct MemoryWire {
    rings: Arc<Rings>,
}

impl MemoryPort {
    /// A port for frames of `umem` whose rings have `ring` entries each (at least one), and its
    /// wire.
    #[must_use]
    pub fn new(umem: UmemId, ring: usize) -> (Self, MemoryWire) {
        let ring = ring.max(1);
        let rings = Arc::new(Rings {
            fill: ArrayQueue::new(ring),
            rx: ArrayQueue::new(ring),
            tx: ArrayQueue::new(ring),
            completion: ArrayQueue::new(ring),
            dropped: AtomicU64::new(0),
            rx_full: AtomicU64::new(0),
            fill_empty: AtomicU64::new(0),
        });
        let wire = MemoryWire { rings: rings.clone() };
        let staged = VecDeque::with_capacity(ring);
        (Self { rings, umem, staged, on_tx: 0, held: 0 }, wire)
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, out: &mut ArrayVec<Frame, VECTOR>) -> usize {
        let before = out.len();
        while !out.is_full() {
            let Some(frame) = self.rings.rx.pop() else { break };
            out.push(frame);
        }
        let received = out.len() - before;
        self.held -= received;
        received
    }

    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        // What was sent and not recycled yet takes room too: it must fit on the completion ring.
        let full = self.on_tx >= self.rings.tx.capacity();
        if full || frame.umem() != self.umem || frame.is_empty() {
            return Err(frame);
        }
        self.staged.push_back(frame);
        self.on_tx += 1;
        self.held += 1;
        Ok(())
    }

    fn flush(&mut self) {
        while let Some(frame) = self.staged.pop_front() {
            if let Err(frame) = self.rings.tx.push(frame) {
                self.staged.push_front(frame);
                return;
            }
        }
    }

    fn recycle(&mut self, pool: &mut FramePool) {
        while let Some(frame) = self.rings.completion.pop() {
            (self.held, self.on_tx) = (self.held - 1, self.on_tx - 1);
            pool.give(frame);
        }
        while !self.rings.fill.is_full() {
            let Some(frame) = pool.take() else { return };
            if let Err(frame) = self.rings.fill.push(frame) {
                pool.give(frame);
                return;
            }
            self.held += 1;
        }
    }

    fn umem(&self) -> UmemId {
        self.umem
    }

    fn held(&self) -> usize {
        self.held
    }

    fn kernel_drops(&self) -> KernelDrops {
        KernelDrops {
            rx_dropped: self.rings.dropped.load(Ordering::Relaxed),
            rx_ring_full: self.rings.rx_full.load(Ordering::Relaxed),
            rx_fill_ring_empty: self.rings.fill_empty.load(Ordering::Relaxed),
            ..KernelDrops::default()
        }
    }

    fn close(mut self, pool: &mut FramePool) {
        for frame in self.staged.drain(..) {
            pool.give(frame);
        }
        for ring in [&self.rings.fill, &self.rings.rx, &self.rings.tx, &self.rings.completion] {
            while let Some(frame) = ring.pop() {
                pool.give(frame);
            }
        }
    }

    fn poll_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

impl MemoryWire {
    /// A packet arrives at the port. False when the port drops it, as a kernel would: no free
    /// frame, no room on the RX ring, or longer than a frame.
    pub fn inject(&self, packet: &[u8]) -> bool {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        if self.rings.rx.is_full() {
            count(&self.rings.rx_full);
            return false;
        }
        let Some(mut frame) = self.rings.fill.pop() else {
            count(&self.rings.fill_empty);
            count(&self.rings.dropped);
            return false;
        };
        let fits = frame.fill(packet).is_ok();
        let (ring, counter) = if fits {
            (&self.rings.rx, &self.rings.rx_full)
        } else {
            (&self.rings.fill, &self.rings.dropped)
        };
        if !fits {
            count(counter);
        }
        // The port is the only one that fills the fill ring and we took one from it; the RX ring
        // can be full only when another thread injects as well.
        if let Err(frame) = ring.push(frame) {
            count(counter);
            let _ = self.rings.fill.push(frame);
            return false;
        }
        fits
    }

    /// The next packet that the port has sent and flushed.
    #[must_use]
    pub fn collect(&self) -> Option<Vec<u8>> {
        let frame = self.rings.tx.pop()?;
        let packet = frame.bytes().to_vec();
        // There is room: a port sends only while fewer than a ring are not recycled.
        let _ = self.rings.completion.push(frame);
        Some(packet)
    }

    /// All packets that the port has sent and flushed.
    #[must_use]
    pub fn collect_all(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.collect()).collect()
    }
}

/// A port for benchmarks: packets are made from templates when they are received, and frames
/// that are sent are ready for the next packet.
///
/// What it costs itself is one copy of [`ReplayPort::copied`] bytes for a packet; measure it by
/// sending what was received. Frames are used in turn, as a device does, so that the data of as
/// many packets as the port has frames must fit in the cache.
#[derive(Debug)]
pub struct ReplayPort {
    umem: UmemId,
    templates: Vec<Template>,
    order: Vec<u32>,
    next: usize,
    /// Lines of a packet that are written.
    lines: usize,
    free: VecDeque<Frame>,
    frames: usize,
    left: u64,
    received: u64,
    sent: u64,
    sent_bytes: u64,
}

/// A packet as it arrives: whole cache lines, so that it is copied without asking for its length.
#[derive(Debug)]
struct Template {
    lines: Box<[[u8; LINE]]>,
    len: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl Template {
    fn new(packet: &[u8]) -> Self {
        let mut lines = vec![[0; LINE]; packet.len().div_ceil(LINE)].into_boxed_slice();
        lines.as_flattened_mut()[..packet.len()].copy_from_slice(packet);
        Self { lines, len: packet.len() }
    }

    /// Makes `frame` this packet, writing the first `lines` lines of it at most.
    #[inline]
    fn write(&self, frame: &mut Frame, lines: usize) {
        frame.set_range(HEADROOM, CHUNK - HEADROOM);
        let (places, _) = frame.bytes_mut().as_chunks_mut::<LINE>();
        if let ([line], Some(place)) = (&*self.lines, places.first_mut()) {
            *place = *line;
        } else {
            for (place, line) in places.iter_mut().zip(&self.lines).take(lines) {
                *place = *line;
            }
        }
        frame.truncate(self.len);
    }
}

/// A [`ReplayPort`] cannot be made of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No template or an empty order.
    #[error("there must be at least one template and one packet in the order")]
    Empty,
    /// A template is longer than a frame holds.
    #[error("template {template} has {len} bytes; a frame holds {}", CHUNK - HEADROOM)]
    TooLong {
        /// Its number.
        template: usize,
        /// Its length, bytes.
        len: usize,
    },
    /// The order names a template that there is not.
    #[error("the order names template {template} of {templates}")]
    NoTemplate {
        /// The number in the order.
        template: u32,
        /// How many there are.
        templates: usize,
    },
}

impl ReplayPort {
    /// A port with `frames` frames of `umem` that receives `templates` in the given order, over
    /// and over. Of each packet only the first `copied` bytes, rounded up to whole cache lines, are
    /// written (at least those that the pipeline changes); behind them stands what an earlier packet left.
    ///
    /// # Errors
    /// [`ReplayError`]
    pub fn new(
        umem: UmemId,
        templates: Vec<Vec<u8>>,
        order: Vec<u32>,
        frames: usize,
        copied: usize,
    ) -> Result<Self, ReplayError> {
        if templates.is_empty() || order.is_empty() {
            return Err(ReplayError::Empty);
        }
        if let Some(template) = templates.iter().position(|t| t.len() > CHUNK - HEADROOM) {
            return Err(ReplayError::TooLong { template, len: templates[template].len() });
        }
        if let Some(&template) = order.iter().find(|&&t| t as usize >= templates.len()) {
            return Err(ReplayError::NoTemplate { template, templates: templates.len() });
        }
        Ok(Self {
            umem,
            templates: templates.iter().map(|packet| Template::new(packet)).collect(),
            order,
            next: 0,
            lines: copied.div_ceil(LINE),
            free: VecDeque::with_capacity(2 * frames + VECTOR),
            frames,
            left: u64::MAX,
            received: 0,
            sent: 0,
            sent_bytes: 0,
        })
    }

    /// Nothing more is received after `count` packets from now.
    pub fn stop_after(&mut self, count: u64) {
        self.left = count;
    }

    /// Bytes that are written for each packet, at most.
    #[must_use]
    pub fn copied(&self) -> usize {
        self.lines * LINE
    }

    /// Packets received since the start.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Packets and bytes sent since the start.
    #[must_use]
    pub fn sent(&self) -> (u64, u64) {
        (self.sent, self.sent_bytes)
    }
}

impl Port for ReplayPort {
    #[inline]
    fn receive(&mut self, out: &mut ArrayVec<Frame, VECTOR>) -> usize {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let count = out.remaining_capacity().min(self.free.len()).min(left);
        let mut next = self.next;
        for mut frame in self.free.drain(..count) {
            let template = &self.templates[self.order[next] as usize];
            next += 1;
            if next == self.order.len() {
                next = 0;
            }
            template.write(&mut frame, self.lines);
            out.push(frame);
        }
        self.next = next;
        self.left -= count as u64;
        self.received += count as u64;
        count
    }

    #[inline]
    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        if frame.umem() != self.umem || frame.is_empty() {
            return Err(frame);
        }
        self.sent += 1;
        self.sent_bytes += frame.len() as u64;
        self.free.push_back(frame);
        Ok(())
    }

    fn flush(&mut self) {}

    #[inline]
    fn recycle(&mut self, pool: &mut FramePool) {
        let (have, want) = (self.free.len(), self.frames);
        if have > want {
            pool.give_many(self.free.drain(..have - want));
        } else {
            pool.take_many(want - have, |frame| self.free.push_back(frame));
        }
    }

    fn umem(&self) -> UmemId {
        self.umem
    }

    fn held(&self) -> usize {
        self.free.len()
    }

    fn kernel_drops(&self) -> KernelDrops {
        KernelDrops::default()
    }

    fn close(mut self, pool: &mut FramePool) {
        for frame in self.free.drain(..) {
            pool.give(frame);
        }
    }

    fn poll_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UMEM: UmemId = UmemId(3);

    fn receive(port: &mut impl Port) -> ArrayVec<Frame, VECTOR> {
        let mut out = ArrayVec::new();
        let count = port.receive(&mut out);
        assert_eq!(count, out.len());
        out
    }

    #[test]
    fn packets_pass_through_the_same_chunk_and_all_frames_come_back() {
        let depot = MemoryUmem::new(UMEM, 64);
        let mut pool = FramePool::new(depot.clone(), 0);
        let (mut port, wire) = MemoryPort::new(UMEM, 16);
        assert!(!wire.inject(b"early"), "nothing is on the fill ring yet");
        port.recycle(&mut pool);
        assert!(wire.inject(b"first") && wire.inject(b"second"));
        let frames = receive(&mut port);
        assert_eq!((frames.len(), port.held()), (2, 14));
        for mut frame in frames {
            assert_eq!(frame.start(), HEADROOM);
            frame.prepend(5).unwrap()[..5].copy_from_slice(b"head ");
            assert!(port.send(frame).is_ok());
        }
        assert_eq!(wire.collect(), None, "not flushed yet");
        port.flush();
        assert_eq!(wire.collect_all(), [b"head first".to_vec(), b"head second".to_vec()]);
        assert_eq!(port.held(), 16);
        port.recycle(&mut pool);
        assert_eq!(port.held(), 16, "two came back and two were put on the fill ring");
        let expected = KernelDrops { rx_dropped: 1, rx_fill_ring_empty: 1, ..Default::default() };
        assert_eq!(port.kernel_drops(), expected);
        port.close(&mut pool);
        pool.drain();
        assert_eq!(depot.free(), 64);
    }

    #[test]
    fn full_rings_refuse_and_lose_nothing() {
        let depot = MemoryUmem::new(UMEM, 32);
        let mut pool = FramePool::new(depot.clone(), 0);
        let (mut port, wire) = MemoryPort::new(UMEM, 4);
        port.recycle(&mut pool);
        assert!(!wire.inject(&[0; CHUNK]), "too long");
        assert!((0..4).all(|_| wire.inject(b"x")) && !wire.inject(b"x"));
        assert_eq!((port.kernel_drops().rx_dropped, port.kernel_drops().rx_ring_full), (1, 1));
        for frame in receive(&mut port) {
            assert!(port.send(frame).is_ok());
        }
        port.flush();
        let mut fifth = pool.take().unwrap();
        fifth.fill(b"y").unwrap();
        let fifth = port.send(fifth).unwrap_err();
        assert_eq!(wire.collect_all().len(), 4);
        let fifth = port.send(fifth).unwrap_err();
        port.recycle(&mut pool);
        assert!(port.send(fifth).is_ok());
        let (_, stranger) = (pool.take(), MemoryUmem::new(UmemId(9), 1));
        let stranger = FramePool::new(stranger, 0).take().unwrap();
        assert!(port.send(stranger).is_err(), "another UMEM's frame");
        port.close(&mut pool);
        pool.drain();
        assert_eq!(depot.free(), 31, "all but the one that was thrown away");
    }

    #[test]
    fn a_wire_can_be_on_another_thread() {
        let depot = MemoryUmem::new(UMEM, 256);
        let mut pool = FramePool::new(depot.clone(), 0);
        let (mut port, wire) = MemoryPort::new(UMEM, 32);
        port.recycle(&mut pool);
        let thread = std::thread::spawn(move || {
            let (mut injected, mut collected) = (0_u32, 0_u32);
            while collected < 5000 {
                injected += u32::from(injected < 5000 && wire.inject(&injected.to_be_bytes()));
                while let Some(packet) = wire.collect() {
                    assert_eq!(packet, collected.to_be_bytes());
                    collected += 1;
                }
                std::thread::yield_now();
            }
        });
        while !thread.is_finished() {
            for frame in receive(&mut port) {
                let mut unsent = port.send(frame).err();
                while let Some(frame) = unsent.take() {
                    port.flush();
                    port.recycle(&mut pool);
                    unsent = port.send(frame).err();
                }
            }
            port.flush();
            port.recycle(&mut pool);
        }
        thread.join().unwrap();
        port.close(&mut pool);
        pool.drain();
        assert_eq!(depot.free(), 256);
    }

    #[test]
    fn replay_follows_the_order_and_recycles_what_is_sent() {
        let depot = MemoryUmem::new(UMEM, 64);
        let mut pool = FramePool::new(depot.clone(), 0);
        let templates = vec![b"zero".to_vec(), b"first".to_vec()];
        let mut port = ReplayPort::new(UMEM, templates, vec![1, 0, 1], 8, 1500).unwrap();
        assert!(receive(&mut port).is_empty());
        port.recycle(&mut pool);
        port.stop_after(10);
        let mut seen = Vec::new();
        loop {
            let frames = receive(&mut port);
            if frames.is_empty() {
                break;
            }
            for mut frame in frames {
                seen.push(frame.bytes().to_vec());
                frame.prepend(50).unwrap();
                assert!(port.send(frame).is_ok());
            }
            port.flush();
            port.recycle(&mut pool);
        }
        assert_eq!(seen.len(), 10);
        assert_eq!(seen[..4], [&b"first"[..], b"zero", b"first", b"first"]);
        assert_eq!((port.received(), port.sent().0, port.held()), (10, 10, 8));
        assert_eq!(port.sent().1, 10 * 50 + seen.iter().map(|s| s.len() as u64).sum::<u64>());
        port.close(&mut pool);
        pool.drain();
        assert_eq!(depot.free(), 64);
        let bad = ReplayPort::new(UMEM, vec![vec![0; CHUNK]], vec![0], 8, 64).unwrap_err();
        assert_eq!(bad, ReplayError::TooLong { template: 0, len: CHUNK });
        assert!(ReplayPort::new(UMEM, vec![vec![0]], vec![1], 8, 64).is_err());
    }
}
