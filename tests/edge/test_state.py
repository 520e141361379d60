"""A session's state over a restart: what goes on, what is set aside, what a killed process leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import InputError
from edge import DeviceState, EdgeSession, Engine, FakeClock, Feedback, Outcome, PoolConfig, SessionConfig, StateFile
from edge._history import SHOWN_MAX
from edge._state import KEEP_MS
from edge._upload import Event, FeedbackUploader
from tests.edge.state_phone import Phone, columns
from tests.edge.test_upload import FAST, Sink
from tests.edge.tiny_model import L
from tests.edge.tiny_page import page_bytes

HOUR_MS = 3_600_000


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
