"""What tests of a session begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge import Choice, EdgeSession, FakeClock, InstalledModel
from tests.edge.tiny_model import FUSION, TASKS

Open = Callable[[str], InstalledModel]
WEIGHTS = np.array([FUSION[task] for task in TASKS], np.float32)


def ids_of(choices: list[Choice]) -> list[int]:
    return [choice.video_id for choice in choices]


def plain_session(clock: FakeClock, **kwargs: Any) -> EdgeSession:
    session = EdgeSession(5, clock=clock, session_id=77, **kwargs)
    session.start()
    return session
