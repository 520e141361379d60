"""Device classes from a file to phones: refused in one error, or published with goldens of their own that hold."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.device_class import DeviceClass
from contract.errors import InputError, IntegrityError, KirError, ManifestError, VerificationFailed
from contract.golden import GoldenSession, SwipeStep
from contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from convert.check_published import check_published, check_version
from convert.classes import PublishedModel, read_classes, session_by, with_goldens
from convert.files import sha256_of
from convert.inspect_directory import inspect_many
from convert.kir_job import SESSION
from convert.model import ConversionResult
from convert.publish import publish
from convert.quantize import FLOAT
from convert.replay import check_goldens
from convert.report import Verification
from edge import Device, Engine, ModelStore, replay
from kir import main

INT8 = "int8-dynamic"
DOTPROD = Device(frozenset({"asimd", "asimddp"}), 6_000)
OLD = Device(frozenset({"asimd"}), 2_000)


def other(conversion: ConversionResult, graph: str) -> str:
    """int8 where float ships and float elsewhere."""
    shipped = next(v for key, v in conversion.verification.shipped.items() if key.startswith(f"{graph}/"))
    return INT8 if shipped == FLOAT else FLOAT


def written(path: Path, *classes: dict[str, Any]) -> Path:
    path.write_text(json.dumps(classes))
    return path


@pytest.fixture(scope="module")
def told(conversion: ConversionResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phones with asimddp run another variant of watch and swipe; all others from 1 GiB what ships, by name."""
    variants = {graph: other(conversion, graph) for graph in ("watch", "swipe")}
    return written(
        tmp_path_factory.mktemp("classes") / "classes.json",
        {"name": "dotprod", "cpu": ["asimddp"], "memory_mib_min": 3_000, "variants": variants},
        {"name": "others", "memory_mib_min": 1_024, "variants": {}},
    )


@pytest.fixture(scope="module")
def published(conversion: ConversionResult, told: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CDN with that one version; read only."""
    root = tmp_path_factory.mktemp("cdn")
    publish(conversion.directory, root, classes=told)
    return root


def manifest_of(cdn: Path) -> Manifest:
    (path,) = cdn.glob(f"models/*/{MANIFEST_NAME}")
    return Manifest.from_bytes(path.read_bytes())


class TestPublished:
    def test_each_phone_fetches_and_runs_its_own(
        self, published: Path, conversion: ConversionResult, tmp_path: Path
    ) -> None:
        for number, (device, name) in enumerate([(DOTPROD, "dotprod"), (OLD, "others"), (Device(), "")]):
            store = ModelStore(tmp_path / str(number), published, device=device)
            model = store.activate(store.update() or "")
            assert model.device_class == name
            want = other(conversion, "swipe") if name == "dotprod" else conversion.verification.shipped["swipe/N9"]
            assert Engine(model).variant == want
            variants = model.manifest.graph("swipe", "N9").variants
            assert [variant.name for variant in variants if variant.file in model.paths] == [want]

    def test_the_goldens_of_every_class_hold(self, published: Path) -> None:
        """As a phone replays them: tensors within each variant's tolerance, the session's scores within the class's."""
        report = replay(published)
        assert report.ok, report.table()
        mine = [line for line in report.lines if line.case.startswith("dotprod: session")]
        assert len(mine) == sum(line.case.startswith("session") for line in report.lines) > 10
        assert max(line.max_abs for line in mine) <= 1e-3  # not as loose as what int8 differs by from float

    def test_the_goldens_are_the_classs_own(self, published: Path, conversion: ConversionResult) -> None:
        manifest = manifest_of(published)
        dotprod, others = manifest.device_classes
        assert set(dotprod.golden_tensors) == {"watch/T1", "watch/T3", "swipe/N9"}
        assert dotprod.golden_session not in ("", manifest.golden.session)
        assert dotprod.verification["session_to_float_whole"] != manifest.verification["session_to_float_whole"]
        assert (others.golden_tensors, others.golden_session) == ({}, "")

    def test_another_variant_in_its_place_does_not_hold(self, published: Path, tmp_path: Path) -> None:
        """The session is compared closely enough to tell variants apart."""
        cdn = Path(shutil.copytree(published, tmp_path / "cdn"))
        manifest = manifest_of(cdn)
        one = manifest.device_classes[0]
        wrong = replace(one, golden_session="", golden_tensors={}, verification={})
        path = cdn / "models" / manifest.dense_version / MANIFEST_NAME
        path.write_bytes(replace(manifest, device_classes=(wrong,)).to_bytes())
        report = replay(path.parent)
        assert not any(line.case.startswith("dotprod: swipe") and line.ok for line in report.lines)

    def test_the_card_and_kir_inspect_tell_them(self, published: Path, conversion: ConversionResult) -> None:
        manifest = manifest_of(published)
        card = (published / "models" / manifest.dense_version / manifest.card).read_text()
        assert "| dotprod | asimddp, from 3000 MiB | swipe " in card
        assert "| others | from 1024 MiB | - |" in card
        found = inspect_many([published])
        assert f"device class dotprod (asimddp, from 3000 MiB): swipe {other(conversion, 'swipe')}" in found.table()
        assert found.to_json()["device_classes"] == list(found.classes)

    def test_the_check_runs_the_goldens_of_every_class(self, published: Path, tmp_path: Path) -> None:
        manifest = manifest_of(published)
        check_published(published)
        check_goldens(published / "models" / manifest.dense_version)
        folder = Path(shutil.copytree(published, tmp_path / "cdn")) / "models" / manifest.dense_version
        with np.load(folder / manifest.golden.tensors["swipe/N9"]) as file:
            np.savez(folder / "wrong.npz", **file)  # outputs of what ships, as another file
        wrong = FileEntry(sha256_of(folder / "wrong.npz"), (folder / "wrong.npz").stat().st_size)
        one = replace(manifest.device_classes[0], golden_tensors={"swipe/N9": "wrong.npz"})
        changed = replace(manifest, device_classes=(one,), files={**manifest.files, "wrong.npz": wrong})
        (folder / MANIFEST_NAME).write_bytes(changed.to_bytes())
        with pytest.raises(VerificationFailed, match=f"swipe/N9 {one.variants['swipe']}: 'scores' strays"):
            check_goldens(folder)

    def test_a_session_of_another_version_is_found(self, published: Path, tmp_path: Path) -> None:
        cdn = Path(shutil.copytree(published, tmp_path / "cdn"))
        manifest = manifest_of(cdn)
        folder = cdn / "models" / manifest.dense_version
        old = manifest.device_classes[0].golden_session
        raw = (folder / old).read_bytes().replace(manifest.dense_version.encode(), b"kir-other")
        name = f"{hashlib.sha256(raw).hexdigest()[:20]}.json"
        (folder / old).unlink()
        (folder / name).write_bytes(raw)
        files = {name: FileEntry(hashlib.sha256(raw).hexdigest(), len(raw)), **manifest.files}
        del files[old]
        one = replace(manifest.device_classes[0], golden_session=name)
        spoilt = replace(manifest, device_classes=(one, *manifest.device_classes[1:]), files=files)
        (folder / MANIFEST_NAME).write_bytes(spoilt.to_bytes())
        with pytest.raises(IntegrityError, match="golden session of another version"):
            check_version(folder)

    def test_the_same_again_changes_nothing(self, published: Path, conversion: ConversionResult, told: Path) -> None:
        assert not publish(conversion.directory, published, classes=told).moved
        with pytest.raises(ManifestError, match="other content"):
            publish(conversion.directory, published)

    def test_operators_outside_xnnpack_stand_in_the_manifest(self, published: Path) -> None:
        counts = [v.left_out for graph in manifest_of(published).graphs for v in graph.variants]
        assert all(count is not None and count < 5 for count in counts)


class TestRefused:
    @pytest.mark.parametrize(
        ("what", "change"),
        [
            ("names an absent variant", {"variants": {"watch": "int4"}}),
            ("names no graph", {"variants": {"wach": FLOAT}}),
            ("names no CPU flags", {"cpu": ["ASIMDDP"]}),
            ("needs no such memory", {"memory_mib_min": -1}),
            ("unknown keys: memory_mb", {"memory_mb": 3}),
            ("DeviceClass.cpu must be a list", {"cpu": "asimddp"}),
            ("unknown keys: golden_session", {"golden_session": "x.json"}),
        ],
    )
    def test_in_one_error_and_nothing_is_published(
        self, conversion: ConversionResult, tmp_path: Path, what: str, change: dict[str, Any]
    ) -> None:
        path = written(tmp_path / "classes.json", {"name": "dotprod", "cpu": ["asimddp"], "variants": {}, **change})
        with pytest.raises(KirError, match=what):
            publish(conversion.directory, tmp_path / "cdn", classes=path)
        assert [found for found in (tmp_path / "cdn").rglob("*") if found.is_file()] == []

    @pytest.mark.parametrize("text", ["", "{}", "[3]", "[{}]", "[" * 100_000, '[{"variants": {}}]'])
    def test_a_file_that_holds_no_classes(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "classes.json"
        path.write_text(text)
        with pytest.raises(InputError, match="no device classes"):
            read_classes(path)
        with pytest.raises(InputError, match="no device classes"):
            read_classes(tmp_path / "absent.json")

    def test_with_rollback(self, told: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["publish", "--rollback", "kir-x", "--cdn", "cdn", "--classes", str(told)]) != 0
        assert "--classes goes into what is published" in capsys.readouterr().err


def changed(report: Verification, change: Callable[[Any], Any]) -> Verification:
    return replace(report, rows=tuple(change(row) for row in report.rows))


class TestGates:
    @pytest.fixture
    def model(self, conversion: ConversionResult) -> PublishedModel:
        about = json.loads((conversion.directory / "model.json").read_text())
        return PublishedModel(conversion.directory, about, conversion.verification, None)

    def test_a_variant_that_missed_its_gate(self, model: PublishedModel) -> None:
        failed = changed(model.report, lambda row: replace(row, passed=row.passed and row.variant != INT8))
        one = DeviceClass("dotprod", {"watch": INT8}, ("asimddp",))
        with pytest.raises(InputError, match=r"missed its gate.*watch/T1 int8-dynamic"):
            with_goldens(replace(model, report=failed), [one], b"")

    def test_variants_that_do_not_rank_together(
        self, model: PublishedModel, conversion: ConversionResult, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from convert import classes as module
        from convert.measure import Ranking

        seen = iter([Ranking(0.5, 1, 1), Ranking(1.0, 1, 1)])  # the class, then what ships
        monkeypatch.setattr(module, "ranking", lambda want, got: next(seen))
        session = (conversion.directory / SESSION).read_bytes()
        one = DeviceClass("dotprod", {"watch": other(conversion, "watch")}, ("asimddp",))
        with pytest.raises(VerificationFailed, match=r"'dotprod'.*do not rank.*0\.5000"):
            with_goldens(model, [one], session)

    def test_the_session_of_what_ships_is_found_again(
        self, model: PublishedModel, conversion: ConversionResult
    ) -> None:
        """From the published files alone, without the checkpoint: the same bytes."""
        golden = GoldenSession.from_bytes((conversion.directory / SESSION).read_bytes())
        again, samples = session_by(replace(model, list_reward=_reward(model)), golden, model.runs({}))
        assert again.to_bytes() == golden.to_bytes()
        assert len(samples) == sum(isinstance(step, SwipeStep) for step in golden.steps)


def _reward(model: PublishedModel) -> Any:
    from contract.beam import ListReward

    return ListReward.from_json(model.about["list_reward"], model.tasks)
