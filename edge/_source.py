"""Where published models come from: a CDN over HTTP, or a directory laid out like one (a first-class fake).

A source is used by one ModelStore, one update at a time. Every failure is a DownloadError naming the path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from contract.errors import DownloadError

if TYPE_CHECKING:
    import urllib3

CHUNK_BYTES = 64 * 1024
READ_S_MAX = 60.0  # for a small file, whole: each read has a timeout, but a CDN may let bytes trickle for ever
Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]  # (file, bytes so far, bytes in all)


class AbsentError(DownloadError):
    """The CDN has no such file (or does not give it out)."""


class Source(Protocol):
    """What ModelStore asks of a source. `path` is below the CDN's root, with slashes."""

    def read(self, path: str, limit_bytes: int) -> bytes:
        """A small file, whole. Raises DownloadError when it is longer than the limit, its AbsentError for no file."""

    def download(self, path: str, part: Path, n_bytes: int, progress: Progress) -> None:
        """Append what `part` lacks of a file of n_bytes. Raises DownloadError; what has arrived stays in `part`."""


class DirectorySource:
    """A directory in the CDN's layout: `current.json`, `models/<version>/…`."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def __repr__(self) -> str:
        return str(self.root)

    def read(self, path: str, limit_bytes: int) -> bytes:
        try:
            with open(self.root / path, "rb") as file:
                content = file.read(limit_bytes + 1)
        except OSError as error:
            kind = AbsentError if isinstance(error, FileNotFoundError) else DownloadError
            raise kind("can't be read", where=path, got=str(error)) from None
        if len(content) > limit_bytes:
            raise DownloadError("is longer than announced", where=path, allowed=f"{limit_bytes} bytes")
        return content

    def download(self, path: str, part: Path, n_bytes: int, progress: Progress) -> None:
        have = _size(part)
        try:
            source = open(self.root / path, "rb")  # noqa: SIM115 - closed below; only its opening is the CDN's failure
        except OSError as error:
            raise DownloadError("can't be read", where=path, got=str(error)) from None
        with source:
            source.seek(have)
            _append(iter(lambda: source.read(CHUNK_BYTES), b""), path, part, have, n_bytes, progress)


class HttpSource:
    """A CDN over HTTP(S). Broken transfers resume with a Range request, `attempts` times in all.

    timeout_s bounds the connection and each read. Certificates are checked as urllib3 does by default.
    """

    def __init__(self, base_url: str, timeout_s: float = 10.0, attempts: int = 3):
        self.base_url = base_url.rstrip("/")
        self.attempts = attempts
        import urllib3  # here: a session that needs no network does not hold its libraries in memory

        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s), retries=False, maxsize=2
        )

    def __repr__(self) -> str:
        return self.base_url

    def _get(self, path: str, headers: dict[str, str] | None = None) -> urllib3.BaseHTTPResponse:
        # identity: a hash is over the bytes as published, and sizes are counted in them.
        return self._http.request(
            "GET",
            f"{self.base_url}/{path}",
            headers={"Accept-Encoding": "identity", "Cache-Control": "no-cache", **(headers or {})},
            preload_content=False,
            redirect=False,
        )

    def read(self, path: str, limit_bytes: int) -> bytes:
        return self._with_retries(path, lambda: self._read_once(path, limit_bytes))

    def _read_once(self, path: str, limit_bytes: int) -> bytes:
        response, deadline = self._get(path), time.monotonic() + READ_S_MAX
        content = bytearray()
        try:
            if response.status != 200:
                kind = AbsentError if response.status in (403, 404) else DownloadError
                raise kind(f"the CDN answered {response.status}", where=path)
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > limit_bytes:
                    raise DownloadError("is longer than announced", where=path, allowed=f"{limit_bytes} bytes")
                if time.monotonic() > deadline:
                    raise DownloadError(
                        "the CDN is too slow", where=path, got=f"{len(content)} bytes in {READ_S_MAX} s"
                    )
        finally:
            response.close()
        return bytes(content)

    def download(self, path: str, part: Path, n_bytes: int, progress: Progress) -> None:
        self._with_retries(path, lambda: self._download_once(path, part, n_bytes, progress))

    def _download_once(self, path: str, part: Path, n_bytes: int, progress: Progress) -> None:
        have = _size(part)
        if have == n_bytes > 0:
            return
        have = have if have < n_bytes else 0
        response = self._get(path, {"Range": f"bytes={have}-"} if have else None)
        try:
            if response.status == 200:  # the CDN knows no ranges: from the start again
                have = 0
            elif response.status == 416 and have:
                part.unlink()  # what we have is not a part of that file: from the start, and then without a Range
                self._download_once(path, part, n_bytes, progress)
                return
            elif response.status != 206:
                raise DownloadError(f"the CDN answered {response.status}", where=path)
            # read1, not stream: what came before a break is kept
            chunks = iter(lambda: response.read1(CHUNK_BYTES), b"")
            _append(chunks, path, part, have, n_bytes, progress)
        finally:
            response.close()

    def _with_retries(self, path: str, attempt: Callable[[], Result]) -> Result:
        from urllib3.exceptions import HTTPError

        for number in range(1, self.attempts + 1):
            try:
                return attempt()
            except HTTPError as error:
                if number == self.attempts:
                    raise DownloadError(
                        "the CDN can't be reached or broke off",
                        where=path,
                        got=f"{type(error).__name__}: {error}",
                        fix=f"tried {number} times; what has arrived is kept",
                    ) from None
        raise DownloadError("no attempt allowed", where=path, got=self.attempts, allowed="from 1")


def open_source(place: str | Path) -> Source:
    """HttpSource for http:// and https://, DirectorySource for a directory. Raises DownloadError for anything else."""
    text = str(place)
    if text.startswith(("http://", "https://")):
        return HttpSource(text)
    if not Path(place).is_dir():
        raise DownloadError("no such CDN directory", where=text, fix="give an http(s) URL or a directory")
    return DirectorySource(place)


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _append(chunks: Iterator[bytes], path: str, part: Path, have: int, n_bytes: int, progress: Progress) -> None:
    """Write chunks behind byte `have` of `part`; an OSError of the device passes through (the store names it)."""
    with open(part, "r+b" if part.exists() else "wb") as file:
        file.truncate(have)
        file.seek(have)
        for chunk in chunks:
            have += len(chunk)
            if have > n_bytes:
                file.truncate(0)
                raise DownloadError("is longer than the manifest says", where=path, got=have, allowed=n_bytes)
            file.write(chunk)
            progress(path, have, n_bytes)
    if have < n_bytes:
        raise DownloadError("is shorter than the manifest says", where=path, got=have, allowed=n_bytes)
