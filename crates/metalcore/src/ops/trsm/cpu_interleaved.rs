//! Many small triangular systems: one in each lane of a vector.

use super::cpu::{Entries, Shape};
use super::{Diagonal, Pass};
use crate::device::cpu::Threads;
use crate::device::cpu::interleaved::{lanes, load, scratch, store};
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};

struct Pack<'a, T> {
    a: &'a [T],
    b: &'a [T],
    x: &'a mut [T],
}

/// See [`super::cpu::solve`]; nothing is empty.
pub(super) fn solve<T: Real>(threads: &Threads, a: &[T], b: &[T], x: &mut [T], shape: Shape) {
    let Shape { n, cols, .. } = shape;
    let lanes = lanes::<T>();
    let parts = a.chunks(lanes * n * n).zip(b.chunks(lanes * n * cols)).zip(x.chunks_mut(lanes * n * cols));
    let mut packs: Vec<_> = parts.map(|((a, b), x)| Pack { a, b, x }).collect();
    // A pack of the smallest matrices takes less time than waking a thread.
    let chunk = 1024 / (n * n) + 1;
    threads.for_each_mut_init(
        &mut packs,
        chunk,
        || scratch::<T>(n * (n + cols)),
        |(memory, first), pack| {
            dispatch(Solve { pack, shape, scratch: &mut memory[*first..] });
        },
    );
}

struct Solve<'a, 'b, T> {
    pack: &'a mut Pack<'b, T>,
    shape: Shape,
    scratch: &'a mut [T],
}

impl<T: Real> WithSimd for Solve<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Solve { pack, shape, scratch } = self;
        let Shape { n, cols, form } = shape;
        let (vectors, _) = T::vectors_mut::<S>(scratch);
        let (a, rest) = vectors.split_at_mut(n * n);
        let x = &mut rest[..n * cols];
        load(simd, pack.a, n * n, a);
        load(simd, pack.b, n * cols, x);
        for pass in form.passes() {
            let mut state = State::<T, S> { a, x, shape, pass, entries: Entries::new(n, pass) };
            let mut row = 0;
            while row + 4 <= n {
                state.rows::<4>(simd, row);
                row += 4;
            }
            while row < n {
                state.rows::<1>(simd, row);
                row += 1;
            }
        }
        store::<T, S>(simd, x, n * cols, pack.x);
    }
}

struct State<'a, T: Real, S: Simd> {
    a: &'a [T::Vector<S>],
    x: &'a mut [T::Vector<S>],
    shape: Shape,
    pass: Pass,
    entries: Entries,
}

impl<T: Real, S: Simd> State<'_, T, S> {
    /// R rows from `first` on, of all right sides.
    #[inline(always)]
    fn rows<const R: usize>(&mut self, simd: S, first: usize) {
        let cols = self.shape.cols;
        let mut column = 0;
        while column + 4 <= cols {
            self.block::<R, 4>(simd, first, column);
            column += 4;
        }
        while column < cols {
            self.block::<R, 1>(simd, first, column);
            column += 1;
        }
    }

    #[inline(always)]
    fn block<const R: usize, const C: usize>(&mut self, simd: S, first: usize, column: usize) {
        let Shape { n, cols, form } = self.shape;
        let forward = self.pass.forward;
        let place = |p: usize| column + cols * if forward { p } else { n - 1 - p };
        let (a, entries) = (self.a, self.entries);
        let line = |x: &[T::Vector<S>], p: usize| -> [_; C] { x[place(p)..][..C].try_into().expect("C of them") };
        let mut sums: [[T::Vector<S>; C]; R] = std::array::from_fn(|r| line(self.x, first + r));
        for q in 0..first {
            let x = line(self.x, q);
            for r in 0..R {
                let a = a[entries.at(first + r, q)];
                for c in 0..C {
                    sums[r][c] = T::neg_mul_add(simd, a, x[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for q in 0..r {
                let a = a[entries.at(first + r, first + q)];
                for c in 0..C {
                    sums[r][c] = T::neg_mul_add(simd, a, sums[q][c], sums[r][c]);
                }
            }
            if form.diagonal == Diagonal::Stored {
                let divisor = a[entries.at(first + r, first + r)];
                sums[r] = sums[r].map(|x| T::vdiv(simd, x, divisor));
            }
            self.x[place(first + r)..][..C].copy_from_slice(&sums[r]);
        }
    }
}
