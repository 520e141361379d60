"""The public surface, and the small parts: clocks, reasons, fakes."""

from __future__ import annotations

import time

import pytest

import edge
from edge._clock import SessionTime
from edge._types import Reason

SURFACE = {
    "AsyncEdgeSession",
    "Metrics",
    "Trace",
    "BeamPlan",
    "Choice",
    "ChoicePolicy",
    "Chooser",
    "Clock",
    "Device",
    "DeviceState",
    "DirectorySource",
    "DownloadError",
    "EdgeSession",
    "Effect",
    "Engine",
    "Explanation",
    "FakeClock",
    "FakePageClient",
    "Feedback",
    "FeedbackClient",
    "FeedbackUploader",
    "HttpSource",
    "InputError",
    "InstalledModel",
    "IntegrityError",
    "KirError",
    "ManifestError",
    "ModelStore",
    "ModelStoreError",
    "NoModelError",
    "Outcome",
    "PageClient",
    "PageError",
    "PageReport",
    "PageRequest",
    "PageSource",
    "PoolConfig",
    "PoolExhausted",
    "Ranking",
    "Reason",
    "ReplayReport",
    "Retry",
    "ServerError",
    "ServerUnavailable",
    "Search",
    "SessionConfig",
    "StateFile",
    "SystemClock",
    "TrustError",
    "VersionMismatch",
    "replay",
}


def test_the_surface_is_pinned() -> None:
    """A name that is added or goes is a decision: change this set with it, and CHANGELOG.md."""
    assert set(edge.__all__) == SURFACE
    assert sorted(edge.__all__) == edge.__all__


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_every_name_is_there_and_documented(name: str) -> None:
    assert (getattr(edge, name).__doc__ or "").strip()


def test_every_metric_says_what_it_counts() -> None:
    assert all(metric.doc and metric.unit in ("1", "us") for metric in edge.Metrics.TABLE.values())


def test_reasons_are_what_events_may_hold() -> None:
    assert {reason.value for reason in Reason} == {
        "no_model",
        "corrupt_model",
        "rows_status",
        "version_mismatch",
        "spec_mismatch",
        "no_rows",
        "engine_error",
        "non_finite_scores",
    }
    assert f"{Reason.ROWS_STATUS}:no_live_version" == "rows_status:no_live_version"


class TestClocks:
    def test_the_system_clock_is_the_systems(self) -> None:
        clock = edge.SystemClock()
        before = clock.monotonic_ms()
        assert clock.monotonic_ms() >= before
        assert abs(clock.wall_ms() - time.time() * 1000) < 60_000

    def test_the_fake_moves_when_told(self) -> None:
        clock = edge.FakeClock(wall_ms=5_000, monotonic_ms=10)
        clock.advance(90)
        assert (clock.wall_ms(), clock.monotonic_ms()) == (5_090, 100)
        clock.set_wall(1)
        assert (clock.wall_ms(), clock.monotonic_ms()) == (1, 100)
        with pytest.raises(ValueError, match="does not go back"):
            clock.advance(-1)

    def test_session_time_never_jumps(self) -> None:
        clock = edge.FakeClock(wall_ms=5_000, monotonic_ms=10)
        session_time = SessionTime(clock)
        clock.set_wall(0)
        clock.advance(40)
        assert session_time.now_ms() == 5_040
