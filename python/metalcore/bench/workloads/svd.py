"""SVD: A = U diag(S) V', thin, and singular values alone; Gaussian input; single, rectangular and batched."""

from __future__ import annotations

from typing import Any, Iterator

import torch
from torch import Tensor

import metalcore

from .. import peers
from ..accuracy import HALF_DTYPES, Gate, svd_gates
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, times

Shape = tuple[int, ...]

QUICK: tuple[Shape, ...] = (
    (512, 512),
    (2048, 512),
    (100, 32, 32),
    (500, 16, 16),
    (200, 64, 64),
    (50, 128, 128),
    (10, 256, 256),
    (5, 512, 512),
)
SHAPES: tuple[Shape, ...] = (
    (32, 32), (64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024), (2048, 2048),
    (256, 128), (512, 256), (1024, 512), (2048, 512), (128, 256),
    (100, 32, 32), (500, 16, 16), (50, 64, 64), (100, 64, 64), (200, 64, 64),
    (20, 128, 128), (50, 128, 128), (10, 256, 256), (5, 512, 512),
)  # fmt: skip
GPU_ONLY: tuple[Shape, ...] = ((4096, 4096),)
DRIVERS = ("gesvdj", "gesvda", "gesvd")
MOST_LOOPED = 1000
"""Matrices in a batch, above which the drivers are left out: some take them one by one."""
SEED = 1


def cases(context: Context) -> Iterator[Case]:
    """One case per shape and dtype, with vectors; singular values alone of the quick shapes too."""
    for vectors in (True, False):
        for shape in SHAPES + GPU_ONLY if vectors else QUICK:
            for dtype in context.dtypes_or(torch.float32):
                yield Case(
                    op="svd" if vectors else "svdvals",
                    shape=times(*shape),
                    dtype=dtype,
                    cost=cost(shape, dtype, vectors),
                    build=lambda shape=shape, dtype=dtype, vectors=vectors: build(context, shape, dtype, vectors),
                    quick=vectors and shape in QUICK,
                    gpu_only=shape in GPU_ONLY,
                )


def cost(shape: Shape, dtype: torch.dtype, vectors: bool) -> Cost:
    """The lesser of bidiagonalisation with and without QR before it. Bytes: A in, factors out. Half input computes in fp32."""
    *batch, m, n = shape
    items = 1
    for size in batch:
        items *= size
    m, n = max(m, n), min(m, n)
    if vectors:
        flops, elements = min(14 * m * n**2 + 8 * n**3, 6 * m * n**2 + 20 * n**3), 2 * m * n + n**2 + n
    else:
        flops, elements = min(4 * m * n**2 - 4 * n**3 / 3, 2 * m * n**2 + 2 * n**3), m * n + n
    return Cost(items * dtype.itemsize * elements, items * flops, "fp64" if dtype == torch.float64 else "fp32")


def build(context: Context, shape: Shape, dtype: torch.dtype, vectors: bool) -> Row:
    """Buffers, our call, and one batched call per peer."""
    generator = torch.Generator().manual_seed(SEED)
    A = torch.randn(shape, generator=generator).to(context.device, dtype)
    rivals, skipped = rivals_of(context, A, vectors)

    def check(_: int, result: Any) -> list[Gate]:
        return svd_gates(A, *result) if vectors else svd_gates(A, None, result, None)

    ours: Call = (lambda _: metalcore.svd(A)) if vectors else (lambda _: metalcore.svdvals(A))
    return Row(ours=ours, peers=rivals, check=check, skipped=skipped)


def rivals_of(context: Context, A: Tensor, vectors: bool) -> tuple[dict[str, Peer], dict[str, str]]:
    """torch on the same device with each driver it has there; for mps torch's host LAPACK; jax on cuda."""
    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    half = A.dtype in HALF_DTYPES
    if "torch" in context.peers:
        rivals["torch via fp32" if half else "torch"] = Peer(torch_svd(A, vectors))
        if context.device.type == "cuda" and A.shape[:-2].numel() <= MOST_LOOPED:
            for driver in DRIVERS:
                peers.add(rivals, skipped, f"torch {driver}", lambda d=driver: Peer(tried(torch_svd(A, vectors, d))))
        if context.device.type == "mps":
            rivals["torch cpu"] = Peer(torch_svd(A.cpu(), vectors), clock="wall")
    if "jax" in context.peers and context.device.type == "cuda":
        peers.add(rivals, skipped, "jax", lambda: Peer(jax_svd(A, vectors), clock="wall"))
    return rivals, skipped


def tried(call: Call) -> Call:
    """The call, after it was seen to work: not every driver takes every shape."""
    call(0)
    return call


def torch_svd(A: Tensor, vectors: bool, driver: str | None = None) -> Call:
    """torch.linalg.svd or svdvals, one call for the whole batch. It has no half precision: there it computes in fp32 and
    rounds, which is the same work as ours."""
    wide = A.float() if A.dtype in HALF_DTYPES else A
    if vectors:
        return lambda _: tuple(x.to(A.dtype) for x in torch.linalg.svd(wide, full_matrices=False, driver=driver))
    return lambda _: torch.linalg.svdvals(wide, driver=driver).to(A.dtype)


def jax_svd(A: Tensor, vectors: bool) -> Call:
    """jax.numpy.linalg.svd, jitted, on jax's GPU."""
    jax = peers.Jax()
    if jax.jax.default_backend() != "gpu":
        raise RuntimeError("jax sees no GPU")
    array = jax.array(A)
    factor = jax.jax.jit(lambda x: jax.jax.numpy.linalg.svd(x, full_matrices=False, compute_uv=vectors))
    return lambda _: factor(array)


def host_calls(context: Context) -> Iterator[HostCall]:
    """The smallest shape, with and without a gradient to record."""
    for grad in (False, True):
        A = torch.randn(32, 32, device=context.device).requires_grad_(grad)
        yield HostCall(
            op="svd",
            shape=times(32, 32),
            grad="grad" if grad else "no grad",
            ours=lambda A=A: metalcore.svd(A),
            torch=lambda A=A: torch.linalg.svd(A, full_matrices=False),
        )
