"""KuaiFormer: the last 256 positive watches become K interest vectors (arXiv 2411.10057). It takes rows looked up.

Embedding (2.2.1): rows -> token MLP. Compression (2.3): windows of old items through one bidirectional layer and a
masked mean; the latest stay raw. The paper's plan is 64, 64, 16 x 5 and 48 raw: 55 tokens; any plan will do.
Backbone (2.2.2): causal pre-norm stack, RMSNorm, SwiGLU. Interests (2.4): K learned query tokens behind the tokens.
Score = max over interests (Eq. 9).
Not told by the paper and chosen here: width and heads; rotary positions (the paper says "Llama"); one compression layer
shared by all windows; a window without any real token is masked out; an item is its video row projected plus its
content rows projected, so that a new item has a vector.

Many cuts in one pass (`Encoder.cuts`). Training wants the answer after every item, serving after the last one. Items
never see queries and positions are relative, so one pass over the tokens serves all cuts of the raw tail: query tokens
are appended at each of the last P raw items. At the last cut that is the model served; at an earlier one it is the same
model with the items behind the cut taken away, windows as they are (tests/training/test_kuaiformer_cuts.py).

Shapes: B batch, L history (right-aligned, padding first), D width, K interests, R columns of history_rows, N items,
W tokens of one window, T tokens of the stack, P cuts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import InputError, SpecError
from contract.spec import FeatureSpec
from contract.specs import kuaiformer_spec
from training.blocks import (
    MASK,
    Dropout,
    RMSNorm,
    RotaryBlock,
    SwiGLU,
    additive_mask,
    causal_mask,
    masked_mean,
    rotations,
)


@dataclass(frozen=True)
class KuaiFormerConfig:
    """Sizes. `preset` is the dial; `preset_config` derives the rest.

    windows      sizes of the compressed windows, oldest first; none = everything stays raw
    latest       raw items behind them
    interests    K query tokens
    normalise    unit vectors on both sides, scores divided by `temperature` in training
    last_item    each query begins at the token of the item before it, and rows of videos mean the same on both sides at
                 first: what was liked last is a strong guess where items are rare (not of the paper)
    without      served fields of the spec that are left out (those the data do not tell)
    recency_days half life of the plays that an item's prior counts (training/recency.py); None = no prior
    recency_weight  what the prior is multiplied by once trained; None = by what was learnt, which tends to be too low:
                    the rows have learnt the same days by heart, and validation on later days asks for more
    """

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
    windows: tuple[int, ...] = (64, 64, 16, 16, 16, 16, 16)
    latest: int = 48
    last_item: bool = False
    without: tuple[str, ...] = ()
    recency_days: float | None = None
    recency_weight: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        object.__setattr__(self, "without", tuple(self.without))
        for name in ("width", "heads", "layers", "hidden", "interests", "video_width", "attribute_width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} starts at 1", got=getattr(self, name))
        if not self.temperature > 0 or not 0.0 <= self.dropout < 1.0:
            got = {"temperature": self.temperature, "dropout": self.dropout}
            raise InputError("out of range", got=got, allowed="temperature above 0, dropout from 0 to below 1")
        if self.recency_days is not None and not self.recency_days > 0:
            raise InputError("recency_days must be above 0", got=self.recency_days, allowed="days, or none")
        if self.recency_weight is not None and self.recency_days is None:
            raise InputError("recency_weight weighs a prior", got=self.recency_weight, fix="give recency_days as well")
        if self.latest < 1 or any(size < 1 for size in self.windows):
            raise InputError("a plan has windows and a raw tail of 1 or more", got=(self.windows, self.latest))
        if self.width % self.heads or self.width // self.heads % 2:
            raise InputError("width must be a multiple of the heads, and that of 2", got=(self.width, self.heads))

    @property
    def vector_width(self) -> int:
        """Numbers of an interest and of an item's vector: `width`, and one more with a prior."""
        return self.width + (self.recency_days is not None)

    @property
    def length(self) -> int:
        """Items of a whole history: 256 with the paper's plan."""
        return sum(self.windows) + self.latest

    @property
    def lengths(self) -> tuple[int, ...]:
        """Input lengths the encoder takes, ascending: up to `latest`, and those that end at a window's border."""
        found = list(range(1, self.latest + 1))
        for size in reversed(self.windows):
            found.append(found[-1] + size)
        return tuple(found)

    def plan(self, length: int) -> tuple[tuple[int, ...], int]:
        """(windows, raw items) of a history of `length` slots: the plan's tail. Raises InputError elsewhere.

        A shorter input stands for a history whose early part is all padding.
        """
        if length not in self.lengths:
            raise InputError("a history must end at a window's border", got=length, allowed=self.lengths)
        n_windows = max(0, self.lengths.index(length) - self.latest + 1)
        return self.windows[len(self.windows) - n_windows :], min(length, self.latest)

    def spec(self) -> FeatureSpec:
        spec = kuaiformer_spec(self.video_width, self.attribute_width, self.recency_days is not None)
        return spec.without(list(self.without)) if self.without else spec

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
    "small": {
        "width": 64, "heads": 4, "hidden": 128, "interests": 4,
        "video_width": 64, "attribute_width": 16, "dropout": 0.1,
    },
    "paper": {
        "width": 128, "heads": 8, "layers": 4, "hidden": 256, "interests": 6,
        "video_width": 64, "attribute_width": 16, "dropout": 0.1,
    },
    "seed": {
        "width": 256, "heads": 8, "layers": 6, "hidden": 512, "interests": 4,
        "video_width": 128, "attribute_width": 16, "dropout": 0.1,
    },
}  # fmt: skip


def preset_config(preset: str, **changes: Any) -> KuaiFormerConfig:
    """The configuration of a preset. Raises InputError for an unknown one."""
    if preset not in PRESETS:
        raise InputError("unknown preset", got=preset, allowed=tuple(PRESETS))
    return KuaiFormerConfig.from_dict({"preset": preset, **PRESETS[preset], **changes})


def preset_label(config: KuaiFormerConfig) -> str:
    """The preset, and in what the sizes are not the preset's: "paper", "paper, changed: interests 4".

    `without` is the data's doing and no change.
    """
    sizes = preset_config(config.preset, without=config.without).to_dict()
    changed = [f"{name} {value}" for name, value in config.to_dict().items() if value != sizes[name]]
    return ", changed: ".join([config.preset, *([", ".join(changed)] if changed else [])])


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis; a zero vector stays zero."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-12)


class Encoder(nn.Module):
    """history_rows [B, L, R], history_mask [B, L] (1 = real) -> interests [B, K, D]. L in config.lengths.

    With a prior every interest ends with its weight, the same for all, and D is config.vector_width.
    """

    def __init__(self, config: KuaiFormerConfig, row_width: int):
        super().__init__()
        width = config.width
        self.config = config
        self.token = nn.Sequential(nn.Linear(row_width, width), SwiGLU(width, config.hidden))
        self.token_skip = nn.Linear(row_width, width, bias=False)
        if config.windows:
            self.window_block = RotaryBlock(width, config.heads, config.hidden, config.dropout)
        self.queries = nn.Parameter(torch.randn(config.interests, width) * 0.5)
        self.blocks = nn.ModuleList(
            RotaryBlock(width, config.heads, config.hidden, config.dropout) for _ in range(config.layers)
        )
        self.dropout = Dropout(config.dropout)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, width, bias=False)
        if config.recency_days is not None:
            self.recency = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def set_recency(self) -> None:
        """Once trained: give the prior the weight that the configuration states, if it states one."""
        if self.config.recency_weight is not None:
            self.recency.fill_(self.config.recency_weight)

    def forward(self, history_rows: Tensor, history_mask: Tensor) -> Tensor:
        return self.cuts(history_rows, history_mask, 1)[:, 0]

    def cuts(self, history_rows: Tensor, history_mask: Tensor, n_cuts: int) -> Tensor:
        """Interests after each of the last `n_cuts` raw slots: [B, P, K, D]; the last one is `forward`'s.

        A cut at a padding slot is that of an empty history. Raises InputError for more cuts than raw slots.
        """
        windows, _ = self.config.plan(history_rows.shape[1])
        early = sum(windows)
        kept = self.compressed(history_rows[:, :early], history_mask[:, :early], windows) if windows else None
        return self.behind(kept, history_rows[:, early:], history_mask[:, early:], n_cuts)

    def compressed(self, rows: Tensor, mask: Tensor, windows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Tokens [B, n, D] of windows that `rows` [B, sum(windows), R] fills, and which of them hold anything [B, n].

        They do not depend on what comes later, so one who answers a user again may keep them until the smallest window
        has filled anew: training has seen such plans, with fewer raw items than `latest`.
        """
        parts: list[Tensor] = []
        present: list[Tensor] = []
        place = 0
        tokens_BLD = self._tokens(rows, mask)
        for size, group in groupby(windows):
            n = len(list(group))
            cut = slice(place, place + n * size)
            x_GWD = tokens_BLD[:, cut].reshape(-1, size, tokens_BLD.shape[-1])
            there_GW = mask[:, cut].reshape(-1, size)
            turn = rotations(torch.arange(size, device=x_GWD.device), self.config.width // self.config.heads)
            nothing = x_GWD.new_zeros(size, size)
            x_GWD = self.window_block(x_GWD, turn, nothing, additive_mask(there_GW, MASK))
            parts.append(masked_mean(x_GWD, there_GW).reshape(-1, n, x_GWD.shape[-1]))
            present.append(there_GW.amax(dim=1).reshape(-1, n))
            place += n * size
        return torch.cat(parts, dim=1), torch.cat(present, dim=1)

    def behind(self, kept: tuple[Tensor, Tensor] | None, rows: Tensor, mask: Tensor, n_cuts: int = 1) -> Tensor:
        """Interests after each of the last `n_cuts` of the raw slots `rows` [B, up to `latest`, R]: [B, P, K, D].

        kept: what `compressed` gave for the windows before them, None = no windows. Raises InputError for more cuts or
        slots than allowed.
        """
        raw = rows.shape[1]
        if not 1 <= raw <= self.config.latest:
            raise InputError("raw slots", got=raw, allowed=f"1 … {self.config.latest}")
        if not 1 <= n_cuts <= raw:
            raise InputError("cuts stand behind raw items", got=n_cuts, allowed=f"1 … {raw}")
        x_BTD, present_BT = self._tokens(rows, mask), mask
        if kept is not None:
            x_BTD, present_BT = torch.cat([kept[0], x_BTD], dim=1), torch.cat([kept[1], mask], dim=1)
        n_rows, n_tokens, width = x_BTD.shape
        n_queries, head_width = self.config.interests, width // self.config.heads
        place_T = torch.arange(n_tokens, device=x_BTD.device)
        place_P = place_T[n_tokens - n_cuts :]
        place_PK = (place_P[:, None] + 1 + torch.arange(n_queries, device=x_BTD.device)).reshape(-1)
        turn, turn_Q = rotations(place_T, head_width), rotations(place_PK, head_width)
        absent_BT = additive_mask(present_BT, MASK)
        hidden_TT = causal_mask(n_tokens, MASK).to(x_BTD.device)
        hidden_QT = hidden_TT[n_tokens - n_cuts :].repeat_interleave(n_queries, dim=0)
        q_BPKD = self.queries.expand(n_rows, n_cuts, n_queries, width)
        if self.config.last_item:
            q_BPKD = q_BPKD + x_BTD[:, n_tokens - n_cuts :, None]
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            x_BTD, q_BPKD = block.with_cuts(x_BTD, q_BPKD, turn, turn_Q, hidden_TT, hidden_QT, absent_BT, last)
        interests = self.out(self.norm(q_BPKD))
        interests = unit(interests) if self.config.normalise else interests
        if self.config.recency_days is None:
            return interests
        return torch.cat([interests, self.recency.expand(*interests.shape[:-1], 1)], dim=-1)

    def _tokens(self, rows: Tensor, mask: Tensor) -> Tensor:
        # Padding is zeroed before anything mixes positions: its content can't reach an answer.
        tokens: Tensor = self.dropout((self.token(rows) + self.token_skip(rows)) * mask.unsqueeze(-1))
        return tokens


class ItemSide(nn.Module):
    """item_rows [N, Ri] -> item_vector [N, D]: the video row projected, plus the content rows (if any) projected.

    With a prior it is the last column of both: a score is a user's taste plus the item's prior, weighed.
    """

    def __init__(self, config: KuaiFormerConfig, spec: FeatureSpec):
        super().__init__()
        columns = spec.columns("item_rows")
        if not columns or columns[0].field.table != "video":
            raise SpecError(
                "the first field of item_rows must be the video's own row", got=[c.field.name for c in columns]
            )
        self.video_width = columns[0].field.width
        self.has_prior = config.recency_days is not None
        if self.has_prior and columns[-1].field.table != "recent":
            raise SpecError(
                "the last field of item_rows must be the prior",
                got=[c.field.name for c in columns],
                allowed="item_recent",
            )
        self.content_end = spec.width("item_rows") - int(self.has_prior)
        self.has_content = self.content_end > self.video_width
        self.normalise = config.normalise
        self.video = nn.Linear(self.video_width, config.width, bias=False)
        if self.has_content:
            self.content = nn.Sequential(
                nn.Linear(self.content_end - self.video_width, config.hidden),
                nn.SiLU(),
                nn.Linear(config.hidden, config.width, bias=False),
            )

    def forward(self, item_rows: Tensor) -> Tensor:
        vector_ND = self.video(item_rows[:, : self.video_width])
        if self.has_content:
            vector_ND = vector_ND + self.content(item_rows[:, self.video_width : self.content_end])
        vector_ND = unit(vector_ND) if self.normalise else vector_ND
        return torch.cat([vector_ND, item_rows[:, self.content_end :]], dim=1) if self.has_prior else vector_ND


class KuaiFormer(nn.Module):
    """Both sides of the dense net: `encoder` and `item` are exported one by one."""

    def __init__(self, config: KuaiFormerConfig, spec: FeatureSpec):
        super().__init__()
        self.config, self.spec = config, spec
        self.encoder = Encoder(config, spec.width("history_rows"))
        self.item = ItemSide(config, spec)
        if config.last_item:
            self._align()

    @torch.no_grad()
    def _align(self) -> None:
        """An item in the history and as a candidate begin as the same vector: like finds like from the start.

        In the history times sqrt(D), as in SASRec: rows begin so small (tables.INIT_STD) that what the first block adds
        would drown them.
        """
        column = next(c for c in self.spec.columns("history_rows") if c.field.table == "video")
        width, video = self.config.width, self.config.video_width
        same = torch.linalg.qr(torch.randn(max(width, video), max(width, video)))[0][:width, :video]
        self.encoder.token_skip.weight[:, column.slice] = same * math.sqrt(width)
        self.item.video.weight.copy_(same)
        self.encoder.out.weight.copy_(torch.eye(width))
        self.encoder.queries.mul_(0.04)

    def forward(self, history_rows: Tensor, history_mask: Tensor) -> Tensor:
        interests: Tensor = self.encoder(history_rows, history_mask)
        return interests

    def item_vector(self, item_rows: Tensor) -> Tensor:
        vector: Tensor = self.item(item_rows)
        return vector


def score(interests_BKD: Tensor, items_ND: Tensor) -> Tensor:
    """Eq. 9: max over interests of the inner product, [B, N]."""
    return torch.einsum("bkd,nd->bkn", interests_BKD, items_ND).amax(dim=1)
