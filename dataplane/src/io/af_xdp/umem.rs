//! The packet memory that this process shares with the kernel.
//!
//! A UMEM is made once and lives as long as the process; that is what makes a frame's `'static`
//! bytes true. Whether it is used with copies or without is a property of the whole UMEM, taken
//! from the first socket that is bound on it. A UMEM for copies therefore binds its first socket
//! itself, to the loopback device of a network namespace that nobody else sees: that *anchor*
//! stays when ports come and go. (libxdp binds the first socket on the descriptor that owns the
//! memory, and closes it only with the memory; were that a pod's port, the pod's device could
//! not be bound again, and no other either once it is gone.)

use std::ptr::NonNull;
use std::sync::{Arc, mpsc};

use nix::sched::{CloneFlags, unshare};
use xsk_rs::config::{BindFlags, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::umem::frame::FrameDesc;

use super::fill_target::FillBudget;
use super::plan::RingSizes;
use super::port::AfXdpPort;
use super::socket::{cause, close_on_exec, power_of_two};
use crate::packet::frame::{CHUNK, Frame, HEADROOM};
use crate::packet::pool::{Depot, FramePool, UmemId};

/// Are packets copied between the device and the UMEM?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindMode {
    /// The kernel copies each packet: works on every device, and on all of them at once.
    Copy,
    /// The device reads and writes the UMEM itself. All ports must be on devices that can, and
    /// the first one opened stays bound until the process ends.
    ZeroCopy,
}

/// How to make a [`Umem`].
#[derive(Debug, Clone, Copy)]
pub struct UmemOptions {
    /// Its number; each UMEM of a process has another one.
    pub id: UmemId,
    /// Chunks of 2048 bytes.
    pub chunks: u32,
    /// Frames that busy ports may hold on fill rings above their minimum, all ports together.
    pub fill_extra: u32,
    /// Only `fill` and `completion` are the UMEM's.
    pub rings: RingSizes,
    /// With copies or without.
    pub mode: BindMode,
}

/// A UMEM cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum UmemError {
    /// A ring size or chunk count that AF_XDP does not know.
    #[error("{what} of {value} is not possible: it must be a power of two")]
    Size {
        /// Which.
        what: &'static str,
        /// The value asked for.
        value: u32,
    },
    /// Memory could not be mapped or registered.
    #[error(
        "cannot register {chunks} chunks of packet memory with the kernel: {source}; it needs \
         CAP_NET_RAW and, without CAP_IPC_LOCK, a memlock limit above that size"
    )]
    Register {
        /// Chunks asked for.
        chunks: u32,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The anchor's namespace could not be made.
    #[error("cannot make a network namespace for the packet memory: {0}; it needs CAP_SYS_ADMIN")]
    Namespace(nix::Error),
    /// The anchor could not be bound.
    #[error("cannot bind the packet memory's own socket: {0}; does this kernel have AF_XDP?")]
    Anchor(std::io::Error),
    /// The thread that makes it failed.
    #[error("making the packet memory failed on its thread")]
    Thread,
}

/// The memory behind a UMEM, as ports see it. Lives for ever.
pub(super) struct Area {
    base: NonNull<u8>,
    pub(super) id: UmemId,
    /// One descriptor for each chunk, as the fill ring takes them.
    pub(super) descs: Box<[FrameDesc]>,
    pub(super) mode: BindMode,
    pub(super) fill_ring: u32,
    pub(super) completion_ring: u32,
    /// Frames that ports may still put on fill rings above their minimum.
    pub(super) extra: FillBudget,
    /// Takes ports that are to be closed.
    pub(super) closer: mpsc::Sender<AfXdpPort>,
    pub(super) xsk: xsk_rs::Umem,
}

impl std::fmt::Debug for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (id, chunks) = (self.id, self.descs.len());
        f.debug_struct("Area").field("id", &id).field("chunks", &chunks).finish_non_exhaustive()
    }
}

// SAFETY: `base` is only an address; the bytes behind it are reached through frames, of which
// there is one for each chunk (see `frame`). Everything else in here is Send.
unsafe impl Send for Area {}
// SAFETY: as above; `xsk` is an `Arc<Mutex>` beside a region that is Sync, and the rest is
// atomic or never changes.
unsafe impl Sync for Area {}

impl Area {
    /// Chunks of the UMEM.
    pub(super) fn chunks(&self) -> usize {
        self.descs.len()
    }

    /// Number of the chunk that `frame` is, if it is one of this UMEM.
    #[inline]
    pub(super) fn chunk_of(&self, frame: &Frame) -> Option<usize> {
        let offset = frame.chunk_address().wrapping_sub(self.base.as_ptr() as usize);
        let chunk = offset / CHUNK;
        (frame.umem() == self.id && chunk < self.descs.len()).then_some(chunk)
    }

    /// The token of a chunk.
    ///
    /// # Safety
    /// `chunk` is less than [`Area::chunks`], there is no other token of it, and it is on no ring
    /// of the kernel's.
    #[inline]
    pub(super) unsafe fn frame(&self, chunk: usize) -> Frame {
        // SAFETY: the area is mapped, readable and writable, for `chunks * CHUNK` bytes and is
        // never unmapped, because the UMEM is leaked. The caller promises that nobody else, in
        // this process or in the kernel, holds the chunk, so this is the only reference.
        let bytes = unsafe { &mut *self.base.as_ptr().add(chunk * CHUNK).cast::<[u8; CHUNK]>() };
        Frame::new(bytes, self.id)
    }
}

/// Packet memory that is registered with the kernel. Clones are the same memory.
#[derive(Debug, Clone)]
pub struct Umem {
    pub(super) area: &'static Area,
    depot: Arc<Depot>,
    huge_pages: bool,
}

impl Umem {
    /// Maps and registers the memory; all frames are in the [`Umem::depot`]. On huge pages when
    /// enough of them are free.
    ///
    /// # Errors
    /// [`UmemError`]: says what the kernel refused and which permission may be missing.
    pub fn create(options: UmemOptions) -> Result<Self, UmemError> {
        let (closer, closing) = mpsc::channel();
        let spawn = |name: &str| std::thread::Builder::new().name(name.into());
        // On a thread of its own, because the anchor's socket must be made in its namespace and
        // threads cannot always go back.
        let making = spawn("umem").spawn(move || Self::create_here(&options, closer));
        let umem =
            making.map_err(|_| UmemError::Thread)?.join().map_err(|_| UmemError::Thread)??;
        let depot = umem.depot.clone();
        spawn("umem-close")
            .spawn(move || close_ports(closing, depot))
            .map_err(|_| UmemError::Thread)?;
        Ok(umem)
    }

    fn create_here(
        options: &UmemOptions,
        closer: mpsc::Sender<AfXdpPort>,
    ) -> Result<Self, UmemError> {
        if options.mode == BindMode::Copy {
            unshare(CloneFlags::CLONE_NEWNET).map_err(UmemError::Namespace)?;
        }
        let size = |what, value| power_of_two(value).ok_or(UmemError::Size { what, value });
        let config = UmemConfig::builder()
            .frame_size(frame_size()?)
            .frame_headroom(0)
            .fill_queue_size(size("a fill ring", options.rings.fill)?)
            .comp_queue_size(size("a completion ring", options.rings.completion)?)
            .build()
            .map_err(|e| register_error(options.chunks, &e))?;
        let (xsk, descs, huge_pages) = register(config, options.chunks)?;
        if options.mode == BindMode::Copy {
            anchor(&xsk)?;
        }
        // The first chunk starts `HEADROOM` in front of where its packets do. The address is
        // the kernel's (`mmap`), so its provenance is exposed.
        // SAFETY: the descriptor is of this UMEM, and no reference to the chunk exists yet.
        let data = unsafe { xsk.data(&descs[0]) }.contents().as_ptr() as usize;
        let base = std::ptr::with_exposed_provenance_mut::<u8>(data - HEADROOM);
        let base = NonNull::new(base).ok_or(UmemError::Thread)?;
        let area: &'static Area = Box::leak(Box::new(Area {
            base,
            id: options.id,
            descs: descs.into_boxed_slice(),
            mode: options.mode,
            fill_ring: options.rings.fill,
            completion_ring: options.rings.completion,
            extra: FillBudget::new(options.fill_extra as usize),
            closer,
            xsk,
        }));
        // SAFETY: the numbers are those of the chunks, each taken once, and nothing is on a ring
        // yet: no port exists, and the anchor was given no frames.
        let frames = (0..area.chunks()).map(|chunk| unsafe { area.frame(chunk) });
        let depot = Depot::new(options.id, frames);
        Ok(Self { area, depot, huge_pages })
    }

    /// Where the frames are that no worker holds.
    #[must_use]
    pub fn depot(&self) -> &Arc<Depot> {
        &self.depot
    }

    /// Number of this UMEM.
    #[must_use]
    pub fn id(&self) -> UmemId {
        self.area.id
    }

    /// With copies or without.
    #[must_use]
    pub fn mode(&self) -> BindMode {
        self.area.mode
    }

    /// Is the memory on huge pages?
    #[must_use]
    pub fn is_on_huge_pages(&self) -> bool {
        self.huge_pages
    }
}

/// Closes ports one after the other, each of which waits for the kernel, and gives their frames
/// to the depot. Runs as long as the process.
fn close_ports(ports: mpsc::Receiver<AfXdpPort>, depot: Arc<Depot>) {
    let mut pool = FramePool::new(depot, 0);
    for mut port in ports {
        // With an older magazine, so that the depot does not fill up with small ones.
        if let Some(frame) = pool.take() {
            pool.give(frame);
        }
        port.release(&mut pool);
        // What the depot has no room for stays here until the next time.
        pool.drain();
    }
}

fn frame_size() -> Result<xsk_rs::config::FrameSize, UmemError> {
    let value = u32::try_from(CHUNK).unwrap_or(u32::MAX);
    xsk_rs::config::FrameSize::new(value).map_err(|_| UmemError::Size { what: "a chunk", value })
}

fn register_error(chunks: u32, error: &dyn std::error::Error) -> UmemError {
    UmemError::Register { chunks, source: cause(error) }
}

/// Maps and registers the memory, on huge pages if that many are free.
fn register(
    config: UmemConfig,
    chunks: u32,
) -> Result<(xsk_rs::Umem, Vec<FrameDesc>, bool), UmemError> {
    let count = std::num::NonZeroU32::new(chunks)
        .ok_or(UmemError::Size { what: "a chunk count", value: chunks })?;
    let bytes = u64::from(chunks) * CHUNK as u64;
    // A mapping that huge pages do not fill could not be unmapped after a failure.
    if bytes.is_multiple_of(HUGE_PAGE)
        && free_huge_pages() >= bytes / HUGE_PAGE
        && let Ok((umem, descs)) = xsk_rs::Umem::new(config, count, true)
    {
        return Ok((umem, descs, true));
    }
    xsk_rs::Umem::new(config, count, false)
        .map(|(umem, descs)| (umem, descs, false))
        .map_err(|e| register_error(chunks, &e))
}

const HUGE_PAGE: u64 = 2 << 20;

fn free_huge_pages() -> u64 {
    std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Binds the UMEM's first socket, for copies, to the loopback device of this thread's namespace
/// and keeps it for ever.
fn anchor(xsk: &xsk_rs::Umem) -> Result<(), UmemError> {
    let rings = QueueSize::new(64).map_err(|e| UmemError::Anchor(std::io::Error::other(e)))?;
    let config = SocketConfig::builder()
        .rx_queue_size(rings)
        .tx_queue_size(rings)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let loopback = "lo".parse().map_err(|_| UmemError::Thread)?;
    // SAFETY: libxdp is told to load no program, so nothing can be detached twice.
    let queues = unsafe { xsk_rs::Socket::new(config, xsk, &loopback, 0) }
        .map_err(|e| UmemError::Anchor(cause(&e)))?;
    close_on_exec(&queues.1);
    std::mem::forget(queues);
    Ok(())
}
