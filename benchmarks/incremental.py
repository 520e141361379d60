"""Is incremental training worth it? The old model, the two kinds of update, and training from zero, on the day after.

kir bench incremental --out runs/incremental                                 (about five minutes on two cores)
kir bench incremental --data sim:users=60,items=300,days=4 --epochs 1 --out runs/smoke            (a minute; smoke)
kir bench incremental --data kuairand:PATH --hide 0 --out runs/incremental-kuairand                       (an hour)

Every arm is a checkpoint in OUT; one that is there is not trained again, so that a long run may be done in pieces.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.new_days import HELD_SHARE, NewDayData, cut_new_day
from benchmarks.stats import machine
from contract.errors import InputError

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint
    from training.readers import LogData
    from training.recipe import Recipe
    from training.retrieval_result import RetrievalResult

OLD, ZERO = "old model", "from zero"
ARMS = (OLD, "items only", "whole", ZERO)
ABLATIONS = ("no replay", "no row memory", "no old log")
SHOWN = ("recall@10", "recall@50")
KEPT = (*SHOWN, "recall@100", "ndcg@10", "mrr", "auc")  # in the JSON
Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What an OUT belongs to: the data and how everything is trained from zero."""

    data: str
    recipe: Recipe
    hide: float
    utc_offset_hours: float

    def claim(self, out: Path) -> None:
        """Write the plan into OUT. Raises InputError when the arms there are of another."""
        path, mine = out / "plan.json", {**vars(self), "recipe": self.recipe.to_dict()}
        text = json.dumps(mine, indent=1, sort_keys=True)
        if path.exists() and self._of(path) != self:
            raise InputError(
                "the arms here are of other data or another recipe", where=path, fix="choose another --out"
            )
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @staticmethod
    def _of(path: Path) -> Plan:
        """What stands in OUT; keys that came to recipes later have their defaults."""
        from training.recipe import Recipe

        held = json.loads(path.read_text())
        return Plan(**{**held, "recipe": Recipe.from_dict(held["recipe"], path)})


def bench_incremental(
    plan: Plan,
    out: Path,
    command: str,
    *,
    seeds: Sequence[int] = (0,),
    ablate: bool = False,
    opened: LogData | None = None,
    log: Log = print,
) -> tuple[dict[str, Any], str]:
    """Train the arms that are not there, judge all of them, compare. Returns the result and its table.

    seeds: of training; figures are means over them. opened: the data, where they have been read.
    """
    plan.claim(out)
    data = cut_new_day(opened or _open(plan.data), hide=plan.hide, utc_offset_hours=plan.utc_offset_hours)
    groups, arms = data.groups(), (*ARMS, *(ABLATIONS if ablate else ()))
    results: dict[str, dict[str, list[RetrievalResult]]] = {arm: {group: [] for group in groups} for arm in arms}
    costs: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for seed in seeds:
        for arm in arms:
            checkpoint, cost = _arm(arm, seed, plan, data, out, log)
            costs[arm].append(cost)
            for group, found in _judged(arm, checkpoint, groups).items():
                results[arm][group].append(found)
    result = _result(plan, data, results, costs, command, seeds)
    return result, incremental_table(result)


def _open(name: str) -> LogData:
    from training.readers import LogData, open_data

    data = open_data(name)
    if not isinstance(data, LogData):
        raise InputError("these data have no days", where=f"--data {name}", allowed="sim:…, events:PATH, kuairand:PATH")
    return data


def _arm(arm: str, seed: int, plan: Plan, data: NewDayData, out: Path, log: Log) -> tuple[Checkpoint, dict[str, float]]:
    """The checkpoint of an arm, trained unless it is there, and what its training cost."""
    from training.checkpoint import load_checkpoint

    folder = out / f"{arm.replace(' ', '-')}-{seed}"
    facts = folder.with_suffix(".json")
    cost = json.loads(facts.read_text()) if facts.exists() else {"wall_s": 0.0, "cpu_s": 0.0}
    if not folder.exists():
        base = None if arm in (OLD, ZERO) else _arm(OLD, seed, plan, data, out, log)[0]
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        try:
            _train(arm, base, plan.recipe.changed([f"train.seed={seed}"]), data, folder)
        finally:  # what was interrupted goes on later, and its time counts
            cost["wall_s"] += time.perf_counter() - wall_s
            cost["cpu_s"] += time.process_time() - cpu_s
            facts.write_text(json.dumps(cost))
        log(f"{arm}, seed {seed}: {cost['wall_s']:.0f} s, {cost['cpu_s']:.0f} s of CPU")
    checkpoint = load_checkpoint(folder, kind="kuaiformer")
    return checkpoint, {**cost, "steps": checkpoint.config["training"]["result"]["steps"]}


def _train(arm: str, base: Checkpoint | None, recipe: Recipe, data: NewDayData, folder: Path) -> None:
    from training.autosave import Autosave
    from training.incremental import train_incremental
    from training.kuaiformer_train import train_kuaiformer
    from training.retrieval_split import split_of

    if base is None:
        log = data.old if arm == OLD else data.joined(data.old, data.new)
        split = split_of(log, "new days", holdout_days=0)
        train_kuaiformer(split, folder, recipe, resume=Autosave.beside(folder).exists)
        return
    old = None if arm == "no old log" else data.old
    options: dict[str, Any] = {"items_only": arm == "items only", "settings": [f"train.seed={recipe.train.seed}"]}
    if arm == "no replay":
        options["replay"] = 0.0
    if arm == "no row memory":
        base = forgetful(base, folder.with_name(f"{folder.name}-base"))
    train_incremental(base, data.new, folder, old=old, **options)


def forgetful(base: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint as if its tables' optimiser had begun anew: every row's memory is 0."""
    from training.checkpoint import TrainingState, save_checkpoint
    from training.kuaiformer_train import load_kuaiformer

    state = base.state()
    return save_checkpoint(
        folder,
        kind=base.kind,
        model=load_kuaiformer(base),
        tables=base.tables,
        spec=base.spec,
        model_config=base.model_config,
        training=base.config["training"],
        metrics={},
        card_text="",
        state=TrainingState({name: tensor * 0 for name, tensor in state.tensors.items()}, state.meta),
        overwrite=True,
    )


def _judged(arm: str, checkpoint: Checkpoint, groups: Mapping[str, Any]) -> dict[str, RetrievalResult]:
    from training.kuaiformer_train import load_kuaiformer
    from training.retrieval_eval import KuaiFormerScorer, evaluate

    scorer = KuaiFormerScorer(load_kuaiformer(checkpoint), checkpoint.tables, name=arm)
    found: dict[str, RetrievalResult] = {}
    for group, (split, queries) in groups.items():
        one = evaluate(split, queries, scorer, quick=True)
        found[group] = replace(one, split=group)
    return found


def _result(
    plan: Plan,
    data: NewDayData,
    results: Mapping[str, Mapping[str, Sequence[RetrievalResult]]],
    costs: Mapping[str, Sequence[Mapping[str, float]]],
    command: str,
    seeds: Sequence[int],
) -> dict[str, Any]:
    from training.retrieval_metrics import means
    from training.retrieval_result import compare

    first = next(iter(results.values()))
    arms = {}
    for arm, groups in results.items():
        metrics = {g: means([one.ranks for one in found], found[0].n_items) for g, found in groups.items()}
        arms[arm] = {
            **{name: float(np.mean([cost[name] for cost in costs[arm]])) for name in ("wall_s", "cpu_s", "steps")},
            "metrics": {g: _kept({name: one.to_json() for name, one in f.items()}) for g, f in metrics.items()},
        }
    against = {}
    for reference in (OLD, ZERO):
        against[reference] = {
            arm: {g: _kept(compare(found, results[reference][g]).to_dict()["metrics"]) for g, found in groups.items()}
            for arm, groups in results.items()
            if arm != reference
        }
    return {
        "benchmark": "incremental",
        "command": command,
        "machine": machine(),
        "data": plan.data,
        "recipe": plan.recipe.to_dict(),
        "hidden": plan.hide,
        "seeds": list(seeds),
        "protocol": data.test_split.chosen("val").protocol,
        "old_protocol": f"{data.old_split.chosen('val').protocol}; {HELD_SHARE:.0%} of the users, trained on by no arm",
        "events": {name: len(getattr(data, name).events) for name in ("old", "aside", "new", "test")},
        "queries": {group: len(found[0].ranks) for group, found in first.items()},
        "arms": arms,
        "differences": against,
    }


def _kept(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in metrics.items() if name in KEPT}


def incremental_table(result: Mapping[str, Any]) -> str:
    """For a terminal: figures by group, then differences to the old model and to training from zero."""
    groups = list(result["queries"])
    titles = [f"{group} ({count})" for group, count in result["queries"].items()]
    events = ", ".join(f"{name} {count}" for name, count in result["events"].items())
    lines = [
        f"next day: {result['protocol']}",
        f"old days: {result['old_protocol']}",
        f"{result['data']}; events: {events}; hidden before the new day: {result['hidden']:.0%}; "
        f"seeds {result['seeds']}; 95 % intervals by bootstrap, users drawn whole",
        "",
        "  " + " ".join([f"{'':<18}", *(f"{title:>19}" for title in titles), "  CPU s  steps"]),
    ]
    known = result["arms"][OLD]["metrics"][groups[0]]
    for name in (name for name in SHOWN if name in known):  # recall of a whole small catalogue is none
        lines.append(f"  {name}")
        for arm, facts in result["arms"].items():
            cells = [f"{facts['metrics'][g][name]['mean']:>19.4f}" for g in groups]
            lines.append("  " + " ".join([f"{arm:<18}", *cells, f"{facts['cpu_s']:>7.0f} {facts['steps']:>6.0f}"]))
    for reference, arms in result["differences"].items():
        lines += ["", f"  less {reference}, {SHOWN[0]}"]
        for arm, found in arms.items():
            cells = [_difference(found[g][SHOWN[0]]) for g in groups]
            lines.append("  " + " ".join([f"{arm:<18}", *cells]))
    return "\n".join(lines)


def _difference(one: Mapping[str, float]) -> str:
    text = f"{one['mean']:+.3f}[{one['low']:+.3f},{one['high']:+.3f}]"
    return f"{text.replace('0.', '.'):>19}"
