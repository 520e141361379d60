"""`kir bench --serial` from the command line on a machine whose clock counts instructions, and against itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import kir
from benchmarks.device.emulated import EmulatedDevice, MachineConfig
from tests.edge.tiny_model import shared_cdn

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def serial() -> Iterator[str]:
    with EmulatedDevice.booted(MachineConfig(icount=True)) as machine:
        yield machine.running.serial


@pytest.fixture(scope="module")
def folder(serial: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run wrote `first.json` and `page`."""
    work = tmp_path_factory.mktemp("bench")
    assert kir.main([*words(serial), "--json", str(work / "first.json"), "--html", str(work / "page")]) == 0
    return work


def words(serial: str) -> list[str]:
    command = ["bench", "--serial", serial, "--model", str(shared_cdn())]
    return [*command, "--variant", "float32", "--runs", "5"]


def test_the_document_counts_instructions_and_agrees_with_this_machine(folder: Path, serial: str) -> None:
    result = json.loads((folder / "first.json").read_text())
    assert (result["kind"], result["unit"], result["wall_time"]) == ("emulated-arm64", "instructions", "meaningless")
    assert result["device"]["serial"] == serial
    assert result["replay"]["ok"]
    for row in result["graphs"]:
        assert row["delegate"]["partitions"] >= 1, row["graph"]
        assert row["parity"]["host"]["ok"], row["graph"]
        assert row["threads"]["1"]["steady"]["p50"] > 1_000, row["graph"]
    assert result["session"]["stages"]["total"]["count"] == 5
    assert set(result["peak_rss_kb"]) == {"golden replay", "graphs float32", "session"}


def test_the_page_stands_beside_its_figures(folder: Path) -> None:
    page = (folder / "page" / "report.html").read_text()
    assert "kind: emulated-arm64" in page
    assert json.loads((folder / "page" / "report.json").read_text())["graphs"]


def test_the_same_model_again_is_within_the_gate(folder: Path, serial: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Graphs repeat to a tenth of a percent; memory and a session of Python, which the gate has too, to some."""
    again = ["--compare", str(folder / "first.json"), "--gate-percent", "10", "--json", str(folder / "second.json")]
    assert kir.main([*words(serial), *again]) == 0
    compared = json.loads((folder / "second.json").read_text())["compare"]
    print(capsys.readouterr().out)
    assert compared["ok"]
    assert (compared["only_old"], compared["only_new"], compared["notes"]) == ([], [], [])
    graphs = [row for row in compared["rows"] if "×1" in row["name"]]
    assert max(abs(row["percent"]) for row in graphs) <= 2.0, graphs
