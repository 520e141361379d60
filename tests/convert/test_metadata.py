"""The contract inside the file: there when asked for, nothing else changed, LiteRT none the wiser."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConversionError, InputError
from contract.manifest import Tensor
from convert import flatbuffer
from convert.metadata import ENTRY, FORMAT, TOOLS, embed, graph_facts, read_metadata, tool_versions
from convert.probe import probe
from convert.quantize import load_recipe, quantize
from convert.tflite import TfliteGraph
from tests.convert import tiny_tflite as tiny

FACTS = {"format": FORMAT, "graph": "swipe", "bucket": "N9", "note": "größer"}


@pytest.fixture(scope="module")
def raw() -> bytes:
    return tiny.chain()


def content(model: Any) -> Any:
    """Everything in a flatbuffer but its metadata and their buffers, as plain values."""
    own = {entry.buffer for entry in model.metadata or []}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, list):
            return [plain(one) for one in value]
        return {k: plain(v) for k, v in vars(value).items()} if hasattr(value, "__dict__") else value

    parts = {name: plain(value) for name, value in vars(model).items() if name not in ("metadata", "buffers")}
    return {**parts, "buffers": [plain(b) for i, b in enumerate(model.buffers) if i not in own]}


class TestEmbedding:
    def test_what_was_embedded_is_read(self, raw: bytes) -> None:
        assert read_metadata(embed(raw, FACTS)) == FACTS

    def test_a_file_without_has_none(self, raw: bytes) -> None:
        assert read_metadata(raw) is None

    def test_the_same_bytes_every_time(self, raw: bytes) -> None:
        assert embed(raw, FACTS) == embed(raw, dict(reversed(FACTS.items())))

    def test_again_changes_nothing(self, raw: bytes) -> None:
        once = embed(raw, FACTS)
        assert embed(once, FACTS) == once

    @pytest.mark.parametrize("note", ["", "long " * 500])
    def test_another_replaces_it_and_leaves_no_trace(self, raw: bytes, note: str) -> None:
        other = embed(raw, {**FACTS, "note": note})
        assert embed(other, FACTS) == embed(raw, FACTS)

    def test_nothing_else_changes(self, raw: bytes) -> None:
        before, after = flatbuffer.unpack(raw), flatbuffer.unpack(embed(raw, FACTS))
        assert content(before) == content(after)
        assert [flatbuffer.text(entry.name) for entry in after.metadata] == [ENTRY]
        assert len(after.buffers) == len(before.buffers) + 1

    def test_entries_of_others_stay(self, raw: bytes) -> None:
        def add(model: Any) -> None:
            model.metadata = [flatbuffer.schema.MetadataT(name="min_runtime_version", buffer=len(model.buffers))]
            model.buffers.append(flatbuffer.schema.BufferT(data=np.frombuffer(b"1.5.0", np.uint8)))

        model = flatbuffer.unpack(embed(tiny.edited(raw, add), FACTS))
        assert [flatbuffer.text(entry.name) for entry in model.metadata] == ["min_runtime_version", ENTRY]
        assert bytes(model.buffers[model.metadata[0].buffer].data) == b"1.5.0"

    def test_it_costs_its_own_length_and_little_more(self, raw: bytes) -> None:
        entry = len(json.dumps(FACTS, ensure_ascii=False, separators=(",", ":")).encode())
        assert entry < len(embed(raw, FACTS)) - len(raw) < entry + 128

    def test_it_is_canonical_json_in_utf_8(self, raw: bytes) -> None:
        model = flatbuffer.unpack(embed(raw, FACTS))
        stored = bytes(model.buffers[model.metadata[0].buffer].data).decode()
        assert stored == '{"bucket":"N9","format":"kir-contract/1","graph":"swipe","note":"größer"}'


class TestTheRuntime:
    def test_the_same_numbers_bit_for_bit(self, raw: bytes) -> None:
        before, after = TfliteGraph(raw), TfliteGraph(embed(raw, FACTS))
        assert before.tensors() == after.tensors()
        for sample in tiny.samples():
            np.testing.assert_array_equal(before.run(sample)["y"], after.run(sample)["y"])

    def test_the_same_partitions(self, raw: bytes, tmp_path: Path) -> None:
        paths = tmp_path / "before.tflite", tmp_path / "after.tflite"
        paths[0].write_bytes(raw)
        paths[1].write_bytes(embed(raw, FACTS))
        before, after = probe(paths)
        assert before == after
        assert (before.partitions, before.left_out) == (1, ())

    def test_the_quantizer_keeps_the_entry_and_it_can_be_replaced(self, raw: bytes, tmp_path: Path) -> None:
        """So a variant must get its own: what it has from its float file tells of another recipe."""
        (tmp_path / "float.tflite").write_bytes(embed(raw, FACTS))
        path = quantize(tmp_path / "float.tflite", load_recipe("int8-dynamic"), tmp_path / "int8.tflite")
        assert read_metadata(path.read_bytes()) == FACTS
        own = {**FACTS, "recipe": {"name": "int8-dynamic"}}
        assert read_metadata(embed(path.read_bytes(), own)) == own


class TestRefusing:
    @pytest.mark.parametrize("facts", [{}, {"format": "other/1"}])
    def test_facts_of_another_format(self, raw: bytes, facts: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="another format"):
            embed(raw, facts)

    @pytest.mark.parametrize("value", [float("nan"), b"bytes", {1, 2}])
    def test_facts_that_are_no_json(self, raw: bytes, value: Any) -> None:
        with pytest.raises(InputError, match="no JSON"):
            embed(raw, {**FACTS, "value": value})

    @pytest.mark.parametrize("call", [lambda raw: embed(raw, FACTS), read_metadata])
    def test_a_file_that_is_none(self, call: Any) -> None:
        with pytest.raises(ConversionError, match="not a TFLite file"):
            call(b"nothing of the kind")

    @pytest.mark.parametrize(
        ("stored", "what"),
        [(b"{", "malformed"), (b"\xff\xfe", "malformed"), (b"[1]", "another format"), (b'{"format":"x"}', "another")],
    )
    def test_an_entry_that_is_damaged(self, raw: bytes, stored: bytes, what: str) -> None:
        def damage(model: Any) -> None:
            model.buffers[model.metadata[0].buffer].data = np.frombuffer(stored, np.uint8)

        with pytest.raises(ConversionError, match=what) as caught:
            read_metadata(tiny.edited(embed(raw, FACTS), damage), "file.tflite")
        assert caught.value.where == "file.tflite"

    @pytest.mark.parametrize(
        "change",
        [
            {"inputs": [{"name": "x", "shape": [1], "dtyp": "float32"}]},
            {"inputs": [{"name": "x", "shape": ["1"], "dtype": "float32"}]},
            {"outputs": [{"name": 3, "shape": [1], "dtype": "float32"}]},
            {"outputs": 7},
            {"recipe": "int8-dynamic"},
            {"recipe": {"recipe": 3}},
            {"tools": ["onnx2tf"]},
        ],
    )
    def test_an_entry_whose_facts_are_of_another_kind(self, raw: bytes, change: dict[str, Any]) -> None:
        with pytest.raises(ConversionError, match="malformed") as caught:
            read_metadata(embed(raw, {**FACTS, **change}))
        assert caught.value.got == next(iter(change))

    @pytest.mark.parametrize("number", [0, 99])
    def test_an_entry_without_content(self, raw: bytes, number: int) -> None:
        changed = tiny.edited(embed(raw, FACTS), lambda m: setattr(m.metadata[0], "buffer", number))
        with pytest.raises(ConversionError, match="malformed"):
            read_metadata(changed)


class TestFacts:
    def test_they_tell_graph_contract_recipe_tools_and_onnx(self, raw: bytes, tmp_path: Path) -> None:
        (tmp_path / "graph.onnx").write_bytes(b"the model")
        inputs, outputs = TfliteGraph(raw).tensors()
        recipe = load_recipe("int8-dynamic")
        facts = graph_facts(
            model_version="kir-1",
            graph="swipe",
            bucket="N9",
            inputs=inputs,
            outputs=outputs,
            recipe=recipe.to_json(),
            onnx=tmp_path / "graph.onnx",
        )
        found = read_metadata(embed(raw, facts))
        assert found is not None
        assert found["inputs"] == [{**asdict(Tensor("x", (1, 4, 8))), "shape": [1, 4, 8]}]
        assert found["onnx_sha256"] == hashlib.sha256(b"the model").hexdigest()
        assert found["recipe"] == json.loads(json.dumps(recipe.to_json()))
        assert (found["model_version"], found["graph"], found["bucket"]) == ("kir-1", "swipe", "N9")

    def test_versions_are_those_installed(self) -> None:
        found = tool_versions()
        assert set(found) == set(TOOLS)
        assert found["ai-edge-litert"] == "2.3.0"

    def test_a_tool_that_is_absent_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("convert.metadata.TOOLS", ("numpy", "no-such-tool"))
        assert list(tool_versions()) == ["numpy"]
