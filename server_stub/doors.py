"""The two doors that gRPC and HTTP share: bytes in, bytes out, work in an executor, at most so many requests at once.

A page request never fails as an RPC: what goes wrong is a refusal inside the answer, so that every transport carries
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from google.protobuf.message import DecodeError

from contract.errors import InputError
from contract.v1 import feedback_pb2, page_pb2
from server_stub.feedback import FeedbackIntake, IntakeFull
from server_stub.pages import PageMaker

Result = TypeVar("Result")
RETRY_AFTER_MS = 500


class Overloaded(Exception):
    """More requests are waiting than the queue takes."""


class Doors:
    """Lives in one event loop. workers: threads for CPU work; queue: how many requests may wait for one."""

    def __init__(self, pages: PageMaker, intake: FeedbackIntake, *, workers: int = 2, queue: int = 64):
        self.pages = pages
        self.intake = intake
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="kir-serve")
        self._room = workers + queue
        self._inside = 0

    async def run(self, work: Callable[..., Result], *args: object) -> Result:
        """Run `work(*args)` in a worker thread. Raises Overloaded at once when the queue is full."""
        if self._inside >= self._room:
            raise Overloaded
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)
        finally:
            self._inside -= 1

    async def page(self, data: bytes) -> bytes:
        """Bytes of a GetPageRequest -> bytes of a GetPageResponse. Never raises."""
        try:
            return await self.run(self.pages.answer, data)
        except Overloaded:
            reason = page_pb2.REFUSAL_REASON_OVERLOADED
            return self.pages.refusal(reason, "too many requests at once", RETRY_AFTER_MS)

    async def feedback(self, data: bytes) -> bytes:
        """Bytes of a ReportFeedbackRequest -> bytes of a ReportFeedbackResponse.

        Raises InputError for bytes that are no report, Overloaded when the phone had better keep its events and try
        later.
        """
        request = feedback_pb2.ReportFeedbackRequest()
        try:
            request.ParseFromString(data)
        except DecodeError:
            raise InputError("bytes are not a kir.v1.ReportFeedbackRequest", got=f"{len(data)} bytes") from None
        try:
            response = await self.run(self.intake.report, request)
        except IntakeFull:
            raise Overloaded from None
        return response.SerializeToString(deterministic=True)

    def close(self) -> None:
        """Wait for the work under way. Blocking."""
        self._executor.shutdown(wait=True)
