"""Ways from a torch module to a float TFLite file. One ships; the others are asked whether it is right.

onnx2tf        torch -> ONNX by the tracing exporter -> onnx2tf's flatbuffer_direct. The default: the only one that was
               right on everything tried, and the quickest (reasons in convert/onnx_export.py and convert/tflite.py)
onnx2tf-dynamo the same from the dynamo exporter's ONNX, for modules that tracing can't follow
litert-torch   torch -> StableHLO -> LiteRT's own converter: shares no code with the others. An optional install
tensorflow     onnx2tf's TensorFlow backend -> SavedModel -> TFLiteConverter. The reference arm; it is silently wrong
               where a sequence is as long as a feature is wide (tests/convert/frontends/test_faults.py)

All of them end in the same check: the contract's names, shapes and types, builtin operators only, XNNPACK takes part.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from contract.errors import ConversionError, InputError
from convert.onnx_export import DYNAMO, TRACE, TorchGraph, export_onnx
from convert.tflite import TfliteGraph, check_contract, convert_onnx, custom_operators

ONNX2TF, ONNX2TF_DYNAMO, LITERT_TORCH, TENSORFLOW = "onnx2tf", "onnx2tf-dynamo", "litert-torch", "tensorflow"
FRONT_ENDS = (ONNX2TF, ONNX2TF_DYNAMO, LITERT_TORCH, TENSORFLOW)


def exporter_of(front_end: str) -> str:
    """Which ONNX exporter a front end starts from. Raises InputError for a name that is none."""
    if front_end not in FRONT_ENDS:
        raise InputError("unknown front end", got=front_end, allowed=FRONT_ENDS)
    return DYNAMO if front_end == ONNX2TF_DYNAMO else TRACE


def installed() -> tuple[str, ...]:
    """Front ends that can be asked here: litert-torch is an install of its own."""
    absent = {LITERT_TORCH} if importlib.util.find_spec("litert_torch") is None else set()
    return tuple(name for name in FRONT_ENDS if name not in absent)


def convert_float(graph: TorchGraph, onnx: str | Path, path: str | Path, front_end: str = ONNX2TF) -> Path:
    """Write the float32 TFLite file of a graph and check it. onnx: from the front end's exporter.

    Raises ConversionError for a file that misses the check, InputError for a front end that is not installed.
    """
    exporter_of(front_end)
    inputs, outputs = graph.contract()
    if front_end == LITERT_TORCH:
        from convert.frontends.litert_torch import convert_torch

        found = convert_torch(graph, path)
    elif front_end == TENSORFLOW:
        from convert.frontends.tensorflow_arm import convert_by_tensorflow

        found = convert_by_tensorflow(onnx, path, inputs, outputs)
    else:
        found = convert_onnx(onnx, path, inputs)
    check_builtin(found)
    check_contract(TfliteGraph(found), inputs, outputs)
    return found


def export_and_convert(graph: TorchGraph, directory: str | Path, front_end: str = ONNX2TF) -> tuple[Path, Path]:
    """DIRECTORY/<stem>.onnx and DIRECTORY/<stem>.<front end>.tflite."""
    stem = Path(directory) / graph.file_stem
    onnx = export_onnx(graph, stem.with_name(f"{stem.name}.{front_end}.onnx"), exporter_of(front_end))
    return onnx, convert_float(graph, onnx, stem.with_name(f"{stem.name}.{front_end}.tflite"), front_end)


def check_builtin(path: Path) -> None:
    """Raises ConversionError for a file that needs more than LiteRT's own operators."""
    foreign = custom_operators(path.read_bytes(), path)
    if foreign:
        got = [f"{name}, which writes {', '.join(layers) or 'nothing'}" for name, layers in sorted(foreign.items())]
        raise ConversionError(
            "file needs operators that are no builtins",
            where=path.name,
            got="; ".join(got),
            fix="write that layer in the model with operators that TFLite has",
        )
