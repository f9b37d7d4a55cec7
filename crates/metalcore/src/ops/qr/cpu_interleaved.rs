//! QR of many small matrices: one matrix in each lane of a vector.
//!
//! A pack of as many matrices as a register has lanes is transposed in, factored with no work across lanes, and
//! transposed out. Columns are kept in groups of four, row by row, so that a group is one block of reflectors and the
//! inner loops read consecutive memory: a block times a group is 16 products for 8 registers read. Sizes are padded
//! with zero rows and columns to multiples of four; missing matrices of the last pack repeat its last one. A lane's
//! operations do not depend on the other lanes, so neither do its results.

#[path = "cpu_interleaved_block.rs"]
mod block;

use super::cpu::{Order, Range, Shape};
use crate::device::cpu::Threads;
use crate::device::cpu::interleaved::{ALIGNMENT, lanes};
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};
use block::{Coefficients, Quad, apply};

/// Matrices from which a pack, though partly filled, beats one matrix after the other on two threads. The better those
/// fill vectors by themselves, the more. Measured on AVX-512 and AVX2.
pub(super) fn fewest_matrices<T: Real>(cols: usize) -> usize {
    (lanes::<T>() * cols / 64).max(2)
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
    let Shape { rows, cols, .. } = shape;
    let lanes = lanes::<T>();
    let (mut q, mut r) = (q, r);
    let mut packs = Vec::with_capacity(shape.batch.div_ceil(lanes));
    for a in a.chunks(lanes * rows * cols) {
        let count = a.len() / (rows * cols);
        let (q_pack, q_rest) = q.split_at_mut(count * rows * q_cols);
        let (r_pack, r_rest) = r.split_at_mut(count * r_rows * cols);
        packs.push(Pack { a, q: q_pack, r: r_pack });
        (q, r) = (q_rest, r_rest);
    }
    let layout = Layout::new(shape, q_cols, r_rows);
    // A pack of the smallest matrices takes less time than waking a thread.
    let chunk = 512 / layout.registers() + 1;
    let scratch = || vec![T::default(); layout.registers() * lanes + ALIGNMENT / size_of::<T>()];
    threads.for_each_mut_init(&mut packs, chunk, scratch, |scratch, pack| {
        let aligned = scratch.as_ptr().align_offset(ALIGNMENT);
        dispatch(Factor { pack, layout, scratch: &mut scratch[aligned..] });
    });
}

struct Pack<'a, T> {
    a: &'a [T],
    q: &'a mut [T],
    r: &'a mut [T],
}

/// Sizes of a pack in scratch memory.
#[derive(Clone, Copy)]
struct Layout {
    rows: usize,
    cols: usize,
    q_cols: usize,
    r_rows: usize,
    reflectors: usize,
    /// Rows, padded.
    height: usize,
    /// Groups of four columns of A.
    a_groups: usize,
    /// Groups of four columns of Q.
    q_groups: usize,
    /// Blocks of four reflectors.
    blocks: usize,
    /// Rows that are transposed together.
    staged_rows: usize,
}

impl Layout {
    fn new(shape: Shape, q_cols: usize, r_rows: usize) -> Layout {
        let (a_groups, q_groups) = (shape.cols.div_ceil(4), q_cols.div_ceil(4));
        Layout {
            rows: shape.rows,
            cols: shape.cols,
            q_cols,
            r_rows,
            reflectors: shape.reflectors(),
            height: shape.rows.next_multiple_of(4),
            a_groups,
            q_groups,
            blocks: shape.reflectors().div_ceil(4),
            // About 4 KiB, so that what is written has left the store buffer when it is read.
            staged_rows: (16 / a_groups.max(q_groups)).max(1),
        }
    }

    fn groups(&self) -> usize {
        self.a_groups.max(self.q_groups)
    }

    /// Columns, the copy of a block, coefficients, staging.
    fn registers(&self) -> usize {
        4 * (self.groups() * self.height + self.height + 4 * self.blocks + self.staged_rows * self.groups())
    }
}

struct Factor<'a, 'b, T> {
    pack: &'a mut Pack<'b, T>,
    layout: Layout,
    scratch: &'a mut [T],
}

impl<T: Real> WithSimd for Factor<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Factor { pack, layout, scratch } = self;
        let Layout { height, a_groups, q_groups, blocks, .. } = layout;
        let (quads, _) = T::vectors_mut::<S>(scratch).0.as_chunks_mut::<4>();
        let (columns, quads) = quads.split_at_mut(layout.groups() * height);
        let (copy, quads) = quads.split_at_mut(height);
        let (coefficients, stage) = quads.split_at_mut(4 * blocks);
        let coefficients = coefficients.as_chunks_mut::<4>().0;
        let stage = &mut stage[..layout.staged_rows * layout.groups()];

        let unscale = load(simd, pack.a, layout, columns, stage);
        triangularise::<T, S>(simd, layout, &mut columns[..a_groups * height], coefficients);
        let zero = T::splat(simd, T::default());
        store::<T, S>(simd, pack.r, layout.r_rows, layout.cols, stage, |row, group| {
            let mut quad = [zero; 4];
            if row < layout.rows && 4 * group + 3 >= row {
                let entries = columns[group * height + row];
                for c in 0..4 {
                    if 4 * group + c >= row {
                        quad[c] = T::vmul(simd, entries[c], unscale);
                    }
                }
            }
            quad
        });
        if q_groups > 0 {
            form_q::<T, S>(simd, layout, &mut columns[..layout.groups() * height], copy, coefficients);
            store::<T, S>(simd, pack.q, layout.rows, layout.q_cols, stage, |row, group| columns[group * height + row]);
        }
    }
}

/// Transposes a pack in, scaled to the middle of the range where need be. Returns what undoes the scaling of R.
#[inline(always)]
fn load<T: Real, S: Simd>(
    simd: S,
    a: &[T],
    layout: Layout,
    columns: &mut [Quad<T, S>],
    stage: &mut [Quad<T, S>],
) -> T::Vector<S> {
    let Layout { rows, cols, height, a_groups, staged_rows, .. } = layout;
    let last = a.len() / (rows * cols) - 1;
    let mut largest = T::splat(simd, T::default());
    for first in (0..rows).step_by(staged_rows) {
        let end = rows.min(first + staged_rows);
        let quadruples = as_quadruples::<T, S>(stage);
        for lane in 0..T::lanes::<S>() {
            let matrix = &a[lane.min(last) * rows * cols..][..rows * cols];
            for (staged, row) in matrix[first * cols..end * cols].chunks_exact(cols).enumerate() {
                let (whole, part) = row.as_chunks::<4>();
                let place = quadruples[staged * a_groups * T::lanes::<S>()..].iter_mut().skip(lane);
                let mut place = place.step_by(T::lanes::<S>());
                for (quadruple, place) in whole.iter().zip(place.by_ref()) {
                    *place = *quadruple;
                }
                if let (Some(place), false) = (place.next(), part.is_empty()) {
                    *place = [T::default(); 4];
                    place[..part.len()].copy_from_slice(part);
                }
            }
        }
        for row in first..end {
            for group in 0..a_groups {
                let quad = T::from_quadruples(simd, stage[(row - first) * a_groups + group]);
                for vector in quad {
                    largest = T::vmax(simd, T::vabs(simd, vector), largest);
                }
                columns[group * height + row] = quad;
            }
        }
    }
    for column in columns.chunks_exact_mut(height) {
        column[rows..].fill([T::splat(simd, T::default()); 4]);
    }
    rescale::<T, S>(simd, largest, &mut columns[..a_groups * height])
}

/// Scales the lanes whose largest entry is too large or too small for squares. Returns the inverse scale.
#[inline(always)]
fn rescale<T: Real, S: Simd>(simd: S, largest: T::Vector<S>, columns: &mut [Quad<T, S>]) -> T::Vector<S> {
    let range = Range::<T>::new();
    let (down, up) = (T::splat(simd, range.down), T::splat(simd, range.up));
    let one = T::splat(simd, T::ONE);
    let is_large = T::less(simd, T::splat(simd, range.large), largest);
    let is_small = T::less(simd, largest, T::splat(simd, range.small));
    if T::any(simd, is_large) || T::any(simd, is_small) {
        let scale = T::select(simd, is_large, down, T::select(simd, is_small, up, one));
        for vector in columns.as_flattened_mut() {
            *vector = T::vmul(simd, *vector, scale);
        }
    }
    T::select(simd, is_large, up, T::select(simd, is_small, down, one))
}

/// The staging area as quadruples: all lanes' first, then all lanes' second, and so on.
#[inline(always)]
fn as_quadruples<T: Real, S: Simd>(stage: &mut [Quad<T, S>]) -> &mut [[T; 4]] {
    pulp::bytemuck::cast_slice_mut::<T::Vector<S>, T>(stage.as_flattened_mut()).as_chunks_mut::<4>().0
}

/// Transposes out `cols` columns of the rows that `source` gives by row and group.
#[inline(always)]
fn store<T: Real, S: Simd>(
    simd: S,
    out: &mut [T],
    rows: usize,
    cols: usize,
    stage: &mut [Quad<T, S>],
    source: impl Fn(usize, usize) -> Quad<T, S>,
) {
    let groups = cols.div_ceil(4);
    let staged_rows = stage.len() / groups;
    for first in (0..rows).step_by(staged_rows) {
        let end = rows.min(first + staged_rows);
        for row in first..end {
            for group in 0..groups {
                stage[(row - first) * groups + group] = T::to_quadruples(simd, source(row, group));
            }
        }
        let quadruples = as_quadruples::<T, S>(stage);
        for (lane, matrix) in out.chunks_exact_mut(rows * cols).enumerate() {
            for (staged, row) in matrix[first * cols..end * cols].chunks_exact_mut(cols).enumerate() {
                let place = quadruples[staged * groups * T::lanes::<S>()..].iter().skip(lane);
                let mut place = place.step_by(T::lanes::<S>());
                let (whole, part) = row.as_chunks_mut::<4>();
                for (quadruple, place) in whole.iter_mut().zip(place.by_ref()) {
                    *quadruple = *place;
                }
                if let (Some(place), false) = (place.next(), part.is_empty()) {
                    part.copy_from_slice(&place[..part.len()]);
                }
            }
        }
    }
}

/// R above the diagonal, V below.
#[inline(always)]
fn triangularise<T: Real, S: Simd>(
    simd: S,
    layout: Layout,
    columns: &mut [Quad<T, S>],
    coefficients: &mut [Coefficients<T, S>],
) {
    let Layout { height, reflectors, .. } = layout;
    for (block, coefficients) in coefficients.iter_mut().enumerate() {
        let (done, rest) = columns.split_at_mut((block + 1) * height);
        let panel = &mut done[block * height + 4 * block..];
        *coefficients = [[T::splat(simd, T::default()); 4]; 4];
        eliminate::<T, S, 0>(simd, panel, coefficients);
        if reflectors > 4 * block + 1 {
            eliminate::<T, S, 1>(simd, panel, coefficients);
        }
        if reflectors > 4 * block + 2 {
            eliminate::<T, S, 2>(simd, panel, coefficients);
        }
        if reflectors > 4 * block + 3 {
            eliminate::<T, S, 3>(simd, panel, coefficients);
        }
        for group in rest.chunks_exact_mut(height) {
            apply::<T, S>(simd, Order::Transposed, panel, coefficients, &mut group[4 * block..]);
        }
    }
}

/// Makes the reflector of column A of a panel whose first row is that of column 0, and applies it to the columns after.
#[inline(always)]
fn eliminate<T: Real, S: Simd, const A: usize>(
    simd: S,
    panel: &mut [Quad<T, S>],
    coefficients: &mut Coefficients<T, S>,
) {
    let (head, tail) = panel.split_at_mut(A + 1);
    let top = &mut head[A];
    let Reflector { beta, tau, inverse } = reflector::<T, S, A>(simd, top[A], tail);
    let mut dots = *top;
    for row in tail.iter_mut() {
        row[A] = T::vmul(simd, row[A], inverse);
        for c in 0..4 {
            if c != A {
                dots[c] = T::mul_add(simd, row[A], row[c], dots[c]);
            }
        }
    }
    coefficients[A][..A].copy_from_slice(&dots[..A]);
    coefficients[A][A] = tau;
    for c in A + 1..4 {
        dots[c] = T::vmul(simd, dots[c], tau);
        top[c] = T::vsub(simd, top[c], dots[c]);
    }
    top[A] = beta;
    for row in tail {
        for c in A + 1..4 {
            row[c] = T::neg_mul_add(simd, row[A], dots[c], row[c]);
        }
    }
}

/// H x = (beta, 0, ...) for x = (alpha, tail); v is the tail times `inverse`.
struct Reflector<V> {
    beta: V,
    tau: V,
    inverse: V,
}

#[inline(always)]
fn reflector<T: Real, S: Simd, const A: usize>(
    simd: S,
    alpha: T::Vector<S>,
    tail: &mut [Quad<T, S>],
) -> Reflector<T::Vector<S>> {
    let zero = T::splat(simd, T::default());
    let one = T::splat(simd, T::ONE);
    let squares = tail.iter().fold(zero, |sum, row| T::mul_add(simd, row[A], row[A], sum));
    let range = Range::<T>::new();
    let tiny = T::less(simd, squares, T::splat(simd, range.tiny_square));
    if !T::any(simd, tiny) {
        return reflector_of_norm::<T, S>(simd, alpha, T::mul_add(simd, alpha, alpha, squares));
    }
    // Some tails are zero or their squares inaccurate. The other lanes are scaled by 1: their bits stay.
    let total = T::mul_add(simd, alpha, alpha, squares);
    let inaccurate = T::less(simd, total, T::splat(simd, range.tiny_square));
    let up = T::select(simd, inaccurate, T::splat(simd, range.up), one);
    let down = T::select(simd, inaccurate, T::splat(simd, range.down), one);
    let (mut squares, mut largest) = (zero, zero);
    for row in tail {
        row[A] = T::vmul(simd, row[A], up);
        squares = T::mul_add(simd, row[A], row[A], squares);
        largest = T::vmax(simd, T::vabs(simd, row[A]), largest);
    }
    let scaled = T::vmul(simd, alpha, up);
    let made = reflector_of_norm::<T, S>(simd, scaled, T::mul_add(simd, scaled, scaled, squares));
    let nonzero = T::less(simd, zero, largest);
    let unless_zero = |yes, no| T::select(simd, tiny, T::select(simd, nonzero, yes, no), yes);
    Reflector {
        beta: unless_zero(T::vmul(simd, made.beta, down), alpha),
        tau: unless_zero(made.tau, zero),
        inverse: unless_zero(made.inverse, zero),
    }
}

#[inline(always)]
fn reflector_of_norm<T: Real, S: Simd>(
    simd: S,
    alpha: T::Vector<S>,
    norm_squared: T::Vector<S>,
) -> Reflector<T::Vector<S>> {
    let beta = T::opposite_sign(simd, T::vsqrt(simd, norm_squared), alpha);
    let tau = T::vdiv(simd, T::vsub(simd, beta, alpha), beta);
    let inverse = T::vdiv(simd, T::splat(simd, T::ONE), T::vsub(simd, alpha, beta));
    Reflector { beta, tau, inverse }
}

/// Q from the reflectors, last block first, in place of V.
#[inline(always)]
fn form_q<T: Real, S: Simd>(
    simd: S,
    layout: Layout,
    columns: &mut [Quad<T, S>],
    copy: &mut [Quad<T, S>],
    coefficients: &[Coefficients<T, S>],
) {
    let Layout { height, q_groups, blocks, .. } = layout;
    let columns = &mut columns[..q_groups * height];
    for (group, column) in columns.chunks_exact_mut(height).enumerate().skip(blocks) {
        identity::<T, S>(simd, column, group);
    }
    for (block, coefficients) in coefficients.iter().enumerate().rev() {
        let own = &mut columns[block * height..][..height];
        let panel = &mut copy[4 * block..];
        panel.copy_from_slice(&own[4 * block..]);
        identity::<T, S>(simd, own, block);
        for group in columns[block * height..].chunks_exact_mut(height) {
            apply::<T, S>(simd, Order::Plain, panel, coefficients, &mut group[4 * block..]);
        }
    }
}

/// Columns 4 * group to 4 * group + 3 of the identity.
#[inline(always)]
fn identity<T: Real, S: Simd>(simd: S, column: &mut [Quad<T, S>], group: usize) {
    column.fill([T::splat(simd, T::default()); 4]);
    for (c, quad) in column.iter_mut().skip(4 * group).take(4).enumerate() {
        quad[c] = T::splat(simd, T::ONE);
    }
}
