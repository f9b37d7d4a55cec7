"""eigh and eigvalsh: accuracy over matrices that break algorithms, signs, triangles, laws, gradients, transforms, errors."""

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
    Unchanged,
    assert_fresh,
    exact,
    families,
    normal,
    one_norm,
    orthogonal,
    quotients,
    record,
    same_bits,
    views,
)

SINGLE = (torch.float32, torch.float64)
# On both sides of the thresholds of the plans.
SIZES = (1, 2, 3, 5, 16, 17, 33) if EMULATED else (1, 2, 3, 4, 7, 15, 16, 17, 31, 33, 64, 65, 97)
# Upper ends of the classes of n, and the bars of reconstruction, orthogonality and values (CONTRACT 3.2).
BARS = ((15, 15, 15, 7), (63, 5, 7, 2), (1023, 2.5, 3, 1), (math.inf, 1, 1.5, 1))


def mirrored(A):
    """Symmetric, with A's lower triangle."""
    return A.tril() + A.tril(-1).mT


def symmetric_families(n, dtype):
    """Names and symmetric matrices: those of qr, and spectra that mix +-lambda, repeat, or cluster."""
    items, A = families(n, n, torch.float64 if dtype == torch.float64 else torch.float32)
    keep = [i for i, name in enumerate(items) if dtype not in HALVES or name not in ("scaled up", "scaled down", "near overflow")]
    items, A = [items[i] for i in keep], mirrored(A[keep].double())
    U = orthogonal(n, n)
    signs = torch.tensor([(-1.0) ** i for i in range(n)], dtype=torch.float64)
    pairs = signs * (1 + torch.arange(n, dtype=torch.float64) // 2)
    clustered = 1 + 1e-7 * torch.arange(n, dtype=torch.float64)
    more = {
        "reflection": signs,
        "pairs": pairs,
        "clustered": clustered,
        "indefinite, condition 1e6": signs * torch.logspace(0, -6, n, dtype=torch.float64),
    }
    if n > 32:
        del more["clustered"]  # which is beyond the bars by implicit QL, LAPACK's too
    exchange = torch.eye(n, dtype=torch.float64).flip(0)
    found = [(U * values) @ U.mT for values in more.values()] + [exchange]
    A = torch.cat([A, mirrored(torch.stack(found))])
    if dtype == torch.float16:
        A = A.clamp(-6e4, 6e4)
    return [*items, *more, "exchange"], A.to(dtype)


def assert_eigh(A, L, Q, items=None):
    """Order, signs, and every ratio of every item within its bar."""
    n, u = A.shape[-1], ROUNDOFF[A.dtype]
    assert L.shape == A.shape[:-1] and Q.shape == A.shape and L.dtype == Q.dtype == A.dtype
    if A.numel() == 0:
        return
    assert bool((L[..., 1:] >= L[..., :-1]).all())
    largest = Q.gather(-2, Q.abs().argmax(-2, keepdim=True))
    assert bool((largest >= 0).all())
    a, l, q = (exact(t, n < 64) for t in (mirrored(A), L, Q))
    size = np.frexp(np.abs(a).max((-2, -1), keepdims=True))[1]
    a, l = np.ldexp(a, -size), np.ldexp(l, -size[..., 0])
    product = (q * l[..., None, :]) @ np.swapaxes(q, -2, -1)
    reconstruction = quotients(one_norm(a - product), n * u * one_norm(a))
    orthogonality = quotients(one_norm(np.eye(n) - np.swapaxes(q, -2, -1) @ q), np.asarray(n * u))
    wanted = np.linalg.eigvalsh(a.astype(np.float64))
    values = quotients(np.abs(l - wanted).max(-1), n * u * np.abs(wanted).max(-1))
    bars = next(row[1:] for row in BARS if n <= row[0])
    if A.dtype in HALVES:
        bars = (3, 3, 3) if n < 16 else (1, 1, 1)
    gates = [("reconstruction", reconstruction, bars[0]), ("orthogonality", orthogonality, bars[1])]
    if A.dtype != torch.float64:  # the reference is no better than the result
        gates.append(("values", values, bars[2]))
    if n >= 16 and A.dtype not in HALVES:
        gates.append(("reconstruction, sqrt(n) u", reconstruction * math.sqrt(n), 20))
        gates.append(("orthogonality, sqrt(n) u", orthogonality * math.sqrt(n), 60))
    for name, ratios, bar in gates:
        record(f"eigh {name}", A.dtype, ratios, bar)
        bad = np.flatnonzero(~(np.atleast_1d(ratios) <= bar))
        where = [items[i] if items else int(i) for i in bad]
        assert not bad.size, f"n = {n}, {A.dtype}: {name} {np.atleast_1d(ratios).reshape(-1)[bad]} over {bar} in {where}"


def strategies(device):
    return ("auto", "tridiag", "lapack") if device.type == "cpu" and not EMULATED else ("auto", "jacobi", "tridiag")


@pytest.mark.parametrize("n", SIZES)
def test_every_family_is_within_the_bars(device, dtype, n):
    if dtype in HALVES and n not in (1, 3, 17, 33, 64):
        return
    items, A = symmetric_families(n, dtype)
    A = A.to(device)
    L, Q = metalcore.eigh(A)
    assert_eigh(A, L, Q, items)
    values = metalcore.eigvalsh(A)
    bound = 2 * (7 if n < 16 else 2) * n * ROUNDOFF[dtype] * exact(L).__abs__().max(-1, keepdims=True)
    assert (np.abs(exact(values) - exact(L)) <= bound).all()


@pytest.mark.parametrize("n", (2, 5, 24) if EMULATED else (1, 2, 3, 8, 33, 64, 100))
@pytest.mark.dtypes(*SINGLE)
def test_every_strategy_is_within_the_bars(device, dtype, n):
    items, A = symmetric_families(n, dtype)
    A = A.to(device)
    for strategy in strategies(device):
        assert_eigh(A, *metalcore.eigh(A, strategy), items)


@pytest.mark.dtypes(*SINGLE)
@pytest.mark.parametrize("n", [128] if EMULATED else [128, 512])
def test_matrices_that_fill_a_kernels_room_are_within_the_bars(device, dtype, n):
    A = mirrored(torch.randn(1 if EMULATED else 20, n, n, dtype=torch.float64)).to(dtype).to(device)
    assert_eigh(A, *metalcore.eigh(A))


@pytest.mark.nightly
@pytest.mark.dtypes(*SINGLE)
@pytest.mark.parametrize("n", [*range(5, 64), 96, 129, 200, 256, 257, 384, 511, 512, 513, 600])
def test_every_size_is_within_the_bars(device, dtype, n):
    if EMULATED and n > 260:
        return
    items, A = symmetric_families(n, dtype)
    for strategy in strategies(device):
        # LAPACK's own reconstruction of a cluster is at times beyond the bar of sqrt(n) u.
        keep = [i for i, name in enumerate(items) if strategy != "lapack" or name != "clustered"]
        if strategy != "tridiag" or n <= 512:
            assert_eigh(A[keep].to(device), *metalcore.eigh(A[keep].to(device), strategy), [items[i] for i in keep])


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("n", [0, 1, 4, 20])
def test_every_batch_shape(device, dtype, batch, n):
    A = normal(*batch, n, n, device=device, dtype=dtype)
    with Unchanged(A):
        result = metalcore.eigh(A)
        values = metalcore.eigvalsh(A)
    assert values.shape == A.shape[:-1]
    assert_eigh(A, *result)
    assert_fresh((*result, values), (A,))


def test_the_result_is_a_named_tuple_with_the_names_of_torch(device):
    A = normal(3, 4, 4, device=device, dtype=torch.float32)
    result = metalcore.eigh(A)
    L, Q = result
    assert result._fields == ("L", "Q") and result.L is L and result.Q is Q
    assert result.eigenvalues is L and result.eigenvectors is Q


@pytest.mark.dtypes(*SINGLE)
def test_only_the_named_triangle_is_read(device, dtype):
    for n in (1, 2, 7, 20) if EMULATED else (1, 2, 7, 20, 65):
        A = normal(3, n, n, device=device, dtype=dtype)
        nan = torch.full_like(A, math.nan)
        lower = torch.where(torch.ones_like(A, dtype=torch.bool).tril(), A, nan)
        upper = lower.mT.contiguous()
        for strategy in strategies(device):
            results = [metalcore.eigh(lower, strategy, "L"), metalcore.eigh(upper, strategy, "U")]
            results += [metalcore.eigh(upper, strategy, "u"), metalcore.eigh(lower, strategy, "l")]
            for result in results:
                assert all(same_bits(got, want) for got, want in zip(result, results[0])), (n, strategy)
            assert_eigh(A, *results[0])


@pytest.mark.parametrize("layout", ["transposed", "padded", "batch innermost", "offset by one element", "lazily negated"])
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, layout):
    for n in (3, 16, 33):
        A = normal(4, n, n, device=device, dtype=dtype)
        ((_, view),) = views(layout, A)
        for got, want in zip(metalcore.eigh(view), metalcore.eigh(A)):
            assert same_bits(got, want)


def test_half_results_are_those_of_float32_rounded_once(device):
    for dtype in HALVES:
        A = normal(5, 9, 9, device=device, dtype=dtype)
        L, Q = metalcore.eigh(A)
        wide = metalcore.eigh(A.float())
        assert same_bits(L, wide.L.to(dtype)) and torch.equal(Q.abs(), wide.Q.to(dtype).abs())


@pytest.mark.dtypes(*SINGLE)
def test_permuting_the_batch_permutes_the_results_and_twice_is_the_same(device, dtype):
    for n in (3, 16, 33):
        A = normal(21, n, n, device=device, dtype=dtype)
        order = torch.randperm(21, device="cpu").to(device)
        for got, again, want in zip(metalcore.eigh(A[order]), metalcore.eigh(A[order]), metalcore.eigh(A)):
            assert same_bits(got, want[order]) and same_bits(got, again)


@pytest.mark.dtypes(*SINGLE)
def test_a_power_of_two_scales_the_values_exactly_and_leaves_the_vectors(device, dtype):
    exponents = [-900, -3, 5, 900] if dtype == torch.float64 else [-90, -3, 5, 90]
    for n in (2, 9, 20):
        A = normal(4, n, n, device=device, dtype=dtype)
        L, Q = metalcore.eigh(A)
        for exponent in exponents:
            scaled = metalcore.eigh(A * 2.0**exponent)
            assert same_bits(scaled.Q, Q) and same_bits(scaled.L, L * 2.0**exponent)


# --- derivatives and transforms -------------------------------------------------------------------


def by_symmetric(function):
    return lambda A: function(A + A.mT)


@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype):
    for shape in [(4, 4), (2, 3, 3), (1, 1), (0, 3, 3)]:
        A = normal(*shape, device=device, dtype=dtype).requires_grad_()
        for function in (metalcore.eigh, lambda X: metalcore.eigh(X, UPLO="U"), metalcore.eigvalsh):
            assert torch.autograd.gradcheck(by_symmetric(function), (A,))
            assert torch.autograd.gradgradcheck(by_symmetric(function), (A,))


@pytest.mark.dtypes(*SINGLE)
def test_gradients_are_symmetric_and_those_of_torch(device, dtype):
    for n in (1, 2, 6, 20):
        values = torch.arange(n, dtype=torch.float64) - n / 3
        U = orthogonal(n, n)
        A = mirrored((U * values) @ U.mT).to(dtype).to(device).requires_grad_()
        reference = A.detach().cpu().double().requires_grad_()
        weights = torch.randn(n, n, dtype=torch.float64)
        L, Q = metalcore.eigh(A)
        (got,) = torch.autograd.grad((Q.square() * weights.to(Q)).sum() + (L * weights[0].to(L)).sum(), A)
        wanted = torch.linalg.eigh(reference)
        loss = (wanted.eigenvectors.square() * weights).sum() + (wanted.eigenvalues * weights[0]).sum()
        (want,) = torch.autograd.grad(loss, reference)
        want = (want + want.mT) / 2
        # Eigenvalues are 1 apart: errors grow by no more than a few n.
        bound = 20 * n * n * ROUNDOFF[dtype] * float(want.abs().max())
        assert torch.equal(got, got.mT) or float((got - got.mT).abs().max()) <= bound
        assert float((got.cpu().double() - want).abs().max()) <= bound


@pytest.mark.dtypes(*SINGLE)
def test_values_of_repeated_eigenvalues_have_finite_gradients_and_vectors_have_not(device, dtype):
    A = torch.eye(4, device=device, dtype=dtype).requires_grad_()
    (grad,) = torch.autograd.grad(metalcore.eigh(A).L.sum(), A)
    assert torch.allclose(grad, torch.eye(4, device=device, dtype=dtype))
    (grad,) = torch.autograd.grad(metalcore.eigvalsh(A).sum(), A)
    assert torch.allclose(grad, torch.eye(4, device=device, dtype=dtype))
    weights = torch.arange(16.0, device=device, dtype=dtype).view(4, 4)
    (grad,) = torch.autograd.grad((metalcore.eigh(A).Q * weights).sum(), A)
    assert not bool(grad.isfinite().all())


@pytest.mark.dtypes(*SINGLE)
def test_opcheck_passes(device, dtype):
    for shape in [(2, 3, 3)] if EMULATED else [(2, 3, 3), (4, 4), (0, 2, 2)]:
        A = mirrored(normal(*shape, device=device, dtype=dtype))
        torch.library.opcheck(torch.ops.metalcore.eigh.default, (A,))
        torch.library.opcheck(torch.ops.metalcore.eigh.default, (A, True))
        torch.library.opcheck(torch.ops.metalcore.eigh.default, (A.clone().requires_grad_(),))
        torch.library.opcheck(torch.ops.metalcore.eigvalsh.default, (A,))


@pytest.mark.dtypes(torch.float32)
def test_compiled_it_is_one_graph_with_the_bits_of_eager(device, dtype):
    torch._dynamo.reset()

    def call(A):
        result = metalcore.eigh(A)
        return result.eigenvalues, result.Q, metalcore.eigvalsh(A, UPLO="U")

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (16, 21):  # eager calls of a few matrices are LAPACK's
        A = mirrored(normal(batch, 5, 5, device=device, dtype=dtype))
        for got, want in zip(compiled(A), call(A)):
            assert same_bits(got, want)
    A.requires_grad_()
    got, want = (torch.autograd.grad(sum(t.sum() for t in f(A)), A)[0] for f in (compiled, call))
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.dtypes(*SINGLE)
def test_vmap_makes_the_mapped_dimension_a_batch_dimension(device, dtype):
    A = normal(3, 5, 5, 2, device=device, dtype=dtype)
    for dim in (0, 3):
        B = A[..., 0] if dim == 0 else A[0]
        mapped = torch.func.vmap(metalcore.eigh, in_dims=0 if dim == 0 else 2)(B)
        wanted = metalcore.eigh(B if dim == 0 else B.movedim(2, 0))
        assert all(same_bits(got, want) for got, want in zip(mapped, wanted))
        values = torch.func.vmap(metalcore.eigvalsh, in_dims=0 if dim == 0 else 2)(B)
        assert torch.allclose(values, wanted.L, atol=1e-4)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [1, 3, 33])
def test_an_item_that_is_not_finite_is_named(device, dtype, bad, n):
    A = normal(4, n, n, device=device, dtype=dtype)
    A[2, n - 1, 0] = bad
    for function in (metalcore.eigh, metalcore.eigvalsh):
        with pytest.raises(torch.linalg.LinAlgError, match=r"^eigh|^eigvalsh.*batch item 2"):
            function(A)
    with pytest.raises(torch.linalg.LinAlgError, match="A: got"):
        metalcore.eigh(A[2])
    assert bool(metalcore.eigh(A[:2]).L.isfinite().all())


def test_a_failed_item_of_the_operator_is_nan_and_touches_no_other(device):
    A = normal(4, 9, 9, device=device, dtype=torch.float32)
    clean = torch.ops.metalcore.eigh(A)
    A[2, 8, 1] = math.nan
    L, Q, info = torch.ops.metalcore.eigh(A)
    assert info.tolist() == [0, 0, -1, 0]
    assert bool(L[2].isnan().all()) and bool(Q[2].isnan().all())
    for item in (0, 1, 3):
        assert same_bits(L[item], clean[0][item]) and same_bits(Q[item], clean[1][item])


ERRORS = [
    (lambda d: torch.ones(3, device=d), {}, ValueError, "A", r"shape \[3\]"),
    (lambda d: torch.ones(2, 3, device=d), {}, ValueError, "A", r"shape \[2, 3\]"),
    (lambda d: torch.ones(2, 2, device=d), {"strategy": "cpu"}, ValueError, "strategy", "'cpu'"),
    (lambda d: torch.ones(2, 2, device=d), {"strategy": "polar"}, ValueError, "strategy", "'polar'"),
    (lambda d: torch.ones(2, 2, device=d), {"UPLO": "X"}, ValueError, "UPLO", "'X'"),
    (lambda d: torch.ones(2, 2, device=d, dtype=torch.int32), {}, TypeError, "A", "int32"),
    (lambda d: torch.ones(2, 2, device=d, dtype=torch.complex64), {}, NotImplementedError, "A", "complex64"),
    (lambda d: [[1.0]], {}, TypeError, "A", "list"),
]


@pytest.mark.parametrize("make, options, error, argument, got", ERRORS)
def test_wrong_arguments_are_named(device, make, options, error, argument, got):
    for function, name in ((metalcore.eigh, "eigh"), (metalcore.eigvalsh, "eigvalsh")):
        with pytest.raises(error, match=ERROR_TEXT.format(op=name, argument=argument)) as caught:
            function(make(device), **options)
        assert re.search(got, str(caught.value))


@pytest.mark.dtypes(*SINGLE)
def test_the_backend_has_values_and_vectors_without_gradients(device, dtype):
    A = normal(3, 6, 6, device=device, dtype=dtype)
    L, Q = mc.eigh_forward(A)
    assert all(same_bits(got, want) for got, want in zip((L, Q), metalcore.eigh(A)))
    with pytest.raises(RuntimeError, match=r"metalcore\.eigh"):
        mc.eigh_forward(A.requires_grad_())
