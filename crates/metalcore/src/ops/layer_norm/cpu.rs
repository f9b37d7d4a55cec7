//! Layer norm on the host: each row is read from memory once, then from the cache.
//!
//! Values are widened and rounded in registers. Sums go block by block; those of the weight and the bias over fixed
//! groups of rows, then over the groups, both in order: their bits do not depend on the number of threads.

use crate::device::cpu::Threads;
use crate::device::cpu::rows::{CHUNK, SUMMED_ROWS, add_rounded, block_sum, block_sums, sum_partials, summed_task};
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch, stream};
use crate::dtype::Element;

/// Rows of the backward pass that share one pass over the weight and its gradients.
const GROUP: usize = 4;

/// y, mean and rstd of x, or of h = x + residual rounded to T, which goes to the second of `residual`.
pub fn forward<T: Storage>(
    threads: &Threads,
    x: &[T],
    residual: Option<(&[T], &mut [T])>,
    weight: &[T::Compute],
    bias: Option<&[T::Compute]>,
    y: &mut [T],
    mean: &mut [T::Compute],
    rstd: &mut [T::Compute],
    eps: f64,
) {
    let cols = weight.len();
    let rows = rstd.len();
    assert!(x.len() == rows * cols && y.len() == x.len() && mean.len() == rows);
    assert!(bias.is_none_or(|bias| bias.len() == cols));
    if cols == 0 {
        mean.fill(T::Compute::from_f64(f64::NAN));
        return rstd.fill(T::Compute::from_f64(f64::NAN));
    }
    let streamed = stream::wanted(y, cols);
    let eps = T::Compute::from_f64(eps);
    let chunk_rows = (CHUNK / cols).max(1);
    let size = chunk_rows * cols;
    let mut residuals =
        residual.into_iter().flat_map(|(residual, sum)| residual.chunks(size).zip(sum.chunks_mut(size)));
    let chunks =
        x.chunks(size).zip(y.chunks_mut(size)).zip(mean.chunks_mut(chunk_rows).zip(rstd.chunks_mut(chunk_rows)));
    let mut chunks: Vec<_> = chunks
        .map(|((x, y), (mean, rstd))| ForwardRows {
            x,
            residual: residuals.next(),
            weight,
            bias,
            y,
            mean,
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
    bias: Option<&'a [T::Compute]>,
    y: &'a mut [T],
    mean: &'a mut [T::Compute],
    rstd: &'a mut [T::Compute],
    eps: T::Compute,
    streamed: bool,
}

impl<T: Storage> WithSimd for &mut ForwardRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let cols = self.weight.len();
        let count = T::Compute::from_f64(cols as f64);
        for (row, (mean, rstd)) in self.mean.iter_mut().zip(self.rstd.iter_mut()).enumerate() {
            let at = row * cols..(row + 1) * cols;
            let h = match &mut self.residual {
                Some((residual, sum)) => {
                    let sum = &mut sum[at.clone()];
                    add_rounded(simd, &self.x[at.clone()], &residual[at.clone()], sum);
                    &*sum
                }
                None => &self.x[at.clone()],
            };
            *mean = row_sum(simd, h) / count;
            *rstd = T::Compute::ONE / (centred_squares(simd, h, *mean) / count + self.eps).sqrt();
            let next = self.x.get(at.end..at.end + cols).unwrap_or(&self.x[at.clone()]);
            let row = Scaled { h, mean: *mean, rstd: *rstd, weight: self.weight, bias: self.bias, next };
            match (self.streamed, self.bias.is_some()) {
                (true, true) => scale::<T, S, true, true>(simd, row, &mut self.y[at]),
                (true, false) => scale::<T, S, true, false>(simd, row, &mut self.y[at]),
                (false, true) => scale::<T, S, false, true>(simd, row, &mut self.y[at]),
                (false, false) => scale::<T, S, false, false>(simd, row, &mut self.y[at]),
            }
        }
        stream::finish();
    }
}

#[inline(always)]
fn row_sum<T: Storage, S: Simd>(simd: S, h: &[T]) -> T::Compute {
    let lanes = T::Compute::lanes::<S>();
    if T::DTYPE.size() > 2 {
        return exact_sum(simd, h);
    }
    let rest = T::Compute::load_part(simd, h.chunks_exact(lanes).remainder());
    block_sum::<T::Compute, S>(
        simd,
        rest,
        h.len() / lanes,
        #[inline(always)]
        |j, sum| T::Compute::vadd(simd, sum, T::Compute::load(simd, &h[j * lanes..(j + 1) * lanes])),
    )
}

/// The sum, rounded once: where both h and the mean are near 0, an error of the mean is all there is of y. That of 16-bit
/// types is below the rounding of y. Four sums, each beside what was rounded away; few lanes are left to add one by one.
#[inline(always)]
fn exact_sum<T: Storage, S: Simd>(simd: S, h: &[T]) -> T::Compute {
    let lanes = T::Compute::lanes::<S>();
    let mut sums = [T::Compute::splat(simd, T::Compute::default()); 4];
    let mut lost = sums;
    let mut fours = h.chunks_exact(4 * lanes);
    for four in &mut fours {
        for k in 0..4 {
            add_exactly::<T::Compute, S>(simd, &mut sums[k], &mut lost[k], T::Compute::load(simd, &four[k * lanes..]));
        }
    }
    let mut ones = fours.remainder().chunks_exact(lanes);
    for (k, one) in (&mut ones).enumerate() {
        add_exactly::<T::Compute, S>(simd, &mut sums[k], &mut lost[k], T::Compute::load(simd, one));
    }
    let rest = T::Compute::load_part(simd, ones.remainder());
    add_exactly::<T::Compute, S>(simd, &mut sums[3], &mut lost[3], rest);
    for (to, from) in [(0, 1), (2, 3), (0, 2)] {
        let other = sums[from];
        add_exactly::<T::Compute, S>(simd, &mut sums[to], &mut lost[to], other);
        lost[to] = T::Compute::vadd(simd, lost[to], lost[from]);
    }
    let mut values = [T::Compute::default(); 16];
    T::Compute::store(simd, sums[0], &mut values);
    let lost = T::Compute::sum(simd, lost[0]).to_f64();
    if T::DTYPE == crate::DType::F32 {
        let mut quarters = [0.0; 4];
        for (k, value) in values.iter().enumerate() {
            quarters[k % 4] += value.to_f64();
        }
        return T::Compute::from_f64((quarters[0] + quarters[1]) + (quarters[2] + quarters[3]) + lost);
    }
    // Nothing is wider than float64: TwoSum again.
    let (mut total, mut lost) = (0.0, lost);
    for value in values.map(|value| value.to_f64()) {
        let before = total;
        total += value;
        let part = total - before;
        lost += (before - (total - part)) + (value - part);
    }
    T::Compute::from_f64(total + lost)
}

/// sum += x; lost += what that rounds away (Knuth's TwoSum).
#[inline(always)]
fn add_exactly<C: Real, S: Simd>(simd: S, sum: &mut C::Vector<S>, lost: &mut C::Vector<S>, x: C::Vector<S>) {
    let before = *sum;
    *sum = C::vadd(simd, before, x);
    let part = C::vsub(simd, *sum, before);
    let error = C::vadd(simd, C::vsub(simd, before, C::vsub(simd, *sum, part)), C::vsub(simd, x, part));
    *lost = C::vadd(simd, *lost, error);
}

/// Sum of (h - mean)^2.
#[inline(always)]
fn centred_squares<T: Storage, S: Simd>(simd: S, h: &[T], mean: T::Compute) -> T::Compute {
    let lanes = T::Compute::lanes::<S>();
    let mut rest = [T::Compute::default(); 16];
    for (rest, h) in rest.iter_mut().zip(h.chunks_exact(lanes).remainder()) {
        *rest = T::Compute::get(*h) - mean;
    }
    let rest = T::Compute::load(simd, &rest);
    let mean = T::Compute::splat(simd, mean);
    block_sum::<T::Compute, S>(
        simd,
        T::Compute::vmul(simd, rest, rest),
        h.len() / lanes,
        #[inline(always)]
        |j, sum| {
            let d = T::Compute::vsub(simd, T::Compute::load(simd, &h[j * lanes..(j + 1) * lanes]), mean);
            T::Compute::mul_add(simd, d, d, sum)
        },
    )
}

/// A row and what it is scaled with.
struct Scaled<'a, T: Storage> {
    h: &'a [T],
    mean: T::Compute,
    rstd: T::Compute,
    weight: &'a [T::Compute],
    bias: Option<&'a [T::Compute]>,
    /// A row of x.
    next: &'a [T],
}

/// y := (h - mean) r w + b. Asks for the row that is next; that of float32 comes in time, as its exact sum takes longer.
#[inline(always)]
fn scale<T: Storage, S: Simd, const STREAMED: bool, const BIAS: bool>(simd: S, row: Scaled<'_, T>, y: &mut [T]) {
    let lanes = T::Compute::lanes::<S>();
    let Scaled { h, mean, rstd, weight, bias, next } = row;
    let (mean, r) = (T::Compute::splat(simd, mean), T::Compute::splat(simd, rstd));
    let bias = if BIAS { bias.expect("there is a bias") } else { weight };
    let value = |h, w, b| {
        let scaled = T::Compute::vmul(simd, T::Compute::vsub(simd, h, mean), r);
        if BIAS { T::Compute::mul_add(simd, scaled, w, b) } else { T::Compute::vmul(simd, scaled, w) }
    };
    let whole = h.len() / lanes;
    for j in 0..whole {
        let at = j * lanes..(j + 1) * lanes;
        if size_of::<T>() == 2 {
            stream::prefetch(&next[at.start]);
        }
        let h = T::Compute::load(simd, &h[at.clone()]);
        let (w, b) = (T::Compute::load(simd, &weight[at.clone()]), T::Compute::load(simd, &bias[at.clone()]));
        if STREAMED {
            stream::store::<T::Compute, S, T>(simd, value(h, w, b), &mut y[at]);
        } else {
            T::Compute::store(simd, value(h, w, b), &mut y[at]);
        }
    }
    let rest = whole * lanes..;
    let h = T::Compute::load_part(simd, &h[rest.clone()]);
    let (w, b) = (T::Compute::load_part(simd, &weight[rest.clone()]), T::Compute::load_part(simd, &bias[rest.clone()]));
    T::Compute::store_part(simd, value(h, w, b), &mut y[rest]);
}

/// dx; and dw, then db, unrounded, if wanted. `x` is what was normalised; `d_sum` is a gradient of it that joins dx.
pub fn backward<T: Storage>(
    threads: &Threads,
    dy: &[T],
    x: &[T],
    weight: &[T::Compute],
    (mean, rstd): (&[T::Compute], &[T::Compute]),
    d_sum: Option<&[T]>,
    dx: &mut [T],
    sums: bool,
) -> Vec<T::Compute> {
    let (rows, cols) = (rstd.len(), weight.len());
    assert!(x.len() == rows * cols && dy.len() == x.len() && dx.len() == x.len() && mean.len() == rows);
    assert!(d_sum.is_none_or(|d| d.len() == x.len()));
    if cols == 0 {
        return Vec::new();
    }
    let streamed = stream::wanted(dx, cols);
    // With a weight gradient the rows of a task are those of one partial sum: a fixed number.
    let task_rows = match sums {
        true => summed_task(rows, cols),
        false => (CHUNK / cols).max(1),
    };
    let size = task_rows * cols;
    let mut partials = vec![T::Compute::default(); if sums { rows.div_ceil(task_rows) * 2 * cols } else { 0 }];
    let mut parts = partials.chunks_exact_mut(2 * cols);
    let mut extra = d_sum.into_iter().flat_map(|d| d.chunks(size));
    let tasks = dy.chunks(size).zip(x.chunks(size)).zip(dx.chunks_mut(size));
    let tasks = tasks.zip(mean.chunks(task_rows).zip(rstd.chunks(task_rows)));
    let mut tasks: Vec<_> = tasks
        .map(|(((dy, x), dx), (mean, rstd))| {
            let extra = extra.next();
            BackwardRows { dy, x, weight, mean, rstd, extra, dx, partial: parts.next(), streamed }
        })
        .collect();
    let sum = || vec![T::Compute::default(); 2 * cols];
    threads.for_each_mut_init(&mut tasks, 1, sum, |sum, rows| dispatch(Summed { rows, sum }));
    let mut total = vec![T::Compute::default(); if sums { 2 * cols } else { 0 }];
    if sums && rows > 0 {
        sum_partials(threads, &partials, &mut total);
    }
    total
}

/// Rounds a sum to its type.
pub fn rounded<T: Storage, W: Storage>(sums: &[T::Compute], out: &mut [W]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = sum.put();
    }
}

/// Some rows of the backward pass.
struct BackwardRows<'a, T: Storage> {
    dy: &'a [T],
    x: &'a [T],
    weight: &'a [T::Compute],
    mean: &'a [T::Compute],
    rstd: &'a [T::Compute],
    extra: Option<&'a [T]>,
    dx: &'a mut [T],
    /// dw, then db.
    partial: Option<&'a mut [T::Compute]>,
    streamed: bool,
}

struct Summed<'a, 'b, T: Storage> {
    rows: &'a mut BackwardRows<'b, T>,
    /// Room for dw and db of [`SUMMED_ROWS`].
    sum: &'a mut [T::Compute],
}

impl<T: Storage> WithSimd for Summed<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Summed { rows, sum } = self;
        let cols = rows.weight.len();
        for (block, rstd) in rows.rstd.chunks(SUMMED_ROWS).enumerate() {
            sum.fill(T::Compute::default());
            for (group, rstd) in rstd.chunks(GROUP).enumerate() {
                let first = block * SUMMED_ROWS + group * GROUP;
                let at = first * cols..(first + rstd.len()) * cols;
                let (dy, x, dx) = (&rows.dy[at.clone()], &rows.x[at.clone()], &mut rows.dx[at.clone()]);
                let mean = &rows.mean[first..first + rstd.len()];
                let group =
                    Rows { dy, x, weight: rows.weight, mean, rstd, extra: rows.extra.map(|extra| &extra[at]), dx };
                if rows.streamed {
                    group_gradients::<T, S, true>(simd, group, sum);
                } else {
                    group_gradients::<T, S, false>(simd, group, sum);
                }
            }
            if let Some(partial) = rows.partial.as_deref_mut() {
                partial.iter_mut().zip(sum.iter()).for_each(|(partial, sum)| *partial += *sum);
            }
        }
        stream::finish();
    }
}

/// Rows that are neighbours.
struct Rows<'a, T: Storage> {
    dy: &'a [T],
    x: &'a [T],
    weight: &'a [T::Compute],
    mean: &'a [T::Compute],
    rstd: &'a [T::Compute],
    extra: Option<&'a [T]>,
    dx: &'a mut [T],
}

/// dx of up to [`GROUP`] rows; their dy n and dy onto `sum`.
#[inline(always)]
fn group_gradients<T: Storage, S: Simd, const STREAMED: bool>(simd: S, group: Rows<'_, T>, sum: &mut [T::Compute]) {
    if group.rstd.len() == GROUP {
        return rows_gradients::<T, S, GROUP, STREAMED>(simd, group, sum);
    }
    let Rows { dy, x, weight, mean, rstd, extra, dx } = group;
    let cols = weight.len();
    for (row, dx) in dx.chunks_exact_mut(cols).enumerate() {
        let at = row * cols..(row + 1) * cols;
        let extra = extra.map(|extra| &extra[at.clone()]);
        let (mean, rstd) = (&mean[row..=row], &rstd[row..=row]);
        let one = Rows { dy: &dy[at.clone()], x: &x[at], weight, mean, rstd, extra, dx };
        rows_gradients::<T, S, 1, STREAMED>(simd, one, sum);
    }
}

/// What a row's gradient is made with, in every lane.
#[derive(Clone, Copy)]
struct Factors<V> {
    mean: V,
    r: V,
    mean_g: V,
    mean_gn: V,
}

/// R rows together: one pass for each row's sums, one over the columns of all.
#[inline(always)]
fn rows_gradients<T: Storage, S: Simd, const R: usize, const STREAMED: bool>(
    simd: S,
    rows: Rows<'_, T>,
    sum: &mut [T::Compute],
) {
    let Rows { dy, x, weight, mean, rstd, extra, dx } = rows;
    let cols = weight.len();
    let lanes = T::Compute::lanes::<S>();
    let zero = T::Compute::splat(simd, T::Compute::default());
    let mut factors = [Factors { mean: zero, r: zero, mean_g: zero, mean_gn: zero }; R];
    let (mut dy_rows, mut x_rows, mut extra_rows) = ([&[][..]; R], [&[][..]; R], [&[][..]; R]);
    let mut dx_rows: [&mut [T]; R] = std::array::from_fn(|_| &mut [][..]);
    for (k, dx) in dx.chunks_exact_mut(cols).take(R).enumerate() {
        let at = k * cols..(k + 1) * cols;
        (dy_rows[k], x_rows[k], dx_rows[k]) = (&dy[at.clone()], &x[at.clone()], dx);
        if let Some(extra) = extra {
            extra_rows[k] = &extra[at];
        }
        factors[k] = row_factors(simd, dy_rows[k], x_rows[k], weight, mean[k], rstd[k]);
    }
    let (dw, db) = sum.split_at_mut(cols);
    let mut first = 0;
    while first + lanes <= cols {
        let at = first..first + lanes;
        let w = T::Compute::load(simd, &weight[at.clone()]);
        let mut totals = (T::Compute::load(simd, &dw[at.clone()]), T::Compute::load(simd, &db[at.clone()]));
        for k in 0..R {
            let dy = T::Compute::load(simd, &dy_rows[k][at.clone()]);
            let x = T::Compute::load(simd, &x_rows[k][at.clone()]);
            let mut dx = entry::<T::Compute, S>(simd, dy, x, w, factors[k], &mut totals);
            if extra.is_some() {
                dx = T::Compute::vadd(simd, dx, T::Compute::load(simd, &extra_rows[k][at.clone()]));
            }
            if STREAMED {
                stream::store::<T::Compute, S, T>(simd, dx, &mut dx_rows[k][at.clone()]);
            } else {
                T::Compute::store(simd, dx, &mut dx_rows[k][at.clone()]);
            }
        }
        T::Compute::store(simd, totals.0, &mut dw[at.clone()]);
        T::Compute::store(simd, totals.1, &mut db[at]);
        first += lanes;
    }
    if first < cols {
        let w = T::Compute::load_part(simd, &weight[first..]);
        let mut totals = (T::Compute::load_part(simd, &dw[first..]), T::Compute::load_part(simd, &db[first..]));
        for k in 0..R {
            let dy = T::Compute::load_part(simd, &dy_rows[k][first..]);
            let x = T::Compute::load_part(simd, &x_rows[k][first..]);
            let mut dx = entry::<T::Compute, S>(simd, dy, x, w, factors[k], &mut totals);
            if extra.is_some() {
                dx = T::Compute::vadd(simd, dx, T::Compute::load_part(simd, &extra_rows[k][first..]));
            }
            T::Compute::store_part(simd, dx, &mut dx_rows[k][first..]);
        }
        T::Compute::store_part(simd, totals.0, &mut dw[first..]);
        T::Compute::store_part(simd, totals.1, &mut db[first..]);
    }
}

/// mean(g) and mean(g n) of a row, beside its statistics.
#[inline(always)]
fn row_factors<T: Storage, S: Simd>(
    simd: S,
    dy: &[T],
    x: &[T],
    weight: &[T::Compute],
    mean: T::Compute,
    rstd: T::Compute,
) -> Factors<<T::Compute as Real>::Vector<S>> {
    let lanes = T::Compute::lanes::<S>();
    let (cols, whole) = (dy.len(), dy.len() / lanes);
    let rest = whole * lanes..cols;
    let (mean, r) = (T::Compute::splat(simd, mean), T::Compute::splat(simd, rstd));
    let n = |x| T::Compute::vmul(simd, T::Compute::vsub(simd, x, mean), r);
    // Beyond the row dy is 0, and so is every term.
    let n_rest = n(T::Compute::load_part(simd, &x[rest.clone()]));
    let w_rest = T::Compute::load_part(simd, &weight[rest.clone()]);
    let g_rest = T::Compute::vmul(simd, T::Compute::load_part(simd, &dy[rest]), w_rest);
    let [sum_g, sum_gn] = block_sums::<T::Compute, S, 2>(
        simd,
        [g_rest, T::Compute::vmul(simd, g_rest, n_rest)],
        whole,
        #[inline(always)]
        |j, [sum_g, sum_gn]| {
            let at = j * lanes..(j + 1) * lanes;
            let (dy, w) = (T::Compute::load(simd, &dy[at.clone()]), T::Compute::load(simd, &weight[at.clone()]));
            let (g, n) = (T::Compute::vmul(simd, dy, w), n(T::Compute::load(simd, &x[at])));
            [T::Compute::vadd(simd, sum_g, g), T::Compute::mul_add(simd, g, n, sum_gn)]
        },
    );
    let mean_of = |sum| T::Compute::splat(simd, sum / T::Compute::from_f64(cols as f64));
    Factors { mean, r, mean_g: mean_of(sum_g), mean_gn: mean_of(sum_gn) }
}

/// dx = r (g - mean(g) - n mean(g n)); dy n and dy onto the totals.
#[inline(always)]
fn entry<C: Real, S: Simd>(
    simd: S,
    dy: C::Vector<S>,
    x: C::Vector<S>,
    w: C::Vector<S>,
    row: Factors<C::Vector<S>>,
    totals: &mut (C::Vector<S>, C::Vector<S>),
) -> C::Vector<S> {
    let n = C::vmul(simd, C::vsub(simd, x, row.mean), row.r);
    *totals = (C::mul_add(simd, dy, n, totals.0), C::vadd(simd, totals.1, dy));
    let centred = C::vsub(simd, C::vmul(simd, dy, w), row.mean_g);
    C::vmul(simd, C::neg_mul_add(simd, n, row.mean_gn, centred), row.r)
}
