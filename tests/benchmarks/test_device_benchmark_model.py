"""`benchmark_model`'s output in every shape that builds print, a captured run, and running a binary on a device."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.device.benchmark_model import (
    BenchmarkRun,
    BenchmarkUnreadable,
    parse_benchmark,
    parse_result_json,
    run_benchmark,
)
from benchmarks.device.host import HostDevice
from tests.edge.tiny_model import shared_cdn

# litert_benchmark.txt was captured; the others are written after what the sources print and public logs hold.
OUTPUT = Path(__file__).parent / "device_output"
CAPTURED = (OUTPUT / "litert_benchmark.txt").read_text()

CLASSIC = (OUTPUT / "classic.txt").read_text()
PREFIXES: dict[str, Callable[[int], str]] = {
    "none": lambda line: "",
    "INFO": lambda line: "INFO: ",
    "VERBOSE": lambda line: "VERBOSE: ",
    "a mix of both": lambda line: ("INFO: ", "VERBOSE: ", "")[line % 3],
    "logcat with pid": lambda line: "07-08 15:34:26.202 I/tflite  ( 5395): ",
    "logcat in threadtime": lambda line: "07-08 15:34:26.202  5395  5395 I tflite  : ",
    "logcat by tag": lambda line: "I tflite  : ",
    "LiteRT 2.x with its source": lambda line: "INFO: [benchmark_litert_model.h:212] ",
}
OLD_2020 = (OUTPUT / "classic_2020.txt").read_text()
NEWER = (OUTPUT / "litert_2.txt").read_text()
OPERATORS = (OUTPUT / "operators.txt").read_text()
# Builds before 2021 have a column more.
OPERATORS_OLD = OPERATORS.replace("  [first]", "  [start]	  [first]").replace(
    "	    0.012	", "	    0.000	    0.012	"
)


class TestResultJson:
    """A captured file of the wheel's litert-benchmark, in milliseconds."""

    TEXT = (OUTPUT / "litert_benchmark.json").read_text()

    def test_every_figure_in_microseconds(self) -> None:
        found = parse_result_json(self.TEXT)
        told = json.loads(self.TEXT)["latency"]
        assert found.avg_us == pytest.approx(told["avg_ms"] * 1e3)
        assert found.init_us == pytest.approx(told["init_ms"] * 1e3)
        assert (found.first_us, found.warmup_avg_us) == pytest.approx((140.0, 60.0))
        assert found.steady == pytest.approx(
            {"count": 20, "min": 10, "max": 40, "avg": 20, "median": 10, "std": 10, "p5": 10, "p95": 30}
        )
        assert found.warmup == pytest.approx({"count": 3, "avg": 60})
        assert (found.model_mb, found.partly) == (0.02, False)

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"latency": 1}', '{"latency": {"avg_ms": "x"}}', '{"latency": {"avg_ms": 1}}']
    )
    def test_another_file_is_refused(self, text: str) -> None:
        with pytest.raises(BenchmarkUnreadable, match="no result of litert-benchmark"):
            parse_result_json(text)


class TestClassic:
    @pytest.mark.parametrize("ending", ["\n", "\r\n"])
    @pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
    def test_every_prefix_and_line_ending_gives_the_same(self, prefix: Callable[[int], str], ending: str) -> None:
        lines = CLASSIC.splitlines()
        text = ending.join(prefix(number) + line for number, line in enumerate(lines))
        assert parse_benchmark(text) == parse_benchmark(CLASSIC)

    def test_what_stands_in_it(self) -> None:
        run = parse_benchmark(CLASSIC)
        assert (run.init_us, run.first_us, run.warmup_avg_us, run.avg_us) == (17187, 3512391, 3.51239e6, 1.24027e6)
        assert run.warmup == {"count": 1, "curr": 3512391}
        assert run.steady == {
            "count": 520, "first": 1249964, "curr": 1240143, "min": 1238588, "max": 1252566, "avg": 1.24027e6,
            "std": 2565, "p5": 1238753, "median": 1239807, "p95": 1247415,
        }  # fmt: skip
        assert (run.model_mb, run.memory_init_mb, run.memory_overall_mb) == (16.9008, 6.36328, 109.832)
        assert run.memory_peak_mb == 88.2

    def test_what_the_delegate_took(self) -> None:
        assert parse_benchmark(CLASSIC).delegates == {"TfLiteXNNPackDelegate": (31, 32, 2)}

    def test_an_old_build_tells_no_percentiles(self) -> None:
        run = parse_benchmark(OLD_2020)
        assert "p95" not in run.steady
        assert (run.avg_us, run.memory_init_mb, run.memory_overall_mb) == (5180.5, 3.5, 9.25)

    def test_a_single_measured_run_tells_its_time_alone(self) -> None:
        run = parse_benchmark("count=1 curr=900\ncount=1 curr=800\n")
        assert (run.avg_us, run.warmup["curr"]) == (800, 900)

    def test_a_session_may_be_initialised_in_whole_milliseconds(self) -> None:
        assert parse_benchmark("Initialized session in 119ms.\ncount=1 curr=800\n").init_us == 119_000

    def test_a_log_that_other_programs_write_into_does_not_disturb(self) -> None:
        noise = "07-08 15:34:26.300 W/ActivityManager( 1200): Slow operation: 52ms so far\n"
        text = noise.join("I tflite  : " + line + "\n" for line in CLASSIC.splitlines())
        assert parse_benchmark(text) == parse_benchmark(CLASSIC)


@pytest.mark.parametrize(
    ("line", "explicit", "partly"),
    [
        (
            "Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.",
            "GPU",
            False,
        ),
        (
            "Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the delegate "
            "w/ 3 delegate kernels.",
            "XNNPACK",
            True,
        ),
        (
            "Though GPU delegate is explicitly applied, the model graph will not be executed by the delegate.",
            "none",
            True,
        ),
    ],
)
def test_an_explicit_delegate_is_told(line: str, explicit: str, partly: bool) -> None:
    run = parse_benchmark(f"INFO: {line}\ncount=1 curr=5\n")
    assert (run.explicit, run.partly) == (explicit, partly)


class TestNewer:
    @pytest.mark.parametrize("prefix", ["", "INFO: [benchmark_litert_model.h:301] ", "I/litert  ( 77): "])
    def test_milliseconds_become_microseconds(self, prefix: str) -> None:
        run = parse_benchmark("".join(f"{prefix}{line}\n" for line in NEWER.splitlines()))
        assert (run.init_us, run.first_us, run.warmup_avg_us) == (
            pytest.approx(12_340), pytest.approx(1_500), pytest.approx(1_200),
        )  # fmt: skip
        assert run.avg_us == pytest.approx(170)
        assert run.steady == pytest.approx({"avg": 170, "min": 150, "max": 310, "std": 20, "count": 50})
        assert (run.memory_init_mb, run.memory_overall_mb, run.memory_peak_mb) == (6.5, 9.75, 12.0)

    def test_a_captured_run_of_the_wheels_own_tool(self) -> None:
        run = parse_benchmark(CAPTURED)
        assert run.partly is False
        assert run.steady["count"] == 60
        assert run.steady["min"] <= run.steady["p5"] <= run.steady["median"] <= run.steady["p95"] <= run.steady["max"]
        assert run.avg_us == run.steady["avg"] > 0


class TestOperators:
    @pytest.mark.parametrize("text", [OPERATORS, OPERATORS.replace("\t", "  "), OPERATORS_OLD])
    def test_rows_in_the_order_they_run(self, text: str) -> None:
        rows = parse_benchmark(CLASSIC + text).operators
        told = {row.name: (row.kind, round(row.mean_us, 6), row.share, row.calls) for row in rows}
        assert told["[scores]:7"] == ("SOFTMAX", 10.0, 0.25, 1)
        gemm = "Fully Connected (NC, F32) GEMM"
        assert told[f"Delegate/{gemm}:0"] == (gemm, 30.0, 0.75, 1)

    def test_rows_of_the_other_tables_are_not_counted_twice(self) -> None:
        assert [row.kind for row in parse_benchmark(CLASSIC + OPERATORS).operators].count("SOFTMAX") == 1

    def test_initialisation_is_no_operator(self) -> None:
        assert [row.name for row in parse_benchmark(CLASSIC + OPERATORS).operators] == [
            "[scores]:7",
            "Delegate/Fully Connected (NC, F32) GEMM:0",
        ]

    def test_without_a_table_there_are_none(self) -> None:
        assert parse_benchmark(CLASSIC).operators == ()


@pytest.mark.parametrize("text", ["", "STARTING!\nGraph: [m.tflite]\nFailed to mmap model\n", "count=\n"])
def test_an_output_without_figures_is_an_error(text: str) -> None:
    with pytest.raises(BenchmarkUnreadable, match="no timings"):
        parse_benchmark(text)


class TestRunning:
    def script(self, folder: Path, body: str) -> str:
        """A binary that a person may bring: here a script."""
        path = folder / "benchmark_model"
        path.write_text(f"#!{sys.executable}\n{body}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    def run(self, binary: str, model: str = "m.tflite") -> BenchmarkRun:
        device = HostDevice()
        try:
            return run_benchmark(device, binary, model, threads=2, runs=7)
        finally:
            device.close()

    def test_flags_are_those_of_the_tool(self, tmp_path: Path) -> None:
        wanted = ("--graph=m.tflite", "--num_threads=2", "--num_runs=7", "--enable_op_profiling=true")
        body = f"import sys\nassert {set(wanted)!r} <= set(sys.argv)\nprint('count=7 avg=12.5')"
        assert self.run(self.script(tmp_path, body)).avg_us == 12.5

    def test_what_stands_on_stderr_counts_too(self, tmp_path: Path) -> None:
        body = "import sys\nprint('INFO: count=7 avg=12.5', file=sys.stderr)"
        assert self.run(self.script(tmp_path, body)).avg_us == 12.5

    def test_a_failing_binary_is_an_error_with_its_words(self, tmp_path: Path) -> None:
        body = "import sys\nprint('Failed to load model')\nsys.exit(1)"
        with pytest.raises(BenchmarkUnreadable, match="Failed to load model"):
            self.run(self.script(tmp_path, body))

    def test_a_binary_that_is_not_there(self) -> None:
        with pytest.raises(BenchmarkUnreadable, match="127"):
            self.run("/nowhere/benchmark_model")

    @pytest.mark.slow
    def test_the_wheels_own_tool_runs_and_is_read(self, tmp_path: Path) -> None:
        """The only build that comes with the package; it has the newer flags alone."""
        body = (
            "import runpy, sys\n"
            "keep = [word for word in sys.argv[1:] if word.split('=')[0] not in "
            "('--report_peak_memory_footprint', '--enable_op_profiling')]\n"
            "sys.argv = ['litert-benchmark', *(w.replace('--graph=', '--model=') for w in keep)]\n"
            "runpy.run_module('ai_edge_litert.tools.benchmark_litert_model', run_name='__main__')\n"
        )
        model = max(shared_cdn().glob("models/kir-a/*.tflite"), key=lambda path: path.stat().st_size)
        run = self.run(self.script(tmp_path, body), str(model))
        assert run.steady["count"] == 7
        assert run.partly is not None
