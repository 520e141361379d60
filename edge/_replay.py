"""Replay of a published model's golden cases: tensors graph by graph, then the golden session through a real
EdgeSession.

What is compared: outputs within the shipped variant's tolerance, rankings equal except for ties below it, choices
equal.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.beam import BeamPlan
from contract.errors import IntegrityError, KirError
from contract.golden import Ahead, FeedbackStep, GoldenSession, PageStep, SwipeStep, fused_values, rankings_agree
from contract.manifest import Graph, Manifest
from edge._engine import Engine
from edge._installed import InstalledModel
from edge._session import EdgeSession, SessionConfig
from edge._types import DeviceState, Feedback

STEADY = 1e-4  # what a session of float arithmetic may differ by, whatever it costs to round


@dataclass(frozen=True)
class ReplayLine:
    """One case. max_abs: largest difference to the golden output; problem: "" when it passed."""

    case: str
    max_abs: float
    tolerance: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class ReplayReport:
    """All cases of one model on this machine."""

    dense_version: str
    lines: tuple[ReplayLine, ...]

    @property
    def ok(self) -> bool:
        """Whether there were cases, and all passed."""
        return bool(self.lines) and all(line.ok for line in self.lines)

    def table(self) -> str:
        width = max([len(line.case) for line in self.lines], default=4)
        head = f"{self.dense_version}\n{'case':<{width}}  {'max abs':>9}  {'allowed':>9}  result"
        rows = [
            f"{x.case:<{width}}  {x.max_abs:>9.2e}  {x.tolerance:>9.2e}  {'ok' if x.ok else x.problem}"
            for x in self.lines
        ]
        passed = sum(line.ok for line in self.lines)
        return "\n".join([head, *rows, f"{passed} of {len(self.lines)} golden cases agree"])

    def to_dict(self) -> dict[str, object]:
        lines = [asdict(line) | {"ok": line.ok} for line in self.lines]
        return {"dense_version": self.dense_version, "ok": self.ok, "cases": lines}

    def save(self, path: str | Path) -> Path:
        target = Path(path)
        target.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return target


def replay(model: InstalledModel | str | Path, *, allow_no_delegate: bool = False) -> ReplayReport:
    """Replay a model's golden cases. model: an installed one with all its files, by the variants of its device class;
    a version directory or a CDN directory, by what ships and by the variants of every class, whatever this device is.

    Raises NoModelError, IntegrityError or ManifestError when there is nothing to replay; a difference is in the report.
    """
    if isinstance(model, InstalledModel):
        return ReplayReport(model.dense_version, tuple(_lines(model, allow_no_delegate)))
    shipped = InstalledModel.open_published(model, device_class="")
    lines = _lines(shipped, allow_no_delegate)
    for one in shipped.manifest.device_classes:
        installed = InstalledModel.open_published(model, device_class=one.name)
        found = _lines(installed, allow_no_delegate)
        lines += [replace(line, case=f"{one.name}: {line.case}") for line in found]
    return ReplayReport(shipped.dense_version, tuple(lines))


def _lines(installed: InstalledModel, allow_no_delegate: bool) -> list[ReplayLine]:
    engine = Engine(installed, allow_no_delegate=allow_no_delegate)
    lines = [line for key in sorted(installed.manifest.golden.tensors) for line in _tensor_lines(engine, key)]
    if installed.manifest.golden.session:
        lines += _session_lines(engine, SessionConfig(allow_no_delegate=allow_no_delegate))
    return lines


def _tensor_lines(engine: Engine, key: str) -> Iterator[ReplayLine]:
    """One line per case of a graph's golden tensors: "swipe/N24", or "swipe/N24 #2" when the file holds several."""
    name, _, bucket = key.partition("/")
    graph = engine.manifest.graph(name, bucket)
    runner = engine.load_graph(name, bucket)
    arrays = _load_npz(engine.installed.read(engine.manifest.golden.tensors[key]), key)
    tensors = {t.name: t.shape for t in (*graph.inputs, *graph.outputs)}
    try:
        cases = {name: arrays[name].astype(np.float32).reshape(-1, *shape) for name, shape in tensors.items()}
        n_cases = {len(values) for values in cases.values()}
        if len(n_cases) != 1:
            raise ValueError(f"cases per tensor differ: {sorted(n_cases)}")
    except (KeyError, ValueError) as error:
        raise IntegrityError("golden tensors do not fit their graph", where=key, got=str(error)) from None
    for number in range(n_cases.pop()):
        outputs = runner.run({t.name: np.ascontiguousarray(cases[t.name][number]) for t in graph.inputs})
        expected = {t.name: cases[t.name][number] for t in graph.outputs}
        case = key if number == 0 else f"{key} #{number + 1}"
        yield _compare_outputs(case, engine, graph, expected, outputs)


def _compare_outputs(
    case: str,
    engine: Engine,
    graph: Graph,
    expected: dict[str, NDArray[np.float32]],
    outputs: dict[str, NDArray[np.float32]],
) -> ReplayLine:
    tolerance = graph.variant().tolerance
    max_abs = max(_max_abs(expected[name], outputs[name]) for name in expected)
    problem = "" if max_abs <= tolerance else "outputs differ"
    if "scores" in expected and not problem:
        tasks = expected["scores"].shape[-1]
        want, got = (fused_values(side["scores"].reshape(-1, tasks), engine.fusion_T) for side in (expected, outputs))
        if not rankings_agree(want, got, _value_tolerance(engine.manifest, tolerance)):
            problem = "ranking differs"
    return ReplayLine(case, max_abs, tolerance, problem)


def _session_lines(engine: Engine, config: SessionConfig) -> list[ReplayLine]:
    file = engine.manifest.golden.session
    golden = GoldenSession.from_bytes(engine.installed.read(file), file)
    phone = _GoldenPhone(engine, golden, config)
    lines = []
    for number, step in enumerate(golden.steps, start=1):
        case = f"session step {number} ({step.kind})"
        try:
            line = phone.take(step, case)
        except KirError as error:
            line = ReplayLine(case, float("nan"), phone.tolerance, str(error))
        if line is not None:
            lines.append(line)
            if not line.ok:
                break  # whatever follows would only repeat it
    return lines


class _StepClock:
    """Stands at the time of the current step."""

    def __init__(self, now_ms: int):
        self.now_ms = now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return self.now_ms


class _GoldenPhone:
    """An EdgeSession driven by golden steps; shows what the golden session showed, so that a tie does not fork them."""

    def __init__(self, engine: Engine, golden: GoldenSession, config: SessionConfig):
        self.clock = _StepClock(golden.steps[0].at_ms if golden.steps else 0)
        self.manifest = engine.manifest
        self.session = EdgeSession(golden.user_id, engine, clock=self.clock, config=config, session_id=0)
        self.session.start()
        self.tolerance = _session_tolerance(self.manifest)
        self.value_tolerance = _value_tolerance(self.manifest, self.tolerance)
        placing = [g.variant().tolerance for g in self.manifest.graphs if g.name == "place"]
        self.place_tolerance = max(placing, default=0.0)

    def take(self, step: PageStep | FeedbackStep | SwipeStep, case: str) -> ReplayLine | None:
        self.clock.now_ms = step.at_ms
        if isinstance(step, PageStep):
            self.session.pool.clear()  # a golden swipe chooses from the last page, shown before or not
            report = self.session.on_page(step.page)
            return ReplayLine(case, 0.0, 0.0, f"page can't be scored: {report.reason}") if report.reason else None
        if isinstance(step, FeedbackStep):
            play_time_ms = step.play_time_ms if step.play_time_ms >= 0 else None
            signals = {name: bool(value) for name, value in step.signals.items() if value >= 0}
            self.session.feedback(Feedback(step.video_id, play_time_ms, signals, shown_at_ms=step.shown_at_ms))
            return None
        return self._swipe(step, case)

    def _swipe(self, step: SwipeStep, case: str) -> ReplayLine:
        session = self.session
        buffered = {v: ms for v, ms in zip(step.video_ids, step.buffered_ms, strict=True) if ms >= 0}
        session._device = DeviceState(step.network, step.decoder, buffered)
        session.position = step.swipe_index
        session._settle()
        unlike = self._ahead(step.ahead) if step.ahead else ""
        decision = session._decide(session._tier(), self.clock.now_ms)
        if decision.reason or decision.scores_NT is None or decision.values_N is None:
            return ReplayLine(case, float("nan"), self.tolerance, f"the model did not choose: {decision.reason}")
        if list(decision.considered) != list(step.video_ids):
            return ReplayLine(case, float("nan"), self.tolerance, "other candidates were left")
        max_abs = _max_abs(np.array(step.scores, np.float32), decision.scores_NT)
        golden_place = list(step.video_ids).index(step.choice)
        behind = float(decision.values_N.max() - decision.values_N[golden_place])
        problem = ""
        if max_abs > self.tolerance:
            problem = "scores differ"
        elif not rankings_agree(np.array(step.values), decision.values_N, self.value_tolerance):
            problem = "ranking differs"
        elif behind > 2 * self.value_tolerance:
            problem = f"another choice: {decision.page.video_ids[decision.index]} instead of {step.choice}"
        problem = problem or unlike
        page = decision.page
        golden = replace(decision, index=list(page.video_ids).index(step.choice))
        session._commit(golden, self.clock.now_ms, 0, 0)
        return ReplayLine(case, max_abs, self.tolerance, problem)

    def _ahead(self, golden: Ahead) -> str:
        """What is wrong with the search here: "" when it finds the golden list, or one that is worth no less."""
        search = self.session.look_ahead(BeamPlan(golden.beams, golden.depth, golden.stability), self.session._device)
        if search.problem:
            return f"no search: {search.problem}"
        same = list(search.video_ids) == list(golden.video_ids)
        behind = abs(golden.reward - search.reward) if same else golden.reward - search.reward
        if behind <= self._reward_tolerance(len(golden.video_ids)):
            return ""
        return "the list's reward differs" if same else f"another list: {search.video_ids}"

    def _reward_tolerance(self, places: int) -> float:
        """Σ s·r moves by places·v + w·e·places·(places − 1)/2 where values, up to w, are off by v, survivals by e."""
        reward = self.manifest.list_reward
        largest = sum(abs(weight) for weight in reward.value.values()) if reward else 0.0
        error = (self.tolerance + self.place_tolerance) / 4  # of a probability: a sigmoid's slope is at most 1/4
        return places * largest * error + largest * error * places * (places - 1) / 2


def _load_npz(content: bytes, where: str) -> dict[str, NDArray[np.float32]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise IntegrityError("golden tensors are no .npz", where=where, got=str(error)) from None


def _max_abs(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Largest difference; infinite when shapes differ or either holds something that is no number."""
    if expected.shape != got.shape or not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return float("inf")
    return float(np.abs(expected - got).max(initial=0.0))


def _session_tolerance(manifest: Manifest) -> float:
    """How far a session's scores may lie from the golden ones on another CPU.

    Three graphs in a row, and no more than rounding costs the session altogether, where the manifest tells that: what
    int8 rounds otherwise stays in the cached keys and values of up to L videos, and every later one reads it.
    """
    shipped = [g.variant().tolerance for g in manifest.graphs if g.name in ("page", "watch", "swipe")]
    told = manifest.verification.get("session_to_float_whole") or {}
    return min(3 * max(shipped), max(STEADY, float(told.get("scores_max_abs", np.inf))))


def _value_tolerance(manifest: Manifest, tolerance: float) -> float:
    """What an error in the logits can do to a fused value: a sigmoid's slope is at most 1/4."""
    return tolerance * sum(abs(weight) for weight in manifest.fusion.values()) / 4
