"""trsm: every form, shapes, views, broadcasting, gradients, errors."""

from __future__ import annotations

import functools
import itertools

import metalcore
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
    normal,
    one_norm,
    quotients,
    record,
    same_bits,
    views,
)

SINGLE = (torch.float32, torch.float64)
FORMS = list(itertools.product((True, False), repeat=3))
SIZES = (1, 3, 17, 33, 70) if EMULATED else (1, 2, 3, 8, 16, 17, 33, 65, 129)


def triangle(*shape, device, dtype):
    """Well conditioned, whichever triangle is meant and whatever its diagonal counts as."""
    n = shape[-1]
    A = torch.randn(*shape, n, dtype=torch.float64) / n + torch.diag_embed(1 + torch.rand(shape, dtype=torch.float64))
    return A.to(dtype).to(device)


def solved(form, A, b):
    return metalcore.trsm(A, b, *form)


def system(A, lower, transpose, unit):
    """op(A) as it is meant."""
    a = exact(A, A.shape[-1] < 64)
    a = np.tril(a) if lower else np.triu(a)
    if unit:
        n = a.shape[-1]
        a = a * (1 - np.eye(n)) + np.eye(n)
    return np.swapaxes(a, -1, -2) if transpose else a


def assert_solved(A, b, X, form, is_vector=False):
    a, B, x = system(A, *form), exact(b), exact(X)
    if is_vector:
        B, x = B[..., None], x[..., None]
    error = np.abs(B - a @ x).sum(-2)
    ratio = quotients(error, one_norm(a)[..., None] * np.abs(x).sum(-2) * ROUNDOFF[X.dtype])
    record("trsm residual", X.dtype, ratio, 10)
    assert (ratio <= 10).all(), (A.shape, b.shape, form, ratio.max())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.dtypes(*SINGLE)
def test_every_form_is_within_the_bar(device, dtype, n):
    for form, (batch, columns) in itertools.product(FORMS, [((), 3), ((5,), 1), ((5,), 9)]):
        A = triangle(*batch, n, device=device, dtype=dtype)
        b = normal(*batch, n, columns, device=device, dtype=dtype)
        X = metalcore.trsm(A, b, *form)
        assert_fresh((X,), (A, b))
        assert_solved(A, b, X, form)


@pytest.mark.nightly
@pytest.mark.dtypes(*SINGLE)
def test_every_size_is_within_the_bar(device, dtype):
    for n, form in itertools.product([*range(1, 131), 255, 256, 257, 511, 512, 513], FORMS):
        for batch, columns in [((1,), 1), ((7,), 8), ((3,), 40)]:
            A = triangle(*batch, n, device=device, dtype=dtype)
            b = normal(*batch, n, columns, device=device, dtype=dtype)
            assert_solved(A, b, metalcore.trsm(A, b, *form), form)


def test_vectors_and_batches_broadcast_as_the_contract_says(device, dtype):
    form = (True, True, False)
    for a, b, x, is_vector in [
        ((3, 3), (3,), (3,), True),
        ((2, 3, 3), (3,), (2, 3), True),
        ((2, 3, 3), (2, 3), (2, 3), True),
        ((4, 3, 3), (3, 2), (4, 3, 2), False),
        ((3, 3), (4, 3, 2), (4, 3, 2), False),
        ((2, 1, 3, 3), (5, 3, 2), (2, 5, 3, 2), False),
        ((0, 3, 3), (3, 2), (0, 3, 2), False),
        ((2, 0, 0), (2, 0, 4), (2, 0, 4), False),
        ((2, 3, 3), (2, 3, 0), (2, 3, 0), False),
    ]:
        A, B = triangle(*a[:-1], device=device, dtype=dtype), normal(*b, device=device, dtype=dtype)
        X = metalcore.trsm(A, B, *form)
        assert X.shape == x and X.dtype == dtype and X.is_contiguous()
        if dtype in SINGLE:
            assert_solved(A, B, X, form, is_vector)


def test_arguments_have_names_and_trsm_batched_is_trsm(device):
    assert metalcore.trsm_batched is metalcore.trsm
    A, b = triangle(3, 5, device=device, dtype=torch.float32), normal(3, 5, 2, device=device, dtype=torch.float32)
    got = metalcore.trsm(A=A, b=b, lower=False, transpose=True, unit_diagonal=True)
    assert same_bits(got, metalcore.trsm(A, b, False, True, True))


@pytest.mark.dtypes(*HALVES)
def test_half_results_are_those_of_float32_rounded_once(device, dtype):
    for n, form in itertools.product((1, 5, 33), FORMS):
        A, b = triangle(2, n, device=device, dtype=dtype), normal(2, n, 3, device=device, dtype=dtype)
        assert same_bits(metalcore.trsm(A, b, *form), metalcore.trsm(A.float(), b.float(), *form).to(dtype))


@pytest.mark.parametrize("layout", VIEWS)
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, layout):
    for n, form in itertools.product((1, 5, 33, 70), FORMS[::3]):
        A, b = triangle(4, n, device=device, dtype=dtype), normal(4, n, 3, device=device, dtype=dtype)
        ((_, a_view),) = views(layout, A)
        ((_, b_view),) = views(layout, b)
        with Unchanged(a_view, b_view):
            X = metalcore.trsm(a_view, b_view, *form)
        assert_fresh((X,), (a_view, b_view))
        assert same_bits(X, metalcore.trsm(A, b, *form))


def test_nothing_but_the_triangle_is_looked_at_and_items_do_not_touch_each_other(device, dtype):
    nan = float("nan")
    for n, (lower, transpose, unit) in itertools.product((1, 5, 33, 70), FORMS):
        A, b = triangle(5, n, device=device, dtype=dtype), normal(5, n, 3, device=device, dtype=dtype)
        X = metalcore.trsm(A, b, lower, transpose, unit)
        outside = torch.ones(n, n, device=device).triu(0 if unit else 1)
        outside = (outside if lower else outside.mT).bool()
        assert same_bits(metalcore.trsm(A.masked_fill(outside, nan), b, lower, transpose, unit), X)
        if not unit:
            A[1, n // 2, n // 2] = 0
        b[3, 0] = nan
        spoiled = metalcore.trsm(A, b, lower, transpose, unit)
        good = [0, 2, 4]
        assert same_bits(spoiled[good], X[good]) and spoiled[3].isnan().any()
        assert unit or not spoiled[1].isfinite().all()


@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype):
    broadcast = [((2, 1, 2, 2), (3, 2, 1)), ((2, 2, 2), (2, 2))]
    for form, (a, b) in [*itertools.product(FORMS, [((3, 3), (3, 1))]), *zip(FORMS[::3], broadcast)]:
        A = triangle(*a[:-1], device=device, dtype=dtype).requires_grad_()
        B = normal(*b, device=device, dtype=dtype).requires_grad_()
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(functools.partial(solved, form), (A, B))


@pytest.mark.dtypes(torch.float32)
def test_a_gradient_is_zero_outside_the_triangle_and_agrees_with_compiled_and_mapped_code(device, dtype):
    for form in FORMS[::3]:
        lower, _, unit = form
        A, b = triangle(3, 6, device=device, dtype=dtype), normal(3, 6, 2, device=device, dtype=dtype)
        call = functools.partial(solved, form)
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        grads = []
        for function in (call, compiled):
            inputs = A.clone().requires_grad_(), b.clone().requires_grad_()
            function(*inputs).square().sum().backward()
            grads.append([x.grad for x in inputs])
        assert all(torch.allclose(x, y) for x, y in zip(*grads))
        edge = int(unit)
        assert torch.equal(grads[0][0], grads[0][0].tril(-edge) if lower else grads[0][0].triu(edge))
        assert torch.allclose(torch.vmap(call)(A, b), call(A, b))
        mapped = torch.vmap(call, in_dims=(None, 0))(A[0], b)
        assert torch.allclose(mapped, call(A[:1].expand(3, 6, 6), b))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.metalcore.trsm.default, (A.requires_grad_(), b.requires_grad_()), test_utils=checks)


def test_wrong_calls_name_the_argument(device):
    A, b = torch.eye(3, device=device).expand(2, 3, 3), torch.ones(2, 3, 1, device=device)
    for args, kind, argument in [
        ((torch.ones(3, device=device), b), ValueError, "A"),
        ((torch.ones(2, 3, device=device), b), ValueError, "A"),
        ((A, torch.ones(4, 1, device=device)), ValueError, "b"),
        ((A, torch.ones(3, 3, 1, device=device)), ValueError, "b"),
        ((A, b.half()), TypeError, "b"),
        ((A.int(), b.int()), TypeError, "A"),
        ((A + 0j, b), NotImplementedError, "A"),
        ((A, None), TypeError, "b"),
    ]:
        with pytest.raises(kind, match=ERROR_TEXT.format(op="trsm", argument=argument)):
            metalcore.trsm(*args)
