"""A phone that is killed again and again: forks a session, kills it with SIGKILL at any point, looks at what is left.

    python -m tests.edge.state_victim STATE_FILE KILLS SEED       # prints one JSON line

Forked, so that a kill costs no import. No model and no server: the children hold no thread.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import NoReturn

from edge import DeviceState, EdgeSession, FakeClock, Feedback, StateFile
from edge._upload import Event, FeedbackUploader
from tests.edge.tiny_page import page_bytes

USER_ID = 5
PAGE = 8


class Refusing(FeedbackUploader):
    """An uploader that never sends: everything stays in the outbox. No thread, which a fork would lose."""

    def __init__(self) -> None:
        self.settled = 0
        self.tickets = 0

    def offer(self, event: Event) -> int:
        self.tickets += 1
        return self.tickets

    def close(self, timeout_s: float = 5.0) -> bool:
        return False


def live(path: str, told: int) -> NoReturn:
    """Swipe for ever; once a feedback is saved, by the `maintain` after it, write its running number to `told`."""
    clock = FakeClock()
    session = EdgeSession(USER_ID, uploader=Refusing(), clock=clock, state=StateFile(path, outbox=20))
    session.start()
    unsaved = None
    while True:
        if not len(session.pool):
            first = 1000 + session._number * PAGE
            session.on_page(page_bytes(range(first, first + PAGE), status="no_live_version"))
        number = session._number
        choice = session.next(DeviceState(number % 7))
        session.maintain()
        if unsaved is not None:
            os.write(told, unsaved.to_bytes(8, "little"))
        clock.advance(1_000)
        session.feedback(Feedback(choice.video_id, number, {"like": number % 2 == 0}))
        unsaved = number


def look(path: str, kept_before: set[int], acknowledged: set[int]) -> tuple[set[int], list[str]]:
    """Running numbers whose feedback a kill left in the file, and what is wrong with it.

    kept_before: those before this child; acknowledged: those that it told were saved. One more may have been saved
    and not told when the kill came; an impression may lack its feedback, when the kill came before the `maintain` that
    would have saved it.
    """
    state = StateFile(path)
    session = EdgeSession(USER_ID, clock=FakeClock(), state=state)
    columns = session._history.watched.columns(1)
    numbers, plays = columns["number"].tolist(), columns["play_time_ms"].tolist()
    impressions = session._history.impressions()
    kept = {int(one.item["number"]) for one in impressions if one.revision == 0}
    shown = [int(one.item["number"]) for one in impressions]
    wrong = []
    if state.set_aside or not state.is_open:
        wrong.append(f"set aside: {state.problem}")
    if plays != numbers:
        wrong.append(f"feedback of another video: {plays}")
    if numbers != sorted(kept)[-len(numbers) :]:
        wrong.append(f"the list is not what was watched last: {numbers}")
    if shown != list(range(shown[0], session._number)) if shown else session._number:
        wrong.append(f"impressions have a hole: {shown}")
    lost = (kept_before | acknowledged) - kept
    if any(number >= shown[0] for number in lost) if shown else lost:
        wrong.append(f"saved and lost: {sorted(lost)}")
    if len(kept - kept_before - acknowledged) > 1:
        wrong.append(f"more than was told: {sorted(kept - kept_before - acknowledged)}")
    session.close()
    return kept, wrong


def main(path: str, kills: int, seed: int) -> None:
    draw, wrong = random.Random(seed), []
    kept: set[int] = set()
    for kill in range(kills):
        out, told = os.pipe()
        child = os.fork()
        if not child:
            os.close(out)
            live(path, told)
        os.close(told)
        with open(out, "rb", buffering=0) as pipe:
            data = b""
            if kill % 3:  # at work, however slow the machine; every third as it starts
                wanted = 8 * draw.randint(1, 12)
                while len(data) < wanted:
                    data += pipe.read(8)
            time.sleep(draw.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            data += pipe.read()
        acknowledged = {int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data) - 7, 8)}
        kept, problems = look(path, kept, acknowledged)
        wrong += [f"kill {kill}: {problem}" for problem in problems]
    print(json.dumps({"kills": kills, "saved": max(kept, default=-1) + 1, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
