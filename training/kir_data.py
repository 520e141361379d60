"""Training batches for the reranker: raw columns of windows through `contract.features`, the same as on the phone.

Shape legend: B windows of a batch, M targets of a window (padded), L1 = L + 1 slots, T tasks, P placed slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import features
from contract.errors import InputError
from contract.events import Events
from contract.spec import FeatureSpec
from contract.vocabulary import MISSING_KEY, TASKS, WATCH_TIME_CAP_MS
from training.kir_windows import Windows, columns_of, first_revisions, in_order, replay, visible_at_page
from training.tables import SparseTables

WATCHED_BLOCKS = ("watched_rows", "watched_dense")
SWIPE_BLOCKS = ("swipe_dense",)
SEEN = ("swipe", "page", "nothing")
COVERAGE_ROWS = 50_000

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class KirData:
    """A log ready for training.

    events   sorted, each impression once                labels_nT  float32, NaN = null
    columns  raw columns [n + 2] (`columns_of`)          windows    device states
    """

    events: Events
    windows: Windows
    columns: dict[str, NDArray[Any]]
    labels_nT: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.events)


def prepare(events: Events, capacity: int) -> KirData:
    """Sort, drop repeated revisions, replay. capacity: L."""
    first, last = first_revisions(events)
    seen, final = events.take(first), events.take(last)
    order = in_order(seen)
    seen, final = seen.take(order), final.take(order)
    windows = replay(seen, capacity)
    return KirData(seen, windows, columns_of(seen, windows), labels(final))


def labels(events: Events) -> NDArray[np.float32]:
    """float32 [n, T] in the order of TASKS: binary; watch_time is the share of WATCH_TIME_CAP_MS. NaN = null."""
    play = events["play_time_ms"]
    found = {
        "effective_view": events["long_view"],
        "like": events["like"],
        "has_next": events["has_next"],
        "watch_time": np.where(play >= 0, np.minimum(play, WATCH_TIME_CAP_MS) / WATCH_TIME_CAP_MS, -1),
    }
    return np.stack([np.where(found[task] >= 0, found[task], np.nan) for task in TASKS], axis=1).astype(np.float32)


def coverage(spec: FeatureSpec, data: KirData, of: Bools) -> dict[str, float]:
    """Share of the events `of` [n] in which each field is not null (the start token aside)."""
    rows = np.flatnonzero(of)
    rows = rows[:: max(1, len(rows) // COVERAGE_ROWS)]
    columns = {name: column[rows] for name, column in data.columns.items()}
    found = {}
    for block in spec.blocks:
        dense = spec.columns(block)[0].field.encoding == "dense"
        if dense:
            values = features.dense_block(spec, block, columns, np.zeros((len(rows), spec.width(block)), np.float32))
        else:
            keys = features.block_keys(spec, block, columns)
        for column in spec.columns(block):
            name = column.field.name
            known = values[:, column.slice] != 0 if dense else keys[name] != MISSING_KEY
            found[name] = float(known.any(axis=1).mean()) if len(rows) else 0.0
    return {name: share for name, share in found.items() if name != "start"}


def pxtr_constants(data: KirData, of: Bools) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the clipped pXTR logits over the events `of`, [X] each; 0 and 1 where null."""
    pxtr_nX = data.columns["pxtr"][:-2][of]
    both = np.zeros((len(pxtr_nX), 2 * pxtr_nX.shape[1]), np.float32)
    features.pxtr_logits({"pxtr": pxtr_nX}, both)
    logit_nX, present_nX = np.split(both.astype(np.float64), 2, axis=1)
    n_X = np.maximum(present_nX.sum(0), 1)
    mean_X = (logit_nX * present_nX).sum(0) / n_X
    std_X = np.sqrt((((logit_nX - mean_X) * present_nX) ** 2).sum(0) / n_X)
    std_X = np.where(present_nX.sum(0) > 1, np.maximum(std_X, 0.1), 1.0)
    return torch.from_numpy(mean_X.astype(np.float32)), torch.from_numpy(std_X.astype(np.float32))


@dataclass(frozen=True)
class Batch:
    """blocks: what `Kir.forward` takes, without the served blocks; slots: block -> field -> int64 [B, ·, max_len];
    labels float32 [B, M, T], NaN = null or padding; event int64 [B, M], -1 = padding."""

    blocks: dict[str, Tensor]
    slots: dict[str, dict[str, Tensor]]
    labels: Tensor
    event: NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """What a choice may know of the watched list; less than all of it only in ablations.

    seen  swipe = all that was watched; page = what was known when the page arrived; nothing = the start token alone
    gaps  how long and how many videos ago each was watched
    """

    seen: str = "swipe"
    gaps: bool = True

    def __post_init__(self) -> None:
        if self.seen not in SEEN:
            raise InputError("unknown view of the watched list", got=self.seen, allowed=SEEN)

    def n_visible(self, data: KirData) -> NDArray[np.int64]:
        """Tokens of its window that each event's choice sees, [n]."""
        if self.seen == "page":
            return visible_at_page(data.events, data.windows)
        return data.windows.n_visible if self.seen == "swipe" else np.zeros_like(data.windows.n_visible)


class Batches:
    """Batches of the targets that `of` [n] marks. `placed` > 0: half of the targets get their last few watched videos
    moved into the placed list, feedback hidden, and the state of the choice before them (CONTRACTS section 3).
    """

    def __init__(
        self,
        data: KirData,
        spec: FeatureSpec,
        tables: SparseTables,
        of: Bools,
        *,
        windows: int = 64,
        placed: int = 0,
        view: View | None = None,
    ):
        self.data, self.spec, self.size, self.placed = data, spec, windows, placed
        self.view = view or View()
        self._n_visible = self.view.n_visible(data)
        self.of = of
        self.slots = {
            block: tables.field_slots(spec, block, data.columns)
            for block in spec.blocks
            if spec.columns(block)[0].field.encoding == "served"
        }
        self.pieces = self._pieces()

    def _pieces(self) -> NDArray[np.int64]:
        """[pieces, 3]: window, first event, end event. A stretch of targets of one window, at most L + 1 of them."""
        events = np.flatnonzero(self.of)
        if not len(events):
            return np.zeros((0, 3), np.int64)
        window = self.data.windows.target_window[events]
        new = np.diff(window, prepend=-1).astype(bool) | (np.diff(events, prepend=-2) != 1)
        longest = self.data.windows.token_WL.shape[1] + 1
        start = np.flatnonzero(new)
        since = np.arange(len(events)) - np.repeat(start, np.diff([*start, len(events)]))
        start = np.flatnonzero(since % longest == 0)
        end = np.append(start[1:], len(events)) - 1
        return np.stack([window[start], events[start], events[end] + 1], axis=1)

    def __len__(self) -> int:
        return -(-len(self.pieces) // self.size)

    def epoch(self, epoch: int, seed: int) -> Iterator[Batch]:
        """All batches once, shuffled by (epoch, seed); pieces of like length stand together to save padding."""
        rng = np.random.default_rng([seed, epoch, 0x4B])
        order = rng.permutation(len(self.pieces))
        length = (self.pieces[:, 2] - self.pieces[:, 1])[order]
        order = order[np.argsort(length, kind="stable")]
        starts = np.arange(0, len(order), self.size)
        for start in rng.permutation(starts):
            yield self.batch(self.pieces[order[start : start + self.size]], rng if self.placed else None)

    def in_turn(self) -> Iterator[Batch]:
        """All batches in the order of the log, nothing placed: for evaluation."""
        for start in range(0, len(self.pieces), self.size):
            yield self.batch(self.pieces[start : start + self.size], None)

    def batch(self, pieces: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        windows, n = self.data.windows, len(self.data)
        m = int((pieces[:, 2] - pieces[:, 1]).max())
        event_BM = pieces[:, 1:2] + np.arange(m)
        event_BM = np.where(event_BM < pieces[:, 2:], event_BM, -1)
        token_BL = windows.token_WL[pieces[:, 0]]
        slot_BL1 = np.concatenate([np.full((len(pieces), 1), n), np.where(token_BL < 0, n + 1, token_BL)], axis=1)
        placed_BM = np.zeros_like(event_BM)
        if rng is not None:
            drawn = rng.integers(1, self.placed + 1, event_BM.shape) * (rng.random(event_BM.shape) < 0.5)
            placed_BM = np.minimum(drawn, np.minimum(windows.run[event_BM], np.arange(m))) * (event_BM >= 0)
        choice_BM = event_BM - placed_BM  # the event at whose choice the target is scored
        row_BM = np.where(event_BM < 0, n + 1, event_BM)
        choice_row_BM = np.where(event_BM < 0, n + 1, choice_BM)
        blocks, slots = {}, {}
        for block in self.spec.blocks:
            rows = slot_BL1 if block in WATCHED_BLOCKS else choice_row_BM if block in SWIPE_BLOCKS else row_BM
            if block in self.slots:
                slots[block] = {name: torch.from_numpy(s[rows]) for name, s in self.slots[block].items()}
            else:
                blocks[block] = self._dense(block, rows)
        blocks |= {name: torch.from_numpy(x) for name, x in self._state(slot_BL1, choice_BM, choice_row_BM).items()}
        place = np.arange(m)
        open_BMM = (place[None, None, :] < place[None, :, None]) & (
            place[None, None, :] >= (place - placed_BM)[:, :, None]
        )
        blocks["placed"] = torch.from_numpy(open_BMM.astype(np.float32))
        labels_BMT = np.where((event_BM >= 0)[:, :, None], self.data.labels_nT[event_BM], np.nan)
        return Batch(blocks, slots, torch.from_numpy(labels_BMT.astype(np.float32)), event_BM)

    def _state(
        self, slot_BL1: NDArray[np.int64], choice_BM: NDArray[np.int64], choice_row_BM: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """`visible`: which slots each target sees (0 or 1), and `since` and `behind` of those, [B, M, L1] each."""
        n_visible_BM = self._n_visible[choice_BM]
        visible_BML1 = np.arange(slot_BL1.shape[1]) <= n_visible_BM[:, :, None]
        found = {"visible": visible_BML1.astype(np.float32)}
        for name, column, feature in (
            ("since", "shown_at_ms", features.since_watched),
            ("behind", "number", features.videos_behind),
        ):
            then_BL1, now_BM = self.data.columns[column][slot_BL1], self.data.columns[column][choice_row_BM]
            then_BML1 = np.where(visible_BML1 & self.view.gaps, then_BL1[:, None], -1)
            found[name] = feature(now_BM[:, :, None], then_BML1, np.zeros(then_BML1.shape, np.float32))  # type: ignore[arg-type]  # broadcasts
        return found

    def _dense(self, block: str, rows: NDArray[np.int64]) -> Tensor:
        flat = rows.reshape(-1)
        needed = {c.field.feature for c in self.spec.columns(block)}
        columns = {name: self.data.columns[name][flat] for name in _raw_columns(needed)}
        out = np.zeros((len(flat), self.spec.width(block)), np.float32)
        features.dense_block(self.spec, block, columns, out)
        return torch.from_numpy(out.reshape(*rows.shape, -1))


# Raw columns that a dense feature reads, where they are not named like the feature.
_READS = {
    "play_ratio": ("play_time_ms", "duration_ms"),
    "watch_time": ("play_time_ms",),
    "surprise": ("pxtr", "signals"),
    "stays": ("profile_stay_ms", "comment_stay_ms"),
    "posture": ("volume", "landscape"),
    "duration": ("duration_ms",),
    "gap": ("gap_ms",),
    "upload_age": ("upload_age_days",),
    "user_register": ("user_register_days",),
    "profile": ("user_profile",),
    "buffered": ("buffered_ms",),
}


def _raw_columns(dense_features: set[str]) -> list[str]:
    return sorted({name for feature in dense_features for name in _READS.get(feature, (feature,))})
