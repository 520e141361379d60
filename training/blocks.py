"""Transformer parts shared by the models: RMSNorm, SwiGLU, attention with an additive mask, the pre-norm block.

Everything is plain matrix arithmetic without data-dependent control flow, so that it exports to ONNX and converts.

Shapes: B batch, L queries, S keys, D width, H heads, E width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.errors import InputError


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (Zhang & Sennrich 2019). A zero vector stays zero."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + self.eps) * self.weight


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020), without biases: [..., width] -> [..., out]."""

    def __init__(self, width: int, hidden: int, out: int | None = None):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, out or width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def attend(query_BHLE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(E) + mask) v: [B, H, L, E]. mask is additive and broadcasts to [B, H, L, S]."""
    logits_BHLS = query_BHLE @ key_BHSE.transpose(-1, -2) * (1.0 / math.sqrt(query_BHLE.shape[-1]))
    if mask is not None:
        logits_BHLS = logits_BHLS + mask
    return torch.softmax(logits_BHLS, dim=-1) @ value_BHSE


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    """[B, L, D] -> [B, H, L, D / H]."""
    return x_BLD.reshape(x_BLD.shape[0], x_BLD.shape[1], heads, x_BLD.shape[2] // heads).transpose(1, 2)


def merge_heads(x_BHLE: Tensor) -> Tensor:
    """[B, H, L, E] -> [B, L, H * E]."""
    return x_BHLE.transpose(1, 2).reshape(x_BHLE.shape[0], x_BHLE.shape[2], x_BHLE.shape[1] * x_BHLE.shape[3])


class Attention(nn.Module):
    """Multi-head attention of x_BLD over context_BSD (x itself when None); additive mask, broadcast to [B, H, L, S]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise InputError("attention width must be a multiple of the heads", got=(width, heads))
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BLD: Tensor, mask: Tensor | None = None, context_BSD: Tensor | None = None) -> Tensor:
        context = x_BLD if context_BSD is None else context_BSD
        attended = attend(
            split_heads(self.query(x_BLD), self.heads),
            split_heads(self.key(context), self.heads),
            split_heads(self.value(context), self.heads),
            mask,
        )
        return self.out(merge_heads(attended))


class TransformerBlock(nn.Module):
    """Pre-norm block of the Llama kind: x + attention(norm(x)), then x + SwiGLU(norm(x)). Dropout after each branch."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask: Tensor | None = None) -> Tensor:
        x_BLD = x_BLD + self.dropout(self.attention(self.attention_norm(x_BLD), mask))
        return x_BLD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BLD)))


def causal_mask(length: int, value: float) -> Tensor:
    """Additive float32 [length, length]: 0 on and below the diagonal, `value` above it."""
    return torch.triu(torch.full((length, length), value), diagonal=1)


def additive_mask(present: Tensor, value: float) -> Tensor:
    """0 where `present` is 1, `value` where it is 0."""
    return (1.0 - present) * value


def masked_mean(x_BLD: Tensor, present_BL: Tensor) -> Tensor:
    """Mean over present positions: [B, D]; zero where none is present."""
    total_BD = (x_BLD * present_BL.unsqueeze(-1)).sum(dim=1)
    return total_BD / present_BL.sum(dim=1, keepdim=True).clamp(min=1.0)
