"""`kir serve` as a real process of its own: started, waited for, always stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from contract.errors import ServerUnavailable

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class ServerProcess:
    """Context manager around a `kir serve` process on free loopback ports.

    After entering: `grpc_address` ("host:port"), `http_url`, `log_path`. `kill()` is SIGKILL, for faults; `start()`
    starts it again, on the same ports when `same_ports`.
    """

    def __init__(self, bundle: Path, cdn: Path, work: Path, flags: Sequence[str] = ()):
        places = ["--bundle", str(bundle.resolve()), "--cdn", str(cdn.resolve())]
        self._command = [sys.executable, "-m", "kir", "serve", *places, *flags]
        self._work = work.resolve()
        self.log_path = self._work / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.grpc_port = self.http_port = 0

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def cpu_ms(self) -> float:
        """Processor time of the process so far, user and system; NaN where the system does not tell (no /proc)."""
        if self._process is None:
            return float("nan")
        try:
            # after the name, which may hold anything: state, then 10 fields, then utime and stime in ticks
            ticks = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:
            return float("nan")
        return 1000.0 * sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def start(self, same_ports: bool = False) -> None:
        """Start and wait until both ports answer. Raises ServerUnavailable with the end of its log."""
        self._work.mkdir(parents=True, exist_ok=True)
        ready = self._work / "ready.json"
        ready.unlink(missing_ok=True)
        ports = (self.grpc_port, self.http_port) if same_ports else (0, 0)
        command = [*self._command, "--port", str(ports[0]), "--http-port", str(ports[1]), "--ready-file", str(ready)]
        with open(self.log_path, "ab") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, cwd=_repository()
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log_path.read_text(errors="replace")[-600:]
                raise ServerUnavailable("server did not start", where=self.log_path, got=tail)
            time.sleep(0.02)
        told = json.loads(ready.read_text())
        self.grpc_port, self.http_port = int(told["grpc_port"]), int(told["http_port"])

    def kill(self) -> None:
        """As a crash: SIGKILL, nothing flushed."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for a process that hangs."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _repository() -> Path:
    """The folder from which `python -m kir` is found in a checkout; harmless for an installed package."""
    return Path(__file__).resolve().parent.parent
