"""svd and svdvals: accuracy over matrices that break algorithms, shapes, views, laws, gradients, errors."""

from __future__ import annotations

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
    orthogonal,
    quotients,
    record,
    same_bits,
    views,
)

SINGLE = (torch.float32, torch.float64)
SIZES = [(1, 1), (2, 2), (5, 3), (8, 8), (9, 12), (16, 16)] + (
    [(33, 20), (66, 5)] if EMULATED else [(17, 17), (33, 20), (20, 33), (64, 64), (65, 64), (100, 30), (30, 100), (129, 129)]
)
EVERY = [
    (1, 7),
    (3, 3),
    (15, 15),
    (31, 32),
    (32, 31),
    (48, 48),
    (63, 64),
    (128, 128),
    (129, 100),
    (257, 130),
    (520, 40),
    (40, 520),
]
FEW = [(1, 1), (3, 3), (8, 8), (16, 16), (20, 12)] + ([] if EMULATED else [(12, 20), (70, 65)])


def assert_svd(A, U, S, V, items=None):
    """Shapes, order, signs, and the ratios of every item within the bars."""
    *batch, m, n = A.shape
    k = min(m, n)
    assert U.shape[-2:] in ((m, k), (m, m)) and S.shape == (*batch, k) and V.shape[-2:] in ((n, k), (n, n))
    assert U.dtype == S.dtype == V.dtype == A.dtype
    a, u, s, v = (exact(t, False) for t in (A, U, S, V))
    assert (s >= 0).all() and (np.diff(s, axis=-1) <= 0).all(), "S does not descend to 0 at most"
    peak = np.take_along_axis(u, np.abs(u).argmax(-2)[..., None, :], -2)
    assert (peak >= 0).all(), "a column of U has the wrong sign"
    roundoff = ROUNDOFF[A.dtype]
    half = A.dtype in HALVES
    place = 0 if k < 16 else 1 if k < 64 else 2
    largest = s[..., :1] if k else s
    defect = lambda q: one_norm(np.eye(q.shape[-1]) - np.swapaxes(q, -2, -1) @ q)  # noqa: E731
    residual = one_norm(a - (u[..., :k] * s[..., None, :]) @ np.swapaxes(v[..., :k], -2, -1))
    ratios = {
        "reconstruction": (quotients(residual, max(m, n) * one_norm(a) * roundoff), (15, 5, 2.5)[place]),
        "orthogonality of U": (quotients(defect(u), np.full_like(residual, m * roundoff)), (15, 7, 3)[place]),
        "orthogonality of V": (quotients(defect(v), np.full_like(residual, n * roundoff)), (15, 7, 3)[place]),
    }
    if not half:
        values = np.abs(s - np.linalg.svd(a, compute_uv=False)).max(-1)
        ratios["values"] = quotients(values, max(m, n) * roundoff * largest[..., 0]), (7, 2, 1)[place]
    for name, (ratio, bar) in ratios.items():
        bar = (3, 1, 1)[place] if half else bar
        record(f"svd {name}", A.dtype, ratio, bar)
        bad = np.flatnonzero(~(ratio <= bar))
        named = [items[i] if items else int(i) for i in bad]
        assert not bad.size, f"{m}x{n}: {name} {ratio.reshape(-1)[bad]} over {bar} in {named}"


def strategies(device):
    return ("auto", "jacobi", "lapack") if device.type == "cpu" and not EMULATED else ("auto", "jacobi")


@pytest.mark.dtypes(*SINGLE)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (3, 5), (16, 16), (40, 17), (33, 64)], ids=str)
def test_gram_has_orthonormal_vectors_and_values_to_the_root_of_rounding(device, dtype, size):
    items, A = families(*size, dtype)
    A = A.to(device)
    U, S, V = metalcore.svd(A, strategy="gram")
    a, u, s, v = (exact(t, False) for t in (A, U, S, V))
    largest = np.linalg.svd(a, compute_uv=False)
    unit = np.sqrt(max(size) * ROUNDOFF[dtype]) * largest[..., :1]
    assert (np.abs(s - largest) <= 4 * unit).all(), items
    rebuilt = (u * s[..., None, :]) @ np.swapaxes(v, -2, -1)
    assert (np.linalg.norm(a - rebuilt, 2, (-2, -1)) <= 8 * unit[..., 0]).all(), items
    for q in (u, v):
        defect = one_norm(np.eye(q.shape[-1]) - np.swapaxes(q, -2, -1) @ q)
        assert (defect <= (15 if min(size) < 16 else 7) * q.shape[-2] * ROUNDOFF[dtype]).all(), items
    assert (np.abs(exact(metalcore.svdvals(A, "gram"), False) - s) <= 4 * unit).all()
    gradient = torch.autograd.functional.jacobian(lambda A: metalcore.svd(A, strategy="gram").S.sum(), A[:1])
    assert torch.allclose(gradient, U[:1] @ V[:1].mT, atol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_family_is_within_the_bars(device, dtype, size):
    items, A = families(*size, dtype)
    A = A.to(device)
    for strategy in strategies(device) if dtype in SINGLE else ("auto",):
        found = metalcore.svd(A, strategy=strategy)
        assert_svd(A, *found, items)
        values = exact(metalcore.svdvals(A, strategy), False)
        largest = exact(found.S, False)
        unit = max(size) * ROUNDOFF[dtype] * largest[..., :1]
        assert (np.abs(values - largest) <= 2 * unit).all()
        if EMULATED:
            break


@pytest.mark.nightly
@pytest.mark.dtypes(*SINGLE)
@pytest.mark.parametrize("size", EVERY, ids=str)
def test_every_size_is_within_the_bars(device, dtype, size):
    items, A = families(*size, dtype)
    for strategy in ("auto", "jacobi"):
        assert_svd(A.to(device), *metalcore.svd(A.to(device), strategy=strategy), items)


@pytest.mark.dtypes(*SINGLE)
def test_single_matrices_are_within_the_bars(device, dtype):
    for size in FEW:
        A = normal(*size, device=device, dtype=dtype)
        for strategy in strategies(device):
            assert_svd(A, *metalcore.svd(A, strategy=strategy))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (3, 5), (0, 3), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("full", [False, True])
def test_every_batch_shape_has_the_shapes_of_torch(device, dtype, batch, size, full):
    A = normal(*batch, *size, device=device, dtype=dtype)
    found = metalcore.svd(A, full)
    expected = torch.linalg.svd(torch.zeros(*batch, *size), full)
    assert [found.U.shape, found.S.shape, found.Vh.shape] == [t.shape for t in expected]
    assert_fresh(tuple(found), (A,))
    if A.numel():
        assert_svd(A, *found)
    elif full:
        for Q in (found.U, found.V):
            assert torch.equal(Q @ Q.mT, torch.eye(Q.shape[-1], dtype=dtype, device=device).expand_as(Q))
    alone = metalcore.svd(A, compute_uv=False)
    assert alone.U is None and alone.V is None and alone.Vh is None and alone.S.shape == expected.S.shape


@pytest.mark.dtypes(*SINGLE)
def test_full_matrices_are_orthonormal_for_every_family(device, dtype):
    for size in [(7, 3), (3, 7), (20, 16)]:
        items, A = families(*size, dtype)
        assert_svd(A.to(device), *metalcore.svd(A.to(device), full_matrices=True), items)


def test_the_result_is_a_named_tuple_and_a_pytree(device):
    A = normal(3, 4, 2, device=device, dtype=torch.float32)
    result = metalcore.svd(A)
    U, S, V = result
    assert isinstance(result, metalcore.SVD) and result._fields == ("U", "S", "V")
    assert result.U is U and result.S is S and result.V is V and torch.equal(result.Vh, V.mT)
    doubled = torch.utils._pytree.tree_map(lambda t: 2 * t, result)
    assert isinstance(doubled, metalcore.SVD) and torch.equal(doubled.S, 2 * S)


@pytest.mark.dtypes(*SINGLE)
def test_distinct_singular_vectors_are_those_of_torch_up_to_sign(device, dtype):
    for m, n in FEW:
        k = min(m, n)
        values = torch.linspace(2, 1, k, dtype=torch.float64)
        A = torch.stack([(orthogonal(m, k) * values) @ orthogonal(n, k).mT for _ in range(3)]).to(dtype).to(device)
        U, _, V = metalcore.svd(A)
        u, _, vh = torch.linalg.svd(A.cpu().double(), full_matrices=False)
        for ours, theirs in ((U, u), (V, vh.mT)):
            cosines = (ours.cpu().double() * theirs).sum(-2).abs()
            assert (1 - cosines).abs().max() <= 100 * k * ROUNDOFF[dtype]


@pytest.mark.dtypes(*HALVES)
def test_half_results_are_those_of_float32_rounded_once(device, dtype):
    for m, n in FEW:
        A = normal(5, m, n, device=device, dtype=dtype)
        # But for signs, which go by the rounded entries.
        for got, wide in zip(metalcore.svd(A), metalcore.svd(A.float())):
            assert same_bits(got.abs(), wide.to(dtype).abs())


@pytest.mark.parametrize("layout", VIEWS)
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, layout):
    for m, n in FEW:
        A = normal(4, m, n, device=device, dtype=dtype)
        ((_, view),) = views(layout, A)
        with Unchanged(view):
            result = metalcore.svd(view)
        assert_fresh(tuple(result), (view,))
        assert all(same_bits(got, want) for got, want in zip(result, metalcore.svd(A))), f"{m}x{n}"


def test_permuting_the_batch_permutes_the_results(device, dtype):
    for m, n in FEW:
        A = normal(13, m, n, device=device, dtype=dtype)
        order = torch.randperm(13, device="cpu").to(device)
        first = metalcore.svd(A, strategy="jacobi")
        assert all(same_bits(got, want) for got, want in zip(metalcore.svd(A, strategy="jacobi"), first))
        for got, want in zip(metalcore.svd(A[order], strategy="jacobi"), first):
            assert same_bits(got, want[order])


@pytest.mark.dtypes(*SINGLE)
def test_a_power_of_two_scales_s_exactly_and_leaves_u_and_v(device, dtype):
    exponents = [-90, -3, 0, 70] if dtype == torch.float32 else [-900, -3, 0, 900]
    scales = torch.tensor([2.0**e for e in exponents], dtype=torch.float64).to(dtype).to(device)
    for m, n in [(5, 5), (16, 9), (9, 16)]:
        A = normal(m, n, device=device, dtype=dtype)
        together = metalcore.svd(scales[:, None, None] * A, strategy="jacobi")
        U, S, V = metalcore.svd(A.expand(len(exponents), m, n), strategy="jacobi")
        assert same_bits(together.U, U) and same_bits(together.V, V)
        assert same_bits(together.S, scales[:, None] * S)


@pytest.mark.dtypes(torch.float32)
def test_precision_modes_of_torch_keep_the_bars(device, dtype):
    A = normal(3, 100, 20, device=device, dtype=dtype)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert_svd(A, *metalcore.svd(A))
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_zero_matrix_has_orthonormal_factors(device, dtype):
    for m, n in FEW:
        A = torch.zeros(3, m, n, device=device, dtype=dtype)
        found = metalcore.svd(A)
        assert_svd(A, *found)
        assert not found.S.any()


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (3, 5), (20, 9)], ids=str)
@pytest.mark.dtypes(*SINGLE)
def test_gradients_are_those_of_torch(device, dtype, size):
    m, n = size
    k = min(m, n)
    values = torch.linspace(3, 1, k, dtype=torch.float64)
    matrix = torch.stack([(orthogonal(m, k) * values) @ orthogonal(n, k).mT for _ in range(3)])
    A = matrix.to(dtype).to(device).requires_grad_()
    reference = A.detach().cpu().double().requires_grad_()
    weights = [normal(3, *shape, device="cpu", dtype=torch.float64) for shape in ((m, k), (k,), (n, k))]

    def losses(U, S, V):
        u, s, v = (w.to(U.device, U.dtype) for w in weights)
        # U o U and V o V do not depend on signs.
        return [(S * s).sum(), (U * U * u).sum(), (V * V * v).sum(), (U * U * u).sum() + (S * s).sum() + (V * V * v).sum()]

    u, s, vh = torch.linalg.svd(reference, full_matrices=False)
    for got, want in zip(losses(*metalcore.svd(A)), losses(u, s, vh.mT)):
        (got,) = torch.autograd.grad(got, A, retain_graph=True)
        (want,) = torch.autograd.grad(want, reference, retain_graph=True)
        assert got.dtype == dtype
        assert np.abs(exact(got, False) - want.numpy()).max() <= 200 * k * ROUNDOFF[dtype] * (1 + np.abs(want.numpy()).max())
    (alone,) = torch.autograd.grad((metalcore.svdvals(A) * weights[1].to(device, dtype)).sum(), A)
    (together,) = torch.autograd.grad((metalcore.svd(A).S * weights[1].to(device, dtype)).sum(), A)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("batch, size", [((), (3, 3)), ((2,), (4, 2)), ((2, 1), (2, 4)), ((0,), (3, 2))], ids=str)
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, batch, size):
    m, n = size
    A = (normal(*batch, *size, device=device, dtype=dtype) + 3 * torch.eye(m, n, dtype=dtype, device=device)).requires_grad_()

    def invariant(A):
        U, S, V = metalcore.svd(A)
        return U * U, S, V * V

    for function in (invariant, metalcore.svdvals):
        assert torch.autograd.gradcheck(function, (A,))
        assert torch.autograd.gradgradcheck(function, (A,))


@pytest.mark.dtypes(*SINGLE)
def test_repeated_values_have_a_gradient_through_s_alone(device, dtype):
    A = torch.eye(4, device=device, dtype=dtype).requires_grad_()
    (grad,) = torch.autograd.grad(metalcore.svd(A).S.sum(), A)
    assert torch.allclose(grad, torch.eye(4, device=device, dtype=dtype))


def test_a_gradient_has_the_dtype_of_its_input(device, dtype):
    A = normal(2, 5, 3, device=device, dtype=dtype).requires_grad_()
    (grad,) = torch.autograd.grad(metalcore.svdvals(A).sum(), A)
    assert grad.dtype == dtype and bool(grad.isfinite().all())


# --- torch ----------------------------------------------------------------------------------------


@pytest.mark.dtypes(torch.float32)
def test_vmap_and_compile_give_the_values_of_eager_calls(device, dtype):
    A = normal(4, 6, 3, device=device, dtype=dtype)
    expected = metalcore.svd(A)
    for got, want in zip(torch.vmap(metalcore.svd)(A), expected):
        assert same_bits(got, want)
    grads = torch.func.vmap(torch.func.grad(lambda X: metalcore.svdvals(X).sum()))(A)
    assert torch.allclose(grads, expected.U @ expected.Vh, atol=1e-5)
    compiled = torch.compile(lambda X: tuple(metalcore.svd(X)), backend="aot_eager", fullgraph=True)
    for got, want in zip(compiled(A), expected):
        assert same_bits(got, want)


@pytest.mark.dtypes(*SINGLE)
def test_opcheck(device, dtype):
    for shape in [(3, 4, 2), (2, 4), (0, 3, 3)]:
        A = normal(*shape, device=device, dtype=dtype)
        for vectors in (True, False):
            torch.library.opcheck(torch.ops.metalcore.svd.default, (A, vectors), test_utils=("test_schema", "test_faketensor"))
            torch.library.opcheck(torch.ops.metalcore.svd_thin.default, (A, vectors, "auto"))


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_matrices_that_are_not_finite_are_named(device, dtype, bad):
    for m, n in FEW:
        A = normal(2, 3, m, n, device=device, dtype=dtype)
        A[1, 2, m - 1, 0] = bad
        for function in (metalcore.svd, metalcore.svdvals):
            with pytest.raises(torch.linalg.LinAlgError, match=r"svd: A: got batch item \(1, 2\)"):
                function(A)
        with pytest.raises(torch.linalg.LinAlgError, match="svd: A: got entries that are not finite"):
            metalcore.svd(A[1, 2])


ERRORS = [
    (lambda d: torch.ones(3, device=d), "auto", ValueError, "A", r"shape \[3\]"),
    (lambda d: torch.ones(2, 2, device=d), "standard", ValueError, "strategy", "'standard'"),
    (lambda d: torch.ones(2, 2, device=d), None, ValueError, "strategy", "None"),
    (lambda d: torch.ones(2, 2, device=d, dtype=torch.int64), "auto", TypeError, "A", "int64"),
    (lambda d: torch.ones(2, 2, device=d, dtype=torch.complex64), "auto", NotImplementedError, "A", "complex64"),
    (lambda d: [[1.0]], "auto", TypeError, "A", "list"),
]


@pytest.mark.parametrize("make, strategy, kind, argument, got", ERRORS, ids=[f"{e[3]} {e[4]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, make, strategy, kind, argument, got):
    for op in ("svd", "svdvals"):
        with pytest.raises(kind) as error:
            getattr(metalcore, op)(make(device), strategy=strategy)
        assert type(error.value) is kind
        assert re.search(ERROR_TEXT.format(op=op, argument=argument), str(error.value)), str(error.value)
        assert re.search(got, str(error.value)), str(error.value)


# --- metalcore_backend ----------------------------------------------------------------------------


def test_signs_are_made_canonical_in_place_on_any_strides(device, dtype):
    U, V = normal(3, 5, 4, device=device, dtype=dtype).mT, normal(3, 6, 10, device=device, dtype=dtype)[..., ::2]
    before = U.clone(), V.clone(), U._version
    assert mc.sign_canonicalize(U, V) is None and U._version > before[2]
    flip = torch.where(before[0].gather(-2, before[0].abs().argmax(-2, keepdim=True)) < 0, -1, 1).to(dtype)
    assert torch.equal(U, before[0] * flip) and torch.equal(V, before[1] * flip)
    with pytest.raises(ValueError, match="sign_canonicalize: V: got"):
        mc.sign_canonicalize(U, V[..., :3])


def test_columns_are_sorted_by_descending_norm(device, dtype):
    A = torch.tensor([[0.0, 3, -1, 3, 2], [0, 0, 1, 0, -2]], device=device, dtype=dtype).expand(2, 2, 5)
    got, order = mc.column_norm_sort(A)
    assert order.dtype == torch.int32 and order.tolist() == [[1, 3, 4, 2, 0]] * 2
    assert torch.equal(got, A[..., [1, 3, 4, 2, 0]])
    if dtype == torch.float32:  # no square overflows
        assert mc.column_norm_sort(A * 2.0**120)[1].tolist() == order.tolist()
    assert mc.column_norm_sort(A[:, :0])[1].tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_low_level_form_is_svd_without_a_gradient(device):
    A = normal(3, 5, 4, device=device, dtype=torch.float32)
    assert all(same_bits(got, want) for got, want in zip(mc.svd_forward(A), metalcore.svd(A)))
    for call in (mc.svd_forward, mc.column_norm_sort, lambda A: mc.sign_canonicalize(A, A.detach())):
        with pytest.raises(RuntimeError, match="not differentiable; use metalcore.svd"):
            call(A.clone().requires_grad_())
