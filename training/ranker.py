"""The server ranker: one probability per feedback signal for each candidate (pXTR), from rows already looked up.

Factorisation-machine terms (inner products of all pairs of field vectors, and their bi-interaction sum: Rendle 2010;
He & Chua 2017) and a two-layer perceptron. The user's last positives are three more fields: the masked mean of their
rows. What depends on the user alone is worked out once per request and broadcast over the candidates.

Shapes: B impressions, n candidates, h history, X pXTR heads, F field vectors, E width of each, D width of the first
layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.errors import InputError, SpecError
from contract.history import RANKER_HISTORY
from contract.spec import FeatureSpec
from contract.specs import ranker_spec
from contract.vocabulary import PXTR_HEADS, X_PXTR
from training.blocks import masked_mean

SERVED = ("user_rows", "history_rows", "candidate_rows")
DENSE = ("user_dense", "candidate_dense")


@dataclass(frozen=True)
class RankerConfig:
    """Sizes; `trained_heads` says for which signals the log had labels: the others' outputs mean nothing."""

    preset: str = "tiny"
    row_width: int = 16
    width: int = 64
    hidden: int = 32
    history: int = RANKER_HISTORY
    dropout: float = 0.0
    trained_heads: tuple[str, ...] = PXTR_HEADS

    def spec(self) -> FeatureSpec:
        return ranker_spec(self.row_width)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "trained_heads": list(self.trained_heads)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> RankerConfig:
        try:
            return RankerConfig(**{**data, "trained_heads": tuple(data["trained_heads"])})
        except (TypeError, KeyError) as error:
            raise InputError("not a ranker configuration", got=str(error)) from None


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"row_width": 16, "width": 128, "hidden": 64, "dropout": 0.1},
    "paper": {"row_width": 32, "width": 256, "hidden": 128, "dropout": 0.1},
}


def preset_config(preset: str, **changes: Any) -> RankerConfig:
    """The configuration of a preset. Raises InputError for an unknown one."""
    if preset not in PRESETS:
        raise InputError("unknown preset", got=preset, allowed=tuple(PRESETS))
    return RankerConfig(preset=preset, **{**PRESETS[preset], **changes})


class Ranker(nn.Module):
    """Logits and probabilities per head.

    user_rows [u, Ru], user_dense [u, Fu], history_rows [u, h, Rh], history_mask [u, h] (1 = real), candidate_rows [n,
    Rc], candidate_dense [n, Fc] -> [n, X]. u = 1 (one request, as exported) or u = n (one user per row, as trained).
    """

    def __init__(self, config: RankerConfig, spec: FeatureSpec):
        super().__init__()
        self.config, self.spec = config, spec
        widths = {column.field.width for block in SERVED for column in spec.columns(block)}
        if len(widths) != 1:
            raise SpecError("the ranker's field vectors must have one width", where=spec.name, got=sorted(widths))
        self.row_width = widths.pop()
        fields = sum(len(spec.columns(block)) for block in SERVED)
        upper = torch.triu_indices(fields, fields, offset=1)
        self.register_buffer("pair", upper[0] * fields + upper[1], persistent=False)
        user = spec.width("user_rows") + spec.width("user_dense") + spec.width("history_rows")
        self.from_user = nn.Linear(user, config.width)
        self.from_candidate = nn.Linear(
            spec.width("candidate_rows") + spec.width("candidate_dense"), config.width, bias=False
        )
        self.from_pairs = nn.Linear(len(self.pair) + self.row_width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.Linear(config.width, config.hidden)
        self.out = nn.Linear(config.hidden, X_PXTR)

    def forward(
        self,
        user_rows: Tensor,
        user_dense: Tensor,
        history_rows: Tensor,
        history_mask: Tensor,
        candidate_rows: Tensor,
        candidate_dense: Tensor,
    ) -> Tensor:
        """Logits [n, X]."""
        history_uR = masked_mean(history_rows, history_mask)
        user_uD = self.from_user(torch.cat([user_rows, user_dense, history_uR], dim=1))
        own_uR = torch.cat([user_rows, history_uR], dim=1)
        fields_nR = torch.cat([own_uR.expand(candidate_rows.shape[0], -1), candidate_rows], dim=1)
        vectors_nFE = fields_nR.reshape(-1, fields_nR.shape[1] // self.row_width, self.row_width)
        products_nFF = vectors_nFE @ vectors_nFE.transpose(1, 2)
        pairs_nP = products_nFF.flatten(1).index_select(1, self.pair)
        total_nE = vectors_nFE.sum(dim=1)
        bi_nE = 0.5 * (total_nE * total_nE - (vectors_nFE * vectors_nFE).sum(dim=1))
        candidate_nD = self.from_candidate(torch.cat([candidate_rows, candidate_dense], dim=1))
        x_nD = F.relu(user_uD + candidate_nD + self.from_pairs(torch.cat([pairs_nP, bi_nE], dim=1)))
        logits: Tensor = self.out(F.relu(self.hidden(self.dropout(x_nD))))
        return logits


class RankerProbabilities(nn.Module):
    """What is exported: the same inputs, probabilities `pxtr` [n, X]."""

    def __init__(self, net: Ranker):
        super().__init__()
        self.net = net

    def forward(
        self,
        user_rows: Tensor,
        user_dense: Tensor,
        history_rows: Tensor,
        history_mask: Tensor,
        candidate_rows: Tensor,
        candidate_dense: Tensor,
    ) -> Tensor:
        return torch.sigmoid(
            self.net(user_rows, user_dense, history_rows, history_mask, candidate_rows, candidate_dense)
        )


def masked_bce(logits_BX: Tensor, labels_BX: Tensor) -> Tensor:
    """Sum over heads of the mean cross-entropy of observed labels (labels: 1, 0, -1 = not observed, ignored)."""
    seen_BX = (labels_BX >= 0).to(logits_BX.dtype)
    loss_BX = F.binary_cross_entropy_with_logits(
        logits_BX, labels_BX.clamp(min=0).to(logits_BX.dtype), reduction="none"
    )
    return ((loss_BX * seen_BX).sum(dim=0) / seen_BX.sum(dim=0).clamp(min=1.0)).sum()
