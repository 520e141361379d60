"""`kir bench edge` at the smallest sizes: the session runs in a process of its own, and every figure is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.edge_latency import measure_edge
from benchmarks.edge_swiper import SwiperProcess
from benchmarks.edge_table import TARGETS, Target
from contract.errors import InputError, KirError

SOME_CASES = {"cold_start_ms", "memory_mib", "soak_growth_mib", "soak_p99_ratio", "over_linear"}


@pytest.mark.slow
def test_a_swipe_beside_the_whole_net_and_a_soak() -> None:
    result, table = measure_edge(None, "", preset="tiny", lengths=[8], candidates=[4, 7], swipes=40, soak=60)
    small, large = result["cases"]
    assert [(case["L"], case["N"]) for case in result["cases"]] == [(8, 4), (8, 7)]
    for case in (small, large):
        assert case["swipe_p50_us"] > sum(row["p50"] for row in case["engine_us"].values()) > 0
        parts = {f"feedback: {name}" for name in ("features", "engine", "rest")}
        assert {*parts, "features", "engine", "choice"} <= set(case["stages_us"])
        assert case["swipe_state_us"]["p50"] > 0
        assert case["swipe_collected_us"]["p50"] > 0
        assert len(case["peers_us"]) == 3
        assert case["compared"] == 21 * 5
        assert case["kendall_tau"] > 0.9
        assert case["top1"] > 0.8
    assert set(TARGETS) <= set(large)  # N 7 is the middle one: soak and cold start stand with it
    assert set(TARGETS) - set(small) == SOME_CASES
    assert large["soak"]["swipes"] == 60
    assert large["soak_growth_mib"] < 16
    assert "soak of 60 swipes" in table
    assert table.count(" meets ") + table.count(" MISSES ") == 2 * len(TARGETS) - len(SOME_CASES)


@pytest.mark.parametrize(("value", "least", "says"), [(2, False, "MISSES"), (2, True, "meets"), (1, True, "meets")])
def test_a_target_is_met_on_its_own_side(value: int, least: bool, says: str) -> None:
    assert Target(1.0, "words", least).verdict(value).startswith(says)
    assert Target(3.0, "words", least).verdict(value).startswith("MISSES" if least else "meets")


def test_a_list_of_odd_length_is_refused_by_its_flag() -> None:
    with pytest.raises(InputError, match="--l") as error:
        measure_edge(None, "", preset="tiny", lengths=[8, 7])
    assert "--preset" not in str(error.value)


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
