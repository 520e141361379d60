"""The encoder with int8 weights, and the gate that says whether it may serve.

Weights are signed integers with one scale a column, activations are quantised at each product by their own range
(dynamic); norms, attention and the residual stream stay float32. Of the eight bits of a weight seven are used: on x86
processors without VNNI onnxruntime adds pairs of products in 16 bits, where eight bits overflow (an error of .17 in
unit vectors), and a graph must answer alike wherever it is served. What int8 gains depends on the processor: `kir
bench encoder` times it beside float32, and `--encoder auto` ships it only where it was quicker as it was converted.

Activations share one range a product, over all rows of a call: an answer depends, within the quantisation's error, on
who else is in the batch. The server encodes one user a call, and so does the gate.

Shapes: Q queries, K interests, D width, I items.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from convert.encoder_queries import EncoderQueries
from convert.onnx_export import OnnxGraph
from convert.quiet import quiet

Floats = NDArray[np.float32]
TOP = (10, 50, 100)
QUERIES_MIN = 100  # fewer say nothing of a percent


@dataclass(frozen=True)
class Int8Gate:
    """What int8 may cost: share of float's Recall@10 lost, share of float's best 50 kept (mean over queries)."""

    recall_loss: float = 0.01
    overlap_50: float = 0.98


@dataclass(frozen=True)
class Int8Verdict:
    """int8 beside float32 on the same histories, exact search over all items.

    recall_10_*  share of queries whose next item is among the best 10
    overlap_*    mean share of float's best n that int8 has in its best n
    ms_*         median wall time of one call, one thread, the two in turn
    """

    source: str
    queries: int
    recall_10_float32: float
    recall_10_int8: float
    overlap_10: float
    overlap_50: float
    overlap_100: float
    ms_float32: float
    ms_int8: float
    gate: Int8Gate

    @property
    def recall_loss(self) -> float:
        """Relative to float; 0 where float finds nothing: there is nothing to lose."""
        lost = self.recall_10_float32 - self.recall_10_int8
        return lost / self.recall_10_float32 if self.recall_10_float32 else 0.0

    @property
    def passed(self) -> bool:
        # Comparisons with NaN are false: what can't be measured does not pass.
        return self.recall_loss <= self.gate.recall_loss and self.overlap_50 >= self.gate.overlap_50

    @property
    def faster(self) -> bool:
        return self.ms_int8 < self.ms_float32

    def __str__(self) -> str:
        return (
            f"int8 {'passes' if self.passed else 'fails'}: Recall@10 {self.recall_10_int8:.4f} for "
            f"{self.recall_10_float32:.4f} (loss {self.recall_loss:+.2%}, allowed {self.gate.recall_loss:.0%}), "
            f"best 50 kept {self.overlap_50:.3f} (at least {self.gate.overlap_50:g}); {self.ms_int8:.1f} ms for "
            f"{self.ms_float32:.1f} ms; {self.source}"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "recall_loss": self.recall_loss, "passed": self.passed}


def quantise(source: Path, target: Path) -> Path:
    """Write the int8 form of a float graph. Raises ConversionError."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet("int8 of the encoder"), _no_advice():
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            extra_options={"MatMulConstBOnly": True},
        )
    return target


@contextmanager
def _no_advice() -> Iterator[None]:
    """onnxruntime advises, on the root logger, a shape inference that this graph does not need."""

    def wanted(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    logging.getLogger().addFilter(wanted)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(wanted)


def judge(
    float32: OnnxGraph, int8: OnnxGraph, vectors_ID: Floats, queries: EncoderQueries, gate: Int8Gate | None = None
) -> Int8Verdict:
    """Run both on every query. Raises InputError for fewer than QUERIES_MIN queries, or queries without targets."""
    if len(queries) < QUERIES_MIN or (queries.target_Q < 0).any():
        raise InputError(
            "too few histories to judge int8 by", got=len(queries), allowed=f"{QUERIES_MIN} or more",
            fix="name more data with --data, or ship --encoder float32",
        )  # fmt: skip
    hits = {"float32": 0, "int8": 0}
    kept = dict.fromkeys(TOP, 0.0)
    times: dict[str, list[float]] = {"float32": [], "int8": []}
    for query in range(len(queries)):
        feeds, tops = queries.feeds(query), {}
        for name, graph in (("float32", float32), ("int8", int8)):
            start = time.perf_counter()
            interests_KD = graph.run(feeds)["interests"][0]
            times[name].append(time.perf_counter() - start)
            tops[name] = best_rows(interests_KD, vectors_ID, queries.seen_rows(query), max(TOP))
            hits[name] += int(queries.target_Q[query] in tops[name][:10])
        for n in TOP:
            want = tops["float32"][:n]
            kept[n] += len(np.intersect1d(want, tops["int8"][:n])) / max(len(want), 1)
    n_queries = len(queries)
    return Int8Verdict(
        source=queries.source,
        queries=n_queries,
        recall_10_float32=hits["float32"] / n_queries,
        recall_10_int8=hits["int8"] / n_queries,
        overlap_10=kept[10] / n_queries,
        overlap_50=kept[50] / n_queries,
        overlap_100=kept[100] / n_queries,
        ms_float32=1e3 * float(np.median(times["float32"])),
        ms_int8=1e3 * float(np.median(times["int8"])),
        gate=gate or Int8Gate(),
    )


def best_rows(interests_KD: Floats, vectors_ID: Floats, left_out: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Rows of the n best items by the best inner product with any interest, best first, ties to the lower row.

    Nothing is found for interests that are not finite.
    """
    if not np.isfinite(interests_KD).all():
        return np.zeros(0, np.int64)
    score_I = (vectors_ID @ interests_KD.T).max(axis=1)
    score_I[left_out] = -np.inf
    n = min(n, len(score_I) - len(np.unique(left_out)))
    rows: NDArray[np.int64] = np.argsort(-score_I, kind="stable")[:n]
    return rows
