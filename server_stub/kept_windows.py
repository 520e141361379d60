"""KuaiFormer's compressed windows, kept per user between two answers: what makes 256 items cost about what 64 do.

A window of old positives becomes one token (paper 2.3), which no later one changes. So windows are worked out once,
with the raw tail as short as training has seen it (`latest` less the smallest window, and one), and serve until that
window has filled anew. Then one of the smallest is made. The larger ones stay where they are, so that for a while there
are fewer of the smallest than the plan has; when one too many would stand there, as many of the oldest as make the next
larger size become one of it (`plans`: 64, 64 and two to five of 16). Beside that an answer runs the tail and the
queries alone. It is that of the same net with another plan and cut (`Encoder.compressed`, `Encoder.behind`), and with
all windows and the tail at its full length `encoder.onnx`'s.

Shapes: L history, T = latest, W windows of the plan, V of those that stand, D width, R row width.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError, VersionMismatch
from contract.history import UserHistory
from server_stub.onnx_model import ANY, OnnxModel

WINDOW, TAIL = "window.onnx", "tail.onnx"
USERS_MAX = 20_000  # 5 KB each at width 128

Floats = NDArray[np.float32]


class _Kept(NamedTuple):
    """Windows that stand: the last item before the tail, their sizes, digests [V], tokens [V, D] and present [V]."""

    last: bytes
    sizes: tuple[int, ...]
    digests: tuple[bytes, ...]
    tokens: Floats
    present: Floats


class Part(NamedTuple):
    """What a graph reads of a history: columns of the items, mask [n] of those that are real."""

    columns: Mapping[str, NDArray[Any]]
    mask: Floats


RowsOf = Callable[[Part], Floats]


State = tuple[int, tuple[int, ...]]  # raw items of the tail, sizes of the windows before it


class WindowPlan:
    """Which windows stand before how long a tail, as a history grows.

    variants  what may stand, by the number of the smallest: (64, 64, 16, 16) … (64, 64, 16, 16, 16, 16, 16), which is
              the plan. Where the smallest do not make one of the next larger size the plan stands alone
    """

    def __init__(self, sizes: Sequence[int], latest: int):
        """sizes: of the plan, oldest first."""
        self.sizes, self.latest, self.least = tuple(sizes), latest, min(sizes)
        self.shortest = max(1, latest - self.least + 1)
        most = next((n for n, size in enumerate(reversed(sizes)) if size != self.least), len(sizes))
        larger = self.sizes[: len(sizes) - most]
        made_of = larger[-1] // self.least if larger and larger[-1] % self.least == 0 else 1
        self._fewest, self._most = (most + 1 - made_of if made_of <= most else most), most
        self.variants = [larger + (self.least,) * n for n in range(self._fewest, most + 1)]

    def next(self, stand: tuple[int, ...] | None, since: int, n: int) -> State:
        """What shall stand for a history of n items. stand: what does, None = nothing; since: items behind it, 0 where
        the history lacks its last one."""
        if stand is None or since < self.shortest:
            return self.shortest, self.sizes
        if since <= self.latest:
            return since, stand
        more = -(-(since - self.latest) // self.least)  # of the smallest size, so that those that stand are known
        tail = since - self.least * more
        if n - tail <= self._most * self.least:  # nothing in the larger ones yet
            return tail, self.sizes
        number = stand.count(self.least) + more
        if number > self._most:
            number = self._most - (self._most - number) % len(self.variants)
        return tail, self.variants[number - self._fewest]

    @property
    def made_per_item(self) -> float:
        """Items that go through the compression layer for each new one, of a history that is full."""
        merged = len(self.variants)
        if merged > 1 or self._most == len(self.sizes):
            return 1.0 + (merged > 1)  # into one of the smallest, later into one of the next size
        return (sum(self.sizes) - self._most * self.least) / self.least + 1.0

    def after_each(self, most: int) -> list[State]:
        """What stands for a user who is answered after every positive, by their number from 0 to `most`."""
        found: list[State] = [(n, ()) for n in range(min(most, self.latest) + 1)]
        while len(found) <= most:
            tail, stand = found[-1]
            found.append(self.next(stand or None, tail + 1, len(found)))
        return found


class KeptWindows:
    """An encoder in parts, and the windows of the users answered last. Thread-safe."""

    def __init__(
        self,
        window: OnnxModel,
        tail: OnnxModel,
        row_width: int,
        plan: Sequence[int],
        users_max: int = USERS_MAX,
    ):
        """plan: sizes of the windows, oldest first. Raises VersionMismatch for graphs that do not go together."""
        tail.check({"tokens": ANY, "present": ANY, "history_rows": row_width, "history_mask": ANY}, "interests")
        window.check({"history_rows": row_width, "history_mask": ANY}, "token")
        made, taken = (len(plan), *window.outputs["token"][1:]), tail.shapes["tokens"][1:]
        latest = tail.shapes["history_rows"][1]
        if made != taken or latest is None:
            what = "windows and tail are of two encoders"
            raise VersionMismatch(what, where=window.path, got=made, allowed=taken)
        self.plan, self.early, self.latest = WindowPlan(plan, latest), sum(plan), latest
        self._window, self._tail, self._row_width = window, tail, row_width
        self._width = tail.shapes["tokens"][2] or 0
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._users_max, self._lock = users_max, threading.Lock()
        self.made = 0  # windows that were worked out, for tests and statistics

    @staticmethod
    def load(directory: Path, row_width: int, threads: int = 1) -> KeptWindows | None:
        """The parts of a bundle's encoder; None where it has none. Raises InputError, VersionMismatch."""
        paths, config = [directory / name for name in (WINDOW, TAIL)], directory / "config.json"
        if not all(path.is_file() for path in paths):
            return None
        try:
            plan = [int(size) for size in json.loads(config.read_text())["model"]["windows"]]
            if not plan or min(plan) < 1:
                raise ValueError(f"windows {plan}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError("the model's windows are not told", where=config, got=str(error)) from None
        window, tail = (OnnxModel(path, threads=threads) for path in paths)
        return KeptWindows(window, tail, row_width, plan)

    def copy(self) -> KeptWindows:
        """The same graphs without what is kept: for rows that changed."""
        return KeptWindows(self._window, self._tail, self._row_width, self.plan.sizes, self._users_max)

    def encode(self, user: int, history: UserHistory, rows_of: RowsOf) -> Floats:
        """Interests [K, D]. rows_of: `Part` -> history_rows [n, R]."""
        length, n = self.early + self.latest, min(len(history), self.early + self.latest)
        columns = history.columns(length)
        tail, tokens = n, np.zeros((len(self.plan.sizes), self._width), np.float32)
        present = np.zeros(len(self.plan.sizes), np.float32)
        if n > self.latest:
            tail, kept = self._windows_of(user, columns, n, rows_of)
            stand = slice(len(self.plan.sizes) - len(kept.sizes), None)  # what is not there stands in front
            tokens[stand], present[stand] = kept.tokens, kept.present
        raw = {name: column[length - tail :] for name, column in columns.items()}
        rows = np.zeros((1, self.latest, self._tail.shapes["history_rows"][2] or 0), np.float32)
        mask = np.zeros((1, self.latest), np.float32)
        mask[0, :tail] = 1.0
        if tail:
            rows[0, :tail] = rows_of(Part(raw, mask[0, :tail]))
        given = {"tokens": tokens[None], "present": present[None], "history_rows": rows, "history_mask": mask}
        interests: Floats = self._tail.run(given, "interests")[0]
        return interests

    def _windows_of(self, user: int, columns: Mapping[str, NDArray[Any]], n: int, rows_of: RowsOf) -> tuple[int, _Kept]:
        """Length of the tail, and the windows before it: those that are held, as far as the history still has their
        items, and what is made beside them."""
        bytes_L = _bytes_of(columns)
        with self._lock:
            held = self._kept.get(user)
        stand, since = (None, 0) if held is None else (held.sizes, self._since(held, bytes_L))
        tail, sizes = self.plan.next(stand, since, n)
        end = len(bytes_L) - tail
        digests = _digests(bytes_L[:end], sizes)
        if held is None or digests != held.digests:
            known: dict[bytes, tuple[Floats, Any]] = {}
            if held is not None:
                known = {one: (held.tokens[w], held.present[w]) for w, one in enumerate(held.digests)}
            self._make(
                known, digests, sizes, {name: column[:end] for name, column in columns.items()}, n - tail, rows_of
            )
            tokens, present = (np.stack(parts) for parts in zip(*(known[one] for one in digests), strict=True))
            held = _Kept(bytes_L[end - 1].tobytes(), sizes, digests, tokens, present)
        self._keep(user, held)
        return tail, held

    def _since(self, held: _Kept, bytes_L: NDArray[np.uint8]) -> int:
        """How many items came since the last one of the windows that are held; 0 where the history lacks it."""
        same = (bytes_L == np.frombuffer(held.last, np.uint8)).all(axis=1)
        found = np.flatnonzero(same)
        return len(bytes_L) - 1 - int(found[-1]) if len(found) else 0

    def _make(
        self,
        known: dict[bytes, tuple[Floats, Any]],
        digests: Sequence[bytes],
        sizes: Sequence[int],
        columns: Mapping[str, NDArray[Any]],
        n: int,
        rows_of: RowsOf,
    ) -> None:
        """Work out the windows that are not known; those of one size in one call. n: real items before the tail."""
        ends = np.cumsum(sizes) + len(next(iter(columns.values()))) - sum(sizes)
        first = ends[-1] - n
        nothing = np.zeros(self._width, np.float32), np.float32(0.0)
        known |= {one: nothing for one, end in zip(digests, ends, strict=True) if end <= first}
        for size in dict.fromkeys(sizes):
            wanted = [w for w, one in enumerate(digests) if sizes[w] == size and one not in known]
            if not wanted:
                continue
            place = (ends[wanted][:, None] - size + np.arange(size)).reshape(-1)
            mask = (place >= first).astype(np.float32)
            rows = rows_of(Part({name: column[place] for name, column in columns.items()}, mask))
            given = {"history_rows": rows.reshape(len(wanted), size, -1), "history_mask": mask.reshape(-1, size)}
            found = self._window.run_all(given)
            for number, w in enumerate(wanted):
                known[digests[w]] = found["token"][number], found["present"][number]
            self.made += len(wanted)

    def _keep(self, user: int, kept: _Kept) -> None:
        with self._lock:
            self._kept[user] = kept
            self._kept.move_to_end(user)
            if len(self._kept) > self._users_max:
                self._kept.popitem(last=False)


def _digests(items: NDArray[np.uint8], sizes: Sequence[int]) -> tuple[bytes, ...]:
    """Of each window's items; the last window ends with the last of `items`."""
    ends = np.cumsum(sizes) + len(items) - sum(sizes)
    parts = (items[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True))
    return tuple(blake2b(part, digest_size=16).digest() for part in parts)


def _bytes_of(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """[L, bytes]: each item's columns beside each other, so that an amended one is another."""
    parts = [np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1) for column in columns.values()]
    return np.concatenate(parts, axis=1)
