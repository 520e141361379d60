"""Reading a flatbuffer with care: whatever is wrong with the bytes is one error; writing it again changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConversionError
from convert import flatbuffer
from convert.flatbuffer import schema
from convert.metadata import FORMAT, embed
from convert.quantize import load_recipe, quantize
from convert.tflite import TfliteGraph
from tests.convert import tiny_tflite as tiny


@pytest.fixture(scope="module")
def raw() -> bytes:
    return tiny.chain()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ai-edge-quantizer writes a file with 256 KB of constants or more."""
    folder, net, width = tmp_path_factory.mktemp("large"), tiny.Net(), 600
    net.tensor("x", (1, width))
    net.tensor("w", (width, width), value=np.random.default_rng(0).normal(size=(width, width)) / width**0.5)
    net.tensor("b", (width,), value=np.arange(width) / width)
    net.tensor("y", (1, width))
    net.operator("FULLY_CONNECTED", ("x", "w", "b"), "y", "FullyConnectedOptions", keepNumDims=True)
    (folder / "float.tflite").write_bytes(net.bytes(["x"], ["y"]))
    path = quantize(folder / "float.tflite", load_recipe("int8-weight-only"), folder / "int8.tflite")
    found = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    assert any(buffer.offset > 1 for buffer in found.buffers), "nothing lies behind: this tests nothing"
    return path


class TestRefusing:
    @pytest.mark.parametrize("content", [b"", b"TFL3", b"a text of some length", b"\0" * 64])
    def test_what_is_no_tflite_file(self, content: bytes) -> None:
        with pytest.raises(ConversionError, match="not a TFLite file") as caught:
            flatbuffer.unpack(content, "here.tflite")
        assert str(caught.value).startswith("here.tflite: ")

    def test_an_empty_file_is_called_empty(self) -> None:
        with pytest.raises(ConversionError, match="an empty file"):
            flatbuffer.unpack(b"")

    def test_a_truncated_file_at_any_length(self, raw: bytes) -> None:
        for keep in range(8, len(raw) - 16, 37):
            with pytest.raises(ConversionError, match=r"truncated or damaged|contradicts itself"):
                flatbuffer.unpack(raw[:keep])

    def test_flipped_bytes_never_end_in_another_kind_of_error(self, raw: bytes) -> None:
        rng, refused = np.random.default_rng(0), 0
        for _ in range(300):
            damaged = bytearray(raw)
            for place in rng.integers(8, len(raw), 4):
                damaged[place] = rng.integers(256)
            try:
                flatbuffer.unpack(bytes(damaged))
            except ConversionError:
                refused += 1
        assert 30 < refused < 300

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (lambda m: setattr(m.subgraphs[0].tensors[0], "buffer", 99), "absent buffer"),
            (lambda m: setattr(m.subgraphs[0].operators[0], "opcodeIndex", 99), "absent operator code"),
            (lambda m: setattr(m.subgraphs[0].operators[0], "inputs", [0, 99, 1]), "absent tensor"),
            (lambda m: setattr(m.subgraphs[0].operators[0], "outputs", [-2]), "absent tensor"),
            (lambda m: setattr(m.subgraphs[0], "inputs", [99]), "input or output"),
            (lambda m: setattr(m.subgraphs[0], "outputs", [-1]), "input or output"),
            (lambda m: setattr(m, "subgraphs", []), "no subgraph"),
        ],
    )
    def test_numbers_that_name_nothing(self, raw: bytes, change: Callable[[Any], None], what: str) -> None:
        with pytest.raises(ConversionError, match=what):
            flatbuffer.unpack(tiny.edited(raw, change))

    def test_an_optional_input_that_is_absent_is_none_of_them(self, raw: bytes) -> None:
        changed = tiny.edited(raw, lambda m: setattr(m.subgraphs[0].operators[0], "inputs", [0, 1, -1]))
        assert flatbuffer.numbers(flatbuffer.unpack(changed).subgraphs[0].operators[0].inputs) == [0, 1, -1]


class TestWriting:
    def test_the_same_bytes_every_time(self, raw: bytes) -> None:
        assert flatbuffer.pack(flatbuffer.unpack(raw)) == raw

    def test_the_identifier_is_kept(self, raw: bytes) -> None:
        assert flatbuffer.pack(flatbuffer.unpack(raw))[4:8] == flatbuffer.IDENTIFIER


class TestConstantsBehind:
    def test_written_again_they_stand_within_and_count_the_same(self, large: Path, tmp_path: Path) -> None:
        again = tmp_path / "again.tflite"
        again.write_bytes(embed(large.read_bytes(), {"format": FORMAT, "note": "a contract"}))
        x = {"x": np.random.default_rng(1).normal(size=(1, 600)).astype(np.float32)}
        np.testing.assert_array_equal(TfliteGraph(again).run(x)["y"], TfliteGraph(large).run(x)["y"])
        assert abs(again.stat().st_size - large.stat().st_size) < 4096

    @pytest.mark.parametrize("cut", [1, 1000, 300_000])
    def test_truncated(self, large: Path, cut: int) -> None:
        with pytest.raises(ConversionError, match="truncated or damaged"):
            flatbuffer.unpack(large.read_bytes()[:-cut], "cut.tflite")

    def test_too_large_for_any(self, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flatbuffer, "LARGEST", 100)
        with pytest.raises(ConversionError, match="too large for a flatbuffer"):
            flatbuffer.pack(flatbuffer.unpack(raw))


class TestParts:
    @pytest.fixture
    def model(self, raw: bytes) -> Any:
        return flatbuffer.unpack(raw)

    def test_tensors(self, model: Any) -> None:
        x, w = flatbuffer.tensors(model.subgraphs[0])[:2]
        assert (flatbuffer.text(x.name), flatbuffer.shape_of(x), flatbuffer.dtype_of(x)) == ("x", (1, 4, 8), "float32")
        assert flatbuffer.constant(model, x) is None
        value = np.frombuffer(flatbuffer.constant(model, w) or b"", np.float32)
        np.testing.assert_array_equal(value.reshape(8, 8), tiny.weights(0).astype(np.float32))

    def test_operators(self, model: Any) -> None:
        names = [flatbuffer.operator_name(model, one) for one in flatbuffer.operators(model.subgraphs[0])]
        assert names == ["FULLY_CONNECTED"] * 4

    def test_a_custom_operator_has_its_own_name(self, model: Any) -> None:
        model.operatorCodes[0].customCode = b"FlexErf"
        assert flatbuffer.operator_name(model, model.subgraphs[0].operators[0]) == "FlexErf"

    def test_a_code_from_before_the_extended_field(self, model: Any) -> None:
        model.operatorCodes[0].builtinCode = 0
        assert flatbuffer.operator_name(model, model.subgraphs[0].operators[0]) == "FULLY_CONNECTED"

    def test_a_code_and_a_type_of_the_future(self, model: Any) -> None:
        model.operatorCodes[0].builtinCode = 9999
        model.subgraphs[0].tensors[0].type = 77
        assert flatbuffer.operator_name(model, model.subgraphs[0].operators[0]) == "operator 9999"
        assert flatbuffer.dtype_of(model.subgraphs[0].tensors[0]) == "type 77"

    def test_what_operators_write(self, model: Any) -> None:
        graph = model.subgraphs[0]
        assert {flatbuffer.text(graph.tensors[n].name) for n in flatbuffer.produced(graph)} == {
            "fc0", "fc1", "fc2", "y"
        }  # fmt: skip

    def test_empty_vectors_are_none_in_the_schema(self) -> None:
        graph = schema.SubGraphT()
        assert flatbuffer.tensors(graph) == list(flatbuffer.operators(graph)) == flatbuffer.numbers(None) == []

    @pytest.mark.parametrize(("name", "text"), [(b"a\xff", "a\ufffd"), ("a", "a"), (None, "")])
    def test_names_are_text_whatever_they_are(self, name: bytes | str | None, text: str) -> None:
        assert flatbuffer.text(name) == text
