"""KIR's chain and one graph look alike to verification: the same calls, slates, labels and recorded feeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from contract.golden import fused_values
from convert.onnx_export import TorchGraph
from convert.phone import Sample
from convert.source import KirSource
from convert.subject import GraphSubject, KirSubject


@pytest.fixture(scope="module")
def kir(source: KirSource, samples: list[Sample]) -> KirSubject:
    return KirSubject(source, samples[:8])


class TestKir:
    def test_values_are_the_fused_scores_of_real_candidates(self, kir: KirSubject) -> None:
        for number, sample in enumerate(kir.samples):
            scores = kir.reference(number)
            assert scores.shape[0] == sample.n_candidates
            want = fused_values(scores, kir.source.fusion_weights)
            np.testing.assert_array_equal(kir.values(number, scores), want)

    def test_feeds_of_every_graph_are_recorded(self, kir: KirSubject) -> None:
        record: dict[str, list[object]] = {}
        runs = {key: graph.run for key, graph in kir.graphs.items()}
        for number in range(len(kir)):
            kir.run(number, runs, record)  # type: ignore[arg-type]
        assert set(record) == set(kir.graphs)
        assert len(record["swipe/N9"]) == len(record["place/N9"]) == len(record["whole/N9"]) == 8

    def test_a_chain_goes_through_its_bucket_and_every_watch_graph(self, kir: KirSubject) -> None:
        assert kir.through("swipe/N9") == kir.through("watch/T1") == list(range(8))
        assert kir.through("swipe/N5") == []

    def test_own_slates_are_one_per_beam(self, kir: KirSubject) -> None:
        n, k = kir.samples[2].n_candidates, kir.source.layout.k
        scores = np.random.default_rng(0).normal(size=(1, k, 9, 4)).astype(np.float32)
        slates = kir.own_slates("place/N9", 2, {"scores": scores})
        assert len(slates) == k
        np.testing.assert_allclose(slates[1], fused_values(scores[0, 1, :n], kir.source.fusion_weights))

    def test_labels_are_all_or_none(self, kir: KirSubject) -> None:
        assert [len(label) for label in kir.labels] == [s.n_candidates for s in kir.samples]
        bare = KirSubject(kir.source, [replace(s, labels=None) for s in kir.samples])
        assert list(bare.labels) == []


class TestGraph:
    def subject(self, rank: bool) -> GraphSubject:
        torch.manual_seed(0)
        graph = TorchGraph("net", "", torch.nn.Linear(3, 2), {"input": torch.zeros(4, 3)}, ("scores",))
        rng = np.random.default_rng(0)
        feeds = [{"input": rng.normal(size=(4, 3)).astype(np.float32)} for _ in range(5)]
        return GraphSubject(
            graph, feeds, lambda i, found: found["scores"][: 2 + i % 2], (lambda i, x: x[:, 1]) if rank else None, "v1"
        )

    def test_it_is_one_chain_of_one_graph(self) -> None:
        subject = self.subject(True)
        assert (subject.chained, list(subject.graphs), len(subject)) == (("net",), ["net"], 5)
        assert subject.through("net") == list(range(5))
        record: dict[str, list[object]] = {}
        got = subject.run(3, {"net": subject.graph.run}, record)  # type: ignore[arg-type]
        np.testing.assert_array_equal(got, subject.reference(3))
        assert got.shape == (3, 2)
        assert record["net"] == [subject.feeds[3]]

    def test_what_ranks_nothing_has_empty_slates(self) -> None:
        assert self.subject(False).values(0, np.ones((2, 2), np.float32)).shape == (0,)
        np.testing.assert_array_equal(self.subject(True).values(0, np.eye(2, dtype=np.float32)), [0.0, 1.0])
