"""A Python on a device, with this tree's `edge` and `contract` to import.

runtime = install_runtime(device)
runtime.python(["-m", "kir", "replay", "--model", "models/kir-1"], timeout_s=60)
"""

from __future__ import annotations

import json
import posixpath
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.device.device import Device, DeviceError, Ran, WrongAbi
from benchmarks.device.runtime_build import PYTHON, REPOSITORY, compile_tree, pack_tree, runtime_archive

CODE = ("edge", "contract", "kir.py")
STEP_S = 60.0
UNPACK_S = 300.0
# One thread each: a phone's other cores are the app's, and every thread costs memory.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONFAULTHANDLER": "1",
}


@dataclass(frozen=True)
class Runtime:
    """folder: where it lies on the device, "" = this computer's own Python. code: the folder that holds `edge`."""

    device: Device
    folder: str
    code: str

    def python(self, argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Ran:
        """Run `python ARGV…` in the device's root folder; as `Device.run` in what it returns and raises."""
        return self.device.run(
            [*self.interpreter(), *argv], timeout_s=timeout_s, env={**self.environment(), **(env or {})}
        )

    def interpreter(self) -> list[str]:
        """The words that start Python: the runtime's own loader, which looks for libraries in its folder alone."""
        if not self.folder:
            return [sys.executable]
        program = f"{self.folder}/bin/python{PYTHON}"
        loader = [f"{self.folder}/ld-linux-aarch64.so.1", "--inhibit-cache", "--library-path", f"{self.folder}/lib"]
        return [*loader, "--argv0", program, program]

    def environment(self) -> dict[str, str]:
        """What Python needs to find its library, the packages and the code."""
        if not self.folder:
            return {**ENVIRONMENT, "PYTHONPATH": self.code}
        places = {"PYTHONHOME": self.folder, "PYTHONPATH": f"{self.code}:{self.folder}/site"}
        return {**ENVIRONMENT, **places, "HOME": self.device.root, "TMPDIR": posixpath.dirname(self.device.root)}


def install_runtime(device: Device, log: Callable[[str], None] = lambda line: None) -> Runtime:
    """Put runtime and code on the device, each in a folder named by its content; one that is there is left.

    What other versions left behind is deleted, so one driver at a time. Raises WrongAbi for a device that is no arm64,
    DeviceFull, DeviceReadOnly; InputError where the runtime is not built yet and can't be.
    """
    if device.kind == "host":
        return Runtime(device, "", str(REPOSITORY))
    abi = device.properties()["abi"]
    if abi != "arm64-v8a":
        raise WrongAbi("the runtime is for arm64", where=device.serial, got=abi, allowed="arm64-v8a")
    built = runtime_archive(log)
    about = json.loads((built / "runtime.json").read_text())
    runtime = _installed(device, built / "runtime.tar.gz", "runtime", about["id"], log)
    with tempfile.TemporaryDirectory() as work:
        archive = Path(work, "code.tar.gz")
        code = _installed(device, archive, "code", pack_code(archive), log)
    return Runtime(device, runtime, code)


def pack_code(target: Path) -> str:
    """`edge`, `contract` and kir.py of this tree as a .tar.gz; returns the hash of their content."""
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work)
        for name in CODE:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.proto", "*.pyi"))
            else:
                shutil.copy(source, tree / name)
        compile_tree(tree)
        return pack_tree(tree, target)


def _installed(device: Device, archive: Path, name: str, digest: str, log: Callable[[str], None]) -> str:
    """The folder NAME-DIGEST on the device; unpacked beside it and renamed when it is not there yet."""
    folder = f"{device.root}/{name}-{digest}"
    if device.run(["test", "-d", folder], timeout_s=STEP_S).returncode == 0:
        return folder
    log(f"sending the {name} to {device.serial} ({archive.stat().st_size / 1e6:.0f} MB) …")
    sent, aside = f"{device.root}/{name}.tar.gz", f"{device.root}/.{name}.part"
    device.push(archive, sent)
    script = (
        f"rm -rf {aside} {device.root}/{name}-* && mkdir -p {aside} && tar -xzf {sent} -C {aside} "
        f"&& mv {aside} {shlex.quote(folder)}"
    )
    try:
        ran = device.run(["sh", "-c", script], timeout_s=UNPACK_S)
        if ran.returncode:
            raise DeviceError(f"the {name} could not be unpacked", where=device.serial, got=ran.stderr[-300:])
    finally:
        device.run(["rm", "-rf", sent, aside], timeout_s=STEP_S)
    return folder
