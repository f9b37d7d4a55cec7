//! metalcore::gelu_fwd, silu_fwd, their forms with a bias (bias_gelu_fwd, bias_silu_fwd) and with a second tensor
//! (geglu_fwd, swiglu_fwd), and the backward pass of each.

use crate::host::Host;
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::activations::{Activation, Backward, BackwardArgs, Forward, ForwardArgs, Function, Second};
use metalcore::{DType, Result};

/// `tanh`: the tanh form of gelu.
pub const OPERATORS: &[Operator] = &[
    operator!(gelu_fwd: "(Tensor x, bool tanh) -> Tensor"),
    operator!(gelu_bwd: "(Tensor dy, Tensor x, bool tanh) -> Tensor"),
    operator!(silu_fwd: "(Tensor x) -> Tensor"),
    operator!(silu_bwd: "(Tensor dy, Tensor x) -> Tensor"),
    operator!(bias_gelu_fwd: "(Tensor x, Tensor bias, bool tanh) -> Tensor"),
    operator!(bias_gelu_bwd: "(Tensor dy, Tensor x, Tensor bias, bool tanh) -> (Tensor dx, Tensor db)"),
    operator!(bias_silu_fwd: "(Tensor x, Tensor bias) -> Tensor"),
    operator!(bias_silu_bwd: "(Tensor dy, Tensor x, Tensor bias) -> (Tensor dx, Tensor db)"),
    operator!(geglu_fwd: "(Tensor gate, Tensor up, bool tanh) -> Tensor"),
    operator!(geglu_bwd: "(Tensor d_h, Tensor gate, Tensor up, bool tanh) -> (Tensor d_gate, Tensor d_up)"),
    operator!(swiglu_fwd: "(Tensor gate, Tensor up) -> Tensor"),
    operator!(swiglu_bwd: "(Tensor d_h, Tensor gate, Tensor up) -> (Tensor d_gate, Tensor d_up)"),
];

/// The operators of gelu and of silu in one form differ in the argument `tanh`.
macro_rules! passes {
    ($form:ident: $gelu_fwd:ident, $silu_fwd:ident, $gelu_bwd:ident, $silu_bwd:ident) => {
        fn $gelu_fwd<H: Host>(host: &H, x: H::Tensor, second: H::Tensor, tanh: bool) -> Result<H::Tensor>
        where
            H::Device: Run<Forward>,
        {
            forward(
                host,
                $form(host, stringify!($gelu_fwd).trim_end_matches("_fwd"), gelu(tanh), &x, &second)?,
                x,
                Some(second),
            )
        }
        fn $silu_fwd<H: Host>(host: &H, x: H::Tensor, second: H::Tensor) -> Result<H::Tensor>
        where
            H::Device: Run<Forward>,
        {
            forward(
                host,
                $form(host, stringify!($silu_fwd).trim_end_matches("_fwd"), Function::Silu, &x, &second)?,
                x,
                Some(second),
            )
        }
        fn $gelu_bwd<H: Host>(
            host: &H,
            dy: H::Tensor,
            x: H::Tensor,
            second: H::Tensor,
            tanh: bool,
        ) -> Result<(H::Tensor, H::Tensor)>
        where
            H::Device: Run<Backward>,
        {
            let problem = $form(host, stringify!($gelu_bwd), gelu(tanh), &x, &second)?;
            backward_of_two(host, stringify!($gelu_bwd), problem, dy, x, second)
        }
        fn $silu_bwd<H: Host>(
            host: &H,
            dy: H::Tensor,
            x: H::Tensor,
            second: H::Tensor,
        ) -> Result<(H::Tensor, H::Tensor)>
        where
            H::Device: Run<Backward>,
        {
            let problem = $form(host, stringify!($silu_bwd), Function::Silu, &x, &second)?;
            backward_of_two(host, stringify!($silu_bwd), problem, dy, x, second)
        }
    };
}
passes!(bias: bias_gelu_fwd, bias_silu_fwd, bias_gelu_bwd, bias_silu_bwd);
passes!(gated: geglu_fwd, swiglu_fwd, geglu_bwd, swiglu_bwd);

fn gelu_fwd<H: Host>(host: &H, x: H::Tensor, tanh: bool) -> Result<H::Tensor>
where
    H::Device: Run<Forward>,
{
    forward(host, plain(host, "metal_gelu", gelu(tanh), &x)?, x, None)
}

fn silu_fwd<H: Host>(host: &H, x: H::Tensor) -> Result<H::Tensor>
where
    H::Device: Run<Forward>,
{
    forward(host, plain(host, "metal_silu", Function::Silu, &x)?, x, None)
}

fn gelu_bwd<H: Host>(host: &H, dy: H::Tensor, x: H::Tensor, tanh: bool) -> Result<H::Tensor>
where
    H::Device: Run<Backward>,
{
    let problem = plain(host, "gelu_bwd", gelu(tanh), &x)?;
    Ok(backward(host, "gelu_bwd", problem, dy, x, None)?.0)
}

fn silu_bwd<H: Host>(host: &H, dy: H::Tensor, x: H::Tensor) -> Result<H::Tensor>
where
    H::Device: Run<Backward>,
{
    let problem = plain(host, "silu_bwd", Function::Silu, &x)?;
    Ok(backward(host, "silu_bwd", problem, dy, x, None)?.0)
}

fn gelu(tanh: bool) -> Function {
    if tanh { Function::GeluTanh } else { Function::Gelu }
}

fn plain<H: Host>(host: &H, op: &'static str, function: Function, x: &H::Tensor) -> Result<Activation> {
    Ok(Activation::plain(function, &host.shape(x), host.known_dtype(op, "x", x)?))
}

fn bias<H: Host>(
    host: &H,
    op: &'static str,
    function: Function,
    x: &H::Tensor,
    bias: &H::Tensor,
) -> Result<Activation> {
    host.check_place(op, "bias", bias)?;
    let like = (&host.shape(x)[..], host.known_dtype(op, "x", x)?);
    Activation::bias(op, function, like, (&host.shape(bias), host.known_dtype(op, "bias", bias)?))
}

fn gated<H: Host>(
    host: &H,
    op: &'static str,
    function: Function,
    gate: &H::Tensor,
    up: &H::Tensor,
) -> Result<Activation> {
    host.check_place(op, "up", up)?;
    let like = (&host.shape(gate)[..], host.known_dtype(op, "gate", gate)?);
    Activation::gated(op, function, like, (&host.shape(up), host.known_dtype(op, "up", up)?))
}

fn forward<H: Host>(host: &H, problem: Activation, x: H::Tensor, second: Option<H::Tensor>) -> Result<H::Tensor>
where
    H::Device: Run<Forward>,
{
    let shape = host.shape(&x);
    let (problem, x, second) = operands(host, problem, x, second)?;
    let y = host.empty(&shape, problem.dtype)?;
    let second_buffer = second.as_ref().map(|t| host.buffer(t));
    let args = ForwardArgs { x: &host.buffer(&x), second: second_buffer.as_ref(), y: &host.buffer(&y) };
    host.device().run(&Forward(problem), args)?;
    Ok(y)
}

/// The operands as the problem says: rows of x and up are read where they are if they can be, as halves of one tensor
/// are; others are copied.
fn operands<H: Host>(
    host: &H,
    problem: Activation,
    x: H::Tensor,
    second: Option<H::Tensor>,
) -> Result<(Activation, H::Tensor, Option<H::Tensor>)> {
    if !matches!(problem.second, Second::Bias(_)) {
        let up = second.as_ref().map(|up| host.strides(up));
        if let Some(problem) = problem.strided(&host.shape(&x), &host.strides(&x), up.as_deref()) {
            return Ok((problem, x, second));
        }
    }
    Ok((problem, host.contiguous(x)?, second.map(|t| host.contiguous(t)).transpose()?))
}

fn backward_of_two<H: Host>(
    host: &H,
    op: &'static str,
    problem: Activation,
    dy: H::Tensor,
    x: H::Tensor,
    second: H::Tensor,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Backward>,
{
    let (dx, d_second) = backward(host, op, problem, dy, x, Some(second))?;
    Ok((dx, d_second.expect("the second operand has a gradient")))
}

fn backward<H: Host>(
    host: &H,
    op: &'static str,
    problem: Activation,
    dy: H::Tensor,
    x: H::Tensor,
    second: Option<H::Tensor>,
) -> Result<(H::Tensor, Option<H::Tensor>)>
where
    H::Device: Run<Backward>,
{
    host.check_place(op, "x", &x)?;
    let shape = host.shape(&x);
    check_gradient(host, op, &dy, &shape, problem.dtype)?;
    let dy = host.contiguous(dy)?;
    let (problem, x, second) = operands(host, problem, x, second)?;
    let dx = host.empty(&shape, problem.dtype)?;
    let d_second = match (&second, problem.second) {
        (None, _) => None,
        (Some(second), Second::Bias(dtype)) => Some(host.empty(&host.shape(second), dtype)?),
        (Some(second), _) => Some(host.empty(&host.shape(second), problem.dtype)?),
    };
    let second_buffer = second.as_ref().map(|t| host.buffer(t));
    let d_second_buffer = d_second.as_ref().map(|t| host.buffer(t));
    let args = BackwardArgs {
        dy: &host.buffer(&dy),
        x: &host.buffer(&x),
        second: second_buffer.as_ref(),
        dx: &host.buffer(&dx),
        d_second: d_second_buffer.as_ref(),
    };
    host.device().run(&Backward(problem), args)?;
    Ok((dx, d_second))
}

/// The incoming gradient is like the result.
fn check_gradient<H: Host>(host: &H, op: &'static str, dy: &H::Tensor, shape: &[usize], dtype: DType) -> Result<()> {
    let argument = if op == "geglu_bwd" || op == "swiglu_bwd" { "d_h" } else { "dy" };
    let got = host.shape(dy);
    if got != shape {
        let (got, expected) = (format!("shape {got:?}"), format!("shape {shape:?}"));
        return Err(metalcore::Error::Argument { op, argument, got, expected });
    }
    let got = host.known_dtype(op, argument, dy)?;
    if got != dtype {
        let (got, expected) = (got.to_string(), dtype.to_string());
        return Err(metalcore::Error::DType { op, argument, got, expected });
    }
    Ok(())
}
