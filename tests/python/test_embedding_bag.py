"""embedding_bag: bounds forward and backward, offsets, padding, views, indices out of range, derivatives, the module."""

from __future__ import annotations

import re

import metalcore
import metalcore_backend
import oracles
import pytest
import torch
import torch.nn.functional as F
from support import EMULATED, ERROR_TEXT, VIEWS, Unchanged, assert_fresh, assert_within, normal, same_bits, views
from torch.autograd import gradcheck, gradgradcheck

MODES = ("sum", "mean", "max")
SIZES = [3, 0, 1, 17, 300, 0]
COLUMNS = (1, 3, 4, 64, 123, 260, 1023) if EMULATED else (1, 2, 3, 4, 8, 31, 64, 123, 256, 260, 1023, 1024, 4097)


def draw(sizes, rows, device, dtype=torch.int64):
    """Indices, and offsets with the end of the last bag."""
    ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    return torch.randint(max(rows, 1), (sum(sizes),)).to(device, dtype), offsets.to(device, dtype)


def assert_bags(device, dtype, rows, columns, sizes, mode, weighted=False, padding=None, index=torch.int64, **options):
    """y and every gradient within their bounds."""
    weight = normal(rows, columns, device=device, dtype=dtype).requires_grad_()
    indices, offsets = draw(sizes, rows, device, index)
    if padding is not None:
        indices[::4] = padding % rows
    samples = normal(len(indices), device=device, dtype=dtype).requires_grad_() if weighted else None
    if options.get("include_last_offset") is False:
        offsets = offsets[:-1]
    y = metalcore.embedding_bag(weight, indices, offsets, mode, per_sample_weights=samples, padding_idx=padding, **options)
    assert y.dtype == dtype and y.shape == (len(sizes), columns) and y.is_contiguous()
    dy = normal(*y.shape, device=device, dtype=dtype)
    y.backward(dy)
    row = None if padding is None else padding % rows
    wants = oracles.embedding_bag(weight, indices, sizes, mode, samples, row, dy)
    found = (("y", y), ("dw", weight.grad)) + ((("d samples", samples.grad),) if weighted else ())
    for (name, got), want in zip(found, wants):
        assert got.dtype == dtype
        assert_within(f"embedding_bag {name}", got, want.value, want.bound)


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_rows_of_every_width_are_within_the_bounds(device, dtype, columns, mode):
    assert_bags(device, dtype, 50, columns, SIZES, mode)


@pytest.mark.parametrize("columns", [3, 64, 132])
def test_samples_and_padding_are_within_the_bounds(device, dtype, columns):
    assert_bags(device, dtype, 50, columns, SIZES, "sum", weighted=True)
    assert_bags(device, dtype, 50, columns, SIZES, "sum", weighted=True, padding=7, index=torch.int32)
    for mode in MODES:
        assert_bags(device, dtype, 50, columns, SIZES, mode, padding=-1, include_last_offset=False)


@pytest.mark.parametrize("mode", MODES)
def test_long_bags_and_rows_that_many_entries_share_are_within_the_bounds(device, dtype, mode):
    assert_bags(device, dtype, 1, 8, [3000 if EMULATED else 20_000, 5], mode)
    assert_bags(device, dtype, 3, 8, [2] * 500, mode)


@pytest.mark.native
@pytest.mark.parametrize("mode", MODES)
def test_large_weights_are_within_the_bounds(device, dtype, mode):
    assert_bags(device, dtype, 4000, 1024, [128] * 16, mode)
    assert_bags(device, dtype, 30_000, 96, [40] * 300, mode)


# --- shapes, views, values ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_empty_inputs_give_empty_results_or_zeros(device, dtype, mode):
    for rows, columns, sizes in ((5, 7, []), (5, 7, [0, 0]), (0, 7, [0]), (5, 0, [3, 2])):
        assert_bags(device, dtype, rows, columns, sizes, mode)
    weight, none = normal(5, 7, device=device, dtype=dtype), torch.empty(0, dtype=torch.int64, device=device)
    assert metalcore.embedding_bag(weight, none, none, mode, include_last_offset=False).shape == (0, 7)


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("columns", [5, 64])
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, columns, layout):
    indices, offsets = draw([5, 0, 40], 9, device)
    operands = [normal(9, columns, device=device, dtype=dtype), normal(45, device=device, dtype=dtype)]
    operands.append(normal(3, columns, device=device, dtype=dtype))

    def results(weight, samples, dy):
        weight, samples = weight.detach().requires_grad_(), samples.detach().requires_grad_()
        y = metalcore.embedding_bag(weight, indices, offsets, per_sample_weights=samples)
        return y.detach(), *torch.autograd.grad(y, (weight, samples), dy)

    expected = results(*operands)
    for i, view in views(layout, *operands):
        changed = [view if j == i else t for j, t in enumerate(operands)]
        with Unchanged(*changed, indices, offsets):
            found = results(*changed)
        assert_fresh(found, tuple(changed))
        for name, got, want in zip(("y", "dw", "d samples"), found, expected):
            assert same_bits(got, want), f"{name} for another layout of {i}"
    weight = operands[0]
    spread = torch.stack([indices, indices], 1)[:, 0]
    assert same_bits(metalcore.embedding_bag(weight, spread, offsets), metalcore.embedding_bag(weight, indices, offsets))


@pytest.mark.parametrize("mode", MODES)
def test_the_types_of_indices_and_the_forms_of_offsets_give_the_same_bits(device, dtype, mode):
    weight = normal(9, 12, device=device, dtype=dtype)
    indices, offsets = draw([5, 0, 40], 9, device)
    want = metalcore.embedding_bag(weight, indices, offsets, mode)
    for index, offset in ((indices.int(), offsets.int()), (indices.int(), offsets), (indices, offsets.int())):
        assert same_bits(metalcore.embedding_bag(weight, index, offset, mode), want)
    assert same_bits(metalcore.embedding_bag(weight, indices, offsets[:-1], mode, include_last_offset=False), want)
    assert same_bits(metalcore_backend.embedding_bag(weight, indices, offsets, MODES.index(mode)), want)


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_are_not_a_number_stay_so_and_touch_no_other(device, dtype, mode):
    weight = normal(6, 20, device=device, dtype=dtype)
    indices, offsets = torch.tensor([0, 3, 5, 1, 0, 4, 2], device=device), torch.tensor([0, 2, 5, 7], device=device)
    clean = metalcore.embedding_bag(weight, indices, offsets, mode)
    weight[1] = float("nan")
    leaf = weight.requires_grad_()
    y = metalcore.embedding_bag(leaf, indices, offsets, mode)
    assert bool(y[1].isnan().all()) and same_bits(y[0], clean[0]) and same_bits(y[2], clean[2])
    dy = torch.ones_like(y)
    dy[0] = float("nan")
    y.backward(dy)
    touched = {0, 3} if mode != "max" else set()
    assert all(bool(leaf.grad[row].isnan().any()) == (row in touched) for row in (1, 2, 4, 5, *touched))


def test_a_row_of_padding_poisons_nothing_and_has_no_gradient(device, dtype):
    weight = normal(4, 8, device=device, dtype=dtype)
    weight[2] = float("nan")
    for mode in MODES:
        leaf = weight.detach().requires_grad_()
        indices, offsets = torch.tensor([0, 2, 1, 2, 2], device=device), torch.tensor([0, 3, 5], device=device)
        y = metalcore.embedding_bag(leaf, indices, offsets, mode, padding_idx=2)
        y.sum().backward()
        assert bool(y.isfinite().all()) and not bool(y[1].any()) and not bool(leaf.grad[2:].any())


def test_the_same_input_twice_gives_the_same_bits_and_permuting_bags_permutes_them(device, dtype):
    weight = normal(7, 33, device=device, dtype=dtype)
    rows = torch.randint(7, (12, 9)).to(device)
    offsets = torch.arange(0, 109, 9, device=device)
    order = torch.randperm(12).to(device)
    call = lambda rows: metalcore.embedding_bag(weight, rows.reshape(-1), offsets)  # noqa: E731
    assert same_bits(call(rows), call(rows)) and same_bits(call(rows[order]), call(rows)[order])

    def gradient():
        leaf = weight.detach().requires_grad_()
        metalcore.embedding_bag(leaf, rows.reshape(-1), offsets).square().sum().backward()
        return leaf.grad

    assert same_bits(gradient(), gradient())


@pytest.mark.parametrize("outside", [6, -1, 2**31 - 1, -(2**31), 2**40])
def test_an_index_outside_the_weight_is_an_error_on_cpu_and_a_row_of_nan_on_a_gpu(device, outside):
    index = torch.int64 if abs(outside) > 2**31 else torch.int32
    indices = torch.tensor([0, outside, 2, 3], device=device, dtype=index)
    offsets = torch.tensor([0, 2, 4], device=device, dtype=index)
    for mode in MODES:
        weight = normal(6, 5, device=device, dtype=torch.float32).requires_grad_()
        if device.type == "cpu" and not EMULATED:
            with pytest.raises(IndexError, match=ERROR_TEXT.format(op="embedding_bag", argument="indices")):
                metalcore.embedding_bag(weight, indices, offsets, mode)
            continue
        y = metalcore.embedding_bag(weight, indices, offsets, mode)
        y.nansum().backward()
        assert bool(y[0].isnan().all()) and bool(y[1].isfinite().all())
        assert not bool(weight.grad[[0, 1, 4, 5]].any()) and bool(weight.grad[[2, 3]].any())
    samples = normal(4, device=device, dtype=torch.float32).requires_grad_()
    if device.type != "cpu" or EMULATED:
        metalcore.embedding_bag(weight.detach(), indices, offsets, per_sample_weights=samples).nansum().backward()
        assert not bool(samples.grad[:2].any()) and bool(samples.grad[2:].all())


def test_offsets_out_of_range_are_an_error_on_cpu_and_clamped_on_a_gpu(device):
    weight, indices = normal(6, 5, device=device, dtype=torch.float32), torch.arange(4, device=device)
    for values in ([1, 4], [0, 5], [0, 3, 2], [0, -1], [-3, 2**40]):
        offsets = torch.tensor(values, device=device)
        if device.type == "cpu" and not EMULATED:
            with pytest.raises(ValueError, match=ERROR_TEXT.format(op="embedding_bag", argument="offsets")):
                metalcore.embedding_bag(weight, indices, offsets)
        else:
            leaf = weight.detach().requires_grad_()
            y = metalcore.embedding_bag(leaf, indices, offsets)
            y.sum().backward()
            assert bool(y.isfinite().all()) and bool(leaf.grad.isfinite().all())


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.dtypes(torch.float64)
@pytest.mark.parametrize("mode", MODES)
def test_first_and_second_derivatives_are_right(device, dtype, mode):
    weight = normal(5, 3, device=device, dtype=dtype).requires_grad_()
    indices, offsets = draw([3, 0, 4], 5, device, torch.int32 if mode == "mean" else torch.int64)
    for padding in (None, int(indices[0])):

        def call(weight, padding=padding):
            return metalcore.embedding_bag(weight, indices, offsets, mode, padding_idx=padding)

        assert gradcheck(call, (weight,)) and gradgradcheck(call, (weight,))
    if mode == "sum":
        samples = normal(7, device=device, dtype=dtype).requires_grad_()

        def weighted(weight, samples):
            return metalcore.embedding_bag(weight, indices, offsets, per_sample_weights=samples)

        assert gradcheck(weighted, (weight, samples)) and gradgradcheck(weighted, (weight, samples))
        assert gradcheck(lambda s: weighted(weight.detach(), s), (samples,))
    for rows, sizes in ((0, [0]), (4, [])):
        empty = normal(rows, 3, device=device, dtype=dtype).requires_grad_()
        y = metalcore.embedding_bag(empty, *draw(sizes, max(rows, 1), device), mode)
        (dw,) = torch.autograd.grad(y.square().sum(), empty, create_graph=True)
        assert dw.shape == empty.shape


def test_the_weight_may_change_before_its_gradient_is_formed(device, dtype):
    weight = normal(5, 8, device=device, dtype=dtype).requires_grad_()
    y = metalcore.embedding_bag(weight, *draw([3, 2], 5, device))
    with torch.no_grad():
        weight.zero_()
    y.sum().backward()
    assert float(weight.grad.sum()) == 40


def test_transforms_of_torch_func_are_torchs(device, dtype):
    weight = normal(5, 8, device=device, dtype=dtype)
    indices, offsets = draw([3, 2], 5, device)
    loss = lambda w: metalcore.embedding_bag(w, indices, offsets).float().square().sum()  # noqa: E731
    leaf = weight.detach().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(weight), leaf.grad)


# --- the module -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"padding_idx": -2}, {"include_last_offset": True}], ids=str)
def test_the_module_is_torchs(device, mode, options):
    ours = metalcore.MetalEmbeddingBag(9, 8, mode, device, **options)
    theirs = torch.nn.EmbeddingBag(9, 8, mode=mode, device=device, **options)
    theirs.load_state_dict(ours.state_dict())
    indices, offsets = draw([5, 0, 4], 9, device)
    offsets = offsets if options.get("include_last_offset") else offsets[:-1]
    inputs = [(indices, offsets), (indices.view(3, 3),)] if "include_last_offset" not in options else [(indices, offsets)]
    for args in inputs:
        outcomes = []
        for module in (ours, theirs):
            module.zero_grad()
            y = module(*args)
            y.square().sum().backward()
            outcomes.append((y.detach(), module.weight.grad.clone()))
        torch.testing.assert_close(outcomes[0], outcomes[1])
    assert repr(ours).removeprefix("Metal") == repr(theirs)


def test_the_module_takes_samples_and_hands_torch_what_it_does_not_do(device):
    weight = torch.randn(9, 8, device=device)
    indices, samples = torch.randint(9, (4, 3)).to(device), torch.randn(4, 3, device=device)
    ours = metalcore.MetalEmbeddingBag.from_pretrained(weight, mode="sum")
    assert type(ours) is metalcore.MetalEmbeddingBag and not ours.weight.requires_grad
    want = F.embedding_bag(indices, weight, mode="sum", per_sample_weights=samples)
    torch.testing.assert_close(ours(indices, per_sample_weights=samples), want)
    assert metalcore.MetalEmbeddingBag(9, 8).mode == "sum"
    assert metalcore.MetalEmbeddingBag(9, 8, dtype=torch.bfloat16, padding_idx=1).weight[1].any().item() is False
    sparse = metalcore.MetalEmbeddingBag(9, 8, "mean", device, sparse=True)
    sparse(indices).sum().backward()
    assert sparse.weight.grad.is_sparse
    limited = metalcore.MetalEmbeddingBag(9, 8, "mean", device, max_norm=0.1)
    assert float(limited(indices).norm(dim=1).max()) <= 0.1 + 1e-6
    counted = metalcore.MetalEmbeddingBag(9, 8, "mean", device, scale_grad_by_freq=True)
    counted(torch.zeros(2, 3, dtype=torch.int64, device=device)).sum().backward()
    assert float(counted.weight.grad[0, 0]) == pytest.approx(1 / 3)


# --- torch's surroundings -------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.parametrize("mode", MODES)
def test_compiled_code_is_eager_code_without_a_break(device, mode):
    bag = metalcore.MetalEmbeddingBag(9, 8, mode, device)
    compiled = torch.compile(lambda x: bag(x) * 2, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 7):
        indices = torch.randint(9, (rows, 3)).to(device)
        outcomes = []
        for call in (compiled, lambda x: bag(x) * 2):
            bag.zero_grad()
            y = call(indices)
            y.square().sum().backward()
            outcomes.append((y.detach(), bag.weight.grad.clone()))
        torch.testing.assert_close(outcomes[0], outcomes[1])
    torch._dynamo.reset()


def test_autocast_leaves_it_alone(device):
    weight = normal(5, 8, device=device, dtype=torch.float32)
    args = draw([3, 2], 5, device)
    with torch.autocast(device.type, torch.bfloat16):
        assert same_bits(metalcore.embedding_bag(weight, *args), metalcore.embedding_bag(weight, *args).float())


# --- errors ---------------------------------------------------------------------------------------

ERRORS = [
    ({"weight": [[1.0]]}, TypeError, "weight", "list"),
    ({"weight": torch.ones(4, 3, dtype=torch.int32)}, TypeError, "weight", "int32"),
    ({"weight": torch.ones(4, 3, dtype=torch.complex64)}, NotImplementedError, "weight", "complex64"),
    ({"weight": torch.ones(4)}, ValueError, "weight", r"\[4\]"),
    ({"indices": torch.ones(3)}, TypeError, "indices", "float32"),
    ({"indices": torch.ones(3, 1, dtype=torch.int64)}, ValueError, "indices", r"\[3, 1\]"),
    ({"indices": [1]}, TypeError, "indices", "list"),
    ({"offsets": torch.zeros(1, dtype=torch.int16)}, TypeError, "offsets", "int16"),
    ({"offsets": torch.zeros(0, dtype=torch.int64)}, ValueError, "offsets", r"\[0\]"),
    ({"offsets": None}, TypeError, "offsets", "NoneType"),
    ({"mode": "median"}, ValueError, "mode", "median"),
    ({"padding_idx": 4}, ValueError, "padding_idx", "4"),
    ({"padding_idx": -5}, ValueError, "padding_idx", "-5"),
    ({"per_sample_weights": torch.ones(2)}, ValueError, "per_sample_weights", r"\[2\]"),
    ({"per_sample_weights": torch.ones(3).half()}, TypeError, "per_sample_weights", "float16"),
    ({"per_sample_weights": torch.ones(3), "mode": "mean"}, NotImplementedError, "per_sample_weights", "mean"),
]


@pytest.mark.parametrize("wrong, kind, argument, got", ERRORS, ids=[f"{e[2]} {e[3]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, wrong, kind, argument, got):
    options = {"weight": torch.ones(4, 3), "indices": torch.tensor([0, 1, 3]), "offsets": torch.tensor([0, 3]), **wrong}
    options = {name: t.to(device) if isinstance(t, torch.Tensor) else t for name, t in options.items()}
    for grad in (False, True):
        if grad and isinstance(options["weight"], torch.Tensor) and options["weight"].is_floating_point():
            options["weight"] = options["weight"].requires_grad_()
        with pytest.raises(kind) as error:
            metalcore.embedding_bag(**options)
        assert type(error.value) is kind
        assert re.search(ERROR_TEXT.format(op="embedding_bag", argument=argument), str(error.value)), str(error.value)
        assert re.search(got, str(error.value)), str(error.value)


def test_wrong_calls_of_the_module_name_the_argument(device):
    bag = metalcore.MetalEmbeddingBag(4, 3, device=device)
    rows = torch.zeros(2, 2, dtype=torch.int64, device=device)
    for args, argument in (
        ((rows, rows[0]), "offsets"),
        ((rows[0],), "offsets"),
        ((rows, None, torch.ones(4, device=device)), "per_sample_weights"),
    ):
        with pytest.raises(ValueError, match=ERROR_TEXT.format(op="MetalEmbeddingBag", argument=argument)):
            bag(*args)
    with pytest.raises(ValueError, match=ERROR_TEXT.format(op="MetalEmbeddingBag", argument="mode")):
        metalcore.MetalEmbeddingBag(4, 3, "median")


@pytest.mark.emulated
def test_float64_on_a_device_without_it_names_the_device(device):
    with pytest.raises(TypeError, match=ERROR_TEXT.format(op="embedding_bag", argument="weight")) as error:
        metalcore.embedding_bag(torch.ones(2, 4, device=device, dtype=torch.float64), *draw([2], 2, device))
    assert "mps" in str(error.value) and "float64" in str(error.value)


def test_the_low_level_function_is_without_gradients(device):
    weight = torch.ones(4, 3, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="not differentiable; use metalcore.embedding_bag"):
        metalcore_backend.embedding_bag(weight, *draw([2], 4, device))
