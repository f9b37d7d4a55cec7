//! Cholesky of many small matrices: one matrix in each lane of a vector. Blocks of 4 x 4 are formed at once: the columns to
//! the left are read for 16 products by 8 loads.

use super::Triangle;
use crate::device::cpu::Threads;
use crate::device::cpu::interleaved::{lanes, load, scratch, store};
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};

struct Pack<'a, T> {
    a: &'a [T],
    l: &'a mut [T],
    info: &'a mut [i32],
}

/// See [`super::cpu::factor`]; n is not 0.
pub(super) fn factor<T: Real>(threads: &Threads, a: &[T], n: usize, triangle: Triangle, l: &mut [T], info: &mut [i32]) {
    let (elements, lanes) = (n * n, lanes::<T>());
    let parts = a.chunks(lanes * elements).zip(l.chunks_mut(lanes * elements)).zip(info.chunks_mut(lanes));
    let mut packs: Vec<_> = parts.map(|((a, l), info)| Pack { a, l, info }).collect();
    // A pack of the smallest matrices takes less time than waking a thread.
    let chunk = 1024 / elements + 1;
    threads.for_each_mut_init(
        &mut packs,
        chunk,
        || scratch::<T>(elements + n + 1),
        |(memory, first), pack| {
            dispatch(Factor { pack, n, triangle, scratch: &mut memory[*first..] });
        },
    );
}

struct Factor<'a, 'b, T> {
    pack: &'a mut Pack<'b, T>,
    n: usize,
    triangle: Triangle,
    scratch: &'a mut [T],
}

impl<T: Real> WithSimd for Factor<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Factor { pack, n, triangle, scratch } = self;
        let (vectors, _) = T::vectors_mut::<S>(scratch);
        let (entries, rest) = vectors.split_at_mut(n * n);
        let (inverses, rest) = rest.split_at_mut(n);
        let zero = T::splat(simd, T::default());
        load(simd, pack.a, n * n, entries);
        if triangle == Triangle::Upper {
            mirror(n, entries);
        }
        let mut state = State::<T, S> { n, entries, inverses, info: zero };
        for column in (0..n).step_by(4) {
            match n - column {
                1 => state.diagonal::<1>(simd, column),
                2 => state.diagonal::<2>(simd, column),
                3 => state.diagonal::<3>(simd, column),
                _ => state.diagonal::<4>(simd, column),
            }
            let mut row = column + 4;
            while row < n {
                match n - row {
                    1 => state.below::<1>(simd, row, column),
                    2 => state.below::<2>(simd, row, column),
                    3 => state.below::<3>(simd, row, column),
                    _ => state.below::<4>(simd, row, column),
                }
                row += 4;
            }
        }
        rest[0] = state.info;
        for row in 0..n {
            entries[row * n + row + 1..(row + 1) * n].fill(zero);
        }
        if triangle == Triangle::Upper {
            mirror(n, entries);
        }
        store::<T, S>(simd, entries, n * n, pack.l);
        let mut orders = [T::default(); 64];
        let orders = &mut orders[..pack.info.len()];
        store::<T, S>(simd, &rest[..1], 1, orders);
        for (info, order) in pack.info.iter_mut().zip(orders) {
            *info = order.to_f64() as i32;
        }
    }
}

/// Exchanges the triangles.
#[inline(always)]
fn mirror<V: Copy>(n: usize, entries: &mut [V]) {
    for row in 1..n {
        for column in 0..row {
            entries.swap(row * n + column, column * n + row);
        }
    }
}

struct State<'a, T: Real, S: Simd> {
    n: usize,
    entries: &'a mut [T::Vector<S>],
    /// Inverses of L's diagonal.
    inverses: &'a mut [T::Vector<S>],
    /// Order of the first bad minor.
    info: T::Vector<S>,
}

impl<T: Real, S: Simd> State<'_, T, S> {
    /// R x C entries less the products with the columns to the left.
    #[inline(always)]
    fn updated<const R: usize, const C: usize>(&self, simd: S, row: usize, column: usize) -> [[T::Vector<S>; C]; R] {
        let n = self.n;
        let rows: [_; R] = std::array::from_fn(|r| &self.entries[(row + r) * n..][..column]);
        let columns: [_; C] = std::array::from_fn(|c| &self.entries[(column + c) * n..][..column]);
        let entry = |r, c| self.entries[(row + r) * n + column + c];
        let mut block: [[_; C]; R] = std::array::from_fn(|r| std::array::from_fn(|c| entry(r, c)));
        for k in 0..column {
            for r in 0..R {
                for c in 0..C {
                    block[r][c] = T::neg_mul_add(simd, rows[r][k], columns[c][k], block[r][c]);
                }
            }
        }
        block
    }

    /// C columns, their triangle on the diagonal.
    #[inline(always)]
    fn diagonal<const C: usize>(&mut self, simd: S, column: usize) {
        let zero = T::splat(simd, T::default());
        let mut block = self.updated::<C, C>(simd, column, column);
        let mut order = T::default();
        (0..column).for_each(|_| order += T::ONE);
        for k in 0..C {
            order += T::ONE;
            let pivot = block[k][k];
            // Bad where it is not above zero, and none was before; NaN is not.
            let this = T::select(simd, T::less(simd, zero, self.info), self.info, T::splat(simd, order));
            self.info = T::select(simd, T::less(simd, zero, pivot), self.info, this);
            let root = T::vsqrt(simd, pivot);
            let inverse = T::vdiv(simd, T::splat(simd, T::ONE), root);
            self.inverses[column + k] = inverse;
            block[k][k] = root;
            for i in k + 1..C {
                block[i][k] = T::vmul(simd, block[i][k], inverse);
            }
            for j in k + 1..C {
                for i in j..C {
                    block[i][j] = T::neg_mul_add(simd, block[i][k], block[j][k], block[i][j]);
                }
            }
        }
        for i in 0..C {
            for j in 0..=i {
                self.entries[(column + i) * self.n + column + j] = block[i][j];
            }
        }
    }

    /// R rows of four columns below the diagonal.
    #[inline(always)]
    fn below<const R: usize>(&mut self, simd: S, row: usize, column: usize) {
        let n = self.n;
        let mut block = self.updated::<R, 4>(simd, row, column);
        for k in 0..4 {
            for line in &mut block {
                line[k] = T::vmul(simd, line[k], self.inverses[column + k]);
                for j in k + 1..4 {
                    let factor = self.entries[(column + j) * n + column + k];
                    line[j] = T::neg_mul_add(simd, line[k], factor, line[j]);
                }
            }
        }
        for (r, line) in block.iter().enumerate() {
            self.entries[(row + r) * n + column..][..4].copy_from_slice(line);
        }
    }
}
