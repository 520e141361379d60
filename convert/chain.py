"""The halves run as a phone runs them: page, then watch over the whole list, then swipe and place.

Legend: G cache planes, L1 watched slots, D width, t tokens of a watch graph, N candidates, k beams, P placed slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.vocabulary import MASK_VALUE
from convert.phone import Sample

Floats = NDArray[np.float32]
Feeds = Mapping[str, Floats]
Run = Callable[[Feeds], Mapping[str, Floats]]

WHOLE = "whole"  # the net in one graph: the reference of the others
SWIPE_INPUTS = ("memory_mask", "since", "behind", "swipe_dense", "candidate_swipe")
PAGE_INPUTS = ("user_rows", "user_dense", "candidate_rows", "candidate_dense")
WATCH_INPUTS = ("watched_rows", "watched_dense")
SINGLES = 2  # the last so many watched videos go through the one-token graph, the others through the rebuild graph


@dataclass(frozen=True)
class Layout:
    """L watched videos, t of each watch graph (ascending), past [1, G, L1, D] the cache (() without blocks), k beams,
    P placed slots (0 without a placed context).
    """

    L: int
    t: tuple[int, ...]
    past: tuple[int, ...]
    k: int
    P: int

    @staticmethod
    def of(capacities: Mapping[str, Any], past: tuple[int, ...]) -> Layout:
        return Layout(
            int(capacities["L"]), tuple(sorted(capacities["t"])), past, int(capacities["k"]), int(capacities["P"])
        )


def run_halves(
    sample: Sample, layout: Layout, run: Mapping[str, Run], record: dict[str, list[Feeds]] | None = None
) -> Floats:
    """Scores [1, N, T] of a sample by page + watch + swipe. run: graph key -> how to run it.

    record: when given, the feeds of every graph that ran (and of `place`) are appended under its key.
    """
    bucket = f"N{sample.bucket}"

    def call(key: str, feeds: Feeds) -> Mapping[str, Floats]:
        if record is not None:
            record.setdefault(key, []).append(dict(feeds))
        return run[key](feeds)

    inputs = sample.inputs
    page = call(f"page/{bucket}", {name: inputs[name] for name in PAGE_INPUTS if name in inputs})
    memory = watch_all(sample, layout, call)
    feeds = {
        **{name: page[name] for name in ("query", "candidate_pre") if name in page},
        "memory": memory,
        **{name: inputs[name] for name in SWIPE_INPUTS if name in inputs},
    }
    if record is not None:
        if layout.P:
            record.setdefault(f"place/{bucket}", []).append({**feeds, **_placed(sample, layout, page["placed_kv"])})
        record.setdefault(f"whole/{bucket}", []).append(inputs)
    return call(f"swipe/{bucket}", feeds)["scores"]


def run_place(sample: Sample, layout: Layout, run: Mapping[str, Run], items: Sequence[int]) -> Floats:
    """Scores [N, T] of a sample's candidates once those numbered `items` are placed in that order, worked out anew."""
    bucket = f"N{sample.bucket}"
    inputs = sample.inputs
    page = run[f"page/{bucket}"]({name: inputs[name] for name in PAGE_INPUTS if name in inputs})
    placed = np.zeros((1, layout.k, layout.P, page["placed_kv"].shape[-1]), np.float32)
    mask = np.full((1, layout.k, layout.P), MASK_VALUE, np.float32)
    placed[0, 0, : len(items)] = page["placed_kv"][0, list(items)]
    mask[0, 0, : len(items)] = 0.0
    feeds = {
        **{name: page[name] for name in ("query", "candidate_pre") if name in page},
        "memory": watch_all(sample, layout, lambda key, feeds: run[key](feeds)),
        **{name: inputs[name] for name in SWIPE_INPUTS if name in inputs},
        "placed": placed,
        "placed_mask": mask,
    }
    return run[f"place/{bucket}"](feeds)["scores"][0, 0]


def watch_all(sample: Sample, layout: Layout, call: Callable[[str, Feeds], Mapping[str, Floats]]) -> Floats:
    """Memory [1, L1, Wm] of all filled slots, through the cache as a rebuild after eviction fills it."""
    slots = layout.L + 1
    past = np.zeros(layout.past or (0,), np.float32)
    memory: Floats | None = None
    at, length = 0, sample.n_watched + 1
    while at < length:
        t = layout.t[0] if length - at <= SINGLES else layout.t[-1]
        n = min(t, length - at, max(length - SINGLES - at, 1))
        position = np.zeros((1, t, slots), np.float32)
        position[0, np.arange(n), at + np.arange(n)] = 1.0
        feeds = {name: _tokens(sample.inputs[name], at, n, t) for name in WATCH_INPUTS if name in sample.inputs}
        feeds["position"] = position
        if past.size:
            past_mask = np.full((1, slots), MASK_VALUE, np.float32)
            past_mask[0, :at] = 0.0
            feeds |= {"past": past.copy(), "past_mask": past_mask}
        found = call(f"watch/T{t}", feeds)
        if memory is None:
            memory = np.zeros((1, slots, found["memory_new"].shape[-1]), np.float32)
        if past.size:
            past[:, :, at : at + n] = found["new"][:, :, :n]
        memory[:, at : at + n] = found["memory_new"][:, :n]
        at += n
    assert memory is not None
    return memory


def _tokens(block: Floats, at: int, n: int, t: int) -> Floats:
    out = np.zeros((1, t, block.shape[-1]), np.float32)
    out[:, :n] = block[:, at : at + n]
    return out


def _placed(sample: Sample, layout: Layout, placed_kv: Floats) -> dict[str, Floats]:
    """Beam b has placed the candidates b, b+1, …, one fewer than its number of slots in turn."""
    k, P = layout.k, layout.P
    placed = np.zeros((1, k, P, placed_kv.shape[-1]), np.float32)
    mask = np.full((1, k, P), MASK_VALUE, np.float32)
    for beam in range(k):
        n = min((sample.n_watched + beam) % (P + 1), sample.n_candidates - 1)
        chosen = (beam + np.arange(n)) % sample.n_candidates
        placed[0, beam, :n] = placed_kv[0, chosen]
        mask[0, beam, :n] = 0.0
    return {"placed": placed, "placed_mask": mask}
