"""Parts of `kir demo`: its work folder, its worker processes, what phones measured, and the report's notes."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import loop
from benchmarks.loop import LoopConfig, LoopPaths
from benchmarks.stats import percentiles
from contract.errors import InputError, KirError

MARK = ".kir-demo"
PARTS = ("data", "ckpt", "models", "server", "cdn", "keys", "feedback", "phone", "bench")
CLOSED_LOOP_NOTE = (
    "per_swipe against one_shot is what reacting within the session is worth; in the control world there is nothing to "
    "react to, so there it should vanish. one_shot against server order is what the reranker knows beyond the server's "
    "pXTR order. All pages were asked for when the session began: the server's order stands for a server that can't "
    "answer within the session. Every session starts with an empty watched list. The oracle is greedy on the true "
    "hidden state, which no recommender can know."
)
REPLAY_NOTE = (
    "The model of the first version, trained without the last day, replays that day. Sessions in KuaiRand-Pure are "
    "short (1.85 impressions per user-day), so gains within a session can only be small here; the simulator carries "
    "that claim."
)


def claim_folder(out: Path) -> None:
    """Make the work folder, or clear what an earlier demo left in it: a phone's old model would not fit the new server.

    Raises InputError for a folder with files of somebody else's; nothing in it is touched then.
    """
    mark = out / MARK
    if out.exists() and not mark.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("--out is not empty, and not a demo's folder", where=out, fix="choose another --out")
    for name in PARTS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("report.html", "report.json", "server.log", "ready.json"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text("kir demo keeps its work here and clears it when it is run again\n")


def rate(signal: Any) -> float:
    """Share of ones among the known values of a signal."""
    return float((signal == 1).sum() / max(1, (signal >= 0).sum()))


def two_workers() -> ProcessPoolExecutor:
    """Fresh processes with one thread each: torch and TensorFlow don't survive a fork."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def train_server_models(paths: LoopPaths, config: LoopConfig) -> dict[str, Any]:
    """In a worker: retrieval and ranker of the loop's events; metrics by model."""
    from contract.catalogue import read_catalogue, read_users
    from contract.parquet import read_events

    events = read_events(paths.events)
    return loop.train_server_models(paths, events, read_catalogue(paths.catalogue), read_users(paths.users), config)


def train_and_convert_first(paths: LoopPaths, config: LoopConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """In a worker: kir-1 without the last day, from which the next version learns and on which the replay is judged."""
    from contract.parquet import read_events

    events = read_events(paths.events)
    before = loop.split_last_day(events, config.utc_offset_hours)[0]
    kir = loop.train_reranker(paths, "kir-1", before, config)
    return dict(kir.metrics), loop.convert(paths, "kir-1", events, print)


def train_and_convert_second(paths: LoopPaths, config: LoopConfig, tune: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """In a worker: kir-1 trained further on the events `tune`; its metrics and what its conversion found."""
    from contract.parquet import read_events

    events = read_events(tune)
    kir = loop.train_reranker(paths, "kir-2", events, config, init_from="kir-1")
    return dict(kir.metrics), loop.convert(paths, "kir-2", events, print)


def headline(metrics: dict[str, Any]) -> str:
    """The few figures that a person wants to see go by."""
    retrieval, ranker = ["recall@10", "recall@50", "popularity_recall@10"], ["auc_long_view", "gauc", "item_rate_gauc"]
    wanted = [*retrieval, *ranker, "gauc_effective_view", "server_gauc_effective_view", "gauc_watch_time"]
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in wanted if name in metrics)


def phone_result(process: subprocess.Popen[bytes], result: Path, timeout_s: float = 240.0) -> dict[str, Any]:
    """Wait for a phone and read what it measured. Raises KirError with the end of its log."""
    log = result.with_name(result.name.replace("-result.json", ".log"))
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        code = -9
    if code != 0:
        raise KirError("the phone process failed", where=log, got=log.read_text(errors="replace")[-600:])
    found: dict[str, Any] = json.loads(result.read_text())
    if not found["choosers"].get("model"):
        raise KirError("the model chose no video on the phone", where=result, got=found["choosers"], allowed="model")
    return found


def swipe_summary(quiet: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """Latencies of the quiet phones; the log of both (the update ran beside a training process)."""
    stages = quiet["stages"]
    choosers: dict[str, int] = {}
    for part in (quiet, update):
        for who, count in part["choosers"].items():
            choosers[who] = choosers.get(who, 0) + count
    return {
        "latency_us": percentiles(quiet["samples_us"]),
        "samples_us": [round(v, 1) for v in quiet["samples_us"]],
        "stages_us": {name: float(np.median([s[name] for s in stages])) for name in stages[0]} if stages else {},
        "page_arrival_us": percentiles(quiet["page_arrival_us"]),
        "page_round_trip_us": percentiles(quiet["page_round_trip_us"]),
        "page_bytes": percentiles(quiet["page_bytes"]),
        "choosers": choosers,
        "versions": {"phones": quiet["versions"], "update": update["versions"]},
        "log": quiet["log"] + update["log"],
    }
