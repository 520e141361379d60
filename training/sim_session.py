"""Sessions of simulated users: hidden mood and fatigue, many sessions in lock step or one behind `Session`.

Legend: S sessions, K topics, R mood factors, n items asked about.

    appeal(item) = long-term affinity + drift * (mood - fatigue) . topics(item)

Mood: R factors, standard normal at the start, an AR(1) walk after that, spread over topics by fixed loadings; it is a
function of (session seed, step) alone. Fatigue: a decaying count of the topics shown in this session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from training import sim_behaviour, sim_random
from training.sim_random import hashed, normal_of, uniforms

if TYPE_CHECKING:
    from training.simulator import World

MOOD_FACTORS = 4
MOOD_STRENGTH = 1.4  # standard deviation of a topic's mood, in units of ln play time
MOOD_KEEP = 0.97  # per step: half of it is gone after about 23 videos
FATIGUE_STRENGTH = 0.35
FATIGUE_KEEP = 0.8
SESSION_CAP_MS = 90 * 60_000
SWIPE_MS = (300, 1_500)  # between the end of one play and the start of the next


@dataclass(frozen=True)
class Response:
    """What one shown video brought. signals: int8 [len(SIGNALS)], 0 or 1; has_next: another video is watched after."""

    play_time_ms: int
    signals: NDArray[np.int8]
    has_next: bool


@dataclass(frozen=True)
class Responses:
    """Responses of n sessions: play_time_ms int32 [n], signals int8 [n, len(SIGNALS)], has_next bool [n]."""

    play_time_ms: NDArray[np.int32]
    signals: NDArray[np.int8]
    has_next: NDArray[np.bool_]


class SessionBatch:
    """S independent sessions. user_S: int [S]; seed_S: uint64 [S]; start_ms_S: int64 [S].

    Public to read: step_S, now_ms_S, done_S. Users with several sessions in a batch are independent of themselves.
    """

    def __init__(
        self, world: World, user_S: NDArray[Any], seed_S: NDArray[np.uint64], start_ms_S: NDArray[np.int64]
    ) -> None:
        self.world = world
        self.user_S = np.asarray(user_S, np.int64)
        self.seed_S = hashed(world.config.seed, np.asarray(seed_S))
        self.now_ms_S = np.array(start_ms_S, np.int64)
        self.end_ms_S = self.now_ms_S + SESSION_CAP_MS
        n = len(self.user_S)
        self.step_S = np.zeros(n, np.int64)
        self.done_S = np.zeros(n, bool)
        self._boredom_S = np.full(n, 0.5)
        self._factors_SR = self._noise(np.arange(n), self.step_S)
        self._fatigue_SK = np.zeros((n, world.config.n_topics))
        self._taste_SK, self._style_SA = world.taste_on(self.user_S, self.now_ms_S)

    def _noise(self, rows: NDArray[Any], step: NDArray[Any]) -> NDArray[np.float64]:
        u = uniforms(2 * MOOD_FACTORS, self.seed_S[rows], sim_random.MOOD, step)
        return normal_of(u[:, :MOOD_FACTORS], u[:, MOOD_FACTORS:])

    def _going_on(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Two uniforms of this step whatever is shown: whether to go on, and how long the swipe takes."""
        return uniforms(2, self.seed_S[rows], sim_random.NEXT, self.step_S[rows])

    def hidden_SK(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """drift * (mood - fatigue) of each topic, float64 [n, K]."""
        mood_nK = MOOD_STRENGTH * self._factors_SR[rows] @ self.world.mood_loadings_RK
        return self.world.config.drift * (mood_nK - FATIGUE_STRENGTH * self._fatigue_SK[rows])

    def appeal(self, rows: NDArray[Any], items: NDArray[Any]) -> NDArray[np.float64]:
        """Appeal of items [n] now in the sessions `rows` [n]."""
        world = self.world
        taste_nK = self._taste_SK[rows] + self.hidden_SK(rows)
        styled = (self._style_SA[rows] * world.item_style_IA[items]).sum(axis=1)
        return (taste_nK * world.item_topics_IK[items]).sum(axis=1) + styled + world.item_quality_I[items]

    def responses(self, rows: NDArray[Any], items: NDArray[Any]) -> Responses:
        """The outcome of showing item[j] now in session rows[j]. Changes nothing."""
        calibration = self.world.calibration
        appeal, duration_ms = self.appeal(rows, items), self.world.items.duration_ms[items]
        seed, step = self.seed_S[rows], self.step_S[rows]
        play_ms, signals = sim_behaviour.draw_outcomes(calibration, appeal, duration_ms, seed, items, step)
        boredom = sim_behaviour.next_boredom(self._boredom_S[rows], play_ms, duration_ms)
        goes_on = self._going_on(rows)[:, 0] < sim_behaviour.next_probability(boredom)
        in_time = self.now_ms_S[rows] + play_ms + SWIPE_MS[1] < self.end_ms_S[rows]
        return Responses(play_ms, signals, goes_on & in_time & (step + 1 < self.world.config.max_steps))

    def step(self, rows: NDArray[Any], items: NDArray[Any]) -> Responses:
        """Show item[j] in session rows[j] (each session at most once); moves mood, fatigue, boredom and clock on."""
        found = self.responses(rows, items)
        world = self.world
        duration_ms = world.items.duration_ms[items]
        self._boredom_S[rows] = sim_behaviour.next_boredom(self._boredom_S[rows], found.play_time_ms, duration_ms)
        self._fatigue_SK[rows] = FATIGUE_KEEP * self._fatigue_SK[rows] + world.item_topics_IK[items]
        step = self.step_S[rows]
        swipe_ms = SWIPE_MS[0] + (SWIPE_MS[1] - SWIPE_MS[0]) * self._going_on(rows)[:, 1]
        self.now_ms_S[rows] += found.play_time_ms + swipe_ms.astype(np.int64)
        self.step_S[rows] = step + 1
        fresh = np.sqrt(1.0 - MOOD_KEEP**2) * self._noise(rows, step + 1)
        self._factors_SR[rows] = MOOD_KEEP * self._factors_SR[rows] + fresh
        self.done_S[rows] = ~found.has_next
        return found


class Session:
    """One session as an environment to step through. Not thread-safe.

    Outcomes depend on (world seed, session seed, item, step) and on what was shown before, through fatigue and boredom.
    """

    def __init__(self, world: World, user_index: int, session_seed: int, start_ms: int) -> None:
        self.world = world
        self.user_index = int(user_index)
        self._batch = SessionBatch(
            world, np.array([user_index]), np.array([session_seed], np.uint64), np.array([start_ms], np.int64)
        )
        self._row = np.zeros(1, np.int64)

    @property
    def done(self) -> bool:
        """The user has left."""
        return bool(self._batch.done_S[0])

    @property
    def now_ms(self) -> int:
        """When the next video would be shown, Unix milliseconds."""
        return int(self._batch.now_ms_S[0])

    @property
    def n_shown(self) -> int:
        return int(self._batch.step_S[0])

    def response(self, item_index: int) -> Response:
        """What `step` would return now. Changes nothing. Raises InputError for an unknown item."""
        return _one(self._batch.responses(self._row, self._checked([item_index])))

    def step(self, item_index: int) -> Response:
        """Show the item. Raises InputError after the user has left, or for an unknown item."""
        if self.done:
            raise InputError("the session is over", where=f"user {self.user_index}", got=f"step {self.n_shown}")
        return _one(self._batch.step(self._row, self._checked([item_index])))

    def oracle_value(self, item_indices: Any) -> NDArray[np.float64]:
        """Expected play time in ms of showing each item now, given the TRUE hidden state. For the oracle arm only.

        item_indices: int [n] -> float64 [n].
        """
        items = self._checked(item_indices)
        appeal = self._batch.appeal(np.zeros(len(items), np.int64), items)
        return sim_behaviour.expected_play_ms(self.world.calibration.mu, appeal, self.world.items.duration_ms[items])

    def _checked(self, item_indices: Any) -> NDArray[np.int64]:
        items = np.asarray(item_indices, np.int64)
        n = len(self.world.items)
        if items.size and (items.min() < 0 or items.max() >= n):
            raise InputError("no such item", got=(int(items.min()), int(items.max())), allowed=f"0 … {n - 1}")
        return items


def _one(found: Responses) -> Response:
    return Response(int(found.play_time_ms[0]), found.signals[0], bool(found.has_next[0]))
