"""The last lines of `make test`: what was tested on which device, or why not."""

import metalcore
import torch


def lines():
    yield "cpu", "tested"
    yield "emulator", "tested: the GPU kernels, and the Metal path from Python, on the host"
    yield "cuda", f"tested on {torch.cuda.get_device_name()}" if metalcore.has_cuda_kernels() else "skipped: no NVIDIA GPU"
    yield "mps", "tested" if metalcore.has_metal_kernels() else "skipped: no Apple GPU; the Metal texts were checked statically"


for device, state in lines():
    print(f"{device:10}{state}")
