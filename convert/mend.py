"""A recipe that leaves a layer in float, applied: what it does to the error, and what it costs in bytes.

A mixed recipe is the variant's own rules and one more, whose pattern is the layer's output tensor. The quantizer
searches an operator's pattern in its output tensors' names, each with a semicolon after it, and later rules win.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from contract.errors import ConversionError
from convert.inspect_weights import shortened
from convert.noise import FLOOR, for_json, told
from convert.quantize import Ranges, Recipe, quantize
from convert.recipe_rules import NO_QUANTIZE

MENDED = "-mended"
MOST_STEPS = 8
ENOUGH = 0.5
HELP = 0.99  # of the noise before a step: what a layer in float must bring it down to
Judge = Callable[[Path], float]  # a file -> noise:signal of its worst output


@dataclass(frozen=True)
class Made:
    """A file made with `layers` in float. noise: of its worst output."""

    layers: tuple[str, ...]
    recipe: Recipe
    noise: float
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Mend:
    """before: noise of the worst output as the variant was found, and its bytes. anew: as its recipe makes it again.

    steps  the first has the first bad layer in float; each has one more, the costliest first, while half is left
    best   what is recommended: the quietest, without the layers that it is as quiet without; None when nothing helps
    error  why the quantizer refused
    """

    noise_before: float
    bytes_before: int
    anew: Made | None = None
    steps: tuple[Made, ...] = ()
    best: Made | None = None
    error: str = ""

    @property
    def stale(self) -> bool:
        """Whether the variant is another file than its recipe makes: then converting again comes first."""
        anew = self.noise_before if self.anew is None else self.anew.noise
        worse, better = max(self.noise_before, anew), min(self.noise_before, anew)
        return worse > FLOOR and worse > 1.01 * better

    @property
    def rules(self) -> tuple[dict[str, Any], ...]:
        """What `best` adds to the variant's own."""
        return () if self.best is None else self.best.recipe.recipe[-len(self.best.layers) :]

    def to_json(self) -> dict[str, Any]:
        return {
            "noise_before": for_json(self.noise_before),
            "bytes_before": self.bytes_before,
            "noise_anew": None if self.anew is None else for_json(self.anew.noise),
            "stale": self.stale,
            "steps": [_summary(step) for step in self.steps],
            "best": None if self.best is None else {**_summary(self.best), "recipe": self.best.recipe.to_json()},
            "error": self.error,
        }

    def save(self, directory: Path) -> None:
        """<recipe>.json, which `--recipe` takes, and the file it makes; nothing when nothing helps."""
        if self.best:
            name, content = self.best.recipe.name, json.dumps(self.best.recipe.to_json(), indent=2)
            (directory / f"{name}.json").write_text(content + "\n")
            (directory / f"{name}.tflite").write_bytes(self.best.content)

    def table(self) -> str:
        lines = ["mend: leave in float, step by step", self._row("as found", self.noise_before, self.bytes_before)]
        if self.stale and self.anew:
            lines.append(self._row("made anew by its recipe", self.anew.noise, len(self.anew.content)))
            lines.append("! the variant is not what its recipe makes of the float file: convert again")
        lines += [self._row(step.layers[-1], step.noise, len(step.content)) for step in self.steps]
        if self.best:
            last = self.steps[-1].layers == self.best.layers
            lines += [] if last else [self._row("the best of them", self.best.noise, len(self.best.content))]
            lines += ["as rules after the variant's own:", *(f"  {json.dumps(rule)}" for rule in self.rules)]
        elif not self.error:
            lines.append("none of them helps")
        return "\n".join([*lines, *([f"! {self.error}"] if self.error else [])])

    def _row(self, name: str, noise: float, n_bytes: int) -> str:
        share = f"{noise / self.noise_before:8.1%} left" if 0 < self.noise_before < math.inf else ""
        return f"  {shortened(name, 48):<48} noise:signal {told(noise):>8} {n_bytes:>10,} bytes {share}".rstrip()


def _summary(made: Made) -> dict[str, Any]:
    return {"layers": list(made.layers), "noise": for_json(made.noise), "bytes": len(made.content)}


def without(recipe: Recipe, layer: str) -> Recipe:
    """The recipe with one layer left in float."""
    rule = {"regex": f"(^|;){re.escape(layer)};", "operation": "*", "algorithm_key": NO_QUANTIZE}
    name = recipe.name if recipe.name.endswith(MENDED) else recipe.name + MENDED
    doc = f"{recipe.doc.rstrip('.')}; '{layer}' in float."
    return replace(recipe, name=name, doc=doc, recipe=(*recipe.recipe, rule))


def mend(
    float_path: Path,
    variant: Path,
    recipe: Recipe,
    layers: Sequence[str],
    judge: Judge,
    ranges: Ranges | None = None,
) -> Mend:
    """Apply the recipe as it is, then with `layers` in float, one more at each step, until half of the noise is gone.

    layers: the first bad layer, then others in the order they are to be tried. ranges: of activations, for a recipe
    that calibrates. A quantizer that refuses ends it with what was made so far.
    """
    found = Mend(judge(variant), variant.stat().st_size)
    with TemporaryDirectory(prefix="kir-mend-") as scratch:

        def make(chosen: Sequence[str]) -> Made:
            mended, path = functools.reduce(without, chosen, recipe), Path(scratch) / "made.tflite"
            quantize(float_path, mended, path, ranges)
            return Made(tuple(chosen), mended, judge(path), path.read_bytes())

        try:
            found = replace(found, anew=make(()))
            for n in range(1, 1 + min(len(layers), MOST_STEPS)):
                found = replace(found, steps=(*found.steps, make(layers[:n])))
                if found.steps[-1].noise <= ENOUGH * found.noise_before:
                    break
            return replace(found, best=_best(found, make))
        except ConversionError as error:
            return replace(found, error=str(error))


def _best(found: Mend, make: Callable[[Sequence[str]], Made]) -> Made | None:
    """The quietest step, without those of its layers that did not help when they were added and are not missed."""
    assert found.anew is not None
    before = [found.anew.noise, *(step.noise for step in found.steps)]
    best = min(found.steps, key=lambda step: step.noise, default=None)
    if best is None or best.noise > HELP * found.anew.noise:
        return None
    for i, layer in enumerate(best.layers[:-1]):
        if before[i + 1] > HELP * before[i]:
            fewer = make([one for one in best.layers if one != layer])
            best = fewer if HELP * fewer.noise <= best.noise else best
    return best
