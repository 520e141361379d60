"""A log in which a user watches one topic, with videos and users that appear on its last days alone.

Topics can't be read from tags or authors: what a video is about has to be learnt from who watches it, so a new video is
found only after its first day has been trained on. Then a topic has ten videos: the ten best are all of them.
"""

from __future__ import annotations

import numpy as np

from contract.catalogue import Catalogue, UserTable
from contract.events import Events
from contract.vocabulary import MISSING_KEY, TAGS_MAX
from training.readers import LogData
from training.recipe import Recipe

TOPICS, OLD_ITEMS, NEW_ITEMS, OLD_USERS, NEW_USERS = 4, 32, 8, 40, 8
START_MS, DAY_MS = 1_767_571_200_000, 86_400_000
OLD_DAYS = (0, 1, 2)
NEW_DAY, TEST_DAY = 3, 4
A_DAY = 6  # positives of a user
RECIPE = Recipe.from_dict(
    {
        "model": {"windows": [8], "latest": 16, "width": 16, "video_width": 16, "interests": 1, "hidden": 32},
        "data": {"batch": 128},
        "train": {"epochs": 24, "learning_rate": 0.01},
    }
)


def video(number: int) -> int:
    return 1000 + 7 * number


def user(number: int) -> int:
    return 50 + 3 * number


def is_new_video(ids) -> np.ndarray:
    return np.asarray(ids) >= video(OLD_ITEMS)


def catalogue(numbers=range(OLD_ITEMS + NEW_ITEMS)) -> Catalogue:
    n = len(numbers)
    tags = np.full((n, TAGS_MAX), MISSING_KEY, np.uint64)
    tags[:, 0] = 3  # says nothing
    return Catalogue(
        video_id=np.array([video(i) for i in numbers], np.uint64),
        author_id=np.full(n, 9, np.uint64),
        tags=tags,
        duration_ms=np.full(n, 10_000, np.int32),
        upload_ms=np.full(n, START_MS, np.int64),
    )


def log(*days: int, seed: int = 0, skip_every: int = 5) -> LogData:
    """Events of some days; old videos and users alone before NEW_DAY. Every `skip_every`th is no positive."""
    rows = []
    for day in days:
        random = np.random.default_rng((seed, day))
        grown = day >= NEW_DAY
        items = np.arange(OLD_ITEMS + NEW_ITEMS * grown)
        for u in range(OLD_USERS + NEW_USERS * grown):
            own = items[items % TOPICS == u % TOPICS]
            for k, item in enumerate(random.choice(own, A_DAY, replace=False)):
                time_ms = START_MS + day * DAY_MS + k * 3_600_000 + u
                rows.append((user(u), video(int(item)), time_ms, int((u + k + day) % skip_every != 0)))
    user_id, video_id, time_ms, positive = map(np.array, zip(*rows, strict=True))
    items = catalogue()
    place = items.index_of(video_id.astype(np.uint64))
    events = Events(
        {
            "user_id": user_id.astype(np.uint64),
            "video_id": video_id.astype(np.uint64),
            "time_ms": time_ms.astype(np.int64),
            "long_view": positive.astype(np.int8),
            "play_time_ms": np.full(len(rows), 9_000, np.int32),
            "duration_ms": items.duration_ms[place],
            "author_id": items.author_id[place],
            "tags": items.tags[place],
        }
    )
    known = OLD_ITEMS + NEW_ITEMS * (max(days) >= NEW_DAY)
    users = np.unique(events["user_id"])
    no = np.full(len(users), -1, np.int32)
    return LogData(events, catalogue(range(known)), UserTable(users, no, no))
