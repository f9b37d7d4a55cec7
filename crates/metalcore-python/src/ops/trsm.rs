//! metalcore::trsm.

use crate::host::{BufferOf, Host};
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::trsm::{Args, Diagonal, Form, Matrix, Triangle, Trsm};
use metalcore::{Error, Result};

/// matrix: 0 the triangle A, 1 its transpose, 2 A A' (of an upper triangle A' A). b has A's batch dimensions.
pub const OPERATORS: &[Operator] =
    &[operator!(trsm: "(Tensor A, Tensor b, bool upper=False, int matrix=0, bool unit_diagonal=False) -> Tensor")];

fn trsm<H: Host>(
    host: &H,
    a: H::Tensor,
    b: H::Tensor,
    upper: bool,
    matrix: i64,
    unit_diagonal: bool,
) -> Result<H::Tensor>
where
    H::Device: Run<Trsm>,
{
    let matrix = match matrix {
        0 => Matrix::Plain,
        1 => Matrix::Transposed,
        2 => Matrix::Square,
        _ => {
            let (got, expected) = (matrix.to_string(), "0, 1 or 2".to_owned());
            return Err(Error::Argument { op: "trsm", argument: "matrix", got, expected });
        }
    };
    let diagonal = if unit_diagonal { Diagonal::Unit } else { Diagonal::Stored };
    let form = Form { triangle: Triangle::upper_if(upper), matrix, diagonal };
    let b_shape = host.shape(&b);
    let problem = Trsm::new(&host.shape(&a), &b_shape, host.known_dtype("trsm", "A", &a)?, form)?;
    host.check_same("trsm", ("b", &b), (&b_shape, problem.dtype))?;
    let x = host.empty(&b_shape, problem.dtype)?;
    let (a, b) = (host.contiguous(a)?, host.contiguous(b)?);
    let [a_buffer, b_buffer, x_buffer]: [BufferOf<H>; 3] = [host.buffer(&a), host.buffer(&b), host.buffer(&x)];
    host.device().run(&problem, Args { a: &a_buffer, b: &b_buffer, x: &x_buffer })?;
    Ok(x)
}
