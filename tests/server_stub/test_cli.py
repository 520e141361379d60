"""kir serve, as a process of its own."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.errors import InputError
from contract.parquet import read_events
from contract.v1 import feedback_pb2, feedback_pb2_grpc, page_pb2_grpc
from server_stub.cli import add_serve_arguments, config_from
from server_stub.config import ServerConfig
from tests.server_stub.conftest import NOW_MS, held, request

REPOSITORY = Path(__file__).resolve().parents[2]


def parse(*words: str) -> ServerConfig:
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    return config_from(parser.parse_args(["--bundle", "B", *words]))


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process and its ready line; killed if a test fails on the way."""
    command = [sys.executable, "-W", "error", "kir.py", "serve", *words]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


class TestFlags:
    def test_defaults_are_the_configs(self) -> None:
        assert parse() == ServerConfig(bundle=Path("B"))

    def test_every_flag_arrives(self) -> None:
        words = (
            "--cdn C --events E --snapshots S --host ::1 --port 1 --http-port 2 --tls-cert X --tls-key Y --page-size 9"
        )
        words += " --pool 8 --soft-ttl-s 7 --hard-ttl-s 70.5 --utc-offset-min 480 --client-clock --workers 3"
        words += " --row-dtype float16 --remote-updates --cors-origin https://a"
        assert parse(*words.split()) == ServerConfig(
            bundle=Path("B"),
            cdn=Path("C"),
            events=Path("E"),
            snapshots=Path("S"),
            host="::1",
            grpc_port=1,
            http_port=2,
            tls_cert=Path("X"),
            tls_key=Path("Y"),
            page_size=9,
            pool=8,
            soft_ttl_ms=7_000,
            hard_ttl_ms=70_500,
            utc_offset_min=480,
            client_clock=True,
            workers=3,
            row_dtype="float16",
            remote_updates=True,
            cors_origin="https://a",
        )

    def test_no_http(self) -> None:
        assert parse("--http-port", "-1").http_port is None

    @pytest.mark.parametrize("words", [("--page-size", "0"), ("--port", "70000"), ("--tls-cert", "X")])
    def test_out_of_range(self, words: tuple[str, ...]) -> None:
        with pytest.raises(InputError):
            parse(*words)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_told_to_stop_and_loses_nothing(
    shared_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    ready_file, events = tmp_path / "run/ready.json", tmp_path / "events"
    words = ["--bundle", str(shared_bundle), "--events", str(events), "--ready-file", str(ready_file)]
    with serving(*words, "--http-port", "-1") as (process, ready):
        assert json.loads(ready_file.read_text()) == ready
        assert (ready["http_port"], ready["dense_versions"], ready["pid"]) == (None, ["kir-a", "kir-b"], process.pid)
        with grpc.insecure_channel(f"127.0.0.1:{ready['grpc_port']}") as channel:
            page = page_pb2_grpc.PageServiceStub(channel).GetPage(request(held_models=held("kir-a"))).page
            assert (page.dense_version, page.fetch_version) == ("kir-a", "kir-b")
            event = feedback_pb2.FeedbackEvent(
                user_id=2, session_id=1, time_ms=NOW_MS, page_id=page.page_id, video_id=page.candidates.video_ids[0]
            )
            feedback_pb2_grpc.FeedbackServiceStub(channel).ReportFeedback(
                feedback_pb2.ReportFeedbackRequest(events=[event])
            )
        process.send_signal(number)
        assert process.wait() == 0
    assert read_events(events)["page_id"].tolist() == [page.page_id]
    assert len(list((events / "pages").glob("*.parquet"))) == 1


def test_what_can_not_start_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "kir.py", "serve", "--bundle", str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert "no server bundle here" in line
