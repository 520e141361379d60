"""gRPC over real sockets: pages, feedback, rows, health, reflection, status codes, overload."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from contract.page import decode_page
from contract.rows import EncodedRows, decode_rows
from contract.specs import kir_spec
from contract.v1 import embedding_pb2, embedding_pb2_grpc, feedback_pb2, feedback_pb2_grpc, page_pb2_grpc
from contract.v1 import page_pb2 as pb
from server_stub.config import ServerConfig
from server_stub.service import KEYS_MAX, SERVICES, _is_local
from server_stub.testing import InProcessServer, fake_backend
from tests.server_stub.conftest import NOW_MS, held, request

VERSION = "kir-fake"


@pytest.fixture(scope="module")
def channel(fake_server: InProcessServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(fake_server.address) as channel:
        yield channel


def status_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def raw(channel: grpc.Channel, method: str, data: bytes) -> bytes:
    """A call with bytes as they stand, as a client of another language sends them."""
    return channel.unary_unary(f"/{method}")(data)


class TestPages:
    def test_a_page_over_the_wire(self, channel: grpc.Channel) -> None:
        response = page_pb2_grpc.PageServiceStub(channel).GetPage(request(held_models=held(VERSION)))
        page = decode_page(response.page)
        assert (page.rows_status, page.dense_version, len(page.candidates)) == ("ok", VERSION, 20)

    @pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"not a message at all" * 50])
    def test_garbage_is_a_refusal_in_the_message(self, channel: grpc.Channel, data: bytes) -> None:
        response = pb.GetPageResponse.FromString(raw(channel, "kir.v1.PageService/GetPage", data))
        assert response.refusal.reason == pb.REFUSAL_REASON_BAD_REQUEST

    def test_an_empty_request_is_a_page_for_user_zero(self, channel: grpc.Channel) -> None:
        response = pb.GetPageResponse.FromString(raw(channel, "kir.v1.PageService/GetPage", b""))
        assert response.page.rows_status == pb.ROWS_STATUS_NO_LIVE_VERSION

    def test_a_message_past_the_limit_is_the_transports_refusal(self) -> None:
        config = ServerConfig(message_bytes_max=1_000)
        with InProcessServer(config) as server, grpc.insecure_channel(server.address) as channel:
            code, _ = status_of(lambda: raw(channel, "kir.v1.PageService/GetPage", b"x" * 2_000))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert page_pb2_grpc.PageServiceStub(channel).GetPage(request()).HasField("page")

    def test_an_unknown_method(self, channel: grpc.Channel) -> None:
        assert status_of(lambda: raw(channel, "kir.v1.PageService/Nothing", b""))[0] == grpc.StatusCode.UNIMPLEMENTED

    def test_overload_is_a_refusal_that_says_when_to_come_back(self) -> None:
        """One worker, one place in the queue, both blocked: the other calls are refused at once."""
        backend = fake_backend()
        backend.recommender.wait = gate = threading.Event()  # type: ignore[attr-defined]
        with (
            InProcessServer(ServerConfig(workers=1, queue=1), backend) as server,
            grpc.insecure_channel(server.address) as channel,
            ThreadPoolExecutor(8) as callers,
        ):
            stub = page_pb2_grpc.PageServiceStub(channel)
            calls = [callers.submit(stub.GetPage, request()) for _ in range(8)]
            list(itertools.islice(as_completed(calls), 6))
            gate.set()
            outcomes = [call.result() for call in calls]
        refusals = [o.refusal for o in outcomes if o.WhichOneof("outcome") == "refusal"]
        assert len(refusals) == 6
        assert {r.reason for r in refusals} == {pb.REFUSAL_REASON_OVERLOADED}
        assert all(r.retry_after_ms > 0 for r in refusals)


class TestFeedback:
    def test_report(self, channel: grpc.Channel) -> None:
        stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
        event = feedback_pb2.FeedbackEvent(user_id=1, video_id=1001, session_id=5, time_ms=NOW_MS)
        batch = feedback_pb2.ReportFeedbackRequest(events=[event, event])
        first, second = stub.ReportFeedback(batch), stub.ReportFeedback(batch)
        assert (first.accepted, first.duplicates) == (1, 1)
        assert (second.accepted, second.duplicates) == (0, 2)

    def test_garbage(self, channel: grpc.Channel) -> None:
        code, details = status_of(lambda: raw(channel, "kir.v1.FeedbackService/ReportFeedback", b"\xff\xff"))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "ReportFeedbackRequest" in details

    def test_too_many_events(self, channel: grpc.Channel) -> None:
        batch = feedback_pb2.ReportFeedbackRequest(events=[feedback_pb2.FeedbackEvent()] * 5_001)
        code, _ = status_of(lambda: feedback_pb2_grpc.FeedbackServiceStub(channel).ReportFeedback(batch))
        assert code == grpc.StatusCode.INVALID_ARGUMENT

    def test_a_full_buffer_asks_for_patience(self, tmp_path: Any) -> None:
        with InProcessServer(ServerConfig(events=tmp_path)) as server:
            server.server.intake.buffer_max = 0
            with grpc.insecure_channel(server.address) as channel:
                stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
                batch = feedback_pb2.ReportFeedbackRequest(events=[feedback_pb2.FeedbackEvent()])
                assert status_of(lambda: stub.ReportFeedback(batch))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED

    def test_a_bug_is_internal_and_tells_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        with InProcessServer() as server:
            server.server.intake.recommender = None  # type: ignore[assignment]
            event = feedback_pb2.FeedbackEvent(user_id=1, video_id=1001, session_id=5, time_ms=NOW_MS)
            with grpc.insecure_channel(server.address) as channel:
                stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
                batch = feedback_pb2.ReportFeedbackRequest(events=[event])
                code, details = status_of(lambda: stub.ReportFeedback(batch))
        assert code == grpc.StatusCode.INTERNAL
        assert "NoneType" not in details
        assert "NoneType" in caplog.text


class TestRows:
    @pytest.fixture
    def stub(self, channel: grpc.Channel) -> embedding_pb2_grpc.EmbeddingServiceStub:
        return embedding_pb2_grpc.EmbeddingServiceStub(channel)

    def update(self, keys: list[int], rows: np.ndarray, **fields: Any) -> embedding_pb2.UpdateRowsRequest:
        base = {"dense_version": VERSION, "table": "user", "width": rows.shape[1]}
        values = rows.astype("<f4").tobytes()
        return embedding_pb2.UpdateRowsRequest(keys=keys, values=values, **{**base, **fields})

    def test_an_update_is_seen_by_the_next_page_under_a_new_revision(
        self, channel: grpc.Channel, stub: embedding_pb2_grpc.EmbeddingServiceStub
    ) -> None:
        pages = page_pb2_grpc.PageServiceStub(channel)
        ask = request(user_id=3, held_models=held(VERSION), row_encoding=pb.ROW_ENCODING_FLOAT32)
        before = decode_page(pages.GetPage(ask).page)
        new = np.arange(16, dtype=np.float32)[None]
        revision = stub.UpdateRows(self.update([3], new)).rows_revision
        after = decode_page(pages.GetPage(ask).page)
        assert (before.rows_revision + 1, revision) == (revision, after.rows_revision)
        np.testing.assert_array_equal(after.rows.decoded()["user"][1], new[0])
        assert not np.array_equal(before.rows.decoded()["user"][1], new[0])

    def test_get_rows(self, stub: embedding_pb2_grpc.EmbeddingServiceStub) -> None:
        ask = embedding_pb2.GetRowsRequest(
            dense_version=VERSION, table="video", keys=[1001, 5, 1001], encoding=pb.ROW_ENCODING_FLOAT32
        )
        got = stub.GetRows(ask)
        rows = decode_rows(EncodedRows("float32", got.table.width, got.table.values))
        assert list(got.rows) == [1, 0, 1]
        assert got.missing == 1
        assert rows.shape == (2, kir_spec().tables["video"])

    def test_versions(self, stub: embedding_pb2_grpc.EmbeddingServiceStub) -> None:
        (version,) = stub.ListVersions(embedding_pb2.ListVersionsRequest()).versions
        assert (version.dense_version, version.current) == (VERSION, True)
        assert version.spec_fingerprint == kir_spec().fingerprint

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"dense_version": "never"}, grpc.StatusCode.NOT_FOUND),
            ({"table": "never"}, grpc.StatusCode.NOT_FOUND),
            ({"dense_version": "", "table": "never"}, grpc.StatusCode.NOT_FOUND),
            ({"width": 15}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"width": 0}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"keys": []}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"keys": [1, 2]}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"values": np.full(16, np.nan, "<f4").tobytes()}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"table": "author"}, grpc.StatusCode.INVALID_ARGUMENT),  # another width
        ],
    )
    def test_bad_updates(
        self, stub: embedding_pb2_grpc.EmbeddingServiceStub, fields: dict[str, Any], code: grpc.StatusCode
    ) -> None:
        before = stub.ListVersions(embedding_pb2.ListVersionsRequest()).versions[0].rows_revision
        good = self.update([1], np.ones((1, 16)))
        base = {f.name: getattr(good, f.name) for f in good.DESCRIPTOR.fields}
        message = embedding_pb2.UpdateRowsRequest(**{**base, **fields})
        assert status_of(lambda: stub.UpdateRows(message))[0] == code
        assert stub.ListVersions(embedding_pb2.ListVersionsRequest()).versions[0].rows_revision == before

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"dense_version": "never", "table": "video"}, grpc.StatusCode.NOT_FOUND),
            ({"dense_version": VERSION, "table": "never"}, grpc.StatusCode.NOT_FOUND),
            (
                {"dense_version": VERSION, "table": "video", "keys": range(KEYS_MAX + 1)},
                grpc.StatusCode.INVALID_ARGUMENT,
            ),
        ],
    )
    def test_bad_gets(
        self, stub: embedding_pb2_grpc.EmbeddingServiceStub, fields: dict[str, Any], code: grpc.StatusCode
    ) -> None:
        assert status_of(lambda: stub.GetRows(embedding_pb2.GetRowsRequest(**fields)))[0] == code

    @pytest.mark.parametrize(
        ("peer", "local"),
        [
            ("ipv4:127.0.0.1:5", True),
            ("ipv6:[::1]:5", True),
            ("ipv6:%5B::1%5D:5", True),
            ("unix:", True),
            ("ipv4:10.0.0.1:5", False),
            ("ipv4:1.127.0.1:5", False),
            ("ipv6:[::ffff:127.0.0.1]:5", False),
            ("", False),
        ],
    )
    def test_who_is_local(self, peer: str, local: bool) -> None:
        assert _is_local(peer) is local

    @pytest.mark.parametrize("allowed", [False, True])
    def test_updates_from_afar_are_refused_unless_allowed(self, monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
        monkeypatch.setattr("server_stub.service._is_local", lambda peer: False)
        config, message = ServerConfig(remote_updates=allowed), self.update([1], np.ones((1, 16)))
        with InProcessServer(config) as server, grpc.insecure_channel(server.address) as channel:
            stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            if allowed:
                assert stub.UpdateRows(message).rows_revision == 2
            else:
                assert status_of(lambda: stub.UpdateRows(message))[0] == grpc.StatusCode.PERMISSION_DENIED


class TestStandardServices:
    @pytest.mark.parametrize("service", ["", *SERVICES])
    def test_health(self, channel: grpc.Channel, service: str) -> None:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def test_health_of_a_stranger(self, channel: grpc.Channel) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        code, _ = status_of(lambda: stub.Check(health_pb2.HealthCheckRequest(service="kir.v9.Nothing")))
        assert code == grpc.StatusCode.NOT_FOUND

    def ask(self, channel: grpc.Channel, **fields: Any) -> Any:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**fields)]))
        return answer

    def test_reflection_lists_the_services(self, channel: grpc.Channel) -> None:
        listed = {s.name for s in self.ask(channel, list_services="").list_services_response.service}
        assert set(SERVICES) | {"grpc.health.v1.Health"} <= listed

    @pytest.mark.parametrize("symbol", [*SERVICES, "kir.v1.Page"])
    def test_reflection_knows_the_messages(self, channel: grpc.Channel, symbol: str) -> None:
        answer = self.ask(channel, file_containing_symbol=symbol)
        assert answer.file_descriptor_response.file_descriptor_proto
