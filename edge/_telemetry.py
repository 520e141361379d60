"""What the parts of a session tell the outside: the error that was swallowed last. Not thread-safe."""

from __future__ import annotations


class Telemetry:
    """Shared by the parts of one session. last_error: what was swallowed last, since nothing may stop a swipe."""

    def __init__(self) -> None:
        self.last_error: Exception | None = None

    def swallowed(self, error: Exception) -> None:
        """Keep an error that costs no swipe."""
        self.last_error = error
