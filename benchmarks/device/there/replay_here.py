"""On the device: replay a published model's golden cases, and what that took.

python replay_here.py MODEL_FOLDER      ->  one JSON line
{"report": ReplayReport, "peak_rss_kb": …, "foreign": [mapped libraries that the runtime did not bring]}
{"error": class, "message": …} when the model can't be replayed at all
"""

from __future__ import annotations

import json
import sys

from contract.errors import KirError
from edge import replay


def peak_rss_kb() -> int:
    """The most memory this process has held so far, kB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def mapped_libraries() -> list[str]:
    """Paths of the shared objects that this process runs."""
    with open("/proc/self/maps") as maps:
        return sorted({line.split(None, 5)[5].strip() for line in maps if ".so" in line})


def main(argv: list[str]) -> int:
    try:
        report = replay(argv[0])
    except KirError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return 0
    home = sys.prefix
    foreign = [path for path in mapped_libraries() if not path.startswith(home)]
    print(json.dumps({"report": report.to_dict(), "peak_rss_kb": peak_rss_kb(), "foreign": foreign}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
