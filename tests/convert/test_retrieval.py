"""kir convert retrieval: KuaiFormer alone, by a catalogue file or by the data that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import kir
from contract.catalogue import read_catalogue
from contract.keys import key_of_string
from server_stub.history_file import read_history
from server_stub.retrieve import Retriever
from tests.convert import makers
from training.checkpoint import load_checkpoint
from training.kuaiformer_train import load_kuaiformer, train_kuaiformer
from training.readers import open_data
from training.recipe import Recipe
from training.retrieval_eval import KuaiFormerScorer
from training.retrieval_split import RetrievalSplit, split_of

N_USERS, N_ITEMS, RAW = 30, 25, 7  # raw ids are multiples of RAW: no row numbers


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Leave-one-out data with genres, as MovieLens-1M lies on a disk."""
    folder, random = tmp_path_factory.mktemp("ml-1m"), np.random.default_rng(0)
    parts = (*["train"] * 6, "val", "test")
    columns = {
        "user_id": np.repeat(np.arange(N_USERS), len(parts)),
        "position": np.tile(np.arange(len(parts)), N_USERS),
        "item_id": RAW * random.integers(0, N_ITEMS, N_USERS * len(parts)),
        "split": np.tile(parts, N_USERS),
    }
    pq.write_table(pa.table(columns), folder / "leave_one_out.parquet")
    items = RAW * np.arange(N_ITEMS)
    pq.write_table(pa.table({"item_id": items, "genres": ["Action|Comedy"] * N_ITEMS}), folder / "items.parquet")
    return f"ml-1m:{folder}"


@pytest.fixture(scope="module")
def split(sequences: str) -> RetrievalSplit:
    return split_of(open_data(sequences), "ml-1m")


@pytest.fixture(scope="module")
def trained(split: RetrievalSplit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "model"
    recipe = Recipe().changed(["train.epochs=2", "data.batch=64", "model.windows=[]", "model.latest=8"])
    checkpoint = train_kuaiformer(split, out, recipe)
    assert checkpoint is not None
    return out


def test_sequences_are_exported_by_their_name_alone(
    trained: Path, sequences: str, split: RetrievalSplit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The catalogue is the data's, content included, and what is retrieved is what the checkpoint ranks first."""
    out = tmp_path / "encoder"
    assert kir.main(["convert", "retrieval", str(trained), "--data", sequences, "--out", str(out)]) == 0
    assert f"{split.n_items} items" in capsys.readouterr().out
    items = read_catalogue(out / "catalogue.parquet")
    assert (items.video_id == split.items.video_id).all()
    assert (items.tags[:, :2] == [key_of_string("Action"), key_of_string("Comedy")]).all()
    user = np.array([3])
    history = split.history_rows(user, split.chosen("val").end[user], 8)[0]
    ids = split.items.video_id[history[history >= 0]]
    file = tmp_path / "history.json"
    file.write_text(json.dumps(ids.tolist()))
    answer = Retriever.load(out).answer(read_history(file, None), split.n_items)
    checkpoint = load_checkpoint(trained)
    scorer = KuaiFormerScorer(load_kuaiformer(checkpoint), checkpoint.tables)
    with torch.no_grad():
        scores = scorer.scores(split, user, split.chosen("val").end[user])[0]
    rows = items.index_of(answer.video_id)
    assert len(rows) > N_ITEMS // 2
    np.testing.assert_allclose(answer.score, scores[rows], atol=1e-5)


def test_a_log_is_exported_by_its_name_too(tmp_path: Path) -> None:
    checkpoint = makers.make_kuaiformer(tmp_path / "model")
    data = f"events:{makers.make_events(tmp_path / 'log')}"
    assert kir.main(["convert", "retrieval", str(checkpoint.path), "--data", data, "--out", str(tmp_path / "out")]) == 0
    items = read_catalogue(tmp_path / "out" / "catalogue.parquet")
    assert set(items.video_id.tolist()) == set(makers.VIDEOS.tolist())


def test_a_file_counts_before_the_data(tmp_path: Path) -> None:
    checkpoint = makers.make_kuaiformer(tmp_path / "model")
    file = makers.make_catalogue(tmp_path / "catalogue.parquet", n=40)
    data = f"events:{makers.make_events(tmp_path / 'log')}"
    words = ["convert", "retrieval", str(checkpoint.path), "--catalogue", str(file), "--data", data]
    assert kir.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "catalogue.parquet").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data KIND:PATH"),
        (["--catalogue", "MODEL/config.json"], "model/config.json: not a readable Parquet file"),
        (["--catalogue", "nowhere.parquet"], "nowhere.parquet: file does not exist"),
        (["--data", "ml-1m:nowhere"], "nowhere: file does not exist"),
    ],
)
def test_mistakes_name_what_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    model = makers.make_kuaiformer(tmp_path / "model").path
    words = [word.replace("MODEL", str(model)) for word in words]
    assert kir.main(["convert", "retrieval", str(model), *words, "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in line
    assert ".part" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left behind"
