"""kir convert compress: what is held through training, what is saved, and that it survives into the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema

import kir
from contract.errors import CheckpointError, InputError
from contract.events import Events
from contract.parquet import write_events
from convert import compress as compress_module
from convert.build import BuiltGraph, build_all
from convert.compress import CompressionResult, Matrix, compress, masked_layers, matrices_of
from convert.quantize import load_recipes
from convert.source import KirSource, load_source
from convert.tfmot import Cluster, Prune, Transform
from convert.windows import synthetic_events
from tests.convert import makers
from training.checkpoint import load_checkpoint
from training.kir import Kir, load_kir

LEAST = 200
CENTROIDS = 8
RECIPES = ("int8-weight-only", "int8-per-tensor")


@pytest.fixture(scope="module")
def log(source: KirSource) -> Events:
    return synthetic_events(source)


@pytest.fixture(scope="module")
def pruned(checkpoint: Path, log: Events, tmp_path_factory: pytest.TempPathFactory) -> CompressionResult:
    return compress(checkpoint, tmp_path_factory.mktemp("pruned") / "kir", Prune(0.5), log, min_weights=LEAST)


@pytest.fixture(scope="module")
def clustered(checkpoint: Path, log: Events, tmp_path_factory: pytest.TempPathFactory) -> CompressionResult:
    return compress(checkpoint, tmp_path_factory.mktemp("kir") / "kir", Cluster(CENTROIDS), log, min_weights=LEAST)


@pytest.fixture
def net(checkpoint: Path) -> Kir:
    return load_kir(load_checkpoint(checkpoint))


def built(result: CompressionResult, names: tuple[str, ...], out: Path) -> dict[str, BuiltGraph]:
    graphs = [graph for graph in load_source(result.checkpoint).graphs.values() if graph.name in names]
    return build_all(graphs, out, load_recipes(RECIPES))


@pytest.fixture(scope="module")
def graphs(clustered: CompressionResult, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuiltGraph]:
    return built(clustered, ("page", "watch", "swipe", "place"), tmp_path_factory.mktemp("clustered"))


class TestWhatIsCompressed:
    def test_what_is_exported_is_what_is_stored(self, net: Kir) -> None:
        net.set_pxtr_constants(torch.full((7,), -7.0), torch.full((7,), 0.2))
        for name, layer in masked_layers(net).items():
            assert torch.equal(layer.folded().weight, layer.weight.detach() * layer.mask), name

    def test_structural_zeros_do_not_count(self, net: Kir) -> None:
        layers, chosen = masked_layers(net), matrices_of(net, LEAST)
        assert set(chosen) == {name for name, layer in layers.items() if int(layer.mask.sum()) >= LEAST}
        assert any(layer.weight.numel() >= LEAST and name not in chosen for name, layer in layers.items())

    def test_a_limit_above_all_is_refused(self, net: Kir) -> None:
        with pytest.raises(InputError, match="no matrix is so large"):
            matrices_of(net, 10**6)


class TestTrainedOn:
    def test_half_of_each_matrix_is_zero_after_training(self, pruned: CompressionResult) -> None:
        assert pruned.epochs == 1
        assert all(one.zeros == pytest.approx(one.weights / 2, abs=1) for one in pruned.matrices)

    def test_no_more_values_than_centroids_after_training(self, clustered: CompressionResult) -> None:
        assert clustered.matrices
        assert all(one.values == CENTROIDS for one in clustered.matrices)

    @pytest.mark.parametrize("name", ["pruned", "clustered"])
    def test_the_others_have_learnt(self, name: str, checkpoint: Path, request: pytest.FixtureRequest) -> None:
        result = request.getfixturevalue(name)
        before = load_kir(load_checkpoint(checkpoint))
        after = load_kir(load_checkpoint(result.checkpoint)).state_dict()
        small = next(name for name in masked_layers(before) if name not in {m.name for m in result.matrices})
        assert not torch.equal(after[f"{small}.weight"], before.state_dict()[f"{small}.weight"])

    def test_rows_stand_still(self, pruned: CompressionResult, checkpoint: Path) -> None:
        rows, was = (load_checkpoint(path).tables.numpy_rows() for path in (pruned.checkpoint, checkpoint))
        assert all(np.array_equal(rows[table], was[table]) for table in was)

    def test_no_training_leaves_what_tfmot_made(self, checkpoint: Path, log: Events, tmp_path: Path, net: Kir) -> None:
        result = compress(checkpoint, tmp_path / "out", Prune(0.5), log, epochs=0, min_weights=LEAST)
        after = load_kir(load_checkpoint(result.checkpoint)).state_dict()
        for name, layer in masked_layers(net).items():
            kept = after[f"{name}.weight"] != 0
            assert torch.equal(after[f"{name}.weight"][kept], layer.weight.detach()[kept])
        assert result.epochs == 0


class TestSaved:
    def test_an_ordinary_checkpoint_that_says_what_was_done(self, pruned: CompressionResult, checkpoint: Path) -> None:
        found, base = load_checkpoint(pruned.checkpoint, kind="kir"), load_checkpoint(checkpoint)
        told = found.config["training"]["compression"]
        assert told["how"] == "prune 50%"
        assert told["of"] == found.config["training"]["init_from"] == base.version
        assert told["tool"] == "tensorflow-model-optimization 0.8.1"
        assert [Matrix(**one) for one in told["matrices"]] == list(pruned.matrices)
        assert found.version == pruned.version != base.version
        assert "prune 50%" in found.card_path.read_text()

    def test_the_result_as_a_table_and_as_json(self, clustered: CompressionResult) -> None:
        assert "cluster 8, 1 epochs with it held" in clustered.table()
        assert json.loads(json.dumps(clustered.to_json()))["version"] == clustered.version

    def test_an_existing_output_is_left_alone(self, pruned: CompressionResult, checkpoint: Path, log: Events) -> None:
        with pytest.raises(CheckpointError, match="exists"):
            compress(checkpoint, pruned.checkpoint, Prune(0.5), log)

    @pytest.mark.parametrize("flags", [{"epochs": -1}, {"min_weights": 0}])
    def test_flags_out_of_range(self, flags: dict[str, int], checkpoint: Path, log: Events, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="out of range"):
            compress(checkpoint, tmp_path / "out", Prune(0.5), log, **flags)


class TestInTheFiles:
    def test_matrices_are_exported_as_they_were_compressed(
        self, clustered: CompressionResult, graphs: dict[str, BuiltGraph]
    ) -> None:
        layers = masked_layers(load_kir(load_checkpoint(clustered.checkpoint)))
        files = [graph.variants["float32"] for graph in graphs.values()]
        found = [matrix for path in files for matrix in makers.constants(path, schema.TensorType.FLOAT32, "<f4")]
        for one in clustered.matrices:
            want = layers[one.name].folded().weight.detach().numpy()
            assert any(np.array_equal(matrix, want) for matrix in found), one.name

    def test_on_one_scale_a_matrix_keeps_its_few_values(
        self, clustered: CompressionResult, graphs: dict[str, BuiltGraph]
    ) -> None:
        layer = masked_layers(load_kir(load_checkpoint(clustered.checkpoint)))["page_in.user_dense"].folded()
        shape, kept = layer.weight.shape, CENTROIDS
        assert len(np.unique(layer.weight.detach().numpy())) == kept
        values = {}
        for name in RECIPES:
            found = makers.constants(graphs["page/N9"].variants[name], schema.TensorType.INT8, "i1")
            (values[name],) = (len(np.unique(matrix)) for matrix in found if matrix.shape == shape)
        assert values["int8-per-tensor"] == kept
        assert values["int8-weight-only"] > kept, "by channel, a centroid is as many bytes as there are channels"

    def test_zeros_stay_zero_in_int8(self, pruned: CompressionResult, tmp_path: Path) -> None:
        graphs = built(pruned, ("page",), tmp_path)
        layers = masked_layers(load_kir(load_checkpoint(pruned.checkpoint)))
        want = layers["page_in.user_dense"].weight.detach().numpy() == 0
        for name in RECIPES:
            found = makers.constants(graphs["page/N9"].variants[name], schema.TensorType.INT8, "i1")
            alike = [matrix for matrix in found if matrix.shape == want.shape]
            assert any((matrix[want] == 0).all() for matrix in alike)
            assert 0.5 <= np.mean([matrix == 0 for matrix in alike]) < 0.6


class TestTheCommand:
    @pytest.fixture
    def asked(self, pruned: CompressionResult, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What the command asked `compress` for."""
        found: dict[str, Any] = {}

        def run(checkpoint: Path, out: Path, how: Transform, data: str, **options: Any) -> CompressionResult:
            found.update(checkpoint=checkpoint, out=out, how=how, data=data, **options)
            return pruned

        monkeypatch.setattr(compress_module, "compress", run)
        return found

    def test_flags_reach_the_library(
        self, asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["convert", "compress", "ckpt", "--out", "out", "--data", "log", "--prune", "0.5", "--epochs", "3"]
        assert kir.main([*words, "--min-weights", "9", "--seed", "2", "--json", str(tmp_path / "deep" / "r.json")]) == 0
        assert (asked["how"], asked["epochs"], asked["min_weights"], asked["seed"]) == (Prune(0.5), 3, 9, 2)
        assert (asked["checkpoint"], asked["out"], asked["data"]) == (Path("ckpt"), Path("out"), "log")
        assert "prune 50%" in capsys.readouterr().out
        assert json.loads((tmp_path / "deep" / "r.json").read_text())["how"] == "prune 50%"

    def test_clusters(self, asked: dict[str, Any]) -> None:
        assert kir.main(["convert", "compress", "c", "--out", "o", "--data", "log", "--cluster", "32"]) == 0
        assert asked["how"] == Cluster(32)
        assert asked["min_weights"] == compress_module.MIN_WEIGHTS

    @pytest.mark.parametrize("how", [[], ["--prune", "0.5", "--cluster", "32"]])
    def test_one_transform_and_not_both(self, how: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as left:
            kir.main(["convert", "compress", "c", "--out", "o", "--data", "log", *how])
        assert left.value.code == 2
        assert "--prune" in capsys.readouterr().err

    def test_a_log_without_events_and_another_kind(
        self, checkpoint: Path, log: Events, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ranker = makers.make_ranker(tmp_path / "ranker").path
        write_events(tmp_path / "log.parquet", log)
        words = ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "log.parquet"), "--prune", "0.5"]
        assert kir.main(["convert", "compress", str(ranker), *words]) == 2
        assert "checkpoint of another kind" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
