"""Torch's functions replaced: the identical objects come back, and a call has torch's results, gradients and errors.

Tests run over every override whose function metalcore has.
"""

from __future__ import annotations

import inspect
import logging
import pickle
import warnings

import metalcore
import pytest
import torch
import torch.nn.functional as F
from metalcore import _thresholds, overrides
from torch.testing._internal.common_methods_invocations import op_db

ALL = sorted(overrides.OVERRIDES)
THERE = [op for op in ALL if overrides.ours(overrides.OVERRIDES[op].ours) is not None]
FUNCTIONS = [op for op in THERE if op != "adamw"]
ORIGINALS = {op: getattr(o.owner, o.attribute) for op, o in overrides.OVERRIDES.items()}
# Names in torch's database of sample inputs, where they are not "nn.functional." and the op.
LINALG = [op for op in FUNCTIONS if overrides.OVERRIDES[op].group == "linalg"]
DATABASE = {"softmax": "softmax", **{op: f"linalg.{op}" for op in LINALG}, "torch.svd": "svd"}
OPTIONS = {op: {"upper": False} if op == "solve_triangular" else {} for op in ALL}  # what a call has to have


def current(op):
    override = overrides.OVERRIDES[op]
    return getattr(override.owner, override.attribute)


@pytest.fixture(autouse=True)
def _restored():
    yield
    metalcore.unpatch_comfy()
    metalcore.disable_pytorch_overrides()
    assert all(current(op) is ORIGINALS[op] for op in ALL)


@pytest.fixture
def taken(monkeypatch):
    """Overrides are on, and take every call that ours can do; the list of those that were taken."""
    calls: list = []
    for op in FUNCTIONS:
        name = overrides.OVERRIDES[op].ours
        function = getattr(metalcore, name)

        def counted(*args, _op=op, _function=function, **kwargs):
            calls.append(_op)
            return _function(*args, **kwargs)

        monkeypatch.setattr(metalcore, name, counted)
    with metalcore.enable_pytorch_overrides(), _thresholds.everything():
        yield calls


def example(op, device, dtype=torch.float32):
    """(args, tensors to differentiate) of a simple call."""
    x = torch.randn(4, 8, device=device, dtype=dtype)
    index = torch.tensor([[1, 0, 3], [2, 2, 1]], device=device)
    square = torch.eye(4, device=device, dtype=dtype) * torch.arange(1, 5, device=device, dtype=dtype) + 0.1
    return {
        "silu": (x,),
        "gelu": (x,),
        "softmax": (x, -1),
        "rms_norm": (x, (8,)),
        "layer_norm": (x, (8,)),
        "cross_entropy": (x, torch.arange(4, device=device)),
        "embedding_bag": (index, x),
        "qr": (x,),
        "svd": (x,),
        "torch.svd": (x,),
        "svdvals": (x,),
        "pinv": (x,),
        "lstsq": (square, x),
        "solve": (square, x),
        "solve_ex": (square, x),
        "solve_triangular": (square, x),
    }.get(op, (square,))


def first(result):
    return result if isinstance(result, torch.Tensor) else result[0]


# --- names ----------------------------------------------------------------------------------------


def test_each_flag_replaces_its_group_and_disabling_puts_the_identical_objects_back():
    groups = {override.group for override in overrides.OVERRIDES.values()}
    for group in groups:
        flags = {name: name == group for name in groups}
        metalcore.enable_pytorch_overrides(**flags)
        expected = {op for op in THERE if overrides.OVERRIDES[op].group == group}
        assert {op for op in ALL if current(op) is not ORIGINALS[op]} == expected
        names = {"rms_norm": {"rms_norm", "rmsnorm_cls"}, "torch.svd": {"svd"}}
        assert metalcore.get_active_overrides() == set().union(*(names.get(op, {op}) for op in expected))
        metalcore.disable_pytorch_overrides(**{group: True})
        assert not metalcore.get_active_overrides()


def test_enabling_twice_changes_nothing_and_names_are_a_copy():
    metalcore.enable_pytorch_overrides()
    before = [current(op) for op in ALL]
    metalcore.enable_pytorch_overrides(all=True)
    assert all(a is b for a, b in zip(before, (current(op) for op in ALL)))
    metalcore.get_active_overrides().clear()
    assert "qr" in metalcore.get_active_overrides()


def test_the_handle_restores_what_was_before():
    metalcore.enable_pytorch_overrides(activations=False, embedding_bag=False, softmax=False, losses=False, optimizers=False)
    before = metalcore.get_active_overrides()
    with metalcore.enable_pytorch_overrides():
        assert "adamw" in metalcore.get_active_overrides()
        with metalcore.enable_pytorch_overrides():
            metalcore.disable_pytorch_overrides(linalg=True)
        assert "qr" in metalcore.get_active_overrides()
    assert metalcore.get_active_overrides() == before
    with pytest.raises(KeyError), metalcore.enable_pytorch_overrides():
        raise KeyError
    assert metalcore.get_active_overrides() == before


def test_what_somebody_else_replaced_meanwhile_is_left_alone():
    metalcore.enable_pytorch_overrides()
    ours, foreign = F.rms_norm, lambda *args, **kwargs: ours(*args, **kwargs)
    F.rms_norm = foreign
    try:
        with pytest.warns(UserWarning, match="rms_norm was replaced by someone else"):
            metalcore.disable_pytorch_overrides()
        assert F.rms_norm is foreign
        with _thresholds.everything():  # ours is still called, and does what torch does
            x = torch.randn(3, 5)
            assert torch.equal(F.rms_norm(x, (5,)), ORIGINALS["rms_norm"](x, (5,)))
    finally:
        F.rms_norm = ORIGINALS["rms_norm"]


def test_overrides_and_comfy_can_be_undone_in_any_order(monkeypatch):
    monkeypatch.setattr(metalcore, "metal_silu", lambda x: x * x.sigmoid(), raising=False)
    for first_to_go, second in (
        (metalcore.unpatch_comfy, metalcore.disable_pytorch_overrides),
        (metalcore.disable_pytorch_overrides, metalcore.unpatch_comfy),
    ):
        metalcore.patch_comfy(sdpa=True)
        metalcore.enable_pytorch_overrides()
        replaced = F.silu
        assert metalcore.is_patched() and replaced is not ORIGINALS["silu"]
        first_to_go()
        assert F.silu is replaced
        second()
        assert F.silu is ORIGINALS["silu"] and not metalcore.is_patched()


def test_nothing_is_printed_and_verbose_logs(capsys, caplog):
    with caplog.at_level(logging.INFO, "metalcore"):
        metalcore.enable_pytorch_overrides()
        assert not caplog.records
        metalcore.disable_pytorch_overrides()
        metalcore.enable_pytorch_overrides(verbose=True)
    assert "rms_norm" in caplog.text and "qr" in caplog.text
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("op", THERE)
def test_a_replacement_looks_like_the_original(op):
    metalcore.enable_pytorch_overrides()
    for name in ("__name__", "__doc__", "__qualname__"):
        assert getattr(current(op), name) == getattr(ORIGINALS[op], name)


# --- the table ------------------------------------------------------------------------------------


def test_the_table_names_ops_and_sizes_that_are_there_and_what_was_measured():
    for line in _thresholds.MEASURED:
        assert line.op in overrides.OVERRIDES and line.device in ("cpu", "cuda", "mps") and line.measured
        assert all(least is None or most is None or least <= most for least, most in line.sizes.values())


def test_only_what_the_table_covers_is_taken():
    assert _thresholds.faster("qr", torch.device("cuda"), torch.float32, {"batch": 500, "rows": 16, "columns": 16})
    assert not _thresholds.faster("qr", torch.device("cuda"), torch.float32, {"batch": 1, "rows": 1000, "columns": 200})
    assert not _thresholds.faster("qr", torch.device("mps"), torch.float32, {"batch": 500, "rows": 16, "columns": 16})
    assert not _thresholds.faster("qr", torch.device("cuda"), torch.float64, {"batch": 500, "rows": 16, "columns": 16})


@pytest.mark.parametrize("op", FUNCTIONS)
def test_a_call_outside_the_table_is_torchs_bit_for_bit(op, device):
    args = example(op, device)
    with metalcore.enable_pytorch_overrides():
        assert torch.equal(first(current(op)(*args, **OPTIONS[op])), first(ORIGINALS[op](*args, **OPTIONS[op])))


# --- results --------------------------------------------------------------------------------------


def call_of(op, function):
    """The function as torch's database calls it."""
    return (lambda weight, indices, **kwargs: function(indices, weight, **kwargs)) if op == "embedding_bag" else function


def gradients(function, sample, tensors):
    """Results of a call and gradients of its arguments; None, None if it raises, and the error's class and text."""
    for t in tensors:
        t.grad = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = function(sample.input, *sample.args, **sample.kwargs)
            kind = type(result)
    except Exception as error:
        return None, None, (type(error), str(error))
    result = sample.output_process_fn_grad(result)  # what does not depend on signs
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    try:
        loss = sum((r * torch.linspace(0.5, 1.5, r.numel(), dtype=r.dtype, device=r.device).view(r.shape)).sum() for r in results)
        if isinstance(loss, torch.Tensor) and loss.requires_grad:
            loss.backward()
    except RuntimeError as error:
        return results, None, (type(error), str(error))
    return results, [t.grad for t in tensors], kind


@pytest.mark.parametrize("op", FUNCTIONS)
def test_torchs_sample_inputs_have_the_same_results_and_gradients(op, device, dtype, taken):
    name = DATABASE.get(op, f"nn.functional.{op}")
    (info,) = (info for info in op_db if info.name == name and not info.variant_test_name)
    supported = info.supported_dtypes(device.type)
    if dtype not in supported:
        return
    half = dtype in (torch.float16, torch.bfloat16)
    differentiable = info.supports_autograd and dtype in info.supported_backward_dtypes(device.type)
    for sample in info.sample_inputs(device, dtype, requires_grad=differentiable):
        arguments = [sample.input, *sample.args, *sample.kwargs.values()]
        tensors = [t for t in arguments if isinstance(t, torch.Tensor) and t.requires_grad]
        want, want_grads, want_other = gradients(call_of(op, ORIGINALS[op]), sample, tensors)
        got, got_grads, got_other = gradients(call_of(op, current(op)), sample, tensors)
        assert got_other == want_other, sample
        # torch's own bounds for an op against a reference; half results are a rounding of float32 ones on both sides.
        bounds = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps} if half else {}
        if op in LINALG:  # times the condition of the samples
            bounds = {"rtol": 500 * torch.finfo(dtype).eps, "atol": 500 * torch.finfo(dtype).eps}
        torch.testing.assert_close(got, want, **bounds)
        if want_grads is not None:
            if op == "layer_norm" and not half:
                # Of a row of one element it is 0; torch's is a rounding times 1 / sqrt(eps).
                bounds = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e3 * torch.finfo(dtype).eps}
            torch.testing.assert_close(got_grads, want_grads, **{k: 4 * v for k, v in bounds.items()})
    assert op in taken or (op in LINALG and half), "no sample was taken"


@pytest.mark.parametrize("op", FUNCTIONS)
def test_calls_that_torch_refuses_raise_torchs_error(op, device, taken):
    args = example(op, device)
    integers = torch.ones(4, 8, dtype=torch.int32, device=device)
    no_floats = (args[0], integers) if op == "embedding_bag" else (integers, *args[1:])
    for wrong in ((), (None, *args[1:]), no_floats, (*args, *range(11))):
        outcomes = []
        for function in (ORIGINALS[op], current(op)):
            with pytest.raises(Exception) as caught:
                function(*wrong, **OPTIONS[op])
            outcomes.append((caught.type, str(caught.value)))
        assert outcomes[0] == outcomes[1]
    for function in (ORIGINALS[op], current(op)):
        with pytest.raises(TypeError, match="unexpected|no_such"):
            function(*args, **OPTIONS[op], no_such=1)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_autocast_has_the_same_dtype(op, device, taken):
    for dtype in (torch.float32, torch.bfloat16):
        args = example(op, device, dtype)
        with torch.autocast(device.type, torch.bfloat16):
            try:
                want = first(ORIGINALS[op](*args, **OPTIONS[op])).dtype
            except RuntimeError:
                continue
            assert first(current(op)(*args, **OPTIONS[op])).dtype == want


class Marked(torch.Tensor):
    """A subclass with a table of functions by their objects."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in ORIGINALS.values():
            return "seen"
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("op", FUNCTIONS)
def test_subclasses_see_the_original_function(op, device, taken):
    args = [a.as_subclass(Marked) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in example(op, device)]
    assert current(op)(*args, **OPTIONS[op]) == "seen" and op not in taken


@pytest.mark.parametrize("op", FUNCTIONS)
def test_transforms_modes_and_tracers_see_torchs_operators(op, device, taken):
    from torch.utils._python_dispatch import TorchDispatchMode

    names = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(func.namespace)
            return func(*args, **(kwargs or {}))

    args = example(op, device)
    with Seen():
        current(op)(*args, **OPTIONS[op])
    assert names == {"aten"}
    if op not in LINALG and op != "embedding_bag":
        batched = args[0][None].expand(2, *args[0].shape)
        torch.func.vmap(lambda x: current(op)(x, *args[1:], **OPTIONS[op]))(batched)
        torch.func.jvp(lambda x: current(op)(x, *args[1:], **OPTIONS[op]), (args[0],), (args[0],))
    assert op not in taken
    with torch.device(device):  # a mode that only says where tensors are made
        current(op)(*args, **OPTIONS[op])
    assert op in taken


@pytest.mark.native
@pytest.mark.parametrize("op", FUNCTIONS)
def test_compiled_and_scripted_code_has_the_original(op, device, taken):
    args = example(op, device)
    replaced = current(op)

    def call(*args):
        return first(replaced(*args, **OPTIONS[op])) * 2

    if op != "lstsq":  # torch does not compile it
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        want = first(ORIGINALS[op](*args, **OPTIONS[op])) * 2
        if op in ("eigvalsh", "svdvals"):  # with vectors in torch's graphs: to rounding
            torch.testing.assert_close(compiled(*args), want)
        else:
            assert torch.equal(compiled(*args), want)
        torch._dynamo.reset()
    traced = torch.fx.symbolic_trace(lambda x: replaced(x, *args[1:], **OPTIONS[op]))
    assert any(node.target is ORIGINALS[op] for node in traced.graph.nodes)
    assert op not in taken


def test_scripted_code_has_the_original(taken):
    @torch.jit.script
    def scripted(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(torch.nn.functional.rms_norm(x, [8])) + torch.linalg.qr(x)[0].sum()

    x = torch.randn(4, 8)
    assert scripted(x).shape == x.shape and not taken


def test_modules_old_and_new_are_reached(device, taken):
    x = torch.randn(4, 8, device=device)
    norm = torch.nn.RMSNorm(8, device=device)
    norm(x)
    assert taken == ["rms_norm"]


# --- AdamW ----------------------------------------------------------------------------------------


def parameters(device, dtype=torch.float32):
    return [
        torch.nn.Parameter(torch.ones(3, 2, device=device, dtype=dtype)),
        torch.nn.Parameter(torch.ones(5, device=device, dtype=dtype)),
    ]


def test_adamw_instances_made_before_and_after_are_instances_of_the_name(device):
    before = torch.optim.AdamW(parameters(device))
    with metalcore.enable_pytorch_overrides(), _thresholds.everything():
        after = torch.optim.AdamW(p for p in parameters(device))
        assert type(after) is metalcore.MetalAdamW
        assert len(after.param_groups[0]["params"]) == 2
        assert isinstance(before, torch.optim.AdamW) and isinstance(after, torch.optim.AdamW)
        assert issubclass(metalcore.MetalAdamW, torch.optim.AdamW) and issubclass(ORIGINALS["adamw"], torch.optim.AdamW)
        assert not isinstance(torch.optim.SGD(parameters(device)), torch.optim.AdamW)
        assert inspect.signature(torch.optim.AdamW) == inspect.signature(ORIGINALS["adamw"])

        class Derived(torch.optim.AdamW):
            pass

        derived = Derived(parameters(device))
        assert type(derived) is Derived and isinstance(derived, ORIGINALS["adamw"]) and not isinstance(after, Derived)
        grouped = torch.optim.AdamW([{"params": (p for p in parameters(device)), "lr": 0.1}])
        assert type(grouped) is metalcore.MetalAdamW and len(grouped.param_groups[0]["params"]) == 2
    assert isinstance(after, torch.optim.AdamW) and type(pickle.loads(pickle.dumps(after))) is metalcore.MetalAdamW
    for optimizer in (before, after, derived, grouped):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
    torch.testing.assert_close(before.param_groups[0]["params"][0], after.param_groups[0]["params"][0])


def test_adamw_that_ours_is_not_for_is_torchs_and_so_are_its_errors(device):
    original = ORIGINALS["adamw"]
    with metalcore.enable_pytorch_overrides():
        assert type(torch.optim.AdamW(parameters(device))) is original  # too small for the table
        with _thresholds.everything():
            assert type(torch.optim.AdamW(parameters(device, torch.bfloat16))) is original
            assert type(torch.optim.AdamW(parameters(device), differentiable=True)) is original
            for args, kwargs in (
                ((), {}),
                (([],), {}),
                ((parameters(device)[0],), {}),
                ((parameters(device), -1.0), {}),
                ((parameters(device),), {"eps": -1.0}),
                ((parameters(device),), {"no_such": 1}),
                ((parameters(device),), {"foreach": True, "fused": True}),
                (([{"lr": 1.0}],), {}),
                ((3,), {}),
            ):
                outcomes = []
                for cls in (original, torch.optim.AdamW):
                    with pytest.raises(Exception) as caught:
                        cls(*args, **kwargs)
                    outcomes.append((caught.type, str(caught.value)))
                assert outcomes[0] == outcomes[1]
