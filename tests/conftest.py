"""What all tests share: one thread per process, where the real data lie, and which tests this machine can't run.

Tests marked `realdata` read `../shared/data` (beside the repository) or `$KIR_DATA`; tests marked `device` need the
commands that the emulated arm64 device is built and run with; those marked `mounts` a mount namespace of their own.
What can't run is deselected, and one line per mark says so before pytest's closing line. In CI a device test that can't
run is an error: `.ci/run` installs what they need, and a green run must mean that they ran.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports numpy or torch: two workers share two cores, and sums depend on the number of threads.
for _library in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"):
    os.environ.setdefault(f"{_library}_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Started in front of a command: what is mounted there ends with it. Without root the user is mapped to it.
OWN_MOUNTS = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("KIR_DATA") or REPOSITORY.parent / "shared" / "data")

# No deadline: the machine is shared. In CI the examples are the same every time.
settings.register_profile("kir", deadline=None)
settings.register_profile("kir-ci", deadline=None, derandomize=True)
settings.load_profile("kir-ci" if os.environ.get("CI") else "kir")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test, and the shared fixtures it is the first to ask for, draws the same whatever ran before."""
    if item.get_closest_marker("device") and "device" in missing_means():
        # Not at collection: xdist's workers collect, and what they raise there is lost.
        pytest.fail(f"in CI no device test may be left out: {missing_means()['device']}", pytrace=False)
    random.seed(0)
    # Whoever has not imported them yet draws from nothing of theirs; the edge's tests run without torch.
    for library, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if library in sys.modules:
            getattr(sys.modules[library], seed)(0)


def missing_means() -> dict[str, str]:
    """Marks whose tests can't run on this machine, each with the reason."""
    missing = {}
    if not DATA.is_dir():
        missing["realdata"] = f"no data at {DATA}; set KIR_DATA to the folder that holds kuairand-pure"
    if absent := [command for command in ("qemu-system-aarch64", "mmdebstrap") if shutil.which(command) is None]:
        missing["device"] = f"the emulated device needs {' and '.join(absent)}; .ci/run names the packages"
    if not can_mount():
        missing["mounts"] = f"{' '.join(OWN_MOUNTS)} mount … is refused here, as in containers without SYS_ADMIN"
    return missing


@cache
def can_mount() -> bool:
    """Whether a process may have mounts of its own: a right of the machine, which no package brings."""
    command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def left_out() -> dict[str, str]:
    """Of those, the ones that are deselected: in CI no device test is."""
    return {mark: reason for mark, reason in missing_means().items() if not (mark == "device" and os.environ.get("CI"))}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = left_out()
    runs = {item: not any(item.get_closest_marker(mark) for mark in missing) for item in items}
    if not all(runs.values()):
        config.hook.pytest_deselected(items=[item for item in items if not runs[item]])
        items[:] = [item for item in items if runs[item]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Here and not at collection: under xdist the workers collect, and what they print is lost.
    for mark, reason in left_out().items():
        terminalreporter.write_line(f"deselected: tests marked {mark} ({reason})")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data; only for tests marked `realdata`."""
    return DATA


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY
