"""kir retrieve: histories from files people write, good ones and bad ones, and the answers of a bundle."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import InputError, IntegrityError
from contract.parquet import read_events
from contract.vocabulary import MISSING_KEY
from server_stub.bundle import load_models, read_index
from server_stub.cli import add_retrieve_arguments, run_retrieve
from server_stub.histories import Histories
from server_stub.history_file import HistoryFile, read_history
from server_stub.retrieve import Retriever
from tests.server_stub.tiny_bundle import N_ITEMS, WIDTH, make_catalogue, topic_of, write_item_update

ROWS = [
    {"video_id": 1002, "play_time_ms": 4000, "time_ms": 10_000},
    {"video_id": 1006, "play_time_ms": 900, "time_ms": 70_000, "tags": [3, 17]},
    {"video_id": 1010, "author_id": 501, "duration_ms": 7_000, "time_ms": 71_000},
]


@pytest.fixture(scope="module")
def retriever(shared_bundle: Path) -> Retriever:
    return Retriever.load(shared_bundle)


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"history.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        names = sorted({name for row in rows for name in row})

        def cell(value: Any) -> str:
            return "|".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)

        lines = [",".join(names), *(",".join(cell(row.get(name)) for name in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        names = sorted({name for row in rows for name in row})
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


def columns(file: HistoryFile, length: int = 8) -> dict[str, list[Any]]:
    history, _ = file.history(make_catalogue(), length)
    held = history.columns(len(history))
    return {name: column.tolist() for name, column in held.items()}


class TestFiles:
    @pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
    def test_each_kind_tells_the_same(self, tmp_path: Path, kind: str) -> None:
        found = columns(read_history(written(tmp_path, kind, ROWS)))
        items = make_catalogue()
        known = {name: getattr(items, name)[[2, 6, 10]].tolist() for name in ("author_id", "tags", "duration_ms")}
        missing = int(MISSING_KEY)
        assert found["video_id"] == [1002, 1006, 1010]
        assert found["play_time_ms"] == [4000, 900, -1]
        assert found["gap_ms"] == [-1, 60_000, 1_000]
        assert found["author_id"] == [*known["author_id"][:2], 501]  # the file's word counts, else the catalogue's
        assert found["duration_ms"] == [*known["duration_ms"][:2], 7_000]
        assert found["tags"] == [known["tags"][0], [3, 17, *[missing] * (len(known["tags"][0]) - 2)], known["tags"][2]]

    def test_a_list_of_ids_is_enough(self, tmp_path: Path) -> None:
        (tmp_path / "ids.json").write_text("[1002, 1006]")
        found = columns(read_history(tmp_path / "ids.json"))
        assert found["video_id"] == [1002, 1006]
        assert (found["gap_ms"], found["play_time_ms"]) == ([-1, -1], [-1, -1])

    def test_times_order_the_rows_and_a_gap_of_the_file_stands(self, tmp_path: Path) -> None:
        rows = [{"video_id": 1005, "time_ms": 900, "gap_ms": 5}, {"video_id": 1001, "time_ms": 100}]
        found = columns(read_history(written(tmp_path, "json", rows)))
        assert (found["video_id"], found["gap_ms"]) == ([1001, 1005], [-1, 5])

    def test_without_all_times_the_files_order_counts(self, tmp_path: Path) -> None:
        rows = [{"video_id": 1005, "time_ms": 900}, {"video_id": 1001}]
        assert columns(read_history(written(tmp_path, "json", rows)))["video_id"] == [1005, 1001]

    def test_an_event_file_is_a_history_file(self, shared_bundle: Path) -> None:
        """As the server would hold that user's history."""
        path, models = shared_bundle / "histories.parquet", load_models(read_index(shared_bundle))
        file = read_history(path, user_id=4)
        history, unknown = file.history(models.catalogue, models.retrieval.length)
        want = Histories(read_events(path)).view(4, [], models.catalogue).positives
        assert (len(history), unknown, file.skipped) == (8, 0, 0)
        for name, column in want.columns().items():
            if name == "signals":
                continue  # a file need not tell them, and KuaiFormer does not read them
            np.testing.assert_array_equal(history.columns()[name], column)

    def test_rows_that_are_no_positives_are_left_out_and_counted(self, tmp_path: Path) -> None:
        rows = [{"video_id": 1001 + i, "long_view": i % 2, "like": int(i == 0)} for i in range(4)]
        file = read_history(written(tmp_path, "csv", rows))
        assert ([row["video_id"] for row in file.rows], file.skipped) == ([1001, 1002, 1004], 1)

    @pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
    def test_one_user_of_several(self, tmp_path: Path, kind: str) -> None:
        rows = [{"video_id": 1001 + i, "user_id": i % 2} for i in range(5)]
        path = written(tmp_path, kind, rows)
        file = read_history(path, user_id=1)
        assert ([row["video_id"] for row in file.rows], file.user_id) == ([1002, 1004], 1)
        with pytest.raises(InputError, match="several users; got 2 users; choose one: --user"):
            read_history(path)
        with pytest.raises(InputError, match="nothing of this user"):
            read_history(path, user_id=9)

    def test_only_the_last_ones_fit(self, tmp_path: Path) -> None:
        (tmp_path / "ids.json").write_text(json.dumps(list(range(1000, 1030))))
        assert columns(read_history(tmp_path / "ids.json"), 4)["video_id"] == [1026, 1027, 1028, 1029]


class TestBadFiles:
    @pytest.mark.parametrize(
        ("name", "content", "match"),
        [
            ("h.txt", "1", "unknown kind of history file; got .txt"),
            ("h.json", '[{"video_id": 1', "not readable JSON"),
            ("h.json", '{"video_id": 1}', "a list of video ids or of objects; got dict"),
            ("h.json", '[{"video_id": 1, "watch": 3}]', r"unknown columns; got \['watch'\]"),
            ("h.json", '[{"author_id": 1}]', "a row without a video"),
            ("h.json", '["seven"]', "row 1, video_id: not a whole number"),
            ("h.json", "[1, 2.5]", "row 2, video_id: not a whole number"),
            ("h.json", "[true]", "not a whole number"),
            ("h.json", "[-4]", "in range"),
            ("h.json", f"[{2**64 - 1}]", "in range"),
            ("h.json", '[{"video_id": 1, "duration_ms": 3000000000}]', "duration_ms: not a whole number in range"),
            ("h.csv", "", "the column video_id is missing"),
            ("h.csv", "author_id\n3\n", "the column video_id is missing"),
            ("h.csv", "video_id,tags\n3,1|x\n", "row 1, tags: not a whole number"),
            ("h.csv", "video_id,tags\n3\n", "another number of fields"),
            ("h.csv", "video_id\n3,4\n", "another number of fields"),
            ("h.csv", "video_id\n\n", None),
            ("h.parquet", "PAR1 cut short", "not a readable Parquet file"),
        ],
    )
    def test_each_fault_is_told(self, tmp_path: Path, name: str, content: str, match: str | None) -> None:
        path = tmp_path / name
        path.write_text(content)
        if match is None:
            assert read_history(path).rows == []
            return
        with pytest.raises(InputError, match=match) as error:
            read_history(path)
        assert name in str(error.value)

    def test_a_truncated_parquet(self, tmp_path: Path) -> None:
        path = written(tmp_path, "parquet", ROWS)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match="not a readable Parquet file"):
            read_history(path)

    def test_absent_or_without_users(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            read_history(tmp_path / "none.json")
        with pytest.raises(InputError, match="--user needs a column user_id"):
            read_history(written(tmp_path, "json", ROWS), user_id=3)


class TestAnswers:
    def test_the_topic_of_the_history(self, retriever: Retriever, tmp_path: Path) -> None:
        answer = retriever.answer(read_history(written(tmp_path, "json", ROWS)), 20)
        assert set(topic_of(answer.video_id).tolist()) == {2}
        assert not np.isin([1002, 1006, 1010], answer.video_id).any()
        assert (np.diff(answer.score) <= 0).all()
        assert (answer.history, answer.unknown, answer.interests) == (3, 0, 2)
        assert set(answer.interest.tolist()) <= {0, 1}

    def test_it_is_what_the_server_would_retrieve(self, retriever: Retriever, shared_bundle: Path) -> None:
        models = load_models(read_index(shared_bundle))
        path = shared_bundle / "histories.parquet"
        view = Histories(read_events(path)).view(5, [], models.catalogue).positives
        want = models.retrieval.search(models.retrieval.encode(view), 30, np.unique(view.columns(20)["video_id"]))
        answer = retriever.answer(read_history(path, user_id=5), 30)
        np.testing.assert_array_equal(answer.video_id, want.video_id)
        np.testing.assert_array_equal(answer.score, want.score)

    def test_unknown_videos_count_and_are_told(self, retriever: Retriever, tmp_path: Path) -> None:
        (tmp_path / "ids.json").write_text("[1002, 99999, 1006, 88888]")
        answer = retriever.answer(read_history(tmp_path / "ids.json"), 5)
        assert (answer.history, answer.unknown) == (4, 2)
        assert "2 of the file's videos are unknown to the catalogue" in answer.told()

    @pytest.mark.parametrize("file", [None, HistoryFile([])])
    def test_a_new_user_gets_an_answer(self, retriever: Retriever, file: HistoryFile | None) -> None:
        answer = retriever.answer(file, 7)
        assert (len(answer.video_id), answer.history) == (7, 0)
        assert "no history" in answer.told()

    def test_more_than_there_is(self, retriever: Retriever) -> None:
        assert len(retriever.answer(None, 10_000).video_id) == N_ITEMS
        with pytest.raises(InputError, match="-n"):
            retriever.answer(None, 0)

    def test_item_updates_of_a_bundle_count(self, bundle: Path) -> None:
        write_item_update(bundle, 1, np.array([5000], np.uint64), np.full((1, WIDTH), 9.0, np.float32), more=[5000])
        (path := bundle.parent / "ids.json").write_text("[1001]")
        assert Retriever.load(bundle).answer(read_history(path), 3).video_id[0] == 5000


class TestCommand:
    def run(self, *words: Any) -> int:
        parser = argparse.ArgumentParser()
        add_retrieve_arguments(parser)
        return run_retrieve(parser.parse_args([str(word) for word in words]))

    def test_table_and_json(self, shared_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = written(tmp_path, "csv", ROWS)
        assert self.run(shared_bundle, "--history", path, "-n", 4) == 0
        told = capsys.readouterr()
        assert "kuaiformer-tiny: 3 positives; 2 interests" in told.err
        lines = told.out.splitlines()
        assert len(lines) == 5
        assert self.run(shared_bundle, "--history", path, "-n", 4, "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert [str(item["video_id"]) for item in answer["items"]] == [line.split()[1] for line in lines[1:]]
        assert [item["score"] for item in answer["items"]] == sorted(
            (item["score"] for item in answer["items"]), reverse=True
        )
        assert answer["history"] == 3

    def test_a_bundle_without_its_ranker_still_answers(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.rmtree(bundle / "ranker")
        assert self.run(bundle, "-n", 2) == 0
        assert "no history" in capsys.readouterr().err

    def test_bad_directories(self, bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="kir convert retrieval"):
            self.run(tmp_path)
        (bundle / "retrieval/encoder.onnx").write_bytes(b"cut short")
        with pytest.raises(IntegrityError, match="another size"):
            self.run(bundle)

    def test_a_user_needs_a_file(self, shared_bundle: Path) -> None:
        with pytest.raises(InputError, match="--history"):
            self.run(shared_bundle, "--user", 3)
