"""Small splits and scorers for the tests of retrieval's evaluation."""

from __future__ import annotations

import numpy as np

from contract.vocabulary import MISSING_KEY, TAGS_MAX
from training.readers import LeaveOneOut
from training.retrieval_split import RetrievalSplit, split_of


def sequences(seed: int = 0, n_users: int = 40, n_items: int = 30, longest: int = 12) -> LeaveOneOut:
    """Random sequences; ids are not row numbers; some users have no val and test item, some targets are repeats."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, longest + 1, n_users)
    has_test = random.random(n_users) < 0.9
    draw = (n_items * random.random(sizes.sum()) ** 2).astype(np.int64)  # low rows are popular
    held = [np.where(has_test, random.integers(0, n_items, n_users), -1) for _ in range(2)]
    return LeaveOneOut(
        item_ids=np.arange(n_items) * 7 + 3,
        user_ids=np.arange(n_users) * 11 + 5,
        train_items=draw,
        offsets=np.append(0, np.cumsum(sizes)),
        val_items=held[0],
        test_items=held[1],
        item_tags=np.full((n_items, TAGS_MAX), MISSING_KEY, np.uint64),
    )


def masked_split(seed: int = 0, history: int = 4, **sizes: int) -> RetrievalSplit:
    """A split that masks the last `history` places of every history."""
    return split_of(sequences(seed, **sizes), "ml-1m", history=history)


class Fixed:
    """Scores drawn once a user, the same whatever stands beside it in a batch; `levels` makes ties."""

    def __init__(self, seed: int = 0, levels: int = 0, name: str = "fixed"):
        self.seed, self.levels, self.name = seed, levels, name
        self.calls: list[int] = []

    def scores(self, split: RetrievalSplit, user, end):
        self.calls.append(len(user))
        return np.stack([self.of(split, int(u), int(e)) for u, e in zip(user, end, strict=True)])

    def of(self, split: RetrievalSplit, user: int, end: int):
        drawn = np.random.default_rng((self.seed, user + 1, end)).random(split.n_items)
        return (np.floor(drawn * self.levels) if self.levels else drawn).astype(np.float32)


class Target:
    """Knows the answer and puts it `place` items deep (0 = first): ranks are known in advance. One query a user."""

    name = "target"

    def __init__(self, split: RetrievalSplit, which: str, place: int = 0):
        queries = split.chosen(which)
        self.item = dict(zip(queries.user.tolist(), queries.item.tolist(), strict=True))
        self.place = place

    def scores(self, split: RetrievalSplit, user, end):
        scores = np.zeros((len(user), split.n_items), np.float32)
        for row, u in enumerate(user.tolist()):
            others = [n for n in range(split.n_items) if n != self.item[u]]
            scores[row, [*others[: self.place], self.item[u]]] = np.arange(self.place + 1, 0, -1)
        return scores
