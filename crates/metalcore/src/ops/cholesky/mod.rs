//! # cholesky
//! A = L L' with L lower triangular, or A = U' U with U upper triangular, for batches.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | A | (..., N, N) | float32, float64; any size, zero included; one triangle is looked at |
//! | L | (..., N, N) | exact zeros in the other triangle |
//! | info | (...) int32 | 0, or the order k of the first leading minor that is not positive definite |
//!
//! **Method**: elimination without pivoting (LAPACK potrf; Golub & Van Loan, Matrix Computations, 4.2). CPU: one matrix per
//! SIMD lane up to 64 rows, products of rows above. GPU: a row in the registers of a thread up to 64 rows (128 in
//! float32), one group per matrix by panels of 32 columns above. One launch, whatever the batch; no workspace, no host read.
//!
//! **Error**: |A - L L'| within the ratio of `reference::ratio`, as single-precision LAPACK. A times a power of four scales
//! L exactly (short of overflow and underflow). A pivot that is not above zero, NaN included, is bad: columns of L
//! before it are right, those from it on unspecified. Other matrices of the batch are not touched.
//!
//! **Cost**: N^3 / 3 flops; N^2 elements read and written.

pub mod cpu;
mod cpu_blocked;
mod cpu_interleaved;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::{Device, Problem, Run, cpu::Cpu};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};
use crate::{DType, with_float};

const OP: &str = "cholesky";

pub use super::trsm::Triangle;

/// A checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cholesky {
    /// Number of matrices.
    pub batch: usize,
    /// N.
    pub n: usize,
    /// Which triangle of A is looked at, and that of the result.
    pub triangle: Triangle,
    /// Type of A and L.
    pub dtype: DType,
}

/// Tensors of a call, contiguous.
pub struct Args<'a, B> {
    /// (batch, n, n).
    pub a: &'a B,
    /// (batch, n, n).
    pub l: &'a B,
    /// (batch), int32.
    pub info: &'a B,
}

impl Problem for Cholesky {
    type Args<'a, B: 'a> = Args<'a, B>;
}

impl Cholesky {
    /// Checks shape and type of A.
    pub fn new(shape: &[usize], dtype: DType, triangle: Triangle) -> Result<Cholesky> {
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
        Ok(Cholesky { batch: batch.iter().product(), n: *rows, triangle, dtype })
    }
}

impl Run<Cholesky> for Cpu {
    fn run(&self, problem: &Cholesky, args: Args<'_, Self::Buffer>) -> Result<()> {
        let elements = problem.batch * problem.n * problem.n;
        with_float!(problem.dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and are three different ones.
            let (a, l, info) = unsafe {
                (
                    args.a.slice::<T>(elements),
                    args.l.slice_mut::<T>(elements),
                    args.info.slice_mut::<i32>(problem.batch),
                )
            };
            cpu::factor(self.threads(), a, problem.n, problem.triangle, l, info);
        });
        Ok(())
    }
}

/// The factor.
pub struct Factor<D: Device> {
    /// L, or U.
    pub l: Tensor<D>,
    info: D::Buffer,
    batch: usize,
}

impl<D: Device> Factor<D> {
    /// For each matrix 0, or the order of the first leading minor that is not positive definite. Waits.
    pub fn info(&self) -> Result<Vec<i32>> {
        let mut bytes = vec![0; 4 * self.batch];
        self.l.device().read(&self.info, 0, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|word| i32::from_ne_bytes(*word)).collect())
    }
}

/// Factors every matrix of `a`.
pub fn cholesky<D: Run<Cholesky>>(a: View<'_, D>, triangle: Triangle) -> Result<Factor<D>> {
    let problem = Cholesky::new(a.shape, a.dtype, triangle)?;
    let l = Tensor::empty(a.device, a.shape, a.dtype)?;
    let info = a.device.alloc(4 * problem.batch)?;
    a.device.run(&problem, Args { a: a.buffer, l: l.buffer(), info: &info })?;
    Ok(Factor { l, info, batch: problem.batch })
}
