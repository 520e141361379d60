"""Retrieval, ranking and real-time histories, without any socket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.history import UserHistory
from contract.server_order import server_value
from contract.specs import ranker_spec
from contract.vocabulary import MISSING_KEY, SIGNALS, X_PXTR
from server_stub.bundle import Models, load_histories, load_models, read_index
from server_stub.histories import Histories, Interaction, item_columns
from server_stub.ranker import Ranker
from server_stub.recommender import NO_HISTORY, REPEATS, SHORT, Recommender, popular_items
from server_stub.retrieval import AT_ONCE
from tests.server_stub.conftest import NOW_MS
from tests.server_stub.tiny_bundle import N_ITEMS, START_MS, TOPICS, WIDTH, topic_of, video_ids

COLD = 1  # the bundle's user without history; user 2 watches topic 1, user 3 topic 2, …
LIKE = {"like": 1}


@pytest.fixture(scope="module")
def models(shared_bundle: Path) -> Models:
    return load_models(read_index(shared_bundle))


@pytest.fixture
def recommender(models: Models, shared_bundle: Path) -> Recommender:
    return Recommender(models, Histories(load_histories(read_index(shared_bundle))), pool=24, clock=lambda: NOW_MS)


def topics(ids: np.ndarray) -> list[int]:
    return topic_of(ids).tolist()


class TestRetrieval:
    def history(self, models: Models, *ids: int) -> UserHistory:
        view = Histories().view(9, [Interaction(i, signals=LIKE) for i in ids], models.catalogue).positives
        assert len(view) == len(ids)
        return view

    def test_finds_the_topic_of_the_history(self, models: Models) -> None:
        found = models.retrieval.search(models.retrieval.encode(self.history(models, 1002, 1006)), 12, video_ids()[:0])
        assert set(topics(found.video_id)) == {2}

    def test_is_the_slow_obvious_search(self, models: Models, shared_bundle: Path) -> None:
        vectors = np.load(shared_bundle / "retrieval/item_vectors.npy")
        interests = models.retrieval.encode(self.history(models, *range(1000, 1010), 1023, 1027))
        found = models.retrieval.search(interests, N_ITEMS, video_ids()[:0])
        best = (vectors @ interests.T).max(axis=1)
        expected = np.lexsort((video_ids(), -best))
        assert found.video_id.tolist() == video_ids()[expected].tolist()
        np.testing.assert_allclose(found.score, best[expected], rtol=1e-5)

    def test_each_interest_fills_its_quota(self, models: Models) -> None:
        """A long history of topic 0, the last four of topic 1: the loud interest must not take every place."""
        loud = np.zeros((2, 8), np.float32)
        loud[0, 0], loud[1, 1] = 100.0, 0.01
        found = models.retrieval.search(loud, 10, video_ids()[:0])
        assert sorted(topics(found.video_id)) == [0] * 5 + [1] * 5

    def test_shared_items_come_once_and_leave_room(self, models: Models) -> None:
        same = np.zeros((2, 8), np.float32)
        same[:, 3] = 1.0
        found = models.retrieval.search(same, 10, video_ids()[:0])
        assert len(found.video_id) == len(np.unique(found.video_id)) == 10

    def test_excluded_items_do_not_come(self, models: Models) -> None:
        interests = models.retrieval.encode(self.history(models, 1002))
        banned = video_ids()[2:80]
        found = models.retrieval.search(interests, N_ITEMS, banned)
        assert not np.isin(found.video_id, banned).any()
        assert len(found.video_id) == N_ITEMS - len(banned)

    @pytest.mark.parametrize("n", [0, -1])
    def test_nothing_asked(self, models: Models, n: int) -> None:
        assert len(models.retrieval.search(np.ones((2, 8), np.float32), n, video_ids()[:0]).video_id) == 0

    def test_interests_that_are_no_numbers_find_nothing(self, models: Models) -> None:
        broken = np.full((2, 8), np.nan, np.float32)
        assert len(models.retrieval.search(broken, 5, video_ids()[:0]).video_id) == 0
        broken[1] = 1.0
        assert len(models.retrieval.search(broken, 5, video_ids()[:0]).video_id) == 5

    def test_padding_does_not_count(self, models: Models) -> None:
        """One video watched: its own vector is both interests, whatever the default rows hold."""
        one = models.retrieval.encode(self.history(models, 1003))
        twice = models.retrieval.encode(self.history(models, 1003))
        np.testing.assert_array_equal(one, twice)
        np.testing.assert_allclose(one[0], one[1], rtol=1e-6)


class TestRanker:
    def user(self) -> dict[str, np.ndarray]:
        return {
            "user_id": np.array([2], np.uint64),
            "user_activity": np.array([-1]),
            "user_register_days": np.array([-1]),
            "hour": np.array([-1]),
            "tab": np.array([-1]),
        }

    def test_candidates_do_not_see_each_other(self, models: Models) -> None:
        items = item_columns(models.catalogue, video_ids()[:9], NOW_MS)
        whole = models.ranker.pxtr(self.user(), UserHistory(256), items)
        for i in range(9):
            one = {name: column[i : i + 1] for name, column in items.items()}
            np.testing.assert_allclose(models.ranker.pxtr(self.user(), UserHistory(256), one)[0], whole[i], rtol=1e-5)

    def test_gives_probabilities(self, models: Models) -> None:
        pxtr = models.ranker.pxtr(self.user(), UserHistory(256), item_columns(models.catalogue, video_ids(), NOW_MS))
        assert pxtr.shape == (N_ITEMS, X_PXTR)
        assert ((pxtr > 0) & (pxtr < 1)).all()

    def test_no_candidates(self, models: Models) -> None:
        items = item_columns(models.catalogue, video_ids()[:0], NOW_MS)
        assert models.ranker.pxtr(self.user(), UserHistory(256), items).shape == (0, X_PXTR)

    def test_untrained_heads_are_null_as_in_the_log(self, shared_bundle: Path, models: Models) -> None:
        config = {"heads": ["click", "long_view"]}
        ranker = Ranker.load(shared_bundle / "ranker", ranker_spec(width=WIDTH), "r", config)
        items = item_columns(models.catalogue, video_ids()[:5], NOW_MS)
        pxtr = ranker.pxtr(self.user(), UserHistory(256), items)
        assert np.isnan(pxtr[:, 2:]).all()
        np.testing.assert_array_equal(pxtr[:, :2], models.ranker.pxtr(self.user(), UserHistory(256), items)[:, :2])
        assert np.isfinite(ranker.order(pxtr, items["duration_ms"])[1]).all()

    def test_order_is_the_fusion_and_stable(self, models: Models) -> None:
        pxtr = np.zeros((4, X_PXTR), np.float32)
        pxtr[:, 1] = [0.1, 0.9, np.nan, 0.9]
        order, value = models.ranker.order(pxtr, np.full(4, 10_000))
        assert order.tolist() == [1, 3, 0, 2]
        assert value.tolist() == pytest.approx([0.1, 0.9, 0.0, 0.9])


class TestItemColumns:
    def test_unknown_videos_are_null(self, models: Models) -> None:
        columns = item_columns(models.catalogue, np.array([5, 1000], np.uint64), NOW_MS)
        assert columns["author_id"].tolist() == [int(MISSING_KEY), 500]
        assert columns["duration_ms"].tolist() == [-1, 5_000]
        assert columns["upload_age_days"].tolist() == [-1, 1]

    def test_an_empty_catalogue(self) -> None:
        none = np.zeros(0, np.uint64)
        empty = Catalogue(none, none, np.zeros((0, 3), np.uint64), none.astype(np.int32), none.astype(np.int64))
        assert item_columns(empty, np.array([7], np.uint64), 1)["duration_ms"].tolist() == [-1]


class TestManyUsers:
    def test_each_gets_what_it_would_get_alone(self, models: Models) -> None:
        histories = []
        for number in range(AT_ONCE * 2 + 1):
            history = UserHistory(models.retrieval.length)
            for step in range(number):
                history.append({"video_id": np.uint64(1000 + 7 * step)}, 1_000 * step)
            histories.append(history)
        together = models.retrieval.encode_many(histories)
        assert together.shape == (AT_ONCE * 2 + 1, 2, 8)
        for history, interests in zip(histories, together, strict=True):
            np.testing.assert_allclose(models.retrieval.encode(history), interests, atol=1e-6)
        assert np.abs(together[1] - together[2]).max() > 1e-3

    def test_nobody(self, models: Models) -> None:
        with pytest.raises(InputError, match="no history to encode"):
            models.retrieval.encode_many([])


class TestItemUpdates:
    def test_a_new_item_is_found_at_once(self, shared_bundle: Path) -> None:
        retrieval = load_models(read_index(shared_bundle)).retrieval
        interests = np.eye(2, 8, dtype=np.float32)
        vector = np.full((1, 8), 9.0, np.float32)
        before = retrieval.search(interests, 10, video_ids()[:0])
        assert retrieval.update_items(np.array([77], np.uint64), vector) == (1, 0)
        found = retrieval.search(interests, 10, video_ids()[:0])
        assert found.video_id.tolist()[0] == 77
        assert found.video_id.tolist()[1:] == before.video_id.tolist()[:9]
        assert 77 in retrieval.item_ids
        assert 77 not in retrieval.search(interests, 10, np.array([77], np.uint64)).video_id

    def test_the_interest_that_found_it_is_told(self, models: Models) -> None:
        interests = np.zeros((3, 8), np.float32)
        interests[0, 2], interests[1], interests[2, 1] = 1.0, np.nan, 1.0
        found = models.retrieval.search(interests, 20, video_ids()[:0])
        vectors = {int(video): vector for video, vector in zip(video_ids(), self.vectors(models), strict=True)}
        for video, interest, score in zip(found.video_id, found.interest, found.score, strict=True):
            by_interest = {k: float(vectors[int(video)] @ interests[k]) for k in (0, 2)}
            assert interest == max(by_interest, key=lambda k: by_interest[k])
            assert score == pytest.approx(by_interest[int(interest)], abs=1e-5)

    def vectors(self, models: Models) -> np.ndarray:
        state = models.retrieval.items._state
        return np.stack([state.base.reconstruct(place) for place in range(len(state.base_ids))])


class TestHistories:
    def test_a_positive_of_the_log_counts_once(self, shared_bundle: Path, models: Models) -> None:
        """After a retrain the event files are part of the log, and the server reads them again at its start."""
        log = load_histories(read_index(shared_bundle))
        row = int(np.flatnonzero(((log["like"] == 1) | (log["long_view"] == 1)) & (log["time_ms"] >= 0))[0])
        user, video, time_ms = (int(log[name][row]) for name in ("user_id", "video_id", "time_ms"))
        histories = Histories(log)
        assert not histories.record(user, Interaction(video, time_ms, signals=LIKE), models.catalogue)
        assert histories.record(user, Interaction(video, time_ms + 1, signals=LIKE), models.catalogue)

    def test_the_log_and_feedback_come_together(self, models: Models, shared_bundle: Path) -> None:
        histories = Histories(load_histories(read_index(shared_bundle)))
        assert len(histories.view(2, [], models.catalogue).positives) == 3
        assert histories.record(2, Interaction(1050, START_MS, 4_000, LIKE), models.catalogue)
        view = histories.view(2, [], models.catalogue)
        last = {name: column[-1] for name, column in view.positives.columns().items()}
        assert (last["video_id"], last["author_id"], last["play_time_ms"]) == (1050, 505, 4_000)
        assert last["gap_ms"] == 3_600_000 - 2_000

    def test_the_same_interaction_counts_once(self, models: Models) -> None:
        histories = Histories()
        assert [histories.record(2, Interaction(1050, 5, signals=LIKE), models.catalogue) for _ in range(3)] == [
            1,
            0,
            0,
        ]
        assert histories.record(2, Interaction(1050, 6, signals=LIKE), models.catalogue)

    def test_an_amendment_may_make_it_positive(self, models: Models) -> None:
        histories = Histories()
        assert not histories.record(2, Interaction(1050, 5), models.catalogue)
        assert histories.record(2, Interaction(1050, 5, signals=LIKE), models.catalogue)
        assert len(histories.view(2, [], models.catalogue).positives) == 1

    def test_what_was_not_liked_is_seen_and_no_history(self, models: Models) -> None:
        histories = Histories()
        histories.record(2, Interaction(1050, 5, signals={"like": 0, "long_view": 0, "hate": 1}), models.catalogue)
        assert histories.seen(2).tolist() == [1050]
        assert len(histories.view(2, [], models.catalogue).positives) == 0

    def test_a_watched_list_is_laid_over_for_one_call(self, models: Models) -> None:
        histories = Histories()
        histories.record(2, Interaction(1050, 5, signals=LIKE), models.catalogue)
        watched = [Interaction(1050, 5, signals=LIKE), Interaction(1051, 6, signals=LIKE), Interaction(1052, 7)]
        assert histories.view(2, watched, models.catalogue).positives.columns(2)["video_id"].tolist() == [1050, 1051]
        assert len(histories.view(2, [], models.catalogue).positives) == 1

    def test_the_ranker_reads_every_impression(self, models: Models) -> None:
        """Shown and passed over counts too, amendments replace, the watched list is laid over for the call."""
        histories = Histories(impressions=3)
        for video in (1050, 1051):
            histories.record(2, Interaction(video, 5, 2_000, {"like": 0}), models.catalogue)
        histories.record(2, Interaction(1050, 5, 9_000, LIKE), models.catalogue)
        held = histories.view(2, [], models.catalogue).impressions.columns()
        assert held["video_id"][1:].tolist() == [1050, 1051]
        assert held["play_time_ms"][1:].tolist() == [9_000, 2_000]
        assert held["signals"][1:, SIGNALS.index("like")].tolist() == [1, 0]
        laid = histories.view(2, [Interaction(1051), Interaction(1052), Interaction(1053)], models.catalogue)
        assert laid.impressions.columns()["video_id"].tolist() == [1051, 1052, 1053]
        assert len(laid.positives) == 1

    def test_impressions_of_the_log_count_once(self, shared_bundle: Path, models: Models) -> None:
        log = load_histories(read_index(shared_bundle))
        histories, row = Histories(log), int(np.flatnonzero(log["time_ms"] >= 0)[0])
        user, video, time_ms = (int(log[name][row]) for name in ("user_id", "video_id", "time_ms"))
        n = len(histories.view(user, [], models.catalogue).impressions)
        assert n == min((log["user_id"] == user).sum(), histories.impressions)
        histories.record(user, Interaction(video, time_ms), models.catalogue)
        assert len(histories.view(user, [], models.catalogue).impressions) == n

    def test_only_the_users_touched_last_are_kept(self, models: Models) -> None:
        histories = Histories(users_max=2)
        for user in (1, 2, 1, 3):
            histories.record(user, Interaction(1050 + user, 5, signals=LIKE), models.catalogue)
        assert [len(histories.view(user, [], models.catalogue).positives) for user in (1, 2, 3)] == [1, 0, 1]

    def test_asking_for_strangers_keeps_nothing(self, models: Models) -> None:
        histories = Histories(users_max=2)
        for user in range(50):
            histories.view(user, [], models.catalogue)
        assert histories._users == {}

    @pytest.mark.parametrize("long", [256, 600])
    def test_an_encoder_that_reads_more_gets_more(self, models: Models, shared_bundle: Path, long: int) -> None:
        """As if the server had started with the longer capacity: log, what came since, and gaps."""
        log = load_histories(read_index(shared_bundle))
        grown, held = Histories(log, capacity=20), Histories(log, capacity=long)
        for histories in (grown, held):
            for step in range(25):
                histories.record(7, Interaction(1050 + step, START_MS + step, 4_000, LIKE), models.catalogue)
            if histories is grown:
                histories.hold_at_least(long)
            histories.record(7, Interaction(1090, START_MS + 100, 4_000, LIKE), models.catalogue)
        views = [histories.view(7, [], models.catalogue).positives for histories in (grown, held)]
        # 300 in the log; of the 25 since, the short one could keep no more than its 20.
        lost = 5
        assert len(views[1]) == min(long, 326)
        assert len(views[0]) == min(long, 326 - lost)
        ours, theirs = (view.columns(21) for view in views)
        for name, column in ours.items():
            np.testing.assert_array_equal(column, theirs[name])
        assert len(grown.view(6, [], models.catalogue).positives) == 40  # read from the log at the new capacity

    def test_a_shorter_encoder_forgets_nothing(self, models: Models) -> None:
        histories = Histories(capacity=30)
        histories.hold_at_least(5)
        assert histories.capacity == 30

    def test_the_recommender_holds_what_its_encoder_reads(self, models: Models) -> None:
        histories = Histories(capacity=8)
        recommender = Recommender(models, histories)
        assert histories.capacity == models.retrieval.length
        histories.capacity = 8
        recommender.swap(models)
        assert histories.capacity == models.retrieval.length

    def test_unknown_signals(self) -> None:
        with pytest.raises(InputError, match="signal"):
            Interaction(1, signals={"joy": 1})


class TestRecommend:
    def test_the_long_history_leads_to_its_topic(self, recommender: Recommender) -> None:
        found = recommender.recommend(3, 10)
        assert found.reason == ""
        assert topics(found.video_id).count(2) >= 8
        assert np.isfinite(found.retrieval).all()

    def test_the_order_is_the_rankers(self, recommender: Recommender) -> None:
        found = recommender.recommend(3, 10)
        assert (np.diff(found.value) <= 0).all()
        fusion = recommender.models.ranker.fusion
        np.testing.assert_allclose(found.value, server_value(found.pxtr, found.items["duration_ms"], fusion), rtol=1e-5)

    def test_an_interaction_counts_at_the_next_call(self, recommender: Recommender) -> None:
        assert recommender.recommend(COLD, 10).reason == NO_HISTORY
        for video in (1001, 1005, 1009, 1013):
            assert recommender.add_interaction(COLD, video, signals=LIKE)
        found = recommender.recommend(COLD, 10)
        assert found.reason == ""
        assert set(topics(found.video_id)) == {1}

    def test_the_watched_list_counts_for_its_own_call(self, recommender: Recommender) -> None:
        watched = [Interaction(1003 + 4 * i, NOW_MS + i, signals={"long_view": 1}) for i in range(4)]
        found = recommender.recommend(777, 10, watched=watched)
        assert found.reason == ""
        assert set(topics(found.video_id)) == {3}
        assert recommender.recommend(777, 10).reason == NO_HISTORY

    def test_watched_excluded_and_reported_videos_do_not_come(self, recommender: Recommender) -> None:
        recommender.add_interaction(3, 1002)
        gone = [1006, 1010, 1014]
        found = recommender.recommend(3, 60, watched=[Interaction(1018)], exclude=gone)
        assert not np.isin(found.video_id, [1002, *gone, 1018]).any()

    def test_reported_videos_come_again_when_nothing_else_is_left(self, recommender: Recommender) -> None:
        for video in video_ids()[:100].tolist():
            recommender.add_interaction(COLD, video)
        found = recommender.recommend(COLD, 30)
        assert len(found) == 30
        assert found.reason == REPEATS
        assert np.isin(video_ids()[100:], found.video_id).all()

    def test_excluded_videos_never_come_again(self, recommender: Recommender) -> None:
        found = recommender.recommend(COLD, 50, exclude=video_ids()[:115].tolist())
        assert sorted(found.video_id.tolist()) == video_ids()[115:].tolist()
        assert len(recommender.recommend(COLD, 50, exclude=video_ids().tolist())) == 0

    def test_popular_videos_fill_up(self, models: Models) -> None:
        histories = Histories()
        recommender = Recommender(models, histories, pool=4, clock=lambda: NOW_MS)
        recommender.add_interaction(5, 1000, signals=LIKE)
        # Everything retrievable is banned but five videos; retrieval itself is asked for max(k, pool).
        assert len(recommender.recommend(5, 30)) == 30
        assert recommender.recommend(5, N_ITEMS).reason in (SHORT, REPEATS)

    def test_cold_users_get_what_many_watched(self, recommender: Recommender, models: Models) -> None:
        popular = recommender._popular
        assert sorted(popular.tolist()) == video_ids().tolist()
        counts = recommender._histories.popularity()
        ordered = [counts.get(int(v), 0) for v in popular]
        assert ordered == sorted(ordered, reverse=True)
        assert set(recommender.recommend(COLD, 5).video_id.tolist()) <= set(popular[:24].tolist())

    def test_without_any_log_the_newest_lead(self, models: Models) -> None:
        popular = popular_items(models, Histories())
        upload = models.catalogue.upload_ms[models.catalogue.index_of(popular)]
        assert (np.diff(upload) <= 0).all()

    def test_user_columns_travel(self, recommender: Recommender) -> None:
        found = recommender.recommend(3, 5, hour=13)
        assert (found.user_activity, found.user_register_days, found.hour) == (3, 120, 13)
        assert found.user_profile[3] > 0, "the log tells of this user"
        assert (found.recent_authors != MISSING_KEY).any()
        stranger = recommender.recommend(12345, 5)
        assert np.isnan(stranger.user_profile[:3]).all()
        assert (stranger.recent_authors == MISSING_KEY).all()
        assert (stranger.user_activity, stranger.user_register_days, stranger.hour) == (-1, -1, -1)

    @pytest.mark.parametrize("k", [0, -3])
    def test_k_starts_at_one(self, recommender: Recommender, k: int) -> None:
        with pytest.raises(InputError, match="at least 1"):
            recommender.recommend(3, k)

    @pytest.mark.parametrize("user", [-1, 2**64 - 1, 2**64])
    def test_ids_are_64_bits(self, recommender: Recommender, user: int) -> None:
        with pytest.raises(InputError, match="64-bit"):
            recommender.recommend(user, 3)
        with pytest.raises(InputError, match="64-bit"):
            recommender.add_interaction(3, user)

    def test_from_bundle(self, shared_bundle: Path) -> None:
        found = Recommender.from_bundle(shared_bundle, clock=lambda: NOW_MS).recommend(3, 7)
        assert len(found) == 7
        assert (found.retrieval_version, found.ranker_version) == ("kuaiformer-tiny", "ranker-tiny")

    def test_a_swap_keeps_histories(self, recommender: Recommender, models: Models) -> None:
        recommender.add_interaction(COLD, 1001, signals=LIKE)
        before = recommender.recommend(COLD, 10)
        recommender.swap(models)
        np.testing.assert_array_equal(recommender.recommend(COLD, 10).video_id, before.video_id)

    def test_the_pool_has_a_size(self, models: Models) -> None:
        with pytest.raises(InputError, match="pool"):
            Recommender(models, Histories(), pool=0)

    def test_topics_are_all_there(self) -> None:
        assert set(topics(video_ids())) == set(range(TOPICS))
