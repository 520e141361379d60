"""Pages that no log holds: the smallest, the fullest, and one of extreme values, all finite and all of one answer."""

from __future__ import annotations

import numpy as np
import pytest

from convert.hard_pages import hard_samples
from convert.phone import Sample
from convert.source import KirSource
from convert.subject import KirSubject
from convert.windows import synthetic_events

L = 6


@pytest.fixture(scope="module")
def pages(source: KirSource) -> list[Sample]:
    return list(hard_samples(source, synthetic_events(source)))


def test_the_smallest_the_fullest_and_an_extreme_one(pages: list[Sample]) -> None:
    assert [(p.bucket, p.n_candidates, p.n_watched) for p in pages] == [(9, 1, 0), (9, 9, L), (9, 9, L)]


def test_the_smallest_is_all_mask_and_the_fullest_has_none(pages: list[Sample]) -> None:
    masked = [(page.inputs["memory_mask"] != 0).sum() for page in pages]
    assert masked == [L, 0, 0]


def test_extreme_values_stay_finite_and_bounded(pages: list[Sample]) -> None:
    """Features have clamps; without them int32's end would be the largest input by far."""
    for name, values in pages[2].inputs.items():
        assert np.isfinite(values).all(), name
        assert np.abs(values).max() <= 30.0, name
    assert not np.abs(pages[2].inputs["candidate_rows"]).any(), "no table knows these ids"


def test_nobody_rated_them(pages: list[Sample]) -> None:
    assert all(page.labels is not None and np.isnan(page.labels).all() for page in pages)


def test_the_cut_gives_what_the_whole_net_gives(pages: list[Sample], source: KirSource) -> None:
    subject = KirSubject(source, pages)
    runs = {key: graph.run for key, graph in source.graphs.items()}
    for number in range(len(subject)):
        np.testing.assert_allclose(subject.run(number, runs), subject.reference(number), atol=1e-4)


def test_the_same_seed_gives_the_same(source: KirSource) -> None:
    log = synthetic_events(source)
    for one, other in zip(hard_samples(source, log, 4), hard_samples(source, log, 4), strict=True):
        for name in one.inputs:
            np.testing.assert_array_equal(one.inputs[name], other.inputs[name])
