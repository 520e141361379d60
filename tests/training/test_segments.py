"""Segments: every positive a target once an epoch, of the history that was known then; batches alike; little padding.

The test splits' catalogue has an item per place, so that a batch tells which places its targets and slots are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import InputError
from contract.features import block_keys, pool_rows
from contract.history import available_at
from tests.training.kuaiformer_makers import PAPER, config_of, split_of_sizes, tables_of
from training.readers import LogData, open_data
from training.retrieval_split import RetrievalSplit, split_of
from training.segments import DAY_MS, HistorySlots, SegmentBatch, SegmentData, item_slots

SPEC = config_of("raw").spec()


def data_of(split: RetrievalSplit, **options: Any) -> SegmentData:
    return SegmentData(split, SPEC, tables_of(split, SPEC), **options)


def seen(batches: Iterable[SegmentBatch], data: SegmentData) -> Iterator[tuple[int, int, list[int], int]]:
    """(owner, target's place, places of the history its cell sees, real raw slots among them) of every target."""
    slots = tables_of(data.split, SPEC).field_slots(SPEC, "history_rows", data.split.index.columns)
    place_of = {slot: place for place, slot in enumerate(slots["history_video_id"][:, 0].tolist())}
    for batch in batches:
        length = batch.mask.shape[1]
        real, held = batch.mask.numpy() > 0, batch.history["history_video_id"][..., 0].numpy()
        for cell, item, owner in zip(batch.cell.tolist(), batch.item.tolist(), batch.owner.tolist(), strict=True):
            row, cut = divmod(cell, batch.n_cuts)
            end = length - batch.n_cuts + cut + 1
            raw = int(real[row, max(0, length - data.latest) : end].sum())
            yield owner, item, [place_of[slot] for slot in held[row, :end][real[row, :end]].tolist()], raw


def check_epoch(data: SegmentData, epoch: int, seed: int) -> None:
    """The whole contract of an epoch, against the split's own words."""
    split, batches = data.split, list(data.batches(epoch, seed))
    assert len(batches) == data.steps_per_epoch
    targets: Counter[int] = Counter()
    for batch in batches:
        n_rows, length = batch.mask.shape
        assert 1 <= batch.n_cuts <= min(length, data.latest)
        assert int(batch.cell.min()) >= 0
        assert int(batch.cell.max()) < n_rows * batch.n_cuts
        assert len(torch.unique(batch.cell // batch.n_cuts)) == n_rows, "no row without a target"
        assert torch.equal(batch.mask, batch.mask.sort(dim=1).values), "padding comes first"
        assert all(slots.shape[:2] == (n_rows, length) for slots in batch.history.values())
    for owner, place, history, raw in seen(batches, data):
        start, known = int(split.index.offsets[owner]), int(split.known_end_P[place])
        assert start <= place < split.train_end[owner]
        assert history == list(range(known - len(history), known)), "all that was known, to the last of it"
        assert known - len(history) >= start, "nobody else's"
        fewest = data.latest - data.stride + 1
        assert len(history) >= min(known - start, sum(data.windows) + fewest)
        assert raw >= min(known - start, fewest)
        targets[place] += 1
    trained = split.train_places()
    assert targets == Counter(trained[split.row_P[trained] >= 0].tolist()), "every positive once"


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    windows=st.sampled_from([(), (5, 3, 3, 5), (4,), (2, 2)]),
    latest=st.integers(1, 12),
    stride=st.integers(1, 12) | st.none(),
    batch=st.integers(2, 70),
    lag=st.integers(0, 9),
    held=st.integers(0, 2),
    outside=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_every_positive_is_a_target_once_of_what_was_known(
    sizes, windows, latest, stride, batch, lag, held, outside, seed
):
    split = split_of_sizes([max(sizes[0], held + 1), *sizes[1:]], lag=lag, held=held, outside=outside, seed=seed)
    split.row_P[0] = 0  # one at least can be trained on
    stride = None if stride is None else min(stride, latest)
    data = data_of(split, windows=windows, latest=latest, stride=stride, batch=batch)
    check_epoch(data, epoch=seed % 3, seed=seed)


@pytest.mark.parametrize(
    ("windows", "latest", "stride"),
    [((), 200, None), ((), 50, 10), (PAPER, 48, None), (PAPER, 48, 48), ((64, 16), 32, 5)],
)
def test_users_of_every_length_are_covered_in_every_epoch(windows, latest, stride):
    split = split_of_sizes([1, 2, 47, 48, 49, 199, 200, 201, 256, 300, 450, 700], lag=3, held=1)
    data = data_of(split, windows=windows, latest=latest, stride=stride, batch=300)
    for epoch, seed in ((0, 0), (1, 5)):
        check_epoch(data, epoch, seed)


def test_what_was_known_at_once_and_small_batches_keep_the_promise():
    """A day's worth of positives that all become known at its end, and batches far smaller than a segment."""
    for lag, batch in ((10**6, 16), (0, 2), (0, 64), (40, 7)):
        split = split_of_sizes([150, 3, 90, 1], lag=lag)
        if lag == 10**6:
            split.known_end_P[:] = np.repeat(split.index.offsets[:-1], [150, 3, 90, 1])
        data = data_of(split, latest=200, batch=batch)
        assert data.steps_per_epoch == 244 // batch
        check_epoch(data, 0, 0)
        assert max(len(b.item) for b in data.batches(0, 0)) < 2.1 * batch


def test_batches_weigh_about_the_same():
    split = split_of_sizes(np.random.default_rng(0).integers(1, 300, 200).tolist())
    for windows, latest in (((), 200), (PAPER, 48)):
        sizes = [len(batch.item) for batch in data_of(split, windows=windows, latest=latest, batch=1000).batches(0, 0)]
        assert sum(sizes) == len(split.index)
        assert 1000 - 200 <= min(sizes) <= max(sizes) <= 1000 * (1 + 1 / len(sizes)) + 200


def same(one: SegmentBatch, other: SegmentBatch) -> bool:
    tensors = [(getattr(one, name), getattr(other, name)) for name in ("mask", "cell", "item", "owner", "weight")]
    tensors += [(one.history[name], other.history[name]) for name in one.history]
    return one.n_cuts == other.n_cuts and all(a.shape == b.shape and torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("cap", [None, 2])
def test_epochs_differ_and_repeat(cap):
    data = data_of(split_of_sizes([120] * 12), latest=20, batch=100, cap=cap)
    again = data_of(data.split, latest=20, batch=100, cap=cap)
    first = list(data.batches(0, 7))
    assert all(same(a, b) for a, b in zip(first, again.batches(0, 7), strict=True))
    for epoch, seed in ((1, 7), (0, 8)):
        other = list(data.batches(epoch, seed))
        assert len(other) == len(first)
        assert not all(same(a, b) for a, b in zip(first, other, strict=True))


def test_videos_of_histories_are_read_as_unknown_anew_in_every_batch():
    split = split_of_sizes([60] * 40)
    whole, fewer = data_of(split, latest=20, batch=100), data_of(split, latest=20, batch=100, item_dropout=0.3)
    assert all(torch.equal(batch.held, batch.history["history_video_id"][..., 0]) for batch in whole.batches(0, 0))
    unknown: set[bytes] = set()
    shares = []
    for epoch in range(4):
        batches = list(fewer.batches(epoch, 0))
        assert all(same(a, b) for a, b in zip(batches, fewer.batches(epoch, 0), strict=True))
        for batch in batches:
            read, held = batch.history["history_video_id"][..., 0], batch.held
            assert torch.equal(held > 0, batch.mask > 0), "what is held is told, and padding stays padding"
            assert torch.equal(read[read > 0], held[read > 0])
            assert torch.equal(read < 0, held < 0)
            shares.append(float((read == 0).sum() / (held > 0).sum()))
            unknown.add((read == 0).numpy().tobytes())
    assert len(unknown) == 4 * fewer.steps_per_epoch
    assert np.mean(shares) == pytest.approx(0.3, abs=0.02)
    targets = [Counter(torch.cat([b.item for b in one.batches(0, 0)]).tolist()) for one in (whole, fewer)]
    assert targets[0] == targets[1], "targets stay"


def test_cuts_fall_elsewhere_in_every_epoch():
    """So windows fall everywhere: the same target sees another number of raw items."""
    data = data_of(split_of_sizes([150] * 3), windows=(16, 16), latest=20, batch=50)
    raw: dict[int, set[int]] = {}
    for epoch in range(12):
        for _, place, _, n_raw in seen(data.batches(epoch, 0), data):
            raw.setdefault(place, set()).add(n_raw)
    late = [len(found) for place, found in raw.items() if place % 150 >= 60]
    assert np.mean(late) > 5
    assert set.union(*(raw[place] for place in raw if place % 150 >= 60)) == set(range(20 - 16 + 1, 21))


def test_cap_takes_so_many_segments_of_a_user():
    """With one cut a segment every draw has the same number of targets, so one draw is the epoch."""
    data = data_of(split_of_sizes([1, 2, 3, 30, 40]), latest=1, batch=5, cap=3)
    epochs = [list(data.batches(epoch, 0)) for epoch in range(8)]
    places = []
    for batches in epochs:
        assert len(batches) == data.steps_per_epoch == (1 + 2 + 3 + 3 + 3) // 5
        owners = Counter(owner for batch in batches for owner in batch.owner.tolist())
        assert owners == {0: 1, 1: 2, 2: 3, 3: 3, 4: 3}
        places.append({item for batch in batches for item in batch.item.tolist()})
    assert len(set.union(*places)) > 6 + 2 * 3 * 4, "drawn anew each epoch"


def test_capped_segments_have_as_many_targets_whatever_the_plan():
    """What compares plans must not give the longer one more to learn from."""
    split = split_of_sizes([300] * 40)
    totals = []
    for windows, latest in (((), 256), ((), 64), (PAPER, 48)):
        data = data_of(split, windows=windows, latest=latest, stride=16, batch=128, cap=4)
        totals.append(sum(len(batch.item) for batch in data.batches(0, 0)))
    assert max(totals) <= 1.1 * min(totals)
    assert max(totals) <= 40 * 4 * 16


@pytest.mark.parametrize("cap", [0, -1])
def test_a_cap_of_nothing(cap):
    with pytest.raises(InputError, match="cap counts"):
        data_of(split_of_sizes([5, 9]), cap=cap)


@pytest.mark.parametrize("batch", [2, 8, 64])
def test_cap_keeps_the_promise_whatever_it_draws(batch):
    """Segments of very different weight: a draw may have a tenth of another's targets."""
    split = split_of_sizes([400, 400, 5])
    known = split.known_end_P
    known[200:400], known[600:800] = 200, 600  # the halves of two users' positives known at once
    data = data_of(split, latest=10, batch=batch, cap=1)
    totals = set()
    for seed in range(4):
        for epoch in range(6):
            batches = list(data.batches(epoch, seed))
            assert len(batches) == data.steps_per_epoch
            totals.add(sum(len(b.item) for b in batches))
    assert len(totals) > 1, "draws of one weight prove nothing"


def test_little_is_padded():
    """Lengths as skewed as those of real users, many of them short."""
    random = np.random.default_rng(3)
    sizes = np.clip(random.lognormal(3.5, 1.2, 1500), 1, 700).astype(int).tolist()
    split = split_of_sizes(sizes)
    for windows, latest, floor in (((), 200, 0.85), (PAPER, 48, 0.8)):
        data = data_of(split, windows=windows, latest=latest, batch=512)
        batches = list(data.batches(0, 0))
        slots = sum(batch.mask.numel() for batch in batches)
        assert sum(float(batch.mask.sum()) for batch in batches) / slots > floor
        cells = sum(len(batch.mask) * batch.n_cuts for batch in batches)
        assert sum(len(batch.item) for batch in batches) / cells > 0.7


def test_batches_do_not_come_by_length():
    split = split_of_sizes(np.random.default_rng(0).integers(1, 100, 300).tolist())
    data = data_of(split, latest=100, batch=1000)  # one span: sorted as a whole
    for epoch in range(3):
        lengths = [batch.mask.shape[1] for batch in data.batches(epoch, 0)]
        assert len(set(lengths)) > 8
        assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


def test_lengths_are_those_that_the_encoder_takes():
    split = split_of_sizes([3, 20, 60, 130, 300])
    config = config_of("paper")
    data = data_of(split, windows=config.windows, latest=config.latest, batch=40)
    lengths = {batch.mask.shape[1] for epoch in range(3) for batch in data.batches(epoch, 0)}
    assert lengths <= set(config.lengths)
    assert {64, 256} <= lengths
    assert min(lengths) <= config.latest


def test_wrong_uses_are_refused():
    split = split_of_sizes([5, 9])
    for stride in (0, 8):
        with pytest.raises(InputError, match=r"1 … 7"):
            data_of(split, latest=7, stride=stride)
    with pytest.raises(InputError, match="two targets"):
        data_of(split, batch=1)
    for dropout in (-0.1, 1.0):
        with pytest.raises(InputError, match="item_dropout"):
            data_of(split, item_dropout=dropout)
    for nothing in (replace(split, train_end=split.index.offsets[:-1]), replace(split, row_P=np.full(14, -1))):
        with pytest.raises(InputError, match="no positive to train on"):
            data_of(nothing)


# --- against a log and the contract's own path


@pytest.fixture(scope="module")
def log() -> LogData:
    return open_data("sim:users=40,items=200,days=3")


@pytest.fixture(scope="module")
def log_split(log) -> RetrievalSplit:
    return split_of(log, "sim", holdout_days=1)


@pytest.mark.parametrize(("windows", "latest"), [((), 30), ((8, 8), 10)])
def test_a_logs_targets_see_what_was_known_when_they_were_shown(log, log_split, windows, latest):
    """Against times, not against known_end_P: nothing of the history was known after the target was shown."""
    split, index = log_split, log_split.index
    known_ms = available_at(log.events)[index.event]
    segments = data_of(split, windows=windows, latest=latest, batch=300)
    # Catalogue rows repeat here, so a target's place is told by counting: those of a user's item, in any order.
    n_targets = 0
    for batch in segments.batches(0, 0):
        video = split.items.video_id[batch.item.numpy()]
        row, cut = np.divmod(batch.cell.numpy(), batch.n_cuts)
        held = batch.mask.numpy().cumsum(axis=1)[row, batch.mask.shape[1] - batch.n_cuts + cut].astype(int)
        for owner, its_video, n_held in zip(batch.owner.numpy(), video, held, strict=True):
            start, end = index.offsets[owner], split.train_end[owner]
            places = np.arange(start, end)[index.columns["video_id"][start:end] == its_video]
            # All that was known, up to what fits: at one of the places of this video the history has this length.
            fits = sum(windows) + latest
            lengths = [min(int((known_ms[start:p] <= index.time_ms[p]).sum()), fits) for p in places]
            fewest = sum(windows) + latest - segments.stride + 1
            assert any(n_held == n or (n >= fewest and fewest <= n_held <= n) for n in lengths)
            n_targets += 1
    assert n_targets == len(split.train_places())


def test_targets_weigh_by_their_age(log_split):
    """Half for every half life, from the newest, 1 on average; those without a time are as old as the oldest."""
    time_ms = log_split.index.time_ms.copy()
    time_ms[log_split.index.offsets[3] : log_split.index.offsets[4]] = -1
    split = replace(log_split, index=replace(log_split.index, time_ms=time_ms))
    trained = split.train_places()
    known = time_ms[trained][time_ms[trained] >= 0]
    by_age: dict[int, list[float]] = {}
    total, n = 0.0, 0
    for batch in data_of(split, batch=300, half_life_days=1.5).batches(0, 0):
        total, n = total + float(batch.weight.double().sum()), n + len(batch.weight)
        for owner, item, weight in zip(batch.owner.tolist(), batch.item.tolist(), batch.weight.tolist(), strict=True):
            places = np.arange(split.index.offsets[owner], split.train_end[owner])
            places = places[split.row_P[places] == item]
            if len(places) == 1:
                its_ms = int(time_ms[places[0]])
                by_age.setdefault(int(known.max()) - (its_ms if its_ms >= 0 else int(known.min())), []).append(weight)
    assert total / n == pytest.approx(1.0, rel=1e-5)
    newest = by_age[min(by_age)][0] * 2 ** (min(by_age) / DAY_MS / 1.5)
    assert len(by_age) > 100
    for age_ms, weights in by_age.items():
        assert weights == pytest.approx([newest * 2 ** (-age_ms / DAY_MS / 1.5)] * len(weights), rel=1e-4)
    assert int(known.max() - known.min()) in by_age, "one without a time"


@pytest.mark.parametrize(("half_life", "fault"), [(0.0, "above 0"), (float("nan"), "above 0"), (1.0, "needs times")])
def test_a_half_life_that_can_not_be(half_life, fault):
    with pytest.raises(InputError, match=fault):
        data_of(split_of_sizes([5, 9]), half_life_days=half_life)


def test_windows_hold_the_rows_that_serving_builds(log_split):
    """HistorySlots against UserHistory -> block_keys -> pool_rows."""
    index, length = log_split.index, 40
    spec, tables = SPEC, tables_of(log_split, SPEC)
    users = index.user_id[:6]
    start, end = index.bounds(users, np.full(6, -1))
    assert (end - start).max() > length > (end - start).min(), "a cut history and one with padding"
    slots, mask = HistorySlots(index, spec, tables).window(start, end, length)
    ours = tables.rows(spec, "history_rows", slots)
    for i, user in enumerate(users):
        served = index.user_history(int(user), length)
        keys = block_keys(spec, "history_rows", served.columns())
        place = {c.field.name: tables.slots(c.field.table, keys[c.field.name]) for c in spec.columns("history_rows")}
        out = np.empty((length, spec.width("history_rows")), np.float32)
        theirs = pool_rows(spec, "history_rows", tables.numpy_rows(), place, out)
        np.testing.assert_array_equal(mask[i].numpy(), served.mask())
        np.testing.assert_allclose(ours[i].detach().numpy(), theirs, atol=1e-6)


def test_items_hold_the_rows_of_their_content(log_split):
    tables, items = tables_of(log_split, SPEC), log_split.items
    found = item_slots(items, SPEC, tables)
    assert set(found) == {column.field.name for column in SPEC.columns("item_rows")}
    columns = {name: getattr(items, name) for name in ("video_id", "author_id", "tags", "duration_ms")}
    for name, slots in tables.field_slots(SPEC, "item_rows", columns).items():
        assert found[name].dtype == torch.int64
        np.testing.assert_array_equal(found[name].numpy(), slots)
