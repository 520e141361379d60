"""Documents of a device benchmark by kind, small and complete, with round figures."""

from __future__ import annotations

from typing import Any

from benchmarks.device.result import FORMAT, PERCENTILES, STAGES
from benchmarks.stats import machine


def summary(p50: float, count: int = 200) -> dict[str, Any]:
    return {
        **dict.fromkeys(PERCENTILES, p50), "count": count, "rounds_p50": [p50], "quantiles": [p50 - 1, p50, p50 + 9],
    }  # fmt: skip


def graph_row(graph: str, variant: str, ships: bool, p50: float, threads: tuple[str, ...]) -> dict[str, Any]:
    return {
        "graph": graph,
        "variant": variant,
        "ships": ships,
        "bytes": 27_000,
        "threads": {count: {"load": 900.0, "first": 70.0, "steady": summary(p50 * int(count))} for count in threads},
        "delegate": {"partitions": 1, "operators": {"FULLY_CONNECTED": 5, "GATHER": 1}, "left_out": {"GATHER": 1}},
        "parity": {"reference": variant, "max_abs": 3e-8, "tolerance": 1e-4, "ok": True, "ranking": True},
        "threads_equal": True,
    }


def document(kind: str = "host", unit: str = "us") -> dict[str, Any]:
    """A result as `measure_device` gives it. unit "none": nothing timed."""
    timed = unit != "none"
    threads = ("1", "2") if unit == "us" else ("1",) if timed else ()
    operator = {"name": "Fully <Connected> GEMM", "number": 4, "xnnpack": True, "mean": 12.0, "share": 1.0}
    return {
        "benchmark": "device",
        "format": FORMAT,
        "kind": kind,
        "unit": unit,
        "wall_time": "meaningless" if kind in ("emulated-arm64", "android-emulator") else "measured",
        "command": "kir bench --serial <S>",
        "machine": machine(),
        "device": {
            "serial": "R5CT000000A", "properties": {"abi": "aarch64", "model": "A <phone>"}, "python": "3.11.9",
            "packages": {"ai-edge-litert": "2.3.0"}, "cores": [4, 5], "pinned": "30", "remarks": [],
        },
        "model": {"dense_version": "kir-a", "capacities": {"L": 50}, "spec_fingerprint": "f", "files": {}},
        "settings": {
            "variants": ["float32"], "threads": list(map(int, threads)), "runs": 200, "repeats": 1, "cooldown_s": 0.0,
        },
        "graphs": [
            graph_row("swipe/N20", "float32", True, 30.0, threads),
            graph_row("watch/T1", "float32", True, 20.0, threads),
            graph_row("whole/N20", "float32", True, 200.0, threads),
        ],
        "session": {
            "watched": 30, "candidates": 20, "variants": {}, "swipes": 200,
            "stages": {stage: summary(200.0 if stage == "total" else 60.0) for stage in STAGES} if timed else {},
            "cold_start": {"imports": 5e5, "load": 4e4, "total": 5.4e5} if timed else {},
        },
        "peak_rss_kb": {"graphs float32": 50_000, "session": 60_000},
        "replay": {"ok": True, "cases": [{"case": "swipe/N20", "ok": True}]},
        "operators": (
            {"source": "LiteRT's profiler", "graphs": {"swipe/N20 float32": [operator]}}
            if timed else {"not_available": "wall time means nothing"}
        ),
        "problems": [],
    }  # fmt: skip
