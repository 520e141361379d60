"""What each operator of a graph costs, by LiteRT's own profiler, in a process of its own on the device.

    python op_profile.py SETTINGS.json RESULT.json      SETTINGS: {"files": {name: path}, "runs": n, "warmup": n}

LiteRT's Python API has no profiler, but its library does (`LiteRtCompiledModelGetProfiler`), and with it XNNPACK tells
its operators apart; `ctypes` reaches it. The library counts whole microseconds, so a small operator's figure is rough,
and recording costs time of its own: read shares, not sums. Layouts of its structures are those of LiteRT 2.3;
another version is told as not available and never guessed at.
Source: litert/c/{litert_compiled_model,litert_profiler,litert_profiler_event,litert_opaque_options}.h of LiteRT 2.3.0.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import ai_edge_litert

from contract.files import replacing

KNOWN = "2.3."
OPERATOR, OF_DELEGATE = 2, (4, 8)  # types of events: an operator outside XNNPACK, one inside
CPU, FLOAT32, WRITE, RANK = 1, 1, 1, 8
Pointer = ctypes.c_void_p
Size = ctypes.c_size_t


class Layout(ctypes.Structure):
    """LiteRtLayout."""

    _fields_ = (("rank", ctypes.c_uint32), ("dimensions", ctypes.c_int32 * RANK), ("strides", ctypes.c_uint32 * RANK))


class TensorType(ctypes.Structure):
    """LiteRtRankedTensorType."""

    _fields_ = (("element", ctypes.c_int32), ("layout", Layout))


class Event(ctypes.Structure):
    """ProfiledEventData; `memory` are two tflite::profiling::memory::MemoryUsage of three words."""

    _fields_ = (
        ("tag", ctypes.c_char_p), ("type", ctypes.c_int32), ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64), ("memory", ctypes.c_int64 * 6), ("number", ctypes.c_uint64),
        ("metadata", ctypes.c_uint64), ("source", ctypes.c_int32),
    )  # fmt: skip


class Unavailable(Exception):
    """Why there is no profile here."""


class Library:
    """libLiteRt.so of the installed wheel. A call that does not return kLiteRtStatusOk raises Unavailable."""

    def __init__(self) -> None:
        try:
            version = importlib.metadata.version("ai-edge-litert")
        except importlib.metadata.PackageNotFoundError:
            version = getattr(ai_edge_litert, "__version__", "")  # a packed runtime may leave metadata out
        if not version.startswith(KNOWN):
            raise Unavailable(
                f"the profiler's structures are known for LiteRT {KNOWN}x, here is {version or 'another'}"
            )
        try:
            self._library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).parent / "libLiteRt.so"))
        except OSError as error:
            raise Unavailable(f"libLiteRt.so does not load: {error}") from None

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise Unavailable(f"{name} returned status {status}")

    def made(self, name: str, *arguments: Any) -> Pointer:
        """What a call writes through its last argument."""
        made = Pointer()
        self.call(name, *arguments, ctypes.byref(made))
        return made


class Profiled:
    """A graph compiled for the CPU with profiling on, and zeroed buffers for its first signature."""

    def __init__(self, library: Library, path: str):
        self._library = library
        environment = library.made("LiteRtCreateEnvironment", 0, None)
        model = library.made("LiteRtCreateModelFromFile", environment, path.encode())
        options = library.made("LiteRtCreateOptions")
        library.call("LiteRtSetOptionsHardwareAccelerators", options, CPU)
        self._text = ctypes.create_string_buffer(b"enable_profiling = true\n")  # outlives the options that read it
        self._keep = ctypes.CFUNCTYPE(None, Pointer)(lambda text: None)
        opaque = library.made(
            "LiteRtCreateOpaqueOptions", b"runtime_options_string", ctypes.cast(self._text, Pointer), self._keep
        )
        library.call("LiteRtAddOpaqueOptions", options, opaque)
        self._model = library.made("LiteRtCreateCompiledModel", environment, model, options)
        self.profiler = library.made("LiteRtCompiledModelGetProfiler", self._model)
        if not self.profiler:
            raise Unavailable("this build of LiteRT has no profiler")
        signature = library.made("LiteRtGetModelSignature", model, Size(0))
        self._inputs = self._buffers(environment, "Input", self._count(signature, "Inputs"))
        self._outputs = self._buffers(environment, "Output", self._count(signature, "Outputs"))

    def _count(self, signature: Pointer, side: str) -> int:
        count = Size()
        self._library.call(f"LiteRtGetNumSignature{side}", signature, ctypes.byref(count))
        return count.value

    def _buffers(self, environment: Pointer, side: str, n: int) -> Any:
        first, layouts, buffers = Size(0), (Layout * n)(), (Pointer * n)()
        if side == "Output":
            self._library.call(
                "LiteRtGetCompiledModelOutputTensorLayouts", self._model, first, Size(n), layouts, ctypes.c_bool(False)
            )
        for i in range(n):
            if side == "Input":
                found = ctypes.byref(layouts[i])
                self._library.call("LiteRtGetCompiledModelInputTensorLayout", self._model, first, Size(i), found)
            wanted = self._library.made(f"LiteRtGetCompiledModel{side}BufferRequirements", self._model, first, Size(i))
            kind = TensorType(FLOAT32, layouts[i])
            buffers[i] = self._library.made(
                "LiteRtCreateManagedTensorBufferFromRequirements", environment, ctypes.byref(kind), wanted
            )
            self._zero(Pointer(buffers[i]))
        return buffers

    def _zero(self, buffer: Pointer) -> None:
        """What stood in the memory could be denormal numbers, which cost more than others."""
        size = Size()
        self._library.call("LiteRtGetTensorBufferSize", buffer, ctypes.byref(size))
        memory = Pointer()
        self._library.call("LiteRtLockTensorBuffer", buffer, ctypes.byref(memory), WRITE)
        ctypes.memset(memory, 0, size.value)
        self._library.call("LiteRtUnlockTensorBuffer", buffer)

    def run(self) -> None:
        inputs, outputs = self._inputs, self._outputs
        self._library.call(
            "LiteRtRunCompiledModel", self._model, Size(0), Size(len(inputs)), inputs, Size(len(outputs)), outputs
        )

    def operators(self, runs: int, warmup: int) -> list[dict[str, Any]]:
        """Operators in the order they run: name, whether XNNPACK runs it, mean microseconds of a run, share."""
        for _ in range(warmup):
            self.run()
        names: dict[tuple[bool, int], str] = {}
        found_us: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for _ in range(runs):  # run by run: the profiler's buffer is small, and drops what is too much
            self._library.call("LiteRtResetProfiler", self.profiler)
            self._library.call("LiteRtStartProfiler", self.profiler)
            self.run()
            self._library.call("LiteRtStopProfiler", self.profiler)
            for event in self._events():
                if event.type == OPERATOR or event.type in OF_DELEGATE:
                    key = (event.type in OF_DELEGATE, int(event.number))
                    names[key] = event.tag.decode(errors="replace")
                    found_us[key].append(event.elapsed_us)
        # A delegate as a whole is an operator outside too; its own operators say more.
        mean_us = {key: _mean(found_us[key]) for key in names if key[0] or "delegate" not in names[key].lower()}
        whole = sum(mean_us.values()) or 1.0
        return [
            {"name": names[key], "number": key[1], "xnnpack": key[0], "us": us, "share": us / whole}
            for key, us in mean_us.items()
        ]

    def _events(self) -> Any:
        count = ctypes.c_int()
        self._library.call("LiteRtGetNumProfilerEvents", self.profiler, ctypes.byref(count))
        events = (Event * count.value)()
        self._library.call("LiteRtGetProfilerEvents", self.profiler, count.value, events)
        return events


def _mean(values: list[int]) -> float:
    """Of the lower nine tenths: one preempted run must not name the dearest operator."""
    kept = sorted(values)[: max(1, len(values) * 9 // 10)]
    return sum(kept) / len(kept)


def main(argv: list[str]) -> int:
    """0 whether there is a profile or a reason why not."""
    settings = json.loads(Path(argv[0]).read_text())
    with contextlib.suppress(OSError):  # as the probe, which tells it
        os.sched_setaffinity(0, settings.get("cpus") or os.sched_getaffinity(0))
    result: dict[str, Any]
    try:
        library = Library()
        graphs = {
            name: Profiled(library, path).operators(settings["runs"], settings["warmup"])
            for name, path in settings["files"].items()
        }
        result = {"source": "LiteRT's profiler", "graphs": graphs}
    except Unavailable as error:
        result = {"not_available": str(error)}
    with replacing(argv[1]) as file:
        file.write(json.dumps(result).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
