//! The exponential: e^x = 2^n e^r with n the integer next to x / ln 2 and |r| <= ln 2 / 2, e^r by a polynomial. Within
//! 2 units in the last place; 0 where n would be below that of a normal number, infinity where it overflows, NaN for
//! NaN.

use super::{MOST_LANES, Real, Simd};

/// Adding it leaves the nearest integer, and the exponent's bias, in the last bits.
const SHIFT_F32: f32 = 12_582_912.0 + 127.0;
const SHIFT_F64: f64 = 6_755_399_441_055_744.0 + 1023.0;

/// e^r, from r^2 on by interpolation in Chebyshev points: within 2^-28.
const POLYNOMIAL_F32: [f32; 7] = [1.0, 1.0, 0.5, 1.666_657_6e-1, 4.166_655_2e-2, 8.363_233e-3, 1.392_625e-3];
/// 2^f, likewise.
const POLYNOMIAL_2_F32: [f32; 7] =
    [1.0, 6.931_472e-1, 2.402_265e-1, 5.550_357e-2, 9.618_083e-3, 1.339_086_3e-3, 1.545_316_3e-4];
/// Inverse factorials of 2 to 13.
const POLYNOMIAL_F64: [f64; 12] = [
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5_040.0,
    1.0 / 40_320.0,
    1.0 / 362_880.0,
    1.0 / 3_628_800.0,
    1.0 / 39_916_800.0,
    1.0 / 479_001_600.0,
    1.0 / 6_227_020_800.0,
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

/// 2^n from the sum of n and the shift.
#[inline(always)]
fn power_f32<S: Simd>(simd: S, shifted: S::f32s) -> S::f32s {
    simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23)))
}

#[inline(always)]
fn power_f64<S: Simd>(_simd: S, shifted: S::f64s) -> S::f64s {
    // No shift of 64-bit lanes by name: element by element, which the compiler makes vectors of.
    let mut lanes = [0.0; MOST_LANES];
    S::as_mut_simd_f64s(&mut lanes[..S::F64_LANES]).0[0] = shifted;
    for lane in &mut lanes[..S::F64_LANES] {
        *lane = f64::from_bits(lane.to_bits() << 52);
    }
    S::as_simd_f64s(&lanes[..S::F64_LANES]).0[0]
}

/// Of r next to 0.
#[inline(always)]
fn exp_near_0<S: Simd>(simd: S, r: S::f64s) -> S::f64s {
    let p = polynomial::<f64, S, 12>(simd, r, &POLYNOMIAL_F64);
    simd.mul_add_e_f64s(simd.mul_f64s(p, r), r, simd.add_f64s(r, simd.splat_f64s(1.0)))
}

#[inline(always)]
pub fn exp_f32<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Where 2^n is infinite, and 0.
    let x = f32::at_least(simd, f32::at_most(simd, x, simd.splat_f32s(89.0)), simd.splat_f32s(-88.0));
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(SHIFT_F32));
    let n = simd.sub_f32s(shifted, simd.splat_f32s(SHIFT_F32));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(2.121_944_4e-4), r);
    let p = polynomial::<f32, S, 7>(simd, r, &POLYNOMIAL_F32);
    simd.mul_f32s(p, power_f32(simd, shifted))
}

#[inline(always)]
pub fn exp_f64<S: Simd>(simd: S, x: S::f64s) -> S::f64s {
    // Where 2^n is infinite, and 0.
    let x = f64::at_least(simd, f64::at_most(simd, x, simd.splat_f64s(710.0)), simd.splat_f64s(-709.0));
    let shifted = simd.mul_add_e_f64s(x, simd.splat_f64s(std::f64::consts::LOG2_E), simd.splat_f64s(SHIFT_F64));
    let n = simd.sub_f64s(shifted, simd.splat_f64s(SHIFT_F64));
    let r = simd.mul_add_e_f64s(n, simd.splat_f64s(-6.931_471_803_691_238e-1), x);
    let r = simd.mul_add_e_f64s(n, simd.splat_f64s(-1.908_214_929_270_587_7e-10), r);
    simd.mul_f64s(exp_near_0(simd, r), power_f64(simd, shifted))
}

/// 2^x for n of -127 to 128.
#[inline(always)]
pub fn exp2_f32<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let shifted = simd.add_f32s(x, simd.splat_f32s(SHIFT_F32));
    let f = simd.sub_f32s(x, simd.sub_f32s(shifted, simd.splat_f32s(SHIFT_F32)));
    let p = polynomial::<f32, S, 7>(simd, f, &POLYNOMIAL_2_F32);
    simd.mul_f32s(p, power_f32(simd, shifted))
}

/// 2^x for n of -1023 to 1024.
#[inline(always)]
pub fn exp2_f64<S: Simd>(simd: S, x: S::f64s) -> S::f64s {
    let shifted = simd.add_f64s(x, simd.splat_f64s(SHIFT_F64));
    let f = simd.sub_f64s(x, simd.sub_f64s(shifted, simd.splat_f64s(SHIFT_F64)));
    let p = exp_near_0(simd, simd.mul_f64s(f, simd.splat_f64s(std::f64::consts::LN_2)));
    simd.mul_f64s(p, power_f64(simd, shifted))
}

#[cfg(test)]
mod tests {
    use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch, narrow::for_each_width};

    struct Exp<'a, C>(&'a mut [C]);
    impl<C: Real> WithSimd for Exp<'_, C> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for part in self.0.chunks_mut(C::lanes::<S>()) {
                let x = C::load_part(simd, part);
                C::store_part(simd, C::vexp(simd, x), part);
            }
        }
    }

    struct Exp2<'a, C>(&'a mut [C]);
    impl<C: Real> WithSimd for Exp2<'_, C> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for part in self.0.chunks_mut(C::lanes::<S>()) {
                let x = C::load_part(simd, part);
                C::store_part(simd, C::vexp2(simd, x), part);
            }
        }
    }

    fn check<C: Real>(range: f64) {
        let x: Vec<C> = (-4000..4000).map(|i| C::from_f64(f64::from(i) / 4000.0 * range)).collect();
        let mut y = x.clone();
        dispatch(Exp(&mut y));
        for (x, y) in x.iter().zip(&y) {
            let exact = x.to_f64().exp();
            let error = (y.to_f64() - exact).abs() / exact;
            assert!(error <= 4.0 * C::DTYPE.unit_roundoff(), "exp({x:?}) = {y:?}, expected {exact:e}");
        }
        let limit = if C::DTYPE.size() == 8 { 1022.0 } else { 126.0 };
        let x: Vec<C> = (-4000..4000).map(|i| C::from_f64(f64::from(i) / 4000.0 * limit)).collect();
        let mut y = x.clone();
        dispatch(Exp2(&mut y));
        for (x, y) in x.iter().zip(&y) {
            let exact = x.to_f64().exp2();
            let error = (y.to_f64() - exact).abs() / exact;
            assert!(error <= 4.0 * C::DTYPE.unit_roundoff(), "2^{x:?} = {y:?}, expected {exact:e}");
        }
        let mut ends = [limit + 2.0, -limit - 1.0, f64::NAN].map(C::from_f64);
        dispatch(Exp2(&mut ends));
        let ends = ends.map(|y| y.to_f64());
        assert!(ends[..2] == [f64::INFINITY, 0.0] && ends[2].is_nan());
        let mut special = [f64::NEG_INFINITY, f64::INFINITY, f64::NAN, 0.0, -1e30, 1e30].map(C::from_f64);
        dispatch(Exp(&mut special));
        let special = special.map(|y| y.to_f64());
        assert_eq!(
            [special[0], special[1], special[3], special[4], special[5]],
            [0.0, f64::INFINITY, 1.0, 0.0, f64::INFINITY]
        );
        assert!(special[2].is_nan());
    }

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place() {
        let all = || {
            check::<f32>(87.0);
            check::<f64>(708.0);
        };
        all();
        for_each_width(all);
    }
}
