"""`kir bench replay`: the published reranker orders logged pages; the checkpoint's tables stand for the server."""

from __future__ import annotations

import json

import pytest

import kir
from benchmarks.log_replay import GAINS, ORDERS
from tests.e2e.conftest import SmallLoop

pytestmark = pytest.mark.slow  # beside the session's tests it would only wait for the loop they build


def run(loop: SmallLoop, checkpoint: str, *flags: str) -> int:
    words = [str(loop.paths.checkpoint(checkpoint)), "--model", str(loop.paths.cdn)]
    return kir.main(["bench", "replay", *words, "--data", f"events:{loop.paths.events.parent}", *flags])


def test_both_orders_stand_beside_the_logged_one(small_loop: SmallLoop, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(small_loop, "kir-1", "--sizes", "3", "--max-pages", "40") == 0
    *table, line = capsys.readouterr().out.splitlines()
    (row,) = json.loads(line)["sizes"]
    assert row["size"] == 3
    assert row["pages"] + row["pages_all_same"] >= 40
    assert row["pages"] > 0
    for order in ORDERS:
        assert 0 < row[order] < 1
    for name, (ours, theirs) in GAINS.items():
        assert row[name]["mean"] == pytest.approx(row[ours] - row[theirs])
        assert f"{row[name]['mean']:+.4f}" in table[-1]
    assert row["by_view"] != row["per_swipe"], "the fusion has other wishes than the judged label"
    assert f"{row['logged']:.4f}" in "".join(table)


def test_rows_of_another_version_are_refused(small_loop: SmallLoop, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(small_loop, "kir-2") == 2
    told = capsys.readouterr().err
    assert small_loop.first in told
    assert small_loop.second in told


def test_days_that_the_model_was_trained_on_are_refused(
    small_loop: SmallLoop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(small_loop, "kir-1", "--holdout-days", "2") == 2
    told = capsys.readouterr().err
    assert "may have seen what it would be judged on" in told
    assert "--holdout-days 2" in told


@pytest.mark.parametrize("flags", [("--sizes", "1"), ("--holdout-days", "0")])
def test_sizes_that_make_no_page(
    small_loop: SmallLoop, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    assert run(small_loop, "kir-1", *flags) == 2
    assert "2 impressions or more" in capsys.readouterr().err
