"""Activations: bounds forward and backward, shapes, views, laws, derivatives, modules, errors."""

from __future__ import annotations

import re

import metalcore
import metalcore_backend as mc
import numpy as np
import oracles
import pytest
import torch
from support import (
    ERROR_TEXT,
    OTHER_DTYPE,
    ROUNDOFF,
    VIEWS,
    Unchanged,
    assert_fresh,
    assert_within,
    gamma,
    normal,
    rho,
    same_bits,
    views,
    working_roundoff,
)
from support import exact as values_of
from torch.autograd import gradcheck, gradgradcheck

CURVES = ("silu", "none", "tanh")
SHAPES = [(1,), (3,), (2, 1), (1023,), (5, 13, 13), (2, 3, 257), (7, 1), (2, 2049)]
PLAIN = {
    "silu": metalcore.metal_silu,
    "none": metalcore.metal_gelu,
    "tanh": lambda x: metalcore.metal_gelu(x, "tanh"),
}
BIAS = {
    "silu": metalcore.bias_silu,
    "none": metalcore.bias_gelu,
    "tanh": lambda x, bias: metalcore.bias_gelu(x, bias, "tanh"),
}
GATED = {
    "silu": metalcore.swiglu,
    "none": metalcore.geglu,
    "tanh": lambda gate, up: metalcore.geglu(gate, up, "tanh"),
}
FORMS = {
    **{f"{name} alone": (function, ("x",)) for name, function in PLAIN.items()},
    **{f"{name} with a bias": (function, ("x", "bias")) for name, function in BIAS.items()},
    **{f"{name} gate": (function, ("gate", "up")) for name, function in GATED.items()},
}
every_form = pytest.mark.parametrize("form", FORMS)
every_curve = pytest.mark.parametrize("curve", CURVES)


def operands(form, shape, device, dtype, scale=1.0):
    """The function of a form, and its inputs."""
    function, names = FORMS[form]
    shapes = [shape[-1:] if name == "bias" else shape for name in names]
    return function, [normal(*s, device=device, dtype=dtype, scale=scale) for s in shapes]


def derivatives(function, inputs, dy):
    """The result, and the gradients of every input."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def bounded(what, got, want, scale, dtype=None):
    """rho |want| + 8 w scale."""
    dtype = dtype or got.dtype
    bound = rho(got.dtype) * np.abs(want) + 8 * working_roundoff(dtype) * scale
    bound = bound + float(torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny)
    assert_within(what, got, want, bound, dtype)


# --- accuracy -------------------------------------------------------------------------------------


@every_curve
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_functions_and_derivatives_are_within_the_bounds(device, dtype, shape, scale, curve):
    if scale != 1.0 and len(shape) > 1:
        shape = (301,)
    x, up, dy = (normal(*shape, device=device, dtype=dtype, scale=s) for s in (scale, 1.0, 1.0))
    f, slope = oracles.activation(curve, values_of(x))
    u, d, size = values_of(up), values_of(dy), np.abs(values_of(x))
    y, dx = derivatives(PLAIN[curve], [x], dy)
    assert y.dtype == dx.dtype == dtype and y.is_contiguous()
    bounded(f"{curve} y", y, f, size)
    bounded(f"{curve} dx", dx, d * slope, np.abs(d) * (1 + size))
    h, d_gate, d_up = derivatives(GATED[curve], [x, up], dy)
    bounded(f"{curve} gated h", h, f * u, size * np.abs(u))
    bounded(f"{curve} d_gate", d_gate, d * u * slope, np.abs(d * u) * (1 + size))
    bounded(f"{curve} d_up", d_up, d * f, np.abs(d) * size)


@every_curve
@pytest.mark.parametrize("other", [False, True], ids=["one dtype", "bias of another dtype"])
@pytest.mark.parametrize("shape", [(1,), (5, 7), (2, 3, 33), (70, 8), (1030, 3), (3, 264)], ids=str)
def test_bias_forms_are_within_the_bounds(device, dtype, shape, curve, other):
    x, dy = (normal(*shape, device=device, dtype=dtype) for _ in range(2))
    bias = normal(shape[-1], device=device, dtype=OTHER_DTYPE[dtype] if other else dtype)
    h = values_of(x) + values_of(bias)
    f, slope = oracles.activation(curve, h)
    size = np.abs(values_of(x)) + np.abs(values_of(bias))
    y, dx, db = derivatives(BIAS[curve], [x, bias], dy)
    assert y.dtype == dtype and db.dtype == bias.dtype
    bounded(f"bias {curve} y", y, f, size)
    terms, scale = values_of(dy) * slope, np.abs(values_of(dy)) * (1 + size)
    bounded(f"bias {curve} dx", dx, terms, scale)
    rows = x.numel() // shape[-1]
    total, scale = terms.reshape(rows, -1).sum(0), scale.reshape(rows, -1).sum(0)
    rounding = ROUNDOFF[bias.dtype] if ROUNDOFF[bias.dtype] > working_roundoff(dtype) else 0.0
    assert_within(f"bias {curve} db", db, total, rounding * np.abs(total) + 2 * gamma(rows, dtype) * scale, dtype)


@every_curve
@pytest.mark.dtypes(torch.float32)
def test_values_far_below_zero_keep_their_digits(device, dtype, curve):
    x = -torch.linspace(0.1, {"silu": 80.0, "none": 12.5, "tanh": 9.5}[curve], 200).to(device, dtype)
    f, _ = oracles.activation(curve, values_of(x))
    depth = np.abs(np.log(f / values_of(x)))
    assert_within(f"{curve} tail", PLAIN[curve](x), f, np.abs(f) * (8 + 2 * depth) * 2.0**-24)


@every_curve
def test_infinities_give_limits_and_nan_stays_alone(device, dtype, curve):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([1.0, inf, -inf, nan, 0.0, 2.0], device=device, dtype=dtype)
    y, dx = derivatives(PLAIN[curve], [x], torch.ones_like(x))
    assert y[1] == inf and y[2] == 0 and y[3].isnan() and y[4] == 0 and y[[0, 5]].isfinite().all()
    assert dx[1] == 1 and dx[2] == 0 and dx[3].isnan() and dx[4] == 0.5 and dx[[0, 5]].isfinite().all()


@pytest.mark.native
@every_form
@pytest.mark.parametrize("shape", [(5, 123, 123), (3, 4097), (2_000_003,)], ids=str)
@pytest.mark.dtypes(torch.float32, torch.bfloat16)
def test_large_odd_sizes_agree_with_torch(device, dtype, shape, form):
    if "bias" in form and len(shape) == 1:
        shape = (20_001, 99)
    function, inputs = operands(form, shape, device, dtype)
    dy = normal(*shape, device=device, dtype=dtype)
    found = derivatives(function, inputs, dy)
    wide = derivatives(torch_form(form), [t.double() for t in inputs], dy.double())
    u = max(rho(dtype), 0.0) + 8 * working_roundoff(dtype)
    for got, want in zip(found[: 3 if "gate" in form else 2], wide):
        size = 1 + sum(t.double().abs() for t in inputs) * (1 + inputs[-1].double().abs())
        assert bool(((got.double() - want).abs() <= u * want.abs() + u * size * (1 + dy.double().abs())).all())


def torch_form(form):
    """The same in torch's own operations."""
    curve, _, kind = form.partition(" ")
    act = torch.nn.functional.silu if curve == "silu" else lambda x: torch.nn.functional.gelu(x, approximate=curve)
    if kind == "alone":
        return act
    return (lambda x, bias: act(x + bias)) if "bias" in kind else lambda gate, up: act(gate) * up


# --- shapes, views, laws --------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0)], ids=str)
def test_empty_inputs_give_empty_results_and_zero_gradients(device, dtype, shape, form):
    function, inputs = operands(form, shape, device, dtype)
    y, *grads = derivatives(function, inputs, torch.empty(shape, device=device, dtype=dtype))
    assert y.shape == shape and y.dtype == dtype
    assert all(same_bits(grad, torch.zeros_like(t)) for grad, t in zip(grads, inputs))


def test_scalars_are_taken(device, dtype):
    x = normal(device=device, dtype=dtype)
    assert metalcore.metal_gelu(x).shape == metalcore.swiglu(x, x).shape == ()
    assert same_bits(metalcore.metal_silu(x), metalcore.metal_silu(x[None])[0])


@every_form
@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("shape", [(3, 5, 33), (2, 264)], ids=str)
@pytest.mark.dtypes(torch.float32, torch.bfloat16)
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, shape, layout, form):
    function, inputs = operands(form, shape, device, dtype)
    dy = normal(*shape, device=device, dtype=dtype)

    def results(*tensors):
        *given, gradient = tensors
        leaves = [t.detach().requires_grad_() for t in given]
        y = function(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, gradient)

    expected = results(*inputs, dy)
    for i, view in views(layout, *inputs, dy):
        changed = [view if j == i else t for j, t in enumerate((*inputs, dy))]
        with Unchanged(*changed):
            found = results(*changed)
        assert_fresh(found, tuple(changed))
        assert all(same_bits(got, want) for got, want in zip(found, expected))


@pytest.mark.parametrize("form", [form for form in FORMS if "bias" not in form])
@pytest.mark.parametrize("shape", [(3, 130), (2, 5, 4128), (1, 7, 48), (4, 1, 2)], ids=str)
def test_halves_of_one_tensor_are_like_their_copies(device, dtype, form, shape):
    function, names = FORMS[form]
    both = normal(*shape, device=device, dtype=dtype)
    parts = both.chunk(2, -1)[: len(names)]
    dy = normal(*parts[0].shape, device=device, dtype=dtype)

    def results(parts):
        leaves = [t.detach().requires_grad_() for t in parts]
        y = function(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    with Unchanged(both, dy):
        found = results(parts)
    assert_fresh(found, (both, dy))
    assert all(same_bits(*pair) for pair in zip(found, results([t.contiguous() for t in parts])))


@pytest.mark.dtypes(torch.float32)
def test_rows_may_repeat_lie_apart_or_differ_in_distance(device, dtype):
    wide, row = normal(6, 5, 40, device=device, dtype=dtype), normal(40, device=device, dtype=dtype)
    for gate, up in (
        (row.expand(6, 5, 40), wide),
        (wide, row.expand(6, 5, 40)),
        (wide[::2], wide[3:]),
        (wide[:, ::2, 3:20], wide[:, :3, 20:37]),
        (wide[..., ::2], wide[..., 1::2]),
        (wide[:, 1:, 8:], wide[:, :-1, :-8]),
    ):
        assert same_bits(metalcore.swiglu(gate, up), metalcore.swiglu(gate.contiguous(), up.contiguous()))


def test_swiglu_bwd_is_the_derivative_of_swiglu(device, dtype):
    d_h, gate, up = (normal(3, 41, device=device, dtype=dtype) for _ in range(3))
    _, *want = derivatives(metalcore.swiglu, [gate, up], d_h)
    for call in (metalcore.swiglu_bwd, mc.swiglu_bwd_strided):
        found = call(d_h.mT.contiguous().mT, gate, up)
        assert all(same_bits(*pair) for pair in zip(found, want))
    with pytest.raises(RuntimeError, match="not differentiable"):
        metalcore.swiglu_bwd(d_h, gate.clone().requires_grad_(), up)


def test_low_level_functions_are_the_public_ones(device, dtype):
    x, up, dy = (normal(3, 20, device=device, dtype=dtype) for _ in range(3))
    bias = normal(20, device=device, dtype=dtype)
    for form in ("none", "tanh"):
        y, dx = derivatives(lambda x, form=form: metalcore.metal_gelu(x, form), [x], dy)
        assert same_bits(mc.gelu_fwd(x, form), y) and same_bits(mc.gelu_bwd(dy, x, approximate=form), dx)
        assert same_bits(mc.bias_gelu_fwd(x, bias, form), metalcore.bias_gelu(x, bias, form))
    y, dx = derivatives(metalcore.metal_silu, [x], dy)
    assert same_bits(mc.silu_fwd(x), y) and same_bits(mc.silu_bwd(dy, x), dx)
    assert same_bits(mc.bias_silu_fwd(x, bias), metalcore.bias_silu(x, bias))
    assert same_bits(mc.swiglu_fwd(x, up), metalcore.swiglu(x, up))


# --- derivatives and transforms -------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("shape", [(3, 4), (5,), (0, 3)], ids=str)
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, shape, form):
    function, inputs = operands(form, shape, device, dtype)
    leaves = [t.requires_grad_() for t in inputs]
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@every_form
def test_only_gradients_that_are_asked_for_are_given(device, dtype, form):
    function, inputs = operands(form, (3, 20), device, dtype)
    dy = normal(3, 20, device=device, dtype=dtype)
    for wanted in range(len(inputs)):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(inputs)]
        function(*leaves).backward(dy)
        assert all((leaf.grad is not None) == (i == wanted) for i, leaf in enumerate(leaves))
    assert not function(*inputs).requires_grad


@every_form
@pytest.mark.dtypes(torch.float32, torch.float64)
def test_vmap_and_grad_of_functorch_are_loops_over_items(device, dtype, form):
    function, inputs = operands(form, (4, 3, 6), device, dtype)
    if "bias" in form:
        inputs[1] = normal(4, 6, device=device, dtype=dtype)
    found = torch.func.vmap(function)(*inputs)
    looped = torch.stack([function(*item) for item in zip(*inputs)])
    torch.testing.assert_close(found, looped)
    total = lambda *item: function(*item).sum()  # noqa: E731
    found = torch.func.vmap(torch.func.grad(total))(*inputs)
    looped = torch.stack([torch.func.grad(total)(*item) for item in zip(*inputs)])
    torch.testing.assert_close(found, looped)


@pytest.mark.native
@pytest.mark.parametrize("form", ["none alone", "silu with a bias", "silu gate"])
@pytest.mark.dtypes(torch.float32)
def test_compiled_code_gives_the_same_without_a_graph_break(device, dtype, form):
    function, inputs = operands(form, (3, 40), device, dtype)
    dy = normal(3, 40, device=device, dtype=dtype)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for got, want in zip(derivatives(compiled, inputs, dy), derivatives(function, inputs, dy)):
        assert same_bits(got, want)


@pytest.mark.dtypes(torch.float32)
def test_autocast_leaves_activations_alone(device, dtype):
    x = normal(3, 65, device=device, dtype=dtype)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert metalcore.metal_gelu(x).dtype == metalcore.swiglu(x, x).dtype == dtype


# --- modules and errors ---------------------------------------------------------------------------


def test_modules_are_their_functions(device, dtype):
    x = normal(3, 20, device=device, dtype=dtype)
    assert same_bits(metalcore.MetalGELU()(x), metalcore.metal_gelu(x))
    assert same_bits(metalcore.MetalGELU("tanh")(x), metalcore.metal_gelu(x, approximate="tanh"))
    assert same_bits(metalcore.MetalSiLU()(x), metalcore.metal_silu(x))
    assert "tanh" in repr(metalcore.MetalGELU("tanh")) and not metalcore.MetalGELU().state_dict()


def tensor(*shape, dtype=torch.float32):
    return lambda device: torch.ones(shape, device=device, dtype=dtype)


x8 = tensor(2, 8)
ERRORS = [
    ("metal_gelu", [tensor(2, 8, dtype=torch.int32)], TypeError, "x", "int32"),
    ("metal_gelu", [lambda d: [1.0]], TypeError, "x", "list"),
    ("metal_gelu", [x8, lambda d: "erf"], ValueError, "approximate", "erf"),
    ("metal_silu", [tensor(2, dtype=torch.complex64)], NotImplementedError, "x", "complex64"),
    ("bias_gelu", [x8, tensor(7)], ValueError, "bias", r"shape \[7\]"),
    ("bias_gelu", [x8, tensor(1, 8)], ValueError, "bias", r"shape \[1, 8\]"),
    ("bias_silu", [tensor(), tensor()], ValueError, "x", r"shape \[\]"),
    ("bias_silu", [x8, lambda d: None], TypeError, "bias", "None"),
    ("bias_silu", [x8, tensor(8, dtype=torch.int64)], TypeError, "bias", "int64"),
    ("swiglu", [x8, tensor(8)], ValueError, "up", r"shape \[8\]"),
    ("swiglu", [x8, tensor(2, 8, dtype=torch.float16)], TypeError, "up", "float16"),
    ("geglu", [x8, lambda d: torch.ones(2, 8, device="meta")], ValueError, "up", "meta"),
    ("geglu", [x8, x8, lambda d: None], ValueError, "approximate", "None"),
    ("swiglu_bwd", [tensor(8), x8, x8], ValueError, "d_h", r"shape \[8\]"),
    ("swiglu_bwd", [x8, x8, tensor(8)], ValueError, "up", r"shape \[8\]"),
    ("swiglu_bwd", [tensor(2, 8, dtype=torch.float16), x8, x8], TypeError, "d_h", "float16"),
]


@pytest.mark.parametrize("op, make, kind, argument, got", ERRORS, ids=[f"{e[0]} {e[3]} {e[4]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, op, make, kind, argument, got):
    with pytest.raises(kind) as error:
        getattr(metalcore, op)(*(one(device) for one in make))
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op=op, argument=argument), str(error.value)), str(error.value)
    assert re.search(got, str(error.value)), str(error.value)
