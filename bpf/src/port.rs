//! The program of pod ports and of the host port.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use libbpf_rs::MapHandle;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use crate::attach::{self, Attachment};
use crate::diagnose::{self, BpfError};
use crate::interface::Interface;
use crate::program;
use crate::skeleton::port::PortSkelBuilder;

/// Sends every frame of a port to the AF_XDP socket of its queue, and drops it where there is
/// none. Dropping this detaches the program: the port is then the kernel's again.
#[derive(Debug)]
pub struct PortSteering {
    xsks: MapHandle,
    queues: u32,
    _attachment: Attachment,
}

impl PortSteering {
    /// Loads the program for `queues` receive queues and attaches it in native mode to an
    /// interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`BpfError`] says what is missing, or who is on the interface already.
    pub fn attach(interface: &str, queues: u32) -> Result<Self, BpfError> {
        let interface = Interface::resolve(interface)?;
        let (program, xsks) = load(queues).map_err(|source| diagnose::load("ovl_port", source))?;
        let attachment = attach::attach(program.as_fd(), &interface)?;
        Ok(Self { xsks, queues, _attachment: attachment })
    }

    /// Makes an AF_XDP socket, bound to this interface and `queue`, the receiver of the queue's
    /// frames. It stays that until it is closed or another takes its place.
    ///
    /// # Errors
    /// [`BpfError::NoSuchQueue`]; [`BpfError::Map`] when `socket` is not an AF_XDP socket.
    pub fn register_socket(&self, queue: u32, socket: RawFd) -> Result<(), BpfError> {
        program::register_socket(&self.xsks, self.queues, queue, socket)
    }
}

fn load(queues: u32) -> libbpf_rs::Result<(OwnedFd, MapHandle)> {
    diagnose::listen();
    let mut storage = MaybeUninit::uninit();
    let mut open = PortSkelBuilder::default().open(&mut storage)?;
    open.maps.xsks.set_max_entries(queues.max(1))?;
    let loaded = open.load()?;
    let program = loaded.progs.ovl_port.as_fd().try_clone_to_owned()?;
    Ok((program, MapHandle::try_from(&loaded.maps.xsks)?))
}
