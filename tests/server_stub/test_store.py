"""The embedding store: gathers against an obvious dictionary, updates all or nothing, snapshots that come back."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from contract.errors import InputError, SpecError
from contract.spec import FeatureSpec
from contract.specs import kir_spec, kuaiformer_spec, ranker_spec
from contract.vocabulary import MISSING_KEY
from server_stub.store import EmbeddingStore, EmbeddingTable, block_rows, read_tables
from server_stub.testing import fake_catalogue, fake_tables

WIDTH = 3
BIG = 2**64 - 2  # past int64: keys are bits, not numbers


def keys(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def table(*known: int, dtype: str = "float32") -> EmbeddingTable:
    rows = np.arange((1 + len(known)) * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
    return EmbeddingTable(np.concatenate([[MISSING_KEY], keys(*known)]), rows, dtype=dtype)


@pytest.fixture
def store() -> EmbeddingStore:
    store = EmbeddingStore()
    spec = FeatureSpec("one", (kir_spec(user=WIDTH).fields[0],))
    store.add_version("a", spec, {"user": table(5, 9, BIG)}, rows_revision=3)
    store.add_version("b", spec, {"user": table(5)}, rows_revision=8)
    return store


class TestTable:
    def test_slots_follow_the_rule_of_training(self) -> None:
        asked = np.array([[5, BIG], [int(MISSING_KEY), 7]], np.uint64)
        assert table(5, 9, BIG).slots(asked).tolist() == [[1, 3], [-1, 0]]

    def test_rows_of_no_entry_and_unknown_key_are_the_default_row(self) -> None:
        found = table(5)
        np.testing.assert_array_equal(found.rows(np.array([-1, 0, 1])), [[0, 1, 2], [0, 1, 2], [3, 4, 5]])

    def test_no_keys_at_all(self) -> None:
        assert table(5).slots(keys()).shape == (0,)
        assert table(5).rows(np.zeros(0, np.int64)).shape == (0, WIDTH)

    @given(st.lists(st.integers(0, BIG), unique=True, max_size=40), st.lists(st.integers(0, BIG), max_size=40))
    def test_against_a_dictionary(self, known: list[int], others: list[int]) -> None:
        found = table(*known)
        expected = {key: i + 1 for i, key in enumerate(known)}
        asked = known[::2] + others
        assert found.slots(keys(*asked)).tolist() == [expected.get(key, 0) for key in asked]

    def test_new_keys_get_rows_past_the_first_capacity(self) -> None:
        found = table(5)
        added = np.arange(100, 400, dtype=np.uint64)
        found.apply(*found.checked_update(added, np.repeat(added.astype(np.float32)[:, None], WIDTH, 1)))
        assert len(found) == 302
        np.testing.assert_array_equal(found.rows(found.slots(keys(100, 399, 5)))[:, 0], [100, 399, 3])

    def test_last_value_of_a_repeated_key_counts(self) -> None:
        found = table(5)
        found.apply(*found.checked_update(keys(7, 7), np.array([[1, 1, 1], [2, 2, 2]], np.float32)))
        assert found.rows(found.slots(keys(7))).tolist() == [[2, 2, 2]]

    def test_float16_rows_come_back_as_float32(self) -> None:
        found = table(5, dtype="float16")
        assert found.all_rows.dtype == np.float16
        assert found.rows(np.array([1])).dtype == np.float32

    @pytest.mark.parametrize(
        ("table_keys", "rows", "what"),
        [
            (keys(5), np.zeros((1, 2)), "default row"),
            (keys(int(MISSING_KEY), 5, 5), np.zeros((3, 2)), "twice"),
            (keys(int(MISSING_KEY)), np.zeros((2, 2)), "belong together"),
            (keys(int(MISSING_KEY)), np.zeros((1, 0)), "belong together"),
            (keys(int(MISSING_KEY)), np.full((1, 2), np.nan), "non-finite"),
            (keys(), np.zeros((0, 2)), "default row"),
        ],
    )
    def test_refuses_what_is_no_table(self, table_keys: NDArray[np.uint64], rows: NDArray, what: str) -> None:
        with pytest.raises(InputError, match=what):
            EmbeddingTable(table_keys, rows.astype(np.float32))

    def test_float16_overflow_is_refused(self) -> None:
        with pytest.raises(InputError, match="non-finite"):
            EmbeddingTable(keys(int(MISSING_KEY)), np.full((1, 2), 1e6, np.float32), dtype="float16")

    def test_unknown_dtype_is_refused(self) -> None:
        with pytest.raises(InputError, match="dtype"):
            table(5, dtype="int3")


class TestGather:
    def test_rows_come_once_in_key_order_after_the_default_row(self, store: EmbeddingStore) -> None:
        found = store.gather("a", {"user": keys(9, 5, 9, 77, int(MISSING_KEY), 5)})
        assert found.rows_revision == 3
        assert found.rows["user"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        assert found.slots["user"].tolist() == [2, 1, 2, 0, -1, 1]
        assert found.missing == 1

    def test_gathered_rows_equal_those_looked_up_one_by_one(self, store: EmbeddingStore) -> None:
        asked = keys(9, BIG, 5, 1, 9)
        found = store.gather("a", {"user": asked})
        _, rows, missing = store.get("a", "user", asked)
        np.testing.assert_array_equal(found.rows["user"][found.slots["user"]], rows)
        assert missing == 1

    def test_keeps_the_shape_of_what_was_asked(self, store: EmbeddingStore) -> None:
        assert store.gather("a", {"user": np.full((4, 3), 5, np.uint64)}).slots["user"].shape == (4, 3)

    def test_a_gather_is_a_copy(self, store: EmbeddingStore) -> None:
        before = store.gather("a", {"user": keys(5)})
        store.update("a", "user", keys(5), np.zeros((1, WIDTH), np.float32))
        assert before.rows["user"].tolist()[1] == [3, 4, 5]

    @pytest.mark.parametrize(("version", "name"), [("z", "user"), ("a", "video"), ("", "user")])
    def test_what_is_not_live_is_an_input_error(self, store: EmbeddingStore, version: str, name: str) -> None:
        with pytest.raises(InputError):
            store.gather(version, {name: keys(5)})


class TestUpdate:
    def test_a_named_version_alone_is_written(self, store: EmbeddingStore) -> None:
        assert store.update("a", "user", keys(5, 600), np.ones((2, WIDTH), np.float32)) == 4
        assert store.get("a", "user", keys(5, 600))[1].tolist() == [[1] * WIDTH] * 2
        assert store.get("b", "user", keys(5))[:1] == (8,)
        assert store.get("b", "user", keys(5))[1].tolist() == [[3, 4, 5]]

    def test_no_name_means_every_live_version(self, store: EmbeddingStore) -> None:
        assert store.update("", "user", keys(5), np.ones((1, WIDTH), np.float32)) == 9
        assert [v.rows_revision for v in store.versions()] == [4, 9]
        assert store.get("b", "user", keys(5))[1].tolist() == [[1] * WIDTH]

    def test_the_default_row_can_be_updated(self, store: EmbeddingStore) -> None:
        store.update("a", "user", keys(int(MISSING_KEY)), np.full((1, WIDTH), 7, np.float32))
        assert store.get("a", "user", keys(12345))[1].tolist() == [[7] * WIDTH]

    @pytest.mark.parametrize("values", [np.ones((1, 2)), np.ones((2, WIDTH)), np.full((1, WIDTH), np.inf), np.ones(3)])
    def test_a_bad_update_changes_nothing(self, store: EmbeddingStore, values: NDArray) -> None:
        with pytest.raises(InputError):
            store.update("", "user", keys(5), values.astype(np.float32))
        assert [v.rows_revision for v in store.versions()] == [3, 8]
        assert store.get("a", "user", keys(5))[1].tolist() == [[3, 4, 5]]

    def test_a_width_that_fits_one_version_only_is_refused_for_all(self, store: EmbeddingStore) -> None:
        wide = FeatureSpec("wide", (kir_spec(user=4).fields[0],))
        tables = {"user": EmbeddingTable(keys(int(MISSING_KEY)), np.zeros((1, 4), np.float32))}
        store.add_version("c", wide, tables, 0)
        with pytest.raises(InputError):
            store.update("", "user", keys(5), np.ones((1, WIDTH), np.float32))
        assert [v.rows_revision for v in store.versions()] == [3, 8, 0]

    def test_a_table_nobody_has(self, store: EmbeddingStore) -> None:
        with pytest.raises(InputError, match="no live version"):
            store.update("", "planet", keys(5), np.ones((1, WIDTH), np.float32))

    def test_readers_never_see_half_an_update(self, store: EmbeddingStore) -> None:
        """Every revision writes one number everywhere; a gather must find that number alone, and its revision."""
        asked = np.arange(1000, 1400, dtype=np.uint64)
        store.update("a", "user", asked, np.full((400, WIDTH), 4, np.float32))
        stop = threading.Event()

        def write() -> None:
            revision = 4
            while not stop.is_set():
                revision += 1
                store.update("a", "user", asked, np.full((400, WIDTH), revision, np.float32))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            seen = [store.gather("a", {"user": asked}) for _ in range(200)]
        finally:
            stop.set()
            writer.join()
        assert all((found.rows["user"][1:] == found.rows_revision).all() for found in seen)


class TestVersions:
    def test_removed_versions_are_gone(self, store: EmbeddingStore) -> None:
        store.remove_version("a")
        store.remove_version("never")
        assert [v.dense_version for v in store.versions()] == ["b"]

    def test_tables_must_be_those_of_the_spec(self, store: EmbeddingStore) -> None:
        with pytest.raises(InputError, match="do not fit the spec"):
            store.add_version("c", kir_spec(), {"user": table(5)}, 0)

    def test_negative_revision(self, store: EmbeddingStore) -> None:
        with pytest.raises(InputError, match="negative"):
            store.add_version("c", FeatureSpec("one", (kir_spec(user=WIDTH).fields[0],)), {"user": table(5)}, -1)

    def test_a_spec_without_tables_is_live_without_rows(self, store: EmbeddingStore) -> None:
        store.add_version("p", kir_spec().without_served(), {}, 0)
        assert store.gather("p", {}).rows == {}


class TestSnapshot:
    def test_comes_back_with_revision_spec_and_rows(self, store: EmbeddingStore, tmp_path: Path) -> None:
        store.update("a", "user", keys(600, 2), np.arange(6, dtype=np.float32).reshape(2, 3))
        path = store.snapshot("a", tmp_path)
        again = EmbeddingStore()
        live = again.restore(path)
        assert (live.dense_version, live.rows_revision) == ("a", 4)
        assert live.spec_fingerprint == store.versions()[0].spec_fingerprint
        asked = keys(2, 5, 9, 600, BIG, 1)
        np.testing.assert_array_equal(again.get("a", "user", asked)[1], store.get("a", "user", asked)[1])

    def test_is_in_the_layout_of_a_checkpoint(self, store: EmbeddingStore, tmp_path: Path) -> None:
        store.update("a", "user", keys(2), np.ones((1, WIDTH), np.float32))
        spec = store.versions()[0].spec
        tables = read_tables(store.snapshot("a", tmp_path), spec)
        assert tables["user"].keys.tolist() == [int(MISSING_KEY), 2, 5, 9, BIG]
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]

    def test_other_files_are_refused(self, store: EmbeddingStore, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(b"garbage")
        for name in ("x.safetensors", "absent.safetensors"):
            with pytest.raises(InputError, match="not a snapshot"):
                store.restore(tmp_path / name)

    def test_read_tables_tells_what_is_wrong(self, store: EmbeddingStore, tmp_path: Path) -> None:
        path = store.snapshot("a", tmp_path)
        with pytest.raises(InputError, match="absent"):
            read_tables(path, kuaiformer_spec())
        with pytest.raises(SpecError, match="width"):
            read_tables(path, FeatureSpec("wide", (kir_spec(user=9).fields[0],)))
        with pytest.raises(InputError, match="safetensors"):
            read_tables(tmp_path / "absent", ranker_spec())


def test_block_rows_equal_pooling_by_hand() -> None:
    spec, items = kir_spec(), fake_catalogue(12)
    tables = fake_tables(spec, items)
    columns = {"video_id": items.video_id, "author_id": items.author_id, "tags": items.tags}
    got = block_rows(spec, "candidate_rows", tables, columns, len(items))
    for i in range(len(items)):
        tags = [int(t) for t in items.tags[i] if t != MISSING_KEY]
        parts = [
            tables["video"].rows(tables["video"].slots(items.video_id[i : i + 1]))[0],
            tables["author"].rows(tables["author"].slots(items.author_id[i : i + 1]))[0],
            tables["tag"].rows(tables["tag"].slots(keys(*tags))).mean(axis=0),
        ]
        np.testing.assert_allclose(got[i], np.concatenate(parts), rtol=1e-6)
