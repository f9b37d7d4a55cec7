//! Stores that go past the caches, for results too large to be found there when they are read; loads ahead of time.
//!
//! An ordinary store first reads the line that it changes; a streaming one of whole lines does not, which saves a third
//! of the traffic of reading one array and writing another. Results that fit the last-level cache are better left in
//! it.

use super::{Real, Simd, Storage};
#[cfg(target_arch = "x86_64")]
use {super::MOST_LANES, std::any::TypeId, std::arch::x86_64 as arch};

/// Bytes from which a result is streamed: measured on a processor whose last-level cache has 32 MiB for two cores.
const STREAMED_BYTES: usize = 8 << 20;

/// Whether to stream results to `rows` of `cols` values: if they are large, each row starts on a cache line,
/// and the memory has been written before.
pub fn wanted<T>(rows: &[T], cols: usize) -> bool {
    let whole_lines = (cols * size_of::<T>()).is_multiple_of(64) && rows.as_ptr().align_offset(64) == 0;
    cfg!(target_arch = "x86_64") && whole_lines && size_of_val(rows) >= STREAMED_BYTES && resident(rows)
}

/// Whether memory has been written before, by its page in the middle. The system zeroes a new page when it is first
/// written: then the lines are in the caches, and streaming takes longer.
fn resident<T>(values: &[T]) -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        unsafe extern "C" {
            fn mincore(page: *mut std::ffi::c_void, bytes: usize, found: *mut u8) -> i32;
        }
        const PAGE: usize = 4096;
        let middle = std::ptr::from_ref(&values[values.len() / 2]).cast_mut();
        let mut found = 1;
        // SAFETY: asks about a page that the values reach into; one byte is written for it.
        unsafe { mincore(middle.cast::<u8>().wrapping_sub(middle.addr() % PAGE).cast(), 1, &mut found) };
        found & 1 == 1
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    {
        let _ = values;
        true
    }
}

/// As [`Real::store`], past the caches if the place is aligned to the register's stored size. Call [`finish`] after the
/// last.
#[inline(always)]
pub fn store<C: Real, S: Simd, G: Storage>(simd: S, vector: C::Vector<S>, values: &mut [G]) {
    #[cfg(target_arch = "x86_64")]
    {
        let mut narrow = [G::from_f32(0.0); MOST_LANES];
        C::store(simd, vector, &mut narrow);
        let values = &mut values[..C::lanes::<S>()];
        if stream(TypeId::of::<S>(), &narrow[..values.len()], values) {
            return;
        }
    }
    C::store(simd, vector, values);
}

/// Asks for the cache line of a value that is read soon.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    // SAFETY: reads nothing that the program sees.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        arch::_mm_prefetch::<{ arch::_MM_HINT_T0 }>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Makes streamed values visible to whoever is told about them next.
#[inline(always)]
pub fn finish() {
    // SAFETY: every x86-64 processor has it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        arch::_mm_sfence();
    }
}

/// Copies 64, 32 or 16 bytes to a place aligned to as many; false if it cannot.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn stream<G: Copy>(simd: TypeId, from: &[G], to: &mut [G]) -> bool {
    use pulp::x86::{V3, V4};
    let bytes = size_of_val(from);
    assert!(from.len() == to.len());
    if !to.as_ptr().addr().is_multiple_of(bytes) {
        return false;
    }
    let (from, to) = (from.as_ptr(), to.as_mut_ptr());
    let (v4, v3) = (simd == TypeId::of::<V4>(), simd == TypeId::of::<V3>());
    match bytes {
        // SAFETY: 64 bytes each, the second aligned to 64; a V4 exists only where there is AVX-512.
        64 if v4 => unsafe { arch::_mm512_stream_si512(to.cast(), arch::_mm512_loadu_si512(from.cast())) },
        // SAFETY: 32 bytes each, the second aligned to 32; V3 and V4 exist only where there is AVX2.
        32 if v3 || v4 => unsafe { arch::_mm256_stream_si256(to.cast(), arch::_mm256_loadu_si256(from.cast())) },
        // SAFETY: 16 bytes each, the second aligned to 16; every x86-64 processor has SSE2.
        16 => unsafe { arch::_mm_stream_si128(to.cast(), arch::_mm_loadu_si128(from.cast())) },
        _ => return false,
    }
    true
}
