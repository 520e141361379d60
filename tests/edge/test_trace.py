"""The trace: valid Chrome trace events that nest, bounded, and without a word about the user."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.errors import InputError
from edge import (
    BeamPlan,
    ChoicePolicy,
    EdgeSession,
    FakeClock,
    FakePageClient,
    Feedback,
    FeedbackUploader,
    InstalledModel,
    SessionConfig,
    StateFile,
    Trace,
)
from tests.edge.test_upload import FAST, Sink
from tests.edge.tiny_page import page_bytes

Open = Callable[[str], InstalledModel]
USER_ID, SESSION_ID = 918_273_645, 987_654_321_987


def run(published: Open, clock: FakeClock, trace: Trace, tmp_path: Path, **config: Any) -> EdgeSession:
    pages = FakePageClient(
        [
            page_bytes(range(7_000_101, 7_000_109), page_id="secret-page"),
            lambda r: page_bytes(range(7_000_201, 7_000_209), "kir-a", r.watched_ids),
        ]
    )
    session = EdgeSession(
        USER_ID,
        published("kir-a"),
        pages,
        FeedbackUploader(Sink(), retry=FAST),
        clock=clock,
        config=SessionConfig(**config),
        session_id=SESSION_ID,
        state=StateFile(tmp_path / "state"),
        trace=trace,
    )
    session.start()
    session.fetch_page()
    for _ in range(6):
        choice = session.next()
        session.maintain()
        session.feedback(Feedback(choice.video_id, 2_345, {"like": True}))
        session.wait_page(10)
    session.close()
    return session


def spans_of(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in told["traceEvents"] if event["ph"] == "X"]


class TestFile:
    def test_it_is_chromes_format_and_tells_every_stage(
        self, published: Open, clock: FakeClock, tmp_path: Path
    ) -> None:
        path = tmp_path / "out" / "trace.json"
        run(published, clock, Trace(path), tmp_path)
        told = json.loads(path.read_text())
        assert set(told) == {"traceEvents", "displayTimeUnit", "otherData"}
        for event in spans_of(told):
            assert set(event) == {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}
            assert event["ts"] >= 0
            assert event["dur"] >= 0
        names = [event["name"] for event in spans_of(told)]
        assert set(names) == {
            *("page", "decode", "rows", "page_graph", "watch", "fetch", "maintain", "feedback", "save", "upload"),
            *("swipe", "settle", "choose", "features", "engine"),
        }
        assert names.count("swipe") == names.count("engine") == 6
        threads = {e["args"]["name"]: e["tid"] for e in told["traceEvents"] if e["name"] == "thread_name"}
        assert set(threads) == {"session", "pages", "feedback"}
        assert {e["tid"] for e in spans_of(told) if e["name"] == "upload"} == {threads["feedback"]}
        assert {e["tid"] for e in spans_of(told) if e["name"] == "swipe"} == {threads["session"]}

    def test_spans_of_a_thread_nest(self, published: Open, clock: FakeClock, tmp_path: Path) -> None:
        buffer = io.StringIO()
        plan = BeamPlan(beams=2, depth=2)
        run(published, clock, Trace(buffer), tmp_path, policy=ChoicePolicy(mode="beam", plan=plan, budget_ms=None))
        told = json.loads(buffer.getvalue())
        around = {}
        for thread in {event["tid"] for event in spans_of(told)}:
            stack: list[tuple[str, float]] = []
            for event in [e for e in spans_of(told) if e["tid"] == thread]:
                end = event["ts"] + event["dur"]
                while stack and stack[-1][1] <= event["ts"] + 1e-3:
                    stack.pop()
                if stack:
                    assert end <= stack[-1][1] + 1e-3, (event, stack)
                    around.setdefault(event["name"], set()).add(stack[-1][0])
                stack.append((event["name"], end))
        assert around["features"] == around["engine"] == around["search"] == {"choose"}
        assert around["choose"] == around["settle"] == {"swipe"}
        assert around["page_graph"] == around["rows"] == around["decode"] == {"page"}
        assert around["save"] == {"maintain"}

    def test_nothing_of_the_user_is_in_it(self, published: Open, clock: FakeClock, tmp_path: Path) -> None:
        buffer = io.StringIO()
        run(published, clock, Trace(buffer), tmp_path)
        told = json.loads(buffer.getvalue())
        for event in spans_of(told):
            del event["ts"], event["dur"]
            assert set(event["args"]) <= {"candidates", "events"}
            assert all(isinstance(n, int) and n < 1_000 for n in event["args"].values())
        text = json.dumps(told)
        for secret in (str(USER_ID), str(SESSION_ID), "7000", "secret", "kir-a", "2345", "like"):
            assert secret not in text, secret


class TestBounds:
    def test_the_newest_spans_stay(self) -> None:
        buffer = io.StringIO()
        trace = Trace(buffer, capacity=3)
        for number in range(5):
            trace.add("swipe", number * 1_000, number * 1_000 + 500)
        trace.save()
        told = json.loads(buffer.getvalue())
        assert [event["ts"] for event in spans_of(told)] == [0.0, 1.0, 2.0]
        assert told["otherData"] == {"dropped": 2}

    def test_an_empty_trace(self) -> None:
        buffer = io.StringIO()
        Trace(buffer).save()
        assert json.loads(buffer.getvalue())["traceEvents"] == []

    def test_limits_are_checked(self) -> None:
        with pytest.raises(InputError, match="capacity"):
            Trace(io.StringIO(), capacity=0)


def test_a_trace_that_can_not_be_written_costs_nothing(published: Open, clock: FakeClock, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    session = run(published, clock, Trace(tmp_path / "file" / "trace.json"), tmp_path)
    assert isinstance(session.last_error, OSError)
    assert (tmp_path / "file").read_text() == "here"


def test_off_by_default(session: EdgeSession) -> None:
    assert session._telemetry.trace is None
