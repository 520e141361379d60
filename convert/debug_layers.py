"""What each layer of a variant adds to the error itself, and what that alone does to the outputs.

own     the layer's operator on clean inputs: in a copy of the variant every operator reads the reference's tensors,
        fed as inputs, so that nothing is inherited. All layers in one run.
effect  the float reference with that layer's own noise added to its output, and nothing else: the noise of the outputs
        that the layer alone is to blame for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import flatbuffer
from convert.debug_taps import Arrays, Feeds, Layer, TensorRunner, tapped, unique_names
from convert.flatbuffer import schema

CLEAN, RAW, NOISE = "kir/clean/", "kir/raw/", "kir/noise/"


def cut(model: Any, names: Sequence[str]) -> Any:
    """A copy in which operators read the tensors `names` from new inputs, "kir/clean/NAME", and still write them."""
    found = tapped(model)
    graph = found.subgraphs[0]
    graph.tensors, known = flatbuffer.tensors(graph), unique_names(graph)
    own_inputs, written = flatbuffer.numbers(graph.inputs), flatbuffer.produced(graph)
    fresh = {}
    for name in names:
        if known.get(name) in written:
            fresh[known[name]] = _added(graph, graph.tensors[known[name]], CLEAN + name)
    for operator in flatbuffer.operators(graph):
        operator.inputs = [fresh.get(number, number) for number in flatbuffer.numbers(operator.inputs)]
    read = {number for operator in flatbuffer.operators(graph) for number in operator.inputs}
    graph.inputs = [*own_inputs, *(number for number in fresh.values() if number in read)]
    return found


def injectable(model: Any, names: Sequence[str]) -> Any:
    """A copy in which each tensor of `names` has the input "kir/noise/NAME" added where it is written."""
    found = copy.deepcopy(model)
    graph = found.subgraphs[0]
    graph.tensors, known = flatbuffer.tensors(graph), unique_names(graph)
    wanted = {known[name]: name for name in names if name in known}
    noises, operators = [], []
    found.operatorCodes = [*found.operatorCodes, schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.ADD)]
    for operator in flatbuffer.operators(graph):
        operators.append(operator)
        operator.outputs = flatbuffer.numbers(operator.outputs)
        for place, number in enumerate(operator.outputs):
            if number in wanted:
                raw = _added(graph, graph.tensors[number], RAW + wanted[number])
                noise = _added(graph, graph.tensors[number], NOISE + wanted[number])
                noises.append(noise)
                operator.outputs[place] = raw
                operators.append(_add_operator(len(found.operatorCodes) - 1, raw, noise, number))
    graph.operators, graph.inputs = operators, [*flatbuffer.numbers(graph.inputs), *noises]
    found.signatureDefs = None
    return found


def _added(graph: Any, like: Any, name: str) -> int:
    tensor = copy.copy(like)
    tensor.name, tensor.buffer = name, 0
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _add_operator(code: int, left: int, right: int, out: int) -> Any:
    return schema.OperatorT(
        opcodeIndex=code,
        inputs=[left, right],
        outputs=[out],
        builtinOptionsType=schema.BuiltinOptions.AddOptions,
        builtinOptions=schema.AddOptionsT(),
    )


class OwnNoise:
    """Layers of a variant on clean inputs."""

    def __init__(self, model: Any, names: Sequence[str], where: object):
        self._runner = TensorRunner(flatbuffer.pack(cut(model, names)), f"{where}, layer by layer")

    def run(self, feeds: Feeds, clean: Mapping[str, NDArray[Any]]) -> Arrays:
        """clean: the reference's tensors. Gives what each operator makes of them, by its output's name."""
        return self._runner.run({**feeds, **{CLEAN + name: value for name, value in clean.items()}})


class Effects:
    """The float reference with noise in one layer at a time."""

    def __init__(self, model: Any, names: Sequence[str], where: object):
        self._runner = TensorRunner(flatbuffer.pack(injectable(model, names)), f"{where}, with noise")

    def run(self, feeds: Feeds, noises: Mapping[str, NDArray[Any]], layers: Sequence[Layer]) -> dict[str, Arrays]:
        """Layer's name -> outputs when its noise alone is added."""
        silent = {NOISE + name: np.zeros_like(noise) for name, noise in noises.items()}
        self._runner.run({**feeds, **silent})
        found = {}
        for layer in layers:
            self._runner.feed(NOISE + layer.name, noises[layer.name])
            found[layer.name] = self._runner.again()
            self._runner.feed(NOISE + layer.name, silent[NOISE + layer.name])
        return found
