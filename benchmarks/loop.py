"""The loop's steps over a work folder: data, models, conversion, release. The demo and the e2e tests call them.

WORK/data/       events.parquet (pXTR filled), catalogue.parquet, users.parquet
WORK/ckpt/       ranker, kuaiformer, kir-1, kir-2
WORK/models/     converted and verified models, by name of their checkpoint
WORK/server/     the server bundle        WORK/cdn/  what phones download
WORK/feedback/   event files that the server wrote
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Log = Callable[[str], None]
DAY_MS = 86_400_000


@dataclass(frozen=True)
class LoopConfig:
    """One dial, `preset`; budgets of the training loops in seconds (two cores), for machines slower than ours.

    utc_offset_hours  between UTC and the users' days: 0 in the simulator, 8 for KuaiRand
    """

    preset: str = "tiny"
    seed: int = 0
    ranker_seconds: float = 30.0
    kuaiformer_seconds: float = 40.0
    kir_seconds: float = 45.0
    tune_seconds: float = 12.0
    kir_epochs: int = 3
    utc_offset_hours: float = 0.0


@dataclass
class Stopwatch:
    """Wall time per stage, told as it goes."""

    log: Log
    stages: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.log(f"── {name}")
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.stages.append({"name": name, "seconds": round(seconds, 2)})
        self.log(f"   {seconds:.1f} s")

    @property
    def total_seconds(self) -> float:
        return float(sum(stage["seconds"] for stage in self.stages))


@dataclass(frozen=True)
class LoopPaths:
    """Where things lie in a work folder."""

    work: Path

    @property
    def events(self) -> Path:
        return self.work / "data" / "events.parquet"

    @property
    def catalogue(self) -> Path:
        return self.work / "data" / "catalogue.parquet"

    @property
    def users(self) -> Path:
        return self.work / "data" / "users.parquet"

    @property
    def bundle(self) -> Path:
        return self.work / "server"

    @property
    def cdn(self) -> Path:
        return self.work / "cdn"

    @property
    def keys(self) -> Path:
        """Of the CDN. In life they lie on other machines (docs/delivery.md)."""
        return self.work / "keys"

    @property
    def root_json(self) -> Path:
        """What a phone trusts: it comes with the app."""
        return self.keys / "root.json"

    @property
    def feedback(self) -> Path:
        return self.work / "feedback"

    def checkpoint(self, name: str) -> Path:
        return self.work / "ckpt" / name

    def model(self, name: str) -> Path:
        return self.work / "models" / name


def prepare_data(paths: LoopPaths, events: Any, items: Any, users: Any, config: LoopConfig) -> Any:
    """Fill pXTR by rankers that saw earlier days only, and write the three files. Returns the events."""
    from contract.catalogue import write_catalogue, write_users
    from contract.parquet import write_events
    from training.ranker_train import RankerPlan, rolling_pxtr

    plan = RankerPlan(seed=config.seed, max_seconds=config.ranker_seconds)
    events = rolling_pxtr(events, plan=plan, utc_offset_hours=config.utc_offset_hours)
    write_events(paths.events, events)
    write_catalogue(paths.catalogue, items)
    write_users(paths.users, users)
    return events


def train_server_models(paths: LoopPaths, events: Any, items: Any, users: Any, config: LoopConfig) -> dict[str, Any]:
    """KuaiFormer and the ranker for serving, each measured on the last day first. Returns their metrics."""
    from training.kuaiformer_train import train_kuaiformer
    from training.ranker_train import RankerPlan, train_ranker
    from training.readers import LogData
    from training.recipe import Recipe
    from training.retrieval_split import split_of

    ranker = train_ranker(
        events,
        users,
        paths.checkpoint("ranker"),
        plan=RankerPlan(seed=config.seed, max_seconds=config.ranker_seconds),
        utc_offset_hours=config.utc_offset_hours,
        holdout_days=1,
        overwrite=True,
    )
    recipe = Recipe().changed([f"train.seed={config.seed}", f"train.max_seconds={config.kuaiformer_seconds}"])
    retrieval = train_kuaiformer(
        split_of(LogData(events, items, users), "events", utc_offset_hours=config.utc_offset_hours),
        paths.checkpoint("kuaiformer"),
        recipe,
        utc_offset_hours=config.utc_offset_hours,
        overwrite=True,
    )
    assert retrieval is not None  # one process: it leads
    return {"KuaiFormer": dict(retrieval.metrics), "ranker": dict(ranker.metrics)}


def train_reranker(
    paths: LoopPaths, name: str, events: Any, config: LoopConfig, init_from: str = "", log: Log | None = None
) -> Any:
    """KIR from scratch, or the next version of a checkpoint. Returns the Checkpoint.

    Impressions without a time are left to the server's models: with no play and no gap they tell nothing of a session.
    """
    import numpy as np

    from training.kir_train import train_kir

    events = events.take(np.flatnonzero(events["time_ms"] >= 0))

    return train_kir(
        events,
        paths.checkpoint(name),
        config.preset,
        seed=config.seed,
        epochs=1 if init_from else config.kir_epochs,
        max_seconds=config.tune_seconds if init_from else config.kir_seconds,
        init_from=paths.checkpoint(init_from) if init_from else None,
        overwrite=True,
        log=log,
    )


def split_last_day(events: Any, utc_offset_hours: float) -> tuple[Any, Any]:
    """Events before the last day of the log, and that day's. Impressions without a time belong to the first part."""
    import numpy as np

    from training.days import cut_before_last_days

    cut_ms = cut_before_last_days(events, 1, utc_offset_hours)
    late = events["time_ms"] >= cut_ms
    return events.take(np.flatnonzero(~late)), events.take(np.flatnonzero(late))


def convert(paths: LoopPaths, name: str, events: Any, log: Log) -> dict[str, Any]:
    """Convert and verify a checkpoint; a failed gate raises and leaves nothing to publish.

    Returns what the report shows: sizes, parity and speed of every variant, and what ships.
    """
    from convert.model import convert_model

    start = time.perf_counter()
    result = convert_model(
        paths.checkpoint(name),
        paths.model(name),
        data=events,
        overwrite=True,
        progress=lambda line: log(f"   {line}"),
    )
    seconds = round(time.perf_counter() - start, 1)
    return {"dense_version": result.version, "seconds": seconds, **conversion_rows(result.verification)}


def conversion_rows(verification: Any) -> dict[str, Any]:
    """The verification as the report's tables want it: graph -> variants, what ships, and what one phone downloads."""
    graphs: dict[str, dict[str, Any]] = {}
    for row in verification.rows:
        graph = graphs.setdefault(row.graph, {"ship": verification.shipped.get(row.graph, ""), "variants": {}})
        if row.variant == "onnx":
            continue
        graph["variants"][row.variant] = {
            "bytes": row.n_bytes,
            "max_abs": row.max_abs,
            "tau": row.tau,
            "top1": row.top1,
            "invoke_us": row.latency_p50_us,
            "passed": row.passed,
        }
    return {
        "graphs": graphs,
        "download_bytes": verification.shipped_bytes,
        "together": {"tau": verification.together.tau, "top1": verification.together.top1},
    }
