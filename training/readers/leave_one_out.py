"""Leave-one-out sequences: a Parquet file with `user_id, position, item_id, split` (train | val | test), in time order.

MovieLens-1M and Amazon Beauty under the protocol of LRURec (Yue et al., WSDM 2024): the last item is `test`, the one
before `val`, ranking over all items. MovieLens is published at grouplens.org, Amazon reviews
(2014) by J. McAuley at jmcauley.ucsd.edu.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.errors import EventError
from contract.keys import key_of_string
from contract.vocabulary import MISSING_KEY, TAGS_MAX
from training.readers.tables import check_range, read_parquet

SPLITS = ("train", "val", "test")
FILE_NAME, ITEMS_NAME = "leave_one_out.parquet", "items.parquet"


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """U users, I items, n training events. Items are numbered 0 … I-1 in the order of their raw ids.

    item_ids     int64 [I]    raw ids, ascending
    user_ids     int64 [U]    raw ids, ascending
    train_items  int64 [n]    all users' training items in time order, one after another
    offsets      int64 [U+1]  user u's are train_items[offsets[u] : offsets[u + 1]]
    val_items    int64 [U]    -1 where a user has none
    test_items   int64 [U]    -1 where a user has none
    item_tags    uint64 [I, TAGS_MAX]  keys of the first genres in items.parquet; MISSING_KEY = none
    """

    item_ids: NDArray[np.int64]
    user_ids: NDArray[np.int64]
    train_items: NDArray[np.int64]
    offsets: NDArray[np.int64]
    val_items: NDArray[np.int64]
    test_items: NDArray[np.int64]
    item_tags: NDArray[np.uint64]

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_events(self) -> int:
        return len(self.train_items) + int((self.val_items >= 0).sum()) + int((self.test_items >= 0).sum())

    def history(self, user: int, split: str = "train") -> NDArray[np.int64]:
        """What a model may see before the target of `split`: the training items, for `test` the val item too.

        For `train` all training items (targets are among them). Raises EventError for an unknown split.
        """
        if split not in SPLITS:
            raise EventError("unknown split", got=split, allowed=SPLITS)
        items = self.train_items[self.offsets[user] : self.offsets[user + 1]]
        return np.append(items, self.val_items[user]) if split == "test" and self.val_items[user] >= 0 else items


def read_leave_one_out(path: str | Path) -> LeaveOneOut:
    """Read the file, or the folder that holds `leave_one_out.parquet`.

    Raises EventError for an unreadable file, absent or mistyped columns, unknown splits, a position that stands twice,
    two val or test items of one user, or a val or test item that is not at the end.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    table = read_parquet(path, ["user_id", "position", "item_id"], ["split"])
    for name in ("user_id", "position", "item_id"):
        check_range(path, table, name, 0, 2**63 - 1)
    codes = {name: code for code, name in enumerate(SPLITS)}
    split = np.array([codes.get(name, -1) for name in table["split"]], np.int64)
    if (split < 0).any():
        raise EventError("unknown split", where=path, got=sorted(set(table["split"]) - set(SPLITS)), allowed=SPLITS)
    order = np.lexsort((table["position"], table["user_id"]))
    user_ids, user = np.unique(table["user_id"][order], return_inverse=True)
    item_ids, item = np.unique(table["item_id"][order], return_inverse=True)
    split, position = split[order], table["position"][order]
    same_user = user[1:] == user[:-1]
    if (same_user & (position[1:] == position[:-1])).any():
        raise EventError("a user has two items at one position", where=path)
    if (same_user & (split[1:] < split[:-1])).any():
        raise EventError("val and test items must be the last ones", where=path)
    train = split == SPLITS.index("train")
    return LeaveOneOut(
        item_ids=item_ids,
        user_ids=user_ids,
        train_items=item[train],
        offsets=np.concatenate([[0], np.cumsum(np.bincount(user[train], minlength=len(user_ids)))]),
        val_items=_single(path, "val", user, item, split, len(user_ids)),
        test_items=_single(path, "test", user, item, split, len(user_ids)),
        item_tags=_genres(path.parent / ITEMS_NAME, item_ids),
    )


def _genres(path: Path, item_ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Tags of the items from the file's `genres` ("Action|Comedy"); none where there is no such file or item."""
    tags = np.full((len(item_ids), TAGS_MAX), MISSING_KEY, np.uint64)
    if not path.exists():
        return tags
    table = read_parquet(path, ["item_id"], ["genres"])
    rows = {int(item): row for row, item in enumerate(item_ids)}
    for item, genres in zip(table["item_id"], table["genres"], strict=True):
        row = rows.get(int(item))
        names = [name for name in (genres or "").split("|") if name][:TAGS_MAX]
        if row is not None:
            tags[row, : len(names)] = [key_of_string(name) for name in names]
    return tags


def _single(
    path: Path, name: str, user: NDArray[np.int64], item: NDArray[np.int64], split: NDArray[np.int64], n_users: int
) -> NDArray[np.int64]:
    rows = np.flatnonzero(split == SPLITS.index(name))
    if len(np.unique(user[rows])) != len(rows):
        raise EventError(f"a user has two {name} items", where=path)
    out = np.full(n_users, -1, np.int64)
    out[user[rows]] = item[rows]
    return out
