"""Vectors of the tiny model and the compiled core, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.jvm.__main__ import write_vectors
from edge import InstalledModel
from tests.android import jvm
from tests.edge import tiny_model


@pytest.fixture(scope="session")
def tiny_cdn() -> Path:
    """The shared CDN directory of the edge's tests: read only."""
    return tiny_model.shared_cdn()


@pytest.fixture(scope="session")
def vectors(tiny_cdn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vectors") / "kir-a"
    write_vectors(InstalledModel.open_published(tiny_cdn / "models" / "kir-a"), out)
    return out


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """android/core and its check, compiled."""
    out = tmp_path_factory.mktemp("classes")
    jvm.compile_java(jvm.sources("main", "check"), out)
    return out
