"""A reranker to time: a checkpoint as it is, or random weights of a preset at any L and N, converted and published.

Random weights cost what trained ones do; a trained checkpoint keeps its L and may be given other N buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.edge_swiper import START_MS
from contract.errors import InputError

if TYPE_CHECKING:
    from contract.events import Events
    from convert.source import KirSource
    from edge import InstalledModel

KEYS_A_TABLE = 2_000
WINDOWS = 24  # held-out samples of the verification: random weights rank nothing worth more


@dataclass(frozen=True, eq=False)
class Subject:
    """installed: as a phone has it, golden cases and whole net included; onnx: the exported graphs by key."""

    installed: InstalledModel
    source: KirSource
    log: Events
    onnx: dict[str, Path]

    def page(self, n: int, number: int) -> bytes:
        """A page of n candidates over videos that the page before did not hold, as a server sends it."""
        from convert.golden import make_page

        videos = np.unique(self.log["video_id"], return_index=True)[1]
        if len(videos) < 2 * n:
            raise InputError("too few videos for two pages in a row", got=len(videos), allowed=f"from {2 * n}")
        half = videos[number % 2 :: 2]
        at = np.random.default_rng([number, n]).permutation(half)[:n]
        return make_page(self.source, self.log, at, 0, f"page-{number}", START_MS)


def make_subject(
    checkpoint: Path | None, preset: str, L: int, buckets: Sequence[int], folder: Path, recipes: Sequence[str] = ()
) -> Subject:
    """Convert and publish under `folder`. checkpoint: None = random weights of `preset` with L. recipes: none named =
    those that `kir convert` takes."""
    from convert.model import convert_model
    from convert.publish import publish
    from convert.source import load_source
    from convert.windows import synthetic_events
    from edge import ModelStore

    made = _random(preset, L, buckets, folder / "checkpoint") if checkpoint is None else checkpoint
    stages = folder / "stages"
    chosen: dict[str, Any] = {"recipes": recipes, "allow_synthetic": True} if recipes else {}
    convert_model(made, folder / "converted", windows=WINDOWS, stages=stages, **chosen)
    publish(folder / "converted", folder / "cdn")
    store = ModelStore(folder / "cache", folder / "cdn", fetch="all")
    version = store.update()
    assert version is not None  # the cache is new
    source = load_source(made)
    onnx = {path.stem.replace("-", "/", 1): path for path in stages.rglob("*.onnx")}
    return Subject(store.activate(version), source, synthetic_events(source), onnx)


def _random(preset: str, L: int, buckets: Sequence[int], out: Path) -> Path:
    import torch

    from contract.specs import kir_spec
    from training.checkpoint import save_checkpoint
    from training.kir_config import KirConfig
    from training.kir_model import Kir
    from training.tables import SparseTables

    torch.manual_seed(0)
    config = replace(KirConfig.of(preset), watched=L, buckets=tuple(buckets))
    spec = kir_spec()
    keys = np.arange(1, KEYS_A_TABLE + 1, dtype=np.uint64)
    tables = SparseTables.from_spec_and_keys(spec, dict.fromkeys(spec.tables, keys), seed=0)
    about: dict[str, Any] = {"seed": 0, "weights": "random"}
    save_checkpoint(
        out,
        kind="kir",
        model=Kir(config, spec),
        tables=tables,
        spec=spec,
        model_config=config.to_json(),
        training=about,
        metrics={},
        card_text=f"# {preset}, random weights\n",
    )
    return out
