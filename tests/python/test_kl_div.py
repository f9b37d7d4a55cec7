"""kl_div and kl_div_topk: bounds, reductions, zeros, derivatives, transforms, errors."""

from __future__ import annotations

import math
import re

import metalcore
import metalcore_backend
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import EMULATED, ERROR_TEXT, Unchanged, assert_within, exact, gamma, normal, rho, same_bits
from torch.autograd import gradcheck, gradgradcheck

SHAPES = ((5, 1), (4, 3), (3, 1023), (2, 4097), (5, 12, 123))


def operands(*shape, device, dtype):
    pair = [normal(*shape, device=device, dtype=torch.float32, scale=2.0).log_softmax(-1) for _ in range(2)]
    return [x.to(dtype) for x in pair]


def oracle(log_p, log_q):
    """Divergences in float64 and their bounds; gradients of their sum and theirs."""
    x, y = exact(log_p).astype(np.float64), exact(log_q).astype(np.float64)
    p, growth = np.exp(x), gamma(x.shape[-1], log_p.dtype)
    terms = p * (x - y)
    # Each term also has the rounding of its difference.
    loss, bound = terms.sum(-1), growth * np.abs(terms).sum(-1)
    dp = p * (1 + x - y)
    spread = growth * p * (1 + np.abs(x) + np.abs(x - y))
    return loss, bound, (dp, spread + rho(log_p.dtype) * np.abs(dp)), (-p, growth * p + rho(log_q.dtype) * p)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_divergences_and_gradients_are_within_the_bounds(device, dtype, shape):
    leaves = [x.requires_grad_() for x in operands(*shape, device=device, dtype=dtype)]
    losses = metalcore.kl_div(*leaves, reduction="none")
    loss, bound, *wants = oracle(*(x.detach() for x in leaves))
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_within("kl_div", losses.detach(), loss, bound, dtype)
    grads = torch.autograd.grad(losses.sum(), leaves)
    for name, got, (want, spread) in zip("pq", grads, wants):
        assert got.dtype == dtype
        assert_within(f"kl_div d{name}", got, want, spread)


def test_reductions_and_the_order_of_the_arguments(device, dtype):
    log_p, log_q = operands(6, 9, device=device, dtype=dtype)
    with Unchanged(log_p, log_q):
        losses = metalcore.kl_div(log_p, log_q, "none")
    want = F.kl_div(log_q.double(), log_p.double(), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(losses.double(), want, rtol=1e-5, atol=1e-5)
    assert same_bits(metalcore.kl_div(log_p, log_q), losses.mean())
    assert same_bits(metalcore.kl_div(log_p, log_q, "batchmean"), losses.mean())
    assert same_bits(metalcore.kl_div(log_p, log_q, "sum"), losses.sum())
    assert same_bits(metalcore_backend.kl_div_fwd(log_p, log_q), losses)
    assert metalcore.kl_div(log_p[:0], log_q[:0]).isnan() and metalcore.kl_div(log_p[:0], log_q[:0], "sum") == 0


def test_a_class_that_the_teacher_excludes_contributes_nothing(device, dtype):
    inf = math.inf
    log_p = torch.tensor([[0.0, -inf, -inf], [-inf, 0.0, -inf]], device=device, dtype=dtype).requires_grad_()
    log_q = torch.tensor([[0.0, -inf, -1.0], [0.0, -inf, 0.0]], device=device, dtype=dtype).requires_grad_()
    losses = metalcore.kl_div(log_p, log_q, "none")
    assert losses.tolist() == [0.0, inf]
    dp, dq = torch.autograd.grad(losses[0], (log_p, log_q))
    assert dp[0].tolist() == [1, 0, 0] and dq[0].tolist() == [-1, 0, 0]


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_chosen_classes_are_summed_and_alone_have_a_gradient(device, dtype, index):
    leaves = [x.requires_grad_() for x in operands(3, 4, 11, device=device, dtype=dtype)]
    indices = torch.rand(3, 4, 11, device=device).topk(6, -1).indices.to(index)
    losses = metalcore.kl_div_topk(*leaves, indices, 4, "none")
    chosen = [x.detach().gather(-1, indices[..., :4].long()) for x in leaves]
    loss, bound, *wants = oracle(*chosen)
    assert_within("kl_div_topk", losses.detach(), loss, bound, dtype)
    grads = torch.autograd.grad(losses.sum(), leaves)
    for got, (want, spread) in zip(grads, wants):
        assert_within("kl_div_topk gradient", got.gather(-1, indices[..., :4].long()), want, spread)
        assert int((got != 0).sum()) <= 12 * 4
    assert same_bits(metalcore_backend.kl_div_topk_fwd(leaves[0].detach(), leaves[1].detach(), indices, 4), losses.detach())
    assert not metalcore.kl_div_topk(*leaves, indices, 0, "none").any()


def test_an_index_outside_is_an_index_error_on_cpu_and_a_missing_row_elsewhere(device):
    leaves = [x.requires_grad_() for x in operands(3, 5, device=device, dtype=torch.float32)]
    for bad in (5, -1, 2**40):
        indices = torch.tensor([[0, 1], [2, bad], [3, 4]], device=device)
        if device.type == "cpu" and not EMULATED:
            with pytest.raises(IndexError, match=f"kl_div_topk: indices: got index {bad}, expected 0 to 4"):
                metalcore.kl_div_topk(*leaves, indices)
        else:
            losses = metalcore.kl_div_topk(*leaves, indices, reduction="none")
            assert losses.isnan().tolist() == [False, True, False]
            assert all(not g[1].any() for g in torch.autograd.grad(losses.sum(), leaves))
        assert metalcore.kl_div_topk(*leaves, indices, 1).isfinite()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, reduction):
    leaves = [x.requires_grad_() for x in operands(3, 5, device=device, dtype=dtype)]
    indices = torch.tensor([[0, 2], [4, 4], [1, 3]], device=device)
    for call in (
        lambda p, q: metalcore.kl_div(p, q, reduction),
        lambda p, q: metalcore.kl_div_topk(p, q, indices, None, reduction),
    ):
        assert gradcheck(call, leaves)
        assert gradgradcheck(call, leaves)


@pytest.mark.dtypes(torch.float32)
def test_transforms_and_compiled_code_give_the_same(device, dtype):
    log_p, log_q = operands(3, 4, 7, device=device, dtype=dtype)
    want = torch.stack([metalcore.kl_div(p, q) for p, q in zip(log_p, log_q)])
    torch.testing.assert_close(torch.func.vmap(metalcore.kl_div)(log_p, log_q), want)
    grad = torch.func.grad(metalcore.kl_div)(log_p, log_q)
    leaf = log_p.clone().requires_grad_()
    torch.compile(metalcore.kl_div, fullgraph=True, backend="aot_eager")(leaf, log_q).backward()
    torch.testing.assert_close(leaf.grad, grad)


@pytest.mark.parametrize(
    "function, shapes, options, argument",
    [
        ("kl_div", ((2, 3), (2, 4)), {}, "log_q"),
        ("kl_div", ((), ()), {}, "log_p"),
        ("kl_div", ((2, 3), (2, 3)), {"reduction": "x"}, "reduction"),
        ("kl_div_topk", ((2, 3), (2, 3), (3, 1)), {}, "indices"),
        ("kl_div_topk", ((2, 3), (2, 3), (2, 1)), {"k": 2}, "k"),
    ],
)
def test_wrong_calls_name_the_argument(device, function, shapes, options, argument):
    tensors = [torch.zeros(s, device=device, dtype=torch.float32 if i < 2 else torch.int64) for i, s in enumerate(shapes)]
    with pytest.raises(ValueError) as error:
        getattr(metalcore, function)(*tensors, **options)
    assert re.search(ERROR_TEXT.format(op=function, argument=argument), str(error.value))
    with pytest.raises(TypeError):
        metalcore.kl_div_topk(
            torch.zeros(2, 3, device=device), torch.zeros(2, 3, device=device), torch.zeros(2, 1, device=device)
        )
