"""The KuaiRand reader on small files in the official layout, on broken ones, and on the real subset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import EventError
from contract.vocabulary import MISSING_KEY
from training.readers import LogData, open_data, read_kuairand, read_kuairand_history

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
MINUTE = 60_000
T0 = 1_650_812_741_436


def log_row(user=1, video=7, time_ms=T0, hourmin=2300, like=0, play=5000, duration=20_000, long_view=0, tab=1) -> str:
    return f"{user},{video},20220425,{hourmin},{time_ms},1,{like},0,0,0,0,{long_view},{play},{duration},0,250,1,0,{tab}"


def user_row(user: int, degree: str, register_days: int) -> str:
    return f'{user},{degree},0,1,1,514,500+,150,"[100,1k)",34,"[30,60)",{register_days},730+' + ",0" * 18


USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
VIDEOS = [
    "7,900,NORMAL,2022-04-10,Web,0.0,20000.0,720.0,1280.0,5,9.0,39",
    '8,901,NORMAL,2022-04-24,Web,0.0,,720.0,1280.0,5,9.0,"20,43,7,99"',
    "9,902,AD,2022-04-25,Web,0.0,9000.0,720.0,1280.0,5,,",
]


def write(folder: Path, name: str, header: str, rows: list[str]) -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def make_folder(folder: Path, logs: dict[str, list[str]], suffix: str = "pure") -> Path:
    for name, rows in logs.items():
        write(folder, name, LOG_HEADER, rows)
    write(
        folder,
        f"user_features_{suffix}.csv",
        USER_HEADER,
        [user_row(1, "full_active", 799), user_row(2, "UNKNOWN", -5), user_row(3, "day_new", 0)],
    )
    write(folder, f"video_features_basic_{suffix}.csv", VIDEO_HEADER, VIDEOS)
    return folder


def read(folder: Path, *rows: str) -> LogData:
    return read_kuairand(make_folder(folder, {"log_standard_4_25_to_4_30_pure.csv": list(rows)}))


def test_every_column_lands_where_it_belongs(tmp_path) -> None:
    events = read(tmp_path, log_row(like=1, long_view=1, play=21_000, tab=4)).events
    one = {name: values[0] for name, values in events.columns.items()}
    assert (one["user_id"], one["video_id"], one["time_ms"], one["hour"], one["tab"]) == (1, 7, T0, 23, 4)
    assert (one["click"], one["like"], one["long_view"], one["finish"], one["profile_enter"]) == (1, 1, 1, 1, 1)
    assert (one["follow"], one["comment"], one["forward"], one["hate"], one["is_rand"]) == (0, 0, 0, 0, 0)
    assert (one["play_time_ms"], one["duration_ms"], one["known_at_ms"]) == (21_000, 20_000, T0 + 21_000)
    assert (one["profile_stay_ms"], one["comment_stay_ms"]) == (0, 250)
    assert (one["author_id"], one["tags"].tolist()) == (900, [39, int(MISSING_KEY), int(MISSING_KEY)])
    assert (one["user_activity"], one["user_register_days"]) == (7, 799)
    assert one["upload_age_days"] == 14  # 04-24 23:05 in UTC+8, uploaded on 04-10
    for name in ("has_next", "candidate_index", "network", "buffered_ms", "server_position"):
        assert one[name] == -1, f"the log does not tell {name}"


def test_unknown_classes_tags_and_durations_are_null(tmp_path) -> None:
    data = read(tmp_path, log_row(user=2, video=8, duration=0), log_row(user=3, video=9), log_row(user=5, video=55))
    assert data.users.activity.tolist() == [7, -1, 0]
    assert data.users.register_days.tolist() == [799, -1, 0]
    assert data.items.tags[1].tolist() == [20, 43, 7], "the first TAGS_MAX, in the log's order"
    assert (data.items.tags[2] == MISSING_KEY).all()
    by_user = data.events
    assert by_user["duration_ms"].tolist() == [-1, 20_000, 20_000]
    assert by_user["finish"].tolist() == [-1, 0, 0], "no duration, no finish"
    assert by_user["author_id"].tolist()[:2] == [901, 902]
    assert by_user["author_id"][2] == MISSING_KEY, "not in the catalogue"
    assert by_user["user_activity"].tolist() == [-1, 0, -1]
    assert by_user["upload_age_days"].tolist() == [0, 0, -1]


def test_a_duration_only_the_log_tells_goes_into_the_catalogue(tmp_path) -> None:
    data = read(tmp_path, log_row(video=8, duration=33_000))
    assert data.items.duration_ms.tolist() == [20_000, 33_000, 9_000]


def test_empty_cells_are_null_not_zero(tmp_path) -> None:
    row = log_row().split(",")
    for place in (6, 12, 14, 18):
        row[place] = ""
    events = read(tmp_path, ",".join(row)).events
    assert [events[n][0] for n in ("like", "play_time_ms", "profile_stay_ms", "tab")] == [-1, -1, -1, -1]
    assert [events[n][0] for n in ("finish", "known_at_ms")] == [-1, -1]


def test_rows_are_sorted_stably_and_copies_kept(tmp_path) -> None:
    rows = [
        log_row(user=2, time_ms=T0 + 5),
        log_row(time_ms=T0 + 9),
        log_row(video=9, time_ms=T0),
        log_row(video=8, time_ms=T0),
    ]
    rows.append(rows[-1])
    events = read(tmp_path, *rows).events
    assert events["user_id"].tolist() == [1, 1, 1, 1, 2]
    assert events["video_id"].tolist() == [9, 8, 8, 7, 7]


def test_sessions_are_cut_at_gaps_over_half_an_hour(tmp_path) -> None:
    times = [T0, T0 + 30 * MINUTE, T0 + 60 * MINUTE + 1, T0 + 61 * MINUTE]
    events = read(tmp_path, *[log_row(time_ms=t) for t in times], log_row(user=2, time_ms=T0)).events
    assert events["seq"].tolist() == [0, 1, 0, 1, 0]
    ids = events["session_id"].tolist()
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("suffix", ["pure", "1k", "27k"])
def test_all_official_log_files_are_read(tmp_path, suffix) -> None:
    logs = {
        f"log_standard_4_08_to_4_21_{suffix}.csv": [log_row(time_ms=T0)],
        f"log_standard_4_22_to_5_08_{suffix}_part1.csv": [log_row(time_ms=T0 + 1)],
        f"log_random_4_22_to_5_08_{suffix}.csv": [log_row(time_ms=T0 + 2).replace(",0,1", ",1,1")],
    }
    (tmp_path / f"video_features_statistic_{suffix}.csv").write_text("never,read\n")
    folder = make_folder(tmp_path, logs, suffix)
    assert len(read_kuairand(folder).events) == 3
    one = read_kuairand(folder / f"log_standard_4_08_to_4_21_{suffix}.csv")
    assert len(one.events) == 1


def test_a_log_may_lie_apart_from_the_features(tmp_path) -> None:
    (tmp_path / "days").mkdir()
    (tmp_path / "features").mkdir()
    log = write(tmp_path / "days", "log_standard_5_01_to_5_08_pure.csv", LOG_HEADER, [log_row()])
    features = make_folder(tmp_path / "features", {})
    assert read_kuairand(log, features=features).events["author_id"][0] == 900


def test_a_log_without_rows_is_empty(tmp_path) -> None:
    data = read(tmp_path)
    assert len(data.events) == 0
    assert len(data.items) == 3


def test_many_batches_equal_one(tmp_path, monkeypatch) -> None:
    rows = [log_row(user=u % 3 + 1, time_ms=T0 + u * 1000, tab=u % 5) for u in range(400)]
    folder = make_folder(tmp_path, {"log_standard_4_25_to_4_30_pure.csv": rows})
    whole = read_kuairand(folder).events
    monkeypatch.setattr("training.readers.tables.BLOCK_BYTES", 2_000)
    parts = read_kuairand(folder).events
    for name in ("time_ms", "tab", "session_id", "seq"):
        np.testing.assert_array_equal(whole[name], parts[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("is_like,", ""), "is_like"),
        (lambda t: t[: t.rindex(",0,")], "whole"),
        (lambda t: t.replace(",20000,", ",long,"), "long"),
        (lambda t: t.replace(",20000,", ",99999999999,"), "duration_ms"),
        (lambda t: t.replace("1,7,", "-4,7,"), "user_id"),
        (lambda t: t.replace(",2300,", ",9900,"), "hourmin"),
        (lambda t: t.replace(",1,0,0,0,0,0,0,5000", ",1,2,0,0,0,0,0,5000"), "is_like"),
        (lambda t: t.replace("1,7,", ",7,"), "user_id"),
        (lambda t: "", "absent"),
        (lambda t: "\x00\xff" + t, "absent"),
    ],
)
def test_broken_logs_say_what_is_wrong(tmp_path, change, message) -> None:
    folder = make_folder(tmp_path, {"log_standard_4_25_to_4_30_pure.csv": [log_row()]})
    path = folder / "log_standard_4_25_to_4_30_pure.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(EventError, match=message) as error:
        read_kuairand(folder)
    assert path.name in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2022-04-10", "10/04/2022", "upload_dt"),
        (",39", ",news", "tag"),
        ("20000.0", "nan", "video_duration|range"),
        ("7,900", "8,900", "twice"),
    ],
)
def test_broken_video_features_say_what_is_wrong(tmp_path, old, new, message) -> None:
    folder = make_folder(tmp_path, {"log_standard_4_25_to_4_30_pure.csv": [log_row()]})
    path = folder / "video_features_basic_pure.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    if new == "nan":
        assert read_kuairand(folder).items.duration_ms[0] == 20_000, "null, then told by the log"
        return
    with pytest.raises(EventError, match=message):
        read_kuairand(folder)


def test_absent_files_are_named(tmp_path) -> None:
    with pytest.raises(EventError, match="no such"):
        read_kuairand(tmp_path / "nowhere")
    with pytest.raises(EventError, match="log_"):
        read_kuairand(tmp_path)
    write(tmp_path, "log_standard_4_25_to_4_30_pure.csv", LOG_HEADER, [log_row()])
    with pytest.raises(EventError, match="user_features"):
        read_kuairand(tmp_path)


def write_history(folder: Path, **changes) -> Path:
    columns = {
        "user_id": [2, 1, 1],
        "position": [0, 1, 0],
        "video_id": [9, 8, 7],
        "long_view": [0, 1, 0],
        "is_like": [0, 0, 1],
    }
    path = folder / "train_history_to_4_24.parquet"
    pq.write_table(pa.table(columns | changes), path)
    return path


def test_history_has_no_times_and_only_two_signals(tmp_path) -> None:
    events = read_kuairand_history(write_history(tmp_path))
    assert events["video_id"].tolist() == [7, 8, 9]
    assert events["like"].tolist() == [1, 0, 0]
    assert events["long_view"].tolist() == [0, 1, 0]
    for name in ("time_ms", "click", "follow", "play_time_ms", "finish", "hour"):
        assert (events[name] == -1).all(), name


def test_history_comes_before_the_log_of_each_user(tmp_path) -> None:
    folder = make_folder(tmp_path, {"log_standard_4_25_to_4_30_pure.csv": [log_row(video=9), log_row(user=2, video=7)]})
    write_history(folder)
    events = read_kuairand(folder, history=True).events
    assert events["user_id"].tolist() == [1, 1, 1, 2, 2]
    assert events["video_id"].tolist() == [7, 8, 9, 9, 7]
    assert events["time_ms"].tolist() == [-1, -1, T0, -1, T0]
    assert events["author_id"].tolist() == [900, 901, 902, 902, 900]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long_view": [0, 2, 0]}, "long_view"),
        ({"video_id": ["a", "b", "c"]}, "video_id"),
        ({"is_like": [0, None, 0]}, "nulls"),
    ],
)
def test_broken_history_says_what_is_wrong(tmp_path, changes, message) -> None:
    with pytest.raises(EventError, match=message):
        read_kuairand_history(write_history(tmp_path, **changes))


@pytest.mark.realdata
def test_the_real_subset_has_the_counts_of_its_readme(data_dir) -> None:
    data = read_kuairand(data_dir / "kuairand-pure")
    events = data.events
    assert (len(events), len(data.items), len(data.users)) == (94_784, 7_583, 27_285)
    assert len(np.unique(events["session_id"])) == 78_642
    assert np.bincount(np.unique(events["session_id"], return_inverse=True)[1]).max() < 60
    assert events["long_view"].mean() == pytest.approx(0.3073, abs=1e-4)
    long_view = events["play_time_ms"] >= np.minimum(events["duration_ms"], 18_000)
    known = events["duration_ms"] > 0
    assert (long_view[known] == events["long_view"][known]).mean() > 0.99, "the simulator's definition"
    assert (data.items.index_of(events["video_id"]) >= 0).all()
    assert (data.items.duration_ms < 0).sum() == 239


@pytest.mark.realdata
def test_a_folder_is_opened_with_its_history(data_dir) -> None:
    data = open_data(f"kuairand:{data_dir / 'kuairand-pure'}")
    assert isinstance(data, LogData)
    assert len(data.events) == 94_784 + 817_187


@pytest.mark.realdata
def test_the_real_history_has_the_counts_of_its_readme(data_dir) -> None:
    events = read_kuairand_history(data_dir / "kuairand-pure" / "train_history_to_4_24.parquet")
    assert len(events) == 817_187
    assert np.unique(events["user_id"], return_counts=True)[1].max() == 50
    assert (np.diff(events["user_id"].astype(np.int64)) >= 0).all()
