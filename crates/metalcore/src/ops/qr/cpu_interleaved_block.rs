//! Four reflectors of interleaved matrices, applied to four columns: the inner loops of `cpu_interleaved`.
//!
//! C := C - V w with w = S⁻¹ VᵀC, where S is the triangle of VᵀV whose diagonal is 1 / tau (its transpose for the
//! product in the other order). V and C are stored row by row, four registers each.

use super::super::cpu::Order;
use crate::device::cpu::simd::{Real, Simd};

/// Four neighbouring columns' entries in one row, each a register.
pub type Quad<T, S> = [<T as Real>::Vector<S>; 4];
/// Of a block of four reflectors: v_aᵀ v_c at [a][c] for c < a, and tau at [a][a].
pub type Coefficients<T, S> = [Quad<T, S>; 4];

/// Applies a block, to as many columns at once as there are registers for.
#[inline(always)]
pub fn apply<T: Real, S: Simd>(
    simd: S,
    order: Order,
    panel: &[Quad<T, S>],
    coefficients: &Coefficients<T, S>,
    target: &mut [Quad<T, S>],
) {
    if S::REGISTER_COUNT >= 32 {
        apply_columns::<T, S, 0, 4>(simd, order, panel, coefficients, target);
    } else {
        apply_columns::<T, S, 0, 2>(simd, order, panel, coefficients, target);
        apply_columns::<T, S, 2, 2>(simd, order, panel, coefficients, target);
    }
}

/// Columns FIRST to FIRST + COUNT - 1. The steps for each column are written out: with loops whose bounds vary, or with
/// closures, the compiler keeps w in memory.
#[inline(always)]
fn apply_columns<T: Real, S: Simd, const FIRST: usize, const COUNT: usize>(
    simd: S,
    order: Order,
    panel: &[Quad<T, S>],
    coefficients: &Coefficients<T, S>,
    target: &mut [Quad<T, S>],
) {
    let (Some((v_top, v)), Some((c_top, c))) = (panel.split_first_chunk::<4>(), target.split_first_chunk_mut::<4>())
    else {
        return;
    };
    let mut w = [[T::splat(simd, T::default()); 4]; 4];
    w[0] = top_dots::<T, S>(simd, v_top, c_top, FIRST);
    w[1] = top_dots::<T, S>(simd, v_top, c_top, FIRST + 1);
    if COUNT == 4 {
        w[2] = top_dots::<T, S>(simd, v_top, c_top, 2);
        w[3] = top_dots::<T, S>(simd, v_top, c_top, 3);
    }
    for (v, c) in v.iter().zip(c.iter()) {
        let (v, c): (Quad<T, S>, [_; COUNT]) = (*v, std::array::from_fn(|j| c[FIRST + j]));
        for j in 0..COUNT {
            for a in 0..4 {
                w[j][a] = T::mul_add(simd, v[a], c[j], w[j][a]);
            }
        }
    }
    w[0] = substitute::<T, S>(simd, order, coefficients, w[0]);
    w[1] = substitute::<T, S>(simd, order, coefficients, w[1]);
    top_update::<T, S>(simd, v_top, c_top, FIRST, w[0]);
    top_update::<T, S>(simd, v_top, c_top, FIRST + 1, w[1]);
    if COUNT == 4 {
        w[2] = substitute::<T, S>(simd, order, coefficients, w[2]);
        w[3] = substitute::<T, S>(simd, order, coefficients, w[3]);
        top_update::<T, S>(simd, v_top, c_top, 2, w[2]);
        top_update::<T, S>(simd, v_top, c_top, 3, w[3]);
    }
    for (v, c) in v.iter().zip(c) {
        let v = *v;
        for j in 0..COUNT {
            let mut entry = c[FIRST + j];
            for a in 0..4 {
                entry = T::neg_mul_add(simd, v[a], w[j][a], entry);
            }
            c[FIRST + j] = entry;
        }
    }
}

/// Vᵀ times column `j`, for the first four rows. The top of V is unit lower triangular; what is stored on and above its
/// diagonal belongs to R.
#[inline(always)]
fn top_dots<T: Real, S: Simd>(simd: S, v: &[Quad<T, S>; 4], c: &[Quad<T, S>; 4], j: usize) -> Quad<T, S> {
    let (c0, c1, c2, c3) = (c[0][j], c[1][j], c[2][j], c[3][j]);
    let w0 = T::mul_add(simd, v[1][0], c1, c0);
    let w0 = T::mul_add(simd, v[3][0], c3, T::mul_add(simd, v[2][0], c2, w0));
    let w1 = T::mul_add(simd, v[3][1], c3, T::mul_add(simd, v[2][1], c2, c1));
    let w2 = T::mul_add(simd, v[3][2], c3, c2);
    [w0, w1, w2, c3]
}

/// Column `j` -= V w, for the first four rows.
#[inline(always)]
fn top_update<T: Real, S: Simd>(simd: S, v: &[Quad<T, S>; 4], c: &mut [Quad<T, S>; 4], j: usize, w: Quad<T, S>) {
    let less = |i: usize, a: usize, entry| T::neg_mul_add(simd, v[i][a], w[a], entry);
    c[0][j] = T::vsub(simd, c[0][j], w[0]);
    c[1][j] = less(1, 0, T::vsub(simd, c[1][j], w[1]));
    c[2][j] = less(2, 1, less(2, 0, T::vsub(simd, c[2][j], w[2])));
    c[3][j] = less(3, 2, less(3, 1, less(3, 0, T::vsub(simd, c[3][j], w[3]))));
}

/// S⁻ᵀ w for Q transposed, S⁻¹ w for Q, where S is the triangle of VᵀV with diagonal 1 / tau.
#[inline(always)]
fn substitute<T: Real, S: Simd>(simd: S, order: Order, k: &Coefficients<T, S>, w: Quad<T, S>) -> Quad<T, S> {
    let [mut w0, mut w1, mut w2, mut w3] = w;
    let less = |a: usize, c: usize, x, w| T::neg_mul_add(simd, k[a][c], x, w);
    match order {
        Order::Transposed => {
            w0 = T::vmul(simd, k[0][0], w0);
            w1 = T::vmul(simd, k[1][1], less(1, 0, w0, w1));
            w2 = T::vmul(simd, k[2][2], less(2, 1, w1, less(2, 0, w0, w2)));
            w3 = T::vmul(simd, k[3][3], less(3, 2, w2, less(3, 1, w1, less(3, 0, w0, w3))));
        }
        Order::Plain => {
            w3 = T::vmul(simd, k[3][3], w3);
            w2 = T::vmul(simd, k[2][2], less(3, 2, w3, w2));
            w1 = T::vmul(simd, k[1][1], less(2, 1, w2, less(3, 1, w3, w1)));
            w0 = T::vmul(simd, k[0][0], less(1, 0, w1, less(2, 0, w2, less(3, 0, w3, w0))));
        }
    }
    [w0, w1, w2, w3]
}
