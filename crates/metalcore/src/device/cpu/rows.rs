//! What operations on rows share: sums in blocks, the weight, the sum with a residual, ordered sums over rows.

use super::Threads;
use super::simd::{Real, Simd, Storage, WithSimd, dispatch};
use std::borrow::Cow;

/// Rows whose weight gradients are summed one after the other.
pub const SUMMED_ROWS: usize = 32;
/// Largest number of partial weight gradients.
const PARTIALS: usize = 64;
/// Columns of a weight gradient that a thread takes at a time.
const COLUMNS: usize = 512;

/// The weight in the type of products; ones if there is none.
pub fn widened<W: Storage, C: Real>(weight: Option<&[W]>, cols: usize) -> Cow<'_, [C]> {
    let Some(weight) = weight else {
        return Cow::Owned(vec![C::ONE; cols]);
    };
    assert_eq!(weight.len(), cols);
    match C::borrow(weight) {
        Some(weight) => Cow::Borrowed(weight),
        None => Cow::Owned(weight.iter().map(|weight| C::get(*weight)).collect()),
    }
}

/// sum := x + residual
#[inline(always)]
pub fn add_rounded<T: Storage, S: Simd>(simd: S, x: &[T], residual: &[T], sum: &mut [T]) {
    let lanes = T::Compute::lanes::<S>();
    let (mut x, mut residual, mut sum) =
        (x.chunks_exact(lanes), residual.chunks_exact(lanes), sum.chunks_exact_mut(lanes));
    for ((x, residual), sum) in (&mut x).zip(&mut residual).zip(&mut sum) {
        let (x, residual) = (T::Compute::load(simd, x), T::Compute::load(simd, residual));
        T::Compute::store(simd, T::Compute::vadd(simd, x, residual), sum);
    }
    let (x, residual) = (x.remainder(), residual.remainder());
    let (x, residual) = (T::Compute::load_part(simd, x), T::Compute::load_part(simd, residual));
    T::Compute::store_part(simd, T::Compute::vadd(simd, x, residual), sum.into_remainder());
}

/// Elements that a thread takes at a time: more work than the taking.
pub const CHUNK: usize = 16 * 1024;

/// Rows of a task of a backward pass that sums weight gradients, one partial sum each: a number that does not depend on
/// that of threads, of which a few have work even where rows are few and long.
pub fn summed_task(rows: usize, cols: usize) -> usize {
    if rows * cols <= CHUNK {
        return rows.max(1);
    }
    if rows <= 4 * SUMMED_ROWS {
        return rows.div_ceil(4);
    }
    rows.div_ceil(PARTIALS).next_multiple_of(SUMMED_ROWS)
}

/// Adds `vectors` terms to `first` with `add(index, sum)`: four sums at a time, in blocks.
#[inline(always)]
pub fn block_sum<C: Real, S: Simd>(
    simd: S,
    first: C::Vector<S>,
    vectors: usize,
    mut add: impl FnMut(usize, C::Vector<S>) -> C::Vector<S>,
) -> C {
    let [sum] = block_sums::<C, S, 1>(
        simd,
        [first],
        vectors,
        #[inline(always)]
        |j, [sum]| [add(j, sum)],
    );
    sum
}

/// The same of several sums at once.
#[inline(always)]
pub fn block_sums<C: Real, S: Simd, const N: usize>(
    simd: S,
    first: [C::Vector<S>; N],
    vectors: usize,
    mut add: impl FnMut(usize, [C::Vector<S>; N]) -> [C::Vector<S>; N],
) -> [C; N] {
    const BLOCK: usize = 128;
    let mut totals = first;
    for start in (0..vectors).step_by(BLOCK) {
        let end = vectors.min(start + BLOCK);
        let mut sums = [[C::splat(simd, C::default()); N]; 4];
        let mut j = start;
        while j + 4 <= end {
            for k in 0..4 {
                sums[k] = add(j + k, sums[k]);
            }
            j += 4;
        }
        while j < end {
            sums[0] = add(j, sums[0]);
            j += 1;
        }
        for n in 0..N {
            let halves = [C::vadd(simd, sums[0][n], sums[1][n]), C::vadd(simd, sums[2][n], sums[3][n])];
            totals[n] = C::vadd(simd, totals[n], C::vadd(simd, halves[0], halves[1]));
        }
    }
    totals.map(|total| C::sum(simd, total))
}

/// The sum of partial weight gradients, which stand one after the other, each as long as `dw`: in a fixed order.
pub fn sum_partials<C: Real, W: Storage>(threads: &Threads, partials: &[C], dw: &mut [W]) {
    let mut total = vec![C::default(); dw.len()];
    let cols = dw.len();
    let mut parts: Vec<_> = total.chunks_mut(COLUMNS).enumerate().collect();
    // A few of them are summed before another thread wakes up.
    let at_once = if partials.len() <= 4 * CHUNK { parts.len() } else { 1 };
    threads.for_each_mut(&mut parts, at_once, |(index, total)| {
        dispatch(SumPartials { partials, cols, first: *index * COLUMNS, total });
    });
    for (dw, total) in dw.iter_mut().zip(total) {
        *dw = total.put();
    }
}

/// Columns of the weight gradient, from `first` on: four sums over the partial ones, then those.
struct SumPartials<'a, C> {
    partials: &'a [C],
    cols: usize,
    first: usize,
    total: &'a mut [C],
}

impl<C: Real> WithSimd for SumPartials<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let SumPartials { partials, cols, first, total } = self;
        let mut quarters = [[C::default(); COLUMNS]; 4];
        for (index, partial) in partials.chunks_exact(cols).enumerate() {
            let partial = &partial[first..first + total.len()];
            for (sum, partial) in quarters[index % 4].iter_mut().zip(partial) {
                *sum += *partial;
            }
        }
        for (j, total) in total.iter_mut().enumerate() {
            *total = (quarters[0][j] + quarters[1][j]) + (quarters[2][j] + quarters[3][j]);
        }
    }
}
