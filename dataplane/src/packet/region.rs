//! Memory for large tables: plain data in one mapping of its own ([`Region`]), or pages that
//! versions of a table share ([`Shared`]).
//!
//! A table of a million flows wants huge pages, since with pages of 4 KiB nearly every look at it
//! misses the TLB as well as the cache; and it wants to be faulted in before the first packet. What
//! is in a region is plain data without pointers and destructors, so that a later process can take
//! over the bytes.
//!
//! With `io/af_xdp` and `prefetch.rs` one of the few places with `unsafe`: mapping memory, and
//! seeing it as a slice.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of places for a [`Shared`] value and its count, ascending: one takes a page and three
/// cache lines, the larger ones 16, 64 and 128 KiB with a little. Odd numbers of lines, so that the same
/// line of all values does not compete for a few places of the cache.
const PLACES: [usize; 7] =
    [5 * LINE, 11 * LINE, 33 * LINE, 67 * LINE, 257 * LINE, 1025 * LINE, 2049 * LINE];

/// The number of the smallest places that take `size` bytes.
const fn class_of(size: usize) -> usize {
    let mut class = 0;
    while class + 1 < PLACES.len() && PLACES[class] < size {
        class += 1;
    }
    class
}

/// A page of a table in huge pages, owned together with others, as [`std::sync::Arc`] does it.
///
/// The allocator would strew the pages of a table over the whole heap, among the objects that the
/// table was made of; a reader would miss the TLB at nearly every look. Here all pages of all
/// tables stand side by side in regions of 2 MiB.
#[derive(Debug)]
pub struct Shared<T> {
    at: NonNull<Counted<T>>,
    _owned: PhantomData<Counted<T>>,
}

#[derive(Debug)]
#[repr(C)]
struct Counted<T> {
    owners: AtomicUsize,
    value: T,
}

// SAFETY: as for an Arc: it gives out shared references, and whoever is last drops the value.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    const CLASS: usize = class_of(size_of::<Counted<T>>());

    /// Memory that a value takes, bytes.
    pub const BYTES: usize = PLACES[Self::CLASS];

    /// Takes a place for `value`. As for a Box, the process ends when there is no memory.
    pub fn new(value: T) -> Self {
        const {
            assert!(size_of::<Counted<T>>() <= Self::BYTES, "a value with its count fits a place");
            assert!(align_of::<Counted<T>>() <= LINE, "places begin with a cache line");
        }
        let at = lock_places(Self::CLASS).take().cast::<Counted<T>>();
        // SAFETY: the place is large enough, aligned (both checked above) and nobody else's.
        unsafe { at.write(Counted { owners: AtomicUsize::new(1), value }) };
        Self { at, _owned: PhantomData }
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: the place holds a value as long as it has an owner, and `self` is one.
        unsafe { self.at.as_ref() }
    }

    /// Are both owners of one value?
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || **self == **other
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T: Default> Default for Shared<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Clone> Shared<T> {
    /// The value, to be changed; a copy of it first, if there are other owners.
    pub fn make_mut(&mut self) -> &mut T {
        // Acquire: what former owners read, they have read.
        if self.counted().owners.load(Ordering::Acquire) != 1 {
            *self = Self::new(T::clone(self));
        }
        // SAFETY: this is the only owner, and it is borrowed mutably: nobody can become another one.
        unsafe { &mut self.at.as_mut().value }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        // There cannot be more owners than bytes of memory, so the count does not overflow.
        self.counted().owners.fetch_add(1, Ordering::Relaxed);
        Self { at: self.at, _owned: PhantomData }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Release: what this owner read, it has read before another one ends the value.
        if self.counted().owners.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: that was the last owner; nobody refers to the value or its place any more.
        unsafe { self.at.drop_in_place() };
        lock_places(Self::CLASS).give_back(self.at.cast());
    }
}

/// Regions and what is free in them. Taken and given back by whoever changes tables, never by a
/// packet.
#[derive(Debug)]
struct Places {
    /// Bytes of one.
    size: usize,
    /// By first address; those with free places are in `open` too.
    regions: BTreeMap<usize, Carved>,
    open: BTreeSet<usize>,
}

/// A region in places.
#[derive(Debug)]
struct Carved {
    /// Keeps the places mapped.
    _memory: Region<[u8; LINE]>,
    free: Vec<NonNull<u8>>,
}

// SAFETY: the free places are memory of the region, to which nobody else refers.
unsafe impl Send for Carved {}

/// By class.
static PLACES_IN_USE: [Mutex<Places>; PLACES.len()] = {
    let [a, b, c, d, e, f, g] = PLACES;
    [
        Places::of(a),
        Places::of(b),
        Places::of(c),
        Places::of(d),
        Places::of(e),
        Places::of(f),
        Places::of(g),
    ]
};

fn lock_places(class: usize) -> MutexGuard<'static, Places> {
    // Nothing in there can panic half way.
    PLACES_IN_USE[class].lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    const fn of(size: usize) -> Mutex<Self> {
        Mutex::new(Self { size, regions: BTreeMap::new(), open: BTreeSet::new() })
    }

    /// Places of a region.
    const fn of_region(&self) -> usize {
        HUGE / self.size
    }

    /// A place in the first region that has one, so that later regions empty.
    fn take(&mut self) -> NonNull<u8> {
        loop {
            let Some(start) = self.open.first().copied() else {
                self.add_region();
                continue;
            };
            let free = self.regions.get_mut(&start).and_then(|region| region.free.pop());
            if let Some(place) = free {
                return place;
            }
            self.open.remove(&start);
        }
    }

    fn add_region(&mut self) {
        let layout = Layout::new::<[u8; HUGE]>();
        let Ok(memory) = Region::<[u8; LINE]>::new(HUGE / LINE) else { handle_alloc_error(layout) };
        let base = memory.base.cast::<u8>();
        // The last first, as they are taken from the end.
        // SAFETY: all places lie in the region.
        let free = (0..self.of_region()).rev().map(|n| unsafe { base.add(n * self.size) });
        let free = free.collect();
        self.open.insert(base.addr().get());
        self.regions.insert(base.addr().get(), Carved { _memory: memory, free });
    }

    fn give_back(&mut self, place: NonNull<u8>) {
        // Regions begin at a boundary of their size.
        let start = place.addr().get() & !(HUGE - 1);
        let all = self.of_region();
        let Some(region) = self.regions.get_mut(&start) else { return };
        region.free.push(place);
        self.open.insert(start);
        // One region is kept, so that a table that comes and goes does not map and unmap.
        if region.free.len() == all && self.open.len() > 1 {
            self.open.remove(&start);
            self.regions.remove(&start);
        }
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

    /// Counts how many of it there are.
    #[derive(Debug)]
    struct Token(std::sync::Arc<()>, [u64; 500]);

    impl Clone for Token {
        fn clone(&self) -> Self {
            Self(self.0.clone(), self.1)
        }
    }

    #[test]
    fn a_shared_value_is_copied_for_a_change_and_ends_with_its_last_owner() {
        let count = std::sync::Arc::new(());
        let mut first = Shared::new(Token(count.clone(), [7; 500]));
        first.make_mut().1[0] = 1;
        let second = first.clone();
        assert!(first.is_same(&second));
        assert_eq!(std::sync::Arc::strong_count(&count), 2);
        first.make_mut().1[499] = 2;
        assert!(!first.is_same(&second));
        assert_eq!(std::sync::Arc::strong_count(&count), 3);
        assert_eq!((first.1[0], first.1[499]), (1, 2));
        assert_eq!((second.1[0], second.1[499]), (1, 7));
        drop(first);
        std::thread::spawn(move || drop(second)).join().unwrap();
        assert_eq!(std::sync::Arc::strong_count(&count), 1);
    }

    #[test]
    fn shared_values_keep_apart() {
        let of_region = (HUGE / Shared::<[u64; 512]>::BYTES) as u64;
        let mut values: Vec<_> = (0..of_region + 10).map(|n| Shared::new([n; 512])).collect();
        for round in 1..4 {
            // Every other one goes, and what comes takes their places among the others.
            let mut keep = false;
            values.retain(|_| {
                keep = !keep;
                keep
            });
            values.extend((0..of_region).map(|n| Shared::new([n + round * 10_000; 512])));
        }
        for value in &values {
            assert!(value.iter().all(|number| *number == value[0]));
        }
        let starts: BTreeSet<_> = values.iter().map(|value| value.at.addr()).collect();
        assert_eq!(starts.len(), values.len());
    }

    #[test]
    fn places_are_taken_again_and_empty_regions_go() {
        for size in PLACES {
            take_again(Places::of(size).into_inner().unwrap());
        }
    }

    fn take_again(mut places: Places) {
        let all = places.of_region();
        let mut taken: Vec<_> = (0..all * 3 + 10).map(|_| places.take()).collect();
        assert_eq!(places.regions.len(), 4);
        assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), taken.len());
        assert!(taken.iter().all(|place| place.addr().get() % LINE == 0));
        for place in taken.split_off(all) {
            places.give_back(place);
        }
        // The full one, and an empty one in reserve.
        assert_eq!(places.regions.len(), 2);
        let again = places.take();
        assert!(!taken.contains(&again));
        assert_eq!(places.regions.len(), 2);
    }

    #[test]
    fn owners_come_and_go_on_all_threads() {
        let value = Shared::new([3_u64; 64]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mut mine = value.clone();
                scope.spawn(move || {
                    for n in 0..10_000 {
                        let other = mine.clone();
                        if n % 100 == 0 {
                            mine.make_mut()[5] = n;
                            assert_eq!((mine[5], mine[6]), (n, 3));
                        }
                        drop(other);
                    }
                });
            }
        });
        assert_eq!(*value, [3; 64]);
    }
}
