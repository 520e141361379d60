"""TFMOT's masks and centroids for plain weights: what it keeps, what it changes, and that it repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

from contract.errors import InputError
from convert.tfmot import Cluster, Floats, Prune, Transform, transform


def two_matrices() -> dict[str, Floats]:
    rng = np.random.default_rng(5)
    return {"wide": rng.normal(size=400).astype(np.float32), "small": (rng.normal(size=90) * 0.01).astype(np.float32)}


@pytest.fixture(scope="module")
def pruned() -> dict[str, Floats]:
    return transform(two_matrices(), Prune(0.3))


@pytest.fixture(scope="module")
def clustered() -> dict[str, Floats]:
    return transform(two_matrices(), Cluster(8))


def test_the_smallest_share_of_each_matrix_becomes_zero(pruned: dict[str, Floats]) -> None:
    for name, before in two_matrices().items():
        after = pruned[name]
        assert (after == 0).sum() == pytest.approx(0.3 * len(before), abs=1), "a share of its own, whatever its scale"
        assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()


def test_what_is_not_pruned_is_as_it_was(pruned: dict[str, Floats]) -> None:
    for name, before in two_matrices().items():
        kept = pruned[name] != 0
        assert np.array_equal(pruned[name][kept], before[kept])


def test_each_weight_moves_to_the_nearest_of_a_few_values(clustered: dict[str, Floats]) -> None:
    for name, before in two_matrices().items():
        values = np.unique(clustered[name])
        assert len(values) == 8
        nearest = values[np.abs(before[:, None] - values).argmin(axis=1)]
        assert np.array_equal(clustered[name], nearest)


def test_matrices_come_back_in_order_and_in_float32(clustered: dict[str, Floats], pruned: dict[str, Floats]) -> None:
    for found in (clustered, pruned):
        assert list(found) == ["wide", "small"]
        assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}


def test_the_same_again_gives_the_same(clustered: dict[str, Floats]) -> None:
    again = transform(two_matrices(), Cluster(8))
    assert all(np.array_equal(again[name], values) for name, values in clustered.items())


def test_a_matrix_of_fewer_values_than_centroids_is_named() -> None:
    flat = {"flat": np.repeat(np.float32([1.0, 2.0]), 40)}
    with pytest.raises(InputError, match=r"fewer values than centroids; got \{'flat': 80\}"):
        transform(flat, Cluster(3))


def test_nothing_in_nothing_out() -> None:
    assert transform({}, Prune(0.5)) == {}


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_lies_between_none_and_all(share: float) -> None:
    with pytest.raises(InputError, match="--prune"):
        Prune(share)


@pytest.mark.parametrize("centroids", [1, 257])
def test_centroids_fit_a_byte(centroids: int) -> None:
    with pytest.raises(InputError, match="--cluster"):
        Cluster(centroids)


@pytest.mark.parametrize(("how", "name"), [(Prune(0.5), "prune 50%"), (Cluster(32), "cluster 32")])
def test_transforms_say_what_they_are(how: Transform, name: str) -> None:
    assert str(how) == name
