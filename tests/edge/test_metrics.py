"""Metrics: what is counted, how durations fall into buckets, and that any thread may read."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import InputError, PageError, PoolExhausted, ServerUnavailable
from edge import (
    EdgeSession,
    FakeClock,
    FakePageClient,
    Feedback,
    FeedbackUploader,
    InstalledModel,
    Metrics,
    PoolConfig,
    SessionConfig,
    StateFile,
)
from edge._metrics import BOUNDS_US, PENDING_MAX, Histogram
from tests.edge.test_upload import FAST, Sink
from tests.edge.tiny_page import page_bytes

Open = Callable[[str], InstalledModel]


class TestHistogram:
    @given(st.lists(st.floats(0, 1e8), min_size=1, max_size=50))
    def test_every_duration_falls_into_its_bucket(self, values: list[float]) -> None:
        histogram = Histogram()
        for value in values:
            histogram.record(value)
        told = histogram.snapshot()
        for i, n in enumerate(told["buckets"]):
            low = BOUNDS_US[i - 1] if i else -1.0
            high = BOUNDS_US[i] if i < len(BOUNDS_US) else float("inf")
            assert n == sum(low < value <= high for value in values)
        assert told["count"] == len(values)
        assert told["sum"] == pytest.approx(sum(values), abs=0.1)
        assert told["max"] == pytest.approx(max(values), abs=0.1)

    @given(st.lists(st.floats(1, 1e6), min_size=1, max_size=200), st.sampled_from([50, 90, 99]))
    def test_quantiles_are_right_within_a_bucket(self, values: list[float], percent: int) -> None:
        histogram = Histogram()
        for value in values:
            histogram.record(value)
        exact = sorted(values)[max(0, -(-percent * len(values) // 100) - 1)]
        assert exact / 1.5 <= histogram.snapshot()[f"p{percent}"] <= exact * 1.5

    def test_nothing_recorded(self) -> None:
        told = Histogram().snapshot()
        assert (told["count"], told["p50"], told["max"]) == (0, 0.0, 0.0)


class TestMetrics:
    def test_names_are_those_of_the_table(self) -> None:
        metrics = Metrics()
        with pytest.raises(InputError, match="no such metric"):
            metrics.add("kir.edge.swipe")
        with pytest.raises(InputError, match="no such metric"):
            metrics.observe("kir.edge.x", lambda: 1)

    def test_values_of_an_attribute_are_told_apart(self) -> None:
        metrics = Metrics()
        metrics.add("kir.edge.fallbacks", 2, "no_model")
        metrics.add("kir.edge.fallbacks", 1, "no_rows")
        metrics.observe("kir.edge.uploads", lambda: {"accepted": 3})
        told = metrics.snapshot()
        assert told["kir.edge.fallbacks{reason=no_model}"] == 2
        assert told["kir.edge.fallbacks{reason=no_rows}"] == 1
        assert told["kir.edge.uploads{result=accepted}"] == 3

    def test_swipes_nobody_folds_are_bounded_and_all_counted(self) -> None:
        metrics = Metrics()
        for _ in range(2 * PENDING_MAX):
            metrics.swiped(1.0, 2.0, 3.0, 4.0, 10.0)
        assert len(metrics._pending) == PENDING_MAX
        told = metrics.snapshot()
        assert told["kir.edge.swipes"] == told["kir.edge.swipe.duration"]["count"] == 2 * PENDING_MAX
        assert told["kir.edge.swipe.stage.duration{stage=engine}"]["sum"] == 3.0 * 2 * PENDING_MAX

    def test_reading_while_another_thread_writes(self) -> None:
        metrics, stop, errors = Metrics(), threading.Event(), []

        def read() -> None:
            try:
                while not stop.is_set():
                    json.dumps(metrics.snapshot())
            except Exception as error:
                errors.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(3_000):
            metrics.swiped(1.0, 2.0, 3.0, 4.0, 10.0)
            metrics.add("kir.edge.fallbacks", 1, f"reason-{number}")
            metrics.record("kir.edge.stage.duration", 5.0, f"stage-{number % 50}")
        stop.set()
        reader.join(30)
        assert errors == []
        assert metrics.snapshot()["kir.edge.swipes"] == 3_000


class TestSession:
    def test_a_session_counts_what_happens(self, published: Open, clock: FakeClock, tmp_path: Path) -> None:
        sink = Sink()
        uploader = FeedbackUploader(sink, retry=FAST)
        pages = FakePageClient([page_bytes(range(101, 109)), ServerUnavailable("gone"), b"\xff\xff\xff"])
        session = EdgeSession(
            5,
            published("kir-a"),
            pages,
            uploader,
            clock=clock,
            config=SessionConfig(pool=PoolConfig(prefetch_below=1)),
            state=StateFile(tmp_path / "state"),
        )
        session.start()
        session.fetch_page()
        for _ in range(8):
            choice = session.next()
            session.maintain()
            session.feedback(Feedback(choice.video_id, 2_000))
        session.feedback(Feedback(choice.video_id, None, {"like": True}))
        session.wait_page(10)  # the second answer: gone
        with pytest.raises(PoolExhausted):
            session.next()
        with pytest.raises(PageError):
            session.on_page(b"\xff\xff\xff")
        session.on_page(page_bytes(range(201, 204), status="no_live_version", page_id="p2"))
        session.next()
        told = session.metrics.snapshot()
        assert told["kir.edge.swipes"] == told["kir.edge.swipe.duration"]["count"] == 9
        assert told["kir.edge.fallbacks{reason=rows_status}"] == 1
        assert (told["kir.edge.pages"], told["kir.edge.pages.refused"]) == (2, 1)
        assert told["kir.edge.pages.unscored{reason=rows_status}"] == 1
        assert told["kir.edge.fetch.failures"] == 1
        assert told["kir.edge.pool.exhausted"] == 1
        assert told["kir.edge.pool.candidates"] == 2
        assert told["kir.edge.feedback{outcome=appended}"] == 8
        assert told["kir.edge.feedback{outcome=amended}"] == 1
        assert told["kir.edge.watched.evictions"] == 3
        assert told["kir.edge.watched.videos"] == session.n_watched == 5
        assert told["kir.edge.errors"] == 1
        assert told["kir.edge.state.set_aside"] == 0
        for stage in ("page", "decode", "rows", "page_graph", "watch", "maintain", "feedback", "save", "fetch"):
            assert told[f"kir.edge.stage.duration{{stage={stage}}}"]["count"] > 0, stage
        for stage in ("maintain", "features", "engine", "choice"):
            assert told[f"kir.edge.swipe.stage.duration{{stage={stage}}}"]["count"] == 9, stage
        session.close()
        assert session.metrics.snapshot()["kir.edge.uploads{result=accepted}"] == 9
        json.dumps(told)
        assert {key.partition("{")[0] for key in told} <= set(Metrics.TABLE)

    def test_models_that_come_are_counted(self, session: EdgeSession, published: Open) -> None:
        session.offer(published("kir-b"))
        session.on_page(page_bytes([201], "kir-b"))
        assert session.metrics.snapshot()["kir.edge.model.activations"] == 1

    def test_the_stages_are_those_of_the_choices(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        choices = [session.next() for _ in range(4)]
        told = session.metrics.snapshot()
        for stage in ("features", "engine"):
            want = sum(choice.stages_us[stage] for choice in choices)
            assert told[f"kir.edge.swipe.stage.duration{{stage={stage}}}"]["sum"] == pytest.approx(want, abs=0.1)

    def test_quality_eviction_in_a_session(self, published: Open, clock: FakeClock) -> None:
        """What goes is what the next swipe would have thought least of."""
        config = SessionConfig(pool=PoolConfig(max_candidates=6))
        full = EdgeSession(5, published("kir-a"), clock=clock)
        small = EdgeSession(5, published("kir-a"), clock=clock, config=config)
        for session in (full, small):
            session.start()
            session.on_page(page_bytes(range(101, 105), page_id="a"))
            session.on_page(page_bytes(range(201, 206), page_id="b"))
        whole = full.next()
        assert whole.values_N is not None
        best = sorted(zip(whole.values_N.tolist(), whole.considered, strict=True))[-6:]
        assert set(small.next().considered) == {video_id for _, video_id in best}
        assert small.metrics.snapshot()["kir.edge.pool.evictions{reason=surplus}"] == 3


def test_the_guides_table_is_the_codes(repository: Path) -> None:
    text = (repository / "docs" / "edge.md").read_text()
    rows = re.findall(r"^\| `(kir\.edge\.[a-z_.]+)(?:\{([a-z]+)\})?` \| (\w+) \| (\w+) \|", text, re.MULTILINE)
    assert {name: (attribute, kind, unit) for name, attribute, kind, unit in rows} == {
        name: (metric.attribute, metric.kind, metric.unit) for name, metric in Metrics.TABLE.items()
    }
