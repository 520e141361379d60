"""Publishing: immutable versions, the pointer moved last, and every flipped byte traced to its file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.errors import InputError, IntegrityError, KirError, ManifestError, VerificationFailed
from contract.manifest import MANIFEST_NAME, POINTER_NAME, Manifest, Pointer
from convert import publish as module
from convert.check_published import check_published, check_version
from convert.files import sha256_of, write_durably
from convert.model import ConversionResult
from convert.publish import publish, rollback
from convert.replay import check_goldens
from training.kir_objective import LIST_REWARD


@pytest.fixture(scope="module")
def published(conversion: ConversionResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CDN with one version; read only."""
    root = tmp_path_factory.mktemp("cdn")
    publish(conversion.directory, root)
    return root


def test_the_manifest_says_what_made_it(published: Path, conversion: ConversionResult) -> None:
    manifest = check_version(next((published / "models").iterdir()))
    about = json.loads((conversion.directory / "model.json").read_text())
    assert manifest.provenance["made_by"] == about["made_by"]
    assert manifest.provenance["made_by"]["windows"] == 24
    assert not {"calibration", "auto"} & set(manifest.provenance)  # neither was asked for


def test_calibration_and_what_a_search_chose_are_told_and_its_trials_left_out(converted: Path, tmp_path: Path) -> None:
    about = json.loads((converted / "model.json").read_text())
    one = {"recipe": {"name": "auto"}, "chosen": {"base": "int8-dynamic"}, "trials": [{}] * 30}
    about |= {"calibration": {"pages": 3}, "auto": {"swipe": one}, "prefer": "size"}
    (converted / "model.json").write_text(json.dumps(about))
    publish(converted, tmp_path / "cdn")
    found = check_version(next((tmp_path / "cdn" / "models").iterdir())).provenance
    assert found["calibration"] == {"pages": 3}
    assert found["auto"] == {"prefer": "size", "graphs": {"swipe": {k: one[k] for k in ("recipe", "chosen")}}}


@pytest.fixture
def cdn(published: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "cdn"))


def version_of(cdn: Path) -> Path:
    return next(path for path in (cdn / "models").iterdir())


def sealed(converted: Path) -> Path:
    """As if what lies there now had been verified: model.json with the hashes of its files."""
    about = json.loads((converted / "model.json").read_text())
    about["files"] = {name: sha256_of(converted / name) for name in about["files"]}
    (converted / "model.json").write_text(json.dumps(about))
    return converted


def renamed(converted: Path, version: str) -> Path:
    """The same conversion under another version's name: a second model in no time."""
    for name in ("model.json", "golden/session.json"):
        path = converted / name
        data = json.loads(path.read_text())
        data["dense_version"] = version
        path.write_text(json.dumps(data, sort_keys=True))
    return sealed(converted)


class TestWhatStandsThere:
    def test_every_file_has_its_hashs_name(self, published: Path) -> None:
        for path in version_of(published).iterdir():
            if path.name != MANIFEST_NAME:
                assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()[:20]

    def test_the_manifest_lists_them_all_and_no_more(self, published: Path) -> None:
        directory = version_of(published)
        manifest = Manifest.from_bytes((directory / MANIFEST_NAME).read_bytes())
        assert set(manifest.files) == {p.name for p in directory.iterdir()} - {MANIFEST_NAME}
        assert all((directory / name).stat().st_size == e.n_bytes for name, e in manifest.files.items())

    def test_the_manifest_says_what_an_edge_needs(self, published: Path, conversion: ConversionResult) -> None:
        manifest = Manifest.from_bytes((version_of(published) / MANIFEST_NAME).read_bytes())
        assert manifest.dense_version == conversion.version
        assert manifest.capacities["L"] == 6
        assert manifest.buckets("swipe") == [9]
        assert manifest.buckets("watch") == [1, 3]
        assert {f"{g.name}/{g.bucket}": g.ship for g in manifest.graphs} == conversion.verification.shipped
        assert set(manifest.golden.tensors) == set(conversion.verification.shipped)
        assert manifest.verification["n_samples"] == 24 + 3  # windows and hard pages
        assert manifest.min_runtime == {"ai-edge-litert": "2.3.0"}
        assert manifest.list_reward is not None
        assert asdict(manifest.list_reward) == LIST_REWARD
        for graph in manifest.graphs:
            assert all(v.tolerance >= 1e-5 for v in graph.variants)

    def test_the_pointer_names_the_manifest(self, published: Path, conversion: ConversionResult) -> None:
        pointer = Pointer.from_bytes((published / POINTER_NAME).read_bytes())
        raw = (published / pointer.manifest).read_bytes()
        assert pointer.dense_version == conversion.version
        assert pointer.manifest_sha256 == hashlib.sha256(raw).hexdigest()

    def test_the_check_counts_everything(self, published: Path, conversion: ConversionResult) -> None:
        check = check_published(published)
        assert check.current == conversion.version
        assert check.files == sum(1 for path in published.rglob("*") if path.is_file())
        assert f"* {conversion.version}" in check.table()
        assert json.loads(json.dumps(check.to_json()))["current"] == conversion.version

    def test_a_conversion_older_than_list_reward_is_published_without(self, converted: Path, tmp_path: Path) -> None:
        about = json.loads((converted / "model.json").read_text())
        del about["list_reward"]
        (converted / "model.json").write_text(json.dumps(about))
        publish(converted, tmp_path / "cdn")
        raw = (version_of(tmp_path / "cdn") / MANIFEST_NAME).read_bytes()
        assert b"list_reward" not in raw
        assert Manifest.from_bytes(raw).list_reward is None


class TestVersions:
    def test_the_same_again_changes_nothing(self, cdn: Path, conversion: ConversionResult) -> None:
        before = {path: path.stat().st_mtime_ns for path in cdn.rglob("*") if path.is_file()}
        result = publish(conversion.directory, cdn)
        assert not result.moved
        assert "unchanged" in result.table()
        assert {path: path.stat().st_mtime_ns for path in cdn.rglob("*") if path.is_file()} == before

    def test_other_content_under_the_same_version_is_refused(self, cdn: Path, converted: Path) -> None:
        (converted / "card.md").write_text("# another\n")
        sealed(converted)
        pointer = (cdn / POINTER_NAME).read_bytes()
        with pytest.raises(ManifestError, match="other content"):
            publish(converted, cdn)
        assert (cdn / POINTER_NAME).read_bytes() == pointer
        check_published(cdn)

    def test_a_second_version_moves_the_pointer_and_keeps_the_first(
        self, cdn: Path, converted: Path, conversion: ConversionResult
    ) -> None:
        result = publish(renamed(converted, "kir-second"), cdn)
        assert result.moved
        check = check_published(cdn)
        assert check.current == "kir-second"
        assert set(check.versions) == {conversion.version, "kir-second"}

    def test_rollback_is_a_pointer_to_the_older(self, cdn: Path, converted: Path, conversion: ConversionResult) -> None:
        publish(renamed(converted, "kir-second"), cdn)
        assert rollback(cdn, conversion.version).moved
        assert check_published(cdn).current == conversion.version
        assert not rollback(cdn, conversion.version).moved

    @pytest.mark.parametrize("name", ["kir-none", "../models", ""])
    def test_rollback_to_what_is_not_there(self, cdn: Path, name: str) -> None:
        with pytest.raises(InputError, match="no such published version"):
            rollback(cdn, name)

    def test_rollback_to_a_damaged_version_is_refused(self, cdn: Path, converted: Path) -> None:
        first = version_of(cdn)
        publish(renamed(converted, "kir-second"), cdn)
        next(first.glob("*.tflite")).write_bytes(b"damaged")
        with pytest.raises(IntegrityError):
            rollback(cdn, first.name)
        assert Pointer.from_bytes((cdn / POINTER_NAME).read_bytes()).dense_version == "kir-second"


class TestInterruptions:
    @pytest.mark.parametrize("at", ["_write_version", "flush_tree", "_point"])
    def test_before_the_pointer_nothing_has_changed(
        self, cdn: Path, converted: Path, monkeypatch: pytest.MonkeyPatch, at: str
    ) -> None:
        def die(*_: Any, **__: Any) -> None:
            raise OSError("power cut")

        current = check_published(cdn).current
        renamed(converted, "kir-second")
        monkeypatch.setattr(module, at, die)
        with pytest.raises(OSError, match="power cut"):
            publish(converted, cdn)
        assert check_published(cdn).current == current
        monkeypatch.undo()
        assert publish(converted, cdn).moved
        assert not [p for p in cdn.rglob("*.part")]

    def test_the_pointer_is_old_or_new_and_never_half(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_durably(tmp_path / "pointer", b"old")

        def die(*_: Any) -> None:
            raise OSError("power cut")

        monkeypatch.setattr(os, "replace", die)
        with pytest.raises(OSError, match="power cut"):
            write_durably(path, b"new")
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["pointer"]


class TestDamage:
    @given(st.data())
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_flipped_byte_anywhere_is_traced_to_its_file(self, published: Path, data: Any) -> None:
        paths = sorted(p for p in published.rglob("*") if p.is_file())
        path = data.draw(st.sampled_from(paths))
        raw = path.read_bytes()
        at = data.draw(st.integers(0, len(raw) - 1))
        spoiled = bytearray(raw)
        spoiled[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(spoiled))
        try:
            with pytest.raises(KirError) as raised:
                check_published(published)
            assert path.name in str(raised.value.where)
        finally:
            path.write_bytes(raw)

    def test_a_missing_file(self, cdn: Path) -> None:
        victim = next(version_of(cdn).glob("*.npz"))
        victim.unlink()
        with pytest.raises(IntegrityError, match=victim.name):
            check_published(cdn)

    def test_an_extra_file(self, cdn: Path) -> None:
        (version_of(cdn) / "extra.tflite").write_bytes(b"x")
        with pytest.raises(IntegrityError, match=r"extra\.tflite"):
            check_published(cdn)

    def test_a_missing_manifest(self, cdn: Path) -> None:
        (version_of(cdn) / MANIFEST_NAME).unlink()
        with pytest.raises(IntegrityError, match="manifest"):
            check_published(cdn)

    def test_a_version_under_anothers_name(self, cdn: Path) -> None:
        directory = version_of(cdn)
        directory.rename(directory.with_name("kir-other"))
        with pytest.raises(IntegrityError, match="another version"):
            check_version(directory.with_name("kir-other"))

    def test_nothing_published(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="kir publish"):
            check_published(tmp_path)


class TestGoldens:
    def test_they_agree_on_the_machine_that_made_them(self, published: Path) -> None:
        assert "6 graphs agree" in check_goldens(version_of(published))

    def test_a_stray_output_is_named(self, cdn: Path) -> None:
        """Hashes are right, the numbers are not: a runtime that computes otherwise."""
        directory = version_of(cdn)
        manifest = Manifest.from_bytes((directory / MANIFEST_NAME).read_bytes())
        path = directory / manifest.golden.tensors["swipe/N9"]
        with np.load(path) as file:
            case = dict(file)
        case["scores"] = case["scores"] + np.float32(0.5)
        np.savez(path, **case)
        with pytest.raises(VerificationFailed, match=r"swipe/N9.*'scores' strays"):
            check_goldens(directory)


class TestNoConversion:
    def test_a_directory_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="kir convert model"):
            publish(tmp_path, tmp_path / "cdn")

    @pytest.mark.parametrize("damage", ["truncated", "missing"])
    def test_what_was_not_verified_is_not_published(self, converted: Path, tmp_path: Path, damage: str) -> None:
        path = next((converted / "graphs").glob("swipe*.tflite"))
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink()
        with pytest.raises(InputError, match=f"{path.name}: .*not the one that was verified"):
            publish(converted, tmp_path / "cdn")
        assert not (tmp_path / "cdn" / "current.json").exists()

    @pytest.mark.parametrize("name", ["model.json", "verification.json"])
    def test_unreadable_json(self, converted: Path, tmp_path: Path, name: str) -> None:
        (converted / name).write_text("{")
        with pytest.raises(InputError, match="unreadable"):
            publish(converted, tmp_path / "cdn")

    def test_another_format(self, converted: Path, tmp_path: Path) -> None:
        (converted / "model.json").write_text('{"format": "kir-converted/9"}')
        with pytest.raises(InputError, match="another format"):
            publish(converted, tmp_path / "cdn")
