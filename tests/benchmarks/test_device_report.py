"""The page of a device benchmark: a section for everything measured, and no time where time means nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.device.compare import compare_results
from benchmarks.device.report import render_device, write_device_report
from benchmarks.device.result import device_table, swipe_over_whole
from tests.benchmarks.device_documents import document

PLOTS = ("grouped_bars", "distributions", "stacked_stages", "interval_bars")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the plots, which take their time and are looked at by the first test."""
    drawn = SimpleNamespace(**dict.fromkeys(PLOTS, lambda *given: "<svg></svg>"))
    monkeypatch.setattr("benchmarks.device.report.figures", drawn)


def words_of(page: str) -> str:
    """What a reader reads: figures' texts included, styles and tags left out."""
    body = page[page.index("<body>") :]
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(style|defs|metadata)\b.*?</\1>", " ", body, flags=re.DOTALL))


@pytest.mark.parametrize(
    ("kind", "unit", "figures"),
    [("device", "us", 6), ("emulated-arm64", "instructions", 4), ("emulated-arm64", "none", 1)],
)
def test_every_section_stands_in_the_page(kind: str, unit: str, figures: int) -> None:
    page = render_device(document(kind, unit))
    for title in (
        "Graphs, variants side by side",
        "A session" if unit == "none" else "A whole session",
        "Memory",
        "Operators",
        "Parity",
        "Device and settings",
    ):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") == figures
    assert ("µs" in words_of(page)) == (unit == "us")
    assert f"kind: {kind}" in page
    assert "benchmark_model</h2>" not in page


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("kind", "unit"), [("emulated-arm64", "instructions"), ("emulated-arm64", "none"), ("android-emulator", "none")]
)
def test_an_emulated_device_shows_no_time(kind: str, unit: str) -> None:
    result = document(kind, unit)
    for text in (words_of(render_device(result)), device_table(result)):
        assert not re.search(r"µs|\bms\b|seconds\b", text)
        assert ("instructions" in text) or unit == "none"
        assert "wall time means nothing" in text
        assert ("no phone" in text) == (kind == "android-emulator")


@pytest.mark.usefixtures("plain")
def test_without_time_there_are_no_percentiles() -> None:
    result = document("emulated-arm64", "none")
    assert not any(word in words_of(render_device(result)) for word in ("p50", "p90", "cold start"))
    assert "p50" not in device_table(result)


@pytest.mark.usefixtures("plain")
def test_few_swipes_without_a_page_among_them_have_a_page_all_the_same() -> None:
    """All were of the page that was there before the timed ones: no stage of a page was measured."""
    result = document("device")
    for stage in ("fetch", "merge", "page"):
        del result["session"]["stages"][stage]
    assert render_device(result).count("<svg") == 5  # six with a page's stages
    assert "total" in device_table(result)


@pytest.mark.usefixtures("plain")
def test_text_is_escaped() -> None:
    page = render_device(document("device"))
    assert "A &lt;phone&gt;" in page
    assert "Fully &lt;Connected&gt; GEMM" in page
    assert "&lt;svg" not in page


@pytest.mark.usefixtures("plain")
def test_operators_that_can_not_be_told_say_why() -> None:
    result = {**document(), "operators": {"not_available": "no libLiteRt.so"}}
    assert "Not available: no libLiteRt.so." in render_device(result)
    assert "operators: not available (no libLiteRt.so)" in device_table(result)


@pytest.mark.usefixtures("plain")
def test_a_phones_state_and_remarks_are_told() -> None:
    result = document("device")
    result["device"] |= {"state_lines": {"before": "thermal status none"}, "remarks": ["after: battery at 12 %"]}
    assert "thermal status none" in words_of(render_device(result))
    assert "note: after: battery at 12 %" in device_table(result)


@pytest.mark.usefixtures("plain")
def test_a_comparison_comes_first_and_names_what_is_beyond() -> None:
    old, new = document(), document()
    new["session"]["stages"]["total"]["p50"] = 300.0
    new["compare"] = compare_results(old, new, None)
    page = render_device(new)
    assert page.index("Against an older result") < page.index("Graphs, variants side by side")
    assert "+50.0 %" in page
    assert "beyond" in words_of(page)


@pytest.mark.usefixtures("plain")
def test_benchmark_model_has_a_section_when_it_ran() -> None:
    run = {
        "graph": "swipe/N20",
        "variant": "float32",
        "threads": 1,
        "avg_us": 31.5,
        "steady": {"p95": 40.0},
        "memory_peak_mb": None,
    }
    result = {**document(), "benchmark_model": [run]}
    assert "benchmark_model</h2>" in render_device(result)
    assert "benchmark_model: swipe/N20 float32 ×1: avg 31.5 µs, p95 40.0" in device_table(result)


@pytest.mark.usefixtures("plain")
def test_problems_stand_at_the_top_and_in_the_table() -> None:
    result = {**document(), "problems": ["swipe/N20 float32: 1.0e+00 from this machine, allowed 1.0e-04"]}
    assert "PROBLEMS: swipe/N20 float32" in render_device(result)
    assert "FAILS swipe/N20 float32" in device_table(result)


class TestSwipeOverWhole:
    def test_two_graphs_as_shipped_over_the_whole(self) -> None:
        assert swipe_over_whole(document()) == pytest.approx(50 / 200)

    @pytest.mark.parametrize("gone", ["whole/N20", "swipe/N20", "watch/T1"])
    def test_without_a_part_there_is_none(self, gone: str) -> None:
        result = document()
        result["graphs"] = [row for row in result["graphs"] if row["graph"] != gone]
        assert swipe_over_whole(result) is None

    def test_nothing_timed(self) -> None:
        assert swipe_over_whole(document("emulated-arm64", "none")) is None


@pytest.mark.usefixtures("plain")
def test_both_files_are_written(tmp_path: Path) -> None:
    result: dict[str, Any] = document()
    page = write_device_report(tmp_path / "out", result)
    assert page.name == "report.html"
    assert json.loads((page.parent / "report.json").read_text())["kind"] == "host"
