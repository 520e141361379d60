"""Models from a hostile CDN, over real HTTP: each attack that The Update Framework names is refused in words, and the
running model stays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, MetaFile, Timestamp

import edge._source
from contract.errors import DownloadError, IntegrityError, KirError, ModelStoreError, TrustError
from contract.manifest import POINTER_NAME
from convert.trust_keys import KEYS, Lifetimes, load_signers, make_keys
from edge import DirectorySource, HttpSource, ModelStore
from edge._installed import device_files
from tests.edge.signed_cdn import SignedCdn
from tests.edge.test_store import Hit, Killed, flip_byte, lengthen, manifest_of, truncate
from tests.edge.web_cdn import Cdn

ROLES = ("root", "targets", "release", "snapshot", "timestamp")


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here, and a disk takes milliseconds for each; the tests of failing devices bring their own."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def first_day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed CDN, and the cache of a phone on which kir-a runs; copied for each test."""
    folder = tmp_path_factory.mktemp("first-day")
    signed = SignedCdn(folder)
    store = ModelStore(folder / "cache", signed.path, root=signed.root)
    store.activate(str(store.update()))
    return folder


@pytest.fixture
def signed(first_day: Path, tmp_path: Path) -> SignedCdn:
    for name in ("cdn", "keys"):
        shutil.copytree(first_day / name, tmp_path / name)
    return SignedCdn(tmp_path)


@pytest.fixture
def web(signed: SignedCdn) -> Iterator[Cdn]:
    with Cdn(signed.path) as server:
        yield server


@pytest.fixture
def phone(signed: SignedCdn, web: Cdn, tmp_path: Path) -> Callable[[], ModelStore]:
    """A newly started phone, always with the same cache and the root.json of the first day."""
    return lambda: ModelStore(tmp_path / "cache", HttpSource(web.url, timeout_s=5), root=signed.first_root)


@pytest.fixture
def running(phone: Callable[[], ModelStore], first_day: Path, tmp_path: Path) -> ModelStore:
    """A phone on which kir-a runs."""
    shutil.copytree(first_day / "cache", tmp_path / "cache", symlinks=True)
    return phone()


def refuses(store: ModelStore, says: str, kind: type[KirError] = TrustError) -> None:
    """An update fails in these words; kir-a goes on, in this process and in the next."""
    with pytest.raises(kind, match=says):
        store.update()
    assert store.active().dense_version == "kir-a"
    assert ModelStore(store.cache).active().dense_version == "kir-a"


class TestOptions:
    @pytest.mark.parametrize("place", ["http://cdn.example", HttpSource("https://cdn.example")])
    def test_http_without_a_root_is_refused(self, tmp_path: Path, place: str | HttpSource) -> None:
        with pytest.raises(ModelStoreError, match=r"cdn\.example.*trusted by their signature.*root=.*unsigned=True"):
            ModelStore(tmp_path, place)
        ModelStore(tmp_path, place, unsigned=True)

    def test_a_directory_needs_none_and_may_have_one(self, signed: SignedCdn, tmp_path: Path) -> None:
        assert ModelStore(tmp_path / "1", signed.path).update() == "kir-a"
        assert ModelStore(tmp_path / "2", DirectorySource(signed.path), root=signed.root).update() == "kir-a"
        signed.metadata("timestamp.json").unlink()
        with pytest.raises(DownloadError, match=r"metadata/timestamp\.json"):
            ModelStore(tmp_path / "2", signed.path, root=signed.root).update()

    def test_both_at_once_contradict(self, signed: SignedCdn, tmp_path: Path) -> None:
        with pytest.raises(ModelStoreError, match="not both"):
            ModelStore(tmp_path, signed.path, root=signed.root, unsigned=True)

    def test_a_root_that_is_not_there(self, signed: SignedCdn, tmp_path: Path) -> None:
        with pytest.raises(ModelStoreError, match=r"nowhere\.json.*can't be read"):
            ModelStore(tmp_path, signed.path, root=tmp_path / "nowhere.json")

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"signed": {"_type": "root"}, "signatures": []}'])
    def test_a_root_that_is_none(self, signed: SignedCdn, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(TrustError, match=r"root\.json of the app"):
            ModelStore(tmp_path / "cache", signed.path, root=content).update()


class TestOrdinaryLife:
    def test_a_model_comes_and_goes_on(self, phone: Callable[[], ModelStore], signed: SignedCdn) -> None:
        store = phone()
        assert store.update() == "kir-a"
        store.activate("kir-a")
        assert phone().update() is None
        signed.release("kir-b")
        assert phone().update() == "kir-b"

    def test_metadata_already_trusted_are_not_fetched_again(self, running: ModelStore, web: Cdn) -> None:
        web.log.clear()
        assert running.update() is None
        asked = [path for path, _ in web.log if path.startswith("metadata/")]
        assert asked == ["metadata/2.root.json", "metadata/timestamp.json"]

    def test_a_rollback_by_the_publisher_is_new_metadata(
        self, running: ModelStore, signed: SignedCdn, phone: Callable[[], ModelStore]
    ) -> None:
        signed.release("kir-b")
        running.activate(str(running.update()))
        signed.release("kir-a")
        assert phone().update() == "kir-a"

    def test_a_renewal_brings_no_new_model(self, running: ModelStore, signed: SignedCdn) -> None:
        signed.publisher().refresh()
        assert running.update() is None

    def test_a_start_knows_nothing_of_tuf(self, running: ModelStore) -> None:
        code = (
            "import sys\nfrom edge import ModelStore\n"
            f"store = ModelStore({str(running.cache)!r}, 'http://127.0.0.1:1', root=b'never read')\n"
            "assert store.active().dense_version == 'kir-a'\n"
            "assert 'tuf' not in sys.modules and 'cryptography' not in sys.modules\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_signatures_are_verified_without_cryptography(self, signed: SignedCdn, web: Cdn, tmp_path: Path) -> None:
        """As on a phone: only what `pip install .` brings. A good signature passes, a spoilt one does not."""
        code = (
            "import sys\nsys.modules['cryptography'] = sys.modules['nacl'] = None\n"
            "from edge import ModelStore, TrustError\n"
            f"store = ModelStore({str(tmp_path / 'cache')!r}, {web.url!r}, root={str(signed.root)!r})\n"
            "try:\n    print(store.update())\nexcept TrustError as error:\n    print(error)\n"
        )
        said = []
        for _ in range(2):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            said.append(done.stdout)
            spoil_signature(signed.metadata("timestamp.json"))
        assert said[0] == "kir-a\n"
        assert "not signed by the keys" in said[1]


def spoil_signature(path: Path) -> None:
    """Another signature of the right form."""
    head, sep, tail = path.read_text().partition('"sig":"')
    path.write_text(head + sep + ("00000000" if not tail.startswith("00000000") else "11111111") + tail[8:])


class TestNoCdn:
    def test_down(self, running: ModelStore, web: Cdn) -> None:
        web.statuses = [503] * 9
        refuses(running, r"metadata/2\.root\.json.*answered 503", DownloadError)
        web.statuses = []
        web.socket.close()  # nobody listens any more
        refuses(running, "can't be reached", DownloadError)

    @pytest.mark.parametrize("name", ["metadata/timestamp.json", "metadata/2.snapshot.json", "metadata/2.release.json"])
    def test_a_metadata_file_is_absent(self, running: ModelStore, signed: SignedCdn, name: str) -> None:
        signed.release("kir-b")
        (signed.path / name).unlink()
        refuses(running, f"{name}.*404", DownloadError)


class TestDamage:
    @pytest.mark.parametrize("damage", [flip_byte, truncate, lengthen])
    def test_every_file_that_a_phone_reads(self, running: ModelStore, signed: SignedCdn, damage: Hit) -> None:
        signed.release("kir-b")
        manifest = manifest_of(signed.path, "kir-b")
        here = manifest_of(signed.path, "kir-a").files
        own = [file for file in device_files(manifest) if file not in here]  # in the order of their arrival
        files = ["metadata/timestamp.json", "metadata/2.snapshot.json", "metadata/2.release.json"]
        files += [signed_pointer(signed), "models/kir-b/manifest.json"]
        files += [f"models/kir-b/{name}" for name in own[:3]]
        for name in files:
            path = signed.path / name
            whole = path.read_bytes()
            damage(path)
            if name == "metadata/timestamp.json" and damage is lengthen:
                path.write_bytes(b"[" + whole)  # trailing spaces would still be the same JSON
            refuses(running, Path(name).name.replace(".", r"\."), ModelStoreError)
            path.write_bytes(whole)
        assert running.update() == "kir-b"  # nothing of it stuck

    def test_another_model_under_a_signed_pointers_name(self, running: ModelStore, signed: SignedCdn) -> None:
        before = signed.path / signed_pointer(signed)
        signed.release("kir-b")
        shutil.copyfile(before, signed.path / signed_pointer(signed))
        refuses(running, r"current\.json.*not the file that was signed")

    def test_the_unsigned_pointer_moves_nobody(self, running: ModelStore, signed: SignedCdn) -> None:
        from tests.edge.tiny_model import point_at

        point_at(signed.path, "kir-b")
        assert running.update() is None


def signed_pointer(signed: SignedCdn) -> str:
    """Where the pointer lies that a phone is led to."""
    import hashlib

    return f"{hashlib.sha256((signed.path / POINTER_NAME).read_bytes()).hexdigest()}.{POINTER_NAME}"


class TestReplay:
    def test_old_metadata_again(self, running: ModelStore, signed: SignedCdn) -> None:
        signed.publisher().refresh()
        old = signed.keep()
        signed.release("kir-b")
        assert running.update() == "kir-b"
        signed.replay(old)
        refuses(running, r"metadata/timestamp\.json.*older than metadata seen before")

    def test_old_metadata_again_after_a_restart(
        self, running: ModelStore, signed: SignedCdn, phone: Callable[[], ModelStore]
    ) -> None:
        old = signed.keep()
        signed.publisher().refresh()
        assert running.update() is None
        signed.replay(old)
        refuses(phone(), "older than metadata seen before")

    def test_frozen_until_it_expires(self, signed: SignedCdn, running: ModelStore) -> None:
        """The attacker replays the newest that there was; what signs it is two days old."""
        signed.release("kir-b", days_ago=2)
        refuses(running, r"timestamp\.json.*expired.*publisher must renew.*running model stays")

    @pytest.mark.parametrize("role", ROLES)
    def test_expiry_of_each_role(self, running: ModelStore, signed: SignedCdn, role: str) -> None:
        ended = Lifetimes(90, 90, 90, 90, 90).changed([f"{role}=1"])
        if role in ("root", "targets"):
            signed.publisher(ended, days_ago=2).rotate()
        else:
            signed.release("kir-b", ended, days_ago=2)
        refuses(running, "expired")
        signed.publisher().rotate()
        assert running.update() in ("kir-b", None)

    @pytest.mark.parametrize("role", ["snapshot", "release"])
    def test_parts_of_two_releases_mixed(self, running: ModelStore, signed: SignedCdn, role: str) -> None:
        before = signed.newest(role)
        signed.release("kir-b")
        after = signed.newest(role)
        assert before != after
        shutil.copyfile(before, after)
        refuses(running, f"{after.name}.*(not the file that was signed|of another release)")

    def test_a_snapshot_of_before_under_a_new_timestamp(self, running: ModelStore, signed: SignedCdn) -> None:
        """The thief of the online key alone can't bring back an older release."""
        old = signed.newest("snapshot").read_bytes()
        signed.release("kir-b")
        assert running.update() == "kir-b"
        sign_online(signed, old)
        refuses(running, "older than metadata seen before")


def sign_online(signed: SignedCdn, snapshot: bytes, timestamp_version: int = 50) -> None:
    """What the online key can do: sign an old snapshot's content as a new one, and a timestamp for it."""
    signer = load_signers(signed.keys)["online"]
    metadata: Metadata = Metadata.from_bytes(snapshot)
    metadata.signed.version = 49
    metadata.sign(signer)
    signed.metadata("49.snapshot.json").write_bytes(metadata.to_bytes())
    timestamp: Metadata = Metadata.from_bytes(signed.metadata("timestamp.json").read_bytes())
    assert isinstance(timestamp.signed, Timestamp)
    timestamp.signed.version = timestamp_version
    timestamp.signed.snapshot_meta = MetaFile(49)
    timestamp.sign(signer)
    signed.metadata("timestamp.json").write_bytes(timestamp.to_bytes())


def sign_again(path: Path, keys: Path, name: str) -> None:
    """The same content, signed by another key alone."""
    metadata: Metadata = Metadata.from_bytes(path.read_bytes())
    metadata.sign(load_signers(keys)[name])
    path.write_bytes(metadata.to_bytes())


class TestKeys:
    def test_everything_signed_by_somebody_else(self, running: ModelStore, signed: SignedCdn, tmp_path: Path) -> None:
        foreign = SignedCdn(tmp_path / "foreign", "kir-b")
        foreign.publisher().refresh()
        shutil.copytree(foreign.path, signed.path, dirs_exist_ok=True)
        refuses(running, r"timestamp\.json.*not signed by the keys that the app's root\.json leads to")

    def test_a_new_root_by_somebody_else(self, running: ModelStore, signed: SignedCdn, tmp_path: Path) -> None:
        foreign = SignedCdn(tmp_path / "foreign", "kir-b")
        foreign.rotate()
        shutil.copytree(foreign.path, signed.path, dirs_exist_ok=True)
        refuses(running, r"2\.root\.json.*not signed by the keys")

    @pytest.mark.parametrize("name", ["release", "online"])
    def test_one_key_exchanged(self, running: ModelStore, signed: SignedCdn, tmp_path: Path, name: str) -> None:
        """A release signed with another key of that name; the other keys are the true ones."""
        theirs = tmp_path / "theirs"
        make_keys(theirs, copy_from=signed.keys, renew=[name])
        signed.release("kir-b")
        for role in KEYS[name]:
            sign_again(signed.newest(role), theirs, name)
        if name == "release":
            signed.list_as_it_is()
        refuses(running, f"{KEYS[name][-1]}.json.*not signed by the keys")

    def test_root_rotated_while_the_phone_slept(self, running: ModelStore, signed: SignedCdn) -> None:
        """Every key has changed three times; the root.json of the app still leads to the newest."""
        for _ in range(3):
            signed.rotate()
        signed.release("kir-b")
        assert running.update() == "kir-b"
        running.activate("kir-b")
        assert running.active().dense_version == "kir-b"

    def test_a_new_phone_with_any_root_follows(self, signed: SignedCdn, web: Cdn, tmp_path: Path) -> None:
        signed.rotate(["root"])
        signed.rotate(["online"])
        for number in (1, 2, 3):
            root = signed.metadata(f"{number}.root.json")
            assert ModelStore(tmp_path / str(number), HttpSource(web.url), root=root).update() == "kir-a"

    def test_a_stolen_online_key_is_worth_nothing_after_a_rotation(
        self, running: ModelStore, signed: SignedCdn
    ) -> None:
        """The thief signed version 1000, so that no true one would be newer; the new key is taken all the same."""
        true = signed.keep()
        sign_online(signed, signed.newest("snapshot").read_bytes(), timestamp_version=1000)
        assert running.update() is None
        signed.replay(true, "timestamp.json")
        refuses(running, "older than metadata seen before")
        signed.rotate(["online"])
        signed.release("kir-b")
        assert running.update() == "kir-b"


class TestEndlessData:
    @pytest.mark.parametrize("name", ["metadata/2.root.json", "metadata/timestamp.json", "metadata/2.snapshot.json"])
    def test_metadata_that_never_end(self, running: ModelStore, signed: SignedCdn, web: Cdn, name: str) -> None:
        signed.release("kir-b")
        web.endless = {name}
        refuses(running, f"{name}.*longer", DownloadError)

    def test_metadata_longer_than_any_of_ours(self, running: ModelStore, signed: SignedCdn) -> None:
        signed.metadata("timestamp.json").write_bytes(b" " * 20_000)
        refuses(running, r"timestamp\.json.*longer")

    def test_a_pointer_that_never_ends(self, running: ModelStore, signed: SignedCdn, web: Cdn) -> None:
        signed.release("kir-b")
        web.endless = {signed_pointer(signed)}
        refuses(running, r"current\.json.*longer", DownloadError)

    def test_bytes_that_trickle_for_ever(self, running: ModelStore, web: Cdn, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(edge._source, "READ_S_MAX", 0.1)
        web.trickling = {"metadata/timestamp.json"}
        refuses(running, r"timestamp\.json.*too slow", DownloadError)


class TestDevice:
    @pytest.mark.parametrize("damage", [flip_byte, truncate, lambda path: path.write_bytes(b"")])
    def test_spoilt_metadata_of_before_are_fetched_anew(
        self, running: ModelStore, signed: SignedCdn, damage: Hit
    ) -> None:
        for name in ("timestamp.json", "snapshot.json", "release.json", "targets.json"):
            damage(running.cache / "trust" / name)
            assert running.update() is None
        signed.release("kir-b")
        assert running.update() == "kir-b"

    def test_a_lost_trust_folder_is_a_first_start(self, running: ModelStore) -> None:
        shutil.rmtree(running.cache / "trust")
        assert running.update() is None

    @pytest.mark.parametrize(
        ("step", "number", "reason"),
        [
            ("replace", 28, "No space left on device"),
            ("fsync", 28, "No space left on device"),
            ("symlink", 30, "Read-only file system"),
        ],
    )
    def test_a_device_that_can_not_write(
        self,
        running: ModelStore,
        signed: SignedCdn,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        number: int,
        reason: str,
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, reason)

        signed.release("kir-b")
        with monkeypatch.context() as patch:
            patch.setattr(os, step, refuse)
            refuses(running, reason, ModelStoreError)
        assert running.update() == "kir-b"

    def test_something_in_the_way(self, signed: SignedCdn, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "trust").write_text("")
        with pytest.raises(ModelStoreError, match="trust"):
            ModelStore(tmp_path / "cache", signed.path, root=signed.root).update()

    @pytest.mark.parametrize("step", ["replace", "fsync", "symlink", "remove"])
    def test_killed_at_any_step(
        self, running: ModelStore, signed: SignedCdn, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As tests/edge/test_store.py, with metadata: each step that writes, in turn, is the last one."""
        signed.rotate()
        signed.release("kir-b")
        real, deaths = getattr(os, step), 0
        for number in range(60):
            count = iter(range(10_000))

            def deadly(*args: object, count: Iterator[int] = count, last: int = number, **kwargs: object) -> object:
                if next(count) == last:
                    raise Killed
                return real(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(os, step, deadly)
                try:
                    store = ModelStore(running.cache, signed.path, root=signed.first_root)
                    store.activate(str(store.update()))
                    break
                except Killed:
                    deaths += 1
            assert ModelStore(running.cache).active().dense_version in ("kir-a", "kir-b")
        assert deaths >= 1
        assert ModelStore(running.cache).active().dense_version == "kir-b"

    def test_what_a_killed_download_left_is_cleared(self, running: ModelStore, signed: SignedCdn) -> None:
        (running.cache / "trust" / "tmpabc").write_bytes(b"half")
        signed.publisher().refresh()
        running.update()
        assert list((running.cache / "trust").glob("tmp*")) == []


def test_trust_errors_are_integrity_errors() -> None:
    assert issubclass(TrustError, IntegrityError)
