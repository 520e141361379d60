"""`kir swipe` at a terminal: a person swipes through a live server. `edge.cli` makes the session and hands it over."""

from __future__ import annotations

from pathlib import Path

from edge._cast import Cast
from edge._player import PlayClock, Player
from edge._screen import screen_lines
from edge._session import EdgeSession
from edge._terminal import Terminal
from edge._types import Choice, DeviceState

TICK_S = 0.5


def play(
    session: EdgeSession,
    clock: PlayClock,
    device: DeviceState,
    record: Path | None = None,
    terminal: Terminal | None = None,
) -> list[Choice]:
    """Show videos until the person quits; returns all that were shown.

    record    a new file for the recording, written whole however the session ends
    terminal  another than the process's own
    Raises InputError for a file that is there, or a terminal that can't be used; whatever ends it, the terminal is as
    it was before.
    """
    player = Player(session, clock, device)
    terminal = terminal or Terminal()
    terminal.cast = None if record is None else Cast(record, terminal.size())
    try:
        with terminal:
            player.begin()
            _loop(player, terminal)
    finally:
        if terminal.cast is not None:
            terminal.cast.save()
    return player.choices


def _loop(player: Player, terminal: Terminal) -> None:
    painted = None
    while not player.done:
        now = player.view(), terminal.size()
        if now != painted:
            terminal.paint(screen_lines(now[0], *now[1], terminal.glyphs))
            painted = now
        for key in terminal.keys(TICK_S):
            if not player.done:
                player.press(key)
        player.tick()
