//! Cholesky of one matrix after the other: vectors along rows. An entry of L is the entry of A less the product of two rows
//! of L, which lie in memory one element after the other; 4 x 4 entries are formed at once, by 8 loads for 16 products.

use super::{Triangle, cpu::transpose};
use crate::device::cpu::Threads;
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};

/// See [`super::cpu::factor`]; n is not 0.
pub(super) fn factor<T: Real>(threads: &Threads, a: &[T], n: usize, triangle: Triangle, l: &mut [T], info: &mut [i32]) {
    let mut items: Vec<_> = a.chunks(n * n).zip(l.chunks_mut(n * n)).zip(info).collect();
    let chunk = 8192 / (n * n) + 1;
    let memory = || if triangle == Triangle::Upper { vec![T::default(); n * n] } else { Vec::new() };
    threads.for_each_mut_init(&mut items, chunk, memory, |turned, ((a, l), info)| {
        if triangle == Triangle::Lower {
            l.copy_from_slice(a);
            **info = dispatch(Factor { n, l });
        } else {
            transpose(n, a, turned);
            **info = dispatch(Factor { n, l: turned });
            transpose(n, turned, l);
        }
    });
}

/// A in the lower triangle, on return L, with zeros above.
struct Factor<'a, T> {
    n: usize,
    l: &'a mut [T],
}

impl<T: Real> WithSimd for Factor<'_, T> {
    type Output = i32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> i32 {
        let Factor { n, l } = self;
        let mut info = 0;
        for row in (0..n).step_by(4) {
            let rows = (n - row).min(4);
            for column in (0..row).step_by(4) {
                let products = products::<T, S>(simd, n, l, row, column);
                for r in 0..rows {
                    let at = (row + r) * n + column;
                    for c in 0..4 {
                        let mut value = l[at + c] - products[r][c];
                        for k in 0..c {
                            value -= l[at + k] * l[(column + c) * n + column + k];
                        }
                        l[at + c] = value / l[(column + c) * (n + 1)];
                    }
                }
            }
            let products = products::<T, S>(simd, n, l, row, row);
            for c in 0..rows {
                for r in c..rows {
                    let at = (row + r) * n + row;
                    let mut value = l[at + c] - products[r][c];
                    for k in 0..c {
                        value -= l[at + k] * l[(row + c) * n + row + k];
                    }
                    if r == c {
                        let above_zero = value > T::default(); // a NaN is not
                        if info == 0 && !above_zero {
                            info = (row + c + 1) as i32;
                        }
                        l[at + c] = value.sqrt();
                    } else {
                        l[at + c] = value / l[(row + c) * (n + 1)];
                    }
                }
            }
            for r in 0..rows {
                l[(row + r) * n + row + r + 1..(row + r + 1) * n].fill(T::default());
            }
        }
        info
    }
}

/// Products of four rows with four others (the last ones repeated where there are no more), over the columns before
/// `column`.
#[inline(always)]
fn products<T: Real, S: Simd>(simd: S, n: usize, l: &[T], row: usize, column: usize) -> [[T; 4]; 4] {
    let zero = T::splat(simd, T::default());
    let of = |first: usize| -> [&[T]; 4] { std::array::from_fn(|r| &l[(first + r).min(n - 1) * n..][..column]) };
    let (left, right) = (of(row), of(column));
    let (a, b) = (left.map(|line| T::vectors::<S>(line)), right.map(|line| T::vectors::<S>(line)));
    let (x, y) = (a.map(|pair| pair.0), b.map(|pair| pair.0));
    let mut sums = [[zero; 4]; 4];
    for k in 0..x[0].len() {
        let y: [_; 4] = std::array::from_fn(|c| y[c][k]);
        for r in 0..4 {
            let x = x[r][k];
            for c in 0..4 {
                sums[r][c] = T::mul_add(simd, x, y[c], sums[r][c]);
            }
        }
    }
    // What is left of a register is filled with zeros.
    if !a[0].1.is_empty() {
        let y = b.map(|pair| T::load_part(simd, pair.1));
        for (sums, pair) in sums.iter_mut().zip(a) {
            let x = T::load_part(simd, pair.1);
            for c in 0..4 {
                sums[c] = T::mul_add(simd, x, y[c], sums[c]);
            }
        }
    }
    sums.map(|line| line.map(|sum| T::sum(simd, sum)))
}
