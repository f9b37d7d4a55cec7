"""The competitors: which of them can be imported, and how tensors get to the foreign ones."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from .rows import Peer
from .timing import reason_of

ORDER = ("torch", "compile", "liger", "mlx", "jax")
ON_REQUEST = ("jax",)
"""Peers that take part only when `--peers` names them."""


def unavailable(peer: str) -> Optional[str]:
    """Why a peer cannot take part on this machine, or None."""
    modules = {"liger": "liger_kernel", "mlx": "mlx", "jax": "jax"}
    if peer in modules and importlib.util.find_spec(modules[peer]) is None:
        return "not installed"
    if peer == "compile" and not torch._dynamo.is_dynamo_supported():
        return "torch.compile does not support this Python"
    return None


def default_peers() -> frozenset[str]:
    """Every peer that imports, apart from those on request."""
    return frozenset(p for p in ORDER if p not in ON_REQUEST and unavailable(p) is None)


def add(rivals: dict[str, Peer], skipped: dict[str, str], name: str, make: Callable[[], Peer]) -> None:
    """Adds a foreign peer, or the reason why it cannot be made."""
    try:
        rivals[name] = make()
    except Exception as error:  # whatever a foreign package raises only means that it is not compared
        skipped[name] = reason_of(error)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a function for one shape. Dynamo counts recompilations per code object and
    falls back to eager beyond its limit, so that what it knows is dropped first."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


class Jax:
    """jax on the GPU in full float32, timed by the wall up to block_until_ready."""

    def __init__(self) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax

        self.jax = jax
        jax.config.update("jax_default_matmul_precision", "highest")

    def array(self, x: Tensor) -> Any:
        """A copy of x on jax's device. fp64 needs jax's x64 switch."""
        if x.dtype == torch.float64:
            self.jax.config.update("jax_enable_x64", True)
        return self.jax.device_put(x.detach().cpu().numpy())

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled, and waiting for its result."""
        fast = self.jax.jit(function)
        return lambda *arguments: self.jax.block_until_ready(fast(*arguments))


class Mlx:
    """MLX, timed by the wall up to mx.eval: its GPU for NN ops, its host LAPACK for factorisations."""

    def __init__(self) -> None:
        import mlx.core

        self.mx = mlx.core

    def array(self, x: Tensor) -> Any:
        """A copy of x in MLX's memory. numpy has no bfloat16, so that goes through float32."""
        names = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
        if x.dtype not in names:
            raise TypeError(f"{x.dtype} is not timed in mlx")
        return self.mx.array(x.detach().float().cpu().numpy()).astype(getattr(self.mx, names[x.dtype]))

    def evaluated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """function, waiting for its result."""

        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            self.mx.eval(result)
            return result

        return call
