"""Device classes on the phone: what this device is, which variants it takes, and a class that changes under it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contract.device_class import DeviceClass
from contract.errors import ManifestError
from contract.manifest import MANIFEST_NAME, Manifest, Variant
from edge import Device, Engine, InstalledModel, ModelStore, replay
from edge._installed import device_files
from tests.edge import tiny_model

X86 = """processor\t: 0
flags\t\t: fpu avx2 avx_vnni
bugs\t\t: spectre_v1
processor\t: 1
flags\t\t: fpu avx2
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm
CPU part\t: 0xd4d

processor\t: 4
Features\t: fp asimd asimddp
"""
OLD = Device(frozenset({"asimd"}), 8_000)
DOTPROD = Device(frozenset({"asimd", "asimddp"}), 8_000)
SMALL = Device(frozenset({"asimd", "asimddp"}), 1_500)


class TestThisDevice:
    def test_flags_are_those_of_every_core(self) -> None:
        assert Device.of_text(X86, "").cpu == {"fpu", "avx2"}
        assert Device.of_text(ARM, "").cpu == {"fp", "asimd", "asimddp"}

    def test_memory_is_whole_mib_of_the_total(self) -> None:
        assert Device.of_text("", "MemFree: 1 kB\nMemTotal:        5861204 kB\n").memory_mib == 5723

    @pytest.mark.parametrize("meminfo", ["", "MemTotal:\n", "MemTotal: many kB\n", "MemTotal: -5 kB\n", "MemTotal: kB"])
    def test_what_is_not_told_is_nothing(self, meminfo: str) -> None:
        assert Device.of_text("model name : x\n", meminfo) == Device()

    def test_this_machine_tells_both_and_is_read_once(self) -> None:
        assert Device.this().cpu
        assert Device.this().memory_mib > 100
        assert Device.this() is Device.this()

    def test_files_that_can_not_be_read_are_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from edge import _device

        def refuse(path: Path, **_: object) -> str:
            raise PermissionError(13, "no", str(path))

        monkeypatch.setattr(Path, "read_text", refuse)
        assert _device._text("/proc/cpuinfo") == ""


@pytest.fixture
def classed(cdn: Path) -> Path:
    """kir-a again, with another variant of `swipe` and `watch` for phones with asimddp: other bytes, same net."""
    folder = cdn / "models" / "kir-a"
    published = Manifest.from_bytes((folder / MANIFEST_NAME).read_bytes())
    out = tiny_model.Publisher(cdn, "kir-a")
    out.files = dict(published.files)
    graphs = []
    for graph in published.graphs:
        if graph.name in ("swipe", "watch"):
            file = out.add((folder / graph.variant().file).read_bytes() + bytes(16), "tflite")
            graph = replace(graph, variants=(*graph.variants, Variant("int8-dynamic", file, 1e-4)))
        graphs.append(graph)
    one = DeviceClass("dotprod", {"swipe": "int8-dynamic", "watch": "int8-dynamic"}, ("asimddp",), 3_000)
    out.finish(replace(published, graphs=tuple(graphs), device_classes=(one,)))
    return cdn


def variants(model: InstalledModel) -> dict[str, str]:
    return {graph.name: graph.ship for graph in model.manifest.graphs}


class TestWhatAPhoneTakes:
    @pytest.mark.parametrize(
        ("device", "name", "swipe"),
        [(DOTPROD, "dotprod", "int8-dynamic"), (OLD, "", "float32"), (SMALL, "", "float32"), (Device(), "", "float32")],
    )
    def test_it_fetches_and_runs_its_classs_files_alone(
        self, classed: Path, tmp_path: Path, device: Device, name: str, swipe: str
    ) -> None:
        store = ModelStore(tmp_path / "cache", classed, device=device)
        model = store.activate(store.update() or "")
        assert model.device_class == name
        assert variants(model) == variants(model) | {"swipe": swipe, "watch": swipe, "page": "float32"}
        assert set(model.paths) == set(device_files(model.manifest))
        assert {path.name for path in (store.cache / "blobs").iterdir()} == {
            model.manifest.files[file].sha256 for file in model.paths
        }
        assert Engine(model).variant == swipe

    def test_without_a_device_it_is_this_one(self, classed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("edge._installed.Device.this", lambda: DOTPROD)
        assert InstalledModel.open_published(classed).device_class == "dotprod"
        monkeypatch.setattr("edge._installed.Device.this", lambda: OLD)
        assert InstalledModel.open_published(classed).device_class == ""

    def test_a_class_by_name_whatever_the_device(self, classed: Path) -> None:
        assert variants(InstalledModel.open_published(classed, OLD, device_class="dotprod"))["swipe"] == "int8-dynamic"
        assert variants(InstalledModel.open_published(classed, DOTPROD, device_class=""))["swipe"] == "float32"
        with pytest.raises(ManifestError, match="no such device class"):
            InstalledModel.open_published(classed, device_class="huge")

    def test_a_folder_is_replayed_by_every_class(self, classed: Path) -> None:
        report = replay(classed)
        assert report.ok, report.table()
        own = [line.case.removeprefix("dotprod: ") for line in report.lines if line.case.startswith("dotprod: ")]
        assert own == [line.case for line in report.lines if not line.case.startswith("dotprod: ")]

    def test_a_class_with_an_absent_variant_is_refused_at_opening(self, classed: Path) -> None:
        path = classed / "models" / "kir-a" / MANIFEST_NAME
        manifest = Manifest.from_bytes(path.read_bytes())
        (one,) = manifest.device_classes
        path.write_bytes(replace(manifest, device_classes=(replace(one, variants={"page": "int4"}),)).to_bytes())
        with pytest.raises(ManifestError, match="'dotprod' names an absent variant"):
            InstalledModel.open_published(classed)


class TestAClassThatChanges:
    """A new system may tell more of the same CPU, and a phone without a network goes on with the files it has."""

    def test_the_running_model_stays_until_an_update_brings_the_new_classs_files(
        self, classed: Path, tmp_path: Path
    ) -> None:
        cache = tmp_path / "cache"
        before = ModelStore(cache, classed, device=OLD)
        before.activate(before.update() or "")

        offline = ModelStore(cache, device=DOTPROD)
        assert offline.active().device_class == ""
        assert offline.refused == []

        online = ModelStore(cache, classed, device=DOTPROD)
        assert online.update() == "kir-a"
        assert online.active().device_class == "dotprod"
        assert online.update() is None

    def test_a_class_that_is_met_no_more_is_not_run(self, classed: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        before = ModelStore(cache, classed, device=DOTPROD)
        before.activate(before.update() or "")
        after = ModelStore(cache, classed, device=OLD)
        assert after.update() == "kir-a"
        assert after.active().device_class == ""
