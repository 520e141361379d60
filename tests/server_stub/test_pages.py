"""A page without sockets: the handshake, de-duplicated rows, what hostile requests come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.features import block_keys, pool_rows
from contract.page import Page, decode_page
from contract.rows import FLOAT16, FLOAT32, INT8
from contract.spec import FeatureSpec
from contract.specs import kir_spec
from contract.user_profile import AUTHORS_MAX
from contract.v1 import page_pb2 as pb
from contract.vocabulary import MISSING_KEY
from server_stub.config import ServerConfig
from server_stub.page_request import EXCLUDE_MAX, WATCHED_MAX, hour_of, parse_request
from server_stub.pages import PageMaker, shake_hands
from server_stub.store import LiveVersion, block_rows
from server_stub.testing import FakeRecommender, fake_backend, fake_tables
from tests.server_stub.conftest import NOW_MS, counted_ids, held, request

SPEC = kir_spec()
OTHER = kir_spec(video=8)


def maker(*versions: str, current: str = "", spec: FeatureSpec | None = None, **config: Any) -> PageMaker:
    backend = fake_backend(versions, spec=spec)
    return PageMaker(
        backend.recommender,
        backend.store,
        ServerConfig(**config),
        clock=lambda: NOW_MS,
        page_ids=counted_ids(),
        current=current or backend.current,
    )


def page_of(pages: PageMaker, message: pb.GetPageRequest) -> Page:
    response = pb.GetPageResponse.FromString(pages.answer(message.SerializeToString()))
    assert response.WhichOneof("outcome") == "page", response
    return decode_page(response.page)


def refusal_of(pages: PageMaker, data: bytes) -> pb.PageRefusal:
    response = pb.GetPageResponse.FromString(pages.answer(data))
    assert response.WhichOneof("outcome") == "refusal"
    return response.refusal


class TestHandshake:
    """The four states, from the rule and through a whole page."""

    def live(self, *names: str, spec: FeatureSpec = SPEC) -> list[LiveVersion]:
        return [LiveVersion(name, spec, 1) for name in names]

    @pytest.mark.parametrize(
        ("have", "live", "current", "status", "version", "fetch"),
        [
            (["a"], ["a"], "a", "ok", "a", ""),
            (["a"], ["a", "b"], "b", "ok", "a", "b"),  # a newer one is out, the old one goes on
            (["a", "b"], ["a", "b"], "b", "ok", "a", ""),  # the phone's first choice counts
            (["z", "b"], ["a", "b"], "b", "ok", "b", ""),
            ([], ["a"], "a", "no_live_version", None, "a"),  # first start
            (["z"], ["a"], "a", "no_live_version", None, "a"),
            (["z"], [], "", "no_live_version", None, ""),
            (["a"], ["a"], "c", "ok", "a", ""),  # the pointer is ahead of the rows: not announced
            ([], ["a", "b"], "c", "no_live_version", None, "b"),
        ],
    )
    def test_rule(self, have: list[str], live: list[str], current: str, status: str, version: Any, fetch: str) -> None:
        hands = shake_hands(tuple((name, SPEC.fingerprint) for name in have), self.live(*live), current)
        assert hands.rows_status == status
        assert (hands.version.dense_version if hands.version else None) == version
        assert hands.fetch_version == fetch

    def test_another_spec_is_a_mismatch_and_is_fetched_anew(self) -> None:
        hands = shake_hands((("a", OTHER.fingerprint),), self.live("a"), "a")
        assert (hands.rows_status, hands.version, hands.fetch_version) == ("spec_mismatch", None, "a")

    def test_a_mismatch_does_not_hide_a_later_fit(self) -> None:
        hands = shake_hands((("a", OTHER.fingerprint), ("b", SPEC.fingerprint)), self.live("a", "b"), "a")
        assert (hands.rows_status, hands.fetch_version) == ("ok", "a")

    def test_ok_page(self) -> None:
        page = page_of(maker("a", "b"), request(held_models=held("a")))
        assert (page.rows_status, page.dense_version, page.fetch_version, page.rows_revision) == ("ok", "a", "b", 1)
        assert page.spec_fingerprint == SPEC.fingerprint
        assert set(page.rows.tables) == {"user", "video", "author", "tag"}

    @pytest.mark.parametrize(
        ("models", "status"), [([], "no_live_version"), (held("a", fingerprint=OTHER.fingerprint), "spec_mismatch")]
    )
    def test_a_page_without_rows_still_has_candidates(self, models: list[pb.HeldModel], status: str) -> None:
        page = page_of(maker("a"), request(held_models=models))
        assert (page.rows_status, page.dense_version, page.rows_revision, page.fetch_version) == (status, "", 0, "a")
        assert page.rows.tables == {}
        assert len(page.candidates) == 20
        assert np.isfinite(page.candidates.pxtr).all()

    def test_pxtr_only_mode_needs_no_rows(self) -> None:
        spec = SPEC.without_served()
        page = page_of(maker("a", spec=spec), request(held_models=held("a", fingerprint=spec.fingerprint)))
        assert (page.rows_status, page.dense_version, page.fetch_version) == ("not_needed", "a", "")
        assert page.rows.tables == {}


class TestRows:
    WATCHED = (1007, 1003, 4, 1007)  # 4 is in no catalogue, 1007 comes twice

    def page(self, pages: PageMaker, **fields: Any) -> Page:
        watched = [pb.WatchedVideo(video_id=v) for v in self.WATCHED]
        return page_of(pages, request(held_models=held("a"), watched=watched, **fields))

    @pytest.mark.parametrize("user_id", [2, 10**12])
    def test_pooled_rows_equal_a_lookup_in_the_whole_tables(self, user_id: int) -> None:
        """What the phone pools from the page's compact tables is what the server's own tables give."""
        pages = maker("a")
        page = self.page(pages, row_encoding=pb.ROW_ENCODING_FLOAT32, user_id=user_id)
        catalogue = pages.recommender.catalogue
        tables, decoded = fake_tables(SPEC, catalogue), page.rows.decoded()
        place = catalogue.index_of(np.array(self.WATCHED, np.uint64))
        watched = {
            "video_id": np.array(self.WATCHED, np.uint64),
            "author_id": np.where(place < 0, MISSING_KEY, catalogue.author_id[place]),
            "tags": np.where(place[:, None] < 0, MISSING_KEY, catalogue.tags[place]),
        }
        c = page.candidates
        user = {
            "user_id": np.array([user_id], np.uint64),
            "recent_authors": pages.recommender.recommend(user_id).recent_authors[None],
        }
        owners = {
            "user_rows": ("user", user, 1),
            "candidate_rows": ("candidate", {"video_id": c.video_id, "author_id": c.author_id, "tags": c.tags}, 20),
            "watched_rows": ("watched", watched, len(self.WATCHED)),
        }
        for block, (owner, columns, n) in owners.items():
            slots = {col.field.name: page.rows.slots[owner, col.field.name] for col in SPEC.columns(block)}
            got = pool_rows(SPEC, block, decoded, slots, np.zeros((n, SPEC.width(block)), np.float32))
            np.testing.assert_allclose(got, block_rows(SPEC, block, tables, columns, n), rtol=1e-6, atol=1e-7)

    def test_rows_are_not_repeated(self) -> None:
        page = self.page(maker("a"))
        for name, rows in page.rows.decoded().items():
            unique = np.unique(rows, axis=0)
            assert len(unique) == len(rows), name
        owners = {owner for owner, _ in page.rows.slots}
        assert owners == {"user", "candidate", "watched"}
        assert len(page.rows.tables["video"].scales) == 2 * (1 + 20 + 2)

    def test_keys_without_a_row_take_the_default_and_are_counted(self) -> None:
        pages = maker("a")
        page = self.page(pages, user_id=10**12)
        assert page.rows.slots["user", "user_id"].tolist() == [[0]]
        assert page.rows.slots["watched", "watched_video_id"][:, 0].tolist()[2] == 0
        assert pages.stats.missing_rows == 2  # the user, video 4

    def test_null_tags_are_no_entries(self) -> None:
        page = self.page(maker("a"))
        slots = page.rows.slots["watched", "watched_tags"]
        assert (slots[2] == -1).all()

    def test_nothing_watched_is_an_empty_index(self) -> None:
        page = page_of(maker("a"), request(held_models=held("a")))
        assert page.rows.slots["watched", "watched_video_id"].shape == (0, 1)

    @pytest.mark.parametrize(
        ("asked", "got"),
        [
            (pb.ROW_ENCODING_UNSPECIFIED, INT8),
            (pb.ROW_ENCODING_INT8, INT8),
            (pb.ROW_ENCODING_FLOAT16, FLOAT16),
            (pb.ROW_ENCODING_FLOAT32, FLOAT32),
            (99, INT8),
        ],
    )
    def test_encoding_is_the_phones_choice(self, asked: int, got: str) -> None:
        page = page_of(maker("a"), request(held_models=held("a"), row_encoding=asked))
        assert {table.encoding for table in page.rows.tables.values()} == {got}

    def test_keys_are_those_of_the_spec(self) -> None:
        page = self.page(maker("a"))
        for block, owner in (("user_rows", "user"), ("candidate_rows", "candidate"), ("watched_rows", "watched")):
            for column in SPEC.columns(block):
                assert page.rows.feature_table[owner, column.field.name] == column.field.table
        user = {"user_id": np.array([2], np.uint64), "recent_authors": np.array([[7]], np.uint64)}
        keys = block_keys(SPEC, "user_rows", user)
        assert keys["user_id"].tolist() == [[2]]
        assert keys["user_authors"].tolist() == [[7, *[int(MISSING_KEY)] * (AUTHORS_MAX - 1)]]

    def test_a_version_retired_in_between_leaves_a_page_without_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pages = maker("a")
        stale = pages.store.versions()
        pages.store.remove_version("a")
        monkeypatch.setattr(pages.store, "versions", lambda: stale)
        page = page_of(pages, request(held_models=held("a")))
        assert (page.rows_status, page.dense_version) == ("no_live_version", "")

    def test_a_block_no_page_carries_is_not_served_wrong(self) -> None:
        fields = tuple(f for f in SPEC.fields if f.block != "swipe_dense")
        from contract.spec import Field

        extra = Field("odd", "video_id", "odd_rows", "video", "page", "served", 16, table="video")
        spec = FeatureSpec("odd", (*fields, extra))
        pages = maker("a", spec=spec)
        page = page_of(pages, request(held_models=held("a", fingerprint=spec.fingerprint)))
        assert page.rows_status == "no_live_version"


class TestContent:
    def test_server_order_versions_ttl_and_user(self) -> None:
        page = page_of(maker("a", soft_ttl_ms=1_000, hard_ttl_ms=2_000), request(user_id=5))
        expected = FakeRecommender().recommend(5, 20, now_ms=NOW_MS)
        np.testing.assert_array_equal(page.candidates.video_id, expected.video_id)
        np.testing.assert_array_equal(page.candidates.pxtr, expected.pxtr)
        assert (page.soft_ttl_ms, page.hard_ttl_ms, page.server_time_ms) == (1_000, 2_000, NOW_MS)
        assert (page.retrieval_version, page.ranker_version) == ("fake-1", "fake-1")
        assert (page.user_activity, page.user_register_days) == (5, 100)
        np.testing.assert_array_equal(page.user_profile, expected.user_profile)

    @pytest.mark.parametrize(("size", "n"), [(0, 7), (1, 1), (13, 13)])
    def test_page_size(self, size: int, n: int) -> None:
        assert len(page_of(maker("a", page_size=7), request(page_size=size)).candidates) == n

    def test_watched_and_excluded_videos_are_not_sent(self) -> None:
        message = request(
            watched=[pb.WatchedVideo(video_id=1003)], exclude_video_ids=[1002, 1005, 2**64 - 1], page_size=199
        )
        sent = page_of(maker("a"), message).candidates.video_id
        assert len(sent) == 197
        assert not np.isin(sent, [1002, 1003, 1005]).any()

    def test_watched_feedback_reaches_the_recommender(self) -> None:
        pages = maker("a")
        video = pb.WatchedVideo(video_id=1003, play_time_ms=0, like=False, long_view=True, shown_at_ms=NOW_MS - 5)
        page_of(pages, request(watched=[video, pb.WatchedVideo(video_id=1004, shown_at_ms=-3)]))
        first, second = pages.recommender.asked[0]["watched"]  # type: ignore[attr-defined]
        assert (first.video_id, first.time_ms, first.play_time_ms) == (1003, NOW_MS - 5, 0)
        assert first.signals == {"like": 0, "long_view": 1}
        assert (second.time_ms, second.play_time_ms, second.signals) == (-1, -1, {})

    @pytest.mark.parametrize(
        ("time_ms", "offset", "hour"), [(0, 0, 0), (3_599_999, 0, 0), (3_600_000, 480, 9), (0, -60, 23)]
    )
    def test_hour_of_the_users_day(self, time_ms: int, offset: int, hour: int) -> None:
        assert hour_of(time_ms, offset) == hour

    def test_hour_comes_from_the_phones_clock(self) -> None:
        pages = maker("a", utc_offset_min=480)
        assert page_of(pages, request(client_time_ms=3_600_000)).hour == 9
        assert page_of(pages, request()).hour == hour_of(NOW_MS, 480)
        assert [asked["now_ms"] for asked in pages.recommender.asked] == [NOW_MS, NOW_MS]  # type: ignore[attr-defined]

    def test_replays_take_the_phones_clock_as_now(self) -> None:
        pages = maker("a", client_clock=True)
        page_of(pages, request(client_time_ms=3_600_000))
        assert pages.recommender.asked[0]["now_ms"] == 3_600_000  # type: ignore[attr-defined]

    def test_pages_are_logged_as_sent(self) -> None:
        pages = maker("a")
        page = page_of(pages, request(user_id=4, session_id=9, held_models=held("a")))
        sent = pages.page_log.get(page.page_id)
        assert sent is not None
        assert (sent.user_id, sent.session_id, sent.page.dense_version) == (4, 9, "a")
        np.testing.assert_array_equal(sent.page.candidates.pxtr, page.candidates.pxtr)
        assert sent.page.rows.tables == {}


class TestRefusals:
    def test_nothing_left(self) -> None:
        message = request(exclude_video_ids=range(1000, 1200))
        refusal = refusal_of(maker("a"), message.SerializeToString())
        assert refusal.reason == pb.REFUSAL_REASON_NO_CANDIDATES

    @pytest.mark.parametrize(
        "message",
        [
            request(page_size=501),
            request(page_size=2**32 - 1),
            request(user_id=2**64 - 1),
            request(exclude_video_ids=range(100_000)),
            request(exclude_video_ids=range(EXCLUDE_MAX + 1)),
            request(watched=[pb.WatchedVideo(video_id=1)] * (WATCHED_MAX + 1)),
            request(watched=[pb.WatchedVideo(video_id=2**64 - 1)]),
            request(watched=[pb.WatchedVideo(video_id=1, play_time_ms=2**32 - 1)]),
            request(held_models=held(*("a" * 17))),
            request(held_models=held("a" * 200)),
            request(held_models=[pb.HeldModel(spec_fingerprint="x")]),
        ],
    )
    def test_bad_requests(self, message: pb.GetPageRequest) -> None:
        pages = maker("a")
        refusal = refusal_of(pages, message.SerializeToString())
        assert refusal.reason == pb.REFUSAL_REASON_BAD_REQUEST
        assert refusal.message
        assert pages.stats.refusals == 1

    @given(st.binary(max_size=200))
    def test_garbage_bytes_never_raise(self, data: bytes) -> None:
        response = pb.GetPageResponse.FromString(maker("a").answer(data))
        assert response.WhichOneof("outcome") in ("page", "refusal")

    def test_a_bug_is_an_internal_refusal_without_its_text(self, caplog: pytest.LogCaptureFixture) -> None:
        pages = maker("a")
        pages.recommender.fail = RuntimeError("secret path")  # type: ignore[attr-defined]
        refusal = refusal_of(pages, request().SerializeToString())
        assert refusal.reason == pb.REFUSAL_REASON_INTERNAL
        assert refusal.retry_after_ms > 0
        assert "secret" not in refusal.message
        assert "secret path" in caplog.text

    def test_extreme_times_are_taken_as_absent(self) -> None:
        message = request(
            client_time_ms=-(2**63), watched=[pb.WatchedVideo(video_id=1003, shown_at_ms=2**63 - 1)]
        ).SerializeToString()
        parsed = parse_request(message, 10)
        assert parsed.client_time_ms == 0
        assert parsed.watched[0].time_ms == -1
        assert page_of(maker("a"), request(client_time_ms=2**63 - 1)).hour in range(24)
