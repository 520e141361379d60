"""Old and new events side by side: what is new, what histories see, what is refused, and how replay is mixed in."""

from __future__ import annotations

import numpy as np
import pytest

from contract.errors import InputError
from contract.history import is_positive
from tests.training.incremental_makers import (
    DAY_MS,
    NEW_DAY,
    OLD_DAYS,
    OLD_ITEMS,
    START_MS,
    TEST_DAY,
    catalogue,
    log,
    video,
)
from training.incremental_data import WithReplay, join_days, joined_catalogue
from training.readers import LogData
from training.retrieval_split import split_of
from training.segments import SegmentData
from training.tables import SparseTables

SINCE_MS = START_MS + NEW_DAY * DAY_MS


def positives(data: LogData) -> set[tuple[int, int, int]]:
    """(user, video, time) of every positive, the slow way."""
    events = data.events
    rows = zip(events["user_id"].tolist(), events["video_id"].tolist(), events["time_ms"].tolist(), strict=True)
    return {row for row, good in zip(rows, events["long_view"] == 1, strict=True) if good}


def places(days, mask) -> set[tuple[int, int, int]]:
    index = days.split.index
    user_P = np.repeat(index.user_id, np.diff(index.offsets))
    columns = (user_P[mask], index.columns["video_id"][mask], index.time_ms[mask])
    return set(zip(*(column.tolist() for column in columns), strict=True))


class TestJoin:
    def test_new_and_old_places(self) -> None:
        days = join_days(log(NEW_DAY), log(*OLD_DAYS), SINCE_MS, "toy")
        assert places(days, days.new_P) == positives(log(NEW_DAY))
        assert places(days, days.old_P) == positives(log(*OLD_DAYS))
        assert days.left_out == 0
        assert days.split.queries == {}
        assert f"{days.new_P.sum()} positives of 48 users since 2026-01-08 00:00 UTC" in days.told()

    def test_histories_are_those_of_the_whole_log(self) -> None:
        days = join_days(log(NEW_DAY), log(*OLD_DAYS), SINCE_MS, "toy")
        whole = split_of(log(*OLD_DAYS, NEW_DAY), "toy", holdout_days=0)
        assert np.array_equal(days.split.index.user_id, whole.index.user_id)
        for name, column in whole.index.columns.items():
            assert np.array_equal(days.split.index.columns[name], column), name
        assert np.array_equal(days.split.known_end_P, whole.known_end_P)

    def test_what_was_trained_on_before_counts_once(self) -> None:
        """Files may overlap: --data holds the new day already, and --events the last old one."""
        days = join_days(log(OLD_DAYS[-1], NEW_DAY), log(*OLD_DAYS, NEW_DAY), SINCE_MS, "toy")
        assert places(days, days.new_P) == positives(log(NEW_DAY))
        assert len(days.split.index) == len(positives(log(*OLD_DAYS, NEW_DAY)))
        assert days.left_out == len(log(OLD_DAYS[-1]).events)
        assert f"{days.left_out} events given as new are older and left out" in days.told()

    def test_days_that_were_held_out_before_count_as_new(self) -> None:
        """The checkpoint was trained up to a day before the old log's end."""
        log_before, since_ms = log(*OLD_DAYS), SINCE_MS - DAY_MS
        days = join_days(log(NEW_DAY), log_before, since_ms, "toy")
        held = int((log_before.events["time_ms"] >= since_ms).sum())
        assert days.between == held > 0
        assert f"{held} events of the old log came since" in days.told()
        times = days.split.index.time_ms
        assert set(np.unique(times[days.new_P] // DAY_MS)) == {since_ms // DAY_MS, SINCE_MS // DAY_MS}
        assert len(days.split.index) == len(join_days(log(NEW_DAY), log_before, SINCE_MS, "toy").split.index)

    def test_a_half_life_weighs_new_targets_and_replayed_ones_apart(self) -> None:
        """1 on average over what is trained on, or the new rows would move by more than their rate."""
        from tests.training.incremental_makers import RECIPE

        days = join_days(log(NEW_DAY), log(*OLD_DAYS), SINCE_MS, "toy")
        config = RECIPE.config()
        tables = SparseTables.from_spec_and_keys(config.spec(), {})
        for keep in (days.new_P, days.old_P):
            data = SegmentData(days.only(keep), config.spec(), tables, latest=16, batch=32, half_life_days=0.5)
            weights = np.concatenate([batch.weight.numpy() for batch in data.batches(0, 0)])
            assert weights.mean() == pytest.approx(1.0, rel=1e-3)

    def test_days_are_those_that_the_log_files(self) -> None:
        """Shown before midnight, filed under the new day: no training saw it, so it is new, though --data holds it."""
        old = log(*OLD_DAYS)
        events = old.events
        late = np.flatnonzero(is_positive(events["long_view"], events["like"]))[[3]]
        time_ms, hour = events["time_ms"].copy(), events["hour"].copy()
        time_ms[late], hour[late] = SINCE_MS - 60_000, 0
        days = join_days(
            log(NEW_DAY), old._replace(events=events.with_columns(time_ms=time_ms, hour=hour)), SINCE_MS, "t"
        )
        assert days.between == 1
        assert days.new_P.sum() == len(positives(log(NEW_DAY))) + 1
        assert days.old_P.sum() == len(positives(old)) - 1
        assert (days.split.index.time_ms[days.new_P] == SINCE_MS - 60_000).sum() == 1

    def test_without_old_the_new_file_itself_is_the_history(self) -> None:
        days = join_days(log(OLD_DAYS[-1], NEW_DAY), None, SINCE_MS, "toy")
        assert places(days, days.old_P) == positives(log(OLD_DAYS[-1]))
        assert days.left_out == 0
        assert "pass --data" in days.told()

    def test_only_some_places_are_targets_and_all_are_histories(self) -> None:
        days = join_days(log(NEW_DAY), log(*OLD_DAYS), SINCE_MS, "toy")
        view = days.only(days.new_P)
        assert np.array_equal(view.row_P >= 0, days.new_P)
        assert view.index is days.split.index
        assert view.counts().sum() == days.new_P.sum()

    def test_days_held_out(self) -> None:
        days = join_days(log(NEW_DAY, TEST_DAY), log(*OLD_DAYS), SINCE_MS, "toy", holdout_days=1)
        assert places(days, days.new_P) == positives(log(NEW_DAY))
        assert len(days.split.queries["val"]) == len(positives(log(TEST_DAY)))
        assert days.split.cut_ms == START_MS + TEST_DAY * DAY_MS

    def test_days_begin_where_the_users_live(self) -> None:
        days = join_days(log(NEW_DAY, TEST_DAY), None, SINCE_MS, "toy", holdout_days=1, utc_offset_hours=8.0)
        assert days.split.cut_ms == START_MS + TEST_DAY * DAY_MS - 8 * 3_600_000

    @pytest.mark.parametrize(
        ("since_ms", "holdout_days", "message"),
        [
            (START_MS + 9 * DAY_MS, 0, "before the checkpoint's training ended"),
            (SINCE_MS, 1, "no new day is left"),
            (SINCE_MS, 2, "no new day is left"),
        ],
    )
    def test_nothing_new(self, since_ms: int, holdout_days: int, message: str) -> None:
        with pytest.raises(InputError, match=message):
            join_days(log(NEW_DAY), log(*OLD_DAYS), since_ms, "toy", holdout_days=holdout_days)

    def test_no_positive(self) -> None:
        with pytest.raises(InputError, match="no positive"):
            join_days(log(NEW_DAY, skip_every=1), log(*OLD_DAYS), SINCE_MS, "toy")


class TestCatalogue:
    def test_the_first_part_says_what_an_item_is(self) -> None:
        old, new = catalogue(range(6)), catalogue(range(4, 9))
        new.author_id[:] = 77
        both = joined_catalogue(new, old)
        assert sorted(both.video_id.tolist()) == [video(i) for i in range(9)]
        author = dict(zip(both.video_id.tolist(), both.author_id.tolist(), strict=True))
        assert [author[video(i)] for i in range(9)] == [9] * 4 + [77] * 5

    def test_videos_that_no_catalogue_has_are_gathered_from_the_events(self) -> None:
        new = log(NEW_DAY)._replace(items=catalogue(range(OLD_ITEMS)))
        days = join_days(new, log(*OLD_DAYS), SINCE_MS, "toy")
        assert set(new.events["video_id"].tolist()) <= set(days.split.items.video_id.tolist())
        assert (days.split.row_P >= 0).all()


class TestReplay:
    def parts(self) -> tuple[SegmentData, SegmentData]:
        days = join_days(log(NEW_DAY), log(*OLD_DAYS), SINCE_MS, "toy")
        from tests.training.incremental_makers import RECIPE

        config = RECIPE.config()
        tables = SparseTables.from_spec_and_keys(config.spec(), {})
        new, old = (
            SegmentData(days.only(keep), config.spec(), tables, windows=(8,), latest=16, batch=32)
            for keep in (days.new_P, days.old_P)
        )
        return new, old

    @pytest.mark.parametrize("replay", [0.0, 0.5, 2.0, 100.0])
    def test_a_pass_is_the_new_batches_and_a_share_of_old_ones(self, replay: float) -> None:
        new, old = self.parts()
        data = WithReplay(new, old, replay)
        assert data.n_old == min(round(replay * new.steps_per_epoch), old.steps_per_epoch)
        batches = list(data.batches(0, 7))
        assert len(batches) == data.steps_per_epoch == new.steps_per_epoch + data.n_old
        of_new = [batch.item.tolist() for batch in new.batches(0, 7)][: new.steps_per_epoch]
        of_old = [batch.item.tolist() for batch in old.batches(0, 7)][: data.n_old]
        assert sorted(batch.item.tolist() for batch in batches) == sorted(of_new + of_old)

    def test_the_same_again_for_the_same_epoch_and_seed(self) -> None:
        data = WithReplay(*self.parts(), 1.0)
        first, again, other = ([b.item.tolist() for b in data.batches(*at)] for at in ((1, 7), (1, 7), (2, 7)))
        assert first == again != other

    def test_without_old_days(self) -> None:
        new, _ = self.parts()
        assert WithReplay(new, None, 0.5).steps_per_epoch == new.steps_per_epoch
