"""The settings of a session, fixed for its life."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from contract.checks import INT32_MAX, INT64_MAX, UINT64_MAX, check_flag, check_whole
from contract.errors import InputError
from contract.rows import ENCODINGS, INT8
from edge._policy import ChoicePolicy
from edge._pool import PoolConfig

PAGE_SIZE_MAX, CAPACITY_MAX = 10_000, 4_096


@dataclass(frozen=True)
class SessionConfig:
    """What a session is to do.

    pool, policy       what of pages is kept, how the next video is chosen
    page_size          candidates to ask for; 0: as many as the server likes
    row_encoding       of the sparse rows on the wire: "int8" | "fp16"
    watched_capacity   L until a model brings its own: an even number
    opted_in           the user lets opt_in fields leave the device
    retry_ms           pause after a page that could not be fetched
    allow_no_delegate  run a model without XNNPACK, slowly, instead of refusing it
    Raises InputError for values of another type or out of range.
    """

    pool: PoolConfig = field(default_factory=PoolConfig)
    policy: ChoicePolicy = field(default_factory=ChoicePolicy)
    page_size: int = 0
    row_encoding: str = INT8
    watched_capacity: int = 50
    opted_in: bool = False
    retry_ms: int = 2_000
    allow_no_delegate: bool = False

    def __post_init__(self) -> None:
        for name, value, kind in (("pool", self.pool, PoolConfig), ("policy", self.policy, ChoicePolicy)):
            if not isinstance(value, kind):
                raise InputError(f"session: {name}", got=type(value).__name__, allowed=kind.__name__)
        check_whole("session: page_size", self.page_size, 0, PAGE_SIZE_MAX)
        if self.row_encoding not in ENCODINGS:
            raise InputError("session: row_encoding", got=self.row_encoding, allowed=ENCODINGS)
        check_whole("session: watched_capacity", self.watched_capacity, 2, CAPACITY_MAX)
        if self.watched_capacity % 2:
            raise InputError("session: watched_capacity is even", got=self.watched_capacity)
        check_whole("session: retry_ms", self.retry_ms, 0, INT32_MAX)
        check_flag("session: opted_in", self.opted_in)
        check_flag("session: allow_no_delegate", self.allow_no_delegate)


def check_ids(user_id: int, session_id: int) -> None:
    """Raises InputError for what no message can hold."""
    check_whole("session: user_id", user_id, 0, UINT64_MAX)
    check_whole("session: session_id", session_id, 0, INT64_MAX)


def check_parts(**parts: tuple[object, Any]) -> None:
    """name -> a part of a session and the types it may have, None beside them. Raises InputError."""
    for name, (value, kinds) in parts.items():
        if value is not None and not isinstance(value, kinds):
            allowed = ", ".join(kind.__name__ for kind in getattr(kinds, "__args__", (kinds,)))
            got = f"{type(value).__name__} {value!r}"[:100]
            raise InputError(f"session: {name}", got=got, allowed=f"{allowed}, None")
