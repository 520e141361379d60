"""One change at a time: trains arms of a plan, judges them on the same queries, sets cost beside quality.

kir bench ablation losses --data sim:users=60,items=500,days=3 --epochs 1 --only full,in-batch --out runs/losses

A plan is data (benchmarks/plans/*.json): a base recipe, arms as settings on top, groups of arms with a reference each.
An arm that is done isn't trained again; one that was killed goes on where it was. So a long plan may be run in pieces.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.stats import machine
from contract.errors import InputError
from contract.stats import Interval

if TYPE_CHECKING:
    from training.kuaiformer import KuaiFormer
    from training.recipe import Recipe
    from training.retrieval_result import RetrievalResult
    from training.retrieval_split import Queries, RetrievalSplit

FOLDER = Path(__file__).parent / "plans"
SHOWN = ("recall@10", "ndcg@10")
COST_BATCH, COST_REPEATS = 16, 15
COSTS = ("whole", "kept")  # encoder from the whole history; with the windows' tokens kept between answers
SERVED = "windows kept"


@dataclass(frozen=True)
class Plan:
    """base: recipe name or object; arms: name -> settings; groups: title -> arms, the first is the reference.

    min_history  judge by queries with so many positives before them
    """

    base: Recipe
    arms: Mapping[str, Sequence[str]]
    groups: Mapping[str, Sequence[str]]
    min_history: int = 0

    def recipe(self, arm: str, extra: Sequence[str] = ()) -> Recipe:
        return self.base.changed([*self.arms[arm], *extra])


def read_plan(name: str) -> Plan:
    """A plan that ships, by name, or a JSON file. Raises InputError."""
    from training.recipe import Recipe, read_recipe

    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        shipped = sorted(p.stem for p in FOLDER.glob("*.json"))
        raise InputError("no such plan", got=name, allowed=[*shipped, "a JSON file"]) from None
    except (OSError, ValueError) as error:
        raise InputError("not a readable plan", where=path, got=str(error)) from None
    known = {"base", "arms", "groups", "min_history", "about"}
    if not isinstance(data, dict) or set(data) - known or not {"base", "arms", "groups"} <= set(data):
        raise InputError("a plan has base, arms and groups", where=path, got=sorted(data), allowed=sorted(known))
    base = read_recipe(data["base"]) if isinstance(data["base"], str) else Recipe.from_dict(data["base"], path)
    unknown = sorted({arm for group in data["groups"].values() for arm in group} - set(data["arms"]))
    if unknown:
        raise InputError("groups name arms that the plan has not", where=path, got=unknown, allowed=list(data["arms"]))
    plan = Plan(base, data["arms"], data["groups"], int(data.get("min_history", 0)))
    for arm in plan.arms:
        plan.recipe(arm)
    return plan


def run_ablation(
    plan_name: str,
    data: str,
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    epochs: int | None = None,
    only: Sequence[str] = (),
    holdout_days: int = 1,
    utc_offset_hours: float = 0.0,
    history: int | None = None,
    quiet: bool = False,
    command: str = "",
) -> tuple[dict[str, Any], str]:
    """Train what isn't trained, judge, compare. Returns the result and its table.

    only     arms to run now; the table holds all that are done
    history  positives before a query that models may read (default: the data's protocol)
    command  what was typed, for the result
    Raises InputError for unknown arms, too few queries, and arms in `out` that were trained otherwise.
    """
    from training.autosave import Autosave
    from training.kuaiformer_train import train_kuaiformer
    from training.readers import open_data
    from training.retrieval_result import compare
    from training.retrieval_split import split_of

    plan = read_plan(plan_name)
    unknown = sorted(set(only) - set(plan.arms))
    if unknown:
        raise InputError("unknown arm", got=unknown, allowed=list(plan.arms))
    split = split_of(
        open_data(data),
        data.partition(":")[0],
        holdout_days=holdout_days,
        utc_offset_hours=utc_offset_hours,
        history=history,
    )
    queries = _long_enough(split, plan.min_history)
    extra = [] if epochs is None else [f"train.epochs={epochs}"]
    done: dict[str, dict[int, Path]] = {}
    for arm in plan.arms:
        for seed in seeds:
            folder = out / f"{arm}-{seed}"
            recipe = plan.recipe(arm, [*extra, f"train.seed={seed}"])
            if not folder.exists() and (not only or arm in only):
                train_kuaiformer(split, folder, recipe, resume=Autosave.beside(folder).exists, quiet=quiet)
            if folder.exists():
                _check_same(folder, recipe, split)
                done.setdefault(arm, {})[seed] = folder
    found = {arm: _judge(arm, by_seed, split, queries) for arm, by_seed in done.items()}
    served = {
        arm: _judge(arm, done[arm], split, queries, served=True) for arm in done if plan.recipe(arm).config().windows
    }
    costs = measured_costs({arm: next(iter(by_seed.values())) for arm, by_seed in done.items()})
    result: dict[str, Any] = {
        "benchmark": "ablation", "command": command, "plan": plan_name, "data": data, "seeds": list(seeds),
        "machine": machine(),
        "protocol": f"{split.chosen('val').protocol}; judged: {len(queries)} queries"
        + (f" with {plan.min_history} positives or more before them" if plan.min_history else ""),
        "arms": {arm: _facts(plan, arm, done[arm], found[arm], costs[arm]) for arm in found},
        "groups": {},
        "served": {
            arm: {"metrics": _means(results), "apart": compare(results, found[arm]).to_dict()["metrics"]}
            for arm, results in served.items()
        },
    }  # fmt: skip
    for title, arms in plan.groups.items():
        here = [arm for arm in arms if arm in found]
        result["groups"][title] = {
            arm: compare(found[arm], found[here[0]]).to_dict()["metrics"] for arm in here[1:] if len(here) > 1
        }
    (out / "ablation.json").write_text(json.dumps(result, indent=1, default=float) + "\n")
    return result, ablation_table(result, plan.groups)


def _long_enough(split: RetrievalSplit, least: int) -> Queries:
    queries = split.chosen("val")
    queries = queries.take(queries.end - split.start(queries.user) >= least)
    if not len(queries):
        raise InputError("no query has so long a history", got=0, allowed=f"1 or more with {least} positives before")
    return queries


def _check_same(folder: Path, recipe: Recipe, split: RetrievalSplit) -> None:
    """Raises InputError for an arm that is there of another plan, other data or other epochs."""
    from training.checkpoint import load_checkpoint
    from training.recipe import Recipe

    held = load_checkpoint(folder, kind="kuaiformer").config["training"]
    theirs = Recipe.from_dict(held["recipe"], folder), held["data"], held["positives"]
    if theirs != (recipe, split.name, len(split.train_places())):
        raise InputError("this arm was trained otherwise", where=folder, fix="choose another --out")


def _judge(
    arm: str, by_seed: Mapping[int, Path], split: RetrievalSplit, queries: Queries, *, served: bool = False
) -> list[RetrievalResult]:
    """served: with the windows that the server would have kept for each user."""
    from training.checkpoint import load_checkpoint
    from training.kuaiformer_train import load_kuaiformer
    from training.retrieval_eval import KuaiFormerScorer, evaluate
    from training.served_windows import ServedScorer

    results = []
    for folder in by_seed.values():
        checkpoint = load_checkpoint(folder, kind="kuaiformer")
        kind, name = (ServedScorer, f"{arm}, {SERVED}") if served else (KuaiFormerScorer, arm)
        scorer = kind(load_kuaiformer(checkpoint), checkpoint.tables, name=name)
        results.append(evaluate(split, queries, scorer, quick=True))
    return results


def measured_costs(folders: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Milliseconds of a user in the encoder (eager torch, one thread, full histories), arms in turn, medians.

    "whole": from the history anew. "kept": the windows' tokens are kept as the server keeps them, which is what a user
    costs who is answered after every positive; without windows the same as "whole".
    """
    import torch

    from training.checkpoint import load_checkpoint
    from training.kuaiformer_train import load_kuaiformer

    nets = {arm: load_kuaiformer(load_checkpoint(folder, kind="kuaiformer")) for arm, folder in folders.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in nets}
    try:
        for repeat in range(COST_REPEATS + 1):
            for arm, net in nets.items():
                seconds = _one_pass(net)
                if repeat:
                    times[arm].append(seconds)
    finally:
        torch.set_num_threads(threads)
    return {
        arm: dict(zip(COSTS, (1000 * np.median(found, axis=0) / COST_BATCH).tolist(), strict=True))
        for arm, found in times.items()
    }


def _one_pass(net: KuaiFormer) -> tuple[float, float]:
    """Seconds of COST_BATCH users: from the whole history, and on average with kept windows."""
    import torch

    from contract.window_plan import WindowPlan

    windows, early = net.config.windows, sum(net.config.windows)
    rows = torch.zeros(COST_BATCH, net.config.length, net.spec.width("history_rows"))
    mask = torch.ones(COST_BATCH, net.config.length)
    with torch.no_grad():
        began = time.perf_counter()
        net.encoder(rows, mask)
        whole = time.perf_counter() - began
        if not windows:
            return whole, whole
        began = time.perf_counter()
        kept = net.encoder.compressed(rows[:, :early], mask[:, :early], windows)
        between = time.perf_counter()
        net.encoder.behind(kept, rows[:, early:], mask[:, early:])
        made_share = WindowPlan(windows, net.config.latest).made_per_item / early
        return whole, (between - began) * made_share + time.perf_counter() - between


def _facts(
    plan: Plan, arm: str, by_seed: Mapping[int, Path], results: Sequence[RetrievalResult], cost_ms: Mapping[str, float]
) -> dict[str, Any]:
    from training.checkpoint import load_checkpoint

    trained = [load_checkpoint(folder, kind="kuaiformer") for folder in by_seed.values()]
    return {
        "settings": list(plan.arms[arm]),
        "seeds": list(by_seed),
        "metrics": _means(results),
        "encoder_ms_per_user": dict(cost_ms),
        "train_seconds": float(np.mean([c.config["training"]["result"]["seconds"] for c in trained])),
        "versions": [c.version for c in trained],
    }


def _means(results: Sequence[RetrievalResult]) -> dict[str, float]:
    return {name: float(np.mean([r.values[name] for r in results])) for name in results[0].values}


def ablation_table(result: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> str:
    """For a terminal: a block per group, the reference first, paired differences with intervals, cost as a ratio."""
    lines = [result["protocol"], f"{result['plan']} on {result['data']}, seeds {result['seeds']}"]
    for title, arms in groups.items():
        here = [arm for arm in arms if arm in result["arms"]]
        if not here:
            continue
        base = result["arms"][here[0]]
        lines += ["", title, f"  {'':<18}{'recall@10':>10}{'':>26}{'ndcg@10':>10}{'':>26}{'encoder':>10}{'kept':>8}"]
        for arm in here:
            facts, apart = result["arms"][arm], result["groups"][title].get(arm)
            whole, kept = (facts["encoder_ms_per_user"][k] / base["encoder_ms_per_user"]["whole"] for k in COSTS)
            lines.append(f"  {arm:<18}{_figures_text(facts['metrics'], apart)}{whole:>9.2f}×{kept:>7.2f}×")
    for arm, facts in result.get("served", {}).items():
        lines += ["", f"{arm} as a server answers that keeps its windows (differences to the whole history anew)"]
        lines.append(f"  {SERVED:<18}{_figures_text(facts['metrics'], facts['apart'])}")
    return "\n".join(lines)


def _figures_text(metrics: Mapping[str, float], apart: Mapping[str, Any] | None) -> str:
    """SHOWN, each with its paired difference, if there is one."""
    from training.retrieval_result import difference_text

    parts = []
    for name in SHOWN:
        of = None if apart is None else Interval(*(apart[name][k] for k in ("mean", "low", "high")))
        parts.append(f"{metrics[name]:>10.4f}{'' if of is None else difference_text(of):>26}")
    return "".join(parts)
