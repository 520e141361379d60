"""What the sequence baselines share: an interface of nets, the training task, and the scorer for evaluation.

A net takes the item vectors of B histories, right-aligned (padding first), and answers for many cuts in one pass:
`net(tokens_BLD, mask_BL, n_cuts)` -> [B, P, K, D]; cut p has seen the slots 0 … L - P + p and nothing behind them.
Queries and items share one table, as in all the papers.

Trained by the same batches, loss and trainer as KuaiFormer: softmax over the whole catalogue at every cut. SASRec's own
loss (one sampled negative, binary cross-entropy) is much weaker than that (Klenitskiy & Vasilev, RecSys 2023; Petrov &
Macdonald, RecSys 2023), and so are the sampled losses of the other two papers.

Shapes: B histories, L slots, P cuts, T targets, K interests, D width, N items, M entries of a field (1 here).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.spec import FeatureSpec
from contract.specs import kuaiformer_spec

if TYPE_CHECKING:
    from training.retrieval_split import RetrievalSplit
    from training.segments import HistorySlots, SegmentBatch
    from training.tables import SparseTables

MASK = -1e4  # exp of it is exactly 0 in float32, and a row of nothing else stays finite
KEPT = ("history_video_id", "item_video_id")
Ids = NDArray[np.int64]


def baseline_spec(width: int) -> FeatureSpec:
    """KuaiFormer's spec with nothing left but the item's own row, `width` wide, in history and catalogue."""
    whole = kuaiformer_spec(video=width)
    return replace(whole.without(f.name for f in whole.fields if f.name not in KEPT), name="baseline")


def positions(mask_BL: Tensor) -> Tensor:
    """How many real items stand before each slot: int64 [B, L]; 0 … n - 1 for the real ones, 0 in the padding."""
    return (mask_BL.long().cumsum(dim=1) - 1).clamp(min=0)


def left_aligned(x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The same histories with their padding last, as zeros: item i of every row stands at slot i."""
    length = x_BLD.shape[1]
    padding_B1 = length - mask_BL.long().sum(dim=1, keepdim=True)
    slot_BL = torch.arange(length, device=x_BLD.device) + padding_B1
    moved_BLD = x_BLD.gather(1, slot_BL.clamp(max=length - 1)[..., None].expand_as(x_BLD))
    return moved_BLD * (slot_BL < length)[..., None]


def at_cuts(x_BLD: Tensor, mask_BL: Tensor, n_cuts: int) -> Tensor:
    """From left-aligned outputs those behind the last cuts: [B, P, D]; zero where a cut has seen nothing."""
    there_BL = mask_BL[:, -n_cuts:, None]
    place_BL = positions(mask_BL)[:, -n_cuts:, None].expand(-1, -1, x_BLD.shape[-1])
    return x_BLD.gather(1, place_BL) * there_BL


class SequenceTask(nn.Module):
    """A net and its table as one thing to train (`training.trainer.Task`).

    item_slots  field -> int64 [N, M] of the catalogue
    negatives   items drawn for each step to stand beside its targets, the same for all; None = the whole catalogue
    Cuts without history are left out: such a model has no answer there, and the papers begin with the second item.
    """

    def __init__(
        self,
        net: nn.Module,
        tables: SparseTables,
        spec: FeatureSpec,
        item_slots: dict[str, Tensor],
        negatives: int | None = None,
        except_seen: bool = False,
    ):
        super().__init__()
        self.net, self.tables, self.spec = net, tables, spec
        self.negatives, self.except_seen = negatives, except_seen
        self._fields = list(item_slots)
        for name, slots_NM in item_slots.items():
            self.register_buffer(f"slots_{name}", slots_NM, persistent=False)

    def loss(self, batch: SegmentBatch) -> tuple[Tensor, dict[str, float]]:
        from training.candidates import Seen, shared_negatives
        from training.losses import candidate_softmax

        tokens_BLD = self.tables.rows(self.spec, "history_rows", batch.history)
        users_BPKD = self.net(tokens_BLD, batch.mask, batch.n_cuts)
        told_T = batch.mask[:, -batch.n_cuts :].reshape(-1)[batch.cell] > 0
        if not told_T.any():  # users of a single positive, as batches are by length
            return users_BPKD.sum() * 0.0, {"targets": 0}
        users_TKD = users_BPKD.flatten(0, 1)[batch.cell[told_T]]
        target_T, rows_C, log_q_C = batch.item[told_T], None, None
        slots = {name: getattr(self, f"slots_{name}") for name in self._fields}
        n_items = len(slots[self._fields[0]])
        if self.negatives is not None:
            rows_C, target_T, log_q_C = shared_negatives(target_T, min(self.negatives, n_items), n_items)
            slots = {name: slots_NM[rows_C] for name, slots_NM in slots.items()}
        seen = None
        if self.except_seen:
            seen = Seen.of(batch.held, self.slots_item_video_id[:, 0], batch.cell[told_T], batch.n_cuts, rows_C)
        items_CD = self.tables.rows(self.spec, "item_rows", slots)
        if users_TKD.shape[1] > 1:
            users_TKD = chosen_interest(users_TKD, items_CD[target_T])
        loss = candidate_softmax(
            users_TKD.float(),
            items_CD.float(),
            target_T,
            log_q_C=log_q_C,
            correction="none" if log_q_C is None else "logq",
            owned=seen,
            weight_T=batch.weight[told_T],
            precision="bfloat16" if torch.is_autocast_enabled(users_TKD.device.type) else "float32",
        )
        return loss, {"targets": len(target_T)}


def chosen_interest(users_TKD: Tensor, targets_TD: Tensor) -> Tensor:
    """ComiRec's hard attention: the interest nearest to the target answers alone, [T, 1, D]."""
    best_T = torch.einsum("tkd,td->tk", users_TKD, targets_TD).argmax(dim=1)
    return users_TKD[torch.arange(len(best_T), device=best_T.device), best_T].unsqueeze(1)


class SequenceScorer:
    """A net as what evaluation takes: the best of its interests' inner products with every item, [B, N].

    length  items of a history that the net sees. A user without any gets the order of popularity, as one would show.
    """

    def __init__(self, name: str, net: nn.Module, tables: SparseTables, spec: FeatureSpec, length: int):
        self.name = name
        self.net, self.tables, self.spec, self.length = net, tables, spec, length
        self._split: RetrievalSplit | None = None
        self._history: HistorySlots
        self._item_slots: dict[str, Tensor]
        self._popularity_N: NDArray[np.float32]
        self._items_ND: Tensor | None = None

    def refresh(self) -> None:
        """Forget the items' vectors: the weights may have moved. `evaluate` calls this."""
        self._items_ND = None

    @torch.no_grad()
    def scores(self, split: RetrievalSplit, user: Ids, end: Ids) -> NDArray[np.float32]:
        """float32 [B, N], higher is better. Runs where the weights lie, in eval mode, and leaves the mode as it was."""
        from training.devices import to_device
        from training.retrieval_eval import best_scores, evaluating

        if self._split is not split:
            self._prepare(split)
        device = next(self.tables.parameters()).device
        start = np.maximum(split.start(user), end - min(self.length, split.history))
        with evaluating(self.net, self.tables):
            if self._items_ND is None:
                self._items_ND = self.tables.rows(self.spec, "item_rows", to_device(self._item_slots, device))
            slots, mask_BL = to_device(self._history.window(start, end, int((end - start).max(initial=1))), device)
            users_BKD = self.net(self.tables.rows(self.spec, "history_rows", slots), mask_BL, 1)[:, 0]
            scores_BN: NDArray[np.float32] = best_scores(users_BKD, self._items_ND).float().cpu().numpy()
        scores_BN[end <= start] = self._popularity_N
        return scores_BN

    def _prepare(self, split: RetrievalSplit) -> None:
        from training.segments import HistorySlots, item_slots

        self._split, self._items_ND = split, None
        self._history = HistorySlots(split.index, self.spec, self.tables)
        self._item_slots = item_slots(split.items, self.spec, self.tables)
        self._popularity_N = split.counts().astype(np.float32)
