//! Elimination on the host: which of its two forms takes what, and substitution by given factors.

use super::{Factor, FactorArgs, Keep, Right, Solve, SolveArgs, Substitute, SubstituteArgs, System};
use super::{cpu_interleaved, cpu_rows};
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};
use crate::device::{Run, cpu::Cpu};
use crate::error::Result;
use crate::with_float;

/// One matrix, or neighbours of a batch, with what becomes of them.
pub(super) struct Part<'a, T> {
    /// (count, rows, cols).
    pub a: &'a [T],
    /// (count, rows, sides); empty for the identity.
    pub b: &'a [T],
    /// (count, rows, sides).
    pub x: &'a mut [T],
    /// (count, rows, cols), or empty.
    pub lu: &'a mut [T],
    /// (count, steps), or empty.
    pub pivots: &'a mut [i32],
    /// (count).
    pub info: &'a mut [i32],
}

/// Sizes of every matrix of a batch.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub rows: usize,
    pub cols: usize,
    pub sides: usize,
}

impl Sizes {
    pub fn steps(&self) -> usize {
        self.rows.min(self.cols)
    }
}

/// The parts of `whole`, of `count` matrices each but the last.
fn parts<'a, T>(whole: Part<'a, T>, sizes: Sizes, count: usize) -> Vec<Part<'a, T>> {
    let Part { mut a, mut b, mut x, mut lu, mut pivots, mut info } = whole;
    let mut parts = Vec::with_capacity(info.len().div_ceil(count));
    while !info.is_empty() {
        let count = count.min(info.len());
        let (elements, sides) = (count * sizes.rows * sizes.cols, count * sizes.rows * sizes.sides);
        let (a_part, a_rest) = a.split_at(elements);
        let (b_part, b_rest) = b.split_at(sides.min(b.len()));
        let (x_part, x_rest) = x.split_at_mut(sides);
        let (lu_part, lu_rest) = lu.split_at_mut(elements.min(lu.len()));
        let (pivots_part, pivots_rest) = pivots.split_at_mut((count * sizes.steps()).min(pivots.len()));
        let (info_part, info_rest) = info.split_at_mut(count);
        parts.push(Part { a: a_part, b: b_part, x: x_part, lu: lu_part, pivots: pivots_part, info: info_part });
        (a, b, x, lu, pivots, info) = (a_rest, b_rest, x_rest, lu_rest, pivots_rest, info_rest);
    }
    parts
}

/// Rows and columns up to which a matrix goes to a lane. Measured on AVX-512 against [`cpu_rows`].
pub(super) const INTERLEAVED: usize = 32;

fn eliminate<T: Real>(cpu: &Cpu, whole: Part<'_, T>, sizes: Sizes) {
    let batch = whole.info.len();
    let small = sizes.rows.max(sizes.cols) <= INTERLEAVED && sizes.steps() > 0 && sizes.sides <= 4 * INTERLEAVED;
    // About as many operations as waking a thread takes.
    let work = sizes.rows * sizes.cols * (sizes.cols + 3 * sizes.sides) + 64;
    if small && batch >= cpu_interleaved::fewest_matrices::<T>(sizes.rows) {
        let lanes = crate::device::cpu::interleaved::lanes::<T>();
        let mut parts = parts(whole, sizes, lanes);
        let chunk = 200_000 / (work * lanes) + 1;
        let scratch = || cpu_interleaved::Scratch::new(sizes);
        cpu.threads().for_each_mut_init(&mut parts, chunk, scratch, |scratch, part| {
            cpu_interleaved::eliminate(part, sizes, scratch);
        });
    } else {
        let mut parts = parts(whole, sizes, 1);
        let chunk = 100_000 / work + 1;
        let scratch = || cpu_rows::Scratch::new(sizes);
        cpu.threads().for_each_mut_init(&mut parts, chunk, scratch, |scratch, part| {
            cpu_rows::eliminate(part, sizes, scratch);
        });
    }
}

impl Run<Factor> for Cpu {
    fn run(&self, factor: &Factor, args: FactorArgs<'_, Self::Buffer>) -> Result<()> {
        let Factor { batch, rows, cols, dtype } = *factor;
        with_float!(dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and are different ones.
            let whole = unsafe {
                Part {
                    a: args.a.slice::<T>(batch * rows * cols),
                    b: &[],
                    x: &mut [],
                    lu: args.lu.slice_mut::<T>(batch * rows * cols),
                    pivots: args.pivots.slice_mut::<i32>(batch * factor.steps()),
                    info: args.info.slice_mut::<i32>(batch),
                }
            };
            eliminate(self, whole, Sizes { rows, cols, sides: 0 });
        });
        Ok(())
    }
}

impl Run<Solve> for Cpu {
    fn run(&self, solve: &Solve, args: SolveArgs<'_, Self::Buffer>) -> Result<()> {
        let Solve { batch, n, k, right, keep, dtype } = *solve;
        let kept = if keep == Keep::Factors { batch * n } else { 0 };
        let given = if right == Right::Given { batch * n * k } else { 0 };
        with_float!(dtype, T => {
            // SAFETY: as above.
            let whole = unsafe {
                Part {
                    a: args.a.slice::<T>(batch * n * n),
                    b: args.b.slice::<T>(given),
                    x: args.x.slice_mut::<T>(batch * n * k),
                    lu: args.lu.slice_mut::<T>(kept * n),
                    pivots: args.pivots.slice_mut::<i32>(kept),
                    info: args.info.slice_mut::<i32>(batch),
                }
            };
            eliminate(self, whole, Sizes { rows: n, cols: n, sides: k });
        });
        Ok(())
    }
}

impl Run<Substitute> for Cpu {
    fn run(&self, problem: &Substitute, args: SubstituteArgs<'_, Self::Buffer>) -> Result<()> {
        let Substitute { batch, n, k, system, dtype } = *problem;
        if batch * n * k == 0 {
            return Ok(());
        }
        with_float!(dtype, T => {
            // SAFETY: as above.
            let (lu, pivots, b, x) = unsafe {
                (
                    args.lu.slice::<T>(batch * n * n),
                    args.pivots.slice::<i32>(batch * n),
                    args.b.slice::<T>(batch * n * k),
                    args.x.slice_mut::<T>(batch * n * k),
                )
            };
            let mut items: Vec<_> = x.chunks_exact_mut(n * k).enumerate().collect();
            let chunk = 50_000 / (n * n * k + 64) + 1;
            self.threads().for_each_mut(&mut items, chunk, |(item, x)| {
                x.copy_from_slice(&b[*item * n * k..][..n * k]);
                let (lu, pivots) = (&lu[*item * n * n..][..n * n], &pivots[*item * n..][..n]);
                dispatch(Back { lu, pivots, x, n, k, system });
            });
        });
        Ok(())
    }
}

struct Back<'a, T> {
    lu: &'a [T],
    pivots: &'a [i32],
    x: &'a mut [T],
    n: usize,
    k: usize,
    system: System,
}

impl<T: Real> WithSimd for Back<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Back { lu, pivots, x, n, k, system } = self;
        let other = |row: usize| (pivots[row].max(1) as usize - 1).min(n - 1);
        match system {
            System::Plain => {
                (0..n).for_each(|row| swap_rows(x, row, other(row), k));
                for row in 0..n {
                    let (known, rest) = x.split_at_mut(row * k);
                    subtract::<T, S>(simd, &mut rest[..k], known, &lu[row * n..][..row]);
                }
                for row in (0..n).rev() {
                    let (rest, known) = x.split_at_mut((row + 1) * k);
                    let entries = &mut rest[row * k..];
                    subtract::<T, S>(simd, entries, known, &lu[row * n + row + 1..(row + 1) * n]);
                    divide(entries, lu[row * n + row]);
                }
            }
            System::Transposed => {
                for row in 0..n {
                    let (known, rest) = x.split_at_mut((row + 1) * k);
                    let entries = &mut known[row * k..];
                    divide(entries, lu[row * n + row]);
                    spread::<T, S>(simd, entries, rest, &lu[row * n + row + 1..(row + 1) * n]);
                }
                for row in (0..n).rev() {
                    let (rest, known) = x.split_at_mut(row * k);
                    spread::<T, S>(simd, &known[..k], rest, &lu[row * n..][..row]);
                }
                (0..n).rev().for_each(|row| swap_rows(x, row, other(row), k));
            }
        }
    }
}

fn swap_rows<T>(x: &mut [T], a: usize, b: usize, k: usize) {
    if a != b {
        let (low, high) = x.split_at_mut(a.max(b) * k);
        low[a.min(b) * k..][..k].swap_with_slice(&mut high[..k]);
    }
}

#[inline(always)]
fn divide<T: Real>(x: &mut [T], divisor: T) {
    x.iter_mut().for_each(|x| *x = *x / divisor);
}

/// y -= sum of factors[i] times row i of x.
#[inline(always)]
fn subtract<T: Real, S: Simd>(simd: S, y: &mut [T], x: &[T], factors: &[T]) {
    let k = y.len();
    if k == 1 {
        // Products of neighbours, in lanes.
        let (factor_vectors, factor_rest) = T::vectors::<S>(factors);
        let (x_vectors, x_rest) = T::vectors::<S>(&x[..factors.len()]);
        let zero = T::splat(simd, T::default());
        let sum = factor_vectors.iter().zip(x_vectors).fold(zero, |sum, (f, x)| T::mul_add(simd, *f, *x, sum));
        let mut rest = T::sum(simd, sum);
        factor_rest.iter().zip(x_rest).for_each(|(f, x)| rest += *f * *x);
        y[0] -= rest;
        return;
    }
    for (factor, x) in factors.iter().zip(x.chunks_exact(k)) {
        axpy::<T, S>(simd, y, x, *factor);
    }
}

/// Row i of y -= factors[i] times x.
#[inline(always)]
fn spread<T: Real, S: Simd>(simd: S, x: &[T], y: &mut [T], factors: &[T]) {
    if let [x] = x {
        return axpy::<T, S>(simd, &mut y[..factors.len()], factors, *x);
    }
    for (factor, y) in factors.iter().zip(y.chunks_exact_mut(x.len())) {
        axpy::<T, S>(simd, y, x, *factor);
    }
}

/// y -= factor x
#[inline(always)]
fn axpy<T: Real, S: Simd>(simd: S, y: &mut [T], x: &[T], factor: T) {
    let spread = T::splat(simd, factor);
    let (x_vectors, x_rest) = T::vectors::<S>(x);
    let (y_vectors, y_rest) = T::vectors_mut::<S>(y);
    for (y, x) in y_vectors.iter_mut().zip(x_vectors) {
        *y = T::neg_mul_add(simd, spread, *x, *y);
    }
    for (y, x) in y_rest.iter_mut().zip(x_rest) {
        *y -= factor * *x;
    }
}
