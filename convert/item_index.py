"""The item matrix as a faiss index, chosen by what it finds and what it costs, measured here and now.

Up to EXACT_UP_TO_ITEMS the search is exact: it is the truth, and a small part of a request. Beyond, each kind is built
and its search setting raised until its results hold `recall` of the exact best k; the quickest that gets there ships,
else the exact one. The table of what was measured is saved in config.json.

Shapes: I items, D width, Q queries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError

Floats = NDArray[np.float32]
EXACT_UP_TO_ITEMS = 50_000  # exact search of 4 queries: 2 ms of one core at 50,000 x 64, 45 ms at 1,000,000
GRAPH_UP_TO_ITEMS = 200_000  # building HNSW took 268 CPU-seconds at 1,000,000, and IVF was five times quicker to search
ASK = 4  # queries of one call, as a user's interests come
SAMPLE_A_LIST = 64  # vectors k-means is trained on, for each list; faiss wants 39 or more
STALLS = 0.002  # a higher setting that brings less than this ends its series
EXACT = "Flat"


@dataclass(frozen=True)
class Tried:
    """One index at one setting.

    recall: mean share of the exact best k; ms: median CPU time of a call with ASK queries, one thread.
    """

    kind: str
    setting: str
    recall: float
    ms: float
    build_s: float
    mbytes: float


@dataclass(frozen=True, eq=False)
class IndexChoice:
    """index: a faiss index, its setting made; tried: all that was measured (nothing for a small catalogue)."""

    index: Any
    kind: str
    setting: str
    tried: tuple[Tried, ...] = ()

    def to_json(self, **about: Any) -> dict[str, Any]:
        return {"kind": self.kind, "setting": self.setting, "tried": [asdict(t) for t in self.tried], **about}

    def table(self) -> str:
        lines = [f"{'index':<24} {'setting':<21} {'recall':>7} {'ms':>8} {'build s':>8} {'MB':>7}"]
        for t in self.tried:
            mark = "*" if (t.kind, t.setting) == (self.kind, self.setting) else ""
            line = f"{t.kind:<24} {t.setting:<21} {t.recall:>7.4f} {t.ms:>8.3f} {t.build_s:>8.1f} {t.mbytes:>7.1f} "
            lines.append((line + mark).rstrip())
        return "\n".join(lines)


def choose_index(
    vectors_ID: Floats,
    queries_QD: Floats,
    *,
    recall: float = 0.98,
    k: int = 100,
    exact_up_to: int = EXACT_UP_TO_ITEMS,
    seed: int = 0,
) -> IndexChoice:
    """The quickest inner-product index over the rows of `vectors_ID` that reaches `recall` at k.

    queries_QD: interest vectors as the model gives them; needed beyond `exact_up_to` items. Raises InputError for a
    recall outside (0, 1], or for no queries.
    """
    if not 0.0 < recall <= 1.0:
        raise InputError("recall is a share", got=recall, allowed="above 0, at most 1")
    exact, seconds = _built(EXACT, vectors_ID, seed)
    if len(vectors_ID) <= exact_up_to:
        return IndexChoice(exact, EXACT, "")
    if not len(queries_QD):
        raise InputError("no query vectors to measure recall with", got=len(queries_QD))
    queries_QD, k = np.ascontiguousarray(queries_QD, np.float32), min(k, len(vectors_ID))
    with one_thread():
        truth_Qk = exact.search(queries_QD, k)[1]
        tried = [Tried(EXACT, "", 1.0, _call_ms(exact, queries_QD, k), seconds, _mbytes(exact))]
        best, best_ms = IndexChoice(exact, EXACT, ""), tried[0].ms
        for kind in kinds(*vectors_ID.shape):
            index, seconds = _built(kind, vectors_ID, seed)
            size = _mbytes(index)
            for setting, found in _raised(index, queries_QD, truth_Qk, recall):
                tried.append(Tried(kind, setting, found, _call_ms(index, queries_QD, k), seconds, size))
                if found >= recall and tried[-1].ms < best_ms:
                    best, best_ms = IndexChoice(index, kind, setting), tried[-1].ms
    return IndexChoice(best.index, best.kind, best.setting, tuple(tried))


def _raised(index: Any, queries_QD: Floats, truth_Qk: NDArray[np.int64], recall: float) -> Iterator[tuple[str, float]]:
    """Each setting and its recall, the index left at it: until `recall` is there, or a series no longer grows."""
    for series in _settings(index):
        before = 0.0
        for setting, make in series:
            make()
            found = recall_at(truth_Qk, index.search(queries_QD, truth_Qk.shape[1])[1])
            yield setting, found
            if found >= recall:
                return
            if found < before + STALLS:
                break
            before = found


def kinds(n: int, width: int) -> list[str]:
    """What is worth building for n vectors, in faiss' words. One list for about sqrt(n) / 4 vectors."""
    lists = int(4 * np.sqrt(n))
    found = [f"IVF{lists},SQ8", f"IVF{lists},Flat"]
    if width % 2 == 0:
        found.append(f"IVF{lists},PQ{width // 2}x4fs,RFlat")
    if n <= GRAPH_UP_TO_ITEMS:
        found.append("HNSW32,Flat")
    return found


def recall_at(truth_Qk: NDArray[np.int64], found_Qk: NDArray[np.int64]) -> float:
    """Mean share of each query's true best k that was found."""
    shares = [len(np.intersect1d(a, b)) / len(a) for a, b in zip(truth_Qk, found_Qk, strict=True)]
    return float(np.mean(shares))


@contextmanager
def one_thread() -> Iterator[None]:
    """faiss on one thread: a server's requests run side by side."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _built(kind: str, vectors_ID: Floats, seed: int) -> tuple[Any, float]:
    import faiss

    start = time.perf_counter()
    index = faiss.index_factory(vectors_ID.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    vectors_ID = np.ascontiguousarray(vectors_ID, np.float32)
    if not index.is_trained:
        inverted = faiss.extract_index_ivf(index)
        size = min(len(vectors_ID), SAMPLE_A_LIST * inverted.nlist)
        inverted.cp.seed = seed + 1
        index.train(vectors_ID[np.random.default_rng(seed).choice(len(vectors_ID), size, replace=False)])
    index.add(vectors_ID)
    return index, time.perf_counter() - start


def _settings(index: Any) -> Iterator[list[tuple[str, Callable[[], None]]]]:
    """Series of search settings, cheap ones first, and how to make each."""
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        yield [(f"efSearch={ef}", partial(setattr, index.hnsw, "efSearch", ef)) for ef in (128, 256, 512, 1024)]
        return
    refine = index if isinstance(index, faiss.IndexRefine) else None
    inverted = faiss.extract_index_ivf(index)

    def make(factor: int, probe: int) -> None:
        inverted.nprobe = probe
        if refine is not None:
            refine.k_factor = factor

    for factor in (4, 10) if refine is not None else (0,):
        told = f",k_factor={factor}" if factor else ""
        probes = [n for n in (4, 8, 16, 32, 64, 128, 256) if n < inverted.nlist]
        yield [(f"nprobe={probe}{told}", partial(make, factor, probe)) for probe in probes]


def _call_ms(index: Any, queries_QD: Floats, k: int, calls: int = 60) -> float:
    times = []
    for number in range(calls + 5):
        start = (number * ASK) % max(1, len(queries_QD) - ASK + 1)
        asked = queries_QD[start : start + ASK]
        before = time.thread_time()
        index.search(asked, k)
        times.append(time.thread_time() - before)
    return 1e3 * float(np.median(times[5:]))


def _mbytes(index: Any) -> float:
    import faiss

    return float(faiss.serialize_index(index).nbytes / 1e6)
