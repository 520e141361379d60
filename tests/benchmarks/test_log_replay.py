"""Replay on logs: pages cut from a log, rows as a server sends them, and nDCG against known orders."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.log_replay import ORDERS, LoggedPages, _row, logged_pages, ndcg, server_orders
from benchmarks.replay_cli import replay_table
from contract.events import Events
from contract.features import block_keys, pool_rows
from contract.history import HistoryIndex
from contract.page import CANDIDATE, USER, encode_page, parse_page
from contract.specs import kir_spec
from contract.user_profile import profiles_at
from training.tables import SparseTables, table_keys

SPEC = kir_spec()


def log(users: list[int], videos: list[int], times: list[int] | None = None) -> Events:
    n = len(users)
    return Events(
        {
            "user_id": users,
            "video_id": videos,
            "author_id": [v + 100 for v in videos],
            "time_ms": times or list(range(n)),
            "duration_ms": [9000] * n,
            "long_view": [v % 2 for v in videos],
        }
    )


class TestNdcg:
    def test_known_values(self) -> None:
        assert ndcg([1, 0, 0]) == 1.0
        assert ndcg([0, 1, 0]) == pytest.approx(1 / math.log2(3))
        assert ndcg([0, 1, 1]) == pytest.approx((1 / math.log2(3) + 0.5) / (1 + 1 / math.log2(3)))

    @pytest.mark.parametrize("labels", [[1, 1], [0, 0, 0]])
    def test_labels_that_are_all_the_same_say_nothing(self, labels: list[int]) -> None:
        assert math.isnan(ndcg(labels))


class TestLoggedPages:
    def test_pages_are_consecutive_impressions_of_one_user(self) -> None:
        events = log([1, 1, 1, 1, 1, 2, 2], [1, 2, 3, 4, 5, 6, 7])
        found = [[page.tolist() for page in pages] for pages in logged_pages(events, 2, start_ms=0)]
        assert found == [[[0, 1], [2, 3]], [[5, 6]]]

    def test_the_window_starts_where_told(self) -> None:
        events = log([1] * 4, [1, 2, 3, 4], [0, 10, 20, 30])
        assert [page.tolist() for pages in logged_pages(events, 2, start_ms=20) for page in pages] == [[2, 3]]

    def test_repeats_of_a_video_are_left_out(self) -> None:
        events = log([1] * 6, [5, 5, 6, 7, 5, 8])
        assert [page.tolist() for pages in logged_pages(events, 2, start_ms=0) for page in pages] == [[0, 2], [3, 5]]


class TestServerOrder:
    """What a page shows without a reranker, the floor that it is held against."""

    def test_by_the_servers_long_view_alone(self) -> None:
        pxtr = np.zeros((5, 7), np.float32)
        pxtr[:, 1] = [0.2, 0.9, 0.5, 0.5, np.nan]
        pxtr[:, 0] = [0.9, 0.1, 0.0, 0.0, 0.99]  # clicks say otherwise
        events = log([1] * 5, [1, 2, 3, 4, 5]).with_columns(pxtr=pxtr)
        pages = [np.array([4, 0, 1]), np.array([3, 2])]
        assert server_orders(events, pages) == [[2, 1, 0], [0, 1]]

    def test_without_predictions_the_log_stands(self) -> None:
        events = log([1] * 3, [1, 2, 3]).with_columns(pxtr=np.full((3, 7), np.nan, np.float32))
        assert server_orders(events, [np.array([2, 0, 1])]) == [[0, 1, 2]]


def test_every_order_has_its_mean_and_every_difference_its_interval() -> None:
    row = _row(3, np.array([[0, 0.5, 0.6, 0.7, 0.8, 0.9], [1, 0.3, 0.9, 0.4, 0.4, 1.0]]), same=4)
    assert [row[name] for name in ORDERS] == pytest.approx([0.4, 0.75, 0.55, 0.6, 0.95])
    assert row["server_gain"]["mean"] == pytest.approx(-0.15), "worse than what it was given"
    assert row["view_gain"]["mean"] == pytest.approx(0.2)
    assert row["server_gain"]["low"] < 0 < row["server_gain"]["high"]
    text = replay_table({"protocol": "how", "sizes": [row]})
    assert "per-swipe − server" in text
    assert "-0.1500" in text
    assert "no user has" in replay_table({"protocol": "how", "sizes": []})


def test_a_logged_page_carries_the_checkpoints_rows() -> None:
    """Through the wire and back, a candidate's features are those of the tables, up to the int8 step of its rows."""
    events = log([7] * 3, [1, 2, 3])
    columns = {name: events[name] for name in ("user_id", "video_id", "author_id", "tags")}
    index = HistoryIndex.from_events(events, every=True)
    profiles = profiles_at(index, events["user_id"], events["time_ms"], np.arange(3))
    columns["recent_authors"] = profiles["recent_authors"]
    tables = SparseTables.from_spec_and_keys(
        SPEC, table_keys(SPEC, [("user_rows", columns), ("candidate_rows", columns)]), seed=3
    )
    page = LoggedPages(events, SPEC, tables, "kir-x", 4).page(np.array([2, 0]))
    back = parse_page(encode_page(page).SerializeToString())
    assert back.candidates.video_id.tolist() == [3, 1]
    assert (back.dense_version, back.rows_revision, back.spec_fingerprint) == ("kir-x", 4, SPEC.fingerprint)
    np.testing.assert_array_equal(back.user_profile, profiles["user_profile"][2])
    for owner, block, rows in ((USER, "user_rows", [2]), (CANDIDATE, "candidate_rows", [2, 0])):
        keys = block_keys(SPEC, block, {name: column[rows] for name, column in columns.items()})
        slots = {c.field.name: tables.slots(c.field.table, keys[c.field.name]) for c in SPEC.columns(block)}
        shape = (len(rows), SPEC.width(block))
        want = pool_rows(SPEC, block, tables.numpy_rows(), slots, np.zeros(shape, np.float32))
        sent = {c.field.name: back.rows.slots[owner, c.field.name] for c in SPEC.columns(block)}
        got = pool_rows(SPEC, block, back.rows.decoded(), sent, np.zeros(shape, np.float32))
        np.testing.assert_allclose(got, want, atol=2e-3)
