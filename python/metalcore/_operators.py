"""The operators torch.ops.metalcore.*: native kernels for cpu and cuda, and the same host code over
torch.mps.compile_shader for mps (or over its stand-in for cpu tensors, with config.emulate)."""

import functools
import pathlib
from typing import Any

import torch
from torch.autograd import forward_ad

from . import _native, config

_native.load(pathlib.Path(torch.__file__).parent / "lib", torch.empty(0))


@functools.cache
def metal_device(place: str) -> _native.MetalDevice:
    """The Metal host code for tensors on ``place``: 'mps', or 'cpu' through the emulator."""
    compiler = torch.mps.compile_shader if place == "mps" else _native.compile_shader
    return _native.MetalDevice(compiler, place)


def _implement(key: str, place: str, library: torch.library.Library) -> None:
    def make(name: str) -> Any:
        defaults = [a.default_value for a in getattr(torch.ops.metalcore, name).default._schema.arguments]

        def operator(*args: Any) -> Any:
            # torch leaves trailing arguments out that have their default.
            return metal_device(place).call(name, (*args, *defaults[len(args) :]))

        return operator

    for name in _native.operators():
        library.impl(name, make(name), key, allow_override=True)


_mps = torch.library.Library("metalcore", "FRAGMENT")
_implement("MPS", "mps", _mps)
emulated: list[torch.library.Library] = []  # one while config.emulate is on: quicker to look at than the configuration


def _emulate(on: bool) -> None:
    if on and not emulated:
        emulated.append(torch.library.Library("metalcore", "FRAGMENT"))
        _implement("CPU", "cpu", emulated[0])
    elif not on and emulated:
        emulated.pop()._destroy()


config._on_emulate.append(_emulate)
_emulate(config.emulate)


def takes_metal(device: torch.device) -> bool:
    """Whether the Metal host code runs here (mps, or cpu through the emulator): there is no float64 then."""
    return device.type == "mps" or (config.emulate and device.type == "cpu")


def metal_for(tensor: torch.Tensor) -> "_native.MetalDevice | None":
    """The Metal host code that takes this tensor, or None where native code does."""
    return metal_device(tensor.device.type) if takes_metal(tensor.device) else None


def has_metal_kernels() -> bool:
    """Whether an Apple GPU is usable now."""
    return torch.backends.mps.is_available()


def has_cuda_kernels() -> bool:
    """Whether an NVIDIA GPU is usable now."""
    return torch.cuda.is_available() and _native.cuda_available()


def needs_grad(*tensors: "torch.Tensor | None") -> bool:
    """Whether autograd has to record a call on these tensors, or to carry a forward-mode derivative through it (for which
    operations without a `jvp` then raise)."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def grad_tracked(*tensors: "torch.Tensor | None") -> bool:
    """Whether functorch's grad looks at one of them: torch.library's own autograd cannot be entered then."""
    return any(t is not None and torch._C._functorch.is_gradtrackingtensor(t) for t in tensors)


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The type of sums and statistics: float64 where there is one, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def autocast_to_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as an operation takes it that autocast runs in float32: half types widened under autocast."""
    if tensor.dtype in HALVES and torch.is_autocast_enabled(tensor.device.type):
        return tensor.float()
    return tensor


HALVES = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def same_device(op: str, **tensors: "torch.Tensor | None") -> None:
    """ValueError for tensors of two devices."""
    device = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise ValueError(f"{op}: {name}: got device {tensor.device}, expected {device}")


def check_float64(op: str, name: str, tensor: torch.Tensor) -> None:
    """TypeError for a float64 tensor where the device has none."""
    if tensor.dtype == torch.float64 and takes_metal(tensor.device):
        raise TypeError(f"{op}: {name}: got dtype torch.float64, expected one that the device mps has")


def check_tensors(op: str, *, optional: tuple = ("weight", "W"), **tensors: "torch.Tensor | None") -> None:
    """One device and real floating types for every tensor; f64 nowhere on mps. Those in ``optional`` may be None."""
    for name, tensor in tensors.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{op}: {name}: got {type(tensor).__name__}, expected a tensor")
        if tensor.is_nested or tensor.layout is not torch.strided:
            raise NotImplementedError(f"{op}: {name}: got a nested or sparse tensor, expected a plain one")
        if tensor.is_complex():
            raise NotImplementedError(f"{op}: {name}: got dtype {tensor.dtype}, expected a real floating dtype")
        if tensor.dtype not in _FLOATS:
            raise TypeError(f"{op}: {name}: got dtype {tensor.dtype}, expected float32, float16, bfloat16 or float64")
        if tensor.device.type not in ("cpu", "cuda", "mps", "meta"):
            raise NotImplementedError(f"{op}: {name}: got device {tensor.device}, expected cpu, cuda or mps")
        check_float64(op, name, tensor)
    same_device(op, **tensors)
