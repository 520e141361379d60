"""ModelStore: what the CDN offers is taken whole and checked, or refused by name, and the running model stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import (
    DownloadError,
    IntegrityError,
    KirError,
    ManifestError,
    ModelStoreError,
    NoModelError,
    VersionMismatch,
)
from contract.manifest import MANIFEST_NAME, POINTER_NAME, Manifest
from edge import EdgeSession, InstalledModel, ModelStore
from edge._installed import device_files
from tests.edge.tiny_model import point_at

Hit = Callable[[Path], None]


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def manifest_of(cdn: Path, version: str) -> Manifest:
    return Manifest.from_bytes((cdn / "models" / version / MANIFEST_NAME).read_bytes())


def blobs_of(cdn: Path, *versions: str) -> set[str]:
    """Hashes of what a phone fetches of these versions."""
    manifests = [manifest_of(cdn, version) for version in versions]
    return {manifest.files[file].sha256 for manifest in manifests for file in device_files(manifest)}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def running(cdn: Path, cache: Path) -> ModelStore:
    """A store in which kir-a is active, and whose CDN now points at kir-b."""
    store = ModelStore(cache, cdn)
    store.activate(str(store.update()))
    point_at(cdn, "kir-b")
    return store


class TestUpdate:
    def test_a_first_start_fetches_and_activates_nothing_by_itself(self, cdn: Path, cache: Path) -> None:
        store = ModelStore(cache, cdn)
        assert store.update() == "kir-a"
        assert store.active_version() == ""
        with pytest.raises(NoModelError):
            store.active()
        assert store.activate("kir-a").dense_version == "kir-a"
        assert store.active().dense_version == "kir-a"

    def test_nothing_is_new_when_the_active_version_is_current(self, cdn: Path, cache: Path) -> None:
        store = ModelStore(cache, cdn)
        store.activate(str(store.update()))
        assert store.update() is None
        assert ModelStore(cache, cdn).update() is None

    def test_a_version_that_was_not_activated_is_offered_again(self, cdn: Path, cache: Path) -> None:
        assert ModelStore(cache, cdn).update() == ModelStore(cache, cdn).update() == "kir-a"

    def test_a_phone_fetches_shipped_graphs_only(self, cdn: Path, cache: Path) -> None:
        store = ModelStore(cache, cdn)
        store.update()
        model, manifest = store.load("kir-a"), manifest_of(cdn, "kir-a")
        assert set(model.paths) == set(device_files(manifest)) < set(manifest.files)
        with pytest.raises(IntegrityError, match="not here"):
            model.read(manifest.card)

    def test_fetch_all_brings_every_file(self, cdn: Path, cache: Path) -> None:
        store = ModelStore(cache, cdn, fetch="all")
        store.update()
        model = store.load("kir-a")
        assert set(model.paths) == set(model.manifest.files)
        assert model.read(model.manifest.card) == b"# kir-a\n"

    def test_files_are_shared_between_versions(self, cdn: Path, cache: Path) -> None:
        shutil.copytree(cdn / "models" / "kir-a", cdn / "models" / "kir-c")
        raw = (cdn / "models" / "kir-a" / MANIFEST_NAME).read_bytes()
        (cdn / "models" / "kir-c" / MANIFEST_NAME).write_bytes(raw.replace(b'"kir-a"', b'"kir-c"'))
        seen: list[str] = []
        store = ModelStore(cache, cdn, progress=lambda path, have, n_bytes: seen.append(path))
        store.update()
        n_blobs = len(list((cache / "blobs").iterdir()))
        assert seen
        seen.clear()
        point_at(cdn, "kir-c")
        assert store.update() == "kir-c"
        assert seen == []
        assert len(list((cache / "blobs").iterdir())) == n_blobs

    def test_progress_counts_up_to_each_files_size(self, cdn: Path, cache: Path) -> None:
        last: dict[str, tuple[int, int]] = {}
        store = ModelStore(cache, cdn, progress=lambda path, have, n_bytes: last.update({path: (have, n_bytes)}))
        store.update()
        assert len(last) == len(device_files(manifest_of(cdn, "kir-a")))
        assert all(have == n_bytes > 0 for have, n_bytes in last.values())

    def test_without_a_source_it_says_so(self, cache: Path) -> None:
        with pytest.raises(DownloadError, match="no source"):
            ModelStore(cache).update()

    def test_a_cdn_that_is_not_there(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match="no such CDN directory"):
            ModelStore(cache, tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DownloadError, match=POINTER_NAME):
            ModelStore(cache, tmp_path / "empty").update()

    def test_a_newer_runtime_is_needed(self, cdn: Path, cache: Path) -> None:
        path = cdn / "models" / "kir-a" / MANIFEST_NAME
        path.write_bytes(path.read_bytes().replace(b'"ai-edge-litert": "2.1.0"', b'"ai-edge-litert": "99.0"'))
        point_at(cdn, "kir-a")
        with pytest.raises(VersionMismatch, match=r"newer ai-edge-litert.*99\.0"):
            ModelStore(cache, cdn).update()

    def test_a_runtime_of_another_platform_is_not_judged(self, cdn: Path, cache: Path) -> None:
        path = cdn / "models" / "kir-a" / MANIFEST_NAME
        path.write_bytes(path.read_bytes().replace(b'"ai-edge-litert": "2.1.0"', b'"no-such-package-kir": "99.0"'))
        point_at(cdn, "kir-a")
        assert ModelStore(cache, cdn).update() == "kir-a"

    def test_a_manifest_under_another_name(self, cdn: Path, cache: Path) -> None:
        shutil.copytree(cdn / "models" / "kir-a", cdn / "models" / "kir-c")
        point_at(cdn, "kir-c")
        with pytest.raises(ManifestError, match=r"kir-c/manifest\.json.*another version"):
            ModelStore(cache, cdn).update()

    @pytest.mark.parametrize(("keyword", "value"), [("fetch", "some"), ("keep", 1)])
    def test_options_are_checked(self, cdn: Path, cache: Path, keyword: str, value: object) -> None:
        with pytest.raises(ModelStoreError):
            ModelStore(cache, cdn, **{keyword: value})  # type: ignore[arg-type]


class TestDamagedCdn:
    """Each published file in turn is damaged; every time it is refused by its name."""

    @pytest.mark.parametrize("damage", [flip_byte, truncate, lengthen])
    def test_every_file_of_the_version(self, running: ModelStore, cdn: Path, cache: Path, damage: Hit) -> None:
        store = ModelStore(cache, cdn, fetch="all")
        folder = cdn / "models" / "kir-b"
        names = sorted(path.name for path in folder.iterdir())
        assert len(names) > 20
        for name in names:
            original = (folder / name).read_bytes()
            damage(folder / name)
            with pytest.raises(KirError) as caught:
                store.update()
            assert name in str(caught.value), (name, str(caught.value))
            assert store.versions() == ["kir-a"]
            (folder / name).write_bytes(original)
        assert store.active().dense_version == "kir-a"
        assert store.update() == "kir-b"  # mended: nothing of the damage stuck

    @pytest.mark.parametrize("damage", [flip_byte, truncate, lengthen])
    def test_the_pointer(self, running: ModelStore, cdn: Path, damage: Hit) -> None:
        damage(cdn / POINTER_NAME)
        with pytest.raises(KirError, match=POINTER_NAME.replace(".", r"\.")):
            running.update()
        assert running.active().dense_version == "kir-a"

    def test_every_byte_of_the_pointer_matters(self, running: ModelStore, cdn: Path) -> None:
        raw = (cdn / POINTER_NAME).read_bytes()
        for place in range(0, len(raw), 7):
            (cdn / POINTER_NAME).write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
            with pytest.raises(KirError):
                running.update()

    def test_an_absent_file_is_named(self, running: ModelStore, cdn: Path) -> None:
        file = device_files(manifest_of(cdn, "kir-b"))[0]
        (cdn / "models" / "kir-b" / file).unlink()
        with pytest.raises(DownloadError, match=file):
            running.update()
        assert running.active().dense_version == "kir-a"

    def test_a_pointer_to_an_older_version_is_followed(self, running: ModelStore, cdn: Path) -> None:
        running.activate(str(running.update()))
        point_at(cdn, "kir-a")  # a rollback by the publisher: new metadata that names the older model
        assert running.update() == "kir-a"
        assert running.activate("kir-a").dense_version == "kir-a"


class TestDamagedCache:
    def test_a_corrupt_model_falls_back_to_the_last_that_worked(self, running: ModelStore, cache: Path) -> None:
        running.activate(str(running.update()))
        assert running.active().dense_version == "kir-b"
        model = running.load("kir-b")
        only_b = set(model.paths.values()) - set(running.load("kir-a").paths.values())
        spoilt = sorted(only_b)[0]
        flip_byte(spoilt)
        assert running.active().dense_version == "kir-a"
        name = next(file for file, path in model.paths.items() if path == spoilt)
        assert name in str(running.refused[0])
        with pytest.raises(IntegrityError, match=name):
            running.load("kir-b")

    def test_with_nothing_to_fall_back_on_the_file_is_named(self, cdn: Path, cache: Path) -> None:
        store = ModelStore(cache, cdn)
        model = store.activate(str(store.update()))
        file, path = next(iter(model.paths.items()))
        path.unlink()
        with pytest.raises(NoModelError, match=file) as caught:
            store.active()
        assert isinstance(caught.value.__cause__, IntegrityError)

    def test_update_mends_a_corrupt_blob(self, cdn: Path, cache: Path) -> None:
        store = ModelStore(cache, cdn)
        model = store.activate(str(store.update()))
        flip_byte(next(iter(model.paths.values())))
        assert store.update() == "kir-a"  # something was fetched: worth loading again
        assert store.active().dense_version == "kir-a"

    def test_a_spoilt_record_is_refused_by_name(self, running: ModelStore, cache: Path) -> None:
        flip_byte(cache / "versions" / "kir-a.json")
        with pytest.raises(NoModelError, match=r"kir-a\.json"):
            running.active()
        assert running.update() == "kir-b"

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "other"}', b"\xff\xfe"])
    def test_an_unreadable_local_pointer_means_nothing_active(
        self, running: ModelStore, cache: Path, content: bytes
    ) -> None:
        (cache / "active.json").write_bytes(content)
        assert running.active_version() == ""
        assert running.activate("kir-a").dense_version == "kir-a"

    def test_an_unknown_version(self, running: ModelStore) -> None:
        with pytest.raises(NoModelError, match=r"kir-x.*kir-a"):
            running.activate("kir-x")
        assert running.active_version() == "kir-a"


class Killed(BaseException):
    """The phone dies here."""


class TestKilledBetweenSteps:
    """Dies at the n-th step that writes, for every n; a new process then finds a whole model and can go on."""

    STEPS = ("replace", "fsync")

    def die_at(self, monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
        real, count = getattr(os, step), iter(range(10_000))

        def deadly(*args: object, **kwargs: object) -> object:
            if next(count) == number:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(os, step, deadly)

    @pytest.mark.parametrize("step", STEPS)
    def test_update_and_activate(
        self, running: ModelStore, cdn: Path, cache: Path, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deaths = 0
        for number in range(60):
            with monkeypatch.context() as patch:
                self.die_at(patch, step, number)
                try:
                    store = ModelStore(cache, cdn)
                    version = store.update()
                    if version is not None:
                        store.activate(version)
                    break
                except Killed:
                    deaths += 1
            after = ModelStore(cache, cdn).active().dense_version
            assert after in ("kir-a", "kir-b")
        assert deaths >= 4
        assert ModelStore(cache, cdn).active().dense_version == "kir-b"

    def test_in_the_middle_of_a_file(self, running: ModelStore, cdn: Path, cache: Path) -> None:
        def deadly(path: str, have: int, n_bytes: int) -> None:
            raise Killed

        with pytest.raises(Killed):
            ModelStore(cache, cdn, progress=deadly).update()
        assert ModelStore(cache, cdn).active().dense_version == "kir-a"
        assert ModelStore(cache, cdn).update() == "kir-b"

    def test_a_bad_part_of_before_does_not_stick(self, running: ModelStore, cdn: Path, cache: Path) -> None:
        manifest = manifest_of(cdn, "kir-b")
        for file in device_files(manifest):
            (cache / "parts").mkdir(exist_ok=True)
            (cache / "parts" / f"{manifest.files[file].sha256}.part").write_bytes(b"not its beginning")
        assert running.update() == "kir-b"
        assert list((cache / "parts").iterdir()) == []


class TestDeviceErrors:
    def test_a_full_disk(self, running: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(ModelStoreError, match="No space left"):
                running.update()
        assert running.active().dense_version == "kir-a"
        assert running.update() == "kir-b"

    def test_a_folder_that_is_a_file(self, cdn: Path, cache: Path) -> None:
        cache.mkdir()
        (cache / "parts").write_text("in the way")
        with pytest.raises(ModelStoreError, match="parts"):
            ModelStore(cache, cdn).update()

    def test_a_cache_that_can_not_be_made(self, cdn: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ModelStoreError, match="can't store"):
            ModelStore(tmp_path / "file" / "cache", cdn).update()


class TestRollback:
    def test_back_to_the_one_before(self, running: ModelStore) -> None:
        running.activate(str(running.update()))
        assert running.rollback().dense_version == "kir-a"
        assert running.active().dense_version == "kir-a"

    def test_what_was_rolled_back_is_not_offered_again(self, running: ModelStore, cdn: Path) -> None:
        running.activate(str(running.update()))
        running.rollback()
        assert running.update() is None
        point_at(cdn, "kir-pxtr")
        assert running.update() == "kir-pxtr"

    def test_by_name_it_may_come_back(self, running: ModelStore) -> None:
        running.activate(str(running.update()))
        running.rollback()
        running.activate("kir-b")
        assert running.active_version() == "kir-b"
        assert running.update() is None

    def test_nothing_to_go_back_to(self, running: ModelStore) -> None:
        with pytest.raises(NoModelError, match="no version to go back to"):
            running.rollback()
        assert running.active_version() == "kir-a"

    def test_a_corrupt_version_is_passed_over(self, running: ModelStore, cdn: Path) -> None:
        running.activate(str(running.update()))
        point_at(cdn, "kir-pxtr")
        running.activate(str(running.update()))
        model = running.load("kir-b")
        only_b = set(model.paths.values()) - set(running.load("kir-a").paths.values())
        flip_byte(sorted(only_b)[0])
        assert running.rollback().dense_version == "kir-a"


class TestKeep:
    def test_old_versions_and_their_files_go(self, cdn: Path, cache: Path) -> None:
        store = ModelStore(cache, cdn, keep=2)
        for version in ("kir-a", "kir-b", "kir-pxtr"):
            point_at(cdn, version)
            store.activate(str(store.update()))
        assert store.versions() == ["kir-b", "kir-pxtr"]
        assert {path.name for path in (cache / "blobs").iterdir()} == blobs_of(cdn, *store.versions())
        assert store.rollback().dense_version == "kir-b"

    def test_what_was_offered_and_never_ran_goes_when_the_cdn_moves_on(self, cdn: Path, cache: Path) -> None:
        store = ModelStore(cache, cdn, keep=2)
        store.activate(str(store.update()))
        for version in ("kir-b", "kir-pxtr", "kir-b", "kir-pxtr"):
            point_at(cdn, version)
            assert store.update() == version
            assert store.versions() == sorted(["kir-a", version])
            assert {path.name for path in (cache / "blobs").iterdir()} == blobs_of(cdn, "kir-a", version)

    def test_what_is_offered_stays_at_a_start(self, running: ModelStore, cache: Path) -> None:
        running.update()
        ModelStore(cache).prune()
        assert ModelStore(cache).load("kir-b").dense_version == "kir-b"

    @pytest.mark.parametrize("ends_by", [EdgeSession.maintain, EdgeSession.close])
    def test_a_session_drops_what_nothing_names(
        self, running: ModelStore, cdn: Path, cache: Path, ends_by: Callable[[EdgeSession], None]
    ) -> None:
        (cache / "parts").mkdir(exist_ok=True)
        leftovers = [cache / "parts" / f"{'0' * 64}.part", cache / "blobs" / ("0" * 64)]
        leftovers += [cache / "versions" / ".kir-x.json.new"]
        for path in leftovers:
            path.write_bytes(b"of an update that was killed")
        session = EdgeSession(5, running)
        assert session.start() == ""
        assert all(path.exists() for path in leftovers)  # a start reads, and is quick
        ends_by(session)
        assert not any(path.exists() for path in leftovers)
        assert running.active().dense_version == "kir-a"
        assert session.last_error is None

    def test_a_transfer_that_broke_off_is_not_dropped_while_it_is_wanted(
        self, running: ModelStore, cdn: Path, cache: Path
    ) -> None:
        seen: list[str] = []

        def die_in_the_second_file(path: str, have: int, n_bytes: int) -> None:
            seen.append(path)
            if len(set(seen)) == 2:
                raise Killed

        with pytest.raises(Killed):
            ModelStore(cache, cdn, progress=die_in_the_second_file).update()
        blobs = {path.name for path in (cache / "blobs").iterdir()}
        parts = [path.name for path in (cache / "parts").iterdir()]
        assert len(blobs - blobs_of(cdn, "kir-a")) == len(parts) == 1
        ModelStore(cache).prune()  # the next start
        assert {path.name for path in (cache / "blobs").iterdir()} == blobs
        assert [path.name for path in (cache / "parts").iterdir()] == parts
        point_at(cdn, "kir-pxtr")
        assert running.update() == "kir-pxtr"  # wanted no more
        assert {path.name for path in (cache / "blobs").iterdir()} == blobs_of(cdn, "kir-a", "kir-pxtr")
        assert list((cache / "parts").iterdir()) == []

    def test_a_version_that_is_loaded_is_not_dropped(self, running: ModelStore, cdn: Path, cache: Path) -> None:
        """An offered model waits for its page, and reads its graphs of lists when a search wants them."""
        running.update()
        held = running.load("kir-b")
        point_at(cdn, "kir-pxtr")
        other = ModelStore(cache, cdn, keep=2)
        assert other.update() == "kir-pxtr"
        assert other.versions() == ["kir-a", "kir-b", "kir-pxtr"]
        held.verify()
        assert running.activate("kir-b").dense_version == "kir-b"
        del held
        other.prune()
        assert other.versions() == ["kir-a", "kir-b", "kir-pxtr"]  # b is active now, a the one before, pxtr wanted

    def test_it_goes_once_nobody_holds_it(self, running: ModelStore, cdn: Path, cache: Path) -> None:
        running.update()
        held = running.load("kir-b")
        point_at(cdn, "kir-pxtr")
        running.update()
        del held
        running.prune()
        assert running.versions() == ["kir-a", "kir-pxtr"]
        assert {path.name for path in (cache / "blobs").iterdir()} == blobs_of(cdn, "kir-a", "kir-pxtr")

    @pytest.mark.parametrize("name", ["active.json", "versions/kir-a.json"])
    def test_with_a_spoilt_pointer_or_record_no_file_is_dropped(
        self, running: ModelStore, cdn: Path, cache: Path, name: str
    ) -> None:
        (cache / name).write_bytes(b"{")
        point_at(cdn, "kir-pxtr")
        running.update()
        assert blobs_of(cdn, "kir-a") <= {path.name for path in (cache / "blobs").iterdir()}
        assert "kir-a" in running.versions()

    def test_room_is_made_before_a_download(self, running: ModelStore, cdn: Path, cache: Path) -> None:
        """On a full disk the version that never ran is what stands in the new one's way."""
        running.update()
        only_b = blobs_of(cdn, "kir-b") - blobs_of(cdn, "kir-a")
        left: list[set[str]] = []

        def look(path: str, have: int, n_bytes: int) -> None:
            left.append(only_b & {blob.name for blob in (cache / "blobs").iterdir()})

        point_at(cdn, "kir-pxtr")
        ModelStore(cache, cdn, progress=look).update()
        assert only_b
        assert left
        assert not any(left)

    def test_a_running_model_survives_the_removal_of_its_files(self, cdn: Path, cache: Path) -> None:
        store = ModelStore(cache, cdn, keep=2)
        model = store.activate(str(store.update()))
        file = device_files(model.manifest)[0]
        content = model.read(file)  # a running engine holds such bytes
        shutil.rmtree(cache)
        assert len(content) == model.manifest.files[file].n_bytes
        with pytest.raises(IntegrityError, match=file):
            model.read(file)


class TestLocalPointer:
    def test_it_is_plain_json(self, running: ModelStore, cache: Path) -> None:
        running.activate(str(running.update()))
        data = json.loads((cache / "active.json").read_text())
        assert (data["version"], data["before"], data["refused"]) == ("kir-b", ["kir-a"], [])

    def test_activating_twice_changes_nothing(self, running: ModelStore, cache: Path) -> None:
        before = (cache / "active.json").read_bytes()
        running.activate("kir-a")
        assert (cache / "active.json").read_bytes() == before


class TestPublishedDirectory:
    def test_a_version_directory_and_a_cdn_open_alike(self, cdn: Path) -> None:
        by_version = InstalledModel.open_published(cdn / "models" / "kir-a")
        by_pointer = InstalledModel.open_published(cdn)
        assert by_version.manifest == by_pointer.manifest
        by_version.verify()

    def test_a_relative_path_opens_too(self, cdn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(cdn.parent)
        InstalledModel.open_published(cdn.name).verify()

    def test_another_directory_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(NoModelError, match=r"manifest\.json"):
            InstalledModel.open_published(tmp_path)

    def test_damage_is_found_when_a_file_is_read(self, cdn: Path) -> None:
        model = InstalledModel.open_published(cdn)
        file = device_files(model.manifest)[0]
        flip_byte(cdn / "models" / "kir-a" / file)
        with pytest.raises(IntegrityError, match=file):
            model.read(file)
