"""The phone: numpy, LiteRT and a gRPC client. Fetches the dense net, keeps the candidate pool, reranks at each swipe.

What is listed here is the public surface; modules that begin with an underscore may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contract.beam import BeamPlan
from contract.errors import (
    DownloadError,
    InputError,
    IntegrityError,
    KirError,
    ManifestError,
    ModelStoreError,
    NoModelError,
    PageError,
    PoolExhausted,
    ServerError,
    ServerUnavailable,
    TrustError,
    VersionMismatch,
)
from edge._client import FakePageClient, PageClient, PageSource, Retry
from edge._clock import Clock, FakeClock, SystemClock
from edge._config import SessionConfig
from edge._device import Device
from edge._engine import Engine
from edge._explain import Effect, Explanation
from edge._installed import InstalledModel
from edge._metrics import Metrics
from edge._policy import ChoicePolicy
from edge._pool import PoolConfig
from edge._ranking import Ranking
from edge._replay import ReplayReport, replay
from edge._session import EdgeSession
from edge._source import DirectorySource, HttpSource
from edge._state import StateFile
from edge._store import ModelStore
from edge._trace import Trace
from edge._types import Choice, Chooser, DeviceState, Feedback, Outcome, PageReport, Reason, Search
from edge._upload import FeedbackClient, FeedbackUploader
from edge._wire import PageRequest

if TYPE_CHECKING:
    from edge._async import AsyncEdgeSession

__all__ = [
    "AsyncEdgeSession",
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
    "Metrics",
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
    "Search",
    "ServerError",
    "ServerUnavailable",
    "SessionConfig",
    "StateFile",
    "SystemClock",
    "Trace",
    "TrustError",
    "VersionMismatch",
    "replay",
]


def __getattr__(name: str) -> Any:
    """`AsyncEdgeSession`, once it is asked for: asyncio takes 7 MB, and most phones drive a session by a thread."""
    if name == "AsyncEdgeSession":
        from edge._async import AsyncEdgeSession

        return AsyncEdgeSession
    raise AttributeError(f"module 'edge' has no attribute '{name}'")
