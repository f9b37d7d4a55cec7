"""Models of transformers (and others of their structure): norms, rotary embedding and gated MLPs done by metalcore.

What a module computes is found by running it on a probe, not by the name of its class, so a model of an unknown family
is patched if it computes the same and left alone if not. Parameters, submodules and state_dict keys stay.
"""

import functools
import inspect
import logging
import sys
import warnings
import weakref
from typing import Any, Callable, Iterator, Optional

import torch
from torch import Tensor, nn

from . import _replacements
from .overrides import ours
from .rms_norm import MetalRMSNorm, rms_norm

_log = logging.getLogger("metalcore")
_PLAIN = (Tensor, nn.Parameter)
_PATCH = "patch_transformers"  # holder of forwards


# --- probes ---------------------------------------------------------------------------------------


def _waves(*shape: int, like: Tensor, phase: float = 0.0) -> Tensor:
    """Values in (-2, 2) without a pattern, which leave torch's random numbers as they are."""
    size = torch.Size(shape).numel()
    return (2 * torch.sin(torch.arange(size, dtype=torch.float64) ** 1.5 + phase)).reshape(shape).to(like.device, like.dtype)


def _agree(got: Any, want: Any) -> bool:
    """Whether two results are the same up to a few roundings, by their largest element."""
    if not isinstance(got, Tensor) or not isinstance(want, Tensor) or got.dtype != want.dtype or got.shape != want.shape:
        return False
    unit = torch.finfo(want.dtype).eps
    got, want = got.double(), want.double()
    return bool(((got - want).abs().amax(-1) <= 8 * unit * want.abs().amax(-1)).all())


def _outcome(call: Callable, *args: Any) -> Any:
    """What a call of somebody else's code returns; None if it fails, whatever way."""
    try:
        return call(*args)
    except Exception as error:
        _log.debug("probe: %s", error)
        return None


def _probed(module: nn.Module) -> Any:
    """A context for probes: no gradients, no dropout."""

    class Quiet(torch.no_grad):
        def __enter__(self) -> None:
            super().__enter__()
            self.modes = [(m, m.training) for m in module.modules()]
            for m, _ in self.modes:
                m.training = False

        def __exit__(self, *error: Any) -> None:
            for m, training in self.modes:
                m.training = training
            super().__exit__(*error)

    return Quiet()


def _original(module: nn.Module) -> Optional[Callable]:
    """The class's forward if it takes one tensor and nobody has replaced it for this module, else None."""
    forward = type(module).forward
    if "forward" in vars(module) and getattr(vars(module)["forward"], "__func__", None) is not forward:
        return None
    parameters = list(inspect.signature(forward).parameters.values())
    return forward if len(parameters) == 2 and parameters[1].kind is parameters[1].POSITIONAL_OR_KEYWORD else None


def _warn(what: str, count: int, example: nn.Module) -> None:
    if count:
        warnings.warn(
            f"{what}: {count} modules left alone, such as {type(example).__name__}: they compute something else", stacklevel=4
        )


# --- RMS norm -------------------------------------------------------------------------------------

_EPS_NAMES = ("variance_epsilon", "eps")


def _norm_plain(module: nn.Module, x: Tensor, eps: Any) -> Tensor:
    weight = module.weight
    # Where the two dtypes differ, the original multiplies in, and returns, the wider one.
    return rms_norm(x.to(torch.promote_types(x.dtype, weight.dtype)), weight.shape, weight, eps)


def _norm_one_plus(module: nn.Module, x: Tensor, eps: Any) -> Tensor:
    weight = 1.0 + module.weight.float()
    return rms_norm(x, weight.shape, weight, eps)


def _norm_bare(module: nn.Module, x: Tensor, eps: Any) -> Tensor:
    return rms_norm(x, x.shape[-1:], None, eps)


@functools.cache
def _norm_forward(form: Callable, eps_name: str) -> Callable:
    """One function for all modules of a form, so that a compiled model does not compile each of them anew."""

    def forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
        if type(hidden_states) not in _PLAIN or hidden_states.numel() == 0:
            return type(self).forward(self, hidden_states)
        return form(self, hidden_states, getattr(self, eps_name))

    forward.metalcore_patch = "rmsnorm"
    return forward


def _norm_form(module: nn.Module) -> Optional[Callable]:
    """The forward that computes what this norm computes, or None."""
    original = _original(module)
    eps_name = next((name for name in _EPS_NAMES if hasattr(module, name)), None)
    weight = getattr(module, "weight", None)
    if original is None or eps_name is None or not isinstance(getattr(module, eps_name), (float, int, type(None))):
        return None
    if weight is None:
        width, like, forms = 64, torch.empty(0), (_norm_bare,)
    elif type(weight) in _PLAIN and weight.is_floating_point() and weight.device.type != "meta" and weight.numel():
        width, like, forms = weight.shape, weight, (_norm_plain, _norm_one_plus)
    else:
        return None
    with _probed(module):
        x = _waves(3, *((width,) if weight is None else width), like=like)
        # Rows that eps matters for, and one that it decides.
        scale = (1.0, 1e-2, 1e-3) if getattr(module, eps_name) else (1.0, 1.0, 1.0)
        x = x * torch.tensor(scale, dtype=x.dtype, device=x.device).reshape(3, *(1,) * (x.ndim - 1))
        want = _outcome(original, module, x)
        for form in forms:
            if _agree(_outcome(_norm_forward(form, eps_name), module, x), want):
                return _norm_forward(form, eps_name)
    return None


def patch_transformers_rmsnorm(model: nn.Module, verbose: bool = False) -> int:
    """Has every submodule whose class name contains "RMSNorm" compute with :func:`metalcore.rms_norm`.

    eps is read at each call from ``variance_epsilon``, else ``eps``. The forms w and 1 + w (Gemma), and one without a
    weight, are told apart by a probe; a module that none fits is left alone, with a warning. Modules, weights and
    state_dict keys stay. Returns how many modules changed; 0 the second time. :func:`unpatch` undoes it.
    """
    norms = [m for m in model.modules() if "RMSNorm" in type(m).__name__ and not isinstance(m, MetalRMSNorm)]
    return _patch_forwards("patch_transformers_rmsnorm", norms, _norm_form, verbose)


def _is_patched(module: nn.Module) -> bool:
    return hasattr(vars(module).get("forward"), "metalcore_patch")


def _patch_forwards(what: str, modules: list, form: Callable, verbose: bool) -> int:
    changed, left = 0, []
    for module in modules:
        if _is_patched(module):
            continue
        forward = form(module)
        if forward is None:
            left.append(module)
        else:
            changed += _replacements.hold(module, "forward", _PATCH, lambda entry, f=forward: f)
    if left:
        _warn(what, len(left), left[0])
    _log.log(logging.INFO if verbose else logging.DEBUG, "%s: %d modules", what, changed)
    return changed


# --- gated MLPs -----------------------------------------------------------------------------------

_ACTIVATIONS = ("act_fn", "activation_fn", "act")
_GATED = {
    "silu": ("swiglu", (), torch.nn.functional.silu),
    "gelu": ("geglu", ("none",), torch.nn.functional.gelu),
    "gelu_tanh": ("geglu", ("tanh",), functools.partial(torch.nn.functional.gelu, approximate="tanh")),
}


def _activation(module: nn.Module) -> Optional[Callable]:
    """The MLP's activation function, if it is a function of its argument alone."""
    act = next((getattr(module, name) for name in _ACTIVATIONS if hasattr(module, name)), None)
    if not callable(act) or (isinstance(act, nn.Module) and next(iter(act.parameters()), None) is not None):
        return None
    return act


def _gate(module: nn.Module) -> Optional[str]:
    """Name of the gated product of the MLP's activation, by its values."""
    act = _activation(module)
    if act is None:
        return None
    x = torch.linspace(-6, 6, 97)
    with torch.no_grad():
        got = _outcome(act, x)
        for name, (_, _, reference) in _GATED.items():
            # The two forms of gelu differ by 5e-4.
            if isinstance(got, Tensor) and got.shape == x.shape and bool(((got - reference(x)).abs() <= 2e-6).all()):
                return name
    return None


@functools.cache
def _mlp_forward(product: Callable, options: tuple, joined: bool) -> Callable:
    if joined:

        def forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
            both = self.gate_up_proj(hidden_states)
            if type(both) not in _PLAIN:
                return type(self).forward(self, hidden_states)
            return self.down_proj(product(*both.chunk(2, -1), *options))

    else:

        def forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
            gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
            if type(gate) not in _PLAIN or type(up) not in _PLAIN:
                return type(self).forward(self, hidden_states)
            return self.down_proj(product(gate, up, *options))

    forward.metalcore_patch = "swiglu"
    return forward


def _mlps(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        split = hasattr(module, "gate_proj") and hasattr(module, "up_proj")
        if (split or hasattr(module, "gate_up_proj")) and hasattr(module, "down_proj"):
            if all(
                isinstance(getattr(module, n, None), (nn.Module, type(None))) for n in ("gate_proj", "gate_up_proj", "down_proj")
            ):
                yield module


def _mlp_form(probed: dict, module: nn.Module) -> Optional[Callable]:
    """The forward for this MLP. The whole of it is probed once for a class and an activation: as large as a token's."""
    name, original = _gate(module), _original(module)
    if name is None or original is None:
        return None
    product = ours(_GATED[name][0])
    joined = hasattr(module, "gate_up_proj")
    key = type(module), name, joined
    forward = _mlp_forward(product, _GATED[name][1], joined)
    if key not in probed:
        first = module.gate_up_proj if joined else module.gate_proj
        width = getattr(first, "in_features", None)
        like = next((p for p in first.parameters() if p.is_floating_point()), None)
        if not isinstance(width, int) or like is None or like.device.type == "meta":
            return None
        with _probed(module):
            x = _waves(2, width, like=like)
            want = _outcome(original, module, x)
            got = _outcome(forward, module, x)
            # Two orders of summation: by the largest element of a row, in the wider bound of two products.
            probed[key] = isinstance(want, Tensor) and isinstance(got, Tensor) and _close(got, want)
    return forward if probed[key] else None


def _close(got: Tensor, want: Tensor) -> bool:
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    unit = torch.finfo(want.dtype).eps
    return bool(((got - want).double().abs().amax() <= 64 * unit * want.double().abs().amax()).all())


def patch_transformers_swiglu(model: nn.Module, verbose: bool = False) -> int:
    """Has MLPs with gate_proj, up_proj (or both as gate_up_proj) and down_proj and a silu or gelu activation compute
    ``down(swiglu(gate(x), up(x)))`` with one kernel between the projections.

    The projections stay modules, so LoRA wrappers and quantised layers keep working. The activation is recognised by
    its values and the MLP by a probe of two tokens. Returns how many modules changed; 0 the second time, and as long as
    metalcore has no such function. :func:`unpatch` undoes it.
    """
    there = {name for name, (product, _, _) in _GATED.items() if ours(product) is not None}
    if not there:
        _log.log(logging.INFO if verbose else logging.DEBUG, "patch_transformers_swiglu: metalcore has no swiglu")
        return 0
    modules = [m for m in _mlps(model) if _is_patched(m) or _gate(m) in there]
    return _patch_forwards("patch_transformers_swiglu", modules, functools.partial(_mlp_form, {}), verbose)


# --- rotary embedding -----------------------------------------------------------------------------

_ROPE = "apply_rotary_pos_emb"


def _rope(entry: _replacements.Replacement) -> Callable:
    original, rotate = entry.original, ours(_ROPE)

    @functools.wraps(original)
    def apply_rotary_pos_emb(q: Any, k: Any, cos: Any, sin: Any, *rest: Any, **options: Any) -> Any:
        unsqueeze_dim = options.get("unsqueeze_dim", 1)
        if rest or len(options) > ("unsqueeze_dim" in options) or unsqueeze_dim not in (1, 2) or not _rotates(q, k, cos, sin):
            return original(q, k, cos, sin, *rest, **options)
        if cos.ndim == 3 and cos.shape[0] == 1:  # one table for the whole batch
            cos, sin = cos[0], sin[0]
        return rotate(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)

    return apply_rotary_pos_emb


def _rotates(q: Any, k: Any, cos: Any, sin: Any) -> bool:
    """Whether ours has these: plain tensors of one dtype and device, the rotation as wide as the heads."""
    if type(q) not in _PLAIN or type(k) not in _PLAIN or type(cos) not in _PLAIN or type(sin) not in _PLAIN:
        return False
    if q.ndim != 4 or k.ndim != 4 or cos.ndim != 3 or cos.shape != sin.shape or cos.requires_grad or sin.requires_grad:
        return False
    if not q.dtype == k.dtype == cos.dtype == sin.dtype or not q.is_floating_point() or not q.device == k.device == cos.device:
        return False
    return cos.shape[0] in (1, q.shape[0]) and q.shape[-1] == k.shape[-1] == cos.shape[-1]


def _rope_agrees(original: Callable, replaced: Callable) -> bool:
    """Whether the function is the split-half rotation, for both layouts, with q and k of other numbers of heads and two
    halves of cos and sin that differ."""
    like = torch.empty(0)
    q, k = _waves(2, 3, 5, 8, like=like), _waves(2, 1, 5, 8, like=like, phase=0.5)
    cos, sin = _waves(2, 5, 8, like=like, phase=1.0), _waves(2, 5, 8, like=like, phase=1.5)
    with torch.no_grad():
        for options, pair in (({}, (q, k)), ({"unsqueeze_dim": 2}, (q.transpose(1, 2), k.transpose(1, 2)))):
            want = _outcome(functools.partial(original, **options), *pair, cos, sin)
            got = _outcome(functools.partial(replaced, **options), *pair, cos, sin)
            if not isinstance(want, tuple) or not isinstance(got, tuple) or not all(map(_agree, got, want)):
                return False
    return True


def _modelling_modules(model: nn.Module) -> list:
    """The Python modules of the model's attention classes (and of what those derive from) that have the function."""
    names = {base.__module__ for m in model.modules() for base in type(m).__mro__ if "Attention" in base.__name__}
    found = [sys.modules[name] for name in sorted(names) if name in sys.modules]
    return [module for module in found if callable(vars(module).get(_ROPE))]


def patch_transformers_rope(model: nn.Module, verbose: bool = False) -> int:
    """Replaces ``apply_rotary_pos_emb`` in the modelling modules of the model's attention classes, if a probe shows that
    it is the split-half rotation.

    A module is shared by all models of its family; the original comes back when the last patched one is unpatched or no
    longer exists. Calls with a rotation narrower than the head, or tables that require gradients, stay the original's.
    Returns how many modelling modules changed; 0 as long as metalcore has no such function.
    """
    changed = 0
    if ours(_ROPE) is not None:
        holder = _rope_holder(model)
        for module in _modelling_modules(model):
            if _replacements.held(module, _ROPE, holder):
                continue
            probe = _replacements.Replacement(_ROPE, vars(module)[_ROPE])
            if _replacements.find(module, _ROPE) is None and not _rope_agrees(probe.original, _rope(probe)):
                warnings.warn(f"patch_transformers_rope: {module.__name__} left alone: it rotates otherwise", stacklevel=2)
                continue
            changed += _replacements.hold(module, _ROPE, holder, _rope)
            weakref.finalize(model, _replacements.release, module, _ROPE, holder).atexit = False
    _log.log(logging.INFO if verbose else logging.DEBUG, "patch_transformers_rope: %d modules", changed)
    return changed


def _rope_holder(model: nn.Module) -> tuple:
    return "patch_transformers_rope", id(model)


# --- all of it ------------------------------------------------------------------------------------


def apply_to(model: nn.Module, *, rmsnorm: bool = True, rope: bool = True, swiglu: bool = True, verbose: bool = False) -> int:
    """:func:`patch_transformers_rmsnorm`, :func:`patch_transformers_rope` and :func:`patch_transformers_swiglu`; the sum
    of what changed. Training, generation and torch.compile work as before; logits agree within rounding."""
    changed = patch_transformers_rmsnorm(model, verbose) if rmsnorm else 0
    changed += patch_transformers_rope(model, verbose) if rope else 0
    return changed + (patch_transformers_swiglu(model, verbose) if swiglu else 0)


def unpatch(model: nn.Module) -> int:
    """Restores the original functions. Returns how many were restored; the rotary embedding of a family comes back with
    its last patched model."""
    restored = 0
    for module in model.modules():
        if _replacements.held(module, "forward", _PATCH):
            restored += _replacements.release(module, "forward", _PATCH)
        elif _is_patched(module):  # a copy of a patched model
            del module.forward
            restored += 1
    holder = _rope_holder(model)
    for module in _modelling_modules(model):
        restored += _replacements.release(module, _ROPE, holder)
    return restored
