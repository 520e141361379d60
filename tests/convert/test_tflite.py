"""ONNX -> TFLite: the interface is the contract's, the operators are builtins, XNNPACK takes part."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kir
from contract.errors import ConversionError, InputError
from contract.manifest import Tensor
from convert.build import BuiltGraph
from convert.onnx_export import export_onnx
from convert.probe import probe
from convert.quantize import FLOAT
from convert.source import KirSource
from convert.tflite import TfliteGraph, check_contract, convert_onnx, custom_operators
from tests.convert import makers
from tests.convert.small_graphs import layers

Built = dict[str, BuiltGraph]


def test_names_shapes_and_types_are_the_contracts(built: Built) -> None:
    for graph in built.values():
        for path in graph.variants.values():
            inputs, outputs = TfliteGraph(path).tensors()
            assert {t.name: t for t in inputs} == {t.name: t for t in graph.inputs}
            assert {t.name: t for t in outputs} == {t.name: t for t in graph.outputs}


def test_every_layout_survived_the_converter(built: Built, source: KirSource) -> None:
    """Left alone, onnx2tf makes [1, N, F] of rank 3 into [1, F, N]; rank 4 (`past`, `placed`) likewise."""
    ranks = {t.name: len(t.shape) for graph in built.values() for t in graph.inputs}
    assert ranks["past"] == ranks["placed"] == 4
    for key, graph in built.items():
        feeds = {name: tensor.numpy() for name, tensor in source.graphs[key].inputs.items()}
        got = TfliteGraph(graph.variants[FLOAT]).run(feeds)
        for name, want in source.graphs[key].run(feeds).items():
            np.testing.assert_allclose(got[name], want, atol=2e-5, err_msg=f"{key} {name}")


def test_xnnpack_takes_part_in_few_pieces(built: Built) -> None:
    for graph in built.values():
        for path in graph.variants.values():
            assert 1 <= TfliteGraph(path).partitions <= 5, path.name


def test_operators_left_out_are_those_that_a_load_without_fusing_leaves_out(built: Built) -> None:
    """Counted from one load as a phone has it, and by `convert.probe` from two."""
    paths = [path for graph in built.values() for path in graph.variants.values()]
    for path, found in zip(paths, probe(paths), strict=True):
        assert TfliteGraph(path).left_out == len(found.left_out), path.name


def test_no_custom_operator(built: Built) -> None:
    assert [custom_operators(p.read_bytes()) for g in built.values() for p in g.variants.values()].count({}) == sum(
        len(g.variants) for g in built.values()
    )


def test_a_custom_operator_is_found(built: Built) -> None:
    path = built["swipe/N9"].variants[FLOAT]

    def change(model: object) -> None:
        model.operatorCodes[0].customCode = b"FlexErf"  # type: ignore[attr-defined]

    makers.edit_tflite(path, change)
    (found,) = custom_operators(path.read_bytes()).items()
    assert found[0] == "FlexErf"
    assert all(found[1])  # the tensors that it writes, by name


def test_running_gives_new_arrays(built: Built, source: KirSource) -> None:
    runner = TfliteGraph(built["swipe/N9"].variants[FLOAT])
    feeds = {name: tensor.numpy() for name, tensor in source.graphs["swipe/N9"].inputs.items()}
    first = runner.run(feeds)["scores"]
    kept = first.copy()
    runner.run({**feeds, "query": feeds["query"] + 1})
    np.testing.assert_array_equal(first, kept)


def test_latency_is_measured_per_call(built: Built, source: KirSource) -> None:
    feeds = {name: tensor.numpy() for name, tensor in source.graphs["swipe/N9"].inputs.items()}
    times = TfliteGraph(built["swipe/N9"].variants[FLOAT]).latency_us(feeds, calls=7)
    assert len(times) == 7
    assert min(times) > 0


@pytest.mark.parametrize("keep", [0, 7, 500])
def test_a_truncated_file_is_refused_in_one_error(built: Built, keep: int) -> None:
    path = built["swipe/N9"].variants[FLOAT]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConversionError, match="LiteRT refuses"):
        TfliteGraph(path)


def test_an_absent_file_is_refused_in_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="LiteRT refuses"):
        TfliteGraph(tmp_path / "nowhere.tflite")


class TestCheckContract:
    def test_a_renamed_input(self, built: Built) -> None:
        graph = built["swipe/N9"]
        runner = TfliteGraph(graph.variants[FLOAT])
        inputs = tuple(Tensor("memory_bank" if t.name == "memory" else t.name, t.shape) for t in graph.inputs)
        with pytest.raises(ConversionError, match="inputs differ"):
            check_contract(runner, inputs, graph.outputs)

    def test_a_transposed_input(self, built: Built) -> None:
        graph = built["swipe/N9"]
        runner = TfliteGraph(graph.variants[FLOAT])
        inputs = tuple(Tensor(t.name, (1, *t.shape[:0:-1]), t.dtype) for t in graph.inputs)
        with pytest.raises(ConversionError, match="inputs differ"):
            check_contract(runner, inputs, graph.outputs)

    def test_a_missing_output(self, built: Built) -> None:
        graph = built["page/N9"]
        with pytest.raises(ConversionError, match="outputs differ"):
            check_contract(TfliteGraph(graph.variants[FLOAT]), graph.inputs, graph.outputs[:-1])

    def test_another_type(self, built: Built) -> None:
        graph = built["page/N9"]
        outputs = tuple(Tensor(t.name, t.shape, "int8") for t in graph.outputs)
        with pytest.raises(ConversionError, match="outputs differ"):
            check_contract(TfliteGraph(graph.variants[FLOAT]), graph.inputs, outputs)

    def test_order_does_not_count(self, built: Built) -> None:
        graph = built["page/N9"]
        check_contract(TfliteGraph(graph.variants[FLOAT]), graph.inputs[::-1], graph.outputs[::-1])

    def test_a_graph_without_the_delegate(self, built: Built) -> None:
        graph = built["page/N9"]
        runner = TfliteGraph(graph.variants[FLOAT])
        runner.operators = tuple(op for op in runner.operators if op != "DELEGATE")
        with pytest.raises(ConversionError, match="XNNPACK"):
            check_contract(runner, graph.inputs, graph.outputs)


def test_without_onnx2tf_one_sentence_says_what_to_type(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx2tf", None)
    graph = built["swipe/N9"]
    with pytest.raises(InputError, match="kir convert setup"):
        convert_onnx(graph.onnx, tmp_path / "x.tflite", graph.inputs)


def test_the_onnx_file_stays_as_it_was(tmp_path: Path) -> None:
    """onnx2tf simplifies the file that it is given, in place."""
    graph = layers()
    onnx = export_onnx(graph, tmp_path / "layers.onnx")
    before = onnx.read_bytes()
    convert_onnx(onnx, tmp_path / "layers.tflite", graph.contract()[0])
    assert onnx.read_bytes() == before


def test_a_command_on_the_path_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone, onnx2tf calls `onnxsim` where there is one: another file, ten times as slow."""
    command, called = tmp_path / "onnxsim", tmp_path / "called"
    command.write_text(f"#!/bin/sh\ntouch {called}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    graph = layers()
    onnx = export_onnx(graph, tmp_path / "layers.onnx")
    convert_onnx(onnx, tmp_path / "layers.tflite", graph.contract()[0])
    assert not called.exists()


def test_the_recursion_limit_stays(tmp_path: Path) -> None:
    """onnx2tf's import sets it to the largest int, and a nested JSON file then overflows the stack."""
    code = (
        "import sys; from convert.tflite import run_onnx2tf\n"
        "before = sys.getrecursionlimit()\n"
        "try: run_onnx2tf(input_onnx_file_path='nowhere.onnx')\n"
        "except BaseException: pass\n"
        "assert 'onnx2tf' in sys.modules\n"
        "sys.exit(sys.getrecursionlimit() != before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(kir.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_onnx_file_that_is_none_fails_in_one_error(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ConversionError, match="onnx2tf"):
        convert_onnx(tmp_path / "bad.onnx", tmp_path / "x.tflite", ())
