"""The selectors of the command line. To add one, write a workload module with `cases` and
`host_calls`, and give it a line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Sequence

from ..rows import Case, Context, HostCall
from . import (
    activations,
    adamw,
    cholesky,
    cross_entropy,
    eigh,
    embedding_bag,
    indexing,
    kl_div,
    layer_norm,
    qr,
    rms_norm,
    rope,
    scaling,
    softmax,
    solve,
    svd,
    trsm,
)


@dataclass(frozen=True)
class Selector:
    """One table: its flag, what it holds, its cases and its launch-bound calls."""

    name: str
    title: str
    cases: Callable[[Context], Iterable[Case]]
    host_calls: Callable[[Context], Iterable[HostCall]]


SELECTORS: tuple[Selector, ...] = (
    Selector("qr", "QR: single, rectangular, batched", qr.cases, qr.host_calls),
    Selector("cholesky", "Cholesky: factor, status, solution", cholesky.cases, cholesky.host_calls),
    Selector("trsm", "Triangular systems: 1 and 8 right sides, every form", trsm.cases, trsm.host_calls),
    Selector("solve", "Systems of linear equations: solve_ex, inv_ex", solve.cases, solve.host_calls),
    Selector("svd", "SVD thin, singular values, Gaussian", svd.cases, svd.host_calls),
    Selector("rmsnorm", "RMS norm and fused add + RMS norm: forward, forward + backward", rms_norm.cases, rms_norm.host_calls),
    Selector(
        "activations", "GELU, SiLU, bias forms, gates: forward, forward + backward", activations.cases, activations.host_calls
    ),
    Selector("rope", "Rotary embedding of q and k: forward, forward + backward", rope.cases, rope.host_calls),
    Selector("softmax", "Softmax: forward, forward + backward", softmax.cases, softmax.host_calls),
    Selector("losses", "Cross entropy, alone and of a linear layer", cross_entropy.cases, cross_entropy.host_calls),
    Selector("kldiv", "Kullback-Leibler divergence", kl_div.cases, kl_div.host_calls),
    Selector(
        "layernorm", "Layer norm and fused add + layer norm: forward, forward + backward", layer_norm.cases, layer_norm.host_calls
    ),
    Selector("embedding", "Embedding bag: forward, forward + backward", embedding_bag.cases, embedding_bag.host_calls),
    Selector("scatter", "gather, scatter_add, index_select", indexing.cases, indexing.host_calls),
    Selector("eigh", "Symmetric eigenproblems: with vectors, values alone", eigh.cases, eigh.host_calls),
    Selector("scaling", "Batches of 1 to 100000 matrices, 16 by 16", scaling.cases, scaling.host_calls),
    Selector("adamw", "AdamW: one tensor of each size, many tensors, half parameters", adamw.cases, adamw.host_calls),
)

GROUPS: dict[str, Sequence[str]] = {
    "training": ("rmsnorm", "layernorm", "activations", "rope", "softmax", "losses", "kldiv", "embedding", "scatter", "adamw"),
}
