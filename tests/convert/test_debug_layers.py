"""A layer alone: its operator on clean inputs, and the outputs with its noise and nobody else's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convert import flatbuffer
from convert.debug_layers import CLEAN, NOISE, Effects, OwnNoise, cut, injectable
from convert.debug_taps import Layer, TensorRunner, tapped
from tests.convert import tiny_tflite as tiny

NAMES = ("fc0", "fc1", "fc2", "y")


@pytest.fixture(scope="module")
def model() -> Any:
    return flatbuffer.unpack(tiny.chain())


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    return tiny.samples(1)[0]


@pytest.fixture(scope="module")
def clean(model: Any, sample: dict[str, Any]) -> dict[str, Any]:
    return TensorRunner(flatbuffer.pack(tapped(model)), "clean").run(sample)


def names_of(model: Any, numbers: Any) -> list[str]:
    return [flatbuffer.text(model.subgraphs[0].tensors[n].name) for n in numbers]


class TestOwnNoise:
    def test_every_layer_reads_the_tensor_it_is_given(self, model: Any, sample: dict[str, Any]) -> None:
        """Fed with anything, a layer gives what its weights make of that and of nothing before."""
        given = {name: np.full((1, 4, 8), value, np.float32) for name, value in zip(NAMES, (1, 2, 3, 4), strict=True)}
        found = OwnNoise(model, NAMES, "chain").run(sample, given)
        want = np.float32(2) * tiny.weights(2).astype(np.float32).sum(axis=1) + tiny.bias(2)
        np.testing.assert_allclose(found["fc2"][0, 0], want, atol=1e-5)

    def test_an_exact_variant_adds_nothing(self, model: Any, sample: dict[str, Any], clean: dict[str, Any]) -> None:
        found = OwnNoise(model, NAMES, "chain").run(sample, clean)
        for name in NAMES:
            np.testing.assert_allclose(found[name], clean[name], atol=1e-6)

    def test_a_fault_shows_where_it_is_and_not_behind(self, sample: dict[str, Any], clean: dict[str, Any]) -> None:
        spoilt = flatbuffer.unpack(tiny.chain(change=tiny.scaled(1, 1.5)))
        found = OwnNoise(spoilt, NAMES, "chain").run(sample, clean)
        apart = {name: float(np.abs(found[name] - clean[name]).max()) for name in NAMES}
        assert apart["fc1"] > 0.1
        assert max(apart["fc0"], apart["fc2"], apart["y"]) < 1e-5

    def test_only_what_is_read_becomes_an_input(self, model: Any) -> None:
        found = cut(model, NAMES)
        assert names_of(found, found.subgraphs[0].inputs) == ["x", *(CLEAN + name for name in NAMES[:-1])]

    def test_tensors_without_a_reference_stay_joined(self, model: Any, sample: dict[str, Any]) -> None:
        runner = OwnNoise(model, ["fc0", "y"], "chain")
        found = runner.run(sample, {"fc0": np.zeros((1, 4, 8), np.float32), "y": np.zeros((1, 4, 8), np.float32)})
        at = tiny.bias(1)
        for i in (2, 3):
            at = tiny.weights(i) @ at + tiny.bias(i)
        np.testing.assert_allclose(found["y"][0, 0], at, atol=1e-5)

    def test_the_model_is_left_alone(self, model: Any) -> None:
        before = flatbuffer.pack(model)
        cut(model, NAMES)
        injectable(model, NAMES)
        assert flatbuffer.pack(model) == before


class TestEffects:
    LAYERS = tuple(Layer(i, "FULLY_CONNECTED", name) for i, name in enumerate(NAMES))

    def test_without_noise_the_outputs_are_the_references(
        self, model: Any, sample: dict[str, Any], clean: dict[str, Any]
    ) -> None:
        silent = {name: np.zeros((1, 4, 8), np.float32) for name in NAMES}
        for outputs in Effects(model, NAMES, "chain").run(sample, silent, self.LAYERS).values():
            np.testing.assert_allclose(outputs["y"], clean["y"], atol=1e-6)

    def test_noise_of_one_layer_goes_through_what_lies_behind(
        self, model: Any, sample: dict[str, Any], clean: dict[str, Any]
    ) -> None:
        rng = np.random.default_rng(1)
        noises = {name: rng.normal(size=(1, 4, 8)).astype(np.float32) for name in NAMES}
        found = Effects(model, NAMES, "chain").run(sample, noises, self.LAYERS)
        for i, name in enumerate(NAMES):
            want = noises[name]
            for behind in range(i + 1, 4):
                want = want @ tiny.weights(behind).T.astype(np.float32)
            np.testing.assert_allclose(found[name]["y"] - clean["y"], want, atol=1e-4, err_msg=name)

    def test_the_noises_are_inputs_of_their_own(self, model: Any) -> None:
        found = injectable(model, ["fc1"])
        assert names_of(found, found.subgraphs[0].inputs) == ["x", NOISE + "fc1"]
        kinds = [flatbuffer.operator_name(found, one) for one in flatbuffer.operators(found.subgraphs[0])]
        assert kinds == ["FULLY_CONNECTED", "FULLY_CONNECTED", "ADD", "FULLY_CONNECTED", "FULLY_CONNECTED"]
