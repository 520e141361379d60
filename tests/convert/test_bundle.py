"""The server bundle: parity of its graphs, vectors and index of one make, complete or not there, rows added live."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from contract.catalogue import read_catalogue
from contract.errors import (
    CheckpointError,
    ConversionError,
    EventError,
    InputError,
    VerificationFailed,
    VersionMismatch,
)
from contract.history import KUAIFORMER_HISTORY, RANKER_HISTORY
from contract.matches import K_MATCHES
from contract.server_order import checked_fusion
from convert import server_models
from convert.bundle import INDEX_NAME, Bundle, add_rows, read_bundle, write_bundle
from convert.onnx_export import OnnxGraph
from tests.convert import makers
from training.checkpoint import load_checkpoint
from training.kuaiformer_train import load_kuaiformer
from training.ranker import RankerProbabilities
from training.ranker_train import load_ranker


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `write_bundle` takes."""
    root = tmp_path_factory.mktemp("parts")
    return {
        "retrieval": makers.make_kuaiformer(root / "retrieval").path,
        "ranker": makers.make_ranker(root / "ranker").path,
        "kir": [makers.make_kir(root / "kir").path],
        "catalogue": makers.make_catalogue(root / "catalogue.parquet"),
        "users": makers.make_users(root / "users.parquet"),
    }


@pytest.fixture(scope="module")
def bundle(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One bundle, read only."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bundle", **parts)


def listed(root: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads((root / INDEX_NAME).read_text())["files"]
    return files


class TestWhatStandsThere:
    def test_the_layout(self, bundle: Bundle) -> None:
        names = set(listed(bundle.directory))
        version = bundle.dense_versions[0]
        assert names == {
            "catalogue.parquet", "users.parquet",
            *(f"retrieval/{n}" for n in ("encoder.onnx", "window.onnx", "tail.onnx", "item.onnx", "spec.json",
                                         "tables.safetensors", "items.faiss", "item_ids.npy", "item_vectors.npy",
                                         "config.json")),
            *(f"ranker/{n}" for n in ("ranker.onnx", "spec.json", "tables.safetensors", "config.json")),
            *(f"rows/{version}/{n}" for n in ("spec.json", "tables.safetensors", "rows.json")),
        }  # fmt: skip

    def test_every_file_is_listed_with_its_hash(self, bundle: Bundle) -> None:
        files = listed(bundle.directory)
        have = {p.relative_to(bundle.directory).as_posix() for p in bundle.directory.rglob("*") if p.is_file()}
        assert have == {*files, INDEX_NAME}
        for name, entry in files.items():
            raw = (bundle.directory / name).read_bytes()
            assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(raw).hexdigest(), len(raw))

    def test_versions_are_the_checkpoints(self, bundle: Bundle, parts: dict[str, Any]) -> None:
        assert bundle.retrieval_version == load_checkpoint(parts["retrieval"]).version
        assert bundle.ranker_version == load_checkpoint(parts["ranker"]).version
        assert bundle.dense_versions == (load_checkpoint(parts["kir"][0]).version,)
        assert bundle.retrieval_version in bundle.table()
        assert json.loads(json.dumps(bundle.to_json()))["dense_versions"] == list(bundle.dense_versions)

    def test_rows_say_whose_they_are(self, bundle: Bundle, parts: dict[str, Any]) -> None:
        checkpoint = load_checkpoint(parts["kir"][0])
        about = json.loads((bundle.directory / "rows" / checkpoint.version / "rows.json").read_text())
        assert about == {
            "dense_version": checkpoint.version, "rows_revision": 1, "spec_fingerprint": checkpoint.spec.fingerprint,
        }  # fmt: skip

    def test_the_ranker_is_told_which_heads_mean_something(self, bundle: Bundle) -> None:
        config = json.loads((bundle.directory / "ranker" / "config.json").read_text())
        assert config["heads"] == ["click", "long_view"]
        assert set(config["fusion"]) <= {"watch_time", "click", "long_view"}
        assert checked_fusion(config["fusion"])
        assert config["history"] == RANKER_HISTORY


class TestParity:
    @pytest.mark.parametrize("b", [1, 5])
    def test_the_encoder(self, bundle: Bundle, parts: dict[str, Any], b: int) -> None:
        net = load_kuaiformer(load_checkpoint(parts["retrieval"]))
        rng = np.random.default_rng(b)
        rows = rng.normal(size=(b, KUAIFORMER_HISTORY, net.spec.width("history_rows"))).astype(np.float32)
        mask = (np.arange(KUAIFORMER_HISTORY)[None] >= rng.integers(0, 257, (b, 1))).astype(np.float32)
        got = OnnxGraph(bundle.directory / "retrieval/encoder.onnx").run({"history_rows": rows, "history_mask": mask})
        with torch.no_grad():
            want = net.encoder(torch.from_numpy(rows), torch.from_numpy(mask)).numpy()
        np.testing.assert_allclose(got["interests"], want, atol=1e-5)

    @pytest.mark.parametrize("n", [1, 17])
    def test_the_ranker(self, bundle: Bundle, parts: dict[str, Any], n: int) -> None:
        net = load_ranker(load_checkpoint(parts["ranker"]))
        rng = np.random.default_rng(n)
        shapes = {
            "user_rows": (1, net.spec.width("user_rows")),
            "user_dense": (1, net.spec.width("user_dense")),
            "history_rows": (1, RANKER_HISTORY, net.spec.width("history_rows")),
            "history_dense": (1, RANKER_HISTORY, net.spec.width("history_dense")),
            "history_mask": (1, RANKER_HISTORY),
            "candidate_rows": (n, net.spec.width("candidate_rows")),
            "candidate_dense": (n, net.spec.width("candidate_dense")),
            "match": (n, RANKER_HISTORY, K_MATCHES),
        }
        feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        feeds["history_mask"] = np.zeros((1, RANKER_HISTORY), np.float32)  # a new user
        feeds["match"] = (feeds["match"] > 0).astype(np.float32)
        got = OnnxGraph(bundle.directory / "ranker/ranker.onnx").run(feeds)["pxtr"]
        with torch.no_grad():
            want = RankerProbabilities(net)(**{k: torch.from_numpy(v) for k, v in feeds.items()}).numpy()
        np.testing.assert_allclose(got, want, atol=1e-5)
        assert ((got >= 0) & (got <= 1)).all()

    def test_an_exported_graph_that_differs_fails(self, parts: dict[str, Any], tmp_path: Path) -> None:
        from dataclasses import replace

        checkpoint = load_checkpoint(parts["retrieval"])
        dense = {
            name: tensor * 1.01 if name == "item.video.weight" else tensor for name, tensor in checkpoint.dense.items()
        }
        scaled = load_kuaiformer(replace(checkpoint, dense=dense))
        right = load_kuaiformer(checkpoint)
        graph = server_models._graph(
            "item", right.item, {}, {"item_rows": checkpoint.spec.width("item_rows")}, "item_vector", 0
        )
        wrong = replace(graph, module=scaled.item)
        server_models.export_onnx(wrong, tmp_path / "wrong.onnx")
        real_export = server_models.export_onnx
        try:
            server_models.export_onnx = lambda graph, path: tmp_path / "wrong.onnx"  # type: ignore[assignment]
            with pytest.raises(VerificationFailed, match="differs from torch"):
                server_models._export(graph, tmp_path / "item.onnx")
        finally:
            server_models.export_onnx = real_export


class TestItems:
    def test_vectors_are_the_item_graphs(self, bundle: Bundle, parts: dict[str, Any]) -> None:
        checkpoint = load_checkpoint(parts["retrieval"])
        items = read_catalogue(parts["catalogue"])
        columns = {name: getattr(items, name) for name in ("video_id", "author_id", "tags", "duration_ms")}
        slots = checkpoint.tables.eval().field_slots(checkpoint.spec, "item_rows", columns)
        with torch.no_grad():
            rows = checkpoint.tables.rows(
                checkpoint.spec, "item_rows", {name: torch.from_numpy(slot) for name, slot in slots.items()}
            )
            want = load_kuaiformer(checkpoint).item(rows).numpy()
        root = bundle.directory / "retrieval"
        np.testing.assert_allclose(np.load(root / "item_vectors.npy"), want, atol=1e-5)
        np.testing.assert_array_equal(np.load(root / "item_ids.npy"), items.video_id)

    def test_the_index_finds_what_the_matrix_says(self, bundle: Bundle) -> None:
        root = bundle.directory / "retrieval"
        vectors, index = np.load(root / "item_vectors.npy"), faiss.read_index(str(root / "items.faiss"))
        assert json.loads((root / "config.json").read_text())["index"] == {"kind": "Flat", "setting": "", "tried": []}
        scores, places = index.search(vectors[:4], 3)
        want = np.sort(vectors[:4] @ vectors.T, axis=1)[:, ::-1][:, :3]
        np.testing.assert_allclose(scores, want, atol=1e-5)
        np.testing.assert_array_equal(places[:, 0], np.argmax(vectors[:4] @ vectors.T, axis=1))

    def test_an_empty_catalogue_is_refused(self, parts: dict[str, Any], tmp_path: Path) -> None:
        empty = makers.make_catalogue(tmp_path / "empty.parquet", n=0)
        with pytest.raises(ConversionError, match="empty"):
            write_bundle(tmp_path / "bundle", **{**parts, "catalogue": empty})


class TestWholeOrNotAtAll:
    @pytest.mark.parametrize(
        ("part", "error"),
        [("catalogue", InputError), ("users", InputError), ("retrieval", CheckpointError), ("ranker", CheckpointError)],
    )
    def test_a_missing_part_leaves_nothing(
        self, parts: dict[str, Any], tmp_path: Path, part: str, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            write_bundle(tmp_path / "new" / "bundle", **{**parts, part: tmp_path / "nowhere"})
        assert list((tmp_path / "new").iterdir()) == []

    def test_a_wrong_file_is_named_where_it_lies(self, parts: dict[str, Any], tmp_path: Path) -> None:
        wrong = {"catalogue": parts["users"], "users": parts["catalogue"], "histories": parts["catalogue"]}
        for part, path in wrong.items():
            with pytest.raises(EventError) as refused:
                write_bundle(tmp_path / "bundle", **{**parts, part: path})
            assert str(path) in str(refused.value)
            assert ".part" not in str(refused.value)
        assert list(tmp_path.iterdir()) == []

    def test_overwriting_is_explicit(self, parts: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "bundle").mkdir()
        with pytest.raises(InputError, match="--overwrite"):
            write_bundle(tmp_path / "bundle", **parts)

    def test_a_directory_that_is_no_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="kir convert server"):
            read_bundle(tmp_path)
        (tmp_path / INDEX_NAME).write_text('{"format": "other", "files": {}}')
        with pytest.raises(InputError, match="another bundle format"):
            read_bundle(tmp_path)
        (tmp_path / INDEX_NAME).write_text("{")
        with pytest.raises(InputError, match="unreadable"):
            read_bundle(tmp_path)


class TestRows:
    @pytest.fixture
    def live(self, bundle: Bundle, tmp_path: Path) -> Path:
        import shutil

        return Path(shutil.copytree(bundle.directory, tmp_path / "live"))

    def test_a_second_version_stands_beside_the_first(self, live: Path, bundle: Bundle, tmp_path: Path) -> None:
        more = makers.make_kir(tmp_path / "next", seed=1)
        after = add_rows(live, more.path)
        assert set(after.dense_versions) == {*bundle.dense_versions, more.version}
        assert listed(live).keys() > listed(bundle.directory).keys()
        assert not [p for p in live.iterdir() if p.name.startswith(".")]

    def test_the_same_again_changes_nothing(self, live: Path, parts: dict[str, Any]) -> None:
        before = (live / INDEX_NAME).stat().st_mtime_ns
        add_rows(live, parts["kir"][0])
        assert (live / INDEX_NAME).stat().st_mtime_ns == before

    def test_other_rows_of_a_live_version_are_refused(self, live: Path, parts: dict[str, Any]) -> None:
        version = load_checkpoint(parts["kir"][0]).version
        (live / "rows" / version / "tables.safetensors").write_bytes(b"other rows")
        with pytest.raises(VersionMismatch, match="other rows"):
            add_rows(live, parts["kir"][0])

    def test_what_an_interruption_left_is_replaced(self, live: Path, tmp_path: Path) -> None:
        more = makers.make_kir(tmp_path / "next", seed=1)
        (live / "rows" / more.version).mkdir()
        (live / "rows" / more.version / "half").write_text("x")
        assert more.version in add_rows(live, more.path).dense_versions
        assert not (live / "rows" / more.version / "half").exists()

    def test_another_kind_of_checkpoint(self, live: Path, parts: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError, match="another kind"):
            add_rows(live, parts["ranker"])
