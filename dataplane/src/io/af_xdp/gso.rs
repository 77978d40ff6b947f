//! Sends several segments as one packet, where AF_XDP would send each by itself.
//!
//! An AF_XDP socket in copy mode makes a kernel buffer of each frame and carries it to the device alone.
//! A packet socket takes up to 64 KiB in one, and says how a device or the kernel is to cut it
//! (`PACKET_VNET_HDR`, `struct virtio_net_hdr`). Between two ends of a veth pair nobody cuts it: the pod's
//! stack gets it whole, as from a NIC with receive offload.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use arrayvec::ArrayVec;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::uio::writev;

use super::socket::{set_option, socklen};
use crate::io::VECTOR;
use crate::packet::frame::Frame;
use crate::packet::segments::{Offload, Segments};

/// Kernel buffers under way: some packets of 64 KiB.
const SEND_BUFFER: u32 = 4 << 20;

/// `AF_PACKET`
const PACKET: libc::sa_family_t = 17;

/// Bytes of `struct virtio_net_hdr`.
const HEADER: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
const NEEDS_CHECKSUM: u8 = 1;

/// `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6` and `_UDP_L4` (the last from kernel 6.2 on).
const fn kind(offload: Offload) -> u8 {
    match offload {
        Offload::TcpV4 => 1,
        Offload::TcpV6 => 4,
        Offload::Udp => 5,
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// The device has it.
    Whole,
    /// The device dropped it, or part of it.
    Dropped,
    /// Nothing was sent: there is no room at present.
    NotNow,
    /// Nothing was sent: the kernel does not know how.
    Never,
}

/// A packet socket on one device. It receives nothing.
#[derive(Debug)]
pub(super) struct GsoSocket(OwnedFd);

impl GsoSocket {
    /// Opens a socket on device number `index` of the calling thread's network namespace.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        set_option(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER).or_else(
            |_| set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER),
        )?;
        bind(&fd, index)?;
        Ok(Self(fd))
    }

    /// Sends the frames as one packet.
    #[inline]
    pub(super) fn send(&mut self, segments: &Segments, frames: &[Frame]) -> Sent {
        let headers = segments.headers.len();
        let header = virtio_header(segments);
        let mut pieces = ArrayVec::<IoSlice<'_>, { VECTOR + 2 }>::new();
        pieces.push(IoSlice::new(&header));
        pieces.push(IoSlice::new(&segments.headers));
        for frame in frames.iter().take(VECTOR) {
            pieces.push(IoSlice::new(frame.bytes().get(headers..).unwrap_or_default()));
        }
        // A packet socket takes all or nothing.
        match writev(&self.0, &pieces) {
            Ok(_) => Sent::Whole,
            Err(Errno::EAGAIN | Errno::ENOMEM | Errno::EINTR) => Sent::NotNow,
            Err(Errno::ENOBUFS | Errno::ENETDOWN) => Sent::Dropped,
            Err(_) => Sent::Never,
        }
    }
}

/// `struct virtio_net_hdr`, in this machine's byte order: type, lengths, and where the checksum goes.
fn virtio_header(segments: &Segments) -> [u8; HEADER] {
    // At most 114.
    #[allow(clippy::cast_possible_truncation)]
    let length = segments.headers.len() as u16;
    let words = [length, segments.size, segments.l4, segments.checksum].map(u16::to_ne_bytes);
    let mut header = [0; HEADER];
    (header[0], header[1]) = (NEEDS_CHECKSUM, kind(segments.offload));
    header[2..].copy_from_slice(words.as_flattened());
    header
}

/// Binds the socket to a device, and to no protocol: what arrives there is not for it.
fn bind(fd: &OwnedFd, index: u32) -> io::Result<()> {
    // SAFETY: a C struct of integers, for which zeroes are values.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = PACKET;
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let length = socklen::<libc::sockaddr_ll>();
    // SAFETY: the address outlives the call and has the length that is said.
    let result = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
