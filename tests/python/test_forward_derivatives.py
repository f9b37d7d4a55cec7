"""Forward-mode derivatives: carried, or refused, never lost."""

from __future__ import annotations

import metalcore
import pytest
import torch
import torch.nn.functional as F
from support import normal
from torch.autograd import forward_ad

ROWS, COLS = 4, 16


def _like_indices(x, count):
    return torch.arange(count, device=x.device) % ROWS


FUNCTIONS = {
    "rms_norm": lambda x, w: metalcore.rms_norm(x, COLS, w),
    "fused_add_rmsnorm": lambda x, w: metalcore.fused_add_rmsnorm(x, x.detach(), w)[0],
    "layer_norm": lambda x, w: metalcore.layer_norm(x, COLS, w, w),
    "fused_add_layernorm": lambda x, w: metalcore.fused_add_layernorm(x, x.detach(), w, w)[0],
    "fused_softmax": lambda x, w: metalcore.fused_softmax(x, -1),
    "metal_gelu": lambda x, w: metalcore.metal_gelu(x),
    "metal_silu": lambda x, w: metalcore.metal_silu(x),
    "bias_gelu": lambda x, w: metalcore.bias_gelu(x, w),
    "swiglu": lambda x, w: metalcore.swiglu(x, x.detach()),
    "rope_fwd": lambda x, w: metalcore.rope_fwd(x[None, None], x[None, None], x.detach(), x.detach())[0],
    "embedding_bag": lambda x, w: metalcore.embedding_bag(x, _like_indices(x, 3), _like_indices(x, 2) * 2),
    "cross_entropy": lambda x, w: metalcore.cross_entropy(x, _like_indices(x, ROWS)),
    "kl_div": lambda x, w: metalcore.kl_div(F.log_softmax(x, -1), F.log_softmax(x.detach() + w, -1)),
    "fused_linear_cross_entropy": lambda x, w: metalcore.fused_linear_cross_entropy(x, x.detach(), _like_indices(x, ROWS)),
    "gather": lambda x, w: metalcore.gather(x, _like_indices(x, ROWS)[:, None]),
    "qr": lambda x, w: metalcore.qr(x.mT)[1],
}


@pytest.mark.dtypes(torch.float32)
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tangent_is_carried_or_refused(device, dtype, name, recording):
    x, w, t = (normal(*shape, device=device, dtype=dtype) for shape in ((ROWS, COLS), (COLS,), (ROWS, COLS)))
    with torch.set_grad_enabled(recording), forward_ad.dual_level():
        try:
            result = FUNCTIONS[name](forward_ad.make_dual(x, t), w)
        except NotImplementedError as error:
            assert "forward" in str(error)
        else:
            assert forward_ad.unpack_dual(result).tangent is not None
        plain = FUNCTIONS[name](x, w)  # what has no tangent is as ever
        assert forward_ad.unpack_dual(plain).tangent is None
