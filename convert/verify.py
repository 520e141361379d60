"""The chain that stands before publishing: torch -> ONNX -> TFLite float -> quantised, on held-out inputs.

Float artifacts must repeat torch's numbers; a quantised graph must keep the ranking of the whole model. A graph ships
the fastest variant inside the gate. Anything that does not hold ends in VerificationFailed, and nothing is published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConversionError, VerificationFailed
from contract.golden import fused_values
from convert.build import BuiltGraph
from convert.chain import Feeds, Run, run_halves
from convert.measure import Distance, Ranking, distance, ranking
from convert.onnx_export import OnnxGraph
from convert.phone import Sample
from convert.quantize import FLOAT
from convert.report import Gates, VariantReport, Verification
from convert.source import KirSource
from convert.tflite import TfliteGraph, check_contract

ONNX = "onnx"
HALVES = ("page", "watch", "swipe")
LATENCY_CALLS = 150
AS_FAST = 1.1  # within a tenth of the fastest counts as equally fast: then the smaller file ships
ONNX_FEEDS = 48
LARGE = 10.0  # logits of trained nets stay below

Floats = NDArray[np.float32]


def verify(
    source: KirSource,
    built: Mapping[str, BuiltGraph],
    samples: Sequence[Sample],
    *,
    gates: Gates | None = None,
    data: str = "",
) -> Verification:
    """Run the chain. Raises VerificationFailed naming the first artifact that misses its gate."""
    try:
        return _Chain(source, built, samples, gates or Gates()).run(data)
    except ConversionError as error:
        if isinstance(error, VerificationFailed):
            raise
        raise VerificationFailed(error.what, where=error.where, got=error.got, allowed=error.allowed) from error


def distance_to_whole(
    source: KirSource, samples: Sequence[Sample], shipped: Mapping[str, Run], floats: Mapping[str, Run]
) -> tuple[dict[str, float], dict[str, Feeds]]:
    """How far page + watch + swipe as shipped stray from the float whole net over a session's swipes.

    Also one input per graph that ran, from the swipe with the fullest list.
    """
    scores, values = 0.0, 0.0
    feeds: dict[str, list[Feeds]] = {}
    fullest = max(samples, key=lambda s: s.n_watched)
    for sample in samples:
        want = floats[f"whole/N{sample.bucket}"](sample.inputs)["scores"][0, : sample.n_candidates]
        got = run_halves(sample, source.layout, shipped, feeds if sample is fullest else None)[0, : sample.n_candidates]
        scores = max(scores, float(np.abs(want - got).max()))
        apart = fused_values(want, source.fusion_weights) - fused_values(got, source.fusion_weights)
        values = max(values, float(np.abs(apart).max()))
    return {"scores_max_abs": scores, "values_max_abs": values}, {key: many[-1] for key, many in feeds.items()}


class _Chain:
    def __init__(self, source: KirSource, built: Mapping[str, BuiltGraph], samples: Sequence[Sample], gates: Gates):
        self.source, self.built, self.samples, self.gates = source, built, samples, gates
        self.torch: dict[str, Run] = {key: graph.run for key, graph in source.graphs.items()}
        self.feeds: dict[str, list[Feeds]] = {}
        self.files = {key: {n: _loaded(one, n) for n in one.variants} for key, one in built.items()}
        self.float_runs: dict[str, Run] = {key: files[FLOAT].run for key, files in self.files.items()}

    def run(self, data: str) -> Verification:
        whole = [self.torch[f"whole/N{s.bucket}"](s.inputs)["scores"] for s in self.samples]
        self.want = [self._values(s, scores[0]) for s, scores in zip(self.samples, whole, strict=True)]
        eager = [run_halves(s, self.source.layout, self.torch, self.feeds) for s in self.samples]
        self._hold("halves in torch", self._distance_of_real(whole, eager), self.gates.halves_max_abs, whole)
        missing = sorted(set(self.built) - set(self.feeds))
        if missing:
            raise VerificationFailed(
                "no held-out input reaches these graphs", got=missing, fix="verify with more windows"
            )
        self.reference = {key: [self.torch[key](feeds) for feeds in many] for key, many in self.feeds.items()}
        halves = [run_halves(s, self.source.layout, self.float_runs) for s in self.samples]
        self.float_ranks = ranking(
            self.want, [self._values(s, h[0]) for s, h in zip(self.samples, halves, strict=True)]
        )
        rows = [row for key in self.built for row in self._graph(key)]
        apart = self._distance_of_real(whole, halves)
        self._hold(
            "page + watch + swipe in TFLite float against the whole net", apart, self.gates.halves_max_abs, whole
        )
        shipped, together = self._ship(rows)
        return Verification(
            rows=tuple(rows),
            shipped=shipped,
            together=together,
            halves_max_abs=apart.max_abs,
            gates=self.gates,
            n_samples=len(self.samples),
            data=data,
        )

    def _graph(self, key: str) -> list[VariantReport]:
        """ONNX, float and quantised rows of one graph. Raises when ONNX or float miss their gate."""
        feeds, want = self.feeds[key], self.reference[key]
        wanted = [output for one in want for output in one.values()]
        onnx = OnnxGraph(self.built[key].onnx)
        found = _distance(want[:ONNX_FEEDS], [onnx.run(one) for one in feeds[:ONNX_FEEDS]])
        self._hold(f"{key} in ONNX ({self.built[key].onnx.name})", found, self.gates.float_max_abs, wanted)
        rows = [VariantReport.of(key, ONNX, found, None, self.built[key].onnx.stat().st_size, passed=True)]
        times = self._latencies(key)
        for name, file in self.files[key].items():
            found = _distance(want, [file.run(one) for one in feeds])
            ranks = self._ranking(key, name)
            if name == FLOAT:
                what = f"{key} in TFLite float ({self.built[key].variants[name].name})"
                self._hold(what, found, self.gates.float_max_abs, wanted)
            passed = self._inside(ranks)
            integer = name in self.built[key].integer
            measured = (found, ranks, file.n_bytes, times[name], file.partitions)
            rows.append(VariantReport.of(key, name, *measured, passed=passed, integer=integer))
        return rows

    def _latencies(self, key: str) -> dict[str, list[float]]:
        """Microseconds per call, sorted; variants take turns, so that a busy moment of the machine hits all alike."""
        times: dict[str, list[float]] = {name: [] for name in self.files[key]}
        for _ in range(5):
            for name, file in self.files[key].items():
                times[name] += file.latency_us(self.feeds[key][0], LATENCY_CALLS // 5)
        return {name: sorted(values) for name, values in times.items()}

    def _ranking(self, key: str, variant: str) -> Ranking:
        """Ranking with one graph in one variant and float elsewhere; `place` and `whole` by their own scores."""
        name, _, bucket = key.partition("/")
        file = self.files[key][variant]
        if name in HALVES and variant == FLOAT:
            return self.float_ranks
        if name in HALVES:
            chosen = [i for i, s in enumerate(self.samples) if bucket in (f"N{s.bucket}", f"T{bucket[1:]}")]
            return self._ranking_of({**self.float_runs, key: file.run}, chosen)
        here = [s for s in self.samples if f"N{s.bucket}" == bucket]
        pairs = [
            (self._values(sample, a), self._values(sample, b))
            for sample, want, feeds in zip(here, self.reference[key], self.feeds[key], strict=True)
            for a, b in zip(_slates(want["scores"]), _slates(file.run(feeds)["scores"]), strict=True)
        ]
        return ranking([a for a, _ in pairs], [b for _, b in pairs])

    def _ranking_of(self, runs: Mapping[str, Run], chosen: Sequence[int]) -> Ranking:
        got = [self._values(s, run_halves(s, self.source.layout, runs)[0]) for s in (self.samples[i] for i in chosen)]
        return ranking([self.want[i] for i in chosen], got)

    def _ship(self, rows: Sequence[VariantReport]) -> tuple[dict[str, str], Ranking]:
        """Fastest variant inside the gate per graph, then all of them together; the worst falls back to float until
        the whole holds. The buckets of a graph ship the same variant: a cache must not depend on how it was filled.
        """
        names = list(dict.fromkeys(graph.name for graph in self.built.values()))
        chosen = {name: self._fastest(name, rows) for name in names}
        tau = {(r.graph.split("/")[0], r.variant): 1.0 for r in rows}
        for r in rows:
            tau[r.graph.split("/")[0], r.variant] = min(r.tau, tau[r.graph.split("/")[0], r.variant])
        while True:
            shipped = {key: chosen[graph.name] for key, graph in self.built.items()}
            runs = {key: self.files[key][variant].run for key, variant in shipped.items()}
            together = self._ranking_of(runs, range(len(self.samples)))
            if self._inside(together):
                return shipped, together
            lossy = [name for name in HALVES if chosen[name] != FLOAT]
            if not lossy:
                raise VerificationFailed("the float graphs together miss the ranking gate", got=str(together))
            chosen[min(lossy, key=lambda name: tau[name, chosen[name]])] = FLOAT

    def _fastest(self, name: str, rows: Sequence[VariantReport]) -> str:
        """Among variants that pass in every bucket, the smallest of those about as fast as the fastest.

        Speed is the smallest bucket's: `watch/T1` is paid at every swipe, the rebuild once in L/2 of them.
        """
        keys = [key for key, graph in self.built.items() if graph.name == name]
        everyday = min(keys, key=lambda key: int(self.built[key].bucket[1:]))
        latency, n_bytes = {}, {}
        for variant in self.files[everyday]:
            mine = {r.graph: r for r in rows if r.graph in keys and r.variant == variant}
            if all(r.passed for r in mine.values()):
                latency[variant] = mine[everyday].latency_us
                n_bytes[variant] = sum(r.n_bytes for r in mine.values())
        limit = AS_FAST * min(latency.values(), default=0.0)
        return min((v for v in latency if latency[v] <= limit), key=lambda v: n_bytes[v], default=FLOAT)

    def _values(self, sample: Sample, scores_NT: Floats) -> Floats:
        return fused_values(scores_NT[: sample.n_candidates], self.source.fusion_weights)

    def _distance_of_real(self, want: Sequence[Floats], got: Sequence[Floats]) -> Distance:
        """Scores [1, N, T] compared on real candidates."""
        cut = [
            (a[:, : s.n_candidates], b[:, : s.n_candidates]) for s, a, b in zip(self.samples, want, got, strict=True)
        ]
        return distance([a for a, _ in cut], [b for _, b in cut])

    def _inside(self, ranks: Ranking) -> bool:
        return ranks.tau >= self.gates.tau and ranks.top1 >= self.gates.top1

    def _hold(self, what: str, found: Distance, allowed: float, want: Sequence[Floats]) -> None:
        # Float32 keeps seven digits: what is allowed of values up to LARGE grows with those above it.
        allowed *= max(1.0, *(float(np.abs(one).max(initial=0.0)) / LARGE for one in want))
        if not found.max_abs <= allowed:
            raise VerificationFailed(
                f"{what}: differs from torch",
                got=f"max abs {found.max_abs:.3g}",
                allowed=f"{allowed:g}",
                fix="nothing was published",
            )


def _loaded(built: BuiltGraph, variant: str) -> TfliteGraph:
    file = TfliteGraph(built.variants[variant])
    check_contract(file, built.inputs, built.outputs)
    return file


def _slates(scores: Floats) -> list[Floats]:
    """[1, N, T] or [1, k, N, T] -> [N, T] each."""
    return list(scores.reshape(-1, *scores.shape[-2:]))


def _distance(want: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]) -> Distance:
    pairs = [(a[name], b[name]) for a, b in zip(want, got, strict=True) for name in a]
    return distance([a for a, _ in pairs], [b for _, b in pairs])
