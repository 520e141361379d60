"""The search finds what passes, puts back only what it must, and says all that it tried."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kir
from contract.errors import InputError
from convert.auto import AUTO, Found, with_auto
from convert.build import BuiltGraph
from convert.model import convert_model
from convert.phone import Sample
from convert.quantize import FLOAT, Recipe, load_recipes
from convert.report import Gates
from convert.source import KirSource
from convert.subject import KirSubject
from convert.tflite import TfliteGraph, check_contract
from convert.verify import Chain
from tests.convert.conftest import LOOSE

Built = dict[str, BuiltGraph]
BASES = ("int4-dynamic", "int8-weight-only")
KEYS = ("swipe/N9", "watch/T1", "watch/T3", "page/N9", "place/N9", "whole/N9")


def only(graphs: Built, folder: Path) -> Built:
    """Float files alone, as the search takes them."""
    folder.mkdir()
    found = {}
    for key, graph in graphs.items():
        path = Path(shutil.copyfile(graph.variants[FLOAT], folder / graph.variants[FLOAT].name))
        found[key] = replace(graph, variants={FLOAT: path}, integer=())
    return found


@pytest.fixture(scope="module")
def subject(source: KirSource, samples: list[Sample]) -> KirSubject:
    return KirSubject(source, samples[:12])


@pytest.fixture(scope="module")
def floats(conversion: Any, tmp_path_factory: pytest.TempPathFactory) -> Built:
    from tests.convert import makers

    return only(makers.built_from(conversion.directory), tmp_path_factory.mktemp("auto") / "graphs")


@pytest.fixture(scope="module")
def smallest(
    floats: Built, subject: KirSubject, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Built, dict[str, Found]]:
    folder = tmp_path_factory.mktemp("smallest")
    return with_auto(floats, subject, bases(), folder, prefer="size", gates=LOOSE)


def bases() -> list[Recipe]:
    return [recipe for recipe in load_recipes(BASES) if recipe.quantizer]


class TestSize:
    def test_every_graph_but_the_reference_has_one(self, smallest: tuple[Built, dict[str, Found]]) -> None:
        built, found = smallest
        assert set(found) == {"page", "watch", "swipe", "place"}
        assert {key for key, graph in built.items() if AUTO in graph.variants} == set(KEYS) - {"whole/N9"}

    def test_the_files_keep_the_contract(self, smallest: tuple[Built, dict[str, Found]]) -> None:
        for key, graph in smallest[0].items():
            if key != "whole/N9":
                check_contract(TfliteGraph(graph.variants[AUTO]), graph.inputs, graph.outputs)

    def test_the_smallest_that_passes_is_chosen(self, smallest: tuple[Built, dict[str, Found]]) -> None:
        for found in smallest[1].values():
            assert found.chosen.passed
            assert found.chosen.n_bytes == min(trial.n_bytes for trial in found.trials if trial.passed)
            assert {trial.base for trial in found.trials} == {FLOAT, *BASES}

    def test_what_is_chosen_passes_again(
        self, smallest: tuple[Built, dict[str, Found]], subject: KirSubject, floats: Built
    ) -> None:
        chain = Chain(subject, floats, LOOSE)
        chain.begin()
        for key, graph in smallest[0].items():
            if AUTO in graph.variants:
                assert chain.judge(key, TfliteGraph(graph.variants[AUTO]))[3], key

    def test_buckets_share_a_recipe_and_their_bytes_are_counted(self, smallest: tuple[Built, dict[str, Found]]) -> None:
        built, found = smallest
        sizes = [built[key].variants[AUTO].stat().st_size for key in ("watch/T1", "watch/T3")]
        assert found["watch"].chosen.n_bytes == sum(sizes)

    def test_integers_are_told(self, smallest: tuple[Built, dict[str, Found]]) -> None:
        for graph in smallest[0].values():
            if graph.name in smallest[1]:
                assert (AUTO in graph.integer) == smallest[1][graph.name].recipe.integer

    def test_no_trial_is_left_lying_about(self, smallest: tuple[Built, dict[str, Found]]) -> None:
        folder = smallest[0]["swipe/N9"].variants[AUTO].parent
        assert all(path.name.endswith(f".{AUTO}.tflite") for path in folder.iterdir())

    def test_it_comes_as_json(self, smallest: tuple[Built, dict[str, Found]]) -> None:
        told = json.loads(json.dumps(smallest[1]["swipe"].to_json()))
        assert told["recipe"]["name"] == AUTO
        assert told["chosen"] in told["trials"]
        assert "tried" in str(smallest[1]["swipe"])


class TestGates:
    def mended(self, floats: Built, subject: KirSubject, folder: Path, gates: Gates) -> Found:
        graphs = {key: floats[key] for key in KEYS}
        found = with_auto(graphs, subject, [load_recipes(["int4-dynamic"])[1]], folder, prefer="size", gates=gates)[1]
        return found["swipe"]

    def test_a_base_that_misses_is_mended_by_as_few_layers_as_it_takes(
        self, floats: Built, subject: KirSubject, tmp_path: Path
    ) -> None:
        found = self.mended(floats, subject, tmp_path, Gates(tau=0.0, top1=0.0, snr_db=20.0))
        bare = next(trial for trial in found.trials if trial.base == "int4-dynamic" and not trial.kept)
        assert not bare.passed
        assert bare.snr_db < 20.0 <= found.chosen.snr_db
        assert found.chosen.base == "int4-dynamic"
        assert len(found.chosen.kept) > 0
        rules = found.recipe.recipe[-len(found.chosen.kept) :]
        assert {rule["op_config"]["weight_tensor_config"]["num_bits"] for rule in rules} == {8}

    def test_gates_that_nothing_quantised_meets_leave_float(
        self, floats: Built, subject: KirSubject, tmp_path: Path
    ) -> None:
        found = self.mended(floats, subject, tmp_path, Gates(snr_db=90.0))
        assert found.chosen.base == FLOAT
        assert found.recipe.quantizer is None


class TestSpeed:
    def test_all_that_pass_are_timed_in_turns(self, floats: Built, subject: KirSubject, tmp_path: Path) -> None:
        _, found = with_auto(floats, subject, [bases()[1]], tmp_path, prefer="speed", gates=LOOSE)
        assert all(one.chosen.latency_us > 0 for one in found.values())


class TestCommand:
    @pytest.mark.slow
    def test_the_search_stands_in_the_directory(self, checkpoint: Path, tmp_path: Path) -> None:
        said: list[str] = []
        result = convert_model(
            checkpoint, tmp_path / "out", recipes=("int8-weight-only",), windows=12, gates=LOOSE, auto="size",
            progress=said.append,
        )  # fmt: skip
        about = json.loads((result.directory / "model.json").read_text())
        assert about["prefer"] == "size"
        assert set(about["auto"]) == {"page", "watch", "swipe", "place"}
        report = result.verification
        assert report.row("swipe/N9", AUTO).passed
        for name in ("page/N9", "swipe/N9"):
            mine = [row for row in report.rows if row.graph == name and row.variant != "onnx" and row.passed]
            assert report.row(name, report.shipped[name]).n_bytes == min(row.n_bytes for row in mine)
        assert any("tried" in line for line in said)

    def test_an_unknown_objective(self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(InputError, match="size"):
            convert_model(checkpoint, tmp_path / "out", auto="beauty")
        with pytest.raises(SystemExit):
            kir.main(["convert", "model", str(checkpoint), "--out", str(tmp_path / "o"), "--auto", "beauty"])
        assert "invalid choice" in capsys.readouterr().err
