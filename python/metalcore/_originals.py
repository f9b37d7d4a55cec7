"""Torch's own linear algebra, under names that no override replaces: ours calls it for what it is faster for."""

from torch.linalg import cholesky_ex as torch_cholesky_ex
from torch.linalg import det as torch_det
from torch.linalg import eigh as torch_eigh
from torch.linalg import eigvalsh as torch_eigvalsh
from torch.linalg import inv_ex as torch_inv_ex
from torch.linalg import lstsq as torch_lstsq
from torch.linalg import lu_factor_ex as torch_lu_factor_ex
from torch.linalg import solve_ex as torch_solve_ex
from torch.linalg import solve_triangular as torch_solve_triangular
from torch.linalg import svd as torch_svd
from torch.linalg import svdvals as torch_svdvals

__all__ = [
    "torch_cholesky_ex",
    "torch_det",
    "torch_eigh",
    "torch_eigvalsh",
    "torch_inv_ex",
    "torch_lstsq",
    "torch_lu_factor_ex",
    "torch_solve_ex",
    "torch_solve_triangular",
    "torch_svd",
    "torch_svdvals",
]
