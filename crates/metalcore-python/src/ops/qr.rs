//! metalcore::qr.

use crate::host::{BufferOf, Host, Shim};
use crate::operator::{Operator, operator};
use crate::shim::{self, Tensor};
use metalcore::device::cuda::Cuda;
use metalcore::device::{Device, Run};
use metalcore::ops::qr::{Args, Mode, Qr, vendor_is_faster};
use metalcore::{Error, Result};

/// mode: 0 reduced, 1 complete, 2 R alone (Q is then empty).
pub const OPERATORS: &[Operator] =
    &[operator!(qr: "(Tensor A, int mode=0) -> (Tensor Q, Tensor R)", cuda = qr_on_cuda)];

fn mode(code: i64) -> Result<Mode> {
    match code {
        0 => Ok(Mode::Reduced),
        1 => Ok(Mode::Complete),
        2 => Ok(Mode::R),
        _ => Err(Error::Argument {
            op: "qr",
            argument: "mode",
            got: code.to_string(),
            expected: "0 (reduced), 1 (complete) or 2 (r)".to_owned(),
        }),
    }
}

fn problem<H: Host>(host: &H, a: &H::Tensor, code: i64) -> Result<Qr> {
    Qr::new(&host.shape(a), host.known_dtype("qr", "A", a)?, mode(code)?)
}

/// Q and R of every matrix of `a`.
fn qr<H: Host>(host: &H, a: H::Tensor, code: i64) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Qr>,
{
    let problem = problem(host, &a, code)?;
    let shape = host.shape(&a);
    let batch = &shape[..shape.len() - 2];
    let q_shape = if problem.mode == Mode::R { vec![0] } else { [batch, &[problem.rows, problem.q_cols()]].concat() };
    let q = host.empty(&q_shape, problem.dtype)?;
    let r = host.empty(&[batch, &[problem.r_rows(), problem.cols]].concat(), problem.dtype)?;
    let a = host.contiguous(a)?;
    let [a_buffer, q_buffer, r_buffer]: [BufferOf<H>; 3] = [host.buffer(&a), host.buffer(&q), host.buffer(&r)];
    host.device().run(&problem, Args { a: &a_buffer, q: &q_buffer, r: &r_buffer })?;
    Ok((q, r))
}

/// The same through torch's cuSOLVER, where that is measured faster; None where it is not.
fn by_torch(host: &Shim<Cuda>, a: &Tensor, code: i64) -> Result<Option<(Tensor, Tensor)>> {
    let problem = problem(host, a, code)?;
    if !vendor_is_faster(&problem, host.device().caps()) {
        return Ok(None);
    }
    let mode = ["reduced", "complete", "r"][code as usize];
    let Some(factors) = shim::linalg_qr(a, mode) else { return Ok(None) };
    let (q, r) = factors?;
    Ok(Some((host.contiguous(q)?, host.contiguous(r)?)))
}

fn qr_on_cuda(host: &Shim<Cuda>, a: Tensor, code: i64) -> Result<(Tensor, Tensor)> {
    match by_torch(host, &a, code)? {
        Some(factors) => Ok(factors),
        None => qr(host, a, code),
    }
}
