"""`kir bench edge` at the smallest sizes: the session runs in a process of its own, and every figure is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.edge_latency import TARGETS, measure_edge
from benchmarks.edge_swiper import SwiperProcess
from contract.errors import InputError, KirError


@pytest.mark.slow
def test_a_swipe_beside_the_whole_net_and_a_soak() -> None:
    result, table = measure_edge(None, "", preset="tiny", lengths=[8], candidates=[4, 7], swipes=40, soak=60)
    small, large = result["cases"]
    assert [(case["L"], case["N"]) for case in result["cases"]] == [(8, 4), (8, 7)]
    for case in (small, large):
        assert case["swipe_p50_us"] > sum(row["p50"] for row in case["engine_us"].values()) > 0
        assert {"feedback", "features", "engine", "choice"} <= set(case["stages_us"])
        assert len(case["peers_us"]) == 3
    assert set(TARGETS) <= set(large)  # the cold start stands with the last case
    assert large["soak"]["swipes"] == 60
    assert "soak of 60 swipes" in table


@pytest.mark.parametrize(
    "sizes",
    [
        {"candidates": [0]},
        {"swipes": 0},
        {"soak": -1},
        {"checkpoint": Path("kir"), "lengths": [10, 20]},
    ],
)
def test_sizes_that_measure_nothing_are_refused(sizes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        measure_edge(**({"checkpoint": None, "command": ""} | sizes))  # type: ignore[arg-type]


def test_a_swiping_process_that_ends_is_told(tmp_path: Path) -> None:
    with (
        SwiperProcess(tmp_path / "no-cache", tmp_path, 4, "N4") as phone,
        pytest.raises(KirError, match="NoModelError"),
    ):
        phone.ask(swipes=1, calls=1)
