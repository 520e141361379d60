"""What a few bytes on the wire would become in memory: refused before it is built."""

from __future__ import annotations

import tracemalloc

import pytest

from contract.errors import PageError
from contract.page import PAGE_BYTES_MAX, encode_page, parse_page
from contract.v1 import page_pb2
from tests.edge.tiny_page import make_page, page_of_many


def peak(message: page_pb2.Page, words: str) -> int:
    """Bytes that Python and numpy held at most while the page was refused, in these words and a short line."""
    raw = message.SerializeToString()
    assert len(raw) < PAGE_BYTES_MAX
    tracemalloc.start()
    try:
        with pytest.raises(PageError, match=words) as caught:
            parse_page(raw)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 900
    return most


def a_page() -> page_pb2.Page:
    return encode_page(make_page(range(201, 205)))


def test_a_million_empty_entries_of_64_places() -> None:
    message = a_page()
    index = message.row_indexes.add(owner=page_pb2.ROW_OWNER_WATCHED, feature="odd", table=message.row_tables[0].name)
    index.rows[:] = [0] * 64
    index.counts[:] = [64] + [0] * 1_000_000
    assert peak(message, "number of entries") < 16 * 2**20


def test_many_indexes_of_many_places() -> None:
    message = page_of_many(5_000)
    table = message.row_tables[0].name
    for number in range(20):
        index = message.row_indexes.add(owner=page_pb2.ROW_OWNER_CANDIDATE, feature=f"f{number}", table=table)
        index.rows[:] = [0] * 64
        index.counts[:] = [64] + [0] * 4_999
    assert peak(message, "row indexes are too large") < 48 * 2**20


@pytest.mark.parametrize("name", ["row_tables", "row_indexes"])
def test_a_million_empty_messages(name: str) -> None:
    message = a_page()
    raw = message.SerializeToString()
    unit = page_pb2.Page()
    getattr(unit, name).add()
    raw += unit.SerializeToString() * 1_000_000
    with pytest.raises(PageError, match=f"too many {name}"):
        parse_page(raw)


def test_a_million_heads() -> None:
    message = a_page()
    message.candidates.pxtr_heads.extend([""] * 1_000_000)
    assert peak(message, "other heads") < 16 * 2**20
