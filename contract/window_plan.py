"""Which of KuaiFormer's compressed windows stand as a history grows, where they are kept between two answers.

The server goes by it (`server_stub/kept_windows.py`), and so does evaluation of what it answers
(`training/served_windows.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from contract.errors import InputError

State = tuple[int, tuple[int, ...]]  # raw items of the tail, sizes of the windows before it


class WindowPlan:
    """Which windows stand before how long a tail, as a history grows.

    variants  what may stand, by the number of the smallest: (64, 64, 16, 16) … (64, 64, 16, 16, 16, 16, 16), which is
              the plan. Where the smallest do not make one of the next larger size the plan stands alone
    """

    def __init__(self, sizes: Sequence[int], latest: int):
        """sizes: of the plan, oldest first; latest: the longest tail. Raises InputError for a plan without windows."""
        if not sizes:
            raise InputError("a plan of windows needs one", got=tuple(sizes), fix="give a model with `windows`")
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
        if tail < 1:  # the tail holds less than a window: all are made anew
            return self.shortest, self.sizes
        if n - tail <= self._most * self.least:  # nothing in the larger ones yet
            return tail, self.sizes
        number = stand.count(self.least) + more
        if number > self._most:
            number = self._most - (self._most - number) % len(self.variants)
        return tail, self.variants[number - self._fewest]

    @property
    def made_per_item(self) -> float:
        """Items that go through the compression layer for each new one, of a history that is full."""
        if self.least > self.latest:
            return sum(self.sizes) / self.latest
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
