//! Binding and options of one AF_XDP socket.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use xsk_rs::config::{BindFlags, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue};

use super::plan::RingSizes;
use super::umem::{Area, BindMode};

/// The kernel gives a queue free some 20 ms after its last socket was closed; a device that is
/// still busy after this long belongs to somebody else.
const BIND_PATIENCE: Duration = Duration::from_secs(1);

/// Frames that one `sendto` sends in copy mode (kernel 6.17; older ones always 32).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// A port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A name that no device can have.
    #[error("{name:?} cannot be the name of a network device")]
    Name {
        /// The name.
        name: String,
    },
    /// A ring size that is no power of two, or a ring that does not fit another one.
    #[error("a {ring} ring of {size} entries is not possible: {why}")]
    Ring {
        /// Which ring.
        ring: &'static str,
        /// Its size.
        size: u32,
        /// What it must be.
        why: &'static str,
    },
    /// The kernel refused.
    #[error("cannot bind AF_XDP to queue {queue} of {interface}: {source}; {}", hint(source))]
    Bind {
        /// Name of the device.
        interface: String,
        /// Number of the queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The queue's fill and completion ring belong to another port of this UMEM.
    #[error("queue {queue} of {interface} is open already")]
    AlreadyOpen {
        /// Name of the device.
        interface: String,
        /// Number of the queue.
        queue: u32,
    },
    /// A socket option that every kernel with AF_XDP has.
    #[error("cannot {what} of an AF_XDP socket: {source}")]
    Option {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another process has the queue",
        Some(libc::EINVAL) => "does the device have that many queues?",
        Some(libc::EPERM) => "it needs CAP_NET_RAW",
        Some(libc::ENODEV | libc::ENXIO) => "is the device in this network namespace?",
        Some(libc::EOPNOTSUPP) => "its driver has no zero-copy; use a UMEM for copies",
        Some(libc::EBADF) => "the device on which the packet memory was first used is gone",
        Some(libc::ENOBUFS | libc::ENOMEM) => "raise the memlock limit or grant CAP_IPC_LOCK",
        _ => "see the kernel's log",
    }
}

/// Busy polling: the worker runs the device's receive path in its own system calls. For NICs;
/// a veth's runs on the sender's side anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll {
    /// How long one call may poll, microseconds.
    pub microseconds: u32,
    /// Packets that one call may take.
    pub budget: u32,
}

/// The queues of a bound socket.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) rx: RxQueue,
    pub(super) fill: FillQueue,
    pub(super) completion: CompQueue,
    /// Holds the socket; sending goes through our own TX ring.
    pub(super) _tx: TxQueue,
    pub(super) fd: RawFd,
}

/// The I/O error at the end of the chain, or the whole text.
pub(super) fn cause(error: &dyn std::error::Error) -> io::Error {
    let source = error.source().and_then(|s| s.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}

/// A ring size, if it is a power of two.
pub(super) fn power_of_two(size: u32) -> Option<QueueSize> {
    QueueSize::new(size).ok()
}

/// Binds a socket on `queue` of `interface`; waits while the queue is still being given free.
pub(super) fn bind(
    area: &Area,
    interface: &str,
    queue: u32,
    rings: RingSizes,
) -> Result<Queues, OpenError> {
    let size = |ring, size| {
        power_of_two(size).ok_or(OpenError::Ring { ring, size, why: "it must be a power of two" })
    };
    let flag = match area.mode {
        BindMode::Copy => BindFlags::XDP_COPY,
        BindMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
    };
    let config = SocketConfig::builder()
        .rx_queue_size(size("receive", rings.rx)?)
        .tx_queue_size(size("transmit", rings.tx)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flag | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let name = interface.parse().map_err(|_| OpenError::Name { name: interface.into() })?;
    let give_up = Instant::now() + BIND_PATIENCE;
    loop {
        // SAFETY: libxdp is told to load no program, so nothing can be detached twice.
        let error = match unsafe { xsk_rs::Socket::new(config, &area.xsk, &name, queue) } {
            Ok((tx, rx, Some((fill, completion)))) => {
                let fd = close_on_exec(&rx);
                return Ok(Queues { rx, fill, completion, _tx: tx, fd });
            }
            Ok((_, _, None)) => {
                return Err(OpenError::AlreadyOpen { interface: interface.into(), queue });
            }
            Err(e) => cause(&e),
        };
        if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= give_up {
            return Err(OpenError::Bind { interface: interface.into(), queue, source: error });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The socket's descriptor, from now on closed in programs that this process starts: there it
/// would keep the queue, and the kernel writing to its frames, after it is closed here.
pub(super) fn close_on_exec(rx: &RxQueue) -> RawFd {
    let fd = std::os::fd::AsRawFd::as_raw_fd(rx.fd());
    // SAFETY: changes a flag of a descriptor that is open, for `rx` holds the socket.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    fd
}

#[allow(clippy::cast_possible_truncation)] // Options have a few bytes.
pub(super) const fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

pub(super) fn set_option(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: u32,
) -> io::Result<()> {
    // SAFETY: the pointer is to a u32 that outlives the call, and the length is its size.
    let result = unsafe {
        libc::setsockopt(fd, level, name, std::ptr::from_ref(&value).cast(), socklen::<u32>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads a plain-data socket option of level `SOL_XDP`; none when the kernel's is shorter.
pub(super) fn xdp_option<T: Copy>(fd: RawFd, name: libc::c_int) -> io::Result<Option<T>> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut len = socklen::<T>();
    // SAFETY: the kernel writes at most `len` bytes to `value`, which has that many.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_XDP, name, value.as_mut_ptr().cast(), &mut len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every caller's T is a C struct of integers, for which zeroes and whatever the
    // kernel wrote are values.
    Ok((len as usize >= size_of::<T>()).then(|| unsafe { value.assume_init() }))
}

/// Lets a burst of a whole TX ring be under way at once.
///
/// In copy mode each frame on its way is a kernel buffer that counts against the socket's send
/// buffer with up to 4 KiB (2 KiB of data and the kernel's own record, rounded up by its
/// allocator); the default of 208 KiB holds some 60 frames. The kernel doubles the value given.
pub(super) fn allow_bursts(
    fd: RawFd,
    tx_ring: u32,
    budget: u32,
    send_buffer: Option<u32>,
) -> Result<(), OpenError> {
    let bytes = send_buffer.unwrap_or(tx_ring.saturating_mul(4096).clamp(1 << 20, 64 << 20));
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))
        .map_err(|source| OpenError::Option { what: "raise the send buffer", source })?;
    // Absent before 6.17, and then 32 frames leave with each system call.
    let _ = set_option(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, budget.clamp(32, tx_ring.max(32)));
    Ok(())
}

/// Turns busy polling on.
pub(super) fn busy_poll(fd: RawFd, poll: BusyPoll) -> Result<(), OpenError> {
    [
        (SO_PREFER_BUSY_POLL, 1),
        (libc::SO_BUSY_POLL, poll.microseconds),
        (SO_BUSY_POLL_BUDGET, poll.budget),
    ]
    .into_iter()
    .try_for_each(|(name, value)| set_option(fd, libc::SOL_SOCKET, name, value))
    .map_err(|source| OpenError::Option { what: "turn on the busy polling", source })
}

/// Is the socket's queue used without copies?
pub(super) fn is_zero_copy(fd: RawFd) -> Result<bool, OpenError> {
    let options = xdp_option::<libc::xdp_options>(fd, libc::XDP_OPTIONS)
        .map_err(|source| OpenError::Option { what: "read the mode", source })?;
    Ok(options.is_some_and(|o| o.flags & libc::XDP_OPTIONS_ZEROCOPY != 0))
}

/// Makes the kernel look at the TX ring. In copy mode this call *is* the sending.
#[inline]
pub(super) fn kick(fd: RawFd) -> Result<(), libc::c_int> {
    // SAFETY: no buffer and no address are passed.
    let sent =
        unsafe { libc::sendto(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if sent >= 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

/// Makes the driver look at the fill ring again (zero-copy only).
pub(super) fn wake_receiver(fd: RawFd) {
    // SAFETY: no buffer and no address are passed.
    unsafe {
        let flags = libc::MSG_DONTWAIT;
        libc::recvfrom(
            fd,
            std::ptr::null_mut(),
            0,
            flags,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
    }
}
