"""kir serve --bundle DIR [--cdn DIR] [--port 0] : pages, rows and feedback over gRPC and HTTP.
kir retrieve DIR --history FILE : what KuaiFormer fetches for one history, without a server.

One minute on a CPU: python -m tests.server_stub.tiny_bundle /tmp/bundle && kir serve --bundle /tmp/bundle
Prints one JSON line with the ports when it is ready; SIGTERM or SIGINT ends it cleanly.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from contract.errors import InputError
from contract.rows import FLOAT16, FLOAT32
from server_stub.config import LOCALHOST, ServerConfig

_DEFAULT = ServerConfig()


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--bundle", type=Path, required=True, metavar="DIR", help="server bundle (kir convert server writes it)")
    add("--cdn", type=Path, metavar="DIR", help="published models: its pointer says what is current; served over HTTP")
    add("--events", type=Path, metavar="DIR", help="write feedback as event files here, and sent pages below it")
    add("--snapshots", type=Path, metavar="DIR", help="keep row updates across restarts here")
    add("--host", default=LOCALHOST, help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=0, help="gRPC port; 0 = any free one (default: %(default)s)")
    add("--http-port", type=int, default=0, help="HTTP port; 0 = any free one, -1 = no HTTP (default: %(default)s)")
    add("--tls-cert", type=Path, metavar="PEM", help="certificate chain, for both ports")
    add("--tls-key", type=Path, metavar="PEM", help="its private key")
    add("--page-size", type=int, default=_DEFAULT.page_size, help="candidates where a request names no number")
    add("--pool", type=int, default=_DEFAULT.pool, help="videos that retrieval hands to the ranker")
    add("--soft-ttl-s", type=float, default=_DEFAULT.soft_ttl_ms / 1000, help="after this a phone asks for a new page")
    add("--hard-ttl-s", type=float, default=_DEFAULT.hard_ttl_ms / 1000, help="after this a page's rest is dropped")
    add("--utc-offset-min", type=int, default=0, help="minutes from UTC to the users' clocks (China: 480)")
    add("--client-clock", action="store_true", help="replays of old logs: a request's own time counts as now")
    add("--workers", type=int, default=_DEFAULT.workers, help="threads that make pages")
    add("--row-dtype", choices=(FLOAT32, FLOAT16), default=FLOAT32, help="how rows are held in memory")
    add("--remote-updates", action="store_true", help="take row updates from other machines too")
    add("--cors-origin", default="", metavar="ORIGIN", help="let browser pages of this origin call the HTTP port")
    add("--ready-file", type=Path, metavar="PATH", help="write the ready line here too, once both ports are open")


def config_from(args: argparse.Namespace) -> ServerConfig:
    """Raises InputError for values out of range."""
    return ServerConfig(
        bundle=args.bundle,
        cdn=args.cdn,
        events=args.events,
        snapshots=args.snapshots,
        host=args.host,
        grpc_port=args.port,
        http_port=None if args.http_port == -1 else args.http_port,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        page_size=args.page_size,
        pool=args.pool,
        soft_ttl_ms=round(args.soft_ttl_s * 1000),
        hard_ttl_ms=round(args.hard_ttl_s * 1000),
        utc_offset_min=args.utc_offset_min,
        client_clock=args.client_clock,
        workers=args.workers,
        row_dtype=args.row_dtype,
        remote_updates=args.remote_updates,
        cors_origin=args.cors_origin,
    )


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop. Raises KirError when it can't start."""
    import asyncio
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(config_from(args), args.ready_file))
    return 0


async def _serve(config: ServerConfig, ready_file: Path | None) -> None:
    import asyncio
    import json
    import signal

    from server_stub.server import Server

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Server(config) as server:
        ready = {
            "grpc_port": server.grpc_port,
            "http_port": server.http_port,
            "host": config.host,
            "tls": config.tls_cert is not None,
            "current": server.pages.current,
            "dense_versions": [version.dense_version for version in server.store.versions()],
            "pid": os.getpid(),
        }
        line = json.dumps(ready)
        if ready_file is not None:
            ready_file.parent.mkdir(parents=True, exist_ok=True)
            aside = ready_file.with_name(f".{ready_file.name}.part")
            aside.write_text(line + "\n")
            aside.replace(ready_file)
        print(line, flush=True)
        await stop.wait()


def add_retrieve_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="DIR", help="server bundle, or what `kir convert retrieval` wrote")
    add(
        "--history", type=Path, metavar="FILE",
        help=".parquet, .json or .csv: video_id, oldest first, and if you have them author_id, tags, duration_ms, "
        "play_time_ms, gap_ms, time_ms, user_id, long_view, like; event files too (default: a new user)",
    )  # fmt: skip
    add("--user", type=int, metavar="ID", help="whose rows, where the file holds several users")
    add("-n", type=int, default=100, help="how many videos (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object instead of the table")


def run_retrieve(args: argparse.Namespace) -> int:
    """Raises InputError for a bad history file, InputError, IntegrityError or VersionMismatch for a bad directory."""
    import json
    import sys

    from server_stub.history_file import read_history
    from server_stub.retrieve import Retriever

    if args.user is not None and args.history is None:
        raise InputError("--user chooses from a file", got=args.user, fix="name it with --history FILE")
    file = read_history(args.history, args.user) if args.history else None
    answer = Retriever.load(args.source).answer(file, args.n)
    if args.json:
        print(json.dumps(answer.to_json()))
        return 0
    print(answer.told(), file=sys.stderr)
    print(answer.table())
    return 0
