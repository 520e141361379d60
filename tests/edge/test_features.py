"""Feature assembly: a page's rows into blocks, default rows counted, pages that do not fit, device state."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from contract.errors import InputError
from contract.page import CANDIDATE, WATCHED, Page, Rows
from contract.rows import FLOAT32, encode_rows
from contract.vocabulary import MISSING_KEY
from contract.watched import WATCHED_COLUMNS
from edge import DeviceState, Feedback
from edge._features import SwipeFeatures, WatchedRows, page_features, unfit_reason, watched_item
from tests.edge.tiny_model import SPEC
from tests.edge.tiny_page import RECENT_AUTHORS, USER_ID, make_page, row_of

VERSION = "kir-a"


def page_of(*ids: int, watched: tuple[int, ...] = ()) -> Page:
    return make_page(ids, VERSION, watched, encoding=FLOAT32)


def with_rows(page: Page, **changes: Any) -> Page:
    return dataclasses.replace(page, rows=dataclasses.replace(page.rows, **changes))


def field_columns(name: str) -> slice:
    field = next(f for f in SPEC.fields if f.name == name)
    return next(c.slice for c in SPEC.columns(field.block) if c.field.name == name)


class TestPageFeatures:
    def test_each_candidate_gets_its_own_rows(self) -> None:
        features = page_features(SPEC, page_of(101, 102), 2, [])
        rows = features.blocks["candidate_rows"]
        for i, video_id in enumerate((101, 102)):
            np.testing.assert_array_equal(rows[i, field_columns("video_id")], row_of(VERSION, "video", video_id, 4))
        user_row = features.blocks["user_rows"][0]
        np.testing.assert_array_equal(user_row[field_columns("user_id")], row_of(VERSION, "user", USER_ID, 4))
        authors = [row_of(VERSION, "author", int(key), 4) for key in RECENT_AUTHORS[0] if key != MISSING_KEY]
        np.testing.assert_allclose(user_row[field_columns("user_authors")], np.mean(authors, axis=0), rtol=1e-6)

    def test_several_tags_are_averaged_and_none_is_the_default(self) -> None:
        features = page_features(SPEC, page_of(104, 102), 2, [])
        tags = features.blocks["candidate_rows"][:, field_columns("tags")]
        first, second = row_of(VERSION, "tag", 104 % 5 + 1, 4), row_of(VERSION, "tag", 104 % 11 + 20, 4)
        np.testing.assert_allclose(tags[0], (first + second) / 2, rtol=1e-6)
        np.testing.assert_array_equal(tags[1], row_of(VERSION, "tag", int(MISSING_KEY), 4))

    def test_dense_blocks_follow_the_spec(self) -> None:
        blocks = page_features(SPEC, page_of(101, 105), 2, []).blocks
        assert blocks["user_dense"][0, field_columns("hour")].argmax() == 13
        position = blocks["candidate_dense"][:, field_columns("server_position")]
        np.testing.assert_allclose(position, [[0, 1], [1 / 64, 1]])
        assert blocks["candidate_dense"][1, field_columns("upload_age")].sum() == 0  # unknown age
        assert blocks["candidate_dense"][1, field_columns("pxtr")][7:].tolist() == [0] * 7  # 105: the ranker gave none

    def test_a_candidates_row_as_a_watched_video(self) -> None:
        features = page_features(SPEC, page_of(101, 102), 2, [])
        got = features.watched_rows_nR[1, field_columns("watched_video_id")]
        np.testing.assert_array_equal(got, row_of(VERSION, "video", 102, 4))

    def test_rows_of_the_requests_watched_videos(self) -> None:
        features = page_features(SPEC, page_of(101, watched=(7, 8)), 1, [7, 8])
        assert list(features.request_rows) == [7, 8]
        got = features.request_rows[8][field_columns("watched_author_id")]
        np.testing.assert_array_equal(got, row_of(VERSION, "author", 8 // 3 + 1000, 4))

    def test_the_start_token_takes_default_rows(self) -> None:
        start = page_features(SPEC, page_of(101), 1, []).start_R
        np.testing.assert_array_equal(
            start[field_columns("watched_video_id")], row_of(VERSION, "video", int(MISSING_KEY), 4)
        )

    def test_candidates_are_cut_in_server_order(self) -> None:
        features = page_features(SPEC, page_of(101, 102, 103), 2, [])
        assert len(features.blocks["candidate_rows"]) == len(features.watched_rows_nR) == 2


class TestDefaultRows:
    def test_none_are_counted_on_a_whole_page(self) -> None:
        assert page_features(SPEC, page_of(101, 104, watched=(7,)), 2, [7]).default_rows == 0

    def test_an_absent_index_gives_default_rows_and_is_counted(self) -> None:
        page = page_of(101, 104)
        slots = {key: value for key, value in page.rows.slots.items() if key != (CANDIDATE, "author_id")}
        features = page_features(SPEC, with_rows(page, slots=slots), 2, [])
        default = row_of(VERSION, "author", int(MISSING_KEY), 4)
        for row in features.blocks["candidate_rows"][:, field_columns("author_id")]:
            np.testing.assert_array_equal(row, default)
        assert features.default_rows == 2

    def test_a_row_the_server_did_not_have(self) -> None:
        page = page_of(101, 104)
        slots = {**page.rows.slots, (CANDIDATE, "video_id"): np.array([[0], [1]])}
        assert page_features(SPEC, with_rows(page, slots=slots), 2, []).default_rows == 1

    @pytest.mark.parametrize("listed", [[7], [7, 8, 9], []])
    def test_rows_of_another_request_are_not_taken(self, listed: list[int]) -> None:
        """The page answers a request with two watched videos; the caller says otherwise."""
        features = page_features(SPEC, page_of(101, watched=(7, 8)), 1, listed)
        default = row_of(VERSION, "video", int(MISSING_KEY), 4)
        for row in features.request_rows.values():
            np.testing.assert_array_equal(row[field_columns("watched_video_id")], default)


class TestFit:
    def test_a_page_of_this_version_fits(self) -> None:
        assert unfit_reason(SPEC, VERSION, page_of(101)) == ""

    @pytest.mark.parametrize("status", ["no_live_version", "spec_mismatch", "not_needed"])
    def test_any_other_status_is_the_reason(self, status: str) -> None:
        page = make_page([101], VERSION, status=status)
        assert unfit_reason(SPEC, VERSION, page) == f"rows_status:{status}"

    def test_another_version(self) -> None:
        assert unfit_reason(SPEC, "kir-z", page_of(101)) == "version_mismatch"

    def test_another_spec(self) -> None:
        page = dataclasses.replace(page_of(101), spec_fingerprint="0" * 16)
        assert unfit_reason(SPEC, VERSION, page) == "spec_mismatch"

    def test_an_absent_table(self) -> None:
        page = page_of(101)
        tables = {name: table for name, table in page.rows.tables.items() if name != "author"}
        assert unfit_reason(SPEC, VERSION, with_rows(page, tables=tables)) == "no_rows"

    def test_a_table_of_another_width(self) -> None:
        page = page_of(101)
        tables = {**page.rows.tables, "author": encode_rows(np.zeros((9, 5), np.float32))}
        assert unfit_reason(SPEC, VERSION, with_rows(page, tables=tables)) == "spec_mismatch"

    def test_a_feature_out_of_another_table(self) -> None:
        page = page_of(101)
        named = {**page.rows.feature_table, (CANDIDATE, "author_id"): "video"}
        assert unfit_reason(SPEC, VERSION, with_rows(page, feature_table=named)) == "spec_mismatch"

    def test_pxtr_only_needs_no_rows(self) -> None:
        spec = SPEC.without_served()
        page = make_page([101], VERSION, spec=spec, status="not_needed")
        assert unfit_reason(spec, VERSION, page) == ""
        features = page_features(spec, page, 1, [])
        assert set(features.blocks) == {"user_dense", "candidate_dense"}
        assert features.default_rows == 0


class TestWatchedRows:
    def rows(self) -> WatchedRows:
        made = WatchedRows(4, 2)
        made.put(0, np.zeros(2, np.float32), 1)
        for slot in range(1, 5):
            made.put(slot, np.full(2, slot, np.float32), 1)
        return made

    def test_eviction_moves_the_rest_down(self) -> None:
        rows = self.rows()
        rows.evict(2)
        assert rows.rows[:3, 0].tolist() == [0, 3, 4]

    def features(self, **request: float) -> Any:
        page = page_features(SPEC, page_of(101), 1, [])
        found = {int(name[1:]): np.full(2, value, np.float32) for name, value in request.items()}
        return dataclasses.replace(page, start_R=np.full(2, 9, np.float32), request_rows=found)

    def test_a_frozen_row_stays(self) -> None:
        rows = self.rows()
        assert rows.adopt(self.features(v11=50.0), [11, 12], 2) == 5
        assert rows.rows[1, 0] == 1

    def test_a_row_that_was_missing_is_taken_and_told(self) -> None:
        rows = self.rows()
        rows.put(2, None, -1)
        assert rows.rows[2, 0] == 0  # the default row stands in
        assert rows.adopt(self.features(v12=50.0), [11, 12, 13], 2) == 2
        assert rows.rows[2, 0] == 50
        assert rows.adopt(self.features(v12=70.0), [11, 12, 13], 3) == 5

    def test_a_new_model_takes_everything(self) -> None:
        rows = WatchedRows(4, 2)
        assert rows.adopt(self.features(v11=1.0, v13=3.0), [11, 12, 13], 2) == 0
        assert rows.rows[:4, 0].tolist() == [9, 1, 9, 3]
        assert rows.revision[:4].tolist() == [2, 2, -1, 2]


class TestSwipeFeatures:
    def test_device_state(self) -> None:
        features = SwipeFeatures(SPEC, [4])
        row = features.device(DeviceState(network=6, decoder=1), swipe_index=3)[0]
        assert row[field_columns("network")].argmax() == 6
        assert row[field_columns("decoder")].argmax() == 1
        assert row[field_columns("swipe_index")].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
        again = features.device(DeviceState(network=2), swipe_index=0)[0]
        assert again.sum() == 2  # nothing of before is left, and an unknown decoder feeds nothing

    def test_preload_of_each_candidate(self) -> None:
        features = SwipeFeatures(SPEC, [4])
        device = DeviceState(buffered_ms={11: 5_000, 13: 99_000, 12: 0})
        block = features.candidates(device, [11, 12, 13], 4)[0]
        np.testing.assert_allclose(block, [[0.5, 1], [0, 1], [1, 1], [0, 0]])
        assert not features.candidates(DeviceState(), [11, 12, 13], 4).any()

    def test_values_out_of_range_are_refused_before_the_swipe(self) -> None:
        with pytest.raises(InputError, match="network"):
            DeviceState(network=7)
        with pytest.raises(InputError, match="decoder"):
            DeviceState(decoder=-1)


class TestFeedbackChecks:
    @pytest.mark.parametrize(
        "values",
        [
            {"signals": {"share": True}},
            {"play_time_ms": -5},
            {"play_time_ms": 2**31},
            {"comment_stay_ms": -1},
            {"revision": -1},
            {"video_id": "x"},
            {"video_id": -1},
            {"play_time_ms": 8.7},
            {"play_time_ms": "8"},
            {"play_time_ms": True},
            {"signals": ["like"]},
            {"signals": {"like": "no"}},
            {"signals": {"like": None}},
            {"signals": {"like": 7}},
            {"has_next": "x"},
            {"revision": 1.5},
            {"shown_at_ms": -5},
            {"shown_at_ms": 2**70},
        ],
    )
    def test_unusable_feedback_is_refused(self, values: dict[str, Any]) -> None:
        """Before anything changes: taken in by half, a value that no column holds would spoil the video for good."""
        with pytest.raises(InputError, match=r"got .*; allowed: |mapping"):
            Feedback(**{"video_id": 1, **values})

    def test_numpys_numbers_are_numbers(self) -> None:
        one = Feedback(np.uint64(2**63), np.int32(5), {"like": np.bool_(True), "follow": 0}, has_next=np.bool_(False))
        assert (one.video_id, one.play_time_ms, one.has_next) == (2**63, 5, False)
        device = DeviceState(network=np.int8(6), volume=np.float32(0.5))
        kinds = [type(value) for value in (one.video_id, one.play_time_ms, one.has_next, device.network, device.volume)]
        assert one.signals["like"] is True
        assert kinds == [int, int, bool, int, float], "messages and state files take no others"

    @pytest.mark.parametrize(
        "values",
        [
            {"network": "wifi"},
            {"network": 1.5},
            {"network": True},
            {"decoder": None},
            {"volume": "loud"},
            {"volume": 5.0},
            {"volume": float("nan")},
            {"landscape": "yes"},
            {"buffered_ms": None},
            {"buffered_ms": [1]},
            {"buffered_ms": {1: -5}},
            {"buffered_ms": {"1": 5}},
        ],
    )
    def test_an_unusable_device_state_is_refused(self, values: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"device: .*got "):
            DeviceState(**values)


def test_a_watched_item_keeps_the_pxtr_it_was_sent_with() -> None:
    page = page_of(101, 102)
    item = watched_item(page, 1, 5, DeviceState(volume=0.25, landscape=True))
    assert item["video_id"] == 102
    np.testing.assert_array_equal(item["pxtr"], page.candidates.pxtr[1])
    assert (item["number"], item["volume"], item["landscape"]) == (5, 0.25, 1)
    assert set(item) <= set(WATCHED_COLUMNS)
    unknown = watched_item(page, 0, 0, DeviceState())
    assert np.isnan(unknown["volume"])
    assert unknown["landscape"] == -1


def test_watched_owner_is_what_the_server_writes() -> None:
    """The fields of WATCHED indexes are those of the watched_rows block, in the order of the request."""
    page = page_of(101, watched=(7, 8))
    assert {name for owner, name in page.rows.slots if owner == WATCHED} == {
        c.field.name for c in SPEC.columns("watched_rows")
    }
    assert isinstance(page.rows, Rows)
