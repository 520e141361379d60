"""KIR as a job: windows of a log, the golden session, and the facts that a published manifest needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from contract.events import Events
from convert.build import BuiltGraph
from convert.card import model_card
from convert.chain import run_halves, run_place
from convert.files import write_golden
from convert.golden import make_session, tensor_case
from convert.hard_pages import hard_samples
from convert.jobs import open_events
from convert.onnx_export import TorchGraph
from convert.quantize import FLOAT
from convert.report import Verification
from convert.source import KirSource, load_source
from convert.subject import KirSubject
from convert.tflite import TfliteGraph
from convert.verify import distance_to_whole
from convert.windows import make_windows, synthetic_events, told_part

SESSION = "golden/session.json"


@dataclass(frozen=True)
class KirJob:
    source: KirSource
    kind: str = "kir"

    @staticmethod
    def load(checkpoint: Path) -> KirJob:
        return KirJob(load_source(checkpoint))

    @property
    def version(self) -> str:
        return self.source.dense_version

    @property
    def graphs(self) -> Mapping[str, TorchGraph]:
        return self.source.graphs

    def open(self, data: Any, seed: int) -> tuple[Events, str]:
        if data is None:
            log = synthetic_events(self.source, seed)
            # Drawn outcomes would show a change of GAUC that means nothing.
            log = log.with_columns(long_view=np.full(len(log), -1, np.int8))
            return log, "synthetic events over the model's keys"
        log, words = open_events(data)
        return log, f"{words}, windows from {told_part(log['time_ms'], self.source.trained_until_ms)}"

    def subject(self, opened: Events, n: int, seed: int) -> KirSubject:
        """n windows of what is held out, and the hard pages."""
        windows = make_windows(self.source, opened, n, seed)
        return KirSubject(self.source, tuple(chain(windows, hard_samples(self.source, opened, seed))))

    def calibration(self, opened: Events, n: int, seed: int) -> KirSubject:
        """n windows from before what is held out."""
        return KirSubject(self.source, tuple(make_windows(self.source, opened, n, seed, held_out=False)))

    def goldens(
        self, built: Mapping[str, BuiltGraph], report: Verification, opened: Events, out: Path, seed: int
    ) -> dict[str, Any]:
        """A tensor case per graph, and the golden session. Returns how far the shipped files stray from float there."""
        source = self.source
        floats = {key: TfliteGraph(graph.variants[FLOAT]).run for key, graph in built.items()}
        shipped = {key: TfliteGraph(built[key].variants[name]).run for key, name in report.shipped.items()}
        session, samples = make_session(
            source,
            opened,
            lambda sample: run_halves(sample, source.layout, shipped),
            lambda sample, items: run_place(sample, source.layout, shipped, items),
            seed,
        )
        found, feeds = distance_to_whole(source, samples, shipped, floats)
        for key in built:
            # Graphs of a bucket that the session does not touch are tried on their example inputs.
            case = feeds.get(key) or {name: tensor.numpy() for name, tensor in source.graphs[key].inputs.items()}
            write_golden(out, key, tensor_case(case, shipped[key](case), floats[key](case)))
        (out / SESSION).write_bytes(session.to_bytes())
        return {"session": found}

    def about(self) -> dict[str, Any]:
        source = self.source
        return {
            "dense_version": source.dense_version,
            "rows_revision": source.rows_revision,
            "spec": source.spec.to_json(),
            "capacities": dict(source.capacities),
            "fusion": dict(source.fusion),
            "tasks": list(source.tasks),
            **({"list_reward": asdict(source.list_reward)} if source.list_reward else {}),
            "provenance": dict(source.provenance),
        }

    def card(self, report: Verification) -> str:
        return model_card(self.source, report)
