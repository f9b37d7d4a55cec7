//! Vectors of the host processor, chosen at run time, and the conversions between stored and computed types.
//!
//! A kernel is a struct that implements [`pulp::WithSimd`]; [`dispatch`] runs it compiled for the widest vectors the
//! processor has (AVX-512, AVX2 with FMA, NEON, or one element at a time). [`Real`] names the vector operations once
//! for float32 and float64. Products and sums written `mul_add` are fused where the processor can.

mod exp;
mod storage;
pub mod stream;

pub use exp::polynomial;
use pulp::bytemuck::Pod;
pub use pulp::{Simd, WithSimd};
pub use storage::Storage;

/// Runs a kernel with the widest vectors of this processor.
#[inline]
pub fn dispatch<K: WithSimd>(kernel: K) -> K::Output {
    #[cfg(test)]
    if let Some(width) = narrow::FORCED.get() {
        return width.run(kernel);
    }
    pulp::Arch::new().dispatch(kernel)
}

/// Lanes of the widest register.
const MOST_LANES: usize = 16;

/// A type to compute in: float32 or float64.
pub trait Real:
    Storage<Compute = Self>
    + Pod
    + Default
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
{
    /// A register of them.
    type Vector<S: Simd>: Copy + Send + Sync + std::fmt::Debug + Pod;
    /// A truth value for each lane.
    type Mask<S: Simd>: Copy;
    /// 1.
    const ONE: Self;

    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
    /// Whether the sign bit is set, also of a zero.
    fn is_sign_negative(self) -> bool;
    /// Two to the `exponent`, in the range of normal numbers.
    fn power_of_two(exponent: i32) -> Self;
    /// The values themselves, if they have this type.
    fn borrow<G: Storage>(values: &[G]) -> Option<&[Self]>;
    /// Nearest value of this type.
    fn get<G: Storage>(value: G) -> Self;
    /// Rounds to the stored type, to nearest even.
    fn put<G: Storage>(self) -> G;

    /// Elements in a register.
    fn lanes<S: Simd>() -> usize;
    /// Whole registers, and the rest.
    fn vectors<S: Simd>(values: &[Self]) -> (&[Self::Vector<S>], &[Self]);
    /// Whole registers, and the rest.
    fn vectors_mut<S: Simd>(values: &mut [Self]) -> (&mut [Self::Vector<S>], &mut [Self]);
    /// A register, from at least as many stored values.
    fn load<S: Simd, G: Storage>(simd: S, values: &[G]) -> Self::Vector<S>;
    /// Rounds a register, to nearest even, to at least as many places.
    fn store<S: Simd, G: Storage>(simd: S, vector: Self::Vector<S>, values: &mut [G]);
    /// At most a register of values, then zeros.
    #[inline(always)]
    fn load_part<S: Simd, G: Storage>(simd: S, values: &[G]) -> Self::Vector<S> {
        let mut padded = [Self::default(); MOST_LANES];
        for (padded, value) in padded.iter_mut().zip(values) {
            *padded = Self::get(*value);
        }
        Self::load(simd, &padded)
    }
    /// The first lanes, at most a register.
    #[inline(always)]
    fn store_part<S: Simd, G: Storage>(simd: S, vector: Self::Vector<S>, values: &mut [G]) {
        let mut padded = [Self::default(); MOST_LANES];
        Self::store(simd, vector, &mut padded);
        for (value, padded) in values.iter_mut().zip(padded) {
            *value = padded.put();
        }
    }
    /// The same value in each lane.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// a + b
    fn vadd<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a - b
    fn vsub<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a * b
    fn vmul<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a / b
    fn vdiv<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// The smaller.
    fn vmin<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// The larger.
    fn vmax<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a * b + c
    fn mul_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// c - a * b
    fn neg_mul_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// Square root of each lane, correctly rounded.
    fn vsqrt<S: Simd>(simd: S, a: Self::Vector<S>) -> Self::Vector<S>;
    /// e to the power of each lane; 0 below the exponents of normal numbers.
    fn vexp<S: Simd>(simd: S, a: Self::Vector<S>) -> Self::Vector<S>;
    /// 2 to the power of each lane: not above 128 nor below -127, where it is infinite and 0 (float64: 1024, -1023).
    fn vexp2<S: Simd>(simd: S, a: Self::Vector<S>) -> Self::Vector<S>;
    /// Magnitude of each lane.
    fn vabs<S: Simd>(simd: S, a: Self::Vector<S>) -> Self::Vector<S>;
    /// The magnitude of `a` with the sign opposite to that of `b`.
    fn opposite_sign<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a < b
    fn less<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Mask<S>;
    /// a = b
    fn equal<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Mask<S>;
    /// Whether a lane is true.
    fn any<S: Simd>(simd: S, mask: Self::Mask<S>) -> bool;
    /// `yes` where true, else `no`.
    fn select<S: Simd>(simd: S, mask: Self::Mask<S>, yes: Self::Vector<S>, no: Self::Vector<S>) -> Self::Vector<S>;
    /// The smaller; NaN where `a` is.
    #[inline(always)]
    fn at_most<S: Simd>(simd: S, a: Self::Vector<S>, most: Self::Vector<S>) -> Self::Vector<S> {
        // Instructions for vectors give NaN, or the second operand, where one is NaN; those for one element the other.
        if Self::lanes::<S>() > 1 {
            return Self::vmin(simd, most, a);
        }
        Self::select(simd, Self::less(simd, most, a), most, a)
    }
    /// The larger; NaN where `a` is.
    #[inline(always)]
    fn at_least<S: Simd>(simd: S, a: Self::Vector<S>, least: Self::Vector<S>) -> Self::Vector<S> {
        if Self::lanes::<S>() > 1 {
            return Self::vmax(simd, least, a);
        }
        Self::select(simd, Self::less(simd, a, least), least, a)
    }
    /// Sum of the lanes, in a fixed order.
    fn sum<S: Simd>(simd: S, a: Self::Vector<S>) -> Self;
    /// Largest lane.
    fn largest<S: Simd>(simd: S, a: Self::Vector<S>) -> Self;
    /// From four registers that hold, one after the other, one quadruple for each lane, to the registers of first,
    /// second, third and fourth members. The order of the lanes is the processor's; [`Real::to_quadruples`] undoes it.
    fn from_quadruples<S: Simd>(simd: S, quadruples: [Self::Vector<S>; 4]) -> [Self::Vector<S>; 4];
    /// The inverse of [`Real::from_quadruples`].
    fn to_quadruples<S: Simd>(simd: S, members: [Self::Vector<S>; 4]) -> [Self::Vector<S>; 4];
}

macro_rules! real {
    ($t:ident, $bits:ident, $vector:ident, $mask:ident, $lanes:ident, bias $bias:literal, mantissa $mantissa:literal;
     unary { $($unary_name:ident = $unary:ident),* }
     binary { $($binary_name:ident = $binary:ident),* }
     ternary { $($ternary_name:ident = $ternary:ident),* }
     reduction { $($reduction_name:ident = $reduction:ident),* }
     quadruples { $($quad_name:ident = $quad:ident),* }
     $borrow:ident, $get:expr, $put:ident, $as_vectors:ident, $as_vectors_mut:ident, $load:ident, $store:ident,
     $splat:ident, $less:ident, $equal:ident, $first_true:ident, $select:ident, $and:ident, $or:ident, $not:ident, $abs:ident, $exp:ident, $exp2:ident) => {
        impl Real for $t {
            type Vector<S: Simd> = S::$vector;
            type Mask<S: Simd> = S::$mask;
            const ONE: $t = 1.0;

            $(#[inline(always)]
            fn $unary_name<S: Simd>(simd: S, a: S::$vector) -> S::$vector {
                simd.$unary(a)
            })*
            $(#[inline(always)]
            fn $binary_name<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$binary(a, b)
            })*
            $(#[inline(always)]
            fn $ternary_name<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$ternary(a, b, c)
            })*
            $(#[inline(always)]
            fn $reduction_name<S: Simd>(simd: S, a: S::$vector) -> $t {
                simd.$reduction(a)
            })*
            $(#[inline(always)]
            fn $quad_name<S: Simd>(simd: S, a: [S::$vector; 4]) -> [S::$vector; 4] {
                simd.$quad(a)
            })*
            #[inline(always)]
            fn sqrt(self) -> $t {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> $t {
                $t::abs(self)
            }
            #[inline(always)]
            fn is_sign_negative(self) -> bool {
                $t::is_sign_negative(self)
            }
            #[inline(always)]
            fn power_of_two(exponent: i32) -> $t {
                $t::from_bits(((exponent + $bias) as $bits) << $mantissa)
            }
            #[inline(always)]
            fn borrow<G: Storage>(values: &[G]) -> Option<&[$t]> {
                G::$borrow(values)
            }
            #[inline(always)]
            fn get<G: Storage>(value: G) -> $t {
                $get(value)
            }
            #[inline(always)]
            fn put<G: Storage>(self) -> G {
                G::$put(self)
            }
            #[inline(always)]
            fn vexp<S: Simd>(simd: S, a: S::$vector) -> S::$vector {
                exp::$exp(simd, a)
            }
            #[inline(always)]
            fn vexp2<S: Simd>(simd: S, a: S::$vector) -> S::$vector {
                exp::$exp2(simd, a)
            }
            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }
            #[inline(always)]
            fn vectors<S: Simd>(values: &[$t]) -> (&[S::$vector], &[$t]) {
                S::$as_vectors(values)
            }
            #[inline(always)]
            fn vectors_mut<S: Simd>(values: &mut [$t]) -> (&mut [S::$vector], &mut [$t]) {
                S::$as_vectors_mut(values)
            }
            #[inline(always)]
            fn load<S: Simd, G: Storage>(simd: S, values: &[G]) -> S::$vector {
                G::$load(simd, values)
            }
            #[inline(always)]
            fn store<S: Simd, G: Storage>(simd: S, vector: S::$vector, values: &mut [G]) {
                G::$store(simd, vector, values);
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: $t) -> S::$vector {
                simd.$splat(value)
            }
            #[inline(always)]
            fn opposite_sign<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$or(simd.$and(simd.$splat(-0.0), simd.$not(b)), simd.$abs(a))
            }
            #[inline(always)]
            fn less<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$mask {
                simd.$less(a, b)
            }
            #[inline(always)]
            fn equal<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$mask {
                simd.$equal(a, b)
            }
            #[inline(always)]
            fn any<S: Simd>(simd: S, mask: S::$mask) -> bool {
                simd.$first_true(mask) < S::$lanes
            }
            #[inline(always)]
            fn select<S: Simd>(simd: S, mask: S::$mask, yes: S::$vector, no: S::$vector) -> S::$vector {
                simd.$select(mask, yes, no)
            }
        }
    };
}
real! {
    f32, u32, f32s, m32s, F32_LANES, bias 127, mantissa 23;
    unary { vsqrt = sqrt_f32s, vabs = abs_f32s }
    binary { vadd = add_f32s, vsub = sub_f32s, vmul = mul_f32s, vdiv = div_f32s, vmin = min_f32s, vmax = max_f32s }
    ternary { mul_add = mul_add_e_f32s, neg_mul_add = negate_mul_add_e_f32s }
    reduction { sum = reduce_sum_f32s, largest = reduce_max_f32s }
    quadruples { from_quadruples = deinterleave_shfl_f32s, to_quadruples = interleave_shfl_f32s }
    as_f32, Storage::to_f32, from_f32, as_simd_f32s, as_mut_simd_f32s, load_f32, store_f32,
    splat_f32s, less_than_f32s, equal_f32s, first_true_m32s, select_f32s, and_f32s, or_f32s, not_f32s, abs_f32s, exp_f32, exp2_f32
}
real! {
    f64, u64, f64s, m64s, F64_LANES, bias 1023, mantissa 52;
    unary { vsqrt = sqrt_f64s, vabs = abs_f64s }
    binary { vadd = add_f64s, vsub = sub_f64s, vmul = mul_f64s, vdiv = div_f64s, vmin = min_f64s, vmax = max_f64s }
    ternary { mul_add = mul_add_e_f64s, neg_mul_add = negate_mul_add_e_f64s }
    reduction { sum = reduce_sum_f64s, largest = reduce_max_f64s }
    quadruples { from_quadruples = deinterleave_shfl_f64s, to_quadruples = interleave_shfl_f64s }
    as_f64, Storage::exact, round_f64, as_simd_f64s, as_mut_simd_f64s, load_f64, store_f64,
    splat_f64s, less_than_f64s, equal_f64s, first_true_m64s, select_f64s, and_f64s, or_f64s, not_f64s, abs_f64s, exp_f64, exp2_f64
}

/// Lets tests run kernels as on a lesser processor.
#[cfg(test)]
pub(crate) mod narrow {
    use super::{Simd, WithSimd};
    use std::cell::Cell;

    #[derive(Clone, Copy, Debug)]
    pub enum Width {
        OneElement,
        #[cfg(target_arch = "x86_64")]
        Avx2(pulp::x86::V3),
    }

    thread_local! {
        pub static FORCED: Cell<Option<Width>> = const { Cell::new(None) };
    }

    impl Width {
        pub fn run<K: WithSimd>(self, kernel: K) -> K::Output {
            match self {
                Width::OneElement => Simd::vectorize(pulp::Scalar, kernel),
                #[cfg(target_arch = "x86_64")]
                Width::Avx2(simd) => Simd::vectorize(simd, kernel),
            }
        }
    }

    /// Runs a test with each width below the widest; only on this thread, so with loops that use no other.
    pub fn for_each_width(test: impl Fn()) {
        let widths = [
            Some(Width::OneElement),
            #[cfg(target_arch = "x86_64")]
            pulp::x86::V3::try_new().map(Width::Avx2),
        ];
        for width in widths.into_iter().flatten() {
            FORCED.set(Some(width));
            test();
        }
        FORCED.set(None);
    }
}
