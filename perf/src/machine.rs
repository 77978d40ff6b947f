//! What the machine's memory costs now: figures from two machines, or two hours, can only be
//! compared next to these.

use serde::{Deserialize, Serialize};
use std::fmt;

use crate::error::PerfError;
use crate::measure::thread_time;

/// Nanoseconds of one load that depends on the one before, by the size of what is walked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Latencies {
    /// 16 KiB: the first-level cache.
    pub l1_ns: f64,
    /// 256 KiB: the second-level cache.
    pub l2_ns: f64,
    /// 4 MiB: the last-level cache.
    pub l3_ns: f64,
    /// 256 MiB: memory.
    pub dram_ns: f64,
}

/// One cache line that names the next one.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line {
    next: u32,
}

impl Latencies {
    /// Measures; takes about a second.
    ///
    /// # Errors
    /// [`PerfError::Clock`]
    pub fn measure() -> Result<Self, PerfError> {
        Ok(Self {
            l1_ns: walk(16 << 10)?,
            l2_ns: walk(256 << 10)?,
            l3_ns: walk(4 << 20)?,
            dram_ns: walk(256 << 20)?,
        })
    }
}

/// Nanoseconds of a step through `bytes` of memory in random order, the best of three.
fn walk(bytes: usize) -> Result<f64, PerfError> {
    let count = bytes / size_of::<Line>();
    let mut lines: Vec<Line> = (0..count as u32).map(|next| Line { next }).collect();
    // One cycle through all lines (Sattolo's shuffle).
    let mut random = fastrand::Rng::with_seed(7);
    for last in (1..count).rev() {
        let other = random.usize(..last);
        (lines[last].next, lines[other].next) = (lines[other].next, lines[last].next);
    }
    const STEPS: usize = 1 << 20;
    let mut at = 0;
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = thread_time()?;
        for _ in 0..STEPS {
            at = lines[at as usize].next;
        }
        best = best.min((thread_time()? - start).as_nanos() as f64 / STEPS as f64);
    }
    std::hint::black_box(at);
    Ok(best)
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "memory now: 16 KiB {:.1} ns, 256 KiB {:.1} ns, 4 MiB {:.1} ns, 256 MiB {:.0} ns a dependent load",
            self.l1_ns, self.l2_ns, self.l3_ns, self.dram_ns
        )
    }
}
