//! rope on the host: each head is read and written once; its position's row of the tables comes from the cache.

use super::{Direction, Heads, Layout, Rope};
use crate::device::cpu::Threads;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch, stream};
use crate::error::{Error, Result};

/// Elements that a thread takes at a time: more work than the taking.
const CHUNK: usize = 16 * 1024;

/// q or k, and where its rotation goes.
pub struct Part<'a, T> {
    /// Number and strides of the heads.
    pub heads: Heads,
    /// From the first element to the last.
    pub x: &'a [T],
    /// Contiguous.
    pub y: &'a mut [T],
}

/// Rows of the table for position_ids, or an error that names the first that is not in it.
pub fn positions(problem: &Rope, ids: impl Iterator<Item = i64>) -> Result<Vec<usize>> {
    let positions = problem.table.positions;
    let row = |id| match usize::try_from(id) {
        Ok(row) if row < positions => Ok(row),
        _ => Err(Error::Index {
            op: if problem.k.is_some() { "rope_fwd" } else { "rope_forward" },
            argument: "position_ids",
            got: id,
            expected: format!("an index from 0 to below {positions}"),
        }),
    };
    ids.map(row).collect()
}

/// Rotates every part; `positions` are rows of the tables.
pub fn rope<T: Storage, W: Storage>(
    threads: &Threads,
    problem: &Rope,
    parts: [Option<Part<'_, T>>; 2],
    [cos, sin]: [&[W]; 2],
    positions: Option<&[usize]>,
) {
    let width = problem.width;
    if width == 0 {
        return;
    }
    let chunk_rows = (CHUNK / width).max(1);
    let mut tasks = Vec::new();
    for Part { heads, x, y } in parts.into_iter().flatten() {
        let streamed = stream::wanted(y, width / 2);
        for (index, y) in y.chunks_mut(chunk_rows * width).enumerate() {
            let first = index * chunk_rows;
            tasks.push(Rows { problem, heads, x, y, first, streamed, cos, sin, positions });
        }
    }
    threads.for_each_mut(&mut tasks, 1, |rows| dispatch(rows));
}

/// Some heads, in the order of the result.
struct Rows<'a, T, W> {
    problem: &'a Rope,
    heads: Heads,
    x: &'a [T],
    y: &'a mut [T],
    /// Which row of the result is the first.
    first: usize,
    streamed: bool,
    cos: &'a [W],
    sin: &'a [W],
    positions: Option<&'a [usize]>,
}

impl<T: Storage, W: Storage> WithSimd for &mut Rows<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Rope { seq, width, layout, table, ids, .. } = *self.problem;
        let (count, strides) = (self.heads.count, self.heads.strides);
        let heads_first = layout == Layout::HeadsFirst;
        let (outer, inner) = if heads_first { (count, seq) } else { (seq, count) };
        let (mut b, mut i, mut j) = (self.first / (outer * inner), self.first / inner % outer, self.first % inner);
        let (half, row_width) = (width / 2, self.problem.table_width());
        let ids_batch = if ids.is_some_and(|ids| ids.batched) { seq } else { 0 };
        let table_batch = if table.batched { table.positions } else { 0 };
        for y in self.y.chunks_exact_mut(width) {
            let (h, s) = if heads_first { (i, j) } else { (j, i) };
            let at = b * strides.batch + s * strides.position + h * strides.head;
            let position = self.positions.map_or(s, |positions| positions[b * ids_batch + s]);
            let row = (b * table_batch + position) * row_width;
            let (cos, sin) = (&self.cos[row..row + row_width], &self.sin[row..row + row_width]);
            let (y1, y2) = y.split_at_mut(half);
            let angles = Angles { cos, sin, second: row_width - half, direction: self.problem.direction };
            rotate::<T, W, S>(simd, &self.x[at..at + width], y1, y2, &angles, self.streamed);
            j += 1;
            if j == inner {
                (i, j) = (i + 1, 0);
                if i == outer {
                    (b, i) = (b + 1, 0);
                }
            }
        }
        stream::finish();
    }
}

/// The tables' rows of one position.
struct Angles<'a, W> {
    cos: &'a [W],
    sin: &'a [W],
    /// Where c2 and s2 begin.
    second: usize,
    direction: Direction,
}

/// One head. Loads stand one by one: inside `array::map` they would be compiled without the vectors.
#[inline(always)]
fn rotate<T: Storage, W: Storage, S: Simd>(
    simd: S,
    x: &[T],
    y1: &mut [T],
    y2: &mut [T],
    angles: &Angles<'_, W>,
    streamed: bool,
) {
    let half = y1.len();
    let lanes = T::Compute::lanes::<S>();
    let (x1, x2) = x.split_at(half);
    let (c1, c2) = (&angles.cos[..half], &angles.cos[angles.second..]);
    let (s1, s2) = (&angles.sin[..half], &angles.sin[angles.second..]);
    let mut first = 0;
    while first + lanes <= half {
        let at = first..first + lanes;
        let x = (T::Compute::load(simd, &x1[at.clone()]), T::Compute::load(simd, &x2[at.clone()]));
        let (c, s) = (T::Compute::load(simd, &c1[at.clone()]), T::Compute::load(simd, &s1[at.clone()]));
        let (other_c, other_s) = if angles.second == 0 {
            (c, s)
        } else {
            (T::Compute::load(simd, &c2[at.clone()]), T::Compute::load(simd, &s2[at.clone()]))
        };
        let (a, b) = pair::<T::Compute, S>(simd, x, (c, other_c), (s, other_s), angles.direction);
        if streamed {
            stream::store::<T::Compute, S, T>(simd, a, &mut y1[at.clone()]);
            stream::store::<T::Compute, S, T>(simd, b, &mut y2[at]);
        } else {
            T::Compute::store(simd, a, &mut y1[at.clone()]);
            T::Compute::store(simd, b, &mut y2[at]);
        }
        first += lanes;
    }
    if first < half {
        let x = (T::Compute::load_part(simd, &x1[first..]), T::Compute::load_part(simd, &x2[first..]));
        let c = (T::Compute::load_part(simd, &c1[first..]), T::Compute::load_part(simd, &c2[first..]));
        let s = (T::Compute::load_part(simd, &s1[first..]), T::Compute::load_part(simd, &s2[first..]));
        let (a, b) = pair::<T::Compute, S>(simd, x, c, s, angles.direction);
        T::Compute::store_part(simd, a, &mut y1[first..]);
        T::Compute::store_part(simd, b, &mut y2[first..]);
    }
}

/// y1 = x1 c1 - x2 s1, y2 = x2 c2 + x1 s2, or transposed.
#[inline(always)]
fn pair<C: Real, S: Simd>(
    simd: S,
    (x1, x2): (C::Vector<S>, C::Vector<S>),
    (c1, c2): (C::Vector<S>, C::Vector<S>),
    (s1, s2): (C::Vector<S>, C::Vector<S>),
    direction: Direction,
) -> (C::Vector<S>, C::Vector<S>) {
    let (a, b) = (C::vmul(simd, x1, c1), C::vmul(simd, x2, c2));
    match direction {
        Direction::Forward => (C::neg_mul_add(simd, x2, s1, a), C::mul_add(simd, x1, s2, b)),
        Direction::Backward => (C::mul_add(simd, x2, s2, a), C::neg_mul_add(simd, x1, s1, b)),
    }
}
