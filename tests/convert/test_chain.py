"""Held-out inputs, the plain phone, and the halves run in order: all in torch, nothing converted."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from contract.errors import CheckpointError, ConversionError, InputError
from contract.events import Events
from contract.specs import kir_spec
from contract.vocabulary import MASK_VALUE, TASKS
from convert.chain import SINGLES, Layout, run_halves
from convert.phone import Sample, smallest_bucket
from convert.source import KirSource, load_source
from convert.windows import chosen_part, held_out_from, make_windows, synthetic_events, told_part
from tests.convert import makers
from training.kir_objective import FUSION, LIST_REWARD

L = 6


@pytest.fixture(scope="module")
def two_buckets(tmp_path_factory: pytest.TempPathFactory) -> KirSource:
    return load_source(makers.make_kir(tmp_path_factory.mktemp("kir") / "two").path)


@pytest.fixture(scope="module")
def many(two_buckets: KirSource) -> list[Sample]:
    return list(make_windows(two_buckets, synthetic_events(two_buckets), 48))


class TestSource:
    def test_it_tells_what_the_manifest_needs(self, two_buckets: KirSource) -> None:
        assert two_buckets.dense_version.startswith("kir-")
        assert two_buckets.capacities == {"L": L, "P": 4, "k": 2, "N": [5, 9], "t": [1, 3]}
        assert two_buckets.layout == Layout(L=L, t=(1, 3), past=(1, 4, L + 1, 12), k=2, P=4)

    def test_graphs_of_every_bucket(self, two_buckets: KirSource) -> None:
        assert sorted(two_buckets.graphs) == [
            "page/N5", "page/N9", "place/N5", "place/N9", "swipe/N5", "swipe/N9", "watch/T1", "watch/T3",
            "whole/N5", "whole/N9",
        ]  # fmt: skip

    def test_fusion_weights_stand_in_the_order_of_the_scores(self, two_buckets: KirSource) -> None:
        np.testing.assert_array_equal(two_buckets.fusion_weights, np.float32([FUSION[task] for task in TASKS]))

    def test_list_reward_is_the_checkpoints_or_the_default(self, two_buckets: KirSource, tmp_path: Path) -> None:
        assert asdict(two_buckets.list_reward) == LIST_REWARD
        directory = makers.make_kir(tmp_path / "kir").path
        config = json.loads((directory / "config.json").read_text())
        own = {"value": {"like": 2.0}, "survival": "has_next"}
        (directory / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "list_reward": own}}))
        assert asdict(load_source(directory).list_reward) == own
        own["value"]["joy"] = 1.0
        (directory / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "list_reward": own}}))
        with pytest.raises(ConversionError, match="list_reward"):
            load_source(directory)

    def test_a_net_that_never_saw_staying_gets_no_list_reward(self, tmp_path: Path) -> None:
        directory = makers.make_kir(tmp_path / "kir").path
        config = json.loads((directory / "config.json").read_text())
        model = {**config["model"], "list_reward": None, "fusion": {"watch_time": 1.0}}
        (directory / "config.json").write_text(json.dumps({**config, "model": model}))
        source = load_source(directory)
        assert source.list_reward is None
        assert source.fusion == {"watch_time": 1.0}
        del model["list_reward"]  # a checkpoint older than it
        (directory / "config.json").write_text(json.dumps({**config, "model": model}))
        assert asdict(load_source(directory).list_reward) == LIST_REWARD

    def test_rows_are_those_a_phone_gets(self, two_buckets: KirSource) -> None:
        exact, coded = two_buckets.tables.numpy_rows()["video"], two_buckets.decoded_tables()["video"]
        assert 0 < np.abs(exact - coded).max() <= np.abs(exact).max() / 127

    def test_another_kind_of_checkpoint_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="another kind"):
            load_source(makers.make_ranker(tmp_path / "ranker").path)


class TestWindows:
    def test_every_graph_can_take_them(self, many: list[Sample], two_buckets: KirSource) -> None:
        for sample in many:
            want = {n: tuple(t.shape) for n, t in two_buckets.graphs[f"whole/N{sample.bucket}"].inputs.items()}
            assert {name: value.shape for name, value in sample.inputs.items()} == want
            assert all(value.dtype == np.float32 for value in sample.inputs.values())

    def test_all_kinds_occur(self, many: list[Sample]) -> None:
        assert {s.bucket for s in many} == {5, 9}
        assert {s.n_candidates for s in many} > {5, 9}
        assert {0, L} <= {s.n_watched for s in many}
        assert sum(s.n_candidates < s.bucket for s in many) >= 12

    def test_unused_slots_are_zero_and_masked(self, many: list[Sample]) -> None:
        for sample in many:
            slots = sample.n_watched + 1
            mask = sample.inputs["memory_mask"][0]
            assert (mask[:slots] == 0).all()
            assert (mask[slots:] == MASK_VALUE).all()
            for name in ("watched_rows", "watched_dense"):
                assert not sample.inputs[name][0, slots:].any()
            assert not sample.inputs["candidate_dense"][0, sample.n_candidates :].any()
            assert not sample.inputs["since"][0, slots:].any()

    def test_slot_0_is_the_start_token(self, many: list[Sample], two_buckets: KirSource) -> None:
        column = next(c for c in two_buckets.spec.columns("watched_dense") if c.field.name == "start")
        for sample in many:
            flags = sample.inputs["watched_dense"][0, :, column.offset]
            assert flags.tolist() == [1.0] + [0.0] * L

    def test_the_same_seed_draws_the_same(self, two_buckets: KirSource) -> None:
        first, again = (next(make_windows(two_buckets, synthetic_events(two_buckets, 3), 1, 3)) for _ in range(2))
        assert all((first.inputs[name] == again.inputs[name]).all() for name in first.inputs)

    def test_a_log_of_one_video_is_refused(self, two_buckets: KirSource) -> None:
        one = Events({"user_id": np.array([1, 1]), "video_id": np.array([5, 5]), "time_ms": np.array([1, 2])})
        with pytest.raises(InputError, match="too few events"):
            next(make_windows(two_buckets, one, 1))

    def test_a_log_without_signals_or_pxtr_is_enough(self, two_buckets: KirSource) -> None:
        n = 40
        bare = Events({"user_id": np.ones(n, np.uint64), "video_id": makers.VIDEOS[:n], "time_ms": np.arange(n) * 1000})
        for sample in make_windows(two_buckets, bare, 10):
            assert all(np.isfinite(value).all() for value in sample.inputs.values())

    @pytest.mark.parametrize("held_out", [True, False])
    def test_events_without_a_time_are_chosen_by_neither_part(self, held_out: bool) -> None:
        """Most of an official log may be such history; counted in, all of it would be the last fifth."""
        time_ms = np.array([-1] * 90 + list(range(10)))
        chosen = np.flatnonzero(chosen_part(time_ms, held_out)).tolist()
        assert chosen == ([98, 99] if held_out else list(range(90, 98)))

    @pytest.mark.parametrize(("times", "held_out"), [([-1, -1], True), ([5, 5], False)])
    def test_a_part_that_has_no_event_is_told(self, times: list[int], held_out: bool) -> None:
        with pytest.raises(InputError, match="event"):
            chosen_part(np.array(times), held_out)

    @pytest.mark.parametrize(
        ("trained_until_ms", "first", "told"),
        [
            (None, 800, "the last 20%"),
            (500, 800, "the last 20%, after training's end"),
            (880, 880, "the last 12%, after training's end"),
            (950, 800, "the last 20%, seen in training"),
        ],
    )
    def test_what_training_saw_proves_nothing(self, trained_until_ms: int | None, first: int, told: str) -> None:
        """Unless too little is left of the log (LEAST_HELD_OUT): then the report says so."""
        time_ms = np.arange(1000)
        assert held_out_from(time_ms, trained_until_ms) == first
        for held_out, chosen in ((True, time_ms >= first), (False, time_ms < first)):
            assert (chosen_part(time_ms, held_out, trained_until_ms) == chosen).all()
        assert told_part(time_ms, trained_until_ms) == told

    def test_padding_candidates_changes_no_score(self, many: list[Sample], two_buckets: KirSource) -> None:
        padded = next(s for s in many if s.n_candidates < s.bucket)
        run = two_buckets.graphs[f"whole/N{padded.bucket}"].run
        noisy = dict(padded.inputs)
        noisy["candidate_dense"] = noisy["candidate_dense"].copy()
        noisy["candidate_dense"][0, padded.n_candidates :] = 3.0
        n = padded.n_candidates
        np.testing.assert_allclose(run(noisy)["scores"][:, :n], run(padded.inputs)["scores"][:, :n], atol=1e-6)


@pytest.mark.parametrize(("n", "bucket"), [(1, 5), (5, 5), (6, 9), (9, 9), (12, 9)])
def test_the_smallest_bucket_that_holds(n: int, bucket: int) -> None:
    assert smallest_bucket([9, 5], n) == bucket


class TestHalves:
    def test_they_are_the_whole_net(self, two_buckets: KirSource) -> None:
        run = {key: graph.run for key, graph in two_buckets.graphs.items()}
        seen = set()
        for sample in make_windows(two_buckets, synthetic_events(two_buckets), 24):
            whole = run[f"whole/N{sample.bucket}"](sample.inputs)["scores"]
            halves = run_halves(sample, two_buckets.layout, run)
            n = sample.n_candidates
            np.testing.assert_allclose(halves[:, :n], whole[:, :n], rtol=2e-6, atol=1e-5)  # logits reach 30 here
            seen.add(sample.n_watched)
        assert {0, L} <= seen

    def test_both_watch_graphs_are_used_and_the_newest_go_one_by_one(self, two_buckets: KirSource) -> None:
        run = {key: graph.run for key, graph in two_buckets.graphs.items()}
        full = next(s for s in make_windows(two_buckets, synthetic_events(two_buckets), 48) if s.n_watched == L)
        record: dict[str, list[dict[str, np.ndarray]]] = {}
        run_halves(full, two_buckets.layout, run, record)  # type: ignore[arg-type]
        assert len(record["watch/T1"]) == SINGLES
        assert len(record["watch/T3"]) == 2  # 5 tokens: 3, then 2 and one of padding
        slots = [int(p.argmax()) for feeds in record["watch/T3"] for p in feeds["position"][0] if p.any()]
        slots += [int(feeds["position"][0].argmax()) for feeds in record["watch/T1"]]
        assert slots == list(range(L + 1))
        assert {"page/N9", "swipe/N9", "place/N9", "whole/N9"} <= set(record) or full.bucket == 5

    def test_a_token_sees_only_what_came_before(self, two_buckets: KirSource) -> None:
        run = {key: graph.run for key, graph in two_buckets.graphs.items()}
        full = next(s for s in make_windows(two_buckets, synthetic_events(two_buckets), 48) if s.n_watched == L)
        record: dict[str, list[dict[str, np.ndarray]]] = {}
        run_halves(full, two_buckets.layout, run, record)  # type: ignore[arg-type]
        open_slots = [int((feeds["past_mask"] == 0).sum()) for feeds in record["watch/T3"] + record["watch/T1"]]
        assert open_slots == [0, 3, 5, 6]

    def test_beams_have_placed_different_numbers(self, two_buckets: KirSource) -> None:
        run = {key: graph.run for key, graph in two_buckets.graphs.items()}
        record: dict[str, list[dict[str, np.ndarray]]] = {}
        for sample in make_windows(two_buckets, synthetic_events(two_buckets), 24):
            run_halves(sample, two_buckets.layout, run, record)  # type: ignore[arg-type]
        placed = {int((beam == 0).sum()) for feeds in record["place/N9"] for beam in feeds["placed_mask"][0]}
        assert placed == {0, 1, 2, 3, 4}


def test_a_spec_without_served_fields_has_no_row_inputs(tmp_path: Path) -> None:
    spec = kir_spec(video=4, author=3, tag=3, user=4).without_served()
    source = load_source(makers.make_kir(tmp_path / "pxtr", spec=spec, buckets=(5,)).path)
    run = {key: graph.run for key, graph in source.graphs.items()}
    for sample in make_windows(source, synthetic_events(source), 8):
        assert not [name for name in sample.inputs if name.endswith("_rows")]
        whole = run["whole/N5"](sample.inputs)["scores"]
        np.testing.assert_allclose(
            run_halves(sample, source.layout, run)[:, : sample.n_candidates], whole[:, : sample.n_candidates], atol=1e-5
        )
