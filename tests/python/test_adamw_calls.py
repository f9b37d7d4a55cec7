"""MetalAdamW as torch calls it: closures, hooks, schedulers, gradient scaling, versions, flags and errors. State and changes
between steps: test_adamw_optimizer.py.
"""

from __future__ import annotations

import metalcore
import pytest
import torch
from oracles import assert_step, give_grads
from support import bits, normal, same_bits
from test_adamw_optimizer import MOMENTS, continue_alike, everything, parameters, started
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

# --- torch's ways of calling it -------------------------------------------------------------------


def test_a_closure_is_called_once_with_gradients_on_and_its_loss_returned(device, dtype):
    params, optimizer = started(device, dtype)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in params)
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True] and loss.requires_grad
    assert [float(optimizer.state[p]["step"]) for p in params] == [3.0] * len(params)


def test_hooks_before_and_after_a_step_run(device, dtype):
    params, optimizer = started(device, dtype)
    seen = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: seen.append(float(optimizer.state[params[0]]["step"]))),
        optimizer.register_step_post_hook(lambda *_: seen.append(float(optimizer.state[params[0]]["step"]))),
    ]
    optimizer.step()
    assert seen == [2.0, 3.0]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 2


def test_hooks_of_all_optimizers_get_the_arguments_of_the_call(device):
    params, optimizer = started(device, torch.float32)
    give_grads(params)
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda *call: seen.append(call)),
        register_optimizer_step_post_hook(lambda *call: seen.append(call)),
    ]
    try:
        optimizer.step(closure=None)
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert seen == [(optimizer, (optimizer,), {"closure": None})] * 2


def test_hooks_of_a_derived_optimizer_run_once(device):
    class Derived(metalcore.MetalAdamW):
        def step(self, closure=None):
            return super().step(closure)

    params = parameters(device, torch.float32)
    give_grads(params)
    optimizer, seen = Derived(params), []
    optimizer.register_step_post_hook(lambda *_: seen.append(float(optimizer.state[params[0]]["step"])))
    optimizer.step()
    optimizer.step()
    assert seen == [1.0, 2.0]


def test_the_profiler_of_torch_sees_a_step(device):
    params, optimizer = started(device, torch.float32)
    give_grads(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert "Optimizer.step#MetalAdamW.step" in {event.key for event in profile.key_averages()}


def test_steps_in_inference_mode_and_after_it_are_steps(device, dtype):
    params = parameters(device, dtype)
    optimizer = metalcore.MetalAdamW(params)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.enable_grad):
        give_grads(params)
        with mode():
            optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [4.0] * len(params)
    give_grads(params)
    assert_step(optimizer)


SCHEDULERS = {
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda t: 1 / (t + 1)),
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, 4),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, 0.1, 6),
}


@pytest.mark.parametrize("tensor_rate", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_change_the_rate(device, dtype, make, tensor_rate):
    params = parameters(device, dtype)
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    rate = torch.tensor(0.01, device=device, dtype=precision) if tensor_rate else 0.01
    optimizer = metalcore.MetalAdamW(params, lr=rate)
    scheduler = make(optimizer)
    rates = set()
    for _ in range(4):
        give_grads(params)
        assert_step(optimizer)
        rates.add(float(optimizer.param_groups[0]["lr"]))
        scheduler.step()
    assert len(rates) > 1


@pytest.mark.dtypes(torch.float32, torch.float16)
def test_grad_scale_divides_gradients_and_found_inf_skips_the_step(device, dtype):
    params, optimizer = started(device, dtype, amsgrad=True)
    give_grads(params)
    optimizer.grad_scale = torch.tensor(8.0, device=device)
    optimizer.found_inf = torch.tensor(0.0, device=device)
    assert_step(optimizer, grad_scale=8.0)
    before = everything(optimizer)
    optimizer.found_inf.fill_(1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(everything(optimizer), before))
    del optimizer.grad_scale, optimizer.found_inf
    assert_step(optimizer)


@pytest.mark.dtypes(torch.float32, torch.float16)
def test_a_first_step_that_is_skipped_counts_nothing(device, dtype):
    params = parameters(device, dtype)
    optimizer = metalcore.MetalAdamW(params)
    before = [bits(p).clone() for p in params]
    give_grads(params)
    optimizer.found_inf = torch.ones((), device=device)
    optimizer.step()
    assert all(torch.equal(bits(p), old) for p, old in zip(params, before))
    del optimizer.found_inf
    assert_step(optimizer)
    assert [float(optimizer.state[p]["step"]) for p in params] == [1.0] * len(params)


@pytest.mark.dtypes(torch.float32)
def test_the_gradient_scaler_of_torch_is_honoured(device, dtype):
    params, optimizer = started(device, dtype, steps=1)
    scaler = torch.amp.GradScaler(device.type, init_scale=16.0, growth_interval=1)
    for bad in (False, True, False):
        optimizer.zero_grad()
        loss = sum((p * normal(*p.shape, device=device, dtype=dtype)).sum() for p in params)
        scaler.scale(loss).backward()
        if bad:
            params[0].grad[0] = float("inf")
            before, scale = everything(optimizer), scaler.get_scale()
            scaler.step(optimizer)
            assert all(torch.equal(a, b) for a, b in zip(everything(optimizer), before))
            scaler.update()
            assert scaler.get_scale() < scale
        else:
            assert_step(optimizer, lambda: scaler.step(optimizer), scaler.get_scale())
            scaler.update()
    assert not hasattr(optimizer, "found_inf")


def test_versions_of_everything_that_changes_are_bumped(device, dtype):
    params, optimizer = started(device, dtype, amsgrad=True)
    give_grads(params)
    state = [optimizer.state[p][key] for p in params for key in ("step", *MOMENTS)]
    before = [t._version for t in (*params, *state)]
    optimizer.step()
    after = [t._version for t in (*params, *state)]
    assert all(new > old for old, new in zip(before[: len(params)], after)), "a parameter's version was not bumped"
    assert all(new > old for old, new in zip(before, after)), "a state tensor's version was not bumped"


def test_a_graph_that_saved_a_parameter_sees_that_it_changed(device, dtype):
    params, optimizer = started(device, dtype)
    loss = (params[0] ** 2).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- flags and errors -----------------------------------------------------------------------------


FLAGS = [
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"fused": False},
    {"capturable": True},
    {"foreach": True, "capturable": True},
]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_flags_choose_the_same_implementation(device, dtype, flags):
    params = parameters(device, dtype)
    plain = metalcore.MetalAdamW([torch.nn.Parameter(p.detach().clone()) for p in params])
    flagged = metalcore.MetalAdamW(params, **flags)
    for key, value in flags.items():
        assert flagged.param_groups[0][key] is value and flagged.defaults[key] is value
    continue_alike(plain, flagged)


@pytest.mark.dtypes(torch.float32, torch.float64)
def test_differentiable_runs_the_formula_of_torch(device, dtype):
    start = normal(5, device=device, dtype=dtype)
    found = []
    for kind in (metalcore.MetalAdamW, torch.optim.AdamW):
        weight = start.clone().requires_grad_()
        p = weight * 1
        optimizer = kind([p], lr=0.1, differentiable=True)
        p.grad = weight**3
        optimizer.step()
        (grad,) = torch.autograd.grad(p.sum(), weight)
        found.append((p.detach(), grad))
    assert all(same_bits(a, b) for a, b in zip(*found))


def test_it_is_an_adamw(device):
    optimizer = metalcore.MetalAdamW(parameters(device, torch.float32))
    theirs = torch.optim.AdamW(parameters(device, torch.float32))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults == theirs.defaults


WRONG = [
    {"lr": -1.0}, {"eps": -1e-8}, {"weight_decay": -0.1}, {"betas": (1.0, 0.9)}, {"betas": (-0.1, 0.9)},
    {"betas": (0.9, 1.0)}, {"betas": (0.9, -1.0)}, {"lr": torch.ones(2)}, {"lr": float("nan")},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_options_out_of_range_are_value_errors_as_in_torch(device, options):
    with pytest.raises(ValueError):
        torch.optim.AdamW(parameters(device, torch.float32), foreach=False, **options)
    with pytest.raises(ValueError):
        metalcore.MetalAdamW(parameters(device, torch.float32), **options)


def test_flags_that_exclude_each_other_and_unknown_ones_are_refused(device):
    params = parameters(device, torch.float32)
    for options in ({"foreach": True, "fused": True}, {"differentiable": True, "fused": True}):
        with pytest.raises(ValueError, match="MetalAdamW: .+: got .+, expected .+"):
            metalcore.MetalAdamW(params, **options)
    for wrong in (
        lambda: metalcore.MetalAdamW(params, learning_rate=1.0),
        lambda: metalcore.MetalAdamW(params, 1e-3, (0.9, 0.9), 0, 0, False, True),
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(ValueError):
        metalcore.MetalAdamW([])


@pytest.mark.parametrize("steps", [0, 2], ids=["first step", "later step"])
@pytest.mark.parametrize("where", ["same group", "later group"])
@pytest.mark.parametrize("what", ["sparse", "complex"])
def test_sparse_and_complex_are_refused_before_anything_is_modified(device, what, where, steps):
    params, optimizer = started(device, torch.float32, steps=steps)
    if what == "sparse":
        odd = torch.nn.Parameter(torch.ones(4, 3, device=device))
    else:
        odd = torch.nn.Parameter(torch.ones(4, 3, device=device, dtype=torch.complex64))
    if where == "same group":
        optimizer.param_groups[0]["params"].append(odd)
    else:
        optimizer.add_param_group({"params": [odd]})
    give_grads(params)
    odd.grad = torch.ones_like(odd).to_sparse() if what == "sparse" else torch.ones_like(odd)
    before = everything(optimizer)
    with pytest.raises(NotImplementedError, match="MetalAdamW: .+: got .+, expected .+"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(everything(optimizer), before))
    assert len(before) == len(everything(optimizer))
