"""Retrieval: history -> encoder (onnxruntime) -> K interests -> faiss -> candidates.

KuaiFormer (KDD 2025, section 2.2): several interest vectors per user, an item's score is its best inner product with
any of them. Each interest fills its own quota first, so that a loud interest does not silence the others.

Shapes: L history, R row width, K interests, D width, I items, M candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError, VersionMismatch
from contract.history import UserHistory
from contract.spec import FeatureSpec
from server_stub.onnx_model import ANY, OnnxModel
from server_stub.store import Tables, block_rows, read_tables

Ids = NDArray[np.uint64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Retrieved:
    """video_id uint64 [M] and score float32 [M], best first, no id twice; interests float32 [K, D]."""

    video_id: Ids
    score: Floats
    interests: Floats


class Retrieval:
    """Encoder and ANN index of one retrieval_version. Thread-safe: nothing is changed after loading."""

    def __init__(
        self, encoder: OnnxModel, spec: FeatureSpec, tables: Tables, index: Any, item_ids: Ids, version: str = ""
    ):
        encoder.check({"history_rows": spec.width("history_rows"), "history_mask": ANY}, "interests")
        length = encoder.shapes["history_rows"][1]
        if length is None:
            raise VersionMismatch("the encoder's history length must be fixed", where=encoder.path)
        if index.ntotal != len(item_ids):
            raise VersionMismatch(
                "index and item_ids differ", where=encoder.path, got=index.ntotal, allowed=len(item_ids)
            )
        width = encoder.outputs["interests"][-1]
        if width not in (None, index.d):
            raise VersionMismatch("encoder and index have other widths", where=encoder.path, got=width, allowed=index.d)
        if len(np.unique(item_ids)) != len(item_ids):
            raise InputError("item_ids holds an id twice", where=encoder.path)
        self.version = version
        self.length = length
        self.item_ids = item_ids
        self._encoder, self._spec, self._tables, self._index = encoder, spec, tables, index

    @staticmethod
    def load(directory: Path, spec: FeatureSpec, version: str, *, threads: int = 1) -> Retrieval:
        """Read encoder.onnx, tables.safetensors, items.faiss, item_ids.npy. Raises InputError, VersionMismatch."""
        import faiss

        try:
            item_ids = np.load(directory / "item_ids.npy", allow_pickle=False)
            index = faiss.read_index(str(directory / "items.faiss"))
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError("the ANN index can't be read", where=directory, got=str(error)) from None
        if item_ids.ndim != 1 or item_ids.dtype not in (np.int64, np.uint64):
            raise InputError(
                "item_ids.npy must be 64-bit ids [I]", where=directory, got=(item_ids.dtype, item_ids.shape)
            )
        encoder = OnnxModel(directory / "encoder.onnx", threads=threads)
        tables = read_tables(directory / "tables.safetensors", spec)
        return Retrieval(encoder, spec, tables, index, item_ids.view(np.uint64), version)

    def encode(self, history: UserHistory) -> Floats:
        """Interests of a user: float32 [K, D]. Padding rows are zero."""
        columns, mask_L = history.columns(self.length), history.mask(self.length)
        rows_LR = block_rows(self._spec, "history_rows", self._tables, columns, self.length)
        feeds = {"history_rows": (rows_LR * mask_L[:, None])[None], "history_mask": mask_L[None]}
        interests: Floats = self._encoder.run(feeds, "interests")[0]
        return interests

    def search(self, interests: Floats, n: int, exclude: Ids) -> Retrieved:
        """Up to n items: each interest's quota first, then the best of what was found, ordered by their best score.

        exclude: uint64 ids that may not come. Interests that are not finite find nothing.
        """
        interests = interests[np.isfinite(interests).all(axis=1)]
        if n < 1 or not len(interests) or not len(self.item_ids):
            return Retrieved(np.zeros(0, np.uint64), np.zeros(0, np.float32), interests)
        ask = min(len(self.item_ids), n + len(exclude))
        score_KM, place_KM = self._index.search(np.ascontiguousarray(interests, np.float32), ask)
        ids_KM = self.item_ids[np.maximum(place_KM, 0)]
        usable_KM = (place_KM >= 0) & np.isfinite(score_KM) & ~np.isin(ids_KM, exclude)
        rank_KM = np.cumsum(usable_KM, axis=1) - 1
        quota = -(-n // len(interests))
        id_P, score_P = ids_KM[usable_KM], score_KM[usable_KM]
        in_quota_P = (rank_KM < quota)[usable_KM]
        # One entry per item: its best score, and whether any interest has it within its quota.
        order = np.lexsort((-score_P, id_P))
        id_P, score_P, in_quota_P = id_P[order], score_P[order], in_quota_P[order]
        first = np.flatnonzero(np.concatenate([[True], id_P[1:] != id_P[:-1]])) if len(id_P) else np.zeros(0, np.int64)
        chosen_M = np.maximum.reduceat(in_quota_P, first) if len(first) else np.zeros(0, bool)
        id_M, score_M = id_P[first], score_P[first]
        best = np.lexsort((id_M, -score_M, ~chosen_M))[:n]
        best = best[np.lexsort((id_M[best], -score_M[best]))]
        return Retrieved(id_M[best], score_M[best].astype(np.float32), interests)
