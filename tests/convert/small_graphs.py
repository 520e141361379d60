"""Graphs small enough that every front end converts them in seconds: a Linear on three axes, an attention block.

Legend: N tokens, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convert.chain import Feeds
from convert.onnx_export import TorchGraph


class Layers(nn.Module):
    """left [1, N, D], right [1, N, 4] -> (hidden, scores): norm, GELU, and a sum, so that a swap would show."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.norm_in, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        hidden = nn.functional.gelu(self.first(self.norm_in(left)))
        return hidden, self.second(hidden) + 2 * right


class Block(nn.Module):
    """tokens [1, N, D] -> scores [1, N, D]: one block of self-attention, written out or by torch's own function."""

    def __init__(self, width: int = 16, heads: int = 4, fused: bool = False):
        super().__init__()
        self.width, self.heads, self.fused = width, heads, fused
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, n, width = tokens.shape
        each = width // self.heads
        parts = self.qkv(self.norm(tokens)).split(width, -1)
        q, k, v = (part.reshape(batch, n, self.heads, each).transpose(1, 2) for part in parts)
        if self.fused:
            read = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            read = torch.softmax(q @ k.transpose(-1, -2) / each**0.5, -1) @ v
        x = tokens + self.out(read.transpose(1, 2).reshape(batch, n, width))
        return x + self.down(nn.functional.gelu(self.up(x)))


def layers(n: int = 5) -> TorchGraph:
    torch.manual_seed(4)
    inputs = {"left": torch.randn(1, n, 6), "right": torch.randn(1, n, 4)}
    return TorchGraph("layers", f"N{n}", Layers().eval(), inputs, ("hidden", "scores"))


def block(n: int, width: int = 16, heads: int = 4, fused: bool = False) -> TorchGraph:
    torch.manual_seed(5)
    inputs = {"tokens": torch.randn(1, n, width)}
    return TorchGraph("block", f"N{n}", Block(width, heads, fused).eval(), inputs, ("scores",))


def feeds_of(graph: TorchGraph, n: int = 3, seed: int = 6) -> list[Feeds]:
    """Normal numbers in the shapes of the example inputs."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(value.shape, generator=generator).numpy() for name, value in graph.inputs.items()}
        for _ in range(n)
    ]
