"""The protos' committed code is what the generator writes and lives beside `kir.py`; the protos keep buf's rules."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROTO_ROOT = REPOSITORY / "contract" / "proto"
COMMITTED = REPOSITORY / "contract" / "v1"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """contract/proto/generate.py, loaded from its file: the folder is no package and is not installed."""
    spec = importlib.util.spec_from_file_location("proto_generator", PROTO_ROOT / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generated_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "_pb2" in path.name)


def test_committed_code_is_what_the_generator_writes(generator: ModuleType, tmp_path: Path) -> None:
    written = generator.generate(tmp_path)
    assert generated_names(COMMITTED) == [path.name for path in written]
    stale = [path.name for path in written if path.read_bytes() != (COMMITTED / path.name).read_bytes()]
    assert not stale, f"run `make proto` and commit: {stale}"


def test_every_proto_gives_messages_stubs_and_services(generator: ModuleType) -> None:
    stems = [Path(name).stem for name in generator.proto_files()]
    assert {"page", "feedback", "embedding"} <= set(stems)
    assert generated_names(COMMITTED) == sorted(
        stem + ending for stem in stems for ending in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    )


def test_stale_code_is_removed(generator: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "gone_pb2.py").write_text("")
    (tmp_path / "__init__.py").write_text("kept")
    generator.generate(tmp_path)
    assert not (tmp_path / "gone_pb2.py").exists()
    assert (tmp_path / "__init__.py").read_text() == "kept"


def test_imports_are_rewritten(generator: ModuleType) -> None:
    text = "from kir.v1 import page_pb2 as kir_dot_v1_dot_page__pb2\nname = 'from kir.v1 import x'\n"
    assert generator.rewrite_imports(text) == text.replace(
        "from kir.v1 import page_pb2", "from contract.v1 import page_pb2"
    )


def test_an_import_it_can_not_rewrite_is_refused(generator: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"import kir\.v2\.page_pb2"):
        generator.rewrite_imports("import kir.v2.page_pb2\n")


def test_kir_and_the_protos_share_a_process_without_warnings() -> None:
    """protoc's own `from kir.v1 import ...` would find kir.py here; a warning on import fails too."""
    code = (
        "import kir, contract.v1.page_pb2, contract.v1.page_pb2_grpc\n"
        "import contract.v1.feedback_pb2_grpc, contract.v1.embedding_pb2_grpc\n"
        "assert kir.COMMANDS\n"
        "assert contract.v1.page_pb2.Page.DESCRIPTOR.full_name == 'kir.v1.Page'\n"
        "assert contract.v1.page_pb2.DESCRIPTOR.name == 'kir/v1/page.proto'\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr


def test_services_are_unary() -> None:
    """Browsers have no gRPC: every call must also be one POST with one answer."""
    from contract.v1 import embedding_pb2, feedback_pb2, page_pb2

    calls = [
        (call.full_name, call.client_streaming, call.server_streaming)
        for module in (page_pb2, feedback_pb2, embedding_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for call in service.methods
    ]
    assert ("kir.v1.PageService.GetPage", False, False) in calls
    assert [call for call in calls if call[1] or call[2]] == []


def test_buf_lint() -> None:
    buf = Path(sys.executable).with_name("buf")
    assert buf.exists(), "buf is not installed: pip install 'kir-edge[dev]'"
    result = subprocess.run([buf, "lint"], cwd=PROTO_ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "STANDARD" in (PROTO_ROOT / "buf.yaml").read_text()
