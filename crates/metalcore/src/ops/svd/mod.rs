//! # svd
//! A = U diag(S) V' for batches: U and V with orthonormal columns, S descending.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | A | (..., M, N) | float32, float64; any sizes, zero included |
//! | U, V | (..., M, K), (..., N, K) | K = min(M, N) |
//! | S | (..., K) | |
//! | info | (...) | number of singular values that are 0; -1: A is not finite, -2: not converged (results are NaN) |
//!
//! **Method**: one-sided Jacobi (Hestenes; Golub & Van Loan, Matrix Computations, 8.6.3; LAPACK gesvj): the columns of A
//! (of A', if that is the tall one) are rotated in pairs until all are orthogonal; their lengths are S, the product
//! of the rotations is V. Rotations in Rutishauser's form, which does not drift. Two columns count as orthogonal when the cosine of their angle is at most
//! (4 + sqrt(rows) / 8) u, so that U is orthonormal also for singular values of the size of rounding errors. Where a column is
//! zero (shorter than 1e-14 of the largest entry; 1e-72 in float64) U (V, if M < N) has a column of zeros, which
//! [`svd`] completes.
//!
//! **Signs**: the entry of largest magnitude of each column of U (the first one on a tie) is not negative.
//!
//! **Error**: |A - U S V'|, |I - U'U|, |I - V'V| and S within the ratios of `reference::ratios`, as single-precision
//! LAPACK. Scaling A by a power of two scales S exactly and leaves U and V (short of overflow and underflow).
//!
//! **Cost**: about 6 to 10 sweeps of 6 M N^2 flops each (M >= N; 4 N^3 of them more for V). CPU: one matrix per SIMD lane, or one matrix with
//! its rows in lanes. GPU: one launch with the matrix in registers up to 128 rows (64 in float64), by blocks of 16 columns up to 512:
//! N / 16 launches a sweep, for 40 sweeps, of which those after convergence return at once; whatever the batch,
//! no host read. By blocks a matrix needs (M + N) N elements of workspace.

pub mod cpu;
mod cpu_jacobi;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::{Device, Problem, Run, cpu::Cpu};
use crate::error::{Error, Result};
use crate::ops::qr::{Mode, Qr, qr};
use crate::tensor::{Tensor, View};
use crate::{DType, Element, with_float};

const OP: &str = "svd";
/// Rows and columns that the GPU form takes. A matrix with more of one is to be reduced by QR first.
pub const MOST_ROWS: usize = 512;
/// `info` of a matrix with NaN or Inf.
pub const NOT_FINITE: i32 = -1;
/// `info` of a matrix that did not converge.
pub const NOT_CONVERGED: i32 = -2;

/// A checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Svd {
    /// Number of matrices.
    pub batch: usize,
    /// M.
    pub rows: usize,
    /// N.
    pub cols: usize,
    /// Whether U and V are formed.
    pub vectors: bool,
    /// Type of A, U, S and V.
    pub dtype: DType,
}

/// Tensors of a call, contiguous. `u` and `v` are not looked at without vectors.
pub struct Args<'a, B> {
    /// (batch, rows, cols).
    pub a: &'a B,
    /// (batch, rows, rank).
    pub u: &'a B,
    /// (batch, rank).
    pub s: &'a B,
    /// (batch, cols, rank).
    pub v: &'a B,
    /// (batch), 32-bit signed integers.
    pub info: &'a B,
}

impl Problem for Svd {
    type Args<'a, B: 'a> = Args<'a, B>;
}

impl Svd {
    /// Checks shape and type of A.
    pub fn new(shape: &[usize], dtype: DType, vectors: bool) -> Result<Svd> {
        let [batch @ .., rows, cols] = shape else {
            return Err(Error::argument(OP, "A", format!("shape {shape:?}"), "at least 2 dimensions"));
        };
        if !matches!(dtype, DType::F32 | DType::F64) {
            let expected = "float32 or float64".to_owned();
            return Err(Error::DType { op: OP, argument: "A", got: dtype.to_string(), expected });
        }
        Ok(Svd { batch: batch.iter().product(), rows: *rows, cols: *cols, vectors, dtype })
    }
    /// K = min(M, N).
    pub fn short(&self) -> usize {
        self.rows.min(self.cols)
    }
    /// max(M, N).
    pub fn long(&self) -> usize {
        self.rows.max(self.cols)
    }
    /// K where vectors are formed, else 0.
    pub fn vector_cols(&self) -> usize {
        if self.vectors { self.short() } else { 0 }
    }
}

impl Run<Svd> for Cpu {
    fn run(&self, svd: &Svd, args: Args<'_, Self::Buffer>) -> Result<()> {
        let (rank, inner) = (svd.short(), svd.vector_cols());
        with_float!(svd.dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and are five different ones.
            let (a, u, s, v, info) = unsafe {
                (
                    args.a.slice::<T>(svd.batch * svd.rows * svd.cols),
                    args.u.slice_mut::<T>(svd.batch * svd.rows * inner),
                    args.s.slice_mut::<T>(svd.batch * rank),
                    args.v.slice_mut::<T>(svd.batch * svd.cols * inner),
                    args.info.slice_mut::<i32>(svd.batch),
                )
            };
            cpu::decompose(self.threads(), svd, a, u, s, v, info);
        });
        Ok(())
    }
}

/// The decomposition.
pub struct Decomposition<D: Device> {
    /// U; (..., M, 0) if it was not asked for.
    pub u: Tensor<D>,
    /// S.
    pub s: Tensor<D>,
    /// V; (..., N, 0) if it was not asked for.
    pub v: Tensor<D>,
    /// For each matrix the number of singular values that are 0, [`NOT_FINITE`] or [`NOT_CONVERGED`].
    pub info: Vec<i32>,
}

/// Decomposes every matrix of `a`. Waits.
pub fn svd<D: Run<Svd> + Run<Qr>>(a: View<'_, D>, vectors: bool) -> Result<Decomposition<D>> {
    let problem = Svd::new(a.shape, a.dtype, vectors)?;
    let batch = &a.shape[..a.shape.len() - 2];
    let tensor = |sizes: &[usize]| Tensor::empty(a.device, &[batch, sizes].concat(), a.dtype);
    let u = tensor(&[problem.rows, problem.vector_cols()])?;
    let v = tensor(&[problem.cols, problem.vector_cols()])?;
    let s = tensor(&[problem.short()])?;
    let status = a.device.alloc(4 * problem.batch)?;
    a.device.run(&problem, Args { a: a.buffer, u: u.buffer(), s: s.buffer(), v: v.buffer(), info: &status })?;
    let mut info = vec![0i32; problem.batch];
    if problem.short() > 0 {
        let mut bytes = vec![0; 4 * problem.batch];
        a.device.read(&status, 0, &mut bytes)?;
        for (info, bytes) in info.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *info = i32::from_ne_bytes(*bytes);
        }
    }
    if vectors && info.iter().any(|zeros| *zeros > 0) {
        let incomplete = if problem.rows < problem.cols { &v } else { &u };
        with_float!(a.dtype, T => complete::<T, D>(incomplete, &info)?);
    }
    Ok(Decomposition { u, s, v, info })
}

/// Puts orthonormal columns in the place of the last `zeros[i]` ones of matrix i, from the Q of a QR factorisation.
fn complete<T: Element, D: Run<Qr>>(q: &Tensor<D>, zeros: &[i32]) -> Result<()> {
    let (long, short) = (q.shape()[q.shape().len() - 2], q.shape()[q.shape().len() - 1]);
    let full: Vec<T> = qr(q.view(), Mode::Reduced)?.q.to_vec()?;
    let mut values: Vec<T> = q.to_vec()?;
    let matrices = values.chunks_exact_mut(long * short).zip(full.chunks_exact(long * short));
    for ((matrix, full), zeros) in matrices.zip(zeros) {
        for col in short - (*zeros).max(0) as usize..short {
            let column = || full[col..].iter().step_by(short);
            let size = |value: &T| value.to_f64().abs();
            let peak = column().fold(column().next().expect("a row"), |a, b| if size(b) > size(a) { b } else { a });
            let sign = if peak.to_f64() < 0.0 { -1.0 } else { 1.0 };
            for (to, from) in matrix[col..].iter_mut().step_by(short).zip(column()) {
                *to = T::from_f64(from.to_f64() * sign);
            }
        }
    }
    // SAFETY: an Element is plain memory.
    let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(&values[..])) };
    q.device().write(q.buffer(), 0, bytes)
}
