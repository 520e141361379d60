"""What the demo does before and after the loop: its folder, its settings, and the summary of what phones measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.demo import DemoConfig
from benchmarks.demo_parts import claim_folder, swipe_summary
from contract.errors import InputError


class TestFolder:
    def test_a_new_folder_is_made(self, tmp_path: Path) -> None:
        claim_folder(tmp_path / "a" / "b")
        assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [".kir-demo"]

    def test_an_earlier_demo_is_cleared(self, tmp_path: Path) -> None:
        claim_folder(tmp_path / "out")
        (tmp_path / "out" / "phone" / "cache").mkdir(parents=True)
        (tmp_path / "out" / "report.json").write_text("{}")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        claim_folder(tmp_path / "out")
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".kir-demo", "notes.txt"]

    def test_somebody_elses_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "thesis.csv").write_text("years of work")
        with pytest.raises(InputError, match="not empty"):
            claim_folder(tmp_path)
        assert (tmp_path / "data" / "thesis.csv").read_text() == "years of work"

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="--out"):
            claim_folder(tmp_path / "file")


@pytest.mark.parametrize("name", ["seeds", "sessions", "phones", "swipes", "page_size"])
def test_sizes_start_at_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=name.replace("_", "-")):
        DemoConfig(out=tmp_path, **{name: 0})


def test_latencies_are_of_the_quiet_phones_and_counts_of_both() -> None:
    quiet = {
        "samples_us": [100.0, 300.0], "stages": [{"engine": 50.0}, {"engine": 70.0}], "page_arrival_us": [900.0],
        "page_round_trip_us": [5000.0], "page_bytes": [3000], "choosers": {"model": 2}, "versions": {"a": 2},
        "log": ["one"],
    }  # fmt: skip
    busy = {**quiet, "samples_us": [9e9], "choosers": {"model": 1, "no_rows": 4}, "versions": {"b": 5}, "log": ["two"]}
    found = swipe_summary(quiet, busy)
    assert found["latency_us"]["max"] == 300.0
    assert found["stages_us"] == {"engine": 60.0}
    assert found["choosers"] == {"model": 3, "no_rows": 4}
    assert found["log"] == ["one", "two"]
