"""MetalAdamW as an optimiser: its state, the exchange of it with torch.optim.AdamW, changes between steps. The arithmetic:
test_adamw.py; hooks, schedulers, scaling, flags and errors: test_adamw_calls.py.
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


def _memory_replaced(key):
    def change(params, optimizer):
        value = optimizer.state[params[1]][key]
        value.data = value.data * 2

    return change


def _swapped(key):
    def change(params, optimizer):
        value = optimizer.state[params[1]][key]
        torch.utils.swap_tensors(value, value.detach().clone() * 2)

    return change


def _something_else_kept(params, optimizer):
    optimizer.state[params[1]]["note"] = "of the user"


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
    **{f"memory of {key} replaced": _memory_replaced(key) for key in ("step", *MOMENTS)},
    **{f"{key} swapped": _swapped(key) for key in ("step", *MOMENTS)},
    "something else kept in a state": _something_else_kept,
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


def test_a_parameter_may_be_transposed_where_it_is(device, dtype):
    p = torch.nn.Parameter(normal(5, 5, device=device, dtype=dtype))
    optimizer = metalcore.MetalAdamW([p])
    for step in range(4):
        if step == 2:
            p.data = p.data.mT
        p.grad = normal(5, 5, device=device, dtype=dtype)
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
