//! # adamw
//! One step of AdamW over a list of tensors, in place:
//!
//! g <- g / scale (-g to maximise); p <- p (1 - lr wd); m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2;
//! p <- p - lr / (1 - b1^t) m / (sqrt(v') / sqrt(1 - b2^t) + eps), v' = v, or with amsgrad the largest v so far.
//!
//! | symbol | type | |
//! |---|---|---|
//! | p, g | float16, bfloat16, float32, float64 | one type for all p, one for all g |
//! | m, v, largest v | float32; float64 for float64 p | |
//! | t | float32, one per tensor, consecutive | steps done; counted up by the call |
//!
//! **Rounding**: everything in float32 (float64 for float64); p rounded once, to nearest even.
//!
//! **Error**: 8 w (|p| + |step|), moments 4 w of the sum of their two terms, w = 2^-24.
//!
//! **Overflow**: where `found_inf` is not zero nothing changes, the step counts included.
//!
//! **Cost**: 28 bytes per float32 parameter, 22 per half one, + 8 with amsgrad: bound by memory. Two launches (counts and
//! coefficients; update) for up to 512 tensors on CUDA, and one more for each further 512; on Metal, which binds 31 buffers,
//! one more for each 5 tensors. No host read; the addresses travel inside the launch, so a captured graph keeps them.
//!
//! **Source**: Loshchilov & Hutter, arXiv 1711.05101; amsgrad: Reddi et al., arXiv 1904.09237.

pub mod cpu;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::{Problem, Run, cpu::Cpu};
use crate::error::{Error, Result};
use crate::{DType, with_dtype};

/// Scalars of a step, the same for every tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Learning rate, unless it comes as a tensor.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decay of the parameters, times lr.
    pub weight_decay: f64,
    /// Direction.
    pub goal: Goal,
}

/// Direction of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Against the gradient.
    Minimize,
    /// Along the gradient.
    Maximize,
}

/// A checked call.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Scalars.
    pub options: Options,
    /// Type of the parameters.
    pub param: DType,
    /// Type of the gradients.
    pub grad: DType,
}

/// One tensor with its gradient and state.
pub struct Slot<'a, B> {
    /// Number of elements of each.
    pub numel: usize,
    /// Parameter, updated.
    pub param: &'a B,
    /// Gradient.
    pub grad: &'a B,
    /// m, updated.
    pub exp_avg: &'a B,
    /// v, updated.
    pub exp_avg_sq: &'a B,
    /// Largest v, updated; on all slots or on none.
    pub max_exp_avg_sq: Option<&'a B>,
}

/// Tensors of a call.
pub struct Args<'a, B> {
    /// What is updated.
    pub slots: &'a [Slot<'a, B>],
    /// float32, one per slot: steps done, counted up.
    pub steps: &'a B,
    /// Learning rate in place of the option, of the type of the state.
    pub lr: Option<&'a B>,
    /// float32 factor that the gradients carry.
    pub grad_scale: Option<&'a B>,
    /// float32; not zero: leave everything as it is.
    pub found_inf: Option<&'a B>,
}

impl Problem for AdamW {
    type Args<'a, B: 'a> = Args<'a, B>;
}

impl AdamW {
    /// Checks the scalars.
    pub fn new(options: Options, param: DType, grad: DType) -> Result<AdamW> {
        let Options { lr, beta1, beta2, eps, weight_decay, .. } = options;
        let valid = [
            ("lr", lr, lr >= 0.0, "a number >= 0"),
            ("beta1", beta1, (0.0..1.0).contains(&beta1), "a number in [0, 1)"),
            ("beta2", beta2, (0.0..1.0).contains(&beta2), "a number in [0, 1)"),
            ("eps", eps, eps >= 0.0, "a number >= 0"),
            ("weight_decay", weight_decay, weight_decay >= 0.0, "a number >= 0"),
        ];
        match valid.into_iter().find(|(_, _, ok, _)| !ok) {
            Some((argument, got, _, expected)) => Err(Error::argument("adamw", argument, got, expected)),
            None => Ok(AdamW { options, param, grad }),
        }
    }

    /// Type of the moments.
    pub fn state(&self) -> DType {
        self.param.compute()
    }
}

impl Run<AdamW> for Cpu {
    fn run(&self, problem: &AdamW, args: Args<'_, Self::Buffer>) -> Result<()> {
        // SAFETY: the caller's scalars and counts have the types that Args says, and nobody else touches them.
        let (lr, [grad_scale, found_inf], steps) = unsafe {
            let lr = args.lr.map(|b| match problem.state() {
                DType::F64 => b.slice::<f64>(1)[0],
                _ => f64::from(b.slice::<f32>(1)[0]),
            });
            let scalars = [args.grad_scale, args.found_inf].map(|b| b.map(|b| b.slice::<f32>(1)[0]));
            (lr, scalars, args.steps.slice_mut::<f32>(args.slots.len()))
        };
        if found_inf.is_some_and(|found| found != 0.0) {
            return Ok(());
        }
        for step in &mut *steps {
            *step += 1.0;
        }
        let options = Options { lr: lr.unwrap_or(problem.options.lr), ..problem.options };
        with_dtype!(problem.param, P => with_dtype!(problem.grad, G => {
            // SAFETY: the caller's buffers have the types and sizes of the problem, and are different ones.
            let slots = args.slots.iter().zip(&*steps).map(|(slot, step)| unsafe {
                cpu::Slot::<P, G> {
                    param: slot.param.slice_mut(slot.numel),
                    grad: slot.grad.slice(slot.numel),
                    exp_avg: slot.exp_avg.slice_mut(slot.numel),
                    exp_avg_sq: slot.exp_avg_sq.slice_mut(slot.numel),
                    max_exp_avg_sq: slot.max_exp_avg_sq.map(|v| v.slice_mut(slot.numel)),
                    step: f64::from(*step),
                }
            });
            cpu::step(self.threads(), slots.collect(), &options, grad_scale);
        }));
        Ok(())
    }
}

/// 1 - beta^step without cancellation, which float64 results are fine enough to show.
fn one_minus_power(beta: f64, step: f64) -> f64 {
    -(step * (beta - 1.0).ln_1p()).exp_m1()
}
