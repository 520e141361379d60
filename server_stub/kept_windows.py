"""KuaiFormer's compressed windows, kept per user between two answers: what makes 256 items cost about what 64 do.

A window of old positives becomes one token (paper 2.3), which no later one changes. So windows are worked out once,
with the raw tail as short as training has seen it (`latest` less the smallest window, and one), and serve until that
window has filled anew. Then one of the smallest is made. The larger ones stay where they are, so that for a while there
are fewer of the smallest than the plan has; when one too many would stand there, as many of the oldest as make the next
larger size become one of it (contract/window_plan.py: 64, 64, two to five of 16). Beside that an answer is the tail
and the queries. It is that of the same net with another plan and cut (`Encoder.compressed`, `Encoder.behind`),
and with all windows and the tail at its full length `encoder.onnx`'s.

Shapes: L history, T = latest, W windows of the plan, V of those that stand, D width, R row width.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError, VersionMismatch
from contract.history import UserHistory
from contract.window_plan import WindowPlan
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


class _Stand(NamedTuple):
    """kept: windows, None = no history so long; missing: which of them have no token yet, the largest first; tail: raw
    items behind them."""

    kept: _Kept | None
    missing: list[int]
    tail: int

    def places(self, length: int) -> list[NDArray[np.int64]]:
        """Of the missing windows' items among the last `length`."""
        if self.kept is None:
            return []
        ends = length - self.tail - sum(self.kept.sizes) + np.cumsum(self.kept.sizes)
        return [np.arange(ends[w] - self.kept.sizes[w], ends[w]) for w in self.missing]


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
        """Interests [K, D]. rows_of: `Part` -> history_rows [n, R]; asked once, for what windows lack and the tail."""
        length, n = self.early + self.latest, min(len(history), self.early + self.latest)
        columns = history.columns(length)
        stand = self._stand(user, _bytes_of(columns), n) if n > self.latest else _Stand(None, [], n)
        place = np.concatenate([*stand.places(length), np.arange(length - stand.tail, length)])
        there = (place >= length - n).astype(np.float32)
        rows = rows_of(Part({name: column[place] for name, column in columns.items()}, there))
        given = self._nothing()
        if stand.kept is not None:
            self._make(stand.kept, stand.missing, rows, there)
            self._keep(user, stand.kept)
            here = slice(len(self.plan.sizes) - len(stand.kept.sizes), None)  # what is not there stands in front
            given["tokens"][0, here], given["present"][0, here] = stand.kept.tokens, stand.kept.present
        given["history_rows"][0, : stand.tail] = rows[len(rows) - stand.tail :]
        given["history_mask"][0, : stand.tail] = 1.0
        interests: Floats = self._tail.run(given, "interests")[0]
        return interests

    def _nothing(self) -> dict[str, Floats]:
        """What the tail's graph is given, all absent."""
        n_windows, width = len(self.plan.sizes), self._width
        shapes = {"tokens": (n_windows, width), "present": (n_windows,), "history_mask": (self.latest,)}
        shapes["history_rows"] = (self.latest, self._row_width)
        return {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}

    def _stand(self, user: int, bytes_L: NDArray[np.uint8], n: int) -> _Stand:
        """What shall stand, with the tokens of those windows that are held."""
        with self._lock:
            held = self._kept.get(user)
        stand, since = (None, 0) if held is None else (held.sizes, self._since(held, bytes_L))
        tail, sizes = self.plan.next(stand, since, n)
        end = len(bytes_L) - tail
        digests = _digests(bytes_L[:end], sizes)
        if held is not None and digests == held.digests:
            return _Stand(held, [], tail)
        tokens, present = np.zeros((len(sizes), self._width), np.float32), np.zeros(len(sizes), np.float32)
        missing = []
        for w, (one, last) in enumerate(zip(digests, end - sum(sizes) + np.cumsum(sizes), strict=True)):
            if held is not None and one in held.digests:
                place = held.digests.index(one)
                tokens[w], present[w] = held.tokens[place], held.present[place]
            elif last > len(bytes_L) - n:  # else there is nothing in it
                missing.append(w)
        missing.sort(key=lambda w: -sizes[w])
        return _Stand(_Kept(bytes_L[end - 1].tobytes(), sizes, digests, tokens, present), missing, tail)

    def _make(self, kept: _Kept, missing: Sequence[int], rows: Floats, there: Floats) -> None:
        """Work out missing windows, whose rows [n, R] and mask [n] come first; those of one size in one call."""
        start = 0
        for size, group in groupby(missing, key=lambda w: kept.sizes[w]):
            windows = list(group)
            part = slice(start, start + len(windows) * size)
            given = {"history_rows": rows[part].reshape(len(windows), size, -1)}
            found = self._window.run_all({**given, "history_mask": there[part].reshape(-1, size)})
            kept.tokens[windows], kept.present[windows] = found["token"], found["present"]
            start = part.stop
        self.made += len(missing)

    def _since(self, held: _Kept, bytes_L: NDArray[np.uint8]) -> int:
        """How many items came since the last one of the windows that are held; 0 where the history lacks it."""
        same = (bytes_L == np.frombuffer(held.last, np.uint8)).all(axis=1)
        found = np.flatnonzero(same)
        return len(bytes_L) - 1 - int(found[-1]) if len(found) else 0

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
