"""Who holds the phone: a simulated user, or a scripted one where there is no simulator (real logs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from contract.vocabulary import SIGNALS


class Viewer(Protocol):
    """A user in a session. `now_ms` moves when a video was watched."""

    @property
    def now_ms(self) -> int: ...

    def watch(self, video_id: int) -> Any:
        """A response with play_time_ms, signals int8 [len(SIGNALS)] and has_next."""


class SimulatedViewer:
    """Sessions of one simulated user, one after the other, without end."""

    def __init__(self, world: Any, user_index: int, session_seed: int, start_ms: int):
        self._world, self._user, self._seed = world, user_index, session_seed
        self._item_of = {int(video_id): i for i, video_id in enumerate(world.items.video_id)}
        self._session = world.session(user_index, session_seed, start_ms)

    @property
    def now_ms(self) -> int:
        return int(self._session.now_ms)

    def watch(self, video_id: int) -> Any:
        if self._session.done:
            self._seed += 1
            self._session = self._world.session(self._user, self._seed, self._session.now_ms + 60_000)
        return self._session.step(self._item_of[video_id])


class ScriptedViewer:
    """Plays and signals drawn from fixed rates by a seed. For latency and plumbing on real logs, never for quality."""

    def __init__(self, seed: int, start_ms: int):
        self._rng = np.random.default_rng([seed, 0x5C1])
        self.now_ms = start_ms

    def watch(self, video_id: int) -> Any:
        play_time_ms = int(np.exp(self._rng.normal(8.8, 1.0)))
        signals = np.zeros(len(SIGNALS), np.int8)
        signals[SIGNALS.index("long_view")] = play_time_ms >= 18_000
        signals[SIGNALS.index("like")] = self._rng.random() < 0.017
        self.now_ms += play_time_ms + 500
        return ScriptedResponse(play_time_ms, signals)


class ScriptedResponse:
    has_next = True

    def __init__(self, play_time_ms: int, signals: np.ndarray):
        self.play_time_ms, self.signals = play_time_ms, signals


def make_viewer(config: Mapping[str, Any], user_id: int, seed: int, world: Any = None) -> Viewer:
    """config: {"kind": "sim", "world": SimConfig fields, "start_ms"} or {"kind": "scripted", "start_ms"}."""
    if config["kind"] == "scripted":
        return ScriptedViewer(seed + user_id % 2**31, int(config["start_ms"]))
    index = int(np.flatnonzero(world.users.user_id == np.uint64(user_id))[0])
    return SimulatedViewer(world, index, seed, int(config["start_ms"]))
