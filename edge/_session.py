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
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from contract.beam import BeamPlan
from contract.errors import InputError, PoolExhausted
from contract.page import Page
from contract.v1 import page_pb2
from edge._choice import Decision, Situation, TimerNs, choose, search_now, values_now
from edge._client import PageSource
from edge._clock import Clock, SessionTime, SystemClock
from edge._config import SessionConfig as SessionConfig
from edge._config import check_ids, check_parts
from edge._engine import Engine
from edge._explain import Explanation, explain
from edge._history import Shown, WatchHistory
from edge._installed import InstalledModel
from edge._intake import PageIntake
from edge._keeper import Keeper
from edge._metrics import Metrics
from edge._models import Models
from edge._policy import About, about
from edge._pool import CandidatePool, PooledPage
from edge._ranking import Ranking, rank
from edge._reranker import Reranker
from edge._state import StateFile
from edge._store import ModelStore
from edge._telemetry import Telemetry
from edge._told import Pending, Reporter, choice_of, stages_of
from edge._trace import Trace
from edge._types import Choice, DeviceState, Feedback, Outcome, PageReport, Search
from edge._upload import FeedbackUploader, Offers
from edge._wire import PageRequest


class EdgeSession:
    """One user's session on this device.

    store     where models come from: a ModelStore, one InstalledModel, or None (server order only); an Engine that is
              loaded already serves sessions one after the other
    pages     where pages come from; None: the app calls `on_page` itself
    uploader  takes feedback events; None: nothing is reported
    timer_ns  measures stages and the policy's budget, in nanoseconds
    state     where the watched list, impressions, seen ids and unsent feedback outlive the app; read here, written by
              `maintain` and `close`, never by a swipe (`feedback`, `next`); None: nothing is kept
    trace     takes the spans of the session and is written by `close`; None: nothing is traced, at no cost
    Public to read: metrics, pool, session_id, position (videos shown), last_error (what was swallowed last) and
    default_rows.
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
        state: StateFile | None = None,
        trace: Trace | None = None,
    ):
        self.config = SessionConfig() if config is None else config
        self.user_id = user_id
        self.session_id = secrets.randbits(63) if session_id is None else session_id  # a new one per session
        check_ids(user_id, self.session_id)
        check_parts(
            config=(self.config, SessionConfig), store=(store, ModelStore | InstalledModel | Engine),
            pages=(pages, PageSource), uploader=(uploader, Offers), state=(state, StateFile), trace=(trace, Trace),
        )  # fmt: skip
        self.position = 0
        self._telemetry = Telemetry(trace, timer_ns)
        self._uploader = uploader
        self._clock = clock or SystemClock()
        self._timer_ns = timer_ns
        self._time = SessionTime(self._clock)
        self._history = WatchHistory(self.config.watched_capacity)
        policy, no_delegate = self.config.policy, self.config.allow_no_delegate
        self._models = Models(store, self._history, policy, self._telemetry, allow_no_delegate=no_delegate)
        self._intake = PageIntake(
            pages,
            CandidatePool(self.config.pool),
            self._models,
            self._telemetry,
            self._clock,
            self._request,
            self._values,
            retry_ms=self.config.retry_ms,
        )
        self._recent: list[About] = []
        self._pending: Pending | None = None
        self._shown: Shown | None = None  # the video shown last, until its feedback is prepared for
        self._last: tuple[PooledPage, int, int] | None = None  # page, candidate and time of the last choice
        self._device = DeviceState()
        self._closed = False
        self._keeper: Keeper | None = None
        if state is not None:
            self._keeper = Keeper(state, user_id, self._history, self.pool, uploader, self._telemetry)
            self._keeper.restore(self._clock.wall_ms(), self.config.opted_in)
        self._first_number = self._keeper.number if self._keeper else 0
        self._reporter = Reporter(uploader, self._keeper, self.config.opted_in)
        self._observe(state)

    def _observe(self, state: StateFile | None) -> None:
        """Numbers that other parts keep, for `metrics`; and the uploader's spans."""
        metrics, uploader = self.metrics, self._uploader
        metrics.observe("kir.edge.pool.candidates", lambda: len(self.pool))
        metrics.observe("kir.edge.pool.evictions", lambda: dict(self.pool.evicted))
        metrics.observe("kir.edge.watched.videos", lambda: self.n_watched)
        if uploader is not None:
            results = ("accepted", "duplicates", "rejected", "dropped")
            metrics.observe("kir.edge.uploads", lambda: {name: getattr(uploader, name) for name in results})
            if self._telemetry.trace is not None:
                uploader.on_report = self._telemetry.trace.add
        if state is not None:
            metrics.observe("kir.edge.state.set_aside", lambda: state.set_aside)
            metrics.observe("kir.edge.state.failures", lambda: state.failed)
            metrics.observe("kir.edge.state.dropped", lambda: state.dropped)

    @property
    def metrics(self) -> Metrics:
        """What the session counts, and how long its stages take; `snapshot` from any thread."""
        return self._telemetry.metrics

    @property
    def pool(self) -> CandidatePool:
        """Pages on the phone, and what of them is left to show."""
        return self._intake.pool

    @property
    def last_error(self) -> Exception | None:
        """What was swallowed last."""
        return self._telemetry.last_error

    @property
    def default_rows(self) -> int:
        """Entries of all pages for which the server had no row of its own."""
        return self._intake.default_rows

    # -- the model

    def start(self) -> str:
        """Load the active model. Returns "" or why there is none: "no_model", "corrupt_model". Pages work anyway."""
        return self._models.start()

    @property
    def _reranker(self) -> Reranker | None:
        return self._models.reranker

    @property
    def dense_version(self) -> str:
        """The model at work; "" when there is none."""
        return self._models.dense_version

    @property
    def n_watched(self) -> int:
        """Videos in the watched list."""
        return self._history.watched.n_watched

    def update(self) -> str | None:
        """Download what the CDN calls current and offer it. Returns its version, None when nothing is new.

        Raises as the store does; the running model stays.
        """
        return self._models.update()

    def offer(self, installed: InstalledModel) -> None:
        """A model to take over with the first page that fits it. Raises as `Engine` when it can't run here."""
        self._models.offer(installed)

    # -- pages

    def page_request(self) -> PageRequest:
        """What to ask the server for now: models held (the offered one first), the watched list, what not to send."""
        return self._intake.request()

    def _request(self) -> PageRequest:
        return PageRequest(
            user_id=self.user_id,
            session_id=self.session_id,
            held_models=self._models.held,
            watched=self._history.entries(),
            exclude_video_ids=self.pool.excluded(self._clock.monotonic_ms()),
            page_size=self.config.page_size,
            row_encoding=self.config.row_encoding,
            network=self._device.network,
            client_time_ms=self._clock.wall_ms(),
        )

    def fetch_page(self) -> PageReport:
        """Ask and wait. Raises ServerUnavailable, ServerError or PageError; the pool is as it was then."""
        return self._intake.fetch()

    def on_page(self, data: bytes | page_pb2.Page | Page, request: PageRequest | None = None) -> PageReport:
        """Take in a page. request: the one it answers (default: the last made), whose watched list its rows are of.

        A page boundary: an offered model that the page fits takes over here. Raises PageError for a page that is not
        one (the pool goes on); a page that no model can score joins the pool in server order, with the reason.
        """
        return self._intake.take(data, request)

    def wait_page(self, timeout_s: float) -> bool:
        """Wait for a page and take it in. Where none is on its way and the pool runs dry it asks for one, after the
        pause that follows a failed fetch (`retry_ms`). False when none came in time.
        """
        return self._intake.wait(timeout_s)

    def _values(self, page: PooledPage) -> NDArray[np.float32] | None:
        """Fused values of a page's remaining candidates, as a swipe of now would find them; None when it could not."""
        values_N, error = values_now([page], self._reranker, self._situation(self._time.now_ms()))
        if error is not None:  # the server's order decides what goes
            self._telemetry.swallowed(error)
        return values_N

    # -- swipes

    def next(self, device: DeviceState | None = None) -> Choice:
        """The next video. Raises PoolExhausted when nothing is left, and nothing else."""
        start = self._timer_ns()
        self._take(device)
        self._settle()
        tier = self._tier()
        settled = self._timer_ns()
        now_ms = self._time.now_ms()
        return self._commit(self._decide(tier, now_ms), now_ms, start, settled)

    def _take(self, device: DeviceState | None) -> None:
        """What the app says of the device, from now on. What is none costs no swipe: `last_error` names it."""
        if isinstance(device, DeviceState):
            self._device = device
        elif device is not None:
            self._telemetry.swallowed(
                InputError("session: device", got=repr(device)[:100], allowed="DeviceState, None")
            )

    def _decide(self, tier: list[PooledPage], now_ms: int) -> Decision:
        return choose(tier, self._reranker, self._situation(now_ms))

    def _situation(self, now_ms: int) -> Situation:
        policy, recent = self.config.policy, self._recent
        return Situation(now_ms, self._device, self.position, self._number, policy, recent, self._timer_ns)

    @property
    def _number(self) -> int:
        """The user's running number of the next impression: goes on over restarts, as position does not."""
        return self._first_number + self.position

    def look_ahead(
        self, plan: BeamPlan, device: DeviceState | None = None, first: Collection[int] | None = None
    ) -> Search:
        """The list that a plan finds now, for the player to preload; nothing is shown. No time limit.

        first: video ids that may stand first; None: those within the policy's limits. A search that can't be has a
        `problem`, a reason as of `Choice`. Raises PoolExhausted, and InputError when none of `first` is left.
        """
        self._take(device)
        self._settle()
        tier = self._tier()
        found = search_now(tier, self._reranker, self._situation(self._time.now_ms()), plan, first)
        if found.error is not None:
            self._telemetry.swallowed(found.error)
        return found.search

    def ranking(self, device: DeviceState | None = None) -> Ranking:
        """The candidates left in the order in which NextOne would show them now; nothing is shown.

        Costs a swipe. Raises PoolExhausted.
        """
        self._take(device)
        self._settle()
        found, error = rank(self._tier(), self._reranker, self._situation(self._time.now_ms()))
        if error is not None:
            self._telemetry.swallowed(error)
        return found

    def explain(self, video_id: int) -> Explanation:
        """Which inputs moved the value of a candidate left in the pool, or of the video shown last; see `Explanation`.

        The last one is explained as of its choice: call it before its feedback and `maintain`. Off the swipe path: some
        dozens of runs of small graphs. Raises InputError when no model scores the video, and what the engine raises.
        """
        now = self._situation(self._time.now_ms())
        found = next(((p, i) for p in self.pool.pages for i in p.remaining if p.video_ids[i] == video_id), None)
        if found is None and self._last is not None and self._last[0].video_ids[self._last[1]] == video_id:
            found, before = self._last[:2], self.position - 1
            now = replace(now, now_ms=self._last[2], swipe_index=before, number=self._number - 1)
        return explain(self._reranker, found, video_id, now)

    def _tier(self) -> list[PooledPage]:
        try:
            return self.pool.tier(self._clock.monotonic_ms())
        except PoolExhausted:
            self._intake.take_arrived()
            self._intake.ask()
        try:
            return self.pool.tier(self._clock.monotonic_ms())
        except PoolExhausted:
            self.metrics.add("kir.edge.pool.exhausted")
            raise

    def _commit(self, decision: Decision, now_ms: int, start: int, settled: int) -> Choice:
        page, index = decision.page, decision.index
        if decision.error is not None:
            self._telemetry.swallowed(decision.error)
        self.pool.shown(page, index)
        self._last = page, index, now_ms
        end = self._timer_ns()
        stages = stages_of(decision, start, settled, end)
        if decision.reason:
            self.metrics.add("kir.edge.fallbacks", 1, decision.reason.partition(":")[0])
        self._telemetry.swipe(start, settled, decision.began_ns, end, stages, len(decision.considered))
        choice = choice_of(decision, self.position, self._models.reranker, stages)
        self._pending = Pending(page, page.scored, choice, now_ms, self._device, self._number)
        self.position += 1
        self._models.chosen()
        return choice

    def _note(self) -> None:
        """Take down what the last choice showed: it can wait until the choice is out."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        shown = pending.shown(self.user_id, self.session_id)
        self._history.show(shown)
        self._shown = shown
        if self._keeper is not None:
            self._keeper.shown(shown)
        if self.config.policy.remembers:
            self._recent.append(about(pending.page, pending.choice.candidate_index))
            del self._recent[: -self.config.policy.remembers]

    # -- off the swipe path

    def maintain(self) -> None:
        """What need not be waited for: evict and rebuild after a choice, take in a fetched page, ask for the next one,
        write down what changed, a model that took over included.

        Call it after showing a choice, and when the app is about to be put aside: it is also what saves, and what hands
        feedback to the uploader when there is a state file. Never raises; `last_error` keeps what went wrong.
        """
        with self._telemetry.span("maintain"):
            try:
                self._maintain()
            except Exception as error:  # a player must not stop over what a later call may well do
                self._telemetry.swallowed(error)

    def _maintain(self) -> None:
        self._settle()
        self._intake.take_arrived()
        if self._shown is not None:
            self._models.prepare(self._shown)
            self._shown = None
        if self.pool.wants_page(self._clock.monotonic_ms()):
            self._intake.ask()
        if self._keeper is not None:
            self._keeper.save(self._reranker)
        self._models.tidy()
        self.metrics.fold()

    def _settle(self) -> None:
        if self._pending is not None:
            self._note()
        self._models.settle()

    def feedback(self, feedback: Feedback) -> Outcome:
        """Take in a feedback, work out its token, report it. Late, amended and out-of-order ones are fine.

        Raises InputError for what is no Feedback.
        """
        if not isinstance(feedback, Feedback):
            raise InputError("session: feedback", got=repr(feedback)[:100], allowed="Feedback")
        start = self._timer_ns()
        self._settle()
        applied = self._models.apply(feedback)
        self._reporter.tell(applied, feedback, self._time.now_ms())
        if self._keeper is not None and self._keeper.overdue:  # an app that never calls maintain
            self._keeper.save(self._reranker)
        self._telemetry.stage("feedback", start, self._timer_ns())
        self.metrics.add("kir.edge.feedback", 1, applied.outcome)
        return applied.outcome

    def close(self) -> None:
        """Stop the fetching thread and send what feedback is left: up to 5 s for a page under way, and the uploader's
        deadline after that. What fails is kept in `last_error`; the rest is closed all the same. A second call does
        nothing.
        """
        if self._closed:
            return
        self._closed = True
        steps: list[Callable[[], object]] = [self._note, self._intake.close]
        if self._keeper is not None:  # what is not in the file yet, and with it the last events, before they are sent
            steps.append(partial(self._keeper.save, self._reranker))
        if self._uploader is not None:
            steps.append(self._uploader.close)
        if self._keeper is not None:
            steps.append(partial(self._keeper.close, self._reranker))
        steps.append(self._models.tidy)
        if self._telemetry.trace is not None:
            steps.append(self._telemetry.trace.save)
        for step in steps:
            try:
                step()
            except Exception as error:  # one part that fails must not leave the others open
                self._telemetry.swallowed(error)
