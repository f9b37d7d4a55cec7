//! One-sided Jacobi on columns in registers: one matrix in each lane, or one matrix with its rows in the lanes.

use crate::device::cpu::simd::{Real, Simd};

/// Where the rows of a column are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// A register for each row: a lane is a matrix.
    InRegisters,
    /// In the lanes: sums go across them.
    InLanes,
}

/// Sweeps before a matrix is given up.
const MOST_SWEEPS: usize = 60;

/// Columns whose squares add up to no more are zero.
pub(super) fn tiny<T: Real>() -> T {
    T::power_of_two(if size_of::<T>() == 4 { -42 } else { -430 })
}

/// Rotates pairs of columns of W, and of V, until all columns of W are orthogonal; `squares` are their squared lengths
/// then. Not zero in lanes that did not get there.
#[inline(always)]
pub(super) fn orthogonalise<T: Real, S: Simd>(
    simd: S,
    w: &mut [T::Vector<S>],
    height: usize,
    v: &mut [T::Vector<S>],
    v_height: usize,
    squares: &mut [T::Vector<S>],
    rows: Rows,
    long: usize,
) -> T::Vector<S> {
    let cols = squares.len();
    let unit = T::power_of_two(if size_of::<T>() == 4 { -24 } else { -53 });
    // Cosines up to here count as zero. Rounding leaves less than half of it; what does not come down is let be in the end.
    let tolerance = (T::power_of_two(2) + T::power_of_two(-3) * T::from_f64(long as f64).sqrt()) * unit;
    let square = tolerance * tolerance;
    let limits = [square, square * T::power_of_two(4)].map(|limit| T::splat(simd, limit));
    let (zero, unit) = (T::splat(simd, T::default()), T::splat(simd, unit));
    let mut turned = zero;
    for sweep in 0..MOST_SWEEPS {
        let tolerance = limits[usize::from(sweep >= 24)];
        turned = zero;
        for (square, column) in squares.iter_mut().zip(w.chunks_exact(height)) {
            *square = product::<T, S>(simd, column, column, rows);
        }
        for i in 0..cols {
            let (head, w_tail) = w.split_at_mut((i + 1) * height);
            let x = &mut head[i * height..];
            let (head, v_tail) = v.split_at_mut((i + 1) * v_height);
            let vx = &mut head[i * v_height..];
            for j in i + 1..cols {
                let y = &mut w_tail[(j - i - 1) * height..][..height];
                let (a, b) = (squares[i], squares[j]);
                let g = product::<T, S>(simd, x, y, rows);
                let Some(turn) = angle::<T, S>(simd, a, b, g, tolerance) else { continue };
                // Rounding leaves a length positive: it is measured anew before the next sweep.
                let (a, b) = (
                    T::vmax(simd, T::vsub(simd, a, turn.shift), T::vmul(simd, a, unit)),
                    T::vmax(simd, T::vadd(simd, b, turn.shift), T::vmul(simd, b, unit)),
                );
                turned = T::vmax(simd, turned, T::vabs(simd, turn.s));
                let vy = &mut v_tail[(j - i - 1) * v_height..][..v_height];
                // The longer column comes first, which brings the rest to order sooner.
                let swap = T::less(simd, T::select(simd, turn.turned, a, b), b);
                if T::any(simd, swap) {
                    (squares[i], squares[j]) = (T::select(simd, swap, b, a), T::select(simd, swap, a, b));
                    rotate_and_swap::<T, S>(simd, x, y, &turn, swap);
                    rotate_and_swap::<T, S>(simd, vx, vy, &turn, swap);
                } else {
                    (squares[i], squares[j]) = (a, b);
                    rotate::<T, S>(simd, x, y, &turn);
                    rotate::<T, S>(simd, vx, vy, &turn);
                }
            }
        }
        if !T::any(simd, T::less(simd, zero, turned)) {
            break;
        }
    }
    turned
}

/// x' = x - s (y + tau x), y' = y + s (x - tau y) (Rutishauser), |x'|^2 = |x|^2 - shift. Zeros in lanes that stay.
struct Turn<T: Real, S: Simd> {
    s: T::Vector<S>,
    tau: T::Vector<S>,
    shift: T::Vector<S>,
    turned: T::Mask<S>,
}

/// None where no lane has anything to do.
#[inline(always)]
fn angle<T: Real, S: Simd>(
    simd: S,
    a: T::Vector<S>,
    b: T::Vector<S>,
    g: T::Vector<S>,
    tolerance: T::Vector<S>,
) -> Option<Turn<T, S>> {
    let (zero, one) = (T::splat(simd, T::default()), T::splat(simd, T::ONE));
    let square = T::vmul(simd, g, g);
    let limit = T::vmul(simd, T::vmul(simd, tolerance, a), b);
    let nonzero = T::less(simd, T::splat(simd, tiny::<T>()), T::vmin(simd, a, b));
    let turned = T::less(simd, T::select(simd, nonzero, limit, square), square);
    if !T::any(simd, turned) {
        return None;
    }
    let (twice, d) = (T::vadd(simd, g, g), T::vsub(simd, b, a));
    let root = T::vsqrt(simd, T::mul_add(simd, d, d, T::vmul(simd, twice, twice)));
    let t = T::vdiv(simd, twice, T::vadd(simd, T::vabs(simd, d), root));
    let t = T::select(simd, T::less(simd, d, zero), T::vsub(simd, zero, t), t);
    let t = T::select(simd, turned, t, zero);
    let h = T::vsqrt(simd, T::mul_add(simd, t, t, one));
    let more = T::vadd(simd, one, h);
    let q = T::vdiv(simd, t, T::vmul(simd, h, more));
    Some(Turn { s: T::vmul(simd, more, q), tau: T::vmul(simd, h, q), shift: T::vmul(simd, t, g), turned })
}

/// x'y.
#[inline(always)]
fn product<T: Real, S: Simd>(simd: S, x: &[T::Vector<S>], y: &[T::Vector<S>], rows: Rows) -> T::Vector<S> {
    let mut sums = [T::splat(simd, T::default()); 4];
    let ((x4, x), (y4, y)) = (x.as_chunks::<4>(), y.as_chunks::<4>());
    for (x, y) in x4.iter().zip(y4) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum = T::mul_add(simd, *x, *y, *sum);
        }
    }
    for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
        *sum = T::mul_add(simd, *x, *y, *sum);
    }
    let sum = T::vadd(simd, T::vadd(simd, sums[0], sums[1]), T::vadd(simd, sums[2], sums[3]));
    match rows {
        Rows::InRegisters => sum,
        Rows::InLanes => T::splat(simd, T::sum(simd, sum)),
    }
}

#[inline(always)]
fn rotated<T: Real, S: Simd>(
    simd: S,
    x: T::Vector<S>,
    y: T::Vector<S>,
    turn: &Turn<T, S>,
) -> (T::Vector<S>, T::Vector<S>) {
    let left = T::neg_mul_add(simd, turn.s, T::mul_add(simd, turn.tau, x, y), x);
    let right = T::mul_add(simd, turn.s, T::neg_mul_add(simd, turn.tau, y, x), y);
    (left, right)
}

#[inline(always)]
fn rotate<T: Real, S: Simd>(simd: S, x: &mut [T::Vector<S>], y: &mut [T::Vector<S>], turn: &Turn<T, S>) {
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = rotated(simd, *x, *y, turn);
    }
}

#[inline(always)]
fn rotate_and_swap<T: Real, S: Simd>(
    simd: S,
    x: &mut [T::Vector<S>],
    y: &mut [T::Vector<S>],
    turn: &Turn<T, S>,
    swap: T::Mask<S>,
) {
    for (x, y) in x.iter_mut().zip(y) {
        let (left, right) = rotated(simd, *x, *y, turn);
        *x = T::select(simd, swap, right, left);
        *y = T::select(simd, swap, left, right);
    }
}
