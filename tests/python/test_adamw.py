"""MetalAdamW, the arithmetic: every step of every parameter and moment against its bound, over dtypes, options, numbers of
tensors and layouts. What it is as an optimiser: test_adamw_optimizer.py, test_adamw_calls.py.
"""

from __future__ import annotations

import metalcore
import numpy as np
import oracles
import pytest
import torch
from oracles import assert_step, give_grads, set_grad
from support import EMULATED, OTHER_DTYPE, VIEWS, bits, exact, normal, same_bits, views

SHAPES = [(), (1,), (3,), (0,), (17, 5), (31, 33), (4097,)]
OPTIONS = {
    "default": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "amsgrad and maximize": {"amsgrad": True, "maximize": True},
    "no decay": {"weight_decay": 0.0},
    "large rate and decay": {"lr": 0.1, "weight_decay": 0.5},
    "no rate": {"lr": 0.0},
    "slow": {"betas": (0.99, 0.99999)},
    "fast": {"betas": (0.1, 0.3)},
    "no memory": {"betas": (0.0, 0.0)},
    "large eps": {"eps": 1.0},
    "tiny eps": {"eps": 1e-15},
}


def parameters(device, dtype, shapes=SHAPES):
    return [torch.nn.Parameter(normal(*shape, device=device, dtype=dtype)) for shape in shapes]


def copies(params):
    """Parameters of the same values, contiguous."""
    return [torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in params]


# --- options and dtypes ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_21_steps_are_within_the_bounds(device, dtype, options):
    params = parameters(device, dtype)
    optimizer = metalcore.MetalAdamW(params, **options)
    for step in range(21):
        give_grads(params, scale=(1.0, 1e-2, 30.0)[step % 3])
        assert_step(optimizer)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_oracle_is_the_step_of_torch(options):
    params = parameters(torch.device("cpu"), torch.float64)
    optimizer = torch.optim.AdamW(params, foreach=False, **options)
    (group,) = optimizer.param_groups
    for t in range(1, 6):
        give_grads(params)
        before = [oracles.snapshot(optimizer, p) for p in params]
        optimizer.step()
        # torch rounds each beta^t to float64 before it takes it from 1.
        lost = sum(2.0**-53 / (1 - beta**t) for beta in group["betas"])
        for p, old in zip(params, before):
            want = oracles.adamw(old, group)["param"]
            step = np.abs(want.value - exact(old.param) * (1 - group["lr"] * group["weight_decay"]))
            assert (np.abs(exact(p) - want.value) <= want.bound + lost * step).all()


@pytest.mark.parametrize("count", [9, 999, 99_999, 9_999_999])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.999, 0.9999999)], ids=str)
def test_late_steps_are_within_the_bounds(device, dtype, count, betas):
    params = parameters(device, dtype, [(33,)])
    optimizer = metalcore.MetalAdamW(params, betas=betas)
    give_grads(params)
    optimizer.step()
    optimizer.state[params[0]]["step"].fill_(count)
    for _ in range(2):
        give_grads(params)
        assert_step(optimizer)


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.native
def test_gradients_may_have_another_floating_dtype(device, dtype, grad_dtype):
    if device.type == "mps" and grad_dtype == torch.float64:
        grad_dtype = torch.float32
    params = parameters(device, dtype)
    optimizer = metalcore.MetalAdamW(params)
    for _ in range(3):
        give_grads(params, grad_dtype)
        assert_step(optimizer)


@pytest.mark.emulated
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_may_have_another_dtype_of_the_device(device, dtype, grad_dtype):
    params = parameters(device, dtype)
    optimizer = metalcore.MetalAdamW(params, amsgrad=True)
    for _ in range(3):
        give_grads(params, grad_dtype)
        assert_step(optimizer)


@pytest.mark.emulated
def test_float64_on_a_device_without_it_names_the_device(device):
    params = parameters(device, torch.float64, [(5,)])
    give_grads(params)
    before = bits(params[0]).clone()
    with pytest.raises(TypeError, match="MetalAdamW: .+: got .*float64.*mps"):
        metalcore.MetalAdamW(params).step()
    assert torch.equal(bits(params[0]), before)


def test_a_group_may_mix_dtypes_of_parameters_and_gradients(device, dtype):
    params = [*parameters(device, dtype, [(5,), (70,)]), *parameters(device, OTHER_DTYPE[dtype], [(7,), (3, 5)])]
    optimizer = metalcore.MetalAdamW(params, amsgrad=True)
    for step in range(4):
        give_grads(params)
        if step % 2:
            give_grads(params[1:2], OTHER_DTYPE[dtype])
        assert_step(optimizer)


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_the_rate_may_be_a_tensor_that_changes(device, dtype, shape):
    params = parameters(device, dtype)
    rate = torch.full(shape, 1e-2, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    optimizer = metalcore.MetalAdamW(params, lr=rate)
    for step in range(4):
        optimizer.param_groups[0]["lr"].fill_(1e-2 / (step + 1))
        give_grads(params)
        assert_step(optimizer)


def test_groups_have_options_of_their_own(device, dtype):
    first, second, third = (parameters(device, dtype, [(9,), (40, 3)]) for _ in range(3))
    groups = [
        {"params": first, "lr": 0.1},
        {"params": second, "weight_decay": 0.0, "betas": (0.5, 0.7), "amsgrad": True},
        {"params": third, "lr": torch.tensor(0.01, device=device), "eps": 1e-3, "maximize": True},
    ]
    optimizer = metalcore.MetalAdamW(groups, lr=1e-3)
    for _ in range(5):
        give_grads([*first, *second, *third])
        assert_step(optimizer)


def test_values_that_are_not_finite_stay_where_they_are(device, dtype):
    clean, spoiled = (parameters(device, dtype, [(50,)]) for _ in range(2))
    spoiled[0].data.copy_(clean[0].data)
    grad = normal(50, device=device, dtype=dtype)
    bad = grad.clone()
    bad[7], bad[9] = float("nan"), float("inf")
    for params, g in ((clean, grad), (spoiled, bad)):
        set_grad(params[0], g)
        metalcore.MetalAdamW(params).step()
    others = torch.tensor([i for i in range(50) if i not in (7, 9)], device=device)
    assert same_bits(spoiled[0][others], clean[0][others])
    assert bool(spoiled[0][7].isnan()) and not bool(spoiled[0][9].isfinite())


# --- numbers of tensors ---------------------------------------------------------------------------


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 11, 64, 65] if EMULATED else [1, 2, 5, 6, 64, 65, 513])
@pytest.mark.dtypes(torch.float32, torch.bfloat16)
def test_any_number_of_tensors_of_odd_sizes_is_updated(device, dtype, count, amsgrad):
    sizes = [0, 1, 7, 4095, 3, 4096, 16, 4097, 0, 129]
    params = parameters(device, dtype, [(sizes[i % len(sizes)],) for i in range(count)])
    optimizer = metalcore.MetalAdamW(params, amsgrad=amsgrad)
    for _ in range(2):
        give_grads(params)
        assert_step(optimizer)


def test_only_empty_tensors_are_counted(device, dtype):
    params = parameters(device, dtype, [(0,), (3, 0)])
    optimizer = metalcore.MetalAdamW(params)
    for _ in range(2):
        give_grads(params)
        assert_step(optimizer)


@pytest.mark.native
@pytest.mark.dtypes(torch.float32, torch.float16)
def test_large_tensors_are_within_the_bounds(device, dtype):
    params = parameters(device, dtype, [(1_000_003,), (513, 257)])
    optimizer = metalcore.MetalAdamW(params)
    for _ in range(2):
        give_grads(params)
        assert_step(optimizer)


def test_no_gradient_at_all_is_no_step(device, dtype):
    params = parameters(device, dtype)
    optimizer = metalcore.MetalAdamW(params)
    before = [bits(p).clone() for p in params]
    optimizer.step()
    assert not optimizer.state and all(torch.equal(bits(p), old) for p, old in zip(params, before))


def test_a_parameter_without_gradient_is_skipped_and_comes_back(device, dtype):
    params = parameters(device, dtype, [(9,), (5, 7), (33,)])
    optimizer = metalcore.MetalAdamW(params)
    present = [(0, 1, 2), (0, 2), (1,), (0, 1, 2), (2,), (0, 1, 2)]
    for which in present:
        for p in params:
            p.grad = None
        give_grads([params[i] for i in which])
        assert_step(optimizer)
    counts = [sum(i in which for which in present) for i in range(3)]
    assert [float(optimizer.state[p]["step"]) for p in params] == counts


# --- layouts --------------------------------------------------------------------------------------


def laid_out(name, values):
    """A view with these values, or a tensor in the channels-last format."""
    if name == "channels last":
        return values.to(memory_format=torch.channels_last)
    ((_, view),) = views(name, values)
    return view


@pytest.mark.parametrize("layout", [*(name for name in VIEWS if name != "lazily negated"), "channels last"])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "maximize": True}], ids=str)
def test_parameters_of_every_layout_get_the_bits_of_contiguous_ones(device, dtype, options, layout):
    values = normal(2, 3, 5, 6, device=device, dtype=dtype)
    plain, other = torch.nn.Parameter(values.clone()), torch.nn.Parameter(laid_out(layout, values))
    memory = other.data.as_strided((other.untyped_storage().nbytes() // other.element_size(),), (1,), 0)
    between = memory.isnan()
    reference, optimizer = metalcore.MetalAdamW([plain], **options), metalcore.MetalAdamW([other], **options)
    for step in range(4):
        plain.grad = normal(*values.shape, device=device, dtype=dtype)
        other.grad = laid_out(layout, plain.grad) if step % 2 else plain.grad.clone()
        reference.step()
        assert_step(optimizer)
        assert same_bits(other, plain)
        for key, value in reference.state[plain].items():
            assert same_bits(optimizer.state[other][key], value), key
    assert torch.equal(memory.isnan(), between), "memory between the elements was written to"


@pytest.mark.parametrize("layout", [*VIEWS, "channels last"])
def test_gradients_of_every_layout_give_the_bits_of_contiguous_ones(device, dtype, layout):
    values = normal(2, 3, 5, 6, device=device, dtype=dtype)
    plain, other = (torch.nn.Parameter(values.clone()) for _ in range(2))
    reference, optimizer = metalcore.MetalAdamW([plain]), metalcore.MetalAdamW([other])
    for step in range(4):
        plain.grad = normal(*values.shape, device=device, dtype=dtype)
        # After a contiguous one, whose way is another.
        other.grad = plain.grad.clone() if step == 2 else laid_out(layout, plain.grad)
        reference.step()
        assert_step(optimizer)
        assert same_bits(other, plain)


def test_an_expanded_gradient_is_like_its_copy(device, dtype):
    p, q = (torch.nn.Parameter(torch.ones(6, 5, device=device, dtype=dtype)) for _ in range(2))
    row = normal(1, 5, device=device, dtype=dtype)
    p.grad, q.grad = row.expand(6, 5), row.repeat(6, 1)
    assert_step(metalcore.MetalAdamW([p]))
    metalcore.MetalAdamW([q]).step()
    assert same_bits(p, q)


def test_parameters_that_share_memory_are_updated_each_in_its_part(device, dtype):
    base = normal(4, 33, device=device, dtype=dtype)
    before = base.clone()
    params = [torch.nn.Parameter(base[i]) for i in (0, 1, 3)]
    optimizer = metalcore.MetalAdamW(params)
    for _ in range(2):
        give_grads(params)
        assert_step(optimizer)
    assert same_bits(base[2], before[2]) and not torch.equal(base[0], before[0])


# --- laws -----------------------------------------------------------------------------------------


def test_the_same_steps_twice_give_the_same_bits(device, dtype):
    first = parameters(device, dtype)
    second = copies(first)
    optimizers = [metalcore.MetalAdamW(params) for params in (first, second)]
    for _ in range(3):
        give_grads(first)
        for p, q in zip(first, second):
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert all(same_bits(p, q) for p, q in zip(first, second))


def test_how_tensors_are_grouped_does_not_change_a_bit(device, dtype):
    together = parameters(device, dtype, [(7,), (4097,), (3, 5), (64,), (1,), (9,), (0,)])
    apart = copies(together)
    one = metalcore.MetalAdamW(together)
    several = [metalcore.MetalAdamW([p]) for p in apart]
    for _ in range(3):
        give_grads(together)
        for p, q in zip(together, apart):
            q.grad = p.grad.clone()
        for optimizer in (one, *several):
            optimizer.step()
    assert all(same_bits(p, q) for p, q in zip(together, apart))


def test_without_rate_or_without_gradient_and_decay_parameters_keep_their_bits(device, dtype):
    for options, scale in (({"lr": 0.0}, 1.0), ({"weight_decay": 0.0}, 0.0)):
        params = parameters(device, dtype)
        before = [bits(p).clone() for p in params]
        optimizer = metalcore.MetalAdamW(params, **options)
        for _ in range(3):
            give_grads(params, scale=scale)
            optimizer.step()
        assert all(torch.equal(bits(p), old) for p, old in zip(params, before))


def test_half_parameters_follow_a_float32_copy_rounded_once_a_step(device):
    for dtype in (torch.float16, torch.bfloat16):
        (half,) = parameters(device, dtype, [(1000,)])
        optimizer = metalcore.MetalAdamW([half])
        for _ in range(3):
            give_grads([half])
            single = torch.nn.Parameter(half.detach().float())
            single.grad = half.grad.float()
            other = metalcore.MetalAdamW([single])
            other.state[single] = {key: value.clone() for key, value in optimizer.state.get(half, {}).items()}
            optimizer.step()
            other.step()
            assert same_bits(half, single.to(dtype))
            assert all(same_bits(optimizer.state[half][key], other.state[single][key]) for key in ("exp_avg", "exp_avg_sq"))
