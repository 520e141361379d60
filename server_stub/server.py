"""The server: a bundle behind gRPC and HTTP, as an async context manager.

    async with Server(ServerConfig(bundle=Path("bundle"))) as server:
        print(server.grpc_port, server.http_port)
        await server.wait()

Synchronous code takes `server_stub.testing.InProcessServer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from contract.errors import InputError
from server_stub.bundle import load_histories, load_models, read_index
from server_stub.config import ServerConfig
from server_stub.doors import Doors
from server_stub.feedback import FeedbackIntake
from server_stub.histories import Histories
from server_stub.http_door import HttpDoor
from server_stub.live import LiveParts
from server_stub.page_log import PageLog
from server_stub.pages import PageMaker, new_page_id
from server_stub.recommender import Clock, Recommender, Recommends, wall_clock_ms
from server_stub.service import EmbeddingServicer, GrpcDoor
from server_stub.store import EmbeddingStore

GRACE_S = 5.0
log = logging.getLogger(__name__)


@dataclass
class Backend:
    """What a server serves. `from_config` loads it; tests hand in fakes."""

    recommender: Recommends
    store: EmbeddingStore
    current: str = ""

    @staticmethod
    def from_config(config: ServerConfig, clock: Clock = wall_clock_ms) -> Backend:
        """Recommender of the bundle and the rows of earlier snapshots. Raises KirError."""
        if config.bundle is None:
            raise InputError("a server needs a bundle", fix="--bundle DIR")
        index = read_index(config.bundle)
        models = load_models(index, threads=config.threads)
        recommender = Recommender(models, Histories(load_histories(index)), pool=config.pool, clock=clock)
        store = EmbeddingStore(config.row_dtype)
        if config.snapshots is not None:
            for path in sorted(config.snapshots.glob("*.safetensors")):
                if path.stem in index.dense_versions:
                    store.restore(path)
        return Backend(recommender, store)


class Server:
    """One server. Start it once. Raises KirError when the bundle does not load or a port is taken.

    grpc_port, http_port: what was bound (http_port None without HTTP); pages, intake, store: the parts, for
    in-process use.
    """

    def __init__(
        self,
        config: ServerConfig,
        backend: Backend | None = None,
        *,
        clock: Clock = wall_clock_ms,
        page_ids: Any = new_page_id,
    ):
        self.config = config
        self.grpc_port = 0
        self.http_port: int | None = None
        self._backend, self._clock, self._page_ids = backend, clock, page_ids
        self._tasks: list[asyncio.Task[None]] = []
        self._serving = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def start(self) -> None:
        config = self.config
        await asyncio.to_thread(self._build)
        self._doors = Doors(self.pages, self.intake, workers=config.workers, queue=config.queue)
        servicer = EmbeddingServicer(self.store, self._doors, lambda: self.pages.current, config.remote_updates)
        self._grpc = GrpcDoor(self._doors, servicer, config.message_bytes_max)
        self._http = HttpDoor(self._doors, config.cdn, self.health, config.message_bytes_max, config.cors_origin)
        tls = (config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
        try:
            self.grpc_port = await self._grpc.start(config.host, config.grpc_port, tls)
            if config.http_port is not None:
                self.http_port = await self._http.start(config.host, config.http_port, tls)
        except BaseException:
            await self._close_doors(0.0)
            raise
        self._serving = True
        self._tasks = [asyncio.create_task(self._every(config.flush_ms, self._flush))]
        if config.bundle is not None or config.cdn is not None:
            self._tasks.append(asyncio.create_task(self._every(config.poll_ms, self.live.poll)))

    def _build(self) -> None:
        config = self.config
        backend = self._backend or Backend.from_config(config, self._clock)
        self.store = backend.store
        page_log = PageLog(keep_unwritten=config.events is not None)
        self.pages = PageMaker(
            backend.recommender, self.store, config, page_log, self._clock, self._page_ids, backend.current
        )
        self.intake = FeedbackIntake(
            backend.recommender, page_log, config.events, self._clock, flush_events=config.flush_events
        )
        bundle = config.bundle if self._backend is None else None
        self.live = LiveParts(self.pages, self.store, bundle, config.cdn, config.threads)
        self.live.load()
        self.intake.restore()

    async def _every(self, period_ms: int, work: Any) -> None:
        """Run `work` in a thread again and again."""
        while True:
            await asyncio.sleep(period_ms / 1000)
            try:
                await asyncio.to_thread(work)
            except Exception:  # whatever it was must not end the saving of feedback
                log.exception("background work failed; it is tried again")

    def _flush(self) -> None:
        self.intake.flush()

    def health(self) -> dict[str, Any]:
        """What /healthz says: status, live versions, counters."""
        versions = {v.dense_version: v.rows_revision for v in self.store.versions()}
        recommender, retrieval = self.pages.recommender, None
        if isinstance(recommender, Recommender):
            models = recommender.models
            retrieval = {"version": models.retrieval.version, "rows_revision": models.retrieval_revision}
        return {
            "status": "serving" if self._serving else "stopping",
            "current": self.pages.current,
            "rows_revision": versions,
            "retrieval": retrieval,
            "pages": self.pages.stats.pages,
            "refusals": self.pages.stats.refusals,
            "missing_rows": self.pages.stats.missing_rows,
            "rows_status": self.pages.stats.rows_status,
            "feedback": dict(self.intake.stats),
        }

    async def wait(self) -> None:
        """Until cancelled."""
        await asyncio.Event().wait()

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Finish the calls under way, write feedback and snapshots, close. A second call does nothing."""
        if not self._serving:
            return
        self._serving = False
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._close_doors(grace_s)
        await asyncio.to_thread(self._save)

    async def _close_doors(self, grace_s: float) -> None:
        await self._grpc.stop(grace_s)
        await self._http.stop()
        await asyncio.to_thread(self._doors.close)

    def _save(self) -> None:
        try:
            self.intake.flush()
        finally:
            if self.config.snapshots is not None:
                for version in self.store.versions():
                    self.store.snapshot(version.dense_version, self.config.snapshots)
