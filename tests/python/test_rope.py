"""rope: bounds forward and backward, tables, positions, layouts, views, derivatives, modules, errors."""

from __future__ import annotations

import copy
import io
import re

import metalcore
import metalcore_backend
import numpy as np
import oracles
import pytest
import torch
from support import EMULATED, ERROR_TEXT, VIEWS, Unchanged, assert_fresh, assert_within, normal, same_bits, views
from torch.autograd import gradcheck, gradgradcheck

# (B, S, heads of q, heads of k, D): below and above the heads of a thread, with and without whole vectors.
SIZES = [(2, 3, 4, 2, 8), (1, 5, 9, 1, 6), (2, 7, 1, 3, 2), (1, 33, 8, 8, 64), (1, 3, 2, 5, 130), (2, 4, 5, 4, 80)]


def make(size, dim, device, dtype, table_dtype=None, full=False, batched=False, positions=None):
    """q, k and the tables, of which every entry is another angle."""
    b, s, hq, hk, d = size
    q, k = (normal(*((b, s, h, d) if dim == 2 else (b, h, s, d)), device=device, dtype=dtype) for h in (hq, hk))
    rows = s if positions is None else positions
    shape = (*((b,) if batched else ()), rows, d if full else d // 2)
    angle = torch.randn(shape, dtype=torch.float64)
    return q, k, *(t.to(table_dtype or dtype).to(device) for t in (angle.cos(), angle.sin()))


def assert_rotated(x, y, cos, sin, ids, dim, name="rope y", back=False):
    want = oracles.rope(x, cos, sin, ids, dim, back)
    assert y.dtype == x.dtype
    assert_within(name, y, want.value, want.bound)


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("full, batched", [(False, False), (True, False), (True, True)], ids=["half", "full", "batched"])
def test_results_and_gradients_are_within_the_bounds(device, dtype, size, dim, full, batched):
    q, k, cos, sin = make(size, dim, device, dtype, full=full, batched=batched)
    dq, dk = (normal(*t.shape, device=device, dtype=dtype) for t in (q, k))
    leaves = q.clone().requires_grad_(), k.clone().requires_grad_()
    with Unchanged(q, k, cos, sin):
        found = metalcore.rope_fwd(*leaves, cos, sin, unsqueeze_dim=dim)
        torch.autograd.backward(found, (dq, dk))
    for x, y, leaf, dy in zip((q, k), found, leaves, (dq, dk)):
        assert_rotated(x, y, cos, sin, None, dim)
        assert_rotated(dy, leaf.grad, cos, sin, None, dim, "rope dx", back=True)
        single = metalcore.rope_forward(x, cos, sin, unsqueeze_dim=dim)
        assert same_bits(single, y)
        assert same_bits(metalcore.apply_rotary_pos_emb_single(x, cos, sin, None, dim), y)
    for got, want in zip(metalcore.apply_rotary_pos_emb(q, k, cos, sin, None, dim), found):
        assert same_bits(got, want)
    assert_fresh(tuple(t.detach() for t in found), (q, k, cos, sin))


@pytest.mark.parametrize("table", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.native
def test_tables_may_have_another_dtype(device, dtype, table):
    q, k, cos, sin = make((2, 5, 4, 2, 24), 2, device, dtype, table)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for c, s in ((cos, sin), (cos, sin.to(torch.float32))):
        # A table wider than the type computed in is rounded to it first.
        used = [t.to(wide) if t.dtype == torch.float64 else t for t in (c, s)]
        for x, y in zip((q, k), metalcore.rope_fwd(q, k, c, s)):
            assert_rotated(x, y, *used, None, 2)


@pytest.mark.native
def test_large_inputs_are_within_the_bounds(device, dtype):
    q, k, cos, sin = make((1, 130, 32, 8, 128), 1, device, dtype, torch.float32 if dtype != torch.float64 else None)
    for x, y in zip((q, k), metalcore.rope_fwd(q, k, cos, sin, unsqueeze_dim=1)):
        assert_rotated(x, y, cos, sin, None, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("d", range(2, 300, 2))
def test_every_width_up_to_300_is_within_the_bounds(device, dtype, d):
    for dim in (1, 2):
        q, k, cos, sin = make((1, 3, 5, 2, d), dim, device, dtype, full=dim == 1)
        for x, y in zip((q, k), metalcore.rope_fwd(q, k, cos, sin, unsqueeze_dim=dim)):
            assert_rotated(x, y, cos, sin, None, dim)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.dtypes(torch.float32, torch.bfloat16)
def test_position_ids_pick_rows_of_the_tables(device, dtype, kind, batched, dim):
    q, k, cos, sin = make((3, 5, 4, 2, 16), dim, device, dtype, full=batched, positions=40)
    ids = torch.randint(0, 40, (3, 5) if batched else (5,)).to(kind).to(device)
    leaf = q.clone().requires_grad_()
    found = metalcore.rope_fwd(leaf, k, cos, sin, ids, dim)
    for x, y in zip((q, k), found):
        assert_rotated(x, y, cos, sin, ids, dim)
    found[0].backward(k.new_ones(q.shape))
    assert_rotated(torch.ones_like(q), leaf.grad, cos, sin, ids, dim, "rope dx", back=True)
    strided = torch.stack([ids, ids * 0 - 1], -1)[..., 0]
    assert same_bits(metalcore.rope_forward(q, cos, sin, strided, dim), found[0].detach())
    if batched:
        assert same_bits(metalcore.rope_forward(q, cos, sin, ids[:1], dim), metalcore.rope_forward(q, cos, sin, ids[0], dim))


@pytest.mark.parametrize("wrong", [-1, 7, 2**31 - 1, 2**32, 2**32 + 1, -(2**40)])
@pytest.mark.dtypes(torch.float32)
def test_a_position_that_is_not_in_the_table_is_an_error_or_nan_alone(device, dtype, wrong):
    q, k, cos, sin = make((1, 3, 2, 1, 8), 2, device, dtype, positions=7)
    ids = torch.tensor([2, wrong, 6], device=device)
    if device.type == "cpu" and not EMULATED:
        with pytest.raises(IndexError, match=ERROR_TEXT.format(op="rope_fwd", argument="position_ids")) as error:
            metalcore.rope_fwd(q, k, cos, sin, ids)
        assert str(wrong) in str(error.value)
        return
    found = metalcore.rope_fwd(q, k, cos, sin, ids)
    clean = metalcore.rope_fwd(q, k, cos, sin, torch.tensor([2, 0, 6], device=device))
    for got, want in zip(found, clean):
        assert bool(got[:, 1].isnan().all()) and same_bits(got[:, ::2], want[:, ::2])


def test_more_rows_than_positions_are_not_used(device, dtype):
    q, k, cos, sin = make((2, 4, 3, 1, 16), 2, device, dtype, positions=9)
    for got, want in zip(metalcore.rope_fwd(q, k, cos, sin), metalcore.rope_fwd(q, k, cos[:4], sin[:4])):
        assert same_bits(got, want)
    for got, want in zip(metalcore.rope_fwd(q, k, cos[None, :4], sin[None, :4]), metalcore.rope_fwd(q, k, cos, sin)):
        assert same_bits(got, want)


# --- shapes and views -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(0, 3, 2, 1, 8), (2, 0, 2, 1, 8), (2, 3, 0, 1, 8), (2, 3, 2, 0, 8), (2, 3, 2, 1, 0)], ids=str)
def test_empty_inputs_give_empty_results(device, dtype, size):
    for dim in (1, 2):
        q, k, cos, sin = make(size, dim, device, dtype)
        q, k = q.requires_grad_(), k.requires_grad_()
        found = metalcore.rope_fwd(q, k, cos, sin, unsqueeze_dim=dim)
        (found[0].sum() + found[1].sum()).backward()
        for x, y in zip((q, k), found):
            assert y.shape == x.shape and x.grad.shape == x.shape and y.dtype == dtype
            assert_rotated(x, y, cos, sin, None, dim)


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("d", [64, 6])
def test_views_give_the_bits_of_their_contiguous_copies(device, dtype, layout, d):
    given = make((2, 5, 5, 2, d), 2, device, dtype)
    expected = metalcore.rope_fwd(*given)
    for i, view in views(layout, *given):
        changed = [view if j == i else t for j, t in enumerate(given)]
        with Unchanged(*changed):
            found = metalcore.rope_fwd(*changed)
        assert_fresh(found, tuple(changed))
        assert all(same_bits(got, want) for got, want in zip(found, expected)), ("q", "k", "cos", "sin")[i]


def test_transposed_and_sliced_projections_give_the_bits_of_their_copies(device, dtype):
    b, s, hq, hk, d = 2, 5, 6, 2, 32
    _, _, cos, sin = make((b, s, hq, hk, d), 1, device, dtype)
    qkv = normal(b, s, (hq + 2 * hk) * d, device=device, dtype=dtype)
    q = qkv[..., : hq * d].view(b, s, hq, d).transpose(1, 2)
    k = qkv[..., hq * d : (hq + hk) * d].view(b, s, hk, d).transpose(1, 2)
    expected = metalcore.rope_fwd(q.contiguous(), k.contiguous(), cos, sin, unsqueeze_dim=1)
    found = metalcore.rope_fwd(q, k, cos, sin, unsqueeze_dim=1)
    assert_fresh(found, (qkv, cos, sin))
    assert all(same_bits(*pair) for pair in zip(found, expected))
    for one in (q[:, :1].expand(b, hq, s, d), k[:1].expand(3, hk, s, d)):
        assert same_bits(
            metalcore.rope_forward(one, cos, sin, unsqueeze_dim=1),
            metalcore.rope_forward(one.contiguous(), cos, sin, unsqueeze_dim=1),
        )


# --- laws -----------------------------------------------------------------------------------------


def test_both_layouts_and_both_widths_of_tables_give_the_same_bits(device, dtype):
    q, k, cos, sin = make((2, 5, 6, 2, 32), 2, device, dtype)
    found = metalcore.rope_fwd(q, k, cos, sin)
    other = metalcore.rope_fwd(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=1)
    double = metalcore.rope_fwd(q, k, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    for got, want, wide in zip(found, other, double):
        assert same_bits(got, want.transpose(1, 2).contiguous()) and same_bits(got, wide)


def test_a_head_that_is_not_finite_touches_no_other(device, dtype):
    q, _, cos, sin = make((1, 4, 5, 1, 16), 2, device, dtype)
    clean = metalcore.rope_forward(q, cos, sin)
    for bad in (float("nan"), float("inf")):
        spoiled = q.clone()
        spoiled[0, 2, 3, 5] = bad
        found = metalcore.rope_forward(spoiled, cos, sin)
        touched = torch.zeros(q.shape, dtype=torch.bool, device=device)
        touched[0, 2, 3, 5] = touched[0, 2, 3, 13] = True
        assert not bool(found[touched].isfinite().any())
        assert torch.equal(found[~touched], clean[~touched])


@pytest.mark.dtypes(torch.float32, torch.bfloat16)
def test_autocast_leaves_rope_alone(device, dtype):
    q, k, cos, sin = make((1, 4, 5, 1, 16), 2, device, dtype, torch.float32)
    expected = metalcore.rope_fwd(q, k, cos, sin)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert all(same_bits(*pair) for pair in zip(metalcore.rope_fwd(q, k, cos, sin), expected))


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.dtypes(torch.float64)
def test_first_and_second_derivatives_are_those_of_finite_differences(device, dtype, full, dim):
    q, k, cos, sin = make((2, 2, 2, 1, 4), dim, device, dtype, full=full)
    q, k = q.requires_grad_(), k.requires_grad_()
    call = lambda q, k: metalcore.rope_fwd(q, k, cos, sin, None, dim)  # noqa: E731
    single = lambda q: metalcore.rope_forward(q, cos, sin, torch.tensor([1, 0]), dim)  # noqa: E731
    assert gradcheck(call, (q, k)) and gradgradcheck(call, (q, k))
    assert gradcheck(single, (q,)) and gradgradcheck(single, (q,))


def test_only_gradients_that_are_asked_for_are_given(device, dtype):
    q, k, cos, sin = make((1, 3, 2, 1, 8), 2, device, dtype)
    for wanted in ((True, False), (False, True), (True, True)):
        for used in ((0,), (1,), (0, 1)):
            leaves = [t.clone().requires_grad_(w) for t, w in zip((q, k), wanted)]
            found = metalcore.rope_fwd(*leaves, cos, sin)
            sum(found[i].sum() for i in used).backward()
            for i, (leaf, w) in enumerate(zip(leaves, wanted)):
                if w and i in used:
                    assert_rotated(torch.ones_like(leaf), leaf.grad, cos, sin, None, 2, "rope dx", back=True)
                else:
                    assert leaf.grad is None or not leaf.grad.any()


def test_tables_have_no_gradient_and_say_so(device):
    q, k, cos, sin = make((1, 3, 2, 1, 8), 2, device, torch.float32)
    with pytest.raises(NotImplementedError, match=ERROR_TEXT.format(op="rope_fwd", argument="cos")):
        metalcore.rope_fwd(q, k, cos.requires_grad_(), sin)
    with torch.no_grad():
        metalcore.rope_fwd(q, k, cos, sin)


@pytest.mark.parametrize("dims", [(0, 0, None, None), (2, None, None, None), (None, 1, None, None), (0, 0, 0, 0)], ids=str)
@pytest.mark.dtypes(torch.float32)
def test_vmap_is_a_loop(device, dtype, dims):
    items = list(zip(*(make((2, 3, 4, 2, 8), 2, device, dtype) for _ in range(3))))
    batched = [parts[0] if d is None else torch.stack(parts, d) for d, parts in zip(dims, items)]
    part = lambda t, d, i: t if d is None else t.select(d, i)  # noqa: E731
    mapped = torch.func.vmap(metalcore.rope_fwd, in_dims=dims)(*batched)
    loop = [metalcore.rope_fwd(*(part(t, d, i) for t, d in zip(batched, dims))) for i in range(3)]
    for got, want in zip(mapped, zip(*loop)):
        assert same_bits(got, torch.stack(want))
    call = lambda q: (metalcore.rope_forward(q, part(batched[2], dims[2], 0), part(batched[3], dims[3], 0)) ** 2).sum()  # noqa: E731
    q = part(batched[0], dims[0], 0)
    grad = torch.func.vmap(torch.func.grad(call))(torch.stack([q, q * 2]))
    leaf = q.clone().requires_grad_()
    call(leaf).backward()
    assert torch.allclose(grad[1], 2 * leaf.grad, rtol=1e-5, atol=1e-5)


# --- the backend ----------------------------------------------------------------------------------


def test_the_backend_has_one_tensor_and_two(device, dtype):
    q, k, cos, sin = make((2, 3, 4, 2, 16), 2, device, dtype, full=True)
    expected = metalcore.rope_fwd(q, k, cos, sin)
    assert same_bits(metalcore_backend.rope_fwd(q, cos, sin), expected[0])
    assert all(same_bits(*pair) for pair in zip(metalcore_backend.rope_fwd_qk(q, k, cos, sin), expected))
    assert_rotated(q, metalcore_backend.rope_bwd(q, cos, sin), cos, sin, None, 2, "rope dx", back=True)
    with pytest.raises(RuntimeError, match="rope_forward"):
        metalcore_backend.rope_fwd(q.requires_grad_(), cos, sin)


# --- the module -----------------------------------------------------------------------------------


@pytest.mark.parametrize("base, scale", [(10000.0, 1.0), (500000.0, 8.0)])
def test_tables_are_those_of_the_exact_angles(device, base, scale):
    rope = metalcore.RotaryEmbedding(16, 64, base, device=device, scaling_factor=scale)
    for n in (5, 64, 200):
        cos, sin = rope(seq_len=n)
        assert cos.shape == sin.shape == (n, 8) and cos.dtype == torch.float32 and cos.device.type == device.type
        angle = np.arange(n, dtype=np.longdouble)[:, None] / scale * np.longdouble(base) ** (-np.arange(0, 16, 2) / 16)
        for got, want in zip((cos, sin), (np.cos(angle), np.sin(angle))):
            assert (np.abs(got.cpu().double().numpy() - want) <= 2 * np.spacing(np.abs(want).astype(np.float32))).all()


def test_the_module_rotates_queries_and_keys(device, dtype):
    q, k, _, _ = make((2, 6, 4, 2, 16), 2, device, dtype)
    rope = metalcore.RotaryEmbedding(16, 4, device=device)
    cos, sin = metalcore.RotaryEmbedding(16, device=device)(seq_len=60)
    for got, want in zip(rope(q, k), metalcore.rope_fwd(q, k, cos, sin)):
        assert same_bits(got, want)
    ids = torch.randint(0, 12 if EMULATED or device.type == "cpu" else 8, (2, 6), device=device)
    for got, want in zip(rope(q, k, ids), metalcore.rope_fwd(q, k, cos, sin, ids)):
        assert same_bits(got, want)


def test_the_module_keeps_its_tables_through_casts_copies_and_files(device):
    rope = metalcore.RotaryEmbedding(8, 16, device=device)
    cos, sin = rope(seq_len=16)
    buffer = io.BytesIO()
    torch.save(rope, buffer)
    buffer.seek(0)
    others = [rope.half(), rope.to(torch.bfloat16), copy.deepcopy(rope), torch.load(buffer, weights_only=False)]
    for other in others:
        assert all(same_bits(*pair) for pair in zip(other(seq_len=16), (cos, sin)))
    assert not rope.state_dict() and not list(rope.parameters()) and "8" in repr(rope)
    assert rope.to("meta")(seq_len=3)[0].device.type == "meta"


# --- errors ---------------------------------------------------------------------------------------


def tensor(*shape, dtype=torch.float32, device=None):
    return lambda d: torch.ones(shape, device=device or d, dtype=dtype)


Q, K, T = tensor(2, 3, 4, 8), tensor(2, 3, 1, 8), tensor(3, 4)
ERRORS = [
    (tensor(3, 4, 8), K, T, T, None, 2, ValueError, "q", r"shape \[3, 4, 8\]"),
    (tensor(2, 3, 4, 7), tensor(2, 3, 1, 7), T, T, None, 2, ValueError, "q", "7"),
    (Q, tensor(2, 2, 1, 8), T, T, None, 2, ValueError, "k", r"shape \[2, 2, 1, 8\]"),
    (Q, tensor(2, 3, 1, 6), T, T, None, 2, ValueError, "k", "6"),
    (Q, tensor(2, 3, 1, 8, dtype=torch.float16), T, T, None, 2, TypeError, "k", "float16"),
    (Q, K, tensor(2, 4), tensor(2, 4), None, 2, ValueError, "cos", r"shape \[2, 4\]"),
    (Q, K, tensor(3, 5), tensor(3, 5), None, 2, ValueError, "cos", r"shape \[3, 5\]"),
    (Q, K, tensor(3, 3, 4), tensor(3, 3, 4), None, 2, ValueError, "cos", r"shape \[3, 3, 4\]"),
    (Q, K, tensor(4), tensor(4), None, 2, ValueError, "cos", r"shape \[4\]"),
    (Q, K, T, tensor(3, 8), None, 2, ValueError, "sin", r"shape \[3, 8\]"),
    (Q, K, T, T, None, 0, ValueError, "unsqueeze_dim", "0"),
    (Q, K, T, T, tensor(4, dtype=torch.int64), 2, ValueError, "position_ids", r"shape \[4\]"),
    (Q, K, T, T, tensor(3, 3, dtype=torch.int64), 2, ValueError, "position_ids", r"shape \[3, 3\]"),
    (Q, K, tensor(2, 3, 4), tensor(2, 3, 4), tensor(3, dtype=torch.int64), 2, ValueError, "cos", r"shape \[2, 3, 4\]"),
    (Q, K, T, T, tensor(3), 2, TypeError, "position_ids", "float32"),
    (Q, K, T, T, lambda d: [0, 1, 2], 2, TypeError, "position_ids", "list"),
    (tensor(2, 3, 4, 8, dtype=torch.int32), K, T, T, None, 2, TypeError, "q", "int32"),
    (tensor(2, 3, 4, 8, dtype=torch.complex64), K, T, T, None, 2, NotImplementedError, "q", "complex64"),
    (Q, K, tensor(3, 4, dtype=torch.int64), T, None, 2, TypeError, "cos", "int64"),
    (Q, lambda d: None, T, T, None, 2, TypeError, "k", "None"),
    (lambda d: [1.0], K, T, T, None, 2, TypeError, "q", "list"),
    (Q, K, T, lambda d: None, None, 2, TypeError, "sin", "None"),
    (Q, tensor(2, 3, 1, 8, device="meta"), T, T, None, 2, ValueError, "k", "meta"),
    (Q, K, T, tensor(3, 4, device="meta"), None, 2, ValueError, "sin", "meta"),
    (Q, K, T, T, tensor(3, dtype=torch.int64, device="meta"), 2, ValueError, "position_ids", "meta"),
]


@pytest.mark.parametrize("q, k, cos, sin, ids, dim, kind, argument, got", ERRORS, ids=[f"{e[7]} {e[8]}" for e in ERRORS])
def test_wrong_calls_name_the_argument_what_it_got_and_what_is_expected(device, q, k, cos, sin, ids, dim, kind, argument, got):
    with pytest.raises(kind) as error:
        metalcore.rope_fwd(q(device), k(device), cos(device), sin(device), ids and ids(device), dim)
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op="rope_fwd", argument=argument), str(error.value)), str(error.value)
    assert re.search(got, str(error.value)), str(error.value)


def test_errors_of_one_tensor_call_it_x(device):
    with pytest.raises(ValueError, match=ERROR_TEXT.format(op="rope_forward", argument="x")):
        metalcore.rope_forward(Q(device)[0], T(device), T(device))
    with pytest.raises(ValueError, match=ERROR_TEXT.format(op="RotaryEmbedding", argument="dim")):
        metalcore.RotaryEmbedding(7)
