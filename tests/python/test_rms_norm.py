"""rms_norm: bounds forward and backward, shapes, views, laws, errors. Derivatives, the residual form and modules:
test_rms_norm_fused.py.
"""

from __future__ import annotations

import re

import metalcore
import numpy as np
import oracles
import pytest
import torch
from support import (
    EMULATED,
    ERROR_TEXT,
    OTHER_DTYPE,
    VIEWS,
    Unchanged,
    assert_fresh,
    assert_within,
    gamma,
    normal,
    rho,
    same_bits,
    views,
)
from support import exact as values_of
from torch.nn.functional import rms_norm as torch_rms_norm

LENGTHS = (
    (1, 2, 3, 31, 32, 33, 127, 128, 1000, 1024, 1025, 4096, 4097, 8192, 16384, 16385)
    if EMULATED
    else (1, 2, 3, 5, 31, 32, 33, 127, 128, 1000, 1023, 1024, 1025, 4096, 4097, 8192, 16384, 16385, 65536, 65537)
)
WEIGHTS = ("none", "same dtype", "other dtype")


def make_weight(kind, length, device, dtype):
    if kind == "none":
        return None
    return normal(length, device=device, dtype=dtype if kind == "same dtype" else OTHER_DTYPE[dtype])


def assert_norm_and_gradients(x, width, weight, eps):
    """y, dx and dw of rms_norm within their bounds."""
    dy = normal(*x.shape, device=x.device, dtype=x.dtype)
    leaf = x.detach().clone().requires_grad_()
    leaf_weight = None if weight is None else weight.detach().clone().requires_grad_()
    shape = x.shape[-1:] if weight is None else weight.shape
    y = metalcore.rms_norm(leaf, shape, leaf_weight, eps)
    used = oracles.default_eps(x.dtype) if eps is None else eps
    want = oracles.rms_norm(x, width, weight, used)
    assert y.dtype == x.dtype and y.is_contiguous()
    assert_within("rms_norm y", y, want.value, want.bound)
    y.backward(dy)
    dx, dw = oracles.rms_norm_backward(dy, x, width, weight, used)
    assert leaf.grad.dtype == x.dtype
    assert_within("rms_norm dx", leaf.grad, dx.value, dx.bound)
    if weight is not None:
        assert leaf_weight.grad.dtype == weight.dtype
        assert_within("rms_norm dw", leaf_weight.grad, dw.value, dw.bound, x.dtype)


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("length", LENGTHS)
def test_rows_of_every_length_are_within_the_bounds(device, dtype, length, kind):
    x = normal(3, length, device=device, dtype=dtype)
    assert_norm_and_gradients(x, length, make_weight(kind, length, device, dtype), 1e-6)


@pytest.mark.parametrize(
    "rows, length",
    [(1, 64), (2, 65), (5, 7), (130, 48)] if EMULATED else [(1, 64), (517, 96), (4099, 8), (20000, 1), (1025, 513)],
)
def test_any_number_of_rows_is_within_the_bounds(device, dtype, rows, length):
    x = normal(rows, length, device=device, dtype=dtype)
    assert_norm_and_gradients(x, length, make_weight("same dtype", length, device, dtype), 1e-6)


@pytest.mark.native
@pytest.mark.dtypes(torch.float32)
def test_more_rows_than_any_grid_dimension_are_within_the_bounds(device, dtype):
    assert_norm_and_gradients(normal(70_000, 4, device=device, dtype=dtype), 4, normal(4, device=device, dtype=dtype), 1e-6)


@pytest.mark.nightly
@pytest.mark.parametrize("length", range(1, 300))
def test_every_length_up_to_300_is_within_the_bounds(device, dtype, length):
    for kind in WEIGHTS:
        assert_norm_and_gradients(
            normal(2, length, device=device, dtype=dtype), length, make_weight(kind, length, device, dtype), 1e-6
        )


@pytest.mark.parametrize("other", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.native
def test_a_weight_may_have_any_floating_dtype(device, dtype, other):
    if device.type == "mps" and other == torch.float64:
        other = torch.float32
    x = normal(6, 130, device=device, dtype=dtype)
    assert_norm_and_gradients(x, 130, normal(130, device=device, dtype=other), 1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e3])
@pytest.mark.parametrize("eps", [None, 0.0, 1e-6, 1e-2])
def test_small_and_large_values_are_within_the_bounds(device, dtype, eps, scale):
    x = normal(5, 96, device=device, dtype=dtype, scale=scale)
    assert_norm_and_gradients(x, 96, make_weight("same dtype", 96, device, dtype), eps)


@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40), (2, 1, 3, 40)], ids=str)
def test_inputs_of_one_to_four_dimensions_are_within_the_bounds(device, dtype, shape):
    assert_norm_and_gradients(normal(*shape, device=device, dtype=dtype), 40, normal(40, device=device, dtype=dtype), 1e-6)


@pytest.mark.parametrize(
    "shape, normalized", [((4, 6), 2), ((3, 4, 6), 2), ((2, 3, 4, 6), 3), ((2, 5, 1, 9), 2), ((2, 3, 4, 1), 1)], ids=str
)
@pytest.mark.parametrize("weighted", [True, False], ids=["weight", "no weight"])
def test_several_normalized_dimensions_are_one_row(device, dtype, shape, normalized, weighted):
    x = normal(*shape, device=device, dtype=dtype)
    last = shape[len(shape) - normalized :]
    width = int(torch.tensor(last).prod())
    weight = normal(*last, device=device, dtype=dtype) if weighted else None
    if weighted:
        assert_norm_and_gradients(x, width, weight, 1e-6)
    want = oracles.rms_norm(x, width, weight, 1e-6)
    for form in (last, list(last), torch.Size(last)):
        assert_within("rms_norm y", metalcore.rms_norm(x, form, weight, 1e-6), want.value, want.bound)


@pytest.mark.parametrize("weighted", [True, False], ids=["weight", "no weight"])
def test_eps_none_is_that_of_torch(device, dtype, weighted):
    # The mean square is about as large as eps, so that another eps would show.
    x = normal(7, 65, device=device, dtype=dtype, scale=3e-4 if dtype != torch.float64 else 1e-8)
    weight = normal(65, device=device, dtype=dtype) if weighted else None
    want = oracles.rms_norm(x, 65, weight, oracles.default_eps(dtype))
    assert_within("rms_norm y", metalcore.rms_norm(x, 65, weight), want.value, want.bound)
    # torch rounds half input once more, before the weight.
    bound = want.bound + (2 * rho(dtype) + gamma(65, dtype)) * np.abs(want.value)
    assert (np.abs(values_of(torch_rms_norm(x, (65,), weight)) - want.value) <= bound).all()


def test_rows_of_zeros_give_zeros(device, dtype):
    x = normal(4, 50, device=device, dtype=dtype)
    x[1] = x[3] = 0
    y = metalcore.rms_norm(x, 50, normal(50, device=device, dtype=dtype), 1e-6)
    assert not y[1].any() and not y[3].any() and y[0].any()
    assert_norm_and_gradients(x, 50, normal(50, device=device, dtype=dtype), 1e-6)


# --- shapes and views -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (0,), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("weighted", [True, False], ids=["weight", "no weight"])
def test_empty_inputs_give_empty_results_and_zero_weight_gradients(device, dtype, shape, weighted):
    x = torch.empty(shape, device=device, dtype=dtype, requires_grad=True)
    weight = torch.ones(shape[-1:], device=device, dtype=dtype, requires_grad=True) if weighted else None
    y = metalcore.rms_norm(x, shape[-1:], weight)
    assert y.shape == x.shape and y.dtype == dtype
    y.sum().backward()
    assert x.grad.shape == x.shape
    if weighted:
        assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("shape", [(3, 64), (3, 5, 33), (2, 3, 1028)], ids=str)
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, shape, layout):
    operands = [normal(*s, device=device, dtype=dtype) for s in (shape, shape[-1:], shape)]

    def results(x, weight, dy):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = metalcore.rms_norm(x, x.shape[-1:], weight, 1e-6)
        return y.detach(), *torch.autograd.grad(y, (x, weight), dy)

    expected = results(*operands)
    for i, view in views(layout, *operands):
        changed = [view if j == i else t for j, t in enumerate(operands)]
        with Unchanged(*changed):
            found = results(*changed)
        assert_fresh(found, tuple(changed))
        for name, got, want in zip(("y", "dx", "dw"), found, expected):
            assert same_bits(got, want), f"{name} for another layout of {('input', 'weight', 'gradient')[i]}"


def test_expanded_inputs_weights_and_gradients_are_like_their_copies(device, dtype):
    row, one = normal(1, 48, device=device, dtype=dtype), normal(1, device=device, dtype=dtype)
    x = row.expand(5, 48)
    y = metalcore.rms_norm(x, 48, one.expand(48), 1e-6)
    assert same_bits(y, metalcore.rms_norm(x.contiguous(), 48, one.repeat(48), 1e-6))
    assert_fresh((y,), (row, one))
    grads = []
    for dy in (one.expand(5, 48), one.repeat(5, 48)):
        leaf = x.contiguous().requires_grad_()
        metalcore.rms_norm(leaf, 48, None, 1e-6).backward(dy)
        grads.append(leaf.grad)
    assert same_bits(*grads)


# --- laws -----------------------------------------------------------------------------------------


def test_a_row_that_is_not_finite_touches_no_other(device, dtype):
    x, dy = normal(5, 70, device=device, dtype=dtype), normal(5, 70, device=device, dtype=dtype)
    weight = normal(70, device=device, dtype=dtype)
    for bad in (float("nan"), float("inf")):
        spoiled = x.clone()
        spoiled[2, 40] = bad
        found = []
        for leaf in (x.clone(), spoiled):
            leaf.requires_grad_()
            y = metalcore.rms_norm(leaf, 70, weight, 1e-6)
            y.backward(dy)
            found.append((y.detach(), leaf.grad))
        others = torch.tensor([0, 1, 3, 4], device=device)
        for clean, got in zip(*found):
            assert same_bits(got[others], clean[others])
        y, dx = (t[2] for t in found[1])
        if bad != bad:
            assert bool(y.isnan().all()) and bool(dx.isnan().all())
        else:
            assert bool(y[40].isnan()) and bool(((y == 0) | y.isnan()).all())


def test_the_same_input_twice_gives_the_same_bits(device, dtype):
    x, weight = normal(301, 65, device=device, dtype=dtype), normal(65, device=device, dtype=dtype)
    dy = normal(301, 65, device=device, dtype=dtype)
    found = []
    for _ in range(2):
        leaf, leaf_weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = metalcore.rms_norm(leaf, 65, leaf_weight)
        found.append((y, *torch.autograd.grad(y, (leaf, leaf_weight), dy)))
    assert all(same_bits(*pair) for pair in zip(*found))


def test_permuting_rows_permutes_the_result(device, dtype):
    x, weight = normal(37, 65, device=device, dtype=dtype), normal(65, device=device, dtype=dtype)
    order = torch.randperm(37).to(device)
    assert same_bits(metalcore.rms_norm(x[order], 65, weight), metalcore.rms_norm(x, 65, weight)[order])


def test_without_eps_a_power_of_two_changes_no_bit(device, dtype):
    x = normal(5, 65, device=device, dtype=dtype)
    for exponent in (3,) if dtype == torch.float16 else (-30, -7, 3, 30):
        assert same_bits(metalcore.rms_norm(x * 2.0**exponent, 65, None, 0.0), metalcore.rms_norm(x, 65, None, 0.0))


def test_a_weight_of_ones_is_no_weight(device, dtype):
    x = normal(5, 65, device=device, dtype=dtype)
    assert same_bits(metalcore.rms_norm(x, 65, torch.ones(65, device=device, dtype=dtype)), metalcore.rms_norm(x, 65))


def test_rms_norm_function_is_rms_norm_of_the_last_dimension(device, dtype):
    x, weight = normal(2, 3, 20, device=device, dtype=dtype), normal(20, device=device, dtype=dtype)
    assert same_bits(metalcore.RMSNormFunction.apply(x, weight, 1e-5), metalcore.rms_norm(x, 20, weight, 1e-5))
    assert same_bits(metalcore.RMSNormFunction.apply(x, None, 1e-5), metalcore.rms_norm(x, 20, None, 1e-5))


@pytest.mark.dtypes(torch.float32, torch.float16)
def test_autocast_leaves_rms_norm_alone(device, dtype):
    x, weight = normal(3, 65, device=device, dtype=dtype), normal(65, device=device, dtype=torch.float32)
    expected = metalcore.rms_norm(x, 65, weight)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert same_bits(metalcore.rms_norm(x, 65, weight), expected)


# --- errors ---------------------------------------------------------------------------------------


def tensor(*shape, dtype=torch.float32):
    return lambda device: torch.ones(shape, device=device, dtype=dtype)


ERRORS = [
    (tensor(2, 8), 7, None, ValueError, "normalized_shape", r"\[7\]"),
    (tensor(2, 8), (3, 2, 8), None, ValueError, "normalized_shape", r"\[3, 2, 8\]"),
    (tensor(2, 8), (), None, ValueError, "normalized_shape", r"\[\]"),
    (tensor(2, 8), (8, 2), None, ValueError, "normalized_shape", r"\[8, 2\]"),
    (tensor(), (1,), None, ValueError, "normalized_shape", r"\[1\]"),
    (tensor(2, 8), 8, tensor(7), ValueError, "weight", r"shape \[7\]"),
    (tensor(2, 8), 8, tensor(1, 8), ValueError, "weight", r"shape \[1, 8\]"),
    (tensor(2, 8, dtype=torch.int32), 8, None, TypeError, "input", "int32"),
    (tensor(2, 8, dtype=torch.bool), 8, None, TypeError, "input", "bool"),
    (tensor(2, 8, dtype=torch.complex64), 8, None, NotImplementedError, "input", "complex64"),
    (tensor(2, 8), 8, tensor(8, dtype=torch.int64), TypeError, "weight", "int64"),
    (lambda d: [1.0], 1, None, TypeError, "input", "list"),
    (lambda d: None, 1, None, TypeError, "input", "None"),
    (tensor(2, 8), 8, lambda d: [1.0] * 8, TypeError, "weight", "list"),
    (tensor(2, 8), 8, lambda d: torch.ones(8, device="meta"), ValueError, "weight", "meta"),
]


@pytest.mark.parametrize("make, shape, make_other, kind, argument, got", ERRORS, ids=[f"{e[4]} {e[5]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, make, shape, make_other, kind, argument, got):
    weight = None if make_other is None else make_other(device)
    with pytest.raises(kind) as error:
        metalcore.rms_norm(make(device), shape, weight)
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op="rms_norm", argument=argument), str(error.value)), str(error.value)
    assert re.search(got, str(error.value)), str(error.value)


@pytest.mark.emulated
def test_float64_on_a_device_without_it_names_the_device(device):
    single, double = torch.ones(2, 4, device=device), torch.ones(2, 4, device=device, dtype=torch.float64)
    calls = {
        "input": lambda: metalcore.rms_norm(double, 4),
        "weight": lambda: metalcore.rms_norm(single, 4, double[0]),
    }
    for argument, call in calls.items():
        with pytest.raises(TypeError, match=ERROR_TEXT.format(op="rms_norm", argument=argument)) as error:
            call()
        assert "mps" in str(error.value) and "float64" in str(error.value)
