"""The feature functions: one per feature, batched, the same in training, on the server and on the phone.

Raw columns (n entries; any leading batch is flattened by the caller):
    video_id, author_id, user_id  uint64 [n]     MISSING_KEY = null
    tags                          uint64 [n, TAGS_MAX], padded with MISSING_KEY
    duration_ms, play_time_ms, upload_age_days, server_position, …   ints [n], -1 = null
    pxtr                          float32 [n, X] probabilities, NaN = null
    signals                       int8 [n, len(SIGNALS)], -1 = null
    start                         bool [n]       the learned start token of a watched list

Key functions give uint64 [n, max_len]; dense functions write float32 [n, width] into `out` (zeroed by the caller).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import buckets
from contract.errors import SpecError
from contract.spec import FeatureSpec
from contract.vocabulary import DECODERS, MISSING_KEY, NETWORKS, PXTR_HEADS, SIGNALS, X_PXTR

Columns = Mapping[str, NDArray[Any]]
Keys = NDArray[np.uint64]
Floats = NDArray[np.float32]

LOGIT_CLIP = 8.0
BUFFERED_CAP_MS = 10_000
STAY_CAP_MS = 60_000
RANK_CAP = 64
SIGNAL_OF_HEAD = np.array([SIGNALS.index(head) for head in PXTR_HEADS])  # the signal that each pXTR head predicts


def keys_of_column(name: str) -> Callable[[Columns], Keys]:
    """An id column as it stands: [n] -> [n, 1], [n, M] -> [n, M]."""

    def keys(columns: Columns) -> Keys:
        column = columns[name].astype(np.uint64, copy=False)
        return column[:, None] if column.ndim == 1 else column

    return keys


def _bucket_keys(buckets_n: NDArray[Any]) -> Keys:
    return np.where(buckets_n < 0, MISSING_KEY, buckets_n.astype(np.uint64))[:, None]


def duration_keys(columns: Columns) -> Keys:
    """1000 equal-width duration buckets (KuaiFormer Eq. 4)."""
    return _bucket_keys(buckets.duration_bucket_1000(columns["duration_ms"]))


def gap_keys(columns: Columns) -> Keys:
    return _bucket_keys(buckets.bounded_bucket(columns["gap_ms"], buckets.GAP_BOUNDS_MS))


def play_ratio_keys(columns: Columns) -> Keys:
    return _bucket_keys(buckets.play_ratio_bucket(columns["play_time_ms"], columns["duration_ms"]))


def _within(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """np.clip, which costs ten times as much on a few entries."""
    found: NDArray[Any] = np.minimum(np.maximum(values, low), high)
    return found


def _one_hot(index_n: NDArray[Any], out: Floats) -> None:
    """Null (-1) leaves the row all zero, its last bucket too; an index past the width is the last bucket."""
    out[np.arange(len(out)), np.minimum(index_n, out.shape[1] - 1)] = index_n >= 0


def one_hot_of(name: str, bounds: NDArray[np.int64] | None = None) -> Callable[[Columns, Floats], None]:
    """One-hot of an integer column, bucketed by upper bounds where given."""

    def dense(columns: Columns, out: Floats) -> None:
        column = columns[name]
        _one_hot(column if bounds is None else buckets.bounded_bucket(column, bounds), out)

    return dense


def known_one_hot_of(name: str) -> Callable[[Columns, Floats], None]:
    """One-hot of a closed set whose index 0 is "unknown": unknown feeds no weight, since logs seldom hold it."""

    def dense(columns: Columns, out: Floats) -> None:
        column = columns[name]
        _one_hot(np.where(column == 0, -1, column), out)

    return dense


def play_ratio_one_hot(columns: Columns, out: Floats) -> None:
    _one_hot(buckets.play_ratio_bucket(columns["play_time_ms"], columns["duration_ms"]), out)


def pxtr_logits(columns: Columns, out: Floats) -> None:
    """Clipped logits, then presence bits: [n, 2X]. The net standardises them with constants of its own."""
    pxtr_nX = columns["pxtr"]
    present_nX = ~np.isnan(pxtr_nX)
    p_nX = _within(np.where(present_nX, pxtr_nX, 0.5), 1e-6, 1 - 1e-6)
    out[:, :X_PXTR] = _within(np.log(p_nX) - np.log1p(-p_nX), -LOGIT_CLIP, LOGIT_CLIP)
    out[:, X_PXTR:] = present_nX


def signal_flags(columns: Columns, out: Floats) -> None:
    """Value (0/1, 0 when null) and presence of each feedback signal: [n, 2 * len(SIGNALS)]."""
    signals_nS = columns["signals"]
    out[:, : len(SIGNALS)] = signals_nS == 1
    out[:, len(SIGNALS) :] = signals_nS >= 0


def pxtr_surprise(columns: Columns, out: Floats) -> None:
    """What came minus what the server expected, signal - pXTR of each head, 0 where either is null: [n, X].

    The crossing of the watched video's own prediction with its feedback (CIKM 2022 section 4.3; talk of 2021).
    """
    signals_nX = columns["signals"][:, SIGNAL_OF_HEAD]
    known_nX = ~np.isnan(columns["pxtr"]) & (signals_nX >= 0)
    out[...] = np.where(known_nX, signals_nX - np.where(known_nX, columns["pxtr"], 0), 0)


def stays(columns: Columns, out: Floats) -> None:
    """Time on the author's page and in the comments, as `capped_share`: [n, 4]."""
    for i, name in enumerate(("profile_stay_ms", "comment_stay_ms")):
        capped_share(name, STAY_CAP_MS)(columns, out[:, 2 * i : 2 * i + 2])


def posture(columns: Columns, out: Floats) -> None:
    """Volume 0 … 1 and landscape 0 / 1, each with a presence bit: [n, 4]."""
    volume_n, landscape_n = columns["volume"], columns["landscape"]
    known_n = ~np.isnan(volume_n)
    out[:, 0] = np.where(known_n, _within(np.where(known_n, volume_n, 0), 0, 1), 0)
    out[:, 1] = known_n
    out[:, 2] = landscape_n == 1
    out[:, 3] = landscape_n >= 0


def profile(columns: Columns, out: Floats) -> None:
    """The user's statistics as of the page: value and presence of each rate, then how much history there is: [n, 7].

    Raw column user_profile float32 [n, P], NaN = nothing observed (`contract.user_profile.PROFILE`).
    """
    known_nP = ~np.isnan(columns["user_profile"])
    value_nP = np.where(known_nP, columns["user_profile"], 0)
    out[:, 0:6:2], out[:, 1:6:2], out[:, 6] = value_nP[:, :3], known_nP[:, :3], value_nP[:, 3]


def start_flag(columns: Columns, out: Floats) -> None:
    """1 for the start token alone; its weight column is the learned start token."""
    out[:, 0] = columns["start"]


def capped_share(name: str, cap: int) -> Callable[[Columns, Floats], None]:
    """value / cap within [0, 1] and a presence bit: [n, 2]. Both 0 when null."""

    def dense(columns: Columns, out: Floats) -> None:
        column = columns[name]
        known = column >= 0
        out[:, 0] = np.where(known, _within(column, 0, cap) / np.float32(cap), 0)
        out[:, 1] = known

    return dense


KEY_FEATURES: dict[str, Callable[[Columns], Keys]] = {
    "video_id": keys_of_column("video_id"),
    "author_id": keys_of_column("author_id"),
    "tags": keys_of_column("tags"),
    "music_id": keys_of_column("music_id"),
    "kind": keys_of_column("kind"),
    "user_id": keys_of_column("user_id"),
    "recent_authors": keys_of_column("recent_authors"),
    "duration_1000": duration_keys,
    "gap_bucket": gap_keys,
    "play_ratio_bucket": play_ratio_keys,
}

DENSE_FEATURES: dict[str, Callable[[Columns, Floats], None]] = {
    "start": start_flag,
    "pxtr": pxtr_logits,
    "signals": signal_flags,
    "surprise": pxtr_surprise,
    "play_ratio": play_ratio_one_hot,
    "watch_time": one_hot_of("play_time_ms", buckets.WATCH_BOUNDS_MS),
    "stays": stays,
    "posture": posture,
    "duration": one_hot_of("duration_ms", buckets.DURATION_BOUNDS_MS),
    "gap": one_hot_of("gap_ms", buckets.GAP_BOUNDS_MS),
    "upload_age": one_hot_of("upload_age_days", buckets.AGE_BOUNDS_DAYS),
    "server_position": capped_share("server_position", RANK_CAP),
    "user_activity": one_hot_of("user_activity"),
    "user_register": one_hot_of("user_register_days", buckets.REGISTER_BOUNDS_DAYS),
    "profile": profile,
    "hour": one_hot_of("hour"),
    "tab": one_hot_of("tab"),
    "network": known_one_hot_of("network"),
    "decoder": known_one_hot_of("decoder"),
    "swipe_index": one_hot_of("swipe_index", buckets.INDEX_BOUNDS),
    "buffered": capped_share("buffered_ms", BUFFERED_CAP_MS),
}

# Width of each dense feature's columns where the function fixes it.
DENSE_WIDTHS = {
    "start": 1,
    "pxtr": 2 * X_PXTR,
    "signals": 2 * len(SIGNALS),
    "surprise": X_PXTR,
    "play_ratio": 11,
    "watch_time": len(buckets.WATCH_BOUNDS_MS) + 1,
    "stays": 4,
    "posture": 4,
    "duration": len(buckets.DURATION_BOUNDS_MS) + 1,
    "gap": len(buckets.GAP_BOUNDS_MS) + 1,
    "upload_age": len(buckets.AGE_BOUNDS_DAYS) + 1,
    "server_position": 2,
    "user_activity": 8,
    "user_register": len(buckets.REGISTER_BOUNDS_DAYS) + 1,
    "profile": 7,
    "hour": 24,
    "tab": 16,
    "network": len(NETWORKS),
    "decoder": len(DECODERS),
    "swipe_index": len(buckets.INDEX_BOUNDS) + 1,
    "buffered": 2,
}


def dense_block(spec: FeatureSpec, block: str, columns: Columns, out: Floats) -> Floats:
    """Fill a dense block. out: float32 [n, spec.width(block)], overwritten; returned for convenience."""
    if out.shape[-1] != spec.width(block):
        raise SpecError(f"block '{block}': wrong width", got=out.shape, allowed=spec.width(block))
    out[...] = 0.0
    for column in spec.columns(block):
        DENSE_FEATURES[column.field.feature](columns, out[:, column.slice])
    return out


def block_keys(spec: FeatureSpec, block: str, columns: Columns) -> dict[str, Keys]:
    """Keys of a served block: field name -> uint64 [n, max_len], MISSING_KEY where there is none."""
    found = {}
    for column in spec.columns(block):
        field = column.field
        keys = KEY_FEATURES[field.feature](columns)[:, : field.max_len]
        if keys.shape[1] < field.max_len:
            pad = np.full((len(keys), field.max_len - keys.shape[1]), MISSING_KEY)
            keys = np.concatenate([keys, pad], axis=1)
        found[field.name] = keys
    return found


def pool_rows(
    spec: FeatureSpec,
    block: str,
    tables: Mapping[str, Floats],
    slots: Mapping[str, NDArray[np.integer]],
    out: Floats,
) -> Floats:
    """Fill a served block from decoded rows. `slots[field]`: int [n, max_len] into `tables[table]`, -1 = no entry.

    A field without any entry takes row 0, the table's default row; several entries are averaged.
    """
    for column in spec.columns(block):
        pool_column(tables[column.field.table], slots[column.field.name], out[:, column.slice])
    return out


def pool_column(rows: Floats, slot_nM: NDArray[np.integer], out: Floats) -> None:
    """One field of `pool_rows`: rows [R, D] of its table, out [n, D]."""
    if slot_nM.shape[1] == 1:
        rows.take(np.maximum(slot_nM[:, 0], 0), axis=0, out=out, mode="clip")
        return
    present_nM = slot_nM >= 0
    present_nM[:, 0] |= ~present_nM.any(axis=1)
    total_nD = (rows[np.maximum(slot_nM, 0)] * present_nM[:, :, None]).sum(axis=1)
    np.divide(total_nD, present_nM.sum(axis=1, keepdims=True), out=out, casting="same_kind")


SINCE_CAP_S, SINCE_DIVISOR = 7 * 24 * 3600, 8.0


def since_watched(now_ms: int, shown_at_ms: NDArray[np.int64], out: Floats) -> Floats:
    """log1p(seconds since each watched video was shown) / 8, 0 for nulls and the start token: out float32 [n].

    Now-relative, so it enters at the swipe as an additive attention bias, never as part of a frozen token.
    """
    return _age(now_ms, shown_at_ms, 1000.0, SINCE_CAP_S, SINCE_DIVISOR, out)


BEHIND_CAP, BEHIND_DIVISOR = 1_000, 4.0


def videos_behind(number_now: int, number: NDArray[np.int64], out: Floats) -> Floats:
    """log1p(videos shown since each watched one) / 4, 0 for nulls and the start token: out float32 [n].

    number: the user's running number of each watched impression, number_now of the one being chosen. The difference of
    impression positions (KIR, CIKM 2022, section 4.3); like `since_watched` it enters as an attention bias.
    """
    return _age(number_now, number, 1.0, BEHIND_CAP, BEHIND_DIVISOR, out)


def _age(now: int, at: NDArray[np.int64], unit: float, cap: float, divisor: float, out: Floats) -> Floats:
    """log1p of (now - at) / unit, kept to 0 … cap, over the divisor; 0 where `at` is null. In place: a swipe waits."""
    ages = np.subtract(now, at, dtype=np.float64)
    ages /= unit
    np.maximum(ages, 0.0, out=ages)
    np.minimum(ages, cap, out=ages)
    np.log1p(ages, out=ages)
    ages /= divisor
    ages *= at >= 0
    out[...] = ages
    return out
