"""What a server is told, in one frozen dataclass; `kir serve` fills it from its flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contract.errors import InputError
from contract.page import CANDIDATES_MAX, TTL_MAX_MS

LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class ServerConfig:
    """Ports: 0 = the kernel picks one, None = no such door. Times in milliseconds.

    bundle          BUNDLE directory; None when the backend is given to `Server`
    cdn             CDN directory: its pointer says which dense version is current, and it is served over HTTP
    events          where event and page files go; None = feedback is answered and joined, not written
    snapshots       where rows are saved at a stop and read at a start; None = updates end with the process
    utc_offset_min  minutes from UTC to the users' clocks, for the `hour` feature
    client_clock    replays of old logs: a request's client_time_ms is the server's now
    remote_updates  UpdateRows from other machines; otherwise loopback only, since phones reach the same port
    """

    bundle: Path | None = None
    cdn: Path | None = None
    events: Path | None = None
    snapshots: Path | None = None
    host: str = LOCALHOST
    grpc_port: int = 0
    http_port: int | None = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    page_size: int = 20
    page_size_max: int = 500
    pool: int = 200
    soft_ttl_ms: int = 600_000
    hard_ttl_ms: int = 1_800_000
    utc_offset_min: int = 0
    client_clock: bool = False
    workers: int = 2
    queue: int = 64
    message_bytes_max: int = 4 * 2**20
    poll_ms: int = 2_000
    flush_ms: int = 5_000
    flush_events: int = 2_000
    row_dtype: str = "float32"
    threads: int = 1
    remote_updates: bool = False
    cors_origin: str = ""

    def __post_init__(self) -> None:
        def check(good: bool, flag: str, got: object, allowed: str) -> None:
            if not good:
                raise InputError(f"{flag} is out of range", got=got, allowed=allowed)

        for flag, port in (("--port", self.grpc_port), ("--http-port", self.http_port)):
            check(port is None or 0 <= port < 65536, flag, port, "0 … 65535")
        check(1 <= self.page_size_max <= CANDIDATES_MAX, "page_size_max", self.page_size_max, f"1 … {CANDIDATES_MAX}")
        check(1 <= self.page_size <= self.page_size_max, "--page-size", self.page_size, f"1 … {self.page_size_max}")
        check(
            0 < self.soft_ttl_ms <= self.hard_ttl_ms, "--soft-ttl-s", self.soft_ttl_ms, "above 0, at most the hard TTL"
        )
        check(self.hard_ttl_ms <= TTL_MAX_MS, "--hard-ttl-s", self.hard_ttl_ms, f"up to {TTL_MAX_MS} ms")
        check(-14 * 60 <= self.utc_offset_min <= 14 * 60, "--utc-offset-min", self.utc_offset_min, "-840 … 840")
        for flag in ("workers", "queue", "pool", "poll_ms", "flush_ms", "flush_events", "threads"):
            check(getattr(self, flag) >= 1, flag, getattr(self, flag), "at least 1")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("TLS needs both --tls-cert and --tls-key", got=(self.tls_cert, self.tls_key))
