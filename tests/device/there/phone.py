"""On the device: a phone's life against a server on the computer, over `adb reverse`.

    python phone.py '{"grpc": "127.0.0.1:PORT", "cdn": "http://127.0.0.1:PORT", "user": 3, "swipes": 12, "now_ms": …}'

First start: model over HTTP, signed; page over gRPC; swipes; feedback until the server has it. Then it waits for a new
model, takes it over with a page, swipes, and goes back to the version before. Ends in one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing

from edge import EdgeSession, FakeClock, FeedbackClient, FeedbackUploader, ModelStore, PageClient, Retry
from edge.cli import scripted_feedback

PATIENCE_S = 120.0


def main(told: dict) -> None:
    store = ModelStore("phone-cache", told["cdn"], root="root.json")
    pages = PageClient(told["grpc"], deadline_s=30.0, retry=Retry(attempts=3, backoff_s=0.2))
    sink = FeedbackClient(told["grpc"], deadline_s=30.0)
    clock = FakeClock(wall_ms=told["now_ms"])
    uploader = FeedbackUploader(sink)
    session = EdgeSession(told["user"], store, pages, uploader, clock=clock)
    with closing(pages), closing(sink):
        with closing(session):
            heard: dict = {"started": session.start(), "first": session.update()}
            session.fetch_page()
            heard["choices"] = swipe(session, clock, told["swipes"])
            heard["sent"] = uploader.flush(PATIENCE_S)
            deadline = time.monotonic() + PATIENCE_S
            heard["second"] = None
            while heard["second"] is None and time.monotonic() < deadline:
                heard["second"] = session.update()  # None: the CDN has what is here
                time.sleep(0.2)
            session.fetch_page()
            heard["after_update"] = swipe(session, clock, 3)
        store.rollback()
        with closing(EdgeSession(told["user"], store, pages, clock=clock)) as back:
            heard["restarted"] = back.start()
            back.fetch_page()
            heard["after_rollback"] = swipe(back, clock, 3)
            heard["stays"] = back.update()
    with open("/proc/self/status") as status:
        heard["peak_rss_kb"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    print(json.dumps(heard))


def swipe(session: EdgeSession, clock: FakeClock, n: int) -> list:
    """n swipes of the scripted viewer: [video_id, chooser, dense_version] each."""
    shown = []
    for _ in range(n):
        choice = session.next()
        session.maintain()
        feedback = scripted_feedback(choice)
        clock.advance((feedback.play_time_ms or 0) + 400)
        session.feedback(feedback)
        shown.append([choice.video_id, choice.chooser.value, choice.dense_version])
    return shown


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
