"""Batched linear algebra and transformer training kernels for PyTorch tensors on cpu, cuda and mps.

Every function follows PyTorch's conventions: any number of leading batch dimensions, new contiguous outputs, gradients,
``torch.compile``. What a function takes, returns and refuses is in its docstring; what was measured is in benchmarks.md.
"""

from importlib.metadata import version as _version

from . import config
from ._linear_cross_entropy import fused_linear_cross_entropy
from ._lstsq import Lstsq, lstsq, pinv
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
from .cholesky import CholeskyEx, cholesky, cholesky_ex, cholesky_solve
from .comfy_patch import is_patched, patch_comfy, unpatch_comfy
from .cross_entropy import cross_entropy
from .eigh import Eigh, eigh, eigvalsh
from .embedding_bag import MetalEmbeddingBag, embedding_bag
from .householder import (
    apply_householder,
    apply_householder_inplace,
    apply_householder_wy,
    householder_vector,
    householder_wy,
)
from .indexing import gather, index_select, scatter_add
from .kl_div import kl_div, kl_div_topk
from .layer_norm import MetalLayerNorm, fused_add_layernorm, layer_norm
from .overrides import disable_pytorch_overrides, enable_pytorch_overrides, get_active_overrides
from .qr import QR, qr, qr_batched, qr_solve
from .rms_norm import FusedAddRMSNorm, MetalRMSNorm, RMSNormFunction, fused_add_rmsnorm, rms_norm
from .rope import RotaryEmbedding, apply_rotary_pos_emb, apply_rotary_pos_emb_single, rope_forward, rope_fwd
from .softmax import MetalSoftmax, fused_softmax
from .solve import det, inv, inv_ex, lu_factor, lu_factor_ex, lu_solve, slogdet, solve, solve_ex
from .svd import SVD, svd, svdvals
from .transformers_patch import (
    apply_to,
    patch_transformers_rmsnorm,
    patch_transformers_rope,
    patch_transformers_swiglu,
    unpatch,
)
from .trsm import trsm, trsm_batched

__version__ = _version("metalcore")
__all__ = [
    "QR",
    "SVD",
    "CholeskyEx",
    "Eigh",
    "FusedAddRMSNorm",
    "Lstsq",
    "MetalAdamW",
    "MetalEmbeddingBag",
    "MetalGELU",
    "MetalLayerNorm",
    "MetalRMSNorm",
    "MetalSiLU",
    "MetalSoftmax",
    "RMSNormFunction",
    "RotaryEmbedding",
    "apply_householder",
    "apply_householder_inplace",
    "apply_householder_wy",
    "apply_rotary_pos_emb",
    "apply_rotary_pos_emb_single",
    "apply_to",
    "bias_gelu",
    "bias_silu",
    "cholesky",
    "cholesky_ex",
    "cholesky_solve",
    "config",
    "cross_entropy",
    "det",
    "disable_pytorch_overrides",
    "eigh",
    "eigvalsh",
    "embedding_bag",
    "enable_pytorch_overrides",
    "fused_add_layernorm",
    "fused_add_rmsnorm",
    "fused_linear_cross_entropy",
    "fused_softmax",
    "gather",
    "geglu",
    "get_active_overrides",
    "has_cuda_kernels",
    "has_metal_kernels",
    "householder_vector",
    "householder_wy",
    "index_select",
    "inv",
    "inv_ex",
    "is_patched",
    "kl_div",
    "kl_div_topk",
    "layer_norm",
    "lstsq",
    "lu_factor",
    "lu_factor_ex",
    "lu_solve",
    "metal_gelu",
    "metal_silu",
    "patch_comfy",
    "patch_transformers_rmsnorm",
    "patch_transformers_rope",
    "patch_transformers_swiglu",
    "pinv",
    "qr",
    "qr_batched",
    "qr_solve",
    "rms_norm",
    "rope_forward",
    "rope_fwd",
    "scatter_add",
    "slogdet",
    "solve",
    "solve_ex",
    "svd",
    "svdvals",
    "swiglu",
    "swiglu_bwd",
    "trsm",
    "trsm_batched",
    "unpatch",
    "unpatch_comfy",
]
