"""The player's screen as lines of styled text: what stands where in a terminal of any size. Pure; see `edge._terminal`.

Two sets of glyphs: Unicode, and ASCII for a terminal whose locale knows no other. Text that a server sent is cleaned
before it is laid out: an escape sequence in it must not reach the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge._explain import WATCHED, Effect
from edge._facts import Facts
from edge._player import View
from edge._ranking import Move

Span = tuple[str, str]  # text, style
Line = list[Span]

PLAIN, BOLD, DIM, UP, DOWN, ACCENT = "", "bold", "dim", "up", "down", "accent"
VIDEO_DIGITS = 20  # of a 64-bit id

FEATURE_WORDS = {
    "user_id": "the user",
    "user_authors": "authors liked lately",
    "user_activity": "how active the user is",
    "user_register": "how long registered",
    "user_profile": "the user's habits",
    "hour": "the hour",
    "video_id": "this video",
    "author_id": "its author",
    "tags": "its tags",
    "duration": "its length",
    "upload_age": "its age",
    "server_position": "its place on the page",
    "pxtr": "the server's predictions",
    "network": "the network",
    "decoder": "the decoder",
    "swipe_index": "how far the session is",
    "buffered": "what is preloaded",
}
KEY_WORDS = (("l", "like"), ("s", "skip"), ("w", "watch through"), ("?", "help"), ("q", "quit"))
HELP_LINES = (
    "l  like, told at once; again takes it back. The video plays on",
    "s  skip, also arrow down: the video ends here, the next one comes",
    "w  watch through, also arrow right: as if it had played to its end",
    "?  this help on and off      q  quit, also Ctrl-D",
    "effect: value with an input less value without it; effects don't add up",
    "table: place now, place before the feedback, video, value, its change; the bar goes from the pool's lowest value",
)


@dataclass(frozen=True)
class Glyphs:
    """bar: a cell filled by eighths, empty first; the rest are single characters."""

    bar: str
    up: str
    down: str
    same: str
    dot: str
    micro: str
    heart: str


UNICODE = Glyphs(" ▏▎▍▌▋▊▉█", "▲", "▼", "=", "·", "µ", "♥")
ASCII = Glyphs(" #", "^", "v", "=", "-", "u", "*")


def glyphs_for(encoding: str | None) -> Glyphs:
    """The glyphs that a text stream of this encoding can write."""
    try:
        "".join(vars(UNICODE).values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def clean(text: str, glyphs: Glyphs = UNICODE) -> str:
    """Text from elsewhere, fit to be printed: control characters and what the glyphs' set has not become "?"."""
    return "".join(c if c.isprintable() and (glyphs is UNICODE or c.isascii()) else "?" for c in text)


def flow(spans: Sequence[Span], width: int, between: str = " ", indent: int = 2) -> list[Line]:
    """Lay spans side by side; one that no longer fits begins a new line, indented. One wider than a line is cut."""
    lines: list[Line] = [[]]
    used = 0
    for text, style in spans:
        if used and used + len(between) + len(text) > width:
            lines.append([(" " * indent, PLAIN)])
            used = indent
        elif used:
            lines[-1].append((between, PLAIN))
            used += len(between)
        lines[-1].append((text, style))
        used += len(text)
    return [crop(line, width) for line in lines]


def crop(line: Line, width: int) -> Line:
    """The first `width` characters."""
    cut: Line = []
    for text, style in line:
        if width > 0:
            cut.append((text[:width], style))
        width -= len(text)
    return cut


def text_of(lines: Sequence[Line]) -> str:
    """Without styles."""
    return "\n".join("".join(text for text, _ in line) for line in lines)


def screen_lines(view: View, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Line]:
    """What fits of a view: `height` lines of `width` at most. The table of the pool takes what is left, cut below."""
    dot = f" {glyphs.dot} "
    model = clean(view.model, glyphs) or "no model"
    head = [("kir swipe", BOLD), (f"user {view.user_id}", PLAIN), (model, PLAIN), (f"{view.left} left", DIM)]
    above = flow(head, width, dot)
    above += _video(view, width, glyphs) if view.video else _waiting(view, width, glyphs)
    below = flow([(f"[{key}] {word}", ACCENT) for key, word in KEY_WORDS], width, "  ", 0)
    if view.message and view.video:
        below = [*flow(_words(clean(view.message, glyphs), DOWN), width)[:2], *below]
    room = max(0, height - len(above) - len(below))
    middle = _help(width) if view.help else _table(view, width, room, glyphs)
    return [*[*above, *middle[:room]][: max(0, height - len(below))], *below][:height]


def _words(text: str, style: str) -> list[Span]:
    return [(word, style) for word in text.split()]


def _help(width: int) -> list[Line]:
    return [[], *(line for text in HELP_LINES for line in flow(_words(text, PLAIN), width))]


def _waiting(view: View, width: int, glyphs: Glyphs) -> list[Line]:
    why = clean(view.message, glyphs) or "none has come yet"
    told = flow([("No video is left.", BOLD), *_words(f"The server is asked again and again: {why}", PLAIN)], width)
    return [[], *told[:6]]


def _video(view: View, width: int, glyphs: Glyphs) -> list[Line]:
    assert view.video is not None
    video, dot = view.video, f" {glyphs.dot} "
    lines: list[Line] = [[]]
    total = "" if video.duration_ms is None else f" of {_minutes(video.duration_ms // 1000)}"
    head = [(f"video {video.video_id}", BOLD), (f"playing {_minutes(view.played_s)}{total}", PLAIN)]
    lines += flow([*head, *([(f"{glyphs.heart} liked", UP)] if view.liked else [])], width, dot)
    lines += flow([(fact, PLAIN) for fact in _facts(video)], width, dot)
    if view.value is not None:
        lines += flow([("chosen by the model,", PLAIN), (f"value {view.value:.3f}", PLAIN)], width)
    else:
        lines += flow([("chosen by the server's order:", PLAIN), (clean(view.reason, glyphs), DOWN)], width)
    if view.effects:
        why = [_effect(_reason(effect, did), effect.effect) for effect, did in view.effects]
        lines += flow([(f"because {why[0][0]}", why[0][1]), *why[1:]], width, "; ")
        lines += flow([_effect(e.name, e.effect) for e in view.groups], width, dot)
    lines += flow(_latency(view, glyphs), width)
    return lines


def _facts(video: Facts) -> list[str]:
    facts = [] if video.author_id is None else [f"author {video.author_id}"]
    facts += ["tags " + ", ".join(map(str, video.tags))] if video.tags else ["no tags"]
    facts += [] if video.age_days is None else [f"{video.age_days} days old"]
    facts += [f"place {video.place} of {video.of} on the server's page"] if video.place else []
    shown = [f"{head.replace('_', ' ')} {p:.0%}" for head, p in video.pxtr if head in ("long_view", "like")]
    return [*facts, *(["server expects " + ", ".join(shown)] if shown else [])]


def _reason(effect: Effect, did: str) -> str:
    if effect.name == WATCHED:
        return f"you {did} {effect.video_id}" if did else f"{effect.video_id} was watched"
    return FEATURE_WORDS.get(effect.name, effect.name)


def _effect(name: str, effect: float) -> Span:
    return f"{name} {effect:+.3f}", _style(effect)


def _style(change: float) -> str:
    return UP if change > 0 else DOWN if change < 0 else DIM


def _latency(view: View, glyphs: Glyphs) -> list[Span]:
    us = f"{glyphs.micro}s"
    stages = dict(view.stages)
    spans = [(f"swipe {stages.pop('total', 0):.0f} {us}:", ACCENT)]
    spans += [(f"{name} {took_us:.0f}", PLAIN) for name, took_us in stages.items()]
    if view.reorder is not None:
        spans.append((f"{glyphs.dot} feedback {view.reorder.feedback_us:.0f} {us}", PLAIN))
    return spans


def _table(view: View, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The reorder, or nothing before the first feedback."""
    reorder = view.reorder
    if reorder is None:
        return []
    caption = [("pool after you", ACCENT), (f"{reorder.what} {reorder.video_id}", ACCENT)]
    if reorder.effect is not None:
        caption.append((f"({reorder.effect:+.3f} to the first)", _style(reorder.effect)))
    rows = reorder.rows
    values = [row.value for row in rows if row.value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    digits = min(VIDEO_DIGITS, max((len(str(row.video_id)) for row in rows), default=1))
    lines = [[], *flow(caption, width)]
    lines += [_row(row, digits, low, high, width, glyphs) for row in rows[: max(0, height - len(lines))]]
    return lines


def _row(row: Move, digits: int, low: float, high: float, width: int, glyphs: Glyphs) -> Line:
    """`  1 ▲3   101  1.234 +0.031 ████▌`: what a narrow terminal can't hold goes from the right."""
    moved, style = glyphs.same, DIM
    if row.before != row.after:
        moved, style = (glyphs.down, DOWN) if row.before and row.before < row.after else (glyphs.up, UP)
    was = str(row.before) if row.before else "new"
    line = [(f"{row.after:>3} ", PLAIN), (f"{moved}{was:<4}", style), (f"{row.video_id:>{digits}}", PLAIN)]
    if row.value is not None:
        line.append((f" {row.value:7.3f}", PLAIN))
        change = None if row.value_before is None else row.value - row.value_before
        line.append((" " * 8, PLAIN) if change is None else (f" {change:+7.3f}", _style(change)))
        room = min(30, width - sum(len(text) for text, _ in line) - 1)
        if room > 3:
            share = (row.value - low) / (high - low) if high > low else 1.0
            line.append((" " + bar(share, room, glyphs), ACCENT))
    return crop(line, width)


def bar(share: float, cells: int, glyphs: Glyphs = UNICODE) -> str:
    """A bar of `cells` at most for a share of 0 … 1, at least one step long: a least value is no missing one."""
    steps = len(glyphs.bar) - 1
    filled = max(1, round(share * cells * steps))
    whole, rest = divmod(filled, steps)
    return glyphs.bar[-1] * whole + (glyphs.bar[rest] if rest else "")


def _minutes(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02}"
