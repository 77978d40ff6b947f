//! The counting sink: a filter at the ingress of an interface (`bpf/sink.bpf.c`) that counts every
//! frame and drops it. The cheapest end for a stream that there is on a veth: an XDP program there
//! costs the sender a copy, the host's stack a route look-up.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{
    ErrorKind, MapCore, MapFlags, MapHandle, TC_EGRESS, TC_INGRESS, TcHook, TcHookBuilder,
};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::device;
use crate::error::PerfError;
use crate::skeleton::sink::SinkSkelBuilder;

/// Place of the filter among others.
const PLACE: u32 = 1;

/// What has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sunk {
    /// Frames.
    pub frames: u64,
    /// Their bytes, without check sequences.
    pub bytes: u64,
}

impl Sunk {
    /// The growth since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self { frames: self.frames - before.frames, bytes: self.bytes - before.bytes }
    }
}

/// A filter on an interface. Dropping it detaches it, in whichever namespace the thread is then.
#[derive(Debug)]
pub struct Sink {
    hook: Option<TcHook>,
    /// Was there no `clsact` before?
    own_qdisc: bool,
    counters: MapHandle,
    namespace: File,
}

impl Sink {
    /// Counts and drops everything that arrives at `interface` of the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// [`PerfError::Interface`], [`PerfError::Program`]
    pub fn attach(interface: &str) -> Result<Self, PerfError> {
        let index = device::find(interface)?.index;
        let failed = |source| PerfError::Program { action: "load the sink", source };
        let path = "/proc/thread-self/ns/net";
        let namespace =
            File::open(path).map_err(|source| PerfError::File { path: path.into(), source })?;
        let mut storage = MaybeUninit::uninit();
        let open = SinkSkelBuilder::default().open(&mut storage).map_err(failed)?;
        let skeleton = open.load().map_err(failed)?;
        let counters = MapHandle::try_from(&skeleton.maps.sunk).map_err(failed)?;
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
        Ok(Self { hook: Some(attached), own_qdisc, counters, namespace })
    }

    /// What has arrived since the sink was attached.
    ///
    /// # Errors
    /// [`PerfError::Program`]: the kernel does not say.
    pub fn counters(&self) -> Result<Sunk, PerfError> {
        let read = self.counters.lookup_percpu(&[0; 4], MapFlags::ANY);
        let read = read.map_err(|source| PerfError::Program { action: "read the sink", source })?;
        let word = |value: &[u8], at: usize| {
            let bytes = value.get(at..).and_then(|bytes| bytes.first_chunk().copied());
            bytes.map_or(0, u64::from_ne_bytes)
        };
        let add = |sum: Sunk, value: Vec<u8>| Sunk {
            frames: sum.frames + word(&value, 0),
            bytes: sum.bytes + word(&value, 8),
        };
        Ok(read.unwrap_or_default().into_iter().fold(Sunk::default(), add))
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
