"""Training sees what the phone would have seen: windows against `WatchedList` step by step, and what must not leak."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract import features
from contract.errors import InputError
from contract.events import Events
from contract.specs import kir_spec
from contract.vocabulary import MISSING_KEY, SIGNALS, TASKS, WATCH_TIME_CAP_MS
from contract.watched import WATCHED_COLUMNS, WatchedList
from training.kir import Kir, KirConfig
from training.kir_data import Batches, View, coverage, prepare, pxtr_constants
from training.kir_targets import new_keys
from training.kir_train import KirTask, split_by_time
from training.kir_windows import first_revisions, in_order, replay
from training.tables import SparseTables

L = 6
SPEC = kir_spec()


def some_events(n: int = 160, users: int = 5, seed: int = 0, **columns) -> Events:
    """A log with everything that happens: overlapping plays, equal times, nulls, sessions, unsorted rows."""
    rng = np.random.default_rng(seed)
    user = rng.integers(users, size=n).astype(np.uint64)
    gaps = rng.choice([0, 3_000, 20_000, 3_000_000], size=n, p=[0.1, 0.5, 0.35, 0.05])
    time_ms = 1_700_000_000_000 + np.cumsum(gaps)
    pxtr = rng.uniform(0.01, 0.9, (n, 7)).astype(np.float32)
    pxtr[rng.random((n, 7)) < 0.1] = np.nan
    values = {
        "user_id": user,
        "video_id": rng.integers(40, size=n).astype(np.uint64),
        "author_id": rng.integers(9, size=n).astype(np.uint64),
        "tags": np.where(rng.random((n, 3)) < 0.6, rng.integers(6, size=(n, 3)).astype(np.uint64), MISSING_KEY),
        "time_ms": time_ms,
        "session_id": (time_ms // 600_000).astype(np.uint64) * np.uint64(10) + user,
        "play_time_ms": rng.choice([500, 4_000, 15_000, 60_000], size=n),
        "duration_ms": rng.choice([-1, 7_000, 30_000], size=n),
        "pxtr": pxtr,
        "position": rng.integers(0, 30, size=n),
        "network": rng.integers(-1, 6, size=n),
        "buffered_ms": rng.integers(0, 9000, size=n),
        "server_position": rng.integers(0, 24, size=n),
        "has_next": rng.integers(-1, 2, size=n),
        "hour": rng.integers(24, size=n),
        "user_activity": rng.integers(8, size=n),
        "user_register_days": rng.integers(400, size=n),
        "upload_age_days": rng.integers(400, size=n),
        **{name: rng.integers(-1, 2, size=n) for name in SIGNALS},
        **columns,
    }
    order = rng.permutation(n)
    return Events({name: np.asarray(value)[order] for name, value in values.items()})


def make_batches(events: Events, capacity: int = L, **options) -> Batches:
    data = prepare(events, capacity)
    everything = np.ones(len(data), bool)
    tables = SparseTables.from_spec_and_keys(SPEC, new_keys(SPEC, data, everything), seed=1)
    return Batches(data, SPEC, tables, everything, **options)


def tables_of(batches: Batches) -> SparseTables:
    return SparseTables.from_spec_and_keys(
        SPEC, new_keys(SPEC, batches.data, np.ones(len(batches.data), bool)), seed=1
    ).eval()


def phone_states(events: Events, capacity: int):
    """(event, raw columns of the watched list at its choice) of sorted events, from a `WatchedList` per user."""
    for user in np.unique(events["user_id"]):
        watched, pending = WatchedList(capacity), []
        for i in np.flatnonzero(events["user_id"] == user):
            now = int(events["time_ms"][i])
            while pending:
                j = pending[0]
                time_ms, play_ms = int(events["time_ms"][j]), max(int(events["play_time_ms"][j]), 0)
                known = now < 0 or time_ms < 0 or (time_ms < now and time_ms + play_ms <= now)
                if not known:
                    break
                watched.evict_if_full()
                item = {name: events[name][j] for name in WATCHED_COLUMNS if name in events.columns}
                item |= {"signals": events.signals[j], "shown_at_ms": time_ms, "number": j}
                watched.append(item)
                pending.pop(0)
            yield int(i), {name: column.copy() for name, column in watched.columns().items()}
            watched.evict_if_full()
            pending.append(i)


@pytest.mark.parametrize("seed", range(3))
def test_batched_tensors_equal_the_phones(seed):
    """Every tensor of a swipe: built one row at a time from a stepped WatchedList, and read out of a batch."""
    batches = make_batches(some_events(seed=seed), windows=5)
    data, tables = batches.data, tables_of(batches)
    rows_of = tables.numpy_rows()
    expected = dict(phone_states(data.events, L))
    seen = []
    for batch in batches.in_turn():
        rows = {block: tables.rows(SPEC, block, slots).detach().numpy() for block, slots in batch.slots.items()}
        for b, m in zip(*np.nonzero(batch.event >= 0), strict=True):
            event = int(batch.event[b, m])
            seen.append(event)
            state = expected[event]
            n = len(state["start"])
            assert (batch.blocks["visible"][b, m].numpy() == (np.arange(L + 1) < n)).all()
            for slot in range(n):
                one = {name: column[slot : slot + 1] for name, column in state.items()}
                dense = features.dense_block(
                    SPEC, "watched_dense", one, np.zeros((1, SPEC.width("watched_dense")), "f4")
                )
                np.testing.assert_array_equal(batch.blocks["watched_dense"][b, slot].numpy(), dense[0])
                slots = tables.field_slots(SPEC, "watched_rows", one)
                out = np.zeros((1, SPEC.width("watched_rows")), np.float32)
                features.pool_rows(SPEC, "watched_rows", rows_of, slots, out)
                np.testing.assert_allclose(rows["watched_rows"][b, slot], out[0], atol=1e-6)
            since = np.zeros(L + 1, np.float32)
            features.since_watched(int(data.events["time_ms"][event]), state["shown_at_ms"], since[:n])
            np.testing.assert_array_equal(batch.blocks["since"][b, m].numpy(), since)
            behind = np.zeros(L + 1, np.float32)
            features.videos_behind(int(data.columns["number"][event]), state["number"], behind[:n])
            np.testing.assert_array_equal(batch.blocks["behind"][b, m].numpy(), behind)
            for block in ("user_dense", "candidate_dense", "swipe_dense", "candidate_swipe"):
                one = {name: column[event : event + 1] for name, column in data.columns.items()}
                dense = features.dense_block(SPEC, block, one, np.zeros((1, SPEC.width(block)), np.float32))
                np.testing.assert_array_equal(batch.blocks[block][b, m].numpy(), dense[0])
    assert sorted(seen) == list(range(len(data))), "every impression is a target exactly once"
    assert max(len(state["start"]) for state in expected.values()) == L + 1, "the log must reach a full list"


@torch.no_grad()
def test_scores_of_a_batch_equal_those_of_each_window_alone():
    batches = make_batches(some_events(), windows=7)
    torch.manual_seed(0)
    task = KirTask(Kir(KirConfig.of("tiny", watched=L), SPEC), tables_of(batches)).eval()
    together = {}
    for batch in batches.in_turn():
        scores = task.scores(batch)
        together |= {int(e): scores[b, m] for b, m in np.ndindex(batch.event.shape) if (e := batch.event[b, m]) >= 0}
    for piece in batches.pieces[::3]:
        batch = batches.batch(piece[None], None)
        for m, event in enumerate(batch.event[0]):
            torch.testing.assert_close(task.scores(batch)[0, m], together[int(event)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("loud", [1.0, 20.0])
@torch.no_grad()
def test_feedback_that_was_not_known_changes_no_score(loud):
    """The probe of CONTRACTS section 6: other labels and signals from time t on, the same scores up to t.

    Also for a net whose logits climb over an additive −30: training would find that way (it did).
    """
    torch.manual_seed(0)
    net = Kir(KirConfig.of("tiny", watched=L), SPEC).eval()
    for block in net.blocks:
        block.q.weight.mul_(loud)
    for block in ("candidate_rows", "candidate_dense"):
        net.page_in[block].weight.mul_(loud)
    batches = make_batches(some_events())
    tables = tables_of(batches)
    events = batches.data.events
    cut = int(np.quantile(events["time_ms"], 0.6))
    done = events["time_ms"] + events["play_time_ms"]
    future = (events["time_ms"] >= cut) | (done > cut)
    flipped = events.with_columns(**{s: np.where(future, 1 - np.abs(events[s]), events[s]) for s in SIGNALS})
    found = []
    for log in (events, flipped):
        batches = Batches(prepare(log, L), SPEC, tables, np.ones(len(log), bool))
        task, scores = KirTask(net, tables).eval(), np.zeros((len(log), len(TASKS)))
        for batch in batches.in_turn():
            scores[batch.event[batch.event >= 0]] = task.scores(batch).numpy()[batch.event >= 0]
        found.append(scores)
    early = events["time_ms"] <= cut
    assert early.any()
    np.testing.assert_allclose(found[0][early], found[1][early], atol=1e-5)
    assert np.abs(found[0][~early] - found[1][~early]).max() > 1e-3, "the probe must be able to fail"


def test_placed_targets_take_the_state_of_an_earlier_choice():
    config = KirConfig.of("tiny", watched=L)
    batches = make_batches(some_events(n=400, users=3), windows=6, placed=config.placed)
    plain = {}
    for batch in batches.in_turn():
        for b, m in zip(*np.nonzero(batch.event >= 0), strict=True):
            plain[int(batch.event[b, m])] = {
                name: batch.blocks[name][b, m].numpy()
                for name in ("visible", "since", "behind", "swipe_dense", "candidate_dense")
            }
    session, moved, seen = batches.data.events["session_id"], 0, 0
    for batch in batches.epoch(0, seed=3):
        opened = (batch.blocks["placed"] == 1).numpy()
        for b, m in zip(*np.nonzero(batch.event >= 0), strict=True):
            event = int(batch.event[b, m])
            j = int(opened[b, m].sum())
            assert (np.flatnonzero(opened[b, m]) == np.arange(m - j, m)).all(), "the last j, in order"
            assert j <= config.placed
            assert (session[event - j : event + 1] == session[event]).all()
            for name in ("visible", "since", "behind", "swipe_dense"):
                np.testing.assert_array_equal(batch.blocks[name][b, m].numpy(), plain[event - j][name])
            np.testing.assert_array_equal(
                batch.blocks["candidate_dense"][b, m].numpy(), plain[event]["candidate_dense"]
            )
            moved, seen = moved + (j > 0), seen + 1
    assert seen == len(batches.data)
    assert 0.2 < moved / seen < 0.5, "half of the targets, less where the session has just begun"


def test_epochs_are_shuffled_and_repeatable():
    batches = make_batches(some_events(), windows=4, placed=2)
    first = [batch.event for batch in batches.epoch(0, seed=1)]
    again = [batch.event for batch in batches.epoch(0, seed=1)]
    other = [batch.event for batch in batches.epoch(1, seed=1)]
    assert len(first) == len(batches)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_windows_of_one_user():
    """0 … L seen in the first window, then L/2 + 1 … L in each."""
    n = 3 * L
    events = some_events(n, users=1, time_ms=np.arange(n) * 100_000 + 1)
    windows = replay(events.take(in_order(events)), L)
    half = L // 2
    assert windows.n_visible.tolist() == [*range(L + 1), *[*range(half + 1, L + 1)] * 4][:n]
    assert windows.token_WL[1, :half].tolist() == windows.token_WL[0, half:].tolist()
    assert windows.target_window.tolist() == sorted(windows.target_window.tolist())


def test_availability_where_times_are_equal_or_plays_overlap():
    events = Events(
        {
            "user_id": np.ones(5, np.uint64),
            "video_id": np.arange(5, dtype=np.uint64),
            "time_ms": [1000, 1000, 2000, 9000, 9500],
            "play_time_ms": [500, 500, 7500, 100, 100],
        }
    )
    # the two of time 1000 don't see each other; the third is still playing at 9000 and is done at 9500
    assert replay(events, L).n_visible.tolist() == [0, 0, 2, 2, 4]
    without_times = events.with_columns(time_ms=[-1] * 5)
    assert replay(without_times, L).n_visible.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="even"):
        replay(events, 5)


def test_order_keeps_rows_without_time_where_they_stand():
    events = Events(
        {
            "user_id": np.array([2, 1, 1, 2, 1], np.uint64),
            "video_id": np.array([0, 1, 2, 3, 4], np.uint64),
            "time_ms": [50, 900, -1, 40, 100],
        }
    )
    assert in_order(events).tolist() == [4, 1, 2, 3, 0]


def test_amended_impressions_count_once():
    """Tokens carry the first revision, labels the last."""
    events = Events(
        {
            "user_id": np.ones(5, np.uint64),
            "video_id": np.array([7, 8, 7, 9, 9], np.uint64),
            "session_id": np.array([3, 3, 3, MISSING_KEY, MISSING_KEY], np.uint64),
            "seq": [0, 1, 0, 0, 0],
            "revision": [0, 0, 1, 0, 0],
            "time_ms": [10, 20, 10, 30, 40],
            "like": [0, 0, 1, 0, 0],
        }
    )
    first, last = first_revisions(events)
    assert first.tolist() == [0, 1, 3, 4]
    assert last.tolist() == [2, 1, 3, 4]
    data = prepare(events, L)
    assert data.columns["signals"][0, SIGNALS.index("like")] == 0
    assert data.labels_nT[0, TASKS.index("like")] == 1


def test_labels_keep_nulls():
    events = some_events(4, play_time_ms=[-1, 0, 30_000, 500_000], long_view=[-1, 0, 1, 1], like=[0, -1, 1, 0])
    data = prepare(events, L)
    order = np.argsort(data.events["play_time_ms"])
    found = dict(zip(TASKS, data.labels_nT[order].T, strict=True))
    np.testing.assert_array_equal(found["watch_time"], np.float32([np.nan, 0, 30_000 / WATCH_TIME_CAP_MS, 1]))
    np.testing.assert_array_equal(found["effective_view"], np.float32([np.nan, 0, 1, 1]))
    assert np.isnan(found["like"][1])


def test_coverage_counts_what_is_not_null():
    n = 100
    half = np.where(np.arange(n) % 2, 3, -1)
    events = some_events(n, network=half, buffered_ms=np.full(n, -1), pxtr=np.full((n, 7), np.nan))
    data = prepare(events, L)
    shares = coverage(SPEC, data, np.ones(n, bool))
    assert shares["network"] == pytest.approx(0.5)
    assert shares["buffered"] == shares["pxtr"] == shares["decoder"] == 0
    assert shares["video_id"] == shares["hour"] == 1
    assert "start" not in shares
    assert 0.7 < shares["tags"] < 1


def test_pxtr_constants_count_what_is_present():
    pxtr = np.full((4, 7), np.nan, np.float32)
    pxtr[0, 0], pxtr[1, 0] = 0.5, 1 / (1 + np.exp(-2.0))
    data = prepare(some_events(4, pxtr=pxtr), L)
    mean, std = pxtr_constants(data, np.ones(4, bool))
    assert mean[0] == pytest.approx(1.0, abs=1e-5)
    assert std[0] == pytest.approx(1.0, abs=1e-5)
    assert mean[1:].abs().sum() == 0
    assert (std[1:] == 1).all()


def test_split_is_by_time():
    data = prepare(some_events(200), L)
    train = split_by_time(data, 0.25)
    time_ms = data.events["time_ms"]
    assert time_ms[train].max() < time_ms[~train].min()
    assert 0.7 < train.mean() < 0.8
    # KuaiRand: nine in ten have no time and are older; what is held out are the last hours, not each user's last
    mostly = prepare(some_events(200, time_ms=np.r_[np.full(180, -1), 1_700_000_000_000 + np.arange(20)]), L)
    train, time_ms = split_by_time(mostly, 0.25), mostly.events["time_ms"]
    assert np.sort(time_ms[~train]).tolist() == [1_700_000_000_000 + i for i in range(15, 20)]
    without = prepare(some_events(200, time_ms=np.full(200, -1)), L)
    share = split_by_time(without, 0.25)
    for user in np.unique(without.events["user_id"]):
        mine = share[without.events["user_id"] == user]
        assert mine.tolist() == sorted(mine.tolist(), reverse=True), "the last of each user is held out"
        assert 0.6 < mine.mean() < 0.9


def slow_visible_at_page(events: Events, windows) -> list[int]:
    """Loops: the first event of the page, what was visible then, and which of these tokens the event's window holds."""
    found = []
    for i in range(len(events)):
        first = i
        if events["page_id"][i] == "":
            first = i - int(windows.run[i])
        else:
            while (
                first
                and events["user_id"][first - 1] == events["user_id"][i]
                and events["page_id"][first - 1] == events["page_id"][i]
            ):
                first -= 1
        then = windows.token_WL[windows.target_window[first], : windows.n_visible[first]].tolist()
        last = max(then, default=-1)
        tokens = windows.token_WL[windows.target_window[i]].tolist()
        found.append(sum(0 <= token <= last for token in tokens))
    return found


@pytest.mark.parametrize("paged", [True, False])
def test_one_shot_knows_what_was_known_when_the_page_came(paged):
    events = some_events(seed=3)
    pages = [f"page-{time_ms // 120_000}" if paged else "" for time_ms in events["time_ms"]]
    data = prepare(events.with_columns(page_id=np.array(pages, object)), L)
    frozen = View("page").n_visible(data)
    assert frozen.tolist() == slow_visible_at_page(data.events, data.windows)
    assert (frozen <= data.windows.n_visible).all()
    assert (frozen < data.windows.n_visible).any(), "the toy must have pages of several impressions"


def test_views_hide_what_they_say():
    data = prepare(some_events(), L)
    tables = tables_of(make_batches(some_events()))
    every = np.ones(len(data), bool)
    nothing = next(Batches(data, SPEC, tables, every, view=View("nothing")).in_turn()).blocks
    assert nothing["visible"][..., 0].all()
    assert not nothing["visible"][..., 1:].any()
    blind = next(Batches(data, SPEC, tables, every, view=View(gaps=False)).in_turn()).blocks
    plain = next(Batches(data, SPEC, tables, every).in_turn()).blocks
    assert not blind["since"].any()
    assert not blind["behind"].any()
    assert plain["since"].any()
    torch.testing.assert_close(blind["visible"], plain["visible"])
    with pytest.raises(InputError, match="unknown view"):
        View("later")
