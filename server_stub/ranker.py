"""The server ranker: user, history and candidates -> pXTR, and the order of a page.

Shapes: n candidates, h history, X heads (`vocabulary.PXTR_HEADS`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError, VersionMismatch
from contract.features import dense_block
from contract.history import KUAIFORMER_HISTORY, UserHistory
from contract.matches import K_MATCHES, match_flags
from contract.server_order import DEFAULT_FUSION, checked_fusion, server_value
from contract.spec import FeatureSpec
from contract.vocabulary import PXTR_HEADS, X_PXTR
from server_stub.onnx_model import ANY, OnnxModel
from server_stub.store import Tables, block_rows, read_tables

Floats = NDArray[np.float32]
Columns = Mapping[str, NDArray[Any]]

_BLOCKS = ("user_rows", "user_dense", "history_rows", "history_dense", "candidate_rows", "candidate_dense")


class Ranker:
    """One ranker_version. Thread-safe: nothing is changed after loading."""

    def __init__(
        self,
        model: OnnxModel,
        spec: FeatureSpec,
        tables: Tables,
        version: str = "",
        fusion: Mapping[str, float] | None = None,
        heads: Sequence[str] = PXTR_HEADS,
    ):
        model.check(
            {**{block: spec.width(block) for block in _BLOCKS}, "history_mask": ANY, "match": K_MATCHES}, "pxtr"
        )
        if model.outputs["pxtr"][-1] not in (None, X_PXTR):
            raise VersionMismatch(
                "the ranker has other heads", where=model.path, got=model.outputs["pxtr"], allowed=X_PXTR
            )
        length = model.shapes["history_rows"][1] if "history_rows" in model.shapes else 1
        if length is None or not 1 <= length <= KUAIFORMER_HISTORY:
            raise VersionMismatch("the ranker's history length must be fixed", where=model.path, got=length)
        self.version = version
        self.history_length = length
        self.fusion = checked_fusion(DEFAULT_FUSION if fusion is None else fusion, model.path)
        self._untrained_X = untrained_heads(heads, model.path)
        self._model, self._spec, self._tables = model, spec, tables

    @staticmethod
    def load(
        directory: Path, spec: FeatureSpec, version: str, config: Mapping[str, Any], *, threads: int = 1
    ) -> Ranker:
        """Read ranker.onnx and tables.safetensors. Raises InputError, VersionMismatch.

        config: ranker/config.json; "fusion" orders pages (contract.server_order), "heads" have labels in the log.
        """
        tables = read_tables(directory / "tables.safetensors", spec)
        model = OnnxModel(directory / "ranker.onnx", threads=threads)
        return Ranker(model, spec, tables, version, config.get("fusion"), config.get("heads", PXTR_HEADS))

    def pxtr(self, user: Columns, history: UserHistory, candidates: Columns) -> Floats:
        """float32 [n, X] probabilities, NaN for untrained heads (as in training's log) and where there is no number.

        user: user_id, user_activity, user_register_days, hour, tab, each [1]; history: the user's impressions;
        candidates: video_id, author_id, tags, duration_ms, upload_age_days, each [n].
        """
        n = len(candidates["video_id"])
        if n == 0:
            return np.zeros((0, X_PXTR), np.float32)
        h = self.history_length
        mask_h, entries = history.mask(h), history.columns(h)
        feeds = {
            "user_rows": block_rows(self._spec, "user_rows", self._tables, user, 1),
            "user_dense": self._dense("user_dense", user, 1),
            "candidate_rows": block_rows(self._spec, "candidate_rows", self._tables, candidates, n),
            "candidate_dense": self._dense("candidate_dense", candidates, n),
            "history_mask": mask_h[None],
            "history_dense": self._dense("history_dense", entries, h)[None],
            "match": match_flags(candidates, entries),
        }
        rows_hR = block_rows(self._spec, "history_rows", self._tables, entries, h)
        feeds["history_rows"] = (rows_hR * mask_h[:, None])[None]
        pxtr_nX = self._model.run(feeds, "pxtr")
        good_nX = np.isfinite(pxtr_nX) & ~self._untrained_X
        return np.where(good_nX, np.clip(pxtr_nX, 0.0, 1.0), np.nan).astype(np.float32)

    def _dense(self, block: str, columns: Columns, n: int) -> Floats:
        return dense_block(self._spec, block, columns, np.zeros((n, self._spec.width(block)), np.float32))

    def order(self, pxtr_nX: Floats, duration_ms: NDArray[Any]) -> tuple[NDArray[np.int64], Floats]:
        """Best first, ties in the order given: (int64 [n], fused value float32 [n] as given).

        A missing pXTR counts as 0.
        """
        value_n = server_value(pxtr_nX, duration_ms, self.fusion)
        return np.argsort(-value_n, kind="stable"), value_n


def untrained_heads(heads: Sequence[str], where: object = "heads") -> NDArray[np.bool_]:
    """bool [X], True for heads whose outputs mean nothing. Raises InputError for unknown heads."""
    unknown = sorted(set(heads) - set(PXTR_HEADS)) if isinstance(heads, (list, tuple)) else [str(heads)]
    if unknown:
        raise InputError("heads names an unknown head", where=where, got=unknown, allowed=PXTR_HEADS)
    return np.array([head not in heads for head in PXTR_HEADS])
