"""A new dense version: offered any time, in charge from the first page that fits it, carrying feedback alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contract.errors import IntegrityError, KirError, ModelStoreError, NoModelError
from edge import Chooser, EdgeSession, FakeClock, Feedback, InstalledModel, ModelStore
from edge._history import WatchHistory
from tests.edge.duo import Duo
from tests.edge.test_store import flip_byte
from tests.edge.tiny_model import L, point_at
from tests.edge.tiny_page import page_bytes

Open = Callable[[str], InstalledModel]


@pytest.fixture
def store(tmp_path: Path, cdn: Path) -> ModelStore:
    made = ModelStore(tmp_path / "cache", cdn)
    made.activate(str(made.update()))
    return made


@pytest.fixture
def phone(store: ModelStore, clock: FakeClock) -> EdgeSession:
    session = EdgeSession(5, store, clock=clock)
    assert session.start() == ""
    return session


class TestPageBoundary:
    def test_the_old_model_runs_until_a_page_of_the_new_one(
        self, phone: EdgeSession, store: ModelStore, cdn: Path
    ) -> None:
        phone.on_page(page_bytes(range(101, 109)))
        point_at(cdn, "kir-b")
        assert phone.update() == "kir-b"
        choice = phone.next()
        assert (choice.dense_version, phone.dense_version, store.active_version()) == ("kir-a", "kir-a", "kir-a")
        report = phone.on_page(page_bytes(range(201, 209), page_id="p2"))  # the server still has the old one
        assert report.activated == ""
        assert phone.next().dense_version == "kir-a"
        request = phone.page_request()
        assert [version for version, _ in request.held_models] == ["kir-b", "kir-a"]
        report = phone.on_page(page_bytes(range(301, 309), "kir-b", request.watched_ids, page_id="p3"))
        assert (report.activated, report.reason) == ("kir-b", "")
        assert phone.next().dense_version == "kir-b"
        phone.maintain()
        assert store.active_version() == "kir-b"
        assert [version for version, _ in phone.page_request().held_models] == ["kir-b"]

    def test_pages_of_the_old_model_stay_in_server_order(self, phone: EdgeSession, cdn: Path) -> None:
        phone.on_page(page_bytes(range(101, 104)))
        point_at(cdn, "kir-b")
        phone.update()
        phone.on_page(page_bytes(range(201, 205), "kir-b", page_id="p2"))
        choices = [phone.next() for _ in range(7)]
        assert choices[0].considered == list(range(201, 205))
        assert [c.dense_version for c in choices] == ["kir-b"] * 4 + [""] * 3
        assert [c.video_id for c in choices[4:]] == [101, 102, 103]
        assert {c.reason for c in choices[4:]} == {"version_mismatch"}

    def test_a_page_with_nothing_new_changes_no_model(self, phone: EdgeSession, cdn: Path) -> None:
        """It would leave what is held without scores and bring none."""
        phone.on_page(page_bytes(range(101, 104)))
        seen = phone.next().video_id
        point_at(cdn, "kir-b")
        phone.update()
        report = phone.on_page(page_bytes([seen], "kir-b", page_id="p2"))
        assert (report.added, report.activated) == (0, "")
        choice = phone.next()
        assert (choice.chooser, choice.dense_version) == (Chooser.MODEL, "kir-a")
        assert phone.on_page(page_bytes(range(201, 205), "kir-b", page_id="p3")).activated == "kir-b"

    def test_scores_of_two_versions_never_meet(self, phone: EdgeSession, cdn: Path) -> None:
        phone.on_page(page_bytes(range(101, 109)))
        point_at(cdn, "kir-b")
        phone.update()
        phone.on_page(page_bytes(range(201, 209), "kir-b", page_id="p2"))
        late = phone.on_page(page_bytes(range(301, 309), "kir-a", page_id="p3"))  # was on its way
        assert late.reason == "version_mismatch"
        for _ in range(12):
            choice = phone.next()
            assert (
                len({video_id // 100 for video_id in choice.considered}) == 1 or choice.chooser is Chooser.SERVER_ORDER
            )


@pytest.mark.parametrize("n_watched", [0, 1, L - 1, L, L + 2])
def test_the_watched_list_is_rebuilt_with_the_new_versions_rows(
    published: Open, clock: FakeClock, tiny_cdn: Path, n_watched: int
) -> None:
    """After the change the scores are those of a phone that had watched everything under the new version."""
    session = EdgeSession(5, published("kir-a"), clock=clock)
    session.start()
    old = Duo(session, tiny_cdn, clock)
    old.watch(n_watched)
    session.offer(published("kir-b"))
    new = Duo(session, tiny_cdn, clock, "kir-b")
    new.n_pages = 20
    # The reference: the same feedback, every video's row as kir-b has it, the list as it stands on the phone.
    watched = session._history.watched
    new.reference.watched = old.reference.watched
    kept = [int(v) for v in watched.columns(1)["video_id"]]
    new.page()
    assert session.dense_version == "kir-b"
    assert session._reranker is not None
    new.reference.watched_rows = [session._reranker.rows.rows[slot].copy() for slot in range(1, len(kept) + 1)]
    assert (session._reranker.rows.revision[: len(kept) + 1] == 7).all()  # each has its own row
    new.swipe()
    new.watch(3)


def test_rows_of_the_new_version_are_the_new_versions(published: Open, clock: FakeClock) -> None:
    from tests.edge.tiny_page import row_of

    session = EdgeSession(5, published("kir-a"), clock=clock)
    session.start()
    session.on_page(page_bytes([101, 102], encoding="float32"))
    choice = session.next()
    session.feedback(Feedback(choice.video_id, 2000))
    assert session._reranker is not None
    np.testing.assert_array_equal(session._reranker.rows.rows[1][:4], row_of("kir-a", "video", choice.video_id, 4))
    session.offer(published("kir-b"))
    ids = session.page_request().watched_ids
    session.on_page(page_bytes([201], "kir-b", ids, page_id="p2", encoding="float32"))
    np.testing.assert_array_equal(session._reranker.rows.rows[1][:4], row_of("kir-b", "video", choice.video_id, 4))


def test_feedback_of_an_old_page_after_the_change(published: Open, clock: FakeClock) -> None:
    """Its row belongs to the old version: the default stands in, and the next page brings the new one."""
    session = EdgeSession(5, published("kir-a"), clock=clock)
    session.start()
    session.on_page(page_bytes([101, 102]))
    choice = session.next()
    session.offer(published("kir-b"))
    session.on_page(page_bytes([201, 202], "kir-b", page_id="p2"))
    session.feedback(Feedback(choice.video_id, 2000))
    assert session._reranker is not None
    assert session._reranker.rows.revision[1] == -1
    assert session.next().chooser is Chooser.MODEL
    ids = session.page_request().watched_ids
    assert ids == [choice.video_id]
    session.on_page(page_bytes([301], "kir-b", ids, page_id="p3"))
    assert session._reranker.rows.revision[1] == 7


class TestRefusedModels:
    def test_a_broken_download_leaves_the_running_model(self, phone: EdgeSession, cdn: Path) -> None:
        phone.on_page(page_bytes(range(101, 109)))
        for path in (cdn / "models" / "kir-b").glob("*.tflite"):
            flip_byte(path)
        point_at(cdn, "kir-b")
        with pytest.raises(IntegrityError):
            phone.update()
        assert phone.next().dense_version == "kir-a"
        assert [version for version, _ in phone.page_request().held_models] == ["kir-a"]

    def test_a_model_that_can_not_run_is_not_offered(self, phone: EdgeSession, published: Open) -> None:
        model = published("kir-b")
        bad = dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, capacities={"L": 3}))
        with pytest.raises(NoModelError):
            phone.offer(bad)
        assert [version for version, _ in phone.page_request().held_models] == ["kir-a"]

    def test_a_model_that_fails_at_its_first_page_does_not_take_over(
        self, phone: EdgeSession, published: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> None:
            raise RuntimeError("new and broken")

        phone.on_page(page_bytes(range(101, 105)))
        phone.offer(published("kir-b"))
        assert phone._models.offered is not None
        monkeypatch.setattr(phone._models.offered, "watch", fail)
        report = phone.on_page(page_bytes(range(201, 205), "kir-b", page_id="p2"))
        assert report.activated == ""
        assert phone.dense_version == "kir-a"
        choice = phone.next()
        assert (choice.dense_version, choice.page_id) == ("kir-a", "page-1")

    def test_a_store_that_can_not_write_does_not_stop_the_change(
        self, phone: EdgeSession, store: ModelStore, cdn: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(version: str) -> None:
            raise ModelStoreError("no space")

        point_at(cdn, "kir-b")
        phone.update()
        monkeypatch.setattr(store, "activate", full)
        assert phone.on_page(page_bytes([201], "kir-b")).activated == "kir-b"
        assert phone.next().dense_version == "kir-b"
        phone.maintain()
        assert isinstance(phone.last_error, KirError)
        assert store.active_version() == "kir-a"

    def test_a_rollback_is_offered_like_any_model(self, phone: EdgeSession, store: ModelStore, cdn: Path) -> None:
        point_at(cdn, "kir-b")
        phone.update()
        phone.on_page(page_bytes([201], "kir-b"))
        phone.maintain()
        phone.offer(store.rollback())
        phone.on_page(page_bytes([301, 302], "kir-a", page_id="p2"))
        assert phone.next().dense_version == "kir-a"
        phone.maintain()
        assert store.active_version() == "kir-a"
        assert phone.update() is None


def test_a_model_is_offered_once(phone: EdgeSession, cdn: Path) -> None:
    point_at(cdn, "kir-b")
    assert phone.update() == "kir-b"
    offered = phone._models.offered
    assert phone.update() is None  # an app may look every minute: no second engine
    assert phone._models.offered is offered


def test_an_older_model_stands_in_for_a_corrupt_one(store: ModelStore, cdn: Path, clock: FakeClock) -> None:
    point_at(cdn, "kir-b")
    store.activate(str(store.update()))
    only_b = set(store.load("kir-b").paths.values()) - set(store.load("kir-a").paths.values())
    flip_byte(sorted(only_b)[0])
    session = EdgeSession(5, store, clock=clock)
    assert session.start() == ""
    assert session.dense_version == "kir-a"
    assert isinstance(session.last_error, IntegrityError)
    assert session.update() == "kir-b"  # mended from the CDN


def test_nothing_to_update_without_a_store(published: Open) -> None:
    assert EdgeSession(5).update() is None
    assert EdgeSession(5, published("kir-a")).update() is None


class TestAnotherCapacity:
    """A model with another L takes over: the newest videos that fit, room for one more."""

    def history(self, capacity: int, n: int) -> WatchHistory:
        history = WatchHistory(capacity)
        for i in range(n):
            history.watched.append({"video_id": i + 1, "shown_at_ms": i * 1000, "play_time_ms": i})
        return history

    def test_the_same_capacity_is_the_same_list(self) -> None:
        history = self.history(6, 3)
        assert history.resized(6) is history.watched

    def test_a_smaller_list_keeps_the_newest(self) -> None:
        resized = self.history(10, 9).resized(4)
        assert resized.columns(1)["video_id"].tolist() == [7, 8, 9]
        assert resized.columns(1)["gap_ms"].tolist() == [1000, 1000, 1000]  # tokens are frozen
        resized.append({"video_id": 99})

    def test_a_larger_list_keeps_all(self) -> None:
        resized = self.history(4, 4).resized(10)
        assert resized.columns(1)["video_id"].tolist() == [1, 2, 3, 4]
        assert resized.columns(1)["play_time_ms"].tolist() == [0, 1, 2, 3]

    def test_a_session_without_a_model_takes_the_first_models(self, published: Open, clock: FakeClock) -> None:
        session = EdgeSession(5, None, clock=clock)
        session.start()
        session.on_page(page_bytes(range(101, 121)))
        for _ in range(10):
            session.feedback(Feedback(session.next().video_id, 2000))
        session.offer(published("kir-a"))
        ids = session.page_request().watched_ids
        assert len(ids) == 10
        assert session.on_page(page_bytes(range(201, 209), "kir-a", ids, page_id="p2")).activated == "kir-a"
        assert session._history.watched.n_watched == L - 1
        assert session.next().chooser is Chooser.MODEL
