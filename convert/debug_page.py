"""A debug report as one HTML page that needs nothing beside it: the verdict, a figure drawn as SVG here, the layers.

Drawn by hand: matplotlib and jinja2 belong to another extra, and this is bars on a logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from string import Template
from typing import TYPE_CHECKING

from convert.noise import FLOOR, told

if TYPE_CHECKING:
    from convert.debug_report import DebugReport, LayerNoise

OURS, REST, BAD = "#1f6feb", "#d1d9e0", "#d1242f"
HEIGHT, TOP, LEFT, BOTTOM, STEP, WIDEST = 220.0, 14.0, 52.0, 20.0, 14.0, 5000.0

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1020px; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #d1d9e0; }
  .note { color: #59636e; font-size: .88rem; } .verdict { font-size: 1.05rem; } .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .88rem; width: 100%; }
  th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #d1d9e0; }
  td { font-variant-numeric: tabular-nums; } th { color: #59636e; }
  th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; } tr.bad td { color: $bad; }
  pre { background: #f6f8fa; padding: .6rem; white-space: pre-wrap; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="note">$against</p>
<p class="verdict">$verdict</p>
$mend
<h2>Noise:signal from input to output</h2>
<div class="wide">$figure</div>
<p class="note">One column per layer, logarithmic. Blue: what the layer adds to clean inputs. Grey: what its output has
in all. Red: the first bad layer. A column's name and numbers show under the pointer.</p>
<h2>Outputs</h2>
$outputs
<h2>Layers that add noise, worst for the outputs first</h2>
$layers
<p class="note">Noise:signal is the sum of squared differences by the sum of squared reference values. Effect: of the
outputs, when this layer alone has its noise. $quiet of $all layers add none.</p>
</body>
</html>
""")


def render(report: DebugReport) -> str:
    ranked = report.ranked()
    rows = [
        [str(one.place), one.operator, one.name, told(one.effect), told(one.own), told(one.noise), f"{one.max_abs:.3g}"]
        for one in ranked
    ]
    bad = report.first_bad
    marked = next((i for i, one in enumerate(ranked) if bad and one.place == bad.place), -1)
    outputs = [["", "", o.name, told(o.noise), f"{o.max_abs:.3g}", o.note] for o in report.outputs]
    return PAGE.substitute(
        title=escape(report.variant.rpartition("/")[2]),
        against=escape(f"{report.variant} against {report.reference}; {report.inputs}"),
        verdict=escape(report.verdict()),
        mend="".join(f"<pre>{escape(text)}</pre>" for text in (*_mend(report), report.advice) if text),
        figure=figure(report.layers, bad.place if bad else -1),
        outputs=_table(["", "", "output", "noise:signal", "max abs", ""], outputs),
        layers=_table(["#", "operator", "layer", "effect", "own", "in all", "max abs"], rows, marked),
        quiet=len(report.layers) - len(ranked),
        all=len(report.layers),
        bad=BAD,
    )


def _mend(report: DebugReport) -> list[str]:
    return [report.mend.table()] if report.mend else []


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], marked: int = -1) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = [
        ('<tr class="bad">' if i == marked else "<tr>") + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for i, row in enumerate(rows)
    ]
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(lines) + "\n</table>"


def figure(layers: Sequence[LayerNoise], bad_place: int) -> str:
    """An SVG: per layer a grey column (in all) and a blue one (own) on a scale from FLOOR to the largest."""
    values = [v for one in layers for v in (one.noise, one.own) if math.isfinite(v)]
    top = math.ceil(math.log10(max([10 * FLOOR, *values])))
    low = math.log10(FLOOR)
    step = min(STEP, WIDEST / max(len(layers), 1))
    width, base = LEFT + step * len(layers) + 10.0, TOP + HEIGHT

    def y(value: float) -> float:
        share = (math.log10(min(value, 10.0**top)) - low) / (top - low) if value > FLOOR else 0.0
        return base - HEIGHT * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{base + BOTTOM:.0f}" font-size="10">'
    ]
    for power in range(round(low), top + 1):
        at = y(10.0**power) if power > low else base
        parts.append(f'<line x1="{LEFT}" x2="{width - 10:.1f}" y1="{at:.1f}" y2="{at:.1f}" stroke="#eaeef2"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 3:.1f}" text-anchor="end">1e{power}</text>')
    for i, one in enumerate(layers):
        x, colour = LEFT + i * step, BAD if one.place == bad_place else OURS
        tip = f"{one.place} {one.operator} {one.name}: in all {told(one.noise)}, own {told(one.own)}"
        tip += "" if one.effect is None else f", effect {told(one.effect)}"
        columns = "".join(
            f'<rect x="{x:.1f}" y="{at:.1f}" width="{0.8 * step:.1f}" height="{base - at:.1f}" fill="{fill}"/>'
            for at, fill in ((y(one.noise), REST), (y(one.own), colour))
        )
        # The empty column takes the pointer over layers without noise.
        parts.append(
            f'<g><title>{escape(tip)}</title><rect x="{x:.1f}" y="{TOP}" width="{step:.1f}" height="{HEIGHT}" '
            f'fill="transparent"/>{columns}</g>'
        )
    parts.append(f'<text x="{LEFT}" y="{base + 14:.1f}">input</text>')
    parts.append(f'<text x="{width - 10:.1f}" y="{base + 14:.1f}" text-anchor="end">output</text></svg>')
    return "\n".join(parts)
