"""What `kir evaluate` does: any checkpoint on any data in a known layout, or a dump without either.

kir evaluate runs/kuaiformer --data ml-1m:../shared/data/ml-1m --split test --dump lists.parquet
kir evaluate runs/ranker --data kuairand:../shared/data/kuairand-pure --holdout-days 2 --dump scores.parquet
kir evaluate runs/ranker --data kuairand:../shared/data/kuairand-pure --holdout-days 2 --real-time
kir evaluate --from-dump lists.parquet
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.events import Events
from training import within_user
from training.checkpoint import CONFIG, Checkpoint, load_checkpoint
from training.days import cut_before_last_days, held_out
from training.known_items import KnownItems, known_items
from training.readers import LogData, open_data
from training.retrieval_eval import KuaiFormerScorer, Popularity, evaluate
from training.retrieval_rank import Scorer
from training.retrieval_result import Comparison, RetrievalResult, compare, results_table
from training.retrieval_split import RetrievalSplit, split_of
from training.within_user import CLAIM_POSITIVES, no_claim


@dataclass(frozen=True)
class Cut:
    """Where a log is cut: from a time on, or its last days; neither = where the checkpoint's training ended."""

    from_ms: int | None = None
    holdout_days: int | None = None
    utc_offset_hours: float = 0.0

    def __post_init__(self) -> None:
        if self.from_ms is not None and self.holdout_days is not None:
            raise InputError("--from-ms and --holdout-days both say where to cut", fix="give one of them")
        if self.holdout_days is not None and self.holdout_days < 1:
            raise InputError("--holdout-days starts at 1", got=self.holdout_days)

    def of(self, events: Events, trained_until_ms: int | None) -> int:
        """Unix milliseconds. Raises InputError when nothing says where, or no event is left behind the cut."""
        if self.holdout_days is not None:
            return cut_before_last_days(events, self.holdout_days, self.utc_offset_hours)
        cut_ms = self.from_ms if self.from_ms is not None else trained_until_ms
        if cut_ms is None:
            raise InputError("nothing says where to cut this log", fix="pass --from-ms or --holdout-days")
        if not (events["time_ms"] >= cut_ms).any():
            raise InputError(
                "the data end before the cut, by default where the checkpoint's training ended",
                got=int(events["time_ms"].max(initial=-1)),
                allowed=f"from {cut_ms} ms",
                fix="give later data, or train with --holdout-days",
            )
        return cut_ms


def open_split(name: str, cut: Cut, trained_until_ms: int | None = None) -> RetrievalSplit:
    """The retrieval split of `--data NAME`, logs cut by `cut`. Its protocol says so where training saw the queries."""
    data, kind = open_data(name), name.partition(":")[0]
    if isinstance(data, LogData):
        cut_ms = cut.of(data.events, trained_until_ms)
        split = split_of(data, kind, cut_ms=cut_ms, utc_offset_hours=cut.utc_offset_hours)
        leak = caution(cut_ms, trained_until_ms, "queries")
        if not leak:
            return split
        told = {name: replace(one, protocol=f"{one.protocol}; {leak}") for name, one in split.queries.items()}
        return replace(split, queries=told)
    if cut.from_ms is not None or cut.holdout_days is not None:
        raise InputError("leave-one-out data are not cut by time", where=f"--data {name}", fix="choose by --split")
    return split_of(data, kind)


def caution(cut_ms: int, trained_until_ms: int | None, what: str = "impressions") -> str:
    """What a protocol must say where training saw some of what is scored from `cut_ms` on; "" where it did not, or
    where no end of training is known."""
    if trained_until_ms is None or cut_ms >= trained_until_ms:
        return ""
    return f"CAUTION: training went up to {trained_until_ms} ms; if it was on this log, it saw {what} before that"


def kind_of(path: Path) -> str:
    """The kind a checkpoint directory says it is; "" where it says none. Reads nothing else of it."""
    try:
        return str(json.loads((path / CONFIG).read_text()).get("kind", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def trained_until(path: Path) -> int | None:
    """Where a checkpoint's training log ended, Unix milliseconds; None where it does not say (no times).

    Raises InputError for a directory without a checkpoint's config.
    """
    try:
        until = json.loads((path / CONFIG).read_text())["training"].get("trained_until_ms")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        raise InputError("not a checkpoint directory", where=path) from None
    return int(until) if until and until > 0 else None  # 0: sequences have no times


def scorer_of(checkpoint: Checkpoint, name: str = "") -> Scorer:
    """A KuaiFormer checkpoint as a scorer, called `name` or by its version."""
    from training.kuaiformer_train import load_kuaiformer

    return KuaiFormerScorer(load_kuaiformer(checkpoint), checkpoint.tables, name or checkpoint.version)


@dataclass(frozen=True)
class Evaluation:
    """What one call found: text for the terminal, a dict for JSON."""

    text: str
    found: Mapping[str, Any]


def evaluate_dump(path: Path) -> Evaluation:
    """The metrics of a dump or a saved result, worked out anew from the file alone."""
    if within_user.is_scores(path):
        ranked = within_user.evaluate(within_user.read_scores(path))
        return Evaluation(ranked.table(), {"metrics": ranked.values, "result": ranked.to_dict()})
    result = RetrievalResult.load(path)
    return Evaluation(result.table(), {"metrics": result.values, "result": result.to_dict()})


def evaluate_checkpoint(
    path: Path, data_name: str, cut: Cut, *, split: str | None = None, dump: Path | None = None, top: int = 100,
    real_time: bool = False, open_baseline: Callable[[Path, str], Scorer] | None = None,
) -> Evaluation:  # fmt: skip
    """Score a checkpoint of any kind; split and top are for retrieval, real_time (`training.real_time`) is for the
    ranker. open_baseline(path, name): the scorer of a baseline's checkpoint, whose code is not this room's; without it
    such a checkpoint is refused. Raises InputError where they don't fit."""
    kind = kind_of(path)
    if real_time and kind != "ranker":
        raise InputError("--real-time is a setting of the ranker", where=path, got=f"a checkpoint of kind {kind}")
    checkpoint = load_checkpoint(path)
    if kind in ("kuaiformer", "baseline"):
        scorer = _scorer(checkpoint, data_name, open_baseline)
        return _retrieval(checkpoint, scorer, data_name, cut, split or "val", dump, top)
    if split is not None:
        raise InputError("--split is for retrieval", where=path, got=f"a checkpoint of kind {kind}")
    data = open_data(data_name)
    if not isinstance(data, LogData):
        raise InputError("these data have no events, so they are for retrieval alone", where=f"--data {data_name}")
    cut_ms: int | None
    until_ms = trained_until(path)
    if checkpoint.kind == "kir":
        cut_ms, metrics, scored = _kir(checkpoint, data.events, cut, until_ms)
    else:
        from training.ranker_train import evaluate_ranker

        cut_ms = cut.of(data.events, until_ms)
        metrics, scored = evaluate_ranker(checkpoint, data.events, cut_ms, live=real_time)
    known = known_items(checkpoint, data.events["video_id"], data_name)
    leak = "" if cut_ms is None else caution(cut_ms, until_ms)
    metrics, scored = _told(leak, metrics, scored)
    about = {"version": checkpoint.version, "data": data_name, "cut_ms": cut_ms, "trained_until_ms": until_ms}
    facts: dict[str, Any] = {**about, "caution": leak, "no_claim": no_claim(metrics), "metrics": metrics}
    facts["known_items"] = known and known.to_json()
    if dump is not None and not scored:
        raise InputError("no long_view was observed, so there is nothing to dump", where=f"--data {data_name}")
    text = _below(known, metrics_text(checkpoint.version, metrics))
    if not scored:
        return Evaluation(text, facts)
    results = [within_user.evaluate(replace(one, about=about)) for one in scored]
    if dump is not None:
        within_user.write_scores(dump, results[0].scored)
    return _ranked(text, facts, results, real_time)


def _scorer(checkpoint: Checkpoint, data_name: str, open_baseline: Callable[[Path, str], Scorer] | None) -> Scorer:
    if checkpoint.kind == "kuaiformer":
        return scorer_of(checkpoint)
    if open_baseline is None:
        raise InputError(
            "a baseline is opened by the benchmarks, which this room can't import",
            where=checkpoint.path,
            fix=f"kir evaluate {checkpoint.path} --data {data_name}",
        )
    return open_baseline(checkpoint.path, checkpoint.version)


def _below(known: KnownItems | None, text: str) -> str:
    """The text, with what there is to say on the items above it."""
    return f"{known.line}\n{text}" if known and known.line else text


def _told(
    leak: str, metrics: dict[str, Any], scored: list[within_user.ScoredLog]
) -> tuple[dict[str, Any], list[within_user.ScoredLog]]:
    """With the caution, if there is one, in every protocol."""
    if not leak:
        return metrics, scored
    metrics = {**metrics, "protocol": f"{metrics['protocol']}; {leak}"}
    return metrics, [replace(one, protocol=f"{one.protocol}; {leak}") for one in scored]


def _ranked(
    text: str, facts: dict[str, Any], results: list[within_user.WithinUserResult], real_time: bool
) -> Evaluation:
    """The model first, the floor last; real_time: past only second."""
    facts["within_user"] = [one.to_dict() for one in results]
    apart = within_user.compare(results[0], results[-1])
    facts["comparison"] = {name: one.to_json() for name, one in apart.items()}
    text = f"{text}\n{within_user.results_table(results, first_against=True)}"
    if not real_time:
        return Evaluation(text, facts)
    from training.real_time import slices, slices_table

    gains = slices(results[0], results[1])
    return Evaluation(f"{text}\n{slices_table(gains)}", {**facts, "real_time": [one.to_dict() for one in gains]})


def _retrieval(
    checkpoint: Checkpoint, scorer: Scorer, data_name: str, cut: Cut, which: str, dump: Path | None, top: int
) -> Evaluation:
    until_ms = trained_until(checkpoint.path)
    split = open_split(data_name, cut, until_ms)
    about = {"version": checkpoint.version, "data": data_name, "trained_until_ms": until_ms}
    known = known_items(checkpoint, split.items.video_id, data_name)
    ours = evaluate(split, which, scorer, dump=dump, top=top, about=about)
    floor = evaluate(split, which, Popularity())
    against = compare(ours, floor)
    facts = _retrieval_facts(ours, floor, against, data_name)
    text = _below(known, _retrieval_text(ours, floor, against))
    return Evaluation(text, {**facts, "known_items": known and known.to_json()})


def _retrieval_text(ours: RetrievalResult, floor: RetrievalResult, against: Comparison) -> str:
    return f"{results_table([ours, floor])}\n{against.table()}"


def _retrieval_facts(
    ours: RetrievalResult, floor: RetrievalResult, against: Comparison, data_name: str
) -> dict[str, Any]:
    metrics = {**ours.values, **{f"popularity_{name}": value for name, value in floor.values.items()}}
    return {
        "version": ours.about["version"],
        "data": data_name,
        "metrics": {**metrics, "protocol": ours.protocol},
        "result": ours.to_dict(),
        "popularity": floor.to_dict(),
        "comparison": against.to_dict(),
    }


def _kir(
    checkpoint: Checkpoint, events: Events, cut: Cut, until_ms: int | None
) -> tuple[int | None, dict[str, Any], list[within_user.ScoredLog]]:
    """Metrics of the reranker on events from the cut on, by default from the end of its training.

    A training without times has no end: then on the latest share of each user, as it held out itself.
    """
    import numpy as np

    from training.kir import load_kir
    from training.kir_data import prepare
    from training.kir_eval import scored_views, server_scores
    from training.kir_train import KirTask, split_by_time
    from training.kir_train import evaluate as evaluate_kir

    net, facts = load_kir(checkpoint), checkpoint.config["training"]
    data = prepare(events, net.config.watched)
    cut_ms = None
    if until_ms is None and cut == Cut(utc_offset_hours=cut.utc_offset_hours):
        scored, which = ~split_by_time(data, facts["held_out"]), f"each user's latest {facts['held_out']:.0%}"
    else:
        cut_ms = cut.of(events, until_ms)
        scored, which = held_out(data.events, cut_ms, cut.utc_offset_hours), f"from {cut_ms} ms on"
    task = KirTask(net, checkpoint.tables)
    fusion = checkpoint.model_config.get("fusion")
    found = evaluate_kir(task, data, scored, facts["watch_share_threshold"], fusion=fusion)
    protocol = f"{int(scored.sum())} impressions, {which}; watched lists as the phone had them"
    _, server = server_scores(data, np.flatnonzero(scored))
    protocol += f"; server_* is the order by {server}, for every task"
    if net.config.skip and not np.isfinite(data.events["pxtr"][scored]).any():
        protocol += "; CAUTION: no predictions of a server here, which the model was trained with (kir annotate)"
    return cut_ms, {**found, "protocol": protocol}, scored_views(checkpoint.version, task, data, scored, protocol)


def metrics_text(title: str, metrics: Mapping[str, Any]) -> str:
    """One figure a line under the title and the protocol; those of few positives are marked (`no_claim`)."""
    lines = [title]
    if "protocol" in metrics:
        lines.append(f"protocol: {metrics['protocol']}")
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    width = max((len(name) for name in numbers), default=0)
    few = no_claim(metrics)
    for name, value in numbers.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        mark = f"  no claim (n < {CLAIM_POSITIVES})" if any(name.endswith(f"_{head}") for head in few) else ""
        lines.append(f"  {name:<{width}}  {text}{mark}")
    return "\n".join(lines)
