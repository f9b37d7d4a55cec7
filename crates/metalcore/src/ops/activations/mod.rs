//! # activations: gelu, silu; bias_gelu, bias_silu; swiglu, geglu
//! f(x) = x P(x) for one of three distribution functions P, alone, of x + b, or times another tensor.
//!
//! | function | P(x) |
//! |---|---|
//! | silu | sigma(x) = 1 / (1 + exp(-x)) |
//! | gelu | Phi(x) = (1 + erf(x / sqrt 2)) / 2 |
//! | gelu, tanh form | sigma(2 u) = (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3) |
//!
//! | form | forward | backward |
//! |---|---|---|
//! | alone | y = f(x) | dx = dy f'(x) |
//! | bias | y = f(x + b), b (cols), not rounded before f | dx = dy f'(x + b), db = sum over rows of dy f'(x + b) |
//! | gated (swiglu, geglu) | y = f(gate) up | d_gate = dy up f'(gate), d_up = dy f(gate) |
//!
//! Rows of x and of up may be any distance apart, as those of the halves of one tensor are; other tensors are contiguous.
//!
//! Types: float16, bfloat16, float32, float64 (not on Metal); the bias any of them (float64 only with float64).
//!
//! **Method**: P(-a) = 1 - P(a) for all three. With a = |x|, c = P(-a) and p = P'(a): f(x) = max(x, 0) - a c, and
//! f'(x) = c - a p for negative x, 1 - (c - a p) for others. c is formed without cancellation (as erfc is), so that f
//! keeps its digits where x is far below 0.
//!
//! **Rounding**: in float32 (float64 for float64); one rounding, to nearest even, at the end. An infinite x gives the
//! limit, NaN gives NaN.
//!
//! **Error**: rho |y| + 8 w |x|, derivative 8 w |dy| (1 + |x|), and as CONTRACT 3.4 for the other forms.
//!
//! **Cost**: every tensor is read or written once: bound by memory. One launch; two for the gradient of a bias, whose
//! partial sums are added in a fixed order. No host read. Workspace of that: blocks of rows * cols sums.
//!
//! **Source**: Hendrycks & Gimpel, arXiv 1606.08415; Shazeer, arXiv 2002.05202. Phi(-a) exp(a^2 / 2) (a + k) is a
//! polynomial in (a - k) / (a + k), as Shepherd & Laframboise, Math. Comp. 36 (1981); the coefficients are ours.

pub mod cpu;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::cpu::simd::{Real, Storage};
use crate::device::cpu::{Buffer, Cpu};
use crate::device::{Problem, Run};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};
use crate::{DType, with_dtype};
use cpu::Beside;

/// f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// x sigma(x)
    Silu,
    /// x Phi(x)
    Gelu,
    /// The tanh form of gelu.
    GeluTanh,
}

impl Function {
    /// All of them.
    pub const ALL: [Function; 3] = [Function::Silu, Function::Gelu, Function::GeluTanh];
}

/// What stands beside x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// Nothing: f(x).
    None,
    /// A bias of this type, one element a column: f(x + b).
    Bias(DType),
    /// A tensor like x: f(x) up.
    Up,
}

/// Sizes and types of a call, forward and backward. A contiguous one without a bias is one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activation {
    /// f.
    pub function: Function,
    /// Number of rows.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// Type of x.
    pub dtype: DType,
    /// The other operand.
    pub second: Second,
    /// Elements from a row of x to the next, and of up.
    pub strides: [usize; 2],
}

/// The forward pass.
pub struct Forward(pub Activation);
/// The backward pass.
pub struct Backward(pub Activation);

/// Tensors of the forward pass.
pub struct ForwardArgs<'a, B> {
    /// (rows, cols), of the problem's strides.
    pub x: &'a B,
    /// Bias (cols) or up (rows, cols), as the problem says.
    pub second: Option<&'a B>,
    /// (rows, cols).
    pub y: &'a B,
}

/// Tensors of the backward pass.
pub struct BackwardArgs<'a, B> {
    /// (rows, cols).
    pub dy: &'a B,
    /// (rows, cols), of the problem's strides.
    pub x: &'a B,
    /// Bias (cols) or up (rows, cols), as the problem says.
    pub second: Option<&'a B>,
    /// (rows, cols).
    pub dx: &'a B,
    /// Gradient of the second operand, like it.
    pub d_second: Option<&'a B>,
}

impl Problem for Forward {
    type Args<'a, B: 'a> = ForwardArgs<'a, B>;
}
impl Problem for Backward {
    type Args<'a, B: 'a> = BackwardArgs<'a, B>;
}

impl Activation {
    /// f(x).
    pub fn plain(function: Function, shape: &[usize], dtype: DType) -> Activation {
        let cols = shape.iter().product();
        Activation { function, rows: 1, cols, dtype, second: Second::None, strides: [cols; 2] }
    }

    /// f(x + bias): checks the bias.
    pub fn bias(
        op: &'static str,
        function: Function,
        (shape, dtype): (&[usize], DType),
        (bias, bias_dtype): (&[usize], DType),
    ) -> Result<Activation> {
        let Some((cols, leading)) = shape.split_last() else {
            return Err(Error::argument(op, "x", "shape []".to_owned(), "at least 1 dimension".to_owned()));
        };
        if bias != [*cols] {
            return Err(Error::argument(op, "bias", format!("shape {bias:?}"), format!("shape [{cols}]")));
        }
        if bias_dtype == DType::F64 && dtype != DType::F64 {
            let expected = format!("float32, float16 or bfloat16 for x of {dtype}");
            return Err(Error::DType { op, argument: "bias", got: bias_dtype.to_string(), expected });
        }
        let rows = leading.iter().product();
        Ok(Activation { function, rows, cols: *cols, dtype, second: Second::Bias(bias_dtype), strides: [*cols; 2] })
    }

    /// f(gate) up: checks that they are alike.
    pub fn gated(
        op: &'static str,
        function: Function,
        (gate, dtype): (&[usize], DType),
        (up, up_dtype): (&[usize], DType),
    ) -> Result<Activation> {
        if up != gate {
            return Err(Error::argument(op, "up", format!("shape {up:?}"), format!("shape {gate:?}")));
        }
        if up_dtype != dtype {
            return Err(Error::DType { op, argument: "up", got: up_dtype.to_string(), expected: dtype.to_string() });
        }
        Ok(Activation { second: Second::Up, ..Activation::plain(function, gate, dtype) })
    }

    /// The same of a contiguous problem for x, and up, of these strides, or None where they have to be copied: where
    /// rows of the last dimension are not dense, or not a constant distance apart.
    pub fn strided(self, shape: &[usize], x: &[usize], up: Option<&[usize]>) -> Option<Activation> {
        let (cols, leading) = shape.split_last()?;
        let x = row_stride(shape, x)?;
        let up = up.map_or(Some(x), |up| row_stride(shape, up))?;
        let rows: usize = leading.iter().product();
        if rows <= 1 || [x, up] == [*cols; 2] || self.numel() == 0 {
            return Some(self);
        }
        // Kernels count the elements of rows in 32 bits.
        let most = u32::MAX as usize;
        let fits = self.numel() <= most && x <= most && up <= most;
        fits.then_some(Activation { rows, cols: *cols, strides: [x, up], ..self })
    }

    /// Elements from the first to the last of operand 0 (x) or 1 (up).
    fn span(&self, operand: usize) -> usize {
        if self.numel() == 0 { 0 } else { (self.rows - 1) * self.strides[operand] + self.cols }
    }

    /// Number of elements of x.
    pub fn numel(&self) -> usize {
        self.rows * self.cols
    }
}

impl Run<Forward> for Cpu {
    fn run(&self, Forward(problem): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        with_dtype!(problem.dtype, T => {
            let bias = problem.bias_values(args.second);
            // SAFETY: the caller's buffers have the sizes of the problem, and the output is a different one.
            unsafe {
                let (x, y) = (args.x.slice::<T>(problem.span(0)), args.y.slice_mut(problem.numel()));
                cpu::forward(self.threads(), problem, x, problem.beside(&bias, args.second), y);
            }
        });
        Ok(())
    }
}

impl Run<Backward> for Cpu {
    fn run(&self, Backward(problem): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        let up = if problem.second == Second::Up { problem.numel() } else { 0 };
        with_dtype!(problem.dtype, T => {
            let bias = problem.bias_values(args.second);
            // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are different ones.
            let sums = unsafe {
                cpu::backward(
                    self.threads(),
                    problem,
                    args.dy.slice::<T>(problem.numel()),
                    args.x.slice(problem.span(0)),
                    problem.beside(&bias, args.second),
                    args.dx.slice_mut(problem.numel()),
                    args.d_second.map_or(&mut [], |d_up| d_up.slice_mut(up)),
                )
            };
            if let (Second::Bias(dtype), Some(db)) = (problem.second, args.d_second) {
                with_dtype!(dtype, B => {
                    // SAFETY: as above.
                    let db = unsafe { db.slice_mut::<B>(problem.cols) };
                    db.iter_mut().zip(sums).for_each(|(db, sum)| *db = sum.put());
                });
            }
        });
        Ok(())
    }
}

impl Activation {
    /// The bias in the type that is computed in; empty where there is none.
    fn bias_values<C: Real>(&self, second: Option<&Buffer>) -> Vec<C> {
        match (self.second, second) {
            (Second::Bias(dtype), Some(bias)) => with_dtype!(dtype, B => {
                // SAFETY: the buffer has the size of the problem, and nobody writes it.
                let bias = unsafe { bias.slice::<B>(self.cols) };
                bias.iter().map(|value| C::get(*value)).collect()
            }),
            _ => Vec::new(),
        }
    }

    /// What stands beside x.
    ///
    /// # Safety
    /// `second` has the size of the problem, and nobody writes it meanwhile.
    unsafe fn beside<'a, T: Storage>(&self, bias: &'a [T::Compute], second: Option<&'a Buffer>) -> Beside<'a, T> {
        match (self.second, second) {
            (Second::Bias(_), _) => Beside::Bias(bias),
            // SAFETY: the caller's promise.
            (Second::Up, Some(up)) => Beside::Up(unsafe { up.slice(self.span(1)) }),
            _ => Beside::Nothing,
        }
    }
}

/// Distance of rows, if they are dense and it is a constant one.
fn row_stride(shape: &[usize], strides: &[usize]) -> Option<usize> {
    let (cols, last) = (*shape.last()?, *strides.last()?);
    if cols > 1 && last != 1 {
        return None;
    }
    let mut sizes = shape.iter().zip(strides).rev().skip(1).filter(|(size, _)| **size != 1);
    let Some((size, stride)) = sizes.next() else {
        return Some(cols);
    };
    let mut next = size * stride;
    for (size, stride) in sizes {
        if *stride != next {
            return None;
        }
        next = size * stride;
    }
    Some(*stride)
}

/// f of every element of `x`.
pub fn activation<D: Run<Forward>>(function: Function, x: View<'_, D>) -> Result<Tensor<D>> {
    run_forward(Activation::plain(function, x.shape, x.dtype), x, None)
}

/// f(x + bias), for a bias of the last dimension.
pub fn bias_activation<D: Run<Forward>>(function: Function, x: View<'_, D>, bias: View<'_, D>) -> Result<Tensor<D>> {
    let problem = Activation::bias("bias_activation", function, (x.shape, x.dtype), (bias.shape, bias.dtype))?;
    run_forward(problem, x, Some(bias))
}

/// f(gate) up.
pub fn gated_activation<D: Run<Forward>>(function: Function, gate: View<'_, D>, up: View<'_, D>) -> Result<Tensor<D>> {
    let problem = Activation::gated("gated_activation", function, (gate.shape, gate.dtype), (up.shape, up.dtype))?;
    run_forward(problem, gate, Some(up))
}

fn run_forward<D: Run<Forward>>(problem: Activation, x: View<'_, D>, second: Option<View<'_, D>>) -> Result<Tensor<D>> {
    let y = Tensor::empty(x.device, x.shape, x.dtype)?;
    let args = ForwardArgs { x: x.buffer, second: second.map(|second| second.buffer), y: y.buffer() };
    x.device.run(&Forward(problem), args)?;
    Ok(y)
}

/// Gradients of x and of the second operand, if there is one, from that of y. `problem` was made for x and `second`.
pub fn activation_backward<D: Run<Backward>>(
    problem: Activation,
    dy: View<'_, D>,
    x: View<'_, D>,
    second: Option<View<'_, D>>,
) -> Result<(Tensor<D>, Option<Tensor<D>>)> {
    if dy.shape != x.shape {
        let (got, expected) = (format!("shape {:?}", dy.shape), format!("shape {:?}", x.shape));
        return Err(Error::argument("activation_backward", "dy", got, expected));
    }
    let dx = Tensor::empty(x.device, x.shape, x.dtype)?;
    let d_second = second.map(|second| Tensor::empty(x.device, second.shape, second.dtype)).transpose()?;
    let args = BackwardArgs {
        dy: dy.buffer,
        x: x.buffer,
        second: second.map(|second| second.buffer),
        dx: dx.buffer(),
        d_second: d_second.as_ref().map(Tensor::buffer),
    };
    x.device.run(&Backward(problem), args)?;
    Ok((dx, d_second))
}
