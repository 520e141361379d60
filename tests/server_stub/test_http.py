"""HTTP over real sockets: the same bytes as gRPC, static files with Range, nothing outside the CDN directory."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import urllib3

from contract.v1 import feedback_pb2
from contract.v1 import page_pb2 as pb
from server_stub.config import ServerConfig
from server_stub.testing import InProcessServer
from tests.server_stub.conftest import NOW_MS, held, request

PROTOBUF = {"Content-Type": "application/x-protobuf"}
SECRET = b"not for everybody"
SIGNED_POINTER = f"{'0123456789abcdef' * 4}.current.json"


@pytest.fixture(scope="module")
def cdn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outside")
    (root / "secret").write_bytes(SECRET)
    cdn = root / "cdn"
    (cdn / "models/kir-a").mkdir(parents=True)
    (cdn / "models/kir-a/net.tflite").write_bytes(bytes(range(256)) * 40)
    (cdn / "models/kir-a/.net.part").write_bytes(b"half")
    (cdn / "models/kir-a/link").symlink_to(root / "secret")
    (cdn / "models/inside").symlink_to(cdn / "models/kir-a")
    (cdn / "current.json").write_bytes(b'{"a": 1}')
    (cdn / SIGNED_POINTER).write_bytes(b'{"a": 1}')
    (cdn / "metadata").mkdir()
    for name in ("timestamp.json", "3.snapshot.json", ".lock"):
        (cdn / "metadata" / name).write_bytes(name.encode())
    (cdn / "other.json").write_bytes(b"{}")
    return cdn


@pytest.fixture(scope="module")
def server(cdn: Path) -> Iterator[InProcessServer]:
    """Page ids and clock stand still, so that two answers to one request are the same bytes."""
    config = ServerConfig(cdn=cdn, cors_origin="https://app.example")
    with InProcessServer(config, clock=lambda: NOW_MS, page_ids=lambda: "page-x") as server:
        yield server


@pytest.fixture(scope="module")
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as manager:
        yield manager


def raw_get(server: InProcessServer, target: str) -> bytes:
    """A GET whose path no client library has cleaned."""
    with socket.create_connection((server.config.host, server.server.http_port or 0)) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


class TestPage:
    @pytest.mark.parametrize(
        "message",
        [
            request(),
            request(user_id=5, held_models=held("kir-fake"), watched=[pb.WatchedVideo(video_id=1003, like=True)]),
            request(held_models=held("kir-fake"), row_encoding=pb.ROW_ENCODING_FLOAT16, page_size=3),
            request(page_size=9999),  # a refusal
        ],
    )
    def test_post_has_the_same_bytes_as_grpc(
        self, server: InProcessServer, http: urllib3.PoolManager, message: pb.GetPageRequest
    ) -> None:
        data = message.SerializeToString()
        answer = http.request("POST", f"{server.url}/v1/page", body=data, headers=PROTOBUF)
        with grpc.insecure_channel(server.address) as channel:
            expected = channel.unary_unary("/kir.v1.PageService/GetPage")(data)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-protobuf")
        assert answer.data == expected

    def test_garbage_is_a_refusal_with_status_200(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        answer = http.request("POST", f"{server.url}/v1/page", body=b"\xff\xff", headers=PROTOBUF)
        assert answer.status == 200
        assert pb.GetPageResponse.FromString(answer.data).refusal.reason == pb.REFUSAL_REASON_BAD_REQUEST

    def test_another_content_type(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        assert http.request("POST", f"{server.url}/v1/page", body=b"{}", headers={}).status == 415

    def test_a_body_past_the_limit(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        body = b"x" * (server.config.message_bytes_max + 1)
        assert http.request("POST", f"{server.url}/v1/page", body=body, headers=PROTOBUF).status == 413

    @pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/page", 405), ("POST", "/v1/nothing", 404)])
    def test_what_is_not_there(
        self, server: InProcessServer, http: urllib3.PoolManager, method: str, path: str, status: int
    ) -> None:
        assert http.request(method, f"{server.url}{path}", headers=PROTOBUF).status == status


class TestFeedback:
    def test_report(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        event = feedback_pb2.FeedbackEvent(user_id=1, video_id=1001, session_id=77, time_ms=NOW_MS)
        body = feedback_pb2.ReportFeedbackRequest(events=[event]).SerializeToString()
        answer = http.request("POST", f"{server.url}/v1/feedback", body=body, headers=PROTOBUF)
        assert feedback_pb2.ReportFeedbackResponse.FromString(answer.data).accepted == 1

    def test_garbage(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        answer = http.request("POST", f"{server.url}/v1/feedback", body=b"\xff\xff", headers=PROTOBUF)
        assert answer.status == 400
        assert b"ReportFeedbackRequest" in answer.data

    def test_a_full_buffer(self, http: urllib3.PoolManager, tmp_path: Path) -> None:
        with InProcessServer(ServerConfig(events=tmp_path)) as server:
            server.server.intake.buffer_max = -1
            answer = http.request("POST", f"{server.url}/v1/feedback", body=b"", headers=PROTOBUF)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1


class TestStatic:
    WHOLE = bytes(range(256)) * 40

    def test_a_model_file(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        answer = http.request("GET", f"{server.url}/models/kir-a/net.tflite")
        assert answer.data == self.WHOLE
        assert "immutable" in answer.headers["Cache-Control"]

    @pytest.mark.parametrize(
        ("asked", "first", "last"),
        [("bytes=10-19", 10, 19), ("bytes=10000-", 10_000, 10_239), ("bytes=-5", 10_235, 10_239)],
    )
    def test_range(self, server: InProcessServer, http: urllib3.PoolManager, asked: str, first: int, last: int) -> None:
        answer = http.request("GET", f"{server.url}/models/kir-a/net.tflite", headers={"Range": asked})
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/10240"
        assert answer.data == self.WHOLE[first : last + 1]

    def test_range_past_the_end(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        headers = {"Range": "bytes=99999-"}
        assert http.request("GET", f"{server.url}/models/kir-a/net.tflite", headers=headers).status == 416

    def test_head(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        answer = http.request("HEAD", f"{server.url}/models/kir-a/net.tflite")
        assert (answer.status, answer.headers["Content-Length"], answer.data) == (200, "10240", b"")

    def test_the_pointer_is_never_cached(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        answer = http.request("GET", f"{server.url}/current.json")
        assert answer.data == b'{"a": 1}'
        assert answer.headers["Cache-Control"] == "no-cache"

    @pytest.mark.parametrize(
        "target",
        [
            "/models/../../secret",
            "/models/%2e%2e/%2e%2e/secret",
            "/models/..%2f..%2fsecret",
            "/models/kir-a/..%5c..%5c..%5csecret",
            "/models//etc/passwd",
            "/models/%2fetc%2fpasswd",
            "/models/kir-a/link",  # a link out of the directory
            "/models/kir-a/.net.part",  # what a publisher is still writing
            "/models/kir-a/net.tflite%00",
            "/models/kir-a",
            "/models/kir-a/",
            "/models/absent/net.tflite",
            "/models/" + "a" * 5_000,
            "/metadata/.lock",
            "/metadata/../other.json",
            "/metadata/4.snapshot.json",
            "/" + "0" * 64 + ".current.json",
            "/other.json",
            "/current.json/x",
            "/../secret",
        ],
    )
    def test_nothing_else_is_served(self, server: InProcessServer, target: str) -> None:
        answer = raw_get(server, target)
        assert SECRET not in answer
        assert b"root:" not in answer
        assert int(answer.split()[1]) in (400, 403, 404)

    @pytest.mark.parametrize(
        ("path", "caching"),
        [
            ("metadata/timestamp.json", "no-cache"),
            ("metadata/3.snapshot.json", "immutable"),
            (SIGNED_POINTER, "immutable"),
        ],
    )
    def test_signed_metadata_and_what_they_name(
        self, server: InProcessServer, http: urllib3.PoolManager, cdn: Path, path: str, caching: str
    ) -> None:
        answer = http.request("GET", f"{server.url}/{path}")
        assert answer.data == (cdn / path).read_bytes()
        assert caching in answer.headers["Cache-Control"]

    def test_a_link_inside_is_followed(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        assert http.request("GET", f"{server.url}/models/inside/net.tflite").data == self.WHOLE

    def test_no_cdn_no_files(self, fake_server: InProcessServer, http: urllib3.PoolManager) -> None:
        assert http.request("GET", f"{fake_server.url}/current.json").status == 404


class TestHealthAndCors:
    def test_health(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        answer = http.request("GET", f"{server.url}/healthz")
        health = json.loads(answer.data)
        assert (answer.status, health["status"], health["rows_revision"]) == (200, "serving", {"kir-fake": 1})

    def test_health_while_stopping(self, http: urllib3.PoolManager) -> None:
        with InProcessServer() as server:
            server.server._serving = False
            answer = http.request("GET", f"{server.url}/healthz")
            server.server._serving = True
        assert (answer.status, json.loads(answer.data)["status"]) == (503, "stopping")

    def test_a_browser_of_the_named_origin_may_call(self, server: InProcessServer, http: urllib3.PoolManager) -> None:
        for method, path in (("OPTIONS", "/v1/page"), ("GET", "/current.json"), ("GET", "/models/absent")):
            answer = http.request(method, f"{server.url}{path}")
            assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example", path

    def test_others_are_not_told(self, fake_server: InProcessServer, http: urllib3.PoolManager) -> None:
        answer = http.request("OPTIONS", f"{fake_server.url}/v1/page")
        assert answer.status == 405
        assert "Access-Control-Allow-Origin" not in answer.headers
