"""Layers of the reranker that hold all towers at once.

Shape legend: B batch, t tokens, L1 = L + 1 watched slots, S towers (id, pxtr; or one), H heads of a tower, D width of a
tower, d = D / H, X pXTR.

The towers lie side by side in the feature axis ([id D | pxtr D]) and every linear layer holds both, block-diagonal:
`MaskedLinear` keeps the other blocks at zero. Heads are handled in the weights too: a query row is as wide as the
tower and zero outside its head's columns. That costs multiply-adds the phone does not notice (T1: one token) and saves
the small ops it does notice: no head is split off the cache, and a block is a few large ops.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contract.spec import FeatureSpec
from contract.vocabulary import MASK_VALUE, X_PXTR
from training.kir_config import KirConfig

GROUP_TOWERS = {"video": ("id", "both"), "server": ("pxtr", "both")}  # every other group feeds all towers
NORM_EPS = 1e-6
ROWS_GAIN = 8.0  # rows start small (std 0.05), one-hots do not
# In training every window holds the targets' own feedback in later slots. An additive −30 there is an invitation:
# within an epoch the net grows logits that climb over it and reads the labels (GAUC 0.87 offline, nothing in closed
# loop). So training masks hard; on the phone unused slots are zero and −30 is enough.
HARD_MASK = -1e9
# For -30 to be enough, logits must stay far below 30: what exceeds this bound is charged to the loss.
LOGIT_BOUND = 10.0


class PxtrScaler(nn.Module):
    """Standardises the pXTR logits of a dense block: (logit − mean·present) / std, so that an absent one stays zero.

    at   the pXTR feature's first column (logits X, presence X)

    Not folded into the matrices: a rare head (mean −7, std .15) would give them weights of 26 beside others of .15,
    and int8 has one scale a row.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, at: int, width: int):
        super().__init__()
        self.widths = [at, X_PXTR, X_PXTR, width - at - 2 * X_PXTR]
        self.register_buffer("mean", torch.zeros(X_PXTR))
        self.register_buffer("std", torch.ones(X_PXTR))

    def forward(self, x: Tensor) -> Tensor:
        before, logit, present, after = x.split(self.widths, dim=-1)
        parts = [before, (logit - present * self.mean) / self.std, present, after]
        return torch.cat([part for part in parts if part.shape[-1]], dim=-1)


class MaskedLinear(nn.Module):
    """A linear layer in which some weights are zero for good. weight [out, in], bias [out], mask [out, in] of 0/1."""

    mask: Tensor
    alive: Tensor

    def __init__(self, mask_OI: Tensor, gain: float = 1.0):
        super().__init__()
        fan_in_O1 = mask_OI.sum(1, keepdim=True).clamp(min=1.0)
        self.weight = nn.Parameter(torch.randn_like(mask_OI) * gain / fan_in_O1.sqrt())
        self.bias = nn.Parameter(torch.zeros(len(mask_OI)))
        self.register_buffer("mask", mask_OI, persistent=False)
        self.register_buffer("alive", mask_OI.amax(1), persistent=False)  # an output that reads nothing is zero

    def effective(self) -> Tensor:
        """The weight that acts, [out, in]."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective(), self.bias * self.alive)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        plain = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        plain.weight.copy_(self.effective())
        plain.bias.copy_(self.bias * self.alive)
        return plain


def dense_layer(n_in: int, n_out: int, gain: float = 1.0) -> MaskedLinear:
    return MaskedLinear(torch.ones(n_out, n_in), gain=gain)


def input_layer(spec: FeatureSpec, block: str, mask_OI: Tensor | None, n_out: int) -> MaskedLinear | None:
    """A layer over one input block; None when the spec has no such block."""
    if not spec.width(block):
        return None
    gain = ROWS_GAIN if spec.columns(block)[0].field.encoding == "served" else 1.0
    mask_OI = torch.ones(n_out, spec.width(block)) if mask_OI is None else mask_OI
    return MaskedLinear(mask_OI, gain=gain)


def pxtr_scalers(spec: FeatureSpec, blocks: Iterable[str]) -> nn.ModuleDict:
    """A scaler for each of these blocks that holds pXTR."""
    return nn.ModuleDict(
        {
            block: PxtrScaler(column.offset, spec.width(block))
            for block in blocks
            for column in spec.columns(block)
            if column.field.feature == "pxtr"
        }
    )


def tower_mask(n_in: int, n_out: int, towers: int) -> Tensor:
    """Block-diagonal [towers·n_out, towers·n_in]."""
    return torch.block_diag(*[torch.ones(n_out, n_in)] * towers)


def head_mask(config: KirConfig) -> Tensor:
    """[S·H·D, S·D]: row (s, h, i) reads tower s, and is alive only when feature i belongs to head h."""
    alive_HD = torch.eye(config.heads).repeat_interleave(config.width // config.heads, dim=1)
    alive = alive_HD.flatten().repeat(config.n_towers)[:, None]
    return tower_mask(config.width, config.heads * config.width, config.n_towers) * alive


def group_mask(spec: FeatureSpec, block: str, config: KirConfig) -> Tensor | None:
    """[S·D, block width]: which tower reads which field. None for a block the spec does not have."""
    rows = []
    for column in spec.columns(block):
        towers = GROUP_TOWERS.get(column.field.group, config.towers)
        alive_S = torch.tensor([float(tower in towers) for tower in config.towers])
        rows.append(alive_S.repeat_interleave(config.width)[:, None].expand(-1, column.field.width))
    return torch.cat(rows, dim=1) if rows else None


def total(parts: list[Tensor]) -> Tensor:
    """Sum of one or more tensors, without a zero to start from (it would be an op)."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


class TowerNorm(nn.Module):
    """RMSNorm of each tower: x / sqrt(mean(x²) + eps). The gain lives in the layers that read it.

    The mean is a matrix product that also spreads it back over the tower: four ops, no reshape.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, towers: int):
        super().__init__()
        self.register_buffer("weight", tower_mask(width, width, towers) / width, persistent=False)
        self.register_buffer("bias", torch.full((towers * width,), NORM_EPS), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(F.linear(x * x, self.weight, self.bias))


def towers_first(x: Tensor, towers: int, rows: int = 1) -> Tensor:
    """[B, t, S·rows·D] -> [B·S, t·rows, D]."""
    batch, t, width = x.shape
    inner = width // (towers * rows)
    if t == 1 or towers == 1:
        return x.reshape(batch * towers, t * rows, inner)
    if batch == 1:
        return x.reshape(t, towers, rows * inner).transpose(0, 1).reshape(towers, t * rows, inner)
    return x.reshape(batch, t, towers, rows * inner).transpose(1, 2).reshape(batch * towers, t * rows, inner)


def towers_last(x: Tensor, batch: int, t: int) -> Tensor:
    """[B·S, t·rows, D] -> [B, t, S·rows·D]; undoes `towers_first`."""
    towers, inner = x.shape[0] // batch, x.shape[1] * x.shape[2] // t
    if t == 1 or towers == 1:
        return x.reshape(batch, t, towers * inner)
    if batch == 1:
        return x.reshape(towers, t, inner).transpose(0, 1).reshape(1, t, towers * inner)
    return x.reshape(batch, towers, t, inner).transpose(1, 2).reshape(batch, t, towers * inner)


def heads_first(x: Tensor, heads: int) -> Tensor:
    """[B, n, heads·d] -> [B·heads, n, d]."""
    batch, n, width = x.shape
    if batch == 1:
        return x.reshape(n, heads, width // heads).transpose(0, 1)
    return x.reshape(batch, n, heads, width // heads).transpose(1, 2).reshape(batch * heads, n, width // heads)


def heads_last(x: Tensor, batch: int) -> Tensor:
    """[B·heads, n, d] -> [B, n, heads·d]; undoes `heads_first`."""
    heads, (n, inner) = x.shape[0] // batch, x.shape[1:]
    if batch == 1:
        return x.transpose(0, 1).reshape(1, n, heads * inner)
    return x.reshape(batch, heads, n, inner).transpose(1, 2).reshape(batch, n, heads * inner)


def excess(logits: Tensor) -> Tensor:
    """Mean square of what attention logits have above LOGIT_BOUND, in size."""
    return torch.relu(logits.abs() - LOGIT_BOUND).square().mean()


def masked(logits: Tensor, mask: Tensor, heads: int) -> Tensor:
    """logits [B·S, t·H, keys] + mask [1, t·H, keys]; or + [1, t, 1, keys], one row for all heads of a token.

    A graph holds its causal mask as a constant, the largest of the whole net: the second form has 1/H of the bytes.
    """
    if mask.dim() == 3:
        return logits + mask
    slates, rows, keys = logits.shape
    return (logits.reshape(slates, rows // heads, heads, keys) + mask).reshape(slates, rows, keys)


class Block(nn.Module):
    """One pre-norm transformer block of all towers. `excess`: of the last training step's logits."""

    excess: Tensor

    def __init__(self, config: KirConfig):
        super().__init__()
        self.heads, self.towers, width = config.heads, config.n_towers, config.width
        alive = head_mask(config)
        self.norm = TowerNorm(width, self.towers)
        self.q = MaskedLinear(alive, gain=(width // config.heads) ** -0.5)  # the attention's scale is folded in here
        self.k = MaskedLinear(tower_mask(width, width, self.towers))
        self.v = MaskedLinear(tower_mask(width, width, self.towers))
        self.out = MaskedLinear(alive.t().contiguous(), gain=0.5)
        self.up = MaskedLinear(tower_mask(width, config.ffn, self.towers))
        self.down = MaskedLinear(tower_mask(config.ffn, width, self.towers), gain=0.5)

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, t, S·D], mask for `masked`, past k and v [S, L1, D] -> x and this block's own k, v [B·S, t, D]."""
        batch, t, _ = x.shape
        normed = self.norm(x)
        q = towers_first(self.q(normed), self.towers, self.heads)
        k, v = towers_first(self.k(normed), self.towers), towers_first(self.v(normed), self.towers)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k], 1), torch.cat([past[1], v], 1))
        logits = q @ keys.transpose(1, 2)
        if self.training:
            self.excess = excess(logits)
        weights = torch.softmax(masked(logits, mask, self.heads), dim=-1)
        x = x + self.out(towers_last(weights @ values, batch, t))
        return x + self.down(torch.relu(self.up(self.norm(x)))), k, v


def causal_mask(t: int, heads: int, value: float = MASK_VALUE, device: Any = None) -> Tensor:
    """[1, t·heads, t] additive: token i sees tokens ≤ i; a row per head."""
    allowed = torch.ones(t, t, device=device).tril().repeat_interleave(heads, dim=0)
    return ((1.0 - allowed) * value)[None]
