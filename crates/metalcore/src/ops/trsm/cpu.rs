//! Triangular systems on the host, and which of two forms solves what.
//!
//! Both count rows in the order in which they are solved, so that the triangle is a lower one: entry (p, q) of it is
//! `a[first + p * down + q * right]`.

use super::{Diagonal, Form, Pass, cpu_interleaved};
use crate::device::cpu::Threads;
use crate::device::cpu::interleaved::lanes;
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};

/// Sizes and options of a batch.
#[derive(Clone, Copy)]
pub struct Shape {
    /// N.
    pub n: usize,
    /// K.
    pub cols: usize,
    /// Options.
    pub form: Form,
}

/// Rows up to which matrices are interleaved.
const INTERLEAVED_ROWS: usize = 64;

/// X of each system of `a` (batch, n, n) and `b` (batch, n, cols).
pub fn solve<T: Real>(threads: &Threads, a: &[T], b: &[T], x: &mut [T], shape: Shape) {
    let Shape { n, cols, .. } = shape;
    if x.is_empty() {
        return;
    }
    let batch = b.len() / (n * cols);
    assert!(a.len() == batch * n * n && x.len() == b.len());
    if n <= INTERLEAVED_ROWS && cols <= lanes::<T>() && batch >= (lanes::<T>() / 4).max(2) {
        cpu_interleaved::solve(threads, a, b, x, shape);
    } else {
        one_by_one(threads, a, b, x, shape);
    }
}

/// Where the triangle's entries are.
#[derive(Clone, Copy)]
pub(super) struct Entries {
    first: usize,
    down: isize,
    right: isize,
}

impl Entries {
    pub(super) fn new(n: usize, pass: Pass) -> Entries {
        let (down, right) = if pass.transposed { (1, n as isize) } else { (n as isize, 1) };
        match pass.forward {
            true => Entries { first: 0, down, right },
            false => Entries { first: n * n - 1, down: -down, right: -right },
        }
    }
    #[inline(always)]
    pub(super) fn at(self, p: usize, q: usize) -> usize {
        self.first.wrapping_add_signed(p as isize * self.down + q as isize * self.right)
    }
}

/// Registers of right sides that are solved for together.
const REGISTERS: usize = 2;

/// One matrix after the other.
fn one_by_one<T: Real>(threads: &Threads, a: &[T], b: &[T], x: &mut [T], shape: Shape) {
    let Shape { n, cols, .. } = shape;
    let mut items: Vec<_> = a.chunks(n * n).zip(b.chunks(n * cols)).zip(x.chunks_mut(n * cols)).collect();
    let chunk = 16384 / (n * (n + cols)) + 1;
    let memory = || vec![T::default(); n * REGISTERS * lanes::<T>()];
    threads.for_each_mut_init(&mut items, chunk, memory, |memory, ((a, b), x)| {
        dispatch(Solve { a, b, x, shape, memory });
    });
}

struct Solve<'a, T> {
    a: &'a [T],
    b: &'a [T],
    x: &'a mut [T],
    shape: Shape,
    memory: &'a mut [T],
}

impl<T: Real> WithSimd for Solve<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Solve { a, b, x, shape, memory } = self;
        let Shape { n, cols, form } = shape;
        let lanes = T::lanes::<S>();
        for first in (0..cols).step_by(REGISTERS * lanes) {
            let width = (cols - first).min(REGISTERS * lanes);
            let registers = width.div_ceil(lanes);
            for (row, line) in memory.chunks_exact_mut(registers * lanes).take(n).enumerate() {
                line[..width].copy_from_slice(&b[row * cols + first..][..width]);
                line[width..].fill(T::default());
            }
            for pass in form.passes() {
                let vectors = &mut memory[..n * registers * lanes];
                match registers {
                    1 => substitute::<T, S, 1>(simd, a, vectors, shape, pass),
                    _ => substitute::<T, S, REGISTERS>(simd, a, vectors, shape, pass),
                }
            }
            for (row, line) in memory.chunks_exact(registers * lanes).take(n).enumerate() {
                x[row * cols + first..][..width].copy_from_slice(&line[..width]);
            }
        }
    }
}

/// One substitution, for V registers a row.
#[inline(always)]
fn substitute<T: Real, S: Simd, const V: usize>(simd: S, a: &[T], values: &mut [T], shape: Shape, pass: Pass) {
    let Shape { n, form, .. } = shape;
    let entries = Entries::new(n, pass);
    let lanes = T::lanes::<S>();
    let place = |p: usize| V * lanes * if pass.forward { p } else { n - 1 - p };
    let load = |values: &[T], p: usize| -> [T::Vector<S>; V] {
        let at = place(p);
        std::array::from_fn(|v| T::load(simd, &values[at + v * lanes..][..lanes]))
    };
    let minus = |a: T, x: [T::Vector<S>; V], sums: &mut [T::Vector<S>; V]| {
        let a = T::splat(simd, a);
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = T::neg_mul_add(simd, a, x, *sum);
        }
    };
    for first in (0..n).step_by(4) {
        let rows = (n - first).min(4);
        let mut sums: [[T::Vector<S>; V]; 4] = std::array::from_fn(|r| load(values, (first + r).min(n - 1)));
        if rows == 4 {
            for q in 0..first {
                let x = load(values, q);
                for (r, sums) in sums.iter_mut().enumerate() {
                    minus(a[entries.at(first + r, q)], x, sums);
                }
            }
        } else {
            for q in 0..first {
                let x = load(values, q);
                for (r, sums) in sums[..rows].iter_mut().enumerate() {
                    minus(a[entries.at(first + r, q)], x, sums);
                }
            }
        }
        for r in 0..rows {
            let (done, rest) = sums.split_at_mut(r);
            for (q, x) in done.iter().enumerate() {
                minus(a[entries.at(first + r, first + q)], *x, &mut rest[0]);
            }
            if form.diagonal == Diagonal::Stored {
                let divisor = T::splat(simd, a[entries.at(first + r, first + r)]);
                rest[0] = rest[0].map(|x| T::vdiv(simd, x, divisor));
            }
            let at = place(first + r);
            for (v, x) in rest[0].iter().enumerate() {
                T::store(simd, *x, &mut values[at + v * lanes..][..lanes]);
            }
        }
    }
}
