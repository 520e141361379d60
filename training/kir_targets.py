"""What of a log the reranker is trained on: the spec's fields, the targets, the tables' keys, the tasks with labels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.spec import FeatureSpec
from contract.specs import kir_spec
from training.checkpoint import Checkpoint
from training.kir_config import KirConfig
from training.kir_data import KirData, coverage
from training.kir_objective import labelled_tasks
from training.tables import table_keys


def choose_spec(
    data: KirData, train: NDArray[np.bool_], pxtr_only: bool, least: float, without: Iterable[str] = ()
) -> tuple[FeatureSpec, dict[str, float], list[str]]:
    """The shipped spec minus `without` and the fields this log (almost) never fills; the coverage; what it dropped."""
    spec = kir_spec().without(without)
    spec = spec.without_served() if pxtr_only else spec
    shares = coverage(spec, data, train)
    dropped = [name for name, share in shares.items() if share < least]
    return spec.without(dropped), shares, dropped


def labelled_in(
    config: KirConfig, data: KirData, train: NDArray[np.bool_], before: Checkpoint | None
) -> tuple[str, ...]:
    """Tasks with labels in this training or in that of the checkpoint it goes on from."""
    known = set(labelled_tasks(config.tasks, data.labels_nT[train]))
    if before is not None:
        known |= set(before.config["training"].get("labelled_tasks", before.model_config.get("fusion", ())))
    if not known:
        raise InputError("no label of any task to train on", got=f"{int(train.sum())} events", allowed=config.tasks)
    return tuple(task for task in config.tasks if task in known)


def reads_pxtr(spec: FeatureSpec) -> bool:
    """Whether a candidate's features hold the server's predictions."""
    return any(column.field.feature == "pxtr" for column in spec.columns("candidate_dense"))


def new_keys(spec: FeatureSpec, data: KirData, train: NDArray[np.bool_]) -> dict[str, NDArray[np.uint64]]:
    """Keys of the training events, per table: later ones are unknown, as they would be on the day."""
    columns = {name: column[:-2][train] for name, column in data.columns.items()}
    blocks = [b for b in ("user_rows", "candidate_rows") if spec.width(b)]
    return table_keys(spec, [(block, columns) for block in blocks])
