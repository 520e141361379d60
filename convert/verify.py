"""The chain that stands before publishing: torch -> ONNX -> TFLite float -> quantised, on held-out inputs.

Float artifacts must repeat torch's numbers; a quantised graph must keep the ranking of the whole model. A graph ships
the fastest variant inside the gate. Anything that does not hold ends in VerificationFailed, and nothing is published.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConversionError, VerificationFailed
from contract.golden import fused_values
from convert.build import BuiltGraph
from convert.chain import WHOLE, Feeds, Run, run_halves
from convert.float_fault import explain
from convert.golden import SessionFacts
from convert.measure import Distance, OutcomeGap, Ranking, distance, outcome_gap, ranking
from convert.onnx_export import OnnxGraph
from convert.phone import Sample
from convert.quantize import FLOAT
from convert.report import ONNX, Gates, VariantReport, Verification
from convert.subject import Subject
from convert.tflite import TfliteGraph, check_contract

LATENCY_CALLS = 150
AS_FAST = 1.1  # within a tenth of the fastest counts as equally fast: then the smaller file ships
ONNX_FEEDS = 48
TINY = float(np.finfo(np.float32).tiny)
LARGE = 10.0  # logits of trained nets stay below

Floats = NDArray[np.float32]


SPEED, SIZE = "speed", "size"
AUTO = "auto"  # the variant that convert.auto adds


def verify(
    subject: Subject,
    built: Mapping[str, BuiltGraph],
    *,
    gates: Gates | None = None,
    data: str = "",
    prefer: str = SPEED,
    worst: Callable[[str, str, Feeds], None] = lambda key, variant, feeds: None,
) -> Verification:
    """Run the chain. data: what the subject's samples are, in words. prefer: what ships of the variants that pass.
    worst: told the input on which a quantised variant that does not pass is noisiest, as (graph, variant, inputs).

    Raises VerificationFailed naming the first artifact that misses its gate.
    """
    try:
        return Chain(subject, built, gates or Gates(), prefer, worst).run(data)
    except ConversionError as error:
        if isinstance(error, VerificationFailed):
            raise
        raise VerificationFailed(error.what, where=error.where, got=error.got, allowed=error.allowed) from error


def distance_to_whole(
    source: SessionFacts, samples: Sequence[Sample], shipped: Mapping[str, Run], floats: Mapping[str, Run]
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


class Chain:
    """One verification at work; `convert.auto` asks it about files that are not built yet."""

    def __init__(
        self,
        subject: Subject,
        built: Mapping[str, BuiltGraph],
        gates: Gates,
        prefer: str = SPEED,
        worst: Callable[[str, str, Feeds], None] = lambda key, variant, feeds: None,
    ):
        self.subject, self.built, self.gates, self.prefer, self.worst = subject, built, gates, prefer, worst
        self.every = range(len(subject))
        self.torch: dict[str, Run] = {key: graph.run for key, graph in subject.graphs.items()}
        self.feeds: dict[str, list[Feeds]] = {}
        self.files = {key: {n: _loaded(one, n) for n in one.variants} for key, one in built.items()}
        self.float_runs: dict[str, Run] = {key: files[FLOAT].run for key, files in self.files.items()}

    def run(self, data: str) -> Verification:
        whole, cut = self.begin()
        rows = [row for key in self.built for row in self._graph(key)]
        apart = distance(whole, cut)
        self._hold("the graphs in TFLite float against the whole net", apart, self.gates.halves_max_abs, whole)
        shipped, together, outcomes = self._ship(rows)
        return Verification(
            rows=tuple(rows),
            shipped=shipped,
            together=together,
            halves_max_abs=apart.max_abs,
            gates=self.gates,
            n_samples=len(self.subject),
            data=data,
            outcomes=outcomes,
            failed=tuple((key, name, why) for key, graph in self.built.items() for name, why in graph.failed.items()),
            ranked=any(self._ranks(key) for key in self.built),
        )

    def begin(self) -> tuple[list[Floats], list[Floats]]:
        """Torch's answers, the feeds of every graph, and the float graphs' answers. Returns the first and the last."""
        whole = [self.subject.reference(i) for i in self.every]
        self.want = [self.subject.values(i, found) for i, found in zip(self.every, whole, strict=True)]
        odd = [i for i, one in zip(self.every, whole, strict=True) if not np.isfinite(one).all()]
        if odd:
            raise VerificationFailed(
                "torch's own outputs are not finite", got=f"{len(odd)} of {len(whole)} samples, the first is {odd[0]}",
                fix="look for a root or a logarithm of what may be 0, and for a mask that hides everything",
            )  # fmt: skip
        eager = [self.subject.run(i, self.torch, self.feeds) for i in self.every]
        apart = distance(whole, eager)
        if len(self.subject.graphs) == 1 and apart.max_abs > 0.0:  # one graph has no halves: the same was run twice
            self._hold(
                "the module in torch, run twice", apart, self.gates.halves_max_abs, whole,
                fix="something in it is drawn anew at each call: dropout that eval() does not switch off?",
            )  # fmt: skip
        self._hold("halves in torch", apart, self.gates.halves_max_abs, whole)
        missing = sorted(set(self.built) - set(self.feeds))
        if missing:
            raise VerificationFailed(
                "no held-out input reaches these graphs", got=missing, fix="verify with more windows"
            )
        self.reference = {key: [self.torch[key](feeds) for feeds in many] for key, many in self.feeds.items()}
        cut = [self.subject.run(i, self.float_runs) for i in self.every]
        self.float_values = [self.subject.values(i, found) for i, found in zip(self.every, cut, strict=True)]
        return whole, cut

    def _graph(self, key: str) -> list[VariantReport]:
        """ONNX, float and quantised rows of one graph. Raises when ONNX or float miss their gate."""
        feeds, want = self.feeds[key], self.reference[key]
        wanted = [output for one in want for output in one.values()]
        onnx = OnnxGraph(self.built[key].onnx)
        found = _distance(want[:ONNX_FEEDS], [onnx.run(one) for one in feeds[:ONNX_FEEDS]])
        self._hold(
            f"{key} in ONNX ({self.built[key].onnx.name})", found, self.gates.float_max_abs, wanted,
            why=lambda allowed: explain(onnx.run, feeds[:ONNX_FEEDS], want[:ONNX_FEEDS], allowed, None, None),
        )  # fmt: skip
        rows = [VariantReport.of(key, ONNX, found, None, self.built[key].onnx.stat().st_size, passed=True)]
        times = self._latencies(key)
        for name, file in self.files[key].items():
            found, ranks, outcomes, passed = self.judge(key, file, is_float=name == FLOAT)
            if name == FLOAT:
                self._hold_float(key, file, found, wanted)
            elif not passed:
                self.worst(key, name, self._noisiest(key, file))
            integer = name in self.built[key].integer
            measured = (found, ranks, file.n_bytes, times[name], file.partitions)
            left = file.left_out
            rows.append(
                VariantReport.of(key, name, *measured, passed=passed, integer=integer, outcomes=outcomes, left_out=left)
            )
        return rows

    def _hold_float(self, key: str, file: TfliteGraph, found: Distance, wanted: Sequence[Floats]) -> None:
        onnx, path = self.built[key].onnx, self.built[key].variants[FLOAT]
        self._hold(
            f"{key} in TFLite float ({path.name})", found, self.gates.float_max_abs, wanted,
            fix="nothing was published; for the layers convert with --stages DIR --until tflite and say: "
            f"kir convert debug DIR/{onnx.name} DIR/{path.name}",
            why=lambda allowed: explain(file.run, self.feeds[key], self.reference[key], allowed, onnx, path),
        )  # fmt: skip

    def judge(
        self, key: str, file: TfliteGraph, *, is_float: bool = False
    ) -> tuple[Distance, Ranking, OutcomeGap | None, bool]:
        """A file in the place of one graph, float elsewhere: how far it lies, how it ranks, and whether it passes."""
        found = _distance(self.reference[key], [file.run(one) for one in self.feeds[key]])
        ranks, outcomes = self._ranking(key, file, is_float)
        close = found.snr_db >= self.gates.snr_db and (self._ranks(key) or found.cosine >= self.gates.cosine)
        return found, ranks, outcomes, close and self.inside(ranks, outcomes)

    def _noisiest(self, key: str, file: TfliteGraph) -> Feeds:
        """The input on which this file strays furthest, measured by what it should give."""
        ratios = []
        for feeds, want in zip(self.feeds[key], self.reference[key], strict=True):
            found = file.run(feeds)
            noise = [float(((found[name] - one) ** 2).sum() / max((one**2).sum(), TINY)) for name, one in want.items()]
            ratios.append(max(noise))
        return self.feeds[key][int(np.argmax(ratios))]

    def _latencies(self, key: str) -> dict[str, list[float]]:
        """Microseconds per call, sorted; variants take turns, so that a busy moment of the machine hits all alike."""
        times: dict[str, list[float]] = {name: [] for name in self.files[key]}
        for _ in range(5):
            for name, file in self.files[key].items():
                times[name] += file.latency_us(self.feeds[key][0], LATENCY_CALLS // 5)
        return {name: sorted(values) for name, values in times.items()}

    def _ranks(self, key: str) -> bool:
        """Whether anything is ranked by what this graph gives."""
        if key.split("/")[0] in self.subject.chained:
            return any(len(value) > 1 for value in self.want)
        return any(self.subject.own_slates(key, i, one) for i, one in enumerate(self.reference[key][:1]))

    def _ranking(self, key: str, file: TfliteGraph, is_float: bool) -> tuple[Ranking, OutcomeGap | None]:
        """Graphs outside the chain by their own outputs."""
        if key.split("/")[0] in self.subject.chained:
            if is_float:
                return ranking(self.want, self.float_values), None
            return self._ranking_of({**self.float_runs, key: file.run}, self.subject.through(key))
        pairs = [
            (a, b)
            for i, (outputs, feeds) in enumerate(zip(self.reference[key], self.feeds[key], strict=True))
            for a, b in zip(
                self.subject.own_slates(key, i, outputs), self.subject.own_slates(key, i, file.run(feeds)), strict=True
            )
        ]
        want, got = [a for a, _ in pairs], [b for _, b in pairs]
        labels = self.subject.labels
        whole = key.split("/")[0] == WHOLE and not is_float and labels  # one slate a sample, the one that was shown
        gap = outcome_gap([labels[i] for i in self.subject.through(key)], want, got) if whole else None
        return ranking(want, got), gap

    def _ranking_of(self, runs: Mapping[str, Run], chosen: Sequence[int]) -> tuple[Ranking, OutcomeGap | None]:
        got = [self.subject.values(i, self.subject.run(i, runs)) for i in chosen]
        want, labels = [self.want[i] for i in chosen], self.subject.labels
        gap = outcome_gap([labels[i] for i in chosen], want, got) if labels else None
        return ranking(want, got), gap

    def together(self, files: Mapping[str, TfliteGraph]) -> tuple[Ranking, OutcomeGap | None]:
        """How the chain ranks with these files in it, by graph key; float where there is none."""
        return self._ranking_of({**self.float_runs, **{key: file.run for key, file in files.items()}}, self.every)

    def _ship(self, rows: Sequence[VariantReport]) -> tuple[dict[str, str], Ranking, OutcomeGap | None]:
        """The preferred variant inside the gate per graph, then all of them together. Where those miss the gate, what a
        search found to hold together; else the worst falls back to the next one until the whole holds. The buckets of a
        graph ship the same: a cache must not depend on how it was filled.
        """
        names = list(dict.fromkeys(graph.name for graph in self.built.values()))
        refused: set[tuple[str, str]] = set()
        tau = {(r.graph.split("/")[0], r.variant): 1.0 for r in rows}
        for r in rows:
            tau[r.graph.split("/")[0], r.variant] = min(r.tau, tau[r.graph.split("/")[0], r.variant])
        searched = {name: self._searched(name, rows) for name in names}
        untried = [searched] if AUTO in searched.values() else []
        while True:
            chosen = {name: self._preferred(name, rows, refused) for name in names}
            for one in (chosen, *untried):
                shipped = {key: one[graph.name] for key, graph in self.built.items()}
                together, outcomes = self.together({key: self.files[key][name] for key, name in shipped.items()})
                if self.inside(together, outcomes):
                    return shipped, together, outcomes
            untried = []
            lossy = [name for name in self.subject.chained if chosen[name] != FLOAT]
            if not lossy:
                raise VerificationFailed("the float graphs together miss the ranking gate", got=str(together))
            worst = min(lossy, key=lambda name: tau[name, chosen[name]])
            refused.add((worst, chosen[worst]))

    def _searched(self, name: str, rows: Sequence[VariantReport]) -> str:
        """The search's variant where it passes in every bucket; else the preferred one."""
        mine = [row for row in rows if row.graph.split("/")[0] == name and row.variant == AUTO]
        return AUTO if mine and all(row.passed for row in mine) else self._preferred(name, rows, ())

    def _preferred(self, name: str, rows: Sequence[VariantReport], refused: Collection[tuple[str, str]]) -> str:
        """Among variants that pass in every bucket, the smallest of those about as fast as the fastest, or of all.

        Speed is the smallest bucket's: `watch/T1` is paid at every swipe, the rebuild once in L/2 of them.
        """
        keys = [key for key, graph in self.built.items() if graph.name == name]
        everyday = min(keys, key=lambda key: int(self.built[key].bucket[1:] or 0))
        latency, n_bytes = {}, {}
        for variant in self.files[everyday]:
            mine = {r.graph: r for r in rows if r.graph in keys and r.variant == variant}
            passed = len(mine) == len(keys) and all(r.passed for r in mine.values())
            if passed and (name, variant) not in refused:
                latency[variant] = mine[everyday].latency_us
                n_bytes[variant] = sum(r.n_bytes for r in mine.values())
        limit = AS_FAST * min(latency.values(), default=0.0) if self.prefer == SPEED else float("inf")
        return min((v for v in latency if latency[v] <= limit), key=lambda v: n_bytes[v], default=FLOAT)

    def inside(self, ranks: Ranking, outcomes: OutcomeGap | None) -> bool:
        """Whether a ranking holds the gates."""
        if outcomes is not None:
            certain = outcomes.gauc.high < -self.gates.gauc_loss
            if certain or abs(outcomes.gauc.mean) > self.gates.gauc_abs:
                return False
        return ranks.tau >= self.gates.tau and ranks.top1 >= self.gates.top1

    def _hold(
        self,
        what: str,
        found: Distance,
        allowed: float,
        want: Sequence[Floats],
        fix: str = "nothing was published",
        why: Callable[[float], str] = lambda allowed: "",
    ) -> None:
        """Raises VerificationFailed. why: what is wrong, told what was allowed; asked only then."""
        # Float32 keeps seven digits: what is allowed of values up to LARGE grows with those above it.
        allowed *= max(1.0, *(float(np.abs(one).max(initial=0.0)) / LARGE for one in want))
        if not found.max_abs <= allowed:
            reason = why(allowed)
            raise VerificationFailed(
                f"{what}: differs from torch" + (f": {reason}" if reason else ""),
                got=f"max abs {found.max_abs:.3g}",
                allowed=f"{allowed:g}",
                fix=fix,
            )


def _loaded(built: BuiltGraph, variant: str) -> TfliteGraph:
    file = TfliteGraph(built.variants[variant])
    check_contract(file, built.inputs, built.outputs)
    return file


def _distance(want: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]) -> Distance:
    pairs = [(a[name], b[name]) for a, b in zip(want, got, strict=True) for name in a]
    return distance([a for a, _ in pairs], [b for _, b in pairs])
