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

    /// Is sending so known to be cheaper on this kernel? Before Linux 6.11 a test run lets softirqs in, so that
    /// the far end of a veth receives frame by frame all the same.
    #[must_use]
    pub fn pays() -> bool {
        let release = nix::sys::utsname::uname();
        release.is_ok_and(|name| pays_on(&name.release().to_string_lossy()))
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

    /// Sends all that was staged. Says how many frames no device took, for ports to ask about by
    /// [`Port::learn_refused`](crate::io::Port::learn_refused). When the kernel does not run the program, what
    /// was staged is lost and the burst is not worth anything any more.
    #[inline]
    pub fn send(&mut self) -> u64 {
        let staged = self.transmitter.staged();
        match self.transmitter.send() {
            Ok(refused) => refused,
            Err(error) => {
                tracing::warn!(%error, lost = staged, "sending by a BPF program ends; each port sends by itself");
                self.failed = true;
                0
            }
        }
    }

    /// How many frames of the last [`Burst::send`] that device did not take; told once.
    pub(super) fn take_refused(&mut self, interface: u32) -> u64 {
        self.transmitter.take_refused(interface)
    }
}

fn pays_on(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 11))
}

#[cfg(test)]
mod tests {
    use super::pays_on;

    #[test]
    fn kernels_from_6_11_on_run_bursts_with_softirqs_off() {
        for release in ["6.11.0", "6.18.1-cloud-amd64", "7.0-rc1", "6.12"] {
            assert!(pays_on(release), "{release}");
        }
        for release in ["6.1.0-18-amd64", "5.17.2", "6.10.11", "", "6", "six.12", "999999999999.1"]
        {
            assert!(!pays_on(release), "{release}");
        }
    }
}
