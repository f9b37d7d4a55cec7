//! QR of one matrix of any size: blocks of eight reflectors applied to strips of columns.
//!
//! The matrix is kept as strips of 32 columns, each row by row in its own memory, so that neither sizes that are powers
//! of two nor long rows defeat the cache. A strip is factored block by block (its columns are the vector lanes, so no
//! sum goes across lanes), then its four blocks are applied to each later strip while that one is in the cache
//! (right-looking; LAPACK `geqrt` with the triangle of `larft` replaced by substitution). Q is formed strip by strip
//! from the identity, last block first. Sizes are padded with zeros to multiples of 8 rows and 32 columns. A column's
//! operations do not depend on which strips run where, so neither do its bits.

use super::cpu::{Order, Range, Shape};
use crate::device::cpu::Threads;
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};

/// Reflectors in a block.
const BLOCK: usize = 8;
/// Columns in a strip.
const STRIP: usize = 32;
/// Rows summed up before the sum joins the total, which keeps rounding errors of tall matrices small.
const SUMMED_ROWS: usize = 256;

/// A row of a strip.
type Row<T> = [T; STRIP];

/// A block of reflectors v_0 ... v_7: v_aᵀ v_c at [a][c] for c < a, and tau at [a][a].
type Coefficients<T> = [[T; BLOCK]; BLOCK];

/// Memory of one matrix at work.
struct Workspace<T> {
    /// A, then R, then Q.
    strips: Vec<Row<T>>,
    /// For each block the rows of V, with the ones and zeros of its upper triangle; rows before the block are unused.
    reflectors: Vec<[T; BLOCK]>,
    coefficients: Vec<Coefficients<T>>,
    column: Vec<T>,
}

/// See [`super::cpu::factor`]; neither M nor N is 0.
pub(super) fn factor<T: Real>(
    threads: &Threads,
    a: &[T],
    shape: Shape,
    q: &mut [T],
    q_cols: usize,
    r: &mut [T],
    r_rows: usize,
) {
    let Shape { batch, rows, cols } = shape;
    let (mut q, mut r) = (q, r);
    let mut items = Vec::with_capacity(batch);
    for a in a.chunks_exact(rows * cols) {
        let (q_item, q_rest) = q.split_at_mut(rows * q_cols);
        let (r_item, r_rest) = r.split_at_mut(r_rows * cols);
        items.push(Item { a, q: q_item, r: r_item });
        (q, r) = (q_rest, r_rest);
    }
    // With fewer matrices than threads, the strips of a matrix are shared instead.
    let one = Threads::new(1);
    let (outer, inner) = if batch >= threads.count() { (threads, &one) } else { (&one, threads) };
    let workspace = || Workspace::new(shape, q_cols);
    outer.for_each_mut_init(&mut items, 1, workspace, |workspace, item| {
        workspace.factor(inner, item, shape, q_cols);
    });
}

struct Item<'a, T> {
    a: &'a [T],
    q: &'a mut [T],
    r: &'a mut [T],
}

impl<T: Real> Workspace<T> {
    fn new(shape: Shape, q_cols: usize) -> Workspace<T> {
        let height = shape.rows.next_multiple_of(BLOCK);
        let blocks = shape.reflectors().div_ceil(BLOCK);
        Workspace {
            strips: vec![[T::default(); STRIP]; shape.cols.max(q_cols).div_ceil(STRIP) * height],
            reflectors: vec![[T::default(); BLOCK]; blocks * height],
            coefficients: vec![Default::default(); blocks],
            column: vec![T::default(); height],
        }
    }

    fn factor(&mut self, threads: &Threads, item: &mut Item<'_, T>, shape: Shape, q_cols: usize) {
        let Shape { rows, cols, .. } = shape;
        let height = rows.next_multiple_of(BLOCK);
        let a_strips = &mut self.strips[..cols.div_ceil(STRIP) * height];
        for (strip, memory) in a_strips.chunks_exact_mut(height).enumerate() {
            load_strip(item.a, cols, strip * STRIP, memory);
        }
        let unscale = dispatch(Rescale { strips: a_strips });
        self.triangularise(threads, shape);
        for (i, row) in item.r.chunks_exact_mut(cols).enumerate() {
            row[..i.min(cols)].fill(T::default());
            for (strip, part) in row.chunks_mut(STRIP).enumerate().skip(i / STRIP) {
                let above = i.saturating_sub(strip * STRIP).min(part.len())..part.len();
                part[above.clone()].copy_from_slice(&self.strips[strip * height + i][above]);
            }
        }
        if unscale != T::ONE {
            item.r.iter_mut().for_each(|entry| *entry *= unscale);
        }
        if q_cols > 0 {
            self.form_q(threads, height, q_cols);
            for (i, row) in item.q.chunks_exact_mut(q_cols).enumerate() {
                for (strip, part) in row.chunks_mut(STRIP).enumerate() {
                    part.copy_from_slice(&self.strips[strip * height + i][..part.len()]);
                }
            }
        }
    }

    /// R on and above the diagonal.
    fn triangularise(&mut self, threads: &Threads, shape: Shape) {
        let height = shape.rows.next_multiple_of(BLOCK);
        let mut strips: Vec<_> = self.strips.chunks_exact_mut(height).take(shape.cols.div_ceil(STRIP)).collect();
        let panels = self.coefficients.chunks_mut(STRIP / BLOCK);
        let panels = panels.zip(self.reflectors.chunks_mut(STRIP / BLOCK * height));
        for (index, (coefficients, reflectors)) in panels.enumerate() {
            let first = index * STRIP;
            let count = shape.reflectors() - first;
            let (strip, later) = strips[index..].split_first_mut().expect("a reflector has a column");
            dispatch(FactorStrip { strip, first, count, reflectors, coefficients, column: &mut self.column });
            let (reflectors, coefficients) = (&*reflectors, &*coefficients);
            let mut later: Vec<_> = later.iter_mut().enumerate().collect();
            threads.for_each_mut(&mut later, 1, |(after, strip)| {
                let width = shape.cols - first - (*after + 1) * STRIP;
                dispatch(ApplyPanel { reflectors, coefficients, first, strip, width, order: Order::Transposed });
            });
        }
    }

    /// Q in place of R: the reflectors, last first, times the identity. Those after a column leave it as it is.
    fn form_q(&mut self, threads: &Threads, height: usize, q_cols: usize) {
        let mut strips: Vec<_> =
            self.strips.chunks_exact_mut(height).take(q_cols.div_ceil(STRIP)).enumerate().collect();
        let (reflectors, coefficients) = (&self.reflectors, &self.coefficients);
        // From the last strip, which has the most work.
        strips.reverse();
        threads.for_each_mut(&mut strips, 1, |(index, strip)| {
            strip.fill([T::default(); STRIP]);
            for (c, row) in strip.iter_mut().skip(*index * STRIP).take(STRIP).enumerate() {
                row[c] = T::ONE;
            }
            let blocks = coefficients.len().min((*index + 1) * STRIP / BLOCK);
            let (reflectors, coefficients) = (&reflectors[..blocks * height], &coefficients[..blocks]);
            let width = q_cols - *index * STRIP;
            dispatch(ApplyPanel { reflectors, coefficients, first: 0, strip, width, order: Order::Plain });
        });
    }
}

/// Columns from `first` on of a row-major matrix, padded with zeros.
fn load_strip<T: Real>(a: &[T], cols: usize, first: usize, strip: &mut [Row<T>]) {
    let width = STRIP.min(cols - first);
    let rows = a.len() / cols;
    for (row, source) in strip.iter_mut().zip(a.chunks_exact(cols)) {
        row[..width].copy_from_slice(&source[first..first + width]);
        row[width..].fill(T::default());
    }
    strip[rows..].fill([T::default(); STRIP]);
}

/// Scales a matrix whose largest entry is too large or too small for squares. Gives the inverse scale.
struct Rescale<'a, T> {
    strips: &'a mut [Row<T>],
}

impl<T: Real> WithSimd for Rescale<'_, T> {
    type Output = T;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> T {
        let vectors = T::vectors_mut::<S>(self.strips.as_flattened_mut()).0;
        let zero = T::splat(simd, T::default());
        let largest = vectors.iter().fold(zero, |max, vector| T::vmax(simd, T::vabs(simd, *vector), max));
        let largest = T::largest(simd, largest);
        let range = Range::<T>::new();
        let (scale, unscale) = if largest > range.large {
            (range.down, range.up)
        } else if largest < range.small {
            (range.up, range.down)
        } else {
            return T::ONE;
        };
        for vector in vectors {
            *vector = T::vmul(simd, *vector, T::splat(simd, scale));
        }
        unscale
    }
}

/// Makes the reflectors of a strip whose first one starts in row `first`.
struct FactorStrip<'a, T> {
    strip: &'a mut [Row<T>],
    first: usize,
    /// Reflectors in this strip and the later ones.
    count: usize,
    reflectors: &'a mut [[T; BLOCK]],
    coefficients: &'a mut [Coefficients<T>],
    column: &'a mut [T],
}

impl<T: Real> WithSimd for FactorStrip<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let FactorStrip { strip, first, count, reflectors, coefficients, column } = self;
        let height = strip.len();
        let lanes = T::lanes::<S>();
        // Columns that share vectors with the block are updated reflector by reflector, later ones by the block.
        let group = lanes.max(BLOCK);
        for (index, (v, coefficients)) in reflectors.chunks_exact_mut(height).zip(coefficients).enumerate() {
            let left = index * BLOCK;
            let start = left / group * group;
            let (panel, v) = (&mut strip[first + left..], &mut v[first + left..]);
            *coefficients = Default::default();
            for a in 0..BLOCK.min(count - left) {
                let dots = eliminate(simd, panel, Place { column: left + a, row: a, start, group }, column);
                coefficients[a][..=a].copy_from_slice(&dots[left..=left + a]);
            }
            for (i, (v, row)) in v.iter_mut().zip(panel.iter()).enumerate() {
                v.copy_from_slice(&row[left..left + BLOCK]);
                if i < BLOCK {
                    v[i..].fill(T::default());
                    v[i] = T::ONE;
                }
            }
            apply_block(simd, Order::Transposed, v, coefficients, panel, (start + group) / lanes..STRIP / lanes);
        }
    }
}

/// Where a reflector is made: its column and first row, and the columns to which it is applied at once.
#[derive(Clone, Copy)]
struct Place {
    column: usize,
    row: usize,
    start: usize,
    group: usize,
}

/// Makes a reflector and applies it to the later columns of its group. Its own column keeps v below the diagonal.
/// Returns vᵀ times the columns before, and tau in its own place.
#[inline(always)]
fn eliminate<T: Real, S: Simd>(simd: S, panel: &mut [Row<T>], place: Place, column: &mut [T]) -> Row<T> {
    let Place { column: c, row, start, group } = place;
    let (head, tail) = panel.split_at_mut(row + 1);
    let top = &mut head[row];
    let v = &mut column[..tail.len()];
    for (v, row) in v.iter_mut().zip(tail.iter()) {
        *v = row[c];
    }
    let Reflector { beta, tau } = reflector(simd, top[c], v);
    top[c] = T::ONE;
    let lanes = T::lanes::<S>();
    let mut dots = [T::default(); STRIP];
    for at in (start..start + group).step_by(lanes) {
        let dot = column_dots(simd, top, v, tail, at);
        T::store(simd, dot, &mut dots[at..at + lanes]);
    }
    // Columns up to this one keep what they have.
    let mut factors = [T::default(); STRIP];
    for j in c + 1..start + group {
        factors[j] = tau * dots[j];
        top[j] -= factors[j];
    }
    for at in (start..start + group).step_by(lanes) {
        let factor = T::load(simd, &factors[at..at + lanes]);
        for (v, row) in v.iter().zip(tail.iter_mut()) {
            let entries = &mut T::vectors_mut::<S>(&mut row[at..at + lanes]).0[0];
            *entries = T::neg_mul_add(simd, T::splat(simd, *v), factor, *entries);
        }
    }
    for (v, row) in v.iter().zip(tail) {
        row[c] = *v;
    }
    top[c] = beta;
    dots[c] = tau;
    dots
}

/// vᵀ times the columns of one vector, where v is 1 in row `top` and `v` in the rows of `tail`.
#[inline(always)]
fn column_dots<T: Real, S: Simd>(simd: S, top: &Row<T>, v: &[T], tail: &[Row<T>], at: usize) -> T::Vector<S> {
    let lanes = T::lanes::<S>();
    let entries = |row: &Row<T>| T::vectors::<S>(&row[at..at + lanes]).0[0];
    // Four sums, so that one multiplication need not wait for the one before.
    let mut sums = [T::splat(simd, T::default()); 4];
    let (v, v_rest) = v.as_chunks::<4>();
    let (tail, tail_rest) = tail.as_chunks::<4>();
    for (v, rows) in v.iter().zip(tail) {
        for k in 0..4 {
            sums[k] = T::mul_add(simd, T::splat(simd, v[k]), entries(&rows[k]), sums[k]);
        }
    }
    for (k, (v, row)) in v_rest.iter().zip(tail_rest).enumerate() {
        sums[k] = T::mul_add(simd, T::splat(simd, *v), entries(row), sums[k]);
    }
    let pairs = [T::vadd(simd, sums[0], sums[1]), T::vadd(simd, sums[2], sums[3])];
    T::vadd(simd, T::vadd(simd, pairs[0], pairs[1]), entries(top))
}

/// H x = (beta, 0, ...)
struct Reflector<T> {
    beta: T,
    tau: T,
}

/// The reflector of (alpha, tail), whose v takes the place of the tail.
#[inline(always)]
fn reflector<T: Real, S: Simd>(simd: S, alpha: T, tail: &mut [T]) -> Reflector<T> {
    let range = Range::<T>::new();
    let mut alpha = alpha;
    let mut down = T::ONE;
    let mut squares = sum_of_squares(simd, tail);
    if squares < range.tiny_square {
        if tail.iter().all(|entry| *entry == T::default()) {
            return Reflector { beta: alpha, tau: T::default() };
        }
        if alpha * alpha + squares < range.tiny_square {
            tail.iter_mut().for_each(|entry| *entry *= range.up);
            alpha *= range.up;
            squares = sum_of_squares(simd, tail);
            down = range.down;
        }
    }
    let norm = (alpha * alpha + squares).sqrt();
    let beta = if alpha.is_sign_negative() { norm } else { -norm };
    let inverse = T::ONE / (alpha - beta);
    let (vectors, rest) = T::vectors_mut::<S>(tail);
    for vector in vectors {
        *vector = T::vmul(simd, *vector, T::splat(simd, inverse));
    }
    rest.iter_mut().for_each(|entry| *entry *= inverse);
    Reflector { beta: beta * down, tau: (beta - alpha) / beta }
}

#[inline(always)]
fn sum_of_squares<T: Real, S: Simd>(simd: S, values: &[T]) -> T {
    let (vectors, rest) = T::vectors::<S>(values);
    let rest = T::load_part(simd, rest);
    let mut sums = [T::vmul(simd, rest, rest), T::splat(simd, T::default())];
    let (pairs, single) = vectors.as_chunks::<2>();
    for pair in pairs {
        for k in 0..2 {
            sums[k] = T::mul_add(simd, pair[k], pair[k], sums[k]);
        }
    }
    for vector in single {
        sums[0] = T::mul_add(simd, *vector, *vector, sums[0]);
    }
    T::sum(simd, T::vadd(simd, sums[0], sums[1]))
}

/// Applies the blocks of a panel, whose first one starts in row `first`, to a strip.
struct ApplyPanel<'a, T> {
    reflectors: &'a [[T; BLOCK]],
    coefficients: &'a [Coefficients<T>],
    first: usize,
    strip: &'a mut [Row<T>],
    /// Columns in this strip and the later ones; padding is not worked on.
    width: usize,
    order: Order,
}

impl<T: Real> WithSimd for ApplyPanel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let ApplyPanel { reflectors, coefficients, first, strip, width, order } = self;
        let height = strip.len();
        let vectors = width.min(STRIP).div_ceil(T::lanes::<S>());
        let blocks = coefficients.len();
        for step in 0..blocks {
            let block = if order == Order::Plain { blocks - 1 - step } else { step };
            let row = first + block * BLOCK;
            let v = &reflectors[block * height..][row..height];
            apply_block(simd, order, v, &coefficients[block], &mut strip[row..], 0..vectors);
        }
    }
}

/// C := C - V substitute(Vᵀ C) for some vectors of a strip: by twos, with as many reflectors at once as registers hold.
#[inline(always)]
fn apply_block<T: Real, S: Simd>(
    simd: S,
    order: Order,
    v: &[[T; BLOCK]],
    coefficients: &Coefficients<T>,
    strip: &mut [Row<T>],
    vectors: std::ops::Range<usize>,
) {
    let mut at = vectors.start;
    while at < vectors.end {
        if at + 2 <= vectors.end {
            apply_tile::<T, S, 2>(simd, order, v, coefficients, strip, at);
        } else {
            apply_tile::<T, S, 1>(simd, order, v, coefficients, strip, at);
        }
        at += 2;
    }
}

#[inline(always)]
fn apply_tile<T: Real, S: Simd, const WIDTH: usize>(
    simd: S,
    order: Order,
    v: &[[T; BLOCK]],
    coefficients: &Coefficients<T>,
    strip: &mut [Row<T>],
    at: usize,
) {
    let mut w = [[T::splat(simd, T::default()); WIDTH]; BLOCK];
    for (v, rows) in v.chunks(SUMMED_ROWS).zip(strip.chunks(SUMMED_ROWS)) {
        if S::REGISTER_COUNT >= 32 {
            tile_dots::<T, S, WIDTH, 8>(simd, v, rows, at, &mut w, 0);
        } else {
            tile_dots::<T, S, WIDTH, 4>(simd, v, rows, at, &mut w, 0);
            tile_dots::<T, S, WIDTH, 4>(simd, v, rows, at, &mut w, 4);
        }
    }
    for step in 0..BLOCK {
        let a = if order == Order::Plain { BLOCK - 1 - step } else { step };
        for k in 0..WIDTH {
            let mut sum = w[a][k];
            for c in 0..BLOCK {
                let (used, product) = match order {
                    Order::Transposed => (c < a, coefficients[a][c]),
                    Order::Plain => (c > a, coefficients[c][a]),
                };
                if used {
                    sum = T::neg_mul_add(simd, T::splat(simd, product), w[c][k], sum);
                }
            }
            w[a][k] = T::vmul(simd, T::splat(simd, coefficients[a][a]), sum);
        }
    }
    if S::REGISTER_COUNT >= 32 {
        tile_update::<T, S, WIDTH, 8>(simd, v, strip, at, &w, 0);
    } else {
        tile_update::<T, S, WIDTH, 4>(simd, v, strip, at, &w, 0);
        tile_update::<T, S, WIDTH, 4>(simd, v, strip, at, &w, 4);
    }
}

/// w += Vᵀ C for COUNT reflectors from `from` on.
#[inline(always)]
fn tile_dots<T: Real, S: Simd, const WIDTH: usize, const COUNT: usize>(
    simd: S,
    v: &[[T; BLOCK]],
    rows: &[Row<T>],
    at: usize,
    w: &mut [[T::Vector<S>; WIDTH]; BLOCK],
    from: usize,
) {
    let mut sums = [[T::splat(simd, T::default()); WIDTH]; COUNT];
    for (v, row) in v.iter().zip(rows) {
        let entries = &T::vectors::<S>(row).0[at..at + WIDTH];
        for a in 0..COUNT {
            for k in 0..WIDTH {
                sums[a][k] = T::mul_add(simd, T::splat(simd, v[from + a]), entries[k], sums[a][k]);
            }
        }
    }
    for a in 0..COUNT {
        for k in 0..WIDTH {
            w[from + a][k] = T::vadd(simd, w[from + a][k], sums[a][k]);
        }
    }
}

/// C -= V w for COUNT reflectors from `from` on.
#[inline(always)]
fn tile_update<T: Real, S: Simd, const WIDTH: usize, const COUNT: usize>(
    simd: S,
    v: &[[T; BLOCK]],
    rows: &mut [Row<T>],
    at: usize,
    w: &[[T::Vector<S>; WIDTH]; BLOCK],
    from: usize,
) {
    // A copy of their own, for the compiler to keep in registers.
    let mut factors = [[T::splat(simd, T::default()); WIDTH]; COUNT];
    for a in 0..COUNT {
        for k in 0..WIDTH {
            factors[a][k] = w[from + a][k];
        }
    }
    for (v, row) in v.iter().zip(rows) {
        let entries = &mut T::vectors_mut::<S>(row).0[at..at + WIDTH];
        let mut sums: [_; WIDTH] = std::array::from_fn(|k| entries[k]);
        for a in 0..COUNT {
            for k in 0..WIDTH {
                sums[k] = T::neg_mul_add(simd, T::splat(simd, v[from + a]), factors[a][k], sums[k]);
            }
        }
        entries.copy_from_slice(&sums);
    }
}
