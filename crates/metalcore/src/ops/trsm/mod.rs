//! # trsm
//! op(A) X = B with a triangular A, op the transpose or nothing; or A A' X = B (U' U X = B) by two substitutions, for
//! batches.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | A | (..., N, N) | float32, float64; any size, zero included; one triangle is looked at |
//! | B, X | (..., N, K) | the batch dimensions of A |
//!
//! **Method**: substitution (Golub & Van Loan, Matrix Computations, 3.1). CPU: one matrix per SIMD lane where matrices are
//! small and right sides few, vectors along the rows of X otherwise. GPU: 8 right sides a group; blocks of 32 rows are
//! solved by one simd group while the others subtract their products from the rows that are left. One launch, whatever
//! the batch; no workspace, no host read.
//!
//! **Error**: |B - op(A) X| within a few |A| |X| u per column. A diagonal entry of zero gives Inf or NaN in its matrix. A or B
//! times a power of two scales X exactly (short of overflow and underflow).
//!
//! **Cost**: N^2 K flops; N^2 (K / 8 + 1) / 2 + 2 N K elements moved.

pub mod cpu;
mod cpu_interleaved;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::{Problem, Run, cpu::Cpu};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};
use crate::{DType, with_float};

const OP: &str = "trsm";

/// Which part of a matrix is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Triangle {
    /// On and below the diagonal.
    Lower,
    /// On and above the diagonal.
    Upper,
}

impl Triangle {
    /// From a flag.
    pub fn upper_if(upper: bool) -> Triangle {
        if upper { Triangle::Upper } else { Triangle::Lower }
    }
}

/// The system's matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// A.
    Plain,
    /// A'.
    Transposed,
    /// L L' for a lower triangle, U' U for an upper one.
    Square,
}

/// What is on the diagonal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diagonal {
    /// What is stored.
    Stored,
    /// Ones; what is stored is not looked at.
    Unit,
}

/// Options of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// As stored.
    pub triangle: Triangle,
    /// What is solved with.
    pub matrix: Matrix,
    /// What is divided by.
    pub diagonal: Diagonal,
}

/// One substitution: whether it goes with A', and whether from the first row on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pass {
    transposed: bool,
    forward: bool,
}

impl Form {
    fn passes(self) -> impl Iterator<Item = Pass> {
        let lower = self.triangle == Triangle::Lower;
        let pass = move |transposed: bool| Pass { transposed, forward: lower != transposed };
        let (first, second) = match self.matrix {
            Matrix::Plain => (false, None),
            Matrix::Transposed => (true, None),
            Matrix::Square => (!lower, Some(lower)),
        };
        [Some(first), second].into_iter().flatten().map(pass)
    }
}

/// A checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trsm {
    /// Number of matrices.
    pub batch: usize,
    /// N.
    pub n: usize,
    /// K.
    pub cols: usize,
    /// Options.
    pub form: Form,
    /// Type of A, B and X.
    pub dtype: DType,
}

/// Tensors of a call, contiguous.
pub struct Args<'a, B> {
    /// (batch, n, n).
    pub a: &'a B,
    /// (batch, n, cols).
    pub b: &'a B,
    /// (batch, n, cols).
    pub x: &'a B,
}

impl Problem for Trsm {
    type Args<'a, B: 'a> = Args<'a, B>;
}

impl Trsm {
    /// Checks shape and type of A and the shape of B.
    pub fn new(shape: &[usize], b_shape: &[usize], dtype: DType, form: Form) -> Result<Trsm> {
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
        if b_shape.len() != shape.len() || b_shape[..=batch.len()] != shape[..=batch.len()] {
            let expected = format!("shape {:?} and K columns", &shape[..=batch.len()]);
            return Err(Error::argument(OP, "b", format!("shape {b_shape:?}"), expected));
        }
        Ok(Trsm { batch: batch.iter().product(), n: *rows, cols: b_shape[batch.len() + 1], form, dtype })
    }
}

impl Run<Trsm> for Cpu {
    fn run(&self, problem: &Trsm, args: Args<'_, Self::Buffer>) -> Result<()> {
        let Trsm { batch, n, cols, form, dtype } = *problem;
        with_float!(dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and are three different ones.
            let (a, b, x) = unsafe {
                (
                    args.a.slice::<T>(batch * n * n),
                    args.b.slice::<T>(batch * n * cols),
                    args.x.slice_mut::<T>(batch * n * cols),
                )
            };
            cpu::solve(self.threads(), a, b, x, cpu::Shape { n, cols, form });
        });
        Ok(())
    }
}

/// Solves every system of `a` and `b`.
pub fn trsm<D: Run<Trsm>>(a: View<'_, D>, b: View<'_, D>, form: Form) -> Result<Tensor<D>> {
    let problem = Trsm::new(a.shape, b.shape, a.dtype, form)?;
    if a.dtype != b.dtype {
        return Err(Error::DType { op: OP, argument: "b", got: b.dtype.to_string(), expected: a.dtype.to_string() });
    }
    let x = Tensor::empty(a.device, b.shape, b.dtype)?;
    a.device.run(&problem, Args { a: a.buffer, b: b.buffer, x: x.buffer() })?;
    Ok(x)
}
