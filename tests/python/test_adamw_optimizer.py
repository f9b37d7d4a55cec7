"""MetalAdamW as an optimiser: state and its exchange with torch.optim.AdamW, changes between steps, hooks, schedulers,
gradient scaling, flags and errors. The arithmetic: test_adamw.py.
"""

from __future__ import annotations

import copy
import io
import pickle

import metalcore
import pytest
import torch
from oracles import assert_step, give_grads
from support import HALVES, bits, normal, same_bits
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

SHAPES = [(9,), (3, 5), (0,), (130,)]
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def parameters(device, dtype, shapes=SHAPES):
    return [torch.nn.Parameter(normal(*shape, device=device, dtype=dtype)) for shape in shapes]


def started(device, dtype, steps=2, **options):
    """Parameters and an optimiser that has taken steps."""
    params = parameters(device, dtype)
    optimizer = metalcore.MetalAdamW(params, **options)
    for _ in range(steps):
        give_grads(params)
        optimizer.step()
    return params, optimizer


def everything(optimizer):
    """Bits of parameters and state, in order."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = [optimizer.state[p][key] for p in params for key in sorted(optimizer.state.get(p, {}))]
    return [bits(t).clone() for t in (*params, *state)]


def continue_alike(first, second, steps=3):
    """Steps of two optimisers on equal gradients give equal bits."""
    groups = zip(first.param_groups, second.param_groups)
    pairs = [pair for a, b in groups for pair in zip(a["params"], b["params"])]
    for _ in range(steps):
        for p, q in pairs:
            p.grad = normal(*p.shape, device=p.device, dtype=p.dtype)
            q.grad = p.grad.clone()
        first.step()
        second.step()
    for p, q in pairs:
        assert same_bits(p, q)
        assert all(same_bits(first.state[p][key], second.state[q][key]) for key in first.state[p])


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_has_the_names_of_torch_and_its_own_precision(device, dtype, amsgrad):
    params, optimizer = started(device, dtype, amsgrad=amsgrad)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for p in params:
        state = optimizer.state[p]
        assert set(state) == {"step", *MOMENTS[: 3 if amsgrad else 2]}
        assert state["step"].shape == () and state["step"].dtype == torch.float32 and state["step"].device == p.device
        for name in MOMENTS[: 3 if amsgrad else 2]:
            assert state[name].dtype == wide and state[name].shape == p.shape and state[name].device == p.device


@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_dicts_have_the_keys_of_torch(device, dtype, amsgrad):
    params, ours = started(device, dtype, amsgrad=amsgrad)
    theirs = torch.optim.AdamW(params, amsgrad=amsgrad)
    theirs.step()
    mine, other = ours.state_dict(), theirs.state_dict()
    assert set(mine) == set(other)
    assert [set(group) for group in mine["param_groups"]] == [set(group) for group in other["param_groups"]]
    assert {i: set(state) for i, state in mine["state"].items()} == {i: set(state) for i, state in other["state"].items()}


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.dtypes(torch.float32, torch.float64)
def test_torch_continues_from_our_state(device, dtype, amsgrad):
    params, ours = started(device, dtype, steps=40, amsgrad=amsgrad)
    theirs = torch.optim.AdamW(params, amsgrad=amsgrad, foreach=False)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p in params:
        assert all(same_bits(ours.state[p][key].cpu(), theirs.state[p][key].cpu()) for key in ours.state[p])
    for _ in range(3):
        give_grads(params)
        assert_step(theirs)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_we_continue_from_the_state_of_torch(device, dtype, amsgrad, how):
    params = parameters(device, dtype)
    # torch adds eps in the parameter's dtype, where 1e-8 is nothing beside a float16.
    theirs = torch.optim.AdamW(params, eps=1e-3, amsgrad=amsgrad, **how)
    for _ in range(2):
        give_grads(params)
        theirs.step()
    ours = metalcore.MetalAdamW(params)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.param_groups[0]["amsgrad"] is amsgrad
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for p in params:
        for key in MOMENTS[: 3 if amsgrad else 2]:
            assert same_bits(ours.state[p][key], theirs.state[p][key].to(wide)), f"{key} is not widened exactly"
        assert float(ours.state[p]["step"]) == 2
    for _ in range(3):
        give_grads(params)
        assert_step(ours)


@pytest.mark.dtypes(*HALVES)
def test_torch_narrows_our_float32_state_of_half_parameters_as_its_own(device, dtype):
    params, ours = started(device, dtype)
    theirs = torch.optim.AdamW(params, foreach=False)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p in params:
        assert all(same_bits(theirs.state[p][key], ours.state[p][key].to(dtype)) for key in ("exp_avg", "exp_avg_sq"))
    give_grads(params)
    theirs.step()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_loaded_state_continues_bit_for_bit(device, dtype, amsgrad):
    params, first = started(device, dtype, amsgrad=amsgrad)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    second = metalcore.MetalAdamW(others)
    second.load_state_dict(torch.load(file, weights_only=True))
    continue_alike(first, second)


def test_loading_does_not_share_memory_with_what_is_loaded(device, dtype):
    params, first = started(device, dtype)
    saved = first.state_dict()
    kept = {i: {key: bits(value).clone() for key, value in state.items()} for i, state in saved["state"].items()}
    saved = copy.deepcopy(saved)
    second = metalcore.MetalAdamW([torch.nn.Parameter(p.detach().clone()) for p in params])
    second.load_state_dict(saved)
    give_grads(second.param_groups[0]["params"])
    second.step()
    for i, state in saved["state"].items():
        assert all(torch.equal(bits(value), kept[i][key]) for key, value in state.items())


def test_deepcopy_and_pickle_continue_bit_for_bit(device, dtype):
    _, optimizer = started(device, dtype, amsgrad=True)
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for other in others:
        assert type(other) is metalcore.MetalAdamW and other._step_supports_amp_scaling
        assert not {id(p) for p in other.param_groups[0]["params"]} & {id(p) for p in optimizer.param_groups[0]["params"]}
        continue_alike(copy.deepcopy(optimizer), other)


# --- changes between steps ------------------------------------------------------------------------


def _replace(key):
    def change(params, optimizer):
        state = optimizer.state[params[1]]
        state[key] = state[key].clone() * 2

    return change


def _change_in_place(key):
    def change(params, optimizer):
        optimizer.state[params[1]][key].mul_(3)

    return change


def _new_data(params, optimizer):
    params[1].data = params[1].data * 2
    params[3].data = normal(130, device=params[3].device, dtype=params[3].dtype)


def _new_layout(params, optimizer):
    params[1].data = params[1].data.mT.contiguous().mT


def _options(params, optimizer):
    optimizer.param_groups[0].update(lr=0.3, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.3, maximize=True)


def _another_group(params, optimizer):
    new = parameters(params[0].device, params[0].dtype)
    optimizer.add_param_group({"params": new, "lr": 0.5})
    params.extend(new)


def _drop_and_reorder(params, optimizer):
    optimizer.param_groups[0]["params"] = [params[3], params[0], params[1]]


CHANGES = {
    "state cleared": lambda params, optimizer: optimizer.state.clear(),
    "state of one parameter emptied": lambda params, optimizer: optimizer.state.__setitem__(params[1], {}),
    "state of one parameter removed": lambda params, optimizer: optimizer.state.pop(params[1]),
    **{f"{key} replaced": _replace(key) for key in ("step", *MOMENTS)},
    **{f"{key} changed in place": _change_in_place(key) for key in ("step", *MOMENTS)},
    "data replaced": _new_data,
    "data of another layout": _new_layout,
    "options changed": _options,
    "group added": _another_group,
    "parameters dropped and reordered": _drop_and_reorder,
    "state loaded": lambda params, optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_step_starts_from_what_is_there_whatever_was_changed(device, dtype, change):
    params, optimizer = started(device, dtype, amsgrad=True)
    change(params, optimizer)
    for _ in range(3):
        give_grads(params)
        assert_step(optimizer)


@pytest.mark.dtypes(torch.float32)
def test_parameters_may_change_their_dtype(device, dtype):
    params, optimizer = started(device, dtype, amsgrad=True)
    for other in (torch.bfloat16, torch.float16, torch.float32):
        for p in params:
            p.grad = None
            p.data = p.data.to(other)
        for _ in range(2):
            give_grads(params)
            assert_step(optimizer)
        assert optimizer.state[params[0]]["exp_avg"].dtype == torch.float32


def test_earlier_state_may_be_loaded_between_steps(device, dtype):
    params, optimizer = started(device, dtype)
    saved, values = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    grads = [normal(*p.shape, device=device, dtype=dtype) for p in params]
    ends = []
    for _ in range(2):
        for p, g in zip(params, grads):
            p.grad = g.clone()
        optimizer.step()
        ends.append(everything(optimizer))
        optimizer.load_state_dict(saved)
        for p, value in zip(params, values):
            p.data.copy_(value)
    assert all(torch.equal(a, b) for a, b in zip(*ends))


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


FLAGS = [{"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}, {"capturable": True}, {"foreach": True, "capturable": True}]


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
    for wrong in (lambda: metalcore.MetalAdamW(params, learning_rate=1.0), lambda: metalcore.MetalAdamW(params, 1e-3, (0.9, 0.9), 0, 0, False, True)):
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
