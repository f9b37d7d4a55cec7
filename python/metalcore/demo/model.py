"""A small Llama: RMS norm, rotary embedding, grouped-query attention, SwiGLU, tied embedding; bytes in,
bytes out. The norm is a parameter, everything else is torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]

EPS = 1e-6


@dataclass(frozen=True)
class Config:
    """Sizes. The defaults make 1.6 million parameters."""

    vocabulary: int = 256
    layers: int = 4
    width: int = 192
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 512
    context: int = 128
    rotary_base: float = 10_000.0


def rotary_tables(config: Config) -> tuple[Tensor, Tensor]:
    """cos and sin of (position, frequency), each (context, head_dim / 2)."""
    half = config.head_dim // 2
    frequencies = config.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(config.context, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of the last dimension against each other; x is (B, heads, S, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal attention with fewer key/value heads than query heads."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        split = lambda y: y.view(batch, length, -1, self.config.head_dim).transpose(1, 2)  # noqa: E731
        q = rotate(split(self.q_proj(x)), cos, sin)
        k = rotate(split(self.k_proj(x)), cos, sin)
        y = F.scaled_dot_product_attention(q, k, split(self.v_proj(x)), is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Config, norm: Norm) -> None:
        super().__init__()
        self.input_norm = norm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = norm(config.width)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.input_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class TinyLlama(nn.Module):
    """Tokens (B, S) to logits (B, S, vocabulary)."""

    def __init__(self, config: Config, norm: Norm) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config, norm) for _ in range(config.layers))
        self.norm = norm(config.width)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embedding.weight)
