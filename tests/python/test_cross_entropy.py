"""cross_entropy and fused_linear_cross_entropy: bounds, reductions, ignored rows, views, derivatives, errors."""

from __future__ import annotations

import math
import re

import metalcore
import metalcore_backend
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from metalcore._linear_cross_entropy import chunk_rows
from support import (
    EMULATED,
    ERROR_TEXT,
    VIEWS,
    Unchanged,
    assert_fresh,
    assert_within,
    exact,
    gamma,
    normal,
    rho,
    same_bits,
    views,
)
from torch.autograd import gradcheck, gradgradcheck

CLASSES = (1, 3, 33, 512, 1023, 4097) if EMULATED else (1, 2, 3, 5, 31, 512, 1000, 1023, 1024, 4097, 32000, 50257)
IGNORE = -100


def operands(rows, classes, device, dtype, index=torch.int64, scale=3.0):
    """Logits, and targets of which a quarter are ignored."""
    logits = normal(rows, classes, device=device, dtype=dtype, scale=scale)
    targets = torch.randint(classes, (rows,), device=device, dtype=index)
    targets[1::4] = IGNORE
    return logits, targets


def oracle(logits, targets, eps):
    """Losses and gradients of their sum in float64, with their bounds."""
    x, t = exact(logits).astype(np.float64), targets.cpu().numpy()
    classes = x.shape[-1]
    counts = (t != IGNORE)[:, None]
    hot = (np.arange(classes) == t[:, None]) * 1.0
    top = x.max(-1, keepdims=True)
    lse = top + np.log(np.exp(x - top).sum(-1, keepdims=True))
    at = (x * hot).sum(-1, keepdims=True)
    loss = (1 - eps) * (lse - at) + eps * (lse - x.mean(-1, keepdims=True))
    g = gamma(classes, logits.dtype)
    size = np.abs(top) + np.abs(lse) + np.abs(at)
    size = size + (eps * np.abs(x).mean(-1, keepdims=True) if eps else 0)
    p = np.exp(x - lse)
    dx = (p - (1 - eps) * hot - eps / classes) * counts
    spread = rho(logits.dtype) * np.abs(dx) + g * (p * (1 + size + np.abs(x - lse)) + hot + eps / classes)
    return (loss * counts)[:, 0], (g * size * counts)[:, 0], dx, spread * counts


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("classes", CLASSES)
def test_losses_and_gradients_of_any_number_of_classes_are_within_the_bounds(device, dtype, classes, eps):
    logits, targets = operands(5, classes, device, dtype, torch.int32 if classes % 2 else torch.int64)
    leaf = logits.clone().requires_grad_()
    losses = metalcore.cross_entropy(leaf, targets, IGNORE, eps, "none")
    want, bound, dx, spread = oracle(logits, targets, eps)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_within("cross_entropy loss", losses.detach(), want, bound, dtype)
    losses.sum().backward()
    assert leaf.grad.dtype == dtype
    assert_within("cross_entropy dx", leaf.grad, dx, spread)
    assert not leaf.grad[1].any()


@pytest.mark.parametrize("rows", [1, 4, 130] if EMULATED else [1, 4, 517, 5000])
def test_reductions_are_those_of_torch(device, dtype, rows):
    logits, targets = operands(rows, 65, device, dtype)
    reference = logits.detach().double().requires_grad_()
    for reduction in ("mean", "sum", "none"):
        leaf = logits.clone().requires_grad_()
        loss = metalcore.cross_entropy(leaf, targets, reduction=reduction, label_smoothing=0.2)
        want = F.cross_entropy(reference, targets, reduction=reduction, label_smoothing=0.2)
        torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
        if rows > 1 or reduction != "mean":
            (dx,) = torch.autograd.grad(loss.sum(), leaf)
            (expected,) = torch.autograd.grad(want.sum(), reference)
            torch.testing.assert_close(dx.double(), expected, rtol=max(1e-4, 1.01 * rho(dtype)), atol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 9), (5, 12, 123), (0, 4), (2, 0, 4)], ids=str)
def test_any_leading_dimensions_are_rows(device, dtype, shape):
    logits = normal(*shape, device=device, dtype=dtype)
    targets = torch.randint(shape[-1], shape[:-1], device=device)
    with Unchanged(logits, targets):
        losses = metalcore.cross_entropy(logits, targets, reduction="none")
    assert losses.shape == shape[:-1]
    assert_fresh((losses,), (logits, targets))
    want = F.cross_entropy(logits.double().reshape(-1, shape[-1]), targets.reshape(-1), reduction="none")
    torch.testing.assert_close(losses.double().reshape(-1), want, rtol=1e-5, atol=1e-5)


def test_without_a_row_that_counts_the_mean_is_nan_and_the_gradient_zero(device, dtype):
    logits = normal(3, 5, device=device, dtype=dtype).requires_grad_()
    targets = torch.full((3,), IGNORE, device=device)
    loss = metalcore.cross_entropy(logits, targets)
    assert loss.isnan()
    loss.backward()
    assert not logits.grad.any()
    assert metalcore.cross_entropy(logits, targets, reduction="sum") == 0
    assert metalcore.cross_entropy(logits[:0], targets[:0]).isnan()


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("classes", [64, 33])
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, classes, layout):
    logits, targets = normal(2, 3, classes, device=device, dtype=dtype), torch.randint(classes, (2, 3), device=device)

    def results(x, t):
        x = x.detach().requires_grad_()
        loss = metalcore.cross_entropy(x, t, reduction="none")
        return loss.detach(), *torch.autograd.grad(loss.sum(), x)

    expected = results(logits, targets)
    for _, view in views(layout, logits):
        assert all(same_bits(got, want) for got, want in zip(results(view, targets), expected))
    wide = torch.stack([targets, targets], -1)
    assert all(same_bits(got, want) for got, want in zip(results(logits, wide[..., 0]), expected))


def test_nan_and_infinities_stay_in_their_rows(device, dtype):
    inf, nan = math.inf, math.nan
    logits = torch.tensor([[1, -inf, 2], [nan, 0, 0], [inf, 0, 0], [1, 2, 3], [1, -inf, 2]], device=device, dtype=dtype)
    targets = torch.tensor([0, 1, 1, 2, 1], device=device)
    losses = metalcore.cross_entropy(logits, targets, reduction="none")
    assert losses.isnan().tolist() == [False, True, True, False, False]
    assert losses[4] == inf
    targets[1] = IGNORE
    leaf = logits.requires_grad_()
    losses = metalcore.cross_entropy(leaf, targets, reduction="none")
    assert losses[1] == 0
    losses[:2].sum().backward()
    assert not leaf.grad[1].any() and leaf.grad[0].isfinite().all()


@pytest.mark.parametrize("bad", [5, -1, -(2**40), 2**40])
def test_a_target_outside_is_an_index_error_on_cpu_and_a_missing_loss_elsewhere(device, bad):
    logits = normal(3, 5, device=device, dtype=torch.float32).requires_grad_()
    targets = torch.tensor([0, bad, 2], device=device)
    call = lambda: metalcore.cross_entropy(logits, targets, reduction="none")  # noqa: E731
    if device.type == "cpu" and not EMULATED:
        with pytest.raises(IndexError, match=re.escape(f"cross_entropy: targets: got index {bad}, expected 0 to 4 or -100")):
            call()
        return
    losses = call()
    assert losses.isnan().tolist() == [False, True, False]
    losses.sum().backward()
    assert not logits.grad[1].any() and logits.grad[0].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, reduction):
    logits, targets = operands(4, 6, device, dtype, scale=1.0)
    call = lambda x: metalcore.cross_entropy(x, targets, IGNORE, 0.1, reduction)  # noqa: E731
    assert gradcheck(call, logits.requires_grad_())
    assert gradgradcheck(call, logits)


@pytest.mark.dtypes(torch.float32)
def test_transforms_and_compiled_code_give_the_same(device, dtype):
    logits, targets = normal(3, 4, 7, device=device, dtype=dtype), torch.randint(7, (3, 4), device=device)
    want = torch.stack([metalcore.cross_entropy(x, t) for x, t in zip(logits, targets)])
    torch.testing.assert_close(torch.func.vmap(metalcore.cross_entropy)(logits, targets), want)
    torch.testing.assert_close(torch.func.vmap(metalcore.cross_entropy, (1, 1))(logits.movedim(0, 1), targets.mT), want)
    grad = torch.func.grad(metalcore.cross_entropy)(logits, targets)
    leaf = logits.clone().requires_grad_()
    loss = torch.compile(metalcore.cross_entropy, fullgraph=True, backend="aot_eager")(leaf, targets)
    loss.backward()
    torch.testing.assert_close(leaf.grad, grad)
    torch.testing.assert_close(loss, metalcore.cross_entropy(logits, targets))


@pytest.mark.dtypes(torch.float32, torch.bfloat16)
def test_the_low_level_form_is_the_loss_of_each_row(device, dtype):
    logits, targets = operands(6, 40, device, dtype)
    got = metalcore_backend.cross_entropy_fwd(logits, targets)
    assert same_bits(got, metalcore.cross_entropy(logits, targets, reduction="none"))
    with pytest.raises(RuntimeError, match="not differentiable"):
        metalcore_backend.cross_entropy_fwd(logits.requires_grad_(), targets)


# --- the linear form ------------------------------------------------------------------------------


def linear_operands(rows, hidden, classes, device, dtype, biased):
    h, w = normal(rows, hidden, device=device, dtype=dtype), normal(classes, hidden, device=device, dtype=dtype)
    targets = torch.randint(classes, (rows,), device=device)
    targets[::5] = IGNORE
    return h, w / 4, targets, normal(classes, device=device, dtype=dtype) if biased else None


@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
def test_the_linear_form_is_the_loss_of_the_products(device, dtype, reduction, chunk, biased):
    h, w, targets, b = linear_operands(17, 12, 33, device, dtype, biased)
    leaves = [t.clone().requires_grad_() for t in (h, w, b) if t is not None]
    loss = metalcore.fused_linear_cross_entropy(
        *leaves[:2], targets, *leaves[2:], label_smoothing=0.1, reduction=reduction, chunk_size=chunk
    )
    wide = [t.detach().double().requires_grad_() for t in leaves]
    want = F.cross_entropy(F.linear(*wide), targets, label_smoothing=0.1, reduction=reduction)
    grad = torch.linspace(0.5, 1.5, want.numel(), device=device).view(want.shape)
    got_grads = torch.autograd.grad(loss, leaves, grad.to(loss.dtype))
    want_grads = torch.autograd.grad(want, wide, grad.double())
    # Logits and their gradients are rounded to the dtype, and so is the sum over each chunk.
    unit = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), want, rtol=unit, atol=max(8 * unit, 1e-6))
    for leaf, got, expected in zip(leaves, got_grads, want_grads):
        assert got.dtype == leaf.dtype and got.shape == leaf.shape
        atol = float(4 * unit * expected.abs().max()) + 1e-6
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=max(atol, 1e-6))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.dtypes(torch.float64)
def test_derivatives_of_the_linear_form_are_those_of_finite_differences(device, dtype, reduction):
    h, w, targets, b = linear_operands(5, 3, 4, device, dtype, True)
    call = lambda h, w, b: metalcore.fused_linear_cross_entropy(h, w, targets, b, reduction=reduction, chunk_size=2)  # noqa: E731
    leaves = [t.requires_grad_() for t in (h, w, b)]
    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


@pytest.mark.dtypes(torch.float32)
def test_a_retained_graph_gives_its_gradients_again(device, dtype):
    h, w, targets, _ = linear_operands(9, 4, 6, device, dtype, False)
    leaves = [h.requires_grad_(), w.requires_grad_()]
    loss = metalcore.fused_linear_cross_entropy(h, w, targets)
    first = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    for got, want in zip(torch.autograd.grad(3 * loss, leaves), first):
        torch.testing.assert_close(got, want)


@pytest.mark.dtypes(torch.float32)
def test_the_linear_form_compiles_maps_and_casts(device, dtype):
    h, w, targets, _ = linear_operands(8, 4, 6, device, dtype, False)
    call = metalcore.fused_linear_cross_entropy
    leaves = [h.requires_grad_(), w.requires_grad_()]
    want = torch.autograd.grad(call(h, w, targets), leaves)
    for reduction in ("mean", "none"):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        loss = compiled(h, w, targets, reduction=reduction)
        found = torch.autograd.grad(loss if reduction == "mean" else loss.sum() / (targets != IGNORE).sum(), leaves)
        for got, expected in zip(found, want):
            torch.testing.assert_close(got, expected)
    mapped = torch.func.vmap(call, (0, None, 0))(h.detach().view(2, 4, 4), w.detach(), targets.view(2, 4))
    torch.testing.assert_close(mapped[0], call(h[:4], w, targets[:4]).detach())
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = call(h, w, targets)
    torch.testing.assert_close(loss, call(h.bfloat16(), w.bfloat16(), targets))
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss, leaves))


def test_chunks_are_a_fifth_of_the_rows_within_bounds():
    assert chunk_rows(4096, 128256, 2) == 896
    assert chunk_rows(65536, 128256, 2) == 1024
    assert chunk_rows(512, 32000, 4) == 512
    assert chunk_rows(3, 10, 4) == 3
    assert chunk_rows(0, 10, 4) == 1


# --- errors ---------------------------------------------------------------------------------------


def x(*shape, dtype=torch.float32):
    return lambda device: torch.ones(shape, device=device, dtype=dtype)


def t(*shape, dtype=torch.int64):
    return lambda device: torch.zeros(shape, device=device, dtype=dtype)


ERRORS = [
    (x(), t(), {}, ValueError, "logits"),
    (x(2, 3), t(3), {}, ValueError, "targets"),
    (x(2, 3), t(2, dtype=torch.float32), {}, TypeError, "targets"),
    (x(2, 3), t(2, dtype=torch.bool), {}, TypeError, "targets"),
    (x(2, 3, dtype=torch.int32), t(2), {}, TypeError, "logits"),
    (x(2, 3, dtype=torch.complex64), t(2), {}, NotImplementedError, "logits"),
    (lambda d: [1.0], t(2), {}, TypeError, "logits"),
    (x(2, 3), lambda d: [1, 2], {}, TypeError, "targets"),
    (x(2, 3), t(2), {"reduction": "batchmean"}, ValueError, "reduction"),
    (x(2, 3), t(2), {"label_smoothing": 1.5}, ValueError, "label_smoothing"),
    (x(2, 3), lambda d: torch.zeros(2, device="meta", dtype=torch.int64), {}, ValueError, "targets"),
]


@pytest.mark.parametrize("make, make_targets, options, kind, argument", ERRORS, ids=[f"{i} {e[4]}" for i, e in enumerate(ERRORS)])
def test_wrong_calls_name_the_argument(device, make, make_targets, options, kind, argument):
    with pytest.raises(kind) as error:
        metalcore.cross_entropy(make(device), make_targets(device), **options)
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op="cross_entropy", argument=argument), str(error.value)), str(error.value)


@pytest.mark.parametrize(
    "shapes, options, argument",
    [
        (((2, 3), (5, 4), (2,), None), {}, "weight"),
        (((2, 3), (5, 3), (3,), None), {}, "targets"),
        (((2, 3), (5, 3), (2,), (4,)), {}, "bias"),
        (((2, 3), (5, 3), (2,), None), {"chunk_size": 0}, "chunk_size"),
        (((2, 3), (5, 3), (2,), None), {"reduction": "x"}, "reduction"),
    ],
)
def test_wrong_calls_of_the_linear_form_name_the_argument(device, shapes, options, argument):
    h, w, targets, b = (None if s is None else torch.zeros(s, device=device) for s in shapes)
    with pytest.raises(ValueError) as error:
        metalcore.fused_linear_cross_entropy(h, w, targets.long(), b, **options)
    assert re.search(ERROR_TEXT.format(op="fused_linear_cross_entropy", argument=argument), str(error.value))
