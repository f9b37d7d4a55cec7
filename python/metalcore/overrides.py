"""Torch's own functions, done by metalcore where that is faster.

A replaced function takes a call only if the measured table (_thresholds.py) says so and the call uses nothing that ours
lacks; every other call goes to the original, arguments untouched, so that results, warnings and errors are torch's.
Calls inside ``torch.compile``, ``torch.jit``, transforms of ``torch.func``, forward-mode AD, under a dispatch mode, and
of tensor subclasses are the original's too.

To override one more function: write its adapter, add it to ``OVERRIDES``, and a line to the table.
"""

import functools
import inspect
import logging
import sys
import weakref
from typing import Any, Callable, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch.overrides import handle_torch_function, has_torch_function

from . import _linalg_overrides, _replacements, _thresholds
from ._taking import PLAIN, taken, usual

_log = logging.getLogger("metalcore")
_INDICES = (torch.int64, torch.int32)
_SHAPES = (tuple, list, torch.Size)
_HOLDER = "enable_pytorch_overrides"


# --- one adapter an op: torch's signature; ours does the call, or NotImplemented ------------------
# ``unknown`` and ``more`` are arguments that torch's function does not have: the original says so.


def _silu(ours: Callable) -> Callable:
    def adapter(input=None, inplace=False, *unknown, **more):
        if inplace or unknown or more or not usual(input) or not taken("silu", input, elements=input.numel()):
            return NotImplemented
        return ours(input)

    return adapter


def _gelu(ours: Callable) -> Callable:
    def adapter(input=None, *unknown, approximate="none", **more):
        if unknown or more or approximate not in ("none", "tanh") or not usual(input) or input.device.type == "mps":
            return NotImplemented
        return ours(input, approximate) if taken("gelu", input, elements=input.numel()) else NotImplemented

    return adapter


def _softmax(ours: Callable) -> Callable:
    def adapter(input=None, dim=None, _stacklevel=3, dtype=None, *unknown, **more):
        if type(dim) is not int or unknown or more or not usual(input) or not -input.ndim <= dim < input.ndim:
            return NotImplemented
        if dtype not in (None, input.dtype) or not taken("softmax", input, elements=input.numel(), columns=input.shape[dim]):
            return NotImplemented
        return ours(input, dim)

    return adapter


def _normalizes(input: torch.Tensor, normalized_shape: Any, *parameters: "torch.Tensor | None") -> bool:
    if not isinstance(normalized_shape, _SHAPES) or not normalized_shape:
        return False
    shape = tuple(normalized_shape)
    return input.shape[-len(shape) :] == shape and all(p is None or p.shape == shape for p in parameters)


def _row(input: torch.Tensor, normalized_shape: Any) -> dict:
    elements = input.numel()
    rows = 1
    for size in input.shape[: input.ndim - len(normalized_shape)]:
        rows *= size
    return {"elements": elements, "columns": elements // rows}


def _rms_norm(ours: Callable) -> Callable:
    def adapter(input=None, normalized_shape=None, weight=None, eps=None, *unknown, **more):
        if unknown or more or not usual(input, weight) or not _normalizes(input, normalized_shape, weight):
            return NotImplemented
        if type(eps) not in (float, type(None)) or not taken("rms_norm", input, **_row(input, normalized_shape)):
            return NotImplemented
        return ours(input, normalized_shape, weight, eps)

    return adapter


def _layer_norm(ours: Callable) -> Callable:
    def adapter(input=None, normalized_shape=None, weight=None, bias=None, eps=1e-5, *unknown, **more):
        if unknown or more or not usual(input, weight, bias) or not _normalizes(input, normalized_shape, weight, bias):
            return NotImplemented
        if type(eps) is not float or not taken("layer_norm", input, **_row(input, normalized_shape)):
            return NotImplemented
        return ours(input, normalized_shape, weight, bias, eps)

    return adapter


def _embedding_bag(ours: Callable) -> Callable:
    def adapter(
        input=None,
        weight=None,
        offsets=None,
        max_norm=None,
        norm_type=2,
        scale_grad_by_freq=False,
        mode="mean",
        sparse=False,
        per_sample_weights=None,
        include_last_offset=False,
        padding_idx=None,
        *unknown,
        **more,
    ):
        if max_norm is not None or scale_grad_by_freq or sparse or unknown or more or mode not in ("sum", "mean", "max"):
            return NotImplemented
        if not usual(weight, per_sample_weights) or weight.ndim != 2 or type(input) not in PLAIN:
            return NotImplemented
        if input.dtype not in _INDICES or input.device != weight.device or not input.numel():
            return NotImplemented
        if per_sample_weights is not None and (mode != "sum" or per_sample_weights.shape != input.shape):
            return NotImplemented
        if offsets is None:
            if input.ndim != 2 or include_last_offset:
                return NotImplemented
            bags = input.shape[0]
        else:
            same = type(offsets) in PLAIN and offsets.dtype is input.dtype and offsets.device == input.device
            if not same or input.ndim != 1 or offsets.ndim != 1 or not offsets.numel():
                return NotImplemented
            bags = offsets.numel() - bool(include_last_offset)
        if padding_idx is not None:
            if type(padding_idx) is not int or not -weight.shape[0] <= padding_idx < weight.shape[0]:
                return NotImplemented
            padding_idx %= weight.shape[0]
        sizes = {"bags": bags, "columns": weight.shape[1], "indices": input.numel(), "maximum": int(mode == "max")}
        if not taken("embedding_bag", weight, **sizes):
            return NotImplemented
        if offsets is None:
            offsets = torch.arange(0, input.numel(), input.shape[1], dtype=input.dtype, device=input.device)
            input = input.reshape(-1)
            per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        options = {"per_sample_weights": per_sample_weights, "padding_idx": padding_idx}
        try:
            return ours(weight, input, offsets, mode, include_last_offset=bool(include_last_offset), **options)
        except (IndexError, ValueError):
            return NotImplemented  # what an index or offset out of range is, the original says

    return adapter


def _cross_entropy(ours: Callable) -> Callable:
    def adapter(
        input=None,
        target=None,
        weight=None,
        size_average=None,
        ignore_index=-100,
        reduce=None,
        reduction="mean",
        label_smoothing=0.0,
        *unknown,
        **more,
    ):
        if weight is not None or size_average is not None or reduce is not None or unknown or more:
            return NotImplemented
        if reduction not in ("none", "mean", "sum") or type(ignore_index) is not int:
            return NotImplemented
        if type(label_smoothing) not in (float, int) or not 0 <= label_smoothing <= 1 or not usual(input):
            return NotImplemented
        if type(target) not in PLAIN or target.dtype is not torch.int64 or target.device != input.device:
            return NotImplemented
        if input.ndim != 2 or target.shape != input.shape[:1]:
            return NotImplemented
        if not taken("cross_entropy", input, elements=input.numel(), columns=input.shape[1]):
            return NotImplemented
        try:
            return ours(input, target, ignore_index, label_smoothing, reduction).to(input.dtype)
        except (IndexError, ValueError):
            return NotImplemented  # a target out of range: the original's error

    return adapter


# --- classes --------------------------------------------------------------------------------------


def _takes_params(params: Any) -> bool:
    """Whether ours is faster for these parameters. Half ones are not its: it would keep their moments in float32, twice
    the memory of torch's."""
    tensors = []
    for item in params:
        group = item["params"] if isinstance(item, dict) else [item]
        for p in [group] if isinstance(group, torch.Tensor) else group:
            tensors.append(p[1] if isinstance(p, tuple) and len(p) == 2 else p)
    elements: dict = {}
    for p in tensors:
        if type(p) not in PLAIN or p.dtype not in (torch.float32, torch.float64) or p.layout is not torch.strided:
            return False
        place = p.device, p.dtype
        elements[place] = elements.get(place, 0) + p.numel()
    return bool(elements) and all(_thresholds.faster("adamw", *place, {"elements": n}) for place, n in elements.items())


def _listed(params: Any) -> Any:
    """The same parameters, so that looking at them uses up no generator; what is no collection of them stays as it is."""
    if isinstance(params, (torch.Tensor, dict, str)) or not hasattr(params, "__iter__"):
        return params
    params = list(params)
    for i, item in enumerate(params):
        if isinstance(item, dict) and not isinstance(item.get("params", ()), (torch.Tensor, set)):
            params[i] = {**item, "params": list(item.get("params", ()))} if "params" in item else item
    return params


def _adamw(entry: _replacements.Replacement, ours: type) -> type:
    """A class under the original's name whose instances are ours or the original's, and whose instances all are."""
    original = entry.original

    class Meta(type(original)):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls is not stand_in:  # derived from it: torch's optimizer, whose inner methods it may use
                return super().__call__(*args, **kwargs)
            if args:
                args = (_listed(args[0]), *args[1:])
            elif "params" in kwargs:
                kwargs = {**kwargs, "params": _listed(kwargs["params"])}
            return (ours if entry.active and takes(*args, **kwargs) else original)(*args, **kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, original) if cls is stand_in else super().__instancecheck__(instance)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, original) if cls is stand_in else super().__subclasscheck__(other)

    def takes(params=None, lr=1e-3, *rest, **options) -> bool:
        if not isinstance(params, list) or isinstance(lr, torch.Tensor) or options.get("differentiable"):
            return False
        if (options.get("foreach") and options.get("fused")) or len(rest) > 4 or not known.issuperset(options):
            return False
        groups = [g for g in params if isinstance(g, dict)]
        if any("params" not in g or not isinstance(g["params"], (list, torch.Tensor)) for g in groups):
            return False
        if any(g.get("differentiable") or isinstance(g.get("lr"), torch.Tensor) for g in groups):
            return False
        return _takes_params(params)

    known = frozenset(inspect.signature(ours).parameters)
    members = {"__doc__": original.__doc__, "__module__": original.__module__, "__qualname__": original.__qualname__}
    stand_in = Meta(original.__name__, (original,), members)
    stand_in.__signature__ = inspect.signature(original)
    return stand_in


# --- the functions that are overridden ------------------------------------------------------------


def _uncast(function: Callable) -> Callable:
    """The function with autocast off: a call that autocast casts in torch is not ours, and another is not cast."""

    def call(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch._C._is_any_autocast_enabled():
            return function(first, *args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return call


def _function(adapt: Callable) -> Callable:
    """How a function is replaced."""

    def make(entry: _replacements.Replacement, ours: Callable) -> Callable:
        original, adapter = entry.original, adapt(_uncast(ours))

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if entry.holders:
                result = adapter(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            # torch's functions in Python would name themselves by what stands under their name now.
            seen = (*args, *kwargs.values()) if kwargs else args
            if names_itself and has_torch_function(seen):
                return handle_torch_function(original, seen, *args, **kwargs)
            return original(*args, **kwargs)

        # torch.compile and torch.jit.script look through what is marked so, to the original.
        names_itself = hasattr(original, "__code__")
        call.__script_if_tracing_wrapper = True
        call.__original_fn = original
        builtin = torch.jit._builtins._find_builtin(original)
        if builtin is not None:
            torch.jit._builtins._register_builtin(call, builtin)
            # The table goes by addresses, which another function can have afterwards.
            weakref.finalize(call, torch.jit._builtins._get_builtin_table().pop, id(call), None)
        return call

    return make


class Override(NamedTuple):
    """A function or class of torch and what stands in for it."""

    group: str  # the flag of enable_pytorch_overrides
    owner: Any
    attribute: str
    ours: str  # its name in metalcore: what is not there is left out
    make: Callable  # (replacement, ours) -> what stands in
    example: Optional[Callable] = None  # (function, 2 x 2 tensor) -> a result, whose dtype shows what autocast does
    names: tuple = ()  # in get_active_overrides, if not the name here


def _indices(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(2, dtype=torch.int64, device=x.device)


def _identity(x: torch.Tensor) -> torch.Tensor:
    return torch.eye(2, dtype=x.dtype, device=x.device)


def _linalg(
    adapter: str, example: Callable, ours: str = "", owner: Any = torch.linalg, attribute: str = "", names: tuple = ()
) -> Override:
    make = _function(getattr(_linalg_overrides, adapter))
    return Override("linalg", owner, attribute or adapter, ours or adapter, make, example, names)


OVERRIDES = {
    "silu": Override("activations", F, "silu", "metal_silu", _function(_silu), lambda f, x: f(x)),
    "gelu": Override("activations", F, "gelu", "metal_gelu", _function(_gelu), lambda f, x: f(x)),
    "embedding_bag": Override(
        "embedding_bag", F, "embedding_bag", "embedding_bag", _function(_embedding_bag), lambda f, x: f(_indices(x)[None], x)
    ),
    "rms_norm": Override(
        "normalization", F, "rms_norm", "rms_norm", _function(_rms_norm), lambda f, x: f(x, (2,)), ("rms_norm", "rmsnorm_cls")
    ),
    "layer_norm": Override("normalization", F, "layer_norm", "layer_norm", _function(_layer_norm), lambda f, x: f(x, (2,))),
    "softmax": Override("softmax", F, "softmax", "fused_softmax", _function(_softmax), lambda f, x: f(x, -1)),
    "cross_entropy": Override(
        "losses", F, "cross_entropy", "cross_entropy", _function(_cross_entropy), lambda f, x: f(x, _indices(x))
    ),
    "qr": _linalg("qr", lambda f, x: f(x)[0]),
    "svd": _linalg("svd", lambda f, x: f(x)[0]),
    "torch.svd": _linalg("torch_svd", lambda f, x: f(x)[0], ours="svd", owner=torch, attribute="svd", names=("svd",)),
    "svdvals": _linalg("svdvals", lambda f, x: f(x)),
    "eigh": _linalg("eigh", lambda f, x: f(x)[0]),
    "eigvalsh": _linalg("eigvalsh", lambda f, x: f(x)),
    "cholesky": _linalg("cholesky", lambda f, x: f(_identity(x))),
    "cholesky_ex": _linalg("cholesky_ex", lambda f, x: f(x)[0]),
    "solve": _linalg("solve", lambda f, x: f(_identity(x), x)),
    "solve_ex": _linalg("solve_ex", lambda f, x: f(x, x)[0]),
    "solve_triangular": _linalg("solve_triangular", lambda f, x: f(x, x, upper=True), ours="trsm"),
    "inv": _linalg("inv", lambda f, x: f(_identity(x))),
    "lstsq": _linalg("lstsq", lambda f, x: f(_identity(x), x)[0]),
    "pinv": _linalg("pinv", lambda f, x: f(x)),
    "adamw": Override("optimizers", torch.optim, "AdamW", "MetalAdamW", _adamw),
}


def ours(name: str) -> Any:
    """The function of metalcore behind a name, or None as long as there is none."""
    found = getattr(sys.modules[__package__], name, None)
    return found if callable(found) else None  # a submodule may have the name


def hold(op: str, holder: str) -> bool:
    """Replaces the function of an op for a holder. Returns whether metalcore has the op."""
    override = OVERRIDES.get(op)
    function = None if override is None else ours(override.ours)
    if function is None:
        return False
    _replacements.hold(override.owner, override.attribute, holder, lambda entry: override.make(entry, function))
    return True


def release(op: str, holder: str) -> None:
    """Lets go of it."""
    override = OVERRIDES[op]
    _replacements.release(override.owner, override.attribute, holder)


def holds(op: str, holder: str) -> bool:
    """Whether the holder has it replaced."""
    override = OVERRIDES[op]
    return _replacements.held(override.owner, override.attribute, holder)


def _active() -> frozenset:
    """Ops that enable_pytorch_overrides holds."""
    return frozenset(op for op in OVERRIDES if holds(op, _HOLDER))


class Handle:
    """``with enable_pytorch_overrides(...):`` puts back, at the end, what was active before the call."""

    def __init__(self, before: frozenset) -> None:
        self._before = before

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *error: Any) -> None:
        now = _active()
        for op in now - self._before:
            release(op, _HOLDER)
        for op in self._before - now:
            hold(op, _HOLDER)


def _tell(verbose: bool, text: str, ops: Any) -> None:
    if ops:
        _log.log(logging.INFO if verbose else logging.DEBUG, text, ", ".join(sorted(ops)))


def enable_pytorch_overrides(
    activations: bool = True,
    embedding_bag: bool = True,
    normalization: bool = True,
    softmax: bool = True,
    linalg: bool = True,
    optimizers: bool = True,
    all: bool = False,
    verbose: bool = False,
    *,
    losses: bool = True,
) -> Handle:
    """Has torch's own functions done by metalcore where that was measured to be faster; else the original runs.

    =============  =============================================================================================
    flag           replaced
    =============  =============================================================================================
    activations    ``F.silu``, ``F.gelu`` (not on mps)
    embedding_bag  ``F.embedding_bag``
    normalization  ``F.rms_norm``, ``F.layer_norm``, and so the modules RMSNorm and LayerNorm, old and new
    softmax        ``F.softmax``
    losses         ``F.cross_entropy``
    linalg         ``torch.linalg``: ``qr``, ``svd``, ``svdvals``, ``eigh``, ``eigvalsh``, ``cholesky``, ``cholesky_ex``,
                   ``solve``, ``solve_ex``, ``solve_triangular``, ``inv``, ``lstsq``, ``pinv``; ``torch.svd``
    optimizers     ``torch.optim.AdamW``
    =============  =============================================================================================

    What metalcore does not have is left out; ``get_active_overrides()`` says what is replaced. The complete contract of
    each function stays: arguments, dtypes, gradients, autocast, subclasses, errors. A second call changes nothing more;
    a flag that is False leaves its group as it is; ``all=True`` is all flags. Names that were imported before (``from
    torch.nn.functional import silu``) are not reached. ``verbose`` logs to the logger ``metalcore``.

    Returns a handle: as a context manager, it restores at its end what was active before.
    """
    flags = {
        "activations": activations,
        "embedding_bag": embedding_bag,
        "normalization": normalization,
        "softmax": softmax,
        "linalg": linalg,
        "optimizers": optimizers,
        "losses": losses,
    }
    before = _active()
    wanted = [op for op, override in OVERRIDES.items() if all or flags[override.group]]
    absent = [op for op in wanted if not hold(op, _HOLDER)]
    _tell(verbose, "overrides enabled: %s", _active() - before)
    _tell(verbose, "overrides that metalcore does not have: %s", absent)
    return Handle(before)


def disable_pytorch_overrides(
    activations: bool = False,
    embedding_bag: bool = False,
    normalization: bool = False,
    softmax: bool = False,
    optimizers: bool = False,
    linalg: bool = False,
    all: bool = True,
    verbose: bool = False,
    *,
    losses: bool = False,
) -> None:
    """Puts the identical original objects back: of the groups named, or of all if none is.

    A name that somebody else has replaced meanwhile is left alone, with a warning.
    """
    flags = {
        "activations": activations,
        "embedding_bag": embedding_bag,
        "normalization": normalization,
        "softmax": softmax,
        "linalg": linalg,
        "optimizers": optimizers,
        "losses": losses,
    }
    everything = all and True not in flags.values()
    going = [op for op in _active() if everything or flags[OVERRIDES[op].group]]
    for op in going:
        release(op, _HOLDER)
    _tell(verbose, "overrides disabled: %s", going)


def get_active_overrides() -> set:
    """Names of the functions that are replaced now, as a new set, such as {'qr', 'rms_norm', 'rmsnorm_cls', 'adamw'}."""
    return {name for op in _active() for name in OVERRIDES[op].names or (op,)}
