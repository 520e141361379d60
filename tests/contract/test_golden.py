"""The golden session's codec, the one fusion, and the rule by which rankings agree."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import ManifestError
from contract.golden import Ahead, FeedbackStep, GoldenSession, PageStep, SwipeStep, fused_values, rankings_agree
from contract.vocabulary import SIGNALS, TASKS

finite = st.floats(-50, 50)
ids = st.integers(0, 2**64 - 2)
signals = st.dictionaries(st.sampled_from(SIGNALS), st.integers(0, 1))
page_steps = st.builds(PageStep, st.integers(0, 2**50), st.binary(max_size=40))
feedback_steps = st.builds(
    FeedbackStep, st.integers(0, 2**50), ids, st.integers(0, 2**50), st.integers(-1, 10**7), signals
)

aheads = st.builds(Ahead, st.integers(1, 4), st.integers(1, 9), st.floats(0, 1), st.lists(ids), finite)


@st.composite
def swipe_steps(draw: Any) -> SwipeStep:
    n = draw(st.integers(1, 4))

    def many(one: Any) -> list[Any]:
        found: list[Any] = draw(st.lists(one, min_size=n, max_size=n))
        return found

    video_ids = many(ids)
    return SwipeStep(
        at_ms=draw(st.integers(0, 2**50)),
        network=draw(st.integers(0, 6)),
        decoder=draw(st.integers(0, 2)),
        swipe_index=draw(st.integers(0, 100)),
        video_ids=video_ids,
        buffered_ms=many(st.integers(-1, 20_000)),
        scores=many(st.lists(finite, min_size=len(TASKS), max_size=len(TASKS))),
        values=many(finite),
        choice=draw(st.sampled_from(video_ids)),
        ahead=draw(st.none() | aheads),
    )


steps = st.lists(st.one_of(page_steps, feedback_steps, swipe_steps()), max_size=5)
sessions = st.builds(GoldenSession, st.just("kir-1"), st.integers(0, 2**40), ids, steps.map(tuple))
RAW = GoldenSession(
    "kir-1",
    1,
    5,
    (
        PageStep(1, b"abc"),
        FeedbackStep(2, 7, 1, 900, {"like": 1}),
        SwipeStep(3, 1, 1, 0, [7], [0], [[0.5] * 4], [1.0], 7, Ahead(2, 3, 1.0, [7], 0.5)),
    ),
).to_bytes()


class TestCodec:
    @given(sessions)
    def test_round_trip(self, session: GoldenSession) -> None:
        back = GoldenSession.from_bytes(session.to_bytes())
        assert back == session
        assert back.to_bytes() == session.to_bytes()

    @given(st.integers(0, len(RAW) - 1))
    def test_truncation_is_refused(self, end: int) -> None:
        with pytest.raises(ManifestError):
            GoldenSession.from_bytes(RAW[:end])

    @given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
    @settings(max_examples=200)
    def test_a_flipped_byte_raises_nothing_but_manifest_error(self, at: int, flip: int) -> None:
        raw = bytearray(RAW)
        raw[at] ^= flip
        with contextlib.suppress(ManifestError):
            GoldenSession.from_bytes(bytes(raw))

    @pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b'{"format": "kir-golden-session/9"}', b"\xff\xfe"])
    def test_what_is_no_session_is_refused(self, raw: bytes) -> None:
        with pytest.raises(ManifestError):
            GoldenSession.from_bytes(raw)

    @pytest.mark.parametrize(
        "change",
        [
            lambda s: s[0].update(page="***"),
            lambda s: s[0].update(kind="tap"),
            lambda s: s[0].pop("page"),
            lambda s: s[1]["signals"].update(wink=1),
            lambda s: s[1].update(extra=1),
            lambda s: s[2].pop("choice"),
            lambda s: s[2]["ahead"].pop("reward"),
            lambda s: s[2]["ahead"].update(width=3),
            lambda s: s[2].update(ahead=[1]),
            lambda s: s[2]["ahead"].update(beams="2"),
            lambda s: s[0].update(at_ms="1"),
            lambda s: s[0].update(at_ms=2**63),
            lambda s: s[1].update(play_time_ms=2**31),
            lambda s: s[2].update(scores=[["0.5"] * 4]),
            lambda s: s[2].update(values=[float("nan")]),
            lambda s: s[2].update(buffered_ms=[0, 0]),
            lambda s: s[2].update(choice=8),
        ],
    )
    def test_a_malformed_step_is_refused(self, change: Any) -> None:
        data = json.loads(RAW)
        change(data["steps"])
        with pytest.raises(ManifestError):
            GoldenSession.from_bytes(json.dumps(data).encode())

    def test_scores_that_are_no_numbers_can_not_be_written(self) -> None:
        step = SwipeStep(1, 0, 0, 0, [1], [0], [[float("nan")] * 4], [0.0], 1)
        with pytest.raises(ValueError, match="JSON"):
            GoldenSession("kir-1", 1, 1, (step,)).to_bytes()


class TestFusion:
    def test_it_is_the_weighted_sum_of_sigmoids(self) -> None:
        scores = np.array([[0.0, 2.0], [-1.0, 3.0]], np.float32)
        weights = np.array([1.0, 0.5], np.float32)
        want = [sum(w / (1 + np.exp(-s)) for s, w in zip(row, weights, strict=True)) for row in scores]
        np.testing.assert_allclose(fused_values(scores, weights), want, rtol=1e-6)

    @given(st.permutations(range(6)))
    def test_it_moves_with_the_candidates(self, order: list[int]) -> None:
        scores = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
        weights = np.ones(4, np.float32)
        np.testing.assert_array_equal(fused_values(scores, weights)[order], fused_values(scores[order], weights))


class TestAgreement:
    values = st.lists(st.floats(-1, 1), min_size=1, max_size=8).map(np.array)

    @given(values)
    def test_everything_agrees_with_itself(self, expected: Any) -> None:
        assert rankings_agree(expected, expected, 0.0)

    @given(values, st.floats(1e-6, 0.1), st.integers(0, 2**32 - 1))
    def test_errors_within_the_tolerance_never_disagree(self, expected: Any, tolerance: float, seed: int) -> None:
        noise = np.random.default_rng(seed).uniform(-tolerance, tolerance, len(expected))
        assert rankings_agree(expected, expected + noise, tolerance * (1 + 1e-9))

    def test_a_swap_of_clearly_different_values_disagrees(self) -> None:
        assert not rankings_agree(np.array([1.0, 0.5]), np.array([0.5, 1.0]), 0.01)

    def test_a_swap_of_a_tie_agrees(self) -> None:
        assert rankings_agree(np.array([1.0, 0.999]), np.array([0.999, 1.0]), 0.01)
