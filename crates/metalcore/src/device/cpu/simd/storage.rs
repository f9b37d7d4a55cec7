//! Stored elements and their conversion to and from the types that are computed in.
//!
//! The conversions are arithmetic on bits, element by element, which the compiler makes vectors of inside small kernels.
//! On AVX-512 they are written in vectors: float16 has instructions of its own, and in large kernels the compiler leaves
//! those of bfloat16 as they are, at twice the time.

use super::{Real, Simd};
use crate::dtype::Element;
use half::{bf16, f16};
#[cfg(target_arch = "x86_64")]
use {pulp::bytemuck::cast, pulp::x86::V4, std::any::Any, std::arch::x86_64::__m512i};

/// An element as stored: it is widened to [`Storage::Compute`], computed with, and rounded once, to nearest even.
pub trait Storage: Element {
    /// Type of sums and products: float64 for float64, else float32.
    type Compute: Real;

    /// Nearest float32.
    fn to_f32(self) -> f32;
    /// Exact value.
    #[inline(always)]
    fn exact(self) -> f64 {
        f64::from(self.to_f32())
    }
    /// Rounds.
    fn from_f32(value: f32) -> Self;
    /// Rounds once, unlike [`Element::from_f64`] of the half types on some processors.
    fn round_f64(value: f64) -> Self;
    /// The values themselves, if they are float32.
    fn as_f32(_values: &[Self]) -> Option<&[f32]> {
        None
    }
    /// The values themselves, if they are float64.
    fn as_f64(_values: &[Self]) -> Option<&[f64]> {
        None
    }
    /// A register of values, from at least as many.
    #[inline(always)]
    fn load_f32<S: Simd>(_simd: S, values: &[Self]) -> S::f32s {
        let mut wide = [0.0; MOST_F32_LANES];
        for lane in 0..S::F32_LANES {
            wide[lane] = values[lane].to_f32();
        }
        S::as_simd_f32s(&wide[..S::F32_LANES]).0[0]
    }
    /// A register of values, to at least as many places.
    #[inline(always)]
    fn store_f32<S: Simd>(_simd: S, vector: S::f32s, values: &mut [Self]) {
        let mut wide = [0.0; MOST_F32_LANES];
        S::as_mut_simd_f32s(&mut wide[..S::F32_LANES]).0[0] = vector;
        for lane in 0..S::F32_LANES {
            values[lane] = Self::from_f32(wide[lane]);
        }
    }
    /// A register of values, from at least as many.
    #[inline(always)]
    fn load_f64<S: Simd>(_simd: S, values: &[Self]) -> S::f64s {
        let mut wide = [0.0; MOST_F64_LANES];
        for lane in 0..S::F64_LANES {
            wide[lane] = values[lane].exact();
        }
        S::as_simd_f64s(&wide[..S::F64_LANES]).0[0]
    }
    /// A register of values, to at least as many places.
    #[inline(always)]
    fn store_f64<S: Simd>(_simd: S, vector: S::f64s, values: &mut [Self]) {
        let mut wide = [0.0; MOST_F64_LANES];
        S::as_mut_simd_f64s(&mut wide[..S::F64_LANES]).0[0] = vector;
        for lane in 0..S::F64_LANES {
            values[lane] = Self::round_f64(wide[lane]);
        }
    }
}

/// Lanes of the widest register.
const MOST_F32_LANES: usize = 16;
/// Lanes of the widest register.
const MOST_F64_LANES: usize = 8;

impl Storage for f32 {
    type Compute = f32;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn round_f64(value: f64) -> f32 {
        value as f32
    }
    #[inline(always)]
    fn as_f32(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }
    #[inline(always)]
    fn load_f32<S: Simd>(_simd: S, values: &[f32]) -> S::f32s {
        S::as_simd_f32s(&values[..S::F32_LANES]).0[0]
    }
    #[inline(always)]
    fn store_f32<S: Simd>(_simd: S, vector: S::f32s, values: &mut [f32]) {
        S::as_mut_simd_f32s(&mut values[..S::F32_LANES]).0[0] = vector;
    }
}

impl Storage for f64 {
    type Compute = f64;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    fn exact(self) -> f64 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f64 {
        f64::from(value)
    }
    #[inline(always)]
    fn round_f64(value: f64) -> f64 {
        value
    }
    #[inline(always)]
    fn as_f64(values: &[f64]) -> Option<&[f64]> {
        Some(values)
    }
    #[inline(always)]
    fn load_f64<S: Simd>(_simd: S, values: &[f64]) -> S::f64s {
        S::as_simd_f64s(&values[..S::F64_LANES]).0[0]
    }
    #[inline(always)]
    fn store_f64<S: Simd>(_simd: S, vector: S::f64s, values: &mut [f64]) {
        S::as_mut_simd_f64s(&mut values[..S::F64_LANES]).0[0] = vector;
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

impl Storage for bf16 {
    type Compute = f32;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }
    #[inline(always)]
    fn round_f64(value: f64) -> bf16 {
        bf16::from_f32(f32_rounded_to_odd(value))
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn load_f32<S: Simd>(simd: S, values: &[bf16]) -> S::f32s {
        if let Some(v4) = (&simd as &dyn Any).downcast_ref::<V4>() {
            let mut bits = [0; 16];
            for lane in 0..16 {
                bits[lane] = values[lane].to_bits();
            }
            return cast(v4.avx512f._mm512_slli_epi32::<16>(v4.avx512f._mm512_cvtepu16_epi32(cast(bits))));
        }
        let mut wide = [0.0; MOST_F32_LANES];
        for lane in 0..S::F32_LANES {
            wide[lane] = values[lane].to_f32();
        }
        S::as_simd_f32s(&wide[..S::F32_LANES]).0[0]
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn store_f32<S: Simd>(simd: S, vector: S::f32s, values: &mut [bf16]) {
        if let Some(V4 { avx512f: v, .. }) = (&simd as &dyn Any).downcast_ref::<V4>() {
            let wide: __m512i = cast(vector);
            let high = v._mm512_srli_epi32::<16>(wide);
            let odd = v._mm512_and_si512(high, v._mm512_set1_epi32(1));
            let half = v._mm512_add_epi32(odd, v._mm512_set1_epi32(0x7fff));
            let rounded = v._mm512_srli_epi32::<16>(v._mm512_add_epi32(wide, half));
            let nan = v._mm512_cmp_ps_mask::<UNORDERED>(cast(wide), cast(wide));
            let narrow = v._mm512_mask_or_epi32(rounded, nan, high, v._mm512_set1_epi32(0x40));
            let bits: [u16; 16] = cast(v._mm512_cvtepi32_epi16(narrow));
            for lane in 0..16 {
                values[lane] = bf16::from_bits(bits[lane]);
            }
            return;
        }
        let mut wide = [0.0; MOST_F32_LANES];
        S::as_mut_simd_f32s(&mut wide[..S::F32_LANES]).0[0] = vector;
        for lane in 0..S::F32_LANES {
            values[lane] = <bf16 as Storage>::from_f32(wide[lane]);
        }
    }
}

impl Storage for f16 {
    type Compute = f32;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // The exponent's bias grows by 112; that of infinity and NaN by 224.
        let normal = magnitude + (112 << 23) + if magnitude >= 0x7c00 << 13 { 112 << 23 } else { 0 };
        // A subnormal is its bits times 2^-24: made as the difference of two normal numbers.
        let subnormal = f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23);
        let wide = if magnitude < 0x400 << 13 { subnormal.to_bits() } else { normal };
        f32::from_bits(wide | (bits & 0x8000) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f16 {
        let sign = value.to_bits() & 0x8000_0000;
        let bits = value.to_bits() ^ sign;
        // Adding 1/2 leaves 2^-24 as the last bit: the sum rounds as a subnormal should.
        let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let normal = bits.wrapping_sub(112 << 23).wrapping_add(0xfff + (bits >> 13 & 1)) >> 13;
        let not_finite = if bits > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let finite = if bits < 113 << 23 { subnormal } else { normal };
        let narrow = if bits >= 143 << 23 { not_finite } else { finite };
        f16::from_bits((narrow | sign >> 16) as u16)
    }
    #[inline(always)]
    fn round_f64(value: f64) -> f16 {
        <f16 as Storage>::from_f32(f32_rounded_to_odd(value))
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn load_f32<S: Simd>(simd: S, values: &[f16]) -> S::f32s {
        if let Some(v4) = (&simd as &dyn Any).downcast_ref::<V4>() {
            let mut bits = [0; 16];
            for lane in 0..16 {
                bits[lane] = values[lane].to_bits();
            }
            return cast(v4.avx512f._mm512_cvtph_ps(cast(bits)));
        }
        let mut wide = [0.0; MOST_F32_LANES];
        for lane in 0..S::F32_LANES {
            wide[lane] = values[lane].to_f32();
        }
        S::as_simd_f32s(&wide[..S::F32_LANES]).0[0]
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn store_f32<S: Simd>(simd: S, vector: S::f32s, values: &mut [f16]) {
        if let Some(v4) = (&simd as &dyn Any).downcast_ref::<V4>() {
            let bits: [u16; 16] = cast(v4.avx512f._mm512_cvtps_ph::<NEAREST_EVEN>(cast(vector)));
            for lane in 0..16 {
                values[lane] = f16::from_bits(bits[lane]);
            }
            return;
        }
        let mut wide = [0.0; MOST_F32_LANES];
        S::as_mut_simd_f32s(&mut wide[..S::F32_LANES]).0[0] = vector;
        for lane in 0..S::F32_LANES {
            values[lane] = <f16 as Storage>::from_f32(wide[lane]);
        }
    }
}
#[cfg(target_arch = "x86_64")]
const NEAREST_EVEN: i32 = std::arch::x86_64::_MM_FROUND_TO_NEAREST_INT;
#[cfg(target_arch = "x86_64")]
const UNORDERED: i32 = std::arch::x86_64::_CMP_UNORD_Q;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::simd::{WithSimd, dispatch, narrow::for_each_width};

    /// Rounds values of C to H and widens them again, by registers and one by one.
    struct RoundTrip<'a, C, H>(&'a [C], &'a mut [H], &'a mut [C]);
    impl<C: Real, H: Storage> WithSimd for RoundTrip<'_, C, H> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let RoundTrip(wide, narrow, back) = self;
            let lanes = C::lanes::<S>();
            for ((wide, narrow), back) in wide.chunks(lanes).zip(narrow.chunks_mut(lanes)).zip(back.chunks_mut(lanes)) {
                if wide.len() == lanes {
                    C::store(simd, C::load(simd, wide), narrow);
                    C::store(simd, C::load(simd, narrow), back);
                } else {
                    C::store_part(simd, C::load_part(simd, wide), narrow);
                    C::store_part(simd, C::load_part(simd, narrow), back);
                }
            }
        }
    }

    fn round_trip<C: Real, H: Storage>(wide: &[C]) -> Vec<C> {
        let mut narrow = vec![H::from_f64(0.0); wide.len()];
        let mut back = vec![C::default(); wide.len()];
        dispatch(RoundTrip(wide, &mut narrow, &mut back));
        let one_by_one: Vec<H> = wide.iter().map(|wide| wide.put()).collect();
        let same = |(a, b): (&H, &H)| {
            a.to_f64().to_bits() == b.to_f64().to_bits() || a.to_f64().is_nan() && b.to_f64().is_nan()
        };
        assert!(narrow.iter().zip(&one_by_one).all(same));
        back
    }

    /// Every finite value of a half type, and points between neighbours: just below, at and just above the middle.
    fn check_rounding<H: Storage>(from_bits: impl Fn(u16) -> H, largest: u16) {
        let value = |bits: u16| from_bits(bits).to_f64();
        let mut wide = Vec::new();
        let mut expected = Vec::new();
        for bits in 0..largest {
            let (low, high) = (value(bits), value(bits + 1));
            let (middle, little) = ((low + high) / 2.0, (high - low) * 1e-10);
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            for (point, rounded) in [(low, bits), (middle - little, bits), (middle, even), (middle + little, bits + 1)]
            {
                wide.extend([point, -point]);
                expected.extend([value(rounded), -value(rounded)]);
            }
        }
        assert_eq!(round_trip::<f64, H>(&wide), expected);
        let exact: Vec<usize> = (0..wide.len()).filter(|i| f64::from(wide[*i] as f32) == wide[*i]).collect();
        let singles: Vec<f32> = exact.iter().map(|i| wide[*i] as f32).collect();
        let back = round_trip::<f32, H>(&singles);
        assert!(exact.iter().zip(back).all(|(i, back)| f64::from(back).to_bits() == expected[*i].to_bits()));
    }

    #[test]
    fn half_types_round_to_nearest_even() {
        let check = || {
            check_rounding(f16::from_bits, 0x7bff);
            check_rounding(bf16::from_bits, 0x7f7f);
        };
        check();
        for_each_width(check);
    }

    #[test]
    fn overflow_gives_infinity_and_nan_stays_nan() {
        fn check<H: Storage>() {
            for length in [1, 7, 8, 16, 19, 33] {
                assert!(round_trip::<f32, H>(&vec![f32::MAX; length]).iter().all(|value| *value == f32::INFINITY));
                let negative = round_trip::<f32, H>(&vec![f32::NEG_INFINITY; length]);
                assert!(negative.iter().all(|value| *value == f32::NEG_INFINITY));
                let nan = f32::from_bits(0xffff_ffff);
                assert!(round_trip::<f32, H>(&vec![nan; length]).iter().all(|value| value.is_nan()));
                assert!(round_trip::<f64, H>(&vec![-1e300; length]).iter().all(|value| *value == f64::NEG_INFINITY));
                assert!(round_trip::<f64, H>(&vec![f64::NAN; length]).iter().all(|value| value.is_nan()));
            }
        }
        check::<f16>();
        check::<bf16>();
    }
}
