"""The command that a result carries is the one to type again."""

from __future__ import annotations

import argparse
import json
import shlex

import pytest

from benchmarks import ablation, encoder_speed, loss_speed, training_speed
from benchmarks.cli import add_bench_arguments, run_bench
from benchmarks.typed import PARSER, typed


def parsed(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_bench_arguments(parser)
    return parser.parse_args(shlex.split(line)[2:])


@pytest.mark.parametrize(
    "line",
    [
        "kir bench ablation losses --data ml-1m:PATH --only full,in-batch --seeds 0,1 --epochs 2",
        "kir bench ablation compression --data 'events:a folder' --history 256 --json docs/results/c.json",
        "kir bench encoder --checkpoint runs/m --batches 1 8 --no-compile --out x.json",
        "kir bench encoder",
        "kir bench training --recipe ml-1m --data ml-1m:PATH --rounds 3",
        "kir bench loss --queries 1 2 4",
        "kir bench retrieval ours=a,b c --baseline popularity",
        "kir bench conversion runs/kir --data 'events:my data' --recipe float16 --recipe mine.json --no-compile",
    ],
)
def test_flags_at_their_defaults_are_left_out_and_all_others_stand(line):
    args = parsed(line)
    assert typed(args) == line
    again = parsed(typed(args))
    assert {k: v for k, v in vars(again).items() if k != PARSER} == {k: v for k, v in vars(args).items() if k != PARSER}
    assert typed(parsed("kir bench loss --width 64")) == "kir bench loss", "64 is the default"
    assert typed(argparse.Namespace(bench="loss")) == "", "nobody said what the defaults are"


@pytest.mark.parametrize(
    ("module", "function", "line"),
    [
        (ablation, "run_ablation", "kir bench ablation losses --data ml-1m:PATH"),
        (encoder_speed, "measure_encoder", "kir bench encoder --rounds 3"),
        (training_speed, "measure_training", "kir bench training --recipe ml-1m"),
    ],
)
def test_results_get_their_command(monkeypatch, capsys, module, function, line):
    told = []
    monkeypatch.setattr(module, function, lambda *_, command, **__: (told.append(command) or {}, "table"))
    assert run_bench(parsed(line)) == 0
    assert told == [line]


def test_a_bench_that_does_not_say_it_gets_it_as_well(monkeypatch, tmp_path):
    monkeypatch.setattr(loss_speed, "measure_loss", lambda **_: ({"benchmark": "loss"}, "table"))
    line = f"kir bench loss --rounds 3 --json {tmp_path / 'loss.json'}"
    assert run_bench(parsed(line)) == 0
    assert json.loads((tmp_path / "loss.json").read_text())["command"] == line
