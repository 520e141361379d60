"""New days reach a running server: items alone in place, within one retrieval_version; a new encoder swapped whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import urllib3

import kir
from benchmarks.server_process import ServerProcess
from contract.catalogue import write_catalogue, write_users
from contract.page import Page, decode_page
from contract.parquet import write_events
from contract.v1 import page_pb2
from tests.convert import makers
from tests.training.incremental_makers import (
    NEW_DAY,
    OLD_DAYS,
    OLD_ITEMS,
    RECIPE,
    TOPICS,
    is_new_video,
    log,
    user,
    video,
)
from training.checkpoint import load_checkpoint
from training.kuaiformer_train import train_kuaiformer
from training.retrieval_split import split_of

LIST = 10  # the ten best of 40: those of the user's topic, two of them new
DEADLINE_S = 120.0


def page_of(server: ServerProcess, user_id: int) -> Page:
    request = page_pb2.GetPageRequest(user_id=user_id, page_size=LIST)
    headers = {"Content-Type": "application/x-protobuf"}
    response = urllib3.request("POST", f"{server.http_url}/v1/page", body=request.SerializeToString(), headers=headers)
    answer = page_pb2.GetPageResponse.FromString(response.data)
    assert answer.WhichOneof("outcome") == "page", answer.refusal
    return decode_page(answer.page)


def until(page: Callable[[], Page], holds: Callable[[Page], bool]) -> Page:
    """The first page of which something holds: the server looks at its bundle every two seconds."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds(found := page()):
        assert time.monotonic() < deadline, "the server did not take it over"
        time.sleep(0.1)
    return found


def run(*words: object) -> None:
    assert kir.main([str(word) for word in words]) == 0


@pytest.mark.timeout(420)
def test_new_days_reach_a_server_that_runs(tmp_path: Path) -> None:
    old, new = log(*OLD_DAYS), log(NEW_DAY)
    for name, data in (("old", old), ("new", new)):
        write_events(tmp_path / name / "events.parquet", data.events)
        write_catalogue(tmp_path / name / "catalogue.parquet", data.items)
    write_users(tmp_path / "users.parquet", old.users)
    train_kuaiformer(split_of(old, "toy", holdout_days=0), tmp_path / "base", RECIPE)
    makers.make_ranker(tmp_path / "ranker")
    makers.make_kir(tmp_path / "kir")
    bundle = tmp_path / "bundle"
    (tmp_path / "cdn").mkdir()
    since = ("--events", tmp_path / "new/events.parquet", "--data", f"events:{tmp_path / 'old'}")
    write = (
        "convert", "server", "--ranker", tmp_path / "ranker", "--kir", tmp_path / "kir",
        "--users", tmp_path / "users.parquet", "--histories", tmp_path / "old/events.parquet", "--out", bundle,
    )  # fmt: skip
    run(*write, "--retrieval", tmp_path / "base", "--catalogue", tmp_path / "old/catalogue.parquet")
    with ServerProcess(bundle, tmp_path / "cdn", tmp_path / "work", ("--pool", str(LIST))) as server:
        someone = user(5)
        first = page_of(server, someone)
        assert not is_new_video(first.candidates.video_id).any()
        run("train", "kuaiformer", "--resume", tmp_path / "base", *since, "--items-only", "--out", tmp_path / "items")
        run(
            "convert", "items", "--bundle", bundle, "--retrieval", tmp_path / "items",
            "--catalogue", tmp_path / "new/catalogue.parquet",
        )  # fmt: skip
        second = until(lambda: page_of(server, someone), lambda p: bool(is_new_video(p.candidates.video_id).any()))
        own = {video(i) for i in range(OLD_ITEMS, OLD_ITEMS + 8) if i % TOPICS == 5 % TOPICS}
        assert set(second.candidates.video_id[is_new_video(second.candidates.video_id)].tolist()) <= own
        assert second.retrieval_version == first.retrieval_version
        health = json.loads(urllib3.request("GET", f"{server.http_url}/healthz").data)
        revision = load_checkpoint(tmp_path / "items").config["training"]["rows_revision"]
        assert health["retrieval"] == {"version": first.retrieval_version, "rows_revision": revision}

        run("train", "kuaiformer", "--resume", tmp_path / "base", *since, "--out", tmp_path / "whole")
        run(*write, "--overwrite", "--retrieval", tmp_path / "whole", "--catalogue", tmp_path / "new/catalogue.parquet")
        third = until(lambda: page_of(server, someone), lambda p: p.retrieval_version != first.retrieval_version)
        assert np.isin(third.candidates.video_id, list(own)).any()
        assert third.retrieval_version == load_checkpoint(tmp_path / "whole").version
