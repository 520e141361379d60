"""One real conversion per worker, shared by the tests of this room; a test that spoils files copies them first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from convert.build import BuiltGraph
from convert.model import ConversionResult, convert_model
from convert.phone import Sample
from convert.report import Gates
from convert.source import KirSource, load_source
from convert.windows import make_windows, synthetic_events
from tests.convert import makers

# Pages of nine candidates with random weights are full of near-ties: the gate of a real model would ship float only.
LOOSE = Gates(tau=0.9, top1=0.8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A KIR checkpoint with one N bucket."""
    return makers.make_kir(tmp_path_factory.mktemp("kir") / "checkpoint", buckets=(9,)).path


@pytest.fixture(scope="session")
def source(checkpoint: Path) -> KirSource:
    return load_source(checkpoint)


@pytest.fixture(scope="session")
def samples(source: KirSource) -> list[Sample]:
    return list(make_windows(source, synthetic_events(source), 24))


@pytest.fixture(scope="session")
def conversion(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ConversionResult:
    """That checkpoint, converted and verified."""
    return convert_model(checkpoint, tmp_path_factory.mktemp("converted") / "model", windows=24, gates=LOOSE)


@pytest.fixture
def converted(conversion: ConversionResult, tmp_path: Path) -> Path:
    """A copy of the converted model's directory, to spoil."""
    return Path(shutil.copytree(conversion.directory, tmp_path / "model"))


@pytest.fixture
def built(converted: Path) -> dict[str, BuiltGraph]:
    """The copy's graphs, as `build_all` gave them."""
    return makers.built_from(converted)
