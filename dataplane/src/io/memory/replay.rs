//! A NIC for benchmarks: packets out of templates, in a given order.

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use crate::io::{KernelDrops, Port, VECTOR};
use crate::packet::frame::{CHUNK, Frame, HEADROOM};
use crate::packet::pool::{FramePool, UmemId};

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
    use crate::io::memory::MemoryUmem;

    const UMEM: UmemId = UmemId(3);

    fn receive<P: Port>(port: &mut P) -> ArrayVec<Frame, VECTOR> {
        let mut frames = ArrayVec::new();
        port.receive(&mut frames);
        frames
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
