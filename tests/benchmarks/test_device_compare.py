"""A result beside an older one: what changed, the gate, and what can't be compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.device.compare import check_gate, compare_lines, compare_results, figures_of, read_result
from contract.errors import InputError
from tests.benchmarks.device_documents import document


@pytest.fixture
def old() -> dict[str, Any]:
    return document()


def test_the_same_result_is_within_any_gate(old: dict[str, Any]) -> None:
    found = compare_results(old, copy.deepcopy(old), 0.0)
    assert found["ok"]
    assert {row["percent"] for row in found["rows"]} == {0.0}
    assert (found["only_old"], found["only_new"], found["notes"]) == ([], [], [])


@pytest.mark.parametrize(
    ("change", "name", "percent"),
    [
        (lambda r: r["graphs"][0]["threads"]["1"]["steady"].update(p50=33.0), "swipe/N20 float32 ×1", 10.0),
        (lambda r: r["session"]["stages"]["total"].update(p50=220.0), "session total", 10.0),
        (lambda r: r["peak_rss_kb"].update(session=66_000), "peak RSS session", 10.0),
    ],
)
def test_each_figure_may_be_beyond_the_gate(old: dict[str, Any], change: Any, name: str, percent: float) -> None:
    new = copy.deepcopy(old)
    change(new)
    within, beyond = compare_results(old, new, 10.5), compare_results(old, new, 9.5)
    assert within["ok"]
    assert [row["name"] for row in beyond["rows"] if row["beyond"]] == [name]
    assert next(row["percent"] for row in beyond["rows"] if row["name"] == name) == pytest.approx(percent)
    line = compare_lines(beyond)[1]
    assert name in line
    assert line.endswith("BEYOND")


def test_faster_is_never_beyond(old: dict[str, Any]) -> None:
    new = copy.deepcopy(old)
    new["session"]["stages"]["total"]["p50"] /= 4
    assert compare_results(old, new, 0.0)["ok"]


def test_what_changes_with_the_disk_is_not_compared(old: dict[str, Any]) -> None:
    new = copy.deepcopy(old)
    new["session"]["cold_start"]["load"] *= 9
    new["session"]["stages"]["fetch"]["p50"] *= 9
    new["graphs"][0]["threads"]["1"]["load"] *= 9
    assert compare_results(old, new, 0.0)["ok"]


def test_the_gate_follows_the_unit() -> None:
    for kind, unit, gate in (("host", "us", 10.0), ("emulated-arm64", "instructions", 2.0)):
        result = document(kind=kind, unit=unit)
        assert compare_results(result, result, None)["gate_percent"] == gate


def test_without_time_memory_alone_is_compared() -> None:
    assert set(figures_of(document("emulated-arm64", "none"))) == {"peak RSS graphs float32", "peak RSS session"}


def test_figures_on_one_side_alone_are_told(old: dict[str, Any]) -> None:
    new = copy.deepcopy(old)
    new["graphs"][0]["variant"] = "int8"
    found = compare_results(old, new, None)
    assert found["only_old"] == ["swipe/N20 float32 ×1", "swipe/N20 float32 ×2"]
    assert found["only_new"] == ["swipe/N20 int8 ×1", "swipe/N20 int8 ×2"]
    assert any("2 figures of the older result were not measured now" in line for line in compare_lines(found))


def test_what_may_explain_a_change_is_noted(old: dict[str, Any]) -> None:
    new = copy.deepcopy(old)
    new["device"]["packages"]["ai-edge-litert"] = "2.4.0"
    new["settings"]["runs"] = 5
    new["model"]["dense_version"] = "kir-b"
    found = compare_results(old, new, None)
    assert found["notes"] == ["LiteRT: 2.3.0 then, 2.4.0 now", "runs: 200 then, 5 now"]
    assert compare_lines(found)[0].startswith("kir-b against kir-a: 0 of ")


class TestRefused:
    @pytest.mark.parametrize("other", [document("device", "us"), document("emulated-arm64", "instructions")])
    def test_another_kind(self, old: dict[str, Any], other: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="another kind"):
            compare_results(other, old, None)

    def test_another_unit(self) -> None:
        with pytest.raises(InputError, match="another unit"):
            compare_results(document("emulated-arm64", "none"), document("emulated-arm64", "instructions"), None)

    def test_another_device(self, old: dict[str, Any]) -> None:
        new = copy.deepcopy(old)
        new["device"]["properties"]["model"] = "another CPU"
        with pytest.raises(InputError, match=r"another device.*measure the older version"):
            compare_results(old, new, None)

    def test_nothing_in_common(self, old: dict[str, Any]) -> None:
        new = copy.deepcopy(old)
        new["graphs"], new["peak_rss_kb"], new["session"]["stages"] = [], {}, {}
        with pytest.raises(InputError, match="no figure in common"):
            compare_results(old, new, None)

    @pytest.mark.parametrize("gate", [-1.0, float("nan"), float("inf")])
    def test_a_gate_that_is_no_gate(self, gate: float) -> None:
        with pytest.raises(InputError, match="--gate-percent is a number from 0 on"):
            check_gate(gate, Path("old.json"))

    def test_a_gate_with_nothing_to_hold_it_against(self) -> None:
        with pytest.raises(InputError, match=r"--gate-percent needs an older result.*add --compare"):
            check_gate(2.0, None)
        check_gate(None, None)
        check_gate(0.0, Path("old.json"))

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda r: r.pop("graphs"),
            lambda r: r.pop("kind"),
            lambda r: r.pop("model"),
            lambda r: r.pop("peak_rss_kb"),
            lambda r: r["settings"].pop("runs"),
            lambda r: r["device"].pop("properties"),
            lambda r: r["session"].pop("stages"),
            lambda r: r["graphs"].append({}),
            lambda r: r["graphs"][0]["threads"]["1"].pop("steady"),
            lambda r: r.update(graphs="none"),
            lambda r: r.update(device=[]),
            lambda r: r.update(unit="miles"),
            lambda r: r.update(kind=7),
            lambda r: r["peak_rss_kb"].update(session="much"),
            lambda r: r["session"]["stages"]["total"].update(p50=float("nan")),
            lambda r: r["session"]["stages"]["total"].update(p50=None),
        ],
    )
    def test_a_result_that_is_not_whole(self, old: dict[str, Any], spoil: Any, tmp_path: Path) -> None:
        spoil(old)
        (tmp_path / "old.json").write_text(json.dumps(old))
        with pytest.raises(InputError, match=r"--compare reads a result.*give a file that kir bench"):
            read_result(tmp_path / "old.json")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmark": "edge"}', '{"format": "kir-device-bench/9"}'])
    def test_a_file_that_is_no_result(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "old.json").write_text(text)
        with pytest.raises(InputError, match="--compare"):
            read_result(tmp_path / "old.json")

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--compare"):
            read_result(tmp_path / "none.json")


def test_a_saved_result_is_read_back(old: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(old) + "\n")
    assert read_result(tmp_path / "r.json") == old
