//! Puts a program on an interface, in native mode, and takes stale ones of ours away first.
//!
//! ```text
//! attached already?   attached by      who holds the link     then
//! no                                                          attach
//! yes, not ours                                               refuse, name it
//! yes, ours           netlink          (nobody can)           detach, attach
//! yes, ours           link             a process              refuse, name it
//! yes, ours           link             nobody to be seen      wait, then detach, attach
//! ```
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, io, mem, thread};

use libbpf_rs::libbpf_sys;
use libbpf_rs::query::{LinkInfoIter, LinkTypeInfo};

use crate::diagnose::{self, BpfError};
use crate::interface::Interface;

/// All our programs' names start with this.
const OUR_PREFIX: &str = "ovl_";
/// How often, and how long in between, a link without a visible holder is looked at again: its
/// owner may be in the middle of dying.
const STALE_TRIES: u32 = 10;
const STALE_PAUSE: Duration = Duration::from_millis(50);
/// Inode of the initial PID namespace (`PROC_PID_INIT_INO`); only there are all processes seen.
const INITIAL_PID_NAMESPACE: u64 = 0xeffffffc;

/// A program on an interface. Dropping it, or the end of the process, detaches the program.
#[derive(Debug)]
pub(crate) struct Attachment {
    _link: OwnedFd,
}

/// Attaches in native mode, never in generic mode.
///
/// # Errors
/// [`BpfError::Foreign`] and [`BpfError::InUse`] when the place is taken, and what
/// [`diagnose::attach`] makes of the kernel's refusals.
pub(crate) fn attach(
    program: BorrowedFd<'_>,
    interface: &Interface,
) -> Result<Attachment, BpfError> {
    clear(interface)?;
    let source = match create_link(program, interface.index) {
        Ok(link) => return Ok(Attachment { _link: link }),
        Err(source) => source,
    };
    if matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
        // Somebody attached since `clear`: name them.
        if let Some(there) = attached(interface)?.into_iter().next() {
            return Err(if there.is_ours() {
                there.in_use(interface, "another process".to_owned())
            } else {
                there.foreign(interface)
            });
        }
    }
    Err(diagnose::attach(interface, source))
}

/// Makes room on the interface, or says who is there.
fn clear(interface: &Interface) -> Result<(), BpfError> {
    for tries_left in (0..STALE_TRIES).rev() {
        let there = attached(interface)?;
        if let Some(foreign) = there.iter().find(|program| !program.is_ours()) {
            return Err(foreign.foreign(interface));
        }
        if there.is_empty() {
            return Ok(());
        }
        for program in &there {
            program.evict(interface, tries_left == 0)?;
        }
        if tries_left > 0 && !attached(interface)?.is_empty() {
            thread::sleep(STALE_PAUSE);
        }
    }
    Ok(())
}

/// A program found on the interface.
#[derive(Debug)]
struct Attached {
    id: u32,
    name: String,
    mode: &'static str,
    /// Flags that name the mode to netlink.
    flags: u32,
}

impl Attached {
    fn is_ours(&self) -> bool {
        self.name.starts_with(OUR_PREFIX)
    }

    fn foreign(&self, interface: &Interface) -> BpfError {
        BpfError::Foreign {
            interface: interface.name.clone(),
            program: self.name.clone(),
            id: self.id,
            mode: self.mode,
        }
    }

    fn in_use(&self, interface: &Interface, owner: String) -> BpfError {
        BpfError::InUse {
            interface: interface.name.clone(),
            program: self.name.clone(),
            id: self.id,
            owner,
        }
    }

    /// Takes this program of ours away if nobody lives behind it. A link that no process holds
    /// is left alone unless `force`: it may be about to go by itself.
    fn evict(&self, interface: &Interface, force: bool) -> Result<(), BpfError> {
        let Some(link) = link_of(self.id, interface.index) else {
            return self.detach_netlink(interface);
        };
        if let Some(pid) = holder(link) {
            return Err(self.in_use(interface, format!("process {pid}")));
        }
        if !force {
            return Ok(());
        }
        if !sees_all_processes() {
            let owner = "a process that cannot be seen from this PID namespace".to_owned();
            return Err(self.in_use(interface, owner));
        }
        detach_link(link).map_err(|source| BpfError::Query {
            interface: interface.name.clone(),
            action: "detaching a program left behind",
            source,
        })
    }

    /// Detaches a program attached by netlink, if it is still the one that was looked at.
    fn detach_netlink(&self, interface: &Interface) -> Result<(), BpfError> {
        let failed = |source: io::Error| BpfError::Query {
            interface: interface.name.clone(),
            action: "detaching a program left behind",
            source,
        };
        let program = match program_by_id(self.id) {
            Ok(program) => program,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let options = libbpf_sys::bpf_xdp_attach_opts {
            sz: mem::size_of::<libbpf_sys::bpf_xdp_attach_opts>() as libbpf_sys::size_t,
            old_prog_fd: program.as_raw_fd(),
            ..Default::default()
        };
        let flags = self.flags | libbpf_sys::XDP_FLAGS_REPLACE;
        // SAFETY: `options` is a valid structure of the size it states and outlives the call.
        let result = unsafe { libbpf_sys::bpf_xdp_detach(interface.index, flags, &options) };
        check(result).map(|_| ()).map_err(failed)
    }
}

/// libbpf's low-level calls return a value, or an errno below zero.
fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// As `check`, for calls that return a new descriptor.
fn own(result: i32) -> io::Result<OwnedFd> {
    // SAFETY: a non-negative result is a descriptor that the kernel just made for us.
    check(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn create_link(program: BorrowedFd<'_>, ifindex: i32) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: mem::size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags: libbpf_sys::XDP_FLAGS_DRV_MODE,
        ..Default::default()
    };
    // SAFETY: both descriptors are numbers to the kernel; `options` outlives the call.
    own(unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, libbpf_sys::BPF_XDP, &options)
    })
}

fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes and returns integers.
    own(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) })
}

fn detach_link(id: u32) -> io::Result<()> {
    // SAFETY: takes and returns integers.
    let link = match own(unsafe { libbpf_sys::bpf_link_get_fd_by_id(id) }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
        other => other?,
    };
    // SAFETY: takes and returns integers; the descriptor lives until the end of this function.
    check(unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) }).map(|_| ())
}

/// The programs on the interface, in whichever mode.
fn attached(interface: &Interface) -> Result<Vec<Attached>, BpfError> {
    let failed = |source| BpfError::Query {
        interface: interface.name.clone(),
        action: "asking for XDP programs",
        source,
    };
    let mut options = libbpf_sys::bpf_xdp_query_opts {
        sz: mem::size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    // SAFETY: `options` is a valid structure of the size it states and outlives the call.
    check(unsafe { libbpf_sys::bpf_xdp_query(interface.index, 0, &mut options) })
        .map_err(failed)?;
    let modes = [
        (options.drv_prog_id, "native", libbpf_sys::XDP_FLAGS_DRV_MODE),
        (options.skb_prog_id, "generic", libbpf_sys::XDP_FLAGS_SKB_MODE),
        (options.hw_prog_id, "hardware", libbpf_sys::XDP_FLAGS_HW_MODE),
    ];
    let mut found = Vec::new();
    for (id, mode, flags) in modes {
        if id != 0 {
            match program_name(id) {
                Ok(name) => found.push(Attached { id, name, mode, flags }),
                // It went away between the two questions.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
    Ok(found)
}

fn program_name(id: u32) -> io::Result<String> {
    let program = program_by_id(id)?;
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = u32::try_from(mem::size_of_val(&info)).map_err(io::Error::other)?;
    // SAFETY: `info` is zeroed and `length` its size; the kernel writes at most that.
    check(unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut length)
    })?;
    // SAFETY: the kernel ends the name with a NUL inside its 16 bytes.
    let name = unsafe { CStr::from_ptr(info.name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

/// The id of the link that holds this program on this interface; `None`: attached by netlink.
fn link_of(program: u32, ifindex: i32) -> Option<u32> {
    LinkInfoIter::default()
        .find(|link| {
            link.prog_id == program
                && matches!(&link.info, LinkTypeInfo::Xdp(xdp)
                            if i32::try_from(xdp.ifindex) == Ok(ifindex))
        })
        .map(|link| link.id)
}

/// A process that has the link open.
fn holder(link: u32) -> Option<u32> {
    let wanted = format!("link_id:\t{link}");
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        holds(&entry.path(), &wanted).then_some(pid)
    })
}

/// One of the process's descriptors is a BPF link whose details have the line `wanted`.
fn holds(process: &Path, wanted: &str) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    descriptors.flatten().any(|entry| {
        let is_link = fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().contains("bpf_link"));
        is_link
            && fs::read_to_string(process.join("fdinfo").join(entry.file_name()))
                .is_ok_and(|text| text.lines().any(|line| line == wanted))
    })
}

fn sees_all_processes() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|space| space.ino() == INITIAL_PID_NAMESPACE)
}
