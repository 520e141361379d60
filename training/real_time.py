"""The setting "real-time feedback": histories go on through the days that are scored, as a server's do.

Impression i may also read the user's earlier impressions j of those days, where `time_j < time_i` and
`time_j + play_time_j <= time_i`: rows of one time, exact copies among them, never see each other. As a history is read
in its order, what comes after a video that still plays waits for it (in KuaiRand-Pure's last two days that costs 0.5 %
of the pairs that the rule allows). What was before the cut counts from when it was known.

GAUC and nDCG@5 do not judge this setting alone: they compare impressions of one user, so they count users of whom some
were watched and some were not, and among those what was watched before makes it less likely that the next one is. Who
learns from outcomes how much a user watches loses by it, and who bets against them wins (`against_outcomes`, a control
that knows nothing else). Log loss rewards neither, so its difference stands beside them.

    ranked = evaluate_ranker(checkpoint, events, cut_ms, live=True)[1]       # real-time, past only, item rate
    gains = slices(*map(within_user.evaluate, ranked[:2])); print(slices_table(gains))

Shapes: n impressions, l of them in the scored days, U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.events import Events
from contract.history import HistoryIndex
from contract.stats import Interval, cluster_bootstrap_mean
from training.ranker_data import live_bounds
from training.retrieval_result import difference_text
from training.within_user import METRICS, ScoredLog, WithinUserResult, difference, same_impressions

AT_LEAST = (1, 3, 6, 12)  # impressions of a user in the window; 1 = everyone


def live_index(events: Events, late: NDArray[np.bool_]) -> HistoryIndex:
    """Every impression that may ever be read, known no earlier than its play ended. late: bool [n], the scored days.

    An impression of those days whose end nobody told (no play time, no known_at_ms) is never known, so it is left out.
    """
    time_ms, play_ms, known_ms = events["time_ms"], events["play_time_ms"], events["known_at_ms"]
    ended_ms = np.where((time_ms >= 0) & (play_ms >= 0), time_ms + play_ms, np.int64(-1))
    known_ms = np.maximum(known_ms, ended_ms)
    return HistoryIndex.from_events(
        events.with_columns(known_at_ms=known_ms), every=True, among=~late | (known_ms >= 0)
    )


def entries_within(events: Events, late: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many impressions of the scored days each of them may read: int64, one for each late impression."""
    index = live_index(events, late)
    start, end = live_bounds(index, events)
    before = np.append(0, np.cumsum(late[index.event]))
    found: NDArray[np.int64] = (before[end] - before[start])[late]
    return found


def against_outcomes(
    events: Events, late: NDArray[np.bool_], chance_l: NDArray[np.float32], weight: float = 1.0
) -> NDArray[np.float32]:
    """Chances that bet against what the user did: logits less `weight` times the mean surprise of the long_views known
    by then (two that surprise nobody added). float32 [l], NaN where `chance_l` is. The setting's control.
    """
    index = live_index(events, late)
    start, end = live_bounds(index, events)
    surprise_n = np.zeros(len(events))
    surprise_n[late] = (events["long_view"][late] == 1) - chance_l
    counts_n = late & (events["long_view"] >= 0) & np.isfinite(surprise_n)
    surprise = np.append(0.0, np.cumsum(np.where(counts_n, surprise_n, 0.0)[index.event]))
    known = np.append(0, np.cumsum(counts_n[index.event]))
    mean_l = ((surprise[end] - surprise[start]) / (known[end] - known[start] + 2.0))[late]
    chance = np.clip(chance_l.astype(np.float64), 1e-6, 1 - 1e-6)
    odds = chance / (1 - chance) * np.exp(-weight * mean_l)
    return (odds / (1 + odds)).astype(np.float32)


def told_live(events: Events, late: NDArray[np.bool_]) -> str:
    """The setting in words, for the protocol."""
    reads = int((entries_within(events, late) > 0).sum())
    return (
        "REAL-TIME feedback: labels up to the cut only, histories up to each impression, what was shown before it and "
        f"played to its end by then ({reads} of {int(late.sum())} impressions read one or more of these days)"
    )


@dataclass(frozen=True)
class Slice:
    """Users with at least so many impressions in the window, and real-time − past only over them, by METRICS and in
    log loss (less is better; None where scores are no chances)."""

    at_least: int
    users: int
    impressions: int
    difference: Mapping[str, Interval]
    log_loss: Interval | None

    def to_dict(self) -> dict[str, Any]:
        counts = {"at_least": self.at_least, "users": self.users, "impressions": self.impressions}
        loss = None if self.log_loss is None else self.log_loss.to_json()
        return {**counts, "difference": {n: one.to_json() for n, one in self.difference.items()}, "log_loss": loss}


def slices(
    live: WithinUserResult,
    frozen: WithinUserResult,
    at_least: Sequence[int] = AT_LEAST,
    *,
    seeds: Sequence[tuple[ScoredLog, ScoredLog]] = (),
    seed: int = 0,
) -> list[Slice]:
    """live − frozen, paired, over users with at least so many impressions; slices without users are left out.

    seeds: the scores of both, where the results are means over several. Raises InputError when the impressions differ.
    """
    same_impressions(live, frozen)
    found = []
    seeds = seeds or [(live.scored, frozen.scored)]
    lost = np.mean([_log_loss(one) - _log_loss(two) for one, two in seeds], axis=0)
    user, count = np.unique(live.scored.user_id, return_inverse=True, return_counts=True)[1:]
    for number in at_least:
        kept = count >= number
        if kept.any():
            apart = difference(live.users.take(kept), frozen.users.take(kept), seed=seed)
            rows = kept[user]
            loss = cluster_bootstrap_mean(lost[rows], user[rows], seed) if live.scored.probability else None
            found.append(Slice(number, int(kept.sum()), int(count[kept].sum()), apart, loss))
    return found


def _log_loss(scored: ScoredLog) -> NDArray[np.float64]:
    chance = np.clip(scored.score, 1e-6, 1 - 1e-6)
    loss: NDArray[np.float64] = -np.log(np.where(scored.label == 1, chance, 1 - chance))
    return loss


def slices_table(found: Sequence[Slice]) -> str:
    """One line a slice."""
    rows = [["real-time − past only", "users", "impressions", *METRICS, "log loss (less is better)"]]
    for one in found:
        name = "all users" if one.at_least <= 1 else f"users with ≥ {one.at_least}"
        apart = [*(one.difference[metric] for metric in METRICS), one.log_loss]
        cells = ["–" if metric is None else difference_text(metric) + " *" * metric.excludes_zero for metric in apart]
        rows.append([name, str(one.users), str(one.impressions), *cells])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = "the same checkpoint, paired, 95 % intervals, users drawn whole; * excludes 0"
    caution = "within users, whoever bets against what a user did wins (see the control): log loss judges this setting"
    return "\n".join([head, *(f"  {line}" for line in lines), caution])
