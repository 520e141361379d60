"""What made a file: the hash over the sources, and a commit that says when files differ from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from convert import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one file and one commit, with a tag, in the place of ours."""

    def git(*words: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
        subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    (tmp_path / "code.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", "code.py")
    git("commit", "-q", "-m", "first")
    git("tag", "-a", "v1", "-m", "v1")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def test_a_clean_checkout_is_its_hash(checkout: Path) -> None:
    found = provenance.commit()
    assert len(found) >= 7
    assert set(found) <= set("0123456789abcdef")


def test_a_changed_file_is_told(checkout: Path) -> None:
    clean = provenance.commit()
    (checkout / "code.py").write_text("x = 2\n")
    assert provenance.commit() == f"{clean}-dirty"


def test_an_installed_package_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == ""


def test_the_hash_of_the_sources_is_stable() -> None:
    assert provenance.code_sha256() == provenance.code_sha256.__wrapped__()
    assert len(provenance.code_sha256()) == 64
