"""One log, both ways: the scores that training sees of each impression, and those of a phone that lives the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.log_replay import LoggedPages
from contract.events import Events
from contract.parquet import read_events
from contract.rows import INT8, decode_rows, encode_rows
from contract.vocabulary import SIGNALS
from edge import DeviceState, EdgeSession, Engine, FakeClock, Feedback, InstalledModel, PoolConfig, SessionConfig
from tests.e2e.conftest import SmallLoop
from training.checkpoint import Checkpoint, load_checkpoint
from training.kir import load_kir
from training.kir_data import Batches, prepare
from training.kir_eval import score
from training.kir_train import KirTask

USERS = 6
ROUNDING = 1e-4  # of logits: float32 in two engines, twenty videos deep; 2e-6 where it was measured


def diary(path: Path) -> Events:
    """A few users' impressions in their order, each video once; every one the first of a page of its own."""
    log = read_events(path)
    some = np.flatnonzero(np.isin(log["user_id"], np.unique(log["user_id"])[:USERS]))
    log = log.take(some[np.lexsort((log["time_ms"][some], log["user_id"][some]))])
    pairs = np.stack([log["user_id"], log["video_id"]], axis=1)
    log = log.take(np.sort(np.unique(pairs, axis=0, return_index=True)[1]))
    n = len(log)
    position = np.concatenate([np.arange(size) for size in np.unique(log["user_id"], return_counts=True)[1]])
    return log.with_columns(
        server_position=np.zeros(n, int), page_id=np.array([f"p{i}" for i in range(n)], object), position=position
    )


def scores_in_training(checkpoint: Checkpoint, log: Events) -> NDArray[np.float32]:
    """With the rows as a server would send them."""
    net, tables = load_kir(checkpoint), checkpoint.tables
    data = prepare(log, net.config.watched)
    np.testing.assert_array_equal(data.events["time_ms"], log["time_ms"])
    for weight in tables.weights.values():
        with torch.no_grad():
            weight.copy_(torch.from_numpy(decode_rows(encode_rows(weight.numpy(), INT8))))
    found, rows = score(KirTask(net, tables), Batches(data, net.spec, tables, np.ones(len(log), bool), windows=64))
    return found[np.argsort(rows)]


def scores_on_a_phone(installed: InstalledModel, pages: LoggedPages, log: Events) -> NDArray[np.float32]:
    """Page, swipe and feedback in the log's order, at the log's times."""
    engine, found = Engine(installed), []
    for user in np.unique(log["user_id"]):
        mine = np.flatnonzero(log["user_id"] == user)
        clock = FakeClock(wall_ms=int(log["time_ms"][mine[0]]))
        config = SessionConfig(pool=PoolConfig(max_pages=1))
        session = EdgeSession(int(user), engine, clock=clock, config=config, session_id=1)
        session.start()
        for i in mine:
            clock.advance(max(0, int(log["time_ms"][i]) - clock.wall_ms()))
            session.on_page(pages.page(np.array([i])))
            video, buffered_ms = int(log["video_id"][i]), int(log["buffered_ms"][i])
            device = DeviceState(
                max(0, int(log["network"][i])), buffered_ms={video: buffered_ms} if buffered_ms >= 0 else {}
            )
            choice = session.next(device)
            assert (choice.video_id, choice.reason) == (video, "")
            found.append(choice.scores_NT[0])
            session.maintain()
            play_ms = int(log["play_time_ms"][i])
            clock.advance(max(0, play_ms))
            signals = {name: bool(value) for name, value in zip(SIGNALS, log.signals[i], strict=True) if value >= 0}
            told = Feedback(video, play_ms if play_ms >= 0 else None, signals, shown_at_ms=int(log["time_ms"][i]))
            session.feedback(told)
    return np.stack(found)


def test_a_phone_that_lives_the_log_gets_the_scores_of_training(small_loop: SmallLoop) -> None:
    path = small_loop.paths.checkpoint("kir-1")
    log = diary(small_loop.paths.events)
    shipped = InstalledModel.open_published(small_loop.paths.cdn)
    manifest = replace(shipped.manifest, graphs=tuple(replace(g, ship="float32") for g in shipped.manifest.graphs))
    pages = LoggedPages(log, manifest.spec, load_checkpoint(path).tables, manifest.dense_version, 0)
    there = scores_on_a_phone(replace(shipped, manifest=manifest), pages, log)
    here = scores_in_training(load_checkpoint(path), log)
    assert len(log) > 100
    assert here.std(axis=0).min() > 1000 * ROUNDING, "scores that hardly differ prove nothing"
    np.testing.assert_allclose(there, here, atol=ROUNDING)
