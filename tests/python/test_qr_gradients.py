"""Gradients of qr: against torch.linalg.qr's and finite differences; what has no derivative says so."""

from __future__ import annotations

import metalcore
import numpy as np
import pytest
import torch
from support import ROUNDOFF, TRIANGULAR_SOLVE_BAR, Unchanged, exact, normal, one_norm, quotients, with_condition

SIZES = [(1, 1), (2, 2), (5, 3), (3, 5), (8, 8), (17, 9), (9, 17), (33, 33), (70, 20), (20, 70)]
SINGLE = (torch.float32, torch.float64)


def well_conditioned(batch, m, n, device, dtype):
    """A batch of matrices of condition 10 whose first columns are well conditioned too."""
    return torch.stack([with_condition(m, n, 10) for _ in range(batch)]).to(dtype).to(device)


def losses(Q, R):
    """Weights that make a loss of Q alone, of R alone, and of both; the same for every dtype."""
    generator = torch.Generator().manual_seed(7)
    q, r = (torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype) for t in (Q, R))
    yield "Q", (Q * q).sum()
    yield "R", (R * r).sum()
    yield "Q and R", (Q * q).sum() + (R * r).sum()


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.dtypes(*SINGLE)
def test_gradients_are_those_of_torch_to_the_bar_of_a_triangular_solve(device, dtype, size):
    m, n = size
    A = well_conditioned(3, m, n, device, dtype).requires_grad_()
    reference = A.detach().cpu().double().requires_grad_()
    triangle = torch.linalg.qr(reference.detach()).R[..., : min(m, n)]
    condition = torch.linalg.cond(triangle, 1).numpy()
    ours = losses(*metalcore.qr(A))
    theirs = losses(*torch.linalg.qr(reference))
    for (name, loss), (_, wanted) in zip(ours, theirs):
        (got,) = torch.autograd.grad(loss, A, retain_graph=True)
        (want,) = torch.autograd.grad(wanted, reference, retain_graph=True)
        assert got.shape == A.shape and got.dtype == dtype
        # The gradient is the solution of a triangular system in R: its error is that of a solve, times the condition.
        unit = max(m, n) * ROUNDOFF[dtype] * condition * one_norm(want.numpy())
        ratio = quotients(one_norm(exact(got, False) - want.numpy()), unit)
        assert (ratio <= TRIANGULAR_SOLVE_BAR).all(), (name, ratio)


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (3, 5)], ids=str)
def test_a_gradient_has_the_dtype_of_its_input(device, dtype, size):
    A = normal(2, *size, device=device, dtype=dtype).requires_grad_()
    Q, R = metalcore.qr(A)
    assert Q.dtype == R.dtype == dtype
    (grad,) = torch.autograd.grad(Q.sum() + R.sum(), A)
    assert grad.dtype == dtype and grad.shape == A.shape and bool(grad.isfinite().all())


@pytest.mark.parametrize(
    "batch, size", [((), (4, 4)), ((2,), (5, 3)), ((2, 1), (3, 5)), ((2,), (1, 1)), ((0,), (3, 2)), ((1,), (5, 5))], ids=str
)
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, batch, size):
    A = normal(*batch, *size, device=device, dtype=dtype).requires_grad_()
    assert torch.autograd.gradcheck(metalcore.qr, (A,))
    assert torch.autograd.gradgradcheck(metalcore.qr, (A,))


@pytest.mark.parametrize("size", [(3, 3), (2, 4), (1, 1)], ids=str)
@pytest.mark.dtypes(torch.float64)
def test_the_complete_form_of_square_and_wide_matrices_has_derivatives(device, dtype, size):
    A = normal(2, *size, device=device, dtype=dtype).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: metalcore.qr(A, "complete"), (A,))
    assert torch.autograd.gradgradcheck(lambda A: metalcore.qr(A, "complete"), (A,))


@pytest.mark.dtypes(*SINGLE)
def test_views_and_expanded_gradients_have_the_gradient_of_copies(device, dtype):
    A = normal(2, 6, 4, device=device, dtype=dtype)
    expected = A.clone().requires_grad_()
    metalcore.qr(expected).R.sum().backward()
    turned = A.mT.contiguous().requires_grad_()
    metalcore.qr(turned.mT).R.sum().backward()
    assert torch.equal(turned.grad.mT, expected.grad)
    with Unchanged(A):
        metalcore.qr(A.requires_grad_()).R.sum().backward()
    assert torch.equal(A.grad, expected.grad)


@pytest.mark.parametrize("mode, size", [("complete", (5, 3)), ("r", (4, 4)), ("r", (5, 3)), ("r", (3, 5))])
@pytest.mark.dtypes(*SINGLE)
def test_forms_without_a_derivative_work_forward_and_raise_on_backward(device, dtype, mode, size):
    A = normal(2, *size, device=device, dtype=dtype).requires_grad_()
    R = metalcore.qr(A, mode).R
    expected = metalcore.qr(A.detach(), mode).R
    assert torch.equal(R.detach(), expected)
    with pytest.raises(RuntimeError, match="qr.*mode"):
        R.sum().backward()
    assert A.grad is None


@pytest.mark.dtypes(*SINGLE)
def test_nothing_is_recorded_without_a_need(device, dtype):
    A = normal(2, 4, 3, device=device, dtype=dtype)
    assert not any(t.requires_grad for t in metalcore.qr(A))
    with torch.no_grad():
        assert not any(t.requires_grad for t in metalcore.qr(A.requires_grad_()))


@pytest.mark.dtypes(*SINGLE)
def test_empty_matrices_have_empty_or_zero_gradients(device, dtype):
    for shape in [(0, 3, 3), (2, 0, 3), (2, 3, 0)]:
        A = torch.zeros(shape, device=device, dtype=dtype, requires_grad=True)
        Q, R = metalcore.qr(A)
        (grad,) = torch.autograd.grad(Q.sum() + R.sum(), A)
        assert grad.shape == A.shape


@pytest.mark.dtypes(*SINGLE)
def test_an_item_that_is_not_finite_leaves_the_gradients_of_others(device, dtype):
    A = normal(3, 5, 4, device=device, dtype=dtype)
    weights = normal(3, 4, 4, device=device, dtype=dtype)
    grads = []
    for bad in (0.0, float("nan")):
        X = A.clone()
        X[1] += bad
        X.requires_grad_()
        (metalcore.qr(X).R * weights).sum().backward()
        grads.append(exact(X.grad))
    assert np.array_equal(grads[0][[0, 2]], grads[1][[0, 2]])
    assert np.isnan(grads[1][1]).any()
