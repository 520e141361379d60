"""How far a device's outputs are from what they should be: golden outputs, and this machine's for the same file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.golden import fused_values, rankings_agree
from contract.manifest import Graph, Manifest, Variant
from edge import InstalledModel

Tensors = Mapping[str, NDArray[np.float32]]


def decoded(outputs: Mapping[str, str]) -> Tensors:
    """A probe's outputs: tensor name -> float32, flat."""
    return {name: np.frombuffer(base64.b64decode(text), np.float32) for name, text in outputs.items()}


def golden_outputs(installed: InstalledModel, graph: Graph, variant: Variant) -> tuple[Tensors, str]:
    """Golden outputs to hold a variant against, and whose they are: its own, or float32's; ({}, "") without any."""
    file = installed.manifest.golden.tensors.get(f"{graph.name}/{graph.bucket}", "")
    if not file:
        return {}, ""
    with np.load(io.BytesIO(installed.read(file)), allow_pickle=False) as arrays:
        own = variant.name == graph.ship
        names = {tensor.name: tensor.name if own else f"float32.{tensor.name}" for tensor in graph.outputs}
        if any(name not in arrays.files for name in names.values()):
            return {}, ""
        return {name: arrays[key].ravel() for name, key in names.items()}, variant.name if own else "float32"


def parity(installed: InstalledModel, graph: Graph, variant: Variant, outputs: Mapping[str, str]) -> dict[str, Any]:
    """max_abs to the golden outputs and `reference`, whose they are; tolerance: the manifest's.

    ok: within it, ranking equal but for ties below it. None where the reference is another variant's: then the
    distance says what quantising costs and not what this processor does.
    """
    expected, reference = golden_outputs(installed, graph, variant)
    found: dict[str, Any] = {
        "reference": reference or "none", "max_abs": None, "tolerance": variant.tolerance, "ok": None, "ranking": None,
    }  # fmt: skip
    if not expected:
        return found
    got = decoded(outputs)
    found["max_abs"] = distance(expected, got)
    if "scores" in expected and np.isfinite(found["max_abs"]):
        found["ranking"] = _same_ranking(installed.manifest, expected["scores"], got["scores"], variant.tolerance)
    if reference == variant.name:
        found["ok"] = found["max_abs"] <= variant.tolerance and found["ranking"] is not False
    return found


def _same_ranking(manifest: Manifest, want: NDArray[Any], got: NDArray[Any], tolerance: float) -> bool:
    weights_T = np.array([manifest.fusion.get(task, 0.0) for task in manifest.tasks], np.float32)
    expected, found = (fused_values(scores.reshape(-1, len(weights_T)), weights_T) for scores in (want, got))
    # What an error in the logits can do to a fused value: a sigmoid's slope is at most 1/4.
    return rankings_agree(expected, found, tolerance * float(np.abs(weights_T).sum()) / 4)


def parity_to_host(here: Mapping[str, str], there: Mapping[str, str], tolerance: float) -> dict[str, Any]:
    """A device's outputs beside this machine's, same file and inputs. tolerance: the manifest's, between processors."""
    max_abs = distance(decoded(here), decoded(there))
    return {"max_abs": max_abs, "exact": max_abs == 0.0, "ok": max_abs <= tolerance}


def distance(expected: Tensors, got: Tensors) -> float:
    """Largest difference; infinite when sizes differ, something is absent, or something is no number."""
    worst = 0.0
    for name, want in expected.items():
        have = got.get(name)
        if have is None or have.size != want.size or not (np.isfinite(want).all() and np.isfinite(have).all()):
            return float("inf")
        worst = max(worst, float(np.abs(want.ravel() - have.ravel()).max(initial=0.0)))
    return worst
