"""AdamW: one step over one tensor, over many, and over half-precision parameters, against torch's
fused and foreach forms. Ours keeps fp32 states for half parameters; torch keeps half ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

import metalcore

from .. import memory, peers
from ..accuracy import HALF_DTYPES, Gate
from ..rows import TIMES, Call, Case, Context, Cost, HostCall, Peer, Row, copies_needed, times
from .adamw_reference import gates

LR = 1e-3
SEED = 3
HALF_NOTE = "ours keeps fp32 states (22 bytes per parameter), torch half ones (14)"


@dataclass(frozen=True)
class Parameters:
    """Sizes of the tensors of a row, in elements."""

    label: str
    sizes: tuple[int, ...]
    quick: bool = False
    gpu_only: bool = False

    @property
    def total(self) -> int:
        return sum(self.sizes)


def llama_sizes() -> tuple[int, ...]:
    """The 291 tensors of a Llama of 1.13 billion parameters: 32 layers of 9 tensors, the embedding,
    the last norm, the head. Width 1536, MLP 5632, 12 heads of 128 with 4 key/value heads."""
    width, mlp, kv, vocabulary = 1536, 5632, 512, 32000
    layer = (width * width, width * kv, width * kv, width * width) + 3 * (width * mlp,) + 2 * (width,)
    return (vocabulary * width,) + 32 * layer + (width, vocabulary * width)


LLAMA = Parameters("291 tensors, 1.13 B Llama", llama_sizes(), gpu_only=True)
WORKLOADS: tuple[Parameters, ...] = (
    Parameters("1048576", (1_048_576,)),
    Parameters("10485760", (10_485_760,)),
    Parameters("16777216", (16_777_216,), quick=True),
    Parameters("134217728", (134_217_728,), gpu_only=True),
    Parameters(f"300 {TIMES} 65536", 300 * (65_536,), quick=True, gpu_only=True),
    Parameters(f"1000 {TIMES} 1000", 1000 * (1000,)),
    LLAMA,
)
HALF_LABEL = "16777216"
MEMORY_LABEL = "16777216"
"""On the CPU the step's memory is measured in processes of their own, for this row only."""


def cases(context: Context) -> Iterator[Case]:
    """fp32 for every list of tensors; half parameters once, unless `--dtype` says otherwise."""
    for parameters in WORKLOADS:
        dtypes = [torch.float32, torch.bfloat16] if parameters.label == HALF_LABEL else [torch.float32]
        for dtype in context.dtypes_or(*dtypes):
            yield Case(
                op="adamw",
                shape=parameters.label,
                dtype=dtype,
                cost=Cost(parameters.total * bytes_per_parameter(dtype)),
                build=lambda parameters=parameters, dtype=dtype: build(context, parameters, dtype),
                quick=parameters.quick,
                gpu_only=parameters.gpu_only,
                memory_bytes=parameters.total * (3 * dtype.itemsize + 4 * state_bytes_per_parameter(dtype)),
            )


def state_bytes_per_parameter(dtype: torch.dtype) -> int:
    """Two moments: fp32 for half parameters, else of the parameter's dtype."""
    return 2 * (4 if dtype in HALF_DTYPES else dtype.itemsize)


def bytes_per_parameter(dtype: torch.dtype) -> int:
    """p, g, m, v in; p, m, v out: 28 for fp32, 22 for half parameters."""
    return 3 * dtype.itemsize + 2 * state_bytes_per_parameter(dtype)


def build(context: Context, parameters: Parameters, dtype: torch.dtype) -> Row:
    """Parameters with fixed gradients, shared by all optimisers; a state for each."""
    largest = max(parameters.sizes) * dtype.itemsize
    held = parameters.total * (2 * dtype.itemsize + state_bytes_per_parameter(dtype))
    copies = copies_needed(largest, held, context.profile.cache_bytes)
    sets = [make_parameters(context.device, parameters.sizes, dtype, SEED + copy) for copy in range(copies)]
    ours = [metalcore.MetalAdamW(tensors, lr=LR) for tensors in sets]
    optimizers = {"ours": ours}
    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    if "torch" in context.peers:
        for name in ("fused", "foreach"):
            label = f"torch {name}"
            optimizers[label] = [torch.optim.AdamW(tensors, lr=LR, **{name: True}) for tensors in sets]
            rivals[label] = Peer(step_of(optimizers[label]))
    if "mlx" in context.peers and context.device.type == "mps":
        peers.add(rivals, skipped, "mlx", lambda: Peer(mlx_step(sets), clock="wall"))

    def check(copy: int, _: Any) -> list[Gate]:
        return gates(ours[copy], sets[copy])

    return Row(
        ours=step_of(ours),
        peers=rivals,
        check=check,
        copies=copies,
        skipped=skipped,
        memory=memory_of(context, parameters, dtype, {name: made[0] for name, made in optimizers.items()}),
        note=HALF_NOTE if dtype in HALF_DTYPES else "",
    )


def make_parameters(device: torch.device, sizes: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Gaussian parameters and gradients."""
    generator = torch.Generator(device).manual_seed(seed)

    def gaussian(size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(dtype)

    tensors = [torch.nn.Parameter(gaussian(size)) for size in sizes]
    for tensor in tensors:
        tensor.grad = gaussian(tensor.numel())
    return tensors


def step_of(optimizers: Sequence[torch.optim.Optimizer]) -> Call:
    return lambda copy: optimizers[copy].step()


def mlx_step(sets: Sequence[Sequence[Tensor]]) -> Call:
    """MLX's AdamW, which returns new parameters, evaluated with its state."""
    import mlx.optimizers

    mlx_peer = peers.Mlx()
    states = []
    for tensors in sets:
        values = {str(i): mlx_peer.array(t) for i, t in enumerate(tensors)}
        slopes = {str(i): mlx_peer.array(t.grad) for i, t in enumerate(tensors)}
        states.append([mlx.optimizers.AdamW(learning_rate=LR, bias_correction=True), values, slopes])

    def step(copy: int) -> None:
        optimizer, values, slopes = states[copy]
        states[copy][1] = optimizer.apply_gradients(slopes, values)
        mlx_peer.mx.eval(states[copy][1], optimizer.state)

    return step


def memory_of(context: Context, parameters: Parameters, dtype: torch.dtype, optimizers: dict[str, torch.optim.Optimizer]) -> Any:
    """How to measure state and step memory of each optimiser, or None where it is not measured."""
    if context.lite or (context.on_cpu and (parameters.label != MEMORY_LABEL or dtype != torch.float32)):
        return None
    if context.on_cpu:
        return lambda: {name: memory.in_own_process(name, parameters.total) for name in optimizers}
    return lambda: {
        name: {
            "state_bytes": memory.state_bytes(optimizer),
            "step_bytes": memory.step_bytes(context.device, optimizer.step),
        }
        for name, optimizer in optimizers.items()
    }


def host_calls(context: Context) -> Iterator[HostCall]:
    """One tensor of 1000 parameters: small enough that the call is nothing but overhead."""

    def stepper(optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[], Any]:
        return optimizer(make_parameters(context.device, (1000,), torch.float32, SEED), lr=LR, **options).step

    yield HostCall(
        op="adamw",
        shape=times(1000),
        grad="no grad",
        ours=stepper(metalcore.MetalAdamW),
        torch=stepper(torch.optim.AdamW, fused=True),
    )
