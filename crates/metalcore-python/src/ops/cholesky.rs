//! metalcore::cholesky.

use crate::host::{BufferOf, Host};
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::cholesky::{Args, Cholesky, Triangle};
use metalcore::{Index, Result};

/// The factor, and for each matrix 0 or the order of the first leading minor that is not positive definite.
pub const OPERATORS: &[Operator] = &[operator!(cholesky: "(Tensor A, bool upper=False) -> (Tensor L, Tensor info)")];

fn cholesky<H: Host>(host: &H, a: H::Tensor, upper: bool) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Cholesky>,
{
    let shape = host.shape(&a);
    let problem = Cholesky::new(&shape, host.known_dtype("cholesky", "A", &a)?, Triangle::upper_if(upper))?;
    let l = host.empty(&shape, problem.dtype)?;
    let info = host.empty_index(&shape[..shape.len() - 2], Index::I32)?;
    let a = host.contiguous(a)?;
    let [a_buffer, l_buffer, info_buffer]: [BufferOf<H>; 3] = [host.buffer(&a), host.buffer(&l), host.buffer(&info)];
    host.device().run(&problem, Args { a: &a_buffer, l: &l_buffer, info: &info_buffer })?;
    Ok((l, info))
}
