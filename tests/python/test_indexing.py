"""gather, scatter_add, index_select: torch's results, sums of half types, indices out of range, derivatives, errors."""

from __future__ import annotations

import re

import metalcore
import metalcore_backend
import numpy as np
import pytest
import torch
from support import EMULATED, ERROR_TEXT, Unchanged, assert_within, exact, gamma, normal, rho, same_bits
from torch.autograd import forward_ad, gradcheck, gradgradcheck

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.complex64, torch.complex128)


@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 1, 6), (5, 123, 12)], ids=str)
def test_results_are_torchs_for_every_dimension_and_index_type(device, dtype, shape):
    src = normal(*shape, device=device, dtype=dtype)
    for dim in range(-len(shape), len(shape)):
        index = torch.randint(shape[dim], shape).to(device)
        flat = torch.randint(shape[dim], (9,)).to(device)
        for i, f in ((index, flat), (index.int(), flat.int())):
            with Unchanged(src, i, f):
                assert same_bits(metalcore.gather(src, i, dim), torch.gather(src, dim, index))
                assert same_bits(metalcore.index_select(src, dim, f), torch.index_select(src, dim, flat))
                found = metalcore.scatter_add(src, i, src, dim)
            want = torch.scatter_add(src.double(), dim, index, src.double())
            size = torch.scatter_add(src.double().abs(), dim, index, src.double().abs())
            bound = rho(dtype) * want.abs() + 2 * gamma(shape[dim], dtype) * size
            assert_within("scatter_add", found, exact(want.to(torch.float64)).astype(float), bound.cpu().numpy())
            assert same_bits(metalcore_backend.gather(src, i, dim), torch.gather(src, dim, index))
            assert same_bits(metalcore_backend.index_select(src, dim, f), torch.index_select(src, dim, flat))
            assert metalcore_backend.scatter_add(src, i, src, dim).shape == src.shape


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_every_dtype_that_torch_takes(device, kind):
    src = torch.randint(2, (5, 4)).to(device, kind)
    index = torch.randint(5, (3, 4)).to(device)
    assert torch.equal(metalcore.gather(src, index), torch.gather(src, 0, index))
    assert torch.equal(metalcore.index_select(src, 0, index[:, 0]), torch.index_select(src, 0, index[:, 0]))
    if kind is not torch.bool:
        assert torch.equal(metalcore.scatter_add(src, index, src), torch.scatter_add(src, 0, index, src))


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
@pytest.mark.parametrize("outside", [5, -1])
def test_what_is_missing_of_other_dtypes(device, kind, outside):
    if device.type == "cpu" and not EMULATED:
        return
    src = torch.ones(5, 3).to(device, kind)
    found = metalcore.index_select(src, 0, torch.tensor([1, outside], device=device))
    assert bool((found[0] == 1).all())
    assert bool(found[1].isnan().all() if kind.is_complex else (found[1] == 0).all())


def test_an_index_may_be_smaller_in_other_dimensions(device, dtype):
    src, terms = normal(4, 3, 5, 2, device=device, dtype=dtype), normal(3, 7, 3, 2, device=device, dtype=dtype)
    index = torch.randint(3, (2, 6, 3, 1)).to(device)
    for source in (src, src.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)):
        assert same_bits(metalcore.gather(source, index, 1), torch.gather(source, 1, index))
        found = metalcore.scatter_add(source, index, terms, 1)
        want = torch.scatter_add(source.double(), 1, index, terms.double())
        size = torch.scatter_add(source.double().abs(), 1, index, terms.double().abs())
        bound = rho(dtype) * want.abs() + 2 * gamma(6, dtype) * size
        assert_within("scatter_add", found, want.cpu().numpy(), bound.cpu().numpy())


def test_only_the_part_of_src_that_index_covers_has_a_gradient(device):
    dst, src = torch.zeros(4, 3, device=device), torch.ones(6, 5, device=device, requires_grad=True)
    index = torch.tensor([[1, 2], [3, 0]], dtype=torch.int32).to(device)
    metalcore.scatter_add(dst, index, src).sum().backward()
    want = torch.zeros(6, 5, device=device)
    want[:2, :2] = 1
    assert torch.equal(src.grad, want)


@pytest.mark.parametrize("shape, count", [((9, 64), 7), ((5, 9, 12), 20), ((6, 7), 3)], ids=str)
def test_slices_are_moved_whatever_their_alignment(device, dtype, shape, count):
    whole = normal(shape[0], *shape[1:-1], shape[-1] + 3, device=device, dtype=dtype)
    for first in range(4):
        src = whole[..., first : first + shape[-1]]
        index = torch.randint(shape[0], (count,)).to(device)
        assert same_bits(metalcore.index_select(src, 0, index), torch.index_select(src, 0, index))
        flat = whole.flatten()[first : first + 48].view(12, 4)
        index = torch.randint(12, (count,), dtype=torch.int32).to(device)
        assert same_bits(metalcore.index_select(flat, 0, index), torch.index_select(flat, 0, index))


def test_empty_tensors(device, dtype):
    none = torch.empty(0, 4, device=device, dtype=dtype)
    index = torch.empty(0, 4, device=device, dtype=torch.int64)
    assert metalcore.gather(none, index).shape == (0, 4)
    assert metalcore.index_select(none, 0, index[:, 0]).shape == (0, 4)
    assert metalcore.scatter_add(none, index, none).shape == (0, 4)
    some = normal(3, 4, device=device, dtype=dtype)
    assert same_bits(metalcore.scatter_add(some, index, none), some)
    single = torch.tensor(2.0, device=device, dtype=dtype)
    zero = torch.tensor(0, device=device)
    assert same_bits(metalcore.gather(single, zero), single) and same_bits(metalcore.index_select(single, 0, zero), single)


def test_views_give_the_bits_of_their_contiguous_copies(device, dtype):
    src = normal(6, 5, device=device, dtype=dtype).mT
    index = torch.randint(5, (6, 5)).to(device).mT
    for call in (lambda s, i: metalcore.gather(s, i), lambda s, i: metalcore.index_select(s, 1, i[0])):
        assert same_bits(call(src, index), call(src.contiguous(), index.contiguous()))
    flat, wide = src.flatten(), normal(40, device=device, dtype=dtype)
    for first in range(1, 4):
        for kind in (torch.int64, torch.int32):
            index = torch.randint(20, (23,), dtype=kind).to(device)[first:]
            apart = index.clone()
            assert same_bits(metalcore.gather(flat[first:], index), metalcore.gather(flat[first:].clone(), apart))
            once = torch.randperm(30).to(device, kind)[first:]  # in any order the sum is the same
            args = (once - once.min(), wide[first : first + once.numel()])
            want = metalcore.scatter_add(wide[first:].clone(), args[0].clone(), args[1].clone())
            assert same_bits(metalcore.scatter_add(wide[first:], *args), want)
    index = torch.randint(5, (6, 5)).to(device).mT
    if device.type == "cpu":  # elsewhere the order of a sum is not fixed
        want = metalcore.scatter_add(src.contiguous(), index.contiguous(), src.contiguous())
        assert same_bits(metalcore.scatter_add(src, index, src), want)


def test_many_additions_of_half_types_are_rounded_once(device, dtype):
    count = 5000
    dst = normal(3, device=device, dtype=dtype)
    src, index = normal(count, device=device, dtype=dtype), torch.randint(3, (count,)).to(device)
    want, size = exact(dst).copy(), np.abs(exact(dst))
    np.add.at(want, index.cpu().numpy(), exact(src))
    np.add.at(size, index.cpu().numpy(), np.abs(exact(src)))
    bound = rho(dtype) * np.abs(want) + 2 * gamma(count, dtype) * size
    assert_within("scatter_add", metalcore.scatter_add(dst, index, src), want, bound)
    for call in (metalcore.gather, lambda s, i: metalcore.index_select(s, 0, i)):
        leaf = torch.zeros(3, device=device, dtype=dtype, requires_grad=True)
        call(leaf, index).backward(src)
        assert leaf.grad.dtype == dtype
        want_grad, grad_size = np.zeros_like(want), np.zeros_like(want)
        np.add.at(want_grad, index.cpu().numpy(), exact(src))
        np.add.at(grad_size, index.cpu().numpy(), np.abs(exact(src)))
        bound = rho(dtype) * np.abs(want_grad) + 2 * gamma(count, dtype) * grad_size
        assert_within("gather gradient", leaf.grad, want_grad, bound)


@pytest.mark.parametrize("outside", [3, -1, 2**31 - 1])
def test_an_index_out_of_range_is_an_error_on_cpu_and_nan_on_a_gpu(device, dtype, outside):
    index = torch.tensor([0, outside, 2], device=device)
    src = normal(3, 2, device=device, dtype=dtype).requires_grad_()
    each = index[:, None].expand(3, 2)
    calls = {
        "gather": lambda: metalcore.gather(src, each),
        "index_select": lambda: metalcore.index_select(src, 0, index),
        "scatter_add": lambda: metalcore.scatter_add(src, each, src.detach()),
    }
    for op, call in calls.items():
        if device.type == "cpu" and not EMULATED:
            with pytest.raises(IndexError, match=ERROR_TEXT.format(op=op, argument="index")):
                call()
            continue
        src.grad = None
        found = call()
        found.nansum().backward()
        if op == "scatter_add":
            assert bool(found.isfinite().all()) and torch.equal(found[1], src[1])
            terms = src.detach().clone().requires_grad_()
            metalcore.scatter_add(src.detach(), each, terms).sum().backward()
            assert not bool(terms.grad[1].any()) and bool((terms.grad[::2] == 1).all())
        else:
            assert bool(found[1].isnan().all()) and torch.equal(found[::2], src[::2])
            assert not bool(src.grad[1].any()) and bool((src.grad[::2] == 1).all())


@pytest.mark.native
@pytest.mark.dtypes(torch.float64)
@pytest.mark.parametrize("index_type", [torch.int64, torch.int32], ids=str)
def test_first_and_second_derivatives_are_right(device, dtype, index_type):
    src, dst = (normal(4, 3, device=device, dtype=dtype).requires_grad_() for _ in range(2))
    index = torch.randint(4, (4, 3)).to(device, index_type)
    for call, inputs in (
        (lambda s: metalcore.gather(s, index), (src,)),
        (lambda s: metalcore.index_select(s, 0, index[:, 0]), (src,)),
        (lambda d, s: metalcore.scatter_add(d, index, s), (dst, src)),
    ):
        assert gradcheck(call, inputs) and gradgradcheck(call, inputs)


@pytest.mark.native
def test_compiled_code_is_eager_code_without_a_break(device):
    src = torch.randn(6, 4, device=device)
    index = torch.randint(6, (3, 4)).to(device)

    def call(src, index):
        picked = metalcore.gather(src, index) + metalcore.index_select(src, 0, index[:, 0])
        return metalcore.scatter_add(src, index, picked)

    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for dtype, i in ((torch.float32, index), (torch.bfloat16, index.int())):
            grads = []
            for function in (call, compiled):
                leaf = src.detach().to(dtype, copy=True).requires_grad_()
                found = function(leaf, i)
                found.square().sum().backward()
                grads.append((found.detach(), leaf.grad))
            torch.testing.assert_close(grads[0], grads[1])
    torch._dynamo.reset()


@pytest.mark.native
def test_transforms_are_torchs(device):
    src = torch.randn(5, 6, 4, device=device)
    index = torch.randint(6, (5, 3, 4)).to(device)
    for kind in (torch.float32, torch.bfloat16):
        source = src.to(kind)
        found = torch.func.vmap(lambda s, i: metalcore.gather(s, i))(source, index)
        assert same_bits(found, torch.gather(source, 1, index))
        grad = torch.func.grad(lambda s: metalcore.gather(s, index, 1).float().sum())(source)
        assert torch.equal(grad, torch.zeros_like(source).scatter_add(1, index, torch.ones_like(source)[:, :3]))


@pytest.mark.cuda
def test_sums_repeat_where_deterministic_algorithms_are_asked_for(device):
    dst, src = torch.randn(50, device=device), torch.randn(100_000, device=device)
    index = torch.randint(50, (100_000,), device=device)
    torch.use_deterministic_algorithms(True)
    try:
        first = metalcore.scatter_add(dst, index, src)
        assert all(torch.equal(first, metalcore.scatter_add(dst, index, src)) for _ in range(5))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.cuda
def test_calls_are_captured_in_a_graph(device):
    dst, src = torch.randn(50, device=device), torch.randn(1000, device=device)
    index = torch.randint(50, (1000,), device=device)
    call = lambda: (metalcore.gather(dst, index), metalcore.scatter_add(dst.bfloat16(), index, src.bfloat16()))  # noqa: E731
    want = call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found[0], want[0])
    torch.testing.assert_close(found[1], want[1])


ERRORS = [
    ("gather", (torch.ones(3), torch.ones(3)), TypeError, "index"),
    ("gather", (torch.ones(3), [0]), TypeError, "index"),
    ("gather", ([1.0], torch.zeros(1, dtype=torch.int64)), TypeError, "src"),
    ("gather", (torch.ones(3), torch.zeros(3, dtype=torch.int64), 1), ValueError, "dim"),
    ("gather", (torch.ones(3), torch.zeros(3, 1, dtype=torch.int64)), ValueError, "index"),
    ("index_select", (torch.ones(3), 2, torch.zeros(3, dtype=torch.int64)), ValueError, "dim"),
    ("index_select", (torch.ones(3), 0, torch.zeros(3, 1, dtype=torch.int64)), ValueError, "index"),
    ("scatter_add", (torch.ones(3), torch.zeros(3, dtype=torch.int64), torch.ones(3).half()), TypeError, "src"),
    ("scatter_add", (torch.ones(3), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3)), ValueError, "index"),
]


@pytest.mark.native
@pytest.mark.parametrize("op, args, kind, argument", ERRORS, ids=[f"{e[0]} {e[3]} {i}" for i, e in enumerate(ERRORS)])
def test_wrong_calls_name_the_argument(device, op, args, kind, argument):
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
    with pytest.raises(kind) as error:
        getattr(metalcore, op)(*args)
    assert type(error.value) is kind
    assert re.search(ERROR_TEXT.format(op=op, argument=argument), str(error.value)), str(error.value)


def test_any_number_of_dimensions(device, dtype):
    src = normal(*(3,) * 7, device=device, dtype=dtype)
    index = torch.randint(3, (2,) * 7).to(device)
    assert same_bits(metalcore.gather(src, index, 3), torch.gather(src, 3, index))
    turned = src.permute(6, 5, 4, 3, 2, 1, 0)
    flat = torch.tensor([2, 0], device=device)
    assert same_bits(metalcore.index_select(turned, 2, flat), torch.index_select(turned, 2, flat))
    narrow = src[(slice(0, 2),) * 7]
    found = metalcore.scatter_add(torch.zeros_like(src), index, narrow, 3)
    sums = torch.zeros_like(src, dtype=torch.float64)
    want, size = (sums.scatter_add(3, index, terms.double()).numpy(force=True) for terms in (narrow, narrow.abs()))
    assert_within("scatter_add", found, want, rho(dtype) * abs(want) + 2 * gamma(2, dtype) * size)


@pytest.mark.parametrize("index_shape, src_shape", [((1,), ()), ((), (1,))], ids=str)
def test_no_dimension_counts_as_one_of_one_element(device, dtype, index_shape, src_shape):
    dst, src = torch.zeros(3, device=device, dtype=dtype), torch.full(src_shape, 2.0, device=device, dtype=dtype)
    index = torch.ones(index_shape, device=device, dtype=torch.int64)
    src.requires_grad_()
    out = metalcore.scatter_add(dst, index, src)
    assert out.tolist() == [0, 2, 0]
    out.sum().backward()
    assert src.grad.shape == src.shape and src.grad.sum() == 1


def test_forward_derivatives_are_kept(device):
    x, t = (normal(5, 4, device=device, dtype=torch.float32) for _ in range(2))
    index = torch.randint(5, (3, 4)).to(device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, t)
        got = forward_ad.unpack_dual(metalcore.gather(dual, index.int())).tangent
        sums = forward_ad.unpack_dual(metalcore.scatter_add(dual, index, dual[:3])).tangent
    assert torch.equal(got, torch.gather(t, 0, index))
    assert torch.allclose(sums, torch.scatter_add(t, 0, index, t[:3]))


def test_gradients_of_half_types_are_sums_in_float32_under_transforms(device):
    x = torch.zeros(1, 4, device=device, dtype=torch.bfloat16)
    index = torch.zeros(300, dtype=torch.int64, device=device)

    def total(s):
        return torch.func.vmap(lambda row: metalcore.gather(row, index).float().sum())(s).sum()

    assert torch.func.grad(total)(x)[0, 0] == 300


def test_an_index_into_nothing_is_out_of_range(device, dtype):
    dst, src = torch.empty(0, 4, device=device, dtype=dtype), torch.ones(2, 4, device=device, dtype=dtype)
    index = torch.zeros(2, 4, device=device, dtype=torch.int64)
    if device.type == "cpu" and not EMULATED:
        with pytest.raises(IndexError, match="scatter_add: index: got index 0"):
            metalcore.scatter_add(dst, index, src)
    else:
        assert metalcore.scatter_add(dst, index, src).shape == dst.shape


def test_errors_that_are_no_ones_argument_keep_their_class(device, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(metalcore.indexing, "_take", full)
    src = torch.ones(4, device=device, dtype=torch.bfloat16)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        metalcore.gather(src, torch.zeros(2, dtype=torch.int32, device=device))
