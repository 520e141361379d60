"""Rules of a recipe held to what the quantizer takes: a fault names file and rule, what stands there and what may.

The quantizer is lenient where that hurts. A misspelt word of a tensor's settings is taken for some algorithm's own and
the default used in its place; settings that no operator supports are passed over in silence; and a rule whose pattern
stood in an earlier rule takes that rule's place in the order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from contract.errors import InputError
from convert import flatbuffer

NO_QUANTIZE = "no_quantize"
# What was tried. OCTAV, MSE and Hadamard rotations gain nothing on our weights, and fail on layers with an unused row
# or a width that is no power of two (ai-edge-quantizer 0.10.0).
ALGORITHMS = ("min_max_uniform_quantize", "float_casting", NO_QUANTIZE)
GRANULARITIES = ("TENSORWISE", "CHANNELWISE", "BLOCKWISE_32", "BLOCKWISE_64", "BLOCKWISE_128", "BLOCKWISE_256")
FLAG = (True, False)
RULE_KEYS = ("regex", "operation", "algorithm_key", "op_config")
_TENSOR: Mapping[str, tuple[object, ...]] = {
    "num_bits": (2, 4, 8, 16),
    "symmetric": FLAG,
    "granularity": GRANULARITIES,
    "dtype": ("INT", "FLOAT"),
}
_CONFIG: Mapping[str, tuple[object, ...]] = {
    "compute_precision": ("INTEGER", "FLOAT"),
    "explicit_dequantize": FLAG,
    "skip_checks": FLAG,
}
_TENSORS = ("weight_tensor_config", "activation_tensor_config")
_COUNT = "min_weight_elements"


def check_rules(rules: Sequence[Any], where: object) -> None:
    """Raises InputError for the first rule that is malformed or that the quantizer would not apply."""
    for number, rule in enumerate(rules, start=1):
        _check(rule, f"{where}, rule {number}")


def calibrated(rules: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a rule fixes the ranges of activations, so that they must be seen first."""
    return any("activation_tensor_config" in rule.get("op_config", {}) for rule in _quantising(rules))


def integer(rules: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a rule multiplies in integers."""
    return any(rule.get("op_config", {}).get("compute_precision") == "INTEGER" for rule in _quantising(rules))


def in_order(rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rules as the quantizer is told them: an empty comment makes each pattern another one, so that later rules win."""
    return [{**rule, "regex": f"{rule['regex']}(?#{number})"} for number, rule in enumerate(rules)]


def idle_rules(rules: Sequence[Mapping[str, Any]], layers: Sequence[tuple[str, str]]) -> list[int]:
    """Numbers from 0 of the rules whose pattern and operation fit none of the layers (operation, scope)."""
    return [
        number
        for number, rule in enumerate(rules)
        if not any(
            rule["operation"] in ("*", operation) and re.search(rule["regex"], scope) for operation, scope in layers
        )
    ]


def constants_on_the_left(raw: bytes) -> list[dict[str, Any]]:
    """Rules that leave products by a constant left factor in float: the quantizer would make that side int8, which no
    kernel of LiteRT takes."""
    model = flatbuffer.unpack(raw)
    found = []
    for graph in model.subgraphs:
        tensors = flatbuffer.tensors(graph)
        for operator in flatbuffer.operators(graph):
            left, *_ = flatbuffer.numbers(operator.inputs) or [-1]
            if flatbuffer.operator_name(model, operator) != "BATCH_MATMUL" or left < 0:
                continue
            if flatbuffer.constant(model, tensors[left]) is not None:
                name = flatbuffer.text(tensors[flatbuffer.numbers(operator.outputs)[0]].name)
                found.append({"regex": f"^{re.escape(name)};", "operation": "*", "algorithm_key": NO_QUANTIZE})
    return found


def layers_of(raw: bytes) -> list[tuple[str, str]]:
    """Operation and scope of every layer of a .tflite, as the quantizer sees them. Scope: names of what it writes, each
    with a semicolon behind."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as tfl

    model = tfl.read_model(bytearray(raw))
    found = []
    for graph in model.subgraphs:
        for operator in (*graph.operators, *tfl.get_subgraph_input_output_operators(graph)):
            name = getattr(operator, "op_key", None) or tfl.TFL_OP_CODE_TO_NAME.get(
                model.operatorCodes[operator.opcodeIndex].builtinCode
            )
            if name is not None:
                found.append((str(name.value), tfl.get_op_scope(operator, graph.tensors)))
    return found


def _quantising(rules: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [rule for rule in rules if rule["algorithm_key"] != NO_QUANTIZE]


def _check(rule: Any, where: str) -> None:
    _keys(rule, RULE_KEYS[:3], RULE_KEYS, where)
    try:
        re.compile(rule["regex"])
    except (re.error, TypeError) as error:
        raise InputError(f"regex is none: {error}", where=where, got=rule["regex"]) from None
    _choice(rule, "operation", _operations(), where)
    _choice(rule, "algorithm_key", ALGORITHMS, where)
    if rule["algorithm_key"] != NO_QUANTIZE:
        _check_config(rule.get("op_config"), f"{where}, op_config")
        _ask_quantizer(rule, where)


def _check_config(config: Any, where: str) -> None:
    _keys(config, ("weight_tensor_config", "compute_precision"), (*_CONFIG, *_TENSORS, _COUNT), where)
    for key, allowed in _CONFIG.items():
        if key in config:
            _choice(config, key, allowed, where)
    count = config.get(_COUNT, 0)
    if type(count) is not int or count < 0:
        raise InputError(f"{_COUNT} is none", where=where, got=count, allowed="a count, 0 or more")
    for key in _TENSORS:
        if key in config:
            _keys(config[key], tuple(_TENSOR), tuple(_TENSOR), f"{where}, {key}")
            for word, allowed in _TENSOR.items():
                _choice(config[key], word, allowed, f"{where}, {key}")


def _keys(found: Any, needed: Sequence[str], allowed: Sequence[str], where: str) -> None:
    if not isinstance(found, Mapping):
        raise InputError("not a JSON object", where=where, got=found, allowed=list(allowed))
    if not set(needed) <= set(found) <= set(allowed):
        missing, unknown = sorted(set(needed) - set(found)), sorted(set(found) - set(allowed))
        raise InputError("words differ", where=where, got={"missing": missing, "unknown": unknown}, allowed=allowed)


def _choice(found: Mapping[str, Any], key: str, allowed: Sequence[object], where: str) -> None:
    # By type too: JSON's true would pass for 1.
    if not any(found[key] == one and type(found[key]) is type(one) for one in allowed):
        raise InputError(f"{key} is unknown", where=where, got=found[key], allowed=list(allowed))


def _operations() -> list[str]:
    from ai_edge_quantizer import qtyping

    return [str(name.value) for name in qtyping.TFLOperationName]


def _ask_quantizer(rule: Mapping[str, Any], where: str) -> None:
    """Whether the operation, or for "*" any operation, takes these settings."""
    from ai_edge_quantizer import algorithm_manager, qtyping

    every = [name for name in qtyping.TFLOperationName if name.value != "*"]
    names = every if rule["operation"] == "*" else [qtyping.TFLOperationName(rule["operation"])]
    refusal = ""
    for name in names:
        try:
            config = qtyping.OpQuantizationConfig.from_dict(rule["op_config"])
            algorithm_manager.check_op_quantization_config(rule["algorithm_key"], name, config)
            return
        except ValueError as error:
            refusal = str(error)
    raise InputError("the quantizer has no such settings for this operation", where=where, got=refusal)
