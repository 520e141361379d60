"""Pruning and clustering by tensorflow-model-optimization, for weights of whatever framework.

    from convert.tfmot import Cluster, Prune, transform
    pruned = transform({"up": weights_n}, Prune(0.5))

TFMOT 0.8.1 takes tf_keras (Keras 2) Sequential and Functional models alone. Both transforms look at a layer's weights
one by one, so each matrix goes in as the kernel [n, 1] of a Dense of its own, all of them side by side in one model:
wrapped, its masks or centroids worked out, stripped, read back. Nothing is trained here (rate 0); what training does
with masks and centroids held is `training.held_weights`.

Shape legend: n weights of one matrix, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from convert.quiet import quiet

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prune:
    """The smallest `share` of each matrix becomes zero: prune_low_magnitude."""

    share: float

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise InputError("--prune is a share of the weights", got=self.share, allowed="between 0 and 1")

    def __str__(self) -> str:
        return f"prune {self.share:.0%}"


@dataclass(frozen=True)
class Cluster:
    """Each weight of a matrix becomes the nearest of `centroids` values (k-means++): cluster_weights."""

    centroids: int

    def __post_init__(self) -> None:
        if not 2 <= self.centroids <= 256:
            raise InputError(
                "--cluster is a number of values that a byte can name", got=self.centroids, allowed="2-256"
            )

    def __str__(self) -> str:
        return f"cluster {self.centroids}"


Transform = Prune | Cluster


def transform(weights: Mapping[str, Floats], how: Transform) -> dict[str, Floats]:
    """Every matrix pruned or clustered for itself. weights: name -> float32 [n]; the same names and order come back.

    Raises InputError for a matrix with fewer weights than centroids, ConversionError when TFMOT fails.
    """
    if isinstance(how, Cluster):
        short = {name: len(values_n) for name, values_n in weights.items() if len(np.unique(values_n)) < how.centroids}
        if short:
            raise InputError("--cluster: matrices with fewer values than centroids", got=short, allowed=how.centroids)
    if not weights:
        return {}
    with quiet(f"TFMOT: {how}"):
        import tf_keras

        tf_keras.utils.set_random_seed(0)
        model = _one_dense_each(list(weights.values()))
        stripped = _pruned(model, how.share) if isinstance(how, Prune) else _clustered(model, how.centroids)
        kernels = [layer.get_weights()[0] for layer in stripped.layers if isinstance(layer, tf_keras.layers.Dense)]
    return {name: kernel[:, 0].astype(np.float32) for name, kernel in zip(weights, kernels, strict=True)}


def _one_dense_each(weights: list[Floats]) -> Any:
    from tf_keras import Model, layers

    inputs = [layers.Input((len(values_n),), batch_size=1) for values_n in weights]
    dense = [layers.Dense(1, use_bias=False, name=f"matrix_{i}") for i in range(len(weights))]
    model = Model(inputs, [layer(x) for layer, x in zip(dense, inputs, strict=True)])
    for layer, values_n in zip(dense, weights, strict=True):
        layer.set_weights([values_n[:, None]])
    return model


def _pruned(model: Any, share: float) -> Any:
    from tensorflow_model_optimization import sparsity as of
    from tf_keras.optimizers import SGD

    sparsity = of.keras
    wrapped = sparsity.prune_low_magnitude(model, sparsity.ConstantSparsity(share, begin_step=0, frequency=1))
    zeros = [np.zeros((1, x.shape[1]), np.float32) for x in wrapped.inputs]
    wrapped.compile(SGD(0.0), loss="mse", run_eagerly=True)  # one step: tracing it would take a minute
    # The callback works the masks out; inputs of zero and a rate of zero leave the weights as they came.
    wrapped.fit(zeros, [np.zeros((1, 1), np.float32)] * len(zeros), verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    return sparsity.strip_pruning(wrapped)


def _clustered(model: Any, centroids: int) -> Any:
    from tensorflow_model_optimization import clustering as of

    clustering = of.keras
    return clustering.strip_clustering(clustering.cluster_weights(model, centroids))
