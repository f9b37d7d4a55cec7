"""Which calls are faster here than in torch: measured, one line for each op, device kind and dtype.

A line says for which sizes (least, most; None: no limit) it holds, and the measurement it comes from: torch's time over
ours, with the machine and its run in results/. What no line covers stays with torch. Between the smallest and the
largest measured size ours was faster throughout; columns are not extended beyond what was measured.

Sizes of an op are those that its override in overrides.py names.
"""

import contextlib
from typing import Iterator, NamedTuple

import torch

from ._operators import emulated


class Line(NamedTuple):
    """Sizes of one op on one kind of device for which ours is faster."""

    op: str
    device: str
    dtype: torch.dtype
    sizes: dict  # name of a size -> (least, most)
    measured: str


F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16

# fmt: off
MEASURED = (
    # On a GPU both the time of the kernels and that of a call on an idle GPU have to be shorter.
    Line("rms_norm", "cuda", F32, {"elements": (1 << 24, None), "columns": (4096, 4096)}, "nvidia-h200 68fe6a9: 4096x4096 1.32, backward 1.85, idle 1.13, 1.19; 16384x4096 1.35, 1.87, idle 1.31, 1.75; 1024x4096 backward idle 0.79"),
    Line("rms_norm", "cuda", BF16, {"elements": (1 << 26, None), "columns": (4096, 4096)}, "nvidia-h200 68fe6a9: 16384x4096 1.23, backward 1.76, idle 1.17, 1.39; 4096x4096 backward idle 0.97"),
    Line("qr", "cuda", F32, {"batch": (1, 9), "rows": (16, 512), "columns": (16, 512)}, "nvidia-h200 44eb6ca: 16x16 5.2, 512x512 1.99, 512x128 1.65; 1000x200 0.99"),
    Line("qr", "cuda", F32, {"batch": (10, None), "rows": (8, 256), "columns": (8, 256)}, "nvidia-h200 44eb6ca: 50x8x8 180, 1000x16x16 2600, 10x256x256 19"),
    Line("adamw", "cuda", F32, {"elements": (1000, None)}, "nvidia-h200 44eb6ca, against fused: one tensor of 1000 13 us, torch 47; 1048576 2.83, 16777216 1.02, idle 1.26; 1.13 B 1.19"),
    Line("softmax", "cuda", F32, {"elements": (1 << 24, None), "columns": (4096, 32768)}, "nvidia-h200 957dee9: 16384x4096 1.61, backward 1.85, idle 1.53, 1.68; 512x32768 1.23, 1.69, idle 1.14, 1.36; 1024x4096 backward idle 0.77; 256x16384 0.83"),
    Line("softmax", "cuda", BF16, {"elements": (1 << 26, None), "columns": (4096, 4096)}, "nvidia-h200 957dee9: 16384x4096 3.21, backward 2.48, idle 2.78, 1.74; 512x32768 backward idle 0.90"),
    Line("cross_entropy", "cuda", F32, {"elements": (1 << 25, None), "columns": (128256, 128256)}, "nvidia-h200 957dee9: 512x128256 4.49, backward 3.28, idle 3.70, 2.36; 4096x128256 4.85, 3.27; 256x32000 backward idle 0.94"),
    Line("cross_entropy", "cuda", BF16, {"elements": (1 << 25, None), "columns": (128256, 128256)}, "nvidia-h200 957dee9: 512x128256 4.05, backward 3.18, idle 3.26, 1.65; 4096x128256 4.71, 3.21; 256x32000 backward idle 0.93"),
    Line("layer_norm", "cuda", F32, {"elements": (1 << 26, None), "columns": (4096, 4096)}, "nvidia-h200 957dee9: 16384x4096 1.39, backward 1.88, idle 1.30, 1.60; 1024x4096 backward idle 0.75"),
    Line("layer_norm", "cuda", BF16, {"elements": (1 << 26, None), "columns": (4096, 4096)}, "nvidia-h200 957dee9: 16384x4096 1.51, backward 1.78, idle 1.33, 1.13; 1024x4096 idle 0.81"),
    Line("embedding_bag", "cuda", F32, {"maximum": (0, 0), "bags": (64, None), "columns": (1024, 4096), "indices": (8192, None)}, "nvidia-h200 957dee9: 64x128 of 32000x1024 2.49, backward 1.85, idle 1.78, 1.10; of 32000x4096 2.03, 2.41, 1.74, 1.74; maximum backward idle 0.70"),
    Line("embedding_bag", "cuda", BF16, {"maximum": (0, 0), "bags": (64, None), "columns": (4096, 4096), "indices": (8192, None)}, "nvidia-h200 957dee9: 64x128 of 32000x4096 3.14, backward 2.54, idle 2.34, 1.59; of 32000x1024 backward idle 0.94"),
    Line("softmax", "cpu", F32, {"elements": (1 << 22, None), "columns": (4096, 128000)}, "amd-epyc-2-threads 957dee9: 1024x4096 1.20, backward 1.10; 256x16384 1.01, 1.09; 128x128000 1.02, 1.14; 128x8192 backward 0.85"),
    Line("softmax", "cpu", BF16, {"elements": (1000000, None), "columns": (4096, 128000)}, "amd-epyc-2-threads 957dee9: 128x8192 1.37, backward 1.10; 32x32000 1.28, 1.10; 1024x4096 1.46, 1.09; 64x4096 backward 0.98"),
    Line("layer_norm", "cpu", F32, {"elements": (1 << 22, None), "columns": (4096, 4096)}, "amd-epyc-2-threads 957dee9: 1024x4096 1.24, backward 1.20; 256x4096 0.98"),
    Line("layer_norm", "cpu", BF16, {"elements": (1 << 20, None), "columns": (4096, 4096)}, "amd-epyc-2-threads 957dee9: 256x4096 1.31, backward 1.12; 1024x4096 1.37, 1.41; 32x4096 0.77"),
    Line("silu", "cpu", F32, {"elements": (1 << 18, None)}, "amd-epyc-2-threads 957dee9: 256x1024 1.13, backward 1.06; 1024x4096 1.07, 1.26; 4096x4096 1.17, 1.18"),
    Line("silu", "cpu", BF16, {"elements": (1 << 22, None)}, "amd-epyc-2-threads 957dee9: 1024x4096 1.17, backward 1.09; 4096x4096 1.38, 1.27; 256x1024 backward 0.98"),
    Line("gelu", "cpu", F32, {"elements": (1 << 18, None)}, "amd-epyc-2-threads 957dee9, erf and tanh: 256x1024 1.13, backward 1.39 and 4.03, 2.28; 1024x4096 1.17, 1.53 and 3.49, 2.75"),
    Line("embedding_bag", "cpu", F32, {"maximum": (0, 0), "bags": (16, None), "columns": (1024, 4096), "indices": (1600, None)}, "amd-epyc-2-threads 957dee9: 16x100 of 32000x4096 1.30, backward 1.06; 64x128 of 32000x1024 1.19, 1.20; of 100000x256 0.95"),
    Line("embedding_bag", "cpu", BF16, {"maximum": (0, 0), "bags": (16, None), "columns": (1024, 4096), "indices": (1600, None)}, "amd-epyc-2-threads 957dee9: 16x100 of 32000x4096 1.31, backward 1.12; 64x128 of 32000x1024 1.24, 1.46; of 100000x256 backward 0.93"),
    Line("cross_entropy", "cpu", F32, {"elements": (1000000, None), "columns": (32000, 128256)}, "amd-epyc-2-threads 957dee9: 32x32000 1.86, backward 1.90; 256x32000 2.56, 2.54; 512x128256 2.84, 2.94"),
    Line("cross_entropy", "cpu", BF16, {"elements": (1000000, None), "columns": (32000, 128256)}, "amd-epyc-2-threads 957dee9: 32x32000 1.86, backward 1.61; 256x32000 2.04, 1.98; 512x128256 2.25, 2.21"),
    Line("rms_norm", "cpu", F32, {"elements": (4096, None), "columns": (1024, 4096)}, "amd-epyc-2-threads 87c95c8: 1x4096 1.69, backward 1.61; 1024x1024 1.29, 2.41; 8x512x4096 2.57, 5.84"),
    Line("rms_norm", "cpu", BF16, {"elements": (4096, None), "columns": (1024, 4096)}, "amd-epyc-2-threads 87c95c8: 1x4096 2.14, backward 1.84; 1024x1024 2.57, 3.56; 8x512x4096 5.20, 9.72"),
    Line("qr", "cpu", F32, {"batch": (1, 9), "rows": (16, 4000), "columns": (16, 1024)}, "amd-epyc-2-threads 87c95c8: 16x16 1.20, 1024x1024 2.34, 4000x1000 1.40; 20000x8 0.43"),
    Line("qr", "cpu", F32, {"batch": (10, None), "rows": (8, 256), "columns": (8, 256)}, "amd-epyc-2-threads 87c95c8: 50x8x8 4.60, 1000x16x16 14, 10x256x256 3.10"),
    Line("adamw", "cpu", F32, {"elements": (1000000, None)}, "amd-epyc-2-threads 6377f16, against fused: 1000 x 1000 4.94, 1048576 1.28, 10485760 1.09, 16777216 1.07"),
)
# fmt: on

_lines: dict = {}
for _line in MEASURED:
    _lines.setdefault((_line.op, _line.device, _line.dtype), []).append(tuple((n, *s) for n, s in _line.sizes.items()))
_everything = False


def faster(op: str, device: torch.device, dtype: torch.dtype, sizes: dict) -> bool:
    """Whether the table says that ours is faster. Every call of an overridden function asks."""
    if _everything:
        return True
    kind = device.type
    if emulated and kind == "cpu":
        return False
    for limits in _lines.get((op, kind, dtype), ()):
        for name, least, most in limits:
            size = sizes[name]
            if (least is not None and size < least) or (most is not None and size > most):
                break
        else:
            return True
    return False


@contextlib.contextmanager
def everything() -> Iterator[None]:
    """Takes every call that ours can do, whatever the table says: to test and to measure."""
    global _everything
    before, _everything = _everything, True
    try:
        yield
    finally:
        _everything = before
