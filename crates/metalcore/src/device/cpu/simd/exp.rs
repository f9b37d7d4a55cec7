//! The exponential function of numbers that are not positive.

use super::{MOST_LANES, Real, Simd};

/// What [`exp_negative`] is made of, in one type.
pub trait ExpConstants: Sized + 'static {
    /// 1 / ln 2.
    const LOG2_E: Self;
    /// ln 2 to so few digits that its product with an exponent is exact.
    const LN2_HIGH: Self;
    /// ln 2 - LN2_HIGH.
    const LN2_LOW: Self;
    /// Below it the result is 0.
    const LOWEST: Self;
    /// 1.5 times 2 to the number of digits, which leaves an integer in the last bits of a sum, plus the exponent field
    /// of 1 / RESCALE.
    const SHIFTER: Self;
    /// A power of two that brings a result from among the normal numbers to its place: one rounding for subnormal ones.
    const RESCALE: Self;
    /// 1 / k!, from the highest k down to 0.
    const COEFFICIENTS: &'static [Self];
    /// 2 to the power in the last bits of a sum with SHIFTER.
    fn power_of_last_bits(self) -> Self;
}

impl ExpConstants for f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LOWEST: f32 = -104.0;
    const SHIFTER: f32 = 12_582_912.0 + 127.0 + 64.0;
    const RESCALE: f32 = 1.0 / 18_446_744_073_709_551_616.0;
    const COEFFICIENTS: &'static [f32] =
        &[1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

    #[inline(always)]
    fn power_of_last_bits(self) -> f32 {
        f32::from_bits(self.to_bits() << 23)
    }
}

impl ExpConstants for f64 {
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const LOWEST: f64 = -746.0;
    const SHIFTER: f64 = 6_755_399_441_055_744.0 + 1023.0 + 512.0;
    const RESCALE: f64 = f64::from_bits((1023 - 512) << 52);
    const COEFFICIENTS: &'static [f64] = &[
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];

    #[inline(always)]
    fn power_of_last_bits(self) -> f64 {
        f64::from_bits(self.to_bits() << 52)
    }
}

/// e^x of each lane, x <= 0 or NaN: within 2 units in the last place, and 0 where that is nearest.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2: 2^n times the Taylor polynomial of r, whose remainder is a tenth of a unit.
#[inline(always)]
pub fn exp_negative<C: Real, S: Simd>(simd: S, x: C::Vector<S>) -> C::Vector<S> {
    // Not the larger of the two, which may lose a NaN.
    let lowest = C::splat(simd, C::LOWEST);
    let x = C::select(simd, C::less(simd, x, lowest), lowest, x);
    let shifted = C::mul_add(simd, x, C::splat(simd, C::LOG2_E), C::splat(simd, C::SHIFTER));
    let n = C::vsub(simd, shifted, C::splat(simd, C::SHIFTER));
    let r = C::neg_mul_add(simd, n, C::splat(simd, C::LN2_HIGH), x);
    let r = C::neg_mul_add(simd, n, C::splat(simd, C::LN2_LOW), r);
    let (first, rest) = C::COEFFICIENTS.split_first().expect("there are some");
    let mut sum = C::splat(simd, *first);
    for coefficient in rest {
        sum = C::mul_add(simd, sum, r, C::splat(simd, *coefficient));
    }
    C::vmul(simd, C::vmul(simd, sum, powers::<C, S>(simd, shifted)), C::splat(simd, C::RESCALE))
}

#[inline(always)]
fn powers<C: Real, S: Simd>(simd: S, shifted: C::Vector<S>) -> C::Vector<S> {
    let mut lanes = [C::default(); MOST_LANES];
    let used = &mut lanes[..C::lanes::<S>()];
    C::vectors_mut::<S>(used).0[0] = shifted;
    for lane in used.iter_mut() {
        *lane = lane.power_of_last_bits();
    }
    C::load(simd, used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::simd::{WithSimd, dispatch, narrow::for_each_width};

    struct Each<'a, C>(&'a mut [C]);
    impl<C: Real> WithSimd for Each<'_, C> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for x in self.0.chunks_exact_mut(C::lanes::<S>()) {
                let y = exp_negative::<C, S>(simd, C::load(simd, x));
                C::store(simd, y, x);
            }
        }
    }

    /// Down to where the result is 0.
    fn check<C: Real>(step: f64, unit: f64, smallest: f64) {
        let x: Vec<C> = (0..1 << 14).map(|k| C::from_f64(-f64::from(k) * step)).collect();
        let mut y = x.clone();
        dispatch(Each(&mut y));
        for (x, y) in x.iter().zip(&y) {
            let exact = x.to_f64().exp();
            let bound = 4.0 * unit * exact + smallest;
            assert!((y.to_f64() - exact).abs() <= bound, "e^{x:?}: got {y:?}, expected {exact:e}");
        }
        let mut special = [f64::NEG_INFINITY, f64::NAN, 0.0, -1e30].map(C::from_f64).repeat(MOST_LANES);
        dispatch(Each(&mut special));
        for values in special.chunks(4) {
            assert!(values[0] == C::default() && values[1].to_f64().is_nan());
            assert!(values[2] == C::ONE && values[3] == C::default());
        }
    }

    #[test]
    fn exponentials_are_within_two_units() {
        let all = || {
            check::<f32>(1.0 / 128.0 + 1e-5, 2f64.powi(-24), 2f64.powi(-149));
            check::<f64>(1.0 / 20.0 - 1e-5, 2f64.powi(-53), f64::from_bits(1));
        };
        all();
        for_each_width(all);
    }
}
