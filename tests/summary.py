"""The last lines of `make test`: what was tested on which device, or why not."""

import metalcore
import torch


def state(name: str, usable: bool, tested: str, absent: str) -> str:
    asked = metalcore.config.device
    if not usable:
        return f"skipped: {absent}"
    if asked is not None and asked.split(":")[0] != name:
        return f"skipped: METALCORE_DEVICE is {asked}"
    return tested


cuda, mps = metalcore.has_cuda_kernels(), metalcore.has_metal_kernels()
gpu = torch.cuda.get_device_name() if cuda else ""
print("cpu       ", state("cpu", True, "tested", ""))
print("emulator   tested: the GPU kernels, and the Metal path from Python, on the host")
print("cuda      ", state("cuda", cuda, f"tested on {gpu}", "no NVIDIA GPU"))
print("mps       ", state("mps", mps, "tested", "no Apple GPU; the Metal texts were checked statically"))
