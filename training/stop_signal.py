"""Ctrl-C and SIGTERM as a wish that a loop reads when it suits, instead of an exception in the middle of a step."""

from __future__ import annotations

import signal
import threading
import time
from types import TracebackType
from typing import Any

# torchrun hands on a Ctrl-C that the terminal has sent to all its processes already: an echo is no second wish.
ECHO_S = 5.0


class StopSignal:
    """`with StopSignal() as stop: ...; if stop.asked: ...` where `asked` is "", "SIGINT" or "SIGTERM".

    A second signal, more than ECHO_S later, acts as if this were not here. Outside the main thread, and with
    `listen=False`, signals are left alone.
    """

    def __init__(self, *, listen: bool = True):
        self.asked = ""
        self._listen = listen
        self._asked_s = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self.asked = ""
        if self._listen and threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: object) -> None:
        if not self.asked:
            self.asked, self._asked_s = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._asked_s > ECHO_S:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
