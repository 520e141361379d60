"""`kir demo` as a user runs it: a process of its own, small, on simulated users and on a log in KuaiRand's layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.closed_loop import ARMS


def run_demo(folder: Path, *flags: str) -> dict[str, object]:
    """From another folder than the repository, with a relative --out, as an installed `kir` would be run."""
    command = [sys.executable, "-m", "kir", "demo", "--quick", "--out", "demo", *flags]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    page = (folder / "demo" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") >= 3
    report: dict[str, object] = json.loads((folder / "demo" / "report.json").read_text())
    return report


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_the_demo_passes_through_a_version_change_and_an_eviction(tmp_path: Path) -> None:
    report = run_demo(tmp_path)
    versions = [version["dense_version"] for version in report["conversion"]["versions"]]
    assert len(set(versions)) == 2
    log = "\n".join(report["swipe"]["log"])
    assert f"page boundary, {versions[1]} took over from {versions[0]}" in log
    assert "watched list full" in log
    assert report["swipe"]["choosers"]["model"] > 50
    assert report["swipe"]["versions"]["phones"] == {versions[0]: report["swipe"]["versions"]["phones"][versions[0]]}
    loop = report["closed_loop"]
    assert (loop["world"]["drift"], loop["control"]["drift"]) == (1.0, 0.0)
    for name in ("world", "control"):
        assert tuple(loop[name]["arms"]) == ARMS
    assert loop["world"]["arms"]["oracle"]["watch_s"] > loop["world"]["arms"]["random"]["watch_s"]


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.timeout(1300)
def test_the_demo_on_real_logs_ends_in_replay_metrics(tmp_path: Path, data_dir: Path) -> None:
    report = run_demo(tmp_path, "--data", f"kuairand:{data_dir / 'kuairand-pure'}")
    assert "closed_loop" not in report
    rows = {row["size"]: row for row in report["replay"]["sizes"]}
    assert set(rows) == {3, 6, 8}
    assert rows[3]["pages"] > rows[6]["pages"] > rows[8]["pages"] > 0
    for row in rows.values():
        assert 0 < row["logged"] < 1
        assert row["ndcg_gain"]["low"] <= row["ndcg_gain"]["mean"] <= row["ndcg_gain"]["high"]
