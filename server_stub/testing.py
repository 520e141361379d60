"""Fakes for users' tests: a recommender without models, and a real server in a thread, on ports the kernel picks.

with InProcessServer() as server:                      # no bundle, no onnxruntime session
    channel = grpc.insecure_channel(server.address)
    ...
    assert server.recommender.interactions

with InProcessServer(ServerConfig(bundle=path)) as server:   # the real parts
    ...
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from contract.catalogue import Catalogue
from contract.keys import key_of_id
from contract.spec import FeatureSpec
from contract.specs import kir_spec
from contract.user_profile import AUTHORS_MAX
from contract.vocabulary import MISSING_KEY, NULL_INT, TAGS_MAX, X_PXTR
from server_stub.config import ServerConfig
from server_stub.histories import Interaction, item_columns
from server_stub.pages import new_page_id
from server_stub.recommender import Clock, Recommendation, wall_clock_ms
from server_stub.server import Backend, Server
from server_stub.store import EmbeddingStore, EmbeddingTable, Tables

FIRST_VIDEO = 1000


def fake_catalogue(n: int = 200, *, upload_ms: int = 1_700_000_000_000) -> Catalogue:
    """Videos 1000 … 1000 + n, 17 authors, one or two of 11 tags, 6 s to 35 s long."""
    number = np.arange(n)
    tags = np.full((n, TAGS_MAX), MISSING_KEY)
    tags[:, 0] = number % 11
    tags[::4, 1] = (number[::4] + 3) % 11
    return Catalogue(
        video_id=(FIRST_VIDEO + number).astype(np.uint64),
        author_id=(1 + number % 17).astype(np.uint64),
        tags=tags,
        duration_ms=(6_000 + 1_000 * (number % 30)).astype(np.int32),
        upload_ms=upload_ms - 3_600_000 * number.astype(np.int64),
    )


def fake_tables(spec: FeatureSpec, catalogue: Catalogue, *, users: int = 100, seed: int = 0) -> Tables:
    """Random rows for every table of a KIR spec: all videos, authors and tags of the catalogue, users 0 … users - 1."""
    rng = np.random.default_rng(seed)
    tags = np.unique(catalogue.tags)
    keys = {
        "video": np.sort(catalogue.video_id),
        "author": np.unique(catalogue.author_id),
        "tag": tags[tags != MISSING_KEY],
        "user": np.arange(users, dtype=np.uint64),
    }
    tables = {}
    for name, width in spec.tables.items():
        table_keys = np.concatenate([[MISSING_KEY], keys.get(name, np.zeros(0, np.uint64))])
        rows = (0.3 * rng.standard_normal((len(table_keys), width))).astype(np.float32)
        tables[name] = EmbeddingTable(table_keys, rows, where=name)
    return tables


@dataclass
class FakeRecommender:
    """Videos of the catalogue in a fixed order that depends on the user alone; remembers what it was told.

    fail: raised by the next `recommend`, once; wait: `recommend` blocks until it is set. Thread-safe enough for tests.
    """

    catalogue: Catalogue = field(default_factory=fake_catalogue)
    interactions: list[tuple[int, Interaction]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    fail: Exception | None = None
    wait: threading.Event | None = None
    version: str = "fake-1"

    def add_interaction(
        self,
        user_id: int,
        video_id: int,
        *,
        time_ms: int = NULL_INT,
        play_time_ms: int = NULL_INT,
        signals: Mapping[str, int] | None = None,
    ) -> bool:
        interaction = Interaction(key_of_id(video_id), time_ms, play_time_ms, dict(signals or {}))
        self.interactions.append((user_id, interaction))
        return interaction.positive

    def recommend(
        self,
        user_id: int,
        k: int = 20,
        *,
        watched: Iterable[Interaction] = (),
        exclude: Iterable[int] = (),
        now_ms: int | None = None,
        hour: int = NULL_INT,
    ) -> Recommendation:
        """Unseen videos of this server's interactions, `watched` and `exclude` left out, rotated by the user."""
        watched = list(watched)
        self.asked.append({"user_id": user_id, "k": k, "watched": watched, "now_ms": now_ms, "hour": hour})
        if self.wait is not None:
            self.wait.wait()
        if self.fail is not None:
            fail, self.fail = self.fail, None
            raise fail
        gone = {w.video_id for w in watched} | set(exclude)
        gone |= {interaction.video_id for user, interaction in self.interactions if user == user_id}
        ids = np.roll(self.catalogue.video_id, -(user_id % max(1, len(self.catalogue))))
        ids = ids[~np.isin(ids, np.array(sorted(gone), np.uint64))][:k]
        n = len(ids)
        steps = (ids.astype(np.float64)[:, None] * np.arange(3, 3 + X_PXTR)[None, :]) % 97
        pxtr = ((1 + steps) / 100).astype(np.float32)
        return Recommendation(
            items=item_columns(self.catalogue, ids, NULL_INT if now_ms is None else now_ms),
            pxtr=pxtr,
            value=np.linspace(1, 0, n, dtype=np.float32),
            retrieval=np.full(n, np.nan, np.float32),
            user_activity=user_id % 8,
            user_register_days=100,
            hour=hour,
            user_profile=np.array([0.5, 0.25, np.nan, 1.0], np.float32),
            recent_authors=np.resize(self.catalogue.author_id[:2], AUTHORS_MAX),
            retrieval_version=self.version,
            ranker_version=self.version,
        )


def fake_backend(
    dense_versions: Iterable[str] = ("kir-fake",), *, spec: FeatureSpec | None = None, n_items: int = 200
) -> Backend:
    """A fake recommender and random rows for each dense version; the last one is current."""
    recommender, store, spec = FakeRecommender(fake_catalogue(n_items)), EmbeddingStore(), spec or kir_spec()
    names = list(dense_versions)
    for seed, name in enumerate(names):
        store.add_version(name, spec, fake_tables(spec, recommender.catalogue, seed=seed), rows_revision=1)
    return Backend(recommender, store, current=names[-1] if names else "")


class InProcessServer:
    """A `Server` in a thread with an event loop of its own, for synchronous tests. Stops when the block ends.

    Without a bundle in the config it serves `fake_backend()`. Raises what the server raises when it can't start.
    """

    def __init__(
        self,
        config: ServerConfig | None = None,
        backend: Backend | None = None,
        *,
        clock: Clock = wall_clock_ms,
        page_ids: Any = new_page_id,
    ):
        self.config = config or ServerConfig()
        if backend is None and self.config.bundle is None:
            backend = fake_backend()
        self.server = Server(self.config, backend, clock=clock, page_ids=page_ids)
        self._ready = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="kir-server", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._error is not None:
            raise self._error

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self.server:
                self._ready.set()
                await self._stop.wait()
        except Exception as error:  # handed to the test's own thread
            self._error = error
        finally:
            self._ready.set()

    @property
    def address(self) -> str:
        """host:port for a gRPC channel."""
        return f"{self.config.host}:{self.server.grpc_port}"

    @property
    def url(self) -> str:
        """http(s)://host:port, without a slash at the end."""
        return f"http{'s' if self.config.tls_cert else ''}://{self.config.host}:{self.server.http_port}"

    @property
    def recommender(self) -> Any:
        return self.server.pages.recommender

    @property
    def store(self) -> EmbeddingStore:
        return self.server.store

    def flush(self) -> int:
        """Write the feedback taken so far; how many events were written."""
        return self.server.intake.flush()

    def set_current(self, dense_version: str) -> None:
        """What the CDN's pointer would say."""
        self.server.pages.current = dense_version
