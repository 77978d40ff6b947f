//! What threads of generators and receivers have in common.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::error::PerfError;

/// Keeps the calling thread on one CPU, if one is given.
///
/// # Errors
/// [`PerfError::Pin`]
pub fn pin(cpu: Option<usize>) -> Result<(), PerfError> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut only = CpuSet::new();
    let pinned = only.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
    pinned.map_err(|_| PerfError::Pin(cpu))
}

/// Now, nanoseconds of `CLOCK_MONOTONIC`: the clock of stamps, in this process and in BPF programs.
///
/// # Errors
/// [`PerfError::Clock`]
#[inline]
pub fn monotonic_ns() -> Result<u64, PerfError> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let time = time.map_err(PerfError::Clock)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Sleeps, unless it is to stop.
///
/// # Errors
/// [`PerfError::Stopped`]
pub fn sleep(duration: Duration, stop: &AtomicBool) -> Result<(), PerfError> {
    const STEP: Duration = Duration::from_millis(10);
    let end = Instant::now() + duration;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(PerfError::Stopped);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(STEP));
    }
}
