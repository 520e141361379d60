"""Vectors of whole sessions: an EdgeSession driven step by step, its pages, choices, pool and every run of a graph.

What is tried: the model's golden session with its searches; gaps with late and amended feedback; preloading; a beam
over two pages; TTLs in time and swipes, pages that no model can score or that repeat videos, a pool too full and one
that runs dry; rows that come later than their videos; no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.jvm.cases import Vectors
from benchmarks.jvm.recording import RecordingEngine
from benchmarks.jvm.script import Script
from contract.beam import BeamPlan
from contract.errors import InputError
from contract.golden import FeedbackStep, GoldenSession, PageStep
from contract.page import CANDIDATE, WATCHED, Page, Rows, parse_page
from contract.vocabulary import DECODERS, MISSING_KEY, NETWORKS, SIGNALS
from edge import ChoicePolicy, DeviceState, Feedback, PoolConfig, SessionConfig

SHIFT = 1_000_000_007  # between the ids of one video on two pages


class Pages:
    """Pages of other videos out of one golden page: shifted ids, the same rows, and rows of the watched list."""

    def __init__(self, base: Page):
        self._base = base
        self._index: dict[int, int] = {}
        self._made = 0

    def page(self, script: Script, count: int, *, same: bool = False, **overrides: Any) -> Page:
        """count candidates, from another place of the golden page each time. same: the videos of the last page."""
        self._made += not same
        base, c = self._base, self._base.candidates
        at = (np.arange(count) + 3 * self._made) % len(c)
        ids = c.video_id[at] + np.uint64(SHIFT * self._made)
        self._index |= {int(video): int(index) for video, index in zip(ids, at, strict=True)}
        candidates = replace(c, **{name: getattr(c, name)[at] for name in vars(c)} | {"video_id": ids})
        rows = self._rows(script, at) if base.rows.tables else base.rows
        return replace(base, page_id=f"page-{self._made}", candidates=candidates, rows=rows, **overrides)

    def _rows(self, script: Script, at: NDArray[np.intp]) -> Rows:
        spec, rows = script.engine.spec, self._base.rows
        slots = {key: found[at] if key[0] == CANDIDATE else found for key, found in rows.slots.items()}
        table_of = dict(rows.feature_table)
        twins = {(c.field.feature, c.field.table): c.field.name for c in spec.columns("candidate_rows")}
        watched = [self._index.get(video, -1) for video in script.session.page_request().watched_ids]
        for column in spec.columns("watched_rows"):
            twin = rows.slots[CANDIDATE, twins[column.field.feature, column.field.table]]
            found = np.full((len(watched), twin.shape[1]), -1, np.int64)
            for entry, index in enumerate(watched):
                if index >= 0:
                    found[entry] = twin[index]
            slots[WATCHED, column.field.name] = found
            table_of[WATCHED, column.field.name] = column.field.table
        return Rows(rows.tables, slots, table_of)


def device_of(rng: np.random.Generator, videos: Sequence[int] = ()) -> DeviceState:
    """A device of some state; of half of the videos the player tells what it has."""
    told = {int(video): int(rng.integers(0, 12_000)) for video in videos if rng.random() < 0.5}
    volume = None if rng.random() < 0.4 else round(float(rng.random()), 3)
    landscape = None if rng.random() < 0.4 else bool(rng.integers(2))
    return DeviceState(int(rng.integers(len(NETWORKS))), int(rng.integers(len(DECODERS))), told, volume, landscape)


def feedback_of(rng: np.random.Generator, video: int, **overrides: Any) -> Feedback:
    play = None if rng.random() < 0.2 else int(rng.integers(100, 50_000))
    signals = {name: bool(rng.integers(2)) for name in SIGNALS if rng.random() < 0.6}
    stay = int(rng.integers(0, 90_000)) if rng.random() < 0.5 else None
    return Feedback(video, play, signals, **{"profile_stay_ms": stay, **overrides})


def _left(script: Script) -> list[int]:
    return [page.video_ids[index] for page in script.session.pool.pages for index in page.remaining]


def golden(script: Script, session: GoldenSession) -> None:
    """The model's own golden session, by its steps and times; ids beyond its pages are of no use here."""
    for step in session.steps:
        script.advance(max(0, step.at_ms - script.clock.wall_ms()))
        if isinstance(step, PageStep):
            script.clear()
            script.page(parse_page(step.page), as_answer=False)
        elif isinstance(step, FeedbackStep):
            play = step.play_time_ms if step.play_time_ms >= 0 else None
            signals = {name: bool(value) for name, value in step.signals.items() if value >= 0}
            script.feedback(Feedback(step.video_id, play, signals, shown_at_ms=step.shown_at_ms))
        else:
            told = {v: ms for v, ms in zip(step.video_ids, step.buffered_ms, strict=True) if ms >= 0}
            device = DeviceState(step.network, step.decoder, told)
            if step.ahead is not None:
                script.ahead(BeamPlan(step.ahead.beams, step.ahead.depth, step.ahead.stability), device)
            script.next(device)


def walk(script: Script, pages: Pages, rng: np.random.Generator, swipes: int, size: int) -> None:
    """Swipes with feedback in every order: at once, later, amended by a lower and a higher revision, of a stranger.

    size: candidates of a page; one fewer are shown before the next page comes.
    """
    waiting: list[int] = []
    first = None
    for number in range(swipes):
        if number % (size - 1) == 0:
            script.page(pages.page(script, size - number % 2))
        script.advance(int(rng.integers(200, 40_000)))
        if number % 6 == 3:
            script.ahead(BeamPlan(2, script.engine.placed + 1, 1.0), device_of(rng, _left(script)))
        video = script.next(device_of(rng, _left(script)))
        script.maintain()
        if video is None:
            break
        first = first or video
        waiting.append(video)
        if number % 3 != 1:
            while waiting:
                script.feedback(feedback_of(rng, waiting.pop(), revision=int(rng.integers(0, 3))))
        if number % 4 == 2:
            script.feedback(feedback_of(rng, video, revision=1))
            script.feedback(feedback_of(rng, video))
        script.state()
    if first is not None:
        script.feedback(feedback_of(rng, first))  # evicted since
    script.feedback(feedback_of(rng, int(MISSING_KEY) - 5))


def ageing(script: Script, pages: Pages, rng: np.random.Generator) -> None:
    """Pages that grow old in time and in swipes, that no model can score, a pool too full, and one that runs dry."""
    size = max(script.engine.buckets)
    script.page(pages.page(script, size, soft_ttl_ms=5_000, hard_ttl_ms=9_000))
    for _ in range(3):
        script.advance(1_100)
        video = script.next(device_of(rng, _left(script)))
        if video is not None:
            script.feedback(feedback_of(rng, video))
        script.maintain()
        script.state()
    script.page(pages.page(script, size - 1))  # above max_candidates: the lowest values go
    script.state()
    for _ in range(3):
        script.next(device_of(rng))
    script.page(pages.page(script, size - 1, same=True))  # without those that were shown
    script.state()
    script.page(pages.page(script, size // 2, dense_version="kir-other"))
    script.page(pages.page(script, size // 2, spec_fingerprint="0" * 16))
    script.page(pages.page(script, size // 2, rows_status="no_live_version"))
    script.state()
    script.advance(20_000_000)  # everything is past its hard TTL: the last tier
    script.state()
    for _ in range(script.session.config.pool.max_candidates + 1):
        script.next(device_of(rng))
        script.maintain()
    script.state()
    script.page(pages.page(script, size))
    script.next(device_of(rng))


def late_rows(script: Script, pages: Pages, rng: np.random.Generator) -> None:
    """Videos watched from pages without rows: default rows stand in until a page brings their own."""
    for status in ("no_live_version", "ok", "no_live_version", "ok"):
        script.page(pages.page(script, 2, rows_status=status))
        for _ in range(2):
            script.advance(3_000)
            video = script.next(device_of(rng))
            if video is not None:
                script.feedback(feedback_of(rng, video))
    script.page(pages.page(script, max(script.engine.buckets)))
    script.next(device_of(rng))


def write_sessions(engine: RecordingEngine, out: Path) -> None:
    """Every session of above. Raises InputError for a model without a golden session."""
    file = engine.manifest.golden.session
    if not file:
        raise InputError("the model has no golden session", where=engine.dense_version)
    session = GoldenSession.from_bytes(engine.installed.read(file), file)
    base = parse_page(next(step.page for step in session.steps if isinstance(step, PageStep)))
    size = max(engine.buckets)
    swipes = 2 * engine.capacity + 3  # past two evictions
    plan = BeamPlan(max(engine.beams, 1) + 1, engine.placed + 1, 0.98)  # more lists than a run of the graph holds
    beam = ChoicePolicy(mode="beam", plan=plan, budget_ms=None)
    ready = ChoicePolicy(preloaded_only=True, buffered_min_ms=6_000, author_gap=4, topic_gap=8)
    old = PoolConfig(
        max_candidates=size + 2, prefetch_below=3, seen=4, soft_ttl_swipes=2, hard_ttl_swipes=2 * size, max_pages=3
    )

    def walking(script: Script, rng: np.random.Generator) -> None:
        walk(script, Pages(base), rng, swipes, size)

    def scarce(script: Script, rng: np.random.Generator) -> None:
        walk(script, Pages(base), rng, swipes, 5)

    scripts: Mapping[str, tuple[SessionConfig, Callable[[Script, np.random.Generator], None]]] = {
        "golden": (SessionConfig(), lambda script, rng: golden(script, session)),
        "gaps": (SessionConfig(policy=ChoicePolicy(author_gap=2, topic_gap=3)), scarce),
        "topics": (SessionConfig(policy=ChoicePolicy(author_gap=1, topic_gap=6)), scarce),
        "preloaded": (SessionConfig(policy=ready), scarce),
        "beam": (SessionConfig(policy=beam), walking),
        "ageing": (SessionConfig(pool=old), lambda script, rng: ageing(script, Pages(base), rng)),
        "late-rows": (SessionConfig(), lambda script, rng: late_rows(script, Pages(base), rng)),
        "no-model": (SessionConfig(policy=ChoicePolicy(author_gap=2)), walking),
    }
    for number, (name, (config, run)) in enumerate(scripts.items()):
        vectors = Vectors(out, f"session-{name}")
        script = Script(engine, vectors, config, session.steps[0].at_ms, with_model=name != "no-model")
        run(script, np.random.default_rng([number, 0x6A766D]))
        script.save()
