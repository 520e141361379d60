"""Quantisation-aware training of the head's twin beside post-training quantisation of the same part.

    from convert.head_qat import compare_head
    print(compare_head("checkpoints/kir", "events:runs/data").table())         (kir bench head-qat: three minutes)

The aware twin is trained to give the float net's logits on pages from before what is held out (distillation: what is
asked of it is the same ranking, in int8), and judged on held-out pages, like the others: the share of the download is
the head's alone. What ships is what `convert.verify` picks; nothing here is on by default.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.events import Events
from contract.golden import fused_values
from convert.head_twin import INPUTS, Pages, Twin, build_twin, convert_twin, record
from convert.jobs import open_events
from convert.measure import Distance, OutcomeGap, Ranking, distance, outcome_gap, ranking
from convert.quiet import quiet
from convert.source import KirSource, load_source
from convert.tflite import TfliteGraph
from convert.windows import make_windows

Floats = NDArray[np.float32]
FLOAT, DYNAMIC, STATIC, AWARE = "float32", "post-training, dynamic", "post-training, static", "trained aware"
BATCH_PAGES = 8
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class HeadVariant:
    """One file of the head. n_zlib: its bytes at zlib 9; tensors: how many of its tensors are int8."""

    name: str
    n_bytes: int
    n_zlib: int
    int8_tensors: int
    apart: Distance
    ranks: Ranking
    outcomes: OutcomeGap | None


@dataclass(frozen=True)
class HeadComparison:
    """Variants of one head against the torch net. losses: of aware training, by epoch, mean square of logits."""

    version: str
    data: str
    pages: int
    training_pages: int
    epochs: int
    seed: int
    twin_max_abs: float
    losses: tuple[float, ...]
    variants: tuple[HeadVariant, ...]

    def variant(self, name: str) -> HeadVariant:
        return next(one for one in self.variants if one.name == name)

    def table(self) -> str:
        lines = [
            f"head of {self.version}: {self.pages} held-out pages, {self.data}; aware training {self.epochs} epochs of "
            f"{self.training_pages} earlier pages, seed {self.seed}; twin against torch {self.twin_max_abs:.1g}",
            f"{'variant':<24} {'bytes':>7} {'zlib':>7} {'int8':>4} {'max abs':>8} {'mean abs':>8} {'SNR dB':>6} "
            f"{'tau':>7} {'top-1':>6}  outcomes",
        ]
        lines += [
            f"{v.name:<24} {v.n_bytes:>7} {v.n_zlib:>7} {v.int8_tensors:>4} {v.apart.max_abs:>8.2g} "
            f"{v.apart.mean_abs:>8.2g} {v.apart.snr_db:>6.1f} {v.ranks.tau:>7.4f} {v.ranks.top1:>6.3f}  "
            f"{v.outcomes or '–'}"
            for v in self.variants
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        path.write_text(json.dumps(self.to_json(), indent=2, sort_keys=True) + "\n")
        return path


def compare_head(
    checkpoint: str | Path,
    data: str | Path | Events,
    *,
    pages: int = 256,
    training_pages: int = 512,
    epochs: int = 40,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> HeadComparison:
    """Build, train, convert and judge. Raises InputError for flags out of range and presets whose head has no twin."""
    if min(pages, training_pages, epochs) < 1:
        got = {"pages": pages, "training_pages": training_pages, "epochs": epochs}
        raise InputError("numbers start at 1", got=got)
    source = load_source(checkpoint)
    events, words = open_events(data)
    judged = record(source, list(make_windows(source, events, pages, seed)))
    earlier = record(source, list(make_windows(source, events, training_pages, seed, held_out=False)))
    progress(f"{len(judged)} pages to judge on, {len(earlier)} earlier ones to train on and to calibrate with")
    plain, aware = build_twin(source), build_twin(source, aware=True)
    exact = distance(list(judged.scores), scores_of(plain, judged))
    losses = train_aware(aware, earlier, epochs, seed, progress)
    files = {
        FLOAT: convert_twin(plain, earlier),
        DYNAMIC: convert_twin(plain, earlier, quantised=True),
        STATIC: convert_twin(plain, earlier, quantised=True, calibration=len(earlier)),
        AWARE: convert_twin(aware, earlier, quantised=True),
    }
    variants = tuple(_judge(name, raw, judged, source) for name, raw in files.items())
    return HeadComparison(
        source.dense_version, words, len(judged), len(earlier), epochs, seed, exact.max_abs, losses, variants
    )


def scores_of(twin: Twin, pages: Pages) -> list[Floats]:
    """Logits [N, T] of each page, in TensorFlow."""
    return [np.asarray(twin.scores([pages.inputs[name][page] for name in INPUTS])) for page in range(len(pages))]


def train_aware(
    twin: Twin, pages: Pages, epochs: int, seed: int = 0, progress: Callable[[str], None] = lambda line: None
) -> tuple[float, ...]:
    """Adam on the mean square of logits against the float net's, all candidates alike, rate falling to 0; ranges of
    activations are learnt on the way. Returns the loss of each epoch."""
    with quiet("aware training of the head"):
        import tensorflow as tf
        from tf_keras import optimizers, utils

        utils.set_random_seed(seed)
        steps = -(-len(pages) // BATCH_PAGES)
        adam = optimizers.Adam(optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * steps))
        weights = twin.model.trainable_variables

        @tf.function(reduce_retracing=True)
        def step(inputs: list[Any], want: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(twin.scores(inputs, training=True) - want))
            adam.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return loss

        rng, losses = np.random.default_rng(seed), []
        for _ in range(epochs):
            order = rng.permutation(len(pages))
            parts = [order[at : at + BATCH_PAGES] for at in range(0, len(order), BATCH_PAGES)]
            found = [float(step(*_batch(pages, part))) for part in parts]
            losses.append(float(np.mean(found)))
    progress(f"aware training: mean square {losses[0]:.4f} -> {losses[-1]:.4f}")
    return tuple(losses)


def _batch(pages: Pages, part: NDArray[Any]) -> tuple[list[Floats], Floats]:
    """Candidates of several pages as the rows of one."""
    inputs = [pages.inputs[name][part].reshape(-1, pages.inputs[name].shape[-1]) for name in INPUTS]
    return inputs, pages.scores[part].reshape(-1, pages.scores.shape[-1])


def _judge(name: str, raw: bytes, pages: Pages, source: KirSource) -> HeadVariant:
    file = TfliteGraph(raw)
    got = [_run(file, pages, page)[: pages.n_candidates[page]] for page in range(len(pages))]
    want = [pages.scores[page][: pages.n_candidates[page]] for page in range(len(pages))]
    values = [[fused_values(one, source.fusion_weights) for one in side] for side in (want, got)]
    known = [i for i, labels in enumerate(pages.labels) if labels is not None]
    gap = outcome_gap([_labels(pages, i) for i in known], *([side[i] for i in known] for side in values))
    int8 = sum(tensor == np.int8 for tensor in tensor_types(raw))
    return HeadVariant(name, len(raw), len(zlib.compress(raw, 9)), int8, distance(want, got), ranking(*values), gap)


def _labels(pages: Pages, page: int) -> Floats:
    labels = pages.labels[page]
    assert labels is not None
    return labels


def _run(file: TfliteGraph, pages: Pages, page: int) -> Floats:
    """Names in the file are those of a SavedModel's signature: serving_default_<input>:0."""
    feeds: Mapping[str, Floats] = {f"serving_default_{name}:0": pages.inputs[name][page] for name in INPUTS}
    (scores,) = file.run(feeds).values()
    return np.asarray(scores, np.float32)


def tensor_types(raw: bytes) -> list[Any]:
    """numpy type of every tensor of a TFLite file."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet("reading the file"):
        return [detail["dtype"] for detail in Interpreter(model_content=raw).get_tensor_details()]
