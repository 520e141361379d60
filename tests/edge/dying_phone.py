"""Phones to kill: a process that has the edge imported, and forks one phone per line on stdin.

    python -m tests.edge.dying_phone CACHE URL ROOT_JSON

A line holds two numbers: the step at which the phone kills itself with SIGKILL (a call that writes, or a chunk of a
download), and the seconds after which it is killed. 0 is never. Answers with the signal that it died of and the steps
that it took (0: none, it activated what was new).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from edge import ModelStore

STEPS = ("replace", "fsync", "symlink", "remove", "unlink", "open")


def live(cache: str, url: str, root: str, last_step: int) -> int:
    """Update and activate, as an app does. Returns the steps that it took."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            step()
            return real(*args, **kwargs)

        return call

    os.fsync = lambda handle: None  # type: ignore[assignment] # a step all the same; only a power cut would miss it
    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    store = ModelStore(cache, url, root=root, keep=2, progress=lambda path, have, n_bytes: step())
    version = store.update()
    if version is not None:
        store.activate(version)
    return steps


def main(cache: str, url: str, root: str) -> None:
    import edge._trust  # noqa: F401 - imported once here, not in every phone

    for line in sys.stdin:
        last_step, seconds = line.split()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, str(live(cache, url, root, int(last_step))).encode())
            os._exit(0)
        os.close(writer)
        if float(seconds):
            time.sleep(float(seconds))
            os.kill(pid, signal.SIGKILL)  # still ours, if only as a zombie
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        steps = os.read(reader, 20).decode() or "0"
        os.close(reader)
        print(-status, steps, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
