//! NICs that are only memory, for tests and benchmarks.
//!
//! - [`MemoryPort`] has the rings of an AF_XDP socket and behaves as one does, frame for frame;
//!   at the other end of its wire a test injects packets and collects what was sent.
//! - [`ReplayPort`] makes packets from templates as fast as they are asked for and swallows what
//!   is sent: what is left of a worker's time is the pipeline's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;

mod replay;

pub use replay::{ReplayError, ReplayPort};

use super::{KernelDrops, Port, VECTOR};
use crate::packet::frame::{CHUNK, Frame};
use crate::packet::pool::{Depot, FramePool, UmemId};
use crate::packet::segments::Segments;

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
    /// Packets that were sent in segments, each with the number of frames on the TX ring before it.
    whole: Mutex<VecDeque<(u64, Whole)>>,
    takes_segments: AtomicBool,
    /// Frames that were put on the TX ring, and that were collected from it.
    flushed: AtomicU64,
    collected: AtomicU64,
}

/// A packet that was sent in segments, as a kernel is given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// What the segments have in common.
    pub segments: Segments,
    /// The payloads of all of them.
    pub payload: Vec<u8>,
}

/// What a port has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// A frame.
    Frame(Vec<u8>),
    /// Segments of one packet.
    Whole(Whole),
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
            whole: Mutex::default(),
            takes_segments: AtomicBool::new(false),
            flushed: AtomicU64::new(0),
            collected: AtomicU64::new(0),
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

    fn takes_segments(&self) -> bool {
        self.rings.takes_segments.load(Ordering::Relaxed)
    }

    fn send_segments(&mut self, segments: &Segments, frames: &[Frame]) -> bool {
        self.flush();
        if !self.takes_segments() || !self.staged.is_empty() {
            return false;
        }
        let payloads =
            frames.iter().filter_map(|frame| frame.bytes().get(segments.headers.len()..));
        let whole =
            Whole { segments: segments.clone(), payload: payloads.flatten().copied().collect() };
        let before = self.rings.flushed.load(Ordering::Relaxed);
        self.rings.whole.lock().unwrap_or_else(PoisonError::into_inner).push_back((before, whole));
        true
    }

    fn flush(&mut self) {
        while let Some(frame) = self.staged.pop_front() {
            if let Err(frame) = self.rings.tx.push(frame) {
                self.staged.push_front(frame);
                return;
            }
            self.rings.flushed.fetch_add(1, Ordering::Relaxed);
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
        self.rings.collected.fetch_add(1, Ordering::Relaxed);
        // There is room: a port sends only while fewer than a ring are not recycled.
        let _ = self.rings.completion.push(frame);
        Some(packet)
    }

    /// From now on the port takes packets in segments, as a device in copy mode does. Collect them by
    /// [`MemoryWire::collect_sent`].
    pub fn take_segments(&self) {
        self.rings.takes_segments.store(true, Ordering::Relaxed);
    }

    /// All that the port has sent and flushed, in order.
    #[must_use]
    pub fn collect_sent(&self) -> Vec<Sent> {
        let next = || {
            let collected = self.rings.collected.load(Ordering::Relaxed);
            let mut whole = self.rings.whole.lock().unwrap_or_else(PoisonError::into_inner);
            match whole.front() {
                Some((before, _)) if *before == collected => {
                    whole.pop_front().map(|(_, whole)| Sent::Whole(whole))
                }
                _ => self.collect().map(Sent::Frame),
            }
        };
        std::iter::from_fn(next).collect()
    }

    /// All packets that the port has sent and flushed.
    #[must_use]
    pub fn collect_all(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::frame::HEADROOM;

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
}
