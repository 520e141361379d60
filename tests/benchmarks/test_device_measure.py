"""A device benchmark from end to end on the tiny model: what stands in the document by kind, and what makes it fail.

The scripts of the device run in this process, except where a test says otherwise; nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cli import add_bench_arguments, bench_words, run_bench
from benchmarks.device import bench_cli, measure, op_profile, probe
from benchmarks.device.device import DelegateMissing, DeviceCrashed, DeviceError, Ran
from benchmarks.device.measure import Plan, measure_device
from benchmarks.device.result import STAGES, device_table, graph_rows
from benchmarks.device.target import Target, kind_of, open_target, target_of
from contract.errors import InputError, IntegrityError, KirError, NoModelError, VerificationFailed
from edge import InstalledModel
from tests.benchmarks.device_fakes import InProcess, PretendDevice, host_in_process, phone, pretended
from tests.edge.tiny_model import copy_cdn, shared_cdn

QUICK: dict[str, Any] = {"threads": (1, 2), "runs": 6, "warmup": 1, "cooldown_s": 0.0, "pin": "none"}


@pytest.fixture(scope="module")
def cdn() -> Path:
    return shared_cdn()


@pytest.fixture(scope="module")
def on_phone(cdn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    binary = tmp_path_factory.mktemp("binary") / "benchmark_model"
    binary.write_text("#!/bin/sh\necho 'count=7 first=20 min=9 max=20 avg=12.5 p95=13'\n")
    with phone() as target:
        result = measure_device(target, Plan(cdn, repeats=2, binary=binary, **QUICK), "kir bench --serial R5CT000000A")
    return json.loads(json.dumps(result, allow_nan=False))


@pytest.fixture(scope="module")
def on_emulated(cdn: Path) -> dict[str, Any]:
    with pretended("emulated-arm64") as target, pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "open_target", lambda serial: host_in_process())
        return measure_device(target, Plan(cdn, runs=3), "kir bench --serial 127.0.0.1:5555")


@pytest.fixture
def a_phone() -> Iterator[Target]:
    with phone() as target:
        yield target


@pytest.fixture
def an_emulated() -> Iterator[Target]:
    with pretended("emulated-arm64") as target:
        yield target


class TestDocument:
    def test_every_graph_and_variant_has_a_row(self, on_phone: dict[str, Any]) -> None:
        keys = {(row["graph"], row["variant"]) for row in on_phone["graphs"]}
        sizes = {f"{name}/N{n}" for name in ("page", "swipe", "place", "whole") for n in (4, 8)}
        assert keys == {(graph, "float32") for graph in sizes | {"watch/T1", "watch/T3"}}

    def test_rounds_are_merged(self, on_phone: dict[str, Any]) -> None:
        for row in on_phone["graphs"]:
            assert list(row["threads"]) == ["1", "2"]
            steady = row["threads"]["1"]["steady"]
            assert (steady["count"], len(steady["rounds_p50"])) == (12, 2)
            assert steady["p50"] == pytest.approx(np.median(steady["rounds_p50"]))
            assert steady["quantiles"] == sorted(steady["quantiles"])

    def test_outputs_agree_with_golden_ones_and_with_this_machine(self, on_phone: dict[str, Any]) -> None:
        for row in on_phone["graphs"]:
            assert row["parity"]["ok"], row
            assert row["parity"]["host"] == {"max_abs": 0.0, "exact": True, "ok": True}
            assert "outputs" not in row
        assert on_phone["replay"]["ok"]
        assert on_phone["problems"] == []

    def test_operators_and_what_xnnpack_left_out(self, on_phone: dict[str, Any]) -> None:
        for row in on_phone["graphs"]:
            left_out = row["delegate"]["left_out"]
            assert row["delegate"]["partitions"] >= 1
            assert set(left_out) < set(row["delegate"]["operators"])

    def test_a_session_tells_its_stages(self, on_phone: dict[str, Any]) -> None:
        session = on_phone["session"]
        assert tuple(session["stages"]) == STAGES
        assert {stage: row["count"] for stage, row in session["stages"].items() if stage not in STAGES[:3]} == {
            "watch": 12, "swipe": 12, "choose": 12, "total": 12,
        }  # fmt: skip
        assert session["stages"]["page"]["count"] >= 2
        assert session["cold_start"]["total"] == pytest.approx(
            sum(value for name, value in session["cold_start"].items() if name != "total")
        )

    def test_peak_memory_of_each_process(self, on_phone: dict[str, Any]) -> None:
        assert set(on_phone["peak_rss_kb"]) == {"golden replay", "graphs float32", "session"}
        assert min(on_phone["peak_rss_kb"].values()) > 10_000

    def test_a_phone_tells_heat_and_battery_before_and_after(self, on_phone: dict[str, Any]) -> None:
        state = on_phone["device"]["state"]
        assert state["before"]["thermal"] == state["after"]["thermal"] == "none"
        assert state["before"]["battery_percent"] == 87

    def test_operators_by_the_librarys_profiler(self, on_phone: dict[str, Any]) -> None:
        graphs = on_phone["operators"]["graphs"]
        assert set(graphs) == {"watch/T1 float32", "swipe/N8 float32"}
        for rows in graphs.values():
            shares = [row["share"] for row in rows]  # of whole microseconds: here each operator may take less than one
            assert sum(shares) == pytest.approx(1.0 if any(shares) else 0.0)
            assert any("Fully Connected" in row["name"] and row["xnnpack"] for row in rows)

    def test_the_binary_that_was_given_ran_on_the_same_files(self, on_phone: dict[str, Any]) -> None:
        told = [(run["graph"], run["variant"], run["threads"], run["avg_us"]) for run in on_phone["benchmark_model"]]
        graphs = [row["graph"] for row in on_phone["graphs"] if row["graph"] in ("swipe/N8", "watch/T1")]
        assert told == [(graph, "float32", count, 12.5) for graph in graphs for count in (1, 2)]

    def test_the_table_names_each_row_once(self, on_phone: dict[str, Any]) -> None:
        table = device_table(on_phone)
        assert "Pixel 8 (arm64-v8a, R5CT000000A; kind: device)" in table
        for row in on_phone["graphs"]:
            assert sum(line.startswith(f"{row['graph']} {row['variant']}") for line in table.splitlines()) == 1
        assert "p50 ×2" in table
        assert "before: thermal status none, hottest CPU0 44.2 °C; battery 87 %, 30.1 °C, power: charging" in table


class TestEmulated:
    def test_instructions_stand_where_others_have_time(self, on_emulated: dict[str, Any]) -> None:
        assert (on_emulated["kind"], on_emulated["unit"]) == ("emulated-arm64", "instructions")
        assert on_emulated["wall_time"] == "meaningless"
        assert on_emulated["settings"]["threads"] == (1,)
        assert "state" not in on_emulated["device"]
        table = device_table(on_emulated)
        assert "instructions" in table
        assert "µs" not in table
        assert " ms" not in table

    def test_without_a_counting_clock_nothing_is_timed(self, cdn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measure, "open_target", lambda serial: host_in_process())
        with pretended("emulated-arm64", {"model": "emulated", "icount": ""}) as target:
            result = measure_device(target, Plan(cdn), "kir bench")
        assert result["unit"] == "none"
        assert all(row["threads"] == {} and row["parity"]["ok"] for row in result["graphs"])
        assert result["session"]["stages"] == result["session"]["cold_start"] == {}
        assert "not_available" in result["operators"]
        table = device_table(result)
        assert "wall time means nothing" in table
        assert not any(word in table for word in ("µs", " ms", "p50"))

    def test_instructions_are_counted_on_one_thread(self, cdn: Path, an_emulated: Target) -> None:
        with pytest.raises(InputError, match="one thread"):
            measure_device(an_emulated, Plan(cdn, threads=(1, 2)), "")

    def test_benchmark_model_has_nothing_to_say_there(self, cdn: Path, an_emulated: Target) -> None:
        with pytest.raises(InputError, match="wall time"):
            measure_device(an_emulated, Plan(cdn, runs=1, binary=Path(__file__)), "")


class TestOneAtATime:
    def test_a_device_in_use_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two benches on one device would read each other's answers."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        device = PretendDevice("device", {}, {})
        monkeypatch.setattr("benchmarks.device.find.connect", lambda serial: device)
        monkeypatch.setattr("benchmarks.device.runtime.install_runtime", lambda device, log: InProcess(device))
        try:
            with open_target("x") as target:
                assert target.device is device
                with pytest.raises(DeviceError, match="another kir bench"), open_target("x"):
                    pass
            with open_target("x"):
                pass  # given back
        finally:
            device.close()


class TestPinning:
    """What a phone may refuse costs the pinning alone, and is remarked."""

    def test_without_taskset_the_binary_runs_anywhere(self, tmp_path: Path) -> None:
        asked: list[list[str]] = []

        class Recording(PretendDevice):
            def run(self, argv: Any, **given: Any) -> Ran:
                asked.append(list(argv))
                return Ran(127, "", "not found", 0.0) if argv[0] == "taskset" else Ran(0, "count=2 avg=3", "", 0.0)

        device = Recording("device", {}, {})
        remarks: list[str] = []
        (tmp_path / "binary").write_bytes(b"")
        installed = InstalledModel.open_published(shared_cdn())
        target = target_of(device, InProcess(device))
        job = measure._job(target, Plan(shared_cdn(), pin="3", threads=(1,)), installed)
        try:
            measure._send_binary(job, tmp_path / "binary")
            found = measure._binary(job, remarks, lambda line: None)
        finally:
            device.close()
        assert [run["avg_us"] for run in found] == [3.0, 3.0]
        assert remarks == ["taskset is not available: benchmark_model ran on any core"]
        assert sum(words[0] == "taskset" for words in asked) == 1

    def test_a_binary_that_is_none_is_refused_before_measuring(self, tmp_path: Path) -> None:
        class Refusing(PretendDevice):
            def run(self, argv: Any, **given: Any) -> Ran:
                if argv[0].endswith("benchmark_model"):
                    return Ran(126, "", "benchmark_model: Exec format error", 0.0)
                return super().run(argv, **given)

        device = Refusing("device", {}, {})
        (tmp_path / "binary").write_bytes(b"# no program")
        plan = Plan(shared_cdn(), pin="none", threads=(1,), runs=1, binary=tmp_path / "binary")
        said: list[str] = []
        try:
            with pytest.raises(InputError, match=r"does not start there.*Exec format error"):
                measure_device(target_of(device, InProcess(device)), plan, "", said.append)
        finally:
            device.close()
        assert not any("graphs" in line for line in said)


class TestKind:
    def test_a_device_counts_as_what_it_is(self, a_phone: Target, an_emulated: Target) -> None:
        assert (a_phone.kind, a_phone.unit) == ("device", "us")
        assert an_emulated.kind == "emulated-arm64"

    def test_nothing_is_timed_on_androids_own_emulator(self) -> None:
        with pretended("android-emulator", {"model": "sdk_gphone64_arm64"}) as target:
            assert (target.kind, target.unit) == ("android-emulator", "none")

    @pytest.mark.parametrize("asked", ["host", "device"])
    def test_an_emulated_device_can_not_be_made_one(self, asked: str, an_emulated: Target) -> None:
        with pytest.raises(InputError, match="another kind"):
            kind_of(an_emulated.device, asked)

    def test_a_phone_may_be_counted_for_less(self, a_phone: Target) -> None:
        for less in ("emulated-arm64", "android-emulator"):
            assert kind_of(a_phone.device, less) == less


class TestFailures:
    def test_a_corrupt_file_is_found_before_anything_is_pushed(self, tmp_path: Path, a_phone: Target) -> None:
        cdn = copy_cdn(tmp_path / "cdn")
        file = next((cdn / "models" / "kir-a").glob("*.tflite"))
        file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
        with pytest.raises(IntegrityError):
            measure_device(a_phone, Plan(cdn), "")

    def test_no_model(self, tmp_path: Path, a_phone: Target) -> None:
        with pytest.raises(NoModelError):
            measure_device(a_phone, Plan(tmp_path), "")

    def test_golden_cases_that_do_not_replay_stop_it(
        self, cdn: Path, a_phone: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import edge._replay

        monkeypatch.setattr(edge._replay, "_max_abs", lambda expected, got: 1.0)
        with pytest.raises(VerificationFailed, match=r"do not replay there.*outputs differ"):
            measure_device(a_phone, Plan(cdn), "")

    def test_a_graph_without_xnnpack_is_refused(self, cdn: Path, tmp_path: Path) -> None:
        """LiteRT itself, with XNNPACK left out by the resolver that does so."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        def plain(**given: Any) -> Interpreter:
            kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            return Interpreter(**given, experimental_op_resolver_type=kind)

        class WithoutXnnpack(InProcess):
            def python(self, argv: Any, *, timeout_s: float) -> Any:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("ai_edge_litert.interpreter.Interpreter", plain)
                    return super().python(argv, timeout_s=timeout_s)

        folder = cdn / "models" / "kir-a"
        settings = {
            "mode": "graphs", "model": str(folder), "variant": "float32", "graphs": ["swipe"], "threads": [1],
            "runs": 1, "warmup": 0, "cpus": [], "timed": True,
        }  # fmt: skip
        with (
            pretended("device", runtime=WithoutXnnpack) as target,
            pytest.raises(DelegateMissing, match=r"swipe/N\d float32"),
        ):
            target.ask("probe.py", settings, timeout_s=60)

    def test_a_script_that_dies_is_told_with_its_last_words(self) -> None:
        with (
            open_target("host") as target,
            pytest.raises(KirError, match=r"the script failed there.*KeyError"),
        ):
            target.ask("probe.py", {"mode": "graphs"}, timeout_s=60)

    def test_an_older_answer_is_not_taken_for_a_new_one(self) -> None:
        class Silent(InProcess):
            def python(self, argv: Any, *, timeout_s: float) -> Ran:
                return Ran(0, "", "", 0.0)

        with pretended("device", runtime=Silent) as target:
            Path(target.place("result.json")).parent.mkdir(parents=True)
            Path(target.place("result.json")).write_text('{"old": 1}')
            with pytest.raises(DeviceError, match="nothing to pull"):
                target.ask("probe.py", {}, timeout_s=60)

    def test_a_profiler_that_ends_its_process_costs_the_operators_alone(
        self, cdn: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Dying(InProcess):
            def python(self, argv: Any, *, timeout_s: float) -> Any:
                if "op_profile" in argv[0]:
                    raise DeviceCrashed("python was ended by SIGSEGV", signal=11)
                return super().python(argv, timeout_s=timeout_s)

        monkeypatch.setattr(measure, "open_target", lambda serial: host_in_process())
        with pretended("emulated-arm64", runtime=Dying) as target:
            result = measure_device(target, Plan(cdn, runs=1), "")
        assert "SIGSEGV" in result["operators"]["not_available"]
        assert "operators: not available" in device_table(result)

    def test_an_answer_that_hangs_on_the_number_of_threads_is_a_problem(self, on_phone: dict[str, Any]) -> None:
        rounds = [json.loads(json.dumps(on_phone["graphs"])) for _ in range(2)]
        assert measure._problems(rounds[0]) == []
        rounds[1][0]["threads_equal"] = False
        for row in (row for one in rounds for row in one):
            for timed in row["threads"].values():
                timed["steady"] = {"p50": 1.0, "count": 1}
        rows = graph_rows(rounds, "us")
        name = f"{rows[0]['graph']} {rows[0]['variant']}"
        assert measure._problems(rows) == [f"{name}: another answer on another number of threads"]

    def test_unknown_variants_are_named(self, cdn: Path, a_phone: Target) -> None:
        with pytest.raises(InputError, match=r"no such variant.*int3.*float32"):
            measure_device(a_phone, Plan(cdn, variants=("int3",)), "")

    @pytest.mark.parametrize(
        "bad",
        [{"runs": -1}, {"repeats": -1}, {"threads": (0,)}, {"threads": (1, 100_000)}, {"cooldown_s": -1.0}],
    )
    def test_counts_out_of_range(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            Plan(Path("cdn"), **bad)

    def test_a_binary_that_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--benchmark-binary"):
            Plan(Path("cdn"), binary=tmp_path)


class TestProbe:
    @pytest.fixture(autouse=True)
    def _keep_affinity(self) -> Iterator[None]:
        before = os.sched_getaffinity(0)
        yield
        os.sched_setaffinity(0, before)

    def ask(self, tmp_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
        whole = {
            "mode": "graphs", "model": str(shared_cdn() / "models" / "kir-a"), "variant": "float32", "graphs": ["page"],
            "threads": [1], "runs": 1, "warmup": 0, "cpus": [], "timed": True, **settings,
        }  # fmt: skip
        (tmp_path / "settings.json").write_text(json.dumps(whole))
        probe.main([str(tmp_path / "settings.json"), str(tmp_path / "result.json")])
        return dict(json.loads((tmp_path / "result.json").read_text()))

    def test_it_stays_on_the_cores_it_is_given(self, tmp_path: Path) -> None:
        core = max(os.sched_getaffinity(0))
        assert self.ask(tmp_path, {"cpus": [core]})["cpus"] == [core]

    def test_only_the_graphs_asked_for_are_measured(self, tmp_path: Path) -> None:
        found = self.ask(tmp_path, {})["graphs"]
        assert [row["graph"] for row in found] == ["page/N4", "page/N8"]

    def test_a_core_that_can_not_be_had_is_told_and_costs_the_pinning_alone(self, tmp_path: Path) -> None:
        found = self.ask(tmp_path, {"cpus": [1000]})
        assert "Invalid argument" in found["unpinned"]
        assert found["graphs"]
        assert found["cpus"] == sorted(os.sched_getaffinity(0))

    def test_a_version_without_a_golden_session_can_not_be_swiped(self, tmp_path: Path) -> None:
        from dataclasses import replace

        from contract.manifest import Golden, Manifest

        folder = copy_cdn(tmp_path / "cdn") / "models" / "kir-a"
        manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
        golden = Golden(manifest.golden.rows_revision, manifest.golden.tensors)
        (folder / "manifest.json").write_bytes(replace(manifest, golden=golden).to_bytes())
        error = self.ask(tmp_path, {"mode": "session", "model": str(folder)})["error"]
        assert (error["type"], error["what"]) == ("NoModelError", "the version has no golden session")

    def test_stages_of_a_page_come_from_the_spans(self) -> None:
        def span(name: str, us: float) -> dict[str, Any]:
            return {"name": name, "ph": "X", "dur": us}

        events = [
            span("fetch", 3.0),
            span("decode", 1.5),
            span("rows", 2.0),
            span("page_graph", 4.0),
            span("watch", 9.0),
        ]
        assert probe.page_stages([*events, *events]) == {
            "fetch": [4500, 4500], "merge": [2000, 2000], "page": [4000, 4000],
        }  # fmt: skip


class TestProfiler:
    def test_another_version_is_told_and_not_guessed_at(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.1")
        (tmp_path / "s.json").write_text(json.dumps({"files": {}, "runs": 1, "warmup": 0}))
        assert op_profile.main([str(tmp_path / "s.json"), str(tmp_path / "r.json")]) == 0
        assert "2.9.1" in json.loads((tmp_path / "r.json").read_text())["not_available"]

    def test_a_file_that_is_no_model_has_no_profile(self, tmp_path: Path) -> None:
        (tmp_path / "bad.tflite").write_bytes(b"no model")
        settings = {"files": {"bad": str(tmp_path / "bad.tflite")}, "runs": 1, "warmup": 0}
        (tmp_path / "s.json").write_text(json.dumps(settings))
        op_profile.main([str(tmp_path / "s.json"), str(tmp_path / "r.json")])
        assert "LiteRtCreateModelFromFile" in json.loads((tmp_path / "r.json").read_text())["not_available"]


class TestCommand:
    @pytest.mark.parametrize(
        ("words", "read"),
        [
            (["bench", "--serial", "host"], ["bench", "device", "--serial", "host"]),
            (["bench", "--model", "cdn"], ["bench", "device", "--model", "cdn"]),
            (["bench", "device", "--model", "cdn"], ["bench", "device", "--model", "cdn"]),
            (["bench", "edge", "--n", "3"], ["bench", "edge", "--n", "3"]),
            (["bench", "--help"], ["bench", "--help"]),
            (["bench"], ["bench"]),
        ],
    )
    def test_a_serial_alone_means_a_device(self, words: list[str], read: list[str]) -> None:
        assert bench_words(words) == read

    def args(self, *words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        add_bench_arguments(parser)
        return parser.parse_args(["device", *words])

    def test_a_result_becomes_the_older_one_of_the_next(
        self,
        on_phone: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The flow of the command, with a measurement that is there: exit 0 within the gate, 1 beyond it."""
        self.answer_with(on_phone, monkeypatch)
        first, second = tmp_path / "first.json", tmp_path / "second.json"
        assert run_bench(self.args("--model", "cdn", "--json", str(first))) == 0
        again = self.args("--model", "cdn", "--compare", str(first), "--json", str(second), "--gate-percent", "1")
        assert run_bench(again) == 0
        assert json.loads(second.read_text())["compare"]["ok"]
        old = json.loads(first.read_text())
        old["session"]["stages"]["total"]["p50"] *= 0.5
        first.write_text(json.dumps(old))
        capsys.readouterr()
        assert run_bench(again) == 1
        table = capsys.readouterr().out
        assert "+100.0 %  session total" in table
        assert "FAILS slower or larger" in table

    def answer_with(self, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("benchmarks.device.target.open_target", lambda serial, kind, log: phone())
        copy = json.dumps(result)
        monkeypatch.setattr("benchmarks.device.measure.measure_device", lambda *given: json.loads(copy))

    def test_a_failed_run_leaves_no_folder_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*given: Any) -> Any:
            raise InputError("no device")

        monkeypatch.setattr("benchmarks.device.target.open_target", refuse)
        with pytest.raises(InputError, match="no device"):
            run_bench(self.args("--model", "cdn", "--html", str(tmp_path / "a" / "b"), "--json", str(tmp_path / "c/d")))
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="--html can't be written"):
            run_bench(self.args("--model", "cdn", "--html", str(tmp_path / "file" / "x")))

    def test_a_file_that_is_no_result_is_refused_before_measuring(self, tmp_path: Path) -> None:
        (tmp_path / "old.json").write_text("{}")
        with pytest.raises(InputError, match="no device benchmark"):
            bench_cli.run_device(self.args("--model", "cdn", "--compare", str(tmp_path / "old.json")))

    @pytest.mark.parametrize(
        "words",
        [
            ("--gate-percent", "nan", "--compare", "old.json"),
            ("--gate-percent", "-1", "--compare", "old.json"),
            ("--gate-percent", "2"),
            ("--json", "."),
            ("--html", "a-file"),
            ("--json", "a-file/r.json"),
        ],
    )
    def test_flags_that_can_not_be_kept_are_refused_before_measuring(
        self, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a-file").write_text("")
        with pytest.raises(InputError, match=r"^(a-file\S*: )?--(gate-percent|json|html) "):
            bench_cli.run_device(self.args("--model", "no-model-is-looked-for", *words))

    def test_what_was_measured_is_kept_whatever_fails_afterwards(
        self, on_phone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer_with(on_phone, monkeypatch)
        old = json.loads(json.dumps(on_phone))
        old["graphs"], old["session"]["stages"], old["peak_rss_kb"] = [], {}, {}
        (tmp_path / "old.json").write_text(json.dumps(old))
        monkeypatch.setattr("benchmarks.device.report.render_device", lambda result: 1 // 0)
        for words in (("--compare", str(tmp_path / "old.json")), ("--html", str(tmp_path / "page"))):
            kept = tmp_path / f"{words[0]}.json"
            args = self.args("--model", "cdn", "--json", str(kept), *words)
            with pytest.raises((InputError, ZeroDivisionError)):
                bench_cli.run_device(args)
            assert json.loads(kept.read_text())["graphs"] == on_phone["graphs"]

    def test_an_older_result_of_another_phone_is_refused_before_measuring(
        self, on_phone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer_with(on_phone, monkeypatch)
        other = json.loads(json.dumps(on_phone))
        other["device"]["properties"]["model"] = "Pixel 4"
        (tmp_path / "old.json").write_text(json.dumps(other))
        with pytest.raises(InputError, match="another device"):
            bench_cli.run_device(self.args("--model", "cdn", "--compare", str(tmp_path / "old.json")))

    @pytest.mark.slow
    def test_this_machine_by_the_command_itself(self, cdn: Path, tmp_path: Path) -> None:
        import kir

        words = ["bench", "--serial", "host", "--model", str(cdn), "--runs", "5", "--threads", "1"]
        assert kir.main([*words, "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "page")]) == 0
        result = json.loads((tmp_path / "r.json").read_text())
        assert (result["kind"], result["unit"]) == ("host", "us")
        # A process of its own each: the replay imports gRPC, the graphs do not.
        assert result["peak_rss_kb"]["graphs float32"] < result["peak_rss_kb"]["golden replay"]
        assert (tmp_path / "page" / "report.html").is_file()
