"""A directory of files, one line each: converted, published, or any other; and the command `kir inspect`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kir
from contract.errors import ConversionError, InputError, ManifestError
from convert.inspect_directory import InspectedDirectory, inspect_many, inspect_paths
from convert.inspection import Inspection
from convert.model import ConversionResult
from convert.publish import publish
from tests.convert import tiny_tflite as tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, one of them below."""
    (tmp_path / "below").mkdir()
    tiny.write_chain(tmp_path / "a.tflite")
    tiny.write_chain(tmp_path / "below" / "b.tflite", layers=2)
    return tmp_path


@pytest.fixture(scope="module")
def listing(conversion: ConversionResult) -> InspectedDirectory:
    return inspect_many([conversion.directory])


class TestAnyDirectory:
    def test_files_below_it_under_their_folders(self, folder: Path) -> None:
        found = inspect_many([folder])
        assert [Path(one.path).name for one in found.files] == ["a.tflite", "b.tflite"]
        lines = found.table().splitlines()
        assert [str(folder), str(folder / "below")] == [line for line in lines[3:] if line.startswith("/")]

    def test_totals(self, folder: Path) -> None:
        totals = inspect_many([folder]).totals()
        assert totals["files"] == 2
        assert totals["parameters"] == 6 * 72
        assert totals["bytes"] == sum(path.stat().st_size for path in folder.rglob("*.tflite"))
        assert totals["shipped_files"] == 0

    def test_damaged_files_are_told_and_the_rest_is_shown(self, folder: Path) -> None:
        (folder / "cut.tflite").write_bytes((folder / "a.tflite").read_bytes()[:500])
        found = inspect_many([folder])
        assert [Path(one.path).name for one in found.damaged] == ["cut.tflite"]
        assert "! " in found.table()
        assert len(json.loads(json.dumps(found.to_json()))["damaged"]) == 1

    def test_none_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no \.tflite file"):
            inspect_many([tmp_path])

    def test_a_model_json_that_is_none(self, folder: Path) -> None:
        (folder / "model.json").write_text("{")
        with pytest.raises(InputError, match="unreadable"):
            inspect_many([folder])

    def test_a_manifest_that_is_none(self, folder: Path) -> None:
        (folder / "manifest.json").write_text("{}")
        with pytest.raises(ManifestError):
            inspect_many([folder])


class TestPaths:
    def test_one_file_is_told_in_full(self, folder: Path) -> None:
        assert isinstance(inspect_paths([folder / "a.tflite"]), Inspection)

    def test_one_damaged_file_is_its_error(self, folder: Path) -> None:
        (folder / "a.tflite").write_bytes(b"")
        with pytest.raises(ConversionError, match="empty"):
            inspect_paths([folder / "a.tflite"])

    def test_several_are_one_listing(self, folder: Path) -> None:
        found = inspect_paths([folder / "a.tflite", folder / "below", folder / "none.tflite"])
        assert isinstance(found, InspectedDirectory)
        assert (len(found.files), len(found.damaged)) == (2, 1)


class TestModels:
    def test_a_converted_one_names_graphs_and_variants(
        self, listing: InspectedDirectory, conversion: ConversionResult
    ) -> None:
        labels = [listing.labels[one.path] for one in listing.files]
        assert labels == sorted(labels)
        assert {"swipe/N9 float32", "watch/T1 int8-dynamic", "whole/N9 float32"} <= set(labels)
        assert len(labels) == len(list(conversion.directory.rglob("*.tflite")))

    def test_what_ships_is_marked_and_summed(self, listing: InspectedDirectory, conversion: ConversionResult) -> None:
        shipped = {f"{key} {v}" for key, v in conversion.verification.shipped.items() if not key.startswith("whole")}
        assert {listing.labels[path] for path in listing.shipped} == shipped
        assert listing.totals()["shipped_bytes"] == conversion.verification.shipped_bytes
        assert f"{len(shipped)} files" in listing.table().splitlines()[-1]

    def test_delegation_is_that_of_the_verification(
        self, listing: InspectedDirectory, conversion: ConversionResult
    ) -> None:
        for one in listing.files:
            graph, _, variant = listing.labels[one.path].partition(" ")
            assert one.partitions == conversion.verification.row(graph, variant).partitions

    def test_a_published_one_and_its_cdn(self, conversion: ConversionResult, tmp_path: Path) -> None:
        published = publish(conversion.directory, tmp_path)
        for path in (published.directory, tmp_path):
            found = inspect_many([path])
            assert found.totals()["shipped_bytes"] == conversion.verification.shipped_bytes
            assert all(found.labels[one.path] for one in found.files)

    def test_equal_files_under_one_name_have_both_labels(self, conversion: ConversionResult, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(conversion.directory, tmp_path / "model"))
        about = json.loads((copy / "model.json").read_text())
        variants = about["graphs"][0]["variants"]
        variants["again"] = variants["float32"]
        (copy / "model.json").write_text(json.dumps(about))
        labels = inspect_many([copy]).labels[str(copy / variants["float32"])]
        assert labels.split(", ")[1].endswith(" again")


class TestCommand:
    def test_one_file(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["inspect", str(folder / "a.tflite"), "--json", str(folder / "a.json")]) == 0
        assert "parameters 288" in capsys.readouterr().out
        assert json.loads((folder / "a.json").read_text())["operators"] == {"FULLY_CONNECTED": 4}

    def test_a_damaged_one_is_status_2_and_one_line(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "a.tflite").write_bytes(b"TFL3")
        assert kir.main(["inspect", str(folder / "a.tflite")]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1

    def test_one_among_several_is_status_2_and_the_rest_is_shown(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "below" / "b.tflite").write_bytes(b"")
        assert kir.main(["inspect", str(folder)]) == 2
        assert "1 files" in capsys.readouterr().out

    def test_it_needs_neither_torch_nor_tensorflow(self, folder: Path) -> None:
        """What the plain install lacks: a phone-like Linux can look at the file that it was sent."""
        code = (
            "import sys; sys.modules.update(dict.fromkeys(('torch', 'tensorflow', 'onnx', 'ai_edge_quantizer')))\n"
            f"import kir; sys.exit(kir.main(['inspect', {str(folder)!r}]))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(kir.__file__).parent, stdin=subprocess.DEVNULL, capture_output=True
        )
        assert result.returncode == 0, result.stderr.decode()
