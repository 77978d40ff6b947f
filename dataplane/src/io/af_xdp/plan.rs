//! How many chunks a UMEM may have.
//!
//! Every socket on a UMEM costs the kernel 128 bytes for *every* chunk in it, so chunks and
//! sockets multiply; and the kernel takes them in one piece, which it rounds up to a power of two
//! (of pages, up to 4 MB):
//!
//! ```text
//! bytes = chunks * 2048 + sockets * (round_up(chunks * 128) + rings)
//! ```
//!
//! With 250 pods, 4 workers with an uplink queue each, a host queue and the UMEM's own anchor
//! there are 256 sockets with 128 KB of rings each. 8192 chunks cost each socket 1 MB: 304 MB in
//! all. One chunk more, and each costs 2 MB: 560 MB, which is over a budget of 512 MB. (Measured,
//! without the rounding taken into account: 15,040 chunks, 255 sockets, 518 MB of slab.) Half a
//! million chunks, which 1 GB of plain packet memory would be, would cost 17 GB.
//!
//! So where one UMEM for all cannot be large, each worker gets one: a socket then costs only what
//! its own worker's chunks do. Four UMEMs of 8192 chunks are four times the packet memory for
//! 355 MB in all. The price: a packet that crosses from one worker's port to another's is copied.

use crate::packet::frame::CHUNK;
use crate::packet::pool::MAGAZINE;

/// Kernel memory that each socket on a UMEM costs for each chunk of it, bytes.
pub const KERNEL_BYTES_PER_CHUNK: u64 = 128;

/// The largest piece that the kernel's allocator rounds up to a power of two, bytes; larger ones
/// are made of single pages.
const LARGEST_PIECE: u64 = 4 << 20;

/// Kernel memory that one socket costs on a UMEM of so many chunks, without its rings, bytes.
#[must_use]
pub fn kernel_bytes_per_socket(chunks: u32) -> u64 {
    let bytes = KERNEL_BYTES_PER_CHUNK * u64::from(chunks);
    if bytes <= LARGEST_PIECE { bytes.next_power_of_two() } else { bytes.next_multiple_of(4096) }
}

/// More chunks than this serve nobody: 32 MB of packets are 15 ms of 16 Gbit/s.
pub const MAX_CHUNKS: u32 = 16_384;

/// Fewer chunks than this for each port leave none for packets under way.
const FEWEST_CHUNKS: u32 = 30;

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
    /// For a queue that is polled many times a millisecond. A TCP sender that nothing holds back has its
    /// receiver's whole window under way, up to 6 MB in Linux: some 4,300 packets that must find room.
    fn default() -> Self {
        Self { rx: 4096, tx: 512, fill: 4096, completion: 1024 }
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

/// What the UMEMs for so many sockets look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// UMEMs: one for all workers, or one for each.
    pub umems: u32,
    /// Chunks of each UMEM.
    pub chunks: u32,
    /// Free frames that each port keeps for receiving, however idle it is.
    pub fill_min: u32,
    /// Frames that busy ports may hold above their `fill_min`, all ports of a UMEM together.
    pub fill_extra: u32,
    /// Memory when all sockets are open, the kernel's included, bytes.
    pub bytes: u64,
}

impl MemoryPlan {
    /// Free frames that an uplink queue keeps: bursts from the network are larger than a pod's.
    #[must_use]
    pub fn uplink_fill_min(&self) -> u32 {
        (self.chunks / 16).clamp(64, 1024)
    }
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

/// The most packet memory for `sockets` ports of `workers` workers (and each UMEM's own anchor)
/// that stays within `budget` bytes, kernel memory included. One UMEM if it can be as large as is
/// of use, else one for each worker.
///
/// # Errors
/// [`BudgetTooSmall`] when not even 30 chunks for each socket fit.
pub fn plan_chunks(
    sockets: u32,
    workers: u32,
    budget: u64,
    rings: RingSizes,
) -> Result<MemoryPlan, BudgetTooSmall> {
    let one = plan_umems(1, sockets, budget, rings);
    if workers < 2 || matches!(one, Ok(plan) if plan.chunks == MAX_CHUNKS) {
        return one;
    }
    let split = plan_umems(workers, sockets, budget, rings);
    match (one, split) {
        (Ok(one), Ok(split)) => Ok(if split.chunks * workers > one.chunks { split } else { one }),
        (one, split) => one.or(split),
    }
}

fn plan_umems(
    umems: u32,
    sockets: u32,
    budget: u64,
    rings: RingSizes,
) -> Result<MemoryPlan, BudgetTooSmall> {
    let bytes = |chunks: u32| {
        let sockets = u64::from(sockets) + u64::from(umems);
        u64::from(umems) * u64::from(chunks) * CHUNK as u64
            + sockets * (kernel_bytes_per_socket(chunks) + rings.bytes())
    };
    // Of one UMEM.
    let sockets_here = sockets.div_ceil(umems).max(1);
    let magazine = u32::try_from(MAGAZINE).unwrap_or(u32::MAX);
    let least = sockets_here.max(4).saturating_mul(FEWEST_CHUNKS).next_multiple_of(magazine);
    let mut sizes = (least / magazine..=MAX_CHUNKS / magazine).rev().map(|n| n * magazine);
    let Some(chunks) = sizes.find(|chunks| bytes(*chunks) <= budget) else {
        return Err(BudgetTooSmall { budget, sockets, needed: bytes(least) });
    };
    // 5/8 for what every port holds at least, 1/8 for packets under way in the workers, the rest
    // for ports that are busy.
    let share = (chunks / 8 * 5 / sockets_here).clamp(16, 64);
    let fill_min = 1 << share.ilog2();
    let fill_extra = chunks - chunks / 8 - (fill_min * sockets_here).min(chunks / 8 * 7);
    Ok(MemoryPlan { umems, chunks, fill_min, fill_extra, bytes: bytes(chunks) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn two_hundred_and_fifty_pods_fit_in_512_mb() {
        let one = plan_chunks(252, 1, 512 * MB, RingSizes::default()).unwrap();
        assert_eq!((one.umems, one.chunks, one.fill_min), (1, 8192, 16), "{one:?}");
        assert_eq!(one.bytes / MB, 300);
        let four = plan_chunks(255, 4, 512 * MB, RingSizes::default()).unwrap();
        assert_eq!((four.umems, four.chunks, four.fill_min), (4, 8192, 64), "{four:?}");
        assert_eq!(four.bytes / MB, 355);
        for (plan, sockets) in [(one, 252), (four, 64)] {
            assert!(plan.fill_min * sockets + plan.fill_extra <= plan.chunks / 8 * 7, "{plan:?}");
        }
    }

    #[test]
    fn the_kernel_rounds_what_a_socket_costs() {
        assert_eq!(kernel_bytes_per_socket(8192), MB);
        assert_eq!(kernel_bytes_per_socket(8193), 2 * MB);
        assert_eq!(kernel_bytes_per_socket(65_537), 65_537 * 128 + 3968);
    }

    #[test]
    fn few_sockets_get_the_largest_useful_umem() {
        let plan = plan_chunks(12, 4, 512 * MB, RingSizes::default()).unwrap();
        assert_eq!((plan.umems, plan.chunks, plan.fill_min), (1, MAX_CHUNKS, 64));
        assert!(plan.fill_extra > 12_000);
    }

    #[test]
    fn a_budget_that_starves_every_port_is_refused_with_what_would_do() {
        let refused = plan_chunks(258, 1, 64 * MB, RingSizes::default()).unwrap_err();
        assert!(refused.needed > 64 * MB);
        let plan = plan_chunks(258, 1, refused.needed, RingSizes::default()).unwrap();
        assert!(plan.bytes <= refused.needed && plan.fill_min * 258 < plan.chunks);
    }
}
