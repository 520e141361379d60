"""Item indexes by recall and cost, and what it costs to change items while they are searched.

    kir bench ann                                  # 50,000 clustered vectors of width 64, about a minute
    kir bench ann --retrieval runs/server/retrieval

Made-up vectors come in clusters of very different sizes, as items do; queries are items, a little moved. How far the
recalls carry to a catalogue of your own only its own vectors can tell: name an export. CPU time of one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stats import machine
from contract.errors import InputError

Floats = NDArray[np.float32]
ASK = 4  # queries of one call, as a user's interests come
UPDATED = (1, 100, 1000)  # items of an update that is timed
N = 100  # results of a timed search


def measure_ann(
    items: int = 50_000,
    width: int = 64,
    *,
    retrieval: Path | None = None,
    recall: float = 0.98,
    queries: int = 400,
    seed: int = 0,
) -> tuple[dict[str, Any], str]:
    """Returns the result and its table. Raises InputError for sizes below 1 or a folder without item vectors."""
    if min(items, width, queries) < 1:
        raise InputError("--items, --width and --queries start at 1", got=(items, width, queries))
    from convert.item_index import choose_index, one_thread

    rng = np.random.default_rng(seed)
    vectors_ID = clustered(items, width, rng) if retrieval is None else _vectors(retrieval)
    queries_QD = moved(vectors_ID, queries, rng)
    choice = choose_index(vectors_ID, queries_QD, recall=recall, exact_up_to=0, seed=seed)
    with one_thread():
        updates = _updates(choice.index, vectors_ID, queries_QD, rng)
    result = {
        "benchmark": "ann",
        "kind": "host",
        "machine": machine(),
        "vectors": "clustered" if retrieval is None else str(retrieval.name),
        "items": len(vectors_ID),
        "width": vectors_ID.shape[1],
        "recall_wanted": recall,
        "chosen": f"{choice.kind} {choice.setting}".strip(),
        "tried": [asdict(tried) for tried in choice.tried],
        "updates": updates,
    }
    return result, _table(result, choice.table())


def clustered(n: int, width: int, rng: np.random.Generator) -> Floats:
    """n unit vectors: topics, clusters within them whose sizes follow a power law, and noise."""
    n_clusters = max(8, n // 25)
    topics = rng.normal(size=(max(2, n_clusters // 10), width))
    centres = topics[rng.integers(0, len(topics), n_clusters)] + 0.5 * rng.normal(size=(n_clusters, width))
    share = 1.0 / np.arange(1, n_clusters + 1) ** 0.8
    vectors = centres[rng.choice(n_clusters, n, p=share / share.sum())] + 0.4 * rng.normal(size=(n, width))
    return _unit(vectors)


def moved(vectors_ID: Floats, n: int, rng: np.random.Generator, by: float = 0.05) -> Floats:
    """n unit queries near items drawn at random."""
    drawn = vectors_ID[rng.integers(0, len(vectors_ID), n)]
    return _unit(drawn + by * rng.normal(size=drawn.shape))


def _unit(vectors: NDArray[np.floating[Any]]) -> Floats:
    unit: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _vectors(folder: Path) -> Floats:
    path = folder / "item_vectors.npy"
    try:
        found: Floats = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError("no item vectors here", where=path, got=str(error), fix="name an exported retrieval") from None
    return found


def _updates(index: Any, vectors_ID: Floats, queries_QD: Floats, rng: np.random.Generator) -> list[dict[str, float]]:
    """Of each size: milliseconds of an update, and of a search (ASK queries, N results) before it and after."""
    from server_stub.item_index import ItemIndex

    ids, found = np.arange(len(vectors_ID), dtype=np.uint64), []
    for size in (n for n in UPDATED if n <= len(vectors_ID)):
        items = ItemIndex(index, ids)
        changed, new = rng.choice(ids, size, replace=False), moved(vectors_ID, size, rng)
        search = partial(items.search, queries_QD[:ASK], N)
        before, update, after = _ms(search), _ms(partial(items.update, changed, new), 5), _ms(search)
        found.append({"items": size, "update_ms": update, "search_before_ms": before, "search_after_ms": after})
    return found


def _ms(call: Callable[[], Any], repeats: int = 40) -> float:
    spent = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        spent.append(time.thread_time() - start)
    return 1e3 * float(np.median(spent))


def _table(result: dict[str, Any], tried: str) -> str:
    lines = [
        f"{result['items']} x {result['width']} {result['vectors']} vectors, recall at 100 of {ASK} queries a call, "
        f"{result['machine']['cpu']}, one thread (kind: host); * = the quickest with {result['recall_wanted']:g}",
        tried,
        "",
        f"{'items changed':>13} {'update ms':>10} {'search before':>14} {'after':>7}   ({result['chosen']})",
    ]
    lines += [
        f"{row['items']:>13} {row['update_ms']:>10.2f} {row['search_before_ms']:>14.3f} {row['search_after_ms']:>7.3f}"
        for row in result["updates"]
    ]
    return "\n".join(lines)
