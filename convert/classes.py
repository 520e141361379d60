"""Device classes of a model that is published: read, judged, and given golden cases by their own variants.

kir publish converted --cdn cdn --classes classes.json

classes.json: [{"name": "dotprod", "cpu": ["asimddp"], "memory_mib_min": 3000, "variants": {"watch": "int8-dynamic"}}]
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.beam import ListReward
from contract.device_class import DeviceClass, check_classes
from contract.errors import InputError, VerificationFailed
from contract.golden import FeedbackStep, GoldenSession, PageStep, Step, SwipeStep, fused_values
from contract.spec import FeatureSpec
from convert.chain import Layout, Run, run_halves, run_place
from convert.golden import SessionReference, tensor_case
from convert.measure import ranking
from convert.phone import Sample
from convert.quantize import FLOAT
from convert.report import Verification
from convert.tflite import TfliteGraph
from convert.verify import distance_to_whole

KEYS = ("name", "cpu", "memory_mib_min", "variants")


def read_classes(path: str | Path) -> list[DeviceClass]:
    """The classes of a file, in their order. Raises InputError for a file that holds no such list."""
    fix = f"a list of objects with {', '.join(KEYS)}"
    try:
        data = json.loads(Path(path).read_text())
        if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
            raise ValueError("not a list of objects")
        if unknown := sorted({key for one in data for key in one} - set(KEYS)):
            raise ValueError(f"unknown keys: {', '.join(unknown)}")
        return [DeviceClass.from_json(one) for one in data]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError("no device classes", where=path, got=str(error), fix=fix) from None


@dataclass(frozen=True)
class PublishedModel:
    """A finished conversion, as a session of it needs it (`convert.golden.SessionFacts`)."""

    result: Path
    about: Mapping[str, Any]
    report: Verification
    list_reward: ListReward | None

    @property
    def dense_version(self) -> str:
        return str(self.about["dense_version"])

    @property
    def spec(self) -> FeatureSpec:
        return FeatureSpec.from_json(self.about["spec"], str(self.result))

    @property
    def capacities(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.about["capacities"]
        return found

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.about["tasks"])

    @property
    def fusion_weights(self) -> NDArray[np.float32]:
        return np.array([self.about["fusion"].get(task, 0.0) for task in self.tasks], np.float32)

    @property
    def layout(self) -> Layout:
        watch = next(entry["inputs"] for entry in self.about["graphs"] if entry["name"] == "watch")
        past = next((tuple(tensor["shape"]) for tensor in watch if tensor["name"] == "past"), ())
        return Layout.of(self.capacities, past)

    def entry(self, key: str) -> Mapping[str, Any]:
        """What model.json says of a graph: "swipe/N24"."""
        return next(one for one in self.about["graphs"] if f"{one['name']}/{one['bucket']}" == key)

    def runs(self, variants: Mapping[str, str]) -> dict[str, Run]:
        """Graph key -> how to run it. variants: graph -> variant; what it does not name ships."""
        found: dict[str, Run] = {}
        for entry in self.about["graphs"]:
            key = f"{entry['name']}/{entry['bucket']}"
            variant = variants.get(entry["name"], self.report.shipped[key])
            found[key] = TfliteGraph(self.result / entry["variants"][variant]).run
        return found


@dataclass(frozen=True)
class ClassGoldens:
    """A class and the content of its golden files: graph key -> .npz, and the session (b"": none of its own)."""

    one: DeviceClass
    tensors: Mapping[str, bytes]
    session: bytes


def with_goldens(model: PublishedModel, classes: Sequence[DeviceClass], session: bytes) -> list[ClassGoldens]:
    """Golden cases of each class by its variants. session: the golden session of what ships, whose pages, times and
    device states each class goes through again.

    Raises ManifestError for classes that contradict themselves or name an absent graph or variant, InputError for a
    variant that missed its gate, VerificationFailed when a class's variants together do not rank as they must.
    """
    variants: dict[str, dict[str, list[str]]] = {}
    for entry in model.about["graphs"]:
        variants.setdefault(entry["name"], {})[entry["bucket"]] = list(entry["variants"])
    check_classes(classes, variants, model.result)
    floats = model.runs(dict.fromkeys(variants, FLOAT)) if classes else {}
    found = []
    for one in classes:
        _check_passed(model, one)
        others = [key for key, ships in model.report.shipped.items() if one.variants.get(_graph(key), ships) != ships]
        runs = model.runs(one.variants)
        tensors = {key: _tensors(model, key, runs[key]) for key in others}
        if not any(key.startswith(("page/", "watch/", "swipe/", "place/")) for key in others):
            found.append(ClassGoldens(one, tensors, b""))
            continue
        made, samples = session_by(model, GoldenSession.from_bytes(session), runs)
        _check_together(model, one, samples, runs, floats)
        apart, _ = distance_to_whole(model, samples, runs, floats)
        verified = replace(one, verification={"session_to_float_whole": apart})
        found.append(ClassGoldens(verified, tensors, made.to_bytes()))
    return found


def session_by(
    model: PublishedModel, golden: GoldenSession, runs: Mapping[str, Run]
) -> tuple[GoldenSession, list[Sample]]:
    """That session gone through with other files: their scores, their choices, which the feedback is then told of."""
    reference = SessionReference(
        model,
        lambda sample: run_halves(sample, model.layout, runs),
        lambda sample, items: run_place(sample, model.layout, runs, items),
    )
    steps: list[Step] = []
    chosen: dict[int, int] = {}  # a video of the golden session -> the one in its place here
    for step in golden.steps:
        if isinstance(step, PageStep):
            reference.open_page(step.page)
        elif isinstance(step, SwipeStep):
            told = dict(zip(step.video_ids, step.buffered_ms, strict=True))  # nothing of videos that were gone there
            buffered = [told.get(int(video), -1) for video in reference.page.candidates.video_id]
            asked = step.at_ms, step.network, step.decoder, step.swipe_index
            golden_choice = step.choice
            step = reference.swipe(*asked, np.array(buffered, np.int32))
            chosen[golden_choice] = step.choice
        elif isinstance(step, FeedbackStep):
            step = replace(step, video_id=chosen[step.video_id])
            reference.feedback(step)
        steps.append(step)
    return replace(golden, steps=tuple(steps)), reference.samples


def classes_table(classes: Sequence[DeviceClass]) -> str:
    """Markdown for the model card."""
    lines = ["| class | needs | variants |", "|---|---|---|"]
    for one in classes:
        variants = ", ".join(f"{graph} {variant}" for graph, variant in sorted(one.variants.items()))
        lines.append(f"| {one.name} | {one.needs} | {variants or '-'} |")
    words = "The first class that a device meets counts; what it does not name, and other devices: as shipped."
    return "\n".join(["## Device classes", "", *lines, "", words, ""])


def _graph(key: str) -> str:
    return key.partition("/")[0]


def _check_passed(model: PublishedModel, one: DeviceClass) -> None:
    for key in model.report.shipped:
        variant = one.variants.get(_graph(key))
        if variant is not None and not model.report.row(key, variant).passed:
            raise InputError(
                f"device class '{one.name}' names a variant that missed its gate",
                where=model.result,
                got=f"{key} {variant}",
                allowed=_passed(model, key),
            )


def _passed(model: PublishedModel, key: str) -> list[str]:
    """Variants of a graph inside the gate; the report has a row of the ONNX file as well."""
    return sorted(name for name in model.entry(key)["variants"] if model.report.row(key, name).passed)


def _check_together(
    model: PublishedModel,
    one: DeviceClass,
    samples: Sequence[Sample],
    runs: Mapping[str, Run],
    floats: Mapping[str, Run],
) -> None:
    """Each variant passed the gate in the place of one graph, float elsewhere; here all of the class at once, over its
    session. Where what ships falls below the gate in these few pages as well, a class may fall as far."""

    def values(runs: Mapping[str, Run]) -> list[NDArray[np.float32]]:
        return [
            fused_values(run_halves(s, model.layout, runs)[0, : s.n_candidates], model.fusion_weights) for s in samples
        ]

    want = values(floats)
    tau = ranking(want, values(runs)).tau
    allowed = min(model.report.gates.tau, ranking(want, values(model.runs({}))).tau)
    if tau < allowed:
        raise VerificationFailed(
            f"device class '{one.name}': its variants together do not rank as float does",
            where=model.result,
            got=f"Kendall tau {tau:.4f} over {len(samples)} swipes",
            allowed=f"from {allowed:.4f}",
            fix="name fewer variants in the class",
        )


def _tensors(model: PublishedModel, key: str, run: Run) -> bytes:
    """The graph's golden inputs with the outputs of the class's variant; float's are as they were."""
    entry = model.entry(key)
    with np.load(io.BytesIO((model.result / entry["golden"]).read_bytes()), allow_pickle=False) as file:
        case = {name: file[name] for name in file.files}
    feeds = {tensor["name"]: case[tensor["name"]] for tensor in entry["inputs"]}
    floats = {tensor["name"]: case[f"{FLOAT}.{tensor['name']}"] for tensor in entry["outputs"]}
    return tensor_case(feeds, run(feeds), floats)
