//! Our own view of a socket's TX ring.
//!
//! xsk-rs can only send a packet from where one was received or behind it. Encapsulation makes
//! a packet start in front of that, so the descriptors are written here, with any address inside
//! the chunk. The ring is the kernel's memory, mapped a second time; xsk-rs does not touch its
//! own mapping after set-up. Kernels before 6.4 refuse to map a ring of a socket that is bound
//! (EBUSY): there the mapping that libxdp made before it bound the socket is looked up and used.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::socket::{OpenError, xdp_option};

/// A single-producer ring of descriptors whose consumer is the kernel.
#[derive(Debug)]
pub(super) struct TxRing {
    descs: NonNull<libc::xdp_desc>,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    mask: u32,
    /// Index of the next descriptor to be written; the kernel sees it at `publish`.
    next: u32,
    /// What the kernel has been shown.
    published: u32,
    /// The consumer as it was last read.
    consumed: u32,
    /// What to unmap in the end; none: the mapping is libxdp's.
    mapping: Option<(NonNull<libc::c_void>, usize)>,
}

// SAFETY: the pointers are to memory that lives as long as the ring and that only the holder of
// the ring (by `&mut`) writes to; the kernel's indices are atomics.
unsafe impl Send for TxRing {}

impl TxRing {
    /// Maps the TX ring of socket `fd`, which was made with `size` entries. The ring must be
    /// dropped before the socket's queues are.
    pub(super) fn map(fd: RawFd, size: u32) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Option { what: "map the TX ring", source };
        let offsets = xdp_option::<libc::xdp_mmap_offsets>(fd, libc::XDP_MMAP_OFFSETS)
            .map_err(failed)?
            .ok_or_else(|| failed(io::Error::other("this kernel is older than 5.4")))?
            .tx;
        let offset = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let len = offset(offsets.desc) + size as usize * size_of::<libc::xdp_desc>();
        let (base, ours) = match map_again(fd, len) {
            Ok(base) => (base, true),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                (mapped_already(fd, len).map_err(failed)?, false)
            }
            Err(error) => return Err(failed(error)),
        };
        // SAFETY: the kernel's offsets lie inside of the mapping, which has `len` bytes, and are
        // aligned for what they are of. It stays as long as the ring: it is the ring's own, or
        // libxdp's, which lives as long as the queues, and those outlive the ring.
        let ring = unsafe {
            Self::over(
                base.byte_add(offset(offsets.desc)).cast(),
                base.byte_add(offset(offsets.producer)).cast(),
                base.byte_add(offset(offsets.consumer)).cast(),
                base.byte_add(offset(offsets.flags)).cast(),
                size,
            )
        };
        Ok(Self { mapping: ours.then_some((base, len)), ..ring })
    }

    /// A ring over memory that is mapped already.
    ///
    /// # Safety
    /// `size` is a power of two; the pointers are aligned, and valid for as long as the ring is:
    /// `descs` for `size` descriptors that nobody else writes.
    unsafe fn over(
        descs: NonNull<libc::xdp_desc>,
        producer: NonNull<AtomicU32>,
        consumer: NonNull<AtomicU32>,
        flags: NonNull<AtomicU32>,
        size: u32,
    ) -> Self {
        // SAFETY: valid and aligned, says the caller.
        let (next, consumed) = unsafe {
            (producer.as_ref().load(Ordering::Relaxed), consumer.as_ref().load(Ordering::Acquire))
        };
        Self {
            descs,
            producer,
            consumer,
            flags,
            mask: size - 1,
            next,
            published: next,
            consumed,
            mapping: None,
        }
    }

    /// Writes a descriptor: `len` bytes (of a chunk, so they fit) at `addr` of the UMEM. False
    /// when the ring is full.
    #[inline]
    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn push(&mut self, addr: u64, len: usize) -> bool {
        if self.next.wrapping_sub(self.consumed) > self.mask {
            self.refresh();
            if self.next.wrapping_sub(self.consumed) > self.mask {
                return false;
            }
        }
        let slot = (self.next & self.mask) as usize;
        // SAFETY: the slot is inside of the ring, and the kernel does not read it: it is past
        // the published producer and, checked above, not less than a ring ahead of the consumer.
        unsafe { self.descs.add(slot).write(libc::xdp_desc { addr, len: len as u32, options: 0 }) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Descriptors that were written and not shown to the kernel.
    #[inline]
    pub(super) fn unpublished(&self) -> u32 {
        self.next.wrapping_sub(self.published)
    }

    /// Address and length of number `index` of those.
    #[inline]
    pub(super) fn unpublished_at(&self, index: u32) -> Option<(u64, usize)> {
        if index >= self.unpublished() {
            return None;
        }
        let slot = (self.published.wrapping_add(index) & self.mask) as usize;
        // SAFETY: the slot is inside of the ring; it was written by `push`, and the kernel, to which it was not
        // shown, does not write descriptors.
        let desc = unsafe { self.descs.add(slot).read() };
        Some((desc.addr, desc.len as usize))
    }

    /// Takes back all that was written and not shown to the kernel.
    #[inline]
    pub(super) fn forget(&mut self) {
        self.next = self.published;
    }

    /// Shows the kernel what was written; was there anything new?
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        if self.published == self.next {
            return false;
        }
        // SAFETY: valid for as long as the ring. Release: the descriptors are seen before it is.
        unsafe { self.producer.as_ref() }.store(self.next, Ordering::Release);
        self.published = self.next;
        true
    }

    /// Descriptors that were published and that the kernel has not taken yet.
    #[inline]
    pub(super) fn waiting(&mut self) -> u32 {
        self.refresh();
        self.published.wrapping_sub(self.consumed)
    }

    /// Does the kernel want to be told about new descriptors?
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        // SAFETY: valid for as long as the ring.
        unsafe { self.flags.as_ref() }.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    #[inline]
    fn refresh(&mut self) {
        // SAFETY: valid for as long as the ring. Acquire: slots are reused only after this.
        self.consumed = unsafe { self.consumer.as_ref() }.load(Ordering::Acquire);
    }
}

/// A mapping of the TX ring of our own, `len` bytes.
fn map_again(fd: RawFd, len: usize) -> io::Result<NonNull<libc::c_void>> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd,
            libc::XDP_PGOFF_TX_RING,
        )
    };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(map).ok_or_else(|| io::Error::other("the ring was mapped at address 0"))
}

/// The mapping of the TX ring of at least `len` bytes that this process has already.
fn mapped_already(fd: RawFd, len: usize) -> io::Result<NonNull<libc::c_void>> {
    let inode = std::fs::metadata(format!("/proc/self/fd/{fd}"))?.ino();
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let found = find_tx_mapping(&maps, inode).filter(|(_, found)| *found >= len);
    // The address is the kernel's (`mmap`), so its provenance is exposed.
    let base = found.map(|(start, _)| std::ptr::with_exposed_provenance_mut(start));
    base.and_then(NonNull::new)
        .ok_or_else(|| io::Error::other("libxdp's mapping of it is not in /proc/self/maps"))
}

/// Address and length of the mapping of the TX ring of the socket with this inode.
fn find_tx_mapping(maps: &str, inode: u64) -> Option<(usize, usize)> {
    let name = format!("socket:[{inode}]");
    maps.lines().find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let [range, mode, offset, _device, _inode, path] = fields[..] else { return None };
        let ring = i64::from_str_radix(offset, 16).ok()?;
        if path != name || !mode.starts_with("rw") || ring != libc::XDP_PGOFF_TX_RING {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        Some((start, end.checked_sub(start)?))
    })
}

impl Drop for TxRing {
    fn drop(&mut self) {
        if let Some((base, len)) = self.mapping {
            // SAFETY: this is the mapping that `map` made, and no pointer into it outlives us.
            // While it is mapped it keeps the socket open, so it has to go before the queue can
            // be bound again.
            unsafe { libc::munmap(base.as_ptr(), len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's side of a ring of 4.
    struct Kernel {
        indices: &'static [AtomicU32; 3],
        descs: NonNull<libc::xdp_desc>,
    }

    impl Kernel {
        fn ring(start: u32) -> (Self, TxRing) {
            let indices: &'static [AtomicU32; 3] =
                Box::leak(Box::new([start, start, 0].map(AtomicU32::new)));
            let empty = libc::xdp_desc { addr: 0, len: 0, options: 0 };
            let descs = NonNull::from(Box::leak(Box::new([empty; 4]))).cast();
            let [producer, consumer, flags] = indices.each_ref().map(NonNull::from);
            // SAFETY: leaked, aligned, four descriptors.
            let ring = unsafe { TxRing::over(descs, producer, consumer, flags, 4) };
            (Self { indices, descs }, ring)
        }

        fn take(&self) -> Option<(u64, u32)> {
            let [producer, consumer, _] = self.indices;
            let at = consumer.load(Ordering::Relaxed);
            (producer.load(Ordering::Acquire) != at).then(|| {
                // SAFETY: inside of the ring, and published.
                let desc = unsafe { self.descs.add((at & 3) as usize).read() };
                consumer.store(at.wrapping_add(1), Ordering::Release);
                (desc.addr, desc.len)
            })
        }
    }

    #[test]
    fn descriptors_leave_in_order_when_published_across_the_index_wrap() {
        let (kernel, mut ring) = Kernel::ring(u32::MAX - 1);
        for i in 0..4 {
            assert!(ring.push(i, 60));
        }
        assert!(!ring.push(9, 60), "the ring is full");
        assert_eq!(kernel.take(), None, "nothing is published yet");
        assert!(ring.publish() && !ring.publish());
        assert_eq!(ring.waiting(), 4);
        assert_eq!((kernel.take(), kernel.take()), (Some((0, 60)), Some((1, 60))));
        assert_eq!(ring.waiting(), 2);
        assert!(ring.push(4, 61) && ring.push(5, 62) && !ring.push(6, 63));
        ring.publish();
        let rest: Vec<_> = std::iter::from_fn(|| kernel.take()).collect();
        assert_eq!(rest, [(2, 60), (3, 60), (4, 61), (5, 62)]);
        assert_eq!(ring.waiting(), 0);
    }

    #[test]
    fn what_was_not_published_can_be_taken_back() {
        let (kernel, mut ring) = Kernel::ring(u32::MAX);
        assert!(ring.push(1, 60));
        ring.publish();
        assert_eq!((ring.unpublished(), ring.unpublished_at(0)), (0, None));
        assert!(ring.push(2, 61) && ring.push(3, 62));
        let back: Vec<_> = (0..).map_while(|index| ring.unpublished_at(index)).collect();
        assert_eq!(back, [(2, 61), (3, 62)]);
        ring.forget();
        assert!(!ring.publish() && ring.push(4, 63) && ring.publish());
        let left: Vec<_> = std::iter::from_fn(|| kernel.take()).collect();
        assert_eq!(left, [(1, 60), (4, 63)]);
    }

    #[test]
    fn the_mapping_of_a_sockets_tx_ring_is_told_from_others() {
        let maps = "\
7f4ce0a00000-7f4ce0a09000 rw-s 80000000 00:08 4711                       socket:[4711]
7f4ce0b00000-7f4ce0b05000 rw-s 00000000 00:08 4712                       socket:[4712]
7f4ce0b05000-7f4ce0b0a000 rw-s 80000000 00:08 4712                       socket:[4712]
7f4ce0b0a000-7f4ce0b0d000 rw-s 100000000 00:08 4712                      socket:[4712]
7f4ce0c00000-7f4ce0c01000 rw-p 00000000 00:00 0
7f4ce0d00000-7f4ce0d01000 r--p 80000000 08:01 4712                       /usr/lib/a b
";
        assert_eq!(find_tx_mapping(maps, 4712), Some((0x7f4c_e0b0_5000, 0x5000)));
        assert_eq!(find_tx_mapping(maps, 4711), Some((0x7f4c_e0a0_0000, 0x9000)));
        assert_eq!(find_tx_mapping(maps, 471), None);
    }

    #[test]
    fn the_kernel_can_ask_to_be_woken() {
        let (kernel, ring) = Kernel::ring(0);
        assert!(!ring.needs_wakeup());
        kernel.indices[2].store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
        assert!(ring.needs_wakeup());
    }
}
