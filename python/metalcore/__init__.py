"""Batched linear algebra and transformer training kernels for PyTorch tensors on cpu, cuda and mps.

Every function follows PyTorch's conventions: any number of leading batch dimensions, new contiguous outputs, gradients,
``torch.compile``. What a function takes, returns and refuses is in its docstring; what was measured is in benchmarks.md.
"""

from importlib.metadata import version as _version

from . import config
from ._operators import has_cuda_kernels, has_metal_kernels
from .adamw import MetalAdamW
from .layer_norm import MetalLayerNorm, fused_add_layernorm, layer_norm
from .qr import QR, qr, qr_batched
from .rms_norm import FusedAddRMSNorm, MetalRMSNorm, RMSNormFunction, fused_add_rmsnorm, rms_norm
from .softmax import MetalSoftmax, fused_softmax

__version__ = _version("metalcore")
__all__ = [
    "QR",
    "FusedAddRMSNorm",
    "MetalAdamW",
    "MetalLayerNorm",
    "MetalRMSNorm",
    "MetalSoftmax",
    "RMSNormFunction",
    "config",
    "fused_add_layernorm",
    "fused_add_rmsnorm",
    "fused_softmax",
    "has_cuda_kernels",
    "has_metal_kernels",
    "layer_norm",
    "qr",
    "qr_batched",
    "rms_norm",
]
