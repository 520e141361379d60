"""Servers that misbehave, on ports the kernel picks: any bytes as an answer over gRPC, or no gRPC at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from contract.v1 import page_pb2

Answer = bytes | grpc.StatusCode | Callable[[page_pb2.GetPageRequest], bytes]


@dataclass
class FaultyServer:
    """Answers both services with raw bytes: the scripted ones first, then `page` and `feedback` for ever.

    requests: what was asked; batches: feedback requests, as bytes.
    """

    page: Answer = grpc.StatusCode.UNAVAILABLE
    feedback: Answer = b""
    answers: list[Answer] = field(default_factory=list)
    requests: list[page_pb2.GetPageRequest] = field(default_factory=list)
    batches: list[bytes] = field(default_factory=list)
    port: int = 0

    def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        options = [("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
        for service, method, handler in (
            ("kir.v1.PageService", "GetPage", self._get_page),
            ("kir.v1.FeedbackService", "ReportFeedback", self._report),
        ):
            handlers = {method: grpc.unary_unary_rpc_method_handler(handler)}  # no serialiser: bytes as they are
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self._server.add_insecure_port(f"localhost:{self.port}")
        self._server.start()

    def stop(self) -> None:
        """At once: calls under way are cut off."""
        self._server.stop(None).wait()

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def _get_page(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        request = page_pb2.GetPageRequest.FromString(raw)
        self.requests.append(request)
        return _give(self.answers.pop(0) if self.answers else self.page, request, context)

    def _report(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        self.batches.append(raw)
        return _give(self.feedback, page_pb2.GetPageRequest(), context)


def _give(answer: Answer, request: page_pb2.GetPageRequest, context: grpc.ServicerContext) -> bytes:
    if isinstance(answer, grpc.StatusCode):
        context.abort(answer, "as the test wants")
    return answer(request) if callable(answer) else answer


@contextmanager
def socket_that(says: bytes | None) -> Iterator[str]:
    """HOST:PORT of a TCP server that sends these bytes to whoever connects, and hangs up; None: never says a word."""
    stopped = threading.Event()
    open_sockets: list[socket.socket] = []
    with socket.create_server(("localhost", 0)) as listener:
        listener.settimeout(0.05)

        def serve() -> None:
            while not stopped.is_set():
                try:
                    caller, _ = listener.accept()
                except TimeoutError:
                    continue
                open_sockets.append(caller)
                if says is not None:
                    caller.sendall(says)
                    caller.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"localhost:{listener.getsockname()[1]}"
        finally:
            stopped.set()
            thread.join()
            for caller in open_sockets:
                caller.close()
