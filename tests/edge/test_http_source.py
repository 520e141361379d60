"""Downloads over real HTTP: resume by Range, broken transfers, servers that lie about sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.errors import DownloadError, IntegrityError, KirError
from contract.manifest import POINTER_NAME
from edge import DirectorySource, HttpSource, ModelStore
from edge._source import open_source
from tests.edge.tiny_model import point_at
from tests.edge.web_cdn import Cdn, Handler


@pytest.fixture
def web(cdn: Path) -> Iterator[Cdn]:
    with Cdn(cdn) as server:
        yield server


@pytest.fixture
def store(web: Cdn, tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "cache", HttpSource(web.url, timeout_s=5), unsigned=True)


def test_a_model_comes_over_http(store: ModelStore) -> None:
    assert store.update() == "kir-a"
    assert store.activate("kir-a").dense_version == "kir-a"
    assert store.update() is None


def test_a_broken_transfer_resumes_where_it_broke(store: ModelStore, web: Cdn) -> None:
    web.break_after = [1000]
    assert store.update() == "kir-a"
    assert [wanted for _, wanted in web.log if wanted] == ["bytes=1000-"]


def test_a_transfer_that_keeps_breaking_resumes_at_the_next_update(store: ModelStore, web: Cdn) -> None:
    web.break_after = [1000, 500, 250]
    with pytest.raises(DownloadError, match=r"\.tflite.*tried 3 times"):
        store.update()
    assert store.update() == "kir-a"
    assert [wanted for _, wanted in web.log if wanted] == ["bytes=1000-", "bytes=1500-", "bytes=1750-"]


def test_a_cdn_without_ranges_starts_again(store: ModelStore, web: Cdn) -> None:
    web.ranges = False
    web.break_after = [1000]
    assert store.update() == "kir-a"


def test_a_part_that_is_too_long_starts_again(store: ModelStore, web: Cdn, tmp_path: Path) -> None:
    web.break_after = [1000, 0, 0]
    with pytest.raises(DownloadError):
        store.update()
    part = next((tmp_path / "cache" / "parts").iterdir())
    part.write_bytes(b"x" * 2_000_000)
    assert store.update() == "kir-a"


def test_a_refused_range_starts_again(store: ModelStore, web: Cdn) -> None:
    web.break_after = [1000, 0, 0]
    with pytest.raises(DownloadError):
        store.update()
    web.statuses = []
    web.log.clear()
    original = Handler.do_GET

    def refuse_first_range(self: Handler) -> None:
        if self.headers.get("Range") and not any(wanted for _, wanted in self.server.log):
            self.server.log.append((self.path, self.headers["Range"]))
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        original(self)

    Handler.do_GET = refuse_first_range  # type: ignore[method-assign]
    try:
        assert store.update() == "kir-a"
    finally:
        Handler.do_GET = original  # type: ignore[method-assign]


@pytest.mark.parametrize(("part", "n_asked"), [(b"", 1), (b"its beginning", 2)])
def test_416_is_the_cdns_failure_not_the_disks(web: Cdn, tmp_path: Path, part: bytes, n_asked: int) -> None:
    """A Range that is refused is given up once; a 416 to a request without one can only be told."""
    (tmp_path / "part").write_bytes(part)
    web.statuses = [416] * 9
    with pytest.raises(DownloadError, match=r"models/kir-a/x\.tflite: the CDN answered 416"):
        HttpSource(web.url).download("models/kir-a/x.tflite", tmp_path / "part", 1_000, lambda *_: None)
    assert [wanted for _, wanted in web.log] == ["bytes=13-", ""][-n_asked:]


def test_an_update_from_a_cdn_that_always_answers_416(
    store: ModelStore, web: Cdn, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Handler.do_GET

    def refuse_graphs(self: Handler) -> None:
        if self.path.endswith(".tflite"):
            self.server.statuses = [416]
        original(self)

    monkeypatch.setattr(Handler, "do_GET", refuse_graphs)
    with pytest.raises(DownloadError, match=r"models/kir-a/\w+\.tflite: the CDN answered 416"):
        store.update()


@pytest.mark.parametrize("status", [301, 403, 404, 500, 503])
def test_other_answers_are_told(store: ModelStore, web: Cdn, status: int) -> None:
    web.statuses = [status]
    with pytest.raises(DownloadError, match=rf"{POINTER_NAME}.*answered {status}"):
        store.update()


def test_an_answer_in_the_middle_names_the_file(store: ModelStore, web: Cdn) -> None:
    store.activate(str(store.update()))
    point_at(web.root, "kir-b")
    for path in (web.root / "models" / "kir-b").glob("*.tflite"):
        path.unlink()
    with pytest.raises(DownloadError, match=r"kir-b/\w+\.tflite.*404"):
        store.update()
    assert store.active().dense_version == "kir-a"


def test_no_server_at_all(tmp_path: Path, web: Cdn) -> None:
    url = web.url
    web.server_close()
    store = ModelStore(tmp_path / "cache", HttpSource(url, timeout_s=2, attempts=2), unsigned=True)
    with pytest.raises(DownloadError, match=r"can't be reached.*tried 2 times"):
        store.update()


def test_an_endless_pointer_is_cut_off(store: ModelStore, web: Cdn) -> None:
    (web.root / POINTER_NAME).write_bytes(b" " * 1_000_000)
    with pytest.raises(DownloadError, match="longer than announced"):
        store.update()


def test_a_longer_manifest_is_cut_off(store: ModelStore, web: Cdn) -> None:
    path = web.root / "models" / "kir-a" / "manifest.json"
    path.write_bytes(path.read_bytes() + b" " * 100)
    with pytest.raises(DownloadError, match=r"manifest\.json.*longer"):
        store.update()


def test_a_flipped_byte_is_named(store: ModelStore, web: Cdn) -> None:
    path = sorted((web.root / "models" / "kir-a").glob("*.tflite"))[0]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(KirError) as caught:
        ModelStore(store.cache, HttpSource(web.url), fetch="all", unsigned=True).update()
    assert isinstance(caught.value, IntegrityError)
    assert path.name in str(caught.value)


def test_places_open_as_what_they_are(tmp_path: Path) -> None:
    assert isinstance(open_source("https://cdn.example/kir/"), HttpSource)
    assert repr(open_source("https://cdn.example/kir/")) == "https://cdn.example/kir"
    assert isinstance(open_source(tmp_path), DirectorySource)
    assert repr(open_source(tmp_path)) == str(tmp_path)


def test_a_directory_resumes_too(cdn: Path, tmp_path: Path) -> None:
    path = sorted((cdn / "models" / "kir-a").glob("*.tflite"))[0]
    content, part = path.read_bytes(), tmp_path / "part"
    part.write_bytes(content[:1234])
    steps: list[int] = []
    DirectorySource(cdn).download(
        f"models/kir-a/{path.name}", part, len(content), lambda path, have, n_bytes: steps.append(have)
    )
    assert part.read_bytes() == content
    assert steps[0] > 1234
