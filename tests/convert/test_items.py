"""Items into a bundle that serves, and a retrieval exported alone: the server's own readers take both."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.catalogue import Catalogue, read_catalogue, write_catalogue
from contract.errors import CheckpointError, ConversionError, InputError, VersionMismatch
from contract.history import UserHistory
from convert import items as module
from convert.bundle import add_rows, read_bundle, write_bundle
from convert.cli import add_convert_arguments, run_convert
from convert.files import written_aside
from convert.items import update_items
from convert.retrieval import write_retrieval
from server_stub.bundle import load_models, load_retrieval, read_index, read_item_update
from server_stub.recommender import Recommender
from server_stub.retrieve import Retriever
from tests.convert import makers
from training.checkpoint import load_checkpoint, save_checkpoint
from training.kuaiformer_train import load_kuaiformer

PLAN: dict[str, Any] = {"windows": (4, 4), "latest": 4}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("parts")
    return {
        "retrieval": makers.make_kuaiformer(root / "retrieval", **PLAN).path,
        "ranker": makers.make_ranker(root / "ranker").path,
        "kir": [makers.make_kir(root / "kir").path],
        "catalogue": makers.make_catalogue(root / "catalogue.parquet", n=50),
        "users": makers.make_users(root / "users.parquet"),
    }


@pytest.fixture(scope="module")
def whole(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the first 50 videos."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bundle", **parts).directory


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def retrained(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same net; the rows of two videos have moved."""
    return moved(parts["retrieval"], tmp_path_factory.mktemp("next") / "checkpoint", [4, 9])


def moved(checkpoint: Path, path: Path, videos: list[int], revision: int = 2) -> Path:
    """A checkpoint whose rows of some videos stand elsewhere."""
    base = load_checkpoint(checkpoint)
    with torch.no_grad():
        base.tables.weights["video"][base.tables.slots("video", makers.VIDEOS[videos])] += 3.0
    saved = save_checkpoint(
        path, kind="kuaiformer", model=load_kuaiformer(base), tables=base.tables, spec=base.spec,
        model_config=base.model_config, training={"rows_revision": revision}, metrics={}, card_text="# next\n",
    )  # fmt: skip
    assert saved.version == base.version
    return path


def changed_catalogue(path: Path, keep: slice = slice(0, 60), **columns: Any) -> Path:
    """Catalogue of `keep` of sixty videos, some columns replaced."""
    items = read_catalogue(makers.make_catalogue(path.with_name("sixty.parquet")))
    items = replace(items, **columns)
    return write_catalogue(path, Catalogue(**{n: getattr(items, n)[keep] for n in items.__dataclass_fields__}))


class TestUpdate:
    def test_ten_new_videos_are_placed_by_their_content(
        self, bundle: Path, parts: dict[str, Any], tmp_path: Path
    ) -> None:
        """As if the bundle had been written with the larger catalogue, but for an index that stays."""
        path = changed_catalogue(tmp_path / "catalogue.parquet")
        before = read_bundle(bundle)
        update = update_items(bundle, catalogue=path)
        assert (update.added, update.changed, update.removed) == (10, 0, 0)
        assert "10 items added" in update.table()
        retrieval, catalogue = load_retrieval(read_index(bundle))
        assert read_bundle(bundle).retrieval_version == before.retrieval_version
        assert len(catalogue) == len(retrieval.item_ids) == 60
        want = write_retrieval(tmp_path / "whole", checkpoint=parts["retrieval"], catalogue=path).directory
        vectors, ids = np.load(want / "item_vectors.npy"), np.load(want / "item_ids.npy")
        queries = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
        found, scores = retrieval.items.search(queries, 60)
        for row, score, query in zip(found, scores, queries, strict=True):
            expected = np.argsort(-(vectors @ query), kind="stable")
            np.testing.assert_allclose(score, (vectors @ query)[expected], atol=1e-5)
            assert row.tolist() == ids[expected].tolist()

    def test_changed_content_and_removed_videos(self, bundle: Path, tmp_path: Path) -> None:
        author = makers.VIDEOS[np.arange(60) % 11]
        author[7] = makers.VIDEOS[40]
        path = changed_catalogue(tmp_path / "catalogue.parquet", slice(3, 50), author_id=author)
        held, _ = load_retrieval(read_index(bundle))
        update = update_items(bundle, catalogue=path)
        assert (update.added, update.changed, update.removed) == (0, 1, 3)
        ids, vectors, removed = read_item_update(bundle / update.file)
        assert ids.tolist() == makers.VIDEOS[7:8].tolist()
        assert removed.tolist() == makers.VIDEOS[:3].tolist()
        now, _ = load_retrieval(read_index(bundle))
        assert len(now.item_ids) == 47
        query = vectors / np.linalg.norm(vectors)
        assert now.items.search(query, 1)[0][0, 0] == ids[0]
        assert held.items.search(query, 50)[1][0, 0] < now.items.search(query, 1)[1][0, 0] - 1e-6

    def test_updates_follow_each_other(self, bundle: Path, tmp_path: Path) -> None:
        names = [
            update_items(bundle, catalogue=changed_catalogue(tmp_path / f"{n}.parquet", slice(0, n))).file
            for n in (52, 55, 51)
        ]
        assert names == [f"retrieval/items/00000{n}.safetensors" for n in (1, 2, 3)]
        retrieval, _ = load_retrieval(read_index(bundle))
        assert sorted(retrieval.item_ids.tolist()) == sorted(makers.VIDEOS[:51].tolist())

    def test_the_same_catalogue_changes_nothing(self, bundle: Path, parts: dict[str, Any]) -> None:
        before = (bundle / "bundle.json").read_bytes()
        update = update_items(bundle, catalogue=parts["catalogue"], retrieval=parts["retrieval"])
        assert (update.file, update.rows, (bundle / "bundle.json").read_bytes()) == ("", False, before)
        assert "no vector changes" in update.table()

    def test_rows_trained_further_move_their_items_alone(self, bundle: Path, retrained: Path) -> None:
        held, _ = load_retrieval(read_index(bundle))
        update = update_items(bundle, retrieval=retrained)
        assert (update.added, update.changed, update.removed, update.rows) == (0, 2, 0, True)
        ids, vectors, _ = read_item_update(bundle / update.file)
        assert set(ids.tolist()) == set(makers.VIDEOS[[4, 9]].tolist())
        now, _ = load_retrieval(read_index(bundle))
        assert now.version == held.version
        checkpoint = load_checkpoint(retrained)
        items = read_catalogue(bundle / read_index(bundle).catalogue)
        rows = np.flatnonzero(np.isin(items.video_id, ids))
        columns = {name: getattr(items, name)[rows] for name in ("video_id", "author_id", "tags", "duration_ms")}
        slots = checkpoint.tables.eval().field_slots(checkpoint.spec, "item_rows", columns)
        with torch.no_grad():
            block = checkpoint.tables.rows(
                checkpoint.spec, "item_rows", {name: torch.from_numpy(slot) for name, slot in slots.items()}
            )
            want = load_kuaiformer(checkpoint).item(block).numpy()
        np.testing.assert_allclose(vectors[np.argsort(ids)], want[np.argsort(items.video_id[rows])], atol=1e-5)
        # Histories are read with the new rows too.
        history = UserHistory(12)
        history.append({"video_id": makers.VIDEOS[4]}, 0)
        assert np.abs(now.encode(history) - held.encode(history)).max() > 1e-3

    def test_rows_have_a_revision_and_never_go_back(self, bundle: Path, parts: dict[str, Any], retrained: Path) -> None:
        assert read_bundle(bundle).retrieval_revision == read_index(bundle).retrieval_revision == 1
        update_items(bundle, retrieval=retrained)
        after = read_bundle(bundle)
        assert after.retrieval_revision == read_index(bundle).retrieval_revision == 2
        assert "rows at revision 2" in after.table()
        update_items(bundle, catalogue=parts["catalogue"])
        assert read_bundle(bundle).retrieval_revision == 2
        listed = (bundle / "bundle.json").read_bytes()
        with pytest.raises(VersionMismatch, match="newer rows of this net"):
            update_items(bundle, retrieval=parts["retrieval"])
        assert (bundle / "bundle.json").read_bytes() == listed
        assert update_items(bundle, retrieval=retrained).file == ""

    def test_other_rows_of_the_same_revision(
        self, bundle: Path, parts: dict[str, Any], retrained: Path, tmp_path: Path
    ) -> None:
        """Two trainings from one base: nobody could tell which one is served."""
        update_items(bundle, retrieval=retrained)
        listed = (bundle / "bundle.json").read_bytes()
        other = moved(parts["retrieval"], tmp_path / "other", [5])
        with pytest.raises(VersionMismatch, match="other rows of this revision"):
            update_items(bundle, retrieval=other)
        assert (bundle / "bundle.json").read_bytes() == listed
        later = moved(parts["retrieval"], tmp_path / "later", [5], revision=3)
        assert update_items(bundle, retrieval=later).changed == 3

    def test_a_checkpoint_of_another_net(self, bundle: Path, tmp_path: Path) -> None:
        other = makers.make_kuaiformer(tmp_path / "other", seed=1, **PLAN).path
        with pytest.raises(VersionMismatch, match="another encoder"):
            update_items(bundle, retrieval=other)
        with pytest.raises(InputError, match="nothing to bring"):
            update_items(bundle)

    def test_upload_times_alone_need_no_vectors(self, bundle: Path, tmp_path: Path) -> None:
        upload = np.full(60, 1_600_000_000_000, np.int64)
        update = update_items(
            bundle, catalogue=changed_catalogue(tmp_path / "c.parquet", slice(0, 50), upload_ms=upload)
        )
        assert update.file == ""
        _, catalogue = load_retrieval(read_index(bundle))
        assert set(catalogue.upload_ms.tolist()) == {1_600_000_000_000}

    def test_refusals_leave_the_bundle(self, bundle: Path, tmp_path: Path) -> None:
        before = (bundle / "bundle.json").read_bytes()
        with pytest.raises(InputError, match="nothing would be left"):
            update_items(bundle, catalogue=changed_catalogue(tmp_path / "none.parquet", slice(0, 0)))
        with pytest.raises(InputError, match="does not exist"):
            update_items(bundle, catalogue=tmp_path / "nowhere.parquet")
        with pytest.raises(InputError, match="kir convert server"):
            update_items(tmp_path, catalogue=tmp_path / "none.parquet")
        assert (bundle / "bundle.json").read_bytes() == before
        load_retrieval(read_index(bundle))


class TestInterrupted:
    """bundle.json is written last, and what it lists stays."""

    @pytest.mark.parametrize("step", range(4))  # renames of: the vectors, the rows, the catalogue, bundle.json
    def test_a_kill_leaves_the_old_bundle_and_the_next_update_is_whole(
        self, bundle: Path, retrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        listed, made = (bundle / "bundle.json").read_bytes(), []
        catalogue = changed_catalogue(tmp_path / "catalogue.parquet")
        for name in ("replace", "rename"):
            real = getattr(os, name)

            def killed(*given: Any, real: Any = real) -> None:
                if len(made) == step:
                    raise KeyboardInterrupt
                made.append(real(*given))

            monkeypatch.setattr(os, name, killed)
        with pytest.raises(KeyboardInterrupt):
            update_items(bundle, catalogue=catalogue, retrieval=retrained)
        monkeypatch.undo()
        assert len(made) == step
        assert (bundle / "bundle.json").read_bytes() == listed
        assert len(load_models(read_index(bundle)).retrieval.item_ids) == 50
        # Another catalogue than the one that was interrupted: nothing of that one may be left in the index.
        update_items(bundle, catalogue=changed_catalogue(tmp_path / "some.new.parquet", slice(2, 55)))
        models = load_models(read_index(bundle))
        assert models.catalogue.video_id.tolist() == makers.VIDEOS[2:55].tolist()
        assert sorted(models.retrieval.item_ids.tolist()) == sorted(makers.VIDEOS[2:55].tolist())
        assert models.retrieval_revision == 1

    def test_who_has_read_the_old_index_still_opens_its_files(
        self, bundle: Path, retrained: Path, tmp_path: Path
    ) -> None:
        for n, rows in ((52, retrained), (54, None), (53, None)):
            before = read_index(bundle)
            update_items(bundle, catalogue=changed_catalogue(tmp_path / f"{n}.parquet", slice(0, n)), retrieval=rows)
            assert len(load_models(before).catalogue) != n
            assert len(load_models(read_index(bundle)).catalogue) == n

    def test_what_was_superseded_goes_at_the_next_update(self, bundle: Path, retrained: Path, tmp_path: Path) -> None:
        for n, rows in ((52, retrained), (54, None), (53, None)):
            update_items(bundle, catalogue=changed_catalogue(tmp_path / f"{n}.parquet", slice(0, n)), retrieval=rows)
        index = read_index(bundle)
        assert len(list(bundle.glob("catalogue*"))) == 2  # of 54 videos and of 53
        assert [path.name for path in bundle.glob("retrieval/tables*")] == [Path(index.tables).name]
        assert len(index.item_files) == 3
        assert not [path for path in bundle.rglob(".*") if path.is_file()]

    def test_rows_added_between_leave_the_items(self, bundle: Path, tmp_path: Path) -> None:
        update_items(bundle, catalogue=changed_catalogue(tmp_path / "52.new.parquet", slice(0, 52)))
        before = read_index(bundle)
        add_rows(bundle, makers.make_kir(tmp_path / "next", seed=1).path)
        after = read_index(bundle)
        assert before.digest(before.model_files) == after.digest(after.model_files)
        assert len(after.dense_versions) == 2

    def test_a_bundle_that_changed_meanwhile(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other, vectors = changed_catalogue(tmp_path / "other.new.parquet", slice(0, 52)), module._vectors

        def slow(*given: Any) -> Any:
            monkeypatch.undo()
            update_items(bundle, catalogue=other)
            return vectors(*given)

        monkeypatch.setattr(module, "_vectors", slow)
        with pytest.raises(InputError, match="changed meanwhile"):
            update_items(bundle, catalogue=changed_catalogue(tmp_path / "mine.new.parquet", slice(0, 55)))
        assert len(load_models(read_index(bundle)).catalogue) == 52


class TestRetrievalAlone:
    def test_it_answers(self, parts: dict[str, Any], tmp_path: Path) -> None:
        lines: list[str] = []
        export = write_retrieval(
            tmp_path / "out", checkpoint=parts["retrieval"], catalogue=parts["catalogue"], progress=lines.append
        )
        assert lines == []  # a small catalogue and a float encoder: nothing was chosen
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (config["history"], config["encoder"], config["index"]["kind"]) == (12, {"kind": "float32"}, "Flat")
        assert export.to_json()["version"] == config["version"]
        assert "the last 12 positives" in export.table()
        retriever = Retriever.load(tmp_path / "out")
        assert retriever.retrieval.version == config["version"]
        answer = retriever.answer(None, 5)
        vectors, ids = np.load(tmp_path / "out/item_vectors.npy"), np.load(tmp_path / "out/item_ids.npy")
        best = vectors[[ids.tolist().index(video) for video in answer.video_id.tolist()]]
        assert len(best) == 5
        assert np.isfinite(answer.score).all()

    def test_the_whole_or_nothing(self, parts: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(CheckpointError):
            write_retrieval(tmp_path / "a" / "out", checkpoint=parts["ranker"], catalogue=parts["catalogue"])
        empty = makers.make_catalogue(tmp_path / "empty.parquet", n=0)
        with pytest.raises(ConversionError, match="empty"):
            write_retrieval(tmp_path / "a" / "out", checkpoint=parts["retrieval"], catalogue=empty)
        assert list((tmp_path / "a").iterdir()) == []

    def test_overwriting_is_explicit(self, parts: dict[str, Any], tmp_path: Path) -> None:
        given = {"checkpoint": parts["retrieval"], "catalogue": parts["catalogue"]}
        write_retrieval(tmp_path / "out", **given)
        (tmp_path / "out" / "stray").write_text("x")
        with pytest.raises(InputError, match="--overwrite"):
            write_retrieval(tmp_path / "out", **given)
        write_retrieval(tmp_path / "out", overwrite=True, **given)
        assert not (tmp_path / "out" / "stray").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("at", ["the old one aside", "the new one in", "the old one gone"])
    def test_an_interrupted_overwriting_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "old").write_text("x")
        (out / "config.json").write_text('{"format": "kir-server-model/1"}')
        made: list[Any] = []

        def killed(*given: Any) -> None:
            if len(made) == ["the old one aside", "the new one in"].index(at):
                raise KeyboardInterrupt
            made.append(replaced(*given))

        def undeletable(path: Any, ignore_errors: bool = False) -> None:
            if (Path(path) / "old").exists():
                raise KeyboardInterrupt
            removed(path, ignore_errors=ignore_errors)

        replaced, removed = os.replace, shutil.rmtree
        if at == "the old one gone":
            monkeypatch.setattr(shutil, "rmtree", undeletable)
        else:
            monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt), written_aside(out, overwrite=True) as aside:
            (aside / "new").write_text("y")
        monkeypatch.undo()
        assert [path.name for path in tmp_path.rglob("old")] == ["old"]
        assert (out / "new").exists() == (at == "the old one gone")


class TestAnyPlan:
    @pytest.mark.parametrize("plan", [{"windows": (), "latest": 3}, {"windows": (256, 16), "latest": 30}])
    def test_the_server_reads_what_the_encoder_reads(
        self, plan: dict[str, Any], parts: dict[str, Any], tmp_path: Path
    ) -> None:
        """Shorter and longer than the default 256: the last positives, as many as the plan has slots."""
        length = sum(plan["windows"]) + plan["latest"]
        net = makers.make_kuaiformer(tmp_path / "net", **plan)
        bundle = write_bundle(tmp_path / "bundle", **{**parts, "retrieval": net.path}).directory
        recommender = Recommender.from_bundle(bundle, pool=20)
        retrieval, catalogue = recommender.models.retrieval, recommender.catalogue
        assert retrieval.length == length
        watched = [int(makers.VIDEOS[step * 7 % 50]) for step in range(310)]
        for step, video in enumerate(watched):
            recommender.add_interaction(3, video, time_ms=1_000 * (step + 1), signals={"like": 1})
        history = recommender._histories.view(3, [], catalogue).positives
        assert history.columns(length)["video_id"].tolist() == watched[-length:]
        longer = UserHistory(2 * length)
        longer.take_latest(history, len(history))
        np.testing.assert_array_equal(retrieval.encode(history), retrieval.encode(longer))
        assert len(recommender.recommend(3, 5)) == 5


class TestCommand:
    def run(self, *words: Any) -> int:
        import argparse

        parser = argparse.ArgumentParser()
        add_convert_arguments(parser)
        return run_convert(parser.parse_args([str(word) for word in words]))

    def test_retrieval(self, parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("retrieval", parts["retrieval"], "--catalogue", parts["catalogue"], "--out", tmp_path / "out")
        assert self.run(*words, "--json", tmp_path / "result.json") == 0
        assert "index     Flat, 50 items" in capsys.readouterr().out
        assert json.loads((tmp_path / "result.json").read_text())["items"] == 50
        with pytest.raises(InputError, match="--data"):
            self.run(*words, "--overwrite", "--encoder", "int8")

    def test_items(self, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = changed_catalogue(tmp_path / "catalogue.parquet")
        assert self.run("items", "--bundle", bundle, "--catalogue", path) == 0
        assert "10 items added, 0 changed, 0 removed" in capsys.readouterr().out
