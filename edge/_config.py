"""The settings of a session, fixed for its life."""

from __future__ import annotations

from dataclasses import dataclass, field

from contract.rows import INT8
from edge._policy import ChoicePolicy
from edge._pool import PoolConfig


@dataclass(frozen=True)
class SessionConfig:
    """policy: how the next video is chosen; watched_capacity: L until a model brings its own; opted_in: the user lets
    opt_in fields leave; retry_ms: pause after a page that could not be fetched.
    """

    pool: PoolConfig = field(default_factory=PoolConfig)
    policy: ChoicePolicy = field(default_factory=ChoicePolicy)
    page_size: int = 0
    row_encoding: str = INT8
    watched_capacity: int = 50
    opted_in: bool = False
    retry_ms: int = 2_000
    allow_no_delegate: bool = False
