//! RMS norm on the host: each row is read from memory once, then from the cache.
//!
//! Values are widened and rounded in registers. Sums go block by block, so that rounding errors grow with the number of
//! blocks and not of elements. The weight gradient is summed over fixed groups of rows, then over the groups, both in
//! order: its bits do not depend on the number of threads.

use crate::device::cpu::Threads;
use crate::device::cpu::rows::{CHUNK, SUMMED_ROWS, add_rounded, block_sum, sum_partials, summed_task, widened};
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch, stream};
use crate::dtype::Element;

/// Rows of the backward pass that share one pass over weight and weight gradient.
const GROUP: usize = 4;

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
    let streamed = stream::wanted(y, cols);
    let weight = &*widened::<W, T::Compute>(weight, cols);
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
            weight,
            y,
            rstd,
            eps,
            streamed,
        })
        .collect();
    threads.for_each_mut(&mut chunks, 1, |rows| dispatch(rows));
}

struct ForwardRows<'a, T: Storage> {
    x: &'a [T],
    residual: Option<(&'a [T], &'a mut [T])>,
    weight: &'a [T::Compute],
    y: &'a mut [T],
    rstd: &'a mut [T::Compute],
    eps: T::Compute,
    streamed: bool,
}

impl<T: Storage> WithSimd for &mut ForwardRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let cols = self.weight.len();
        for (row, rstd) in self.rstd.iter_mut().enumerate() {
            let at = row * cols..(row + 1) * cols;
            let h = match &mut self.residual {
                Some((residual, sum)) => {
                    let sum = &mut sum[at.clone()];
                    add_rounded(simd, &self.x[at.clone()], &residual[at.clone()], sum);
                    &*sum
                }
                None => &self.x[at.clone()],
            };
            let mean = sum_of_squares(simd, h) / T::Compute::from_f64(cols as f64);
            *rstd = T::Compute::ONE / (mean + self.eps).sqrt();
            if self.streamed {
                scale::<T, S, true>(simd, h, *rstd, self.weight, &mut self.y[at]);
            } else {
                scale::<T, S, false>(simd, h, *rstd, self.weight, &mut self.y[at]);
            }
        }
        stream::finish();
    }
}

/// y := h r w
#[inline(always)]
fn scale<T: Storage, S: Simd, const STREAMED: bool>(
    simd: S,
    h: &[T],
    r: T::Compute,
    weight: &[T::Compute],
    y: &mut [T],
) {
    let lanes = T::Compute::lanes::<S>();
    let r = T::Compute::splat(simd, r);
    let (mut h, mut weight, mut y) = (h.chunks_exact(lanes), weight.chunks_exact(lanes), y.chunks_exact_mut(lanes));
    for ((h, weight), y) in (&mut h).zip(&mut weight).zip(&mut y) {
        let scaled = T::Compute::vmul(simd, T::Compute::load(simd, h), r);
        let scaled = T::Compute::vmul(simd, scaled, T::Compute::load(simd, weight));
        if STREAMED {
            stream::store::<T::Compute, S, T>(simd, scaled, y);
        } else {
            T::Compute::store(simd, scaled, y);
        }
    }
    let scaled = T::Compute::vmul(simd, T::Compute::load_part(simd, h.remainder()), r);
    let weight = T::Compute::load_part(simd, weight.remainder());
    T::Compute::store_part(simd, T::Compute::vmul(simd, scaled, weight), y.into_remainder());
}

#[inline(always)]
fn sum_of_squares<T: Storage, S: Simd>(simd: S, h: &[T]) -> T::Compute {
    let lanes = T::Compute::lanes::<S>();
    let rest = T::Compute::load_part(simd, h.chunks_exact(lanes).remainder());
    block_sum::<T::Compute, S>(
        simd,
        T::Compute::vmul(simd, rest, rest),
        h.len() / lanes,
        #[inline(always)]
        |j, sum| {
            let h = T::Compute::load(simd, &h[j * lanes..(j + 1) * lanes]);
            T::Compute::mul_add(simd, h, h, sum)
        },
    )
}

/// Sum of dy w x.
#[inline(always)]
fn weighted_dot<T: Storage, S: Simd>(simd: S, dy: &[T], weight: &[T::Compute], x: &[T]) -> T::Compute {
    let lanes = T::Compute::lanes::<S>();
    let rest = dy.len() / lanes * lanes..;
    let (dy_rest, w_rest) =
        (T::Compute::load_part(simd, &dy[rest.clone()]), T::Compute::load_part(simd, &weight[rest.clone()]));
    let first = T::Compute::vmul(simd, T::Compute::vmul(simd, dy_rest, w_rest), T::Compute::load_part(simd, &x[rest]));
    block_sum::<T::Compute, S>(
        simd,
        first,
        dy.len() / lanes,
        #[inline(always)]
        |j, sum| {
            let at = j * lanes..(j + 1) * lanes;
            let h = T::Compute::load(simd, &dy[at.clone()]);
            let h = T::Compute::vmul(simd, h, T::Compute::load(simd, &weight[at.clone()]));
            T::Compute::mul_add(simd, h, T::Compute::load(simd, &x[at]), sum)
        },
    )
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
    let streamed = stream::wanted(dx, cols);
    let weight = &*widened::<W, T::Compute>(weight, cols);
    // With a weight gradient the rows of a task are those of one partial sum: a fixed number.
    let task_rows = match dw {
        Some(_) => summed_task(rows, cols),
        None => (CHUNK / cols).max(1).next_multiple_of(GROUP),
    };
    let size = task_rows * cols;
    let mut partials = vec![T::Compute::default(); if dw.is_some() { rows.div_ceil(task_rows) * cols } else { 0 }];
    let mut sums = partials.chunks_exact_mut(cols);
    let mut extra = d_residual_out.into_iter().flat_map(|d| d.chunks(size));
    let tasks = dy.chunks(size).zip(x.chunks(size)).zip(dx.chunks_mut(size)).zip(rstd.chunks(task_rows));
    let mut tasks: Vec<_> = tasks
        .map(|(((dy, x), dx), rstd)| (Rows { dy, x, weight, rstd, extra: extra.next(), dx }, sums.next()))
        .collect();
    let sum = || vec![T::Compute::default(); cols];
    threads.for_each_mut_init(&mut tasks, 1, sum, |sum, (rows, dw)| {
        dispatch(BackwardRows { rows, dw: dw.as_deref_mut(), sum, streamed });
    });
    if let Some(dw) = dw {
        sum_partials(threads, &partials, dw);
    }
}

/// Some rows of the backward pass.
struct Rows<'a, T: Storage> {
    dy: &'a [T],
    x: &'a [T],
    weight: &'a [T::Compute],
    rstd: &'a [T::Compute],
    extra: Option<&'a [T]>,
    dx: &'a mut [T],
}

struct BackwardRows<'a, 'b, T: Storage> {
    rows: &'a mut Rows<'b, T>,
    dw: Option<&'a mut [T::Compute]>,
    /// The weight gradient of [`SUMMED_ROWS`].
    sum: &'a mut [T::Compute],
    streamed: bool,
}

impl<T: Storage> WithSimd for BackwardRows<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let BackwardRows { rows, mut dw, sum, streamed } = self;
        let cols = rows.weight.len();
        for (block, rstd) in rows.rstd.chunks(SUMMED_ROWS).enumerate() {
            sum.fill(T::Compute::default());
            for (group, rstd) in rstd.chunks(GROUP).enumerate() {
                let first = block * SUMMED_ROWS + group * GROUP;
                let at = first * cols..(first + rstd.len()) * cols;
                let (dy, x, dx) = (&rows.dy[at.clone()], &rows.x[at.clone()], &mut rows.dx[at.clone()]);
                let group = Rows { dy, x, weight: rows.weight, rstd, extra: rows.extra.map(|extra| &extra[at]), dx };
                if streamed {
                    group_gradients::<T, S, true>(simd, group, sum);
                } else {
                    group_gradients::<T, S, false>(simd, group, sum);
                }
            }
            if let Some(dw) = dw.as_deref_mut() {
                dw.iter_mut().zip(sum.iter()).for_each(|(dw, sum)| *dw += *sum);
            }
        }
        stream::finish();
    }
}

/// dx of up to [`GROUP`] rows, and their weight gradients onto `sum`.
#[inline(always)]
fn group_gradients<T: Storage, S: Simd, const STREAMED: bool>(simd: S, group: Rows<'_, T>, sum: &mut [T::Compute]) {
    if group.rstd.len() == GROUP {
        return rows_gradients::<T, S, GROUP, STREAMED>(simd, group, sum);
    }
    let Rows { dy, x, weight, rstd, extra, dx } = group;
    let cols = weight.len();
    for (row, dx) in dx.chunks_exact_mut(cols).enumerate() {
        let at = row * cols..(row + 1) * cols;
        let extra = extra.map(|extra| &extra[at.clone()]);
        let one = Rows { dy: &dy[at.clone()], x: &x[at], weight, rstd: &rstd[row..=row], extra, dx };
        rows_gradients::<T, S, 1, STREAMED>(simd, one, sum);
    }
}

/// R rows together: one pass for each row's sum, one over the columns of all.
#[inline(always)]
fn rows_gradients<T: Storage, S: Simd, const R: usize, const STREAMED: bool>(
    simd: S,
    rows: Rows<'_, T>,
    sum: &mut [T::Compute],
) {
    let Rows { dy, x, weight, rstd, extra, dx } = rows;
    let cols = weight.len();
    let lanes = T::Compute::lanes::<S>();
    let zero = T::Compute::splat(simd, T::Compute::default());
    let mut factors = [(zero, zero); R];
    let (mut dy_rows, mut x_rows, mut extra_rows) = ([&[][..]; R], [&[][..]; R], [&[][..]; R]);
    let mut dx_rows: [&mut [T]; R] = std::array::from_fn(|_| &mut [][..]);
    for (k, dx) in dx.chunks_exact_mut(cols).take(R).enumerate() {
        let at = k * cols..(k + 1) * cols;
        (dy_rows[k], x_rows[k], dx_rows[k]) = (&dy[at.clone()], &x[at.clone()], dx);
        if let Some(extra) = extra {
            extra_rows[k] = &extra[at];
        }
        let dot = weighted_dot(simd, dy_rows[k], weight, x_rows[k]);
        let s = rstd[k] * rstd[k] * rstd[k] / T::Compute::from_f64(cols as f64) * dot;
        factors[k] = (T::Compute::splat(simd, rstd[k]), T::Compute::splat(simd, s));
    }
    let mut first = 0;
    while first + lanes <= cols {
        let at = first..first + lanes;
        let w = T::Compute::load(simd, &weight[at.clone()]);
        let mut total = T::Compute::load(simd, &sum[at.clone()]);
        for k in 0..R {
            let dy = T::Compute::load(simd, &dy_rows[k][at.clone()]);
            let x = T::Compute::load(simd, &x_rows[k][at.clone()]);
            let (mut dx, term) = entry::<T::Compute, S>(simd, dy, x, w, factors[k]);
            if extra.is_some() {
                dx = T::Compute::vadd(simd, dx, T::Compute::load(simd, &extra_rows[k][at.clone()]));
            }
            total = T::Compute::vadd(simd, total, term);
            if STREAMED {
                stream::store::<T::Compute, S, T>(simd, dx, &mut dx_rows[k][at.clone()]);
            } else {
                T::Compute::store(simd, dx, &mut dx_rows[k][at.clone()]);
            }
        }
        T::Compute::store(simd, total, &mut sum[at]);
        first += lanes;
    }
    if first < cols {
        let w = T::Compute::load_part(simd, &weight[first..]);
        let mut total = T::Compute::load_part(simd, &sum[first..]);
        for k in 0..R {
            let dy = T::Compute::load_part(simd, &dy_rows[k][first..]);
            let x = T::Compute::load_part(simd, &x_rows[k][first..]);
            let (mut dx, term) = entry::<T::Compute, S>(simd, dy, x, w, factors[k]);
            if extra.is_some() {
                dx = T::Compute::vadd(simd, dx, T::Compute::load_part(simd, &extra_rows[k][first..]));
            }
            total = T::Compute::vadd(simd, total, term);
            T::Compute::store_part(simd, dx, &mut dx_rows[k][first..]);
        }
        T::Compute::store_part(simd, total, &mut sum[first..]);
    }
}

/// dx = r dy w - x s, and dy x r.
#[inline(always)]
fn entry<C: Real, S: Simd>(
    simd: S,
    dy: C::Vector<S>,
    x: C::Vector<S>,
    w: C::Vector<S>,
    (r, s): (C::Vector<S>, C::Vector<S>),
) -> (C::Vector<S>, C::Vector<S>) {
    let scaled = C::vmul(simd, dy, r);
    (C::neg_mul_add(simd, x, s, C::vmul(simd, scaled, w)), C::vmul(simd, scaled, x))
}

#[cfg(test)]
#[path = "cpu_tests.rs"]
mod tests;
