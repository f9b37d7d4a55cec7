//! metalcore::svd.

use crate::host::{Four, Host};
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::svd::{Args, Svd};
use metalcore::{Index, Result};

/// info (int32): the number of singular values that are 0, whose columns of U (of V, if M < N) are zeros; -1: A is not
/// finite, -2: not converged. Without vectors U and V are empty.
pub const OPERATORS: &[Operator] =
    &[operator!(svd: "(Tensor A, bool vectors=True) -> (Tensor U, Tensor S, Tensor V, Tensor info)")];

/// U, S, V and info of every matrix of `a`.
fn svd<H: Host>(host: &H, a: H::Tensor, vectors: bool) -> Result<Four<H>>
where
    H::Device: Run<Svd>,
{
    let shape = host.shape(&a);
    let problem = Svd::new(&shape, host.known_dtype("svd", "A", &a)?, vectors)?;
    let batch = &shape[..shape.len() - 2];
    let factor = |rows: usize| if vectors { [batch, &[rows, problem.short()]].concat() } else { vec![0] };
    let u = host.empty(&factor(problem.rows), problem.dtype)?;
    let s = host.empty(&[batch, &[problem.short()]].concat(), problem.dtype)?;
    let v = host.empty(&factor(problem.cols), problem.dtype)?;
    let info = host.empty_index(batch, Index::I32)?;
    let a = host.contiguous(a)?;
    let [a_buffer, u_buffer, s_buffer, v_buffer, info_buffer] = [&a, &u, &s, &v, &info].map(|x| host.buffer(x));
    let args = Args { a: &a_buffer, u: &u_buffer, s: &s_buffer, v: &v_buffer, info: &info_buffer };
    host.device().run(&problem, args)?;
    Ok((u, s, v, info))
}
