//! Memory for large tables: plain data in one mapping of its own.
//!
//! A table of a million flows wants huge pages, since with pages of 4 KiB nearly every look at it
//! misses the TLB as well as the cache; and it wants to be faulted in before the first packet. What
//! is in a region is plain data without pointers and destructors, so that a later process can take
//! over the bytes.
//!
//! With `io/af_xdp` and `prefetch.rs` one of the few places with `unsafe`: mapping memory, and
//! seeing it as a slice.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::AnyBitPattern;
use thiserror::Error;

/// Bytes of a page. Every processor that AF_XDP runs on can map pages of this size.
const PAGE: usize = 4096;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Why there is no memory.
#[derive(Debug, Error)]
pub enum RegionError {
    /// More than can be addressed.
    #[error("a table of {len} entries of {entry} bytes each cannot be addressed")]
    TooLarge {
        /// Entries asked for.
        len: usize,
        /// Bytes of one.
        entry: usize,
    },
    /// The kernel refused.
    #[error("cannot map {bytes} bytes for a table (is there that much memory?)")]
    Map {
        /// Bytes asked for.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A slice of fixed length in a mapping of its own, page-aligned, all zero at first.
#[derive(Debug)]
pub struct Region<T: AnyBitPattern> {
    /// First entry; start of the mapping, when there is one.
    base: NonNull<T>,
    len: usize,
    /// Bytes mapped; 0 when there is no mapping.
    mapped: usize,
    huge: bool,
    _entries: PhantomData<T>,
}

// SAFETY: a region owns its memory as a Box<[T]> does; nothing else refers to the mapping.
unsafe impl<T: AnyBitPattern + Send> Send for Region<T> {}
// SAFETY: as above; a shared region gives out shared slices only.
unsafe impl<T: AnyBitPattern + Sync> Sync for Region<T> {}

impl<T: AnyBitPattern> Region<T> {
    /// Maps `len` entries of zeroes. Huge pages are asked for when the region can hold one; where
    /// the system refuses them it has normal ones.
    ///
    /// The memory is reserved, not yet taken: see [`Region::touch`].
    ///
    /// # Errors
    /// When the size cannot be addressed or the kernel refuses the mapping.
    pub fn new(len: usize) -> Result<Self, RegionError> {
        const {
            assert!(size_of::<T>() > 0, "entries have a size");
            assert!(align_of::<T>() <= PAGE, "a page boundary is aligned for every entry");
        }
        let too_large = || RegionError::TooLarge { len, entry: size_of::<T>() };
        let bytes = len
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE))
            // A slice has at most isize::MAX bytes; some are left for alignment.
            .filter(|bytes| *bytes <= isize::MAX as usize - HUGE)
            .ok_or_else(too_large)?;
        let Some(size) = NonZeroUsize::new(bytes) else {
            let base = NonNull::dangling();
            return Ok(Self { base, len: 0, mapped: 0, huge: false, _entries: PhantomData });
        };
        let base = if bytes >= HUGE { map_aligned(size)? } else { map(size)? };
        let huge = bytes >= HUGE && advise_huge(base, bytes);
        Ok(Self { base: base.cast(), len, mapped: bytes, huge, _entries: PhantomData })
    }

    /// Has the kernel every page find its memory now, instead of at the first use. Contents stay.
    pub fn touch(&mut self) {
        let start = self.base.cast::<u8>().as_ptr();
        for at in (0..self.mapped).step_by(PAGE) {
            // SAFETY: `at` is below the length of the mapping, which is readable and writable,
            // and `&mut self` makes this the only access. The byte is written back as it was.
            unsafe {
                let place = start.add(at);
                place.write_volatile(place.read_volatile());
            }
        }
    }

    /// Did the system accept the request for huge pages? It then uses them when it has some;
    /// regions of less than 2 MiB do not ask.
    #[must_use]
    pub fn huge_pages_accepted(&self) -> bool {
        self.huge
    }

    /// Bytes of address space, whole pages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.mapped
    }
}

/// Maps `size` bytes (a multiple of the page size), at any page.
fn map(size: NonZeroUsize) -> Result<NonNull<u8>, RegionError> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that
    // exists.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size.get(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    let refused = || RegionError::Map { bytes: size.get(), source: io::Error::last_os_error() };
    if start == libc::MAP_FAILED {
        return Err(refused());
    }
    NonNull::new(start.cast()).ok_or_else(refused)
}

/// As [`map`], at a boundary of a huge page: maps more and gives the ends back.
fn map_aligned(size: NonZeroUsize) -> Result<NonNull<u8>, RegionError> {
    let whole = map(size.saturating_add(HUGE))?;
    let before = whole.align_offset(HUGE).min(HUGE);
    let after = HUGE - before;
    // SAFETY: `before + size` is at most the length of the mapping just made.
    let (base, end) = unsafe { (whole.add(before), whole.add(before + size.get())) };
    // SAFETY: both ends lie in the mapping just made and outside of what is kept, are whole pages,
    // and nobody has seen them yet.
    unsafe {
        unmap(whole, before);
        unmap(end, after);
    }
    Ok(base)
}

/// # Safety
/// `bytes` bytes from `start` must be whole pages of a mapping of this module that nothing refers
/// to.
unsafe fn unmap(start: NonNull<u8>, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the caller's promise. It can only fail for arguments that are no mapping.
        unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
    }
}

/// Asks for huge pages; says whether the kernel took the advice.
fn advise_huge(base: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: the range is a mapping of this module; the advice changes how it is backed, not what
    // is in it.
    unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) == 0 }
}

impl<T: AnyBitPattern> Deref for Region<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `base` is aligned and valid for `len` entries (or dangling, with a length of 0).
        // The mapping began as zeroes and only values of T have been written since; for types
        // with AnyBitPattern all bytes are a value. It lives as long as `self`, and while it is shared there is
        // no `&mut self` to write through.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl<T: AnyBitPattern> DerefMut for Region<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl<T: AnyBitPattern> Drop for Region<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's own, made of whole pages, and ends with it. Entries
        // are plain data and need no destructor.
        unsafe { unmap(self.base.cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
    #[repr(C, align(64))]
    struct Line([u64; 8]);

    #[test]
    fn a_region_is_zero_aligned_and_keeps_what_is_written() {
        // Less than a huge page, exactly one, not a whole number of them.
        for len in [1, 63, 64, 65, HUGE / 64, HUGE / 64 * 3 + 1] {
            let mut region = Region::<Line>::new(len).unwrap();
            assert_eq!(region.len(), len);
            let page = if len * 64 >= HUGE { HUGE } else { PAGE };
            assert_eq!(region.as_ptr().addr() % page, 0);
            assert_eq!(region.bytes(), (len * 64).next_multiple_of(PAGE));
            assert!(region.iter().all(|line| *line == Line([0; 8])));
            for (n, line) in region.iter_mut().enumerate() {
                line.0[n % 8] = n as u64 + 1;
            }
            region.touch();
            for (n, line) in region.iter().enumerate() {
                assert_eq!(line.0.iter().sum::<u64>(), n as u64 + 1);
            }
        }
    }

    #[test]
    fn touched_memory_is_resident() {
        let mut region = Region::<Line>::new(HUGE / 64 * 2).unwrap();
        let resident = |region: &Region<Line>| {
            let mut pages = vec![0_u8; region.bytes() / PAGE];
            // SAFETY: the range is the region's mapping, and there is a byte for each of its pages.
            let result = unsafe {
                libc::mincore(region.as_ptr().cast_mut().cast(), region.bytes(), pages.as_mut_ptr())
            };
            assert_eq!(result, 0);
            pages.iter().filter(|page| **page & 1 == 1).count()
        };
        assert_eq!(resident(&region), 0);
        region.touch();
        assert_eq!(resident(&region), region.bytes() / PAGE);
    }

    #[test]
    fn small_regions_do_not_ask_for_huge_pages() {
        assert!(!Region::<u8>::new(HUGE - PAGE).unwrap().huge_pages_accepted());
        // Larger ones do; whether they are accepted is the system's choice.
        let _ = Region::<u8>::new(HUGE).unwrap().huge_pages_accepted();
    }

    #[test]
    fn a_region_goes_away_with_its_owner() {
        let is_mapped_after_drop = || {
            let region = Region::<u8>::new(HUGE * 4).unwrap();
            let (start, bytes) = (region.as_ptr(), region.bytes());
            drop(region);
            let mut pages = vec![0_u8; bytes / PAGE];
            // SAFETY: mincore only looks at the page tables, and there is a byte for each page. It
            // fails with ENOMEM when a page is not mapped.
            unsafe { libc::mincore(start.cast_mut().cast(), bytes, pages.as_mut_ptr()) == 0 }
        };
        // Another thread may have mapped something at the same place by then, but not every time.
        assert!((0..100).any(|_| !is_mapped_after_drop()));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(matches!(
            Region::<u64>::new(usize::MAX / 2),
            Err(RegionError::TooLarge { entry: 8, .. })
        ));
        assert!(matches!(Region::<u8>::new(1 << 60), Err(RegionError::Map { .. })));
    }

    #[test]
    fn an_empty_region_has_no_mapping() {
        let mut region = Region::<u64>::new(0).unwrap();
        region.touch();
        assert!(region.is_empty());
        assert_eq!(region.bytes(), 0);
    }
}
