//! Sends bursts of frames through a BPF program, many frames and many interfaces in one system call.
//!
//! In copy mode AF_XDP sends frame by frame, and on a veth the far end receives each of them, softirq
//! and all, before the next one leaves. Here the kernel's test run of a program (`transmit.bpf.c`)
//! sends the whole burst with softirqs off, and the far ends receive it together.
//!
//! ```text
//! stage, stage, ... --> [mapped memory] <-- program <-- send (one test run)
//!                                              \--> skb, clone --> device, device, ...
//! ```
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapHandle, libbpf_sys};

use crate::diagnose::{self, BpfError};
use crate::skeleton::transmit::TransmitSkelBuilder;

/// As in `transmit.bpf.c`.
const SLOTS: usize = 256;
const FRAME: usize = 2040;
/// Bytes of the packet that a test run is given at least.
const SHORTEST_RUN: usize = 60;

/// `struct ovl_slot`.
#[repr(C)]
struct Slot {
    interface: u32,
    /// Bytes; 0 after the run when the frame was refused.
    length: u32,
    bytes: [u8; FRAME],
}

/// `struct ovl_burst`.
#[repr(C)]
struct Burst {
    count: u32,
    reserved: u32,
    sent: u64,
    refused: u64,
    padding: [u64; 5],
    slots: [Slot; SLOTS],
}

const _: () = assert!(mem::size_of::<Burst>() == 64 + SLOTS * 2048);

/// How sending went since the program was loaded, in frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transmitted {
    /// Handed to their interface.
    pub sent: u64,
    /// Not taken: the interface is gone, down or full, or memory is short.
    pub refused: u64,
}

/// A program that sends, and the frames that wait for it. For one thread.
#[derive(Debug)]
pub struct Transmitter {
    program: OwnedFd,
    burst: NonNull<Burst>,
    staged: usize,
    /// Frames of the last [`Transmitter::send`], if some were refused and may not have been asked for.
    asked: usize,
    /// Length of the longest staged frame, bytes.
    longest: usize,
}

// SAFETY: the memory is the transmitter's alone but for the program, which runs only inside of
// `send`, on the thread that has it by `&mut`.
unsafe impl Send for Transmitter {}

impl Transmitter {
    /// Frames that can be staged between two [`Transmitter::send`]s.
    pub const BURST: usize = SLOTS;

    /// Loads the program.
    ///
    /// # Errors
    /// [`BpfError`] says what is missing: a privilege, or a kernel of 5.17 or later.
    pub fn load() -> Result<Self, BpfError> {
        let (program, map) = load().map_err(|source| diagnose::load("ovl_transmit", source))?;
        let burst = map_burst(&map).map_err(|source| BpfError::Map {
            map: "burst",
            action: "mapping it".to_owned(),
            source: source.into(),
        })?;
        Ok(Self { program, burst, staged: 0, asked: 0, longest: 0 })
    }

    /// Puts a frame, from its Ethernet header on, behind those that wait; it will leave by the
    /// interface with that index, of the network namespace of the thread that sends. False: there
    /// is no room, or it is longer than 2040 bytes or shorter than an Ethernet header.
    #[inline]
    pub fn stage(&mut self, interface: u32, frame: &[u8]) -> bool {
        if self.staged == SLOTS || !(14..=FRAME).contains(&frame.len()) {
            return false;
        }
        // SAFETY: mapped for as long as `self`, aligned to a page; the program does not run, and
        // nobody else has the memory.
        let slot = unsafe { &mut (*self.burst.as_ptr()).slots[self.staged] };
        slot.interface = interface;
        #[allow(clippy::cast_possible_truncation)] // Checked above.
        {
            slot.length = frame.len() as u32;
        }
        slot.bytes[..frame.len()].copy_from_slice(frame);
        self.longest = self.longest.max(frame.len());
        self.staged += 1;
        true
    }

    /// Frames that wait.
    #[must_use]
    pub fn staged(&self) -> usize {
        self.staged
    }

    /// Sends what is staged; none of it waits any more, whatever happens. Says how many frames were
    /// refused, which [`Transmitter::take_refused`] knows more of. Does nothing when nothing is staged.
    ///
    /// # Errors
    /// [`BpfError::TestRun`]: the kernel does not run the program, nothing was sent.
    pub fn send(&mut self) -> Result<u64, BpfError> {
        self.asked = 0;
        if self.staged == 0 {
            return Ok(0);
        }
        let before = self.transmitted().refused;
        #[allow(clippy::cast_possible_truncation)] // At most 256 frames, 2040 bytes.
        let (count, length) = (
            mem::take(&mut self.staged) as u32,
            mem::take(&mut self.longest).max(SHORTEST_RUN) as u32,
        );
        // SAFETY: as in `stage`.
        unsafe { (*self.burst.as_ptr()).count = count };
        // Room for the longest frame, and for what the kernel wants at least; what is in it does not
        // matter.
        static ROOM: [u8; FRAME] = [0; FRAME];
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: mem::size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            data_in: ROOM.as_ptr().cast(),
            data_size_in: length,
            repeat: 1,
            ..Default::default()
        };
        // SAFETY: `options` states its own size; `ROOM` has `length` bytes at least, which the
        // kernel only reads; no output buffer is given. The program reads and writes the burst,
        // of which there is no reference now.
        let result =
            unsafe { libbpf_sys::bpf_prog_test_run_opts(self.program.as_raw_fd(), &mut options) };
        if result < 0 {
            let source = io::Error::from_raw_os_error(-result);
            return Err(BpfError::TestRun { length: length as usize, source });
        }
        let refused = self.transmitted().refused - before;
        if refused > 0 {
            self.asked = count as usize;
        }
        Ok(refused)
    }

    /// How many frames of the last [`Transmitter::send`] the interface with that index refused: it is
    /// gone, down or full, or memory is short. Each is told once.
    pub fn take_refused(&mut self, interface: u32) -> u64 {
        // SAFETY: as in `stage`.
        let burst = unsafe { self.burst.as_mut() };
        let slots = burst.slots[..self.asked].iter_mut();
        let refused = slots.filter(|slot| slot.interface == interface && slot.length == 0);
        let mut count = 0;
        for slot in refused {
            slot.interface = 0; // No interface has this index.
            count += 1;
        }
        count
    }

    /// How sending went so far.
    #[must_use]
    pub fn transmitted(&self) -> Transmitted {
        // SAFETY: as in `stage`.
        let burst = unsafe { self.burst.as_ref() };
        Transmitted { sent: burst.sent, refused: burst.refused }
    }
}

impl Drop for Transmitter {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map_burst` made; no reference into it outlives this.
        unsafe { libc::munmap(self.burst.as_ptr().cast(), mem::size_of::<Burst>()) };
    }
}

fn load() -> libbpf_rs::Result<(OwnedFd, MapHandle)> {
    diagnose::listen();
    let mut storage = MaybeUninit::uninit();
    let loaded = TransmitSkelBuilder::default().open(&mut storage)?.load()?;
    let program = loaded.progs.ovl_transmit.as_fd().try_clone_to_owned()?;
    Ok((program, MapHandle::try_from(&loaded.maps.burst)?))
}

fn map_burst(map: &MapHandle) -> io::Result<NonNull<Burst>> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            mem::size_of::<Burst>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            map.as_fd().as_raw_fd(),
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}
