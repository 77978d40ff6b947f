//! What the kernel says about a network interface of the caller's network namespace.
//!
//! Asked by `ioctl`, not read from `/sys`, which may show another namespace.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::BpfError;

/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`.
const GET_DRIVER: u32 = 0x03;
/// `ETHTOOL_GCHANNELS` of `linux/ethtool.h`.
const GET_CHANNELS: u32 = 0x3c;
/// `SIOCETHTOOL` of `linux/sockios.h`.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// An interface by name and index.
#[derive(Debug, Clone)]
pub(crate) struct Interface {
    pub name: String,
    pub index: i32,
}

/// `struct ethtool_drvinfo`; the fields that are not read are one array.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    maximum: [u32; 4],
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

impl Interface {
    /// Looks the name up in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`BpfError::NoInterface`] when there is none of this name.
    pub(crate) fn resolve(name: &str) -> Result<Self, BpfError> {
        let missing = |source| BpfError::NoInterface { interface: name.to_owned(), source };
        let text = CString::new(name).map_err(|error| missing(error.into()))?;
        // SAFETY: `text` is a NUL-terminated string that outlives the call.
        let index = unsafe { libc::if_nametoindex(text.as_ptr()) };
        match i32::try_from(index) {
            Ok(index) if index > 0 => Ok(Self { name: name.to_owned(), index }),
            _ => Err(missing(io::Error::last_os_error())),
        }
    }

    /// The MTU in bytes, without the Ethernet header; `None` when the interface has gone.
    pub(crate) fn mtu(&self) -> Option<i32> {
        let mut request = self.request()?;
        self.ioctl(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: SIOCGIFMTU succeeded, so the kernel wrote this member of the union.
        Some(unsafe { request.ifr_ifru.ifru_mtu })
    }

    /// The driver's name, for example `veth`.
    pub(crate) fn driver(&self) -> Option<String> {
        let mut info = DriverInfo { command: GET_DRIVER, driver: [0; 32], rest: [0; 160] };
        self.ethtool((&raw mut info).cast())?;
        let text = info.driver.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// Receive queues in use.
    pub(crate) fn receive_queues(&self) -> Option<u32> {
        let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
        self.ethtool((&raw mut channels).cast())?;
        Some(channels.receive + channels.combined)
    }

    /// Runs an ethtool command on the structure behind `data`, which must be the one that its
    /// first word (the command) asks for.
    fn ethtool(&self, data: *mut c_char) -> Option<()> {
        let mut request = self.request()?;
        request.ifr_ifru.ifru_data = data;
        self.ioctl(SIOCETHTOOL, &mut request)
    }

    fn request(&self) -> Option<libc::ifreq> {
        // SAFETY: `ifreq` is plain old data; all zero is one of its values.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = self.name.as_bytes();
        if name.len() >= request.ifr_name.len() {
            return None;
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name) {
            *to = c_char::from_ne_bytes([*from]);
        }
        Some(request)
    }

    fn ioctl(&self, command: libc::Ioctl, request: &mut libc::ifreq) -> Option<()> {
        // SAFETY: no pointers are passed; the result is checked below.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor was just made and has no other owner.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: `request` is a valid `ifreq` whose data pointer, where the command uses one,
        // points to the structure of that command, alive in the caller.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), command, request) };
        (result >= 0).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_size() {
        assert_eq!(size_of::<DriverInfo>(), 196);
        assert_eq!(size_of::<Channels>(), 36);
    }

    #[test]
    fn loopback_has_an_index_and_an_mtu() {
        let lo = Interface::resolve("lo").unwrap();
        assert_eq!(lo.index, 1);
        assert!(lo.mtu().unwrap() >= 1280);
        assert!(matches!(Interface::resolve("nosuch0"), Err(BpfError::NoInterface { .. })));
    }
}
