//! The counting sink: a filter at the ingress of an interface (`bpf/sink.bpf.c`) that counts every
//! frame and drops it. The cheapest end for a stream that there is on a veth: an XDP program there
//! costs the sender a copy, the host's stack a route look-up.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use hdrhistogram::Histogram;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{
    ErrorKind, MapCore, MapFlags, MapHandle, TC_EGRESS, TC_INGRESS, TcHook, TcHookBuilder,
};
use nix::sched::{CloneFlags, setns};
use overlane_api::buckets;
use serde::{Deserialize, Serialize};

use crate::device;
use crate::error::PerfError;
use crate::skeleton::sink::SinkSkelBuilder;

/// The word at `at` of a map's value.
fn word(value: &[u8], at: usize) -> u64 {
    let bytes = value.get(at..).and_then(|bytes| bytes.first_chunk().copied());
    bytes.map_or(0, u64::from_ne_bytes)
}

/// Place of the filter among others.
const PLACE: u32 = 1;

/// What has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sunk {
    /// Frames.
    pub frames: u64,
    /// Their bytes, without check sequences.
    pub bytes: u64,
    /// Of a sink that takes times: frames that had a stamp.
    pub timed: u64,
    /// Of those, frames behind one with a larger sequence number (RFC 4737).
    pub reordered: u64,
}

impl Sunk {
    /// The growth since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            frames: self.frames - before.frames,
            bytes: self.bytes - before.bytes,
            timed: self.timed - before.timed,
            reordered: self.reordered - before.reordered,
        }
    }
}

/// A filter on an interface. Dropping it detaches it, in whichever namespace the thread is then.
#[derive(Debug)]
pub struct Sink {
    hook: Option<TcHook>,
    /// Was there no `clsact` before?
    own_qdisc: bool,
    counters: MapHandle,
    latencies: MapHandle,
    namespace: File,
}

impl Sink {
    /// Counts and drops everything that arrives at `interface` of the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// [`PerfError::Interface`], [`PerfError::Program`]
    pub fn attach(interface: &str) -> Result<Self, PerfError> {
        Self::attach_to(interface, false)
    }

    /// The same, and takes the time of each stamped frame, which costs some 50 ns.
    ///
    /// # Errors
    /// [`PerfError::Interface`], [`PerfError::Program`]
    pub fn attach_timing(interface: &str) -> Result<Self, PerfError> {
        Self::attach_to(interface, true)
    }

    fn attach_to(interface: &str, timing: bool) -> Result<Self, PerfError> {
        let index = device::find(interface)?.index;
        let failed = |source| PerfError::Program { action: "load the sink", source };
        let path = "/proc/thread-self/ns/net";
        let namespace =
            File::open(path).map_err(|source| PerfError::File { path: path.into(), source })?;
        let mut storage = MaybeUninit::uninit();
        let mut open = SinkSkelBuilder::default().open(&mut storage).map_err(failed)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.timing = u32::from(timing);
        }
        let skeleton = open.load().map_err(failed)?;
        let counters = MapHandle::try_from(&skeleton.maps.sunk).map_err(failed)?;
        let latencies = MapHandle::try_from(&skeleton.maps.latencies).map_err(failed)?;
        let program = skeleton.progs.ovl_sink.as_fd();
        let mut hook = TcHookBuilder::new(program)
            .ifindex(index as i32)
            .handle(PLACE)
            .priority(PLACE)
            .hook(TC_INGRESS);
        let failed = |source| PerfError::Program { action: "attach the sink", source };
        let (attached, own_qdisc) = quietly(|| match hook.attach() {
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                (hook.create().and_then(|_| hook.attach()), true)
            }
            attached => (attached, false),
        });
        let attached = match attached {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let text = format!(
                    "another filter is at its ingress; tc filter show dev {interface} ingress \
                     shows it, tc qdisc del dev {interface} clsact removes it"
                );
                return Err(device::interface_error(interface, text));
            }
            attached => attached.map_err(failed)?,
        };
        Ok(Self { hook: Some(attached), own_qdisc, counters, latencies, namespace })
    }

    /// What has arrived since the sink was attached.
    ///
    /// # Errors
    /// [`PerfError::Program`]: the kernel does not say.
    pub fn counters(&self) -> Result<Sunk, PerfError> {
        let read = self.counters.lookup_percpu(&[0; 4], MapFlags::ANY);
        let read = read.map_err(|source| PerfError::Program { action: "read the sink", source })?;
        let add = |sum: Sunk, value: Vec<u8>| Sunk {
            frames: sum.frames + word(&value, 0),
            bytes: sum.bytes + word(&value, 8),
            timed: sum.timed + word(&value, 16),
            reordered: sum.reordered + word(&value, 24),
        };
        Ok(read.unwrap_or_default().into_iter().fold(Sunk::default(), add))
    }

    /// From each stamped frame's time to its arrival, nanoseconds, since the sink was attached; to
    /// 1.6 %. Empty unless the sink takes times.
    ///
    /// # Errors
    /// [`PerfError::Program`]: the kernel does not say. [`PerfError::Refused`]: no memory.
    pub fn latencies(&self) -> Result<Histogram<u64>, PerfError> {
        let mut all = Histogram::new_with_bounds(1, buckets::LONGEST_NS, 3)
            .map_err(|error| PerfError::Refused(error.to_string()))?;
        for bucket in 0..buckets::COUNT as u32 {
            let read = self.latencies.lookup_percpu(&bucket.to_ne_bytes(), MapFlags::ANY);
            let read =
                read.map_err(|source| PerfError::Program { action: "read the sink", source })?;
            let count: u64 = read.unwrap_or_default().iter().map(|value| word(value, 0)).sum();
            if count > 0 {
                all.saturating_record_n(buckets::longest_of(bucket as usize).max(1), count);
            }
        }
        Ok(all)
    }

    fn detach(&mut self) -> Option<()> {
        let mut hook = self.hook.take()?;
        let (namespace, own_qdisc) = (&self.namespace, self.own_qdisc);
        // On a thread of its own, because this one may be in another namespace by now.
        std::thread::scope(|scope| {
            let detach = || {
                setns(namespace, CloneFlags::CLONE_NEWNET).ok()?;
                hook.detach().ok()?;
                if own_qdisc {
                    hook.attach_point(TC_INGRESS | TC_EGRESS).destroy().ok()?;
                }
                Some(())
            };
            scope.spawn(detach).join().ok()?
        })
    }
}

/// Without libbpf's own words: that there is no `clsact` yet is no news.
fn quietly<T>(action: impl FnOnce() -> T) -> T {
    let before = libbpf_rs::set_print(None);
    let result = action();
    libbpf_rs::set_print(before);
    result
}

impl Drop for Sink {
    fn drop(&mut self) {
        // What cannot be detached is on an interface that is gone.
        let _ = self.detach();
    }
}

#[cfg(test)]
mod tests {
    use libbpf_rs::ProgramInput;
    use nix::sched::unshare;

    use super::*;
    use crate::threads::monotonic_ns;
    use crate::traffic::Stamp;

    #[test]
    fn the_program_has_all_buckets() {
        let mut storage = MaybeUninit::uninit();
        let open = SinkSkelBuilder::default().open(&mut storage).unwrap();
        assert_eq!(open.maps.latencies.max_entries() as usize, buckets::COUNT);
    }

    /// The kernel runs the program on frames whose stamps are of known ages.
    #[test]
    #[ignore = "needs root"]
    fn the_program_takes_the_time_of_stamped_frames_only() {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let mut storage = MaybeUninit::uninit();
        let mut open = SinkSkelBuilder::default().open(&mut storage).unwrap();
        open.maps.rodata_data.as_deref_mut().unwrap().timing = 1;
        let skeleton = open.load().unwrap();
        let sink = Sink {
            hook: None,
            own_qdisc: false,
            counters: MapHandle::try_from(&skeleton.maps.sunk).unwrap(),
            latencies: MapHandle::try_from(&skeleton.maps.latencies).unwrap(),
            namespace: File::open("/proc/self/ns/net").unwrap(),
        };
        let run = |frame: &[u8]| {
            let input = ProgramInput { data_in: Some(frame), ..ProgramInput::default() };
            let output = skeleton.progs.ovl_sink.test_run(input).unwrap();
            assert_eq!(output.return_value, 2, "TC_ACT_SHOT");
        };
        // Nothing is older than the clock, which begins when the machine does.
        let oldest = monotonic_ns().unwrap();
        let ages = [1_000_000, 40_000_000, 1_000_000_000, 70_000_000_000_u64];
        let ages = ages.map(|age| age.min(oldest));
        for (number, age) in ages.into_iter().enumerate() {
            let mut frame = vec![0; 60];
            let nanoseconds = monotonic_ns().unwrap().saturating_sub(age);
            let stamp = Stamp { sequence: 10 - number as u64, nanoseconds };
            frame[60 - Stamp::LEN..].copy_from_slice(&stamp.bytes());
            run(&frame);
        }
        run(&[0; 60]);
        let sunk = sink.counters().unwrap();
        let expected = Sunk { frames: 5, bytes: 300, timed: 4, reordered: 3 };
        assert_eq!(sunk, expected);
        let latencies = sink.latencies().unwrap();
        assert_eq!(latencies.len(), 4);
        for (number, age) in ages.into_iter().enumerate() {
            let found = latencies.value_at_quantile((number as f64 + 0.9) / 4.0) as f64;
            let age = age.min(buckets::LONGEST_NS) as f64;
            // The bucket's width, and what passed until the program looked at the clock.
            assert!((age * 0.98..age * 1.02 + 5e6).contains(&found), "{age}: {found}");
        }
    }
}
