"""docs/conversion.md where it names tests, and where it says what `pip check` lists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kir

FAULTS = "tests/convert/frontends/test_faults.py"


@pytest.fixture(scope="module")
def manual(repository: Path) -> str:
    return (repository / "docs" / "conversion.md").read_text()


def rows_below(text: str, head: str) -> list[list[str]]:
    """Cells of the table that begins with this line."""
    lines = text[text.index(head) :].splitlines()[2:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_every_fault_names_a_test_that_is_there(manual: str, repository: Path) -> None:
    rows = rows_below(manual, "| front end | fault | here | test |")
    assert len(rows) >= 13
    for row in rows:
        file, _, name = row[-1].strip("| `").partition("::")
        path = repository / (FAULTS if file == "faults" else f"tests/convert/{file}")
        assert f"def {name}(" in path.read_text(), row


def documented(manual: str) -> set[tuple[str, str]]:
    """(package, what it wants): "onnx ==1.20.1", or a bare name for what is absent."""
    return {
        (who, wants.strip()) for who, cell, *_ in rows_below(manual, "| who | wants |") for wants in cell.split(",")
    }


def difference(line: str) -> tuple[str, str]:
    """One line of `pip check` in the manual's words."""
    found = re.fullmatch(r"(\S+) \S+ (?:requires (\S+), which.*|has requirement (\S+?)(==\S+?|[<>~!].*?), but.*)", line)
    assert found is not None, line
    who, absent, name, version = found.groups()
    return who, absent or f"{name} {version}"


def test_pip_check_lists_what_the_manual_says_and_no_more(manual: str) -> None:
    """Of this environment: a clash of ours, or a new one of onnx2tf's, would stand here and not there."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"],
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line != "No broken requirements found."]
    assert {difference(line) for line in lines} <= documented(manual)


def test_a_new_difference_would_be_seen(manual: str) -> None:
    told = "onnx2tf 2.6.9 has requirement numpy==2.2.6, but you have numpy 2.4.6."
    assert difference(told) in documented(manual)
    assert difference(told.replace("numpy==2.2.6", "scipy==1.0")) not in documented(manual)
    assert difference("kir-edge 0.1 requires torch, which is not installed.") not in documented(manual)


def test_setup_says_what_changes_on_newer_pythons(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kir.main(["convert", "setup", "--help"])
    told = capsys.readouterr().out
    assert all(version in told for version in ("3.11", "3.12", "3.13"))
