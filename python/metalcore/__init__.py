"""Batched linear algebra and transformer training kernels for PyTorch tensors on cpu, cuda and mps.

Every function follows PyTorch's conventions: any number of leading batch dimensions, new contiguous outputs, gradients,
``torch.compile``. What a function takes, returns and refuses is in its docstring; what was measured is in benchmarks.md.
"""

from importlib.metadata import version as _version

from . import config
from ._kl_div import kl_div, kl_div_topk
from ._linear_cross_entropy import fused_linear_cross_entropy
from ._operators import has_cuda_kernels, has_metal_kernels
from .adamw import MetalAdamW
from .cross_entropy import cross_entropy
from .qr import QR, qr, qr_batched
from .rms_norm import FusedAddRMSNorm, MetalRMSNorm, RMSNormFunction, fused_add_rmsnorm, rms_norm

__version__ = _version("metalcore")
__all__ = [
    "QR",
    "FusedAddRMSNorm",
    "MetalAdamW",
    "MetalRMSNorm",
    "RMSNormFunction",
    "config",
    "cross_entropy",
    "fused_add_rmsnorm",
    "fused_linear_cross_entropy",
    "has_cuda_kernels",
    "has_metal_kernels",
    "kl_div",
    "kl_div_topk",
    "qr",
    "qr_batched",
    "rms_norm",
]
