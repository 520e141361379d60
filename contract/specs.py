"""The specs that ship: KIR on the phone, the server ranker, KuaiFormer. All are data; `--spec FILE` takes others."""

from __future__ import annotations

from contract.features import DENSE_WIDTHS
from contract.spec import FeatureSpec, Field
from contract.user_profile import AUTHORS_MAX
from contract.vocabulary import TAGS_MAX

_MAX_LEN = {"tags": TAGS_MAX, "recent_authors": AUTHORS_MAX}


def _served(name: str, feature: str, block: str, group: str, known: str, table: str, width: int) -> Field:
    max_len = _MAX_LEN.get(feature, 1)
    return Field(name, feature, block, group, known, "served", width, table=table, max_len=max_len)


def _dense(name: str, feature: str, block: str, group: str, known: str) -> Field:
    return Field(name, feature, block, group, known, "dense", DENSE_WIDTHS[feature])


def kir_spec(video: int = 16, author: int = 8, tag: int = 8, user: int = 16) -> FeatureSpec:
    """The reranker's features, all five groups (CIKM 2022 Table 1; 2020 talk). Arguments: row widths of the tables."""
    return FeatureSpec(
        "kir",
        (
            _served("user_id", "user_id", "user_rows", "user", "page", "user", user),
            _served("user_authors", "recent_authors", "user_rows", "user", "page", "author", author),
            _dense("user_activity", "user_activity", "user_dense", "user", "page"),
            _dense("user_register", "user_register", "user_dense", "user", "page"),
            _dense("user_profile", "profile", "user_dense", "user", "page"),
            _dense("hour", "hour", "user_dense", "user", "page"),
            _served("video_id", "video_id", "candidate_rows", "video", "page", "video", video),
            _served("author_id", "author_id", "candidate_rows", "video", "page", "author", author),
            _served("tags", "tags", "candidate_rows", "video", "page", "tag", tag),
            _dense("duration", "duration", "candidate_dense", "video", "page"),
            _dense("upload_age", "upload_age", "candidate_dense", "video", "page"),
            _dense("server_position", "server_position", "candidate_dense", "server", "page"),
            _dense("pxtr", "pxtr", "candidate_dense", "server", "page"),
            _served("watched_video_id", "video_id", "watched_rows", "video", "watch", "video", video),
            _served("watched_author_id", "author_id", "watched_rows", "video", "watch", "author", author),
            _served("watched_tags", "tags", "watched_rows", "video", "watch", "tag", tag),
            _dense("start", "start", "watched_dense", "feedback", "watch"),
            _dense("watched_duration", "duration", "watched_dense", "video", "watch"),
            _dense("play_ratio", "play_ratio", "watched_dense", "feedback", "watch"),
            _dense("watch_time", "watch_time", "watched_dense", "feedback", "watch"),
            _dense("signals", "signals", "watched_dense", "feedback", "watch"),
            _dense("stays", "stays", "watched_dense", "feedback", "watch"),
            _dense("posture", "posture", "watched_dense", "feedback", "watch"),
            _dense("gap", "gap", "watched_dense", "feedback", "watch"),
            _dense("watched_pxtr", "pxtr", "watched_dense", "server", "watch"),
            _dense("surprise", "surprise", "watched_dense", "server", "watch"),
            _dense("network", "network", "swipe_dense", "device", "swipe"),
            _dense("decoder", "decoder", "swipe_dense", "device", "swipe"),
            _dense("swipe_index", "swipe_index", "swipe_dense", "device", "swipe"),
            _dense("buffered", "buffered", "candidate_swipe", "device", "swipe"),
        ),
    )


def ranker_spec(width: int = 16) -> FeatureSpec:
    """The server ranker: user, candidate, and the user's last impressions with what came of them."""
    return FeatureSpec(
        "ranker",
        (
            _served("user_id", "user_id", "user_rows", "user", "page", "user", width),
            _dense("user_activity", "user_activity", "user_dense", "user", "page"),
            _dense("user_register", "user_register", "user_dense", "user", "page"),
            _dense("hour", "hour", "user_dense", "user", "page"),
            _dense("tab", "tab", "user_dense", "user", "page"),
            _served("video_id", "video_id", "candidate_rows", "video", "page", "video", width),
            _served("author_id", "author_id", "candidate_rows", "video", "page", "author", width),
            _served("tags", "tags", "candidate_rows", "video", "page", "tag", width),
            _served("music_id", "music_id", "candidate_rows", "video", "page", "music", width),
            _served("kind", "kind", "candidate_rows", "video", "page", "kind", width),
            _dense("duration", "duration", "candidate_dense", "video", "page"),
            _dense("upload_age", "upload_age", "candidate_dense", "video", "page"),
            _served("history_video_id", "video_id", "history_rows", "feedback", "page", "video", width),
            _served("history_author_id", "author_id", "history_rows", "feedback", "page", "author", width),
            _served("history_tags", "tags", "history_rows", "feedback", "page", "tag", width),
            _served("history_kind", "kind", "history_rows", "feedback", "page", "kind", width),
            _dense("history_duration", "duration", "history_dense", "feedback", "page"),
            _dense("history_signals", "signals", "history_dense", "feedback", "page"),
            _dense("history_play", "play_ratio", "history_dense", "feedback", "page"),
        ),
    )


def kuaiformer_spec(video: int = 64, attribute: int = 16, recent: bool = False) -> FeatureSpec:
    """KuaiFormer's embedding module: discrete attributes and bucketed continuous ones, a table each (section 2.2.1).

    recent: one number an item besides, the prior of training/recency.py (not of the paper).
    """
    prior = (_served("item_recent", "video_id", "item_rows", "video", "page", "recent", 1),) if recent else ()
    return FeatureSpec(
        "kuaiformer",
        (
            _served("history_video_id", "video_id", "history_rows", "video", "page", "video", video),
            _served("history_author_id", "author_id", "history_rows", "video", "page", "author", attribute),
            _served("history_tags", "tags", "history_rows", "video", "page", "tag", attribute),
            _served("history_duration", "duration_1000", "history_rows", "video", "page", "duration", attribute),
            _served("history_gap", "gap_bucket", "history_rows", "feedback", "page", "gap", attribute),
            _served("history_play", "play_ratio_bucket", "history_rows", "feedback", "page", "play_ratio", attribute),
            _served("item_video_id", "video_id", "item_rows", "video", "page", "video", video),
            _served("item_author_id", "author_id", "item_rows", "video", "page", "author", attribute),
            _served("item_tags", "tags", "item_rows", "video", "page", "tag", attribute),
            _served("item_duration", "duration_1000", "item_rows", "video", "page", "duration", attribute),
            *prior,
        ),
    )
