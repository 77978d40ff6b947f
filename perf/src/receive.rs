//! What has arrived: counted, compared with what was sent, and how long it took.
//!
//! The analysis is of bytes and times only; [`crate::station`] brings them from an interface.

use hdrhistogram::Histogram;
use overlane_dataplane::io::KernelDrops;
use overlane_dataplane::wire::{protocol, udp};
use serde::{Deserialize, Serialize};

use crate::error::PerfError;
use crate::layers::{Layer, layers};
use crate::text::listing;
use crate::traffic::Stamp;
use crate::writer::payload_byte;

/// Sequence numbers that are remembered; a power of two.
const WINDOW: u64 = 1 << 20;
/// Longest latency that is told from longer ones, nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// Which sequence numbers have arrived.
#[derive(Debug, Clone)]
struct Sequences {
    /// A bit for each of the last [`WINDOW`] numbers.
    seen: Vec<u64>,
    first: u64,
    /// One more than the largest so far; 0: none came yet.
    next: u64,
    unique: u64,
    duplicates: u64,
    reordered: u64,
    stale: u64,
}

impl Sequences {
    fn new() -> Self {
        let seen = vec![0; (WINDOW / 64) as usize];
        Self { seen, first: u64::MAX, next: 0, unique: 0, duplicates: 0, reordered: 0, stale: 0 }
    }

    #[inline]
    fn bit(sequence: u64) -> (usize, u64) {
        let place = sequence % WINDOW;
        ((place / 64) as usize, 1 << (place % 64))
    }

    #[inline]
    fn add(&mut self, sequence: u64) {
        let (word, bit) = Self::bit(sequence);
        if sequence >= self.next {
            self.forget(self.next.max(sequence.saturating_sub(WINDOW - 1)), sequence);
            self.next = sequence + 1;
        } else if self.next - sequence > WINDOW {
            self.stale += 1;
            return;
        } else if self.seen[word] & bit != 0 {
            self.duplicates += 1;
            return;
        } else {
            // RFC 4737 section 3.3: it is smaller than what was expected next.
            self.reordered += 1;
        }
        self.seen[word] |= bit;
        self.unique += 1;
        self.first = self.first.min(sequence);
    }

    /// The numbers from `from` to `to` have not come: their places belonged to older ones.
    #[inline]
    fn forget(&mut self, from: u64, to: u64) {
        for sequence in from..=to {
            let (word, bit) = Self::bit(sequence);
            self.seen[word] &= !bit;
        }
    }
}

/// Looks at frames as they arrive.
#[derive(Debug, Clone)]
pub struct Analysis {
    sequences: Sequences,
    latency: Histogram<u64>,
    verify: bool,
    frames: u64,
    bytes: u64,
    stamped: u64,
    other: u64,
    corrupt: u64,
    first_ns: u64,
    last_ns: u64,
}

impl Analysis {
    /// Of nothing yet. With `verify`, checksums and payloads of all frames are checked, also in
    /// tunnels on their usual ports (6081, 4789, 8472).
    ///
    /// # Errors
    /// [`PerfError::Refused`]: there is no memory for the histogram.
    pub fn new(verify: bool) -> Result<Self, PerfError> {
        let latency = Histogram::new_with_bounds(1, LONGEST_NS, 3);
        Ok(Self {
            sequences: Sequences::new(),
            latency: latency.map_err(|error| PerfError::Refused(error.to_string()))?,
            verify,
            frames: 0,
            bytes: 0,
            stamped: 0,
            other: 0,
            corrupt: 0,
            first_ns: 0,
            last_ns: 0,
        })
    }

    /// A frame arrived at `now`, nanoseconds of `CLOCK_MONOTONIC`.
    #[inline]
    pub fn see(&mut self, frame: &[u8], now: u64) {
        if self.frames == 0 {
            self.first_ns = now;
        }
        self.last_ns = now;
        self.frames += 1;
        self.bytes += frame.len() as u64;
        let stamp = Stamp::read(frame);
        if self.verify && is_corrupt(frame, stamp.is_some()) {
            self.corrupt += 1;
            return;
        }
        let Some(stamp) = stamp else {
            self.other += 1;
            return;
        };
        self.stamped += 1;
        self.sequences.add(stamp.sequence);
        let took = now.saturating_sub(stamp.nanoseconds);
        self.latency.saturating_record(took.max(1));
    }

    /// Frames so far.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Stamped frames that came once or more, each counted once.
    #[must_use]
    pub fn unique(&self) -> u64 {
        self.sequences.unique
    }

    /// From each stamped frame's time to its arrival, nanoseconds.
    #[must_use]
    pub fn latency(&self) -> &Histogram<u64> {
        &self.latency
    }

    /// The result, with what the kernel dropped in front of the receiver.
    #[must_use]
    pub fn report(&self, kernel: KernelDrops) -> Received {
        let sequences = &self.sequences;
        let span = if sequences.unique == 0 { 0 } else { sequences.next - sequences.first };
        Received {
            frames: self.frames,
            bytes: self.bytes,
            stamped: self.stamped,
            other: self.other,
            corrupt: self.corrupt,
            lost: span - sequences.unique,
            duplicates: sequences.duplicates,
            reordered: sequences.reordered,
            stale: sequences.stale,
            seconds: (self.last_ns - self.first_ns) as f64 / 1e9,
            kernel_dropped: kernel.rx_dropped + kernel.rx_ring_full,
            latency: Latency::of(&self.latency),
        }
    }
}

/// Is something wrong with a checksum, or with the payload of a stamped packet?
fn is_corrupt(frame: &[u8], is_stamped: bool) -> bool {
    let layers = layers(frame);
    if layers.iter().any(|layer| !layer.is_sound(frame)) {
        return true;
    }
    if !is_stamped {
        return false;
    }
    // Stamps are at the end of UDP payloads only: what else has one was something else once.
    let is_ours = |layer: &&Layer| layer.protocol == protocol::UDP && layer.end == frame.len();
    let Some(innermost) = layers.last().filter(is_ours) else { return true };
    let payload = frame.get(innermost.transport + udp::HEADER_LEN..frame.len() - Stamp::LEN);
    payload.is_none_or(|payload| {
        payload.iter().enumerate().any(|(at, byte)| *byte != payload_byte(at))
    })
}

/// How long packets took, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Latency {
    /// The shortest.
    pub min: u64,
    /// Half took no longer.
    pub p50: u64,
    /// 9 of 10 took no longer.
    pub p90: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// 999 of 1,000 took no longer.
    pub p99_9: u64,
    /// 9,999 of 10,000 took no longer.
    pub p99_99: u64,
    /// The longest.
    pub max: u64,
}

impl Latency {
    /// The percentiles of a histogram; zeros when it is empty.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            min: histogram.min(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram.max(),
        }
    }
}

/// What has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Received {
    /// All frames.
    pub frames: u64,
    /// Their bytes, without check sequences.
    pub bytes: u64,
    /// Sound frames with a stamp, duplicates included.
    pub stamped: u64,
    /// Sound frames without one.
    pub other: u64,
    /// Frames with a wrong checksum or a changed payload. Their stamps are not believed, so that
    /// each of them is also lost.
    pub corrupt: u64,
    /// Sequence numbers that are missing between the smallest and the largest that came. What was
    /// lost before and after those is known only to who knows what was sent.
    pub lost: u64,
    /// Stamped frames whose sequence number had come before (RFC 5560).
    pub duplicates: u64,
    /// Stamped frames that came after one with a larger number (RFC 4737), over all flows.
    pub reordered: u64,
    /// Stamped frames more than 2^20 numbers late: reordered or duplicates, and lost if the former.
    pub stale: u64,
    /// From the first frame to the last, seconds.
    pub seconds: f64,
    /// Frames that the kernel dropped in front of the receiver: it was too slow.
    pub kernel_dropped: u64,
    /// From each stamped frame's time to its arrival; that time is when it should have been sent.
    pub latency: Latency,
}

impl Received {
    /// Frames a second.
    #[must_use]
    pub fn pps(&self) -> f64 {
        if self.seconds > 0.0 { self.frames as f64 / self.seconds } else { 0.0 }
    }

    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing([
            "RECEIVED",
            "STAMPED",
            "LOST",
            "REORDERED",
            "DUPLICATES",
            "CORRUPT",
            "OTHER",
            "SECONDS",
            "KPPS",
        ]);
        table.add_row([
            self.frames.to_string(),
            self.stamped.to_string(),
            self.lost.to_string(),
            self.reordered.to_string(),
            self.duplicates.to_string(),
            self.corrupt.to_string(),
            self.other.to_string(),
            format!("{:.3}", self.seconds),
            format!("{:.1}", self.pps() / 1e3),
        ]);
        let mut text = table.to_string();
        let mut line = |line: String| text.push_str(&format!("\n{line}"));
        let Latency { min, p50, p90, p99, p99_9, p99_99, max } = self.latency;
        if max > 0 {
            let [min, p50, p90, p99, p99_9, p99_99, max] = [min, p50, p90, p99, p99_9, p99_99, max]
                .map(|ns| format!("{:.1}", ns as f64 / 1e3));
            line(format!(
                "latency, us: min {min}, p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p99_9}, p99.99 \
                 {p99_99}, max {max}"
            ));
        }
        if self.kernel_dropped > 0 {
            line(format!("the receiver was too slow: the kernel dropped {}", self.kernel_dropped));
        }
        if self.stale > 0 {
            line(format!("stamps too old to tell whether duplicate or reordered: {}", self.stale));
        }
        text
    }
}

#[cfg(test)]
#[path = "receive_tests.rs"]
mod tests;
