"""The report page: every section from its part of the result, nothing for parts that are absent, text escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import render_loop as render
from benchmarks.report import write_report
from benchmarks.stats import machine, percentiles


def closed_loop(drift: float) -> dict[str, Any]:
    interval = {"mean": 12.0, "low": 3.0, "high": 21.0}
    gain = {"watch_s": interval, "likes": interval, "relative": 0.1}
    watch_s = {"random": 90.0, "server": 100.0, "per_swipe": 112.0, "oracle": 112.0}
    arms = {arm: {"watch_s": value, "likes": 0.1} for arm, value in watch_s.items()}
    gains = {"per_swipe vs server": gain, "oracle vs server": gain}
    return {"n_sessions": 10, "n_seeds": 5, "drift": drift, "arms": arms, "gains": gains, "per_seed": {}}


@pytest.fixture
def result() -> dict[str, Any]:
    variant = {"bytes": 26_000, "max_abs": 1e-6, "tau": 1.0, "top1": 1.0, "invoke_us": 31.0, "passed": True}
    graphs = {"swipe/N20": {"ship": "float32", "variants": {"float32": variant}}}
    row = {
        "size": 3, "pages": 9, "logged": 0.7, "one_shot": 0.71, "per_swipe": 0.72,
        "ndcg_gain": {"mean": 0.02, "low": 0.01, "high": 0.03}, "swipe_gain": {"mean": 0.0, "low": -0.1, "high": 0.1},
    }  # fmt: skip
    samples = [100.0, 200.0, 300.0]
    return {
        "data": "sim",
        "command": "kir demo <b>",
        "machine": machine(),
        "events": {"impressions": 1000, "users": 10, "videos": 50},
        "stages": [{"name": "events", "seconds": 1.5}, {"name": "train", "seconds": 2.5}],
        "training": {"KIR": {"auc": 0.7, "protocol": "words are left out"}},
        "conversion": {
            "versions": [{"dense_version": "kir-a", "seconds": 9.0, "download_bytes": 222_000, "graphs": graphs}]
        },
        "swipe": {
            "latency_us": percentiles(samples), "samples_us": samples, "stages_us": {"features": 40.0, "engine": 60.0},
            "page_arrival_us": percentiles(samples), "page_round_trip_us": percentiles(samples),
            "page_bytes": percentiles([3000]), "choosers": {"model": 3}, "log": ["swipe 20: watched list full"],
        },
        "closed_loop": {"world": closed_loop(1.0), "control": closed_loop(0.0), "note": "what it means"},
        "replay": {"protocol": "pages of impressions", "sizes": [row], "within_user": {"gauc": 0.65}, "note": ""},
    }  # fmt: skip


SECTIONS = {
    "closed_loop": "Watch time in the simulator",
    "replay": "Replay on real logs",
    "swipe": "The phone: swipes over real sockets",
    "conversion": "Conversion: size and parity per variant",
    "training": "<h2>Training",
    "stages": "Where the time went",
}


def test_every_section_stands_in_the_page(result: dict[str, Any]) -> None:
    page = render(result)
    assert all(title in page for title in SECTIONS.values())
    assert "+12.000 [+3.000, +21.000]" in page
    assert page.count("<svg") == 5
    assert "swipe 20: watched list full" in page


@pytest.mark.parametrize("part", [part for part in SECTIONS if part != "stages"])
def test_a_part_that_is_absent_leaves_no_section(result: dict[str, Any], part: str) -> None:
    del result[part]
    page = render(result)
    assert SECTIONS[part] not in page


def test_text_is_escaped_and_figures_are_not(result: dict[str, Any]) -> None:
    page = render(result)
    assert "kir demo &lt;b&gt;" in page
    assert "&lt;svg" not in page


def test_both_files_are_written_whole(result: dict[str, Any], tmp_path: Path) -> None:
    page = write_report(tmp_path / "out", result)
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]
    assert json.loads((page.parent / "report.json").read_text())["events"]["users"] == 10


def test_numbers_that_json_lacks_are_refused(result: dict[str, Any], tmp_path: Path) -> None:
    result["events"]["users"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path / "out", result)
    assert not (tmp_path / "out" / "report.json").exists()
