//! metalcore::op_name.

use crate::host::Host;
use crate::operator::{Operator, operator};
use metalcore::Result;
use metalcore::device::Run;
use metalcore::ops::op_name::{Args, OpName};

/// One tensor in, one of the same shape and type out.
pub const OPERATORS: &[Operator] = &[operator!(op_name: "(Tensor x) -> Tensor")];

/// f of every element of `x`.
fn op_name<H: Host>(host: &H, x: H::Tensor) -> Result<H::Tensor>
where
    H::Device: Run<OpName>,
{
    let shape = host.shape(&x);
    let problem = OpName::new(&shape, host.known_dtype("op_name", "x", &x)?)?;
    let x = host.contiguous(x)?;
    let y = host.empty(&shape, problem.dtype)?;
    host.device().run(&problem, Args { x: &host.buffer(&x), y: &host.buffer(&y) })?;
    Ok(y)
}
