"""qr: accuracy over matrices that break algorithms, shapes, views, laws, errors. Gradients: test_qr_gradients.py."""

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
    VIEWS,
    Unchanged,
    assert_fresh,
    assert_qr,
    bits,
    families,
    normal,
    orthogonal,
    same_bits,
    views,
    with_condition,
)
from support import exact as values_of

MODES = ("reduced", "complete", "r")
SQUARE = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65) if EMULATED else (*range(1, 67), 100, 128, 129)
RECTANGULAR = [
    (1, 7), (7, 1), (8, 9), (9, 8), (15, 17), (17, 15), (5, 100), (100, 5), (33, 31), (31, 33), (32, 64), (64, 32),
    (65, 64), (64, 65), (130, 7), (7, 130),
]  # fmt: skip
LONG = (
    [(300, 2), (2, 300), (257, 16)]
    if EMULATED
    else [(129, 90), (90, 129), (2000, 3), (3, 2000), (1025, 20), (20, 1025), (300, 130)]
)
SIZES = [(n, n) for n in SQUARE] + RECTANGULAR + LONG
# Half matrices are widened in front of the same kernels.
HALF_SIZES = SIZES[:: 4 if EMULATED else 3]
FEW_SIZES = [(1, 1), (1, 4), (4, 1), (3, 3), (8, 8), (16, 16), (20, 33), (33, 20), (70, 65)]


def assert_all_qr(A, modes=MODES, items=None):
    """Both ratios of every item in every mode; R alone is judged with the Q of the reduced form."""
    Q = None
    for mode in modes:
        result = metalcore.qr(A, mode)
        if mode == "r":
            assert result.Q.shape == (0,) and result.Q.dtype == A.dtype and result.Q.device == A.device
            assert_qr(A, Q, result.R, "reduced", items)
        else:
            assert_qr(A, *result, mode, items)
            Q = result.Q if mode == "reduced" else Q


def named(size):
    return f"{size[0]}x{size[1]}"


@pytest.mark.parametrize("size", SIZES, ids=named)
@pytest.mark.dtypes(torch.float32, torch.float64)
def test_every_family_is_within_the_bars_in_a_batch_and_alone(device, dtype, size):
    items, A = families(*size, dtype)
    A = A.to(device)
    assert_qr(A, *metalcore.qr(A), "reduced", items)
    alone = [metalcore.qr(item) for item in A]
    assert_qr(A, torch.stack([f.Q for f in alone]), torch.stack([f.R for f in alone]), "reduced", items)


@pytest.mark.parametrize("size", HALF_SIZES, ids=named)
@pytest.mark.dtypes(*HALVES)
def test_half_batches_of_every_family_are_within_the_bars(device, dtype, size):
    items, A = families(*size, dtype)
    A = A.to(device)
    assert_qr(A, *metalcore.qr(A), "reduced", items)


@pytest.mark.parametrize("size", [*FEW_SIZES, (15, 17), (17, 15), (5, 60), (60, 5), (65, 64), (64, 65)], ids=named)
def test_every_mode_is_within_the_bars(device, dtype, size):
    items, A = families(*size, dtype)
    assert_all_qr(A.to(device), items=items)


@pytest.mark.nightly
@pytest.mark.native
@pytest.mark.dtypes(torch.float32, torch.float64)
@pytest.mark.parametrize("size", [(1024, 1024), (1500, 1100), (1100, 1500), (20000, 64), (4096, 256)], ids=str)
def test_large_matrices_are_within_the_bars(device, dtype, size):
    A = normal(2, *size, device=device, dtype=dtype)
    assert_qr(A, *metalcore.qr(A))


@pytest.mark.nightly
@pytest.mark.parametrize("rows", range(1, 67))
def test_every_rectangle_up_to_66_is_within_the_bars(device, dtype, rows):
    for columns in range(1, 67):
        items, A = families(rows, columns, dtype)
        assert_qr(A.to(device), *metalcore.qr(A.to(device)), "reduced", items)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (1, 1, 2), (0,), (2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (3, 5), (20, 33), (0, 3), (3, 0), (0, 0)], ids=named)
@pytest.mark.parametrize("mode", MODES)
def test_every_batch_shape_has_the_shapes_of_torch(device, dtype, batch, size, mode):
    A = normal(*batch, *size, device=device, dtype=dtype)
    result = metalcore.qr(A, mode)
    expected = torch.linalg.qr(torch.zeros(*batch, *size), mode)
    assert [t.shape for t in result] == [t.shape for t in expected]
    assert [t.dtype for t in result] == [dtype, dtype]
    assert_fresh(result, (A,))
    if mode != "r":
        assert_qr(A, *result, mode)


@pytest.mark.native
def test_a_batch_larger_than_any_grid_dimension_is_within_the_bars(device, dtype):
    A = normal(70_000, 3, 2, device=device, dtype=dtype)
    assert_qr(A, *metalcore.qr(A))


def test_complete_q_of_a_matrix_without_columns_is_the_identity(device, dtype):
    A = torch.empty(2, 3, 0, device=device, dtype=dtype)
    Q, R = metalcore.qr(A, "complete")
    assert torch.equal(Q, torch.eye(3, device=device, dtype=dtype).expand(2, 3, 3))
    assert R.shape == (2, 3, 0)


def test_the_result_is_a_named_tuple_and_a_pytree(device):
    A = normal(3, 4, 2, device=device, dtype=torch.float32)
    result = metalcore.qr(A)
    Q, R = result
    assert isinstance(result, tuple) and isinstance(result, metalcore.QR) and result._fields == ("Q", "R")
    assert result.Q is Q and result.R is R
    doubled = torch.utils._pytree.tree_map(lambda t: 2 * t, result)
    assert isinstance(doubled, metalcore.QR) and torch.equal(doubled.R, 2 * R)


def test_qr_batched_is_qr(device, dtype):
    A = normal(4, 5, 3, device=device, dtype=dtype)
    for ours, theirs in zip(metalcore.qr_batched(A), metalcore.qr(A)):
        assert same_bits(ours, theirs)


# --- signs ----------------------------------------------------------------------------------------


def backward_error(A, Q, R):
    """|A - Q R| and the distance of Q from orthonormal columns, together, for |A| about 1."""
    a, q, r = (values_of(t) for t in (A, Q, R))
    defect = np.eye(q.shape[-1]) - np.swapaxes(q, -2, -1) @ q
    size = lambda X: np.sqrt((X * X).sum((-2, -1)))  # noqa: E731
    return size(a - q @ r) + size(defect) * (1 + size(a))


@pytest.mark.parametrize("mode", ["reduced", "complete"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 3), (3, 5), (16, 16), (40, 20), (20, 40), (66, 66), (100, 100)], ids=str)
@pytest.mark.dtypes(torch.float32, torch.float64)
def test_well_conditioned_factors_are_those_of_torch_up_to_rounding(device, dtype, size, mode):
    m, n = size
    k = min(m, n)
    A = torch.stack([with_condition(m, n, 10) for _ in range(4)]).to(dtype).to(device)
    Q, R = metalcore.qr(A, mode)
    reference = torch.linalg.qr(A.cpu().double(), mode)
    signs = [X.diagonal(dim1=-2, dim2=-1).cpu().sign().double() for X in (R, reference.R)]
    assert torch.equal(*signs)
    # Two factorisations differ by at most (1 + sqrt 2) times the condition number times their backward errors
    # (J.-G. Sun, Perturbation bounds for the Cholesky and QR factorizations, 1991), Frobenius norms, |A| = 1.
    condition = torch.linalg.cond(A[..., :k].cpu().double()).numpy()
    backward = backward_error(A, Q, R) + backward_error(A, *reference)
    difference = np.linalg.norm(values_of(Q, False)[..., :k] - reference.Q.numpy()[..., :k], axis=(-2, -1))
    assert (difference <= (1 + 2**0.5) * condition * backward).all()
    # Columns that complete Q are those of the same reflectors, not just any.
    cosines = (values_of(Q, False) * reference.Q.numpy()).sum(-2)
    assert (cosines.round() == 1).all()


def test_a_triangle_is_left_alone_with_its_signs(device, dtype):
    """A column whose tail is exactly zero is not reflected: Q is the identity and R the matrix, bit for bit."""
    for m, n in [(1, 1), (3, 3), (8, 8), (17, 17), (40, 30), (30, 40), (70, 70)]:
        A = (normal(3, m, n, device=device, dtype=dtype)).triu()
        Q, R = metalcore.qr(A)
        k = min(m, n)
        assert torch.equal(Q, torch.eye(m, k, device=device, dtype=dtype).expand(3, m, k)), (m, n)
        assert torch.equal(R, A[:, :k]), (m, n)


def test_a_column_of_length_one_keeps_its_sign(device, dtype):
    A = torch.tensor([[[-3.0]], [[3.0]], [[-0.0]]], device=device, dtype=dtype)
    Q, R = metalcore.qr(A)
    assert torch.equal(Q, torch.ones_like(A)) and torch.equal(R, A)


# --- rounding, views, inputs ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.dtypes(*HALVES)
def test_half_results_are_those_of_float32_rounded_once(device, dtype, mode):
    for m, n in FEW_SIZES:
        A = normal(5, m, n, device=device, dtype=dtype)
        for got, wide in zip(metalcore.qr(A, mode), metalcore.qr(A.float(), mode)):
            assert same_bits(got, wide.to(dtype))


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("mode", MODES)
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, mode, layout):
    for m, n in [(3, 3), (9, 5), (16, 16), (20, 33), (70, 66)]:
        A = normal(4, m, n, device=device, dtype=dtype)
        ((_, view),) = views(layout, A)
        assert torch.equal(view, A)
        with Unchanged(view):
            result = metalcore.qr(view, mode)
        assert_fresh(result, (view,))
        assert all(same_bits(got, want) for got, want in zip(result, metalcore.qr(A, mode))), f"{m}x{n}"


def test_an_expanded_batch_has_the_same_factors_in_every_item(device, dtype):
    A = normal(1, 6, 4, device=device, dtype=dtype)
    expected = metalcore.qr(A.repeat(9, 1, 1))
    result = metalcore.qr(A.expand(9, 6, 4))
    assert_fresh(result, (A,))
    for got, want in zip(result, expected):
        assert same_bits(got, want)
        assert all(same_bits(got[0], item) for item in got)


def test_inputs_keep_their_bits_and_outputs_have_memory_of_their_own(device, dtype):
    for m, n in [*FEW_SIZES, (0, 2), (2, 0)]:
        A = normal(3, m, n, device=device, dtype=dtype)
        for mode in MODES:
            with Unchanged(A):
                result = metalcore.qr(A, mode)
            assert_fresh(result, (A,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_items_that_are_not_finite_show_it_and_touch_no_other(device, dtype, bad):
    for m, n in [(1, 1), (3, 3), (8, 8), (16, 16), (20, 33), (33, 20), (70, 66)]:
        A = normal(7, m, n, device=device, dtype=dtype)
        clean = metalcore.qr(A)
        spoiled = A.clone()
        spoiled[1, 0, 0] = spoiled[3, m // 2, n // 2] = spoiled[4, m - 1, n - 1] = bad
        spoiled[6] = bad
        result = metalcore.qr(spoiled)
        for item in range(7):
            if item in (1, 3, 4, 6):
                assert not (result.Q[item].float() @ result.R[item].float()).isfinite().all(), f"item {item} of {m}x{n}"
            else:
                assert all(same_bits(got[item], want[item]) for got, want in zip(result, clean)), f"item {item} of {m}x{n}"


# --- laws -----------------------------------------------------------------------------------------


def test_the_same_input_twice_gives_the_same_bits(device, dtype):
    for m, n in FEW_SIZES:
        A = normal(9, m, n, device=device, dtype=dtype)
        for first, second in zip(metalcore.qr(A), metalcore.qr(A)):
            assert same_bits(first, second)


def test_permuting_the_batch_permutes_the_factors(device, dtype):
    for m, n in FEW_SIZES:
        A = normal(13, m, n, device=device, dtype=dtype)
        order = torch.randperm(13, device="cpu").to(device)
        for got, want in zip(metalcore.qr(A[order]), metalcore.qr(A)):
            assert same_bits(got, want[order])


@pytest.mark.parametrize("size", FEW_SIZES, ids=str)
def test_a_power_of_two_scales_r_exactly_and_leaves_q(device, dtype, size):
    exponents = {torch.float16: [0, 1, 3, 5], torch.float64: [-990, -500, -3, 0, 5, 500, 990]}
    exponents = exponents.get(dtype, [-90, -60, -31, -3, 0, 5, 31, 70, 110])
    scales = torch.tensor([2.0**e for e in exponents], dtype=torch.float64).to(dtype).to(device)[:, None, None]
    A = normal(*size, device=device, dtype=dtype, scale=32)
    together = metalcore.qr(scales * A)
    Q, R = metalcore.qr(A.expand(len(exponents), *size))
    assert same_bits(together.Q, Q)
    assert same_bits(together.R, scales * R)


def test_a_matrix_with_orthonormal_columns_gives_a_triangle_of_signs(device, dtype):
    for n in (2, 8, 33):
        A = torch.stack([orthogonal(n, n) for _ in range(3)]).to(dtype).to(device)
        Q, R = metalcore.qr(A)
        assert_qr(A, Q, R)
        assert torch.equal(R.diagonal(dim1=-2, dim2=-1).abs().round(), torch.ones(3, n, device=device, dtype=dtype))


@pytest.mark.dtypes(torch.float32)
def test_precision_modes_of_torch_do_not_change_a_bit(device, dtype):
    A = normal(3, 100, 100, device=device, dtype=dtype)
    expected = metalcore.qr(A)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            assert all(same_bits(got, want) for got, want in zip(metalcore.qr(A), expected))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.dtypes(torch.float32, torch.float16)
def test_autocast_leaves_qr_alone(device, dtype):
    A = normal(3, 9, 5, device=device, dtype=dtype)
    expected = metalcore.qr(A)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert all(same_bits(got, want) for got, want in zip(metalcore.qr(A), expected))


def test_inference_mode_and_no_grad_give_the_same_bits(device, dtype):
    A = normal(3, 9, 5, device=device, dtype=dtype)
    expected = metalcore.qr(A)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert all(same_bits(got, want) for got, want in zip(metalcore.qr(A), expected))
    recorded = metalcore.qr(A.clone().requires_grad_())
    assert all(torch.equal(bits(got), bits(want)) for got, want in zip(recorded, expected))


# --- errors ---------------------------------------------------------------------------------------

ERRORS = [
    (lambda d: torch.ones(3, device=d), "reduced", ValueError, "A", r"shape \[3\]"),
    (lambda d: torch.ones((), device=d), "reduced", ValueError, "A", r"shape \[\]"),
    (lambda d: torch.ones(2, 2, device=d), "raw", ValueError, "mode", "'raw'"),
    (lambda d: torch.ones(2, 2, device=d), "Reduced", ValueError, "mode", "'Reduced'"),
    (lambda d: torch.ones(2, 2, device=d), None, ValueError, "mode", "None"),
    (lambda d: torch.ones(2, 2, device=d), 0, ValueError, "mode", "0"),
    (lambda d: torch.ones(2, 2, device=d, dtype=torch.int64), "reduced", TypeError, "A", "int64"),
    (lambda d: torch.ones(2, 2, device=d, dtype=torch.bool), "reduced", TypeError, "A", "bool"),
    (lambda d: torch.ones(2, 2, device=d).to(torch.float8_e4m3fn), "reduced", TypeError, "A", ""),
    (lambda d: torch.ones(2, 2, device=d, dtype=torch.complex64), "reduced", NotImplementedError, "A", "complex64"),
    (lambda d: [[1.0]], "reduced", TypeError, "A", "list"),
    (lambda d: None, "reduced", TypeError, "A", "None"),
]


@pytest.mark.parametrize("make, mode, kind, argument, got", ERRORS, ids=[f"{e[3]} {e[4]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, make, mode, kind, argument, got):
    with pytest.raises(kind) as error:
        metalcore.qr(make(device), mode)
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op="qr", argument=argument), str(error.value)), str(error.value)
    assert re.search(got, str(error.value)), str(error.value)


def test_missing_and_unexpected_keywords_are_type_errors(device):
    A = torch.ones(2, 2, device=device)
    for wrong in (lambda: metalcore.qr(), lambda: metalcore.qr(A, some="reduced"), lambda: metalcore.qr_batched(A, mode="r")):
        with pytest.raises(TypeError):
            wrong()


@pytest.mark.emulated
def test_float64_on_a_device_without_it_names_the_device(device):
    with pytest.raises(TypeError, match=ERROR_TEXT.format(op="qr", argument="A")) as error:
        metalcore.qr(torch.ones(2, 2, dtype=torch.float64, device=device))
    assert "mps" in str(error.value) and "float64" in str(error.value)
