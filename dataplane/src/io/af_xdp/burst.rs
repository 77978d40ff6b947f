//! Frames of all ports of a worker, sent in one system call.
//!
//! In copy mode AF_XDP sends frame by frame: on a veth the far end receives each of them, softirq and all,
//! before the next one leaves, and each port needs a call of its own. A BPF program
//! (`overlane_bpf::Transmitter`) sends a burst for any ports with softirqs off.

use overlane_bpf::{BpfError, Transmitter};

/// Frames that are worth a run of the program, which costs some microseconds.
const WORTH: usize = 10;

/// What leaves together. For the worker's thread, in the network namespace of its ports.
#[derive(Debug)]
pub struct Burst {
    transmitter: Transmitter,
    failed: bool,
}

impl Burst {
    /// Loads the program.
    ///
    /// # Errors
    /// [`BpfError`] says what is missing.
    pub fn load() -> Result<Self, BpfError> {
        Ok(Self { transmitter: Transmitter::load()?, failed: false })
    }

    /// Should so many frames leave together, rather than each port's by itself?
    #[inline]
    #[must_use]
    pub fn is_worth(&self, frames: usize) -> bool {
        frames >= WORTH && !self.failed
    }

    /// Is there room for so many more frames?
    #[inline]
    #[must_use]
    pub fn has_room(&self, frames: usize) -> bool {
        self.transmitter.staged() + frames <= Transmitter::BURST
    }

    /// Copies a frame that is to leave by device number `interface`. False: no device takes it, it is too long
    /// or too short.
    #[inline]
    pub(super) fn stage(&mut self, interface: u32, frame: &[u8]) -> bool {
        self.transmitter.stage(interface, frame)
    }

    /// Sends all that was staged. When the kernel does not run the program, that is lost and the burst is
    /// not worth anything any more.
    #[inline]
    pub fn send(&mut self) {
        let staged = self.transmitter.staged();
        if let Err(error) = self.transmitter.send() {
            tracing::warn!(%error, lost = staged, "sending by a BPF program ends; each port sends by itself");
            self.failed = true;
        }
    }
}
