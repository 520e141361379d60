"""The reranker's head as a tf_keras model: the one part of the net that TFMOT can train with quantisation in sight.

    source = load_source("checkpoints/kir")
    pages = record(source, samples)                       # what the head reads and gives, by the torch net
    twin = build_twin(source)                             # the same weights; scores equal within 1e-5
    raw = convert_twin(twin, pages)                       # a TFLite file with static shapes

The head is what a swipe does after attention: the bottom's last layer (its part of candidate_pre), the experts' first
layer by its parts, the experts, the gates and the tasks' layer, as Dense layers; the gates' softmax and the mixture are
no layers and stay float in every variant. TFMOT 0.8.1 quantises Dense, Add and ReLU of Functional models, and nothing
of what onnx2tf makes (docs/experiments.md), hence a twin.

Shape legend: S pages, N candidates, T tasks, E experts, F width of an input.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contract.errors import InputError
from convert.phone import Sample
from convert.quiet import quiet
from convert.source import KirSource

Floats = NDArray[np.float32]
DENSE = ("bottom_out", "first", "candidate_in", "swipe_in", "second", "gate", "task")
INPUTS = ("attended", "bottom", "candidate_swipe", "direct", "swipe_dense")
# input -> the Dense that reads it; `direct` is added as it is
READ_BY = {"bottom": "bottom_out", "attended": "first", "candidate_swipe": "candidate_in", "swipe_dense": "swipe_in"}


@dataclass(frozen=True)
class Pages:
    """What the head reads, [S, N, F] by input, and the torch net's logits [S, N, T].

    n_candidates: of each page; labels: as `Sample.labels`.
    """

    inputs: Mapping[str, Floats]
    scores: Floats
    n_candidates: tuple[int, ...]
    labels: tuple[Floats | None, ...]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class Twin:
    """model: [N, F] of each input -> gates' and tasks' values, [N, T·E] each. mix: those -> logits [N, T].

    hidden: columns of `direct` that the model reads; with a skip T more are added to the logits."""

    model: Any
    mix: Callable[[Any, Any], Any]
    hidden: int

    def scores(self, inputs: Sequence[Any], training: bool = False) -> Any:
        """Logits [N, T] of inputs in the order of INPUTS, N any number of rows."""
        given = dict(zip(INPUTS, inputs, strict=True))
        direct = given["direct"]
        scores = self.mix(*self.model([*(given | {"direct": direct[:, : self.hidden]}).values()], training=training))
        return scores + direct[:, self.hidden :] if direct.shape[-1] > self.hidden else scores


def record(source: KirSource, samples: Sequence[Sample]) -> Pages:
    """The head's inputs and logits on these samples of the largest bucket. Raises InputError for none of them."""
    bucket = max(source.capacities["N"])
    chosen = [sample for sample in samples if sample.bucket == bucket]
    if not chosen:
        raise InputError("no samples of the largest bucket", got=len(samples), allowed=f"N{bucket}")
    graph = source.graphs[f"whole/N{bucket}"]
    net, pre = _net(source), _pre_columns(source)
    found: dict[str, list[Floats]] = {name: [] for name in (*INPUTS, "scores")}
    with _heard(graph.module.page, net.page_out, net.first) as heard:
        for sample in chosen:
            scores = graph.run(sample.inputs)["scores"]
            (_, page), ((bottom,), out), ((attended,), _) = (heard[layer] for layer in ("page", "page_out", "first"))
            own, server = page[1].tensor_split([pre.stop - pre.start], dim=-1)
            direct = torch.cat([own - out[..., pre], server], dim=-1)
            rows = {name: sample.inputs[name] for name in ("candidate_swipe", "swipe_dense")}
            rows |= {"bottom": bottom.numpy(), "attended": attended.numpy(), "direct": direct.numpy(), "scores": scores}
            for name, many in found.items():
                value = np.asarray(rows[name], np.float32).reshape(-1, rows[name].shape[-1])
                many.append(np.broadcast_to(value, (bucket, value.shape[-1])))
    stacked = {name: np.stack(many) for name, many in found.items()}
    scores = stacked.pop("scores")
    return Pages(stacked, scores, tuple(s.n_candidates for s in chosen), tuple(s.labels for s in chosen))


def build_twin(source: KirSource, *, aware: bool = False) -> Twin:
    """The head with the checkpoint's weights. aware: every layer annotated and TFMOT's fake quantisation in place.

    Raises InputError for a preset without gates or attention, whose head is another.
    """
    with quiet("the head's twin"):
        import tensorflow as tf

        weights = _weights(source)
        model = _model(weights, source, aware)
        shape = (len(source.tasks), weights["gate"][0].shape[1] // len(source.tasks))

    def mix(gates: Any, tasks: Any) -> Any:
        rows = tf.shape(gates)[0] if gates.shape[0] is None else gates.shape[0]
        shares = tf.nn.softmax(tf.reshape(gates, (rows, *shape)))
        return tf.reduce_sum(tf.reshape(tasks, (rows, *shape)) * shares, axis=-1)

    return Twin(model, mix, _net(source).config.hidden_width)


def convert_twin(twin: Twin, pages: Pages, *, quantised: bool = False, calibration: int = 0) -> bytes:
    """A TFLite file of [N, F] inputs, named as INPUTS, and logits "scores".

    quantised: int8 (dynamic ranges, or those that aware training learnt); calibration: so many of the pages fix them.
    From a concrete function with static shapes: with a batch that is free, weights stay float (TF 2.21).
    """
    with quiet("TFLiteConverter"):
        import tensorflow as tf

        shapes = [tf.TensorSpec(pages.inputs[name].shape[1:], tf.float32, name=name) for name in INPUTS]

        @tf.function(input_signature=shapes)
        def run(attended: Any, bottom: Any, candidate_swipe: Any, direct: Any, swipe_dense: Any) -> dict[str, Any]:
            return {"scores": twin.scores([attended, bottom, candidate_swipe, direct, swipe_dense])}

        converter = tf.lite.TFLiteConverter.from_concrete_functions([run.get_concrete_function()], twin.model)
        if quantised:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if calibration:
            converter.representative_dataset = lambda: (
                {name: pages.inputs[name][page] for name in INPUTS} for page in range(min(calibration, len(pages)))
            )
        with warnings.catch_warnings():
            # What calibrates is TensorFlow's own interpreter, whose end it announces.
            warnings.filterwarnings(
                "ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated", category=UserWarning
            )
            return bytes(converter.convert())


def _net(source: KirSource) -> Any:
    net: Any = source.graphs[f"whole/N{max(source.capacities['N'])}"].module.net
    config = net.config
    if config.experts < 2 or config.reads != "target" or net.swipe_in is None:
        got = {"preset": config.preset, "experts": config.experts, "reads": config.reads}
        raise InputError("this preset's head has no twin", got=got, allowed="tiny, kir")
    return net


def _pre_columns(source: KirSource) -> slice:
    query, pre, _ = _net(source).out_widths
    return slice(query, query + pre)


def _weights(source: KirSource) -> dict[str, tuple[Floats, Floats]]:
    """Kernel [in, out] and bias [out] of each Dense; of the skip, which none of them feeds, nothing."""
    net, whole = _net(source), source.graphs[f"whole/N{max(source.capacities['N'])}"].module
    layers = {name: getattr(net, name) for name in ("first", "candidate_in", "second", "gate", "task")}
    layers |= {"bottom_out": net.page_out, "swipe_in": whole.swipe_in}  # with the constant of an empty placed list
    found = {}
    for name, layer in layers.items():
        rows = _pre_columns(source) if name == "bottom_out" else slice(None)
        found[name] = (layer.weight[rows].numpy().T.copy(), layer.bias[rows].numpy().copy())
    return found


def _model(weights: Mapping[str, tuple[Floats, Floats]], source: KirSource, aware: bool) -> Any:
    from tensorflow_model_optimization import quantization
    from tf_keras import Model, layers

    annotate = quantization.keras.quantize_annotate_layer if aware else lambda layer: layer
    dense = {name: layers.Dense(weights[name][0].shape[1], name=name) for name in DENSE}
    width = weights["first"][0].shape[1]
    inputs = {
        name: layers.Input((weights[READ_BY[name]][0].shape[0] if name in READ_BY else width,), name=name)
        for name in INPUTS
    }
    parts = [annotate(dense[READ_BY[name]])(inputs[name]) for name in READ_BY]
    hidden = annotate(layers.ReLU(name="hidden"))(annotate(layers.Add(name="parts"))([inputs["direct"], *parts]))
    experts = annotate(layers.ReLU(name="experts"))(annotate(dense["second"])(hidden))
    model = Model(list(inputs.values()), [annotate(dense["gate"])(hidden), annotate(dense["task"])(experts)])
    for name, layer in dense.items():
        layer.set_weights(weights[name])
    return quantization.keras.quantize_apply(model) if aware else model


@contextmanager
def _heard(*modules: nn.Module) -> Iterator[dict[str, tuple[tuple[Any, ...], Any]]]:
    """Positional inputs and outputs of each module's last call, under "page", "page_out", "first"."""
    last: dict[str, tuple[tuple[Any, ...], Any]] = {}

    def listen(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, given, found: last.__setitem__(name, (given, found))

    names = ("page", "page_out", "first")
    handles = [one.register_forward_hook(listen(name)) for name, one in zip(names, modules, strict=True)]
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()
