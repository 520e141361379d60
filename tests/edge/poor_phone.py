"""A phone whose disk refuses writes: one session per cache, each told as a JSON line.

    python -m tests.edge.poor_phone FILE_BYTES_MAX CDN CACHE…

FILE_BYTES_MAX: no file may grow above it (RLIMIT_FSIZE), 0 for no limit. A session starts, updates, swipes, and takes
over a kir-b when the cache holds one.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress

from contract.errors import KirError, ModelStoreError
from edge import EdgeSession, FakeClock, ModelStore
from tests.edge.tiny_page import page_bytes


def live(cache: str, cdn: str) -> dict[str, object]:
    store = ModelStore(cache, cdn)
    session = EdgeSession(5, store, clock=FakeClock())
    told: dict[str, object] = {"start": session.start(), "update": ""}
    try:
        told["update"] = session.update()
    except KirError as error:
        told["update"] = f"{type(error).__name__}: {error}"
    session.on_page(page_bytes(range(101, 109)))
    told["first"] = session.next().dense_version
    session.maintain()
    told["maintained"] = str(session.last_error or "")
    with suppress(ModelStoreError):
        session.offer(store.load("kir-b"))
    session.on_page(page_bytes(range(201, 209), "kir-b", page_id="p2"))
    told["then"] = session.next().dense_version
    session.maintain()
    told["last_error"] = str(session.last_error or "")
    told["active"] = store.active_version()
    session.close()
    return told


if __name__ == "__main__":
    if limit := int(sys.argv[1]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for one in sys.argv[3:]:
        print(json.dumps(live(one, sys.argv[2])), flush=True)
