"""ONNX -> SavedModel (onnx2tf's TensorFlow backend) -> TFLite by TensorFlow's own converter: the reference arm.

What the mandated TensorFlow stack gives for the same graph, in all its modes. It is asked, and never ships: onnx2tf's
TensorFlow backend guesses layouts from sizes, and is silently wrong where two sizes are equal.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from contract.errors import ConversionError, InputError
from contract.manifest import Tensor
from convert.chain import Feeds
from convert.probe import probe
from convert.quiet import quiet
from convert.tensor_names import named_by_signature
from convert.tflite import run_onnx2tf

FLOAT32, FLOAT16, DYNAMIC, INT8, INT16X8 = "float32", "float16", "dynamic", "int8", "int16x8"
MODES = (FLOAT32, FLOAT16, DYNAMIC, INT8, INT16X8)
CALIBRATED = (INT8, INT16X8)


def convert_by_tensorflow(
    onnx: str | Path,
    path: str | Path,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    mode: str = FLOAT32,
    feeds: Sequence[Feeds] = (),
) -> Path:
    """Write one file, by way of a SavedModel that is thrown away."""
    with TemporaryDirectory(prefix="kir-savedmodel-") as scratch:
        return convert_saved_model(write_saved_model(onnx, scratch, inputs), path, outputs, mode, feeds)


def write_saved_model(onnx: str | Path, directory: str | Path, inputs: tuple[Tensor, ...]) -> Path:
    """DIRECTORY becomes a SavedModel (and holds onnx2tf's own files). Raises ConversionError when onnx2tf fails."""
    with quiet(f"onnx2tf's TensorFlow backend on {Path(onnx).name}"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        copy = shutil.copyfile(onnx, Path(directory) / Path(onnx).name)  # onnx2tf writes over what it is given
        run_onnx2tf(
            input_onnx_file_path=str(copy),
            output_folder_path=str(directory),
            tflite_backend="tf_converter",
            output_signaturedefs=True,
            keep_shape_absolutely_input_names=[t.name for t in inputs if len(t.shape) >= 3],
        )
    if not (Path(directory) / "saved_model.pb").is_file():
        raise ConversionError("onnx2tf wrote no SavedModel", where=onnx)
    return Path(directory)


def convert_saved_model(
    directory: str | Path,
    path: str | Path,
    outputs: tuple[Tensor, ...],
    mode: str = FLOAT32,
    feeds: Sequence[Feeds] = (),
) -> Path:
    """Write a SavedModel as TFLite, with the contract's names and float32 in and out.

    mode: of MODES; feeds: what to calibrate on, for int8 and int16x8. Raises InputError for a mode that is none or
    lacks feeds, ConversionError when the converter fails.
    """
    path = Path(path)
    if mode not in MODES or (mode in CALIBRATED and not feeds):
        what = "mode needs feeds to calibrate on" if mode in MODES else "unknown mode of TensorFlow's converter"
        raise InputError(what, got=mode, allowed=MODES)
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet(f"TensorFlow's converter ({mode}) for {path.name}"):
        raw = _converter(directory, mode, feeds).convert()
    # The SavedModel numbers its outputs, in ONNX's order.
    numbered = {f"output_{number}": tensor.name for number, tensor in enumerate(outputs)}
    path.write_bytes(named_by_signature(raw, numbered, where=path))
    (answer,) = probe([path])  # in a child: operators without a kernel for int16 end the process
    if answer.error:
        raise ConversionError("LiteRT can't load the file", where=path, got=answer.error)
    return path


def _converter(directory: str | Path, mode: str, feeds: Sequence[Feeds]) -> Any:
    import tensorflow as tf

    found = tf.lite.TFLiteConverter.from_saved_model(str(directory))
    if mode == FLOAT32:
        return found
    found.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == FLOAT16:
        found.target_spec.supported_types = [tf.float16]
    if mode in CALIBRATED:
        found.representative_dataset = lambda: (dict(one) for one in feeds)
        sets = tf.lite.OpsSet
        wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        found.target_spec.supported_ops = [sets.TFLITE_BUILTINS_INT8 if mode == INT8 else wide]
    return found
