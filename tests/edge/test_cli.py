"""`kir replay` and `kir swipe` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kir
from contract.page import encode_page
from contract.v1 import page_pb2
from edge import Choice
from edge.cli import scripted_feedback
from tests.edge.conftest import LocalServer
from tests.edge.signed_cdn import SignedCdn
from tests.edge.test_store import flip_byte
from tests.edge.test_wire import CHOICE
from tests.edge.tiny_model import point_at
from tests.edge.tiny_page import make_page
from tests.edge.web_cdn import Cdn


class Shop:
    """Answers every page request with 8 new videos, and rows for whichever model the phone holds."""

    def __init__(self, server: LocalServer, n_videos: int = 400):
        self.left = iter(range(101, 101 + n_videos))
        server.answers = [self] * 1000

    def __call__(self, request: page_pb2.GetPageRequest) -> page_pb2.GetPageResponse:
        ids = [video_id for _, video_id in zip(range(8), self.left, strict=False)]
        if not ids:
            refusal = page_pb2.PageRefusal(reason=page_pb2.REFUSAL_REASON_NO_CANDIDATES, message="seen it all")
            return page_pb2.GetPageResponse(refusal=refusal)
        watched = [video.video_id for video in request.watched]
        held = [model.dense_version for model in request.held_models]
        status = "ok" if held else "no_live_version"
        page = make_page(ids, held[0] if held else "kir-a", watched, status=status, page_id=f"page-{ids[0]}")
        return page_pb2.GetPageResponse(page=encode_page(page))


@pytest.fixture
def shop(server: LocalServer) -> Shop:
    return Shop(server)


class TestReplay:
    def test_a_version_directory(self, tiny_cdn: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        report = tmp_path / "report.json"
        assert kir.main(["replay", "--model", str(tiny_cdn / "models" / "kir-b"), "--json", str(report)]) == 0
        assert "18 of 18 golden cases agree" in capsys.readouterr().out
        assert json.loads(report.read_text())["dense_version"] == "kir-b"

    def test_a_cdn_is_downloaded_and_checked_first(self, cdn: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["replay", "--cdn", str(cdn)]) == 0
        assert capsys.readouterr().out.startswith("kir-a\n")
        damaged = sorted((cdn / "models" / "kir-a").glob("*.npz"))[0]
        flip_byte(damaged)
        assert kir.main(["replay", "--cdn", str(cdn)]) == 2
        assert damaged.name in capsys.readouterr().err

    def test_a_difference_is_exit_one(self, cdn: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from tests.edge.test_replay import Republish

        Republish(cdn).write(fusion={"effective_view": -1.0})
        assert kir.main(["replay", "--model", str(cdn)]) == 1
        assert "differs" in capsys.readouterr().out

    @pytest.mark.parametrize("flags", [[], ["--cdn", "a", "--model", "b"]])
    def test_one_place_is_named(self, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            kir.main(["replay", *flags])
        assert "--cdn" in capsys.readouterr().err

    def test_no_model_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["replay", "--model", str(tmp_path)]) == 2
        assert "no published model here" in capsys.readouterr().err


class TestSwipe:
    def swipe(self, server: LocalServer, *flags: str) -> int:
        return kir.main(["swipe", "--server", server.target, *flags])

    def test_a_session_with_a_model(
        self, server: LocalServer, shop: Shop, cdn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert (
            self.swipe(server, "--cdn", str(cdn), "--user", "5", "--swipes", "20", "--cache", str(tmp_path / "c")) == 0
        )
        lines = capsys.readouterr().out.splitlines()
        summary = json.loads(lines[-1])
        assert (summary["swipes"], summary["by_model"], summary["dense_version"]) == (20, 20, "kir-a")
        assert lines[0] == "model: kir-a (new)"
        assert len(lines) == 1 + 1 + 20 + 1
        assert len(server.events) == 20  # all feedback had arrived before the command ended

    def test_the_second_run_finds_its_model(
        self, server: LocalServer, shop: Shop, cdn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ("--cdn", str(cdn), "--swipes", "3", "--cache", str(tmp_path / "c"))
        self.swipe(server, *flags)
        capsys.readouterr()
        assert self.swipe(server, *flags) == 0
        assert capsys.readouterr().out.startswith("model: kir-a (up to date)")

    def test_a_cdn_that_is_down_leaves_the_old_model(
        self, server: LocalServer, shop: Shop, cdn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ("--cdn", str(cdn), "--swipes", "3", "--cache", str(tmp_path / "c"))
        self.swipe(server, *flags)
        point_at(cdn, "kir-b")
        for path in (cdn / "models" / "kir-b").glob("*.tflite"):
            path.unlink()
        capsys.readouterr()
        assert self.swipe(server, *flags) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("model: no update: ")
        assert lines[1] == "model: kir-a"
        assert json.loads(lines[-1])["by_model"] == 3

    def test_an_http_cdn_wants_a_root_or_a_word(
        self, server: LocalServer, shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        signed = SignedCdn(tmp_path)
        with Cdn(signed.path) as web:
            flags = ("--cdn", web.url, "--swipes", "3")
            assert self.swipe(server, *flags) == 2
            said = capsys.readouterr().err
            assert "trusted by their signature" in said
            assert "--root FILE" in said
            assert "--unsigned" in said
            assert "root=" not in said
            assert "unsigned=" not in said
            for trust in (["--root", str(signed.root)], ["--unsigned"]):
                assert self.swipe(server, *flags, *trust) == 0
                assert capsys.readouterr().out.startswith("model: kir-a (new)")
            signed.release("kir-b", days_ago=2)
            assert self.swipe(server, *flags, "--root", str(signed.root)) == 0
            assert "no update: metadata/timestamp.json: signed metadata have expired" in capsys.readouterr().out
            assert kir.main(["replay", "--cdn", web.url, "--root", str(signed.root)]) == 2

    def test_without_a_cdn_the_server_decides(
        self, server: LocalServer, shop: Shop, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.swipe(server, "--swipes", "10") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "model: none (no_model), the server decides the order"
        assert [line.split()[1] for line in lines[2:-1]] == [str(v) for v in range(101, 111)]
        assert all(line.endswith("no_model") for line in lines[2:-1])
        assert json.loads(lines[-1])["by_model"] == 0

    def test_a_server_with_too_few_videos(self, server: LocalServer, capsys: pytest.CaptureFixture[str]) -> None:
        Shop(server, n_videos=3)
        assert self.swipe(server, "--swipes", "10") == 2
        assert "seen it all" in capsys.readouterr().err

    def test_a_second_run_goes_on_where_the_first_stopped(
        self, server: LocalServer, shop: Shop, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        state = tmp_path / "user.state"
        for watched in (0, 5):
            assert self.swipe(server, "--swipes", "5", "--state", str(state)) == 0
            assert f"state: {watched} videos watched before\n" in capsys.readouterr().out
        assert len(server.requests[-1].watched) >= 5
        assert len({session_id for session_id, _, _ in server.events}) == 2
        state.write_bytes(b"no state" * 100)
        assert self.swipe(server, "--swipes", "1", "--state", str(state)) == 0
        assert "state: 0 videos watched before (file is not a database)" in capsys.readouterr().out

    def test_a_trace_is_written(self, server: LocalServer, shop: Shop, tmp_path: Path) -> None:
        path = tmp_path / "trace.json"
        assert self.swipe(server, "--swipes", "3", "--trace", str(path)) == 0
        names = [event["name"] for event in json.loads(path.read_text())["traceEvents"]]
        assert (names.count("swipe"), "upload" in names) == (3, True)

    def test_a_trace_that_can_not_be_written(
        self, server: LocalServer, shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        assert self.swipe(server, "--swipes", "1", "--trace", str(tmp_path / "file" / "trace.json")) == 2
        assert "--trace can't be written" in capsys.readouterr().err

    def test_no_server(self, server: LocalServer, capsys: pytest.CaptureFixture[str]) -> None:
        server.stop()
        assert self.swipe(server, "--swipes", "1") == 2
        assert "no page from the server" in capsys.readouterr().err
        server.start()

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--swipes", "0"], "--swipes starts at 1"),
            (["--user", "-3"], "64-bit key"),
            (["--ca", "nowhere.pem"], "nowhere.pem"),
            (["--cdn", "nowhere"], "no such CDN directory"),
        ],
    )
    def test_flags_are_checked(
        self, server: LocalServer, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.swipe(server, *flags) == 2
        assert says in capsys.readouterr().err


def test_the_scripted_viewer_is_the_same_every_time() -> None:
    first, second = scripted_feedback(CHOICE), scripted_feedback(CHOICE)
    assert first == second
    assert set(first.signals) == {"long_view", "like", "click"}
    assert first.play_time_ms is not None
    assert 1_000 <= first.play_time_ms <= 32_000


def test_the_example_of_the_guide_runs(
    server: LocalServer, shop: Shop, cdn: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = (repository / "docs" / "edge.md").read_text().split("```python\n")
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)  # the example's "cdn" and "cache" are here
    names: dict[str, object] = {}
    example = blocks[1].partition("```")[0].replace("127.0.0.1:50051", server.target)
    assert server.target in example
    exec(example, names)
    choice = names["choice"]
    assert isinstance(choice, Choice)
    assert (choice.chooser, choice.dense_version) == ("model", "kir-a")
    assert len(server.events) == 10
