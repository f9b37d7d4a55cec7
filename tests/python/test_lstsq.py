"""lstsq and pinv: Penrose and normal equations, ranks, shapes, gradients, errors."""

from __future__ import annotations

import metalcore
import numpy as np
import pytest
import torch
from support import EMULATED, HALVES, ROUNDOFF, exact, families, normal, one_norm, orthogonal, quotients, record, same_bits

SINGLE = (torch.float32, torch.float64)
SIZES = [(1, 1), (5, 3), (3, 5), (16, 16)] + ([] if EMULATED else [(40, 17), (17, 40), (70, 66)])
# Their singular values have no gap at max(M, N) 2 u: which of them count is a matter of rounding.
NO_GAP = ("condition 1/u", "Hilbert", "near underflow", "rows graded", "columns graded", "Kahan")


def bar(k):
    return 3 if k < 16 else 1


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.dtypes(*SINGLE)
def test_the_pseudo_inverse_satisfies_the_equations_of_penrose(device, dtype, size):
    items, A = families(*size, dtype)
    keep = [i for i, name in enumerate(items) if not name.startswith(NO_GAP) and "zero" != name and "near" not in name]
    A = A[keep].to(device)
    P = metalcore.pinv(A)
    assert P.shape == A.mT.shape and P.dtype == dtype and P.is_contiguous()
    a, p = exact(A, False), exact(P, False)
    kappa = np.linalg.norm(a, 2, (-2, -1)) * np.linalg.norm(p, 2, (-2, -1))
    unit = max(size) * kappa * ROUNDOFF[dtype]
    t = lambda X: np.swapaxes(X, -2, -1)  # noqa: E731
    two = lambda X: np.linalg.norm(X, axis=(-2, -1))  # noqa: E731
    residuals = {
        "A P A - A": (two(a @ p @ a - a), two(a)),
        "P A P - P": (two(p @ a @ p - p), two(p)),
        "(A P)' - A P": (two(t(a @ p) - a @ p), two(a @ p)),
        "(P A)' - P A": (two(t(p @ a) - p @ a), two(p @ a)),
    }
    for name, (residual, scale) in residuals.items():
        ratio = quotients(residual, scale * unit)
        record(f"pinv {name}", dtype, ratio, bar(min(size)))
        assert (ratio <= bar(min(size))).all(), (name, ratio, [items[i] for i in keep])


@pytest.mark.dtypes(*SINGLE)
def test_ranks_and_limits_are_those_of_numpy(device, dtype):
    values = torch.tensor([1.0, 0.5, 1e-3, 0.0], dtype=torch.float64)
    A = ((orthogonal(6, 4) * values) @ orthogonal(4, 4).mT).to(dtype).to(device).expand(3, 6, 4)
    for rcond, rank in ((None, 3), (1e-2, 2), (0.7, 1)):
        expected = np.linalg.pinv(exact(A, False), rcond if rcond else 1e-5)
        assert np.abs(exact(metalcore.pinv(A, rcond=rcond), False) - expected).max() < 1e7 * ROUNDOFF[dtype]
        found = metalcore.lstsq(A, torch.ones(3, 6, device=device, dtype=dtype), rcond=rcond)
        assert found.rank.dtype == torch.int64 and found.rank.tolist() == [rank] * 3
    each = metalcore.pinv(A, rcond=torch.tensor([1e-5, 1e-2, 0.7], device=device))
    for item, rcond in enumerate((1e-5, 1e-2, 0.7)):
        assert torch.allclose(each[item], metalcore.pinv(A[:1], rcond=rcond)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.dtypes(*SINGLE)
def test_solutions_satisfy_the_normal_equations(device, dtype, size):
    m, n = size
    items, A = families(m, n, dtype)
    keep = [i for i, name in enumerate(items) if not name.startswith(NO_GAP) and "near" not in name]
    A = A[keep].to(device)
    b = normal(len(keep), m, 2, device=device, dtype=dtype)
    found = metalcore.lstsq(A, b)
    a, x, rhs = exact(A, False), exact(found.solution, False), exact(b, False)
    residual = one_norm(np.swapaxes(a, -2, -1) @ (rhs - a @ x))
    unit = max(m, n) * one_norm(a) * (one_norm(a) * one_norm(x) + one_norm(rhs)) * ROUNDOFF[dtype]
    ratio = quotients(residual, unit)
    record("lstsq normal equations", dtype, ratio, bar(min(m, n)))
    assert (ratio <= bar(min(m, n))).all(), (ratio, [items[i] for i in keep])
    if m > n:
        expected = np.sqrt(np.square(rhs - a @ x).sum(-2))
        unit = max(m, n) * (one_norm(a) * one_norm(x) + one_norm(rhs)) * ROUNDOFF[dtype]
        assert (np.abs(np.sqrt(exact(found.residuals, False)) - expected) <= 2 * unit[:, None]).all()
    else:
        assert found.residuals.shape == (0,)


@pytest.mark.dtypes(*SINGLE)
@pytest.mark.parametrize("size", [(6, 3), (3, 6), (4, 4), (20, 17)], ids=str)
def test_deficient_items_among_regular_ones_have_their_rank_and_least_norm(device, dtype, size):
    A = normal(2, 3, *size, device=device, dtype=dtype)
    A[0, 1, :, -1] = A[0, 1, :, 0]
    A[0, 1, -1] = A[0, 1, 0]
    A[1, 0] = 0
    b = normal(2, 3, size[0], 2, device=device, dtype=dtype)
    found = metalcore.lstsq(A, b)
    for item in np.ndindex(2, 3):
        limit = max(size) * torch.finfo(dtype).eps
        x, _, rank, _ = np.linalg.lstsq(exact(A[item], False), exact(b[item], False), rcond=limit)
        assert int(found.rank[item]) == rank
        assert np.abs(exact(found.solution[item], False) - x).max() <= 1e4 * ROUNDOFF[dtype] * max(1, np.abs(x).max()) ** 2
    assert found.rank.flatten().tolist()[1:4] == [min(size) - 1, min(size), 0]


def test_shapes_of_vectors_matrices_and_batches_are_those_of_torch(device, dtype):
    for a, b, x in [
        ((5, 3), (5,), (3,)), ((5, 3), (5, 2), (3, 2)), ((2, 5, 3), (2, 5), (2, 3)), ((2, 5, 3), (5, 2), (2, 3, 2)),
        ((3, 5), (3,), (5,)), ((0, 4, 2), (0, 4), (0, 2)), ((2, 0, 3), (2, 0), (2, 3)), ((2, 3, 0), (2, 3, 1), (2, 0, 1)),
    ]:  # fmt: skip
        found = metalcore.lstsq(normal(*a, device=device, dtype=dtype), normal(*b, device=device, dtype=dtype))
        assert found.solution.shape == x and found.solution.dtype == dtype and found.rank.shape == x[: len(a) - 2]
        assert found.singular_values.shape == (0,) and isinstance(found, metalcore.Lstsq)
        assert metalcore.pinv(torch.zeros(a, device=device, dtype=dtype)).shape == (*a[:-2], a[-1], a[-2])


@pytest.mark.dtypes(*HALVES)
def test_half_pseudo_inverses_are_those_of_float32_rounded_once(device, dtype):
    A = normal(3, 6, 4, device=device, dtype=dtype)
    wide = metalcore.pinv(A.float(), rcond=6 * torch.finfo(dtype).eps)
    assert same_bits(metalcore.pinv(A), wide.to(dtype))


@pytest.mark.dtypes(*SINGLE)
def test_a_symmetric_matrix_is_read_from_its_lower_triangle(device, dtype):
    A = normal(3, 5, 5, device=device, dtype=dtype)
    symmetric = A.tril() + A.tril(-1).mT
    assert torch.allclose(metalcore.pinv(A, hermitian=True), metalcore.pinv(symmetric), atol=1e-5)


@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype):
    for shape in [(2, 4, 2), (2, 2, 4), (3, 3)]:
        A = normal(*shape, device=device, dtype=dtype).requires_grad_()
        b = normal(*shape[:-1], 2, device=device, dtype=dtype).requires_grad_()
        assert torch.autograd.gradcheck(metalcore.pinv, (A,))
        assert torch.autograd.gradgradcheck(metalcore.pinv, (A,))
        solve = lambda A, b: metalcore.lstsq(A, b).solution  # noqa: E731
        assert torch.autograd.gradcheck(solve, (A, b))
        assert torch.autograd.gradgradcheck(solve, (A, b))


def test_wrong_input_is_named(device):
    A = torch.ones(2, 3, 2, device=device)
    with pytest.raises(ValueError, match="lstsq: b: got"):
        metalcore.lstsq(A, torch.ones(2, 4, device=device))
    with pytest.raises(ValueError, match="pinv: A: got"):
        metalcore.pinv(A, hermitian=True)
    with pytest.raises(TypeError, match="pinv: rcond: got"):
        metalcore.pinv(A, rcond="1")
    with pytest.raises(ValueError, match="pinv: rcond: got"):
        metalcore.pinv(A, rcond=torch.ones(3, device=device))
    A[1, 0, 0] = float("nan")
    with pytest.raises(torch.linalg.LinAlgError, match="pinv: A: got batch item 1"):
        metalcore.pinv(A)
    with pytest.raises(torch.linalg.LinAlgError, match="lstsq: A: got batch item 1"):
        metalcore.lstsq(A, torch.ones(2, 3, device=device))
