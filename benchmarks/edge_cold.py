"""A cold start in a process of its own: from the imports on to the first choice, and what it adds to memory.

    python -m benchmarks.edge_cold CACHE PAGE.bin       ->  {"cold_start_ms": …, "memory_mib": …}

CACHE is a ModelStore's with an active model, PAGE.bin a page that it fits.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def resident_mib() -> float:
    """Resident memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status tells no VmRSS")


def main(argv: list[str]) -> int:
    from edge import DeviceState, EdgeSession, ModelStore

    page = Path(argv[1]).read_bytes()
    before = resident_mib()  # numpy, LiteRT and gRPC are imported with the edge
    start = time.perf_counter()
    session = EdgeSession(1, ModelStore(argv[0]))
    session.start()
    session.on_page(page)
    choice = session.next(DeviceState())
    cold_ms = (time.perf_counter() - start) * 1e3
    if choice.reason:
        print(f"the model did not choose: {choice.reason}: {session.last_error}", file=sys.stderr)
        return 1
    print(json.dumps({"cold_start_ms": cold_ms, "memory_mib": resident_mib() - before}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
