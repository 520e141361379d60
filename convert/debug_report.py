"""What debugging a variant found: frozen, prints a table and bars, gives a dict, saves itself and a page."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.inspect_weights import shortened
from convert.mend import Mend
from convert.noise import FLOOR, for_json, told

FORMAT = "kir-debug/1"
ROWS, BARS, BAR_WIDTH = 15, 60, 30


@dataclass(frozen=True)
class LayerNoise:
    """One layer. Noise:signal of its output: noise in the variant as it runs, own on clean inputs; effect: of the
    model's outputs, from its own noise alone (None = not known). place: of its operator in the file."""

    place: int
    operator: str
    name: str
    noise: float
    own: float
    effect: float | None
    max_abs: float

    def to_json(self) -> dict[str, Any]:
        ratios = {key: for_json(getattr(self, key)) for key in ("noise", "own", "effect", "max_abs")}
        return {"place": self.place, "operator": self.operator, "name": self.name, **ratios}


@dataclass(frozen=True)
class OutputNoise:
    """An output of the model."""

    name: str
    noise: float
    max_abs: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "noise": for_json(self.noise), "max_abs": for_json(self.max_abs), "note": self.note}


@dataclass(frozen=True)
class DebugReport:
    """layers: from input to output. first_bad: the layer to mend; None when the outputs agree. mend: None when no
    recipe is known that made the variant."""

    reference: str
    variant: str
    inputs: str
    layers: tuple[LayerNoise, ...]
    outputs: tuple[OutputNoise, ...]
    first_bad: LayerNoise | None
    n_tensors: int
    mend: Mend | None = None
    advice: str = ""

    @property
    def noise(self) -> float:
        """Noise:signal of the worst output."""
        return max((output.noise for output in self.outputs), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "reference": self.reference,
            "variant": self.variant,
            "inputs": self.inputs,
            "noise": for_json(self.noise),
            "outputs": [output.to_json() for output in self.outputs],
            "layers": [layer.to_json() for layer in self.layers],
            "n_tensors": self.n_tensors,
            "first_bad": self.first_bad.to_json() if self.first_bad else None,
            "mend": self.mend.to_json() if self.mend else None,
            "advice": self.advice,
        }

    def save(self, directory: str | Path) -> Path:
        """debug.json, debug.html and, when there is a mend, its recipe and file. Gives the page's path."""
        from convert.debug_page import render

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "debug.json").write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")
        if self.mend:
            self.mend.save(directory)
        page = directory / "debug.html"
        page.write_text(render(self))
        return page

    def ranked(self) -> list[LayerNoise]:
        """Layers that add noise, the worst for the outputs first."""
        noisy = [layer for layer in self.layers if layer.own > FLOOR]
        return sorted(noisy, key=lambda layer: (-cost(layer), layer.place))

    def table(self) -> str:
        lines = [f"{self.variant} against {self.reference}, {self.inputs}", *self._outputs(), "", *self._ranking(), ""]
        lines += [*self._bars(), "", self.verdict()]
        if self.mend:
            lines.append(self.mend.table())
        return "\n".join([*lines, *([self.advice] if self.advice else [])])

    def verdict(self) -> str:
        bad = self.first_bad
        if bad is None and self.noise <= FLOOR:
            return f"the outputs agree: noise:signal {told(self.noise)}"
        if bad is None:
            return f"the outputs differ ({told(self.noise)}), and no layer that both files have adds noise"
        line = f"first bad layer: {bad.operator} '{bad.name}' (operator {bad.place}) adds {told(bad.own)}"
        if bad.effect is None:
            return line
        return f"{line}, which alone gives the outputs {told(bad.effect)} of {told(self.noise)}"

    def _outputs(self) -> list[str]:
        return [
            f"  output {o.name}: noise:signal {told(o.noise)}, max abs {o.max_abs:.3g}{f'; {o.note}' if o.note else ''}"
            for o in self.outputs
        ]

    def _ranking(self) -> list[str]:
        head = f"{'#':>4} {'operator':<16} {'layer':<44} {'effect':>8} {'own':>8} {'in all':>8} {'max abs':>8}"
        ranked = self.ranked()
        rows = [
            f"{one.place:>4} {one.operator:<16} {shortened(one.name, 44):<44} {told(one.effect):>8} {told(one.own):>8} "
            f"{told(one.noise):>8} {one.max_abs:>8.2g}"
            for one in ranked[:ROWS]
        ]
        more = [f"     … {len(ranked) - ROWS} more"] if len(ranked) > ROWS else []
        quiet = f"     {len(self.layers) - len(ranked)} of {len(self.layers)} layers add no noise"
        return ["noise:signal by layer, worst for the outputs first", head, "-" * len(head), *rows, *more, quiet]

    def _bars(self) -> list[str]:
        """From input to output, logarithmic: █ what the layer adds itself, ░ up to what it has in all."""
        shown = [layer for layer in self.layers if layer.noise > FLOOR or layer.own > FLOOR]
        if len(shown) > BARS:
            ends = {output.name for output in self.outputs}
            shown = [layer for layer in shown if layer.own > FLOOR or layer.name in ends]
        top = max((value for layer in shown for value in (layer.noise, layer.own) if math.isfinite(value)), default=1.0)
        lines = []
        for layer in shown[:BARS]:
            own, whole = bar_length(layer.own, top), bar_length(layer.noise, top)
            bar = ("█" * own).ljust(max(own, whole), "░")
            mark = "◀" if self.first_bad and layer.place == self.first_bad.place else ""
            name = shortened(layer.name, 40)
            lines.append(f"{layer.place:>4} {name:<40} {bar:<{BAR_WIDTH}} {told(layer.noise):>8} {mark}".rstrip())
        head = f"from input to output (█ own, ░ in all, {FLOOR:g} … {told(top)})"
        return [head, *lines, *([f"     … {len(shown) - BARS} more"] if len(shown) > BARS else [])]


def cost(layer: LayerNoise) -> float:
    """What a layer is judged by: its effect on the outputs where that is known, or else what it adds."""
    return layer.own if layer.effect is None else layer.effect


def bar_length(value: float, top: float) -> int:
    """0 … BAR_WIDTH on a logarithmic scale from FLOOR to top."""
    if value <= FLOOR:
        return 0
    share = math.log(min(value, top) / FLOOR) / math.log(max(top, 2 * FLOOR) / FLOOR)
    return max(1, round(BAR_WIDTH * min(share, 1.0)))
