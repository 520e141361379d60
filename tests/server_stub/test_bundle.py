"""Loading a bundle: a good one loads, and each way to break one ends in one clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from contract.errors import InputError, IntegrityError, KirError, SpecError, VersionMismatch
from contract.history import RANKER_HISTORY
from contract.specs import kir_spec
from server_stub.bundle import load_histories, load_models, load_rows, read_index, verify
from server_stub.store import EmbeddingStore
from tests.server_stub.tiny_bundle import N_ITEMS, write_index, write_rows


def edit_index(bundle: Path, **changes: Any) -> None:
    path = bundle / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestGood:
    def test_index(self, shared_bundle: Path) -> None:
        index = read_index(shared_bundle)
        assert index.dense_versions == ["kir-a", "kir-b"]
        assert (index.retrieval_version, index.ranker_version) == ("kuaiformer-tiny", "ranker-tiny")

    def test_models(self, shared_bundle: Path) -> None:
        models = load_models(read_index(shared_bundle))
        assert len(models.catalogue) == N_ITEMS
        assert models.retrieval.length == 256
        assert models.ranker.history_length == RANKER_HISTORY
        assert models.ranker.fusion == {"long_view": 1.0, "like": 0.5, "hate": -1.0}

    def test_rows(self, shared_bundle: Path) -> None:
        rows, store = load_rows(read_index(shared_bundle), "kir-b"), EmbeddingStore()
        rows.add_to(store)
        (live,) = store.versions()
        assert (live.dense_version, live.rows_revision) == ("kir-b", 1)
        assert live.spec_fingerprint == kir_spec().fingerprint

    def test_histories(self, shared_bundle: Path) -> None:
        events = load_histories(read_index(shared_bundle))
        assert events is not None
        assert len(np.unique(events["user_id"])) == 9

    def test_histories_are_optional(self, bundle: Path) -> None:
        (bundle / "histories.parquet").unlink()
        write_index(bundle)
        assert load_histories(read_index(bundle)) is None

    def test_the_newest_catalogue_and_rows_are_those_it_names(self, bundle: Path) -> None:
        """As `kir convert items` leaves it, the files of the export gone."""
        core = read_index(bundle).digest(read_index(bundle).core_files)
        newest = {"catalogue": "catalogue-1a2b.parquet", "retrieval_tables": "retrieval/tables-1a2b.safetensors"}
        (bundle / "catalogue.parquet").rename(bundle / newest["catalogue"])
        (bundle / "retrieval/tables.safetensors").rename(bundle / newest["retrieval_tables"])
        write_index(bundle, **newest)
        assert len(load_models(read_index(bundle)).catalogue) == N_ITEMS
        assert read_index(bundle).digest(read_index(bundle).core_files) == core
        edit_index(bundle, catalogue="../catalogue.parquet")
        with pytest.raises(InputError, match="lacks files"):
            load_models(read_index(bundle))

    def test_the_digest_of_models_is_not_touched_by_rows(self, bundle: Path) -> None:
        before = read_index(bundle)
        write_rows(bundle, "kir-c")
        write_index(bundle)
        after = read_index(bundle)
        assert before.digest(before.model_files) == after.digest(after.model_files)
        assert after.dense_versions == ["kir-a", "kir-b", "kir-c"]


class TestIndex:
    def test_no_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no server bundle here") as caught:
            read_index(tmp_path)
        assert "kir convert server" in str(caught.value)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "kir-bundle/9"}', '{"format": "kir-bundle/1"}'])
    def test_unreadable(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "bundle.json").write_text(text)
        with pytest.raises(InputError):
            read_index(tmp_path)

    def test_a_revision_that_is_no_number(self, bundle: Path) -> None:
        assert read_index(bundle).retrieval_revision == 1
        edit_index(bundle, retrieval_revision="two")
        with pytest.raises(InputError, match="incomplete"):
            read_index(bundle)

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "rows//x", "rows/./x", "a\\b", ""])
    def test_names_outside_the_bundle(self, bundle: Path, name: str) -> None:
        edit_index(bundle, files={name: {"sha256": "0" * 64, "bytes": 1}})
        with pytest.raises(InputError, match="outside"):
            read_index(bundle)

    @pytest.mark.parametrize("files", [["a"], {"a": 1}, {"a": {"bytes": 1}}, {"a": {"sha256": "0", "bytes": "x"}}])
    def test_malformed_files(self, bundle: Path, files: Any) -> None:
        edit_index(bundle, files=files)
        with pytest.raises(InputError, match="incomplete"):
            read_index(bundle)


class TestVerify:
    @pytest.mark.parametrize("name", ["retrieval/encoder.onnx", "ranker/tables.safetensors", "catalogue.parquet"])
    def test_a_flipped_byte_is_traced_to_its_file(self, bundle: Path, name: str) -> None:
        path = bundle / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="not the one listed") as caught:
            load_models(read_index(bundle))
        assert name in str(caught.value)

    def test_a_truncated_file(self, bundle: Path) -> None:
        path = bundle / "users.parquet"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(IntegrityError, match="another size"):
            load_models(read_index(bundle))

    def test_a_file_gone(self, bundle: Path) -> None:
        (bundle / "rows/kir-a/spec.json").unlink()
        with pytest.raises(InputError, match="absent"):
            load_rows(read_index(bundle), "kir-a")

    def test_only_the_named_files_are_read(self, bundle: Path) -> None:
        (bundle / "users.parquet").write_bytes(b"")
        verify(read_index(bundle), ["catalogue.parquet"])


class TestModelsThatDoNotFit:
    """Whole files, listed with their right hashes, that contradict each other."""

    def fails(self, bundle: Path, error: type[KirError], match: str) -> None:
        write_index(bundle)
        with pytest.raises(error, match=match):
            load_models(read_index(bundle))

    def test_a_needed_file_is_not_listed(self, bundle: Path) -> None:
        (bundle / "ranker/ranker.onnx").unlink()
        self.fails(bundle, InputError, "lacks files")

    def test_not_an_onnx_file(self, bundle: Path) -> None:
        (bundle / "ranker/ranker.onnx").write_bytes(b"not a graph")
        self.fails(bundle, InputError, "onnxruntime can't load")

    def test_the_graph_of_another_room(self, bundle: Path) -> None:
        shutil.copy(bundle / "retrieval/encoder.onnx", bundle / "ranker/ranker.onnx")
        self.fails(bundle, VersionMismatch, "other tensors")

    def test_a_spec_of_another_width(self, bundle: Path) -> None:
        spec = json.loads((bundle / "ranker/spec.json").read_text())
        spec["fields"] = [f for f in spec["fields"] if f["name"] != "hour"]
        (bundle / "ranker/spec.json").write_text(json.dumps(spec))
        self.fails(bundle, VersionMismatch, "does not fit the spec")

    def test_an_index_of_other_items(self, bundle: Path) -> None:
        np.save(bundle / "retrieval/item_ids.npy", np.arange(N_ITEMS, dtype=np.uint64))
        self.fails(bundle, VersionMismatch, "catalogue lacks")

    def test_an_index_of_another_length(self, bundle: Path) -> None:
        np.save(bundle / "retrieval/item_ids.npy", np.arange(3, dtype=np.uint64))
        self.fails(bundle, VersionMismatch, "index and item_ids differ")

    def test_an_index_of_another_width(self, bundle: Path) -> None:
        index = faiss.IndexFlatIP(5)
        index.add(np.zeros((N_ITEMS, 5), np.float32))
        faiss.write_index(index, str(bundle / "retrieval/items.faiss"))
        self.fails(bundle, VersionMismatch, "other widths")

    @pytest.mark.parametrize("name", ["items.faiss", "item_ids.npy"])
    def test_an_unreadable_index(self, bundle: Path, name: str) -> None:
        (bundle / "retrieval" / name).write_bytes(b"garbage")
        self.fails(bundle, InputError, "can't be read")

    def test_ids_of_another_type(self, bundle: Path) -> None:
        np.save(bundle / "retrieval/item_ids.npy", np.zeros(N_ITEMS, np.float32))
        self.fails(bundle, InputError, "64-bit ids")

    @pytest.mark.parametrize("fusion", [{"joy": 1}, {"like": "much"}, {"like": float("nan")}, ["like"]])
    def test_fusion_weights_are_checked(self, bundle: Path, fusion: Any) -> None:
        (bundle / "ranker/config.json").write_text(json.dumps({"fusion": fusion}))
        self.fails(bundle, InputError, "fusion")

    @pytest.mark.parametrize("heads", [["joy"], "like", {"like": 1}, 3])
    def test_heads_are_checked(self, bundle: Path, heads: Any) -> None:
        (bundle / "ranker/config.json").write_text(json.dumps({"heads": heads}))
        self.fails(bundle, InputError, "unknown head")

    def test_config_that_is_no_object(self, bundle: Path) -> None:
        (bundle / "ranker/config.json").write_text("[]")
        self.fails(bundle, InputError, "not a JSON object")


class TestRows:
    def edit(self, bundle: Path, **changes: Any) -> None:
        path = bundle / "rows/kir-a/rows.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        write_index(bundle)

    @pytest.mark.parametrize("change", [{"dense_version": "kir-z"}, {"spec_fingerprint": "0" * 16}])
    def test_rows_of_another_version(self, bundle: Path, change: dict[str, str]) -> None:
        self.edit(bundle, **change)
        with pytest.raises(SpecError, match="belongs to other rows"):
            load_rows(read_index(bundle), "kir-a")

    @pytest.mark.parametrize("revision", [-1, 1.5, "2", None])
    def test_revision_must_be_a_number(self, bundle: Path, revision: Any) -> None:
        self.edit(bundle, rows_revision=revision)
        with pytest.raises(InputError, match="whole number"):
            load_rows(read_index(bundle), "kir-a")

    def test_incomplete_rows_are_no_version(self, bundle: Path) -> None:
        (bundle / "rows/kir-a/rows.json").unlink()
        write_index(bundle)
        assert read_index(bundle).dense_versions == ["kir-b"]
        with pytest.raises(InputError, match="lack files"):
            load_rows(read_index(bundle), "kir-a")

    @pytest.mark.parametrize("name", ["..", "a/b", ""])
    def test_a_version_is_a_plain_name(self, shared_bundle: Path, name: str) -> None:
        with pytest.raises(InputError, match="plain name"):
            load_rows(read_index(shared_bundle), name)
