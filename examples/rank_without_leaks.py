"""Fill a log with server predictions that never saw the day they score, then train the ranker that serves.

    .venv/bin/python examples/rank_without_leaks.py       (about half a minute on one core)

A reranker trained on predictions of a ranker that had seen their labels learns to trust them too much: hence rolling
origin. The first day has no predictions, because nothing came before it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from contract.vocabulary import PXTR_HEADS
from training.days import days_of
from training.ranker_eval import auc
from training.ranker_train import RankerPlan, rolling_pxtr, train_ranker
from training.simulator import SimConfig, World, simulate_logs


def main(n_users: int = 150, n_items: int = 800, days: int = 4, epochs: int = 2) -> list[float]:
    world = World(SimConfig(n_users=n_users, n_items=n_items, days=days))
    events = rolling_pxtr(simulate_logs(world), folds=days - 1, plan=RankerPlan(epochs=epochs))

    day = days_of(events)
    predicted = events["pxtr"][:, PXTR_HEADS.index("long_view")]
    aucs = []
    for one in np.unique(day):
        mine = (day == one) & ~np.isnan(predicted)
        if mine.any():
            aucs.append(auc(events["long_view"][mine], predicted[mine]))
            print(f"day {one - day.min()}: AUC of long_view {aucs[-1]:.4f} over {mine.sum()} impressions")
        else:
            print(f"day {one - day.min()}: no prediction")

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = train_ranker(events, world.users, Path(folder) / "ranker", plan=RankerPlan(epochs=epochs))
    print(f"for serving: {checkpoint.version}, trained on all days")
    return aucs


if __name__ == "__main__":
    main()
