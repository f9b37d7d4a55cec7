//! Householder QR on the host, and which of its two forms factors what.
//!
//! Both forms follow LAPACK's `geqrf` and `orgqr` (Golub & Van Loan, Matrix Computations, 5.1 and 5.2). Reflectors are
//! H = I - tau v vᵀ with v = (1, x / (alpha - beta)), beta = -sign(alpha) |(alpha, x)|, tau = (beta - alpha) / beta;
//! where x is exactly zero, H = I (tau = 0, beta = alpha). Blocks of reflectors are applied as
//! H1 H2 ... = I - V S⁻¹ Vᵀ with S the triangle of VᵀV whose diagonal is 1 / tau, by substitution, so tau = 0 needs
//! no special case (Joffrin, Low, Quintana-Ortí, van de Geijn, Accumulating Householder transformations, revisited).
//!
//! No entry is too large or too small: a matrix whose largest entry leaves the middle of the exponent range is scaled
//! by a power of two first, and so is the tail of a column whose sum of squares would lose bits. Both are exact, so a
//! matrix times 2^k has the same Q and 2^k times the same R, bit for bit, as long as nothing leaves the range.

use super::{cpu_blocked, cpu_interleaved};
use crate::device::cpu::Threads;
use crate::device::cpu::simd::Real;

/// Sizes of a batch of row-major matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of matrices.
    pub batch: usize,
    /// M
    pub rows: usize,
    /// N
    pub cols: usize,
}

impl Shape {
    /// Reflectors of each matrix: a column of length 1 has none.
    pub(super) fn reflectors(&self) -> usize {
        self.cols.min(self.rows.saturating_sub(1))
    }
}

/// Columns from which a matrix is factored by itself rather than interleaved with others.
const INTERLEAVED_COLS: usize = 64;
/// Elements up to which the interleaved matrices stay in the second-level cache.
const INTERLEAVED_ELEMENTS: usize = 64 * 64;

/// A = Q R for each matrix. `q` has `q_cols` columns: none (Q is not formed), min(M, N) or M; `r` has `r_rows` rows:
/// min(M, N) or M, with zeros below the diagonal.
pub fn factor<T: Real>(
    threads: &Threads,
    a: &[T],
    shape: Shape,
    q: &mut [T],
    q_cols: usize,
    r: &mut [T],
    r_rows: usize,
) {
    let Shape { batch, rows, cols } = shape;
    assert_eq!(a.len(), batch * rows * cols);
    assert_eq!(q.len(), batch * rows * q_cols);
    assert_eq!(r.len(), batch * r_rows * cols);
    if a.is_empty() {
        r.fill(T::default());
        return fill_identity(q, rows, q_cols);
    }
    let elements = rows.next_multiple_of(4) * cols.max(q_cols).next_multiple_of(4);
    let interleaved = cols <= INTERLEAVED_COLS && elements <= INTERLEAVED_ELEMENTS;
    if interleaved && batch >= cpu_interleaved::fewest_matrices::<T>(cols) {
        cpu_interleaved::factor(threads, a, shape, q, q_cols, r, r_rows);
    } else {
        cpu_blocked::factor(threads, a, shape, q, q_cols, r, r_rows);
    }
}

fn fill_identity<T: Real>(q: &mut [T], rows: usize, cols: usize) {
    q.fill(T::default());
    if cols > 0 {
        for matrix in q.chunks_exact_mut(rows * cols) {
            matrix.iter_mut().step_by(cols + 1).for_each(|diagonal| *diagonal = T::ONE);
        }
    }
}

/// Which product of a block of reflectors H0 H1 ... is applied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// ... H1 H0: from A to R.
    Transposed,
    /// H0 H1 ...: from the identity to Q.
    Plain,
}

/// Powers of two that keep squares inside the range of T.
#[derive(Clone, Copy)]
pub(super) struct Range<T> {
    /// Matrices with a larger entry are multiplied by `down`.
    pub large: T,
    /// Matrices without a larger entry are multiplied by `up`.
    pub small: T,
    /// Sums of squares below it are formed again from entries multiplied by `up`.
    pub tiny_square: T,
    /// Brings large entries to the middle of the range.
    pub down: T,
    /// Brings small entries to the middle of the range. `up * down` is 1.
    pub up: T,
}

impl<T: Real> Range<T> {
    pub fn new() -> Range<T> {
        // float32 goes from 2^-149 to 2^128, float64 from 2^-1074 to 2^1024.
        let (safe, shift, square) = if size_of::<T>() == 4 { (60, 96, 80) } else { (500, 768, 700) };
        Range {
            large: T::power_of_two(safe),
            small: T::power_of_two(-safe),
            tiny_square: T::power_of_two(-square),
            down: T::power_of_two(-shift),
            up: T::power_of_two(shift),
        }
    }
}

#[cfg(test)]
#[path = "cpu_tests.rs"]
mod tests;
