"""The ranker and the encoder through the same chain, on logs in the official layout; and what opens a job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import kir
from contract.errors import CheckpointError, InputError
from contract.events import Events
from contract.parquet import write_events
from convert.encoder_job import BEST, EncoderJob
from convert.jobs import open_events, open_job
from convert.model import ConversionResult, convert_model
from convert.ranker_job import RANKER_PAGE, RankerJob
from convert.report import Gates
from convert.source import KirSource
from convert.windows import synthetic_events
from tests.convert import makers


@pytest.fixture(scope="module")
def log(source: KirSource) -> Events:
    return synthetic_events(source)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory, log: Events) -> ConversionResult:
    folder = tmp_path_factory.mktemp("ranker")
    return convert_model(makers.make_ranker(folder / "checkpoint").path, folder / "out", data=log, windows=12)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ConversionResult:
    folder = tmp_path_factory.mktemp("encoder")
    makers.make_events(folder / "log")
    checkpoint = makers.make_kuaiformer(folder / "checkpoint", windows=(8, 8), latest=8)
    recipes = ("int8-weight-only", "int8-dynamic")
    data = f"events:{folder / 'log'}"
    return convert_model(checkpoint.path, folder / "out", data=data, recipes=recipes, windows=12, gates=Gates(tau=0.9))


class TestRanker:
    def test_float_repeats_torch_and_quantised_keeps_the_order(self, ranker: ConversionResult) -> None:
        report = ranker.verification
        assert report.row(f"ranker/N{RANKER_PAGE}", "float32").max_abs < 1e-5
        assert report.together.tau > 0.98
        assert report.outcomes is not None
        assert report.outcomes.slates > 0

    def test_the_directory_says_what_it_is(self, ranker: ConversionResult) -> None:
        about = json.loads((ranker.directory / "model.json").read_text())
        assert (about["kind"], about["version"]) == ("ranker", ranker.version)
        assert about["heads"] == ["click", "long_view"]
        assert set(about["fusion"]) <= {"click", "long_view", "watch_time"}
        card = (ranker.directory / "card.md").read_text()
        assert card.startswith(f"# Ranker {ranker.version}")
        assert "`match`" in card

    def test_pages_are_padded_and_values_follow_the_servers_order(self, tmp_path: Path, log: Events) -> None:
        job = RankerJob.load(makers.make_ranker(tmp_path / "checkpoint").path)
        subject = job.subject(log, 9, 0)
        sizes = [len(label) for label in subject.labels]
        assert min(sizes) < RANKER_PAGE
        assert max(sizes) == RANKER_PAGE
        short = int(np.argmin(sizes))
        assert not subject.feeds[short]["candidate_dense"][sizes[short] :].any()
        pxtr = np.full((sizes[short], 7), 0.5, np.float32)
        value = subject.values(short, pxtr)
        assert value.shape == (sizes[short],)
        untrained = pxtr.copy()
        untrained[:, 4:] = 0.9  # heads without labels count for nothing
        np.testing.assert_array_equal(subject.values(short, untrained), value)

    def test_pages_that_no_log_holds_are_among_them(self, tmp_path: Path, log: Events) -> None:
        """A user without history and one candidate; everything full; values at both ends of their columns."""
        job = RankerJob.load(makers.make_ranker(tmp_path / "checkpoint").path)
        subject = job.subject(log, 5, 0)
        (empty, full, extreme), labels = subject.feeds[-3:], subject.labels[-3:]
        assert [one["history_mask"].sum() for one in (empty, full, extreme)] == [0, job.history, job.history]
        assert [len(one) for one in labels] == [1, RANKER_PAGE, RANKER_PAGE]
        assert np.isnan(np.concatenate(labels)).all()
        assert not np.array_equal(extreme["candidate_dense"], full["candidate_dense"])
        assert all(np.isfinite(block).all() for feeds in subject.feeds[-3:] for block in feeds.values())
        assert len(job.calibration(log, 5, 0).feeds) == 5, "nothing is calibrated on them"

    def test_calibration_is_of_earlier_pages(self, tmp_path: Path, log: Events) -> None:
        job = RankerJob.load(makers.make_ranker(tmp_path / "checkpoint").path)
        held = {feeds["history_dense"].tobytes() for feeds in job.subject(log, 8, 0).feeds}
        assert not held & {feeds["history_dense"].tobytes() for feeds in job.calibration(log, 8, 0).feeds}

    def test_stand_ins_are_refused(self, tmp_path: Path) -> None:
        job = RankerJob.load(makers.make_ranker(tmp_path / "checkpoint").path)
        with pytest.raises(InputError, match="real pages"):
            job.open(None, 0)


class TestEncoder:
    def test_float_repeats_torch(self, encoder: ConversionResult) -> None:
        row = encoder.verification.row("encoder/L24", "float32")
        assert row.max_abs < 1e-4
        assert (row.tau, row.top1) == (1.0, 1.0)

    def test_its_query_tokens_are_no_bar_to_int8(self, encoder: ConversionResult) -> None:
        """Keys are multiplied by query tokens, constants on the left, which LiteRT takes in float alone."""
        report = encoder.verification
        assert report.failed == ()
        assert report.row("encoder/L24", "int8-dynamic").snr_db > 15.0

    def test_the_directory_says_what_it_is(self, encoder: ConversionResult) -> None:
        about = json.loads((encoder.directory / "model.json").read_text())
        assert about["kind"] == "kuaiformer"
        assert (encoder.directory / "golden" / "encoder-L24.npz").is_file()
        assert "interests" in (encoder.directory / "card.md").read_text()

    def test_histories_that_no_data_hold_are_among_them(self, tmp_path: Path) -> None:
        makers.make_events(tmp_path / "log")
        job = EncoderJob.load(makers.make_kuaiformer(tmp_path / "checkpoint", windows=(8, 8), latest=8).path)
        opened, _ = job.open(f"events:{tmp_path / 'log'}", 0)
        subject = job.subject(opened, 6, 0)
        hard = subject.feeds[-4:]
        assert [int(one["history_mask"].sum()) for one in hard] == [0, 1, 24, 24]
        assert all(np.isnan(label).all() for label in subject.labels[-4:])
        assert len(job.calibration(opened, 6, 0).feeds) <= 6, "nothing is calibrated on them"

    def test_a_slate_holds_the_best_and_the_target(self, tmp_path: Path) -> None:
        makers.make_events(tmp_path / "log")
        job = EncoderJob.load(makers.make_kuaiformer(tmp_path / "checkpoint", windows=(8, 8), latest=8).path)
        opened, words = job.open(f"events:{tmp_path / 'log'}", 0)
        assert words == "histories of events"
        subject = job.subject(opened, 6, 0)
        assert all(label.sum() == 1.0 for label in subject.labels[:-4])
        for number, label in enumerate(subject.labels):
            values = subject.values(number, subject.reference(number))
            assert len(values) == len(label) >= BEST
        held = {feeds["history_rows"].tobytes() for feeds in subject.feeds}
        assert not held & {feeds["history_rows"].tobytes() for feeds in job.calibration(opened, 6, 0).feeds}

    @pytest.mark.parametrize("data", [None, "somewhere.parquet"])
    def test_it_asks_for_real_histories(self, tmp_path: Path, data: str | None) -> None:
        job = EncoderJob.load(makers.make_kuaiformer(tmp_path / "checkpoint").path)
        with pytest.raises(InputError, match="real histories"):
            job.open(data, 0)


class TestOpening:
    def test_a_log_is_told_with_its_hash(self, tmp_path: Path, log: Events) -> None:
        write_events(tmp_path / "events.parquet", log)
        found, words = open_events(tmp_path / "events.parquet")
        assert len(found) == len(log)
        assert words.startswith(f"events.parquet: {len(log)} impressions, sha256 ")
        assert open_events(log)[1] == f"events: {len(log)} impressions"

    @pytest.mark.realdata
    def test_leave_one_out_data_have_no_events(self, data_dir: Path) -> None:
        with pytest.raises(InputError, match="no events"):
            open_events(f"ml-1m:{data_dir / 'ml-1m'}")

    def test_what_is_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            open_job(tmp_path)
        (tmp_path / "config.json").write_text('{"kind": "baseline"}')
        with pytest.raises(CheckpointError, match="not converted"):
            open_job(tmp_path)

    def test_the_job_may_go_unnamed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "empty").mkdir()
        assert kir.main(["convert", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
        assert "not a checkpoint directory" in capsys.readouterr().err
        assert kir.main(["convert", "modle", "--out", "x"]) == 2
        assert "modle: no such checkpoint; or say: setup, model" in capsys.readouterr().err
