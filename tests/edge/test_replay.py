"""Golden replay: agreement is shown case by case, and every kind of difference is found."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import manifest as m
from contract.beam import BeamPlan
from contract.errors import IntegrityError, KirError, NoModelError
from contract.golden import Ahead, FeedbackStep, GoldenSession, PageStep, SwipeStep
from edge import DeviceState, EdgeSession, FakeClock, InstalledModel, Search, replay
from edge._replay import _session_tolerance
from tests.edge.tiny_model import BUCKETS, VERSIONS, K, P, point_at


@pytest.mark.parametrize("version", VERSIONS)
def test_every_published_version_agrees(tiny_cdn: Path, version: str) -> None:
    report = replay(tiny_cdn / "models" / version)
    assert report.ok, report.table()
    cases = [line.case for line in report.lines]
    assert cases[: 4 * len(BUCKETS) + 2] == sorted(cases[: 4 * len(BUCKETS) + 2])
    assert sum("swipe)" in case for case in cases) == 8
    assert max(line.max_abs for line in report.lines) < 1e-5


def test_a_cdn_directory_is_its_current_version(tiny_cdn: Path) -> None:
    assert replay(tiny_cdn).dense_version == "kir-a"


def test_nothing_to_replay(tmp_path: Path) -> None:
    with pytest.raises(NoModelError):
        replay(tmp_path)


def test_the_report_is_a_table_a_dict_and_a_file(tiny_cdn: Path, tmp_path: Path) -> None:
    report = replay(tiny_cdn)
    table = report.table()
    assert table.splitlines()[0] == "kir-a"
    assert table.endswith("18 of 18 golden cases agree")
    assert report.to_dict() == json.loads(report.save(tmp_path / "replay.json").read_text())


class Republish:
    """Changes a file of kir-a and its manifest so that all hashes fit again: a wrong golden, not a damaged one."""

    def __init__(self, cdn: Path):
        self.cdn, self.folder = cdn, cdn / "models" / "kir-a"
        self.manifest = m.Manifest.from_bytes((self.folder / m.MANIFEST_NAME).read_bytes())

    def file(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)
        files = {**self.manifest.files, name: m.FileEntry(hashlib.sha256(content).hexdigest(), len(content))}
        self.write(files=files)

    def write(self, **changes: Any) -> None:
        self.manifest = dataclasses.replace(self.manifest, **changes)
        (self.folder / m.MANIFEST_NAME).write_bytes(self.manifest.to_bytes())
        point_at(self.cdn, "kir-a")

    def tensors(self, key: str, change: Callable[[dict[str, Any]], None]) -> None:
        name = self.manifest.golden.tensors[key]
        with np.load(self.folder / name) as file:
            arrays = {k: file[k].copy() for k in file.files}
        change(arrays)
        out = io.BytesIO()
        np.savez(out, **arrays)
        self.file(name, out.getvalue())

    def session(self, change: Callable[[list[Any]], None]) -> None:
        name = self.manifest.golden.session
        golden = GoldenSession.from_bytes((self.folder / name).read_bytes())
        steps = list(golden.steps)
        change(steps)
        self.file(name, dataclasses.replace(golden, steps=tuple(steps)).to_bytes())


@pytest.fixture
def again(cdn: Path) -> Republish:
    return Republish(cdn)


def problems(cdn: Path) -> dict[str, str]:
    return {line.case: line.problem for line in replay(cdn).lines if not line.ok}


class TestTensors:
    def test_another_output(self, again: Republish) -> None:
        def shift(arrays: dict[str, Any]) -> None:
            arrays["query"] += 1e-3

        again.tensors("page/N4", shift)
        assert problems(again.cdn) == {"page/N4": "outputs differ"}
        assert not replay(again.cdn).ok

    def test_a_difference_within_the_tolerance(self, again: Republish) -> None:
        def shift(arrays: dict[str, Any]) -> None:
            arrays["query"] += 5e-5

        again.tensors("page/N4", shift)
        assert problems(again.cdn) == {}

    def test_no_number_is_a_difference(self, again: Republish) -> None:
        def spoil(arrays: dict[str, Any]) -> None:
            arrays["scores"][...] = np.nan

        again.tensors("swipe/N8", spoil)
        assert problems(again.cdn) == {"swipe/N8": "outputs differ"}

    def test_several_cases_in_one_file(self, again: Republish) -> None:
        def stack(arrays: dict[str, Any]) -> None:
            for name in arrays:
                arrays[name] = np.stack([arrays[name]] * 3)
            arrays["scores"][2] += 1

        again.tensors("swipe/N4", stack)
        assert problems(again.cdn) == {"swipe/N4 #3": "outputs differ"}

    @pytest.mark.parametrize("key", ["query", "scores"])
    def test_a_missing_tensor_is_told(self, again: Republish, key: str) -> None:
        again.tensors("swipe/N4", lambda arrays: arrays.pop(key))
        with pytest.raises(IntegrityError, match="swipe/N4"):
            replay(again.cdn)

    def test_a_tensor_of_another_shape_is_told(self, again: Republish) -> None:
        def cut(arrays: dict[str, Any]) -> None:
            arrays["since"] = arrays["since"][:, :-1]

        again.tensors("swipe/N4", cut)
        with pytest.raises(IntegrityError, match="golden tensors do not fit"):
            replay(again.cdn)

    def test_a_file_that_is_no_npz(self, again: Republish) -> None:
        again.file(again.manifest.golden.tensors["page/N4"], b"nothing of the kind")
        with pytest.raises(IntegrityError, match=r"no \.npz"):
            replay(again.cdn)

    def test_extra_arrays_are_passed_over(self, again: Republish) -> None:
        again.tensors("page/N4", lambda arrays: arrays.update({"float32.query": arrays["query"] + 9}))
        assert problems(again.cdn) == {}


def swipes(steps: list[Any]) -> list[int]:
    return [number for number, step in enumerate(steps) if isinstance(step, SwipeStep)]


class TestSession:
    def change(self, again: Republish, number: int, **changes: Any) -> dict[str, str]:
        def apply(steps: list[Any]) -> None:
            place = swipes(steps)[number]
            steps[place] = dataclasses.replace(steps[place], **changes)

        again.session(apply)
        return problems(again.cdn)

    def test_other_scores(self, again: Republish) -> None:
        found = self.change(again, 0, scores=[[0.0] * 4] * 8)
        assert found == {"session step 2 (swipe)": "scores differ"}

    def test_another_ranking(self, again: Republish) -> None:
        found = self.change(again, 0, values=[float(i) for i in range(8)])
        assert found == {"session step 2 (swipe)": "ranking differs"}

    def test_another_choice(self, again: Republish) -> None:
        def apply(steps: list[Any]) -> None:
            step = steps[swipes(steps)[0]]
            worst = step.video_ids[int(np.argmin(step.values))]
            steps[swipes(steps)[0]] = dataclasses.replace(step, choice=worst)

        again.session(apply)
        assert "another choice" in problems(again.cdn)["session step 2 (swipe)"]

    def test_other_candidates(self, again: Republish) -> None:
        def apply(steps: list[Any]) -> None:
            step = steps[swipes(steps)[3]]
            steps[swipes(steps)[3]] = dataclasses.replace(step, video_ids=step.video_ids[::-1])

        again.session(apply)
        assert set(problems(again.cdn).values()) == {"other candidates were left"}

    @pytest.mark.parametrize("device", [{"network": 1}, {"decoder": 2}, {"swipe_index": 40}])
    def test_another_device_state_shows(self, again: Republish, device: dict[str, int]) -> None:
        assert "scores differ" in self.change(again, 0, **device).values()

    def test_another_feedback_shows_at_the_next_swipe(self, again: Republish) -> None:
        def apply(steps: list[Any]) -> None:
            place = next(n for n, step in enumerate(steps) if isinstance(step, FeedbackStep))
            steps[place] = dataclasses.replace(steps[place], play_time_ms=1, signals={"hate": 1})

        again.session(apply)
        assert problems(again.cdn) == {"session step 4 (swipe)": "scores differ"}

    def test_a_page_that_is_none_is_told(self, again: Republish) -> None:
        def apply(steps: list[Any]) -> None:
            steps[0] = dataclasses.replace(steps[0], page=b"\xff\xff\xff")

        again.session(apply)
        assert "kir.v1.Page" in problems(again.cdn)["session step 1 (page)"]

    def test_a_session_file_that_is_none(self, again: Republish) -> None:
        again.file(again.manifest.golden.session, b"{}")
        with pytest.raises(KirError, match="golden session"):
            replay(again.cdn)


class TestSearch:
    """A golden swipe that tells a search as well."""

    PLAN = BeamPlan(K, P + 1, 1.0)

    def found(self, again: Republish) -> Search:
        """What a session of its own finds at the golden session's first swipe."""
        golden = GoldenSession.from_bytes((again.folder / again.manifest.golden.session).read_bytes())
        page, step = golden.steps[:2]
        assert isinstance(page, PageStep)
        assert isinstance(step, SwipeStep)
        model = InstalledModel.open_published(again.folder)
        session = EdgeSession(golden.user_id, model, clock=FakeClock(wall_ms=step.at_ms))
        session.start()
        session.on_page(page.page)
        held = {v: ms for v, ms in zip(step.video_ids, step.buffered_ms, strict=True) if ms >= 0}
        return session.look_ahead(self.PLAN, DeviceState(step.network, step.decoder, held))

    def problems(self, again: Republish, video_ids: Any, reward: float, plan: BeamPlan = PLAN) -> dict[str, str]:
        def apply(steps: list[Any]) -> None:
            ahead = Ahead(plan.beams, plan.depth, plan.stability, list(video_ids), reward)
            steps[1] = dataclasses.replace(steps[1], ahead=ahead)

        again.session(apply)
        return problems(again.cdn)

    def test_the_same_list_agrees(self, again: Republish) -> None:
        found = self.found(again)
        assert len(found.video_ids) == P + 1
        assert self.problems(again, found.video_ids, found.reward) == {}

    def test_another_reward(self, again: Republish) -> None:
        found = self.found(again)
        got = self.problems(again, found.video_ids, found.reward - 0.01)
        assert got == {"session step 2 (swipe)": "the list's reward differs"}

    def test_another_list_that_is_worth_more(self, again: Republish) -> None:
        found = self.found(again)
        got = self.problems(again, found.video_ids[::-1], found.reward + 0.01)
        assert got == {"session step 2 (swipe)": f"another list: {found.video_ids}"}

    def test_another_list_of_the_same_worth_is_a_tie(self, again: Republish) -> None:
        found = self.found(again)
        assert self.problems(again, found.video_ids[::-1], found.reward) == {}

    def test_a_search_that_can_not_be(self, again: Republish) -> None:
        found = self.found(again)
        got = self.problems(again, found.video_ids, found.reward, BeamPlan(K, P + 2, 1.0))
        assert got == {"session step 2 (swipe)": "no search: plan_above_capacity"}


def test_a_model_without_goldens_is_not_ok(again: Republish) -> None:
    again.write(golden=m.Golden(7))
    report = replay(InstalledModel.open_published(again.folder))
    assert not report.ok
    assert report.table().endswith("0 of 0 golden cases agree")


@pytest.mark.parametrize(("told", "allowed"), [(None, 3e-4), (2e-4, 2e-4), (1e-6, 1e-4), (1.0, 3e-4)])
def test_a_session_may_differ_by_what_rounding_costs_it(
    published: Callable[[str], InstalledModel], told: float | None, allowed: float
) -> None:
    verification = {} if told is None else {"session_to_float_whole": {"scores_max_abs": told}}
    manifest = dataclasses.replace(published("kir-a").manifest, verification=verification)
    assert _session_tolerance(manifest) == pytest.approx(allowed)
