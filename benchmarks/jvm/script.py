"""One session as a script: what is done to an EdgeSession, line by line, and what came of it.

Words of a line are separated by blanks; "-" stands for nothing. Arrays stand in the .npz beside it, by the names that
the lines give. `kir.edge.core.SessionCheck` (android/core/src/check) reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from benchmarks.jvm.cases import Vectors
from benchmarks.jvm.recording import RecordingEngine
from contract.beam import BeamPlan
from contract.errors import PoolExhausted
from contract.page import Page
from edge import DeviceState, EdgeSession, FakeClock, Feedback, SessionConfig


class Script:
    """One session: what is done to it goes to `out`, with what came of it behind each line that says "expect"."""

    def __init__(
        self, engine: RecordingEngine, out: Vectors, config: SessionConfig, start_ms: int, *, with_model: bool = True
    ):
        self.clock = FakeClock(start_ms)
        self.engine, self.out = engine, out
        engine.runs.clear()
        engine.place_error = None
        self.session = EdgeSession(5, engine if with_model else None, clock=self.clock, config=config, session_id=1)
        self.session.start()
        self._pages = 0
        policy, pool = config.policy, config.pool
        plan = policy.plan if policy.mode == "beam" else None
        beam = f"{plan.beams} {plan.depth} {plan.stability}" if plan else "0 0 0"
        limits = f"{policy.author_gap} {policy.topic_gap} {int(policy.preloaded_only)} {policy.buffered_min_ms}"
        self._line(f"policy {limits} {beam}")
        sizes = (pool.max_pages, pool.max_candidates, pool.prefetch_below, pool.seen)
        self._line("pool", *sizes, pool.soft_ttl_swipes, pool.hard_ttl_swipes)
        self._line(f"model {int(with_model)}")
        self._line("offset", self.clock.wall_ms() - self.clock.monotonic_ms())

    def _line(self, *parts: object) -> None:
        self.out.lines.append(" ".join(str(part) for part in parts))

    def advance(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds)
        self._line("at", self.clock.monotonic_ms())

    def page(self, page: Page, *, as_answer: bool = True) -> None:
        """as_answer: to a request of now, whose watched list the page's rows are of."""
        number, self._pages = self._pages, self._pages + 1
        self._keep(page, f"page{number}")
        request = self.session.page_request() if as_answer else None
        self._line("page", number, *(request.watched_ids if request else ()))
        report = self.session.on_page(page, request)
        self._line("expect", report.reason or "-")

    def _keep(self, page: Page, prefix: str) -> None:
        c, out = page.candidates, self.out
        for name in ("video_id", "author_id", "tags", "duration_ms", "upload_age_days", "pxtr"):
            out.add(f"{prefix}/{name}", getattr(c, name))
        out.add(f"{prefix}/profile", page.user_profile)
        names = (page.page_id, page.dense_version, page.spec_fingerprint, page.rows_status)
        numbers = (page.rows_revision, page.soft_ttl_ms, page.hard_ttl_ms)
        user = (page.user_activity, page.user_register_days, page.hour)
        self._line("define", prefix, *(name or "-" for name in names), *numbers, *user)
        for name, table in page.rows.tables.items():
            out.add_bytes(f"{prefix}/{name}/values", table.values)
            out.add_bytes(f"{prefix}/{name}/scales", table.scales)
            self._line("table", prefix, name, table.encoding, table.width)
        for (owner, feature), slots in page.rows.slots.items():
            key = out.add(f"{prefix}/{owner}/{feature}", slots)
            self._line("slots", key, owner, feature, page.rows.feature_table[owner, feature], *slots.shape)

    def next(self, device: DeviceState) -> int | None:
        """A swipe; None when nothing is left."""
        told = [f"{video}:{ms}" for video, ms in device.buffered_ms.items()]
        volume = "-" if device.volume is None else device.volume
        landscape = -1 if device.landscape is None else int(device.landscape)
        self._line("next", device.network, device.decoder, volume, landscape, *told)
        try:
            choice = self.session.next(device)
        except PoolExhausted:
            self._line("expect exhausted")
            return None
        values = "-"
        if choice.values_N is not None:
            values = self.out.add(f"values{choice.position}", choice.values_N)
        search = choice.search
        found = "-" if search is None else f"!{search.problem}" if search.problem else _ids(search.video_ids)
        relaxed = ",".join(choice.relaxed) or "-"
        who = (choice.chooser, choice.reason or "-", relaxed)
        self._line("expect", choice.video_id, *who, _ids(choice.considered), values, found)
        return choice.video_id

    def feedback(self, feedback: Feedback) -> None:
        times = (feedback.play_time_ms, feedback.profile_stay_ms, feedback.comment_stay_ms)
        others = (feedback.shown_at_ms, feedback.revision)
        numbers = [-1 if value is None else value for value in (*times, *others)]
        signals = [f"{name}:{int(value)}" for name, value in feedback.signals.items()]
        self._line("feedback", feedback.video_id, *numbers, *signals)
        outcome = self.session.feedback(feedback)
        self._line("expect", outcome.upper(), self.session.n_watched)

    def ahead(self, plan: BeamPlan, device: DeviceState) -> None:
        told = [f"{video}:{ms}" for video, ms in device.buffered_ms.items()]
        self._line("ahead", plan.beams, plan.depth, plan.stability, device.network, device.decoder, *told)
        found = self.session.look_ahead(plan, device)
        numbers = (float(found.reward), float(found.stability))
        self._line("expect", found.problem or "-", found.ended or "-", *numbers, _ids(found.video_ids))

    def maintain(self) -> None:
        self.session.maintain()
        self._line("maintain")

    def state(self) -> None:
        now, pool = self.clock.monotonic_ms(), self.session.pool
        ids = [page.video_ids[index] for page in pool.pages for index in page.remaining]
        self._line("state")
        self._line("expect", int(pool.wants_page(now)), _ids(ids), _ids(pool.excluded(now)))

    def clear(self) -> None:
        self.session.pool.clear()
        self._line("clear")

    def save(self) -> None:
        for number, run in enumerate(self.engine.runs):
            self._line("run", number, run.name, run.bucket, ",".join(run.inputs), ",".join(run.outputs))
            for side, tensors in (("in", run.inputs), ("out", run.outputs)):
                for name, value in tensors.items():
                    self.out.add(f"run{number}/{side}/{name}", value)
        self.out.save()


def _ids(ids: Sequence[int] | NDArray[Any]) -> str:
    return ",".join(str(int(one)) for one in ids) or "-"
