"""Time on the phone: a monotonic clock for TTLs and gaps, wall time only as an anchor, and a fake of both.

All clocks are safe to read from any thread; `FakeClock` is moved by one thread.
"""

from __future__ import annotations

import time
from typing import Protocol

# Boot time goes on while the phone sleeps; a TTL must too. Not every system has it.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What the edge asks of a clock."""

    def monotonic_ms(self) -> int:
        """Milliseconds since some start; never goes back, goes on while the device sleeps."""

    def wall_ms(self) -> int:
        """Unix milliseconds; may jump."""


class SystemClock:
    """The device's own clocks."""

    def monotonic_ms(self) -> int:
        return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class FakeClock:
    """A clock that moves when told to. `advance` moves both times, `set_wall` only the wall (a user mends the date)."""

    def __init__(self, wall_ms: int = 1_735_700_000_000, monotonic_ms: int = 1_000):
        self._wall_ms = wall_ms
        self._monotonic_ms = monotonic_ms

    def monotonic_ms(self) -> int:
        return self._monotonic_ms

    def wall_ms(self) -> int:
        return self._wall_ms

    def advance(self, milliseconds: int) -> None:
        """Raises ValueError for a negative step: monotonic time never goes back."""
        if milliseconds < 0:
            raise ValueError(f"a monotonic clock does not go back: {milliseconds} ms")
        self._monotonic_ms += milliseconds
        self._wall_ms += milliseconds

    def set_wall(self, wall_ms: int) -> None:
        self._wall_ms = wall_ms


class SessionTime:
    """Unix milliseconds that never jump: the wall time at the session's start plus monotonic time since."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._offset_ms = clock.wall_ms() - clock.monotonic_ms()

    def now_ms(self) -> int:
        return self._clock.monotonic_ms() + self._offset_ms
