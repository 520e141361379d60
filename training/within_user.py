"""Ranking within users, the protocol for logs of impressions: GAUC, nDCG@5, and their mean, the primary figure.

GAUC is the AUC within each user, weighted by the user's positives, over users with 0 < positives < impressions. nDCG@5
(gain 2^label − 1) is a mean over all users, 0 for one without a positive. Scores that are equal share their places:
AUC counts a tie as a half, nDCG takes the mean over all orders of the tied, so that no order of the file helps.

    result = evaluate(ScoredLog("ranker", users, videos, times_ms, labels, scores))
    print(result.table()); write_scores("scores.parquet", result.scored)
    compare(ours, theirs)["primary"]     # paired: users drawn whole

Shapes: n impressions, U users, S draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contract.errors import InputError
from contract.events import Events
from contract.files import replacing
from contract.stats import DRAWS, Interval
from training.retrieval_result import difference_text, interval_text

Floats = NDArray[np.float64]
CUT = 5
METRICS = ("primary", "gauc", "ndcg@5")
CALIBRATION_BINS = 10
CLAIM_POSITIVES = 500  # of a head or task: with fewer, figures are shown and carry no claim
FORMAT = "kir-scores/1"
METADATA = b"kir-scores"
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.uint64(), nullable=False),
        pa.field("video_id", pa.uint64(), nullable=False),
        pa.field("time_ms", pa.int64(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ScoredLog:
    """n impressions with a binary label and a score each, in the log's order. probability: scores are chances.

    Raises InputError for labels other than 0 and 1, scores that are no numbers, and lengths that differ.
    """

    name: str
    user_id: NDArray[np.uint64]
    video_id: NDArray[np.uint64]
    time_ms: NDArray[np.int64]
    label: NDArray[np.int8]
    score: Floats
    protocol: str = ""
    probability: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in SCHEMA.names}
        if len(lengths) > 1:
            raise InputError("columns of unequal length", where=self.name, got=sorted(lengths))
        if not np.isin(self.label, (0, 1)).all():
            raise InputError("labels are 0 or 1", where=self.name, got=np.unique(self.label).tolist()[:5])
        bad = np.flatnonzero(~np.isfinite(self.score))
        if len(bad):
            raise InputError("scores must be numbers", where=self.name, got=f"{len(bad)} are not, row {bad[0]} first")

    def __len__(self) -> int:
        return len(self.label)

    @staticmethod
    def of(
        name: str, events: Events, label: NDArray[Any], score: NDArray[Any], protocol: str, *, probability: bool
    ) -> ScoredLog:
        """Scores of all of these events, in their order."""
        return ScoredLog(
            name, events["user_id"], events["video_id"], events["time_ms"], label.astype(np.int8),
            score.astype(np.float64), protocol, probability,
        )  # fmt: skip


@dataclass(frozen=True)
class PerUser:
    """What each user adds: positives · AUC, positives (0 where the AUC is undefined), and nDCG@5; [U] each."""

    user_id: NDArray[np.uint64]
    weighted_auc: Floats
    weight: Floats
    ndcg: Floats

    def values(self, counts_SU: NDArray[Any]) -> Floats:
        """METRICS with each user counted so often, [S, 3]. GAUC is NaN where nobody has both labels."""
        with np.errstate(invalid="ignore"):
            gauc_S = (counts_SU @ self.weighted_auc) / (counts_SU @ self.weight)
        ndcg_S = (counts_SU @ self.ndcg) / counts_SU.sum(axis=1)
        return np.stack([(gauc_S + ndcg_S) / 2, gauc_S, ndcg_S], axis=1)

    def take(self, users: NDArray[Any]) -> PerUser:
        """Some of the users: places or bool [U]."""
        return PerUser(*(getattr(self, name)[users] for name in ("user_id", "weighted_auc", "weight", "ndcg")))


def per_user(user_id: NDArray[np.uint64], label: NDArray[Any], score: Floats) -> PerUser:
    """One pass over impressions sorted by user and score."""
    users, user = np.unique(user_id, return_inverse=True)
    order = np.lexsort((-score, user))
    user, yes, score = user[order], label[order] == 1, score[order]
    n = len(user)
    size = np.bincount(user, minlength=len(users))
    first = np.cumsum(size) - size
    new = np.ones(n, bool)
    new[1:] = (score[1:] != score[:-1]) | (user[1:] != user[:-1])
    tie = np.cumsum(new) - 1
    start, length = np.flatnonzero(new), np.bincount(tie, minlength=int(new.sum()))
    place = np.arange(n) - first[user]  # from 0, best first
    middle = (start + (length - 1) / 2)[tie] - first[user]
    positives = np.bincount(user, yes, minlength=len(users))
    negatives = size - positives
    # pairs won = for each positive, the negatives behind it: all behind its place, less the positives behind it
    behind = np.bincount(user, np.where(yes, size[user] - 1 - middle, 0.0), minlength=len(users))
    pairs = positives * negatives
    won = behind - positives * (positives - 1) / 2
    auc = np.divide(won, pairs, out=np.zeros(len(users)), where=pairs > 0)
    gain = np.where(np.arange(max(int(size.max(initial=0)), 1)) < CUT, 1.0, 0.0)
    gain[:CUT] /= np.log2(np.arange(2, len(gain[:CUT]) + 2))
    discount = np.bincount(tie, gain[place], minlength=len(length))[tie] / length[tie]  # mean over the orders of a tie
    found = np.bincount(user, np.where(yes, discount, 0.0), minlength=len(users))
    ideal = np.append(0.0, np.cumsum(gain[:CUT]))[np.minimum(positives, len(gain[:CUT])).astype(int)]
    ndcg = np.divide(found, ideal, out=np.zeros(len(users)), where=ideal > 0)
    return PerUser(users, auc * positives, np.where(pairs > 0, positives, 0.0), ndcg)


@dataclass(frozen=True)
class WithinUserResult:
    """metrics: METRICS with intervals, users drawn whole. auc over all impressions; ece for probabilities alone."""

    scored: ScoredLog
    metrics: Mapping[str, Interval]
    auc: float
    ece: float | None

    users: PerUser = field(repr=False)

    @property
    def values(self) -> dict[str, float]:
        extra = {} if self.ece is None else {"ece": self.ece}
        return {**{name: one.mean for name, one in self.metrics.items()}, "auc": self.auc, **extra}

    def to_dict(self) -> dict[str, Any]:
        facts = {"name": self.scored.name, "protocol": self.scored.protocol, "about": dict(self.scored.about)}
        counts = {"impressions": len(self.scored), "users": len(self.users.user_id)}
        return {**facts, **counts, "metrics": {n: one.to_json() for n, one in self.metrics.items()}, "auc": self.auc,
                "ece": self.ece}  # fmt: skip

    def table(self) -> str:
        return results_table([self])

    __str__ = table


def evaluate(scored: ScoredLog, *, seed: int = 0, draws: int = DRAWS) -> WithinUserResult:
    """Raises InputError for a log without impressions."""
    if not len(scored):
        raise InputError("nothing to evaluate", where=scored.name, got="0 impressions")
    users = per_user(scored.user_id, scored.label, scored.score)
    everyone = per_user(np.zeros(len(scored), np.uint64), scored.label, scored.score)
    auc = float(everyone.weighted_auc[0] / everyone.weight[0]) if everyone.weight[0] else float("nan")
    off = ece(scored.label, scored.score) if scored.probability else None
    return WithinUserResult(scored, _intervals(users, seed, draws), auc, off, users)


def mean_of(results: Sequence[WithinUserResult], *, seed: int = 0, draws: int = DRAWS) -> WithinUserResult:
    """Several seeds of one model as one result: what they add is averaged user by user, so intervals are over users,
    for these seeds. Raises InputError when the impressions differ."""
    first = results[0]
    for one in results[1:]:
        same_impressions(first, one)
    parts = {name: np.mean([getattr(one.users, name) for one in results], axis=0) for name in ("weighted_auc", "ndcg")}
    users = replace(first.users, **parts)
    name = f"{first.scored.name} (mean of {len(results)})"
    off = [one.ece for one in results if one.ece is not None]
    return WithinUserResult(
        replace(first.scored, name=name), _intervals(users, seed, draws), float(np.mean([one.auc for one in results])),
        float(np.mean(off)) if off else None, users,
    )  # fmt: skip


def _intervals(users: PerUser, seed: int, draws: int) -> dict[str, Interval]:
    found = users.values(np.ones((1, len(users.user_id))))[0]
    low, high = _bounds(_draw([users], seed, draws)[0])
    return {name: Interval(*map(float, (found[i], low[i], high[i]))) for i, name in enumerate(METRICS)}


def same_impressions(ours: WithinUserResult, theirs: WithinUserResult) -> None:
    """Raises InputError when the impressions differ."""
    for name in ("user_id", "video_id", "time_ms", "label"):
        if not np.array_equal(getattr(ours.scored, name), getattr(theirs.scored, name)):
            raise InputError(
                "results of different impressions can't be compared", where=f"{ours.scored.name}, {theirs.scored.name}",
                got=f"column '{name}' differs", fix="score the same log, in one order",
            )  # fmt: skip


def compare(
    ours: WithinUserResult, theirs: WithinUserResult, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, Interval]:
    """Paired bootstrap of ours − theirs over users. Raises InputError when the impressions differ."""
    same_impressions(ours, theirs)
    return difference(ours.users, theirs.users, seed=seed, draws=draws)


def difference(ours: PerUser, theirs: PerUser, *, seed: int = 0, draws: int = DRAWS) -> dict[str, Interval]:
    """Paired bootstrap of ours − theirs over the users of both, the same in one order."""
    everyone = np.ones((1, len(ours.user_id)))
    apart = (ours.values(everyone) - theirs.values(everyone))[0]
    drawn = _draw([ours, theirs], seed, draws)
    low, high = _bounds(drawn[0] - drawn[1])
    return {name: Interval(*map(float, (apart[i], low[i], high[i]))) for i, name in enumerate(METRICS)}


def _draw(sides: Sequence[PerUser], seed: int, draws: int) -> list[Floats]:
    """METRICS of every draw of users, [S, 3] for each side, all sides with the same draws."""
    rng, n = np.random.default_rng(seed), len(sides[0].user_id)
    found: list[list[Floats]] = [[] for _ in sides]
    for first in range(0, draws, 64):
        rows = min(64, draws - first)
        drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        for side, parts in zip(sides, found, strict=True):
            parts.append(side.values(counts))
    return [np.concatenate(parts) if parts else np.full((1, 3), np.nan) for parts in found]


def _bounds(values_SM: Floats) -> tuple[Floats, Floats]:
    if np.isnan(values_SM).all():
        return values_SM[0], values_SM[0]
    low, high = np.nanpercentile(values_SM, [2.5, 97.5], axis=0)
    return low, high


def ece(label: NDArray[Any], chance: Floats, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error (Naeini et al. 2015) over bins of equal counts: mean |predicted − observed|.

    Labels are 0 and 1, or shares."""
    order = np.argsort(chance, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(p) * abs(chance[p].mean() - label[p].mean()) for p in parts) / max(len(label), 1))


def no_claim(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Heads or tasks with too few positives for their figures to say anything, and how many they have: of
    metrics with a `positives_<head>` each."""
    counts = {name.removeprefix("positives_"): n for name, n in metrics.items() if name.startswith("positives_")}
    return {head: int(n) for head, n in counts.items() if n < CLAIM_POSITIVES}


def results_table(results: Sequence[WithinUserResult], first_against: bool = False) -> str:
    """The protocol, then a line for each result. first_against: and the first one's paired difference to it.

    Results of another protocol than the first one's have theirs named."""
    one = results[0]
    head = [f"protocol: {one.scored.protocol or 'label long_view'}; GAUC weighted by positives, nDCG@5 over all users"]
    others: dict[str, list[str]] = {}
    for result in results[1:]:
        if result.scored.protocol not in ("", one.scored.protocol):
            others.setdefault(result.scored.protocol, []).append(result.scored.name)
    head += [f"protocol of {'; '.join(names)}: {text}" for text, names in others.items()]
    head.append(f"{len(one.scored)} impressions of {len(one.users.user_id)} users; 95 % intervals, users drawn whole")
    rows = [["", *METRICS, "AUC", "ECE"] + [f"{one.scored.name} − it, primary"] * first_against]
    for result in results:
        cells = [result.scored.name, *(interval_text(result.metrics[name]) for name in METRICS), f"{result.auc:.4f}"]
        cells.append("–" if result.ece is None else f"{result.ece:.4f}")
        if first_against:
            apart = None if result is one else compare(one, result)["primary"]
            cells.append("" if apart is None else difference_text(apart) + "  excludes 0" * apart.excludes_zero)
        rows.append(cells)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join([*head, *("  " + line.rstrip() for line in lines)])


def write_scores(path: str | Path, scored: ScoredLog) -> Path:
    """A Parquet file of SCHEMA, from which anyone can work the figures out again."""
    facts = {"format": FORMAT, "name": scored.name, "protocol": scored.protocol, "probability": scored.probability}
    facts["about"] = dict(scored.about)
    table = pa.table({name: getattr(scored, name) for name in SCHEMA.names}, schema=SCHEMA)
    table = table.replace_schema_metadata({METADATA: json.dumps(facts, default=str)})
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")
    return Path(path)


def read_scores(path: str | Path) -> ScoredLog:
    """Raises InputError: absent, no Parquet, another format, nulls, or values out of range."""
    path = Path(path)
    try:
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[METADATA])
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise InputError("not a file of scores", where=path, got=str(error)[:200]) from None
    if facts.get("format") != FORMAT or table.schema.names != SCHEMA.names or any(c.null_count for c in table.columns):
        raise InputError("scores of another format", where=path, got=facts.get("format"), allowed=FORMAT)
    columns = {name: table[name].cast(SCHEMA.field(name).type).to_numpy() for name in SCHEMA.names}
    told = {name: facts[name] for name in ("name", "protocol", "probability", "about")}
    return ScoredLog(**columns, **told)


def is_scores(path: str | Path) -> bool:
    """Whether a Parquet file says it holds scores. False for anything else."""
    try:
        return METADATA in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False
