//! RMS norm on the host: each row is read from memory once, then from the cache.
//!
//! float32 and float64 are worked on where they are; half types are widened to a row of scratch memory and rounded from
//! it. Sums go block by block, so that rounding errors grow with the number of blocks and not of elements. The weight
//! gradient is summed over fixed groups of rows, then over the groups, both in order: its bits do not depend on the
//! number of threads.

use crate::device::cpu::Threads;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch};
use crate::dtype::Element;
use std::borrow::Cow;

/// Elements that a thread takes at a time: more work than the taking.
const CHUNK: usize = 16 * 1024;
/// Rows whose weight gradients are summed one after the other.
const SUMMED_ROWS: usize = 32;
/// Largest number of partial weight gradients.
const PARTIALS: usize = 64;
/// Rows of the backward pass that share one pass over weight and weight gradient.
const GROUP: usize = 4;

/// Columns of the weight gradient that a thread takes at a time.
const COLUMNS: usize = 512;

/// y and rstd of x, or of h = x + residual rounded to T, which goes to `residual_out`.
pub fn forward<T: Storage, W: Storage>(
    threads: &Threads,
    x: &[T],
    residual: Option<&[T]>,
    weight: Option<&[W]>,
    y: &mut [T],
    residual_out: Option<&mut [T]>,
    rstd: &mut [T::Compute],
    rows: usize,
    cols: usize,
    eps: f64,
) {
    assert!(x.len() == rows * cols && y.len() == x.len() && rstd.len() == rows);
    assert!(residual.is_none_or(|residual| residual.len() == x.len()));
    assert!(residual.is_some() == residual_out.is_some());
    if cols == 0 {
        return rstd.fill(T::Compute::from_f64(f64::NAN));
    }
    let weight = widened::<W, T::Compute>(weight, cols);
    let eps = T::Compute::from_f64(eps);
    let chunk_rows = (CHUNK / cols).max(1);
    let size = chunk_rows * cols;
    let mut sums = residual_out.into_iter().flat_map(|sum| sum.chunks_mut(size));
    let mut residuals = residual.into_iter().flat_map(|residual| residual.chunks(size));
    let chunks = x.chunks(size).zip(y.chunks_mut(size)).zip(rstd.chunks_mut(chunk_rows));
    let mut chunks: Vec<_> = chunks
        .map(|((x, y), rstd)| ForwardRows {
            x,
            residual: residuals.next().zip(sums.next()),
            weight: &weight,
            y,
            rstd,
            eps,
            scratch: &mut [],
        })
        .collect();
    let scratch = || vec![T::Compute::default(); 2 * cols];
    threads.for_each_mut_init(&mut chunks, 1, scratch, |scratch, rows| dispatch(rows.with_scratch(scratch)));
}

/// The weight in the type of products; ones if there is none.
fn widened<W: Storage, C: Real>(weight: Option<&[W]>, cols: usize) -> Cow<'_, [C]> {
    let Some(weight) = weight else {
        return Cow::Owned(vec![C::ONE; cols]);
    };
    assert_eq!(weight.len(), cols);
    match C::borrow(weight) {
        Some(weight) => Cow::Borrowed(weight),
        None => {
            let mut wide = vec![C::default(); cols];
            C::widen(weight, &mut wide);
            Cow::Owned(wide)
        }
    }
}

struct ForwardRows<'a, T: Storage> {
    x: &'a [T],
    residual: Option<(&'a [T], &'a mut [T])>,
    weight: &'a [T::Compute],
    y: &'a mut [T],
    rstd: &'a mut [T::Compute],
    eps: T::Compute,
    scratch: &'a mut [T::Compute],
}

impl<T: Storage> ForwardRows<'_, T> {
    fn with_scratch<'b>(&'b mut self, scratch: &'b mut [T::Compute]) -> ForwardRows<'b, T> {
        let residual = self.residual.as_mut().map(|(residual, sum)| (*residual, &mut **sum));
        ForwardRows { residual, y: self.y, rstd: self.rstd, scratch, ..*self }
    }
}

impl<T: Storage> WithSimd for ForwardRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let ForwardRows { x, mut residual, weight, y, rstd, eps, scratch } = self;
        let cols = weight.len();
        let (wide, other) = scratch.split_at_mut(cols);
        for (row, rstd) in rstd.iter_mut().enumerate() {
            let at = row * cols..(row + 1) * cols;
            let (x, y) = (&x[at.clone()], &mut y[at.clone()]);
            let h = match &mut residual {
                Some((residual, sum)) => {
                    let sum = &mut sum[at.clone()];
                    add_rounded(x, &residual[at], sum, wide, other);
                    &*sum
                }
                None => x,
            };
            let h = match T::Compute::borrow(h) {
                Some(h) => h,
                None => {
                    T::Compute::widen(h, wide);
                    &*wide
                }
            };
            let mean = sum_of_squares::<T::Compute, S>(simd, h) / T::Compute::from_f64(cols as f64);
            *rstd = T::Compute::ONE / (mean + eps).sqrt();
            match T::as_compute_mut(y) {
                Some(y) => scale(h, *rstd, weight, y),
                None => {
                    scale(h, *rstd, weight, other);
                    T::Compute::narrow(other, y);
                }
            }
        }
    }
}

/// sum := x + residual
#[inline(always)]
fn add_rounded<T: Storage>(x: &[T], residual: &[T], sum: &mut [T], wide: &mut [T::Compute], other: &mut [T::Compute]) {
    if let (Some(x), Some(residual)) = (T::Compute::borrow(x), T::Compute::borrow(residual)) {
        if let Some(sum) = T::as_compute_mut(sum) {
            for ((sum, x), residual) in sum.iter_mut().zip(x).zip(residual) {
                *sum = *x + *residual;
            }
        }
        return;
    }
    T::Compute::widen(x, wide);
    T::Compute::widen(residual, other);
    for (wide, other) in wide.iter_mut().zip(other.iter()) {
        *wide += *other;
    }
    T::Compute::narrow(wide, sum);
}

/// out := h r w
#[inline(always)]
fn scale<C: Real>(h: &[C], r: C, weight: &[C], out: &mut [C]) {
    for ((out, h), w) in out.iter_mut().zip(h).zip(weight) {
        *out = *h * r * *w;
    }
}

#[inline(always)]
fn sum_of_squares<C: Real, S: Simd>(simd: S, h: &[C]) -> C {
    let (h, rest) = C::vectors::<S>(h);
    let rest = C::load_part(simd, rest);
    let first = C::vmul(simd, rest, rest);
    block_sum::<C, S>(
        simd,
        first,
        h.len(),
        #[inline(always)]
        |j, sum| C::mul_add(simd, h[j], h[j], sum),
    )
}

/// Sum of dy w x.
#[inline(always)]
fn weighted_dot<C: Real, S: Simd>(simd: S, dy: &[C], weight: &[C], x: &[C]) -> C {
    let (dy, dy_rest) = C::vectors::<S>(dy);
    let (weight, weight_rest) = C::vectors::<S>(&weight[..]);
    let (x, x_rest) = C::vectors::<S>(x);
    let (weight, x) = (&weight[..dy.len()], &x[..dy.len()]);
    let h_rest = C::vmul(simd, C::load_part(simd, dy_rest), C::load_part(simd, weight_rest));
    let first = C::vmul(simd, h_rest, C::load_part(simd, x_rest));
    block_sum::<C, S>(
        simd,
        first,
        dy.len(),
        #[inline(always)]
        |j, sum| C::mul_add(simd, C::vmul(simd, dy[j], weight[j]), x[j], sum),
    )
}

/// Adds `vectors` terms to `first` with `add(index, sum)`: four sums at a time, in blocks.
#[inline(always)]
fn block_sum<C: Real, S: Simd>(
    simd: S,
    first: C::Vector<S>,
    vectors: usize,
    add: impl Fn(usize, C::Vector<S>) -> C::Vector<S>,
) -> C {
    const BLOCK: usize = 128;
    let mut total = first;
    for start in (0..vectors).step_by(BLOCK) {
        let end = vectors.min(start + BLOCK);
        let mut sums = [C::splat(simd, C::default()); 4];
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
        let halves = [C::vadd(simd, sums[0], sums[1]), C::vadd(simd, sums[2], sums[3])];
        total = C::vadd(simd, total, C::vadd(simd, halves[0], halves[1]));
    }
    C::sum(simd, total)
}

/// dx, and dw if wanted. `x` is what was normalised; `d_residual_out` is a gradient of it that joins dx.
pub fn backward<T: Storage, W: Storage>(
    threads: &Threads,
    dy: &[T],
    x: &[T],
    weight: Option<&[W]>,
    rstd: &[T::Compute],
    d_residual_out: Option<&[T]>,
    dx: &mut [T],
    dw: Option<&mut [W]>,
    rows: usize,
    cols: usize,
) {
    assert!(x.len() == rows * cols && dy.len() == x.len() && dx.len() == x.len() && rstd.len() == rows);
    assert!(d_residual_out.is_none_or(|d| d.len() == x.len()));
    if cols == 0 {
        return;
    }
    let weight = widened::<W, T::Compute>(weight, cols);
    // With a weight gradient the rows of a task are those of one partial sum: a fixed number.
    let task_rows = match dw {
        Some(_) => rows.div_ceil(PARTIALS).next_multiple_of(SUMMED_ROWS).max(SUMMED_ROWS),
        None => (CHUNK / cols).max(1).next_multiple_of(GROUP),
    };
    let size = task_rows * cols;
    let mut partials = vec![T::Compute::default(); if dw.is_some() { rows.div_ceil(task_rows) * cols } else { 0 }];
    let mut sums = partials.chunks_exact_mut(cols);
    let mut extra = d_residual_out.into_iter().flat_map(|d| d.chunks(size));
    let tasks = dy.chunks(size).zip(x.chunks(size)).zip(dx.chunks_mut(size)).zip(rstd.chunks(task_rows));
    let mut tasks: Vec<_> = tasks
        .map(|(((dy, x), dx), rstd)| BackwardRows {
            dy,
            x,
            weight: &weight,
            rstd,
            extra: extra.next(),
            dx,
            dw: sums.next(),
            scratch: &mut [],
        })
        .collect();
    let scratch = || vec![T::Compute::default(); BackwardRows::<T>::scratch_rows() * cols];
    threads.for_each_mut_init(&mut tasks, 1, scratch, |scratch, rows| dispatch(rows.with_scratch(scratch)));
    if let Some(dw) = dw {
        let mut total = vec![T::Compute::default(); cols];
        let mut parts: Vec<_> = total.chunks_mut(COLUMNS).enumerate().collect();
        threads.for_each_mut(&mut parts, 1, |(index, total)| {
            dispatch(SumPartials { partials: &partials, cols, first: *index * COLUMNS, total });
        });
        T::Compute::narrow(&total, dw);
    }
}

struct BackwardRows<'a, T: Storage> {
    dy: &'a [T],
    x: &'a [T],
    weight: &'a [T::Compute],
    rstd: &'a [T::Compute],
    extra: Option<&'a [T]>,
    dx: &'a mut [T],
    dw: Option<&'a mut [T::Compute]>,
    scratch: &'a mut [T::Compute],
}

impl<T: Storage> BackwardRows<'_, T> {
    fn with_scratch<'b>(&'b mut self, scratch: &'b mut [T::Compute]) -> BackwardRows<'b, T> {
        BackwardRows { dx: self.dx, dw: self.dw.as_deref_mut(), scratch, ..*self }
    }

    /// Rows of scratch memory: the weight gradient of a few rows; for half types dy, x, the gradient that joins dx, and dx.
    fn scratch_rows() -> usize {
        if T::as_compute_mut(&mut []).is_some() { 1 } else { 1 + 4 * GROUP }
    }
}

impl<T: Storage> WithSimd for BackwardRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let BackwardRows { dy, x, weight, rstd, extra, dx, mut dw, scratch } = self;
        let cols = weight.len();
        let (sum, wide) = scratch.split_at_mut(cols);
        for (block, rstd) in rstd.chunks(SUMMED_ROWS).enumerate() {
            sum.fill(T::Compute::default());
            for (group, rstd) in rstd.chunks(GROUP).enumerate() {
                let first = block * SUMMED_ROWS + group * GROUP;
                let at = first * cols..(first + rstd.len()) * cols;
                let (dy, x, dx) = (&dy[at.clone()], &x[at.clone()], &mut dx[at.clone()]);
                let extra = extra.map(|extra| &extra[at]);
                group_gradients::<T, S>(simd, dy, x, rstd, extra, dx, weight, sum, wide);
            }
            if let Some(dw) = dw.as_deref_mut() {
                dw.iter_mut().zip(sum.iter()).for_each(|(dw, sum)| *dw += *sum);
            }
        }
    }
}

/// dx of up to [`GROUP`] rows, and their weight gradients onto `sum`.
#[inline(always)]
fn group_gradients<T: Storage, S: Simd>(
    simd: S,
    dy: &[T],
    x: &[T],
    rstd: &[T::Compute],
    extra: Option<&[T]>,
    dx: &mut [T],
    weight: &[T::Compute],
    sum: &mut [T::Compute],
    wide: &mut [T::Compute],
) {
    if let (Some(dy), Some(x)) = (T::Compute::borrow(dy), T::Compute::borrow(x)) {
        let extra = extra.and_then(T::Compute::borrow);
        if let Some(dx) = T::as_compute_mut(dx) {
            wide_gradients::<T::Compute, S>(simd, dy, x, rstd, extra, dx, weight, sum);
        }
        return;
    }
    let mut quarters = wide.chunks_exact_mut(GROUP * weight.len());
    let mut quarter = || quarters.next().map_or(&mut [][..], |quarter| &mut quarter[..dy.len()]);
    let (wide_dy, wide_x, wide_extra, wide_dx) = (quarter(), quarter(), quarter(), quarter());
    T::Compute::widen(dy, wide_dy);
    T::Compute::widen(x, wide_x);
    let extra = extra.map(|extra| {
        T::Compute::widen(extra, wide_extra);
        &*wide_extra
    });
    wide_gradients::<T::Compute, S>(simd, wide_dy, wide_x, rstd, extra, wide_dx, weight, sum);
    T::Compute::narrow(wide_dx, dx);
}

#[inline(always)]
fn wide_gradients<C: Real, S: Simd>(
    simd: S,
    dy: &[C],
    x: &[C],
    rstd: &[C],
    extra: Option<&[C]>,
    dx: &mut [C],
    weight: &[C],
    sum: &mut [C],
) {
    let cols = weight.len();
    if rstd.len() == GROUP {
        return rows_gradients::<C, S, GROUP>(simd, dy, x, rstd, extra, dx, weight, sum);
    }
    for (row, dx) in dx.chunks_exact_mut(cols).enumerate() {
        let at = row * cols..(row + 1) * cols;
        let extra = extra.map(|extra| &extra[at.clone()]);
        rows_gradients::<C, S, 1>(simd, &dy[at.clone()], &x[at], &rstd[row..=row], extra, dx, weight, sum);
    }
}

/// R rows together: one pass for each row's sum, one over the columns of all.
#[inline(always)]
fn rows_gradients<C: Real, S: Simd, const R: usize>(
    simd: S,
    dy: &[C],
    x: &[C],
    rstd: &[C],
    extra: Option<&[C]>,
    dx: &mut [C],
    weight: &[C],
    sum: &mut [C],
) {
    let cols = weight.len();
    let dy: [&[C]; R] = std::array::from_fn(|k| &dy[k * cols..(k + 1) * cols]);
    let x: [&[C]; R] = std::array::from_fn(|k| &x[k * cols..(k + 1) * cols]);
    let extra: Option<[&[C]; R]> = extra.map(|extra| std::array::from_fn(|k| &extra[k * cols..(k + 1) * cols]));
    let mut factors = [(C::splat(simd, C::default()), C::splat(simd, C::default())); R];
    for k in 0..R {
        let dot = weighted_dot::<C, S>(simd, dy[k], weight, x[k]);
        let s = rstd[k] * rstd[k] * rstd[k] / C::from_f64(cols as f64) * dot;
        factors[k] = (C::splat(simd, rstd[k]), C::splat(simd, s));
    }
    let mut later = dx;
    let mut dx: [&mut [C]; R] = std::array::from_fn(|_| {
        let (row, rest) = std::mem::take(&mut later).split_at_mut(cols);
        later = rest;
        row
    });

    let (w, w_rest) = C::vectors::<S>(weight);
    let (sums, sum_rest) = C::vectors_mut::<S>(sum);
    let (dy_v, x_v) = (dy.map(|row| &C::vectors::<S>(row).0[..w.len()]), x.map(|row| &C::vectors::<S>(row).0[..w.len()]));
    let extra_v = extra.map(|extra| extra.map(|row| &C::vectors::<S>(row).0[..w.len()]));
    let dx_v = dx.each_mut().map(|row| &mut C::vectors_mut::<S>(row).0[..w.len()]);
    for (j, (w, sum)) in w.iter().zip(sums).enumerate() {
        for k in 0..R {
            let extra = extra_v.map(|extra| extra[k][j]);
            let out = &mut dx_v[k][j];
            (*out, *sum) = entry::<C, S>(simd, dy_v[k][j], x_v[k][j], *w, factors[k], extra, *sum);
        }
    }
    if !w_rest.is_empty() {
        let from = cols - w_rest.len();
        let load = |row: &[C]| C::load_part(simd, &row[from..]);
        let w = C::load_part(simd, w_rest);
        let mut sum = C::load_part(simd, sum_rest);
        for k in 0..R {
            let extra = extra.map(|extra| load(extra[k]));
            let out;
            (out, sum) = entry::<C, S>(simd, load(dy[k]), load(x[k]), w, factors[k], extra, sum);
            C::store_part(simd, &mut dx[k][from..], out);
        }
        C::store_part(simd, sum_rest, sum);
    }
}

/// dx = r dy w - x s (+ extra), and `sum` + dy x r.
#[inline(always)]
fn entry<C: Real, S: Simd>(
    simd: S,
    dy: C::Vector<S>,
    x: C::Vector<S>,
    w: C::Vector<S>,
    (r, s): (C::Vector<S>, C::Vector<S>),
    extra: Option<C::Vector<S>>,
    sum: C::Vector<S>,
) -> (C::Vector<S>, C::Vector<S>) {
    let scaled = C::vmul(simd, dy, r);
    let mut dx = C::neg_mul_add(simd, x, s, C::vmul(simd, scaled, w));
    if let Some(extra) = extra {
        dx = C::vadd(simd, dx, extra);
    }
    (dx, C::mul_add(simd, scaled, x, sum))
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

#[cfg(test)]
#[path = "cpu_tests.rs"]
mod tests;
