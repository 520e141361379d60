"""Several retrieval models on the same queries: figures with intervals, paired differences to the first one named.

kir bench retrieval runs/kuaiformer --baseline popularity --data events:runs/data --out runs/retrieval     (seconds)
kir bench retrieval ours=runs/s0,runs/s1,runs/s2 sasrec=runs/sasrec --data ml-1m:PATH --split test --out runs/ml-1m

A model is a saved result, a dump or a checkpoint directory; several joined by commas are seeds of one model, averaged
query by query. Every fresh result is saved in OUT/results, to be named instead of its checkpoint next time.

Shapes: A arms, S seeds of an arm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.baselines import BASELINES, load_baseline
from contract.errors import InputError

if TYPE_CHECKING:
    from training.evaluation import Cut
    from training.retrieval_result import Comparison, RetrievalResult
    from training.retrieval_split import RetrievalSplit

PUBLISHED = Path(__file__).parent / "published.json"
COLUMNS = 4  # models side by side in the terminal


@dataclass(frozen=True)
class Named:
    """One model of the command line: a name and the paths of its seeds."""

    name: str
    paths: tuple[Path, ...]

    @staticmethod
    def of(word: str) -> Named:
        """From "[NAME=]PATH[,PATH…]". Raises InputError for a path that is not there."""
        name, equals, rest = word.rpartition("=")
        paths = tuple(Path(part) for part in rest.split(",") if part)
        for path in paths:
            if not path.exists():
                raise InputError("no such result file or checkpoint directory", where=path)
        if not paths or (equals and not name):
            raise InputError("a model is named [NAME=]PATH[,PATH…]", got=word)
        return Named(name or paths[0].name.removesuffix(".parquet"), paths)

    @property
    def checkpoints(self) -> list[Path]:
        return [path for path in self.paths if path.is_dir()]


@dataclass(frozen=True, eq=False)
class Arm:
    """One model's results: one a seed."""

    name: str
    results: tuple[RetrievalResult, ...]

    @cached_property
    def shown(self) -> RetrievalResult:
        """The mean over seeds in the form of one result; intervals are over users, for these seeds."""
        first, n = self.results[0], len(self.results)
        if n == 1:
            return first
        from training.retrieval_metrics import means

        covered = {name: sum(one.coverage[name] for one in self.results) / n for name in first.coverage}
        metrics = means([one.ranks for one in self.results], first.n_items)
        return replace(first, name=f"{self.name} (mean of {n})", metrics=metrics, coverage=covered)

    def to_dict(self) -> dict[str, Any]:
        found = self.shown.to_dict()
        kept = {key: found[key] for key in ("name", "metrics", "coverage", "speed", "about")}
        return {**kept, "seeds": [one.values for one in self.results]}


def bench_retrieval(
    models: Sequence[str],
    baselines: Sequence[str],
    out: Path,
    command: str,
    *,
    data: str | None = None,
    split: str = "val",
    cut: Cut | None = None,
    top: int = 0,
    priors: Mapping[str, float] | None = None,
    log: Any = print,
) -> tuple[dict[str, Any], str]:
    """Evaluate what is not evaluated yet, compare, write OUT/report.html, OUT/report.json. Returns result and table.

    priors  weight by model's name: an arm more, its checkpoints with what was watched of late (`WithPrior`)
    top  items of every query's ranked list that a fresh result keeps, with scores; 0 = ranks alone
    Raises InputError for models of different queries, names that stand twice, and checkpoints without `data`.
    """
    from benchmarks.report import write_report
    from benchmarks.retrieval_report import render
    from training.retrieval_result import compare

    named = [Named.of(word) for word in models]
    priors = priors or {}
    names = [*(one.name for one in named), *baselines, *(f"{name}+prior" for name in priors)]
    if unknown := sorted(set(priors) - {one.name for one in named if one.checkpoints == list(one.paths)}):
        raise InputError(
            "--prior names no model of checkpoints", got=", ".join(unknown), allowed=[n.name for n in named]
        )
    if not names:
        raise InputError("nothing to compare", fix="name results or checkpoints, or --baseline popularity")
    if unknown := sorted(set(baselines) - set(BASELINES)):
        fix = "others are trained by kir bench baseline and named by their checkpoint"
        raise InputError("unknown baseline", got=", ".join(unknown), allowed=tuple(BASELINES), fix=fix)
    if len(set(names)) < len(names):
        raise InputError("two models have one name", got=names, fix="write NAME=PATH")
    opened = _open(named, baselines, data, cut)
    arms = [_arm(one, opened, split, out, top, log) for one in named]
    arms += [_baseline(name, opened, split, out, top, log) for name in baselines]
    arms += [_arm(one, opened, split, out, top, log, priors[one.name]) for one in named if one.name in priors]
    found = [compare(arm.results, arms[0].results) for arm in arms[1:]]
    result = _result(arms, found, command)
    write_report(out, result, render)
    return result, _table(arms, found, result["published"])


def _open(named: Sequence[Named], baselines: Sequence[str], data: str | None, cut: Cut | None) -> RetrievalSplit | None:
    """The split that checkpoints and baselines are asked about; None where all models are saved results.

    A log is cut where the latest of the trainings ended, unless `cut` says otherwise.
    """
    folders = [path for one in named for path in one.checkpoints]
    if data is None and (folders or baselines):
        raise InputError("checkpoints and baselines need data", got=[*map(str, folders), *baselines], fix="pass --data")
    if data is None:
        return None
    from training.evaluation import Cut, open_split, trained_until

    until_ms = max((end for end in map(trained_until, folders) if end is not None), default=None)
    return open_split(data, cut or Cut(), until_ms)


def _arm(
    named: Named,
    split: RetrievalSplit | None,
    which: str,
    out: Path,
    top: int,
    log: Any,
    prior: float | None = None,
) -> Arm:
    from training.retrieval_result import RetrievalResult

    name, results = named.name if prior is None else f"{named.name}+prior", []
    for path in named.paths:
        if not path.is_dir():
            results.append(RetrievalResult.load(path).renamed(named.name))
            continue
        assert split is not None, "checkpoints come with data"
        seed = f"-{len(results)}" if len(named.paths) > 1 else ""
        saved = out / "results" / f"{name}{seed}.parquet"
        about: dict[str, Any] = {"checkpoint": str(path)}
        scorer = _scorer(path, named.name)
        if prior is not None:
            from benchmarks.baselines.prior import WithPrior

            scorer, about = WithPrior(scorer, prior), {**about, "prior": prior}
        results.append(_evaluated(split, which, scorer, saved, top, log, about))
    return Arm(name, tuple(results))


def _evaluated(
    split: RetrievalSplit, which: str, scorer: Any, saved: Path, top: int, log: Any, about: Mapping[str, Any]
) -> RetrievalResult:
    from training.retrieval_eval import evaluate

    log(f"{scorer.name}: ranking {split.n_items} items for {len(split.chosen(which))} queries")
    saved.parent.mkdir(parents=True, exist_ok=True)
    result = evaluate(split, which, scorer, about=about, dump=saved if top else None, top=top)
    log(f"   {result.speed['seconds']:.1f} s, saved to {saved if top else result.save(saved)}")
    return result


def _scorer(path: Path, name: str) -> Any:
    from training.checkpoint import load_checkpoint
    from training.evaluation import kind_of, scorer_of

    if kind_of(path) == "baseline":
        return load_baseline(path, name)
    return scorer_of(load_checkpoint(path, kind="kuaiformer"), name)


def _baseline(name: str, split: RetrievalSplit | None, which: str, out: Path, top: int, log: Any) -> Arm:
    assert split is not None, "baselines come with data"
    saved = out / "results" / f"{name}.parquet"
    return Arm(name, (_evaluated(split, which, BASELINES[name](split), saved, top, log, {}),))


def _result(arms: Sequence[Arm], found: Sequence[Comparison], command: str) -> dict[str, Any]:
    from benchmarks.stats import machine

    first = arms[0].shown.to_dict()
    return {
        "benchmark": "retrieval",
        "command": command,
        "machine": machine(),
        **{key: first[key] for key in ("data", "split", "protocol", "items", "queries", "users")},
        "reference": arms[0].name,
        "arms": {arm.name: arm.to_dict() for arm in arms},
        "differences": {arm.name: one.to_dict()["metrics"] for arm, one in zip(arms[1:], found, strict=True)},
        "published": _with_ratios(published(first["data"], first["split"]), arms),
    }


def published(data: str, split: str) -> dict[str, Any] | None:
    """What others printed for these data and this split, with its source; None where nothing is known."""
    found = json.loads(PUBLISHED.read_text()).get(data)
    return found if found is not None and found["split"] == split else None


def _with_ratios(others: dict[str, Any] | None, arms: Sequence[Arm]) -> dict[str, Any] | None:
    """Where ratios were printed: the first arm's over the others' beside them."""
    if others is None or not others.get("ratios"):
        return others
    names = list(dict.fromkeys(name for row in others["rows"].values() for name in row))
    first, rows = arms[0].shown.values, dict(others["rows"])
    for arm in arms[1:]:
        theirs = arm.shown.values
        rows[f"here: {arms[0].name} / {arm.name}"] = {n: first[n] / theirs[n] for n in names if theirs.get(n)}
    return {**others, "rows": rows}


def _table(arms: Sequence[Arm], found: Sequence[Comparison], others: Mapping[str, Any] | None) -> str:
    from training.retrieval_result import results_table

    shown = [arm.shown for arm in arms]
    parts = [results_table(shown[first : first + COLUMNS]) for first in range(0, len(shown), COLUMNS)]
    parts += [one.table() for one in found]
    if others is not None:
        names = list(dict.fromkeys(name for row in others["rows"].values() for name in row))
        width = max(10, *map(len, others["rows"]))
        lines = [f"{others['source']}: printed there, not measured here", "  ".join([" " * width, *names])]
        for model, row in others["rows"].items():
            cells = [f"{row[name]:.4f}" if name in row else "–" for name in names]
            lines.append(
                "  ".join([f"{model:<{width}}", *(f"{c:>{len(n)}}" for c, n in zip(cells, names, strict=True))])
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
