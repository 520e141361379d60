"""Windows kept between two answers: torch's answer with the same cut at every length, and anew when they must be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.errors import InputError, VersionMismatch
from contract.history import UserHistory
from contract.window_plan import WindowPlan
from convert.retrieval import write_retrieval
from server_stub.kept_windows import KeptWindows, _bytes_of
from server_stub.retrieval import Retrieval
from server_stub.retrieve import Retriever
from tests.convert import makers
from training.checkpoint import load_checkpoint
from training.kuaiformer_train import load_kuaiformer

PLAN: dict[str, Any] = {"windows": (8, 8, 4, 4), "latest": 10}
EARLY, LATEST, SHORTEST = 24, 10, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and what the server reads of it."""
    folder = tmp_path_factory.mktemp("kept")
    checkpoint = makers.make_kuaiformer(folder / "kuaiformer", **PLAN).path
    catalogue = makers.make_catalogue(folder / "catalogue.parquet")
    write_retrieval(folder / "out", checkpoint=checkpoint, catalogue=catalogue)
    return checkpoint, folder / "out"


@pytest.fixture
def retrieval(made: tuple[Path, Path]) -> Retrieval:
    return Retriever.load(made[1]).retrieval


def watch(history: UserHistory, number: int) -> None:
    item = {"video_id": makers.VIDEOS[number * 7 % makers.N_ITEMS], "play_time_ms": 1_000 * (number % 9)}
    history.append(item, 60_000 * number)


def kept_of(retrieval: Retrieval) -> KeptWindows:
    assert retrieval._kept is not None
    return retrieval._kept


def by_torch(
    checkpoint: Path, retrieval: Retrieval, history: UserHistory, tail: int, sizes: tuple[int, ...] = PLAN["windows"]
) -> np.ndarray:
    """The net's answer with windows of these sizes and `tail` raw items, straight from rows and training's own code."""
    encoder, length = load_kuaiformer(load_checkpoint(checkpoint)).encoder, retrieval.length
    columns, mask = history.columns(length), history.mask(length)
    rows = torch.from_numpy(retrieval._rows(_Part(columns, mask)))[None]
    there, end = torch.from_numpy(mask)[None], length - tail
    old = slice(end - sum(sizes), end)
    with torch.no_grad():
        kept = encoder.compressed(rows[:, old], there[:, old], sizes)
        found = encoder.behind(kept, rows[:, end:], there[:, end:])
    return found[0, 0].numpy()


class _Part:
    def __init__(self, columns: Any, mask: Any):
        self.columns, self.mask = columns, mask


def test_a_growing_history_is_answered_by_training_s_own_cuts(made: tuple[Path, Path], retrieval: Retrieval) -> None:
    """From nothing to past what is held; a window of 4 is made when as many items have come, one of 8 for every other
    of them, and none twice."""
    history, kept, tail, sizes = UserHistory(EARLY + LATEST), kept_of(retrieval), 0, PLAN["windows"]
    told = []
    for number in range(3 * (EARLY + LATEST)):
        before = kept.made
        found = retrieval.encode(history, 5)
        if number <= LATEST:
            tail = number
            assert kept.made == 0
        else:
            tail = tail + 1 if tail < LATEST and kept.made == before else SHORTEST
            sizes = kept._kept[5].sizes
            if tail == SHORTEST:
                told.append((sizes, kept.made - before))
            else:
                assert kept.made == before
        if number:
            np.testing.assert_allclose(found, by_torch(made[0], retrieval, history, tail, sizes), atol=2e-5)
        if tail == min(number, LATEST) and sizes == PLAN["windows"]:
            np.testing.assert_allclose(found, retrieval.encode(history), atol=2e-5)
        np.testing.assert_array_equal(found, retrieval.encode(history, 5))
        watch(history, number)
    fewer, plan = (8, 8, 4), PLAN["windows"]
    assert told[:4] == [(plan, 1), (plan, 1), (fewer, 2), (plan, 1)]
    assert told[4:] == [(fewer, 2) if n % 2 == 0 else (plan, 1) for n in range(len(told) - 4)]


@pytest.mark.parametrize("step", [1, 3, 5, 9, 13, 21, 40])
def test_however_many_items_came_since_the_last_answer(
    made: tuple[Path, Path], retrieval: Retrieval, step: int
) -> None:
    history, kept, seen = UserHistory(EARLY + LATEST), kept_of(retrieval), set()
    for number in range(6 * step + 60):
        watch(history, number)
        if number % step == 0 and number >= LATEST:
            found = retrieval.encode(history, 5)
            held = kept._kept[5]
            tail = kept._since(held, _bytes_of(history.columns(EARLY + LATEST)))
            assert SHORTEST <= tail <= LATEST
            assert held.sizes in kept.plan.variants
            np.testing.assert_allclose(found, by_torch(made[0], retrieval, history, tail, held.sizes), atol=2e-5)
            seen.add(held.sizes)
    assert seen == set(kept.plan.variants) or step >= 21


def test_a_tail_that_holds_less_than_a_window(tmp_path: Path) -> None:
    checkpoint = makers.make_kuaiformer(tmp_path / "kuaiformer", windows=(6, 6), latest=4).path
    write_retrieval(tmp_path / "out", checkpoint=checkpoint, catalogue=makers.make_catalogue(tmp_path / "c.parquet"))
    retrieval, history = Retriever.load(tmp_path / "out").retrieval, UserHistory(16)
    for number in range(1, 40):
        watch(history, number)
        found = retrieval.encode(history, 5)
        tail = number if number <= 4 else (number - 5) % 4 + 1
        np.testing.assert_allclose(found, by_torch(checkpoint, retrieval, history, tail, (6, 6)), atol=2e-5)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ((8, 8, 4, 4), [(8, 8, 4), (8, 8, 4, 4)]),
        ((64, 64, 16, 16, 16, 16, 16), [(64, 64, *[16] * n) for n in (2, 3, 4, 5)]),
        ((16, 8, 4, 4, 4), [(16, 8, 4, 4), (16, 8, 4, 4, 4)]),
        ((64, 16, 16), [(64, 16, 16)]),
        ((10, 4, 4, 4), [(10, 4, 4, 4)]),
        ((4, 4), [(4, 4)]),
        ((4, 8, 4), [(4, 8, 4)]),
    ],
)
def test_plans_with_fewer_of_the_smallest(plan: tuple[int, ...], expected: list[tuple[int, ...]]) -> None:
    assert WindowPlan(plan, 10).variants == expected


def test_states_of_a_user_who_is_answered_after_every_positive() -> None:
    """Nothing is left out between the windows, and no more than a window of the largest size at the old end."""
    plan = WindowPlan((64, 64, 16, 16, 16, 16, 16), 48)
    states = plan.after_each(1000)
    assert len(states) == 1001
    for n, (tail, sizes) in enumerate(states):
        assert tail == n and not sizes if n <= 48 else 33 <= tail <= 48
        assert min(n, 193) <= tail + sum(sizes) <= 256
    small = WindowPlan((16, 16), 5).after_each(200)  # a tail that holds less than a window
    assert all(tail == n if n <= 5 else 1 <= tail <= 5 and sizes == (16, 16) for n, (tail, sizes) in enumerate(small))
    stands = [sizes.count(16) for _, sizes in states[300:]]
    assert sorted(set(stands)) == [2, 3, 4, 5]
    moved = [n for n in range(301, 1001) if states[n][1] != states[n - 1][1]]
    assert set(np.diff(moved)) == {16}


def test_each_user_has_windows_of_their_own(made: tuple[Path, Path], retrieval: Retrieval) -> None:
    histories = [UserHistory(EARLY + LATEST) for _ in range(2)]
    for number in range(20):
        watch(histories[0], number)
        watch(histories[1], number + 3)
    answers = [retrieval.encode(history, user) for user, history in enumerate(histories)]
    n_made = kept_of(retrieval).made
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
    for user, history in enumerate(histories):
        np.testing.assert_array_equal(retrieval.encode(history, user), answers[user])
    assert kept_of(retrieval).made == n_made
    # Another history under that name: it holds the last item of the windows ten items ago, and goes on from there.
    other = retrieval.encode(histories[1], 0)
    np.testing.assert_allclose(other, by_torch(made[0], retrieval, histories[1], 10), atol=2e-5)


@pytest.mark.parametrize(("place", "made_then"), [(2, 0), (3, 1), (12, 1), (26, 1), (27, 0)])
def test_feedback_that_changes_an_old_item_makes_its_windows_anew(
    retrieval: Retrieval, place: int, made_then: int
) -> None:
    history, kept = UserHistory(EARLY + LATEST), kept_of(retrieval)
    for number in range(EARLY + LATEST):
        watch(history, number)
    retrieval.encode(history, 5)
    before = kept.made
    assert history.amend(int(makers.VIDEOS[place * 7 % makers.N_ITEMS]), {"play_time_ms": 90_000})
    after = retrieval.encode(history, 5)
    assert kept.made == before + made_then
    fresh = retrieval.copy()
    fresh._kept = kept.copy()
    np.testing.assert_array_equal(after, fresh.encode(history, 5))


def test_only_so_many_users_are_kept(retrieval: Retrieval, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = kept_of(retrieval)
    monkeypatch.setattr(kept, "_users_max", 2)
    history = UserHistory(EARLY + LATEST)
    for number in range(20):
        watch(history, number)
    for user in (1, 2, 1, 3, 1, 2):
        retrieval.encode(history, user)
    one = kept.made / 4  # 1, 2, 3, and 2 again, which was asked for longest ago
    again = kept.copy()
    again.encode(1, history, retrieval._rows)
    assert one == again.made > 0


def test_rows_that_changed_forget_what_was_made_of_them(made: tuple[Path, Path], retrieval: Retrieval) -> None:
    history = UserHistory(EARLY + LATEST)
    for number in range(20):
        watch(history, number)
    retrieval.encode(history, 5)
    made_once = kept_of(retrieval).made
    same = retrieval.copy()  # items alone
    same.encode(history, 5)
    assert kept_of(same) is kept_of(retrieval)
    assert kept_of(retrieval).made == made_once
    other = retrieval.copy(made[1] / "tables.safetensors")
    other.encode(history, 5)
    assert (kept_of(other).made, kept_of(retrieval).made) == (made_once, made_once)


class TestFiles:
    @pytest.fixture
    def folder(self, made: tuple[Path, Path], tmp_path: Path) -> Path:
        return Path(shutil.copytree(made[1], tmp_path / "out"))

    def test_a_bundle_without_halves_is_answered_whole(self, folder: Path) -> None:
        (folder / "tail.onnx").unlink()
        retrieval, history = Retriever.load(folder).retrieval, UserHistory(EARLY + LATEST)
        for number in range(20):
            watch(history, number)
        assert retrieval._kept is None
        np.testing.assert_array_equal(retrieval.encode(history, 5), retrieval.encode(history))

    def test_halves_of_two_encoders(self, folder: Path, tmp_path: Path) -> None:
        other = makers.make_kuaiformer(tmp_path / "other", **{**PLAN, "width": 24, "heads": 2}).path
        write_retrieval(tmp_path / "b", checkpoint=other, catalogue=makers.make_catalogue(tmp_path / "c.parquet"))
        shutil.copyfile(tmp_path / "b" / "tail.onnx", folder / "tail.onnx")
        with pytest.raises(VersionMismatch, match="of two encoders"):
            Retriever.load(folder)

    @pytest.mark.parametrize("model", [{}, {"windows": "x"}, {"windows": []}])
    def test_sizes_that_are_not_told(self, folder: Path, model: dict[str, Any]) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model": model}))
        with pytest.raises(InputError, match="windows are not told"):
            Retriever.load(folder)

    def test_a_plan_without_windows_has_none(self, tmp_path: Path) -> None:
        checkpoint = makers.make_kuaiformer(tmp_path / "raw", windows=(), latest=12).path
        catalogue = makers.make_catalogue(tmp_path / "c.parquet")
        write_retrieval(tmp_path / "out", checkpoint=checkpoint, catalogue=catalogue)
        assert not (tmp_path / "out" / "tail.onnx").exists()
        assert Retriever.load(tmp_path / "out").retrieval._kept is None
