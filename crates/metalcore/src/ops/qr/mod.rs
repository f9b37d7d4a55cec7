//! # qr
//! A = Q R with orthonormal columns of Q and upper triangular R, for batches.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | A | (..., M, N) | float32, float64; any sizes, zero included |
//! | Q | (..., M, K), `Complete`: (..., M, M), `R`: none | K = min(M, N) |
//! | R | (..., K, N), `Complete`: (..., M, N) | exact zeros below the diagonal |
//!
//! **Method**: Householder reflections H_k = I - tau v v', A = H_1 ... H_K R (LAPACK geqr2/geqrf, org2r/orgqr; Golub &
//! Van Loan, Matrix Computations, 5.2). CPU: one matrix per SIMD lane up to 64 rows and columns, WY-blocked above. GPU:
//! in registers up to about 128 x 128 (`tile.metal`), by panels above (`blocked.metal`); inside PyTorch what is larger still on
//! CUDA goes to torch's own routine ([`vendor_is_faster`]).
//!
//! **Signs**: beta = -sign(alpha) |x|; a column whose tail is exactly zero is left alone. R's diagonal may be negative.
//!
//! **Error**: |A - Q R| and |I - Q'Q| within the ratios of `reference::ratios`, as single-precision LAPACK.
//! Scaling A by a power of two scales R exactly and leaves Q (short of overflow and underflow). NaN and Inf propagate
//! within their matrix.
//!
//! **Cost**: 4 M N^2 - 4 N^3 / 3 flops (M >= N); (2 M N + N^2) elements moved. One launch, by panels three for each of K / 32
//! (K / 16 above 512 rows, K / 8 above 1536) panels, whatever the batch; no host read. By panels a matrix needs 2 M N + 32 N
//! elements of workspace.

pub mod cpu;
mod cpu_blocked;
mod cpu_interleaved;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;
pub use gpu::vendor_is_faster;

use crate::device::{Problem, Run, cpu::Cpu};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};
use crate::{DType, with_float};

const OP: &str = "qr";

/// Which parts are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Q (M, K) and R (K, N).
    Reduced,
    /// Q (M, M) and R (M, N).
    Complete,
    /// R (K, N) alone.
    R,
}

impl std::str::FromStr for Mode {
    type Err = Error;
    fn from_str(text: &str) -> Result<Mode> {
        match text {
            "reduced" => Ok(Mode::Reduced),
            "complete" => Ok(Mode::Complete),
            "r" => Ok(Mode::R),
            _ => Err(Error::argument(OP, "mode", format!("'{text}'"), "'reduced', 'complete' or 'r'")),
        }
    }
}

/// A checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qr {
    /// Number of matrices.
    pub batch: usize,
    /// M.
    pub rows: usize,
    /// N.
    pub cols: usize,
    /// Which parts are formed.
    pub mode: Mode,
    /// Type of A, Q and R.
    pub dtype: DType,
}

/// Tensors of a call, contiguous. `q` is not looked at in mode `R`.
pub struct Args<'a, B> {
    /// (batch, rows, cols).
    pub a: &'a B,
    /// (batch, rows, q_cols).
    pub q: &'a B,
    /// (batch, r_rows, cols).
    pub r: &'a B,
}

impl Problem for Qr {
    type Args<'a, B: 'a> = Args<'a, B>;
}

impl Qr {
    /// Checks shape and type of A.
    pub fn new(shape: &[usize], dtype: DType, mode: Mode) -> Result<Qr> {
        let [batch @ .., rows, cols] = shape else {
            return Err(Error::argument(OP, "A", format!("shape {shape:?}"), "at least 2 dimensions"));
        };
        if !matches!(dtype, DType::F32 | DType::F64) {
            let expected = "float32 or float64".to_owned();
            return Err(Error::DType { op: OP, argument: "A", got: dtype.to_string(), expected });
        }
        Ok(Qr { batch: batch.iter().product(), rows: *rows, cols: *cols, mode, dtype })
    }

    /// K = min(M, N).
    pub fn rank(&self) -> usize {
        self.rows.min(self.cols)
    }

    /// Columns of Q; 0 if it is not formed.
    pub fn q_cols(&self) -> usize {
        match self.mode {
            Mode::Reduced => self.rank(),
            Mode::Complete => self.rows,
            Mode::R => 0,
        }
    }

    /// Rows of R.
    pub fn r_rows(&self) -> usize {
        match self.mode {
            Mode::Complete => self.rows,
            Mode::Reduced | Mode::R => self.rank(),
        }
    }

    /// Flops of one call, nominal.
    pub fn flops(&self) -> f64 {
        let (long, short) = (self.rows.max(self.cols) as f64, self.rank() as f64);
        let factor = 2.0 * long * short * short - 2.0 / 3.0 * short.powi(3);
        self.batch as f64 * if self.mode == Mode::R { factor } else { 2.0 * factor }
    }
}

impl Run<Qr> for Cpu {
    fn run(&self, qr: &Qr, args: Args<'_, Self::Buffer>) -> Result<()> {
        let shape = cpu::Shape { batch: qr.batch, rows: qr.rows, cols: qr.cols };
        let (q_cols, r_rows) = (qr.q_cols(), qr.r_rows());
        with_float!(qr.dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and are three different ones.
            let (a, q, r) = unsafe {
                (
                    args.a.slice::<T>(qr.batch * qr.rows * qr.cols),
                    args.q.slice_mut::<T>(qr.batch * qr.rows * q_cols),
                    args.r.slice_mut::<T>(qr.batch * r_rows * qr.cols),
                )
            };
            cpu::factor(self.threads(), a, shape, q, q_cols, r, r_rows);
        });
        Ok(())
    }
}

/// The factors.
pub struct Factors<D: crate::device::Device> {
    /// Q; (..., M, 0) if it was not asked for.
    pub q: Tensor<D>,
    /// R.
    pub r: Tensor<D>,
}

/// Factors every matrix of `a`.
pub fn qr<D: Run<Qr>>(a: View<'_, D>, mode: Mode) -> Result<Factors<D>> {
    let problem = Qr::new(a.shape, a.dtype, mode)?;
    let batch = &a.shape[..a.shape.len() - 2];
    let q = Tensor::empty(a.device, &[batch, &[problem.rows, problem.q_cols()]].concat(), a.dtype)?;
    let r = Tensor::empty(a.device, &[batch, &[problem.r_rows(), problem.cols]].concat(), a.dtype)?;
    a.device.run(&problem, Args { a: a.buffer, q: q.buffer(), r: r.buffer() })?;
    Ok(Factors { q, r })
}
