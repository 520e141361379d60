"""One file told from itself: interface, operators, delegation, parameters, contract; damaged ones in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from contract.errors import ConversionError, InputError, KirError
from convert import flatbuffer
from convert.inspection import Damaged, Inspection, counted, inspect_files, what_it_is
from convert.metadata import FORMAT, embed
from convert.quantize import load_recipe, quantize
from tests.convert import tiny_tflite as tiny
from tests.convert.test_probe import deadly, with_a_slice

FACTS: dict[str, Any] = {
    "format": FORMAT,
    "model_version": "kir-1",
    "graph": "swipe",
    "bucket": "N9",
    "inputs": [{"name": "x", "shape": [1, 4, 8], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": [1, 4, 8], "dtype": "float32"}],
    "recipe": {"name": "int8-dynamic", "recipe": [{}]},
    "onnx_sha256": "ab" * 32,
    "tools": {"onnx2tf": "2.6.9"},
}


def inspected(path: Path) -> Inspection:
    (found,) = inspect_files([path])
    assert isinstance(found, Inspection), found
    return found


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_chain(tmp_path_factory.mktemp("chain") / "chain.tflite")


@pytest.fixture(scope="module")
def plain(chain: Path) -> Inspection:
    return inspected(chain)


class TestWhatIsTold:
    def test_the_file(self, plain: Inspection, chain: Path) -> None:
        raw = chain.read_bytes()
        assert (plain.path, plain.n_bytes) == (str(chain), len(raw))
        assert plain.sha256 == hashlib.sha256(raw).hexdigest()
        assert plain.description == "by hand"

    def test_the_interface(self, plain: Inspection) -> None:
        assert plain.signature == "serving_default"
        assert [dataclasses.astuple(port) for port in plain.inputs] == [("x", (1, 4, 8), "float32", "", "")]
        assert [dataclasses.astuple(port) for port in plain.outputs] == [("y", (1, 4, 8), "float32", "", "")]

    def test_operators_and_parameters(self, plain: Inspection) -> None:
        assert plain.operators == {"FULLY_CONNECTED": 4}
        assert plain.parameters == 4 * (64 + 8)
        assert (plain.partitions, plain.left_out) == (1, {})

    def test_operators_that_xnnpack_leaves_out(self, tmp_path: Path) -> None:
        (tmp_path / "slice.tflite").write_bytes(with_a_slice())
        found = inspected(tmp_path / "slice.tflite")
        assert (found.partitions, found.left_out) == (2, {"SLICE": 1})
        assert "runs 2 partitions; left out: SLICE 1" in found.table()

    def test_names_that_the_signature_gives_otherwise(self, chain: Path, tmp_path: Path) -> None:
        path = tmp_path / "signed.tflite"
        path.write_bytes(
            tiny.edited(chain.read_bytes(), lambda m: setattr(m.signatureDefs[0].inputs[0], "name", "query"))
        )
        found = inspected(path)
        assert (found.inputs[0].name, found.inputs[0].signature_name) == ("x", "query")
        assert "as 'query'" in found.table()

    def test_a_file_without_a_signature(self, chain: Path, tmp_path: Path) -> None:
        path = tmp_path / "unsigned.tflite"
        path.write_bytes(tiny.edited(chain.read_bytes(), lambda m: setattr(m, "signatureDefs", None)))
        assert inspected(path).signature == ""
        assert "signature none" in inspected(path).table()

    def test_quantised_inputs(self, tmp_path: Path) -> None:
        def quantise_x(model: Any) -> None:
            tensor = model.subgraphs[0].tensors[0]
            tensor.type = flatbuffer.schema.TensorType.INT8
            tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5], [3]

        net = tiny.Net()
        net.tensor("x", (4,))
        net.tensor("y", (4,))
        net.operator("DEQUANTIZE", ("x",), "y", "DequantizeOptions")
        path = tmp_path / "int8.tflite"
        path.write_bytes(tiny.edited(net.bytes(["x"], ["y"]), quantise_x))
        assert inspected(path).inputs[0].line() == "int8  [4]  scale 0.5, zero 3"

    def test_a_quantised_variant(self, chain: Path, tmp_path: Path) -> None:
        path = quantize(chain, load_recipe("int8-weight-only"), tmp_path / "int8.tflite")
        found = inspected(path)
        assert found.operators == {"DEQUANTIZE": 4, "FULLY_CONNECTED": 4}
        assert found.parameters == 4 * (64 + 8)
        assert found.left_out == {}

    def test_the_table_says_it_all(self, plain: Inspection) -> None:
        text = plain.table()
        for part in (plain.sha256, "serving_default", "FULLY_CONNECTED 4", "parameters 288", "contract none", "other"):
            assert part in text

    def test_json_comes_back_equal(self, plain: Inspection) -> None:
        data = json.loads(json.dumps(plain.to_json()))
        assert data["parameters"] == 288
        assert data["weights"][0]["n_bytes"] == 256
        assert data["inputs"][0]["shape"] == [1, 4, 8]


class TestContract:
    def write(self, chain: Path, path: Path, **changes: Any) -> Path:
        path.write_bytes(embed(chain.read_bytes(), {**FACTS, **changes}))
        return path

    def test_it_is_shown(self, chain: Path, tmp_path: Path) -> None:
        found = inspected(self.write(chain, tmp_path / "with.tflite"))
        assert found.contract == FACTS
        assert found.contract_differs == ()
        assert "contract kir-1 swipe/N9 int8-dynamic  onnx abababababab…  1 rules  onnx2tf 2.6.9" in found.table()

    def test_one_that_the_file_does_not_keep_is_told(self, chain: Path, tmp_path: Path) -> None:
        wrong = [{"name": "y", "shape": [1, 8, 4], "dtype": "float32"}]
        found = inspected(self.write(chain, tmp_path / "wrong.tflite", outputs=wrong))
        assert found.contract_differs == ("y",)
        assert "! the contract and the file differ in: y" in found.table()

    def test_one_with_few_facts(self) -> None:
        assert what_it_is({"format": FORMAT}) == ""
        assert what_it_is({"graph": "mlp", "bucket": "", "recipe": {"name": "float32"}}) == "mlp float32"

    def test_a_malformed_one_is_one_line(self, chain: Path, tmp_path: Path) -> None:
        raw = embed(chain.read_bytes(), FACTS)
        path = tmp_path / "spoilt.tflite"
        path.write_bytes(tiny.edited(raw, lambda m: setattr(m.metadata[0], "buffer", 0)))
        (found,) = inspect_files([path])
        assert isinstance(found, Damaged)
        assert "embedded contract is malformed" in str(found.error)


class TestDamaged:
    def error(self, path: Path) -> KirError:
        (found,) = inspect_files([path])
        assert isinstance(found, Damaged)
        assert found.path == str(path)
        assert "\n" not in str(found.error)
        return found.error

    @pytest.mark.parametrize("keep", [0, 3, 8, 100, 1000, -200, -1])
    def test_a_truncated_file(self, chain: Path, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "cut.tflite"
        path.write_bytes(chain.read_bytes()[:keep])
        assert isinstance(self.error(path), ConversionError)

    def test_a_text(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.tflite"
        path.write_text("not a model at all\n")
        assert "not a TFLite file" in str(self.error(path))

    def test_an_absent_one(self, tmp_path: Path) -> None:
        assert isinstance(self.error(tmp_path / "none.tflite"), InputError)

    def test_one_that_kills_litert(self, chain: Path, tmp_path: Path) -> None:
        path = tmp_path / "deadly.tflite"
        path.write_bytes(tiny.edited(chain.read_bytes(), deadly))
        # What is read past the end decides: LiteRT dies in one process and refuses in another (see test_probe).
        assert "LiteRT refuses the file; got " in str(self.error(path))

    def test_a_good_one_beside_them_is_told(self, chain: Path, tmp_path: Path) -> None:
        (tmp_path / "empty.tflite").write_bytes(b"")
        found = inspect_files([tmp_path / "empty.tflite", chain, tmp_path / "none.tflite"])
        assert [type(one) for one in found] == [Damaged, Inspection, Damaged]


def test_counts_most_first_then_by_name() -> None:
    assert counted({"ADD": 2, "MUL": 7, "ABS": 2}) == "MUL 7, ABS 2, ADD 2"
