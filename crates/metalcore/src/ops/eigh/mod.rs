//! # eigh
//! A = Q diag(L) Q' of symmetric matrices, for batches.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | A | (..., N, N) | float32, float64; only the triangle that is named is read |
//! | L | (..., N) | eigenvalues, ascending |
//! | Q | (..., N, N) | eigenvectors in columns, orthonormal; not formed where only values are asked for |
//! | info | (...) | 32-bit: 0; -1 where A is not finite; above 0 where the iteration did not converge |
//!
//! **Method**: `Jacobi`: two-sided cyclic Jacobi, N / 2 disjoint rotations at a time (Golub & Van Loan, Matrix Computations,
//! 8.5; Rutishauser's form of the rotations). `Tridiagonal`: Householder tridiagonalisation (LAPACK sytd2), then implicit
//! QL on the host (LAPACK steqr), on a GPU divide and conquer from matrices of one element (Cuppen; Gu and Eisenstat, A
//! divide-and-conquer algorithm for the symmetric tridiagonal eigenproblem, 1995). The host has the second alone, with one
//! matrix in each lane of a vector.
//!
//! **Signs**: the entry of largest magnitude of each column of Q, the first of equals, is not negative.
//!
//! **Error**: |A - Q L Q'|, |I - Q'Q| and |L - exact| of a few N u |A|, as single-precision LAPACK: `reference::ratios`.
//! Scaling A by a power of two scales L exactly and leaves Q (short of overflow and underflow).
//!
//! **Not finite**: L and Q of a matrix with a NaN or an infinity in its triangle are NaN, as are those of one that did not
//! converge; other matrices are not touched. Every iteration is bounded.
//!
//! **Cost**: about 9 N^3 flops; 2 N^2 + N elements moved. Jacobi is one launch. Tridiagonal: 2 + 2 log2 N launches on a GPU;
//! no host read. Workspace of 3 N^2 + 10 N elements a matrix; Jacobi up to N = 64 none to 2 N^2.

pub mod cpu;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::{Problem, Run, cpu::Cpu};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};
use crate::{DType, with_float};

const OP: &str = "eigh";

/// The triangle of A that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Triangle {
    /// On and below the diagonal.
    Lower,
    /// On and above the diagonal.
    Upper,
}

/// What is formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// L alone.
    Values,
    /// L and Q.
    Vectors,
}

/// Which method; the host has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// The faster for the size.
    Auto,
    /// Two-sided Jacobi.
    Jacobi,
    /// Tridiagonalisation.
    Tridiagonal,
}

/// A checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eigh {
    /// Number of matrices.
    pub batch: usize,
    /// N.
    pub n: usize,
    /// What is read.
    pub triangle: Triangle,
    /// What is formed.
    pub form: Form,
    /// By which method.
    pub strategy: Strategy,
    /// Type of A, L and Q.
    pub dtype: DType,
}

/// Tensors of a call, contiguous. `q` is not looked at in form `Values`.
pub struct Args<'a, B> {
    /// (batch, n, n).
    pub a: &'a B,
    /// (batch, n).
    pub l: &'a B,
    /// (batch, n, n).
    pub q: &'a B,
    /// (batch) of signed 32-bit integers.
    pub info: &'a B,
}

impl Problem for Eigh {
    type Args<'a, B: 'a> = Args<'a, B>;
}

impl Eigh {
    /// Checks shape and type of A.
    pub fn new(shape: &[usize], dtype: DType, triangle: Triangle, form: Form, strategy: Strategy) -> Result<Eigh> {
        let [batch @ .., rows, cols] = shape else {
            return Err(Error::argument(OP, "A", format!("shape {shape:?}"), "at least 2 dimensions"));
        };
        if rows != cols {
            return Err(Error::argument(OP, "A", format!("shape {shape:?}"), "a square matrix (..., N, N)"));
        }
        if !matches!(dtype, DType::F32 | DType::F64) {
            let expected = "float32 or float64".to_owned();
            return Err(Error::DType { op: OP, argument: "A", got: dtype.to_string(), expected });
        }
        Ok(Eigh { batch: batch.iter().product(), n: *rows, triangle, form, strategy, dtype })
    }

    /// Elements of Q in the whole call.
    pub fn q_numel(&self) -> usize {
        if self.form == Form::Vectors { self.batch * self.n * self.n } else { 0 }
    }
}

impl Run<Eigh> for Cpu {
    fn run(&self, eigh: &Eigh, args: Args<'_, Self::Buffer>) -> Result<()> {
        let Eigh { batch, n, .. } = *eigh;
        with_float!(eigh.dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and are four different ones.
            let (a, l, q, info) = unsafe {
                (
                    args.a.slice::<T>(batch * n * n),
                    args.l.slice_mut::<T>(batch * n),
                    args.q.slice_mut::<T>(eigh.q_numel()),
                    args.info.slice_mut::<i32>(batch),
                )
            };
            cpu::eigh(self.threads(), a, n, eigh.triangle, l, q, info);
        });
        Ok(())
    }
}

/// Eigenvalues and eigenvectors.
pub struct Eigen<D: crate::device::Device> {
    /// L.
    pub l: Tensor<D>,
    /// Q; (..., N, 0) if it was not asked for.
    pub q: Tensor<D>,
    /// One signed 32-bit integer a matrix.
    pub info: D::Buffer,
}

/// Eigenvalues and, if asked for, eigenvectors of every matrix of `a`.
pub fn eigh<D: Run<Eigh>>(a: View<'_, D>, triangle: Triangle, form: Form, strategy: Strategy) -> Result<Eigen<D>> {
    let problem = Eigh::new(a.shape, a.dtype, triangle, form, strategy)?;
    let (batch, n) = (&a.shape[..a.shape.len() - 2], problem.n);
    let l = Tensor::empty(a.device, &[batch, &[n]].concat(), a.dtype)?;
    let q_cols = if form == Form::Vectors { n } else { 0 };
    let q = Tensor::empty(a.device, &[batch, &[n, q_cols]].concat(), a.dtype)?;
    let info = a.device.alloc(4 * problem.batch)?;
    a.device.run(&problem, Args { a: a.buffer, l: l.buffer(), q: q.buffer(), info: &info })?;
    Ok(Eigen { l, q, info })
}
