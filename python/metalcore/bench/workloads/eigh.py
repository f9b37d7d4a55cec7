"""eigh and eigvalsh: A = Q diag(L) Q' of (G + G')/2, Gaussian; single and batched."""

from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor

import metalcore

from .. import peers
from ..accuracy import (
    HALF_BARS,
    HALF_DTYPES,
    ORTHOGONALITY_BARS,
    RECONSTRUCTION_BARS,
    UNIT_ROUNDOFF,
    Gate,
    bar_of_class,
    one_norm,
    product_residual,
    wide,
    worst,
)
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, times

Shape = tuple[int, ...]

QUICK: tuple[Shape, ...] = ((500, 16, 16), (100, 32, 32), (200, 64, 64), (50, 128, 128), (10, 256, 256), (512, 512))
SINGLE: tuple[Shape, ...] = ((32, 32), (64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024))
BATCHED: tuple[Shape, ...] = (
    (500, 16, 16), (100, 32, 32), (50, 64, 64), (100, 64, 64), (200, 64, 64),
    (20, 128, 128), (50, 128, 128), (10, 256, 256), (500, 100, 100),
)  # fmt: skip
GPU_ONLY: tuple[Shape, ...] = ((4096, 4096),)
SEED = 1


def cases(context: Context) -> Iterator[Case]:
    """One case per form, shape and dtype."""
    for vectors in (True, False):
        for shape in SINGLE + GPU_ONLY + BATCHED:
            for dtype in context.dtypes_or(torch.float32):
                yield Case(
                    op="eigh" if vectors else "eigvalsh",
                    shape=times(*shape),
                    dtype=dtype,
                    cost=cost(shape, dtype, vectors),
                    build=lambda shape=shape, dtype=dtype, vectors=vectors: build(context, shape, dtype, vectors),
                    quick=shape in QUICK,
                    gpu_only=shape in GPU_ONLY,
                )


def cost(shape: Shape, dtype: torch.dtype, vectors: bool) -> Cost:
    """9n³ flops with vectors, 4n³/3 without. Bytes: A in, L and Q out. Half input computes in fp32."""
    *batch, n, _ = shape
    items = 1
    for size in batch:
        items *= size
    flops = 9 * n**3 if vectors else 4 * n**3 / 3
    moved = dtype.itemsize * ((2 if vectors else 1) * n * n + n)
    return Cost(items * moved, items * flops, "fp64" if dtype == torch.float64 else "fp32")


def build(context: Context, shape: Shape, dtype: torch.dtype, vectors: bool) -> Row:
    """Symmetric buffers, our call, and one batched call per peer."""
    generator = torch.Generator().manual_seed(SEED)
    G = torch.randn(shape, generator=generator)
    A = ((G + G.mT) / 2).to(context.device, dtype)
    rivals, skipped = rivals_of(context, A, vectors)
    if vectors:
        return Row(
            ours=lambda _: metalcore.eigh(A), peers=rivals, check=lambda _, result: eigh_gates(A, *result), skipped=skipped
        )
    return Row(ours=lambda _: metalcore.eigvalsh(A), peers=rivals, check=lambda _, L: value_gates(A, L), skipped=skipped)


def eigh_gates(A: Tensor, L: Tensor, Q: Tensor) -> list[Gate]:
    """Reconstruction and orthogonality, 1-norms, worst batch item."""
    n, u = A.shape[-1], UNIT_ROUNDOFF[A.dtype]
    half = A.dtype in HALF_DTYPES
    A64, L64, Q64 = wide(A), wide(L), wide(Q)
    exact = A.dtype == torch.float64 and n < 64
    residual = one_norm(product_residual(A64, Q64 * L64.unsqueeze(-2), Q64.mT, exact))
    identity = torch.eye(n, dtype=torch.float64, device=Q64.device).expand(Q64.shape)
    defect = one_norm(product_residual(identity, Q64.mT, Q64, exact))
    return [
        Gate(
            "reconstruction",
            worst(residual / (n * u * one_norm(A64))),
            bar_of_class(n, HALF_BARS if half else RECONSTRUCTION_BARS),
        ),
        Gate("orthogonality", worst(defect / (n * u)), bar_of_class(n, HALF_BARS if half else ORTHOGONALITY_BARS)),
    ]


def value_gates(A: Tensor, L: Tensor) -> list[Gate]:
    """Distance of the values from those of float64, in units of the largest; bars of CONTRACT 3.2."""
    n, u = A.shape[-1], UNIT_ROUNDOFF[A.dtype]
    wanted = torch.linalg.eigvalsh(wide(A).cpu())
    error = (wide(L).cpu() - wanted).abs().amax(-1) / (n * u * wanted.abs().amax(-1))
    return [Gate("values", worst(error), bar_of_class(n, (7.0, 2.0, 1.0, 1.0)))]


def rivals_of(context: Context, A: Tensor, vectors: bool) -> tuple[dict[str, Peer], dict[str, str]]:
    """torch on the same device; for mps also torch's and MLX's host LAPACK; jax on cuda."""
    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    half = A.dtype in HALF_DTYPES
    if "torch" in context.peers:
        rivals["torch via fp32" if half else "torch"] = Peer(torch_eigh(A, vectors))
        if context.device.type == "mps":
            rivals["torch cpu"] = Peer(torch_eigh(A.cpu(), vectors), clock="wall")
    if "jax" in context.peers and context.device.type == "cuda":
        peers.add(rivals, skipped, "jax", lambda: Peer(jax_eigh(A, vectors), clock="wall"))
    if "mlx" in context.peers and context.device.type == "mps":
        peers.add(rivals, skipped, "mlx", lambda: Peer(mlx_eigh(A, vectors), clock="wall"))
    return rivals, skipped


def torch_eigh(A: Tensor, vectors: bool) -> Call:
    """torch.linalg, one call for the whole batch; half types through fp32."""
    function = torch.linalg.eigh if vectors else torch.linalg.eigvalsh
    if A.dtype not in HALF_DTYPES:
        return lambda _: function(A)
    if vectors:
        return lambda _: tuple(part.to(A.dtype) for part in function(A.float()))
    return lambda _: function(A.float()).to(A.dtype)


def jax_eigh(A: Tensor, vectors: bool) -> Call:
    """jax.numpy.linalg, jitted, on jax's GPU."""
    jax = peers.Jax()
    if jax.jax.default_backend() != "gpu":
        raise RuntimeError("jax sees no GPU")
    linalg = jax.jax.numpy.linalg
    array, solve = jax.array(A), jax.jit(linalg.eigh if vectors else linalg.eigvalsh)
    return lambda _: solve(array)


def mlx_eigh(A: Tensor, vectors: bool) -> Call:
    """MLX's eigh, which runs on the host."""
    mlx = peers.Mlx()
    array = mlx.array(A)
    linalg = mlx.mx.linalg
    solve = mlx.evaluated(lambda x: (linalg.eigh if vectors else linalg.eigvalsh)(x, stream=mlx.mx.cpu))
    return lambda _: solve(array)


def host_calls(context: Context) -> Iterator[HostCall]:
    """A small matrix, with and without a gradient to record."""
    for grad in (False, True):
        A = torch.eye(16, device=context.device).requires_grad_(grad)
        yield HostCall(
            op="eigh",
            shape=times(16, 16),
            grad="grad" if grad else "no grad",
            ours=lambda A=A: metalcore.eigh(A),
            torch=lambda A=A: torch.linalg.eigh(A),
        )
