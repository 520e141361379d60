"""Rules of a recipe: a fault names file, rule, what stands there and what may; later rules win whatever they match."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import InputError
from convert.flatbuffer import dtype_of, tensors, text, unpack
from convert.quantize import Recipe, load_recipe, quantize
from convert.recipe_rules import calibrated, check_rules, idle_rules, in_order, integer, layers_of
from convert.tflite import TfliteGraph
from tests.convert.tiny_tflite import samples, write_chain

Rule = dict[str, Any]
DYNAMIC: Rule = dict(load_recipe("int8-dynamic").recipe[0])
STATIC: Rule = dict(load_recipe("int8-fc").recipe[0])
FLOAT_RULE: Rule = {"regex": "fc1", "operation": "*", "algorithm_key": "no_quantize"}


def changed(change: Callable[[Rule], Any], rule: Rule = DYNAMIC) -> Rule:
    found = copy.deepcopy(rule)
    change(found)
    return found


def weight(**words: Any) -> Callable[[Rule], Any]:
    return lambda rule: rule["op_config"]["weight_tensor_config"].update(words)


def config(**words: Any) -> Callable[[Rule], Any]:
    return lambda rule: rule["op_config"].update(words)


def test_what_ships_and_what_mends_is_taken() -> None:
    check_rules([DYNAMIC, STATIC, FLOAT_RULE, {**FLOAT_RULE, "op_config": {"compute_precision": "FLOAT"}}], "here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("regex"), ("missing", "regex")),
        (lambda r: r.update(pattern=".*"), ("unknown", "pattern")),
        (lambda r: r.update(regex="fc("), ("regex is none", "fc(")),
        (lambda r: r.update(regex=3), ("regex is none", "3")),
        (lambda r: r.update(operation="MATMUL"), ("operation is unknown", "MATMUL", "BATCH_MATMUL")),
        (lambda r: r.update(algorithm_key="OCTAV"), ("algorithm_key is unknown", "OCTAV", "float_casting")),
        (lambda r: r.pop("op_config"), ("not a JSON object", "op_config")),
        (lambda r: r.update(op_config=[]), ("not a JSON object", "op_config")),
        (lambda r: r["op_config"].pop("compute_precision"), ("missing", "compute_precision")),
        (config(compute_precision="INT8"), ("compute_precision is unknown", "INT8", "INTEGER")),
        (config(explicit_dequantize=1), ("explicit_dequantize is unknown", "got 1", "True")),
        (config(min_weight_elements=-1), ("min_weight_elements", "-1", "0 or more")),
        (config(min_weight_elements=True), ("min_weight_elements", "True")),
        (config(activation_config={}), ("unknown", "activation_config")),
        (weight(num_bits=3), ("num_bits is unknown", "got 3", "2, 4, 8, 16")),
        (weight(granularity="ROWWISE"), ("granularity is unknown", "ROWWISE", "CHANNELWISE")),
        (weight(dtype="INT8"), ("dtype is unknown", "INT8", "FLOAT")),
        # The quantizer would take this word for some algorithm's own, and go on with TENSORWISE.
        (weight(granularty="CHANNELWISE"), ("unknown", "granularty")),
        (lambda r: r["op_config"]["weight_tensor_config"].pop("granularity"), ("missing", "granularity")),
    ],
)
def test_a_malformed_rule_is_named_with_what_is_allowed(change: Callable[[Rule], Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as raised:
        check_rules([DYNAMIC, changed(change)], Path("mine.json"))
    assert str(raised.value).startswith("mine.json, rule 2")
    for word in words:
        assert word in str(raised.value)


def test_the_manuals_recipe_is_one(repository: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)```", (repository / "docs" / "conversion.md").read_text(), re.DOTALL)
    (text,) = [block for block in blocks if '"recipe"' in block]
    recipe = Recipe.from_json(json.loads(text), "docs/conversion.md")
    assert [rule["algorithm_key"] for rule in recipe.recipe].count("no_quantize") == 1
    assert recipe.integer


@pytest.mark.parametrize("rule", ["int8", None, ["regex"]])
def test_a_rule_that_is_no_object(rule: Any) -> None:
    with pytest.raises(InputError, match="rule 1: not a JSON object"):
        check_rules([rule], "mine.json")


@pytest.mark.parametrize(
    "rule",
    [
        changed(lambda r: r.update(operation="SOFTMAX")),  # has no weights to make dynamic
        changed(weight(num_bits=16)),  # no operator at all
        changed(lambda r: r.update(algorithm_key="float_casting")),
        changed(lambda r: r.update(operation="BATCH_MATMUL") or weight(num_bits=4)(r)),
    ],
)
def test_settings_that_the_quantizer_would_pass_over_in_silence(rule: Rule) -> None:
    with pytest.raises(InputError, match=r"rule 1: the quantizer has no such settings"):
        check_rules([rule], "mine.json")


def test_what_a_recipe_needs_and_does_is_read_off_its_rules() -> None:
    weights = load_recipe("int8-weight-only").recipe
    assert [calibrated(rules) for rules in ((DYNAMIC,), (STATIC,), (FLOAT_RULE,), weights)] == [
        False,
        True,
        False,
        False,
    ]
    assert [integer(rules) for rules in ((DYNAMIC,), (STATIC,), (FLOAT_RULE,), weights)] == [True, True, False, False]
    assert not calibrated([{**STATIC, "algorithm_key": "no_quantize"}])


class TestOrder:
    """The quantizer keeps a rule of a known pattern where that first stood; here the order of the file holds."""

    def types(self, rules: list[Rule], path: Path) -> dict[str, str]:
        """Layer -> type of its weights."""
        recipe = Recipe("mixed", "", "ai-edge-quantizer", tuple(rules))
        raw = quantize(write_chain(path / "float.tflite", 3), recipe, path / "mixed.tflite").read_bytes()
        found = {text(tensor.name): dtype_of(tensor) for tensor in tensors(unpack(raw).subgraphs[0])}
        return {name.removesuffix("_w"): kind for name, kind in found.items() if name.endswith("_w")}

    def test_layers_by_pattern(self, tmp_path: Path) -> None:
        narrow = changed(lambda r: r.update(regex="^fc0;", operation="FULLY_CONNECTED") or weight(num_bits=4)(r))
        assert self.types([DYNAMIC, FLOAT_RULE, narrow], tmp_path) == {"fc0": "int4", "fc1": "float32", "fc2": "int8"}

    def test_the_later_rule_wins(self, tmp_path: Path) -> None:
        again = changed(lambda r: r.update(operation="FULLY_CONNECTED"))  # the pattern of the first rule, once more
        assert self.types([DYNAMIC, FLOAT_RULE, again], tmp_path)["fc1"] == "int8"
        assert self.types([DYNAMIC, again, FLOAT_RULE], tmp_path)["fc1"] == "float32"

    def test_a_later_rule_for_everything_wins_too(self, tmp_path: Path) -> None:
        other = changed(lambda r: r.update(regex=".+"))
        assert self.types([FLOAT_RULE, other], tmp_path)["fc1"] == "int8"

    def test_the_file_is_not_what_the_quantizer_is_told(self) -> None:
        rules = [DYNAMIC, FLOAT_RULE]
        assert [rule["regex"] for rule in in_order(rules)] == [".*(?#0)", "fc1(?#1)"]
        assert rules[0]["regex"] == ".*"

    def test_numbers_change_where_the_rules_say(self, tmp_path: Path) -> None:
        """Only fc1 and what comes after it may differ from float."""
        path = write_chain(tmp_path / "float.tflite", 3)
        only = changed(lambda r: r.update(regex="^fc1;"))
        out = quantize(path, Recipe("one", "", "ai-edge-quantizer", (only,)), tmp_path / "one.tflite")
        feeds = samples(1)[0]
        assert np.abs(TfliteGraph(out).run(feeds)["y"] - TfliteGraph(path).run(feeds)["y"]).max() > 0


class TestIdle:
    def layers(self, tmp_path: Path) -> list[tuple[str, str]]:
        return layers_of(write_chain(tmp_path / "float.tflite", 3).read_bytes())

    def test_layers_as_the_quantizer_sees_them(self, tmp_path: Path) -> None:
        names = [("FULLY_CONNECTED", "fc0;"), ("FULLY_CONNECTED", "fc1;"), ("FULLY_CONNECTED", "y;")]
        assert self.layers(tmp_path) == [*names, ("INPUT", "x;"), ("OUTPUT", "y;")]

    @pytest.mark.parametrize(
        ("regex", "operation", "idle"),
        [
            (".*", "*", False),
            ("^fc1;", "*", False),
            ("fc7", "*", True),
            ("fc1", "BATCH_MATMUL", True),
            (".*", "SOFTMAX", True),
            ("x", "INPUT", False),
        ],
    )
    def test_rules_that_fit_no_layer(self, tmp_path: Path, regex: str, operation: str, idle: bool) -> None:
        rule = {**FLOAT_RULE, "regex": regex, "operation": operation}
        assert idle_rules([DYNAMIC, rule], self.layers(tmp_path)) == ([1] if idle else [])

    def test_a_recipe_tells_its_patterns(self, tmp_path: Path) -> None:
        path = write_chain(tmp_path / "float.tflite", 3)
        rules = (DYNAMIC, {**FLOAT_RULE, "regex": "head"}, {**FLOAT_RULE, "operation": "SOFTMAX", "regex": ".*"})
        assert Recipe("mine", "", "ai-edge-quantizer", rules).idle([path]) == ["head"]
