"""One model at work in a session: engine, cached keys and values, rows of the watched list, buffers of the swipe.

A session swaps the whole Reranker when another dense version takes over: nothing of one version reaches another.
Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.ages import Ages
from contract.errors import NoModelError
from contract.features import dense_block
from contract.golden import fused_values
from contract.one_video import TokenRows
from contract.page import Page
from contract.watched import Change, WatchedList
from edge._cache import WatchCache
from edge._engine import Engine, PageState
from edge._features import PageFeatures, SwipeFeatures, WatchedRows, page_features
from edge._telemetry import Span, no_span
from edge._types import DeviceState

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ScoredPage:
    """A page that a model can score: the `page` graph's output, and its candidates' rows for when they are watched."""

    state: PageState
    features: PageFeatures
    video_ids: Sequence[int]


class Reranker:
    """Engine and everything cached for it. `watched` is the session's list; the caller tells every change of it."""

    def __init__(self, engine: Engine, watched: WatchedList, span: Span = no_span):
        self.engine = engine
        self._span = span
        self.dense_version = engine.dense_version
        self._spec = engine.spec
        self.watched = watched
        self.rows = WatchedRows(engine.capacity, self._spec.width("watched_rows"))
        self.cache = WatchCache(engine)
        self._swipe = SwipeFeatures(self._spec, engine.buckets)
        self._tokens = TokenRows(self._spec)
        self._ages = Ages(engine.capacity + 1)
        self._watched_dense: Floats = np.zeros((engine.capacity + 1, self._spec.width("watched_dense")), np.float32)
        self._written = -1  # the slot whose token stands in _watched_dense already, and what it was made of
        self._token_F: Floats | None = None

    def open_page(self, page: Page, request_ids: Sequence[int]) -> ScoredPage:
        """Decode the page's rows, take what it brings for the watched list, run `page`, bring the cache up to date.

        Candidates above the largest bucket are cut in server order. Raises what the engine raises.
        """
        n = min(len(page.candidates), self.engine.buckets[-1])
        with self._span("rows"):
            features = page_features(self._spec, page, n, request_ids, self._tokens)
        slots = self.watched.columns(1)["video_id"].tolist()
        self.cache.stale_from(self.rows.adopt(features, slots, page.rows_revision))
        self.refresh()
        with self._span("page_graph"):
            state = self.engine.page(features.blocks)
        return ScoredPage(state, features, page.candidates.video_id[:n].tolist())

    # -- changes of the watched list

    def changed(self, change: Change) -> None:
        """After an amendment or an eviction."""
        self._written, self._token_F = -1, None
        if change.dropped:
            self.rows.evict(change.dropped)
        self.cache.stale_from(change.first_slot)

    def prepare(self, row_R: Floats, token_F: Floats) -> None:
        """A video was shown whose feedback will probably come next: set up its token's run. Raises as the engine does.

        row_R, token_F: its rows of a page's features, of this version.
        """
        self.cache.prepare(self.watched.length, row_R[None], token_F)

    def appended(
        self,
        change: Change,
        row_R: Floats | None,
        revision: int,
        token_F: Floats | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """After an append; None when no row of this version is known: the default row until a page brings it.

        token_F: the video's row of `PageFeatures.tokens_nF`, of this version, with the columns `one_video.READ` as
        values; None: the token is a batch of one.
        """
        slot = change.first_slot
        self.rows.put(slot, row_R, revision)
        self.cache.stale_from(slot)
        self._written, self._token_F = -1, None
        if token_F is not None and values is not None:
            self._tokens.write(values, token_F, self._watched_dense[slot])
            self._written, self._token_F = slot, token_F

    @property
    def stale(self) -> bool:
        """Whether `refresh` has work."""
        return self.cache.fresh < self.watched.length

    def refresh(self) -> None:
        """Work out keys and values that are not up to date; nothing before the first page, which brings the start."""
        if self.stale and self.rows.revision[0] >= 0:
            with self._span("watch"):
                self.cache.refresh(self.watched.length, self._blocks, self._token_F)

    def _blocks(self, first: int, end: int) -> tuple[Floats, Floats]:
        dense = self._watched_dense[first:end]
        if first == self._written and end == first + 1:
            return self.rows.rows[first:end], dense
        dense_block(self._spec, "watched_dense", self.watched.columns(first, end), dense)
        return self.rows.rows[first:end], dense

    # -- the swipe

    def device(self, now_ms: int, device: DeviceState, swipe_index: int, number: int) -> None:
        """Fill what depends on now: how long and how many videos ago each was watched, and the device's state."""
        self._ages.write(now_ms, number, self.watched.at, self.cache.ages)
        self._swipe.device(device, swipe_index)

    def scores(self, page: ScoredPage, device: DeviceState) -> Floats:
        """Logits [n, T] of a page's candidates, shown ones included, after `device`."""
        candidate_swipe = self._swipe.candidates(device, page.video_ids, page.state.bucket)
        return self.engine.swipe(page.state, self.cache.memory, self._swipe.swipe_dense, candidate_swipe)

    def placer(self, page: ScoredPage, device: DeviceState) -> Callable[[Floats, Floats], Floats]:
        """`place` of a page at this swipe, after `device`: placed [1, k, P, V], placed_mask [1, k, P] -> [k, n, T].

        Raises NoModelError when the graph did not load.
        """
        if self.engine.place_error is not None:
            raise NoModelError("the place graph did not load", where=self.dense_version) from self.engine.place_error
        candidate_swipe = self._swipe.candidates(device, page.video_ids, page.state.bucket)

        def place(placed: Floats, placed_mask: Floats) -> Floats:
            now = (self.cache.memory, self._swipe.swipe_dense, candidate_swipe)
            return self.engine.place(page.state, *now, placed, placed_mask)

        return place

    def values(self, scores_NT: Floats) -> Floats:
        """Fused value of each candidate, float32 [N]: the manifest's weights."""
        return fused_values(scores_NT, self.engine.fusion_T)
