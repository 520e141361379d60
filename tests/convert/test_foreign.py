"""Models we did not design through the same command: they pass the gate, or fail loudly with the right reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kir
from contract.errors import ConversionError, InputError
from convert.foreign import ModuleJob
from convert.model import convert_model
from convert.module_contract import ModuleContract
from convert.report import Gates
from tests.convert import zoo

# Twelve candidates with random weights are full of near-ties.
LOOSE = Gates(tau=0.95, top1=0.9)
GOOD = ("mlp", "sasrec", "din", "dcn_v2", "gru4rec", "square", "gelu_erf", "embeddings")


def write_contract(folder: Path, name: str, /, **changes: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**zoo.CONTRACTS[name], **changes}))
    return path


def job_of(folder: Path, name: str) -> ModuleJob:
    return ModuleJob.load(f"tests.convert.zoo:{name}", write_contract(folder, name))


class TestZoo:
    @pytest.mark.parametrize("name", GOOD)
    def test_it_converts_and_passes(self, tmp_path: Path, name: str) -> None:
        result = convert_model(job_of(tmp_path, name), tmp_path / "out", windows=24, gates=LOOSE)
        report = result.verification
        assert report.row(name, "float32").max_abs < 1e-4
        assert report.row(name, "int8-weight-only").passed
        assert report.row(name, "int8-dynamic").passed
        assert (result.directory / "golden" / f"{name}.npz").is_file()
        assert json.loads((result.directory / "model.json").read_text())["kind"] == "module"

    def test_an_operator_that_tflite_lacks_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="ONNX_DET, which writes scores"):
            convert_model(job_of(tmp_path, "determinant"), tmp_path / "out", windows=8, gates=LOOSE)
        assert not (tmp_path / "out").exists()

    def test_what_ranks_nothing_is_gated_by_cosine(self, tmp_path: Path) -> None:
        result = convert_model(
            job_of(tmp_path, "embeddings"), tmp_path / "out", windows=8, gates=Gates(cosine=1.0, snr_db=0.0)
        )
        assert not result.verification.row("embeddings", "int8-dynamic").passed
        assert result.verification.shipped["embeddings"] == "float32"
        card = (tmp_path / "out" / "card.md").read_text()
        assert "| kept of float torch | cosine 1.0" in card
        assert "tau" not in card, "a rank of 1 would be a lie"


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`kir convert --module`, with held-out inputs from a file."""
    folder = tmp_path_factory.mktemp("foreign")
    contract = write_contract(folder, "dcn_v2")
    rng = np.random.default_rng(0)
    np.savez(folder / "inputs.npz", features=rng.normal(size=(40, 1, zoo.N, 4 * zoo.D)).astype(np.float32))
    argv = [
        "convert",
        "--module",
        "tests.convert.zoo:dcn_v2",
        "--contract",
        str(contract),
        "--out",
        str(folder / "out"),
    ]
    assert kir.main([*argv, "--data", str(folder / "inputs.npz"), "--windows", "16"]) == 0
    return folder


class TestCommand:
    def test_it_says_what_it_was_verified_on(self, by_command: Path) -> None:
        report = json.loads((by_command / "out" / "verification.json").read_text())
        assert report["data"] == "inputs.npz: 40 inputs"
        assert report["n_samples"] == 16
        assert "inputs.npz" in (by_command / "out" / "card.md").read_text()

    def test_it_is_not_for_a_phones_store(self, by_command: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["publish", str(by_command / "out"), "--cdn", str(by_command / "cdn")]) == 2
        assert "another kind" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "argv", [[], ["--module", "a:b"], ["--contract", "c.json"], ["ck", "--module", "a:b", "--contract", "c"]]
    )
    def test_a_checkpoint_or_a_module(
        self, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert kir.main(["convert", "model", *argv, "--out", str(tmp_path / "o")]) == 2
        assert "not both" in capsys.readouterr().err


class TestContract:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"inputs": []}, "names of their own"),
            ({"outputs": ["candidates"]}, "names of their own"),
            ({"rank": {"output": "value"}}, "rank names no output"),
            ({"rank": 3}, "rank is no object"),
            ({"rnk": {"output": "scores"}}, "keys of the contract; got 'rnk'; allowed: .*rank"),
            ({"rank": {"output": "scores", "colum": 0}}, "keys of rank; got 'colum'"),
            ({"inputs": [{"name": "x", "shape": [1], "dtype": "int32", "bellow": 9}]}, "input 'x'; got 'bellow'"),
            ({"inputs": [{"name": "x", "shape": [1], "dtype": "int32", "below": 0}]}, "starts at 1; got 0"),
            ({"rank": {"output": "scores", "column": "a"}}, "column is a whole number"),
            ({"rank": {"output": "scores", "column": 1.5}}, "column is a whole number"),
            ({"rank": {"output": "scores", "column": True}}, "column is a whole number"),
            ({"name": ""}, "name is of letters"),
            ({"name": "m/../../x"}, "name is of letters"),
            ({"name": ".."}, "name is of letters"),
            ({"name": "whole"}, "name is of letters"),
            ({"inputs": [{"name": "x", "shape": [1, 0], "dtype": "float32"}]}, "fixed and positive"),
            ({"inputs": [{"name": "x", "shape": [1, 2], "dtype": "float16"}]}, "dtype of input 'x'"),
            ({"inputs": [{"name": "x", "dtype": "float32"}]}, "malformed: keys of input 'x'; got no 'shape'"),
            ({"inputs": [{"name": "x", "shape": [1, 2], "dtype": "float32", "values": []}]}, "values of input 'x'"),
            ({"inputs": [{"name": "x", "shape": [1], "dtype": "float32", "values": [1e999]}]}, "values of input 'x'"),
            ({"inputs": [{"name": "x", "shape": [1], "dtype": "float32", "values": ["a"]}]}, "malformed"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            ModuleContract.read(write_contract(tmp_path, "mlp", **changes))

    def test_no_file_and_no_json(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="can't be read"):
            ModuleContract.read(tmp_path / "none.json")
        (tmp_path / "bad.json").write_text("{")
        with pytest.raises(InputError, match="malformed"):
            ModuleContract.read(tmp_path / "bad.json")

    @pytest.mark.parametrize(
        ("factory", "words"),
        [
            ("tests.convert.zoo", "PACKAGE.MODULE:FACTORY"),
            ("tests.convert.zoo:nothing", "can't be found"),
            ("no.such.module:make", "can't be found"),
            ("tests.convert.zoo:not_a_module", "no torch module"),
        ],
    )
    def test_a_factory_that_is_none(self, tmp_path: Path, factory: str, words: str) -> None:
        with pytest.raises(InputError, match=words):
            ModuleJob.load(factory, write_contract(tmp_path, "mlp"))

    @pytest.mark.parametrize(
        ("text", "words"),
        [("def f(:", "can't be imported.*SyntaxError"), ("raise OSError('no gpu')", "OSError: no gpu")],
    )
    def test_a_module_that_can_not_be_imported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
    ) -> None:
        name = f"bad_{abs(hash(text))}"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(InputError, match=words):
            ModuleJob.load(f"{name}:f", write_contract(tmp_path, "mlp"))

    @pytest.mark.parametrize(
        ("name", "column", "words"),
        [
            ("dcn_v2", 2, "column is none of the last axis of 'scores'; got 2; allowed: 0 … 1"),
            ("dcn_v2", -1, "column is none"),
            ("mlp", 5, "rank orders one candidate of 'scores'"),
        ],
    )
    def test_a_column_that_ranks_nothing(self, tmp_path: Path, name: str, column: int, words: str) -> None:
        contract = write_contract(tmp_path, name, rank={"output": "scores", "column": column})
        with pytest.raises(InputError) as raised:
            ModuleJob.load(f"tests.convert.zoo:{name}", contract)
        assert words in str(raised.value)

    def test_a_module_without_a_layer_to_quantise_is_sent_to_float(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="recipe quantises no layer") as raised:
            convert_model(job_of(tmp_path, "doubled"), tmp_path / "out", windows=4, gates=LOOSE)
        assert raised.value.fix == "for float alone: --recipe float32"
        assert "doubled.float32.tflite" in str(raised.value)
        assert str(tmp_path) not in str(raised.value)  # a path that is gone by now


class TestData:
    def test_every_second_input_calibrates(self, tmp_path: Path) -> None:
        job = job_of(tmp_path, "mlp")
        values = np.arange(10, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, zoo.N, zoo.D), np.float32)
        np.savez(tmp_path / "x.npz", candidates=values)
        opened, words = job.open(tmp_path / "x.npz", 0)
        assert words == "x.npz: 10 inputs"
        held, calibrating = job.subject(opened, 9, 0), job.calibration(opened, 3, 0)
        assert [feeds["candidates"].flat[0] for feeds in held.feeds] == [0, 2, 4, 6, 8]
        assert [feeds["candidates"].flat[0] for feeds in calibrating.feeds] == [1, 3, 5]

    def test_a_mask_is_drawn_from_its_values(self, tmp_path: Path) -> None:
        shape = [1, zoo.N, zoo.D]
        inputs = [{"name": "candidates", "shape": shape, "dtype": "float32", "values": [0, 1]}]
        job = ModuleJob.load("tests.convert.zoo:mlp", write_contract(tmp_path, "mlp", inputs=inputs))
        drawn = np.concatenate([one["candidates"].ravel() for one in job.subject(None, 8, 0).feeds])
        assert drawn.dtype == np.float32
        assert set(drawn.tolist()) == {0.0, 1.0}

    def test_ids_stay_below_the_tables_size(self, tmp_path: Path) -> None:
        feeds = job_of(tmp_path, "sasrec").subject(None, 20, 1).feeds
        ids = np.concatenate([one["history"].ravel() for one in feeds])
        assert ids.dtype == np.int32
        assert 0 <= ids.min() < 20
        assert zoo.VOCABULARY - 20 < ids.max() < zoo.VOCABULARY

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"other": np.zeros((3, 1, zoo.N, zoo.D), np.float32)}, "lack candidates.*got other.*np.savez"),
            ({"candidates": np.zeros((3, 1, zoo.N, 2), np.float32)}, "not of the contract"),
            ({"candidates": np.zeros((3, 1, zoo.N, zoo.D))}, "not of the contract"),
            ({"candidates": np.zeros((1, 1, zoo.N, zoo.D), np.float32)}, "too few"),
            ({"candidates": np.full((3, 1, zoo.N, zoo.D), np.nan, np.float32)}, r"nan in row 0 \(3 rows\).*finite"),
        ],
    )
    def test_a_file_that_does_not_fit(self, tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(InputError, match=words):
            job_of(tmp_path, "mlp").open(tmp_path / "x.npz", 0)

    @pytest.mark.parametrize("kind", ["text", "truncated", "npy", "none"])
    def test_no_npz(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "x.npz"
        if kind == "npy":
            with open(path, "wb") as file:
                np.save(file, np.zeros(3))
        elif kind != "none":
            np.savez(path, candidates=np.zeros((3, 1, zoo.N, zoo.D), np.float32))
            path.write_bytes(b"nothing" if kind == "text" else path.read_bytes()[:300])
        with pytest.raises(InputError, match="can't be read") as raised:
            job_of(tmp_path, "mlp").open(path, 0)
        assert "pickle" not in str(raised.value), "no advice to load what may run code"

    def test_what_the_contract_leaves_out_is_named_by_array_and_row(self, tmp_path: Path) -> None:
        contract = job_of(tmp_path, "sasrec").contract
        good = {t.name: np.stack([contract.drawn(np.random.default_rng(i))[t.name] for i in range(4)])
                for t in contract.inputs}  # fmt: skip
        name, mask = next(iter(contract.below)), next(iter(contract.values))
        for array, value, words in ((name, zoo.VOCABULARY, "0 … "), (name, -1, "0 … "), (mask, 0.5, "one of 0, 1")):
            bad = {key: value_S.copy() for key, value_S in good.items()}
            bad[array][2].flat[0] = value
            np.savez(tmp_path / "x.npz", **bad)
            with pytest.raises(InputError, match=rf"'{array}' .* got {value} in row 2 \(1 rows\); allowed: {words}"):
                contract.read_inputs(tmp_path / "x.npz")

    def test_integers_without_a_bound_are_not_made_up(self, tmp_path: Path) -> None:
        """Drawn from two ids, a verdict on a table of a thousand would look like any other."""
        data = zoo.CONTRACTS["sasrec"]
        inputs = [{key: value for key, value in one.items() if key != "below"} for one in data["inputs"]]
        job = ModuleJob.load("tests.convert.zoo:sasrec", write_contract(tmp_path, "sasrec", inputs=inputs))
        with pytest.raises(InputError, match="without a bound"):
            job.open(None, 0)


class TestModules:
    def test_a_factory_that_fails_is_told_in_its_own_words(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"factory failed.*no weights here"):
            ModuleJob.load("tests.convert.zoo:broken", write_contract(tmp_path, "mlp"))

    def test_inputs_that_the_module_does_not_take(self, tmp_path: Path) -> None:
        words = r"does not run on its contract's inputs; got forward does not take history, mask; .* in .*sasrec\.json"
        with pytest.raises(InputError, match=words):
            ModuleJob.load("tests.convert.zoo:mlp", write_contract(tmp_path, "sasrec"))

    def test_scores_of_several_tasks_need_a_column(self, tmp_path: Path) -> None:
        """Without one all of them would be ranked as candidates of one slate."""
        contract = write_contract(tmp_path, "dcn_v2", rank={"output": "scores"})
        with pytest.raises(InputError, match=r'which axis of .scores. .* "column": 0'):
            ModuleJob.load("tests.convert.zoo:dcn_v2", contract)

    def test_another_number_of_outputs(self, tmp_path: Path) -> None:
        contract = write_contract(tmp_path, "mlp", outputs=["scores", "more"])
        with pytest.raises(ConversionError, match="another number of outputs"):
            ModuleJob.load("tests.convert.zoo:mlp", contract)
