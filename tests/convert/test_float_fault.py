"""A float file that differs from torch is told how, where a guess can be tried: swapped, transposed, masked wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contract.errors import VerificationFailed
from convert.build import BuiltGraph, build_graph
from convert.float_fault import explain
from convert.onnx_export import TorchGraph
from convert.quantize import FLOAT, load_recipes
from convert.subject import GraphSubject
from convert.tflite import TfliteGraph
from convert.verify import verify
from tests.convert import makers
from tests.convert.conftest import LOOSE

Arrays = dict[str, Any]
N = 6


def right(one: Arrays) -> Arrays:
    """Two outputs of three inputs of one shape, each used another way."""
    a, b, mask = one["a"], one["b"], one["mask"]
    return {"y": (a * mask) @ b, "z": a - 2 * b}


def feeds(n: int = 5) -> list[Arrays]:
    rng = np.random.default_rng(0)
    return [
        {
            "a": rng.normal(size=(N, N)).astype(np.float32),
            "b": rng.normal(size=(N, N)).astype(np.float32),
            "mask": rng.choice([0.0, 1.0], (1, N)).astype(np.float32),
        }
        for _ in range(n)
    ]


class TestGuesses:
    def told(self, run: Callable[[Arrays], Arrays], given: list[Arrays] | None = None) -> str:
        given = given or feeds()
        return explain(run, given, [right(one) for one in given], 1e-5, None, None)

    def test_inputs_in_each_others_place(self) -> None:
        told = self.told(lambda one: right({**one, "a": one["b"], "b": one["a"]}))
        assert told == "inputs 'a' and 'b' stand in each other's place"

    def test_an_input_with_its_axes_exchanged(self) -> None:
        assert self.told(lambda one: right({**one, "b": one["b"].T})) == "input 'b' is read with axes 0 and 1 exchanged"

    def test_a_mask_the_other_way_round(self) -> None:
        told = self.told(lambda one: right({**one, "mask": 1 - one["mask"]}))
        assert told == "input 'mask' masks what it should let through"

    def test_outputs_in_each_others_place(self) -> None:
        def swapped(one: Arrays) -> Arrays:
            found = right(one)
            return {"y": found["z"], "z": found["y"]}

        assert self.told(swapped) == "outputs 'y' and 'z' stand in each other's place"

    def test_an_output_with_its_axes_exchanged(self) -> None:
        told = self.told(lambda one: {**right(one), "z": right(one)["z"].T})
        assert told == "output 'z' comes with axes 0 and 1 exchanged"

    def test_what_no_guess_mends_is_not_explained(self) -> None:
        assert self.told(lambda one: {"y": right(one)["y"] * 1.01, "z": right(one)["z"]}) == ""

    def test_samples_that_agree_by_themselves_decide_nothing(self) -> None:
        """Only the last sample is off; on the others a is b, and a swap would agree with anything."""
        same = [{**one, "b": one["a"]} for one in feeds(8)]
        odd = feeds(1)[0]

        def run(one: Arrays) -> Arrays:
            found = right(one)
            return found if one["a"] is one["b"] else {**found, "z": found["z"] + 1}

        assert self.told(run, [*same, odd]) == ""

    def test_nothing_is_guessed_without_samples(self) -> None:
        assert explain(right, [], [], 1e-5, None, None) == ""


class Reader(nn.Module):
    """tokens [1, N, N], mask [1, N] -> scores [1, N]. fault: what is planted."""

    def __init__(self, fault: str = ""):
        super().__init__()
        torch.manual_seed(1)
        self.fault, self.first, self.second = fault, nn.Linear(N, 16), nn.Linear(16, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tokens = tokens.transpose(1, 2) if self.fault == "transposed" else tokens
        mask = 1.0 - mask if self.fault == "mask" else mask
        read = torch.relu(self.first(tokens)) * mask.unsqueeze(-1)
        return self.second(read + read.sum(1, keepdim=True)).squeeze(-1)


def graph_of(fault: str = "") -> TorchGraph:
    mask = (torch.arange(N) % 2 == 0).float().reshape(1, N)
    return TorchGraph("reader", "", Reader(fault).eval(), {"tokens": torch.randn(1, N, N), "mask": mask}, ("scores",))


def subject_of(graph: TorchGraph) -> GraphSubject:
    rng = np.random.default_rng(2)
    given = [
        {
            "tokens": rng.normal(size=(1, N, N)).astype(np.float32),
            "mask": rng.choice([0.0, 1.0], (1, N)).astype(np.float32),
        }
        for _ in range(6)
    ]
    return GraphSubject(graph, given, lambda _, out: out["scores"], lambda _, found: found.reshape(-1))


class TestPlanted:
    """A converter that is wrong in this way: the file of another module, under this one's names and shapes."""

    def planted(self, folder: Path, fault: str) -> tuple[GraphSubject, dict[str, BuiltGraph]]:
        good = graph_of("transposed" if fault == "transposed" else "")
        built = build_graph(good, folder / "good", load_recipes([FLOAT]))
        if fault == "weight":
            makers.edit_tflite(built.variants[FLOAT], makers.scale_largest_weight(1.01))
        elif fault:
            bad = build_graph(graph_of("" if fault == "transposed" else fault), folder / "bad", load_recipes([FLOAT]))
            built.variants[FLOAT].write_bytes(bad.variants[FLOAT].read_bytes())
        return subject_of(good), {built.key: built}

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            ("transposed", "input 'tokens' is read with axes 1 and 2 exchanged"),
            ("mask", "input 'mask' masks what it should let through"),
            ("weight", r"the first bad layer is FULLY_CONNECTED '/Relu_output_0'"),
        ],
    )
    def test_it_is_named(self, tmp_path: Path, fault: str, words: str) -> None:
        subject, built = self.planted(tmp_path, fault)
        with pytest.raises(VerificationFailed, match=f"differs from torch: {words}") as raised:
            verify(subject, built, gates=LOOSE)
        assert "--stages DIR --until tflite" in raised.value.fix
        assert "kir convert debug DIR/reader.onnx DIR/reader.float32.tflite" in raised.value.fix

    def test_onnx2tf_drops_a_transpose_that_comes_first_on_a_square_input(self, tmp_path: Path) -> None:
        """Nothing planted: the converter itself. The ONNX file is right, and the TFLite file has no TRANSPOSE."""
        graph = graph_of("transposed")
        built = build_graph(graph, tmp_path, load_recipes([FLOAT]))
        assert "TRANSPOSE" not in TfliteGraph(built.variants[FLOAT]).operators
        with pytest.raises(VerificationFailed, match=r"reader in TFLite float .* axes 1 and 2 exchanged"):
            verify(subject_of(graph), {built.key: built}, gates=LOOSE)

    def test_nothing_planted_nothing_told(self, tmp_path: Path) -> None:
        subject, built = self.planted(tmp_path, "")
        assert verify(subject, built, gates=LOOSE).shipped == {"reader": FLOAT}


class TestTorchItself:
    def subject(self, module: nn.Module) -> GraphSubject:
        graph = graph_of()
        return subject_of(TorchGraph(graph.name, "", module.eval(), graph.inputs, graph.outputs))

    def test_a_module_that_draws_at_each_call(self) -> None:
        class Random(Reader):
            def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
                return nn.functional.dropout(super().forward(tokens, mask), training=True)

        with pytest.raises(VerificationFailed, match="the module in torch, run twice: differs from torch") as raised:
            verify(self.subject(Random()), {}, gates=LOOSE)
        assert "dropout" in raised.value.fix

    def test_a_module_that_gives_no_number(self) -> None:
        class Nothing(Reader):
            def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
                return super().forward(tokens, mask) * float("nan")

        with pytest.raises(VerificationFailed, match="torch's own outputs are not finite"):
            verify(self.subject(Nothing()), {}, gates=LOOSE)
