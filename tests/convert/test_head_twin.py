"""The head's twin in tf_keras: the torch net's scores on real inputs, files with static shapes, aware training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contract.errors import InputError
from convert import head_qat
from convert.head_qat import AWARE, DYNAMIC, FLOAT, STATIC, HeadComparison, compare_head, scores_of
from convert.head_twin import DENSE, INPUTS, Pages, Twin, build_twin, record
from convert.phone import Sample
from convert.source import KirSource, load_source
from convert.windows import make_windows, synthetic_events
from tests.convert import makers


@pytest.fixture(scope="module")
def pages(source: KirSource, samples: list[Sample]) -> Pages:
    return record(source, samples)


@pytest.fixture(scope="module")
def twin(source: KirSource) -> Twin:
    return build_twin(source)


@pytest.fixture(scope="module")
def compared(checkpoint: Path, source: KirSource) -> HeadComparison:
    """Too few pages and epochs to be any good: what is held is how files differ."""
    return compare_head(checkpoint, synthetic_events(source), pages=24, training_pages=24, epochs=3)


class TestRecording:
    def test_every_candidate_of_every_page_is_a_row(self, pages: Pages, samples: list[Sample]) -> None:
        assert list(pages.n_candidates) == [sample.n_candidates for sample in samples]
        assert set(pages.inputs) == set(INPUTS)
        assert {values.shape[:2] for values in pages.inputs.values()} == {(len(samples), 9)}

    def test_scores_are_the_whole_nets(self, pages: Pages, samples: list[Sample], source: KirSource) -> None:
        want = source.graphs["whole/N9"].run(samples[3].inputs)["scores"]
        assert np.array_equal(pages.scores[3], want[0])

    def test_pages_differ_and_so_do_candidates(self, pages: Pages) -> None:
        for name in ("bottom", "direct", "attended"):
            assert pages.inputs[name].std(axis=0).max() > 1e-3, f"{name} was recorded anew for each page"
            assert pages.inputs[name].std(axis=1).max() > 1e-3

    def test_the_net_hears_nobody_afterwards(self, pages: Pages, source: KirSource) -> None:
        net = source.graphs["whole/N9"].module.net
        assert not net.page_out._forward_hooks
        assert not net.first._forward_hooks

    def test_without_a_page_of_the_largest_bucket(self, source: KirSource) -> None:
        with pytest.raises(InputError, match="largest bucket"):
            record(source, [])


class TestTwin:
    def test_scores_equal_the_torch_nets_on_real_inputs(self, twin: Twin, pages: Pages) -> None:
        got = np.stack(scores_of(twin, pages))
        large = np.abs(pages.scores).max() / 10.0  # float32 keeps seven digits; logits of trained nets stay below 10
        assert np.abs(got - pages.scores).max() < 1e-5 * max(1.0, large)
        assert pages.scores.std() > 0.05, "there is something to get wrong"

    def test_every_dense_layer_counts(self, twin: Twin, pages: Pages) -> None:
        kept = twin.model.get_weights()
        for name in DENSE:
            layer = twin.model.get_layer(name)
            layer.set_weights([weight * 0.5 for weight in layer.get_weights()])
            assert np.abs(np.stack(scores_of(twin, pages)) - pages.scores).max() > 1e-5, name
            twin.model.set_weights(kept)

    def test_a_preset_with_another_head_is_refused(self, tmp_path: Path) -> None:
        changes = {"reads": "mean", "placed": 0, "experts": 1, "tasks": ("effective_view",), "loss": "weighted"}
        other = load_source(makers.make_kir(tmp_path / "other", **changes, buckets=(9,)).path)
        with pytest.raises(InputError, match="this preset's head has no twin"):
            build_twin(other)


@pytest.mark.slow
class TestComparison:
    def test_aware_training_gets_nearer_to_the_float_net(self, compared: HeadComparison) -> None:
        assert len(compared.losses) == 3
        assert compared.losses[-1] < compared.losses[0]

    def test_the_float_file_repeats_torch(self, compared: HeadComparison) -> None:
        assert compared.variant(FLOAT).apart.snr_db > 120.0
        assert compared.variant(FLOAT).ranks.tau > 0.999

    def test_files_of_static_shapes_are_real_int8(self, compared: HeadComparison) -> None:
        """With a free batch TFLiteConverter of 2.21 leaves the weights of an aware model in float."""
        assert compared.variant(FLOAT).int8_tensors == 0
        for name in (STATIC, AWARE):
            one = compared.variant(name)
            assert one.int8_tensors >= 2 * len(DENSE), f"{name}: weights and what is computed of them"
            assert one.n_bytes < compared.variant(FLOAT).n_bytes

    def test_quantised_files_are_near_and_not_equal(self, compared: HeadComparison) -> None:
        for name in (DYNAMIC, STATIC):  # three epochs of aware training have not learnt their ranges
            assert 5.0 < compared.variant(name).apart.snr_db < 100.0

    def test_a_table_and_json(self, compared: HeadComparison, tmp_path: Path) -> None:
        for name in (FLOAT, DYNAMIC, STATIC, AWARE):
            assert name in compared.table()
        held = json.loads(compared.save(tmp_path / "head.json").read_text())
        assert [one["name"] for one in held["variants"]] == [FLOAT, DYNAMIC, STATIC, AWARE]

    def test_numbers_start_at_one(self, checkpoint: Path, source: KirSource) -> None:
        with pytest.raises(InputError, match="numbers start at 1"):
            compare_head(checkpoint, synthetic_events(source), epochs=0)

    def test_training_pages_come_before_those_that_judge(
        self, checkpoint: Path, source: KirSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def windows(source: KirSource, events: object, n: int, seed: int, held_out: bool = True) -> list[Sample]:
            asked.append((n, held_out))
            return list(make_windows(source, events, n, seed, held_out=held_out))  # type: ignore[arg-type]

        monkeypatch.setattr(head_qat, "make_windows", windows)
        monkeypatch.setattr(head_qat, "build_twin", lambda *_, **__: 1 // 0)  # enough was seen
        with pytest.raises(ZeroDivisionError):
            compare_head(checkpoint, synthetic_events(source), pages=4, training_pages=6)
        assert asked == [(4, True), (6, False)]
