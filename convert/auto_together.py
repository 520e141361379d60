"""Which rung of each graph's ladder ships: the cheapest choice whose graphs hold the gates together.

Graphs that pass alone add up their noise, so the smallest of each often miss together. From there the ladders are
climbed, one graph at a time, where a step brings the chain nearest to its gates for what it costs; in the end every
graph is let down again as far as the others leave room. Float is the last rung, so there is always an end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convert.measure import OutcomeGap, Ranking
from convert.tflite import TfliteGraph
from convert.verify import Chain


@dataclass(frozen=True)
class Rung:
    """One recipe's files of a graph, by graph key. cost: bytes, or microseconds."""

    files: Mapping[str, bytes]
    cost: float


@dataclass(frozen=True)
class Held:
    """chosen: graph name -> number of its rung. alone: graph name -> rung -> whether it passes without the others, of
    those that were asked."""

    chosen: Mapping[str, int]
    alone: Mapping[str, Mapping[int, bool]]


def hold_together(chain: Chain, ladders: Mapping[str, Sequence[Rung]]) -> Held:
    """chain: begun, on all held-out samples. ladders: graph name -> rungs, the preferred first and float last."""
    return _Climb(chain, ladders).run()


class _Climb:
    def __init__(self, chain: Chain, ladders: Mapping[str, Sequence[Rung]]):
        self.chain, self.ladders = chain, ladders
        self.chained = [name for name in ladders if name in chain.subject.chained]
        self.judged: dict[str, dict[int, tuple[bool, float]]] = {name: {} for name in ladders}
        self.files: dict[tuple[str, int], dict[str, TfliteGraph]] = {}

    def run(self) -> Held:
        at = {name: self._next(name, 0) for name in self.ladders}
        missing = self._missing(at)
        while missing > 0.0:
            steps = [{**at, name: up} for name in self.chained if (up := self._better(name, at[name])) is not None]
            if not steps:
                break  # float in every graph: the verification says why
            left = [(self._missing(step), step) for step in steps]
            missing, at = max(left, key=lambda one: (missing - one[0]) / self._more(at, one[1]))
        if missing == 0.0:
            at = self._let_down(at)
        return Held(at, {name: {n: passed for n, (passed, _) in rungs.items()} for name, rungs in self.judged.items()})

    def _let_down(self, at: dict[str, int]) -> dict[str, int]:
        """Each graph on the first rung that the others leave room for, the dearest graph first."""
        for name in sorted(self.chained, key=lambda name: -self.ladders[name][at[name]].cost):
            for n in range(at[name]):
                lower = {**at, name: n}
                if self._alone(name, n)[0] and self._missing(lower) == 0.0:
                    at = lower
                    break
        return at

    def _next(self, name: str, start: int) -> int:
        """The first rung from `start` that passes alone; the last is float, which does."""
        last = len(self.ladders[name]) - 1
        return next((n for n in range(start, last) if self._alone(name, n)[0]), last)

    def _better(self, name: str, at: int) -> int | None:
        """The next rung that ranks more as torch does; None from float on."""
        last, tau = len(self.ladders[name]) - 1, self._alone(name, at)[1]
        while at < last:
            at = self._next(name, at + 1)
            if at == last or self._alone(name, at)[1] > tau:
                return at
        return None

    def _alone(self, name: str, n: int) -> tuple[bool, float]:
        """Whether a rung passes in every bucket, and its least tau."""
        if n not in self.judged[name]:
            found = [self.chain.judge(key, file) for key, file in self._loaded(name, n).items()]
            passed = all(one[3] for one in found) or n == len(self.ladders[name]) - 1
            self.judged[name][n] = (passed, min(one[1].tau for one in found))
        return self.judged[name][n]

    def _loaded(self, name: str, n: int) -> dict[str, TfliteGraph]:
        if (name, n) not in self.files:
            self.files[name, n] = {key: TfliteGraph(raw) for key, raw in self.ladders[name][n].files.items()}
        return self.files[name, n]

    def _more(self, before: Mapping[str, int], after: Mapping[str, int]) -> float:
        """What a step costs, 1 at least: some cost nothing."""
        return max(
            1.0, sum(self.ladders[name][after[name]].cost - self.ladders[name][n].cost for name, n in before.items())
        )

    def _missing(self, at: Mapping[str, int]) -> float:
        files = {key: file for name in self.chained for key, file in self._loaded(name, at[name]).items()}
        return missing(self.chain, *self.chain.together(files))


def missing(chain: Chain, ranks: Ranking, outcomes: OutcomeGap | None) -> float:
    """How far a ranking is outside the gates, each as a share of what it leaves room for; 0 inside."""
    if chain.inside(ranks, outcomes):
        return 0.0
    gates = chain.gates
    short = [(gates.tau - ranks.tau, 1.0 - gates.tau), (gates.top1 - ranks.top1, 1.0 - gates.top1)]
    if outcomes is not None:
        short.append((-gates.gauc_loss - outcomes.gauc.high, gates.gauc_loss))
        short.append((abs(outcomes.gauc.mean) - gates.gauc_abs, gates.gauc_abs))
    return sum(max(0.0, miss) / max(room, 1e-3) for miss, room in short) + 1e-9
