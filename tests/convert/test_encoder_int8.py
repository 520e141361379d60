"""int8 of the encoder: real histories, the gate, a model that int8 destroys, and what ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.catalogue import Catalogue, read_catalogue
from contract.errors import InputError, VerificationFailed
from contract.vocabulary import MISSING_KEY, TAGS_MAX
from convert import server_models
from convert.encoder_int8 import Int8Gate, Int8Verdict, best_rows, judge, quantise
from convert.encoder_queries import EncoderQueries, drawn_queries, real_queries
from convert.onnx_export import OnnxGraph
from convert.server_models import RetrievalChoices, export_encoder, export_retrieval
from tests.convert import makers
from training.checkpoint import Checkpoint, load_checkpoint
from training.kuaiformer_train import load_kuaiformer

PLAN: dict[str, Any] = {"windows": (4, 4), "latest": 4}


def spoil(net: Any) -> None:
    """A channel that is huge before the last product and counts for nothing in it: float32 does not mind, int8 does."""
    net.encoder.norm.weight[0] = 1e5
    net.encoder.out.weight[:, 0] = 0.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(makers.make_kuaiformer(tmp_path_factory.mktemp("net") / "net", **PLAN).path)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(makers.make_kuaiformer(tmp_path_factory.mktemp("net") / "net", spoil=spoil, **PLAN).path)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return read_catalogue(makers.make_catalogue(tmp_path_factory.mktemp("items") / "catalogue.parquet"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"events:{makers.make_events(tmp_path_factory.mktemp('events'))}"


def both(checkpoint: Checkpoint, folder: Path) -> tuple[OnnxGraph, OnnxGraph]:
    folder.mkdir(parents=True, exist_ok=True)
    float32 = export_encoder(load_kuaiformer(checkpoint), folder / "encoder.onnx")
    return float32, OnnxGraph(quantise(folder / "encoder.onnx", folder / "int8.onnx"))


def vectors_of(n: int, width: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestQueries:
    def test_real_histories_are_those_of_the_log(self, checkpoint: Checkpoint, items: Catalogue, data: str) -> None:
        queries = real_queries(checkpoint, items, data, length=12, limit=1000)
        assert len(queries) == 120
        assert "trained on" in queries.source  # the data end where training did
        feeds = queries.feeds(0)
        assert feeds["history_rows"].shape == (1, 12, checkpoint.spec.width("history_rows"))
        assert feeds["history_mask"][0].tolist() == [0.0] * 7 + [1.0] * 5
        assert not feeds["history_rows"][0, :7].any()
        # User 1 (number 0) watched videos 0, 3, 6, 9, 12, and then 15.
        assert int(queries.target_Q[0]) == int(items.index_of(makers.VIDEOS[15:16])[0])
        columns = {name: column[queries.place_QL[0, 7:]] for name, column in queries.columns.items()}
        assert columns["video_id"].tolist() == makers.VIDEOS[:15:3].tolist()
        slots = checkpoint.tables.eval().field_slots(checkpoint.spec, "history_rows", columns)
        tensors = {name: torch.from_numpy(slot) for name, slot in slots.items()}
        want = checkpoint.tables.rows(checkpoint.spec, "history_rows", tensors).detach().numpy()
        np.testing.assert_allclose(feeds["history_rows"][0, 7:], want, atol=1e-6)

    def test_queries_after_the_cut(self, checkpoint: Checkpoint, items: Catalogue, data: str) -> None:
        training = {**checkpoint.config["training"], "trained_until_ms": 1_700_000_000_000 + 2_000 * 4}
        cut = replace(checkpoint, config={**checkpoint.config, "training": training})
        queries = real_queries(cut, items, data, length=12, limit=1000)
        assert "after the model's cut" in queries.source
        assert len(queries) == 240  # two positives of each user come after it, their histories are frozen there
        assert queries.feeds(0)["history_mask"].sum() == 4

    def test_leave_one_out_data(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        """Sequences without times: the val item of each user, and what stands before it is left out of its ranking."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [(user, place, user + 10 * place) for user in range(4) for place in range(5)]
        split = ["train"] * 3 + ["val", "test"]
        columns = {"user_id": [r[0] for r in rows], "position": [r[1] for r in rows], "item_id": [r[2] for r in rows]}
        pq.write_table(pa.table({**columns, "split": split * 4}), tmp_path / "leave_one_out.parquet")
        ids = np.unique(columns["item_id"]).astype(np.uint64)
        none = np.full(len(ids), -1)
        items = Catalogue(
            ids, np.full(len(ids), MISSING_KEY), np.full((len(ids), TAGS_MAX), MISSING_KEY), none.astype(np.int32), none
        )
        queries = real_queries(checkpoint, items, f"ml-1m:{tmp_path}", length=6, limit=100)
        assert (len(queries), queries.seen) == (4, True)
        assert "targets of val" in queries.source
        assert items.video_id[queries.target_Q].tolist() == [30, 31, 32, 33]
        assert items.video_id[queries.seen_rows(2)].tolist() == [2, 12, 22]
        assert queries.feeds(2)["history_mask"].tolist() == [[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]

    def test_a_limit_draws_and_a_seed_repeats(self, checkpoint: Checkpoint, items: Catalogue, data: str) -> None:
        drawn = [real_queries(checkpoint, items, data, length=8, limit=30, seed=seed).place_QL for seed in (1, 1, 2)]
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert len(drawn[0]) == 30
        assert (drawn[0] != drawn[2]).any()

    def test_only_targets_of_the_catalogue_count(self, checkpoint: Checkpoint, items: Catalogue, data: str) -> None:
        few = replace(items, **{name: getattr(items, name)[:5] for name in items.__dataclass_fields__})
        queries = real_queries(checkpoint, few, data, length=8, limit=1000)
        assert 0 < len(queries) < 120
        assert (queries.target_Q < 5).all()
        elsewhere = replace(few, video_id=few.video_id + np.uint64(1))
        with pytest.raises(InputError, match="ends in an item of the catalogue"):
            real_queries(checkpoint, elsewhere, data, length=8, limit=1000)

    def test_what_is_seen_is_left_out_where_the_protocol_says_so(
        self, checkpoint: Checkpoint, items: Catalogue, data: str
    ) -> None:
        queries = real_queries(checkpoint, items, data, length=8, limit=10)
        assert queries.seen_rows(0).tolist() == []
        rows = replace(queries, seen=True).seen_rows(0)
        held = queries.columns["video_id"][queries.place_QL[0][queries.place_QL[0] >= 0]]
        assert items.video_id[rows].tolist() == held.tolist()

    def test_stand_ins_hold_items_of_the_catalogue(self, checkpoint: Checkpoint, items: Catalogue) -> None:
        queries = drawn_queries(checkpoint, items, length=40, limit=9)
        feeds = [queries.feeds(query) for query in range(len(queries))]
        assert [int(f["history_mask"].sum()) for f in feeds] == [32] * 9
        assert np.abs(feeds[0]["history_rows"] - feeds[1]["history_rows"]).max() > 0
        assert (queries.target_Q == -1).all()


class TestVerdict:
    def verdict(self, **changes: Any) -> Int8Verdict:
        given: dict[str, Any] = {
            "source": "a test", "queries": 1000, "recall_10_float32": 0.2, "recall_10_int8": 0.2,
            "overlap_10": 1.0, "overlap_50": 1.0, "overlap_100": 1.0, "ms_float32": 2.0, "ms_int8": 1.0,
            "gate": Int8Gate(recall_loss=0.01, overlap_50=0.95),
        }  # fmt: skip
        return Int8Verdict(**{**given, **changes})

    def test_both_bounds_count(self) -> None:
        assert self.verdict().passed
        assert self.verdict(recall_10_int8=0.1981, overlap_50=0.95).passed
        assert not self.verdict(recall_10_int8=0.1979).passed
        assert not self.verdict(overlap_50=0.9499).passed
        assert self.verdict(recall_10_int8=0.25).passed  # better than float is no loss

    def test_what_is_not_a_number_does_not_pass(self) -> None:
        assert not self.verdict(overlap_50=float("nan")).passed
        assert not self.verdict(recall_10_int8=float("nan")).passed

    def test_a_model_that_finds_nothing_is_judged_by_its_lists(self) -> None:
        assert self.verdict(recall_10_float32=0.0, recall_10_int8=0.0).passed
        assert not self.verdict(recall_10_float32=0.0, recall_10_int8=0.0, overlap_50=0.5).passed
        better = self.verdict(recall_10_float32=0.0, recall_10_int8=0.01)
        assert (better.recall_loss, better.passed) == (0.0, True)

    def test_it_says_what_it_measured(self) -> None:
        verdict = self.verdict(overlap_50=0.5)
        assert "fails" in str(verdict)
        assert "0.500" in str(verdict)
        saved = json.loads(json.dumps(verdict.to_json()))
        assert (saved["passed"], saved["gate"]["overlap_50"], saved["recall_loss"]) == (False, 0.95, 0.0)


class TestJudge:
    def test_best_rows_are_the_slow_obvious_ones(self) -> None:
        vectors, interests = vectors_of(40), vectors_of(3, seed=1)
        score = [max(float(v @ u) for u in interests) for v in vectors]
        want = sorted((i for i in range(40) if i not in (3, 7)), key=lambda i: -score[i])[:6]
        assert best_rows(interests, vectors, np.array([3, 7]), 6).tolist() == want
        assert len(best_rows(interests, vectors, np.arange(38), 6)) == 2
        assert len(best_rows(interests * np.nan, vectors, np.arange(0), 6)) == 0

    def test_a_graph_agrees_with_itself(
        self, checkpoint: Checkpoint, items: Catalogue, data: str, tmp_path: Path
    ) -> None:
        float32, _ = both(checkpoint, tmp_path)
        queries = real_queries(checkpoint, items, data, length=12, limit=1000)
        verdict = judge(float32, float32, vectors_of(60), queries)
        assert (verdict.overlap_10, verdict.overlap_50, verdict.overlap_100, verdict.recall_loss) == (1, 1, 1, 0)
        assert verdict.passed
        assert verdict.queries == 120

    def test_recall_is_counted_over_the_next_item(
        self, checkpoint: Checkpoint, items: Catalogue, data: str, tmp_path: Path
    ) -> None:
        """Targets set to float's own best item: float32 finds all, and int8 loses what it ranks outside its ten."""
        float32, int8 = both(checkpoint, tmp_path)
        queries, vectors = real_queries(checkpoint, items, data, length=12, limit=1000), vectors_of(60)
        tops = {}
        for name, graph in (("float32", float32), ("int8", int8)):
            found = [graph.run(queries.feeds(q))["interests"][0] for q in range(len(queries))]
            tops[name] = [best_rows(interests, vectors, np.arange(0), 10) for interests in found]
        target = np.array([top[9] for top in tops["float32"]])  # the last of float's ten: some are lost
        verdict = judge(float32, int8, vectors, replace(queries, target_Q=target))
        kept = np.mean([t in top for t, top in zip(target, tops["int8"], strict=True)])
        assert verdict.recall_10_float32 == 1.0
        assert verdict.recall_10_int8 == pytest.approx(kept)
        overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*tops.values(), strict=True)])
        assert verdict.overlap_10 == pytest.approx(overlap)
        assert 0.9 < verdict.overlap_10 < 1.0  # int8 is near, and is not the same

    def test_a_model_that_int8_destroys_fails(
        self, spoilt: Checkpoint, items: Catalogue, data: str, tmp_path: Path
    ) -> None:
        float32, int8 = both(spoilt, tmp_path)
        queries = real_queries(spoilt, items, data, length=12, limit=1000)
        verdict = judge(float32, int8, vectors_of(60), queries)
        assert not verdict.passed
        assert verdict.overlap_10 < 0.8

    def test_a_handful_of_histories_says_nothing(
        self, checkpoint: Checkpoint, items: Catalogue, data: str, tmp_path: Path
    ) -> None:
        float32, int8 = both(checkpoint, tmp_path)
        few = real_queries(checkpoint, items, data, length=12, limit=99)
        with pytest.raises(InputError, match="too few histories"):
            judge(float32, int8, vectors_of(60), few)
        drawn: EncoderQueries = drawn_queries(checkpoint, items, length=12, limit=200)
        with pytest.raises(InputError, match="--data"):
            judge(float32, int8, vectors_of(60), drawn)


class TestShipping:
    def exported(self, checkpoint: Checkpoint, items: Catalogue, folder: Path, **choices: Any) -> dict[str, Any]:
        export_retrieval(checkpoint, items, folder, RetrievalChoices(**choices))
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return config

    def is_int8(self, folder: Path) -> bool:
        import onnx

        kinds = {node.op_type for node in onnx.load(folder / "encoder.onnx").graph.node}
        return "MatMulInteger" in kinds

    def test_float_is_the_default(self, checkpoint: Checkpoint, items: Catalogue, tmp_path: Path) -> None:
        config = self.exported(checkpoint, items, tmp_path / "out")
        assert config["encoder"] == {"kind": "float32"}
        assert config["history"] == 12
        assert not self.is_int8(tmp_path / "out")

    @pytest.mark.parametrize("encoder", ["int8", "auto"])
    def test_int8_needs_real_histories(self, encoder: str) -> None:
        with pytest.raises(InputError, match="--data"):
            RetrievalChoices(encoder=encoder)

    def test_an_encoder_nobody_knows(self) -> None:
        with pytest.raises(InputError, match="float32"):
            RetrievalChoices(encoder="int4", data="events:x")

    def test_int8_ships_where_the_gate_lets_it(
        self, checkpoint: Checkpoint, items: Catalogue, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Random weights over sixty items: one hit more or less is 4 %, so the bound on recall is opened.
        loose = Int8Gate(recall_loss=0.3, overlap_50=0.9)
        monkeypatch.setattr(server_models, "judge", lambda *given: judge(*given, loose))
        config = self.exported(checkpoint, items, tmp_path / "out", encoder="int8", data=data)
        assert config["encoder"]["kind"] == "int8"
        assert config["encoder"]["int8"]["passed"] is True
        assert config["encoder"]["int8"]["queries"] == 120
        assert self.is_int8(tmp_path / "out")
        assert not (tmp_path / "out" / "encoder.int8.onnx").exists()

    def test_int8_that_fails_is_an_error_and_auto_goes_on_in_float(
        self, spoilt: Checkpoint, items: Catalogue, data: str, tmp_path: Path
    ) -> None:
        with pytest.raises(VerificationFailed, match="int8 encoder may not serve"):
            self.exported(spoilt, items, tmp_path / "out", encoder="int8", data=data)
        config = self.exported(spoilt, items, tmp_path / "auto", encoder="auto", data=data)
        assert config["encoder"]["kind"] == "float32"
        assert config["encoder"]["int8"]["passed"] is False
        assert not self.is_int8(tmp_path / "auto")

    @pytest.mark.parametrize(("ms_int8", "kind"), [(1.0, "int8"), (3.0, "float32")])
    def test_auto_takes_the_quicker(
        self,
        checkpoint: Checkpoint,
        items: Catalogue,
        data: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        ms_int8: float,
        kind: str,
    ) -> None:
        def timed(*given: Any) -> Int8Verdict:
            found = judge(*given, Int8Gate(recall_loss=1.0, overlap_50=0.0))
            return replace(found, ms_float32=2.0, ms_int8=ms_int8)

        monkeypatch.setattr(server_models, "judge", timed)
        config = self.exported(checkpoint, items, tmp_path / "out", encoder="auto", data=data)
        assert config["encoder"]["kind"] == kind
        assert self.is_int8(tmp_path / "out") == (kind == "int8")
