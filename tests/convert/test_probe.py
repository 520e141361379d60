"""LiteRT in a process of its own: what it says of good files, and that no file ends ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import probe as module
from convert.flatbuffer import schema
from convert.probe import Probe, load, probe
from tests.convert import tiny_tflite as tiny


def deadly(model: Any) -> None:
    """An operator code exchanged: STRIDED_SLICE looks for an input that FULLY_CONNECTED does not have."""
    model.operatorCodes[1].builtinCode = model.operatorCodes[1].deprecatedBuiltinCode = (
        schema.BuiltinOperator.STRIDED_SLICE
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return tiny.write_chain(tmp_path / "good.tflite")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "deadly.tflite"
    path.write_bytes(tiny.edited(tiny.chain(), deadly))
    return path


def with_a_slice(rows: int = -1) -> bytes:
    """x [1, 4, 8] + 1 -> its last two rows -> twice.

    -1 stands for "to the end", as onnx2tf writes it: XNNPACK leaves such a SLICE out, which parts the graph in two.
    """
    net = tiny.Net()
    net.tensor("x", (1, 4, 8))
    net.tensor("one", (1,), value=np.ones(1))
    net.tensor("begin", (3,), "int32", np.array([0, 2, 0]))
    net.tensor("size", (3,), "int32", np.array([1, rows, 8]))
    for name, n in (("sum", 4), ("part", 2), ("y", 2)):
        net.tensor(name, (1, n, 8))
    net.operator("ADD", ("x", "one"), "sum", "AddOptions")
    net.operator("SLICE", ("sum", "begin", "size"), "part", "SliceOptions")
    net.operator("ADD", ("part", "part"), "y", "AddOptions")
    return net.bytes(["x"], ["y"])


def test_one_partition_and_nothing_left_out(good: Path) -> None:
    assert probe([good]) == [Probe(partitions=1)]


def test_operators_left_out_are_named_by_number(tmp_path: Path) -> None:
    paths = tmp_path / "to_the_end.tflite", tmp_path / "two_rows.tflite"
    paths[0].write_bytes(with_a_slice())
    paths[1].write_bytes(with_a_slice(rows=2))
    assert probe(paths) == [Probe(partitions=2, left_out=(1,)), Probe(partitions=1)]


def test_a_truncated_file_is_refused(good: Path) -> None:
    good.write_bytes(good.read_bytes()[:-40])
    (found,) = probe([good])
    assert "valid Flatbuffer" in found.error
    assert found.partitions == 0


def test_an_absent_file_is_an_answer_too(tmp_path: Path) -> None:
    assert "No such file" in probe([tmp_path / "none.tflite"])[0].error


def test_a_file_that_kills_litert_is_named_and_the_others_are_not_lost(good: Path, bad: Path) -> None:
    found = probe([good, bad, good, bad])
    assert [one.error for one in found[::2]] == ["", ""]
    # What such a file does depends on what lies in memory: LiteRT dies of it or, now and then, refuses it.
    assert all(one.error for one in found[1::2])


def test_a_child_that_does_not_answer_is_ended(good: Path) -> None:
    assert probe([good], timeout_s=0.01) == [Probe(error="LiteRT died loading it (no answer within 0.01 s)")]


def test_no_files_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_child", lambda *_: pytest.fail("a child was started"))
    assert probe([]) == []


def test_what_the_child_says(good: Path) -> None:
    assert load(str(good)) == {"partitions": 1, "left_out": [], "error": ""}
