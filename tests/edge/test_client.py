"""The page client against a real server in this process: deadlines, retries, refusals, TLS; and the fake."""

from __future__ import annotations

import datetime
import ipaddress
import threading
from collections.abc import Callable

import grpc
import pytest

from contract.errors import InputError, PageError, ServerError, ServerUnavailable
from contract.page import decode_page, encode_page
from contract.v1 import page_pb2
from edge import EdgeSession, FakeClock, FakePageClient, InstalledModel, PageClient, PageRequest, Retry
from edge._client import Prefetcher
from tests.edge.conftest import LocalServer
from tests.edge.tiny_page import make_page, page_bytes

REQUEST = PageRequest(user_id=5, session_id=9)


def page_answer(first: int = 101, n: int = 4) -> page_pb2.GetPageResponse:
    return page_pb2.GetPageResponse(page=encode_page(make_page(range(first, first + n), page_id=f"page-{first}")))


def refusal(reason: int, retry_after_ms: int = 0) -> page_pb2.GetPageResponse:
    refused = page_pb2.PageRefusal(reason=reason, message="as it is", retry_after_ms=retry_after_ms)  # type: ignore[arg-type]
    return page_pb2.GetPageResponse(refusal=refused)


class Slept:
    """A sleep that only remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def slept() -> Slept:
    return Slept()


@pytest.fixture
def client(server: LocalServer, slept: Slept) -> PageClient:
    return PageClient(server.target, deadline_s=10, sleep=slept)


class TestPages:
    def test_a_page_comes_as_it_was_sent(self, server: LocalServer, client: PageClient) -> None:
        server.answers = [page_answer()]
        page = decode_page(client.get_page(REQUEST))
        assert page.candidates.video_id.tolist() == [101, 102, 103, 104]
        assert (server.requests[0].user_id, server.requests[0].session_id) == (5, 9)

    @pytest.mark.parametrize(
        "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED]
    )
    def test_passing_failures_are_tried_again(
        self, server: LocalServer, client: PageClient, slept: Slept, code: grpc.StatusCode
    ) -> None:
        server.answers = [code, code, page_answer()]
        assert client.get_page(REQUEST).page_id == "page-101"
        assert len(slept.seconds) == 2
        assert 0.1 <= slept.seconds[0] <= 0.2 <= slept.seconds[1] <= 0.4

    def test_it_gives_up(self, server: LocalServer, client: PageClient, slept: Slept) -> None:
        server.answers = [grpc.StatusCode.UNAVAILABLE] * 9
        with pytest.raises(ServerUnavailable, match=r"UNAVAILABLE.*tried 3 times"):
            client.get_page(REQUEST)
        assert len(server.requests) == 3

    @pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
    def test_other_failures_are_final(self, server: LocalServer, client: PageClient, code: grpc.StatusCode) -> None:
        server.answers = [code, page_answer()]
        with pytest.raises(ServerError, match=code.name) as caught:
            client.get_page(REQUEST)
        assert not isinstance(caught.value, ServerUnavailable)
        assert len(server.requests) == 1

    def test_an_overloaded_server_says_when_to_come_back(
        self, server: LocalServer, client: PageClient, slept: Slept
    ) -> None:
        server.answers = [refusal(page_pb2.REFUSAL_REASON_OVERLOADED, 1500), page_answer()]
        assert client.get_page(REQUEST).page_id == "page-101"
        assert slept.seconds == [1.5]

    def test_a_server_that_stays_overloaded(self, server: LocalServer, client: PageClient) -> None:
        server.answers = [refusal(page_pb2.REFUSAL_REASON_OVERLOADED)] * 3
        with pytest.raises(ServerUnavailable, match="overloaded"):
            client.get_page(REQUEST)

    @pytest.mark.parametrize("reason", ["BAD_REQUEST", "NO_CANDIDATES", "INTERNAL", "UNSPECIFIED"])
    def test_refusals_are_told(self, server: LocalServer, client: PageClient, reason: str) -> None:
        server.answers = [refusal(page_pb2.RefusalReason.Value(f"REFUSAL_REASON_{reason}"))]
        with pytest.raises(ServerError, match=rf"{reason.lower()}: as it is"):
            client.get_page(REQUEST)

    def test_an_empty_answer(self, server: LocalServer, client: PageClient) -> None:
        server.answers = [page_pb2.GetPageResponse()]
        with pytest.raises(ServerError, match="refused"):
            client.get_page(REQUEST)

    def test_a_slow_server_meets_the_deadline(self, server: LocalServer, slept: Slept) -> None:
        release = threading.Event()

        def slow(request: page_pb2.GetPageRequest) -> page_pb2.GetPageResponse:
            release.wait(30)
            return page_answer()

        server.answers = [slow]
        client = PageClient(server.target, deadline_s=0.2, retry=Retry(attempts=1), sleep=slept)
        with pytest.raises(ServerUnavailable, match="DEADLINE_EXCEEDED"):
            client.get_page(REQUEST)
        release.set()

    def test_no_server_at_all(self, server: LocalServer, slept: Slept) -> None:
        server.stop()
        client = PageClient(server.target, deadline_s=2, retry=Retry(attempts=2), sleep=slept)
        with pytest.raises(ServerUnavailable, match=server.target):
            client.get_page(REQUEST)
        server.start()
        server.answers = [page_answer()]
        client = PageClient(server.target, deadline_s=10)
        assert client.get_page(REQUEST).page_id == "page-101"

    @pytest.mark.parametrize("values", [{"attempts": 0}, {"backoff_s": -1}])
    def test_retries_are_checked(self, values: dict[str, int]) -> None:
        with pytest.raises(InputError):
            Retry(**values)

    def test_pauses_grow_and_are_bounded(self) -> None:
        retry = Retry(backoff_s=1)
        for attempt, most in ((1, 1), (2, 2), (3, 4), (4, 8), (9, 8)):
            assert all(most / 2 <= retry.pause_s(attempt) <= most for _ in range(20))


class TestTls:
    def certificate(self) -> tuple[bytes, bytes]:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private, made.public_bytes(serialization.Encoding.PEM)

    def test_only_a_trusted_server_is_talked_to(self, slept: Slept) -> None:
        key, certificate = self.certificate()
        server = LocalServer(answers=[page_answer()])
        server.start(grpc.ssl_server_credentials([(key, certificate)]))
        try:
            for stranger in (PageClient(server.target, tls=True), PageClient(server.target)):
                stranger._retry, stranger._deadline_s, stranger._sleep = Retry(attempts=1), 5, slept
                with pytest.raises(ServerUnavailable):
                    stranger.get_page(REQUEST)
                stranger.close()
            friend = PageClient(server.target, ca_certificates=certificate, deadline_s=10)
            assert friend.get_page(REQUEST).page_id == "page-101"
            friend.close()
        finally:
            server.stop()


class TestFake:
    def test_answers_of_every_kind(self) -> None:
        page = make_page([101])
        fake = FakePageClient(
            [page, encode_page(page), page_bytes([101]), lambda request: make_page([request.user_id])]
        )
        fake.add(ServerError("no"))
        assert [fake.get_page(REQUEST).candidates.video_ids[0] for _ in range(4)] == [101, 101, 101, 5]
        with pytest.raises(ServerError, match="no"):
            fake.get_page(REQUEST)
        with pytest.raises(ServerUnavailable, match="no more pages"):
            fake.get_page(REQUEST)
        assert len(fake.requests) == 6

    def test_a_players_loop_needs_no_model(self) -> None:
        pages = FakePageClient([FakePageClient.page_of([101, 102, 103], soft_ttl_ms=1_000)])
        session = EdgeSession(1, pages=pages, clock=FakeClock())
        assert session.fetch_page().added == 3
        assert [session.next().video_id for _ in range(3)] == [101, 102, 103]
        session.close()

    def test_bytes_that_are_no_page_are_one_error(self) -> None:
        with pytest.raises(PageError, match="no page"):
            FakePageClient([b"garbage"]).get_page(REQUEST)


class TestPrefetcher:
    def test_one_at_a_time(self) -> None:
        gate = threading.Event()

        def wait(request: PageRequest) -> bytes:
            gate.wait(30)
            return page_bytes([101])

        fake = FakePageClient([wait, page_bytes([102])])
        prefetcher = Prefetcher(fake)
        assert not prefetcher.wait(0.01)
        prefetcher.ask(REQUEST)
        prefetcher.ask(PageRequest(6, 6))
        assert prefetcher.busy
        assert prefetcher.poll() is None
        assert not prefetcher.wait(0.01)
        gate.set()
        assert prefetcher.wait(30)
        arrived = prefetcher.poll()
        assert arrived is not None
        assert arrived.request is REQUEST
        assert list(arrived.page().candidates.video_ids) == [101]
        assert prefetcher.poll() is None
        assert not prefetcher.busy
        assert len(fake.requests) == 1
        prefetcher.close()

    def test_an_error_arrives_like_a_page(self) -> None:
        prefetcher = Prefetcher(FakePageClient())
        prefetcher.ask(REQUEST)
        assert prefetcher.wait(30)
        arrived = prefetcher.poll()
        assert arrived is not None
        with pytest.raises(ServerUnavailable):
            arrived.page()
        prefetcher.close()


def test_a_session_over_a_real_socket(
    server: LocalServer, client: PageClient, published: Callable[[str], InstalledModel]
) -> None:
    session = EdgeSession(5, published("kir-a"), client)
    session.start()
    server.answers = [page_answer(), page_answer(201)]
    session.fetch_page()
    choices = []
    for _ in range(6):
        choices.append(session.next())
        session.maintain()
        session.wait_page(10)
    assert {choice.page_id for choice in choices} == {"page-101", "page-201"}
    assert server.requests[1].held_models[0].dense_version == "kir-a"
    session.close()
