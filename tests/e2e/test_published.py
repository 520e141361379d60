"""A published model in the hands of a device: golden cases, and every file damaged in turn."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contract.errors import KirError
from convert.check_published import check_published
from edge import InstalledModel, ModelStore, replay
from tests.e2e.conftest import SmallLoop


def published_files(cdn: Path) -> list[Path]:
    return sorted(path for path in cdn.rglob("*") if path.is_file())


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    if how == "truncated":
        return content[:-1]
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_golden_cases_and_session_replay(small_loop: SmallLoop) -> None:
    report = replay(InstalledModel.open_published(small_loop.paths.cdn))
    assert report.ok, report.table()


def test_the_publisher_accepts_what_it_published(small_loop: SmallLoop) -> None:
    check_published(small_loop.paths.cdn)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_every_damaged_file_is_refused_by_name_and_the_running_model_stays(
    small_loop: SmallLoop, tmp_path: Path, how: str
) -> None:
    """Device with the first version; the second one is published with one file damaged, each file in turn."""
    from convert.publish import publish

    cdn = tmp_path / "cdn"
    shutil.copytree(small_loop.paths.cdn, cdn)
    publish(small_loop.paths.model("kir-2"), cdn, keys=small_loop.paths.keys)
    device = ModelStore(tmp_path / "cache", small_loop.paths.cdn, fetch="all")
    assert device.update() == small_loop.first
    device.activate(small_loop.first)
    tried = [cdn / "current.json", *published_files(cdn / "models" / small_loop.second)]
    assert len(tried) > 10
    for path in tried:
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, how))
        store = ModelStore(tmp_path / "cache", cdn, fetch="all")
        with pytest.raises(KirError, match=path.name):
            store.update()
        with pytest.raises(KirError, match=path.name):
            check_published(cdn)
        assert store.active().dense_version == small_loop.first
        path.write_bytes(whole)
    assert ModelStore(tmp_path / "cache", cdn, fetch="all").update() == small_loop.second
