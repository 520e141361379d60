"""Train KuaiFormer on a simulated log and ask it for videos.

    .venv/bin/python examples/train_retrieval.py          (about half a minute on one core)

Shows the programmatic way: a world, its events, a checkpoint, and the three calls that retrieval is made of.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from contract.history import PositiveIndex
from training.kuaiformer import score
from training.kuaiformer_data import HistorySlots
from training.kuaiformer_train import load_kuaiformer, train_kuaiformer
from training.retrieval_eval import item_vectors, user_interests
from training.simulator import SimConfig, World, simulate_logs


def main(n_users: int = 150, n_items: int = 800, days: int = 4, epochs: int = 3) -> dict[str, float]:
    world = World(SimConfig(n_users=n_users, n_items=n_items, days=days))
    events = simulate_logs(world)
    print(f"{len(events)} impressions of {n_users} users and {n_items} videos")

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = train_kuaiformer(events, world.items, Path(folder) / "kuaiformer", epochs=epochs)
    print(checkpoint.metrics["protocol"])
    for name in ("recall@10", "popularity_recall@10"):
        print(f"  {name:<22} {checkpoint.metrics[name]:.4f}")

    net, tables, spec = load_kuaiformer(checkpoint), checkpoint.tables.eval(), checkpoint.spec
    history = HistorySlots(PositiveIndex.from_events(events), spec, tables)
    user = history.index.user_id[:1]
    with torch.no_grad():
        interests_1KD = user_interests(net, tables, history, user)
        scores_N = score(interests_1KD, item_vectors(net, tables, world.items))[0].numpy()
    best = np.argsort(-scores_N)[:5]
    print(f"for user {user[0]}: videos {', '.join(str(video) for video in world.items.video_id[best])}")
    return dict(checkpoint.metrics)


if __name__ == "__main__":
    main()
