"""`kir bench load`: pages by each refresh rule, every byte that crosses the socket, the table, wrong uses."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.load import BASE, CONTROL, Load, _table, arms_of, measure_load
from benchmarks.load_session import RULES, LoadArm, Meter, Traffic, Visit, live, visits_of
from benchmarks.server_process import ServerProcess
from contract.errors import InputError, KirError
from contract.rows import FLOAT16, INT8
from edge import Engine, FeedbackClient, InstalledModel, PageClient
from kir import main
from server_stub.config import ServerConfig
from server_stub.server import Backend
from server_stub.store import EmbeddingStore
from server_stub.testing import FakeRecommender, InProcessServer, fake_tables
from tests.edge import tiny_model
from training.simulator import SimConfig, World


@pytest.fixture(scope="module")
def world() -> World:
    return World(SimConfig(n_users=12, n_items=160, days=2, max_steps=12))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(InstalledModel.open_published(tiny_model.shared_cdn() / "models/kir-a"))


class Local:
    """An in-process server as the bench sees one, with the requests that crossed the socket."""

    def __init__(self, server: InProcessServer):
        self.server, self.grpc_address = server, server.address

    def cpu_ms(self) -> float:
        return 1000.0 * time.process_time()


@contextmanager
def serving(world: World, version: str = "kir-a") -> Iterator[Local]:
    recommender, store = FakeRecommender(world.items), EmbeddingStore()
    store.add_version(version, tiny_model.SPEC, fake_tables(tiny_model.SPEC, world.items), rows_revision=1)
    config = ServerConfig(client_clock=True)
    with InProcessServer(config, Backend(recommender, store, current=version)) as server:
        yield Local(server)


def lived(world: World, engine: Engine, arm: LoadArm, size: int, visit: Visit, version: str = "kir-a") -> Traffic:
    with serving(world, version) as server:
        pages, sink = PageClient(server.grpc_address), FeedbackClient(server.grpc_address)
        try:
            return live(world, visit, arm, size, engine, Meter(pages, sink))
        finally:
            pages.close()
            sink.close()


@pytest.fixture(scope="module")
def visit(world) -> Visit:
    """The longest of some."""
    visits = visits_of(world, 6)

    def length(one: Visit) -> int:
        session, n = world.session(one.user_index, one.seed, one.start_ms), 0
        while not session.done:
            session.step(n)
            n += 1
        return n

    return max(visits, key=length)


def test_visits_are_the_same_for_every_arm(world):
    visits = visits_of(world, 50)
    assert visits == visits_of(world, 50)
    assert visits != visits_of(world, 50, seed=1)
    assert len({one.user_index for one in visits}) == len(visits) == 12
    assert min(one.start_ms for one in visits) >= world.config.start_ms + 2 * 86_400_000


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize(("rule", "shown_of_a_page"), [("whole", 4), ("half", 2)])
def test_a_page_comes_by_its_rule(world, engine, visit, rerank, rule, shown_of_a_page):
    found = lived(world, engine, LoadArm(rerank, rule), 4, visit)
    assert found.swipes > 4
    assert found.pages == math.ceil(found.swipes / shown_of_a_page)
    assert not found.dry
    assert (found.row_bytes > 0) is rerank
    assert found.row_bytes < found.page_bytes
    assert found.feedback_bytes > 20 * found.swipes


def test_the_shipped_client_asks_early_and_drops_nothing(world, engine, visit):
    found = lived(world, engine, LoadArm(True, "pool"), 8, visit)
    # 8 candidates: below 6 after three swipes, then every eight
    assert found.pages == 1 + math.ceil(max(found.swipes - 3, 0) / 8)


def test_bytes_are_what_crosses_the_socket(world, engine, visit):
    """Counted again at the server's door."""
    with serving(world) as server:
        answers = {"in": 0, "out": 0}
        maker = server.server.server.pages
        answer = maker.answer

        def counted(raw: bytes, *rest: object) -> bytes:
            out = answer(raw, *rest)
            answers["in"] += len(raw)
            answers["out"] += len(out)
            return out

        maker.answer = counted
        pages, sink = PageClient(server.grpc_address), FeedbackClient(server.grpc_address)
        found = live(world, visit, LoadArm(True, "half"), 4, engine, Meter(pages, sink))
        pages.close()
        sink.close()
    assert found.request_bytes == answers["in"]
    assert 0 <= answers["out"] - found.page_bytes <= 6 * found.pages  # the oneof around a page


def test_float16_rows_weigh_more_and_choose_alike(world, engine, visit):
    small, large = (lived(world, engine, LoadArm(True, "half", one), 4, visit) for one in (INT8, FLOAT16))
    assert small.row_bytes < large.row_bytes
    assert small.pages == large.pages


def test_a_session_is_the_same_again(world, engine, visit):
    found = [lived(world, engine, LoadArm(True, "half"), 4, visit) for _ in range(2)]
    assert found[0].watch_ms == found[1].watch_ms
    assert found[0].pages == found[1].pages


def test_a_fallback_is_no_measurement(world, engine, visit):
    with pytest.raises(KirError, match="did not choose"):
        lived(world, engine, LoadArm(True, "half"), 4, visit, version="kir-other")
    assert lived(world, engine, LoadArm(False, "half"), 4, visit, version="kir-other").swipes


def test_a_session_may_run_dry(world, engine, visit):
    few = replace(world.items, **{one.name: getattr(world.items, one.name)[:6] for one in fields(world.items)})
    short = SimpleNamespace(items=few, users=world.users, session=world.session)
    found = lived(short, engine, LoadArm(False, "whole"), 4, visit)
    assert (found.dry, found.swipes, found.pages) == (1, 6, 2)


def test_arms(engine):
    names = [arm.name for arm in arms_of(engine)]
    assert names == [
        "server order, whole", "server order, half", "rerank, whole", "rerank, half", "rerank, pool",
        "rerank, half, float16",
    ]  # fmt: skip
    assert LoadArm(True, "pool").pool.max_pages == 2
    assert CONTROL.pool.max_pages == 1
    rowless = SimpleNamespace(spec=tiny_model.SPEC.without_served())
    assert FLOAT16 not in [arm.encoding for arm in arms_of(rowless)]


def test_the_result_adds_up(world, engine):
    said: list[str] = []
    result, table = measure_load(world, engine, lambda: serving(world), page_sizes=[4, 8], sessions=3, log=said.append)
    assert len(said) == len(result["rows"]) == 12
    assert json.loads(json.dumps(result)) == result
    assert all(rule in "\n".join(result["protocol"]) for rule in RULES)
    for line in result["protocol"]:
        assert line in table
    rows = {(row["page_size"], row["arm"]): row for row in result["rows"]}
    base, half = rows[4, "server order, whole"], rows[4, "rerank, half"]
    assert base["watch_s_against_server_whole"]["mean"] == 0
    assert half["watch_s_against_server_whole"]["mean"] == pytest.approx(half["watch_s"] - base["watch_s"])
    assert (base["rows"], half["rows"]) == ("none", "int8")
    assert rows[8, "rerank, half, float16"]["rows"] == "float16"
    assert half["per_100_swipes"]["pages"] > base["per_100_swipes"]["pages"]
    assert half["per_100_swipes"]["page_bytes"] > base["per_100_swipes"]["page_bytes"]
    assert half["per_100_swipes"]["cpu_ms"] > 0
    assert half["sessions"] == 3
    assert half["swipes_per_session"] == pytest.approx(half["swipes"] / 3)
    for bad in ({"sessions": 0}, {"page_sizes": []}, {"page_sizes": [0]}):
        with pytest.raises(InputError, match="start at 1"):
            measure_load(world, engine, lambda: serving(world), **bad)


def test_figures_are_per_100_swipes():
    sessions = (
        Traffic(swipes=10, pages=2, page_bytes=500, watch_ms=4_000),
        Traffic(swipes=30, pages=4, watch_ms=2_000),
    )
    load = Load(6, BASE, sessions, cpu_ms=80.0)
    assert load.per_100("pages") == 15
    assert load.per_100("page_bytes") == 1250
    assert load.per_100("cpu_ms") == 200
    assert load.watch_s.tolist() == [4.0, 2.0]
    other = Load(6, CONTROL, (Traffic(swipes=1, watch_ms=5_000), Traffic(swipes=1, watch_ms=3_000, dry=1)), math.nan)
    assert other.gain(load, np.array([0, 1])).mean == 1.0
    table = "\n".join(_table([one.to_dict(load, np.array([0, 1])) for one in (load, other)]))
    assert "–" in table
    assert "+1.0 [+1.0, +1.0] *" in table
    assert "1 sessions ended for want of videos" in table


def test_processor_time_is_the_processs(tmp_path):
    process = ServerProcess(tmp_path, tmp_path, tmp_path)
    assert math.isnan(process.cpu_ms())
    process._process = SimpleNamespace(pid=os.getpid())
    assert process.cpu_ms() == pytest.approx(1000 * time.process_time(), abs=60)
    process._process = SimpleNamespace(pid=2**31 - 1)
    assert math.isnan(process.cpu_ms())


def test_without_a_demo_there_is_one_line(tmp_path, capsys):
    assert main(["bench", "load", "--work", str(tmp_path)]) == 2
    assert "no folder of a finished demo" in capsys.readouterr().err
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone/phones.json").write_text(json.dumps({"viewer": {"kind": "scripted"}}))
    assert main(["bench", "load", "--work", str(tmp_path)]) == 2
    assert "real logs" in capsys.readouterr().err
