//! metalcore::op_name.

use super::{put, take};
use crate::host::{Host, Shim};
use crate::shim::{Operator, Value};
use crate::throw::boxed;
use metalcore::Result;
use metalcore::device::Run;
use metalcore::ops::op_name::{Args, OpName};

/// One tensor in, one of the same shape and type out.
pub const OPERATOR: Operator =
    Operator { name: "op_name", signature: "(Tensor x) -> Tensor", kernels: &[("CPU", cpu), ("CUDA", cuda)] };

/// f of every element of `x`.
pub fn op_name<H: Host>(host: &H, x: H::Tensor) -> Result<H::Tensor>
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

unsafe extern "C-unwind" fn cpu(stack: *mut Value, _: u64, _: u64) {
    // SAFETY: the dispatcher passes the stack of the schema; nothing is left to drop.
    unsafe {
        boxed(|| {
            put(stack, 0, op_name(&Shim::cpu(), take(stack, 0))?);
            Ok(())
        });
    }
}

unsafe extern "C-unwind" fn cuda(stack: *mut Value, _: u64, _: u64) {
    // SAFETY: the dispatcher passes the stack of the schema; nothing is left to drop.
    unsafe {
        boxed(|| {
            let x = take(stack, 0);
            let host = Shim::cuda(x.peek().device().1)?;
            put(stack, 0, op_name(&host, x)?);
            Ok(())
        });
    }
}
