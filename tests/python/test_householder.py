"""Householder primitives and LAPACK's pieces in metalcore_backend: laws, accuracy, gradients, errors."""

from __future__ import annotations

import metalcore
import metalcore_backend as mc
import numpy as np
import pytest
import torch
from support import HALVES, ROUNDOFF, Unchanged, assert_fresh, assert_qr, exact, families, normal, same_bits, working_roundoff
from torch.autograd import gradcheck, gradgradcheck

SINGLE = (torch.float32, torch.float64)


def reflection(v, tau):
    """H as a matrix, exactly."""
    v, tau = exact(v), exact(tau)
    return np.eye(v.shape[-1]) - tau[..., None, None] * v[..., :, None] * v[..., None, :]


def tolerance(dtype, terms=1):
    return 8 * (terms + 4) * max(working_roundoff(dtype), ROUNDOFF[dtype])


@pytest.mark.parametrize("length", [1, 2, 3, 17, 300])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30], ids=str)
@pytest.mark.dtypes(*SINGLE)
def test_a_vector_is_reflected_to_minus_its_sign_times_its_norm(device, dtype, length, scale):
    x = normal(3, 4, length, device=device, dtype=dtype) * scale
    with Unchanged(x):
        v, tau = metalcore.householder_vector(x)
    assert_fresh((v, tau), (x,))
    assert bool((v[..., 0] == 1).all()) and tau.shape == (3, 4)
    if length == 1:
        assert bool((tau == 0).all())
        return
    H, values = reflection(v, tau), exact(x)
    norm = (
        np.sqrt((values**2).sum(-1))
        if scale == 1
        else np.abs(values).max(-1) * np.sqrt(((values / np.abs(values).max(-1, keepdims=True)) ** 2).sum(-1))
    )
    want = np.zeros_like(values)
    want[..., 0] = -np.sign(values[..., 0]) * norm
    got = (H @ values[..., None])[..., 0]
    assert np.abs(got - want).max() <= tolerance(dtype, length) * norm.max()
    assert np.abs(H @ H - np.eye(length)).max() <= tolerance(dtype, length)


def test_a_tail_of_zeros_is_left_alone(device, dtype):
    for first in (2.0, -2.0, 0.0):
        x = torch.tensor([first, 0, 0, 0], device=device, dtype=dtype)
        v, tau = metalcore.householder_vector(x)
        assert tau == 0 and torch.equal(v, torch.tensor([1.0, 0, 0, 0], device=device, dtype=dtype))
    x = torch.tensor([1.0, 1e-7, 0], device=device, dtype=dtype)
    if dtype not in HALVES:
        assert metalcore.householder_vector(x)[1] != 0, "a small tail is a tail"


def test_what_is_not_finite_shows(device, dtype):
    for bad in (torch.nan, torch.inf):
        v, tau = metalcore.householder_vector(torch.tensor([1.0, bad, 2.0], device=device, dtype=dtype))
        assert bool(tau.isnan()) and bool(v[1:].isnan().any())


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_reflection_is_applied_on_either_side_with_broadcasting(device, dtype, side):
    A = normal(2, 1, 7, 5, device=device, dtype=dtype)
    v, tau = metalcore.householder_vector(normal(3, 7 if side == "left" else 5, device=device, dtype=dtype))
    got = metalcore.apply_householder(A, v, tau, side)
    H = reflection(v, tau)
    want = H @ exact(A) if side == "left" else exact(A) @ H
    assert got.dtype == dtype and got.shape == (2, 3, 7, 5) and got.is_contiguous()
    assert np.abs(exact(got) - want).max() <= tolerance(dtype, 7) * np.abs(want).max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_in_place_changes_its_part_alone(device, dtype, side):
    A = normal(3, 8, 6, device=device, dtype=dtype)
    before, version = A.clone(), A._version
    v, tau = metalcore.householder_vector(normal(3, 6 if side == "left" else 5, device=device, dtype=dtype))
    assert metalcore.apply_householder_inplace(A, v, tau, side, start_row=2, start_col=1) is None
    assert same_bits(A[:, 2:, 1:].contiguous(), metalcore.apply_householder(before[:, 2:, 1:], v, tau, side))
    A[:, 2:, 1:] = before[:, 2:, 1:]
    assert same_bits(A, before) and A._version > version


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_block_is_the_product_of_its_reflections(device, dtype, side):
    packed, tau = mc.geqr2(normal(2, 9, 4, device=device, dtype=dtype))
    T = mc.larft(packed, tau)
    V = packed.tril(-1) + torch.eye(9, 4, device=device, dtype=dtype)
    want = np.eye(9)
    for j in range(4):
        want = want @ reflection(V[..., j], tau[..., j])
    assert np.abs(exact(metalcore.householder_wy(V, T)) - want).max() <= tolerance(dtype, 36)
    assert bool((T.tril(-1) == 0).all())
    A = normal(2, *((9, 5) if side == "left" else (5, 9)), device=device, dtype=dtype)
    product = want @ exact(A) if side == "left" else exact(A) @ want
    got = metalcore.apply_householder_wy(A, V, T, side)
    assert np.abs(exact(got) - product).max() <= tolerance(dtype, 36) * np.abs(product).max()
    if side == "left":
        assert np.abs(exact(mc.larfb(A, packed, T)) - product).max() <= tolerance(dtype, 36) * np.abs(product).max()
        back = mc.larfb(mc.larfb(A, packed, T), packed, T, trans=True)
        assert np.abs(exact(back) - exact(A)).max() <= 2 * tolerance(dtype, 36) * np.abs(product).max()


@pytest.mark.dtypes(*SINGLE)
def test_a_panel_further_down_ignores_what_lies_above_it(device, dtype):
    packed, tau = mc.geqr2(normal(2, 6, 3, device=device, dtype=dtype))
    lower = torch.cat([normal(2, 4, 3, device=device, dtype=dtype), packed], -2)
    wide = torch.cat([lower, normal(2, 10, 2, device=device, dtype=dtype)], -1)  # columns beyond tau are not looked at
    T = mc.larft(wide, tau, panel_start=4)
    assert torch.allclose(T, mc.larft(packed, tau), rtol=0, atol=tolerance(dtype, 10))
    C = normal(2, 10, 3, device=device, dtype=dtype)
    got = mc.larfb(C, wide, T, panel_start=4)
    assert same_bits(got[:, :4].contiguous(), C[:, :4].contiguous())
    assert torch.allclose(got[:, 4:], mc.larfb(C[:, 4:], packed, T), rtol=0, atol=tolerance(dtype, 40))


@pytest.mark.parametrize("size", [(1, 1), (5, 5), (9, 4), (4, 9), (40, 33), (0, 3), (3, 0)], ids=str)
def test_geqr2_and_blocks_factor_every_family(device, dtype, size):
    items, A = families(*size, dtype)
    A = A.to(device)
    packed, tau = mc.geqr2(A)
    k = min(size)
    assert packed.shape == A.shape and tau.shape == (len(items), k)
    for block in (0, 3):
        Q, R = mc.qr_blocked(A, block)
        assert_qr(A, Q, R, "reduced", items)
    if dtype not in HALVES and k:
        Q = torch.linalg.householder_product(packed[..., :k].cpu(), tau.cpu()).to(device)
        assert_qr(A, Q, packed[..., :k, :].triu(), "reduced", items)


@pytest.mark.dtypes(torch.float32)
def test_products_do_not_follow_torchs_precision(device, dtype):
    A = normal(3, 40, 40, device=device, dtype=dtype)
    expected = mc.qr_blocked(A)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert_qr(A, *mc.qr_blocked(A))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert_qr(A, *mc.qr_blocked(A))
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(same_bits(a, b) for a, b in zip(mc.qr_blocked(A), expected))


@pytest.mark.dtypes(torch.float64)
@pytest.mark.native
def test_derivatives_are_right(device, dtype):
    make = lambda *shape: normal(*shape, device=device, dtype=dtype).requires_grad_()  # noqa: E731
    cases = [
        (metalcore.householder_vector, (make(2, 4),)),
        *(
            (lambda A, v, tau, side=side: metalcore.apply_householder(A, v, tau, side), (make(2, 4, 4), make(4), make()))
            for side in ("left", "right")
        ),
        (metalcore.householder_wy, (make(4, 2), make(2, 2))),
        (metalcore.apply_householder_wy, (make(4, 3), make(4, 2), make(2, 2))),
    ]
    for function, inputs in cases:
        assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


def test_norms_traces_and_grams(device, dtype):
    A = normal(3, 7, 5, device=device, dtype=dtype)
    gram = mc.syrk_batched(A)
    assert same_bits(gram, gram.mT.contiguous())
    want = np.swapaxes(exact(A), -1, -2) @ exact(A)
    assert np.abs(exact(gram) - want).max() <= tolerance(dtype, 7) * np.abs(want).max()
    norm = mc.frobenius_norm_batched(A)
    want = np.sqrt((exact(A) ** 2).sum((-1, -2)))
    assert np.abs(exact(norm) / want - 1).max() <= tolerance(dtype, 5)
    if dtype in SINGLE:
        for power in (100, -100):  # beyond the range of squares
            assert same_bits(mc.frobenius_norm_batched(A * 2.0**power), norm * 2.0**power)
    square = A[:, :5]
    want = exact(square).diagonal(axis1=-2, axis2=-1).sum(-1)
    assert np.abs(exact(mc.trace_batched(square)) - want).max() <= tolerance(dtype, 5) * np.abs(exact(square)).max()
    for shape in ((0, 3, 3), (2, 0, 0)):
        empty = torch.zeros(shape, device=device, dtype=dtype)
        assert mc.frobenius_norm_batched(empty).tolist() == [0.0] * shape[0] == mc.trace_batched(empty).tolist()


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (lambda x: metalcore.householder_vector(x[:0, 0]), ValueError, "householder_vector: x: got"),
        (lambda x: metalcore.householder_vector(x.int()), TypeError, "householder_vector: x: got dtype"),
        (lambda x: metalcore.apply_householder(x, x[0, :2], x[0, 0]), ValueError, "apply_householder: v: got shape"),
        (lambda x: metalcore.apply_householder(x, x[0], x[0]), ValueError, "apply_householder: tau: got shape"),
        (lambda x: metalcore.apply_householder(x, x[0], x[0, 0], "up"), ValueError, "apply_householder: side: got 'up'"),
        (lambda x: metalcore.apply_householder(x, x[0].half(), x[0, 0]), TypeError, "apply_householder: v: got dtype"),
        (lambda x: metalcore.apply_householder_inplace(x, x[0], x[0, 0], start_row=9), ValueError, "start_row: got 9"),
        (lambda x: metalcore.householder_wy(x, x[:2, :2]), ValueError, "householder_wy: T: got shape"),
        (lambda x: mc.larft(x, x[0], panel_start=1), ValueError, "larft: panel_start: got 1"),
        (lambda x: mc.larfb(x[:3], x, x), ValueError, "larfb: C: got shape"),
        (lambda x: mc.trace_batched(x[:3]), ValueError, "trace_batched: A: got shape"),
        (lambda x: mc.geqr2(x.requires_grad_()), RuntimeError, "use metalcore.qr"),
    ],
)
def test_wrong_calls_say_what_they_got(device, call, kind, text):
    x = normal(4, 4, device=device, dtype=torch.float32)
    before = x.clone()
    with pytest.raises(kind, match=text.replace("(", r"\(")):
        call(x)
    assert same_bits(x.detach(), before)
