"""The beam search by k and t, on the states of simulated sessions: what it finds, how deep it goes, what it costs.

    kir bench closed-loop --work demo-out --sweep

Sessions are lived with NextOne at every swipe; at every EVERY-th swipe each plan searches the same state, and nothing
is shown of it. `lists` compares whole lists of one length, as deep as the place graph reaches, in the ListReward that
the model predicts: the widest beam's against greedy's (k = 1), paired. `plans` has for every k and t: steps taken, how
often the first video is the deepest search's, and `given_up`: the deepest search's reward minus that of the best list
which begins with the video that the plan would show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.closed_loop import SessionPlan, live_session
from benchmarks.edge_arm import EdgeChooser, deepest_plan
from benchmarks.stats import Interval, cluster_bootstrap_mean, percentiles
from contract.errors import InputError, KirError
from contract.vocabulary import NETWORKS
from edge import BeamPlan, Engine, Search

BEAMS = (1, 2, 4)
STABILITIES = (0.8, 0.9, 0.95, 1.0)
EVERY = 3
WIFI = NETWORKS.index("wifi")  # as the arms of the closed loop have it


@dataclass(frozen=True)
class BeamSweep:
    """n_states: searched; lists: rewards of whole lists and their paired difference; plans: one row each."""

    n_states: int
    depth: int
    lists: dict[str, Any]
    plans: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        beam, greedy = self.lists["beam"], self.lists["greedy"]
        gain = Interval(**self.lists["beam - greedy"])
        lines = [
            f"beam search on {self.n_states} states, lists of {self.depth}: predicted ListReward beam {beam:.4f}, "
            f"greedy {greedy:.4f}, paired difference {gain}",
            f"differs in {self.lists['other_first']:.1%} of first videos, {self.lists['other_list']:.1%} of lists",
            f"{'k':>2} {'t':>5} {'steps':>6} {'same first':>10} {'given up':>9} {'us p50':>8} {'us p90':>8}",
        ]
        for row in self.plans:
            cells = f"{row['steps']:>6.2f} {row['same_first']:>10.1%} {row['given_up']:>9.5f}"
            time = f"{row['search_us']['p50']:>8.0f} {row['search_us']['p90']:>8.0f}"
            lines.append(f"{row['beams']:>2} {row['stability']:>5g} {cells} {time}")
        return "\n".join(lines)


@dataclass
class _Found:
    """What all plans found in all states; searches[plan][state]."""

    users: list[int] = field(default_factory=list)
    greedy: list[Search] = field(default_factory=list)
    beam: list[Search] = field(default_factory=list)
    searches: dict[BeamPlan, list[Search]] = field(default_factory=dict)
    given_up: dict[BeamPlan, list[float]] = field(default_factory=dict)


class Prober(EdgeChooser):
    """NextOne at every swipe, which first searches with every plan at every EVERY-th one."""

    def __init__(self, engine: Engine, plan: SessionPlan, user_id: int, plans: Sequence[BeamPlan], found: _Found):
        """plans: the deepest search last."""
        super().__init__(engine, user_id, plan.session_seed, plan.start_ms, True, WIFI)
        self._deepest, self._plans, self._found = plans[-1], plans, found
        self._user, self._swipes = plan.user_index, 0

    def choose(self, remaining: list[int], now_ms: int) -> int:
        self._swipes += 1
        if self._swipes % EVERY == 0 and len(remaining) >= self._deepest.depth:
            self._at(now_ms)
            self._search()
        return super().choose(remaining, now_ms)

    def _search(self) -> None:
        found, depth = self._found, self._deepest.depth
        found.users.append(self._user)
        found.beam.append(self._look(self._deepest))
        found.greedy.append(self._look(BeamPlan(1, depth, 1.0)))
        best = found.beam[-1]
        led = {best.video_ids[0]: best.reward}
        for plan in self._plans:
            search = self._look(plan)
            first = search.video_ids[0]
            if first not in led:
                led[first] = self._look(self._deepest, [first]).reward
            found.searches.setdefault(plan, []).append(search)
            found.given_up.setdefault(plan, []).append(best.reward - led[first])

    def _look(self, plan: BeamPlan, first: list[int] | None = None) -> Search:
        search = self._session.look_ahead(plan, first=first)
        if search.problem:
            raise KirError("the search failed", where=str(plan), got=search.problem)
        return search


def sweep_beams(world: Any, engine: Engine, plans: Sequence[SessionPlan]) -> BeamSweep:
    """Search every EVERY-th state of every session with every k and t. Raises InputError when the model can't."""
    deepest = deepest_plan(engine)
    if deepest is None:
        raise InputError("this model can't search lists", where=engine.dense_version, fix="convert it again")
    engine.load_place()
    every = [BeamPlan(k, deepest.depth, t) for k in BEAMS for t in STABILITIES]
    found = _Found()
    for plan in plans:
        user_id = int(world.users.user_id[plan.user_index])
        prober = Prober(engine, plan, user_id, every, found)
        live_session(world.session(plan.user_index, plan.session_seed, plan.start_ms), plan, prober)
    if not found.users:
        raise InputError("no state was searched: pages too small or sessions too short", got=len(plans))
    rows = [_row(plan, found) for plan in every]
    return BeamSweep(len(found.users), deepest.depth, _lists(found), rows)


def _lists(found: _Found) -> dict[str, Any]:
    beam, greedy = (np.array([search.reward for search in side]) for side in (found.beam, found.greedy))
    pairs = list(zip(found.beam, found.greedy, strict=True))
    return {
        "beam": float(beam.mean()),
        "greedy": float(greedy.mean()),
        "beam - greedy": cluster_bootstrap_mean(beam - greedy, np.array(found.users)).to_json(),
        "other_first": float(np.mean([b.video_ids[0] != g.video_ids[0] for b, g in pairs])),
        "other_list": float(np.mean([b.video_ids != g.video_ids for b, g in pairs])),
    }


def _row(plan: BeamPlan, found: _Found) -> dict[str, Any]:
    searches = found.searches[plan]
    same = [s.video_ids[0] == best.video_ids[0] for s, best in zip(searches, found.beam, strict=True)]
    return {
        "beams": plan.beams,
        "stability": plan.stability,
        "steps": float(np.mean([search.steps for search in searches])),
        "same_first": float(np.mean(same)),
        "given_up": float(np.mean(found.given_up[plan])),
        "search_us": percentiles([search.search_us for search in searches]),
    }
