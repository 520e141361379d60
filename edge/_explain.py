"""Which inputs moved a candidate's fused value: each is taken away in turn, and the model's own graphs score again.

An effect is value with the input - value without it, everything else as it is (single-feature ablation; "occlusion" in
Zeiler and Fergus, ECCV 2014). It tells what this model read at this swipe. It is no causal claim about the viewer, and
effects do not add up: inputs that say the same share what neither loses alone, and a net is not linear.

What stands in for an input that is taken away:
    candidate features   the mean of their columns over the candidates of the page: "if it were like the others there"
    user features        the table's default row, zeros for dense ones: "if nothing were known"
    device features      zeros, which is "unknown" and "not told"
    a watched video      its slot is masked out of the memory that the swipe attends to. What later tokens took over
                         from it while they were worked out stays with them

Cost: variants of the candidate lie side by side where candidates do, so that candidate features take a few runs of
`page` and `swipe` together; a user feature takes one of both, a device feature and a watched video one of `swipe`. All
run in the smallest bucket and off the swipe path, on buffers that the next swipe fills anyway.

Legend: V variants of the candidate, F columns of a block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.spec import Column
from contract.vocabulary import MASK_VALUE
from edge._choice import Situation, make_ready
from edge._engine import Memory, PageState
from edge._features import SwipeFeatures
from edge._pool import PooledPage
from edge._reranker import Reranker, ScoredPage

Floats = NDArray[np.float32]

USER_BLOCKS = ("user_rows", "user_dense")
CANDIDATE_BLOCKS = ("candidate_rows", "candidate_dense", "candidate_swipe")
BLOCKS = (*USER_BLOCKS, *CANDIDATE_BLOCKS, "swipe_dense")
WATCHED = "watched"
GROUPS = ("user", "video", "server", "device", WATCHED)


@dataclass(frozen=True)
class Effect:
    """What one input did: value with it - value without it, in fused values.

    name      of a feature of the spec, or of the group itself; "watched" for a watched video
    group     user, video, server, device (the spec's), or watched
    video_id  of a watched video, None elsewhere
    """

    name: str
    effect: float
    group: str
    video_id: int | None = None


@dataclass(frozen=True)
class Explanation:
    """Why a candidate has its value. In each tuple the largest effect, up or down, comes first.

    groups    user, video, server, device, watched: all their inputs taken away together
    features  one by one, those of the user, the candidate and the device; what was watched is told by video
    watched   one entry a watched video of the list
    """

    video_id: int
    value: float
    groups: tuple[Effect, ...] = ()
    features: tuple[Effect, ...] = ()
    watched: tuple[Effect, ...] = ()
    explain_us: float = 0.0

    def top(self, n: int, groups: Collection[str] = GROUPS) -> tuple[Effect, ...]:
        """The n largest effects of features and watched videos of some groups; zeros are left out."""
        return _sorted([e for e in (*self.features, *self.watched) if e.effect and e.group in groups])[:n]


def explain(
    reranker: Reranker | None, found: tuple[PooledPage, int] | None, video_id: int, now: Situation
) -> Explanation:
    """The effects behind a value. found: the page and number of the candidate, None when there is none.

    Raises InputError when this model does not score the video, and what the engine raises.
    """
    page, index = found or (None, 0)
    scored = None if page is None else page.scored
    # The page of the last choice may have left the pool before another model took over.
    if reranker is None or page is None or scored is None or page.page.dense_version != reranker.dense_version:
        allowed = "candidates left and the video shown last, on pages that the model scores"
        raise InputError("no model scores this video", got=video_id, allowed=allowed)
    start = now.timer_ns()
    make_ready(reranker, now)
    probe = _Probe(reranker, page, scored, index, now)
    fields = [column for block in BLOCKS for column in reranker.engine.spec.columns(block)]
    names = dict.fromkeys(column.field.group for column in fields)
    cases = [(c.field.name, c.field.group, [c]) for c in fields]
    cases += [(group, group, [c for c in fields if c.field.group == group]) for group in names]
    value, effects = probe.ablate([columns for _, _, columns in cases])
    named = [Effect(name, effect, group) for (name, group, _), effect in zip(cases, effects, strict=True)]
    every, watched = probe.mask_watched()
    return Explanation(
        video_id=scored.video_ids[index],
        value=value,
        groups=_sorted([*named[len(fields) :], Effect(WATCHED, every, WATCHED)]),
        features=_sorted(named[: len(fields)]),
        watched=_sorted(watched),
        explain_us=(now.timer_ns() - start) / 1e3,
    )


def _sorted(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    return tuple(sorted(effects, key=lambda e: -abs(e.effect)))


class _Probe:
    """One candidate at one swipe, scored with some of its inputs taken away."""

    def __init__(self, reranker: Reranker, page: PooledPage, scored: ScoredPage, index: int, now: Situation):
        self._reranker, self._engine = reranker, reranker.engine
        self._variants = self._engine.buckets[0]
        spec, blocks = self._engine.spec, scored.features.blocks
        swipe = SwipeFeatures(spec, [1])  # the session's own are not touched
        self._inputs: dict[str, Floats] = {
            **{name: block for name, block in blocks.items() if name in USER_BLOCKS},
            **{name: block[index : index + 1] for name, block in blocks.items() if name in CANDIDATE_BLOCKS},
            "swipe_dense": swipe.device(now.device, now.swipe_index),
            "candidate_swipe": swipe.candidates(now.device, [scored.video_ids[index]], 1)[0],
        }
        self._without = {name: np.zeros_like(block) for name, block in self._inputs.items()}
        for name in blocks.keys() & set(CANDIDATE_BLOCKS):
            self._without[name] = blocks[name].mean(axis=0, keepdims=True)
        for column in spec.columns("user_rows"):
            default_row = page.page.rows.tables[column.field.table].decoded[0]
            self._without["user_rows"][:, column.slice] = default_row

    def ablate(self, cases: Sequence[Sequence[Column]]) -> tuple[float, list[float]]:
        """The candidate's value, and what it loses with each case's columns taken away.

        Cases that share what is not of the candidate share runs.
        """
        alone: dict[frozenset[str], list[int]] = {}
        for number, columns in enumerate(cases):
            shared = frozenset(c.field.name for c in columns if c.field.block not in CANDIDATE_BLOCKS)
            alone.setdefault(shared, []).append(number)
        value = float(self._values(self._inputs)[0])
        effects = [0.0] * len(cases)
        for numbers in alone.values():
            for some in _chunks(numbers, self._variants):
                values_V = self._values(self._variants_of([cases[number] for number in some]))
                for number, without in zip(some, values_V, strict=True):
                    effects[number] = value - float(without)
        return value, effects

    def _variants_of(self, cases: Sequence[Sequence[Column]]) -> dict[str, Floats]:
        """Blocks [1, F] of the user and the device, [V, F] of the candidate, one row per case."""
        blocks = {
            name: np.repeat(block, len(cases) if name in CANDIDATE_BLOCKS else 1, axis=0)
            for name, block in self._inputs.items()
        }
        for row, columns in enumerate(cases):
            for column in columns:
                name = column.field.block
                at = row if name in CANDIDATE_BLOCKS else 0
                blocks[name][at, column.slice] = self._without[name][0, column.slice]
        return blocks

    def _values(self, blocks: Mapping[str, Floats]) -> Floats:
        return self._swipe(self._engine.page(blocks), blocks, self._reranker.cache.memory)

    def _swipe(self, page: PageState, blocks: Mapping[str, Floats], memory: Memory) -> Floats:
        own_VF = blocks["candidate_swipe"]
        candidate_swipe: Floats = np.zeros((1, page.bucket, own_VF.shape[1]), np.float32)
        candidate_swipe[0, : len(own_VF)] = own_VF
        return self._reranker.values(self._engine.swipe(page, memory, blocks["swipe_dense"], candidate_swipe))

    def mask_watched(self) -> tuple[float, list[Effect]]:
        """What all watched videos did together, and each by itself. The start token always stays."""
        memory, video_ids = self._reranker.cache.memory, self._reranker.watched.columns(1)["video_id"].tolist()
        if not video_ids:
            return 0.0, []
        page = self._engine.page(self._inputs)

        def value(masked: slice) -> float:
            mask = memory.memory_mask.copy()
            mask[0, masked] = MASK_VALUE
            return float(self._swipe(page, self._inputs, replace(memory, memory_mask=mask))[0])

        whole = value(slice(0))
        each = [
            Effect(WATCHED, whole - value(slice(slot, slot + 1)), WATCHED, video_id)
            for slot, video_id in enumerate(video_ids, start=1)
        ]
        return whole - value(slice(1, len(video_ids) + 1)), each


def _chunks(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for at in range(0, len(numbers), size):
        yield numbers[at : at + size]
