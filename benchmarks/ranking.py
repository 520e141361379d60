"""Models that score impressions, on the same ones: GAUC, nDCG@5 and their mean, with paired differences to the first.

kir bench ranking runs/ranker --baseline item-rate --data events:runs/data --out runs/ranking                (seconds)
kir bench ranking ours=runs/r0,runs/r1,runs/r2 --baseline item-rate,fm,lightgbm --data kuairand:PATH --holdout-days 2

A model is a dump of scores (`kir evaluate --dump`) or a ranker's checkpoint; several joined by commas are seeds of one
model: figures and differences are of their mean, user by user. Fresh scores are saved in OUT/scores.

--real-time scores checkpoints in both settings (`training.real_time`), as NAME-real-time and NAME; what the first gains
stands below the table, by users' impressions in the window. Baselines and dumps stay as they are, past only.

Shapes: n impressions, U users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.retrieval import Named
from contract.errors import InputError

if TYPE_CHECKING:
    from contract.events import Events
    from training.evaluation import Cut
    from training.real_time import Slice
    from training.within_user import ScoredLog, WithinUserResult

BASELINES = ("item-rate", "fm", "lightgbm")


@dataclass(frozen=True, eq=False)
class Asked:
    """The log and where it is cut: impressions from `cut_ms` on are scored, what lies before may be learnt from."""

    data: str
    events: Events
    cut_ms: int
    utc_offset_hours: float

    @cached_property
    def sides(self) -> tuple[Events, Events]:
        """Before the cut, and from it on."""
        from training.days import split_at

        return split_at(self.events, self.cut_ms, self.utc_offset_hours)


def bench_ranking(
    models: Sequence[str],
    baselines: Sequence[str],
    out: Path,
    command: str,
    *,
    data: str | None = None,
    cut: Cut | None = None,
    seed: int = 0,
    real_time: bool = False,
    log: Callable[[str], object] = print,
) -> tuple[dict[str, Any], str]:
    """Score what is not scored yet, compare. Returns result and table.

    Raises InputError for models of different impressions, names that stand twice, checkpoints without `data`, and
    real_time without a checkpoint.
    """
    from benchmarks.stats import machine
    from training.real_time import slices_table
    from training.within_user import compare, results_table

    named = [Named.of(word) for word in models]
    settings = [_settings(one, real_time) for one in named]
    names = [*(name for one in settings for name in one), *baselines]
    if not names:
        raise InputError("nothing to compare", fix="name dumps or checkpoints, or --baseline item-rate")
    if unknown := sorted(set(baselines) - set(BASELINES)):
        raise InputError("unknown baseline", got=", ".join(unknown), allowed=BASELINES)
    if len(set(names)) < len(names):
        raise InputError("two models have one name", got=names, fix="write NAME=PATH")
    if real_time and not any(len(one) > 1 for one in settings):
        raise InputError("--real-time scores a ranker's checkpoint", got=names, fix="name one")
    asked = _ask(named, baselines, data, cut)
    arms = [arm for one, own in zip(named, settings, strict=True) for arm in _arms(one, own, asked, log)]
    arms += [_baseline(name, asked, seed, log) for name in baselines]
    out.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        _save(out, arm)
    shown = [arm.shown for arm in arms]
    apart = {arm.name: compare(shown[0], arm.shown) for arm in arms[1:]}
    gains = _gains(arms, [one for one in settings if len(one) > 1])
    result = {
        "benchmark": "ranking",
        "command": command,
        "machine": machine(),
        "data": data,
        "reference": arms[0].name,
        "arms": {arm.name: arm.to_dict() for arm in arms},
        "differences": {name: {m: one.to_json() for m, one in found.items()} for name, found in apart.items()},
        "real_time": {name: [one.to_dict() for one in found] for name, found in gains.items()},
    }
    tables = [results_table(shown, first_against=True)]
    tables += [f"{name}: {slices_table(found)}" for name, found in gains.items()]
    return result, "\n".join(tables)


@dataclass(frozen=True, eq=False)
class Arm:
    """One model's results, one a seed, and their mean in the form of one result."""

    name: str
    results: tuple[WithinUserResult, ...]
    shown: WithinUserResult

    def to_dict(self) -> dict[str, Any]:
        return {**self.shown.to_dict(), "seeds": [one.values for one in self.results]}


def _ask(named: Sequence[Named], baselines: Sequence[str], data: str | None, cut: Cut | None) -> Asked | None:
    folders = [path for one in named for path in one.checkpoints]
    if data is None and (folders or baselines):
        raise InputError("checkpoints and baselines need data", got=[*map(str, folders), *baselines], fix="pass --data")
    if data is None:
        return None
    from training.evaluation import Cut, trained_until
    from training.readers import LogData, open_data

    opened, cut = open_data(data), cut or Cut()
    if not isinstance(opened, LogData):
        raise InputError("these data have no impressions to rank", where=f"--data {data}")
    until_ms = max((end for end in map(trained_until, folders) if end is not None), default=None)
    return Asked(data, opened.events, cut.of(opened.events, until_ms), cut.utc_offset_hours)


def _settings(one: Named, real_time: bool) -> tuple[str, ...]:
    """The names of a model's arms: one, or the real-time one and the one past only."""
    both = real_time and len(one.checkpoints) == len(one.paths)
    return (f"{one.name}-real-time", one.name) if both else (one.name,)


def _arms(one: Named, names: Sequence[str], asked: Asked | None, log: Callable[[str], object]) -> list[Arm]:
    scored = [_scored(path, asked, len(names) > 1, log) for path in one.paths]
    return [_mean(name, [seed[place] for seed in scored]) for place, name in enumerate(names)]


def _gains(arms: Sequence[Arm], pairs: Sequence[tuple[str, ...]]) -> dict[str, list[Slice]]:
    """Real-time − past only, by users' impressions in the window, of each model that was scored in both."""
    from training.real_time import slices

    arm_of, found = {arm.name: arm for arm in arms}, {}
    for name, frozen_name in pairs:
        live, frozen = arm_of[name], arm_of[frozen_name]
        seeds = [(one.scored, two.scored) for one, two in zip(live.results, frozen.results, strict=True)]
        found[frozen_name] = slices(live.shown, frozen.shown, seeds=seeds)
    return found


def _scored(path: Path, asked: Asked | None, live: bool, log: Callable[[str], object]) -> list[ScoredLog]:
    """A dump, or a checkpoint's scores: live (in that setting) first, then past only."""
    from training.checkpoint import load_checkpoint
    from training.ranker_train import evaluate_ranker
    from training.within_user import read_scores

    if not path.is_dir():
        return [read_scores(path)]
    assert asked is not None, "checkpoints come with data"
    log(f"{path}: scoring {len(asked.sides[1])} impressions{' in both settings' * live}")
    scored = evaluate_ranker(load_checkpoint(path, kind="ranker"), asked.events, asked.cut_ms, live=live)[1]
    if not scored:
        raise InputError("no long_view was observed or predicted", where=path)
    about = {"checkpoint": str(path), "data": asked.data, "cut_ms": asked.cut_ms}
    return [replace(one, about=about) for one in scored[: 1 + live]]


def _baseline(name: str, asked: Asked | None, seed: int, log: Callable[[str], object]) -> Arm:
    from training.ranker_eval import item_rate, ranker_protocol
    from training.within_user import ScoredLog

    assert asked is not None, "baselines come with data"
    earlier, later = asked.sides
    log(f"{name}: from {len(earlier)} earlier impressions")
    offset = asked.utc_offset_hours
    if name == "fm":
        from benchmarks.baselines.fm import fm_scores

        scores = fm_scores(asked.events, asked.cut_ms, seed=seed, utc_offset_hours=offset)
    elif name == "lightgbm":
        from benchmarks.baselines.gbm import gbm_scores

        scores = gbm_scores(asked.events, asked.cut_ms, seed=seed, utc_offset_hours=offset)
    else:
        scores = item_rate(earlier, later["video_id"])
    seen = np.flatnonzero(later["long_view"] >= 0)
    told = later.take(seen)
    protocol = ranker_protocol(later, asked.cut_ms)
    return _mean(name, [ScoredLog.of(name, told, told["long_view"], scores[seen], protocol, probability=True)])


def _mean(name: str, scored: Sequence[ScoredLog]) -> Arm:
    from training.within_user import evaluate, mean_of

    results = tuple(evaluate(replace(one, name=name)) for one in scored)
    return Arm(name, results, results[0] if len(results) == 1 else mean_of(results))


def _save(out: Path, arm: Arm) -> None:
    from training.within_user import write_scores

    for number, one in enumerate(arm.results):
        seed = f"-{number}" if len(arm.results) > 1 else ""
        write_scores(out / "scores" / f"{arm.name}{seed}.parquet", one.scored)
