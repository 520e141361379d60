"""The manual's table of recipes: what a cell says, where it goes, and that it shows the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conversion_doc import BEGIN, END, markdown_table, read_result, replace_table
from contract.errors import InputError


def result(**changed: Any) -> dict[str, Any]:
    rows = [
        {"graph": "page/N8", "variant": "float32", "n_bytes": 4000, "tau": 1.0, "passed": True},
        {"graph": "page/N8", "variant": "int8", "n_bytes": 1200, "tau": 0.95, "passed": False},
        {"graph": "watch/T1", "variant": "float32", "n_bytes": 9, "tau": None, "passed": True},
        {"graph": "watch/T12", "variant": "float32", "n_bytes": 9, "tau": None, "passed": True},
    ]
    runs = {"LiteRT float32": 10.0, "LiteRT int8": 8.0, "torch eager": 99.6}
    return {
        "benchmark": "conversion",
        "model": {"kind": "kir"},
        "recipes": [{"name": "int8"}],
        "verification": {"rows": rows, "shipped": {"page/N8": "float32"}},
        "graphs": {
            key: {"floor_us": 2.0, "runs": {name: {"wall_us": {"p50": value}} for name, value in runs.items()}}
            for key in ("page/N8", "page/N16", "watch/T1", "watch/T12", "watch/T6")
        },
    } | changed


def test_a_row_a_recipe_and_a_column_an_everyday_bucket() -> None:
    lines = markdown_table([result()]).splitlines()
    assert lines[0] == "| | kir page/N8 | kir watch/T1 | kir watch/T12 |"
    assert lines[2] == "| float32 | **4,000 / 10 / 1.000** | 9 / 10 / – | 9 / 10 / – |"
    assert lines[3] == "| int8 | 1,200 / 8 / 0.950 ! | – | – |"
    assert lines[4:] == ["| torch eager | 100 | 100 | 100 |", "| floor | 2 | 2 | 2 |"]


def test_the_table_replaces_what_stood_between_the_marks() -> None:
    assert replace_table(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(InputError, match="no place for the table"):
        replace_table(f"{END} only", "new")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmark": "edge"}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "edge.json"
    path.write_text(text)
    with pytest.raises(InputError, match="kir bench conversion"):
        read_result(path)


def test_the_manual_shows_the_committed_results(repository: Path) -> None:
    manual = (repository / "docs" / "conversion.md").read_text()
    results = [
        json.loads((repository / "docs" / "results" / f"conversion-{name}.json").read_text())
        for name in ("kir", "encoder", "ranker")
    ]
    assert replace_table(manual, markdown_table(results)) == manual
