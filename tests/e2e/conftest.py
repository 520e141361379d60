"""One small loop for all end-to-end tests: simulated, trained, converted and bundled once per run, by real code only.

LOOP/ckpt/{ranker,kuaiformer,kir-1,kir-2}, LOOP/models/{kir-1,kir-2}, LOOP/server (rows of kir-1), LOOP/cdn (kir-1),
signed by LOOP/keys. Tests copy what they change. Workers of one run share it through a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loop import LoopConfig, LoopPaths, convert, prepare_data, split_last_day, train_reranker
from benchmarks.server_process import ServerProcess
from training.simulator import SimConfig, World, simulate_logs

WORLD = SimConfig(n_users=60, n_items=400, days=4, seed=5)
DAY_MS = 86_400_000


@dataclass(frozen=True)
class SmallLoop:
    """Paths of the loop, and the two dense versions."""

    paths: LoopPaths
    first: str
    second: str

    def copy_serving(self, to: Path) -> LoopPaths:
        """A server bundle and a CDN of the test's own."""
        shutil.copytree(self.paths.bundle, to / "server")
        shutil.copytree(self.paths.cdn, to / "cdn")
        return LoopPaths(to)


def _build(work: Path) -> None:
    from convert.bundle import write_bundle
    from convert.publish import publish
    from convert.trust_keys import make_keys
    from training.kuaiformer_train import train_kuaiformer
    from training.ranker_train import RankerPlan, train_ranker
    from training.readers import LogData
    from training.recipe import Recipe
    from training.retrieval_split import split_of

    paths, config = LoopPaths(work), LoopConfig(kir_epochs=1, ranker_seconds=5, kir_seconds=8, tune_seconds=3)
    world = World(WORLD)
    events = prepare_data(paths, simulate_logs(world), world.items, world.users, config)
    train_ranker(events, world.users, paths.checkpoint("ranker"), plan=RankerPlan(epochs=1, max_seconds=4))
    split = split_of(LogData(events, world.items, world.users), "sim")
    recipe = Recipe().changed(["train.epochs=1", "train.max_seconds=5"])
    train_kuaiformer(split, paths.checkpoint("kuaiformer"), recipe)
    first, last = split_last_day(events, 0.0)
    train_reranker(paths, "kir-1", first, config)
    train_reranker(paths, "kir-2", last, config, init_from="kir-1")
    for name in ("kir-1", "kir-2"):
        convert(paths, name, events, lambda line: None)
    write_bundle(
        paths.bundle,
        retrieval=paths.checkpoint("kuaiformer"),
        ranker=paths.checkpoint("ranker"),
        kir=[paths.checkpoint("kir-1")],
        catalogue=paths.catalogue,
        users=paths.users,
        histories=paths.events,
    )
    make_keys(paths.keys)
    publish(paths.model("kir-1"), paths.cdn, keys=paths.keys)


@pytest.fixture(scope="session")
def small_loop(tmp_path_factory: pytest.TempPathFactory) -> SmallLoop:
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    work, done = shared / "small-loop", shared / "small-loop.done"
    with open(shared / "small-loop.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(work, ignore_errors=True)
            _build(work)
            done.touch()
    paths = LoopPaths(work)
    versions = [json.loads((paths.checkpoint(n) / "config.json").read_text())["version"] for n in ("kir-1", "kir-2")]
    assert versions[0] != versions[1]
    return SmallLoop(paths, *versions)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start `kir serve` processes on a bundle and a CDN; all are stopped at the end of the test."""
    started: list[ServerProcess] = []

    def start(paths: LoopPaths, *flags: str) -> ServerProcess:
        server = ServerProcess(paths.bundle, paths.cdn, tmp_path / f"server-{len(started)}", ["--client-clock", *flags])
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def world() -> World:
    return World(WORLD)


def feedback_of(world: Any, session: Any, video_id: int) -> Any:
    """What the simulated user does with a video, as the app would report it."""
    from benchmarks.edge_arm import signals_of
    from edge import Feedback

    item = int((world.items.video_id == video_id).nonzero()[0][0])
    response = session.response(item) if session.done else session.step(item)
    return Feedback(video_id, response.play_time_ms, signals_of(response.signals), has_next=response.has_next)
