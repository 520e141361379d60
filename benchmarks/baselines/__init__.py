"""The models that KuaiFormer is measured against, in the same harness and trained with the same care.

    split = split_of(open_data("ml-1m:PATH"), "ml-1m")
    evaluate(split, "val", BASELINES["item-cf"](split))              # counts: made from the split in seconds
    evaluate(split, "val", load_baseline("runs/sasrec"))             # trained before by `kir bench baseline`

SASRec, GRU4Rec and ComiRec are small modules here instead of a library's: what is compared must see the same batches,
loss, trainer and evaluation as KuaiFormer, and the libraries (RecBole, RecTools, …) each bring their own.
Light at import: torch and the rooms come with the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.retrieval_rank import Scorer
    from training.retrieval_split import RetrievalSplit

COUNTED = ("popularity", "item-cf")
TRAINED = ("sasrec", "gru4rec", "comirec-sa", "comirec-dr")


def _popularity(split: RetrievalSplit) -> Scorer:
    from training.retrieval_eval import Popularity

    return Popularity()


def _item_cf(split: RetrievalSplit) -> Scorer:
    from benchmarks.baselines.item_cf import make_item_cf
    from benchmarks.baselines.recipe import Recipe

    return make_item_cf(split, Recipe.shipped("item-cf", split.name))


BASELINES: Mapping[str, Callable[[RetrievalSplit], Scorer]] = {"popularity": _popularity, "item-cf": _item_cf}


def load_baseline(directory: str | Path, name: str = "") -> Scorer:
    """The scorer of a checkpoint that `kir bench baseline` wrote. Raises CheckpointError."""
    from benchmarks.baselines.train import load_baseline as load

    return load(directory, name)
