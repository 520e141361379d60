"""Disks that refuse for real, under a process of its own: full, too small for a file, read-only. The model goes on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from contract.errors import ModelStoreError, NoModelError
from edge import ModelStore
from edge._installed import device_files
from tests.conftest import OWN_MOUNTS
from tests.edge.test_store import manifest_of
from tests.edge.tiny_model import point_at

REPOSITORY = Path(__file__).resolve().parents[2]
FREE_KIB = 120  # above a manifest, below the files of a model
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
NEARLY_FULL = (
    'mkdir "$1.full" && mount -t tmpfs -o size=4m none "$1.full" && cp -a "$1/." "$1.full" && '
    'mount -o "remount,size=$(($(df -k --output=used "$1.full" | tail -1) + ' + str(FREE_KIB) + '))k" "$1.full" && '
    'mount --bind "$1.full" "$1" && shift && exec "$@"'
)


@pytest.fixture
def cache(cdn: Path, tmp_path: Path) -> Path:
    """kir-a is active, and the CDN has moved on to kir-b."""
    cache = tmp_path / "disk" / "cache"
    store = ModelStore(cache, cdn)
    store.activate(str(store.update()))
    point_at(cdn, "kir-b")
    return cache


def live(cdn: Path, *caches: Path, file_bytes_max: int = 0, under: Sequence[str] = ()) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.edge.poor_phone", str(file_bytes_max), str(cdn), *map(str, caches)]
    done = subprocess.run([*under, *command], capture_output=True, text=True, cwd=REPOSITORY, timeout=200)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def goes_on(told: dict[str, Any], update_error: str) -> None:
    """kir-a started and chose before and after, and the update failed with one clear error."""
    assert (told["start"], told["first"], told["active"]) == ("", "kir-a", "kir-a")
    assert re.fullmatch(rf"ModelStoreError: .*this device can't store the model; {update_error}.*", told["update"])


def whole_after(cache: Path, cdn: Path) -> None:
    """What was left is a cache that starts and can be updated."""
    assert ModelStore(cache).active().dense_version == "kir-a"
    store = ModelStore(cache, cdn)
    assert store.activate(str(store.update())).dense_version == store.active_version() != "kir-a"


def test_a_write_that_fails_in_mid_download(cache: Path, cdn: Path) -> None:
    manifest = manifest_of(cdn, "kir-b")
    largest = max(manifest.files[file].n_bytes for file in device_files(manifest))
    limit = largest - 1_000
    assert limit > len(manifest.to_bytes())  # small files can be written
    (told,) = live(cdn, cache, file_bytes_max=limit)
    goes_on(told, "got File too large")
    assert f"{cache}/parts/" in told["update"]
    assert max(part.stat().st_size for part in (cache / "parts").iterdir()) == limit  # it did begin
    whole_after(cache, cdn)


@pytest.mark.mounts
def test_a_disk_that_fills_up_in_mid_download(cache: Path, cdn: Path) -> None:
    (told,) = live(cdn, cache, under=[*OWN_MOUNTS, "sh", "-ec", NEARLY_FULL, "sh", str(cache)])
    goes_on(told, "got No space left on device")
    assert f"{cache}/parts/" in told["update"]


@pytest.mark.mounts
def test_a_cache_that_is_read_only_as_a_whole(cache: Path, cdn: Path) -> None:
    ModelStore(cache, cdn).update()
    point_at(cdn, "kir-pxtr")
    disk = str(cache.parent)
    absent = cache.parent / "absent"
    told, new = live(cdn, cache, absent, under=[*OWN_MOUNTS, "sh", "-ec", READ_ONLY, "sh", disk])
    goes_on(told, "got Read-only file system")
    assert f"{cache}/update.lock" in told["update"]
    assert told["maintained"] == ""  # nothing can be dropped there, which is no error
    assert told["then"] == "kir-b"  # it took over all the same, and the next start decides again
    assert told["last_error"].startswith(f"{cache}/lock: this device can't store the model; got Read-only file system")
    assert (new["start"], new["first"]) == ("no_model", "")  # the server's order
    assert new["update"].startswith(f"ModelStoreError: {absent}: this device can't store the model")
    whole_after(cache, cdn)


@pytest.mark.parametrize("folder", ["blobs", "parts", "versions"])
def test_a_folder_that_can_not_be_made(cdn: Path, tmp_path: Path, folder: str) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / folder).symlink_to(tmp_path / "gone" / "away")  # is no folder, and none can be made in its place
    store = ModelStore(cache, cdn)
    with pytest.raises(ModelStoreError, match=rf"cache/{folder}.*this device can't store the model"):
        store.update()
    with pytest.raises(NoModelError):
        store.active()
    store.prune()
