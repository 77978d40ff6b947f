//! The AF_XDP generator: frames by a schedule or as fast as the interface takes them.
//!
//! Paced, each packet has a time at which it should leave, and its stamp says that time: when the
//! generator or what is behind it was held up, the packets that waited count the wait as theirs.
//! That is the correction for coordinated omission.

use overlane_dataplane::io::Port;
use overlane_dataplane::io::af_xdp::AfXdpPort;
use overlane_dataplane::packet::frame::Frame;
use overlane_dataplane::packet::pool::FramePool;

use crate::error::PerfError;
use crate::threads::monotonic_ns;
use crate::traffic::Traffic;
use crate::writer::FrameWriter;

/// Frames that are sent at once at most: one system call of older kernels.
const BURST: usize = 32;

/// Frames of [`Traffic`] on their way to a port.
#[derive(Debug)]
pub struct Generator {
    writer: FrameWriter,
    /// Nanoseconds from one frame to the next; none: flat out.
    period: Option<f64>,
    limit: u64,
    /// When the first frame is due.
    start: u64,
    /// A frame that the port did not take yet.
    waiting: Option<Frame>,
    /// Frames given to the port.
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) late_ns: u64,
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
}

impl Generator {
    /// From the first frame, which is due now, to frame number `limit`.
    ///
    /// # Errors
    /// [`PerfError::Traffic`], [`PerfError::Clock`]
    pub fn new(traffic: &Traffic, limit: Option<u64>) -> Result<Self, PerfError> {
        Ok(Self {
            writer: FrameWriter::new(traffic)?,
            period: traffic.rate.map(|rate| 1e9 / rate),
            limit: limit.unwrap_or(u64::MAX),
            start: monotonic_ns()?,
            waiting: None,
            frames: 0,
            bytes: 0,
            late_ns: 0,
            first_ns: 0,
            last_ns: 0,
        })
    }

    /// Has everything been given to the port?
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.frames >= self.limit
    }

    /// Stamped frames made.
    #[must_use]
    pub fn stamped(&self) -> u64 {
        self.writer.sequence()
    }

    /// When the next frame is due; none: at once.
    fn due(&self) -> Option<u64> {
        // Exact to a nanosecond for 100 days.
        self.period.map(|period| self.start + (self.frames as f64 * period) as u64)
    }

    /// Puts what is due on the port's TX ring; says how many frames that were.
    ///
    /// # Errors
    /// [`PerfError::Clock`]
    #[inline]
    pub(crate) fn send(
        &mut self,
        port: &mut AfXdpPort,
        pool: &mut FramePool,
    ) -> Result<usize, PerfError> {
        let mut sent = 0;
        while sent < BURST && !self.is_done() {
            let now = monotonic_ns()?;
            let due = self.due();
            if due.is_some_and(|due| due > now) {
                break;
            }
            let time = due.unwrap_or(now);
            let frame = match self.waiting.take() {
                Some(frame) => frame,
                None => match self.write(pool, time) {
                    Some(frame) => frame,
                    None => break,
                },
            };
            let length = frame.len() as u64;
            if let Err(frame) = port.send(frame) {
                self.waiting = Some(frame);
                break;
            }
            if self.frames == 0 {
                self.first_ns = now;
            }
            self.last_ns = now;
            self.late_ns = self.late_ns.max(now - time);
            self.frames += 1;
            self.bytes += length;
            sent += 1;
        }
        Ok(sent)
    }

    /// The next frame; none when no chunk is free.
    fn write(&mut self, pool: &mut FramePool, time: u64) -> Option<Frame> {
        let mut frame = pool.take()?;
        let length = self.writer.next_len();
        // The largest frame fits in any chunk.
        if frame.set_len(length).is_err() || self.writer.next(frame.bytes_mut(), time).is_none() {
            pool.give(frame);
            return None;
        }
        Some(frame)
    }

    /// Gives a frame back that was never sent.
    pub(crate) fn end(&mut self, pool: &mut FramePool) {
        if let Some(frame) = self.waiting.take() {
            pool.give(frame);
        }
    }
}
