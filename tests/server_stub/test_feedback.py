"""Feedback intake: each event counts once, is joined with its page, reaches the recommender and the event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import EventError, InputError
from contract.events import EVENT_COLUMNS
from contract.parquet import read_events
from contract.v1 import feedback_pb2 as pb
from contract.v1 import page_pb2
from contract.vocabulary import MISSING_KEY, SIGNALS
from server_stub import feedback
from server_stub.config import ServerConfig
from server_stub.feedback import EVENTS_PER_REQUEST_MAX, FeedbackIntake, IntakeFull
from server_stub.feedback_columns import events_of
from server_stub.page_log import PageLog, read_pages, write_pages
from server_stub.page_request import PageRequest
from server_stub.pages import PageMaker
from server_stub.testing import FakeRecommender, fake_backend
from tests.server_stub.conftest import NOW_MS, counted_ids

USER, SESSION = 7, 4242


@pytest.fixture
def pages() -> PageMaker:
    backend = fake_backend(("a",))
    log = PageLog(keep_unwritten=True)
    return PageMaker(backend.recommender, backend.store, ServerConfig(), log, lambda: NOW_MS, counted_ids(), "a")


@pytest.fixture
def intake(pages: PageMaker, tmp_path: Path) -> FeedbackIntake:
    return FeedbackIntake(pages.recommender, pages.page_log, tmp_path / "events", lambda: NOW_MS)


def event(page: Any = None, index: int = 0, **fields: Any) -> pb.FeedbackEvent:
    """One event of a page's candidate, or of no page at all."""
    if page is not None:
        fields.setdefault("page_id", page.page_id)
        fields.setdefault("video_id", int(page.candidates.video_id[index]))
    base = {"user_id": USER, "session_id": SESSION, "candidate_index": index, "time_ms": NOW_MS, "video_id": 1005}
    return pb.FeedbackEvent(**{**base, **fields})


def report(intake: FeedbackIntake, *events: pb.FeedbackEvent) -> pb.ReportFeedbackResponse:
    return intake.report(pb.ReportFeedbackRequest(events=events))


def counts(response: pb.ReportFeedbackResponse) -> tuple[int, int, int]:
    return response.accepted, response.duplicates, response.rejected


class TestColumns:
    def test_every_wire_field_arrives(self, pages: PageMaker, intake: FeedbackIntake, tmp_path: Path) -> None:
        page = pages.make(PageRequest(USER, SESSION))
        assert page is not None
        full = event(
            page,
            3,
            seq=5,
            revision=1,
            known_at_ms=NOW_MS + 9_000,
            position=6,
            remaining=[0, 3, 4],
            chooser=pb.CHOOSER_KIND_MODEL,
            dense_version="a",
            variant="int8",
            fallback_reason="",
            rows_revision=12,
            propensity=0.25,
            play_time_ms=8_000,
            **{name: i % 2 == 0 for i, name in enumerate(SIGNALS)},
            profile_stay_ms=1,
            comment_stay_ms=2,
            has_next=True,
            network=page_pb2.NETWORK_WIFI,
            decoder=pb.DECODER_HARDWARE,
            buffered_ms=900,
            volume=0.5,
            landscape=False,
        )
        assert {f.name for f, _ in full.ListFields()} | {"fallback_reason"} == set(full.DESCRIPTOR.fields_by_name)
        assert counts(report(intake, full)) == (1, 0, 0)
        assert intake.flush() == 1
        rows = read_events(tmp_path / "events")
        row = {name: column[0] for name, column in rows.columns.items()}
        expected = {
            "user_id": USER,
            "video_id": full.video_id,
            "time_ms": NOW_MS,
            "known_at_ms": NOW_MS + 9_000,
            "session_id": SESSION,
            "seq": 5,
            "revision": 1,
            "page_id": page.page_id,
            "candidate_index": 3,
            "position": 6,
            "chooser": "model",
            "fallback_reason": "",
            "dense_version": "a",
            "variant": "int8",
            "rows_revision": 12,
            "propensity": 0.25,
            "play_time_ms": 8_000,
            **{name: int(i % 2 == 0) for i, name in enumerate(SIGNALS)},
            "has_next": 1,
            "profile_stay_ms": 1,
            "comment_stay_ms": 2,
            "network": 6,
            "decoder": 1,
            "buffered_ms": 900,
            "volume": 0.5,
            "landscape": 0,
            "author_id": page.candidates.author_id[3],
            "duration_ms": page.candidates.duration_ms[3],
            "upload_age_days": page.candidates.upload_age_days[3],
            "music_id": int(MISSING_KEY),
            "kind": int(MISSING_KEY),
            "server_position": 3,
            "ranker_version": "fake-1",
            "retrieval_version": "fake-1",
            "user_activity": page.user_activity,
            "user_register_days": 100,
            "hour": page.hour,
            "is_rand": 0,
            "tab": -1,
        }
        assert {name: row[name] for name in expected} == expected
        assert row["remaining"].tolist() == [0, 3, 4]
        np.testing.assert_array_equal(row["pxtr"], page.candidates.pxtr[3])
        np.testing.assert_array_equal(row["tags"], page.candidates.tags[3])
        assert set(expected) | {"remaining", "pxtr", "tags"} == {column.name for column in EVENT_COLUMNS}

    def test_what_was_not_observed_is_null_not_no(self, intake: FeedbackIntake, tmp_path: Path) -> None:
        report(intake, event(video_id=3, known_at_ms=NOW_MS - 1))
        intake.flush()
        rows = read_events(tmp_path / "events")
        for name in (*SIGNALS, "play_time_ms", "has_next", "buffered_ms", "landscape", "known_at_ms", "is_rand"):
            assert rows[name].tolist() == [-1], name
        assert np.isnan(rows["propensity"][0])
        assert np.isnan(rows["pxtr"]).all()
        assert rows["chooser"].tolist() == rows["page_id"].tolist() == [""]
        assert rows["candidate_index"].tolist() == rows["server_position"].tolist() == [-1]
        assert rows["author_id"].tolist() == [MISSING_KEY]

    def test_an_unknown_page_is_joined_with_the_catalogue(self, intake: FeedbackIntake, tmp_path: Path) -> None:
        assert counts(report(intake, event(page_id="long gone", video_id=1005))) == (1, 0, 0)
        intake.flush()
        rows = read_events(tmp_path / "events")
        assert rows["author_id"].tolist() == [6]
        assert rows["duration_ms"].tolist() == [11_000]
        assert rows["server_position"].tolist() == [-1]
        assert intake.stats["unjoined"] == 1

    def test_random_choosers_are_marked(self, intake: FeedbackIntake, tmp_path: Path) -> None:
        report(intake, event(chooser=pb.CHOOSER_KIND_RANDOM), event(seq=1, chooser=77, network=99))
        intake.flush()
        rows = read_events(tmp_path / "events")
        assert rows["is_rand"].tolist() == [1, -1]
        assert rows["chooser"].tolist() == ["random", ""]
        assert rows["network"].tolist() == [0, 0]

    def test_no_rows_make_no_events(self) -> None:
        assert len(events_of([])) == 0


class TestIdempotency:
    def test_a_repeated_batch_counts_once(self, intake: FeedbackIntake, tmp_path: Path) -> None:
        batch = [event(seq=i) for i in range(5)]
        assert counts(report(intake, *batch)) == (5, 0, 0)
        assert counts(report(intake, *batch, event(seq=5))) == (1, 5, 0)
        intake.flush()
        assert counts(report(intake, *batch)) == (0, 5, 0)
        intake.flush()
        assert sorted(read_events(tmp_path / "events")["seq"].tolist()) == list(range(6))

    def test_within_one_batch_too(self, intake: FeedbackIntake) -> None:
        assert counts(report(intake, event(), event())) == (1, 1, 0)

    def test_revisions_and_sessions_are_apart(self, intake: FeedbackIntake) -> None:
        assert counts(report(intake, event(), event(revision=1), event(session_id=9))) == (3, 0, 0)

    def test_a_rejected_event_may_come_mended(self, intake: FeedbackIntake) -> None:
        assert counts(report(intake, event(time_ms=0))) == (0, 0, 1)
        assert counts(report(intake, event())) == (1, 0, 0)

    def test_keys_are_bounded(self, intake: FeedbackIntake, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(feedback, "KEYS_MAX", 3)
        report(intake, *(event(seq=i) for i in range(10)))
        assert len(intake._keys) == 3


class TestRejection:
    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"user_id": 2**64 - 1}, "user_id"),
            ({"video_id": 2**64 - 1}, "video_id"),
            ({"session_id": 0}, "session_id"),
            ({"session_id": 2**64 - 1}, "session_id"),
            ({"time_ms": 0}, "time_ms"),
            ({"time_ms": -5}, "time_ms"),
            ({"time_ms": 2**60}, "time_ms"),
            ({"seq": 2**32 - 1}, "count"),
            ({"play_time_ms": 2**31}, "count"),
            ({"rows_revision": 2**63}, "count"),
            ({"variant": "x" * 129}, "text"),
            ({"propensity": 0.0}, "propensity"),
            ({"propensity": 1.5}, "propensity"),
            ({"propensity": float("nan")}, "propensity"),
            ({"propensity": float("inf")}, "propensity"),
            ({"volume": float("nan")}, "volume"),
            ({"volume": -0.1}, "volume"),
            ({"remaining": [10_000]}, "remaining"),
            ({"remaining": [0] * 10_001}, "remaining"),
        ],
    )
    def test_each_with_its_reason(self, intake: FeedbackIntake, fields: dict[str, Any], reason: str) -> None:
        response = report(intake, event(**fields), event(seq=1))
        assert counts(response) == (1, 0, 1)
        assert response.reasons[0].startswith("event 0: ")
        assert reason in response.reasons[0]
        assert intake.buffered == 1

    def test_what_contradicts_the_page(self, pages: PageMaker, intake: FeedbackIntake) -> None:
        page = pages.make(PageRequest(USER))
        assert page is not None
        wrong = [
            event(page, 0, user_id=8),
            event(page, 0, video_id=5),
            event(page, 0, candidate_index=20),
            event(page, 0, remaining=[20]),
        ]
        response = report(intake, *wrong)
        assert counts(response) == (0, 0, 4)
        assert [
            next(
                part
                for part in ("another user", "not the page's candidate", "past the page's end", "remaining")
                if part in reason
            )
            for reason in response.reasons
        ] == ["another user", "not the page's candidate", "past the page's end", "remaining"]

    def test_reasons_are_bounded(self, intake: FeedbackIntake) -> None:
        response = report(intake, *(event(time_ms=0) for _ in range(100)))
        assert response.rejected == 100
        assert len(response.reasons) == feedback.REASONS_MAX

    def test_too_many_events(self, intake: FeedbackIntake) -> None:
        with pytest.raises(InputError, match="too many"):
            report(intake, *(event(seq=i) for i in range(EVENTS_PER_REQUEST_MAX + 1)))

    def test_a_full_buffer_takes_nothing(self, intake: FeedbackIntake) -> None:
        intake.buffer_max = 3
        report(intake, event(), event(seq=1))
        with pytest.raises(IntakeFull):
            report(intake, event(seq=2), event(seq=3))
        assert counts(report(intake, event(seq=2))) == (1, 0, 0)


class TestRecommender:
    def test_is_told_in_order_of_time(self, pages: PageMaker, intake: FeedbackIntake) -> None:
        late = event(video_id=1008, seq=1, time_ms=NOW_MS + 5, like=True)
        report(intake, late, event(video_id=1009, time_ms=NOW_MS, long_view=False, play_time_ms=3))
        told = pages.recommender.interactions  # type: ignore[attr-defined]
        assert [(user, i.video_id, i.play_time_ms, i.signals) for user, i in told] == [
            (USER, 1009, 3, {"long_view": 0}),
            (USER, 1008, -1, {"like": 1}),
        ]
        assert intake.stats["positives"] == 1

    def test_is_not_told_twice(self, pages: PageMaker, intake: FeedbackIntake) -> None:
        report(intake, event())
        report(intake, event())
        assert len(pages.recommender.interactions) == 1  # type: ignore[attr-defined]


class TestFiles:
    def test_parts_rotate_and_nothing_half_written_is_left(self, intake: FeedbackIntake, tmp_path: Path) -> None:
        for i in range(3):
            report(intake, event(seq=i))
            assert intake.flush() == 1
        assert intake.flush() == 0
        files = sorted(p.name for p in (tmp_path / "events").iterdir())
        assert len(files) == 3
        assert all(name.startswith("events-") and name.endswith(".parquet") for name in files)

    def test_size_starts_a_part(self, intake: FeedbackIntake, tmp_path: Path) -> None:
        intake.flush_events = 4
        report(intake, *(event(seq=i) for i in range(3)))
        assert not (tmp_path / "events").exists()
        report(intake, event(seq=3))
        assert len(read_events(tmp_path / "events")) == 4
        assert intake.buffered == 0

    def test_what_can_not_be_written_is_kept(
        self, pages: PageMaker, intake: FeedbackIntake, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "events").write_text("a file where the folder should be")
        pages.make(PageRequest(USER))
        intake.flush_events = 1
        assert counts(report(intake, event())) == (1, 0, 0)  # the phone need not know
        assert "could not be written" in caplog.text
        with pytest.raises(OSError, match="events"):
            intake.flush()
        (tmp_path / "events").unlink()
        assert intake.flush() == 1
        assert len(list((tmp_path / "events/pages").iterdir())) == 1

    def test_without_a_directory_nothing_is_kept(self, pages: PageMaker) -> None:
        intake = FeedbackIntake(pages.recommender, pages.page_log)
        assert counts(report(intake, event(), event())) == (1, 1, 0)
        assert (intake.buffered, intake.flush(), intake.restore()) == (0, 0, 0)

    def test_a_restart_knows_keys_pages_and_interactions(
        self, pages: PageMaker, intake: FeedbackIntake, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        page = pages.make(PageRequest(USER, SESSION))
        assert page is not None
        report(intake, event(page, 2, like=True))
        intake.flush()
        (tmp_path / "events/events-broken.parquet").write_bytes(b"PAR1")
        (tmp_path / "events/pages/pages-broken.parquet").write_bytes(b"")
        again = FeedbackIntake(FakeRecommender(), PageLog(), tmp_path / "events", lambda: NOW_MS + 1)
        assert again.restore() == 1
        assert caplog.text.count("left alone") == 2
        ((user, told),) = again.recommender.interactions  # type: ignore[attr-defined]
        assert (user, told.video_id, told.signals) == (USER, int(page.candidates.video_id[2]), {"like": 1})
        assert counts(report(again, event(page, 2, like=True))) == (0, 1, 0)
        assert counts(report(again, event(page, 4, seq=1))) == (1, 0, 0)
        assert again.stats["unjoined"] == 0


class TestPageLog:
    def test_is_bounded(self, pages: PageMaker) -> None:
        pages.page_log.pages_max = 3
        made = [pages.make(PageRequest(USER)) for _ in range(5)]
        assert len(pages.page_log) == 3
        assert [pages.page_log.get(page.page_id) is not None for page in made if page] == [
            False,
            False,
            True,
            True,
            True,
        ]

    def test_is_bounded_by_candidates_too(self, pages: PageMaker) -> None:
        pages.page_log.candidates_max = 50
        made = [pages.make(PageRequest(USER, page_size=size)) for size in (20, 20, 20, 90)]
        known = [pages.page_log.get(page.page_id) is not None for page in made if page]
        assert known == [False, False, False, True]
        assert len(pages.page_log.drain()) == 4

    def test_what_waits_for_the_disk_is_bounded(self, pages: PageMaker) -> None:
        pages.page_log.pages_max = 3
        for _ in range(5):
            pages.make(PageRequest(USER))
        waiting = pages.page_log.drain()
        pages.make(PageRequest(USER))
        pages.page_log.put_back(waiting)
        assert [sent.page.page_id for sent in pages.page_log.drain()] == ["page-3", "page-4", "page-5"]

    def test_round_trip(self, pages: PageMaker, tmp_path: Path) -> None:
        for user in (1, 2):
            pages.make(PageRequest(user, SESSION, page_size=user, held=()))
        sent = pages.page_log.drain()
        sent[0].page.candidates.pxtr[0, 2] = np.nan
        back = read_pages(write_pages(tmp_path / "p.parquet", sent))
        assert [(p.user_id, p.session_id) for p in back] == [(1, SESSION), (2, SESSION)]
        for before, after in zip(sent, back, strict=True):
            for name in ("page_id", "server_time_ms", "rows_status", "fetch_version", "hour", "user_activity"):
                assert getattr(before.page, name) == getattr(after.page, name)
            for name in ("video_id", "author_id", "tags", "duration_ms", "upload_age_days", "pxtr"):
                expected, got = getattr(before.page.candidates, name), getattr(after.page.candidates, name)
                np.testing.assert_array_equal(expected, got)
                assert expected.dtype == got.dtype
        assert pages.page_log.drain() == []

    def test_other_files_are_refused(self, intake: FeedbackIntake, tmp_path: Path) -> None:
        report(intake, event())
        intake.flush()
        (part,) = (tmp_path / "events").glob("*.parquet")
        with pytest.raises(EventError, match="another page log"):
            read_pages(part)
        with pytest.raises(EventError, match="not a readable"):
            read_pages(tmp_path / "absent.parquet")
