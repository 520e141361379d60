"""Row keys: (table, 64-bit key). A raw integer id is its own key; a string is xxh64 with a stated seed."""

from __future__ import annotations

import xxhash

from contract.errors import InputError
from contract.vocabulary import MISSING_KEY

STRING_KEY_SEED = 0x6B6972  # "kir"


def key_of_id(raw_id: int) -> int:
    """The key of a raw non-negative integer id. Never taken modulo a table size.

    Raises InputError for ids outside [0, 2**64 - 2]; the largest value is the reserved missing key.
    """
    if not 0 <= raw_id < int(MISSING_KEY):
        raise InputError("id does not fit a 64-bit key", got=raw_id, allowed="0 … 2**64 - 2")
    return raw_id


def key_of_string(text: str) -> int:
    """The key of a string id: xxh64 of its UTF-8 bytes, seed STRING_KEY_SEED, missing key avoided."""
    digest = xxhash.xxh64_intdigest(text.encode(), seed=STRING_KEY_SEED)
    return digest if digest != int(MISSING_KEY) else 0
