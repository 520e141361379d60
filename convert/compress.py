"""A smaller download: a KIR checkpoint pruned or clustered by TFMOT, then trained on with masks or centroids held.

    kir convert compress checkpoints/kir --out checkpoints/kir-half --data events:runs/data --prune 0.5
    kir convert model checkpoints/kir-half --out converted --data events:runs/data

The file on the phone and its latency stay what they are; zeros and repeated values shrink what is sent (zlib, zstd).
What it gains and costs is measured by `kir bench compression`.

TFMOT sees the weights that are exported as they are: structural zeros are left out. Rows stand still, so that the
server's rows fit the net before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.errors import CheckpointError, InputError
from contract.events import Events
from contract.files import check_vacant
from contract.vocabulary import TASKS
from convert.compress_cli import MIN_WEIGHTS
from convert.jobs import open_events
from convert.tfmot import Prune, Transform, transform
from training.checkpoint import Checkpoint, load_checkpoint, model_card, save_checkpoint
from training.held_weights import HeldCentroids, HeldZeros, hold, release
from training.kir import Kir, load_kir
from training.kir_data import Batches, KirData, prepare
from training.kir_layers import MaskedLinear
from training.kir_train import HELD_OUT, LEAST_WINDOWS, STEPS, WINDOWS, KirTask, evaluate, split_by_time
from training.trainer import TrainConfig, Trainer, TrainResult

LEARNING_RATE = 2e-3  # as for every training that goes on from a checkpoint
SHOWN = ("auc_effective_view", "gauc_effective_view", "fused_auc_watch_time", "fused_gauc_watch_time")


@dataclass(frozen=True)
class Matrix:
    """One compressed matrix as it is exported. weights: those TFMOT saw; values: different ones among them."""

    name: str
    weights: int
    zeros: int
    values: int


@dataclass(frozen=True)
class CompressionResult:
    """before, after: `evaluate` on the log's held-out share."""

    checkpoint: Path
    version: str
    base: str
    how: str
    epochs: int
    matrices: tuple[Matrix, ...]
    untouched: int
    before: Mapping[str, float]
    after: Mapping[str, float]

    def table(self) -> str:
        lines = [f"{self.base} -> {self.version}: {self.how}, {self.epochs} epochs with it held; {self.checkpoint}"]
        lines += [f"  {'matrix':<24} {'weights':>8} {'zeros':>8} {'values':>8}"]
        lines += [f"  {m.name:<24} {m.weights:>8} {m.zeros:>8} {m.values:>8}" for m in self.matrices]
        lines += [f"  {self.untouched} other weights, in smaller matrices (structural zeros not counted)"]
        lines += [
            f"  {name}: {self.before[name]:.4f} -> {self.after[name]:.4f}" for name in SHOWN if name in self.after
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "checkpoint": str(self.checkpoint)}


def compress(
    checkpoint: str | Path,
    out: str | Path,
    how: Transform | None,
    data: str | Path | Events | KirData,
    *,
    epochs: int = 1,
    min_weights: int = MIN_WEIGHTS,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> CompressionResult:
    """Transform, train on, save an ordinary checkpoint (kind "kir") whose config says what was done.

    how     None: only train on, the control of what training longer does by itself
    data    a log as `convert.jobs.open_events` takes it, or prepared; its last part is held out, as in training
    epochs  passes with masks or centroids held; 0 = none

    Raises CheckpointError for an existing OUT or another kind of checkpoint, InputError for flags and logs.
    """
    check_vacant(out, overwrite, "checkpoint directory", CheckpointError)
    if epochs < 0 or min_weights < 1:
        got = {"--epochs": epochs, "--min-weights": min_weights}
        raise InputError("out of range", got=got, allowed="--epochs from 0, --min-weights from 1")
    before = load_checkpoint(checkpoint, kind="kir")
    net = load_kir(before)
    log = data if isinstance(data, KirData) else prepare(open_events(data)[0], net.config.watched)
    facts = before.config["training"]
    train = split_by_time(log, float(facts.get("held_out", HELD_OUT)))
    if not train.any():
        raise InputError("no events to train on", got=f"{len(log)} events")
    share_n = log.labels_nT[train, TASKS.index("watch_time")]
    threshold = float(facts.get("watch_share_threshold", np.nanmean(share_n)))
    before.tables.requires_grad_(False)
    task = KirTask(net, before.tables)
    was = evaluate(task, log, ~train, threshold)

    chosen = matrices_of(net, min_weights) if how else {}
    progress(f"{how or 'nothing'}: {len(chosen)} matrices")
    hold(net, forms(chosen, how) if how else {})
    result = _train_on(task, log, train, epochs, seed) if epochs else None
    release(net)
    now = evaluate(task, log, ~train, threshold)
    found = tuple(_matrix(name, layer) for name, layer in chosen.items())
    untouched = sum(int(layer.mask.sum()) for layer in masked_layers(net).values()) - sum(m.weights for m in found)
    saved = _save(Path(out), before, net, str(how or "nothing"), found, result, min_weights, seed, now, overwrite)
    done = result.epochs if result else 0
    return CompressionResult(
        saved.path, saved.version, before.version, str(how or "nothing"), done, found, untouched, was, now
    )


def masked_layers(net: Kir) -> dict[str, MaskedLinear]:
    """Every matrix of the net, by the name of its layer."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, MaskedLinear)}


def matrices_of(net: Kir, min_weights: int) -> dict[str, MaskedLinear]:
    """Layers with so many weights that are no structural zeros. Raises InputError when there is none."""
    sizes = {name: int(layer.mask.sum()) for name, layer in masked_layers(net).items()}
    found = {name: layer for name, layer in masked_layers(net).items() if sizes[name] >= min_weights}
    if not found:
        raise InputError("no matrix is so large", got=f"--min-weights {min_weights}", allowed=max(sizes.values()))
    return found


def forms(layers: Mapping[str, MaskedLinear], how: Transform) -> dict[str, HeldZeros | HeldCentroids]:
    """TFMOT's masks or centroids of these layers; the layers' weights become what TFMOT made of them."""
    chosen = {name: layer.mask.bool() for name, layer in layers.items()}
    weights = {name: layer.weight.detach()[chosen[name]].numpy() for name, layer in layers.items()}
    found: dict[str, HeldZeros | HeldCentroids] = {}
    for name, values_n in transform(weights, how).items():
        with torch.no_grad():
            layers[name].weight[chosen[name]] = torch.from_numpy(values_n)
        weight_OI = layers[name].weight.detach()
        pruned = isinstance(how, Prune)
        zero_OI = chosen[name] & (weight_OI == 0)
        found[name] = HeldZeros(~zero_OI) if pruned else HeldCentroids.of(weight_OI, chosen[name])
    return found


def _train_on(task: KirTask, log: KirData, train: NDArray[np.bool_], epochs: int, seed: int) -> TrainResult:
    batches = Batches(log, task.net.spec, task.tables, train, placed=task.net.config.placed)
    batches.size = min(WINDOWS, max(LEAST_WINDOWS, len(batches.pieces) // STEPS))
    plan = TrainConfig(epochs=epochs, seed=seed, learning_rate=LEARNING_RATE)
    return Trainer(task, batches.epoch, len(batches), plan, label="compress").run()


def _matrix(name: str, layer: MaskedLinear) -> Matrix:
    values_n = layer.weight.detach()[layer.mask.bool()]
    return Matrix(name, len(values_n), int((values_n == 0).sum()), len(values_n.unique()))


def _save(
    out: Path, before: Checkpoint, net: Kir, how: str, matrices: tuple[Matrix, ...], result: TrainResult | None,
    min_weights: int, seed: int, metrics: Mapping[str, float], overwrite: bool,
) -> Checkpoint:  # fmt: skip
    told = {
        "how": how,
        "tool": f"tensorflow-model-optimization {version('tensorflow-model-optimization')}",
        "of": before.version,
        "min_weights": min_weights,
        "seed": seed,
        "result": result.to_dict() if result else None,
        "matrices": [asdict(one) for one in matrices],
    }
    lines = {
        "made of": before.version,
        "compression": f"{how}, {len(matrices)} matrices, {result.epochs if result else 0} epochs with it held",
        "dense parameters": sum(p.numel() for p in net.parameters()),
    }
    return save_checkpoint(
        out,
        kind="kir",
        model=net,
        tables=before.tables,
        spec=before.spec,
        model_config=before.model_config,
        training={**before.config["training"], "init_from": before.version, "compression": told},
        metrics=metrics,
        card_text=model_card("KIR, the on-device reranker, compressed", lines, metrics),
        overwrite=overwrite,
    )
