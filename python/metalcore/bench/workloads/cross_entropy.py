"""Cross entropy of logits, and of a linear layer's outputs that are never held at once: forward, forward + backward."""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Iterator, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

import metalcore
from metalcore._linear_cross_entropy import chunk_rows

from .. import memory, peers
from ..accuracy import Gate, excess, gamma, rounding, wide
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, copies_needed, times

SHAPES = ((32, 32000), (128, 32000), (256, 32000), (512, 128256), (4096, 128256))
QUICK = ((256, 32000),)
GPU_ONLY = ((4096, 128256),)
# rows, hidden, classes
LINEAR = ((64, 256, 4096), (512, 1024, 32000), (4096, 4096, 128256))
LINEAR_GPU_ONLY = ((4096, 4096, 128256),)
IGNORED = 0.1
CHECKED_ROWS = 64
SEED = 6

Loss = Callable[..., Tensor]


def cases(context: Context) -> Iterator[Case]:
    """Both forms; 10 % of the rows are ignored."""
    for backward in (False, True):
        for shape in SHAPES:
            for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
                size = math.prod(shape) * dtype.itemsize
                yield Case(
                    op=f"cross_entropy {'fwd+bwd' if backward else 'fwd'}",
                    shape=times(*shape),
                    dtype=dtype,
                    cost=Cost((1 - IGNORED) * size + (((1 - IGNORED) + 1) * size if backward else 0)),
                    build=lambda shape=shape, dtype=dtype, backward=backward: build(context, shape, dtype, backward),
                    quick=shape in QUICK,
                    gpu_only=shape in GPU_ONLY,
                    memory_bytes=4 * size,
                )
    for shape in LINEAR:
        for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
            rows, hidden, classes = shape
            yield Case(
                op="fused_linear_cross_entropy fwd+bwd",
                shape=times(*shape),
                dtype=dtype,
                cost=Cost(
                    2 * (rows + classes) * hidden * dtype.itemsize,
                    6.0 * rows * hidden * classes,
                    "fp32" if dtype == torch.float32 else "bf16",
                ),
                build=lambda shape=shape, dtype=dtype: build_linear(context, shape, dtype),
                gpu_only=shape in LINEAR_GPU_ONLY,
                memory_bytes=5 * rows * classes * dtype.itemsize,
            )


def gaussian(context: Context, *shape: int) -> Tensor:
    """From the seed, float32."""
    generator = torch.Generator(context.device).manual_seed(SEED)
    return torch.randn(shape, generator=generator, device=context.device)


def make_targets(context: Context, rows: int, classes: int) -> Tensor:
    """Uniform classes; every tenth row is ignored."""
    generator = torch.Generator().manual_seed(SEED)
    targets = torch.randint(classes, (rows,), generator=generator)
    targets[:: round(1 / IGNORED)] = -100
    return targets.to(context.device)


def reference_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss in float64 and its bound, a few rows at a time."""
    total, spread, counted = 0.0, 0.0, 0
    for begin in range(0, logits.shape[0], CHECKED_ROWS):
        x, t = wide(logits[begin : begin + CHECKED_ROWS]), targets[begin : begin + CHECKED_ROWS].to(wide(logits[:1]).device)
        kept = t != -100
        x, t = x[kept], t[kept]
        lse, at = torch.logsumexp(x, -1), x.gather(1, t[:, None])[:, 0]
        total = total + (lse - at).sum()
        spread = spread + (x.amax(-1).abs() + lse.abs() + at.abs()).sum()
        counted += int(kept.sum())
    # One gamma for the rows, one for their sum.
    bound = (gamma(logits.shape[1], logits.dtype) + gamma(logits.shape[0], logits.dtype)) * spread
    return total / counted, bound / counted


def build(context: Context, shape: tuple[int, int], dtype: torch.dtype, backward: bool) -> Row:
    """Logits (rotated where they would stay in a cache), our call, the peers' calls."""
    size = math.prod(shape) * dtype.itemsize
    copies = copies_needed(size, (2 if backward else 1) * size, context.profile.cache_bytes)
    logits = [(3 * gaussian(context, *shape)).to(dtype).requires_grad_(backward) for _ in range(copies)]
    targets = make_targets(context, *shape)

    def wrap(loss: Loss) -> Call:
        if not backward:
            return lambda copy: (loss(logits[copy], targets),)

        def call(copy: int) -> tuple[Tensor, ...]:
            value = loss(logits[copy], targets)
            return (value, *torch.autograd.grad(value, logits[copy]))

        return call

    def check(copy: int, result: Any) -> list[Gate]:
        want, bound = reference_loss(logits[copy].detach(), targets)
        gates = [Gate("loss", excess(result[0], want, bound))]
        if backward:
            gates.append(Gate("dx", gradient_excess(logits[copy].detach(), targets, result[1])))
        return gates

    rivals, skipped = rivals_of(context, wrap, F.cross_entropy)
    return Row(ours=wrap(metalcore.cross_entropy), peers=rivals, check=check, copies=copies, skipped=skipped)


def gradient_excess(logits: Tensor, targets: Tensor, got: Tensor) -> float:
    """Worst |error| / bound of the gradient of the mean in the first rows."""
    counted = int((targets != -100).sum())
    x, t = wide(logits[:CHECKED_ROWS]), targets[:CHECKED_ROWS].to(wide(logits[:1]).device)
    lse = torch.logsumexp(x, -1, keepdim=True)
    kept = (t != -100)[:, None]
    hot = F.one_hot(t.clamp(min=0), x.shape[1]).to(torch.float64)
    p = (x - lse).exp()
    want = (p - hot) * kept / counted
    size = 1 + x.abs().amax(-1, keepdim=True) + lse.abs() + (x * hot).sum(-1, keepdim=True).abs() + (x - lse).abs()
    bound = rounding(logits.dtype) * want.abs() + gamma(x.shape[1], logits.dtype) * (p * size + hot) / counted
    return excess(got[:CHECKED_ROWS], want, bound)


def rivals_of(context: Context, wrap: Callable[[Loss], Call], loss: Loss) -> tuple[dict[str, Peer], dict[str, str]]:
    """torch everywhere; torch.compile and Liger on cuda."""
    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    cuda = context.device.type == "cuda"
    if "torch" in context.peers:
        rivals["torch"] = Peer(wrap(loss))
    if "compile" in context.peers and cuda:
        peers.add(rivals, skipped, "torch.compile", lambda: Peer(wrap(peers.compiled(loss))))
    if "liger" in context.peers and cuda and loss is F.cross_entropy:
        peers.add(rivals, skipped, "liger", lambda: Peer(wrap(liger_loss())))
    return rivals, skipped


def liger_loss() -> Loss:
    """Liger-Kernel's, which writes the gradient over the logits: it gets a copy."""
    from liger_kernel.transformers import functional as liger

    return lambda logits, targets: liger.liger_cross_entropy(logits.clone(), targets)


def build_linear(context: Context, shape: tuple[int, int, int], dtype: torch.dtype) -> Row:
    """Hidden states and a weight; gradients to both."""
    rows, hidden, classes = shape
    h = gaussian(context, rows, hidden).to(dtype).requires_grad_()
    w = (gaussian(context, classes, hidden) / math.sqrt(hidden)).to(dtype).requires_grad_()
    targets = make_targets(context, rows, classes)

    def wrap(loss: Loss) -> Call:
        def call(copy: int) -> tuple[Tensor, ...]:
            value = loss(h, w, targets)
            return (value, *torch.autograd.grad(value, (h, w)))

        return call

    def check(copy: int, result: Any) -> list[Gate]:
        logits = torch.cat([wide(part) @ wide(w).mT for part in h.detach()[:CHECKED_ROWS].split(16)])
        t = targets[:CHECKED_ROWS].to(logits.device)
        got = metalcore.fused_linear_cross_entropy(h.detach()[:CHECKED_ROWS], w.detach(), targets[:CHECKED_ROWS])
        want = F.cross_entropy(logits, t)
        # A logit is rounded to the dtype after a product of `hidden` terms, in TF32 at worst.
        unit = max(rounding(dtype), 2.0**-11 if torch.backends.cuda.matmul.allow_tf32 else 0.0) + gamma(hidden, dtype)
        return [Gate("loss", excess(got, want, 2 * unit * logits.abs().amax() + gamma(classes, dtype) * 3 * want.abs()))]

    rivals, skipped = rivals_of(context, wrap, lambda h, w, t: F.cross_entropy(F.linear(h, w), t))
    if "torch" in context.peers:
        rivals["torch, chunks"] = Peer(lambda copy: in_chunks(h.detach(), w.detach(), targets))
    ours = wrap(metalcore.fused_linear_cross_entropy)
    calls = {"ours": ours, **{name: peer.call for name, peer in rivals.items() if name in ("torch", "torch, chunks")}}
    memory = functools.partial(memory_of, context, calls, h.nbytes + w.nbytes) if context.device.type == "cuda" else None
    return Row(ours=ours, peers=rivals, check=check, skipped=skipped, memory=memory)


def in_chunks(h: Tensor, w: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in torch's operations with as many logits at once as ours holds: what a user would write."""
    counted = (targets != -100).sum()
    loss, dh, dw = torch.zeros((), device=h.device), torch.empty_like(h), torch.zeros_like(w)
    size = chunk_rows(h.shape[0], w.shape[0], h.element_size())
    for part, to, t in zip(h.split(size), dh.split(size), targets.split(size)):
        logits = F.linear(part, w).requires_grad_()
        value = F.cross_entropy(logits, t, reduction="sum") / counted
        (d,) = torch.autograd.grad(value, logits)
        loss += value.detach()
        torch.mm(d, w, out=to)
        dw.addmm_(d.t(), part)
    return loss, dh, dw


def memory_of(context: Context, calls: dict[str, Call], kept: int) -> dict[str, dict[str, Optional[int]]]:
    """Gradients, and what a call needs beside them."""
    peaks = {name: memory.step_bytes(context.device, functools.partial(call, 0)) for name, call in calls.items()}
    return {name: {"state_bytes": kept, "step_bytes": peak and peak - kept} for name, peak in peaks.items()}


def host_calls(context: Context) -> Iterator[HostCall]:
    """A few rows, with and without a gradient to record."""
    for grad in (False, True):
        logits, targets = gaussian(context, 8, 64).requires_grad_(grad), make_targets(context, 8, 64)
        yield HostCall(
            op="cross_entropy",
            shape=times(8, 64),
            grad="grad" if grad else "no grad",
            ours=lambda x=logits, t=targets: metalcore.cross_entropy(x, t),
            torch=lambda x=logits, t=targets: F.cross_entropy(x, t),
        )
