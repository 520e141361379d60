"""kir convert debug: which layer of a lossy variant is to blame, and what leaving it in float would mend.

    from convert.debug import debug_converted
    report = debug_converted("converted", "swipe/N20", "int8-dynamic")
    print(report.table()); report.save("why")

The variant is compared with its reference tensor by tensor (convert/debug_taps.py), then each layer alone
(convert/debug_layers.py). The first bad layer is the first, from input to output, whose own noise costs the outputs at
least half of what the costliest layer does: noise that is only inherited blames nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import InputError
from convert import flatbuffer
from convert.debug_inputs import Converted, Signature, load_inputs, random_inputs
from convert.debug_layers import Effects, OwnNoise
from convert.debug_report import DebugReport, LayerNoise, OutputNoise, cost
from convert.debug_taps import Arrays, Feeds, Layer, OnnxTaps, TfliteTaps, layers_of, open_taps
from convert.mend import Mend, mend
from convert.noise import FLOOR, Noise
from convert.quantize import FLOAT, Ranges, Recipe
from convert.variant_ranges import ranges_of

HALF = 0.5
NARROW = ("int2", "int4", "int8", "uint8", "int16", "float16")
EFFECT_SAMPLES = 4  # one run per layer and sample


def debug_converted(
    directory: str | Path,
    graph: str,
    variant: str,
    *,
    inputs: str | Path | None = None,
    recipe: Recipe | None = None,
) -> DebugReport:
    """A variant of a converted model against its float file; the float file against its ONNX.

    inputs: .npz; default what the variant is noisiest on where it missed a gate, else the golden case. Raises
    InputError for a graph or variant that is not there.
    """
    converted = Converted.read(directory, graph, variant)
    reference = converted.onnx if variant == FLOAT else converted.float_file
    return debug_files(
        reference,
        converted.variant,
        inputs=inputs or converted.case,
        recipe=recipe or converted.recipe,
        float_file=converted.float_file,
    )


def debug_files(
    reference: str | Path,
    variant: str | Path,
    *,
    inputs: str | Path | Sequence[Feeds] | None = None,
    recipe: Recipe | None = None,
    float_file: str | Path | None = None,
    seed: int = 0,
) -> DebugReport:
    """Two files of one graph: a float .tflite or an .onnx, and the .tflite to judge.

    inputs      .npz, or samples; default 8 random ones drawn with `seed`
    recipe      what made the variant; without it nothing can be mended
    float_file  what the recipe is applied to; default the reference when that is a .tflite
    Raises InputError, ConversionError.
    """
    want, got = open_taps(reference), open_taps(variant)
    if not isinstance(got, TfliteTaps):
        raise InputError("the variant must be a .tflite file", where=variant)
    # The variant's shapes, the reference's types: a variant may take int8 and be fed float32 all the same.
    types = {name: dtype for name, (_, dtype) in want.inputs.items()}
    signature = {name: (shape, types.get(name, dtype)) for name, (shape, dtype) in got.inputs.items()}
    samples, words = _samples(signature, inputs, seed)
    compared = _Comparison(want, got, samples)
    first_bad = compared.first_bad()
    source = float_file or (reference if isinstance(want, TfliteTaps) else None)
    found, advice = (None, "") if first_bad is None else _mend(first_bad, recipe, source, compared)
    return DebugReport(
        reference=str(reference),
        variant=str(variant),
        inputs=words,
        layers=compared.layers,
        outputs=compared.outputs,
        first_bad=first_bad,
        n_tensors=len(compared.names),
        mend=found,
        advice=advice,
    )


def _samples(
    signature: Signature, inputs: str | Path | Sequence[Feeds] | None, seed: int
) -> tuple[Sequence[Feeds], str]:
    """The samples, and in words where they came from."""
    if inputs is None:
        samples = random_inputs(signature, seed)
        return samples, f"{len(samples)} random samples of seed {seed}"
    if isinstance(inputs, str | Path):
        samples = load_inputs(inputs, signature)
        return samples, f"{len(samples)} samples of {Path(inputs).name}" if len(samples) > 1 else Path(inputs).name
    return list(inputs), f"{len(inputs)} samples"


def _mend(
    bad: LayerNoise, recipe: Recipe | None, source: str | Path | None, compared: _Comparison
) -> tuple[Mend | None, str]:
    """The mend, or what to do in its place."""
    if not _quantised(compared.got.model):
        return None, "no recipe mends a float file: convert again, or find an ONNX node to blame with --bisect"
    if recipe is None or recipe.quantizer is None:
        return None, "name the recipe that made the variant (--recipe) to have it mended"
    if source is None:
        return None, "a recipe is applied to a float .tflite: give that as the reference to have the variant mended"
    others = sorted((one for one in compared.noisy if one.place != bad.place), key=lambda one: -cost(one))
    layers = [bad.name, *(one.name for one in others)]
    ranges = compared.ranges(Path(source)) if recipe.calibrate else None
    return mend(Path(source), compared.got.path, recipe, layers, compared.judge, ranges), ""


def _quantised(model: Any) -> bool:
    """Whether a tensor of the graph is narrower than float32."""
    return any(flatbuffer.dtype_of(tensor) in NARROW for tensor in flatbuffer.tensors(model.subgraphs[0]))


class _Comparison:
    """layers, outputs: what was found; names: tensors that both files have."""

    def __init__(self, want: TfliteTaps | OnnxTaps, got: TfliteTaps, samples: Sequence[Feeds]):
        self.want, self.got, self.samples = want, got, samples
        self.wanted = [want.run(feeds) for feeds in samples]
        in_all = [got.run(feeds) for feeds in samples]
        first, other = self.wanted[0], in_all[0]
        self.names = [
            n for n in other if n in first and first[n].shape == other[n].shape and first[n].dtype.kind == "f"
        ]
        self.outputs = tuple(_output(name, self.wanted, in_all) for name in got.outputs)
        layers = layers_of(got.model, self.names)
        own = self._own()
        noisy = [layer for layer in layers if _pooled(layer.name, self.wanted, own).ratio > FLOOR]
        effects = self._effects(noisy, own)
        self.layers = tuple(self._layer(layer, in_all, own, effects) for layer in layers)

    def _layer(self, layer: Layer, in_all: list[Arrays], own: list[Arrays], effects: dict[str, float]) -> LayerNoise:
        whole = _pooled(layer.name, self.wanted, in_all)
        effect = effects.get(layer.name, 0.0) if isinstance(self.want, TfliteTaps) else None
        ratio = _pooled(layer.name, self.wanted, own).ratio
        return LayerNoise(layer.place, layer.operator, layer.name, whole.ratio, ratio, effect, whole.max_abs)

    def _own(self) -> list[Arrays]:
        runner = OwnNoise(self.got.model, self.names, self.got.path)
        return [
            runner.run(feeds, {name: clean[name].astype(np.float32) for name in self.names})
            for feeds, clean in zip(self.samples, self.wanted, strict=True)
        ]

    def _effects(self, noisy: Sequence[Layer], own: list[Arrays]) -> dict[str, float]:
        if not isinstance(self.want, TfliteTaps) or not noisy:
            return {}
        runner = Effects(self.want.model, [layer.name for layer in noisy], self.want.path)
        found = {layer.name: {name: Noise() for name in self.want.outputs} for layer in noisy}
        for feeds, clean, mine in list(zip(self.samples, self.wanted, own, strict=True))[:EFFECT_SAMPLES]:
            noises = {one.name: mine[one.name] - clean[one.name] for one in noisy}
            for name, outputs in runner.run(feeds, noises, noisy).items():
                for output, noise in found[name].items():
                    noise.add(clean[output], outputs[output])
        return {name: max(noise.ratio for noise in noises.values()) for name, noises in found.items()}

    def first_bad(self) -> LayerNoise | None:
        if max((output.noise for output in self.outputs), default=0.0) <= FLOOR:
            return None
        worst = max(map(cost, self.noisy), default=0.0)
        return next((layer for layer in self.noisy if cost(layer) >= HALF * worst), None)

    @property
    def noisy(self) -> list[LayerNoise]:
        """Layers that add noise, from input to output."""
        return [layer for layer in self.layers if layer.own > FLOOR]

    def ranges(self, float_file: Path) -> Ranges:
        """What a static variant was calibrated to."""
        floats = self.want if isinstance(self.want, TfliteTaps) else TfliteTaps(float_file)
        values = [{**feeds, **floats.run(feeds)} for feeds in self.samples]
        return ranges_of(self.got.model, floats.model, values)

    def judge(self, path: Path) -> float:
        """Noise:signal of the worst output of another file of the graph."""
        taps = TfliteTaps(path)
        found = [taps.run(feeds) for feeds in self.samples]
        return max(_output(name, self.wanted, found).noise for name in self.got.outputs)


def _pooled(name: str, want: Sequence[Arrays], got: Sequence[Arrays]) -> Noise:
    noise = Noise()
    for a, b in zip(want, got, strict=True):
        noise.add(a[name], b[name])
    return noise


def _output(name: str, want: Sequence[Arrays], got: Sequence[Arrays]) -> OutputNoise:
    if name not in want[0]:
        return OutputNoise(name, float("inf"), float("inf"), "the reference has no such output")
    noise = _pooled(name, want, got)
    shapes: tuple[Any, Any] = want[0][name].shape, got[0][name].shape
    note = f"shape {list(shapes[1])}, the reference's is {list(shapes[0])}" if shapes[0] != shapes[1] else ""
    return OutputNoise(name, noise.ratio, noise.max_abs, note)
