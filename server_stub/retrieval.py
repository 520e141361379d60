"""Retrieval: history -> encoder (onnxruntime) -> K interests -> faiss -> candidates.

KuaiFormer (arXiv 2411.10057, section 2.4): several interest vectors per user, an item's score is its best inner product
with any of them. Each interest fills its own quota first, so that a loud interest does not silence the others.

Shapes: L history, R row width, K interests, D width, I items, M candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError, VersionMismatch
from contract.history import UserHistory
from contract.spec import FeatureSpec
from server_stub.item_index import ItemIndex
from server_stub.kept_windows import KeptWindows, Part
from server_stub.onnx_model import ANY, OnnxModel
from server_stub.store import Tables, block_rows, read_tables

Ids = NDArray[np.uint64]
Floats = NDArray[np.float32]
# Users of one call of the encoder. More gain nothing: activations leave the second-level cache, and 32 at once cost
# each of them a tenth more than 4 at width 256.
AT_ONCE = 4
NEEDED = ("encoder.onnx", "items.faiss", "item_ids.npy")  # and rows: tables.safetensors, unless others are named


@dataclass(frozen=True)
class Retrieved:
    """video_id uint64 [M], score float32 [M], best first, no id twice; interest int64 [M]: which one found it best.

    interests: float32 [K, D], those that are finite.
    """

    video_id: Ids
    score: Floats
    interest: NDArray[np.int64]
    interests: Floats


class Retrieval:
    """Encoder and item index of one retrieval_version. Thread-safe; `update_items` may run beside searches."""

    def __init__(
        self,
        encoder: OnnxModel,
        spec: FeatureSpec,
        tables: Tables,
        index: Any,
        item_ids: Ids,
        version: str = "",
        kept: KeptWindows | None = None,
    ):
        encoder.check({"history_rows": spec.width("history_rows"), "history_mask": ANY}, "interests")
        length = encoder.shapes["history_rows"][1]
        if length is None:
            raise VersionMismatch("the encoder's history length must be fixed", where=encoder.path)
        self.items = ItemIndex(index, item_ids, where=encoder.path.parent)
        width = encoder.outputs["interests"][-1]
        if width not in (None, self.items.width):
            raise VersionMismatch(
                "encoder and index have other widths", where=encoder.path, got=width, allowed=self.items.width
            )
        self.version = version
        self.length = length
        self._encoder, self._spec, self._tables, self._kept = encoder, spec, tables, kept

    @staticmethod
    def load(
        directory: Path, spec: FeatureSpec, version: str, *, tables: Path | None = None, threads: int = 1
    ) -> Retrieval:
        """Read encoder.onnx, items.faiss, item_ids.npy and rows; the encoder's halves where they are there. Raises
        InputError, VersionMismatch."""
        import faiss

        tables = tables or directory / "tables.safetensors"
        absent = [path.name for path in (*(directory / name for name in NEEDED), tables) if not path.is_file()]
        if absent:
            raise InputError("retrieval lacks files", where=directory, got=absent, fix="convert again")
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
        kept = KeptWindows.load(directory, spec.width("history_rows"), threads)
        return Retrieval(encoder, spec, read_tables(tables, spec), index, item_ids.view(np.uint64), version, kept)

    def copy(self, tables: Path | None = None) -> Retrieval:
        """The same encoder and items; what is updated in one is not in the other. tables: rows to read anew."""
        other = copy.copy(self)
        other.items = self.items.copy()
        if tables is not None:
            other._tables = read_tables(tables, self._spec)
            other._kept = self._kept.copy() if self._kept else None
        return other

    @property
    def item_ids(self) -> Ids:
        """All items that can be found, uint64 [I], in no particular order."""
        return self.items.ids

    def update_items(self, ids: Ids, vectors: Floats, removed: Ids | None = None) -> tuple[int, int]:
        """Add or replace item vectors of this retrieval_version: float32 [N, D]; see `ItemIndex.update`."""
        return self.items.update(ids, vectors, removed)

    def encode(self, history: UserHistory, user: int | None = None) -> Floats:
        """Interests of a user: float32 [K, D]. Padding rows are zero.

        user: whose history it is, so that its windows may be kept for the next answer (`server_stub/kept_windows.py`);
        None: the whole encoder.
        """
        if user is not None and self._kept is not None:
            return self._kept.encode(user, history, self._rows)
        interests: Floats = self.encode_many([history])[0]
        return interests

    def _rows(self, part: Part) -> Floats:
        rows: Floats = block_rows(self._spec, "history_rows", self._tables, part.columns, len(part.mask))
        return rows * part.mask[:, None]

    def encode_many(self, histories: Sequence[UserHistory]) -> Floats:
        """Interests of several users, AT_ONCE of them a call of the encoder: float32 [n, K, D].

        With an int8 encoder the users of one call share the ranges of their activations: an answer then depends, within
        the quantisation's error, on who else is asked for. `encode` asks for one.
        """
        parts = []
        for start in range(0, len(histories), AT_ONCE):
            some = histories[start : start + AT_ONCE]
            mask_BL = np.stack([history.mask(self.length) for history in some])
            held = [history.columns(self.length) for history in some]
            columns = {name: np.concatenate([columns[name] for columns in held]) for name in held[0]}
            rows = block_rows(self._spec, "history_rows", self._tables, columns, mask_BL.size)
            rows_BLR = rows.reshape(*mask_BL.shape, -1) * mask_BL[:, :, None]
            parts.append(self._encoder.run({"history_rows": rows_BLR, "history_mask": mask_BL}, "interests"))
        if not parts:
            raise InputError("no history to encode", got=0, allowed="1 or more")
        interests: Floats = np.concatenate(parts)
        return interests

    def search(self, interests: Floats, n: int, exclude: Ids) -> Retrieved:
        """Up to n items: each interest's quota first, then the best of what was found, ordered by their best score.

        exclude: uint64 ids that may not come. Interests that are not finite find nothing.
        """
        finite_K = np.flatnonzero(np.isfinite(interests).all(axis=1))
        interests = interests[finite_K]
        if n < 1 or not len(interests) or not len(self.items):
            none = np.zeros(0, np.int64)
            return Retrieved(none.astype(np.uint64), none.astype(np.float32), none, interests)
        ids_KM, score_KM = self.items.search(interests, n + len(exclude))
        usable_KM = np.isfinite(score_KM) & ~np.isin(ids_KM, exclude)
        rank_KM = np.cumsum(usable_KM, axis=1) - 1
        quota = -(-n // len(interests))
        id_P, score_P = ids_KM[usable_KM], score_KM[usable_KM]
        in_quota_P = (rank_KM < quota)[usable_KM]
        interest_P = np.broadcast_to(finite_K[:, None], ids_KM.shape)[usable_KM]
        # One entry per item: its best score and whose it is, and whether any interest has it within its quota.
        order = np.lexsort((interest_P, -score_P, id_P))
        id_P, score_P, in_quota_P, interest_P = id_P[order], score_P[order], in_quota_P[order], interest_P[order]
        first = np.flatnonzero(np.concatenate([[True], id_P[1:] != id_P[:-1]])) if len(id_P) else np.zeros(0, np.int64)
        chosen_M = np.maximum.reduceat(in_quota_P, first) if len(first) else np.zeros(0, bool)
        id_M, score_M = id_P[first], score_P[first]
        best = np.lexsort((id_M, -score_M, ~chosen_M))[:n]
        best = best[np.lexsort((id_M[best], -score_M[best]))]
        return Retrieved(id_M[best], score_M[best].astype(np.float32), interest_P[first][best], interests)
