"""The edge's commands: `kir replay` and `kir swipe`.

kir replay --model CDN/models/kir-1f3a…       # a published version on disk; or --cdn URL_OR_DIR
kir swipe --server localhost:50051 --cdn CDN --user 1                  # at a terminal: you swipe
kir swipe --server localhost:50051 --cdn CDN --user 1 --swipes 20      # a scripted viewer
kir swipe --server localhost:50051 --cdn https://cdn.example --root root.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from contract.errors import InputError, KirError, PoolExhausted, ServerError, ServerUnavailable
from contract.keys import key_of_id
from contract.vocabulary import NETWORKS
from edge._client import PageClient
from edge._clock import FakeClock, SystemClock
from edge._player import PlayClock
from edge._replay import replay
from edge._session import EdgeSession, SessionConfig
from edge._source import HttpSource, open_source
from edge._state import StateFile
from edge._store import ModelStore
from edge._terminal import is_interactive
from edge._trace import Trace
from edge._types import Choice, DeviceState, Feedback
from edge._upload import FeedbackClient, FeedbackUploader
from edge.player_cli import play

PAGE_WAIT_S = 10.0
SWIPES = 20


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--cdn", help="URL or directory of a CDN: its current version")
    place.add_argument("--model", type=Path, help="directory of one published version, or of a CDN")
    add_trust_arguments(parser)
    parser.add_argument("--json", type=Path, help="write the report to this file as well")


def add_trust_arguments(parser: argparse.ArgumentParser) -> None:
    """What the CDN's models are trusted by; an http CDN needs one of the two."""
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument("--root", type=Path, metavar="FILE", help="root.json of the CDN's keys: take signed models only")
    trust.add_argument("--unsigned", action="store_true", help="take any model from an http CDN (development)")


def _store(cache: str | Path, args: argparse.Namespace, *, fetch: str = "device") -> ModelStore:
    """The models that --cdn, --root and --unsigned name. Raises InputError in the flags' words, and as ModelStore."""
    source = None if args.cdn is None else open_source(args.cdn)
    if isinstance(source, HttpSource) and args.root is None and not args.unsigned:
        raise InputError(
            "models from a CDN are trusted by their signature",
            where=f"--cdn {args.cdn}",
            fix="give --root FILE (the root.json that comes with the app); in development --unsigned",
        )
    return ModelStore(cache, source, fetch=fetch, root=args.root, unsigned=args.unsigned)


def run_replay(args: argparse.Namespace) -> int:
    """Print the table; 0 when every golden case agrees, 1 otherwise."""
    if args.model is not None:
        report = replay(args.model)
    else:
        with tempfile.TemporaryDirectory() as cache:
            store = _store(cache, args, fetch="all")
            version = store.update()
            assert version is not None  # the cache is empty, so whatever is current is new
            report = replay(store.load(version))
    print(report.table())
    if args.json is not None:
        report.save(args.json)
    return 0 if report.ok else 1


def add_swipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="the page server")
    parser.add_argument("--cdn", help="URL or directory of the CDN; without it the server's order is shown")
    add_trust_arguments(parser)
    parser.add_argument("--user", type=int, default=1, help="user id (default: %(default)s)")
    parser.add_argument(
        "--swipes",
        type=int,
        help=f"videos that a scripted viewer watches (default: {SWIPES}; at a terminal none, you are the viewer)",
    )
    parser.add_argument("--cache", type=Path, help="where models are kept (default: a temporary directory)")
    parser.add_argument(
        "--network", default="wifi", choices=NETWORKS, help="the phone's network (default: %(default)s)"
    )
    parser.add_argument("--tls", action="store_true", help="encrypt the connection to the server")
    parser.add_argument("--ca", type=Path, help="PEM file of the certificates to trust, implies --tls")
    parser.add_argument("--state", type=Path, help="file in which the session goes on at the next run, one per user")
    parser.add_argument("--trace", type=Path, help="write a trace of the session, for chrome://tracing or Perfetto")
    parser.add_argument("--record", type=Path, metavar="FILE", help="record the player into a new asciicast v2 file")


def run_swipe(args: argparse.Namespace) -> int:
    """A phone: fetch the model and pages, swipe, report feedback, and print a JSON line at the end.

    Without --swipes and at a terminal a person swipes; else a scripted viewer, and every choice is printed.
    """
    by_hand = args.swipes is None and is_interactive()
    if args.record is not None and not by_hand:
        raise InputError("--record needs the player", where=args.record, fix="run it at a terminal, without --swipes")
    if args.swipes is None:
        args.swipes = SWIPES
    if args.swipes < 1:
        raise InputError("--swipes starts at 1", got=args.swipes)
    user_id = key_of_id(args.user)
    ca = None
    if args.ca is not None:
        try:
            ca = args.ca.read_bytes()
        except OSError as error:
            raise InputError("--ca can't be read", where=args.ca, got=error.strerror) from None
    with tempfile.TemporaryDirectory() as temporary:
        store = _store(args.cache or temporary, args)
        pages = PageClient(args.server, tls=args.tls, ca_certificates=ca)
        sink = FeedbackClient(args.server, tls=args.tls, ca_certificates=ca)
        fake = FakeClock(SystemClock().wall_ms(), SystemClock().monotonic_ms())  # plays take no real time
        clock = PlayClock(SystemClock()) if by_hand else fake
        state = StateFile(args.state) if args.state is not None else None
        trace = Trace(args.trace) if args.trace is not None else None
        uploader, config = FeedbackUploader(sink), SessionConfig()
        session = EdgeSession(user_id, store, pages, uploader, clock=clock, config=config, state=state, trace=trace)
        device = DeviceState(network=NETWORKS.index(args.network))
        with closing(pages), closing(sink), closing(session):
            if state is not None:
                print(f"state: {session.n_watched} videos watched before{state.problem and f' ({state.problem})'}")
            _get_model(session, args.cdn)
            session.fetch_page()
            if isinstance(clock, PlayClock):
                choices = play(session, clock, device, args.record)
            else:
                choices = _swipe(session, clock, device, args.swipes)
    if choices:
        print(json.dumps(summary(choices, session.dense_version)))
    if trace is not None and not trace.saved:
        raise InputError("--trace can't be written", where=args.trace, got=str(session.last_error))
    return 0


def _get_model(session: EdgeSession, cdn: str | None) -> None:
    """The newest model, else the one that is here, else none: each said in one line."""
    reason = session.start()
    if cdn is not None:
        try:
            version = session.update()
            print(f"model: {version or session.dense_version} {'(new)' if version else '(up to date)'}")
            return
        except KirError as error:
            print(f"model: no update: {error}")
    print(f"model: {session.dense_version or f'none ({reason}), the server decides the order'}")


def _swipe(session: EdgeSession, clock: FakeClock, device: DeviceState, swipes: int) -> list[Choice]:
    print(f"{'swipe':>5}  {'video':>12}  {'page':<12}  {'place':>5}  {'chooser':<12}  {'us':>7}  reason")
    choices = []
    for number in range(swipes):
        choice = _next(session, device)
        choices.append(choice)
        print(
            f"{number:>5}  {choice.video_id:>12}  {choice.page_id[:12]:<12}  {choice.candidate_index:>5}  "
            f"{choice.chooser:<12}  {choice.stages_us['total']:>7.0f}  {choice.reason or '-'}"
        )
        session.maintain()
        feedback = scripted_feedback(choice)
        clock.advance((feedback.play_time_ms or 0) + 400)
        session.feedback(feedback)
    return choices


def summary(choices: Sequence[Choice], dense_version: str) -> dict[str, object]:
    """The JSON line of a session of one choice at least: swipes, how many the model chose, microseconds, the model."""
    times_us = [choice.stages_us["total"] for choice in choices]
    return {
        "swipes": len(choices),
        "by_model": sum(choice.chooser == "model" for choice in choices),
        "p50_us": round(float(np.percentile(times_us, 50)), 1),
        "p99_us": round(float(np.percentile(times_us, 99)), 1),
        "dense_version": dense_version,
    }


def _next(session: EdgeSession, device: DeviceState) -> Choice:
    try:
        return session.next(device)
    except PoolExhausted:
        if not session.wait_page(PAGE_WAIT_S):
            session.fetch_page()
    try:
        return session.next(device)
    except PoolExhausted:
        error = session.last_error
        if isinstance(error, ServerError):
            raise error from None
        raise ServerUnavailable("the server has no more videos for this user", got=error and str(error)) from None


def scripted_feedback(choice: Choice) -> Feedback:
    """What the scripted viewer does with a video: fixed by its id, so that two runs can be compared."""
    draw = hashlib.sha256(str(choice.video_id).encode()).digest()
    play_time_ms = 1_000 + draw[0] * 120
    signals = {"long_view": play_time_ms > 18_000, "like": draw[1] < 25, "click": True}
    return Feedback(choice.video_id, play_time_ms, signals)
