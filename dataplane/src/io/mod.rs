//! L3, the edge: where frames come from and go to. Imports `packet` and nothing else of ours.

use arrayvec::ArrayVec;

use self::af_xdp::burst::Burst;
use crate::packet::frame::Frame;
use crate::packet::pool::{FramePool, UmemId};
use crate::packet::segments::Segments;
/// Most frames that are received at once: the size of a vector.
pub use crate::packet::vector::VECTOR;

pub mod af_xdp;
pub mod memory;

/// Drops of the kernel at one port since it was opened, packets: what it counted on the AF_XDP socket
/// (`struct xdp_statistics`), and what it said when it was to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelDrops {
    /// Longer than a frame, or no free frame was on the fill ring (copy mode).
    pub rx_dropped: u64,
    /// The RX ring was full: this worker is too slow.
    pub rx_ring_full: u64,
    /// The fill ring was empty.
    pub rx_fill_ring_empty: u64,
    /// Descriptors of ours on the fill ring that the kernel refused; must stay 0.
    pub rx_invalid: u64,
    /// Descriptors of ours on the TX ring that the kernel refused; must stay 0.
    pub tx_invalid: u64,
    /// The device did not take the frame: it is down, full (a veth: its peer takes no more) or gone.
    pub tx_dropped: u64,
}

/// One device queue, owned by one worker.
pub trait Port {
    /// Appends received frames to `out` while it has room; says how many.
    fn receive(&mut self, out: &mut ArrayVec<Frame, VECTOR>) -> usize;

    /// Puts `frame` on the TX ring. It leaves at the next [`Port::flush`].
    ///
    /// # Errors
    /// Gives the frame back when the ring is full or the frame lives in another UMEM.
    fn send(&mut self, frame: Frame) -> Result<(), Frame>;

    /// Can [`Port::send_segments`] succeed?
    fn takes_segments(&self) -> bool {
        false
    }

    /// Sends frames that are one packet's segments as one, at once, behind what was sent before. They
    /// may live in any UMEM; the caller keeps them. False: nothing was sent, and they must go one by one.
    fn send_segments(&mut self, _segments: &Segments, _frames: &[Frame]) -> bool {
        false
    }

    /// Frames that wait for [`Port::flush`] and may leave by [`Port::stage`] instead.
    fn waiting(&self) -> usize {
        0
    }

    /// Moves the frames that wait into `burst`, if it has room for all of them, and their chunks back into
    /// `pool`.
    fn stage(&mut self, _burst: &mut Burst, _pool: &mut FramePool) {}

    /// Counts what this port staged and `burst` could not send, once that is known.
    fn learn_refused(&mut self, _burst: &mut Burst) {}

    /// Makes the kernel send what is on the TX ring; takes no time when nothing is.
    fn flush(&mut self);

    /// Takes frames whose sending has ended back into `pool`, and puts free frames from `pool`
    /// where the device will find them.
    fn recycle(&mut self, pool: &mut FramePool);

    /// UMEM that this port's frames live in.
    fn umem(&self) -> UmemId;

    /// Frames that this port holds: on the fill, RX, TX and completion rings.
    fn held(&self) -> usize;

    /// The kernel's own drop counters.
    fn kernel_drops(&self) -> KernelDrops;

    /// What to poll for readability while sleeping; none: this port cannot be slept on.
    fn poll_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;

    /// Lets go of the device without waiting for it. All frames on the rings come back: into
    /// `pool`, or within moments into the depot of their UMEM.
    fn close(self, pool: &mut FramePool)
    where
        Self: Sized;
}
