"""kill -9 at any point of a download and an activation: the next start always has a whole model."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import Engine, ModelStore
from tests.edge.signed_cdn import SignedCdn
from tests.edge.web_cdn import Cdn

# Three, of which the phone keeps two: every release must be downloaded again.
VERSIONS = ("kir-a", "kir-b", "kir-pxtr")


class Phones:
    """Phones of one cache, one after the other (tests/edge/dying_phone.py)."""

    def __init__(self, cache: Path, url: str, root: Path):
        command = [sys.executable, "-m", "tests.edge.dying_phone", str(cache), url, str(root)]
        here = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here)

    def live(self, last_step: int = 0, kill_after_s: float = 0.0) -> tuple[int, int]:
        """One phone from start to end: the signal it died of (0: none), and the steps it took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{last_step} {kill_after_s}\n")
        self.process.stdin.flush()
        died_of, steps = self.process.stdout.readline().split()
        return int(died_of), int(steps)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher's: a process that is killed loses nothing that it wrote, only a power cut does."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def signed(tmp_path: Path) -> SignedCdn:
    return SignedCdn(tmp_path)


@pytest.fixture
def phones(signed: SignedCdn, tmp_path: Path) -> Iterator[Phones]:
    with Cdn(signed.path) as web:
        made = Phones(tmp_path / "cache", web.url, signed.root)
        yield made
        made.close()


@pytest.mark.parametrize("kills", [15, pytest.param(150, marks=pytest.mark.slow)])
def test_whatever_the_moment_of_death_a_whole_model_starts(
    phones: Phones, signed: SignedCdn, tmp_path: Path, kills: int
) -> None:
    """Versions are released in turn; half the phones die at a step drawn at random, half at a random moment."""
    draw = random.Random(6)
    cache = tmp_path / "cache"
    assert phones.live()[0] == 0
    signed.release("kir-b")
    started = time.perf_counter()
    died_of, n_steps = phones.live()
    life_s = time.perf_counter() - started
    assert died_of == 0
    assert n_steps > 30
    deaths = 0
    for number in range(kills):
        signed.release(VERSIONS[(number + 2) % 3])
        if number % 2:
            died_of, _ = phones.live(kill_after_s=draw.uniform(0.001, life_s))
        else:
            died_of, _ = phones.live(last_step=draw.randint(1, n_steps))
        deaths += died_of == signal.SIGKILL
        model = ModelStore(cache).active()  # every hash checked
        assert model.dense_version in VERSIONS
    assert deaths >= kills // 3  # those that die at a step do, but for what was downloaded before
    Engine(ModelStore(cache).active())
    assert phones.live()[0] == 0
    current = VERSIONS[(kills + 1) % 3]
    assert ModelStore(cache).active().dense_version == current
    store = ModelStore(cache, signed.path, root=signed.root)
    assert store.update() is None
    assert list((cache / "trust").glob("tmp*")) == []
