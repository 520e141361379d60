"""KuaiFormer as a task of the trainer: all cuts of a batch against the catalogue, the batch's items, or a sample.

Shapes: B segments, P cuts, T targets, K interests, D width, C candidates, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import InputError
from training.candidates import Owned, OwnedItems, Seen, in_batch_candidates, shared_negatives
from training.frequency import FrequencyEstimator
from training.kuaiformer import KuaiFormer
from training.losses import CORRECTIONS, SMOOTHINGS, candidate_softmax
from training.segments import SegmentBatch
from training.tables import SparseTables

CANDIDATES = ("auto", "full", "in-batch", "sampled")
AMONG = ("catalogue", "watched")
FULL_UP_TO_ITEMS = 20_000  # beyond it, `auto` takes the batch's items: a full softmax then costs more than the encoder


@dataclass(frozen=True)
class LossConfig:
    """Softmax over candidates: Eq. 10 and 11, its correction (arXiv 2507.09331), and smoothing.

    candidates    full = the catalogue, in-batch = the batch's items, sampled = those and `negatives` drawn for all;
                  auto = full up to FULL_UP_TO_ITEMS items, else in-batch
    correction    none, logq or corrected; a full softmax needs none and gets none (`acting`), which training says
    among         catalogue, or watched = the videos that have a positive in training. One without is a negative of
                  every target and nothing else, so that its content is taught away: left out, as a video is that is
                  uploaded later, it keeps the vector that its author, tags and duration give it
    except_owned  what a target's user also liked is no negative
    except_seen   what stands in the history is no negative: it is not ranked then either, where the protocol masks it
    """

    candidates: str = "auto"
    negatives: int = 1024
    correction: str = "logq"
    among: str = "catalogue"
    except_owned: bool = False
    except_seen: bool = False
    smoothing: str = "none"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        names = {"candidates": CANDIDATES, "correction": CORRECTIONS, "smoothing": SMOOTHINGS, "among": AMONG}
        for name, allowed in names.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"unknown {name}", got=getattr(self, name), allowed=allowed)
        if not 0.0 <= self.alpha < 1.0 or self.negatives < 1:
            got = {"alpha": self.alpha, "negatives": self.negatives}
            raise InputError("loss out of range", got=got, allowed="alpha from 0 to below 1, negatives from 1")

    def chosen(self, n_items: int) -> str:
        """The candidates that `auto` stands for."""
        if self.candidates != "auto":
            return self.candidates
        return "full" if n_items <= FULL_UP_TO_ITEMS else "in-batch"

    def acting(self, n_items: int) -> str:
        """The correction that acts: none where the softmax goes over the whole catalogue."""
        return "none" if self.chosen(n_items) == "full" else self.correction

    def told(self, n_items: int) -> str:
        """A line for a person where the correction can't act; "" where it does, or none was asked for."""
        if self.acting(n_items) == self.correction:
            return ""
        return (
            f"loss: a softmax over all {n_items} items has nothing to correct, so loss.correction={self.correction} "
            "does not act; it does with loss.candidates=in-batch or sampled"
        )


class KuaiFormerTask(nn.Module):
    """Net, tables and frequency estimator as one thing to train.

    item_slots  field -> int64 [N, M] of the catalogue; owned: what each user liked, for `except_owned`
    prior_NG    float32 [N, G], of a net with a prior: the items' priors on each day (training/recency.py)
    watched_N   bool [N], for `among="watched"`: which items have a positive; targets of a batch are taken in as well
    """

    def __init__(
        self,
        net: KuaiFormer,
        tables: SparseTables,
        estimator: FrequencyEstimator,
        item_slots: dict[str, Tensor],
        config: LossConfig,
        owned: OwnedItems | None = None,
        seed: int = 0,
        prior_NG: Tensor | None = None,
        watched_N: Tensor | None = None,
    ):
        super().__init__()
        self.net, self.tables, self.estimator, self.config = net, tables, estimator, config
        self.n_items = len(next(iter(item_slots.values())))
        self.candidates, self.correction = config.chosen(self.n_items), config.acting(self.n_items)
        self.scale = 1.0 / net.config.temperature if net.config.normalise else 1.0
        self.seed = seed
        self._fields = list(item_slots)
        # Buffers, so that they move to the training's device; not persistent: they are the data's.
        for name, slots in item_slots.items():
            self.register_buffer(f"slots_{name}", slots, persistent=False)
        self.register_buffer("owned_offsets", owned.offsets_U if owned else None, persistent=False)
        self.register_buffer("owned_items", owned.items if owned else None, persistent=False)
        self.register_buffer("prior_NG", prior_NG, persistent=False)
        watched = watched_N.nonzero()[:, 0] if config.among == "watched" and watched_N is not None else None
        self.register_buffer("watched_W", watched, persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def loss(self, batch: SegmentBatch, whole: SegmentBatch | None = None) -> tuple[Tensor, dict[str, Any]]:
        """whole: under torchrun, the batch that `batch` is this rank's part of; candidates are the whole's."""
        rows_C, log_q_C = self._candidates((whole or batch).item)
        slots = {name: getattr(self, f"slots_{name}") for name in self._fields}
        if rows_C is not None:
            slots = {name: found[rows_C] for name, found in slots.items()}
        # In one go: tables that update their rows in the backward pass do so once for each look-up.
        rows = self.tables.blocks(self.net.spec, {"history_rows": batch.history, "item_rows": slots})
        users_BPKD = self.net.encoder.cuts(rows["history_rows"], batch.mask, batch.n_cuts)
        users_TKD = users_BPKD.flatten(0, 1)[batch.cell]
        items_CD = self.net.item_vector(rows["item_rows"])
        if self.prior_NG is not None and batch.day is not None:
            prior_CG = self.prior_NG if rows_C is None else self.prior_NG[rows_C]
            users_TKD, items_CD = with_days(users_TKD, items_CD, batch.day, prior_CG)
        target_T = batch.item if rows_C is None else torch.searchsorted(rows_C, batch.item)
        owned: Owned | Seen | None = None
        if self.config.except_seen:
            owned = Seen.of(batch.held, self.slots_item_video_id[:, 0], batch.cell, batch.n_cuts, rows_C)
        if self.config.except_owned and self.owned_offsets is not None:
            owned = OwnedItems(self.owned_offsets, self.owned_items).of(batch.owner, rows_C, self.n_items)
        loss = candidate_softmax(
            users_TKD.float(),
            items_CD.float(),
            target_T,
            scale=self.scale,
            log_q_C=log_q_C,
            correction=self.correction,
            owned=owned,
            weight_T=batch.weight,
            smoothing=self.config.smoothing,
            alpha=self.config.alpha,
            precision="bfloat16" if torch.is_autocast_enabled(users_TKD.device.type) else "float32",
        )
        return loss, {"targets": len(batch.item)}

    def _candidates(self, item_T: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Catalogue rows ascending (None = all of them) and log Q, None where there is nothing to correct."""
        pool_M = None if self.watched_W is None else torch.unique(torch.cat([self.watched_W, item_T]))
        if self.candidates == "full":
            return pool_M, None
        correct = self.correction != "none"
        if self.candidates == "in-batch":
            rows_C, _ = in_batch_candidates(item_T)
            self.estimator.update(rows_C)
            return rows_C, self.estimator.log_q(rows_C) if correct else None
        # All ranks of a distributed training must draw the same: by the step, not from torch's generator.
        generator = torch.Generator(item_T.device).manual_seed(self.seed * 1_000_003 + int(self.step))
        self.step += 1
        place_T = item_T if pool_M is None else torch.searchsorted(pool_M, item_T)
        n = self.n_items if pool_M is None else len(pool_M)
        rows_C, _, log_q_C = shared_negatives(place_T, min(self.config.negatives, n), n, generator=generator)
        return rows_C if pool_M is None else pool_M[rows_C], log_q_C if correct else None


def with_days(users_TKD: Tensor, items_CD: Tensor, day_T: Tensor, prior_CG: Tensor) -> tuple[Tensor, Tensor]:
    """Users and items whose product takes each target's prior as of its own day: [T, K, D - 1 + G], [C, D - 1 + G].

    The last column, the weight and the prior as of now, gives way to one for each day, of which a target has its own.
    """
    own_TG = torch.nn.functional.one_hot(day_T, prior_CG.shape[1]).to(users_TKD.dtype)
    weight_TKG = users_TKD[..., -1:] * own_TG[:, None]
    return torch.cat([users_TKD[..., :-1], weight_TKG], dim=-1), torch.cat([items_CD[:, :-1], prior_CG.to(items_CD)], 1)
