"""How good pXTR are: AUC and calibration per head, and ranking within users (GAUC, nDCG@5) for long_view.

Shapes: n impressions, X pXTR heads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contract.events import Events
from contract.vocabulary import PXTR_HEADS
from training.within_user import METRICS, ScoredLog, ece, per_user

PSEUDO_COUNTS = 20.0  # of the baseline's smoothed rate
PAST_ONLY = "labels and histories up to the cut only"


def auc(labels: NDArray[np.integer], scores: NDArray[np.floating]) -> float:
    """Area under the ROC curve, ties count a half; NaN when only one class is there."""
    positive = labels == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2.0
    return float((rank[inverse][positive].sum() - n_positive * (n_positive + 1) / 2.0) / (n_positive * n_negative))


def within_user_ranking(
    users: NDArray[np.uint64], labels: NDArray[np.integer], scores: NDArray[np.floating]
) -> dict[str, float]:
    """primary, gauc and ndcg@5 by the protocol of `training.within_user`."""
    found = per_user(users, labels, np.asarray(scores, np.float64))
    values = found.values(np.ones((1, len(found.user_id))))[0] if len(users) else np.full(len(METRICS), np.nan)
    return dict(zip(METRICS, values.tolist(), strict=True))


def item_rate(earlier: Events, video_id: NDArray[np.uint64], head: str = "long_view") -> NDArray[np.float64]:
    """The floor: smoothed rate of a head per video from earlier impressions."""
    seen = earlier[head] >= 0
    videos, inverse = np.unique(earlier["video_id"][seen], return_inverse=True)
    shown = np.bincount(inverse, minlength=len(videos))
    positive = np.bincount(inverse, weights=earlier[head][seen] == 1, minlength=len(videos))
    base = positive.sum() / max(shown.sum(), 1)
    if not len(videos):
        return np.full(len(video_id), base)
    place = np.minimum(np.searchsorted(videos, video_id), len(videos) - 1)
    known = videos[place] == video_id
    return np.where(known, (positive[place] + PSEUDO_COUNTS * base) / (shown[place] + PSEUDO_COUNTS), base)


def ranker_metrics(events: Events, pxtr_nX: NDArray[np.float32], earlier: Events) -> dict[str, float]:
    """`positives_<head>` of each head that was observed; `auc_`, `gauc_` and `ece_<head>` and predicted over observed
    rate where labels are of both classes; and within-user ranking by long_view, beside the item rate."""
    found: dict[str, float] = {}
    for x, head in enumerate(PXTR_HEADS):
        seen = (events[head] >= 0) & ~np.isnan(pxtr_nX[:, x])
        labels, chances = events[head][seen], pxtr_nX[seen, x].astype(np.float64)
        if seen.any():
            found[f"positives_{head}"] = int((labels == 1).sum())
        value = auc(labels, chances)
        if not np.isnan(value):
            gauc = within_user_ranking(events["user_id"][seen], labels, chances)["gauc"]
            found |= {f"auc_{head}": value, **_numbers("", {f"gauc_{head}": gauc})}
            found[f"ece_{head}"] = ece(labels == 1, chances)
            found[f"calibration_{head}"] = float(chances.mean() / (labels == 1).mean())
    x = PXTR_HEADS.index("long_view")
    seen = (events["long_view"] >= 0) & ~np.isnan(pxtr_nX[:, x])
    if seen.any():
        users, labels = events["user_id"][seen], events["long_view"][seen]
        found |= _numbers("", within_user_ranking(users, labels, pxtr_nX[seen, x]))
        floor = within_user_ranking(users, labels, item_rate(earlier, events["video_id"][seen]))
        found |= _numbers("item_rate_", floor)
    return found


def scored_long_views(
    name: str, events: Events, pxtr_nX: NDArray[np.float32], earlier: Events, protocol: str
) -> list[ScoredLog]:
    """The long_view head and the item rate on the same impressions: those whose label was observed and that the head
    scored. Empty where there are none."""
    chance = pxtr_nX[:, PXTR_HEADS.index("long_view")]
    rows = np.flatnonzero((events["long_view"] >= 0) & ~np.isnan(chance))
    if not len(rows):
        return []
    seen = events.take(rows)
    rate = item_rate(earlier, seen["video_id"])
    return [
        ScoredLog.of(name, seen, seen["long_view"], chance[rows], protocol, probability=True),
        ScoredLog.of("item rate", seen, seen["long_view"], rate, protocol, probability=True),
    ]


def _numbers(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in metrics.items() if not np.isnan(value)}


def ranker_protocol(events: Events, cut_ms: int, histories: str = PAST_ONLY) -> str:
    """One line that says what a figure means."""
    return (
        f"{len(events)} impressions of {len(np.unique(events['user_id']))} users from {cut_ms} ms on; {histories}; "
        "GAUC weighted by positives, nDCG@5 over all users; item_rate = smoothed long_view rate per video"
    )
