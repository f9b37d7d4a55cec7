"""Batched linear algebra and transformer training kernels for PyTorch tensors on cpu, cuda and mps.

Every function follows PyTorch's conventions: any number of leading batch dimensions, new contiguous outputs, gradients,
``torch.compile``. What a function takes, returns and refuses is in its docstring; what was measured is in benchmarks.md.
"""

from importlib.metadata import version as _version

from . import config
from ._operators import has_cuda_kernels, has_metal_kernels
from .activations import (
    MetalGELU,
    MetalSiLU,
    bias_gelu,
    bias_silu,
    geglu,
    metal_gelu,
    metal_silu,
    swiglu,
    swiglu_bwd,
)
from .adamw import MetalAdamW
from .qr import QR, qr, qr_batched
from .rms_norm import FusedAddRMSNorm, MetalRMSNorm, RMSNormFunction, fused_add_rmsnorm, rms_norm

__version__ = _version("metalcore")
__all__ = [
    "QR",
    "FusedAddRMSNorm",
    "MetalAdamW",
    "MetalGELU",
    "MetalRMSNorm",
    "MetalSiLU",
    "RMSNormFunction",
    "bias_gelu",
    "bias_silu",
    "config",
    "fused_add_rmsnorm",
    "geglu",
    "has_cuda_kernels",
    "has_metal_kernels",
    "metal_gelu",
    "metal_silu",
    "qr",
    "qr_batched",
    "rms_norm",
    "swiglu",
    "swiglu_bwd",
]
