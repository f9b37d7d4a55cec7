"""Whether a call of a function of torch can be taken by an override."""

import functools
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from . import _replacements, _thresholds

PLAIN = (torch.Tensor, torch.nn.Parameter)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_tracing = torch._C._get_tracing_state


def usual(first: Any, *others: Any) -> bool:
    """Plain floating tensors with elements, one device and dtype, contiguous (torch keeps strides, ours does not);
    those after the first may be None."""
    if type(first) not in PLAIN or first.dtype not in _FLOATS or first.layout is not torch.strided:
        return False
    if not first.is_contiguous() or first.numel() == 0:
        return False
    for t in others:
        if t is not None and (type(t) not in PLAIN or t.dtype is not first.dtype or t.device != first.device):
            return False
    return True


def _ordinary() -> bool:
    """Nobody looks at the calls themselves: no transform, trace or mode (one that only sets a device aside)."""
    if _functorch_active() or _dispatch_modes() or forward_ad._current_level >= 0 or _tracing() is not None:
        return False
    modes = range(_function_modes())
    return all(isinstance(torch._C._get_function_stack_at(i), DeviceContext) for i in modes)


@functools.cache
def _keeps(op: str, device: str, dtype: torch.dtype, autocast: torch.dtype) -> bool:
    """Whether autocast leaves the dtype alone: asked of the original, once."""
    from .overrides import OVERRIDES

    override = OVERRIDES[op]
    entry = _replacements.find(override.owner, override.attribute)
    original = entry.original if entry is not None else getattr(override.owner, override.attribute)
    with torch.no_grad():
        return override.example(original, torch.ones(2, 2, device=device, dtype=dtype)).dtype is dtype


def taken(op: str, first: torch.Tensor, **sizes: int) -> bool:
    """Whether a call that ours can do is ours: the table, then what surrounds the call."""
    if not _thresholds.faster(op, first.device, first.dtype, sizes) or not _ordinary():
        return False
    device = first.device.type
    if torch.is_autocast_enabled(device):
        return _keeps(op, device, first.dtype, torch.get_autocast_dtype(device))
    return True
