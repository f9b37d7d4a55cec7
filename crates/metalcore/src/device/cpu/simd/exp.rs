//! The exponential function of arguments that are not positive: what softmax, sigmoids and normal distributions need.
//!
//! exp(x) = 2^n e^r, n the integer next to x / ln 2, r = x - n ln 2 in two products; e^r = 1 + r + r^2 P(r), P by
//! interpolation in Chebyshev points. The error is below 1 unit in the last place. 2^n is made a power of two too large
//! by a sum that leaves the biased exponent in the last bits, and scaled back: subnormal results are rounded, and what
//! is below them becomes 0. NaN stays NaN. Bits are shifted lane by lane: the compiler makes a vector of it.

use super::{MOST_LANES, Real, Simd};

#[allow(clippy::excessive_precision, reason = "nine digits name a float32, seventeen a float64")]
const EXP_F32: [f32; 5] = [0.5, 0.166_665_763, 0.041_666_552_4, 0.008_363_232_95, 0.001_392_625_04];
#[allow(clippy::excessive_precision, reason = "nine digits name a float32, seventeen a float64")]
const EXP_F64: [f64; 10] = [
    0.500_000_000_000_000_1,
    0.166_666_666_666_666_69,
    0.041_666_666_666_623_824,
    0.008_333_333_333_330_039,
    0.001_388_888_891_736_708_1,
    0.000_198_412_698_631_715_57,
    2.480_152_105_786_820_4e-5,
    2.755_726_827_690_569_6e-6,
    2.762_020_159_103_154_7e-7,
    2.510_047_250_569_499_6e-8,
];

/// c0 + c1 x + c2 x^2 + ...
#[inline(always)]
pub fn polynomial<C: Real, S: Simd, const N: usize>(simd: S, x: C::Vector<S>, coefficients: &[C; N]) -> C::Vector<S> {
    let mut sum = C::splat(simd, coefficients[N - 1]);
    for coefficient in coefficients[..N - 1].iter().rev() {
        sum = C::mul_add(simd, sum, x, C::splat(simd, *coefficient));
    }
    sum
}

/// e^r scaled as `power` says, r = x - n ln 2.
#[inline(always)]
fn scaled<C: Real, S: Simd, const N: usize>(
    simd: S,
    x: C::Vector<S>,
    n: C::Vector<S>,
    ln2: [C; 2],
    coefficients: &[C; N],
    [power, back]: [C::Vector<S>; 2],
) -> C::Vector<S> {
    let r = C::neg_mul_add(simd, n, C::splat(simd, ln2[0]), x);
    let r = C::neg_mul_add(simd, n, C::splat(simd, ln2[1]), r);
    let p = polynomial::<C, S, N>(simd, r, coefficients);
    let e = C::mul_add(simd, C::vmul(simd, r, r), p, r);
    C::vmul(simd, C::mul_add(simd, e, power, power), back)
}

/// exp(x), x <= 0.
#[inline(always)]
pub(super) fn exp_f32<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Twice a power of two is 2^24: the last bit of `shifted` counts 1. At 0 the exponent is 0, and so is the result.
    const SHIFT: f32 = 12_582_912.0 + 127.0 + 64.0;
    let lowest = simd.splat_f32s(-132.0);
    let x = simd.select_f32s(simd.less_than_f32s(x, lowest), lowest, x);
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(SHIFT));
    let n = simd.sub_f32s(shifted, simd.splat_f32s(SHIFT));
    let mut lanes = [0f32; MOST_LANES];
    f32::store(simd, shifted, &mut lanes);
    for lane in &mut lanes[..S::F32_LANES] {
        *lane = f32::from_bits(lane.to_bits() << 23);
    }
    let power = f32::load(simd, &lanes);
    let back = simd.splat_f32s(f32::power_of_two(-64));
    scaled::<f32, S, 5>(simd, x, n, [std::f32::consts::LN_2, -1.904_654_3e-9], &EXP_F32, [power, back])
}

/// exp(x), x <= 0.
#[inline(always)]
pub(super) fn exp_f64<S: Simd>(simd: S, x: S::f64s) -> S::f64s {
    const SHIFT: f64 = 6_755_399_441_055_744.0 + 1023.0 + 512.0;
    let lowest = simd.splat_f64s(-1060.0);
    let x = simd.select_f64s(simd.less_than_f64s(x, lowest), lowest, x);
    let shifted = simd.mul_add_e_f64s(x, simd.splat_f64s(std::f64::consts::LOG2_E), simd.splat_f64s(SHIFT));
    let n = simd.sub_f64s(shifted, simd.splat_f64s(SHIFT));
    let mut lanes = [0f64; MOST_LANES];
    f64::store(simd, shifted, &mut lanes);
    for lane in &mut lanes[..S::F64_LANES] {
        *lane = f64::from_bits(lane.to_bits() << 52);
    }
    let power = f64::load(simd, &lanes);
    let back = simd.splat_f64s(f64::power_of_two(-512));
    scaled::<f64, S, 10>(simd, x, n, [std::f64::consts::LN_2, 2.319_046_813_846_299_6e-17], &EXP_F64, [power, back])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::simd::{WithSimd, dispatch, narrow::for_each_width};

    struct Exp<'a, C>(&'a [C], &'a mut [C]);
    impl<C: Real> WithSimd for Exp<'_, C> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let lanes = C::lanes::<S>();
            for (x, y) in self.0.chunks(lanes).zip(self.1.chunks_mut(lanes)) {
                C::store_part(simd, C::vexp(simd, C::load_part(simd, x)), y);
            }
        }
    }

    fn exp<C: Real>(x: &[C]) -> Vec<C> {
        let mut y = vec![C::default(); x.len()];
        dispatch(Exp(x, &mut y));
        y
    }

    #[test]
    fn it_is_within_one_unit_in_the_last_place() {
        let check = || {
            let x: Vec<f32> = (0..40_000).map(|i| -i as f32 / 370.0).collect();
            for (x, y) in x.iter().zip(exp(&x)) {
                let exact = f64::from(*x).exp();
                let unit = (f64::from(f32::EPSILON) * exact).max(2f64.powi(-149));
                assert!((f64::from(y) - exact).abs() <= unit, "exp({x}) is {y:e}, not {exact:e}");
            }
            let x: Vec<f64> = (0..40_000).map(|i| -f64::from(i) / 53.0).collect();
            for (x, y) in x.iter().zip(exp(&x)) {
                let unit = (2.0 * f64::EPSILON * x.exp()).max(2f64.powi(-1074));
                assert!((y - x.exp()).abs() <= unit, "exp({x}) is {y:e}, not {:e}", x.exp());
            }
        };
        check();
        for_each_width(check);
    }

    #[test]
    fn limits_and_nan() {
        let y = exp(&[0.0f32, f32::NEG_INFINITY, f32::MIN, f32::NAN]);
        assert!(y[..3] == [1.0, 0.0, 0.0] && y[3].is_nan());
        let y = exp(&[0.0f64, f64::NEG_INFINITY, f64::MIN, f64::NAN]);
        assert!(y[..3] == [1.0, 0.0, 0.0] && y[3].is_nan());
    }
}
