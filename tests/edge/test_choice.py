"""The beam search in a session against the slow reference, every way to fall back, and what a Choice tells of it.

The reference places one list at a time in the graph's last beam, with noise in the others, and asks an engine of its
own: nothing of `edge._ahead` is in it but the graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.beam import BeamPlan, beam_search, list_reward
from contract.errors import InputError, PoolExhausted
from contract.vocabulary import MASK_VALUE, TASKS
from edge import (
    Choice,
    ChoicePolicy,
    Chooser,
    DeviceState,
    EdgeSession,
    Engine,
    FakeClock,
    Feedback,
    InstalledModel,
    ModelStore,
    SessionConfig,
)
from edge._policy import BEAM, PRELOADED
from tests.edge.test_store import flip_byte
from tests.edge.tiny_model import LIST_REWARD, K, P, V
from tests.edge.tiny_page import page_bytes

Open = Callable[[str], InstalledModel]
WEIGHTS = [LIST_REWARD.value.get(task, 0.0) for task in TASKS]
HAS_NEXT = TASKS.index("has_next")
WHOLE = BeamPlan(beams=K, depth=P + 1, stability=1.0)


def beam_policy(plan: BeamPlan = WHOLE, **kwargs: Any) -> ChoicePolicy:
    return ChoicePolicy(**{"mode": BEAM, "plan": plan, "budget_ms": None, **kwargs})


def session_of(store: Any, policy: ChoicePolicy, **kwargs: Any) -> EdgeSession:
    made = EdgeSession(5, store, clock=FakeClock(), config=SessionConfig(policy=policy), session_id=77, **kwargs)
    made.start()
    return made


def changed(model: InstalledModel, **changes: Any) -> InstalledModel:
    return dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, **changes))


class Ticks:
    """A timer that moves one millisecond each time it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> int:
        self.reads += 1
        return self.reads * 1_000_000


class Reference:
    """Rewards of lists of the tier's remaining candidates, for the state that a session's swipe left behind."""

    def __init__(self, session: EdgeSession, engine: Engine, tier: list[tuple[Any, list[int]]], device: DeviceState):
        assert session._reranker is not None
        self.reranker, self.engine, self.tier, self.device = session._reranker, engine, tier, device
        self.kv = np.concatenate([page.state.placed_kv[0][remaining] for page, remaining in tier])
        self.m = len(self.kv)
        self.noise = np.random.default_rng(0)

    def scores(self, items: tuple[int, ...]) -> np.ndarray:
        """Logits [m, T] of every candidate after this list, page by page."""
        placed = self.noise.normal(0, 1, (1, K, P, V)).astype(np.float32)
        mask = np.zeros((1, K, P), np.float32)
        placed[0, -1], mask[0, -1] = 0.0, MASK_VALUE
        for slot, item in enumerate(items):
            placed[0, -1, slot], mask[0, -1, slot] = self.kv[item], 0.0
        swipe = self.reranker._swipe
        parts = []
        for page, remaining in self.tier:
            now = swipe.candidates(self.device, page.video_ids, page.state.bucket).copy()
            memory = self.reranker.cache.memory
            parts.append(self.engine.place(page.state, memory, swipe.swipe_dense, now, placed, mask)[-1][remaining])
        return np.concatenate(parts)

    def __call__(self, lists: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
        p = 1 / (1 + np.exp(-np.stack([self.scores(items) for items in lists]).astype(np.float64)))
        return p @ np.array(WEIGHTS), p[..., HAS_NEXT]

    def reward(self, items: tuple[int, ...]) -> float:
        parts = [self([items[:place]]) for place in range(len(items))]
        r, h = (
            [float(part[side][0, item]) for part, item in zip(parts, items, strict=True)] for side in (0, 1)
        )  # each place with what stands before it
        return list_reward(r, h)


def swipe_with_reference(session: EdgeSession, engine: Engine, device: DeviceState) -> tuple[Choice, Reference]:
    """A swipe, and the reference for the candidates that it chose from."""
    tier = [(page.scored, list(page.remaining)) for page in session.pool.pages]
    choice = session.next(device)
    return choice, Reference(session, engine, tier, device)


@pytest.fixture(scope="module")
def other_engine(published: Open) -> Engine:
    return Engine(published("kir-a"))


class TestBeam:
    @pytest.mark.parametrize("watched", [0, 1, 4])
    @pytest.mark.parametrize(
        "plan",
        [WHOLE, BeamPlan(2, 2, 0.9), BeamPlan(2, 3, 0.8), BeamPlan(1, 3, 1.0), BeamPlan(5, 3, 1.0)],
        ids=lambda p: f"k{p.beams}-t{p.stability:g}",
    )  # five lists through a graph of two, with one left over
    def test_it_is_the_contracts_search_over_the_slow_reference(
        self, published: Open, other_engine: Engine, plan: BeamPlan, watched: int
    ) -> None:
        session = session_of(published("kir-a"), beam_policy(plan))
        session.on_page(page_bytes(range(101, 105), page_id="a"))
        for number in range(watched):
            if not session.pool.pages or len(session.pool) < 3:
                session.on_page(page_bytes(range(300 + 10 * number, 303 + 10 * number), page_id=f"x{number}"))
            shown = session.next(DeviceState(network=1))
            session.feedback(Feedback(shown.video_id, 3_000 * number, {"like": number % 2 == 0}))
        session.on_page(page_bytes(range(201, 209), page_id="b"))
        device = DeviceState(5, 1, {203: 4_000, 101: 900})
        choice, reference = swipe_with_reference(session, other_engine, device)
        want = beam_search(reference, reference.m, plan)
        assert choice.search is not None
        assert choice.search.video_ids == tuple(choice.considered[item] for item in want.items)
        assert choice.video_id == choice.search.video_ids[0]
        assert choice.search.reward == pytest.approx(want.reward, abs=1e-4)
        assert choice.search.stability == pytest.approx(want.stability, abs=1e-4)
        assert (choice.search.steps, choice.search.ended, choice.search.problem) == (want.steps, want.ended, "")
        assert (choice.chooser, choice.reason) == (Chooser.MODEL, "")
        assert choice.search.reward == pytest.approx(reference.reward(want.items), abs=1e-4)

    def test_two_pages_are_one_set_of_candidates(self, published: Open, other_engine: Engine) -> None:
        """Of one bucket, so that they share buffers; a list may pass from one to the other."""
        crossed = 0
        for first in range(100, 180, 10):
            session = session_of(published("kir-a"), beam_policy())
            session.on_page(page_bytes(range(first, first + 4), page_id="a"))
            session.on_page(page_bytes(range(first + 200, first + 204), page_id="b"))
            device = DeviceState(buffered_ms={first: 9_000, first + 201: 50})
            choice, reference = swipe_with_reference(session, other_engine, device)
            assert choice.search is not None
            assert choice.search.reward == pytest.approx(beam_search(reference, 8, WHOLE).reward, abs=1e-4)
            crossed += len({video_id > 250 for video_id in choice.search.video_ids}) == 2
        assert crossed

    def test_with_two_candidates_it_is_brute_force(self, published: Open, other_engine: Engine) -> None:
        for first in (101, 111, 121, 131):
            session = session_of(published("kir-a"), beam_policy())
            session.on_page(page_bytes([first, first + 1]))
            choice, reference = swipe_with_reference(session, other_engine, DeviceState())
            best = max(permutations(range(2)), key=reference.reward)
            assert choice.search is not None
            assert choice.search.video_ids == tuple(choice.considered[i] for i in best)
            assert (choice.search.steps, choice.search.ended) == (2, "exhausted")

    def test_the_place_graph_with_nothing_placed_is_the_swipe_graph(
        self, published: Open, other_engine: Engine
    ) -> None:
        """Guards the first step, which takes the swipe's scores."""
        session = session_of(published("kir-a"), beam_policy())
        session.on_page(page_bytes(range(101, 109)))
        choice, reference = swipe_with_reference(session, other_engine, DeviceState())
        assert choice.scores_NT is not None
        np.testing.assert_allclose(reference.scores(()), choice.scores_NT, atol=1e-5)
        assert np.abs(reference.scores((3,)) - choice.scores_NT).max() > 1e-3

    def test_one_beam_is_next_one_when_values_agree(self, published: Open) -> None:
        model = changed(published("kir-a"), fusion=LIST_REWARD.value)
        greedy, plain = (session_of(model, policy) for policy in (beam_policy(BeamPlan(1, 3)), ChoicePolicy()))
        for session in (greedy, plain):
            session.on_page(page_bytes(range(101, 109)))
        for _ in range(8):
            one, other = greedy.next(), plain.next()
            assert one.video_id == other.video_id
            assert (one.search.steps, one.search.ended) == (1, "stable")  # type: ignore[union-attr]
            assert other.search is None

    def test_looking_ahead_shows_other_videos_at_times(self, published: Open) -> None:
        """Guards the other tests: k = 2 is not k = 1 by another name."""
        shown = []
        for plan in (BeamPlan(1, 1), WHOLE):
            session = session_of(published("kir-a"), beam_policy(plan))
            session.on_page(page_bytes(range(101, 109)))
            shown.append([session.next().video_id for _ in range(8)])
        assert sorted(shown[0]) == sorted(shown[1]) == list(range(101, 109))
        assert shown[0] != shown[1]

    def test_fewer_candidates_than_beams(self, published: Open) -> None:
        session = session_of(published("kir-a"), beam_policy())
        session.on_page(page_bytes([101]))
        choice = session.next()
        assert choice.search is not None
        assert (choice.video_id, choice.search.video_ids, choice.search.ended) == (101, (101,), "exhausted")

    def test_ties_go_to_the_servers_order(self, published: Open) -> None:
        flat = dataclasses.replace(LIST_REWARD, value={"like": 0.0})
        session = session_of(changed(published("kir-a"), list_reward=flat), beam_policy())
        session.on_page(page_bytes(range(101, 109)))
        choices = [session.next() for _ in range(8)]
        assert [choice.video_id for choice in choices] == list(range(101, 109))
        assert {choice.search.problem for choice in choices if choice.search} == {""}

    def test_a_page_above_the_largest_bucket_is_cut_in_server_order(self, published: Open) -> None:
        session = session_of(published("kir-a"), beam_policy())
        assert session.on_page(page_bytes(range(101, 121))).added == 8
        choice = session.next()
        assert choice.considered == list(range(101, 109))
        assert choice.search is not None
        assert set(choice.search.video_ids) < set(choice.considered)

    def test_what_a_choice_tells(self, published: Open) -> None:
        session = session_of(published("kir-a"), beam_policy())
        session.on_page(page_bytes(range(101, 109)))
        choice = session.next()
        assert choice.values_N is not None
        assert choice.value == choice.values_N[choice.considered.index(choice.video_id)]
        assert choice.best_value == choice.values_N.max()
        assert (choice.variant, choice.dense_version, choice.rows_revision) == ("float32+beam", "kir-a", 7)
        assert set(choice.stages_us) == {"maintain", "features", "engine", "choice", "search", "total"}
        assert choice.stages_us["total"] == pytest.approx(sum(choice.stages_us.values()) - choice.stages_us["total"])
        assert choice.search is not None
        assert choice.stages_us["search"] == choice.search.search_us > 0


class TestTime:
    def swipe(self, published: Open, budget_ms: float | None) -> Choice:
        session = session_of(published("kir-a"), beam_policy(budget_ms=budget_ms), timer_ns=Ticks())
        session.on_page(page_bytes(range(101, 109)))
        return session.next()

    def test_no_time_leaves_the_first_step(self, published: Open) -> None:
        choice = self.swipe(published, 0.0)
        assert choice.search is not None
        assert (choice.search.steps, choice.search.ended) == (1, "time")
        assert choice.scores_NT is not None
        p = 1 / (1 + np.exp(-choice.scores_NT))
        assert choice.video_id == choice.considered[int((p @ np.array(WEIGHTS)).argmax())]

    def test_the_budget_begins_with_the_choice(self, published: Open) -> None:
        """Ticks: the choice's start, three of the scores, one of the search; then one before each further step."""
        steps = {ms: self.swipe(published, ms).search.steps for ms in (5.0, 6.0, 7.0, None)}  # type: ignore[union-attr]
        assert steps == {5.0: 1, 6.0: 2, 7.0: 3, None: 3}


class TestFallback:
    """What can't look ahead leaves NextOne's choice, and says why."""

    def next_one(self, store: Any, policy: ChoicePolicy, problem: str, error: str) -> EdgeSession:
        session = session_of(store, policy)
        session.on_page(page_bytes(range(101, 109)))
        choice = session.next()
        assert (choice.chooser, choice.reason) == (Chooser.MODEL, "")
        assert choice.values_N is not None
        assert choice.video_id == choice.considered[int(choice.values_N.argmax())]
        assert choice.search is not None
        assert choice.search == dataclasses.replace(choice.search, video_ids=(), steps=0, ended="", problem=problem)
        assert choice.variant == "float32"
        assert error in str(session.last_error)
        return session

    def test_a_model_older_than_list_reward(self, published: Open) -> None:
        model = changed(published("kir-a"), list_reward=None)
        self.next_one(model, beam_policy(), "no_list_reward", "list_reward")

    def test_a_model_without_the_graph(self, published: Open) -> None:
        model = published("kir-a")
        graphs = tuple(graph for graph in model.manifest.graphs if graph.name != "place")
        self.next_one(changed(model, graphs=graphs), beam_policy(), "no_place_graph", "no place graph")

    def test_a_plan_above_the_capacities(self, published: Open) -> None:
        policy = beam_policy(BeamPlan(K, P + 2))
        self.next_one(published("kir-a"), policy, "plan_above_capacity", "above what the place graph holds")

    def test_no_capacities(self, published: Open) -> None:
        capacities = {k: v for k, v in published("kir-a").manifest.capacities.items() if k not in "kP"}
        self.next_one(changed(published("kir-a"), capacities=capacities), beam_policy(), "plan_above_capacity", "above")

    def test_the_place_graph_fails_and_recovers(self, published: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any) -> None:
            raise RuntimeError("tensor arena")

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "place", fail)
            session = self.next_one(published("kir-a"), beam_policy(), "engine_error", "tensor arena")
        assert session.next().search.problem == ""  # type: ignore[union-attr]

    def test_scores_that_are_no_numbers(self, published: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        nan = np.full((K, 8, len(TASKS)), np.nan, np.float32)
        monkeypatch.setattr(Engine, "place", lambda *args: nan)
        self.next_one(published("kir-a"), beam_policy(), "non_finite_scores", "no numbers")

    def test_a_spoilt_file_is_met_at_a_page_and_not_at_a_swipe(
        self, cdn: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = InstalledModel.open_published(cdn / "models" / "kir-a")
        flip_byte(model.paths[model.manifest.graph("place", "N4").variant().file])
        session = session_of(model, beam_policy())
        session.on_page(page_bytes(range(101, 109)))
        loads: list[Any] = []
        monkeypatch.setattr(Engine, "load_graph", lambda *args: loads.append(args))
        choices = [session.next() for _ in range(3)]
        assert loads == []
        assert {choice.search.problem for choice in choices if choice.search} == {"engine_error"}
        assert {choice.chooser for choice in choices} == {Chooser.MODEL}

    def test_the_swipe_graph_fails(self, published: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any) -> None:
            raise RuntimeError("delegate is gone")

        session = session_of(published("kir-a"), beam_policy())
        session.on_page(page_bytes(range(101, 109)))
        monkeypatch.setattr(Engine, "swipe", fail)
        choice = session.next()
        assert (choice.chooser, choice.reason) == (Chooser.SERVER_ORDER, "engine_error")
        assert (choice.video_id, choice.search) == (101, None)

    def test_the_next_model_is_asked_anew(self, published: Open) -> None:
        session = session_of(changed(published("kir-a"), list_reward=None), beam_policy())
        session.on_page(page_bytes(range(101, 105)))
        assert session.next().search.problem == "no_list_reward"  # type: ignore[union-attr]
        session.offer(published("kir-b"))
        assert session.on_page(page_bytes(range(201, 209), "kir-b", page_id="b")).activated == "kir-b"
        assert session.next().search.problem == ""  # type: ignore[union-attr]

    def test_on_a_phone_from_the_cdn(self, tiny_cdn: Path, tmp_path: Path) -> None:
        """What a device fetches holds the place graph."""
        store = ModelStore(tmp_path / "cache", tiny_cdn)
        store.activate(str(store.update()))
        session = session_of(store, beam_policy())
        session.on_page(page_bytes(range(101, 109)))
        assert session.next().search.problem == ""  # type: ignore[union-attr]


class TestPreloaded:
    @pytest.mark.parametrize("mode", ["next_one", BEAM])
    def test_the_best_of_what_is_preloaded_and_what_that_cost(self, published: Open, mode: str) -> None:
        session = session_of(published("kir-a"), beam_policy(mode=mode, preloaded_only=True, buffered_min_ms=500))
        session.on_page(page_bytes(range(101, 109)))
        for _ in range(3):
            left = session.pool.pages[0].remaining
            ids = [101 + i for i in left][:3]
            told = {v: 2_000 for v in ids[:2]} | {ids[2]: 499}
            choice = session.next(DeviceState(buffered_ms=told))
            assert choice.video_id in ids[:2]
            assert choice.values_N is not None
            assert choice.best_value == choice.values_N.max() >= choice.value
            if mode == "next_one":
                assert choice.value == max(choice.values_N[choice.considered.index(v)] for v in ids[:2])

    def test_anyone_may_follow(self, published: Open) -> None:
        session = session_of(published("kir-a"), beam_policy(preloaded_only=True))
        session.on_page(page_bytes(range(101, 109)))
        choice = session.next(DeviceState(buffered_ms={104: 1}))
        assert choice.search is not None
        assert choice.search.video_ids[0] == choice.video_id == 104
        assert len(choice.search.video_ids) == 3

    def test_nothing_preloaded(self, published: Open) -> None:
        session = session_of(published("kir-a"), ChoicePolicy(preloaded_only=True))
        session.on_page(page_bytes(range(101, 109)))
        choice = session.next(DeviceState())
        assert choice.relaxed == (PRELOADED,)
        assert choice.value == choice.best_value


class TestLookAhead:
    def test_nothing_is_shown_and_the_next_swipe_is_as_it_would_have_been(self, published: Open) -> None:
        session, other = (session_of(published("kir-a"), beam_policy()) for _ in range(2))
        for one in (session, other):
            one.on_page(page_bytes(range(101, 109)))
        found = session.look_ahead(WHOLE)
        assert (len(session.pool), session.position) == (8, 0)
        after, want = session.next(), other.next()
        assert after.search is not None
        assert found.video_ids == after.search.video_ids
        assert found.reward == after.search.reward
        assert after.video_id == want.video_id

    def test_the_best_list_of_those_that_begin_with_one(self, published: Open, other_engine: Engine) -> None:
        session = session_of(published("kir-a"), ChoicePolicy())
        session.on_page(page_bytes(range(101, 109)))
        free = session.look_ahead(WHOLE)
        rewards = {v: session.look_ahead(WHOLE, first=[v]) for v in range(101, 109)}
        assert all(found.video_ids[0] == v for v, found in rewards.items())
        assert rewards[free.video_ids[0]].reward >= free.reward - 1e-6

    def test_what_can_not_be(self, published: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        session = session_of(published("kir-a"), ChoicePolicy())
        with pytest.raises(PoolExhausted):
            session.look_ahead(WHOLE)
        session.on_page(page_bytes(range(101, 105)))
        with pytest.raises(InputError, match="none of these"):
            session.look_ahead(WHOLE, first=[7])
        assert session.look_ahead(BeamPlan(depth=P + 2)).problem == "plan_above_capacity"
        monkeypatch.setattr(Engine, "swipe", lambda *args: 1 / 0)
        assert session.look_ahead(WHOLE).problem == "engine_error"
        bare = session_of(None, ChoicePolicy())
        bare.on_page(page_bytes(range(101, 105)))
        assert bare.look_ahead(WHOLE).problem == "no_model"
