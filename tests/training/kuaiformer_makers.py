"""Small KuaiFormers, histories and splits for tests: any plan, weights that make attention uneven."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from contract.catalogue import Catalogue
from contract.history import HISTORY_COLUMNS, HistoryIndex
from contract.spec import FeatureSpec
from contract.vocabulary import MISSING_KEY, NULL_INT, TAGS_MAX
from training.kuaiformer import Encoder, KuaiFormer, KuaiFormerConfig, preset_config
from training.retrieval_split import RetrievalSplit
from training.tables import SparseTables, table_keys

SMALL = {"width": 12, "heads": 3, "hidden": 16, "video_width": 8, "attribute_width": 4, "interests": 3}
PAPER = (64, 64, 16, 16, 16, 16, 16)
PLANS = {
    "paper": {"windows": PAPER, "latest": 48},
    "raw": {"windows": (), "latest": 20},
    "odd": {"windows": (5, 3, 3, 5), "latest": 7},
    "ones": {"windows": (1, 4), "latest": 1},
    "last": {"windows": (4, 3), "latest": 6, "last_item": True},
}


def config_of(plan: str = "paper", **changes: Any) -> KuaiFormerConfig:
    return preset_config("tiny", **{**SMALL, **PLANS[plan], **changes})


def net_of(config: KuaiFormerConfig, seed: int = 0) -> KuaiFormer:
    """In eval mode, with weights twice their initial size: attention is far from even, mistakes show."""
    torch.manual_seed(seed)
    net = KuaiFormer(config, config.spec()).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(2.0)
    return net.requires_grad_(False)


def sibling(encoder: Encoder, **changes: Any) -> Encoder:
    """The same weights with another plan."""
    config = KuaiFormerConfig.from_dict({**encoder.config.to_dict(), **changes})
    other = Encoder(config, encoder.token_skip.in_features)
    other.load_state_dict(encoder.state_dict())
    return other.eval().requires_grad_(False)


def histories(config: KuaiFormerConfig, held: list[int], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows [B, L, R] without any structure, padding included, and a mask with `held` real items each."""
    length = config.length if length is None else length
    mask = (torch.arange(length) >= length - torch.tensor(held)[:, None]).float()
    return torch.randn(len(held), length, config.spec().width("history_rows")), mask


def split_of_sizes(
    sizes: list[int], *, n_items: int | None = None, lag: int = 0, held: int = 0, outside: float = 0.0, seed: int = 0
) -> RetrievalSplit:
    """Users with so many positives each.

    n_items  of the catalogue, drawn at random; None = every place has an item of its own, of the same number
    lag      up to so many of the positives before a place were not known yet at it
    held     so many of each user's last places may not be trained on
    outside  share of the places whose item is not in the catalogue
    """
    random = np.random.default_rng(seed)
    offsets = np.append(0, np.cumsum(sizes)).astype(np.int64)
    places, n = np.arange(offsets[-1]), len(sizes)
    start_P = np.repeat(offsets[:-1], sizes)
    known = np.maximum(places - random.integers(0, lag + 1, len(places)), start_P)
    for u in range(n):
        known[offsets[u] : offsets[u + 1]] = np.maximum.accumulate(known[offsets[u] : offsets[u + 1]])
    columns = {
        name: np.full((len(places), *tail), null, dtype) for name, (dtype, tail, null) in HISTORY_COLUMNS.items()
    }
    row_P = places if n_items is None else random.integers(0, n_items, len(places))
    n_items = n_items or len(places)
    items = Catalogue(
        video_id=np.arange(n_items, dtype=np.uint64) + 1,
        author_id=np.arange(n_items, dtype=np.uint64) // 3,
        tags=np.full((n_items, TAGS_MAX), MISSING_KEY, np.uint64),
        duration_ms=np.full(n_items, NULL_INT, np.int32),
        upload_ms=np.full(n_items, NULL_INT, np.int64),
    )
    columns["video_id"], columns["author_id"] = items.video_id[row_P], items.author_id[row_P]
    no_time = np.full(len(places), NULL_INT, np.int64)
    index = HistoryIndex(columns, places, no_time, no_time, np.arange(n, dtype=np.uint64), offsets)
    return RetrievalSplit(
        name="made",
        index=index,
        items=items,
        row_P=np.where(random.random(len(places)) < outside, -1, row_P),
        train_end=np.maximum(offsets[1:] - held, offsets[:-1]),
        known_end_P=known,
        queries={},
        mask_history=False,
        history=256,
    )


def tables_of(split: RetrievalSplit, spec: FeatureSpec) -> SparseTables:
    """Rows for everything that stands in a history."""
    keys = table_keys(spec, [("history_rows", split.index.columns)])
    return SparseTables.from_spec_and_keys(spec, keys).eval()
