"""The golden session: page bytes, feedback, clock and device state in; scores and choices out.

Any edge in any language replays it: feed the steps in order, and at each swipe compare. What happens at a swipe:
the candidates are the page's videos not shown yet, in server order; the choice is the highest value (the fused score),
ties to the earlier in server order; where `ahead` stands, `contract.beam` searches the same candidates by that plan;
the chosen video counts as shown; then `WatchedList.evict_if_full`.
A feedback step appends its video (with the page's columns and pXTR) to the watched list.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ManifestError
from contract.typed import check_types
from contract.vocabulary import SIGNALS

FORMAT = "kir-golden-session/1"
LOGIT_MIN = np.float32(-80.0)  # a chance of 2e-35; exp of more would overflow, to the same order and a warning


@dataclass(frozen=True)
class PageStep:
    at_ms: int
    page: bytes
    kind: str = "page"


@dataclass(frozen=True)
class FeedbackStep:
    """signals: name -> 0 | 1; left-out signals were not observed. play_time_ms -1 = not observed."""

    at_ms: int
    video_id: int
    shown_at_ms: int
    play_time_ms: int
    signals: Mapping[str, int]
    kind: str = "feedback"


@dataclass(frozen=True)
class Ahead:
    """What `contract.beam` finds at a swipe, nothing of it shown: the best list and its ListReward."""

    beams: int
    depth: int
    stability: float
    video_ids: Sequence[int]
    reward: float


@dataclass(frozen=True)
class SwipeStep:
    """buffered_ms: per candidate of `video_ids`, -1 = not told. scores: [len(video_ids)][T] logits.

    ahead: a search over the same candidates, None where none is told. The choice is NextOne's all the same.
    """

    at_ms: int
    network: int
    decoder: int
    swipe_index: int
    video_ids: Sequence[int]
    buffered_ms: Sequence[int]
    scores: Sequence[Sequence[float]]
    values: Sequence[float]
    choice: int
    ahead: Ahead | None = None
    kind: str = "swipe"


Step = PageStep | FeedbackStep | SwipeStep


@dataclass(frozen=True)
class GoldenSession:
    dense_version: str
    rows_revision: int
    user_id: int
    steps: Sequence[Step] = field(default_factory=tuple)

    def to_bytes(self) -> bytes:
        steps = []
        for step in self.steps:
            body = asdict(step)
            if isinstance(step, PageStep):
                body["page"] = base64.b64encode(step.page).decode()
            steps.append(body)
        data = {
            "format": FORMAT,
            "dense_version": self.dense_version,
            "rows_revision": self.rows_revision,
            "user_id": self.user_id,
            "steps": steps,
        }
        return json.dumps(data, sort_keys=True, allow_nan=False).encode()

    @staticmethod
    def from_bytes(raw: bytes, where: str = "golden session") -> GoldenSession:
        """Raises ManifestError for anything `to_bytes` does not write."""
        try:
            data = json.loads(raw)
            if data["format"] != FORMAT:
                raise ManifestError("another golden session format", where=where, got=data["format"], allowed=FORMAT)
            steps = tuple(_checked(_step(step)) for step in data["steps"])
            session = GoldenSession(data["dense_version"], data["rows_revision"], data["user_id"], steps)
            check_types(session)
            return session
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
            raise ManifestError("golden session is malformed", where=where, got=str(error)) from None


def _step(data: Mapping[str, Any]) -> Step:
    body = dict(data)
    kind = body.pop("kind")
    if kind == "page":
        return PageStep(at_ms=body["at_ms"], page=base64.b64decode(body["page"], validate=True))
    if kind == "feedback":
        unknown = set(body["signals"]) - set(SIGNALS)
        if unknown:
            raise KeyError(f"unknown signals {sorted(unknown)}")
        return FeedbackStep(**body)
    if kind == "swipe":
        ahead = body.pop("ahead", None)
        return SwipeStep(**body, ahead=None if ahead is None else Ahead(**ahead))
    raise KeyError(f"unknown step kind '{kind}'")


def _checked(step: Step) -> Step:
    """The step. Raises TypeError for values of another type, ValueError for lists that do not fit each other."""
    check_types(step)
    for name in ("at_ms", "shown_at_ms", "play_time_ms"):
        limit = 2**31 if name == "play_time_ms" else 2**63  # int32 and int64 columns
        if getattr(step, name, 0) >= limit:
            raise ValueError(f"{name} out of range")
    if isinstance(step, SwipeStep):
        if step.ahead is not None:
            check_types(step.ahead)
        n = len(step.video_ids)
        if not n == len(step.buffered_ms) == len(step.scores) == len(step.values):
            raise ValueError("video_ids, buffered_ms, scores and values differ in length")
        if len({len(scores) for scores in step.scores}) > 1 or step.choice not in step.video_ids:
            raise ValueError("scores differ in length, or the choice is no candidate")
    return step


def fused_values(scores_NT: NDArray[np.float32], weights_T: NDArray[np.float32]) -> NDArray[np.float32]:
    """Σ weight · sigmoid(logit): float32 [N]. The one fusion every edge uses; weights come from the manifest."""
    chances_NT = np.maximum(scores_NT, LOGIT_MIN)  # a copy, and the rest in place: a swipe waits
    np.negative(chances_NT, out=chances_NT)
    np.exp(chances_NT, out=chances_NT)
    np.add(chances_NT, 1.0, out=chances_NT)
    np.reciprocal(chances_NT, out=chances_NT)
    values_N: NDArray[np.float32] = chances_NT.dot(weights_T)
    return values_N.astype(np.float32, copy=False)


def rankings_agree(expected_N: NDArray[Any], got_N: NDArray[Any], tolerance: float) -> bool:
    """Same order, except where expected values are closer than twice the tolerance (ties below it)."""
    order = np.argsort(-np.asarray(got_N), kind="stable")
    ranked = np.asarray(expected_N)[order]
    # In got's order no expected value may exceed an earlier one by more than what both errors can explain.
    return bool((ranked <= np.minimum.accumulate(ranked) + 2 * tolerance).all())
