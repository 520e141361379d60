"""A CDN over real HTTP on loopback: Range, and whatever a hostile one may do. For the tests of downloads and trust."""

from __future__ import annotations

import contextlib
import http.server
import threading
from pathlib import Path
from typing import Any


class Cdn(http.server.ThreadingHTTPServer):
    """A CDN that can be told to misbehave. log: (path, Range header or ""). Listens while in its `with` block."""

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.log: list[tuple[str, str]] = []
        self.break_after: list[int] = []  # bytes after which the next answers break off
        self.statuses: list[int] = []  # answered instead of files
        self.ranges = True
        self.stopping = threading.Event()
        self.endless: set[str] = set()  # paths that never end
        self.trickling: set[str] = set()  # paths of which a byte comes now and then, for ever
        self.stall_after: int | None = None  # graphs sent whole, before one stops half-way until `go_on`
        self.stalled, self.go_on = threading.Event(), threading.Event()

    def __enter__(self) -> Cdn:
        self._thread = threading.Thread(target=self.serve_forever, daemon=True, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.go_on.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Cdn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.log.append((self._name(), wanted))
        path = self.server.root / self._name()
        if self.server.statuses or not (path.is_file() or self._name() in self.server.endless):
            self.send_response(self.server.statuses.pop(0) if self.server.statuses else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self._name() in self.server.endless | self.server.trickling:
            self._never_end(1 if self._name() in self.server.trickling else 64 * 1024)
            return
        content, start, status = path.read_bytes(), 0, 200
        if wanted and self.server.ranges:
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            if start >= len(content):
                status, content = 416, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) - start if content else 0))
        self.end_headers()
        body = content[start:]
        if self.server.break_after and path.suffix == ".tflite":
            self.wfile.write(body[: self.server.break_after.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        if self.server.stall_after is not None and path.suffix == ".tflite":
            self.server.stall_after -= 1
            if self.server.stall_after < 0:
                self.server.stall_after = None
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.server.stalled.set()
                self.server.go_on.wait()
                body = body[len(body) // 2 :]
        self.wfile.write(body)

    def _name(self) -> str:
        return self.path.lstrip("/")

    def _never_end(self, n_bytes: int) -> None:
        """An answer without a length, until the other side hangs up."""
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.stopping.wait(0.005 if n_bytes == 1 else 0.0):
                self.wfile.write(b" " * n_bytes)

    def log_message(self, format: str, *args: Any) -> None:
        pass
