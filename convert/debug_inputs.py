"""What to debug a graph on: a converted model's own files and golden case, an .npz, or random numbers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from convert.quantize import FLOAT, Recipe

MODEL, WORST = "model.json", "worst"  # convert/model.py, which needs torch
SAMPLES = 8
Signature = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]  # input -> shape, dtype
Case = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Converted:
    """Files of one variant of one graph of a converted model. recipe: None when the conversion does not
    tell it. case: inputs to debug it on: those on which it is noisiest where it missed a gate, else the golden case."""

    variant: Path
    float_file: Path
    onnx: Path
    case: Path | None
    recipe: Recipe | None

    @staticmethod
    def read(directory: str | Path, graph: str, variant: str) -> Converted:
        """Raises InputError for a directory that is no conversion, and for a graph or variant it does not have."""
        root = Path(directory)
        about = _about(root)
        graphs = {_key(entry): entry for entry in about["graphs"]}
        entry = _chosen(graphs, graph, "--graph", root)
        files = {name: root / str(path) for name, path in entry["variants"].items()}
        chosen, float_file = _chosen(files, variant, "--variant", root), _chosen(files, FLOAT, "--variant", root)
        recipes = {str(data["name"]): data for data in about["recipes"]}
        recipe = Recipe.from_json(recipes[variant], root / MODEL) if variant in recipes else None
        onnx = float_file.with_name(float_file.name.removesuffix(f".{FLOAT}.tflite") + ".onnx")
        worst = root / WORST / f"{graph.replace('/', '-')}.{variant}.npz"
        golden = root / str(entry["golden"]) if entry.get("golden") else None
        return Converted(chosen, float_file, onnx, worst if worst.is_file() else golden, recipe)


def _about(root: Path) -> dict[str, Any]:
    try:
        about = json.loads((root / MODEL).read_bytes())
        if not about["graphs"] or not isinstance(about["recipes"], list):
            raise ValueError("no graphs or recipes")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            "not a converted model", where=root, fix="name what `kir convert model` wrote, or two files"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("conversion is unreadable", where=root / MODEL, got=str(error)) from None
    return dict(about)


def _key(entry: Mapping[str, Any]) -> str:
    return "/".join(filter(None, (entry["name"], entry.get("bucket", ""))))


def _chosen(there: Mapping[str, Any], name: str, flag: str, where: Path) -> Any:
    if name not in there:
        raise InputError(f"{flag} names what is not there", where=where, got=name, allowed=sorted(there))
    return there[name]


def load_inputs(path: str | Path, inputs: Signature) -> list[Case]:
    """Samples of an .npz: per input an array of its shape, or several stacked along one axis more, in front.

    Arrays of other names are passed over (a golden case has outputs too). Raises InputError.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in inputs}
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise InputError("not an .npz file of plain arrays", where=path, got=str(error)) from None
    missing = sorted(set(inputs) - set(arrays))
    if missing:
        raise InputError("inputs are missing", where=path, got=sorted(arrays), allowed=sorted(inputs))
    stacked = {name: _stack(name, array, inputs[name][0], path) for name, array in arrays.items()}
    counts = {len(stack) for stack in stacked.values()}
    if len(counts) != 1 or not counts.copy().pop():
        lengths = {name: len(stack) for name, stack in stacked.items()}
        raise InputError("inputs hold different numbers of samples", where=path, got=lengths)
    return [{name: stack[i] for name, stack in stacked.items()} for i in range(counts.pop())]


def _stack(name: str, array: NDArray[Any], shape: tuple[int, ...], path: str | Path) -> NDArray[Any]:
    if array.shape == shape:
        return array[None]
    if array.shape[1:] == shape:
        return array
    raise InputError(f"input '{name}' has another shape", where=path, got=list(array.shape), allowed=list(shape))


def random_inputs(inputs: Signature, seed: int, n: int = SAMPLES) -> list[Case]:
    """Normal numbers for floats; 0 and 1 for integers and flags: a larger one may name a place that is not there."""
    rng = np.random.default_rng([seed, 0xDB])
    return [
        {
            name: (rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, shape)).astype(dtype)
            for name, (shape, dtype) in inputs.items()
        }
        for _ in range(n)
    ]
