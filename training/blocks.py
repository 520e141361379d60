"""Transformer parts: RMSNorm, SwiGLU, rotary positions, the pre-norm block and its pass with many cuts.

Everything is plain matrix arithmetic without data-dependent control flow, so that it exports to ONNX and converts.

Shapes: B batch, L or T tokens, P cuts, K queries of a cut, Q = P * K, D width, H heads, E width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.errors import InputError

# Of what must not be seen. It is used in float32 or bfloat16 on servers alone, so the reason for KIR's -30 (quantised
# attention) is absent; here exp(mask) must be exactly 0, so that padding never moves an answer. Finite, or an empty
# history would give NaN.
MASK = -1e4


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


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    """[B, L, D] -> [B, H, L, D / H]."""
    return x_BLD.reshape(x_BLD.shape[0], x_BLD.shape[1], heads, x_BLD.shape[2] // heads).transpose(1, 2)


def merge_heads(x_BHLE: Tensor) -> Tensor:
    """[B, H, L, E] -> [B, L, H * E]."""
    return x_BHLE.transpose(1, 2).reshape(x_BHLE.shape[0], x_BHLE.shape[2], x_BHLE.shape[1] * x_BHLE.shape[3])


def rotations(positions_L: Tensor, width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [L, width / 2] of rotary positions (Su et al. 2021, RoFormer, Eq. 15): logits then depend on
    differences of positions alone."""
    frequency = base ** (-torch.arange(0, width, 2, device=positions_L.device, dtype=torch.float32) / width)
    angle = positions_L.float()[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x_BHLE: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + E / 2) of the last axis by its position's angle.

    Written over whole rows: halves, their products and their join cost a training step on CPUs a tenth more.
    """
    cos, sin = turn[0].to(x_BHLE), turn[1].to(x_BHLE)
    swapped = x_BHLE.roll(x_BHLE.shape[-1] // 2, dims=-1)
    return x_BHLE * torch.cat([cos, cos], dim=-1) + swapped * torch.cat([-sin, sin], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, hidden_QT: Tensor, absent_BT: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E) + mask) v: [B, H, Q, E].

    hidden_QT  additive, what a query must not see (the causal mask); absent_BT: what isn't there (padding)
    """
    mask, given = hidden_QT + absent_BT[:, None, None], query.dtype
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(given))
    # Float32 throughout on CPUs: there the backward pass of this kernel takes 2.5 times as long in bfloat16.
    with torch.autocast("cpu", enabled=False):
        read = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask.float())
    return read.to(given)


def by_cut(x_BHQE: Tensor, n_queries: int) -> Tensor:
    """[B, H, P * K, E] -> [B, H, P, K, E]. Not by `unflatten`: a trace for ONNX would fix the batch's size."""
    return x_BHQE.reshape(x_BHQE.shape[0], x_BHQE.shape[1], -1, n_queries, x_BHQE.shape[3])


def attend_with_own(
    query: Tensor, key: Tensor, value: Tensor, hidden_QT: Tensor, absent_BT: Tensor, own: tuple[Tensor, Tensor]
) -> Tensor:
    """The same where queries also have keys of their own: one softmax over [sequence | own cut's queries].

    own  keys and values [B, H, P, K, E]: query (p, j), Q = P * K of them, sees its cut's first j + 1
    """
    scale, n_queries = 1.0 / math.sqrt(query.shape[-1]), own[0].shape[-2]
    query = query * scale
    seen = query @ key.transpose(-1, -2) + (hidden_QT + absent_BT[:, None, None]).to(query.dtype)
    if n_queries == 1:  # the same by sums: batches of products of one row each cost a tenth of a training step
        among = (query * own[0].squeeze(3)).sum(dim=-1, keepdim=True)
    else:
        among = by_cut(query, n_queries) @ own[0].transpose(-1, -2)
        among = (among + causal_mask(n_queries, MASK).to(among)).flatten(2, 3)
    weights = torch.softmax(torch.cat([seen, among], dim=-1), dim=-1).to(value.dtype)
    to_items, to_own = weights.split([key.shape[2], n_queries], dim=-1)
    if n_queries == 1:
        return to_items @ value + to_own * own[1].squeeze(3)
    return to_items @ value + (by_cut(to_own, n_queries) @ own[1]).flatten(2, 3)


class RotaryBlock(nn.Module):
    """Pre-norm block of the Llama kind with rotary positions: x + attention(norm(x)), then x + SwiGLU(norm(x)).

    `forward` is the block over one sequence. `with_cuts` runs beside it query tokens that are appended to many cuts of
    the sequence at once: each cut's K queries see the sequence up to their cut and the earlier queries of their own
    cut, and nothing of the sequence sees a query. So a pass over the sequence serves all its cuts.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        if width % heads or width // heads % 2:
            raise InputError("width must be a multiple of the heads, and that of 2", got=(width, heads))
        self.width, self.heads = width, heads
        self.attention_norm = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = SwiGLU(width, hidden)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, turn: tuple[Tensor, Tensor], hidden_TT: Tensor, absent_BT: Tensor) -> Tensor:
        """hidden_TT and absent_BT are additive: what a position must not see, and what is padding."""
        query, key, value = self._projected(x_BTD, turn)
        return self._joined(x_BTD, attend(query, key, value, hidden_TT, absent_BT))

    def with_cuts(
        self,
        x_BTD: Tensor,
        q_BPKD: Tensor,
        turn: tuple[Tensor, Tensor],
        turn_Q: tuple[Tensor, Tensor],
        hidden_TT: Tensor,
        hidden_QT: Tensor,
        absent_BT: Tensor,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        """(sequence, queries) after the block; the last block leaves the sequence as it is, nobody reads it then.

        turn_Q     of the queries' positions, [Q, E / 2]
        hidden_QT  additive: what of the sequence each query must not see
        """
        query, key, value = self._projected(x_BTD, turn)
        own = self._projected(q_BPKD.flatten(1, 2), turn_Q)
        n_queries = q_BPKD.shape[2]
        of_cuts = by_cut(own[1], n_queries), by_cut(own[2], n_queries)
        read_BHQE = attend_with_own(own[0], key, value, hidden_QT, absent_BT, of_cuts)
        q_BPKD = self._joined(q_BPKD.flatten(1, 2), read_BHQE).reshape(q_BPKD.shape)
        if not last:
            x_BTD = self._joined(x_BTD, attend(query, key, value, hidden_TT, absent_BT))
        return x_BTD, q_BPKD

    def _projected(self, x_BLD: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (split_heads(x, self.heads) for x in self.qkv(self.attention_norm(x_BLD)).chunk(3, dim=-1))
        return rotate(query, turn), rotate(key, turn), value

    def _joined(self, x_BLD: Tensor, read_BHLE: Tensor) -> Tensor:
        x_BLD = x_BLD + self.dropout(self.out(merge_heads(read_BHLE)))
        return x_BLD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BLD)))


class Dropout(nn.Module):
    """nn.Dropout, five times faster on CPUs: it draws a byte per entry, so that the rate is a multiple of 1 / 256."""

    def __init__(self, rate: float):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise InputError("dropout is a probability below 1", got=rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        if x.is_cuda:
            return F.dropout(x, self.rate)
        drop = min(max(1, round(self.rate * 256)), 255)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= drop
        return x * (keep.to(x.dtype) * (256.0 / (256 - drop)))


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
