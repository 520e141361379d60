"""What the app hands in at a swipe and gets back: device state, feedback, choice, and the reasons of a fallback.

All are plain frozen values, safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from contract.checks import INT32_MAX, INT64_MAX, UINT64_MAX, check_flag, check_number, check_whole, plain
from contract.errors import InputError
from contract.vocabulary import DECODERS, NETWORKS, SIGNALS

_NETWORK = f"device: network, an index into {', '.join(NETWORKS)}"
_DECODER = f"device: decoder, an index into {', '.join(DECODERS)}"


class Chooser(StrEnum):
    """Who chose, as events name it."""

    MODEL = "model"
    SERVER_ORDER = "server_order"


class Reason(StrEnum):
    """Why the model did not choose. `rows_status` is told with the page's status: "rows_status:no_live_version"."""

    NO_MODEL = "no_model"
    CORRUPT_MODEL = "corrupt_model"
    ROWS_STATUS = "rows_status"
    VERSION_MISMATCH = "version_mismatch"
    SPEC_MISMATCH = "spec_mismatch"
    NO_ROWS = "no_rows"
    ENGINE_ERROR = "engine_error"
    NON_FINITE_SCORES = "non_finite_scores"


class Outcome(StrEnum):
    """What became of a feedback."""

    APPENDED = "appended"  # the video joined the watched list
    AMENDED = "amended"  # its token was worked out again
    LOGGED = "logged"  # too late for the watched list: reported to the server only
    STALE = "stale"  # newer revisions told all of it already: reported only
    UNKNOWN = "unknown"  # this session never showed the video: dropped


@dataclass(frozen=True)
class DeviceState:
    """The device at a swipe.

    network, decoder  indices into vocabulary.NETWORKS and DECODERS; 0 = unknown
    buffered_ms       video id -> preloaded milliseconds; videos left out are "not told"
    volume            0 … 1, landscape: orientation; None = not observed. Both leave the device by opt-in only
    Raises InputError for values of another type or out of range.
    """

    network: int = 0
    decoder: int = 0
    buffered_ms: Mapping[int, int] = field(default_factory=dict)
    volume: float | None = None
    landscape: bool | None = None

    def __post_init__(self) -> None:
        check_whole(_NETWORK, self.network, 0, len(NETWORKS) - 1)
        check_whole(_DECODER, self.decoder, 0, len(DECODERS) - 1)
        if not isinstance(self.buffered_ms, Mapping):
            raise InputError("device: buffered_ms is a mapping of video ids", got=type(self.buffered_ms).__name__)
        for video_id, buffered_ms in self.buffered_ms.items():
            check_whole("device: a video id of buffered_ms", video_id, 0, UINT64_MAX)
            check_whole("device: buffered_ms of a video", buffered_ms, 0, INT32_MAX)
        check_number("device: volume", self.volume, 0.0, 1.0, optional=True)
        check_flag("device: landscape", self.landscape, optional=True)
        self.__dict__.update(plain(self.__dict__))


@dataclass(frozen=True)
class Feedback:
    """What was done with a shown video. None and left-out signals mean "not observed", never "no".

    signals      name of vocabulary.SIGNALS -> bool
    revision     amendments of one impression count up from 0; None = one more than the last
    shown_at_ms  Unix milliseconds; None = when the session chose it
    Raises InputError for unknown signals and for values of another type or out of range.
    """

    video_id: int
    play_time_ms: int | None = None
    signals: Mapping[str, bool] = field(default_factory=dict)
    has_next: bool | None = None
    profile_stay_ms: int | None = None
    comment_stay_ms: int | None = None
    revision: int | None = None
    shown_at_ms: int | None = None

    def __post_init__(self) -> None:
        check_whole("feedback: video_id", self.video_id, 0, UINT64_MAX)
        if not isinstance(self.signals, Mapping):
            raise InputError("feedback: signals is a mapping of names", got=type(self.signals).__name__)
        unknown = [name for name in self.signals if name not in SIGNALS]
        if unknown:
            raise InputError("unknown feedback signal", got=unknown, allowed=SIGNALS)
        for name, value in self.signals.items():
            if value != 0 and value != 1:  # bool and numpy's bool, and the 0 and 1 that JSON and SQL have
                raise InputError(f"feedback: signal '{name}'", got=repr(value)[:100], allowed="True, False")
        for name in ("play_time_ms", "profile_stay_ms", "comment_stay_ms", "revision"):
            check_whole(f"feedback: {name}", getattr(self, name), 0, INT32_MAX, optional=True)
        check_whole("feedback: shown_at_ms", self.shown_at_ms, 0, INT64_MAX // 1000, optional=True)
        check_flag("feedback: has_next", self.has_next, optional=True)
        self.__dict__.update(plain(self.__dict__))
        if any(type(value) is not bool for value in self.signals.values()):
            self.__dict__["signals"] = {name: bool(value) for name, value in self.signals.items()}


@dataclass(frozen=True)
class Search:
    """What looking ahead found. problem: "" or why there was no search and NextOne chose; the rest is empty then.

    video_ids   the best list as far as it was searched, the chosen one first: what to preload next
    reward      its ListReward, as the model predicts it
    steps       places that were searched; stability: min/max of the kept rewards at the last one
    ended       "stable", "exhausted" (no candidate left), "depth" or "time"
    search_us   microseconds of the search, without the swipe's own scores
    """

    video_ids: Sequence[int] = ()
    reward: float = 0.0
    steps: int = 0
    stability: float = 0.0
    ended: str = ""
    search_us: float = 0.0
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Choice:
    """The next video and how it was found.

    chooser, reason   "model" and "", or "server_order" and why ("no_model", "rows_status:no_live_version", …)
    considered        ids of the candidates it was chosen from, in server order; the chosen one is among them
    scores_NT         float32 [N, T] logits of `considered`, values_N float32 [N] fused; None when the model did not
                      choose
    variant           the swipe graph's quantised form, as events name it; "+beam" behind it when a search chose
    remaining         indices of the chosen one's page that could have been shown instead
    position          number of the swipe in its session, from 0; seq is the same number in events
    stages_us         microseconds per stage: maintain, features, engine, choice, total; with a beam also search
    search            how the beam search went; None without one (policy NextOne, or the model did not choose)
    relaxed           limits that gave way because nothing else was left: "topic", "author", "preloaded"
    value, best_value  fused value of the chosen one, and of the best that `preloaded_only` alone kept back (itself when
                      none is better); None when the model did not choose. Their difference is what preloading cost by
                      NextOne's measure; with a beam it holds what looking ahead gave up for now as well
    """

    video_id: int
    page_id: str
    candidate_index: int
    chooser: Chooser
    reason: str
    position: int
    considered: Sequence[int]
    remaining: Sequence[int]
    scores_NT: NDArray[np.float32] | None = None
    values_N: NDArray[np.float32] | None = None
    dense_version: str = ""
    variant: str = ""
    rows_revision: int = 0
    stages_us: Mapping[str, float] = field(default_factory=dict)
    search: Search | None = None
    relaxed: Sequence[str] = ()
    value: float | None = None
    best_value: float | None = None


@dataclass(frozen=True)
class PageReport:
    """What became of an arrived page: candidates added to the pool, and why the model can't score it ("" = it can).

    default_rows: entries (of users, candidates and watched videos) for which the server had no row of its own.
    """

    page_id: str
    added: int
    reason: str = ""
    default_rows: int = 0
    activated: str = ""
