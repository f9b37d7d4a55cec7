//! svd on the host: how matrices are laid in lanes, and what is made of orthogonal columns.

use super::cpu_jacobi::{Rows, orthogonalise, tiny};
use super::{NOT_CONVERGED, NOT_FINITE, Svd};
use crate::device::cpu::Threads;
use crate::device::cpu::interleaved::{self, lanes};
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};
use pulp::bytemuck::{cast_slice, cast_slice_mut};

/// Columns up to which there can be one matrix in each lane. Larger packs leave the cache: 16 matrices of 64 x 64 take
/// 0.8 ms each, 0.55 with a matrix's rows in the lanes; of 32 x 32 0.04 and 0.12.
const INTERLEAVED: usize = 48;

/// Whether there is one matrix in each lane: a pack that is not full takes as long as a full one.
fn in_lanes<T: Real>(rank: usize, batch: usize) -> bool {
    rank <= INTERLEAVED && batch * 32 >= lanes::<T>() * rank.max(8)
}

/// A = U diag(S) V' for each matrix. `u` and `v` are empty, or (rows, rank) and (cols, rank).
pub fn decompose<T: Real>(
    threads: &Threads,
    svd: &Svd,
    a: &[T],
    u: &mut [T],
    s: &mut [T],
    v: &mut [T],
    info: &mut [i32],
) {
    let (rank, inner) = (svd.short(), svd.vector_cols());
    info.fill(0);
    if rank == 0 {
        return;
    }
    let lanes = lanes::<T>();
    let together = in_lanes::<T>(rank, svd.batch);
    let count = if together { lanes } else { 1 };
    let (mut u, mut s, mut v, mut info) = (u, s, v, info);
    let mut packs = Vec::with_capacity(svd.batch.div_ceil(count));
    for a in a.chunks(count * svd.rows * svd.cols) {
        let count = a.len() / (svd.rows * svd.cols);
        let (u_pack, u_rest) = u.split_at_mut(count * svd.rows * inner);
        let (s_pack, s_rest) = s.split_at_mut(count * rank);
        let (v_pack, v_rest) = v.split_at_mut(count * svd.cols * inner);
        let (info_pack, info_rest) = info.split_at_mut(count);
        packs.push(Pack { a, u: u_pack, s: s_pack, v: v_pack, info: info_pack });
        (u, s, v, info) = (u_rest, s_rest, v_rest, info_rest);
    }
    let layout = Layout::new(svd, if together { 1 } else { lanes });
    let scratch = || (interleaved::scratch::<T>(layout.registers()), vec![T::default(); count * layout.elements()]);
    let chunk = 128 / (rank * rank) + 1;
    threads.for_each_mut_init(&mut packs, chunk, scratch, |((memory, first), columns), pack| {
        let registers = &mut memory[*first..][..layout.registers() * lanes];
        dispatch(Decompose { svd, layout, pack, registers, columns });
    });
}

/// Matrices that are decomposed together.
struct Pack<'a, T> {
    a: &'a [T],
    u: &'a mut [T],
    s: &'a mut [T],
    v: &'a mut [T],
    info: &'a mut [i32],
}

/// Columns of W, columns of V, squared lengths, whether the last sweep rotated.
#[derive(Clone, Copy)]
struct Layout {
    long: usize,
    short: usize,
    /// Rows of V that are formed.
    v_rows: usize,
    /// Rows of a matrix in a register.
    rows_together: usize,
    /// Registers of a column of W.
    height: usize,
    /// Registers of a column of V.
    v_height: usize,
}

impl Layout {
    fn new(svd: &Svd, rows_together: usize) -> Layout {
        let (long, short, v_rows) = (svd.long(), svd.short(), svd.vector_cols());
        let (height, v_height) = (long.div_ceil(rows_together), v_rows.div_ceil(rows_together));
        Layout { long, short, v_rows, rows_together, height, v_height }
    }
    fn registers(&self) -> usize {
        self.short * (self.height + self.v_height + 1) + 1
    }
    /// Elements of a matrix outside registers.
    fn elements(&self) -> usize {
        self.short * (self.long + self.v_rows + 1) + 1
    }
}

struct Decompose<'a, 'b, T> {
    svd: &'a Svd,
    layout: Layout,
    pack: &'a mut Pack<'b, T>,
    registers: &'a mut [T],
    /// As [`Layout`] says, matrix after matrix.
    columns: &'a mut [T],
}

impl<T: Real> WithSimd for Decompose<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Decompose { svd, layout, pack, registers, columns } = self;
        let Layout { long, short, v_rows, rows_together, height, v_height } = layout;
        let each = layout.elements();
        let columns = &mut columns[..pack.info.len() * each];
        let mut scales = [[T::ONE; 2]; 16];
        for (item, columns) in columns.chunks_exact_mut(each).enumerate() {
            let a = &pack.a[item * long * short..][..long * short];
            pack.info[item] = if take(svd, a, columns, &mut scales[item]) { 0 } else { NOT_FINITE };
        }
        let vectors = T::vectors_mut::<S>(registers).0;
        let interleaved = rows_together == 1;
        if interleaved {
            interleaved::load(simd, columns, each, vectors);
        } else {
            spread::<T, S>(layout, columns, vectors);
        }
        let (w, rest) = vectors.split_at_mut(short * height);
        let (v, rest) = rest.split_at_mut(short * v_height);
        let (squares, stuck) = rest.split_at_mut(short);
        let rows = if interleaved { Rows::InRegisters } else { Rows::InLanes };
        stuck[0] = orthogonalise::<T, S>(simd, w, height, v, v_height, squares, rows, long);
        if interleaved {
            interleaved::store::<T, S>(simd, vectors, each, columns);
        } else {
            gather::<T, S>(layout, vectors, columns);
        }
        for (item, columns) in columns.chunks_exact_mut(each).enumerate() {
            let out = Outputs {
                u: &mut pack.u[item * svd.rows * v_rows..][..svd.rows * v_rows],
                s: &mut pack.s[item * short..][..short],
                v: &mut pack.v[item * svd.cols * v_rows..][..svd.cols * v_rows],
            };
            finish(svd, columns, scales[item], &mut pack.info[item], out);
        }
    }
}

/// One matrix, its rows in lanes.
#[inline(always)]
fn spread<T: Real, S: Simd>(layout: Layout, columns: &[T], vectors: &mut [T::Vector<S>]) {
    let Layout { long, short, v_rows, rows_together, height, v_height } = layout;
    vectors.fill(pulp::bytemuck::Zeroable::zeroed());
    let lanes: &mut [T] = cast_slice_mut(vectors);
    let (w, v) = lanes.split_at_mut(short * height * rows_together);
    for (to, from) in w.chunks_exact_mut(height * rows_together).zip(columns.chunks_exact(long)).take(short) {
        to[..long].copy_from_slice(from);
    }
    if v_rows > 0 {
        let columns = columns[short * long..].chunks_exact(v_rows);
        for (to, from) in v.chunks_exact_mut(v_height * rows_together).zip(columns).take(short) {
            to[..v_rows].copy_from_slice(from);
        }
    }
}

/// The reverse of [`spread`].
#[inline(always)]
fn gather<T: Real, S: Simd>(layout: Layout, vectors: &[T::Vector<S>], columns: &mut [T]) {
    let Layout { long, short, v_rows, rows_together, height, v_height } = layout;
    let lanes: &[T] = cast_slice(vectors);
    let (w, rest) = lanes.split_at(short * height * rows_together);
    let (v, rest) = rest.split_at(short * v_height * rows_together);
    for (to, from) in columns.chunks_exact_mut(long).zip(w.chunks_exact(height * rows_together)) {
        to.copy_from_slice(&from[..long]);
    }
    if v_rows > 0 {
        for (to, from) in columns[short * long..].chunks_exact_mut(v_rows).zip(v.chunks_exact(v_height * rows_together))
        {
            to.copy_from_slice(&from[..v_rows]);
        }
    }
    let squares = columns.len() - short - 1;
    for (to, from) in columns[squares..].iter_mut().zip(rest.iter().step_by(rows_together)) {
        *to = *from;
    }
}

/// Columns of a matrix (of its transpose, if that is tall), times powers of two, and V = I. Whether all is finite.
fn take<T: Real>(svd: &Svd, a: &[T], columns: &mut [T], scale: &mut [T; 2]) -> bool {
    let (long, short) = (svd.long(), svd.short());
    let largest = a.iter().fold(T::default(), |m, x| if x.abs() > m { x.abs() } else { m });
    let (w, rest) = columns.split_at_mut(long * short);
    rest.fill(T::default());
    #[expect(clippy::eq_op, reason = "Inf - Inf and NaN - NaN are NaN")]
    let finite = a.iter().all(|x| *x - *x == T::default());
    if !finite {
        w.fill(T::default());
        return false;
    }
    *scale = scales(largest);
    for (j, column) in w.chunks_exact_mut(long).enumerate() {
        if svd.rows < svd.cols {
            column.copy_from_slice(&a[j * long..][..long]);
        } else {
            for (to, from) in column.iter_mut().zip(a[j..].iter().step_by(short)) {
                *to = *from;
            }
        }
        column.iter_mut().for_each(|x| *x = *x * scale[0] * scale[1]);
    }
    for j in 0..svd.vector_cols() {
        rest[j * short + j] = T::ONE;
    }
    true
}

/// Powers of two: a matrix times both has its largest entry in [2^24, 2^25), so that products of four entries neither
/// overflow nor vanish. Two, since one may be beyond the range of the type.
fn scales<T: Real>(largest: T) -> [T; 2] {
    let [mut up, mut more] = [T::ONE; 2];
    if largest == T::default() {
        return [up, more];
    }
    let full = T::power_of_two(if size_of::<T>() == 4 { 80 } else { 600 });
    let two = T::power_of_two;
    let mut largest = largest;
    while largest < two(9) {
        largest *= two(16);
        if up < full { up *= two(16) } else { more *= two(16) }
    }
    while largest >= two(40) {
        largest *= two(-16);
        up *= two(-16);
    }
    while largest < two(24) {
        largest *= two(1);
        up *= two(1);
    }
    while largest >= two(25) {
        largest *= two(-1);
        up *= two(-1);
    }
    [up, more]
}

/// Where one matrix's results go.
struct Outputs<'a, T> {
    u: &'a mut [T],
    s: &'a mut [T],
    v: &'a mut [T],
}

/// From orthogonal columns, rotations and squared lengths to U, S and V: order, division by lengths, signs.
fn finish<T: Real>(svd: &Svd, columns: &mut [T], scale: [T; 2], info: &mut i32, out: Outputs<'_, T>) {
    let (long, short, inner) = (svd.long(), svd.short(), svd.vector_cols());
    let (w, rest) = columns.split_at_mut(long * short);
    let (v, rest) = rest.split_at_mut(inner * short);
    let (squares, stuck) = rest.split_at(short);
    if *info == 0 && stuck[0] != T::default() {
        *info = NOT_CONVERGED;
    }
    if *info < 0 {
        let nan = T::default() / T::default();
        out.u.fill(nan);
        out.s.fill(nan);
        out.v.fill(nan);
        return;
    }
    let mut order = [0u32; INTERLEAVED];
    let mut more = Vec::new();
    let order = if short <= INTERLEAVED {
        &mut order[..short]
    } else {
        more.resize(short, 0);
        &mut more[..]
    };
    order.iter_mut().enumerate().for_each(|(j, order)| *order = j as u32);
    order.sort_by(|i, j| squares[*j as usize].partial_cmp(&squares[*i as usize]).expect("finite"));
    *info = squares.iter().filter(|square| **square <= tiny::<T>()).count() as i32;
    // Powers of two are divided by exactly.
    for (s, j) in out.s.iter_mut().zip(&*order) {
        *s = squares[*j as usize].sqrt() / scale[0] / scale[1];
    }
    if inner == 0 {
        return;
    }
    let swap = svd.rows < svd.cols;
    let (u_out, v_out) = if swap { (out.v, out.u) } else { (out.u, out.v) };
    for (to, j) in order.iter().enumerate() {
        let j = *j as usize;
        let length = squares[j].sqrt();
        let left = &mut w[j * long..][..long];
        if squares[j] > tiny::<T>() {
            left.iter_mut().for_each(|x| *x = *x / length);
        } else {
            left.fill(T::default());
        }
        let right = &v[j * short..][..short];
        let judged = if swap { right } else { &*left };
        let peak = judged.iter().fold(T::default(), |m, x| if x.abs() > m.abs() { *x } else { m });
        let sign = if peak < T::default() { -T::ONE } else { T::ONE };
        // Adding zero makes one of minus zero.
        for (to, x) in u_out[to..].iter_mut().step_by(short).zip(left) {
            *to = *x * sign + T::default();
        }
        for (to, x) in v_out[to..].iter_mut().step_by(short).zip(right) {
            *to = *x * sign + T::default();
        }
    }
}
