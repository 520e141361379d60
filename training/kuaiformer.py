"""KuaiFormer: the last 256 positive watches become K interest vectors (arXiv 2411.10057). It takes rows looked up.

Embedding (2.2.1): rows -> token MLP. Compression (2.3): windows 64, 64, 16 x 5 through one bidirectional layer and a
masked mean, the latest 48 stay raw: 55 tokens. Backbone (2.2.2): causal pre-norm stack, RMSNorm, SwiGLU. Interests
(2.4): K learned query tokens behind the 55. Score = max over interests (Eq. 9).
Not told by the paper and chosen here: width and heads; one compression layer shared by all windows; learned positions;
a group without any real token is masked out; an item is its video row projected plus its content rows projected, so
that a new item has a vector.

Shapes: B batch, L history (right-aligned, padding first), D width, K interests, R columns of history_rows, N items,
W tokens of one window, T tokens of the stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import InputError, SpecError
from contract.spec import FeatureSpec
from contract.specs import kuaiformer_spec
from training.blocks import RMSNorm, SwiGLU, TransformerBlock, additive_mask, causal_mask, masked_mean

# The encoder runs in float32 on the server alone, so the reason for KIR's -30 (quantised attention) is absent; here
# exp(mask) must be exactly 0, so that padding, long or cut away, never moves an answer. Finite, or an empty history
# would give NaN.
MASK = -1e4

WINDOWS = (64, 64, 16, 16, 16, 16, 16)
LATEST = 48
LENGTH = sum(WINDOWS) + LATEST


@dataclass(frozen=True)
class KuaiFormerConfig:
    """Sizes. `preset` is the dial; `preset_config` derives the rest."""

    preset: str = "tiny"
    width: int = 32
    heads: int = 2
    layers: int = 2
    hidden: int = 64
    interests: int = 2
    video_width: int = 32
    attribute_width: int = 8
    dropout: float = 0.0
    normalise: bool = True
    temperature: float = 0.07

    def spec(self) -> FeatureSpec:
        return kuaiformer_spec(self.video_width, self.attribute_width)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> KuaiFormerConfig:
        try:
            return KuaiFormerConfig(**data)
        except TypeError as error:
            raise InputError("not a KuaiFormer configuration", got=str(error)) from None


# paper: 4 layers and 6 queries as recommended there, the widths are undisclosed. seed: the public reproduction's sizes.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"width": 64, "heads": 4, "hidden": 128, "interests": 4, "video_width": 64, "attribute_width": 16,
    "dropout": 0.1}, "paper": {
        "width": 128, "heads": 8, "layers": 4, "hidden": 256, "interests": 6,
        "video_width": 64, "attribute_width": 16, "dropout": 0.1,
    },
    "seed": {
        "width": 128, "heads": 8, "layers": 6, "hidden": 512, "interests": 4,
        "video_width": 128, "attribute_width": 16, "dropout": 0.1,
    },
}  # fmt: skip


def preset_config(preset: str, **changes: Any) -> KuaiFormerConfig:
    """The configuration of a preset. Raises InputError for an unknown one."""
    if preset not in PRESETS:
        raise InputError("unknown preset", got=preset, allowed=tuple(PRESETS))
    return KuaiFormerConfig(preset=preset, **{**PRESETS[preset], **changes})


def window_plan(length: int) -> tuple[tuple[int, ...], int]:
    """(windows to compress, raw tokens) of a history of `length` slots: the plan's tail.

    256 gives the paper's plan; a shorter input stands for a history whose early part is all padding. Raises InputError
    where `length` cuts through a window.
    """
    raw = min(length, LATEST)
    rest, windows = length - raw, []
    for window in reversed(WINDOWS):
        if rest <= 0:
            break
        windows.append(window)
        rest -= window
    if rest != 0 or length < 1:
        raise InputError("a history must end at a window's border", got=length, allowed=LENGTHS)
    return tuple(reversed(windows)), raw


LENGTHS = (*range(1, LATEST + 1), 64, 80, 96, 112, 128, 192, 256)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis; a zero vector stays zero."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-12)


class Encoder(nn.Module):
    """history_rows [B, L, R], history_mask [B, L] (1 = real) -> interests [B, K, D]. L in LENGTHS (export: 256)."""

    def __init__(self, config: KuaiFormerConfig, row_width: int):
        super().__init__()
        width = config.width
        self.normalise = config.normalise
        self.token = nn.Sequential(nn.Linear(row_width, width), SwiGLU(width, config.hidden))
        self.token_skip = nn.Linear(row_width, width, bias=False)
        self.window_position = nn.Parameter(torch.randn(LENGTH - LATEST, width) * 0.02)
        self.window_block = TransformerBlock(width, config.heads, config.hidden, config.dropout)
        self.stack_position = nn.Parameter(torch.randn(len(WINDOWS) + LATEST, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(config.interests, width) * 0.5)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.heads, config.hidden, config.dropout) for _ in range(config.layers)
        )
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, history_rows: Tensor, history_mask: Tensor) -> Tensor:
        windows, raw = window_plan(history_rows.shape[1])
        # Padding is zeroed before anything mixes positions: its content can't reach an answer.
        tokens_BLD = (self.token(history_rows) + self.token_skip(history_rows)) * history_mask.unsqueeze(-1)
        parts, present = self._compress(tokens_BLD[:, : sum(windows)], history_mask[:, : sum(windows)], windows)
        parts.append(tokens_BLD[:, sum(windows) :])
        present.append(history_mask[:, sum(windows) :])
        stack_BTD = torch.cat(parts, dim=1) + self.stack_position[-(len(windows) + raw) :]
        n_queries = self.queries.shape[0]
        queries_BKD = self.queries.unsqueeze(0).expand(history_rows.shape[0], -1, -1)
        present.append(torch.ones_like(history_mask[:, :1]).expand(-1, n_queries))
        x_BTD = torch.cat([stack_BTD, queries_BKD], dim=1)
        mask_B1TT = (
            causal_mask(x_BTD.shape[1], MASK).to(x_BTD) + additive_mask(torch.cat(present, dim=1), MASK)[:, None, None]
        )
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_B1TT)
        interests_BKD = self.out(self.norm(x_BTD[:, -n_queries:]))
        return unit(interests_BKD) if self.normalise else interests_BKD

    def _compress(
        self, tokens_BLD: Tensor, present_BL: Tensor, windows: tuple[int, ...]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One token per window, and whether it holds anything: ([B, n, D], …), ([B, n], …)."""
        parts: list[Tensor] = []
        present: list[Tensor] = []
        first = LENGTH - LATEST - sum(windows)
        tokens_BLD = (tokens_BLD + self.window_position[first:]) * present_BL.unsqueeze(-1)
        place = 0
        for size in dict.fromkeys(windows):
            n = windows.count(size)
            cut = slice(place, place + n * size)
            x_BLD, there_BL = tokens_BLD[:, cut], present_BL[:, cut]
            x_GWD = x_BLD.reshape(-1, size, x_BLD.shape[-1])
            there_GW = there_BL.reshape(-1, size)
            x_GWD = self.window_block(x_GWD, additive_mask(there_GW, MASK)[:, None, None])
            parts.append(masked_mean(x_GWD, there_GW).reshape(-1, n, x_BLD.shape[-1]))
            present.append(there_GW.amax(dim=1).reshape(-1, n))
            place += n * size
        return parts, present


class ItemSide(nn.Module):
    """item_rows [N, Ri] -> item_vector [N, D]: the video row projected, plus the content rows projected."""

    def __init__(self, config: KuaiFormerConfig, spec: FeatureSpec):
        super().__init__()
        columns = spec.columns("item_rows")
        if not columns or columns[0].field.table != "video":
            raise SpecError(
                "the first field of item_rows must be the video's own row", got=[c.field.name for c in columns]
            )
        self.video_width = columns[0].field.width
        content = spec.width("item_rows") - self.video_width
        self.normalise = config.normalise
        self.video = nn.Linear(self.video_width, config.width, bias=False)
        self.content = nn.Sequential(
            nn.Linear(content, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.width, bias=False)
        )

    def forward(self, item_rows: Tensor) -> Tensor:
        vector_ND = self.video(item_rows[:, : self.video_width]) + self.content(item_rows[:, self.video_width :])
        return unit(vector_ND) if self.normalise else vector_ND


class KuaiFormer(nn.Module):
    """Both sides of the dense net: `encoder` and `item` are exported one by one."""

    def __init__(self, config: KuaiFormerConfig, spec: FeatureSpec):
        super().__init__()
        self.config, self.spec = config, spec
        self.encoder = Encoder(config, spec.width("history_rows"))
        self.item = ItemSide(config, spec)

    def forward(self, history_rows: Tensor, history_mask: Tensor) -> Tensor:
        interests: Tensor = self.encoder(history_rows, history_mask)
        return interests

    def item_vector(self, item_rows: Tensor) -> Tensor:
        vector: Tensor = self.item(item_rows)
        return vector


def score(interests_BKD: Tensor, items_ND: Tensor) -> Tensor:
    """Eq. 9: max over interests of the inner product, [B, N]."""
    return torch.einsum("bkd,nd->bkn", interests_BKD, items_ND).amax(dim=1)
