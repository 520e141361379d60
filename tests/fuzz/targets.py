"""What is fuzzed: every reader of bytes that come from a server, a CDN or the device's own files.

A new one is a function that takes bytes, and an entry of `TARGETS`. A function raises what it documents for a bad
input; for a good one it also asserts what must hold of the result, and uses it as the edge does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from contract.device_class import DeviceClass
from contract.errors import ManifestError, PageError, ServerError, SpecError, VersionMismatch
from contract.golden import GoldenSession, SwipeStep
from contract.manifest import POINTER_FORMAT, Manifest, Pointer, canonical_json
from contract.page import decode_page, encode_page, parse_page
from contract.rows import FLOAT16, FLOAT32, INT8, EncodedRows, decode_rows
from contract.spec import FeatureSpec
from contract.specs import kir_spec
from contract.v1 import feedback_pb2, page_pb2
from edge import (
    Chooser,
    EdgeSession,
    Engine,
    FakeClock,
    Feedback,
    FeedbackUploader,
    InstalledModel,
    PageClient,
    PageRequest,
    Retry,
)
from edge._installed import check_runtime, device_files
from tests.edge import tiny_model
from tests.edge.tiny_page import page_bytes
from tests.fuzz import cdn_targets as cdn
from tests.fuzz import state_targets as states
from tests.fuzz.judge import Target

HELD, WATCHED = range(901, 905), (801, 802)


@cache
def _page_seeds() -> list[bytes]:
    return [
        page_bytes(range(101, 105), watched=WATCHED),
        page_bytes(range(101, 113), encoding=FLOAT16),
        page_bytes([101], encoding=FLOAT32, watched=[801, 802, 803]),
        page_bytes(range(101, 104), status="no_live_version"),
        page_bytes(range(101, 104), "kir-b"),
        page_bytes(range(101, 104), "kir-pxtr", status="not_needed", spec=tiny_model.SPEC.without_served()),
    ]


def page(data: bytes) -> None:
    """A page that is accepted survives its own encoding: nothing was read that can't be written."""
    got = parse_page(data)
    again = decode_page(encode_page(got))
    for name, column in vars(got.candidates).items():
        np.testing.assert_array_equal(column, getattr(again.candidates, name), err_msg=name)
    for table in got.rows.decoded().values():
        assert np.isfinite(table).all()


@cache
def _engine() -> Engine:
    return Engine(InstalledModel.open_published(_published("kir-a")))


class _Phones:
    """A session that has a page and has watched a video. A refused page must leave it as it was, so it goes on to the
    next input; after a page that was taken a new one is made.
    """

    def __init__(self) -> None:
        self._phone: EdgeSession | None = None

    def get(self) -> tuple[EdgeSession, PageRequest]:
        if self._phone is None:
            self._phone = EdgeSession(5, _engine(), clock=FakeClock(), session_id=77)
            assert self._phone.start() == ""
            self._phone.on_page(_held_page())
            _swipe(self._phone)
        return self._phone, PageRequest(5, 77, watched=self._phone.page_request().watched)

    def used(self) -> None:
        self._phone = None


_PHONES = _Phones()


def session(data: bytes) -> None:
    """Whatever comes as the next page, the session goes on: with the pool that it had, or with the page as well."""
    phone, request = _PHONES.get()
    before = _left(phone)
    try:
        phone.on_page(data, request)
    except PageError:
        if _left(phone) != before:
            _PHONES.used()
            raise AssertionError("a refused page changed the pool") from None
        raise
    except BaseException:
        _PHONES.used()
        raise
    _PHONES.used()
    after = _left(phone)
    shown = [_swipe(phone) for _ in range(min(2, len(after)))]
    assert len(set(shown)) == len(shown)
    assert set(shown) <= set(after)
    assert phone.last_error is None  # no page that is accepted breaks the engine


def _left(phone: EdgeSession) -> list[int]:
    return [page.video_ids[i] for page in phone.pool.pages for i in page.remaining]


@cache
def _held_page() -> bytes:
    return page_bytes(HELD, page_id="held")


def _swipe(phone: EdgeSession) -> int:
    """A swipe and its feedback."""
    choice = phone.next()
    assert (choice.chooser is Chooser.MODEL) == (choice.reason == "")
    assert choice.value is None or np.isfinite(choice.value)
    phone.maintain()
    phone.feedback(Feedback(choice.video_id, 1_000, {"like": True}))
    return choice.video_id


@cache
def _answer_seeds() -> list[bytes]:
    refusal = page_pb2.PageRefusal(reason=page_pb2.REFUSAL_REASON_OVERLOADED, message="busy", retry_after_ms=5)
    whole = page_pb2.GetPageResponse(page=page_pb2.Page.FromString(page_bytes([101, 102])))
    return [page_pb2.GetPageResponse(refusal=refusal).SerializeToString(), whole.SerializeToString()]


class _OneAnswer:
    """The stub of a page service that gives one answer for ever."""

    def __init__(self, answer: page_pb2.GetPageResponse):
        self._answer = answer

    def GetPage(self, request: page_pb2.GetPageRequest, timeout: float) -> page_pb2.GetPageResponse:
        return self._answer


@cache
def _client() -> PageClient:
    return PageClient("localhost:1", retry=Retry(attempts=2, backoff_s=0), sleep=lambda seconds: None)


def answer(data: bytes) -> None:
    """Whatever a page server answers is a page or a ServerError. gRPC itself refuses what is no message."""
    message = page_pb2.GetPageResponse()
    try:
        message.ParseFromString(data)
    except Exception:
        raise ServerError("no message, says gRPC") from None
    client: Any = _client()
    client._stub = _OneAnswer(message)
    assert isinstance(client.get_page(PageRequest(5, 9)), page_pb2.Page)


@cache
def _feedback_answer_seeds() -> list[bytes]:
    taken = feedback_pb2.ReportFeedbackResponse(accepted=3, duplicates=1, rejected=1, reasons=["seq 4: no page"])
    return [taken.SerializeToString()]


def feedback_answer(data: bytes) -> None:
    """What a server says of a batch only moves counters."""
    message = feedback_pb2.ReportFeedbackResponse()
    try:
        message.ParseFromString(data)
    except Exception:
        raise ServerError("no message, says gRPC") from None
    uploader: Any = FeedbackUploader(_NoSink())
    uploader._done([], message)
    assert min(uploader.accepted, uploader.duplicates, uploader.rejected) >= 0


class _NoSink:
    def report(self, events: list[feedback_pb2.FeedbackEvent]) -> feedback_pb2.ReportFeedbackResponse:
        raise ServerError("nothing is sent here")


@cache
def _row_seeds() -> list[bytes]:
    return [table.SerializeToString() for raw in _page_seeds() for table in page_pb2.Page.FromString(raw).row_tables]


def rows(data: bytes) -> None:
    """Decoded rows are numbers, [R, width]."""
    table = page_pb2.RowTable()
    try:
        table.ParseFromString(data)
    except Exception:
        raise PageError("no message, says protobuf") from None
    encodings = {1: INT8, 2: FLOAT16, 3: FLOAT32}
    encoding = encodings.get(table.encoding, str(table.encoding))
    decoded = decode_rows(EncodedRows(encoding, table.width, table.values, table.scales))
    assert decoded.shape[1] == table.width
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()


def _published(version: str) -> Path:
    return tiny_model.shared_cdn() / "models" / version


@cache
def _manifest_seeds() -> list[bytes]:
    """The tiny models' manifests with a few graphs and fields of theirs: small, so that a mutation hits what counts."""
    return [_small_manifest(version) for version in ("kir-a", "kir-pxtr")]


def _small_manifest(version: str) -> bytes:
    got = Manifest.from_bytes((_published(version) / "manifest.json").read_bytes())
    kept = tuple(g for g in got.graphs if (g.name, g.bucket) in (("page", "N4"), ("swipe", "N4"), ("watch", "T1")))
    fields = got.spec.fields[:3] + got.spec.fields[-2:]
    golden = replace(got.golden, tensors={"swipe/N4": got.golden.tensors["swipe/N4"]})
    named = {v.file for g in kept for v in g.variants} | {golden.session, got.card, golden.tensors["swipe/N4"]}
    files = {name: entry for name, entry in got.files.items() if name in named}
    spec = replace(got.spec, fields=fields)
    classes = (
        DeviceClass("large", {"swipe": "float32"}, ("asimddp", "i8mm"), 6000, golden.tensors, golden.session),
        DeviceClass("others", {"watch": "float32"}, (), 2000),
    )
    return replace(got, graphs=kept, golden=golden, files=files, spec=spec, device_classes=classes).to_bytes()


def _seal_manifest(data: bytes) -> bytes:
    """The fingerprint of the spec as it now is."""
    try:
        body = json.loads(data)
        body["spec_fingerprint"] = FeatureSpec.from_json(body["spec"]).fingerprint
        return canonical_json(body)
    except Exception:  # nothing left to seal
        return data


def manifest(data: bytes) -> None:
    """An accepted manifest is the same after a round trip, and what a phone asks of it has an answer."""
    got = Manifest.from_bytes(data)
    assert Manifest.from_bytes(got.to_bytes()) == got  # not its bytes: keys that have a default may be absent
    assert got.buckets("swipe") == sorted(got.buckets("swipe"))
    assert all(size >= 0 for size in got.buckets("page"))
    device_files(got)
    check_runtime(got)
    for graph in got.graphs:
        got.graph(graph.name, graph.bucket)
    for name in got.classes_for({"asimddp", "i8mm"}, 8000):
        seen = got.of_class(name)
        assert set(device_files(seen)) | set(seen.golden.tensors.values()) <= set(got.files)


@cache
def _pointer_seeds() -> list[bytes]:
    return [(tiny_model.shared_cdn() / "current.json").read_bytes()]


def _seal_pointer(data: bytes) -> bytes:
    """The checksum of the content as it now is."""
    try:
        return canonical_json(json.loads(data) | {"format": POINTER_FORMAT})
    except Exception:  # nothing left to seal
        return data


def pointer(data: bytes) -> None:
    """An accepted pointer gives its bytes back and names a manifest below its own version."""
    got = Pointer.from_bytes(data)
    assert got.to_bytes() == data
    assert got.manifest == f"models/{got.dense_version}/manifest.json"
    assert got.manifest_bytes > 0


@cache
def _spec_seeds() -> list[bytes]:
    return [json.dumps(s.to_json()).encode() for s in (tiny_model.SPEC, kir_spec(), kir_spec().without_served())]


def spec(data: bytes) -> None:
    """An accepted spec is the same after a round trip, and its blocks have a size that a tensor can have."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise SpecError("no JSON") from None
    got = FeatureSpec.from_json(body)
    again = FeatureSpec.from_json(got.to_json())
    assert (again, again.fingerprint) == (got, got.fingerprint)
    for block in got.blocks:
        np.zeros((1, got.width(block)), np.float32)


def _restarted(path: Path, uploader: FeedbackUploader) -> EdgeSession:
    return states.restarted(_engine(), _held_page(), path, uploader)


@cache
def _state_seeds() -> list[bytes]:
    return [states.seed(_restarted)]


def state(data: bytes) -> None:
    """Whatever the state file holds, the session goes on."""
    states.judge(_restarted, data)


@cache
def _golden_seeds() -> list[bytes]:
    """The first steps of the tiny model's session: a page, and the first of each other kind."""
    whole = Manifest.from_bytes((_published("kir-a") / "manifest.json").read_bytes()).golden.session
    got = GoldenSession.from_bytes((_published("kir-a") / whole).read_bytes())
    firsts = {step.kind: step for step in reversed(got.steps)}
    ahead = next((s for s in got.steps if isinstance(s, SwipeStep) and s.ahead), None)
    steps = [*firsts.values(), *([ahead] if ahead else [])]
    return [replace(got, steps=tuple(steps)).to_bytes()]


def golden(data: bytes) -> None:
    """An accepted session gives an equal one back, with as many numbers as candidates."""
    got = GoldenSession.from_bytes(data)
    assert GoldenSession.from_bytes(got.to_bytes()) == got
    for step in got.steps:
        if isinstance(step, SwipeStep):
            assert np.array(step.scores, np.float32).shape[:1] == np.array(step.values, np.float32).shape
            assert len(step.video_ids) == len(step.buffered_ms) == len(step.values)
            assert step.choice in step.video_ids


TARGETS = {
    target.name: target
    for target in (
        Target("page", _page_seeds, page, (PageError,), page_pb2.Page),
        Target("session", _page_seeds, session, (PageError,), page_pb2.Page),
        Target("answer", _answer_seeds, answer, (ServerError,), page_pb2.GetPageResponse),
        Target(
            "feedback_answer",
            _feedback_answer_seeds,
            feedback_answer,
            (ServerError,),
            feedback_pb2.ReportFeedbackResponse,
        ),
        Target("rows", _row_seeds, rows, (PageError,), page_pb2.RowTable),
        Target("manifest", _manifest_seeds, manifest, (ManifestError, SpecError, VersionMismatch), seal=_seal_manifest),
        Target("pointer", _pointer_seeds, pointer, (ManifestError,), seal=_seal_pointer),
        Target("spec", _spec_seeds, spec, (SpecError,)),
        Target("golden", _golden_seeds, golden, (ManifestError,)),
        Target("state", _state_seeds, state, (), states.Database()),
        Target("trust", cdn.metadata_seeds, cdn.trust, cdn.METADATA_ERRORS, seal=cdn.seal_metadata),
        Target("active", cdn.active_seeds, cdn.active, cdn.ACTIVE_ERRORS),
    )
}
