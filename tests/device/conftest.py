"""What the device tests share: a published model of the default preset, and the small loop of the end-to-end tests.

Boots take seconds, so the tests of one file share one machine: `test_device_4k.py`, `test_device_16k.py`,
`test_device_icount.py`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import serve, small_loop

__all__ = ["serve", "small_loop"]
PRESET, L, N = "kir", 50, 32
RECIPES = ("float32", "int8-dynamic", "int8-weight-only", "int8-full")


@pytest.fixture(scope="session")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version directory of the default preset at L = 50, N = 32, random weights, every variant; made once per run."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    work = shared / "device-model"
    with open(shared / "device-model.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not work.exists():
            from benchmarks.edge_models import make_subject

            aside = shared / "device-model.part"
            make_subject(None, PRESET, L, [N], aside, RECIPES)
            aside.rename(work)
    (version,) = (work / "cdn" / "models").iterdir()
    return version


@pytest.fixture
def wait_for() -> Callable[[Callable[[], object], float], None]:
    """Wait until something is true; the test fails when it is not in time."""
    import time

    def wait(true: Callable[[], object], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline, "it did not come to pass in time"
            time.sleep(0.1)

    return wait
