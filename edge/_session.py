"""EdgeSession: the phone's side of a session, from pages and feedback to the next video at every swipe.

    session = EdgeSession(user_id=1, store=ModelStore(cache, cdn), pages=PageClient("host:port"))
    session.start(); session.fetch_page()
    choice = session.next(DeviceState())           # show it …
    session.maintain()                             # … and only then do what need not be waited for
    session.feedback(Feedback(choice.video_id, play_time_ms=8_000, signals={"like": True}))

The swipe path is `next`: it raises PoolExhausted and nothing else; whatever fails ends in the server's order.
Not thread-safe: one thread drives a session. Pages are fetched ahead and feedback is uploaded by threads of their own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from contract.beam import BeamPlan
from contract.errors import InputError, IntegrityError, KirError, PoolExhausted, ServerError
from contract.page import Page, decode_page, parse_page
from contract.rows import INT8
from contract.v1 import page_pb2
from edge._ahead import unfit_plan
from edge._choice import Decision, Situation, TimerNs, choose, look_ahead, make_ready, scores_of
from edge._client import PageSource, Prefetcher
from edge._clock import Clock, SessionTime, SystemClock
from edge._engine import Engine
from edge._explain import Explanation, explain
from edge._features import unfit_reason, watched_item
from edge._history import Shown, WatchHistory
from edge._installed import InstalledModel
from edge._policy import BEAM, About, ChoicePolicy, about, limits_now
from edge._pool import CandidatePool, PoolConfig, PooledPage
from edge._ranking import Ranking, rank
from edge._reranker import Reranker, ScoredPage
from edge._store import ModelStore
from edge._types import Choice, DeviceState, Feedback, Outcome, PageReport, Reason, Search
from edge._upload import FeedbackUploader
from edge._wire import Impression, PageRequest, feedback_event


@dataclass(frozen=True)
class SessionConfig:
    """policy: how the next video is chosen; watched_capacity: L until a model brings its own; opted_in: the user lets
    opt_in fields leave; retry_ms: pause after a page that could not be fetched.
    """

    pool: PoolConfig = field(default_factory=PoolConfig)
    policy: ChoicePolicy = field(default_factory=ChoicePolicy)
    page_size: int = 0
    row_encoding: str = INT8
    watched_capacity: int = 50
    opted_in: bool = False
    retry_ms: int = 2_000
    allow_no_delegate: bool = False


class _Fit(NamedTuple):
    scored: ScoredPage | None
    reason: str
    activated: str = ""


class EdgeSession:
    """One user's session on this device.

    store     where models come from: a ModelStore, one InstalledModel, or None (server order only); an Engine that is
              loaded already serves sessions one after the other
    pages     where pages come from; None: the app calls `on_page` itself
    uploader  takes feedback events; None: nothing is reported
    timer_ns  measures stages and the policy's budget, in nanoseconds
    Public to read: pool, session_id, position (videos shown), last_error (what was swallowed last), default_rows.
    """

    def __init__(
        self,
        user_id: int,
        store: ModelStore | InstalledModel | Engine | None = None,
        pages: PageSource | None = None,
        uploader: FeedbackUploader | None = None,
        *,
        clock: Clock | None = None,
        config: SessionConfig | None = None,
        session_id: int | None = None,
        timer_ns: TimerNs = time.perf_counter_ns,
    ):
        self.config = config or SessionConfig()
        self.user_id = user_id
        self.session_id = secrets.randbits(63) if session_id is None else session_id  # a new one per session
        self.pool = CandidatePool(self.config.pool)
        self.position = 0
        self.last_error: Exception | None = None
        self.default_rows = 0
        self._store, self._pages, self._uploader = store, pages, uploader
        self._prefetcher = None if pages is None else Prefetcher(pages)
        self._clock = clock or SystemClock()
        self._timer_ns = timer_ns
        self._time = SessionTime(self._clock)
        self._history = WatchHistory(self.config.watched_capacity)
        self._reranker: Reranker | None = None
        self._offered: Engine | None = None
        self._no_model_reason = str(Reason.NO_MODEL)
        self._recent: list[About] = []
        self._last: tuple[PooledPage, int, int] | None = None  # page, candidate and time of the last choice
        self._device = DeviceState()
        self._last_request: PageRequest | None = None
        self._evict_due = False
        self._ask_after_ms = 0

    # -- the model

    def start(self) -> str:
        """Load the active model. Returns "" or why there is none: "no_model", "corrupt_model". Pages work anyway."""
        try:
            if self._store is None:
                return self._no_model_reason
            engine = self._engine(self._store)
            if isinstance(self._store, ModelStore) and self._store.refused:
                self.last_error = self._store.refused[0]  # an older model stands in for it
        except KirError as error:
            corrupt = isinstance(error, IntegrityError) or isinstance(error.__cause__, IntegrityError)
            self._no_model_reason = str(Reason.CORRUPT_MODEL if corrupt else Reason.NO_MODEL)
            self.last_error = error
            return self._no_model_reason
        self._history.watched = self._history.resized(engine.capacity)
        self._reranker = Reranker(engine, self._history.watched)
        self._prepare_search(engine)
        return ""

    def _prepare_search(self, engine: Engine) -> None:
        """Load what the search needs, off the swipe path. Without it NextOne chooses; `last_error` says why."""
        if self.config.policy.mode != BEAM:
            return
        try:
            _, error = unfit_plan(engine, self.config.policy.plan)
            if error is not None:
                raise error
            engine.load_place()
        except Exception as error:  # the model serves NextOne as well as before
            self.last_error = error

    def _engine(self, store: ModelStore | InstalledModel | Engine) -> Engine:
        if isinstance(store, Engine):
            return store
        installed = store.active() if isinstance(store, ModelStore) else store
        return Engine(installed, allow_no_delegate=self.config.allow_no_delegate)

    @property
    def dense_version(self) -> str:
        """The model at work; "" when there is none."""
        return self._reranker.dense_version if self._reranker else ""

    @property
    def n_watched(self) -> int:
        """Videos in the watched list."""
        return self._history.watched.n_watched

    def update(self) -> str | None:
        """Download what the CDN calls current and offer it. Returns its version, None when nothing is new.

        Raises as the store does; the running model stays.
        """
        if not isinstance(self._store, ModelStore):
            return None
        version = self._store.update()
        if version is None or version in (self._offered.dense_version if self._offered else "", self.dense_version):
            return None
        self.offer(self._store.load(version))
        return version

    def offer(self, installed: InstalledModel) -> None:
        """A model to take over with the first page that fits it. Raises as `Engine` when it can't run here."""
        self._offered = Engine(installed, allow_no_delegate=self.config.allow_no_delegate)

    # -- pages

    def page_request(self) -> PageRequest:
        """What to ask the server for now: models held (the offered one first), the watched list, what not to send."""
        engines = [self._offered, self._reranker.engine if self._reranker else None]
        held = [(e.dense_version, e.spec.fingerprint) for e in engines if e is not None]
        self._last_request = PageRequest(
            user_id=self.user_id,
            session_id=self.session_id,
            held_models=held,
            watched=self._history.entries(),
            exclude_video_ids=self.pool.excluded(self._clock.monotonic_ms()),
            page_size=self.config.page_size,
            row_encoding=self.config.row_encoding,
            network=self._device.network,
            client_time_ms=self._clock.wall_ms(),
        )
        return self._last_request

    def fetch_page(self) -> PageReport:
        """Ask and wait. Raises ServerUnavailable, ServerError or PageError; the pool is as it was then."""
        if self._pages is None:
            raise ServerError("this session has no page source", fix="give it a PageClient, or call on_page")
        request = self.page_request()
        return self.on_page(self._pages.get_page(request), request)

    def on_page(self, data: bytes | page_pb2.Page | Page, request: PageRequest | None = None) -> PageReport:
        """Take in a page. request: the one it answers (default: the last made), whose watched list its rows are of.

        A page boundary: an offered model that the page fits takes over here. Raises PageError for a page that is not
        one (the pool goes on); a page that no model can score joins the pool in server order, with the reason.
        """
        if isinstance(data, bytes):
            data = parse_page(data)
        page = decode_page(data) if isinstance(data, page_pb2.Page) else data
        self._settle()
        request = request or self._last_request
        fit = self._fit(page, request.watched_ids if request else [])
        now_ms = self._clock.monotonic_ms()
        added = self.pool.add(page, now_ms, fit.scored, fit.reason)
        default_rows = fit.scored.features.default_rows if fit.scored else 0
        self.default_rows += default_rows
        return PageReport(page.page_id, added, fit.reason, default_rows, fit.activated)

    def _fit(self, page: Page, request_ids: list[int]) -> _Fit:
        """Let the offered model, then the running one, work out the page; a failure is a reason, never an exception."""
        reason = self._no_model_reason
        candidates = [self._offered, self._reranker.engine if self._reranker else None]
        for engine in (engine for engine in candidates if engine is not None):
            reason = unfit_reason(engine.spec, engine.dense_version, page)
            if reason:
                continue
            takes_over = engine is self._offered
            reranker = self._reranker
            if takes_over or reranker is None:
                reranker = Reranker(engine, self._history.resized(engine.capacity))
            self._prepare_search(engine)
            try:
                scored = reranker.open_page(page, request_ids)
            except Exception as error:  # a broken model or page must not cost the candidates
                self.last_error, reason = error, str(Reason.ENGINE_ERROR)
                continue
            if takes_over:
                self._take_over(reranker)
            return _Fit(scored, "", reranker.dense_version if takes_over else "")
        return _Fit(None, reason)

    def _take_over(self, reranker: Reranker) -> None:
        self.pool.unscore(str(Reason.VERSION_MISMATCH))
        self._history.watched = reranker.watched
        self._reranker, self._offered = reranker, None
        try:
            if isinstance(self._store, ModelStore):
                self._store.activate(reranker.dense_version)
        except KirError as error:  # it runs from memory; the next start decides again
            self.last_error = error

    # -- swipes

    def next(self, device: DeviceState | None = None) -> Choice:
        """The next video. Raises PoolExhausted when nothing is left, and nothing else."""
        start = self._timer_ns()
        self._device = device or self._device
        self._settle()
        tier = self._tier()
        settled = self._timer_ns()
        now_ms = self._time.now_ms()
        return self._commit(self._decide(tier, now_ms), now_ms, start, settled)

    def _decide(self, tier: list[PooledPage], now_ms: int) -> Decision:
        return choose(tier, self._reranker, self._situation(now_ms))

    def _situation(self, now_ms: int) -> Situation:
        return Situation(now_ms, self._device, self.position, self.config.policy, self._recent, self._timer_ns)

    def look_ahead(
        self, plan: BeamPlan, device: DeviceState | None = None, first: Collection[int] | None = None
    ) -> Search:
        """The list that a plan finds now, for the player to preload; nothing is shown. No time limit.

        first: video ids that may stand first; None: those within the policy's limits. A search that can't be has a
        `problem`, a reason as of `Choice`. Raises PoolExhausted, and InputError when none of `first` is left.
        """
        self._device = device or self._device
        self._settle()
        tier, reranker = self._tier(), self._reranker
        if reranker is None or tier[0].scored is None:
            return Search(problem=tier[0].reason)
        now = self._situation(self._time.now_ms())
        allowed_N = limits_now(now.policy, tier, now.recent, now.device).allowed_N
        if first is not None:
            allowed_N = np.array([page.video_ids[i] in first for page in tier for i in page.remaining], bool)
            if not allowed_N.any():
                raise InputError("none of these candidates is left", got=sorted(first))
        try:
            make_ready(reranker, now)
            scores_NT = scores_of(reranker, tier, self._device)
        except Exception as error:  # as in a swipe
            self.last_error = error
            return Search(problem=str(Reason.ENGINE_ERROR))
        found = look_ahead(tier, reranker, now, scores_NT, plan, allowed_N)
        self.last_error = found.error or self.last_error
        return found.search

    def ranking(self, device: DeviceState | None = None) -> Ranking:
        """The candidates left in the order in which NextOne would show them now; nothing is shown.

        Costs a swipe. Raises PoolExhausted.
        """
        self._device = device or self._device
        self._settle()
        found, error = rank(self._tier(), self._reranker, self._situation(self._time.now_ms()))
        self.last_error = error or self.last_error
        return found

    def explain(self, video_id: int) -> Explanation:
        """Which inputs moved the value of a candidate left in the pool, or of the video shown last; see `Explanation`.

        The last one is explained as of its choice: call it before its feedback and `maintain`. Off the swipe path: some
        dozens of runs of small graphs. Raises InputError when no model scores the video, and what the engine raises.
        """
        now = self._situation(self._time.now_ms())
        found = next(((p, i) for p in self.pool.pages for i in p.remaining if p.video_ids[i] == video_id), None)
        if found is None and self._last is not None and self._last[0].video_ids[self._last[1]] == video_id:
            found, now = self._last[:2], replace(now, now_ms=self._last[2], swipe_index=self.position - 1)
        return explain(self._reranker, found, video_id, now)

    def _tier(self) -> list[PooledPage]:
        try:
            return self.pool.tier(self._clock.monotonic_ms())
        except PoolExhausted:
            self._take_arrived()
            self._ask()
            return self.pool.tier(self._clock.monotonic_ms())

    def _commit(self, decision: Decision, now_ms: int, start: int, settled: int) -> Choice:
        page, index = decision.page, decision.index
        if decision.error is not None:
            self.last_error = decision.error
        self.pool.shown(page, index)
        self._last = page, index, now_ms
        by_model = self._reranker if decision.values_N is not None else None
        end = self._timer_ns()
        stages = {
            "maintain": (settled - start) / 1e3,
            "features": decision.features_us,
            "engine": decision.engine_us,
            **({"search": decision.search.search_us} if decision.search else {}),
        }
        total = (end - start) / 1e3
        stages |= {"choice": total - sum(stages.values()), "total": total}
        choice = Choice(
            video_id=page.video_ids[index],
            page_id=page.page.page_id,
            candidate_index=index,
            chooser=decision.chooser,
            reason=decision.reason,
            position=self.position,
            considered=decision.considered,
            remaining=tuple(page.remaining),
            scores_NT=decision.scores_NT,
            values_N=decision.values_N,
            dense_version=by_model.dense_version if by_model else "",
            variant=by_model.engine.variant + decision.searched if by_model else "",
            rows_revision=page.page.rows_revision if by_model else 0,
            stages_us=stages,
            search=decision.search,
            relaxed=decision.relaxed,
            value=decision.value,
            best_value=decision.best_value,
        )
        scored = page.scored
        self._history.show(
            Shown(
                Impression(self.user_id, self.session_id, choice, now_ms, self._device),
                watched_item(page.page, index, self.position, self._device),
                None if scored is None else scored.features.watched_rows_nR[index],
                page.page.dense_version,
                page.page.rows_revision,
            )
        )
        self._remember(about(page, index))
        self.position += 1
        self._evict_due = True
        return choice

    def _remember(self, shown: About) -> None:
        self._recent.append(shown)
        del self._recent[: max(0, len(self._recent) - self.config.policy.remembers)]

    # -- off the swipe path

    def maintain(self) -> None:
        """What need not be waited for: evict and rebuild after a choice, take in a fetched page, ask for the next one.

        Call it after showing a choice. Never raises; `last_error` keeps what went wrong.
        """
        self._settle()
        self._take_arrived()
        if self.pool.wants_page(self._clock.monotonic_ms()):
            self._ask()

    def _settle(self) -> None:
        """Evict when a choice was returned from a full list, then bring keys and values up to date."""
        if self._evict_due:
            self._evict_due = False
            self._evict()
        self._refresh()

    def _evict(self) -> None:
        change = self._history.watched.evict_if_full()
        if self._reranker is not None:
            self._reranker.changed(change)

    def _refresh(self) -> None:
        try:
            if self._reranker is not None:
                self._reranker.refresh()
        except Exception as error:  # the swipe tries once more and says engine_error
            self.last_error = error

    def feedback(self, feedback: Feedback) -> Outcome:
        """Take in a feedback, work out its token, report it. Late, amended and out-of-order ones are fine."""
        self._settle()
        if self._history.needs_room(feedback):
            self._evict()
        applied = self._history.apply(feedback)
        shown = applied.shown
        if shown is None:
            return applied.outcome
        if self._reranker is not None and applied.change is not None:
            if applied.outcome is Outcome.APPENDED:
                same = shown.dense_version == self._reranker.dense_version
                self._reranker.appended(applied.change, shown.row_R if same else None, shown.rows_revision)
            else:
                self._reranker.changed(applied.change)
            self._refresh()
        if self._uploader is not None:
            stale = applied.outcome is Outcome.STALE
            told = feedback if stale else shown.whole(feedback)
            now_ms, opted_in = self._time.now_ms(), self.config.opted_in
            self._uploader.offer(feedback_event(shown.impression, told, applied.revision, now_ms, opted_in))
        return applied.outcome

    def _take_arrived(self) -> None:
        arrived = self._prefetcher.poll() if self._prefetcher else None
        if arrived is None:
            return
        try:
            added = self.on_page(arrived.page(), arrived.request).added
        except Exception as error:  # nothing that a server sends may stop the swipes
            added, self.last_error = 0, error
        if not added:  # a server that has nothing new is not asked again at once either
            self._ask_after_ms = self._clock.monotonic_ms() + self.config.retry_ms

    def _ask(self) -> None:
        if self._prefetcher is None or self._prefetcher.busy or self._clock.monotonic_ms() < self._ask_after_ms:
            return
        self._prefetcher.ask(self.page_request())

    def wait_page(self, timeout_s: float) -> bool:
        """Wait for a page on its way and take it in; False when none is, or none came in time."""
        if self._prefetcher is None or not self._prefetcher.wait(timeout_s):
            return False
        self._take_arrived()
        return True

    def close(self) -> None:
        """Stop the fetching thread and send what feedback is left (within the uploader's deadline)."""
        if self._prefetcher is not None:
            self._prefetcher.close()
        if self._uploader is not None:
            self._uploader.close()
