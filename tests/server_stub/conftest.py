"""Fixtures of the server's tests: one tiny bundle, and requests that say only what a test is about."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.specs import kir_spec
from contract.v1 import page_pb2 as pb
from server_stub.config import ServerConfig
from server_stub.testing import InProcessServer
from tests.server_stub.tiny_bundle import write_bundle

NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle nobody changes."""
    return write_bundle(tmp_path_factory.mktemp("bundle"), ("kir-a", "kir-b"))


@pytest.fixture
def bundle(shared_bundle: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(shared_bundle, tmp_path / "bundle"))


def held(*names: str, fingerprint: str = "") -> list[pb.HeldModel]:
    fingerprint = fingerprint or kir_spec().fingerprint
    return [pb.HeldModel(dense_version=name, spec_fingerprint=fingerprint) for name in names]


def request(user_id: int = 2, **fields: Any) -> pb.GetPageRequest:
    return pb.GetPageRequest(user_id=user_id, **fields)


def counted_ids() -> Callable[[], str]:
    numbers = iter(range(1_000_000))
    return lambda: f"page-{next(numbers)}"


@pytest.fixture(scope="module")
def fake_server() -> Iterator[InProcessServer]:
    """A real server around the fake recommender; tests of one file share it."""
    with InProcessServer(ServerConfig(), clock=lambda: NOW_MS) as server:
        yield server
