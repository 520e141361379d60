"""KuaiFormer's encoder as a job: a history in, interests out, judged by how they rank items.

A slate is the float encoder's best items of a history, some others, and the item that came next: what retrieval asks
is whether the best stay on top, and no tau over a whole catalogue of also-rans would show that.

Legend: L history, R width of history_rows, K interests, D width, I items of the catalogue, n items of a slate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import InputError
from convert.build import BuiltGraph
from convert.encoder_int8 import best_rows
from convert.encoder_queries import EncoderQueries, real_queries
from convert.graph_job import graph_card, write_graph_golden
from convert.onnx_export import TorchGraph
from convert.phone import Rows
from convert.report import Verification
from convert.subject import GraphSubject, Outputs
from training.checkpoint import Checkpoint, load_checkpoint
from training.kuaiformer import KuaiFormer
from training.kuaiformer_train import load_kuaiformer
from training.readers import open_data
from training.retrieval_split import split_of

BEST, OTHERS = 50, 50
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Histories:
    """Queries of some data, half to verify on and half to calibrate on, and the vectors of their catalogue [I, D]."""

    data: str
    items: Catalogue
    vectors_ID: Floats


@dataclass(frozen=True)
class EncoderJob:
    checkpoint: Checkpoint
    net: KuaiFormer
    kind: str = "kuaiformer"

    @staticmethod
    def load(checkpoint: Path) -> EncoderJob:
        found = load_checkpoint(checkpoint, kind="kuaiformer")
        return EncoderJob(found, load_kuaiformer(found).eval())

    @property
    def version(self) -> str:
        return self.checkpoint.version

    @property
    def graphs(self) -> Mapping[str, TorchGraph]:
        length, width = self.net.config.length, self.checkpoint.spec.width("history_rows")
        inputs = {"history_rows": torch.zeros(1, length, width), "history_mask": torch.ones(1, length)}
        graph = TorchGraph("encoder", f"L{length}", self.net.encoder, inputs, ("interests",))
        return {graph.key: graph}

    def open(self, data: Any, seed: int) -> tuple[Histories, str]:
        """data: KIND:PATH as `kir train --data` takes it."""
        if not isinstance(data, str | Path) or ":" not in str(data):
            raise InputError(
                "an encoder is verified on real histories", got=data, fix="name the model's data: --data KIND:PATH"
            )
        name = str(data)
        items = split_of(open_data(name), name.partition(":")[0], holdout_days=0).items
        rows = Rows(self.checkpoint.spec, self.checkpoint.tables, self.checkpoint.tables.numpy_rows())
        columns = {field: getattr(items, field) for field in ("video_id", "author_id", "tags", "duration_ms")}
        with torch.no_grad():
            vectors_ID = self.net.item(torch.from_numpy(rows.block("item_rows", columns))).numpy()
        return Histories(name, items, vectors_ID), f"histories of {name.partition(':')[0]}"

    def _queries(self, opened: Histories, n: int, seed: int, half: int) -> tuple[EncoderQueries, list[int]]:
        """Queries and the numbers of one half of them, at most n."""
        length = self.net.config.length
        found = real_queries(self.checkpoint, opened.items, opened.data, length=length, limit=2 * n, seed=seed)
        return found, list(range(half, len(found), 2))[:n]

    def subject(self, opened: Histories, n: int, seed: int) -> GraphSubject:
        """n queries, and histories that no data hold."""
        return self._subject(opened, *self._queries(opened, n, seed, 0), seed, hard=True)

    def calibration(self, opened: Histories, n: int, seed: int) -> GraphSubject:
        return self._subject(opened, *self._queries(opened, n, seed, 1), seed)

    def _subject(
        self, opened: Histories, queries: EncoderQueries, numbers: list[int], seed: int, hard: bool = False
    ) -> GraphSubject:
        rng = np.random.default_rng([seed, 0xC2])
        graph = next(iter(self.graphs.values()))
        feeds, slates, labels = [], [], []
        for number in numbers:
            feeds.append(queries.feeds(number))
            interests_KD = graph.run(feeds[-1])["interests"][0]
            best = best_rows(interests_KD, opened.vectors_ID, queries.seen_rows(number), BEST)
            others = rng.integers(0, len(opened.items), OTHERS)
            slate = np.unique(np.concatenate([best, others, queries.target_Q[number : number + 1]]))
            slates.append(slate)
            labels.append((slate == queries.target_Q[number]).astype(np.float32))
        for one in queries.hard() if hard else ():
            feeds.append(one)
            best = best_rows(graph.run(one)["interests"][0], opened.vectors_ID, np.zeros(0, np.int64), BEST)
            slates.append(np.unique(np.concatenate([best, rng.integers(0, len(opened.items), OTHERS)])))
            labels.append(np.full(len(slates[-1]), np.nan, np.float32))  # nothing came next

        def real(sample: int, outputs: Outputs) -> Floats:
            return outputs["interests"][0]

        def value(sample: int, interests_KD: Floats) -> Floats:
            return (opened.vectors_ID[slates[sample]] @ interests_KD.T).max(axis=1)

        return GraphSubject(graph, tuple(feeds), real, value, self.version, tuple(labels))

    def goldens(
        self, built: Mapping[str, BuiltGraph], report: Verification, opened: Histories, out: Path, seed: int
    ) -> dict[str, Any]:
        return write_graph_golden(self.subject(opened, 1, seed), built, report, out)

    def about(self) -> dict[str, Any]:
        return {"spec": self.checkpoint.spec.to_json(), "model": dict(self.checkpoint.model_config)}

    def card(self, report: Verification) -> str:
        config = self.net.config
        facts = {"history": config.length, "interests": config.interests, "slates": f"best {BEST}, {OTHERS} others"}
        does = "Turns what a user liked into a few interests; items are found by the best inner product."
        return graph_card(f"KuaiFormer encoder {self.version}", does, next(iter(self.graphs.values())), report, facts)
