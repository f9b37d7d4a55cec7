//! metalcore::solve_ex, inv_ex, lu_factor_ex, lu_solve.

use crate::host::{Four, Host};
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::solve::{Factor, FactorArgs, Keep, Solve, SolveArgs, Substitute, SubstituteArgs, System};
use metalcore::{Index, Result};

/// Of matrices whose batch dimensions are equal. keep: whether LU and pivots are formed; they are empty else.
pub const OPERATORS: &[Operator] = &[
    operator!(solve_ex: "(Tensor A, Tensor B, bool keep=True) -> (Tensor result, Tensor LU, Tensor pivots, Tensor info)"),
    operator!(inv_ex: "(Tensor A) -> (Tensor inverse, Tensor info)"),
    operator!(lu_factor_ex: "(Tensor A) -> (Tensor LU, Tensor pivots, Tensor info)"),
    operator!(lu_solve: "(Tensor LU, Tensor pivots, Tensor B, bool adjoint=False) -> Tensor"),
];

fn solve_ex<H: Host>(host: &H, a: H::Tensor, b: H::Tensor, keep: bool) -> Result<Four<H>>
where
    H::Device: Run<Solve>,
{
    let op = "solve_ex";
    let (shape, b_shape) = (host.shape(&a), host.shape(&b));
    let dtype = host.known_dtype(op, "A", &a)?;
    let keep = if keep { Keep::Factors } else { Keep::Nothing };
    let problem = Solve::new(op, &shape, Some(&b_shape), keep, dtype)?;
    host.check_same(op, ("B", &b), (&b_shape, dtype))?;
    let (lu_shape, pivots_shape) = match keep {
        Keep::Factors => (&shape[..], &shape[..shape.len() - 1]),
        Keep::Nothing => (&[0][..], &[0][..]),
    };
    let [a, b] = [host.contiguous(a)?, host.contiguous(b)?];
    let (x, lu) = (host.empty(&b_shape, dtype)?, host.empty(lu_shape, dtype)?);
    let pivots = host.empty_index(pivots_shape, Index::I32)?;
    let info = host.empty_index(&shape[..shape.len() - 2], Index::I32)?;
    let [a, b, x_buffer, lu_buffer, pivots_buffer, info_buffer] =
        [&a, &b, &x, &lu, &pivots, &info].map(|tensor| host.buffer(tensor));
    let args = SolveArgs { a: &a, b: &b, x: &x_buffer, lu: &lu_buffer, pivots: &pivots_buffer, info: &info_buffer };
    host.device().run(&problem, args)?;
    Ok((x, lu, pivots, info))
}

fn inv_ex<H: Host>(host: &H, a: H::Tensor) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Solve>,
{
    let op = "inv_ex";
    let shape = host.shape(&a);
    let dtype = host.known_dtype(op, "A", &a)?;
    let problem = Solve::new(op, &shape, None, Keep::Nothing, dtype)?;
    let a = host.contiguous(a)?;
    let (x, nothing) = (host.empty(&shape, dtype)?, host.empty(&[0], dtype)?);
    let no_pivots = host.empty_index(&[0], Index::I32)?;
    let info = host.empty_index(&shape[..shape.len() - 2], Index::I32)?;
    let [a, x_buffer, nothing, no_pivots, info_buffer] =
        [&a, &x, &nothing, &no_pivots, &info].map(|tensor| host.buffer(tensor));
    let args = SolveArgs { a: &a, b: &a, x: &x_buffer, lu: &nothing, pivots: &no_pivots, info: &info_buffer };
    host.device().run(&problem, args)?;
    Ok((x, info))
}

fn lu_factor_ex<H: Host>(host: &H, a: H::Tensor) -> Result<(H::Tensor, H::Tensor, H::Tensor)>
where
    H::Device: Run<Factor>,
{
    let op = "lu_factor_ex";
    let shape = host.shape(&a);
    let problem = Factor::new(op, &shape, host.known_dtype(op, "A", &a)?)?;
    let batch = &shape[..shape.len() - 2];
    let a = host.contiguous(a)?;
    let lu = host.empty(&shape, problem.dtype)?;
    let pivots = host.empty_index(&[batch, &[problem.steps()]].concat(), Index::I32)?;
    let info = host.empty_index(batch, Index::I32)?;
    let [a, lu_buffer, pivots_buffer, info_buffer] = [&a, &lu, &pivots, &info].map(|tensor| host.buffer(tensor));
    let args = FactorArgs { a: &a, lu: &lu_buffer, pivots: &pivots_buffer, info: &info_buffer };
    host.device().run(&problem, args)?;
    Ok((lu, pivots, info))
}

fn lu_solve<H: Host>(host: &H, lu: H::Tensor, pivots: H::Tensor, b: H::Tensor, adjoint: bool) -> Result<H::Tensor>
where
    H::Device: Run<Substitute>,
{
    let op = "lu_solve";
    let (shape, b_shape) = (host.shape(&lu), host.shape(&b));
    let dtype = host.known_dtype(op, "LU", &lu)?;
    let system = if adjoint { System::Transposed } else { System::Plain };
    let problem = Substitute::new(op, &shape, &host.shape(&pivots), &b_shape, system, dtype)?;
    host.check_same(op, ("B", &b), (&b_shape, dtype))?;
    host.check_place(op, "pivots", &pivots)?;
    if host.known_index(op, "pivots", &pivots)? != Index::I32 {
        let (got, expected) = ("int64".to_owned(), "int32".to_owned());
        return Err(metalcore::Error::DType { op, argument: "pivots", got, expected });
    }
    let [lu, pivots, b] = [host.contiguous(lu)?, host.contiguous(pivots)?, host.contiguous(b)?];
    let x = host.empty(&b_shape, dtype)?;
    let [lu, pivots, b, x_buffer] = [&lu, &pivots, &b, &x].map(|tensor| host.buffer(tensor));
    host.device().run(&problem, SubstituteArgs { lu: &lu, pivots: &pivots, b: &b, x: &x_buffer })?;
    Ok(x)
}
