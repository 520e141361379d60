"""The logging policy: pages drawn by long-term affinity, shown in a noisy order, logged as the server's intake would.

Legend: S sessions in lock step, P page size, I items, n rows alive.

Every impression records what a reranker's training and an off-policy estimate need: page, index, the rest of the page,
and the probability with which it was chosen. pXTR stay null; the server ranker fills them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.events import Events
from contract.vocabulary import MISSING_KEY, NETWORKS, SIGNALS
from training import sim_behaviour, sim_random
from training.sim_random import hashed, uniform
from training.sim_session import SessionBatch

if TYPE_CHECKING:
    from training.simulator import World

POLICIES = ("server_like", "random")
RETRIEVAL_TEMPERATURE = 0.7  # of the Gumbel noise when a page is drawn, in units of appeal
ORDER_NOISE = 0.2  # the server's error in ln expected play time
SHOW_TEMPERATURE = 0.5  # of the softmax over what is left of the page
KNOWN_DELAY_MS = 200  # feedback is known so long after the play ended
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SLOT_MS = 2 * HOUR_MS  # at most one session of a user starts in a slot, so that none overlap
SLOT_WEIGHTS = np.array([2, 1, 1, 2, 4, 5, 7, 6, 6, 8, 10, 7], np.float64)  # by two-hour slot of the day
ACTIVITY_FACTOR = np.array([0.3, 0.4, 0.5, 0.4, 0.5, 0.8, 1.0, 1.3])
NETWORK_SHARES = {"wifi": 0.62, "5g": 0.18, "4g": 0.17, "3g": 0.03}
BUFFER_SHARES_MS = {"wifi": 9_000, "5g": 8_000, "4g": 5_000, "3g": 1_500}
PAGE_CHUNK_ROWS = 512


def simulate_logs(
    world: World,
    days: int | range | None = None,
    sessions_per_user_day: float = 2.0,
    policy: str = "server_like",
    page_size: int = 24,
    refresh_after: int | None = None,
    seed: int = 0,
) -> Events:
    """Events of all users, sorted by (user_id, time_ms).

    days                   a number of days from day 0, or a range of days; None = config.days
    sessions_per_user_day  mean over users; active ones have more, at most one starts in two hours
    policy                 server_like: softmax over the rest of the page; random: uniform over random pages
    refresh_after          a new page comes after so many impressions of the old one; None = half a page

    Deterministic by (config, arguments). Raises InputError for an unknown policy or a size that makes no page.
    """
    days = world.config.days if days is None else days
    days = range(days) if isinstance(days, int) else days
    refresh_after = max(page_size // 2, 1) if refresh_after is None else refresh_after
    if policy not in POLICIES:
        raise InputError("unknown logging policy", got=policy, allowed=POLICIES)
    if not 1 <= page_size <= len(world.items) // 2 or not 1 <= refresh_after <= page_size:
        got = {"page_size": page_size, "refresh_after": refresh_after}
        raise InputError("no page can be drawn so", got=got, allowed=f"1 … {len(world.items) // 2} and 1 … page_size")
    if not len(days) or sessions_per_user_day <= 0:
        raise InputError("nothing to simulate", got=(list(days), sessions_per_user_day))
    rng = np.random.default_rng([world.config.seed, seed, 0x106])
    user_S, seed_S, start_ms_S = _plan(world, days, sessions_per_user_day, seed, rng)
    roll = _Rollout(world, user_S, seed_S, start_ms_S, policy, page_size, refresh_after, rng)
    return _events(roll, roll.run())


def calibration_sample(world: World, n_sessions: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Appeal and duration_ms of a small run of the logging policy: float64 [n], int32 [n]. Users in fair shares."""
    rng = np.random.default_rng([world.config.seed, 0xCA1])
    share_U = np.cumsum(ACTIVITY_FACTOR[world.users.activity])
    user_S = np.searchsorted(share_U, (np.arange(n_sessions) + 0.5) / n_sessions * share_U[-1])
    start_ms_S = world.config.start_ms + rng.integers(world.config.days * DAY_MS, size=n_sessions)
    page_size = min(24, len(world.items) // 2)
    refresh_after = max(page_size // 2, 1)
    seed_S = hashed(0xCA1, np.arange(n_sessions))
    parts = _Rollout(world, user_S, seed_S, start_ms_S, "server_like", page_size, refresh_after, rng).run()
    return np.concatenate([p.appeal for p in parts]), world.items.duration_ms[np.concatenate([p.item for p in parts])]


def _plan(
    world: World, days: range, sessions_per_user_day: float, seed: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
    """Who starts a session when: user [S], session seed [S], start [S], at most one per user and two-hour slot."""
    n_users, n_slots = world.config.n_users, len(SLOT_WEIGHTS)
    factor_U = ACTIVITY_FACTOR[world.users.activity]
    p_U1 = (sessions_per_user_day * factor_U / factor_U.mean())[:, None]
    p_UT = np.minimum(p_U1 * SLOT_WEIGHTS / SLOT_WEIGHTS.sum(), 1.0)
    day_D = np.array(days)
    user, at, slot = np.nonzero(rng.random((n_users, len(day_D), n_slots)) < p_UT[:, None])
    jitter_ms = (rng.random(len(user)) * (SLOT_MS - 95 * 60_000)).astype(np.int64)  # 95 min: longer than any session
    start_ms = world.config.start_ms + day_D[at] * DAY_MS + slot * SLOT_MS + jitter_ms
    return user, hashed(seed, world.config.seed, user, day_D[at], slot), start_ms


@dataclass(frozen=True)
class _Step:
    """What one lock step of the roll-out showed: arrays [n]."""

    session: NDArray[np.int64]
    item: NDArray[np.int64]
    seq: NDArray[np.int64]
    page: NDArray[np.int64]
    index: NDArray[np.int64]
    remaining: list[NDArray[np.int32]]
    propensity: NDArray[np.float64]
    time_ms: NDArray[np.int64]
    play_ms: NDArray[np.int32]
    signals: NDArray[np.int8]
    has_next: NDArray[np.bool_]
    appeal: NDArray[np.float64]


class _Rollout:
    def __init__(
        self,
        world: World,
        user_S: NDArray[np.int64],
        seed_S: NDArray[np.uint64],
        start_ms_S: NDArray[np.int64],
        policy: str,
        page_size: int,
        refresh_after: int,
        rng: np.random.Generator,
    ) -> None:
        n = len(user_S)
        self.world, self.policy, self.rng, self.refresh_after = world, policy, rng, refresh_after
        self.user_S, self.raw_seed_S = user_S, seed_S
        self.batch = SessionBatch(world, user_S, seed_S, start_ms_S)
        self.page_SP = np.zeros((n, page_size), np.int64)
        self.logit_SP = np.zeros((n, page_size))
        self.left_SP = np.zeros((n, page_size), bool)
        self.page_S = np.full(n, -1)
        self.used_S = np.full(n, refresh_after)
        self.shown_SI = np.zeros((n, len(world.items)), bool)

    def run(self) -> list[_Step]:
        """Until everyone has left."""
        steps = []
        while not self.batch.done_S.all():
            alive = np.flatnonzero(~self.batch.done_S)
            needy = alive[self.used_S[alive] >= self.refresh_after]
            for first in range(0, len(needy), PAGE_CHUNK_ROWS):
                self._draw_pages(needy[first : first + PAGE_CHUNK_ROWS])
            steps.append(self._show(alive))
        return steps

    def _draw_pages(self, rows: NDArray[np.int64]) -> None:
        """Gumbel-top-P of the affinity, nothing twice in a session; in the server's order of expected play time."""
        world, size = self.world, self.page_SP.shape[1]
        affinity_nI = world.long_term_affinities(self.user_S[rows], self.batch.now_ms_S[rows])
        noise_nI = self.rng.gumbel(size=affinity_nI.shape)
        scores_nI = affinity_nI / RETRIEVAL_TEMPERATURE + noise_nI if self.policy == "server_like" else noise_nI
        scores_nI[self.shown_SI[rows]] = -np.inf
        items_nP = np.argpartition(-scores_nI, size - 1, axis=1)[:, :size]
        appeal_nP = np.take_along_axis(affinity_nI, items_nP, axis=1)
        expected_nP = sim_behaviour.expected_play_ms(world.calibration.mu, appeal_nP, world.items.duration_ms[items_nP])
        value_nP = np.log(expected_nP) + ORDER_NOISE * self.rng.standard_normal(expected_nP.shape)
        order_nP = np.argsort(-value_nP, axis=1, kind="stable")
        self.page_SP[rows] = np.take_along_axis(items_nP, order_nP, axis=1)
        temperature = SHOW_TEMPERATURE if self.policy == "server_like" else np.inf
        self.logit_SP[rows] = np.take_along_axis(value_nP, order_nP, axis=1) / temperature
        self.left_SP[rows] = True
        self.page_S[rows] += 1
        self.used_S[rows] = 0

    def _show(self, rows: NDArray[np.int64]) -> _Step:
        logit_nP = np.where(self.left_SP[rows], self.logit_SP[rows], -np.inf)
        weight_nP = np.exp(logit_nP - logit_nP.max(axis=1, keepdims=True))
        p_nP = weight_nP / weight_nP.sum(axis=1, keepdims=True)
        index = np.argmax(logit_nP + self.rng.gumbel(size=logit_nP.shape), axis=1)  # Gumbel-max: softmax draws
        item = self.page_SP[rows, index]
        self.left_SP[rows, index] = False
        self.shown_SI[rows, item] = True
        self.used_S[rows] += 1
        left_nP = self.left_SP[rows]
        columns = np.nonzero(left_nP)[1].astype(np.int32)
        remaining = np.split(columns, np.cumsum(left_nP.sum(axis=1))[:-1])
        time_ms, seq = self.batch.now_ms_S[rows].copy(), self.batch.step_S[rows].copy()
        appeal = self.batch.appeal(rows, item)
        got = self.batch.step(rows, item)
        return _Step(
            rows, item, seq, self.page_S[rows].copy(), index, remaining, p_nP[np.arange(len(rows)), index],
            time_ms, got.play_time_ms, got.signals, got.has_next, appeal,
        )  # fmt: skip


def _events(roll: _Rollout, steps: list[_Step]) -> Events:
    world = roll.world

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(step, name) for step in steps])

    session, item, time_ms, seq = joined("session"), joined("item"), joined("time_ms"), joined("seq")
    user = roll.user_S[session]
    remaining = np.empty(len(session), object)
    remaining[:] = [one for step in steps for one in step.remaining]
    session_id = np.minimum(hashed(0x5E55, world.config.seed, roll.raw_seed_S), MISSING_KEY - np.uint64(1))[session]
    network, buffered_ms = _device(roll, session, seq)
    signals = joined("signals")
    order = np.lexsort((seq, time_ms, user))
    pages = zip(session_id.tolist(), joined("page").tolist(), strict=True)
    page_ids = [f"sim-{one:016x}-{page}" for one, page in pages]
    columns: dict[str, Any] = {
        "user_id": world.users.user_id[user],
        "video_id": world.items.video_id[item],
        "time_ms": time_ms,
        "known_at_ms": time_ms + joined("play_ms") + KNOWN_DELAY_MS,
        "session_id": session_id,
        "seq": seq,
        "revision": np.zeros(len(session), np.int32),
        "page_id": np.array(page_ids, object),
        "candidate_index": joined("index"),
        "position": seq,
        "remaining": remaining,
        "chooser": np.full(len(session), "random" if roll.policy == "random" else "server_order", object),
        "propensity": joined("propensity"),
        "play_time_ms": joined("play_ms"),
        **{name: signals[:, column] for column, name in enumerate(SIGNALS)},
        "has_next": joined("has_next"),
        "network": network,
        "buffered_ms": buffered_ms,
        "author_id": world.items.author_id[item],
        "tags": world.items.tags[item],
        "duration_ms": world.items.duration_ms[item],
        "upload_age_days": world.items.upload_age_days(item, time_ms),
        "music_id": world.items.music_id[item],
        "kind": world.items.kind[item],
        "server_position": joined("index"),
        "user_activity": world.users.activity[user],
        "user_register_days": world.users.register_days[user],
        "hour": time_ms // HOUR_MS % 24,
        "is_rand": np.full(len(session), roll.policy == "random", np.int8),
    }
    return Events({name: values[order] for name, values in columns.items()}, where="simulator")


def _device(roll: _Rollout, session: NDArray[Any], seq: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Network of each session, and what was preloaded of each video: int32 [n] each."""
    shares = np.cumsum(list(NETWORK_SHARES.values()))
    kinds = np.array([NETWORKS.index(name) for name in NETWORK_SHARES], np.int32)
    limits_ms = np.array(list(BUFFER_SHARES_MS.values()))
    draw_S = uniform(roll.raw_seed_S, sim_random.NETWORK)
    kind = np.minimum(np.searchsorted(shares, draw_S), len(kinds) - 1)[session]
    level = uniform(roll.raw_seed_S[session], sim_random.NETWORK, seq)
    return kinds[kind], (limits_ms[kind] * level).astype(np.int32)
