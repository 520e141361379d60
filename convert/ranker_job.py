"""The server ranker as a job: pages of RANKER_PAGE candidates for one user, ordered as the server orders a page.

Legend: n candidates, h history, X pXTR heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.errors import InputError
from contract.events import Events
from contract.features import Columns, dense_block
from contract.history import HistoryIndex
from contract.matches import match_flags
from contract.server_order import DEFAULT_FUSION, WATCH_TIME, server_value
from contract.vocabulary import PXTR_HEADS
from convert.build import BuiltGraph
from convert.chain import Feeds
from convert.graph_job import graph_card, write_graph_golden
from convert.hard_pages import INT32_MAX, extreme, one_user
from convert.jobs import open_events
from convert.onnx_export import TorchGraph
from convert.phone import Rows
from convert.report import Verification
from convert.subject import GraphSubject, Outputs
from convert.windows import candidates_at, chosen_part, outcomes, told_part
from training.checkpoint import Checkpoint, load_checkpoint
from training.ranker import RankerProbabilities
from training.ranker_train import load_ranker

RANKER_PAGE = 32
Floats = NDArray[np.float32]
_USER = ("user_id", "user_activity", "user_register_days", "hour", "tab")
_CANDIDATE = ("video_id", "author_id", "tags", "duration_ms", "upload_age_days", "music_id", "kind")


@dataclass(frozen=True)
class RankerJob:
    checkpoint: Checkpoint
    module: torch.nn.Module
    history: int
    heads: Sequence[str]
    kind: str = "ranker"

    @staticmethod
    def load(checkpoint: Path) -> RankerJob:
        found = load_checkpoint(checkpoint, kind="ranker")
        net = load_ranker(found).eval()
        return RankerJob(found, RankerProbabilities(net).eval(), net.config.history, net.config.trained_heads)

    @property
    def version(self) -> str:
        return self.checkpoint.version

    @property
    def graphs(self) -> Mapping[str, TorchGraph]:
        inputs = {name: torch.zeros(shape) for name, shape in self._shapes().items()}
        graph = TorchGraph("ranker", f"N{RANKER_PAGE}", self.module, inputs, ("pxtr",))
        return {graph.key: graph}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        from contract.matches import K_MATCHES

        width, n, h = self.checkpoint.spec.width, RANKER_PAGE, self.history
        return {
            "user_rows": (1, width("user_rows")),
            "user_dense": (1, width("user_dense")),
            "history_rows": (1, h, width("history_rows")),
            "history_dense": (1, h, width("history_dense")),
            "history_mask": (1, h),
            "candidate_rows": (n, width("candidate_rows")),
            "candidate_dense": (n, width("candidate_dense")),
            "match": (n, h, K_MATCHES),
        }

    @property
    def trained_until_ms(self) -> int | None:
        return self.checkpoint.config["training"].get("trained_until_ms")

    @property
    def fusion(self) -> dict[str, float]:
        """Weights of the server's order that have a trained head."""
        return {name: w for name, w in DEFAULT_FUSION.items() if name in self.heads or name == WATCH_TIME}

    def open(self, data: Any, seed: int) -> tuple[Events, str]:
        if data is None:
            raise InputError("a ranker is verified on real pages", fix="give a log: --data events.parquet or KIND:PATH")
        log, words = open_events(data)
        return log, f"{words}, pages from {told_part(log['time_ms'], self.trained_until_ms)}"

    def subject(self, opened: Events, n: int, seed: int) -> GraphSubject:
        return self._subject(opened, n, seed, held_out=True)

    def calibration(self, opened: Events, n: int, seed: int) -> GraphSubject:
        return self._subject(opened, n, seed, held_out=False)

    def _subject(self, log: Events, n: int, seed: int, *, held_out: bool) -> GraphSubject:
        """Pages at random impressions; every third one padded. Held out, also pages that no log holds."""
        rng = np.random.default_rng([seed, 0xC1, held_out])
        log = log.take(np.lexsort((log["time_ms"], log["user_id"])))
        index = HistoryIndex.from_events(log, every=True)
        rows = Rows(self.checkpoint.spec, self.checkpoint.tables, self.checkpoint.tables.numpy_rows())
        late = np.flatnonzero(chosen_part(log["time_ms"], held_out, self.trained_until_ms))
        feeds, durations, labels = [], [], []
        for number in range(n):
            at = int(rng.choice(late))
            size = RANKER_PAGE if number % 3 else int(rng.integers(2, RANKER_PAGE))
            candidates = candidates_at(log, at, size, rng)
            feeds.append(self._feeds(rows, index, log, at, candidates))
            durations.append(log["duration_ms"][candidates])
            labels.append(outcomes(log, at, candidates))
        for events, at, size in self._hard(log, rng) if held_out else ():
            index, candidates = HistoryIndex.from_events(events, every=True), np.arange(at, at + size)
            feeds.append(self._feeds(rows, index, events, at, candidates))
            durations.append(events["duration_ms"][candidates])
            labels.append(np.full(size, np.nan, np.float32))  # nobody rated it

        def real(sample: int, outputs: Outputs) -> Floats:
            return outputs["pxtr"][: len(durations[sample])]

        def value(sample: int, pxtr_nX: Floats) -> Floats:
            known_nX = np.where([head in self.heads for head in PXTR_HEADS], pxtr_nX, np.float32(np.nan))
            return server_value(known_nX, durations[sample], self.fusion)

        graph = next(iter(self.graphs.values()))
        return GraphSubject(graph, tuple(feeds), real, value, self.version, tuple(labels))

    def _hard(self, log: Events, rng: np.random.Generator) -> Iterator[tuple[Events, int, int]]:
        """Log, where its page begins, candidates: one for a user without history, everything full, extreme values."""
        plain = one_user(log, self.history + RANKER_PAGE, rng)
        # So far apart that whatever was played, and be it for as long as a column can say, has ended before the page.
        plain = plain.with_columns(time_ms=plain["time_ms"][0] + (INT32_MAX + 1) * np.arange(len(plain)))
        yield plain, 0, 1
        yield plain, self.history, RANKER_PAGE
        yield extreme(plain, rng).with_columns(time_ms=plain["time_ms"]), self.history, RANKER_PAGE

    def _feeds(self, rows: Rows, index: HistoryIndex, log: Events, at: int, candidates: NDArray[np.int64]) -> Feeds:
        user = {name: log[name][at : at + 1] for name in _USER}
        columns = {name: log[name][candidates] for name in _CANDIDATE}
        start, end = index.bounds(user["user_id"], log["time_ms"][at : at + 1])
        place_h = index.windows(start, end, self.history)[0]
        entries = {name: column[0] for name, column in index.gather(place_h[None]).items()}
        mask_h = (place_h >= 0).astype(np.float32)
        found = {
            "user_rows": rows.block("user_rows", user),
            "user_dense": self._dense("user_dense", user),
            "history_rows": (rows.block("history_rows", entries) * mask_h[:, None])[None],
            "history_dense": self._dense("history_dense", entries)[None],
            "history_mask": mask_h[None],
            "candidate_rows": rows.block("candidate_rows", columns),
            "candidate_dense": self._dense("candidate_dense", columns),
            "match": match_flags(columns, entries),
        }
        return {name: _padded(found[name], shape) for name, shape in self._shapes().items()}

    def _dense(self, block: str, columns: Columns) -> Floats:
        n = len(next(iter(columns.values())))
        return dense_block(
            self.checkpoint.spec, block, columns, np.zeros((n, self.checkpoint.spec.width(block)), np.float32)
        )

    def goldens(
        self, built: Mapping[str, BuiltGraph], report: Verification, opened: Events, out: Path, seed: int
    ) -> dict[str, Any]:
        return write_graph_golden(self.subject(opened, 1, seed), built, report, out)

    def about(self) -> dict[str, Any]:
        spec = self.checkpoint.spec
        return {"spec": spec.to_json(), "history": self.history, "heads": list(self.heads), "fusion": self.fusion}

    def card(self, report: Verification) -> str:
        facts = {"candidates": RANKER_PAGE, "history": self.history, "trained heads": ", ".join(self.heads)}
        does = "Predicts each feedback signal of a page's candidates from a user's last impressions (pXTR)."
        return graph_card(f"Ranker {self.version}", does, next(iter(self.graphs.values())), report, facts)


def _padded(values: Floats, shape: tuple[int, ...]) -> Floats:
    """Zeros below where a page has fewer candidates than slots."""
    out = np.zeros(shape, np.float32)
    out[: len(values)] = values
    return out
