"""Small checkpoints with random weights, made in milliseconds, and the tables a server bundle takes. No training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contract.catalogue import Catalogue, UserTable, write_catalogue, write_users
from contract.specs import kir_spec
from contract.vocabulary import MISSING_KEY, TAGS_MAX
from training import kuaiformer, ranker
from training.checkpoint import Checkpoint, save_checkpoint
from training.kir_config import KirConfig
from training.kir_model import Kir
from training.tables import SparseTables

N_ITEMS = 60
VIDEOS = np.arange(1, N_ITEMS + 1, dtype=np.uint64) * np.uint64(7919)
SMALL: dict[str, Any] = {"watched": 6, "buckets": (5, 9), "width": 12, "blocks": 1, "ffn": 20, "expert": 10}


def _tables(spec: Any, seed: int) -> SparseTables:
    tables = SparseTables.from_spec_and_keys(spec, dict.fromkeys(spec.tables, VIDEOS), seed=seed)
    with torch.no_grad():
        for weight in tables.weights.values():
            weight.mul_(10.0)  # rows of trained size, so that scores spread
    return tables


def _save(directory: Path, kind: str, net: torch.nn.Module, spec: Any, config: dict[str, Any], seed: int) -> Checkpoint:
    return save_checkpoint(
        directory,
        kind=kind,
        model=net,
        tables=_tables(spec, seed),
        spec=spec,
        model_config=config,
        training={"seed": seed},
        metrics={},
        card_text=f"# {kind} of a test\n",
    )


def make_kir(directory: Path, seed: int = 0, *, spec: Any = None, **changes: Any) -> Checkpoint:
    """A KIR with two N buckets and L = 6; `changes` go into its configuration."""
    torch.manual_seed(seed)
    spec = spec or kir_spec(video=4, author=3, tag=3, user=4)
    config = KirConfig.of("tiny", **{**SMALL, **changes})
    return _save(directory, "kir", Kir(config, spec), spec, config.to_json(), seed)


def make_kuaiformer(directory: Path, seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    config = kuaiformer.preset_config("tiny", width=16, video_width=8, attribute_width=4)
    net = kuaiformer.KuaiFormer(config, config.spec())
    return _save(directory, "kuaiformer", net, config.spec(), config.to_dict(), seed)


def make_ranker(directory: Path, seed: int = 0, heads: tuple[str, ...] = ("click", "long_view")) -> Checkpoint:
    torch.manual_seed(seed)
    config = replace(ranker.preset_config("tiny"), trained_heads=heads)
    net = ranker.Ranker(config, config.spec())
    return _save(directory, "ranker", net, config.spec(), config.to_dict(), seed)


def make_catalogue(path: Path, n: int = N_ITEMS) -> Path:
    number = np.arange(n)
    tags = np.full((n, TAGS_MAX), MISSING_KEY)
    tags[:, 0] = VIDEOS[number % 7]
    items = Catalogue(
        video_id=VIDEOS[:n],
        author_id=VIDEOS[number % 11],
        tags=tags,
        duration_ms=(5_000 + 700 * number).astype(np.int32),
        upload_ms=(1_700_000_000_000 - 86_400_000 * number).astype(np.int64),
    )
    return write_catalogue(path, items)


def make_users(path: Path, n: int = 5) -> Path:
    number = np.arange(n, dtype=np.int32)
    return write_users(path, UserTable(user_id=VIDEOS[:n], activity=number, register_days=number * 30))
