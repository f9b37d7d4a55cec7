//! # op_name
//! y = f(x), element by element.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | x | any | float32, float16, bfloat16; float64 on cpu and cuda |
//! | y | as x | the type of x |
//!
//! **Rounding**: f in float32 (float64 for float64); y rounded once, to nearest even.
//!
//! **Error**: |y - f(x)| <= (u + 8 w) |f(x)|, w = 2^-24 (2^-53 for float64).
//!
//! **Cost**: x is read once, y written once: bound by memory. One launch; no host read.
//!
//! **Source**: the paper and equation, or "ours".

pub mod cpu;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::{Problem, Run, cpu::Cpu};
use crate::error::Result;
use crate::tensor::{Tensor, View};
use crate::{DType, with_dtype};

const OP: &str = "op_name";

/// A checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpName {
    /// Number of elements.
    pub numel: usize,
    /// Type of x and y.
    pub dtype: DType,
}

/// Tensors of a call, contiguous.
pub struct Args<'a, B> {
    /// (numel).
    pub x: &'a B,
    /// (numel).
    pub y: &'a B,
}

impl Problem for OpName {
    type Args<'a, B: 'a> = Args<'a, B>;
}

impl OpName {
    /// Checks shape and type of x.
    pub fn new(shape: &[usize], dtype: DType) -> Result<OpName> {
        Ok(OpName { numel: shape.iter().product(), dtype })
    }
}

impl Run<OpName> for Cpu {
    fn run(&self, problem: &OpName, args: Args<'_, Self::Buffer>) -> Result<()> {
        with_dtype!(problem.dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and are two different ones.
            let (x, y) = unsafe { (args.x.slice::<T>(problem.numel), args.y.slice_mut::<T>(problem.numel)) };
            cpu::op_name(self.threads(), x, y);
        });
        Ok(())
    }
}

/// f of every element of `x`.
pub fn op_name<D: Run<OpName>>(x: View<'_, D>) -> Result<Tensor<D>> {
    let problem = OpName::new(x.shape, x.dtype)?;
    let y = Tensor::empty(x.device, x.shape, x.dtype)?;
    x.device.run(&problem, Args { x: x.buffer, y: y.buffer() })?;
    Ok(y)
}
