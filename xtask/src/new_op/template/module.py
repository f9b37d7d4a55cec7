"""op_name, element by element."""

from typing import Any

import torch

from ._errors import translate
from ._operators import check_tensors, needs_grad

_op = torch.ops.metalcore.op_name.default


@torch.library.register_fake("metalcore::op_name")
def _fake(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
    (x,) = ctx.saved_tensors
    return dy * x * float("nan")  # the derivative goes here


torch.library.register_autograd("metalcore::op_name", _backward, setup_context=_setup_context)


def op_name(x: torch.Tensor) -> torch.Tensor:
    """y = f(x), element by element.

    x float32, float16, bfloat16 or float64, any shape. Returns a new contiguous tensor of the same shape and dtype.

    f in float32 (float64 for float64), one rounding. Differentiable. Does not wait for the GPU.

    Raises TypeError for an integer dtype, NotImplementedError for a complex one.

    >>> y = metalcore.op_name(torch.randn(32, 64))
    """
    check_tensors("op_name", x=x)
    try:
        if torch.compiler.is_compiling() or needs_grad(x):
            return _op(x)
        with torch._C._AutoDispatchBelowAutograd():
            return _op(x)
    except RuntimeError as error:
        raise translate(error) from None
