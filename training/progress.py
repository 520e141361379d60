"""Progress on stderr: a bar by `rich` on a terminal, one plain line every few seconds elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

EVERY_SECONDS = 10.0


class Progress:
    """`with Progress("train", 100) as bar: bar.update(step, {"loss": 0.5})`."""

    def __init__(self, label: str, total: int, *, quiet: bool = False, stream: Any = None):
        self.label, self.total = label, total
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self._bar: Any = None
        self._bar_task: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> Progress:
        if not self.quiet and self.stream.isatty():
            try:
                from rich.console import Console
                from rich.progress import Progress as RichProgress
            except ModuleNotFoundError:
                return self
            self._bar = RichProgress(console=Console(file=self.stream), transient=True)
            self._bar.start()
            self._bar_task = self._bar.add_task(self.label, total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show that `step` of `total` are done."""
        if self.quiet:
            return
        text = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=step, description=f"{self.label}  {text}")
        elif time.monotonic() - self._last >= EVERY_SECONDS or step == self.total:
            self._last = time.monotonic()
            print(f"{self.label}: step {step}/{self.total}  {text}", file=self.stream, flush=True)
