"""A world of short videos and users whose taste shifts within a session: the closed loop's ground truth.

    .venv/bin/python -m training.simulator --users 400 --days 7 --out runs/sim      (about 15 s on one core)

Users have long-term topic preferences that turn slowly over days, which a server can learn. Within a session a hidden
mood and fatigue shift what they want, which only their behaviour in that session tells: what a reranker at every swipe
can use and a server page can't. `SimConfig.drift` scales both; drift=0 is the control world, where the server is right.
No recommender ever reads the hidden state; `Session.oracle_value` and `World.long_term_affinity` are for baselines.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import Catalogue, UserTable, write_catalogue, write_users
from contract.errors import InputError
from contract.parquet import write_events
from contract.vocabulary import MISSING_KEY, TAGS_MAX
from training import sim_behaviour
from training.sim_logs import calibration_sample, simulate_logs
from training.sim_session import MOOD_FACTORS, Response, Session, SessionBatch

__all__ = [
    "DAY_MS",
    "ItemTable",
    "Response",
    "Session",
    "SessionBatch",
    "SimConfig",
    "UserTable",
    "World",
    "simulate_logs",
]

ItemTable = Catalogue

DAY_MS = 86_400_000
FIRST_VIDEO_ID, FIRST_AUTHOR_ID, FIRST_USER_ID = 500_000, 90_000, 10_000  # ids are not row numbers, on purpose
STYLE_WIDTH = 4
TASTE_SCALE, TASTE_TURN_DAYS = 0.9, 60.0
STYLE_SCALE, QUALITY_SCALE = 0.35, 0.4
DURATION_MEDIAN_MS, DURATION_SPREAD = 20_000, 0.9
_LEAST = {"n_users": 1, "n_items": 10, "n_topics": 2, "n_authors": 0, "days": 1, "max_steps": 1}


@dataclass(frozen=True)
class SimConfig:
    """The size of the world, its seed, and the one dial that matters.

    drift      scales mood and fatigue; 0 = none (control world)
    start_ms   midnight (UTC) of day 0
    max_steps  a session is cut after so many videos
    n_authors  0 = one for every ten items
    """

    n_users: int = 400
    n_items: int = 3000
    n_topics: int = 16
    n_authors: int = 0
    seed: int = 0
    drift: float = 1.0
    days: int = 7
    start_ms: int = 1_767_571_200_000  # 2026-01-05, a Monday
    max_steps: int = 100

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"SimConfig.{name} is too small", got=getattr(self, name), allowed=f"from {least}")
        if not (np.isfinite(self.drift) and self.drift >= 0):
            raise InputError("SimConfig.drift must be a finite number from 0", got=self.drift)
        if self.seed < 0 or self.start_ms < 0:
            raise InputError("SimConfig.seed and start_ms start at 0", got=(self.seed, self.start_ms))


class World:
    """Items, users and their hidden state; a pure function of the config.

    Legend: U users, I items, K topics, A style width, R mood factors. Public facts: `items`, `users`. The other arrays
    are ground truth.
    """

    def __init__(self, config: SimConfig | None = None) -> None:
        self.config = config or SimConfig()
        rng = np.random.default_rng([self.config.seed, 0x51D])
        self._make_items(rng)
        self._make_users(rng)
        loadings_RK = rng.standard_normal((MOOD_FACTORS, self.config.n_topics))
        self.mood_loadings_RK = loadings_RK / np.linalg.norm(loadings_RK, axis=0)
        self.calibration = sim_behaviour.Calibration()
        for n_sessions in (400, 400, 1600):  # who stays depends on mu, and mu on who stays: settle
            self.calibration = sim_behaviour.calibrate(*calibration_sample(self, n_sessions))

    def _make_items(self, rng: np.random.Generator) -> None:
        config, n, k = self.config, self.config.n_items, self.config.n_topics
        n_authors = config.n_authors or max(n // 10, 2)
        author_topic = rng.integers(k, size=n_authors)
        weight = 1.0 / np.arange(1, n_authors + 1) ** 0.6
        author = rng.choice(n_authors, size=n, p=weight / weight.sum())
        own = rng.random(n) < 0.7
        topics_IM = np.full((n, TAGS_MAX), -1)
        topics_IM[:, 0] = np.where(own, author_topic[author], rng.integers(k, size=n))
        n_topics = np.minimum(rng.choice([1, 2, 3], size=n, p=[0.65, 0.25, 0.1]), k)
        others = np.argsort(rng.random((n, k)), axis=1)
        for i in range(n):
            extra = others[i][others[i] != topics_IM[i, 0]][: n_topics[i] - 1]
            topics_IM[i, 1 : 1 + len(extra)] = extra
        mixture_IM = np.where(topics_IM >= 0, np.array([1.0, 0.5, 0.3]), 0.0)
        mixture_IM /= mixture_IM.sum(axis=1, keepdims=True)
        self.item_topics_IK = np.zeros((n, k))
        for column in range(TAGS_MAX):
            rows = np.flatnonzero(topics_IM[:, column] >= 0)
            self.item_topics_IK[rows, topics_IM[rows, column]] = mixture_IM[rows, column]
        style_A = rng.standard_normal((n_authors, STYLE_WIDTH))
        self.item_style_IA = style_A[author]
        self.item_quality_I = QUALITY_SCALE * rng.standard_normal(n)
        spread = DURATION_SPREAD * rng.standard_normal(n)
        duration_ms = np.clip(DURATION_MEDIAN_MS * np.exp(spread), 3_000, 600_000).astype(np.int32)
        age_days = np.minimum(rng.exponential(25.0, size=n), 700.0)
        tags = np.where(topics_IM >= 0, topics_IM.astype(np.uint64), MISSING_KEY)
        self.items: ItemTable = Catalogue(
            video_id=(FIRST_VIDEO_ID + rng.permutation(n)).astype(np.uint64),
            author_id=(FIRST_AUTHOR_ID + author).astype(np.uint64),
            tags=tags,
            duration_ms=duration_ms,
            upload_ms=(config.start_ms - 1 - age_days * DAY_MS).astype(np.int64),
        )

    def _make_users(self, rng: np.random.Generator) -> None:
        n, k = self.config.n_users, self.config.n_topics
        common_K = 0.4 * rng.standard_normal(k)
        self._taste_2UK = TASTE_SCALE * rng.standard_normal((2, n, k))
        self._taste_2UK[0] += common_K
        self._style_UA = STYLE_SCALE * rng.standard_normal((n, STYLE_WIDTH))
        activity = rng.choice([4, 5, 6, 7], size=n, p=[0.1, 0.2, 0.3, 0.4])
        self.users = UserTable(
            user_id=(FIRST_USER_ID + np.arange(n)).astype(np.uint64),
            activity=activity.astype(np.int32),
            register_days=np.minimum(rng.exponential(500.0, size=n), 4000.0).astype(np.int32),
        )

    def taste_on(self, user_index: Any, time_ms: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Long-term topic taste [n, K] and style taste [n, A] of users [n] on the day of `time_ms` [n]."""
        day = (np.asarray(time_ms, np.int64) - self.config.start_ms) // DAY_MS
        angle = (2.0 * np.pi / (4 * TASTE_TURN_DAYS) * day)[:, None]  # a quarter turn in TASTE_TURN_DAYS
        now, later = self._taste_2UK[:, user_index]
        return np.cos(angle) * now + np.sin(angle) * later, self._style_UA[user_index]

    def long_term_affinity(self, user_index: int, time_ms: int | None = None) -> NDArray[np.float64]:
        """Appeal of every item without mood and fatigue, float64 [I]. What an ideal server could know."""
        return self.long_term_affinities(np.array([user_index]), np.array([self._time(time_ms)]))[0]

    def long_term_affinities(self, user_index: NDArray[Any], time_ms: NDArray[Any]) -> NDArray[np.float64]:
        """`long_term_affinity` of n users at once: float64 [n, I]."""
        taste_nK, style_nA = self.taste_on(user_index, time_ms)
        return taste_nK @ self.item_topics_IK.T + style_nA @ self.item_style_IA.T + self.item_quality_I

    def expected_watch_ms(self, user_index: int, item_indices: Any, time_ms: int | None = None) -> NDArray[np.float64]:
        """Expected play time of items [n] without mood and fatigue, float64 [n]: an ideal server's order."""
        items = np.asarray(item_indices, np.int64)
        appeal = self.long_term_affinity(user_index, time_ms)[items]
        return sim_behaviour.expected_play_ms(self.calibration.mu, appeal, self.items.duration_ms[items])

    def _time(self, time_ms: int | None) -> int:
        return self.config.start_ms if time_ms is None else time_ms

    def session(self, user_index: int, session_seed: int, start_ms: int) -> Session:
        """One session to step through. Raises InputError for an unknown user."""
        if not 0 <= user_index < self.config.n_users:
            raise InputError("no such user", got=user_index, allowed=f"0 … {self.config.n_users - 1}")
        return Session(self, user_index, session_seed, start_ms)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Simulate logs; writes events, catalogue and users as Parquet.")
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--drift", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", choices=("server_like", "random"), default="server_like")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    config = SimConfig(n_users=args.users, n_items=args.items, days=args.days, drift=args.drift, seed=args.seed)
    world = World(config)
    events = simulate_logs(world, policy=args.policy)
    write_events(args.out / "events.parquet", events)
    write_catalogue(args.out / "catalogue.parquet", world.items)
    write_users(args.out / "users.parquet", world.users)
    print(f"{len(events)} impressions of {args.users} users in {args.out}")


if __name__ == "__main__":
    main()
