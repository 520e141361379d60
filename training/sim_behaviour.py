"""What a simulated user does with one video: play time, signals, going on. Batched, and in closed form where it counts.

The user holds on to a video for T milliseconds, ln T = mu + appeal + sigma * eps, and plays min(T, duration); who gets
to the end may loop it. `long_view` follows KuaiRand: played >= min(duration, 18 s) (holds for 99 % of the rows of
KuaiRand-Pure with a known duration). `click` = an effective view, played >= min(duration, 7 s). The other signals are
logistic in the appeal, so they tell of the mood too. Calibration is bisection on closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.vocabulary import SIGNALS
from training.sim_random import OUTCOME, normal_of, uniforms

Floats = NDArray[np.float64]

LONG_VIEW_MS = 18_000
CLICK_MS = 7_000
PLAY_CAP_MS = 1_800_000

SIGMA = 0.7  # spread of ln T around the appeal
REPLAY_RATE = 0.15  # of those who reach the end
REPLAY_MEAN = 0.7  # further loops of those who replay
REPLAY_CAP = 6.0
END_SLACK_MS = 400  # finishing means playing a little past the end
SIGNAL_LONG_VIEW = 1.0  # added to a signal's logit after a long view (negated for hate)
BOREDOM_KEEP = 0.75
NEXT_LOGIT, NEXT_BOREDOM = 4.6, 3.0  # P(next) = sigmoid(4.6 - 3 * boredom)

# signal -> (marginal under the logging policy: KuaiRand-Pure 04-25..30, slope of its logit in the appeal)
RARE_SIGNALS = {
    "like": (0.0171, 1.0),
    "follow": (0.00135, 0.9),
    "comment": (0.0023, 0.9),
    "forward": (0.0008, 0.9),
    "hate": (0.0007, -1.2),
    "profile_enter": (0.0194, 0.7),
}
LONG_VIEW_RATE = 0.307


@dataclass(frozen=True)
class Calibration:
    """mu: intercept of ln T; intercepts: of each rare signal's logit."""

    mu: float = 6.8
    intercepts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RARE_SIGNALS, -5.0))


def sigmoid(x: Any) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def normal_cdf(x: Any) -> Floats:
    """Abramowitz & Stegun 7.1.26 (error below 2e-7), so that numpy is enough."""
    x = np.asarray(x, np.float64)
    z = np.abs(x) / np.sqrt(2.0)
    t = 1.0 / (1.0 + 0.3275911 * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    half = 0.5 * poly * np.exp(-z * z)
    return np.where(x < 0, half, 1.0 - half)


def long_view_probability(mu: float, appeal: Floats, duration_ms: NDArray[Any]) -> Floats:
    return normal_cdf((mu + appeal - np.log(np.minimum(duration_ms, LONG_VIEW_MS))) / SIGMA)


def expected_play_ms(mu: float, appeal: Floats, duration_ms: NDArray[Any]) -> Floats:
    """E[play] in milliseconds, replays and the slack at the end included (the tail above REPLAY_CAP neglected)."""
    mean = mu + appeal
    log_duration = np.log(duration_ms)
    reach = normal_cdf((mean - log_duration) / SIGMA)
    held = np.exp(mean + 0.5 * SIGMA**2) * normal_cdf((log_duration - mean - SIGMA**2) / SIGMA)
    return held + reach * (duration_ms * (1.0 + REPLAY_RATE * REPLAY_MEAN) + 0.5 * END_SLACK_MS)


def draw_outcomes(
    calibration: Calibration,
    appeal: Floats,
    duration_ms: NDArray[Any],
    seed: NDArray[np.uint64],
    item: NDArray[Any],
    step: NDArray[Any],
) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """play_time_ms int32 [n] and signals int8 [n, len(SIGNALS)], all observed, drawn from (seed, item, step) [n]."""
    u = uniforms(4 + len(SIGNALS), seed, OUTCOME, item, step)
    held = np.exp(calibration.mu + appeal + SIGMA * normal_of(u[:, 0], u[:, 1]))
    loops = np.where(u[:, 2] < REPLAY_RATE, np.minimum(-REPLAY_MEAN * np.log(u[:, 2] / REPLAY_RATE), REPLAY_CAP), 0.0)
    play = np.where(held < duration_ms, held, duration_ms * (1.0 + loops) + END_SLACK_MS * u[:, 3])
    play_ms = np.minimum(play, PLAY_CAP_MS).astype(np.int32)
    return play_ms, _signals(calibration, appeal, play_ms, duration_ms, u[:, 4:])


def _signals(
    calibration: Calibration, appeal: Floats, play_ms: NDArray[np.int32], duration_ms: NDArray[Any], u_nS: Floats
) -> NDArray[np.int8]:
    out = np.zeros((len(play_ms), len(SIGNALS)), np.int8)
    long_view = play_ms >= np.minimum(duration_ms, LONG_VIEW_MS)
    for column, name in enumerate(SIGNALS):
        if name == "click":
            out[:, column] = play_ms >= np.minimum(duration_ms, CLICK_MS)
        elif name == "long_view":
            out[:, column] = long_view
        elif name == "finish":
            out[:, column] = play_ms >= duration_ms
        else:
            p = _signal_probability(calibration.intercepts[name], RARE_SIGNALS[name][1], appeal, long_view)
            out[:, column] = u_nS[:, column] < p
    return out


def _signal_probability(intercept: float, slope: float, appeal: Floats, long_view: NDArray[Any]) -> Floats:
    return sigmoid(intercept + slope * appeal + np.sign(slope) * SIGNAL_LONG_VIEW * long_view)


def next_boredom(boredom: Floats, play_ms: NDArray[np.int32], duration_ms: NDArray[Any]) -> Floats:
    """Running mean of what was lacking to a long view, 0 … 1."""
    satisfied = np.minimum(play_ms / np.minimum(duration_ms, LONG_VIEW_MS), 1.0)
    return BOREDOM_KEEP * boredom + (1.0 - BOREDOM_KEEP) * (1.0 - satisfied)


def next_probability(boredom: Floats) -> Floats:
    return sigmoid(NEXT_LOGIT - NEXT_BOREDOM * boredom)


def calibrate(appeal: Floats, duration_ms: NDArray[Any]) -> Calibration:
    """Intercepts that give the marginals over these impressions of the logging policy. Both arguments [n]."""
    mu = _bisect(lambda x: float(long_view_probability(x, appeal, duration_ms).mean()), LONG_VIEW_RATE, -10.0, 25.0)
    p_long = long_view_probability(mu, appeal, duration_ms)

    def rate(slope: float) -> Callable[[float], float]:
        def mean(x: float) -> float:
            yes = _signal_probability(x, slope, appeal, np.ones(1))
            no = _signal_probability(x, slope, appeal, np.zeros(1))
            return float((p_long * yes + (1.0 - p_long) * no).mean())

        return mean

    intercepts = {name: _bisect(rate(slope), target, -30.0, 15.0) for name, (target, slope) in RARE_SIGNALS.items()}
    return Calibration(mu, intercepts)


def _bisect(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return 0.5 * (low + high)
