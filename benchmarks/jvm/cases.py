"""Vectors of single functions: random inputs around every bound, with nulls, and what `contract` makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import buckets
from contract.beam import BeamPlan, beam_search
from contract.features import dense_block, pool_rows, since_watched, videos_behind
from contract.golden import fused_values
from contract.rows import ENCODINGS, decode_rows, encode_rows
from contract.user_profile import PROFILE
from contract.vocabulary import DECODERS, MISSING_KEY, NETWORKS, SIGNALS, TAGS_MAX, X_PXTR
from edge import Engine

Columns = dict[str, NDArray[Any]]
Rng = np.random.Generator
ROWS = 60
DAY_MS = 24 * 3600 * 1000
# Of raw integer columns: the bounds of their buckets, whose neighbours are tried as well.
BOUNDS: Mapping[str, Sequence[int]] = {
    "play_time_ms": [*buckets.WATCH_BOUNDS_MS.tolist(), *buckets.DURATION_BOUNDS_MS.tolist()],
    "duration_ms": buckets.DURATION_BOUNDS_MS.tolist(),
    "gap_ms": buckets.GAP_BOUNDS_MS.tolist(),
    "upload_age_days": buckets.AGE_BOUNDS_DAYS.tolist(),
    "user_register_days": buckets.REGISTER_BOUNDS_DAYS.tolist(),
    "swipe_index": buckets.INDEX_BOUNDS.tolist(),
    "user_activity": range(9),
    "hour": range(24),
    "tab": range(17),
    "server_position": [10, 64],
    "buffered_ms": [1, 9_999, 10_000],
    "profile_stay_ms": [1, 33_333, 60_000],
    "comment_stay_ms": [1, 59_999, 60_000],
}


class Vectors:
    """A text file of lines and an .npz of arrays beside it, written by `save`."""

    def __init__(self, folder: Path, name: str):
        self.lines: list[str] = []
        self.arrays: dict[str, NDArray[Any]] = {}
        self._folder, self._name = folder, name

    def add(self, name: str, array: NDArray[Any]) -> str:
        """Keep an array, as float32, float64, int64, uint64 or bytes; returns its name."""
        kinds = {"f": array.dtype, "u": np.dtype(np.uint64), "i": np.dtype(np.int64), "b": np.dtype(np.int64)}
        self.arrays[name] = array if array.dtype == np.uint8 else array.astype(kinds[array.dtype.kind])
        return name

    def add_bytes(self, name: str, content: bytes) -> str:
        return self.add(name, np.frombuffer(content, np.uint8))

    def save(self) -> None:
        (self._folder / f"{self._name}.txt").write_text("\n".join(self.lines) + "\n")
        np.savez_compressed(self._folder / f"{self._name}.npz", allow_pickle=False, **self.arrays)


def write_cases(engine: Engine, out: Vectors, rng: Rng) -> None:
    """rows, dense and served blocks, since and behind, fused values, the best of them, searches."""
    _rows(out, rng)
    _blocks(engine, out, rng)
    _pooled(engine, out, rng)
    _ages(out, rng)
    scores = rng.normal(0, 6, (40, len(engine.fusion_T))).astype(np.float32)
    scores[0], scores[1] = -500.0, 500.0
    out.add("fused/scores", scores)
    out.add("fused/expected", fused_values(scores, engine.fusion_T))
    out.lines.append("fused")
    _best(out, rng)
    for number in range(12):
        _beam(out, rng, number)
    out.save()


def _rows(out: Vectors, rng: Rng) -> None:
    for encoding in ENCODINGS:
        rows = rng.normal(0, [[0.0], [1e-6], [0.01], [1.0], [300.0]], (5, 6)).astype(np.float32)
        encoded = encode_rows(rows, encoding)
        out.add_bytes(f"rows/{encoding}/values", encoded.values)
        out.add_bytes(f"rows/{encoding}/scales", encoded.scales)
        out.add(f"rows/{encoding}/expected", decode_rows(encoded))
        out.lines.append(f"rows {encoding} {encoded.width}")


def raw_columns(rng: Rng, n: int) -> Columns:
    """Every raw column that a dense feature of a phone reads, n rows: bounds, their neighbours, and nulls."""
    columns: Columns = {}
    for name, bounds in BOUNDS.items():
        values = np.array([-1, 0, *(b + d for b in bounds for d in (-1, 0, 1)), 2**31 - 1], np.int64)
        columns[name] = rng.choice(values, n)
    pxtr = rng.random((n, X_PXTR)).astype(np.float32)
    pxtr[rng.random((n, X_PXTR)) < 0.2] = np.nan
    pxtr[:2] = [[0.0], [1.0]]
    volume = rng.uniform(-0.2, 1.2, n).astype(np.float32)
    profile = rng.random((n, len(PROFILE))).astype(np.float32)
    return columns | {
        "pxtr": pxtr,
        "signals": rng.integers(-1, 2, (n, len(SIGNALS))),
        "volume": np.where(rng.random(n) < 0.3, np.float32(np.nan), volume),
        "landscape": rng.integers(-1, 2, n),
        "user_profile": np.where(rng.random((n, len(PROFILE))) < 0.3, np.float32(np.nan), profile),
        "network": rng.integers(0, len(NETWORKS), n),
        "decoder": rng.integers(0, len(DECODERS), n),
        "start": np.arange(n) == 0,
        "tags": np.full((n, TAGS_MAX), MISSING_KEY),
    }


def _blocks(engine: Engine, out: Vectors, rng: Rng) -> None:
    columns = raw_columns(rng, ROWS)
    for name, column in columns.items():
        out.add(f"columns/{name}", column)
        out.lines.append(f"column {name} {'f' if column.dtype.kind == 'f' else 'i'} {ROWS}")
    spec = engine.spec
    for block in spec.blocks:
        if all(column.field.encoding == "dense" for column in spec.columns(block)):
            expected = np.zeros((ROWS, spec.width(block)), np.float32)
            out.add(f"dense/{block}", dense_block(spec, block, columns, expected))
            out.lines.append(f"dense {block}")


def _pooled(engine: Engine, out: Vectors, rng: Rng) -> None:
    spec, n = engine.spec, 9
    tables = {}
    for table, width in spec.tables.items():
        encoded = encode_rows(rng.normal(0, 1, (7, width)).astype(np.float32))
        out.add_bytes(f"tables/{table}/values", encoded.values)
        out.add_bytes(f"tables/{table}/scales", encoded.scales)
        tables[table] = decode_rows(encoded)
        out.lines.append(f"table {table} {width}")
    for block in spec.blocks:
        served = [column.field for column in spec.columns(block) if column.field.encoding == "served"]
        if not served:
            continue
        slots = {}
        for field in served:
            slots[field.name] = rng.integers(-1, 7, (n, field.max_len))
            slots[field.name][0] = -1
            out.add(f"pool/{block}/{field.name}", slots[field.name])
            out.lines.append(f"slots {block} {field.name} {field.table} {field.max_len}")
        expected = np.zeros((n, spec.width(block)), np.float32)
        out.add(f"pool/{block}/expected", pool_rows(spec, block, tables, slots, expected))
        out.lines.append(f"pool {block} {n}")


def _ages(out: Vectors, rng: Rng) -> None:
    now = 1_735_700_000_000
    shown = now - rng.integers(-1000, 9 * DAY_MS, 40) // rng.integers(1, 10_000, 40)
    shown[:2] = -1, now
    out.add("since/at", shown)
    out.add("since/expected", since_watched(now, shown, np.zeros(40, np.float32)))
    numbers = 500 - rng.integers(-3, 1500, 40)
    out.add("behind/at", numbers)
    out.add("behind/expected", videos_behind(500, numbers, np.zeros(40, np.float32)))
    out.lines += [f"since {now}", "behind 500"]


def _best(out: Vectors, rng: Rng) -> None:
    """NextOne among the allowed: the first of the highest values. Halves, so that many tie."""
    values = (rng.integers(0, 4, (20, 9)) / 2).astype(np.float32)
    allowed = rng.random((20, 9)) < 0.7
    allowed[:, 4] = True
    out.add("best/values", values)
    out.add("best/allowed", allowed)
    out.add("best/expected", np.where(allowed, values, -np.inf).argmax(axis=1))
    out.lines.append("best 20")


def _beam(out: Vectors, rng: Rng, number: int) -> None:
    """A search whose rewards depend on what is placed: base[j] + Σ pair[i, j]; quarters, so that many tie."""
    m = int(rng.integers(1, 9))
    base = rng.integers(-2, 9, m) / 4
    pair = rng.integers(-2, 3, (m, m)) / 4
    survive = rng.uniform(0.2, 1.0, m)
    first = rng.random(m) < 0.7
    first[int(rng.integers(m))] = True
    plan = BeamPlan(int(rng.integers(1, 5)), int(rng.integers(1, 6)), float(rng.choice([0.0, 0.6, 0.95, 1.0])))

    def expand(lists: Sequence[tuple[int, ...]]) -> tuple[NDArray[Any], NDArray[Any]]:
        values = np.stack([base + sum((pair[i] for i in items), np.zeros(m)) for items in lists])
        return values, np.stack([survive * 0.9 ** len(items) for items in lists])

    found = beam_search(expand, m, plan, allowed=first)
    prefix = f"beam/{number}"
    for name, array in (("base", base), ("pair", pair), ("survive", survive), ("first", first)):
        out.add(f"{prefix}/{name}", array)
    out.add(f"{prefix}/items", np.array(found.items))
    out.add(f"{prefix}/result", np.array([found.reward, found.stability]))
    out.lines.append(f"beam {number} {plan.beams} {plan.depth} {plan.stability} {found.ended}")
