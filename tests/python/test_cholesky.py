"""cholesky, cholesky_ex, cholesky_solve: accuracy, shapes, views, laws, gradients, errors."""

from __future__ import annotations

import re

import metalcore
import numpy as np
import pytest
import torch
from support import (
    EMULATED,
    ERROR_TEXT,
    HALVES,
    ROUNDOFF,
    TRIANGULAR_SOLVE_BAR,
    VIEWS,
    Unchanged,
    assert_fresh,
    exact,
    normal,
    one_norm,
    quotients,
    record,
    same_bits,
    views,
    with_condition,
)

SINGLE = (torch.float32, torch.float64)
SIZES = (1, 3, 16, 17, 33, 64, 70) if EMULATED else (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 65, 130)
FEW_SIZES = (1, 3, 20, 70) if EMULATED else (1, 3, 16, 20, 40, 70, 130)


def definite(*shape, device, dtype):
    """Symmetric positive definite matrices of condition about 10."""
    G = torch.randn(*shape, shape[-1], dtype=torch.float64)
    A = G @ G.mT / shape[-1] + torch.eye(shape[-1])
    return ((A + A.mT) / 2).to(dtype).to(device)


def families(n):
    """Matrices that stay positive definite when they are rounded to float32."""
    well = definite(n, device="cpu", dtype=torch.float64)
    grade = torch.logspace(0, 4, n, dtype=torch.float64)
    thin = torch.randn(n, (n + 1) // 2, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    made = {
        "well conditioned": well,
        "rank n/2 and a little": thin @ thin.mT + 1e-3 * n * torch.eye(n),
        "condition 1e4": Q @ torch.diag(torch.logspace(0, -4, n, dtype=torch.float64)) @ Q.mT,
        "graded": well * grade * grade[:, None],
        "graded down": well / grade / grade[:, None],
        "scaled 1e30": 1e30 * well,
        "scaled 1e-30": 1e-30 * well,
        "identity": torch.eye(n, dtype=torch.float64),
    }
    return list(made), torch.stack([(A + A.mT) / 2 for A in made.values()])


def ratios(A, L, upper=False):
    """|A - L L'| / (n |A| u) of every item."""
    n = A.shape[-1]
    a, f = exact(A, n < 64), exact(L, n < 64)
    a = np.triu(a) + np.swapaxes(np.triu(a, 1), -1, -2) if upper else np.tril(a) + np.swapaxes(np.tril(a, -1), -1, -2)
    product = np.swapaxes(f, -1, -2) @ f if upper else f @ np.swapaxes(f, -1, -2)
    return quotients(one_norm(a - product), n * one_norm(a) * ROUNDOFF[A.dtype])


def assert_cholesky(A, L, upper=False, items=None):
    n = A.shape[-1]
    assert L.dtype == A.dtype and L.shape == A.shape and L.is_contiguous()
    assert torch.equal(L, L.triu() if upper else L.tril())
    found = ratios(A, L, upper)
    record("cholesky reconstruction", A.dtype, found, 3 if n < 16 else 1)
    assert (found <= (3 if n < 16 else 1)).all(), (n, items, found)
    if A.dtype in SINGLE and n >= 16:
        assert (found * n**0.5 <= 2).all(), (n, items, found)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.dtypes(*SINGLE)
def test_every_family_is_within_the_bars_in_a_batch_and_alone(device, dtype, n, upper):
    items, A = families(n)
    A = A.to(dtype).to(device)
    L, info = metalcore.cholesky_ex(A, upper=upper)
    assert info.dtype == torch.int32 and info.device == A.device and not info.any()
    assert_cholesky(A, L, upper, items)
    assert_cholesky(A[0], metalcore.cholesky(A[0], upper=upper), upper)


@pytest.mark.nightly
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.dtypes(*SINGLE)
def test_every_size_is_within_the_bars(device, dtype, upper):
    for n in [*range(1, 140), 255, 256, 257, 400, 511, 512, 513]:
        items, A = families(n)
        A = A.to(dtype).to(device)
        assert_cholesky(A, metalcore.cholesky(A, upper=upper), upper, items)


@pytest.mark.dtypes(*HALVES)
def test_half_results_are_those_of_float32_rounded_once(device, dtype):
    for n in FEW_SIZES:
        A = definite(3, n, device=device, dtype=dtype)
        L = metalcore.cholesky(A)
        assert same_bits(L, metalcore.cholesky(A.float()).to(dtype))
        assert (ratios(A, L) <= (3 if n < 16 else 1)).all()
        b = normal(3, n, 2, device=device, dtype=dtype)
        assert same_bits(metalcore.cholesky_solve(b, L), metalcore.cholesky_solve(b.float(), L.float()).to(dtype))


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("n", [0, 3, 20])
def test_every_batch_shape_has_the_shapes_of_torch(device, dtype, batch, n):
    A = definite(*batch, n, device=device, dtype=dtype)
    result = metalcore.cholesky_ex(A)
    assert isinstance(result, metalcore.CholeskyEx) and result._fields == ("L", "info")
    assert result.L.shape == (*batch, n, n) and result.info.shape == batch and not result.info.any()
    assert_fresh(result, (A,))
    assert same_bits(metalcore.cholesky(A), result.L)


@pytest.mark.parametrize("layout", VIEWS)
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, layout):
    for n in FEW_SIZES:
        A = definite(4, n, device=device, dtype=dtype)
        ((_, view),) = views(layout, A)
        with Unchanged(view):
            L = metalcore.cholesky(view)
        assert_fresh((L,), (view,))
        assert same_bits(L, metalcore.cholesky(A))


def test_only_one_triangle_is_looked_at(device, dtype):
    for n in FEW_SIZES:
        A = definite(3, n, device=device, dtype=dtype)
        nan = torch.full_like(A, float("nan"))
        for upper in (False, True):
            half = A.triu() + nan.tril(-1) if upper else A.tril() + nan.triu(1)
            L = metalcore.cholesky(A, upper=upper)
            assert same_bits(metalcore.cholesky(half, upper=upper), L)
            garbage = L + (nan.tril(-1) if upper else nan.triu(1))
            b = normal(3, n, 2, device=device, dtype=dtype)
            solved = metalcore.cholesky_solve(b, L, upper=upper)
            assert same_bits(metalcore.cholesky_solve(b, garbage, upper=upper), solved)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.dtypes(*SINGLE)
def test_a_bad_minor_is_named_by_item_and_order(device, dtype, upper):
    for n in FEW_SIZES:
        A = definite(2, 3, n, device=device, dtype=dtype)
        A[1, 0, n - 1, n - 1] = -1
        A[1, 2, n // 2, n // 2] = float("nan")
        L, info = metalcore.cholesky_ex(A, upper=upper)
        assert info.tolist() == [[0, 0, 0], [n, 0, n // 2 + 1]]
        good = torch.where(info.bool()[..., None, None], definite(n, device=device, dtype=dtype), A)
        assert same_bits(L[0], metalcore.cholesky(good, upper=upper)[0])
        for call in (metalcore.cholesky, lambda A, upper: metalcore.cholesky_ex(A, upper=upper, check_errors=True)):
            with pytest.raises(torch.linalg.LinAlgError, match=rf"cholesky.*\(1, 0\).*order {n} ") as error:
                call(A, upper=upper)
            assert re.search(r"cholesky(_ex)?: A: got .*, expected ", str(error.value))
            call(good, upper=upper)


def test_permuting_the_batch_permutes_the_factors(device, dtype):
    for n in FEW_SIZES:
        A = definite(13, n, device=device, dtype=dtype)
        order = torch.randperm(13, device="cpu").to(device)
        assert same_bits(metalcore.cholesky(A[order]), metalcore.cholesky(A)[order])


@pytest.mark.parametrize("n", FEW_SIZES)
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.dtypes(*SINGLE)
def test_solutions_are_within_the_bar(device, dtype, n, upper):
    A = definite(5, n, device=device, dtype=dtype)
    L = metalcore.cholesky(A, upper=upper)
    l = exact(L, n < 64)
    product = np.swapaxes(l, -1, -2) @ l if upper else l @ np.swapaxes(l, -1, -2)
    for shape in [(5, n, 1), (5, n, 9), (n, 2), (2, 1, n, 3), (n,), (5, n)]:
        b = normal(*shape, device=device, dtype=dtype)
        X = metalcore.cholesky_solve(b, L, upper=upper)
        is_vector = shape in [(n,), (5, n)]
        B, x = (t[..., None] if is_vector else t for t in (exact(b), exact(X)))
        assert X.shape == (np.broadcast_shapes(B.shape[:-2], (5,)) + b.shape[-2:] if not is_vector else (5, n))
        error = np.abs(B - product @ x).sum(-2)
        unit = one_norm(product)[..., None] * np.abs(x).sum(-2) * ROUNDOFF[dtype]
        assert (quotients(error, unit) <= 10).all(), shape


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("n", [1, 5, 20, 70])
@pytest.mark.dtypes(*SINGLE)
def test_gradients_are_those_of_torch(device, dtype, n, upper):
    A = torch.stack([with_condition(n, n, 3) for _ in range(2)])
    A = (A @ A.mT).to(dtype).to(device).requires_grad_()
    reference = A.detach().cpu().double().requires_grad_()
    w = torch.randn(2, n, n, dtype=torch.float64)
    (got,) = torch.autograd.grad((metalcore.cholesky(A, upper=upper) * w.to(A)).sum(), A)
    (want,) = torch.autograd.grad((torch.linalg.cholesky(reference, upper=upper) * w).sum(), reference)
    assert torch.equal(got, got.mT) or (got - got.mT).abs().max() <= 100 * ROUNDOFF[dtype] * got.abs().max()
    # Two triangular solves with L of condition 3.
    unit = n * ROUNDOFF[dtype] * 9 * one_norm(want.numpy())
    assert (quotients(one_norm(exact(got, False) - want.numpy()), unit) <= TRIANGULAR_SOLVE_BAR).all()


@pytest.mark.parametrize("batch, n", [((), 4), ((2, 1), 3), ((2,), 1), ((0,), 2)], ids=str)
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, batch, n, upper):
    A = definite(*batch, n, device=device, dtype=dtype).requires_grad_()
    b = normal(*batch, n, 2, device=device, dtype=dtype).requires_grad_()

    def factor(A):
        return metalcore.cholesky((A + A.mT) / 2, upper=upper)

    def solved(A, b):
        return metalcore.cholesky_solve(b, A, upper=upper)

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(factor, (A,))
        assert check(solved, (metalcore.cholesky(A.detach(), upper=upper).requires_grad_(), b))


@pytest.mark.dtypes(torch.float32)
def test_compiled_mapped_and_checked_operators_agree(device, dtype):
    A = definite(4, 6, device=device, dtype=dtype)
    b = normal(4, 6, 2, device=device, dtype=dtype)

    def both(A, b):
        L = metalcore.cholesky(A)
        return L, metalcore.cholesky_solve(b, L)

    want = both(A, b)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for got in (compiled(A, b), torch.vmap(both)(A, b)):
        assert all(same_bits(*pair) for pair in zip(got, want))
    for got, exp in zip(torch.vmap(both, in_dims=(None, 0))(A[0], b), both(A[:1].expand(4, 6, 6), b)):
        assert torch.allclose(got, exp)  # one matrix and four may go different ways
    with pytest.raises(torch.linalg.LinAlgError):
        compiled(-A, b)
    X = A.clone().requires_grad_()
    compiled(X, b)[1].sum().backward()
    Y = A.clone().requires_grad_()
    both(Y, b)[1].sum().backward()
    assert torch.allclose(X.grad, Y.grad)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.metalcore.cholesky.default, (A.requires_grad_(),), test_utils=checks)


ERRORS = [
    (lambda d: torch.ones(3, device=d), ValueError, r"shape \[3\]"),
    (lambda d: torch.ones(2, 3, device=d), ValueError, r"shape \[2, 3\]"),
    (lambda d: torch.ones(2, 3, device=d, dtype=torch.float16), ValueError, r"shape \[2, 3\]"),
    (lambda d: torch.ones(2, 2, device=d, dtype=torch.int64), TypeError, "int64"),
    (lambda d: torch.ones(2, 2, device=d, dtype=torch.complex64), NotImplementedError, "complex64"),
    (lambda d: None, TypeError, "None"),
]


@pytest.mark.parametrize("make, kind, got", ERRORS, ids=[e[2] for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, make, kind, got):
    good = torch.ones(2, 1, device=device)
    for op, argument, call in (
        ("cholesky", "A", metalcore.cholesky),
        ("cholesky_ex", "A", metalcore.cholesky_ex),
        ("cholesky_solve", "L", lambda L: metalcore.cholesky_solve(good, L)),
    ):
        with pytest.raises(kind, match=ERROR_TEXT.format(op=op, argument=argument)) as error:
            call(make(device))
        assert type(error.value) is kind and re.search(got, str(error.value))


def test_right_sides_that_do_not_fit_are_named(device):
    L = torch.eye(3, device=device).expand(2, 3, 3)
    for b, kind in [
        (torch.ones(4, device=device), ValueError),
        (torch.ones(3, 2, 2, device=device), ValueError),
        (torch.ones(5, 3, 2, device=device), ValueError),
        (torch.ones(2, 3, 1, device=device, dtype=torch.float16), TypeError),
        (1.0, TypeError),
    ]:
        with pytest.raises(kind, match=ERROR_TEXT.format(op="cholesky_solve", argument="b")):
            metalcore.cholesky_solve(b, L)
