"""The player behind `kir swipe`, without its terminal: keys in, feedback and swipes out, and what a screen has to show.

One video is shown until it is left: `like` tells at once and the video plays on, `skip` and `through` end it and swipe.
Every feedback keeps the order of the pool before and after it. Not thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from contract.errors import PoolExhausted
from contract.server_order import CLICK_S, LONG_VIEW_S
from edge._choice import TimerNs
from edge._clock import Clock
from edge._explain import Effect, Explanation
from edge._facts import Facts, facts_of
from edge._ranking import Move, Ranking, moves
from edge._session import EdgeSession
from edge._types import Choice, Chooser, DeviceState, Feedback

LIKE, SKIP, THROUGH, HELP, QUIT = "like", "skip", "through", "help", "quit"
TOP_EFFECTS = 5
# What differs between candidates. The user and the device are the same for all, and no reason for one of them.
REASONS = ("video", "server", "watched")


class PlayClock:
    """Time as it passes for the viewer: the device's own, and what was played through in no time."""

    def __init__(self, clock: Clock):
        self._clock, self._ahead_ms = clock, 0

    def monotonic_ms(self) -> int:
        return self._clock.monotonic_ms() + self._ahead_ms

    def wall_ms(self) -> int:
        return self._clock.wall_ms() + self._ahead_ms

    def advance(self, milliseconds: int) -> None:
        self._ahead_ms += milliseconds


def play_signals(play_time_ms: int, duration_ms: int | None) -> dict[str, bool]:
    """The signals that follow from how long a video played, by the contract's own limits."""
    ended = duration_ms is not None and play_time_ms >= duration_ms
    signals = {
        "click": ended or play_time_ms >= CLICK_S * 1000,
        "long_view": ended or play_time_ms >= LONG_VIEW_S * 1000,
    }
    return signals if duration_ms is None else {**signals, "finish": ended}


@dataclass(frozen=True)
class Reorder:
    """A feedback and the order of the same pool before and after it.

    what, video_id  what was done with which video; rows: candidates in the new order, those left after the swipe and,
                    after a swipe, the one that is now shown
    effect          what that video's feedback did to the value of the first row; None when no model ranked
    feedback_us     microseconds until the feedback was taken in
    """

    what: str
    video_id: int
    rows: tuple[Move, ...]
    effect: float | None
    feedback_us: float


@dataclass(frozen=True)
class View:
    """All that a screen shows; equal views need no second painting.

    video, choice   what plays, None while the pool is empty; played_s: whole seconds
    effects         the largest of REASONS, with what the person did to a watched video; groups: all five
    stages          (stage, microseconds) of the last swipe, "total" among them
    """

    user_id: int
    model: str
    left: int
    video: Facts | None = None
    chooser: str = ""
    reason: str = ""
    value: float | None = None
    number: int = 0
    played_s: int = 0
    liked: bool = False
    effects: tuple[tuple[Effect, str], ...] = ()
    groups: tuple[Effect, ...] = ()
    stages: tuple[tuple[str, float], ...] = ()
    reorder: Reorder | None = None
    message: str = ""
    help: bool = False


@dataclass
class Player:
    """The state machine: `begin` once, then `press` for keys and `tick` about once a second, until `done`.

    session: started, with a page or a page source; its clock is `clock`. choices: all that was shown.
    """

    session: EdgeSession
    clock: PlayClock
    device: DeviceState = field(default_factory=DeviceState)
    timer_ns: TimerNs = time.perf_counter_ns
    done: bool = False
    choices: list[Choice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._facts: dict[int, Facts] = {}
        self._did: dict[int, str] = {}
        self._choice: Choice | None = None
        self._why: Explanation | None = None
        self._reorder: Reorder | None = None
        self._since_ms = 0
        self._liked = self._help = False
        self._told: Exception | None = None
        self._message = ""

    def begin(self) -> None:
        """Show the first video, if there is one yet."""
        self._told = self.session.last_error  # of the start, which the caller has told
        self._swipe()

    def press(self, key: str) -> None:
        """LIKE, SKIP, THROUGH, HELP or QUIT; any other key opens the help. The first three need a video that plays."""
        choice = self._choice
        if choice is not None:
            self._message = ""
        if key == QUIT:
            if choice is not None:
                self._feedback(choice, self._played(through=False), has_next=False)
            self.done = True
        elif key == LIKE and choice is not None:
            self._like(choice)
        elif key in (SKIP, THROUGH) and choice is not None:
            self._leave(choice, through=key == THROUGH)
        elif key not in (LIKE, SKIP, THROUGH):
            self._help = not self._help or key != HELP

    def tick(self) -> None:
        """What need not be waited for: take in a page that came, ask for the next, go on when nothing was left."""
        if self.done:
            return
        self.session.maintain()
        if self._choice is None and len(self.session.pool):
            self._swipe()
        error = self.session.last_error
        if error is not None and error is not self._told:
            self._told, self._message = error, str(error)

    # -- feedback

    def _like(self, choice: Choice) -> None:
        """Tell it now, without a play time: that is known when the video ends, and amends this feedback."""
        self._liked = not self._liked
        before = self._ranking()
        took_us = self._send(Feedback(choice.video_id, signals={"like": self._liked}))
        what = self._did[choice.video_id] = "liked" if self._liked else "unliked"
        after = self._ranking()
        if after is not None:
            first = self._explain(after.video_ids[0]) if after.chooser is Chooser.MODEL else None
            self._reorder = self._moved(what, choice.video_id, before, after, first, took_us)

    def _leave(self, choice: Choice, *, through: bool) -> None:
        played_ms = self._played(through)
        before = self._ranking()
        took_us = self._feedback(choice, played_ms, has_next=True)
        what = "watched" if through else "skipped"
        self._did[choice.video_id] = "liked" if self._liked else what
        self._swipe((what, choice.video_id, before, took_us))

    def _played(self, through: bool) -> int | None:
        """Milliseconds of the video that played; None for a whole one whose length no one told."""
        played_ms = self.clock.monotonic_ms() - self._since_ms
        duration_ms = self._shown.duration_ms
        if not through:
            return played_ms if duration_ms is None else min(played_ms, duration_ms)
        if duration_ms is not None:
            self.clock.advance(max(0, duration_ms - played_ms))
        return duration_ms

    def _feedback(self, choice: Choice, played_ms: int | None, *, has_next: bool) -> float:
        """Tell how a video ended; played_ms None: to its end, whatever that is."""
        whole = {"click": True, "long_view": True, "finish": True}
        signals = whole if played_ms is None else play_signals(played_ms, self._shown.duration_ms)
        return self._send(Feedback(choice.video_id, played_ms, {**signals, "like": self._liked}, has_next=has_next))

    def _send(self, feedback: Feedback) -> float:
        begin = self.timer_ns()
        self.session.feedback(feedback)
        return (self.timer_ns() - begin) / 1e3

    # -- swipes

    @property
    def _shown(self) -> Facts:
        assert self._choice is not None
        return self._facts.get(self._choice.video_id, Facts(self._choice.video_id))

    def _swipe(self, left: tuple[str, int, Ranking | None, float] | None = None) -> None:
        """The next video. left: what was done with the one before, the order before that, and its microseconds."""
        self._facts |= facts_of(self.session.pool)
        try:
            choice = self.session.next(self.device)
        except PoolExhausted:
            self._choice = self._why = self._reorder = None
            return
        self.choices.append(choice)
        self._choice, self._liked = choice, False
        self._why = self._explain(choice.video_id) if choice.chooser is Chooser.MODEL else None
        if left is not None:
            what, video_id, before, took_us = left
            self._reorder = self._moved(what, video_id, before, Ranking.of(choice), self._why, took_us)
        self._since_ms = self.clock.monotonic_ms()
        self.session.maintain()

    def _ranking(self) -> Ranking | None:
        try:
            return self.session.ranking(self.device)
        except PoolExhausted:
            return None

    def _explain(self, video_id: int) -> Explanation | None:
        try:
            return self.session.explain(video_id)
        except Exception as error:  # a reason that can't be found must not stop the videos
            self._message = f"no reason: {error}"
            return None

    def _moved(
        self,
        what: str,
        video_id: int,
        before: Ranking | None,
        after: Ranking,
        first: Explanation | None,
        took_us: float,
    ) -> Reorder:
        watched: Sequence[Effect] = () if first is None else first.watched
        effect = next((e.effect for e in watched if e.video_id == video_id), None)
        return Reorder(what, video_id, tuple(moves(before, after)), effect, took_us)

    # -- what is to be seen

    def view(self) -> View:
        """The state now."""
        session, choice, why = self.session, self._choice, self._why
        common = View(
            user_id=session.user_id,
            model=session.dense_version,
            left=len(session.pool),
            reorder=self._reorder,
            message=self._message,
            help=self._help,
        )
        if choice is None:
            return common
        effects = () if why is None else why.top(TOP_EFFECTS, REASONS)
        return replace(
            common,
            video=self._shown,
            chooser=choice.chooser,
            reason=choice.reason,
            value=choice.value,
            number=choice.position + 1,
            played_s=(self._played(through=False) or 0) // 1000,
            liked=self._liked,
            effects=tuple((e, self._did.get(e.video_id or -1, "")) for e in effects),
            groups=() if why is None else why.groups,
            stages=tuple(choice.stages_us.items()),
        )
