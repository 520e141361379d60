"""EdgeSession: the choice, every reason of a fallback, what must never stop a swipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import PageError, PoolExhausted, ServerError, ServerUnavailable
from contract.golden import fused_values
from contract.page import encode_page
from edge import (
    Choice,
    ChoicePolicy,
    Chooser,
    DeviceState,
    EdgeSession,
    FakeClock,
    FakePageClient,
    Feedback,
    InstalledModel,
    ModelStore,
    Outcome,
    PageRequest,
    PoolConfig,
    SessionConfig,
)
from tests.edge.sessions import WEIGHTS, Open, ids_of, plain_session
from tests.edge.test_store import flip_byte
from tests.edge.tiny_model import SPEC, TASKS
from tests.edge.tiny_page import candidates_of, make_page, page_bytes


class TestChoice:
    def test_the_highest_value_is_chosen(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        choice = session.next(DeviceState(network=6))
        assert choice.scores_NT is not None
        assert choice.values_N is not None
        np.testing.assert_array_equal(choice.values_N, fused_values(choice.scores_NT, WEIGHTS))
        assert choice.video_id == choice.considered[int(choice.values_N.argmax())]
        assert choice.considered == list(range(101, 109))
        assert choice.candidate_index == choice.video_id - 101
        assert (choice.chooser, choice.reason, choice.position) == (Chooser.MODEL, "", 0)
        assert (choice.dense_version, choice.variant, choice.rows_revision) == ("kir-a", "float32", 7)

    def test_the_server_order_is_not_what_the_model_chooses(self, session: EdgeSession) -> None:
        """Guards the other tests: the tiny model has an opinion."""
        session.on_page(page_bytes(range(101, 109)))
        assert ids_of([session.next() for _ in range(8)]) != list(range(101, 109))

    def test_what_could_have_been_shown_instead_is_told(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 105)))
        first, second = session.next(), session.next()
        assert first.candidate_index not in first.remaining
        assert set(first.remaining) == set(range(4)) - {first.candidate_index}
        assert set(second.remaining) == set(first.remaining) - {second.candidate_index}

    def test_every_candidate_is_shown_once(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        assert sorted(ids_of([session.next() for _ in range(8)])) == list(range(101, 109))

    def test_ties_go_to_the_server_order(self, published: Open, clock: FakeClock) -> None:
        model = published("kir-a")
        manifest = dataclasses.replace(model.manifest, fusion=dict.fromkeys(TASKS, 0.0))
        session = plain_session(clock, store=dataclasses.replace(model, manifest=manifest))
        session.on_page(page_bytes(range(101, 109)))
        choices = [session.next() for _ in range(8)]
        assert ids_of(choices) == list(range(101, 109))
        assert {choice.chooser for choice in choices} == {Chooser.MODEL}

    def test_two_pages_of_one_version_are_compared(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 105), page_id="a"))
        session.on_page(page_bytes(range(201, 209), page_id="b"))
        choice = session.next()
        assert choice.considered == [*range(101, 105), *range(201, 209)]
        assert choice.scores_NT is not None
        assert choice.scores_NT.shape == (12, len(TASKS))
        pages = {choice.page_id for choice in [choice, *(session.next() for _ in range(11))]}
        assert pages == {"a", "b"}

    def test_scores_do_not_depend_on_the_other_page(self, session: EdgeSession, published: Open) -> None:
        session.on_page(page_bytes(range(201, 209), page_id="b"))
        alone = session.next()
        other = plain_session(FakeClock(), store=published("kir-a"))
        other.on_page(page_bytes(range(101, 105), page_id="a"))
        other.on_page(page_bytes(range(201, 209), page_id="b"))
        both = other.next()
        assert alone.scores_NT is not None
        assert both.scores_NT is not None
        np.testing.assert_allclose(alone.scores_NT, both.scores_NT[4:], atol=1e-6)

    def test_the_device_changes_the_scores(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        one, two = session.next(DeviceState(network=1)), session.next(DeviceState(network=6))
        assert one.values_N is not None
        assert two.values_N is not None
        kept = [place for place, v in enumerate(one.considered) if v != one.video_id]
        assert np.abs(one.values_N[kept] - two.values_N).max() > 1e-4

    def test_candidates_above_the_largest_bucket_are_cut(self, session: EdgeSession) -> None:
        report = session.on_page(page_bytes(range(101, 121)))
        assert (report.added, report.reason) == (8, "")
        assert session.next().considered == list(range(101, 109))

    def test_stages_add_up(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        stages = session.next().stages_us
        assert set(stages) == {"maintain", "features", "engine", "choice", "total"}
        assert stages["total"] == pytest.approx(sum(stages.values()) - stages["total"])
        assert stages["engine"] > 0

    def test_default_rows_are_reported(self, session: EdgeSession) -> None:
        page = make_page(range(101, 105))
        slots = {key: value for key, value in page.rows.slots.items() if key[1] != "author_id"}
        page = dataclasses.replace(page, rows=dataclasses.replace(page.rows, slots=slots))
        assert session.on_page(page).default_rows == 4
        assert session.default_rows == 4
        assert session.next().chooser is Chooser.MODEL


class TestAuthors:
    IDS = (102, 103, 104, 105, 106, 107)  # two authors: ids // 3

    def test_off_by_default(self, clock: FakeClock) -> None:
        session = plain_session(clock)
        session.on_page(page_bytes(self.IDS))
        assert ids_of([session.next() for _ in self.IDS]) == list(self.IDS)

    @pytest.mark.parametrize("with_model", [False, True])
    def test_not_the_same_author_again_so_soon(self, published: Open, clock: FakeClock, with_model: bool) -> None:
        store = published("kir-a") if with_model else None
        session = plain_session(clock, store=store, config=SessionConfig(policy=ChoicePolicy(author_gap=1)))
        session.on_page(page_bytes(self.IDS))
        choices = [session.next() for _ in range(5)]
        authors = [int(candidates_of([v]).author_id[0]) for v in ids_of(choices)]
        assert all(a != b for a, b in pairwise(authors)) or len(set(authors)) == 1
        assert {c.chooser for c in choices} == {Chooser.MODEL if with_model else Chooser.SERVER_ORDER}

    def test_rather_the_same_author_than_nothing(self, clock: FakeClock) -> None:
        session = plain_session(clock, config=SessionConfig(policy=ChoicePolicy(author_gap=5)))
        session.on_page(page_bytes([300, 301, 302]))  # one author
        assert ids_of([session.next() for _ in range(3)]) == [300, 301, 302]


class TestFallback:
    """Server order, with the reason, whatever is missing."""

    def swipes(self, session: EdgeSession, n: int = 3) -> list[Choice]:
        choices = [session.next() for _ in range(n)]
        assert {choice.chooser for choice in choices} == {Chooser.SERVER_ORDER}
        assert all(choice.scores_NT is None and choice.dense_version == "" for choice in choices)
        return choices

    def test_no_model(self, clock: FakeClock, tmp_path: Path, tiny_cdn: Path) -> None:
        for store in (None, ModelStore(tmp_path / "cache", tiny_cdn)):
            session = EdgeSession(5, store, clock=clock)
            assert session.start() == "no_model"
            assert session.on_page(page_bytes(range(101, 105))).reason == "no_model"
            choices = self.swipes(session)
            assert ids_of(choices) == [101, 102, 103]
            assert {choice.reason for choice in choices} == {"no_model"}

    def test_corrupt_model(self, clock: FakeClock, tmp_path: Path, cdn: Path) -> None:
        store = ModelStore(tmp_path / "cache", cdn)
        file, path = next(iter(store.activate(str(store.update())).paths.items()))
        flip_byte(path)
        session = EdgeSession(5, store, clock=clock)
        assert session.start() == "corrupt_model"
        assert file in str(session.last_error)
        session.on_page(page_bytes(range(101, 105)))
        assert {choice.reason for choice in self.swipes(session)} == {"corrupt_model"}
        assert session.update() == "kir-a"  # mended from the CDN, at the next page it takes over
        assert session.on_page(page_bytes(range(201, 205), page_id="p2")).activated == "kir-a"
        assert session.next().chooser is Chooser.MODEL

    def test_a_corrupt_published_model_given_directly(self, cdn: Path, clock: FakeClock) -> None:
        model = InstalledModel.open_published(cdn)
        flip_byte(model.paths[model.manifest.graph("swipe", "N4").variant().file])
        session = EdgeSession(5, model, clock=clock)
        assert session.start() == "corrupt_model"

    @pytest.mark.parametrize("status", ["no_live_version", "spec_mismatch", "not_needed"])
    def test_rows_status(self, session: EdgeSession, status: str) -> None:
        report = session.on_page(page_bytes(range(101, 105), status=status))
        assert report.reason == f"rows_status:{status}"
        choices = self.swipes(session)
        assert ids_of(choices) == [101, 102, 103]
        assert {choice.reason for choice in choices} == {f"rows_status:{status}"}

    def test_another_version(self, session: EdgeSession) -> None:
        assert session.on_page(page_bytes(range(101, 105), "kir-b")).reason == "version_mismatch"
        self.swipes(session)

    def test_another_spec(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 105), spec_fingerprint="f" * 16))
        assert self.swipes(session)[0].reason == "spec_mismatch"

    def test_no_rows(self, session: EdgeSession) -> None:
        page = encode_page(make_page(range(101, 105)))
        del page.row_tables[:], page.row_indexes[:]
        assert session.on_page(page).reason == "no_rows"
        assert self.swipes(session)[0].reason == "no_rows"

    def test_the_page_graph_fails(self, session: EdgeSession, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(blocks: Any) -> None:
            raise RuntimeError("tensor arena")

        assert session._reranker is not None
        monkeypatch.setattr(session._reranker.engine, "page", fail)
        assert session.on_page(page_bytes(range(101, 105))).reason == "engine_error"
        assert ids_of(self.swipes(session)) == [101, 102, 103]
        assert "tensor arena" in str(session.last_error)

    def test_the_swipe_graph_fails_and_recovers(self, session: EdgeSession, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any) -> None:
            raise RuntimeError("delegate is gone")

        session.on_page(page_bytes(range(101, 105)))
        assert session._reranker is not None
        with monkeypatch.context() as patch:
            patch.setattr(session._reranker.engine, "swipe", fail)
            assert self.swipes(session, 1)[0].reason == "engine_error"
        assert session.next().chooser is Chooser.MODEL

    def test_the_watch_graph_fails_and_recovers(
        self, session: EdgeSession, monkeypatch: pytest.MonkeyPatch, published: Open, clock: FakeClock
    ) -> None:
        def fail(*args: Any) -> None:
            raise RuntimeError("watch failed")

        session.on_page(page_bytes(range(101, 109)))
        first = session.next()
        assert session._reranker is not None
        with monkeypatch.context() as patch:
            patch.setattr(session._reranker.engine, "watch", fail)
            assert session.feedback(Feedback(first.video_id, 4000)) is Outcome.APPENDED
            assert "watch failed" in str(session.last_error)
            fallback = self.swipes(session, 1)[0]
            assert fallback.reason == "engine_error"
        after = session.next()
        assert after.chooser is Chooser.MODEL
        # The same as if nothing had failed.
        other = plain_session(FakeClock(), store=published("kir-a"))
        other.on_page(page_bytes(range(101, 109)))
        assert other.next().video_id == first.video_id
        other.feedback(Feedback(first.video_id, 4000))
        other.next()
        want = other.next()
        common = [v for v in after.considered if v in want.considered]
        assert after.scores_NT is not None
        assert want.scores_NT is not None
        got_rows = after.scores_NT[[after.considered.index(v) for v in common]]
        np.testing.assert_allclose(got_rows, want.scores_NT[[want.considered.index(v) for v in common]], atol=1e-5)

    def test_scores_that_are_no_numbers(self, session: EdgeSession, monkeypatch: pytest.MonkeyPatch) -> None:
        session.on_page(page_bytes(range(101, 105)))
        assert session._reranker is not None
        scores = np.full((4, len(TASKS)), np.nan, np.float32)
        monkeypatch.setattr(session._reranker.engine, "swipe", lambda *args: scores)
        choices = self.swipes(session)
        assert {choice.reason for choice in choices} == {"non_finite_scores"}
        assert ids_of(choices) == [101, 102, 103]

    def test_watching_what_a_page_without_rows_brought(self, session: EdgeSession) -> None:
        """Its token stands on the default row until a fitting page brings the video's own row."""
        session.on_page(page_bytes(range(101, 103), status="no_live_version"))
        choice = session.next()
        session.feedback(Feedback(choice.video_id, 3000))
        request = session.page_request()
        assert request.watched_ids == [choice.video_id]
        session.on_page(page_bytes(range(201, 209), watched=request.watched_ids, page_id="p2"))
        assert session._reranker is not None
        assert session._reranker.rows.revision[:2].tolist() == [7, 7]
        assert session.next().chooser is Chooser.MODEL


class TestHostilePages:
    @pytest.mark.parametrize(
        "data", [b"", b"\xff" * 40, page_bytes([101])[:-9], b"\x00" * 1000], ids=["empty", "noise", "cut", "zeros"]
    )
    def test_bytes_that_are_no_page_leave_the_pool_as_it_was(self, session: EdgeSession, data: bytes) -> None:
        session.on_page(page_bytes(range(101, 105)))
        with pytest.raises(PageError):
            session.on_page(data)
        assert session.next().chooser is Chooser.MODEL

    def test_rows_that_are_no_numbers_are_refused(self, session: EdgeSession) -> None:
        message = encode_page(make_page(range(201, 205), encoding="float32", page_id="nan"))
        values = np.frombuffer(message.row_tables[0].values, "<f4").copy()
        values[3] = np.nan
        message.row_tables[0].values = values.tobytes()
        session.on_page(page_bytes(range(101, 105)))
        with pytest.raises(PageError, match="non-finite"):
            session.on_page(message)
        assert session.next().considered == [101, 102, 103, 104]

    def test_pxtr_that_are_no_numbers_are_refused(self, session: EdgeSession) -> None:
        message = encode_page(make_page(range(201, 205)))
        pxtr = np.frombuffer(message.candidates.pxtr, "<f4").copy()
        pxtr[0] = np.inf
        message.candidates.pxtr = pxtr.tobytes()
        with pytest.raises(PageError, match="probabilities"):
            session.on_page(message)

    def test_rows_beyond_all_reason_are_refused(self, session: EdgeSession) -> None:
        """Finite on the wire and infinite in the net: it would spoil the other page's scores, and what is watched."""
        session.on_page(page_bytes(range(101, 105)))
        message = encode_page(make_page(range(201, 205), encoding="float32"))
        for table in message.row_tables:
            values = np.frombuffer(table.values, "<f4").copy()
            values[:] = 3e38
            table.values = values.tobytes()
        with pytest.raises(PageError, match="too large"):
            session.on_page(message)
        choice = session.next()
        assert (choice.chooser, choice.considered) == (Chooser.MODEL, [101, 102, 103, 104])


class TestPool:
    def test_exhausted_then_recovered(self, session: EdgeSession) -> None:
        with pytest.raises(PoolExhausted):
            session.next()
        session.on_page(page_bytes([101, 102]))
        assert [session.next().position, session.next().position] == [0, 1]
        with pytest.raises(PoolExhausted):
            session.next()
        session.on_page(page_bytes([201], page_id="p2"))
        assert session.next().video_id == 201

    def test_ttl_tiers_at_the_swipe(self, session: EdgeSession, clock: FakeClock) -> None:
        ttl = {"soft_ttl_ms": 1_000, "hard_ttl_ms": 5_000}
        session.on_page(page_bytes(range(101, 105), **ttl))
        clock.advance(5_000)
        assert session.next().page_id == "page-1"  # the last tier is better than nothing
        session.on_page(page_bytes(range(201, 205), page_id="p2", **ttl))
        assert {session.next().page_id for _ in range(4)} == {"p2"}
        with pytest.raises(PoolExhausted):
            session.next()  # the expired page was cleared when the new one came

    def test_wall_time_does_not_expire_a_page(self, session: EdgeSession, clock: FakeClock) -> None:
        session.on_page(page_bytes(range(101, 105), soft_ttl_ms=1_000, hard_ttl_ms=5_000))
        clock.set_wall(clock.wall_ms() + 10**9)
        assert not session.pool.pages[0].hard_expired(clock.monotonic_ms())


class TestPrefetch:
    def session(self, published: Open, clock: FakeClock, pages: FakePageClient, **config: Any) -> EdgeSession:
        settings = SessionConfig(pool=PoolConfig(prefetch_below=3), **config)
        session = EdgeSession(5, published("kir-a"), pages, clock=clock, config=settings)
        session.start()
        return session

    @staticmethod
    def answer(first: int, n: int = 4) -> Callable[[PageRequest], bytes]:
        return lambda request: page_bytes(
            range(first, first + n), "kir-a", request.watched_ids, page_id=f"page-{first}"
        )

    def test_the_next_page_is_there_before_the_last_is_used_up(self, published: Open, clock: FakeClock) -> None:
        pages = FakePageClient([self.answer(first) for first in (101, 201, 301, 401)])
        session = self.session(published, clock, pages)
        session.fetch_page()
        for _ in range(12):
            choice = session.next()
            session.feedback(Feedback(choice.video_id, 2000))
            session.maintain()
            session.wait_page(10)
        assert choice.chooser is Chooser.MODEL
        assert session.default_rows == 0  # rows came for every watched video
        assert len(pages.requests) >= 3
        session.close()

    def test_the_request_tells_what_the_server_needs(self, published: Open, clock: FakeClock) -> None:
        pages = FakePageClient([self.answer(101)])
        session = self.session(published, clock, pages, row_encoding="float16", page_size=12)
        session.fetch_page()
        choice = session.next(DeviceState(network=5))
        session.feedback(Feedback(choice.video_id, 2500, {"like": True, "long_view": False}))
        message = session.page_request().to_message()
        assert [(held.dense_version, held.spec_fingerprint) for held in message.held_models] == [
            ("kir-a", SPEC.fingerprint)
        ]
        (watched,) = message.watched
        assert (watched.video_id, watched.play_time_ms, watched.like, watched.long_view) == (
            choice.video_id,
            2500,
            True,
            False,
        )
        assert set(message.exclude_video_ids) == {101, 102, 103, 104}
        assert (message.page_size, message.row_encoding, message.network) == (12, 2, 5)
        assert message.client_time_ms == clock.wall_ms()

    def test_what_was_not_observed_is_absent(self, session: EdgeSession) -> None:
        session.on_page(page_bytes([101]))
        session.feedback(Feedback(session.next().video_id))
        (watched,) = session.page_request().to_message().watched
        assert not watched.HasField("play_time_ms")
        assert not watched.HasField("like")

    def test_a_server_that_is_gone_costs_no_swipe(self, published: Open, clock: FakeClock) -> None:
        pages = FakePageClient([self.answer(101), ServerUnavailable("gone"), self.answer(201)])
        session = self.session(published, clock, pages, retry_ms=1_000)
        session.fetch_page()
        for _ in range(2):
            session.next()
            session.maintain()
        assert session.wait_page(10)
        assert isinstance(session.last_error, ServerUnavailable)
        session.next()
        session.maintain()  # too early to ask again
        assert not session.wait_page(0.01)
        clock.advance(1_000)
        session.maintain()
        assert session.wait_page(10)
        assert session.next().considered != []
        session.close()

    @pytest.mark.parametrize("bad", [b"\xff\xff", page_bytes([7, 8])[:-4], ValueError("bug in the client")])
    def test_whatever_the_server_sends(self, published: Open, clock: FakeClock, bad: Any) -> None:
        pages = FakePageClient([self.answer(101), bad])
        session = self.session(published, clock, pages)
        session.fetch_page()
        choices = []
        for _ in range(4):
            choices.append(session.next())
            session.maintain()
            session.wait_page(10)
        assert len(choices) == 4
        assert session.last_error is not None
        session.close()

    def test_an_exhausted_pool_asks_by_itself(self, published: Open, clock: FakeClock) -> None:
        session = self.session(published, clock, FakePageClient([self.answer(101)]))
        with pytest.raises(PoolExhausted):
            session.next()
        assert session.wait_page(10)
        assert session.next().chooser is Chooser.MODEL
        session.close()

    def test_without_a_source(self, session: EdgeSession) -> None:
        with pytest.raises(ServerError, match="no page source"):
            session.fetch_page()
        assert not session.wait_page(0.01)
        session.maintain()


class TestSessionIds:
    def test_they_rotate(self) -> None:
        ids = {EdgeSession(5).session_id for _ in range(20)}
        assert len(ids) == 20
        assert all(0 <= one < 2**63 for one in ids)


def test_a_model_that_others_activated_is_taken(tmp_path: Path, cdn: Path) -> None:
    """A session that found none offers itself what the store has now, though nothing was downloaded."""
    store = ModelStore(tmp_path / "cache", cdn)
    session = EdgeSession(1, store)
    assert session.start() == "no_model"
    other = ModelStore(tmp_path / "cache", cdn)
    other.activate(str(other.update()))
    assert session.update() == "kir-a"
    session.on_page(page_bytes(range(101, 109)))
    assert session.next().dense_version == "kir-a"
    assert session.update() is None
