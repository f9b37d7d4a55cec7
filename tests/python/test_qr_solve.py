"""qr_solve: least squares by QR."""

from __future__ import annotations

import metalcore
import numpy as np
import pytest
import torch
from support import HALVES, ROUNDOFF, Unchanged, assert_fresh, exact, normal, one_norm, quotients
from torch.autograd import gradcheck, gradgradcheck

SIZES = [(1, 1), (3, 2), (8, 8), (16, 15), (33, 20), (70, 64), (100, 3)]


def least_squares_ratio(A, b, x):
    """Of the normal equations, for one right side each: CONTRACT's lstsq ratio in the 1-norm."""
    a, right, got = exact(A), exact(b), exact(x)
    defect = np.abs(np.swapaxes(a, -1, -2) @ (right - a @ got)).sum(-2)
    size = one_norm(a)[..., None] * (one_norm(a)[..., None] * np.abs(got).sum(-2) + np.abs(right).sum(-2))
    return quotients(defect, max(A.shape[-2:]) * size * ROUNDOFF[x.dtype])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_solutions_are_within_the_bar(device, dtype, size):
    A, b = normal(5, *size, device=device, dtype=dtype), normal(5, size[0], 3, device=device, dtype=dtype)
    with Unchanged(A, b):
        x = metalcore.qr_solve(A, b)
    assert_fresh((x,), (A, b))
    assert x.shape == (5, size[1], 3) and x.dtype == dtype
    assert (least_squares_ratio(A, b, x) <= (1 if size[1] >= 16 else 3)).all()
    if size[0] == size[1]:
        a, right, got = exact(A), exact(b), exact(x)
        residual = np.abs(right - a @ got).sum(-2)
        bar = 20 if size[0] < 16 else 10
        assert (quotients(residual, one_norm(a)[..., None] * np.abs(got).sum(-2) * ROUNDOFF[dtype]) <= bar).all()


@pytest.mark.dtypes(torch.float32, torch.float64, *HALVES)
def test_vectors_and_batches_are_as_in_torch(device, dtype):
    A = normal(2, 1, 6, 4, device=device, dtype=dtype)
    for b in (normal(6, device=device, dtype=dtype), normal(2, 1, 6, device=device, dtype=dtype)):
        x = metalcore.qr_solve(A, b)
        assert x.shape == (2, 1, 4)
    assert metalcore.qr_solve(A, normal(3, 6, 2, device=device, dtype=dtype)).shape == (2, 3, 4, 2)
    assert metalcore.qr_solve(A[:0], normal(0, 1, 6, 2, device=device, dtype=dtype)).shape == (0, 1, 4, 2)


@pytest.mark.dtypes(torch.float64)
@pytest.mark.native
def test_derivatives_are_right(device, dtype):
    A = normal(2, 5, 3, device=device, dtype=dtype).requires_grad_()
    b = normal(2, 5, 2, device=device, dtype=dtype).requires_grad_()
    assert gradcheck(metalcore.qr_solve, (A, b)) and gradgradcheck(metalcore.qr_solve, (A, b))


@pytest.mark.dtypes(torch.float32)
def test_a_matrix_without_full_rank_is_named(device, dtype):
    A = normal(4, 5, 3, device=device, dtype=dtype)
    A[2, :, 1] = 0
    A[2, :, 0] = torch.eye(5, device=device)[0]
    with pytest.raises(torch.linalg.LinAlgError, match=r"qr_solve: A: got batch item 2: a zero in place 2"):
        metalcore.qr_solve(A, A[..., :1])


@pytest.mark.parametrize(
    "make, kind, text",
    [
        (lambda A: (A.mT, A.mT), ValueError, "qr_solve: A: got shape"),
        (lambda A: (A, A[..., :3, :]), ValueError, "qr_solve: b: got shape"),
        (lambda A: (A, A.double()), TypeError, "qr_solve: b: got dtype"),
        (lambda A: (A.int(), A), TypeError, "qr_solve: A: got dtype"),
    ],
)
def test_wrong_calls_say_what_they_got(device, make, kind, text):
    with pytest.raises(kind, match=text):
        metalcore.qr_solve(*make(normal(2, 5, 4, device=device, dtype=torch.float32)))
