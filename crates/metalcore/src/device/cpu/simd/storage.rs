//! Stored elements and their conversion to and from the types that are computed in.

use super::Real;
use crate::dtype::Element;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// An element as stored: it is widened to [`Storage::Compute`], computed with, and rounded once.
/// The conversions take slices of equal length; they are as wide as the kernel that they are called from.
pub trait Storage: Element {
    /// Type of sums and products: float64 for float64, else float32.
    type Compute: Real;
    /// The values themselves, if they are float32.
    fn as_f32(_values: &[Self]) -> Option<&[f32]> {
        None
    }
    /// The values themselves, if they are float64.
    fn as_f64(_values: &[Self]) -> Option<&[f64]> {
        None
    }
    /// The values themselves in the compute type, to be written, if they are stored so.
    fn as_compute_mut(_values: &mut [Self]) -> Option<&mut [Self::Compute]> {
        None
    }
    /// Nearest float32 values.
    fn widen_f32(values: &[Self], wide: &mut [f32]);
    /// Exact float64 values.
    fn widen_f64(values: &[Self], wide: &mut [f64]);
    /// Nearest values, ties to even.
    fn narrow_f32(wide: &[f32], values: &mut [Self]);
    /// Nearest values, ties to even.
    fn narrow_f64(wide: &[f64], values: &mut [Self]);
}

/// Element by element. Inlined, so that a kernel's copy of it is compiled for the vectors the kernel runs with.
#[inline(always)]
fn convert<A: Copy, B>(from: &[A], to: &mut [B], element: impl Fn(A) -> B) {
    assert_eq!(from.len(), to.len());
    for (to, from) in to.iter_mut().zip(from) {
        *to = element(*from);
    }
}

impl Storage for f32 {
    type Compute = f32;
    fn as_f32(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }
    fn as_compute_mut(values: &mut [f32]) -> Option<&mut [f32]> {
        Some(values)
    }
    #[inline(always)]
    fn widen_f32(values: &[f32], wide: &mut [f32]) {
        wide.copy_from_slice(values);
    }
    #[inline(always)]
    fn widen_f64(values: &[f32], wide: &mut [f64]) {
        convert(values, wide, f64::from);
    }
    #[inline(always)]
    fn narrow_f32(wide: &[f32], values: &mut [f32]) {
        values.copy_from_slice(wide);
    }
    #[inline(always)]
    fn narrow_f64(wide: &[f64], values: &mut [f32]) {
        convert(wide, values, |wide| wide as f32);
    }
}

impl Storage for f64 {
    type Compute = f64;
    fn as_f64(values: &[f64]) -> Option<&[f64]> {
        Some(values)
    }
    fn as_compute_mut(values: &mut [f64]) -> Option<&mut [f64]> {
        Some(values)
    }
    #[inline(always)]
    fn widen_f32(values: &[f64], wide: &mut [f32]) {
        convert(values, wide, |value| value as f32);
    }
    #[inline(always)]
    fn widen_f64(values: &[f64], wide: &mut [f64]) {
        wide.copy_from_slice(values);
    }
    #[inline(always)]
    fn narrow_f32(wide: &[f32], values: &mut [f64]) {
        convert(wide, values, f64::from);
    }
    #[inline(always)]
    fn narrow_f64(wide: &[f64], values: &mut [f64]) {
        values.copy_from_slice(wide);
    }
}

/// The float32 next to `wide` towards zero, its last bit set where that is not exact ("round to odd"): rounding it
/// again to a narrower type gives what rounding `wide` at once would.
#[inline(always)]
fn f32_rounded_to_odd(wide: f64) -> f32 {
    let nearest = wide as f32;
    let bits = nearest.to_bits();
    let truncated = if f64::from(nearest).abs() > wide.abs() { bits - 1 } else { bits };
    f32::from_bits(truncated | u32::from(f64::from(nearest) != wide))
}

/// The upper half of a float32, rounded to nearest even; a NaN stays one.
#[inline(always)]
fn bf16_from_f32(wide: f32) -> bf16 {
    let bits = wide.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if wide.is_nan() { quiet } else { rounded } as u16)
}

impl Storage for bf16 {
    type Compute = f32;
    #[inline(always)]
    fn widen_f32(values: &[bf16], wide: &mut [f32]) {
        convert(values, wide, |value| f32::from_bits(u32::from(value.to_bits()) << 16));
    }
    #[inline(always)]
    fn widen_f64(values: &[bf16], wide: &mut [f64]) {
        convert(values, wide, |value| f64::from(f32::from_bits(u32::from(value.to_bits()) << 16)));
    }
    #[inline(always)]
    fn narrow_f32(wide: &[f32], values: &mut [bf16]) {
        convert(wide, values, bf16_from_f32);
    }
    #[inline(always)]
    fn narrow_f64(wide: &[f64], values: &mut [bf16]) {
        convert(wide, values, |wide| bf16_from_f32(f32_rounded_to_odd(wide)));
    }
}

impl Storage for f16 {
    type Compute = f32;
    #[inline(always)]
    fn widen_f32(values: &[f16], wide: &mut [f32]) {
        assert_eq!(values.len(), wide.len());
        let done = x86::widen(values, wide);
        values[done..].convert_to_f32_slice(&mut wide[done..]);
    }
    #[inline(always)]
    fn widen_f64(values: &[f16], wide: &mut [f64]) {
        convert(values, wide, f16::to_f64);
    }
    #[inline(always)]
    fn narrow_f32(wide: &[f32], values: &mut [f16]) {
        assert_eq!(wide.len(), values.len());
        let done = x86::narrow(wide, values);
        values[done..].convert_from_f32_slice(&wide[done..]);
    }
    #[inline(always)]
    fn narrow_f64(wide: &[f64], values: &mut [f16]) {
        convert(wide, values, |wide| f16::from_f32(f32_rounded_to_odd(wide)));
    }
}

/// The processor's own conversions of float16, for as many leading elements as they take.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use half::f16;
    use std::arch::x86_64::{
        __m128i, __m256i, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128, _mm256_cvtph_ps, _mm256_cvtps_ph,
        _mm256_loadu_ps, _mm256_loadu_si256, _mm256_storeu_ps, _mm256_storeu_si256, _mm512_cvtph_ps, _mm512_cvtps_ph,
        _mm512_loadu_ps, _mm512_storeu_ps,
    };

    pub fn widen(values: &[f16], wide: &mut [f32]) -> usize {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512.
            unsafe { widen_16(values, wide) }
        } else if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
            // SAFETY: the processor has both.
            unsafe { widen_8(values, wide) }
        } else {
            0
        }
    }

    pub fn narrow(wide: &[f32], values: &mut [f16]) -> usize {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512.
            unsafe { narrow_16(wide, values) }
        } else if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
            // SAFETY: the processor has both.
            unsafe { narrow_8(wide, values) }
        } else {
            0
        }
    }

    #[target_feature(enable = "avx512f")]
    fn widen_16(values: &[f16], wide: &mut [f32]) -> usize {
        let (values, wide) = (values.as_chunks::<16>().0, wide.as_chunks_mut::<16>().0);
        for (value, wide) in values.iter().zip(wide) {
            // SAFETY: both chunks are 16 elements long; no alignment is asked for.
            unsafe {
                let half = _mm256_loadu_si256(value.as_ptr().cast::<__m256i>());
                _mm512_storeu_ps(wide.as_mut_ptr(), _mm512_cvtph_ps(half));
            }
        }
        values.len() * 16
    }

    #[target_feature(enable = "avx512f")]
    fn narrow_16(wide: &[f32], values: &mut [f16]) -> usize {
        let (wide, values) = (wide.as_chunks::<16>().0, values.as_chunks_mut::<16>().0);
        for (wide, value) in wide.iter().zip(values) {
            // SAFETY: both chunks are 16 elements long; no alignment is asked for.
            unsafe {
                let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(wide.as_ptr()));
                _mm256_storeu_si256(value.as_mut_ptr().cast::<__m256i>(), half);
            }
        }
        wide.len() * 16
    }

    #[target_feature(enable = "avx,f16c")]
    fn widen_8(values: &[f16], wide: &mut [f32]) -> usize {
        let (values, wide) = (values.as_chunks::<8>().0, wide.as_chunks_mut::<8>().0);
        for (value, wide) in values.iter().zip(wide) {
            // SAFETY: both chunks are 8 elements long; no alignment is asked for.
            unsafe {
                let half = _mm_loadu_si128(value.as_ptr().cast::<__m128i>());
                _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(half));
            }
        }
        values.len() * 8
    }

    #[target_feature(enable = "avx,f16c")]
    fn narrow_8(wide: &[f32], values: &mut [f16]) -> usize {
        let (wide, values) = (wide.as_chunks::<8>().0, values.as_chunks_mut::<8>().0);
        for (wide, value) in wide.iter().zip(values) {
            // SAFETY: both chunks are 8 elements long; no alignment is asked for.
            unsafe {
                let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(wide.as_ptr()));
                _mm_storeu_si128(value.as_mut_ptr().cast::<__m128i>(), half);
            }
        }
        wide.len() * 8
    }
}
/// Elsewhere the library's conversion does all of it.
#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    use half::f16;

    pub fn widen(_values: &[f16], _wide: &mut [f32]) -> usize {
        0
    }
    pub fn narrow(_wide: &[f32], _values: &mut [f16]) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every finite value of a half type, and points between neighbours: just below, at and just above the middle.
    fn check_rounding<H: Storage<Compute = f32>>(from_bits: impl Fn(u16) -> H, largest: u16) {
        let value = |bits: u16| from_bits(bits).to_f64();
        let mut wide = Vec::new();
        let mut expected = Vec::new();
        for bits in 0..largest {
            let (low, high) = (value(bits), value(bits + 1));
            let middle = (low + high) / 2.0;
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            let points = [(low, bits), (middle - (high - low) * 1e-10, bits), (middle, even), (middle + (high - low) * 1e-10, bits + 1)];
            for (point, rounded) in points {
                wide.extend([point, -point]);
                expected.extend([value(rounded), -value(rounded)]);
            }
        }
        let mut narrow = vec![from_bits(0); wide.len()];
        H::narrow_f64(&wide, &mut narrow);
        let mut back = vec![0.0; wide.len()];
        H::widen_f64(&narrow, &mut back);
        assert_eq!(back, expected);

        // From float32 the same, where the point is one.
        let exact: Vec<usize> = (0..wide.len()).filter(|i| f64::from(wide[*i] as f32) == wide[*i]).collect();
        let singles: Vec<f32> = exact.iter().map(|i| wide[*i] as f32).collect();
        let mut narrow = vec![from_bits(0); singles.len()];
        H::narrow_f32(&singles, &mut narrow);
        let mut back = vec![0.0f32; singles.len()];
        H::widen_f32(&narrow, &mut back);
        assert!(exact.iter().zip(back).all(|(i, back)| f64::from(back) == expected[*i]));
    }

    #[test]
    fn half_types_round_to_nearest_even() {
        check_rounding(f16::from_bits, 0x7bff);
        check_rounding(bf16::from_bits, 0x7f7f);
    }

    #[test]
    fn overflow_gives_infinity_and_nan_stays_nan() {
        fn check<H: Storage<Compute = f32>>() {
            for length in [1, 7, 8, 16, 19, 33] {
                let mut narrow = vec![H::from_f64(0.0); length];
                H::narrow_f32(&vec![f32::MAX; length], &mut narrow);
                assert!(narrow.iter().all(|value| value.to_f64() == f64::INFINITY));
                H::narrow_f32(&vec![f32::from_bits(0xffff_ffff); length], &mut narrow);
                assert!(narrow.iter().all(|value| value.to_f64().is_nan()));
                H::narrow_f64(&vec![-1e300; length], &mut narrow);
                assert!(narrow.iter().all(|value| value.to_f64() == f64::NEG_INFINITY));
                H::narrow_f64(&vec![f64::NAN; length], &mut narrow);
                assert!(narrow.iter().all(|value| value.to_f64().is_nan()));
            }
        }
        check::<f16>();
        check::<bf16>();
    }
}
