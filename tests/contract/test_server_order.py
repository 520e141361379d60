"""The server's fused value: the survival integral against simulation and its limits, weights as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import InputError
from contract.server_order import CLICK_S, DEFAULT_FUSION, LONG_VIEW_S, checked_fusion, expected_watch_s, server_value
from contract.vocabulary import PXTR_HEADS, WATCH_TIME_CAP_MS

CLICK, LONG_VIEW = PXTR_HEADS.index("click"), PXTR_HEADS.index("long_view")
probabilities = st.floats(0.0, 1.0, width=32)


def pxtr(click: float, long_view: float) -> np.ndarray:
    row = np.full((1, len(PXTR_HEADS)), np.nan, np.float32)
    row[0, CLICK], row[0, LONG_VIEW] = click, long_view
    return row


def expected(click: float, long_view: float, duration_ms: int) -> float:
    return float(expected_watch_s(pxtr(click, long_view), np.array([duration_ms]))[0])


class TestExpectedWatch:
    def test_certain_watching_lasts_to_the_end_or_the_cap(self) -> None:
        assert expected(1.0, 1.0, 40_000) == pytest.approx(40.0, rel=1e-3)
        assert expected(1.0, 1.0, 600_000) == pytest.approx(WATCH_TIME_CAP_MS / 1000, rel=1e-3)

    def test_an_exponential_player_is_recovered(self) -> None:
        """With a constant hazard, survival at 7 s and 18 s determines the mean; straight pieces err a little."""
        rate = 0.05
        click, long_view = np.exp(-rate * CLICK_S), np.exp(-rate * LONG_VIEW_S)
        play_s = np.minimum(np.random.default_rng(0).exponential(1 / rate, 400_000), 60.0)
        assert expected(float(click), float(long_view), 60_000) == pytest.approx(play_s.mean(), rel=0.03)

    @given(probabilities, probabilities, st.integers(-1, 2**31 - 1))
    def test_it_stays_between_nothing_and_the_video(self, click: float, long_view: float, duration_ms: int) -> None:
        watched = expected(click, long_view, duration_ms)
        assert 0.0 <= watched <= min(max(duration_ms, 0), WATCH_TIME_CAP_MS) / 1000 * (1 + 1e-6)

    @given(probabilities, probabilities, st.integers(0, 100_000), st.integers(0, 100_000))
    def test_a_longer_video_is_never_watched_less(self, click: float, long_view: float, a_ms: int, b_ms: int) -> None:
        short, long = sorted((a_ms, b_ms))
        assert expected(click, long_view, short) <= expected(click, long_view, long) + 1e-4

    def test_one_missing_head_is_taken_from_the_other_and_none_gives_zero(self) -> None:
        assert expected(np.nan, 0.4, 30_000) == pytest.approx(expected(0.4, 0.4, 30_000))
        assert expected(np.nan, np.nan, 30_000) == 0.0


class TestServerValue:
    def test_heads_alone_are_a_weighted_sum_with_null_as_zero(self) -> None:
        row = pxtr(0.5, np.nan)
        assert server_value(row, np.array([1000]), {"click": 2.0, "long_view": 3.0}).tolist() == [1.0]

    def test_the_default_prefers_what_is_watched_longer(self) -> None:
        rows = np.concatenate([pxtr(0.9, 0.9), pxtr(0.6, 0.5)])
        short, long = server_value(rows, np.array([6_000, 60_000]), DEFAULT_FUSION)
        assert long > short

    @pytest.mark.parametrize("fusion", [{"joy": 1}, {"like": "much"}, {"like": float("inf")}, ["like"], None])
    def test_weights_are_checked(self, fusion: Any) -> None:
        with pytest.raises(InputError, match="fusion"):
            checked_fusion(fusion)
