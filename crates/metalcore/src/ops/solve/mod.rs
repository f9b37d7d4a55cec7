//! # solve
//! Systems of linear equations by LU factorisation with partial pivoting, for batches.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | A | (..., N, N); to be factored (..., M, N) | float32, float64; any sizes, zero included |
//! | B, X | (..., N, K) | A X = B |
//! | LU | as A | P A = L U: U on and above the diagonal, the unit lower triangular L below |
//! | pivots | (..., min(M, N)) int32 | row that step i swapped with row i, 1-based, as LAPACK's |
//! | info | (...) int32 | 0, or the first i with U_ii = 0, 1-based |
//!
//! **Problems**: [`Factor`] A to LU, [`Solve`] A and B (or the identity: X is the inverse) to X and, if kept, the factors,
//! [`Substitute`] factors and B to X, also for the transposed A.
//!
//! **Method**: Gaussian elimination (LAPACK getrf, getrs; Golub & Van Loan, Matrix Computations, 3.4), of A and B side by
//! side where both are small. Of equal candidates the first row is the pivot. CPU: one matrix per SIMD lane for the
//! smallest, row by row above. GPU: in registers up to 128 x 128 (`tile.metal`), by panels of 32 columns above
//! (`panel.metal`, `update.metal`), then substitution (`substitute.metal`).
//!
//! **Singular**: a pivot is singular if it is exactly zero, and elimination goes on; X then holds Inf or NaN. NaN and Inf
//! propagate within their matrix, with info 0. Nothing is compared with a threshold: a power of two that scales A scales
//! U exactly and leaves L and the pivots (short of overflow and underflow).
//!
//! **Error**: |B - A X| / (|A| |X| u) and |P A - L U| / (n ||L| |U|| u) as `reference::ratios`.
//!
//! **Cost**: 2 N^3 / 3 + 2 N^2 K flops; (N^2 + 2 N K) elements moved, N^2 more if the factors are kept. One launch where
//! registers hold A and B; else two for each panel of 32 columns and one for the substitution. By panels a matrix needs
//! N^2 elements of workspace. No host read.

mod cpu;
mod cpu_interleaved;
mod cpu_rows;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::DType;
use crate::device::{Device, Problem, Run};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};

const OP: &str = "solve";

/// Factors every matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor {
    /// Number of matrices.
    pub batch: usize,
    /// M.
    pub rows: usize,
    /// N.
    pub cols: usize,
    /// Type of A and LU.
    pub dtype: DType,
}

/// Tensors of [`Factor`], contiguous.
pub struct FactorArgs<'a, B> {
    /// (batch, rows, cols).
    pub a: &'a B,
    /// (batch, rows, cols).
    pub lu: &'a B,
    /// (batch, min(rows, cols)) int32.
    pub pivots: &'a B,
    /// (batch) int32.
    pub info: &'a B,
}

impl Problem for Factor {
    type Args<'a, B: 'a> = FactorArgs<'a, B>;
}

/// The right sides of [`Solve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// B, in memory.
    Given,
    /// The identity: X is the inverse.
    Identity,
}

/// What [`Solve`] leaves besides X and info.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keep {
    /// LU and pivots.
    Factors,
    /// Neither; their buffers are not looked at.
    Nothing,
}

/// Solves every system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solve {
    /// Number of systems.
    pub batch: usize,
    /// N.
    pub n: usize,
    /// Right sides of each.
    pub k: usize,
    /// Where they come from.
    pub right: Right,
    /// Whether the factors are wanted.
    pub keep: Keep,
    /// Type of A, B, X and LU.
    pub dtype: DType,
}

/// Tensors of [`Solve`], contiguous.
pub struct SolveArgs<'a, B> {
    /// (batch, n, n).
    pub a: &'a B,
    /// (batch, n, k); not looked at with `Right::Identity`.
    pub b: &'a B,
    /// (batch, n, k).
    pub x: &'a B,
    /// (batch, n, n).
    pub lu: &'a B,
    /// (batch, n) int32.
    pub pivots: &'a B,
    /// (batch) int32.
    pub info: &'a B,
}

impl Problem for Solve {
    type Args<'a, B: 'a> = SolveArgs<'a, B>;
}

/// Which system [`Substitute`] solves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum System {
    /// A X = B.
    Plain,
    /// Aᵀ X = B.
    Transposed,
}

/// Solves every system by factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Substitute {
    /// Number of systems.
    pub batch: usize,
    /// N.
    pub n: usize,
    /// Right sides of each.
    pub k: usize,
    /// Which system.
    pub system: System,
    /// Type of LU, B and X.
    pub dtype: DType,
}

/// Tensors of [`Substitute`], contiguous.
pub struct SubstituteArgs<'a, B> {
    /// (batch, n, n).
    pub lu: &'a B,
    /// (batch, n) int32.
    pub pivots: &'a B,
    /// (batch, n, k).
    pub b: &'a B,
    /// (batch, n, k).
    pub x: &'a B,
}

impl Problem for Substitute {
    type Args<'a, B: 'a> = SubstituteArgs<'a, B>;
}

fn check_float(op: &'static str, argument: &'static str, dtype: DType) -> Result<()> {
    if matches!(dtype, DType::F32 | DType::F64) {
        return Ok(());
    }
    Err(Error::DType { op, argument, got: dtype.to_string(), expected: "float32 or float64".to_owned() })
}

/// Batch and sizes of matrices.
fn matrices<'a>(op: &'static str, argument: &'static str, shape: &'a [usize]) -> Result<(&'a [usize], usize, usize)> {
    match shape {
        [batch @ .., rows, cols] => Ok((batch, *rows, *cols)),
        _ => Err(Error::argument(op, argument, format!("shape {shape:?}"), "at least 2 dimensions")),
    }
}

fn square<'a>(op: &'static str, argument: &'static str, shape: &'a [usize]) -> Result<(&'a [usize], usize)> {
    let (batch, rows, cols) = matrices(op, argument, shape)?;
    if rows != cols {
        return Err(Error::argument(op, argument, format!("shape {shape:?}"), "a square matrix (..., N, N)"));
    }
    Ok((batch, rows))
}

/// K of right sides for a batch of matrices of size N.
fn right_sides(op: &'static str, argument: &'static str, shape: &[usize], batch: &[usize], n: usize) -> Result<usize> {
    let (b_batch, rows, k) = matrices(op, argument, shape)?;
    if b_batch != batch || rows != n {
        let expected = format!("batch {batch:?} of {n} rows");
        return Err(Error::argument(op, argument, format!("shape {shape:?}"), expected));
    }
    Ok(k)
}

impl Factor {
    /// Checks shape and type of A.
    pub fn new(op: &'static str, shape: &[usize], dtype: DType) -> Result<Factor> {
        let (batch, rows, cols) = matrices(op, "A", shape)?;
        check_float(op, "A", dtype)?;
        Ok(Factor { batch: batch.iter().product(), rows, cols, dtype })
    }

    /// Steps of elimination: min(M, N).
    pub fn steps(&self) -> usize {
        self.rows.min(self.cols)
    }
}

impl Solve {
    /// Checks shapes and type of A and B; without B the right side is the identity.
    pub fn new(op: &'static str, a: &[usize], b: Option<&[usize]>, keep: Keep, dtype: DType) -> Result<Solve> {
        let (batch, n) = square(op, "A", a)?;
        check_float(op, "A", dtype)?;
        let (k, right) = match b {
            Some(shape) => (right_sides(op, "B", shape, batch, n)?, Right::Given),
            None => (n, Right::Identity),
        };
        Ok(Solve { batch: batch.iter().product(), n, k, right, keep, dtype })
    }

    fn factor(&self) -> Factor {
        Factor { batch: self.batch, rows: self.n, cols: self.n, dtype: self.dtype }
    }

    fn substitute(&self) -> Substitute {
        Substitute { batch: self.batch, n: self.n, k: self.k, system: System::Plain, dtype: self.dtype }
    }
}

impl Substitute {
    /// Checks shapes and type of LU, pivots and B.
    pub fn new(
        op: &'static str,
        lu: &[usize],
        pivots: &[usize],
        b: &[usize],
        system: System,
        dtype: DType,
    ) -> Result<Substitute> {
        let (batch, n) = square(op, "LU", lu)?;
        check_float(op, "LU", dtype)?;
        if pivots != &lu[..lu.len() - 1] {
            let expected = format!("{:?}", &lu[..lu.len() - 1]);
            return Err(Error::argument(op, "pivots", format!("shape {pivots:?}"), expected));
        }
        let k = right_sides(op, "B", b, batch, n)?;
        Ok(Substitute { batch: batch.iter().product(), n, k, system, dtype })
    }
}

/// What elimination makes of matrices. Pivots and info are 32-bit integers, in tensors of raw words.
pub struct Factors<D: Device> {
    /// L below the diagonal, U on and above it.
    pub lu: Tensor<D>,
    /// int32.
    pub pivots: D::Buffer,
    /// int32.
    pub info: D::Buffer,
}

/// Factors every matrix of `a`.
pub fn lu_factor<D: Run<Factor>>(a: View<'_, D>) -> Result<Factors<D>> {
    let problem = Factor::new("lu_factor", a.shape, a.dtype)?;
    let lu = Tensor::empty(a.device, a.shape, a.dtype)?;
    let pivots = a.device.alloc(4 * problem.batch * problem.steps())?;
    let info = a.device.alloc(4 * problem.batch)?;
    a.device.run(&problem, FactorArgs { a: a.buffer, lu: lu.buffer(), pivots: &pivots, info: &info })?;
    Ok(Factors { lu, pivots, info })
}

/// X with A X = B, and info; the inverse of A without `b`.
pub fn solve<D: Run<Solve>>(a: View<'_, D>, b: Option<View<'_, D>>) -> Result<(Tensor<D>, D::Buffer)> {
    let problem = Solve::new(OP, a.shape, b.map(|b| b.shape), Keep::Nothing, a.dtype)?;
    let x = Tensor::empty(a.device, b.map_or(a.shape, |b| b.shape), a.dtype)?;
    let [nothing, info] = [0, 4 * problem.batch].map(|bytes| a.device.alloc(bytes));
    let (nothing, info) = (nothing?, info?);
    let b = b.map_or(a.buffer, |b| b.buffer);
    let args = SolveArgs { a: a.buffer, b, x: x.buffer(), lu: &nothing, pivots: &nothing, info: &info };
    a.device.run(&problem, args)?;
    Ok((x, info))
}

/// X with A X = B (or Aᵀ X = B) from the factors of A.
pub fn lu_solve<D: Run<Substitute>>(factors: &Factors<D>, b: View<'_, D>, system: System) -> Result<Tensor<D>> {
    let lu = factors.lu.view();
    let pivots = &lu.shape[..lu.shape.len().saturating_sub(1)];
    let problem = Substitute::new("lu_solve", lu.shape, pivots, b.shape, system, lu.dtype)?;
    let x = Tensor::empty(b.device, b.shape, b.dtype)?;
    let args = SubstituteArgs { lu: lu.buffer, pivots: &factors.pivots, b: b.buffer, x: x.buffer() };
    b.device.run(&problem, args)?;
    Ok(x)
}
