"""The golden session with every variant in turn as the one that ships. The same file runs on a device and on this
computer.

python sessions.py MODEL_FOLDER OUT.npz       "variant step" -> scores [N, T] of that swipe
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np

from contract.golden import GoldenSession
from edge import InstalledModel, SessionConfig
from edge._engine import Engine
from edge._replay import _GoldenPhone


def shipping(installed: InstalledModel, name: str) -> InstalledModel:
    """The model as if this variant shipped, where a graph has it."""
    graphs = tuple(
        replace(graph, ship=name) if any(variant.name == name for variant in graph.variants) else graph
        for graph in installed.manifest.graphs
    )
    return replace(installed, manifest=replace(installed.manifest, graphs=graphs))


def session_of(installed: InstalledModel, name: str) -> dict[str, np.ndarray]:
    """Scores of every swipe; each shows what the golden session showed, so that no difference forks it."""
    model = shipping(installed, name)
    golden = GoldenSession.from_bytes(model.read(model.manifest.golden.session))
    phone = _GoldenPhone(Engine(model), golden, SessionConfig())
    # The golden scores are the shipped variant's: what another one's differ by is told by whoever compares.
    phone.tolerance = phone.value_tolerance = phone.place_tolerance = math.inf
    found: dict[str, np.ndarray] = {}
    decide = phone.session._decide

    def recorded(*given: object) -> object:
        decision = decide(*given)
        if decision.scores_NT is not None:
            found[f"{name} {number}"] = np.array(decision.scores_NT)
        return decision

    phone.session._decide = recorded
    for number, step in enumerate(golden.steps, start=1):
        line = phone.take(step, f"step {number}")
        if line is not None and not line.ok:
            raise SystemExit(f"{name}, step {number}: {line.problem}")
    return found


def sessions_of(folder: str) -> dict[str, np.ndarray]:
    installed = InstalledModel.open_published(folder)
    names = dict.fromkeys(variant.name for graph in installed.manifest.graphs for variant in graph.variants)
    return {key: scores for name in names for key, scores in session_of(installed, name).items()}


if __name__ == "__main__":
    np.savez(sys.argv[2], allow_pickle=False, **sessions_of(sys.argv[1]))
