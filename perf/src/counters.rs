//! What the processor itself counts of a thread: cycles and instructions, by the kernel's perf
//! events. Many virtual machines have no such counters; then [`CounterError`] says why, and what to
//! do about it.

use std::io;

use nix::errno::Errno;
#[cfg(test)]
use perf_event::events::Software;
use perf_event::events::{Event, Hardware};
use perf_event::{Builder, Counter};
use serde::{Deserialize, Serialize};

use crate::measure::Spread;

/// Nothing can be counted.
#[derive(Debug, thiserror::Error)]
pub enum CounterError {
    /// The processor, or its hypervisor, offers the kernel no counter.
    #[error(
        "this processor offers the kernel none ({0}), as in most virtual machines; measure on bare \
         metal, or give the guest a virtual PMU (QEMU with KVM: -cpu host,pmu=on)"
    )]
    Absent(#[source] io::Error),
    /// This user may not count.
    #[error(
        "the kernel refuses it to this user ({0}); run as root, or set \
         kernel.perf_event_paranoid to 1 at most; in a container, give it CAP_PERFMON"
    )]
    Refused(#[source] io::Error),
    /// The kernel was built without perf events.
    #[error("this kernel has no perf events ({0}); use one with CONFIG_PERF_EVENTS")]
    NoPerfEvents(#[source] io::Error),
    /// The counter is there, but was never given to this thread.
    #[error(
        "it never ran, as others hold all that there are; end other programs that count \
         (perf, profilers), or set kernel.nmi_watchdog to 0"
    )]
    Taken,
    /// Anything else.
    #[error("the kernel says: {0}")]
    Other(#[from] io::Error),
}

impl CounterError {
    /// What an answer of `perf_event_open` means.
    fn opening(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Self::Absent(error),
            Some(Errno::EACCES | Errno::EPERM) => Self::Refused(error),
            Some(Errno::ENOSYS) => Self::NoPerfEvents(error),
            _ => Self::Other(error),
        }
    }
}

/// Counters of one thread, wherever it runs: of the program and of the kernel on its behalf.
#[derive(Debug)]
pub struct Counters {
    cycles: Counter,
    /// Always on the processor together with `cycles`.
    instructions: Option<Counter>,
}

/// What the counters say at one time.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    cycles: Count,
    instructions: Option<Count>,
}

/// A counter, and for how long it was wanted and did run. It runs in turn with others when there are
/// more than the processor has.
#[derive(Debug, Clone, Copy)]
struct Count {
    count: u64,
    wanted_ns: u64,
    ran_ns: u64,
}

/// What was counted between two readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counted {
    /// Cycles.
    pub cycles: f64,
    /// Instructions, where they are counted.
    pub instructions: Option<f64>,
}

impl Counters {
    /// Cycles and instructions of the calling thread, from now on.
    ///
    /// # Errors
    /// [`CounterError`] when cycles cannot be counted.
    pub fn of_this_thread() -> Result<Self, CounterError> {
        Self::open(Hardware::CPU_CYCLES, Hardware::INSTRUCTIONS)
    }

    /// Of the thread's time instead of cycles, nanoseconds, and of its page faults instead of
    /// instructions: what every kernel has. None where this user may not count.
    #[cfg(test)]
    pub(crate) fn of_software() -> Option<Self> {
        match Self::open(Software::TASK_CLOCK, Software::PAGE_FAULTS) {
            Ok(counters) => Some(counters),
            Err(error @ (CounterError::Refused(_) | CounterError::NoPerfEvents(_))) => {
                eprintln!("not tested: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn open(cycles: impl Event, instructions: impl Event) -> Result<Self, CounterError> {
        let mut cycles = event(cycles).build().map_err(CounterError::opening)?;
        let mut instructions = event(instructions).build_with_group(&mut cycles).ok();
        if let Some(counter) = &mut instructions {
            counter.enable()?;
        }
        cycles.enable()?;
        Ok(Self { cycles, instructions })
    }

    /// Reads them.
    ///
    /// # Errors
    /// [`CounterError::Other`]
    pub fn read(&mut self) -> Result<Reading, CounterError> {
        let cycles = Count::read(&mut self.cycles)?;
        let instructions = self.instructions.as_mut().map(Count::read).transpose()?;
        Ok(Reading { cycles, instructions })
    }
}

/// An event of the calling thread on any processor, in the program and in the kernel.
fn event(event: impl Event) -> Builder<'static> {
    let mut builder = Builder::new(event);
    builder.observe_self().any_cpu().include_kernel();
    builder
}

impl Count {
    fn read(counter: &mut Counter) -> io::Result<Self> {
        let read = counter.read_count_and_time()?;
        Ok(Self { count: read.count, wanted_ns: read.time_enabled, ran_ns: read.time_running })
    }

    /// Of the time since `before`, estimated where the counter ran for a part of it only.
    fn since(self, before: Self) -> Option<f64> {
        let ran = self.ran_ns.checked_sub(before.ran_ns).filter(|ran| *ran > 0)?;
        let wanted = self.wanted_ns.checked_sub(before.wanted_ns)?;
        let count = self.count.checked_sub(before.count)?;
        Some(count as f64 * wanted as f64 / ran as f64)
    }
}

impl Reading {
    /// What was counted since `before`.
    ///
    /// # Errors
    /// [`CounterError::Taken`] when no counter ran.
    pub fn since(&self, before: &Self) -> Result<Counted, CounterError> {
        let cycles = self.cycles.since(before.cycles).ok_or(CounterError::Taken)?;
        let instructions =
            self.instructions.zip(before.instructions).and_then(|(now, before)| now.since(before));
        Ok(Counted { cycles, instructions })
    }
}

/// What packets cost, as the processor counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cycles {
    /// Cycles a packet, from port to port, the ports included.
    pub total: Spread,
    /// Of that, the ports of memory alone.
    pub ports: Spread,
    /// Instructions a cycle, ports included, where instructions are counted.
    pub instructions_per_cycle: Option<f64>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::measure::thread_time;

    fn spin(time: Duration) {
        let start = thread_time().unwrap();
        while thread_time().unwrap() - start < time {}
    }

    #[test]
    fn the_threads_own_time_is_counted_and_no_other_threads() {
        let Some(mut counters) = Counters::of_software() else { return };
        let (before, clock) = (counters.read().unwrap(), thread_time().unwrap());
        std::thread::spawn(|| spin(Duration::from_millis(60))).join().unwrap();
        spin(Duration::from_millis(20));
        let (after, clock) = (counters.read().unwrap(), thread_time().unwrap() - clock);
        let counted = after.since(&before).unwrap().cycles;
        let expected = clock.as_nanos() as f64;
        assert!((counted / expected - 1.0).abs() < 0.1, "{counted} and {expected} ns");
    }

    #[test]
    fn the_second_counter_counts_between_two_readings() {
        let Some(mut counters) = Counters::of_software() else { return };
        let touch = |pages: usize| std::hint::black_box(vec![1_u8; pages << 12]);
        drop(touch(256));
        let before = counters.read().unwrap();
        let kept = touch(160);
        let after = counters.read().unwrap();
        drop(kept);
        let faults = after.since(&before).unwrap().instructions.unwrap();
        assert!((1.0..1000.0).contains(&faults), "{faults} page faults");
        assert_eq!(after.since(&after).unwrap_err().to_string(), CounterError::Taken.to_string());
    }

    #[test]
    fn what_the_processor_lacks_is_named_with_what_to_do() {
        if Counters::of_software().is_none() {
            return;
        }
        let error = Counters::open(Software(1 << 20), Software::PAGE_FAULTS).unwrap_err();
        assert!(matches!(error, CounterError::Absent(_)), "{error:?}");
        assert!(error.to_string().contains("virtual PMU"), "{error}");
        // Without the second counter the first one serves.
        let mut only = Counters::open(Software::TASK_CLOCK, Software(1 << 20)).unwrap();
        assert!(only.read().unwrap().instructions.is_none());
    }

    #[test]
    fn each_answer_of_the_kernel_has_its_advice() {
        for (errno, advice) in [
            (Errno::ENOENT, "virtual PMU"),
            (Errno::EOPNOTSUPP, "virtual PMU"),
            (Errno::EACCES, "kernel.perf_event_paranoid"),
            (Errno::EPERM, "CAP_PERFMON"),
            (Errno::ENOSYS, "CONFIG_PERF_EVENTS"),
            (Errno::EMFILE, "Too many open files"),
        ] {
            let error = CounterError::opening(errno.into()).to_string();
            assert!(error.contains(advice), "{errno}: {error}");
        }
    }

    #[test]
    fn a_counter_that_ran_for_a_part_of_the_time_is_scaled() {
        let count = |count, wanted_ns, ran_ns| Count { count, wanted_ns, ran_ns };
        let before = Reading { cycles: count(100, 10, 10), instructions: Some(count(0, 10, 10)) };
        let after = Reading { cycles: count(600, 30, 20), instructions: Some(count(250, 30, 20)) };
        let counted = Counted { cycles: 1000.0, instructions: Some(500.0) };
        assert_eq!(after.since(&before).unwrap(), counted);
        let still = Reading { cycles: count(100, 30, 10), instructions: None };
        assert!(matches!(still.since(&before), Err(CounterError::Taken)));
    }

    /// Where the processor counts; else says why it does not.
    #[test]
    fn a_spinning_thread_takes_cycles_where_they_are_counted() {
        let mut counters = match Counters::of_this_thread() {
            Ok(counters) => counters,
            Err(error) => return eprintln!("no cycle counter: {error}"),
        };
        let before = counters.read().unwrap();
        spin(Duration::from_millis(20));
        let counted = counters.read().unwrap().since(&before).unwrap();
        // From 0.1 to 10 GHz.
        assert!((2e6..2e8).contains(&counted.cycles), "{counted:?}");
    }
}
