"""The slow, obvious reference of a session: at every swipe the `whole` graph over everything watched. No edge code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.features import dense_block, pool_rows, since_watched, videos_behind
from contract.golden import FeedbackStep, GoldenSession, PageStep, SwipeStep, fused_values
from contract.manifest import MANIFEST_NAME, Manifest
from contract.page import CANDIDATE, USER, Page, parse_page
from contract.spec import FeatureSpec
from contract.vocabulary import MASK_VALUE, SIGNALS
from contract.watched import WatchedList

START_MS = 1_735_700_000_000
Floats = NDArray[np.float32]


def load_graph(folder: Path, name: str, bucket: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    manifest = Manifest.from_bytes((folder / MANIFEST_NAME).read_bytes())
    content = (folder / manifest.graph(name, bucket).variant().file).read_bytes()
    runner = Interpreter(model_content=content, num_threads=1)
    runner.allocate_tensors()
    return runner


def run(runner: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, Floats]:
    for detail in runner.get_input_details():
        runner.set_tensor(detail["index"], inputs[detail["name"]].reshape(detail["shape"]))
    runner.invoke()
    return {d["name"]: runner.get_tensor(d["index"]) for d in runner.get_output_details()}


def served(spec: FeatureSpec, block: str, page: Page, owner: str, n: int) -> Floats:
    slots = {c.field.name: page.rows.slots[owner, c.field.name] for c in spec.columns(block)}
    return pool_rows(spec, block, page.rows.decoded(), slots, np.zeros((n, spec.width(block)), np.float32))


class Reference:
    """One page, one watched list, no cache: everything is worked out anew at every swipe."""

    def __init__(self, folder: Path, spec: FeatureSpec, capacity: int, weights_T: Floats, bucket: int):
        self.spec, self.weights_T, self.bucket = spec, weights_T, bucket
        self.whole = load_graph(folder, "whole", f"N{bucket}")
        self.watched = WatchedList(capacity)
        self.watched_rows: list[Floats] = []
        self.n_swipes = 0
        self.number_of: dict[int, int] = {}

    def open_page(self, page: Page) -> None:
        n, spec = len(page.candidates), self.spec
        self.page, self.remaining = page, list(range(n))
        c = page.candidates
        columns = {**vars(c), "server_position": page.server_position}
        user = {
            "user_activity": np.array([page.user_activity]),
            "user_register_days": np.array([page.user_register_days]),
            "user_profile": page.user_profile[None],
            "hour": np.array([page.hour]),
        }
        self.inputs = {
            "user_rows": served(spec, "user_rows", page, USER, 1),
            "user_dense": dense_block(spec, "user_dense", user, np.zeros((1, spec.width("user_dense")), np.float32)),
            "candidate_rows": self.padded(served(spec, "candidate_rows", page, CANDIDATE, n)),
            "candidate_dense": self.padded(
                dense_block(spec, "candidate_dense", columns, np.zeros((n, spec.width("candidate_dense")), np.float32))
            ),
        }
        if hasattr(self, "start_row"):
            return  # frozen with the first page, as every other token is
        tables = page.rows.decoded()
        default = [tables[c.field.table][0] for c in spec.columns("watched_rows")]
        self.start_row = np.concatenate([np.zeros(0, np.float32), *default])

    def padded(self, values_nF: Floats) -> Floats:
        out = np.zeros((self.bucket, values_nF.shape[1]), np.float32)
        out[: len(values_nF)] = values_nF
        return out

    def scores(self, now_ms: int, network: int, decoder: int, buffered_ms: NDArray[np.int64]) -> Floats:
        """[n, T] of all candidates of the page; buffered_ms int [n]."""
        spec, length, capacity = self.spec, self.watched.length, self.watched.capacity
        rows = np.zeros((capacity + 1, spec.width("watched_rows")), np.float32)
        rows[0] = self.start_row
        for slot, row in enumerate(self.watched_rows, start=1):
            rows[slot] = row
        dense = np.zeros((capacity + 1, spec.width("watched_dense")), np.float32)
        dense_block(spec, "watched_dense", self.watched.columns(), dense[:length])
        since = np.zeros(capacity + 1, np.float32)
        since_watched(now_ms, self.watched.columns()["shown_at_ms"], since[:length])
        behind = np.zeros(capacity + 1, np.float32)
        videos_behind(self.n_swipes, self.watched.columns()["number"], behind[:length])
        mask = np.full(capacity + 1, MASK_VALUE, np.float32)
        mask[:length] = 0
        device = {"network": network, "decoder": decoder, "swipe_index": self.n_swipes}
        device_columns = {name: np.array([value]) for name, value in device.items()}
        swipe_dense = np.zeros((1, spec.width("swipe_dense")), np.float32)
        candidate_swipe = np.zeros((len(buffered_ms), spec.width("candidate_swipe")), np.float32)
        now = {
            "swipe_dense": dense_block(spec, "swipe_dense", device_columns, swipe_dense),
            "candidate_swipe": self.padded(
                dense_block(spec, "candidate_swipe", {"buffered_ms": buffered_ms}, candidate_swipe)
            ),
        }
        watched = {"watched_rows": rows, "watched_dense": dense, "memory_mask": mask, "since": since}
        watched["behind"] = behind
        return run(self.whole, {**self.inputs, **watched, **now})["scores"][0, : len(buffered_ms)]

    def swipe(self, now_ms: int, network: int, decoder: int, buffered_ms: NDArray[np.int64]) -> SwipeStep:
        """Score the remaining, choose, evict. buffered_ms: of all candidates of the page."""
        scores_NT = self.scores(now_ms, network, decoder, buffered_ms)[self.remaining]
        values = fused_values(scores_NT, self.weights_T)
        ids = self.page.candidates.video_id[self.remaining]
        best = int(np.argmax(values))
        step = SwipeStep(
            at_ms=now_ms,
            network=network,
            decoder=decoder,
            swipe_index=self.n_swipes,
            video_ids=[int(v) for v in ids],
            buffered_ms=[int(v) for v in buffered_ms[self.remaining]],
            scores=[[float(v) for v in row] for row in scores_NT],
            values=[float(v) for v in values],
            choice=int(ids[best]),
        )
        del self.remaining[best]
        self.number_of[step.choice] = self.n_swipes
        self.n_swipes += 1
        dropped = self.watched.evict_if_full().dropped
        del self.watched_rows[:dropped]
        return step

    def feedback(self, step: FeedbackStep) -> None:
        page, spec = self.page, self.spec
        index = int(np.flatnonzero(page.candidates.video_id == step.video_id)[0])
        item = {name: getattr(page.candidates, name)[index] for name in ("author_id", "tags", "duration_ms", "pxtr")}
        signals = [step.signals.get(name, -1) for name in SIGNALS]
        times = {"play_time_ms": step.play_time_ms, "shown_at_ms": step.shown_at_ms}
        item["number"] = self.number_of[step.video_id]
        self.watched.append({"video_id": step.video_id, "signals": signals, **times, **item})
        # Its row as a candidate: same (feature, table), another field name.
        candidate_fields = {(c.field.feature, c.field.table): c.field.name for c in spec.columns("candidate_rows")}
        fields = [c.field for c in spec.columns("watched_rows")]
        slots = {
            f.name: page.rows.slots[CANDIDATE, candidate_fields[f.feature, f.table]][index : index + 1] for f in fields
        }
        row = np.zeros((1, spec.width("watched_rows")), np.float32)
        self.watched_rows.append(pool_rows(spec, "watched_rows", page.rows.decoded(), slots, row)[0])


def scripted_feedback(video_id: int, shown_at_ms: int, number: int) -> FeedbackStep:
    signals = {name: int((video_id + i + number) % 3 == 0) for i, name in enumerate(SIGNALS) if (video_id + i) % 4}
    play_time_ms = (video_id * 613 + number * 977) % 40_000
    return FeedbackStep(shown_at_ms + play_time_ms, video_id, shown_at_ms, play_time_ms, signals)


def make_session(folder: Path, version: str, spec: FeatureSpec) -> GoldenSession:
    """A page of 8 and 8 swipes with feedback in between: passes one eviction (L = 6)."""
    from tests.edge import tiny_model, tiny_page

    weights = np.array([tiny_model.FUSION[task] for task in tiny_model.TASKS], np.float32)
    reference = Reference(folder, spec, tiny_model.L, weights, max(tiny_model.BUCKETS))
    status = "ok" if spec.tables else "not_needed"
    raw = tiny_page.page_bytes(range(101, 109), version, spec=spec, status=status)
    reference.open_page(parse_page(raw))
    steps: list[Any] = [PageStep(START_MS, raw)]
    now_ms = START_MS + 500
    for number in range(8):
        buffered_ms = np.array([(i * 1700 + number * 900) % 13_000 - 1 for i in range(8)])
        step = reference.swipe(now_ms, network=number % 7, decoder=number % 3, buffered_ms=buffered_ms)
        feedback = scripted_feedback(step.choice, now_ms, number)
        steps += [step, feedback]
        reference.feedback(feedback)
        now_ms = feedback.at_ms + 700
    return GoldenSession(version, tiny_model.ROWS_REVISION, tiny_page.USER_ID, steps)
