"""Session plans for the closed loop: which user, when, and the pages that the live server sends for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.closed_loop import SessionPlan
from contract.errors import ServerError
from contract.page import Page, decode_page

PAGES_PER_SESSION = 5
DAY_MS = 86_400_000


class PageSource:
    """Asks a page server for pages, as a phone would. Use as a context manager."""

    def __init__(self, grpc_address: str, dense_version: str, spec_fingerprint: str, timeout_s: float = 20.0):
        import grpc

        from contract.v1.page_pb2_grpc import PageServiceStub

        self._channel = grpc.insecure_channel(grpc_address)
        self._stub = PageServiceStub(self._channel)
        self._held = (dense_version, spec_fingerprint)
        self._timeout_s = timeout_s

    def page(self, user_id: int, session_id: int, size: int, exclude: list[int], now_ms: int) -> Page:
        """Raises ServerError when the server refuses."""
        from contract.v1 import page_pb2 as pb

        request = pb.GetPageRequest(
            user_id=user_id,
            session_id=session_id,
            page_size=size,
            exclude_video_ids=exclude,
            row_encoding=pb.ROW_ENCODING_INT8,
            client_time_ms=now_ms,
            held_models=[pb.HeldModel(dense_version=self._held[0], spec_fingerprint=self._held[1])],
        )
        answer = self._stub.GetPage(request, timeout=self._timeout_s)
        if answer.WhichOneof("outcome") != "page":
            raise ServerError("server refused a page", got=answer.refusal.message)
        return decode_page(answer.page)

    def __enter__(self) -> PageSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def plan_sessions(
    world: Any, source: PageSource, n_users: int, n_seeds: int, page_size: int, after_day: int, seed: int = 0
) -> list[SessionPlan]:
    """n_users sessions per seed, each with PAGES_PER_SESSION pages of the live server, on days after the training's.

    Users are drawn without replacement within a seed; session seeds are apart from those of the logs.
    """
    item_of = {int(video_id): i for i, video_id in enumerate(world.items.video_id)}
    plans = []
    for number in range(n_seeds):
        rng = np.random.default_rng([seed, number, 0xC105ED])
        users = rng.choice(world.config.n_users, size=min(n_users, world.config.n_users), replace=False)
        for user_index in users.tolist():
            start_ms = world.config.start_ms + after_day * DAY_MS + int(rng.integers(8, 20)) * 3_600_000
            session_seed = int(rng.integers(2**62))
            pages: list[Page] = []
            shown: list[int] = []
            for _ in range(PAGES_PER_SESSION):
                page = source.page(int(world.users.user_id[user_index]), session_seed, page_size, shown, start_ms)
                shown.extend(page.candidates.video_id.tolist())
                pages.append(page)
            items = [np.array([item_of[int(v)] for v in page.candidates.video_id]) for page in pages]
            plans.append(SessionPlan(number, user_index, session_seed, start_ms, pages, items))
    return plans
