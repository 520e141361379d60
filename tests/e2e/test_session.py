"""A phone against real processes: pages over gRPC, the model over HTTP, swipes, feedback into Parquet; and the same
when the server dies, the model is gone, or the versions differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.server_process import ServerProcess
from contract.parquet import read_events
from edge import (
    Chooser,
    EdgeSession,
    FakeClock,
    FeedbackClient,
    FeedbackUploader,
    ModelStore,
    PageClient,
    PoolConfig,
    PoolExhausted,
    Retry,
    SessionConfig,
)
from tests.e2e.conftest import DAY_MS, WORLD, SmallLoop, feedback_of

START_MS = WORLD.start_ms + WORLD.days * DAY_MS + 10 * 3_600_000
Serve = Callable[..., ServerProcess]


class Phone:
    """An edge session with everything real, and the simulated user who holds it."""

    def __init__(self, server: ServerProcess, store: ModelStore, world: Any, user: int = 3, **config: Any):
        self.world, self.clock = world, FakeClock(wall_ms=START_MS)
        self.user_id = int(world.users.user_id[user])
        self.viewer = world.session(user, 77, START_MS)
        self.pages = PageClient(server.grpc_address, deadline_s=10.0, retry=Retry(attempts=2, backoff_s=0.05))
        self.sink = FeedbackClient(server.grpc_address)
        self.session = EdgeSession(
            self.user_id,
            store,
            self.pages,
            FeedbackUploader(self.sink),
            clock=self.clock,
            config=SessionConfig(retry_ms=100, **config),
        )
        self.started = self.session.start()

    def swipe(self) -> Any:
        choice = self.session.next()
        self.session.maintain()
        feedback = feedback_of(self.world, self.viewer, choice.video_id)
        self.clock.advance(max(500, self.viewer.now_ms - self.clock.wall_ms()))
        self.session.feedback(feedback)
        return choice

    def close(self) -> None:
        self.session.close()
        self.pages.close()
        self.sink.close()


@contextmanager
def phone(server: ServerProcess, store: ModelStore, world: Any, **config: Any) -> Iterator[Phone]:
    made = Phone(server, store, world, **config)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def store(small_loop: SmallLoop, tmp_path: Path) -> ModelStore:
    """A device that has the first version active, fetched from a directory."""
    made = ModelStore(tmp_path / "cache", small_loop.paths.cdn)
    made.activate(small_loop.first if made.update() else "")
    return made


def events_of(folder: Path, n: int, timeout_s: float = 30.0) -> Any:
    """The server's event files, once they hold n impressions."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if list(folder.glob("*.parquet")):
            events = read_events(folder)
            if len(events) >= n:
                return events
        time.sleep(0.1)
    raise AssertionError(f"no {n} events in {folder}")


def test_a_session_over_sockets_ends_in_event_parquet(
    small_loop: SmallLoop, serve: Serve, world: Any, tmp_path: Path
) -> None:
    """First start over HTTP, 45 swipes through three evictions, and every impression back with what the server knew."""
    server = serve(small_loop.paths, "--events", str(tmp_path / "events"))
    device = ModelStore(tmp_path / "device", server.http_url, root=small_loop.paths.root_json)
    assert device.update() == small_loop.first
    device.activate(small_loop.first)
    with phone(server, device, world) as made:
        assert made.started == ""
        made.session.fetch_page()
        choices, watched = [], []
        for _ in range(45):
            try:
                choices.append(made.swipe())
            except PoolExhausted:
                assert made.session.wait_page(10.0)
                choices.append(made.swipe())
            watched.append(made.session.n_watched)
    assert {choice.chooser for choice in choices} == {Chooser.MODEL}
    assert max(watched) == 20
    assert watched.count(11) == 4  # reached once growing, and after each of three evictions
    events = events_of(tmp_path / "events", 45)
    assert events["video_id"].tolist() == [choice.video_id for choice in choices]
    assert set(events["chooser"]) == {"model"}
    assert set(events["dense_version"]) == {small_loop.first}
    assert np.isfinite(events["pxtr"][:, 1]).all()
    assert (events["duration_ms"] > 0).all()
    assert (events["play_time_ms"] >= 0).all()


def test_the_page_is_the_same_over_http(small_loop: SmallLoop, serve: Serve, world: Any, store: ModelStore) -> None:
    import urllib3

    from contract.v1 import page_pb2

    server = serve(small_loop.paths)
    with phone(server, store, world) as made:
        request = made.session.page_request().to_message()
        over_grpc = made.pages.get_page(made.session.page_request())
    headers = {"Content-Type": "application/x-protobuf"}
    answer = urllib3.request("POST", f"{server.http_url}/v1/page", body=request.SerializeToString(), headers=headers)
    assert answer.status == 200, answer.data
    over_http = page_pb2.GetPageResponse.FromString(answer.data).page
    for page in (over_grpc, over_http):
        page.page_id = "-"
        page.server_time_ms = 0
    assert over_http == over_grpc


def test_a_killed_server_stops_no_swipe_until_the_pool_is_empty(
    small_loop: SmallLoop, serve: Serve, world: Any, store: ModelStore
) -> None:
    server = serve(small_loop.paths, "--soft-ttl-s", "60", "--hard-ttl-s", "120")
    with phone(server, store, world, pool=PoolConfig(prefetch_below=1)) as made:
        added = made.session.fetch_page().added
        assert made.swipe().chooser == Chooser.MODEL
        server.kill()
        made.clock.advance(121_000)  # all that is left has passed its hard TTL: the last tier
        shown = [made.swipe() for _ in range(added - 1)]
        assert len({choice.video_id for choice in shown}) == added - 1
        with pytest.raises(PoolExhausted):
            made.session.next()
        server.start(same_ports=True)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            made.clock.advance(1_000)
            made.session.maintain()
            made.session.wait_page(5.0)
            if len(made.session.pool):
                break
        assert made.swipe().chooser == Chooser.MODEL


def test_fresh_candidates_come_before_expired_ones(
    small_loop: SmallLoop, serve: Serve, world: Any, store: ModelStore
) -> None:
    server = serve(small_loop.paths, "--soft-ttl-s", "60", "--hard-ttl-s", "120")
    with phone(server, store, world) as made:
        made.session.fetch_page()
        made.clock.advance(121_000)
        second = made.session.fetch_page()
        assert {made.swipe().page_id for _ in range(5)} == {second.page_id}


@pytest.mark.parametrize("damage", ["missing", "flipped", "none published"])
def test_without_a_usable_model_the_servers_order_is_shown(
    small_loop: SmallLoop, serve: Serve, world: Any, store: ModelStore, tmp_path: Path, damage: str
) -> None:
    server = serve(small_loop.paths)
    if damage == "none published":
        store = ModelStore(tmp_path / "empty", None)
    for blob in (tmp_path / "cache" / "blobs").iterdir():
        if damage == "missing":
            blob.unlink()
        elif damage == "flipped":
            content = bytearray(blob.read_bytes())
            content[len(content) // 2] ^= 1
            blob.write_bytes(content)
    reason = "no_model" if damage == "none published" else "corrupt_model"
    with phone(server, store, world) as made:
        assert made.started == reason
        made.session.fetch_page()
        choices = [made.swipe() for _ in range(5)]
    assert [choice.candidate_index for choice in choices] == [0, 1, 2, 3, 4]
    assert {(choice.chooser, choice.reason) for choice in choices} == {(Chooser.SERVER_ORDER, reason)}


def test_a_page_for_another_dense_version_and_the_way_back(
    small_loop: SmallLoop, serve: Serve, world: Any, store: ModelStore, tmp_path: Path
) -> None:
    """Live rows of the second version only: rows_status, server order, then the new model at a page boundary."""
    from convert.bundle import add_rows
    from convert.publish import publish

    paths = small_loop.copy_serving(tmp_path / "own")
    add_rows(paths.bundle, small_loop.paths.checkpoint("kir-2"))
    publish(small_loop.paths.model("kir-2"), paths.cdn, keys=small_loop.paths.keys)
    _forget_rows(paths.bundle, small_loop.first)
    server = serve(paths)
    device = ModelStore(tmp_path / "cache", server.http_url, root=small_loop.paths.root_json)
    with phone(server, device, world) as made:
        report = made.session.fetch_page()
        assert report.reason == "rows_status:no_live_version"
        first = [made.swipe() for _ in range(3)]
        assert [choice.candidate_index for choice in first] == [0, 1, 2]
        assert {choice.reason for choice in first} == {"rows_status:no_live_version"}
        assert made.session.dense_version == small_loop.first  # the old one stays until a page fits the new one
        assert made.session.update() == small_loop.second
        assert made.swipe().chooser == Chooser.SERVER_ORDER
        assert made.session.dense_version == small_loop.first
        report = made.session.fetch_page()
        assert report.activated == small_loop.second
        assert made.session.dense_version == small_loop.second
        after = [made.swipe() for _ in range(3)]
    assert {(choice.chooser, choice.dense_version) for choice in after} == {(Chooser.MODEL, small_loop.second)}
    assert device.active_version() == small_loop.second


def _forget_rows(bundle: Path, version: str) -> None:
    """Take one dense version out of a bundle, index included."""
    import json
    import shutil

    shutil.rmtree(bundle / "rows" / version)
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"] = {name: entry for name, entry in index["files"].items() if version not in name}
    (bundle / "bundle.json").write_text(json.dumps(index))
