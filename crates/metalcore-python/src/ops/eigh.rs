//! metalcore::eigh, eigvalsh.

use crate::host::{BufferOf, Host};
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::eigh::{Args, Eigh, Form, Strategy, Triangle};
use metalcore::{Error, Index, Result};

/// strategy: 0 auto, 1 jacobi, 2 tridiag. info: 0, -1 for a matrix that is not finite, above 0 for one that did not
/// converge.
pub const OPERATORS: &[Operator] = &[
    operator!(eigh: "(Tensor A, bool upper=False, int strategy=0) -> (Tensor L, Tensor Q, Tensor info)"),
    operator!(eigvalsh: "(Tensor A, bool upper=False, int strategy=0) -> (Tensor L, Tensor info)"),
];

fn strategy(code: i64) -> Result<Strategy> {
    match code {
        0 => Ok(Strategy::Auto),
        1 => Ok(Strategy::Jacobi),
        2 => Ok(Strategy::Tridiagonal),
        _ => Err(Error::Argument {
            op: "eigh",
            argument: "strategy",
            got: code.to_string(),
            expected: "0 (auto), 1 (jacobi) or 2 (tridiag)".to_owned(),
        }),
    }
}

/// L, Q (nothing in form `Values`) and info.
fn solve<H: Host>(
    host: &H,
    a: H::Tensor,
    upper: bool,
    code: i64,
    form: Form,
) -> Result<(H::Tensor, H::Tensor, H::Tensor)>
where
    H::Device: Run<Eigh>,
{
    let shape = host.shape(&a);
    let triangle = if upper { Triangle::Upper } else { Triangle::Lower };
    let problem = Eigh::new(&shape, host.known_dtype("eigh", "A", &a)?, triangle, form, strategy(code)?)?;
    let l = host.empty(&shape[..shape.len() - 1], problem.dtype)?;
    let q = host.empty(if form == Form::Vectors { &shape } else { &[0] }, problem.dtype)?;
    let info = host.empty_index(&shape[..shape.len() - 2], Index::I32)?;
    let a = host.contiguous(a)?;
    let [a_buffer, l_buffer, q_buffer, info_buffer]: [BufferOf<H>; 4] =
        [host.buffer(&a), host.buffer(&l), host.buffer(&q), host.buffer(&info)];
    host.device().run(&problem, Args { a: &a_buffer, l: &l_buffer, q: &q_buffer, info: &info_buffer })?;
    Ok((l, q, info))
}

fn eigh<H: Host>(host: &H, a: H::Tensor, upper: bool, code: i64) -> Result<(H::Tensor, H::Tensor, H::Tensor)>
where
    H::Device: Run<Eigh>,
{
    solve(host, a, upper, code, Form::Vectors)
}

fn eigvalsh<H: Host>(host: &H, a: H::Tensor, upper: bool, code: i64) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Eigh>,
{
    let (l, _, info) = solve(host, a, upper, code, Form::Values)?;
    Ok((l, info))
}
