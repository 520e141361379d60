"""What a graph is debugged on: a converted directory's files, an .npz, or random numbers of a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import InputError
from convert.debug_inputs import Converted, load_inputs, random_inputs
from convert.quantize import FLOAT, load_recipe

SIGNATURE = {"x": ((1, 3), np.dtype("float32")), "at": ((2,), np.dtype("int32"))}
X, AT = np.ones((1, 3), np.float32), np.array([0, 1], np.int32)


class TestConverted:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """What the reader needs of a conversion."""
        variants = {name: f"graphs/swipe-N9.{name}.tflite" for name in (FLOAT, "int8-dynamic", "odd")}
        graph = {"name": "swipe", "bucket": "N9", "variants": variants, "golden": "golden/swipe-N9.npz"}
        bare = {"name": "mlp", "bucket": "", "variants": {FLOAT: f"graphs/mlp.{FLOAT}.tflite"}}
        recipes = [load_recipe(name).to_json() for name in (FLOAT, "int8-dynamic")]
        (tmp_path / "model.json").write_text(json.dumps({"graphs": [graph, bare], "recipes": recipes}))
        return tmp_path

    def test_files_and_recipe_of_a_variant(self, directory: Path) -> None:
        found = Converted.read(directory, "swipe/N9", "int8-dynamic")
        assert found.variant == directory / "graphs/swipe-N9.int8-dynamic.tflite"
        assert found.float_file == directory / "graphs/swipe-N9.float32.tflite"
        assert found.onnx == directory / "graphs/swipe-N9.onnx"
        assert found.case == directory / "golden/swipe-N9.npz"
        assert found.recipe == load_recipe("int8-dynamic")

    def test_a_graph_without_bucket_and_golden(self, directory: Path) -> None:
        found = Converted.read(directory, "mlp", FLOAT)
        assert (found.variant, found.case) == (found.float_file, None)

    def test_a_variant_whose_recipe_is_not_told(self, directory: Path) -> None:
        assert Converted.read(directory, "swipe/N9", "odd").recipe is None

    @pytest.mark.parametrize(
        ("graph", "variant", "flag", "allowed"),
        [
            ("swipe/N8", FLOAT, "--graph", ["mlp", "swipe/N9"]),
            ("mlp", "int4", "--variant", [FLOAT]),
            ("", "", "--graph", None),
        ],
    )
    def test_what_is_not_there(
        self, directory: Path, graph: str, variant: str, flag: str, allowed: list[str] | None
    ) -> None:
        with pytest.raises(InputError, match=flag) as caught:
            Converted.read(directory, graph, variant)
        assert allowed is None or caught.value.allowed == allowed

    def test_a_directory_that_is_no_conversion(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not a converted model"):
            Converted.read(tmp_path, "swipe/N9", FLOAT)

    @pytest.mark.parametrize(
        "text", ["{", "[]", "{}", '{"graphs": [], "recipes": []}', '{"graphs": [1], "recipes": 3}']
    )
    def test_a_model_json_that_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(InputError, match="unreadable"):
            Converted.read(tmp_path, "swipe/N9", FLOAT)


class TestLoading:
    def save(self, path: Path, **arrays: Any) -> Path:
        np.savez(path / "in.npz", **arrays)
        return path / "in.npz"

    def test_one_sample_and_arrays_of_other_names(self, tmp_path: Path) -> None:
        (found,) = load_inputs(self.save(tmp_path, x=X, at=AT, scores=np.zeros(9)), SIGNATURE)
        assert set(found) == {"x", "at"}
        np.testing.assert_array_equal(found["x"], X)

    def test_stacked_samples(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, x=np.stack([X, 2 * X, 3 * X]), at=np.stack([AT] * 3))
        assert [float(sample["x"][0, 0]) for sample in load_inputs(path, SIGNATURE)] == [1, 2, 3]

    @pytest.mark.parametrize(
        ("arrays", "what"),
        [
            ({"x": X}, "inputs are missing"),
            ({"x": X.T, "at": AT}, "another shape"),
            ({"x": np.stack([X, X]), "at": AT}, "different numbers"),
            ({"x": np.zeros((0, 1, 3)), "at": np.zeros((0, 2))}, "different numbers"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path: Path, arrays: dict[str, Any], what: str) -> None:
        with pytest.raises(InputError, match=what):
            load_inputs(self.save(tmp_path, **arrays), SIGNATURE)

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "in.npz").write_text("nothing")
        with pytest.raises(InputError, match=r"not an \.npz"):
            load_inputs(tmp_path / "in.npz", SIGNATURE)
        np.save(tmp_path / "one.npy", X)
        with pytest.raises(InputError, match=r"not an \.npz"):
            load_inputs(tmp_path / "one.npy", SIGNATURE)

    def test_pickles_are_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", x=np.array([{}], object), at=AT, allow_pickle=True)
        with pytest.raises(InputError, match=r"not an \.npz"):
            load_inputs(tmp_path / "in.npz", SIGNATURE)

    def test_an_absent_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file"):
            load_inputs(tmp_path / "none.npz", SIGNATURE)


class TestRandom:
    def test_a_seed_is_a_sample(self) -> None:
        one, same, other = random_inputs(SIGNATURE, 3), random_inputs(SIGNATURE, 3), random_inputs(SIGNATURE, 4)
        np.testing.assert_array_equal(one[0]["x"], same[0]["x"])
        assert not np.array_equal(one[0]["x"], other[0]["x"])
        assert not np.array_equal(one[0]["x"], one[1]["x"])

    def test_shapes_types_and_small_places(self) -> None:
        for sample in random_inputs(SIGNATURE, 0, n=5):
            assert (sample["x"].shape, sample["x"].dtype) == ((1, 3), np.float32)
            assert (sample["at"].shape, sample["at"].dtype) == ((2,), np.int32)
            assert set(sample["at"].tolist()) <= {0, 1}
