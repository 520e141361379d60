"""The player's state machine and its screen without a terminal, on a real session with the tiny model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from contract.errors import ServerUnavailable
from contract.v1 import feedback_pb2
from edge import DeviceState, EdgeSession, FakeClock, FakePageClient, FeedbackUploader, InstalledModel, PageRequest
from edge._explain import Effect
from edge._facts import Facts
from edge._player import HELP, LIKE, QUIT, SKIP, THROUGH, PlayClock, Player, View, play_signals
from edge._screen import ASCII, UNICODE, bar, clean, flow, glyphs_for, screen_lines, text_of
from tests.edge.tiny_page import candidates_of, make_page

Open = Callable[[str], InstalledModel]


class Sink:
    """Takes feedback events and keeps them."""

    def __init__(self) -> None:
        self.events: list[feedback_pb2.FeedbackEvent] = []

    def report(self, events: list[feedback_pb2.FeedbackEvent]) -> feedback_pb2.ReportFeedbackResponse:
        self.events += events
        return feedback_pb2.ReportFeedbackResponse(accepted=len(events))


@dataclasses.dataclass
class Hand:
    """A player with what a test moves: the device's clock, the pages that will come, the events that left."""

    player: Player
    device_clock: FakeClock
    pages: FakePageClient
    sink: Sink
    uploader: FeedbackUploader

    def events(self) -> list[feedback_pb2.FeedbackEvent]:
        assert self.uploader.flush()
        return self.sink.events

    def text(self, width: int = 100, height: int = 40) -> str:
        return text_of(screen_lines(self.player.view(), width, height))


def pages_of(*starts: int, n: int = 8) -> list[Any]:
    def answer(start: int) -> Any:
        def page(request: PageRequest) -> Any:
            return make_page(range(start, start + n), "kir-a", request.watched_ids, page_id=f"page-{start}")

        return page

    return [answer(start) for start in starts]


@pytest.fixture
def hand(published: Open) -> Any:
    """hand(model, pages…): a player that has begun."""
    made = []

    def make(pages: list[Any], model: str | None = "kir-a") -> Hand:
        device_clock, source, sink = FakeClock(), FakePageClient(pages), Sink()
        clock, uploader = PlayClock(device_clock), FeedbackUploader(sink)
        store = None if model is None else published(model)
        session = EdgeSession(5, store, source, uploader, clock=clock, session_id=77)
        made.append(session)
        session.start()
        session.fetch_page()
        player = Player(session, clock, DeviceState(network=6))
        player.begin()
        return Hand(player, device_clock, source, sink, uploader)

    yield make
    for session in made:
        session.close()


class TestKeys:
    def test_the_first_video_is_what_the_session_chose(self, hand: Any) -> None:
        made = hand(pages_of(101))
        view = made.player.view()
        c = candidates_of(range(101, 109))
        n = view.video.video_id - 101
        assert view.video.author_id == c.author_id[n]
        assert view.video.duration_ms == c.duration_ms[n]
        assert (view.video.place, view.video.of, view.number, view.left) == (n + 1, 8, 1, 7)
        assert (view.chooser, view.model, view.reorder, view.liked) == ("model", "kir-a", None, False)
        assert made.player.choices[0].video_id == view.video.video_id

    def test_a_like_is_told_at_once_and_the_video_plays_on(self, hand: Any) -> None:
        made = hand(pages_of(101))
        before = made.player.view()
        made.device_clock.advance(2_500)
        made.player.press(LIKE)
        view = made.player.view()
        assert view.video == before.video
        assert (view.liked, view.played_s) == (True, 2)
        (event,) = made.events()
        assert (event.video_id, event.like, event.revision) == (view.video.video_id, True, 0)
        assert not event.HasField("play_time_ms")
        assert not event.HasField("long_view")
        assert view.reorder.what == "liked"
        assert sorted(row.before for row in view.reorder.rows) == [row.after for row in view.reorder.rows]
        assert {row.video_id for row in view.reorder.rows} == set(range(101, 109)) - {view.video.video_id}
        assert any(row.value != row.value_before for row in view.reorder.rows)
        assert view.reorder.effect != 0

    def test_a_second_like_takes_it_back(self, hand: Any) -> None:
        made = hand(pages_of(101))
        made.player.press(LIKE)
        made.player.press(LIKE)
        assert [(event.like, event.revision) for event in made.events()] == [(True, 0), (False, 1)]
        assert not made.player.view().liked
        assert made.player.view().reorder.what == "unliked"

    def test_a_skip_tells_how_long_it_played_and_shows_the_next(self, hand: Any) -> None:
        made = hand(pages_of(101))
        first = made.player.view().video
        made.device_clock.advance(1_234)
        made.player.press(SKIP)
        (event,) = made.events()
        assert (event.video_id, event.play_time_ms, event.has_next) == (first.video_id, 1_234, True)
        assert (event.like, event.click, event.long_view, event.finish) == (False, False, False, False)
        view = made.player.view()
        assert view.video.video_id != first.video_id
        assert view.number == 2
        assert view.reorder.rows[0].video_id == view.video.video_id
        assert len(view.reorder.rows) == 7
        assert view.reorder.feedback_us > 0

    def test_watching_through_passes_the_time_of_the_video(self, hand: Any) -> None:
        made = hand(pages_of(101))
        first = made.player.view().video
        began_ms = made.player.clock.monotonic_ms()
        made.device_clock.advance(700)
        made.player.press(THROUGH)
        assert made.player.clock.monotonic_ms() == began_ms + first.duration_ms
        (event,) = made.events()
        assert event.play_time_ms == first.duration_ms
        assert (event.click, event.long_view, event.finish) == (True, True, True)

    def test_a_like_and_its_end_are_one_impression(self, hand: Any) -> None:
        made = hand(pages_of(101))
        made.player.press(LIKE)
        made.player.press(THROUGH)
        first, second = made.events()
        assert (first.seq, first.revision, second.seq, second.revision) == (0, 0, 0, 1)
        assert (second.like, second.finish) == (True, True)

    def test_a_video_that_plays_longer_than_it_is_counts_once(self, hand: Any) -> None:
        made = hand(pages_of(101))
        made.device_clock.advance(10_000_000)
        duration_ms = made.player.view().video.duration_ms
        made.player.press(SKIP)
        assert (made.events()[0].play_time_ms, made.events()[0].finish) == (duration_ms, True)

    def test_a_length_that_no_one_told_leaves_the_play_time_out(self, hand: Any) -> None:
        c = candidates_of(range(101, 109))
        page = dataclasses.replace(
            make_page(range(101, 109)), candidates=dataclasses.replace(c, duration_ms=c.duration_ms * 0)
        )
        made = hand([page])
        assert made.player.view().video.duration_ms is None
        made.player.press(THROUGH)
        made.device_clock.advance(8_000)
        made.player.press(SKIP)
        through, skip = made.events()
        assert not through.HasField("play_time_ms")
        assert through.finish
        assert (skip.play_time_ms, skip.click, skip.HasField("finish")) == (8_000, True, False)

    def test_quitting_tells_that_there_was_no_next(self, hand: Any) -> None:
        made = hand(pages_of(101))
        made.device_clock.advance(3_000)
        made.player.press(QUIT)
        assert made.player.done
        (event,) = made.events()
        assert (event.play_time_ms, event.has_next) == (3_000, False)

    def test_help_is_opened_by_any_other_key_and_closed_by_its_own(self, hand: Any) -> None:
        made = hand(pages_of(101))
        for key, shown in [("unknown", True), ("unknown", True), (HELP, False), (HELP, True)]:
            made.player.press(key)
            assert made.player.view().help is shown
        assert made.player.view().number == 1

    def test_reasons_name_what_the_person_did(self, hand: Any) -> None:
        made = hand(pages_of(101))
        first = made.player.view().video.video_id
        assert {effect.group for effect, _ in made.player.view().effects} <= {"video", "server"}
        made.player.press(LIKE)
        made.player.press(SKIP)
        told = {(effect.video_id, did) for effect, did in made.player.view().effects if effect.video_id}
        assert told == {(first, "liked")}
        assert "watched" in {effect.name for effect in made.player.view().groups}
        assert f"you liked {first}" in made.text()

    @pytest.mark.parametrize(
        ("played_ms", "duration_ms", "true"),
        [
            (0, 30_000, set()),
            (7_000, 30_000, {"click"}),
            (18_000, 30_000, {"click", "long_view"}),
            (5_000, 5_000, {"click", "long_view", "finish"}),
            (20_000, None, {"click", "long_view"}),
        ],
    )
    def test_signals_follow_from_the_play_time(self, played_ms: int, duration_ms: int | None, true: set[str]) -> None:
        signals = play_signals(played_ms, duration_ms)
        assert {name for name, value in signals.items() if value} == true
        assert ("finish" in signals) is (duration_ms is not None)


class TestFaults:
    def test_a_server_that_died_stops_nothing_until_the_pool_is_empty(self, hand: Any) -> None:
        made = hand(pages_of(101, n=4))  # and no page after it
        for _ in range(4):
            assert made.player.view().video is not None
            made.player.press(SKIP)
        assert made.player.view().video is None
        for key in (LIKE, SKIP, THROUGH):
            made.player.press(key)
        assert len(made.player.choices) == 4
        assert len(made.events()) == 4
        self.ask_again(made)
        assert "No video is left" in made.text()
        assert "the fake server has no more pages" in made.text(200)
        for answer in pages_of(201):
            made.pages.add(answer)
        self.ask_again(made)
        assert made.player.view().video.video_id in range(201, 209)
        assert "No video is left" not in made.text()

    def ask_again(self, made: Hand) -> None:
        """Past the pause after a failed fetch, ask, and take in what came."""
        made.device_clock.advance(3_000)
        made.player.tick()
        made.player.session.wait_page(10.0)
        made.player.tick()

    def test_a_page_that_failed_is_told_beside_the_video(self, hand: Any) -> None:
        made = hand([*pages_of(101, n=4), ServerUnavailable("no page", where="\x1b[2Jhost", got="down")])
        self.ask_again(made)
        assert "?[2Jhost: no page; got down" in made.text()
        assert "\x1b" not in made.text()
        made.player.press(HELP)
        assert "no page" not in made.text()

    def test_a_page_that_comes_while_a_video_plays_joins_the_pool(self, hand: Any) -> None:
        made = hand(pages_of(101, 201, n=4))
        shown = made.player.view().video
        self.ask_again(made)
        assert made.player.view().left == 3 + 4
        assert made.player.view().video == shown

    def test_quitting_while_nothing_is_left(self, hand: Any) -> None:
        made = hand(pages_of(101, n=1))
        made.player.press(SKIP)
        made.player.press(QUIT)
        assert made.player.done
        assert len(made.events()) == 1
        made.player.tick()

    def test_without_a_model_there_is_an_order_and_no_reason(self, hand: Any) -> None:
        made = hand(pages_of(101), model=None)
        assert made.player.view().video.video_id == 101
        made.player.press(LIKE)
        made.player.press(SKIP)
        view = made.player.view()
        assert (view.video.video_id, view.chooser, view.reason, view.effects) == (102, "server_order", "no_model", ())
        assert [(row.before, row.after, row.value) for row in view.reorder.rows[:2]] == [(1, 1, None), (2, 2, None)]
        assert view.reorder.effect is None
        text = made.text()
        assert "chosen by the server's order: no_model" in text
        assert "because" not in text

    def test_a_reason_that_can_not_be_found_is_said(self, hand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: EdgeSession, video_id: int) -> None:
            raise RuntimeError("no memory")

        made = hand(pages_of(101))
        monkeypatch.setattr(EdgeSession, "explain", fail)
        made.player.press(SKIP)
        assert made.player.view().effects == ()
        assert "no reason: no memory" in made.text()


FACTS = Facts(2**64 - 2, 90_210, 65_000, 3, (7, 40), 4, 24, (("long_view", 0.41), ("hate", 0.2)))


class TestScreen:
    def test_all_that_a_person_asked_for_is_there(self, hand: Any) -> None:
        made = hand(pages_of(101))
        made.device_clock.advance(3_000)
        made.player.press(SKIP)
        view, text = made.player.view(), made.text()
        assert f"video {view.video.video_id} · playing 0:00 of" in text
        assert f"author {view.video.author_id}" in text
        assert f"value {view.value:.3f}" in text
        assert "because " in text
        for stage in ("swipe", "maintain", "features", "engine", "choice", "feedback"):
            assert f"{stage} " in text
        assert f"pool after you skipped {view.reorder.video_id}" in text
        rows = [line for line in text.splitlines() if "█" in line]
        assert len(rows) >= 6
        assert rows[0].split()[2] == str(view.video.video_id)
        assert text.splitlines()[-1] == "[l] like  [s] skip  [w] watch through  [?] help  [q] quit"

    def test_facts_of_a_video(self) -> None:
        text = text_of(screen_lines(View(1, "kir-a", 3, FACTS, value=1.0, chooser="model", liked=True), 200, 40))
        assert f"video {2**64 - 2} · playing 0:00 of 1:05 · ♥ liked" in text
        assert "author 90210 · tags 7, 40 · 3 days old · place 4 of 24 on the server's page" in text
        assert "server expects long view 41%" in text
        bare = text_of(screen_lines(View(1, "", 3, Facts(9), reason="no_model"), 200, 40))
        assert "video 9 · playing 0:00\nno tags\n" in bare
        assert "no model" in bare

    @pytest.mark.parametrize("width", [20, 40, 79, 300])
    @pytest.mark.parametrize("height", [1, 8, 24, 60])
    @pytest.mark.parametrize("key", [SKIP, HELP])
    def test_any_size_is_kept_to_and_the_keys_stay(self, hand: Any, width: int, height: int, key: str) -> None:
        made = hand(pages_of(101))
        made.player.press(LIKE)
        made.player.press(key)
        lines = screen_lines(made.player.view(), width, height)
        assert len(lines) <= height
        assert max(sum(len(text) for text, _ in line) for line in lines) <= width
        assert "[l] like" in text_of(lines)

    def test_forty_columns_hold_the_whole_table_row(self, hand: Any) -> None:
        made = hand(pages_of(101))
        made.player.press(SKIP)
        row = made.player.view().reorder.rows[0]
        lines = made.text(40, 60).splitlines()
        assert any(f"{row.video_id}   {row.value:.3f}  {row.value - row.value_before:+.3f} █" in line for line in lines)
        assert "watch through" in lines[-2]

    def test_the_same_view_needs_no_second_painting(self, hand: Any) -> None:
        made = hand(pages_of(101))
        made.player.press(LIKE)
        first = made.player.view()
        assert made.player.view() == first
        made.device_clock.advance(1_100)
        made.player.tick()
        assert made.player.view() == dataclasses.replace(first, played_s=1)

    def test_a_terminal_without_unicode_gets_ascii(self, hand: Any) -> None:
        made = hand(pages_of(101))
        made.player.press(LIKE)
        made.player.press(SKIP)
        made.player.press(LIKE)
        text = text_of(screen_lines(made.player.view(), 100, 40, ASCII))
        assert text.isascii()
        assert "####" in text
        assert "* liked" in text
        assert "us: maintain" in text

    @pytest.mark.parametrize(
        ("encoding", "glyphs"),
        [("utf-8", UNICODE), ("ascii", ASCII), ("latin-1", ASCII), (None, ASCII), ("odd", ASCII)],
    )
    def test_glyphs_are_those_that_can_be_written(self, encoding: str | None, glyphs: Any) -> None:
        assert glyphs_for(encoding) is glyphs

    def test_text_from_elsewhere_is_cleaned(self) -> None:
        assert clean("a\x1b]0;b\x07\nc é") == "a?]0;b??c é"
        assert clean("é…", ASCII) == "??"
        shown = text_of(screen_lines(View(1, "kir\x1b[2J", 0, FACTS, reason="\x9b2J"), 80, 24))
        assert "\x1b" not in shown
        assert "\x9b" not in shown

    def test_flow_breaks_between_spans_and_cuts_one_that_is_too_long(self) -> None:
        lines = flow([("abc", ""), ("def", ""), ("g" * 20, "bold"), ("h", "")], 8, ", ")
        assert text_of(lines) == "abc, def\n  gggggg\n  h"

    def test_bars_grow_with_the_share(self) -> None:
        assert [bar(share, 2) for share in (0.0, 0.25, 0.5, 1.0)] == ["▏", "▌", "█", "██"]
        assert [bar(share, 4, ASCII) for share in (0.0, 0.5, 1.0)] == ["#", "##", "####"]

    def test_words_stand_for_features(self) -> None:
        effects = (
            (Effect("author_id", 0.08, "video"), ""),
            (Effect("own_feature", -0.02, "video"), ""),
            (Effect("watched", 0.01, "watched", 12), "skipped"),
            (Effect("watched", 0.01, "watched", 13), ""),
        )
        text = text_of(screen_lines(View(1, "m", 0, FACTS, effects=effects), 200, 24))
        assert "because its author +0.080; own_feature -0.020; you skipped 12 +0.010; 13 was watched +0.010" in text
