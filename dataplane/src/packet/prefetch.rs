//! Hints to the cache.
//!
//! One of two uses of `unsafe` outside of the I/O edge: the hint has no safe spelling on the stable
//! toolchain, and it is sound for every address, valid or not.
#![allow(unsafe_code)]

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Asks for the cache line that holds `place` to be brought near, for reading.
#[inline(always)]
pub fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not access memory as far as the program can see; it neither faults
    // nor reads or writes, whatever the address is. SSE is part of every x86_64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks for all lines of `place`, wherever in a line it begins.
#[inline(always)]
pub fn prefetch_whole<T>(place: *const T) {
    let first = place.cast::<u8>();
    for at in (0..size_of::<T>()).step_by(LINE) {
        prefetch(first.wrapping_add(at));
    }
    if align_of::<T>() < LINE {
        prefetch(first.wrapping_add(size_of::<T>().saturating_sub(1)));
    }
}
