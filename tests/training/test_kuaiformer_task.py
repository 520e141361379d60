"""The task's loss, for every kind of candidates, equals the definition written out target by target.

Reference: each target's history is cut out and encoded alone, its score with every candidate is the best inner product
over its interests, and the loss is a softmax over a Python list.

Shapes: T targets, C candidates, D width.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.kuaiformer_makers import config_of, net_of, split_of_sizes, tables_of
from training.candidates import OwnedItems
from training.distributed import split_batch
from training.frequency import FrequencyEstimator
from training.kuaiformer_task import FULL_UP_TO_ITEMS, KuaiFormerTask, LossConfig
from training.segments import SegmentBatch, SegmentData

N_ITEMS = 25
PLAN = {"windows": (), "latest": 12}
FULL, IN_BATCH, SAMPLED = ({"candidates": name} for name in ("full", "in-batch", "sampled"))


def made(loss: dict[str, Any], seed: int = 0, **changes: Any) -> tuple[KuaiFormerTask, list[SegmentBatch]]:
    """A task in eval mode and the batches of an epoch."""
    split = split_of_sizes([3, 9, 14, 6, 20], n_items=N_ITEMS, lag=2)
    config = config_of("raw", **{**PLAN, **changes})
    spec = config.spec()
    tables = tables_of(split, spec)
    with torch.no_grad():
        for weight in tables.weights.values():
            weight.mul_(20.0)
    data = SegmentData(split, spec, tables, windows=config.windows, latest=config.latest, batch=12)
    users = np.repeat(np.arange(5), np.diff(split.index.offsets))
    owned = OwnedItems.from_pairs(torch.from_numpy(users), torch.from_numpy(split.row_P))
    estimator = FrequencyEstimator.from_counts(torch.from_numpy(split.counts()).float(), 12)
    net = net_of(config).requires_grad_(True)
    options = LossConfig(**{"negatives": 9, **loss})
    watched_N = torch.from_numpy(split.counts()) > 0
    task = KuaiFormerTask(net, tables, estimator, data.item_slots, options, owned, seed, watched_N=watched_N).eval()
    return task, list(data.batches(0, 0))


def drawn(task: KuaiFormerTask, batch: SegmentBatch) -> tuple[list[int], list[float] | None]:
    """Candidates, and log Q of each where it is corrected; from a copy, so that the task's state stays."""
    rows_C, log_q_C = copy.deepcopy(task)._candidates(batch.item)
    candidates = list(range(N_ITEMS)) if rows_C is None else rows_C.tolist()
    return candidates, None if log_q_C is None else log_q_C.tolist()


def value_of(task: KuaiFormerTask, batch: SegmentBatch, *whole: SegmentBatch) -> float:
    return float(task.loss(batch, *whole)[0].detach())


@torch.no_grad()
def slow_loss(task: KuaiFormerTask, batch: SegmentBatch) -> float:
    net, config = task.net, task.config
    candidates, log_q = drawn(task, batch)
    slots = {name: getattr(task, f"slots_{name}") for name in task._fields}
    items_ND = net.item_vector(task.tables.rows(net.spec, "item_rows", slots)).double()
    liked = {
        int(u): {int(i) for i in task.owned_items[task.owned_offsets[u] : task.owned_offsets[u + 1]]}
        for u in batch.owner.unique()
    }
    item_of = {slot: item for item, slot in enumerate(task.slots_item_video_id[:, 0].tolist()) if slot}
    losses = []
    for cell, item, owner in zip(batch.cell.tolist(), batch.item.tolist(), batch.owner.tolist(), strict=True):
        row, cut = divmod(cell, batch.n_cuts)
        end = batch.mask.shape[1] - batch.n_cuts + cut + 1
        history = {name: slots[row : row + 1, :end] for name, slots in batch.history.items()}
        rows = task.tables.rows(net.spec, "history_rows", history)
        interests = net.encoder(rows, batch.mask[row : row + 1, :end])[0].double()
        seen = {item_of.get(slot) for slot in history["history_video_id"].flatten().tolist()}
        z = {}
        for c, candidate in enumerate(candidates):
            if config.except_owned and candidate != item and candidate in liked[owner]:
                continue
            if config.except_seen and candidate != item and candidate in seen:
                continue
            z[candidate] = max(float(u @ items_ND[candidate]) for u in interests) / net.config.temperature
            if log_q is not None and (config.correction == "logq" or candidate != item):
                z[candidate] -= log_q[c]
        total = sum(math.exp(value) for value in z.values())
        p = {candidate: math.exp(value) / total for candidate, value in z.items()}
        loss, others = -math.log(p[item]), [p[c] for c in p if c != item]
        if config.smoothing == "standard":
            loss = (1 - config.alpha) * loss - config.alpha / len(candidates) * sum(map(math.log, others))
        elif config.smoothing == "paper":
            smooth = sum(math.log(1 - q) for q in others)
            loss = (1 - config.alpha) * loss - config.alpha / len(candidates) * smooth
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    "loss",
    [
        FULL,
        {**FULL, "except_owned": True},
        {**FULL, "except_seen": True},
        {**FULL, "smoothing": "standard", "except_seen": True},
        {**IN_BATCH, "correction": "corrected", "except_seen": True},
        {**SAMPLED, "correction": "logq", "except_seen": True},
        {**FULL, "smoothing": "paper", "alpha": 0.3},
        {**FULL, "smoothing": "standard", "except_owned": True},
        {**IN_BATCH, "correction": "none"},
        {**IN_BATCH, "correction": "logq"},
        {**IN_BATCH, "correction": "corrected", "except_owned": True},
        {**IN_BATCH, "correction": "logq", "smoothing": "standard"},
        {**SAMPLED, "correction": "none"},
        {**SAMPLED, "correction": "logq"},
        {**SAMPLED, "correction": "corrected", "smoothing": "paper", "except_owned": True},
    ],
    ids=lambda loss: "-".join(str(value) for value in loss.values()),
)
def test_the_loss_is_its_definition(loss):
    task, batches = made(loss, temperature=0.5)
    values = []
    for batch in batches[:3]:
        expected = slow_loss(task, batch)
        found, numbers = task.loss(batch)
        assert float(found.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert numbers == {"targets": len(batch.item)}
        values.append(expected)
    assert max(values) > 0.1, "a loss of nothing proves nothing"


def test_without_unit_vectors_scores_are_plain_products():
    task, batches = made(FULL, normalise=False, temperature=0.5)
    assert task.scale == 1.0
    task.net.config.__dict__["temperature"] = 1.0  # what the reference divides by
    assert value_of(task, batches[0]) == pytest.approx(slow_loss(task, batches[0]), rel=1e-4)
    assert made(FULL, temperature=0.5)[0].scale == 2.0


def test_windows_reach_the_loss():
    """Not the cells' places alone: with windows the encoder makes them at every cut."""
    task, batches = made(FULL, windows=(4, 4), latest=6)
    batch = next(b for b in batches if b.mask.shape[1] > 6)
    with torch.no_grad():
        before = value_of(task, batch)
        for weight in task.net.encoder.window_block.parameters():
            weight.mul_(3.0)
        assert value_of(task, batch) != pytest.approx(before, rel=1e-3)


def test_log_q_is_taken_only_where_candidates_are_drawn():
    task, batches = made(FULL)
    assert task._candidates(batches[0].item) == (None, None), "the whole catalogue needs no correction"
    for kind in (IN_BATCH, SAMPLED):
        assert drawn(made({**kind, "correction": "none"})[0], batches[0])[1] is None
    task, batches = made(IN_BATCH)
    rows, log_q = drawn(task, batches[0])
    assert rows == sorted(set(batches[0].item.tolist()))
    assert max(log_q) <= 0
    task, batches = made(SAMPLED)
    rows, log_q = drawn(task, batches[0])
    there = set(batches[0].item.tolist())
    assert there < set(rows), "the batch's items and others"
    assert len(rows) <= len(there) + 9
    for row, value in zip(rows, log_q, strict=True):
        assert value == pytest.approx(0.0 if row in there else math.log(9 / N_ITEMS))


def test_frequencies_are_those_of_batches_seen():
    """An in-batch loss counts its batch, once, whoever asks; the others leave the estimator alone."""
    for kind, steps in ((IN_BATCH, 3), (FULL, 0), (SAMPLED, 0)):
        task, batches = made(kind)
        for batch in batches[:3]:
            task.loss(batch)
        assert int(task.estimator.step) == steps
    task, batches = made(IN_BATCH)
    expected = copy.deepcopy(task.estimator)
    for batch in batches[:3]:
        task.loss(batch)
        expected.update(batch.item.unique())
    assert torch.equal(task.estimator.gap, expected.gap)


def test_negatives_are_drawn_by_seed_and_step_alone():
    """Not by torch's generator, which differs between ranks and with dropout."""
    task, batches = made(SAMPLED)
    other, _ = made(SAMPLED)
    later, _ = made(SAMPLED, seed=1)
    rows = []
    for step, batch in enumerate(batches[:3]):
        torch.manual_seed(100 + step)
        rows.append(task._candidates(batch.item)[0].tolist())
        assert other._candidates(batch.item)[0].tolist() == rows[-1]
        assert int(task.step) == step + 1
    assert task._candidates(batches[0].item)[0].tolist() != rows[0], "another step, another draw"
    assert later._candidates(batches[0].item)[0].tolist() != rows[0], "another seed, another draw"
    assert "step" in task.state_dict(), "resumed, it goes on drawing where it was"


def test_more_negatives_than_items_is_the_whole_catalogue():
    task, batches = made({**SAMPLED, "negatives": 1000, "correction": "none"})
    full, _ = made(FULL)
    assert drawn(task, batches[0])[0] == list(range(N_ITEMS))
    assert value_of(task, batches[0]) == pytest.approx(value_of(full, batches[0]), rel=1e-5)


@pytest.mark.parametrize("kind", [FULL, IN_BATCH, SAMPLED], ids=lambda kind: kind["candidates"])
@pytest.mark.parametrize("world", [2, 3])
def test_parts_weighted_by_their_targets_sum_to_the_whole(kind, world):
    """Loss and gradients: what torchrun's ranks add up is one process's."""
    task, batches = made({**kind, "except_owned": True})
    batch = batches[0]
    whole = copy.deepcopy(task)
    value, _ = whole.loss(batch)
    value.backward()
    total, ranks = 0.0, []
    for rank in range(world):
        mine = copy.deepcopy(task)
        part, share = split_batch(batch, rank, world)
        loss, _ = mine.loss(part, batch)
        (loss * share).backward()
        total += float(loss.detach()) * share
        ranks.append(dict(mine.named_parameters()))
    assert total == pytest.approx(float(value.detach()), rel=1e-5)
    for name, weight in whole.named_parameters():
        summed = sum(rank[name].grad for rank in ranks)
        torch.testing.assert_close(summed, weight.grad, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_a_part_without_the_whole_has_other_candidates():
    task, batches = made(IN_BATCH)
    part, _ = split_batch(batches[0], 0, 2)
    assert value_of(copy.deepcopy(task), part) != pytest.approx(value_of(task, part, batches[0]), rel=1e-3)


def test_what_a_user_likes_is_no_negative_only_where_asked():
    task, batches = made(FULL)
    but, _ = made({**FULL, "except_owned": True})
    assert value_of(but, batches[0]) < value_of(task, batches[0])
    none, _ = made({**FULL, "except_owned": True})
    without = KuaiFormerTask(none.net, none.tables, none.estimator, {"item_video_id": torch.zeros(3, 1)}, none.config)
    assert without.owned_items is None


@pytest.mark.parametrize("kind", [FULL, IN_BATCH, SAMPLED], ids=lambda kind: kind["candidates"])
def test_gradients_reach_tables_items_and_queries(kind):
    task, batches = made(kind, windows=(4, 4), latest=6)
    for batch in batches:
        task.loss(batch)[0].backward()
    for name, weight in task.named_parameters():
        assert weight.grad is not None, name
        if name.split(".")[-1] not in ("tag", "duration", "gap", "play_ratio"):  # of which there is the default row
            assert weight.grad.abs().max() > 0, name
    assert (task.net.encoder.queries.grad.abs().amax(dim=1) > 0).all(), "every query wins somewhere"
    items = task.tables.weights["video"].grad.abs().amax(dim=1)[1:]
    assert (items > 0).sum() > 0.9 * N_ITEMS


def test_auto_takes_the_catalogue_while_it_is_small():
    assert LossConfig().chosen(FULL_UP_TO_ITEMS) == "full"
    assert LossConfig().chosen(FULL_UP_TO_ITEMS + 1) == "in-batch"
    assert LossConfig(candidates="sampled").chosen(5) == "sampled"
    assert made({"candidates": "auto"})[0].candidates == "full"


def test_a_correction_that_can_not_act_is_told():
    for correction in ("logq", "corrected"):
        full, sampled = (LossConfig(candidates=name, correction=correction) for name in ("full", "sampled"))
        assert (full.acting(N_ITEMS), sampled.acting(N_ITEMS)) == ("none", correction)
        assert f"all {N_ITEMS} items" in full.told(N_ITEMS)
        assert f"loss.correction={correction} does not act" in full.told(N_ITEMS)
        assert sampled.told(N_ITEMS) == ""
        assert made(vars(full))[0].correction == "none"
    assert LossConfig(candidates="full", correction="none").told(N_ITEMS) == "", "nothing was asked for"
    auto = LossConfig(correction="corrected")
    assert auto.told(FULL_UP_TO_ITEMS)
    assert not auto.told(FULL_UP_TO_ITEMS + 1)


def test_everything_moves_with_the_task():
    """What the loss reads lies where the batch lies: nothing stays behind on the CPU."""
    task, _ = made({**FULL, "except_owned": True})
    moved = copy.deepcopy(task).to("meta")
    assert {tensor.device.type for tensor in (*moved.parameters(), *moved.buffers())} == {"meta"}
    held = [name for name, value in vars(moved).items() if isinstance(value, torch.Tensor | OwnedItems)]
    assert held == [], "tensors that are no buffers"
    saved = task.state_dict()
    assert not [name for name in saved if name.startswith(("slots_", "owned_"))], "the data's, not the model's"


def test_half_precision_is_near():
    task, batches = made(FULL)
    exact = value_of(task, batches[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = task.loss(batches[0])
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(exact, rel=0.05)
    assert float(loss.detach()) != exact


@pytest.mark.parametrize("kind", [FULL, SAMPLED], ids=["full", "sampled"])
def test_what_nobody_watched_in_training_is_no_negative(kind: dict[str, Any]) -> None:
    """Else its content is taught away, and a video that is uploaded later comes up for nobody."""
    plain, _ = made(kind)
    task, batches = made({**kind, "among": "watched"})
    watched = set(task.watched_W.tolist())
    assert 0 < len(watched) < N_ITEMS
    for batch in batches:
        candidates, _ = drawn(task, batch)
        assert set(candidates) <= watched
        assert set(batch.item.tolist()) <= set(candidates)
        assert candidates == sorted(candidates)
    if kind is FULL:
        assert set(candidates) == watched
        assert plain._candidates(batches[0].item) == (None, None)
    stranger = next(item for item in range(N_ITEMS) if item not in watched)
    late = torch.tensor([stranger, *sorted(watched)[:2]])
    assert stranger in task._candidates(late)[0].tolist(), "a target stands among the candidates in any case"


def test_the_loss_among_the_watched_is_that_of_a_softmax_over_them() -> None:
    task, batches = made({**FULL, "among": "watched"})
    for batch in batches:
        rows_C, _ = task._candidates(batch.item)
        plain, _ = made({**FULL})
        kept = {name: getattr(plain, f"slots_{name}")[rows_C] for name in plain._fields}
        for name, slots in kept.items():
            setattr(plain, f"slots_{name}", slots)
        plain.n_items = len(rows_C)
        fewer = dataclasses.replace(batch, item=torch.searchsorted(rows_C, batch.item))
        assert value_of(task, batch) == pytest.approx(value_of(plain, fewer), abs=1e-6)
