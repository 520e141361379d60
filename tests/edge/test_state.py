"""A session's state over a restart: what goes on, what is set aside, what a killed process leaves."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.errors import InputError
from edge import DeviceState, EdgeSession, Engine, FakeClock, Feedback, Outcome, PoolConfig, SessionConfig, StateFile
from edge._history import SHOWN_MAX
from edge._state import KEEP_MS, VERSION
from edge._upload import Event, FeedbackUploader
from tests.edge.test_upload import FAST, Sink
from tests.edge.tiny_model import L
from tests.edge.tiny_page import page_bytes

HOUR_MS = 3_600_000


class Phone:
    """Sessions of one user, one after the other, on one file and one clock."""

    def __init__(self, path: Path, engine: Engine | None = None, user_id: int = 5):
        self.path, self.engine, self.user_id, self.clock = path, engine, user_id, FakeClock()
        self.n_pages = 0

    def start(self, uploader: FeedbackUploader | None = None, **kwargs: Any) -> EdgeSession:
        self.state = StateFile(self.path, **kwargs.pop("limits", {}))
        session = EdgeSession(
            self.user_id, self.engine, uploader=uploader, clock=self.clock, state=self.state, **kwargs
        )
        session.start()
        return session

    def page(self, session: EdgeSession, n: int = 8, **kwargs: Any) -> None:
        self.n_pages += 1
        ids, first = session.page_request().watched_ids, 100 * self.n_pages
        status = "ok" if self.engine else "no_live_version"
        session.on_page(page_bytes(range(first, first + n), "kir-a", ids, page_id=f"p{first}", status=status, **kwargs))

    def watch(self, session: EdgeSession, n: int) -> list[int]:
        """n videos shown and watched; their ids."""
        ids = []
        for _ in range(n):
            if not len(session.pool):
                self.page(session)
            choice = session.next(DeviceState(network=3, volume=0.5))
            session.maintain()
            self.clock.advance(3_000)
            signals = {"like": choice.video_id % 2 == 0}
            session.feedback(Feedback(choice.video_id, choice.video_id * 7 % 9_000, signals, profile_stay_ms=40))
            ids.append(choice.video_id)
        return ids


@pytest.fixture
def phone(tmp_path: Path, engine: Engine) -> Phone:
    return Phone(tmp_path / "user-5.state", engine)


@pytest.fixture
def plain(tmp_path: Path) -> Phone:
    """Without a model: the state is the same, and costs less to make."""
    return Phone(tmp_path / "user-5.state")


def columns(session: EdgeSession) -> dict[str, Any]:
    return {name: column.tolist() for name, column in session._history.watched.columns(1).items()}


class TestRestart:
    def test_the_watched_list_goes_on_as_it_stood(self, phone: Phone) -> None:
        first = phone.start()
        phone.watch(first, L - 1)
        before = columns(first)
        first.close()
        second = phone.start()
        assert phone.state.problem == ""
        for name, values in columns(second).items():
            np.testing.assert_array_equal(values, before[name], err_msg=name)
        assert second.n_watched == L - 1

    @pytest.mark.parametrize("maintained", [True, False])
    def test_a_kill_loses_what_came_after_the_last_maintain_alone(self, phone: Phone, maintained: bool) -> None:
        """An app is killed more often than it is closed: the copy is what a kill leaves."""
        first = phone.start()
        ids = phone.watch(first, 3)
        if maintained:
            first.maintain()
        for end in ("", "-wal"):
            shutil.copy(f"{phone.path}{end}", f"{phone.path}.copy{end}")
        other = Phone(phone.path.with_name(f"{phone.path.name}.copy"), phone.engine)
        second = other.start()
        assert columns(second)["video_id"] == (ids if maintained else ids[:2])
        shown = [one.impression.choice.video_id for one in second._history.impressions()]
        assert shown == ids  # shown before the last maintain, whatever of its feedback

    @pytest.mark.parametrize("n_watched", [1, L - 1, L, L + 2])
    def test_the_swipe_reads_what_a_session_that_never_ended_reads(self, phone: Phone, n_watched: int) -> None:
        """Its keys and values, before any page has come, and what the swipe reads of them."""
        first = phone.start()
        phone.watch(first, n_watched)
        assert first._reranker is not None
        before, length, number = first._reranker, first._history.watched.length, first._number
        first.close()
        second = phone.start()
        reranker = second._reranker
        assert reranker is not None
        assert (second._number, second._history.watched.length) == (number, length)
        for one in (before, reranker):
            one.device(phone.clock.wall_ms(), DeviceState(), 3, number)
        np.testing.assert_array_equal(reranker.rows.rows[:length], before.rows.rows[:length])
        for name in ("memory", "memory_mask", "since", "behind"):
            memory = vars(reranker.cache.memory)[name]
            np.testing.assert_allclose(memory, vars(before.cache.memory)[name], atol=2e-6, err_msg=name)
        assert reranker.cache.fresh == length  # before any page has come

    def test_a_new_session_id_and_position_but_the_users_number_goes_on(self, phone: Phone) -> None:
        first = phone.start()
        phone.watch(first, 3)
        first.close()
        second = phone.start()
        assert second.session_id != first.session_id
        assert second.position == 0
        phone.watch(second, 1)
        assert columns(second)["number"] == [0, 1, 2, 3]
        assert second.position == 1

    def test_what_was_shown_is_not_let_in_again(self, plain: Phone) -> None:
        first = plain.start()
        ids = plain.watch(first, 3)
        first.close()
        second = plain.start()
        assert second.page_request().exclude_video_ids == ids
        assert second.on_page(page_bytes([*ids, 900], status="no_live_version")).added == 1

    def test_a_model_of_another_version_gets_its_rows_from_the_page(
        self, phone: Phone, published: Callable[[str], Any]
    ) -> None:
        first = phone.start()
        phone.watch(first, 2)
        first.close()
        phone.engine = Engine(published("kir-b"))
        second = phone.start()
        assert second._reranker is not None
        assert second._reranker.rows.revision[:3].tolist() == [-1, -1, -1]
        ids = second.page_request().watched_ids
        second.on_page(page_bytes(range(700, 704), "kir-b", ids))
        assert second._reranker.rows.revision[:3].tolist() == [7, 7, 7]
        assert second.next().chooser == "model"

    def test_a_smaller_list_takes_the_newest(self, tmp_path: Path, engine: Engine) -> None:
        """Watched without a model, L = 50; the model of the next start holds L = 6."""
        phone = Phone(tmp_path / "s")
        first = phone.start()
        ids = phone.watch(first, 9)
        first.close()
        phone.engine = engine
        second = phone.start()
        assert columns(second)["video_id"] == ids[-(L - 1) :]
        phone.watch(second, 2)

    def test_state_is_optional(self, engine: Engine, tmp_path: Path) -> None:
        session = EdgeSession(5, engine, clock=FakeClock())
        session.start()
        session.maintain()
        session.close()
        assert list(tmp_path.iterdir()) == []


class TestFeedbackAcrossARestart:
    def test_late_feedback_joins_the_list_and_is_reported_under_its_own_session(self, phone: Phone) -> None:
        first = phone.start(session_id=77)
        phone.page(first)
        choice = first.next(
            DeviceState(network=5, decoder=1, buffered_ms={choice_id: 900 for choice_id in range(100, 108)})
        )
        first.maintain()
        first.close()
        sink = Sink()
        uploader = FeedbackUploader(sink, retry=FAST)
        events: list[Event] = []
        uploader.offer = lambda event: events.append(event) or 0  # type: ignore[method-assign, func-returns-value]
        second = phone.start(uploader)
        assert second.feedback(Feedback(choice.video_id, 4_000, {"like": True})) is Outcome.APPENDED
        assert second.feedback(Feedback(choice.video_id, 5_000)) is Outcome.AMENDED
        assert events == []  # saved before they are sent
        second.maintain()
        late, amended = events
        assert (late.session_id, late.seq, late.revision, amended.revision) == (77, 0, 0, 1)
        assert (late.video_id, late.page_id, late.candidate_index) == (choice.video_id, "p100", choice.candidate_index)
        assert (late.network, late.decoder, late.buffered_ms) == (5, 1, 900)
        assert list(late.remaining) == list(choice.remaining)
        assert (late.dense_version, late.variant, late.rows_revision) == ("kir-a", "float32", 7)
        assert (amended.play_time_ms, amended.like) == (5_000, True)
        assert second._reranker is not None
        assert second._reranker.rows.revision[1] == 7  # its row was kept with the impression

    def test_an_amendment_goes_on_counting(self, phone: Phone) -> None:
        first = phone.start()
        (video_id,) = phone.watch(first, 1)
        first.close()
        second = phone.start()
        assert second.feedback(Feedback(video_id, 1, revision=0)) is Outcome.STALE
        assert second.feedback(Feedback(video_id, None, {"follow": True})) is Outcome.AMENDED
        assert columns(second)["play_time_ms"] == [video_id * 7 % 9_000]
        second.close()
        third = phone.start()
        assert third.feedback(Feedback(video_id, 1, {"follow": False}, revision=0)) is Outcome.STALE


class TestOutbox:
    def stuck(self) -> tuple[Sink, FeedbackUploader]:
        sink = Sink()
        sink.gate.clear()
        return sink, FeedbackUploader(sink, retry=FAST)

    def test_what_was_not_sent_is_sent_after_the_restart(self, plain: Phone) -> None:
        _, uploader = self.stuck()
        first = plain.start(uploader, session_id=9)
        plain.watch(first, 3)
        first._keeper.close(None)  # type: ignore[union-attr]  # the app is gone; its uploader hangs
        sink = Sink()
        second = plain.start(FeedbackUploader(sink, retry=FAST))
        plain.watch(second, 1)
        second.close()
        assert [seq for batch in sink.batches for seq in batch] == [0, 1, 2, 0]
        assert plain.start(None)._keeper._outbox == type(second._keeper._outbox)()  # type: ignore[union-attr]
        uploader.close(0.01)

    def test_what_was_sent_is_not_sent_again(self, plain: Phone) -> None:
        sink = Sink()
        first = plain.start(FeedbackUploader(sink, retry=FAST))
        plain.watch(first, 3)
        first.close()
        again = Sink()
        second = plain.start(FeedbackUploader(again, retry=FAST))
        second.close()
        assert len([seq for batch in sink.batches for seq in batch]) == 3
        assert again.batches == []

    def test_the_oldest_goes_and_is_counted(self, plain: Phone) -> None:
        sink, uploader = self.stuck()
        first = plain.start(uploader, limits={"outbox": 4})
        plain.watch(first, 10)
        first.maintain()
        assert plain.state.dropped == 6
        first._keeper.close(None)  # type: ignore[union-attr]
        sink = Sink()
        second = plain.start(FeedbackUploader(sink, retry=FAST))
        second.close()
        assert [seq for batch in sink.batches for seq in batch] == [6, 7, 8, 9]
        uploader.close(0.01)

    def test_opted_out_since_the_rest_stays_here(self, plain: Phone) -> None:
        _, uploader = self.stuck()
        first = plain.start(uploader, config=SessionConfig(opted_in=True))
        plain.watch(first, 1)
        first._keeper.close(None)  # type: ignore[union-attr]
        for opted_in in (True, False):
            session = plain.start(None, config=SessionConfig(opted_in=opted_in))
            (waiting,) = session._keeper._outbox  # type: ignore[union-attr]
            assert waiting.event.HasField("profile_stay_ms") == waiting.event.HasField("volume") == opted_in
            assert waiting.event.HasField("play_time_ms")
            session._keeper.close(None)  # type: ignore[union-attr]
        uploader.close(0.01)


class TestClocks:
    def ages(self, session: EdgeSession) -> list[int]:
        return [session._time.now_ms() - at for at in columns(session)["shown_at_ms"]]

    def test_time_between_two_runs_counts(self, plain: Phone) -> None:
        first = plain.start()
        plain.watch(first, 2)
        first.close()
        plain.clock.advance(HOUR_MS)
        assert self.ages(plain.start()) == [HOUR_MS + 6_000, HOUR_MS + 3_000]

    def test_a_clock_that_went_back_keeps_the_list_and_no_age_is_negative(self, plain: Phone) -> None:
        first = plain.start()
        plain.watch(first, 3)
        first.close()
        plain.clock.set_wall(plain.clock.wall_ms() - 400 * 24 * HOUR_MS)
        second = plain.start()
        assert self.ages(second) == [6_000, 3_000, 0]  # as they stood to each other
        assert second._time.now_ms() == plain.clock.wall_ms()
        plain.watch(second, 1)
        assert columns(second)["gap_ms"] == [-1, 3_000, 3_000, 0]
        second.close()
        assert plain.start().n_watched == 4

    @pytest.mark.parametrize(("later_ms", "kept"), [(KEEP_MS - 10_000, 2), (KEEP_MS + 10_000, 0)])
    def test_a_list_that_is_too_old_is_not_taken_up(self, plain: Phone, later_ms: int, kept: int) -> None:
        first = plain.start()
        ids = plain.watch(first, 2)
        first.close()
        plain.clock.advance(later_ms)
        second = plain.start()
        assert second.n_watched == kept
        assert second.page_request().exclude_video_ids == ids  # what was shown stays shown
        outcome = second.feedback(Feedback(ids[0], None, {"like": True}))
        assert outcome is (Outcome.AMENDED if kept else Outcome.UNKNOWN)
        second.close()
        assert plain.start().n_watched == kept


class TestBounds:
    def test_impressions_and_ids_are_bounded(self, plain: Phone) -> None:
        config = SessionConfig(pool=PoolConfig(seen=40))
        session = plain.start(config=config)
        for _ in range(SHOWN_MAX // 30 + 2):
            plain.page(session, 30)
            for _ in range(30):
                session.next()
            session.maintain()
        rows = plain.state.rows("SELECT count(*), min(number), max(number) FROM shown", 1)
        seen = plain.state.rows("SELECT count(*) FROM seen", 1)
        shown = session.position
        assert rows == [(SHOWN_MAX, shown - SHOWN_MAX, shown - 1)]
        assert seen == [(40,)]
        session.close()
        again = plain.start(config=config)
        assert (again._number, len(again._history.impressions())) == (shown, SHOWN_MAX)
        assert len(again.page_request().exclude_video_ids) == 40

    @pytest.mark.parametrize("limits", [{"keep_ms": -1}, {"outbox": 0}])
    def test_limits_are_checked(self, limits: dict[str, int]) -> None:
        with pytest.raises(InputError, match="state"):
            StateFile("x", **limits)


class TestTheSwipePath:
    def test_a_swipe_writes_nothing(self, phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
        session = phone.start()
        phone.page(session)
        session.maintain()
        calls: list[str] = []
        for name in ("write", "rows", "open"):
            monkeypatch.setattr(phone.state, name, lambda *args, name=name: calls.append(name))
        for _ in range(4):
            choice = session.next()
            assert calls == []
            session.maintain()
            assert calls == ["write"]
            calls.clear()
            session.feedback(Feedback(choice.video_id, 1_000))
        assert calls == []

    def test_an_app_that_never_maintains_is_saved_now_and_then(self, plain: Phone) -> None:
        sink = Sink()
        uploader = FeedbackUploader(sink, retry=FAST)
        session = plain.start(uploader)
        plain.page(session, 12)
        for _ in range(12):
            session.feedback(Feedback(session.next().video_id, 1_000))
        assert plain.state.rows("SELECT count(*) FROM watched", 1) == [(1 + 8,)]
        assert uploader.flush()
        assert [seq for batch in sink.batches for seq in batch] == list(range(8))
        session.close()
        assert [seq for batch in sink.batches for seq in batch] == list(range(12))

    def test_a_save_touches_what_changed(self, phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
        """One slot for a feedback or an amendment, the half that stays at an eviction."""
        session = phone.start()
        slots: list[list[int]] = []
        whole = phone.state.write

        def spied(steps: list[tuple[str, list[Any]]]) -> None:
            slots.append([row[0] for step, rows in steps if "INTO watched" in step for row in rows])
            whole(steps)

        monkeypatch.setattr(phone.state, "write", spied)
        ids = phone.watch(session, L)
        session.next()
        session.maintain()  # evicts
        half = list(range(1, L // 2 + 1))
        assert slots == [[0], *([slot] for slot in range(1, L)), half]
        session.feedback(Feedback(ids[-2], None, {"follow": True}))
        session.maintain()
        assert slots[-1] == [L // 2 - 1]
        before = columns(session)
        session.close()
        assert columns(phone.start()) == before

    def test_nothing_changed_writes_nothing(self, plain: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
        session = plain.start()
        plain.watch(session, 2)
        session.maintain()
        monkeypatch.setattr(plain.state, "write", lambda steps: pytest.fail(f"written: {steps}"))
        session.maintain()


class TestFilesThatCanNotBeUsed:
    @pytest.fixture
    def used(self, plain: Phone) -> Phone:
        session = plain.start()
        plain.watch(session, 4)
        session.close()
        return plain

    def assert_begins_anew(self, phone: Phone, says: str) -> None:
        was = phone.path.read_bytes()
        session = phone.start()
        assert says in phone.state.problem
        assert (phone.state.set_aside, session.n_watched, session._number) == (1, 0, 0)
        assert phone.path.with_name(f"{phone.path.name}.bad").read_bytes() == was
        ids = phone.watch(session, 2)  # and the new file works
        session.close()
        assert columns(phone.start())["video_id"] == ids
        assert phone.state.set_aside == 0

    def test_noise(self, used: Phone) -> None:
        used.path.write_bytes(os.urandom(9_000))
        self.assert_begins_anew(used, "not a database")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
    def test_truncated(self, used: Phone, share: float) -> None:
        data = used.path.read_bytes()
        used.path.write_bytes(data[: int(len(data) * share)])
        self.assert_begins_anew(used, "")

    def test_a_page_overwritten(self, used: Phone) -> None:
        data = bytearray(used.path.read_bytes())
        data[3 * 4096 : 5 * 4096] = b"\xff" * 8192
        used.path.write_bytes(data)
        self.assert_begins_anew(used, "")

    def test_another_version(self, used: Phone) -> None:
        with sqlite3.connect(used.path) as db:
            db.execute(f"PRAGMA user_version = {VERSION + 1}")
        db.close()
        self.assert_begins_anew(used, "another version")

    def test_another_database(self, used: Phone) -> None:
        used.path.unlink()
        with sqlite3.connect(used.path) as db:
            db.execute("CREATE TABLE notes (text)")
        db.close()
        self.assert_begins_anew(used, "another version")

    def test_another_schema(self, used: Phone) -> None:
        with sqlite3.connect(used.path) as db:
            db.execute("CREATE TRIGGER t AFTER INSERT ON seen BEGIN DELETE FROM watched; END")
        db.close()
        self.assert_begins_anew(used, "another schema")

    def test_another_user(self, used: Phone) -> None:
        used.user_id = 6
        self.assert_begins_anew(used, "another user")

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE watched SET token = x'00' WHERE slot = 1",
            "DELETE FROM watched WHERE slot = 1",
            "UPDATE shown SET impression = '{}'",
            "UPDATE shown SET impression = replace(impression, '\"position\":', '\"position\":-')",
            "UPDATE shown SET feedback = '[]'",
            "UPDATE shown SET feedback = 'null'",
            "UPDATE shown SET item = 'text'",
            "UPDATE shown SET impression = zeroblob(300000)",
            "INSERT INTO outbox VALUES (1, 'no event')",
            "INSERT INTO outbox VALUES (2, x'ffff')",
            "INSERT INTO seen VALUES (9223372036854775807, 1)",
            "UPDATE seen SET video_id = 'text'",
        ],
    )
    def test_contents_that_were_not_written_here(self, used: Phone, change: str) -> None:
        with sqlite3.connect(used.path) as db:
            db.execute(change)
        db.close()
        self.assert_begins_anew(used, "can't be read")

    def test_rows_that_are_no_numbers_are_left_out(self, phone: Phone) -> None:
        first = phone.start()
        phone.watch(first, 2)
        first.close()
        with sqlite3.connect(phone.path) as db:
            row = np.full(first._reranker.rows.rows.shape[1], np.nan, "<f4").tobytes()  # type: ignore[union-attr]
            db.execute("UPDATE watched SET row = ? WHERE slot = 2", (row,))
        db.close()
        second = phone.start()
        assert second._reranker is not None
        assert second._reranker.rows.revision[:3].tolist() == [7, 7, -1]
        phone.page(second)
        assert second.next().chooser == "model"

    def test_only_the_last_bad_file_is_kept(self, used: Phone) -> None:
        for content in (b"first" * 100, b"second" * 100):
            used.path.write_bytes(content)
            used.start().close()
            assert used.path.with_name(f"{used.path.name}.bad").read_bytes() == content

    def test_an_empty_file_is_a_new_one(self, plain: Phone) -> None:
        plain.path.write_bytes(b"")
        plain.watch(plain.start(), 1)
        assert (plain.state.set_aside, plain.state.problem) == (0, "")

    def test_a_file_of_another_session_stays_with_it(self, plain: Phone) -> None:
        first = plain.start()
        ids = plain.watch(first, 2)
        holder = plain.state
        second = plain.start()
        assert "locked" in plain.state.problem
        assert (plain.state.set_aside, plain.state.is_open, second.n_watched) == (0, False, 0)
        plain.watch(second, 2)
        second.close()
        ids += plain.watch(first, 1)
        assert holder.failed == 0
        first.close()
        assert columns(plain.start())["video_id"] == ids

    def test_a_place_where_no_file_can_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file" / "below", tmp_path):
            phone = Phone(path)
            phone.watch(phone.start(), 1)
            assert not phone.state.is_open
            assert phone.state.problem
        assert (tmp_path / "file").exists()


class TestADiskThatFails:
    def test_a_full_disk_costs_nothing_and_is_made_up_for(self, plain: Phone) -> None:
        session = plain.start()
        db = plain.state._db
        assert db is not None
        full = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {full}")
        ids = plain.watch(session, 30)
        assert plain.state.failed > 0
        assert "full" in str(session.last_error)
        db.execute("PRAGMA max_page_count = 10000")
        session.maintain()
        session.close()
        assert (plain.state.set_aside, plain.state.is_open) == (0, False)
        again = plain.start()
        assert (columns(again)["video_id"], again._number) == (ids, 30)
        assert [one.revision for one in again._history.impressions()] == [0] * 30

    def test_a_file_that_breaks_under_the_session_is_written_anew(
        self, plain: Phone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = plain.start()
        ids = plain.watch(session, 3)

        def broken(steps: object) -> None:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(plain.state, "write", broken)
            ids += plain.watch(session, 1)
        assert plain.state.set_aside >= 1
        ids += plain.watch(session, 1)
        session.close()
        again = plain.start()
        assert columns(again)["video_id"] == ids
        assert [one.impression.choice.video_id for one in again._history.impressions()] == ids
        assert again.page_request().exclude_video_ids == ids


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=30),
    cut=st.none() | st.floats(0, 1),
)
def test_whatever_the_file_holds_the_session_begins(
    tmp_path: Path, flips: list[tuple[float, int]], cut: float | None
) -> None:
    good = tmp_path / "good"
    if not good.exists():
        maker = Phone(good)
        session = maker.start()
        maker.watch(session, 5)
        session.close()
    data = bytearray(good.read_bytes())
    for place, value in flips:
        data[int(place * len(data))] = value
    phone = Phone(tmp_path / "fuzzed")
    for old in tmp_path.glob("fuzzed*"):
        old.unlink()
    phone.path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    phone.n_pages = 50
    session = phone.start()
    phone.watch(session, 1)
    assert session.page_request().to_message().ByteSize() > 0
    session.close()


def kill(path: Path, kills: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.edge.state_victim", str(path), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_killed_at_any_point_leaves_what_was_saved(tmp_path: Path) -> None:
    told = kill(tmp_path / "state", 9, seed=1)
    assert told["wrong"] == []
    assert told["saved"] >= 6


@pytest.mark.slow
def test_a_hundred_and_fifty_kills(tmp_path: Path) -> None:
    told = kill(tmp_path / "state", 150, seed=2)
    assert told["wrong"] == []
    assert told["saved"] >= 100
