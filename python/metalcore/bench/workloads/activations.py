"""GELU (both forms), SiLU, their bias forms, SwiGLU and GEGLU: forward, and forward + backward through autograd on both
sides with gradients to every input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import metalcore

from .. import peers
from ..accuracy import Gate, excess, gamma, rounding, wide, working_roundoff
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, copies_needed, times

Shape = tuple[int, ...]

PLAIN: tuple[Shape, ...] = ((256, 1024), (1024, 4096), (4096, 4096), (16384, 4096))
BIAS: tuple[Shape, ...] = ((256, 4096), (1024, 4096), (4096, 11008))
GATED: tuple[Shape, ...] = ((128, 11008), (256, 14336), (4096, 11008))
QUICK: tuple[Shape, ...] = ((1024, 4096), (4096, 11008))
GPU_ONLY: tuple[Shape, ...] = ((16384, 4096),)
SEED = 5


@dataclass(frozen=True)
class Op:
    """One function. `operands` tensors of the shape come in, then perhaps a bias; `act` is f."""

    name: str
    operands: int
    bias: bool
    shapes: tuple[Shape, ...]
    act: Callable[[Tensor], Tensor]
    ours: Callable[..., Tensor]

    def torch(self, x: Tensor, *second: Tensor) -> Tensor:
        """The same in torch, eagerly."""
        if self.bias:
            return self.act(x + second[0])
        return self.act(x) * second[0] if second else self.act(x)


def tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


OPS = (
    Op("silu", 1, False, PLAIN, F.silu, metalcore.metal_silu),
    Op("gelu erf", 1, False, PLAIN, F.gelu, metalcore.metal_gelu),
    Op("gelu tanh", 1, False, PLAIN, tanh_gelu, lambda x: metalcore.metal_gelu(x, "tanh")),
    Op("bias_silu", 1, True, BIAS, F.silu, metalcore.bias_silu),
    Op("bias_gelu", 1, True, BIAS, F.gelu, metalcore.bias_gelu),
    Op("swiglu", 2, False, GATED, F.silu, metalcore.swiglu),
    Op("geglu", 2, False, GATED, F.gelu, metalcore.geglu),
)


def cases(context: Context) -> Iterator[Case]:
    """Every function, forward and forward + backward, fp32 and bf16."""
    for op in OPS:
        for backward in (False, True):
            for shape in op.shapes:
                for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
                    # Forward: the operands and the result; backward: the operands, the result's gradient and theirs.
                    passes = op.operands + 1 + (2 * op.operands + 1 if backward else 0)
                    yield Case(
                        op=f"{op.name} {'fwd+bwd' if backward else 'fwd'}",
                        shape=times(*shape),
                        dtype=dtype,
                        cost=Cost(passes * math.prod(shape) * dtype.itemsize),
                        build=lambda op=op, backward=backward, shape=shape, dtype=dtype: build(
                            context, op, backward, shape, dtype
                        ),
                        quick=shape in QUICK,
                        gpu_only=shape in GPU_ONLY,
                    )


@dataclass(frozen=True)
class Buffers:
    """Copies of the inputs (operands, then a bias) and of the incoming gradients."""

    inputs: Sequence[tuple[Tensor, ...]]
    grads: Sequence[Tensor]


def make_buffers(device: torch.device, op: Op, backward: bool, shape: Shape, dtype: torch.dtype, copies: int) -> Buffers:
    generator = torch.Generator(device).manual_seed(SEED)

    def gaussian(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(dtype)

    bias = (gaussian(shape[-1]).requires_grad_(backward),) if op.bias else ()
    inputs = [(*(gaussian(*shape).requires_grad_(backward) for _ in range(op.operands)), *bias) for _ in range(copies)]
    return Buffers(inputs, [gaussian(*shape) for _ in range(copies if backward else 0)])


def call_of(function: Callable[..., Tensor], backward: bool, buffers: Buffers) -> Call:
    """copy -> (result, gradients)."""

    def forward(copy: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        return function(*buffers.inputs[copy]), ()

    def both(copy: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = function(*buffers.inputs[copy])
        return y, torch.autograd.grad(y, buffers.inputs[copy], buffers.grads[copy])

    return both if backward else forward


def build(context: Context, op: Op, backward: bool, shape: Shape, dtype: torch.dtype) -> Row:
    """Buffers (rotated where they would stay in a cache), our call, the peers' calls."""
    size = math.prod(shape) * dtype.itemsize
    held = op.operands + (1 if backward else 0)
    copies = copies_needed(size, held * size, context.profile.cache_bytes)
    buffers = make_buffers(context.device, op, backward, shape, dtype, copies)

    def check(copy: int, result: Any) -> list[Gate]:
        return gates(op, buffers.inputs[copy], buffers.grads[copy] if backward else None, *result)

    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    if "torch" in context.peers:
        rivals["torch"] = Peer(call_of(op.torch, backward, buffers))
    if "compile" in context.peers and context.device.type == "cuda":
        peers.add(rivals, skipped, "torch.compile", lambda: Peer(call_of(peers.compiled(op.torch), backward, buffers)))
    if "liger" in context.peers and context.device.type == "cuda" and op.operands == 2:
        peers.add(rivals, skipped, "liger", lambda: Peer(call_of(liger(op), backward, buffers)))
    return Row(ours=call_of(op.ours, backward, buffers), peers=rivals, check=check, copies=copies, skipped=skipped)


def liger(op: Op) -> Callable[..., Tensor]:
    """Liger-Kernel's function; its GEGLU has the tanh form."""
    from liger_kernel.transformers import functional

    return functional.liger_swiglu if op.name == "swiglu" else functional.liger_geglu


def gates(op: Op, inputs: tuple[Tensor, ...], dy: Tensor | None, y: Tensor, grads: tuple[Tensor, ...]) -> list[Gate]:
    """Componentwise bounds of the contract: rho|y| + 8w|x| (|x| + |b|; |gate up|), derivatives rho|dx| + 8w|dy|(1 + |x|)."""
    dtype, w8 = y.dtype, 8 * working_roundoff(y.dtype)
    leaves = [wide(t.detach()).requires_grad_(bool(grads)) for t in inputs]
    want = op.torch(*leaves)
    sizes = [t.detach().abs() for t in leaves]
    size = sizes[0] + sizes[1] if op.bias else math.prod(sizes[1:], start=sizes[0])
    value = want.detach()
    found = [Gate("y", excess(y, value, rounding(dtype) * value.abs() + w8 * size))]
    if not grads:
        return found
    d = wide(dy)
    wanted = torch.autograd.grad(want, leaves, d)
    x_size = 1 + (size if op.bias else sizes[0])
    scales = [d.abs() * x_size, d.abs() * sizes[0]]
    if op.operands == 2:
        scales[0] = scales[0] * sizes[1]
    for name, got, exact, scale in zip(("dx", "db" if op.bias else "d_up"), grads, wanted, scales):
        bound = rounding(dtype) * exact.abs() + w8 * scale
        if name == "db":
            rows = y.numel() // got.numel()
            bound = rounding(dtype) * exact.abs() + 2 * gamma(rows, dtype) * scales[0].reshape(rows, -1).sum(0)
        found.append(Gate(name, excess(got, exact, bound)))
    return found


def host_calls(context: Context) -> Iterator[HostCall]:
    """A small tensor, with and without a gradient to record."""
    for op in OPS:
        for grad in (False, True):
            arguments = make_buffers(context.device, op, grad, (16, 16), torch.float32, 1).inputs[0]
            yield HostCall(
                op=op.name,
                shape=times(16, 16),
                grad="grad" if grad else "no grad",
                ours=lambda op=op, arguments=arguments: op.ours(*arguments),
                torch=lambda op=op, arguments=arguments: op.torch(*arguments),
            )
