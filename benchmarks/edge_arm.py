"""The reranker's arms of the closed loop and of the replay: the edge runtime as shipped, on the session's clock."""

from __future__ import annotations

from typing import Any

from contract.errors import KirError
from contract.page import Page
from contract.vocabulary import SIGNALS
from edge import (
    BeamPlan,
    ChoicePolicy,
    DeviceState,
    EdgeSession,
    Engine,
    FakeClock,
    Feedback,
    PoolConfig,
    SessionConfig,
)

PRELOAD_MS = 5_000
NEXT_ONE = ChoicePolicy()


def signals_of(values: Any) -> dict[str, bool]:
    """int8 [len(SIGNALS)] -> name: bool, the unobserved (-1) left out."""
    return {name: bool(value) for name, value in zip(SIGNALS, values, strict=True) if value >= 0}


def deepest_plan(engine: Engine, stability: float = 0.95) -> BeamPlan | None:
    """As many beams and places as the model's place graph holds; None when the model can't search lists."""
    if engine.list_reward is None or engine.manifest.buckets("place") != engine.buckets or not engine.beams:
        return None
    return BeamPlan(engine.beams, engine.placed + 1, stability)


class EdgeChooser:
    """An `EdgeSession` behind the closed loop's `Chooser`, on an engine that all arms share, one after the other.

    per_swipe   feedback reaches the session at once; otherwise with the next page, and the session's clock stands still
                in between: the reranker knows what it knew when the page arrived (only its swipe count goes on)
    network     the device's at every swipe
    policy      how the session chooses; NextOne without a limit by default
    preloaded   so many of the remaining candidates, in the server's order, the player tells as preloaded; 0: it tells
                nothing
    Raises KirError when the model does not choose, or does not as the policy says: a fallback would look like a model
    without worth.
    """

    def __init__(
        self,
        engine: Engine,
        user_id: int,
        session_id: int,
        start_ms: int,
        per_swipe: bool,
        network: int = 0,
        policy: ChoicePolicy = NEXT_ONE,
        preloaded: int = 0,
    ):
        # Every arm chooses from the same page.
        one_page = SessionConfig(pool=PoolConfig(max_pages=1), policy=policy)
        self._clock = FakeClock(wall_ms=start_ms)
        self._session = EdgeSession(user_id, engine, clock=self._clock, config=one_page, session_id=session_id)
        self._session.start()
        self._per_swipe = per_swipe
        self._page: Page | None = None
        self._late: list[Any] = []
        self._network, self._preloaded = network, preloaded

    def page(self, page: Page, now_ms: int) -> None:
        self._at(now_ms)
        for feedback in self._late:
            self._session.feedback(feedback)
            self._session.maintain()
        self._late.clear()
        self._page = page
        self._session.on_page(page)

    def choose(self, remaining: list[int], now_ms: int) -> int:
        if self._per_swipe:
            self._at(now_ms)
        choice = self._session.next(self.device(remaining))
        self._session.maintain()
        problem = choice.reason or (choice.search.problem if choice.search else "") or ", ".join(choice.relaxed)
        if problem:
            raise KirError("the model did not choose as it should", where=choice.page_id, got=problem)
        if choice.candidate_index not in remaining:
            raise AssertionError(f"the edge showed candidate {choice.candidate_index} twice")
        return choice.candidate_index

    def device(self, remaining: list[int]) -> DeviceState:
        """What the simulated player tells at a swipe; remaining: indices in server order."""
        assert self._page is not None
        held = self._page.candidates.video_id[sorted(remaining)[: self._preloaded]]
        return DeviceState(network=self._network, buffered_ms={int(video_id): PRELOAD_MS for video_id in held})

    def observe(self, index: int, response: Any, shown_at_ms: int, now_ms: int) -> None:
        assert self._page is not None
        if self._per_swipe:
            self._at(now_ms)
        play_time_ms = None if response.play_time_ms < 0 else int(response.play_time_ms)
        feedback = Feedback(
            int(self._page.candidates.video_id[index]),
            play_time_ms,
            signals_of(response.signals),
            has_next=response.has_next,
            shown_at_ms=shown_at_ms,
        )
        if self._per_swipe:
            self._session.feedback(feedback)
        else:
            self._late.append(feedback)

    def _at(self, now_ms: int) -> None:
        self._clock.advance(max(0, now_ms - self._clock.wall_ms()))
