"""The closed loop: what a way of choosing does to simulated sessions, over the same pages.

    kir bench closed-loop --work demo-out --seeds 5        (after `kir demo --out demo-out`; about a minute)

Every arm shows the same pages to the same sessions (common random numbers: outcomes depend on session, video and step,
not on the arm). The next page comes when half of one was shown, and what was left of it goes, until the user leaves or
the pages run out. Arms:

    random, server  without order; the page's own order
    one_shot        the reranker once per page, at its arrival
    per_swipe       the reranker at every swipe, NextOne: the edge runtime as shipped
    beam            at every swipe, the first of the best list in ListReward, as far as the model's place graph reaches
    preloaded       as per_swipe, but a player holds the next PRELOADED videos of the server's order alone
    oracle          greedy on the true hidden state: what no one can know

A skip is a video played for less than SKIP_MS and not to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from benchmarks.stats import Interval, cluster_bootstrap_mean
from contract.page import Page
from contract.vocabulary import SIGNALS

PLAIN_ARMS = ("random", "server", "one_shot", "per_swipe", "preloaded", "oracle")
ARMS = ("random", "server", "one_shot", "per_swipe", "beam", "preloaded", "oracle")
DIFFERENCE = "(per_swipe vs one_shot) - control"
LIKE, LONG_VIEW, FINISH = (SIGNALS.index(name) for name in ("like", "long_view", "finish"))
SKIP_MS = 3_000
PRELOADED = 3


class Chooser(Protocol):
    """One arm within one session. Candidates are given by their index in the current page."""

    def page(self, page: Page, now_ms: int) -> None:
        """A page arrived; what was left of the last one is gone."""

    def choose(self, remaining: list[int], now_ms: int) -> int:
        """Which of the remaining candidates to show."""

    def observe(self, index: int, response: Any, shown_at_ms: int, now_ms: int) -> None:
        """What the user did with it."""


@dataclass(frozen=True)
class SessionPlan:
    """One session to be lived through by every arm. items[p][i]: the simulator's index of page p's candidate i."""

    seed: int
    user_index: int
    session_seed: int
    start_ms: int
    pages: Sequence[Page]
    items: Sequence[np.ndarray]

    def refresh_after(self, page: int) -> int:
        """Impressions of a page before the next one comes: half of it, and all of the last."""
        n = len(self.pages[page].candidates)
        return n if page == len(self.pages) - 1 else (n + 1) // 2


@dataclass(frozen=True)
class Lived:
    """What one arm made of one session."""

    watch_ms: int
    likes: int
    videos: int
    long_views: int
    skips: int


class ServerOrder:
    def page(self, page: Page, now_ms: int) -> None: ...

    def choose(self, remaining: list[int], now_ms: int) -> int:
        return remaining[0]

    def observe(self, index: int, response: Any, shown_at_ms: int, now_ms: int) -> None: ...


class RandomOrder(ServerOrder):
    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)

    def choose(self, remaining: list[int], now_ms: int) -> int:
        return remaining[int(self._rng.integers(len(remaining)))]


class Oracle(ServerOrder):
    """Greedy on the true hidden state. A strong reference, not a strict bound: greedy is not optimal over a session."""

    def __init__(self, session: Any, plan: SessionPlan):
        self._session, self._plan, self._page = session, plan, -1

    def page(self, page: Page, now_ms: int) -> None:
        self._page += 1

    def choose(self, remaining: list[int], now_ms: int) -> int:
        values = self._session.oracle_value(self._plan.items[self._page][remaining])
        return remaining[int(np.argmax(values))]


def live_session(session: Any, plan: SessionPlan, chooser: Chooser) -> Lived:
    """Walk one session with one arm."""
    watch_ms = likes = videos = long_views = skips = 0
    for number, (page, items) in enumerate(zip(plan.pages, plan.items, strict=True)):
        chooser.page(page, session.now_ms)
        remaining = list(range(len(page.candidates)))
        last = len(remaining) - plan.refresh_after(number)
        while len(remaining) > last and not session.done:
            shown_at_ms = session.now_ms
            index = chooser.choose(remaining, shown_at_ms)
            remaining.remove(index)
            response = session.step(int(items[index]))
            chooser.observe(index, response, shown_at_ms, session.now_ms)
            watch_ms += response.play_time_ms
            likes += int(response.signals[LIKE] == 1)
            long_views += int(response.signals[LONG_VIEW] == 1)
            skips += int(response.play_time_ms < SKIP_MS and response.signals[FINISH] != 1)
            videos += 1
        if session.done:
            break
    return Lived(watch_ms, likes, videos, long_views, skips)


@dataclass(frozen=True)
class ClosedLoopResult:
    """Arm means and paired differences with 95 % intervals, users drawn whole (their sessions correlate)."""

    n_sessions: int
    n_seeds: int
    drift: float
    arms: dict[str, dict[str, float]]
    gains: dict[str, dict[str, Any]]
    per_seed: dict[str, list[float]]
    watch_s: dict[str, list[float]] = field(default_factory=dict)

    def against_control(self, control: ClosedLoopResult, plans: Sequence[SessionPlan]) -> ClosedLoopResult:
        """With the difference of differences: what reacting is worth here minus what it is worth in the control."""

        def gain(result: ClosedLoopResult) -> np.ndarray:
            return np.array(result.watch_s["per_swipe"]) - np.array(result.watch_s["one_shot"])

        users = np.array([plan.user_index for plan in plans])
        difference = gain(self) - gain(control)
        row = {
            "watch_s": cluster_bootstrap_mean(difference, users).to_json(),
            "relative": float(difference.mean() / np.mean(self.watch_s["one_shot"])),
        }
        return replace(self, gains={**self.gains, DIFFERENCE: row})

    def to_json(self) -> dict[str, Any]:
        return {
            "n_sessions": self.n_sessions,
            "n_seeds": self.n_seeds,
            "drift": self.drift,
            "arms": self.arms,
            "gains": self.gains,
            "per_seed": self.per_seed,
        }

    def __str__(self) -> str:
        lines = [f"closed loop, same pages: {self.n_sessions} sessions, {self.n_seeds} seeds, drift {self.drift:g}"]
        lines.append(f"{'arm':<10} {'watch s':>9} {'likes':>7} {'videos':>7} {'long':>6} {'skips':>6}")
        for name, arm in self.arms.items():
            cells = f"{arm['watch_s']:>9.1f} {arm['likes']:>7.3f} {arm['videos']:>7.1f} {arm['long_views']:>6.1f}"
            cells += f" {arm['skips']:>6.2f}"
            lines.append(f"{name:<10} {cells}")
        for name, gain in self.gains.items():
            more = [f"{what} {Interval(**gain[what])}" for what in ("likes", "skips", "videos") if what in gain]
            line = f"{name:<34} watch s {Interval(**gain['watch_s'])}  ({gain['relative']:+.1%})"
            lines.append("  ".join([line, *more]))
        return "\n".join(lines)


COMPARISONS = (
    ("per_swipe", "server"),
    ("per_swipe", "one_shot"),
    ("one_shot", "server"),
    ("beam", "per_swipe"),
    ("beam", "server"),
    ("preloaded", "per_swipe"),
    ("preloaded", "server"),
    ("per_swipe", "random"),
    ("oracle", "server"),
)


EdgeChoosers = Callable[[SessionPlan, str], Chooser]


def run_closed_loop(
    world: Any,
    plans: Sequence[SessionPlan],
    edge_chooser: EdgeChoosers,
    progress: Callable[[int, int], None] = lambda done, total: None,
    arms: Sequence[str] = ARMS,
) -> ClosedLoopResult:
    """Live every plan with every arm. `edge_chooser(plan, arm)` makes the reranker's arms."""
    lived: dict[str, list[Lived]] = {arm: [] for arm in arms}
    for done, plan in enumerate(plans):
        for arm in arms:
            session = world.session(plan.user_index, plan.session_seed, plan.start_ms)
            lived[arm].append(live_session(session, plan, _chooser(arm, plan, session, edge_chooser)))
        progress(done + 1, len(plans))
    return _summarise(world, plans, lived)


def _chooser(arm: str, plan: SessionPlan, session: Any, edge: EdgeChoosers) -> Chooser:
    if arm == "server":
        return ServerOrder()
    if arm == "random":
        return RandomOrder(plan.session_seed % 2**32)
    if arm == "oracle":
        return Oracle(session, plan)
    return edge(plan, arm)


def _summarise(world: Any, plans: Sequence[SessionPlan], lived: dict[str, list[Lived]]) -> ClosedLoopResult:
    counts = ("likes", "skips", "videos", "long_views")
    per_session = {
        arm: {
            "watch_s": np.array([one.watch_ms for one in rows]) / 1000.0,
            **{name: np.array([getattr(one, name) for one in rows], float) for name in counts},
        }
        for arm, rows in lived.items()
    }
    watch = {arm: found["watch_s"] for arm, found in per_session.items()}
    users = np.array([plan.user_index for plan in plans])
    seeds = np.array([plan.seed for plan in plans])
    arms = {arm: {name: float(v.mean()) for name, v in found.items()} for arm, found in per_session.items()}
    gains = {}
    for better, base in COMPARISONS:
        if not {better, base} <= set(lived):
            continue
        paired = {name: per_session[better][name] - per_session[base][name] for name in ("watch_s", *counts[:3])}
        gains[f"{better} vs {base}"] = {
            **{name: cluster_bootstrap_mean(difference, users).to_json() for name, difference in paired.items()},
            "relative": float(paired["watch_s"].mean() / watch[base].mean()),
        }
    gain = watch["per_swipe"] - watch["server"]
    sessions = {arm: values.tolist() for arm, values in watch.items()}
    per_seed = {"per_swipe vs server": [float(gain[seeds == s].mean()) for s in np.unique(seeds)]}
    return ClosedLoopResult(
        len(plans), len(np.unique(seeds)), float(world.config.drift), arms, gains, per_seed, sessions
    )
