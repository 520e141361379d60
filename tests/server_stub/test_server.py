"""A whole server around a real bundle: start, live changes, TLS, restart, stop."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract.errors import InputError, IntegrityError
from contract.manifest import Pointer
from contract.page import Page, decode_page
from contract.parquet import read_events
from contract.v1 import embedding_pb2, embedding_pb2_grpc, feedback_pb2, feedback_pb2_grpc, page_pb2_grpc
from contract.v1 import page_pb2 as pb
from server_stub.bundle import load_models, read_index
from server_stub.config import ServerConfig
from server_stub.live import LiveParts
from server_stub.recommender import Recommender
from server_stub.server import Server
from server_stub.testing import InProcessServer
from tests.server_stub.conftest import NOW_MS, held, request
from tests.server_stub.tiny_bundle import WIDTH, topic_of, video_ids, write_index, write_item_update, write_rows


def page(server: InProcessServer, message: pb.GetPageRequest) -> Page:
    with grpc.insecure_channel(server.address) as channel:
        return decode_page(page_pb2_grpc.PageServiceStub(channel).GetPage(message).page)


def point(cdn: Path, dense_version: str) -> None:
    pointer = Pointer(dense_version, f"models/{dense_version}/manifest.json", "0" * 64, 10)
    cdn.mkdir(exist_ok=True)
    (cdn / "current.json").write_bytes(pointer.to_bytes())


class TestBundle:
    def test_the_whole_loop_on_one_server(self, bundle: Path, tmp_path: Path) -> None:
        """Page, feedback on it, and the next page has moved to what was liked; the events name page and pXTR."""
        config = ServerConfig(bundle=bundle, events=tmp_path / "events", pool=20, utc_offset_min=480)
        with InProcessServer(config, clock=lambda: NOW_MS) as server:
            cold = page(server, request(user_id=500, session_id=3, held_models=held("kir-b")))
            assert (cold.rows_status, cold.dense_version, cold.fetch_version) == ("ok", "kir-b", "")
            liked = [i for i in range(20) if topic_of(cold.candidates.video_id[i]) == 0][:3]
            events = [
                feedback_pb2.FeedbackEvent(
                    user_id=500,
                    session_id=3,
                    seq=seq,
                    page_id=cold.page_id,
                    candidate_index=i,
                    video_id=int(cold.candidates.video_id[i]),
                    time_ms=NOW_MS + seq,
                    like=True,
                )
                for seq, i in enumerate(liked)
            ]
            with grpc.insecure_channel(server.address) as channel:
                stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
                assert stub.ReportFeedback(feedback_pb2.ReportFeedbackRequest(events=events)).accepted == len(liked)
            warm = page(server, request(user_id=500, held_models=held("kir-b")))
        topics = topic_of(warm.candidates.video_id).tolist()
        assert topics.count(0) == 20
        assert not np.isin(warm.candidates.video_id, cold.candidates.video_id[liked]).any()
        written = read_events(tmp_path / "events")
        assert written["candidate_index"].tolist() == liked
        np.testing.assert_array_equal(written["pxtr"], cold.candidates.pxtr[liked])
        assert set(written["page_id"]) == {cold.page_id}

    def test_a_page_over_sockets_equals_the_recommender_alone(self, shared_bundle: Path) -> None:
        config = ServerConfig(bundle=shared_bundle, pool=50, page_size=15)
        alone = Recommender.from_bundle(shared_bundle, pool=50, clock=lambda: NOW_MS).recommend(4, 15, hour=22)
        with InProcessServer(config, clock=lambda: NOW_MS) as server:
            sent = page(server, request(user_id=4))
        assert sent.hour == 22
        np.testing.assert_array_equal(sent.candidates.video_id, alone.video_id)
        np.testing.assert_array_equal(sent.candidates.pxtr, alone.pxtr)

    def test_a_broken_bundle_does_not_start(self, bundle: Path) -> None:
        (bundle / "rows/kir-a/tables.safetensors").write_bytes(b"")
        with pytest.raises(IntegrityError, match=r"tables\.safetensors"), InProcessServer(ServerConfig(bundle=bundle)):
            pass

    def test_no_bundle_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no server bundle"), InProcessServer(ServerConfig(bundle=tmp_path)):
            pass

    async def test_a_server_needs_a_bundle_or_a_backend(self) -> None:
        with pytest.raises(InputError, match="needs a bundle"):
            await Server(ServerConfig()).start()


class TestLive:
    """What changes on disk while the server runs; `poll` is called by hand, the clock plays no part."""

    @pytest.fixture
    def server(self, bundle: Path, tmp_path: Path):
        point(tmp_path / "cdn", "kir-a")
        config = ServerConfig(bundle=bundle, cdn=tmp_path / "cdn", poll_ms=3_600_000)
        with InProcessServer(config, clock=lambda: NOW_MS) as server:
            yield server

    def live(self, server: InProcessServer) -> LiveParts:
        return server.server.live

    def test_a_release_rows_first_then_the_pointer(self, server: InProcessServer, bundle: Path, tmp_path: Path) -> None:
        assert page(server, request(held_models=held("kir-a"))).fetch_version == ""
        write_rows(bundle, "kir-c", revision=5)
        self.live(server).poll()
        assert "kir-c" not in {v.dense_version for v in server.store.versions()}  # bundle.json does not list it yet
        write_index(bundle)
        self.live(server).poll()
        old = page(server, request(held_models=held("kir-a")))
        assert (old.dense_version, old.fetch_version) == ("kir-a", "")
        point(tmp_path / "cdn", "kir-c")
        self.live(server).poll()
        assert page(server, request(held_models=held("kir-a"))).fetch_version == "kir-c"
        new = page(server, request(held_models=held("kir-c", "kir-a")))
        assert (new.dense_version, new.rows_revision, new.fetch_version) == ("kir-c", 5, "")

    def test_a_retired_version_has_no_rows_any_more(self, server: InProcessServer, bundle: Path) -> None:
        for path in (bundle / "rows/kir-b").iterdir():
            path.unlink()
        write_index(bundle)
        self.live(server).poll()
        gone = page(server, request(held_models=held("kir-b")))
        assert (gone.rows_status, gone.fetch_version) == ("no_live_version", "kir-a")

    def test_rows_of_a_higher_revision_replace_older_ones_do_not(self, server: InProcessServer, bundle: Path) -> None:
        for revision, live in ((4, 4), (2, 4)):
            write_rows(bundle, "kir-a", revision=revision, seed=revision)
            write_index(bundle)
            self.live(server).poll()
            assert page(server, request(held_models=held("kir-a"))).rows_revision == live

    def test_updates_survive_a_poll(self, server: InProcessServer, bundle: Path) -> None:
        keys = np.array([2], np.uint64)
        server.store.update("kir-a", "user", keys, np.full((1, 16), 3, np.float32))
        write_rows(bundle, "kir-c")
        write_index(bundle)
        self.live(server).poll()
        revision, rows, _ = server.store.get("kir-a", "user", keys)
        assert (revision, rows[0, 0]) == (2, 3.0)

    def test_a_broken_release_leaves_what_is(
        self, server: InProcessServer, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_rows(bundle, "kir-c")
        write_index(bundle)
        (bundle / "rows/kir-c/tables.safetensors").write_bytes(b"torn")
        (tmp_path / "cdn/current.json").write_bytes(b"{")
        for _ in range(3):
            self.live(server).poll()
        assert caplog.text.count("rows/kir-c was not taken over") == 1
        assert caplog.text.count("current.json was not taken over") == 1
        page_now = page(server, request(held_models=held("kir-a")))
        assert (page_now.rows_status, page_now.fetch_version) == ("ok", "")
        (bundle / "bundle.json").unlink()
        self.live(server).poll()
        assert page(server, request(held_models=held("kir-b"))).rows_status == "ok"

    def test_a_retrained_ranker_is_swapped_in(self, server: InProcessServer, bundle: Path) -> None:
        before = page(server, request(user_id=3))
        (bundle / "ranker/config.json").write_text(json.dumps({"fusion": {"hate": 1.0}}))
        write_index(bundle, ranker_version="ranker-two")
        self.live(server).poll()
        after = page(server, request(user_id=3))
        assert (before.ranker_version, after.ranker_version) == ("ranker-tiny", "ranker-two")
        assert (np.diff(after.candidates.pxtr[:, 6]) <= 0).all()
        assert before.candidates.video_id.tolist() != after.candidates.video_id.tolist()

    def test_items_change_in_place_and_the_encoder_stays(self, server: InProcessServer, bundle: Path) -> None:
        before = server.server.pages.recommender.models
        ids = np.array([5000, 1002], np.uint64)
        write_item_update(bundle, 1, ids, np.full((2, WIDTH), 50.0, np.float32), removed=video_ids()[:1], more=[5000])
        self.live(server).poll()
        after = server.server.pages.recommender.models
        assert after.retrieval is not before.retrieval
        assert after.retrieval._encoder is before.retrieval._encoder
        assert after.ranker is before.ranker
        best = after.retrieval.search(np.ones((1, WIDTH), np.float32), 2, np.zeros(0, np.uint64))
        assert set(best.video_id.tolist()) == {5000, 1002}
        everything = page(server, request(user_id=3, page_size=200)).candidates
        assert 5000 in everything.video_id
        assert 1000 not in after.retrieval.item_ids
        assert 1000 in before.retrieval.item_ids  # a call under way finishes with what it began with
        write_item_update(bundle, 2, ids[:1], np.zeros((1, WIDTH), np.float32))
        self.live(server).poll()
        applied = server.server.pages.recommender.models.item_updates
        assert [name for name, _ in applied] == [f"retrieval/items/00000{n}.safetensors" for n in (1, 2)]

    def test_an_update_of_the_same_name_in_a_bundle_written_again(self, server: InProcessServer, bundle: Path) -> None:
        """Exported anew and updated before the server looked: what it applied is not what is listed."""
        ids = np.array([1002], np.uint64)
        write_item_update(bundle, 1, ids, np.full((1, WIDTH), 50.0, np.float32))
        self.live(server).poll()
        write_item_update(bundle, 1, ids, np.full((1, WIDTH), -50.0, np.float32))
        self.live(server).poll()
        retrieval = server.server.pages.recommender.models.retrieval
        found = retrieval.search(np.ones((1, WIDTH), np.float32), 200, np.zeros(0, np.uint64))
        assert found.video_id[-1] == 1002

    def test_health_says_which_rows_retrieval_has(self, server: InProcessServer, bundle: Path) -> None:
        assert server.server.health()["retrieval"] == {"version": "kuaiformer-tiny", "rows_revision": 1}
        write_item_update(bundle, 1, np.array([1002], np.uint64), np.ones((1, WIDTH), np.float32))
        write_index(bundle, retrieval_revision=2)
        self.live(server).poll()
        assert server.server.health()["retrieval"] == {"version": "kuaiformer-tiny", "rows_revision": 2}
        assert load_models(read_index(bundle)).retrieval_revision == 2

    def test_a_start_and_a_poll_give_the_same_items(self, server: InProcessServer, bundle: Path) -> None:
        vectors = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
        write_item_update(bundle, 1, np.array([5000, 1002, 1003], np.uint64), vectors, more=[5000])
        self.live(server).poll()
        polled = server.server.pages.recommender.models.retrieval
        started = load_models(read_index(bundle)).retrieval
        interests = np.random.default_rng(1).normal(size=(2, WIDTH)).astype(np.float32)
        found = [r.search(interests, 40, np.zeros(0, np.uint64)) for r in (polled, started)]
        np.testing.assert_array_equal(found[0].video_id, found[1].video_id)
        np.testing.assert_array_equal(found[0].score, found[1].score)

    def test_a_changed_encoder_is_swapped_whole(self, server: InProcessServer, bundle: Path) -> None:
        before = server.server.pages.recommender.models.retrieval
        write_item_update(bundle, 1, np.array([1002], np.uint64), np.ones((1, WIDTH), np.float32))
        (bundle / "retrieval/config.json").write_text(json.dumps({"history": 256, "another": "training"}))
        write_index(bundle, retrieval_version="kuaiformer-two")
        self.live(server).poll()
        after = server.server.pages.recommender.models.retrieval
        assert (before.version, after.version) == ("kuaiformer-tiny", "kuaiformer-two")
        assert after._encoder is not before._encoder

    @pytest.mark.parametrize("fault", ["torn", "width", "stranger"])
    def test_a_bad_item_update_leaves_what_is(
        self, server: InProcessServer, bundle: Path, caplog: pytest.LogCaptureFixture, fault: str
    ) -> None:
        before = server.server.pages.recommender.models
        width = WIDTH + (fault == "width")
        ids = np.array([5000 if fault == "stranger" else 1002], np.uint64)  # 5000: the catalogue has no such video
        path = write_item_update(bundle, 1, ids, np.ones((1, width), np.float32))
        if fault == "torn":
            path.write_bytes(path.read_bytes()[:-4])
        self.live(server).poll()
        assert server.server.pages.recommender.models is before
        assert caplog.text.count("bundle.json was not taken over") == 1
        assert len(page(server, request(user_id=3)).candidates.video_id)

    async def test_polls_by_itself(self, bundle: Path, tmp_path: Path) -> None:
        import asyncio

        async with Server(ServerConfig(bundle=bundle, poll_ms=10, flush_ms=10, events=tmp_path)) as server:
            write_rows(bundle, "kir-c")
            write_index(bundle)
            while "kir-c" not in {v.dense_version for v in server.store.versions()}:
                await asyncio.sleep(0.01)
            while server.pages.current != "kir-c":  # without a CDN the newest is current
                await asyncio.sleep(0.01)

    @pytest.mark.parametrize("trouble", [OSError("disk full"), ValueError("disk full of surprises")])
    async def test_background_trouble_does_not_end_the_server(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Exception
    ) -> None:
        import asyncio

        with InProcessServer(ServerConfig(flush_ms=5, events=tmp_path)) as server:
            server.server.intake.flush = lambda: (_ for _ in ()).throw(trouble)  # type: ignore[method-assign]
            while caplog.text.count("disk full") < 2:
                await asyncio.sleep(0.01)
            assert len(page(server, request()).candidates) == 20
            del server.server.intake.flush


class TestRestart:
    def test_on_the_same_ports(self) -> None:
        with InProcessServer() as first:
            config = ServerConfig(grpc_port=first.server.grpc_port, http_port=first.server.http_port)
            assert len(page(first, request()).candidates) == 20
        with InProcessServer(config) as second:
            assert second.server.grpc_port == first.server.grpc_port
            assert len(page(second, request()).candidates) == 20

    @pytest.mark.parametrize("door", ["grpc", "http"])
    def test_a_taken_port_is_a_clear_error(self, door: str) -> None:
        with InProcessServer() as first:
            ports = {f"{door}_port": getattr(first.server, f"{door}_port")}
            with pytest.raises(InputError, match="can't listen"), InProcessServer(ServerConfig(**ports)):
                pass
            assert len(page(first, request()).candidates) == 20

    def test_row_updates_survive_with_snapshots(self, bundle: Path, tmp_path: Path) -> None:
        config = ServerConfig(bundle=bundle, snapshots=tmp_path / "snapshots")
        update = embedding_pb2.UpdateRowsRequest(
            dense_version="kir-a", table="user", keys=[2], width=16, values=np.full(16, 0.5, "<f4").tobytes()
        )
        with InProcessServer(config) as server, grpc.insecure_channel(server.address) as channel:
            embedding_pb2_grpc.EmbeddingServiceStub(channel).UpdateRows(update)
        with InProcessServer(config) as server:
            after = page(server, request(held_models=held("kir-a"), row_encoding=pb.ROW_ENCODING_FLOAT32))
        assert after.rows_revision == 2
        assert after.rows.decoded()["user"][1].tolist() == [0.5] * 16

    def test_feedback_survives(self, bundle: Path, tmp_path: Path) -> None:
        config = ServerConfig(bundle=bundle, events=tmp_path, pool=20)
        event = feedback_pb2.FeedbackEvent(
            user_id=500, session_id=3, video_id=1003, time_ms=NOW_MS, like=True, page_id="x"
        )
        batch = feedback_pb2.ReportFeedbackRequest(events=[event])
        for expected in ((1, 0), (0, 1)):
            with InProcessServer(config) as server, grpc.insecure_channel(server.address) as channel:
                answer = feedback_pb2_grpc.FeedbackServiceStub(channel).ReportFeedback(batch)
                assert (answer.accepted, answer.duplicates) == expected
                assert set(topic_of(page(server, request(user_id=500)).candidates.video_id).tolist()) == {3}

    async def test_stop_twice_and_before_start(self) -> None:
        with InProcessServer() as server:
            pass
        await server.server.stop()
        await Server(ServerConfig()).stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself: (certificate, key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kir test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


class TestTls:
    @pytest.fixture
    def server(self, certificate: tuple[Path, Path]):
        with InProcessServer(ServerConfig(tls_cert=certificate[0], tls_key=certificate[1])) as server:
            yield server

    def test_grpc(self, server: InProcessServer, certificate: tuple[Path, Path]) -> None:
        trusted = grpc.ssl_channel_credentials(certificate[0].read_bytes())
        with grpc.secure_channel(server.address, trusted) as channel:
            assert page_pb2_grpc.PageServiceStub(channel).GetPage(request()).HasField("page")

    def test_http(self, server: InProcessServer, certificate: tuple[Path, Path]) -> None:
        with urllib3.PoolManager(ca_certs=str(certificate[0]), retries=False) as http:
            assert server.url.startswith("https://")
            assert http.request("GET", f"{server.url}/healthz").status == 200

    def test_who_does_not_trust_it_gets_nothing(self, server: InProcessServer) -> None:
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            page_pb2_grpc.PageServiceStub(channel).GetPage(request(), timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        context = ssl.create_default_context()
        with (
            urllib3.PoolManager(ssl_context=context, retries=False) as http,
            pytest.raises(urllib3.exceptions.SSLError),
        ):
            http.request("GET", f"{server.url}/healthz")

    @pytest.mark.parametrize("port", [{"http_port": None}, {}])
    def test_a_broken_certificate(self, certificate: tuple[Path, Path], tmp_path: Path, port: dict) -> None:
        (tmp_path / "bad.pem").write_text("not a certificate")
        config = ServerConfig(tls_cert=tmp_path / "bad.pem", tls_key=certificate[1], **port)
        with pytest.raises(InputError, match="can't listen"), InProcessServer(config):
            pass

    def test_half_a_pair(self, certificate: tuple[Path, Path]) -> None:
        with pytest.raises(InputError, match="both"):
            ServerConfig(tls_cert=certificate[0])


class TestConfig:
    @pytest.mark.parametrize(
        "change",
        [
            {"page_size": 0},
            {"page_size": 501},
            {"page_size_max": 10_001},
            {"grpc_port": 65_536},
            {"http_port": -2},
            {"soft_ttl_ms": 0},
            {"soft_ttl_ms": 2_000_000},
            {"hard_ttl_ms": 10**12},
            {"utc_offset_min": 1_000},
            {"workers": 0},
            {"queue": 0},
            {"pool": 0},
        ],
    )
    def test_out_of_range(self, change: dict[str, int]) -> None:
        with pytest.raises(InputError, match="out of range"):
            ServerConfig(**change)  # type: ignore[arg-type]


class TestWithoutTraining:
    def run(self, code: str) -> str:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    @pytest.fixture
    def served(self, shared_bundle: Path) -> Callable[[], str]:
        code = f"""
            import sys
            from pathlib import Path
            import grpc
            from contract.v1 import page_pb2, page_pb2_grpc
            from server_stub.config import ServerConfig
            from server_stub.testing import InProcessServer
            with InProcessServer(ServerConfig(bundle=Path({str(shared_bundle)!r}))) as server:
                with grpc.insecure_channel(server.address) as channel:
                    stub = page_pb2_grpc.PageServiceStub(channel)
                    assert stub.GetPage(page_pb2.GetPageRequest(user_id=3)).HasField("page")
            print(sorted({{name.partition(".")[0] for name in sys.modules}}))
        """
        return lambda: self.run(code)

    def test_a_server_that_made_a_page_has_loaded_no_torch(self, served: Callable[[], str]) -> None:
        loaded = set(json.loads(served().replace("'", '"')))
        assert {"onnxruntime", "faiss", "grpc", "aiohttp"} <= loaded
        assert loaded & {"torch", "tensorflow", "training", "convert", "edge", "onnx"} == set()

    def test_the_command_line_is_light(self) -> None:
        code = """
            import sys, server_stub.cli
            heavy = {"grpc", "faiss", "onnxruntime", "aiohttp", "pyarrow", "safetensors", "asyncio"}
            print(sorted(set(sys.modules) & heavy))
        """
        assert self.run(code).strip() == "[]"
