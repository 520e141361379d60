"""A recorded terminal session: asciicast version 2, a header and one JSON line an event.

https://docs.asciinema.org/manual/asciicast/v2/; `asciinema play FILE` shows it. The file holds what the terminal
showed, the user's and the videos' ids included, and no keys.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.files import replacing


class Cast:
    """Collects what is painted and writes it whole: at creation the header, which proves the place, and at `save`.

    Raises InputError for a file that is there already; overwriting one is for the person to do.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        *,
        title: str = "kir swipe",
        seconds: Callable[[], float] = time.monotonic,
        started_s: float | None = None,
    ):
        if path.exists():
            raise InputError("--record writes a new file", where=path, fix="give another name or remove it")
        self._path, self._seconds, self._begin, self._size = path, seconds, seconds(), size
        started_s = time.time() if started_s is None else started_s
        header = {"version": 2, "width": size[0], "height": size[1], "timestamp": int(started_s), "title": title}
        self._lines: list[str] = [json.dumps(header)]
        self.save()

    def output(self, text: str, size: tuple[int, int]) -> None:
        """What went to the terminal, which is now `size` (columns, lines)."""
        if size != self._size:
            self._size = size
            self._event("r", f"{size[0]}x{size[1]}")
        self._event("o", text)

    def _event(self, kind: str, data: Any) -> None:
        self._lines.append(json.dumps([round(self._seconds() - self._begin, 3), kind, data], ensure_ascii=False))

    def save(self) -> None:
        """Write all events so far. Raises OSError."""
        with replacing(self._path) as file:
            file.write("".join(f"{line}\n" for line in self._lines).encode())
