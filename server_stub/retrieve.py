"""kir retrieve BUNDLE --history FILE: what KuaiFormer would fetch for one history. No torch, no server.

The candidates retrieval hands to the ranker, before it: ids with their score and the interest that found them best.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import Catalogue, read_catalogue
from contract.errors import InputError
from server_stub.bundle import INDEX_NAME, load_retrieval, read_index, read_json, read_spec
from server_stub.history_file import HistoryFile
from server_stub.retrieval import Retrieval


@dataclass(frozen=True, eq=False)
class Answer:
    """Videos best first: video_id uint64 [M], score float32 [M], interest int64 [M] in 0 … interests - 1.

    history: positives that the encoder read; unknown: of the file's videos, those the catalogue lacks; skipped: rows of
    the file that were no positives
    """

    version: str
    user_id: int | None
    history: int
    unknown: int
    skipped: int
    interests: int
    video_id: NDArray[np.uint64]
    score: NDArray[np.float32]
    interest: NDArray[np.int64]

    def told(self) -> str:
        """One line on what was read."""
        words = [f"{self.history} positives"] if self.history else ["no history: what the model gives a new user"]
        if self.unknown:
            words.append(f"{self.unknown} of the file's videos are unknown to the catalogue")
        if self.skipped:
            words.append(f"{self.skipped} rows without long_view or like left out")
        return f"{self.version}: {', '.join(words)}; {self.interests} interests"

    def table(self) -> str:
        lines = [f"{'rank':>5}  {'video_id':>20}  {'score':>8}  interest"]
        rows = zip(self.video_id.tolist(), self.score.tolist(), self.interest.tolist(), strict=True)
        lines += [f"{rank:>5}  {v:>20}  {s:>8.4f}  {i:>8}" for rank, (v, s, i) in enumerate(rows, 1)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        rows = zip(self.video_id.tolist(), self.score.tolist(), self.interest.tolist(), strict=True)
        items = [{"video_id": v, "score": s, "interest": i} for v, s, i in rows]
        names = ("version", "user_id", "history", "unknown", "skipped", "interests")
        return {**{name: getattr(self, name) for name in names}, "items": items}


@dataclass(frozen=True)
class Retriever:
    """One retrieval_version and the catalogue it was made of."""

    retrieval: Retrieval
    catalogue: Catalogue

    @staticmethod
    def load(directory: str | Path, *, threads: int = 1) -> Retriever:
        """From a server bundle (hashes checked) or from what `kir convert retrieval` wrote.

        Raises InputError, IntegrityError, VersionMismatch.
        """
        root = Path(directory)
        if (root / INDEX_NAME).is_file():
            return Retriever(*load_retrieval(read_index(root), threads=threads))
        if not (root / "encoder.onnx").is_file():
            raise InputError(
                "neither a server bundle nor an exported retrieval", where=root,
                fix="write one with: kir convert retrieval CHECKPOINT --catalogue FILE --out DIR",
            )  # fmt: skip
        version = str(read_json(root / "config.json").get("version", ""))
        retrieval = Retrieval.load(root, read_spec(root / "spec.json"), version, threads=threads)
        return Retriever(retrieval, read_catalogue(root / "catalogue.parquet"))

    def answer(self, file: HistoryFile | None = None, n: int = 100) -> Answer:
        """The best n videos for a history, those of the history left out; without one, for a new user."""
        if n < 1:
            raise InputError("-n starts at 1", got=n)
        file = file or HistoryFile([])
        history, unknown = file.history(self.catalogue, self.retrieval.length)
        interests = self.retrieval.encode(history)
        watched = np.array([row["video_id"] for row in file.rows], np.uint64)
        found = self.retrieval.search(interests, n, np.unique(watched))
        return Answer(
            version=self.retrieval.version,
            user_id=file.user_id,
            history=len(history),
            unknown=unknown,
            skipped=file.skipped,
            interests=len(interests),
            video_id=found.video_id,
            score=found.score,
            interest=found.interest,
        )
