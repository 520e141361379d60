"""The models of a session: the one at work, the one offered, and the watched list as both see it.

A model takes over at a page boundary. Keys and values follow the watched list off the swipe path. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from contract.errors import IntegrityError, KirError, NoModelError
from contract.page import Page
from edge._ahead import unfit_plan
from edge._engine import Engine
from edge._features import unfit_reason
from edge._history import Applied, KeptRows, Shown, WatchHistory
from edge._installed import InstalledModel
from edge._policy import BEAM, ChoicePolicy
from edge._pool import CandidatePool
from edge._reranker import Reranker, ScoredPage
from edge._store import ModelStore
from edge._telemetry import Telemetry
from edge._types import Feedback, Outcome, Reason


class Fit(NamedTuple):
    """What the models made of a page. reason: why none can score it; activated: the version that took over with it."""

    scored: ScoredPage | None
    reason: str
    activated: str = ""


class Models:
    """reranker: the model at work, None without one; offered: takes over with the first page that fits it.

    `pool` is handed in per page, because its pages lose their scores with their model.
    """

    def __init__(
        self,
        store: ModelStore | InstalledModel | Engine | None,
        history: WatchHistory,
        policy: ChoicePolicy,
        telemetry: Telemetry,
        *,
        allow_no_delegate: bool,
    ):
        self.reranker: Reranker | None = None
        self.offered: Engine | None = None
        self._store, self._history, self._policy, self._telemetry = store, history, policy, telemetry
        self._allow_no_delegate = allow_no_delegate
        self._no_model_reason = str(Reason.NO_MODEL)
        self._evict_due = False
        self._to_activate = ""  # the version that took over, until the store knows
        self._prune_due = isinstance(store, ModelStore)

    @property
    def dense_version(self) -> str:
        """The model at work; "" when there is none."""
        return self.reranker.dense_version if self.reranker else ""

    @property
    def held(self) -> list[tuple[str, str]]:
        """(dense_version, spec_fingerprint) of the models here, the offered one first."""
        return [(engine.dense_version, engine.spec.fingerprint) for engine in self._engines()]

    def _engines(self) -> list[Engine]:
        return [e for e in (self.offered, self.reranker.engine if self.reranker else None) if e is not None]

    # -- which model

    def start(self) -> str:
        """Load the active model. Returns "" or why there is none: "no_model", "corrupt_model"."""
        kept, self._history.kept_rows = self._history.kept_rows, None
        try:
            if self._store is None:
                return self._no_model_reason
            engine = self._engine(self._store)
            refused = self._store.refused if isinstance(self._store, ModelStore) else []
            if refused:
                self._telemetry.swallowed(refused[0])  # an older model stands in for it
        except KirError as error:
            corrupt = isinstance(error, IntegrityError) or isinstance(error.__cause__, IntegrityError)
            self._no_model_reason = str(Reason.CORRUPT_MODEL if corrupt else Reason.NO_MODEL)
            self._telemetry.swallowed(error)
            return self._no_model_reason
        self._history.watched = self._history.resized(engine.capacity)
        self.reranker = Reranker(engine, self._history.watched, self._telemetry.span)
        if kept is not None and kept.dense_version == engine.dense_version:
            self._take_rows(kept, self.reranker)
        self._prepare_search(engine)
        return ""

    def _take_rows(self, kept: KeptRows, reranker: Reranker) -> None:
        """An earlier session's rows of the watched list: it works before a page brings them."""
        newest = kept.slots[1:][len(kept.slots) - self._history.watched.length :]
        for slot, (row_R, revision) in enumerate([kept.slots[0], *newest]):
            if row_R is not None and row_R.shape == reranker.rows.rows[slot].shape:
                reranker.rows.put(slot, row_R, revision)
            elif slot == 0:
                return  # without the start token's row there is nothing to stand in for the others
        self._refresh()

    def _engine(self, store: ModelStore | InstalledModel | Engine) -> Engine:
        if isinstance(store, Engine):
            return store
        installed = store.active() if isinstance(store, ModelStore) else store
        return Engine(installed, allow_no_delegate=self._allow_no_delegate)

    def _prepare_search(self, engine: Engine) -> None:
        """Load what the search needs, off the swipe path. Without it NextOne chooses; `last_error` says why."""
        if self._policy.mode != BEAM:
            return
        try:
            _, error = unfit_plan(engine, self._policy.plan)
            if error is not None:
                raise error
            engine.load_place()
        except Exception as error:  # the model serves NextOne as well as before
            self._telemetry.swallowed(error)

    def newer(self) -> Engine | None:
        """Download what the CDN calls current and load it; None when nothing is new. Changes nothing of the session,
        so that another thread may wait for it.
        """
        if not isinstance(self._store, ModelStore):
            return None
        version = self._store.update()
        offered = self.offered
        if version is None and offered is None and self.reranker is None:
            return self._active()
        if version is None or version in (offered.dense_version if offered else "", self.dense_version):
            return None
        return Engine(self._store.load(version), allow_no_delegate=self._allow_no_delegate)

    def _active(self) -> Engine | None:
        """The store's active model, for a session that started without: mended by an update, or put there by others."""
        try:
            return self._engine(self._store) if isinstance(self._store, ModelStore) else None
        except NoModelError:
            return None

    def update(self, engine: Engine | None = None) -> str | None:
        """Offer a newer model (default: `newer`). Returns its version, None when nothing is new."""
        engine = engine or self.newer()
        if engine is None:
            return None
        self.offered = engine
        self._telemetry.metrics.add("kir.edge.model.updates")
        return engine.dense_version

    def offer(self, installed: InstalledModel) -> None:
        """A model to take over with the first page that fits it. Raises as `Engine` when it can't run here."""
        self.offered = Engine(installed, allow_no_delegate=self._allow_no_delegate)

    # -- pages

    def fit(self, page: Page, request_ids: Sequence[int], pool: CandidatePool) -> Fit:
        """Let the offered model, then the running one, work out the page; a failure is a reason, never an exception."""
        reason = self._no_model_reason
        for engine in self._engines():
            reason = unfit_reason(engine.spec, engine.dense_version, page)
            if reason:
                continue
            takes_over = engine is self.offered
            if takes_over and not pool.new_among(page.candidates.video_id[: engine.buckets[-1]].tolist()):
                continue  # it would unscore the pages that are held, and bring none that is scored
            reranker = self.reranker
            if takes_over or reranker is None:
                reranker = Reranker(engine, self._history.resized(engine.capacity), self._telemetry.span)
            self._prepare_search(engine)
            try:
                scored = reranker.open_page(page, request_ids)
            except Exception as error:  # a broken model or page must not cost the candidates
                self._telemetry.swallowed(error)
                reason = str(Reason.ENGINE_ERROR)
                continue
            if takes_over:
                self._take_over(reranker, pool)
            return Fit(scored, "", reranker.dense_version if takes_over else "")
        return Fit(None, reason)

    def _take_over(self, reranker: Reranker, pool: CandidatePool) -> None:
        pool.unscore(str(Reason.VERSION_MISMATCH))
        self._history.watched = reranker.watched
        self.reranker, self.offered = reranker, None
        self._telemetry.metrics.add("kir.edge.model.activations")
        self._to_activate = reranker.dense_version

    def tidy(self) -> None:
        """What the store has to hash, write and drop: once after the start, and after a model took over. Never raises.

        A page may be taken in while a swipe waits for it, and a disk may take its time: not there, but in `maintain`.
        """
        version, self._to_activate = self._to_activate, ""
        prune, self._prune_due = self._prune_due, False
        if not isinstance(self._store, ModelStore):
            return
        try:
            if version:
                self._store.activate(version)
            elif prune:
                self._store.prune()
        except Exception as error:  # it runs from memory; the next start decides again
            self._telemetry.swallowed(error)

    # -- the watched list

    def chosen(self) -> None:
        """A choice was returned: a full list is to be evicted, once there is time."""
        self._evict_due = True

    def settle(self) -> None:
        """Evict when a choice was returned from a full list, then bring keys and values up to date."""
        if self._evict_due:
            self._evict_due = False
            self._evict()
        self._refresh()

    def prepare(self, shown: Shown) -> None:
        """Do ahead, after `settle`, what the feedback of a video just shown will need whatever it tells."""
        watched, reranker = self._history.watched, self.reranker
        if watched.n_watched == watched.capacity:
            return
        try:
            watched.prepare(shown.item)
            if reranker is None or shown.dense_version != reranker.dense_version:
                return
            if shown.row_R is not None and shown.token_F is not None and not reranker.stale:
                reranker.prepare(shown.row_R, shown.token_F)
        except Exception as error:  # its feedback meets the same, and says so
            self._telemetry.swallowed(error)

    def apply(self, feedback: Feedback) -> Applied:
        """Take a feedback into the watched list, after `settle`, and work out what it changed there."""
        if self._history.needs_room(feedback):
            self._evict()
        applied = self._history.apply(feedback)
        shown, change = applied.shown, applied.change
        if self.reranker is None or shown is None or change is None:
            return applied
        if applied.outcome is Outcome.APPENDED:
            same = shown.dense_version == self.reranker.dense_version
            row_R, token_F = (shown.row_R, shown.token_F) if same else (None, None)
            if row_R is not None and row_R.shape != self.reranker.rows.rows.shape[1:]:
                row_R = None  # a state file may hold anything
            gap_ms = self._history.watched.gap_ms(change.first_slot)
            values = None if token_F is None else {**shown.item, **applied.observed, "gap_ms": gap_ms}
            self.reranker.appended(change, row_R, shown.rows_revision, token_F, values)
        else:
            self.reranker.changed(change)
        self._refresh()
        return applied

    def _evict(self) -> None:
        change = self._history.watched.evict_if_full()
        if change.dropped:
            self._telemetry.metrics.add("kir.edge.watched.evictions", change.dropped)
        if self.reranker is not None:
            self.reranker.changed(change)

    def _refresh(self) -> None:
        reranker = self.reranker
        if reranker is None or not reranker.stale:
            return
        try:
            reranker.refresh()
        except Exception as error:  # the swipe tries once more and says engine_error
            self._telemetry.swallowed(error)
