"""layer_norm and its residual form: bounds forward and backward, shapes, views, laws, derivatives, the module, errors."""

from __future__ import annotations

import re

import metalcore
import metalcore_backend
import oracles
import pytest
import torch
from support import (
    EMULATED,
    ERROR_TEXT,
    OTHER_DTYPE,
    ROUNDOFF,
    VIEWS,
    Unchanged,
    assert_fresh,
    assert_within,
    normal,
    same_bits,
    views,
    working_roundoff,
)
from torch.autograd import gradcheck, gradgradcheck

LENGTHS = (
    (1, 2, 3, 33, 128, 512, 1023, 4096, 4097, 16385)
    if EMULATED
    else (1, 2, 3, 5, 31, 32, 33, 127, 128, 1000, 1023, 1024, 1025, 4096, 4097, 16384, 16385, 32768)
)
# Dtypes of weight and bias: the input's, another, or none.
AFFINE = {"both": "ss", "other dtype": "oo", "weight": "s-", "bias": "-s", "neither": "--"}


def vectors(kind, shape, device, dtype):
    """Weight and bias."""
    dtypes = {"s": dtype, "o": OTHER_DTYPE[dtype]}
    return [None if k == "-" else normal(*shape, device=device, dtype=dtypes[k]) for k in AFFINE[kind]]


def assert_sum(name, got, want, dtype):
    """A gradient of the weight or the bias, rounded once to its own dtype."""
    own = ROUNDOFF[got.dtype] if ROUNDOFF[got.dtype] > working_roundoff(dtype) else 0.0
    assert_within(name, got, want.value, want.bound + own * abs(want.value), dtype)


def assert_norm_and_gradients(x, width, weight, bias, eps=1e-5, shape=None):
    """y, dx, dw and db of layer_norm within their bounds."""
    dy = normal(*x.shape, device=x.device, dtype=x.dtype)
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = metalcore.layer_norm(leaves[0], shape or x.shape[-1:], *leaves[1:], eps)
    want = oracles.layer_norm(x, width, weight, bias, eps)
    assert y.dtype == x.dtype and y.is_contiguous()
    assert_within("layer_norm y", y, want.value, want.bound)
    y.backward(dy)
    dx, dw, db = oracles.layer_norm_backward(dy, x, width, weight, eps)
    assert_within("layer_norm dx", leaves[0].grad, dx.value, dx.bound)
    for name, leaf, sums in (("dw", leaves[1], dw), ("db", leaves[2], db)):
        if leaf is not None:
            assert leaf.grad.dtype == leaf.dtype
            sums.value, sums.bound = (t.reshape(tuple(leaf.shape)) for t in (sums.value, sums.bound))
            assert_sum(f"layer_norm {name}", leaf.grad, sums, x.dtype)


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_rows_of_every_length_are_within_the_bounds(device, dtype, length):
    x = normal(3, length, device=device, dtype=dtype)
    assert_norm_and_gradients(x, length, *vectors("both", (length,), device, dtype))


@pytest.mark.parametrize("kind", AFFINE)
@pytest.mark.parametrize("length", [65, 512])
def test_weight_and_bias_may_have_another_dtype_or_be_none(device, dtype, length, kind):
    x = normal(5, length, device=device, dtype=dtype)
    assert_norm_and_gradients(x, length, *vectors(kind, (length,), device, dtype))


@pytest.mark.parametrize("rows, length", [(130, 48)] if EMULATED else [(1, 64), (4099, 8), (20000, 1), (1025, 513)])
def test_any_number_of_rows_is_within_the_bounds(device, dtype, rows, length):
    x = normal(rows, length, device=device, dtype=dtype)
    assert_norm_and_gradients(x, length, *vectors("both", (length,), device, dtype))


@pytest.mark.parametrize("shape, normalized", [((40,), 1), ((5, 7, 13), 1), ((3, 4, 6), 2), ((2, 3, 4, 6), 3)], ids=str)
def test_any_number_of_dimensions_is_within_the_bounds(device, dtype, shape, normalized):
    last = shape[len(shape) - normalized :]
    x = normal(*shape, device=device, dtype=dtype)
    width = int(torch.tensor(last).prod())
    assert_norm_and_gradients(x, width, *vectors("both", last, device, dtype), shape=last)


@pytest.mark.parametrize("eps", [0.0, 1e-2])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_a_large_mean_costs_no_digits(device, dtype, eps, offset):
    x = normal(5, 96, device=device, dtype=dtype) + offset
    assert_norm_and_gradients(x, 96, *vectors("both", (96,), device, dtype), eps)


@pytest.mark.nightly
@pytest.mark.parametrize("length", range(1, 300))
def test_every_length_up_to_300_is_within_the_bounds(device, dtype, length):
    for kind in AFFINE:
        x = normal(2, length, device=device, dtype=dtype)
        assert_norm_and_gradients(x, length, *vectors(kind, (length,), device, dtype))


# --- the residual form ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["both", "neither"])
@pytest.mark.parametrize("length", (1, 33, 1000, 16385) if EMULATED else (1, 3, 33, 1000, 4096, 16385))
def test_the_residual_form_is_the_norm_of_the_rounded_sum(device, dtype, length, kind):
    x, residual, dy, d_sum = (normal(4, length, device=device, dtype=dtype) for _ in range(4))
    weight, bias = vectors(kind, (length,), device, dtype)
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, residual, weight, bias)]
    output, residual_out = metalcore.fused_add_layernorm(*leaves)
    assert same_bits(residual_out, x + residual)
    assert same_bits(output, metalcore.layer_norm(residual_out, length, weight, bias))
    torch.autograd.backward((output, residual_out), (dy, d_sum))
    dx, dw, db = oracles.layer_norm_backward(dy, residual_out, length, weight, 1e-5, d_sum)
    assert_within("fused_add_layernorm dx", leaves[0].grad, dx.value, dx.bound)
    assert same_bits(leaves[0].grad, leaves[1].grad)
    if kind == "both":
        assert_sum("fused_add_layernorm dw", leaves[2].grad, dw, dtype)
        assert_sum("fused_add_layernorm db", leaves[3].grad, db, dtype)


# --- shapes, views, laws --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (0,), (3, 0)], ids=str)
def test_empty_inputs_give_empty_results_and_zero_gradients(device, dtype, shape):
    leaves = [torch.ones(s, device=device, dtype=dtype, requires_grad=True) for s in (shape, shape[-1:], shape[-1:])]
    y = metalcore.layer_norm(leaves[0], shape[-1:], *leaves[1:])
    assert y.shape == shape and y.dtype == dtype
    y.sum().backward()
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves)


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("shape", [(3, 64), (3, 5, 33)], ids=str)
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, shape, layout):
    operands = [normal(*s, device=device, dtype=dtype) for s in (shape, shape[-1:], shape[-1:], shape)]

    def results(x, weight, bias, dy):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        y = metalcore.layer_norm(leaves[0], x.shape[-1:], *leaves[1:])
        total = metalcore.fused_add_layernorm(x.detach(), dy, weight.detach(), bias.detach())
        return y.detach(), *total, *torch.autograd.grad(y, leaves, dy)

    expected = results(*operands)
    for i, view in views(layout, *operands):
        changed = [view if j == i else t for j, t in enumerate(operands)]
        with Unchanged(*changed):
            found = results(*changed)
        assert_fresh(found, tuple(changed))
        for j, (got, want) in enumerate(zip(found, expected)):
            assert same_bits(got, want), f"result {j} for another layout of operand {i}"


def test_a_row_with_nan_touches_no_other(device, dtype):
    x, dy = normal(5, 70, device=device, dtype=dtype), normal(5, 70, device=device, dtype=dtype)
    spoiled = x.clone()
    spoiled[2, 40] = float("nan")
    found = []
    for leaf in (x.clone(), spoiled):
        leaf.requires_grad_()
        y = metalcore.layer_norm(leaf, 70)
        y.backward(dy)
        found.append((y.detach(), leaf.grad))
    others = torch.tensor([0, 1, 3, 4], device=device)
    for clean, got in zip(*found):
        assert same_bits(got[others], clean[others]) and bool(got[2].isnan().all())


def test_the_same_input_gives_the_same_bits_and_permuting_rows_permutes_them(device, dtype):
    x, (weight, bias) = normal(301, 65, device=device, dtype=dtype), vectors("both", (65,), device, dtype)
    order = torch.randperm(301).to(device)
    grads = []
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = metalcore.layer_norm(leaves[0], 65, *leaves[1:])
        grads.append((y, *torch.autograd.grad(y, leaves, x)))
    assert all(same_bits(*pair) for pair in zip(*grads))
    assert same_bits(metalcore.layer_norm(x[order], 65, weight, bias), grads[0][0][order])


# --- derivatives and torch ------------------------------------------------------------------------


@pytest.mark.parametrize("shape, normalized", [((3, 5), 1), ((7,), 1), ((2, 3, 4), 2), ((0, 3), 1)], ids=str)
@pytest.mark.parametrize("kind", ["both", "weight", "bias", "neither"])
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, shape, normalized, kind):
    last = shape[len(shape) - normalized :]
    given = vectors(kind, last, device, dtype)
    inputs = [t.requires_grad_() for t in (normal(*shape, device=device, dtype=dtype), *given) if t is not None]

    def call(x, *rest):
        rest = list(rest)
        weight, bias = (None if t is None else rest.pop(0) for t in given)
        return metalcore.layer_norm(x, last, weight, bias, 1e-3)

    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.dtypes(torch.float64)
def test_derivatives_of_the_residual_form_are_those_of_finite_differences(device, dtype):
    inputs = [normal(*s, device=device, dtype=dtype).requires_grad_() for s in ((3, 5), (3, 5), (5,), (5,))]
    call = lambda *t: metalcore.fused_add_layernorm(*t, 1e-3)  # noqa: E731
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.parametrize("dims", [(0, None, None), (1, None, None), (-1, 0, None), (0, 1, 0), (None, 0, 1)], ids=str)
def test_vmap_is_a_loop(device, dtype, dims):
    operands = [normal(*s, device=device, dtype=dtype) for s in ((6, 6, 6), (6, 6), (6, 6))]
    operands = [t if dim is not None else t[0] for t, dim in zip(operands, dims)]
    call = lambda x, w, b: metalcore.layer_norm(x, 6, w, b)  # noqa: E731
    part = lambda t, dim, i: t if dim is None else t.select(dim, i)  # noqa: E731
    loop = [call(*(part(t, dim, i) for t, dim in zip(operands, dims))) for i in range(6)]
    assert same_bits(torch.func.vmap(call, in_dims=dims)(*operands), torch.stack(loop))


@pytest.mark.dtypes(torch.float32, torch.float64)
def test_functorch_gradients_are_those_of_autograd(device, dtype):
    x, dy = (normal(4, 6, device=device, dtype=dtype) for _ in range(2))
    weight, bias = vectors("both", (6,), device, dtype)
    loss = lambda x, w, b: (metalcore.layer_norm(x, 6, w, b) * dy).sum()  # noqa: E731
    wanted = oracles.layer_norm_backward(dy, x, 6, weight, 1e-5)
    for got, want in zip(torch.func.grad(loss, argnums=(0, 1, 2))(x, weight, bias), wanted):
        assert_within("layer_norm functorch", got, want.value, want.bound)


@pytest.mark.dtypes(torch.float16, torch.bfloat16, torch.float32)
def test_autocast_runs_it_in_float32_and_leaves_the_residual_form_alone(device, dtype):
    x, (weight, bias) = normal(3, 65, device=device, dtype=dtype), vectors("both", (65,), device, dtype)
    expected = metalcore.fused_add_layernorm(x, x, weight, bias)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert same_bits(metalcore.layer_norm(x, 65, weight, bias), metalcore.layer_norm(x.float(), 65, weight, bias))
        assert all(map(same_bits, metalcore.fused_add_layernorm(x, x, weight, bias), expected))


# --- the module, low-level functions --------------------------------------------------------------


def test_the_module_is_the_function_and_its_state_goes_to_torch_and_back(device, dtype):
    x = normal(2, 3, 12, device=device, dtype=dtype)
    for options in ({}, {"bias": False}, {"elementwise_affine": False}, {"eps": 1e-3}):
        ours = metalcore.MetalLayerNorm((3, 12), device=device, dtype=dtype, **options)
        theirs = torch.nn.LayerNorm((3, 12), device=device, dtype=dtype, **options)
        assert list(ours.state_dict()) == list(theirs.state_dict()) and f"(3, 12), eps={ours.eps}" in repr(ours)
        assert all(same_bits(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert same_bits(ours(x), metalcore.layer_norm(x, (3, 12), ours.weight, ours.bias, ours.eps))


def test_low_level_functions_are_those_of_the_public_ones(device, dtype):
    x, residual = (normal(3, 40, device=device, dtype=dtype) for _ in range(2))
    weight, bias = vectors("both", (40,), device, dtype)
    out, mean, rstd = metalcore_backend.layernorm_fwd(x, weight, bias, 1e-5)
    assert same_bits(out, metalcore.layer_norm(x, 40, weight, bias))
    assert mean.shape == rstd.shape == (3,) and mean.dtype == rstd.dtype
    assert metalcore_backend.layernorm_fwd(x, None, None, 1e-5)[0].shape == x.shape
    found = metalcore_backend.fused_add_layernorm(x, residual, weight, bias, 1e-5)
    assert len(found) == 4 and all(map(same_bits, found, metalcore.fused_add_layernorm(x, residual, weight, bias)))
    with pytest.raises(RuntimeError, match="not differentiable"):
        metalcore_backend.layernorm_fwd(x.requires_grad_(), weight, bias, 1e-5)


# --- errors ---------------------------------------------------------------------------------------


def tensor(*shape, dtype=torch.float32):
    return lambda device: torch.ones(shape, device=device, dtype=dtype)


ERRORS = [
    (tensor(2, 8), 7, None, None, ValueError, "normalized_shape", r"\[7\]"),
    (tensor(2, 8), (), None, None, ValueError, "normalized_shape", r"\[\]"),
    (tensor(2, 8), 8, tensor(7), None, ValueError, "weight", r"shape \[7\]"),
    (tensor(2, 8), 8, tensor(8), tensor(1, 8), ValueError, "bias", r"shape \[1, 8\]"),
    (tensor(2, 8, dtype=torch.int32), 8, None, None, TypeError, "input", "int32"),
    (tensor(2, 8, dtype=torch.complex64), 8, None, None, NotImplementedError, "input", "complex64"),
    (tensor(2, 8), 8, None, tensor(8, dtype=torch.int64), TypeError, "bias", "int64"),
    (lambda d: None, 1, None, None, TypeError, "input", "None"),
    (tensor(2, 8), 8, lambda d: [1.0] * 8, None, TypeError, "weight", "list"),
    (tensor(2, 8), 8, None, lambda d: torch.ones(8, device="meta"), ValueError, "bias", "meta"),
]


@pytest.mark.parametrize("x, shape, weight, bias, kind, argument, got", ERRORS, ids=[f"{e[5]} {e[6]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, x, shape, weight, bias, kind, argument, got):
    with pytest.raises(kind) as error:
        metalcore.layer_norm(x(device), shape, weight and weight(device), bias and bias(device))
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op="layer_norm", argument=argument), str(error.value)), str(error.value)
    assert re.search(got, str(error.value)), str(error.value)


def test_wrong_calls_of_the_residual_form_name_the_argument(device):
    x, w = torch.ones(2, 8, device=device), torch.ones(8, device=device)
    calls = (
        ((x, x[0], w, w), ValueError, "residual"),
        ((x, x.half(), w, w), TypeError, "residual"),
        ((x, x, w[:7], w), ValueError, "weight"),
        ((x, x, w, w[:7]), ValueError, "bias"),
        ((w[0], w[0], None, None), ValueError, "input"),
    )
    for args, kind, argument in calls:
        with pytest.raises(kind, match=ERROR_TEXT.format(op="fused_add_layernorm", argument=argument)):
            metalcore.fused_add_layernorm(*args)
