"""The search finds what passes, puts back only what it must, and says all that it tried."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kir
from contract.errors import InputError
from convert import auto_together
from convert.auto import Found, Trial, _Search, with_auto
from convert.auto_together import Held, Rung, hold_together
from convert.build import BuiltGraph
from convert.measure import Ranking
from convert.model import convert_model
from convert.phone import Sample
from convert.quantize import FLOAT, Recipe, load_recipes
from convert.report import Gates
from convert.source import KirSource
from convert.subject import KirSubject
from convert.tflite import TfliteGraph, check_contract
from convert.verify import AUTO, Chain
from tests.convert.conftest import LOOSE

Built = dict[str, BuiltGraph]
ROOMY = replace(LOOSE, tau=0.5, top1=0.2)  # what passes alone passes together
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
    return with_auto(floats, subject, bases(), folder, prefer="size", gates=ROOMY)


def bases() -> list[Recipe]:
    return [recipe for recipe in load_recipes(BASES) if recipe.quantizer]


@pytest.fixture
def swipe_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search tries nothing but float in the other graphs: one graph's layers are enough to see how it goes."""
    base = _Search._base
    monkeypatch.setattr(_Search, "_base", lambda self, one: base(self, one) if self.name == "swipe" else [])


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
        chain = Chain(subject, floats, ROOMY)
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


@pytest.mark.usefixtures("swipe_alone")
class TestGates:
    def mended(self, floats: Built, subject: KirSubject, folder: Path, gates: Gates) -> Found:
        graphs = {key: floats[key] for key in KEYS}
        found = with_auto(graphs, subject, [load_recipes(["int4-dynamic"])[1]], folder, prefer="size", gates=gates)[1]
        return found["swipe"]

    def test_a_base_that_misses_is_mended_by_as_few_layers_as_it_takes(
        self, floats: Built, subject: KirSubject, tmp_path: Path
    ) -> None:
        found = self.mended(floats, subject, tmp_path, Gates(tau=0.0, top1=0.0, snr_db=35.0))
        bare = next(trial for trial in found.trials if trial.base == "int4-dynamic" and not trial.kept)
        assert not bare.passed
        assert bare.snr_db < 35.0 <= found.chosen.snr_db
        assert found.chosen.base == "int4-dynamic"
        assert len(found.chosen.kept) > 0
        rule = found.recipe.recipe[-1]
        assert rule["op_config"]["weight_tensor_config"]["num_bits"] == 8
        assert all(re.search(rule["regex"], scope) for scope in found.chosen.kept)

    def test_gates_that_nothing_quantised_meets_leave_float(
        self, floats: Built, subject: KirSubject, tmp_path: Path
    ) -> None:
        found = self.mended(floats, subject, tmp_path, Gates(snr_db=90.0))
        assert found.chosen.base == FLOAT
        assert found.recipe.quantizer is None


class TestSpeed:
    def test_all_that_pass_are_timed_in_turns(self, floats: Built, subject: KirSubject, tmp_path: Path) -> None:
        _, found = with_auto(floats, subject, [bases()[1]], tmp_path, prefer="speed", gates=LOOSE)
        assert all(trial.latency_us > 0 for one in found.values() for trial in one.trials)
        assert all(one.chosen in one.trials for one in found.values())

    @pytest.mark.usefixtures("swipe_alone")
    @pytest.mark.parametrize("fastest", [FLOAT, "int8-weight-only", "int4-dynamic"])
    def test_the_fastest_is_chosen(
        self, floats: Built, subject: KirSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fastest: str
    ) -> None:
        def told(self: _Search, trials: Sequence[Trial]) -> list[Trial]:
            timed = [replace(trial, latency_us=5.0 if trial.base == fastest else 9.0) for trial in trials]
            self.files |= {after: self.files[before] for before, after in zip(trials, timed, strict=True)}
            self.recipes |= {after: self.recipes[before] for before, after in zip(trials, timed, strict=True)}
            return timed

        monkeypatch.setattr(_Search, "_timed", told)
        graphs = {key: floats[key] for key in KEYS}
        _, found = with_auto(graphs, subject, bases(), tmp_path, prefer="speed", gates=LOOSE)
        assert found["swipe"].chosen.base == fastest


class FakeChain:
    """A chain in which a file is its tau, and what graphs lose adds up."""

    def __init__(self, gate: float, chained: tuple[str, ...]):
        self.gates = Gates(tau=gate, top1=0.0)
        self.subject = SimpleNamespace(chained=chained)

    def judge(self, key: str, file: float) -> tuple[None, Ranking, None, bool]:
        return None, Ranking(file, 1.0, 1.0), None, file >= self.gates.tau

    def together(self, files: Mapping[str, float]) -> tuple[Ranking, None]:
        return Ranking(1.0 - sum(1.0 - tau for tau in files.values()), 1.0, 1.0), None

    def inside(self, ranks: Ranking, outcomes: None) -> bool:
        return ranks.tau >= self.gates.tau


class TestTogether:
    @pytest.fixture(autouse=True)
    def files_are_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auto_together, "TfliteGraph", float)

    def held(
        self, gate: float, chained: tuple[str, ...] = ("page", "watch"), **ladders: list[tuple[float, float]]
    ) -> Held:
        """ladders: (cost, tau) from the cheapest to float."""
        rungs = {name: [Rung({f"{name}/N9": tau}, cost) for cost, tau in many] for name, many in ladders.items()}
        return hold_together(FakeChain(gate, chained), rungs)  # type: ignore[arg-type]

    def test_a_first_trial_that_fails_on_all_samples_gives_way_to_the_second(self) -> None:
        found = self.held(0.9, page=[(10, 0.8), (20, 0.95), (30, 1.0)])
        assert found.chosen == {"page": 1}
        assert found.alone["page"] == {0: False, 1: True}

    def test_graphs_that_pass_alone_and_not_together_climb_where_it_costs_least(self) -> None:
        ladder = [(10.0, 0.94), (12.0, 0.99), (99.0, 1.0)]
        found = self.held(0.92, page=ladder, watch=[(10.0, 0.94), (40.0, 0.99), (99.0, 1.0)])
        assert found.chosen == {"page": 1, "watch": 0}

    def test_a_graph_goes_down_again_where_the_others_leave_room(self) -> None:
        """Watch's step gains most for its cost and is not enough; after page's it is not needed any more."""
        found = self.held(
            0.9, page=[(100.0, 0.9), (150.0, 0.985), (500.0, 1.0)], watch=[(10.0, 0.95), (11.0, 0.96), (99.0, 1.0)]
        )
        assert found.chosen == {"page": 1, "watch": 0}

    def test_a_dearer_rung_that_ranks_no_better_is_passed_over(self) -> None:
        found = self.held(
            0.9, page=[(10.0, 0.95), (11.0, 0.94), (12.0, 0.99), (99.0, 1.0)], watch=[(5.0, 0.92), (90.0, 1.0)]
        )
        assert found.chosen == {"page": 2, "watch": 0}

    def test_what_is_not_in_the_chain_passes_alone(self) -> None:
        found = self.held(0.9, ("page",), page=[(10.0, 0.91), (99.0, 1.0)], place=[(1.0, 0.5), (2.0, 0.9), (9.0, 1.0)])
        assert found.chosen == {"page": 0, "place": 1}

    def test_nothing_holds_but_float(self) -> None:
        found = self.held(0.999, page=[(1.0, 0.9), (9.0, 1.0)], watch=[(1.0, 0.9), (9.0, 1.0)])
        assert found.chosen == {"page": 1, "watch": 1}


@pytest.mark.usefixtures("swipe_alone")
class TestAllSamples:
    def test_what_holds_on_the_part_and_not_on_all_gives_way(
        self, floats: Built, subject: KirSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A chain on all samples that refuses the smallest file of swipe: the second smallest is what is found."""
        every = KirSubject(subject.source, subject.samples)
        judge = Chain.judge
        refused: list[int] = []

        def strict(self: Chain, key: str, file: TfliteGraph, **words: Any) -> Any:
            answer = judge(self, key, file, **words)
            if self.subject is not every or key != "swipe/N9":
                return answer
            refused.append(file.n_bytes)
            return (*answer[:3], file.n_bytes > refused[0])

        monkeypatch.setattr(Chain, "judge", strict)
        built, found = with_auto(floats, subject, bases(), tmp_path, prefer="size", gates=ROOMY, every=every)
        sizes = sorted(trial.n_bytes for trial in found["swipe"].trials if trial.passed or not trial.kept)
        assert refused[0] == sizes[0]
        assert found["swipe"].chosen.n_bytes == sizes[1] == built["swipe/N9"].variants[AUTO].stat().st_size
        assert [trial.held for trial in found["swipe"].trials if trial.n_bytes == sizes[0]] == [False]


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
