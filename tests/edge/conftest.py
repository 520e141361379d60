"""Fixtures of the edge's tests: the tiny CDN, its models, a server in this process, a session at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.v1 import feedback_pb2, feedback_pb2_grpc, page_pb2, page_pb2_grpc
from edge import EdgeSession, Engine, FakeClock, InstalledModel
from tests.edge import tiny_model
from tests.edge.state_phone import Phone


@pytest.fixture(scope="session")
def tiny_cdn() -> Path:
    """The shared CDN directory: read only."""
    return tiny_model.shared_cdn()


@pytest.fixture
def cdn(tmp_path: Path) -> Path:
    """A CDN directory of the test's own."""
    return tiny_model.copy_cdn(tmp_path / "cdn")


@pytest.fixture(scope="session")
def published(tiny_cdn: Path) -> Callable[[str], InstalledModel]:
    return lambda version: InstalledModel.open_published(tiny_cdn / "models" / version)


@pytest.fixture(scope="session")
def engine(published: Callable[[str], InstalledModel]) -> Engine:
    return Engine(published("kir-a"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def session(published: Callable[[str], InstalledModel], clock: FakeClock) -> EdgeSession:
    """A started session with model kir-a and no page yet."""
    made = EdgeSession(5, published("kir-a"), clock=clock, session_id=77)
    assert made.start() == ""
    return made


@dataclasses.dataclass
class LocalServer(page_pb2_grpc.PageServiceServicer, feedback_pb2_grpc.FeedbackServiceServicer):
    """Both services over a real socket. Scripted answers come first; then `page` for ever, and feedback is kept."""

    answers: list[Any] = dataclasses.field(default_factory=list)  # GetPageResponse, StatusCode, or a function
    feedback_answers: list[grpc.StatusCode] = dataclasses.field(default_factory=list)
    requests: list[page_pb2.GetPageRequest] = dataclasses.field(default_factory=list)
    events: dict[tuple[int, int, int], feedback_pb2.FeedbackEvent] = dataclasses.field(default_factory=dict)
    batches: list[int] = dataclasses.field(default_factory=list)
    port: int = 0

    def GetPage(self, request: page_pb2.GetPageRequest, context: grpc.ServicerContext) -> page_pb2.GetPageResponse:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else grpc.StatusCode.UNIMPLEMENTED
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "as the test wants")
        return answer

    def ReportFeedback(
        self, request: feedback_pb2.ReportFeedbackRequest, context: grpc.ServicerContext
    ) -> feedback_pb2.ReportFeedbackResponse:
        if self.feedback_answers:
            context.abort(self.feedback_answers.pop(0), "as the test wants")
        self.batches.append(len(request.events))
        known = len(self.events)
        self.events |= {(e.session_id, e.seq, e.revision): e for e in request.events}
        accepted = len(self.events) - known
        return feedback_pb2.ReportFeedbackResponse(accepted=accepted, duplicates=len(request.events) - accepted)

    def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """Listen, on the port of the last time if there was one."""
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        page_pb2_grpc.add_PageServiceServicer_to_server(self, self._server)
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(self, self._server)
        address = f"localhost:{self.port}"
        secure = credentials is not None
        self.port = (
            self._server.add_secure_port(address, credentials) if secure else self._server.add_insecure_port(address)
        )
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"


@pytest.fixture
def server() -> Iterator[LocalServer]:
    made = LocalServer()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def phone(tmp_path: Path, engine: Engine) -> Phone:
    return Phone(tmp_path / "user-5.state", engine)


@pytest.fixture
def plain(tmp_path: Path) -> Phone:
    """Without a model: the state is the same, and costs less to make."""
    return Phone(tmp_path / "user-5.state")
