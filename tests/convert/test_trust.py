"""Signing a CDN: keys, what is signed when, refusals, and publishers that are killed."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import kir
from contract.errors import InputError, IntegrityError, KirError, TrustError
from contract.manifest import POINTER_NAME
from convert.check_published import check_published
from convert.model import ConversionResult
from convert.publish import publish, rollback
from convert.trust import Publisher
from convert.trust_keys import KEYS, Lifetimes, load_signers, make_keys
from convert.trust_state import check_signed, is_signed, read_state
from edge import ModelStore
from tests.convert.test_publish import renamed
from tests.edge.signed_cdn import SignedCdn


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here, and a disk takes milliseconds for each."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def first_day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first-day")
    SignedCdn(folder)
    return folder


@pytest.fixture
def signed(first_day: Path, tmp_path: Path) -> SignedCdn:
    """A signed CDN of tiny models, kir-a current."""
    for name in ("cdn", "keys"):
        shutil.copytree(first_day / name, tmp_path / name)
    return SignedCdn(tmp_path)


def offered(signed: SignedCdn, cache: str = "cache") -> str | None:
    """What a phone with the first root.json would take."""
    return ModelStore(signed.folder / cache, signed.path, root=signed.first_root).update()


class TestKeys:
    def test_only_their_owner_may_read_them(self, signed: SignedCdn) -> None:
        assert stat.S_IMODE(signed.keys.stat().st_mode) == 0o700
        for name in KEYS:
            assert stat.S_IMODE((signed.keys / f"{name}.pem").stat().st_mode) == 0o600
        assert set(load_signers(signed.keys)) == set(KEYS)

    def test_they_are_never_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "keys").mkdir()
        with pytest.raises(InputError, match="never overwritten"):
            make_keys(tmp_path / "keys")
        assert list((tmp_path / "keys").iterdir()) == []

    def test_a_successor_has_the_others_keys(self, signed: SignedCdn, tmp_path: Path) -> None:
        made = make_keys(tmp_path / "next", copy_from=signed.keys, renew=["online"])
        assert "online.pem   new" in made.table()
        for name in KEYS:
            same = (tmp_path / "next" / f"{name}.pem").read_bytes() == (signed.keys / f"{name}.pem").read_bytes()
            assert same == (name != "online")

    @pytest.mark.parametrize(("copy", "renew"), [(False, ["online"]), (True, []), (True, ["offline"])])
    def test_what_to_renew_must_be_said(self, signed: SignedCdn, tmp_path: Path, copy: bool, renew: list[str]) -> None:
        with pytest.raises(InputError, match="successor"):
            make_keys(tmp_path / "next", copy_from=signed.keys if copy else None, renew=renew)
        assert not (tmp_path / "next").exists()

    def test_a_file_that_is_no_key(self, signed: SignedCdn) -> None:
        (signed.keys / "release.pem").write_text("secret")
        with pytest.raises(InputError, match=r"release\.pem.*not a private key"):
            signed.publisher()

    def test_no_folder(self, signed: SignedCdn) -> None:
        with pytest.raises(InputError, match="no such folder of keys"):
            Publisher(signed.path, signed.folder / "nowhere")


class TestLifetimes:
    def test_words_change_them(self) -> None:
        assert Lifetimes().changed(["release=14", "timestamp=0.5"]) == Lifetimes(release=14, timestamp=0.5)

    @pytest.mark.parametrize("word", ["release", "release=", "release=-1", "release=x", "mirror=3", "release=0"])
    def test_other_words_are_refused(self, word: str) -> None:
        with pytest.raises(InputError, match="lifetime"):
            Lifetimes().changed([word])

    def test_metadata_expire_when_they_say(self, signed: SignedCdn) -> None:
        now = datetime.now(UTC)
        signed.release("kir-b", Lifetimes(release=14))
        ends = read_state(signed.path, signed.first_root).expires()
        assert abs(ends["release"] - now - timedelta(days=14)) < timedelta(minutes=5)
        assert abs(ends["root"] - now - timedelta(days=365)) < timedelta(minutes=5)


class TestRelease:
    def test_manifests_signed_before_stay_signed(self, signed: SignedCdn) -> None:
        signed.release("kir-b")
        release = read_state(signed.path, signed.first_root).release
        assert release is not None
        assert sorted(release.targets) == [POINTER_NAME, "models/kir-a/manifest.json", "models/kir-b/manifest.json"]

    def test_the_same_again_signs_nothing(self, signed: SignedCdn) -> None:
        before = {path.name: path.read_bytes() for path in signed.path.rglob("*.json")}
        signed.release("kir-a")
        assert {path.name: path.read_bytes() for path in signed.path.rglob("*.json")} == before

    @pytest.mark.parametrize("missing", ["release", "online"])
    def test_its_keys_are_needed_and_no_others(self, signed: SignedCdn, missing: str) -> None:
        for name in ("root", "targets"):
            (signed.keys / f"{name}.pem").unlink()
        signed.release("kir-b")
        (signed.keys / f"{missing}.pem").unlink()
        with pytest.raises(InputError, match=rf"{missing}\.pem signs"):
            signed.release("kir-pxtr")
        assert offered(signed) == "kir-b"

    def test_keys_of_another_cdn(self, signed: SignedCdn, tmp_path: Path) -> None:
        make_keys(tmp_path / "other")
        signed.keys = tmp_path / "other"
        with pytest.raises(TrustError, match="another root"):
            signed.release("kir-b")
        assert offered(signed) == "kir-a"

    def test_expired_offline_metadata_are_told_before_anything_is_signed(self, signed: SignedCdn) -> None:
        signed.publisher(Lifetimes(targets=1), days_ago=2).rotate()
        before = sorted(path.name for path in signed.path.glob("metadata/*"))
        with pytest.raises(InputError, match=r"targets metadata have expired.*rotate"):
            signed.release("kir-b")
        assert sorted(path.name for path in signed.path.glob("metadata/*")) == before

    @pytest.mark.parametrize("role", ["targets", "release", "snapshot", "timestamp"])
    def test_what_somebody_else_put_there_gets_no_signature(self, signed: SignedCdn, tmp_path: Path, role: str) -> None:
        """A thief with access to the CDN alone replaces metadata by ones that other keys signed."""
        foreign = SignedCdn(tmp_path / "foreign", "kir-b")
        shutil.copyfile(foreign.newest(role), signed.newest(role))
        with pytest.raises(TrustError, match=rf"{role}\.json.*not what the keys of this CDN signed"):
            signed.release("kir-pxtr")

    def test_an_altered_manifest_gets_no_signature(self, signed: SignedCdn) -> None:
        path = signed.path / "models" / "kir-a" / "manifest.json"
        path.write_bytes(path.read_bytes().replace(b'"effective_view": 1.0', b'"effective_view": 9.0'))
        with pytest.raises(TrustError, match=r"kir-a/manifest\.json.*not the one that was signed"):
            signed.release("kir-a")


class TestRefresh:
    def test_the_timestamp_each_time_the_others_when_due(self, signed: SignedCdn) -> None:
        assert signed.publisher().refresh().roles == ("timestamp",)
        assert signed.publisher(days_ago=-5).refresh().roles == ("snapshot", "timestamp")
        assert signed.publisher(days_ago=-20).refresh().roles == ("release", "snapshot", "timestamp")
        assert offered(signed) == "kir-a"

    def test_a_small_machine_renews_what_its_key_may(self, signed: SignedCdn) -> None:
        for name in ("root", "targets", "release"):
            (signed.keys / f"{name}.pem").unlink()
        renewed = signed.publisher(days_ago=-60).refresh()
        assert renewed.roles == ("snapshot", "timestamp")
        assert renewed.due == ("targets", "release")
        assert renewed.table().count("DUE") == 2
        json.dumps(renewed.to_json())

    def test_an_unsigned_cdn_has_nothing_to_renew(self, signed: SignedCdn) -> None:
        shutil.rmtree(signed.path / "metadata")
        with pytest.raises(InputError, match="not signed"):
            signed.publisher().refresh()


class TestRotation:
    @pytest.mark.parametrize("name", list(KEYS))
    def test_each_key_may_change_and_the_old_one_signs_no_more(self, signed: SignedCdn, name: str) -> None:
        old = signed.keys
        signed.rotate([name])
        signed.release("kir-b")
        assert offered(signed) == "kir-b"
        signed.keys = old
        with pytest.raises(InputError, match=r"old root key|targets\.pem signs|release\.pem signs|online\.pem signs"):
            self.sign_with(signed, name)

    def sign_with(self, signed: SignedCdn, name: str) -> None:
        """Something that takes this key."""
        if name == "root":
            signed.publisher().rotate()
        elif name == "targets":
            signed.publisher(days_ago=-60).refresh()
        else:
            signed.release("kir-pxtr")

    def test_the_same_keys_for_another_year(self, signed: SignedCdn) -> None:
        renewed = signed.publisher(days_ago=-300).rotate()
        assert (renewed.expires["root"] - datetime.now(UTC)).days > 600
        assert offered(signed) == "kir-a"

    def test_the_old_root_key_must_agree(self, signed: SignedCdn, tmp_path: Path) -> None:
        make_keys(tmp_path / "next", copy_from=signed.keys, renew=["root"])
        (signed.keys / "root.pem").unlink()
        before = sorted(path.name for path in signed.path.glob("metadata/*"))
        with pytest.raises(InputError, match="signed by the old root key as well"):
            signed.publisher().rotate(tmp_path / "next")
        assert sorted(path.name for path in signed.path.glob("metadata/*")) == before

    def test_keys_that_are_no_successor(self, signed: SignedCdn, tmp_path: Path) -> None:
        make_keys(tmp_path / "other")
        with pytest.raises(TrustError, match="another root"):
            signed.publisher().rotate(tmp_path / "other")


class TestKilledPublisher:
    """The publisher dies before each file that it would write; phones take the old state or the new one."""

    def die_at_each_write(
        self, signed: SignedCdn, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]
    ) -> list[str | None]:
        real, seen = os.replace, []
        for number in range(30):
            count = iter(range(100))

            def deadly(*args: Any, count: Any = count, last: int = number) -> None:
                if next(count) == last:
                    raise KeyboardInterrupt
                real(*args)

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", deadly)
                try:
                    work()
                    return seen
                except KeyboardInterrupt:
                    pass
            try:
                seen.append(offered(signed, f"cache-{number}"))
            except KirError as error:
                seen.append(type(error).__name__)
        raise AssertionError("never came to its end")

    def test_in_a_release(self, signed: SignedCdn, monkeypatch: pytest.MonkeyPatch) -> None:
        from tests.edge import tiny_model

        pointer = tiny_model.point_at(signed.path, "kir-b").to_bytes()
        work = lambda: signed.publisher().release(pointer, "models/kir-b/manifest.json")  # noqa: E731
        assert self.die_at_each_write(signed, monkeypatch, work) == ["kir-a"] * 4
        assert offered(signed) == "kir-b"

    def test_in_a_rotation(self, signed: SignedCdn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between root and timestamp phones refuse, and keep their model; running it again finishes it."""
        make_keys(tmp_path / "next", copy_from=signed.keys, renew=list(KEYS))
        work = lambda: signed.publisher().rotate(tmp_path / "next")  # noqa: E731
        assert self.die_at_each_write(signed, monkeypatch, work) == ["kir-a"] * 4 + ["TrustError"]
        assert offered(signed) == "kir-a"
        signed.keys = tmp_path / "next"
        signed.release("kir-b")
        assert offered(signed) == "kir-b"


class TestCheck:
    def only_signed(self, signed: SignedCdn) -> None:
        for version in ("kir-b", "kir-pxtr"):
            shutil.rmtree(signed.path / "models" / version)

    def test_every_file_of_a_signed_cdn(self, signed: SignedCdn) -> None:
        self.only_signed(signed)
        assert set(check_signed(signed.path)) == {"root", "targets", "release", "snapshot", "timestamp"}
        for path in [*signed.path.glob("metadata/*.json"), *signed.path.glob("*.json")]:
            whole = path.read_bytes()
            path.write_bytes(whole[:-2] + b"\0\0")
            with pytest.raises(TrustError, match=path.name.replace(".", r"\.")):
                check_signed(signed.path)
            path.unlink()
            with pytest.raises(IntegrityError):
                check_signed(signed.path)
            path.write_bytes(whole)
        check_signed(signed.path)

    def test_what_has_expired(self, signed: SignedCdn) -> None:
        self.only_signed(signed)
        with pytest.raises(TrustError, match=r"expired.*timestamp"):
            check_signed(signed.path, datetime.now(UTC) + timedelta(days=2))

    def test_a_version_that_nobody_signed(self, signed: SignedCdn) -> None:
        signed.release("kir-b")
        with pytest.raises(TrustError, match=r"nobody signed.*\['models/kir-pxtr/manifest\.json'\]"):
            check_signed(signed.path)


class TestPublish:
    """With a real conversion, through `kir publish`."""

    def test_signed_from_conversion_to_phone(
        self, conversion: ConversionResult, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cdn, keys = str(tmp_path / "cdn"), str(tmp_path / "keys")
        assert kir.main(["publish", "keys", keys, "--expire", "root=30"]) == 0
        assert f"{keys}/root.json: for the host app" in capsys.readouterr().out
        assert kir.main(["publish", str(conversion.directory), "--cdn", cdn, "--keys", keys]) == 0
        assert "unsigned" not in capsys.readouterr().out
        store = ModelStore(tmp_path / "cache", cdn, root=f"{keys}/root.json")
        assert store.update() == conversion.version
        second = renamed(converted, "kir-second")
        assert kir.main(["publish", str(second), "--cdn", cdn]) == 2
        assert "this CDN is signed" in capsys.readouterr().err
        assert kir.main(["publish", str(second), "--cdn", cdn, "--keys", keys, "--expire", "release=3"]) == 0
        assert store.update() == "kir-second"
        assert kir.main(["publish", "--rollback", conversion.version, "--cdn", cdn]) == 2
        assert kir.main(["publish", "--rollback", conversion.version, "--cdn", cdn, "--keys", keys]) == 0
        assert store.update() == conversion.version
        capsys.readouterr()
        assert kir.main(["publish", "refresh", "--cdn", cdn, "--keys", keys]) == 0
        assert "timestamp  renewed" in capsys.readouterr().out
        after = str(tmp_path / "next")
        assert kir.main(["publish", "keys", after, "--copy-from", keys, "--renew", "online"]) == 0
        assert kir.main(["publish", "rotate", "--cdn", cdn, "--keys", keys, "--new-keys", after]) == 0
        assert store.update() == conversion.version
        assert "signed: root until" in check_published(cdn).table()

    def test_an_unsigned_cdn_says_so_and_may_become_signed(self, conversion: ConversionResult, tmp_path: Path) -> None:
        cdn = tmp_path / "cdn"
        assert "unsigned" in publish(conversion.directory, cdn).table()
        assert "unsigned" in check_published(cdn).table()
        make_keys(tmp_path / "keys")
        with pytest.raises(InputError, match="never signed"):
            rollback(cdn, conversion.version, keys=tmp_path / "keys")
        assert not is_signed(cdn)
        result = publish(conversion.directory, cdn, keys=tmp_path / "keys")
        assert result.moved
        assert not publish(conversion.directory, cdn, keys=tmp_path / "keys").moved
        assert check_published(cdn).expires

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["model", "x", "--cdn", "y", "--expire", "release=3"], "give --keys as well"),
            (["keys", "KEYS", "--expire", "all=3"], "not a lifetime"),
            (["refresh", "--cdn", "y", "--keys", "nowhere"], "no such folder of keys"),
        ],
    )
    def test_flags_are_checked(
        self, words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [str(tmp_path / word) if word == "KEYS" else word for word in words]
        assert kir.main(["publish", *words]) == 2
        assert says in capsys.readouterr().err
