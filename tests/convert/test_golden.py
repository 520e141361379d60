"""Golden cases: tensors that a runner repeats, and a session that follows the contract step by step."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from contract.golden import FeedbackStep, GoldenSession, PageStep, SwipeStep, fused_values
from contract.page import CANDIDATE, parse_page
from contract.vocabulary import MISSING_KEY
from convert.build import BuiltGraph
from convert.golden import PAST_EVICTION, SEARCH_EVERY, make_session, page_rows, tensor_case
from convert.model import ConversionResult
from convert.phone import Rows, Sample
from convert.quantize import FLOAT
from convert.source import KirSource
from convert.tflite import TfliteGraph
from convert.windows import synthetic_events
from tests.convert import makers

L = 6


@pytest.fixture(scope="module")
def made(source: KirSource) -> tuple[GoldenSession, list[Sample]]:
    """A session scored by the whole net in torch."""
    run = source.graphs["whole/N9"].run
    return make_session(source, synthetic_events(source), lambda sample: run(sample.inputs)["scores"])


@pytest.fixture(scope="module")
def session(made: tuple[GoldenSession, list[Sample]]) -> GoldenSession:
    return made[0]


def swipes(session: GoldenSession) -> list[SwipeStep]:
    return [step for step in session.steps if isinstance(step, SwipeStep)]


class TestSession:
    def test_it_has_two_pages_and_goes_past_an_eviction(self, session: GoldenSession) -> None:
        assert sum(isinstance(step, PageStep) for step in session.steps) >= 2
        assert len(swipes(session)) > L + PAST_EVICTION

    def test_it_names_the_version_and_revision_of_its_pages(self, session: GoldenSession, source: KirSource) -> None:
        assert (session.dense_version, session.rows_revision) == (source.dense_version, source.rows_revision)
        for step in session.steps:
            if isinstance(step, PageStep):
                page = parse_page(step.page)
                assert (page.dense_version, page.rows_revision) == (source.dense_version, source.rows_revision)
                assert (page.rows_status, page.spec_fingerprint) == ("ok", source.spec.fingerprint)

    def test_time_runs_forward(self, session: GoldenSession) -> None:
        times = [step.at_ms for step in session.steps]
        assert times == sorted(times)

    def test_candidates_are_what_is_left_in_server_order(self, session: GoldenSession) -> None:
        left: list[int] = []
        for step in session.steps:
            if isinstance(step, PageStep):
                left = parse_page(step.page).candidates.video_id.tolist()
            elif isinstance(step, SwipeStep):
                assert list(step.video_ids) == left
                left.remove(step.choice)

    def test_the_choice_is_the_first_of_the_best(self, session: GoldenSession, source: KirSource) -> None:
        for step in swipes(session):
            values = fused_values(np.array(step.scores, np.float32), source.fusion_weights)
            np.testing.assert_allclose(values, step.values, rtol=1e-6)
            assert step.choice == step.video_ids[int(np.argmax(step.values))]

    def test_feedback_follows_its_choice(self, session: GoldenSession) -> None:
        last = None
        for step in session.steps:
            if isinstance(step, FeedbackStep):
                assert last is not None
                assert step.video_id == last.choice
                assert step.shown_at_ms == last.at_ms
            last = step if isinstance(step, SwipeStep) else last

    def test_some_signals_and_some_plays_were_not_observed(self, session: GoldenSession) -> None:
        feedback = [step for step in session.steps if isinstance(step, FeedbackStep)]
        assert len({frozenset(step.signals) for step in feedback}) > 1
        assert {step.play_time_ms == -1 for step in feedback} == {True, False} or len(feedback) < 8

    def test_the_list_grows_to_L_and_drops_half(self, made: tuple[GoldenSession, list[Sample]]) -> None:
        watched = [sample.n_watched for sample in made[1]]
        assert watched[: L + 1] == list(range(L + 1))
        assert watched[L + 1] == L // 2 + 1

    def test_the_next_page_follows_before_the_list_is_empty(self, session: GoldenSession) -> None:
        assert all(len(step.video_ids) >= 2 for step in swipes(session))

    def test_bytes_come_back(self, session: GoldenSession) -> None:
        assert GoldenSession.from_bytes(session.to_bytes()) == session

    def test_the_same_seed_makes_the_same(self, session: GoldenSession, source: KirSource) -> None:
        run = source.graphs["whole/N9"].run
        again, _ = make_session(source, synthetic_events(source), lambda sample: run(sample.inputs)["scores"])
        assert again.to_bytes() == session.to_bytes()


class TestPageRows:
    def test_rows_are_the_tables_after_coding(self, source: KirSource) -> None:
        ids = np.concatenate([makers.VIDEOS[:4], [np.uint64(3)]])  # the last one has no row
        tags = np.full((5, 3), MISSING_KEY)
        tags[:3, 0] = makers.VIDEOS[:3]
        columns = {"video_id": ids, "author_id": ids, "tags": tags}
        rows = page_rows(source, {"user": {"user_id": ids[:1], "recent_authors": ids[None, :2]}, CANDIDATE: columns})
        want = Rows(source.spec, source.tables, source.decoded_tables()).block("candidate_rows", columns)
        from contract.features import pool_rows

        slots = {c.field.name: rows.slots[CANDIDATE, c.field.name] for c in source.spec.columns("candidate_rows")}
        got = pool_rows(source.spec, "candidate_rows", rows.decoded(), slots, np.zeros_like(want))
        np.testing.assert_array_equal(got, want)

    def test_a_row_is_sent_once(self, source: KirSource) -> None:
        ids = np.repeat(makers.VIDEOS[:2], 3)
        columns = {"video_id": ids, "author_id": ids, "tags": np.full((6, 3), MISSING_KEY)}
        rows = page_rows(source, {"user": {"user_id": ids[:1], "recent_authors": ids[None, :2]}, CANDIDATE: columns})
        assert len(rows.decoded()["video"]) == 3  # two videos and the default row
        assert len(rows.decoded()["tag"]) == 1


class TestPublishedCases:
    def test_every_graph_has_a_case_that_its_files_repeat(
        self, conversion: ConversionResult, built: dict[str, BuiltGraph]
    ) -> None:
        for key, graph in built.items():
            with np.load(conversion.directory / "golden" / f"{key.replace('/', '-')}.npz") as file:
                case = dict(file)
            for variant, prefix in ((conversion.verification.shipped[key], ""), (FLOAT, f"{FLOAT}.")):
                got = TfliteGraph(graph.variants[variant]).run({t.name: case[t.name] for t in graph.inputs})
                for tensor in graph.outputs:
                    np.testing.assert_array_equal(got[tensor.name], case[prefix + tensor.name])

    def test_the_shipped_files_stray_from_float_as_far_as_is_told(self, conversion: ConversionResult) -> None:
        """The fused value moves by at most Σ|weight|/4 per unit of score: a sigmoid is a quarter steep at most."""
        about = json.loads((conversion.directory / "model.json").read_text())
        told = about["session"]
        steepest = sum(abs(weight) for weight in about["fusion"].values()) / 4
        assert 0 < told["scores_max_abs"] < 10  # logits of random weights, int8
        assert 0 < told["values_max_abs"] <= steepest * told["scores_max_abs"] + 1e-6

    def test_cases_are_the_same_bytes_every_time(self) -> None:
        x = {"x": np.arange(3, dtype=np.float32)}
        assert tensor_case(x, {"y": x["x"]}, {"y": x["x"]}) == tensor_case(x, {"y": x["x"]}, {"y": x["x"]})
        with np.load(io.BytesIO(tensor_case(x, {"y": x["x"]}, {"y": x["x"] + 1}))) as file:
            assert sorted(file.files) == ["float32.y", "x", "y"]

    def test_searches_are_told_where_noise_does_not_turn_them(
        self, conversion: ConversionResult, source: KirSource
    ) -> None:
        session = GoldenSession.from_bytes((conversion.directory / "golden" / "session.json").read_bytes())
        told = [step for step in swipes(session) if step.ahead is not None]
        assert told
        for step in told:
            assert step.ahead is not None
            assert step.swipe_index % SEARCH_EVERY == SEARCH_EVERY - 1
            assert (step.ahead.beams, step.ahead.depth) == (source.layout.k, source.layout.P + 1)
            assert len(set(step.ahead.video_ids)) == min(step.ahead.depth, len(step.video_ids))
            assert set(step.ahead.video_ids) <= set(step.video_ids)
            first = list(step.video_ids).index(step.ahead.video_ids[0])
            assert source.list_reward is not None
            values, _ = source.list_reward.places(np.array([step.scores], np.float32), source.tasks)
            assert step.ahead.reward >= values[0, first] - 1e-6  # what follows is worth something

    def test_the_session_was_written(self, conversion: ConversionResult) -> None:
        path = Path(conversion.directory / "golden" / "session.json")
        assert GoldenSession.from_bytes(path.read_bytes()).dense_version == conversion.version
