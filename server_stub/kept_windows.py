"""KuaiFormer's compressed windows, kept per user between two answers: what makes 256 items cost about what 64 do.

A window of old positives becomes one token (paper 2.3), which no later one changes. So windows are worked out once,
with the raw tail as short as training has seen it (`latest` less the smallest window, and one), and serve until that
window has filled anew; then those that only moved on are kept as well, and the others made. Beside that an answer runs
the tail and the queries alone. With the tail at its full length it is `encoder.onnx`'s; with a shorter one it is that
of the same net with another cut (`Encoder.behind`).

Shapes: L history, E = sum(windows) items before the tail, T = latest, W windows, D width, R row width.
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
    """Windows of E items: their last one, digests [W], tokens [W, D] and present [W]."""

    last: bytes
    digests: tuple[bytes, ...]
    tokens: Floats
    present: Floats


class Part(NamedTuple):
    """What a graph reads of a history: columns of the items, mask [n] of those that are real."""

    columns: Mapping[str, NDArray[Any]]
    mask: Floats


RowsOf = Callable[[Part], Floats]


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
        self.early, self.latest, self.shortest = sum(plan), latest or 0, max(1, (latest or 0) - min(plan) + 1)
        self._window, self._tail, self._plan, self._least = window, tail, tuple(plan), min(plan)
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
        fresh = KeptWindows.__new__(KeptWindows)
        fresh.__dict__.update(self.__dict__, _kept=OrderedDict(), _lock=threading.Lock(), made=0)
        return fresh

    def encode(self, user: int, history: UserHistory, rows_of: RowsOf) -> Floats:
        """Interests [K, D]. rows_of: `Part` -> history_rows [n, R]."""
        length, n = self.early + self.latest, min(len(history), self.early + self.latest)
        columns = history.columns(length)
        tail, tokens, present = (
            n,
            np.zeros((len(self._plan), self._width), np.float32),
            np.zeros(len(self._plan), np.float32),
        )
        if n > self.latest:
            tail, tokens, present = self._windows_of(user, columns, n, rows_of)
        raw = {name: column[length - tail :] for name, column in columns.items()}
        rows = np.zeros((1, self.latest, self._tail.shapes["history_rows"][2] or 0), np.float32)
        mask = np.zeros((1, self.latest), np.float32)
        mask[0, :tail] = 1.0
        if tail:
            rows[0, :tail] = rows_of(Part(raw, mask[0, :tail]))
        given = {"tokens": tokens[None], "present": present[None], "history_rows": rows, "history_mask": mask}
        interests: Floats = self._tail.run(given, "interests")[0]
        return interests

    def _windows_of(
        self, user: int, columns: Mapping[str, NDArray[Any]], n: int, rows_of: RowsOf
    ) -> tuple[int, Floats, Floats]:
        """Length of the tail, tokens and presence of the windows before it: those that are kept, as far as the history
        still holds their items."""
        bytes_L, length = _bytes_of(columns), self.early + self.latest
        with self._lock:
            held = self._kept.get(user)
        tail = self.shortest
        if held is not None:
            since = self._since(held, bytes_L)
            if self.shortest <= since <= self.latest and self._digests(bytes_L[: length - since]) == held.digests:
                self._keep(user, held)
                return since, held.tokens, held.present
            if since > self.latest:  # move on by whole windows of the smallest size, so that those of it are known
                tail = since - self._least * -(-(since - self.latest) // self._least)
        end = length - tail
        digests = self._digests(bytes_L[:end])
        known: dict[bytes, tuple[Floats, Any]] = {}
        if held is not None:
            known = {one: (held.tokens[w], held.present[w]) for w, one in enumerate(held.digests)}
        self._make(known, digests, {name: column[:end] for name, column in columns.items()}, n - tail, rows_of)
        tokens, present = (np.stack(parts) for parts in zip(*(known[one] for one in digests), strict=True))
        made = _Kept(bytes_L[end - 1].tobytes(), digests, tokens, present)
        self._keep(user, made)
        return tail, made.tokens, made.present

    def _since(self, held: _Kept, bytes_L: NDArray[np.uint8]) -> int:
        """How many items came since the last one of the windows that are held; 0 where the history lacks it."""
        same = (bytes_L == np.frombuffer(held.last, np.uint8)).all(axis=1)
        found = np.flatnonzero(same)
        return len(bytes_L) - 1 - int(found[-1]) if len(found) else 0

    def _digests(self, items: NDArray[np.uint8]) -> tuple[bytes, ...]:
        """Of each window's items, which end with the last of `items`."""
        end = len(items) - self.early
        found = []
        for size in self._plan:
            found.append(blake2b(items[end : end + size].tobytes(), digest_size=16).digest())
            end += size
        return tuple(found)

    def _make(
        self,
        known: dict[bytes, tuple[Floats, Any]],
        digests: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        n: int,
        rows_of: RowsOf,
    ) -> None:
        """Work out the windows that are not known; those of one size in one call. n: real items before the tail."""
        ends = np.cumsum(self._plan) + len(next(iter(columns.values()))) - self.early
        for size in dict.fromkeys(self._plan):
            wanted = [w for w, one in enumerate(digests) if self._plan[w] == size and one not in known]
            if not wanted:
                continue
            place = (ends[wanted][:, None] - size + np.arange(size)).reshape(-1)
            mask = (place >= ends[-1] - n).astype(np.float32)
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


def _bytes_of(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """[L, bytes]: each item's columns beside each other, so that an amended one is another."""
    parts = [np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1) for column in columns.values()]
    return np.concatenate(parts, axis=1)
