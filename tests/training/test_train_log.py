"""The training log: rates between lines, and what a resumed run keeps of it."""

from __future__ import annotations

import json

import pytest

from training.train_log import LOG_NAME, TrainLog, keep_log, log_beside


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_targets_per_second_count_training_alone(tmp_path):
    log = TrainLog(tmp_path / "log.jsonl")
    for _ in range(4):
        log.count(50)
    log.step({"step": 4, "loss": 1.0}, 2.0)
    log.write({"step": 4, "validation": {"x": 0.5}}, 12.0)  # ten seconds of validation
    log.count(30)
    log.step({"step": 5, "loss": 0.9}, 13.0)
    log.step({"step": 6, "loss": 0.8}, 14.0)  # a task that does not say its targets
    first, validation, second, third = lines_of(tmp_path / "log.jsonl")
    assert first == {"step": 4, "loss": 1.0, "targets_per_s": 100.0, "seconds": 2.0}
    assert validation == {"step": 4, "validation": {"x": 0.5}, "seconds": 12.0}
    assert second["targets_per_s"] == 30.0
    assert "targets_per_s" not in third


def test_a_resumed_run_writes_no_line_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    log = TrainLog(path)
    for step in range(1, 6):
        log.step({"step": step, "loss": 1.0}, float(step))
    path.write_text(path.read_text() + '{"step": 6, "lo')  # a kill in the middle of a line
    again = TrainLog(path)
    again.go_on_from(3, 3.0)
    assert [line["step"] for line in lines_of(path)] == [1, 2, 3]
    again.count(20)
    again.step({"step": 4, "loss": 1.0}, 5.0)
    assert lines_of(path)[-1]["targets_per_s"] == 10.0


def test_nothing_is_written_without_a_path(tmp_path):
    log = TrainLog(None)
    log.go_on_from(1, 1.0)
    log.step({"step": 1}, 1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [False, True])
def test_the_log_waits_beside_and_moves_in(tmp_path, keep):
    out = tmp_path / "out"
    log_beside(out).write_text("old\n")
    path = log_beside(out, keep=keep)
    assert path.exists() == keep
    path.write_text("line\n")
    out.mkdir()
    keep_log(out)
    assert (out / LOG_NAME).read_text() == "line\n"
    assert not path.exists()
    keep_log(out)  # nothing beside: nothing happens
