"""The report: a table from the worst layer, bars from input to output, JSON without infinity, and a page."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from convert.debug_page import BAD, figure, render
from convert.debug_report import BAR_WIDTH, BARS, ROWS, DebugReport, LayerNoise, OutputNoise, bar_length, cost
from convert.mend import Made, Mend, without
from convert.noise import FLOOR
from convert.quantize import load_recipe

INT8 = load_recipe("int8-dynamic")


def layer(place: int, noise: float, own: float, effect: float | None = 0.0, name: str = "") -> LayerNoise:
    return LayerNoise(place, "FULLY_CONNECTED", name or f"/layer_{place}/MatMul", noise, own, effect, 0.5)


QUIET, BLAMED, OWN, HEIR = layer(0, 0, 0), layer(1, 1e-2, 1e-2, 8e-3), layer(2, 2e-2, 1e-4, 1e-5), layer(3, 3e-2, 0)
STEP = Made(("/layer_1/MatMul",), without(INT8, "/layer_1/MatMul"), 1e-5, b"x" * 120)
REPORT = DebugReport(
    reference="a/float.tflite",
    variant="a/int8.tflite",
    inputs="golden.npz",
    layers=(QUIET, BLAMED, OWN, HEIR),
    outputs=(OutputNoise("scores", 3e-2, 1.5), OutputNoise("keys", 1e-3, 0.2)),
    first_bad=BLAMED,
    n_tensors=4,
    mend=Mend(3e-2, 100, STEP, (STEP,), STEP),
)


class TestTable:
    def test_layers_that_add_noise_worst_effect_first(self) -> None:
        assert REPORT.ranked() == [BLAMED, OWN]
        text = REPORT.table()
        assert text.index("8.0e-03  1.0e-02") < text.index("1.0e-05  1.0e-04")
        assert "2 of 4 layers add no noise" in text

    def test_without_effects_their_own_noise_ranks(self) -> None:
        a, b = layer(1, 1e-2, 1e-4, None), layer(2, 1e-2, 1e-2, None)
        assert replace(REPORT, layers=(a, b)).ranked() == [b, a]
        assert [cost(a), cost(BLAMED)] == [1e-4, 8e-3]

    def test_the_verdict_names_layer_operator_and_share(self) -> None:
        assert REPORT.verdict() == (
            "first bad layer: FULLY_CONNECTED '/layer_1/MatMul' (operator 1) adds 1.0e-02, "
            "which alone gives the outputs 8.0e-03 of 3.0e-02"
        )

    def test_the_mend_and_advice_stand_below(self) -> None:
        assert "no_quantize" in REPORT.table()
        assert replace(REPORT, mend=None, advice="do this").table().endswith("\ndo this")

    def test_a_long_table_is_cut(self) -> None:
        many = tuple(layer(i, 1e-2, 1e-3, 1e-3) for i in range(ROWS + 5))
        assert "… 5 more" in replace(REPORT, layers=many).table()

    def test_notes_of_outputs(self) -> None:
        text = replace(REPORT, outputs=(OutputNoise("y", math.inf, math.inf, "shape [2]"),)).table()
        assert "output y: noise:signal inf, max abs inf; shape [2]" in text


class TestBars:
    def lines(self, report: DebugReport) -> list[str]:
        text = report.table()
        return text[text.index("from input") :].split("\n\n")[0].splitlines()[1:]

    def test_from_input_to_output_what_is_own_and_what_inherited(self) -> None:
        one, two, three = self.lines(REPORT)
        assert one.endswith("◀")
        assert "█" in one
        assert "░" not in one
        assert "█░" in two
        assert "█" not in three
        assert "░" in three

    def test_a_deep_net_shows_layers_of_its_own_noise_and_outputs(self) -> None:
        layers = (*(layer(i, 1e-2, 1e-3 * (i % 2)) for i in range(2 * BARS - 20)), layer(999, 1e-2, 0, name="scores"))
        shown = self.lines(replace(REPORT, layers=layers))
        assert len(shown) == BARS - 10 + 1
        assert "scores" in shown[-1]

    @pytest.mark.parametrize(
        ("value", "length"), [(0.0, 0), (FLOOR, 0), (2 * FLOOR, 1), (1.0, BAR_WIDTH), (math.inf, BAR_WIDTH)]
    )
    def test_lengths(self, value: float, length: int) -> None:
        assert bar_length(value, 1.0) == length

    def test_they_are_logarithmic(self) -> None:
        assert bar_length(math.sqrt(FLOOR), 1.0) == BAR_WIDTH / 2


class TestJson:
    def test_everything_is_in_it(self) -> None:
        data = json.loads(json.dumps(REPORT.to_json(), allow_nan=False))
        assert data["first_bad"]["name"] == "/layer_1/MatMul"
        assert [one["place"] for one in data["layers"]] == [0, 1, 2, 3]
        assert data["noise"] == 3e-2
        assert data["mend"]["best"]["layers"] == ["/layer_1/MatMul"]

    def test_nothing_bad_is_null(self) -> None:
        found = replace(REPORT, first_bad=None, mend=None, outputs=(OutputNoise("y", 0.0, 0.0),))
        assert (found.to_json()["first_bad"], found.to_json()["mend"]) == (None, None)
        assert found.verdict().startswith("the outputs agree")

    def test_saving(self, tmp_path: Path) -> None:
        page = REPORT.save(tmp_path / "why")
        assert page.read_text().startswith("<!doctype html>")
        assert json.loads((tmp_path / "why" / "debug.json").read_text())["format"] == "kir-debug/1"
        assert (tmp_path / "why" / "int8-dynamic-mended.tflite").read_bytes() == b"x" * 120


class TestPage:
    def svg(self, report: DebugReport) -> xml.etree.ElementTree.Element:
        return xml.etree.ElementTree.fromstring(figure(report.layers, 1))

    def test_it_needs_nothing_beside_it(self) -> None:
        text = render(REPORT)
        assert not re.findall(r'(?:src|href)="', text)
        assert REPORT.verdict().replace("'", "&#x27;") in text
        assert "$" not in re.sub(r"<svg.*</svg>", "", text, flags=re.S)

    def test_a_column_pair_for_every_layer_and_red_for_the_bad_one(self) -> None:
        groups = self.svg(REPORT).findall("{*}g")
        assert len(groups) == 4
        fills = [[rect.get("fill") for rect in group.findall("{*}rect")] for group in groups]
        assert [BAD in colours for colours in fills] == [False, True, False, False]

    def test_columns_grow_with_the_noise(self) -> None:
        heights = [
            [float(rect.get("height") or 0) for rect in group.findall("{*}rect")[1:]]
            for group in self.svg(REPORT).findall("{*}g")
        ]
        in_all, own = zip(*heights, strict=True)
        assert in_all[0] == own[0] == own[3] == 0
        assert 0 < own[2] < own[1] <= in_all[1] < in_all[2] < in_all[3]

    def test_names_are_text(self) -> None:
        odd = replace(BLAMED, name="<script>&")
        text = render(replace(REPORT, layers=(odd,), first_bad=odd, mend=None))
        assert "<script>" not in text
        assert "&lt;script&gt;&amp;" in text

    def test_no_layers_and_endless_noise(self) -> None:
        assert "<svg" in render(replace(REPORT, layers=(), first_bad=None))
        assert "inf" in render(replace(REPORT, layers=(layer(1, math.inf, math.inf, None),)))
