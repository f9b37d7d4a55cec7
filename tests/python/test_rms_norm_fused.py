"""The residual form of rms_norm, derivatives of both forms, and their modules."""

from __future__ import annotations

import re

import metalcore
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
    bits,
    normal,
    same_bits,
    views,
)
from torch.autograd import gradcheck, gradgradcheck

LENGTHS = (1, 3, 33, 128, 1000, 4097, 16385) if EMULATED else (1, 2, 3, 31, 33, 127, 128, 1000, 1025, 4096, 4097, 16385, 65537)


def operands(shape, device, dtype, weight_dtype=None):
    """input, residual and weight."""
    pair = [normal(*shape, device=device, dtype=dtype) for _ in range(2)]
    return *pair, normal(shape[-1], device=device, dtype=weight_dtype or dtype)


# --- the residual form ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "same dtype", "other dtype"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_sum_is_that_of_torch_and_the_output_is_its_norm_bit_for_bit(device, dtype, length, kind):
    x, residual, weight = operands((3, length), device, dtype, OTHER_DTYPE[dtype] if kind == "other dtype" else dtype)
    weight = None if kind == "none" else weight
    inputs = [t for t in (x, residual, weight) if t is not None]
    with Unchanged(*inputs):
        output, residual_out = metalcore.fused_add_rmsnorm(x, residual, weight, 1e-6)
    assert_fresh((output, residual_out), tuple(inputs))
    assert same_bits(residual_out, x + residual)
    assert same_bits(output, metalcore.rms_norm(residual_out, length, weight, 1e-6))
    want = oracles.rms_norm(residual_out, length, weight, 1e-6)
    assert_within("fused_add_rmsnorm y", output, want.value, want.bound)


@pytest.mark.parametrize("length", LENGTHS)
def test_both_inputs_get_the_gradient_of_the_norm_plus_that_of_the_sum(device, dtype, length):
    x, residual, weight = operands((4, length), device, dtype)
    leaves = [t.clone().requires_grad_() for t in (x, residual, weight)]
    dy, d_sum = (normal(4, length, device=device, dtype=dtype) for _ in range(2))
    outputs = metalcore.fused_add_rmsnorm(*leaves, 1e-6)
    torch.autograd.backward(outputs, (dy, d_sum))
    dx, dw = oracles.rms_norm_backward(dy, outputs[1], length, weight, 1e-6, d_sum)
    assert_within("fused_add_rmsnorm dx", leaves[0].grad, dx.value, dx.bound)
    assert_within("fused_add_rmsnorm dw", leaves[2].grad, dw.value, dw.bound)
    assert same_bits(leaves[0].grad, leaves[1].grad)
    assert leaves[0].grad.untyped_storage().data_ptr() != leaves[1].grad.untyped_storage().data_ptr()


def test_either_output_alone_has_a_gradient(device, dtype):
    x, residual, weight = operands((3, 40), device, dtype)
    dy = normal(3, 40, device=device, dtype=dtype)
    for which in (0, 1):
        leaf = x.clone().requires_grad_()
        metalcore.fused_add_rmsnorm(leaf, residual, weight, 1e-6)[which].backward(dy)
        if which == 1:
            assert same_bits(leaf.grad, dy)
        else:
            zero = torch.zeros_like(dy)
            dx, _ = oracles.rms_norm_backward(dy, x + residual, 40, weight, 1e-6, zero)
            assert_within("fused_add_rmsnorm dx", leaf.grad, dx.value, dx.bound)


@pytest.mark.parametrize("shape", [(24,), (2, 3, 24), (2, 1, 3, 24), (0, 24), (2, 0)], ids=str)
def test_the_residual_form_takes_any_number_of_dimensions(device, dtype, shape):
    x, residual, weight = operands(shape, device, dtype)
    output, residual_out = metalcore.fused_add_rmsnorm(x, residual, weight)
    assert output.shape == residual_out.shape == x.shape
    assert same_bits(residual_out, x + residual)
    assert same_bits(output, metalcore.rms_norm(residual_out, shape[-1], weight, 1e-6))


@pytest.mark.parametrize("layout", VIEWS)
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, layout):
    given = operands((2, 3, 36), device, dtype)
    expected = metalcore.fused_add_rmsnorm(*given)
    for i, view in views(layout, *given):
        changed = [view if j == i else t for j, t in enumerate(given)]
        found = metalcore.fused_add_rmsnorm(*changed)
        assert all(same_bits(got, want) for got, want in zip(found, expected)), ("input", "residual", "weight")[i]


def test_a_tensor_may_be_its_own_residual(device, dtype):
    x, _, weight = operands((3, 40), device, dtype)
    with Unchanged(x):
        output, residual_out = metalcore.fused_add_rmsnorm(x, x, weight)
    assert same_bits(residual_out, x + x)
    assert same_bits(output, metalcore.rms_norm(x + x, 40, weight, 1e-6))


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, normalized", [((3, 5), 1), ((7,), 1), ((2, 3, 4), 2), ((2, 1), 1), ((0, 3), 1)], ids=str)
@pytest.mark.parametrize("weighted", [True, False], ids=["weight", "no weight"])
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, shape, normalized, weighted):
    last = shape[len(shape) - normalized :]
    inputs = [normal(*shape, device=device, dtype=dtype).requires_grad_()]
    if weighted:
        inputs.append(normal(*last, device=device, dtype=dtype).requires_grad_())
    call = lambda x, weight=None: metalcore.rms_norm(x, last, weight, 1e-3)  # noqa: E731
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.parametrize("shape", [(3, 5), (7,), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("weighted", [True, False], ids=["weight", "no weight"])
@pytest.mark.dtypes(torch.float64)
def test_derivatives_of_the_residual_form_are_those_of_finite_differences(device, dtype, shape, weighted):
    x, residual, weight = (t.requires_grad_() for t in operands(shape, device, dtype))
    inputs = [x, residual, weight] if weighted else [x, residual]
    call = lambda x, residual, weight=None: metalcore.fused_add_rmsnorm(x, residual, weight, 1e-3)  # noqa: E731
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.dtypes(torch.float64)
def test_the_function_has_the_derivatives_of_finite_differences(device, dtype):
    x, weight = (normal(*s, device=device, dtype=dtype).requires_grad_() for s in ((3, 4), (4,)))
    call = lambda x, weight: metalcore.RMSNormFunction.apply(x, weight, 1e-3)  # noqa: E731
    assert gradcheck(call, (x, weight))
    assert gradgradcheck(call, (x, weight))


@pytest.mark.parametrize("create_graph", [False, True])
def test_only_gradients_that_are_asked_for_are_given(device, dtype, create_graph):
    x, residual, weight = operands((3, 20), device, dtype)
    dy = normal(3, 20, device=device, dtype=dtype)
    calls = {
        "rms_norm": lambda x, residual, weight: metalcore.rms_norm(x, 20, weight),
        "fused_add_rmsnorm": lambda x, residual, weight: metalcore.fused_add_rmsnorm(x, residual, weight)[0],
    }
    for name, call in calls.items():
        for wanted in ([0], [2], [0, 2], [1], [1, 2]):
            if name == "rms_norm" and 1 in wanted:
                continue
            leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((x, residual, weight))]
            call(*leaves).backward(dy, create_graph=create_graph)
            for i, leaf in enumerate(leaves):
                assert (leaf.grad is not None) == (i in wanted), f"{name} {wanted}"
                assert leaf.grad is None or (leaf.grad.dtype == dtype and leaf.grad.shape == leaf.shape)


def test_nothing_is_recorded_without_a_need(device, dtype):
    x, residual, weight = operands((3, 20), device, dtype)
    results = lambda: (metalcore.rms_norm(x, 20, weight), *metalcore.fused_add_rmsnorm(x, residual, weight))  # noqa: E731
    plain = results()
    x.requires_grad_()
    recorded = results()
    assert all(t.requires_grad for t in recorded) and not any(t.requires_grad for t in plain)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(plain, recorded))
    with torch.no_grad():
        assert not any(t.requires_grad for t in results())


# --- modules --------------------------------------------------------------------------------------


def test_the_module_is_the_function_with_its_weight(device, dtype):
    x = normal(2, 3, 12, device=device, dtype=dtype)
    module = metalcore.MetalRMSNorm(12, device=device, dtype=dtype)
    assert torch.equal(module.weight, torch.ones(12, device=device, dtype=dtype)) and module.eps == 1e-6
    torch.nn.init.normal_(module.weight)
    assert same_bits(module(x), metalcore.rms_norm(x, 12, module.weight, 1e-6))
    plane = metalcore.MetalRMSNorm((3, 12), eps=1e-3, device=device, dtype=dtype)
    assert plane.weight.shape == (3, 12) and same_bits(plane(x), metalcore.rms_norm(x, (3, 12), plane.weight, 1e-3))
    bare = metalcore.MetalRMSNorm([3, 12], eps=None, elementwise_affine=False)
    assert bare.weight is None and not list(bare.parameters()) and not bare.state_dict()
    assert same_bits(bare(x), metalcore.rms_norm(x, (3, 12)))


def test_hidden_size_is_an_alias_and_exactly_one_of_the_two_is_given(device):
    assert metalcore.MetalRMSNorm(hidden_size=8).normalized_shape == metalcore.MetalRMSNorm(8).normalized_shape == (8,)
    for wrong in (lambda: metalcore.MetalRMSNorm(), lambda: metalcore.MetalRMSNorm(8, hidden_size=8)):
        with pytest.raises(ValueError, match=ERROR_TEXT.format(op="MetalRMSNorm", argument="normalized_shape")):
            wrong()
    with pytest.raises(TypeError):
        metalcore.MetalRMSNorm(8, 1e-6, True, None, None, 8)


@pytest.mark.parametrize("affine", [True, False])
def test_state_dicts_go_to_torch_and_back(device, dtype, affine):
    ours = metalcore.MetalRMSNorm((2, 6), eps=1e-5, elementwise_affine=affine, device=device, dtype=dtype)
    theirs = torch.nn.RMSNorm((2, 6), eps=1e-5, elementwise_affine=affine, device=device, dtype=dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for source, target in ((ours, theirs), (theirs, ours)):
        if affine:
            torch.nn.init.normal_(source.weight)
        target.load_state_dict(source.state_dict(), strict=True)
        assert not affine or same_bits(ours.weight, theirs.weight)


def test_the_residual_module_is_its_function(device, dtype):
    module = metalcore.FusedAddRMSNorm(20, eps=1e-4).to(device, dtype)
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert torch.equal(module.weight, torch.ones(20, device=device, dtype=dtype))
    torch.nn.init.normal_(module.weight)
    x, residual, _ = operands((2, 3, 20), device, dtype)
    for got, want in zip(module(x, residual), metalcore.fused_add_rmsnorm(x, residual, module.weight, 1e-4)):
        assert same_bits(got, want)


def test_modules_describe_themselves(device):
    assert "(8,)" in repr(metalcore.MetalRMSNorm(8)) and "1e-06" in repr(metalcore.MetalRMSNorm(8))
    assert "8" in repr(metalcore.FusedAddRMSNorm(8))


# --- errors ---------------------------------------------------------------------------------------


def tensor(*shape, dtype=torch.float32):
    return lambda device: torch.ones(shape, device=device, dtype=dtype)


x8, w8 = tensor(2, 8), tensor(8)
ERRORS = [
    (tensor(), tensor(), None, ValueError, "input", r"shape \[\]"),
    (x8, tensor(8), w8, ValueError, "residual", r"shape \[8\]"),
    (x8, tensor(3, 8), w8, ValueError, "residual", r"shape \[3, 8\]"),
    (x8, tensor(2, 8, dtype=torch.float16), w8, TypeError, "residual", "float16"),
    (x8, x8, tensor(7), ValueError, "weight", r"shape \[7\]"),
    (x8, x8, tensor(2, 8), ValueError, "weight", r"shape \[2, 8\]"),
    (tensor(2, 8, dtype=torch.int64), x8, w8, TypeError, "input", "int64"),
    (x8, tensor(2, 8, dtype=torch.bool), w8, TypeError, "residual", "bool"),
    (tensor(2, 8, dtype=torch.complex64), x8, w8, NotImplementedError, "input", "complex64"),
    (x8, lambda d: torch.ones(2, 8, device="meta"), w8, ValueError, "residual", "meta"),
    (lambda d: None, x8, w8, TypeError, "input", "None"),
    (x8, lambda d: None, w8, TypeError, "residual", "None"),
]


@pytest.mark.parametrize("x, residual, weight, kind, argument, got", ERRORS, ids=[f"{e[4]} {e[5]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, x, residual, weight, kind, argument, got):
    with pytest.raises(kind) as error:
        metalcore.fused_add_rmsnorm(x(device), residual(device), weight and weight(device))
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op="fused_add_rmsnorm", argument=argument), str(error.value)), str(error.value)
    assert re.search(got, str(error.value)), str(error.value)
