"""The first bad layer is the one to blame, whatever the layers behind it inherit; real failures are found."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from contract.errors import InputError
from contract.manifest import Tensor
from convert.build import BuiltGraph
from convert.calibration import activation_ranges
from convert.debug import debug_converted, debug_files
from convert.debug_report import DebugReport
from convert.model import ConversionResult
from convert.noise import FLOOR
from convert.quantize import FLOAT, Recipe, load_recipe, quantize
from convert.tflite import convert_onnx
from tests.convert import makers, tiny_onnx
from tests.convert import tiny_tflite as tiny

INT8 = load_recipe("int8-dynamic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("debug")


@pytest.fixture(scope="module")
def loud(folder: Path) -> Path:
    """A net of which int8 loses fc1."""
    return tiny.write_chain(folder / "loud.tflite", layers=3, change=tiny.loud())


@pytest.fixture(scope="module")
def lossy(loud: Path) -> DebugReport:
    variant = quantize(loud, INT8, loud.with_name("lossy.tflite"))
    return debug_files(loud, variant, inputs=tiny.samples(), recipe=INT8)


class TestLossyVariant:
    def test_the_layer_that_int8_loses_is_the_first_bad_one(self, lossy: DebugReport) -> None:
        assert lossy.first_bad is not None
        assert (lossy.first_bad.name, lossy.first_bad.operator, lossy.first_bad.place) == ("fc1", "FULLY_CONNECTED", 1)

    def test_layers_behind_it_inherit_and_are_not_blamed(self, lossy: DebugReport) -> None:
        noise = {layer.name: layer for layer in lossy.layers}
        assert list(noise) == ["fc0", "fc1", "y"]
        assert noise["y"].noise > 0.05
        assert max(noise[name].own for name in ("fc0", "y")) < 1e-3 < noise["fc1"].own

    def test_its_effect_alone_is_nearly_all_of_the_outputs_noise(self, lossy: DebugReport) -> None:
        assert lossy.first_bad is not None
        assert lossy.first_bad.effect is not None
        assert lossy.first_bad.effect == pytest.approx(lossy.noise, rel=0.1)

    def test_the_mend_is_applied_and_pays(self, lossy: DebugReport) -> None:
        assert lossy.mend is not None
        (step,) = lossy.mend.steps
        assert step.layers == ("fc1",)
        assert step.noise < 0.01 * lossy.mend.noise_before
        assert lossy.mend.best == step
        assert lossy.mend.noise_before == pytest.approx(lossy.noise)
        assert not lossy.mend.stale

    def test_the_mended_file_is_what_was_judged(self, lossy: DebugReport, loud: Path, tmp_path: Path) -> None:
        assert lossy.mend is not None
        path = tmp_path / "mended.tflite"
        assert lossy.mend.best is not None
        path.write_bytes(lossy.mend.best.content)
        again = debug_files(loud, path, inputs=tiny.samples())
        assert again.noise == pytest.approx(lossy.mend.steps[0].noise)
        assert {layer.name: layer.own for layer in again.layers}["fc1"] < FLOOR

    def test_the_same_report_every_time(self, lossy: DebugReport, loud: Path) -> None:
        variant = loud.with_name("lossy.tflite")
        assert debug_files(loud, variant, inputs=tiny.samples(), recipe=INT8).to_json() == lossy.to_json()

    def test_without_a_recipe_it_says_what_to_name(self, lossy: DebugReport, loud: Path) -> None:
        found = debug_files(loud, lossy.variant, inputs=tiny.samples())
        assert found.mend is None
        assert "--recipe" in found.advice
        assert found.first_bad == lossy.first_bad


class TestRecipes:
    # Given ranges, the quantizer loads the model with all tensors kept to see if they suffice; LiteRT warns of it.
    @pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors:UserWarning")
    @pytest.mark.parametrize(
        ("name", "layers"),
        # With int8 activations fc0's quiet unit is lost before fc1 makes it loud: little noise, and a great effect.
        [("int8-weight-only", ("fc1",)), ("int8-fc", ("fc0", "fc1")), ("int16-act", ("fc1",))],
    )
    def test_each_names_and_mends_its_layers(
        self, name: str, layers: tuple[str, ...], loud: Path, tmp_path: Path
    ) -> None:
        """Static ones as well: what they were calibrated to is read from the variant, no page is needed."""
        recipe = load_recipe(name)
        ranges = activation_ranges(loud, tiny.samples(9, seed=1)) if recipe.calibrate else None
        variant = quantize(loud, recipe, tmp_path / f"{name}.tflite", ranges)
        found = debug_files(loud, variant, inputs=tiny.samples(), recipe=recipe)
        assert found.first_bad is not None
        assert found.first_bad.name == layers[0]
        assert found.mend is not None
        assert (found.mend.error, found.mend.stale) == ("", False)
        assert found.mend.best is not None
        assert found.mend.best.layers == layers
        assert found.mend.best.noise < 0.01 * found.mend.noise_before

    def test_several_layers_are_mended_one_after_the_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("convert.mend.ENOUGH", 0.01)
        source = tiny.write_chain(tmp_path / "twice.tflite", layers=4, change=tiny.loud())
        variant = quantize(source, INT8, tmp_path / "int8.tflite")
        found = debug_files(source, variant, inputs=tiny.samples(), recipe=INT8)
        assert found.mend is not None
        assert [step.layers for step in found.mend.steps] == [("fc1",), ("fc1", "y")]
        assert found.mend.steps[-1].noise < 0.01 * found.mend.noise_before < found.mend.steps[0].noise
        assert len(found.mend.rules) == 2


class TestPlantedFaults:
    def test_a_weight_scaled_by_1_01_in_a_float_file(self, folder: Path) -> None:
        reference = tiny.write_chain(folder / "sound.tflite")
        spoilt = tiny.write_chain(folder / "spoilt.tflite", change=tiny.scaled(2))
        found = debug_files(reference, spoilt, inputs=tiny.samples())
        assert found.first_bad is not None
        assert found.first_bad.name == "fc2"
        assert found.first_bad.own == pytest.approx(1e-4, rel=0.2)
        assert (found.mend, "convert again" in found.advice) == (None, True)

    def test_one_in_a_quantised_file_is_told_from_its_recipe(self, folder: Path) -> None:
        """What its recipe makes of the float file is another file: not the recipe is to blame."""
        reference = tiny.write_chain(folder / "sound.tflite")
        spoilt = tiny.write_chain(folder / "spoilt.tflite", change=tiny.scaled(2, 1.1))
        variant = quantize(spoilt, INT8, folder / "spoilt-int8.tflite")
        found = debug_files(reference, variant, inputs=tiny.samples(), recipe=INT8)
        assert found.first_bad is not None
        assert found.first_bad.name == "fc2"
        assert found.mend is not None
        assert found.mend.stale
        assert "convert again" in found.table()

    def test_an_output_of_another_shape(self, folder: Path) -> None:
        for name, shape in (("flat", (4, 8)), ("turned", (8, 4))):
            net = tiny.Net()
            net.tensor("x", (1, 4, 8))
            net.tensor("y", shape)
            net.operator("RESHAPE", ("x",), "y", "ReshapeOptions", newShape=list(shape))
            (folder / f"{name}.tflite").write_bytes(net.bytes(["x"], ["y"]))
        found = debug_files(folder / "flat.tflite", folder / "turned.tflite")
        assert math.isinf(found.noise)
        assert found.first_bad is None
        assert "shape [8, 4], the reference's is [4, 8]" in found.table()
        assert "no layer that both files have adds noise" in found.verdict()
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["noise"] == "inf"

    def test_an_output_that_the_reference_does_not_have(self, folder: Path) -> None:
        reference = tiny.write_chain(folder / "sound.tflite")
        other = folder / "renamed.tflite"
        other.write_bytes(
            tiny.edited(reference.read_bytes(), lambda m: setattr(m.subgraphs[0].tensors[-1], "name", "z"))
        )
        found = debug_files(reference, other, inputs=tiny.samples())
        assert found.outputs[0].note == "the reference has no such output"

    def test_equal_files_agree(self, loud: Path) -> None:
        found = debug_files(loud, loud, inputs=tiny.samples(), recipe=INT8)
        assert (found.first_bad, found.mend, found.advice, found.noise) == (None, None, "", 0.0)
        assert found.verdict() == "the outputs agree: noise:signal 0"


class TestOnnxReference:
    def test_the_node_that_onnx2tf_gets_wrong(self, tmp_path: Path) -> None:
        """Elu with another alpha than 1: converted without a word, and wrong."""
        onnx = tiny_onnx.write_net(tmp_path / "net.onnx")
        path = convert_onnx(onnx, tmp_path / "net.tflite", (Tensor("x", tiny_onnx.SHAPE),))
        found = debug_files(onnx, path, inputs=tiny_onnx.samples())
        assert found.first_bad is not None
        assert found.first_bad.name == "bent"
        assert found.first_bad.effect is None
        assert "--bisect" in found.advice
        assert "  -  " in found.table()


class TestArguments:
    def test_random_inputs_of_a_seed(self, loud: Path, lossy: DebugReport) -> None:
        found = debug_files(loud, lossy.variant, seed=4)
        assert found.inputs == "8 random samples of seed 4"
        assert found.first_bad is not None
        assert found.first_bad.name == "fc1"

    def test_inputs_of_a_file(self, loud: Path, lossy: DebugReport, tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", x=np.stack([sample["x"] for sample in tiny.samples()]))
        found = debug_files(loud, lossy.variant, inputs=tmp_path / "in.npz")
        assert found.inputs == "3 samples of in.npz"
        assert found.noise == pytest.approx(lossy.noise)

    def test_the_variant_must_be_tflite(self, loud: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"must be a \.tflite"):
            debug_files(loud, tiny_onnx.write_net(tmp_path / "net.onnx"))


class TestConverted:
    """On the graphs of a converted KIR."""

    @pytest.fixture(scope="class")
    @classmethod
    def swipe(cls, conversion: ConversionResult) -> DebugReport:
        return debug_converted(conversion.directory, "swipe/N9", "int8-dynamic")

    def test_its_golden_case_and_its_recipe_are_taken(self, swipe: DebugReport, conversion: ConversionResult) -> None:
        assert swipe.inputs == "swipe-N9.npz"
        assert swipe.reference.endswith("swipe-N9.float32.tflite")
        assert swipe.mend is not None
        assert swipe.mend.best is not None
        assert swipe.mend.best.recipe.name == "int8-dynamic-mended"
        assert swipe.mend.bytes_before == conversion.verification.row("swipe/N9", "int8-dynamic").n_bytes

    def test_layers_with_weights_are_those_that_add_noise(self, swipe: DebugReport) -> None:
        assert {layer.operator for layer in swipe.ranked()} <= {"FULLY_CONNECTED", "BATCH_MATMUL"}
        assert len(swipe.ranked()) >= 4
        assert len(swipe.layers) > len(swipe.ranked())

    def test_the_mend_lowers_the_noise_by_half_or_says_what_is_left(self, swipe: DebugReport) -> None:
        assert swipe.mend is not None
        assert not swipe.mend.stale
        assert swipe.mend.steps[-1].noise <= 0.5 * swipe.mend.noise_before

    def test_the_float_file_is_held_against_onnx(self, conversion: ConversionResult) -> None:
        found = debug_converted(conversion.directory, "watch/T1", FLOAT)
        assert found.reference.endswith("watch-T1.onnx")
        assert found.first_bad is None
        assert found.noise < FLOOR
        assert found.n_tensors > 20

    def test_a_weight_changed_in_its_float_file_is_found(self, built: dict[str, BuiltGraph]) -> None:
        path = built["page/N9"].variants[FLOAT]
        makers.edit_tflite(path, makers.scale_largest_weight(1.01))
        found = debug_converted(path.parents[1], "page/N9", FLOAT)
        assert found.first_bad is not None
        assert found.first_bad.own == pytest.approx(1e-4, rel=0.3)
        others = [layer.own for layer in found.layers if layer.place != found.first_bad.place]
        assert max(others) < FLOOR

    def test_inputs_that_were_swapped_are_found_at_their_reader(self, built: dict[str, BuiltGraph]) -> None:
        path = built["swipe/N9"].variants[FLOAT]
        makers.edit_tflite(path, makers.swap_inputs("since", "behind"))
        found = debug_converted(path.parents[1], "swipe/N9", FLOAT)
        assert found.first_bad is not None
        assert found.first_bad.place < 4

    def test_another_recipe_may_be_named(self, conversion: ConversionResult) -> None:
        mine = Recipe("mine", "mine.", INT8.quantizer, INT8.recipe)
        found = debug_converted(conversion.directory, "swipe/N9", "int8-dynamic", recipe=mine)
        assert found.mend is not None
        assert found.mend.best is not None
        assert found.mend.best.recipe.name == "mine-mended"
