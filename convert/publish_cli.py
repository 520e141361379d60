"""kir publish model | keys | refresh | rotate: a CDN directory, and the keys that sign it.

kir publish keys keys && kir publish converted --cdn cdn --keys keys
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.errors import InputError

JOBS = ("model", "keys", "refresh", "rotate")
KEY_NAMES = ("root", "targets", "release", "online")


def publish_words(argv: Sequence[str]) -> list[str]:
    """`kir publish DIR …` and `kir publish --rollback …` are `kir publish model …`."""
    words = list(argv)
    at = words.index("publish") + 1
    first = words[at] if at < len(words) else "--help"
    if first not in (*JOBS, "-h", "--help"):
        words.insert(at, "model")
    return words


def add_publish_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `kir publish`."""
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True)
    model = jobs.add_parser("model", help="put a converted model into the CDN and point at it; or --rollback")
    model.add_argument("directory", type=Path, nargs="?", help="what `kir convert model` wrote")
    _add_places(model, required=False)
    model.add_argument(
        "--measured", type=Path, action="append", default=[], metavar="FILE.json",
        help="result of `kir bench swipe --json` for the card's device table; may be repeated",
    )  # fmt: skip
    model.add_argument(
        "--classes", type=Path, metavar="FILE.json",
        help="device classes: which variants phones with given CPU flags and memory run (docs/delivery.md)",
    )  # fmt: skip
    model.add_argument("--rollback", metavar="VERSION", help="point at a version that is already there")
    keys = jobs.add_parser("keys", help="make the keys that sign a CDN, and the root.json for the host app")
    keys.add_argument("folder", type=Path, help="a folder that does not exist yet")
    keys.add_argument("--copy-from", type=Path, metavar="KEYS", help="a successor of these keys, for rotate")
    keys.add_argument(
        "--renew", action="append", default=[], metavar="KEY", choices=KEY_NAMES,
        help=f"with --copy-from, a key to make anew ({', '.join(KEY_NAMES)}); may be repeated",
    )  # fmt: skip
    _add_shared(keys)
    refresh = jobs.add_parser("refresh", help="renew what expires: for a timer, several times a day")
    _add_places(refresh)
    rotate = jobs.add_parser("rotate", help="sign root, targets and all below anew, with other keys or the same")
    _add_places(rotate)
    rotate.add_argument("--new-keys", type=Path, metavar="KEYS", help="successor made by keys --copy-from")


def _add_places(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--cdn", type=Path, required=True, metavar="ROOT", help="CDN directory")
    text = "folder of the keys that sign" + ("" if required else "; without it the CDN is unsigned")
    parser.add_argument("--keys", type=Path, required=required, metavar="KEYS", help=text)
    _add_shared(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expire", action="append", default=[], metavar="ROLE=DAYS",
        help="lifetime of what is signed now (root, targets, release, snapshot, timestamp); may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")


def run_publish(args: argparse.Namespace) -> int:
    from convert.cli import show

    if args.job == "model" and args.keys is None and not args.expire:
        return show(_publish(args, None), args.json)
    from convert.trust_keys import Lifetimes, make_keys

    lifetimes = Lifetimes().changed(args.expire)
    if args.job == "keys":
        made = make_keys(args.folder, copy_from=args.copy_from, renew=args.renew, lifetimes=lifetimes)
        return show(made, args.json)
    if args.job == "model":
        if args.keys is None:
            raise InputError("--expire is for what is signed", fix="give --keys as well")
        return show(_publish(args, lifetimes), args.json)
    from convert.trust import Publisher

    publisher = Publisher(args.cdn, args.keys, lifetimes)
    return show(publisher.refresh() if args.job == "refresh" else publisher.rotate(args.new_keys), args.json)


def _publish(args: argparse.Namespace, lifetimes: Any) -> Any:
    from convert.publish import publish, rollback

    if (args.directory is None) == (args.rollback is None):
        raise InputError("publish takes a directory, or --rollback VERSION, and not both")
    if args.rollback and args.measured:
        raise InputError("--measured goes into the card of what is published, not of what --rollback names")
    if args.rollback and args.classes:
        raise InputError("--classes goes into what is published, not into what --rollback names")
    if args.rollback:
        return rollback(args.cdn, args.rollback, keys=args.keys, lifetimes=lifetimes)
    return publish(args.directory, args.cdn, args.measured, classes=args.classes, keys=args.keys, lifetimes=lifetimes)
