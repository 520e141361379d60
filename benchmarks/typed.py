"""The command of a benchmark as a line to type again, from its parsed flags: what result files carry as "command"."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

PARSER = "parser"  # where a bench's own parser stands among its parsed flags


def typed(args: argparse.Namespace) -> str:
    """`kir bench NAME …` with every flag that is not at its default. "" where the flags came without their parser."""
    parser: argparse.ArgumentParser | None = getattr(args, PARSER, None)
    if parser is None:
        return ""
    flags: list[str] = []
    named: list[str] = []
    for action in parser._actions:
        if action.default is argparse.SUPPRESS:  # --help, which leaves no value
            continue
        value = getattr(args, action.dest, None)
        if not action.option_strings:
            named += _words(value)
        elif value != action.default:
            flag = action.option_strings[-1]
            repeated = list(value) if isinstance(action, argparse._AppendAction) and value else [value]
            flags += [word for one in repeated for word in (flag, *([] if action.nargs == 0 else _words(one)))]
    return shlex.join(["kir", "bench", args.bench, *named, *flags])


def _words(value: Any) -> list[str]:
    many = value if isinstance(value, list | tuple) else [value]
    return [str(one) for one in many if one is not None]
