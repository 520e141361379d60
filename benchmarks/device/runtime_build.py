"""The portable arm64 runtime: glibc's loader, CPython and the edge's packages in one folder that runs where it lies.

Nothing of it asks for root, a package manager or a libc of the device, so the same archive runs on the emulated device
and on a phone as its shell user. It is LiteRT's arm64 build for Linux, not the Android library.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.metadata
import json
import py_compile
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.device.cache import built
from benchmarks.device.debian import extract_tree
from contract.errors import KirError

REPOSITORY = Path(__file__).resolve().parents[2]
SUITE = "bookworm"  # the Debian of CPython 3.11, on which LiteRT 2.3.0 was tried
PYTHON = "3.11"
RECIPE_VERSION = 3  # to be raised with every change of what this file makes
PLATFORMS = [f"manylinux{version}_aarch64" for version in ("_2_28", "_2_27", "_2_17", "2014")]
# What CPython's extension modules and the wheels are linked with, out of Debian's tree.
LIBRARIES = (
    "libc.so.6 libm.so.6 libpthread.so.0 libdl.so.2 librt.so.1 libutil.so.1 libresolv.so.2 libgcc_s.so.1 "
    "libstdc++.so.6 libz.so.1 libexpat.so.1 libffi.so.8 libcrypto.so.3 libssl.so.3 libbz2.so.1.0 liblzma.so.5 "
    "libsqlite3.so.0 libuuid.so.1"
)
# Parts that no edge loads: half of what the packages weigh. sqlite stays: the edge's state is kept in it.
LEFT_OUT = (
    "lib/python3.11/test lib/python3.11/idlelib lib/python3.11/tkinter lib/python3.11/ensurepip "
    "lib/python3.11/lib2to3 lib/python3.11/distutils lib/python3.11/turtledemo lib/python3.11/config-* "
    "lib/python3.11/pydoc_data lib/python3.11/sitecustomize.py site/ai_edge_litert/libLiteRtWebGpuAccelerator.so "
    "site/ai_edge_litert/aot site/ai_edge_litert/_pywrap_litert_converter.so site/ai_edge_litert/vendors "
    "site/numpy/f2py site/numpy/distutils site/numpy/random site/bin site/share "
    "lib/python3.11/venv lib/python3.11/wsgiref lib/python3.11/xmlrpc lib/python3.11/turtle.py "
    "lib/python3.11/lib-dynload/_test*.so lib/python3.11/lib-dynload/*xx*.so lib/python3.11/lib-dynload/_codecs_*.so "
    "lib/python3.11/lib-dynload/_c[ru]*.so lib/python3.11/lib-dynload/_dbm*.so lib/python3.11/lib-dynload/nis*.so "
    "lib/python3.11/lib-dynload/*audio*.so lib/python3.11/lib-dynload/readline*.so"
)
LEFT_OUT_ANYWHERE = {"tests", "test_data", "__pycache__"}
LEFT_OUT_SUFFIXES = {".a", ".pyi", ".h", ".pxd", ".pyx", ".rst", ".md"}


def runtime_archive(log: Callable[[str], None]) -> Path:
    """Folder with `runtime.tar.gz` and `runtime.json` ({"id", "python", "packages", "bytes"}), built now or before.

    The packages are the plain install's, in the versions that are installed here, so that a device and this computer
    are compared on one runtime. Needs mmdebstrap and a network the first time, and no root.
    """
    recipe = {
        "version": RECIPE_VERSION,
        "suite": SUITE,
        "requirements": requirements(),
        "pinned": pinned(),
        "compiled": compiles_here(),
        "libraries": [LIBRARIES, LEFT_OUT],
    }
    return built("runtime", recipe, lambda folder: _make(folder, log), log)


def requirements() -> list[str]:
    """What `pip install .` asks for, without extras: this tree's list, else (an installed package) the metadata's."""
    project = REPOSITORY / "pyproject.toml"
    if project.is_file():
        return sorted(tomllib.loads(project.read_text())["project"]["dependencies"])
    return sorted(line for line in importlib.metadata.requires("kir-edge") or [] if "extra ==" not in line)


def pinned() -> list[str]:
    """NAME==VERSION of the plain install's packages and of all they need, as they are installed here."""
    found: dict[str, str] = {}
    waiting = requirements()
    while waiting:
        match = re.match(r"[A-Za-z0-9._-]+", waiting.pop())
        name = match.group().lower().replace("_", "-") if match else ""
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system or Python
        if name not in found:
            found[name] = version
            waiting += [line for line in importlib.metadata.requires(name) or [] if "extra ==" not in line]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def compiles_here() -> bool:
    """Whether this Python writes byte code that the runtime's reads: a start without it takes much longer."""
    return f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON


def compile_tree(folder: Path) -> None:
    """Byte code beside the sources, valid whatever time stamps they get on the way."""
    if compiles_here():
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(folder, stripdir=str(folder), quiet=2, workers=1, invalidation_mode=mode)


def leave_byte_code(folder: Path) -> None:
    """Byte code in the place of the sources: a tenth of the archive. Where this Python's is another's they stay.

    Without docstrings, which a process holds in memory as long as it runs; and so without the packages' assertions.
    """
    if not compiles_here():
        return
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(
        folder, maxlevels=20, stripdir=str(folder), quiet=2, workers=1, legacy=True, invalidation_mode=mode, optimize=2
    )
    for source in folder.rglob("*.py"):
        if source.with_suffix(".pyc").is_file():
            source.unlink()


def pack_tree(folder: Path, target: Path) -> str:
    """The folder as a .tar.gz without owners and times; returns 16 hex digits of its content's hash."""
    digest = hashlib.sha256()
    with tarfile.open(target, "w:gz", compresslevel=6) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file():
                digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
            archive.add(path, name, recursive=False, filter=plain)
    return digest.hexdigest()[:16]


def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """A tar's entry without owner and time of this computer."""
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def _make(folder: Path, log: Callable[[str], None]) -> None:
    tree = folder / "tree"
    log(f"  downloading CPython {PYTHON} (Debian {SUITE}, arm64)")
    extract_tree(SUITE, ["python3", "libstdc++6", "libgcc-s1"], folder / "debian")
    _take_python(folder / "debian", tree)
    log(f"  downloading the edge's packages for arm64: {', '.join(pinned())}")
    _install_packages(tree / "site")
    _trim(tree)
    leave_byte_code(tree)
    about = {"python": PYTHON, "packages": pinned(), "bytes": sum(p.stat().st_size for p in tree.rglob("*"))}
    about["id"] = pack_tree(tree, folder / "runtime.tar.gz")
    (folder / "runtime.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree(folder / "debian")
    shutil.rmtree(tree)


def _take_python(debian: Path, tree: Path) -> None:
    """Loader, interpreter, its library and the shared objects, links resolved."""
    (tree / "bin").mkdir(parents=True)
    (tree / "lib").mkdir()
    shutil.copy(_in_tree(debian, ["lib/ld-linux-aarch64.so.1", "usr/lib/ld-linux-aarch64.so.1"]), tree)
    shutil.copy(debian / "usr" / "bin" / f"python{PYTHON}", tree / "bin")
    for name in LIBRARIES.split():
        places = [f"{top}lib/aarch64-linux-gnu/{name}" for top in ("", "usr/")]
        shutil.copy(_in_tree(debian, places), tree / "lib" / name)
    shutil.copytree(
        debian / "usr" / "lib" / f"python{PYTHON}", tree / "lib" / f"python{PYTHON}", ignore=_links, symlinks=True
    )


def _in_tree(debian: Path, names: Sequence[str]) -> Path:
    for name in names:
        path = debian / name
        if path.exists():
            return path.resolve()
    raise KirError("Debian's tree lacks a part of the runtime", where=debian, got=names[0])


def _links(folder: str, names: list[str]) -> set[str]:
    """Debian's links into places that the runtime does not have."""
    return {name for name in names if Path(folder, name).is_symlink()}


def _install_packages(site: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(pinned()) + "\n")
        constraints.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(site)]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
        command += [word for abi in ("cp311", "abi3", "none") for word in ("--abi", abi)]
        command += [word for name in PLATFORMS for word in ("--platform", name)]
        done = subprocess.run(
            [*command, "--constraint", constraints.name, *requirements()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise KirError("pip could not fetch the edge's packages for arm64", got=done.stderr[-600:])


def _trim(tree: Path) -> None:
    for pattern in LEFT_OUT.split():
        for path in tree.glob(pattern):
            _remove(path)
    for path in sorted(tree.rglob("*")):
        if path.name in LEFT_OUT_ANYWHERE or path.suffix in LEFT_OUT_SUFFIXES:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
