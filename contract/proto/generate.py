"""python contract/proto/generate.py [--out DIR]: write the Python code of the page protos (`make proto`; a second).

protoc puts a module where its proto package says, and writes `from kir.v1 import page_pb2`. Beside `kir.py`, the
command line, that import finds a module which is no package. So the generated files live in `contract/v1/` and their
imports are rewritten to `contract.v1`. The names inside the descriptors stay `kir/v1/page.proto` and `kir.v1.Page`:
those are the wire.

The result is committed, so that an edge install needs protobuf and grpcio, and never grpcio-tools.
`tests/contract/test_generated_protos.py` regenerates and compares byte for byte.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
PROTO_PACKAGE = "kir.v1"
PYTHON_PACKAGE = "contract.v1"
DEFAULT_OUT = PROTO_ROOT.parent / "v1"
_IMPORT = re.compile(rf"^from {re.escape(PROTO_PACKAGE)} import ", re.MULTILINE)
_LEFTOVER = re.compile(r"^(?:from|import) kir\b.*$", re.MULTILINE)


def proto_files() -> list[str]:
    """Paths of the protos relative to the proto root, sorted: the order protoc gets them in."""
    return sorted(path.relative_to(PROTO_ROOT).as_posix() for path in PROTO_ROOT.rglob("*.proto"))


def rewrite_imports(text: str) -> str:
    """`from kir.v1 import x` becomes `from contract.v1 import x`; any other import of `kir` is refused."""
    rewritten = _IMPORT.sub(f"from {PYTHON_PACKAGE} import ", text)
    leftover = _LEFTOVER.search(rewritten)
    if leftover:
        raise ValueError(f"protoc wrote an import that this script can't rewrite: {leftover.group(0)!r}")
    return rewritten


def generate(out: Path) -> list[Path]:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` of every proto into `out`; returns what was written, sorted.

    Generated files in `out` that no proto gives any more are removed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO_ROOT}"]
        command += [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        subprocess.run([*command, *proto_files()], check=True, stdin=subprocess.DEVNULL)
        generated = {path.name: path.read_text() for path in Path(scratch, *PROTO_PACKAGE.split(".")).iterdir()}
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("*_pb2*.py*"):
        if stale.name not in generated:
            stale.unlink()
    written = []
    for name, text in sorted(generated.items()):
        (out / name).write_text(rewrite_imports(text))
        written.append(out / name)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write into (default: contract/v1)")
    for path in generate(parser.parse_args().out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
