//! How many chunks a UMEM may have.
//!
//! Every socket on a UMEM costs the kernel about 128 bytes for *every* chunk in it, so chunks
//! and sockets multiply:
//!
//! ```text
//! bytes = chunks * (2048 + 128 * sockets) + sockets * rings
//! ```
//!
//! With 250 pods, 4 workers with an uplink and a host queue each, and the UMEM's own anchor:
//! 259 sockets, 35,200 bytes for a chunk, and 48 KB of rings for a socket: 512 MB are
//! 14,848 chunks, of which each port holds at least 32 on its fill ring. Half of a million
//! chunks, which 1 GB of plain packet memory would be, would cost 16 GB.

use crate::packet::frame::CHUNK;
use crate::packet::pool::MAGAZINE;

/// Kernel memory that each socket on a UMEM costs for each chunk of it, bytes.
pub const KERNEL_BYTES_PER_CHUNK: u64 = 128;

/// More chunks than this serve nobody: 32 MB of packets are 15 ms of 16 Gbit/s.
pub const MAX_CHUNKS: u32 = 16_384;

/// Entries of the rings of one socket, each a power of two. Fill and completion ring have the
/// same size for all sockets of a UMEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSizes {
    /// Received frames.
    pub rx: u32,
    /// Frames to be sent.
    pub tx: u32,
    /// Free frames for receiving.
    pub fill: u32,
    /// Frames that were sent.
    pub completion: u32,
}

impl Default for RingSizes {
    /// For a queue that is polled many times a millisecond.
    fn default() -> Self {
        Self { rx: 512, tx: 512, fill: 1024, completion: 1024 }
    }
}

impl RingSizes {
    /// Kernel memory of the four rings, bytes: whole pages each, with 320 bytes of indices.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let pages = |entries: u32, size: u64| (u64::from(entries) * size + 320).div_ceil(4096);
        4096 * (pages(self.rx, 16)
            + pages(self.tx, 16)
            + pages(self.fill, 8)
            + pages(self.completion, 8))
    }
}

/// What one UMEM for so many sockets looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Chunks of the UMEM.
    pub chunks: u32,
    /// Free frames that each port keeps for receiving, however idle it is.
    pub fill_min: u32,
    /// Frames that busy ports may hold above their `fill_min`, all ports together.
    pub fill_extra: u32,
    /// Memory when all sockets are open, the kernel's included, bytes.
    pub bytes: u64,
}

/// The budget does not carry so many sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{budget} bytes of packet memory are too few for {sockets} AF_XDP sockets, which need at \
     least {needed}: raise the memory budget or lower the number of endpoints"
)]
pub struct BudgetTooSmall {
    /// Bytes allowed.
    pub budget: u64,
    /// Sockets wanted.
    pub sockets: u32,
    /// Bytes that the smallest useful UMEM takes.
    pub needed: u64,
}

/// The largest UMEM for `sockets` ports (and the UMEM's own anchor) that stays within `budget`
/// bytes, kernel memory included.
///
/// # Errors
/// [`BudgetTooSmall`] when not even 32 chunks for each socket fit.
pub fn plan_chunks(
    sockets: u32,
    budget: u64,
    rings: RingSizes,
) -> Result<MemoryPlan, BudgetTooSmall> {
    let with_anchor = u64::from(sockets) + 1;
    let per_chunk = CHUNK as u64 + KERNEL_BYTES_PER_CHUNK * with_anchor;
    let ring_bytes = rings.bytes() * with_anchor;
    let least = u64::from(sockets.max(4)) * 32;
    let affordable = budget.saturating_sub(ring_bytes) / per_chunk;
    let chunks = affordable.min(u64::from(MAX_CHUNKS)) / MAGAZINE as u64 * MAGAZINE as u64;
    if chunks < least {
        let needed = (least + MAGAZINE as u64) * per_chunk + ring_bytes;
        return Err(BudgetTooSmall { budget, sockets, needed });
    }
    let chunks = u32::try_from(chunks).unwrap_or(MAX_CHUNKS);
    // 5/8 for what every port holds at least, 1/8 for packets under way in the workers, the rest
    // for ports that are busy.
    let share = (chunks / 8 * 5 / sockets.max(1)).clamp(16, 64);
    let fill_min = 1 << share.ilog2();
    let fill_extra = chunks - (chunks / 8).min(chunks) - (fill_min * sockets).min(chunks / 8 * 7);
    let bytes = u64::from(chunks) * per_chunk + ring_bytes;
    Ok(MemoryPlan { chunks, fill_min, fill_extra, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn two_hundred_and_fifty_pods_on_four_workers_fit_in_512_mb() {
        let plan = plan_chunks(258, 512 * MB, RingSizes::default()).unwrap();
        assert!(plan.bytes <= 512 * MB && plan.bytes > 500 * MB, "{plan:?}");
        assert_eq!((plan.chunks, plan.fill_min), (14_848, 32));
        assert!(plan.fill_min * 258 + plan.fill_extra <= plan.chunks / 8 * 7 + 8);
    }

    #[test]
    fn few_sockets_get_the_largest_useful_umem() {
        let plan = plan_chunks(12, 512 * MB, RingSizes::default()).unwrap();
        assert_eq!((plan.chunks, plan.fill_min), (MAX_CHUNKS, 64));
        assert!(plan.fill_extra > 12_000);
    }

    #[test]
    fn a_budget_that_starves_every_port_is_refused_with_what_would_do() {
        let refused = plan_chunks(258, 64 * MB, RingSizes::default()).unwrap_err();
        assert!(refused.needed > 64 * MB);
        let plan = plan_chunks(258, refused.needed, RingSizes::default()).unwrap();
        assert!(plan.bytes <= refused.needed && plan.fill_min * 258 < plan.chunks);
    }
}
