"""solve, lu_factor, lu_solve, inv, det: accuracy, shapes, views, singular and non-finite input, errors, gradients."""

from __future__ import annotations

import math
import re

import metalcore
import metalcore_backend as mc
import numpy as np
import pytest
import torch
from support import (
    EMULATED,
    ERROR_TEXT,
    HALVES,
    ROUNDOFF,
    VIEWS,
    Unchanged,
    assert_fresh,
    exact,
    families,
    normal,
    one_norm,
    quotients,
    record,
    same_bits,
    views,
    with_condition,
)

SINGLE = (torch.float32, torch.float64)
SIZES = (1, 2, 7, 17, 33, 65) if EMULATED else (1, 2, 3, 5, 8, 16, 17, 32, 33, 48, 65)
MORE_SIZES = (3, 8, 15, 16, 31, 32, 48, 63, 64, 100, 127, 128, 129, 200)
BAR = 10.0


def solve_ratios(A, B, X):
    """|b - A x| / (|A| |x| u) of every column."""
    a, b, x = (exact(t, A.shape[-1] < 64) for t in (A, B, X))
    size = np.frexp(np.abs(a).max((-2, -1), keepdims=True, initial=0))[1]
    a, x = np.ldexp(a, -size), np.ldexp(x, size)
    unit = one_norm(a)[..., None] * np.abs(x).sum(-2) * ROUNDOFF[X.dtype]
    ratios = quotients(np.abs(b - a @ x).sum(-2), unit)
    record("solve residual", X.dtype, ratios, BAR)
    return ratios


def factor_ratios(A, LU, pivots):
    """|P A - L U| / (n ||L| |U|| u) of every item."""
    m, n = A.shape[-2:]
    k = min(m, n)
    a, lu = (exact(t, k < 64) for t in (A, LU))
    size = np.frexp(np.abs(a).max((-2, -1), keepdims=True, initial=0))[1]
    a = np.ldexp(a, -size)
    L = np.tril(lu[..., :k], -1) + np.eye(m, k)
    U = np.ldexp(np.triu(lu[..., :k, :]), -size)
    for item, swaps in zip(a.reshape(-1, m, n), pivots.cpu().reshape(-1, k).tolist()):
        for i, p in enumerate(swaps):
            item[[i, p - 1]] = item[[p - 1, i]]
    return quotients(one_norm(a - L @ U), k * one_norm(np.abs(L) @ np.abs(U)) * ROUNDOFF[LU.dtype])


def regular(n, dtype, device):
    """The families that are not singular and whose solutions are in the range of the dtype."""
    items, A = families(n, n, dtype)
    left_out = ("rank", "zero", "ones", "signs", "repeated", "triangular", "one entry", "near", "1/u", "Wilkinson", "graded")
    kept = [i for i, name in enumerate(items) if not any(word in name for word in left_out)]
    return A[kept].to(device)


@pytest.mark.parametrize("n", [*SIZES, *(pytest.param(n, marks=pytest.mark.nightly) for n in MORE_SIZES if n not in SIZES)])
@pytest.mark.dtypes(*SINGLE)
def test_solutions_of_every_family_are_within_the_bar(device, dtype, n):
    A = regular(n, dtype, device)
    for k in (1, 5) if EMULATED else (1, 8):
        B = normal(len(A), n, k, device=device, dtype=dtype)
        with Unchanged(A, B):
            X, info = metalcore.solve_ex(A, B)
        assert_fresh((X, info), (A, B))
        assert info.dtype == torch.int32 and not info.any()
        assert (solve_ratios(A, B, X) <= BAR).all(), (k, solve_ratios(A, B, X).max())
    left = metalcore.solve(A, B.mT, left=False)
    assert (solve_ratios(A.mT, B, left.mT) <= BAR).all()
    LU, pivots = metalcore.lu_factor(A)
    for adjoint in (False, True):
        X = metalcore.lu_solve(LU, pivots, B, adjoint=adjoint)
        assert (solve_ratios(A.mT if adjoint else A, B, X) <= BAR).all()
        X = metalcore.lu_solve(LU, pivots, B.mT, left=False, adjoint=adjoint).mT
        assert (solve_ratios(A if adjoint else A.mT, B, X) <= BAR).all()
    inverse = metalcore.inv(A)
    unit = n * one_norm(exact(A)) * one_norm(exact(inverse)) * ROUNDOFF[dtype]
    ratio = quotients(one_norm(np.eye(n) - exact(A) @ exact(inverse)), unit)
    record("inv residual", dtype, ratio, 3 if n < 16 else 1)
    assert (ratio <= (3 if n < 16 else 1)).all(), ratio


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (7, 3), (16, 16), (33, 20), (5, 140), (140, 5)], ids=str)
@pytest.mark.dtypes(*SINGLE)
def test_factors_of_every_family_are_within_the_bar(device, dtype, size):
    items, A = families(*size, dtype)
    A = A.to(device)
    LU, pivots, info = metalcore.lu_factor_ex(A)
    assert_fresh((LU, pivots, info), (A,))
    assert pivots.dtype == torch.int32 and pivots.shape == (len(items), min(size))
    ratio = factor_ratios(A, LU, pivots)
    keep = np.array(["underflow" not in name for name in items])
    record("lu_factor reconstruction", LU.dtype, ratio[keep], 3 if min(size) < 16 else 1)
    assert (ratio[keep] <= (3 if min(size) < 16 else 1)).all(), dict(zip(items, ratio))
    reference = torch.linalg.lu_factor_ex(A.cpu())
    assert torch.equal(info.cpu() == 0, LU.diagonal(dim1=-2, dim2=-1).cpu().ne(0).all(-1))
    assert torch.equal(pivots[0].cpu(), reference.pivots[0]), "the pivots of a Gaussian matrix"
    backend = mc.lu_batched(A)
    assert same_bits(backend[0], LU) and torch.equal(backend[1], pivots - 1)


@pytest.mark.parametrize("n", [3, 20, 40])
@pytest.mark.dtypes(*HALVES)
def test_half_types_are_rounded_once(device, dtype, n):
    A = torch.stack([with_condition(n, n, 10) for _ in range(3)]).to(dtype).to(device)
    b = normal(3, n, 2, device=device, dtype=dtype)
    assert same_bits(metalcore.solve(A, b), metalcore.solve(A.float(), b.float()).to(dtype))
    assert same_bits(metalcore.inv(A), metalcore.inv(A.float()).to(dtype))
    assert same_bits(metalcore.det(A), metalcore.det(A.float()).to(dtype))
    LU, pivots = metalcore.lu_factor(A[0])
    assert LU.dtype == dtype and pivots.dtype == torch.int32
    assert metalcore.lu_solve(LU, pivots, b[0]).dtype == dtype
    assert all(t.dtype == dtype for t in metalcore.slogdet(A))


@pytest.mark.parametrize(
    "a, b, x",
    [
        ((4, 4), (4,), (4,)),
        ((4, 4), (4, 3), (4, 3)),
        ((2, 4, 4), (2, 4), (2, 4)),
        ((2, 4, 4), (4,), (2, 4)),
        ((4, 4), (5, 4, 3), (5, 4, 3)),
        ((4, 4), (2, 0, 4, 3), (2, 0, 4, 3)),
        ((2, 1, 4, 4), (3, 4, 2), (2, 3, 4, 2)),
        ((3, 3, 3), (3, 3), (3, 3)),
        ((0, 4, 4), (0, 4, 2), (0, 4, 2)),
        ((2, 0, 0), (2, 0, 3), (2, 0, 3)),
        ((2, 3, 3), (2, 3, 0), (2, 3, 0)),
        ((0, 0), (0,), (0,)),
        ((1, 1), (1, 1), (1, 1)),
    ],
    ids=str,
)
def test_right_sides_are_vectors_or_matrices_as_in_torch(device, dtype, a, b, x):
    A = normal(*a, device=device, dtype=torch.float32)
    A = (A + 4 * torch.eye(a[-1], device=device)).to(dtype)
    rhs = normal(*b, device=device, dtype=dtype)
    X = metalcore.solve_ex(A, rhs).result
    assert X.shape == x and X.is_contiguous() and X.dtype == dtype
    expected = torch.linalg.solve(A.cpu().double(), rhs.cpu().double())
    assert expected.shape == x
    assert torch.allclose(X.cpu().double(), expected, atol=64 * ROUNDOFF[dtype], rtol=64 * ROUNDOFF[dtype])


@pytest.mark.parametrize("name", VIEWS)
def test_views_have_the_bits_of_their_copies(device, dtype, name):
    A, b = normal(3, 6, 6, device=device, dtype=dtype), normal(3, 6, 2, device=device, dtype=dtype)
    for i, view in views(name, A, b):
        pair = (view, b) if i == 0 else (A, view)
        copy = tuple(t.contiguous() for t in pair)
        assert same_bits(metalcore.solve(*pair), metalcore.solve(*copy))
        if i == 0:
            assert same_bits(metalcore.inv(view), metalcore.inv(copy[0]))
            assert same_bits(metalcore.lu_factor(view).LU, metalcore.lu_factor(copy[0]).LU)


@pytest.mark.parametrize("n", [3, 20, 40, 130])
@pytest.mark.dtypes(*SINGLE)
def test_singular_items_are_named_and_nothing_else_is_singular(device, dtype, n):
    A = torch.eye(n, dtype=dtype, device=device).repeat(4, 1, 1)
    A[1, 1, 1] = 0
    A[3, 0, 1] = math.nan
    b = torch.ones(4, n, 1, device=device, dtype=dtype)
    X, info = metalcore.solve_ex(A, b)
    assert info.tolist() == [0, 2, 0, 0]
    finite = X.isfinite().flatten(1).all(1).tolist()
    assert finite == [True, False, True, False]
    assert same_bits(metalcore.solve(A, b, fast=True), X)
    calls = {
        "solve": lambda: metalcore.solve(A, b),
        "solve_ex": lambda: metalcore.solve_ex(A, b, check_errors=True),
        "inv": lambda: metalcore.inv(A),
        "inv_ex": lambda: metalcore.inv_ex(A, check_errors=True),
        "lu_factor": lambda: metalcore.lu_factor(A),
        "lu_factor_ex": lambda: metalcore.lu_factor_ex(A, check_errors=True),
    }
    for op, call in calls.items():
        with pytest.raises(torch.linalg.LinAlgError, match=rf"^{op}: A: got batch item 1: .*pivot 2.*expected") as error:
            call()
        assert type(error.value) is torch.linalg.LinAlgError
    with pytest.raises(torch.linalg.LinAlgError, match="batch item 1"):
        mc.solve(A, b)
    assert metalcore.det(A).tolist()[:3] == [1, 0, 1]
    sign, logabs = metalcore.slogdet(A)
    assert sign.tolist()[:3] == [1, 0, 1] and logabs.tolist()[:3] == [0, -math.inf, 0]
    metalcore.solve(A * 2.0**-60, b, fast=True)
    assert metalcore.solve_ex(A[0] * 2.0**-60, b[0]).info == 0


@pytest.mark.dtypes(*SINGLE)
def test_determinants(device, dtype):
    for n in (0, 1, 2, 5, 20, 40):
        A = normal(3, n, n, device=device, dtype=dtype)
        wide = A.cpu().double()
        sign, logabs = metalcore.slogdet(A)
        want = torch.linalg.slogdet(wide)
        bound = 10 * n * ROUNDOFF[dtype] * torch.linalg.cond(wide, 1) if n else torch.zeros(3, dtype=torch.float64)
        bound = bound + 4 * ROUNDOFF[dtype] * want.logabsdet.abs()
        assert torch.equal(sign.cpu().double(), want.sign)
        assert ((logabs.cpu().double() - want.logabsdet).abs() <= bound).all()
        det = metalcore.det(A)
        assert ((det.cpu().double() / torch.linalg.det(wide) - 1).abs() <= bound + n * ROUNDOFF[dtype]).all()
    assert metalcore.det(torch.zeros(2, 0, 0, device=device, dtype=dtype)).tolist() == [1, 1]


@pytest.mark.dtypes(*SINGLE)
def test_a_power_of_two_and_a_permutation_of_items_change_no_other_bit(device, dtype):
    for n in (4, 30, 50):
        A, b = normal(5, n, n, device=device, dtype=dtype), normal(5, n, 3, device=device, dtype=dtype)
        X = metalcore.solve(A, b)
        for exponent in (-70, 40):
            assert same_bits(metalcore.solve(A * 2.0**exponent, b), X * 2.0**-exponent)
        order = torch.tensor([3, 0, 4, 1, 2], device=device)
        assert same_bits(metalcore.solve(A[order], b[order]), X[order])


@pytest.mark.dtypes(torch.float32)
def test_entries_near_the_ends_of_the_range_do_not_overflow(device, dtype):
    for scale in (1e30, 1e-30):
        A = (torch.stack([with_condition(20, 20, 100) for _ in range(3)]) * scale).to(dtype).to(device)
        b = (normal(3, 20, 2, device=device, dtype=torch.float32) * scale).to(dtype)
        X = metalcore.solve(A, b)
        assert (solve_ratios(A, b, X) <= BAR).all()


# --- gradients and transforms ----------------------------------------------------------------------


def well(*shape, dtype=torch.float64, device="cpu"):
    n = shape[-1]
    return (torch.randn(shape, dtype=torch.float64) + 3 * torch.eye(n, dtype=torch.float64)).to(dtype).to(device).requires_grad_()


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.dtypes(torch.float64)
def test_derivatives_of_solve_are_those_of_finite_differences(device, dtype, left):
    cases = [((3, 3), (3, 2)), ((2, 2, 2), (2, 1, 2, 1))] + ([((2, 2, 2), (2, 2)), ((3, 3), (3,))] if left else [])
    for a, b in cases:
        b = b if left else (*b[:-2], b[-1], b[-2])
        A, b = well(*a, device=device), torch.randn(b, dtype=dtype, device=device, requires_grad=True)
        call = lambda A, b: metalcore.solve_ex(A, b, left=left).result  # noqa: E731
        assert torch.autograd.gradcheck(call, (A, b))
        assert torch.autograd.gradgradcheck(call, (A, b))


@pytest.mark.dtypes(torch.float64)
def test_derivatives_of_inverses_and_determinants(device, dtype):
    A = well(3, 3, device=device)
    for call in (metalcore.inv, metalcore.det, metalcore.slogdet):
        assert torch.autograd.gradcheck(call, (A,))
        assert torch.autograd.gradgradcheck(call, (A,))


@pytest.mark.dtypes(*SINGLE)
def test_the_determinant_of_a_singular_matrix_has_the_gradient_of_its_cofactors(device, dtype):
    for n in (1, 2, 4, 5):
        A = normal(2, n, n, device=device, dtype=dtype)
        A[0, :, -1] = 0
        A[1, :, 0] = 0
        A.requires_grad_()
        (grad,) = torch.autograd.grad(metalcore.det(A).sum(), A)
        for item in range(2):
            wide = A[item].detach().cpu().double()
            for i in range(n):
                for j in range(n):
                    minor = wide[[r for r in range(n) if r != i]][:, [c for c in range(n) if c != j]]
                    want = (-1) ** (i + j) * torch.linalg.det(minor)
                    assert abs(grad[item, i, j].cpu().double() - want) <= 1e4 * ROUNDOFF[dtype] * (1 + abs(want))


@pytest.mark.parametrize("size", [(3, 3), (4, 2), (2, 4)], ids=str)
@pytest.mark.dtypes(torch.float64)
def test_derivatives_of_factors_and_of_solutions_by_them(device, dtype, size):
    A = torch.randn(*size, dtype=dtype, device=device, requires_grad=True)
    factor = lambda A: metalcore.lu_factor(A).LU  # noqa: E731
    assert torch.autograd.gradcheck(factor, (A,))
    assert torch.autograd.gradgradcheck(factor, (A,))
    if size[0] != size[1]:
        return
    LU, pivots = (t.detach() for t in metalcore.lu_factor(A[:2, :2]))
    LU.requires_grad_()
    for left in (True, False):
        for adjoint in (True, False):
            b = torch.randn(2, 2, dtype=dtype, device=device, requires_grad=True)
            call = lambda LU, b: metalcore.lu_solve(LU, pivots, b, left=left, adjoint=adjoint)  # noqa: B023, E731
            assert torch.autograd.gradcheck(call, (LU, b))
            assert torch.autograd.gradgradcheck(call, (LU, b))


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.dtypes(*SINGLE)
def test_gradients_are_those_of_torch(device, dtype, n):
    A, b = well(2, n, n, dtype=dtype, device=device), normal(2, n, 2, device=device, dtype=dtype).requires_grad_()
    A.data += n * torch.eye(n, dtype=dtype, device=device)
    wide = [t.detach().cpu().double().requires_grad_() for t in (A, b)]
    functions = [
        (metalcore.solve, torch.linalg.solve, 2),
        (metalcore.inv, torch.linalg.inv, 1),
        (lambda A: metalcore.slogdet(A)[1], lambda A: torch.linalg.slogdet(A)[1], 1),
    ]
    for ours, theirs, count in functions:
        got = torch.autograd.grad(ours(*(A, b)[:count]).square().sum(), (A, b)[:count])
        want = torch.autograd.grad(theirs(*wide[:count]).square().sum(), wide[:count])
        for g, w in zip(got, want):
            assert g.dtype == dtype and torch.allclose(
                g.cpu().double(), w, rtol=0, atol=float(w.abs().max()) * n * 32 * ROUNDOFF[dtype]
            )


@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (0, None), (None, 2)], ids=str)
@pytest.mark.dtypes(*SINGLE)
def test_vmap(device, dtype, in_dims):
    A, b = normal(3, 4, 4, device=device, dtype=dtype), normal(3, 4, 2, device=device, dtype=dtype)
    args = [x[0] if d is None else x.movedim(0, d) for x, d in zip((A, b), in_dims)]
    items = [[x if d is None else x.select(d, i) for x, d in zip(args, in_dims)] for i in range(3)]
    for call in (
        lambda A, b: metalcore.solve_ex(A, b).result,
        lambda A, b: metalcore.lu_solve(*metalcore.lu_factor_ex(A)[:2], b),
    ):
        got = torch.func.vmap(call, in_dims=in_dims)(*args)
        want = torch.stack([call(*item) for item in items])
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)
    got = torch.func.vmap(lambda A: metalcore.inv_ex(A).inverse)(A)
    assert same_bits(got, metalcore.inv(A))
    grad = torch.func.vmap(torch.func.grad(lambda A: metalcore.solve_ex(A, b[0]).result.sum()))(A)
    assert grad.shape == A.shape


@pytest.mark.dtypes(torch.float32)
def test_operators_pass_opcheck_and_compile(device, dtype):
    A, b = normal(2, 4, 4, device=device, dtype=dtype), normal(2, 4, 3, device=device, dtype=dtype)
    ops = torch.ops.metalcore
    LU, pivots, _ = ops.lu_factor_ex(A)
    for grad in (False, True):
        X, Y, Z = (t.detach().clone().requires_grad_(grad) for t in (A, b, LU))
        torch.library.opcheck(ops.solve_ex.default, (X, Y))
        torch.library.opcheck(ops.inv_ex.default, (X,))
        torch.library.opcheck(ops.lu_factor_ex.default, (X,))
        torch.library.opcheck(ops.lu_solve.default, (Z, pivots, Y))
    torch.library.opcheck(ops.solve_ex.default, (A, b, False))

    def program(A, b):
        return metalcore.solve(A, b), metalcore.inv_ex(A).inverse, metalcore.slogdet(A), metalcore.lu_factor_ex(A).LU

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    flat = lambda results: [t for r in results for t in (r if isinstance(r, tuple) else (r,))]  # noqa: E731
    for got, want in zip(flat(compiled(A, b)), flat(program(A, b))):
        assert torch.allclose(got, want, rtol=1e-5)
    X = A.clone().requires_grad_()
    torch.compile(lambda A, b: metalcore.solve(A, b), fullgraph=True, backend="aot_eager")(X, b).sum().backward()
    Y = A.clone().requires_grad_()
    metalcore.solve(Y, b).sum().backward()
    assert torch.allclose(X.grad, Y.grad, rtol=1e-4, atol=1e-4)


# --- errors ---------------------------------------------------------------------------------------


def _ones(*shape, dtype=torch.float32):
    return lambda d: torch.ones(shape, dtype=dtype, device=d)


ERRORS = [
    ("solve", (_ones(3), _ones(3)), ValueError, "A", r"\[3\]"),
    ("solve", (_ones(2, 3), _ones(2)), ValueError, "A", r"\[2, 3\]"),
    ("solve", (_ones(2, 2), _ones(3)), ValueError, "b", r"\[3\]"),
    ("solve", (_ones(2, 2, 2), _ones(3, 2, 2)), ValueError, "b", r"\[3, 2, 2\]"),
    ("solve", (_ones(2, 2), _ones(2, dtype=torch.float16)), TypeError, "b", "float16"),
    ("solve", (_ones(2, 2, dtype=torch.int64), _ones(2)), TypeError, "A", "int64"),
    ("solve", (_ones(2, 2, dtype=torch.complex64), _ones(2)), NotImplementedError, "A", "complex64"),
    ("solve", (lambda d: None, _ones(2)), TypeError, "A", "None"),
    ("solve", (_ones(2, 2), lambda d: 1.0), TypeError, "b", "float"),
    ("solve_ex", (_ones(2, 3), _ones(2)), ValueError, "A", r"\[2, 3\]"),
    ("inv", (_ones(2, 3),), ValueError, "A", r"\[2, 3\]"),
    ("inv_ex", (_ones(2),), ValueError, "A", r"\[2\]"),
    ("det", (_ones(2, 3),), ValueError, "A", r"\[2, 3\]"),
    ("slogdet", (_ones(2, 2, dtype=torch.bool),), TypeError, "A", "bool"),
    ("lu_factor", (_ones(2),), ValueError, "A", r"\[2\]"),
    ("lu_solve", (_ones(2, 2), _ones(2, dtype=torch.int64), _ones(2, 1)), TypeError, "pivots", "int64"),
    ("lu_solve", (_ones(2, 2), _ones(3, dtype=torch.int32), _ones(2, 1)), ValueError, "pivots", r"\[3\]"),
    ("lu_solve", (_ones(2, 2), _ones(2, dtype=torch.int32), _ones(3, 1)), ValueError, "B", ""),
    ("lu_solve", (_ones(2, 2), _ones(2, dtype=torch.int32), _ones(2)), ValueError, "B", r"\[2\]"),
]


@pytest.mark.parametrize("op, make, kind, argument, got", ERRORS, ids=[f"{e[0]} {e[3]} {e[4]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, op, make, kind, argument, got):
    with pytest.raises(kind) as error:
        getattr(metalcore, op)(*(m(device) for m in make))
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op=op, argument=argument), str(error.value)), str(error.value)
    assert re.search(got, str(error.value)), str(error.value)


def test_without_pivoting_is_not_built_and_the_backend_has_no_gradients(device):
    A = torch.eye(2, device=device)
    for call in (metalcore.lu_factor, metalcore.lu_factor_ex):
        with pytest.raises(NotImplementedError, match="pivot"):
            call(A, pivot=False)
    with pytest.raises(TypeError):
        metalcore.solve(A, A, True)
    with pytest.raises(RuntimeError, match="not differentiable"):
        mc.solve(A.requires_grad_(), A.detach())
    with pytest.raises(ValueError):
        metalcore.solve(A, torch.ones(2, device=device), left=False)
