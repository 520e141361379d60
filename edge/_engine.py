"""Engine: the dense net's graphs on LiteRT, one runner per graph and size bucket.

Legend: N candidates, L1 = L + 1 watched slots, t new tokens, G cache planes, D width, Wm width of memory, T tasks,
k beams, P placed slots.
Not thread-safe: an engine belongs to one session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError, ManifestError, NoModelError
from contract.spec import FeatureSpec
from edge._graph import GraphRunner
from edge._installed import InstalledModel

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PageState:
    """What the `page` graph worked out for the n candidates of a page, in the bucket's size.

    outputs: query [1, N, S·D], candidate_pre [1, N, C], placed_kv [1, N, V], those that the model has
    """

    bucket: int
    n: int
    outputs: Mapping[str, Floats]

    @property
    def placed_kv(self) -> Floats:
        return self.outputs["placed_kv"]


@dataclass(eq=False)
class Past:
    """Keys and values before a slot: planes [1, G, L1, D], mask [1, L1], additive.

    version: a new object when anything else changed than slots joining at the end.
    """

    planes: Floats
    mask: Floats
    version: object = field(default_factory=object, init=False)  # a copy with other values has another version

    def changed(self) -> None:
        self.version = object()


@dataclass(eq=False)
class Memory:
    """The watched list as `swipe` reads it: memory [1, L1, Wm], and memory_mask, since, behind [1, L1] each.

    length: slots in use. version: a new object when memory or memory_mask changed otherwise than by slots joining at
    the end, so that what a graph holds need not be set again.
    """

    memory: Floats
    memory_mask: Floats
    since: Floats
    behind: Floats
    length: int = 0
    version: object = field(default_factory=object, init=False)  # a copy with other values has another version

    def changed(self) -> None:
        self.version = object()


class Engine:
    """Runs the graphs of an installed model, by the variants of its device class.

    Every graph of `page`, `swipe` and `watch` is loaded, checked and run once at creation, so that a broken model is
    refused here and not at a swipe; `place` (see `load_place`) and `whole` load on first use.
    Raises NoModelError (a graph can't run here, or the manifest is not one for a phone) and IntegrityError.
    """

    def __init__(self, installed: InstalledModel, *, allow_no_delegate: bool = False):
        self.installed = installed
        self.manifest = installed.manifest
        self.spec: FeatureSpec = self.manifest.spec
        self.dense_version = self.manifest.dense_version
        self._allow_no_delegate = allow_no_delegate
        self._runners: dict[tuple[str, int], GraphRunner] = {}
        self.place_error: Exception | None = None
        self.buckets = self.manifest.buckets("swipe")
        self.watch_buckets = self.manifest.buckets("watch")
        self._check_manifest()
        self.capacity = int(self.manifest.capacities["L"])
        # k and P of the place graph; 0 without them: no plan fits then.
        self.beams, self.placed = (self._capacity(name) for name in ("k", "P"))
        self.list_reward = self.manifest.list_reward
        self.fusion_T: Floats = np.array([self.manifest.fusion.get(t, 0.0) for t in self.manifest.tasks], np.float32)
        self.variant = self.manifest.graph("swipe", f"N{self.buckets[-1]}").ship
        for name, sizes in (("page", self.buckets), ("swipe", self.buckets), ("watch", self.watch_buckets)):
            for size in sizes:
                self._runner(name, size).try_out()
        past = self._runner("watch", self.watch_buckets[0]).inputs.get("past")
        self.planes: int = 0 if past is None else past.shape[1]
        self.width: int = 0 if past is None else past.shape[3]
        self.memory_width = self._runner("swipe", self.buckets[0]).inputs["memory"].shape[2]

    def _check_manifest(self) -> None:
        where = self.dense_version
        if not self.buckets or not self.watch_buckets or self.manifest.buckets("page") != self.buckets:
            raise NoModelError("page, swipe and watch graphs must be there, page and swipe in equal sizes", where=where)
        length = self.manifest.capacities.get("L")
        if not isinstance(length, int) or length < 2 or length % 2:
            raise NoModelError("capacity L must be an even number from 2", where=where, got=length)
        if self.watch_buckets[0] != 1:
            raise NoModelError("no watch graph for one video", where=where, got=self.watch_buckets)

    def _capacity(self, name: str) -> int:
        found = self.manifest.capacities.get(name)
        return found if isinstance(found, int) and found > 0 else 0

    def load_place(self) -> None:
        """Load and run every `place` graph once, so that a swipe neither waits for it nor meets a broken one.

        Raises NoModelError or IntegrityError, kept as `place_error`; the other graphs go on.
        """
        self.place_error = None
        try:
            for size in self.buckets:
                if ("place", size) not in self._runners:
                    self._runner("place", size).try_out()
        except Exception as error:
            self.place_error = error  # no swipe shall read and refuse the file again; the next call here does
            raise

    def _runner(self, name: str, size: int) -> GraphRunner:
        runner = self._runners.get((name, size))
        if runner is None:
            runner = self.load_graph(name, f"{'T' if name == 'watch' else 'N'}{size}")
            self._runners[name, size] = runner
        return runner

    def load_graph(self, name: str, bucket: str, variant: str = "") -> GraphRunner:
        """A runner of its own for a graph: the variant that ships for this device's class, or a named one."""
        try:
            graph = self.manifest.graph(name, bucket)
            chosen = graph.variant(variant)
            content = self.installed.read(chosen.file)
        except ManifestError as error:
            raise NoModelError("the model lacks a graph", where=self.dense_version, got=str(error)) from None
        return GraphRunner(content, graph, allow_no_delegate=self._allow_no_delegate, left_out=chosen.left_out)

    def bucket_for(self, n: int) -> int:
        """The smallest bucket for n candidates. Raises InputError above the largest: the server's order cuts before."""
        for bucket in self.buckets:
            if n <= bucket:
                return bucket
        raise InputError("more candidates than the largest bucket", got=n, allowed=self.buckets)

    def page(self, blocks: Mapping[str, Floats]) -> PageState:
        """Run `page` on user_rows [1, Ru], user_dense [1, Fu], candidate_rows [n, Rc], candidate_dense [n, Fc].

        Blocks of width 0 may be absent. Candidates are padded with zeros to the bucket.
        """
        n = max((len(blocks[b]) for b in ("candidate_rows", "candidate_dense") if b in blocks), default=0)
        bucket = self.bucket_for(n)
        return PageState(bucket, n, self._runner("page", bucket).run(_padded(blocks, bucket)))

    def prepare_watch(self, rows_1R: Floats, first_slot: int, past: Past, mark: object) -> None:
        """Give the graph of one token what it needs beside watched_dense; `watch` with this mark finds it there."""
        self._give_watch(self._runner("watch", 1), rows_1R, 1, first_slot, past, mark)

    def watch(
        self, rows_tR: Floats, dense_tF: Floats, first_slot: int, past: Past, mark: object = None
    ) -> tuple[Floats, Floats]:
        """Keys and values of n ≤ max(t) new tokens that take slots first_slot …: new [G, n, D], memory_new [n, Wm];
        views, overwritten by the next run.

        past: the slots before first_slot. mark: of `prepare_watch`, for the same row and slot.
        """
        n = len(dense_tF)
        size = next((t for t in self.watch_buckets if n <= t), 0)
        if not size:
            raise InputError("more watched videos at once than a graph takes", got=n, allowed=self.watch_buckets)
        runner = self._runner("watch", size)
        self._give_watch(runner, rows_tR, n, first_slot, past, mark)
        dense = runner.inputs["watched_dense"][0]
        dense[:n] = dense_tF
        if n < size:
            dense[n:] = 0.0
        out = runner.invoke()
        new_GnD = out["new"][0, :, :n] if self.planes else past.planes[0, :, :n]  # no plane: nothing
        return new_GnD, out["memory_new"][0, :n]

    def _give_watch(
        self, runner: GraphRunner, rows_tR: Floats, n: int, first_slot: int, past: Past, mark: object
    ) -> None:
        """Rows, position and past. Of the past all of it, or what came since the graph's last run with it: at a swipe
        one slot of a large tensor."""
        inputs = runner.inputs
        if not runner.holds("tokens", object() if mark is None else mark):
            position = inputs["position"]
            position[...] = 0.0
            for token in range(n):
                position[0, token, first_slot + token] = 1.0
            runner.give(_padded({"watched_rows": rows_tR}, 0, position.shape[1]))
        if self.planes:
            given = runner.lacks("past", past.version, first_slot)
            if given < 0:
                runner.give({"past": past.planes, "past_mask": past.mask})
            elif given < first_slot:
                inputs["past"][0, :, given:first_slot] = past.planes[0, :, given:first_slot]
                inputs["past_mask"][0, given:first_slot] = past.mask[0, given:first_slot]

    def swipe(self, page: PageState, memory: Memory, swipe_dense: Floats, candidate_swipe: Floats) -> Floats:
        """Logits [n, T] of a page's candidates, nothing placed. swipe_dense [1, Fs], candidate_swipe [1, N, Fcs]:
        arrays that nobody writes to again."""
        runner = self._runner("swipe", page.bucket)
        _give_now(runner, page, memory, swipe_dense, candidate_swipe)
        return runner.invoke()["scores"][0, : page.n].copy()

    def place(
        self,
        page: PageState,
        memory: Memory,
        swipe_dense: Floats,
        candidate_swipe: Floats,
        placed: Floats,
        placed_mask: Floats,
    ) -> Floats:
        """Logits [k, n, T] given what k beams have placed: placed [1, k, P, V], placed_mask [1, k, P] additive."""
        runner = self._runner("place", page.bucket)
        _give_now(runner, page, memory, swipe_dense, candidate_swipe)
        runner.give({"placed": placed, "placed_mask": placed_mask})
        return runner.invoke()["scores"][0, :, : page.n].copy()

    def reference_scores(self, blocks: Mapping[str, Floats]) -> Floats:
        """Logits [n, T] by the `whole` graph: page blocks as in `page`, watched_rows [l, Rw], watched_dense [l, Fw],
        memory_mask, since, behind [1, L1], swipe_dense [1, Fs], candidate_swipe [n, Fcs]. Slow; needs fetch="all".
        """
        n = len(blocks["candidate_dense"])
        bucket = self.bucket_for(n)
        return self._runner("whole", bucket).run(_padded(blocks, bucket, self.capacity + 1))["scores"][0, :n]

    @property
    def delegated(self) -> bool:
        """Whether XNNPACK runs every loaded graph, as far as it should."""
        return all(runner.delegated for runner in self._runners.values())


def _give_now(
    runner: GraphRunner, page: PageState, memory: Memory, swipe_dense: Floats, candidate_swipe: Floats
) -> None:
    """What a graph may take at a swipe: the page and the watched list only where they are others than at the last."""
    if not runner.holds("page", page):
        runner.give(page.outputs)
    given, length = runner.lacks("memory", memory.version, memory.length), memory.length
    if given < 0:
        runner.give({"memory": memory.memory, "memory_mask": memory.memory_mask})
    elif given < length:
        runner.inputs["memory"][0, given:length] = memory.memory[0, given:length]
        runner.inputs["memory_mask"][0, given:length] = memory.memory_mask[0, given:length]
    runner.give({"since": memory.since, "behind": memory.behind})
    if not runner.holds("swipe_dense", swipe_dense):
        runner.give({"swipe_dense": swipe_dense})
    if not runner.holds("candidate_swipe", candidate_swipe):
        runner.give({"candidate_swipe": candidate_swipe})


def _padded(blocks: Mapping[str, Floats], n: int, slots: int = 0) -> dict[str, Floats]:
    """Blocks as a graph takes them: candidate_* [1, n, F] and watched_* [1, slots, F] out of [m, F], zeros behind."""
    found = {}
    for name, block in blocks.items():
        size = {"candidate": n, "watched": slots}.get(name.partition("_")[0])
        if size is None:
            found[name] = block
        else:
            found[name] = padded = np.zeros((1, size, block.shape[1]), np.float32)
            padded[0, : len(block)] = block
    return found
