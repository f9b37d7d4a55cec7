"""QR: A = QR, reduced, Gaussian input; single, rectangular and batched."""

from __future__ import annotations

from typing import Any, Iterator

import torch
from torch import Tensor

import metalcore

from .. import peers
from ..accuracy import HALF_DTYPES, Gate, qr_gates
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, times

Shape = tuple[int, ...]

QUICK: tuple[Shape, ...] = (
    (1024, 1024),
    (4000, 1000),
    (500, 8, 8),
    (500, 16, 16),
    (500, 32, 32),
    (100, 48, 48),
    (200, 64, 32),
    (100, 32, 64),
)
SINGLE: tuple[Shape, ...] = (
    (16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024),
    (256, 64), (256, 128), (512, 128), (512, 256), (1000, 200), (2000, 500), (4000, 1000),
)  # fmt: skip
BATCHED: tuple[Shape, ...] = (
    (50, 8, 8), (100, 8, 8), (500, 8, 8),
    (50, 16, 16), (100, 16, 16), (200, 16, 16), (500, 16, 16), (1000, 16, 16),
    (50, 32, 32), (100, 32, 32), (200, 32, 32), (500, 32, 32),
    (50, 48, 48), (100, 48, 48), (100, 64, 64),
    (100, 64, 32), (200, 64, 32), (100, 32, 64),
    (200, 64, 64), (50, 128, 128), (10, 256, 256),
)  # fmt: skip
GPU_ONLY: tuple[Shape, ...] = ((4096, 4096),)
SEED = 1


def cases(context: Context) -> Iterator[Case]:
    """One case per shape and dtype."""
    for shape in SINGLE + GPU_ONLY + BATCHED:
        for dtype in context.dtypes_or(torch.float32):
            yield Case(
                op="qr",
                shape=times(*shape),
                dtype=dtype,
                cost=cost(shape, dtype),
                build=lambda shape=shape, dtype=dtype: build(context, shape, dtype),
                quick=shape in QUICK,
                gpu_only=shape in GPU_ONLY,
            )


def cost(shape: Shape, dtype: torch.dtype) -> Cost:
    """Householder QR with Q formed: 4mn² - 4n³/3 flops for m ≥ n; a wide matrix factors its first m
    columns and applies Qᵀ to the rest. Bytes: A in, Q and R out. Half input computes in fp32."""
    *batch, m, n = shape
    items = 1
    for size in batch:
        items *= size
    k = min(m, n)
    flops = 4 * m * k**2 - 4 * k**3 / 3
    if n > m:
        flops += 2 * m * m * (n - m)
    moved = dtype.itemsize * (m * n + m * k + k * n)
    return Cost(items * moved, items * flops, "fp64" if dtype == torch.float64 else "fp32")


def build(context: Context, shape: Shape, dtype: torch.dtype) -> Row:
    """Buffers, our call, and one batched call per peer."""
    generator = torch.Generator().manual_seed(SEED)
    A = torch.randn(shape, generator=generator).to(context.device, dtype)
    rivals, skipped = rivals_of(context, A)

    def check(_: int, result: Any) -> list[Gate]:
        Q, R = result
        return qr_gates(A, Q, R)

    return Row(ours=lambda _: metalcore.qr(A), peers=rivals, check=check, skipped=skipped)


def rivals_of(context: Context, A: Tensor) -> tuple[dict[str, Peer], dict[str, str]]:
    """torch on the same device; for mps also torch's and MLX's host LAPACK; jax on cuda."""
    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    half = A.dtype in HALF_DTYPES
    if "torch" in context.peers:
        rivals["torch via fp32" if half else "torch"] = Peer(torch_qr(A))
        if context.device.type == "mps":
            rivals["torch cpu"] = Peer(torch_qr(A.cpu()), clock="wall")
    if "jax" in context.peers and context.device.type == "cuda":
        peers.add(rivals, skipped, "jax", lambda: Peer(jax_qr(A), clock="wall"))
    if "mlx" in context.peers and context.device.type == "mps":
        peers.add(rivals, skipped, "mlx", lambda: Peer(mlx_qr(A), clock="wall"))
    return rivals, skipped


def torch_qr(A: Tensor) -> Call:
    """torch.linalg.qr, one call for the whole batch. It has no half precision: there it computes in
    fp32 and rounds the factors, which is the same work as ours."""
    if A.dtype in HALF_DTYPES:
        return lambda _: tuple(factor.to(A.dtype) for factor in torch.linalg.qr(A.float()))
    return lambda _: torch.linalg.qr(A)


def jax_qr(A: Tensor) -> Call:
    """jax.numpy.linalg.qr, jitted, on jax's GPU."""
    jax = peers.Jax()
    if jax.jax.default_backend() != "gpu":
        raise RuntimeError("jax sees no GPU")
    array, factor = jax.array(A), jax.jit(jax.jax.numpy.linalg.qr)
    return lambda _: factor(array)


def mlx_qr(A: Tensor) -> Call:
    """MLX's QR, which runs on the host."""
    mlx = peers.Mlx()
    array = mlx.array(A)
    factor = mlx.evaluated(lambda x: mlx.mx.linalg.qr(x, stream=mlx.mx.cpu))
    return lambda _: factor(array)


def host_calls(context: Context) -> Iterator[HostCall]:
    """The smallest shape, with and without a gradient to record."""
    for grad in (False, True):
        A = torch.randn(16, 16, device=context.device).requires_grad_(grad)
        yield HostCall(
            op="qr",
            shape=times(16, 16),
            grad="grad" if grad else "no grad",
            ours=lambda A=A: metalcore.qr(A),
            torch=lambda A=A: torch.linalg.qr(A),
        )
