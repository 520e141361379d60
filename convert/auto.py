"""`kir convert model … --auto size|speed`: the recipe of each graph, found by search, layer by layer where needed.

Every base recipe is tried as it is. One that misses the gate is mended: layers are quantised one at a time to see how
much noise each gives the outputs, and the noisiest for their bytes are put back, to int8 weights first and to float
where that is not enough; how many is found by bisection. The search looks at a part of the held-out samples, for it
tries much. What it found is then taken to all of them, smallest first (or fastest, timed in turns), until the graphs
hold the gates together (convert/auto_together.py): what sits at a gate on a part is over it on the whole half the time.

A graph's buckets share one recipe, for a cache must not depend on which of them filled it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from contract.errors import ConversionError
from convert.auto_together import Rung, hold_together
from convert.build import BuiltGraph
from convert.calibration import CalibrationSet, activation_ranges
from convert.chain import WHOLE
from convert.measure import SNR_MAX
from convert.noise import NOTHING, Noise
from convert.quantize import FLOAT, Ranges, Recipe, load_recipe, quantize
from convert.recipe_rules import NO_QUANTIZE, layers_of
from convert.subject import Subject
from convert.tflite import TfliteGraph
from convert.verify import AS_FAST, AUTO, SIZE, SPEED, Chain, Gates

PREFER = (SIZE, SPEED)
FEEDS = 12  # inputs that a layer's noise is measured on
CALLS, TURNS = 30, 5
Log = Callable[[str], None]
Rule = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One recipe on all buckets of a graph. kept: layers put back; tau, top1, snr_db, passed: the worst bucket's, on
    the part that is searched on; latency_us of the smallest bucket, 0 = not timed; held: whether it passes on all
    samples as well, None = not asked."""

    base: str
    kept: tuple[str, ...]
    n_bytes: int
    tau: float
    top1: float
    snr_db: float
    passed: bool
    latency_us: float = 0.0
    held: bool | None = None


@dataclass(frozen=True)
class Found:
    """The recipe of one graph and everything that was tried."""

    graph: str
    recipe: Recipe
    chosen: Trial
    trials: tuple[Trial, ...]

    def to_json(self) -> dict[str, Any]:
        trials = [asdict(trial) for trial in self.trials]
        return {"recipe": self.recipe.to_json(), "chosen": asdict(self.chosen), "trials": trials}

    def __str__(self) -> str:
        kept = f", {len(self.chosen.kept)} layers put back" if self.chosen.kept else ""
        return f"{self.graph}: {self.chosen.base}{kept}, {self.chosen.n_bytes} bytes (of {len(self.trials)} tried)"


def with_auto(
    built: Mapping[str, BuiltGraph],
    subject: Subject,
    bases: Sequence[Recipe],
    folder: Path,
    *,
    prefer: str = SIZE,
    gates: Gates | None = None,
    calibration: CalibrationSet | None = None,
    every: Subject | None = None,
    log: Log = lambda line: None,
) -> tuple[dict[str, BuiltGraph], dict[str, Found]]:
    """The built graphs with one variant more, AUTO, and what was found by graph name. `whole` stays as it is.

    subject: a part of the held-out samples; every: all that the verification will be about (None: the part).
    bases: recipes to start from; those that calibrate need `calibration`.
    """
    chain = Chain(subject, built, gates or Gates(), prefer)
    chain.begin()
    searches: dict[str, _Search] = {}
    for name in dict.fromkeys(graph.name for graph in built.values() if graph.name != WHOLE):
        searches[name] = _Search(chain, name, bases, folder, calibration)
        searches[name].run(prefer)
        log(f"  {name}: {len(searches[name].trials)} tried on {len(subject)} samples")
    if every is not None:
        chain = Chain(every, built, gates or Gates(), prefer)
        chain.begin()
    held = hold_together(chain, {name: search.rungs() for name, search in searches.items()})
    done, found = dict(built), {}
    for name, search in searches.items():
        found[name] = search.found(held.chosen[name], held.alone[name])
        log(f"  {found[name]}")
        for key, path in search.write(found[name]).items():
            integer = (*done[key].integer, AUTO) if found[name].recipe.integer else done[key].integer
            done[key] = replace(done[key], variants={**done[key].variants, AUTO: path}, integer=integer)
    return done, found


def _any_of(scopes: Sequence[str]) -> str:
    """A pattern that fits the layers of these scopes."""
    return f"^(?:{'|'.join(map(re.escape, scopes))})"


class _Search:
    def __init__(
        self, chain: Chain, name: str, bases: Sequence[Recipe], folder: Path, calibration: CalibrationSet | None
    ):
        self.chain, self.name, self.folder = chain, name, folder
        self.built = {key: graph for key, graph in chain.built.items() if graph.name == name}
        self.floats = {key: graph.variants[FLOAT] for key, graph in self.built.items()}
        self.everyday = min(self.built, key=lambda key: int(self.built[key].bucket[1:] or 0))
        self.bases = [base for base in bases if base.quantizer and (not base.calibrate or calibration)]
        feeds = calibration.feeds if calibration else {}
        hungry = any(base.calibrate for base in self.bases)
        self.ranges: dict[str, Ranges | None] = {
            key: activation_ranges(path, list(feeds[key])) if hungry and feeds.get(key) else None
            for key, path in self.floats.items()
        }
        self.layers = layers_of(self.floats[self.everyday].read_bytes())
        self.files: dict[Trial, dict[str, bytes]] = {}
        self.recipes: dict[Trial, Recipe] = {}

    def run(self, prefer: str) -> None:
        """Fills `trials`, and `ladder`: those worth another look, preferred first and float last."""
        self.trials = [self._float()]
        for base in self.bases:
            self.trials += self._base(base)
        # A base that misses on the part may hold on all: it is the simpler recipe, and there is no way to know.
        self.ladder = [trial for trial in self.trials if trial.passed or not trial.kept]
        if prefer == SPEED:
            timed = dict(zip(self.ladder, self._timed(self.ladder), strict=True))
            self.trials = [timed.get(trial, trial) for trial in self.trials]
            self.ladder = list(timed.values())
        self.prefer = prefer
        limit = AS_FAST * min(trial.latency_us for trial in self.ladder)
        self.ladder.sort(key=lambda t: (t.latency_us > limit, t.latency_us if t.latency_us > limit else t.n_bytes))
        if (
            self.ladder[-1] != self.trials[0]
        ):  # float: may come earlier where it is fast, and is the last resort as well
            self.ladder.append(self.trials[0])

    def rungs(self) -> list[Rung]:
        """The ladder, for the choice among all graphs."""
        size = self.prefer == SIZE
        return [Rung(self.files[trial], trial.n_bytes if size else trial.latency_us) for trial in self.ladder]

    def found(self, chosen: int, alone: Mapping[int, bool]) -> Found:
        """chosen: number of a rung; alone: rung -> whether it passes on all samples, of those that were asked."""
        told: dict[Trial, Trial] = {}
        for n, trial in enumerate(self.ladder):
            told.setdefault(trial, replace(trial, held=alone.get(n)))
        for before, after in told.items():
            self.files[after], self.recipes[after] = self.files[before], self.recipes[before]
        best = told[self.ladder[chosen]]
        return Found(self.name, self.recipes[best], best, tuple(told.get(trial, trial) for trial in self.trials))

    def write(self, found: Found) -> dict[str, Path]:
        """The chosen files, by graph key."""
        paths = {}
        for key, raw in self.files[found.chosen].items():
            paths[key] = self.folder / f"{key.replace('/', '-')}.{AUTO}.tflite"
            paths[key].write_bytes(raw)
        return paths

    def _float(self) -> Trial:
        raw = {key: path.read_bytes() for key, path in self.floats.items()}
        trial = Trial(FLOAT, (), sum(map(len, raw.values())), 1.0, 1.0, SNR_MAX, True)
        self.files[trial], self.recipes[trial] = raw, replace(load_recipe(FLOAT), name=AUTO)
        return trial

    def _base(self, base: Recipe) -> list[Trial]:
        """The base as it is, and, where it misses the gate, mended by each way to put layers back."""
        first = self._try(base, ())
        if first is None or first.passed:
            return [first] if first else []
        trials, order = [first], self._noisiest(base)
        for back in self._ways_back(base):
            mended = self._fewest(base, order, back)
            trials += mended
            if mended:
                break  # int8 weights sufficed: float would only be larger
        return trials

    def _ways_back(self, base: Recipe) -> list[Callable[[Sequence[str]], Rule]]:
        weights = load_recipe("int8-weight-only").recipe[0]

        def to_weights(scopes: Sequence[str]) -> Rule:
            return {**weights, "regex": _any_of(scopes)}

        def to_float(scopes: Sequence[str]) -> Rule:
            return {"regex": _any_of(scopes), "operation": "*", "algorithm_key": NO_QUANTIZE}

        return [to_float] if base.name == "int8-weight-only" else [to_weights, to_float]

    def _fewest(self, base: Recipe, order: Sequence[str], back: Callable[[Sequence[str]], Rule]) -> list[Trial]:
        """What passes on the way to the fewest layers of `order` that have to go back; [] when all are not enough."""
        low, high, passed = 1, len(order), []
        while low <= high:
            middle = (low + high) // 2
            trial = self._try(base, order[:middle], back)
            if trial is not None and trial.passed:
                passed.append(trial)
                high = middle - 1
            else:
                low = middle + 1
        return passed

    def _try(
        self, base: Recipe, kept: Sequence[str], back: Callable[[Sequence[str]], Rule] | None = None
    ) -> Trial | None:
        """None when the quantizer or LiteRT refuses."""
        rules = (back(kept),) if back else ()  # one for all: every file has its recipe inside
        recipe = replace(base, name=AUTO, doc=f"{base.name}, {len(kept)} layers put back", recipe=base.recipe + rules)
        try:
            raw = {key: self._make(key, recipe) for key in self.floats}
            judged = [self.chain.judge(key, TfliteGraph(content)) for key, content in raw.items()]
        except ConversionError:
            return None
        trial = Trial(
            base.name,
            tuple(kept),
            sum(map(len, raw.values())),
            min(ranks.tau for _, ranks, _, _ in judged),
            min(ranks.top1 for _, ranks, _, _ in judged),
            min(found.snr_db for found, _, _, _ in judged),
            all(passed for _, _, _, passed in judged),
        )
        self.files[trial], self.recipes[trial] = raw, recipe
        return trial

    def _make(self, key: str, recipe: Recipe) -> bytes:
        path = self.folder / f".{key.replace('/', '-')}.trial.tflite"
        try:
            return quantize(self.floats[key], recipe, path, self.ranges[key]).read_bytes()
        finally:
            path.unlink(missing_ok=True)

    def _noisiest(self, base: Recipe) -> list[str]:
        """Scopes of the layers that the base quantises, by the noise that each alone gives the outputs."""
        feeds, want = self.chain.feeds[self.everyday][:FEEDS], self.chain.reference[self.everyday][:FEEDS]
        noise = {}
        for operation, scope in self.layers:
            rules = [r for r in base.recipe if r["operation"] in ("*", operation) and re.search(r["regex"], scope)]
            if not rules or rules[-1]["algorithm_key"] == NO_QUANTIZE:
                continue
            alone = replace(base, recipe=({**rules[-1], "regex": f"^{re.escape(scope)}"},))
            try:
                file = TfliteGraph(self._make(self.everyday, alone))
                worst = Noise()
                for one, right in zip(feeds, want, strict=True):
                    found = file.run(one)
                    for output in right:
                        worst.add(right[output], found[output])
                noise[scope] = worst.ratio
            except ConversionError as error:
                if "no layer" not in str(error):
                    noise[scope] = NOTHING  # it can't even stand alone
        return sorted(noise, key=lambda scope: -noise[scope])

    def _timed(self, trials: Sequence[Trial]) -> list[Trial]:
        """All that passed take turns on the smallest bucket."""
        feeds = self.chain.feeds[self.everyday][0]
        runners = {trial: TfliteGraph(self.files[trial][self.everyday]) for trial in trials}
        times: dict[Trial, list[float]] = {trial: [] for trial in trials}
        for _ in range(TURNS):
            for trial, runner in runners.items():
                times[trial] += runner.latency_us(feeds, CALLS)
        found = []
        for trial in trials:
            timed = replace(trial, latency_us=round(sorted(times[trial])[len(times[trial]) // 5], 2))
            self.files[timed], self.recipes[timed] = self.files[trial], self.recipes[trial]
            found.append(timed)
        return found
