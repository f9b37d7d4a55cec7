"""Trains the two models side by side on the same batches, a step of one, a step of the other."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalcore

from ..bench.memory import state_bytes
from ..bench.timing import synchronizer
from .corpus import Corpus
from .model import EPS, Config, TinyLlama

BATCH = 8
LEARNING_RATE = 5e-4
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
"""Largest norm of the gradient. Without it single steps throw the model back, and rounding errors grow a hundredfold there."""
SKIPPED_STEPS = 5
"""First steps, which warm caches and compile kernels, left out of the times."""


@dataclass
class Trainer:
    """A model with its optimiser, the loss of every step in nats per byte, and every step's seconds."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    wait: Callable[[], None]
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def step(self, tokens: Tensor, targets: Tensor) -> None:
        """One timed step: forward, backward, update."""
        self.wait()
        begin = time.perf_counter()
        loss = F.cross_entropy(self.model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.wait()
        self.seconds.append(time.perf_counter() - begin)
        self.losses.append(loss.item())

    def as_json(self, tokens_per_step: int) -> dict[str, Any]:
        """Median step, throughput, state memory, losses."""
        timed = self.seconds[SKIPPED_STEPS:] or self.seconds
        median = statistics.median(timed)
        return {
            "ms_per_step": median * 1e3,
            "tokens_per_s": tokens_per_step / median,
            "state_bytes": state_bytes(self.optimizer),
            "losses": self.losses,
        }


def make_trainers(config: Config, device: torch.device, seed: int) -> tuple[Trainer, Trainer]:
    """torch's norm and optimiser, then ours, from the same weights."""
    torch.manual_seed(seed)
    reference = TinyLlama(config, lambda width: nn.RMSNorm(width, eps=EPS)).to(device)
    ours = TinyLlama(config, lambda width: metalcore.MetalRMSNorm(width, eps=EPS)).to(device)
    ours.load_state_dict(reference.state_dict())
    options: dict[str, Any] = {"lr": LEARNING_RATE, "betas": BETAS, "weight_decay": WEIGHT_DECAY}
    wait = synchronizer(device)
    return (
        Trainer("torch", reference, torch.optim.AdamW(reference.parameters(), fused=True, **options), wait),
        Trainer("metalcore", ours, metalcore.MetalAdamW(ours.parameters(), **options), wait),
    )


def train(
    trainers: tuple[Trainer, Trainer],
    corpus: Corpus,
    config: Config,
    steps: int,
    seed: int,
    report: Callable[[str], None],
) -> None:
    """`steps` steps of each, the order of the two changing from step to step."""
    device = next(trainers[0].model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    for number in range(steps):
        tokens, targets = (x.to(device) for x in corpus.batch(BATCH, config.context, generator))
        for trainer in trainers if number % 2 == 0 else trainers[::-1]:
            trainer.step(tokens, targets)
        report(f"step {number + 1}, loss {trainers[0].losses[-1]:.3f} and {trainers[1].losses[-1]:.3f}")


def largest_difference(trainers: tuple[Trainer, Trainer]) -> tuple[float, int]:
    """The largest |difference| of the two losses of a step, and that step, from 1. NaN counts as infinite."""
    differences = [abs(a - b) for a, b in zip(trainers[0].losses, trainers[1].losses)]
    sizes = [d if d == d else float("inf") for d in differences]
    worst = max(range(len(sizes)), key=sizes.__getitem__)
    return sizes[worst], worst + 1
