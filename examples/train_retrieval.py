"""Train KuaiFormer on a simulated log and ask it for videos.

    .venv/bin/python examples/train_retrieval.py          (about half a minute on one core)

Shows the programmatic way: data, a split, a recipe, a checkpoint, and a scorer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from training.kuaiformer_train import load_kuaiformer, train_kuaiformer
from training.readers import open_data
from training.recipe import Recipe
from training.retrieval_eval import KuaiFormerScorer
from training.retrieval_split import split_of


def main(n_users: int = 150, n_items: int = 800, days: int = 4, epochs: int = 6) -> dict[str, float]:
    split = split_of(open_data(f"sim:users={n_users},items={n_items},days={days}"), "sim")
    print(f"{len(split.index)} positives of {n_users} users, {n_items} videos; the last day is held out")

    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe().changed([f"train.epochs={epochs}", "data.batch=512"])
        checkpoint = train_kuaiformer(split, Path(folder) / "kuaiformer", recipe)
    assert checkpoint is not None
    print(checkpoint.metrics["protocol"])
    for name in ("recall@10", "popularity_recall@10"):
        print(f"  {name:<22} {checkpoint.metrics[name]:.4f}")

    scorer = KuaiFormerScorer(load_kuaiformer(checkpoint), checkpoint.tables)
    user, end = np.array([0]), split.index.offsets[1:2]  # the first user, with all that is known of it
    best = np.argsort(-scorer.scores(split, user, end)[0])[:5]
    print(f"for user {split.index.user_id[0]}: videos {', '.join(str(video) for video in split.items.video_id[best])}")
    return dict(checkpoint.metrics)


if __name__ == "__main__":
    main()
