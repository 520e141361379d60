"""The verification chain: what is right passes, every planted fault fails, and nothing unfit ships."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from contract.errors import VerificationFailed
from convert.build import BuiltGraph
from convert.model import ConversionResult
from convert.phone import Sample
from convert.quantize import FLOAT
from convert.report import FLOAT_TOLERANCE, INT8_TOLERANCE, Gates, Verification
from convert.source import KirSource
from convert.subject import KirSubject
from convert.verify import verify
from tests.convert import makers
from tests.convert.conftest import LOOSE

Built = dict[str, BuiltGraph]
SWIPE = "swipe/N9"


@pytest.fixture
def check(source: KirSource, samples: list[Sample]) -> Callable[..., Verification]:
    def run(built: Built, **gates: float) -> Verification:
        return verify(KirSubject(source, samples), built, gates=replace(LOOSE, **gates))

    return run


Check = Callable[..., Verification]


def scale_onnx(path: Path, factor: float) -> None:
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda i: int(np.prod(i.dims)))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * np.float32(factor), largest.name))
    onnx.save(model, path)


class TestTheReport:
    def test_it_has_every_file(self, conversion: ConversionResult) -> None:
        report = conversion.verification
        graphs = {row.graph for row in report.rows}
        assert graphs == {"page/N9", "watch/T1", "watch/T3", SWIPE, "place/N9", "whole/N9"}
        assert {row.variant for row in report.rows if row.graph == SWIPE} == {
            "onnx", FLOAT, "int8-dynamic", "int8-weight-only",
        }  # fmt: skip

    def test_float_is_float(self, conversion: ConversionResult) -> None:
        for row in conversion.verification.rows:
            if row.variant in ("onnx", FLOAT):
                assert row.max_abs < 1e-4
                assert row.cosine == pytest.approx(1.0, abs=1e-6)
                assert (row.tau, row.top1) == (1.0, 1.0)
        assert conversion.verification.halves_max_abs < 1e-4

    def test_quantised_is_close(self, conversion: ConversionResult) -> None:
        rows = [row for row in conversion.verification.rows if row.variant.startswith("int8")]
        assert rows
        assert all(row.max_abs > 1e-4 and row.cosine > 0.99 for row in rows)
        assert all(row.latency_us > 0 and row.partitions > 0 for row in rows)

    def test_every_graph_ships_one_of_its_files_and_its_buckets_the_same(self, conversion: ConversionResult) -> None:
        shipped = conversion.verification.shipped
        assert shipped["watch/T1"] == shipped["watch/T3"]
        assert shipped["whole/N9"] == FLOAT
        assert all(conversion.verification.row(key, name).passed for key, name in shipped.items())

    def test_it_saves_itself_and_comes_back(self, conversion: ConversionResult, tmp_path: Path) -> None:
        path = conversion.verification.save(tmp_path / "report.json")
        assert Verification.from_json(json.loads(path.read_text())) == conversion.verification

    def test_the_table_marks_what_ships(self, conversion: ConversionResult) -> None:
        table = conversion.verification.table()
        for key, variant in conversion.verification.shipped.items():
            assert any(line.startswith(key) and f"{variant}*" in line for line in table.splitlines())
        assert "bytes to a phone" in table

    def test_tolerances_have_floors(self, conversion: ConversionResult) -> None:
        report = conversion.verification
        for row in report.rows:
            if row.variant != "onnx":
                assert report.tolerance(row.graph, row.variant) >= (INT8_TOLERANCE if row.integer else FLOAT_TOLERANCE)
        assert report.tolerance(SWIPE, "int8-weight-only") == report.tolerance(SWIPE, FLOAT)

    def test_the_phones_bytes_leave_the_reference_out(self, conversion: ConversionResult) -> None:
        report = conversion.verification
        every = sum(report.row(key, name).n_bytes for key, name in report.shipped.items())
        assert report.shipped_bytes == every - report.row("whole/N9", FLOAT).n_bytes


class TestPlantedFaults:
    def test_nothing_planted_nothing_found(self, check: Check, built: Built) -> None:
        assert check(built).n_samples == 24

    @pytest.mark.parametrize("key", ["page/N9", "watch/T1", "watch/T3", SWIPE, "place/N9", "whole/N9"])
    def test_a_weight_one_per_cent_off(self, check: Check, built: Built, key: str) -> None:
        makers.edit_tflite(built[key].variants[FLOAT], makers.scale_largest_weight(1.01))
        with pytest.raises(VerificationFailed, match="differs from torch"):
            check(built)

    def test_a_weight_one_per_cent_off_in_onnx(self, check: Check, built: Built) -> None:
        scale_onnx(built[SWIPE].onnx, 1.01)
        with pytest.raises(VerificationFailed, match=r"swipe/N9 in ONNX.*differs"):
            check(built)

    def test_two_inputs_of_one_shape_swapped(self, check: Check, built: Built) -> None:
        makers.edit_tflite(built[SWIPE].variants[FLOAT], makers.swap_inputs("since", "memory_mask"))
        with pytest.raises(VerificationFailed, match="differs from torch"):
            check(built)

    def test_two_inputs_of_different_shape_swapped(self, check: Check, built: Built) -> None:
        makers.edit_tflite(built[SWIPE].variants[FLOAT], makers.swap_inputs("query", "memory"))
        with pytest.raises(VerificationFailed, match="inputs differ"):
            check(built)

    @pytest.mark.parametrize("variant", [FLOAT, "int8-dynamic"])
    def test_a_truncated_file(self, check: Check, built: Built, variant: str) -> None:
        path = built["watch/T1"].variants[variant]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(VerificationFailed, match="LiteRT refuses"):
            check(built)

    def test_a_truncated_onnx_file(self, check: Check, built: Built) -> None:
        path = built["watch/T1"].onnx
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(VerificationFailed, match="refuses"):
            check(built)

    def test_a_missing_file(self, check: Check, built: Built) -> None:
        built["page/N9"].variants["int8-dynamic"].unlink()
        with pytest.raises(VerificationFailed, match="LiteRT refuses"):
            check(built)

    def test_the_graph_of_another_model(self, check: Check, built: Built) -> None:
        """Right names, right shapes, other weights."""
        makers.edit_tflite(built["page/N9"].variants[FLOAT], makers.scale_largest_weight(-1.0))
        with pytest.raises(VerificationFailed):
            check(built)

    def test_a_gate_nothing_can_pass(self, check: Check, built: Built) -> None:
        with pytest.raises(VerificationFailed, match="allowed: 0"):
            check(built, float_max_abs=0.0)

    def test_a_sample_that_reaches_no_graph_of_a_bucket(
        self, source: KirSource, built: Built, samples: list[Sample]
    ) -> None:
        short = [s for s in samples if s.n_watched + 1 <= 2][:1]
        with pytest.raises(VerificationFailed, match="no held-out input"):
            verify(KirSubject(source, short), built, gates=LOOSE)


class TestShipping:
    def test_a_variant_that_ranks_wrongly_is_recorded_and_does_not_ship(self, check: Check, built: Built) -> None:
        for name in ("int8-dynamic", "int8-weight-only"):
            path = built[SWIPE].variants[name]
            makers.edit_tflite(built[SWIPE].variants[FLOAT], lambda model: None)
            path.write_bytes(_negated(built[SWIPE].variants[FLOAT], path))
        report = check(built)
        assert report.shipped[SWIPE] == FLOAT
        assert not report.row(SWIPE, "int8-dynamic").passed
        assert "!" in report.table()

    def test_gates_that_no_quantised_graph_meets_ship_float(self, check: Check, built: Built) -> None:
        report = check(built, tau=0.99999, top1=1.0)
        lossless = {k for k in report.shipped if report.row(k, report.shipped[k]).tau >= 0.99999}
        assert lossless == set(report.shipped)
        assert report.together.tau >= 0.99999

    def test_the_faster_of_two_ships(self, check: Check, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        from convert import verify as module

        def slow_floats(self: Any, key: str) -> dict[str, list[float]]:
            return {name: [10.0 if name == "int8-dynamic" else 50.0] * 10 for name in self.files[key]}

        monkeypatch.setattr(module.Chain, "_latencies", slow_floats)
        assert check(built, tau=-1.0, top1=0.0).shipped[SWIPE] == "int8-dynamic"

    def test_the_smaller_of_two_as_fast_ships(
        self, check: Check, built: Built, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from convert import verify as module

        def equal(self: Any, key: str) -> dict[str, list[float]]:
            return {name: [50.0 if name == "int8-dynamic" else 20.0] * 10 for name in self.files[key]}

        monkeypatch.setattr(module.Chain, "_latencies", equal)
        assert check(built, tau=-1.0, top1=0.0).shipped[SWIPE] == "int8-weight-only"

    def test_the_default_gates_are_those_of_the_measurements(self) -> None:
        assert Gates() == Gates(
            float_max_abs=1e-4,
            halves_max_abs=1e-4,
            tau=0.98,
            top1=0.97,
            gauc_loss=0.002,
            gauc_abs=1.0,
            snr_db=15.0,
            cosine=0.999,
        )


class TestOutcomes:
    """What is known of users' long views: of each slate the better one of the closest pair, which rounding may swap."""

    @pytest.fixture
    def report(self, source: KirSource, samples: list[Sample], built: Built) -> Callable[..., Verification]:
        plain, labelled = KirSubject(source, samples), []
        for i, sample in enumerate(samples):
            value = plain.values(i, plain.reference(i))
            order = np.argsort(-value)
            labels = np.zeros(sample.n_candidates, np.float32)
            labels[order[np.argmin(-np.diff(value[order]))]] = 1.0
            labelled.append(replace(sample, labels=labels))

        def run(**gates: float) -> Verification:
            return verify(KirSubject(source, labelled), built, gates=replace(LOOSE, **gates))

        return run

    def test_a_mean_change_beyond_the_bound_does_not_ship_though_its_interval_reaches_over_it(
        self, report: Callable[..., Verification]
    ) -> None:
        free, bound = report(gauc_loss=1.0), report(gauc_loss=1.0, gauc_abs=1e-9)
        changed = {
            (row.graph, row.variant) for row in free.rows if row.outcomes is not None and row.outcomes.gauc.mean != 0.0
        }
        assert changed
        for graph, variant in changed:
            assert free.row(graph, variant).passed
            assert not bound.row(graph, variant).passed
            assert bound.shipped[graph] != variant

    def test_their_intervals_are_told_line_by_line(self, report: Callable[..., Verification]) -> None:
        found = report()
        lines = found.outcomes_table().splitlines()
        assert len(lines) == sum(row.outcomes is not None for row in found.rows) > 0
        assert all("GAUC" in line and "nDCG@5" in line and "[" in line for line in lines)


def _negated(float_path: Path, scratch: Path) -> bytes:
    """The float graph with its largest weight turned round: loads, runs, and ranks wrongly."""
    scratch.write_bytes(float_path.read_bytes())
    makers.edit_tflite(scratch, makers.scale_largest_weight(-8.0))
    return scratch.read_bytes()


def test_what_is_not_possible_stands_in_the_report(check: Check, built: Built) -> None:
    built[SWIPE] = replace(built[SWIPE], failed={"int4-blocks": "a width that is no multiple of 32"})
    report = check(built)
    assert report.failed == ((SWIPE, "int4-blocks", "a width that is no multiple of 32"),)
    assert any(
        line.startswith(SWIPE) and line.endswith("not possible: a width that is no multiple of 32")
        for line in report.table().splitlines()
    )
    assert Verification.from_json(json.loads(json.dumps(report.to_json()))) == report
