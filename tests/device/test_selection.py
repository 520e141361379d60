"""Device tests that can't run: left out on a developer's machine with a line that says so, an error in CI."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest


class Item:
    """A collected test with its marks."""

    def __init__(self, *marks: str):
        self.marks = marks

    def get_closest_marker(self, mark: str) -> str | None:
        return mark if mark in self.marks else None


@pytest.fixture(autouse=True)
def without_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest.shutil, "which", lambda command: None)
    monkeypatch.delenv("CI", raising=False)


def collected(*items: Item) -> tuple[list[Item], list[Item]]:
    """Those that stay, those that are told as deselected."""
    gone: list[Item] = []
    config: Any = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: gone.extend(items)))
    left: Any = list(items)
    conftest.pytest_collection_modifyitems(config, left)
    return left, gone


def test_a_developers_machine_leaves_them_out_and_says_so() -> None:
    device, other = Item("device", "slow"), Item("slow")
    assert collected(device, other) == ([other], [device])
    assert "qemu-system-aarch64 and mmdebstrap" in conftest.missing_means()["device"]


def test_in_ci_they_stay_and_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    item: Any = Item("device")
    assert collected(item) == ([item], [])
    with pytest.raises(pytest.fail.Exception, match=r"in CI no device test may be left out.*qemu-system-aarch64"):
        conftest.pytest_runtest_setup(item)


def test_in_ci_other_tests_do_not_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    item: Any = Item("slow")
    assert collected(item) == ([item], [])
    conftest.pytest_runtest_setup(item)
