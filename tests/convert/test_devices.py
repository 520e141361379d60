"""The card's device table: figures of `kir bench swipe`, and of no other model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kir
from benchmarks.swipe_latency import measure_swipe
from contract.errors import InputError
from convert.devices import device_table
from convert.model import ConversionResult
from convert.publish import publish

SHIPPED = {"page/N9": "int8-dynamic", "page/N24": "int8-dynamic", "watch/T1": "float32", "whole/N9": "float32"}


def result(**changes: Any) -> dict[str, Any]:
    times = {"page/N9 int8-dynamic": 1.0, "page/N24 int8-dynamic": 2.6, "page/N24 float32": 9.0}
    times |= {"watch/T1 float32": 3.2, "whole/N9 float32": 80.0}
    return {
        "benchmark": "swipe", "kind": "phone", "dense_version": "kir-1", "watch_and_swipe_over_whole": 0.123,
        "machine": {"cpu": "Kryo", "system": "Android aarch64"}, "invoke_us": {k: {"p50": v} for k, v in times.items()},
        **changes,
    }  # fmt: skip


def write(folder: Path, content: Any) -> Path:
    path = folder / "swipe.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_row_a_result(tmp_path: Path) -> None:
    path = write(tmp_path, result())
    rows = device_table([path, path], "kir-1", SHIPPED).splitlines()
    assert rows[4] == rows[5] == "| phone | Kryo, Android aarch64 | 3 | 3 | - | - | 80 | 12 % |"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "can't be read"),
        ([], "no result of kir bench swipe"),
        (result(benchmark="load"), "no result of kir bench swipe"),
        (result(kind="fridge"), "no result of kir bench swipe"),
        (result(dense_version="kir-2"), "another model"),
        (result(invoke_us={}), "lacks a figure"),
        (result(machine={}), "lacks a figure"),
        (result(watch_and_swipe_over_whole="much"), "lacks a figure"),
        (result(watch_and_swipe_over_whole=float("nan")), "no finite number"),
        (result(invoke_us={"page/N24 int8-dynamic": {"p50": float("inf")}}), "lacks a figure"),
    ],
)
def test_what_can_not_stand_there(tmp_path: Path, content: Any, what: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=what) as caught:
        device_table([path], "kir-1", SHIPPED)
    assert str(path) in str(caught.value)


def test_a_device_with_an_odd_name_stays_in_its_cell(tmp_path: Path) -> None:
    path = write(tmp_path, result(machine={"cpu": "A | B\n| C |", "system": "x"}))
    assert "| phone | A / B / C /, x | 3 |" in device_table([path], "kir-1", SHIPPED)


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        device_table([tmp_path / "none.json"], "kir-1", SHIPPED)


def test_measured_here_and_published(conversion: ConversionResult, tmp_path: Path) -> None:
    publish(conversion.directory, tmp_path / "staging")
    found, _ = measure_swipe(str(tmp_path / "staging"), 3)
    path = write(tmp_path, found)
    words = ["publish", str(conversion.directory), "--cdn", str(tmp_path / "cdn"), "--measured", str(path)]
    assert kir.main(words) == 0
    manifest = json.loads(next((tmp_path / "cdn" / "models").glob("*/manifest.json")).read_text())
    card = next((tmp_path / "cdn" / "models").glob(f"*/{manifest['card']}")).read_text()
    assert "## Devices" in card
    assert f"| host | {found['machine']['cpu']}, " in card
    assert (conversion.directory / "card.md").read_text().rstrip() in card
    assert kir.main(["verify", "--cdn", str(tmp_path / "cdn")]) == 0
