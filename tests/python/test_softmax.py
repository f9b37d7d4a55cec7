"""fused_softmax: bounds forward and backward, dimensions, views, rows that are not finite, derivatives, torch's surroundings."""

from __future__ import annotations

import re

import metalcore
import metalcore_backend
import numpy as np
import oracles
import pytest
import torch
from support import EMULATED, ERROR_TEXT, VIEWS, Unchanged, assert_fresh, assert_within, normal, same_bits, views
from torch.autograd import gradcheck, gradgradcheck

LENGTHS = (
    (1, 2, 3, 8, 33, 128, 512, 1023, 4096, 4097, 16385)
    if EMULATED
    else (1, 2, 3, 5, 8, 31, 32, 33, 127, 128, 1000, 1023, 1024, 4096, 4097, 16384, 16385, 50257, 128000)
)


def assert_softmax_and_gradient(x, dim=-1):
    """p and dx within their bounds."""
    leaf = x.detach().clone().requires_grad_()
    p = metalcore.fused_softmax(leaf, dim)
    assert p.dtype == x.dtype and p.is_contiguous() and p.shape == x.shape
    want = oracles.softmax(x, dim)
    assert_within("softmax p", p, want.value, want.bound)
    dp = normal(*x.shape, device=x.device, dtype=x.dtype)
    p.backward(dp)
    dx = oracles.softmax_backward(p, dp, dim)
    assert leaf.grad.dtype == x.dtype
    assert_within("softmax dx", leaf.grad, dx.value, dx.bound)


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_rows_of_every_length_are_within_the_bounds(device, dtype, length):
    assert_softmax_and_gradient(normal(3, length, device=device, dtype=dtype, scale=3.0))


@pytest.mark.parametrize("rows, length", [(130, 4), (37, 48)] if EMULATED else [(70_000, 4), (4099, 8), (1025, 513), (300, 1)])
def test_any_number_of_rows_is_within_the_bounds(device, dtype, rows, length):
    assert_softmax_and_gradient(normal(rows, length, device=device, dtype=dtype))


@pytest.mark.parametrize("shape", [(5, 123, 123), (2, 3, 4, 5), (7,), (1, 1)] if not EMULATED else [(2, 3, 4, 5), (7,)], ids=str)
def test_any_dimension_is_within_the_bounds(device, dtype, shape):
    for dim in range(-len(shape), len(shape)):
        x = normal(*shape, device=device, dtype=dtype)
        p = metalcore.fused_softmax(x, dim)
        assert p.is_contiguous() and p.shape == x.shape
        want = oracles.softmax(x, dim)
        assert_within("softmax p", p, want.value, want.bound)
    assert_softmax_and_gradient(normal(*shape, device=device, dtype=dtype), 0)


@pytest.mark.parametrize("scale", [1e-3, 20.0])
def test_flat_and_steep_rows_are_within_the_bounds(device, dtype, scale):
    assert_softmax_and_gradient(normal(6, 200, device=device, dtype=dtype, scale=scale))


@pytest.mark.nightly
@pytest.mark.parametrize("length", range(1, 300))
def test_every_length_up_to_300_is_within_the_bounds(device, dtype, length):
    assert_softmax_and_gradient(normal(3, length, device=device, dtype=dtype))


# --- shapes, views, values ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,), (2, 0, 3)], ids=str)
def test_empty_inputs_give_empty_results(device, dtype, shape):
    for dim in range(len(shape)):
        x = torch.empty(shape, device=device, dtype=dtype, requires_grad=True)
        p = metalcore.fused_softmax(x, dim)
        assert p.shape == x.shape and p.dtype == dtype
        p.sum().backward()
        assert x.grad.shape == x.shape


def test_a_single_number_is_1(device, dtype):
    x = torch.tensor(3.0, device=device, dtype=dtype)
    for dim in (0, -1):
        assert same_bits(metalcore.fused_softmax(x, dim), torch.ones_like(x))


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("shape", [(3, 64), (3, 5, 33), (2, 3, 1028)], ids=str)
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, shape, layout):
    operands = [normal(*shape, device=device, dtype=dtype) for _ in range(2)]

    def results(x, dp):
        x = x.detach().requires_grad_()
        p = metalcore.fused_softmax(x)
        return p.detach(), *torch.autograd.grad(p, x, dp)

    expected = results(*operands)
    for i, view in views(layout, *operands):
        changed = [view if j == i else t for j, t in enumerate(operands)]
        with Unchanged(*changed):
            found = results(*changed)
        assert_fresh(found, tuple(changed))
        for name, got, want in zip(("p", "dx"), found, expected):
            assert same_bits(got, want), f"{name} for another layout of {('input', 'gradient')[i]}"


@pytest.mark.parametrize("length", [4, 300, 17000])
def test_rows_that_are_not_finite_are_as_torchs_and_touch_no_other(device, dtype, length):
    low = float("-inf")
    x = normal(6, length, device=device, dtype=dtype)
    clean = metalcore.fused_softmax(x)
    x[1, 2] = float("nan")
    x[2] = low
    x[3, 1] = float("inf")
    x[4, :-1] = low
    p = metalcore.fused_softmax(x)
    assert bool(p[1:4].isnan().all())
    assert torch.equal(p[4], torch.zeros_like(p[4]).index_fill(0, torch.tensor([length - 1], device=device), 1))
    assert same_bits(p[0], clean[0]) and same_bits(p[5], clean[5])


def test_the_same_input_twice_gives_the_same_bits_and_permuting_rows_permutes_them(device, dtype):
    x = normal(37, 65, device=device, dtype=dtype)
    order = torch.randperm(37).to(device)
    assert same_bits(metalcore.fused_softmax(x), metalcore.fused_softmax(x))
    assert same_bits(metalcore.fused_softmax(x[order]), metalcore.fused_softmax(x)[order])


def test_the_module_is_the_function(device, dtype):
    x = normal(3, 4, 5, device=device, dtype=dtype)
    for dim in (-1, 1):
        assert same_bits(metalcore.MetalSoftmax(dim)(x), metalcore.fused_softmax(x, dim))
    assert same_bits(metalcore.MetalSoftmax()(x), metalcore.fused_softmax(x, 2))
    assert "dim=-1" in repr(metalcore.MetalSoftmax()) and not metalcore.MetalSoftmax().state_dict()


def test_low_level_functions_are_those_of_the_public_one(device, dtype):
    x, dp = normal(3, 40, device=device, dtype=dtype), normal(3, 40, device=device, dtype=dtype)
    assert same_bits(metalcore_backend.fused_softmax(x, 0), metalcore.fused_softmax(x, 0))
    leaf = x.clone().requires_grad_()
    p = metalcore.fused_softmax(leaf)
    p.backward(dp)
    assert same_bits(metalcore_backend.softmax_bwd(p.detach(), dp), leaf.grad)
    for call in (lambda: metalcore_backend.fused_softmax(leaf, -1), lambda: metalcore_backend.softmax_bwd(p, dp)):
        with pytest.raises(RuntimeError, match="not differentiable"):
            call()


# --- derivatives and torch ------------------------------------------------------------------------


@pytest.mark.parametrize("shape, dim", [((3, 5), -1), ((7,), 0), ((2, 3, 4), 1), ((0, 3), 1), ((2, 1), 1)], ids=str)
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, shape, dim):
    x = normal(*shape, device=device, dtype=dtype).requires_grad_()
    assert gradcheck(lambda x: metalcore.fused_softmax(x, dim), x)
    assert gradgradcheck(lambda x: metalcore.fused_softmax(x, dim), x)


@pytest.mark.parametrize("in_dim, dim", [(0, -1), (1, 0), (-1, 1), (2, -2)])
def test_vmap_is_a_loop(device, dtype, in_dim, dim):
    x = normal(4, 5, 6, device=device, dtype=dtype)
    mapped = torch.func.vmap(lambda x: metalcore.fused_softmax(x, dim), in_dims=in_dim)(x)
    assert same_bits(mapped, torch.stack([metalcore.fused_softmax(item, dim) for item in x.unbind(in_dim)]))


@pytest.mark.dtypes(torch.float32, torch.float64)
def test_functorch_gradients_are_those_of_autograd(device, dtype):
    x, dp = normal(4, 6, device=device, dtype=dtype), normal(4, 6, device=device, dtype=dtype)
    found = torch.func.grad(lambda x: (metalcore.fused_softmax(x) * dp).sum())(x)
    mapped = torch.func.vmap(torch.func.grad(lambda x, dp: (metalcore.fused_softmax(x) * dp).sum()))(x, dp)
    dx = oracles.softmax_backward(metalcore.fused_softmax(x), dp, -1)
    for got in (found, mapped):
        assert_within("softmax dx", got, dx.value, dx.bound)


@pytest.mark.dtypes(torch.float16, torch.bfloat16, torch.float32)
def test_autocast_runs_it_in_float32(device, dtype):
    x = normal(3, 65, device=device, dtype=dtype)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert same_bits(metalcore.fused_softmax(x), metalcore.fused_softmax(x.float()))


# --- errors ---------------------------------------------------------------------------------------

ERRORS = [
    (lambda d: torch.ones(2, 3, device=d), 2, ValueError, "dim", "2"),
    (lambda d: torch.ones(2, 3, device=d), -3, ValueError, "dim", "-3"),
    (lambda d: torch.ones((), device=d), 1, ValueError, "dim", "1"),
    (lambda d: torch.ones(2, 3, device=d, dtype=torch.int32), -1, TypeError, "x", "int32"),
    (lambda d: torch.ones(2, 3, device=d, dtype=torch.bool), 0, TypeError, "x", "bool"),
    (lambda d: torch.ones(2, 3, device=d, dtype=torch.complex64), -1, NotImplementedError, "x", "complex64"),
    (lambda d: [1.0], -1, TypeError, "x", "list"),
    (lambda d: None, -1, TypeError, "x", "None"),
]


@pytest.mark.parametrize("make, dim, kind, argument, got", ERRORS, ids=[f"{e[3]} {e[4]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, make, dim, kind, argument, got):
    with pytest.raises(kind) as error:
        metalcore.fused_softmax(make(device), dim)
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op="fused_softmax", argument=argument), str(error.value)), str(error.value)
    assert re.search(got, str(error.value)), str(error.value)


def test_results_and_gradients_of_another_shape_or_dtype_are_refused(device):
    p = torch.ones(2, 4, device=device)
    for d_probs, kind in ((p[0], ValueError), (p.half(), TypeError)):
        with pytest.raises(kind, match=ERROR_TEXT.format(op="softmax_bwd", argument="d_probs")):
            metalcore_backend.softmax_bwd(p, d_probs)


@pytest.mark.emulated
def test_float64_on_a_device_without_it_names_the_device(device):
    with pytest.raises(TypeError, match=ERROR_TEXT.format(op="fused_softmax", argument="x")) as error:
        metalcore.fused_softmax(torch.ones(2, 4, device=device, dtype=torch.float64))
    assert "mps" in str(error.value) and "float64" in str(error.value)


def test_oracle_is_torchs_function():
    x = torch.randn(4, 50, dtype=torch.float64)
    assert np.allclose(oracles.softmax(x, 0).value.astype(float), torch.softmax(x, 0).numpy(), rtol=1e-14)
