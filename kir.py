"""kir COMMAND [flags]: the command line, one sub-command per job. The whole loop on a CPU: kir demo --out demo-out

Each sub-command is two functions in its room's `cli.py`: `add_<command>_arguments(parser)` and
`run_<command>(args) -> int`; `<command>_words(argv)`, where there is one, may complete the line first. A room is
imported only when one of its commands is chosen, so that the edge's commands work without torch or TensorFlow.

Exit status: what the command returns (0 = done); 1 = an artifact was made and is not good enough; 2 = the command could
not be done, and one line on stderr says why; 130 = interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from contract.errors import InputError, Interrupted, KirError, MissingExtra, VerificationFailed

__version__ = "0.1.0"

ROOMS = frozenset({"contract", "training", "convert", "edge", "server_stub", "benchmarks"})


@dataclass(frozen=True)
class Command:
    """Where a sub-command lives, the extra that brings its packages ("" = the plain install), and its line of help."""

    module: str
    extra: str
    help: str


COMMANDS: dict[str, Command] = {
    "simulate": Command("training.cli", "train", "write synthetic users, videos and events as Parquet"),
    "annotate": Command("training.cli", "train", "fill events with the server ranker's predictions, without leaks"),
    "train": Command("training.cli", "train", "train a model on events and save a checkpoint directory"),
    # training's command, called where the baselines can be opened as well
    "evaluate": Command(
        "benchmarks.baselines.cli", "train", "score a checkpoint on held-out data, or a dump of ranked lists"
    ),
    "describe": Command(
        "training.cli", "train", "features, parameters, bytes and cost of a checkpoint or published model"
    ),
    "convert": Command("convert.cli", "convert", "model | server | retrieval | …: from checkpoints to TFLite and ONNX"),
    "publish": Command("convert.cli", "convert", "put a verified model into a CDN directory, signed; keys, renewal"),
    "verify": Command("convert.cli", "convert", "check a published model: hashes, tensors, ranking, golden cases"),
    "inspect": Command("convert.cli", "", "what a .tflite is: interface, operators, delegation, sizes, contract"),
    "serve": Command("server_stub.cli", "server", "serve candidate pages, embedding updates and feedback intake"),
    "retrieve": Command("server_stub.cli", "server", "what KuaiFormer fetches for a history file, without a server"),
    "swipe": Command(
        "edge.cli", "", "a phone against a live server: swipe by hand at a terminal, or let a script do it"
    ),
    "replay": Command("edge.cli", "", "replay the golden cases of a published model on this machine"),
    "bench": Command("benchmarks.cli", "bench", "retrieval | encoder | swipe | …: a table and one JSON line"),
    "device": Command("benchmarks.device.cli", "bench", "build | start | stop | list: emulated arm64 devices, phones"),
    "demo": Command("benchmarks.cli", "all", "the whole loop here: events, training, conversion, serving, swipes"),
}

# Packages that no extra can name, and the command that installs them.
NOT_IN_AN_EXTRA = {"onnx2tf": "kir convert setup", "litert_torch": "kir convert setup --litert-torch"}


def build_parser() -> argparse.ArgumentParser:
    """The parser of `kir`: every command's name and line of help, and no command's flags; those come from its room."""
    parser = argparse.ArgumentParser(
        prog="kir",
        description="Short-video recommendation from training to the phone.",
        epilog="`kir COMMAND --help` lists a command's flags.",
    )
    parser.add_argument("--version", action="version", version=f"kir {__version__}")
    parser.add_argument(
        "--debug", action="store_true", help="show the trace of an error; may stand anywhere on the line"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, description=command.help[0].upper() + command.help[1:] + ".")
    return parser


def parser_of(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    """The sub-parser of command `name` in what `build_parser` made."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    sub: argparse.ArgumentParser = actions[0].choices[name]
    return sub


def chosen_command(argv: Sequence[str]) -> str | None:
    """The first word that is no flag, when it is a command; argparse explains anything else."""
    word = next((word for word in argv if not word.startswith("-")), None)
    return word if word in COMMANDS else None


def missing_part(error: ModuleNotFoundError, command: Command) -> KirError | None:
    """One sentence with the line to type for a package that is not installed; None when it is our own module: a bug."""
    package = (error.name or "").partition(".")[0]
    if not package or package in ROOMS:
        return None
    if package in NOT_IN_AN_EXTRA:
        return InputError(
            f"this command needs the package '{package}'", fix=f"install it with: {NOT_IN_AN_EXTRA[package]}"
        )
    if not command.extra:
        return InputError(f"this command needs the package '{package}'", fix="install it with: pip install kir-edge")
    return MissingExtra(package, command.extra)


def run_command(name: str, argv: Sequence[str]) -> int:
    """Import the command's room, read its flags from `argv` (the command's name included) and run it.

    Raises `KirError` for whatever a person can mend, a package that is not installed included.
    """
    command = COMMANDS[name]
    try:
        room: ModuleType = importlib.import_module(command.module)
        parser = build_parser()
        getattr(room, f"add_{name}_arguments")(parser_of(parser, name))
        rewrite = getattr(room, f"{name}_words", list)  # a room may let its commonest job go unnamed
        args = parser.parse_args(rewrite(argv))
        return int(getattr(room, f"run_{name}")(args) or 0)
    except ModuleNotFoundError as error:
        sentence = missing_part(error, command)
        if sentence is None:
            raise
        raise sentence from error


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status. `argv` defaults to the process's own."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    name = chosen_command(words)
    if name is None:
        build_parser().parse_args(words)  # leaves with help, the version, or what is wrong
        return 2
    try:
        return run_command(name, words)
    except Interrupted as error:
        print(f"kir {name}: {error}", file=sys.stderr)
        return 130
    except KirError as error:
        if debug:
            traceback.print_exc()
        print(f"kir {name}: {error}", file=sys.stderr)
        return 1 if isinstance(error, VerificationFailed) else 2
    except OSError as error:  # a path that can't be used, a full disk
        if debug:
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        why = error.strerror or error
        print(f"kir {name}: {where}{why}; check the path, its permissions and the free space", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"kir {name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
