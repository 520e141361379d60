"""One string for any data: `kind:PATH`, or `sim:key=value,...`. What every `--data` flag takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from contract.catalogue import read_catalogue, read_users
from contract.errors import EventError, InputError
from contract.parquet import read_events
from training.readers.kuairand import read_kuairand
from training.readers.leave_one_out import LeaveOneOut, read_leave_one_out
from training.readers.log_data import LogData, tables_of
from training.simulator import SimConfig, World, simulate_logs

KINDS = ("kuairand", "events", "sim", "ml-1m", "amazon-beauty")
SIM_SHORT = {"users": "n_users", "items": "n_items", "topics": "n_topics", "authors": "n_authors"}


def open_data(spec: str) -> LogData | LeaveOneOut:
    """Open data by name.

    kuairand:PATH       a folder in KuaiRand's layout or one log file (LogData); a folder's train_history_*.parquet,
                        where there is one, stands before the log
    events:PATH         an event file, or a folder with events.parquet (or event files only), catalogue.parquet and
                        users.parquet; tables that are not there are gathered from the events (LogData)
    sim:KEY=VALUE,...   the simulator; keys of SimConfig (users, items, topics, authors for short), and
                        sessions, policy (LogData)
    ml-1m:PATH, amazon-beauty:PATH   leave-one-out sequences (LeaveOneOut)

    Raises InputError for an unknown kind or key; EventError for bad files.
    """
    kind, colon, rest = spec.partition(":")
    readers: dict[str, Callable[[str], LogData | LeaveOneOut]] = {
        "kuairand": _open_kuairand,
        "events": _open_events,
        "sim": _open_sim,
        "ml-1m": read_leave_one_out,
        "amazon-beauty": read_leave_one_out,
    }
    if not colon or kind not in readers:
        raise InputError("data are named KIND:PATH", got=spec, allowed=", ".join(f"{k}:…" for k in KINDS))
    if not rest and kind != "sim":
        raise InputError("the path is missing", where=f"data '{spec}'", fix=f"write {kind}:PATH")
    return readers[kind](rest)


def _open_kuairand(path: str) -> LogData:
    return read_kuairand(path, history=bool(list(Path(path).glob("train_history_*.parquet"))))


def _open_events(path_text: str) -> LogData:
    path = Path(path_text)
    folder = path if path.is_dir() else path.parent
    whole = folder / "events.parquet"
    items_path, users_path = folder / "catalogue.parquet", folder / "users.parquet"
    if not path.exists():
        raise EventError("no such file or folder", where=path)
    if path.is_dir():
        rest = [p for p in sorted(path.glob("*.parquet")) if p not in (items_path, users_path)]
        events = read_events(whole if whole.exists() else rest)
    else:
        events = read_events(path)
    events = events.take(np.lexsort((events["time_ms"], events["user_id"])))
    items, users = tables_of(events)
    items = read_catalogue(items_path) if items_path.exists() else items
    users = read_users(users_path) if users_path.exists() else users
    return LogData(events, items, users)


def _open_sim(text: str) -> LogData:
    kinds: dict[str, Callable[[str], Any]] = {f.name: float if f.name == "drift" else int for f in fields(SimConfig)}
    config: dict[str, Any] = {}
    log: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        name = SIM_SHORT.get(key, key)
        try:
            if name in kinds:
                config[name] = kinds[name](value)
            elif name == "sessions":
                log["sessions_per_user_day"] = float(value)
            elif name == "policy":
                log["policy"] = value
            else:
                allowed = sorted([*kinds, *SIM_SHORT, "sessions", "policy"])
                raise InputError("unknown key", where=f"data 'sim:{text}'", got=key, allowed=allowed)
        except ValueError:
            raise InputError(f"'{key}' takes a number", where=f"data 'sim:{text}'", got=value) from None
    world = World(SimConfig(**config))
    return LogData(simulate_logs(world, **log), world.items, world.users)
