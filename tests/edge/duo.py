"""A session of the edge and the slow reference, driven side by side and compared at every swipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from contract.golden import FeedbackStep
from contract.page import parse_page
from contract.spec import FeatureSpec
from contract.vocabulary import SIGNALS
from edge import Choice, Chooser, DeviceState, EdgeSession, FakeClock, Feedback, Outcome
from tests.edge import tiny_model, tiny_page
from tests.edge.golden_session import Reference, scripted_feedback

TOLERANCE = 2e-5
WEIGHTS = np.array([tiny_model.FUSION[task] for task in tiny_model.TASKS], np.float32)


class Duo:
    """Shows what the edge chooses; after each choice both hold the same watched list."""

    def __init__(
        self,
        session: EdgeSession,
        cdn: Path,
        clock: FakeClock,
        version: str = "kir-a",
        spec: FeatureSpec = tiny_model.SPEC,
    ):
        self.session, self.clock, self.version, self.spec = session, clock, version, spec
        folder = cdn / "models" / version
        self.reference = Reference(folder, spec, tiny_model.L, WEIGHTS, max(tiny_model.BUCKETS))
        self.n_pages = self.n_watched = 0

    def page(self, n: int = 8, first: int | None = None, **kwargs: Any) -> None:
        """A page of n new videos for both."""
        self.n_pages += 1
        start = 100 * self.n_pages if first is None else first
        watched = self.session.page_request().watched_ids
        status = "ok" if self.spec.tables else "not_needed"
        options = {"page_id": f"page-{self.n_pages}", "spec": self.spec, "status": status, **kwargs}
        raw = tiny_page.page_bytes(range(start, start + n), self.version, watched, **options)
        report = self.session.on_page(raw)
        assert report.reason == ""
        self.reference.open_page(parse_page(raw))

    def swipe(self) -> Choice:
        """The edge's choice, after its scores were held against the reference's."""
        n = len(self.reference.page.candidates)
        number = self.session.position
        buffered = {int(v): int(v) * 37 % 9_000 for v in self.reference.page.candidates.video_id if v % 3}
        device = DeviceState(number % 7, number % 3, buffered)
        choice = self.session.next(device)
        assert choice.chooser is Chooser.MODEL, (choice.reason, self.session.last_error)
        assert choice.scores_NT is not None
        told = np.array([buffered.get(int(v), -1) for v in self.reference.page.candidates.video_id])
        self.reference.n_swipes = self.reference.number_of[choice.video_id] = number
        scores = self.reference.scores(self.clock.wall_ms(), device.network, device.decoder, told)
        index = {int(v): i for i, v in enumerate(self.reference.page.candidates.video_id)}
        mine = [place for place, video_id in enumerate(choice.considered) if video_id in index]
        theirs = [index[choice.considered[place]] for place in mine]
        np.testing.assert_allclose(choice.scores_NT[mine], scores[theirs], atol=TOLERANCE)
        assert len(mine) <= n
        dropped = self.reference.watched.evict_if_full().dropped
        del self.reference.watched_rows[:dropped]
        return choice

    def feedback(self, choice: Choice) -> FeedbackStep:
        step = scripted_feedback(choice.video_id, self.clock.wall_ms(), self.n_watched)
        self.clock.advance(step.play_time_ms + 300)
        signals = {name: bool(value) for name, value in step.signals.items()}
        outcome = self.session.feedback(
            Feedback(step.video_id, step.play_time_ms, signals, shown_at_ms=step.shown_at_ms)
        )
        assert outcome is Outcome.APPENDED
        self.reference.feedback(step)
        self.n_watched += 1
        return step

    def amend(self, video_id: int, play_time_ms: int, signals: dict[str, bool], before: FeedbackStep) -> Outcome:
        """The same amendment for both; before: the feedback it amends."""
        merged = {**before.signals, **signals}
        observed = [int(merged[name]) if name in merged else -1 for name in SIGNALS]
        self.reference.watched.amend(video_id, {"play_time_ms": play_time_ms, "signals": observed})
        return self.session.feedback(Feedback(video_id, play_time_ms, signals))

    def watch(self, n: int) -> list[FeedbackStep]:
        """n swipes with feedback, with new pages when the last is used up."""
        steps = []
        for _ in range(n):
            if not len(self.session.pool):
                self.page()
            steps.append(self.feedback(self.swipe()))
        return steps
